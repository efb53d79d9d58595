"""How one equation is checked: our function in float32 and its restatement in plain loops get the same drawn numbers;
then the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minibd.audit.report import Outcome

VALUE = 2e-6      # float32 adds up to some hundred numbers here: a few 1e-7
GRADIENT = 2e-5   # the same through the backward pass, of functions that are steeper
STEP = 1e-5       # of the central differences, in float64: their own error is some 1e-10
MOST = 24         # entries of a tensor by which the restatement is differentiated, drawn where there are more

Lists = Any       # a float, or lists of such, as Tensor.tolist gives them
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison. ours: the package's function, of tensors; restated: the loops, of the same as lists, in the same
    shape.

    inputs: drawn in float32 (or integers, bools) and handed to both. by: names of those that the result is
    differentiated by.
    """
    what: str
    inputs: Inputs
    ours: Callable[[Inputs], Tensor]
    restated: Callable[[Mapping[str, Lists]], Lists]
    by: tuple[str, ...] = ()
    tolerance: float = VALUE
    gradient_tolerance: float = GRADIENT


@dataclass(frozen=True, slots=True)
class Equation:
    """What is said of an equation, and how it is checked. formula: TeX, as far as audit/tex.py knows it. The rest:
    records.Found."""

    paper: str
    number: str
    title: str
    formula: str
    ours: str
    released: str
    effect: str
    example: Callable[[], str]
    cases: Callable[[torch.Generator], Iterator[Case | Outcome]]


def apart(ours: Tensor, theirs: Lists) -> float:
    """The largest difference, relative to the largest number; inf where the shapes differ, nan where a number is."""
    expected = torch.tensor(theirs, dtype=torch.float64)
    ours = ours.detach().double().cpu()
    if ours.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().item() or 1.0
    return ((ours - expected).abs().max() / scale).item()


def flat(values: Lists) -> list[float]:
    return [number for value in values for number in flat(value)] if isinstance(values, list) else [float(values)]


def moved(values: Lists, at: tuple[int, ...], by: float) -> Lists:
    """`values` with `by` added at one place; what does not lead there is shared."""
    if not at:
        return values + by
    return [moved(value, at[1:], by) if i == at[0] else value for i, value in enumerate(values)]


def slopes(case: Case, generator: torch.Generator) -> float:
    """How far autograd's gradient of a drawn weighing of the results is from the restatement's central differences."""
    leaves = {name: case.inputs[name].clone().requires_grad_() for name in case.by}
    result = case.ours({**case.inputs, **leaves})
    weights = torch.randn(result.shape, generator=generator)
    # A result that an input does not reach has a gradient of 0 by it: to be compared, not an error.
    gradients = (
        torch.autograd.grad((result * weights).sum(), list(leaves.values()), materialize_grads=True)
        if result.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves.values()]
    )
    lists, weighing = {name: value.tolist() for name, value in case.inputs.items()}, flat(weights.tolist())

    def weighed(name: str, at: tuple[int, ...], by: float) -> float:
        return sum(
            w * x
            for w, x in zip(weighing, flat(case.restated({**lists, name: moved(lists[name], at, by)})), strict=True)
        )

    gaps, scale = [], max(gradient.abs().max().item() for gradient in gradients) or 1.0
    for (name, leaf), gradient in zip(leaves.items(), gradients):
        chosen = torch.randperm(leaf.numel(), generator=generator)[:MOST].tolist()
        for at in (tuple(map(int, torch.unravel_index(torch.tensor(i), leaf.shape))) for i in chosen):
            slope = (weighed(name, at, STEP) - weighed(name, at, -STEP)) / (2 * STEP)
            gaps.append(abs(slope - gradient[at].item()) / scale)
    return torch.tensor(gaps).max().item()  # unlike max(gaps), nan where one is


def outcome(case: Case, generator: torch.Generator) -> Outcome:
    with torch.no_grad():
        ours = case.ours(case.inputs)
    difference = apart(ours, case.restated({name: value.tolist() for name, value in case.inputs.items()}))
    gradient = slopes(case, generator) if case.by else None
    return Outcome(case.what, difference, case.tolerance, gradient, case.gradient_tolerance if case.by else 0.0)


def outcomes(equation: Equation, seed: int) -> tuple[Outcome, ...]:
    """Every case of `equation`, on numbers drawn from `seed`; one equation's do not depend on which others there
    are."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(case if isinstance(case, Outcome) else outcome(case, generator) for case in equation.cases(generator))


# ---- what several equations draw

def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator)


def real_tokens(*lengths: int) -> Tensor:
    """(B, T) True at the first `lengths[b]` of T places, T the longest."""
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def maps(generator: torch.Generator, layers: int, heads: int, real: Tensor, sharp: float = 2.0) -> Tensor:
    """Attention maps as an encoder gives them: (L, B, H, T, T), each row a softmax over the text's real tokens."""
    scores = sharp * normal(generator, layers, len(real), heads, real.shape[1], real.shape[1])
    return scores.masked_fill(~real[None, :, None, None, :], float("-inf")).softmax(-1)


def shown(values: Lists, digits: int = 4) -> str:
    """Numbers as an example prints them: [[0.5, 0.5], [1, 0]]."""
    if isinstance(values, (list, tuple)):
        return "[" + ", ".join(shown(value, digits) for value in values) + "]"
    return f"{values:.{digits}g}"
