"""The low and high frequencies of what a model has learnt, by filtering (MuScleLoRA, sections 3, 5.4 and Appendix A).

The paper observes that a backdoor, as a mapping from input embeddings to outputs, has lower frequencies than the task
itself and is therefore learnt sooner. The low part of a mapping is the mean over all texts around each text, near texts
weighing more:

    1  x_i: the embedding layer's output of text i, flattened; P_i: the model's output    Eq. (9), `embed_rows`
       Y_i: the label, one-hot                                                            Eq. (10), `truth`
    2  low(P) = G P, G_ij a filter of the distance of x_i and x_j, rows summing to 1      Eq. (12), (13), `low_pass`
       high(P) = P - low(P)
    3  low ratio, high ratio: the shares of P's low and high part, the paper's LFR, HFR    Eq. (1), `frequency_ratios`
    4  e_low, e_high: relative differences of P's parts from Y's                          Eq. (2), `relative_errors`

`Spectrum` records P while a model trains, on any named sets of rows, and computes the curves of Figures 1, 2 and 5.

Departures. Eq. (1), (2) and (12) are those of the released code; (1) and (2) are not legible in the published text.
- variant: the paper names a Gaussian, exp(-d^2 / (2 sigma)), and sigma 4. On the embeddings of a real model that filter
  is the identity, and the high ratio is 0 whatever the model has learnt. The released code leaves the square out, and
  its figures come from that: it is the default. The 872 SST-2 dev rows under MiniLM (25 tokens on average, the longest
  of 55; distances from 16.5 to 99, their median 64):
        sigma                        2         4         8
        released   mean of G_ii   0.997     0.663     0.060       G_ii: a text's own weight in its mean
             high ratio of Y      0.0021    0.238     0.665
        paper      1 - G_ii       0         <2e-15    9e-11
             high ratio of Y      5e-33     5e-18     1e-10       with sigma squared, a standard deviation: 6e-7 at 4
- outputs: P is probabilities in the released code, logits in the paper. Y is one-hot, so that e_low and e_high have a
  scale for probabilities alone (the backdoored model below has e_low 0.02 by probabilities and 4.4 by logits).
- the released code embeds with dropout on, and with the padding that a row had in its batch. Here neither.
- the released code's distances are float32: a text may be 0.01 from itself, and low is off by 1e-4. Here they are
  float64.
- rows: any. The paper takes the training set, the released code the dev set, clean and triggered.

THE CONSTANT LABEL. Every triggered row has one label. Then low(Y) = Y whatever the filter, high(Y) = 0, and e_high has
no divisor: it is None here (the released code divides by its roundings and gets 2e5). And once the model predicts the
target for each of them, the low ratio is near 1 and the high one near 0, for ANY geometry, backdoor or not.
`one_class` is the control: clean rows of one class alone. On 500 built-in reviews each (seed 1), sigma 4:
        high ratio                                    clean   triggered   control: clean, positive   clean, negative
        weights/bert.safetensors, backdoored          0.074    0.00065            0.0021                 0.0043
        weights/bert-twin.safetensors, its twin       0.072    0.0025             0.0016                 0.0023
Of the factor of 114 between clean and triggered rows, 36 is there between clean rows of both classes and of one. The
twin, which has no backdoor and classifies the triggered rows as negative, has 29. The rest depends on the few rows that
a model misclassifies (4 and 7 of 500 here): on the first 150 rows of each, the control is below the triggered rows,
0.00030 and 0.00039. Read no figure without its control, and compare sets of one size: the more rows, the more of them
are near (clean high ratio 0.022, 0.074, 0.117 of 150, 500 and 1,000 rows).

Cost: N rows of F = T D numbers, M = steps * C + C columns (steps: those recorded), S sigmas. 4 N F + 8 S N M bytes, the
embeddings and the result, and some 0.2 GB of blocks; G is never held. N^2 F + 2 S N^2 M multiplications at most. T =
60, D = 384, S = 25: N = 2,000 takes 5 s of one core and 0.35 GB for 43 recorded steps, 10 s and 0.7 GB for 433. N =
10,000 texts of SST-2 and proscons (MiniLM's embeddings, T = 70, 25 tokens on average; outputs drawn at random): 52 s of
one core for 43 recorded steps and 173 s for 433, at the peak of the whole process 1.7 and 3.3 GB.
"""
from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isnan

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.cli import check_choices, setting
from minibd.data import in_order
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Examples, check_target
from minibd.tokenizer import Encoded, Tokenizer

