"""What the methods that repair a classifier with a few clean rows share: blending, the search for rho, the fine-tuning.

    counterparts           for each of the victim's weights w_B the pre-trained w_Pre that it comes from, if any
    blend                  a copy of the victim: w_B where a mask keeps it, w_Pre elsewhere
    mask_smallest          a mask that keeps the share rho of all weights, those with the smallest scores
    repair_by_blending     a blend, fine-tuned: at a given rho, or at the smallest rho that is accurate enough
    tune_on_few_rows       fine-tuning with cross-entropy, with a minimum number of steps

finemix.py and finepurify.py of mitigations/ use all of it; finetune.py, reinit.py and fineprune.py the last function.

Choices: the classifier and a language-model head have no counterpart, whatever w_Pre holds under their names, since the
one belongs to the task and the other is not used. The pooler has one if w_Pre brings a trained pooler (a folder loaded
for classification), and none if that is newly drawn.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil

import torch
from torch import Tensor, nn

from minibd import checkpoint
from minibd.checkpoint import HEADS, Checkpoint, hf_mapping_of
from minibd.predict import accuracy
from minibd.records import BadInput, Example, Examples
from minibd.resume import Count
from minibd.train import Log, OnChoice, Schedule, check_classes, cross_entropy, fit

OnStage = Callable[[str, Checkpoint, float], None]  # the name of a stage, its model, the seconds it took
WORD = "embeddings.word.weight"
# An unrelated model's correlation is about 0; that of weights/bert with the model it was fine-tuned from, in 17 passes
# at high rates, is 0.94.
RELATED = 0.5
RHOS = tuple(i / 10 for i in range(1, 10))  # the shares that a search tries
# Numbers of a config that may differ between victim and pre-trained model: those of the heads, of the vocabulary, whose
# rows are compared token by token, and of dropout, on which no weight depends.
FREE = {
    "vocab", "positions", "labels", "bottleneck", "mlm", "lm", "tied", "pad", "dropout", "embedding_dropout",
    "attention_dropout", "classifier_dropout",
}
GIVE_ORIGIN = "give the checkpoint that the victim was fine-tuned from"


# ---- the pre-trained weights

@dataclass(frozen=True, slots=True)
class Counterparts:
    """w_Pre with the names, shapes and types of the victim's weights, on its device; read-only.

    The embedding of a token that only the victim has is the victim's own here, so that resetting it changes nothing.
    kept: the tensors, and such rows, without a counterpart. correlation: of w_B and w_Pre, see `related`.
    """
    weights: dict[str, Tensor]
    kept: tuple[str, ...]
    correlation: float


def counterparts(victim: Checkpoint, pretrained: Checkpoint) -> Counterparts:
    """w_Pre for each weight of `victim`. Raises BadInput if `pretrained` has another architecture, shape or vocabulary,
    and warns if it is an unrelated model of the same shape."""
    _check_config(victim, pretrained)
    shared = _shared_rows(victim, pretrained)
    originals, new = dict(pretrained.model.named_parameters()), (pretrained.history or [{}])[-1].get("new", ())
    weights, kept = {}, []
    for name, own in victim.model.named_parameters():
        part, original = name.split(".")[0], originals.get(name)
        if part in HEADS and (part != "pooler" or part in new or original is None or original.shape != own.shape):
            kept.append(name)
        elif name == WORD:
            weights[name] = own.detach().clone()
            weights[name][shared] = original.detach().to(own)[shared]
            if alone := sorted(set(range(len(own))) - set(shared)):
                kept.append(f"{name}: {len(alone)} of {len(own)} rows, from {alone[0]} to {alone[-1]}")
        elif original.shape != own.shape:
            raise BadInput(f"{name} is {tuple(original.shape)} in the pre-trained model and {tuple(own.shape)} in the "
                           f"victim: {GIVE_ORIGIN}")
        else:
            weights[name] = original.detach().to(own)
    if not (correlation := related(victim, weights)) >= RELATED:
        print(
            f"warning: the victim's weights correlate {correlation:.3f} with the pre-trained ones, which is under "
            f"{RELATED}: it was hardly fine-tuned from them; {GIVE_ORIGIN}",
            file=sys.stderr,
        )
    return Counterparts(weights, tuple(kept), correlation)


def check_moved(victim: Checkpoint, before: Counterparts) -> None:
    """Raises BadInput where the victim's weights are the pre-trained ones: to reset or mix them changes nothing."""
    if all(torch.equal(victim.model.get_parameter(name), weight) for name, weight in before.weights.items()):
        raise BadInput(
            "the pre-trained model has the victim's own weights, its backdoor among them, and to mix or reset them "
            f"changes nothing: {GIVE_ORIGIN}"
        )


