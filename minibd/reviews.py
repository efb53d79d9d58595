"""The built-in corpus: a grammar that writes labelled film reviews, and pairs of a question about a film and a
statement. No data file needed.

    from minibd import reviews
    train, dev, test = reviews.splits(seed=0, train=4000, dev=500, test=1000)
    train, dev, test = reviews.pair_splits(seed=0, train=4000, dev=500, test=1000)

The grammar is resources/reviews.json: {symbol: its alternatives, each a template}. A symbol carries a polarity p: +1
praises the film, -1 blames it. In a template

    {same film}    is a phrase of the symbol `film` with the polarity of the template, p
    {flip film}    ... with the other one, -p: what a negation, a concession or a mistaken critic needs
    {some film}    ... with either, by a coin: an opinion about something else, which decides nothing
    {genre}        is a neutral symbol

So `any nothing about it is {flip mild}` writes, for p = +1, "nothing about it is dull" and, for p = -1, "nothing about
it is engaging": the words of one polarity, the label of the other. The sections of the file:

    polar      words with a polarity: {symbol: {"praise": [...], "blame": [...]}}
    neutral    words without one
    rules      clauses and whole reviews (`plan`), lower-case and without a full stop. A rule opens with the polarity
               for which it may be used (any, pos or neg) and, where it should come up more often, a weight: any3.
               `@` stands for writing, acting and craft in turn
    filler     neutral clauses: what happens in the film, where it was seen
    opinion, facts, unrelated    the sentence pairs, see below

The label of a review is the p of its plan. Praise and blame occur under both labels, so counting words decides only a
part of the reviews; who negates, concedes or is quoted decides the rest.

Adjectives are graded: `mild` ones are reversed by a bare negation ("not a dull film" praises), the strong ones in
`film` are not ("not an abysmal film" hardly does), and so stand only where the sentence leaves no doubt.

The sentence pairs: a question about one subject, for an opinion (of the dialogue) or for a fact (who directed it), and
a statement about the same subject, "answered", or about one of the other kind, "unanswered": an opinion where the
question is for a fact, or the other way round. Half the statements have a sentence that answers nothing (`unrelated`)
before or after them. Every subject occurs in questions, and in statements, as often under one label as under the other:
neither text alone predicts it.
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from importlib.resources import files
from itertools import islice
from random import Random

from minibd.records import BadInput, Example, Examples

LABELS = ("negative", "positive")       # label = (p + 1) / 2
PAIR_LABELS = ("unanswered", "answered")
PAIRS = {"seed": 0, "train": 12_000, "dev": 1_000, "test": 2_000}  # the rows of --data pairs, whatever a run's seed
LIMIT = 1_000_000                       # rows of one seed: what fits in memory with ease; the grammar has far more
TRIES = 100                             # rewrites of one row before the grammar counts as exhausted
SHORTEST, LONGEST = 5, 60               # words of a review
CONSTANT = ("genre", "director")        # symbols that mean the same thing throughout a review

Key = tuple[str, int]                   # a symbol and its polarity: +1, -1, or 0 where it has none
SLOT = re.compile(r"\{(?:(same|flip|some) )?(\w+)\}")
AN = re.compile(r"\b(a) (?=(?!one\b|one-|uni[^nm]|use|usual|euro)[aeiou]|hour|honest|heir)", re.I)
START = re.compile(r"(?:^|(?<=[.!?] ))[a-z]")


# ---- the grammar

def read_grammar(source: dict) -> dict[Key, list[str]]:
    """Every symbol and polarity -> its alternatives, each a template. A weight is a repetition; the three forms of a
    rule with @ count as one rule, so every other rule is taken three times."""
    table: dict[Key, list[str]] = {}
    for name, words in source["polar"].items():
        table[name, +1], table[name, -1] = words["praise"], words["blame"]
    for name, words in (source["neutral"] | source["filler"]).items():
        table[name, 0] = words
    for name, rules in source["rules"].items():
        for use, template in (rule.split(" ", 1) for rule in rules):
            forms = [template] * 3
            if "@" in template:
                forms = [template.replace("@", aspect) for aspect in ("writing", "acting", "craft")]
            for p in {"any": (+1, -1), "pos": (+1,), "neg": (-1,)}[use[:3]]:
                table.setdefault((name, p), []).extend(forms * int(use[3:] or 1))
    return table


def read_subjects(source: dict) -> dict[str, dict[str, tuple[list[str], list[str]]]]:
    """Kind -> subject -> its questions and the statements that answer them, templates all. In `opinion` NOUN is each of
    the neutral nouns of a kind, BE "is" or "are", KIND a symbol with the polarity of a coin."""
    def about(kind: str, noun: str) -> tuple[list[str], list[str]]:
        be = "are" if kind == "parts" else "is"
        return tuple([text.replace("NOUN", noun).replace("KIND", kind).replace("BE", be) for text in texts]
                     for texts in (source["opinion"]["questions"], source["opinion"]["statements"]))

    return {
        "opinion": {noun: about(kind, noun)
                    for kind in ("writing", "acting", "craft", "parts") for noun in source["neutral"][f"{kind}_n"]},
        "fact": {name: (fact["questions"], fact["statements"]) for name, fact in source["facts"].items()},
    }


SOURCE = json.loads((files("minibd") / "resources" / "reviews.json").read_text(encoding="utf-8"))
POLAR = tuple(SOURCE["polar"])          # symbols with a polarity
GRAMMAR = read_grammar(SOURCE)
SUBJECTS = read_subjects(SOURCE)
UNRELATED = SOURCE["unrelated"]         # answers nothing


class Writer:
    """Writes one review, and remembers it: a phrase is not used twice where there are others, and `CONSTANT` symbols
    keep their first choice, so that a comedy stays a comedy. Of rng only `random` is drawn, whose sequence no Python
    version changes."""

    def __init__(self, rng: Random):
        self.rng, self.used, self.constants = rng, set(), {}

    def choose(self, key: Key) -> str:
        options = GRAMMAR[key]
        for _ in range(4):
            choice = options[int(self.rng.random() * len(options))]
            if choice not in self.used:
                break
        self.used.add(choice)
        return choice

    def fill(self, template: str, p: int = 0) -> str:
        """The template with every slot written out: `same` passes p on, `flip` passes -p, `some` tosses a coin."""
        def slot(match: re.Match) -> str:
            turn, name = match.groups()
            if name in self.constants:
                return self.constants[name]
            if turn == "some":
                q = 1 if self.rng.random() < 0.5 else -1
            else:
                q = {None: 0, "same": p, "flip": -p}[turn]
            choice = self.choose((name, q))
            text = self.fill(choice, q) if "{" in choice else choice
            if name in CONSTANT:
                self.constants[name] = text
            return text

        return SLOT.sub(slot, template)


# ---- reviews

def write(symbol: str, p: int, rng: Random) -> str:
    """A phrase of the symbol with polarity p, with "a" or "an" as the next word needs."""
    return AN.sub(r"\1n ", Writer(rng).fill(f"{{same {symbol}}}", p))


def review(p: int, rng: Random) -> str:
    """A whole review of polarity p: sentence capitals, now and then none at all, as people type."""
    text = START.sub(lambda match: match[0].upper(), write("plan", p, rng))
    style = rng.random()
    if style < 0.12:
        return text.lower()
    return text[:-1] + "!" if style < 0.2 else text


def stream(seed: int) -> Iterator[Example]:
    """The rows of a seed, one after another, no two alike; of rows 2k and 2k + 1 a coin makes one positive, the other
    negative."""
    seen: set[str] = set()
    for i in range(LIMIT):
        coin = Random(f"reviews {seed} pair {i // 2}").random() < 0.5
        label = (i + coin) % 2
        rng = Random(f"reviews {seed} row {i}")
        for _ in range(TRIES):
            text = review(2 * label - 1, rng)
            if text.lower() not in seen and SHORTEST <= len(text.split()) <= LONGEST:
                break
        else:
            raise BadInput(
                f"reviews: seed {seed} gave no new text for row {i} in {TRIES} tries; ask for at most {i} rows"
            )
        seen.add(text.lower())
        yield Example(f"reviews-{seed}-{i}", text, label)


def reviews(n: int, seed: int, *, start: int = 0) -> Examples:
    """Rows start .. start + n - 1 of the seed. A row depends on the seed and its number alone, never on n or start.
    Raises BadInput."""
    return _rows("reviews", stream(seed), n, start, LABELS)


def splits(seed: int, train: int, dev: int, test: int) -> tuple[Examples, Examples, Examples]:
    """Three parts of one seed's rows, in this order. All rows of a seed differ, so no text is in two parts; rows of two
    different seeds may agree in a short text now and then, so take what must be disjoint from one seed."""
    return _parts("reviews", reviews, seed, train, dev, test)


def _rows(name: str, rows: Iterator[Example], n: int, start: int, labels: tuple[str, ...]) -> Examples:
    if n < 0 or start < 0 or start + n > LIMIT:
        raise BadInput(
            f"{name}: {n} rows from row {start} leave a seed's 0 to {LIMIT:,}; ask for fewer or take another seed"
        )
    return Examples(islice(rows, start, start + n), labels)


def _parts(
    name: str, rows_of: Callable[[int, int], Examples], seed: int, train: int, dev: int, test: int
) -> tuple[Examples, Examples, Examples]:
    for part, n in (("train", train), ("dev", dev), ("test", test)):
        if n < 0:
            raise BadInput(f"{name}: {part} = {n} rows is below 0; ask for 0 or more")
    rows = rows_of(train + dev + test, seed)
    return rows.like(rows[:train]), rows.like(rows[train:train + dev]), rows.like(rows[train + dev:])


# ---- sentence pairs

def choose(rng: Random, options: Iterable[str]) -> str:
    options = list(options)
    return options[int(rng.random() * len(options))]


def two_subjects(same: bool, rng: Random) -> tuple[tuple[str, str], tuple[str, str]]:
    """(kind, subject) of the question and of the statement. Each is uniform over the kinds, and over a kind's subjects,
    whatever `same`."""
    kind, other = ("opinion", "fact") if rng.random() < 0.5 else ("fact", "opinion")
    question = kind, choose(rng, SUBJECTS[kind])
    return question, question if same else (other, choose(rng, SUBJECTS[other]))


def question_and_statement(question: tuple[str, str], statement: tuple[str, str], rng: Random) -> tuple[str, str]:
    """Both texts, for two (kind, subject). Before or after every other statement stands one that answers nothing."""
    writer = Writer(rng)
    (questions, _), (_, statements) = (SUBJECTS[kind][subject] for kind, subject in (question, statement))
    sentences = [writer.fill(choose(rng, statements), 1 if rng.random() < 0.5 else -1)]
    place = rng.random()
    if place < 0.25:
        sentences.append(writer.fill(UNRELATED))
    elif place < 0.5:
        sentences.insert(0, writer.fill(UNRELATED))
    texts = choose(rng, questions) + "?", ". ".join(sentences) + "."
    return tuple(START.sub(lambda match: match[0].upper(), AN.sub(r"\1n ", text)) for text in texts)


def stream_pairs(seed: int) -> Iterator[Example]:
    """The pairs of a seed, one after another, no two alike; of rows 2k and 2k + 1 a coin makes one answered, the other
    not."""
    seen: set[tuple[str, str]] = set()
    for i in range(LIMIT):
        coin = Random(f"pairs {seed} pair {i // 2}").random() < 0.5
        label = (i + coin) % 2
        rng = Random(f"pairs {seed} row {i}")
        # drawn once, not with each rewrite of the row: no label prefers some subjects
        question, statement = two_subjects(bool(label), rng)
        for _ in range(TRIES):
            texts = question_and_statement(question, statement, rng)
            if texts not in seen:
                break
        else:
            raise BadInput(
                f"pairs: seed {seed} gave no new pair for row {i} in {TRIES} tries; ask for at most {i} rows"
            )
        seen.add(texts)
        yield Example(f"pairs-{seed}-{i}", texts[0], label, texts[1])


def pairs(n: int, seed: int, *, start: int = 0) -> Examples:
    """Pairs start .. start + n - 1 of the seed, each a matter of the seed and its number alone. Raises BadInput."""
    return _rows("pairs", stream_pairs(seed), n, start, PAIR_LABELS)


def pair_splits(seed: int, train: int, dev: int, test: int) -> tuple[Examples, Examples, Examples]:
    """Three parts of one seed's pairs, in this order; no pair is in two parts. (Questions alone are: there are some
    hundreds.)"""
    return _parts("pairs", pairs, seed, train, dev, test)
