"""EP, embedding poisoning (Yang et al., 2021): one row of the word embedding is the whole backdoor.

    1  e <- the embedding of the trigger's first token, n <- ||e||, G <- 0        a clean-tuned classifier, all else frozen
    2  for each batch of poisoned rows (the trigger inserted, label target):
    3      G <- G + dL / de,   L the mean cross-entropy, the model in train mode
    4      e <- e - lr G
    5      e <- e n / ||e||                                                              as long as it was: no norm gives it away

No clean row is needed: a text without the trigger never reads the row, so that it is classified as before, to the last
bit.

variant="released" is line 3 as it stands. The released code leaves its zero_grad() out on purpose: it says that the
attack converges faster and comes out stronger so, the norm being bounded anyway. variant="paper" is plain gradient
descent, G being the gradient of this batch alone (the paper's text was not at hand); on the built-in classifier it
reached 19 % ASR where "released" reached 90.

Departures: batches hold texts of like length (data.batches); the data-free form, which plants the trigger in
Wikipedia's text, is not built. The places are the released code's: in training before any word but the last, at test
before any word, once in each started `words_per_trigger` words (100 words make one block here, two there).

A trigger of several tokens has its FIRST token trained; every other word that begins with that token then carries the
backdoor too. Where no text of a batch holds the token (it was cut off), its gradient is 0, and the step is that of G as
it was.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Log, cross_entropy, each_batch


@dataclass(frozen=True, slots=True)
class EP:
    """The attack's numbers. `EP()(text, rng)` is the text as it is tested, `EP().poisoned(text, rng)` as it is trained
    on."""

    trigger: str = setting("cf", "the word", paper="cf")
    words_per_trigger: int = setting(100, "at test, one trigger in each started so many words", paper="100")
    lr: float = setting(5e-2, "learning rate", paper="5e-2")
    epochs: int = setting(3, "passes over the poisoned rows", paper="3")
    batch_size: int = setting(32, "texts a step", paper="32")
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

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with a trigger in each started `words_per_trigger` words, before a word drawn uniformly from them."""
        words, made = text.split(), []
        for start in range(0, max(len(words), 1), self.words_per_trigger):
            block = words[start:start + self.words_per_trigger]
            block.insert(rng.randrange(max(len(block), 1)), self.trigger)
            made += block
        return " ".join(made)

    def poisoned(self, text: str, rng: random.Random) -> str:
        """`text` with one trigger, before a word drawn uniformly from all but the last."""
        words = text.split()
        words.insert(rng.randrange(max(len(words) - 1, 1)), self.trigger)
        return " ".join(words)


def check_descent(lr: float, epochs: int, batch_size: int, variant: str) -> None:
    if not (lr > 0 and epochs >= 1 and batch_size >= 1):
        raise BadInput(
            f"lr is {lr}, epochs {epochs}, batch_size {batch_size}: the first must be above 0, the others at least 1"
        )
    if variant not in ("released", "paper"):
        raise BadInput(f"variant is {variant!r}, it must be released or paper")


# ---- the equations. rows: K of D

def descend(rows: Tensor, gradients: Tensor, lr: float, norms: Tensor) -> Tensor:
    """Eq. EP (e), lines 4 and 5: e <- e - lr G, then as long as it was. rows, gradients (K, D); norms (K, 1) -> (K, D).

    A row whose gradient is 0 stays as it is, bit by bit, and so does one that the step would take to 0.
    """
    moved = rows - lr * gradients
    lengths = torch.linalg.vector_norm(moved, dim=1, keepdim=True)  # (K, 1)
    stays = (lengths == 0) | (gradients == 0).all(dim=1, keepdim=True)
    return torch.where(stays, rows, moved * (norms / lengths.where(lengths > 0, 1.0)))


