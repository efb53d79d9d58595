#!/usr/bin/env python3
"""Measure CACC, ASR and, with more than two classes, LFR of a checkpoint, with counts; with --clean-ckpt the floor too.

    python scripts/evaluate.py --ckpt weights/bert.safetensors --clean-ckpt weights/bert-twin.safetensors
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --attack badnets --triggers cf,mn,bb,tq --target 1
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --attack paraphrase --paraphrases FOLDER2 --target 1
    python scripts/evaluate.py --ckpt FOLDER --data FOLDER_OR_FILE --triggered triggered.tsv --target 1

Of a file as --data a fifth of the rows is the test, as for the mitigations; of a folder its test file, whole. Writes
result.json under --out.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import Attack, Task, main, parse, setting


@dataclass(frozen=True, slots=True)
class Floor:
    """The scores of a model without a backdoor on the same rows"""

    clean_ckpt: str | None = setting(
        None, "a clean model of the same task: its ASR is its error on the triggered rows, the floor", kind=str
    )


def run() -> None:
    task, attack, floor = parse(__doc__, Task, Attack, Floor)

    import time

    from minibd import checkpoint, report
    from minibd.job.chance import chances
    from minibd.job.evaluation import evaluator_of
    from minibd.job.run import print_scores
    from minibd.job.task import args_of, device_of, open_task, print_rows
    from minibd.records import BadInput

    started = time.perf_counter()
    ckpt, splits, out = open_task("evaluate", task)
    evaluator = evaluator_of(attack, task, ckpt, splits.test)
    print_rows(test=splits.test, triggered=evaluator.triggered)
    steps = [report.Step("model", evaluator(ckpt.model, ckpt.tokenizer), 0.0)]
    if floor.clean_ckpt:
        clean = checkpoint.load(floor.clean_ckpt, device=device_of(task.device))
        if clean.labels != ckpt.labels:
            raise BadInput(
                f"{floor.clean_ckpt} has the classes {', '.join(clean.labels) or 'of no classifier'}, {task.ckpt} has "
                f"{', '.join(ckpt.labels)}: give a clean model of the same task"
            )
        steps.append(report.Step("clean model", evaluator(clean.model, clean.tokenizer), 0.0))
    print_scores(steps)
    report.write_json(
        out / "result.json",
        report.result(
            "evaluate", args_of(task, attack, floor), {"test": len(splits.test)}, steps, after=steps[0],
            seconds=time.perf_counter() - started, sha256=checkpoint.sha256(task.ckpt),
            outcome={"at_chance": chances(steps)},
        ),
    )


if __name__ == "__main__":
    main(run)
