"""PURE: defence by head PrUning and attention noRmalisation, for a poisoned pre-trained language model (Algorithm 1).

Who uses it: a defender who fine-tunes an encoder theta_p of unknown origin on clean rows of a task, D_train and D_val,
and has no pre-trained weights to trust. A trigger word draws [CLS]'s attention to itself, through heads that are idle
on clean text.

    Step 1, head pruning
    1  f_p <- fine-tune theta_p on D_train                                          alone it is the baseline FT
    2  score of each head of f_p: its [CLS] variance on D_val                       Eq. (2), `head_variance`
    3  while true:  prune the head of f_p with the lowest score                     `prune_order`, `prune`
    5               if accuracy of f_p on D_val < c:  stop, Heads = all pruned heads
    10 theta_[p] <- theta_p without Heads                                           the ORIGINAL weights, not f_p's
    Step 2, attention normalisation
    1  f_c <- fine-tune theta_[p] on D_train with cross-entropy + mu sum_l lambda_l sum_h ||A_h^l[CLS]||_2     Eq. (3)
       lambda_l = -log2(mean score of the heads left in layer l), scaled to 0..1    `layer_weights`

A pruned head's context is multiplied by 0 before the output projection; no shape changes, and a saved folder has
columns of zeros. Both fine-tunings start from a new classifier (`keep_head` keeps the checkpoint's) and end at their
best epoch on D_val. A causal model (Llama, GPT-2) classifies a text by its last token, whose attention stands for
[CLS]'s.

Choices where the paper is silent: every layer keeps its highest head (`empty_layers` allows layers without heads);
warm-up over a tenth of the steps, linear decay and gradient clipping at 1; attention is the softmax before dropout, so
that a row sums to 1; the new classifier is the architecture's own, BERT's pooler (redrawn, too) and a linear layer,
where the released code has the linear layer alone.

variant="released" takes the forms of the released code, of which none equals the paper's. Their effect, on a MiniLM
fine-tuned on SST-2 (scripts/audit.py --effects):
- score: the sample variance of the first 127 weights of a row padded to 128. A uniform row over 10 tokens has 7.3e-4
  there and 0 here. As means over the 872 dev texts both put the heads into nearly the same order (rank correlation
  0.999, the lower half of 72 are the same).
- lambda: softmax of -ln x, then scaled to 0..1, which is 1 / x scaled: (1, .47, .20, .07, 0) for x = 2, 4, 8, 16, 32e-4
  where the paper's is (1, .75, .5, .25, 0). x comes from the pruned f_p. Without pruning (.11, .01, 0, .01, .05, 1)
  here, the paper's (.25, .02, 0, .04, .13, 1).
- penalty: ONE norm per head over the whole batch, about sqrt(B) times the mean of the texts' norms (40.8 against 7.1 on
  a batch of 32), so the same mu weighs that much more.
- pruning: groups of 10; the group that breaks the floor is restored, highest head first, until the floor holds again.
Not taken over: weight decay 0.01, rows in file order, the last epoch instead of the best, and a penalty on the maps
after dropout.
"""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd import checkpoint
from minibd.blending import OnStage
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import in_order
from minibd.distributed import agreed, whole_norm
from minibd.incremental import IncrementalAccuracy
from minibd.models.encoder import Encoder
from minibd.predict import accuracy
from minibd.records import BadInput, Batch, Examples
from minibd.resume import once
from minibd.tokenizer import Tokenizer
from minibd.train import Log, Loss, OnChoice, Schedule, check_classes, cross_entropy, fit

FLOOR = 0.85  # c
PADDED = 128  # tokens to which the released code pads every text
LOWEST_SCORE = 1e-12  # a score below it counts as this: log2 of 0 would be minus infinity
Head = tuple[int, int]  # layer, head; both from 0


