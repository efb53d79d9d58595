"""Low-rank layers: LoRA (Hu et al., 2022) and MuScleLoRA's multi-scale layer, a LoRA whose projection is scaled,
element by element.

    y = W x + b + (alpha / r) R ((L x) * s)       Eq. MuScleLoRA (6)

W and b are frozen, L (k, I) and R (O, k) trained, * is the Hadamard product. LoRA has s = 1 and k = r. The multi-scale
layer takes the place of the penultimate linear layer: s repeats each band (radial scaling factor) `bandwidth` times,
k = bands * bandwidth, and r in alpha / r is the bandwidth, as released. W + (alpha / r) R diag(s) L is an ordinary
linear layer: `merge` makes it one, and what is saved is a plain model.

    freeze(model)
    lora(model, rank=8, alpha=32, generator=g)
    multi_scale(model, **..., generator=g)        bands, bandwidth and alpha: PRESETS[preset(model)]
    with with_groups(model, Groups(batch.mask, n), twins): ...                       see align.py
    merge(model)

How the multi-scale layer starts (departure 1 of the released code): the paper says "like vanilla LoRA", where R is 0
and so is dW at first. The released code draws both L and R uniformly (init="kaiming"), and BERT's dW then drowns W:
Frobenius norm 922 against 15.4 for 768 x 768 weights of N(0, 0.02), 629 against 3.5 for a MiniLM's own pooler, whose
tanh is beyond 0.99 either way in 83 % of its outputs before any training (scripts/audit.py --effects, seed 0).
init="zero" is another method, to be asked for.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from minibd.align import Groups, TwoGroupLoRA
from minibd.models.encoder import Encoder, part
from minibd.models.roberta import Roberta
from minibd.records import BadInput

INITS = ("kaiming", "zero")


@dataclass(frozen=True, slots=True)
class Preset:
    """A multi-scale layer's published numbers."""
    bands: tuple[int, ...]
    alpha: float
    bandwidth: int = 1


# Bands and alpha: the released code (the text of the paper's Table 6 did not survive); bandwidth 1: section B.4.
PRESETS = {
    "bert-base": Preset((1, 4, 8, 12, 16, 20, 24, 28), alpha=6),
    "roberta-base": Preset((1, 2, 4, 6, 8, 10, 12, 14, 16), alpha=6),
    "large": Preset((1, 2, 3, 4, 5, 6, 7, 8, 9), alpha=6),        # BERT and RoBERTa
    "llama": Preset((1, 2, 3, 4), alpha=4),                       # Llama 2 7B
}


def preset(model: Encoder) -> str:
    """The row of PRESETS for `model`: by architecture, and of an encoder the nearest by depth (12 layers or 24; of 18,
    the smaller)."""
    if model.causal:
        return "llama"
    if len(model.blocks) > 18:
        return "large"
    return "roberta-base" if isinstance(model, Roberta) else "bert-base"


class LowRank(nn.Module):
    """Eq. MuScleLoRA (6) in the place of a linear layer, whose weight and bias it takes over, frozen.

    (..., I) -> (..., O).
    scale: alpha / r. s: (k,), the radial scalings, a buffer; None is LoRA.
    init: "kaiming", L ~ U(+-1 / sqrt(I)) and R ~ U(+-1 / sqrt(k)); "zero", the same L and R = 0. L and R are drawn on
    the generator's device. L and R are float32 even where W is bfloat16: a step of 1e-5 is less than half the gap
    between two bfloat16 numbers near 0.01, and would be rounded away. Products are taken in autocast's type where
    autocast is on, else in x's.
    groups, twins: set by `with_groups`.
    """

    def __init__(
        self, linear: nn.Linear, k: int, scale: float, generator: torch.Generator, *, s: Tensor | None = None,
        init: str = "zero",
    ):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise ValueError(
                f"a low-rank layer stands in a linear layer's place, not in that of a {type(linear).__name__}"
            )
        if k < 1:
            raise BadInput(f"a rank of {k} holds nothing: it must be at least 1")
        if init not in INITS:
            raise BadInput(f"init is {init!r}, it must be one of {', '.join(INITS)}")
        self.weight, self.bias = linear.weight.requires_grad_(False), linear.bias
        if self.bias is not None:
            self.bias.requires_grad_(False)
        self.out_features, self.in_features = self.weight.shape
        self.scale = scale
        self.register_buffer("s", s if s is None else s.to(self.weight.device))
        dtype = torch.promote_types(self.weight.dtype, torch.float32)

        def uniform(shape: tuple[int, int], bound: float) -> nn.Parameter:
            drawn = torch.empty(shape, dtype=dtype, device=generator.device).uniform_(
                -bound, bound, generator=generator
            )
            return nn.Parameter(drawn.to(self.weight.device))

        self.L = uniform((k, self.in_features), self.in_features ** -0.5)
        self.R = uniform((self.out_features, k), k ** -0.5 if init == "kaiming" else 0.0)
        self.train(linear.training)
        self.groups: Groups | None = None
        self.twins: tuple[Tensor | None, Tensor | None] = (None, None)
        self.of_a_pass = ("groups", "twins")

    def forward(self, x: Tensor) -> Tensor:
        kind = x.device.type
        # (N, I)
        rows = x.to(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype).flatten(0, -2)
        c = self.scale if self.s is None else (self.s * self.scale).to(rows.dtype)  # (k,)
        n = None if self.groups is None else self.groups.untrusted(len(rows))
        # (..., O)
        return TwoGroupLoRA.apply(rows, self.weight, self.bias, self.L, self.R, *self.twins, c, n).unflatten(
            0, x.shape[:-1]
        )

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One linear layer with W + (alpha / r) R diag(s) L, summed in float64 and rounded once to W's type."""
        L = self.L.double() if self.s is None else self.L.double() * self.s.double()[:, None]
        weight = self.weight.double() + self.scale * self.R.double() @ L
        # draws nothing
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight, linear.bias = nn.Parameter(weight.to(self.weight.dtype), requires_grad=False), self.bias
        return linear.train(self.training)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, k={len(self.L)}, scale={self.scale:g}"


