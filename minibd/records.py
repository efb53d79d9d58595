"""The data types: Example, Examples, Batch, Output; and BadInput, the error that the user can fix.

Shapes, used everywhere: B texts, T tokens in the longest of them, L layers, H heads, D hidden size, C classes, V
vocabulary.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor

from minibd.lines import line, quoted

CHECKOUT = Path(__file__).resolve().parents[1]  # whose weights/ and scripts/ the pages name by relative paths


class BadInput(ValueError):
    """An error in the user's input. The message is one line that names the value, the limit and the fix.

    Scripts print it and exit with status 2; any other exception is a bug of minibd and keeps its traceback. Whatever
    the message was put together from, it is held to lines.line: nothing unprintable, and not too long. `whole` is what
    it was before that.
    """

    def __init__(self, message: str):
        super().__init__(line(message))
        self.whole = message


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, with a second one where the task has pairs. No field says whether the text is poisoned: a
    defence must not know it."""

    id: str
    text: str
    label: int
    pair: str | None = None


class Examples(list):
    """A list of Example with the task's class names: `labels[i]` is the name of class i."""

    def __init__(self, rows: Iterable[Example] = (), labels: Iterable[str] = ()):
        super().__init__(rows)
        self.labels = tuple(labels)

    def like(self, rows: Iterable[Example]) -> Examples:
        """Other rows of the same task."""
        return Examples(rows, self.labels)


def not_there(path: str | Path) -> str:
    """The words for a path that does not exist: of a relative one where it was looked for, and the project's own file
    of that name, if there is one."""
    path = Path(path)
    if path.is_absolute():
        return f"{path} does not exist"
    own = CHECKOUT / path
    return f"{path} does not exist (looked for {path.absolute()}{f'; {own} does' if own.exists() else ''})"


def check_target(target: object, labels: Sequence[str]) -> None:
    """Raises BadInput where `target` is not the number of one of the classes `labels`, from 0."""
    named = quoted(labels)
    if not labels:
        raise BadInput(f"the target class is {target!r}, and the rows name no classes: give Examples(rows, labels)")
    if isinstance(target, bool) or not isinstance(target, Integral):
        raise BadInput(
            f"the target class is {target!r}, which is no class's number: give one of 0..{len(labels) - 1} ({named})"
        )
    if not 0 <= target < len(labels):
        raise BadInput(f"target class {target} is not one of 0..{len(labels) - 1} ({named}): name one of them")


@dataclass(frozen=True, slots=True)
class Part:
    """Which texts of a whole batch some are, the others being computed elsewhere. mask: (B', T), of the whole, True at
    real tokens; rows: the texts' indices in it, (B,); weight: their share of its texts, 0 where they do not count.

    turn: of the `turns` in which one process computes its texts, and `share` of these, see Batch.in_turns.
    """

    mask: Tensor
    rows: Tensor
    weight: float
    turn: int = 0
    turns: int = 1
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """ids, mask, token_type_ids: (B, T); labels: (B,). `mask` is True at real tokens, `token_type_ids` is 0 / 1 for a
    first / second text. part: of which batch these are some of the texts; None: the batch is whole."""

    ids: Tensor
    mask: Tensor
    token_type_ids: Tensor
    labels: Tensor
    part: Part | None = None

    def to(self, device: torch.device | str) -> Batch:
        ids, mask, kinds, labels = (t.to(device, non_blocking=True)
                                    for t in (self.ids, self.mask, self.token_type_ids, self.labels))
        part = self.part and replace(self.part, mask=self.part.mask.to(device), rows=self.part.rows.to(device))
        return Batch(ids, mask, kinds, labels, part)

    @property
    def counts(self) -> bool:
        """Whether its texts have a share in the whole batch."""
        return self.part is None or self.part.weight > 0

    @property
    def whole(self) -> Part:
        """The part that this is of its whole batch, all of it where nothing is said."""
        return self.part or Part(self.mask, torch.arange(len(self.labels), device=self.mask.device), 1.0)

    def some(self, rows: Sequence[int], weight: float | None = None) -> Batch:
        """The texts with the indices `rows`, as long as before; `weight`: by default their share of the whole."""
        which, of = torch.as_tensor(rows, device=self.ids.device), self.whole
        part = Part(of.mask, of.rows[which], of.weight * len(which) / len(self.labels) if weight is None else weight)
        return Batch(self.ids[which], self.mask[which], self.token_type_ids[which], self.labels[which], part)

    def in_turns(self, n: int) -> list[Batch]:
        """The texts in n parts, neighbours, to be computed one after the other; n is at most their number."""
        size, parts = len(self.labels), []
        for turn in range(n):
            rows = range(size * turn // n, size * (turn + 1) // n)
            some = self.some(rows)
            parts.append(replace(some, part=replace(some.part, turn=turn, turns=n, share=len(rows) / size)))
        return parts

    def check_whole(self, term: str) -> None:
        """Raises BadInput where one process computes the batch in turns, and `term` is not a mean over texts."""
        if self.part is not None and self.part.turns > 1:
            raise BadInput(f"--micro-batch: {term} is of the whole batch, which is cut: leave it out")

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values`, (B,), as these texts' part of the mean over the whole batch: the parts add up to it."""
        return values.mean() if self.part is None else values.mean() * self.part.weight


@dataclass(frozen=True, slots=True)
class Output:
    """logits (B, C), pooled (B, D); hidden: L+1 of (B, T, D), embeddings first; attn: L of (B, H, T, T); cls (B, D):
    the last hidden state of [CLS], of a causal model that of the last token, which the classifier reads.

    `attn` holds softmax probabilities before dropout and before the head mask: rows sum to 1. `hidden` and `attn` are
    empty unless asked for; `logits`, `pooled` and `cls` are None where the model has no classifier.
    """
    logits: Tensor | None
    pooled: Tensor | None
    hidden: tuple[Tensor, ...] = ()
    attn: tuple[Tensor, ...] = ()
    cls: Tensor | None = None
