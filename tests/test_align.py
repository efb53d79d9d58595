"""Gradient alignment: each equation by hand and against plain loops; two gradients in one pass; the whole step against
its plain lines."""

import math
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from conftest import fails
from minibd.align import AlignedAdamW, Groups, Ratio, TwoGroupLoRA, align, interpolate, swap, twins_of

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "musclelora_alignment.safetensors"
SHAPES = [(4, 3), (3, 4), (5,), (2, 2, 3)]
both = pytest.mark.parametrize("variant", ["paper", "released"])


def normal(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def near(a: Tensor, b: Tensor, tight: float = 1e-12) -> None:
    torch.testing.assert_close(a, b, rtol=tight, atol=tight)


# ---- Eq. (7)

def test_alignment_by_hand():
    # <g, r> = 6, ||r||^2 = 4
    assert align(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])).tolist() == [3.0, 0.0]
    assert align(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])).tolist() == [
        [1.5, 0.0], [0.0, 1.5],
    ]


def test_a_gradient_that_points_against_the_clean_one_is_turned_round():
    g, r = torch.tensor([-3.0, 4.0]), torch.tensor([2.0, 0.0])
    assert align(g, r).tolist() == [3.0, 0.0]
    assert align(-r, r).tolist() == r.tolist()


@both
def test_alignment_against_plain_loops(variant):
    for i, shape in enumerate(SHAPES):
        g, r = normal(shape, i), normal(shape, 10 + i)
        a, b = g.flatten().tolist(), r.flatten().tolist()
        share = abs(sum(x * y for x, y in zip(a, b))) / sum(y * y for y in b)
        ours = align(g, r, variant=variant)
        assert ours.shape == shape and ours.flatten().tolist() == pytest.approx([share * y for y in b], rel=1e-12)


def test_what_alignment_does_not_depend_on():
    g, r = normal((6,), 0), normal((6,), 1)
    near(align(g, 7.5 * r), align(g, r))                          # how long r is
    near(align(2.0 * g, r), 2.0 * align(g, r))
    near(align(align(g, r), r), align(g, r))
    near(align(-g, r), align(g, r))
    assert align(g, r).norm() <= g.norm() and align(g, r) @ r > 0


@pytest.mark.parametrize("size", [3e-9, 1e-20, 1e-30])
def test_a_small_clean_gradient_gives_the_same_alignment(size):
    g, r = normal((6,), 0).float(), normal((6,), 1).float()
    near(align(g, r * size), align(g, r), 1e-5)
    near(align(g * size, r * size) / size, align(g, r), 1e-5)


def test_zero_gradients():
    g, nothing = normal((4,), 0), torch.zeros(4, dtype=torch.float64)
    assert align(g, nothing).tolist() == [0.0] * 4 and align(nothing, g).tolist() == [0.0] * 4
    assert (
        torch.equal(align(g, nothing, variant="released"), g)
        and align(nothing, g, variant="released").tolist() == [0.0] * 4
    )
    assert align(nothing, nothing).tolist() == align(nothing, nothing, variant="released").tolist() == [0.0] * 4


def test_an_aligned_gradient_keeps_the_type():
    for dtype in (torch.float32, torch.bfloat16):
        assert align(normal((4,), 0, dtype), normal((4,), 1, dtype)).dtype == dtype


# ---- Eq. (8)

def test_the_mixture_by_hand():
    g, aligned = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])
    assert interpolate(g, aligned, 0.0).tolist() == [3.0, 0.0] and interpolate(g, aligned, 1.0).tolist() == [3.0, 4.0]
    assert interpolate(g, aligned, 0.25).tolist() == [3.0, 1.0]


def mu(ratio: Ratio, step: int, steps: int, epochs: int = 1, loss: float = 0.0, norm: float = 0.0) -> float:
    return ratio.mu(step, steps, epochs, loss, norm)


