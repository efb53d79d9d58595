"""What every script opens: the device, the checkpoint, its rows, the clean rows that the defender holds."""
from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import torch

from minibd import checkpoint, data, report, reviews
from minibd.cli import AllClean, BaseTask, Clean, Resuming, Task, flag_of
from minibd.data.labels import check_names
from minibd.data.messages import quoted, shown
from minibd.distributed import agreed, join
from minibd.job.idle import built_in
from minibd.precision import dtype_of
from minibd.records import BadInput, Example, Examples

CLEAN_SHARE = 0.2  # of the training rows: MBTSAD's setting (III-B)
CLEAN_MOST = 2000  # rows: a defender seldom holds more, and a method's time grows with them
FEW = 10  # validation rows, under which a choice by them is hardly one
VALIDATION_SHARE = 0.1  # of the clean rows, where there are no dev rows


def device_of(name: str) -> torch.device:
    """The device that --device names; auto is CUDA where there is one. Of several processes that torchrun started, each
    meets the others here and gets a device of its own. Raises BadInput if it is not available."""
    keep_freed_memory()
    if name == "auto":
        return join(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not available here: use cpu, cuda or auto") from None
    return join(device)


@cache
def keep_freed_memory() -> bool:
    """Let the C library keep what a batch frees for the next batch; whether it does. glibc's default returns it to the
    system, whose fresh pages take up to an eighth of the time of a pass without gradients (scripts/results/speed.md);
    other C libraries are left as they are."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    # malloc.h's numbers: what lies free at the heap's end before it is given back, and the least piece that has pages
    # of its own, which go back with it: at most 32 MiB, a batch's tensors are smaller and large weights are not
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(trim_threshold, 2 ** 31 - 1) and mallopt(mmap_threshold, 32 << 20))


def products_of(task: BaseTask) -> torch.dtype:
    """The type of matrix products that --dtype means on --device, in every process the same."""
    return agreed(dtype_of(task.dtype, device_of(task.device)))


def dtype_args(task: BaseTask) -> dict[str, str | bool]:
    """The same as result.json's args hold it: the type itself, and whether auto chose it."""
    return {"dtype": str(products_of(task)).removeprefix("torch."), "dtype_auto": task.dtype == "auto"}


def print_dtype(task: BaseTask) -> None:
    """A line that says what auto came to."""
    if task.dtype == "auto":
        print(f"products  in {dtype_args(task)['dtype']} (--dtype auto)", flush=True)


def texts_at_once(task: BaseTask) -> int | str | None:
    """--micro-batch as a number, "auto" or None. Raises BadInput."""
    given = task.micro_batch
    if given in (None, "auto"):
        return given
    if not given.isascii() or not given.isdecimal() or not 1 <= int(given[:9]) == int(given):
        raise BadInput(f"--micro-batch {given[:40]!r}: give a number of texts from 1, or auto")
    return int(given)


def bytes_kept(cache: str) -> int | str | None:
    """--cache in bytes, "auto" or, for off, None. Raises BadInput."""
    if cache in ("auto", "off"):
        return cache if cache == "auto" else None
    if not cache.isascii() or not cache.isdecimal() or not 1 <= int(cache[:9]) == int(cache):
        raise BadInput(f"--cache {cache[:40]!r}: give a size in MiB from 1, auto or off")
    return int(cache) << 20


def sparing(ckpt: checkpoint.Checkpoint, task: BaseTask) -> checkpoint.Checkpoint:
    """`ckpt`, which with its copies is trained as --micro-batch and --checkpoint-activations say."""
    ckpt.model.micro_batch, ckpt.model.recompute = texts_at_once(task), task.checkpoint_activations
    return ckpt


def splits_of(
    task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header, *, hold_out: bool = True
) -> data.Splits:
    """The rows of --data, or of what the checkpoint's history says it was trained on, labelled with the checkpoint's
    classes: by the names of --labels, if given. hold_out=False: nothing is trained, see data.read_splits."""
    source = data_of(task, ckpt)
    if task.labels and "path" not in source:
        raise BadInput(f"--labels {','.join(task.labels)}: the rows are built-in ones, whose classes have names: name "
                       f"rows of your own with --data, or leave it out")
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
    return data.read_splits(
        task.data or source["path"], seed=task.seed, labels=labels_of(task, ckpt), hold_out=hold_out,
        **reading_of(task),
    )


def columns_of(task: Task) -> dict[str, str | None]:
    """The flags that name columns, as data.read takes them."""
    return {"text_column": task.text_column, "label_column": task.label_column, "pair_column": task.pair_column}


def read_alike(values: Mapping) -> list[str]:
    """The flags by which another run reads the rows of this one, and calls the classes as it does. values: this one's
    settings by their names."""
    named = ("data", "text_column", "label_column", "pair_column") if values.get("data") else ()
    words = [word for name in named if values.get(name) for word in (flag_of(name), str(values[name]))]
    return words + (["--labels", ",".join(values["labels"])] if values.get("labels") else [])


def check_columns(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> None:
    """Raises BadInput where a column is named and the rows are built-in ones."""
    named = [flag_of(name) for name, column in columns_of(task).items() if column]
    if named and "path" not in data_of(task, ckpt):
        raise BadInput(
            f"{', '.join(named)}: the rows are built-in ones and in no file: name rows with --data, or leave it out"
        )


def reading_of(task: Task) -> dict[str, str | bool | None]:
    """How a script reads a file: its columns, and errors that name flags."""
    return {**columns_of(task), "flags": True}


def labels_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> tuple[str, ...] | None:
    """The names of the rows' classes, in the order of the model's: --labels, else the checkpoint's own, None where it
    has no classifier. Raises BadInput where --labels does not fit the checkpoint."""
    if not task.labels:
        return ckpt.labels or None
    names, given = check_names(task.labels, flags=True), f"--labels {quoted(task.labels)}"
    if len(names) != len(ckpt.labels) if ckpt.labels else len(names) < 2:
        wanted = f"{task.ckpt} has the {len(ckpt.labels)} classes {quoted(ckpt.labels)}" if ckpt.labels else (
            "a classifier has two or more")
        raise BadInput(f"{given}: there are {len(names)} names, and {wanted}: name each class once, in this order")
    own = {name.casefold(): c for c, name in enumerate(ckpt.labels)}
    for c, name in enumerate(names):
        if own.get(name.casefold(), c) != c:
            raise BadInput(f"{given}: {shown(name)} is number {c} of the names and number {own[name.casefold()]} of "
                           f"{task.ckpt}'s classes: give them in the order of {quoted(ckpt.labels)}")
    return names


def data_of(task: Task, ckpt: checkpoint.Checkpoint | checkpoint.Header) -> dict:
    """The rows as a history records them, so that a later run finds them without --data: {"path"}, {"reviews"} or
    {"pairs"}.

    `--data pairs` is the built-in pair task, unless a file or folder has that name.
    """
    if built_in(task.data, ("pairs",)):
        return {"pairs": reviews.PAIRS}
    if task.data:
        return {"path": os.path.realpath(task.data)}
    recorded = [entry["data"] for entry in ckpt.history if "data" in entry]
    if not recorded:
        raise BadInput(f"{task.ckpt} does not say what it was trained on: name the rows with --data FOLDER_OR_FILE")
    return recorded[-1]


def open_task(
    method: str, task: Task, *inputs: str, new_classifier: bool = False, hold_out: bool = True,
    check: Callable[[checkpoint.Header, data.Splits], None] | None = None, resuming: Resuming | None = None,
) -> tuple[checkpoint.Checkpoint, data.Splits, Path]:
    """The checkpoint, its rows and the output folder, checked before any work is done.

    new_classifier: a checkpoint without classifier gets a new one for the classes of the rows; otherwise it is refused.
    inputs: further files or folders that the run reads; the output folder must be none of them. hold_out: see
    splits_of. check: raises BadInput where the run cannot be, called with what is known before the weights are loaded.
    resuming: of a run that can be gone on with.
    --labels name the classes of a classifier that calls them LABEL_0, LABEL_1, ...; others keep their names.
    """
    device, _ = device_of(task.device), texts_at_once(task)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data, *inputs)
    report.check_free(out, task.overwrite, resuming=resuming)
    header = checkpoint.read_header(task.ckpt)
    if not header.labels and not new_classifier:
        raise BadInput(
            f"{task.ckpt} has no classifier: {method} works on one, give a checkpoint fine-tuned on the task"
        )
    splits = splits_of(task, header, hold_out=hold_out)
    if check is not None:
        check(header, splits)
    print_notes(splits)
    labels = task.labels if header.labels else splits.train.labels
    return sparing(checkpoint.load(header, device, labels=labels, seed=task.seed), task), splits, out


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
    """`splits` with as many dev rows as the defender holds: --dev of them, drawn by the seed. Raises BadInput where
    there are none to draw from."""
    if clean.dev == 1:
        return splits
    if not splits.dev:
        raise BadInput(
            f"--dev {clean.dev:g}: the data has no dev rows, and a tenth of the clean ones is held out to choose by: "
            "bring a dev file, or leave it out"
        )
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


def print_notes(splits: data.Splits) -> None:
    """A line for each thing to know of how the rows came about, and for the classes that none of them is of."""
    for note in splits.notes:
        print(note)
    present = {x.label for part in (splits.train, splits.dev, splits.test) for x in part}
    if absent := [name for c, name in enumerate(splits.test.labels) if c not in present]:
        print(f"no row is of {'class' if len(absent) == 1 else 'the classes'} {quoted(absent)}, of "
              f"{len(splits.test.labels)} classes")


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
    """All settings by name, as result.json's args hold them: without "overwrite", which changes no result."""
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()
            if name != "overwrite"}
