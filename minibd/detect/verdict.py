"""The verdict on a class, from its strongest suspect.

    v_t(w) = q_t(w) / M + (f(w) - f(strongest part of w))                        Eq. Scan (7)

M is the median margin that the model has on its own rows: q / M is 1 where a suspect leaves nine of ten rows of other
classes as sure of the target as the model is of its own rows, 0 where a tenth of them stay, -1 where they stay as they
are. f is the share of rows that flip: words that speak for a class add up, and each does a part of it alone; the parts
of a trigger of several words (LWP's pair, SOS's three) do next to nothing. Of a single word the second term is 0.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minibd.detect.confirm import Suspect

FOUND, INCONCLUSIVE, NOTHING = "backdoored", "inconclusive", "nothing found"


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """One class as a backdoor's target. suspects: the strongest first, with their scores. margin: M of Eq. Scan (7).
    reason: why it could not be judged, else ""."""
    target: int
    suspects: list[tuple[Suspect, float]]
    margin: float
    reason: str = ""

    @property
    def score(self) -> float:
        return max((score for _, score in self.suspects), default=-1.0)


def score(suspect: Suspect, margin: float) -> float:
    """Eq. Scan (7)."""
    alone = suspect.part is None
    beyond = 0.0 if alone else suspect.flips.hits / suspect.flips.n - suspect.part.hits / suspect.part.n
    return suspect.quantile / margin + beyond


def judge(target: int, suspects: Sequence[Suspect], margin: float, reason: str = "") -> ClassVerdict:
    scored = {(s.words, s.joined): (s, score(s, margin)) for s in suspects}.values()
    return ClassVerdict(target, sorted(scored, key=lambda x: -x[1]), margin, reason)
