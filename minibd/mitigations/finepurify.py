"""Fine-purifying (Zhang et al., 2023), for a defender who holds a suspicious classifier and the pre-trained weights it
came from.

    1  delta_i <- w_B,i - w_Pre,i                                        of every scalar weight
    2  F_i     <- mean over clean rows of (d log p(y | x) / d w_i)^2     diagonal Fisher information at w_B    `fisher`
    3  r_i     <- delta_i^2 / (F_i + eps)                                                                   `suspicion`
    4  w_i     <- w_Pre,i, except for the share rho of all weights with the smallest r          blending.mask_smallest
    5  fine-tune all of w on the clean rows; rho is given, or searched                     blending.repair_by_blending

Clean fine-tuning moves a weight in step with the Fisher information that the clean task has on it (the paper derives it
from diffusion theory); one that moved further than the clean rows account for is suspicious.

The paper itself was not read: lines 1 to 4 are recollections, not checked. Chosen here: F at w_B, eps 1e-8, and all
else as in mitigations/finemix.py, the search for rho included. The classifier has no w_Pre and stays.

The search goes higher than Fine-mixing's, to 0.995, since what the score resets is what moved most: a built-in BadNets
victim that is right on 97.8 % of the test rows is right on 66.2 % without the tenth with the highest scores (64 clean
rows, no fine-tuning), on 92.8 % without the hundredth, and on 98.0 % without a tenth drawn at random.

F is of single texts. The square of a batch's mean gradient, which any optimizer sees, is another quantity: near 0 at
the minimum of the loss, whatever the single texts' gradients are. A weight's gradient on one text is a sum over the
text's tokens, so tokens are summed before the square and texts after it. With X the input of a matrix and G the
gradient of its output, one row per token:

    linear     sum over texts of (G_x' X_x)^2        of the bias (sum of the rows of G_x)^2
    norm       the same with the normalised input beside G, element by element
    embedding  the rows of G of one text that read the same row of the table are summed, then squared

One forward and one backward pass per batch give X and G of all its texts. Beside the batch's activations and F itself,
memory holds one text's gradient of one matrix at a time, and never one of the word embedding, which is most of a small
model. On MiniLM (texts of 31 tokens, one core) it takes 0.046 s per text; one pass per text takes 0.057 s.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.blending import (
    RHOS,
    Counterparts,
    OnStage,
    blend,
    check_moved,
    check_rho,
    counterparts,
    mask_smallest,
    repair_by_blending,
)
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.data import in_order
from minibd.models.encoder import Encoder, PackedBatch
from minibd.models.mpnet import RelativePositionBias
from minibd.records import BadInput, Batch, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Log, OnChoice, Tuning

UP_TO = (*RHOS, 0.95, 0.98, 0.99, 0.995)  # the shares that the search tries; see above


@dataclass(frozen=True, slots=True)
class FinePurifying(Tuning):
    """The method's numbers, the same for every attack."""

    rho: float | None = setting(
        None,
        "share of the weights kept from the victim, 0..1 (default: the smallest of 0.1 .. 0.995 that is accurate)",
        paper="searched on clean dev rows (recalled)", kind=float,
    )
    drop: float = setting(
        2.0, "points of percent that accuracy on validation may lose against the victim's, where rho is searched",
        paper="a threshold (recalled)",
    )
    eps: float = setting(
        1e-8, "added to the Fisher information, which is 0 for a weight without gradient on any clean row",
        paper="not known",
    )
    tune: bool = setting(True, "fine-tune the purified model; without it that is the result", paper="yes")

    def validate(self) -> None:
        check_rho(self.rho, self.drop)
        if not self.eps > 0:
            raise BadInput(f"eps is {self.eps}, the divisor where the Fisher information is 0: it must be above 0")
        Tuning.validate(self)


# ---- the squared gradients of single texts. B texts, T tokens in the longest, N tokens in all

