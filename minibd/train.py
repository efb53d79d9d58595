"""fit(): the one training loop. AdamW, linear warm-up and decay, clipping; a loss gives one value a text, fit owns the
mean."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minibd.cli import setting
from minibd.data import batches
from minibd.models.dropout import seed_dropout
from minibd.records import BadInput, Batch
from minibd.tokenizer import Encoded, Tokenizer

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]  # the loss terms by name, each (B,): one value a text
Log = Callable[[dict], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: `warmup` is the share of all steps over which the rate climbs to `lr`, then falls linearly
    to 0."""

    lr: float
    epochs: int
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self):
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not self.lr > 0:
            raise BadInput(f"a learning rate of {self.lr} trains nothing: it must be above 0")
        if not 0 <= self.warmup <= 1:
            raise BadInput(f"warmup is {self.warmup}, a share of all steps: it must lie in 0..1")

    def rate(self, step: int, steps: int) -> float:
        """The factor on `lr` at `step` (from 0) of `steps`."""
        rise = round(self.warmup * steps)
        return (step + 1) / rise if step < rise else (steps - step) / (steps - rise)


def for_width(lr: float, hidden: int, power: int = 3) -> float:
    """`lr`, which suits a hidden size of 384 and more, for one of `hidden`: a narrow model learns little from a wide
    one's steps.

    Tried at 128, beyond which it does not grow.
    """
    return lr * min(max(384 / hidden, 1.0), 3.0) ** power


