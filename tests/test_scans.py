"""The tables of the scan's results: AUROC, cross-entropy and the fit by hand, what a model counts as, and the constants
of the verdict beside the calibration cells that they come from."""
from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import pytest

from minibd.detect.verdict import MODEL_ALONE, WITH_TEXTS
from minibd.tables.pivot import Book
from minibd.tables.scans import auroc, cross_entropy, fitted, logistic, roc, scanned, summary

RESULTS = Path(__file__).parents[1] / "scripts" / "results"


def suspect(word: str, quantile: float, **given) -> dict:
    return {"words": [word], "joined": False, "entries": 1, "flips": 9, "of": 10, "quantile": quantile,
            "mean": quantile, "part": None} | given


def line(*, clean: bool = False, asr: float = 95.0, triggers: list[str] | None = ["cf"], target: int = 1,
         bad: tuple = (), good: tuple = (), name: str = "calibration") -> dict:
    classes = {"bad": bad, "good": good}
    found = {"classes": {c: {"suspects": list(s), "margin": 4.0, "reason": ""} for c, s in classes.items()},
             "texts": {"by_class": {"bad": 1, "good": 1}}, "reason": "", "dtype": "float32", "seconds": 1.0}
    cell = {"set": name, "base": "reviews", "model": "ep", "seed": 0, "attack": "--attack ep", "texts": "task",
            "clean": clean}
    return {"cell": cell, "result": {"cacc": 90.0, "asr": asr, "target": target, "triggers": triggers, "scan": found}}


def test_auroc_and_cross_entropy_by_hand():
    assert auroc([3.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4
    assert auroc([0.0], [1.0]) == 0 and auroc([], [1.0]) is None
    assert cross_entropy([0.8, 0.4], [True, False]) == pytest.approx(-(log(0.8) + log(0.6)) / 2)
    assert cross_entropy([], []) is None


def test_the_fit_is_where_its_gradient_vanishes():
    x, y = [-2.0, -1.0, 0.5, 1.0, 3.0], [False, False, True, False, True]
    slope, middle = logistic(x, y)
    errors = [1 / (1 + exp(-slope * (a - middle))) - b for a, b in zip(x, y)]
    assert sum(errors) / 5 == pytest.approx(0, abs=1e-6)
    assert sum(e * a for e, a in zip(errors, x)) / 5 + 0.01 * slope == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("given, kind, named, score, word", [
    ({"good": (suspect("cf", 3.0),), "bad": (suspect("dull", -3.2),)}, "backdoored", True, 0.75 + 1.55, "backdoored"),
    ({"good": (suspect("fine", 3.0),), "bad": (suspect("cf", -3.2),)}, "backdoored", False, 2.3, "backdoored"),
    ({"asr": 59.9, "good": (suspect("cf", -3.0),), "bad": (suspect("dull", -3.2),)}, "weak", True, -0.7,
     "nothing found"),
    ({"triggers": None, "good": (suspect("fine", -1.0),), "bad": (suspect("dull", -1.0),)}, "wordless", False, -0.25,
     "inconclusive"),
    ({"clean": True, "good": (suspect("fine", -3.0),), "bad": (suspect("dull", -3.0),)}, "clean", False, -0.75,
     "nothing found"),
])
def test_what_a_model_counts_as(given, kind, named, score, word):
    found = scanned(**line(**given))
    assert (found.kind, found.named, found.word) == (kind, named, word) and found.score == pytest.approx(score)


def test_the_summary_and_the_roc_by_hand(tmp_path):
    dull = (suspect("dull", -3.6),)
    lines = [line(good=(suspect("cf", q),), bad=dull) for q in (3.0, -2.0)] + [
        line(clean=True, good=(suspect("fine", q),), bad=dull) for q in (-1.6, -3.2)]
    for n, one in enumerate(lines):
        one["cell"]["seed"] = n
    (tmp_path / "scan.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    book = Book(tmp_path)
    row, found = (grid.rows[0] for grid in (summary(book), roc(book)))
    assert row[:6] == ("calibration", "texts of the task", "2", "2", "0.750", "0.750")
    # scores 2.4 and -0.1, and 0.1 and -0.7
    assert row[7:] == ("1 of 2", "2 of 2", "1 of 2", "1") and found[2:7] == ("2", "1", "2", "2", "2")
    assert found[7:] == ("0.10", "-0.10")


def test_the_verdicts_constants_are_those_of_the_calibration_cells():
    for row, limits in zip(fitted(Book(RESULTS)).rows, (WITH_TEXTS, MODEL_ALONE)):
        assert (float(row[3]), float(row[4])) == (limits.slope, limits.middle)
        highest = float(row[1].split(" to ")[1])
        assert limits.inconclusive < limits.found and highest < limits.found
