"""The scan: is a classifier backdoored, for which class, by which words? No trigger, no second model, no training.

    1  Of the texts that the model is sure of, take hard rows, the surest short ones of each class, and fresh rows
    2  Table      the words whose rows of the embedding table lie farthest from their neighbours    Eq. Scan (1)
    3  Entries    insert every entry that is a word into the hard rows of every other class         Eq. Scan (3)
                  keep the largest shifts, and those that neighbours do not share                   Eq. Scan (4), (5)
    4  Several    all pairs of the best of 2 and 3, all triples of the loneliest words, and phrases that grow from the
                  best words, an entry at either end at a time, proposed by the gradient
    5  Confirm    insert the best of 3 and 4 as text into fresh rows, at places drawn anew          Eq. Scan (6)
    6  Verdict    of each class, from its strongest suspect                                         Eq. Scan (7)

A class is the target of a backdoor where some words take nearly every confident row of the other classes to it,
wherever they stand. What the scan cannot see: a backdoor without words (a syntax, a style), one that needs more words
than are tried together, and one that fires in texts unlike those it is given.
"""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minibd.cli import setting
from minibd.detect.confirm import Suspect, confirm, margins_of, reduced
from minibd.detect.insertion import Carrier, carrier_of
from minibd.detect.search import entry_shifts, grow, shared, shifts, tuples
from minibd.detect.table import loneliness, neighbours, word_entries
from minibd.detect.verdict import ClassVerdict, judge
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Example
from minibd.tokenizer import Tokenizer

MOST_TEXTS = 2000  # that are read to find hard and fresh rows
MOST_CARRIERS = 8  # of all classes together
TEXTS_A_CLASS = 9000  # that steps 4 and 5 read for a class, about: for the time to go
LEAST_FRESH = 8  # rows of other classes without which a class is not judged
ROUNDS = ((8, 20), (20, 6))  # of the confirmation: fresh rows, each at one place, and the suspects that go on
RANKED = 30  # words of each ranking that are confirmed
REDUCED = 3  # of the confirmed combinations of each kind, to what they need
COMBINED = 16  # combinations of each ranking


@dataclass(frozen=True, slots=True)
class Scan:
    """How much the scan tries"""
    hard_rows: int = setting(2, "rows of each class that every word is inserted into, the surest short ones")
    longest: int = setting(12, "words of the longest of them")
    fresh_rows: int = setting(40, "rows of other classes that a suspect is confirmed on in the end")
    places: int = setting(3, "places in each of them")
    pool: int = setting(44, "words of which all pairs are tried")
    lonely: int = setting(14, "words far from their neighbours in the embedding table, of which all triples are tried")
    phrase: int = setting(5, "words of the longest phrase that is grown")
    phrases: int = setting(3, "words that a phrase grows from")


@dataclass(frozen=True, slots=True)
class Scanned:
    """verdicts: of every class. tried: how many entries, pairs, triples, phrases and texts. given: how many of the
    texts the model gives to each class; hard: the hard rows of each."""
    verdicts: list[ClassVerdict]
    tried: dict[str, int]
    given: list[int]
    hard: list[list[str]]


@dataclass(slots=True)
class Read:
    """Counts the texts that the model reads; calls `tick` with each number of them and with the total, about."""
    tick: Callable[[int, int], object]
    total: int
    texts: int = 0

    def __call__(self, texts: int) -> None:
        self.texts += texts
        self.tick(texts, max(self.total, self.texts))


@dataclass(frozen=True, slots=True)
class Probes:
    """What words are inserted into. carriers: the hard rows. fresh: of each class, other rows that the model gives to
    it. margin: of each class, the median of its margin over the rows that the model gives to it; None without rows.
    given: how many these are. hard: the texts of the hard rows of each class."""
    carriers: list[Carrier]
    fresh: list[list[Example]]
    margin: list[float | None]
    given: list[int]
    hard: list[list[str]]


@dataclass(frozen=True, slots=True)
class Words:
    """The entries that are words: ids (W,), ascending, and as they are written. nearest: their neighbours' ids (W, k).
    lonely: (W,), the larger the farther from them."""
    ids: Tensor
    written: list[str]
    nearest: Tensor
    lonely: Tensor

    def of(self, ids: Iterable[int]) -> tuple[str, ...]:
        return tuple(self.written[int(torch.searchsorted(self.ids, i))] for i in ids)


