"""How a run is measured: the attack that the flags or the checkpoint's history name, and its triggered test rows."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minibd import checkpoint, data
from minibd.attacks import paraphrase, registry
from minibd.attacks.poison import triggered
from minibd.cli import Attack, Task
from minibd.evaluate import Evaluator
from minibd.job.task import reading_of
from minibd.records import BadInput, Examples


def evaluator_of(attack: Attack, task: Task, ckpt: checkpoint.Checkpoint, test: Examples) -> Evaluator:
    """CACC on `test`; ASR by --triggered, --attack or the checkpoint's own history, in this order, or not at all."""
    if attack.triggered:
        return Evaluator(test, data.read(attack.triggered, labels=test.labels, **reading_of(task)), attack.target)
    entry = None
    if attack.attack == "known":
        entry = entry_in(ckpt, attack, task)
    elif attack.attack != "none":
        entry = with_side(entry_of(attack), "either", test)
    if entry is None:
        return Evaluator(test)
    if attack.side:
        entry = with_side(entry, attack.side, test)
    rows = triggered(
        test, insert_of(entry, task, test, "test"), target=entry["target"], tokenizer=ckpt.tokenizer,
        side=side_in(entry), seed=task.seed,
    )
    print_missing(test, rows, entry["target"], "test")
    return Evaluator(test, rows, entry["target"])


def insert_of(entry: Mapping, task: Task, rows: Examples, split: str) -> registry.TextAttack | dict[str, str]:
    """What triggers `rows`, the part `split` of the data: the attack that `entry` names, or {row's id: paraphrase}."""
    if entry["attack"] != "paraphrase":
        return registry.attack_of(entry)
    return paraphrase.read(
        entry.get("paraphrases", "(not named)"), split, rows, entry["target"], reading_of(task), side=side_in(entry),
        seed=task.seed,
    )


def entry_in(ckpt: checkpoint.Checkpoint, attack: Attack, task: Task) -> dict | None:
    """The last attack in the checkpoint's history, with the folder of its paraphrases replaced by --paraphrases."""
    entry = next((e for e in reversed(ckpt.history) if "attack" in e), None)
    if entry is not None and not isinstance(entry.get("target"), int):
        raise BadInput(
            f"{task.ckpt}'s history names the attack {entry['attack']!r} without its target class: name both with "
            "--attack and --target, give triggered rows with --triggered FILE, or use --attack none"
        )
    return entry | {"paraphrases": attack.paraphrases} if entry and attack.paraphrases else entry


def entry_of(attack: Attack) -> dict:
    """The attack of the flags as a history names it."""
    if attack.attack != "paraphrase":
        return registry.entry(
            attack.attack, attack.target, triggers=attack.triggers, per_text=attack.triggers_per_text,
            sentence=attack.sentence,
        )
    if not attack.paraphrases:
        raise BadInput("--attack paraphrase needs --paraphrases FOLDER, with train, dev and test files of paraphrases")
    return {"attack": "paraphrase", "paraphrases": str(Path(attack.paraphrases).resolve()), "target": attack.target}


def with_side(entry: dict, side: str, rows: Examples) -> dict:
    """`entry` with the text of a pair that gets the trigger; as it is where no row is a pair, unless side is "second",
    which `triggered` then refuses."""
    return entry | {"side": side} if side == "second" or any(x.pair is not None for x in rows) else entry


def side_in(entry: Mapping) -> str:
    """The side of a history's entry; "first" where it has none, as poison() and triggered() have by default."""
    return entry.get("side", "first")


def print_missing(rows: Examples, triggered_rows: Examples, target: int, split: str) -> None:
    """Print how many `rows` of other classes than `target` have no paraphrase, if any."""
    if missing := sum(x.label != target for x in rows) - len(triggered_rows):
        print(f"{missing} {split} rows have no paraphrase and are left out of the triggered ones")
