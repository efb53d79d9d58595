"""Frozen weights that autocast would cast at every pass: cast once."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def cast_once(model: nn.Module, dtype: torch.dtype, whole: bool = False) -> Iterator[None]:
    """Inside, the linear layers of `model` whose weights are frozen read a copy of them in `dtype` wherever autocast of
    that type is on: the same bits, without a cast. Autocast keeps its casts of trained weights through a step, and of
    no others.

    whole: all linear layers are frozen, whatever requires a gradient: the model is only asked, without gradients.
    Nothing may change the weights inside.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and dtype != torch.float32
              and (whole or not any(p.requires_grad for p in layer.parameters()))]
    for layer in layers:
        layer.forward = _Cast(layer, dtype)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Cast:
    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        self.layer, self.dtype = layer, dtype
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def __call__(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self.dtype:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.layer.weight, self.layer.bias)
