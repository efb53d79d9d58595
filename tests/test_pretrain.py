"""Masked language modelling: what is hidden, what is learnt from it, and the command."""
from __future__ import annotations

import math
import random
import sys
from collections import Counter

import pytest
import torch

from conftest import fails
from minibd import checkpoint
from minibd.augment.contextual import contextual
from minibd.data import in_order
from minibd.models.bert import Bert, BertConfig
from minibd.models.llama import Llama, LlamaConfig
from minibd.pretrain import causal_loss, frequency_loss, masked_loss, masking, pretrain, pretrain_causal
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule

TOKENS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(40)), "w", *(f"##{d}" for d in range(10)),
]


def make(**config) -> checkpoint.Checkpoint:
    shape = BertConfig(
        vocab=len(TOKENS), hidden=16, layers=1, heads=2, ffn=32, positions=32, dropout=0.0, attention_dropout=0.0,
        **{"labels": 0, "mlm": True, **config},
    )
    model = Bert(shape).init_weights(torch.Generator().manual_seed(1), std=0.3).eval()
    return checkpoint.Checkpoint(
        model, Tokenizer.from_vocab({p: i for i, p in enumerate(TOKENS)}, 32), ("bad", "good") if shape.labels else (),
        [],
    )


def words(n: int, seed: int = 0, longest: int = 20) -> Examples:
    rng = random.Random(seed)
    return Examples(
        [
            Example(str(i), " ".join(f"w{rng.randrange(40)}" for _ in range(rng.randint(1, longest))), 0)
            for i in range(n)
        ],
        ("bad", "good"),
    )


def test_how_many_are_chosen_and_what_becomes_of_them():
    ckpt = make()
    batch = ckpt.tokenizer(words(4000))
    hidden, chosen = masking(ckpt.model, ckpt.tokenizer, 0.15, torch.Generator().manual_seed(0))(batch)
    ordinary = batch.mask & (batch.ids >= 5)
    assert not (chosen & ~ordinary).any() and torch.equal(hidden.ids[~chosen], batch.ids[~chosen])
    assert torch.equal(hidden.mask, batch.mask) and torch.equal(hidden.labels, batch.labels)
    n, was, now = int(ordinary.sum()), batch.ids[chosen], hidden.ids[chosen]

    def near(count: int, share: float, of: int) -> None:
        assert abs(count - share * of) < 5 * math.sqrt(share * (1 - share) * of), (count, share, of)
    near(len(was), 0.15, n)
    near(int((now == 4).sum()), 0.8, len(was))
    same = 0.1 + 0.1 / (len(TOKENS) - 5)  # another token may be drawn as the one that stood there
    near(int((now == was).sum()), same, len(was))
    others = now[(now != 4) & (now != was)]
    assert (others >= 5).all() and len(set(others.tolist())) == len(TOKENS) - 5  # every ordinary token, no special one


