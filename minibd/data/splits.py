"""A folder of train / dev / test files -> the three parts of a task; stratified samples; rows per class."""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minibd.data.batching import generator
from minibd.data.files import SUFFIXES, class_names, named_columns, quoted, read_rows, to_examples
from minibd.records import BadInput, Examples, not_there

SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of a task, with the same class names. `dev` may be empty."""
    train: Examples
    dev: Examples
    test: Examples


def read_splits(path: str | Path, *, seed: int = 0, text_column: str | None = None, label_column: str | None = None,
                pair_column: str | None = None, labels: Sequence[str] | None = None) -> Splits:
    """A folder of train / dev / test files (dev also spelled validation, valid, val), or one file; columns as in
    read().

    Without a test file, dev is the test and dev is empty. With neither, or with a single file, a fifth of the rows is
    held out as test, by class and by `seed`. The classes are those of all the files together. Raises BadInput.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{not_there(path)}: name a folder of train, dev and test files, "
                       f"or one file ending in {quoted(SUFFIXES)}")
    files = _split_files(path) if path.is_dir() else {"train": path}
    named = named_columns(text_column, label_column, pair_column)
    rows = {file: read_rows(file, named) for file in files.values()}
    names = class_names(rows) if labels is None else tuple(labels)
    parts = {split: to_examples(file, rows[file], names) for split, file in files.items()}
    train, empty = parts["train"], Examples((), names)
    present = {e.label for e in train}
    if len(present) < 2:
        raise BadInput(f"{files['train']} has rows of only class {names[present.pop()]!r}, a classifier needs two: "
                       f"add rows of another class")
    if "test" in parts:
        return Splits(train, parts.get("dev", empty), parts["test"])
    if "dev" in parts:
        return Splits(train, empty, parts["dev"])
    train, test = _hold_out(files["train"], train, seed)
    return Splits(train, empty, test)


def sample(examples: Examples, amount: float, seed: int) -> Examples:
    """The clean rows a defender holds: `amount` <= 1 is a fraction of the rows (1 is all of them), above 1 a number of
    rows.

    Stratified: each class gives its share by largest remainder, and at least one row where there are rows enough for
    that. The rows keep their order. Under one seed a larger sample holds, within a class, the rows of a smaller one.
    Raises BadInput.
    """
    n = len(examples)
    if not amount > 0:
        raise BadInput(f"{amount} clean rows: give a fraction above 0 and up to 1, or a number of rows from 2 to {n}")
    if amount > 1 and amount != amount // 1:
        raise BadInput(f"{amount} clean rows is neither a fraction up to 1 nor a whole number: give one of the two")
    count = max(1, int(amount * n + 0.5)) if amount <= 1 else int(amount)
    if count > n:
        raise BadInput(f"{count} clean rows of {n}: give a fraction up to 1, or at most {n} rows")
    return examples.like(examples[i] for i in _stratified(examples, count, seed, "sample"))


def counts(examples: Examples) -> str:
    """Rows per class on one line: "6920 rows: negative 3310, positive 3610"."""
    per_class = Counter(e.label for e in examples)
    return f"{len(examples)} rows: " + ", ".join(f"{name} {per_class[c]}" for c, name in enumerate(examples.labels))


def _split_files(folder: Path) -> dict[str, Path]:
    """{split: its file}; train is always there."""
    found = {}
    for split, stems in SPLITS.items():
        files = sorted(f for f in folder.iterdir()
                       if f.is_file() and f.stem.lower() in stems and f.suffix.lower() in SUFFIXES)
        if len(files) > 1:
            raise BadInput(f"{folder} has {len(files)} {split} files, {quoted(f.name for f in files)}: keep one")
        if files:
            found[split] = files[0]
    if "train" not in found:
        raise BadInput(f"{folder} has no training file: put {quoted('train' + s for s in SUFFIXES)} there")
    return found


def _hold_out(path: Path, examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """(four fifths, one fifth). The larger part keeps a row of every class: a class of one row stays in training."""
    count = max(int(0.8 * len(examples) + 0.5), len({e.label for e in examples}))
    larger = set(_stratified(examples, count, seed, "hold out"))
    if len(larger) == len(examples):
        raise BadInput(
            f"{path} has {len(examples)} rows, too few to hold out a fifth as test and keep one of each class: "
            f"add rows, or a test file beside it"
        )
    return (examples.like(e for i, e in enumerate(examples) if i in larger),
            examples.like(e for i, e in enumerate(examples) if i not in larger))


def _stratified(examples: Examples, count: int, seed: int, purpose: str) -> list[int]:
    """`count` row numbers, ascending, each class by its share; a generator for each class."""
    rows: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        rows.setdefault(example.label, []).append(i)
    chosen = []
    for label, share in _rows_per_class({label: len(rows[label]) for label in sorted(rows)}, count).items():
        generator(seed, purpose, label).shuffle(rows[label])
        chosen += rows[label][:share]
    return sorted(chosen)


def _rows_per_class(sizes: dict[int, int], count: int) -> dict[int, int]:
    """{class: rows to take}, `count` in all: largest remainder, one a class at least if count >= C; ties: the lower
    class."""
    n, minimum = sum(sizes.values()), int(count >= len(sizes))
    take = {label: max(minimum, count * size // n) for label, size in sizes.items()}

    def remainder(label: int) -> int:                         # n * (exact share - rows taken), in whole numbers
        return count * sizes[label] - take[label] * n

    while sum(take.values()) < count:
        take[max(take, key=remainder)] += 1
    # the classes furthest above their share give back what rare classes received
    while sum(take.values()) > count:
        take[min((label for label in take if take[label] > 1), key=remainder)] -= 1
    return take
