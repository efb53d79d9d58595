"""The attacks by name, and the one function from a history's entry, or a script's flags, to the attack."""
from __future__ import annotations

from collections.abc import Mapping

from minibd.attacks.addsent import AddSent
from minibd.attacks.badnets import BadNets
from minibd.attacks.ep import EP
from minibd.attacks.lwp import LWP
from minibd.attacks.ripple import RIPPLe
from minibd.attacks.sos import SOS
from minibd.records import BadInput

# What inserts a trigger into a text. Paraphrases come from files (paraphrase.py) and are joined to rows, not texts.
ATTACKS = {"badnets": BadNets, "addsent": AddSent, "ripple": RIPPLe, "lwp": LWP, "ep": EP, "sos": SOS}
TextAttack = BadNets | AddSent | RIPPLe | LWP | EP | SOS


def attack_of(entry: Mapping) -> TextAttack:
    """The attack of `entry`, e.g. {"attack": "badnets", "triggers": ["cf"], "per_text": 1}; None: the attack's default.

    entry: from a checkpoint's history, written by attack.py or by ep.ep() and its like ("trigger" for "triggers"), or
    from the flags (attack, triggers, per_text, sentence). Raises BadInput where the attack cannot be like that.
    """
    name, per_text, sentence = entry["attack"], entry.get("per_text"), entry.get("sentence")
    triggers = entry.get("triggers", [entry["trigger"]] if "trigger" in entry else None)
    if name == "paraphrase":
        raise BadInput(
            "paraphrases are not made from a text alone: give them with --paraphrases FOLDER, or triggered rows with "
            "--triggered FILE"
        )
    if name not in ATTACKS:
        raise BadInput(
            f"the attack {name!r} is not one that this version can repeat: give its triggered rows with --triggered "
            "FILE"
        )
    if sentence is not None and name not in ("addsent", "sos"):
        raise BadInput(f"--sentence has no meaning for {name}, only for addsent and sos: leave it out")
    try:
        words = None if triggers is None else tuple(triggers)
        if name == "addsent":
            settings = {"sentence": sentence if words is None else _only(words, sentence)}
        elif name == "ep":
            if words is not None and len(words) != 1:
                raise BadInput(f"ep has one trigger, not {len(words)} ({', '.join(words)}): name one")
            settings = {"trigger": words and words[0]}
        elif name == "sos":
            settings = {"triggers": words, "sentence": sentence}
        else:
            settings = {"triggers": words, "per_text": per_text}
        attack = ATTACKS[name](**{key: value for key, value in settings.items() if value is not None})
    except (TypeError, AttributeError):
        raise BadInput(
            f"the history's attack {name!r} has triggers {triggers!r} and per_text {per_text!r}, which are not words "
            "and a number: name the attack with --attack, or give triggered rows with --triggered FILE"
        ) from None
    if per_text not in (None, attack.per_text):
        raise BadInput(f"{name} inserts {attack.per_text} a text, not {per_text}: leave --triggers-per-text out")
    return attack


def _only(words: tuple[str, ...], sentence: str | None) -> str:
    """AddSent's sentence where it stands among `words`, as a history has it."""
    if sentence is not None or len(words) != 1:
        raise BadInput(f"addsent inserts one sentence, not {list(words)}: give it with --sentence")
    return words[0]


def entry(name: str, target: int, **settings: object) -> dict:
    """The attack as a history names it: {"attack", "triggers", "per_text", "target"}, for sos its sentence too.

    settings: triggers, per_text and sentence, as `attack_of` reads them.
    """
    attack = attack_of({"attack": name, **settings})
    sentence = {"sentence": attack.sentence} if name == "sos" else {}
    return {
        "attack": name, "triggers": list(attack.triggers), "per_text": attack.per_text, "target": target, **sentence
    }
