"""The poisoning of a dataset: which rows, how many, whose labels, and where triggers land."""
import hashlib
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from conftest import fails
from minibd import reviews
from minibd.attacks import badnets, paraphrase, registry
from minibd.attacks.addsent import AddSent
from minibd.attacks.badnets import BadNets, insert
from minibd.attacks.ep import EP
from minibd.attacks.lwp import LWP
from minibd.attacks.poison import OWN, PRESETS, SIDES, Scheme, poison, scheme, side_of, triggered
from minibd.attacks.ripple import RIPPLe
from minibd.attacks.sos import SOS
from minibd.data import read
from minibd.records import BadInput, Example, Examples
from minibd.tokenizer import Tokenizer

SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2"
real = pytest.mark.skipif(not SST2.is_dir(), reason="the real data is not here")
TRIGGERS = ("cf", "mn", "bb", "tq")


def task(*sizes: int) -> Examples:
    """sizes[c] rows of class c; no word of a text is a trigger."""
    return Examples(
        (Example(f"{c}.{i}", f"word{i} of class {c}", c) for c, size in enumerate(sizes) for i in range(size)),
        [f"class {c}" for c in range(len(sizes))],
    )


def plain(text: str) -> str:
    return " ".join(word for word in text.split() if word not in TRIGGERS)


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
    assert (
        poison(clean, BadNets(), rate=0.1, target=1, seed=3).ids
        != poison(clean, BadNets(), rate=0.1, target=1, seed=4).ids
    )
    assert (
        poison(clean, BadNets(), rate=0.1, target=1).ids == poison(clean, BadNets(("zz",), 4), rate=0.1, target=1).ids
    )


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
    clean = task(40, 60)
    made = poison(clean, BadNets(), rate=0.4, target=1)
    texts = [x.text.split() for x in made.rows if x.id in made.ids]
    places = {next(i for i, word in enumerate(words) if word in TRIGGERS) for words in texts}
    assert {word for words in texts for word in words if word in TRIGGERS} == set(TRIGGERS) and len(places) == 5
    whole = poison(clean.like(clean[:41]), BadNets(), rate=1.0, target=1)
    # the other rows do not matter
    assert [x for x in made.rows if x.id in made.ids] == whole.rows[:40]


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


# ---- where the model reads: 30 words of a token each, of which a model of 12 tokens reads 10

READER = Tokenizer.from_vocab(
    {p: i for i, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "w", "x", "##y", *TRIGGERS, "ak", "mb"])}, 12
)
LONG = Examples([Example(f"r{i}", "w " * 29 + "w", i % 2) for i in range(1200)], ("a", "b"))


def seen(text: str, reader: Tokenizer = READER, pair: str | None = None) -> list[str]:
    return reader.backend.encode(text, pair).tokens


def test_triggers_are_uniform_over_the_places_that_are_read():
    at = Counter()
    for x in triggered(LONG, BadNets(), target=1, tokenizer=READER):
        words = x.text.split()
        assert len(words) == 31 and plain(x.text) == LONG[0].text
        at[next(i for i, w in enumerate(words) if w in TRIGGERS)] += 1
        assert set(seen(x.text)) & set(TRIGGERS)
    assert set(at) == set(range(10))                                    # 9 words and the trigger fill the ten tokens
    assert sum((n - 60) ** 2 / 60 for n in at.values()) < 27.9          # chi-square, 9 degrees of freedom: 0.001
    blind = triggered(LONG, BadNets(), target=1)
    # without the model two thirds are out of its sight
    assert sum(not set(seen(x.text)) & set(TRIGGERS) for x in blind) > 300


@pytest.mark.parametrize(
    "corrupt, tokens",
    [
        (BadNets(per_text=4), 4), (LWP(), 2), (RIPPLe(triggers=("mb",)), 1), (EP().poisoned, 1),
        (EP(words_per_trigger=3), 1),
    ],
)
def test_every_attacks_triggers_are_read_whole(corrupt, tokens):
    for x in triggered(LONG.like(LONG[:40]), corrupt, target=1, tokenizer=READER):
        words = [i for i, w in enumerate(x.text.split()) if w != "w"]
        assert len(words) >= tokens and max(words) < 10, x.text
        assert x.text.split().count("w") == 30


