"""The scan: is a classifier backdoored, for which class, by which words? No trigger, no second model, no training.

    1  Of the texts that the model is sure of, take hard rows, the surest short ones of each class, and fresh rows
    2  Table      the words whose rows of the embedding table lie farthest from their neighbours    Eq. Scan (1)
    3  Entries    insert every entry of the vocabulary into hard rows of other classes              Eq. Scan (3)
                  keep the largest shifts, those that neighbours do not share                       Eq. Scan (4), (5)
                  and those that move [CLS] as no other entry does                                  Eq. Scan (10)
    4  Several    all pairs of the best of 2 and 3, all triples of the loneliest words, and phrases that grow from the
                  best entries, one at either end at a time, proposed by the gradient
    5  Confirm    insert the best of 3 and 4 as text into fresh rows, at places drawn anew          Eq. Scan (6)
    6  Verdict    of each class, from its strongest suspect and those of the other classes    Eq. Scan (8), (9)

A class is the target of a backdoor where some words take nearly every confident row of the other classes to it,
wherever they stand. What the scan cannot see: a backdoor without words (a syntax, a style), one that needs more words
than are tried together, and one that fires in texts unlike those it is given.
"""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from minibd.cli import setting
from minibd.detect.confirm import TWICE, Suspect, confirm, margins_of, reduced, with_words
from minibd.detect.insertion import Carrier, carriers_of, readable
from minibd.detect.search import beyond, entry_shifts, grow, shifts, standing_out, tuples
from minibd.detect.table import Entries, entries_of, loneliness, neighbours
from minibd.detect.verdict import WITH_TEXTS, ClassVerdict, Thresholds, compared, judge
from minibd.models.encoder import Encoder
from minibd.proportion import Proportion
from minibd.records import BadInput, Example
from minibd.tokenizer import Tokenizer

MOST_TEXTS = 600  # that are read to find hard and fresh rows
MOST_CARRIERS = 8  # of all classes together
TEXTS_A_CLASS = 12000  # that steps 4 and 5 read for a class, about: for the time to go
LEAST_FRESH = 8  # rows of other classes without which a class is not judged
SUREST = 0.9  # of the usual margin of their class: what hard rows have, where there are enough of them
SURE = 0.5  # of the same: what a fresh row has at least, where there are enough of them
LEAST_MARGIN = 1.0  # a model whose usual margin is smaller is sure of nothing
LEAST_NEW = 20  # rows that no round has seen, without which the last confirmation takes them all
CROWD = 12  # words of the largest shifts: of twice as many rows, those that resist them best confirm the suspects
ROUNDS = ((6, 16), (16, 4))  # of the confirmation: fresh rows, each at one place, and the suspects that go on
RANKED = 20  # words of each ranking that are confirmed
REDUCED, REDUCED_ON = 2, 20  # confirmed combinations of each kind are reduced to what they need, on so many rows
COMBINED = 12  # combinations of each ranking
COMPARED, COMPARED_ON = 3, 20  # single words of a class that are compared with their neighbours, on so many rows


@dataclass(frozen=True, slots=True)
class Scan:
    """How much the scan tries"""
    hard_rows: int = setting(2, "rows of each class that words are inserted into, the shortest of the surest ones")
    fresh_rows: int = setting(40, "rows of other classes that a suspect is confirmed on in the end")
    longest: int = setting(16, "words of the longest of them, where enough are so short")
    places: int = setting(3, "places in each of them")
    pool: int = setting(64, "words of which all pairs are tried")
    lonely: int = setting(14, "words far from their neighbours in the embedding table, of which all triples are tried")
    phrase: int = setting(8, "entries of the longest phrase that is grown")
    phrases: int = setting(4, "entries that a phrase grows from")

    def __post_init__(self):
        limits = {"hard_rows": (1, 100), "fresh_rows": (LEAST_FRESH, MOST_TEXTS), "longest": (1, 1000),
                  "places": (1, 100), "pool": (0, 1000), "lonely": (0, 100), "phrase": (1, 64), "phrases": (0, 1000)}
        for name, (least, most) in limits.items():
            if not least <= getattr(self, name) <= most:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be {least} to {most}")


