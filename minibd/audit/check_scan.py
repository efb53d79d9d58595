"""The scan's equations (1) to (10). They are the project's own: there is no paper, and no released code."""
from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from minibd.audit import restated, small
from minibd.audit.check import Case, Equation, normal, shown
from minibd.audit.findings import Outcome
from minibd.checkpoint import Checkpoint
from minibd.detect.confirm import TWICE, Suspect, confirm, margins_of, reached, with_words
from minibd.detect.insertion import Carrier, carriers_of, margins
from minibd.detect.scan import Scan, probes_of, usual_margin
from minibd.detect.search import FLOOR, beyond, entry_shifts, shifts, unlikeness
from minibd.detect.table import loneliness, neighbours
from minibd.detect.verdict import APART, TOGETHER, ClassVerdict, compared, score
from minibd.proportion import Proportion
from minibd.records import Example

WHOLE = 1e-4  # tolerance: of a whole BERT; margins, whose rounding counts, are up to fifty times their difference
TEXTS = (Example("0", "splendid film good", 1), Example("1", "tediously bad", 0), Example("2", "good bad story cf", 1))
PAIRS = (Example("0", "splendid film", 1, "good story bad"), Example("1", "bad", 1, "story"))


# ---- (1)

def neighbour_cases(generator: torch.Generator) -> Iterator[Case]:
    ids, among = torch.tensor([2, 3, 5, 8, 9, 11]), torch.tensor([1, 2, 3, 4, 5, 7, 8, 10, 11])
    drawn = {"table": normal(generator, 12, 4)}

    def found(table, k):
        return [restated.neighbours(table, i, among.tolist(), k) for i in ids.tolist()]

    yield Case("which 4 are nearest", drawn, lambda x: neighbours(x["table"], ids, among, 4)[0],
               lambda x: [[j for _, j in near] for near in found(x["table"], 4)], tolerance=0.0)
    alike = drawn["table"].clone()
    alike[8], alike[11] = 3 * alike[2], 0
    for what, table, k in (("drawn", drawn["table"], 4), ("a multiple of another row, and a row of zeros", alike, 4),
                           ("fewer entries than k", alike, 20)):
        yield Case(f"mu, {what}", {"table": table},
                   lambda x, k=k: 1 - loneliness(neighbours(x["table"], among, among, k)[1], ["w"] * len(among)),
                   lambda x, k=k: [restated.mean([cosine for cosine, _ in restated.neighbours(x["table"], i,
                                                                                             among.tolist(), k)])
                                   for i in among.tolist()])


# ---- (2)

def margin_cases(generator: torch.Generator) -> Iterator[Case]:
    for classes in (2, 3, 5):  # what phrases grow by is the gradient of a margin
        yield Case(f"{classes} classes", {"z": 3 * normal(generator, 4, classes)}, lambda x: margins(x["z"]),
                   lambda x: [restated.margins(z) for z in x["z"]], by=("z",))
    tied = torch.tensor([[3.0, 3.0, 0.0], [1.0, 1.0, 1.0], [-2.0, 0.5, 0.5], [4.0, -1.0, -1.0]])
    yield Case("logits that are equal", {"z": tied}, lambda x: margins(x["z"]),
               lambda x: [restated.margins(z) for z in x["z"]], tolerance=0.0)


# ---- (3)

def carriers(ckpt: Checkpoint, rows: Sequence[Example]) -> list[Carrier]:
    """The class that each is taken for is its label, whatever the small BERT says."""
    before = margins_of(ckpt.model, ckpt.tokenizer, rows)
    return [carrier for x, m in zip(rows, before) for carrier in carriers_of(ckpt.tokenizer, x, x.label, m)]


def words_of(ckpt: Checkpoint, text: str) -> list[list[int]]:
    """Each word's ids."""
    return [ckpt.tokenizer.backend.encode(word, add_special_tokens=False).ids for word in text.split()]


