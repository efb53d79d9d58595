"""One data file -> Examples, and back: its bytes, rows, columns and labels.

A data file is UTF-8 (a byte order mark is fine) with one row an example:

    .tsv     one line a row, fields between tabs, no quoting: a " is a character
    .csv     RFC 4180: a quoted field may hold commas, doubled quotes and line breaks
    .jsonl   one JSON object a line; labels may be integers or strings

The first row of a .tsv or .csv names the columns; spaces around the names do not count. A line ends in a newline or, in
a file without any, in a carriage return. Blank lines are skipped, texts lose surrounding whitespace and nothing else.
An `id` column is used where there is one; else row i is "<file's stem>-i", from 0. Which label is which class:
labels.py.

A delimiter is never guessed: where the header shows another than the suffix says, the error line names it.
"""
from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from minibd.atomic import atomic_write
from minibd.data.labels import check_names, classes_of, number, to_examples
from minibd.data.messages import quoted, setting_name, shown
from minibd.lines import one_line, visible
from minibd.records import BadInput, Example, Examples, not_there
from minibd.regular import open_regular

SUFFIXES = (".tsv", ".csv", ".jsonl")
COLUMN_NAMES = {                         # lower-case spellings of a column that no argument names
    "text": ("text", "sentence", "sentences", "sentence1", "question1", "text1", "text_a", "question"),
    "label": ("label", "labels"),
    "pair": ("pair", "sentence2", "question2", "text2", "text_b"),
    "id": ("id",),
}
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons", "|": "pipes"}
LARGEST = 4 << 30                        # bytes of a file
LONGEST = 16 << 20                       # bytes of a line, and characters of a csv field
MOST_COLUMNS = 10_000
PIECE = 1 << 20                          # bytes that are looked through at a time
SHOWN = 50_000_000                       # bytes from which on a file shows how far it is read
NEWLINE = b"\n"
SURROGATES = re.compile("[\ud800-\udfff]")  # JSON can spell half a character, which no tokenizer takes
UNWRITTEN = re.compile("[\0\ud800-\udfff]")


def read(path: str | Path, *, text_column: str | None = None, label_column: str | None = None,
         pair_column: str | None = None, labels: Sequence[str] | None = None, blank: bool = False,
         flags: bool = False) -> Examples:
    """One .tsv, .csv or .jsonl file as Examples, in the file's order.

    Columns not named are found by their spelling (COLUMN_NAMES), whatever their case. Whole numbers are the classes
    0..max, named "0", "1", ... (equal ones are one class: "1.0" is 1); other labels are names, and class i is the i-th
    name in sorted order. `labels` settles the classes instead: a checkpoint's class names or, where the rows have
    others, the rows' names in the order of the checkpoint's classes, such as ["neg", "pos"]. The file's names are
    looked up in it, first as they are, then whatever their case; its numbers index it, unless it holds numbers itself.
    A row without an id is named by its file's stem and its number, from 0: "train-0".
    blank: rows of blank text are kept, not refused. flags: error lines name settings as the scripts' flags.
    Raises BadInput; rows of the label -1, which is no label, are refused too (labels.py, 3).
    """
    path = Path(path)
    rows = read_rows(path, named_columns(text_column, label_column, pair_column), blank, flags)
    names = None if labels is None else check_names(labels, flags)
    return to_examples(path, rows, classes_of({path: rows}, names, flags), flags)


def read_texts(path: str | Path, *, text_column: str | None = None, label_column: str | None = None,
               pair_column: str | None = None, labels: Sequence[str], flags: bool = False) -> Examples:
    """One data file as Examples of a model with the classes `labels`. Rows need no labels: that of a row without one is
    -1. The other arguments are those of `read`. Raises BadInput."""
    path = Path(path)
    rows = read_rows(path, named_columns(text_column, label_column, pair_column), flags=flags, needs_label=False)
    labelled = [row for row in rows if row.label]
    index = classes_of({path: labelled}, check_names(labels, flags), flags).index if labelled else {}
    classes = (index.get(row.label) for row in rows)
    return Examples((Example(row.id, row.text, -1 if c is None else c, row.pair) for row, c in zip(rows, classes)),
                    labels)


