"""The equations of the filters: ONION, STRIP, RAP, BKI, CUBE, and what they are scored by."""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from minibd.audit import restated
from minibd.audit.check import Case, Equation, normal, shown, uniform
from minibd.filters.bki import importance, movement
from minibd.filters.cube import allowed, principal, scaled, suspicious
from minibd.filters.onion import causal_scores, perplexity, suspicion, windows_of
from minibd.filters.rap import bounds_loss, stepped
from minibd.filters.strip import entropy, mean_entropy, released_mean_entropy, tf_idf
from minibd.models.llama import Llama, LlamaConfig
from minibd.rejection import auroc, threshold
from minibd.tokenizer import Tokenizer

BITS = 1e-5  # tolerance: entropies and perplexities from float32
VOCAB = {token: i for i, token in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d"))}
PIECES = ([[4], [5, 6], [7]], [[4], [4]], [[6, 5, 4], [7], [7], [5]])  # words as tokens


# ---- what all are scored by

def threshold_cases(generator: torch.Generator) -> Iterator[Case]:
    for n, frr in ((1, 0.05), (20, 0.05), (21, 0.0), (50, 0.29), (30, 0.5)):
        drawn = {"s": normal(generator, n).mul(4).round() / 4}  # some are equal
        yield Case(f"{n} clean texts, at {frr:g}", drawn,
                   lambda x, frr=frr: torch.tensor(threshold(x["s"].tolist(), frr)),
                   lambda x, frr=frr: restated.filter_threshold(x["s"], frr), tolerance=0.0)


def auroc_cases(generator: torch.Generator) -> Iterator[Case]:
    for what, scale in (("drawn", 1000.0), ("many equal", 2.0)):
        drawn = {"b": (normal(generator, 13) + 1).mul(scale).round(), "c": normal(generator, 17).mul(scale).round()}
        yield Case(what, drawn, lambda x: torch.tensor(auroc(x["b"].tolist(), x["c"].tolist())),
                   lambda x: restated.filter_auroc(x["b"], x["c"]))


# ---- ONION

def perplexity_cases(generator: torch.Generator) -> Iterator[Case]:
    for tokens in (1, 7):
        yield Case(f"{tokens} tokens", {"n": 5 * uniform(generator, 3, tokens)},
                   lambda x, t=tokens: perplexity(x["n"].sum(1), torch.full((3,), float(t))),
                   lambda x: [restated.perplexity(nats) for nats in x["n"]], tolerance=BITS)


def suspicion_cases(generator: torch.Generator) -> Iterator[Case]:
    yield Case("sums of nats", {"n": 4 * uniform(generator, 5)},
               lambda x: suspicion(x["n"].sum(), torch.tensor(5.0), x["n"].sum() - x["n"], torch.full((5,), 4.0)),
               lambda x: [restated.perplexity(x["n"]) - restated.perplexity([*x["n"][:i], *x["n"][i + 1:]])
                          for i in range(5)], tolerance=BITS)
    model = Llama(LlamaConfig(len(VOCAB), 6, 0, 1, 2, labels=0, lm=True, positions=16)).eval()
    tokenizer, begin = Tokenizer.from_vocab(VOCAB, 16), VOCAB["[CLS]"]
    for pieces in PIECES:
        window, = windows_of([""] * len(pieces), pieces, pieces[1], 16)

        def ours(x, window=window) -> Tensor:
            with torch.no_grad():
                model.embeddings.word.weight.copy_(x["E"])
                model.lm.weight.copy_(x["W"])
            return torch.tensor(causal_scores(model, tokenizer, [window], 64)[0])
        yield Case(f"a language model without layers, words of {', '.join(str(len(p)) for p in pieces)} tokens",
                   {"E": normal(generator, len(VOCAB), 6), "W": normal(generator, len(VOCAB), 6)}, ours,
                   lambda x, pieces=pieces: restated.onion(x["E"], x["W"], begin, pieces), tolerance=1e-4)


# ---- STRIP

def tf_idf_cases(generator: torch.Generator) -> Iterator[Case]:
    texts = torch.randint(4, (6, 5), generator=generator)

    def ours(x) -> Tensor:
        rows = x["words"].tolist()
        return torch.tensor([[tf_idf(row.count(w), len(rows), sum(w in r for r in rows)) for w in range(4)]
                             for row in rows])
    yield Case("six texts of five words", {"words": texts}, ours,
               lambda x: [[restated.tf_idf(x["words"], t, w) for w in range(4)] for t in range(6)])


def chances(generator: torch.Generator, *shape: int) -> Tensor:
    return (2 * normal(generator, *shape)).softmax(-1)


def entropy_cases(generator: torch.Generator) -> Iterator[Case]:
    for classes in (2, 5):
        yield Case(f"{classes} classes", {"p": chances(generator, 4, classes)}, lambda x: entropy(x["p"]),
                   lambda x: [restated.entropy(p) for p in x["p"]], tolerance=BITS)
    yield Case("probabilities of 0 and 1", {"p": torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]])},
               lambda x: entropy(x["p"]), lambda x: [restated.entropy(p) for p in x["p"]])


