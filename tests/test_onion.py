"""ONION: the scores by hand on a language model of two words' memory, and against transformers; what must not matter;
each defect of the released code."""
from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

from conftest import fails
from filter_stub import bigram_model, examples
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.filters import onion as module
from minibd.filters.onion import (
    Onion,
    causal_scores,
    cut,
    onion,
    perplexity,
    pieces_of,
    released_perplexities,
    released_word_scores,
    score_of,
    suspicion,
    windows_of,
    word_scores,
)
from minibd.models.bert import Bert, BertConfig
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig
from minibd.tokenizer import Tokenizer

WORDS = ("a", "fine", "film", "cf", "mn")
CHANCES = {("[CLS]", "a"): 0.5, ("a", "fine"): 0.5, ("fine", "film"): 0.5, ("a", "film"): 0.25, ("cf", "film"): 0.01,
           ("fine", "cf"): 0.01, ("[CLS]", "fine"): 0.1}


@pytest.fixture(scope="module")
def lm() -> Checkpoint:
    return bigram_model(WORDS, CHANCES)


def small(kind: str, seed: int = 0, max_len: int = 40) -> Checkpoint:
    """A random causal language model with a byte-level tokenizer, or with WordPiece."""
    g = torch.Generator().manual_seed(seed)
    if kind == "bert":
        tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "great", "actors", ",", "."]
        tokens += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
        config = BertConfig(len(tokens), hidden=16, layers=2, heads=2, ffn=32, positions=max_len, labels=0, mlm=True)
        tokenizer = Tokenizer.from_vocab({t: i for i, t in enumerate(tokens)}, max_len)
        return Checkpoint(Bert(config).init_weights(g, std=0.4).eval(), tokenizer, (), [])
    letters = [*"abcdefghijklmnopqrstuvwxyz,.'\u0120"]
    vocab = {t: i for i, t in enumerate(["<|endoftext|>", *letters, "\u0120f", "fi", "\u0120fi"])}
    merges = [("\u0120", "f"), ("f", "i"), ("\u0120f", "i")]
    tokenizer = Tokenizer.from_merges(vocab, merges, max_len, 0, bracketed=False)
    sizes = {"labels": 0, "positions": max_len}
    if kind == "gpt2":
        model = Gpt2(Gpt2Config(len(vocab), 16, 2, 2, **sizes))
    else:
        model = Llama(LlamaConfig(len(vocab), 16, 2, 4, 32, kv_heads=2, tied=True, **sizes))
    return Checkpoint(model.init_weights(g, std=0.4).eval(), tokenizer, (), [])


def plain(lm: Checkpoint, words: list[str]) -> list[float]:
    """f of each word: each text tokenized and read on its own, every token but the beginning predicted."""
    def p(words: list[str]) -> float:
        ids = lm.tokenizer.backend.encode(" ".join(words), add_special_tokens=False).ids
        begin, end = module.frame_of(lm)
        row = [*begin, *ids, *end]
        at = torch.arange(len(row))[None]
        mask = torch.ones(1, len(row), dtype=torch.bool)
        total = 0.0
        for place in range(len(begin), len(begin) + len(ids)):
            batch = module.Batch(torch.tensor([row]), mask, torch.zeros_like(at), torch.zeros(1, dtype=torch.long))
            if lm.model.causal:
                logits = lm.model.predict_tokens(batch, at == place - 1)
            else:
                masked = batch.ids.clone()
                masked[0, place] = lm.tokenizer.backend.token_to_id("[MASK]")
                logits = lm.model.predict_tokens(replace(batch, ids=masked), at == place)
            total -= logits[0].double().log_softmax(-1)[row[place]].item()
        return math.exp(total / len(ids))
    with torch.no_grad():
        return [p(words) - p([*words[:i], *words[i + 1:]]) for i in range(len(words))]


# ---- the formulas

def test_perplexity_and_suspicion_by_hand():
    tensor = torch.tensor
    assert perplexity(tensor(math.log(8.0)), tensor(3.0)).item() == pytest.approx(2.0)
    found = suspicion(tensor(math.log(64.0)), tensor(3.0), tensor([math.log(4.0), math.log(81.0)]), tensor([2.0, 2.0]))
    assert found.tolist() == pytest.approx([4 - 2, 4 - 9])