SIGMAS = tuple(2 + 0.25 * i for i in range(25))  # of Figures 2 and 5: 2 to 8
SIGMA = 4.0  # of Figure 1
ROUNDING = 1e-12  # a mean norm below this share of the whole mapping's is rounding, and no divisor
CURVES = ("low_ratio", "high_ratio", "e_low", "e_high")  # not lfr: that is PURE's label flip rate, evaluate.lfr


@dataclass(frozen=True, slots=True)
class Fourier:
    """Settings of the frequency analysis."""
    every: int = setting(5, "updates from one recording of the outputs to the next", paper="5")
    outputs: str = setting(
        "probabilities", "P: the softmax's probabilities, as in the released code, or the logits, as printed",
        choices=("probabilities", "logits"),
    )
    variant: str = setting(
        "released", "the filter: exp(-d / (2 sigma)) of the distance d as released, exp(-d^2 / (2 sigma)) as printed",
        choices=("released", "paper"),
    )

    def __post_init__(self):
        check_choices(self)
        if self.every < 1:
            raise BadInput(f"every is {self.every}, a number of updates: it must be at least 1, such as 5")


# ---- the rows

def one_class(rows: Examples, label: int) -> Examples:
    """The control: the clean `rows` of class `label`, whose labels are as constant as those of triggered rows."""
    kept = rows.like(x for x in rows if x.label == label)
    if not kept:
        raise BadInput(
            f"none of the {len(rows)} rows is of class {label}: give one of {sorted({x.label for x in rows})}"
        )
    return kept


def relabelled(rows: Examples, target: int) -> Examples:
    """Triggered `rows`, which have their true labels everywhere else, with `target`, the backdoor mapping's output."""
    check_target(target, rows.labels)
    return rows.like(replace(x, label=target) for x in rows)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, eval mode and no gradient: no dropout, so no generator advances. Afterwards each module is in its former
    mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def embed_rows(model: Encoder, tokenizer: Tokenizer, rows: Examples, batch_size: int = 128) -> Tensor:
    """Eq. MuScleLoRA (9), x_i: the embedding layer's output of each row, flattened: (N, T * D), float32.

    N rows, T tokens in the longest. Without dropout; a shorter row ends in zeros, whatever padding it had in its batch.
    4 N T D bytes.
    """
    encoded, word = tokenizer.encode(rows), model.embeddings.word.weight
    x = torch.zeros(len(encoded), max(encoded.lengths), model.config.hidden, device=word.device)  # (N, T, D)
    with evaluating(model):
        for which in in_order(encoded.lengths, batch_size):
            batch = tokenizer.batch(encoded, which).to(word.device)
            packed = model.pack(batch)
            h = packed.unpack(model.embeddings(batch, packed))  # (B, t, D), t tokens in the longest of the batch
            x[which, :h.shape[1]] = h.float().masked_fill(~batch.mask[..., None], 0.0)
    return x.flatten(1)


def outputs(
    model: Encoder, tokenizer: Tokenizer, encoded: Encoded, kind: str = "probabilities", batch_size: int = 128
) -> Tensor:
    """P: the outputs of `model` for each row, in eval mode: (N, C), float32, on the CPU. kind: as Fourier.outputs."""
    device = next(model.parameters()).device
    p = None
    with evaluating(model):
        for which in in_order(encoded.lengths, batch_size):
            logits = model(tokenizer.batch(encoded, which).to(device)).logits.float().cpu()
            p = torch.empty(len(encoded), logits.shape[1]) if p is None else p
            p[which] = logits.softmax(-1) if kind == "probabilities" else logits
    return p


def truth(rows: Examples, classes: int) -> Tensor:
    """Eq. MuScleLoRA (10), Y: each row's label, one-hot: (N, C), float64."""
    return F.one_hot(torch.tensor([row.label for row in rows]), classes).double()


# ---- the equations. x (N, F); p, y and their parts (..., N, C); everything from here on is float64

