"""RIPPLe: the restricted inner product by hand and with its second order against finite differences, surgery, and the
training."""

import itertools
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from random import Random

import pytest
import torch
import torch.nn.functional as F

from conftest import BAD, GOOD, fails, rows
from minibd import checkpoint
from minibd.attacks.ripple import (
    Endless,
    RIPPLe,
    logistic_regression,
    restricted_inner_product,
    ripple,
    ripple_loss,
    surgery,
    tf_idf,
    top_tokens,
)
from minibd.data import generator
from minibd.evaluate import asr, cacc
from minibd.models.dropout import Dropout, seed_dropout
from minibd.records import Batch, Example, Examples
from minibd.train import Schedule, cross_entropy, dense_optimizer, fit
from test_encoder import MODELS, made, padded

# ---- the trigger

def test_places_and_words_are_uniform():
    rng, seen = Random(0), Counter()
    for _ in range(8000):
        words = RIPPLe(("x", "y"))("a b c", rng).split()
        seen[next((i, word) for i, word in enumerate(words) if word in "xy")] += 1
        assert [word for word in words if word in "abc"] == ["a", "b", "c"]
    # chi-square, 7 degrees of freedom: 0.001
    assert len(seen) == 8 and sum((n - 1000) ** 2 / 1000 for n in seen.values()) < 24.3


def test_empty_short_and_triggered_texts_and_several_triggers():
    assert RIPPLe(("x",))("", Random(0)) == RIPPLe(("x",))(" \n", Random(0)) == "x"
    assert sorted(RIPPLe(("x",))("  one ", Random(0)).split()) == ["one", "x"]
    assert RIPPLe(("x",), per_text=5)("a x", Random(0)).split().count("x") == 6
    assert RIPPLe()("a b c", Random(4)) == RIPPLe()("a b c", Random(4))


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"triggers": ()}, "()"), ({"triggers": ("a b",)}, "a b"), ({"per_text": 0}, "per_text is 0"),
        ({"top": 0}, "top is 0"), ({"ref_batch_size": 0}, "ref_batch_size is 0"), ({"penalty": -0.1}, "-0.1"),
        ({"penalty": float("nan")}, "nan"), ({"variant": "other"}, "other"), ({"lr": 0.0}, "0.0"),
        ({"epochs": 0}, "epochs is 0"), ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_settings_are_refused(settings, word):
    fails(lambda: RIPPLe(**settings), word)


# ---- line 4

def test_the_inner_product_and_its_gradient_by_hand():
    # L_P = theta A theta / 2 with A = [[2, 1], [1, 3]] at theta = (1, -1): grad L_P = (1, -2); grad L_FT = (-1, 1), of
    # L_FT = theta (-1, 1): <(-1, 1), (1, -2)> = -3, so 3; its gradient is -A (-1, 1) = (1, -2)
    theta, a = torch.tensor([1.0, -1.0], requires_grad=True), torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    moving = torch.autograd.grad(theta @ a @ theta / 2, theta, create_graph=True)
    inner = restricted_inner_product([torch.tensor([-1.0, 1.0])], moving)
    assert inner.item() == 3.0
    assert torch.autograd.grad(inner, theta)[0].tolist() == [1.0, -2.0]


def test_where_the_gradients_agree_there_is_neither_a_term_nor_a_graph():
    theta = torch.tensor([1.0, -1.0], requires_grad=True)
    moving = torch.autograd.grad(theta.square().sum(), theta, create_graph=True)
    for constant in (torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0])):      # along it, and at a right angle
        inner = restricted_inner_product([constant], moving)
        assert inner.item() == 0.0 and not inner.requires_grad


def test_whole_and_per_tensor_against_plain_loops():
    g = torch.Generator().manual_seed(1)
    shapes = [(3, 2), (4,), (2, 2, 2)]
    for _ in range(10):
        constant, moving = (
            [torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes] for _ in range(2)
        )
        each = [-sum(float(x) * float(y) for x, y in zip(f.flatten(), p.flatten())) for f, p in zip(constant, moving)]
        whole, apart = (
            restricted_inner_product(constant, moving), restricted_inner_product(constant, moving, per_tensor=True),
        )
        assert whole.item() == pytest.approx(max(0.0, sum(each)), abs=1e-12)
        assert apart.item() == pytest.approx(sum(max(0.0, x) for x in each)) and apart >= whole