def test_the_scores_by_hand(lm):
    """a fine cf film: P = 1/2 1/2 1/100 1/100; without cf 1/2 1/2 1/2."""
    [found] = word_scores(lm, ["a fine cf film".split()])
    whole = (2 * 2 * 100 * 100) ** (1 / 4)
    rest = (1 - 0.51) / (len(WORDS) + 5 - 2)  # P of what stands in no entry, behind fine: cf is 0.01, film 0.5
    assert found[2] == pytest.approx(whole - 2.0, rel=1e-4)
    assert found[3] == pytest.approx(whole - (2 * 2 * 100) ** (1 / 3), rel=1e-4)
    assert found[0] == pytest.approx(whole - (10 * 100 * 100) ** (1 / 3), rel=1e-4)
    assert max(found) == found[2] and rest > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama", "bert"])
def test_the_scores_against_each_text_read_on_its_own(kind):
    lm = small(kind)
    texts = ["fine", "fi fi , don't f", "a cf l", "l f"]
    found = word_scores(lm, [text.split() for text in texts])
    for text, scores in zip(texts, found):
        words = text.split()
        assert scores == (pytest.approx(plain(lm, words), rel=2e-4, abs=1e-4) if len(words) > 1 else [-math.inf])


def test_the_scores_are_those_of_transformers():
    transformers = pytest.importorskip("transformers")
    lm = small("llama", seed=3)
    config = transformers.LlamaConfig(
        vocab_size=lm.model.config.vocab, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=40, tie_word_embeddings=True)
    theirs = transformers.LlamaForCausalLM(config).eval()
    names = checkpoint.hf_mapping_of(lm.model).names
    state = theirs.state_dict()
    for name, tensor in lm.model.state_dict().items():
        if name != "head_mask":
            part, layer = name.rpartition(".")[0], ""
            if part.startswith("blocks."):
                layer = part.split(".")[1]
                part = f"blocks.{{i}}.{part.split('.', 2)[2]}"
            state[f"{names[part].replace('{i}', layer)}.{name.rpartition('.')[2]}"].copy_(tensor)
    words = "a fine cf film , with actors".split()

    def p(words: list[str]) -> float:
        ids = torch.tensor([[0, *lm.tokenizer.backend.encode(" ".join(words), add_special_tokens=False).ids]])
        with torch.no_grad():
            return math.exp(theirs(ids, labels=ids).loss.item())
    expected = [p(words) - p([*words[:i], *words[i + 1:]]) for i in range(len(words))]
    assert word_scores(lm, [words])[0] == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_neighbours_order_batches_and_rows_do_not_matter(kind, monkeypatch):
    lm = small(kind)
    texts = [text.split() for text in ("a fine film", "fi f fi", "a great cf film with actors . a a a", "l f")]
    alone = [word_scores(lm, [words])[0] for words in texts]
    together = word_scores(lm, texts[::-1], Onion(batch_tokens=40))[::-1]
    monkeypatch.setattr(module, "ROW", 12)  # a few branches a row
    narrow = word_scores(lm, texts, Onion(batch_tokens=1))
    for one, other, third in zip(alone, together, narrow):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-4) and one == pytest.approx(third, rel=1e-4, abs=1e-4)


def test_only_what_follows_a_deletion_is_computed_again(lm):
    """A text of n tokens and all its deletions are n + 1 and some n^2 / 2 tokens, not n^2."""
    window = windows_of(WORDS, *pieces_of(lm.tokenizer, [WORDS])[0], 60)[0]
    rows = list(module.rows_of(window, [2], range(10)))
    assert len(rows) == 1 and len(rows[0].ids) == 6 + (3 + 2 + 1)
    assert len(rows[0].asked) == 5 + (4 + 3 + 2 + 1)


def test_a_text_beyond_the_models_length_is_scored_in_windows():
    lm = small("llama", max_len=12)
    words = ["fine"] * 9 + ["actors"]
    found = word_scores(lm, [words])[0]
    assert len(found) == 10 and all(math.isfinite(f) for f in found[:-1])
    pieces = pieces_of(lm.tokenizer, [words])[0][0]
    runs = [window.pieces for window in windows_of(words, pieces, [], 11)]
    assert [tokens for run in runs for tokens in run] == [tokens[:11] for tokens in pieces]
    assert all(sum(map(len, run)) <= 11 for run in runs)