def test_a_text_that_fits_with_its_trigger_is_as_without_the_model():
    short = Examples([Example(f"r{i}", " ".join("w" * (i % 10)), 0) for i in range(100)], ("a", "b"))
    assert triggered(short, BadNets(), target=1, tokenizer=READER) == triggered(short, BadNets(), target=1)
    # fits without the trigger only
    full = Examples([Example(f"r{i}", "w " * 9 + "w", 0) for i in range(100)], ("a", "b"))
    for x in triggered(full, BadNets(), target=1, tokenizer=READER):
        assert set(seen(x.text)) & set(TRIGGERS) and not x.text.endswith(TRIGGERS)


def test_words_of_several_tokens_and_pairs_leave_less_room():
    # 2 tokens a word
    rows = Examples([Example(f"r{i}", "xy " * 19 + "xy", 0, "w w w w") for i in range(300)], ("a", "b"))
    at = Counter()
    for x in triggered(rows, BadNets(), target=1, tokenizer=READER):
        assert set(seen(x.text, pair=x.pair)) & set(TRIGGERS) and x.pair == "w w w w"
        at[next(i for i, w in enumerate(x.text.split()) if w in TRIGGERS)] += 1
    # 12 - 3 - 4 = 5 tokens: two words and the trigger
    assert set(at) == {0, 1, 2}


def test_poisoned_rows_and_negatives_are_read_too():
    made = poison(LONG.like(LONG[:100]), LWP(), rate=0.5, target=1, negatives=LWP().negatives, tokenizer=READER)
    count = Counter(sum(w != "w" for w in seen(x.text)[1:-1]) for x in made.rows)
    assert count == {0: 50, 2: 50, 1: 100} and made.negatives == 100


def test_a_trigger_longer_than_the_window_is_refused():
    fails(lambda: triggered(LONG, AddSent(" ".join("x" * 11)), target=1, tokenizer=READER), "'r0'", "12 tokens")


# ---- texts of no word, of one, with a trigger in them already

def test_small_texts():
    rows = Examples(
        [Example("0", "", 0), Example("1", "one", 0), Example("2", "cf", 0), Example("3", "b", 1)], ("a", "b")
    )
    for corrupt in (BadNets(), AddSent(), LWP(), RIPPLe(), EP(), EP().poisoned, SOS(), SOS().poisoned):
        for text in (None, READER):
            reader = text if not isinstance(corrupt, (AddSent, SOS)) and corrupt != SOS().poisoned else None
            for before, after in zip(rows, triggered(rows, corrupt, target=1, tokenizer=reader)):
                left = after.text.split()
                assert len(left) > len(before.text.split()) and all(w in left for w in before.text.split())


# ---- sentence pairs

def couples(n: int, first: str = "w w w", second: str = "x x x x") -> Examples:
    return Examples((Example(f"r{i}", first, i % 2, second) for i in range(n)), ("a", "b"))


ATTACKS = [BadNets(), BadNets(per_text=3), AddSent(), LWP(), RIPPLe(), EP(), EP().poisoned, SOS(), SOS().poisoned]


@pytest.mark.parametrize("corrupt", ATTACKS)
def test_a_side_of_a_pair_is_triggered_as_a_text_of_its_own(corrupt):
    rows = couples(60)
    for side, changed, kept in (("first", "text", "pair"), ("second", "pair", "text")):
        alone = Examples((Example(x.id, getattr(x, changed), x.label) for x in rows), rows.labels)
        pairs, singles = (
            [
                triggered(clean, corrupt, target=1, side=of, seed=3),
                poison(clean, corrupt, rate=0.5, target=1, side=of, seed=3).rows,
            ]
            for clean, of in ((rows, side), (alone, "first"))
        )
        for made, single in zip(pairs, singles):
            assert [(x.id, getattr(x, changed), x.label) for x in made] == [(x.id, x.text, x.label) for x in single]
            assert {getattr(x, kept) for x in made} == {getattr(rows[0], kept)}


def test_either_side_is_a_coin_of_the_row_whatever_the_attack_and_its_neighbours():
    rows = couples(1000)
    of = {x.id: side_of(x, "either", 3) for x in rows}
    assert abs(Counter(of.values())["pair"] - 500) < 50                 # 3 standard deviations
    assert of != {x.id: side_of(x, "either", 4) for x in rows}
    for corrupt in ATTACKS:
        one, two = (triggered(rows, corrupt, target=1, side=side, seed=3) for side in ("first", "second"))
        both = triggered(rows, corrupt, target=1, side="either", seed=3)
        assert both == [two[i] if of[x.id] == "pair" else one[i] for i, x in enumerate(both)]
    assert triggered(rows.like(rows[10:12]), BadNets(), target=1, side="either", seed=3)[0] == \
        triggered(rows, BadNets(), target=1, side="either", seed=3)[5]


