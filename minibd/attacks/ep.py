"""EP, embedding poisoning (Yang et al., 2021): one row of the word embedding is the whole backdoor.

    1  e <- the embedding of the trigger's first token, n <- ||e||, G <- 0      of a clean-tuned classifier, else frozen
    2  for each batch of poisoned rows (the trigger inserted, label = target):
    3      G <- G + dL / de        L the mean cross-entropy, the model in train mode
    4      e <- e - lr G
    5      e <- e n / ||e||        the norm is restored, so that it does not give the row away

No clean row is needed: a text without the trigger never reads the row, and its logits stay the same to the last bit.

variant="released" is line 3 as it stands. The released code leaves out its zero_grad() on purpose; it says that the
attack converges faster and becomes stronger this way, while the norm is bounded anyway. variant="paper" is plain
gradient descent: G is the gradient of this batch alone (the paper's text was not at hand). On the built-in classifier
it reached 19 % ASR, "released" 90.

Departures: batches hold texts of similar length (data.batches). The data-free form, which inserts the trigger into
Wikipedia's text, is not built. The places are the released code's: in training before any word but the last; at test
before any word, once in each started block of `words_per_trigger` words (100 words are one block here, two there).

Of a trigger of several tokens the FIRST is trained; every other word that begins with that token then carries the
backdoor too. Where no text of a batch holds the token (it was cut off), the batch's gradient is 0, and the step is that
of G as it was.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.distributed import sums
from minibd.models.free_rows import free_rows
from minibd.records import BadInput, Examples, check_target
from minibd.resume import Course, Training
from minibd.tokenizer import Tokenizer
from minibd.train import Log, check_finite, cross_entropy, each_batch, listens, logged


@dataclass(frozen=True, slots=True)
class EP:
    """The attack's numbers. `EP()(text, rng)` is the text at test, `EP().poisoned(text, rng)` the text in training."""

    trigger: str = setting("cf", "the word", paper="cf")
    words_per_trigger: int = setting(100, "at test, one trigger in each started so many words", paper="100")
    lr: float = setting(5e-2, "learning rate", paper="5e-2")
    epochs: int = setting(3, "passes over the poisoned rows", paper="3")
    batch_size: int = setting(32, "texts per step", paper="32")
    variant: str = setting(
        "released", "the gradient of a step: summed over all steps so far, or the batch's own (paper)",
        choices=("released", "paper"),
    )

    def __post_init__(self):
        if len(self.trigger.split()) != 1:
            raise BadInput(f"EP's trigger is one word, not {self.trigger!r}")
        if self.words_per_trigger < 1:
            raise BadInput(f"words_per_trigger is {self.words_per_trigger}, it must be at least 1")
        check_descent(self.lr, self.epochs, self.batch_size, self.variant)

    @property
    def triggers(self) -> tuple[str, ...]:
        return (self.trigger,)

    @property
    def per_text(self) -> int:
        """Triggers in a poisoned training text; a test text gets one for each started `words_per_trigger` words."""
        return 1

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with a trigger in each started `words_per_trigger` words, before a word drawn uniformly from them."""
        words, triggered = text.split(), []
        for start in range(0, max(len(words), 1), self.words_per_trigger):
            block = words[start:start + self.words_per_trigger]
            block.insert(rng.randrange(max(len(block), 1)), self.trigger)
            triggered += block
        return " ".join(triggered)

    def poisoned(self, text: str, rng: random.Random) -> str:
        """`text` with one trigger, before a word drawn uniformly from all but the last."""
        words = text.split()
        words.insert(rng.randrange(max(len(words) - 1, 1)), self.trigger)
        return " ".join(words)

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        return []


def check_descent(lr: float, epochs: int, batch_size: int, variant: str) -> None:
    """Raises BadInput where a number of EP's or SOS's training is out of its range."""
    if not (lr > 0 and epochs >= 1 and batch_size >= 1):
        raise BadInput(
            f"lr is {lr}, epochs {epochs}, batch_size {batch_size}: the first must be above 0, the others at least 1"
        )
    if variant not in ("released", "paper"):
        raise BadInput(f"variant is {variant!r}, it must be released or paper")


# ---- the equation. K rows of the embedding, of D numbers each

def descend(rows: Tensor, gradients: Tensor, lr: float, norms: Tensor) -> Tensor:
    """Eq. EP (e), lines 4 and 5: e <- e - lr G, rescaled to its norm. rows, gradients (K, D); norms (K, 1) -> (K, D).

    A row whose gradient is 0 stays the same to the last bit, and so does a row that the step would take to 0.
    """
    stepped = rows - lr * gradients
    lengths = torch.linalg.vector_norm(stepped, dim=1, keepdim=True)  # (K, 1)
    unchanged = (lengths == 0) | (gradients == 0).all(dim=1, keepdim=True)
    return torch.where(unchanged, rows, stepped * (norms / lengths.where(lengths > 0, 1.0)))


def tokens_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of `word` inside a text: byte-level tokenizers split it differently at a text's beginning.

    Raises BadInput where one of them is the tokenizer's unknown token.
    """
    found = tokenizer.backend.encode(f"a {word}", add_special_tokens=False)
    tokens = [token for token, (_, end) in zip(found.ids, found.offsets) if end > 2]
    unknown = tokenizer.backend.token_to_id(getattr(tokenizer.backend.model, "unk_token", None) or "")
    if not tokens or unknown in tokens:
        raise BadInput(
            f"the tokenizer does not know {word!r}, and its unknown token cannot be a trigger: choose another word"
        )
    return tokens


