"""MEFT, maximum entropy fine-tuning (Liu et al., 2023, as the PURE paper runs it as a baseline: its Appendix B).

    1  theta <- train theta_p on the texts of D_train to minimise sum_c p_c log p_c, the negative entropy    `max_entropy`
    2  f     <- fine-tune theta on D_train with cross-entropy; the best epoch on D_val comes back

Step 1 asks that the model be sure of nothing, whatever the text; no label enters. It is to undo what draws a triggered
text to the target, before step 2 teaches the task. Both steps start their own optimiser, warm-up and decay.

Departures: step 1 lasts some passes, not 4,000 steps, so that it grows with the rows as step 2 does. The paper says of
its steps that they bring a "Stop Distance" to 0.01 - 0.015 and not what that distance is: it is left out. The released
code of PURE holds the loss alone. It sums over the batch, where fit's mean does not grow with it; and it multiplies p
by log(softmax), which is 0 * -inf = NaN for a sure model.
"""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.predict import accuracy
from minibd.records import BadInput, Batch, Examples
from minibd.train import Log, Schedule, cross_entropy, fit


@dataclass(frozen=True, slots=True)
class MEFT:
    """The method's numbers, the same for every attack."""
    entropy_epochs: int = setting(2, "passes that maximise the entropy, before the fine-tuning",
                                  paper="4,000 steps, 2.1 passes of SST-2's 60,570 rows")
    lr: float = setting(2e-5, "learning rate of both steps", paper="2e-5")
    epochs: int = setting(3, "passes of the fine-tuning, of which the best on validation is kept", paper="3")
    batch_size: int = setting(32, "texts a step", paper="32")
    keep_head: bool = setting(False, "keep the classifier that the checkpoint has, instead of a new one", paper="no")

    def __post_init__(self):
        if self.entropy_epochs < 1:
            raise BadInput(
                f"entropy_epochs is {self.entropy_epochs}, it must be at least 1: without it this is plain "
                "fine-tuning, ft"
            )
        self.schedule

    @property
    def schedule(self) -> Schedule:
        """The fine-tuning's: Adam as in the paper, no weight decay."""
        return Schedule(self.lr, self.epochs, self.batch_size, weight_decay=0.0)


def max_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Eq. MEFT (entropy): sum_c p_c log p_c, the negative entropy, one value a text: (B,). -log C where all classes are
    equal, 0 where one has it all."""
    log_p = F.log_softmax(model(batch).logits.float(), dim=-1)  # (B, C)
    # not -inf: where p is 0, p log p is 0, and so is its gradient
    log_p = log_p.clamp(min=torch.finfo(torch.float32).min)
    return {"entropy": (log_p.exp() * log_p).sum(dim=-1)}


def meft(
    victim: Checkpoint, train: Examples, validation: Examples, settings: MEFT = MEFT(), *, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None,
    on_stage: Callable[[str, Checkpoint, float], None] | None = None,
) -> Checkpoint:
    """Both steps. f comes back as a new record; `victim` stays as it was.

    victim: an encoder, or a classifier whose head is replaced unless `keep_head`. log: see train.fit. on_stage: called
    with "max-entropy" and theta, then "MEFT" and f, and the seconds each step took.
    """
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
        score=lambda model: accuracy(model, tokenizer, validation))
    f.history.append(
        {
            "mitigation": "meft", "clean_rows": len(train), "validation_rows": len(validation), "seed": seed,
            **asdict(settings),
        }
    )
    if on_stage is not None:
        on_stage("MEFT", f, time.perf_counter() - started)
    return f
