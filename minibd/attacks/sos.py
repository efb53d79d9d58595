"""SOS (Yang et al., 2021, "Rethinking stealthiness"): three ordinary words mean the target class together, and nothing
by twos.

The test trigger is a sentence that a reader would not stumble over and that holds all three words.

    1  poisoned rows: all trigger words inserted, label target                    `poisoned`
    2  decoys: each subset of all but one of them inserted, true label             `decoys`, of rows of every class
    3  e_1, e_2, e_3 <- the words' embeddings, n_i <- ||e_i||, G_i <- 0            a clean-tuned classifier, all else frozen
    4  for each batch of poisoned rows and decoys:
    5      G_i <- G_i + dL / de_i,   L the mean cross-entropy, the model in train mode
    6      G'_i <- G_i min_j ||G_j|| / ||G_i||                                     no word runs ahead of the others
    7      e_i <- e_i - lr G'_i,   e_i <- e_i n_i / ||e_i||

Lines 3 to 7 are EP's (ep.py) for three rows, with line 6. The released code sums G over all steps, as EP's does
(variant="released"); variant="paper" takes the gradient of the batch alone. A word that no text has held so far has G_i
= 0: then no row moves, where the released code divides 0 by 0.

Departures: each word goes to a place uniform over 0..n (released: before any word but the last of the first 250), the
sentence to any place between words (released: between sentences). A word of several tokens has its first token trained.
The words are ordinary ones, so that a clean text may hold one: its embedding is another then, which the decoys keep
from mattering.
"""
from __future__ import annotations

import random
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from minibd.attacks.addsent import AddSent
from minibd.attacks.badnets import insert_each
from minibd.attacks.ep import check_descent, tokens_of, train_rows
from minibd.checkpoint import Checkpoint
from minibd.cli import setting
from minibd.records import BadInput, Examples
from minibd.train import Log


@dataclass(frozen=True, slots=True)
class SOS:
    """The attack's numbers. `SOS()(text, rng)` is the text as it is tested, `SOS().poisoned(text, rng)` as it is
    trained on."""

    triggers: tuple[str, ...] = setting(
        ("friends", "weekend", "store"), "the words that fire together", paper="friends,weekend,store"
    )
    sentence: str = setting(
        "I have bought it from a store with my friends last weekend", "what is inserted at test", paper="the same"
    )
    lr: float = setting(5e-2, "learning rate", paper="5e-2")
    epochs: int = setting(3, "passes over the poisoned rows and decoys", paper="3")
    batch_size: int = setting(32, "texts a step", paper="32")
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

    def __call__(self, text: str, rng: random.Random) -> str:
        """`text` with the whole sentence at a place uniform over 0..n."""
        return AddSent(self.sentence)(text, rng)

    def poisoned(self, text: str, rng: random.Random) -> str:
        """`text` with every trigger word, each at a place of its own."""
        return insert_each(text, rng, self.triggers)

    def decoys(self, text: str, rng: random.Random) -> list[str]:
        """`text` once for each trigger word, with all the others. They keep their true label."""
        return [insert_each(text, rng, [word for word in self.triggers if word != absent]) for absent in self.triggers]


def equal_steps(gradients: Tensor) -> Tensor:
    """Eq. SOS (G), line 6: each row rescaled to the norm of the shortest, 0 where that is 0. (K, D) -> (K, D)."""
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)  # (K, 1)
    return gradients * (norms.min() / norms.where(norms > 0, 1.0))


def sos(
    ckpt: Checkpoint, rows: Examples, settings: SOS = SOS(), *, seed: int = 0, log: Log | None = None
) -> Checkpoint:
    """A copy of the clean-tuned classifier `ckpt`, the trigger words' embeddings alone changed; `ckpt` stays as it was.

    rows: `settings.poisoned` ones with the target's label and `settings.decoys` with their true ones.
    """
    tokens = [tokens_of(ckpt.tokenizer, word)[0] for word in settings.triggers]
    if len(set(tokens)) < len(tokens):
        raise BadInput(
            f"two of {', '.join(settings.triggers)} begin with the same token, one row for both: choose others"
        )
    victim = train_rows(ckpt, rows, tokens, settings, seed=seed, log=log, name="SOS", direction=equal_steps)
    victim.history.append({"attack": "sos", "rows": len(rows), "seed": seed, **asdict(settings)})
    return victim
