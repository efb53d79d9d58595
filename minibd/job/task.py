"""What every script opens: the device, the checkpoint, its rows, the clean rows that the defender holds."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch

from minibd import checkpoint, data, report, reviews
from minibd.cli import AllClean, Clean, Task
from minibd.records import BadInput, Example, Examples

CLEAN_SHARE = 0.2  # of the training rows: MBTSAD's setting (III-B)
CLEAN_MOST = 2000  # rows: a defender seldom holds more, and a method's time grows with them
FEW = 10  # validation rows, under which a choice by them is hardly one
VALIDATION_SHARE = 0.1  # of the clean rows, where there are no dev rows


def device_of(name: str) -> torch.device:
    """The device that --device names; auto is CUDA where there is one. Raises BadInput if it is not available."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not available here: use cpu, cuda or auto") from None
    return device


def splits_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> data.Splits:
    """The rows of --data, or of what the checkpoint's history says it was trained on, labelled with the checkpoint's
    classes."""
    source = data_of(task, ckpt)
    if "reviews" in source:
        return data.Splits(*reviews.splits(**source["reviews"]))
    if "pairs" in source:
        if ckpt.labels not in ((), reviews.PAIR_LABELS):
            raise BadInput(
                f"{task.ckpt} has the classes {', '.join(ckpt.labels)}, the built-in pairs "
                f"{', '.join(reviews.PAIR_LABELS)}: give an encoder without classifier, or a classifier of these"
            )
        return data.Splits(*reviews.pair_splits(**source["pairs"]))
    if not task.data and not Path(source["path"]).exists():
        raise BadInput(
            f"{task.ckpt} was trained on {source['path']}, which is not here: name the rows with --data FOLDER_OR_FILE"
        )
    return data.read_splits(task.data or source["path"], seed=task.seed, labels=ckpt.labels or None, **columns_of(task))


def columns_of(task: Task) -> dict[str, str | None]:
    """The flags that name columns, as data.read takes them."""
    return {"text_column": task.text_column, "label_column": task.label_column, "pair_column": task.pair_column}


def data_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> dict:
    """The rows as a history records them, so that a later run finds them without --data: {"path"}, {"reviews"} or
    {"pairs"}.

    `--data pairs` is the built-in pair task, unless a file or folder has that name.
    """
    if task.data == "pairs" and not Path(task.data).exists():
        return {"pairs": reviews.PAIRS}
    if task.data:
        return {"path": str(Path(task.data).resolve())}
    recorded = [entry["data"] for entry in ckpt.history if "data" in entry]
    if not recorded:
        raise BadInput(f"{task.ckpt} does not say what it was trained on: name the rows with --data FOLDER_OR_FILE")
    return recorded[-1]


def open_task(
    method: str, task: Task, *inputs: str, new_classifier: bool = False
) -> tuple[checkpoint.Checkpoint, data.Splits, Path]:
    """The checkpoint, its rows and the output folder, checked before any work is done.

    new_classifier: a checkpoint without classifier gets a new one for the classes of the rows; otherwise it is refused.
    inputs: further files or folders that the run reads; the output folder must be none of them.
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


def head_is_new(ckpt: checkpoint.Checkpoint) -> bool:
    """Whether the classifier was drawn when the checkpoint was opened, and did not come with it."""
    return "new" in (ckpt.history or [{}])[-1]


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


def limit_dev(splits: data.Splits, clean: Clean | AllClean, seed: int) -> data.Splits:
    """`splits` with as many dev rows as the defender holds: --dev of them, drawn by the seed."""
    if not splits.dev or clean.dev == 1:
        return splits
    return dataclasses.replace(splits, dev=data.sample(splits.dev, clean.dev, seed))


def split_validation(splits: data.Splits, clean: Examples, seed: int) -> tuple[Examples, Examples]:
    """The rows to train on and those to validate on: the clean rows and the dev rows; without dev rows, nine tenths and
    a tenth of the clean ones."""
    if len(splits.dev):
        return clean, splits.dev
    validation = data.sample(clean, VALIDATION_SHARE, seed)
    if len(validation) < FEW:
        print(f"{len(validation)} of the {len(clean)} clean rows, held out, choose the epoch, rho or threshold, and a "
              f"row is {100 / len(validation):.0f} points of accuracy there: bring a dev file or more rows")
    ids = {x.id for x in validation}
    return clean.like(x for x in clean if x.id not in ids), validation


def print_doubts(
    train: Examples, clean: Examples, test: Examples, chooses: Examples | None = None, others: Sequence[Example] = (),
) -> None:
    """A line for each thing that makes a run's numbers doubtful: test rows that are trained on, classes that the clean
    rows lack.

    train: the rows that `clean`, those at hand, are drawn from. chooses: the rows that an epoch is chosen by. others:
    more rows that are trained on.
    """
    known = {(x.text, x.pair) for part in (clean, chooses or (), others) for x in part}
    if again := sum((x.text, x.pair) in known for x in test):
        print(f"{again} of {len(test)} test rows are also among the rows that are trained on or chosen by: CACC counts "
              "what is remembered there, take them out of one of the two")
    for name, rows in (("clean", clean), ("dev", chooses)):
        if rows and (missing := sorted({x.label for x in train} - {x.label for x in rows})):
            classes = ", ".join(repr(train.labels[c][:40]) for c in missing[:3]) + ", ..." * (len(missing) > 3)
            print(f"none of the {len(rows)} {name} rows is of class {classes}: what is trained on them or chosen by "
                  "them forgets it, give rows of every class")


def print_rows(**parts: Examples | None) -> None:
    """A line for each part of the rows that there is: its name and how many rows each class has."""
    for name, rows in parts.items():
        if rows is not None:
            print(f"{name:10}{data.counts(rows)}")


def output_path(out: Path, ckpt: str, prefix: str = "") -> Path:
    """Where a checkpoint of the same kind as `ckpt` is written: a file of its name in `out`, or the folder `out` itself
    (with a prefix: a folder of that name in it)."""
    return out / (prefix + Path(ckpt).name) if Path(ckpt).is_file() else out / prefix.rstrip("-")


def args_of(*settings: object) -> dict:
    """All settings by name, as result.json's args hold them."""
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()}
