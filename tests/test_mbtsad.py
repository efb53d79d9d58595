"""MBTSAD: each equation by hand, against plain loops, and by what must not matter; then the algorithm on a tiny
model."""

import copy
import hashlib
import importlib.util
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import ROOT, fails
from conftest import rows as drawn_rows
from minibd import checkpoint, predict
from minibd.augment import lexicon
from minibd.augment.addtrigger import addtrigger
from minibd.augment.aeda import aeda
from minibd.augment.contextual import contextual
from minibd.augment.eda import eda
from minibd.augment.split import budget, split
from minibd.checkpoint import Checkpoint
from minibd.data import generator
from minibd.mitigations import mbtsad as module
from minibd.mitigations.mbtsad import (
    AUGMENTERS,
    MBTSAD,
    AugmentResources,
    attention_loss,
    attention_map,
    augmented,
    distil,
    distill_loss,
    distill_terms,
    each_augmented,
    hidden_loss,
    mbtsad,
    mean_loss,
    perturbation,
    power,
    resources_of,
    retrain,
)
from minibd.models.bert import Bert, BertConfig
from minibd.models.dropout import Dropout
from minibd.records import BadInput, Batch, Example, Examples, Output
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "nad_attention.safetensors"
SETTINGS = MBTSAD(
    k=2, lr1=1e-3, lr2=1e-3, epochs1=1, epochs2=1, batch_size=4, alpha=0.7, beta=0.3, gamma=1.1, p=2.0, originals=False
)

LENGTHS = [6, 4, 1, 3]                                          # B = 4 ragged texts
B, H, T, D, LAYERS = 4, 3, 6, 5, 2
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]         # (B, T)


def maps(seed: int, mask: torch.Tensor = MASK) -> list[torch.Tensor]:
    """LAYERS of (B, H, T, T) softmax maps with the padded keys at 0; padded queries are ordinary rows, as in a real
    model."""
    g = torch.Generator().manual_seed(seed)
    b, t = mask.shape
    scores = [2 * torch.randn(b, H, t, t, generator=g) for _ in range(LAYERS)]
    return [s.masked_fill(~mask[:, None, None, :], -math.inf).softmax(dim=-1) for s in scores]


def states(seed: int) -> list[torch.Tensor]:
    """LAYERS + 1 of (B, T, D)."""
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, T, D, generator=g) for _ in range(LAYERS + 1)]


def pad(layers: list[torch.Tensor], extra: int) -> list[torch.Tensor]:
    """`extra` more places: key columns of 0, query rows of anything (attention); anything at all (hidden states)."""
    out = []
    for x in layers:
        if x.dim() == 4:
            b, h, t, _ = x.shape
            wide = torch.rand(b, h, t + extra, t + extra, generator=torch.Generator().manual_seed(99))
            wide[..., t:] = 0
            wide[:, :, :t, :t] = x
        else:
            wide = torch.cat([x, 9 * torch.ones(x.shape[0], extra, x.shape[2])], dim=1)
        out.append(wide)
    return out


def pad_mask(mask: torch.Tensor, extra: int) -> torch.Tensor:
    return torch.cat([mask, torch.zeros(mask.shape[0], extra, dtype=torch.bool)], dim=1)


def tensor(rows) -> torch.Tensor:
    """Rows of one text and one head: (1, 1, T, T)."""
    return torch.tensor(rows, dtype=torch.float32)[None, None]


EYE, SWAP = tensor([[1, 0], [0, 1]]), tensor([[0, 1], [1, 0]])
BOTH, FIRST = torch.tensor([[True, True]]), torch.tensor([[True, False]])


# ---- Eq. (3): the map

def test_map_by_hand():
    # F = [[.5^2, .5^2], [1, 0]] = [[.25, .25], [1, 0]], ||F|| = sqrt(1.125) = 1.0606602
    q = attention_map(tensor([[0.5, 0.5], [1.0, 0.0]]), BOTH)
    assert torch.allclose(q[0], torch.tensor([[0.2357023, 0.2357023], [0.9428090, 0.0]]), atol=2e-6)


def test_map_adds_the_heads():
    # heads [[1, 0], [0, 1]] and [[0, 1], [0, 1]]: F = [[1, 1], [0, 2]], ||F|| = sqrt(6)
    attn = torch.cat([EYE, tensor([[0, 1], [0, 1]])], dim=1)
    assert torch.allclose(attention_map(attn, BOTH)[0], torch.tensor([[1, 1], [0, 2]]) / math.sqrt(6), atol=2e-6)


def test_map_takes_the_power_p():
    # p = 1: F = A, ||F|| = sqrt(1.5); p = 3: F = [[1/8, 1/8], [1, 0]], ||F|| = sqrt(1 + 1/32)
    attn = tensor([[0.5, 0.5], [1.0, 0.0]])
    assert torch.allclose(attention_map(attn, BOTH, 1.0), attn[0] / math.sqrt(1.5), atol=2e-6)
    assert torch.allclose(
        attention_map(attn, BOTH, 3.0)[0], torch.tensor([[0.125, 0.125], [1, 0]]) / math.sqrt(1 + 1 / 32), atol=2e-6
    )


def test_map_leaves_padded_queries_out():
    # one real token: F = [[1, 0], [0, 0]]; the second row is padding
    assert torch.allclose(
        attention_map(tensor([[1.0, 0.0], [1.0, 0.0]]), FIRST)[0], torch.tensor([[1.0, 0.0], [0.0, 0.0]]), atol=2e-6
    )


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_map_against_plain_loops(p):
    (attn, _), expected = maps(1), torch.zeros(B, T, T, dtype=torch.float64)
    for b in range(B):
        f = {
            (i, j): sum(float(attn[b, h, i, j]) ** p for h in range(H))
            for i in range(LENGTHS[b])
            for j in range(LENGTHS[b])
        }
        norm = math.sqrt(sum(x * x for x in f.values())) + 1e-6
        for (i, j), x in f.items():
            expected[b, i, j] = x / norm
    assert torch.allclose(attention_map(attn, MASK, p).double(), expected, rtol=0, atol=1e-6)


def test_map_of_a_text_without_tokens_is_0():
    assert attention_map(EYE, torch.tensor([[False, False]])).abs().sum() == 0


# ---- Eq. (2) and (4): the attention term

def test_attention_loss_by_hand():
    # Q = I / sqrt(2) and J / sqrt(2): four entries of 1 / sqrt(2) apart, norm sqrt(4 / 2); two layers: twice that
    assert attention_loss([EYE, SWAP], [SWAP, EYE], BOTH).tolist() == pytest.approx([2 * math.sqrt(2)], abs=1e-5)
    assert attention_loss([EYE, EYE], [SWAP, EYE], BOTH).tolist() == pytest.approx([math.sqrt(2)], abs=1e-5)


def test_attention_loss_released_by_hand():
    # the mean of four squares of 1 / sqrt(2): 1/2 a layer
    assert attention_loss([EYE, EYE], [SWAP, SWAP], BOTH, variant="released").tolist() == pytest.approx([1.0], abs=1e-5)


def test_attention_loss_has_one_value_a_text():
    student, teacher = torch.cat([EYE, EYE, SWAP]), torch.cat([EYE, SWAP, EYE])
    assert attention_loss([student], [teacher], BOTH.expand(3, 2)).tolist() == pytest.approx(
        [0.0, math.sqrt(2), math.sqrt(2)], abs=1e-5
    )