def mean_entropy_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"p": chances(generator, 6, 4, 3)}
    yield Case("six texts of four copies", drawn, lambda x: mean_entropy(x["p"]), lambda x: restated.strip(x["p"]),
               tolerance=BITS)
    yield Case("released: averaged across texts", drawn,
               lambda x: released_mean_entropy(x["p"].flatten(0, 1), 4),
               lambda x: restated.strip_released([p for text in x["p"] for p in text], 6, 4), tolerance=BITS)


# ---- RAP

def bounds_cases(generator: torch.Generator) -> Iterator[Case]:
    for scale in (1.0, 2.5):
        yield Case(f"scale {scale:g}", {"d": normal(generator, 9) / 3},
                   lambda x, s=scale: bounds_loss(x["d"], 0.1, 0.3, s),
                   lambda x, s=scale: restated.rap_loss(x["d"], 0.1, 0.3, s), by=("d",))


def step_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"e": normal(generator, 2, 5), "g": normal(generator, 2, 5)}
    for variant in ("paper", "released"):
        yield Case(variant, drawn,
                   lambda x, v=variant: stepped(x["e"], x["g"], 0.2, x["e"].norm(dim=1, keepdim=True), v),
                   lambda x, v=variant: [restated.rap_step(e, g, 0.2, v == "released") for e, g in zip(x["e"], x["g"])])
    flat = {"e": drawn["e"], "g": torch.zeros(2, 5)}
    yield Case("without a gradient", flat, lambda x: stepped(x["e"], x["g"], 0.2, x["e"].norm(dim=1, keepdim=True)),
               lambda x: x["e"])


# ---- BKI

def movement_cases(generator: torch.Generator) -> Iterator[Case]:
    yield Case("four words", {"w": normal(generator, 4, 6), "h": normal(generator, 6)},
               lambda x: movement(x["w"], x["h"]), lambda x: [restated.movement(w, x["h"]) for w in x["w"]])


def importance_cases(generator: torch.Generator) -> Iterator[Case]:
    words = torch.randint(6, (12, 3), generator=generator).tolist()
    drawn = {"f": uniform(generator, 12, 3)}

    def keywords(f) -> list[list[tuple[str, float]]]:
        return [[(str(w), v) for w, v in zip(*row)] for row in zip(words, f)]
    names = sorted({str(w) for row in words for w in row})
    yield Case("twelve texts of three keywords", drawn,
               lambda x: torch.tensor([importance(keywords(x["f"].tolist()))[w] for w in names]),
               lambda x: [restated.importance(keywords(x["f"]))[w] for w in names])


# ---- CUBE

def component_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"x": normal(generator, 30, 4) * torch.tensor([3.0, 1.0, 2.0, 0.5]) @ normal(generator, 4, 4)}

    def axes(x: Tensor) -> Tensor:
        return principal(x.double(), 3)[1]
    yield Case("the variance along each", drawn, lambda x: torch.stack([
        ((x["x"].double() - x["x"].double().mean(0)) @ axis).square().sum() for axis in axes(x["x"]).T]),
        lambda x: [restated.spread_along(x["x"], a) for a in axes(torch.tensor(x["x"])).T.tolist()])
    yield Case("none is larger: the sum over all directions is that of the columns", drawn,
               lambda x: principal(x["x"].double(), 4)[1].T @ principal(x["x"].double(), 4)[1],
               lambda x: [[float(i == j) for j in range(4)] for i in range(4)])
    best = torch.linalg.svd(drawn["x"].double() - drawn["x"].double().mean(0))[1].square()[:3]
    yield Case("they are the largest", drawn, lambda x: best,
               lambda x: [restated.spread_along(x["x"], a) for a in axes(torch.tensor(x["x"])).T.tolist()])


