"""One data file -> Examples, and back: its bytes, rows, columns and labels.

A data file is UTF-8 (a byte order mark is fine) with one row an example:

    .tsv     one line a row, fields between tabs, no quoting: a " is a character
    .csv     RFC 4180: a quoted field may hold commas, doubled quotes and line breaks
    .jsonl   one JSON object a line; labels may be integers or strings

The first row of a .tsv or .csv names the columns; spaces around the names do not count. Blank lines are skipped, texts
lose surrounding whitespace and nothing else. An `id` column is used where there is one; else row i is "<file's
stem>-i", from 0.
"""
from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from minibd.atomic import atomic_write
from minibd.records import BadInput, Example, Examples, not_there

SUFFIXES = (".tsv", ".csv", ".jsonl")
COLUMN_NAMES = {                         # lower-case spellings of a column that no argument names
    "text": ("text", "sentence", "sentences", "sentence1", "question1", "text1", "text_a", "question"),
    "label": ("label", "labels"),
    "pair": ("pair", "sentence2", "question2", "text2", "text_b"),
    "id": ("id",),
}
MOST_CLASSES = 100_000                   # a larger integer label is some other column, not a class


def read(path: str | Path, *, text_column: str | None = None, label_column: str | None = None,
         pair_column: str | None = None, labels: Sequence[str] | None = None, blank: bool = False) -> Examples:
    """One .tsv, .csv or .jsonl file as Examples, in the file's order.

    Columns not named are found by their spelling (COLUMN_NAMES), whatever their case. Integer labels are the classes
    0..max, named "0", "1", ... ("1.0" counts as 1 where every label is of that form); other labels are names, and class
    i is the i-th name in sorted order. `labels` (a checkpoint's class names, say) settles the classes instead: the
    file's integers then index it, and its names are looked up in it, first as they are, then whatever their case. A row
    without an id is named by its file's stem and its number, from 0: "train-0". blank: rows of blank text are kept,
    not refused. Raises BadInput.
    """
    path = Path(path)
    rows = read_rows(path, named_columns(text_column, label_column, pair_column), blank)
    names = class_names({path: rows}) if labels is None else tuple(labels)
    return to_examples(path, rows, names)