def loop_map(attn: torch.Tensor, b: int, queries: int, p: float) -> list[list[float]]:
    t = attn.shape[-1]
    f = [
        [sum(float(attn[b, h, i, j]) ** p for h in range(H)) if i < queries else 0.0 for j in range(t)]
        for i in range(t)
    ]
    norm = math.sqrt(sum(x * x for row in f for x in row)) + 1e-6
    return [[x / norm for x in row] for row in f]


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_attention_loss_against_plain_loops(variant, p):
    student, teacher, expected = maps(1), maps(2), [0.0] * B
    for b in range(B):
        for s, t in zip(student, teacher):
            queries = T if variant == "released" else LENGTHS[b]
            one, two = loop_map(s, b, queries, p), loop_map(t, b, queries, p)
            squares = sum((two[i][j] - one[i][j]) ** 2 for i in range(T) for j in range(T))
            expected[b] += squares / T ** 2 if variant == "released" else math.sqrt(squares)
    assert attention_loss(student, teacher, MASK, p, variant).tolist() == pytest.approx(expected, abs=2e-6)


def test_a_one_token_text_has_no_attention_to_match():
    assert attention_loss(maps(1), maps(2), MASK)[2].item() == pytest.approx(0.0, abs=1e-6)


def test_attention_loss_is_at_most_sqrt_2_a_layer():
    # both maps are of norm 1 and without negative entries, so they are at most a right angle apart
    assert (attention_loss(maps(1), maps(2), MASK) <= LAYERS * math.sqrt(2) + 1e-6).all()


# ---- Eq. (5) and (6): the hidden-state term

def test_hidden_loss_by_hand():
    # differences (1, 3) and (0, 2) at two places: squares (1 + 9) / 2 = 5 and (0 + 4) / 2 = 2
    s, t = torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]), torch.zeros(1, 2, 2)
    assert hidden_loss([s], [t], BOTH).tolist() == [3.5]
    assert hidden_loss([s], [t], FIRST).tolist() == [5.0]
    assert hidden_loss([s, t, s], [t, t, t], BOTH).tolist() == [7.0]       # summed over h_0, h_1, h_2


def test_hidden_loss_against_plain_loops():
    student, teacher, expected = states(1), states(2), [0.0] * B
    for b in range(B):
        for s, t in zip(student, teacher):
            squares = [(float(s[b, i, d]) - float(t[b, i, d])) ** 2 for i in range(LENGTHS[b]) for d in range(D)]
            expected[b] += sum(squares) / len(squares)
    assert hidden_loss(student, teacher, MASK).tolist() == pytest.approx(expected, rel=1e-5)


# ---- Eq. (1)

def outputs(seed: int) -> Output:
    logits = torch.randn(B, 2, generator=torch.Generator().manual_seed(seed + 50))
    return Output(logits, None, tuple(states(seed)), tuple(maps(seed)))


BATCH = Batch(
    torch.zeros(B, T, dtype=torch.long), MASK, torch.zeros(B, T, dtype=torch.long), torch.tensor([0, 1, 1, 0])
)


def test_distill_loss_is_the_weighted_sum_against_plain_loops():
    student, teacher = outputs(1), outputs(2)
    att, hid = attention_loss(student.attn, teacher.attn, MASK), hidden_loss(student.hidden, teacher.hidden, MASK)
    for b in range(B):
        x, y = [float(v) for v in student.logits[b]], int(BATCH.labels[b])
        # the gold label; the teacher's logits do not enter
        cls = math.log(sum(math.exp(v) for v in x)) - x[y]
        expected = 0.7 * float(att[b]) + 0.3 * float(hid[b]) + 1.1 * cls
        assert distill_loss(student, teacher, BATCH, SETTINGS)[b].item() == pytest.approx(expected, rel=1e-5)


def test_distill_loss_by_hand():
    # att sqrt(2), hid 5 of (1, 3) at one layer, cls ln 2 of equal logits: 2 * 1.414214 + 0.5 * 3.5 + 0.693147 =
    # 5.271574
    student = Output(torch.zeros(1, 2), None, (torch.tensor([[[1.0, 3.0], [0.0, 2.0]]]),), (EYE,))
    teacher = Output(torch.tensor([[-9.0, 9.0]]), None, (torch.zeros(1, 2, 2),), (SWAP,))
    batch = Batch(torch.zeros(1, 2), BOTH, torch.zeros(1, 2), torch.tensor([1]))
    settings = replace(SETTINGS, alpha=2.0, beta=0.5, gamma=1.0)
    assert distill_loss(student, teacher, batch, settings).tolist() == pytest.approx([5.271574], abs=1e-5)


@pytest.mark.parametrize("ablate, weights", [
    ("none", {"att": 0.7, "hid": 0.3, "cls": 1.1}),
    ("no-att", {"att": 0.0, "hid": 0.3, "cls": 1.1}),
    ("no-hid", {"att": 0.7, "hid": 0.0, "cls": 1.1}),
    ("cls-only", {"att": 0.0, "hid": 0.0, "cls": 1.1}),
])
def test_an_ablation_leaves_its_term_out(ablate, weights):
    settings = replace(SETTINGS, ablate=ablate)
    assert settings.weights == weights
    terms = distill_terms(outputs(1), outputs(2), BATCH, settings)
    assert set(terms) == {name for name, weight in weights.items() if weight}
    full = distill_terms(outputs(1), outputs(2), BATCH, SETTINGS)
    assert all(torch.equal(values, full[name]) and values.shape == (B,) for name, values in terms.items())
    assert torch.allclose(
        distill_loss(outputs(1), outputs(2), BATCH, settings), sum(weights[n] * full[n] for n in terms)
    )


def test_a_weight_of_0_leaves_its_term_out():
    assert set(distill_terms(outputs(1), outputs(2), BATCH, replace(SETTINGS, alpha=0.0))) == {"hid", "cls"}
    assert set(distill_terms(outputs(1), outputs(2), BATCH, replace(SETTINGS, gamma=0.0))) == {"att", "hid"}


def test_the_variant_and_p_reach_the_term():
    for settings in (SETTINGS, replace(SETTINGS, p=3.0), replace(SETTINGS, variant="released")):
        expected = attention_loss(outputs(1).attn, outputs(2).attn, MASK, settings.p, settings.variant)
        assert torch.equal(distill_terms(outputs(1), outputs(2), BATCH, settings)["att"], expected)


# ---- what must not matter

@pytest.mark.parametrize("extra", [1, 7])
def test_padding_does_not_matter(extra):
    wide = pad_mask(MASK, extra)
    att, hid = attention_loss(maps(1), maps(2), MASK), hidden_loss(states(1), states(2), MASK)
    assert torch.allclose(attention_loss(pad(maps(1), extra), pad(maps(2), extra), wide), att, rtol=0, atol=1e-6)
    other = pad(states(2), extra)
    for h in other:
        h[:, T:] = -3.0                                          # not what stands there in the student
    assert torch.allclose(hidden_loss(pad(states(1), extra), other, wide), hid, rtol=0, atol=1e-6)


