"""Token splitting, the augmenter of MBTSAD's first step (III-B1): "funny" becomes "fu nny".

The paper gives an example and no formula; the numbers are those of nlpaug's SplitAug, which it follows:

1. tokens: runs of word characters, and every other non-space character on its own; n counts them all. A letter has
   its combining marks, joiners and the like with it, and is cut nowhere (words.py).
2. n_target = min(eligible, clip(ceil(rate n), min_targets, max_targets)), eligible being the words of at least
   `min_char` letters that are not stop words.
3. the targets are drawn without replacement; a word of L letters is cut after s ~ Uniform{1, ..., L - 2}, so that its
   last letter never stands alone.
4. joined by single spaces, without the space before . , : ; ? ! %

A text with nothing to split comes back unchanged. n_target is also a budget for the other augmenters, so that all of
them change as many tokens of a text.
"""
from __future__ import annotations

import math
import random
import re
from collections.abc import Collection

from minibd.words import letter_count, letters
from minibd.words import tokens as tokens_of

_SPACE_BEFORE = re.compile(r" ([.,:;?!%])")


def split(
    text: str, rng: random.Random, *, rate: float = 0.3, min_targets: int = 1, max_targets: int = 10, min_char: int = 4,
    stopwords: Collection[str] = (),
) -> str:
    """Split some words of `text` in two.

    rate: share of all tokens to split; min_targets, max_targets: its bounds; min_char: shortest word that may be split
    (words under 3 letters never are: there is nowhere to cut); stopwords: words left whole, matched as written.
    """
    tokens, eligible, n_target = plan(text, rate, min_targets, max_targets, min_char, stopwords)
    if n_target == 0:
        return text
    for i in rng.sample(eligible, n_target):
        word = letters(tokens[i])
        cut = rng.randint(1, len(word) - 2)  # randint includes both ends
        tokens[i] = f"{''.join(word[:cut])} {''.join(word[cut:])}"
    return _SPACE_BEFORE.sub(r"\1", " ".join(tokens))


def budget(text: str, *, rate: float = 0.3, min_targets: int = 1, max_targets: int = 10, min_char: int = 4,
           stopwords: Collection[str] = ()) -> int:
    """Eq. MBTSAD (III-B1): n_target = min(eligible, clip(ceil(rate n), min_targets, max_targets)), the number of words
    that `split` splits in `text`."""
    return plan(text, rate, min_targets, max_targets, min_char, stopwords)[2]


def plan(text: str, rate: float, min_targets: int, max_targets: int, min_char: int,
         stopwords: Collection[str]) -> tuple[list[str], list[int], int]:
    """The tokens of `text`, the indices of those that may be split, and n_target."""
    tokens = tokens_of(text)
    shortest = max(min_char, 3)
    eligible = [i for i, token in enumerate(tokens) if letter_count(token) >= shortest and token not in stopwords]
    return tokens, eligible, min(len(eligible), max(min_targets, min(max_targets, math.ceil(rate * len(tokens)))))
