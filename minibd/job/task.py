"""What every script opens: the device, the checkpoint, its rows, the clean rows that the defender holds."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from minibd import checkpoint, data, report, reviews
from minibd.cli import AllClean, Clean, Task
from minibd.records import BadInput, Examples

CLEAN_SHARE = 0.2  # of the training rows: MBTSAD's setting (III-B)


CLEAN_MOST = 2000  # rows: a defender seldom holds more, and a method's time grows with them


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not to be had here: use cpu, cuda or auto") from None
    return device


def splits_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> data.Splits:
    """The rows of --data, or those that the checkpoint's history says it was trained on, with the checkpoint's
    classes."""
    where = data_of(task, ckpt)
    if "reviews" in where:
        return data.Splits(*reviews.splits(**where["reviews"]))
    if "pairs" in where:
        if ckpt.labels not in ((), reviews.PAIR_LABELS):
            raise BadInput(
                f"{task.ckpt} has the classes {', '.join(ckpt.labels)}, the built-in pairs "
                f"{', '.join(reviews.PAIR_LABELS)}: give "
                "an encoder without classifier, or a classifier of these"
            )
        return data.Splits(*reviews.pair_splits(**where["pairs"]))
    if not task.data and not Path(where["path"]).exists():
        raise BadInput(
            f"{task.ckpt} was trained on {where['path']}, which is not here: name the rows with --data FOLDER_OR_FILE"
        )
    return data.read_splits(task.data or where["path"], seed=task.seed, labels=ckpt.labels or None, **columns_of(task))


def columns_of(task: Task) -> dict[str, str | None]:
    return {"text_column": task.text_column, "label_column": task.label_column, "pair_column": task.pair_column}


def data_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> dict:
    """The rows as a history names them, so that a later run finds them without --data. `--data pairs` is the built-in
    ones, where no file or folder has that name."""
    if task.data == "pairs" and not Path(task.data).exists():
        return {"pairs": reviews.PAIRS}
    if task.data:
        return {"path": str(Path(task.data).resolve())}
    named = [entry["data"] for entry in ckpt.history if "data" in entry]
    if not named:
        raise BadInput(f"{task.ckpt} does not say what it was trained on: name the rows with --data FOLDER_OR_FILE")
    return named[-1]


def open_task(
    method: str, task: Task, *inputs: str, new_classifier: bool = False
) -> tuple[checkpoint.Checkpoint, data.Splits, Path]:
    """The checkpoint, its rows and the output folder, checked before any work is done.

    A checkpoint without classifier is refused, or given a new one for the classes of the rows where `new_classifier`
    says so.
    inputs: what the run reads beside the two, and the output folder must not be.
    """
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data, *inputs)
    header = checkpoint.read_header(task.ckpt)
    if not header.labels and not new_classifier:
        raise BadInput(
            f"{task.ckpt} has no classifier: {method} works on one, give a checkpoint fine-tuned on the task"
        )
    splits = splits_of(task, header)
    labels = None if header.labels else splits.train.labels
    return checkpoint.load(header, device, labels=labels, seed=task.seed), splits, out


def own_head(ckpt: checkpoint.Checkpoint) -> bool:
    """Whether the classifier came with the checkpoint, and was not drawn when that was opened."""
    return "new" not in (ckpt.history or [{}])[-1]


def clean_amount(task: Task, clean: Clean | AllClean, n: int) -> float:
    """--clean, or its default for `n` training rows: all of a single file; else CLEAN_SHARE of them, but no more than
    CLEAN_MOST."""
    if clean.clean is not None:
        return clean.clean
    if task.data and Path(task.data).is_file():
        return 1.0
    return CLEAN_SHARE if CLEAN_SHARE * n <= CLEAN_MOST else CLEAN_MOST


def clean_rows(task: Task, clean: Clean | AllClean, train: Examples) -> Examples:
    """The rows that the defender holds: --clean of them, drawn by the seed."""
    return data.sample(train, clean_amount(task, clean, len(train)), task.seed)


def with_dev(splits: data.Splits, clean: Clean | AllClean, seed: int) -> data.Splits:
    """`splits` with those dev rows that the defender chooses by: --dev of them, drawn by the seed."""
    return (
        dataclasses.replace(splits, dev=data.sample(splits.dev, clean.dev, seed))
        if splits.dev and clean.dev != 1
        else splits
    )


def validated(splits: data.Splits, clean: Examples, seed: int) -> tuple[Examples, Examples]:
    """The rows to train on and those to choose by: the dev rows, or, where there are none, a tenth of the clean
    ones."""
    if len(splits.dev):
        return clean, splits.dev
    held = data.sample(clean, 0.1, seed)
    ids = {x.id for x in held}
    return clean.like(x for x in clean if x.id not in ids), held


def print_rows(**parts: Examples | None) -> None:
    for name, rows in parts.items():
        if rows is not None:
            print(f"{name:10}{data.counts(rows)}")


def beside(out: Path, ckpt: str, prefix: str = "") -> Path:
    """Where a result of the same kind as `ckpt` goes: a file of its name in `out`, or `out` itself (`out`/prefix) as a
    folder."""
    return out / (prefix + Path(ckpt).name) if Path(ckpt).is_file() else out / prefix.rstrip("-")


def args_of(*settings: object) -> dict:
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()}