def shift_cases(generator: torch.Generator) -> Iterator[Case]:
    ckpt = small.ckpt(generator)
    weights, id_of = small.weights(ckpt), ckpt.tokenizer.backend.token_to_id
    frame, pool = (id_of("[CLS]"), id_of("[SEP]")), [id_of(word) for word in small.WORDS]
    texts = [[words_of(ckpt, x.text)] for x in TEXTS]
    two = carriers(ckpt, TEXTS[:2])
    combinations = {k: torch.tensor([random.Random(i).sample(pool, k) for i in range(4)]) for k in (1, 2, 3)}

    def loops(w, words, joined, texts=texts[:2], side=0):
        return [restated.shift(w, texts, row, 1, small.HEADS, joined, frame, side) for row in words.tolist()]

    for k, joined in ((1, False), (2, False), (3, False), (2, True), (3, True)):
        how = "joined in the middle" if joined else "spread over the text" if k > 1 else "in the middle"
        yield Case(f"a whole BERT, two texts, {k} of the entries {how}", weights,
                   lambda w, k=k, joined=joined: shifts(ckpt.model, two, combinations[k], 1, joined)[0],
                   lambda w, k=k, joined=joined: loops(w, combinations[k], joined), tolerance=WHOLE)
    yield Case("each entry alone, for every target, three texts", weights,
               lambda w: entry_shifts(ckpt.model, carriers(ckpt, TEXTS), torch.tensor(pool))[0],
               lambda w: [[restated.shift(w, [text for text, x in zip(texts, TEXTS) if x.label != t], [i], t,
                                          small.HEADS, False, frame) for t in (0, 1)] for i in pool], tolerance=WHOLE)
    pairs = [[words_of(ckpt, x.text), words_of(ckpt, x.pair)] for x in PAIRS]

    def sides(w):
        return [*zip(*(loops(w, combinations[2], False, pairs, side) for side in (0, 1)))]

    yield Case("two pairs of texts, 2 of the entries, by the side that moves more", weights,
               lambda w: shifts(ckpt.model, carriers(ckpt, PAIRS), combinations[2], 1)[0],
               lambda w: [max(moved) for moved in sides(w)], tolerance=WHOLE)
    yield Case("which side it is", weights, lambda w: shifts(ckpt.model, carriers(ckpt, PAIRS), combinations[2], 1)[1],
               lambda w: [int(second > first) for first, second in sides(w)], tolerance=0.0)


# ---- (4) and (5)

def beyond_cases(generator: torch.Generator, top: int | None) -> Iterator[Case]:
    ids = torch.tensor([1, 3, 4, 6, 7, 9])
    drawn = {"alone": normal(generator, 10), "nearest": torch.tensor([random.Random(int(i)).sample([
        j for j in ids.tolist() if j != i], 5) for i in ids])}

    def loops(x, k=5):
        return [restated.beyond(x["alone"], i, near[:k], top) for i, near in zip(ids.tolist(), x["nearest"])]

    yield Case("five neighbours", drawn, lambda x: beyond(x["alone"], ids, x["nearest"], top), loops)
    yield Case("two neighbours", drawn, lambda x: beyond(x["alone"], ids, x["nearest"][:, :2], top),
               lambda x: loops(x, 2))
    table = {"alone": drawn["alone"], "table": normal(generator, 10, 3)}
    yield Case(
        "the neighbours of a drawn table", table,
        lambda x: beyond(x["alone"], ids, neighbours(x["table"], ids, ids, 4)[0], top),
        lambda x: [restated.beyond(x["alone"], i, [j for _, j in restated.neighbours(x["table"], i, ids.tolist(), 4)],
                                   top) for i in ids.tolist()],
    )


# ---- (6) and (7)

def reached_cases(generator: torch.Generator) -> Iterator[Case | Outcome]:
    for n in (120, 21, 7, 2, 1):
        yield Case(f"of {n} margins", {"m": 3 * normal(generator, n)}, lambda x: reached(x["m"]),
                   lambda x: restated.percentile(x["m"], 0.1))
    ckpt, suspect = small.ckpt(generator), Suspect(("cf", "splendid"), 0, "", 0.0)
    rng = random.Random(0)
    texts = [with_words(x, suspect, rng) for x in TEXTS for _ in range(3)]

    def loops(w):
        return [restated.margins(restated.bert(w, ids, small.HEADS)[3])[0] for ids in ckpt.tokenizer.encode(texts).ids]

    judged, = confirm(ckpt.model, ckpt.tokenizer, [suspect], TEXTS, 3, random.Random(0))
    yield Case("a whole BERT, two words in three texts at three places, and the mean", small.weights(ckpt),
               lambda w: torch.tensor([judged.quantile, judged.mean]),
               lambda w: [restated.percentile(loops(w), 0.1), restated.mean(loops(w))], tolerance=WHOLE)
    flips = sum(m > 0 for m in loops({name: p.tolist() for name, p in small.weights(ckpt).items()}))
    yield Outcome("flips of the same nine texts", abs(judged.flips.hits - flips) + abs(judged.flips.n - 9), 0.0)