def freeze(model: nn.Module) -> None:
    """Freeze all of `model`, the classifier included, as released (departure 2); low-rank layers put in later train."""
    model.requires_grad_(False)


def lora(model: Encoder, *, rank: int, alpha: float, generator: torch.Generator) -> None:
    """Put a LoRA at query and value of every block, in place. Published: rank 8, alpha 32; Llama 2 rank 2, alpha 8."""
    for block in model.blocks:
        for name in ("query", "value"):
            setattr(block, name, LowRank(getattr(block, name), rank, alpha / max(1, rank), generator))


def multi_scale(model: Encoder, *, bands: Sequence[float], bandwidth: int, alpha: float, generator: torch.Generator,
                init: str = "kaiming") -> None:
    """Eq. MuScleLoRA (3) to (5), a sum of parts evaluated at s x, as the layer of (6), put in place.

    It takes the place of the penultimate layer: the pooler of BERT, RoBERTa and DistilBERT, the first of a Llama's two
    matrices. Each band has `bandwidth` rows of L and R.
    """
    if getattr(model, "pooler", None) is None:
        raise BadInput(
            "this model has no penultimate linear layer for the radial scalings: load a Llama with bottleneck=16, "
            "another encoder with its classifier"
        )
    if not bands or bandwidth < 1:
        raise BadInput(
            f"{len(bands)} bands of width {bandwidth} scale nothing: give one or more of each, such as 1,2,3,4 of "
            "width 1"
        )
    s = torch.tensor(bands, dtype=torch.float32).repeat_interleave(bandwidth)  # (k,)
    model.pooler = LowRank(part(model, "penultimate"), len(s), alpha / bandwidth, generator, s=s, init=init)


def merge(model: nn.Module) -> None:
    """Turn every low-rank layer of `model` into an ordinary linear one, in place; frozen parameters stay frozen."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, LowRank):
                setattr(parent, name, child.merged())


@contextmanager
def with_groups(model: nn.Module, groups: Groups, twins: Sequence[Tensor]) -> Iterator[None]:
    """Forward passes inside keep the two groups' gradients apart; later ones do not.

    twins: align.twins_of the parameters that `model` trains, in its order. Raises BadInput where one of these belongs
    to no low-rank layer: its gradient on clean texts would be summed with that on untrusted ones.
    """
    layers = [module for module in model.modules() if isinstance(module, LowRank)]
    low_rank = {p for layer in layers for p in (layer.L, layer.R)}
    trained = {p: name for name, p in model.named_parameters() if p.requires_grad}
    if others := [name for p, name in trained.items() if p not in low_rank]:
        raise BadInput(
            f"{others[0]} is trained and no low-rank matrix, whose two gradients alone can be kept apart in one pass: "
            "freeze the model before the low-rank layers are put in, or take two passes"
        )
    if [p.data_ptr() for p in trained] != [twin.data_ptr() for twin in twins]:
        raise ValueError(
            "these are not the twins of the parameters that the model trains: take new ones after moving or changing it"
        )
    twin_of = dict(zip(trained, twins))
    try:
        for layer in layers:
            layer.groups, layer.twins = groups, (twin_of.get(layer.L), twin_of.get(layer.R))
        yield
    finally:
        for layer in layers:
            layer.groups, layer.twins = None, (None, None)
