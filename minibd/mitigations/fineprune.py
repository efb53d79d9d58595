"""Fine-pruning (Liu et al., 2018, as a baseline for Transformers): prune the units that are idle on clean text, then
fine-tune.

    1  activity of a feed-forward unit: its mean |activation| over the tokens of the clean rows       `activity`
    2  while accuracy on validation is at most `drop` points under the victim's:                      `idle_units`
           prune the next 5 % of each layer's units, the least active first                           `prune`
    3  restore the last 5 %
    4  fine-tune on the clean rows with cross-entropy; what is pruned stays pruned                    tune_on_few_rows

A unit is an element of the feed-forward layer's inner vector, between `up` (and Llama's `gate`) and `down`: a unit that
only the trigger excites is idle on clean text. A pruned unit is a row of zeros in `up` and a column of zeros in `down`,
so the result loads anywhere. Line 4 needs no mask: the unit's output is 0, so `down` gets no gradient; `down` is 0, so
`up` gets none; and AdamW leaves a 0 without gradient at 0, weight decay included.

The original prunes the last convolution of an image model, by the mean of activations that a ReLU has made positive;
the MBTSAD paper says "neurons not activated by clean text". Everything else is chosen here: |.|, since a GELU's outputs
have both signs; all layers (`layers` takes the last ones), since an attack on words acts in the low layers; the same
share of each; steps of 5 %; 2 points; line 4 as in mitigations/finemix.py.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.blending import OnStage, tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.data import in_order
from minibd.models.encoder import Encoder
from minibd.predict import accuracy
from minibd.records import BadInput, Examples
from minibd.resume import once
from minibd.tokenizer import Tokenizer
from minibd.train import Log, OnChoice, Tuning, check_classes

GROUP = 0.05  # the share of each layer's units that is pruned between two measurements of the accuracy


@dataclass(frozen=True, slots=True)
class FinePruning(Tuning):
    """The method's numbers, the same for every attack."""

    share: float | None = setting(
        None, "share of each layer's units that is pruned, 0..1 (default: as many as --drop allows)",
        paper="as many as an accuracy allows", kind=float,
    )
    drop: float = setting(
        2.0, "points of percent that accuracy on validation may lose against the victim's, before the fine-tuning",
        paper="not known",
    )
    layers: int | None = setting(
        None, "last layers that are pruned (default: all)", paper="not known; images: the last", kind=int
    )

    def validate(self) -> None:
        if not 0 <= (self.share or 0.0) <= 1:
            raise BadInput(f"share is {self.share}, of a layer's units: it must lie in 0..1")
        if not 0 <= self.drop <= 100:
            raise BadInput(f"drop is {self.drop}, points of percent: it must lie in 0..100, such as 2")
        if self.layers is not None and self.layers < 1:
            raise BadInput(f"layers is {self.layers}, it must be at least 1")
        Tuning.validate(self)


@torch.no_grad()
def activity(model: Encoder, tokenizer: Tokenizer, rows: Examples, *, batch_size: int = 128) -> Tensor:
    """Eq. Fine-pruning (activity): mean |activation| of each feed-forward unit over all real tokens of `rows`: (L, F),
    float64."""
    if not rows:
        raise BadInput("there are no clean rows to measure the units' activity on: give at least one")
    model.eval()
    device, encoded = next(model.parameters()).device, tokenizer.encode(rows)
    inner: list[Tensor] = []  # what each block's `down` reads: (N, F)
    hooks = [block.down.register_forward_pre_hook(lambda _, inputs: inner.append(inputs[0])) for block in model.blocks]
    try:
        total = 0.0
        for which in in_order(encoded.lengths, batch_size):
            batch = tokenizer.batch(encoded, which).to(device)
            packed = model.pack(batch)
            model.encode(batch)  # model(batch) would skip, in the last block, the tokens that are not classified
            # If a batch is not packed, padding is among the rows.
            total += torch.stack([packed.unpack(x)[batch.mask].abs().double().sum(0) for x in inner])
            inner.clear()
    finally:
        for hook in hooks:
            hook.remove()
    return total / sum(encoded.lengths)


@torch.no_grad()
def prune(model: Encoder, scores: Tensor, count: int, layers: int) -> None:
    """Zero, in place, the `count` least active units of each of the last `layers` layers, of equals the first; scores
    (L, F)."""
    for block, idle in list(zip(model.blocks, scores.argsort(dim=1, stable=True)[:, :count], strict=True))[-layers:]:
        for name, module in block.named_children():
            if name in ("up", "gate"):
                module.weight[idle] = 0.0
                if module.bias is not None:
                    module.bias[idle] = 0.0
        block.down.weight[:, idle] = 0.0


def idle_units(victim: Checkpoint, scores: Tensor, validation: Examples, layers: int, drop: float) -> int:
    """Lines 2 and 3: how many units of each layer can be pruned; a whole number of groups, and never all units."""
    width, trial = scores.shape[1], checkpoint.copy(victim)
    floor, allowed = accuracy(victim.model, victim.tokenizer, validation) - drop / 100, 0
    for group in range(1, round(1 / GROUP)):
        prune(trial.model, scores, count := round(group * GROUP * width), layers)
        if accuracy(trial.model, trial.tokenizer, validation) < floor - 1e-9:
            break
        allowed = count
    return allowed


def fineprune(
    victim: Checkpoint, clean: Examples, validation: Examples | None = None, settings: FinePruning = FinePruning(), *,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Lines 1 to 4. Returns a new checkpoint; `victim` stays as it was.

    validation: rows that decide how much is pruned, and which epoch is the best; without them `settings.share` must be
    given, and the last epoch comes back. log: see train.fit. on_stage: called with "pruned" and the model before its
    fine-tuning, then "Fine-pruning" and the result, and the seconds each took. on_choice: called with "pruned", the
    number of units pruned in each layer, and "best_epoch".
    """
    check_classes(clean, "Fine-pruning")
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    if settings.share is None and not validation:
        raise BadInput(
            "how much to prune is measured on validation rows, and there are none: give some, or give share, such as "
            "0.5"
        )
    layers = len(victim.model.blocks) if settings.layers is None else settings.layers
    if layers > len(victim.model.blocks):
        raise BadInput(f"layers is {layers} and the model has {len(victim.model.blocks)}: give at most that")
    scores = activity(victim.model, victim.tokenizer, clean)
    if settings.share is None:
        count = once(log, "idle units", lambda: idle_units(victim, scores, validation, layers, settings.drop))
    else:
        count = round(settings.share * scores.shape[1])
    pruned = checkpoint.copy(victim)
    prune(pruned.model, scores, count, layers)
    if on_stage is not None:
        on_stage("pruned", pruned, time.perf_counter() - started)
    if on_choice is not None:
        on_choice("pruned", count)

    started = time.perf_counter()
    tuned = tune_on_few_rows(
        checkpoint.copy(pruned), clean, validation, settings.schedule, settings.steps, seed=seed, dtype=dtype, log=log,
        name="Fine-pruning", on_choice=on_choice,
    )
    tuned.history.append({
        "mitigation": "fine-pruning", "clean_rows": len(clean), "validation_rows": len(validation or ()), "seed": seed,
        "pruned": count, "units": scores.shape[1], **asdict(settings),
    })
    if on_stage is not None:
        on_stage("Fine-pruning", tuned, time.perf_counter() - started)
    return tuned