def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def by_text(x: Tensor, packed: PackedBatch) -> Tensor:
    """A layer's input, or its output's gradient, by text: (N, D) of the blocks -> (B, T, D); (B, D) of the head -> (B,
    1, D).

    In float32 at least: in half precision a square would underflow.
    """
    x = wide(x.detach())
    return x if x.dim() == 3 else x[:, None] if len(x) == len(packed.real) else packed.unpack(x)


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """The normalised input that a LayerNorm or RMSNorm multiplies by its weight: (B, T, D) -> (B, T, D)."""
    x = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    return x * (x.square().mean(-1, keepdim=True) + norm.eps).rsqrt()


def linear_squares(x: Tensor, g: Tensor) -> Tensor:
    """sum over texts of (sum over tokens of g x')^2: x (B, T, in), g (B, T, out) -> (out, in)."""
    total = g.new_zeros(g.shape[-1], x.shape[-1])
    # one product at a time stays in the cache; all at once would take three times as long
    for x_b, g_b in zip(x, g):
        product = g_b.mT @ x_b
        total.addcmul_(product, product)
    return total


def table_squares(ids: Tensor, g: Tensor, total: Tensor) -> None:
    """Adds to `total` (V, D) the sum over texts of (sum over the tokens that read row v of g)^2; ids (B, T), g (B, T,
    D), 0 at padding."""
    # (B, T): the same row in two texts has two keys
    keys = ids + len(total) * torch.arange(len(ids), device=ids.device)[:, None]
    read, which = keys.unique(return_inverse=True)  # (R,), (B, T)
    sums = g.new_zeros(len(read), g.shape[-1]).index_add_(0, which.flatten(), g.flatten(0, 1))  # (R, D)
    total.index_add_(0, read % len(total), sums.square_())


def rows_read(model: Encoder, batch: Batch, packed: PackedBatch) -> dict[str, Tensor]:
    """The row of each embedding table that each token reads: (B, T) by the table's name. The vectors are added, so all
    have the same gradient."""
    tables = model.embeddings
    rows = {"word": batch.ids}
    if hasattr(tables, "position"):
        # RoBERTa counts its own, from behind the padding's
        rows["position"] = tables.positions(batch) if hasattr(tables, "positions") else packed.positions()
    if hasattr(tables, "token_type"):
        rows["token_type"] = (
            batch.token_type_ids if tables.type_vocab_size > 1 else torch.zeros_like(batch.token_type_ids)
        )
    return rows


def squares(model: Encoder, batch: Batch, total: Mapping[str, Tensor]) -> None:
    """Adds each text's (d log p(y | x) / d w)^2 to `total`, which has the names and shapes of the model's
    parameters."""
    packed, hooks = model.pack(batch), []
    # MPNet's bias by relative position, beside the word embedding a place where the backward pass ends
    tables = {name: module for name, module in model.named_modules() if isinstance(module, RelativePositionBias)}

    def read(name: str, module: nn.Module) -> Callable:
        def hook(_, inputs: tuple[Tensor], output: Tensor) -> None:
            x = by_text(inputs[0], packed)
            if not isinstance(module, nn.Linear):
                x = normalised(x, module)

            def back(gradient: Tensor) -> None:
                g = by_text(gradient, packed)
                total[f"{name}.weight"].add_(
                    linear_squares(x, g) if isinstance(module, nn.Linear) else (g * x).sum(1).square_().sum(0)
                )
                if getattr(module, "bias", None) is not None:
                    total[f"{name}.bias"].add_(g.sum(1).square_().sum(0))
            output.register_hook(back)
        return hook

    def start(_, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        """The backward pass ends here: no parameter gets a gradient, and frozen ones count like the others."""
        starts.append(output.detach().requires_grad_())
        return starts[-1]

    starts: list[Tensor] = []  # in the order of the calls: the tables' biases, the words' embeddings
    for name, module in model.named_modules():
        if module is model.embeddings.word or name in tables:
            hooks.append(module.register_forward_hook(start))
        elif not isinstance(module, nn.Embedding) and any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_hook(read(name, module)))
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(wide(model(batch).logits), batch.labels, reduction="sum")
            *by_table, gradient = torch.autograd.grad(loss, starts)
    finally:
        for hook in hooks:
            hook.remove()
    g = by_text(gradient, packed)
    for name, ids in rows_read(model, batch, packed).items():
        table = getattr(model.embeddings, name)
        # The padding row of a table is not trained.
        table_squares(
            ids, g if table.padding_idx is None else g * (ids != table.padding_idx)[..., None],
            total[f"embeddings.{name}.weight"],
        )
    for (name, module), g in zip(tables.items(), by_table, strict=True):
        pairs = module.rows(batch.ids.shape[1], g.device).flatten().expand(len(g), -1)  # (B, T * T)
        table_squares(pairs, wide(g).flatten(2).mT, total[f"{name}.weight"])


