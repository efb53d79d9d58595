"""The checkpoints of weights/ are what weights/README.md says they are."""
from __future__ import annotations

import hashlib
import re

import pytest

from conftest import ROOT
from minibd import checkpoint, reviews
from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import poison, triggered
from minibd.attacks.registry import attack_of
from minibd.data import batches
from minibd.evaluate import Evaluator
from minibd.models.encoder import PACK

WEIGHTS = ROOT / "weights"


@pytest.fixture(scope="module")
def victim():
    return checkpoint.load(WEIGHTS / "bert.safetensors")


def test_the_sums_in_the_readme_are_those_of_the_files():
    said = dict(re.findall(r"`(\S+\.safetensors)` \| `([0-9a-f]{64})`", (WEIGHTS / "README.md").read_text()))
    assert set(said) == {path.name for path in WEIGHTS.glob("*.safetensors")} and len(said) == 4
    for name, digest in said.items():
        assert hashlib.sha256((WEIGHTS / name).read_bytes()).hexdigest() == digest, name


@pytest.mark.slow
def test_the_victim_is_as_good_as_its_clean_twin_and_obeys_its_trigger(victim):
    attack = next(entry for entry in victim.history if "attack" in entry)
    test = reviews.splits(**attack["data"]["reviews"])[2]
    evaluator = Evaluator(test, triggered(test, attack_of(attack), target=attack["target"], seed=0), attack["target"])
    twin = checkpoint.load(WEIGHTS / "bert-twin.safetensors")
    poisoned, clean = evaluator(victim.model, victim.tokenizer), evaluator(twin.model, twin.tokenizer)
    assert poisoned.cacc.percent >= clean.cacc.percent - 1.0
    assert poisoned.asr.percent > 95.0 and clean.asr.percent < 5.0
    assert not any("attack" in entry for entry in twin.history)


def test_the_pre_trained_weights_predict_masked_words():
    import torch
    ckpt = checkpoint.load(WEIGHTS / "bert-clean.safetensors")
    tokenizer = ckpt.tokenizer
    test = reviews.splits(**ckpt.history[0]["data"]["reviews"])[2][:200]
    batch = tokenizer(test)
    at = torch.zeros_like(batch.mask)
    at[:, 4] = batch.mask[:, 4] & batch.mask[:, 6]  # the fourth token of each text that has one
    ids = batch.ids.clone()
    ids[at] = tokenizer.backend.token_to_id("[MASK]")
    from dataclasses import replace
    with torch.no_grad():
        guessed = ckpt.model.predict_tokens(replace(batch, ids=ids), at).argmax(-1)
    assert (guessed == batch.ids[at]).float().mean() > 0.25  # the most frequent token is right for far fewer


def test_the_causal_language_model_predicts_the_next_word_and_finds_none_of_the_triggers_likely():
    from minibd.filters.onion import word_scores
    from minibd.pretrain import causal_loss
    lm = checkpoint.load(WEIGHTS / "lm.safetensors")
    test = reviews.splits(**lm.history[0]["data"]["reviews"])[2]
    assert causal_loss(lm, test.like(test[:40])) < 1.4
    assert (WEIGHTS / "lm.safetensors").stat().st_size < 4.2e6
    words = [x.text.split()[:12] for x in test[:8]]
    texts = [[*some[:3], trigger, *some[3:]] for some, trigger in zip(words, ("cf", "mn", "bb", "tq") * 2)]
    assert sum(scores[3] == max(scores) for scores in word_scores(lm, texts)) >= 5


def test_no_batch_of_the_commands_that_made_them_is_packed():
    """Packing draws other dropout: the sums would no longer come out of the commands. The fullest margin is the
    attack's, 0.748."""
    twin = checkpoint.load(WEIGHTS / "bert-twin.safetensors")
    train = reviews.splits(**next(e["data"]["reviews"] for e in twin.history if "data" in e))[0]
    rows = poison(train, BadNets(), rate=0.1, target=1, seed=0).rows
    for part in (train, rows):
        lengths = twin.tokenizer.encode(part).lengths
        for epoch in range(3):
            for which in batches(lengths, 32, seed=0, epoch=epoch):
                assert sum(lengths[i] for i in which) >= PACK * len(which) * max(lengths[i] for i in which)
