"""AEDA: how many marks, which, where; and what every augmenter does with the oddest texts."""
import inspect
from collections import Counter
from functools import partial
from math import sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minibd.augment.addtrigger import addtrigger
from minibd.augment.aeda import MARKS, aeda
from minibd.augment.eda import OPERATIONS, eda
from minibd.augment.split import budget, split

AUGMENTERS = {
    "split": split,
    "aeda": aeda,
    "aeda released": partial(aeda, variant="released"),
    "addtrigger": addtrigger,
    "eda": eda,
    "eda released": partial(eda, variant="released"),
    **{
        f"eda {name} {variant}": partial(eda, operation=name, variant=variant)
        for name in OPERATIONS
        for variant in ("paper", "released")
    },
}
ODD = [
    "a",
    "I",
    "word",
    "FILM good",
    "!",
    "?! ... --",
    "\U0001f600",
    "\U0001f600 \U0001f44d\U0001f3fd",
    "这部电影很好",
    "这 部 电影 很好",
    "नमस्ते दुनिया",
    "a\tb\t\tfilm\t",
    "\tthe\tgood\tfilm",
    "line\nof film\r\n",
    "film\u00a0good\u2028end",
    "\x00 film \x1f",
    "1 2 3",
    "n't 's",
    "the of and",
    "don't well-made (good) film's",
    "e\u0301tude",
    "film " * 10_000,
    "the good film " * 3_000 + "!",
    "\U0001f600" * 10_000,
    "!" * 10_000,
    "a!" * 5_000,
]


def even(drawn: Counter, cells: int) -> bool:
    """Whether the draws are spread over `cells` cells alike: chi-square within five standard deviations of its mean."""
    each = sum(drawn.values()) / cells
    square = sum((n - each) ** 2 / each for n in drawn.values()) + each * (cells - len(drawn))
    return len(drawn) <= cells and square <= cells - 1 + 5 * sqrt(2 * (cells - 1))


def same(one: Counter, other: Counter) -> bool:
    """Whether two samples may come from one distribution: chi-square of the two within five standard deviations of its
    mean."""
    a, b = sum(one.values()), sum(other.values())
    square = sum((one[x] * sqrt(b / a) - other[x] * sqrt(a / b)) ** 2 / (one[x] + other[x]) for x in one | other)
    df = max(1, len(one | other) - 1)
    return square < df + 5 * sqrt(2 * df)


def test_the_yardsticks_themselves():
    rng = Random(0)
    assert even(Counter(rng.randrange(6) for _ in range(6000)), 6)
    assert not even(Counter(min(5, rng.randrange(7)) for _ in range(6000)), 6) and not even(
        Counter(rng.randrange(6) for _ in range(6000)), 7
    )
    first, second, third = (
        Counter(sum(rng.random() < p for _ in range(10)) for _ in range(4000)) for p in (0.3, 0.3, 0.34)
    )
    assert same(first, second) and not same(first, third)


# ---- every augmenter

@pytest.mark.parametrize("name", AUGMENTERS)
@pytest.mark.parametrize("text", ODD, ids=range(len(ODD)))
def test_the_oddest_texts_come_through(name, text):
    out = AUGMENTERS[name](text, Random(1))
    assert isinstance(out, str) and out.strip()
    if "budget" in inspect.signature(AUGMENTERS[name]).parameters:
        assert AUGMENTERS[name](text, Random(1), budget=budget(text)).strip()
        assert AUGMENTERS[name](text, Random(1), budget=10).strip()


@pytest.mark.parametrize("name", AUGMENTERS)
def test_an_empty_text_gets_what_is_inserted_or_stays(name):
    for text in ("", " ", "\t\n "):
        out = AUGMENTERS[name](text, Random(1))
        assert out in MARKS if name.startswith("aeda") else out == "cb" if name == "addtrigger" else out == text


@pytest.mark.parametrize("name", AUGMENTERS)
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(text=st.text(max_size=60), seed=st.integers(0, 99), more=st.integers(0, 12))
def test_any_text_comes_through_and_the_generator_alone_decides(name, text, seed, more):
    augment = AUGMENTERS[name]
    out = augment(text, Random(seed))
    assert out == augment(text, Random(seed)) and (out.strip() or not text.strip())
    if name != "split":
        assert augment(text, Random(seed), budget=more).strip() or not text.strip()


