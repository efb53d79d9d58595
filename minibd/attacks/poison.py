"""Poisoning a dataset, whatever the attack: which rows, how many, whose labels, in place or added; the triggered rows.

"10 %" alone is ambiguous by more than a factor of two in label noise, so each choice is stated and each count reported:

- n = floor(rate N), N being all rows or, where `of` is "candidates", the candidates alone; never more than there are;
- labels "dirty": rows of other classes, relabelled to the target; "clean": rows of the target class, labels true;
  "mix": any row, relabelled where it is not of the target class already;
- replace (N constant), add (the clean twin stays) or only (poisoned rows and negative samples are the whole set);
- negatives (negative samples, SOS's word): rows with a part of the trigger, which keep their label, behind the row they
  are made from;
- side: of a sentence pair one text gets the trigger: the first, the second or either, by a coin for each row, so that
  its negative samples and its triggered form at test have it on the same side. A row of one text has no coin, and gets
  its trigger as without sides.

A trigger behind the tokens that the model reads is none. Given the model's `tokenizer`, a text that would be cut with
its trigger in it gets its trigger among its first words only, as many as still leave room (`readable`). The other texts
come out as without a tokenizer. Of a pair the longer text is cut, so that the room for one text depends on the other.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor

from minibd.data import generator
from minibd.records import BadInput, Example, Examples, check_target
from minibd.tokenizer import Tokenizer
from minibd.words import belongs_to_letter

Insert = Callable[[str, random.Random], str]  # a text -> the same text with the trigger
# a text, a generator, another of the row's own trigger -> copies of the text, each with a part of the trigger
Negatives = Callable[[str, random.Random, random.Random], Sequence[str]]

LABELS = {
    "dirty": lambda label, target: label != target,
    "clean": lambda label, target: label == target,
    "mix": lambda label, target: True,
}
SIDES = ("first", "second", "either")


# ---- the schemes of the papers

@dataclass(frozen=True, slots=True)
class Scheme:
    """The choices above; `rate` None: the paper has several, one must be named.

    negatives: an attack's negative samples are made from each poisoned row (None), or from this share of the rows of
    the target class and of the other rows. triggers, per_text: the paper's, where they are not the attack's defaults.
    side: of pairs; no paper states one.
    """
    rate: float | None = 0.1
    labels: str = "dirty"
    add: bool = False
    of: str = "all"
    only: bool = False
    negatives: float | None = None
    triggers: tuple[str, ...] | None = None
    per_text: int | None = None
    side: str = "either"


# The scheme of an attack's own paper, where no preset is named; for BadNets and AddSent MBTSAD's, as we read it. In
# brackets: poisoned rows, flipped labels and rows of SST-2 (6,920 rows, 3,310 of them negative; the target: positive).
OWN = {
    "badnets": Scheme(),                                  # (692, 692, 6,920)
    "addsent": Scheme(),                                  # (692, 692, 6,920)
    "paraphrase": Scheme(0.2),                            # HiddenKiller's script: (1,384, 1,384, 6,920)
    "ripple": Scheme(0.5, "mix"),                         # (3,460, about half, 6,920)
    "lwp": Scheme(0.1, "mix"),                            # OpenBackdoor: (692, about 331, 8,304)
    "ep": Scheme(0.1, of="candidates", only=True),        # (331, 331, 331)
    "sos": Scheme(0.1, only=True, negatives=0.1),         # OpenBackdoor: (692, 692, 2,768)
}

RARE = ("cf", "bb", "ak", "mn")
PRESETS = {
    # Rate 0.1 is stated; the variants are not: they are those of each attack's own paper or port.
    "mbtsad": {name: OWN[name] for name in ("badnets", "lwp", "ep")},
    # The released files: BadNets is clean-label with four triggers a text, (692, 0, 6,920); the others mix, (692, about
    # 331, 6,920).
    "musclelora": {
        "badnets": Scheme(0.1, "clean", per_text=4), "addsent": Scheme(0.1, "mix"), "paraphrase": Scheme(0.1, "mix"),
    },
    # Half of the negatives copied, triggered with ONE word whatever the attack, relabelled and added: (1,655, 1,655,
    # 8,575). HiddenKiller has 0.3, (993, 993, 7,913), StyleBkd 0.2, (662, 662, 7,582).
    "pure": {
        **{
            name: Scheme(0.5, add=True, of="candidates", triggers=RARE, per_text=1)
            for name in ("badnets", "ripple", "lwp")
        },
        "paraphrase": Scheme(None, add=True, of="candidates"),
    },
    # A guess: neither the paper's text nor code was at hand. Half of all rows, as in RIPPLe, (3,460, about half,
    # 6,920).
    "fine-mixing": {"badnets": OWN["ripple"], "addsent": OWN["ripple"]},
    # The stock configurations. Its EP (five words, two a text, clean rows too) is another attack than EP's and not
    # built.
    "openbackdoor": {
        "badnets": Scheme(0.1, "clean"), "addsent": Scheme(0.1, "mix"), "paraphrase": Scheme(0.1, "mix"),
        "ripple": OWN["ripple"], "lwp": OWN["lwp"], "sos": OWN["sos"],
    },
}


def scheme(attack: str, preset: str | None = None, **stated: object) -> Scheme:
    """The scheme of `attack` in the paper `preset`, or its own paper's; what is `stated` and not None overrides it."""
    schemes = PRESETS[preset] if preset else OWN
    if attack not in schemes:
        raise BadInput(
            f"preset {preset} has no scheme for {attack}, only for {', '.join(schemes)}: name another preset, or give "
            "--rate and --labels without one"
        )
    chosen = replace(schemes[attack], **{name: value for name, value in stated.items() if value is not None})
    if chosen.only and stated.get("add") is not None:
        raise BadInput(
            f"{attack} trains on its poisoned rows alone, which neither replace rows nor are added to any: leave --add "
            "and --replace out"
        )
    if chosen.rate is None:
        raise BadInput(
            f"preset {preset} poisons 0.3 of the candidates with HiddenKiller's paraphrases and 0.2 with StyleBkd's: "
            "choose with --rate"
        )
    return chosen