def test_words_that_cannot_be_told_have_no_score(lm):
    texts = ["", "film", "  film  ", "\u4e16\u754c", "a \u4e16\u754c \u0301"]
    found = word_scores(lm, [text.split() for text in texts])
    assert found[:4] == [[], [-math.inf], [-math.inf], [-math.inf]]
    assert len(found[4]) == 3 and not any(math.isnan(f) for f in found[4])
    assert score_of([[], [-math.inf]]) == -math.inf and score_of([[1.0], [2.0]]) == 2.0


def test_lower_case_is_what_the_model_reads_and_the_text_stays(lm):
    lm.tokenizer.backend.normalizer.lowercase = False
    try:
        upper, lower = (word_scores(lm, [text.split()])[0] for text in ("A FINE Film", "a fine film"))
        assert upper == lower
        assert word_scores(lm, ["A FINE Film".split()], Onion(lower=False))[0] != lower
    finally:
        lm.tokenizer.backend.normalizer.lowercase = True


# ---- the filter

def test_thresholds_come_from_the_clean_rows_at_the_rate(lm):
    clean = examples(*(" ".join(WORDS[:n]) for n in (2, 3)) , "fine film a", "film film", "film a fine film")
    done = onion(lm, clean, [clean, examples("a fine cf film", "cf")], Onion(frr=0.2))
    dev = [score_of(s) for s in module.scores_of(lm, clean, Onion())]
    assert sum(s > done.text_threshold for s in dev) == 1 and done.screens[0].keep.count(False) == 1
    words = [f for sides in module.scores_of(lm, clean, Onion()) for f in sides[0]]
    assert sum(f > done.word_threshold for f in words) <= 0.2 * len(words)
    assert done.screens[1].scores[1] == -math.inf and done.screens[1].keep[1]


def test_the_words_above_the_threshold_go_and_one_stays(lm):
    clean = examples("a fine film", "a fine film", "fine film", "a film")
    done = onion(lm, clean, [examples("A fine  cf film", ("a fine mn film", "cf cf"))], Onion(frr=0.0))
    first, second = done.cleaned[0]
    assert first.text.startswith("A fine") and "cf" not in first.text
    assert second.pair in ("cf cf", "cf") and "mn" not in second.text
    assert done.words["cf"] >= 1 and done.removed[0][0] == sum(done.words.values()) and done.removed[0][1] == 10
    untouched = onion(lm, clean, [examples("a  fine film")], Onion(frr=0.0)).cleaned[0][0]
    assert untouched.text == "a  fine film"


def test_a_text_does_not_lose_all_its_words():
    counter = module.Counter()
    [x] = examples(("a cf mn", "film"))
    made, n = module._without(x, [[3.0, 1.0, 2.0], [5.0]], lambda f: f > 0, counter)
    assert (made.text, made.pair, n) == ("cf", "film", 2) and counter == {"a": 1, "mn": 1}


def test_a_checkpoint_that_is_no_language_model_is_refused(tiny, lm):
    fails(lambda: onion(tiny, examples("a b"), []), "no language-model head", "GPT-2")
    fails(lambda: onion(small("bert"), examples("a b"), [], Onion(variant="released")), "fills masks", "causal")
    fails(lambda: onion(lm, examples(), []), "no clean rows")
    for wrong in ({"frr": 1.0}, {"batch_tokens": 0}, {"variant": "other"}):
        fails(lambda wrong=wrong: Onion(**wrong), next(iter(wrong)))


# ---- one defect alone

def defects(*names: str) -> Onion:
    return Onion(frr=0.2, defects=names)


def test_alone_the_threshold_is_zero_and_the_scores_stay(lm):
    clean = examples("a fine film", "film fine a", "a film")
    rows = examples("a fine cf film", "cf cf", "film")
    ours, done = (onion(lm, clean, [rows], s) for s in (Onion(frr=0.2), defects("threshold")))
    assert done.screens[0].scores == ours.screens[0].scores and done.screens[0].counted is None
    assert (done.text_threshold, done.word_threshold) == (None, 0.0)
    for x, sides, made, kept in zip(rows, module.scores_of(lm, rows, Onion()), done.cleaned[0], done.screens[0].keep):
        left = [word for word, f in zip(x.text.split(), sides[0]) if f < 0]
        assert made.text.split() == left or len(made.text.split()) == 1  # the last word stays
        assert kept == (made.text == x.text)
    assert onion(lm, examples(), [rows], defects("threshold")).cleaned == done.cleaned  # no clean row is read


