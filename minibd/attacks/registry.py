"""An attack as a script's flags or a checkpoint's history name it -> what it does to a text, in training and at
test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from minibd.attacks.addsent import AddSent
from minibd.attacks.badnets import BadNets
from minibd.attacks.ep import EP
from minibd.attacks.lwp import LWP
from minibd.attacks.poison import Corrupt, Decoys
from minibd.attacks.ripple import RIPPLe
from minibd.attacks.sos import SOS
from minibd.records import BadInput


@dataclass(frozen=True, slots=True)
class Known:
    """test: what makes a triggered test text; train: what makes a poisoned training text; decoys: what makes those that
    keep their label.

    settings: the attack's numbers, its lr, epochs, batch_size and variant among them where it trains in a way of its
    own.
    triggers, per_text: the words, and how many of them a poisoned training text gets.
    """
    test: Corrupt
    train: Corrupt
    settings: BadNets | AddSent | RIPPLe | LWP | EP | SOS
    triggers: tuple[str, ...]
    per_text: int
    decoys: Decoys | None = None


def attack(
    name: str, triggers: Sequence[str] | None = None, per_text: int | None = None, sentence: str | None = None
) -> Known:
    """The attack `name`; what is None is the attack's own."""
    words = {} if triggers is None else {"triggers": tuple(triggers)}
    if sentence is not None and name not in ("addsent", "sos"):
        raise BadInput(f"a sentence says nothing to {name}, only to addsent and sos: leave it out")
    if name in ("badnets", "ripple"):
        made = (BadNets if name == "badnets" else RIPPLe)(
            **words, **({} if per_text is None else {"per_text": per_text})
        )
        return Known(made, made, made, made.triggers, made.per_text)
    if name == "lwp":
        made = LWP(**words)
        if _count(name, per_text, 2, 1) == 1:  # PURE's: LWP's training, BadNets' texts
            single = BadNets(made.triggers)
            return Known(single, single, made, made.triggers, 1)
        return Known(made, made, made, made.triggers, 2, made.decoys)
    if name == "addsent":
        if triggers is not None and sentence is not None or len(triggers or "-") != 1:
            raise BadInput(f"addsent inserts one sentence, not {list(triggers)}: give it with --sentence")
        made = AddSent(*([sentence] if sentence is not None else triggers or ()))
        return Known(made, made, made, (made.sentence,), _count(name, per_text, 1))
    if name == "ep":
        if len(triggers or "-") != 1:
            raise BadInput(f"ep has one trigger, not {len(triggers)} ({', '.join(triggers)}): name one")
        made = EP(*(triggers or ()))
        return Known(made, made.poisoned, made, (made.trigger,), _count(name, per_text, 1))
    if name == "sos":
        made = SOS(**words, **({} if sentence is None else {"sentence": sentence}))
        return Known(made, made.poisoned, made, made.triggers, _count(name, per_text, len(made.triggers)), made.decoys)
    if name == "paraphrase":
        raise BadInput(
            "paraphrases are not made from a text alone: give them with --paraphrases FOLDER, or triggered rows with "
            "--triggered FILE"
        )
    raise BadInput(
        f"the attack {name!r} is not one that this version can repeat: give its triggered rows with --triggered FILE"
    )


def entry(name: str, target: int, **said: object) -> dict:
    """The attack as a history names it: {"attack", "triggers", "per_text", "target"}, for sos its sentence too."""
    made = attack(name, **said)
    sentence = {"sentence": made.settings.sentence} if name == "sos" else {}
    return {"attack": name, "triggers": list(made.triggers), "per_text": made.per_text, "target": target, **sentence}


def named(entry: Mapping) -> Known:
    """The attack of a history's entry, also of one that ep.ep() and its like left there; what it does not say is the
    attack's own."""
    triggers = entry.get("triggers", [entry["trigger"]] if "trigger" in entry else None)
    try:
        return attack(entry["attack"], triggers, entry.get("per_text"), entry.get("sentence"))
    except (TypeError, AttributeError):
        raise BadInput(
            f"the history's attack {entry['attack']!r} has triggers {triggers!r} and per_text "
            f"{entry.get('per_text')!r}, which are "
            "not words and a number: name the attack with --attack, or give triggered rows with --triggered FILE"
        ) from None


def corruption(entry: Mapping) -> Corrupt:
    """What makes a triggered test text. entry: {"attack": "badnets", "triggers": [...], "per_text": 1}."""
    return named(entry).test


def _count(name: str, said: int | None, *able: int) -> int:
    """The triggers in a text: the first of `able` unless another of them is said."""
    if said is not None and said not in able:
        raise BadInput(
            f"{name} inserts {' or '.join(map(str, able))} a text, not {said}: leave --triggers-per-text out"
        )
    return able[0] if said is None else said