def test_the_papers_ratio_goes_linearly_from_nothing_to_its_most():
    assert [mu(Ratio(), i, 5) for i in range(5)] == pytest.approx([0.0, 0.025, 0.05, 0.075, 0.1])
    assert mu(Ratio(), 0, 1) == 0.0 and mu(Ratio(0.0), 4, 5) == 0.0
    assert mu(Ratio(), 0, 5, loss=0.1, norm=0.0) == 0.0           # whatever the clean texts' loss


def test_the_released_ratio_by_hand():
    ratio = Ratio(variant="released")
    assert [mu(ratio, i, 20, 10, loss=9.0, norm=1.0) for i in range(20)] == [0.0] * 20
    low = [mu(ratio, i, 20, 10, loss=0.3, norm=1.0) for i in range(20)]
    assert low[:2] == [1.0, 1.0] and low[2:4] == [0.0, 0.0]       # epoch 0: raw; epoch 1: 0
    assert low[4:] == pytest.approx([0.1 * (epoch - 1) / 9 for epoch in range(2, 10) for _ in range(2)])
    assert low[-1] == pytest.approx(0.0889, abs=5e-5)
    assert mu(ratio, 3, 20, 10, loss=0.4, norm=1.0) == 0.0 and mu(ratio, 1, 20, 10, loss=0.4, norm=1.0) == 1.0
    assert mu(ratio, 1, 20, 10, loss=0.41, norm=5e-7) == 1.0 and mu(ratio, 1, 20, 10, loss=0.41, norm=6e-7) == 0.0
    assert mu(Ratio(0.2, "released", 4), 9, 10, 10) == pytest.approx(0.2 * 5 / 6)
    assert mu(ratio, 19, 20, 10, loss=9.0, norm=0.0) == pytest.approx(0.1 * 8 / 9)


def test_the_released_ratio_of_llama_is_always_aligned():
    ratio = Ratio(0.0, "released", 0, 0.0)
    assert {mu(ratio, i, 10, 5, loss=1e-3, norm=1.0) for i in range(10)} == {0.0}
    assert mu(ratio, 9, 10, 5, loss=0.0, norm=1.0) == 1.0         # but where the clean texts are learnt perfectly


def test_as_many_epochs_as_the_first_with_raw_gradients():
    assert {mu(Ratio(variant="released", ga_epoch=n), i, 6, 3, loss=0.1) for i in range(6) for n in (3, 7)} == {1.0}


def test_ratios_that_cannot_be():
    fails(lambda: Ratio(1.5), "1.5", "0..1")
    fails(lambda: Ratio(-0.1), "-0.1")
    fails(lambda: Ratio(float("nan")), "nan")
    fails(lambda: Ratio(variant="printed"), "'printed'", "paper, released")
    fails(lambda: Ratio(ga_epoch=-1), "-1")


# ---- which rows are whose

def test_groups_by_hand():
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool)
    groups = Groups(mask, 2)
    assert [groups.untrusted(rows) for rows in (12, 6, 3)] == [8, 4, 2]
    assert Groups(mask.flip(1), 1).untrusted(6) == 3
    assert Groups(torch.ones(4, 1, dtype=torch.bool), 3).untrusted(4) == 3
    with pytest.raises(ValueError, match="5 rows.*12, 6, 3"):
        groups.untrusted(5)


@pytest.mark.parametrize("n", [0, 3, 4, -1])
def test_both_groups_need_texts(n):
    with pytest.raises(ValueError, match=f"{n} untrusted texts of 3"):
        Groups(torch.ones(3, 2, dtype=torch.bool), n)


def test_rows_that_their_number_does_not_tell():
    with pytest.raises(ValueError, match="some have none"):       # 2 rows: 2 tokens, both the first text's, or 2 texts?
        Groups(torch.tensor([[1, 1], [0, 0]], dtype=torch.bool), 1)