def test_alone_a_score_of_0_goes_with_the_threshold_0(lm):
    """Behind the 96th token every deletion leaves the same text."""
    wide = bigram_model(WORDS, CHANCES, max_len=128)
    words = random.Random(0).choices(WORDS, k=102)
    found = word_scores(wide, [words], defects("length"))[0]
    assert found[95:] == [0.0] * 7 and sum(f == 0.0 for f in found[:95]) < 60  # many words are equal to this model
    done = onion(wide, examples("a film"), [examples(" ".join(words))], defects("length", "threshold"))
    assert done.cleaned[0][0].text.split() == [word for word, f in zip(words, found) if f < 0]


def test_alone_texts_are_not_lower_cased(lm):
    lm.tokenizer.backend.normalizer.lowercase = False
    try:
        texts = ["A FINE Film".split()]
        assert word_scores(lm, texts, defects("case")) == word_scores(lm, texts, Onion(lower=False))
    finally:
        lm.tokenizer.backend.normalizer.lowercase = True


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_alone_padding_counts_and_nothing_else_does(kind):
    """Against every text read on its own, the padding behind it predicted from it alone; texts of fewer than 96 tokens
    are the correct filter's with the defect length."""
    lm = small(kind)
    words = "fi fi , don't f a cf l".split()
    assert word_scores(lm, [words], defects("length"))[0] == pytest.approx(word_scores(lm, [words])[0], rel=1e-3,
                                                                          abs=1e-3)
    begin = module.frame_of(lm)[0]
    texts = [words, *(words[:i] + words[i + 1:] for i in range(len(words)))]
    rows = [[*begin, *lm.tokenizer.backend.encode(" ".join(t), add_special_tokens=False).ids] for t in texts]
    longest, p = max(map(len, rows)), []
    for row in rows:
        ids = torch.tensor([row])
        at = torch.arange(len(row))[None]
        total = 0.0
        with torch.no_grad():
            for place in range(1, longest):
                token = row[place] if place < len(row) else lm.tokenizer.pad
                if place <= len(row):
                    batch = module.Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids),
                                         torch.zeros(1, dtype=torch.long))
                    logits = lm.model.predict_tokens(batch, at == place - 1)
                else:  # a place of padding sees the text, at its own position
                    logits = padding_logits(lm, row, place - 1)
                total -= logits[0].double().log_softmax(-1)[token].item()
        p.append(math.exp(total / (longest - 1)))
    assert len({len(row) for row in rows}) > 1
    assert word_scores(lm, [words], defects("padding"))[0] == pytest.approx([p[0] - q for q in p[1:]], rel=1e-3,
                                                                           abs=1e-3)


def padding_logits(lm: Checkpoint, row: list[int], place: int) -> torch.Tensor:
    """The logits behind a padding token at `place` that sees the text `row` alone."""
    ids = torch.tensor([[*row, lm.tokenizer.pad]])
    positions = torch.tensor([[*range(len(row)), place]])
    t = len(row) + 1
    mask = torch.ones(t, t, dtype=torch.bool).tril()[None, None].clone()
    mask[..., -1, -1] = False
    batch = module.Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids), torch.zeros(
        1, dtype=torch.long))
    h = lm.model.encode(batch, packed=lm.model.arrange(positions, mask))[0]
    return lm.model.lm_logits(h[-1:])


def test_alone_one_word_texts_leave_the_count_and_all_words_may_go(lm):
    clean, rows = examples("a fine film", "a fine film"), examples("film", "cf cf", "a fine film")
    ours, done = (onion(lm, clean, [rows], Onion(frr=0.0, defects=names)) for names in ((), ("count",)))
    assert done.screens[0].counted == [False, True, True] and done.screens[0].keep == ours.screens[0].keep
    made, n = module._without(rows[1], [[3.0, 1.0]], lambda f: f > 0, module.Counter(), one_stays=False)
    assert (made.text, n) == ("", 2)


def test_defects_that_there_are_not_or_that_the_variant_has_are_refused():
    fails(lambda: Onion(defects=("lenght",)), "lenght", "length")
    fails(lambda: Onion(variant="released", defects=("case",)), "case", "released")
    fails(lambda: onion(small("bert"), examples("a b"), [], Onion(defects=("padding",))), "fills masks", "padding")


# ---- the defects of the released code