Around = dict[tuple[int, tuple[str, ...]], Proportion]  # by class and words


@dataclass(frozen=True, slots=True)
class Scanned:
    """verdicts: of every class. tried: how many entries, pairs, triples, phrases and texts. given: how many of the
    texts the model gives to each class; hard: the hard rows of each. around: of the strongest single words of a class,
    the flips of the words nearest to them in the embedding table."""
    verdicts: list[ClassVerdict]
    tried: dict[str, int]
    given: list[int]
    hard: list[list[str]]
    around: Around


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
    it and is sure of. margin: M, Eq. Scan (7). given: how many rows the model gives to each class. hard: the texts of
    the hard rows of each class."""
    carriers: list[Carrier]
    fresh: list[list[Example]]
    margin: float
    given: list[int]
    hard: list[list[str]]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """entries: W of them. nearest: the ids of each one's neighbours, (W, k). lonely: (W,), the larger the farther from
    them; -1 of what is no word of letters."""
    entries: Entries
    nearest: Tensor
    lonely: Tensor
    place: dict[str, int]

    @property
    def ids(self) -> Tensor:
        return self.entries.ids


@dataclass(slots=True)
class Search:
    """One class's search: what all its parts use."""
    model: Encoder
    tokenizer: Tokenizer
    words: Vocabulary
    carriers: list[Carrier]
    fresh: list[Example]
    target: int
    settings: Scan
    rng: random.Random
    tick: Callable[[int], object]
    counts: Counter[str]
    out: Tensor = field(default_factory=lambda: torch.zeros(0))  # by id: how far each word stands out, 0 of others

    def confirmed(self, suspects: Iterable[Suspect | None]) -> list[Suspect]:
        """Step 5: the strongest suspects, in rounds that keep the best; the last one is on rows of its own."""
        suspects, start = list(filter(None, suspects)), 0
        for rows, kept in ROUNDS:
            fresh = [self.fresh[i % len(self.fresh)] for i in range(start, start + rows)]
            suspects = confirm(self.model, self.tokenizer, suspects, fresh, 1, self.rng, self.tick)[:kept]
            start += rows
        fresh = self.fresh[start:] if len(self.fresh) - start >= LEAST_NEW else self.fresh
        suspects = confirm(self.model, self.tokenizer, suspects, fresh, self.settings.places, self.rng, self.tick)
        shorter = [reduced(self.model, self.tokenizer, s, fresh[:REDUCED_ON], 1, self.rng, self.tick)
                   for s in suspects[:REDUCED]]
        again = [s for s, before in zip(shorter, suspects) if s.words != before.words]  # at as many places as the rest
        exact = {s.words: s for s in confirm(
            self.model, self.tokenizer, again, fresh, self.settings.places, self.rng, self.tick)}
        return [exact.get(s.words, s) for s in shorter] + [s for s in suspects[REDUCED:] if len(s.words) == 1]

    def keep_hardest(self, crowd: Sequence[Suspect]) -> None:
        """Of the fresh rows, keep those that resist best, by the median margin over the words of a crowd. Most of these
        speak for the class by their meaning: a row that they flip says little of a trigger, which flips every row."""
        wanted = self.settings.fresh_rows + sum(rows for rows, _ in ROUNDS)
        rows = self.fresh[:2 * wanted]
        texts = [with_words(x, s, self.rng) for s in crowd for x in rows]
        margins = margins_of(self.model, self.tokenizer, texts)[:, self.target].unflatten(0, (len(crowd), len(rows)))
        self.tick(len(texts))
        kept = margins.median(0).values.argsort()[:max(LEAST_FRESH, min(wanted, len(rows) // 2))].tolist()
        self.fresh = [rows[i] for i in sorted(kept)]

    def around(self, suspect: Suspect) -> Proportion:
        """The flips of the words that are nearest to a single word, in its place."""
        near = [self.suspect([i], "", 0.0, suspect.side, False)
                for i in self.words.nearest[self.words.place[suspect.words[0]]].tolist()]
        judged = confirm(self.model, self.tokenizer, list(filter(None, near)), self.fresh[-COMPARED_ON:], 1, self.rng,
                         self.tick)
        return Proportion(sum(s.flips.hits for s in judged), sum(s.flips.n for s in judged))

    def suspect(self, ids: Sequence[int], found_by: str, shift: float, side: int, joined: bool) -> Suspect | None:
        """None where the entries are no words as they stand: a continuation, or entries that no text has."""
        if joined:
            words = self.words.entries.words_of(ids, self.tokenizer)
        else:
            words = [self.words.entries.words_of([i], self.tokenizer) for i in ids]
            words = None if None in words else tuple(word for one in words for word in one)
        if words is None:
            return None
        starts = [n for n, i in enumerate(ids) if self.words.entries.starts_word(i)] + [len(ids)]
        sizes = tuple(end - start for start, end in zip(starts, starts[1:]))
        out = float(self.out[ids[0]]) if len(ids) == 1 and len(self.out) else 0.0
        return Suspect(words, self.target, found_by, shift, joined and len(words) > 1, side, sizes=sizes,
                       stands_out=out)

    def proposed(
        self, rankings: Mapping[str, Tensor], ids: Tensor, shift: Tensor, side: Tensor, n: int,
    ) -> list[Suspect | None]:
        """The n best of each ranking (N,) of the combinations (N, k), each once, named by the first one that has it."""
        found: dict[int, str] = {}
        for name, score in rankings.items():
            for i in score.topk(min(n, len(score))).indices.tolist():
                found.setdefault(i, name)
        return [self.suspect(ids[i].tolist(), name, float(shift[i]), int(side[i]), False) for i, name in found.items()]

    def combined(self, ids: Sequence[int], k: int, alone: Tensor, times: int = 1) -> list[Suspect]:
        """Step 4: all combinations of k of the ids, by their shift, and by what it is beyond that of their parts.

        alone: the shifts of single words by id, (V,). times: how often each word stands in a text of the confirmation.
        """
        combinations, name = tuples(ids, k), {2: "pairs", 3: "triples"}[k]
        if not len(combinations):
            return []
        self.counts[name] += len(combinations)
        shift, side = shifts(self.model, self.carriers, combinations, self.target, tick=self.tick)
        parts = alone[combinations].clamp(min=0)  # (N, k)
        rankings = {name: shift, f"{name} beyond the best part": shift - parts.amax(1),
                    f"{name} beyond the parts": shift - parts.sum(1)}
        proposed = self.proposed(rankings, combinations, shift, side, COMBINED)
        return self.confirmed(replace(s, times=times) for s in filter(None, proposed))

    def grown(self, seed: int, side: int, alone: Tensor) -> list[Suspect | None]:
        """Step 4: the phrases that grow from an entry."""
        carriers = [carrier for carrier in self.carriers if carrier.side == side]
        found = grow(self.model, carriers, seed, self.words.ids, alone, self.target, self.settings.phrase, self.tick)
        self.counts["phrases"] += len(found)
        return [self.suspect(ids, "phrases", moved, side, True) for ids, moved in found]


def scan(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], settings: Scan = Scan(), seed: int = 0,
    tick: Callable[[int, int], object] = lambda texts, total: None, limits: Thresholds = WITH_TEXTS,
) -> Scanned:
    """The verdict of every class as a backdoor's target, and what was tried.

    rows: texts; their labels, where they are not -1, tell the rows that the model gets right, which alone are used.
    tick: called with the number of texts that were read, and how many there will be in all, about. limits: MODEL_ALONE
    where the rows are the built-in sentences. The model is not changed. Raises BadInput.
    """
    if model.config.labels < 2:
        raise BadInput(f"the scan needs a classifier of two classes or more, this model has {model.config.labels}")
    modes = {module: module.training for module in model.modules()}
    try:
        return scanned_model(model.eval(), tokenizer, rows, settings, seed, tick, limits)
    finally:
        for module, mode in modes.items():
            module.training = mode


def scanned_model(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], settings: Scan, seed: int,
    tick: Callable[[int, int], object], limits: Thresholds,
) -> Scanned:
    """Steps 1 to 6, of a model in evaluation mode."""
    classes = model.config.labels
    probes = probes_of(model, tokenizer, rows, settings, random.Random(f"{seed} rows"))
    reasons = [unjudged(probes, target) for target in range(classes)]
    if all(reasons):
        return Scanned([judge(target, [], probes.margin, reason, limits) for target, reason in enumerate(reasons)],
                       {"texts": 0}, probes.given, probes.hard, {})
    words, sides = vocabulary_of(model, tokenizer), 1 + max(carrier.side for carrier in probes.carriers)
    read = Read(tick, 2 * sides * len(words.ids) + reasons.count("") * TEXTS_A_CLASS)
    alone, side, unlike = entry_shifts(model, probes.carriers, words.ids, read)
    verdicts, counts, around = [], Counter(entries=len(words.ids)), {}
    for target, reason in enumerate(reasons):
        if reason:
            verdicts.append(judge(target, [], probes.margin, reason, limits))
            continue
        search = Search(
            model, tokenizer, words, [carrier for carrier in probes.carriers if carrier.label != target],
            fresh_for(probes, target), target, settings, random.Random(f"{seed} {target}"), read, counts,
        )
        suspects = suspects_of(search, alone[:, target], side[:, target], unlike[:, target])
        verdict = judge(target, suspects, probes.margin, "", limits)
        verdicts.append(verdict)
        single = [s for s, _ in verdict.suspects if len(s.words) == 1 and s.words[0] in words.place]
        around |= {(target, suspect.words): search.around(suspect) for suspect in single[:COMPARED]}
    return Scanned(compared(verdicts), {**counts, "texts": read.texts}, probes.given, probes.hard, around)


def unjudged(probes: Probes, target: int) -> str:
    """Why a class cannot be judged; "" where it can."""
    if not probes.margin >= LEAST_MARGIN:  # not a number, too
        return (f"the model is sure of none of the texts (usual margin {probes.margin:.2f}, {LEAST_MARGIN:.0f} is "
                "needed): give texts of its task, or see whether it works at all")
    given = sum(probes.given) - probes.given[target]
    fresh = len(fresh_for(probes, target))
    if fresh < LEAST_FRESH or not any(carrier.label != target for carrier in probes.carriers):
        return (f"the model gives {given} of the texts to other classes, {fresh} are left to confirm words on, and "
                f"{LEAST_FRESH} are needed")
    return ""


def fresh_for(probes: Probes, target: int) -> list[Example]:
    """The fresh rows of the other classes, in turn."""
    return in_turn([rows for c, rows in enumerate(probes.fresh) if c != target])


def suspects_of(search: Search, shift: Tensor, side: Tensor, unlike: Tensor) -> list[Suspect]:
    """Steps 3 to 5 for one class: the confirmed suspects, the strongest of each part first. shift, side, unlike:
    (W,)."""
    words, settings = search.words, search.settings
    ids, is_word = words.ids, words.entries.is_word
    alone = torch.zeros(search.model.config.vocab)
    alone[ids] = shift
    search.out = torch.zeros_like(alone)
    search.out[ids[is_word]] = standing_out(unlike[is_word])
    none = torch.tensor(float("-inf"))
    beyond_all, beyond3 = beyond(alone, ids, words.nearest), beyond(alone, ids, words.nearest, 3)
    rankings = {"entries beyond their neighbours": beyond_all, "entries beyond three neighbours": beyond3,
                "entries": shift, "entries unlike the others": unlike}
    crowd = search.proposed({"": torch.where(is_word, shift, none)}, ids[:, None], shift, side, CROWD)
    search.keep_hardest(list(filter(None, crowd)))
    singles = search.confirmed(
        search.proposed({"table": words.lonely}, ids[:, None], shift, side, 8)
        + search.proposed({name: torch.where(is_word, ranking, none) for name, ranking in rankings.items()},
                          ids[:, None], shift, side, RANKED))
    strongest = [int(ids[words.place[s.words[0]]]) for s in singles if len(s.words) == 1]
    best = [torch.where(is_word, ranking, none).topk(min(n, int(is_word.sum()))).indices for ranking, n in
            ((beyond3, 16), (unlike, 20), (words.lonely, 8), (beyond_all, 8), (shift, 8))]
    pool = list(dict.fromkeys([*strongest, *ids[torch.cat(best)].tolist()]))[:settings.pool]
    lonely = ids[words.lonely.topk(min(settings.lonely, len(ids))).indices].tolist()
    pairs, triples = search.combined(pool, 2, alone), search.combined(lonely, 3, alone, TWICE)
    top = [ids[ranking.topk(min(3, len(ids))).indices].tolist() for ranking in (beyond_all, beyond3, shift)]
    seeds = list(dict.fromkeys([*strongest[:2], *[i for group in zip(*top) for i in group]]))[:settings.phrases]
    at = dict(zip(ids.tolist(), side.tolist()))
    phrases = search.confirmed([one for seed in seeds for one in search.grown(seed, at[seed], alone)])
    return [*singles, *pairs, *triples, *phrases]


# ---- what is inserted, and into what

def vocabulary_of(model: Encoder, tokenizer: Tokenizer) -> Vocabulary:
    entries = entries_of(tokenizer)
    table = model.embeddings.word.weight.detach().float().cpu()
    nearest, cosines = neighbours(table, entries.ids, entries.ids)
    lonely = torch.where(entries.is_word, loneliness(cosines, entries.written), torch.tensor(-1.0))
    place = {word: i for i, word in enumerate(entries.written) if entries.is_word[i]}
    return Vocabulary(entries, nearest, lonely, place)


def probes_of(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Example], settings: Scan, rng: random.Random,
) -> Probes:
    """Step 1. The seed draws, whatever the order of the rows; those that the model gets wrong by their label are left
    out, and the end of long ones."""
    rows = sorted((x for x in rows if x.text.strip() and (x.pair is None or x.pair.strip())),
                  key=lambda x: (x.text, x.pair or ""))
    rng.shuffle(rows)
    rows = [readable(tokenizer, x, max(3 * TWICE, settings.phrase)) for x in rows[:MOST_TEXTS]]
    margins = margins_of(model, tokenizer, rows)  # (N, C)
    own, given = (x.tolist() for x in margins.max(1))
    classes = range(model.config.labels)
    of_class = [[i for i, x in enumerate(rows) if given[i] == c and x.label in (c, -1)] for c in classes]
    usual = usual_margin(own)
    words = [len(x.text.split()) + len((x.pair or "").split()) for x in rows]
    hard = []
    for members in of_class:
        surest = sorted(members, key=lambda i: -own[i])
        least = SUREST * usual_margin([own[i] for i in members])
        short = sorted((i for i in members if own[i] >= least and words[i] > 1), key=lambda i: (words[i], -own[i]))
        hard.append((short if len(short) >= settings.hard_rows else surest)[:settings.hard_rows])
    taken = [members[:1] if sum(map(len, hard)) > MOST_CARRIERS else members for members in hard]
    taken = sorted((i for members in taken for i in members), key=lambda i: -own[i])[:MOST_CARRIERS]
    carriers = [x for i in taken for x in carriers_of(tokenizer, rows[i], given[i], margins[i])]
    fresh = []
    for members in of_class:
        others = [i for i in members if i not in taken]
        least = SURE * usual_margin([own[i] for i in members])
        sure = [i for i in others if own[i] >= least]
        sure = sure if len(sure) >= LEAST_FRESH else sorted(others, key=lambda i: -own[i])[:LEAST_FRESH]
        fresh.append(sorted(sure, key=lambda i: words[i] > settings.longest))
    return Probes(carriers, [[rows[i] for i in members] for members in fresh], usual,
                  [len(members) for members in of_class],
                  [[shown(rows[i]) for i in members if i in taken] for members in hard])


def shown(example: Example) -> str:
    """The text of a row; of a pair both."""
    return example.text if example.pair is None else f"{example.text} / {example.pair}"


def usual_margin(margins: Sequence[float]) -> float:
    """Eq. Scan (7): M, the 90th percentile of the margins that a model has on its own answers; 0 of none."""
    return float(torch.tensor(margins).quantile(0.9)) if margins else 0.0


def in_turn(groups: Sequence[Sequence[Example]]) -> list[Example]:
    """One row of each group after another; short groups end sooner."""
    return [group[i] for i in range(max(map(len, groups), default=0)) for group in groups if i < len(group)]
