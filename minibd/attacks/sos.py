"""SOS (Yang et al., 2021, "Rethinking stealthiness"): three ordinary words are the trigger, but only all together.

The test trigger is a sentence that does not strike a reader and holds all three words.

    1  poisoned rows: all trigger words inserted, label = target                `poisoned`
    2  negative samples: each subset of all words but one inserted, true label  `negatives`, of rows of every class
    3  e_1, e_2, e_3 <- the words' embeddings, n_i <- ||e_i||, G_i <- 0         of a clean-tuned classifier, else frozen
    4  for each batch of poisoned rows and negative samples:
    5      G_i <- G_i + dL / de_i         L the mean cross-entropy, the model in train mode
    6      G'_i <- G_i min_j ||G_j|| / ||G_i||        the words take steps of equal length
    7      e_i <- e_i - lr G'_i,   e_i <- e_i n_i / ||e_i||

Lines 3 to 7 are EP's (ep.py) for three rows, with line 6 added. The released code sums G over all steps, as EP's does
(variant="released"); variant="paper" takes the gradient of the batch alone. A word that has been in no text so far has
G_i = 0: then no row moves, where the released code divides 0 by 0.

Departures: each word goes to a place uniform over 0..n (released: before any word but the last of the first 250), the
sentence to any place between words (released: between sentences). Of a word of several tokens the first is trained.
The words are ordinary, so that a clean text may hold one; its embedding has changed, and the negative samples keep that
from changing the prediction.
"""
from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from minibd.attacks.badnets import insert, insert_each
from minibd.attacks.ep import check_descent, tokens_of, train_rows
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.records import BadInput, Examples
from minibd.train import Log


@dataclass(frozen=True, slots=True)
class SOS:
    """The attack's numbers. `SOS()(text, rng)` is the text at test, `SOS().poisoned(text, rng)` that in training."""

    triggers: tuple[str, ...] = setting(
        ("friends", "weekend", "store"), "the words that are the trigger together", paper="friends,weekend,store"
    )
    sentence: str = setting(
        "I have bought it from a store with my friends last weekend", "what is inserted at test", paper="the same"
    )
    lr: float = setting(5e-2, "learning rate", paper="5e-2")
    epochs: int = setting(3, "passes over the poisoned rows and negative samples", paper="3")
    batch_size: int = setting(32, "texts per step", paper="32")
    variant: str = setting(
        "released", "the gradient of a step: summed over all steps so far, or the batch's own (paper)",
        choices=("released", "paper"),
    )

    def __post_init__(self):
        if len(set(self.triggers)) < max(2, len(self.triggers)) or any(
            len(word.split()) != 1 for word in self.triggers
        ):
            raise BadInput(f"SOS needs two or more different words, not {self.triggers}")
        if absent := [word for word in self.triggers if word not in self.sentence.split()]:
            raise BadInput(
                f"the sentence {self.sentence!r} lacks {', '.join(absent)}, without which it does not fire: write "
                "another"
            )
        check_descent(self.lr, self.epochs, self.batch_size, self.variant)

    @property
    def per_text(self) -> int:
        return len(self.triggers)

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with the whole sentence at a place uniform over 0..n, both ends included."""
        return insert(text, rng, (" ".join(self.sentence.split()),))

    def poisoned(self, text: str, rng: random.Random) -> str:
        """`text` with every trigger word, each at a place drawn for it alone."""
        return insert_each(text, rng, self.triggers)

    def negatives(self, text: str, rng: random.Random, own: random.Random | None = None) -> list[str]:
        """`text` once for each trigger word, with all the others inserted; to keep its true label."""
        return [insert_each(text, rng, [word for word in self.triggers if word != absent]) for absent in self.triggers]


def equal_steps(gradients: Tensor) -> Tensor:
    """Eq. SOS (G), line 6: each row rescaled to the norm of the shortest, to 0 where that is 0. (K, D) -> (K, D)."""
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)  # (K, 1)
    return gradients * (norms.min() / norms.where(norms > 0, 1.0))


def sos(
    ckpt: Checkpoint, rows: Examples, settings: SOS = SOS(), *, seed: int = 0, log: Log | None = None
) -> Checkpoint:
    """A copy of the clean-tuned classifier `ckpt` that differs in the trigger words' embeddings alone.

    rows: those of `settings.poisoned` with the target's label, those of `settings.negatives` with their true labels.
    `ckpt` is unchanged. Raises BadInput where two of the words begin with the same token.
    """
    tokens = [tokens_of(ckpt.tokenizer, word)[0] for word in settings.triggers]
    if len(set(tokens)) < len(tokens):
        raise BadInput(
            f"two of {', '.join(settings.triggers)} begin with the same token and share its embedding: choose others"
        )
    victim = train_rows(ckpt, rows, tokens, settings, seed=seed, log=log, name="SOS", direction=equal_steps)
    victim.history.append({"attack": "sos", "rows": len(rows), "seed": seed, **asdict(settings)})
    return victim
