"""Token splitting: how many words, which, where they are cut, and what is left alone."""
import re
from collections import Counter
from math import ceil
from pathlib import Path
from random import Random

import pytest

from minibd.augment.split import split
from minibd.data import generator, read

SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2" / "train.tsv"
EXAMPLE = "a stirring, funny and finally transporting re-imagining of beauty"  # the paper's, III-B1


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def splits(text: str, seed: int = 0, **settings) -> int:
    """How many words were split: each adds one."""
    return len(words(split(text, Random(seed), **settings))) - len(words(text))


# ---- how many

@pytest.mark.parametrize("n, expected", [
    (1, 1),      # ceil 0.3
    (3, 1),      # ceil 0.9
    (4, 2),      # ceil 1.2
    (10, 3),     # 3.0 exactly
    (11, 4),     # ceil 3.3
    (20, 6),     # 6.0 exactly
    (33, 10),    # ceil 9.9
    (34, 10),    # ceil 10.2, capped
    (200, 10),
])
def test_a_text_of_n_tokens_has_ceil_of_0_3_n_words_split_ten_at_most(n, expected):
    assert splits("splitting " * n) == expected


def test_punctuation_and_short_words_count_in_n():
    three = "splitting splitting splitting"
    assert splits(three) == 1                          # n = 3
    assert splits(three + " , , , ,") == 3             # n = 7, ceil 2.1
    assert splits(three + " a of to is") == 3
    assert splits("don't splitting splitting") == 2    # don ' t splitting splitting: n = 5, ceil 1.5


def test_never_more_words_than_are_eligible():
    assert splits("splitting , , , , , , , , ,") == 1              # n = 10 asks for 3
    assert splits("word " + "of " * 50) == 1                       # n = 51 asks for 10


def test_the_bounds_can_be_moved():
    text = "splitting " * 40
    assert splits(text, max_targets=12) == 12                      # ceil(0.3 * 40) exactly
    assert splits(text, max_targets=3) == 3
    assert splits(text, rate=0.05, max_targets=100) == 2
    assert splits(text, rate=0.0, min_targets=5) == 5
    assert splits(text, rate=1.0, max_targets=100) == 40


# ---- which

@pytest.mark.parametrize(
    "min_char, split_words", [(4, {"four", "fiver"}), (3, {"abc", "four", "fiver"}), (5, {"fiver"}), (6, set())]
)
def test_words_of_min_char_and_longer_are_eligible(min_char, split_words):
    text = "a ab abc four fiver"
    out = words(split(text, Random(0), rate=1.0, min_char=min_char))
    assert {w for w in text.split() if w not in out} == split_words


@pytest.mark.parametrize("min_char", [1, 2])
def test_a_word_too_short_to_cut_never_crashes(min_char):
    assert split("a ab", Random(0), rate=1.0, min_char=min_char) == "a ab"
    assert split("a ab abc", Random(0), rate=1.0, min_char=min_char) == "a ab a bc"


def test_stop_words_are_left_whole_as_written():
    text = "Film film films"
    for seed in range(20):
        out = split(text, Random(seed), rate=1.0, stopwords=("film",)).split()
        assert "film" in out and "Film" not in out and "films" not in out
    assert split("film film", Random(0), stopwords={"film"}) == "film film"


def test_digits_and_underscores_are_word_characters_and_other_alphabets_too():
    for word in ("12345", "snake_case", "café", "Москва"):
        assert len(split(word, Random(0)).split()) == 2


def test_every_eligible_word_is_a_target_equally_often():
    text, draws = "alpha bravo gamma delta omega", 5000                # n = 5: 2 targets of 5
    rng, hit = Random(1), Counter()
    for _ in range(draws):
        out = words(split(text, rng))
        hit.update(w for w in text.split() if w not in out)
    assert sum(hit.values()) == 2 * draws
    for word in text.split():                                          # 2000 expected, sd sqrt(5000 * 0.4 * 0.6) = 35
        assert abs(hit[word] - 2000) < 5 * 35


# ---- where

def test_the_cut_is_uniform_over_1_to_L_minus_2():
    rng, at = Random(0), Counter()
    for _ in range(6000):
        first, second = split("abcdefgh", rng).split()
        assert first + second == "abcdefgh"
        at[len(first)] += 1
    assert set(at) == {1, 2, 3, 4, 5, 6}                               # 7 would leave h alone
    assert sum((n - 1000) ** 2 / 1000 for n in at.values()) < 20.5     # chi-square, 5 degrees of freedom: 0.001


@pytest.mark.parametrize(
    "word, cuts", [("abc", {"a bc"}), ("abcd", {"a bcd", "ab cd"}), ("abcde", {"a bcde", "ab cde", "abc de"})]
)
def test_short_words_have_these_cuts(word, cuts):
    rng = Random(0)
    assert {split(word, rng, min_char=3) for _ in range(200)} == cuts


# ---- what it looks like afterwards

def test_no_space_stands_before_a_mark_and_quotes_and_brackets_stay_apart():
    text = "it , is . so : up ; to ? 5 % ' x ' (y) a-b abc !"             # "abc" has one cut
    assert split(text, Random(0), min_char=3) == "it, is. so: up; to? 5% ' x ' ( y ) a - b a bc!"


@pytest.mark.parametrize("text", ["", "   ", " a of  to ", "it is , so .", "!!! ??", "\tthe\n"])
def test_a_text_with_nothing_to_split_comes_back_byte_for_byte(text):
    assert split(text, Random(0)) == text


def test_letters_are_neither_lost_nor_moved():
    for seed in range(50):
        for text in (
            EXAMPLE, "don't  stop -- the well-made film's 2nd half (of 3) is  fine .", "naïve façade — déjà-vu",
        ):
            assert "".join(split(text, Random(seed)).split()) == "".join(text.split())


def test_the_same_seed_gives_the_same_text():
    assert split(EXAMPLE, Random(3)) == split(EXAMPLE, Random(3))
    assert len({split(EXAMPLE, Random(seed)) for seed in range(30)}) == 30


def test_the_papers_example_is_one_of_the_draws():
    # 12 tokens, ceil 3.6 = 4 targets of 6: one draw in C(6, 4) * 6 * 3 * 7 * 4 = 7560. The paper prints "re-im
    # gaining".
    rng = Random(0)
    assert "a st irring, fu nny and finally transporting re - im agining of be auty" in {
        split(EXAMPLE, rng) for _ in range(40_000)
    }


# ---- real rows

@pytest.mark.skipif(not SST2.is_file(), reason="the real data is not here")
def test_on_sst2_the_counts_are_those_of_the_reference():
    rows = read(SST2)
    assert len(rows) == 6920
    n, targets, unchanged = [], [], 0
    for x in rows:
        tokens = [token for token in re.split(r"(\W)", x.text) if token.strip()]
        eligible = sum(len(t) >= 4 for t in tokens)
        out = split(x.text, generator(0, x.id))
        n.append(len(tokens))
        targets.append(len(words(out)) - len(words(x.text)))
        unchanged += out == x.text
        assert targets[-1] == min(eligible, max(1, min(10, ceil(0.3 * len(tokens)))))
    assert round(sum(n) / len(n), 1) == 20.8
    assert round(sum(targets) / len(targets), 1) == 6.4
    assert round(100 * sum(t == 10 for t in targets) / len(targets), 1) == 17.5
    assert unchanged == 11