def test_a_twin_lies_on_the_same_memory_and_has_a_gradient_of_its_own():
    p = nn.Parameter(torch.ones(2))
    twin, = twins_of([p])
    assert twin.is_leaf and twin.requires_grad and twin.data_ptr() == p.data_ptr()
    (3 * p + 5 * twin).sum().backward()
    assert p.grad.tolist() == [3.0, 3.0] and twin.grad.tolist() == [5.0, 5.0]
    swap([p], [twin])
    assert p.grad.tolist() == [5.0, 5.0] and twin.grad.tolist() == [3.0, 3.0]


# ---- one layer, two gradients

N, FIRST, I, O, K = 7, 3, 5, 4, 2


def layer(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x, W, b, L, R."""
    sizes = [(N, I), (O, I), (O,), (K, I), (O, K)]
    return [normal(size, i).to(dtype).requires_grad_(i in (0, 3, 4)) for i, size in enumerate(sizes)]


SCALINGS = {"a number": 1.7, "a vector": torch.tensor([1.0, 4.0], dtype=torch.float64)}
scaled = pytest.mark.parametrize("c", SCALINGS.values(), ids=SCALINGS)


def plain(x: Tensor, W: Tensor, b: Tensor | None, L: Tensor, R: Tensor, c: Tensor | float) -> Tensor:
    y = x @ (W + R @ torch.diag(torch.ones(K, dtype=x.dtype) * c) @ L).T
    return y if b is None else y + b


@scaled
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_and_its_gradients_are_those_of_the_plain_formula(c, bias):
    results = []
    for way in (plain, lambda x, W, b, L, R, c: TwoGroupLoRA.apply(x, W, b, L, R, None, None, c, None)):
        x, W, b, L, R = layer()
        y = way(x, W, b if bias else None, L, R, c)
        (y * normal((N, O), 9)).sum().backward()
        results.append([y, x.grad, L.grad, R.grad])
        assert W.grad is None and b.grad is None
    for a, b in zip(*results):
        near(a, b)


@scaled
def test_the_layer_by_finite_differences(c):
    x, W, b, L, R = layer()
    assert torch.autograd.gradcheck(lambda x, L, R: TwoGroupLoRA.apply(x, W, b, L, R, None, None, c, None), (x, L, R))
    L2, R2 = twins_of([L, R])
    # what the first rows say goes to L and R, what the others say to the twins, through which the memory is moved here
    assert torch.autograd.gradcheck(
        lambda x, L, R: TwoGroupLoRA.apply(x, W, b, L, R, L2, R2, c, FIRST)[:FIRST], (x, L, R)
    )
    assert torch.autograd.gradcheck(
        lambda x, L, R: TwoGroupLoRA.apply(x, W, b, L.detach(), R.detach(), L, R, c, FIRST)[FIRST:], (x, L, R)
    )


@scaled
@pytest.mark.parametrize("n", [1, FIRST, N - 1])
def test_each_group_has_the_gradient_that_it_would_have_alone(c, n):
    x, W, b, L, R = layer()
    dy = normal((N, O), 9)
    twins = twins_of([L, R])
    (TwoGroupLoRA.apply(x, W, b, L, R, *twins, c, n) * dy).sum().backward()
    for rows, leaves in ((slice(n), (L, R)), (slice(n, None), twins)):
        alone_x, _, _, alone_L, alone_R = layer()
        (plain(alone_x[rows], W, b, alone_L, alone_R, c) * dy[rows]).sum().backward()
        near(leaves[0].grad, alone_L.grad)
        near(leaves[1].grad, alone_R.grad)
        near(x.grad[rows], alone_x.grad[rows])


def test_two_passes_add_up_in_both():
    x, W, b, L, R = layer()
    twins = twins_of([L, R])
    for i in range(2):
        (TwoGroupLoRA.apply(x, W, b, L, R, *twins, 1.0, FIRST) * normal((N, O), i)).sum().backward()
    once, twice = layer(), normal((N, O), 0) + normal((N, O), 1)
    others = twins_of(once[3:])
    (TwoGroupLoRA.apply(*once, *others, 1.0, FIRST) * twice).sum().backward()
    for a, b in zip((L, R, *twins), (*once[3:], *others)):
        near(a.grad, b.grad)


def test_an_input_without_gradient_is_given_none():
    """The first block's: no product with W on the way back, which would be most of the work."""
    for wanted in (False, True):
        _, W, b, L, R = layer()
        x = normal((N, I), 0).requires_grad_(wanted)
        y = TwoGroupLoRA.apply(x, W, b, L, R, None, None, 1.0, None)
        with FlopCounterMode(display=False) as counter:
            y.sum().backward()
        # dz, dL, dR; dx less what R adds to it
        assert counter.get_total_flops() == 2 * N * (O * K + K * I + O * K) + wanted * 2 * N * O * I
        assert (x.grad is None) != wanted


def test_only_the_input_and_its_projection_are_kept():
    x, W, b, L, R = layer()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        TwoGroupLoRA.apply(x, W, b, L, R, *twins_of([L, R]), 1.0, FIRST)
    assert sorted(kept) == sorted([(N, I), (N, K), (O, I), (K, I), (O, K)])


def test_gradients_come_in_the_parameters_type():
    x, W, b, L, R = layer(torch.bfloat16)
    L, R = (p.detach().float().requires_grad_() for p in (L, R))
    twins = twins_of([L, R])
    y = TwoGroupLoRA.apply(x, W, b, L, R, *twins, 1.0, FIRST)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16 and {p.grad.dtype for p in (L, R, *twins)} == {torch.float32}


# ---- the step

def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    return [nn.Parameter(normal(shape, 20 + i, dtype)) for i, shape in enumerate(SHAPES)]


def gradients(step: int, missing: str = "") -> tuple[list[Tensor | None], list[Tensor | None]]:
    """g and r of every tensor at `step`; of the third tensor one or both may be missing, or 0."""
    g, r = ([normal(shape, 100 * step + 10 * part + i) for i, shape in enumerate(SHAPES)] for part in (1, 2))
    for name, which in (("g", g), ("r", r)):
        if name in missing:
            which[2] = torch.zeros_like(which[2]) if "zero" in missing else None
    return g, r


def reference(
    params: list[nn.Parameter], g: list[Tensor | None], r: list[Tensor | None], ratio: float, clip: float, whole: bool,
    variant: str, optimizer: torch.optim.Optimizer,
) -> float:
    """Eq. (7), Eq. (8), torch's clipping and AdamW, one after the other."""
    there = [i for i in range(len(params)) if g[i] is not None or r[i] is not None]
    g, r = ([torch.zeros_like(p) if x is None else x for p, x in zip(params, column)] for column in (g, r))
    if whole:
        one, other = (torch.cat([x.flatten() for x in column]) for column in (g, r))
        long = interpolate(one, align(one, other, variant=variant), ratio).split([p.numel() for p in params])
        mixed = [x.view_as(p) for x, p in zip(long, params)]
    else:
        mixed = [interpolate(a, align(a, b, variant=variant), ratio) for a, b in zip(g, r)]
    for i, p in enumerate(params):
        p.grad = mixed[i].clone() if i in there else None
    norm = nn.utils.clip_grad_norm_(params, clip)
    optimizer.step()
    return norm.item()


CASES = list(product([False, True], ["paper", "released"], ["", "g", "r", "gr", "zero g", "zero r", "zero gr"]))


@pytest.mark.parametrize("whole, variant, missing", CASES)
def test_the_step_is_its_plain_lines(whole, variant, missing):
    ours, theirs = parameters(), parameters()
    twins = twins_of(ours)
    optimizer = AlignedAdamW(
        ours, twins, lr=0.01, clip=1.5, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6, whole=whole, variant=variant
    )
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in theirs if p.dim() > 1], "weight_decay": 0.1},
            {"params": [p for p in theirs if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=0.01, betas=(0.8, 0.95), eps=1e-6,
    )
    for step, ratio in enumerate((0.0, 0.3, 0.0, 1.0)):
        g, r = gradients(step, missing if step < 3 else "")
        size = 10.0 if step % 2 else 0.01                         # clipped and not
        g, r = ([x if x is None else x * size for x in column] for column in (g, r))
        for group in (*optimizer.param_groups, *adam.param_groups):
            group["lr"] *= 0.9                                    # as fit's schedule does
        optimizer.zero_grad(set_to_none=True)
        for p, twin, a, b in zip(ours, twins, g, r):
            p.grad, twin.grad = (x if x is None else x.clone() for x in (a, b))
        optimizer.mu = ratio
        norm = optimizer.step()
        assert norm.item() == pytest.approx(reference(theirs, g, r, ratio, 1.5, whole, variant, adam), rel=1e-6)
        assert (norm.item() > 1.5) == bool(step % 2)
        for p, q in zip(ours, theirs):
            near(p.detach(), q.detach(), 1e-10)
            if step < 3:
                assert (p.grad is None) == (q.grad is None)
            if q.grad is not None:
                near(p.grad, q.grad, 1e-10)


def test_the_step_in_float32():
    ours, theirs = parameters(torch.float32), parameters()
    optimizer = AlignedAdamW(ours, twins_of(ours), lr=0.01)
    adam = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.0)
    for step in range(3):
        g, r = gradients(step)
        for (p, twin), a, b in zip(optimizer.pairs, g, r):
            p.grad, twin.grad = a.float(), b.float()
        optimizer.mu = 0.1
        assert optimizer.step().item() == pytest.approx(
            reference(theirs, g, r, 0.1, 1.0, False, "paper", adam), rel=1e-5
        )
    for p, q in zip(ours, theirs):
        near(p.detach().double(), q.detach(), 1e-5)


