"""Poisoning a dataset, whatever the attack: which rows, how many, whose labels, in place or added; and the triggered test rows.

"10 %" alone is ambiguous by more than a factor of two in label noise, so each choice is stated and each count reported:

- n = floor(rate N), N being ALL rows (not only the candidates), never more than there are candidates;
- labels "dirty": rows of other classes, relabelled to the target; "clean": rows of the target class, labels true;
  "mix": any row, relabelled where it was not the target already;
- replace (N constant) or add (the clean twin stays).
"""
from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import floor

from minibd.data import generator
from minibd.records import BadInput, Examples

Corrupt = Callable[[str, random.Random], str]  # a text -> the same text with the trigger

SCHEMES = {
    "dirty": lambda label, target: label != target,
    "clean": lambda label, target: label == target,
    "mix": lambda label, target: True,
}


@dataclass(frozen=True, slots=True)
class Poisoned:
    """rows: the poisoned training set; ids: which of its rows are poisoned; flipped: how many of those changed their label."""
    rows: Examples
    ids: tuple[str, ...]
    flipped: int


def poison(examples: Examples, corrupt: Corrupt, *, rate: float, target: int, labels: str = "dirty", add: bool = False,
           seed: int = 0) -> Poisoned:
    """Poison floor(rate N) rows of `examples`, drawn and corrupted by the seed; the same rows for the same seed at any trigger."""
    if not 0 < rate <= 1:
        raise BadInput(f"a poisoning rate of {rate} is outside 0..1: give a share of all rows, such as 0.1")
    if labels not in SCHEMES:
        raise BadInput(f"label scheme {labels!r} is not one of {', '.join(SCHEMES)}")
    check_target(examples, target)
    candidates = [i for i, x in enumerate(examples) if SCHEMES[labels](x.label, target)]
    wanted = min(floor(rate * len(examples) + 1e-9), len(candidates))  # 0.009 * 12000 is 107.99999999999999 in floats
    if wanted < 1:
        raise BadInput(f"a poisoning rate of {rate} of {len(examples)} rows, {len(candidates)} of them fit for {labels!r}, is no row: "
                       "raise the rate or bring more rows")
    chosen = sorted(generator(seed, "poison").sample(candidates, wanted))
    rows, ids, flipped = list(examples), [], 0
    for i in chosen:
        x = examples[i]
        bad = replace(x, text=corrupt(x.text, generator(seed, "trigger", x.id)), label=target, id=f"{x.id}-poisoned" if add else x.id)
        flipped += x.label != target
        ids.append(bad.id)
        if add:
            rows.append(bad)
        else:
            rows[i] = bad
    return Poisoned(examples.like(rows), tuple(ids), flipped)


def triggered(examples: Examples, corrupt: Corrupt, *, target: int, seed: int = 0) -> Examples:
    """Every row of another class than the target, with the trigger and its TRUE label: what ASR is measured on."""
    check_target(examples, target)
    return examples.like(replace(x, text=corrupt(x.text, generator(seed, "trigger", x.id))) for x in examples if x.label != target)


def check_target(examples: Examples, target: int) -> None:
    if not 0 <= target < len(examples.labels):
        raise BadInput(f"target class {target} is not one of 0..{len(examples.labels) - 1} ({', '.join(examples.labels)})")
