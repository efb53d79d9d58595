"""An attack as a checkpoint's history or a script's flags name it -> the function that triggers a text."""
from __future__ import annotations

from collections.abc import Mapping

from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import Corrupt
from minibd.records import BadInput


def corruption(entry: Mapping) -> Corrupt:
    """entry: {"attack": "badnets", "triggers": [...], "per_text": 1}."""
    if entry["attack"] != "badnets":
        raise BadInput(f"the attack {entry['attack']!r} is not one that this version can repeat: give its triggered rows with --triggered")
    return BadNets(tuple(entry["triggers"]), entry["per_text"])
