"""Gradient alignment (MuScleLoRA, section 4): a step on untrusted texts follows the gradient of a few clean texts.

    g   the gradient of a batch of untrusted texts' mean loss       r   the same of a batch of clean texts
    g^  <- |<g, r>| / ||r||^2 r                                     Eq. (7), `align`: along r, of the length of g's part
    g   <- (1 - mu) g^ + mu g                                       Eq. (8), `interpolate`; mu at each step: `Ratio`
    clip all of it to one norm, AdamW                               `AlignedAdamW`: these lines for all tensors at once

Each tensor is projected by itself, as released; `whole` takes all trained tensors as one long vector, which the paper's
equation may mean. The absolute value is the released code's: a batch whose gradient points against the clean one still
moves along the clean one, forwards.

One pass computes both gradients. The texts go through the model together, the untrusted ones first, so the first rows
of every layer are theirs. A trained matrix has a clean twin, a second leaf on the same memory; `TwoGroupLoRA` computes
the layer once, and its backward pass gives the first rows' gradient to the matrix and the others' to its twin. Then
p.grad is g, twin.grad is r, and micro-batches add up in both.

variant="released" differs in two things.
- Where r is 0 there is no direction to align to: the paper's equation is taken as 0 there, since no clean text supports
  g; the released code leaves g as it is, raw. (At the first step of a LoRA, R being 0, both gradients of L are 0 and
  the two agree.)
- mu: see `Ratio`.
Not taken over: the cosine's eps of 1e-8, which shrinks the projection where a norm is smaller than that (ten times at
3e-9).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minibd.records import BadInput

VARIANTS = ("paper", "released")
SMALL = 1e-15  # a norm below it is computed again in float64: its squares leave float32's range


# ---- the equations

def align(g: Tensor, r: Tensor, *, variant: str = "paper") -> Tensor:
    """Eq. MuScleLoRA (7): |<g, r>| / ||r||^2 r, of g's shape and type; 0 if r is 0 (released: g)."""
    wide, along = g.double(), r.double()
    square = along.square().sum()
    if square == 0:
        return g.clone() if variant == "released" else torch.zeros_like(g)
    return ((wide * along).sum().abs() / square * along).to(g.dtype)


def interpolate(g: Tensor, aligned: Tensor, mu: float) -> Tensor:
    """Eq. MuScleLoRA (8): (1 - mu) g^ + mu g."""
    return (1 - mu) * aligned + mu * g


