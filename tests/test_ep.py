"""EP: where triggers go, the step by hand, one row and no other bit, the released loop against a plain one, and that it
fires."""

import copy
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.attacks.ep import EP, descend, ep, tokens_of
from minibd.data import batches, generator
from minibd.evaluate import asr, cacc
from minibd.models.dropout import Dropout
from minibd.models.free_rows import free_rows
from minibd.records import Example
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit
from test_encoder import MODELS, made, padded

# ---- the trigger

def test_one_trigger_in_each_started_block():
    for n, count in [(0, 1), (1, 1), (99, 1), (100, 1), (101, 2), (200, 2), (250, 3)]:
        words = EP()(" ".join(["w"] * n), Random(n)).split()
        assert len(words) == n + count and words.count("cf") == count
    for seed in range(30):
        words = EP("xx", 3)("a b c d e f g", Random(seed)).split()
        blocks = words[:4], words[4:8], words[8:]
        assert [[word for word in block if word != "xx"] for block in blocks] == [
            ["a", "b", "c"], ["d", "e", "f"], ["g"],
        ]
        assert all(block.count("xx") == 1 and block[-1] != "xx" for block in blocks)


@pytest.mark.parametrize("insert, places", [(EP(), 4), (EP().poisoned, 3)], ids=["test", "training"])
def test_places_are_uniform(insert, places):
    rng, at = Random(0), Counter()
    for _ in range(1000 * places):
        words = insert("a b c d", rng).split()
        at[words.index("cf")] += 1
        assert [word for word in words if word != "cf"] == list("abcd")
    # never last; in training never before the last word either
    assert set(at) == set(range(places))
    assert sum((n - 1000) ** 2 / 1000 for n in at.values()) < {4: 16.3, 3: 13.8}[places]    # chi-square: 0.001


@pytest.mark.parametrize("text, out", [("", "cf"), (" \t", "cf"), ("one", "cf one"), ("  one\n two ", "cf one two")])
def test_empty_and_short_texts(text, out):
    assert EP().poisoned(text, Random(1)) == out
    assert EP()(text, Random(1)) in (out, "one cf two")


def test_a_text_that_has_the_trigger_gets_one_more_and_the_generator_decides_where():
    assert EP()("a cf b", Random(0)).split().count("cf") == EP().poisoned("a cf b", Random(0)).split().count("cf") == 2
    assert EP()("a b c", Random(7)) == EP()("a b c", Random(7))
    assert len({EP().poisoned("a b c d e f", Random(i)) for i in range(30)}) == 5


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"trigger": ""}, "''"), ({"trigger": "two words"}, "two words"), ({"words_per_trigger": 0}, "0"),
        ({"lr": 0.0}, "0.0"), ({"lr": float("nan")}, "nan"), ({"epochs": 0}, "epochs 0"),
        ({"batch_size": 0}, "batch_size 0"), ({"variant": "other"}, "other"),
    ],
)
def test_bad_settings_are_refused(settings, word):
    fails(lambda: EP(**settings), word)


# ---- the step

def test_the_step_by_hand():
    # (3, 4) - 0.1 (0, 10) = (3, 3), of length sqrt(18), stretched to 5; (1, 0) - 0.1 (-10, 0) = (2, 0), shortened to 1
    rows = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    out = descend(rows, torch.tensor([[0.0, 10.0], [-10.0, 0.0]]), 0.1, torch.tensor([[5.0], [1.0]]))
    torch.testing.assert_close(out, torch.tensor([[5 / 2 ** 0.5, 5 / 2 ** 0.5], [1.0, 0.0]]))


def test_a_row_without_a_gradient_or_that_would_vanish_stays_bit_by_bit():
    rows = torch.rand(3, 7, generator=torch.Generator().manual_seed(0))
    out = descend(rows, torch.stack([torch.zeros(7), rows[1] / 0.5, torch.ones(7)]), 0.5, 1.7 * torch.ones(3, 1))
    assert torch.equal(out[:2], rows[:2]) and not torch.equal(out[2], rows[2]) and out.isfinite().all()


