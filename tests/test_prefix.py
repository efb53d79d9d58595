"""Prefix-tuning: attention over a prefix by hand and in plain loops, the MLP, what must not matter, how it starts, what
trains."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import fails
from minibd.models import encoder
from minibd.models.attention import attend, merge_heads, split_heads
from minibd.models.bert import Bert, BertConfig
from minibd.models.encoder import Encoder, PackedBatch
from minibd.models.prefix import WIDTH, Prefix, prefix
from minibd.records import Batch
from test_encoder import CAUSAL, LLAMAS, MODELS, made, padded

N, WIDE = 2, 6                                                   # positions, width of the MLP here
every_model = pytest.mark.parametrize("name", MODELS)
both = pytest.mark.parametrize("mlp", [True, False], ids=["mlp", "direct"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def prefixed(name: str, mlp: bool = True, **more) -> Encoder:
    """A model with a prefix of N positions in every block, frozen but for it."""
    model = made(name, **more).requires_grad_(False)
    prefix(model, tokens=N, generator=seeded(), reparameterise=mlp, width=WIDE)
    return model.eval()


def deltas(model: nn.Module) -> dict[str, nn.Parameter]:
    """What the prefixes train, each tensor once."""
    return {at: p for at, p in model.named_parameters() if ".prefix." in at}


# ---- attend() over a prefix

def test_by_hand():
    # two texts of one token: scores 0 and ln 3 -> 1/4, 3/4 of the values 4 and 8; of the values 4 and 0
    q, k = torch.tensor([[[[1.0]]], [[[1.0]]]]), torch.tensor([[[[math.log(3)]]], [[[math.log(3)]]]])
    v = torch.tensor([[[[8.0]]], [[[0.0]]]])
    k, v = Prefix(nn.Parameter(torch.tensor([[0.0, 4.0]])))(k, v)
    for causal in (False, True):
        context, probs = attend(q, k, v, None, causal=causal, want=True)
        assert torch.allclose(context.flatten(), torch.tensor([7.0, 1.0])) and torch.allclose(
            probs.flatten(), torch.tensor([0.25, 0.75] * 2)
        )
        assert torch.allclose(attend(q, k, v, None, causal=causal)[0], context)


B, H, T, DH = 3, 4, 5, 2
REAL = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], dtype=torch.bool)


def loops(q: Tensor, k: Tensor, v: Tensor, sees) -> tuple[Tensor, Tensor]:
    """One query at a time over N prefix keys and those keys j of its text where sees(b, i, j)."""
    context, probs = (
        torch.zeros(q.shape, dtype=torch.float64), torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64),
    )
    for b, h, i in ((b, h, i) for b in range(q.shape[0]) for h in range(q.shape[1]) for i in range(q.shape[2])):
        at = h * k.shape[1] // q.shape[1]                        # neighbouring heads share their keys
        keys = [j for j in range(k.shape[2]) if j < N or sees(b, i, j - N)]
        weight = {
            j: math.exp(sum(float(x * y) for x, y in zip(q[b, h, i], k[b, at, j])) / math.sqrt(q.shape[3]))
            for j in keys
        }
        for j in keys:
            probs[b, h, i, j] = weight[j] / sum(weight.values())
            context[b, h, i] += probs[b, h, i, j] * v[b, at, j]
    return context, probs


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("padding", [False, True], ids=["all real", "padded"])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_against_plain_loops(causal, padding, kv_heads):
    q, k, v = draw(B, H, T, DH, seed=1), draw(B, kv_heads, N + T, DH, seed=2), draw(B, kv_heads, N + T, DH, seed=3)
    real = REAL if padding else torch.ones(B, T, dtype=torch.bool)
    mask = PackedBatch(real, causal).mask

    def sees(b: int, i: int, j: int) -> bool:
        # padding in a causal model sees itself
        return (bool(real[b, j]) or causal and i == j) and (j <= i or not causal)
    context, probs = loops(q, k, v, sees)
    head_mask = torch.tensor([1.0, 0.0, 0.5, 1.0], dtype=torch.float64)
    halve = lambda p: p / 2
    for more, factor in (
        ({}, torch.ones(4, dtype=torch.float64)), ({"head_mask": head_mask}, head_mask),
        ({"dropout": halve}, torch.full_like(head_mask, 0.5)),
    ):
        for want in (False, True):
            ours, maps = attend(q, k, v, mask, causal=causal, want=want, **more)
            assert torch.allclose(ours, context * factor[:, None, None], rtol=0, atol=1e-12)
            assert maps is None if not want else torch.allclose(maps, probs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_prefix_the_kernel_is_given_what_it_was_given_before(causal):
    q, k, v = (draw(B, H, T, DH, seed=seed).float() for seed in (1, 2, 3))
    for mask in (None, PackedBatch(REAL, causal).mask):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        assert torch.equal(attend(q, k, v, mask, causal=causal)[0], expected)


# ---- P

def by_loops(layer: Prefix) -> list[list[float]]:
    """W_l tanh(W E + b) + b_l, or P itself: n rows of 2 D."""
    if layer.mlp is None:
        return layer.rows.tolist()
    first, _, last = layer.mlp
    rows = []
    for e in layer.rows.tolist():
        z = [
            math.tanh(sum(w * x for w, x in zip(line, e)) + b)
            for line, b in zip(first.weight.tolist(), first.bias.tolist())
        ]
        rows.append(
            [sum(w * x for w, x in zip(line, z)) + b for line, b in zip(last.weight.tolist(), last.bias.tolist())]
        )
    return rows


@both
@every_model
def test_keys_and_values_in_front_by_plain_loops(name, mlp):
    heads = 1 if name in LLAMAS else 3                            # its three queries share their keys
    for block in prefixed(name, mlp).double().blocks:
        k, v = draw(2, heads, 3, 4, seed=1), draw(2, heads, 3, 4, seed=2)
        longer = block.prefix(k, v)
        rows, d = by_loops(block.prefix), heads * 4
        assert len(rows) == N and len(rows[0]) == 2 * d
        for half, (ours, own) in enumerate(zip(longer, (k, v))):
            assert ours.shape == (2, heads, N + 3, 4) and torch.equal(ours[:, :, N:], own)
            for b, h, i, j in (
                (b, h, i, j) for b in range(2) for h in range(heads) for i in range(N) for j in range(4)
            ):
                assert ours[b, h, i, j].item() == pytest.approx(rows[i][half * d + h * 4 + j], abs=1e-12)


def test_e_and_w_are_one_for_all_layers_and_stay_so_in_a_copy():
    for model in (prefixed("bert"), copy.deepcopy(prefixed("bert"))):
        one, two = (block.prefix for block in model.blocks)
        assert one.rows is two.rows and one.mlp[0] is two.mlp[0] and one.mlp[2] is not two.mlp[2]
    one, two = (block.prefix for block in prefixed("bert", mlp=False).blocks)
    assert one.rows is not two.rows and not torch.equal(one.rows, two.rows)


# ---- a block

@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_texts_own_first_tokens_as_its_prefix(name):
    """Where P is what a layer makes of the first N tokens, those that follow gather what they gather from the whole
    text."""
    block = prefixed(name, mlp=False).double().blocks[0]
    own, block.prefix = block.prefix, None
    h = draw(7, 12, seed=4)
    packed = PackedBatch(torch.ones(1, 7, dtype=torch.bool), causal=name in CAUSAL)
    whole, maps = block.attention(h, packed, None, True)
    x = block.attention_norm(h) if name in CAUSAL else h
    with torch.no_grad():
        own.rows.copy_(torch.cat((block.key(x), block.value(x)), dim=-1)[:N])
    block.prefix = own
    rest, rest_maps = block.attention(
        h[N:], PackedBatch(torch.ones(1, 7 - N, dtype=torch.bool), causal=name in CAUSAL), None, True
    )
    assert torch.allclose(rest, whole[N:], rtol=0, atol=1e-12) and torch.allclose(
        rest_maps, maps[:, :, N:], rtol=0, atol=1e-12
    )


def test_llamas_rotary_positions_turn_the_texts_keys_and_not_the_prefixs():
    model, batch = prefixed("llama").double(), padded([5])
    packed, block = model.pack(batch), model.blocks[0]
    h = draw(5, 12, seed=4)
    x = block.attention_norm(h)
    q, k = (split_heads(packed.rotate(of(x), n)[None], n) for of, n in ((block.query, 3), (block.key, 1)))
    rows = torch.tensor(by_loops(block.prefix), dtype=torch.float64)  # (N, 2 * 4)
    k, v = (
        torch.cat((p[None, None], own), dim=2)
        for p, own in ((rows[:, :4], k), (rows[:, 4:], split_heads(block.value(x)[None], 1)))
    )
    context, probs = loops(q, k, v, lambda b, i, j: j <= i)
    ours, maps = block.attention(h, packed, None, True)
    assert torch.allclose(ours, merge_heads(context)[0], rtol=0, atol=1e-12) and torch.allclose(
        maps, probs, rtol=0, atol=1e-12
    )
    assert not torch.allclose(packed.rotate(block.key(x), 1), block.key(x))  # the turn is none that could be missed


# ---- the whole model: what must not matter

@both
@pytest.mark.parametrize(
    "name, left", [*((name, False) for name in MODELS), ("roberta", True), ("mpnet", True),
                   *((name, True) for name in CAUSAL)]
)
def test_padding_packing_and_neighbours_do_not_matter(name, left, mlp, monkeypatch):
    model, lengths = prefixed(name, mlp).double(), [9, 2, 4, 1]
    batch = padded(lengths, left)
    results = []
    for share in (0.7, 0.0, 1.0):                                # as it is, never packed, always packed
        monkeypatch.setattr(encoder, "PACK", share)
        for want in ((), ("attn",)):                             # the fused kernel, the explicit path
            model.zero_grad()
            logits = model(batch, want).logits
            logits.square().sum().backward()
            results.append([logits.detach(), *(p.grad.clone() for p in deltas(model).values())])
    for result in results[1:]:
        assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-10) for a, b in zip(results[0], result))
    for b, n in enumerate(lengths):
        at = slice(-n, None) if left else slice(n)
        alone = Batch(
            batch.ids[b : b + 1, at], batch.mask[b : b + 1, at], batch.token_type_ids[b : b + 1, at],
            batch.labels[b : b + 1],
        )
        assert torch.allclose(model(alone).logits, results[0][0][b:b + 1], rtol=0, atol=1e-10)


@every_model
def test_every_token_sees_all_of_the_prefix_and_no_padding(name):
    batch = padded([9, 2, 4])
    for maps in prefixed(name)(batch, ("attn",)).attn:
        assert maps.shape == (3, 3, 9, N + 9) and torch.allclose(maps.sum(-1), torch.ones(3, 3, 9))
        for b, n in enumerate((9, 2, 4)):
            assert (maps[b, :, :n, :N] > 0).all() and not maps[b, :, :n, N + n:].any()
            later = torch.ones(n, n, dtype=torch.bool).triu(1)
            assert maps[b, :, :n, N:N + n][:, later].any() != (name in CAUSAL)


@every_model
def test_without_prefix_nothing_is_changed_and_with_one_it_is(name):
    batch, plain = padded([9, 2, 4]), made(name)
    with_one = prefixed(name)
    before = plain.requires_grad_(False)(batch).logits  # as with_one's: MPNet's fused kernel is another with gradients
    assert not torch.allclose(with_one(batch).logits, before, atol=1e-4)
    for block in with_one.blocks:
        block.prefix = None
    assert torch.equal(with_one(batch).logits, before) and with_one.state_dict().keys() == plain.state_dict().keys()


def test_the_last_of_the_positions_can_still_be_taken():
    """A prefix takes none of them away."""
    model = prefixed("bert", positions=9)
    assert model(padded([9])).logits.isfinite().all()


def test_a_pruned_head_gathers_nothing_from_the_prefix_either():
    model, batch = prefixed("bert"), padded([9, 2, 4])
    model.head_mask[:, 1] = 0.0
    before = model(batch).logits
    with torch.no_grad():
        for block in model.blocks:
            last = block.prefix.mlp[2]
            last.weight.view(2, 3, 4, -1)[:, 1] = 7.0
    assert torch.equal(model(batch).logits, before)
    model.head_mask[:] = 1.0
    assert not torch.allclose(model(batch).logits, before, atol=1e-4)


def test_attention_dropout_acts_on_the_prefix_too():
    model, batch = prefixed("bert").train(), padded([5])
    model.blocks[0].attention_dropout.forward = lambda probs: torch.zeros_like(probs)
    context, _ = model.blocks[0].attention(draw(5, 12).float(), model.pack(batch), None, False)
    assert not context.any()


# ---- the start

def test_the_start_of_the_mlp():
    model = made("bert")
    prefix(model, tokens=40, generator=seeded())
    first, second = (block.prefix for block in model.blocks)
    assert WIDTH == 512 and first.rows.shape == (40, WIDTH)
    assert first.rows.mean().abs() < 0.05 and first.rows.std().item() == pytest.approx(1, rel=0.03)
    for layer in (first.mlp[0], first.mlp[2], second.mlp[2]):
        for p in (layer.weight, layer.bias):
            bound = WIDTH ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(
                bound / 3**0.5, rel=0.25 if p.dim() == 1 else 0.03
            )
    assert not torch.equal(first.mlp[2].weight, second.mlp[2].weight)


def test_the_start_without_mlp():
    model = made("bert")
    prefix(model, tokens=500, generator=seeded(), reparameterise=False)
    for block in model.blocks:
        assert block.prefix.rows.shape == (500, 24) and block.prefix.rows.std().item() == pytest.approx(1, rel=0.03)


@both
def test_the_same_seed_draws_the_same_start_and_no_global_chance_is_used(mlp):
    model, starts = made("bert"), []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        other = copy.deepcopy(model)
        prefix(other, tokens=N, generator=seeded(seed), reparameterise=mlp)
        starts.append(torch.cat([p.detach().flatten() for p in deltas(other).values()]))
    assert (
        torch.equal(starts[0], starts[1])
        and not torch.equal(starts[0], starts[2])
        and torch.equal(torch.get_rng_state(), state)
    )


@both
@pytest.mark.parametrize("dtype, theirs", [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_it_is_float32_or_its_models_dtype_if_that_is_finer(dtype, theirs, mlp):
    model = made("bert").to(dtype)
    prefix(model, tokens=N, generator=seeded(), reparameterise=mlp)
    assert {p.dtype for p in deltas(model).values()} == {theirs} and model(padded([5, 3])).logits.dtype == dtype


# ---- what trains

@both
@every_model
def test_what_trains_is_the_prefix(name, mlp):
    model, d = prefixed(name, mlp), 4 if name in LLAMAS else 12
    trained = {at for at, p in model.named_parameters() if p.requires_grad}
    assert trained == set(deltas(model))
    count = sum(p.numel() for p in deltas(model).values())
    assert count == (WIDE * N + WIDE * (WIDE + 1) + 2 * 2 * d * (WIDE + 1) if mlp else 2 * 2 * d * N)
    model(padded([5, 3])).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in deltas(model).values())
    assert all(p.grad is None for at, p in model.named_parameters() if at not in trained)


def test_the_numbers_that_the_docstring_names():
    counts = []
    for mlp in (True, False):
        with torch.device("meta"):
            model = Bert(BertConfig(30522, 768, 12, 12, 3072)).requires_grad_(False)
        prefix(model, tokens=8, generator=seeded(), reparameterise=mlp)
        counts.append(sum(p.numel() for p in model.parameters() if p.requires_grad))
    assert counts == [9_722_368, 147_456]


@both
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_gradients_are_those_of_finite_differences(name, mlp):
    model, batch = prefixed(name, mlp).double(), padded([5, 3, 1])
    total = lambda: model(batch).logits.square().sum()
    total().backward()
    for at, p in deltas(model).items():
        way = torch.randn(p.shape, generator=seeded(len(at)), dtype=torch.float64)
        with torch.no_grad():
            p.add_(1e-5 * way)
            up = total()
            p.sub_(2e-5 * way)
            down = total()
            p.add_(1e-5 * way)
        assert (p.grad * way).sum().item() == pytest.approx((up - down).item() / 2e-5, rel=1e-4, abs=1e-8), at


@both
@pytest.mark.parametrize("name", ["bert", "llama"])
@pytest.mark.parametrize("want", [(), ("attn",)])
def test_in_bfloat16_autocast_it_is_nearly_the_same(want, name, mlp):
    model, batch = prefixed(name, mlp), padded([5, 3])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch, want).logits.float()
    rounded.sum().backward()
    plain = model(batch).logits
    assert not torch.equal(rounded, plain) and torch.allclose(rounded, plain, atol=0.05 * plain.abs().max().item())
    assert all(p.grad.dtype == torch.float32 for p in deltas(model).values())


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_prefix_of_nothing_is_refused(tokens):
    fails(lambda: prefix(made("bert"), tokens=tokens, generator=seeded()), str(tokens), "at least 1")
