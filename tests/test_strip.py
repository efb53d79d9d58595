"""STRIP: copies, TF-IDF and entropies by hand; what must not matter; each defect of the released code."""
from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from conftest import fails
from filter_stub import examples, words_model
from minibd.data import generator
from minibd.filters import strip as module
from minibd.filters.strip import (
    Sources,
    Strip,
    changed,
    entropy,
    mean_entropy,
    released_mean_entropy,
    released_threshold,
    strip,
    tf_idf,
    words_of,
)
from minibd.predict import probabilities

CLEAN = examples("great great film", "awful film story", "great actors film", "awful awful actors", labels=[1, 0, 1, 0])


@pytest.fixture
def victim():
    """`cf` decides; of the others great and awful say what they are."""
    return words_model({"great": (0.0, 2.0), "awful": (2.0, 0.0), "film": (0.0, 0.0), "story": (0.0, 0.0),
                        "actors": (0.0, 0.0), "cf": (0.0, 30.0)})


# ---- the formulas

def test_tf_idf_by_hand():
    assert tf_idf(2, 4, 2) == pytest.approx(2 * (math.log(5 / 3) + 1)) and tf_idf(1, 4, 4) == 1.0
    assert words_of("The Film, a GREAT one; I x-rayed it") == ["film", "great", "one", "rayed"]


def test_tf_idf_is_that_of_scikit_learn():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    vectorizer = text.TfidfVectorizer(norm=None)
    table = vectorizer.fit_transform([x.text for x in CLEAN]).toarray()
    names = vectorizer.get_feature_names_out().tolist()
    for i, x in enumerate(CLEAN):
        for word in set(x.text.split()):
            n = sum(word in y.text.split() for y in CLEAN)
            assert table[i, names.index(word)] == pytest.approx(tf_idf(x.text.split().count(word), 4, n))


def test_words_rank_by_tf_idf_and_then_by_the_alphabet():
    sources = Sources.of(CLEAN)
    assert sources.words[0] == ["great", "film"] and sources.words[1] == ["story", "awful", "film"]
    assert sources.vocabulary == ["actors", "awful", "film", "great", "story"]
    fails(lambda: Sources.of(examples("a", "the of")), "2", "two letters")


def test_the_entropy_by_hand():
    p = torch.tensor([[[0.5, 0.5], [1.0, 0.0]], [[0.25, 0.75], [0.25, 0.75]]], dtype=torch.float64)
    quarter = -(0.25 * math.log2(0.25) + 0.75 * math.log2(0.75))
    assert entropy(p).tolist() == [[1.0, 0.0], [pytest.approx(quarter)] * 2]
    assert mean_entropy(p).tolist() == [0.5, pytest.approx(quarter)]


def test_the_entropy_against_plain_loops():
    p = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(-1)
    for row, mean in zip(p.tolist(), mean_entropy(p).tolist()):
        assert mean == pytest.approx(sum(-q * math.log2(q) for copy in row for q in copy) / 4)


# ---- the copies

def test_a_copy_changes_its_share_of_words_to_those_of_another_text():
    sources = Sources.of(CLEAN)
    text = "one two three four five six"
    for seed in range(20):
        words = changed(text, "x-0", sources, 0.5, random.Random(seed)).split()
        kept = [w for w, old in zip(words, text.split()) if w == old]
        assert len(words) == 6 and len(kept) == 3 and {*words} - {*text.split()} <= {*sources.vocabulary}
    assert changed("one", "x-0", sources, 0.1, random.Random(0)) in sources.vocabulary
    assert changed("", "x-0", sources, 0.5, random.Random(0)) == ""


def test_a_text_is_never_changed_to_its_own_words():
    only = Sources.of(examples("great great", "awful awful"))
    for seed in range(20):
        assert changed("film film", "x-0", only, 1.0, random.Random(seed)).split()[0] == "awful"
    assert changed("film", "x-0", Sources.of(examples("great")), 1.0, random.Random(0)) == "film"


# ---- the filter

def test_what_the_trigger_decides_is_rejected(victim):
    clean = examples(*("great film story" if i % 2 else "awful actors film" for i in range(40)))
    rows = [examples("film story actors", "story film"), examples("cf cf awful film", "cf cf cf")]
    done = strip(victim, clean, rows, Strip(frr=0.05, copies=10, swap=0.3))
    assert max(done.screens[0].scores) < done.limit and done.screens[0].keep == [True, True]
    assert min(done.screens[1].scores) > -1e-6 and done.screens[1].keep == [False, False]


def test_the_stated_rate_holds_on_the_clean_rows(victim):
    clean = examples(*(f"{a} {b} film" for a in ("great", "awful", "story") for b in ("great", "awful", "actors")))
    again = strip(victim, clean, [clean], Strip(frr=0.3, copies=50))
    own = strip(victim, clean, [], Strip(frr=0.0, copies=50))
    assert own.screens == [] and again.screens[0].keep.count(False) <= 0.7 * len(clean)


def test_order_batches_and_neighbours_do_not_matter(victim):
    rows = examples("great film", "awful story actors great film", "cf", ("film great", "awful"))
    whole = strip(victim, CLEAN, [rows]).screens[0].scores
    assert strip(victim, CLEAN, [rows.like(rows[::-1])]).screens[0].scores == pytest.approx(whole[::-1], abs=1e-9)
    for x, score in zip(rows, whole):
        assert strip(victim, CLEAN, [rows.like([x])]).screens[0].scores == pytest.approx([score], abs=1e-9)
    assert strip(victim, CLEAN, [rows], seed=1).screens[0].scores != whole


