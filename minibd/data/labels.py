"""The label values of a data set's files -> classes, decided once for all its files together.

1. Labels that are equal as numbers are one class, however they are spelled: 1, 1.0, 01, +1 and 1e0.
2. Whole numbers 0..n are classes 0..n. Other numbers are scores and no classes: refused.
3. -1 beside them is "no label" (GLUE's test rows; SNLI's rows without a majority, which its own files spell "-"): such
   rows are refused or, where rows are only measured, left out. Beside nothing but 1 (and "-" beside "+") it is a class.
4. Everything else is a name, and the names in sorted order are the classes. Names that differ only in case are refused,
   as are names beside numbers: which of them is the mistake, the larger part of the rows says.
5. `given` names, a model's classes or the rows' names in the model's order, settle the classes instead. Where they are
   numbers, labels are looked up among them as numbers, so that "1" of the stars 1..5 is never class 1 by its index.
   Other names are looked up as they are, then whatever their case; where no number is a name, whole numbers 0..n are
   indices, beside names too.
"""
from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.data.messages import labels_setting, quoted, setting_name, shown
from minibd.records import BadInput, Example, Examples

if TYPE_CHECKING:
    from minibd.data.files import Row

MOST_CLASSES = 100_000                   # a larger integer label is some other column, not a class
MISSING = Decimal(-1)


@dataclass(frozen=True, slots=True)
class Classes:
    """names[i] names class i. index: of each label, as the files spell it, its class; None for "no label". given:
    whether the names were."""
    names: tuple[str, ...]
    index: Mapping[str, int | None]
    given: bool = False


@dataclass(frozen=True, slots=True)
class _Column:
    """The label column of all files together.

    rows: how many rows have a label, as the files spell it. first: (file, line) of the first of them. numbers: the
    value of each label that is a number.
    """
    rows: Mapping[str, int]
    first: Mapping[str, tuple[Path, int]]
    numbers: Mapping[str, Decimal]
    flags: bool

    def at(self, label: str) -> str:
        path, line = self.first[label]
        return f"{path}, line {line}"

    def earliest(self, labels: Iterable[str]) -> str:
        """Of `labels`, the one whose first row comes first."""
        wanted = set(labels)
        return next(label for label in self.first if label in wanted)

    def count(self, labels: Iterable[str]) -> int:
        return sum(self.rows[label] for label in labels)


def classes_of(
    files: Mapping[Path, Sequence[Row]], given: Sequence[str] | None = None, flags: bool = False
) -> Classes:
    """The classes of the labels in `files`, the rows of every file of a data set.

    given: the names that settle the classes (5). flags: messages name settings as scripts do. Raises BadInput, which
    names the file and the line of the row that is at fault.
    """
    rows: Counter[str] = Counter()
    first: dict[str, tuple[Path, int]] = {}
    for path, part in files.items():
        for row in part:
            rows[row.label] += 1
            first.setdefault(row.label, (path, row.line))
    numbers = {label: value for label in rows if (value := number(label)) is not None}
    column = _Column(rows, first, numbers, flags)
    return _classes_found(column) if given is None else _classes_given(column, tuple(given))


def to_examples(
    path: Path, rows: Sequence[Row], classes: Classes, flags: bool = False, *, leave_out: bool = False
) -> Examples:
    """The rows of one file as Examples. leave_out: rows without a label are left out, not refused. Raises BadInput."""
    missing = [row for row in rows if classes.index[row.label] is None]
    if missing and len(missing) == len(rows) and leave_out:
        raise BadInput(f"{path}: all {len(rows)} labels are {shown(missing[0].label)}, which is no label, so that "
                       f"nothing can be measured on it: add the labels, or take the file out of the data")
    if missing and not leave_out:
        row = missing[0]
        names = [row.label, *classes.names]
        hint = labels_setting(names, flags) if not classes.given and len(names) > 2 else ""
        raise BadInput(f"{path}, line {row.line}: label {shown(row.label)} says 'no label', {len(missing)} of "
                       f"{len(rows)} rows have it: write the file without these rows"
                       + (f", or name all classes if it is one, {hint}" if hint else ""))
    return Examples(
        (Example(row.id, row.text, c, row.pair) for row in rows if (c := classes.index[row.label]) is not None),
        classes.names,
    )