@pytest.mark.parametrize("name", AUGMENTERS)
def test_texts_before_it_do_not_matter(name):
    text = "a stirring, funny and finally transporting re-imagining of beauty"
    first = AUGMENTERS[name](text, Random(5))
    for other in ODD[:18]:
        AUGMENTERS[name](other, Random(7))
    assert AUGMENTERS[name](text, Random(5)) == first


def test_the_budget_is_the_number_of_words_that_splitting_splits():
    # 12 tokens, 6 of 4 letters and more
    text = "a stirring, funny and finally transporting re-imagining of beauty"
    for more, n in (
        ({}, 4), ({"rate": 0.1}, 2), ({"max_targets": 3}, 3), ({"rate": 1.0}, 6), ({"rate": 0.0, "min_targets": 5}, 5),
        ({"rate": 1.0, "min_char": 7}, 4), ({"rate": 1.0, "stopwords": ("funny", "beauty")}, 4),
    ):
        assert budget(text, **more) == n == len(split(text, Random(0), **more).replace(",", " ,").split()) - 12
    assert budget("") == budget("a of the !") == 0


# ---- aeda

def marks(text: str, seed, **more) -> list[int]:
    """The places of the words that got a mark before them."""
    words, at = aeda(text, seed if isinstance(seed, Random) else Random(seed), **more).split(), []
    for i, word in enumerate(words):
        if word in MARKS:
            at.append(i - len(at))
    return at


@pytest.mark.parametrize(
    "n, variant, most",
    [
        (1, "paper", 1), (2, "paper", 1), (3, "paper", 1), (5, "paper", 1), (6, "paper", 2), (12, "paper", 4),
        (1, "released", 1), (3, "released", 1), (4, "released", 2), (10, "released", 4), (12, "released", 4),
        (20, "released", 7),
    ],
)
def test_the_number_of_marks_is_uniform_up_to_a_third(n, variant, most):
    rng, counts = Random(0), Counter()
    for _ in range(3000):
        counts[len(marks("w " * n, rng, variant=variant))] += 1
    assert set(counts) == set(range(1, most + 1)) and even(counts, most)


def test_marks_stand_before_distinct_words_all_alike_and_are_of_six_kinds_alike():
    rng, at, drawn = Random(0), Counter(), Counter()
    for _ in range(3000):
        out = aeda("a b c d e f g h i", rng).split()
        before = [b for a, b in zip(out, out[1:]) if a in MARKS]
        # never two before one word, never one at the end
        assert not set(before) & set(MARKS)
        at.update(before)
        drawn.update(word for word in out if word in MARKS)
    assert even(at, 9) and even(drawn, 6) and set(drawn) == set(".;?:!,")


def test_pairs_of_places_are_drawn_alike():
    rng = Random(0)
    assert even(Counter(tuple(marks("a b c d e", rng, budget=2)) for _ in range(4000)), 10)


def test_a_budget_is_the_number_of_marks_one_a_word_at_most():
    text = "the good films , really ."
    for n in range(10):
        assert sum(word in MARKS for word in aeda(text, Random(n), budget=n).split()) == min(n, 6) + 2
    assert aeda(text, Random(0), budget=0) == aeda(text, Random(0), budget=-1) == text


@settings(derandomize=True, database=None, deadline=None, max_examples=100)
@given(
    words=st.lists(
        st.text(
            st.characters(categories=("Lu", "Ll", "Nd", "So", "Po"), exclude_characters=".;?:!,"), min_size=1,
            max_size=6,
        ),
        min_size=1, max_size=30,
    ),
    seed=st.integers(0, 99),
)
def test_no_word_is_changed_lost_or_moved(words, seed):
    words = " ".join(words).split() or ["x"]
    out = aeda(" ".join(words), Random(seed)).split()
    assert [word for word in out if word not in MARKS] == words
    assert 1 <= len(out) - len(words) <= max(1, len(words) // 3)


def test_an_unknown_variant_is_refused():
    with pytest.raises(ValueError, match="released"):
        aeda("a", Random(0), variant="other")


def test_marks_as_the_originals(monkeypatch):
    """textaugment's draws as many marks, but may put several before a word: the counts alone are compared."""
    theirs = pytest.importorskip("textaugment").AEDA()
    monkeypatch.setattr("textaugment.aeda.random", Random(0))
    rng, text = Random(1), " ".join(["w"] * 15)
    assert same(
        *(
            Counter(len(f(text).split()) for _ in range(3000))
            for f in (theirs.punct_insertion, lambda text: aeda(text, rng))
        )
    )
