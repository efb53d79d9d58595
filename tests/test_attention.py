"""attend(): plain loops, the fused kernel and the explicit path agree; what mask, head mask and dropout do."""
import math

import pytest
import torch
import torch.nn.functional as F

from minibd.models import attention
from minibd.models.attention import NARROW, attend, merge_heads, over_keys, split_heads

B, H, T, DH = 2, 3, 5, 4


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def qkv(dtype=torch.float64):
    return tuple(draw(B, H, T, DH, seed=seed).to(dtype) for seed in (1, 2, 3))


# text 0 has 5 tokens, text 1 has 3
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]  # (B, 1, 1, T)


def loops(q, k, v, mask, bias=None):
    """The same in plain loops: one query at a time."""
    context, probs = torch.zeros(B, H, T, DH, dtype=torch.float64), torch.zeros(B, H, T, T, dtype=torch.float64)
    for b in range(B):
        keys = [j for j in range(T) if mask is None or mask[b, 0, 0, j]]
        for h in range(H):
            for i in range(T):
                scores = {j: sum(float(q[b, h, i, d] * k[b, h, j, d]) for d in range(DH)) / math.sqrt(DH) for j in keys}
                weight = {j: math.exp(s + (0 if bias is None else float(bias[b, h, i, j]))) for j, s in scores.items()}
                for j in keys:
                    probs[b, h, i, j] = weight[j] / sum(weight.values())
                    context[b, h, i] += probs[b, h, i, j] * v[b, h, j]
    return context, probs


def test_by_hand():
    # one head of size 1, two places: scores 0 and ln 3 -> 1/4, 3/4; values 4 and 8 -> 1 + 6
    q = torch.tensor([[[[1.0], [0.0]]]])
    k = torch.tensor([[[[0.0], [math.log(3)]]]])
    v = torch.tensor([[[[4.0], [8.0]]]])
    context, probs = attend(q, k, v, None, want=True)
    assert torch.allclose(probs, torch.tensor([[[[0.25, 0.75], [0.5, 0.5]]]]))
    assert torch.allclose(context, torch.tensor([[[[7.0], [6.0]]]]))


@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_against_plain_loops(mask):
    context, probs = loops(*qkv(), mask)
    explicit, maps = attend(*qkv(), mask, want=True)
    fused, none = attend(*qkv(), mask)
    assert none is None
    for ours, theirs in ((explicit, context), (fused, context), (maps, probs)):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_the_fused_and_the_explicit_path_agree_in_float32_with_their_gradients(mask):
    results = []
    for want in (False, True):
        inputs = [t.requires_grad_() for t in qkv(torch.float32)]
        context, _ = attend(*inputs, mask, head_mask=torch.tensor([1.0, 0.0, 0.5]), want=want)
        context.square().sum().backward()
        results.append([context.detach(), *(t.grad for t in inputs)])
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)


BIAS = 2 * draw(1, H, T, T, seed=4).expand(B, -1, -1, -1)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_a_bias_is_added_to_the_scores(mask):
    context, probs = loops(*qkv(), mask, BIAS)
    assert not torch.allclose(probs, loops(*qkv(), mask)[1], atol=0.1)
    explicit, maps = attend(*qkv(), mask, bias=BIAS, want=True)
    fused, _ = attend(*qkv(), mask, bias=BIAS)
    for ours, theirs in ((explicit, context), (fused, context), (maps, probs)):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
    drop = (draw(B, H, T, T, seed=9) > 0).double() * 2
    dropped, _ = attend(*qkv(), mask, bias=BIAS, dropout=lambda p: p * drop)
    assert torch.allclose(dropped, (probs * drop) @ qkv()[2], atol=1e-12)


@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_both_paths_give_the_bias_the_same_gradient(mask):
    results = []
    for want in (False, True):
        bias = BIAS[:1].float().clone().requires_grad_()
        inputs = [t.requires_grad_() for t in qkv(torch.float32)]
        context, _ = attend(*inputs, mask, bias=bias.expand(B, -1, -1, -1), want=want)
        context.square().sum().backward()
        results.append([context.detach(), bias.grad, *(t.grad for t in inputs)])
    assert results[0][1].abs().max() > 0.01
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize("want", [False, True])
def test_a_causal_mask_and_a_prefix_go_with_a_bias(want):
    q, k, v = qkv()
    before = torch.ones(T, T, dtype=torch.bool).tril()
    causal, maps = attend(q, k, v, None, bias=BIAS, causal=True, want=want)
    assert torch.allclose(causal, attend(q, k, v, before, bias=BIAS)[0], atol=1e-12)
    assert not want or maps.triu(1).abs().max() == 0
    longer_k, longer_v = (torch.cat((draw(B, H, 2, DH, seed=seed), x), dim=2) for seed, x in ((7, k), (8, v)))
    wide = torch.cat((torch.zeros(B, H, T, 2), BIAS), dim=-1)  # that of a prefix is 0
    context, _ = attend(q, longer_k, longer_v, MASK, bias=BIAS, want=want)
    scores = (q @ longer_k.mT / 2 + wide).masked_fill(~torch.nn.functional.pad(MASK, (2, 0), value=True), -1e30)
    assert torch.allclose(context, scores.softmax(-1) @ longer_v, atol=1e-12)


def test_a_bias_in_half_precision_comes_near():
    q, k, v = qkv(torch.bfloat16)
    exact = attend(*qkv(), MASK, bias=BIAS)[0]
    for want in (False, True):
        near = attend(q, k, v, MASK, bias=BIAS.float(), want=want)[0]
        assert near.dtype == torch.bfloat16 and (near.double() - exact).abs().max() < 0.05