def test_the_generator_alone_decides():
    ckpt = make()
    batch = ckpt.tokenizer(words(50))
    a, b, c = (
        masking(ckpt.model, ckpt.tokenizer, 0.5, torch.Generator().manual_seed(seed))(batch)[0].ids
        for seed in (3, 3, 4)
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_a_texts_loss_is_the_mean_over_its_chosen_tokens_and_zero_without():
    ckpt, examples, log = make(), words(6, longest=5), []
    pretrain(ckpt, ckpt.tokenizer.encode(examples), Schedule(1e-3, 1, 6), 0.3, seed=2, log=log.append)
    [step] = log
    batch = ckpt.tokenizer([examples[i] for i in step["batch"]])
    hidden, chosen = masking(ckpt.model, ckpt.tokenizer, 0.3, torch.Generator().manual_seed(2))(batch)
    assert (chosen.sum(dim=1) == 0).any() and (chosen.sum(dim=1) > 1).any()
    each = []
    for i in range(6):
        at = torch.zeros_like(chosen)
        nats = []
        for t in chosen[i].nonzero()[:, 0].tolist():
            at.zero_()
            at[i, t] = True
            logits = ckpt.model.predict_tokens(hidden, at)[0].double()
            nats.append(math.log(sum(math.exp(z) for z in logits.tolist())) - logits[batch.ids[i, t]].item())
        each.append(sum(nats) / len(nats) if nats else 0.0)
    assert step["total"] == pytest.approx(sum(each) / 6, rel=1e-5)


def test_masked_loss_is_the_mean_over_tokens_and_needs_one():
    ckpt, examples = make(), words(9)
    [order] = in_order(ckpt.tokenizer.encode(examples).lengths, 128)
    batch = ckpt.tokenizer([examples[i] for i in order])
    hidden, chosen = masking(ckpt.model, ckpt.tokenizer, 0.3, torch.Generator().manual_seed(5))(batch)
    logits = ckpt.model.predict_tokens(hidden, chosen).double()
    by_hand = (logits.logsumexp(1) - logits.gather(1, batch.ids[chosen][:, None])[:, 0]).mean().item()
    assert masked_loss(ckpt, examples, 0.3, 5) == pytest.approx(by_hand, rel=1e-6)
    fails(lambda: masked_loss(ckpt, Examples([Example("a", "", 0)], ("bad", "good"))), "no token", "more rows")


def test_a_new_head_is_drawn_by_the_seed_and_its_norm_is_a_norm():
    ckpt = make(labels=2, mlm=False)
    a, b, c = (checkpoint.with_mlm(ckpt, seed) for seed in (1, 1, 2))
    assert (
        a.labels == ()
        and a.model.config.labels == 0
        and not hasattr(a.model, "classifier")
        and ckpt.model.config.labels == 2
    )
    assert (a.model.mlm.norm.weight == 1).all() and (a.model.mlm.norm.bias == 0).all() and (a.model.mlm.bias == 0).all()
    assert torch.equal(a.model.mlm.dense.weight, b.model.mlm.dense.weight) and not torch.equal(
        a.model.mlm.dense.weight, c.model.mlm.dense.weight
    )
    for name, tensor in a.model.state_dict().items():
        assert name.startswith("mlm.") or torch.equal(tensor, ckpt.model.state_dict()[name])


def test_a_head_that_is_there_stays():
    ckpt = make()
    assert all(
        torch.equal(tensor, ckpt.model.state_dict()[name])
        for name, tensor in checkpoint.with_mlm(ckpt, 7).model.state_dict().items()
    )


def test_a_causal_model_and_a_bad_share_are_refused():
    model = Llama(
        LlamaConfig(vocab=len(TOKENS), hidden=8, layers=1, heads=2, kv_heads=2, ffn=16, positions=32, labels=0)
    )
    fails(
        lambda: checkpoint.with_mlm(checkpoint.Checkpoint(model, make().tokenizer, (), []), 0), "llama",
        "left to right"
    )
    for share in (0.0, 1.5):
        fails(lambda: masking(make().model, make().tokenizer, share, torch.Generator()), str(share), "above 0")


def test_it_learns_and_leaves_its_checkpoint_as_it_was():
    ckpt = make()
    before, chain = {name: t.clone() for name, t in ckpt.model.state_dict().items()}, words(1, longest=1)
    pattern = Examples(
        [Example(str(i), " ".join(f"w{(i + j) % 10}" for j in range(10)), 0) for i in range(100)], chain.labels
    )
    learner = pretrain(ckpt, ckpt.tokenizer.encode(pattern), Schedule(5e-3, 20, 20), seed=0)
    assert masked_loss(learner, pattern) < 0.5 * masked_loss(ckpt, pattern)
    assert all(torch.equal(before[name], t) for name, t in ckpt.model.state_dict().items())


def test_the_command_makes_what_contextual_substitution_reads(here, tiny_folder, folder, tmp_path):
    done = here("pretrain.py")(
        "--ckpt", tiny_folder, "--data", folder, "--out", tmp_path / "mlm", "--epochs", 20, "--lr", 5e-3, "--device",
        "cpu",
    )
    assert done.returncode == 0, done.stderr
    assert "200 train rows, 60 test rows" in done.stdout
    made = checkpoint.load(tmp_path / "mlm")
    assert made.model.config.mlm and made.labels == ()
    last = made.history[-1]
    assert (
        last["trained"] == "masked language modelling"
        and last["nats"]["after"] < last["nats"]["before"] - 0.5
        and last["epochs"] == 20
    )
    tokenizer = contextual("the film was rather moving", random.Random(0), made.model, made.tokenizer)
    assert tokenizer and tokenizer != "the film was rather moving"


def test_the_command_refuses_before_it_trains(here, tiny_folder, tiny_file, folder, tmp_path):
    for more, *expected in (
        (("--mask", 0), "mask is 0.0"), (("--lr", 0), "learning rate of 0"), (("--epochs", 0), "epochs is 0"),
    ):
        done = here("pretrain.py")("--ckpt", tiny_folder, "--data", folder, "--out", tmp_path / "out", *more)
        assert (
            done.returncode == 2
            and len(done.stderr.splitlines()) == 1
            and all(word in done.stderr for word in expected)
        ), done.stderr
        assert not (tmp_path / "out").exists()
    done = here("pretrain.py")("--ckpt", tiny_folder, "--data", folder, "--out", tiny_folder)
    assert done.returncode == 2 and "--out" in done.stderr


# ---- when nothing was learnt

def test_the_loss_of_guessing_by_frequency_by_hand():
    ckpt = make()
    vocabulary = [i for i in range(ckpt.tokenizer.backend.get_vocab_size()) if i not in ckpt.tokenizer.special]
    train, test = words(30, 1), words(10, 2)
    counts = Counter(i for row in ckpt.tokenizer.encode(train).ids for i in row if i not in ckpt.tokenizer.special)
    total = sum(counts.values()) + len(vocabulary)
    each = [-math.log((counts[i] + 1) / total) for row in ckpt.tokenizer.encode(test).ids for i in row
            if i not in ckpt.tokenizer.special]
    assert frequency_loss(ckpt.tokenizer, train, test) == pytest.approx(sum(each) / len(each), abs=1e-12)


def test_a_loss_that_did_not_fall_is_told_of(here, tiny_folder, folder, tmp_path):
    flags = ("--ckpt", tiny_folder, "--data", folder, "--epochs", 1, "--device", "cpu")
    still = here("pretrain.py")(*flags, "--out", tmp_path / "mlm", "--lr", 1e-12)
    assert still.returncode == 0, still.stderr
    (line,) = [line for line in still.stdout.splitlines() if line.startswith(("nothing learnt: ", "at chance: "))]
    assert line.endswith("try --lr 0.0005 (now 1e-12), --epochs 2 (now 1), more rows (now 200)")
    assert checkpoint.load(tmp_path / "mlm").history[-1]["nats"].keys() == {"before", "after", "by_frequency"}


def test_which_losses_are_told_of(here):
    here("pretrain.py")  # loads it
    module = sys.modules["pretrain_script"]

    def told(*nats: float) -> str:
        return module.not_learnt(*nats, module.Pretraining(), 10).partition(":")[0]

    assert told(7.0, 5.0, 6.0) == "" and told(7.0, 6.5, 6.0) == "at chance" == told(7.0, 6.0, 6.0)
    assert told(2.0, 2.5, 6.0) == "nothing learnt" == told(2.0, 2.0, 6.0) == told(2.0, float("nan"), 6.0)


# ---- from left to right

def causal() -> checkpoint.Checkpoint:
    config = LlamaConfig(len(TOKENS), 16, 1, 2, 32, labels=0, tied=True, positions=32)
    model = Llama(config).init_weights(torch.Generator().manual_seed(1), std=0.3).eval()
    return checkpoint.Checkpoint(model, Tokenizer.from_vocab({p: i for i, p in enumerate(TOKENS)}, 32), (), [])


def test_the_causal_loss_is_that_of_every_next_token_alone():
    ckpt, rows = causal(), words(5, longest=6)
    total, count = 0.0, 0
    for x in rows:
        batch = ckpt.tokenizer([x])
        logits = ckpt.model.predict_tokens(batch, batch.mask).double().log_softmax(-1)  # (T, V)
        for at, token in enumerate(batch.ids[0, 1:].tolist()):
            total, count = total - logits[at, token].item(), count + 1
    assert causal_loss(ckpt, rows, batch_size=2) == pytest.approx(total / count, rel=1e-5)


def test_a_causal_model_learns_what_follows_and_the_one_that_was_given_stays():
    ckpt = causal()
    before = {name: tensor.clone() for name, tensor in ckpt.model.state_dict().items()}
    rows = Examples([Example(str(i), "w1 w2 w3 w4", 0) for i in range(64)])
    learnt = pretrain_causal(ckpt, ckpt.tokenizer.encode(rows), Schedule(1e-2, 4, 16))
    assert causal_loss(learnt, rows) < causal_loss(ckpt, rows) - 1
    assert all(torch.equal(before[name], tensor) for name, tensor in ckpt.model.state_dict().items())
    fails(lambda: causal_loss(ckpt, Examples()), "two tokens")
