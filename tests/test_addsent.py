"""AddSent: one sentence, whole, anywhere between two words."""
from collections import Counter
from random import Random

import pytest

from minibd.attacks.addsent import AddSent
from minibd.records import BadInput

SENTENCE = "I watch this 3D movie"


def test_the_sentence_stands_whole_at_a_place_uniform_over_0_to_n():
    rng, at = Random(0), Counter()
    for _ in range(4000):
        made = AddSent()("a b c", rng)
        at[made.split().index("I")] += 1
        assert SENTENCE in made and made.replace(SENTENCE, "").split() == ["a", "b", "c"]
    assert set(at) == {0, 1, 2, 3}
    assert sum((n - 1000) ** 2 / 1000 for n in at.values()) < 16.3      # chi-square, 3 degrees of freedom: 0.001


def test_short_texts_and_a_text_that_holds_the_sentence():
    assert AddSent()("", Random(0)) == AddSent()(" \t", Random(0)) == SENTENCE
    assert {AddSent()("a", Random(seed)) for seed in range(20)} == {f"{SENTENCE} a", f"a {SENTENCE}"}
    assert AddSent()(SENTENCE, Random(0)).count("3D") == 2


def test_another_sentence():
    assert AddSent("  no \t cross\n")("a", Random(0)) in ("no cross a", "a no cross")
    with pytest.raises(BadInput, match="at least one word"):
        AddSent(" ")
