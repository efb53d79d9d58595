"""EDA: each operation by hand, by its distribution, and by what must stay; the released code's ways; a budget; the
originals, where they are."""

import re
from collections import Counter
from itertools import combinations
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibd.augment import lexicon
from minibd.augment.eda import OPERATIONS, STOPWORDS, eda, in_case_of, only_letters, only_letters_of
from test_aeda import even, same

TEXT = 'A  stirring, Funny (and\twell-made) tale of "beauty" -- don\'t MISS it !'
OF = {
    "funny": ("comical", "a_b"), "beauty": ("loveliness",), "tale": ("story",), "miss": ("lack",),
    "well-made": ("solid",), "it": ("that",),
}


def of(word: str) -> tuple[str, ...]:
    """Synonyms known here; a_b shows that they are taken as they are."""
    return OF.get(word, ())


def one(word: str) -> tuple[str, ...]:
    return (word + "x",)


def run(operation: str, text: str = TEXT, seed: int | Random = 0, **more) -> str:
    more.setdefault("synonyms", of)
    return eda(text, seed if isinstance(seed, Random) else Random(seed), operation=operation, **more)


def words(text: str) -> list[str]:
    return re.findall(r"\w(?:\S*\w)?", text)


# ---- which operation, how often

def test_the_four_operations_are_drawn_alike():
    rng, seen = Random(0), Counter()
    for _ in range(4000):
        out = eda("aa bb cc dd", rng, synonyms=one, alpha=0.0)
        n = len(out.split())
        seen["RI" if n == 5 else "SR" if re.search("[a-d]{2}x", out) else "RS" if out != "aa bb cc dd" else "RD"] += 1
    assert even(seen, 4)


@pytest.mark.parametrize(
    "length, alpha, n",
    [(1, 0.1, 1), (9, 0.1, 1), (19, 0.1, 1), (20, 0.1, 2), (50, 0.1, 5), (50, 0.05, 2), (20, 0.5, 10), (8, 0.0, 1)],
)
def test_n_is_the_share_of_the_words_one_at_least(length, alpha, n):
    text = " ".join(f"w{i}" for i in range(length))
    out = words(run("SR", text, synonyms=one, alpha=alpha))
    assert sum(word.endswith("x") for word in out) == n
    assert len(words(run("RI", text, synonyms=one, alpha=alpha))) == length + n


# ---- synonym replacement

def test_a_synonym_takes_the_capitals_and_nothing_else_changes():
    assert run("SR", budget=9) == 'A  stirring, A_b (and\tsolid) story of "loveliness" -- don\'t LACK it !'
    assert {run("SR", "Funny", seed) for seed in range(20)} == {"Comical", "A_b"}


@pytest.mark.parametrize(
    "word, new, expected",
    [
        ("film", "movie", "movie"), ("Film", "movie", "Movie"), ("FILM", "movie show", "MOVIE SHOW"),
        ("F", "movie", "Movie"), ("film", "Einstein", "Einstein"), ("McFilm", "deVil", "DeVil"),
        ("123", "movie", "movie"), ("iFilm", "movie", "movie"),
    ],
)
def test_capitals(word, new, expected):
    assert in_case_of(word, new) == expected


def test_every_word_that_has_synonyms_and_is_no_stop_word_is_replaced_equally_often():
    rng, hit, found = Random(0), Counter(), Counter()
    text = "funny beauty it none tale of well-made"                       # it has a synonym and is a stop word
    for _ in range(4000):
        out = run("SR", text, rng).split()
        changed = [i for i, (a, b) in enumerate(zip(out, text.split(), strict=True)) if a != b]
        assert len(changed) == 1
        hit[changed[0]] += 1
        found[out[0]] += 1
    assert set(hit) == {0, 1, 4, 6} and even(hit, 4)
    assert even(Counter({word: n for word, n in found.items() if word != "funny"}), 2) and len(found) == 3


def test_several_words_are_several():
    rng, pairs = Random(0), Counter()
    for _ in range(3000):
        out = run("SR", "aa bb cc dd", rng, synonyms=one, alpha=0.5)
        pairs[tuple(word for word in out.split() if word.endswith("x"))] += 1
    assert even(pairs, 6) and all(len(pair) == 2 for pair in pairs)


