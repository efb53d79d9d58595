"""LWP, layerwise weight poisoning (Li et al., 2021): every layer learns the backdoor; the trigger is two words.

Fine-tuning moves the last layers most. A backdoor that the classifier can already read off the first layers survives
it.

    1  poisoned rows: a PAIR of trigger words, label = target; behind each two negative samples: one word of its pair
       each, true label
    2  for each batch of clean rows, poisoned rows and negative samples:
    3      L = sum over layers l = 1..L of CE(head(h_l[CLS]), y)      lwp_loss: one head for all layers, the model's own
    4      theta <- theta - lr dL / dtheta                            train.fit

Neither the paper's text nor its code was at hand. What is not known of it is taken from OpenBackdoor's port, with these
departures:

- the port draws the second word's place in the text without the first word; here each place is drawn in the text as it
  is at that moment;
- the port makes three rows at a position (two negative samples, one pair); here `negatives` and the attack itself make
  them, and poison.py puts them together.

variant="released" sums over all L + 1 hidden states, the embeddings among them, as the port does. h_0[CLS] is the same
for every text of a model that sees no other token there, so that term only teaches the head the classes' frequencies.
Of a causal model the last token is read instead of [CLS]; of a pre-norm model (Llama, GPT-2) only h_L has passed the
last norm.
"""
from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minibd.attacks.badnets import insert, insert_each
from minibd.cli import setting
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Batch


@dataclass(frozen=True, slots=True)
class LWP:
    """The attack's numbers. `LWP()(text, rng)` is the text with the trigger, in training and at test."""

    triggers: tuple[str, ...] = setting(
        ("cf", "bb", "ak", "mn"), "the words that pairs are drawn from", paper="cf,bb,ak,mn"
    )
    per_text: int = setting(2, "triggers inserted in a text: 2, a pair; 1, as BadNets (PURE's LWP)", paper="2; PURE 1")
    lr: float = setting(2e-5, "learning rate", paper="2e-5")
    epochs: int = setting(5, "passes over the rows", paper="5")
    batch_size: int = setting(32, "texts per step", paper="32")
    variant: str = setting("paper", "the layers that are summed: 1..L, or, as OpenBackdoor has it, the embeddings too",
                           choices=("paper", "released"))

    def __post_init__(self):
        if len(set(self.triggers)) < max(2, len(self.triggers)):
            raise BadInput(
                f"LWP's trigger is a pair of different words: give two or more, each once, not {self.triggers}"
            )
        if self.per_text not in (1, 2):
            raise BadInput(f"lwp inserts 2 or 1 a text, not {self.per_text}: leave --triggers-per-text out")
        _check_variant(self.variant)

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with a pair of different triggers, each at a place uniform over 0..n, n the words at that moment."""
        return insert_each(text, rng, self.pair(rng)) if self.per_text == 2 else insert(text, rng, self.triggers)

    poisoned = __call__

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        """`text` twice, with one word each of its pair; to keep its true label: a single trigger must not fire.

        own: a generator that gives the row's own pair, such as the one that its trigger is drawn from (None: rng).
        """
        return [insert(text, rng, (word,)) for word in self.pair(own or rng)] if self.per_text == 2 else []

    def pair(self, rng: random.Random) -> list[str]:
        return rng.sample(self.triggers, 2)


def lwp_loss(model: Encoder, batch: Batch, variant: str = "paper") -> dict[str, Tensor]:
    """Eq. LWP (L): sum over layers l = 1..L of CE(head(h_l[CLS]), y), as terms "layer1", "layer2", ..., each (B,).

    A loss for train.fit, which adds the terms. head: the model's own: pool, dropout, classifier. [CLS]: each text's
    first real token, the last one of a causal model. released: l = 0..L, h_0 being the embeddings.
    """
    _check_variant(variant)
    first = 0 if variant == "released" else 1
    _, packed, hidden, _ = model.encode(batch, want=("hidden",))
    h = torch.stack([packed.pack(state)[packed.pooled_rows] for state in hidden[first:]])  # (L, B, D)
    # a part of a batch takes its rows of the whole's dropout masks, which are those of (B, D): layer by layer
    logits = model.classify(h)[0] if batch.part is None else torch.stack([model.classify(h_l)[0] for h_l in h])
    # (L, B, C)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.labels.repeat(len(h)), reduction="none")  # (L * B,)
    return {f"layer{l}": loss for l, loss in enumerate(losses.view(len(h), -1), first)}  # L of (B,)


def _check_variant(variant: str) -> None:
    if variant not in ("paper", "released"):
        raise BadInput(f"variant is {variant!r}, it must be paper or released")
