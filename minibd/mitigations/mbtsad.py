"""MBTSAD: Mitigating Backdoors in language models based on Token Splitting and Attention Distillation (Algorithm 1).

Who uses it: a defender who holds a suspicious classifier theta_B and a few clean rows D_c of its task, and no
pre-trained weights.

    1  D_aug   <- k copies a(x), y of each (x, y) in D_c, drawn once; a: token splitting             augment/, Eq. (9)
    2  theta_T <- retrain theta_B on D_aug with cross-entropy, rate lr1              the teacher; alone it is TS-FT
    3  theta_S <- theta_B                                                            the student starts BACKDOORED
    4  for each batch of D_aug:   L = alpha L_AT + beta L_hid + gamma L_cls                                     Eq. (1)
    5                             theta_S <- theta_S - lr2 dL / dtheta_S, theta_T frozen
    6  return theta_S

Lines 4 and 5 copy the teacher. The student is trained with its dropout and compared with a teacher that has none, so
that even h_0 is compared behind it: two identical models have L_hid 0.62 and L_AT 1.74 (MiniLM, SST-2), about what a
whole run ends at. `student_dropout` False leaves the student's out: the terms then go to 0.003 and 0.09, and the ASR to
the teacher's (17.0 beside 17.1; with dropout 12.7; one seed). At the rate of the retraining this noise is all that step
2 adds to a copy. At two and a half times that rate the student goes its own way: the teacher's maps and states keep it
accurate where retraining alone would lose points, and of a backdoor that the teacher keeps it keeps less
(scripts/results/mbtsad.md).

Departure: while the teacher is retrained half of the attention edges are dropped (`attention_dropout`; the paper does
not mention it). A rare-word trigger acts through few strong edges, a sentiment through many; README.md has what it
changes.

Other augmenters a than token splitting are those of Table III (`augment`); "auto" takes the one that raises the
victim's loss most, Eq. (9): mean cross-entropy over one copy of each row. There every augmenter changes as many words
as token splitting would split (budget "equal"), whatever `budget` sets for D_aug itself: EDA's own budget is a tenth of
the words, Add Trig's is one, and the paper does not say that it made them equal, so token splitting may have won by
changing more.

Choices where the paper is silent (k, p, both rates, the weights and the norms are not legible in its published text):
see `MBTSAD`, number by number. Attention is the softmax before dropout, so that a map's rows sum to 1; padded queries
are zeroed before the map is normalised and padded positions do not enter L_hid, so that neither loss depends on a
text's neighbours.

variant="released" takes the attention term of the code that the paper builds on (NAD, at.py): element-wise mean squared
error of the two maps, padded queries included (where a batch is packed, models/encoder.py, theirs are uniform). It is
at most 2 / T^2, so its weight fades with the square of the length: on 20 tokens it is some hundred times smaller than
the 2-norm, which is why that code multiplies it by 500 to 1000.
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minibd import checkpoint
from minibd.augment.rewrite import AUGMENTERS, AugmentResources, load_resources, rewrite
from minibd.blending import OnStage
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import batches, generator, in_order
from minibd.distributed import leads, size
from minibd.models.cast_once import cast_once
from minibd.models.dropout import attention_dropout, without_dropout
from minibd.models.kept_outputs import KeptOutputs, room
from minibd.predict import best_on
from minibd.records import BadInput, Batch, Example, Examples, Output
from minibd.resume import once
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import Log, OnChoice, Schedule, check_classes, cross_entropy, fit, weighted


@dataclass(frozen=True, slots=True)
class MBTSAD:
    """The method's numbers, the same for every attack. Rates that are not given scale with the model, see
    `resolved`."""

    augment: str = setting(
        "split", "the augmenter of D_aug's copies; auto: the one that raises the victim's loss most, Eq. (9)",
        paper="split", choices=("split", "eda", "aeda", "addtrigger", "contextual", "auto"),
    )
    budget: str = setting(
        "stock", "words changed in a text: stock, each augmenter's own number, or equal, as many as would be split",
        paper="not said", choices=("stock", "equal"),
    )
    mlm: str | None = setting(
        None, "for contextual: a checkpoint with its masked-language-model head; auto leaves contextual out without it",
        paper="BERT", kind=str,
    )
    wordnet: str | None = setting(
        None, "for eda: folder of WordNet's files (default a small lexicon of ours)", paper="WordNet", kind=str
    )
    k: int = setting(4, "augmented copies of each clean row", paper="not legible in the published text")
    originals: bool = setting(True, "keep the clean rows in D_aug, besides their copies", paper="unclear")
    rate: float = setting(
        0.3, "share of a text's tokens that are split", paper="not legible in the published text; nlpaug 0.3"
    )
    max_targets: int = setting(10, "most words split in a text", paper="not legible in the published text; nlpaug 10")
    min_char: int = setting(
        4, "shortest word that is split, in characters", paper="not legible in the published text; nlpaug 4"
    )
    lr1: float | None = setting(
        None, "learning rate of the teacher's retraining (default 2e-4 * sqrt(384 / hidden size))",
        paper="not legible in the published text", kind=float,
    )
    lr2: float | None = setting(
        None, "learning rate of the distillation (default 2e-4 * sqrt(384 / hidden size))",
        paper="not legible in the published text", kind=float,
    )
    epochs1: int = setting(2, "passes over D_aug in retraining", paper="not legible in the published text")
    epochs2: int = setting(2, "passes over D_aug in distillation", paper="not legible in the published text")
    batch_size: int = setting(32, "texts per step", paper="not legible in the published text")
    warmup: float = setting(
        0.1, "share of the steps over which a rate rises", paper="not legible in the published text"
    )
    weight_decay: float = setting(0.01, "AdamW's weight decay", paper="not legible in the published text")
    attention_dropout: float = setting(0.5, "dropout of the attention probabilities while the teacher is retrained",
                                       paper="not mentioned; BERT 0.1")
    attention_dropout2: float | None = setting(
        None, "the same while the student is distilled (default: the model's own)", paper="not mentioned; BERT 0.1",
        kind=float,
    )
    student_dropout: bool = setting(
        True, "dropout of the student while it is distilled; without it, step 2 is a copy of the teacher",
        paper="not mentioned",
    )
    steps: int = setting(
        0, "least steps of each training: few rows get more passes (0: as many as the passes make)",
        paper="not mentioned",
    )
    alpha: float = setting(
        5.0, "weight of the attention term", paper="not legible in the published text, set per attack"
    )
    beta: float = setting(
        20.0, "weight of the hidden-state term", paper="not legible in the published text, set per attack"
    )
    gamma: float = setting(1.0, "weight of the classification term", paper="1 (Eq. 1 has only two symbols)")
    p: float = setting(2.0, "power of the attention map, Eq. (3)", paper="not legible in the published text; NAD 2")
    distil: bool = setting(
        True, "distil; --no-distil ends with the teacher: TS-FT, or Table III's row of another augmenter"
    )
    ablate: str = setting("none", "leave out a term: no-att, no-hid, or cls-only (the paper's CD)",
                          choices=("none", "no-att", "no-hid", "cls-only"))
    variant: str = setting("paper", "the attention term: the paper's 2-norm, or the released NAD code's mean square",
                           choices=("paper", "released"))

    def __post_init__(self):
        for name in ("k", "max_targets", "min_char"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        check_choices(self)
        for name in ("attention_dropout", "attention_dropout2"):
            if not 0 <= (getattr(self, name) or 0.0) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, a probability: it must lie in 0..1, 1 excluded")
        if self.steps < 0:
            raise BadInput(f"steps is {self.steps}, it must not be negative")
        if not (self.p > 0 and 0 <= self.rate <= 1):
            raise BadInput(f"p is {self.p} and rate {self.rate}: p must be above 0 and rate in 0..1")
        if not (min(self.alpha, self.beta, self.gamma) >= 0 and sum(self.weights.values()) > 0):
            raise BadInput(
                f"alpha {self.alpha}, beta {self.beta}, gamma {self.gamma} (ablate {self.ablate}): none may be "
                "negative, one must stay above 0"
            )
        if self.ablate != "none" and not self.distil:
            raise BadInput(
                f"ablate {self.ablate} leaves out a term of the distillation, and no-distil all of it: give one of the "
                "two"
            )
        if None not in (self.lr1, self.lr2):
            for step in (1, 2):  # a bad second step is refused before the first is trained
                self.schedule(step).validate()

    def resolved(self, hidden: int) -> MBTSAD:
        """These settings, both rates filled in for a model of hidden size D: lr ~ 1 / sqrt(D), measured at D = 384
        (2e-4) and D = 128 (3.5e-4)."""
        lr = 2e-4 * (384 / hidden) ** 0.5
        return replace(self, lr1=lr if self.lr1 is None else self.lr1, lr2=lr if self.lr2 is None else self.lr2)

    def schedule(self, step: int, rows: int = 0) -> Schedule:
        """The schedule of step 1 (retraining) or 2 (distillation). rows: of D_aug, for `steps`."""
        lr, epochs = ((self.lr1, self.epochs1), (self.lr2, self.epochs2))[step - 1]
        if self.steps and rows:
            epochs = max(epochs, ceil(self.steps / ceil(rows / self.batch_size)))
        return Schedule(lr, epochs, self.batch_size, self.warmup, self.weight_decay)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of Eq. (1) by the names of the terms, 0 where ablated."""
        alpha = 0.0 if self.ablate in ("no-att", "cls-only") else self.alpha
        beta = 0.0 if self.ablate in ("no-hid", "cls-only") else self.beta
        return {"att": alpha, "hid": beta, "cls": self.gamma}