def write(examples: Examples, path: str | Path) -> None:
    """The rows as .tsv, .csv or .jsonl, whole or not at all: columns id, text, label (a class name), pair if needed.

    read(path, labels=examples.labels) gives the rows back; so does read(path) where the names are in sorted order, or
    "0", "1", ..., and the last of them is in use. Raises BadInput.
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


# ---- bytes -> rows

@dataclass(frozen=True, slots=True)
class Row:
    """A row whose label is still as the file spells it. `line` counts from 1 and is where the row starts."""
    line: int
    id: str
    text: str
    label: str
    pair: str | None


def read_rows(path: Path, named: dict[str, str], blank: bool = False) -> list[Row]:
    """The rows of one file. named: see named_columns. blank: see read. Raises BadInput."""
    suffix = _suffix(path)
    text = _decode(path)
    if suffix == ".jsonl":
        table = _objects(path, text)
    else:
        table = _table(path, _csv(path, text) if suffix == ".csv" else _tsv(text))
    if not table:
        raise BadInput(f"{path} holds no rows: give a file with at least one, after its header in a .tsv or .csv")
    columns = _columns(path, list(dict.fromkeys(name for _, row in table for name in row)), named)
    rows = [_row(path, line, row, columns, number, blank) for number, (line, row) in enumerate(table)]
    _check_ids(path, rows)
    return rows


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{path} is no data file: its name must end in {quoted(SUFFIXES)}")
    return path.suffix.lower()


def _decode(path: Path) -> str:
    try:
        raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
        return raw.decode("utf-8")
    except FileNotFoundError:
        raise BadInput(f"{not_there(path)}: name a file ending in {quoted(SUFFIXES)}") from None
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}): name a file ending in {quoted(SUFFIXES)}") from None
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
            raise BadInput(f"{path}, line {number}: {error}: correct the quotes (RFC 4180) or write a .jsonl") from None
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
                           f"correct the row, or use .csv or .jsonl if a text holds a tab or a line break")
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
            raise BadInput(f"{path}, line {line}: {shown(row)} is not a JSON object: a .jsonl holds one object a line")
        table.append((line, {name.strip(): value for name, value in row.items()}))
    return table


# ---- columns -> fields

def named_columns(text: str | None, label: str | None, pair: str | None) -> dict[str, str]:
    """{role: column} for the roles whose column an argument names."""
    return {role: name for role, name in (("text", text), ("label", label), ("pair", pair)) if name is not None}


def _columns(path: Path, present: list[str], named: dict[str, str]) -> dict[str, str]:
    """{role: column}: those `named`, then those found by their spelling. "text" and "label" are always among them."""
    chosen: dict[str, str] = {}
    for role, name in named.items():
        if name.strip() not in present:
            raise BadInput(f"no column {name!r} in {path}: --{role}-column must be one of {quoted(present)}")
        if name.strip() in chosen.values():
            raise BadInput(
                f"column {name!r} of {path} is named twice: choose --{role}-column from {quoted(present)}"
            )
        chosen[role] = name.strip()
    for role, spellings in COLUMN_NAMES.items():
        matching = [name for name in present if name.lower() in spellings and name not in chosen.values()]
        if role in chosen:
            continue
        if len(matching) > 1:
            raise BadInput(
                f"{path} has {len(matching)} columns that could be the {role}, {quoted(matching)}: rename all but one"
                + (f", or choose with --{role}-column" if role != "id" else "")
            )
        if matching:
            chosen[role] = matching[0]
        elif role in ("text", "label"):
            raise BadInput(f"no {role} column in {path}: choose one of {quoted(present)} with --{role}-column")
    return chosen


def _row(path: Path, line: int, row: dict[str, object], columns: dict[str, str], number: int, blank: bool) -> Row:
    text = _value(path, line, row, columns["text"], str)
    label = _value(path, line, row, columns["label"], (str, int, float))
    pair = _value(path, line, row, columns["pair"], str) if "pair" in columns else ""
    id = _value(path, line, row, columns["id"], (str, int, float)) if "id" in columns else f"{path.stem}-{number}"
    for role, value in (("text", text), ("label", label), ("id", id)):
        if not value and not (blank and role == "text"):
            raise BadInput(f"{path}, line {line}: the {role} is empty: fill it in or drop the row")
    return Row(line, id, text, label, pair or None)


def _value(path: Path, line: int, row: dict[str, object], column: str, types: type | tuple[type, ...]) -> str:
    """One field, without surrounding whitespace; JSON null is the empty one."""
    if column not in row:
        raise BadInput(f"{path}, line {line}: no key {column!r} among {quoted(row)}: add it or drop the row")
    value = "" if row[column] is None else row[column]
    if not isinstance(value, types) or isinstance(value, bool):
        wanted = "a string" if types is str else "a string or an integer"
        raise BadInput(f"{path}, line {line}: {column} is {shown(value)}, not {wanted}: correct the row")
    value = str(value).strip()
    if re.search("[\ud800-\udfff]", value):              # JSON can spell half a character, which no tokenizer takes
        raise BadInput(f"{path}, line {line}: {column} holds half a surrogate pair, {shown(value)}: correct the row")
    return value


def _check_ids(path: Path, rows: Iterable[Row]) -> None:
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


def class_names(files: dict[Path, list[Row]]) -> tuple[str, ...]:
    """The class names that the files agree on, where none are given. Raises BadInput."""
    spelled = {path: {row.label for row in rows} for path, rows in files.items()}
    numbered = [path for path in files if _numbers(spelled[path]) is not None]
    if not numbered:
        return tuple(sorted(set().union(*spelled.values())))
    if len(numbered) < len(files):
        named = next(path for path in files if path not in numbered)
        raise BadInput(f"labels are integers in {numbered[0]} and names in {named}, as {shown(min(spelled[named]))}: "
                       f"use one kind in both")
    top, path = max((max(_numbers(spelled[path]).values()), path) for path in files)
    if top >= MOST_CLASSES:
        raise BadInput(
            f"label {top} in {path} is above {MOST_CLASSES - 1}, the highest class: choose with --label-column"
        )
    return tuple(map(str, range(top + 1)))


def to_examples(path: Path, rows: Iterable[Row], names: tuple[str, ...]) -> Examples:
    classes = _classes({row.label for row in rows}, names)
    for row in rows:
        if row.label not in classes:
            raise BadInput(f"{path}, line {row.line}: label {shown(row.label)} is none of the {len(names)} classes "
                           f"{quoted(names)}: correct the row, or use a model with that class")
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
    unique = {name: found[0] for name, found in folded.items() if len(found) == 1}
    classes = {label: exact.get(label, unique.get(label.casefold())) for label in spelled}
    return {label: c for label, c in classes.items() if c is not None}


# ---- words of error lines

def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def quoted(names: Iterable[str]) -> str:
    """Up to twelve of `names`, each in quotes, and how many there are."""
    names = list(names)
    more = f", ... ({len(names)} in all)" if len(names) > 12 else ""
    return ", ".join(map(shown, names[:12])) + more or "(none)"
