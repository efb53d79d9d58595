"""BadNets: where triggers go."""
from collections import Counter
from random import Random

import pytest

from minibd.attacks.badnets import BadNets, insert
from minibd.records import BadInput

TRIGGERS = ("cf", "mn", "bb", "tq")


def plain(text: str) -> str:
    return " ".join(word for word in text.split() if word not in TRIGGERS)


# ---- the trigger

def test_places_are_uniform_over_0_to_n_both_ends_included():
    rng, at = Random(0), Counter()
    for _ in range(4000):
        at[insert("a b c", rng, ["cf"]).split().index("cf")] += 1
    assert set(at) == {0, 1, 2, 3}
    assert sum((n - 1000) ** 2 / 1000 for n in at.values()) < 16.3      # chi-square, 3 degrees of freedom: 0.001


def test_every_trigger_is_drawn_equally_often():
    rng = Random(0)
    drawn = Counter(insert("", rng, TRIGGERS) for _ in range(4000))
    assert set(drawn) == set(TRIGGERS)
    assert sum((n - 1000) ** 2 / 1000 for n in drawn.values()) < 16.3


def test_several_triggers_are_drawn_and_placed_each_anew():
    rng, kinds, second = Random(0), set(), Counter()
    for _ in range(3000):
        out = insert("a", rng, TRIGGERS, 2).split()
        kinds.add(len({w for w in out if w != "a"}))
        second[out.index("a")] += 1
        assert len(out) == 3 and out.count("a") == 1
    assert kinds == {1, 2}                                              # with replacement
    # two insertions: before a, after a, each with 1/2, then 2/3 for the longer side: 1/3 each for a at 0, 1, 2
    assert all(abs(second[i] - 1000) < 130 for i in range(3))


def test_an_empty_text_becomes_the_trigger_and_white_space_single_spaces():
    assert insert("", Random(0), ["cf"]) == insert("  \t", Random(0), ["cf"]) == "cf"
    assert plain(insert("  two \t words\n", Random(0), ["cf"])) == "two words"


def test_badnets_is_insert_with_its_settings():
    attack = BadNets(("xx",), 3)
    assert attack("a b", Random(5)) == insert("a b", Random(5), ("xx",), 3)
    assert attack("a b", Random(5)).split().count("xx") == 3


@pytest.mark.parametrize("settings", [{"triggers": ()}, {"per_text": 0}])
def test_an_attack_without_a_trigger_is_refused(settings):
    with pytest.raises(BadInput):
        BadNets(**settings)


def test_a_trigger_that_is_there_already_is_inserted_all_the_same():
    assert sorted(insert("a cf b", Random(0), ["cf"]).split()) == ["a", "b", "cf", "cf"]


def test_a_text_of_one_word_has_two_places():
    assert {insert("a", Random(seed), ["cf"]) for seed in range(20)} == {"cf a", "a cf"}
