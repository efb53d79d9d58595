"""The rows of the word embedding that a training's texts visit, trained as a small table in place of the whole one.

Half of a MiniLM's weights are word rows, of which MBTSAD's 6,920 texts of SST-2 visit 7,912 of 30,522. No other row
ever has a gradient: AdamW's moments of it stay 0, and all that it does there is to multiply the row by 1 - lr_t wd at
each step. So the visited rows, (K, D), are a parameter of their own, with moments of their own, and the others' factors
are kept until somebody reads the table: then they are applied step by step, as AdamW would have done, and the row has
the same bits. What is left of the dense step are K rows; a gradient of (V, D), its norm, its zeroing and two moments
are gone.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIECE = 2 ** 16  # numbers that are decayed by all pending steps at once: they stay in the processor's cache


class VisitedRows:
    """The rows `ids` of the embedding `word`, for the length of a training.

    rows: the parameter that is trained instead of `word.weight`, (K, D). It is what a forward pass in train mode reads
    while gradients are recorded; every other one reads the table, and `word`'s state_dict settles it before, so that
    who looks from outside sees the dense training's weights at any step. A table that is written from outside counts
    whole: the training goes on from it.
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
        self.version = word.weight._version  # of the table when it was last read or written here

    def look_up(self, ids: Tensor) -> Tensor:
        """word(ids): (B, T) or (N,) -> (..., D)."""
        if not (self.word.training and torch.is_grad_enabled()):
            self.settle()
            return F.embedding(ids, self.word.weight, self.word.padding_idx)
        self.take_over()
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
        self.take_over()
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
        self.version = weight._version

    @torch.no_grad()
    def take_over(self) -> None:
        """If somebody else has written the table since, such as load_state_dict, read the visited rows from it."""
        if self.word.weight._version != self.version:
            self.rows.copy_(self.word.weight[self.index])
            self.factors, self.stale, self.version = [], False, self.word.weight._version


class Trained(Sequence):
    """`params`, which an optimizer trains, as tensors of the model: in the place of the visited rows stands the table,
    settled whenever it is read."""

    def __init__(self, params: Sequence[Tensor], visited: VisitedRows):
        self.params, self.visited = params, visited

    def __len__(self) -> int:
        return len(self.params)

    def __getitem__(self, i: int) -> Tensor:
        if self.params[i] is not self.visited.rows:
            return self.params[i]
        self.visited.settle()
        return self.visited.word.weight


@contextmanager
def visited_rows(word: nn.Embedding, ids: Iterable[int]) -> Iterator[VisitedRows]:
    """Inside, `word` looks up trained rows, see VisitedRows; afterwards its table holds them, and it is as before."""
    visited = VisitedRows(word, ids)
    hook = word.register_state_dict_pre_hook(lambda *_: visited.settle())
    word.forward, word.weight.grad = visited.look_up, None
    try:
        yield visited
    finally:
        del word.forward
        hook.remove()
        visited.settle()