def test_the_step_turns_an_opposite_gradient_round():
    p, = params = [nn.Parameter(torch.zeros(2))]
    optimizer = AlignedAdamW(params, twins_of(params), lr=0.1, clip=math.inf)
    p.grad, optimizer.pairs[0][1].grad = torch.tensor([-3.0, 4.0]), torch.tensor([2.0, 0.0])
    assert optimizer.step().item() == pytest.approx(3.0) and p.grad.tolist() == [3.0, 0.0]
    assert p.tolist() == pytest.approx([-0.1, 0.0])


@pytest.mark.parametrize("size", [1e-12, 1e-20, 1e-30])
@pytest.mark.parametrize("which", ["g", "r", "gr"])
def test_the_step_does_not_lose_small_gradients(which, size):
    g, r = normal((6,), 0).float(), normal((6,), 1).float()
    a, b = g * (size if "g" in which else 1), r * (size if "r" in which else 1)
    p, = params = [nn.Parameter(torch.zeros(6))]
    optimizer = AlignedAdamW(params, twins_of(params), lr=0.1, clip=math.inf)
    p.grad, optimizer.pairs[0][1].grad = a.clone(), b.clone()
    norm = optimizer.step()
    expected = align(g, r) * (size if "g" in which else 1)
    torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=0.0)
    assert norm.item() == pytest.approx(expected.double().norm().item(), rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where, ratio", list(product(["g", "r"], [0.0, 0.5])))
def test_a_gradient_that_is_not_finite_changes_nothing(bad, where, ratio):
    params = parameters()
    optimizer = AlignedAdamW(params, twins_of(params), lr=0.01)
    for (p, twin), a, b in zip(optimizer.pairs, *gradients(0)):
        p.grad, twin.grad = a, b
    optimizer.step()
    before = [p.detach().clone() for p in params]
    state = {
        i: {name: value.clone() for name, value in entry.items()}
        for i, entry in optimizer.state_dict()["state"].items()
    }
    for (p, twin), a, b in zip(optimizer.pairs, *gradients(1)):
        p.grad, twin.grad = a, b
    (optimizer.pairs[1][0] if where == "g" else optimizer.pairs[1][1]).grad[0, 0] = bad
    optimizer.mu = ratio
    assert not torch.isfinite(optimizer.step())
    assert all(torch.equal(p, q) for p, q in zip(params, before))
    for i, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, state[i][name]) for name, value in entry.items())