def test_the_released_variant_does_depend_on_padding_as_its_docstring_says():
    a = attention_loss(maps(1), maps(2), MASK, variant="released")
    b = attention_loss(pad(maps(1), 6), pad(maps(2), 6), pad_mask(MASK, 6), variant="released")
    assert not torch.allclose(a, b, rtol=0.1)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_neighbours_and_their_order_do_not_matter(variant):
    student, teacher, order = maps(1), maps(2), [2, 0, 3]
    att = attention_loss(student, teacher, MASK, variant=variant)
    assert torch.allclose(
        attention_loss([s[order] for s in student], [t[order] for t in teacher], MASK[order], variant=variant),
        att[order],
    )
    hid = hidden_loss(states(1), states(2), MASK)
    assert torch.allclose(
        hidden_loss([s[order] for s in states(1)], [t[order] for t in states(2)], MASK[order]), hid[order]
    )
    if variant == "paper":
        for b, n in enumerate(LENGTHS):  # alone, cut to its own length
            alone = attention_loss(
                [s[b : b + 1, :, :n, :n] for s in student], [t[b : b + 1, :, :n, :n] for t in teacher],
                MASK[b : b + 1, :n],
            )
            assert alone.item() == pytest.approx(att[b].item(), abs=1e-6)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_no_gradient_and_no_nan_where_student_and_teacher_agree(variant):
    student = [a.requires_grad_() for a in maps(1)]
    loss = attention_loss(student, maps(1), MASK, variant=variant)
    assert loss.tolist() == [0.0] * B
    loss.sum().backward()
    assert all(torch.equal(a.grad, torch.zeros_like(a)) for a in student)
    hidden = [h.requires_grad_() for h in states(1)]
    hidden_loss(hidden, states(1), MASK).sum().backward()
    assert all(torch.equal(h.grad, torch.zeros_like(h)) for h in hidden)


def test_the_gradient_is_that_of_finite_differences():
    student = [a.double().requires_grad_() for a in maps(1)]
    # attention_map works in float32, so the step is large and the tolerance wide
    loss = attention_loss(student, maps(2), MASK).sum()
    loss.backward()
    way = torch.zeros_like(student[0])
    way[0, 1, 2, 3] = way[1, 0, 0, 1] = 1.0
    up, down = (
        attention_loss([(student[0] + e * way).detach(), student[1].detach()], maps(2), MASK).sum().item()
        for e in (5e-3, -5e-3)
    )
    assert (student[0].grad * way).sum().item() == pytest.approx((up - down) / 1e-2, rel=2e-2, abs=1e-4)


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9, 1.0, 2.0, 3.0])
def test_the_gradient_by_the_scores_is_finite_at_padding_and_at_zeros(p, variant):
    """By what the softmax is of, in float32: padded keys, a probability of exactly 0, subnormal ones, one of 1."""
    def loss(scores: torch.Tensor) -> torch.Tensor:
        attn = scores.masked_fill(~MASK[:, None, None, :], -math.inf).softmax(dim=-1)
        return attention_loss([attn], maps(2)[:1], MASK, p, variant).sum()

    scores = 2 * torch.randn(B, H, T, T, generator=torch.Generator().manual_seed(1))
    scores[0, 0, 1, :3] = torch.tensor([-200.0, -101.0, -95.0])  # probabilities of 0, 1e-44 and 1e-42
    scores[0, 1, 2, 0] = 300.0
    leaf = scores.clone().requires_grad_()
    gradient, = torch.autograd.grad(loss(leaf), leaf)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    # no finite difference: padded keys, whose scores nothing reads
    assert (gradient * ~MASK[:, None, None, :]).abs().max() == 0
    for place in [(0, 1, 0, 3), (0, 2, 1, 5), (1, 0, 0, 1), (3, 2, 2, 2), (0, 0, 1, 4), (0, 0, 1, 0)]:
        way = torch.zeros_like(scores)
        way[place] = 1.0
        up, down = (loss(scores + e * way).item() for e in (1e-2, -1e-2))
        assert gradient[place].item() == pytest.approx((up - down) / 2e-2, rel=2e-2, abs=3e-4), place


def test_padding_does_not_move_the_gradient_of_a_root():
    student = maps(1)[0]
    leaves = [student.requires_grad_(), pad([student.detach()], 3)[0].requires_grad_()]
    for leaf, mask, teacher in zip(leaves, (MASK, pad_mask(MASK, 3)), (maps(2)[:1], pad(maps(2)[:1], 3))):
        attention_loss([leaf], teacher, mask, 0.5).sum().backward()
    assert torch.allclose(leaves[1].grad[:, :, :T, :T], leaves[0].grad, atol=1e-6)
    assert leaves[1].grad[..., T:].abs().max() == leaves[1].grad[:, :, T:].abs().max() == 0


@pytest.mark.parametrize("p", [0.3, 1.0, 1.5, 2.0])
def test_the_power_is_torchs_own_to_the_last_bit(p):
    a = torch.tensor([0.0, 1e-44, 1e-40, 1e-30, 0.25, 1.0], requires_grad=True)
    b = a.detach().clone().requires_grad_()
    assert torch.equal(power(a, p), b.pow(p))
    power(a, p).sum().backward(), b.pow(p).sum().backward()
    normal = slice(0 if p >= 1 else 3, None)
    assert torch.equal(a.grad[normal], b.grad[normal]) and a.grad.isfinite().all()


def test_a_map_of_nothing_has_no_gradient():
    for variant in ("paper", "released"):
        nothing = torch.zeros(B, H, T, T, requires_grad=True)
        attention_loss([nothing], [torch.zeros(B, H, T, T)], MASK, 0.5, variant).sum().backward()
        assert torch.equal(nothing.grad, torch.zeros_like(nothing))


def test_layers_that_do_not_match_are_an_error():
    with pytest.raises(ValueError):
        attention_loss(maps(1), maps(2)[:1], MASK)
    with pytest.raises(ValueError):
        hidden_loss(states(1)[:2], states(2), MASK)


# ---- the released code's own numbers

@pytest.mark.skipif(not GOLDEN.is_file(), reason="the released code's numbers are not here")
@pytest.mark.parametrize("i", [0, 1, 2])
def test_released_gives_what_the_released_code_gives(i):
    from safetensors.torch import load_file
    golden = load_file(GOLDEN)
    student, teacher = golden[f"student_{i}"], golden[f"teacher_{i}"]
    everyone = torch.ones(student.shape[0], student.shape[-1], dtype=torch.bool)
    assert torch.allclose(attention_map(student, everyone, 2.0), golden[f"map_student_{i}"], rtol=0, atol=1e-6)
    ours = attention_loss([student], [teacher], everyone, 2.0, "released")
    assert ours.mean().item() == pytest.approx(golden[f"loss_{i}"].item(), rel=1e-4)


# ---- line 1: D_aug

WORDS = ["wonderful", "dreadful", "story", "acting", "moving", "boring", "film"]
CLEAN = Examples(
    (Example(f"row-{i}", f"a {WORDS[i % 2]} {WORDS[2 + i % 5]} and {WORDS[(i * 3) % 7]}", i % 2) for i in range(11)),
    ("bad", "good"),
)


def test_d_aug_has_k_copies_of_each_row_with_its_label():
    made = augmented(CLEAN, replace(SETTINGS, k=3), seed=0)
    assert len(made) == 33
    for x in CLEAN:
        copies = [y for y in made if y.id == x.id]
        assert len(copies) == 3 and {y.label for y in copies} == {x.label}
        assert all(y.text.replace(" ", "") == x.text.replace(" ", "") and y.text != x.text for y in copies)
    assert any(len({y.text for y in made if y.id == x.id}) == 3 for x in CLEAN)


def test_both_texts_of_a_pair_are_split_and_the_first_as_if_it_were_alone():
    pairs = [replace(x, pair=f"certainly {y.text} altogether") for x, y in zip(CLEAN, CLEAN[1:] + CLEAN[:1])]
    made, single = augmented(pairs, SETTINGS, seed=0), augmented(CLEAN, SETTINGS, seed=0)
    assert [(y.id, y.text, y.label) for y in made] == [(y.id, y.text, y.label) for y in single] and all(
        y.pair is None for y in single
    )
    of = {x.id: x.pair for x in pairs}
    assert all(y.pair.replace(" ", "") == of[y.id].replace(" ", "") and y.pair != of[y.id] for y in made)
    assert len({y.pair for y in made}) > len(pairs)                     # each copy is cut anew
    same = augmented([replace(x, pair=x.text) for x in CLEAN], SETTINGS, seed=0)
    assert any(y.text != y.pair for y in same)                          # and by a generator of its own


