"""How a run is measured: the attack that the flags or the checkpoint's history name, and its triggered test rows."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace

from minibd import checkpoint, data
from minibd.attacks import paraphrase, registry
from minibd.attacks.poison import triggered
from minibd.cli import Attack, Task, flag_of, idle
from minibd.evaluate import Evaluator
from minibd.job.idle import ATTACK, ATTACK_FLAGS
from minibd.job.task import check_columns, reading_of
from minibd.lines import listed, shown, visible
from minibd.records import BadInput, Examples, check_target

TARGET = 1  # where --target is not given: the papers' class


def evaluator_of(attack: Attack, task: Task, ckpt: checkpoint.Checkpoint, test: Examples) -> Evaluator:
    """CACC on `test`; ASR by --triggered, --attack or the checkpoint's own history, in this order, or not at all.

    Raises BadInput where a setting of `attack` would do nothing, as `check_attack`."""
    given = check_attack(attack, task, ckpt, test)
    if given is not None:
        return Evaluator(test, given, class_of(attack.target, test.labels))
    entry = None
    if attack.attack == "known":
        entry = entry_in(ckpt, attack, task)
    elif attack.attack != "none":
        entry = with_side(entry_of(attack, class_of(attack.target, test.labels)), "either", test)
    if entry is None:
        return Evaluator(test)
    if attack.attack == "known" and all(x.label == entry["target"] for x in test):  # nobody asked for it
        print(f"ASR is not measured: all {len(test)} rows are of the class {entry['target']}, which the attack of the "
              "checkpoint's history aims at")
        return Evaluator(test)
    if attack.side:
        entry = with_side(entry, attack.side, test)
    rows = triggered(
        test, insert_of(entry, task, test, "test"), target=entry["target"], tokenizer=ckpt.tokenizer,
        side=side_in(entry), seed=task.seed,
    )
    print_missing(test, rows, entry["target"], "test")
    return Evaluator(test, rows, entry["target"])


def check_attack(
    attack: Attack, task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header, test: Examples
) -> Examples | None:
    """Raises BadInput where a setting would do nothing, beside the others, for this checkpoint or these rows, and where
    the target is none of their classes. No weights are needed. Returns the rows of --triggered, of the classes of
    `test`, or None without it."""
    given = {f.name for f in fields(attack) if getattr(attack, f.name) != f.default}
    if line := idle(ATTACK, given, asdict(attack), python=True):
        raise BadInput(line)
    class_of(attack.target, test.labels)
    if attack.attack == "known" and not attack.triggered and given & set(ATTACK_FLAGS):
        entry = entry_in(ckpt, attack, task)
        if entry is None:
            flags = ", ".join(map(flag_of, sorted(given)))
            raise BadInput(
                f"{flags}: {task.ckpt}'s history names no attack that it could be of: name one with --attack"
            )
        if attack.paraphrases and entry["attack"] != "paraphrase":
            raise BadInput(
                f"--paraphrases {attack.paraphrases}: {task.ckpt}'s history names the attack {entry['attack']!r}, "
                "which inserts its trigger: say --attack paraphrase, or leave it out"
            )
    check_side(attack, test)
    if attack.triggered:
        return data.read(attack.triggered, labels=test.labels, **reading_of(task))
    if not attack.paraphrases:
        check_columns(task, ckpt)
    return None


def check_labelled(attack: Attack, task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header, rows: Examples) -> bool:
    """Whether all rows have labels, which ASR reads; `check_attack` then. Raises BadInput where they have not, and an
    attack is named."""
    if all(x.label >= 0 for x in rows):
        check_attack(attack, task, ckpt, rows)
        return True
    if attack not in (Attack(), Attack(attack="none")):
        raise BadInput(f"{task.data or 'the built-in sentences'}: ASR is measured on rows with labels, and some have "
                       "none: leave --attack and its flags out, or give labels")
    return False


def check_side(attack: Attack, rows: Examples) -> None:
    """Raises BadInput where a side is named and no row is a pair."""
    if attack.side and not any(x.pair is not None for x in rows):
        raise BadInput(
            f"--side {attack.side}: none of the {len(rows)} rows has a second text, which the trigger could stand in: "
            "name its column with --pair-column, or leave it out"
        )


def as_read(attack: Attack) -> Attack:
    """`attack` without the settings that do nothing beside the others: what a finished run was measured by, whose
    result.json names every setting."""
    values = asdict(attack) | ({"attack": "known"} if attack.triggered else {})
    for rule in ATTACK:
        values |= {name: None for name in rule.names if name != "attack" and idle([rule], [name], values)}
    return replace(attack, **values)


def class_of(target: int | str | None, labels: Sequence[str]) -> int:
    """The number of the class `target`: a number from 0, in words of the command line too, a class's name, or
    "index=1" or "name=1"; None: TARGET.

    Raises BadInput where it is none of `labels`, and where a word is the number of one class and the name of another.
    """
    if target is None or not isinstance(target, str):
        number = TARGET if target is None else target
        check_target(number, labels)
        return int(number)
    number = int(target) if target.removeprefix("-").isdecimal() and len(target) < 19 else None
    if target in labels:
        named = labels.index(target)
        if number is not None and 0 <= number < len(labels) and number != named:
            raise BadInput(
                f"target {shown(target)} is the name of class {named} and the number of class "
                f"{shown(labels[number])}: say which, name={visible(target)} or index={number}"
            )
        return named
    kind, given, rest = target.partition("=")
    if given and kind == "name" and rest in labels:
        return labels.index(rest)
    if given and kind == "index" and rest.isdecimal() and len(rest) < 19:
        number = int(rest)
    if number is None:
        raise BadInput(
            f"target {shown(target)} is none of the classes {listed(labels)}: name one of them, or its number, "
            f"0..{len(labels) - 1}"
        )
    check_target(number, labels)
    return number


def target_args(evaluator: Evaluator) -> dict[str, int | str | None]:
    """The target as result.json's args have it: its number, and the name of its class; None where no ASR is measured.
    """
    target = evaluator.target
    return {"target": target, "target_class": None if target is None else evaluator.triggered.labels[target]}


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


def entry_of(attack: Attack, target: int) -> dict:
    """The attack of the flags as a history names it. target: the number of its class."""
    if attack.attack != "paraphrase":
        return registry.entry(
            attack.attack, target, triggers=attack.triggers, per_text=attack.triggers_per_text,
            sentence=attack.sentence,
        )
    if not attack.paraphrases:
        raise BadInput("--attack paraphrase needs --paraphrases FOLDER, with train, dev and test files of paraphrases")
    return {"attack": "paraphrase", "paraphrases": os.path.realpath(attack.paraphrases), "target": target}


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