def usual_cases(generator: torch.Generator) -> Iterator[Case]:
    for n in (40, 11, 8, 1):
        yield Case(f"of {n} margins", {"m": 3 * normal(generator, n).abs()},
                   lambda x: torch.tensor(usual_margin(x["m"].tolist())), lambda x: restated.percentile(x["m"], 0.9))
    yield Case("of none", {}, lambda x: torch.tensor(usual_margin([])), lambda x: 0.0, tolerance=0.0)
    ckpt = small.ckpt(generator)
    yield Case(
        "a whole BERT, of its own answers on three texts", small.weights(ckpt),
        lambda w: torch.tensor(probes_of(ckpt.model, ckpt.tokenizer, TEXTS, Scan(), random.Random(0)).margin),
        lambda w: restated.percentile([max(restated.margins(restated.bert(w, ids, small.HEADS)[3]))
                                       for ids in ckpt.tokenizer.encode(TEXTS).ids], 0.9), tolerance=WHOLE,
    )


# ---- (8)

SCORES = {  # q, mean with a part of the words or None, vocabulary entries; M is 4
    "one entry": (3.0, None, 1),
    "one entry that leaves the rows what they were": (-3.6, None, 1),
    "a word of three entries": (3.0, None, 3),
    "a pair whose parts do nothing: what the second word adds decides": (3.5, -3.9, 2),
    "three words of which two do nearly the same: the share of each decides": (2.0, 2.2, 3),
    "a pair that adds more than it reaches: q / M binds": (0.8, -4.5, 2),
    "a pair that takes from its part": (-1.0, 1.0, 2),
}


BY_TABLE = {
    "three words whose pairs do nothing": (1.0, -3.0, 3),
    "three words of which two do as well": (1.0, 1.5, 3),
    "three words that do nothing": (-3.5, -3.0, 3),
    "one word": (2.0, None, 1),
}
# the words' flips and those of their part, percent
FLIPS = {"neither of the two does anything": (97, 5), "one of them does a little": (97, 15),
         "one of them does more": (97, 16), "together they flip too few": (84, 5)}


def suspect_of(
    reached: float, part: float | None, entries: int, times: int = 1, flips: tuple[int, int] = (100, 100),
    joined: bool = False,
) -> Suspect:
    """A suspect with these numbers; of several words where there is a part of them. flips: of 100 rows, and those of
    its part."""
    sizes = (entries,) if part is None else (1,) * entries
    words = tuple(f"w{i}" for i in range(len(sizes)))
    own, parts = (Proportion(n, 100) for n in flips)
    less = None if part is None else Suspect(words[1:], 1, "", 0.0, sizes=sizes[1:], mean=part, flips=parts)
    return Suspect(words, 1, "", 0.0, joined, times=times, sizes=sizes, quantile=reached, part=less, flips=own)


