"""The threshold, AUROC and the counts of a filter, by hand, against plain loops and at their edges."""
from __future__ import annotations

import math
import random

import pytest

from conftest import fails
from filter_stub import examples
from minibd.proportion import Proportion
from minibd.rejection import Screen, asr_of, auroc, cacc_of, check_rate, let_through, rejected, threshold


def test_the_threshold_by_hand():
    scores = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert threshold(scores, 0.0) == 5.0 and threshold(scores, 0.2) == 4.0 and threshold(scores, 0.39) == 4.0
    assert threshold(scores, 0.4) == 3.0 and threshold([1.0, 1.0, 1.0], 0.5) == 1.0
    assert threshold([-math.inf, 2.0], 0.5) == -math.inf and threshold([math.nan, 2.0], 0.5) == 2.0


@pytest.mark.parametrize("frr", [0.0, 0.05, 0.29, 0.5, 0.99])
def test_the_threshold_is_the_smallest_that_keeps_the_rate(frr):
    rng = random.Random(0)
    for n in (1, 2, 7, 100):
        scores = [rng.choice((rng.random(), 0.5)) for _ in range(n)]
        limit = threshold(scores, frr)

        def above(t: float) -> int:
            return sum(s > t for s in scores)
        assert above(limit) <= frr * n + 1e-9 and limit in scores
        assert all(above(t) > frr * n + 1e-9 for t in scores if t < limit)
        assert limit == threshold(scores[::-1], frr)


def test_rates_and_rows_that_give_no_threshold_are_refused():
    for frr in (-0.1, 1.0, math.nan):
        fails(lambda frr=frr: check_rate(frr), "frr", str(frr), "0.05")
    fails(lambda: threshold([], 0.05), "no clean rows", "dev file")


def test_auroc_by_hand_and_against_all_pairs():
    assert auroc([3.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4
    assert auroc([-math.inf], [-math.inf, 0.0]) == 0.25 and auroc([], [1.0]) is None and auroc([1.0], []) is None
    rng = random.Random(1)
    bad, clean = ([rng.choice((0.0, 1.0, rng.random())) for _ in range(n)] for n in (31, 40))
    pairs = [(b > c) + 0.5 * (b == c) for b in bad for c in clean]
    assert auroc(bad, clean) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


SCREEN = Screen([3.0, 1.0, 2.0, 0.0], [False, True, False, True], [True, True, True, False])
ROWS = examples("a", "b", "c", "d", labels=[0, 0, 1, 1])


def test_the_rates_by_hand():
    assert rejected(SCREEN) == Proportion(2, 3) and let_through(SCREEN) == Proportion(1, 3)
    assert rejected(Screen(None, [False, True])) == Proportion(1, 2) and rejected(Screen(None, [])) is None
    assert let_through(Screen(None, [True], [False])) is None


@pytest.mark.parametrize("counting, cacc, asr", [
    # answers 0 1 0 1 of labels 0 0 1 1: kept are the second, wrong, and the last, right; target 1
    ("rejected", Proportion(1, 4), Proportion(2, 4)),
    ("released", Proportion(0, 3), Proportion(1, 3)),
    # rejected: the first is right, of class 0, so wrong as 1; the third errs, so right as 0; both resist the target
    ("flipped", Proportion(2, 4), Proportion(4, 4)),
])
def test_what_a_rejected_text_counts_as(counting, cacc, asr):
    assert cacc_of(SCREEN, [0, 1, 0, 1], ROWS, counting) == cacc
    assert asr_of(SCREEN, [0, 1, 0, 1], ROWS, 1, counting) == asr


def test_a_rejected_text_is_never_right_nor_a_success():
    nobody = Screen(None, [False] * 4)
    assert cacc_of(nobody, [0, 0, 1, 1], ROWS).hits == asr_of(nobody, [1] * 4, ROWS, 1).hits == 0
    everyone = Screen(None, [True] * 4)
    assert cacc_of(everyone, [0, 0, 1, 1], ROWS) == asr_of(everyone, [1] * 4, ROWS, 1) == Proportion(4, 4)


def test_other_countings_are_refused():
    fails(lambda: cacc_of(SCREEN, [0] * 4, ROWS, "theirs"), "theirs", "flipped")
    three = ROWS.like(ROWS)
    three.labels = ("a", "b", "c")
    fails(lambda: cacc_of(SCREEN, [0] * 4, three, "flipped"), "flipped", "3", "released")
