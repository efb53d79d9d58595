"""Our dropout: how much it keeps, what it scales by, whose random numbers it draws."""
import pytest
import torch
from torch import nn

from minibd.models.dropout import Dropout, seed_dropout


def seeded(p: float, seed: int = 0) -> Dropout:
    layer = Dropout(p).train()
    layer.generator = torch.Generator().manual_seed(seed)
    return layer


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_it_keeps_a_share_of_1_minus_p(p):
    n = 1_000_000
    kept = seeded(p)(torch.ones(n)).count_nonzero().item()
    assert abs(kept - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("p, scale", [(0.5, 2.0), (0.25, 4 / 3), (0.1, 1 / 0.9)])
def test_what_is_kept_is_scaled_by_1_over_1_minus_p(p, scale):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    y = seeded(p)(x)
    kept = y != 0
    # p is rounded to 2^-16, so the scale is off by at most 2^-17 / (1 - p)^2
    assert torch.allclose(y[kept], x[kept] * scale, rtol=2e-5)
    assert 0 < kept.sum() < 1000


def test_the_mean_is_kept():
    y = seeded(0.1)(torch.ones(1_000_000))
    assert abs(y.mean().item() - 1) < 5 * (0.1 / 0.9 / 1_000_000) ** 0.5   # variance of one element: p / (1 - p)


def test_neighbours_fall_independently():
    # Four elements share one 64-bit draw: each of the 16 patterns of a group must come up with its own share.
    kept = (seeded(0.5)(torch.ones(160_000)) != 0).view(-1, 4)
    pattern = (kept * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    counts = torch.bincount(pattern, minlength=16).double()                # 2500 expected of each
    assert ((counts - 2500) ** 2 / 2500).sum() < 37.7                      # chi-square, 15 degrees of freedom: 0.001


def test_the_same_generator_state_gives_the_same_mask_and_the_next_call_another():
    x = torch.ones(64)
    a, b = seeded(0.5, seed=3), seeded(0.5, seed=3)
    first = a(x)
    assert torch.equal(first, b(x))
    second = a(x)
    assert torch.equal(second, b(x)) and not torch.equal(first, second)
    assert not torch.equal(first, seeded(0.5, seed=4)(x))


def test_a_generator_of_its_own_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    seeded(0.5)(torch.ones(10))
    assert torch.equal(before, torch.get_rng_state())


def test_seed_dropout_reaches_every_dropout_and_none_takes_it_back():
    model, g = nn.Sequential(Dropout(0.1), nn.Sequential(nn.Linear(2, 2), Dropout(0.2))), torch.Generator()
    seed_dropout(model, g)
    assert model[0].generator is g and model[1][1].generator is g
    seed_dropout(model, None)
    assert model[0].generator is None and model[1][1].generator is None


def test_in_eval_mode_and_at_p_0_it_is_the_identity_and_draws_nothing():
    x = torch.ones(8)
    for layer in (seeded(0.5).eval(), seeded(0.0)):
        state = layer.generator.get_state()
        assert layer(x) is x and not layer.active
        assert torch.equal(state, layer.generator.get_state())


def test_the_gradient_is_the_mask_times_the_scale():
    x = torch.randn(37, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = seeded(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (7, 3), (2, 3, 5, 5), ()])
def test_any_number_of_elements(shape):
    y = seeded(0.5)(torch.ones(shape))
    assert y.shape == shape and set(y.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_an_empty_tensor_stays_empty(shape):
    assert seeded(0.5)(torch.ones(shape)).shape == shape


def test_a_tensor_that_is_not_contiguous_keeps_its_places():
    x = torch.arange(1.0, 13.0).view(3, 4).t()
    y = seeded(0.5)(x)
    assert torch.equal(y[y != 0], 2 * x[y != 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_is_kept_and_the_mask_is_that_of_float32(dtype):
    y = seeded(0.5)(torch.ones(101, dtype=dtype))
    assert y.dtype == dtype
    assert torch.equal(y.float(), seeded(0.5)(torch.ones(101)))


def test_attention_dropout_is_lent_and_given_back():
    from minibd.models.bert import Bert, BertConfig
    from minibd.models.dropout import attention_dropout
    model = Bert(BertConfig(vocab=9, hidden=8, layers=2, heads=2, ffn=8, attention_dropout=0.1, dropout=0.2))
    with pytest.raises(RuntimeError, match="midway"):
        with attention_dropout(model, 0.7):
            assert [block.attention_dropout.p for block in model.blocks] == [0.7, 0.7]
            assert model.blocks[0].dropout.p == 0.2 and model.embeddings.dropout.p == 0.2
            raise RuntimeError("midway")
    assert [block.attention_dropout.p for block in model.blocks] == [0.1, 0.1]
