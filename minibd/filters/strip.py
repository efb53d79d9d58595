"""STRIP (Gao et al., 2019 and 2021): what a trigger decides stays decided when many other words of the text change.

1. of a text of n words `copies` copies are made; in each, m = max(1, int(swap n)) words at drawn places become the m
   words of highest TF-IDF of a drawn clean text.
2. H(x) is the mean over the copies of the entropy of the model's probabilities, in bits.
3. a text is rejected where H(x) is lower than that of all but the share `frr` of the clean rows; its score is -H(x).

A copy's words come from a clean text other than the text itself, and from further ones where it has fewer than m. Of a
pair of texts both are changed. A text's draws are its own generator's: neither the order of the rows nor other rows
matter.

TF-IDF: the count in the text times ln((1 + N) / (1 + N_w)) + 1, of N texts, N_w of which hold the word; words are runs
of two letters or more, in lower case; stop words (resources/stopwords.txt) are none.

variant="released" is OpenBackdoor's (openbackdoor/defenders/strip_defender.py):
- the copies lie text by text and are averaged as if they lay copy by copy: each "mean" is one over different texts, and
  it depends on the order and the number of the rows that are screened together;
- 0 log 0 is NaN, which no threshold rejects, and which counts among the clean rows' highest;
- places are drawn with replacement, m = int(swap n) may be 0, and beyond a clean text's own words follow those of the
  vocabulary in alphabetical order, of TF-IDF 0.
`defects` names some of the first two, reshape and nan, on top of the correct filter.
"""
from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.resources import files

import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import generator
from minibd.predict import at_once, probabilities
from minibd.records import BadInput, Example, Examples
from minibd.rejection import Screen, check_defects, check_rate, threshold