def write(examples: Examples, path: str | Path) -> None:
    """The rows as .tsv, .csv or .jsonl, whole or not at all: columns id, text, label (a class name), pair if needed.

    read(path, labels=examples.labels) gives the rows back, but for whitespace around a text; so does read(path) where
    the names are in sorted order, or "0", "1", ..., and the last of them is in use. Raises BadInput, also for rows that
    could not be read again.
    """
    path = Path(path)
    suffix = _suffix(path)
    width = 4 if any(e.pair is not None for e in examples) else 3
    columns = ("id", "text", "label", "pair")[:width]
    rows = [(e.id, e.text, examples.labels[e.label], e.pair)[:width] for e in examples]
    _check_readable(path, rows, examples.labels)
    if suffix == ".tsv":
        _check_tabs(path, rows)
    with atomic_write(path) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        if suffix == ".csv":
            csv.writer(file).writerows([columns, *rows])
        elif suffix == ".tsv":
            file.writelines("\t".join(field or "" for field in row) + "\n" for row in [columns, *rows])
        else:
            file.writelines(json.dumps(dict(zip(columns, row)), ensure_ascii=False) + "\n" for row in rows)


def add_columns(source: str | Path, target: str | Path, columns: Mapping[str, Sequence[object]]) -> None:
    """The file `source` as `target`, of the same suffix, whole or not at all, with one more column for each of
    `columns`, a value a row; None is an empty field. A column of that name is replaced. Raises BadInput."""
    source, target = Path(source), Path(target)
    read, suffix = _checked(source), _suffix(source)
    with closing(_objects(read) if suffix == ".jsonl" else _table(read, suffix)) as table:
        rows = [row for _, row in table]
    if any(len(values) != len(rows) for values in columns.values()):
        raise ValueError(f"{source} has {len(rows)} rows, and a column another number of values")
    made = [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(rows)]
    names = list(dict.fromkeys(name for row in made for name in row))
    fields = [["" if row.get(name) is None else str(row[name]) for name in names] for row in made]
    with atomic_write(target) as draft, open(draft, "w", encoding="utf-8", newline="") as file:
        if _suffix(target) == ".csv":
            csv.writer(file).writerows([names, *fields])
        elif _suffix(target) == ".tsv":
            file.writelines("\t".join(row) + "\n" for row in [names, *fields])
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in made)


def _check_readable(path: Path, rows: Sequence[tuple[str | None, ...]], labels: Sequence[str]) -> None:
    """Raises BadInput for what read() refuses: no rows, a blank id, text or class name, equal ids, half a character,
    class names that are one."""
    if not rows:
        raise BadInput(f"{path} is not written: there are no rows, and a file without any cannot be read")
    check_names(labels)
    ids: set[str] = set()
    for row in rows:
        for role, value in zip(("id", "text", "label"), row):
            if not value.strip():
                raise BadInput(f"{path} is not written: the {role} of row {shown(row[0])} is blank, and such a row "
                               f"cannot be read: leave it out")
        if UNWRITTEN.search("".join(field or "" for field in row)):
            raise BadInput(f"{path} is not written: row {shown(row[0])} holds a NUL character or half a surrogate "
                           f"pair, which no text holds: correct it")
        if row[0].strip() in ids:
            raise BadInput(f"{path} is not written: two rows have the id {shown(row[0])}: ids must differ")
        ids.add(row[0].strip())


def _check_tabs(path: Path, rows: Iterable[tuple[str | None, ...]]) -> None:
    for row in rows:
        if any(re.search(r"[\t\n\r]", field or "") for field in row):
            raise BadInput(f"{path}: row {shown(row[0])} holds a tab or a line break, which a .tsv cannot: "
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


def read_rows(
    path: Path, named: dict[str, str], blank: bool = False, flags: bool = False, needs_label: bool = True
) -> list[Row]:
    """The rows of one file. named: see named_columns. blank, flags: see read. needs_label=False: the label of a row, or
    their column, may be missing, and is "". Raises BadInput."""
    needed = ("text", "label") if needs_label or "label" in named else ("text",)
    suffix = _suffix(path)
    source = _checked(path)
    if suffix != ".jsonl":
        _check_header(path, suffix, source, named, needed)
    with closing(_objects(source) if suffix == ".jsonl" else _table(source, suffix)) as table:
        if (first := next(table, None)) is None:
            raise BadInput(f"{path} holds no rows: give a file with at least one, after its header in a .tsv or .csv")
        present = list(first[1])
        if suffix == ".jsonl":            # a row may have keys that the first lacks
            present = list(dict.fromkeys([*present, *(name for _, row in table for name in row)]))
    columns = _columns(path, present, named, flags, needed)
    spelled: dict[str, str] = {}          # each label once in memory, however many rows have it
    rows = []
    with closing(_objects(source) if suffix == ".jsonl" else _table(source, suffix)) as table:
        for i, (line, row) in enumerate(table):
            rows.append(_row(path, line, row, columns, i, blank, needs_label, spelled))
    if "id" in columns:
        _check_ids(path, rows)
    return rows


def _suffix(path: Path) -> str:
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"{path} is no data file: its name must end in {quoted(SUFFIXES)}")
    return path.suffix.lower()


