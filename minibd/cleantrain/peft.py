"""Parameter-efficient training on a suspicious dataset: the baselines LoRA, Adapter, Prefix and Vanilla of MuScleLoRA's
Table 1.

Who uses it: a defender who holds a pre-trained encoder to trust and labelled rows that may be poisoned. A model whose
own weights are frozen, and which learns through a few inserted ones only, learns the task and, it is hoped, less of a
trigger.

    1  give the encoder a new classifier and freeze all its weights, the classifier's too       vanilla: freeze nothing
    2  insert the deltas:  lora     W + (alpha / r) B A at queries and values                   models/lora.py
                           adapter  y = h + W_up act(W_down h) behind both halves of a block    models/adapter.py
                           prefix   n learned keys and values in front of every text            models/prefix.py
    3  train the deltas on the rows with cross-entropy; the best epoch on the validation rows comes back

The classifier stays at its random start and the penultimate layer as the encoder has it (BERT's pooler was pre-trained
with it), as in the released code; the paper does not say so. The deltas turn the hidden state towards it. `train_head`
trains it, and the layer before it, too. Rank, bottleneck and prefix positions are one number, as in the paper (B.4),
though the three then train 0.3, 0.3 and 9.7 million weights.

Which epoch: the best by accuracy on clean validation rows, for every method alike; without them, the last. The released
code does so for its own defence. For baselines such as Vanilla it takes the epoch with the highest mean of clean
accuracy and ASR: a choice that only the attacker can make, and that makes a baseline look worse against the defence
than it is.

LoRA is merged into a plain model. Adapter and prefix cannot be merged into the encoder's weights: such a model runs as
it is, and its scores are the result; no checkpoint can hold it.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.models.adapter import adapter
from minibd.models.cast_once import cast_once
from minibd.models.encoder import Encoder
from minibd.models.lora import freeze, lora, merge
from minibd.models.prefix import prefix
from minibd.predict import best_on
from minibd.records import BadInput, Examples
from minibd.train import Log, OnChoice, Schedule, check_classes, cross_entropy, fit

HEAD = ("pooler.", "classifier.")  # the layers behind the encoder
HEAD_WIDTH = 16  # of a Llama's two-layer classifier, section 5.1


@dataclass(frozen=True, slots=True)
class PEFT:
    """The method's numbers, the same for every attack."""

    method: str = setting(
        "lora", "what trains: all weights (vanilla), or one of the deltas",
        choices=("vanilla", "lora", "adapter", "prefix"),
    )
    bottleneck: int = setting(
        8, "LoRA's rank, the adapters' bottleneck or the positions of the prefix", paper="8, Llama 2"
    )
    alpha: float = setting(32.0, "LoRA's update weighs alpha / bottleneck", paper="not mentioned; released 32, Llama 8")
    lr: float = setting(2e-5, "learning rate", paper="2e-5, Llama 1e-5")
    epochs: int = setting(10, "passes; the best on validation is kept", paper="10, Llama 5")
    batch_size: int = setting(32, "texts per step", paper="32, Llama 16")
    weight_decay: float = setting(0.0, "weight decay of matrices", paper="not mentioned; released 0")
    warmup: float = setting(0.0, "share of the steps over which the rate rises", paper="not mentioned; released 0")
    train_head: bool = setting(False, "train the new classifier besides the deltas", paper="not mentioned; released no")

    def __post_init__(self):
        check_choices(self)
        if self.bottleneck < 1:
            raise BadInput(f"bottleneck is {self.bottleneck}, it must be at least 1, such as 8")
        if not self.alpha > 0:
            raise BadInput(f"alpha is {self.alpha}, which leaves LoRA's update out: it must be above 0, such as 32")
        if not self.weight_decay >= 0:
            raise BadInput(f"weight_decay is {self.weight_decay}, it must not be negative")
        self.schedule.validate()

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.lr, self.epochs, self.batch_size, warmup=self.warmup, weight_decay=self.weight_decay)


def insert(model: Encoder, settings: PEFT, generator: torch.Generator) -> None:
    """Lines 1 and 2, in place: freeze, and insert the deltas of `settings.method`. vanilla changes nothing."""
    if settings.method == "vanilla":
        return
    freeze(model)
    if settings.train_head:
        for name, p in model.named_parameters():
            p.requires_grad_(name.startswith(HEAD))
    if settings.method == "lora":
        lora(model, rank=settings.bottleneck, alpha=settings.alpha, generator=generator)
    elif settings.method == "adapter":
        adapter(model, bottleneck=settings.bottleneck, generator=generator)
    else:
        prefix(model, tokens=settings.bottleneck, generator=generator)


def train_peft(
    ckpt: Checkpoint, rows: Examples, settings: PEFT = PEFT(), *, validation: Examples | None = None, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None, on_step: Callable[[nn.Module, int], None] | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """A copy of `ckpt` with a new classifier for the classes of `rows`, trained on them; `ckpt` stays as it was.

    validation: the best epoch on these rows comes back; without them, the last.
    log, on_step: see train.fit; `on_step` sees LoRA before it is merged. on_choice: called with "best_epoch".
    """
    check_classes(rows, settings.method)
    tuned = checkpoint.new_classifier(ckpt, rows.labels, seed, HEAD_WIDTH)
    model = tuned.model
    insert(model, settings, torch.Generator().manual_seed(seed + 2))  # seed + 1 has drawn the classifier
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    model.trim = True
    with cast_once(model, dtype):
        fit(
            model, tuned.tokenizer, tuned.tokenizer.encode(rows), cross_entropy, settings.schedule, seed=seed,
            dtype=dtype, log=log, on_step=on_step, name=settings.method, score=best_on(tuned.tokenizer, validation),
            on_choice=on_choice,
        )
    model.trim = False
    if settings.method == "lora":
        merge(model)
    model.requires_grad_(True)  # as in every checkpoint: the next training chooses what is frozen
    tuned.history.append({
        "mitigation": "peft", "rows": len(rows), "validation_rows": len(validation or ()), "seed": seed,
        "trained_numbers": trained, **asdict(settings),
    })
    return tuned