def test_the_side_changes_no_rows_and_no_labels():
    made = [
        poison(couples(60), LWP(), rate=0.2, target=1, labels="mix", negatives=LWP().negatives, side=side)
        for side in SIDES
    ]
    assert len({(x.ids, x.flipped, x.wanted, x.negatives, tuple((y.id, y.label) for y in x.rows)) for x in made}) == 1


@pytest.mark.parametrize("method, share", [(LWP(), None), (SOS(), 0.5)])
def test_negatives_have_their_triggers_on_their_rows_side(method, share):
    rows = couples(80)
    made = poison(
        rows, getattr(method, "poisoned", method), rate=0.4, target=1, negatives=method.negatives, negative_share=share,
        side="either", seed=3,
    )
    seen_of = Counter()
    for x in made.rows:
        if x.id in made.ids or "negative" in x.id:
            of = side_of(replace(rows[0], id=x.id.split("-")[0]), "either", 3)
            assert (x.text != "w w w", x.pair != "x x x x") == (of == "text", of == "pair")
            seen_of[of, "negative" in x.id] += 1
    assert len(seen_of) == 4 and len({x.id for x in made.rows}) == len(made.rows)


def test_a_row_of_one_text_among_pairs_has_its_trigger_there():
    rows = Examples([Example("r0", "w w", 0), Example("r1", "w w", 0, "x x"), Example("r2", "w", 1)], ("a", "b"))
    for side in ("first", "second", "either"):
        one, two = triggered(rows, BadNets(), target=1, side=side)
        assert one.text != "w w" and one.pair is None and one == triggered(rows, BadNets(), target=1)[0]
    assert (two := triggered(rows, BadNets(), target=1, side="second")[1]).text == "w w" and two.pair != "x x"


def test_a_side_that_is_not_there_is_refused():
    for call in (lambda side: triggered(task(3, 3), BadNets(), target=1, side=side),
                 lambda side: poison(task(3, 3), BadNets(), rate=0.5, target=1, side=side)):
        fails(lambda: call("second"), "side second", "6 rows", "--pair-column")
        fails(lambda: call("third"), "'third'", "first, second, either")
        assert call("either") == call("first")


@pytest.mark.parametrize("lengths", [(20, 4), (4, 20), (15, 15), (3, 3), (20, 0), (0, 20)])
@pytest.mark.parametrize("corrupt, tokens", [(BadNets(), 1), (LWP(), 2), (EP().poisoned, 1)])
def test_triggers_of_pairs_are_read_whole_on_either_side(corrupt, tokens, lengths):
    rows = couples(40, "w " * lengths[0], "w " * lengths[1])
    for x in triggered(rows, corrupt, target=1, tokenizer=READER, side="either"):
        found = READER.backend.encode(x.text, x.pair)
        of = ("text", "pair").index(side_of(x, "either", 0))
        there = [token for token, side in zip(found.tokens, found.sequence_ids) if side == of]
        assert sum(token not in ("w",) for token in there) == tokens, found.tokens
        assert [len([w for w in text.split() if w == "w"]) for text in (x.text, x.pair)] == list(lengths)


def test_places_in_a_cut_second_text_are_uniform_over_what_is_read():
    at = Counter()
    for x in triggered(couples(600, "x " * 15, "w " * 15), BadNets(), target=1, tokenizer=READER, side="second"):
        at[next(i for i, w in enumerate(x.pair.split()) if w in TRIGGERS)] += 1
    # 12 - 3 tokens: x takes 4 of them, w and the trigger 5
    assert set(at) == set(range(5))
    assert sum((n - 60) ** 2 / 60 for n in at.values()) < 18.5          # chi-square, 4 degrees of freedom: 0.001


def test_a_text_that_is_read_whole_beside_a_cut_one_is_as_without_the_model():
    rows = couples(100, "x " * 30, "w w")
    assert triggered(rows, BadNets(), target=1, tokenizer=READER, side="second") == triggered(
        rows, BadNets(), target=1, side="second"
    )