@dataclass(frozen=True, slots=True)
class _Source:
    """A file that is UTF-8 throughout and has no line of more than LONGEST bytes. newline: what ends its lines."""
    path: Path
    size: int
    newline: str

    def lines(self, newline: str | None = None) -> Iterator[str]:
        """Its lines with their ends, of the file's or another `newline`, as they are read; a large file shows how far
        it is."""
        with open_regular(self.path, LARGEST) as opened, tqdm(
            total=self.size, desc=visible(self.path.name), unit="B", unit_scale=True, file=sys.stderr, leave=False,
            mininterval=0.5, disable=self.size < SHOWN,
        ) as bar:
            text = io.TextIOWrapper(opened, encoding="utf-8", newline=self.newline if newline is None else newline)
            for i, line in enumerate(text):
                if i % 10_000 == 0:
                    bar.update(opened.tell() - bar.n)
                yield line if i else line.lstrip("\ufeff")

    def rows(self) -> Iterator[tuple[int, str]]:
        """Lines that are not blank, counted from 1, without their ends. str.splitlines would cut at U+2028 too."""
        for i, line in enumerate(self.lines(), 1):
            if line.strip(" \r\n"):
                yield i, line.removesuffix(self.newline).removesuffix("\r")


def _checked(path: Path) -> _Source:
    """The file at `path`, looked through piece by piece: what cannot be read of it is found before a row is made.

    A newline ends a line and, where the file has none before its end, a carriage return; nothing else does.
    """
    fix = f"name a file ending in {quoted(SUFFIXES)}"
    if not os.path.lexists(path):
        raise BadInput(f"{not_there(path)}: {fix}")
    decoder, line, run, size, newline, within = codecs.getincrementaldecoder("utf-8")(), 1, 0, 0, False, False
    with open_regular(path, LARGEST, fix) as opened:
        try:
            while piece := opened.read(PIECE):
                if not size and (piece.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in piece[:2]):
                    raise BadInput(f"{path}, line 1: this is UTF-16 or UTF-32, or no text, and not UTF-8: save the "
                                   f"file as UTF-8")
                size += len(piece)
                _check_piece(path, piece, decoder, line)
                ends = [place for place in (piece.find(b"\n"), piece.find(b"\r")) if place >= 0]
                if run + (min(ends) if ends else len(piece)) > LONGEST:
                    raise BadInput(f"{path}, line {line}: the line has more than {LONGEST} bytes: a row is one text, "
                                   f"and no model reads so long a one; shorten it, or correct what ends its lines")
                run = len(piece) - 1 - max(piece.rfind(b"\n"), piece.rfind(b"\r")) if ends else run + len(piece)
                stripped = piece.rstrip(b"\r\n")
                within = within or newline and bool(stripped) or b"\n" in stripped
                newline = newline or b"\n" in piece
                line += piece.count(b"\n")
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            raise BadInput(f"{path}, line {line}: its last letter is cut off in UTF-8: save the file again") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({one_line(error)}): {fix}") from None
    return _Source(path, size, "\n" if within else "\r")


def _check_piece(path: Path, piece: bytes, decoder: codecs.IncrementalDecoder, line: int) -> None:
    """Raises BadInput where `piece`, which begins in `line`, holds a NUL byte or is not UTF-8."""
    if (place := piece.find(b"\0")) >= 0:
        raise BadInput(f"{path}, line {line + piece.count(NEWLINE, 0, place)}: a NUL byte, which no text holds: "
                       f"save the file as UTF-8, or restore it")
    held = len(decoder.getstate()[0])     # bytes of a letter that the last piece began
    try:
        decoder.decode(piece)
    except UnicodeDecodeError as error:
        place = max(0, error.start - held)
        raise BadInput(
            f"{path}, line {line + piece.count(NEWLINE, 0, place)}: byte 0x{error.object[error.start]:02x} is not "
            f"UTF-8: save the file as UTF-8"
        ) from None