def test_a_rows_copies_do_not_depend_on_other_rows():
    full = augmented(CLEAN, SETTINGS, seed=0)
    some = augmented(CLEAN[4:6], SETTINGS, seed=0)
    assert some == [y for y in full if y.id in ("row-4", "row-5")]


def test_more_copies_keep_the_earlier_ones():
    assert augmented(CLEAN, replace(SETTINGS, k=4), seed=0)[:22] == augmented(CLEAN, replace(SETTINGS, k=2), seed=0)


def test_the_seed_and_the_settings_reach_the_splitter():
    assert (
        augmented(CLEAN, SETTINGS, seed=0) == augmented(CLEAN, SETTINGS, seed=0) != augmented(CLEAN, SETTINGS, seed=1)
    )
    assert [y.text for y in augmented(CLEAN, replace(SETTINGS, k=1, min_char=20), seed=0)] == [x.text for x in CLEAN]

    def added(**settings):
        return [
            len(y.text.split()) - len(x.text.split())
            for x, y in zip(CLEAN, augmented(CLEAN, replace(SETTINGS, k=1, **settings), 0))
        ]

    assert set(added(max_targets=1)) == {1} and max(added(rate=1.0)) == 3


@pytest.mark.parametrize(
    "seed, last, others, digest",
    [
        (
            0, "a wonderful st ory and s tory", "certain ly, a w onderful story and wonde rful altogether!",
            "328be817f03d613b",
        ),
        (
            1, "a wonderful s tory and s tory", "certa inly, a wonderful s tory and wonder ful altogether!",
            "2078c686a508b9e9",
        ),
    ],
)
def test_token_splitting_draws_what_it_drew_when_it_was_alone(seed, last, others, digest):
    pairs = [replace(x, pair=f"certainly, {y.text} altogether!") for x, y in zip(CLEAN, CLEAN[1:] + CLEAN[:1])]
    settings = MBTSAD(k=3, originals=bool(seed))
    made = augmented(pairs, settings, seed)
    assert (made[-1].text, made[-1].pair) == (last, others)
    assert (
        hashlib.sha256(json.dumps([[y.id, y.text, y.label, y.pair] for y in made]).encode()).hexdigest()[:16] == digest
    )


# ---- line 1 with other augmenters

LONG = Examples(
    (
        Example(
            f"row-{i}",
            f"a {WORDS[i % 2]} {WORDS[2 + i % 5]}, a {WORDS[(i * 3) % 7]} film and {'very ' * (i % 4)}good acting",
            i % 2, None if i % 3 == 0 else f"is the {WORDS[i % 7]} {WORDS[(i * 5) % 7]} good?",
        )
        for i in range(8)
    ),
    ("bad", "good"),
)
ASKED = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "a", "and", "very", "good", "is", "the", ",", "?"]


def make_mlm(seed: int = 3, **config) -> Checkpoint:
    shape = BertConfig(
        vocab=len(ASKED), hidden=8, layers=1, heads=2, ffn=16, positions=40, **{"labels": 0, "mlm": True, **config}
    )
    model = Bert(shape).init_weights(torch.Generator().manual_seed(seed), std=0.5).eval()
    return Checkpoint(model, Tokenizer.from_vocab({p: i for i, p in enumerate(ASKED)}, 40), (), [])


@pytest.fixture(scope="module")
def mlm() -> Checkpoint:
    return make_mlm()


def by_hand(name: str, text: str, rng, n: int | None, mlm: Checkpoint) -> str:
    match name:
        case "split":
            return split(text, rng)
        case "eda":
            return eda(text, rng, budget=n)
        case "aeda":
            return aeda(text, rng, budget=n)
        case "addtrigger":
            return addtrigger(text, rng, budget=n)
        case "contextual":
            return contextual(text, rng, mlm.model, mlm.tokenizer, budget=n)


@pytest.mark.parametrize("limit", ["stock", "equal"])
@pytest.mark.parametrize("name", AUGMENTERS)
def test_each_copy_is_the_augmenters_own_text_by_a_generator_of_its_own(name, limit, mlm):
    settings, resources = replace(SETTINGS, augment=name, budget=limit, k=3), AugmentResources(mlm=mlm)
    made = augmented(LONG, settings, 5, resources)
    assert [(y.id, y.label, y.pair is None) for y in made] == 3 * [(x.id, x.label, x.pair is None) for x in LONG]

    def expected(text, *of):
        return by_hand(name, text, generator(5, name, *of), budget(text) if limit == "equal" else None, mlm)
    for i, y in enumerate(made):
        x, copy_ = LONG[i % len(LONG)], i // len(LONG)
        assert y.text == expected(x.text, x.id, copy_)
        assert y.pair == (None if x.pair is None else expected(x.pair, x.id, copy_, "pair"))
    assert (
        len({y.text for y in made if y.id == "row-2"}) > 1
        and sum(y.text != LONG[i % 8].text for i, y in enumerate(made)) > 12
    )
    assert augmented(LONG, replace(settings, originals=True), 5, resources) == [*LONG, *made]
    # whatever the neighbours
    assert augmented(LONG[2:4], settings, 5, resources) == [y for y in made if y.id in ("row-2", "row-3")]
    assert augmented(LONG, settings, 6, resources) != made


def test_at_equal_budgets_as_many_words_change_as_would_be_split(mlm):
    cut = {"rate": 0.5, "max_targets": 3, "min_char": 7}  # every number of split's counts
    settings = replace(SETTINGS, k=1, budget="equal", **cut)
    want = [budget(x.text, **cut) for x in LONG]
    assert set(want) == {1, 2} and want != [budget(x.text) for x in LONG]
    for name, change in (
        ("split", lambda x, y: len(y.split()) - len(x.split())), ("addtrigger", lambda x, y: y.split().count("cb")),
        ("aeda", lambda x, y: sum(map(y.count, ".;?:!,")) - x.count(",")),
        (
            "contextual", lambda x,
            y: sum(a != b for a, b in zip(x.replace(",", " ,").split(), y.replace(",", " ,").split())),
        ),
    ):
        made = augmented(LONG, replace(settings, augment=name), 0, AugmentResources(mlm=mlm))
        assert [change(x.text, y.text) for x, y in zip(LONG, made)] == want, name
    assert {
        y.text.split().count("cb") for y in augmented(LONG, replace(settings, augment="addtrigger", budget="stock"), 0)
    } == {1}


def test_eda_takes_the_synonyms_it_is_given():
    made = augmented(LONG, replace(SETTINGS, augment="eda", k=9), 0, AugmentResources(lambda word: ("xyzzy",)))
    assert any("xyzzy" in y.text for y in made) and any("xyzzy" not in y.text for y in made)


def test_the_names_of_the_augmenters_are_the_settings_choices():
    assert MBTSAD.__dataclass_fields__["augment"].metadata["choices"] == (*AUGMENTERS, "auto")
    fails(lambda: augmented(LONG, replace(SETTINGS, augment="auto"), 0), "'auto'", "victim", "addtrigger")