def test_the_ratio_may_ask_for_the_clean_gradients_mean_norm():
    params, asked = parameters(), []
    optimizer = AlignedAdamW(params, twins_of(params), lr=0.01)
    optimizer.mu = lambda norm: asked.append(norm) or 1.0
    g, r = gradients(0, "zero r")
    for (p, twin), a, b in zip(optimizer.pairs, g, r):
        p.grad, twin.grad = a.clone(), b
    mean = sum(x.norm().item() for i, x in enumerate(r) if i != 2) / 3
    optimizer.step()
    assert asked == pytest.approx([mean])
    for p, a in zip(params, g):
        near(p.grad / p.grad.norm(), a / a.norm())                # 1: raw
    optimizer.zero_grad()
    params[0].grad = g[0].clone()
    optimizer.step()
    assert asked[1] == 0.0                                        # no clean gradient at all


def test_nothing_stays_for_the_next_step():
    params = parameters()
    twins = twins_of(params)
    optimizer = AlignedAdamW(params, twins, lr=0.01)
    for p, twin in zip(params, twins):
        p.grad, twin.grad = torch.ones_like(p), torch.ones_like(p)
    optimizer.zero_grad(set_to_none=True)
    assert all(t.grad is None for t in (*params, *twins))
    before = [p.detach().clone() for p in params]
    assert optimizer.step().item() == 0.0 and all(torch.equal(p, q) for p, q in zip(params, before))


