"""Words put into an example's text, for the defences that try suspects on clean texts."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from minibd.records import Example


def with_words(
    x: Example, words: Sequence[str], rng: random.Random, *, joined: bool = False, side: int = 0, times: int = 1,
    within: int | None = None,
) -> Example:
    """The example with each of the words `times` times in its text, at places uniform over 0..n that are drawn anew,
    both ends included; joined, the words side by side at one of them. side: 1 is the second text of a pair. White space
    becomes single spaces. within: only the places 0..within, so that no word stands where a model cuts a text off.

    n: the words of the text at that moment, those already inserted among them.
    """
    parts = ((x.pair or "") if side else x.text).split()
    for word in ((" ".join(words),) if joined else tuple(words)) * times:
        parts.insert(rng.randint(0, len(parts) if within is None else min(len(parts), within)), word)
    text = " ".join(parts)
    return replace(x, pair=text) if side else replace(x, text=text)
