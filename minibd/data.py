"""Files -> Examples; splits; length-bucketed batches by (seed, epoch); a generator per example.

A data file is UTF-8 (a byte order mark is fine) with one row an example:

    .tsv     one line a row, fields between tabs, no quoting: a " is a character
    .csv     RFC 4180: a quoted field may hold commas, doubled quotes and line breaks
    .jsonl   one JSON object a line; labels may be integers or strings

The first row of a .tsv or .csv names the columns; spaces around the names do not count. Blank lines are skipped, texts
lose surrounding whitespace and nothing else. An `id` column is used if it is there; else row i is "<file's stem>-i",
from 0.
"""
from __future__ import annotations

import codecs
import csv
import io
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibd.records import BadInput, Example, Examples
from minibd.atomic import atomic_write

SUFFIXES = (".tsv", ".csv", ".jsonl")
COLUMN_NAMES = {                            # of a column that nobody named, in lower case
    "text": ("text", "sentence", "sentences", "sentence1", "question1", "text1", "text_a", "question"),
    "label": ("label", "labels"),
    "pair": ("pair", "sentence2", "question2", "text2", "text_b"),
    "id": ("id",),
}
SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}
MOST_CLASSES = 100_000                   # a larger integer label is some other column, not a class
POOL = 50                                # batches sorted together


# ---- chance and batches

def generator(seed: int, *parts: object) -> random.Random:
    """A generator of its own for (seed, parts), e.g. generator(0, epoch, example.id).

    Seeded by a string, which Random hashes with sha512: the same on every machine, whatever PYTHONHASHSEED, and no
    example's draws depend on which others were drawn before it. Parts count by their str: 2 and "2" are one part.
    """
    return random.Random("\x1f".join(map(str, (seed, *parts))))


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers 0..n-1, each once, in ceil(n / size) batches of `size` (one may be short), rows of a batch near in
    length.

    Shuffle, cut into pools of POOL * size rows, sort each pool by length, cut it into batches, shuffle the batches.
    Share of a batch's (B, T) cells that is padding, SST-2's 6,920 training texts (25.0 tokens on average), five epochs:

        size                 16       32       64
        random batches     46.2%    50.4%    53.6%
        these batches       2.4%     2.8%     3.3%

    At 32 a step so computes half the cells (1.96 times fewer). The price: a batch's texts are alike in length.
    """
    _check_size(size)
    rng = generator(seed, "batches", epoch)
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    cut = []
    # a pool is whole batches, so only the last pool ends in a short one
    for start in range(0, len(rows), POOL * size):
        pool = sorted(rows[start:start + POOL * size], key=lengths.__getitem__)
        cut += [pool[i:i + size] for i in range(0, len(pool), size)]
    rng.shuffle(cut)
    return cut


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches for evaluation: longest first, so that memory peaks at once; nothing random.

    Padding on SST-2's training texts: 0.3% / 0.6% / 1.3% of the cells at sizes 16 / 32 / 64.
    """
    _check_size(size)
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def _check_size(size: int) -> None:
    if size < 1:
        raise BadInput(f"batch size {size} is below 1: give a batch size of at least 1")


# ---- one file

def read(path: str | Path, *, text_column: str | None = None, label_column: str | None = None,
         pair_column: str | None = None, labels: Sequence[str] | None = None, blank: bool = False) -> Examples:
    """One .tsv, .csv or .jsonl file as Examples, in the file's order.

    Columns not named are found by their spelling (SPELLINGS), whatever their case. Integer labels are the classes
    0..max, named "0", "1", ... ("1.0" counts as 1 where every label is of that form); other labels are names, and class
    i is the i-th name in sorted order. `labels` (a checkpoint's class names, say) settles the classes instead: the
    file's integers then index it, and its names are looked up in it, first as they are, then whatever their case. A row
    without an id is called by its file's stem and its number, from 0: "train-0". blank: rows of blank text are kept,
    not refused.
    """
    path = Path(path)
    rows = _rows(path, _asked(text_column, label_column, pair_column), blank)
    names = _names({path: rows}) if labels is None else tuple(labels)
    return _examples(path, rows, names)


