"""What the mitigations that mend a classifier with a few clean rows share: the weights it had before, how much of it to
keep, the last training.

    counterparts   which of the victim's weights w_B have one in w_Pre, the pre-trained weights it came from, or why it did not come from them
    blend          a copy of the victim with w_B where it is kept and w_Pre elsewhere
    least          the share rho of all weights that has the smallest scores
    mend           a blend at a rho that is given, or at the smallest that is accurate enough, and tuned
    tune           cross-entropy on the clean rows, however few

The first four serve finemix and finepurify of mitigations/, the last reinit and fineprune too.

Choices: the classifier and a language-model head have no counterpart, whatever w_Pre holds under their names, since the
one is the task's and the other is not asked here; the pooler has one where w_Pre brings its own (a folder loaded for
classification) and not a new one.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from math import ceil

import torch
from torch import Tensor, nn

from minibd import checkpoint
from minibd.checkpoint import HEADS, Checkpoint, hf_mapping_of
from minibd.predict import accuracy
from minibd.records import BadInput, Example, Examples
from minibd.train import Log, OnChoice, Schedule, cross_entropy, fit  # noqa: F401  OnChoice: for the mitigations

OnStage = Callable[[str, Checkpoint, float], None]  # a model's name, the model, the seconds it took
WORD = "embeddings.word.weight"
# another model's correlation is about 0; that of weights/bert with what it came from, 17 passes at high rates before,
# is 0.94
RELATED = 0.5
RHOS = tuple(i / 10 for i in range(1, 10))  # the shares that a search may choose
# Numbers of a config that may differ: the heads, rows that are compared token by token, and chance, which no weight
# depends on.
FREE = {
    "vocab", "positions", "labels", "bottleneck", "mlm", "lm", "tied", "pad", "dropout", "embedding_dropout",
    "attention_dropout", "classifier_dropout",
}
MEND = "give the checkpoint that the victim was fine-tuned from"


# ---- the weights before

@dataclass(frozen=True, slots=True)
class Counterparts:
    """w_Pre as the victim's weights are named, shaped and typed, on its device; do not write into it.

    A word row that only the victim has is the victim's own there, so that whoever resets it changes nothing. kept:
    tensors, and such rows, without a counterpart. correlation: of w_B and w_Pre, see `related`.
    """
    weights: dict[str, Tensor]
    kept: tuple[str, ...]
    correlation: float


def counterparts(victim: Checkpoint, pretrained: Checkpoint) -> Counterparts:
    """Raises BadInput where `pretrained` is of another architecture, shape or vocabulary; says so where it is a
    stranger of the same shape."""
    _check_config(victim, pretrained)
    rows = _shared_rows(victim, pretrained)
    theirs, new = dict(pretrained.model.named_parameters()), (pretrained.history or [{}])[-1].get("new", ())
    weights, kept = {}, []
    for name, own in victim.model.named_parameters():
        part, there = name.split(".")[0], theirs.get(name)
        if part in HEADS and (part != "pooler" or part in new or there is None or there.shape != own.shape):
            kept.append(name)
        elif name == WORD:
            weights[name] = own.detach().clone()
            weights[name][rows] = there.detach().to(own)[rows]
            if alone := sorted(set(range(len(own))) - set(rows)):
                kept.append(f"{name}: {len(alone)} of {len(own)} rows, from {alone[0]} to {alone[-1]}")
        elif there.shape != own.shape:
            raise BadInput(
                f"{name} is {tuple(there.shape)} in the pre-trained model and {tuple(own.shape)} in the victim: {MEND}"
            )
        else:
            weights[name] = there.detach().to(own)
    if not (correlation := related(victim, weights)) >= RELATED:
        print(
            f"warning: the victim's weights correlate {correlation:.3f} with the pre-trained ones, which is under "
            f"{RELATED}: it was hardly "
            f"fine-tuned from them; {MEND}",
            file=sys.stderr,
        )
    return Counterparts(weights, tuple(kept), correlation)


def related(victim: Checkpoint, weights: Mapping[str, Tensor]) -> float:
    """Pearson's correlation of w_B and w_Pre over the scalars of all matrices, each centred on its own mean; 0 where
    one does not vary.

    Vectors do not enter: a norm's scale is near 1 in every model.
    """
    own, sums = dict(victim.model.named_parameters()), torch.zeros(3, dtype=torch.float64)
    for name, before in weights.items():
        if before.dim() > 1:
            a, b = own[name].detach().float(), before.float()
            a, b = a - a.mean(), b - b.mean()
            sums += torch.stack([(a * b).sum(), a.square().sum(), b.square().sum()]).double().cpu()
    return float(sums[0] / (sums[1] * sums[2]).sqrt()) if sums[1:].min() > 0 else 0.0


def _check_config(victim: Checkpoint, pretrained: Checkpoint) -> None:
    ours, theirs = victim.model, pretrained.model
    if type(ours) is not type(theirs):
        raise BadInput(
            f"the pre-trained model is a {hf_mapping_of(theirs).model_type} and the victim a "
            f"{hf_mapping_of(ours).model_type}: {MEND}"
        )
    for name in (field.name for field in fields(ours.config)):
        if name not in FREE and getattr(ours.config, name) != getattr(theirs.config, name):
            raise BadInput(
                f"the pre-trained model has {name} {getattr(theirs.config, name)!r} and the victim "
                f"{getattr(ours.config, name)!r}: "
                f"{MEND}"
            )


def _shared_rows(victim: Checkpoint, pretrained: Checkpoint) -> list[int]:
    """Ids of the word rows that both models have, for the same token. Padding rows that no tokenizer knows are among
    them.

    A token that was added after the pre-training has at most a padding row there, and no counterpart.
    """
    ours, theirs = (
        {i: token for token, i in ckpt.tokenizer.backend.get_vocab().items()} for ckpt in (victim, pretrained)
    )
    n = min(len(ckpt.model.embeddings.word.weight) for ckpt in (victim, pretrained))
    for i in range(n):
        if i in ours and i in theirs and ours[i] != theirs[i]:
            raise BadInput(
                f"token {i} is {theirs[i]!r} in the pre-trained vocabulary and {ours[i]!r} in the victim's: {MEND}"
            )
    return [i for i in range(n) if i in theirs or i not in ours]


# ---- how much of the victim is kept

def blend(victim: Checkpoint, before: Counterparts, keep: Mapping[str, Tensor]) -> Checkpoint:
    """A copy of `victim`: its own weights where `keep` is True, w_Pre where it is False. What has no counterpart
    stays."""
    made = checkpoint.copy(victim)
    with torch.no_grad():
        for name, weight in before.weights.items():
            own = made.model.get_parameter(name)
            own.copy_(torch.where(keep[name], own, weight))
    return made


def smallest_share(scores: Mapping[str, Tensor], rho: float) -> dict[str, Tensor]:
    """True at the share `rho` of all scalars, over all tensors together, whose scores are the smallest; where some are
    equal, at a few more."""
    flat = torch.cat([values.flatten() for values in scores.values()])
    k = round(rho * len(flat))
    edge = flat.kthvalue(k).values if k else -torch.inf
    return {name: values <= edge for name, values in scores.items()}


def check_rho(rho: float | None, drop: float) -> None:
    """Raises BadInput where the two settings of a search are out of range."""
    if not 0 <= (rho or 0.0) <= 1:
        raise BadInput(f"rho is {rho}, the share of the weights that is kept: it must lie in 0..1")
    if not 0 <= drop <= 100:
        raise BadInput(f"drop is {drop}, points of percent: it must lie in 0..100, such as 2")


def search_rho(made: Callable[[float], Checkpoint], validation: Examples, floor: float,
             rhos: Sequence[float]) -> tuple[float, Checkpoint, list[list[float]]]:
    """The smallest of `rhos` whose model `made(rho)` is right on the share `floor` of `validation`; the model; each
    [rho, accuracy] looked at.

    Bisection: of up to 15 shares four models at most, on the understanding that accuracy grows with rho. Where none
    will do, the largest rho, with a word on it.
    """
    low, high, trials = 0, len(rhos), []  # rhos[:low] fall short, rhos[high] will do
    while low < high:
        at = (low + high) // 2
        ckpt = made(rhos[at])
        trials.append([rhos[at], accuracy(ckpt.model, ckpt.tokenizer, validation)])
        if trials[-1][1] >= floor - 1e-9:
            high, found = at, ckpt
        else:
            low, last = at + 1, ckpt
    if high < len(rhos):
        return rhos[high], found, trials
    print(
        f"warning: no rho up to {rhos[-1]} is right on {100 * floor:.1f} % of {len(validation)} validation rows, the "
        "largest is on "
        f"{100 * trials[-1][1]:.1f} %, and is taken: allow more with drop, or train longer",
        file=sys.stderr,
    )
    return rhos[-1], last, trials


# ---- the last training

def tune(
    theta: Checkpoint, clean: Sequence[Example], validation: Examples | None, schedule: Schedule, steps: int, *,
    seed: int, dtype: torch.dtype, log: Log | None, name: str,
) -> Checkpoint:
    """`theta`, which is a copy already, fine-tuned in place with cross-entropy: at its best epoch on `validation`,
    without them at its last.

    Rows so few that the schedule's epochs fall short of `steps` steps are passed over more often, so that few rows do
    not mean little training; the looks at `validation` stay about as many as the schedule has epochs, the last epoch
    among them.
    """
    epochs = max(schedule.epochs, ceil(steps / ceil(max(1, len(clean)) / schedule.batch_size)))
    every, done = epochs // schedule.epochs, count(1)

    def score(model: nn.Module) -> float:
        return float("-inf") if (epochs - next(done)) % every else accuracy(model, theta.tokenizer, validation)

    fit(
        theta.model, theta.tokenizer, theta.tokenizer.encode(clean), cross_entropy, replace(schedule, epochs=epochs),
        seed=seed, dtype=dtype, log=log, name=name, score=None if validation is None else score,
    )
    return theta


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `blend_and_tune` makes: the model, its rho, each [rho, accuracy] that the search looked at, and the seconds
    that all of it took."""

    ckpt: Checkpoint
    rho: float
    trials: list[list[float]]
    seconds: float