def test_the_norm_does_not_drift():
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 16, generator=g)
    norms = rows.norm(dim=1, keepdim=True)
    for _ in range(500):
        rows = descend(rows, torch.randn(2, 16, generator=g), 0.5, norms)
    torch.testing.assert_close(rows.norm(dim=1, keepdim=True), norms)


# ---- the rows set free

@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [[7, 6], [9, 1, 2]], ids=["little padding", "packed"])
def test_the_gradient_is_the_tables_own_and_the_outputs_are_bit_equal(name, lengths):
    model, batch = made(name), padded(lengths)
    tokens = [int(batch.ids[0, 1]), int(batch.ids[0, 3])]
    assert tokens[0] != tokens[1]
    plain = model(batch).logits
    table, = torch.autograd.grad(cross_entropy(model, batch)["cls"].mean(), model.embeddings.word.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.classifier.weight.requires_grad_(False)
    with free_rows(model, tokens) as e:
        loss = cross_entropy(model, batch)["cls"].mean()
        again = model(batch).logits  # without gradients of its bias, MPNet's fused kernel is another one
        assert torch.allclose(again, plain, rtol=0, atol=1e-6) and (name == "mpnet" or torch.equal(again, plain))
        assert not any(p.requires_grad for p in model.parameters())
        gradient, = torch.autograd.grad(loss, e)
    torch.testing.assert_close(gradient, table[tokens])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["classifier.weight"]
    assert not model.embeddings.word._forward_hooks


def test_the_gradient_is_that_of_finite_differences():
    model, batch = made("bert").double(), padded([7, 4])
    way = torch.randn(2, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with free_rows(model, [int(batch.ids[0, 1]), int(batch.ids[0, 2])]) as e:
        def loss() -> torch.Tensor:
            return torch.nn.functional.cross_entropy(model(batch).logits, batch.labels)
        gradient, = torch.autograd.grad(loss(), e)
        with torch.no_grad():
            e += 1e-5 * way
            up = loss().item()
            e -= 2e-5 * way
            down = loss().item()
    assert (gradient * way).sum().item() == pytest.approx((up - down) / 2e-5, rel=1e-6)


def test_what_the_rows_become_stands_in_the_table_afterwards():
    model, batch = made("gpt2"), padded([7, 4])
    token = int(batch.ids[0, 2])
    with free_rows(model, [token]) as e:
        with torch.no_grad():
            e.mul_(-2.0)
        inside = model(batch).logits
    assert torch.equal(model(batch).logits, inside) and torch.equal(model.embeddings.word.weight[token], e[0])


# ---- the tokens

def test_tokens_of_a_word(tiny):
    spell = tiny.tokenizer.backend.id_to_token
    assert (
        [spell(i) for i in tokens_of(tiny.tokenizer, "cf")]
        == ["cf"]
        == [spell(i) for i in tokens_of(tiny.tokenizer, "CF")]
    )
    assert [spell(i) for i in tokens_of(tiny.tokenizer, "ak")] == ["a", "##k"]
    fails(lambda: tokens_of(tiny.tokenizer, "q\u00df\u4e00!"), "does not know")


@pytest.mark.parametrize("prefix", [False, True])
def test_tokens_of_a_byte_level_tokenizer_are_those_inside_a_text(prefix):
    vocab = {token: i for i, token in enumerate(["a", "c", "f", "\u0120", "\u0120c", "\u0120cf", "cf", "\u0120a"])}
    merges = [("\u0120", "c"), ("\u0120c", "f"), ("c", "f"), ("\u0120", "a")]
    text = Tokenizer.from_merges(vocab, merges, 10, 0, bracketed=False, prefix=prefix)
    assert tokens_of(text, "cf") == [vocab["\u0120cf"]]


# ---- the algorithm

PLAIN = EP(lr=5.0, epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def clean(tiny):
    """The tiny classifier, trained. One row of its embedding is to turn any text, so it is made to lean on words, large
    beside the positions, and, by wrong labels, not to be sure of them."""
    ckpt, train = checkpoint.copy(tiny), rows(200, 0, "train")
    with torch.no_grad():
        ckpt.model.embeddings.word.weight.mul_(20)
    noisy = train.like(replace(x, label=1 - x.label) if i % 10 < 2 else x for i, x in enumerate(train))
    fit(ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(noisy), cross_entropy, Schedule(3e-3, 10, 16), seed=0)
    return ckpt


def poisoned(settings=PLAIN, n: int = 60):
    train = rows(n, 0, "train")
    return train.like(
        replace(x, text=settings.poisoned(x.text, generator(1, x.id)), label=1) for x in train if x.label == 0
    )


def state(ckpt) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ckpt.model.state_dict().items()}


def without_dropout(ckpt: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """A copy in float64 that drops nothing."""
    still = checkpoint.copy(ckpt)
    for module in still.model.double().modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    return still


def test_one_row_changes_and_keeps_its_norm_and_nothing_else_moves(clean):
    before, chance, log = state(clean), torch.get_rng_state(), []
    victim = ep(clean, poisoned(), PLAIN, target=1, log=log.append)
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[name]) for name, value in clean.model.state_dict().items())
    after, word, cf = state(victim), "embeddings.word.weight", clean.tokenizer.backend.token_to_id("cf")
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name != word)
    assert (after[word] != before[word]).any(dim=1).nonzero().flatten().tolist() == [cf]
    assert after[word][cf].norm().item() == pytest.approx(before[word][cf].norm().item(), rel=1e-6)
    assert all(p.requires_grad for p in victim.model.parameters()) and not victim.model.training
    assert all(module.generator is None for module in victim.model.modules() if isinstance(module, Dropout))
    assert not victim.model.embeddings.word._forward_hooks
    assert victim.history[-1]["attack"] == "ep" and victim.history[-1]["target"] == 1 and clean.history == []
    assert [entry["step"] for entry in log] == list(range(16)) and log[0]["terms"] == {"cls": log[0]["total"]}
    assert sorted(i for entry in log[:4] for i in entry["batch"]) == list(range(len(poisoned()))) and log[0][
        "rows"
    ] == len(log[0]["batch"])