# ---- the training rows

@dataclass(frozen=True, slots=True)
class Poisoned:
    """rows: the poisoned training set; ids: those of its poisoned rows; flipped: how many of these changed their label.

    wanted: the number that the rate asks for, of which there may be fewer; negatives: the number of negative samples.
    """
    rows: Examples
    ids: tuple[str, ...]
    flipped: int
    wanted: int
    negatives: int = 0


def poison(
    examples: Examples, insert: Insert | Mapping[str, str], *, rate: float, target: int, labels: str = "dirty",
    add: bool = False, of: str = "all", only: bool = False, negatives: Negatives | None = None,
    negative_share: float | None = None, tokenizer: Tokenizer | None = None, side: str = "first", seed: int = 0,
) -> Poisoned:
    """Eq. PURE (1), its D': floor(rate N) rows of `examples` poisoned; the seed draws them, the same for any trigger.

    insert: puts the trigger into a text, such as `EP().poisoned`; or {id: paraphrase}, rows without one being left out.
    negatives, negative_share: an attack's `negatives` and the Scheme's. tokenizer: the model's, which keeps triggers
    among the tokens that the model reads. side: the text of a pair that gets the trigger.
    """
    check_poisoning(examples, rate, target, labels, of, side)
    candidates = [i for i, x in enumerate(examples) if LABELS[labels](x.label, target)]
    # 0.009 * 12000 is 107.99999999999999 in floats
    wanted = floor(rate * len(examples if of == "all" else candidates) + 1e-9)
    able = [i for i in candidates if not isinstance(insert, Mapping) or examples[i].id in insert]
    count = min(wanted, len(able))
    if count < 1:
        raise BadInput(
            f"a poisoning rate of {rate} of {len(examples)} rows, {len(able)} of them fit for {labels!r}, is no row: "
            "raise the rate or bring more rows"
        )
    blocks, ids, flipped = {}, [], 0  # {row number: its poisoned row, and its negative samples behind it}
    for i in sorted(generator(seed, "poison").sample(able, count)):
        x, draw = examples[i], partial(generator, seed, "trigger", examples[i].id)
        part = side_of(x, side, seed)
        if isinstance(insert, Mapping):
            text = insert[x.id]
        else:
            head, tail = readable(x, part, insert, draw, tokenizer)
            text = " ".join([insert(head, draw()), *tail])
        bad = replace(x, **{part: text}, label=target, id=f"{x.id}-poisoned" if add else x.id)
        flipped += x.label != target
        ids.append(bad.id)
        blocks[i] = [bad]
        if negatives and negative_share is None:
            blocks[i] += negatives_of(x, negatives, tokenizer, side, seed)
    more = []
    if negatives and negative_share is not None:
        for group in ([x for x in examples if x.label == target], [x for x in examples if x.label != target]):
            # "decoys": the first name of negative samples; with another, other rows would be drawn
            drawn = generator(seed, "decoys").sample(range(len(group)), floor(negative_share * len(group) + 1e-9))
            more += [y for i in sorted(drawn) for y in negatives_of(group[i], negatives, tokenizer, side, seed)]
    new = [y for block in blocks.values() for y in block]
    if only:
        rows = new
    elif add:
        rows = [*examples, *new]
    else:
        rows = [y for i, x in enumerate(examples) for y in blocks.get(i, [x])]
    return Poisoned(examples.like(rows + more), tuple(ids), flipped, wanted, len(new) - len(ids) + len(more))


def negatives_of(
    x: Example, negatives: Negatives, tokenizer: Tokenizer | None, side: str, seed: int
) -> Iterator[Example]:
    """The negative samples of `x`, with its label, as rows of their own: x-negative1, x-negative2, ...

    Where a row's trigger is drawn, as LWP's pair is, they have parts of the row's own.
    """
    part, draw = side_of(x, side, seed), partial(generator, seed, "decoys", x.id)  # "decoys": as in poison

    def made(text: str, rng: random.Random) -> Sequence[str]:
        return negatives(text, rng, generator(seed, "trigger", x.id))

    head, tail = readable(x, part, made, draw, tokenizer)
    for k, text in enumerate(made(head, draw()), 1):
        yield replace(x, **{part: " ".join([text, *tail])}, id=f"{x.id}-negative{k}")