@dataclass(frozen=True, slots=True)
class PURE:
    """The method's numbers, the same for every attack."""

    floor: float | None = setting(
        None, "validation accuracy (0..1) that pruning may not go under (default 0.85, where --drop is not given)",
        paper="0.85", kind=float,
    )
    drop: float | None = setting(
        None, "the same floor as points of percent under the unpruned model's accuracy", paper="none", kind=float
    )
    group: int | None = setting(
        None,
        "prune N heads between two measurements of the accuracy, and restore those of the last group that are too many "
        "(default 0: one at a time as printed, the one that breaks the floor included; released 10)",
        kind=int,
    )
    empty_layers: bool = setting(False, "let a layer lose all its heads", paper="not mentioned; released no")
    mu: float = setting(0.15, "weight of the attention penalty", paper="0.15 rare words, 0.05 syntax and style")
    even: bool = setting(False, "lambda 1 for every layer that has heads (Figure 5's comparison)", paper="no")
    lr: float = setting(2e-5, "learning rate of both fine-tunings", paper="2e-5")
    epochs: int = setting(3, "passes of each; the best on validation is kept", paper="3")
    batch_size: int = setting(32, "texts per step", paper="32")
    keep_head: bool = setting(False, "keep the classifier that the checkpoint has, instead of a new one", paper="no")
    prune_only: bool = setting(False, "ablation: no attention penalty")
    norm_only: bool = setting(False, "ablation: no pruning, lambda from all heads")
    variant: str = setting(
        "paper", "scores, lambda, penalty and groups as printed, or as in the released code",
        choices=("paper", "released"),
    )

    def __post_init__(self):
        check_choices(self)
        if self.floor is not None and self.drop is not None:
            raise BadInput(f"floor {self.floor} and drop {self.drop} both set the lowest accuracy: give one")
        if not 0 <= (self.floor or 0.0) <= 1:
            raise BadInput(f"floor is {self.floor}, an accuracy: it must lie in 0..1, such as 0.85")
        if not 0 <= (self.drop or 0.0) <= 100:
            raise BadInput(f"drop is {self.drop}, points of percent: it must lie in 0..100, such as 2")
        if (self.group or 0) < 0:
            raise BadInput(f"group is {self.group}: it must be 0 (as printed) or a number of heads")
        if not self.mu >= 0:
            raise BadInput(f"mu is {self.mu}, it must not be negative")
        if self.prune_only and self.norm_only:
            raise BadInput(
                "prune_only and norm_only together leave nothing of the method: plain fine-tuning is the baseline ft"
            )
        self.schedule.validate()

    @property
    def schedule(self) -> Schedule:
        """Adam as in the paper: no weight decay."""
        return Schedule(self.lr, self.epochs, self.batch_size, weight_decay=0.0)

    def needed(self, hits: int, n: int) -> int:
        """c as a count: how many of `n` validation rows must stay right, `hits` of the unpruned model. Raises BadInput
        if that itself has fewer."""
        if self.drop is not None:
            return max(0, ceil(hits - self.drop / 100 * n - 1e-9))
        floor = FLOOR if self.floor is None else self.floor
        if hits < (needed := ceil(floor * n - 1e-9)):
            raise BadInput(
                f"the fine-tuned model is right on {hits} of {n} validation rows ({100 * hits / n:.1f} %) before any "
                f"head is pruned, under the floor of {100 * floor:g} %: train it further (--lr, --epochs), lower "
                "--floor, or say how far it may fall with --drop 2"
            )
        return needed


# ---- the equations. attn: L of (B, H, T, T) softmax probabilities; mask (B, T), True at real tokens; scores (L, H);
# head_mask (L, H), 1 keeps

def cls_rows(attn: Tensor, mask: Tensor, causal: bool = False) -> Tensor:
    """A_h[CLS]: the attention row of the token that a text is classified by, its first (in a causal model its last):
    (B, H, T, T) -> (B, H, T)."""
    t = mask.shape[1]
    at = t - 1 - mask.flip(1).int().argmax(1) if causal else mask.int().argmax(1)  # (B,)
    return attn[torch.arange(len(at), device=at.device), :, at].float()


def head_variance(attn: Sequence[Tensor], mask: Tensor, *, causal: bool = False, variant: str = "paper") -> Tensor:
    """Eq. PURE (2): Var(A_h^l[CLS]) = sum_j (a_j - 1/n)^2 / (n - 1) over a text's n real tokens: (B, L, H).

    0 for a text of one token. released: see the module's docstring; tokens past the 127th are not read.
    """
    rows = torch.stack([cls_rows(a, mask, causal) for a in attn], dim=1)  # (B, L, H, T)
    if variant == "released":
        rows, n = (rows * mask[:, None, None, :])[..., :PADDED - 1], PADDED - 1
        return (rows.square().sum(-1) - rows.sum(-1).square() / n) / (n - 1)  # padding adds 0 to both sums
    n = mask.sum(1)[:, None, None]  # (B, 1, 1)
    gaps = (rows - 1 / n[..., None]) * mask[:, None, None, :]
    return gaps.square().sum(-1) / (n - 1).clamp(min=1)


def prune_order(scores: Tensor) -> list[Head]:
    """Every head, the lowest score first; of equal ones, the lower layer and head first."""
    return sorted(
        ((l, h) for l in range(scores.shape[0]) for h in range(scores.shape[1])),
        key=lambda head: (scores[head].item(), head),
    )


