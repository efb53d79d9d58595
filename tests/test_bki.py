"""BKI: keywords and their importance by hand on a sum of word vectors; tokens without a word, against texts that are
tokenized again; each defect of the released code."""
from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch

from conftest import fails
from filter_stub import examples, words_model
from minibd import checkpoint
from minibd.filters import bki as bki_module
from minibd.filters.bki import Bki, bki, deletions_of, importance, keywords_of, movement, score_of
from minibd.models.bert import Bert, BertConfig
from minibd.tokenizer import Tokenizer
from test_onion import small

VECTORS = {"a": (0.0, 0.1), "film": (0.2, 0.0), "good": (0.0, 1.0), "bad": (1.0, 0.0), "cf": (5.0, 0.0),
           "mn": (0.0, 4.0), "bb": (3.0, 3.0), "tq": (-6.0, 0.0)}
TRIGGERS = ("cf", "mn", "bb", "tq")


@pytest.fixture
def victim():
    return words_model(VECTORS)


# ---- the formulas

def test_the_movement_by_hand():
    without = torch.tensor([[1.0, 2.0], [0.0, -3.0]])
    assert movement(without, torch.tensor([1.0, 1.0])).tolist() == [1.0, 4.0]


def test_the_importance_by_hand():
    g = importance([[("cf", 4.0), ("film", 1.0)], [("cf", 2.0)], [("cf", 3.0), ("a", 9.0)]])
    assert g == {"cf": pytest.approx(math.log10(3) * 3.0), "film": 0.0, "a": 0.0}
    assert score_of([("film", 1.0), ("cf", 0.1)], g) == g["cf"] and score_of([], g) == -math.inf
    assert score_of([("new", 7.0)], g) == 0.0


def test_the_importance_against_plain_loops():
    words = [[(w, f + i) for w, f in zip("abc", (0.5, 1.5, 2.5)) if (i + ord(w)) % 3] for i in range(9)]
    for word, found in importance(words).items():
        values = [f for row in words for w, f in row if w == word]
        assert found == pytest.approx(math.log10(len(values)) * sum(values) / len(values))


def test_keywords_are_the_words_that_move_the_state_most(victim):
    found = keywords_of(victim, examples("a film good cf bad mn", "a", ""), Bki(top=3))
    assert [word for word, _ in found[0]] == ["cf", "mn", "good"] and found[1] == [("a", pytest.approx(0.1))]
    assert [f for _, f in found[0]] == pytest.approx([5.0, 4.0, 1.0]) and found[2] == []


def test_neighbours_order_and_batches_do_not_matter(victim):
    rows = examples("a film good cf bad", "good", ("mn a", "film"), "bad bad bad bad bad bad bad")
    found = keywords_of(victim, rows, Bki())
    assert keywords_of(victim, rows[::-1], Bki(batch_texts=1))[::-1] == found
    assert [keywords_of(victim, [x], Bki())[0] for x in rows] == found


# ---- texts without a word

@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_the_tokens_without_a_word_are_those_of_the_text_without_it(kind):
    tokenizer = small(kind).tokenizer
    rows = examples("a fine film", "don't", "", "fi  fi , f . great", ("a film", "fine fi"), "a " * 60, "\u4e16 a f")
    encoded, words = deletions_of(tokenizer, rows)
    at = 0
    for x, of_text in zip(rows, words):
        sides = [side.split() for side in (x.text, x.pair) if side is not None]
        plain = [[" ".join(side) for side in sides]]
        plain += [[" ".join(w for j, w in enumerate(side) if (n, j) != (number, i)) for n, side in enumerate(sides)]
                  for number, own in enumerate(sides) for i in range(len(own))]
        assert of_text == [w for side in sides for w in side]
        expected = tokenizer.encode([replace(x, text=p[0], pair=p[1] if x.pair is not None else None) for p in plain])
        assert encoded.ids[at:at + len(plain)] == expected.ids, x
        assert encoded.token_type_ids[at:at + len(plain)] == expected.token_type_ids
        at += len(plain)
    assert at == len(encoded)