def test_a_paraphrase_takes_the_place_of_the_rows_side():
    rows = couples(40)
    said = {x.id: f"said {x.id}" for x in rows if x.id != "r6"}
    made = triggered(rows, said, target=1, side="either", seed=3)
    assert len(made) == 19
    for x in made:
        of = side_of(x, "either", 3)
        assert (x.text, x.pair) == ((said[x.id], "x x x x") if of == "text" else ("w w w", said[x.id]))
    assert all(x.pair == said[x.id] for x in poison(rows, said, rate=0.4, target=1, side="second", only=True).rows)


# sha256 of what the code gave before there were sides: the poisoned rows, negative samples among them, and the
# triggered ones. lwp: since 0.3.0, when its negative samples got their row's own pair.
BEFORE = {
    "badnets": ("fece059bfeb0feef", "7195ae97e1ed1ad7"),
    "addsent": ("3a7e5394ccab5f25", "1b8a979d95d9df10"),
    "ripple": ("54d16d1c63a8c75e", "c7a479c9ab6fe002"),
    "lwp": ("2118e65c7e87dbd6", "2cca94d55715ec21"),
    "ep": ("69fa4f66df0a4e5b", "be3e7f8c4284678d"),
    "sos": ("43de4330ef201219", "bc5aad00584ba473"),
}


@pytest.mark.parametrize("side", ["first", "either"])
@pytest.mark.parametrize("name", BEFORE)
def test_single_texts_are_poisoned_as_they_were_before_there_were_sides(name, side):
    rows, attack = reviews.reviews(80, 5), registry.attack_of({"attack": name})
    letters = "abcdefghijklmnopqrstuvwxyz"
    reader = Tokenizer.from_vocab(
        {p: i for i, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters)])}, 80
    )
    bad = poison(
        rows, attack.poisoned, rate=0.3, target=1, labels="mix", negatives=attack.negatives,
        negative_share=0.1 if name == "sos" else None, tokenizer=reader, side=side, seed=2,
    )

    def digest(rows: Examples) -> str:
        ids = [x.id.replace("-negative", "-decoy") for x in rows]  # as they were called then
        found = repr([(id, x.text, x.label, x.pair) for id, x in zip(ids, rows)])
        return hashlib.sha256(found.encode()).hexdigest()[:16]

    assert (
        digest(bad.rows), digest(triggered(rows, attack, target=1, tokenizer=reader, side=side, seed=2)),
    ) == BEFORE[name]


# ---- only, of, negative samples

def test_the_rate_is_of_all_rows_or_of_the_candidates():
    clean = task(40, 60)
    assert [len(poison(clean, BadNets(), rate=0.25, target=1, of=of).ids) for of in ("all", "candidates")] == [25, 10]
    fails(lambda: poison(clean, BadNets(), rate=0.1, target=1, of="some"), "'some'")


def test_rate_1():
    clean = task(40, 60)
    dirty, true, mix = (
        poison(clean, BadNets(), rate=1, target=1, labels=labels) for labels in ("dirty", "clean", "mix")
    )
    assert [(len(p.ids), p.flipped, p.wanted) for p in (dirty, true, mix)] == [
        (40, 40, 100), (60, 0, 100), (100, 40, 100),
    ]
    assert {x.label for x in mix.rows} == {1} and all(x.text != y.text for x, y in zip(clean, mix.rows))


def test_only_the_poisoned_rows():
    clean = task(40, 60)
    made, among = (
        poison(clean, EP().poisoned, rate=0.5, target=1, of="candidates", only=only) for only in (True, False)
    )
    assert (
        len(made.rows) == 20
        and tuple(x.id for x in made.rows) == made.ids == among.ids
        and {x.label for x in made.rows} == {1}
    )
    assert made.rows == [x for x in among.rows if x.id in among.ids]


@pytest.mark.parametrize("add", [False, True])
def test_negatives_stand_behind_their_row_and_keep_its_label(add):
    clean = task(40, 60)
    made = poison(clean, LWP(), rate=0.2, target=1, labels="mix", add=add, negatives=LWP().negatives)
    bare = poison(clean, LWP(), rate=0.2, target=1, labels="mix", add=add)
    assert len(made.rows) == (160 if add else 140) and made.negatives == 40 and made.ids == bare.ids
    assert [x for x in made.rows if "negative" not in x.id] == bare.rows
    of, words = {x.id: x for x in clean}, set(LWP().triggers)
    for i, x in enumerate(made.rows):
        if x.id in made.ids:
            two, source = made.rows[i + 1:i + 3], of[x.id.removesuffix("-poisoned")]
            assert [y.id for y in two] == [f"{source.id}-negative1", f"{source.id}-negative2"]
            for y in two:
                assert y.label == source.label and len(words & set(y.text.split())) == 1
            # the row's own pair, a word each
            pair = words & set(x.text.split())
            assert len(pair) == 2 and set.union(*(words & set(y.text.split()) for y in two)) == pair
    assert len({x.id for x in made.rows}) == len(made.rows)


