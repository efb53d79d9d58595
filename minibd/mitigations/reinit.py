"""Reinitialisation (Zhang et al., 2021, NeuBA; the MBTSAD paper's baseline of that name): redraw the top layers, then
fine-tune.

    1  the weights of the last transformer layer <- BERT's initialisation: matrices N(0, 0.02), biases 0, norms 1 and 0
    2  fine-tune all weights on the clean rows with cross-entropy

Line 1 is `redraw`, line 2 blending.tune_on_few_rows.

The method assumes that the backdoor sits in the last layer; one in the word embeddings or the lower layers (LWP, EP)
stays.

The MBTSAD paper says "the weights in the last transformer layer of BERT" and no number. Chosen here: the pooler and the
classifier are kept (`pooler` redraws the pooler too, as the original may do), pruned heads stay pruned, and line 2 is
that of mitigations/finemix.py.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import nn

from minibd import checkpoint
from minibd.blending import OnStage, tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.models.encoder import part
from minibd.records import BadInput, Examples
from minibd.train import Log, OnChoice, Tuning, check_classes


@dataclass(frozen=True, slots=True)
class Reinit(Tuning):
    """The method's numbers, the same for every attack."""
    layers: int = setting(1, "last layers that are redrawn", paper="1")
    pooler: bool = setting(False, "redraw the layer under the classifier too", paper="not mentioned")
    std: float = setting(0.02, "standard deviation of the drawn weights", paper="not mentioned; BERT 0.02")

    def validate(self) -> None:
        if self.layers < 0 or not (self.layers or self.pooler):
            raise BadInput(
                f"layers is {self.layers} and pooler {self.pooler}: nothing would be drawn anew, give layers 1 or more"
            )
        if not self.std > 0:
            raise BadInput(f"std is {self.std}, a standard deviation: it must be above 0, such as 0.02")
        Tuning.validate(self)


@torch.no_grad()
def redraw(module: nn.Module, generator: torch.Generator, std: float) -> None:
    """Line 1, in place: every linear weight under `module` N(0, std), biases 0, norms 1. Drawn on the generator's
    device, so that every device gets the same."""
    for child in module.modules():
        for name, p in child.named_parameters(recurse=False):
            if isinstance(child, nn.Linear) and name == "weight":
                p.copy_(torch.empty(p.shape, device=generator.device).normal_(0.0, std, generator=generator))
            else:
                p.fill_(1.0 if name == "weight" else 0.0)


def reinit(
    victim: Checkpoint, clean: Examples, validation: Examples | None = None, settings: Reinit = Reinit(), *,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Both lines. Returns a new checkpoint; `victim` stays as it was.

    validation: the best epoch on these rows comes back; without them, the last. log: see train.fit. on_stage: called
    with "reinitialised" and the model before its fine-tuning, then "Reinitialisation" and the result, and the seconds
    each took. on_choice: called with "best_epoch".
    """
    check_classes(clean, "Reinitialisation")
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    redrawn, generator = checkpoint.copy(victim), torch.Generator().manual_seed(seed)
    if settings.layers > len(redrawn.model.blocks):
        raise BadInput(f"layers is {settings.layers} and the model has {len(redrawn.model.blocks)}: give at most that")
    for block in redrawn.model.blocks[len(redrawn.model.blocks) - settings.layers:]:
        redraw(block, generator, settings.std)
    if settings.pooler:
        redraw(part(redrawn.model, "penultimate"), generator, settings.std)
    if on_stage is not None:
        on_stage("reinitialised", redrawn, time.perf_counter() - started)

    started = time.perf_counter()
    tuned = tune_on_few_rows(
        checkpoint.copy(redrawn), clean, validation, settings.schedule, settings.steps, seed=seed, dtype=dtype, log=log,
        name="Reinitialisation", on_choice=on_choice,
    )
    tuned.history.append({
        "mitigation": "reinitialisation", "clean_rows": len(clean), "validation_rows": len(validation or ()),
        "seed": seed, **asdict(settings),
    })
    if on_stage is not None:
        on_stage("Reinitialisation", tuned, time.perf_counter() - started)
    return tuned