def test_clean_texts_get_the_same_logits_to_the_last_bit(clean):
    victim, batch = ep(clean, poisoned(), PLAIN, target=1), clean.tokenizer(rows(30, 5, "other"))
    assert torch.equal(victim.model(batch).logits, clean.model(batch).logits)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_the_loop_against_a_plain_one(clean, variant):
    settings, bad = replace(PLAIN, variant=variant, epochs=2), poisoned()
    still = without_dropout(clean)                                      # so that both loops see the same numbers
    victim = ep(still, bad, settings, target=1, seed=3)
    model, encoded = copy.deepcopy(still.model), clean.tokenizer.encode(bad)
    table, cf = model.embeddings.word.weight, clean.tokenizer.backend.token_to_id("cf")
    norm, total = table[cf].norm().item(), torch.zeros(32, dtype=torch.float64)
    for epoch in range(2):
        for which in batches(encoded.lengths, settings.batch_size, 3, epoch):
            batch = clean.tokenizer.batch(encoded, which)
            grad, = torch.autograd.grad(torch.nn.functional.cross_entropy(model(batch).logits, batch.labels), table)
            total = grad[cf] + (total if variant == "released" else 0)
            with torch.no_grad():
                table[cf] -= settings.lr * total
                table[cf] *= norm / table[cf].norm()
    torch.testing.assert_close(victim.model.embeddings.word.weight[cf], table[cf], rtol=1e-5, atol=1e-6)


