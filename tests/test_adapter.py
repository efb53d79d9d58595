"""Adapters: the formula by hand and in plain loops, where they sit in a block, how they start, what trains."""
import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import fails
from minibd.models import encoder
from minibd.models.adapter import STD, Adapter, adapter
from minibd.models.bert import Bert, BertConfig
from minibd.models.encoder import Encoder
from test_encoder import CAUSAL, LLAMAS, MODELS, made, padded

every_model = pytest.mark.parametrize("name", MODELS)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapted(name: str, scale: float = 1.0, **more) -> Encoder:
    """A model with adapters of 3 numbers, frozen but for them; `scale` makes them large enough to be seen."""
    model = made(name, **more).requires_grad_(False)
    adapter(model, bottleneck=3, generator=seeded())
    with torch.no_grad():
        for p in deltas(model).values():
            p.mul_(scale)
            if p.dim() == 1:
                p.normal_(0.0, STD * scale, generator=seeded(9))
    return model.eval()


def deltas(model: nn.Module) -> dict[str, nn.Parameter]:
    return {f"{at}.{leaf}": p for at, module in model.named_modules() if isinstance(module, Adapter)
            for leaf, p in module.named_parameters() if not leaf.startswith("base.")}


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


# ---- y = h + W_up act(W_down h)

def test_by_hand():
    # h = 2 x + (1, 0) = (3, 4); W_down h + 1 = 3 - 4 + 1 = 0 and 3 + 4 - 6 = 1; act(0) = 0, act(1) = 0.8412: y = h +
    # 0.8412 (10, 0) + (0, 5)
    base = nn.Linear(2, 2)
    layer = Adapter(base, 2, seeded())
    with torch.no_grad():
        base.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        base.bias.copy_(torch.tensor([1.0, 0.0]))
        layer.down.weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        layer.down.bias.copy_(torch.tensor([1.0, -6.0]))
        layer.up.weight.copy_(torch.tensor([[7.0, 10.0], [3.0, 0.0]]))
        layer.up.bias.copy_(torch.tensor([0.0, 5.0]))
    assert layer(torch.tensor([[1.0, 2.0]])).tolist()[0] == pytest.approx([3 + 8.41192, 4 + 5], abs=1e-4)