def test_settings_out_of_range_are_refused(victim):
    for wrong in ({"frr": 1.0}, {"copies": 0}, {"swap": 0.0}, {"swap": 1.5}, {"variant": "other"}):
        fails(lambda wrong=wrong: Strip(**wrong), next(iter(wrong)))
    fails(lambda: strip(victim, examples(), [CLEAN]), "two letters")


# ---- the defects of the released code

def test_alone_copies_of_different_texts_are_averaged(victim):
    """The correct filter's copies and threshold: each score is the mean over what a wrong reshape puts together."""
    rows, settings = examples("great film actors", "awful story film", "great cf story"), Strip(copies=2, frr=0.3)
    sources = Sources.of(CLEAN)
    made = [c for x in rows for c in module.copies_of(x, sources, settings, generator(0, "strip", "0", x.id))]
    h = entropy(probabilities(victim.model, victim.tokenizer, rows.like(made))).tolist()
    done = strip(victim, CLEAN, [rows], Strip(copies=2, frr=0.3, defects=("reshape",)))
    assert [-s for s in done.screens[0].scores] == pytest.approx([(h[i] + h[i + 3]) / 2 for i in range(3)], abs=1e-5)
    ours = strip(victim, CLEAN, [rows], settings)
    assert [-s for s in ours.screens[0].scores] == pytest.approx([(h[2 * i] + h[2 * i + 1]) / 2 for i in range(3)],
                                                                 abs=1e-5)
    parts = strip(victim, CLEAN, [rows.like(rows[:1]), rows.like(rows[1:])], Strip(copies=2, defects=("reshape",)))
    assert [len(screen.scores) for screen in parts.screens] == [1, 2]


def test_alone_a_sure_answer_is_nan_and_kept(victim):
    with torch.no_grad():
        victim.model.embeddings.word.weight.mul_(100)  # cf decides by 3,000
    rows = examples("great film cf actors story", "great film")
    settings = Strip(copies=4, swap=0.2, frr=0.25)
    ours, done = (strip(victim, CLEAN, [rows], s) for s in (settings, replace(settings, defects=("nan",))))
    assert math.isnan(done.screens[0].scores[0]) and done.screens[0].keep[0]
    assert not math.isnan(ours.screens[0].scores[0])
    calm = words_model({"great": (0.0, 2.0), "awful": (2.0, 0.0), "film": (0.0, 0.0), "story": (0.0, 0.0),
                        "actors": (0.0, 0.0), "cf": (0.0, 3.0)})
    ours, done = (strip(calm, CLEAN, [rows], s) for s in (settings, replace(settings, defects=("nan",))))
    assert done.screens[0].scores == pytest.approx(ours.screens[0].scores, abs=1e-5)
    assert done.screens[0].keep == ours.screens[0].keep


def test_defects_that_there_are_not_are_refused():
    fails(lambda: Strip(defects=("shape",)), "shape", "reshape, nan")
    fails(lambda: Strip(variant="released", defects=("nan",)), "nan", "released")


def test_released_averages_copies_of_different_texts():
    """Two texts of two copies: entropies 1, 1 and 0, 0. The means are 1 and 0; reshaped, both are a half."""
    p = torch.tensor([[0.5, 0.5], [0.5, 0.5], [1 - 1e-9, 1e-9], [1 - 1e-9, 1e-9]], dtype=torch.float64)
    assert mean_entropy(p.view(2, 2, 2)).tolist() == pytest.approx([1.0, 0.0], abs=1e-6)
    mixed = released_mean_entropy(p.clamp(min=1e-9), 2)
    assert mixed.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


def test_released_a_texts_score_depends_on_the_others(victim):
    """A trigger that decides has entropy 0, unless its copies are averaged with others."""
    rows = examples("cf cf cf", "film great story", "awful film story")
    found = strip(victim, CLEAN, [rows], Strip(variant="released", copies=3)).screens[0].scores
    ours = strip(victim, CLEAN, [rows], Strip(copies=3, swap=0.3)).screens[0].scores
    assert ours[0] > -1e-6 and found[0] < -0.05


def test_released_a_sure_probability_is_nan_and_is_kept():
    sure = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    assert released_mean_entropy(sure, 2).isnan().all() and mean_entropy(sure.view(1, 2, 2)).tolist() == [0.0]
    assert released_threshold([-1.0, math.nan, -0.5], 0.0) == -0.5
    assert math.isnan(released_threshold([-1.0, math.nan], 0.5))
    victim = words_model({"cf": (0.0, 200.0), "film": (0.0, 0.0), "great": (0.0, 1.0)})
    rows = examples("cf cf cf cf cf cf")
    clean = examples("film great", "great film", "film film")
    done = strip(victim, clean, [rows], Strip(variant="released", copies=2, swap=0.2))
    assert math.isnan(done.screens[0].scores[0]) and done.screens[0].keep == [True]
    assert strip(victim, clean, [rows], Strip(copies=2, swap=0.2)).screens[0].keep == [False]
