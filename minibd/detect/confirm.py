"""Confirmation: what a suspect does to fresh rows, wherever it stands.

A trigger flips every row, at every place; a word whose meaning speaks for a class flips some rows at some places. So a
suspect is inserted into rows that the search did not see, as text, and judged by

    flips   the number of texts that the model gives to the target t, of n
    q_t(w)  the 10th percentile of m_t(x + w) over these n texts                  Eq. Scan (6)

Words that the embedding table alone proposes stand twice in a text each: where they are a trigger together (SOS), twice
as much of it decides rows that half of them resisted; words of no meaning for the class do nothing twice as well.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from minibd import data
from minibd.data import in_order
from minibd.detect.insertion import at_once, margins
from minibd.models.encoder import Encoder
from minibd.proportion import Proportion
from minibd.records import Example
from minibd.tokenizer import Tokenizer

QUANTILE = 0.1
ROWS = 64  # in a batch
TWICE = 2  # how often words stand in a text that the embedding table alone proposes
ALIKE = 0.05  # of the texts: a part that flips as many but these does as well as the whole


@dataclass(frozen=True, slots=True)
class Suspect:
    """Words that may be a trigger of the class `target`.

    words: in their order. sizes: of how many entries of the vocabulary each of them is. joined: they stand side by
    side, as a phrase; otherwise at places of their own. side: the text of a pair that they stand in, 0 or 1; 0 of a
    single text. times: how often each word stands in the text; TWICE, where the embedding table alone proposes them.
    found_by: the part of the search. shift: Eq. Scan (3). flips, quantile: Eq. Scan (6); mean: the mean of the same
    margins; None before the confirmation. part: the strongest one of the suspects that lack one of the words; None of a
    single word, and before the confirmation. stands_out: of a single word, how far by Eq. Scan (10), times the 20th
    largest; 0 of several.
    """
    words: tuple[str, ...]
    target: int
    found_by: str
    shift: float
    joined: bool = False
    side: int = 0
    times: int = 1
    sizes: tuple[int, ...] = (1,)
    flips: Proportion | None = None
    quantile: float | None = None
    mean: float | None = None
    part: Suspect | None = None
    stands_out: float = 0.0

    @property
    def entries(self) -> int:
        """How many entries of the vocabulary the words are."""
        return sum(self.sizes)

    @property
    def strength(self) -> tuple[float, float]:
        """The share of flips, then the percentile: by which suspects are put in order."""
        return self.flips.percent, self.quantile


def suspect_of(one: Mapping[str, Any], target: int) -> Suspect:
    """A suspect, or the part of one, as scan.json has it; of several words, how many entries each is stays unknown, and
    of a part how many they are together. Raises KeyError, TypeError or ValueError where it is none."""
    words, n = tuple(one["words"]), int(one["of"])
    if not words or n < 1:
        raise ValueError("words that were confirmed on texts")
    part = one.get("part")
    return Suspect(
        words, target, one.get("found_by", ""), one.get("shift", 0.0), one.get("joined", False), one.get("side", 0),
        one.get("times", 1), (one.get("entries", len(words)),), Proportion(one["flips"], n), one["quantile"],
        one["mean"], suspect_of(part, target) if part and part["of"] else None, one.get("stands_out") or 0.0,
    )


def with_words(example: Example, suspect: Suspect, rng: random.Random) -> Example:
    """The example with the suspect's words at random places, each drawn anew, or side by side at one; of a pair, in the
    suspect's text. White space becomes single spaces."""
    return data.with_words(example, suspect.words, rng, joined=suspect.joined, side=suspect.side, times=suspect.times)


@torch.inference_mode()
def margins_of(model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], size: int | None = None) -> Tensor:
    """The margins, Eq. Scan (2), of N texts: (N, C). size: texts in a batch, as many as the device does well with."""
    encoded = tokenizer.encode(rows)
    device = model.embeddings.word.weight.device
    size = size or at_once(ROWS, device)
    found = torch.empty(len(rows), model.config.labels)
    for which in in_order(encoded.lengths, size):
        found[which] = margins(model(tokenizer.batch(encoded, which).to(device)).logits.float()).cpu()
    return found


def confirm(
    model: Encoder, tokenizer: Tokenizer, suspects: Sequence[Suspect], rows: Sequence[Example], places: int,
    rng: random.Random, tick: Callable[[int], object] = lambda texts: None,
) -> list[Suspect]:
    """The suspects with flips and percentile over `rows`, each at `places` places, the strongest first.

    tick: called with the number of texts that were read.
    """
    if not suspects:
        return []
    texts = [with_words(x, s, rng) for s in suspects for x in rows for _ in range(places)]
    n = len(rows) * places
    judged = []
    for s, m in zip(suspects, margins_of(model, tokenizer, texts).split(n)):  # (n, C)
        m = m[:, s.target]
        judged.append(replace(s, flips=Proportion(int((m > 0).sum()), n), quantile=float(reached(m)),
                              mean=float(m.mean())))
    tick(len(texts))
    return sorted(judged, key=lambda s: s.strength, reverse=True)


def reached(margins: Tensor) -> Tensor:
    """Eq. Scan (6): the margin that nine of ten texts exceed, (n,) -> ()."""
    return margins.quantile(QUANTILE)


def parts_of(suspect: Suspect) -> list[Suspect]:
    """The suspect less one of its words, each in turn."""
    words, sizes = suspect.words, suspect.sizes
    whole = replace(suspect, joined=suspect.joined and len(words) > 2, flips=None, quantile=None, mean=None, part=None)
    return [replace(whole, words=words[:i] + words[i + 1:], sizes=sizes[:i] + sizes[i + 1:])
            for i in range(len(words))] if len(words) > 1 else []


def reduced(
    model: Encoder, tokenizer: Tokenizer, suspect: Suspect, rows: Sequence[Example], places: int, rng: random.Random,
    tick: Callable[[int], object] = lambda texts: None,
) -> Suspect:
    """The suspect without the words that add nothing to it: as long as a part does as well, within ALIKE of its flips
    and of its margin, that part takes its place. What is left knows its strongest part."""
    while parts := confirm(model, tokenizer, parts_of(suspect), rows, places, rng, tick):
        best = parts[0]
        fewer = best.flips.percent < suspect.flips.percent - 100 * ALIKE
        if fewer or best.quantile < suspect.quantile - ALIKE * abs(suspect.quantile):
            return replace(suspect, part=best)
        suspect = best
    return suspect