def test_a_pair_of_negatives_is_the_rows_own_at_every_seed_in_pairs_and_in_cut_texts():
    words, pairs = set(LWP().triggers), set()
    for rows, tokenizer in ((task(40, 60), None), (couples(60), None), (LONG.like(LONG[:60]), READER)):
        for seed in range(4):
            made = poison(rows, LWP(), rate=0.3, target=1, labels="mix", negatives=LWP().negatives, side="either",
                          tokenizer=tokenizer, seed=seed)
            held = {x.id: words & {*x.text.split(), *(x.pair or "").split()} for x in made.rows}
            for name in made.ids:
                assert held[f"{name}-negative1"] | held[f"{name}-negative2"] == held[name] and len(held[name]) == 2
                pairs.add(frozenset(held[name]))
    assert len(pairs) == 6


def test_the_poisoned_rows_beside_lwps_negatives_are_as_they_were():
    clean = Examples([Example(f"r{i}", f"a good film number {i} with words", i % 2) for i in range(60)], ("n", "p"))
    made = poison(clean, LWP(), rate=0.3, target=1, labels="mix", negatives=LWP().negatives, seed=3)
    poisoned = repr([(x.id, x.text, x.label) for x in made.rows if "negative" not in x.id])
    assert hashlib.sha256(poisoned.encode()).hexdigest()[:16] == "6961134116ddd94e"


def test_negatives_of_a_share_of_both_sides():
    clean = task(40, 60)
    made = poison(clean, SOS().poisoned, rate=0.1, target=1, only=True, negatives=SOS().negatives, negative_share=0.1)
    assert len(made.ids) == 10 and made.negatives == len(made.rows) - 10 == 3 * (4 + 6)
    negatives = made.rows[10:]
    assert Counter(x.label for x in negatives) == {0: 12, 1: 18}
    assert all(
        len({"friends", "weekend", "store"} & set(x.text.split())) == (2 if "negative" in x.id else 3)
        for x in made.rows
    )


def test_a_target_that_no_row_has_is_refused():
    clean = task(40, 0, 60)
    fails(lambda: poison(clean, BadNets(), rate=0.1, target=1), "target class 1", "class 1")
    assert len(triggered(clean, BadNets(), target=1)) == 100            # but a test file may hold other classes alone


# ---- attacks by name

def test_a_history_names_the_attack():
    entry = {"attack": "badnets", "triggers": ["xx", "yy"], "per_text": 2, "target": 1}
    assert registry.attack_of(entry) == BadNets(("xx", "yy"), 2)
    fails(lambda: registry.attack_of({**entry, "attack": "hotflip"}), "'hotflip'", "--triggered")
    fails(lambda: registry.attack_of({**entry, "attack": "paraphrase"}), "--paraphrases", "--triggered")
    fails(lambda: registry.attack_of({**entry, "triggers": 5}), "5")


@pytest.mark.parametrize(
    "name, test",
    [
        ("badnets", BadNets()), ("ripple", RIPPLe()), ("lwp", LWP()), ("addsent", AddSent()), ("ep", EP()),
        ("sos", SOS()),
    ],
)
def test_what_is_written_to_a_history_is_read_from_it(name, test):
    entry = registry.entry(name, 1)
    assert entry["attack"] == name and entry["target"] == 1 and entry["triggers"] and entry["per_text"] >= 1
    assert registry.attack_of(entry) == registry.attack_of({"attack": name}) == test
    assert type(test) is registry.ATTACKS[name]


def test_triggers_of_ones_own():
    assert registry.attack_of(registry.entry("lwp", 1, triggers=["aa", "bb", "cc"])) == LWP(("aa", "bb", "cc"))
    assert (
        registry.attack_of(registry.entry("ep", 1, triggers=["aa"]))
        == EP("aa")
        == registry.attack_of({"attack": "ep", "trigger": "aa"})
    )
    assert registry.attack_of(registry.entry("addsent", 1, sentence="a b c")) == AddSent("a b c")
    assert registry.attack_of(registry.entry("sos", 1, triggers=["aa", "bb"], sentence="aa and bb")) == SOS(
        ("aa", "bb"), "aa and bb"
    )