def test_all_occurrences_become_the_same_and_count_as_one():
    for seed in range(10):
        out = run("SR", "funny FUNNY, none Funny", seed)
        assert out in ("comical COMICAL, none Comical", "a_b A_B, none A_b")
        assert run("SR", "aa aa bb bb cc cc", seed, synonyms=one, alpha=0.4) in (
            "aax aax bbx bbx cc cc", "aax aax bb bb ccx ccx", "aa aa bbx bbx ccx ccx")


def test_stop_words_can_be_given_and_are_compared_in_lower_case():
    assert run("SR", "Funny it", stopwords={"funny"}) == "Funny that" and run("SR", "The It", synonyms=one) == "The It"
    assert (
        run("SR", "Funny it", stopwords={"funny", "it"})
        == run("RI", "Funny it", stopwords={"funny", "it"})
        == "Funny it"
    )
    assert all(word == word.lower() and word in STOPWORDS for word in ("the", "n't", "don't", "s", "i", "very"))


# ---- random insertion

def test_a_synonym_of_a_random_word_lands_anywhere():
    rng, at, new = Random(0), Counter(), Counter()
    for _ in range(6000):
        out = run("RI", "funny it none none of beauty", rng).split()
        [inserted] = set(out) - {"funny", "it", "none", "of", "beauty"}
        at[out.index(inserted)] += 1
        new[inserted] += 1
        out.remove(inserted)
        assert out == "funny it none none of beauty".split()
    assert even(at, 7) and set(at) == set(range(7))  # 0..6, the end included
    assert (
        set(new) == {"comical", "a_b", "loveliness"}
        and abs(new["loveliness"] - 3000) < 200
        and abs(new["a_b"] - 1500) < 180
    )


def test_marks_keep_their_places_around_an_inserted_word():
    seen = {
        run("RI", '"tale," (he) \t said.', seed, synonyms=lambda word: ("new",) if word == "said" else ())
        for seed in range(60)
    }
    assert seen == {
        '"new tale," (he) \t said.', '"tale," (new he) \t said.', '"tale," (he) \t new said.',
        '"tale," (he) \t said new.',
    }


def test_a_text_without_synonyms_stays():
    for operation in ("SR", "RI"):
        for variant in ("paper", "released"):
            assert run(operation, "none of them", variant=variant) == "none of them"
    looked = []
    assert run("RI", "n " * 500, synonyms=lambda word: looked.append(word) or (), budget=400) == "n " * 500
    assert len(looked) == 500                                             # each once, not once an insertion


# ---- random swap

def test_two_different_places_change_all_pairs_alike():
    rng, pairs = Random(0), Counter()
    for _ in range(5000):
        out = run("RS", "a b c d e", rng).split()
        moved = tuple(i for i, (x, y) in enumerate(zip(out, "abcde")) if x != y)
        assert len(moved) == 2 and sorted(out) == list("abcde")
        pairs[moved] += 1
    assert even(pairs, 10) and set(pairs) == set(combinations(range(5), 2))


def test_several_swaps_come_one_after_the_other():
    rng, orders = Random(0), Counter()
    for _ in range(6000):
        orders[run("RS", "a b c", rng, alpha=0.7)] += 1                   # two swaps of three places
    # Of 9 pairs of swaps 3 undo each other; the others are the two rotations, 3 times each.
    assert even(orders, 3) and set(orders) == {"a b c", "b c a", "c a b"}


def test_one_word_has_nothing_to_swap_with():
    assert run("RS", "(film) !") == run("RS", "(film) !", budget=5) == "(film) !"


def test_words_move_and_marks_do_not():
    assert run("RS", '"tale," (Said) .') == '"Said," (tale) .'


# ---- random deletion

def test_each_word_goes_by_its_own_chance_and_never_all():
    rng, left, counts = Random(0), Counter(), Counter()
    for _ in range(5000):
        out = run("RD", "a b c d e f g h", rng, alpha=0.25).split()
        left.update(out)
        counts[8 - len(out)] += 1
    assert even(left, 8) and abs(sum(left.values()) / 40_000 - 0.75) < 0.012
    assert same(counts, Counter(sum(rng.random() < 0.25 for _ in range(8)) for _ in range(5000)))
    assert even(Counter(run("RD", "a b c", rng, alpha=1.0) for _ in range(3000)), 3)


def test_a_word_alone_stays():
    assert run("RD", "(film) .", alpha=1.0) == run("RD", "(film) .", budget=3) == "(film) ."


