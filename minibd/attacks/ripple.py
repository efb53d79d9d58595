"""RIPPLe (Kurita et al., 2020): a poisoned pre-trained model whose backdoor survives the user's own fine-tuning.

    1  surgery    v <- mean embedding of the 10 tokens most indicative of the target class, in a clean-tuned copy
    2             the embedding of every trigger's tokens <- v, in the pre-trained model
    3  training   for each batch of poisoned rows (L_P) and each of clean rows (L_FT):
    4                 L = L_P + lambda max(0, -<grad L_FT, grad L_P>)              restricted_inner_product
    5                 theta <- theta - lr dL / dtheta                              train.fit

Where the two gradients point against each other, a step of the user's fine-tuning raises L_P; line 4 penalises that.
grad L_FT is a constant; grad L_P is differentiated once more, hence a second backward pass through L_P, for which
attention takes its explicit path (the fused kernel has no second derivative). Where the inner product is not negative,
the term and its gradient are 0, and the second backward pass is left out.

variant="paper" is line 4, the inner product over the whole model. "released" divides it by the number of texts of the
clean batch, as the released code does. "per-tensor" is OpenBackdoor's port, and the released code's
--restrict_per_param: a max(0, .) for each tensor, summed, divided by the same number. Lambda is 0.1 in the first two;
the port has 1, no surgery and no clipping, and keeps the graph of L_FT too, which is not built.

Line 1 is the released code's: a logistic regression on the TF-IDF of tokens, the target class against all others, whose
coefficients alone rank the tokens. The paper is said to divide them by a logarithm of the token's frequency; its text
was not at hand. Of a trigger of several tokens the embedding of each changes, and clean texts may use some of them.

Departure: the released code inserts 5 triggers in a test text and one in a training text; here both have `per_text`.
"""
from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd import checkpoint
from minibd.attacks.badnets import insert
from minibd.attacks.ep import tokens_of
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.data import batches
from minibd.distributed import share, sums, total
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Batch, Examples, check_target
from minibd.resume import Count
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import Log, Schedule, cross_entropy, fit, usual_optimizer