def scale_cases(generator: torch.Generator) -> Iterator[Case]:
    drawn = {"x": normal(generator, 30, 4) * torch.tensor([3.0, 1.0, 2.0, 0.5]) @ normal(generator, 4, 4)}

    def places(x: list) -> Tensor:
        rows = torch.tensor(x).double()
        middle, axes = scaled(rows, 3)
        return (rows - middle) @ axes
    yield Case("each row's place", drawn, lambda x: places(x["x"].tolist()),
               lambda x: restated.scaled(x["x"], principal(torch.tensor(x["x"]).double(), 3)[1].T.tolist()))
    flat = {"x": torch.cat([drawn["x"], torch.zeros(30, 2)], dim=1)}
    yield Case("a direction along which rows are the same is left out", flat,
               lambda x: torch.tensor([float(scaled(x["x"].double(), 6)[1].shape[1])]), lambda x: [4.0], tolerance=0.0)


def keep_cases(generator: torch.Generator) -> Iterator[Case]:
    for n, clusters in ((40, 3), (25, 5), (9, 2)):
        drawn = {"y": torch.randint(2, (n,), generator=generator),
                 "c": torch.randint(clusters, (n,), generator=generator) - 1}
        yield Case(f"{n} rows, {clusters} clusters, -1 among them", drawn,
                   lambda x: torch.tensor(sorted(suspicious(x["y"].tolist(), x["c"].tolist()))),
                   lambda x: [list(pair) for pair in restated.suspicious(x["y"], x["c"])], tolerance=0.0)


def allowed_cases(generator: torch.Generator) -> Iterator[Case]:
    rng = random.Random(int(torch.randint(1000, (1,), generator=generator)))
    sizes = {c: rng.randint(5, 40) for c in range(6)}
    held = {c: rng.randint(0, 6) for c in range(6)} | {6: 60}
    for frr in (0.0, 0.05, 0.2, 0.9):
        yield Case(f"six clusters, at {frr:g}", {"c": torch.arange(6)},
                   lambda x, frr=frr: torch.tensor([float(c in {p[1] for p in allowed(
                       [(1, c) for c in x["c"].tolist()], Counter({(1, c): n for c, n in sizes.items()}),
                       Counter({(1, c): n for c, n in held.items()}), frr)}) for c in x["c"].tolist()]),
                   lambda x, frr=frr: [float(c in restated.allowed(x["c"], sizes, held, frr)) for c in x["c"]],
                   tolerance=0.0)


# ---- with numbers

def example_threshold() -> str:
    return f"5 clean texts of scores 1, 2, 3, 4, 5: {restated.filter_threshold([1, 2, 3, 4, 5], 0.2)} at 0.2"


def example_auroc() -> str:
    return f"Triggered 3 and 1, clean 1 and 0: {shown(restated.filter_auroc([3, 1], [1, 0]))}"


def example_perplexity() -> str:
    return f"Three tokens of probability 1/8, 1/2 and 1/4: {shown(restated.perplexity([2.0794, 0.6931, 1.3863]))}"


def example_suspicion() -> str:
    return "p_0 = 15 and p_i = 4: f_i = 11, the text reads better without the word"


def example_tf_idf() -> str:
    texts = [["great", "great", "film"], ["awful", "film"]]
    return f"great in \"great great film\" beside \"awful film\": {shown(restated.tf_idf(texts, 0, 'great'))}, " \
           f"film: {shown(restated.tf_idf(texts, 0, 'film'))}"


def example_entropy() -> str:
    return f"Two classes, 0.9 and 0.1: {shown(restated.entropy([0.9, 0.1]))} bits; 1 and 0: 0"


def example_mean() -> str:
    p = [[0.5, 0.5], [0.5, 0.5], [0.99, 0.01], [0.99, 0.01]]
    return f"Two texts of two copies: {shown(restated.strip([p[:2], p[2:]]))}; released: " \
           f"{shown(restated.strip_released(p, 2, 2))} for either"


def example_bounds() -> str:
    return f"d = 0, 0.2, 0.5 with bounds 0.1 and 0.3: {shown(restated.rap_loss([0, 0.2, 0.5], 0.1, 0.3, 1))}"


def example_step() -> str:
    return f"e = (3, 4), G = (0, 2), lr 0.5: {shown(restated.rap_step([3.0, 4.0], [0.0, 2.0], 0.5))}"


def example_movement() -> str:
    return f"h = (1, 1), without the word (0, -3): {shown(restated.movement([0, -3], [1, 1]))}"


def example_importance() -> str:
    return f"A keyword of 10 texts with f = 2: {shown(restated.importance([[('cf', 2.0)]] * 10)['cf'])}; of one: 0"


def example_components() -> str:
    return "Rows that lie on a line: the first component is its direction, and no variance is left"


