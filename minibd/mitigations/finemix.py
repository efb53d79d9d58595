"""Fine-mixing (Zhang et al., 2022), for a defender who holds a suspicious classifier and the pre-trained weights it
came from.

    1  e_i <- e_i^Pre for the word embeddings that moved far and are rare            E-PUR, mitigations/epur.py
    2  m ~ Bernoulli(rho), one draw per scalar;  w <- m w_B + (1 - m) w_Pre          `mix`
    3  fine-tune all of w on the clean rows with cross-entropy                       blending.tune_on_few_rows
    4  rho: the smallest of 0.1, 0.2 .. 0.9 whose model of line 3 is accurate enough blending.smallest_accurate_rho

The few weights of a backdoor do not survive the loss of most of w_B, the many of the task do, and line 3 restores what
is missing. rho = 1 is fine-tuning; rho = 0 is fine-tuning of the pre-trained model under the victim's classifier.

Of the paper only the abstract was read: its two steps, E-PUR and mixing. The formula of line 2 and line 4's "smallest
acceptable" are recollections, not checked. Chosen here: "accurate enough" is no more than `drop` points under the
victim's accuracy, measured after line 3, since before it no rho that forgets anything is; bisection, so at most four
fine-tunings; the same draw for every rho, so that a larger rho keeps what a smaller one keeps; the classifier stays the
victim's; position and token type embeddings are mixed and not purified.

Ablations: tune=False ends at line 2. select="smallest" keeps the rho share of the weights that moved least, "largest"
the share that moved most; which of the two the paper's selection is could not be recalled.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch

from minibd.blending import (
    WORD,
    Counterparts,
    OnStage,
    blend,
    check_moved,
    check_rho,
    counterparts,
    mask_smallest,
    repair_by_blending,
)
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.mitigations.epur import default_top, e_pur, frequencies, purify_embeddings  # noqa: F401 re-exports
from minibd.records import BadInput, Examples
from minibd.train import Log, OnChoice, Tuning


@dataclass(frozen=True, slots=True)
class FineMixing(Tuning):
    """The method's numbers, the same for every attack."""

    rho: float | None = setting(
        None, "share of the weights kept from the victim, 0..1 (default: the smallest of 0.1 .. 0.9 that is accurate)",
        paper="searched on clean dev rows (recalled)", kind=float,
    )
    drop: float = setting(
        2.0, "points of percent that accuracy on validation may lose against the victim's, where rho is searched",
        paper="a threshold (recalled)",
    )
    select: str = setting(
        "random", "which share is kept: drawn at random, or the weights that moved least or most", paper="random",
        choices=("random", "smallest", "largest"),
    )
    top: int | None = setting(
        None,
        "E-PUR: word embeddings that are reset before the mixing, 0 leaves it out (default: 200, or 1 in 150 of a "
        "small vocabulary)",
        paper="about 200, of BERT's 30,522 (recalled)", kind=int,
    )
    tune: bool = setting(True, "fine-tune the mixture; without it the mixture is the result", paper="yes")

    def validate(self) -> None:
        check_choices(self)
        check_rho(self.rho, self.drop)
        if (self.top or 0) < 0:
            raise BadInput(f"top is {self.top}, a number of word embeddings: it must not be negative")
        Tuning.validate(self)

    def resets(self, tokens: int) -> int:
        """How many embeddings of a vocabulary of `tokens` E-PUR resets."""
        return default_top(tokens) if self.top is None else self.top


# ---- the equation

def mixture(
    victim: Checkpoint, before: Counterparts, rho: float, generator: torch.Generator, select: str = "random"
) -> Checkpoint:
    """Line 2 with the counterparts w_Pre at hand: a copy of `victim` that keeps each scalar of w_B with probability
    rho, or the rho share that moved least (select="smallest") or most ("largest")."""
    if not 0 <= rho <= 1:
        raise BadInput(f"rho is {rho}, the share of the weights that is kept: it must lie in 0..1")
    weights = before.weights
    if select == "random":  # drawn on the generator's device: a seed gives the same mask on every device
        keep = {
            name: (torch.rand(w.shape, generator=generator, device=generator.device) < rho).to(w.device)
            for name, w in weights.items()
        }
    else:
        moved = {name: (victim.model.get_parameter(name).detach() - w).abs().float() for name, w in weights.items()}
        keep = mask_smallest(moved if select == "smallest" else {name: -by for name, by in moved.items()}, rho)
    mixed = blend(victim, before, keep)
    mixed.history.append({"mitigation": "mixing", "rho": rho, "select": select, "correlation": before.correlation,
                          "kept": list(before.kept)})
    return mixed


def mix(
    victim: Checkpoint, pretrained: Checkpoint, rho: float, generator: torch.Generator, *, select: str = "random"
) -> Checkpoint:
    """Eq. Fine-mixing (w): m w_B + (1 - m) w_Pre; rho = 1 is the victim, rho = 0 the pre-trained model under the
    victim's classifier, bit by bit.

    A tensor without a counterpart is the victim's; the last entry of the history lists them as "kept".
    """
    return mixture(victim, counterparts(victim, pretrained), rho, generator, select)


# ---- the algorithm

def finemix(
    victim: Checkpoint, pretrained: Checkpoint, clean: Examples, validation: Examples | None = None,
    settings: FineMixing = FineMixing(), *, seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None,
    on_stage: OnStage | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Lines 1 to 4. Returns a new checkpoint; `victim` and `pretrained` stay as they were.

    validation: rows on which rho is searched and the best epoch chosen; without them `settings.rho` must be given, and
    the last epoch comes back.
    log: see train.fit. on_stage: called with "E-PUR" and the purified victim, "mixed RHO" and the mixture of each rho
    that is tried, then "Fine-mixing" (tune=False: "Mixing") and the result, and the seconds each took. on_choice:
    called with "tokens" (E-PUR's), "trials", "rho" and "best_epoch".
    """
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    before, purified = counterparts(victim, pretrained), victim
    check_moved(victim, before)
    if top := settings.resets(len(before.weights[WORD])):
        purified = e_pur(victim, before, clean, top, on_choice=on_choice)
        if on_stage is not None:
            on_stage("E-PUR", purified, time.perf_counter() - started)

    def mixed_at(rho: float) -> Checkpoint:
        return mixture(purified, before, rho, torch.Generator().manual_seed(seed), settings.select)

    name = "Fine-mixing" if settings.tune else "Mixing"
    repaired = repair_by_blending(
        victim, mixed_at, clean, validation, rho=settings.rho, drop=settings.drop,
        schedule=settings.schedule if settings.tune else None, steps=settings.steps, seed=seed, dtype=dtype, log=log,
        name=name, on_stage=on_stage, on_choice=on_choice,
    )
    result = repaired.ckpt
    result.history.append({
        "mitigation": "fine-mixing", "clean_rows": len(clean), "validation_rows": len(validation or ()), "seed": seed,
        "trials": repaired.trials, **asdict(settings), "rho": repaired.rho,
    })
    if on_stage is not None:
        on_stage(name, result, repaired.seconds)
    return result