def write(examples: Examples, path: str | Path) -> None:
    """The rows as .tsv, .csv or .jsonl, whole or not at all: columns id, text, label (a class name), pair if a row has
    one.

    read(path, labels=examples.labels) gives the rows back; read(path) does too where the names are in sorted order, or
    "0", "1", ..., and the last of them is in use.
    """
    path = Path(path)
    suffix = _suffix(path)
    width = 4 if any(e.pair is not None for e in examples) else 3
    columns = ("id", "text", "label", "pair")[:width]
    rows = [(e.id, e.text, examples.labels[e.label], e.pair)[:width] for e in examples]
    if suffix == ".tsv":
        _check_tabs(path, rows)
    with atomic_write(path) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            csv.writer(file).writerows([columns, *rows])
        elif suffix == ".tsv":
            file.writelines("\t".join(field or "" for field in row) + "\n" for row in [columns, *rows])
        else:
            file.writelines(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n" for row in rows)


def _check_tabs(path: Path, rows: Iterable[tuple[str | None, ...]]) -> None:
    for row in rows:
        if any(re.search(r"[\t\n\r]", field or "") for field in row):
            raise BadInput(f"{path}: row {row[0]!r} holds a tab or a line break, which a .tsv cannot: "
                           f"write {path.with_suffix('.jsonl').name} instead")


# ---- a folder of splits

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
    held out as test, by class and by `seed`. The classes are those of all the files together.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path} does not exist: name a folder of train, dev and test files, "
                       f"or one file ending in {_listed(SUFFIXES)}")
    files = _split_files(path) if path.is_dir() else {"train": path}
    asked = _asked(text_column, label_column, pair_column)
    rows = {file: _rows(file, asked) for file in files.values()}
    names = _names(rows) if labels is None else tuple(labels)
    parts = {split: _examples(file, rows[file], names) for split, file in files.items()}
    train, nothing = parts["train"], Examples((), names)
    present = {e.label for e in train}
    if len(present) < 2:
        raise BadInput(f"{files['train']} has rows of only class {names[present.pop()]!r}, a classifier needs two: "
                       f"add rows of another class")
    if "test" in parts:
        return Splits(train, parts.get("dev", nothing), parts["test"])
    if "dev" in parts:
        return Splits(train, nothing, parts["dev"])
    train, test = _hold_out(files["train"], train, seed)
    return Splits(train, nothing, test)


def sample(examples: Examples, amount: float, seed: int) -> Examples:
    """The clean rows a defender holds: `amount` <= 1 is a fraction of the rows (1 is all of them), above 1 a number of
    rows.

    Stratified: each class gives its share by largest remainder, and at least one row where there are rows enough for
    that. The rows keep their order. Under one seed a larger sample holds, within a class, the rows of a smaller one.
    """
    n = len(examples)
    if not amount > 0:
        raise BadInput(f"{amount} clean rows: give a fraction above 0 and up to 1, or a number of rows from 2 to {n}")
    if amount > 1 and amount != amount // 1:
        raise BadInput(f"{amount} clean rows is neither a fraction up to 1 nor a whole number: give one of the two")
    count = max(1, int(amount * n + 0.5)) if amount <= 1 else int(amount)
    if count > n:
        raise BadInput(f"{count} clean rows asked of {n}: give a fraction up to 1, or at most {n} rows")
    return examples.like(examples[i] for i in _stratified(examples, count, seed, "sample"))


def counts(examples: Examples) -> str:
    """Rows per class on one line: "6920 rows: negative 3310, positive 3610"."""
    of = Counter(e.label for e in examples)
    return f"{len(examples)} rows: " + ", ".join(f"{name} {of[c]}" for c, name in enumerate(examples.labels))


def _split_files(folder: Path) -> dict[str, Path]:
    """{split: its file}; train is always there."""
    found = {}
    for split, stems in SPLITS.items():
        files = sorted(f for f in folder.iterdir()
                       if f.is_file() and f.stem.lower() in stems and f.suffix.lower() in SUFFIXES)
        if len(files) > 1:
            raise BadInput(f"{folder} has {len(files)} {split} files, {_listed(f.name for f in files)}: keep one")
        if files:
            found[split] = files[0]
    if "train" not in found:
        raise BadInput(f"{folder} has no training file: put {_listed('train' + s for s in SUFFIXES)} there")
    return found


