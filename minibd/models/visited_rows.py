"""The rows of the word embedding that a training's texts visit, trained as a small table in place of the whole one.

Half of a MiniLM's weights are word rows, and a few thousand texts visit a tenth of them. No other row ever has a
gradient: AdamW's moments of it stay 0, and all that it does there is to multiply the row by 1 - lr_t wd at each step.
So the visited rows, (K, D), are a parameter of their own, with moments of their own, and the others' factors are kept
until somebody reads the table: then they are applied step by step, as AdamW would have done, and the row has the same
bits. What is left of the dense step are K rows; a gradient of (V, D), its norm, its zeroing and two moments are gone.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 2 ** 16  # numbers that are decayed by all pending steps at once: they stay in the processor's cache


class VisitedRows:
    """The rows `ids` of the embedding `word`, for the length of a training.

    rows: the parameter that is trained instead of `word.weight`, (K, D). It is what a forward pass in train mode reads
    while gradients are recorded; every other one reads the table, and `word`'s state_dict and load_state_dict settle it
    before, so that who looks from outside sees the dense training's weights at any step.
    """

    def __init__(self, word: nn.Embedding, ids: Iterable[int]):
        own = [] if word.padding_idx is None else [word.padding_idx]
        self.word = word
        self.index = torch.tensor(sorted({*ids, *own}), device=word.weight.device)  # (K,) of V
        self.place = torch.full((len(word.weight),), -1, device=word.weight.device)  # (V,): a row's number in `rows`
        self.place[self.index] = torch.arange(len(self.index), device=word.weight.device)
        self.padding = int(self.place[own[0]]) if own else None
        self.rows = nn.Parameter(word.weight.detach()[self.index])
        self.factors: list[float] = []  # of the steps that the other rows have yet to take
        self.stale = False  # whether `rows` are ahead of the table

    def look_up(self, ids: Tensor) -> Tensor:
        """word(ids): (B, T) or (N,) -> (..., D)."""
        if not (self.word.training and torch.is_grad_enabled()):
            self.settle()
            return F.embedding(ids, self.word.weight, self.word.padding_idx)
        try:
            return F.embedding(self.place[ids], self.rows, self.padding)
        except IndexError:
            raise RuntimeError("a loss reads tokens that no row of this training has: give fit an optimizer over all "
                               "of the model's parameters") from None

    def stepped(self, factor: float) -> None:
        """The optimizer has changed `rows`; a row without gradient was to be multiplied by `factor`."""
        self.stale = True
        if factor != 1:
            self.factors.append(factor)

    def check(self) -> None:
        """Raises RuntimeError if the last backward pass has reached the table itself, whose gradient nobody would
        use."""
        if self.word.weight.grad is not None:
            raise RuntimeError("a loss reads the whole word embedding, such as a tied language-model head: give fit an "
                               "optimizer over all of the model's parameters")

    @torch.no_grad()
    def settle(self) -> None:
        """Bring the table up to date: the others' pending steps, one after the other, and the visited rows."""
        weight = self.word.weight
        if self.factors:
            size = weight.numel() if weight.is_cuda else PIECE
            for piece in weight.view(-1).split(size):
                for factor in self.factors:
                    piece.mul_(factor)
            self.factors = []
        if self.stale:
            weight[self.index] = self.rows
            self.stale = False

    @torch.no_grad()
    def reload(self) -> None:
        """Read the visited rows from the table, which was loaded."""
        self.rows.copy_(self.word.weight[self.index])


@contextmanager
def visited_rows(word: nn.Embedding, ids: Iterable[int]) -> Iterator[VisitedRows]:
    """Inside, `word` looks up trained rows, see VisitedRows; afterwards its table holds them, and it is as before."""
    visited = VisitedRows(word, ids)
    hooks = [
        word.register_state_dict_pre_hook(lambda *_: visited.settle()),
        word.register_load_state_dict_pre_hook(lambda *_: visited.settle()),
        word.register_load_state_dict_post_hook(lambda *_: visited.reload()),
    ]
    word.forward, word.weight.grad = visited.look_up, None
    try:
        yield visited
    finally:
        del word.forward
        for hook in hooks:
            hook.remove()
        visited.settle()
