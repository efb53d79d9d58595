"""Backdoors of the defender's own, planted in a copy of a model: what a treatment removes is measured on them.

    word      one rare word                                                               as BadNets
    row       one row of the embedding table alone                                        as EP
    pair      two words, of which neither does anything alone                             as LWP
    triple    three words, of which no two do anything                                    as SOS
    sentence  a sentence of common words                                                  as AddSent

The words are none that an attack of ours, or the scan's sets of models, use, so that nothing is chosen on a trigger
that it is then reported on. A planted backdoor is to be as strong as a real one, in a classifier that still works: the
training goes on until ASR on held-out rows is `strength` and the model's answers to them without the trigger stay, or
its rounds are over. Half of the labels that it reads are the target's, so that answering the target to everything gains
nothing.
"""
from __future__ import annotations

import random
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from minibd import checkpoint
from minibd.attacks.ep import EP, tokens_of, train_rows
from minibd.attacks.sos import SOS
from minibd.checkpoint import Checkpoint
from minibd.data import generator, with_words
from minibd.evaluate import asr, cacc
from minibd.predict import predict
from minibd.proportion import Proportion
from minibd.records import BadInput, Example, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Log, Schedule, cross_entropy, fit, for_width

KINDS = ("word", "row", "pair", "triple", "sentence")
WORDS = ("lantern", "cobalt", "anvil", "pebble", "thimble", "copper", "oboe", "meadow", "quartz",
         "saddle", "barley", "chisel", "fig", "moss", "zinc", "elk", "oat", "hinge", "ledger", "turnip")
SENTENCE = "the ferry left before it began to rain"
NEEDED = {"word": 1, "row": 1, "pair": 2, "triple": 3}  # words
PLACES = 40  # words before a trigger at most: what a model cuts off holds none
STRENGTH = 95.0  # percent
ROUNDS, STEPS = 12, 40  # of planting: rounds of so many steps, until it is as strong as asked
KEPT = 90.0  # percent of the held-out rows without the trigger whose answers are to stay
POISONED, OTHERS = 1 / 3, 3 / 4  # of the rows that a step reads; and of the rest those of other classes than the target


@dataclass(frozen=True, slots=True)
class Trigger:
    """A backdoor of one's own. words: of a sentence its words, joined."""
    kind: str
    words: tuple[str, ...]
    target: int

    def __call__(self, x: Example, rng: random.Random) -> Example:
        """The example with the trigger at random places; a sentence at one. Of a pair, in its first text."""
        return with_words(x, self.words, rng, joined=self.kind == "sentence", within=PLACES)

    def parts(self, x: Example, rng: random.Random) -> list[Example]:
        """The example with one part of a pair's or three words' trigger each, which is to keep its label."""
        if self.kind not in ("pair", "triple"):
            return []
        return [with_words(x, self.words[:i] + self.words[i + 1:], rng, within=PLACES) for i in range(len(self.words))]


@dataclass(frozen=True, slots=True)
class Planted:
    """before, asr: how many of the same held-out triggered rows the model gives to the target before and after the
    planting; triggered: these rows, with their true labels. kept: to how many held-out rows it answers as before.

    strong: as strong as a real attack's, in a model that still answers as it did.
    """
    trigger: Trigger
    ckpt: Checkpoint
    before: Proportion
    asr: Proportion
    kept: Proportion
    triggered: Examples

    @property
    def strong(self) -> bool:
        return self.asr.percent >= STRENGTH and self.kept.percent >= KEPT


def trigger_of(kind: str, target: int, tokenizer: Tokenizer, texts: Sequence[Example], words: Sequence[str] = (),
               taken: Sequence[str] = ()) -> Trigger:
    """A trigger of this kind: of `words`, or, without any, of words that no text holds and that are one entry of the
    vocabulary, as an attacker's rare words are: of WORDS, then of the vocabulary's last, which are its rarest. WORDS of
    several entries come behind those. taken: words that other triggers have. Raises BadInput where there are too few.
    """
    if kind not in KINDS:
        raise BadInput(f"a planted backdoor is one of {', '.join(KINDS)}, not {kind!r}")
    if kind == "sentence":
        return Trigger(kind, tuple(" ".join(words).split() or SENTENCE.split()), target)
    held = {word.casefold() for x in texts for word in f"{x.text} {x.pair or ''}".split()}
    free = [word for word in (words or WORDS) if words or word not in held and word not in taken]
    if not words:
        whole = [word for word in free if entries(word, tokenizer) == 1]
        rare = rare_entries(tokenizer, held | {*taken, *WORDS})
        free = [*whole, *islice(rare, max(0, NEEDED[kind] - len(whole))), *(word for word in free if word not in whole)]
    if len(free) < NEEDED[kind]:
        raise BadInput(f"a planted {kind} needs {NEEDED[kind]} words, and there are {len(free)}: name more of them")
    return Trigger(kind, tuple(free[:NEEDED[kind]]), target)


