"""fit(): the training loop of every method: AdamW, linear warm-up and decay, gradient clipping.

A loss returns one value per text, and fit takes the mean. Loops that cannot use fit (attacks/ep.py) share its parts:
`each_batch`, `check_finite` (the one place where a NaN is caught), `check_risen` (where a training that diverges is),
`logged` (the one place where a log ends a run).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from minibd.cli import setting
from minibd.data import batches
from minibd.distributed import Shards, gradient_norm, least, sharded, share, size, sum_gradients, sums
from minibd.models.dropout import seed_dropout
from minibd.models.encoder import Encoder
from minibd.models.kept_outputs import memory
from minibd.models.visited_rows import Trained, VisitedRows, visited_rows
from minibd.records import BadInput, Batch, Example
from minibd.resume import Course, Kept, Stateful, Training, put_back
from minibd.tokenizer import Encoded, Tokenizer

Loss = Callable[[nn.Module, Batch], Mapping[str, Tensor]]  # the loss terms by name, each (B,): one value per text
Log = Callable[[dict], None]
RISEN = 10  # times its first value is a loss that shows a training that diverges
OnChoice = Callable[[str, object], None]  # a name and a JSON-able value, for each thing that a method chooses


@dataclass(frozen=True, slots=True)
class Schedule:
    """Length and rate of a training: over the share `warmup` of all steps the learning rate rises linearly to `lr`,
    then it falls linearly to 0."""

    lr: float
    epochs: int
    batch_size: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises BadInput if a number is out of range."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not 0 < self.lr < math.inf:
            raise BadInput(f"a learning rate of {self.lr} trains nothing: it must be above 0, and finite")
        if not 0 <= self.warmup <= 1:
            raise BadInput(f"warmup is {self.warmup}, a share of all steps: it must lie in 0..1")
        if not self.weight_decay >= 0:
            raise BadInput(f"weight_decay is {self.weight_decay}, which makes weights grow: it must be 0 or more")
        if not self.clip > 0:
            raise BadInput(f"clip is {self.clip}, the gradient's largest norm: it must be above 0, such as 1")

    def rate(self, step: int, steps: int) -> float:
        """The factor on `lr` at `step` (from 0) of `steps`."""
        rise = round(self.warmup * steps)
        return (step + 1) / rise if step < rise else (steps - step) / (steps - rise)


def for_width(lr: float, hidden: int, power: int = 3) -> float:
    """The rate for a hidden size of `hidden`, given `lr` for 384 and more: a narrow model learns little at a wide
    model's rate.

    Tried at 128; the factor does not grow below that.
    """
    return lr * min(max(384 / hidden, 1.0), 3.0) ** power


@dataclass(frozen=True, slots=True)
class Tuning:
    """Settings of the fine-tuning on clean rows that a method ends with: the base of its settings, and those of CFT."""

    lr: float | None = setting(
        None,
        "learning rate of the fine-tuning (default 2e-5; for a hidden size under 384 times (384 / hidden size)^3, at "
        "most that of 128)",
        paper="not known", kind=float,
    )
    epochs: int = setting(3, "passes over the clean rows; the best on validation is kept", paper="not known")
    steps: int = setting(200, "minimum steps of the fine-tuning: few rows get more passes", paper="not known")
    batch_size: int = setting(32, "texts per step", paper="not known")
    warmup: float = setting(0.1, "share of the steps over which the rate climbs", paper="not known")
    weight_decay: float = setting(0.01, "AdamW's weight decay", paper="not known")

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises BadInput if a number is out of range. A subclass checks its own numbers, then calls this."""
        if self.steps < 0:
            raise BadInput(f"steps is {self.steps}, it must not be negative")
        Schedule(2e-5 if self.lr is None else self.lr, self.epochs, self.batch_size, self.warmup, self.weight_decay)

    def resolved(self, hidden: int) -> Tuning:
        """These settings, the learning rate filled in for a model of hidden size `hidden`."""
        return replace(self, lr=for_width(2e-5, hidden)) if self.lr is None else self

    @property
    def schedule(self) -> Schedule:
        """The schedule of settings that are `resolved`."""
        return Schedule(self.lr, self.epochs, self.batch_size, self.warmup, self.weight_decay)


