"""AEDA (Karimi et al., 2021): inserts random punctuation marks between the words; no word is changed, lost or moved.

1. q ~ Uniform{1, ..., max(1, n // 3)} marks for a text of n words (variant="released": Uniform{1, ..., floor(0.3 n +
   1)}).
2. q places of n, drawn without replacement; the word at each gets one of . ; ? : ! , before it, drawn anew.

Words are separated by white space, which becomes single spaces. An empty text becomes one mark, as it does in the
released code.
"""
from __future__ import annotations

import random

MARKS = (".", ";", "?", ":", "!", ",")
_MARKED, _MARK_COUNT = tuple(mark + " " for mark in MARKS), len(MARKS)


def aeda(text: str, rng: random.Random, *, budget: int | None = None, variant: str = "paper") -> str:
    """`text` with marks before some of its words.

    budget: the number of marks q, at most one a word, for example split.budget(text); None: drawn as above. variant:
    "paper" or "released".
    """
    if variant not in ("paper", "released"):
        raise ValueError(f"variant={variant!r}: only 'paper' and 'released' are known")
    words, uniform = text.split(), rng.random
    n = len(words)
    if not n:
        return "" if budget == 0 else MARKS[int(uniform() * _MARK_COUNT)]
    if budget is None:
        most = n // 3 or 1 if variant == "paper" else int(0.3 * n + 1)
        q = 1 + int(uniform() * most)  # a third of randint's time; off uniform by n / 2^53
    else:
        q = min(budget, n)
    marked, outcomes = set(), n * _MARK_COUNT
    while q > 0:
        outcome = int(uniform() * outcomes)  # place and mark in one draw: the time goes into draws
        i = outcome // _MARK_COUNT
        if i not in marked:
            marked.add(i)
            words[i] = _MARKED[outcome % _MARK_COUNT] + words[i]
            q -= 1
    return " ".join(words)