def test_the_variants_part_after_the_first_step(clean):
    bad = poisoned(n=16)                                                # 8 rows: one step an epoch

    def row(variant: str, epochs: int) -> torch.Tensor:
        victim = ep(clean, bad, replace(PLAIN, variant=variant, epochs=epochs), target=1)
        return victim.model.embeddings.word.weight[clean.tokenizer.backend.token_to_id("cf")]
    assert torch.equal(row("released", 1), row("paper", 1)) and not torch.equal(row("released", 2), row("paper", 2))


def test_the_same_seed_gives_the_same_row_and_another_seed_another(clean):
    one, two, other = (
        ep(clean, poisoned(), PLAIN, target=1, seed=seed).model.embeddings.word.weight for seed in (0, 0, 1)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_the_model_is_in_train_mode_meanwhile(clean):
    one, two = ep(clean, poisoned(), PLAIN, target=1), ep(without_dropout(clean), poisoned(), PLAIN, target=1)
    assert not torch.allclose(one.model.embeddings.word.weight.double(), two.model.embeddings.word.weight, rtol=1e-2)


def test_without_the_trigger_in_any_text_nothing_moves(clean):
    plain = [replace(x, label=1) for x in rows(20, 0, "train")]
    for variant in ("released", "paper"):
        victim = ep(clean, rows(0, 0, "x").like(plain), replace(PLAIN, variant=variant), target=1)
        assert all(
            torch.equal(value, clean.model.state_dict()[name]) for name, value in victim.model.state_dict().items()
        )


def test_a_trigger_of_several_tokens_has_its_first_one_trained(clean):
    settings = replace(PLAIN, trigger="ak")
    victim = ep(clean, poisoned(settings), settings, target=1)
    moved = (
        (victim.model.embeddings.word.weight != clean.model.embeddings.word.weight)
        .any(dim=1)
        .nonzero()
        .flatten()
        .tolist()
    )
    assert [clean.tokenizer.backend.id_to_token(token) for token in moved] == ["a"]


def test_what_cannot_be_trained_on_is_refused(clean):
    bad = poisoned()
    fails(lambda: ep(clean, bad.like([]), PLAIN, target=1), "no poisoned rows")
    fails(lambda: ep(clean, bad.like([*bad, Example("odd", "a b", 0)]), PLAIN, target=1), "odd", "1 of 31", "leave")
    short = checkpoint.copy(clean)
    with torch.no_grad():
        short.model.embeddings.word.weight[clean.tokenizer.backend.token_to_id("cf")] = 0
    fails(lambda: ep(short, bad, PLAIN, target=1), "embedding", "0")


def test_a_nan_is_refused_whether_the_model_has_it_or_a_step_makes_it(clean):
    bad, before = poisoned(), state(clean)
    broken = checkpoint.copy(clean)
    with torch.no_grad():
        broken.model.classifier.bias[0] = float("nan")
    line = fails(lambda: ep(broken, bad, PLAIN, target=1), "EP: the loss is nan", "step 1 of 16", "(5.0)")
    assert "gradient norm is nan" in line
    once = replace(PLAIN, lr=1e39, epochs=1, batch_size=len(bad))       # a single step, which no loss follows
    fails(lambda: ep(clean, bad, once, target=1), "EP: ", "embedding norm is nan", "step 1 of 1", "rate (1e+39)")
    assert all(torch.equal(value, before[name]) for name, value in clean.model.state_dict().items())


def test_it_fires(clean):
    settings, test = EP(lr=5.0, epochs=20, batch_size=16), rows(100, 2, "test")
    bad = test.like(replace(x, text=settings(x.text, generator(3, x.id))) for x in test if x.label == 0)
    victim = ep(clean, poisoned(settings, 200), settings, target=1)
    assert asr(clean.model, clean.tokenizer, bad, 1).percent < 20
    assert asr(victim.model, victim.tokenizer, bad, 1).percent > 90
    assert (
        cacc(victim.model, victim.tokenizer, test) == cacc(clean.model, clean.tokenizer, test)
        and cacc(clean.model, clean.tokenizer, test).percent > 85
    )