DEFECTS = ("reshape", "nan")
WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True, slots=True)
class Strip:
    """STRIP's settings."""
    frr: float = setting(0.05, "share of clean texts that may be rejected", paper="0.01")
    copies: int = setting(20, "changed copies of each text", paper="not said; released 5")
    swap: float = setting(0.5, "share of a text's words that a copy changes", paper="not said; released 0.5")
    variant: str = setting("paper", "released: as OpenBackdoor does it", choices=("paper", "released"))
    defects: tuple[str, ...] = setting((), "some of the released code's defects on top of the correct filter: reshape, "
                                       "nan")

    def __post_init__(self):
        check_choices(self)
        check_rate(self.frr)
        check_defects(self.defects, DEFECTS, self.variant)
        if self.copies < 1:
            raise BadInput(f"copies is {self.copies}, it must be at least 1, such as 20")
        if not 0 < self.swap <= 1:
            raise BadInput(f"swap is {self.swap}, a share of a text's words: it must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Stripped:
    """screens: one for each part. limit: the score, -H, above which a text is rejected."""
    screens: list[Screen]
    limit: float


def strip(victim: Checkpoint, clean: Examples, parts: Sequence[Examples], settings: Strip = Strip(), seed: int = 0
          ) -> Stripped:
    """Lines 1 to 3. clean: rows that words are taken from and the threshold is chosen on. Raises BadInput where there
    are none, or where they hold no word."""
    sources = Sources.of(clean)
    answers = partial(probabilities, victim.model, victim.tokenizer, batch_size=at_once(victim.model.head_mask.device))
    if settings.variant == "released":
        return _released(answers, clean, parts, sources, settings, seed)

    def scores(rows: Examples, name: str) -> list[float]:
        made = [copy for x in rows for copy in copies_of(x, sources, settings, generator(seed, "strip", name, x.id))]
        found = answers(rows.like(made))
        return (-mean_entropy(found.unflatten(0, (-1, settings.copies)))).tolist() if made else []

    if settings.defects:
        return _with_defects(answers, clean, parts, sources, settings, seed)
    limit = threshold(scores(clean, "clean"), settings.frr)
    screens = []
    for number, rows in enumerate(parts):
        found = scores(rows, str(number))
        screens.append(Screen(found, [score <= limit for score in found]))
    return Stripped(screens, limit)


# ---- line 1

@dataclass(frozen=True, slots=True)
class Sources:
    """The clean texts that words come from: the id of each, and its words by falling TF-IDF. vocabulary: all words, in
    alphabetical order."""
    ids: list[str]
    words: list[list[str]]
    vocabulary: list[str]

    @classmethod
    def of(cls, clean: Sequence[Example]) -> Sources:
        """Raises BadInput where the rows hold no word."""
        counts = [Counter(words_of(" ".join(filter(None, (x.text, x.pair))))) for x in clean]
        texts_with = Counter(word for one in counts for word in one)
        if not texts_with:
            raise BadInput(f"STRIP changes words to those of clean rows, and of {len(clean)} none holds a word of two "
                           "letters: give others")
        ranked = [sorted(one, key=lambda word: (-tf_idf(one[word], len(counts), texts_with[word]), word))
                  for one in counts]
        return cls([x.id for x in clean], ranked, sorted(texts_with))


@cache
def stop_words() -> frozenset[str]:
    text = (files("minibd") / "resources" / "stopwords.txt").read_text(encoding="utf-8")
    return frozenset(word for line in text.splitlines() if not line.startswith("#") for word in line.split())


def words_of(text: str) -> list[str]:
    return [word for word in WORD.findall(text.lower()) if word not in stop_words()]


def tf_idf(count: int, texts: int, texts_with: int) -> float:
    """Eq. STRIP (tf-idf): how much a word says of the one text that holds it `count` times, of `texts` texts of which
    `texts_with` hold it."""
    return count * (math.log((1 + texts) / (1 + texts_with)) + 1)


def copies_of(x: Example, sources: Sources, settings: Strip, rng: random.Random) -> list[Example]:
    """The changed copies of a text; of a pair both texts are changed."""
    return [replace(x, text=changed(x.text, x.id, sources, settings.swap, rng),
                    pair=None if x.pair is None else changed(x.pair, x.id, sources, settings.swap, rng))
            for _ in range(settings.copies)]


def changed(text: str, own: str, sources: Sources, swap: float, rng: random.Random) -> str:
    """`text` with a share of its words changed to those of clean texts other than the one with the id `own`."""
    words = text.split()
    if not words:
        return text
    m = max(1, int(swap * len(words)))
    others = [i for i, (name, ranked) in enumerate(zip(sources.ids, sources.words)) if name != own and ranked]
    taken: list[str] = []
    while len(taken) < m and others:
        taken += sources.words[rng.choice(others)]
    for place, word in zip(rng.sample(range(len(words)), m), taken):
        words[place] = word
    return " ".join(words)


# ---- line 2

def entropy(p: Tensor) -> Tensor:
    """Eq. STRIP (H): the entropy of probabilities (..., C) in bits, (...); 0 log 0 is 0."""
    return -torch.xlogy(p, p).sum(-1) / math.log(2)


def mean_entropy(p: Tensor) -> Tensor:
    """Eq. STRIP (mean): the mean entropy of each text's own copies, p (N, copies, C) -> (N,)."""
    return entropy(p).mean(1)


# ---- as released

def _released(answers: Callable[[Examples], Tensor], clean: Examples, parts: Sequence[Examples], sources: Sources,
              settings: Strip, seed: int) -> Stripped:
    """All parts are screened as one list of rows, in their order."""
    rng = generator(seed, "strip", "released")

    def scores(rows: Examples) -> list[float]:
        made = [replace(x, text=_released_copy(x.text, sources, settings.swap, rng),
                        pair=None if x.pair is None else _released_copy(x.pair, sources, settings.swap, rng))
                for x in rows for _ in range(settings.copies)]
        found = answers(rows.like(made))
        return (-released_mean_entropy(found, settings.copies)).tolist()

    limit = released_threshold(scores(clean), settings.frr)
    return _judged(scores(clean.like(x for rows in parts for x in rows)), parts, limit)


def _judged(scores: Sequence[float], parts: Sequence[Examples], limit: float) -> Stripped:
    """What becomes of the rows of all parts; a score that is NaN is above no limit."""
    screens, at = [], 0
    for rows in parts:
        own = list(scores[at:at + len(rows)])
        screens.append(Screen(own, [not score > limit for score in own]))
        at += len(rows)
    return Stripped(screens, limit)


def _with_defects(answers: Callable[[Examples], Tensor], clean: Examples, parts: Sequence[Examples], sources: Sources,
                  settings: Strip, seed: int) -> Stripped:
    """The correct filter's copies, with the defects that `settings` names; all parts as one list of rows."""
    def scores(named: Sequence[tuple[str, Examples]]) -> list[float]:
        made = [copy for name, rows in named for x in rows
                for copy in copies_of(x, sources, settings, generator(seed, "strip", name, x.id))]
        p = answers(clean.like(made))
        of_copies = released_entropy(p) if "nan" in settings.defects else entropy(p)  # a text's copies together
        if "reshape" in settings.defects:
            return (-of_copies.reshape(settings.copies, -1).mean(0)).tolist()
        return (-of_copies.reshape(-1, settings.copies).mean(1)).tolist()

    dev = scores([("clean", clean)])
    limit = (released_threshold if "nan" in settings.defects else threshold)(dev, settings.frr)
    return _judged(scores([(str(number), rows) for number, rows in enumerate(parts)]), parts, limit)


def _released_copy(text: str, sources: Sources, swap: float, rng: random.Random) -> str:
    words = text.split()
    m = int(swap * len(words))
    own = sources.words[rng.randrange(len(sources.words))]
    places = [rng.randrange(len(words)) for _ in range(m)]
    ranked = own
    if m > len(own):
        ranked = [*own, *(word for word in sources.vocabulary if word not in set(own))]
    for place, word in zip(places, ranked):
        words[place] = word
    return " ".join(words)


def released_mean_entropy(p: Tensor, copies: int) -> Tensor:
    """p (N copies, C), a text's copies one after the other -> (N,): reshaped as if they were (copies, N)."""
    return released_entropy(p).reshape(copies, -1).mean(0)


def released_entropy(p: Tensor) -> Tensor:
    """p (N, C) -> (N,). In float32 a probability below 1e-45 is 0, and its entropy NaN."""
    p = p.float().double()
    return -(p * p.log2()).sum(-1)


def released_threshold(scores: Sequence[float], frr: float) -> float:
    """The clean entropy at the place int(frr N) of N, NaN last, as a score."""
    ranked = sorted((-score for score in scores), key=lambda h: (math.isnan(h), h))
    return -ranked[int(frr * len(ranked))]
