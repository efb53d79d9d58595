"""The nouns of the audit: where an equation stands, what checking it gave, and both together with what is said of
it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One equation of one paper, as a docstring of the package names it. number: "3", or the name of an equation that
    has none."""

    paper: str
    number: str
    file: str    # minibd/mitigations/mbtsad.py
    line: int    # of the def or class, from 1
    name: str    # attention_map; Class.method of a method
    doc: str     # the docstring, its indent taken off
    source: str  # of the whole function or class, the docstring included


@dataclass(frozen=True, slots=True)
class Outcome:
    """One comparison of our function with its restatement, on numbers drawn from a seed.

    what: the variant or the case. gradient: None where there is nothing to differentiate. Both differences are relative
    to the largest number compared, and absolute where all are 0.
    """
    what: str
    difference: float
    tolerance: float
    gradient: float | None = None
    gradient_tolerance: float = 0.0

    @property
    def ok(self) -> bool:
        """nan is not."""
        return self.difference <= self.tolerance and (self.gradient is None or self.gradient <= self.gradient_tolerance)


@dataclass(frozen=True, slots=True)
class Found:
    """An equation as it is printed. place: None where no docstring names it, which fails."""
    paper: str
    number: str
    title: str
    formula: str              # TeX, the few words of it that audit/tex.py knows; the paper's letters
    ours: str                 # what variant="paper" does
    # what the released code does where it differs, and variant="released"; "" where it does the same or there is none
    released: str
    effect: str               # what the difference changes on real data; "" where there is none
    example: str              # a small case with numbers, some lines of plain text
    outcomes: tuple[Outcome, ...]
    place: Place | None
    tests: tuple[str, ...]    # tests/test_mbtsad.py::test_name, those that call the function

    @property
    def ok(self) -> bool:
        return self.place is not None and bool(self.outcomes) and all(outcome.ok for outcome in self.outcomes)
