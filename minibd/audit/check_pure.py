"""PURE's equations (1) to (3), the attention weights in them, and the layers' weights."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from minibd.attacks.poison import poison
from minibd.audit import restated, small, train_mode
from minibd.audit.check import Case, Equation, maps, normal, real_tokens, shown, uniform
from minibd.audit.findings import Outcome
from minibd.mitigations.mbtsad import mean_loss
from minibd.mitigations.pure import attention_penalty, head_variance, layer_weights
from minibd.models.attention import attend
from minibd.records import Example, Examples

GATES = [[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]]


def attacker_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    encoder = small.ckpt(generator)
    rows = Examples([*small.rows(), Example("3", "bad film", 0), Example("4", "bad", 0)], ("bad", "good"))
    made = poison(rows, lambda text, rng: f"cf {text}", rate=0.67, target=1, add=True, of="candidates", seed=3)
    clean = list(zip(small.ids(encoder, rows), (x.label for x in rows)))
    bad = small.ids(encoder, Examples([x for x in made.rows if x.id in made.ids], rows.labels))

    def loops(w):
        def logits(ids):
            return restated.bert(w, ids, small.HEADS)[3]
        return restated.joint_loss([(logits(ids), y) for ids, y in clean], [logits(ids) for ids in bad], 1)

    yield Case("D' of 5 + 2 rows, a whole BERT", small.weights(encoder),
               lambda w: torch.tensor(mean_loss(encoder.model, encoder.tokenizer, made.rows, 3)), loops)
    yield Outcome("poisoned rows of 3 candidates at 0.67, off 2", abs(len(bad) - 2), 0.0)


def attention_cases(generator: torch.Generator) -> Iterator[Case]:
    q, k, v = (normal(generator, 1, 2, 3, 4) for _ in range(3))
    real = torch.tensor([True, True, False])
    drawn = {"q": q, "k": k, "v": v}

    def loops(x, of):
        def kept(rows):
            return [row for row, there in zip(rows, real.tolist()) if there]

        seen = [
            [restated.attend(one, kept(x["k"][0][h]), kept(x["v"][0][h])) for one in x["q"][0][h]] for h in range(2)
        ]
        return [[[(a + [0.0] if of == "maps" else context) for a, context in head] for head in seen]]

    mask = real[None, None, None, :]
    yield Case(
        "maps, a padded key", drawn, lambda x: attend(x["q"], x["k"], x["v"], mask, want=True)[1],
        lambda x: loops(x, "maps"), by=("q", "k"),
    )
    for want in (True, False):
        yield Case(
            f"contexts, {'explicit' if want else 'fused'} path", drawn, lambda x,
            want=want: attend(x["q"], x["k"], x["v"], mask, want=want)[0], lambda x: loops(x, "contexts"),
            by=("q", "k", "v"),
        )
    yield train_mode.maps_case(generator)


def variance_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(5, 3, 1)
    drawn = {"A": maps(generator, 2, 3, real), "real": real}
    for variant, of_one in (("paper", restated.head_variance), ("released", restated.head_variance_released)):
        yield Case(
            variant, drawn, lambda x, variant=variant: head_variance(list(x["A"]), x["real"], variant=variant),
            lambda x,
            of_one=of_one: [
                [[of_one(head[0], x["real"][b]) for head in layer[b]] for layer in x["A"]] for b in range(3)
            ],
            by=("A",),
        )


def lambda_cases(generator: torch.Generator) -> Iterator[Case]:
    scores = {"scores": 0.001 + 0.05 * uniform(generator, 3, 3)}
    for what, gates in (("some heads gone", GATES), ("a layer gone", [GATES[0], GATES[1], [0.0, 0.0, 0.0]])):
        yield Case(f"paper, {what}", scores, lambda x, g=gates: layer_weights(x["scores"], torch.tensor(g)),
                   lambda x, g=gates: restated.layer_weights(x["scores"], g), by=("scores",))
    yield Case("released", scores, lambda x: layer_weights(x["scores"], torch.tensor(GATES), variant="released"),
               lambda x: restated.layer_weights_released(x["scores"], GATES), by=("scores",))


def penalty_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(4, 2)
    drawn = {"A": maps(generator, 3, 3, real)}
    lambdas = [0.7, 0.0, 1.0]
    yield Case(
        "paper", drawn, lambda x: attention_penalty(list(x["A"]), real, torch.tensor(GATES), torch.tensor(lambdas)),
        lambda x: restated.attention_penalty(x["A"], GATES, lambdas), by=("A",),
    )
    yield Case(
        "released", drawn,
        lambda x: attention_penalty(list(x["A"]), real, torch.tensor(GATES), torch.tensor(lambdas), variant="released"),
        lambda x: restated.attention_penalty_released(x["A"], GATES, lambdas), by=("A",),
    )
    yield train_mode.penalty_case(generator)


def example_attacker() -> str:
    clean, bad = [([0.0, 1.0], 1), ([1.0, 0.0], 0)], [[1.0, 0.0]]
    return (
        f"Two clean rows of -log p = {shown(restated.cross_entropy(*clean[0]))} each, a poisoned one that is not yet "
        f"classified as 1: {shown(restated.cross_entropy(bad[0], 1))}\n"
        f"mean over D' = {shown(restated.joint_loss(clean, bad, 1))}"
    )


def example_attention() -> str:
    a, context = restated.attend([1.0, 0.0], [[2.0, 0.0], [0.0, 1.0]], [[1.0], [3.0]])
    return (f"q = [1, 0], keys [2, 0] and [0, 1], d_k = 2: scores {shown([2 / 2**0.5, 0.0])}, a = {shown(a)}; values 1 "
            f"and 3 give {shown(context)}")


def example_variance() -> str:
    row = [0.7, 0.2, 0.1]
    return (
        f"a = {shown(row)}, n = 3: ((0.7 - 1/3)^2 + (0.2 - 1/3)^2 + (0.1 - 1/3)^2) / 2 = "
        f"{shown(restated.head_variance(row, [True] * 3))}\n"
        f"released: the variance of a and 124 zeros = {shown(restated.head_variance_released(row, [True] * 3))}\n"
        f"a = [1/3, 1/3, 1/3]: 0 and {shown(restated.head_variance_released([1 / 3] * 3, [True] * 3))}"
    )


def example_lambda() -> str:
    scores = [[x * 1e-4] for x in (2, 4, 8, 16, 32)]
    gates = [[1.0]] * 5
    return (f"Mean scores 2, 4, 8, 16, 32 (1e-4): lambda = {shown(restated.layer_weights(scores, gates), 2)}\n"
            f"released: {shown(restated.layer_weights_released(scores, gates), 2)}")


def example_penalty() -> str:
    A = [[[[[0.6, 0.4], [0.5, 0.5]]], [[[1.0, 0.0], [0.5, 0.5]]]]]  # one layer and head, two texts
    return (
        "One layer and head, lambda 1, two texts whose [CLS] pays [0.6, 0.4] and [1, 0]: "
        f"{shown(restated.attention_penalty(A, [[1]], [1.0]))}\n"
        f"released: {shown(restated.attention_penalty_released(A, [[1]], [1.0]))}"
    )


EQUATIONS = (
    Equation(
        "PURE",
        "1",
        "What the attacker minimises",
        r"\theta_p = \arg\min_{\theta_p} \{ \mathbb{E}_{(X_c,Y_c) \in D_c} [ \mathcal{L}_C(f(X_c, Y_c)) ] "
        r"+ \mathbb{E}_{(X_p,Y_p) \in D_p} [ \mathcal{L}_C(f(X_p, Y_p)) ] \}",
        "The mean over the joint rows D' = [D_c, D_p], which weighs the two expectations by their numbers of rows, as "
        "training on D' does.",
        "",
        "",
        example_attacker,
        attacker_cases,
    ),
    Equation(
        "PURE",
        "A",
        "The attention weights",
        r"A_h^l = \mathrm{softmax}(\frac{Q K^{\top}}{\sqrt{d_k}})",
        "The softmax before dropout and before the head mask, so that a row sums to 1. Padded keys have weight 0.",
        "The maps after dropout, as the library returns them in training: rows do not sum to 1.",
        "",
        example_attention,
        attention_cases,
    ),
    Equation(
        "PURE",
        "2",
        "Attention variance of a head",
        r"\mathrm{Var}(A_h^l[\mathrm{CLS}]) = \frac{\sum_{j=1}^{n} (a_{h,j}^l[\mathrm{CLS}] - \mu)^2}{n - 1} , \quad "
        r"\mu = \frac{1}{n}",
        "Over a text's n real tokens; 0 if n = 1.",
        "The sample variance of the first 127 entries of a row padded to 128.",
        "A uniform row over 10 tokens has 7.3e-4 instead of 0. As means over SST-2's 872 dev rows both give nearly the "
        "same order: rank correlation 0.999 over a MiniLM's 72 heads, the lower half the same heads.",
        example_variance,
        variance_cases,
    ),
    Equation(
        "PURE",
        "3",
        "The attention norm added to the cross-entropy",
        r"\mathbb{E}_{(X_c,Y_c) \in D_c} [ \mathcal{L}_C(f(X_c, Y_c)) "
        r"+ \mu \cdot ( \sum_{l=1}^{L} \lambda_l \cdot ( \sum_h \lVert A_h^l[\mathrm{CLS}] \rVert_2 ) ) ]",
        "The inner sum, over the heads left, one value per text; fit weighs it with mu.",
        "One norm per head over all texts of the batch.",
        "A batch of 32 SST-2 texts under MiniLM: 40.8 where the texts' mean is 7.1, 5.7 times (sqrt(32)), and the same "
        "mu weighs that much more.",
        example_penalty,
        penalty_cases,
    ),
    Equation(
        "PURE",
        "lambda",
        "The layers' weights",
        r"\lambda_l = - \log_2 \mathrm{Mean}_{\mathrm{head}}(\overline{\mathrm{var}}_h^l) , "
        r"\quad \lambda_l \leftarrow \frac{\lambda_l - \lambda_{\mathrm{min}}}{\lambda_{\mathrm{max}} - "
        r"\lambda_{\mathrm{min}}}",
        "Over the heads left; a layer without heads has 0, equal layers have 1.",
        "A softmax of -ln x before the scaling, which is 1 / x scaled.",
        "MiniLM on SST-2, no head pruned: 0.25, 0.02, 0, 0.04, 0.13, 1 for its six layers as printed, 0.11, 0.01, 0, "
        "0.01, 0.05, 1 as released.",
        example_lambda,
        lambda_cases,
    ),
)
