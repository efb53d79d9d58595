"""The data types of the audit: an equation's place in the code, the outcome of a check, an equation with both."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One equation of a paper, as a docstring of the package names it. number: "3", or a name if it has none."""

    paper: str
    number: str
    file: str    # minibd/mitigations/mbtsad.py
    line: int    # of the def or class, from 1
    name: str    # attention_map; Class.method of a method
    doc: str     # the docstring, dedented
    source: str  # of the whole function or class, with the docstring, dedented


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
        """False where a difference is nan."""
        return self.difference <= self.tolerance and (self.gradient is None or self.gradient <= self.gradient_tolerance)


@dataclass(frozen=True, slots=True)
class AuditedEquation:
    """An equation, its place in the code and the outcomes of its checks. place: None where no docstring names it, which
    fails."""

    paper: str
    number: str
    title: str
    formula: str              # TeX, as far as audit/tex.py knows it, in the paper's letters
    ours: str                 # what variant="paper" does
    released: str             # what the released code and variant="released" do where they differ, or ""
    effect: str               # what the difference changes on real data, or ""
    example: str              # a small case with numbers, some lines of plain text
    outcomes: tuple[Outcome, ...]
    place: Place | None
    tests: tuple[str, ...]    # tests/test_mbtsad.py::test_name, those that call the function

    @property
    def ok(self) -> bool:
        return self.place is not None and bool(self.outcomes) and all(outcome.ok for outcome in self.outcomes)