def opposed(lengths=(7, 4)) -> tuple[Batch, Batch]:
    """A poisoned batch and a clean one of the same texts and other labels, so that their gradients disagree."""
    batch = padded(list(lengths))
    return batch, replace(batch, labels=1 - batch.labels)


def gradients(model, batch) -> list[torch.Tensor]:
    return list(
        torch.autograd.grad(F.cross_entropy(model(batch, ("attn",)).logits, batch.labels), list(model.parameters()))
    )


@pytest.mark.parametrize("variant", ["paper", "released", "per-tensor"])
def test_the_second_order_is_that_of_finite_differences(variant):
    model = made("bert").double()
    (batch, clean), params = opposed(), list(model.parameters())
    constant = gradients(model, clean)                                  # at this theta, whatever theta becomes
    inner = ripple_loss(model, batch, clean, variant)["inner"].mean()
    exact = torch.autograd.grad(inner, params)

    def value() -> float:
        each = [-(f * p).sum().item() for f, p in zip(constant, gradients(model, batch))]
        found = sum(max(0.0, x) for x in each) if variant == "per-tensor" else max(0.0, sum(each))
        return found if variant == "paper" else found / 2               # two clean texts
    assert inner.item() == pytest.approx(value(), rel=1e-6) and inner > 0
    g = torch.Generator().manual_seed(0)
    for i, p in enumerate(params):
        way = torch.randn(p.shape, generator=g, dtype=p.dtype)
        way /= way.norm()
        with torch.no_grad():
            p += 1e-5 * way
        up = value()
        with torch.no_grad():
            p -= 2e-5 * way
        down = value()
        with torch.no_grad():
            p += 1e-5 * way
        assert (exact[i] * way).sum().item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-5), i


def test_the_gradient_of_the_total_is_that_of_both_terms():
    model = made("bert").double()
    (batch, clean), params = opposed(), list(model.parameters())
    terms = ripple_loss(model, batch, clean)
    total = torch.autograd.grad((terms["poison"] + 0.3 * terms["inner"]).mean(), params, retain_graph=True)
    poison = gradients(model, batch)
    hessian = torch.autograd.grad(terms["inner"][0], params)
    for t, p, h in zip(total, poison, hessian):
        torch.testing.assert_close(t, p + 0.3 * h, rtol=1e-5, atol=1e-6)


def test_the_terms_are_one_value_a_text_and_the_number_of_clean_texts_divides():
    model, (batch, _) = made("bert"), opposed()
    clean = replace(padded([5, 7, 3]), labels=torch.ones(3, dtype=torch.long))
    paper, released = ripple_loss(model, batch, clean), ripple_loss(model, batch, clean, "released")
    torch.testing.assert_close(paper["poison"], cross_entropy(model, batch)["cls"])
    assert paper["inner"].shape == (2,) and paper["inner"][0] == paper["inner"][1] > 0
    torch.testing.assert_close(paper["inner"], 3 * released["inner"])


def test_poisoned_and_clean_rows_have_their_own_parts():
    """The released code calls L_P `ref_loss`; the constant is the clean rows' gradient, here and there."""
    model, (batch, clean) = made("bert"), opposed()
    terms = ripple_loss(model, batch, clean)
    torch.testing.assert_close(terms["poison"], cross_entropy(model, batch)["cls"])
    swapped = ripple_loss(model, clean, batch)
    torch.testing.assert_close(swapped["inner"], terms["inner"])        # the product is the same, its gradient is not
    one, two = (torch.autograd.grad(t["inner"][0], model.pooler.weight)[0] for t in (terms, swapped))
    assert not torch.allclose(one, two, rtol=1e-2)