# ---- the equations. attn: L of (B, H, T, T); hidden: L+1 of (B, T, D); mask (B, T), True at real tokens

def attention_map(attn: Tensor, mask: Tensor, p: float = 2.0) -> Tensor:
    """Eq. MBTSAD (3): Q = F / (||F||_2 + 1e-6), F = sum over heads of |A|^p, the 2-norm over a text's whole map.

    attn: (B, H, T, T) softmax probabilities of one layer -> (B, T, T). Padded queries are zeroed; padded keys are 0
    already, and get no gradient (`power`).
    """
    return normalised(over_heads(attn.float(), p) * mask[:, :, None])  # (B, T, T); |A| = A for a softmax


def normalised(f: Tensor) -> Tensor:
    """F / (||F||_2 + 1e-6), (B, T, T), 0 at padding."""
    return f / (torch.linalg.vector_norm(f, dim=(1, 2), keepdim=True) + 1e-6)


def over_heads(a: Tensor, p: float) -> Tensor:
    """sum_h a_h^p: (B, H, T, T) -> (B, T, T)."""
    return SquareSum.apply(a) if p == 2 else power(a, p).sum(dim=1)


class SquareSum(torch.autograd.Function):
    """sum_h a_h^2, whose gradient 2 a_h g is written in one pass over (B, H, T, T), where pow's takes several; the same
    bits."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        ctx.save_for_backward(a)
        return (a * a).sum(dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx, g: Tensor) -> Tensor:
        a, = ctx.saved_tensors
        return a * (2 * g)[:, None]


def power(a: Tensor, p: float) -> Tensor:
    """a^p, elementwise, of softmax probabilities, whose gradient is finite for p < 1, too: 0 where a is 0.

    There d a^p / da = p a^(p-1) is infinite. But a = 0 is a padded key, which no logit moves, or a probability too
    small for its type, and by its own logit the derivative is p a^p (1 - a), which goes to 0 with a. Numbers under the
    smallest normal one count as 0 in the gradient: p a^(p-1) would leave float32's range.
    """
    if p >= 1:
        return a.pow(p)
    zero = a < torch.finfo(a.dtype).tiny
    return torch.where(zero, a.detach().pow(p), a.masked_fill(zero, 1.0).pow(p))


def attention_loss(student_attn: Sequence[Tensor], teacher_attn: Sequence[Tensor], mask: Tensor, p: float = 2.0,
                   variant: str = "paper") -> Tensor:
    """Eq. MBTSAD (2) and (4): sum over layers of ||Q_T - Q_S||_2, one value per text: (B,).

    teacher_attn: L of (B, H, T, T), or what was kept of them, F (B, T, T), with p and 0 at padding.
    vector_norm has gradient 0 where the two maps are equal; a hand-written square root would give NaN there.
    released: the mean over all T^2 entries of (Q_T - Q_S)^2, padded queries included, summed over layers.
    """
    counted = torch.ones_like(mask) if variant == "released" else mask
    gaps = ((normalised(t) if t.dim() == 3 else attention_map(t, counted, p)) - attention_map(s, counted, p)
            for s, t in zip(student_attn, teacher_attn, strict=True))  # (B, T, T)
    if variant == "released":
        return sum(gap.square().mean(dim=(1, 2)) for gap in gaps)
    return sum(torch.linalg.vector_norm(gap, dim=(1, 2)) for gap in gaps)


def hidden_loss(student_hidden: Sequence[Tensor], teacher_hidden: Sequence[Tensor], mask: Tensor) -> Tensor:
    """Eq. MBTSAD (5) and (6): sum over h_0 (embeddings) .. h_L of MSE(h_T, h_S) over a text's real tokens: (B,)."""
    n = mask.sum(dim=1)  # (B,)
    return sum(((s.float() - t.float()).square().mean(dim=-1) * mask).sum(dim=1) / n
               for s, t in zip(student_hidden, teacher_hidden, strict=True))