def _csv(source: _Source) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each row. The csv module's limit of a field's length is its user's: it is put back."""
    before = csv.field_size_limit(LONGEST)
    try:
        reader = csv.reader(source.lines(""), strict=True)
        while True:
            number = reader.line_num + 1                 # a quoted field may hold lines, so rows do not count lines
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadInput(f"{source.path}, line {number}: {error}: correct the quotes (RFC 4180) or write a "
                               f".jsonl") from None
            if len(fields) > 1 or "".join(fields).strip():
                yield number, fields
    finally:
        csv.field_size_limit(before)


def _check_header(path: Path, suffix: str, source: _Source, named: Mapping[str, str], needed: Sequence[str]) -> None:
    """Raises BadInput where the first line is cut by another delimiter than the suffix's, or quoted in a .tsv."""
    line = next(source.rows(), (1, ""))[1][:10_000]
    own = "," if suffix == ".csv" else "\t"
    bare = {d: [name.strip(' "') for name in line.split(d)] for d in DELIMITERS}
    other = max((d for d in DELIMITERS if d != own), key=lambda d: (_has(bare[d], named, needed), len(bare[d])))
    if line.lstrip().startswith(("{", "[")) and not _has(bare[own], named, needed):
        raise BadInput(f"{path}, line 1: this is JSON, and no {suffix}: name the file {shown(path.stem + '.jsonl')}, "
                       f"with an object a line")
    better = _has(bare[other], named, needed) > _has(bare[own], named, needed)
    if len(bare[other]) > 1 and (len(bare[own]) == 1 or better):
        fix = {",": f"rename it to {shown(path.stem + '.csv')}"}
        if not any('"' in one for one in source.lines()):  # which a .tsv would take for letters
            fix["\t"] = f"rename it to {shown(path.stem + '.tsv')}"
        raise BadInput(f"{path}, line 1: the columns stand between {DELIMITERS[other]}, and those of a {suffix} "
                       f"between {DELIMITERS[own]}: " + fix.get(other, f"write {DELIMITERS[own]} instead, or a .jsonl"))
    if suffix == ".tsv" and '"' in line and _has(bare[own], named, needed) > _has(line.split("\t"), named, needed):
        raise BadInput(f"{path}, line 1: the columns' names stand in quotes, which a .tsv does not have: write the "
                       f"file without quotes, or as a .csv")


def _has(header: list[str], named: Mapping[str, str], needed: Sequence[str]) -> bool:
    """Whether the columns that are needed, of text and of labels, are among the names of `header`."""
    present = {name.strip() for name in header}
    return all(
        named[role].strip() in present if role in named else any(name.lower() in COLUMN_NAMES[role] for name in present)
        for role in needed
    )


def _table(source: _Source, suffix: str) -> Iterator[tuple[int, dict[str, object]]]:
    """(line, {column: field}) of each row after the header."""
    path = source.path
    rows = _csv(source) if suffix == ".csv" else ((i, line.split("\t")) for i, line in source.rows())
    header = [name.strip() for name in next(rows, (1, []))[1]]
    if len(header) > MOST_COLUMNS:
        raise BadInput(f"{path} has {len(header)} columns, more than {MOST_COLUMNS}, and a table of texts and "
                       f"labels needs two: write those alone")
    for name, times in Counter(header).items():
        if name and times > 1:
            raise BadInput(f"{path} has {times} columns {shown(name)}: rename all but one")
    for line, fields in rows:
        if len(fields) != len(header):
            fix = "or use .csv or .jsonl if a text holds a tab or a line break" if path.suffix.lower() == ".tsv" else (
                "with quotes around a text that holds a comma")
            raise BadInput(f"{path}, line {line}: {len(fields)} fields where the header has {len(header)}: "
                           f"correct the row, {fix}")
        yield line, dict(zip(header, fields))