@dataclass(frozen=True, slots=True)
class Ratio:
    """Eq. MuScleLoRA (mu), that of (8) at each step: 0 is fully aligned, 1 is the raw gradient.

    paper: from 0 at the first step linearly to `most` at the last.
    released: 0 while the clean texts' loss is above `min_loss` and their gradient's mean norm above `min_norm`.
    Otherwise, from epoch `ga_epoch` on (counted from 0, and if `most` is not 0), most (epoch - ga_epoch) / (epochs -
    ga_epoch), which never reaches `most`: 0.0889 of 0.1 in the last of 10 epochs. Otherwise 1. The defaults are BERT's
    and RoBERTa's; Llama 2 has most = 0, ga_epoch = 0, min_loss = 0.
    """
    most: float = 0.1
    variant: str = "paper"
    ga_epoch: int = 1
    min_loss: float = 0.4
    min_norm: float = 5e-7

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises BadInput if a number is out of range."""
        check_variant(self.variant)
        if not 0 <= self.most <= 1:
            raise BadInput(f"the largest share of the raw gradient is {self.most}: it must lie in 0..1, such as 0.1")
        if self.ga_epoch < 0:
            raise BadInput(f"ga_epoch is {self.ga_epoch}: epochs count from 0")

    def mu(self, step: int, steps: int, epochs: int, loss: float, norm: float) -> float:
        """mu at `step` (from 0) of `steps`, as many in each of `epochs`.

        loss, norm: the clean batch's mean loss, and the mean norm of r over the tensors where it is not 0; only
        `released` uses them.
        """
        if self.variant == "paper":
            return self.most * step / max(1, steps - 1)
        if norm > self.min_norm and loss > self.min_loss:
            return 0.0
        epoch = step * epochs // steps
        if self.most == 0 or epoch < self.ga_epoch:
            return 1.0
        return self.most * (epoch - self.ga_epoch) / (epochs - self.ga_epoch)


def check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        raise BadInput(f"variant is {variant!r}, it must be one of {', '.join(VARIANTS)}")


# ---- two groups' gradients

def twins_of(params: Iterable[Tensor]) -> list[Tensor]:
    """The clean twin of each: another leaf on the same memory, which therefore never needs an update."""
    return [p.detach().requires_grad_() for p in params]


def swap(params: Sequence[Tensor], twins: Sequence[Tensor]) -> None:
    """Exchange the two gradients: between two swaps a backward pass adds to the twins'. For parameters outside
    `TwoGroupLoRA`."""
    for p, twin in zip(params, twins, strict=True):
        p.grad, twin.grad = twin.grad, p.grad


class Groups:
    """How many of the rows that a layer receives belong to the untrusted texts, which come first in the batch.

    mask: (B, T), True at real tokens; n: untrusted texts among the B. A layer receives one row per position, per real
    token, or per text.
    """

    def __init__(self, mask: Tensor, n: int):
        b, t = mask.shape
        if not 0 < n < b:
            raise ValueError(f"{n} untrusted texts of {b}: both groups need one or more")
        pairs = [(b * t, n * t), (int(mask.sum()), int(mask[:n].sum())), (b, n)]
        self.first = dict(pairs)
        if any(self.first[rows] != first for rows, first in pairs):
            raise ValueError(
                f"{b} texts of {pairs[1][0]} tokens: some have none, and rows cannot be told apart by their number"
            )

    def untrusted(self, rows: int) -> int:
        """How many of a layer's `rows` are the untrusted texts'."""
        if rows not in self.first:
            raise ValueError(
                f"a layer sees {rows} rows, these groups know {', '.join(map(str, self.first))}: they are another "
                "batch's"
            )
        return self.first[rows]


class TwoGroupLoRA(torch.autograd.Function):
    """y = W x + b + R (c * L x); W and b frozen; the gradient of rows [:n] goes to L and R, that of the others to their
    twins.

    x (N, I), W (O, I), b (O,) or None, L and its twin (k, I), R and its twin (O, k), c (k,) or a number. Without n, and
    without twins, all rows' gradient goes to L and R. Products are taken in x's type; autograd turns a gradient into
    its parameter's. Saved for the backward pass, besides the parameters: x and the k-wide projection.
    """

    @staticmethod
    def forward(
        ctx, x: Tensor, W: Tensor, b: Tensor | None, L: Tensor, R: Tensor, twin_L: Tensor | None, twin_R: Tensor | None,
        c: Tensor | float, n: int | None,
    ) -> Tensor:
        z = (x @ L.to(x.dtype).T) * c  # (N, k)
        y = F.linear(x, W.to(x.dtype), None if b is None else b.to(x.dtype))  # (N, O)
        y.addmm_(z, R.to(x.dtype).T)
        ctx.save_for_backward(x, z, W, L, R)
        ctx.c, ctx.n = c, n
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, z, W, L, R = ctx.saved_tensors
        n, want = len(x) if ctx.n is None else ctx.n, ctx.needs_input_grad
        dz = (dy @ R.to(dy.dtype)) * ctx.c  # (N, k)
        dx = (dy @ W.to(dy.dtype)).addmm_(dz, L.to(dy.dtype)) if want[0] else None  # (N, I)
        (dL, dR), (twin_dL, twin_dR) = (
            (dz[rows].T @ x[rows] if want_L else None, dy[rows].T @ z[rows] if want_R else None)
            for rows, want_L, want_R in ((slice(n), want[3], want[4]), (slice(n, None), want[5], want[6])))
        return dx, None, None, dL, dR, twin_dL, twin_dR, None, None


# ---- the step

class AlignedAdamW(torch.optim.AdamW):
    """Eq. MuScleLoRA (step): (7), (8), clipping and AdamW at once: p.grad is g, twin.grad is r. It can replace
    train.ClippedAdamW.

    mu: that of the next step, `optimizer.mu = ...`, a number or a function of the mean norm of r (over the tensors
    where that is not 0). A missing gradient counts as 0; if both are missing, the parameter is left alone. Afterwards
    p.grad holds AdamW's input, and twin.grad is overwritten. leaves: all whose gradients a step reads.
    """

    def __init__(
        self, params: Sequence[Tensor], twins: Sequence[Tensor], *, lr: float, clip: float = 1.0,
        weight_decay: float = 0.0, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, whole: bool = False,
        variant: str = "paper",
    ):
        check_variant(variant)
        # As in ClippedAdamW: weight decay acts on matrices alone.
        super().__init__(
            [
                {"params": [p for p in params if p.dim() > 1], "weight_decay": weight_decay},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=lr, betas=betas, eps=eps, fused=True,
        )
        self.pairs = list(zip(params, twins, strict=True))
        self.leaves = [*params, *twins]
        self.clip, self.whole, self.raw = clip, whole, variant == "released"
        self.mu: float | Callable[[float], float] = 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none)
        for _, twin in self.pairs:
            twin.grad = None

    @torch.no_grad()
    def step(self) -> Tensor:
        """Update and return the norm of Eq. (8)'s gradient before clipping. If that is not finite, nothing is
        changed."""
        pairs = [(p, twin) for p, twin in self.pairs if p.grad is not None or twin.grad is not None]
        if not pairs:
            return torch.zeros(())
        g, r = ([torch.zeros_like(p) if p.grad is None else p.grad for p in column] for column in zip(*pairs))
        dots, g_norms, r_norms = products(g, r)
        nonzero = [norm for norm in r_norms if norm]
        mu = self.mu(sum(nonzero) / max(1, len(nonzero))) if callable(self.mu) else self.mu
        if self.whole:
            length = share(sum(dots), math.hypot(*r_norms))
            lengths = [length] * len(dots)
        else:
            lengths = [share(dot, norm) for dot, norm in zip(dots, r_norms)]
        # Eq. (8) is a r + b g, whose norm follows from the products.
        a = [(1 - mu) * (length or 0.0) for length in lengths]
        b = [1.0 if length is None and self.raw else mu for length in lengths]
        square = sum(
            a * a * r * r + 2 * a * b * dot + b * b * g * g for a, b, dot, g, r in zip(a, b, dots, g_norms, r_norms)
        )
        norm = math.sqrt(abs(square))  # rounding may leave less than 0
        if math.isfinite(norm):
            clip = min(1.0, self.clip / (norm + 1e-6))
            torch._foreach_mul_(g, [clip * x for x in b])
            torch._foreach_mul_(r, [clip * x for x in a])
            torch._foreach_add_(g, r)
            for (p, _), grad in zip(pairs, g):
                p.grad = grad
            super().step()
        return torch.tensor(norm)


def share(dot: float, norm: float) -> float | None:
    """|<g, r>| / ||r||^2; None if r is 0."""
    return abs(dot) / norm / norm if norm else None


def products(g: Sequence[Tensor], r: Sequence[Tensor]) -> tuple[list[float], list[float], list[float]]:
    """<g, r>, ||g|| and ||r|| of each pair, with one synchronisation of the device."""
    dots = torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(g, r)])
    norms = torch.stack(torch._foreach_norm([*g, *r]))
    values = torch.cat((dots, norms)).tolist()
    dots, g_norms, r_norms = values[:len(g)], values[len(g):2 * len(g)], values[2 * len(g):]
    for i, (x, y) in enumerate(zip(g, r)):
        if min(g_norms[i], r_norms[i]) < SMALL:
            x, y = x.double(), y.double()
            dots[i], g_norms[i], r_norms[i] = ((x * y).sum().item(), x.norm().item(), y.norm().item())
    return dots, g_norms, r_norms
