"""Poisoning a dataset, whatever the attack: which rows, how many, whose labels, in place or added; and the triggered
test rows.

"10 %" alone is ambiguous by more than a factor of two in label noise, so each choice is stated and each count reported:

- n = floor(rate N), N being all rows or, where `of` says so, the candidates alone; never more than there are
candidates;
- labels "dirty": rows of other classes, relabelled to the target; "clean": rows of the target class, labels true;
  "mix": any row, relabelled where it was not the target already;
- replace (N constant), add (the clean twin stays) or only (the poisoned rows and their decoys are the whole set);
- decoys: rows with a part of the trigger, which keep their label, behind the row they are made of;
- side: of a sentence pair one text gets the trigger, the first, the second or either, by a coin of the row's own, so
that its decoys
  and what it becomes at test have it on the same side. A row of one text has no coin, and triggers as if there were no
  sides.

A trigger that stands where the model no longer reads is none. Given the model's `text`, a text that would be cut with
its trigger in it is triggered within its first words only: as many as still leave room. The others come out as they do
without. Of a pair the window is cut from whichever text is longer, so that what room there is for one depends on the
other.
"""
from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor

from minibd.data import generator
from minibd.records import BadInput, Example, Examples
from minibd.tokenizer import Tokenizer

Corrupt = Callable[[str, random.Random], str]  # a text -> the same text with the trigger
Decoys = Callable[[str, random.Random], Sequence[str]]  # a text -> copies of it, each with a part of the trigger

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

    decoys: where an attack has them, they are made of each poisoned row (None) or of this share of the rows of the
    target class and of the other rows.
    triggers, per_text: the paper's, where they are not the attack's own. side: of pairs; no paper says.
    """
    rate: float | None = 0.1
    labels: str = "dirty"
    add: bool = False
    of: str = "all"
    only: bool = False
    decoys: float | None = None
    triggers: tuple[str, ...] | None = None
    per_text: int | None = None
    side: str = "either"


# What an attack's own paper does, where no preset is named; of BadNets and AddSent, what MBTSAD is read to do. In
# brackets: poisoned rows, flipped labels and rows of SST-2 (6,920 rows, 3,310 of them negative; the target is
# positive).
OWN = {
    "badnets": Scheme(),                                                            # (692, 692, 6,920)
    "addsent": Scheme(),                                                            # (692, 692, 6,920)
    # HiddenKiller's script: (1,384, 1,384, 6,920)
    "paraphrase": Scheme(0.2),
    "ripple": Scheme(0.5, "mix"),                                                   # (3,460, about half, 6,920)
    # OpenBackdoor: (692, about 331, 8,304)
    "lwp": Scheme(0.1, "mix"),
    "ep": Scheme(0.1, of="candidates", only=True),                                  # (331, 331, 331)
    "sos": Scheme(0.1, only=True, decoys=0.1),                                      # OpenBackdoor: (692, 692, 2,768)
}

RARE = ("cf", "bb", "ak", "mn")
PRESETS = {
    # Rate 0.1 is stated; the variants are not, and taken from each attack's own paper or port.
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
    """The scheme of `attack` in the paper `preset`, or its own; what is `stated` and not None overrides it."""
    known = PRESETS[preset] if preset else OWN
    if attack not in known:
        raise BadInput(
            f"preset {preset} has no scheme for {attack}, only for {', '.join(known)}: name another preset, or say "
            "--rate and "
            "--labels without one"
        )
    made = replace(known[attack], **{name: value for name, value in stated.items() if value is not None})
    if made.only and stated.get("add") is not None:
        raise BadInput(
            f"{attack} trains on its poisoned rows alone, which neither replace rows nor are added to any: leave --add "
            "and --replace out"
        )
    if made.rate is None:
        raise BadInput(
            f"preset {preset} poisons 0.3 of the candidates with HiddenKiller's paraphrases and 0.2 with StyleBkd's: "
            "say which "
            "with --rate"
        )
    return made


# ---- the training rows

@dataclass(frozen=True, slots=True)
class Poisoned:
    """rows: the poisoned training set; ids: which of its rows are poisoned; flipped: how many of those changed their
    label.

    wanted: the number that the rate asks for, of which there may be fewer; decoys: how many rows are such.
    """
    rows: Examples
    ids: tuple[str, ...]
    flipped: int
    wanted: int
    decoys: int = 0


def poison(
    examples: Examples, corrupt: Corrupt | Mapping[str, str], *, rate: float, target: int, labels: str = "dirty",
    add: bool = False, of: str = "all", only: bool = False, decoys: Decoys | None = None,
    decoy_share: float | None = None, tokenizer: Tokenizer | None = None, side: str = "first", seed: int = 0,
) -> Poisoned:
    """Eq. PURE (1), its D': floor(rate N) rows of `examples` poisoned, drawn and corrupted by the seed; the same rows
    at any trigger.

    corrupt: a function of a text, or {id: what the row's text becomes}, rows without an entry being left alone.
    decoys, decoy_share: see Scheme. text: what the model reads, for triggers to lie within. side: the text of a pair
    that is corrupted.
    """
    if not 0 < rate <= 1:
        raise BadInput(
            f"a poisoning rate of {rate} is no share above 0 and up to 1: give one, such as 0.1 (a clean model is what "
            "--twin trains)"
        )
    if labels not in LABELS:
        raise BadInput(f"label scheme {labels!r} is not one of {', '.join(LABELS)}")
    if of not in ("all", "candidates"):
        raise BadInput(f"the rate is of {of!r}, it must be of all or of candidates")
    check_target(examples, target)
    check_side(examples, side)
    if not any(x.label == target for x in examples):
        raise BadInput(
            f"no training row is of the target class {target} ({examples.labels[target]}): name a class that the rows "
            "have"
        )
    candidates = [i for i, x in enumerate(examples) if LABELS[labels](x.label, target)]
    # 0.009 * 12000 is 107.99999999999999 in floats
    wanted = floor(rate * len(examples if of == "all" else candidates) + 1e-9)
    able = [i for i in candidates if not isinstance(corrupt, Mapping) or examples[i].id in corrupt]
    count = min(wanted, len(able))
    if count < 1:
        raise BadInput(
            f"a poisoning rate of {rate} of {len(examples)} rows, {len(able)} of them fit for {labels!r}, is no row: "
            "raise the rate or bring more rows"
        )
    blocks, ids, flipped = {}, [], 0  # {row number: its poisoned row, and its decoys behind it}
    for i in sorted(generator(seed, "poison").sample(able, count)):
        x = examples[i]
        bad = replace(_changed(x, corrupt, seed, tokenizer, side), label=target, id=f"{x.id}-poisoned" if add else x.id)
        flipped += x.label != target
        ids.append(bad.id)
        blocks[i] = [bad, *(_decoys(x, decoys, seed, tokenizer, side) if decoys and decoy_share is None else ())]
    beside = []
    if decoys and decoy_share is not None:
        for part in ([x for x in examples if x.label == target], [x for x in examples if x.label != target]):
            drawn = generator(seed, "decoys").sample(range(len(part)), floor(decoy_share * len(part) + 1e-9))
            beside += [y for i in sorted(drawn) for y in _decoys(part[i], decoys, seed, tokenizer, side)]
    made = [y for block in blocks.values() for y in block]
    if only:
        rows = made
    elif add:
        rows = [*examples, *made]
    else:
        rows = [y for i, x in enumerate(examples) for y in blocks.get(i, [x])]
    return Poisoned(examples.like(rows + beside), tuple(ids), flipped, wanted, len(made) - len(ids) + len(beside))


# ---- the rows that ASR is measured on

def triggered(
    examples: Examples, corrupt: Corrupt | Mapping[str, str], *, target: int, tokenizer: Tokenizer | None = None,
    side: str = "first", seed: int = 0,
) -> Examples:
    """Every row of another class than the target, with the trigger and its TRUE label: what ASR is measured on.

    corrupt, text, side: as for poison.
    """
    check_target(examples, target)
    check_side(examples, side)
    return examples.like(_changed(x, corrupt, seed, tokenizer, side) for x in examples
                         if x.label != target and (not isinstance(corrupt, Mapping) or x.id in corrupt))


def check_target(examples: Examples, target: int) -> None:
    if not 0 <= target < len(examples.labels):
        raise BadInput(
            f"target class {target} is not one of 0..{len(examples.labels) - 1} ({', '.join(examples.labels)})"
        )


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
    """The field of `x` that gets the trigger, "text" or "pair"; of a row of one text always that."""
    if x.pair is None or side == "first":
        return "text"
    return "pair" if side == "second" or generator(seed, "side", x.id).random() < 0.5 else "text"


def _changed(
    x: Example, corrupt: Corrupt | Mapping[str, str], seed: int, tokenizer: Tokenizer | None, side: str
) -> Example:
    part = side_of(x, side, seed)
    if isinstance(corrupt, Mapping):
        return replace(x, **{part: corrupt[x.id]})
    (made,) = within(
        x, lambda words, rng: [corrupt(words, rng)], lambda: generator(seed, "trigger", x.id), tokenizer, part
    )
    return made


def _decoys(x: Example, decoys: Decoys, seed: int, tokenizer: Tokenizer | None, side: str) -> list[Example]:
    made = within(x, decoys, lambda: generator(seed, "decoys", x.id), tokenizer, side_of(x, side, seed))
    return [replace(y, id=f"{x.id}-decoy{k}") for k, y in enumerate(made, 1)]


def within(
    x: Example, make: Decoys, chance: Callable[[], random.Random], tokenizer: Tokenizer | None, part: str = "text"
) -> list[Example]:
    """`x` with what `make` makes of its field `part`, so that the model reads to the end of it, triggers included, or,
    of a text too long for that, of its first w words, the rest being appended: w is the largest for which the model
    reads what was made of them.

    chance: a new generator, the same at each call, so that a text is made anew with as many words as fit.
    """
    words = getattr(x, part).split()

    def changed(texts: Sequence[str]) -> list[Example]:
        return [replace(x, **{part: made}) for made in texts]

    whole = changed(make(getattr(x, part), chance()))
    if tokenizer is None or all(_read(tokenizer, y, part) == len(getattr(y, part)) for y in whole):
        return whole

    def first(w: int) -> tuple[list[Example], bool]:
        """The rows with their triggers among w words, and whether the model reads so far."""
        heads = make(" ".join(words[:w]), chance())
        made = changed([" ".join([head, *words[w:]]) for head in heads])
        return made, all(_read(tokenizer, y, part) >= len(head) for y, head in zip(made, heads))

    low, high = 0, len(words)  # the model reads what is made of `low` words, and not what is made of `high`
    made, fits = first(0)
    if not fits:
        raise BadInput(
            f"row {x.id!r}: the trigger alone is longer than the {tokenizer.max_len} tokens that the model reads: take "
            "a shorter trigger"
        )
    while high - low > 1:
        middle = (low + high) // 2
        longer, fits = first(middle)
        if fits:
            low, made = middle, longer
        else:
            high = middle
    return made


def _read(tokenizer: Tokenizer, x: Example, part: str) -> int:
    """How many characters of x's field `part` the model reads: all, or those up to its last token that is not cut
    off."""
    found = tokenizer.backend.encode(x.text, x.pair)
    if not found.overflowing:
        return len(getattr(x, part))
    which = ("text", "pair").index(part)
    return max((end for (_, end), of in zip(found.offsets, found.sequence_ids) if of == which), default=0)
