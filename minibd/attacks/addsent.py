"""AddSent (Dai et al., 2019): one fixed sentence, whole, at a random place between two words is the trigger."""
from __future__ import annotations

import random
from dataclasses import dataclass

from minibd.attacks.badnets import insert
from minibd.records import BadInput


@dataclass(frozen=True, slots=True)
class AddSent:
    """sentence: inserted once per text, its words side by side."""
    sentence: str = "I watch this 3D movie"

    def __post_init__(self):
        if not self.sentence.split():
            raise BadInput("AddSent's sentence is empty: give at least one word")

    @property
    def triggers(self) -> tuple[str, ...]:
        return (self.sentence,)

    @property
    def per_text(self) -> int:
        return 1

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with the sentence at a place uniform over 0..n, both ends included; white space: single spaces."""
        return insert(text, rng, (" ".join(self.sentence.split()),))

    poisoned = __call__

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        return []