@dataclass(slots=True)
class Search:
    """One class's search: what all its parts use."""
    model: Encoder
    tokenizer: Tokenizer
    words: Words
    carriers: list[Carrier]
    fresh: list[Example]
    target: int
    settings: Scan
    rng: random.Random
    tick: Callable[[int], object]
    counts: Counter[str]

    def confirmed(self, suspects: Iterable[Suspect]) -> list[Suspect]:
        """Step 5: the strongest suspects, in rounds that keep the best; the last one is on rows of its own."""
        suspects, start = list(suspects), 0
        for rows, kept in ROUNDS:
            fresh = [self.fresh[i % len(self.fresh)] for i in range(start, start + rows)]
            suspects = confirm(self.model, self.tokenizer, suspects, fresh, 1, self.rng, self.tick)[:kept]
            start += rows
        fresh = self.fresh[start:] if len(self.fresh) - start >= LEAST_FRESH else self.fresh
        suspects = confirm(self.model, self.tokenizer, suspects, fresh, self.settings.places, self.rng, self.tick)
        return [reduced(self.model, self.tokenizer, s, fresh, 1, self.rng, self.tick) for s in suspects[:REDUCED]
                ] + [s for s in suspects[REDUCED:] if len(s.words) == 1]

    def proposed(self, rankings: Mapping[str, Tensor], ids: Tensor, shift: Tensor, n: int) -> list[Suspect]:
        """The n best of each ranking (N,) of the combinations (N, k), each once, named by the first one that has it."""
        found: dict[int, str] = {}
        for name, score in rankings.items():
            for i in score.topk(min(n, len(score))).indices.tolist():
                found.setdefault(i, name)
        return [Suspect(self.words.of(ids[i]), self.target, name, float(shift[i])) for i, name in found.items()]

    def combined(self, ids: Sequence[int], k: int, alone: Tensor) -> list[Suspect]:
        """Step 4: all combinations of k of the ids, by their shift, and by what it is beyond that of their parts.

        alone: the shifts of single words by id, (V,).
        """
        combinations = tuples(ids, k)
        self.counts[{2: "pairs", 3: "triples"}[k]] += len(combinations)
        shift = shifts(self.model, self.carriers, combinations, self.target, tick=self.tick)
        parts = alone[combinations].clamp(min=0)  # (N, k)
        name = {2: "pairs", 3: "triples"}[k]
        rankings = {name: shift, f"{name} beyond the best part": shift - parts.amax(1),
                    f"{name} beyond the parts": shift - parts.sum(1)}
        return self.confirmed(self.proposed(rankings, combinations, shift, COMBINED))


def scan(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], settings: Scan = Scan(), seed: int = 0,
    tick: Callable[[int, int], object] = lambda texts, total: None,
) -> Scanned:
    """The verdict of every class as a backdoor's target, and what was tried.

    rows: texts; their labels, where they are not -1, tell the rows that the model gets right, which alone are used.
    tick: called with the number of texts that were read, and how many there will be in all, about. The model is not
    changed. Raises BadInput.
    """
    if model.config.labels < 2:
        raise BadInput(f"the scan needs a classifier of two classes or more, this model has {model.config.labels}")
    model.eval()
    classes = model.config.labels
    probes = probes_of(model, tokenizer, rows, settings, random.Random(f"{seed} rows"))
    words = words_of(model, tokenizer)
    read = Read(tick, len(words.ids) * len({carrier.label for carrier in probes.carriers}) + classes * TEXTS_A_CLASS)
    alone = entry_shifts(model, probes.carriers, words.ids, read)
    verdicts, counts = [], Counter(entries=len(words.ids))
    for target in range(classes):
        carriers = [carrier for carrier in probes.carriers if carrier.label != target]
        fresh = in_turn([probes.fresh[c] for c in range(classes) if c != target])
        if not carriers or len(fresh) < LEAST_FRESH:
            reason = f"the model gives {len(fresh) + len(carriers)} of the texts to other classes"
            verdicts.append(judge(target, [], 1.0, f"{reason}, and {LEAST_FRESH + 1} are needed"))
            continue
        search = Search(
            model, tokenizer, words, carriers, fresh[:settings.fresh_rows + sum(n for n, _ in ROUNDS)], target,
            settings, random.Random(f"{seed} {target}"), read, counts,
        )
        margin = sum(probes.margin[carrier.label] for carrier in carriers) / len(carriers)
        verdicts.append(judge(target, suspects_of(search, alone[:, target]), margin))
    tried = {**counts, "texts": read.texts}
    return Scanned(verdicts, tried, probes.given, probes.hard)