def example_scale() -> str:
    return f"Rows 0 and 4 along one direction: {restated.scaled([[0.0], [4.0]], [[1.0]])}, whatever their distance"


def example_keep() -> str:
    return f"Label 1 in clusters 0 0 0 2 1 1: {restated.suspicious([1] * 6, [0, 0, 0, 2, 1, 1])} are suspicious"


def example_allowed() -> str:
    return "Of 100 clean rows 0 lie in cluster 1 and 9 in cluster 2: at 0.05, cluster 1 alone is dropped"


EQUATIONS = (
    Equation("Filter", "t", "The threshold at a stated false-rejection rate",
             r"t = \min \{ s : \# \{ i : s_i > s \} \le \mathrm{frr} \, N \}",
             "chosen on clean rows", "ONION's is 0, BKI and CUBE have none", "", example_threshold, threshold_cases),
    Equation("Filter", "AUROC", "How well triggered and clean texts are told apart",
             r"\mathrm{mean}_{b, c} ( [s_b > s_c] + [s_b = s_c] / 2 )", "", "", "", example_auroc, auroc_cases),
    Equation("ONION", "p", "The perplexity of a text", r"p(x) = \exp( - \frac{1}{T} \sum_t \log P(x_t \mid x_{<t}) )",
             "over the tokens of the text; of a masked language model each token is masked in turn",
             "over the padding, too, without a text's first token", "", example_perplexity, perplexity_cases),
    Equation("ONION", "f", "How suspicious a word is", r"f_i = p(x) - p(x_{-i})",
             "above a threshold chosen on clean rows", "0 and above", "", example_suspicion, suspicion_cases),
    Equation("STRIP", "tf-idf", "How much a word says of its text",
             r"n_w ( \ln \frac{1 + N}{1 + N_w} + 1 )", "", "", "", example_tf_idf, tf_idf_cases),
    Equation("STRIP", "H", "The entropy of an answer", r"H(p) = - \sum_c p_c \log_2 p_c", "0 log 0 is 0",
             "0 log 0 is NaN, which is never rejected", "", example_entropy, entropy_cases),
    Equation("STRIP", "mean", "A text's score", r"H(x) = \frac{1}{K} \sum_k H( p(x^{(k)}) )", "over its own copies",
             "over copies of different texts", "", example_mean, mean_entropy_cases),
    Equation("RAP", "L", "How much the word is to take",
             r"L = \lambda \max(0, c_{\mathrm{low}} - d) + \max(0, d - c_{\mathrm{high}})", "", "", "", example_bounds,
             bounds_cases),
    Equation("RAP", "e", "A step of the word's embedding",
             r"e \leftarrow \lVert e \rVert \frac{e - r \lVert e \rVert G / \lVert G \rVert}"
             r"{\lVert e - r \lVert e \rVert G / \lVert G \rVert \rVert}",
             "G of the batch, its length left out", "e - r G, with G summed over all steps so far", "", example_step,
             step_cases),
    Equation("BKI", "f", "How far a word moves the hidden state", r"f_i = \lVert h(x_{-i}) - h(x) \rVert_\infty", "",
             "", "", example_movement, movement_cases),
    Equation("BKI", "g", "How suspicious a keyword is", r"g(w) = \log_{10} n_w \cdot \mathrm{mean} f(w)",
             "every word above a threshold chosen on clean rows", "the one word of the largest g", "",
             example_importance, importance_cases),
    Equation("CUBE", "PCA", "The principal components", r"a_k = \arg\max_a \sum_n ( (x_n - \bar{x}) \cdot a )^2", "",
             "", "", example_components, component_cases),
    Equation("CUBE", "scale", "Components of equal variance, of a label's rows",
             r"q_{nk} = ( (x_n - \bar{x}) \cdot a_k ) / s_k , \quad s_k^2 = \frac{1}{N} \sum_n ( (x_n - \bar{x}) "
             r"\cdot a_k )^2", "in place of UMAP", "UMAP of all rows", "", example_scale, scale_cases),
    Equation("CUBE", "keep", "Which clusters are suspicious",
             r"\{ (y, c) : c \ne \arg\max_u n_{yu} , n_{yc} < n_y / 2 \}", "noise has joined the nearest cluster",
             "noise is a cluster", "", example_keep, keep_cases),
    Equation("CUBE", "frr", "Which suspicious clusters are dropped",
             r"\sum_{c} m_{yc} \le \mathrm{frr} \, m_y", "those with the fewest clean rows m for their size", "all", "",
             example_allowed, allowed_cases),
)