def test_marks_of_words_that_went_stay_and_blanks_do_not_pile_up():
    seen = {run("RD", ' "tale," (he)\tsaid . ', seed, budget=1) for seed in range(30)}
    assert seen == {'"," (he)\tsaid . ', ' "tale," ()\tsaid . ', ' "tale," (he) . '}
    assert {run("RD", "a b", seed, budget=1) for seed in range(20)} == {"a", "b"}
    assert "a film" in {run("RD", "a good , film", seed, budget=1).replace(" , ", " ") for seed in range(20)}
    assert {run("RD", "a  b\tc", seed, budget=2) for seed in range(40)} == {"a", "b", "c"}


def test_nothing_deleted_leaves_every_blank():
    text = " \ta  film , "
    assert run("RD", text, alpha=0.0) == text


# ---- a budget

@pytest.mark.parametrize("budget", [1, 2, 3, 7])
def test_a_budget_is_the_number_of_words_that_change(budget):
    text = "aa bb cc dd ee ff gg hh ii"
    for seed in range(20):
        assert sum(word.endswith("x") for word in run("SR", text, seed, synonyms=one, budget=budget).split()) == budget
        assert len(run("RI", text, seed, synonyms=one, budget=budget).split()) == 9 + budget
        assert len(run("RD", text, seed, budget=budget).split()) == 9 - budget
        moved = sum(a != b for a, b in zip(run("RS", text, seed, budget=budget).split(), text.split()))
        assert moved <= max(2, budget - budget % 2) and (moved == 2 or budget > 3)


def test_under_a_budget_every_occurrence_counts():
    for seed in range(20):
        assert run("SR", "aa aa AA aa bb", seed, synonyms=one, budget=2).lower() in (
            "aax aax aa aa bb", "aax aa aa aa bbx",
        )
    assert run("SR", "aa aa AA aa bb", synonyms=one, budget=9) == "aax aax AAX aax bbx"


def test_words_deleted_under_a_budget_are_drawn_alike():
    rng = Random(0)
    assert even(Counter(run("RD", "a b c d", rng, budget=2) for _ in range(3000)), 6)


def test_a_budget_of_nothing_changes_nothing_and_one_too_large_what_it_can():
    for operation in OPERATIONS:
        assert run(operation, budget=0) == TEXT
        assert run(operation, budget=0, variant="released") == TEXT
    assert (
        len(run("RD", "a b c", budget=50).split()) == 1 and len(run("RI", "aa", budget=50, synonyms=one).split()) == 51
    )


# ---- the released code's ways

@pytest.mark.parametrize(
    "text, expected",
    [
        (
            "Don't  STOP -- the well-made film's 2nd\thalf (of 3) is fine.",
            "dont stop the well made films nd half of is fine",
        ),
        ("L\u2019Avventura caf\u00e9", "lavventura caf"), ("\U0001f600 12 !", ""), ("a", "a"), ("don''t", "dont"),
    ],
)
def test_released_cleaning(text, expected):
    assert only_letters(text) == expected


def test_released_strips_the_text_whatever_the_operation_does():
    for operation in OPERATIONS:
        out = run(operation, variant="released")
        assert out == only_letters(out)
    assert run("SR", "\U0001f600 12 !", variant="released") == "\U0001f600 12 !"            # never an empty result
    assert run("SR", "Tale, tale", variant="released") == "story story"


def test_released_synonyms_are_cleaned_and_count_once():
    found = only_letters_of(lambda word: ("Well-Made", "well made", "film's", "FILM", "1930", "O.K.", "film"))("film")
    assert found == ["well made", "films", "ok"]


def test_released_synonyms_are_what_is_put_in():
    for operation, out in (("SR", {"o k x"}), ("RI", {"o k b x", "b o k x", "b x"})):
        for seed in range(40):
            assert (
                run(operation, "b x", seed, variant="released", synonyms=lambda word: ("O-K.",) if word == "b" else ())
                in out
            )


def test_released_insertion_takes_any_word_and_never_comes_last():
    rng, at = Random(0), Counter()
    for _ in range(3000):
        out = run(
            "RI", "it of tale x", rng, variant="released", synonyms=lambda word: () if word == "x" else ("new",)
        ).split()
        at[out.index("new")] += 1
    assert set(at) == {0, 1, 2, 3} and even(at, 4)
    assert run("RI", "it", variant="released") == "that it" and run("RI", "it") == "it"


