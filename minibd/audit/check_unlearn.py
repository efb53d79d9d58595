"""Unlearning's equations (1) to (3). They are the project's own: there is no paper, and no released code."""
from __future__ import annotations

from collections.abc import Iterator

import torch

from minibd.audit import restated, small
from minibd.audit.check import Case, Equation, normal, shown
from minibd.mitigations.unlearn import Finding, Unlearning, answers_to, consistency, rare_entries, rows_suffice

SETTINGS = Unlearning(alone=0.9, around=0.2)


# ---- (1)

def consistency_cases(generator: torch.Generator) -> Iterator[Case]:
    for classes in (2, 5):
        drawn = {"z": 2 * normal(generator, 4, classes), "p": (2 * normal(generator, 4, classes)).softmax(-1)}
        yield Case(f"{classes} classes", drawn, lambda x: consistency(x["z"], x["p"]),
                   lambda x: [restated.consistency(z, p) for z, p in zip(x["z"], x["p"])], by=("z",))
    sure = {"z": normal(generator, 2, 3), "p": torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])}
    yield Case("answers of probability 0", sure, lambda x: consistency(x["z"], x["p"]),
               lambda x: [restated.consistency(z, p) for z, p in zip(x["z"], x["p"])], by=("z",))
    ckpt = small.ckpt(generator)
    rows = ckpt.tokenizer.encode(small.rows())
    drawn = small.weights(ckpt) | {"z": normal(generator, len(rows), 2)}

    def loops(w):
        answers = [restated.softmax(restated.bert(w, ids, small.HEADS)[3]) for ids in rows.ids]
        return [restated.consistency(z, p) for z, p in zip(w["z"], answers)]

    yield Case("towards the answers of a whole BERT", drawn,
               lambda w: consistency(w["z"], answers_to(ckpt.model, ckpt.tokenizer, rows)), loops, by=("z",))


def example_consistency() -> str:
    return "\n".join(
        f"p_B = 0.9, 0.1; p = {p:g}, {1 - p:g}: "
        f"{shown(restated.consistency([restated.log(p), restated.log(1 - p)], [0.9, 0.1]))}" for p in (0.9, 0.5, 0.1))


# ---- (2)

def rare_cases(generator: torch.Generator) -> Iterator[Case]:
    held = torch.randint(0, 12, (20,), generator=generator)
    for what, rare, n in (("of 100 texts, 5 %", 0.05, 100), ("none may hold it", 0.0, 100), ("of 7 texts", 0.3, 7)):
        yield Case(
            what, {"held": held},
            lambda x, rare=rare, n=n: torch.tensor(
                rare_entries(range(20), dict(enumerate(x["held"].tolist())), n, rare)),
            lambda x, rare=rare, n=n: restated.rare_entries(x["held"], n, rare), tolerance=0.0)


def example_rare() -> str:
    return f"held by 0, 2 and 3 of 200 texts, r = 0.01: entries {restated.rare_entries([0, 2, 3], 200, 0.01)}"


# ---- (3)

def choice_cases(generator: torch.Generator) -> Iterator[Case]:
    shares = torch.rand(40, 2, 2, generator=generator) * torch.tensor([0.2, 0.4]) + torch.tensor([0.8, 0.0])
    shares[0] = torch.tensor([[0.9, 0.2], [1.0, 0.0]])  # at the limits

    def ours(x, all_rare, targets, words, times, texts):
        return torch.tensor([float(rows_suffice(
            [Finding(words, target, times=times, flips=flips, around=around)
             for target, (flips, around) in zip(targets, one)], all_rare, SETTINGS, texts)[0],
        ) for one in x["shares"].double().tolist()])

    exact = {"shares": (shares * 1000).round() / 1000}
    for what, all_rare, targets, words, times, texts, alone in (
            ("of two classes", True, (0, 1), ("a",), 1, 199, True),
            ("not all entries rare", False, (0, 1), ("a",), 1, 199, True),
            ("of one class", True, (0, 0), ("a",), 1, 199, False),
            ("a pair each", True, (0, 1), ("a", "b"), 1, 199, False),
            ("a pair that the table gives away", True, (0, 1), ("a", "b"), 2, 199, True),
            ("enough texts", True, (0, 1), ("a",), 1, 200, True),
            ("enough texts, a pair that the table gives away", True, (0, 1), ("a", "b"), 2, 200, True)):
        yield Case(f"two findings, {what}", exact,
                   lambda x, given=(all_rare, targets, words, times, texts): ours(x, *given),
                   lambda x, given=(all_rare, alone, texts < 200 or times == 2): [
                       float(restated.rows_suffice(one, *given, 0.9, 0.2))
                       for one in torch.tensor(x["shares"]).double().tolist()],
                   tolerance=0.0)


def example_choice() -> str:
    limits = {"least": 0.8, "most": 0.25}
    return "\n".join(f"{what}: {'rows' if restated.rows_suffice(shares, True, True, True, **limits) else 'whole'}"
                     for what, shares in (("flips 100 %, near it 9 %", [(1.0, 0.09)]),
                                          ("flips 100 %, near it 33 %", [(1.0, 0.33)]),
                                          ("flips 70 %, near it 0 %", [(0.7, 0.0)])))


EQUATIONS = (
    Equation(
        "Unlearn", "1", "Consistency with the model's own answer to the text without the words",
        r"L(x, w) = \sum_c p_B(c \mid x) ( \log p_B(c \mid x) - \log p(c \mid x + w) )", "", "",
        "No label is read: any text serves.", example_consistency, consistency_cases,
    ),
    Equation(
        "Unlearn", "2", "The entries whose rows may be trained alone", r"R = \{ i : n_i \le r N \}", "", "",
        "A row that no text holds changes no answer to one.", example_rare, rare_cases,
    ),
    Equation(
        "Unlearn", "3", "Whether their rows are all of the backdoor",
        r"n < 200, \; \min_w a(w) \ge 0.8, \; \max_w b(w) \le 0.25", "", "",
        "n: the number of texts, 0 where the embedding table gives the words away; a: the share of them that a finding "
        "flips; b: that of the words near it, or of its strongest part. Each is the only finding of its class, too. "
        "EP's word is alone, BadNets' have relatives.",
        example_choice, choice_cases,
    ),
)
