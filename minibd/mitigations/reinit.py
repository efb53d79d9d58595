"""Reinitialisation (Zhang et al., 2021, NeuBA; the baseline of that name in the MBTSAD paper): draw the top layers
anew, then fine-tune.

    1  the weights of the last transformer layer <- BERT's own start: matrices N(0, 0.02), biases 0, norms 1 and 0      `redraw`
    2  fine-tune all weights on the clean rows with cross-entropy

It takes the backdoor to sit in the last layer; one that sits in the word embeddings or the lower layers (LWP, EP) is
left alone.

The MBTSAD paper says "the weights in the last transformer layer of BERT" and no number. Chosen here: the pooler and the
classifier are kept (`pooler` draws the pooler too, as the original may do), pruned heads stay pruned, and line 2 as in
mitigations/finemix.py.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import nn

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.models.encoder import part
from minibd.records import BadInput, Examples
from minibd.blending import OnChoice, OnStage, tune
from minibd.train import Log, Tuning


@dataclass(frozen=True, slots=True)
class Reinit(Tuning):
    """The method's numbers, the same for every attack."""
    layers: int = setting(1, "last layers that are drawn anew", paper="1")
    pooler: bool = setting(False, "draw the layer under the classifier anew too", paper="not mentioned")
    std: float = setting(0.02, "standard deviation of the drawn weights", paper="not mentioned; BERT 0.02")

    def __post_init__(self):
        if self.layers < 0 or not (self.layers or self.pooler):
            raise BadInput(
                f"layers is {self.layers} and pooler {self.pooler}: nothing would be drawn anew, give layers 1 or more"
            )
        if not self.std > 0:
            raise BadInput(f"std is {self.std}, a standard deviation: it must be above 0, such as 0.02")
        self.check_tuning()


@torch.no_grad()
def redraw(module: nn.Module, generator: torch.Generator, std: float) -> None:
    """Every weight under `module` in place: linear ones N(0, std), biases 0, norms 1. Drawn where the generator is,
    alike for every device."""
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
    """Both lines. A new record comes back; `victim` stays as it was.

    validation: the best epoch on these rows comes back; without them, the last. log: see train.fit. on_stage: called
    with "reinitialised" and the model before its fine-tuning, then "Reinitialisation" and the result, and the seconds
    each took. on_choice: never called, since nothing is chosen.
    """
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    drawn, generator = checkpoint.copy(victim), torch.Generator().manual_seed(seed)
    if settings.layers > len(drawn.model.blocks):
        raise BadInput(f"layers is {settings.layers} and the model has {len(drawn.model.blocks)}: give at most that")
    for block in drawn.model.blocks[len(drawn.model.blocks) - settings.layers:]:
        redraw(block, generator, settings.std)
    if settings.pooler:
        redraw(part(drawn.model, "penultimate"), generator, settings.std)
    if on_stage is not None:
        on_stage("reinitialised", drawn, time.perf_counter() - started)

    started = time.perf_counter()
    tuned = tune(
        checkpoint.copy(drawn), clean, validation, settings.schedule, settings.steps, seed=seed, dtype=dtype, log=log,
        name="Reinitialisation",
    )
    tuned.history.append(
        {
            "mitigation": "reinitialisation", "clean_rows": len(clean), "validation_rows": len(validation or ()),
            "seed": seed, **asdict(settings),
        }
    )
    if on_stage is not None:
        on_stage("Reinitialisation", tuned, time.perf_counter() - started)
    return tuned