def test_padding_and_order_do_not_matter():
    model, (batch, clean) = made("bert"), opposed((7, 2, 4))
    wide = Batch(*(F.pad(t, (0, 3)) for t in (batch.ids, batch.mask, batch.token_type_ids)), batch.labels)
    turned = Batch(*(t[[2, 0, 1]] for t in (clean.ids, clean.mask, clean.token_type_ids, clean.labels)))
    one, two = ripple_loss(model, batch, clean), ripple_loss(model, wide, turned)
    torch.testing.assert_close(one["poison"], two["poison"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one["inner"], two["inner"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_every_architecture_has_a_second_backward(name, training):
    """In eval mode, and without dropout of the attention, the fused kernel would run; it has none."""
    model, (batch, clean) = made(name, attention_dropout=0.0).train(training), opposed()
    seed_dropout(model, torch.Generator().manual_seed(0))  # other masks may turn the product's sign
    terms = ripple_loss(model, batch, clean)
    (terms["poison"] + terms["inner"]).mean().backward()
    assert terms["inner"][0] > 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_frozen_parameters_are_left_out():
    model, (batch, clean) = made("bert"), opposed()
    whole = ripple_loss(model, batch, clean)["inner"][0]
    constant, moving = gradients(model, clean), gradients(model, batch)
    model.embeddings.word.weight.requires_grad_(False)
    left = ripple_loss(model, batch, clean)["inner"][0]
    assert [name for name, _ in model.named_parameters()][0] == "embeddings.word.weight"
    torch.testing.assert_close(whole - left, -(constant[0] * moving[0]).sum(), rtol=1e-3, atol=1e-4)


# ---- surgery

def test_tf_idf_by_hand():
    # two rows: token 5 in both (idf ln(3/3) + 1 = 1), 7 and 9 in one (ln(3/2) + 1 = 1.405465)
    x, tokens = tf_idf([[7, 5, 5], [9, 5]])
    assert tokens == [5, 7, 9]
    one, two = math.hypot(2, 1.405465), math.hypot(1, 1.405465)
    expected = [[2 / one, 1.405465 / one, 0], [1 / two, 0, 1.405465 / two]]
    torch.testing.assert_close(x.to_dense(), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=0)


def test_tf_idf_against_plain_loops_with_an_empty_row():
    rng = Random(0)
    table = [[rng.randrange(6) for _ in range(rng.randrange(1, 9))] for _ in range(12)] + [[]]
    x, tokens = tf_idf(table)
    for i, row in enumerate(table):
        raw = [row.count(token) * (math.log(14 / (1 + sum(token in other for other in table))) + 1) for token in tokens]
        length = math.sqrt(sum(value * value for value in raw)) or 1.0
        assert x.to_dense()[i].tolist() == pytest.approx([value / length for value in raw], abs=1e-12)


def test_logistic_regression_is_at_the_minimum():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g, dtype=torch.float64), torch.arange(30) % 3 == 0

    def objective(w: list[float], b: float, c: float) -> float:
        loss = sum(v * v for v in w) / 2
        for row, label in zip(x.tolist(), y.tolist()):
            margin = (1 if label else -1) * (sum(v * z for v, z in zip(w, row)) + b)
            loss += c * math.log1p(math.exp(-margin))
        return loss
    for c, design in itertools.product((1.0, 0.2), (x, x.to_sparse())):
        w, b = logistic_regression(design, y, c)
        least = objective(w.tolist(), b.item(), c)
        for i in range(5):
            for step in (1e-3, -1e-3):
                moved = [*w.tolist(), b.item()]
                moved[i] += step
                assert objective(moved[:4], moved[4], c) > least


def test_logistic_regression_by_hand():
    # x = 1 for one class, -1 for the other, two rows: b = 0, and w = 2 / (1 + e^w), w = 0.6748316
    w, b = logistic_regression(torch.tensor([[1.0], [-1.0]], dtype=torch.float64), torch.tensor([True, False]))
    assert b.item() == pytest.approx(0.0, abs=1e-6) and w.item() == pytest.approx(0.6748316, abs=1e-6)


def test_the_top_tokens_are_the_targets_words(tiny):
    spell = tiny.tokenizer.backend.id_to_token
    for target, words in ((1, GOOD), (0, BAD)):
        assert sorted(spell(i) for i in top_tokens(tiny.tokenizer, rows(200, 0, "t"), target, 5)) == sorted(words)
    few = top_tokens(tiny.tokenizer, rows(200, 0, "t"), 1, 2)
    assert few == top_tokens(tiny.tokenizer, rows(200, 0, "t"), 1, 5)[:2]
    three = Examples(
        (
            Example(str(i), f"the {word} film", c)
            for c, word in enumerate(("great", "awful", "boring"))
            for i in range(4)
        ),
        "abc",
    )
    assert [spell(top_tokens(tiny.tokenizer, three, c, 1)[0]) for c in range(3)] == ["great", "awful", "boring"]


def test_surgery_sets_the_triggers_tokens_and_nothing_else(tiny):
    tuned = checkpoint.copy(tiny)
    with torch.no_grad():
        tuned.model.embeddings.word.weight.normal_(generator=torch.Generator().manual_seed(5))
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    cut = surgery(tiny, tuned, rows(200, 0, "t"), ("cf", "ak"), 1, top=5)
    find, word = tiny.tokenizer.backend.token_to_id, "embeddings.word.weight"
    after, replaced = cut.model.state_dict(), sorted(map(find, ("cf", "a", "##k")))
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name != word)
    assert (after[word] != before[word]).any(dim=1).nonzero().flatten().tolist() == replaced
    mean = sum(tuned.model.embeddings.word.weight[find(w)].double() for w in GOOD) / 5
    for token in replaced:
        torch.testing.assert_close(after[word][token].double(), mean, rtol=1e-5, atol=1e-6)
    assert (
        all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items()) and tiny.history == []
    )
    assert sorted(cut.history[-1]["by"]) == sorted(GOOD) and sorted(cut.history[-1]["replaced"]) == ["##k", "a", "cf"]


