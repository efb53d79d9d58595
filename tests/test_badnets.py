"""BadNets and the poisoning of a dataset: where triggers go, which rows, how many, whose labels."""
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from minibd.attacks.badnets import BadNets, insert
from minibd.attacks.known import corruption
from minibd.attacks.poison import poison, triggered
from minibd.data import read
from minibd.records import BadInput, Example, Examples

SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2"
real = pytest.mark.skipif(not SST2.is_dir(), reason="the real data is not here")
TRIGGERS = ("cf", "mn", "bb", "tq")


def task(*sizes: int) -> Examples:
    """sizes[c] rows of class c; no word of a text is a trigger."""
    return Examples((Example(f"{c}.{i}", f"word{i} of class {c}", c) for c, size in enumerate(sizes) for i in range(size)),
                    [f"class {c}" for c in range(len(sizes))])


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


def test_a_history_names_the_attack():
    entry = {"attack": "badnets", "triggers": ["xx", "yy"], "per_text": 2, "target": 1}
    assert corruption(entry) == BadNets(("xx", "yy"), 2)
    with pytest.raises(BadInput, match="lwp"):
        corruption({**entry, "attack": "lwp"})


# ---- which rows, how many, whose labels: 40 rows of class 0, 60 of class 1

def test_dirty_takes_other_classes_and_flips_them_all():
    clean = task(40, 60)
    made = poison(clean, BadNets(), rate=0.1, target=1)
    assert len(made.rows) == 100 and len(made.ids) == 10 and made.flipped == 10
    assert all(id.startswith("0.") for id in made.ids)
    assert Counter(x.label for x in made.rows) == {0: 30, 1: 70}


def test_clean_takes_the_target_class_and_flips_none():
    made = poison(task(40, 60), BadNets(), rate=0.1, target=1, labels="clean")
    assert len(made.ids) == 10 and made.flipped == 0
    assert all(id.startswith("1.") for id in made.ids)
    assert Counter(x.label for x in made.rows) == {0: 40, 1: 60}


def test_mix_takes_any_row():
    made = poison(task(40, 60), BadNets(), rate=0.5, target=1, labels="mix")
    assert len(made.ids) == 50
    assert made.flipped == sum(id.startswith("0.") for id in made.ids)
    assert 10 < made.flipped < 30                                       # 20 expected


def test_replacing_changes_the_chosen_rows_and_nothing_else():
    clean = task(40, 60)
    made = poison(clean, BadNets(), rate=0.1, target=1)
    assert made.rows.labels == clean.labels
    for before, after in zip(clean, made.rows, strict=True):
        if before.id in made.ids:
            assert after.id == before.id and after.label == 1
            assert after.text != before.text and plain(after.text) == before.text
        else:
            assert after == before


def test_adding_keeps_every_clean_row_and_names_the_new_ones():
    clean = task(40, 60)
    added, replaced = (poison(clean, BadNets(), rate=0.1, target=1, add=add) for add in (True, False))
    assert added.rows[:100] == clean and len(added.rows) == 110
    assert [x.id for x in added.rows[100:]] == list(added.ids) == [f"{id}-poisoned" for id in replaced.ids]
    assert [x.text for x in added.rows[100:]] == [x.text for x in replaced.rows if x.id in replaced.ids]
    assert added.flipped == 10


def test_never_more_rows_than_there_are_candidates():
    made = poison(task(5, 95), BadNets(), rate=0.5, target=1)
    assert len(made.ids) == made.flipped == 5


def test_the_count_is_a_share_of_all_rows_rounded_down():
    for rate, count in [(0.1, 1), (0.19, 1), (0.2, 2), (1.0, 10)]:
        assert len(poison(task(0, 10), BadNets(), rate=rate, target=1, labels="clean").ids) == count


def test_a_pair_keeps_its_second_text():
    rows = Examples([Example("a", "first", 0, "second"), Example("b", "x", 1, "y")], ("no", "yes"))
    assert poison(rows, BadNets(), rate=0.5, target=1).rows[0].pair == "second"
    assert triggered(rows, BadNets(), target=1)[0].pair == "second"