def _hold_out(path: Path, examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """(four fifths, one fifth). The larger part keeps a row of every class: a class of one row stays in training."""
    count = max(int(0.8 * len(examples) + 0.5), len({e.label for e in examples}))
    kept = set(_stratified(examples, count, seed, "hold out"))
    if len(kept) == len(examples):
        raise BadInput(
            f"{path} has {len(examples)} rows, too few to hold out a fifth as test and keep one of each class: "
            f"add rows, or a test file beside it"
        )
    return (examples.like(e for i, e in enumerate(examples) if i in kept),
            examples.like(e for i, e in enumerate(examples) if i not in kept))


def _stratified(examples: Examples, count: int, seed: int, purpose: str) -> list[int]:
    """`count` row numbers, ascending, each class by its share; a generator for each class."""
    rows: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        rows.setdefault(example.label, []).append(i)
    chosen = []
    for label, share in _shares({label: len(rows[label]) for label in sorted(rows)}, count).items():
        generator(seed, purpose, label).shuffle(rows[label])
        chosen += rows[label][:share]
    return sorted(chosen)


def _shares(sizes: dict[int, int], count: int) -> dict[int, int]:
    """{class: rows to take}, `count` in all: largest remainder, one a class at least if count >= C; ties: the lower
    class."""
    n, least = sum(sizes.values()), int(count >= len(sizes))
    take = {label: max(least, count * size // n) for label, size in sizes.items()}

    def owed(label: int) -> int:                         # n * (exact share - rows taken), in whole numbers
        return count * sizes[label] - take[label] * n

    while sum(take.values()) < count:
        take[max(take, key=owed)] += 1
    # what rare classes were given, the best served others give back
    while sum(take.values()) > count:
        take[min((label for label in take if take[label] > 1), key=owed)] -= 1
    return take


# ---- bytes -> rows

@dataclass(frozen=True, slots=True)
class _Row:
    """A row whose label is still as the file spells it. `line` counts from 1 and is where the row starts."""
    line: int
    id: str
    text: str
    label: str
    pair: str | None


def _rows(path: Path, asked: dict[str, str], blank: bool = False) -> list[_Row]:
    suffix = _suffix(path)
    text = _decode(path)
    if suffix == ".jsonl":
        table = _objects(path, text)
    else:
        table = _table(path, _csv(path, text) if suffix == ".csv" else _tsv(text))
    if not table:
        raise BadInput(f"{path} holds no rows: give a file with at least one, after its header in a .tsv or .csv")
    columns = _columns(path, list(dict.fromkeys(name for _, row in table for name in row)), asked)
    rows = [_row(path, line, row, columns, number, blank) for number, (line, row) in enumerate(table)]
    _check_ids(path, rows)
    return rows


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{path} is no data file: its name must end in {_listed(SUFFIXES)}")
    return path.suffix.lower()


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return raw.decode("utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): name a file ending in {_listed(SUFFIXES)}") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8"
        ) from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, counted from 1. Only a newline ends one: str.splitlines cuts at U+2028 too."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip(" \r"):
            yield number, line.removesuffix("\r")


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in _lines(text))


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number = reader.line_num + 1                     # a quoted field may hold lines, so rows do not count lines
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadInput(f"{path}, line {number}: {error}: mend the quotes (RFC 4180) or write a .jsonl") from None
        if len(fields) > 1 or "".join(fields).strip():
            yield number, fields


def _table(path: Path, rows: Iterator[tuple[int, list[str]]]) -> list[tuple[int, dict[str, object]]]:
    """(line, {column: field}) of each row after the header."""
    header = [name.strip() for name in next(rows, (1, []))[1]]
    for name in header:
        if name and header.count(name) > 1:
            raise BadInput(f"{path} has {header.count(name)} columns {name!r}: rename all but one")
    table = []
    for line, fields in rows:
        if len(fields) != len(header):
            raise BadInput(f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}: "
                           f"mend the row, or use .csv or .jsonl if a text holds a tab or a line break")
        table.append((line, dict(zip(header, fields))))
    return table


def _objects(path: Path, text: str) -> list[tuple[int, dict[str, object]]]:
    table = []
    for line, source in _lines(text):
        try:
            row = json.loads(source)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {line}: not JSON ({error}): a .jsonl holds one object a line") from None
        if not isinstance(row, dict):
            raise BadInput(f"{path}, line {line}: {_short(row)} is not a JSON object: a .jsonl holds one object a line")
        table.append((line, {name.strip(): value for name, value in row.items()}))
    return table


# ---- columns -> fields

def _asked(text: str | None, label: str | None, pair: str | None) -> dict[str, str]:
    return {role: name for role, name in (("text", text), ("label", label), ("pair", pair)) if name is not None}


def _columns(path: Path, there: list[str], asked: dict[str, str]) -> dict[str, str]:
    """{role: column}: those asked for, then those found by their spelling. "text" and "label" are always among them."""
    chosen: dict[str, str] = {}
    for role, name in asked.items():
        if name.strip() not in there:
            raise BadInput(f"no column {name!r} in {path}: --{role}-column must be one of {_listed(there)}")
        if name.strip() in chosen.values():
            raise BadInput(
                f"column {name!r} of {path} is asked for twice: choose --{role}-column from {_listed(there)}"
            )
        chosen[role] = name.strip()
    for role, spellings in COLUMN_NAMES.items():
        near = [name for name in there if name.lower() in spellings and name not in chosen.values()]
        if role in chosen:
            continue
        if len(near) > 1:
            raise BadInput(
                f"{path} has {len(near)} columns that could be the {role}, {_listed(near)}: rename all but one"
                + (f", or choose with --{role}-column" if role != "id" else "")
            )
        if near:
            chosen[role] = near[0]
        elif role in ("text", "label"):
            raise BadInput(f"no {role} column in {path}: choose one of {_listed(there)} with --{role}-column")
    return chosen