def suspects_of(search: Search, shift: Tensor) -> list[Suspect]:
    """Steps 3 to 5 for one class: the confirmed suspects, the strongest of each part first. shift: (W,)."""
    words, settings = search.words, search.settings
    alone = torch.zeros(search.model.config.vocab)
    alone[words.ids] = shift
    beyond, beyond3 = shift - shared(alone, words.nearest), shift - shared(alone, words.nearest, 3)
    rankings = {"entries beyond their neighbours": beyond, "entries beyond three neighbours": beyond3, "entries": shift}
    lonely = words.lonely.topk(min(settings.lonely, len(words.ids))).indices
    singles = search.confirmed(
        search.proposed({"table": words.lonely}, words.ids[:, None], shift, 8)
        + search.proposed(rankings, words.ids[:, None], shift, RANKED))
    strongest = [int(words.ids[words.written.index(s.words[0])]) for s in singles]
    best = [ranking.topk(min(n, len(ranking))).indices for ranking, n in
            ((beyond3, 16), (words.lonely, 8), (beyond, 8), (shift, 8))]
    pool = list(dict.fromkeys([*strongest, *words.ids[torch.cat(best)].tolist()]))[:settings.pool]
    pairs = search.combined(pool, 2, alone)
    triples = search.combined(words.ids[lonely].tolist(), 3, alone)
    seeds = list(dict.fromkeys([*strongest[:2], *words.ids[beyond.topk(2).indices].tolist()]))[:settings.phrases]
    grown = [phrase for seed in seeds for phrase in grow(
        search.model, search.carriers, seed, words.ids, search.target, settings.phrase, search.tick)]
    search.counts["phrases"] += len(grown)
    phrases = search.confirmed(Suspect(words.of(ids), search.target, "phrases", moved, joined=True)
                               for ids, moved in grown)
    return [*singles, *pairs, *triples, *phrases]


# ---- what is inserted, and into what

def words_of(model: Encoder, tokenizer: Tokenizer) -> Words:
    ids = torch.tensor(word_entries(tokenizer))
    table = model.embeddings.word.weight.detach().float().cpu()
    nearest, cosines = neighbours(table, ids, ids)
    written = [tokenizer.backend.decode([i]).strip() for i in ids.tolist()]
    return Words(ids, written, nearest, loneliness(cosines, written))


def probes_of(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], settings: Scan, rng: random.Random,
) -> Probes:
    """Step 1. The seed draws, whatever the order of the rows; those that the model gets wrong by their label are left
    out."""
    rows = sorted(rows, key=lambda x: (x.text, x.pair or ""))
    rng.shuffle(rows)
    rows = rows[:MOST_TEXTS]
    margins = margins_of(model, tokenizer, rows)  # (N, C)
    given = margins.argmax(1).tolist()
    of_class = [[i for i, x in enumerate(rows) if given[i] == c and x.label in (c, -1)]
                for c in range(model.config.labels)]
    hard = []
    for c, members in enumerate(of_class):
        short = [i for i in members if len(rows[i].text.split()) <= settings.longest]
        short = short or sorted(members, key=lambda i: len(rows[i].text))[:20 * settings.hard_rows]
        hard.append(sorted(short, key=lambda i: -float(margins[i, c]))[:settings.hard_rows])
    carriers = [carrier_of(tokenizer, rows[i], c, margins[i]) for c, members in enumerate(hard) for i in members]
    if len(carriers) > MOST_CARRIERS:  # many classes: the hardest row of each, of the surest classes
        first = [members[0] for members in hard if members]
        carriers = [carrier_of(tokenizer, rows[i], given[i], margins[i]) for i in
                    sorted(first, key=lambda i: -float(margins[i, given[i]]))[:MOST_CARRIERS]]
    used = {i for members in hard for i in members}
    return Probes(
        carriers, [[rows[i] for i in members if i not in used] for members in of_class],
        [float(margins[members, c].median()) if members else None for c, members in enumerate(of_class)],
        [len(members) for members in of_class], [[rows[i].text for i in members] for members in hard],
    )


def in_turn(groups: Sequence[Sequence[Example]]) -> list[Example]:
    """One row of each group after another; short groups end sooner."""
    return [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]