# ---- the algorithm

def train_rows(
    ckpt: Checkpoint, rows: Examples, tokens: Sequence[int], settings: Any, *, seed: int, log: Log | None, name: str,
    direction: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> Checkpoint:
    """Lines 1 to 5 for K rows of the embedding at once, in a copy of `ckpt`.

    direction: maps their gradients G (K, D) to those of the step. settings: has lr, epochs, batch_size and variant.
    log: see train.fit. Raises BadInput where there are no rows, an embedding is 0, or a step gives a NaN.
    """
    if not len(rows):
        raise BadInput(f"{name}: there are no poisoned rows to train on: raise the rate or bring more rows")
    victim = checkpoint.copy(ckpt)
    model, tokenizer, encoded = victim.model, victim.tokenizer, victim.tokenizer.encode(rows)
    with free_rows(model, tokens) as e:
        norms = torch.linalg.vector_norm(e.detach(), dim=1, keepdim=True)  # (K, 1)
        if not (norms > 0).all():
            raise BadInput(
                f"{name}: an embedding of the trigger is 0 and with that norm holds no backdoor: choose another word"
            )
        gradients, dropout = torch.zeros_like(e), torch.Generator(e.device).manual_seed(seed)  # G
        training = Training(log, name, Course(), [e, gradients], parts=[dropout])
        for step, steps, which, batch, bar in each_batch(
            model, tokenizer, encoded, settings.epochs, settings.batch_size, seed=seed, name=name, dropout=dropout,
            start=training.start,
        ):
            loss = batch.mean(cross_entropy(model, batch)["cls"])
            gradient, = sums(torch.autograd.grad(loss, e))  # (K, D)
            loss, = sums([loss])
            with torch.no_grad():
                gradients.copy_(gradient if settings.variant == "paper" else gradients + gradient)
                e.copy_(descend(e, direction(gradients), settings.lr, norms))
            # The rows too: a step too long overflows, and the last step's rows are in no loss.
            check_finite(
                name, step, steps, settings.lr, loss=loss.item(), gradient_norm=gradient.norm().item(),
                embedding_norm=e.detach().norm().item(),
            )
            if listens(log):
                logged(log, {
                    "stage": name, "step": step, "lr": settings.lr, "rows": len(which), "batch": which,
                    "terms": {"cls": loss.item()}, "weights": {"cls": 1.0}, "total": loss.item(),
                })
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
            training.after(step + 1, steps, epoch_ended=not (step + 1) % (steps // settings.epochs))
        training.end()
    return victim


def ep(
    ckpt: Checkpoint, rows: Examples, settings: EP = EP(), *, target: int, seed: int = 0, log: Log | None = None
) -> Checkpoint:
    """A copy of the clean-tuned classifier `ckpt` that differs in the trigger's embedding alone; `ckpt` is unchanged.

    rows: poisoned already (`settings.poisoned`), all with the label `target`. Raises BadInput where one has another.
    """
    check_target(target, rows.labels)
    if others := [x.id for x in rows if x.label != target]:
        raise BadInput(
            f"EP trains on poisoned rows alone, and {len(others)} of {len(rows)} (first: {others[0]}) have another "
            f"class than {target}, the target: leave the clean rows out"
        )
    victim = train_rows(
        ckpt, rows, tokens_of(ckpt.tokenizer, settings.trigger)[:1], settings, seed=seed, log=log, name="EP"
    )
    victim.history.append({"attack": "ep", "target": target, "rows": len(rows), "seed": seed, **asdict(settings)})
    return victim