def test_the_tools_that_settings_name(tmp_path, mlm):
    from test_wordnet import write
    assert resources_of(SETTINGS) == AugmentResources(lexicon.synonyms, None, torch.float32)
    (tmp_path / "wordnet").mkdir()
    assert set(resources_of(replace(SETTINGS, wordnet=str(write(tmp_path / "wordnet")))).synonyms("movie")) == {
        "film", "Motion picture",
    }
    fails(lambda: resources_of(replace(SETTINGS, wordnet=str(tmp_path))), str(tmp_path), "lacks")

    fails(lambda: resources_of(replace(SETTINGS, augment="contextual")), "--mlm", "MLM head")
    fails(lambda: augmented(LONG, replace(SETTINGS, augment="contextual"), 0), "--mlm")
    checkpoint.save(mlm, tmp_path / "mlm.safetensors")
    named = replace(SETTINGS, augment="contextual", mlm=str(tmp_path / "mlm.safetensors"))
    assert resources_of(named, dtype=torch.bfloat16).dtype is torch.bfloat16
    assert (
        augmented(LONG, named, 0)
        == augmented(LONG, named, 0, AugmentResources(mlm=mlm))
        != augmented(LONG, named, 0, AugmentResources(mlm=make_mlm(4)))
    )
    checkpoint.save(make_mlm(mlm=False), tmp_path / "headless.safetensors")
    fails(
        lambda: resources_of(replace(named, mlm=str(tmp_path / "headless.safetensors"))), "--mlm", "headless.saf",
        "no language-model head",
    )
    checkpoint.save(make_victim(), tmp_path / "maskless.safetensors")
    fails(
        lambda: resources_of(replace(SETTINGS, mlm=str(tmp_path / "maskless.safetensors"))), "maskless.safetensors",
        "no masked language model",
    )


# ---- Eq. (8) and (9): which of them shakes the victim

def test_mean_loss_against_plain_loops():
    victim = make_victim()
    total = 0.0
    for x in LONG:
        scores = victim.model(victim.tokenizer([x])).logits[0].double().tolist()
        total += math.log(sum(math.exp(v) for v in scores)) - scores[x.label]
    wanted = pytest.approx(total / len(LONG), rel=1e-5)
    before = weights(victim.model)
    assert mean_loss(victim.model, victim.tokenizer, LONG) == wanted
    # the last batch is smaller and weighs less
    assert mean_loss(victim.model, victim.tokenizer, LONG, batch_size=3) == wanted
    assert mean_loss(victim.model.train(), victim.tokenizer, LONG[::-1]) == wanted   # no dropout
    assert equal(before, weights(victim.model)) and all(p.grad is None for p in victim.model.parameters())
    fails(lambda: mean_loss(victim.model, victim.tokenizer, []), "no rows")


def test_every_augmenter_is_tried_on_one_copy_a_row(mlm):
    sets = each_augmented(LONG, replace(SETTINGS, originals=True), 2, AugmentResources(mlm=mlm))
    assert list(sets) == list(AUGMENTERS)
    for name, rows in sets.items():
        assert rows == augmented(LONG, replace(SETTINGS, augment=name, k=1), 2, AugmentResources(mlm=mlm))
    assert list(each_augmented(LONG, SETTINGS, 2, AugmentResources())) == [
        name for name in AUGMENTERS if name != "contextual"
    ]
    assert (
        each_augmented(LONG, replace(SETTINGS, budget="equal"), 2, AugmentResources())["addtrigger"]
        != sets["addtrigger"]
    )


def test_the_perturbation_is_the_mean_loss_at_equal_budgets(mlm):
    victim = make_victim()
    found = perturbation(victim, LONG, SETTINGS, 2, AugmentResources(mlm=mlm))
    assert list(found) == list(AUGMENTERS)
    for name, loss in found.items():
        rows = augmented(LONG, replace(SETTINGS, augment=name, k=1, budget="equal"), 2, AugmentResources(mlm=mlm))
        assert loss == mean_loss(victim.model, victim.tokenizer, rows)
    assert found != perturbation(victim, LONG, SETTINGS, 3, AugmentResources(mlm=mlm))


# ---- the algorithm

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{c}" for c in LETTERS)]


def make_victim() -> Checkpoint:
    config = BertConfig(vocab=len(TOKENS), hidden=8, layers=2, heads=2, ffn=16, positions=48)
    model = Bert(config).init_weights(torch.Generator().manual_seed(0), std=0.2).eval()
    return Checkpoint(
        model, Tokenizer.from_vocab({p: i for i, p in enumerate(TOKENS)}, 48), ("bad", "good"),
        [{"trained": "poisoned"}],
    )


def weights(model) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], rtol=0, atol=1e-12) for name in a)


