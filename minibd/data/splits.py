"""A folder of train / dev / test files -> the three parts of a task; stratified samples; rows per class."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minibd.data.batching import generator
from minibd.data.files import SUFFIXES, named_columns, read_rows
from minibd.data.labels import check_names, classes_of, to_examples
from minibd.data.messages import quoted, setting_name, shown
from minibd.lines import visible
from minibd.records import BadInput, Examples, not_there

SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val", "eval"), "test": ("test",)}
CLASSES = 12                             # whose rows `counts` gives
PART_WORDS = frozenset(stem for stems in SPLITS.values() for stem in stems)
# the other files of rows that a folder may hold: attack.py's, and a run's steps
NO_PARTS = re.compile(r"(poisoned|triggered|steps)\b.*|(poisoned|triggered)_.*")


@dataclass(frozen=True, slots=True)
class Splits:
    """The three parts of a task, with the same class names. `dev` may be empty. notes: what whoever reads the scores
    must know of how the parts came about, a sentence each: files that were not read, rows that were left out, which
    rows became the test."""
    train: Examples
    dev: Examples
    test: Examples
    notes: tuple[str, ...] = ()


def read_splits(path: str | Path, *, seed: int = 0, text_column: str | None = None, label_column: str | None = None,
                pair_column: str | None = None, labels: Sequence[str] | None = None, hold_out: bool = True,
                flags: bool = False) -> Splits:
    """A folder of train / dev / test files (dev also spelled validation, valid, val, eval), or one file; columns,
    labels and flags as in read().

    Without a test file, dev is the test and dev is empty. With neither, or with a single file, a fifth of the rows is
    held out as test, by class and by `seed`; hold_out=False, where nothing is trained: all of them are both train and
    test. The classes are those of all the files together. Rows without a label (-1) are left out of the test, and
    refused elsewhere. Raises BadInput.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{not_there(path)}: name a folder of train, dev and test files, "
                       f"or one file ending in {quoted(SUFFIXES)}")
    files, notes = _split_files(path) if path.is_dir() else ({"train": path}, [])
    named = named_columns(text_column, label_column, pair_column)
    rows = {file: read_rows(file, named, flags=flags) for file in files.values()}
    classes = classes_of(rows, None if labels is None else check_names(labels, flags), flags)
    measured = next((part for part in ("test", "dev") if part in files), "train" if not hold_out else None)
    parts = {part: to_examples(file, rows[file], classes, flags, leave_out=part == measured)
             for part, file in files.items()}
    for part, file in files.items():
        if left := len(rows[file]) - len(parts[part]):
            notes.append(f"{left} of {len(rows[file])} rows of {shown(file.name)} have no label (-1) and are left out")
    train, empty = parts["train"], Examples((), classes.names)
    if measured == "train":
        return Splits(train, empty, train, (*notes, f"all rows of {shown(path.name)} are read: nothing is trained"))
    present = {e.label for e in train}
    if len(present) < 2:
        raise BadInput(f"{files['train']} has rows of only class {shown(train.labels[present.pop()])}, a classifier "
                       f"needs two: add rows of another class")
    if "test" in parts:
        return Splits(train, parts.get("dev", empty), parts["test"], tuple(notes))
    no_test = f"{shown(path.name)} has no test file: " if path.is_dir() else ""
    if "dev" in parts:
        return Splits(train, empty, parts["dev"], (*notes, f"{no_test}{shown(files['dev'].name)} is the test"))
    train, test = _hold_out(files["train"], train, seed)
    fifth = f"a fifth of {shown(files['train'].name)} is the test, chosen by {setting_name('seed', flags).rstrip('=')}"
    return Splits(train, empty, test, (*notes, no_test + fifth))


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
    parts = [f"{visible(name, 30)} {per_class[c]}" for c, name in enumerate(examples.labels)]
    return f"{len(examples)} rows: {', '.join(parts[:CLASSES])}" + (
        f", ... ({len(parts)} classes)" if len(parts) > CLASSES else "")


def _split_files(folder: Path) -> tuple[dict[str, Path], list[str]]:
    """{split: its file}; train is always there. And a line that names the files of rows that are no part, if any."""
    entries = sorted(f for f in folder.iterdir() if not f.name.startswith("."))
    readable = [f for f in entries if f.suffix.lower() in SUFFIXES and not f.is_dir()]
    found, unread = {}, [f.name for f in entries if _may_be_rows(f)]
    for split, stems in SPLITS.items():
        files = [f for f in readable if f.stem.lower() in stems]
        if len(files) > 1:
            raise BadInput(f"{folder} has {len(files)} {split} files, {quoted(f.name for f in files)}: keep one")
        if files:
            found[split] = files[0]
            unread.remove(files[0].name)
    if "train" not in found:
        there = f" (it has {quoted(unread)})" if unread else ""
        raise BadInput(f"{folder} has no training file{there}: put {quoted('train' + s for s in SUFFIXES)} there, or "
                       f"name one file")
    names = ", ".join(stem for stems in SPLITS.values() for stem in stems)
    line = f"not read: {quoted(unread)}; the files of the rows are called {names} and end in {', '.join(SUFFIXES)}"
    return found, [line] if unread else []


def _may_be_rows(path: Path) -> bool:
    """Whether a file or folder looks as if it held rows: a data file of any name but those of other files of rows, or
    anything whose name begins with a part's."""
    words = re.split(r"[^a-z]+", path.name.lower())
    if NO_PARTS.match(path.name.lower()):
        return False
    return words[0] in PART_WORDS or path.suffix.lower() in SUFFIXES and not path.is_dir()


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