def _row(path: Path, line: int, row: dict[str, object], columns: dict[str, str], number: int, blank: bool) -> _Row:
    text = _value(path, line, row, columns["text"], str)
    label = _value(path, line, row, columns["label"], (str, int, float))
    pair = _value(path, line, row, columns["pair"], str) if "pair" in columns else ""
    id = _value(path, line, row, columns["id"], (str, int, float)) if "id" in columns else f"{path.stem}-{number}"
    for role, value in (("text", text), ("label", label), ("id", id)):
        if not value and not (blank and role == "text"):
            raise BadInput(f"{path}, line {line}: the {role} is empty: fill it in or drop the row")
    return _Row(line, id, text, label, pair or None)


def _value(path: Path, line: int, row: dict[str, object], column: str, kinds: type | tuple[type, ...]) -> str:
    """One field, without surrounding whitespace; JSON null is the empty one."""
    if column not in row:
        raise BadInput(f"{path}, line {line}: no key {column!r} among {_listed(row)}: add it or drop the row")
    value = "" if row[column] is None else row[column]
    if not isinstance(value, kinds) or isinstance(value, bool):
        wanted = "a string" if kinds is str else "a string or an integer"
        raise BadInput(f"{path}, line {line}: {column} is {_short(value)}, not {wanted}: mend the row")
    value = str(value).strip()
    if re.search("[\ud800-\udfff]", value):              # JSON can spell half a character, which no tokenizer takes
        raise BadInput(f"{path}, line {line}: {column} holds half a surrogate pair, {_short(value)}: mend the row")
    return value


def _check_ids(path: Path, rows: Iterable[_Row]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if first.setdefault(row.id, row.line) != row.line:
            raise BadInput(f"{path}, line {row.line}: id {row.id!r} was used at line {first[row.id]}: ids must differ")


# ---- labels -> classes

def _numbers(spelled: set[str]) -> dict[str, int] | None:
    """{label: class} where every label is an integer >= 0, or every one an integer with a point and zeros; else
    None."""
    for form in (r"[0-9]{1,18}", r"[0-9]{1,18}\.0+"):
        if all(re.fullmatch(form, label) for label in spelled):
            return {label: int(label.split(".")[0]) for label in spelled}
    return None


def _names(files: dict[Path, list[_Row]]) -> tuple[str, ...]:
    """The class names that the files agree on, where nobody gave any."""
    spelled = {path: {row.label for row in rows} for path, rows in files.items()}
    numbered = [path for path in files if _numbers(spelled[path]) is not None]
    if not numbered:
        return tuple(sorted(set().union(*spelled.values())))
    if len(numbered) < len(files):
        named = next(path for path in files if path not in numbered)
        raise BadInput(f"labels are integers in {numbered[0]} and names in {named}, as {_short(min(spelled[named]))}: "
                       f"use one kind in both")
    top, path = max((max(_numbers(spelled[path]).values()), path) for path in files)
    if top >= MOST_CLASSES:
        raise BadInput(
            f"label {top} in {path} is above {MOST_CLASSES - 1}, the highest class: choose with --label-column"
        )
    return tuple(map(str, range(top + 1)))


def _examples(path: Path, rows: Iterable[_Row], names: tuple[str, ...]) -> Examples:
    classes = _classes({row.label for row in rows}, names)
    for row in rows:
        if row.label not in classes:
            raise BadInput(f"{path}, line {row.line}: label {_short(row.label)} is none of the {len(names)} classes "
                           f"{_listed(names)}: mend the row, or use a model with that class")
    return Examples((Example(row.id, row.text, classes[row.label], row.pair) for row in rows), names)


def _classes(spelled: set[str], names: tuple[str, ...]) -> dict[str, int]:
    """{label: class} for the labels that have one. If all are names they are names, even "1"; other integers index."""
    exact = {name: c for c, name in enumerate(names)}
    numbers = _numbers(spelled)
    if numbers is not None and not spelled <= exact.keys():
        return {label: c for label, c in numbers.items() if c < len(names)}
    folded: dict[str, list[int]] = {}
    for c, name in enumerate(names):
        folded.setdefault(name.casefold(), []).append(c)
    alone = {name: found[0] for name, found in folded.items() if len(found) == 1}
    classes = {label: exact.get(label, alone.get(label.casefold())) for label in spelled}
    return {label: c for label, c in classes.items() if c is not None}


# ---- words for error lines

def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(_short, names[:12])) + (f", ... ({len(names)} in all)" if len(names) > 12 else "") or "(none)"
