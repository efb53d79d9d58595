"""How one equation is checked: our function in float32 and its restatement in plain loops of float64 get the same drawn
numbers; then the gradient is compared with the loops' central differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minibd.audit.findings import Outcome

VALUE = 2e-6      # tolerance: sums of some hundred numbers in float32 are off by a few 1e-7
GRADIENT = 2e-5   # tolerance: the same through the backward pass, of steeper functions
STEP = 1e-5       # of the central differences, in float64: their own error is some 1e-10
MOST = 24         # entries of a tensor by which the restatement is differentiated, drawn of more

Lists = Any       # a float, or lists of such, as Tensor.tolist gives them
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison. ours: the package's function, of tensors; restated: the loops, of the same numbers as lists, with
    a result of the same shape.

    what: the variant or the case, as it is printed. inputs: drawn in float32 (or integers, bools) and given to both.
    by: names of the inputs by which the result is differentiated.
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
    """An equation, what is printed with it, and its cases. formula: TeX, as far as audit/tex.py knows it. The other
    fields are those of report.AuditedEquation."""

    paper: str
    number: str
    title: str
    formula: str
    ours: str
    released: str
    effect: str
    example: Callable[[], str]
    cases: Callable[[torch.Generator], Iterator[Case | Outcome]]


def relative_difference(ours: Tensor, restated: Lists) -> float:
    """The largest difference, relative to the largest number; inf where the shapes differ, nan where a number is."""
    expected = torch.tensor(restated, dtype=torch.float64)
    ours = ours.detach().double().cpu()
    if ours.shape != expected.shape:
        return float("inf")
    scale = expected.abs().max().item() or 1.0
    return ((ours - expected).abs().max() / scale).item()


def flatten(values: Lists) -> list[float]:
    return [number for value in values for number in flatten(value)] if isinstance(values, list) else [float(values)]


def shifted(values: Lists, index: tuple[int, ...], by: float) -> Lists:
    """`values` with `by` added to the number at `index`; all other lists are shared with `values`."""
    if not index:
        return values + by
    return [shifted(value, index[1:], by) if i == index[0] else value for i, value in enumerate(values)]


def gradient_difference(case: Case, generator: torch.Generator) -> float:
    """The largest difference of autograd's gradient, of a sum of the results with drawn weights, from the restatement's
    central differences, relative to the largest entry of the gradient; at most MOST entries of each input."""
    leaves = {name: case.inputs[name].clone().requires_grad_() for name in case.by}
    result = case.ours({**case.inputs, **leaves})
    weights = torch.randn(result.shape, generator=generator)
    # A result that an input does not reach has a gradient of 0 by it: to be compared, not an error.
    gradients = (
        torch.autograd.grad((result * weights).sum(), list(leaves.values()), materialize_grads=True)
        if result.requires_grad
        else [torch.zeros_like(leaf) for leaf in leaves.values()]
    )
    lists, flat_weights = {name: value.tolist() for name, value in case.inputs.items()}, flatten(weights.tolist())

    def weighted_sum(name: str, index: tuple[int, ...], by: float) -> float:
        values = flatten(case.restated({**lists, name: shifted(lists[name], index, by)}))
        return sum(w * x for w, x in zip(flat_weights, values, strict=True))

    differences, scale = [], max(gradient.abs().max().item() for gradient in gradients) or 1.0
    for (name, leaf), gradient in zip(leaves.items(), gradients):
        chosen = torch.randperm(leaf.numel(), generator=generator)[:MOST].tolist()
        for index in (tuple(map(int, torch.unravel_index(torch.tensor(i), leaf.shape))) for i in chosen):
            slope = (weighted_sum(name, index, STEP) - weighted_sum(name, index, -STEP)) / (2 * STEP)
            differences.append(abs(slope - gradient[index].item()) / scale)
    return torch.tensor(differences).max().item()  # unlike max(differences), nan where one is


def outcome(case: Case, generator: torch.Generator) -> Outcome:
    with torch.no_grad():
        ours = case.ours(case.inputs)
    restated = case.restated({name: value.tolist() for name, value in case.inputs.items()})
    gradient = gradient_difference(case, generator) if case.by else None
    return Outcome(
        case.what, relative_difference(ours, restated), case.tolerance, gradient,
        case.gradient_tolerance if case.by else 0.0,
    )


def outcomes(equation: Equation, seed: int) -> tuple[Outcome, ...]:
    """Every case of `equation` on numbers drawn from `seed`, whatever other equations are checked."""
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
