"""Add Trig, MBTSAD's Table III: inserts a rare word, "cb", at a random place of the text.

The defender does not know the attacker's trigger; "cb" is none of LWP's. One insertion a text where no budget is given:
the paper states no count.
"""
from __future__ import annotations

import random


def addtrigger(text: str, rng: random.Random, *, word: str = "cb", budget: int | None = None) -> str:
    """`text` with `word` inserted at a place uniform over 0..n of its n words, both ends included. White space becomes
    single spaces.

    budget: the number of insertions, each at a new place (None: one), for example split.budget(text).
    """
    words = text.split()
    for _ in range(1 if budget is None else budget):
        words.insert(rng.randint(0, len(words)), word)  # randint includes both ends
    return " ".join(words)
