"""Add Trig, MBTSAD's Table III: a rare word, "cb", at a random place. The defender does not know the attacker's; this
is none of LWP's.

Once a text where no budget is given: the paper names no count.
"""
from __future__ import annotations

import random


def addtrigger(text: str, rng: random.Random, *, word: str = "cb", budget: int | None = None) -> str:
    """`text` with `word` put at a place uniform over 0..n of its n words, both ends included. White space becomes
    single spaces.

    budget: how often, each time anew (None: once), say split.budget(text).
    """
    words = text.split()
    for _ in range(1 if budget is None else budget):
        words.insert(rng.randint(0, len(words)), word)  # randint includes both ends
    return " ".join(words)