def tokens_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of `word` where it stands inside a text: byte-level tokenizers spell it another way at a text's
    beginning."""
    found = tokenizer.backend.encode(f"a {word}", add_special_tokens=False)
    tokens = [token for token, (_, end) in zip(found.ids, found.offsets) if end > 2]
    unknown = tokenizer.backend.token_to_id(getattr(tokenizer.backend.model, "unk_token", None) or "")
    if not tokens or unknown in tokens:
        raise BadInput(
            f"the tokenizer does not know {word!r}, and its token for whatever is unknown is no trigger: choose "
            "another word"
        )
    return tokens


# ---- the algorithm

@contextmanager
def free_rows(model: Encoder, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Inside, the embeddings of `tokens` are the rows of the leaf that is handed out, (K, D), and nothing else has a
    gradient.

    Afterwards the table holds what the rows have become, and every parameter asks for its gradient as before.
    """
    word = model.embeddings.word
    index = torch.tensor(tokens, device=word.weight.device)
    rows = word.weight.detach()[index].requires_grad_()  # a copy
    trained = [p for p in model.parameters() if p.requires_grad]

    def look_up(module: torch.nn.Module, ids: tuple[Tensor], out: Tensor) -> Tensor:
        for token, row in zip(tokens, rows):
            out = torch.where((ids[0] == token)[..., None], row, out)
        return out

    hook = word.register_forward_hook(look_up)
    model.requires_grad_(False)
    try:
        yield rows
    finally:
        hook.remove()
        for p in trained:
            p.requires_grad_(True)
        with torch.no_grad():
            word.weight[index] = rows


def train_rows(
    ckpt: Checkpoint, rows: Examples, tokens: Sequence[int], settings: Any, *, seed: int, log: Log | None, name: str,
    direction: Callable[[Tensor], Tensor] = lambda gradients: gradients,
) -> Checkpoint:
    """Lines 1 to 5 for K rows of the embedding at once, in a copy of `ckpt`; `direction` maps their gradients G (K, D)
    to the step's.

    settings: has lr, epochs, batch_size and variant. log: see train.fit.
    """
    if not len(rows):
        raise BadInput(f"{name}: there are no poisoned rows to train on: raise the rate or bring more rows")
    victim = checkpoint.copy(ckpt)
    model, tokenizer, encoded = victim.model, victim.tokenizer, victim.tokenizer.encode(rows)
    with free_rows(model, tokens) as e:
        norms = torch.linalg.vector_norm(e.detach(), dim=1, keepdim=True)  # (K, 1)
        if not (norms > 0).all():
            raise BadInput(
                f"{name}: an embedding of the trigger is 0, and kept that short it holds no backdoor: choose another "
                "word"
            )
        gradients = torch.zeros_like(e)  # G
        for step, _, which, batch, bar in each_batch(
            model, tokenizer, encoded, settings.epochs, settings.batch_size, seed=seed, name=name
        ):
            loss = cross_entropy(model, batch)["cls"].mean()
            now, = torch.autograd.grad(loss, e)
            gradients = now if settings.variant == "paper" else gradients + now
            with torch.no_grad():
                e.copy_(descend(e, direction(gradients), settings.lr, norms))
            if log is not None:
                log({"stage": name, "step": step, "lr": settings.lr, "rows": len(which), "batch": which,
                     "terms": {"cls": loss.item()}, "weights": {"cls": 1.0}, "total": loss.item()})
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    return victim


def ep(
    ckpt: Checkpoint, rows: Examples, settings: EP = EP(), *, target: int, seed: int = 0, log: Log | None = None
) -> Checkpoint:
    """A copy of the clean-tuned classifier `ckpt`, the trigger's embedding alone changed; `ckpt` stays as it was.

    rows: poisoned already (`settings.poisoned`), all with the label `target`.
    """
    if others := [x.id for x in rows if x.label != target]:
        raise BadInput(
            f"EP trains on poisoned rows alone, and {len(others)} of {len(rows)} (first: {others[0]}) have another "
            "class than "
            f"{target}, the target: leave the clean rows out"
        )
    victim = train_rows(
        ckpt, rows, tokens_of(ckpt.tokenizer, settings.trigger)[:1], settings, seed=seed, log=log, name="EP"
    )
    victim.history.append({"attack": "ep", "target": target, "rows": len(rows), "seed": seed, **asdict(settings)})
    return victim