def blend_and_tune(
    victim: Checkpoint, blended: Callable[[float], Checkpoint], clean: Examples, validation: Examples | None, *,
    rho: float | None, drop: float, schedule: Schedule | None, steps: int, seed: int, dtype: torch.dtype,
    log: Log | None, name: str, on_stage: OnStage | None, rhos: Sequence[float] = RHOS,
) -> Repaired:
    """`blended(rho)`, fine-tuned: at `rho`, or at the smallest of `rhos` that is accurate on `validation`, at most
    `drop` points under the victim.

    schedule: None leaves the fine-tuning out. on_stage: called with "mixed RHO" and each blend that is tried. The
    seconds are without on_stage's.
    """
    seconds = 0.0

    def made(rho: float) -> Checkpoint:
        nonlocal seconds
        started = time.perf_counter()
        mixed = blended(rho)
        seconds += (took := time.perf_counter() - started)
        if on_stage is not None:
            on_stage(f"mixed {rho:g}", mixed, took)
        if schedule is None:
            return mixed
        started = time.perf_counter()
        tuned = tune(
            checkpoint.copy(mixed), clean, validation, schedule, steps, seed=seed, dtype=dtype, log=log,
            name=f"{name} {rho:g}",
        )
        seconds += time.perf_counter() - started
        return tuned

    if rho is not None:
        return Repaired(made(rho), rho, [], seconds)
    if not validation:
        raise BadInput("rho is searched on validation rows, and there are none: give some, or give rho, such as 0.3")
    rho, ckpt, trials = search_rho(
        made, validation, accuracy(victim.model, victim.tokenizer, validation) - drop / 100, rhos
    )
    return Repaired(ckpt, rho, trials, seconds)