class _Object(dict):
    """A JSON object that knows all its keys, those that stand twice too."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__((name.strip(), value) for name, value in pairs)
        self.given = [name.strip() for name, _ in pairs]


def _objects(source: _Source) -> Iterator[tuple[int, dict[str, object]]]:
    path = source.path
    for line, text in source.rows():
        try:
            row = json.loads(text, object_pairs_hook=_Object)
        except (ValueError, RecursionError) as error:
            raise BadInput(f"{path}, line {line}: not JSON ({one_line(error)}): a .jsonl holds one object a "
                           f"line") from None
        if not isinstance(row, _Object):
            raise BadInput(f"{path}, line {line}: {shown(row)} is not a JSON object: a .jsonl holds one object a line")
        if len(row.given) > len(row):
            twice = next(name for name in row if row.given.count(name) > 1)
            raise BadInput(f"{path}, line {line}: the key {shown(twice)} stands more than once: keep one")
        yield line, row


# ---- columns -> fields

def named_columns(text: str | None, label: str | None, pair: str | None) -> dict[str, str]:
    """{role: column} for the roles whose column an argument names."""
    return {role: name for role, name in (("text", text), ("label", label), ("pair", pair)) if name is not None}


def _columns(
    path: Path, present: list[str], named: dict[str, str], flags: bool, needed: Sequence[str]
) -> dict[str, str]:
    """{role: column}: those `named`, then those found by their spelling. Those `needed` are always among them. All that
    is wrong is said in one line."""
    chosen, wrong, settings = {}, [], []
    for role, name in named.items():
        if name.strip() in chosen.values():
            raise BadInput(f"column {shown(name)} of {path} is named twice: choose "
                           f"{setting_name(f'{role}_column', flags)} from {quoted(present)}")
        if name.strip() in present:
            chosen[role] = name.strip()
        else:
            wrong.append(f"no column {shown(name)}")
            settings.append(setting_name(f"{role}_column", flags))
    for role, spellings in COLUMN_NAMES.items():
        if role in named:
            continue
        matching = [name for name in present if name.lower() in spellings and name not in chosen.values()]
        if len(matching) == 1:
            chosen[role] = matching[0]
        elif matching and role == "id":
            raise BadInput(f"{path} has {len(matching)} columns that could be the id, {quoted(matching)}: rename all "
                           f"but one")
        elif matching or role in needed:
            wrong.append(f"{len(matching)} columns that could be the {role} ({quoted(matching)})" if matching
                         else f"no {role} column")
            settings.append(setting_name(f"{role}_column", flags))
    if len(wrong) > 1 and not chosen and _looks_like_rows(present):
        raise BadInput(f"{path}, line 1: the first row, {quoted(present)}, names no columns and looks like data: put a "
                       f"header above it that names a column text and a column label")
    if wrong:
        raise BadInput(f"{path} has {' and '.join(wrong)}: choose {' and '.join(settings)} from {quoted(present)}")
    return chosen


def _looks_like_rows(header: list[str]) -> bool:
    """Whether a header has a number among its names, or a text of several words."""
    return any(number(name) is not None or len(name.split()) > 3 for name in header)


def _row(
    path: Path, line: int, row: dict[str, object], columns: dict[str, str], i: int, blank: bool, needs_label: bool,
    spelled: dict[str, str],
) -> Row:
    text = _value(path, line, row, columns["text"], str)
    label = _value(path, line, row, columns["label"], (str, int, float)) if "label" in columns else ""
    pair = _value(path, line, row, columns["pair"], str) if "pair" in columns else ""
    id = _value(path, line, row, columns["id"], (str, int, float)) if "id" in columns else f"{path.stem}-{i}"
    for role, value in (("text", text), ("label", label), ("id", id)):
        if not value and not (blank and role == "text" or not needs_label and role == "label"):
            raise BadInput(f"{path}, line {line}: the {role} is empty: fill it in or drop the row")
    return Row(line, id, text, spelled.setdefault(label, label), pair or None)


def _value(path: Path, line: int, row: dict[str, object], column: str, types: type | tuple[type, ...]) -> str:
    """One field, without surrounding whitespace; JSON null is the empty one."""
    if column not in row:
        raise BadInput(f"{path}, line {line}: no key {shown(column)} among {quoted(row)}: add it or drop the row")
    value = "" if row[column] is None else row[column]
    if not isinstance(value, types) or isinstance(value, bool) or value != value:
        wanted = "a string" if types is str else "a string or an integer"
        raise BadInput(f"{path}, line {line}: {visible(column)} is {shown(value)}, not {wanted}: correct the row")
    try:
        value = str(value).strip()
    except ValueError:                    # a number of thousands of digits
        raise BadInput(f"{path}, line {line}: {visible(column)} is a number of too many digits: correct the "
                       f"row") from None
    if "\0" in value:
        raise BadInput(f"{path}, line {line}: {visible(column)} holds a NUL character, which no text does: correct the "
                       f"row")
    if SURROGATES.search(value):
        raise BadInput(f"{path}, line {line}: {visible(column)} holds half a surrogate pair, {shown(value)}: correct "
                       f"the row")
    return value


def _check_ids(path: Path, rows: Iterable[Row]) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if first.setdefault(row.id, row.line) != row.line:
            raise BadInput(f"{path}, line {row.line}: id {shown(row.id)} was used at line {first[row.id]}: "
                           f"ids must differ")