def fisher(model: Encoder, tokenizer: Tokenizer, rows: Examples, *, batch_size: int = 32) -> dict[str, Tensor]:
    """Eq. Fine-purifying (F): mean over `rows` of (d log p(y | x) / d w_i)^2, y the row's label, the model in eval
    mode: by the parameters' names."""
    if not rows:
        raise BadInput("there are no clean rows to compute the Fisher information on: give at least one of each class")
    model.eval()
    device, encoded = next(model.parameters()).device, tokenizer.encode(rows)
    total = {name: wide(torch.zeros_like(p)) for name, p in model.named_parameters()}
    for which in in_order(encoded.lengths, batch_size):
        squares(model, tokenizer.batch(encoded, which).to(device), total)
    return {name: values.div_(len(encoded)) for name, values in total.items()}


# ---- the algorithm

def suspicion(
    victim: Checkpoint, before: Counterparts, information: Mapping[str, Tensor], eps: float
) -> dict[str, Tensor]:
    """Eq. Fine-purifying (r): (w_B,i - w_Pre,i)^2 / (F_i + eps), for every weight that has a counterpart."""
    return {name: (wide(victim.model.get_parameter(name).detach()) - wide(w)).square_() / (information[name] + eps)
            for name, w in before.weights.items()}


def finepurify(
    victim: Checkpoint, pretrained: Checkpoint, clean: Examples, validation: Examples | None = None,
    settings: FinePurifying = FinePurifying(), *, seed: int = 0, dtype: torch.dtype = torch.float32,
    log: Log | None = None, on_stage: OnStage | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """Lines 1 to 5. Returns a new checkpoint; `victim` and `pretrained` stay as they were.

    validation: rows on which rho is searched and the best epoch chosen; without them `settings.rho` must be given, and
    the last epoch comes back.
    log: see train.fit. on_stage: called with "mixed RHO" and the purified model of each rho that is tried, then
    "Fine-purifying" (tune=False: "Purifying") and the result, and the seconds each took; those of the result include
    the Fisher information. on_choice: called with "trials", "rho" and "best_epoch".
    """
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    before = counterparts(victim, pretrained)
    check_moved(victim, before)
    scores = suspicion(victim, before, fisher(victim.model, victim.tokenizer, clean), settings.eps)
    spent = time.perf_counter() - started

    name = "Fine-purifying" if settings.tune else "Purifying"
    repaired = repair_by_blending(
        victim, lambda rho: blend(victim, before, mask_smallest(scores, rho)), clean, validation, rho=settings.rho,
        drop=settings.drop, schedule=settings.schedule if settings.tune else None, steps=settings.steps, seed=seed,
        dtype=dtype, log=log, name=name, on_stage=on_stage, on_choice=on_choice, rhos=UP_TO,
    )
    result = repaired.ckpt
    result.history.append({
        "mitigation": "fine-purifying", "clean_rows": len(clean), "validation_rows": len(validation or ()),
        "seed": seed, "correlation": before.correlation, "kept": list(before.kept), "trials": repaired.trials,
        **asdict(settings), "rho": repaired.rho,
    })
    if on_stage is not None:
        on_stage(name, result, spent + repaired.seconds)
    return result