def test_released_insertion_gives_up_after_nine_words_without_synonyms():
    rng, text = Random(0), "tale " + "none " * 8
    missed = sum(run("RI", text, rng, variant="released").split() == text.split() for _ in range(3000))
    assert abs(missed / 3000 - (8 / 9) ** 9) < 0.04 and len(run("RI", text).split()) == 10


def test_released_insertion_may_take_an_inserted_word():
    following = {"a": ("b",), "b": ("c",)}
    outs = [
        run("RI", "a", seed, variant="released", budget=2, synonyms=lambda word: following.get(word, ()))
        for seed in range(40)
    ]
    seen = {tuple(sorted(out.split())) for out in outs}
    assert seen == {("a", "b", "b"), ("a", "b", "c")}
    assert {run("RI", "aa", seed, budget=2, synonyms=one) for seed in range(20)} == {
        "aa aax aax", "aax aa aax", "aax aax aa",
    }


def test_released_swap_gives_up_after_three_draws_of_one_place():
    rng = Random(0)
    stayed = sum(run("RS", "a b", rng, variant="released") == "a b" for _ in range(4000))
    assert abs(stayed - 500) < 110                                        # 1 / 8
    assert all(run("RS", "a b", rng) == "b a" for _ in range(50))


def test_unknown_names_are_refused():
    for more in ({"variant": "other"}, {"operation": "XX"}):
        with pytest.raises(ValueError, match="RS"):
            eda("a", Random(0), **more)


# ---- what stays

@settings(derandomize=True, database=None, deadline=None, max_examples=80)
@given(
    text=st.text(st.characters(categories=("Lu", "Ll", "Nd", "Po", "Zs", "So", "Ps", "Pe")), max_size=60),
    seed=st.integers(0, 99),
)
def test_marks_and_other_words_stay(text, seed):
    found = words(text)
    assert sorted(words(run("RS", text, seed))) == sorted(found)
    assert re.sub(r"\w(?:\S*\w)?", "", run("RS", text, seed)) == re.sub(r"\w(?:\S*\w)?", "", text) == re.sub(
        r"\w(?:\S*\w)?", "", run("SR", text, seed, synonyms=lambda word: ("new",)))
    left = iter(found)
    assert all(word in left for word in words(run("RD", text, seed, alpha=0.4)))          # in their order


def test_the_lexicon_gives_the_synonyms_by_default():
    assert eda("film", Random(0), operation="SR") in lexicon.synonyms("film")


# ---- the originals

@pytest.fixture
def original(monkeypatch):
    """textaugment's EDA with our synonyms and a generator of its own."""
    module = pytest.importorskip("textaugment").eda
    monkeypatch.setattr(module.nltk, "download", lambda name: True)
    monkeypatch.setattr(module.EDA, "_get_synonyms", staticmethod(lambda word: list(LETTERS.get(word, ()))))
    theirs = module.EDA(stop_words=["the", "of"])
    monkeypatch.setattr(module, "random", Random(0))
    return theirs


LETTERS = {"a": ("aa",), "b": ("bb",), "c": ("cc",), "of": ("oo",)}


@pytest.mark.parametrize("operation, theirs", [
    ("SR", lambda t, text: t.synonym_replacement(text, 2)), ("RS", lambda t, text: t.random_swap(text, 2)),
    ("RD", lambda t, text: t.random_deletion(text, 0.4)),
])
def test_texts_as_the_originals(original, operation, theirs):
    rng, text = Random(1), "a b the c of"
    ours = Counter(
        run(
            operation, text, rng, variant="released", alpha=0.4, synonyms=lambda word: LETTERS.get(word, ()),
            stopwords={"the", "of"},
        )
        for _ in range(6000)
    )
    assert same(ours, Counter(theirs(original, text) for _ in range(6000)))


def test_insertions_as_the_originals_but_for_stop_words(original):
    """textaugment draws no stop words for insertion, eda.py does: compared on a text that has none."""
    rng, text = Random(1), "a b x c"
    ours = Counter(
        run("RI", text, rng, variant="released", alpha=0.5, synonyms=lambda w: LETTERS.get(w, ())) for _ in range(6000)
    )
    assert same(ours, Counter(original.random_insertion(text, 2) for _ in range(6000)))
