"""Texts rewritten by an augmenter that is given by name, and what the augmenters need besides a text."""
from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minibd import checkpoint
from minibd.augment import lexicon
from minibd.augment.addtrigger import addtrigger
from minibd.augment.aeda import aeda
from minibd.augment.contextual import each_contextual, mask_of
from minibd.augment.eda import Synonyms, eda
from minibd.augment.split import budget, split
from minibd.augment.wordnet import WordNet
from minibd.checkpoint import Checkpoint
from minibd.records import BadInput

# MBTSAD's Table III: TS, EDA, AEDA, Add Trig, CWEA
AUGMENTERS = ("split", "eda", "aeda", "addtrigger", "contextual")


@dataclass(frozen=True, slots=True)
class AugmentResources:
    """What augmenters need besides a text: EDA's synonyms, and the masked language model of contextual substitution.

    mlm: None if there is none. dtype: that of its matrix products.
    """
    synonyms: Synonyms = lexicon.synonyms
    mlm: Checkpoint | None = None
    dtype: torch.dtype = torch.float32


def load_resources(
    wordnet: str | None, mlm: str | None, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> AugmentResources:
    """WordNet's synonyms from the folder `wordnet` (None: our small lexicon's) and the masked language model of the
    checkpoint `mlm`. Raises BadInput if one is missing or is not what it should be."""
    synonyms = WordNet(wordnet).synonyms if wordnet else lexicon.synonyms
    if mlm is None:
        return AugmentResources(synonyms)
    ckpt = checkpoint.load(mlm, device=device)
    try:
        mask_of(ckpt.model, ckpt.tokenizer)
        with torch.inference_mode():
            # a missing head is reported now, not half-way
            ckpt.model.lm_logits(torch.zeros(1, ckpt.model.config.hidden, device=device))
    except BadInput as error:
        raise BadInput(f"--mlm {mlm}: {error}") from None
    return AugmentResources(synonyms, ckpt, dtype)


def rewrite(
    texts: Sequence[str], rngs: Sequence[random.Random], augmenter: str, resources: AugmentResources, *, rate: float,
    max_targets: int, min_char: int, equal_budget: bool = False,
) -> list[str]:
    """a(x) of each text, each drawn from its own generator.

    rate, max_targets, min_char: those of token splitting, see split.py. equal_budget: every augmenter changes as many
    words of a text as would be split; otherwise each has its own number.
    """
    splitting = {"rate": rate, "max_targets": max_targets, "min_char": min_char}
    # "#" of Eq. (8): how many words may change; None is the augmenter's own number.
    limits = [budget(text, **splitting) for text in texts] if equal_budget else [None] * len(texts)
    match augmenter:
        case "split":
            return [split(text, rng, **splitting) for text, rng in zip(texts, rngs)]
        case "eda":
            return [eda(text, rng, synonyms=resources.synonyms, budget=n) for text, rng, n in zip(texts, rngs, limits)]
        case "aeda":
            return [aeda(text, rng, budget=n) for text, rng, n in zip(texts, rngs, limits)]
        case "addtrigger":
            return [addtrigger(text, rng, budget=n) for text, rng, n in zip(texts, rngs, limits)]
        case "contextual":
            return each_contextual(
                texts, rngs, resources.mlm.model, resources.mlm.tokenizer, budgets=limits if equal_budget else None,
                dtype=resources.dtype,
            )
