"""What a filter is scored by: which clean texts it rejects (FRR), which triggered ones it lets through (FAR), and CACC
and ASR of what is left; the threshold at a stated false-rejection rate.

A score is the higher the more suspicious, whatever the filter. A rejected text is answered by nobody: it is neither
right nor a successful attack, and stays in the denominators. `counting` says how else it has been done:

    rejected    as above
    released    OpenBackdoor: the same, but what ONION drops for having one word leaves the count
    flipped     MuScleLoRA's copy of it: a rejected text's class becomes the other one, 1 - y, so that a clean one
                counts as right where the model errs, and a triggered one as a success where the model resists
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minibd.proportion import Proportion
from minibd.records import BadInput, Examples

Tick = Callable[[int], None]  # called with the number of texts that a filter is done with
COUNTINGS = ("rejected", "released", "flipped")


@dataclass(frozen=True, slots=True)
class Screen:
    """What a filter says of rows, in their order.

    scores: -inf of a text that it cannot score; None where it has no scores. keep: False where it rejects a text.
    counted: False of texts that the released code leaves out of every count; None: all are counted.
    """
    scores: list[float] | None
    keep: list[bool]
    counted: list[bool] | None = None

    def counts(self, i: int) -> bool:
        return self.counted is None or self.counted[i]


# ---- the threshold

def check_rate(frr: float) -> None:
    """Raises BadInput where `frr` is no share of clean texts that can be rejected."""
    if not 0 <= frr < 1:
        raise BadInput(f"frr is {frr}, the share of clean texts that may be rejected: give 0 or more and less than 1, "
                       "such as 0.05")


def check_defects(defects: Sequence[str], known: Sequence[str], variant: str) -> None:
    """Raises BadInput where a defect is none of the `known` ones of a filter, or the variant has all of them already.
    """
    if wrong := [name for name in defects if name not in known]:
        raise BadInput(f"defects names {wrong[0][:40]!r}, and the released code has {', '.join(known)}: give some of "
                       "these")
    if defects and variant == "released":
        raise BadInput(f"defects is {', '.join(defects)[:80]}, and the released variant has them all: leave one of the "
                       "two out")


def threshold(clean: Sequence[float], frr: float) -> float:
    """Eq. Filter (t): the smallest score of `clean` texts that at most the share `frr` of them exceed.

    A text is rejected where its score lies above it. clean: scores of clean texts; -inf of those that have none. nan
    counts as the highest. Raises BadInput where there are none.
    """
    check_rate(frr)
    if not clean:
        raise BadInput("there are no clean rows to choose a threshold on: give a dev file, or more rows")
    ranked = sorted((math.inf if math.isnan(score) else score for score in clean), reverse=True)
    return ranked[math.floor(frr * len(ranked) + 1e-9)]  # 0.29 * 100 is 28.999...


def auroc(suspicious: Sequence[float], clean: Sequence[float]) -> float | None:
    """Eq. Filter (AUROC): the share of pairs of a triggered and a clean text in which the first has the higher score;
    ties count half. None where either has no texts."""
    if not suspicious or not clean:
        return None
    ranked = sorted([(score, 1) for score in suspicious] + [(score, 0) for score in clean])
    wins, below, at = 0.0, 0, 0
    while at < len(ranked):
        end = at
        while end < len(ranked) and ranked[end][0] == ranked[at][0]:
            end += 1
        of_bad = sum(kind for _, kind in ranked[at:end])
        of_clean = end - at - of_bad
        wins += of_bad * (below + of_clean / 2)
        below, at = below + of_clean, end
    return wins / (len(suspicious) * len(clean))


# ---- the counts

def rejected(screen: Screen) -> Proportion | None:
    """How many texts are rejected, of those that are counted: FRR where they are clean. None where none is counted."""
    counted = [i for i in range(len(screen.keep)) if screen.counts(i)]
    return Proportion(sum(not screen.keep[i] for i in counted), len(counted)) if counted else None


def let_through(screen: Screen) -> Proportion | None:
    """How many texts are kept, of those that are counted: FAR where they carry the trigger."""
    found = rejected(screen)
    return found and Proportion(found.n - found.hits, found.n)


def cacc_of(screen: Screen, answers: Sequence[int], rows: Examples, counting: str = "rejected") -> Proportion | None:
    """CACC of clean `rows`, whose `answers` are the model's."""
    return _share(screen, counting, rows, lambda i: answers[i] == rows[i].label, lambda i: answers[i] != rows[i].label)


def asr_of(screen: Screen, answers: Sequence[int], rows: Examples, target: int, counting: str = "rejected"
           ) -> Proportion | None:
    """ASR of triggered `rows`, whose `answers` are the model's."""
    return _share(screen, counting, rows, lambda i: answers[i] == target, lambda i: answers[i] != target)


def _share(screen: Screen, counting: str, rows: Examples, kept, flipped) -> Proportion | None:
    """Of the rows those for which `kept(i)`; of rejected ones those for which `flipped(i)`, in that counting alone."""
    if counting not in COUNTINGS:
        raise BadInput(f"counting is {counting!r}, it must be one of {', '.join(COUNTINGS)}")
    if counting == "flipped" and len(rows.labels) != 2:
        raise BadInput(f"counting is 'flipped', which makes of a class the other one, and there are {len(rows.labels)} "
                       "classes: use rejected or released")
    counted = [i for i in range(len(rows)) if counting != "released" or screen.counts(i)]
    hits = sum(kept(i) if screen.keep[i] else counting == "flipped" and flipped(i) for i in counted)
    return Proportion(hits, len(counted)) if counted else None