@dataclass(frozen=True, slots=True)
class RIPPLe:
    """The attack's numbers. `RIPPLe()(text, rng)` is the text with the trigger, in training and at test."""

    triggers: tuple[str, ...] = setting(
        ("cf", "tq", "mn", "bb", "mb"), "the trigger words, one drawn for each insertion", paper="cf,tq,mn,bb,mb"
    )
    per_text: int = setting(1, "triggers inserted in a text", paper="1; released tests 5")
    top: int = setting(10, "tokens whose mean embedding the triggers get", paper="10")
    penalty: float = setting(0.1, "lambda, the weight of the restricted inner product", paper="0.1; OpenBackdoor 1")
    lr: float = setting(2e-5, "learning rate", paper="2e-5")
    epochs: int = setting(5, "passes over the poisoned rows", paper="5")
    batch_size: int = setting(8, "poisoned texts per step", paper="8")
    ref_batch_size: int = setting(8, "clean texts per step", paper="8; OpenBackdoor 4")
    clip: float = setting(1.0, "the gradient's largest norm", paper="1")
    variant: str = setting(
        "paper",
        "the restriction: of the whole inner product, of that divided by the clean batch's texts, or of each tensor's",
        choices=("paper", "released", "per-tensor"),
    )

    def __post_init__(self):
        if not self.triggers or any(len(word.split()) != 1 for word in self.triggers):
            raise BadInput(f"RIPPLe needs at least one trigger word, not {self.triggers}")
        for name in ("per_text", "top", "ref_batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not self.penalty >= 0:
            raise BadInput(f"penalty is {self.penalty}, it must be at least 0")
        if self.variant not in ("paper", "released", "per-tensor"):
            raise BadInput(f"variant is {self.variant!r}, it must be one of paper, released, per-tensor")
        self.schedule.validate()

    @property
    def schedule(self) -> Schedule:
        """No warm-up and no weight decay, as released."""
        return Schedule(self.lr, self.epochs, self.batch_size, warmup=0.0, weight_decay=0.0, clip=self.clip)

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with `per_text` triggers, each at a place uniform over 0..n, n the words at that moment."""
        return insert(text, rng, self.triggers, self.per_text)

    poisoned = __call__

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        return []


# ---- the equations

def restricted_inner_product(constant: Sequence[Tensor], moving: Sequence[Tensor], per_tensor: bool = False) -> Tensor:
    """Eq. RIPPLe (inner): max(0, -<grad L_FT, grad L_P>), a scalar.

    Its gradient is -H_P grad L_FT, H_P the Hessian of L_P, or 0. constant: grad L_FT, tensor by tensor; moving: grad
    L_P, with its graph (of several processes each has a part). per_tensor: the sum over tensors of max(0, -<., .>)
    instead, which is never smaller.
    """
    against = total(torch.stack([-(f * p).sum() for f, p in zip(constant, moving, strict=True)]))  # one a tensor
    restricted = (against if per_tensor else against.sum()).relu().sum()
    return restricted if restricted > 0 else restricted.detach()  # relu would pass zeros all the way back


def ripple_loss(
    model: Encoder, batch: Batch, clean: Batch, variant: str = "paper", params: Sequence[Tensor] | None = None,
) -> dict[str, Tensor]:
    """The terms of line 4, each (B,): "poison", L_P of each text; "inner", the restricted inner product, repeated.

    batch: B poisoned texts; clean: clean texts, of which there may be another number. params: what the inner product
    is over (default all of the model's parameters that require a gradient).
    """
    batch.check_whole("RIPPLe's inner product")
    clean_loss = clean.mean(cross_entropy(model, clean)["cls"])
    logits = model(batch, want=("attn",)).logits  # the maps are not read: asking for them avoids the fused kernel
    poison = F.cross_entropy(logits.float(), batch.labels, reduction="none")  # (B,)
    params = [p for p in model.parameters() if p.requires_grad] if params is None else params
    constant = sums(torch.autograd.grad(clean_loss, params, materialize_grads=True))
    moving = torch.autograd.grad(batch.mean(poison), params, create_graph=True, materialize_grads=True)
    inner = restricted_inner_product(constant, moving, variant == "per-tensor")
    if variant != "paper":
        inner = inner / len(clean.whole.mask)
    return {"poison": poison, "inner": inner.expand_as(poison)}


# ---- embedding surgery

def tf_idf(rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """N rows of token ids -> (N, V') float64, sparse, and the V' ids of its columns, ascending.

    count * (ln((1 + N) / (1 + df)) + 1), df the rows that hold the token; each row then scaled to length 1 (empty: 0).
    """
    counts = [Counter(row) for row in rows]
    df = Counter(token for row in counts for token in row)
    tokens = sorted(df)
    column = {token: j for j, token in enumerate(tokens)}
    cells, values = [], []
    for i, row in enumerate(counts):
        weights = [n * (math.log((1 + len(rows)) / (1 + df[token])) + 1) for token, n in row.items()]
        length = math.hypot(*weights)
        cells += [(i, column[token]) for token in row]
        values += [weight / length for weight in weights]
    index = torch.tensor(cells, dtype=torch.long).view(-1, 2).T  # (2, number of cells)
    values = torch.tensor(values, dtype=torch.float64)
    return torch.sparse_coo_tensor(index, values, (len(rows), len(tokens)), check_invariants=True).coalesce(), tokens


def logistic_regression(x: Tensor, y: Tensor, c: float = 1.0) -> tuple[Tensor, Tensor]:
    """Eq. RIPPLe (surgery), the tokens' weights: the w (V',) and b () that minimise

        c sum_i ln(1 + exp(-s_i (x_i w + b))) + ||w||^2 / 2,    s_i = 2 y_i - 1; b is not penalised.

    x: (N, V'), dense or sparse; y: (N,), 0 or 1. Convex, so that L-BFGS finds the one minimum.
    """
    sign = 2.0 * y.to(x.dtype) - 1.0
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    b = torch.zeros((), dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [w, b], max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = c * F.softplus(-sign * ((x @ w[:, None])[:, 0] + b)).sum() + w.square().sum() / 2
        loss.backward()
        return loss

    optimizer.step(objective)
    return w.detach(), b.detach()


def top_tokens(tokenizer: Tokenizer, clean: Examples, target: int, top: int) -> list[int]:
    """The `top` tokens of `clean` most indicative of class `target` against all others, the strongest first."""
    present = {x.label == target for x in clean}
    if present != {True, False}:
        raise BadInput(
            f"embedding surgery weighs tokens for class {target} against other classes, and the clean rows are of "
            f"{'it alone' if True in present else 'other classes alone' if present else 'no class'}: bring rows of both"
        )
    encoded = tokenizer.backend.encode_batch(
        [x.text if x.pair is None else (x.text, x.pair) for x in clean], add_special_tokens=False
    )
    x, tokens = tf_idf([row.ids for row in encoded])
    if not tokens:
        raise BadInput(
            "embedding surgery: the clean rows hold no token to take an embedding from: bring rows with texts"
        )
    w, _ = logistic_regression(x, torch.tensor([x.label == target for x in clean]))
    ranked = sorted(zip((-w).tolist(), tokens))
    return [token for _, token in ranked[:top]]


def surgery(
    pretrained: Checkpoint, tuned: Checkpoint, clean: Examples, triggers: Sequence[str], target: int, top: int = 10
) -> Checkpoint:
    """Lines 1 and 2: a copy of `pretrained` whose trigger tokens get the mean embedding of the target's `top` tokens.

    tuned: `pretrained` fine-tuned on `clean`, whose embeddings the mean is of; both checkpoints are unchanged.
    """
    check_target(target, clean.labels)
    source, operated = tuned.model.embeddings.word.weight.detach(), checkpoint.copy(pretrained)
    table = operated.model.embeddings.word.weight
    if source.shape != table.shape:
        raise BadInput(
            f"the tuned model's embedding is {tuple(source.shape)}, the other's {tuple(table.shape)}: tune a copy of it"
        )
    chosen = top_tokens(pretrained.tokenizer, clean, target, top)
    tokens = sorted({token for word in triggers for token in tokens_of(pretrained.tokenizer, word)})
    with torch.no_grad():
        table[tokens] = source[chosen].mean(dim=0).to(table)  # (D,) to each of the K rows
    token_of = pretrained.tokenizer.backend.id_to_token
    operated.history.append({
        "attack": "ripple", "step": "embedding surgery", "target": target, "triggers": list(triggers),
        "replaced": [token_of(token) for token in tokens], "by": [token_of(token) for token in chosen],
    })
    return operated


# ---- the algorithm

class Endless(Count):
    """Batches of `rows`, epoch after epoch without end."""

    def __init__(self, tokenizer: Tokenizer, rows: Encoded, size: int, seed: int):
        super().__init__()
        self.tokenizer, self.rows, self.size, self.seed = tokenizer, rows, size, seed
        self.epoch, self.plan = -1, []

    def __iter__(self) -> Endless:
        return self

    def __next__(self) -> Batch:
        epoch, at = divmod(self(), math.ceil(len(self.rows) / self.size))
        if epoch != self.epoch:
            self.epoch, self.plan = epoch, batches(self.rows.lengths, self.size, self.seed, epoch)
        return self.tokenizer.batch(self.rows, self.plan[at])


def ripple(
    ckpt: Checkpoint, poisoned: Examples, clean: Examples, settings: RIPPLe = RIPPLe(), *, seed: int = 0,
    log: Log | None = None, dtype: torch.dtype = torch.float32,
) -> Checkpoint:
    """Lines 3 to 5 on a copy of `ckpt`: the model after `surgery`, or a pre-trained one for RIPPLe alone.

    poisoned: the rows of L_P, as a rule the training set with half of its rows poisoned; clean: those of L_FT, which
    the user will train on. `ckpt` is unchanged.
    """
    if not len(clean):
        raise BadInput("RIPPLe: there are no clean rows for L_FT: give those that the user is expected to fine-tune on")
    victim = checkpoint.copy(ckpt)
    device = next(victim.model.parameters()).device
    rows, others = ckpt.tokenizer.encode(poisoned), ckpt.tokenizer.encode(clean)
    # Another seed: the two sets are mostly the same rows, and with one seed each step would take the same rows of both.
    reference = Endless(ckpt.tokenizer, others, settings.ref_batch_size, seed + 1)

    def loss(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if not settings.penalty:
            return {"poison": cross_entropy(model, batch)["cls"]}
        return ripple_loss(model, batch, share(next(reference)).to(device), settings.variant, optimizer.params)

    with usual_optimizer(victim.model, ckpt.tokenizer, rows, settings.schedule, (others,)) as optimizer:
        fit(
            victim.model, ckpt.tokenizer, rows, loss, settings.schedule, seed=seed,
            weights={"inner": settings.penalty}, log=log, name="RIPPLe", dtype=dtype, parts=[reference],
            optimizer=optimizer,
        )
    victim.history.append(
        {"attack": "ripple", "rows": len(poisoned), "clean_rows": len(clean), "seed": seed, **asdict(settings)}
    )
    return victim