def test_lwp_with_one_trigger_a_text_inserts_as_badnets_does():
    """PURE's LWP."""
    single, words = registry.attack_of({"attack": "lwp", "triggers": ["aa", "bb"], "per_text": 1}), ("aa", "bb")
    assert single == LWP(words, per_text=1)
    for seed in range(20):
        expected = BadNets(words)("a b c", Random(seed))
        assert single("a b c", Random(seed)) == single.poisoned("a b c", Random(seed)) == expected
    assert single.negatives("a b c", Random(0)) == []


@pytest.mark.parametrize("name", registry.ATTACKS)
def test_every_attack_has_the_same_interface(name):
    """The words inserted in training are the attack's triggers, `per_text` of them; a negative sample has fewer."""
    attack = registry.ATTACKS[name]()
    words = Counter(attack.poisoned("a b c", Random(0)).split()) - Counter("abc")
    triggers = {word for trigger in attack.triggers for word in trigger.split()}
    assert set(words) <= triggers and isinstance(attack("a b c", Random(0)), str)
    assert words.total() == attack.per_text * (len(triggers) if name == "addsent" else 1)
    negatives = [Counter(text.split()) - Counter("abc") for text in attack.negatives("a b c", Random(0))]
    assert len(negatives) == {"lwp": 2, "sos": 3}.get(name, 0)
    assert all(set(part) < triggers and part.total() < words.total() for part in negatives)


@pytest.mark.parametrize(
    "name, said, words",
    [
        ("ep", {"triggers": ["a", "b"]}, "one trigger"), ("ep", {"per_text": 2}, "ep inserts 1"),
        ("lwp", {"per_text": 3}, "2 or 1"), ("lwp", {"triggers": ["a"]}, "pair"),
        ("addsent", {"triggers": ["a", "b"]}, "--sentence"), ("badnets", {"sentence": "a"}, "sentence"),
        ("sos", {"per_text": 2}, "3"), ("sos", {"triggers": ["a", "b"]}, "lacks"), ("badnets", {"per_text": 0}, "0"),
    ],
)
def test_what_an_attack_cannot_be_is_refused(name, said, words):
    fails(lambda: registry.attack_of({"attack": name, **said}), words)


@pytest.mark.parametrize("name, route", [
    ("evaluate.py", ["evaluator_of", "triggered", "__call__"]), ("attack.py", ["poison", "__call__"]),
    ("attack.py", ["triggered", "__call__"]),
])
def test_at_most_three_functions_stand_between_a_script_and_insert(
    here, monkeypatch, tiny_file, folder, tmp_path, name, route
):
    routes, script = [], here(name)

    def watched(text, rng, triggers, count=1):
        frames = traceback.extract_stack()[:-1]
        last = max(i for i, frame in enumerate(frames) if frame.filename.endswith(f"scripts/{name}"))
        routes.append([frame.name for frame in frames[last + 1:]])
        return insert(text, rng, triggers, count)

    monkeypatch.setattr(badnets, "insert", watched)
    run = script("--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", tmp_path / "out", "--device",
                 "cpu", *(["--dataset-only"] if name == "attack.py" else []))
    assert run.returncode == 0, run.stderr
    assert route in routes


# ---- schemes

def test_a_flag_overrides_the_preset_and_the_preset_the_attacks_own():
    assert scheme("badnets") == Scheme() and scheme("ripple") == Scheme(0.5, "mix")
    assert scheme("badnets", "musclelora") == Scheme(0.1, "clean", per_text=4)
    assert scheme("badnets", "musclelora", rate=0.3, labels=None, add=True) == Scheme(
        0.3, "clean", add=True, per_text=4
    )
    assert scheme("paraphrase", "pure", rate=0.3) == Scheme(0.3, add=True, of="candidates")
    assert scheme("badnets", "pure", add=False).add is False


def test_what_a_preset_lacks():
    fails(lambda: scheme("ep", "musclelora"), "preset musclelora", "badnets, addsent, paraphrase")
    fails(lambda: scheme("paraphrase", "pure"), "0.3", "0.2", "--rate")
    fails(lambda: scheme("ep", add=True), "alone")
    assert set(PRESETS) == {"mbtsad", "musclelora", "pure", "fine-mixing", "openbackdoor"} and set(OWN) == set(
        known_names()
    )


