"""--checkpoint-activations: computed again in the backward pass, bit for bit, instead of being kept."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minibd.models.dropout import Drawing, Dropout


def recomputed(run: Callable[[Tensor], tuple], h: Tensor, block: nn.Module, drawing: Drawing | None) -> tuple:
    """run(h), a pass through `block`, of whose activations only h and the results are kept.

    The second time it draws the dropout masks of the first, from a generator that is put back, and sees what was set
    for the first: the layout of the masks, and the attributes that its modules name in `of_a_pass`.
    """
    generators = {module.generator for module in block.modules() if isinstance(module, Dropout)} - {None}
    saved = [(generator, generator.get_state()) for generator in generators]
    layout = (drawing.texts, drawing.tokens) if drawing else None
    seen = [(module, name, getattr(module, name))
            for module in block.modules() for name in getattr(module, "of_a_pass", ())]
    again = False

    def first_or_again(h: Tensor) -> tuple:
        nonlocal again
        if not again:
            again = True
            return run(h)
        states = [(generator, generator.get_state()) for generator in generators]
        now = (drawing.texts, drawing.tokens) if drawing else None
        here = [(module, name, getattr(module, name)) for module, name, _ in seen]
        try:
            _put(saved, drawing, layout, seen)
            return run(h)
        finally:
            _put(states, drawing, now, here)

    return checkpoint(first_or_again, h, use_reentrant=False, preserve_rng_state=not generators)


def _put(states: list[tuple[torch.Generator, Tensor]], drawing: Drawing | None, layout: tuple | None,
         attributes: list[tuple[nn.Module, str, object]]) -> None:
    for generator, state in states:
        generator.set_state(state)
    if drawing:
        drawing.texts, drawing.tokens = layout
    for module, name, value in attributes:
        setattr(module, name, value)