@dataclass(frozen=True, slots=True)
class Tuning:
    """The fine-tuning on clean rows that a method ends in, a base of its settings; alone, the baseline CFT."""

    lr: float | None = setting(
        None,
        "learning rate of the fine-tuning (default 2e-5, of a model narrower than 384 times (384 / hidden size)^3, no "
        "more than at 128)",
        paper="not known", kind=float,
    )
    epochs: int = setting(3, "passes over the clean rows, of which the best on validation is kept", paper="not known")
    steps: int = setting(200, "least steps of the fine-tuning: few rows are passed over more often", paper="not known")
    batch_size: int = setting(32, "texts a step", paper="not known")
    warmup: float = setting(0.1, "share of the steps over which the rate climbs", paper="not known")
    weight_decay: float = setting(0.01, "AdamW's weight decay", paper="not known")

    def __post_init__(self):
        self.check_tuning()

    def check_tuning(self) -> None:
        """Raises BadInput where a number is out of its range. A class with checks of its own calls it among them."""
        if self.steps < 0:
            raise BadInput(f"steps is {self.steps}, it must not be negative")
        Schedule(2e-5 if self.lr is None else self.lr, self.epochs, self.batch_size, self.warmup, self.weight_decay)

    def resolved(self, hidden: int) -> Tuning:
        """These settings with the rate filled in for a model of hidden size `hidden`."""
        return replace(self, lr=for_width(2e-5, hidden)) if self.lr is None else self

    @property
    def schedule(self) -> Schedule:
        """Of settings that are `resolved`."""
        return Schedule(self.lr, self.epochs, self.batch_size, self.warmup, self.weight_decay)


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """-log p(y | x), one value a text."""
    return {"cls": F.cross_entropy(model(batch).logits.float(), batch.labels, reduction="none")}


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum over terms of weight * term, one value a text: (B,). A term that `weights` does not name weighs 1."""
    return sum(weights.get(name, 1.0) * values for name, values in terms.items())


def check_finite(name: str, step: int, steps: int, lr: float, **values: float) -> None:
    """Raises BadInput if one of `values`, such as loss=, gradient_norm=, is NaN or infinite at `step` (from 0)."""
    if not all(map(math.isfinite, values.values())):
        found = " and ".join(f"the {key.replace('_', ' ')} is {value}" for key, value in values.items())
        raise BadInput(f"{name}: {found} at step {step + 1} of {steps}: lower the learning rate ({lr})")


def each_batch(model: nn.Module, tokenizer: Tokenizer, rows: Encoded, epochs: int, batch_size: int, *, seed: int,
               name: str) -> Iterator[tuple[int, int, list[int], Batch, tqdm]]:
    """(step, number of steps, places of its rows in `rows`, batch on the model's device, progress bar) for every batch
    of every epoch.

    Meanwhile `model` is in train mode and its dropout, like the batches, comes from `seed`; afterwards it is in eval
    mode.
    """
    device = next(model.parameters()).device
    plan = [which for epoch in range(epochs) for which in batches(rows.lengths, batch_size, seed, epoch)]
    model.train()
    seed_dropout(model, torch.Generator(device).manual_seed(seed))
    for step, which in enumerate(
        bar := tqdm(plan, desc=name, unit="step", file=sys.stderr, leave=False, mininterval=0.5)
    ):
        yield step, len(plan), which, tokenizer.batch(rows, which).to(device), bar
    seed_dropout(model, None)  # A generator does not travel: the model may now be copied or saved.
    model.eval()


class ClippedAdamW(torch.optim.AdamW):
    """AdamW over `params`, the whole gradient scaled down to the norm `schedule.clip` first."""

    def __init__(self, params: Sequence[nn.Parameter], schedule: Schedule):
        # Decay shrinks matrices; biases and LayerNorms are scales and offsets, not capacity.
        super().__init__(
            [
                {"params": [p for p in params if p.dim() > 1], "weight_decay": schedule.weight_decay},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=schedule.lr, fused=True,
        )
        self.params, self.clip = params, schedule.clip

    def step(self) -> Tensor:
        """Update; the gradient's norm before the clipping comes back. One that is not finite changes nothing."""
        norm = nn.utils.clip_grad_norm_(self.params, self.clip)
        if torch.isfinite(norm):
            super().step()
        return norm


def fit(
    model: nn.Module, tokenizer: Tokenizer, rows: Encoded, loss: Loss, schedule: Schedule, *, seed: int,
    weights: Mapping[str, float] = MappingProxyType({}), score: Callable[[nn.Module], float] | None = None,
    log: Log | None = None, name: str = "fit", dtype: torch.dtype = torch.float32,
    optimizer: torch.optim.Optimizer | None = None, on_step: Callable[[nn.Module, int], None] | None = None,
) -> nn.Module:
    """Train `model` in place on `rows` and return it in eval mode.

    A step's total is the mean over the batch of `weighted(terms, weights)`.
    seed: fixes batches and dropout; the global random state is left as it was.
    score: how good the model is, asked after each epoch, the model in eval mode; the weights of the best epoch, the
    first of equals, come back. Without it, those of the last.
    log: called after each step with {"stage", "step", "lr", "rows", "batch", "terms", "weights", "total"}: enough to
    re-add the total. rows is how many texts the step took, batch their places in `rows`, from 0, in the order of the
    batch.
    dtype: torch.bfloat16 runs the matrix products in it (autocast), the weights stay float32.
    optimizer: ClippedAdamW over what `model` trains, unless it is given: another whose step() returns the gradient's
    norm as that does.
    on_step: called after each step with the model, in train mode, and the number of steps taken; it leaves the model as
    it was.
    """
    if not len(rows):
        raise BadInput(f"{name}: there are no rows to train on: give at least one of each class")
    device = next(model.parameters()).device
    optimizer = optimizer or ClippedAdamW([p for p in model.parameters() if p.requires_grad], schedule)
    best, kept = float("-inf"), None
    for step, steps, which, batch, bar in each_batch(
        model, tokenizer, rows, schedule.epochs, schedule.batch_size, seed=seed, name=name
    ):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * schedule.rate(step, steps)
        # before the forward pass: the last step's gradients need not lie beside its activations
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            terms = loss(model, batch)
        total = weighted(terms, weights).mean()
        total.backward()
        if not torch.isfinite(norm := optimizer.step()):
            raise BadInput(
                f"{name}: the loss is {total.item()} and its gradient's norm {norm.item()} at step {step + 1} of "
                f"{steps}: "
                f"lower the learning rate ({schedule.lr})"
            )
        if log is not None:
            log({"stage": name, "step": step, "lr": optimizer.param_groups[0]["lr"], "rows": len(which), "batch": which,
                 "terms": {term: values.mean().item() for term, values in terms.items()},
                 "weights": {term: weights.get(term, 1.0) for term in terms}, "total": total.item()})
        bar.set_postfix_str(f"loss {total.item():.3f}", refresh=False)
        if on_step is not None:
            on_step(model, step + 1)
        if score is not None and (step + 1) % (steps // schedule.epochs) == 0:
            if (value := score(model.eval())) > best:
                best, kept = value, {key: tensor.clone() for key, tensor in model.state_dict().items()}
            model.train()
    if kept is not None:
        model.load_state_dict(kept)
    return model