def distill_terms(student: Output, teacher: Output, batch: Batch, settings: MBTSAD) -> dict[str, Tensor]:
    """Eq. MBTSAD (7): "cls", -log p(y | x) of the gold label; with it the other terms of Eq. (1), all whose weight is
    not 0, each (B,)."""
    weights, terms = settings.weights, {}
    if weights["att"]:
        terms["att"] = attention_loss(student.attn, teacher.attn, batch.mask, settings.p, settings.variant)
    if weights["hid"]:
        terms["hid"] = hidden_loss(student.hidden, teacher.hidden, batch.mask)
    if weights["cls"]:
        terms["cls"] = F.cross_entropy(student.logits.float(), batch.labels, reduction="none")
    return terms


def distill_loss(student: Output, teacher: Output, batch: Batch, settings: MBTSAD) -> Tensor:
    """Eq. MBTSAD (1): alpha L_AT + beta L_hid + gamma L_cls, one value per text: (B,)."""
    return weighted(distill_terms(student, teacher, batch, settings), settings.weights)


# ---- line 1: D_aug, and the augmenter that Eq. (9) chooses

def resources_of(
    settings: MBTSAD, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AugmentResources:
    """The augmenters' resources that `settings` names, loaded. Raises BadInput if one is missing or is not what it
    should be."""
    if settings.augment == "contextual" and settings.mlm is None:
        raise BadInput("contextual substitution needs a masked language model: name one with --mlm CKPT, a checkpoint "
                       "saved with its MLM head (for the built-in reviews weights/bert-clean.safetensors)")
    return load_resources(settings.wordnet, settings.mlm, device, dtype)


def augmented(
    clean: Sequence[Example], settings: MBTSAD, seed: int, resources: AugmentResources | None = None
) -> list[Example]:
    """D_aug: k copies of each clean row by `settings.augment`, labels kept, and, with `originals`, the row itself.

    Of a pair both texts are augmented, each by its own length: a trigger may be in either.
    Every copy of a text has its own generator, so that no row's copies depend on which other rows there are.
    resources: None loads what `settings` names. "auto" is resolved in `mbtsad`, which has the victim.
    """
    if settings.augment not in AUGMENTERS:
        raise BadInput(f"augment is {settings.augment!r}, which only a victim's loss resolves: name one of "
                       f"{', '.join(AUGMENTERS)}")
    texts, rngs = [], []
    for copy in range(settings.k):
        for x in clean:
            for text, side in ((x.text, ()), (x.pair, ("pair",))):
                if text is not None:
                    texts.append(text)
                    rngs.append(generator(seed, settings.augment, x.id, copy, *side))
    rewritten = iter(rewrite(
        texts, rngs, settings.augment, resources or resources_of(settings), rate=settings.rate,
        max_targets=settings.max_targets, min_char=settings.min_char, equal_budget=settings.budget == "equal",
    ))
    copies = [
        replace(x, text=next(rewritten), pair=x.pair if x.pair is None else next(rewritten))
        for _ in range(settings.k)
        for x in clean
    ]
    if copies and all(made.text == x.text and made.pair == x.pair for x, made in zip([*clean] * settings.k, copies)):
        print(f"warning: {settings.augment} changes no word of the {len(clean)} clean rows: the copies are the rows as "
              "they are, and a trigger stays whole in training on them; try another --augment", file=sys.stderr)
    return [*clean, *copies] if settings.originals else copies


def each_augmented(
    clean: Sequence[Example], settings: MBTSAD, seed: int, resources: AugmentResources
) -> dict[str, list[Example]]:
    """One copy of each clean row by each of AUGMENTERS, D_aug's first; without a language model contextual is left
    out."""
    return {name: augmented(clean, replace(settings, augment=name, k=1, originals=False), seed, resources)
            for name in AUGMENTERS if name != "contextual" or resources.mlm is not None}


@torch.inference_mode()
def mean_loss(model: torch.nn.Module, tokenizer: Tokenizer, rows: Sequence[Example], batch_size: int = 128) -> float:
    """Eq. MBTSAD (8), its expectation, as in (9): mean over `rows` of -log p(y | x), in nats, without dropout."""
    if not rows:
        raise BadInput("there are no rows to compute a mean loss on: give at least one")
    model.eval()
    device, encoded = next(model.parameters()).device, tokenizer.encode(rows)
    return sum(cross_entropy(model, tokenizer.batch(encoded, which).to(device))["cls"].double().sum().item()
               for which in in_order(encoded.lengths, batch_size)) / len(encoded)


def perturbation(
    victim: Checkpoint, clean: Sequence[Example], settings: MBTSAD, seed: int, resources: AugmentResources
) -> dict[str, float]:
    """Eq. MBTSAD (9): E over D_c of CE(f_B(a(x)), y) for each augmenter a, in nats, at equal budgets; a* has the
    highest."""
    copies = each_augmented(clean, replace(settings, budget="equal"), seed, resources)
    return {name: mean_loss(victim.model, victim.tokenizer, rows) for name, rows in copies.items()}


# ---- lines 2 to 6

def retrain(
    victim: Checkpoint, d_aug: Encoded, settings: MBTSAD, *, validation: Examples | None = None, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Line 2 of Algorithm 1: the teacher, a copy of `victim` retrained on D_aug under `attention_dropout`."""
    settings = settings.resolved(victim.model.config.hidden)
    teacher = checkpoint.copy(victim)
    with attention_dropout(teacher.model, settings.attention_dropout):
        fit(
            teacher.model, victim.tokenizer, d_aug, cross_entropy, settings.schedule(1, len(d_aug)), seed=seed,
            dtype=dtype, log=log, name="TS-FT", score=best_on(victim.tokenizer, validation), on_choice=on_choice,
        )
    return teacher


def distil(
    victim: Checkpoint, teacher: Checkpoint, d_aug: Encoded, settings: MBTSAD, *, validation: Examples | None = None,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Lines 3 to 6 of Algorithm 1: the student, a copy of `victim` that learns from the frozen `teacher` on D_aug."""
    settings = settings.resolved(victim.model.config.hidden)
    student, schedule = checkpoint.copy(victim), settings.schedule(2, len(d_aug))
    want = [name for name, term in (("attn", "att"), ("hidden", "hid")) if settings.weights[term]]
    ask = taught_by(teacher, d_aug, want, settings, schedule, seed + 1)

    def loss(model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        if settings.variant == "released":  # it counts padding, which is laid out by the whole batch
            batch.check_whole("the released attention term")
        if not want:
            return distill_terms(model(batch), None, batch, settings)
        with torch.no_grad():
            taught = ask(batch)
        return distill_terms(model(batch, want), taught, batch, settings)

    quiet = nullcontext() if settings.student_dropout else without_dropout(student.model)
    with attention_dropout(student.model, settings.attention_dropout2), quiet, \
            cast_once(teacher.model, dtype, whole=True):
        fit(
            student.model, victim.tokenizer, d_aug, loss, schedule, seed=seed + 1,
            weights=settings.weights, dtype=dtype, log=log, name="MBTSAD",
            score=best_on(victim.tokenizer, validation), on_choice=on_choice,
        )
    return student


def taught_by(
    teacher: Checkpoint, d_aug: Encoded, want: Sequence[str], settings: MBTSAD, schedule: Schedule, seed: int
) -> Callable[[Batch], Output]:
    """What the teacher says of a batch, asked once for each text where that can be kept over the epochs
    (models/kept_outputs.py): one says so on stderr."""
    model = teacher.model
    plain = partial(model, want=want)
    # The released term reads padding. A text's bits hang on its neighbours in the fused attention that a pass without
    # maps takes.
    if "attn" not in want or schedule.epochs < 2 or settings.variant == "released":
        return plain
    if size() > 1:  # each would hold few of its next epoch's texts
        if leads() and isinstance(model.cache, int):
            print(f"MBTSAD: of {size()} processes none keeps the teacher's outputs: --cache is left aside",
                  file=sys.stderr)
        return plain
    most = room(model.cache, model.head_mask.device)
    outputs = KeptOutputs(
        model, teacher.tokenizer, d_aug, batches(d_aug.lengths, schedule.batch_size, seed, 0), want=want, most=most,
        sums=partial(over_heads, p=settings.p)) if most else None
    # auto goes by the memory that is free, which must change no bit on any machine: it keeps all of it or nothing.
    if not outputs or not outputs.bytes or model.cache == "auto" and outputs.bytes < outputs.needed:
        return plain
    print(f"MBTSAD: of {len(outputs.number)} of {outputs.texts} texts the teacher's outputs are kept over "
          f"{schedule.epochs} epochs: {outputs.bytes / 2 ** 20:.0f} MiB of {outputs.needed / 2 ** 20:.0f} (--cache "
          f"{'auto: ' if model.cache == 'auto' else ''}up to {most / 2 ** 20:.0f})", file=sys.stderr)
    return outputs


def mbtsad(
    victim: Checkpoint, clean: Sequence[Example], settings: MBTSAD = MBTSAD(), *, validation: Examples | None = None,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None, resources: AugmentResources | None = None,
) -> Checkpoint:
    """Algorithm 1. Returns the student (without distillation the teacher), a new checkpoint; `victim` stays as it was.

    validation: rows by which the best epoch of both trainings is kept; without them, the last (the paper does not say).
    log: see train.fit. on_stage: called with "TS-FT" and the teacher, then "MBTSAD" and the student, and the seconds
    each step took. on_choice: called, where `augment` is auto, with "losses" (those of Eq. (9), by augmenter) and
    "augmenter"; with `validation`, also with "best_epoch", that of the result. The history has the first two.
    resources: None loads what `settings` names.
    """
    settings, auto = settings.resolved(victim.model.config.hidden), {}
    started = time.perf_counter()
    resources = resources or resources_of(settings, next(victim.model.parameters()).device, dtype)
    if settings.augment == "auto":
        losses = once(log, "losses", lambda: perturbation(victim, clean, settings, seed, resources))
        settings = replace(settings, augment=max(losses, key=losses.get))
        auto = {"chosen_by": "auto", "losses": losses}
        if on_choice is not None:
            on_choice("losses", losses)
            on_choice("augmenter", settings.augment)
    check_classes(clean, "MBTSAD")
    texts = once(log, "copies", lambda: [(x.text, x.pair) for x in augmented(clean, settings, seed, resources)])
    d_aug = victim.tokenizer.encode([replace(x, text=text, pair=pair) for x, (text, pair) in zip(cycle(clean), texts)])
    training = {"validation": validation, "seed": seed, "dtype": dtype, "log": log}
    teacher = retrain(victim, d_aug, settings, **training, on_choice=None if settings.distil else on_choice)
    if on_stage is not None:
        on_stage("TS-FT", teacher, time.perf_counter() - started)

    started, cleaned = time.perf_counter(), teacher
    if settings.distil:
        cleaned = distil(victim, teacher, d_aug, settings, **training, on_choice=on_choice)
        if on_stage is not None:
            on_stage("MBTSAD", cleaned, time.perf_counter() - started)
    cleaned.history.append({
        "mitigation": "mbtsad", "clean_rows": len(clean), "validation_rows": len(validation or ()), "seed": seed,
        **asdict(settings), **auto,
    })
    return cleaned