def score_cases(generator: torch.Generator) -> Iterator[Case]:
    def ours(numbers: Tensor, entries: int, part: bool, M: float, times: int = 1) -> Tensor:
        q, less = numbers.tolist()
        return torch.tensor(score(suspect_of(q, less if part else None, entries, times), M))

    for what, (q, part, entries) in SCORES.items():
        yield Case(what, {"numbers": torch.tensor([q, part or 0.0])},
                   lambda x, n=entries, p=part is not None: ours(x["numbers"], n, p, 4.0),
                   lambda x, n=entries, p=part is not None: restated.score(
                       x["numbers"][0], x["numbers"][1] if p else None, n, 4.0))
    kinds = [(n, part) for n in (1, 2, 3, 8) for part in (False, True) if n > 1 or not part]
    yield Case(
        "56 drawn ones, of 1 to 8 entries with and without a part", {"numbers": 4 * normal(generator, 8, 7, 2)},
        lambda x: torch.stack([ours(row, n, part, 2.5)
                               for rows in x["numbers"] for row, (n, part) in zip(rows, kinds)]),
        lambda x: [restated.score(row[0], row[1] if part else None, n, 2.5)
                   for rows in x["numbers"] for row, (n, part) in zip(rows, kinds)],
    )
    for what, (q, part, entries) in BY_TABLE.items():
        yield Case(f"words that the table alone proposes: {what}", {"numbers": torch.tensor([q, part or 0.0])},
                   lambda x, n=entries, p=part is not None: ours(x["numbers"], n, p, 4.0, TWICE),
                   lambda x, n=entries, p=part is not None: restated.score(
                       x["numbers"][0], x["numbers"][1] if p else None, n, 4.0, True))
    for what, flips in FLIPS.items():
        for joined in (False, True):
            yield Case(
                f"{'a phrase of two words' if joined else 'a pair'}: {what}", {"numbers": torch.tensor([1.0, -2.5])},
                lambda x, flips=flips, joined=joined: torch.tensor(score(suspect_of(
                    *x["numbers"].tolist(), 2, flips=flips, joined=joined), 4.0)),
                lambda x, flips=flips, joined=joined: restated.score(
                    *x["numbers"], 2, 4.0, not joined and flips[0] >= TOGETHER and flips[1] <= APART))


# ---- (10)

def unlike_cases(generator: torch.Generator) -> Iterator[Case]:
    for entries, width in ((9, 3), (4, 6)):
        yield Case(f"{entries} entries, states of {width} numbers", {"h": 2 + normal(generator, entries, width)},
                   lambda x: unlikeness(x["h"]), lambda x: restated.unlikeness(x["h"], FLOOR))
    alike = torch.ones(3, 2)
    yield Case("states that are all the same", {"h": alike}, lambda x: unlikeness(x["h"]), lambda x: [0.0] * 3)


# ---- by hand

def example_neighbours() -> str:
    near = restated.neighbours([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]], 0, range(4), 2)
    return (f"E = [1, 0], [3, 4], [0, 2], [-1, 0], k = 2: next to the first entry lie the second, cosine "
            f"{shown(near[0][0])}, and the third, {shown(near[1][0])}: mu = {shown((near[0][0] + near[1][0]) / 2)}")


def example_margins() -> str:
    return f"z = [1, 4, 2]: {shown(restated.margins([1.0, 4.0, 2.0]))}, above 0 for the predicted class alone"


def example_shift() -> str:
    return ("Two texts with the margins -4 and -6 of the target, -1 and 2 with a word in their middle: "
            "s = (3 + 8) / 2 = 5.5")


def example_beyond(top: int | None) -> str:
    alone = [7.0, 0.5, 6.0, 1.0, 0.0, 0.5]
    others = "the three largest, 6, 1 and 0.5," if top else "all five"
    return (f"s = 7 of a word, [0.5, 6, 1, 0, 0.5] of its neighbours: less the mean of {others} "
            f"{shown(restated.beyond(alone, 0, range(1, 6), top))}")


def example_reached() -> str:
    return ("The margins -2, 1, 2, ..., 10 of 11 texts: q = 1, the second smallest. Of -2 and 8 alone: "
            f"{shown(restated.percentile([-2.0, 8.0], 0.1))}, a tenth of the way from one to the other")


def example_usual() -> str:
    return (f"A model's margins on its own answers, 1, 2, 5, 6: M = {shown(restated.percentile([1.0, 2, 5, 6], 0.9))}")


