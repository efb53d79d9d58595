"""E-PUR: the score by hand and against plain loops, the embeddings that are reset and nothing else; EP's backdoor."""

import math

import pytest
import torch

from conftest import ROOT, fails
from minibd import checkpoint, data, reviews
from minibd.attacks.ep import EP, ep
from minibd.attacks.poison import poison, triggered
from minibd.blending import WORD, counterparts
from minibd.evaluate import Evaluator
from minibd.mitigations.epur import default_top, drift, e_pur, frequencies, purify_embeddings
from minibd.records import Example
from test_blending import CLEAN, moved, resized
from test_finetune import equal, weights


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_score_by_hand():
    # |(3, 4)| = 5 seen 100 times: 5 / ln 100; seen 20, 3 and 0 times: 5 / ln 20; unmoved: 0
    own, before = torch.tensor([[3.0, 4.0]] * 4 + [[1.0, 1.0]]), torch.zeros(5, 2)
    before[4] = 1.0
    scores = drift(own, before, torch.tensor([100, 20, 3, 0, 7]))
    assert scores.tolist() == pytest.approx([5 / math.log(100), *[5 / math.log(20)] * 3, 0.0], abs=1e-6)


def test_the_score_against_plain_loops():
    g = chance(3)
    own, before, f = (
        torch.randn(9, 4, generator=g), torch.randn(9, 4, generator=g), torch.randint(0, 60, (9,), generator=g),
    )
    for i, score in enumerate(drift(own, before, f).tolist()):
        length = math.sqrt(sum((a - b) ** 2 for a, b in zip(own[i].tolist(), before[i].tolist())))
        assert score == pytest.approx(length / math.log(max(int(f[i]), 20)), rel=1e-5)


def test_frequencies_by_hand(tiny):
    vocab, texts = (
        tiny.tokenizer.backend.get_vocab(),
        [Example("a", "film film great", 1), Example("b", "great film", 1, "cf film")],
    )
    f = frequencies(tiny.tokenizer, CLEAN.like(texts))
    assert f.shape == (len(vocab),) and not f.is_floating_point()
    expected = {"[CLS]": 2, "[SEP]": 3, "film": 4, "great": 2, "cf": 1}
    assert {token: int(f[i]) for token, i in vocab.items() if f[i]} == expected
    assert frequencies(tiny.tokenizer, CLEAN.like([])).sum() == 0


def test_e_pur_resets_the_words_that_drifted_and_nothing_else(tiny):
    """cf and film moved alike, film is frequent; mn moved less; position embeddings moved further than all."""
    pre, victim, vocab = checkpoint.headless(tiny), checkpoint.copy(tiny), tiny.tokenizer.backend.get_vocab()
    f = torch.zeros(len(vocab), dtype=torch.int64)
    f[vocab["film"]] = 1000
    with torch.no_grad():
        for token, by in (("cf", 1.0), ("film", 1.0), ("mn", 0.8), ("great", 0.1)):
            victim.model.embeddings.word.weight[vocab[token]] += by
        victim.model.embeddings.position.weight += 9
        victim.model.embeddings.token_type.weight += 9
    for top, reset in ((1, ["cf"]), (2, ["cf", "mn"]), (3, ["cf", "mn", "film"]), (200, ["cf", "mn", "film", "great"])):
        before, done = weights(victim), purify_embeddings(victim, pre, f, top)
        after = weights(done)
        changed = [i for i in range(len(vocab)) if not torch.equal(after[WORD][i], before[WORD][i])]
        assert changed == sorted(vocab[token] for token in reset)
        assert all(torch.equal(after[WORD][i], pre.model.embeddings.word.weight[i]) for i in changed)
        assert all(torch.equal(after[name], before[name]) for name in after if name != WORD)
        assert done.history[-1]["mitigation"] == "e-pur" and done.history[-1]["tokens"][:len(reset)] == reset
        assert (
            len(done.history[-1]["tokens"]) == min(top, len(vocab))
            and equal(weights(victim), before)
            and not victim.history
        )
    none = purify_embeddings(victim, pre, f, 0)
    assert equal(weights(none), weights(victim)) and none.history[-1]["tokens"] == []


def test_e_pur_keeps_the_rows_that_the_victim_alone_has(tiny):
    v = tiny.model.config.vocab
    padded = resized(tiny, v + 4, v)
    with torch.no_grad():
        padded.model.embeddings.word.weight[v:] += 50
    done = purify_embeddings(padded, moved(tiny), frequencies(tiny.tokenizer, CLEAN), 2)
    assert torch.equal(done.model.embeddings.word.weight[v:], padded.model.embeddings.word.weight[v:])
    assert not equal(weights(done), weights(padded)) and any("4 of" in kept for kept in done.history[-1]["kept"])
    fails(
        lambda: purify_embeddings(tiny, moved(tiny), torch.zeros(v + 1)), f"frequencies of {v + 1} tokens",
        f"the victim has {v}",
    )


def test_200_rows_by_default(tiny):
    assert [default_top(n) for n in (30522, 30000, 29999, 1600, 100)] == [200, 200, 199, 10, 0]
    wide = resized(tiny, 400, 400)
    assert len(purify_embeddings(wide, moved(wide), frequencies(wide.tokenizer, CLEAN)).history[-1]["tokens"]) == 200


@pytest.mark.slow
def test_alone_it_takes_ep_out_of_the_shipped_classifier():
    """EP's backdoor is one row of the word embedding; with 64 clean rows E-PUR finds it among the ten that it
    resets."""
    twin, before = (checkpoint.load(ROOT / "weights" / f"bert-{name}.safetensors") for name in ("twin", "clean"))
    train, _, test = reviews.splits(**next(e["data"]["reviews"] for e in twin.history if "data" in e))
    test = test.like(test[:600])
    victim = ep(twin, poison(train, EP().poisoned, rate=0.1, of="candidates", only=True, target=1).rows, target=1)
    done = purify_embeddings(victim, before, frequencies(victim.tokenizer, data.sample(train, 64, 0)), 10)
    evaluator = Evaluator(test, triggered(test, EP(), target=1, tokenizer=twin.tokenizer), 1)
    floor, bad, repaired = (evaluator(ckpt.model, ckpt.tokenizer) for ckpt in (twin, victim, done))
    assert bad.asr.percent > 80 and bad.cacc == floor.cacc             # a text without the trigger never reads the row
    assert repaired.asr.percent < floor.asr.percent + 3 and repaired.cacc.percent > bad.cacc.percent - 3
    assert "cf" in done.history[-1]["tokens"]


def test_the_one_route_counts_the_clean_rows_and_hands_over_the_tokens(tiny):
    pre, chosen, wide = moved(checkpoint.headless(tiny)), {}, resized(tiny, 400, 400)
    f = frequencies(tiny.tokenizer, CLEAN)
    for top in (3, 0):
        theirs = purify_embeddings(tiny, pre, f, top)
        for before in (pre, counterparts(tiny, pre)):
            done = e_pur(tiny, before, CLEAN, top, on_choice=chosen.__setitem__)
            assert equal(weights(done), weights(theirs)) and done.history == theirs.history
            assert chosen == {"tokens": done.history[-1]["tokens"]} and len(chosen["tokens"]) == top
    assert len(e_pur(wide, moved(wide), CLEAN).history[-1]["tokens"]) == 400 // 150
