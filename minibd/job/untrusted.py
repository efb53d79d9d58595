"""A run on a dataset that may be poisoned."""
from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

from minibd import checkpoint, data, report
from minibd.cli import Attack, Task
from minibd.evaluate import Evaluator
from minibd.job.evaluation import evaluator_of
from minibd.job.run import Job
from minibd.job.task import args_of, columns_of, device_of, print_rows, splits_of
from minibd.records import BadInput
from minibd.train import StepLog


def start_untrusted(
    method: str, task: Task, clean_aux: str, aux: Callable[[checkpoint.Checkpoint], int], attack: Attack,
    *settings: object, log: StepLog | None = None,
) -> Job:
    """Open a task whose --data is a poisoned dataset: the untrusted rows, the clean ones beside them, and the judge.

    The rows of --data are all of a file, the training rows of a folder, or poisoned.jsonl in a folder that attack.py
    wrote, whose triggered.jsonl then gives the ASR. Of --clean-aux (without it, of what the checkpoint was pre-trained
    on) the dev rows, where it has any, else the training rows are trusted: aux(encoder) of them are the job's `clean`,
    the others the splits' `dev`. Its test rows are the test.
    """
    started = time.perf_counter()
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data, clean_aux)
    header, columns = checkpoint.read_header(task.ckpt), columns_of(task)
    if not task.data or not (clean_aux or any("data" in entry for entry in header.history)):
        raise BadInput(
            f"{method} trains on a dataset with a few clean rows beside it: name both, --data and --clean-aux"
        )
    trusted = (
        data.read_splits(clean_aux, seed=task.seed, **columns)
        if clean_aux
        else splits_of(dataclasses.replace(task, data=""), header)
    )
    # with a classifier, so that the penultimate layer that was pre-trained with the encoder comes, too
    labels = None if header.labels else trusted.test.labels
    ckpt = checkpoint.load(header, device, labels=labels, seed=task.seed)
    folder = Path(task.data)
    made = folder / "attack.json"
    if made.is_file():
        rows = data.read(folder / "poisoned.jsonl", labels=trusted.test.labels, **columns)
    elif folder.is_dir():
        rows = data.read_splits(folder, seed=task.seed, labels=trusted.test.labels, **columns).train
    else:
        rows = data.read(folder, labels=trusted.test.labels, **columns)
    pool = trusted.dev or trusted.train
    held = data.sample(pool, min(aux(ckpt), len(pool)), task.seed)
    ids = {x.id for x in held}
    splits = data.Splits(rows, pool.like(x for x in pool if x.id not in ids), trusted.test)
    if attack.attack == "known" and not attack.triggered and made.is_file():
        target = json.loads(made.read_text(encoding="utf-8"))["target"]
        evaluator = Evaluator(splits.test, data.read(folder / "triggered.jsonl", labels=rows.labels, **columns), target)
    else:
        evaluator = evaluator_of(attack, task, ckpt, splits.test)
    print_rows(untrusted=rows, clean=held, dev=splits.dev or None, test=splits.test, triggered=evaluator.triggered)
    if not splits.dev:
        print(f"all {len(held)} clean rows are aligned to, none is left to choose an epoch by: the last one counts")
    return Job(
        method, args_of(task, attack, *settings) | {"out": str(out)}, ckpt, splits, held, evaluator, out,
        started=started, log=StepLog() if log is None else log,
    )
