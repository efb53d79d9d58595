"""AEDA (Karimi et al., 2021): random punctuation marks between the words; no word is changed, lost or moved.

1. q ~ Uniform{1, ..., max(1, n // 3)} marks for a text of n words (variant="released": Uniform{1, ..., floor(0.3 n +
1)}).
2. q places of n, drawn without replacement; before the word at each stands one of . ; ? : ! , drawn anew.

Words are what white space parts, which becomes single spaces. An empty text becomes one mark, as it does in the
released code.
"""
from __future__ import annotations

import random

MARKS = (".", ";", "?", ":", "!", ",")
_MARKED, _KINDS = tuple(mark + " " for mark in MARKS), len(MARKS)


def aeda(text: str, rng: random.Random, *, budget: int | None = None, variant: str = "paper") -> str:
    """`text` with marks before some of its words.

    budget: the number of marks q, at most one a word, say split.budget(text); None: drawn as above. variant: "paper" or
    "released".
    """
    if variant not in ("paper", "released"):
        raise ValueError(f"variant={variant!r}: only 'paper' and 'released' are known")
    words, chance = text.split(), rng.random
    n = len(words)
    if not n:
        return "" if budget == 0 else MARKS[int(chance() * _KINDS)]
    if budget is None:
        most = n // 3 or 1 if variant == "paper" else int(0.3 * n + 1)
        q = 1 + int(chance() * most)  # a third of randint's time; off uniform by n / 2^53
    else:
        q = min(budget, n)
    taken, ways = set(), n * _KINDS
    while q > 0:
        way = int(chance() * ways)  # place and mark in one draw: the time goes into draws
        i = way // _KINDS
        if i not in taken:
            taken.add(i)
            words[i] = _MARKED[way % _KINDS] + words[i]
            q -= 1
    return " ".join(words)