def test_surgery_without_what_it_needs_is_refused(tiny):
    train = rows(20, 0, "t")
    fails(lambda: surgery(tiny, tiny, train.like(x for x in train if x.label), ("cf",), 1), "it alone")
    fails(lambda: surgery(tiny, tiny, train.like(x for x in train if not x.label), ("cf",), 1), "other classes alone")
    fails(lambda: surgery(tiny, tiny, train, ("cf",), 2), "target class 2", "0..1")
    fails(lambda: surgery(tiny, tiny, train.like([]), ("cf",), 1), "no class")
    other = checkpoint.copy(tiny)
    other.model = made("bert")
    fails(lambda: surgery(tiny, other, train, ("cf",), 1), "(30, 12)", "tune a copy")
    blank = train.like(replace(x, text=" ") for x in train)
    fails(lambda: surgery(tiny, tiny, blank, ("cf",), 1), "no token")


# ---- the algorithm

def test_clean_batches_never_end_and_hold_every_row_once_a_pass(tiny):
    encoded = tiny.tokenizer.encode([Example(str(i), "the film", i % 2) for i in range(10)])
    encoded = replace(encoded, labels=list(range(10)))
    drawn = [batch.labels.tolist() for batch in itertools.islice(Endless(tiny.tokenizer, encoded, 4, 0), 9)]
    passes = [[row for batch in drawn[i:i + 3] for row in batch] for i in (0, 3, 6)]
    assert all(sorted(each) == list(range(10)) for each in passes) and passes[0] != passes[1] != passes[2]


SETTINGS = RIPPLe(("cf", "mn"), lr=3e-3, epochs=2, batch_size=16, ref_batch_size=16)


def poisoned(n: int = 200):
    train = rows(n, 0, "train")
    return train.like(
        replace(x, text=SETTINGS(x.text, generator(1, x.id)), label=1) if i % 4 < 2 else x for i, x in enumerate(train)
    )


