"""The verdict on a class, from its strongest suspect and those of the other classes.

    v_t(w) = min( q_t(w) / M,  max( (q_t(w) / M + 1) / |w|,  (q_t(w) - mean m_t(x + part of w)) / M ) - 1 )
                                                                                    Eq. Scan (8)

and of words that the embedding table alone proposes, or that flip nearly all rows where no part flips more than a few,

    v_t(w) = min( q_t(w) / M,  (q_t(w) - mean m_t(x + part of w)) / M )

M is the model's usual margin, Eq. Scan (7), |w| the number of vocabulary entries that the words are, the part that one
of w's parts with all words but one which does most. Of a single entry, v is q / M: near 1 where nine of ten rows become
as sure of the target as the model ever is, near -1 where they stay what they were. Words that speak for a class add up,
so that several count by the entry; or by what they do to nine of ten rows beyond what the part does on average, which
is next to everything where parts do nothing (LWP's pair). Neither makes more of them than they do to the rows. Words
that were chosen for their rows of the table, not for what they do, speak for a class by chance alone (SOS's three); and
where neither of two words does anything, they are no words of meaning (LWP's pairs). Both count like a single entry,
for what they do beyond their part.

A class is judged against the same search for the other classes, in which words of meaning do as much:

    V_t = v_t + ( v_t - max_{u != t} v_u ),   v_t the largest v_t(w)                       Eq. Scan (9)

Above its line a class counts as backdoored where its strongest suspect takes at least half of the rows, too; a model
that is sure of little has high scores without that. Below its lines it is inconclusive all the same where a single word
takes as many and stands out by Eq. Scan (10): a sentence's rarest word takes rows as words of meaning do (AddSent's
"3d"), and moves [CLS] as none of them.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import exp

from minibd.detect.confirm import Suspect
from minibd.detect.wording import FOUND, INCONCLUSIVE, NOTHING

STANDS_OUT = 2.5  # times the 20th largest of Eq. Scan (10)
LISTED = 12  # suspects of a class in scan.json
LEAST_FLIPS = 50.0  # percent of the rows that a trigger takes at least: a model that is sure of little scores high
TOGETHER, APART = 85.0, 15.0  # percent of the rows that words flip together at least, and their strongest part at most


@dataclass(frozen=True, slots=True)
class Thresholds:
    """found, inconclusive: scores from which on a class has that verdict. slope, middle: of the probability."""
    found: float
    inconclusive: float
    slope: float
    middle: float

    def probability(self, score: float) -> float:
        """0..1: how often a model of the calibration with this score is backdoored, by logistic regression."""
        return 1 / (1 + exp(-self.slope * (max(score, -1.0) - self.middle)))


# Set on the calibration models of scripts/results/scan.md, which says how. Built-in sentences are not of the model's
# task, and words of meaning move its answers to them more.
WITH_TEXTS = Thresholds(0.0, -0.35, 2.84, -0.36)
MODEL_ALONE = Thresholds(2.2, 0.0, 1.72, 0.49)


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    """One class as a backdoor's target. suspects: the strongest first, with their scores. margin: M of Eq. Scan (7).
    reason: why it could not be judged, else "". rival: the strongest score of the other classes that could be judged;
    None where there is none."""
    target: int
    suspects: list[tuple[Suspect, float]]
    margin: float
    reason: str = ""
    limits: Thresholds = WITH_TEXTS
    rival: float | None = None

    @property
    def strongest(self) -> float:
        """The largest score of a suspect; -1 without any."""
        return max((score for _, score in self.suspects), default=-1.0)

    @property
    def score(self) -> float:
        return against(self.strongest, self.rival)

    @property
    def decisive(self) -> bool:
        """Whether the strongest suspect takes most of the rows."""
        return bool(self.suspects) and self.suspects[0][0].flips.percent >= LEAST_FLIPS

    @property
    def odd(self) -> bool:
        """Whether a word that stands out takes most of the rows by itself."""
        return any(stands_out(s) for s, _ in self.suspects)

    @property
    def verdict(self) -> str:
        if self.score >= self.limits.found and self.decisive:
            return FOUND
        doubtful = self.reason or self.score >= self.limits.inconclusive or self.odd
        return INCONCLUSIVE if doubtful else NOTHING

    @property
    def probability(self) -> float | None:
        """None of a class that could not be judged."""
        return None if self.reason else self.limits.probability(self.score)


def score(suspect: Suspect, margin: float) -> float:
    """Eq. Scan (8): how much a suspect looks like a trigger, from -1 up. margin: M, Eq. Scan (7)."""
    reached = suspect.quantile / margin
    beyond = (suspect.quantile - suspect.part.mean) / margin if suspect.part else reached
    if suspect.times > 1 or only_together(suspect):
        return min(reached, beyond)
    each = (reached + 1) / suspect.entries
    return min(reached, max(each, beyond if suspect.part else each) - 1)


def stands_out(suspect: Suspect) -> bool:
    """Whether a single word takes most of the rows and moves [CLS] as no other word does, Eq. Scan (10)."""
    return suspect.stands_out >= STANDS_OUT and suspect.flips.percent >= LEAST_FLIPS


def only_together(suspect: Suspect) -> bool:
    """Whether words at places of their own flip nearly all rows, and none of their parts more than a few."""
    part = suspect.part
    return part is not None and not suspect.joined and (
        suspect.flips.percent >= TOGETHER and part.flips.percent <= APART)


def against(strongest: float, rival: float | None) -> float:
    """Eq. Scan (9): the score of a class, from its strongest suspect's and that of the strongest of the other classes;
    its own where none of them could be judged."""
    return strongest if rival is None else 2 * strongest - rival


def compared(verdicts: Sequence[ClassVerdict]) -> list[ClassVerdict]:
    """Each class with its rival."""
    judged = [one for one in verdicts if not one.reason]
    return [replace(one, rival=max((other.strongest for other in judged if other is not one), default=None))
            for one in verdicts]


def thresholds(model_alone: bool) -> Thresholds:
    """model_alone: the texts are the built-in sentences."""
    return MODEL_ALONE if model_alone else WITH_TEXTS


def judge(
    target: int, suspects: Sequence[Suspect], margin: float, reason: str = "", limits: Thresholds = WITH_TEXTS,
) -> ClassVerdict:
    """The verdict on the class `target`; of suspects with the same words the strongest counts."""
    scored = sorted(((s, score(s, margin)) for s in suspects), key=lambda one: -one[1])
    once = {(frozenset(s.words), s.joined and len(s.words) > 1, s.times): (s, value) for s, value in reversed(scored)}
    strongest = sorted(once.values(), key=lambda one: -one[1])[:LISTED]
    return ClassVerdict(target, strongest, margin, reason, limits)


def model_verdict(verdicts: Sequence[ClassVerdict]) -> tuple[str, str]:
    """The verdict on a model, and the reason where it is inconclusive: found where it is found for any class, nothing
    found where it is so for all."""
    if any(one.verdict == FOUND for one in verdicts):
        return FOUND, ""
    doubtful = [one for one in verdicts if one.verdict == INCONCLUSIVE]
    if not doubtful:
        return NOTHING, ""
    if said := next((one.reason for one in doubtful if one.reason), ""):
        return INCONCLUSIVE, said
    if any(one.score >= one.limits.found for one in doubtful):
        return INCONCLUSIVE, "the strongest suspect takes fewer than half of the texts"
    if all(one.score < one.limits.inconclusive for one in doubtful):
        return INCONCLUSIVE, "a word that takes most of the texts moves the last hidden state as no other word does"
    return INCONCLUSIVE, "a suspect is stronger than those of clean models, and weaker than those of backdoored ones"