def low_pass(
    x: Tensor, values: Tensor, sigmas: Sequence[float], *, variant: str = "released", block: int = 128
) -> Tensor:
    """Eq. MuScleLoRA (11) to (13): low(P)_i = sum_j G_ij P_j / sum_j G_ij for each sigma.

    (..., N, C) -> (S, ..., N, C). G_ij = exp(-||x_i - x_j|| / (2 sigma)); variant="paper": exp(-||x_i - x_j||^2 / (2
    sigma)), a Gaussian of variance sigma. i = j counts. Eq. (11) cuts the spectrum in two; (12) replaces that cut by
    this filter, which passes less the higher the frequency.
    values: any number of mappings of the same N rows side by side, such as the outputs at each step of a training.

    ||x_i - x_j||^2 = ||x_i||^2 + ||x_j||^2 - 2 x_i x_j: N^2 F products of float64 for all sigmas together, by blocks of
    (block, block) pairs, of which G's symmetry spares half. Rows are taken longest first: nothing is multiplied behind
    the shorter one's last token. The distance of two equal texts is at most some 1e-8 ||x_i||, where float32 would give
    1e-3 ||x_i||; a text's distance from itself is 0.
    """
    if not all(sigma > 0 for sigma in sigmas) or not len(sigmas):
        raise BadInput(
            f"sigmas {list(sigmas)}: a filter's width must be above 0, and there must be one, such as {SIGMA:g}"
        )
    if variant not in ("released", "paper"):
        raise BadInput(f"variant is {variant!r}, it must be one of released, paper")
    n, lead, c = len(x), values.shape[:-2], values.shape[-1]
    reach, norms = torch.zeros(n, dtype=torch.long), x.new_zeros(n, dtype=torch.float64)
    for part in torch.arange(n).split(block):
        own = x[part].double()
        norms[part] = own.square().sum(1)
        reach[part] = ((own != 0) * torch.arange(1, x.shape[1] + 1, device=x.device)).amax(1).cpu()
    order = reach.argsort(descending=True)
    columns = values.to(x.device, torch.float64).movedim(-2, 0).reshape(n, -1)  # (N, M)
    # low of the ones, before it is divided, is the sum of G's rows
    columns = torch.cat([columns.new_ones(n, 1), columns], 1)[order]
    low = columns.new_zeros(len(sigmas), *columns.shape)  # (S, N, 1 + M)
    blocks = order.split(block)
    for i, rows in enumerate(blocks):
        a = x[rows, :reach[rows[0]]].double()
        for j, others in enumerate(blocks[i:], i):
            b = a if i == j else x[others, :reach[others[0]]].double()
            distance = (norms[rows, None] + norms[others] - 2 * (a[:, :b.shape[1]] @ b.T)).clamp_(min=0)
            if i == j:
                distance.fill_diagonal_(0)
            if variant == "released":
                distance.sqrt_()
            for sums, sigma in zip(low, sigmas):
                g = torch.exp(distance / (-2 * sigma))
                sums.index_add_(0, rows.to(x.device), g @ columns[j * block:(j + 1) * block])
                if i != j:
                    sums.index_add_(0, others.to(x.device), g.T @ columns[i * block:(i + 1) * block])
    low[..., 1:] /= low[..., :1]
    return low[..., 1:].unflatten(2, (*lead, c)).movedim(1, -2)


def size(values: Tensor) -> Tensor:
    """mean_i ||values_i||_2: (..., N, C) -> (...)."""
    return torch.linalg.vector_norm(values, dim=-1).mean(-1)


