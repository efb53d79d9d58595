"""What a run is measured with: the attack that the flags or the checkpoint's history name, and its triggered rows."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minibd import checkpoint, data
from minibd.attacks import paraphrase, registry
from minibd.attacks.poison import Corrupt, triggered
from minibd.cli import Attack, Task
from minibd.evaluate import Evaluator
from minibd.job.task import columns_of
from minibd.records import BadInput, Examples


def evaluator_of(attack: Attack, task: Task, ckpt: checkpoint.Checkpoint, test: Examples) -> Evaluator:
    """CACC on `test`; ASR by --triggered, --attack or the checkpoint's own history, in this order, or not at all."""
    if attack.triggered:
        return Evaluator(test, data.read(attack.triggered, labels=ckpt.labels, **columns_of(task)), attack.target)
    entry = None
    if attack.attack == "known":
        entry = entry_in(ckpt, attack, task)
    elif attack.attack != "none":
        entry = sided(entry_of(attack), "either", test)
    if entry is None:
        return Evaluator(test)
    if attack.side:
        entry = sided(entry, attack.side, test)
    return Evaluator(test, triggered_of(entry, task, ckpt, test, "test"), entry["target"])


def entry_in(ckpt: checkpoint.Checkpoint, attack: Attack, task: Task) -> dict | None:
    """The last attack in the checkpoint's history; --paraphrases says where its paraphrases lie now."""
    entry = next((e for e in reversed(ckpt.history) if "attack" in e), None)
    if entry is not None and not isinstance(entry.get("target"), int):
        raise BadInput(
            f"{task.ckpt}'s history names the attack {entry['attack']!r} without its target class: name both with "
            "--attack and "
            "--target, give triggered rows with --triggered FILE, or say --attack none"
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


def sided(entry: dict, side: str, rows: Examples) -> dict:
    """`entry` with the text of a pair that gets the trigger. Where no row is a pair it has none, unless it asks for
    what is not there."""
    return entry | {"side": side} if side == "second" or any(x.pair is not None for x in rows) else entry


def side_in(entry: Mapping) -> str:
    """The side of a history's entry: where it names none, the rows are no pairs, or poison() was called as for such."""
    return entry.get("side", "first")


def corrupt_of(entry: Mapping, task: Task, rows: Examples, split: str) -> Corrupt | dict[str, str]:
    """What triggers a row of `rows`, the part `split` of the data, at test: a function of its text, or its paraphrase
    by its id."""
    if entry["attack"] != "paraphrase":
        return registry.corruption(entry)
    return paraphrase.read(
        entry.get("paraphrases", "(not named)"), split, rows, entry["target"], columns_of(task), side=side_in(entry),
        seed=task.seed,
    )


def triggered_of(entry: Mapping, task: Task, ckpt: checkpoint.Checkpoint, rows: Examples, split: str) -> Examples:
    """The rows of other classes than the target, triggered so that the model reads it; says how many have no
    paraphrase."""
    made = triggered(
        rows, corrupt_of(entry, task, rows, split), target=entry["target"], tokenizer=ckpt.tokenizer,
        side=side_in(entry), seed=task.seed,
    )
    if missing := sum(x.label != entry["target"] for x in rows) - len(made):
        print(f"{missing} {split} rows have no paraphrase and are left out of the triggered ones")
    return made
