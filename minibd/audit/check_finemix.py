"""E-PUR, Fine-mixing and Fine-purifying, and the baselines Fine-pruning and MEFT: formulas by name, since the papers'
numbers are not known."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from minibd.audit import restated, small
from minibd.audit.check import MOST, STEP, Case, Equation, Inputs, normal, shown
from minibd.audit.findings import Outcome
from minibd.blending import WORD, counterparts, mask_smallest
from minibd.checkpoint import Checkpoint
from minibd.checkpoint import copy as copied
from minibd.mitigations.epur import drift, purify_embeddings
from minibd.mitigations.finemix import mix
from minibd.mitigations.fineprune import activity
from minibd.mitigations.finepurify import fisher, suspicion
from minibd.mitigations.meft import max_entropy


def pair(generator: torch.Generator) -> tuple[Checkpoint, Checkpoint]:
    """A victim and the pre-trained model it may come from: correlated, and different everywhere."""
    victim = small.ckpt(generator)
    before = copied(victim)
    with torch.no_grad():
        for p in before.model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return victim, before


def drift_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {
        "own": normal(generator, 6, 4), "before": normal(generator, 6, 4),
        "f": torch.tensor([0, 3, 20, 21, 500, 100000]),
    }
    yield Case(
        "paper", drawn, lambda x: drift(x["own"], x["before"], x["f"]),
        lambda x: restated.drift(x["own"], x["before"], x["f"]), by=("own", "before"),
    )


def reset_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    victim, before = pair(generator)
    own, pre = (ckpt.model.get_parameter(WORD).detach().clone() for ckpt in (victim, before))
    f = torch.randint(0, 2000, (len(own),), generator=generator)
    made = purify_embeddings(victim, before, f, top=5)
    yield Case(
        "the word embeddings, 5 reset", {"own": own, "before": pre, "f": f},
        lambda x: made.model.get_parameter(WORD).detach(),
        lambda x: restated.purified(x["own"], x["before"], x["f"], 5), tolerance=0.0,
    )
    others = [
        name
        for name, p in made.model.named_parameters()
        if name != WORD and not torch.equal(p, victim.model.get_parameter(name))
    ]
    yield Outcome("other tensors, those changed", len(others), 0.0)


def mixture_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    victim, before = pair(generator)
    name = "blocks.1.up.weight"
    own, pre = (ckpt.model.get_parameter(name).detach().flatten() for ckpt in (victim, before))
    for rho in (0.0, 0.3, 1.0):
        made = mix(victim, before, rho, torch.Generator().manual_seed(7)).model.get_parameter(name).detach().flatten()
        kept = (made == own).double()  # m, read off the mixture: every scalar is one of the two
        yield Case(f"each scalar, rho = {rho:g}", {"own": own, "before": pre, "kept": kept}, lambda x, made=made: made,
                   lambda x: restated.mixture(x["own"], x["before"], x["kept"]), tolerance=0.0)
    made = mix(victim, before, 0.3, torch.Generator().manual_seed(7)).model
    kept, n = 0, 0
    for name in counterparts(victim, before).weights:
        kept, n = (
            kept + int((made.get_parameter(name) == victim.model.get_parameter(name)).sum()),
            n + made.get_parameter(name).numel(),
        )
    # Five standard deviations of a share of n drawn scalars.
    yield Outcome("the share that is kept, off rho = 0.3", abs(kept / n - 0.3), 5 * (0.3 * 0.7 / n) ** 0.5)
    head = [
        name
        for name, p in made.named_parameters()
        if name.startswith("classifier") and not torch.equal(p, victim.model.get_parameter(name))
    ]
    yield Outcome("tensors of the classifier, those changed", len(head), 0.0)


def fisher_cases(generator: torch.Generator) -> Iterator[Case]:
    """F of some scalars of every kind of tensor, against differences of the restated model's log p, text by text."""
    encoder, rows = small.ckpt(generator), small.rows()
    tokens, labels, weights = small.ids(encoder, rows), [x.label for x in rows], small.weights(encoder)
    names = (
        WORD, "embeddings.position.weight", "embeddings.norm.weight", "blocks.0.value.weight", "blocks.0.query.bias",
        "blocks.1.up.weight", "blocks.1.norm.bias", "pooler.weight", "classifier.bias",
    )
    where = {name: torch.randperm(weights[name].numel(), generator=generator)[:MOST // 4].tolist() for name in names}
    where[WORD] = [weights[WORD].shape[1] * tokens[0][1] + d for d in range(3)]  # a token that is read; most are not

    def ours(w: Inputs) -> Tensor:
        found = fisher(encoder.model, encoder.tokenizer, rows, batch_size=2)
        return torch.cat([found[name].flatten()[at] for name, at in where.items()])

    def loops(w):
        found = []
        for name, at in where.items():
            for i in at:
                slopes = []
                for ids, y in zip(tokens, labels):
                    up, down = (
                        restated.cross_entropy(
                            restated.bert({**w, name: small.shifted_at(w[name], i, by)}, ids, small.HEADS)[3], y
                        )
                        for by in (STEP, -STEP)
                    )
                    slopes.append((up - down) / (2 * STEP))
                found.append(restated.mean([slope ** 2 for slope in slopes]))
        return found
    yield Case("of 48 scalars of a whole BERT", weights, ours, loops, tolerance=2e-5)


def suspicion_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    victim, before = pair(generator)
    known, name = counterparts(victim, before), "blocks.0.down.weight"
    information = {n: torch.rand(w.shape, generator=generator) for n, w in known.weights.items()}
    drawn = {
        "own": victim.model.get_parameter(name).detach().flatten(), "before": known.weights[name].flatten(),
        "F": information[name].flatten(),
    }
    scores = suspicion(victim, known, information, 1e-3)
    yield Case(
        "r", drawn, lambda x: scores[name].flatten(), lambda x: restated.suspicion(x["own"], x["before"], x["F"], 1e-3)
    )
    keep = mask_smallest(scores, 0.4)
    bound = sorted(x for values in scores.values() for x in values.flatten().tolist())
    edge = bound[round(0.4 * len(bound)) - 1]
    wrong = sum(int((keep[n] != (values <= edge)).sum()) for n, values in scores.items())
    yield Outcome("scalars kept that are not of the 40 % with the smallest r", wrong, 0.0)


def activity_cases(generator: torch.Generator) -> Iterator[Case]:
    encoder, rows = small.ckpt(generator), small.rows()
    tokens = small.ids(encoder, rows)

    def loops(w):
        units = [restated.bert(w, ids, small.HEADS)[2] for ids in tokens]  # [text][l][t][f]
        return [
            [restated.mean([abs(place[f]) for text in units for place in text[l]]) for f in range(8)] for l in range(2)
        ]

    yield Case(
        "a whole BERT, 3 texts", small.weights(encoder),
        lambda w: activity(encoder.model, encoder.tokenizer, rows, batch_size=2), loops,
    )


def entropy_cases(generator: torch.Generator) -> Iterator[Case]:
    encoder, rows = small.ckpt(generator), small.rows()
    tokens, weights = small.ids(encoder, rows), small.weights(encoder)
    yield Case(
        "a whole BERT, 3 texts", weights,
        lambda w: small.call_with(encoder.model, w, lambda m: max_entropy(m, encoder.tokenizer(rows))["entropy"]),
        lambda w: [restated.negative_entropy(restated.bert(w, ids, small.HEADS)[3]) for ids in tokens],
        by=("classifier.weight", "pooler.bias", "blocks.1.value.weight"),
    )


def example_drift() -> str:
    return (
        "e^B - e^Pre = [3, 4] of a token that occurs 5 times: 5 / log(20) = "
        f"{shown(restated.drift([[3.0, 4.0]], [[0.0, 0.0]], [5])[0])}\n"
        f"that occurs 2,000 times: 5 / log(2000) = {shown(restated.drift([[3.0, 4.0]], [[0.0, 0.0]], [2000])[0])}"
    )


def example_mixture() -> str:
    mixed = restated.mixture([1.0, 2.0, 3.0], [0.0] * 3, [1.0, 0.0, 1.0])
    return f"w_B = [1, 2, 3], w_Pre = [0, 0, 0], m = [1, 0, 1]: w = {shown(mixed)}"


def example_fisher() -> str:
    return ("Two texts' gradients of log p by one weight, 2 and -2: F = (4 + 4) / 2 = 4; the square of their mean, "
            "which a batch's gradient gives, is 0")


def example_suspicion() -> str:
    return (
        f"moved by 0.1: F = 1 gives r = {shown(restated.suspicion([0.1], [0.0], [1.0], 1e-8)[0])}, F = 0.0001 gives "
        f"{shown(restated.suspicion([0.1], [0.0], [1e-4], 1e-8)[0])}"
    )


def example_activity() -> str:
    return "A unit's outputs over four tokens, 0.5, -0.1, 0, 0.2: (0.5 + 0.1 + 0 + 0.2) / 4 = 0.2"


def example_entropy() -> str:
    unsure, sure = (shown(restated.negative_entropy(z)) for z in ([0.0, 0.0], [0.0, 3.0]))
    return f"z = [0, 0]: {unsure} = -log 2;  z = [0, 3]: {sure}"


EQUATIONS = (
    Equation(
        "E-PUR", "score", "How far an embedding moved, for how often its token occurs",
        r"s_i = \frac{\lVert e_i^B - e_i^{\mathrm{Pre}} \rVert_2}{\log(\max(f_i, 20))}",
        "f over the clean rows at hand; log natural. A recollection: of the paper only the abstract was read.", "", "",
        example_drift, drift_cases,
    ),
    Equation(
        "E-PUR", "reset", "The embeddings with the highest scores are reset",
        r"e_i \leftarrow e_i^{\mathrm{Pre}} , \quad i \in \mathrm{top}_{200}(s)",
        "200 tokens, or 1 in 150 of a small vocabulary; word embeddings alone.", "",
        "Alone it reduces the ASR of the built-in EP victim from 92.9 to 2.8 %; a clean model has 1.1.", example_drift,
        reset_cases,
    ),
    Equation(
        "Fine-mixing", "w", "The mixture",
        r"w = m w_B + (1 - m) w_{\mathrm{Pre}} , \quad m \sim \mathrm{Bernoulli}(\rho)",
        "One draw per scalar; the classifier, which has no counterpart, stays the victim's.", "", "", example_mixture,
        mixture_cases,
    ),
    Equation(
        "Fine-purifying", "F", "The diagonal Fisher information",
        r"F_i = \mathbb{E}_{(x,y) \sim D_c} ( \frac{\partial \log p(y | x)}{\partial w_i} )^2",
        "The squares of single texts' gradients, at w_B, without dropout.", "", "", example_fisher, fisher_cases,
    ),
    Equation(
        "Fine-purifying", "r", "How suspicious a weight is",
        r"r_i = \frac{(w_{B,i} - w_{\mathrm{Pre},i})^2}{F_i + \epsilon}",
        "epsilon 1e-8; the share rho of all weights with the smallest r is kept.", "", "", example_suspicion,
        suspicion_cases,
    ),
    Equation(
        "Fine-pruning", "activity", "How active a unit is on clean text", r"a_u = \mathbb{E} \lvert u(x) \rvert",
        "Mean over all real tokens of the clean rows, of the unit's output after the activation; |.| because a GELU "
        "has both signs.",
        "", "", example_activity, activity_cases,
    ),
    Equation(
        "MEFT", "entropy", "What maximum entropy fine-tuning minimises first", r"\sum_c p_c \log p_c",
        "The negative entropy of the prediction, one value per text.",
        "PURE's code sums it over the batch, and takes the logarithm of the softmax, which is NaN for a sure model.",
        "", example_entropy, entropy_cases,
    ),
)