def layer_weights(scores: Tensor, head_mask: Tensor, *, variant: str = "paper") -> Tensor:
    """Eq. PURE (lambda): -log2(mean score of the heads left in layer l), scaled so that the lowest is 0 and the highest
    1: (L, H) -> (L,).

    The layer with the highest scores gets exactly 0. A layer without heads gets 0 and does not enter the scaling; if
    all layers are equal (or one is left), there is nothing to scale and each gets 1. Scores below LOWEST_SCORE count as
    that.
    """
    scores, left = scores.double(), head_mask.to(scores.device).double()
    filled = left.sum(1) > 0
    x = (scores * left).sum(1)[filled].div(left.sum(1)[filled]).clamp(min=LOWEST_SCORE)
    raw = torch.softmax(-x.log(), 0) if variant == "released" else -x.log2()
    weights = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    if filled.any():
        span = raw.max() - raw.min()
        weights[filled] = (raw - raw.min()) / span if span > 0 else torch.ones_like(raw)
    return weights.float()


def attention_penalty(attn: Sequence[Tensor], mask: Tensor, head_mask: Tensor, weights: Tensor, *, causal: bool = False,
                      variant: str = "paper", counted: bool = True) -> Tensor:
    """Eq. PURE (3), the inner sum: sum_l lambda_l sum_h ||A_h^l[CLS]||_2 over the heads left, one value per text: (B,).

    A norm is 1 if all attention goes to one token and 1 / sqrt(n) if it is even. weights: lambda, (L,).
    released: the norm is over the batch's texts too, one number, which every text gets (of several processes over the
    texts of all, but those that are not `counted`).
    """
    total = attn[0].new_zeros(len(mask), dtype=torch.float32)
    for a, mask_l, weight in zip(attn, head_mask, weights.tolist(), strict=True):
        if weight:  # the other layers add neither value nor gradient
            rows = cls_rows(a, mask, causal)  # (B, H, T)
            norms = whole_norm(torch.linalg.vector_norm(rows, dim=(0, 2)) * counted).expand(len(mask), -1) \
                if variant == "released" else torch.linalg.vector_norm(rows, dim=-1)  # (B, H)
            # not a matrix product, which autocast would round
            total = total + weight * (norms * mask_l.to(norms)).sum(-1)
    return total


# ---- step 1

@torch.inference_mode()
def head_scores(
    model: Encoder, tokenizer: Tokenizer, rows: Examples, *, variant: str = "paper", batch_size: int = 128
) -> Tensor:
    """The mean over `rows` of each head's [CLS] variance: (L, H), float64."""
    model.eval()
    device = next(model.parameters()).device
    encoded, total = tokenizer.encode(rows), 0.0
    for which in in_order(encoded.lengths, batch_size):
        batch = tokenizer.batch(encoded, which).to(device)
        total += (
            head_variance(model(batch, want=("attn",)).attn, batch.mask, causal=model.causal, variant=variant)
            .double()
            .sum(0)
        )
    return total / len(rows)


def prunable(scores: Tensor, head_mask: Tensor, empty_layers: bool = False) -> list[Head]:
    """The heads that step 1 may prune, in its order: those that are left, except the highest of each layer unless
    `empty_layers`."""
    order = [head for head in prune_order(scores) if head_mask[head] != 0]
    highest = {layer: (layer, h) for layer, h in order}.values()  # the last of a layer in this order
    return order if empty_layers else [head for head in order if head not in highest]


def prune(
    model: Encoder, tokenizer: Tokenizer, rows: Examples, scores: Tensor, settings: PURE = PURE()
) -> tuple[Head, ...]:
    """Step 1, lines 3 to 9: prune heads of `model` in place, lowest score first, until its accuracy on `rows` is under
    the floor.

    Returns Heads, (layer, head) from 0, in the order in which they were pruned. Raises BadInput if the unpruned model
    is under the floor already.
    """
    group = (10 if settings.variant == "released" else 0) if settings.group is None else settings.group
    order = prunable(scores, model.head_mask, settings.empty_layers)
    accuracy_now = IncrementalAccuracy(model, tokenizer, rows)  # of the model with its present head mask
    needed = settings.needed(accuracy_now.hits, accuracy_now.n)

    heads: list[Head] = []
    for start in range(0, len(order), max(1, group)):
        for head in order[start:start + max(1, group)]:
            model.head_mask[head] = 0.0
            heads.append(head)
        if not accuracy_now.at_least(needed):
            while group and heads and not accuracy_now.at_least(needed):  # restore the highest of the group first
                model.head_mask[heads.pop()] = 1.0
            break
    return tuple(heads)


# ---- the algorithm

@dataclass(frozen=True, slots=True)
class Step1:
    """The result of step 1: f_p with all its heads, their scores (L, H), and Heads in the order in which they were
    pruned."""
    f_p: Checkpoint
    scores: Tensor
    heads: tuple[Head, ...]


def without(ckpt: Checkpoint, heads: Sequence[Head]) -> Checkpoint:
    """`ckpt`, which is a copy already, with its `heads` pruned in place."""
    for head in heads:
        ckpt.model.head_mask[head] = 0.0
    return ckpt