class Run:
    """One run, with everything that it lets others see."""

    def __init__(self, settings: MBTSAD = SETTINGS, seed: int = 0, **more):
        self.victim, self.log, self.seen, self.modes = make_victim(), [], [], []
        self.before = weights(self.victim.model)
        self.student = mbtsad(self.victim, CLEAN, settings, seed=seed, log=self.note, on_stage=self.on_stage, **more)

    def note(self, entry: dict) -> None:
        self.log.append(entry)
        if entry["stage"] == "MBTSAD":
            self.modes.append(self.seen[0][1].model.training)

    def on_stage(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        self.seen.append((name, ckpt, weights(ckpt.model), seconds))

    def stage(self, name: str) -> list[dict]:
        return [entry for entry in self.log if entry["stage"] == name]


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_the_victim_is_left_as_it_was(run):
    assert equal(run.before, weights(run.victim.model))
    assert run.victim.history == [{"trained": "poisoned"}] and not run.victim.model.training
    assert all(p.grad is None for p in run.victim.model.parameters())
    assert run.student.model is not run.victim.model and not equal(run.before, weights(run.student.model))


def test_watch_sees_the_teacher_then_the_student(run):
    assert [name for name, *_ in run.seen] == ["TS-FT", "MBTSAD"]
    assert run.seen[1][1] is run.student and run.seen[0][1] is not run.student
    assert all(seconds > 0 for *_, seconds in run.seen)


def test_the_teacher_is_frozen_and_in_eval_mode_while_it_teaches(run):
    _, teacher, when_made, _ = run.seen[0]
    assert equal(when_made, weights(teacher.model))
    assert run.modes and not any(run.modes)


def test_teacher_and_student_both_start_at_the_victim():
    # at rates so small that nothing moves, all three models are one
    still = Run(replace(SETTINGS, lr1=1e-20, lr2=1e-20))
    assert near(still.before, weights(still.student.model)) and near(still.before, still.seen[0][2])
    # where the teacher moves and the student does not, the student is the victim and not the teacher
    taught = Run(replace(SETTINGS, lr2=1e-20))
    assert near(taught.before, weights(taught.student.model)) and not near(taught.before, taught.seen[0][2])


def test_the_student_comes_back_ready(run):
    assert not run.student.model.training and run.student.labels == ("bad", "good")
    copy.deepcopy(run.student.model)
    assert all(torch.isfinite(p).all() for p in run.student.model.parameters())


def test_a_root_of_the_maps_trains_over_padding():
    ragged = CLEAN.like([replace(x, text=" ".join(x.text.split()[:1 + i % 5])) for i, x in enumerate(CLEAN)])
    log, settings = [], replace(SETTINGS, p=0.5, originals=True)
    student = mbtsad(make_victim(), ragged, settings, log=log.append)
    assert all(math.isfinite(entry["total"]) for entry in log)
    assert all(torch.isfinite(p).all() for p in student.model.parameters())


def test_the_history_names_the_mitigation(run):
    first, *_, last = run.student.history
    assert first == {"trained": "poisoned"} and last["mitigation"] == "mbtsad"
    assert last["clean_rows"] == 11 and last["seed"] == 0 and last["alpha"] == 0.7


@pytest.mark.parametrize("sign", [1, -1])
def test_auto_is_a_run_with_the_augmenter_of_the_highest_loss(sign, monkeypatch):
    on_choice, losses = [], {name: sign * i for i, name in enumerate(AUGMENTERS[:-1])}
    best = AUGMENTERS[3] if sign == 1 else AUGMENTERS[0]
    asked = []
    monkeypatch.setattr(
        module, "perturbation", lambda victim, clean, settings, seed,
        resources: (asked.append((clean, seed, resources.mlm)), losses)[1],
    )
    auto = Run(replace(SETTINGS, augment="auto"), on_choice=lambda *said: on_choice.append(said))
    plain = Run(replace(SETTINGS, augment=best))
    assert on_choice == [("losses", losses), ("augmenter", best)] and asked == [(CLEAN, 0, None)]
    assert auto.student.history[-1] == plain.student.history[-1] | {"chosen_by": "auto", "losses": losses}
    assert plain.student.history[-1]["augment"] == best and auto.log == plain.log
    assert equal(weights(auto.student.model), weights(plain.student.model)) and equal(
        auto.before, weights(auto.victim.model)
    )


def test_auto_by_itself_and_the_tools_it_is_given(mlm):
    on_choice = []
    auto = Run(
        replace(SETTINGS, augment="auto"), seed=4, resources=AugmentResources(mlm=mlm),
        on_choice=lambda *said: on_choice.append(said),
    )
    losses, best = dict(on_choice)["losses"], dict(on_choice)["augmenter"]
    assert losses == perturbation(make_victim(), CLEAN, SETTINGS, 4, AugmentResources(mlm=mlm)) and losses[best] == max(
        losses.values()
    )
    assert auto.student.history[-1]["augment"] == best and auto.student.history[-1]["losses"] == losses
    json.dumps(auto.student.history)
    contextual_run = Run(replace(SETTINGS, augment="contextual"), resources=AugmentResources(mlm=mlm))
    assert (
        contextual_run.log
        != Run(replace(SETTINGS, augment="contextual"), resources=AugmentResources(mlm=make_mlm(4))).log
    )
    fails(lambda: Run(replace(SETTINGS, augment="contextual")), "--mlm")


def test_the_steps_one_by_one_make_the_same_student(run):
    victim = make_victim()
    d_aug = victim.tokenizer.encode(augmented(CLEAN, SETTINGS, 0))
    teacher = retrain(victim, d_aug, SETTINGS)
    assert equal(weights(teacher.model), run.seen[0][2])
    assert equal(weights(distil(victim, teacher, d_aug, SETTINGS).model), weights(run.student.model))


def test_the_augmenter_reaches_both_steps(run):
    other = Run(replace(SETTINGS, augment="addtrigger"))
    assert [entry["rows"] for entry in other.log] == [entry["rows"] for entry in run.log]
    assert all(
        other.stage(name)[0]["terms"]["cls"] != run.stage(name)[0]["terms"]["cls"] for name in ("TS-FT", "MBTSAD")
    )
    assert run.student.history[-1]["augment"] == "split" and "chosen_by" not in run.student.history[-1]


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run):
    again, other = Run(), Run(seed=1)
    assert equal(weights(run.student.model), weights(again.student.model)) and run.log == again.log
    assert not equal(weights(run.student.model), weights(other.student.model))


def test_the_seed_reaches_the_distillation_too():
    # nothing is split and the teacher does not move: what is left to the seed is the student's batches and dropout
    a, b = (Run(replace(SETTINGS, min_char=20, lr1=1e-20), seed=seed) for seed in (0, 1))
    assert near(a.seen[0][2], b.seen[0][2]) and not near(weights(a.student.model), weights(b.student.model))


