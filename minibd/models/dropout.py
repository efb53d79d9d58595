"""Dropout whose masks come from a generator that is passed in, never from the global random state."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from minibd.records import Part

if TYPE_CHECKING:
    from minibd.models.encoder import PackedBatch


class Drawing:
    """Which rows of a whole batch's masks the Dropouts of a model take: all, unless the batch at hand is a part."""

    def __init__(self):
        self.texts: tuple[Tensor, int] | None = None  # the rows, and how many the whole has
        self.tokens: tuple[Tensor, int] | None = None

    def lay_out(self, part: Part | None, packed: PackedBatch) -> None:
        """Take the rows of `part`, which `packed` has packed or not, as the whole batch's own size has it packed."""
        if part is None:
            self.texts = self.tokens = None
            return
        b, t = part.mask.shape
        self.texts = part.rows, b
        index = part.rows[:, None] * t + torch.arange(t, device=part.rows.device)  # (B, T), of B' T places
        index, n, kept = packed.pack(index), b * t, part.mask.flatten().cumsum(0)  # (N,); (B' T,)
        if packed.is_packed(real := int(kept[-1]), b, t):
            index, n = (kept[index] - 1).clamp(min=0), real  # padding takes any row
        self.tokens = index, n

    def rows_of(self, x: Tensor) -> tuple[Tensor | None, int]:
        """The rows of the whole's mask that are those of x, None for all of them, and how many it has. x has a row a
        real token or place, and two axes, or a row a text."""
        if self.texts is None:
            return None, 0
        for rows, n in (self.tokens, self.texts) if x.dim() == 2 else (self.texts,):
            if len(rows) == len(x):
                return rows, n
        raise ValueError(f"dropout of {len(x)} rows, in a batch of {len(self.texts[0])} texts, {len(self.tokens[0])} "
                         "tokens: they are another batch's")


class Dropout(nn.Module):
    """x * keep / (1 - p), keep ~ Bernoulli(1 - p), in train mode; x itself otherwise.

    Each element takes 16 random bits, four elements share a 64-bit draw: torch's own dropout draws a float an element,
    which takes 15 % of a training step on a CPU. p is therefore rounded to a multiple of 2^-16. `generator` is set by
    `seed_dropout`; None is torch's default generator. Of a part of a batch (records.Part) the whole batch's mask is
    drawn, and its rows are taken: the texts get what they get where the batch is computed at once.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout of {p} is outside 0..1 (1 excluded)")
        self.p = p
        self.generator: torch.Generator | None = None
        self.drawing = Drawing()

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        rows, n = self.drawing.rows_of(x)
        shape = x.shape if rows is None else torch.Size((n, *x.shape[1:]))
        draws = torch.empty((shape.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-2 ** 63, None, generator=self.generator)  # all 64 bits, sign included
        bits = draws.view(torch.int16)[:shape.numel()].view(shape)  # uniform on -2^15 .. 2^15 - 1
        bits = bits if rows is None else bits[rows]
        dropped = round(self.p * 2 ** 16)  # of 2^16 values
        keep = (bits >= dropped - 2 ** 15).view(torch.uint8)  # bytes convert to floats much faster than bools do
        return x * keep.to(x.dtype).mul_(2 ** 16 / (2 ** 16 - dropped))

    def extra_repr(self) -> str:
        return f"p={self.p}"


@contextmanager
def attention_dropout(model: nn.Module, p: float | None) -> Iterator[None]:
    """Inside, every `attention_dropout` of `model` has probability p (None: unchanged); afterwards its former one."""
    of_model = {module: module.p for name, module in model.named_modules() if name.endswith("attention_dropout")}
    for module in of_model:
        module.p = module.p if p is None else p
    try:
        yield
    finally:
        for module, before in of_model.items():
            module.p = before


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, every Dropout of `model` keeps all, in train mode too; afterwards it has its former probability."""
    before = {module: module.p for module in model.modules() if isinstance(module, Dropout)}
    for module in before:
        module.p = 0.0
    try:
        yield
    finally:
        for module, p in before.items():
            module.p = p


def seed_dropout(model: nn.Module, generator: torch.Generator | None) -> None:
    """Let every Dropout of `model` draw from `generator`, by one layout of rows, which an Encoder sets
    (`model.drawing`)."""
    model.drawing = Drawing()
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator, module.drawing = generator, model.drawing