def loops(layer: Adapter, x: Tensor) -> Tensor:
    rows = []
    for row in x.tolist():
        weight, bias = (
            layer.base.weight.tolist(),
            [0.0] * len(layer.base.weight) if layer.base.bias is None else layer.base.bias.tolist(),
        )
        h = [sum(w * v for w, v in zip(line, row)) + b for line, b in zip(weight, bias)]
        z = [
            gelu(sum(w * v for w, v in zip(line, h)) + b)
            for line, b in zip(layer.down.weight.tolist(), layer.down.bias.tolist())
        ]
        up = [
            sum(w * v for w, v in zip(line, z)) + b for line, b in zip(layer.up.weight.tolist(), layer.up.bias.tolist())
        ]
        rows.append([a + b for a, b in zip(h, up)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("bias", [True, False])
def test_against_plain_loops(bias):
    layer = Adapter(nn.Linear(5, 4, bias=bias), 3, seeded()).double()
    with torch.no_grad():
        for i, p in enumerate(layer.parameters()):
            p.copy_(torch.randn(p.shape, generator=seeded(i), dtype=torch.float64))
    x = torch.randn(6, 5, generator=seeded(20), dtype=torch.float64)
    assert torch.allclose(layer(x), loops(layer, x), rtol=0, atol=1e-12)


# ---- where

class Triple(nn.Module):
    """Stands where dropout does, and shows by its factor what passed through it."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x


@every_model
def test_it_stands_before_dropout_the_residual_and_the_norm_of_both_halves(name):
    model = adapted(name, 50.0).double()
    d = model.config.hidden
    for i, block in enumerate(model.blocks):
        block.dropout = Triple()
        scale = 1 if name in LLAMAS else 3  # Llama has no dropout there
        h, context = (torch.randn(7, d, generator=seeded(10 * i + j), dtype=torch.float64) for j in range(2))
        first = loops(block.output, context) * (1 if name == "distilbert" else scale)  # nor DistilBERT behind attention
        if name in CAUSAL:
            a = h + first
            x = block.norm(a)
            inner = F.silu(block.gate(x)) * block.up(x) if name in LLAMAS else F.gelu(block.up(x), approximate="tanh")
            expected = a + scale * loops(block.down, inner)
        else:
            u = block.attention_norm(h + first)
            expected = block.norm(u + scale * loops(block.down, F.gelu(block.up(u))))
        assert torch.allclose(block.feed_forward(h, context), expected, rtol=0, atol=1e-9)


@every_model
def test_every_block_has_two_and_nothing_else_has(name):
    model = adapted(name)
    there = {at for at, module in model.named_modules() if isinstance(module, Adapter)}
    assert there == {f"blocks.{i}.{half}" for i in range(2) for half in ("output", "down")}


@every_model
def test_with_w_up_at_0_the_model_is_as_it_was(name):
    model, batch = made(name), padded([9, 2, 4])
    before = model(batch).logits
    adapter(model, bottleneck=3, generator=seeded())
    assert not torch.equal(model(batch).logits, before)
    for at, p in deltas(model).items():
        if ".up." in at:
            nn.init.zeros_(p)
    assert torch.equal(model(batch).logits, before)


# ---- what must not matter

@every_model
def test_padding_packing_and_neighbours_do_not_matter(name, monkeypatch):
    model, batch = adapted(name, 50.0).double(), padded([9, 2, 4, 1])
    together = model(batch).logits
    for share in (0.0, 1.0):                                     # never packed, always packed
        monkeypatch.setattr(encoder, "PACK", share)
        assert torch.allclose(model(batch).logits, together, rtol=0, atol=1e-10)
    for b, n in enumerate((9, 2, 4, 1)):
        alone = type(batch)(
            *(
                t[b : b + 1, :n] if t.dim() > 1 else t[b : b + 1]
                for t in (batch.ids, batch.mask, batch.token_type_ids, batch.labels)
            )
        )
        assert torch.allclose(model(alone).logits, together[b:b + 1], rtol=0, atol=1e-10)


def test_a_pruned_head_stays_out():
    model, batch = adapted("bert", 50.0), padded([9, 2, 4])
    model.head_mask[1, 2] = 0.0
    gated = model(batch).logits
    model.head_mask[1, 2] = 1.0
    with torch.no_grad():
        model.blocks[1].output.base.weight[:, 8:12] = 0.0         # what a folder has in its place
    assert torch.allclose(model(batch).logits, gated, atol=1e-5)


# ---- the start

def test_the_start_is_small_normal_numbers_and_biases_of_0():
    layer = Adapter(nn.Linear(4, 600), 500, seeded())
    for p in (layer.down.weight, layer.up.weight):
        assert p.mean().abs() < 5 * STD / p.numel() ** 0.5 and p.std().item() == pytest.approx(STD, rel=0.01)
        assert p.abs().max() > 4 * STD                            # not cut off
    assert not layer.down.bias.any() and not layer.up.bias.any()
    assert not torch.equal(layer.down.weight.flatten()[:9], layer.up.weight.flatten()[:9])


def test_the_start_is_near_the_identity():
    """The docstring's 0.4 %, for BERT-base's width."""
    h = torch.randn(200, 768, generator=seeded(1))
    base = nn.Linear(768, 768, bias=False)
    nn.init.eye_(base.weight)
    change = Adapter(base, 8, seeded())(h) - h
    assert 0.003 < (change.norm() / h.norm()).item() < 0.005


def test_the_same_seed_draws_the_same_start_and_no_global_chance_is_used():
    model, starts = made("bert"), []
    state = torch.get_rng_state()
    for seed in (0, 0, 1):
        other = copy.deepcopy(model)
        adapter(other, bottleneck=3, generator=seeded(seed))
        starts.append(torch.cat([p.detach().flatten() for p in deltas(other).values()]))
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    drawn = [p for at, p in deltas(other).items() if at.endswith("weight")]
    assert len({p.flatten()[0].item() for p in drawn}) == len(drawn) == 8  # no two layers begin alike
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype, theirs", [(torch.float64, torch.float64), (torch.bfloat16, torch.float32)])
def test_it_is_float32_or_its_models_dtype_if_that_is_finer(dtype, theirs):
    model = made("bert").to(dtype)
    adapter(model, bottleneck=3, generator=seeded())
    assert {p.dtype for p in deltas(model).values()} == {theirs} and model(padded([5, 3])).logits.dtype == dtype


# ---- what trains

@every_model
def test_what_trains_is_the_adapters(name):
    model = adapted(name)
    trained = {at for at, p in model.named_parameters() if p.requires_grad}
    assert trained == set(deltas(model)) and len(trained) == 2 * 2 * 4
    assert sum(p.numel() for p in deltas(model).values()) == 2 * 2 * (2 * 12 * 3 + 3 + 12)
    model(padded([5, 3])).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in deltas(model).values())
    assert all(p.grad is None for at, p in model.named_parameters() if at not in trained)


def test_the_numbers_that_the_docstring_names():
    with torch.device("meta"):
        model = Bert(BertConfig(30522, 768, 12, 12, 3072)).requires_grad_(False)
    adapter(model, bottleneck=8, generator=seeded())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 313_536


def test_gradients_are_those_of_finite_differences():
    model, batch = adapted("bert", 50.0).double(), padded([5, 3])
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
        assert (p.grad * way).sum().item() == pytest.approx((up - down).item() / 2e-5, rel=1e-5, abs=1e-9), at


def test_in_bfloat16_autocast_it_is_nearly_the_same():
    model, batch = adapted("bert", 50.0), padded([5, 3])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(batch).logits.float()
    plain = model(batch).logits
    assert not torch.equal(rounded, plain) and torch.allclose(rounded, plain, atol=0.05 * plain.abs().max().item())


@pytest.mark.parametrize("bottleneck", [0, -1])
def test_a_bottleneck_of_nothing_is_refused(bottleneck):
    fails(lambda: adapter(made("bert"), bottleneck=bottleneck, generator=seeded()), str(bottleneck), "at least 1")