def test_masked_keys_have_probability_0_and_rows_sum_to_1():
    _, probs = attend(*qkv(), MASK, want=True)
    assert torch.equal(probs[1, :, :, 3:], torch.zeros(H, T, 2, dtype=torch.float64))
    assert torch.allclose(probs.sum(dim=-1), torch.ones(B, H, T, dtype=torch.float64))     # padded queries too


def test_what_stands_at_masked_keys_does_not_matter():
    q, k, v = qkv()
    other_k, other_v = k.clone(), v.clone()
    other_k[1, :, 3:], other_v[1, :, 3:] = 50.0, -7.0
    for want in (False, True):
        assert torch.allclose(
            attend(q, k, v, MASK, want=want)[0], attend(q, other_k, other_v, MASK, want=want)[0], atol=1e-12
        )


@pytest.mark.parametrize("want", [False, True])
def test_the_head_mask_multiplies_a_heads_context_and_leaves_the_map(want):
    head_mask = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    plain, maps = attend(*qkv(), MASK, want=want)
    masked, masked_maps = attend(*qkv(), MASK, head_mask=head_mask, want=want)
    for h in range(H):
        assert torch.allclose(masked[:, h], head_mask[h] * plain[:, h], atol=1e-12)
    if want:
        assert torch.equal(maps, masked_maps)


def test_dropout_acts_on_the_context_and_not_on_the_map_that_is_returned():
    q, k, v = qkv()
    drop = (draw(B, H, T, T, seed=9) > 0).double() * 2
    context, probs = attend(q, k, v, MASK, dropout=lambda p: p * drop, want=True)
    assert torch.equal(probs, attend(q, k, v, MASK, want=True)[1])
    assert torch.allclose(context, (probs * drop) @ v, atol=1e-12)
    assert torch.equal(context, attend(q, k, v, MASK, dropout=lambda p: p * drop)[0])      # wanted or not


def test_a_dropout_that_is_not_wanted_back_returns_no_map():
    assert attend(*qkv(), None, dropout=lambda p: p)[1] is None


def test_heads_are_split_and_merged_without_a_change():
    x = torch.arange(2 * 3 * 8).view(2, 3, 8)
    heads = split_heads(x, 4)
    assert heads.shape == (2, 4, 3, 2)
    assert heads[1, 2, 0].tolist() == x[1, 0, 4:6].tolist()              # head 2 is features 4 and 5
    assert torch.equal(merge_heads(heads), x)


@pytest.mark.parametrize("bias", [None, BIAS], ids=["no bias", "bias"])
@pytest.mark.parametrize("causal", [False, True], ids=["both ways", "causal"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all real", "padded"])
def test_in_bfloat16_a_processor_takes_products_that_give_what_the_kernel_does(mask, causal, bias, monkeypatch):
    if causal and mask is not None:
        mask = mask & torch.ones(T, T, dtype=torch.bool).tril()
    leaves = [x.requires_grad_() for x in qkv(torch.bfloat16)]
    found, kernel = [], F.scaled_dot_product_attention
    for most in (B * H * T * T - 1, B * H * T * T):
        calls = []
        monkeypatch.setattr(attention, "PROBABILITIES", most)
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (calls.append(a), kernel(*a, **k))[1])
        context, _ = attend(*leaves, mask, bias=bias, causal=causal)
        assert len(calls) == (most < B * H * T * T)
        found.append((context, *torch.autograd.grad(context.float().square().sum(), leaves)))
    for ours, theirs in zip(*found):
        assert torch.allclose(ours.float(), theirs.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_a_key_head_serves_its_neighbouring_query_heads(kv_heads):
    q, wide = draw(B, 6, T, DH, seed=1), MASK.expand(B, 1, T, T)
    k, v = draw(B, kv_heads, T, DH, seed=2), draw(B, kv_heads, T, DH, seed=3)
    context, probs = attend(q, k, v, wide, want=True)
    for h in range(6):
        own = slice(h // (6 // kv_heads), h // (6 // kv_heads) + 1)
        alone, maps = attend(q[:, h:h + 1], k[:, own], v[:, own], wide, want=True)
        assert torch.allclose(context[:, h:h + 1], alone, rtol=0, atol=1e-12)
        assert torch.allclose(probs[:, h:h + 1], maps, rtol=0, atol=1e-12)
    assert torch.allclose(context, attend(q, k, v, wide)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("keys", [1, 2, 9, NARROW - 1, NARROW, NARROW + 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_narrow_rows_are_torchs_softmax(keys, dtype):
    """Large scores and masked keys too; half precision is summed in float32."""
    scores = 20 * draw(2, 3, 4, keys).to(dtype)
    scores[0, :, :, keys // 2:] = float("-inf")
    scores[0, ..., 0] = 1e4
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kept, found = scores.clone(), over_keys(scores)
    assert found.dtype == wide and torch.equal(scores, kept)
    assert torch.allclose(found, scores.softmax(-1, dtype=wide), rtol=1e-5, atol=1e-12)
    assert torch.allclose(found.sum(-1), torch.ones((), dtype=wide), atol=1e-6)


@pytest.mark.parametrize("keys", [9, NARROW])
def test_narrow_rows_have_torchs_gradient(keys):
    scores = draw(2, 3, 4, keys).requires_grad_()
    assert torch.equal(over_keys(scores), scores.softmax(-1))  # with a graph, the kernel
    assert torch.autograd.gradcheck(over_keys, (scores,))
    with torch.no_grad():
        assert torch.allclose(over_keys(scores), scores.softmax(-1), rtol=1e-12)