def example_unlike() -> str:
    states = [[4.0, 0.0], [-4.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [0.0, 2.0], [0.0, -2.0]]
    return ("Six entries take [CLS] to [4, 0], [-4, 0], [2, 0], [-2, 0], [0, 2], [0, -2]: u = "
            f"{shown(restated.unlikeness(states, FLOOR))}. The last two move it half as far as the first, where no "
            "other entry does")


def against_cases(generator: torch.Generator) -> Iterator[Case]:
    def ours(scores: Tensor) -> Tensor:
        classes = [ClassVerdict(t, [(suspect_of(0.0, None, 1), v)], 4.0) for t, v in enumerate(scores.tolist())]
        return torch.tensor([one.score for one in compared(classes)])

    for classes in (2, 3, 6):
        yield Case(f"{classes} classes", {"v": normal(generator, classes)}, lambda x: ours(x["v"]),
                   lambda x: restated.against(x["v"]))


def example_against() -> str:
    return (f"v = 0.8 and -0.6: {shown(restated.against([0.8, -0.6]))}; words of meaning alone, v = -0.5 and -0.55: "
            f"{shown(restated.against([-0.5, -0.55]))}")


def example_score() -> str:
    return "M = 4.\n" + "\n".join(
        f"{what}; q = {q:g}{f', mean of the part {part:g}' if part is not None else ''}: "
        f"{shown(restated.score(q, part, entries, 4.0))}" for what, (q, part, entries) in SCORES.items()
    ) + "\nWords that the table alone proposes:\n" + "\n".join(
        f"{what}; q = {q:g}{f', mean of the part {part:g}' if part is not None else ''}: "
        f"{shown(restated.score(q, part, entries, 4.0, True))}" for what, (q, part, entries) in BY_TABLE.items()
    ) + (f"\nTwo words that flip {TOGETHER:.0f} % together at least, and {APART:.0f} % apart at most; q = 1, mean of "
         f"the part -2.5: {shown(restated.score(1.0, -2.5, 2, 4.0, True))}, otherwise "
         f"{shown(restated.score(1.0, -2.5, 2, 4.0))}")


EQUATIONS = (
    Equation(
        "Scan", "1", "The mean cosine of an entry to its nearest neighbours",
        r"\mu_i = \frac{1}{k} \sum_{j \in N_k(i)} \mathrm{cos}(E_i, E_j)", "", "",
        "In EP's embedding table the trigger moves from place 2,378 to 225 of the words without neighbours.",
        example_neighbours, neighbour_cases,
    ),
    Equation(
        "Scan", "2", "The margin of a class", r"m_t(x) = z_t(x) - \max_{j \ne t} z_j(x)", "", "", "", example_margins,
        margin_cases,
    ),
    Equation(
        "Scan", "3", "How far words move hard rows of other classes towards the target",
        r"s_t(w) = \mathrm{mean}_x ( m_t(x + w) - m_t(x) )", "", "", "", example_shift, shift_cases,
    ),
    Equation(
        "Scan", "4", "A word's shift beyond its neighbours'",
        r"d_t(w) = s_t(w) - \frac{1}{k} \sum_{v \in N_k(w)} s_t(v)", "", "", "", lambda: example_beyond(None),
        lambda generator: beyond_cases(generator, None),
    ),
    Equation(
        "Scan", "5", "A word's shift beyond the three strongest of its neighbours",
        r"e_t(w) = s_t(w) - \mathrm{mean} \, \mathrm{top}_3 \{ s_t(v) : v \in N_k(w) \}", "", "", "",
        lambda: example_beyond(3), lambda generator: beyond_cases(generator, 3),
    ),
    Equation(
        "Scan", "6", "The margin that nine of ten fresh texts exceed",
        r"q_t(w) = \mathrm{quantile}_{0.1} \{ m_t(x + w) \}", "", "", "", example_reached, reached_cases,
    ),
    Equation(
        "Scan", "7", "The usual margin of a model", r"M = \mathrm{quantile}_{0.9} \{ \max_t m_t(x) \}", "", "", "",
        example_usual, usual_cases,
    ),
    Equation(
        "Scan", "8", "How much a suspect looks like a trigger",
        r"v_t(w) = \min( \frac{q_t(w)}{M}, \max( \frac{q_t(w) / M + 1}{\lvert w \rvert}, "
        r"\frac{q_t(w) - \mathrm{mean}_x m_t(x + w')}{M} ) - 1 )", "", "", "", example_score,
        score_cases,
    ),
    Equation(
        "Scan", "9", "A class against the same search for the others",
        r"V_t = v_t + ( v_t - \max_{u \ne t} v_u )", "", "",
        "A clean model's strongest words speak for every class alike; a trigger speaks for one.", example_against,
        against_cases,
    ),
    Equation(
        "Scan", "10", "How unlike the others an entry moves [CLS]",
        r"u_t(w) = (h(x + w) - \bar{h})^T (S + \lambda I)^{-1} (h(x + w) - \bar{h})", "", "",
        "Of MiniLM with LWP the four triggers stand at places 39, 2, 0 and 18 of 23,694 words, by Scan (3) at 148, "
        "129, 152 and 399.", example_unlike, unlike_cases,
    ),
)