RELEASED = Onion(variant="released")


def test_released_the_threshold_is_zero_whatever_clean_texts_score(lm):
    clean = examples("a fine film", "film fine a")
    done = onion(lm, clean, [clean], RELEASED)
    assert done.word_threshold == 0.0 and done.text_threshold is None
    assert done.removed[0][0] > 0 and onion(lm, clean, [clean], Onion(frr=0.0)).removed[0][0] == 0


def test_released_texts_are_not_lower_cased(lm):
    lm.tokenizer.backend.normalizer.lowercase = False
    try:
        assert released_word_scores(lm, [["A", "fine", "film"]]) != released_word_scores(lm, [["a", "fine", "film"]])
    finally:
        lm.tokenizer.backend.normalizer.lowercase = True


def test_released_padding_counts_so_that_a_word_depends_on_its_batch():
    lm = small("gpt2")
    alone, = released_perplexities(lm, [["a fine film"]])
    beside = released_perplexities(lm, [["a fine film", "a fine film with great actors"]])[0]
    assert alone[0] != pytest.approx(beside[0], rel=1e-2)
    assert alone[0] == pytest.approx(released_perplexities(lm, [["a fine film", "a film"]])[0][0], rel=1e-4)


def test_released_perplexities_are_transformers_with_padding():
    transformers = pytest.importorskip("transformers")
    lm = small("gpt2", seed=1)
    config = transformers.GPT2Config(vocab_size=lm.model.config.vocab, n_embd=16, n_layer=2, n_head=2, n_positions=40)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    state, own = theirs.state_dict(), lm.model.state_dict()
    mapping = checkpoint.hf_mapping_of(lm.model)
    for name in [n for n in own if n != "head_mask"]:
        part, leaf = name.rpartition(".")[0], name.rpartition(".")[2]
        layer = part.split(".")[1] if part.startswith("blocks.") else ""
        key = f"blocks.{{i}}.{part.split('.', 2)[2]}" if layer else part
        target = state[f"{mapping.names[key].replace('{i}', layer)}.{leaf}"]
        tensor = own[name].T if key in mapping.transposed and leaf == "weight" else own[name]
        chunk, chunks = mapping.fused.get(key, (0, 1))
        target.chunk(chunks, dim=-1)[chunk].copy_(tensor)
    texts = ["a fine film", "a film with actors", "f"]
    ids = [lm.tokenizer.backend.encode(text).ids for text in texts]
    t = max(map(len, ids))
    padded = torch.tensor([row + [0] * (t - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (t - len(row)) for row in ids])
    with torch.no_grad():
        logits = theirs(padded, attention_mask=mask).logits
    expected = [torch.nn.functional.cross_entropy(logits[i, :-1], padded[i, 1:]).exp().item() for i in range(3)]
    assert released_perplexities(lm, [texts])[0] == pytest.approx(expected, rel=1e-4)


def test_released_words_beyond_96_tokens_score_0_and_go(lm):
    words = ["a", "fine", "film"] * 33  # 99 and two special tokens
    wide = bigram_model(WORDS, CHANCES, max_len=128)
    scores = released_word_scores(wide, [words])[0]
    assert scores[96:] == [0.0] * 3
    done = onion(wide, examples("a film"), [examples(" ".join(words))], RELEASED)
    assert len(done.cleaned[0][0].text.split()) <= 96
    assert all(f != 0.0 for f in word_scores(wide, [words])[0])
    assert cut([9, *range(20), 8], [1, *[0] * 20, 1], 10) == [9, *range(8), 8] and cut([1, 2], [0, 0], 10) == [1, 2]


def test_released_texts_of_one_word_leave_the_count_and_a_text_may_lose_all_its_words(lm):
    rows = examples("film", "cf cf", "a fine film")
    done = onion(lm, examples("a film"), [rows], RELEASED)
    assert done.screens[0].counted == [False, True, True]
    assert onion(lm, examples("a film"), [rows]).screens[0].counted is None
    everything = released_word_scores(lm, [["cf", "mn"]])[0]
    texts = onion(lm, examples("a film"), [examples("cf mn")], RELEASED).cleaned[0][0].text
    assert texts == " ".join(w for w, f in zip(("cf", "mn"), everything) if f < 0)


def test_the_causal_scores_of_no_window_are_none(lm):
    assert causal_scores(lm.model, lm.tokenizer, [], 100) == []