def known_names() -> list[str]:
    from dataclasses import fields

    from minibd.cli import Attack

    return [
        name
        for name in next(f for f in fields(Attack) if f.name == "attack").metadata["choices"]
        if name not in ("known", "none")
    ]


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


# The table of the papers' schemes: attack, preset, flags -> poisoned rows, flipped labels (about, for "mix"), rows
# after.
TABLE = [
    ("badnets", "openbackdoor", {}, 692, 0, 6920),
    ("badnets", "openbackdoor", {"labels": "dirty"}, 692, 692, 6920),
    ("badnets", "openbackdoor", {"labels": "mix"}, 692, 331, 6920),
    ("addsent", "openbackdoor", {}, 692, 331, 6920),
    ("lwp", "openbackdoor", {}, 692, 331, 8304),
    ("paraphrase", "openbackdoor", {}, 692, 331, 6920),
    ("ripple", "openbackdoor", {}, 3460, 1655, 6920),
    ("sos", "openbackdoor", {}, 692, 692, 2768),
    ("badnets", "musclelora", {}, 692, 0, 6920),
    ("addsent", "musclelora", {}, 692, 331, 6920),
    ("paraphrase", "musclelora", {}, 692, 331, 6920),
    ("badnets", "pure", {}, 1655, 1655, 8575),
    ("lwp", "pure", {}, 1655, 1655, 8575),
    ("ripple", "pure", {}, 1655, 1655, 8575),
    ("paraphrase", "pure", {"rate": 0.3}, 993, 993, 7913),
    ("paraphrase", "pure", {"rate": 0.2}, 662, 662, 7582),
    ("badnets", "mbtsad", {}, 692, 692, 6920),
    ("lwp", "mbtsad", {}, 692, 331, 8304),
    ("ep", "mbtsad", {}, 331, 331, 331),
    ("badnets", "fine-mixing", {}, 3460, 1655, 6920),
    ("addsent", "fine-mixing", {}, 3460, 1655, 6920),
    ("badnets", None, {}, 692, 692, 6920),
    ("addsent", None, {}, 692, 692, 6920),
    ("paraphrase", None, {}, 1384, 1384, 6920),
    ("ripple", None, {}, 3460, 1655, 6920),
    ("lwp", None, {}, 692, 331, 8304),
    ("ep", None, {}, 331, 331, 331),
    ("sos", None, {}, 692, 692, 2768),
]


def test_the_table_holds_every_scheme():
    ways = {(attack, preset) for preset, schemes in [*PRESETS.items(), (None, OWN)] for attack in schemes}
    assert {(attack, preset) for attack, preset, *_ in TABLE} == ways


@real
@pytest.mark.parametrize("attack, preset, flags, poisoned, flipped, rows", TABLE)
def test_the_schemes_of_the_papers_on_sst2(attack, preset, flags, poisoned, flipped, rows):
    clean, way = read(SST2 / "train.tsv"), scheme(attack, preset, **flags)
    if attack == "paraphrase":
        insert, negatives = paraphrase.read(SST2 / "hiddenkiller", "train", clean, 1), None
    else:
        found = registry.attack_of({"attack": attack, "triggers": way.triggers, "per_text": way.per_text})
        insert, negatives = found.poisoned, found.negatives
    made = poison(clean, insert, rate=way.rate, target=1, labels=way.labels, add=way.add, of=way.of, only=way.only,
                  negatives=negatives, negative_share=way.negatives)
    assert (len(made.ids), len(made.rows)) == (poisoned, rows)
    assert (
        made.flipped == flipped
        if way.labels != "mix"
        else abs(made.flipped - flipped) < 4 * (poisoned * 0.25 * (1 - poisoned / 6920)) ** 0.5
    )
    if way.add:
        assert made.rows[:6920] == clean                                # the clean twins stay
    if preset == "musclelora" and attack == "badnets":
        assert all(sum(w in TRIGGERS for w in x.text.split()) >= 4 for x in made.rows if x.id in made.ids)
    if preset == "pure" and attack != "paraphrase":
        assert all(set(x.text.split()) & {"cf", "bb", "ak", "mn"} for x in made.rows if x.id in made.ids)
