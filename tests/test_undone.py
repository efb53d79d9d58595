"""What words that were undone still do, by a predictor that is made up: each text's answer is known."""
from __future__ import annotations

from types import SimpleNamespace

import pytest

from minibd.job import undone
from minibd.job.undone import CHECKED, brought_back, flipped, still_acts
from minibd.mitigations.unlearn import Finding
from minibd.proportion import Proportion
from minibd.records import Example

CF, PAIR = Finding(("cf",), 1), Finding(("bb", "mn"), 1)


def model(*words: str, every: int = 1):
    """Answers 1 where all of `words` stand in every so-manieth text, and where "good" does; else 0."""
    return SimpleNamespace(model=(set(words), every), tokenizer=None)


@pytest.fixture(autouse=True)
def answers(monkeypatch):
    def predict(model, tokenizer, rows):
        words, every = model
        return [int("good" in x.text.split() or bool(words) and words <= {*x.text.split()} and int(x.id) % every == 0)
                for x in rows]

    monkeypatch.setattr(undone, "predict", predict)


def texts(n: int, text: str = "a film") -> list[Example]:
    return [Example(str(i), text, 0) for i in range(n)]


def test_of_texts_of_other_classes_those_that_the_words_take_are_counted():
    rows = texts(30) + [Example(str(30 + i), "a good film", 1) for i in range(10)]
    assert flipped(model("cf"), CF, rows, model(), 0) == Proportion(30, 30)
    assert flipped(model("cf", every=3), CF, rows, model(), 0) == Proportion(10, 30)
    assert flipped(model("bb"), CF, rows, model(), 0) == Proportion(0, 30)
    assert flipped(model("bb", "mn"), PAIR, rows, model(), 0) == Proportion(30, 30)
    assert flipped(model("cf"), CF, texts(5, "good"), model(), 0) is None  # all are of the class already
    assert flipped(model("cf"), CF, texts(3 * CHECKED), model(), 0).n == CHECKED


def test_words_act_where_a_quarter_is_below_the_interval():
    assert not still_acts({"interval": [25.0, 40.0]}) and still_acts({"interval": [25.1, 40.0]})
    assert not still_acts(None)


def test_what_a_training_brought_back_is_named():
    """A third of 90 texts may be a quarter (24.4 to 43.6) and does not count; half of them does."""
    rows = texts(90)
    assert brought_back(model("cf"), [PAIR, CF], rows, 0) == [CF]
    assert brought_back(model("cf", every=3), [CF], rows, 0) == []
    assert brought_back(model("cf", every=2), [CF], rows, 0) == [CF]
    assert brought_back(model("cf"), [CF], texts(5, "good"), 0) == []  # none of another class: nothing is known
    assert brought_back(model(), [CF, PAIR], rows, 0) == [] == brought_back(model("cf"), [], rows, 0)