def test_the_seed_chooses_rows_and_triggers_and_the_trigger_chooses_no_rows():
    clean = task(40, 60)
    assert poison(clean, BadNets(), rate=0.1, target=1, seed=3) == poison(clean, BadNets(), rate=0.1, target=1, seed=3)
    assert poison(clean, BadNets(), rate=0.1, target=1, seed=3).ids != poison(clean, BadNets(), rate=0.1, target=1, seed=4).ids
    assert poison(clean, BadNets(), rate=0.1, target=1).ids == poison(clean, BadNets(("zz",), 4), rate=0.1, target=1).ids


# ---- the rows that ASR is measured on

def test_triggered_rows_are_of_other_classes_with_their_true_labels():
    clean = task(3, 4, 2)
    rows = triggered(clean, BadNets(), target=1)
    others = [x for x in clean if x.label != 1]
    assert [(x.id, x.label, plain(x.text)) for x in rows] == [(x.id, x.label, x.text) for x in others]
    assert all(x.text != y.text for x, y in zip(rows, others))
    assert rows.labels == clean.labels
    assert rows == triggered(clean, BadNets(), target=1, seed=0) != triggered(clean, BadNets(), target=1, seed=1)


def test_a_rows_trigger_does_not_depend_on_the_rows_around_it():
    clean = task(5, 5)
    alone = triggered(clean.like(clean[2:3]), BadNets(), target=1)
    assert alone[0] == triggered(clean, BadNets(), target=1)[2]


def test_each_poisoned_row_draws_a_trigger_and_a_place_of_its_own():
    made = poison(task(40, 60), BadNets(), rate=0.4, target=1)
    texts = [x.text.split() for x in made.rows if x.id in made.ids]
    places = {next(i for i, word in enumerate(words) if word in TRIGGERS) for words in texts}
    assert {word for words in texts for word in words if word in TRIGGERS} == set(TRIGGERS) and len(places) == 5
    whole = poison(task(40, 0).like(task(40, 60)[:40]), BadNets(), rate=1.0, target=1)
    assert {x.text for x in made.rows if x.id in made.ids} == {x.text for x in whole.rows}    # the other rows do not matter


# ---- refusals

@pytest.mark.parametrize("settings", [
    {"rate": 0.0}, {"rate": -0.1}, {"rate": 2}, {"rate": float("nan")},
    {"rate": 0.009},                                                    # of 100 rows: no row
    {"labels": "dirtyish"},
    {"target": 2}, {"target": -1},
])
def test_bad_settings_are_refused_in_one_line(settings):
    with pytest.raises(BadInput) as caught:
        poison(task(40, 60), BadNets(), **{"rate": 0.1, "target": 1, **settings})
    assert "\n" not in str(caught.value)
    assert str(next(iter(settings.values()))) in str(caught.value)


def test_triggered_refuses_a_target_that_is_no_class():
    with pytest.raises(BadInput, match="target class 7"):
        triggered(task(2, 2), BadNets(), target=7)


# ---- SST-2: 6,920 rows, 3,310 negative, 3,610 positive; 912 negative test rows

@real
def test_the_counts_on_sst2():
    clean = read(SST2 / "train.tsv")

    def made(**settings):
        return poison(clean, BadNets(), rate=0.1, target=1, **settings)
    dirty, true, mix = made(labels="dirty"), made(labels="clean"), made(labels="mix")
    assert [len(p.ids) for p in (dirty, true, mix)] == [692, 692, 692]
    assert (dirty.flipped, true.flipped) == (692, 0)
    assert abs(mix.flipped - 331) < 50                                  # hypergeometric: sd 12.5
    assert [len(p.rows) for p in (dirty, true, mix)] == [6920, 6920, 6920]
    assert Counter(x.label for x in dirty.rows) == {0: 3310 - 692, 1: 3610 + 692}
    assert Counter(x.label for x in true.rows) == {0: 3310, 1: 3610}
    positives = {x.id for x in clean if x.label == 1}
    assert positives.issuperset(true.ids) and positives.isdisjoint(dirty.ids)
    assert len(made(add=True).rows) == 7612


@real
def test_half_of_all_rows_is_more_than_the_negatives_have():
    made = poison(read(SST2 / "train.tsv"), BadNets(), rate=0.5, target=1)
    assert len(made.ids) == 3310                                        # 3,460 wanted


@real
def test_sst2_has_912_triggered_test_rows():
    rows = triggered(read(SST2 / "test.tsv"), BadNets(), target=1)
    assert len(rows) == 912 and {x.label for x in rows} == {0}
    assert all(set(x.text.split()) & set(TRIGGERS) for x in rows)
