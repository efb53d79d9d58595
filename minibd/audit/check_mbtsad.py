"""MBTSAD's equations (1) to (9), and the number of words that are split."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from minibd.audit import restated, small, train_mode
from minibd.audit.check import Case, Equation, maps, normal, real_tokens, shown
from minibd.audit.findings import Outcome
from minibd.augment.split import budget
from minibd.mitigations.mbtsad import (
    MBTSAD,
    AugmentResources,
    attention_loss,
    attention_map,
    distill_loss,
    distill_terms,
    each_augmented,
    hidden_loss,
    mean_loss,
    perturbation,
)
from minibd.records import Batch, Output

LENGTHS = (4, 2)  # tokens of the two drawn texts: the second has two padded positions


def attention_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(*LENGTHS)
    drawn = {"student": maps(generator, 2, 3, real), "teacher": maps(generator, 2, 3, real), "real": real}
    for p in (2.0, 1.0, 3.0):  # at p = 1 there is no gradient where a map is 0
        yield Case(
            f"paper, p = {p:g}", drawn, lambda x,
            p=p: attention_loss(list(x["student"]), list(x["teacher"]), x["real"], p), lambda x,
            p=p: restated.attention_loss(x["student"], x["teacher"], x["real"], p), by=("student", "teacher") * (p > 1),
        )
    yield Case(
        "released", drawn, lambda x: attention_loss(list(x["student"]), list(x["teacher"]), x["real"], 2.0, "released"),
        lambda x: restated.attention_loss_released(x["student"], x["teacher"], x["real"], 2.0),
        by=("student", "teacher"),
    )


def map_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(*LENGTHS)
    drawn = {"A": maps(generator, 1, 3, real)[0], "real": real}
    for p in (2.0, 1.0):
        yield Case(
            f"paper, p = {p:g}", drawn, lambda x, p=p: attention_map(x["A"], x["real"], p), lambda x,
            p=p: [restated.attention_map(A, there, p) for A, there in zip(x["A"], x["real"])], by=("A",) * (p > 1),
        )


def hidden_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(*LENGTHS)
    drawn = {"student": normal(generator, 3, 2, 4, 5), "teacher": normal(generator, 3, 2, 4, 5), "real": real}
    yield Case("paper", drawn, lambda x: hidden_loss(list(x["student"]), list(x["teacher"]), x["real"]),
               lambda x: restated.hidden_loss(x["student"], x["teacher"], x["real"]), by=("student", "teacher"))


def distill_cases(generator: torch.Generator) -> Iterator[Case]:
    real = real_tokens(*LENGTHS)
    drawn = {
        "s_attn": maps(generator, 2, 3, real), "t_attn": maps(generator, 2, 3, real),
        "s_hidden": normal(generator, 3, 2, 4, 5), "t_hidden": normal(generator, 3, 2, 4, 5),
        "logits": normal(generator, 2, 3), "t_logits": normal(generator, 2, 3), "labels": torch.tensor([2, 0]),
        "real": real,
    }

    def ours(x, settings):
        batch = Batch(x["real"].long(), x["real"], x["real"].long(), x["labels"])
        return distill_loss(Output(x["logits"], None, tuple(x["s_hidden"]), tuple(x["s_attn"])),
                            Output(x["t_logits"], None, tuple(x["t_hidden"]), tuple(x["t_attn"])), batch, settings)

    def loops(x, alpha, beta, gamma):
        att = restated.attention_loss(x["s_attn"], x["t_attn"], x["real"], 2.0)
        hid = restated.hidden_loss(x["s_hidden"], x["t_hidden"], x["real"])
        cls = [restated.cross_entropy(logits, y) for logits, y in zip(x["logits"], x["labels"])]
        return [alpha * a + beta * h + gamma * c for a, h, c in zip(att, hid, cls)]

    settings = MBTSAD(alpha=0.7, beta=1.3, gamma=0.4)
    for ablate, weights in (
        ("none", (0.7, 1.3, 0.4)), ("no-att", (0, 1.3, 0.4)), ("no-hid", (0.7, 0, 0.4)), ("cls-only", (0, 0, 0.4)),
    ):
        yield Case(
            "paper" if ablate == "none" else f"ablation {ablate}", drawn, lambda x,
            s=replace(settings, ablate=ablate): ours(x, s), lambda x, w=weights: loops(x, *w),
            by=("logits",) + ("s_attn", "s_hidden") * (ablate == "none"),
        )
    yield train_mode.distillation_case(generator)


def gold_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"logits": 3 * normal(generator, 3, 4), "labels": torch.tensor([3, 0, 0])}

    def ours(x):
        batch = Batch(x["labels"][:, None], torch.ones(3, 1, dtype=torch.bool), x["labels"][:, None], x["labels"])
        return distill_terms(Output(x["logits"], None), None, batch, MBTSAD(ablate="cls-only"))["cls"]

    yield Case(
        "paper", drawn, ours,
        lambda x: [restated.cross_entropy(logits, y) for logits, y in zip(x["logits"], x["labels"])], by=("logits",),
    )
    yield train_mode.cross_entropy_case(generator)


def loss_of(w, ids, labels):
    return restated.mean(
        [restated.cross_entropy(restated.bert(w, text, small.HEADS)[3], y) for text, y in zip(ids, labels)]
    )


def expectation_cases(generator: torch.Generator) -> Iterator[Case]:
    victim, rows = small.ckpt(generator), small.rows()
    tokens, labels = small.ids(victim, rows), [x.label for x in rows]
    yield Case(
        "a whole BERT, 3 texts", small.weights(victim),
        lambda w: torch.tensor(mean_loss(victim.model, victim.tokenizer, rows, 2)),
        lambda w: loss_of(w, tokens, labels),
    )
    yield train_mode.mean_loss_case(generator)


def selection_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    victim, rows, settings = small.ckpt(generator), small.rows(), MBTSAD(budget="equal")
    sets = each_augmented(rows, settings, 5, AugmentResources())  # both get the same copies a(x)
    tokens = {name: small.ids(victim, copies) for name, copies in sets.items()}
    labels = [x.label for x in rows]
    yield Case(
        ", ".join(sets), small.weights(victim),
        lambda w: torch.tensor(list(perturbation(victim, rows, settings, 5, AugmentResources()).values())),
        lambda w: [loss_of(w, ids, labels) for ids in tokens.values()],
    )


TEXTS = (
    "A splendid, re-imagined film!", "it is", "", "don't stop , ever ; truly magnificent storytelling",
    "one_word " * 60, "abc abcd 2001 naïve 電影電影", "e\u0301te\u0301 de\u0301ja\u0300 de\u0301compose\u0301",
)


def budget_cases(generator: torch.Generator) -> Iterator[Outcome]:
    wrong = sum(budget(text) != restated.n_target(text) for text in TEXTS)
    yield Outcome(f"{len(TEXTS)} texts, those with another number", wrong, 0.0)
    wrong = sum(
        budget(text, rate=0.5, max_targets=3, min_char=3) != restated.n_target(text, 0.5, 1, 3, 3) for text in TEXTS
    )
    yield Outcome("the same, rate 0.5, at most 3, of 3 letters", wrong, 0.0)


ONE = [[[0.5, 0.5], [1.0, 0.0]]]      # one head's map of two tokens
EVEN = [[[0.5, 0.5], [0.5, 0.5]]]


def example_map() -> str:
    return (
        f"One head, two tokens, p = 2:  A = {shown(ONE[0])}\nF = {shown([[a * a for a in row] for row in ONE[0]])},  "
        f"||F|| = {shown(restated.norm([a * a for row in ONE[0] for a in row]))}\n"
        f"Q = {shown(restated.attention_map(ONE, [True, True], 2))}"
    )


def example_loss() -> str:
    Q_T, Q_S = (restated.attention_map(A, [True, True], 2) for A in (ONE, EVEN))
    return (
        f"Teacher A = {shown(ONE[0])}:  Q_T = {shown(Q_T)}\nStudent A = {shown(EVEN[0])}:  Q_S = {shown(Q_S)}\n"
        f"||Q_T - Q_S|| = {shown(restated.attention_loss([[EVEN]], [[ONE]], [[True, True]], 2)[0])}; released: the "
        f"mean of its squares, {shown(restated.attention_loss_released([[EVEN]], [[ONE]], [[True, True]], 2)[0])}"
    )


def example_hidden() -> str:
    student, teacher = [[[[1.0, 2.0], [9.0, 9.0]]]], [[[[0.0, 4.0], [0.0, 0.0]]]]
    return (
        f"One state, two positions, the second padded:  h_S = {shown(student[0][0])},  h_T = {shown(teacher[0][0])}\n"
        "MSE over the real position = (1 + 4) / 2 = "
        f"{shown(restated.hidden_loss(student, teacher, [[True, False]])[0])}"
    )


def example_gold() -> str:
    return f"z = [0, 1], gold class 0: -log(1 / (1 + e)) = {shown(restated.cross_entropy([0.0, 1.0], 0))}"


def example_selection() -> str:
    rows = [("a(x) = \"sple ndid\"", [0.0, 0.5], 1), ("a(x) = \", splendid\"", [0.0, 2.0], 1)]
    return (
        "\n".join(
            f"{copy}, z = {shown(z)}, gold class {y}: {shown(restated.cross_entropy(z, y))}" for copy, z, y in rows
        )
        + "\nOver this one row (8) takes the first copy as the worst, and (9) takes its augmenter for all rows."
    )


def example_budget() -> str:
    text = "A splendid, re-imagined film!"
    return (
        f"{text!r}: tokens {restated.tokens(text)}\nn = {len(restated.tokens(text))}, ceil(0.3 n) = 3, of 4 letters "
        f"and more: splendid, imagined, film; n_target = {restated.n_target(text)}"
    )


EQUATIONS = (
    Equation(
        "MBTSAD",
        "1",
        "Distillation loss",
        r"L = \alpha L_{\mathrm{AT}} + \beta L_{\mathrm{hid}} + \gamma L_{\mathrm{cls}}",
        "One value per text; fit takes the mean over the batch. alpha 5, beta 20, gamma 1, the same for every attack. "
        "An ablated term is not computed.",
        "",
        "The weights are not legible in the paper's published text; it says that two of them are set for each attack, "
        "which a defender without the trigger cannot do.",
        lambda: "L_AT = 0.4, L_hid = 0.05, L_cls = 0.3:  L = 5 * 0.4 + 20 * 0.05 + 1 * 0.3 = 3.3",
        distill_cases,
    ),
    Equation(
        "MBTSAD",
        "2",
        "Attention transfer, summed over layers",
        r"L_{\mathrm{AT}} = \sum_{l=1}^{L} \mathrm{AT}(A_l^T, A_l^S)",
        "A sum over the layers, one value per text.",
        "The element-wise mean squared error of NAD's code in place of the norm of (4), summed over layers.",
        "Two MiniLM classifiers on SST-2's 872 dev rows: the norm is 0.83 per text, the mean square 0.00053, 2,530 "
        "times less (median; 766 times up to 15 tokens, 6,400 times from 35 on).",
        example_loss,
        attention_cases,
    ),
    Equation(
        "MBTSAD",
        "3",
        "Attention enhancement and its normalised map",
        r"F_l = \sum_{i=1}^{H} \lvert A_{l,i} \rvert^p , \quad Q_l = \frac{F_l}{\lVert F_l \rVert_2 + 10^{-6}}",
        "p = 2. Rows of padded queries are zeroed before the norm, so that a text's map does not depend on its "
        "neighbours.",
        "NAD leaves the padded queries in.",
        "There, in batches of 32 rows drawn at random, a text's norm changes by 1.4 % on average and by up to 25 %, "
        "and its mean square falls to 32 %, padding being counted in T^2.",
        example_map,
        map_cases,
    ),
    Equation(
        "MBTSAD",
        "4",
        "Distance of two maps",
        r"\mathrm{AT}(A_l^T, A_l^S) = \lVert Q_l^T - Q_l^S \rVert_2",
        "The 2-norm over the whole T x T map of a text; its gradient is 0 where the maps are equal.",
        "The mean over the T^2 entries of the squared difference, at most 2 / T^2, so that its weight fades with the "
        "length.",
        "Two MiniLM classifiers on SST-2's 872 dev rows: the norm is 0.83 per text, the mean square 0.00053, 2,530 "
        "times less (median; 766 times up to 15 tokens, 6,400 times from 35 on).",
        example_loss,
        attention_cases,
    ),
    Equation(
        "MBTSAD",
        "5",
        "The hidden states compared",
        r"h = \{ h_0, h_1, \dots, h_L \}",
        "h_0 is the embedding layer's output after its LayerNorm, h_l the output of block l.",
        "",
        "",
        example_hidden,
        hidden_cases,
    ),
    Equation(
        "MBTSAD",
        "6",
        "Hidden-state loss",
        r"L_{\mathrm{hid}} = \sum_{l=0}^{L} \mathrm{MSE}(h_l^T, h_l^S)",
        "The mean over a text's real tokens and the D features, summed over the L + 1 states.",
        "",
        "With the padded positions left in, a text's loss would change by 47 % on average (two MiniLM classifiers, "
        "SST-2, batches of 32 drawn at random).",
        example_hidden,
        hidden_cases,
    ),
    Equation(
        "MBTSAD",
        "7",
        "Classification loss",
        r"L_{\mathrm{cls}} = \mathrm{CE}(z, y) = - \log p(y | x)",
        "With the gold label y. The teacher's logits do not enter.",
        "",
        "",
        example_gold,
        gold_cases,
    ),
    Equation(
        "MBTSAD",
        "8",
        "Retraining on the worst perturbation",
        r"\min_{\theta} \mathbb{E}_{(x,y) \sim D_c} \, \max_{a \in \mathcal{A}, \#(a(x), x) \le \epsilon} "
        r"\mathrm{CE}(f_{\theta}(a(x)), y)",
        "#(a(x), x) is the number of words that differ. The expectation is a mean over rows, without dropout; the "
        "paper goes on to (9), which takes one augmenter for all rows.",
        "",
        "",
        example_selection,
        expectation_cases,
    ),
    Equation(
        "MBTSAD",
        "9",
        "The augmenter that raises the victim's loss most",
        r"a^* = \arg\max_{a \in \mathcal{A}} \mathbb{E}_{(x,y) \sim D_c} \, \mathrm{CE}(f_{\theta_B}(a(x)), y)",
        "One copy of each clean row by each augmenter, every augmenter changing as many words as token splitting would "
        "(the paper does not say whether it made the budgets equal).",
        "",
        "On the built-in victim the choice is AEDA, not token splitting (README.md).",
        example_selection,
        selection_cases,
    ),
    Equation(
        "MBTSAD",
        "III-B1",
        "How many words are split",
        r"n_{\mathrm{target}} = \min(n_{\mathrm{eligible}}, \min(10, \max(1, \lceil 0.3 n \rceil)))",
        "n counts all tokens, punctuation too; eligible are words of 4 letters and more. The formula is not legible in "
        "the published text; these are the numbers of the library that it follows.",
        "",
        "",
        example_budget,
        budget_cases,
    ),
)