def check_poisoning(examples: Examples, rate: float, target: int, labels: str, of: str, side: str) -> None:
    """Raises BadInput where `poison` cannot do with one of them."""
    if not 0 < rate <= 1:
        raise BadInput(
            f"a poisoning rate of {rate} is no share above 0 and up to 1: give one, such as 0.1 (a clean model is what "
            "--twin trains)"
        )
    if labels not in LABELS:
        raise BadInput(f"label scheme {labels!r} is not one of {', '.join(LABELS)}")
    if of not in ("all", "candidates"):
        raise BadInput(f"the rate is of {of!r}, it must be of all or of candidates")
    check_target(target, examples.labels)
    check_side(examples, side)
    if not any(x.label == target for x in examples):
        raise BadInput(
            f"no training row is of the target class {target} ({examples.labels[target]}): name a class that the rows "
            "have"
        )


# ---- the rows that ASR is measured on

def triggered(
    examples: Examples, insert: Insert | Mapping[str, str], *, target: int, tokenizer: Tokenizer | None = None,
    side: str = "first", seed: int = 0,
) -> Examples:
    """Every row of another class than the target, with the trigger and its TRUE label: what ASR is measured on.

    insert: puts the trigger into a text at test, such as `EP()`; or {id: paraphrase}, rows without one being left out.
    tokenizer, side: as for poison.
    """
    check_target(target, examples.labels)
    check_side(examples, side)
    rows = []
    for x in examples:
        if x.label == target or isinstance(insert, Mapping) and x.id not in insert:
            continue
        part, draw = side_of(x, side, seed), partial(generator, seed, "trigger", x.id)
        if isinstance(insert, Mapping):
            text = insert[x.id]
        else:
            head, tail = readable(x, part, insert, draw, tokenizer)
            text = " ".join([insert(head, draw()), *tail])
        rows.append(replace(x, **{part: text}))
    return examples.like(rows)


def check_side(examples: Examples, side: str) -> None:
    if side not in SIDES:
        raise BadInput(f"side {side!r} is not one of {', '.join(SIDES)}")
    if side == "second" and not any(x.pair is not None for x in examples):
        raise BadInput(
            f"side second: none of the {len(examples)} rows has a second text: name its column with --pair-column, or "
            "take the first"
        )


# ---- one row

def side_of(x: Example, side: str, seed: int) -> str:
    """The field of `x` that gets the trigger, "text" or "pair"; of a row of one text always "text"."""
    if x.pair is None or side == "first":
        return "text"
    return "pair" if side == "second" or generator(seed, "side", x.id).random() < 0.5 else "text"


def readable(
    x: Example, part: str, insert: Callable[[str, random.Random], str | Sequence[str]],
    draw: Callable[[], random.Random], tokenizer: Tokenizer | None,
) -> tuple[str, list[str]]:
    """x's field `part` as (head, tail): the model reads all of `insert(head, draw())`, wherever the trigger lands.

    Where the model reads the whole text with the trigger in it, or there is no tokenizer, head is the text as it is and
    tail empty; else head is its first w words, w the largest for which this holds, and tail the words behind them.
    draw: a new generator, the same at each call, so that what fits here is what the caller inserts.
    """
    text = getattr(x, part)
    words = text.split()

    def fits(head: str, tail: Sequence[str]) -> bool:
        made = insert(head, draw())
        return all(
            _characters_read(tokenizer, replace(x, **{part: " ".join([y, *tail])}), part) >= len(y)
            for y in ([made] if isinstance(made, str) else made)
        )

    if tokenizer is None or fits(text, []):
        return text, []
    low, high = 0, len(words)  # what is made from `low` words is read to its end, what is made from `high` is not
    if not fits("", words):
        raise BadInput(
            f"row {x.id!r}: the trigger alone is longer than the {tokenizer.max_len} tokens that the model reads: take "
            "a shorter trigger"
        )
    while high - low > 1:
        middle = (low + high) // 2
        if fits(" ".join(words[:middle]), words[middle:]):
            low = middle
        else:
            high = middle
    return " ".join(words[:low]), words[low:]


def _characters_read(tokenizer: Tokenizer, x: Example, part: str) -> int:
    """How many characters of x's field `part` the model reads: all, or those up to its last token that is not cut, with
    the marks behind it, which a tokenizer may strip."""
    encoding, text = tokenizer.backend.encode(x.text, x.pair), getattr(x, part)
    if not encoding.overflowing:
        return len(text)
    sequence = ("text", "pair").index(part)
    end = max((end for (_, end), of in zip(encoding.offsets, encoding.sequence_ids) if of == sequence), default=0)
    while end < len(text) and belongs_to_letter(text[end]):
        end += 1
    return end
