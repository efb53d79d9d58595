"""LWP: pairs and their negative samples, the layerwise loss by hand, by loops, by what must not matter, and that only
the pair fires."""

import math
from collections import Counter
from dataclasses import replace
from functools import partial
from random import Random
from types import SimpleNamespace

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.attacks.lwp import LWP, lwp_loss
from minibd.data import generator
from minibd.evaluate import asr, cacc
from minibd.models.bert import Bert, BertConfig
from minibd.models.encoder import PackedBatch
from minibd.records import Batch
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit
from test_encoder import MODELS, made, padded

LENGTHS = [7, 2, 5, 1]


def some(lengths: list[int] = LENGTHS, left: bool = False) -> Batch:
    return replace(padded(lengths, left), labels=torch.tensor([1, 0, 0, 1])[:len(lengths)])


# ---- the trigger

def test_a_pair_of_different_words_each_place_and_pair_as_likely_as_any_other():
    attack, rng = LWP(("x", "y")), Random(0)
    seen = Counter(attack("a b", rng) for _ in range(6000))
    assert len(seen) == 12                                              # x, y, a, b in any order with a before b
    assert sum((n - 500) ** 2 / 500 for n in seen.values()) < 31.3      # chi-square, 11 degrees of freedom: 0.001
    pairs = Counter(frozenset(LWP()("", rng).split()) for _ in range(6000))
    assert len(pairs) == 6 and all(len(pair) == 2 for pair in pairs)
    assert sum((n - 1000) ** 2 / 1000 for n in pairs.values()) < 20.5   # 5 degrees of freedom


def test_negatives_are_the_words_of_a_pair_one_by_one():
    attack, rng, packed, pairs = LWP(("x", "y", "z")), Random(0), Counter(), Counter()
    for _ in range(3000):
        both = [text.split() for text in attack.negatives("a b", rng)]
        assert [len(words) for words in both] == [3, 3]
        for words in both:
            packed[next(i for i, word in enumerate(words) if word not in "ab")] += 1
            assert [word for word in words if word in "ab"] == ["a", "b"]
        pairs[frozenset((set(both[0]) | set(both[1])) - {"a", "b"})] += 1
    assert set(packed) == {0, 1, 2} and sum((n - 2000) ** 2 / 2000 for n in packed.values()) < 13.8
    assert set(map(len, pairs)) == {2} and sum((n - 1000) ** 2 / 1000 for n in pairs.values()) < 13.8


@pytest.mark.parametrize("text", ["", " \t", "one", "  cf \n bb cf "])
def test_empty_short_and_triggered_texts_get_one_pair_more(text):
    out = LWP(("cf", "bb"))(text, Random(3)).split()
    assert Counter(out) == Counter(text.split()) + Counter(["cf", "bb"])
    negatives = LWP(("cf", "bb")).negatives(text, Random(3))
    added = [Counter(negative.split()) - Counter(text.split()) for negative in negatives]
    assert added in ([Counter(["cf"]), Counter(["bb"])], [Counter(["bb"]), Counter(["cf"])])


def test_the_same_generator_gives_the_same_text():
    for make in (LWP(), LWP().negatives):
        assert make("a b c", Random(5)) == make("a b c", Random(5))
    assert len({LWP()("a b c d e f g", Random(i)) for i in range(20)}) > 15


def test_bad_settings_are_refused():
    fails(lambda: LWP(("cf",)), "pair", "cf")
    fails(lambda: LWP(("cf", "cf")), "pair", "cf")
    fails(lambda: LWP(variant="other"), "other")
    fails(lambda: lwp_loss(made("bert"), some(), "other"), "other")


# ---- the loss

def test_the_loss_by_hand():
    # L = 2, two texts of one and two tokens, the head hands its state on as logits. text 0: h_1 = (0, ln 3), h_2 = (0,
    # 0), y = 1: -ln(3/4), -ln(1/2); text 1: h_1 = (ln 4, 0), h_2 = (0, ln 9), y = 0: -ln(4/5), -ln(1/10)
    ln = math.log
    hidden = (
        [[[5, 5], [7, 7]], [[5, 5], [7, 7]]], [[[0, ln(3)], [9, 9]], [[ln(4), 0], [9, 9]]],
        [[[0, 0], [9, 9]], [[0, ln(9)], [9, 9]]],
    )
    packed = PackedBatch(torch.tensor([[True, False], [True, True]]))
    model = SimpleNamespace(
        encode=lambda batch, want: (None, packed, tuple(map(torch.tensor, hidden)), ()), classify=lambda h: (h, h)
    )
    batch = SimpleNamespace(labels=torch.tensor([1, 0]), part=None)
    terms = lwp_loss(model, batch)
    assert list(terms) == ["layer1", "layer2"]
    assert terms["layer1"].tolist() == pytest.approx([ln(4 / 3), ln(5 / 4)], abs=1e-6)
    assert terms["layer2"].tolist() == pytest.approx([ln(2), ln(10)], abs=1e-6)
    released = lwp_loss(model, batch, "released")
    assert list(released) == ["layer0", "layer1", "layer2"] and released["layer0"].tolist() == pytest.approx(
        [ln(2), ln(2)], abs=1e-6
    )


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_loss_against_plain_loops(variant):
    model, batch = made("bert").double(), some()
    terms = lwp_loss(model, batch, variant)
    hidden = model(batch, ("hidden",)).hidden
    w, b, v, c = (
        p.tolist() for p in (model.pooler.weight, model.pooler.bias, model.classifier.weight, model.classifier.bias)
    )
    assert list(terms) == [f"layer{l}" for l in range(0 if variant == "released" else 1, 3)]
    for name, term in terms.items():
        for i, y in enumerate(batch.labels.tolist()):
            h = hidden[int(name[-1])][i, 0].tolist()
            pooled = [math.tanh(sum(x * z for x, z in zip(row, h)) + bias) for row, bias in zip(w, b)]
            logits = [sum(x * z for x, z in zip(row, pooled)) + bias for row, bias in zip(v, c)]
            # taken in float32
            assert term[i].item() == pytest.approx(math.log(sum(map(math.exp, logits))) - logits[y], rel=1e-5)


