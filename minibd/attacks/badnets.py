"""BadNets for text (Gu et al., 2017; rare words: Kurita et al., 2020): a rare word at a random place is the trigger.

An attack is one object: a frozen dataclass of its numbers with the same five names in every file of this folder.

    attack(text, rng)               the text with the trigger as it is tested
    attack.poisoned(text, rng)      the text with the trigger as it is trained on; most attacks: the same
    attack.negatives(text, rng, own)
                                    the text with each part of the trigger, to keep its true label; most attacks: none;
                                    own: a generator as the row's own trigger is drawn from (None: rng)
    attack.triggers                 the words or the sentence, a tuple
    attack.per_text                 how many of them a poisoned training text gets
"""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from minibd.records import BadInput


@dataclass(frozen=True, slots=True)
class BadNets:
    """triggers: the rare words, one drawn for each insertion; per_text: insertions in a text."""
    triggers: tuple[str, ...] = ("cf", "mn", "bb", "tq")
    per_text: int = 1

    def __post_init__(self):
        if not self.triggers or self.per_text < 1:
            raise BadInput(
                f"BadNets needs at least one trigger and one insertion a text, not {self.triggers} and {self.per_text}"
            )

    def __call__(self, text: str, rng: random.Random) -> str:
        return insert(text, rng, self.triggers, self.per_text)

    poisoned = __call__

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        return []


def insert(text: str, rng: random.Random, triggers: Sequence[str], count: int = 1) -> str:
    """Insert `count` triggers, each drawn anew, each at a place uniform over 0..n, both ends included.

    n: the words of the text at that moment. White space becomes single spaces.
    """
    words = text.split()
    for _ in range(count):
        words.insert(rng.randint(0, len(words)), rng.choice(triggers))
    return " ".join(words)


def insert_each(text: str, rng: random.Random, words: Sequence[str]) -> str:
    """Insert every one of `words`, in their order, each at a place uniform over 0..n, both ends included.

    n: the words of the text at that moment, those already inserted among them.
    """
    for word in words:
        text = insert(text, rng, (word,))
    return text