def test_the_global_random_state_is_left_as_it_was():
    victim, before = make_victim(), torch.get_rng_state()
    mbtsad(victim, CLEAN, SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_log_has_every_term_and_adds_up(run):
    assert [entry["stage"] for entry in run.log] == ["TS-FT"] * 6 + ["MBTSAD"] * 6          # 22 rows in batches of 4
    for entry in run.stage("TS-FT"):
        assert set(entry["terms"]) == {"cls"} and entry["total"] == pytest.approx(entry["terms"]["cls"], abs=1e-6)
    for entry in run.stage("MBTSAD"):
        assert entry["weights"] == {"att": 0.7, "hid": 0.3, "cls": 1.1}
        assert all(value > 0 for value in entry["terms"].values())
        assert entry["total"] == pytest.approx(
            sum(entry["weights"][t] * entry["terms"][t] for t in entry["terms"]), rel=1e-5
        )


def test_without_distillation_the_teacher_comes_back(run):
    alone = Run(replace(SETTINGS, distil=False))
    assert [name for name, *_ in alone.seen] == ["TS-FT"] and alone.log == run.stage("TS-FT")
    assert alone.student is alone.seen[0][1] and equal(weights(alone.student.model), run.seen[0][2])
    assert alone.student.history[-1] == run.student.history[-1] | {"distil": False}


def test_each_stage_has_its_own_rate_and_passes():
    done = Run(replace(SETTINGS, lr1=3e-3, lr2=1e-4, epochs1=2, epochs2=1, warmup=0.5))
    assert [len(done.stage(name)) for name in ("TS-FT", "MBTSAD")] == [12, 6]
    assert [max(e["lr"] for e in done.stage(name)) for name in ("TS-FT", "MBTSAD")] == pytest.approx([3e-3, 1e-4])


@pytest.mark.parametrize(
    "ablate, terms", [("no-att", {"hid", "cls"}), ("no-hid", {"att", "cls"}), ("cls-only", {"cls"})]
)
def test_an_ablated_run_logs_the_terms_that_are_left(ablate, terms):
    done = Run(replace(SETTINGS, ablate=ablate))
    assert all(set(entry["terms"]) == terms for entry in done.stage("MBTSAD"))
    assert equal(done.before, weights(done.victim.model))


def test_the_two_variants_differ(run):
    done = Run(replace(SETTINGS, variant="released"))
    assert 0 < done.stage("MBTSAD")[0]["terms"]["att"] < run.stage("MBTSAD")[0]["terms"]["att"] / 10
    assert not equal(weights(done.student.model), weights(run.student.model))


def test_in_bfloat16_the_weights_stay_float32():
    done = Run(dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in done.student.model.parameters())
    assert all(math.isfinite(entry["total"]) for entry in done.log)


def test_the_student_learns_from_the_retrained_model():
    """The first step's terms are those of the victim, where the student starts, beside the teacher."""
    victim = make_victim()
    for layer in victim.model.modules():
        if isinstance(layer, Dropout):
            layer.p = 0.0
    texts, log = augmented(CLEAN, SETTINGS, 0), []
    d_aug, batch = victim.tokenizer.encode(texts), victim.tokenizer(texts)
    teacher = retrain(victim, d_aug, SETTINGS)
    distil(victim, teacher, d_aug, replace(SETTINGS, batch_size=len(texts)), log=log.append)
    with torch.no_grad():
        student, taught = (ckpt.model(batch, ("attn", "hidden")) for ckpt in (victim, teacher))
    expected = {name: term.mean().item() for name, term in distill_terms(student, taught, batch, SETTINGS).items()}
    assert log[0]["terms"] == pytest.approx(expected, rel=1e-4) and min(expected.values()) > 1e-4


@pytest.mark.parametrize("second", [None, 0.3])
def test_attention_edges_are_dropped_as_each_step_says(second, monkeypatch):
    seen, fit = [], module.fit
    monkeypatch.setattr(
        module, "fit", lambda model, *args,
        **more: (
            seen.append([block.attention_dropout.p for block in model.blocks]) or fit(model, *args, **more)
        ),
    )
    Run(replace(SETTINGS, attention_dropout=0.7, attention_dropout2=second))
    own = make_victim().model.config.attention_dropout
    assert own > 0 and seen == [[0.7] * 2, [own if second is None else second] * 2]


def test_with_validation_rows_both_trainings_keep_their_best_epoch(monkeypatch):
    asked, scores, given = [], iter((0.9, 0.1, 0.3, 0.8)), CLEAN[:3]
    monkeypatch.setattr(
        predict, "accuracy", lambda model, text, rows: (asked.append((rows, weights(model))), next(scores))[1]
    )
    best = Run(replace(SETTINGS, epochs1=2, epochs2=2), validation=given)
    assert [rows is given for rows, _ in asked] == [True] * 4
    assert equal(best.seen[0][2], asked[0][1]) and not equal(asked[0][1], asked[1][1])  # the teacher's first epoch
    assert equal(weights(best.student.model), asked[3][1]) and best.student.history[-1]["validation_rows"] == 3


def test_without_validation_rows_the_last_epoch_stays_and_nothing_is_asked(run, monkeypatch):
    monkeypatch.setattr(predict, "accuracy", lambda *_: pytest.fail("asked"))
    Run()
    assert run.student.history[-1]["validation_rows"] == 0


@pytest.mark.parametrize("step, lr, epochs", [(1, 0.1, 3), (2, 0.2, 4)])
def test_each_steps_schedule_has_all_its_numbers(step, lr, epochs):
    settings = MBTSAD(lr1=0.1, lr2=0.2, epochs1=3, epochs2=4, batch_size=5, warmup=0.4, weight_decay=0.5)
    assert settings.schedule(step) == Schedule(lr, epochs, 5, 0.4, 0.5)


# ---- refusals

@pytest.mark.parametrize(
    "values, words",
    [
        ({"k": 0}, "k is 0"), ({"alpha": -1.0}, "alpha -1.0"), ({"beta": -0.5}, "beta -0.5"),
        ({"gamma": -2.0}, "gamma -2.0"), ({"p": 0.0}, "p is 0.0"), ({"p": -2.0}, "p is -2.0"),
        ({"augment": "ts"}, "augment is 'ts'"), ({"budget": "fair"}, "budget is 'fair'"),
        ({"ablate": "no-att", "distil": False}, "ablate no-att"),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    with pytest.raises(BadInput, match=words) as caught:
        MBTSAD(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{"lr1": 0.0}, {"lr2": -1.0}, {"epochs1": 0}, {"epochs2": 0}, {"batch_size": 0}, {"warmup": 2.0}]
)
def test_bad_schedules_are_refused(values):
    with pytest.raises(BadInput):
        mbtsad(make_victim(), CLEAN, replace(SETTINGS, **values))


def test_originals_stand_beside_their_copies():
    with_them = augmented(CLEAN, replace(SETTINGS, originals=True), seed=0)
    assert with_them == [*CLEAN, *augmented(CLEAN, SETTINGS, seed=0)]


def test_sized_fills_in_what_scales_with_the_model_and_nothing_else():
    filled = MBTSAD().resolved(hidden=384)
    assert (filled.lr1, filled.lr2) == pytest.approx((2e-4, 2e-4)) and replace(filled, lr1=None, lr2=None) == MBTSAD()
    wide = MBTSAD().resolved(hidden=1536)  # four times as wide: half the rate
    assert (wide.lr1, wide.lr2) == pytest.approx((1e-4, 1e-4))
    given = MBTSAD(lr1=3e-5).resolved(hidden=384)
    assert given.lr1 == 3e-5 and given.lr2 == pytest.approx(2e-4)



def test_a_bad_number_of_either_step_is_refused_before_any_training():
    for bad in ({"lr2": -1.0, "lr1": 1e-4}, {"epochs2": 0, "lr1": 1e-4, "lr2": 1e-4}):
        with pytest.raises(BadInput):
            MBTSAD(**bad)


# ---- the script and the table

QUICK = ("--k", 1, "--epochs1", 1, "--epochs2", 1, "--no-cft", "--device", "cpu", "--attack", "badnets",
         "--overwrite")


@pytest.fixture(scope="module")
def mlm_file(tiny, tmp_path_factory):
    model = (
        Bert(replace(tiny.model.config, labels=0, mlm=True))
        .init_weights(torch.Generator().manual_seed(1), std=0.3)
        .eval()
    )
    path = tmp_path_factory.mktemp("mlm") / "mlm.safetensors"
    checkpoint.save(Checkpoint(model, tiny.tokenizer, (), []), path)
    return path


def held(folder, seed: int = 0) -> Examples:
    from minibd import data
    return data.sample(data.read_splits(folder, labels=("negative", "positive")).train, 0.2, seed)


def test_pick_prints_what_auto_would_choose_by_and_trains_nothing(
    here, tiny, tiny_file, mlm_file, folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    common = ("--ckpt", tiny_file, "--data", folder, "--seed", 3, "--device", "cpu")
    done = here("mbtsad.py")(*common, "--pick", "--mlm", mlm_file)
    assert done.returncode == 0 and not (tmp_path / "out").exists(), done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    at = lines.index(["cross-entropy", "distance"])
    assert [line[0] for line in lines[at + 1:]] == ["clean", *AUGMENTERS, "auto:"]
    from minibd import data
    clean = data.sample(data.read_splits(folder, labels=tiny.labels, seed=3).train, 0.2, 3)
    losses = perturbation(tiny, clean, MBTSAD(), 3, resources_of(MBTSAD(mlm=str(mlm_file))))
    assert [line[1] for line in lines[at + 2:-1]] == [f"{loss:.4f}" for loss in losses.values()]
    assert (
        lines[at + 1][1:] == [f"{mean_loss(tiny.model, tiny.tokenizer, clean):.4f}", "0.0000"]
        and float(lines[at + 2][2]) > 0
    )
    assert lines[-1] == ["auto:", max(losses, key=losses.get)]


def test_the_script_keeps_the_best_epochs_on_as_many_dev_rows_as_it_is_given(here, tiny_file, folder, tmp_path):
    flags = ("--ckpt", tiny_file, "--data", folder, "--clean", 12, "--k", 1, "--device", "cpu")
    asked = here("mbtsad.py")(*flags, "--dev", 6, "--best-epoch", "--out", tmp_path / "best")
    assert asked.returncode == 0, asked.stderr
    made = json.loads((tmp_path / "best" / "result.json").read_text())
    assert made["rows"]["validation"] == 6 and made["args"]["best_epoch"] and made["args"]["dev"] == 6
    assert checkpoint.load(tmp_path / "best" / tiny_file.name).history[-1]["validation_rows"] == 6
    plain = here("mbtsad.py")(*flags, "--no-cft", "--out", tmp_path / "last")
    assert (
        plain.returncode == 0
        and "validation" not in json.loads((tmp_path / "last" / "result.json").read_text())["rows"]
    )


def test_pick_asks_at_equal_budgets_and_clean_rows_are_no_choice(here, tiny_file, folder, tmp_path, monkeypatch):
    import minibd.analysis.perturbation as module
    asked, losses = [], {"clean": 9.0, "split": 3.0, "eda": 2.0}
    monkeypatch.setattr(
        module, "perturbations", lambda ckpt, clean, settings, seed,
        resources: (
            asked.append((len(clean), settings.budget, seed)),
            {name: module.Perturbed(loss, 0.125, None) for name, loss in losses.items()},
        )[1],
    )
    held = tmp_path / "out" / "mbtsad" / "result.json"  # a run, which is not in the way: nothing is written
    held.parent.mkdir(parents=True)
    held.touch()
    monkeypatch.chdir(tmp_path)
    done = here("mbtsad.py")(
        "--ckpt", tiny_file, "--data", folder, "--seed", 3, "--device", "cpu", "--pick"
    )
    assert done.returncode == 0 and asked == [(40, "equal", 3)], done.stderr
    assert [line.split() for line in done.stdout.splitlines()[-3:]] == [
        ["split", "3.0000", "0.1250"], ["eda", "2.0000", "0.1250"], ["auto:", "split"],
    ]


def test_auto_is_said_and_kept(here, tiny, tiny_file, folder, tmp_path):
    done = here("mbtsad.py")(
        "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--augment", "auto", *QUICK
    )
    assert done.returncode == 0, done.stderr
    losses = perturbation(tiny, held(folder), MBTSAD(), 0, AugmentResources())
    best = max(losses, key=losses.get)
    [line] = [line for line in done.stdout.splitlines() if line.startswith("auto: ")]
    assert line.startswith(f"auto: {best}, ") and all(f"{name} {loss:.4f}" in line for name, loss in losses.items())
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["args"]["augment"] == "auto" and not {"chosen", "losses"} & result["args"].keys()
    assert (result["outcome"]["augmenter"], result["outcome"]["losses"]) == (best, losses)
    last = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history[-1]
    assert (last["augment"], last["chosen_by"], last["losses"]) == (best, "auto", losses)


def test_what_is_missing_is_said_before_anything_is_read(here, tiny_file, mlm_file, folder, tmp_path):
    common = ("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *QUICK)
    for flags, words in (
        (("--augment", "contextual"), ["--mlm", "bert-clean"]),
        (("--augment", "auto", "--mlm", tiny_file), ["--mlm", "no language-model head"]),
        (("--augment", "auto", "--mlm", mlm_file, "--out", mlm_file.parent), ["--out", "beside the input"]),
        (("--augment", "eda", "--wordnet", tmp_path), ["lacks", "index.noun"]),
    ):
        done = here("mbtsad.py")(*common, *flags)
        assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done.stderr
        assert all(word in done.stderr for word in words) and not (tmp_path / "out").exists()


def test_the_rows_of_table_iii_and_of_the_reviews(monkeypatch):
    spec = importlib.util.spec_from_file_location("tables_script", ROOT / "scripts" / "tables.py")
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, script)
    spec.loader.exec_module(script)
    paper = {"badnets": ("91.32 89.88", "90.17 27.19", "90.77 42.54", "87.53 94.85", "90.61 39.80", "90.45 33.38"),
             "lwp": ("90.66 94.41", "90.56 87.28", "91.38 81.36", "89.62 88.82", "90.66 93.75", "90.74 25.98"),
             "ep": ("91.21 95.17", "89.78 93.86", "89.84 81.36", "88.69 69.30", "90.28 93.53", "90.88 38.38")}
    order, found = ("eda", "aeda", "contextual", "addtrigger", "split"), script.TABLES["mbtsad-3"]
    assert len(found) == len({row.name for row in found}) == len({row[1:3] for row in found}) == 27
    for row in found:
        attack, name, *equal_ = row.name.split(", ")
        assert (
            f"--attack {attack}" in row.attack
            and f"--augment {name}" in row.method
            and bool(equal_) == ("--budget equal" in row.method)
        )
        assert ("--mlm {mlm}" in row.method) == (name == "contextual") and ("--wordnet {wordnet}" in row.method) == (
            name == "eda"
        )
        for model, figures in (("victim", paper[attack][0]), ("TS-FT", paper[attack][1 + order.index(name)])):
            assert all(
                abs(float(shown) - float(printed)) < 0.051
                for shown, printed in zip(row.paper[model].split(" / "), figures.split())
            )
    reviews = script.TABLES["mbtsad-3-reviews"]
    assert [row.name for row in reviews] == [*order, *(f"{name}, equal budget" for name in order[:-1])]
    assert [row.method for row in reviews] == [row.method.replace(" --wordnet {wordnet}", "") for row in found[:9]]
    assert not any(row.attack or row.paper for row in reviews)


def test_a_row_of_contextual_substitution_needs_a_language_model(
    here, tiny_file, mlm_file, folder, tmp_path, monkeypatch
):
    asked, real = [], subprocess.run

    def fake(words, **more):
        if "git" in words:
            return real(words, **more)
        asked.append(words)
        [out] = [word.removeprefix("--out=") for word in words if word.startswith("--out=")]
        steps = [{"name": name, "cacc": 90.0, "asr": 20.0, "seconds": 1.0} for name in ("victim", "TS-FT", "MBTSAD")]
        args = {"augment": "contextual", "mlm": str(mlm_file), "wordnet": None}
        Path(out).mkdir(parents=True)
        Path(out, "result.json").write_text(json.dumps({"args": args, "steps": steps}))
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(subprocess, "run", fake)
    common = (
        "mbtsad-3-reviews", "--base", tiny_file, "--data", folder, "--results", tmp_path / "cells.jsonl", "--work",
        tmp_path / "work",
    )
    done = here("tables.py")(*common, "--rows", "1,3")
    assert done.returncode == 2 and "--mlm" in done.stderr and len(done.stderr.splitlines()) == 1 and not asked
    done = here("tables.py")(*common, "--rows", "3", "--mlm", mlm_file)
    assert done.returncode == 0, done.stderr
    [words] = asked
    assert (
        words[-6:] == ["--no-cft", "--no-distil", "--augment", "contextual", "--mlm", str(mlm_file)]
        and f"--ckpt={tiny_file}" in words
    )
    [cell] = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert cell["cell"]["mlm"] == "mlm.safetensors" and cell["result"]["args"] == {"augment": "contextual"}
    assert (
        done.stdout.count("| contextual |") == 3
        and here("tables.py")(*common, "--print", "--mlm", mlm_file).stdout == done.stdout
    )
    assert (
        here("tables.py")(
            *common, "--rows", "3", "--mlm", shutil.copy(mlm_file, tmp_path / "other.safetensors")
        ).returncode
        == 0
    )
    assert len(asked) == 2 and str(tmp_path / "other.safetensors") in asked[1]  # not what the first one left


# ---- the student's dropout, few rows

def test_without_the_students_dropout_equal_models_have_nothing_to_distil(tiny):
    """With it even h_0 is compared behind a mask; without it the first step's terms of two identical models are 0."""
    clean = tiny.tokenizer.encode(drawn_rows(8, 0, "r"))
    first = {}
    for dropout in (True, False):
        steps = []
        distil(tiny, tiny, clean, replace(MBTSAD(epochs2=1), student_dropout=dropout), log=steps.append)
        first[dropout] = steps[0]["terms"]
    assert first[False]["hid"] < 1e-9 and first[False]["att"] < 1e-4
    assert first[True]["hid"] > 1e-3 and first[True]["att"] > 1e-2


def test_few_rows_get_as_many_steps_as_asked():
    settings = MBTSAD(lr1=1e-4, lr2=1e-4, steps=50, batch_size=10)
    assert settings.schedule(1, 40).epochs == 13 and settings.schedule(2, 1000).epochs == 2  # 4 and 100 a pass
    assert settings.schedule(1).epochs == replace(settings, steps=0).schedule(1, 40).epochs == 2
    fails(lambda: MBTSAD(steps=-1), "steps is -1")