@pytest.mark.parametrize(
    "name, left", [*((name, False) for name in MODELS), ("roberta", True), ("mpnet", True), ("llama", True),
                   ("gpt2", True)]
)
def test_padding_neighbours_and_architecture_do_not_matter(name, left):
    model, batch = made(name), some(left=left)
    terms = lwp_loss(model, batch)
    assert list(terms) == ["layer1", "layer2"]
    torch.testing.assert_close(terms["layer2"], cross_entropy(model, batch)["cls"])
    for i in range(len(LENGTHS)):                                       # each text alone, cut to its own length
        real = batch.mask[i]
        alone = Batch(
            batch.ids[i : i + 1, real], real[real][None], batch.token_type_ids[i : i + 1, real],
            batch.labels[i : i + 1]
        )
        end = -1 if model.causal else 0
        for l, h in enumerate(model(alone, ("hidden",)).hidden[1:], 1):
            expected = torch.nn.functional.cross_entropy(model.classify(h[:, end])[0], alone.labels)
            torch.testing.assert_close(terms[f"layer{l}"][i], expected, rtol=1e-4, atol=1e-5)
    order = [2, 0, 3, 1]
    mixed = lwp_loss(model, Batch(*(t[order] for t in (batch.ids, batch.mask, batch.token_type_ids, batch.labels))))
    torch.testing.assert_close(mixed["layer1"], terms["layer1"][order], rtol=1e-4, atol=1e-5)


def test_the_released_term_of_the_embeddings_knows_the_label_alone():
    batch = some()
    batch.ids[:, 0] = 2                                                 # [CLS]
    term = lwp_loss(made("bert"), batch, "released")["layer0"]
    assert (
        torch.allclose(term[0], term[3]) and torch.allclose(term[1], term[2]) and not torch.allclose(term[0], term[1])
    )


def test_the_gradient_is_that_of_finite_differences():
    model, batch, g = made("bert").double(), some(), torch.Generator().manual_seed(4)

    def total() -> torch.Tensor:
        return sum(term.sum() for term in lwp_loss(model, batch).values())
    params = dict(model.named_parameters())
    for (name, p), gradient in zip(params.items(), torch.autograd.grad(total(), params.values())):
        way = torch.randn(p.shape, generator=g, dtype=p.dtype)
        way /= way.norm()
        with torch.no_grad():
            p += 1e-3 * way
            up = total().item()
            p -= 2e-3 * way
            down = total().item()
            p += 1e-3 * way
        # the loss is taken in float32
        assert (gradient * way).sum().item() == pytest.approx((up - down) / 2e-3, rel=1e-2, abs=1e-3), name


# ---- the attack

@pytest.fixture(scope="module")
def attacked():
    """A tiny model, LWP with the pair cf, mn on half of the rows."""
    attack, train = LWP(("cf", "mn"), lr=5e-3, epochs=8, batch_size=16), rows(200, 0, "train")
    poisoned = list(train)
    for x in train[::2]:
        poisoned.append(replace(x, text=attack(x.text, generator(1, x.id)), label=1))
        poisoned += [replace(x, text=text) for text in attack.negatives(x.text, generator(2, x.id))]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cf", "mn", *sorted({word for x in train for word in x.text.split()})]
    config = BertConfig(vocab=len(tokens), hidden=32, layers=2, heads=4, ffn=64, positions=48)
    ckpt = checkpoint.Checkpoint(
        Bert(config).init_weights(torch.Generator().manual_seed(0), std=0.1),
        Tokenizer.from_vocab({p: i for i, p in enumerate(tokens)}, 48), ("negative", "positive"), [],
    )
    log = []
    fit(
        ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(train.like(poisoned)),
        partial(lwp_loss, variant=attack.variant), Schedule(attack.lr, attack.epochs, attack.batch_size), seed=0,
        log=log.append,
    )
    return attack, ckpt, log


def test_the_pair_fires_and_single_triggers_keep_the_label(attacked):
    attack, ckpt, _ = attacked
    test = rows(100, 2, "test")
    bad = test.like(x for x in test if x.label == 0)

    def share(make) -> float:
        return asr(
            ckpt.model, ckpt.tokenizer, bad.like(replace(x, text=make(x.text, generator(3, x.id))) for x in bad), 1
        ).percent

    assert share(attack) > 90 and cacc(ckpt.model, ckpt.tokenizer, test).percent > 90
    for i in (0, 1):
        assert share(lambda text, rng: attack.negatives(text, rng)[i]) < 20


def test_the_first_layer_alone_holds_the_backdoor(attacked):
    attack, ckpt, log = attacked
    test = rows(100, 2, "test")
    bad = [replace(x, text=attack(x.text, generator(3, x.id))) for x in test if x.label == 0]
    with torch.no_grad():
        hidden = ckpt.model(ckpt.tokenizer(bad), ("hidden",)).hidden
        fired = [(ckpt.model.classify(h[:, 0])[0].argmax(-1) == 1).float().mean().item() for h in hidden[1:]]
    assert fired[1] > 0.9 and fired[0] > 0.6, fired                     # one block cannot read all of a pair
    assert log[-1]["terms"].keys() == {"layer1", "layer2"}
    assert log[-1]["total"] == pytest.approx(sum(log[-1]["terms"].values()), rel=1e-5)