def number(label: str) -> Decimal | None:
    """The value of a label that is a number of ordinary size, else None."""
    form = r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?"
    return Decimal(label) if len(label) <= 60 and re.fullmatch(form, label) else None


def check_names(names: Sequence[str], flags: bool = False) -> tuple[str, ...]:
    """`names` of classes, stripped. Raises BadInput where they cannot tell classes apart."""
    names, seen = tuple(name.strip() for name in names), {}
    for c, name in enumerate(names):
        value = number(name)
        other = seen.setdefault(name if value is None else value, c)
        if not name or other != c:
            fault = f"the names {shown(names[other])} and {shown(name)} are one class" if name else "a name is empty"
            raise BadInput(f"{fault} among the classes {quoted(names)}: give each a name of its own with "
                           f"{setting_name('labels', flags)}")
    return names


# ---- without given names

def _classes_found(column: _Column) -> Classes:
    missing = _missing(column)
    labels = [label for label in column.rows if label not in missing]
    numbers = [label for label in labels if label in column.numbers]
    if not numbers:
        names = _distinct_names(column, labels)
        return Classes(names, {**dict.fromkeys(missing), **{name: c for c, name in enumerate(names)}})
    _check_one_kind(column, labels)
    if {column.numbers[label] for label in labels} <= {MISSING, Decimal(1)} and len(labels) > 1:
        if any(column.numbers[label] == MISSING for label in labels):
            return Classes(("-1", "1"), {label: int(column.numbers[label] > 0) for label in labels})
    _check_whole(column, labels)
    index = {label: int(column.numbers[label]) for label in labels}
    top = max(index, key=index.__getitem__)
    if index[top] >= MOST_CLASSES:
        raise BadInput(f"{column.at(top)}: label {shown(top)} is above {MOST_CLASSES - 1}, the highest class: choose "
                       f"the labels' column with {setting_name('label_column', column.flags)}")
    return Classes(tuple(map(str, range(index[top] + 1))), {**dict.fromkeys(missing), **index})


def _missing(column: _Column) -> set[str]:
    """The labels that say "no label": -1, and "-" among names."""
    labels, values = set(column.rows), set(column.numbers.values())
    signs = MISSING in values and values == {MISSING, Decimal(1)} and len(column.numbers) == len(labels)
    missing = set() if signs else {label for label, value in column.numbers.items() if value == MISSING}
    return missing | (set() if labels <= {"-", "+"} else {"-"} & labels)


def _distinct_names(column: _Column, labels: Sequence[str]) -> tuple[str, ...]:
    """`labels`, which are names, in sorted order. Raises BadInput where two differ only in case."""
    folded: dict[str, str] = {}
    for label in labels:
        if (other := folded.setdefault(_fold(label), label)) != label:
            few, many = sorted((label, other), key=column.rows.__getitem__)
            hint = labels_setting(sorted(labels), column.flags) or setting_name("labels", column.flags)
            raise BadInput(f"{column.at(few)}: label {shown(few)} differs from {shown(many)} only in its case: spell "
                           f"them alike, or name the classes if they are two, {hint}")
    return tuple(sorted(labels))


def _check_one_kind(column: _Column, labels: Sequence[str]) -> None:
    """Raises BadInput where some labels are numbers and others names; the kind of fewer rows is at fault."""
    numbers = [label for label in labels if label in column.numbers]
    names = [label for label in labels if label not in column.numbers]
    if not (numbers and names):
        return
    (few, kind), (many, other) = sorted(
        ((names, "a name"), (numbers, "a number")), key=lambda one: column.count(one[0])
    )
    label, usual = column.earliest(few), column.earliest(many)
    where = "" if column.first[usual][0] == column.first[label][0] else f" of {column.first[usual][0].name}"
    raise BadInput(f"{column.at(label)}: label {shown(label)} is {kind}, and {column.count(many)} of "
                   f"{column.count(labels)} rows have {other}, as {shown(usual)} in line {column.first[usual][1]}"
                   f"{where}: use one kind, or name all classes with {setting_name('labels', column.flags)}")


