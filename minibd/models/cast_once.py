"""What autocast would cast more than once: frozen weights at every pass, an input in each layer that reads it."""
from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import MethodType

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


@contextmanager
def only_asked(dtype: torch.dtype, model: nn.Module, *others: nn.Module) -> Iterator[None]:
    """Inside, products are taken in `dtype` by autocast, and the models are only asked: their weights are cast once."""
    kind = next(model.parameters()).device.type
    with ExitStack() as stack:
        for one in (model, *others):
            stack.enter_context(cast_once(one, dtype, whole=True))
        stack.enter_context(torch.autocast(kind, dtype, enabled=dtype != torch.float32))
        yield


def cast_input(x: Tensor) -> Tensor:
    """`x` in autocast's type where autocast is on, for several linear layers that each would cast it: the same bits.

    An `x` with a gradient stays as it is, so that the layers' gradients are summed in its own type; float64, which
    autocast leaves alone, too.
    """
    kind = x.device.type
    if x.requires_grad or x.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))


class _Cast:
    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        self.layer, self.dtype = layer, dtype
        self.weight = layer.weight.detach().to(dtype)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)

    def __deepcopy__(self, memo: dict) -> Callable[[Tensor], Tensor]:
        """A copy of the layer reads its own weights, which may be trained."""
        return MethodType(nn.Linear.forward, copying.deepcopy(self.layer, memo))

    def __call__(self, x: Tensor) -> Tensor:
        kind = x.device.type
        if torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == self.dtype:
            return F.linear(x, self.weight, self.bias)
        return F.linear(x, self.layer.weight, self.layer.bias)