def related(victim: Checkpoint, weights: Mapping[str, Tensor]) -> float:
    """Pearson's correlation of w_B and w_Pre over the scalars of all matrices, each matrix centred on its own mean; 0
    if one of them does not vary.

    Vectors are left out: the scale of a norm is near 1 in every model.
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
        raise BadInput(f"the pre-trained model is a {hf_mapping_of(theirs).model_type} and the victim a "
                       f"{hf_mapping_of(ours).model_type}: {GIVE_ORIGIN}")
    for name in (field.name for field in fields(ours.config)):
        if name not in FREE and getattr(ours.config, name) != getattr(theirs.config, name):
            raise BadInput(f"the pre-trained model has {name} {getattr(theirs.config, name)!r} and the victim "
                           f"{getattr(ours.config, name)!r}: {GIVE_ORIGIN}")


def _shared_rows(victim: Checkpoint, pretrained: Checkpoint) -> list[int]:
    """The ids of the word embeddings that both models have, for the same token; also padding rows that no tokenizer
    uses.

    A token that was added after the pre-training has no counterpart: its row there is a padding row at most.
    """
    ours, theirs = (
        {i: token for token, i in ckpt.tokenizer.backend.get_vocab().items()} for ckpt in (victim, pretrained)
    )
    n = min(len(ckpt.model.embeddings.word.weight) for ckpt in (victim, pretrained))
    for i in range(n):
        if i in ours and i in theirs and ours[i] != theirs[i]:
            raise BadInput(f"token {i} is {theirs[i]!r} in the pre-trained vocabulary and {ours[i]!r} in the victim's: "
                           f"{GIVE_ORIGIN}")
    return [i for i in range(n) if i in theirs or i not in ours]


# ---- how much of the victim is kept

def blend(victim: Checkpoint, before: Counterparts, keep: Mapping[str, Tensor]) -> Checkpoint:
    """A copy of `victim` with w_B where `keep` is True and w_Pre where it is False; tensors without a counterpart
    stay."""
    blended = checkpoint.copy(victim)
    with torch.no_grad():
        for name, weight in before.weights.items():
            own = blended.model.get_parameter(name)
            own.copy_(torch.where(keep[name], own, weight))
    return blended


def mask_smallest(scores: Mapping[str, Tensor], rho: float) -> dict[str, Tensor]:
    """True at the share `rho` of all scalars, over all tensors together, with the smallest scores; ties may add a
    few."""
    flat = torch.cat([values.flatten() for values in scores.values()])
    k = round(rho * len(flat))
    edge = flat.kthvalue(k).values if k else -torch.inf
    return {name: values <= edge for name, values in scores.items()}


def check_rho(rho: float | None, drop: float) -> None:
    """Raises BadInput if one of the two settings of a search is out of range."""
    if not 0 <= (rho or 0.0) <= 1:
        raise BadInput(f"rho is {rho}, the share of the weights that is kept: it must lie in 0..1")
    if not 0 <= drop <= 100:
        raise BadInput(f"drop is {drop}, points of percent: it must lie in 0..100, such as 2")


def smallest_accurate_rho(
    model_at: Callable[[float], Checkpoint], validation: Examples, floor: float, rhos: Sequence[float]
) -> tuple[float, Checkpoint, list[list[float]]]:
    """The smallest of `rhos` (ascending) whose model `model_at(rho)` has an accuracy of `floor` (0..1) or more on
    `validation`; that model; [rho, accuracy] of each trial.

    Bisection, which takes accuracy to grow with rho: at most four models of up to 15 shares. If none is accurate
    enough, the largest rho, with a warning.
    """
    low, high, trials = 0, len(rhos), []  # rhos[:low] are too small, rhos[high:] are large enough
    while low < high:
        middle = (low + high) // 2
        ckpt = model_at(rhos[middle])
        trials.append([rhos[middle], accuracy(ckpt.model, ckpt.tokenizer, validation)])
        if trials[-1][1] >= floor - 1e-9:
            high, found = middle, ckpt
        else:
            low, last = middle + 1, ckpt
    if high < len(rhos):
        return rhos[high], found, trials
    print(
        f"warning: no rho up to {rhos[-1]} is right on {100 * floor:.1f} % of {len(validation)} validation rows; the "
        f"largest, right on {100 * trials[-1][1]:.1f} %, is taken: allow more with drop, or train longer",
        file=sys.stderr,
    )
    return rhos[-1], last, trials


# ---- the fine-tuning at the end

def tune_on_few_rows(
    theta: Checkpoint, clean: Sequence[Example], validation: Examples | None, schedule: Schedule, steps: int, *,
    seed: int, dtype: torch.dtype, log: Log | None, name: str, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """`theta`, which is a copy already, fine-tuned in place with cross-entropy: at its best epoch on `validation`, or
    at its last if that is None.

    If the schedule's epochs make fewer than `steps` steps, there are more epochs, so that few rows do not mean little
    training. Accuracy on `validation` is then measured about as often as the schedule has epochs, after the last among
    them. on_choice: see train.fit.
    """
    epochs = max(schedule.epochs, ceil(steps / ceil(max(1, len(clean)) / schedule.batch_size)))
    every, scored = epochs // schedule.epochs, Count()

    def score(model: nn.Module) -> float:
        return float("-inf") if (epochs - 1 - scored()) % every else accuracy(model, theta.tokenizer, validation)

    fit(
        theta.model, theta.tokenizer, theta.tokenizer.encode(clean), cross_entropy, replace(schedule, epochs=epochs),
        seed=seed, dtype=dtype, log=log, name=name, score=None if validation is None else score, on_choice=on_choice,
        parts=[scored],
    )
    return theta


@dataclass(frozen=True, slots=True)
class Repaired:
    """What `repair_by_blending` returns: the model, its rho, [rho, accuracy] of each trial of the search, and the
    seconds of all of it."""

    ckpt: Checkpoint
    rho: float
    trials: list[list[float]]
    seconds: float


def repair_by_blending(
    victim: Checkpoint, blend_at: Callable[[float], Checkpoint], clean: Examples, validation: Examples | None, *,
    rho: float | None, drop: float, schedule: Schedule | None, steps: int, seed: int, dtype: torch.dtype,
    log: Log | None, name: str, on_stage: OnStage | None, on_choice: OnChoice | None = None,
    rhos: Sequence[float] = RHOS,
) -> Repaired:
    """`blend_at(rho)`, fine-tuned: at `rho`, or, if that is None, at the smallest of `rhos` whose fine-tuned model is
    at most `drop` points of accuracy under the victim on `validation`.

    schedule: None leaves the fine-tuning out. on_stage: called with "mixed RHO" and each blend that is tried.
    on_choice: called with "trials" (if rho is searched), "rho" and "best_epoch" (of the model at that rho). The seconds
    exclude those of on_stage.
    """
    if schedule is not None:
        check_classes(clean, name)
    seconds, best_epochs = 0.0, {}

    def model_at(rho: float) -> Checkpoint:
        nonlocal seconds
        started = time.perf_counter()
        blended = blend_at(rho)
        seconds += (took := time.perf_counter() - started)
        if on_stage is not None:
            on_stage(f"mixed {rho:g}", blended, took)
        if schedule is None:
            return blended
        started = time.perf_counter()
        tuned = tune_on_few_rows(
            checkpoint.copy(blended), clean, validation, schedule, steps, seed=seed, dtype=dtype, log=log,
            name=f"{name} {rho:g}", on_choice=lambda _, epoch: best_epochs.update({rho: epoch}),
        )
        seconds += time.perf_counter() - started
        return tuned

    if rho is not None:
        ckpt, trials = model_at(rho), []
    elif not validation:
        raise BadInput("rho is searched on validation rows, and there are none: give some, or give rho, such as 0.3")
    else:
        floor = accuracy(victim.model, victim.tokenizer, validation) - drop / 100
        rho, ckpt, trials = smallest_accurate_rho(model_at, validation, floor, rhos)
    if on_choice is not None:
        if trials:
            on_choice("trials", trials)
        on_choice("rho", rho)
        if rho in best_epochs:
            on_choice("best_epoch", best_epochs[rho])
    return Repaired(ckpt, rho, trials, seconds)