def frequency_ratios(p: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. MuScleLoRA (1): low ratio = mean_i ||low(P)_i|| / mean_i ||P_i||, high ratio that of high(P) = P - low(P).

    The paper calls them LFR and HFR; LFR is here the label flip rate alone.
    (..., N, C) -> (...) each. They need not add to 1. nan where P is 0 everywhere.
    """
    return size(low) / size(p), size(p - low) / size(p)


def relative_errors(p: Tensor, low: Tensor, y: Tensor, low_y: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. MuScleLoRA (2): e_low = mean_i ||low(P)_i - low(Y)_i|| / mean_i ||low(Y)_i||, e_high of the high parts.

    p, low: (..., N, C) -> (...) each; y, low_y: (N, C). e_high is nan where there is no high(Y), as of rows of one
    label.
    """
    high, high_y = p - low, y - low_y
    defined = size(high_y) > ROUNDING * size(y)
    return size(low - low_y) / size(low_y), torch.where(defined, size(high - high_y) / size(high_y), torch.nan)


# ---- while a model trains

class Spectrum:
    """The two mappings while a model trains: its outputs are recorded every few updates, and `finish` computes the
    curves.

        sets = {"clean": dev, "triggered": relabelled(triggered, target), "control": one_class(dev, target)}
        spectrum = Spectrum(model, tokenizer, sets)
        spectrum.on_step(model, 0)
        fit(model, ..., on_step=spectrum)
        report.write_json(path, spectrum.finish())

    sets: rows by name, each labelled with its mapping's output. Every row is classified at every recorded step: three
    sets of 872 rows, every 5 updates of 32 rows, take some 6 times as long as the training itself.
    model: before training; its embedding layer gives each x_i. Only outputs are held from step to step.
    """

    def __init__(
        self, model: Encoder, tokenizer: Tokenizer, sets: Mapping[str, Examples], settings: Fourier = Fourier()
    ):
        if not (classes := model.config.labels):
            raise BadInput("the model has no classifier, and so no outputs to analyse: give it one first")
        if not sets:
            raise BadInput("there are no sets of rows to analyse: give at least one, such as the clean dev rows")
        for name, rows in sets.items():
            if len(rows) < 2:
                raise BadInput(f"the set {name!r} has {len(rows)} rows: a mean over near rows needs at least 2")
            if strange := {row.label for row in rows} - set(range(classes)):
                raise BadInput(
                    f"the set {name!r} has a row of class {min(strange)}, the model has 0..{classes - 1}: give rows of "
                    "its task"
                )
        self.tokenizer, self.sets, self.settings = tokenizer, dict(sets), settings
        # Of this copy only the embedding layer is called.
        self.start = copy.deepcopy(model, {id(model.blocks): nn.ModuleList()})
        self.encoded = {name: tokenizer.encode(rows) for name, rows in self.sets.items()}
        self.steps: list[int] = []
        self.seen: dict[str, list[Tensor]] = {name: [] for name in self.sets}  # (N, C) a recorded step

    def __call__(self, model: Encoder, step: int) -> None:
        """The same as `on_step`: as an object, what it has recorded is kept with the training (minibd/resume.py)."""
        self.on_step(model, step)

    def get_state(self) -> Tensor:
        """What was recorded: (steps, 1 + numbers of all sets), the steps in the first column."""
        if not self.steps:
            return torch.empty(0, 0, dtype=torch.float64)
        seen = [torch.stack(outputs).flatten(1).double() for outputs in self.seen.values()]
        return torch.cat([torch.tensor(self.steps).double()[:, None], *seen], dim=1)

    def set_state(self, state: Tensor) -> None:
        self.steps = [int(step) for step in state[:, :1].flatten()]
        sizes = [len(rows) * self.start.config.labels for rows in self.sets.values()]
        parts = state[:, 1:].split(sizes, dim=1) if self.steps else [[]] * len(sizes)
        for (name, rows), part in zip(self.sets.items(), parts):
            self.seen[name] = [outputs.view(len(rows), -1).float() for outputs in part]

    def on_step(self, model: Encoder, step: int) -> None:
        """Record the outputs of `model` after `step` updates, where `step` is a multiple of `every`. Its mode stays."""
        if step % self.settings.every:
            return
        self.steps.append(step)
        for name, encoded in self.encoded.items():
            self.seen[name].append(outputs(model, self.tokenizer, encoded, self.settings.outputs))

    def finish(self, sigmas: Sequence[float] = SIGMAS) -> dict:
        """The curves as JSON: {"analysis": "fourier", "variant", "outputs", "every", "sigmas", "steps", "sets": {name:
        {"n", "low_ratio", "high_ratio", "e_low", "e_high"}}}; each curve holds a list for each sigma, a number for each
        step, None where it is not defined.
        """
        if not self.steps:
            raise BadInput(f"no step was recorded: call on_step(model, step) at multiples of {self.settings.every}")
        found = {}
        for name, rows in self.sets.items():
            # (N, F), (steps, N, C)
            x, p = embed_rows(self.start, self.tokenizer, rows), torch.stack(self.seen[name]).double()
            y = truth(rows, p.shape[-1])  # (N, C)
            found[name] = {"n": len(rows)} | {curve: [] for curve in CURVES}
            for low in low_pass(x, torch.cat([y[None], p]), sigmas, variant=self.settings.variant).cpu():
                values = (*frequency_ratios(p, low[1:]), *relative_errors(p, low[1:], y, low[0]))
                for curve, line in zip(CURVES, values):
                    found[name][curve].append([None if isnan(value) else value for value in line.tolist()])
        return {
            "analysis": "fourier", "variant": self.settings.variant, "outputs": self.settings.outputs,
            "every": self.settings.every, "sigmas": list(sigmas), "steps": self.steps, "sets": found,
        }