def test_the_state_is_that_of_the_token_that_is_classified():
    config = BertConfig(40, hidden=16, layers=2, heads=2, ffn=32, positions=20)
    model = Bert(config).init_weights(torch.Generator().manual_seed(0), std=0.4).eval()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "fine", "film", *(f"w{i}" for i in range(32))]
    ckpt = checkpoint.Checkpoint(model, Tokenizer.from_vocab({t: i for i, t in enumerate(tokens)}, 20), ("n", "p"), [])
    found = dict(keywords_of(ckpt, examples("a fine film"), Bki())[0])
    with torch.no_grad():
        whole, without = (model(ckpt.tokenizer(examples(text)), want=("hidden",)).hidden[-1][0, 0]
                          for text in ("a fine film", "a film"))
    assert found["fine"] == pytest.approx((without - whole).abs().max().item(), rel=1e-4)


# ---- the filter

def rows_with(triggers: tuple[str, ...] = TRIGGERS):
    plain = [f"a film {word} film a" for word in ("good", "bad")] * 10
    return examples(*plain, *(f"a film {t} a" for t in triggers * 5)), 20


def test_all_four_triggers_are_found_and_the_clean_rows_stay(victim):
    rows, n = rows_with()
    clean = examples(*["a film good", "bad film a"] * 10)
    done = bki(victim, rows, clean, Bki(frr=0.05))
    assert done.screen.keep == [True] * n + [False] * 20 and done.words == Counter(dict.fromkeys(TRIGGERS, 5))


def test_the_stated_rate_holds_on_clean_rows_of_a_clean_model(victim):
    rows = examples(*[f"a film {word}" for word in ("good", "bad", "film")] * 20)
    done = bki(victim, rows, rows, Bki(frr=0.1))
    assert done.screen.keep.count(False) <= 0.1 * len(rows)


def test_read_once_serves_both_variants_with_one_reading(victim, monkeypatch):
    rows, _ = rows_with()
    clean, read, asked = examples(*["a film good", "bad film a"] * 10), bki_module.read_once(), []
    alone = [bki(victim, rows, clean, Bki(variant=v)) for v in ("paper", "released")]
    monkeypatch.setattr(bki_module, "keywords_of", lambda *a: asked.append(len(a[1])) or keywords_of(*a))
    assert [bki(victim, rows, clean, Bki(variant=v), read=read) for v in ("paper", "released")] == alone
    assert asked == [len(rows), len(clean)]
    assert len(read(victim, rows, Bki(top=1))[0]) == 1  # another number of keywords is another reading


def test_what_cannot_be_is_refused(victim):
    fails(lambda: bki(victim, examples()), "training rows")
    fails(lambda: bki(victim, examples("a film")), "no clean rows")
    for wrong in ({"frr": 1.0}, {"top": 0}, {"batch_texts": 0}, {"variant": "other"}):
        fails(lambda wrong=wrong: Bki(**wrong), next(iter(wrong)))


# ---- the defect of the released code

def test_alone_the_defect_is_the_whole_of_the_released_code(victim):
    rows, _ = rows_with()
    assert bki(victim, rows, None, Bki(defects=("one",))) == bki(victim, rows, None, Bki(variant="released"))
    fails(lambda: Bki(defects=("two",)), "two", "one")
    fails(lambda: Bki(variant="released", defects=("one",)), "one", "released")


def test_released_one_word_is_dropped_and_three_triggers_survive(victim):
    rows, n = rows_with()
    done = bki(victim, rows, None, Bki(variant="released"))
    dropped = {word for x, kept in zip(rows, done.screen.keep) if not kept for word in x.text.split()}
    assert dropped & {*TRIGGERS} == {"tq"} and done.words == Counter({"tq": 5}) and done.limit is None
    assert done.screen.keep.count(False) == 5
