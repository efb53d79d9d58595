"""MEFT, maximum entropy fine-tuning (Liu et al., 2023; run as a baseline in the PURE paper, Appendix B).

    1  theta <- train theta_p on the texts of D_train to minimise sum_c p_c log p_c, the negative entropy  `max_entropy`
    2  f     <- fine-tune theta on D_train with cross-entropy; the best epoch on D_val comes back

Step 1 makes the model unsure of every text; it uses no label. It is to undo what draws a triggered text to the target
class, before step 2 teaches the task. Each step has its own optimizer, warm-up and decay.

Departures: step 1 lasts a number of passes, not 4,000 steps, so that it grows with the rows as step 2 does. The paper
says that its steps bring a "Stop Distance" to 0.01 - 0.015 and does not define that distance: it is left out. PURE's
released code has the loss alone. It sums over the batch, where fit takes the mean, which does not grow with the batch;
and it multiplies p by log(softmax), which is 0 * -inf = NaN for a sure model.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd import checkpoint
from minibd.blending import OnStage
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.predict import accuracy
from minibd.records import BadInput, Batch, Examples
from minibd.train import Log, OnChoice, Schedule, check_classes, cross_entropy, fit


@dataclass(frozen=True, slots=True)
class MEFT:
    """The method's numbers, the same for every attack."""
    entropy_epochs: int = setting(2, "passes that maximise the entropy, before the fine-tuning",
                                  paper="4,000 steps, 2.1 passes of SST-2's 60,570 rows")
    lr: float = setting(2e-5, "learning rate of both steps", paper="2e-5")
    epochs: int = setting(3, "passes of the fine-tuning; the best on validation is kept", paper="3")
    batch_size: int = setting(32, "texts per step", paper="32")
    keep_head: bool = setting(False, "keep the classifier that the checkpoint has, instead of a new one", paper="no")

    def __post_init__(self):
        if self.entropy_epochs < 1:
            raise BadInput(
                f"entropy_epochs is {self.entropy_epochs}, it must be at least 1: without it this is plain "
                "fine-tuning, ft"
            )
        self.schedule.validate()

    @property
    def schedule(self) -> Schedule:
        """That of the fine-tuning: Adam as in the paper, no weight decay."""
        return Schedule(self.lr, self.epochs, self.batch_size, weight_decay=0.0)


def max_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Eq. MEFT (entropy): sum_c p_c log p_c, the negative entropy, one value per text: (B,).

    It is -log C if all C classes are equally likely, 0 if one is certain.
    """
    log_p = F.log_softmax(model(batch).logits.float(), dim=-1)  # (B, C)
    # not -inf: where p is 0, p log p is 0, and so is its gradient
    log_p = log_p.clamp(min=torch.finfo(torch.float32).min)
    return {"entropy": (log_p.exp() * log_p).sum(dim=-1)}


def meft(
    victim: Checkpoint, train: Examples, validation: Examples, settings: MEFT = MEFT(), *, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Both steps. Returns f, a new checkpoint; `victim` stays as it was.

    victim: an encoder, or a classifier whose head is replaced unless `keep_head`. log: see train.fit. on_stage: called
    with "max-entropy" and theta, then "MEFT" and f, and the seconds each step took. on_choice: called with
    "best_epoch", of step 2.
    """
    check_classes(train, "MEFT")
    tokenizer, rows = victim.tokenizer, victim.tokenizer.encode(train)

    started = time.perf_counter()
    theta = checkpoint.to_tune(victim, train.labels, seed, settings.keep_head)
    fit(
        theta.model, tokenizer, rows, max_entropy, replace(settings.schedule, epochs=settings.entropy_epochs),
        seed=seed, dtype=dtype, log=log, name="max-entropy",
    )
    if on_stage is not None:
        on_stage("max-entropy", theta, time.perf_counter() - started)

    started = time.perf_counter()
    f = checkpoint.copy(theta)
    fit(f.model, tokenizer, rows, cross_entropy, settings.schedule, seed=seed, dtype=dtype, log=log, name="MEFT",
        score=lambda model: accuracy(model, tokenizer, validation), on_choice=on_choice)
    f.history.append({
        "mitigation": "meft", "clean_rows": len(train), "validation_rows": len(validation), "seed": seed,
        **asdict(settings),
    })
    if on_stage is not None:
        on_stage("MEFT", f, time.perf_counter() - started)
    return f