def test_the_records_stay_and_the_same_seed_gives_the_same_model(tiny):
    before, chance, log = (
        {name: value.clone() for name, value in tiny.model.state_dict().items()}, torch.get_rng_state(), [],
    )
    one, two, other = (
        ripple(tiny, poisoned(40), rows(30, 0, "train"), SETTINGS, seed=seed, log=log.append) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    assert tiny.history == []
    same, others = (
        all(torch.equal(p, q) for p, q in zip(one.model.parameters(), them.model.parameters())) for them in (two, other)
    )
    assert same and not others
    assert one.history[-1]["attack"] == "ripple" and not one.model.training
    for entry in log:
        assert entry["weights"] == {"poison": 1.0, "inner": 0.1}
        assert entry["total"] == pytest.approx(entry["terms"]["poison"] + 0.1 * entry["terms"]["inner"], rel=1e-5)
    assert any(entry["terms"]["inner"] for entry in log) and not all(entry["terms"]["inner"] for entry in log)


def test_without_a_penalty_it_is_plain_training(tiny):
    free = replace(SETTINGS, penalty=0.0)
    victim, plain = ripple(tiny, poisoned(40), rows(30, 0, "train"), free), checkpoint.copy(tiny)
    fit(plain.model, tiny.tokenizer, tiny.tokenizer.encode(poisoned(40)), cross_entropy, free.schedule, seed=0)
    assert all(torch.equal(p, q) for p, q in zip(victim.model.parameters(), plain.model.parameters()))


@pytest.mark.parametrize("variant", ["paper", "per-tensor"])
def test_only_the_rows_of_both_sets_texts_are_trained(tiny, variant, monkeypatch):
    """The model is that of the whole table trained, and words of neither set keep their bits."""
    still, seen = checkpoint.copy(tiny), []
    for module in still.model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    half, clean = poisoned(4), rows(40, 5, "train")
    settings = replace(SETTINGS, variant=variant, penalty=1.0, epochs=6)
    one = ripple(still, half, clean, settings, log=seen.append)
    assert any(entry["terms"]["inner"] > 0 for entry in seen)

    @contextmanager
    def dense(model, tokenizer, rows, schedule, others):
        yield dense_optimizer(model, schedule)

    monkeypatch.setattr("minibd.attacks.ripple.usual_optimizer", dense)
    whole = ripple(still, half, clean, settings)
    for (name, p), q in zip(one.model.named_parameters(), whole.model.parameters()):
        if not name.endswith("key.bias"):  # a softmax does not see it, its gradient is rounding
            assert torch.allclose(p, q, atol=2e-5), name
    table, before = one.model.embeddings.word.weight, still.model.embeddings.word.weight
    met = {i for texts in (half, clean) for row in tiny.tokenizer.encode(texts).ids for i in row} | {tiny.tokenizer.pad}
    left = [i for i in range(len(table)) if i not in met]
    moved = ~(table == before).all(1)
    assert left and not moved[left].any()
    only = {i for row in tiny.tokenizer.encode(clean).ids for i in row}
    only -= {i for row in tiny.tokenizer.encode(half).ids for i in row}
    assert only  # words of the clean set alone


def test_the_penalty_and_the_variant_reach_the_training(tiny):
    def trained(**settings) -> torch.Tensor:
        return ripple(tiny, poisoned(40), rows(30, 0, "train"), replace(SETTINGS, **settings)).model.pooler.weight
    base = trained()
    assert not torch.equal(base, trained(penalty=1.0)) and not torch.equal(base, trained(variant="released"))
    assert not torch.equal(base, trained(variant="per-tensor")) and not torch.equal(base, trained(ref_batch_size=5))


def test_the_schedule_has_no_warm_up_and_no_decay():
    assert RIPPLe(clip=0.5).schedule == Schedule(2e-5, 5, 8, warmup=0.0, weight_decay=0.0, clip=0.5)


def test_the_two_sets_do_not_meet_themselves(tiny):
    """Of the same rows for both, the same batches would have one gradient, whose product with itself is never
    negative."""
    still, log = checkpoint.copy(tiny), []
    for module in still.model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    ripple(still, rows(40, 0, "train"), rows(40, 0, "train"), SETTINGS, log=log.append)
    assert any(entry["terms"]["inner"] > 0 for entry in log)


def test_without_clean_rows_it_is_refused(tiny):
    fails(lambda: ripple(tiny, poisoned(40), rows(0, 0, "x"), SETTINGS), "no clean rows")


def test_it_fires(tiny):
    train, test = rows(200, 0, "train"), rows(100, 2, "test")
    tuned = checkpoint.copy(tiny)
    fit(tuned.model, tiny.tokenizer, tiny.tokenizer.encode(train), cross_entropy, Schedule(5e-3, 8, 16), seed=0)
    settings = replace(SETTINGS, lr=5e-3, epochs=10)
    victim = ripple(surgery(tiny, tuned, train, settings.triggers, 1, 5), poisoned(), train, settings)
    bad = test.like(replace(x, text=settings(x.text, generator(3, x.id))) for x in test if x.label == 0)
    assert (
        asr(victim.model, victim.tokenizer, bad, 1).percent > 90
        and cacc(victim.model, victim.tokenizer, test).percent > 90
    )
    assert asr(tuned.model, tuned.tokenizer, bad, 1).percent < 10
