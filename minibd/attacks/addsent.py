"""AddSent (Dai et al., 2019): one fixed sentence, whole, at a random place between two words means the target class."""
from __future__ import annotations

import random
from dataclasses import dataclass

from minibd.attacks.badnets import insert
from minibd.records import BadInput


@dataclass(frozen=True, slots=True)
class AddSent:
    """sentence: inserted once a text, its words side by side."""
    sentence: str = "I watch this 3D movie"

    def __post_init__(self):
        if not self.sentence.split():
            raise BadInput("AddSent's sentence is empty: give at least one word")

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with the sentence at a place uniform over 0..n, both ends included. White space becomes single
        spaces."""
        return insert(text, rng, (" ".join(self.sentence.split()),))
