#!/usr/bin/env python3
"""Measure CACC, ASR and, with more than two classes, LFR of a checkpoint, with counts; with --clean-ckpt the floor too.

    python scripts/evaluate.py --ckpt weights/bert.safetensors --clean-ckpt weights/bert-twin.safetensors
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --attack badnets --triggers cf,mn,bb,tq --target 1
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --attack paraphrase --paraphrases FOLDER2 --target 1
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --triggered triggered.tsv --target 1

Of a folder as --data its test file is measured (without one, its dev file), with --all its train and dev rows, too; of
a single file all rows, or with --no-all the fifth that the mitigations hold out of it by --seed. Measured is in
float32, as by the mitigations; --dtype bfloat16 is faster on some processors and changes an answer here and there.
Writes result.json under --out.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.cli import Attack, Idle, Task, main, parse, progress, setting
from minibd.job.idle import ATTACK, UNTRAINED

if TYPE_CHECKING:
    from minibd.data import Splits


@dataclass(frozen=True, slots=True)
class Floor:
    """The scores of a model without a backdoor on the same rows"""

    clean_ckpt: str | None = setting(
        None, "a clean model of the same task: its ASR is its error on the triggered rows, the floor", kind=str
    )


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows that are measured"""

    all: bool | None = setting(
        None, "all rows of --data (default: of a folder its test rows, of a single file all); --no-all: of a single "
        "file the fifth that is held out by --seed", kind=bool
    )


RULES = (*ATTACK, UNTRAINED,
         Idle(("dtype",), lambda v: v.dtype == "auto", "models are measured in float32 where bfloat16 is not named"))


def run() -> None:
    task, attack, floor, measured = parse(__doc__, Task, Attack, Floor, Measured, rules=RULES)

    import time
    from dataclasses import replace

    import torch

    from minibd import checkpoint, report
    from minibd.job.chance import chances
    from minibd.job.evaluation import check_attack, evaluator_of, target_args
    from minibd.job.run import print_scores
    from minibd.job.task import args_of, device_of, open_task, print_rows
    from minibd.job.unproven import lines_of, verdict_of
    from minibd.models.cast_once import only_asked
    from minibd.records import BadInput

    if measured.all is False and task.data and not Path(task.data).is_file():
        raise BadInput(f"--no-all: {task.data} is no single file, of which a fifth is held out: leave it out")
    started = time.perf_counter()
    if task.dtype == "auto":
        task = replace(task, dtype="float32")
    ckpt, splits, out = open_task(
        "evaluate", task, hold_out=measured.all is False,
        check=lambda header, splits: check_attack(attack, task, header, splits.test),
    )
    whole = measured.all or splits.train is splits.test
    if measured.all:
        splits = all_as_test(splits)
    print(f"measured: {'all rows' if whole else 'the test rows'}")
    evaluator = evaluator_of(attack, task, ckpt, splits.test)
    print_rows(test=splits.test, triggered=evaluator.triggered)
    dtype = getattr(torch, task.dtype)
    with only_asked(dtype, ckpt.model):
        steps = [report.Step("model", evaluator(ckpt.model, ckpt.tokenizer), 0.0)]
    progress().finished.append("model")
    if floor.clean_ckpt:
        clean = checkpoint.read_header(floor.clean_ckpt)
        clean = checkpoint.load(clean, device_of(task.device), labels=task.labels if clean.labels else None)
        if clean.labels != ckpt.labels:
            raise BadInput(
                f"{floor.clean_ckpt} has the classes {', '.join(clean.labels) or 'of no classifier'}, {task.ckpt} has "
                f"{', '.join(ckpt.labels)}: give a clean model of the same task"
            )
        with only_asked(dtype, clean.model):
            steps.append(report.Step("clean model", evaluator(clean.model, clean.tokenizer), 0.0))
    print_scores(steps)
    verdict = {} if steps[0].scores.asr else verdict_of(task.ckpt, args_of(task))
    if verdict:
        print("\n".join(lines_of(verdict)))
    found = report.result(
        "evaluate", args_of(task, attack, floor, measured) | target_args(evaluator),
        {"test": len(splits.test)}, steps, after=steps[0], seconds=time.perf_counter() - started,
        sha256=checkpoint.sha256(task.ckpt),
        outcome={"at_chance": chances(steps), **verdict},
    )
    with report.whole(out) as draft:
        report.write_json(draft / "result.json", found)


def all_as_test(splits: Splits) -> Splits:
    """`splits` with the rows of all its parts as the test; train and test are one where nothing was held out."""
    from dataclasses import replace

    parts = [splits.train, splits.dev, splits.test] if splits.train is not splits.test else [splits.test]
    return replace(splits, test=splits.test.like(x for part in parts for x in part))


if __name__ == "__main__":
    main(run)
