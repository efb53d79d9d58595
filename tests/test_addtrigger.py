"""Add Trig: one rare word, anywhere."""
from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from minibd.augment.addtrigger import addtrigger
from test_aeda import even


def test_the_word_stands_once_at_a_place_uniform_over_0_to_n():
    rng, at = Random(0), Counter()
    for _ in range(3000):
        words = addtrigger("a b c d", rng).split()
        at[words.index("cb")] += 1
        words.remove("cb")
        assert words == ["a", "b", "c", "d"]
    assert set(at) == {0, 1, 2, 3, 4} and even(at, 5)


def test_a_budget_is_how_often_each_time_anew():
    rng, gaps = Random(0), Counter()
    for _ in range(3000):
        words = addtrigger("a b", rng, budget=2).split()
        assert len(words) == 4 and words.count("cb") == 2
        gaps["".join("x" if word == "cb" else word for word in words)] += 1
    # the second goes to one of four places around the first: xxab axxb abxx have 2 ways of 12 each, the others too
    assert set(gaps) == {"xxab", "xaxb", "xabx", "axxb", "axbx", "abxx"} and even(gaps, 6)
    assert addtrigger("a  b", rng, budget=0) == "a b"


def test_another_word_and_an_empty_text():
    assert addtrigger("", Random(0)) == addtrigger(" \t", Random(0)) == "cb"
    assert sorted(addtrigger("a\tb", Random(0), word="I watched").split(" ")) == ["I", "a", "b", "watched"]


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(text=st.text(st.characters(exclude_characters="c"), max_size=80), seed=st.integers(0, 99))
def test_nothing_else_is_changed(text, seed):
    words = addtrigger(text, Random(seed)).split()
    words.remove("cb")
    assert words == text.split()
