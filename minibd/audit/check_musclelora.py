"""MuScleLoRA's equations (1) to (13), the share of the raw gradient, the fused step, and the layers of its
baselines."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import cos, exp, pi, sin

import torch
from torch import Tensor, nn

from minibd.align import AlignedAdamW, Ratio, align, interpolate, twins_of
from minibd.analysis.fourier import embed_rows, frequency_ratios, low_pass, outputs, relative_errors, truth
from minibd.audit import restated, small
from minibd.audit.check import Case, Equation, Inputs, normal, shown, uniform
from minibd.models.adapter import Adapter
from minibd.models.attention import attend
from minibd.models.lora import LowRank, merge, multi_scale
from minibd.models.prefix import Prefix

BANDS, WIDTH, ALPHA = (1.0, 4.0, 2.5), 2, 3.0


def layer(x: Inputs, s: Tensor | None, scale: float) -> LowRank:
    """A low-rank layer for the drawn W, b, L and R."""
    return LowRank(
        nn.utils.skip_init(nn.Linear, x["W"].shape[1], x["W"].shape[0]), len(x["L"]), scale, torch.Generator(), s=s
    )


def asked(x: Inputs, s: Tensor | None, scale: float) -> Tensor:
    """y of a low-rank layer that holds the drawn W, b, L and R, differentiable by them."""
    return torch.func.functional_call(
        layer(x, s, scale), {"weight": x["W"], "bias": x["b"], "L": x["L"], "R": x["R"]}, (x["x"],)
    )


def drawn_layer(generator: torch.Generator, rows: int) -> dict[str, Tensor]:
    return {
        "x": normal(generator, 3, 4), "W": normal(generator, 5, 4), "b": normal(generator, 5),
        "L": normal(generator, rows, 4), "R": normal(generator, 5, rows),
    }


def layer_cases(generator: torch.Generator) -> Iterator[Case]:
    s = torch.tensor(BANDS).repeat_interleave(WIDTH)
    drawn, lora = drawn_layer(generator, len(s)), drawn_layer(generator, 2)

    def loops(x, scale, s):
        return [restated.multi_scale(one, x["W"], x["b"], x["L"], x["R"], scale, s) for one in x["x"]]

    yield Case("scalings 1, 4, 2.5, two rows each", drawn, lambda x: asked(x, s, ALPHA / WIDTH),
               lambda x: loops(x, ALPHA / WIDTH, s.tolist()), by=("x", "L", "R"))
    yield Case(
        "LoRA, s = 1", lora, lambda x: asked(x, None, 4.0), lambda x: loops(x, 4.0, [1.0, 1.0]), by=("x", "L", "R")
    )

    def merged(x: Inputs) -> Tensor:
        model = nn.Sequential(layer(x, s, ALPHA / WIDTH))
        model.load_state_dict({"0.weight": x["W"], "0.bias": x["b"], "0.L": x["L"], "0.R": x["R"], "0.s": s})
        merge(model)
        return model(x["x"])
    yield Case("merged into W", drawn, merged, lambda x: loops(x, ALPHA / WIDTH, s.tolist()))


def parts_cases(generator: torch.Generator) -> Iterator[Case]:
    """The layer as `multi_scale` puts it into a model."""
    encoder = small.ckpt(generator)
    multi_scale(encoder.model, bands=BANDS, bandwidth=WIDTH, alpha=ALPHA, generator=generator)
    pooler = encoder.model.pooler
    drawn = {
        "x": normal(generator, 3, 6), "W": pooler.weight.detach(), "b": pooler.bias.detach(), "L": pooler.L.detach(),
        "R": pooler.R.detach(),
    }
    yield Case(
        "the pooler as a sum of rings", drawn,
        lambda x: torch.func.functional_call(pooler, {"L": x["L"], "R": x["R"]}, (x["x"],)),
        lambda x: [
            restated.scaled_parts(one, x["W"], x["b"], x["L"], x["R"], ALPHA / WIDTH, BANDS, WIDTH) for one in x["x"]
        ],
        by=("x", "L", "R"),
    )


def spectrum_cases(generator: torch.Generator) -> Iterator[Case]:
    """A bump exp(-y^2) of the layer's one output y along a line: its spectrum at k, with the scaling s, is that without
    it at k / s, over s."""
    s, grid = 2.0, [i / 64 for i in range(-256, 257)]
    drawn = {"L": torch.tensor([[1.1]]), "R": torch.tensor([[0.9]]), "k": torch.tensor([0.3, 0.7, 1.2])}

    def ours(x: Inputs) -> Tensor:
        held = {"x": torch.tensor(grid)[:, None], "W": torch.zeros(1, 1), "b": torch.zeros(1), "L": x["L"], "R": x["R"]}
        y = asked(held, torch.tensor([s]), 1.0)[:, 0]
        values = torch.exp(-y.double().square()).tolist()
        return torch.tensor([restated.spectrum_at(values, grid, k) for k in x["k"].tolist()], dtype=torch.float64)

    def loops(x):
        c = x["L"][0][0] * x["R"][0][0]
        values = [exp(-(c * t) ** 2) for t in grid]
        return [restated.spectrum_at(values, grid, k / s) / s for k in x["k"]]
    yield Case("the spectrum of a scaled bump, s = 2", drawn, ours, loops, tolerance=1e-5)


def align_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"g": normal(generator, 7), "r": normal(generator, 7)}
    yield Case("paper", drawn, lambda x: align(x["g"], x["r"]), lambda x: restated.align(x["g"], x["r"]), by=("g", "r"))
    yield Case("paper, opposite gradients", {**drawn, "r": -3 * drawn["g"]}, lambda x: align(x["g"], x["r"]),
               lambda x: restated.align(x["g"], x["r"]))
    nothing = {**drawn, "r": torch.zeros(7)}
    yield Case("paper, r = 0", nothing, lambda x: align(x["g"], x["r"]), lambda x: restated.align(x["g"], x["r"]))
    yield Case("released, r = 0", nothing, lambda x: align(x["g"], x["r"], variant="released"), lambda x: x["g"])


def mix_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"g": normal(generator, 7), "aligned": normal(generator, 7)}
    yield Case(
        "mu = 0.1", drawn, lambda x: interpolate(x["g"], x["aligned"], 0.1),
        lambda x: restated.interpolate(x["g"], x["aligned"], 0.1), by=("g", "aligned"),
    )


def ratio_cases(generator: torch.Generator) -> Iterator[Case]:
    steps = torch.arange(20)
    yield Case(
        "paper, 20 steps", {"step": steps},
        lambda x: torch.tensor([Ratio(0.1).mu(int(t), 20, 10, 1.0, 1.0) for t in x["step"]]),
        lambda x: [0.1 * t / 19 for t in x["step"]],
    )
    for loss, size in ((0.5, 1.0), (0.3, 1.0), (0.5, 1e-7)):
        yield Case(
            f"released, clean loss {loss}, norm {size:g}", {"step": steps}, lambda x,
            at=(loss, size): torch.tensor(
                [Ratio(0.1, "released").mu(int(t), 20, 10, *at) for t in x["step"]]
            ),
            lambda x, at=(loss, size): [restated.mu_released(t, 20, 10, *at, 0.1, 1, 0.4, 5e-7) for t in x["step"]],
        )


def step_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {name: normal(generator, 3, 6) for name in ("p", "g", "r")}  # three tensors of 6

    def ours(x: Inputs, clip: float) -> Tensor:
        params = [nn.Parameter(p.clone()[None]) for p in x["p"]]  # matrices, as a LoRA's
        twins = twins_of(params)
        optimizer = AlignedAdamW(params, twins, lr=0.01, clip=clip)
        optimizer.mu = 0.1
        for _ in range(3):
            for p, twin, g, r in zip(params, twins, x["g"], x["r"]):
                p.grad, twin.grad = g.clone()[None], r.clone()[None]
            optimizer.step()
        return torch.cat([p.detach() for p in params])
    for clip in (1.0, 100.0):
        yield Case(
            f"three steps, clipped at {clip:g}", drawn, partial(ours, clip=clip), lambda x,
            clip=clip: restated.aligned_step([list(p) for p in x["p"]], x["g"], x["r"], 0.1, 0.01, clip, 3),
        )


# ---- the frequency analysis

def drawn_mapping(generator: torch.Generator) -> dict[str, Tensor]:
    return {"x": normal(generator, 6, 5), "p": uniform(generator, 6, 2).softmax(-1),
            "y": nn.functional.one_hot(torch.tensor([0, 1, 1, 0, 1, 0])).float()}


def filter_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = drawn_mapping(generator)
    for variant, squared in (("paper", True), ("released", False)):
        yield Case(
            f"{variant}, sigma 2 and 4", drawn, lambda x,
            v=variant: low_pass(x["x"], x["p"], (2.0, 4.0), variant=v, block=4), lambda x,
            q=squared: [restated.low_pass(x["x"], x["p"], sigma, q) for sigma in (2.0, 4.0)],
        )


def truth_filter_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = drawn_mapping(generator)
    for variant, squared in (("paper", True), ("released", False)):
        yield Case(f"{variant}, sigma 4", drawn, lambda x, v=variant: low_pass(x["x"], x["y"], (4.0,), variant=v)[0],
                   lambda x, q=squared: restated.low_pass(x["x"], x["y"], 4.0, q))


def circle_cases(generator: torch.Generator) -> Iterator[Case]:
    n = 12
    circle = torch.tensor([[3 * cos(2 * pi * i / n), 3 * sin(2 * pi * i / n)] for i in range(n)])
    drawn = {"x": circle, "p": normal(generator, n, 2)}
    for variant, squared in (("paper", True), ("released", False)):
        yield Case(
            f"{variant}, 12 rows on a circle", drawn, lambda x,
            v=variant: low_pass(x["x"], x["p"], (1.5,), variant=v)[0], lambda x,
            q=squared: restated.low_in_frequency(x["x"], x["p"], 1.5, q),
        )


def ratios_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = drawn_mapping(generator)
    yield Case(
        "released", drawn,
        lambda x: torch.stack(frequency_ratios(x["p"].double(), low_pass(x["x"], x["p"], (4.0,))[0])),
        lambda x: restated.frequency_ratios(x["p"], restated.low_pass(x["x"], x["p"], 4.0, False)),
    )
    yield Case(
        "of any two parts", {"p": drawn["p"], "low": normal(generator, 6, 2)},
        lambda x: torch.stack(frequency_ratios(x["p"], x["low"])),
        lambda x: restated.frequency_ratios(x["p"], x["low"]), by=("p", "low"),
    )


def errors_cases(generator: torch.Generator) -> Iterator[Case]:
    def ours(x: Inputs) -> Tensor:
        low, low_y = (low_pass(x["x"], x[name], (4.0,))[0] for name in ("p", "y"))
        return torch.stack(relative_errors(x["p"].double(), low, x["y"].double(), low_y))
    drawn = drawn_mapping(generator)
    yield Case("released", drawn, ours,
               lambda x: restated.relative_errors(x["p"], restated.low_pass(x["x"], x["p"], 4.0, False), x["y"],
                                                  restated.low_pass(x["x"], x["y"], 4.0, False)))
    parts = {"p": drawn["p"], "low": normal(generator, 6, 2), "y": drawn["y"], "low_y": normal(generator, 6, 2)}
    yield Case("of any parts", parts, lambda x: torch.stack(relative_errors(x["p"], x["low"], x["y"], x["low_y"])),
               lambda x: restated.relative_errors(x["p"], x["low"], x["y"], x["low_y"]), by=("p", "low"))


def mapping_cases(generator: torch.Generator) -> Iterator[Case]:
    encoder, rows = small.ckpt(generator), small.rows()
    tokens = small.ids(encoder, rows)
    longest = max(map(len, tokens))

    def flattened(w):
        return [sum(restated.bert(w, ids, small.HEADS)[0][0], []) + [0.0] * 6 * (longest - len(ids)) for ids in tokens]

    yield Case(
        "x_i, flattened", small.weights(encoder), lambda w: embed_rows(encoder.model, encoder.tokenizer, rows),
        flattened,
    )
    encoded = encoder.tokenizer.encode(rows)
    yield Case("P, probabilities", small.weights(encoder), lambda w: outputs(encoder.model, encoder.tokenizer, encoded),
               lambda w: [restated.softmax(restated.bert(w, ids, small.HEADS)[3]) for ids in tokens])
    yield Case(
        "P, logits", small.weights(encoder), lambda w: outputs(encoder.model, encoder.tokenizer, encoded, "logits"),
        lambda w: [restated.bert(w, ids, small.HEADS)[3] for ids in tokens],
    )


def truth_cases(generator: torch.Generator) -> Iterator[Case]:
    rows = small.rows()
    yield Case("Y", {"label": torch.tensor([x.label for x in rows])}, lambda x: truth(rows, 3),
               lambda x: [[1.0 if c == y else 0.0 for c in range(3)] for y in x["label"]])


# ---- the baselines' layers

def adapter_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {
        "h": normal(generator, 3, 4), "down": normal(generator, 2, 4), "down_b": normal(generator, 2),
        "up": normal(generator, 4, 2), "up_b": normal(generator, 4),
    }

    def ours(x: Inputs) -> Tensor:
        base = nn.utils.skip_init(nn.Linear, 4, 4)
        base.weight.data, base.bias.data = torch.eye(4), torch.zeros(4)
        made = Adapter(base, 2, torch.Generator())
        weights = {"down.weight": x["down"], "down.bias": x["down_b"], "up.weight": x["up"], "up.bias": x["up_b"]}
        return torch.func.functional_call(made, weights, (x["h"],))

    yield Case(
        "bottleneck 2", drawn, ours,
        lambda x: [restated.adapter(h, x["down"], x["down_b"], x["up"], x["up_b"]) for h in x["h"]],
        by=("h", "down", "up", "up_b"),
    )


def prefix_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {
        "q": normal(generator, 1, 1, 2, 4), "k": normal(generator, 1, 1, 2, 4), "v": normal(generator, 1, 1, 2, 4),
        "P": normal(generator, 3, 8),
    }

    def ours(x: Inputs) -> Tensor:
        k, v = torch.func.functional_call(Prefix(nn.Parameter(torch.empty(3, 8))), {"rows": x["P"]}, (x["k"], x["v"]))
        return attend(x["q"], k, v, None)[0]

    def loops(x):
        K, V = [row[:4] for row in x["P"]] + x["k"][0][0], [row[4:] for row in x["P"]] + x["v"][0][0]
        return [[[restated.attend(q, K, V)[1] for q in x["q"][0][0]]]]
    yield Case("3 positions, one head", drawn, ours, loops, by=("q", "k", "v", "P"))


# ---- the examples

def example_layer() -> str:
    x, W, b, L, R = [1.0, 2.0], [[1.0, 0.0]], [0.5], [[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.5]]
    return (f"x = [1, 2], W x + b = 1.5, L x = [3, 2], s = [1, 4]: (L x) * s = [3, 8]; alpha / r = 2, R = [1, 0.5]\n"
            f"y = 1.5 + 2 (3 + 4) = {shown(restated.multi_scale(x, W, b, L, R, 2.0, [1.0, 4.0]))}, without scalings "
            f"{shown(restated.multi_scale(x, W, b, L, R, 2.0, [1.0, 1.0]))}")


def example_parts() -> str:
    parts = restated.scaled_parts(
        [1.0, 2.0], [[1.0, 0.0]], [0.5], [[1.0, 1.0], [0.0, 1.0]], [[1.0, 0.5]], 2.0, (1.0, 4.0), 1
    )
    return ("x = [1, 2], two rings: the first gets x, the second 4 x = [4, 8]; 1.5 + 2 * 1 * 3 + 2 * 0.5 * 8 = "
            f"{shown(parts)}, the layer of (6)")


def example_spectrum() -> str:
    grid = [i / 64 for i in range(-256, 257)]
    plain, scaled = ([exp(-(s * t) ** 2) for t in grid] for s in (1.0, 2.0))
    return (
        f"f(t) = exp(-t^2): at frequency 0.6 its spectrum is {shown(restated.spectrum_at(plain, grid, 0.6))}\n"
        f"f(2 t): at 1.2 it is {shown(restated.spectrum_at(scaled, grid, 1.2))}, half of that: what scaled input shows "
        "at 1.2, f has at 0.6"
    )


def example_align() -> str:
    return (f"g = [1, 2], r = [2, 0]: <g, r> = 2, ||r||^2 = 4, g^ = {shown(restated.align([1.0, 2.0], [2.0, 0.0]))}\n"
            f"g = [-1, 2]: the absolute value reverses it, g^ = {shown(restated.align([-1.0, 2.0], [2.0, 0.0]))}")


def example_mix() -> str:
    return f"g = [1, 2], g^ = [1, 0], mu = 0.1: {shown(restated.interpolate([1.0, 2.0], [1.0, 0.0], 0.1))}"


def example_ratio() -> str:
    released = [restated.mu_released(step, 10, 10, 0.3, 1.0, 0.1, 1, 0.4, 5e-7) for step in range(10)]
    return (f"10 epochs of one step, clean loss 0.3. paper: {shown([0.1 * t / 9 for t in range(10)], 2)}\n"
            f"released: {shown(released, 2)}")


def example_step() -> str:
    p = restated.aligned_step([[1.0]], [[2.0]], [[-0.5]], 0.0, 0.1, 1.0, 1)
    return (
        f"p = 1, g = 2, r = -0.5: g^ = {shown(restated.align([2.0], [-0.5]))}, clipped to -1; AdamW's first step is lr "
        f"along its sign: p = {shown(p[0])}"
    )


def example_filter() -> str:
    x, p = [[0.0], [1.0]], [[1.0], [0.0]]
    return (
        "x = 0 and 1, P = 1 and 0, sigma 1: G_12 = exp(-1/2) = 0.6065\nlow(P) = "
        f"{shown(restated.low_pass(x, p, 1.0, True))}; with x = 0 and 3, "
        f"paper {shown(restated.low_pass([[0.0], [3.0]], p, 1.0, True))}, released "
        f"{shown(restated.low_pass([[0.0], [3.0]], p, 1.0, False))}"
    )


def example_circle() -> str:
    n = 4
    x = [[cos(2 * pi * i / n), sin(2 * pi * i / n)] for i in range(n)]
    even, odd = [[1.0]] * n, [[1.0], [-1.0], [1.0], [-1.0]]
    return (
        "Four rows on a circle, sigma 1. P the same everywhere, frequency 0: low(P) = "
        f"{shown(restated.low_in_frequency(x, even, 1.0, True))}\n"
        "P changing its sign at each row, the highest frequency: low(P) = "
        f"{shown(restated.low_in_frequency(x, odd, 1.0, True))}"
    )


def example_ratios() -> str:
    p = [[1.0, 0.0], [0.0, 1.0]]
    low = [[0.75, 0.25], [0.25, 0.75]]
    return (f"P = {shown(p)}, low(P) = {shown(low)}: low and high ratio = "
            f"{shown(restated.frequency_ratios(p, low))}, which need not add to 1")


def example_errors() -> str:
    y, low_y = [[1.0, 0.0], [0.0, 1.0]], [[0.75, 0.25], [0.25, 0.75]]
    p, low = [[0.9, 0.1], [0.4, 0.6]], [[0.775, 0.225], [0.525, 0.475]]
    return (f"Y = {shown(y)}, low(Y) = {shown(low_y)}\nP = {shown(p)}, low(P) = {shown(low)}: "
            f"e_low, e_high = {shown(restated.relative_errors(p, low, y, low_y))}")


def example_mapping() -> str:
    return (
        "A text of two tokens, embedded as [1, 2] and [3, 4], with one of three: x_i = [1, 2, 3, 4, 0, 0]; z = [0, 1]: "
        f"P_i = {shown(restated.softmax([0.0, 1.0]))}"
    )


def example_truth() -> str:
    return "Labels 1 and 0 of 2 classes: Y = [[0, 1], [1, 0]]"


def example_adapter() -> str:
    return (f"h = [1, 0], W_down = [1, 1], W_up = [0.5, 0.5]: GELU(1) = 0.8412, "
            f"y = {shown(restated.adapter([1.0, 0.0], [[1.0, 1.0]], [0.0], [[0.5], [0.5]], [0.0, 0.0]))}")


def example_prefix() -> str:
    a, context = restated.attend([1.0], [[1.0], [0.0]], [[1.0], [3.0]])
    return f"q = 1, P_K = 1, P_V = 1, the text's own key 0 and value 3: a = {shown(a)}, context {shown(context)}"


EQUATIONS = (
    Equation(
        "MuScleLoRA",
        "1",
        "Low- and high-frequency ratio",
        r"R_{\mathrm{low}} = \frac{\sum_i \lVert P_i^{\mathrm{low}} \rVert_2}{\sum_i \lVert P_i \rVert_2} , "
        r"\quad R_{\mathrm{high}} = \frac{\sum_i \lVert P_i^{\mathrm{high}} \rVert_2}{\sum_i \lVert P_i \rVert_2}",
        "The paper's LFR and HFR, ratios of means of row norms; its equation is not legible in the published text, "
        "this is the released code's form.",
        "",
        "",
        example_ratios,
        ratios_cases,
    ),
    Equation(
        "MuScleLoRA",
        "2",
        "Relative errors",
        r"e_{\mathrm{low}} = \frac{\sum_i \lVert P_i^{\mathrm{low}} - Y_i^{\mathrm{low}} \rVert_2}{\sum_i \lVert "
        r"Y_i^{\mathrm{low}} \rVert_2} , \quad"
        r" e_{\mathrm{high}} = \frac{\sum_i \lVert P_i^{\mathrm{high}} - Y_i^{\mathrm{high}} \rVert_2}{\sum_i \lVert "
        r"Y_i^{\mathrm{high}} \rVert_2}",
        "As (1). Undefined, and reported so, if all labels are equal: then high(Y) = 0.",
        "The same; there it divides by rounding errors.",
        "All triggered rows have one label: the released e_high of the backdoor mapping is 2e5.",
        example_errors,
        errors_cases,
    ),
    Equation(
        "MuScleLoRA",
        "3",
        "A mapping as a sum over rings of its spectrum",
        r"\hat{f}(k) = \sum_i \chi_{A_i}(k) \hat{f}(k) = \sum_i \hat{f}_i(k)",
        "Realised by the layer as a sum of parts, each with its own rows of L and R.",
        "",
        "",
        example_parts,
        parts_cases,
    ),
    Equation(
        "MuScleLoRA",
        "4",
        "Radial scaling, in frequency",
        r"\hat{f}_i^{(\mathrm{scale})}(k) = \hat{f}_i(s_i k)",
        "A part evaluated at s x has at k / s the spectrum that f has at k: high frequencies become lower.",
        "",
        "",
        example_spectrum,
        spectrum_cases,
    ),
    Equation(
        "MuScleLoRA",
        "5",
        "Radial scaling, in space",
        r"f_i^{(\mathrm{scale})}(x) = s_i^{-d} f_i(x / s_i) , \quad f(x) = \sum_i s_i^d f_i^{(\mathrm{scale})}(s_i x)",
        "Each ring's part is evaluated at s x; its factor s^d is left to R, which is trained.",
        "",
        "",
        example_parts,
        parts_cases,
    ),
    Equation(
        "MuScleLoRA",
        "6",
        "The multi-scale layer",
        r"y = W x + b + \frac{\alpha}{r} R ((L x) \odot s)",
        's repeats each scaling r times, r the bandwidth. L and R start at random (init="kaiming"), as released; "like '
        'vanilla LoRA", as the paper has it, would be R = 0 (init="zero").',
        "The same layer.",
        "A MiniLM's pooler, bands 1 to 28: ||dW|| is 629 against ||W|| = 3.5 before any training, and 83 % of the "
        "pooled numbers are beyond 0.99; with R = 0 none are.",
        example_layer,
        layer_cases,
    ),
    Equation(
        "MuScleLoRA",
        "7",
        "Gradient alignment",
        r"\hat{g} = \frac{\lvert \langle g, r \rangle \rvert}{\lVert r \rVert_2^2} r",
        "For each tensor by itself; 0 where r is 0.",
        "The raw g where r is 0.",
        "None at a LoRA's first step, where g and r of L are both 0.",
        example_align,
        align_cases,
    ),
    Equation(
        "MuScleLoRA",
        "8",
        "A share of the raw gradient",
        r"g \leftarrow (1 - \mu) \hat{g} + \mu g",
        "mu rises from 0 to its maximum, see mu.",
        "",
        "",
        example_mix,
        mix_cases,
    ),
    Equation(
        "MuScleLoRA",
        "9",
        "The mapping that the model fits",
        r"P = F(X) , \quad X = [x_1, \dots, x_N]",
        "x_i is the flattened output of the embedding layer, zeros after a shorter text; P are probabilities, or "
        "logits as printed.",
        "Probabilities; padding as in the batch, dropout on.",
        "",
        example_mapping,
        mapping_cases,
    ),
    Equation(
        "MuScleLoRA",
        "10",
        "The true mapping",
        r"Y = F^{*}(X)",
        "One-hot labels of the same rows.",
        "",
        "",
        example_truth,
        truth_cases,
    ),
    Equation(
        "MuScleLoRA",
        "11",
        "Two parts of the spectrum",
        r"\hat{P}^{\mathrm{low}} = \chi_{\lvert k \rvert \le k_0} \hat{P} , "
        r"\quad \hat{P}^{\mathrm{high}} = (1 - \chi_{\lvert k \rvert \le k_0}) \hat{P}",
        "The indicator is replaced by the filter of (12). Where rows lie evenly on a circle, that filter multiplies "
        "each frequency by a number that falls with it, which the check does by a plain Fourier transform.",
        "",
        "",
        example_circle,
        circle_cases,
    ),
    Equation(
        "MuScleLoRA",
        "12",
        "Low-pass of the outputs by neighbours",
        r"P_i^{\mathrm{low}} = \frac{1}{C_i} \sum_j G_{ij} P_j , \quad G_{ij} = \exp(- \frac{\lVert x_i - x_j "
        r"\rVert_2^2}{2 \sigma}) , "
        r"\quad P^{\mathrm{high}} = P - P^{\mathrm{low}}",
        'variant="paper": the Gaussian as printed.',
        "The distance is not squared: G_ij = exp(-||x_i - x_j|| / (2 sigma)).",
        "SST-2's 872 dev rows under MiniLM, sigma 4: as released a text's own weight in its mean is 0.66 and the "
        "labels' high ratio 0.24; as printed the "
        "weight is 1 up to 2e-15 and the high ratio 5e-18, so that the filter is the identity.",
        example_filter,
        filter_cases,
    ),
    Equation(
        "MuScleLoRA",
        "13",
        "Low-pass of the labels",
        r"Y_i^{\mathrm{low}} = \frac{1}{C_i} \sum_j G_{ij} Y_j , \quad Y^{\mathrm{high}} = Y - Y^{\mathrm{low}}",
        "As (12).",
        "As (12).",
        "",
        example_filter,
        truth_filter_cases,
    ),
    Equation(
        "MuScleLoRA",
        "mu",
        "The share at each step",
        r"\mu_t = \mu_{\mathrm{max}} \frac{t}{T - 1}",
        "From 0 at the first step linearly to its maximum at the last.",
        "0 while the clean loss is above 0.4; then, from the second epoch on, a staircase that never reaches the "
        "maximum; in the first epoch 1.",
        "Of 10 epochs the last has 0.0889 instead of 0.1, and while the clean loss is high mu is 0.",
        example_ratio,
        ratio_cases,
    ),
    Equation(
        "MuScleLoRA",
        "step",
        "(7), (8), clipping and AdamW at once",
        r"\theta \leftarrow \mathrm{AdamW}(\theta, \mathrm{clip}((1 - \mu) \hat{g} + \mu g))",
        "One norm over all tensors for the clipping; the released settings have no weight decay.",
        "",
        "",
        example_step,
        step_cases,
    ),
    Equation(
        "Adapter",
        "y",
        "The baseline Adapter",
        r"y = h + W_{\mathrm{up}} \mathrm{act}(W_{\mathrm{down}} h + b_{\mathrm{down}}) + b_{\mathrm{up}}",
        "act is GELU in its tanh form; before the residual.",
        "After the residual and the LayerNorm.",
        "",
        example_adapter,
        adapter_cases,
    ),
    Equation(
        "Prefix",
        "P",
        "The baseline Prefix",
        r"\mathrm{softmax}(\frac{q [P_K ; K]^{\top}}{\sqrt{d_k}}) [P_V ; V]",
        "Learned keys and values in front of every text's own.",
        "",
        "",
        example_prefix,
        prefix_cases,
    ),
)