def test_every_parameter_needs_a_twin():
    with pytest.raises(ValueError):
        AlignedAdamW(parameters(), twins_of(parameters())[1:], lr=0.01)
    fails(lambda: AlignedAdamW(parameters(), twins_of(parameters()), lr=0.01, variant="other"), "'other'")


# ---- the released code's own numbers

@pytest.mark.parametrize("case", range(3))
def test_the_released_step_is_that_of_the_released_code(case):
    if not GOLDEN.is_file():
        pytest.skip("the released code's numbers are not here")
    from safetensors.torch import load_file
    golden = load_file(GOLDEN)
    names = sorted(name.removeprefix(f"case{case}.raw.") for name in golden if name.startswith(f"case{case}.raw."))
    raw, ref, aligned = ([golden[f"case{case}.{kind}.{name}"] for name in names] for kind in ("raw", "ref", "aligned"))
    least, most, epoch, ga_epoch, epochs = golden[f"case{case}.settings"].tolist()
    ratio = Ratio(most, "released", int(ga_epoch), least)
    params = [nn.Parameter(torch.zeros_like(x)) for x in raw]
    optimizer = AlignedAdamW(params, twins_of(params), lr=0.01, clip=math.inf, variant="released")
    optimizer.mu = lambda norm: ratio.mu(int(epoch), int(epochs), int(epochs), 1.0, norm)
    for (p, twin), g, r in zip(optimizer.pairs, raw, ref):
        p.grad, twin.grad = g.clone(), r.clone()
    optimizer.step()
    share = ratio.mu(int(epoch), int(epochs), int(epochs), 1.0, 1.0)
    assert share == pytest.approx([0.0, 0.1 * 4 / 9, 1.0][case])
    for p, g, r, expected in zip(params, raw, ref, aligned, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(
            interpolate(g, align(g, r, variant="released"), share), expected, rtol=1e-5, atol=1e-7
        )