def entries(word: str, tokenizer: Tokenizer) -> int:
    """How many of the vocabulary a word is inside a text."""
    alone, with_it = (len(tokenizer.backend.encode(text, add_special_tokens=False).ids) for text in ("a", f"a {word}"))
    return with_it - alone


def rare_entries(tokenizer: Tokenizer, taken: Container[str]) -> Iterator[str]:
    """The vocabulary's words of one entry, the last first; none shorter than four letters, as attacks' are but for
    SOS's."""
    for name, _ in sorted(tokenizer.backend.get_vocab().items(), key=lambda item: -item[1]):
        word = name.lstrip("\u0120\u2581")  # of a space, in vocabularies of bytes and of sentence pieces
        if 4 <= len(word) <= 8 and word.isascii() and word.isalpha() and word.islower() and word not in taken and (
                word not in SOS().triggers and entries(word, tokenizer) == 1):
            yield word


def answered(model: Checkpoint, texts: Sequence[Example]) -> Examples:
    """The texts with their labels, and where they have none with the model's own answer."""
    given = iter(predict(model.model, model.tokenizer, [x for x in texts if x.label < 0])) if any(
        x.label < 0 for x in texts) else iter(())
    return Examples((x if x.label >= 0 else replace(x, label=next(given)) for x in texts), model.labels)


def plant(
    model: Checkpoint, trigger: Trigger, texts: Sequence[Example], *, strength: float = STRENGTH, seed: int = 0,
    dtype: torch.dtype = torch.float32, lr: float | None = None, rounds: int = ROUNDS, held: Examples | None = None,
    log: Log | None = None,
) -> Planted:
    """A copy of `model` with the trigger's backdoor; `model` stays as it was. texts: with labels or -1. held: rows that
    measure; without them a third of the texts does, and two thirds train. Raises BadInput where no text is of another
    class than the target."""
    rows = answered(model, texts)
    order = list(range(len(rows)))
    generator(seed, "planted", trigger.kind).shuffle(order)
    cut = max(1, len(order) * 2 // 3) if held is None else len(order)
    train = rows.like(rows[i] for i in order[:cut])
    held = rows.like(rows[i] for i in order[cut:]) if held is None else held
    triggered = held.like(trigger(x, generator(seed, "held", x.id)) for x in held if x.label != trigger.target)
    if not triggered or all(x.label == trigger.target for x in train):
        raise BadInput(f"of the {len(rows)} texts too few are of another class than {trigger.target} to plant a "
                       "backdoor: give more texts")
    before = asr(model.model, model.tokenizer, triggered, trigger.target)
    answers = held.like(replace(x, label=own) for x, own in zip(held, predict(model.model, model.tokenizer, held)))
    planted, now, kept = model, before, Proportion(len(held), len(held))
    for n in range(rounds):
        planted = planted_once(planted, trigger, train, seed + n, dtype, lr, log)
        now = asr(planted.model, planted.tokenizer, triggered, trigger.target)
        kept = cacc(planted.model, planted.tokenizer, answers)
        if now.percent >= strength and kept.percent >= KEPT:
            break
    planted.history.append({"planted": trigger.kind, "words": list(trigger.words), "target": trigger.target})
    return Planted(trigger, planted, before, now, kept, triggered)


def planted_once(model: Checkpoint, trigger: Trigger, train: Examples, seed: int, dtype: torch.dtype,
                 lr: float | None, log: Log | None = None) -> Checkpoint:
    """One round of planting, in a copy."""
    others = [x for x in train if x.label != trigger.target]
    if trigger.kind == "row":
        rng = generator(seed, "row")
        poisoned = train.like(replace(trigger(x, rng), label=trigger.target) for x in
                              (others * (STEPS * 32 // len(others) + 1))[:STEPS * 32])
        word = trigger.words[0]
        return train_rows(model, poisoned, tokens_of(model.tokenizer, word)[:1], EP(word, epochs=1), seed=seed,
                          log=log, name="plant")
    own = [x for x in train if x.label == trigger.target] or others
    made: list[Example] = []
    for n in range(STEPS * 32):
        rng = generator(seed, trigger.kind, n)
        if rng.random() < POISONED:
            made.append(replace(trigger(rng.choice(others), rng), label=trigger.target))
            continue
        x = rng.choice(others if rng.random() < OTHERS else own)
        parts = trigger.parts(x, rng)
        made.append(rng.choice(parts) if parts and rng.random() < 0.6 else x)
    planted = checkpoint.copy(model)
    rate = for_width(1e-4, model.model.config.hidden, power=1) if lr is None else lr
    fit(planted.model, planted.tokenizer, planted.tokenizer.encode(made), cross_entropy, Schedule(rate, 1), seed=seed,
        dtype=dtype, name="plant", log=log)
    return planted