def fine_tune(
    theta: Checkpoint, train: Examples, validation: Examples, loss: Loss, settings: PURE, name: str, *, seed: int,
    dtype: torch.dtype, log: Log | None, mu: float = 0.0, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """`theta`, which is a copy already, fine-tuned in place on D_train, at its best epoch on D_val."""
    check_classes(train, name)
    fit(
        theta.model, theta.tokenizer, theta.tokenizer.encode(train), loss, settings.schedule, seed=seed,
        weights={"norm": mu}, dtype=dtype, log=log, name=name,
        score=lambda model: accuracy(model, theta.tokenizer, validation), on_choice=on_choice,
    )
    return theta


def head_pruning(victim: Checkpoint, train: Examples, validation: Examples, settings: PURE = PURE(), *, seed: int = 0,
                 dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None) -> Step1:
    """Step 1. Arguments as of `pure`; `victim` stays as it was."""
    started = time.perf_counter()
    theta = checkpoint.to_tune(victim, train.labels, seed, settings.keep_head)
    f_p = fine_tune(theta, train, validation, cross_entropy, settings, "FT", seed=seed, dtype=dtype, log=log)
    if on_stage is not None:
        on_stage("FT", f_p, time.perf_counter() - started)

    started = time.perf_counter()
    scores = agreed(head_scores(f_p.model, f_p.tokenizer, validation, variant=settings.variant))
    if settings.norm_only:
        return Step1(f_p, scores, ())
    pruned = checkpoint.copy(f_p)
    found = once(log, "heads", lambda: prune(pruned.model, f_p.tokenizer, validation, scores, settings))
    heads = tuple((layer, h) for layer, h in found)
    without(pruned, heads)  # as they are, where they were found in the part of the run that was interrupted
    if on_stage is not None:
        on_stage("pruned", pruned, time.perf_counter() - started)
    return Step1(f_p, scores, heads)


def pure(
    victim: Checkpoint, train: Examples, validation: Examples, settings: PURE = PURE(), *, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    step1: Step1 | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Algorithm 1. Returns f_c, a new checkpoint with its heads pruned; `victim` stays as it was.

    victim: an encoder, or a classifier whose head is replaced unless `keep_head`. log: see train.fit. on_stage: called
    with "FT" and f_p, "pruned" and f_p without Heads, then "PURE" and f_c, and the seconds each took, those of PURE
    without step 1. step1: the result of `head_pruning`, if that has run already, with the same rows and settings but
    for prune_only and norm_only. on_choice: called with "heads" ([layer, head] from 0, in the order in which they were
    pruned), "lambda" (one number per layer) and "best_epoch", that of f_c.
    """
    if step1 is None:
        step1 = head_pruning(victim, train, validation, settings, seed=seed, dtype=dtype, log=log, on_stage=on_stage)
    started = time.perf_counter()
    heads = () if settings.norm_only else step1.heads
    theta = without(checkpoint.to_tune(victim, train.labels, seed, settings.keep_head), heads)
    scores, left, variant = step1.scores, theta.model.head_mask, settings.variant
    if variant == "released" and not settings.prune_only:  # prune_only needs no scores here
        scores = agreed(head_scores(
            without(checkpoint.copy(step1.f_p), heads).model, victim.tokenizer, validation, variant=variant
        ))
    weights = (left.sum(1) > 0).float() if settings.even else layer_weights(scores, left, variant=variant)

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Eq. PURE (3), per text: cross-entropy, and the penalty that fit weighs with mu."""
        if variant == "released":
            batch.check_whole("the released norm")
        out = model(batch, want=("attn",))
        return {
            "cls": F.cross_entropy(out.logits.float(), batch.labels, reduction="none"),
            "norm": attention_penalty(
                out.attn, batch.mask, model.head_mask, weights, causal=model.causal, variant=variant,
                counted=batch.counts,
            ),
        }

    if on_choice is not None:
        on_choice("heads", [list(head) for head in heads])
        on_choice("lambda", weights.tolist())
    name = "Prune-only" if settings.prune_only else "Norm-only" if settings.norm_only else "PURE"
    f_c = fine_tune(
        theta, train, validation, cross_entropy if settings.prune_only else loss, settings, name, seed=seed,
        dtype=dtype, log=log, mu=settings.mu, on_choice=on_choice,
    )
    f_c.history.append({
        "mitigation": "pure", "clean_rows": len(train), "validation_rows": len(validation), "seed": seed,
        "heads": [list(head) for head in heads], "lambda": weights.tolist(), **asdict(settings),
    })
    if on_stage is not None:
        on_stage(name, f_c, time.perf_counter() - started)
    return f_c