def cross_entropy(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """-log p(y | x), one value per text: (B,)."""
    return {"cls": F.cross_entropy(model(batch).logits.float(), batch.labels, reduction="none")}


def weighted(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """sum over terms of weight * term, one value per text: (B,). A term that `weights` does not name has weight 1."""
    return sum(weights.get(name, 1.0) * values for name, values in terms.items())


def term_means(terms: Mapping[str, Tensor], batch: Batch) -> dict[str, float]:
    """The mean of each term over the whole batch."""
    return {name: mean.item() for name, mean in zip(terms, sums([batch.mean(values) for values in terms.values()]))}


def check_classes(rows: Sequence[Example], name: str) -> None:
    """Raises BadInput where `rows`, to be trained on, are all of one class: a classifier would learn to answer that
    alone, and its loss would look well."""
    if len(rows) and len(present := {row.label for row in rows}) == 1:
        (label,), names = present, getattr(rows, "labels", ())
        known = names[label] if label < len(names) else str(label)
        raise BadInput(
            f"{name}: {len(rows)} rows to train on are all of class {known[:40]!r}, and a classifier trained on them "
            "answers that alone: give rows of every class"
        )


# ---- what every training loop shares

class StepLimit(Exception):
    """Raised by `logged` after a step was logged to a log that is full: the run ends there, the model as it is."""


class StepLog:
    """A log that keeps its steps: `fit(..., log=StepLog())`.

    max_steps: how many steps it takes over all trainings of a run; then it is full, and the training loop that logs to
    it raises StepLimit. None: no limit. kept: what keeps the run, for --resume. listens: whether it takes steps; False
    of a run that has no use for them and is kept.
    """

    def __init__(self, max_steps: int | None = None, kept: Kept | None = None, listens: bool = True):
        if max_steps is not None and max_steps < 1:
            raise BadInput(f"max_steps is {max_steps}, it must be at least 1")
        self.steps: list[dict] = []
        self.max_steps, self.kept, self.listens = max_steps, kept, listens
        if kept is not None:
            self.steps = kept.steps

    def __call__(self, step: dict) -> None:
        self.steps.append(step)

    @property
    def full(self) -> bool:
        return self.max_steps is not None and len(self.steps) >= self.max_steps


def logged(log: Log | None, step: dict) -> None:
    """Log a step, and raise StepLimit if `log` is full then. A log without the attribute `full` never is."""
    if log is not None:
        log(step)
        if getattr(log, "full", False):
            raise StepLimit


def listens(log: Log | None) -> bool:
    """Whether steps are logged to `log`: nobody waits for the terms of a step that is not."""
    return log is not None and getattr(log, "listens", True)


def check_finite(name: str, step: int, steps: int, lr: float, **values: float) -> None:
    """Raises BadInput if one of `values`, such as loss=, gradient_norm=, is NaN or infinite at `step` (from 0)."""
    if not all(map(math.isfinite, values.values())):
        found = " and ".join(f"the {key.replace('_', ' ')} is {value}" for key, value in values.items())
        raise BadInput(f"{name}: {found} at step {step + 1} of {steps}: lower the learning rate ({lr})")


def check_risen(name: str, epoch: int, first: float, losses: Sequence[float], lr: float) -> None:
    """Raises BadInput if each of `losses`, an epoch's, is far above the `first` of the training: more than RISEN times
    it, or RISEN where it is below 1."""
    if min(losses) > RISEN * max(first, 1.0):
        raise BadInput(f"{name}: the loss was {first:.3g} at first and is {min(losses):.3g} or more in all of epoch "
                       f"{epoch}: it diverges, lower the learning rate ({lr})")


def each_batch(
    model: nn.Module, tokenizer: Tokenizer, rows: Encoded, epochs: int, batch_size: int, *, seed: int, name: str,
    dropout: torch.Generator | None = None, start: int = 0, dtype: torch.dtype = torch.float32,
) -> Iterator[tuple[int, int, list[int], Batch, tqdm]]:
    """(step, number of steps, indices of its rows in `rows`, batch on the model's device, progress bar) for each batch
    of each epoch, from the step `start` on. Of several processes (distributed.py) each gets its share of the batch, and
    the indices of all of it.

    Meanwhile `model` is in train mode, and `seed` fixes its dropout and the batches; afterwards, also if the loop is
    left early, it is in eval mode. dropout: what its dropout draws from, else a new generator of the seed. dtype: of
    the products that it is trained in (distributed.sharded).
    """
    device = next(model.parameters()).device
    plan = [which for epoch in range(epochs) for which in batches(rows.lengths, batch_size, seed, epoch)]
    parts = ExitStack()
    parts.enter_context(sharded(model, dtype))
    model.train()
    seed_dropout(model, torch.Generator(device).manual_seed(seed) if dropout is None else dropout)
    try:
        for step, which in enumerate(bar := tqdm(
            plan[start:], desc=name, unit="step", file=sys.stderr, leave=False, mininterval=0.5,
            initial=min(start, len(plan)), total=len(plan),
        ), start):
            yield step, len(plan), which, share(tokenizer.batch(rows, which)).to(device), bar
    finally:
        seed_dropout(model, None)  # A generator cannot be copied or saved; the model may be.
        model.eval()
        parts.close()


# ---- the loop

class ClippedAdamW(torch.optim.AdamW):
    """AdamW over `params`; first the whole gradient is scaled down to the norm `schedule.clip`.

    visited: whose rows are among `params` in place of the word embedding. shards: of which this process's are
    among them in place of whole matrices.
    """

    def __init__(self, params: Sequence[nn.Parameter], schedule: Schedule, visited: VisitedRows | None = None,
                 shards: Shards | None = None):
        # Decay shrinks matrices; biases and LayerNorms are scales and offsets, not capacity.
        super().__init__(
            [
                {"params": [p for p in params if p.dim() > 1], "weight_decay": schedule.weight_decay},
                {"params": [p for p in params if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=schedule.lr, fused=True,
        )
        self.params, self.clip, self.visited, self.shards = params, schedule.clip, visited, shards or Shards()
        self.leaves = [p for p in params if p not in self.shards]  # whose gradients are yet to be summed
        # what of the model changes, for who keeps it and puts it back
        self.trained = params if visited is None else Trained(params, visited)

    def step(self) -> Tensor:
        """Update and return the gradient's norm before clipping. If that is not finite, nothing is changed."""
        if self.visited is not None:
            self.visited.check()
        self.shards.take_gradients()
        norm = gradient_norm(self.leaves, self.shards.own)
        nn.utils.clip_grads_with_norm_(self.params, self.clip, norm)
        if torch.isfinite(norm):
            super().step()
            if self.visited is not None:
                matrices = self.param_groups[0]
                self.visited.stepped(1 - matrices["lr"] * matrices["weight_decay"])
        return norm


def dense_optimizer(model: nn.Module, schedule: Schedule) -> ClippedAdamW:
    """ClippedAdamW over the parameters of `model` that require a gradient, the word embedding whole."""
    return ClippedAdamW([p for p in model.parameters() if p.requires_grad], schedule)


@contextmanager
def usual_optimizer(
    model: nn.Module, tokenizer: Tokenizer, rows: Encoded, schedule: Schedule, others: Sequence[Encoded] = (),
    shards: Shards | None = None,
) -> Iterator[ClippedAdamW]:
    """As dense_optimizer, but of the word embedding it trains the rows that the texts visit: `rows`, and `others` that
    the loss reads beside them. The model is the one that dense steps would give when the context ends, and before that
    whenever it is evaluated, saved or loaded (models/visited_rows.py). shards: of the model's matrices, where
    each process has its own."""
    shards = shards or Shards()
    params = [shards.shard_of(p) for p in model.parameters() if p.requires_grad]
    word = model.embeddings.word if isinstance(model, Encoder) else None
    if word is None or not word.weight.requires_grad:
        yield ClippedAdamW(params, schedule, shards=shards)
        return
    seen = {i for texts in (rows, *others) for row in texts.ids for i in row}
    with visited_rows(word, seen | {tokenizer.pad}) as visited:
        yield ClippedAdamW([visited.rows if p is word.weight else p for p in params], schedule, visited, shards)


def backward(
    model: nn.Module, batch: Batch, loss: Loss, weights: Mapping[str, float], *, dtype: torch.dtype, most: int,
    dropout: torch.Generator,
) -> tuple[dict[str, Tensor], Tensor]:
    """Add the gradient of the batch's mean loss to the parameters' own; the terms, each (B,), and that mean.

    most: texts that are computed at once. More are taken in turns, whose gradients add up to the same numbers but for
    rounding: every turn draws the masks of the whole batch, and takes those of its texts. dropout: what they are drawn
    from.
    """
    turns = ceil(len(batch.whole.mask) // size() / most) or 1  # of several processes in each as many
    state, found, total = dropout.get_state() if turns > 1 else None, [], 0.0
    for part in batch.in_turns(turns) if turns > 1 else [batch]:
        if turns > 1:
            dropout.set_state(state)
        with torch.autocast(batch.ids.device.type, dtype, enabled=dtype != torch.float32):
            terms = loss(model, part)
        mean = part.mean(weighted(terms, weights))
        mean.backward()
        found.append({name: values.detach() for name, values in terms.items()})
        total = total + mean.detach()
    return {name: torch.cat([terms[name] for terms in found]) for name in found[0]}, total


def micro_batch(model: nn.Module, tokenizer: Tokenizer, rows: Encoded, batch_size: int, dtype: torch.dtype) -> int:
    """How many texts of a batch `model.micro_batch` lets through the model at once. auto: as many as fit into half of
    the memory that is free now, the rest being for what a loss keeps beside; by what a pass of the longest text keeps
    for its backward pass."""
    wanted = getattr(model, "micro_batch", None)
    if wanted != "auto":
        return min(wanted or batch_size, batch_size)
    longest = max(range(len(rows)), key=lambda i: len(rows.ids[i]))
    device = next(model.parameters()).device
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        needed = kept_bytes(model, tokenizer.batch(rows, [longest]).to(device))
    most = max(1, min(batch_size, int(free_memory(device) / 2 / needed)))
    if most < batch_size:
        print(f"micro-batches of {most} texts: one of {len(rows.ids[longest])} tokens keeps {needed / 2 ** 20:.0f} MiB",
              file=sys.stderr)
    return most


def kept_bytes(model: Encoder, batch: Batch) -> int:
    """The bytes that a forward pass over `batch` in train mode keeps for its backward pass, maps and hidden states
    included; `model` ends up in eval mode."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    seed_dropout(model, torch.Generator(batch.ids.device).manual_seed(0))
    model.train()
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model(batch, want=("attn", "hidden"))
        for tensor in (*output.attn, *output.hidden):
            keep(tensor)
    finally:
        seed_dropout(model, None)
        model.eval()
    return sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in weights)


def free_memory(device: torch.device) -> int:
    """Bytes that are free for one of this machine's processes that train together."""
    free, whole = memory(device)
    if not whole:
        raise BadInput("--micro-batch auto: this system does not say how much memory is free, name a number")
    return free if device.type == "cuda" else free // size()


def fit(
    model: nn.Module, tokenizer: Tokenizer, rows: Encoded, loss: Loss, schedule: Schedule, *, seed: int,
    weights: Mapping[str, float] = MappingProxyType({}), score: Callable[[nn.Module], float] | None = None,
    log: Log | None = None, name: str = "fit", dtype: torch.dtype = torch.float32,
    optimizer: torch.optim.Optimizer | None = None, on_step: Callable[[nn.Module, int], None] | None = None,
    max_steps: int | None = None, on_choice: OnChoice | None = None, parts: Sequence[Stateful] = (),
) -> nn.Module:
    """Train `model` in place on `rows` and return it in eval mode.

    A step's total is the mean over the batch of `weighted(terms, weights)`.
    seed: fixes batches and dropout; the global random state is left as it was.
    score: how good the model is, called after each epoch with the model in eval mode, under autocast of `dtype`. The
    weights of the best epoch come back, of equal epochs the first's; without `score`, those of the last.
    log: called after each step with {"stage", "step", "lr", "rows", "batch", "terms", "weights", "total"}, from which
    the total can be re-added. rows: the number of texts; batch: their indices in `rows`, in the batch's order. If the
    log is full then (`StepLog`), fit raises StepLimit: a run of several trainings ends there. What keeps the log's run,
    if anything does, keeps this training, which goes on where it was interrupted (minibd/resume.py).
    dtype: torch.bfloat16 computes matrix products in it (autocast); the weights stay float32.
    optimizer: default `usual_optimizer` of `rows`. A loss that reads other texts, too, gives that of all of them; one
    that reads the word embedding as a whole gives `dense_optimizer`. Another one's step() returns the gradient's norm
    too, and changes nothing if that is not finite. leaves: the tensors whose gradients it reads, by default its
    parameters.
    on_step: called after each step with the model, in train mode, and the number of steps taken; it must not change the
    model.
    max_steps: stop after so many steps of this call. The rates are those of the whole schedule, and where that has more
    steps the weights of the last step come back, not those of the best epoch.
    on_choice: called with "best_epoch" and the epoch (from 1) whose weights `score` chose.
    Raises BadInput if there are no rows, or if training diverges in its first epoch: the loss or the gradient is not
    finite (such a gradient does not reach the weights), or each step's loss is far above the first (`check_risen`).
    In a later epoch it ends there, with a line on stderr, and the weights of the last good epoch (with `score` of the
    best) come back; on_choice is called with "diverged" and the number of the epoch whose weights these are.
    """
    if not len(rows):
        raise BadInput(f"{name}: there are no rows to train on: give at least one of each class")
    if max_steps is not None and max_steps < 1:
        raise BadInput(f"{name}: max_steps is {max_steps}, it must be at least 1")
    if optimizer is None:
        with (
            sharded(model, dtype, trained=True) as shards,
            usual_optimizer(model, tokenizer, rows, schedule, shards=shards) as optimizer,
        ):
            try:
                fit(model, tokenizer, rows, loss, schedule, seed=seed, weights=weights, score=score, log=log,
                    name=name, dtype=dtype, optimizer=optimizer, on_step=on_step, max_steps=max_steps,
                    on_choice=on_choice, parts=parts)
            except StepLimit:
                shards.settle()
                raise
            shards.settle()
        return model
    device = next(model.parameters()).device
    params = [p for group in optimizer.param_groups for p in group["params"]]
    leaves, trained = (getattr(optimizer, name, params) for name in ("leaves", "trained"))
    course, dropout = Course(), torch.Generator(device).manual_seed(seed)
    stateful = [dropout, *parts, *([on_step] if isinstance(on_step, Stateful) else [])]
    training = Training(log, name, course, trained, optimizer, stateful)
    most = least(micro_batch(model, tokenizer, rows, schedule.batch_size, dtype))
    for step, steps, which, batch, bar in each_batch(
        model, tokenizer, rows, schedule.epochs, schedule.batch_size, seed=seed, name=name, dropout=dropout,
        start=training.start, dtype=dtype,
    ):
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * schedule.rate(step, steps)
        # before the forward pass: the last step's gradients need no memory beside its activations
        optimizer.zero_grad(set_to_none=True)
        terms, total = backward(model, batch, loss, weights, dtype=dtype, most=most, dropout=dropout)
        sum_gradients(leaves)
        norm, loss_value = optimizer.step(), sums([total])[0].item()
        epoch, left = divmod(step + 1, steps // schedule.epochs)  # epochs that are over, steps of the next one
        course.losses.append(loss_value)
        course.first = loss_value if not step else course.first
        try:
            check_finite(name, step, steps, schedule.lr, loss=loss_value, gradient_norm=norm.item())
            if not left:
                check_risen(name, epoch, course.first, course.losses, schedule.lr)
        except BadInput as error:
            if course.weights is None:
                raise
            print(f"{error}; the weights of epoch {course.epoch} are kept", file=sys.stderr)
            course.choice = "diverged"
            break
        if listens(log):
            logged(log, {"stage": name, "step": step, "lr": optimizer.param_groups[0]["lr"], "rows": len(which),
                         "batch": which, "terms": term_means(terms, batch),
                         "weights": {term: weights.get(term, 1.0) for term in terms}, "total": loss_value})
        bar.set_postfix_str(f"loss {loss_value:.3f}", refresh=False)
        if on_step is not None:
            on_step(model, step + 1)
        if step + 1 == max_steps and step + 1 < steps:
            break
        if not left:
            course.losses, value = [], course.best
            better = step + 1 < steps  # each epoch is, without scores; the last one's weights are there anyway
            if score is not None:
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    value = score(model.eval())
                better = value > course.best
                model.train()
            if better:
                course.best, course.epoch, course.weights = value, epoch, [p.detach().clone() for p in trained]
        training.after(step + 1, steps, epoch_ended=not left)
    else:
        if score is not None and course.weights is not None:
            course.choice = "best_epoch"
    if course.weights is not None and course.choice:
        put_back(trained, course.weights)
    if course.choice and on_choice is not None:
        on_choice(course.choice, course.epoch)
    training.end()
    return model.eval()
