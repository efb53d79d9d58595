"""Dropout whose masks come from a generator that is passed in, never from the global random state."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Dropout(nn.Module):
    """x * keep / (1 - p), keep ~ Bernoulli(1 - p), in train mode; x itself otherwise.

    Each element takes 16 random bits, four elements share a 64-bit draw: torch's own dropout draws a float an element,
    which takes 15 % of a training step on a CPU. p is therefore rounded to a multiple of 2^-16. `generator` is set by
    `seed_dropout`; None is torch's default generator.
    """

    def __init__(self, p: float):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"a dropout of {p} is outside 0..1 (1 excluded)")
        self.p = p
        self.generator: torch.Generator | None = None

    @property
    def active(self) -> bool:
        return self.training and self.p > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return x
        draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
        draws.random_(-2 ** 63, None, generator=self.generator)  # all 64 bits, sign included
        bits = draws.view(torch.int16)[:x.numel()].view(x.shape)  # uniform on -2^15 .. 2^15 - 1
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
    """Let every Dropout of `model` draw from `generator`."""
    for module in model.modules():
        if isinstance(module, Dropout):
            module.generator = generator