def _check_whole(column: _Column, labels: Sequence[str]) -> None:
    """Raises BadInput where labels, which are numbers, are no whole ones from 0."""
    if parts := [label for label in labels if column.numbers[label] % 1]:
        label = column.earliest(parts)
        raise BadInput(f"{column.at(label)}: label {shown(label)} is no whole number, as in {column.count(parts)} of "
                       f"{column.count(labels)} rows: a classifier's labels are classes and not scores; choose another "
                       f"column with {setting_name('label_column', column.flags)}, or write classes")
    if below := [label for label in labels if column.numbers[label] < 0]:
        label = column.earliest(below)
        raise BadInput(f"{column.at(label)}: label {shown(label)} is below 0, and numbers count the classes from 0: "
                       f"write them so, or name all classes with {setting_name('labels', column.flags)}")


# ---- with given names

def _classes_given(column: _Column, names: tuple[str, ...]) -> Classes:
    index = _by_name(column, names)
    missing = _missing(column) - index.keys()
    labels = [label for label in column.rows if label not in missing]
    numbers = [label for label in labels if label in column.numbers]
    if not any(label in index for label in numbers) and any(number(name.strip()) is None for name in names):
        if {column.numbers[label] for label in numbers} != {MISSING, Decimal(1)}:  # which _refuse_unknown explains
            _check_whole(column, numbers)
        index |= {label: int(column.numbers[label]) for label in numbers if 0 <= column.numbers[label] < len(names)}
    if len(index) < len(labels):
        _refuse_unknown(column, labels, index, names)
    return Classes(names, {**dict.fromkeys(missing), **index}, given=True)


def _by_name(column: _Column, names: tuple[str, ...]) -> dict[str, int]:
    """{label: class} for the labels that are a class's name: exactly, or as the only one equal but for case or, where
    all names are numbers, by value."""
    names = tuple(name.strip() for name in names)
    exact, values = {name: c for c, name in enumerate(names)}, [number(name) for name in names]
    if None in values:
        near, keys = _unique(map(_fold, names)), {label: _fold(label) for label in column.rows}
    else:
        near, keys = _unique(values), column.numbers
    found = {label: exact.get(label, near.get(keys.get(label))) for label in column.rows}
    return {label: c for label, c in found.items() if c is not None}


def _refuse_unknown(column: _Column, labels: Sequence[str], index: Mapping[str, int], names: tuple[str, ...]) -> None:
    label = column.earliest(label for label in labels if label not in index)
    line = f"{column.at(label)}: label {shown(label)} is none of the {len(names)} classes {quoted(names)}: "
    distinct = sorted({column.numbers.get(x, x): x for x in reversed(labels)}.values(),
                      key=lambda x: (column.numbers.get(x, Decimal(0)), x))
    numbers = all(x in column.numbers for x in labels)
    if len(distinct) > len(names):
        raise BadInput(f"{line}the rows have {len(distinct)} classes: correct the row, or use a model with that class")
    if index and not numbers:
        raise BadInput(f"{line}correct the row, or use a model with that class")
    if len(distinct) == len(names) and (hint := labels_setting(distinct, column.flags)):
        raise BadInput(f"{line}correct the row, or name the rows' classes in the model's order, as in {hint}")
    raise BadInput(f"{line}correct the row, or name the rows' {len(names)} classes in the model's order with "
                   f"{setting_name('labels', column.flags)}")


def _unique(keys: Iterable[object]) -> dict:
    """{key: class} for the keys that one class has."""
    keys = list(keys)
    times = Counter(keys)
    return {key: c for c, key in enumerate(keys) if times[key] == 1}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
