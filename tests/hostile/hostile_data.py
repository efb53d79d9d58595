"""Hostile data files, each from a seed: sound rows of which something is changed, by kind; an independent reading."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path

from bases import LABELS, rows
from hostile_checkpoints import WORDS, anything, place_special

SUFFIXES = (".tsv", ".csv", ".jsonl")


def text_of(table: list[list[str]], suffix: str) -> str:
    """A table, its header first, as a file of that suffix holds it."""
    if suffix == ".tsv":
        return "".join("\t".join(row) + "\n" for row in table)
    if suffix == ".csv":
        csv.writer(out := io.StringIO(), lineterminator="\n").writerows(table)
        return out.getvalue()
    return "".join(json.dumps(dict(zip(table[0], row))) + "\n" for row in table[1:])


def sound(rng: random.Random) -> list[list[str]]:
    made = rows(rng.randint(6, 14), rng.randrange(1 << 30))
    names = [str(i) for i in range(2)] if rng.random() < 0.3 else LABELS
    return [["text", "label"], *([row.text, names[row.label]] for row in made)]


def fields(rng: random.Random, suffix: str) -> bytes:
    """Strange words in a text, a label, an id or a column's name."""
    table = sound(rng)
    if rng.random() < 0.3:
        table = [["id", *table[0]], *([f"r{i}", *row] for i, row in enumerate(table[1:]))]
    for _ in range(rng.choice((1, 1, 4))):
        row = rng.choice(table)
        row[rng.randrange(len(row))] = rng.choice(WORDS).replace("\t", " ")
    if suffix != ".jsonl":  # which UTF-8 has no bytes for
        table = [[field.encode("utf-8", "replace").decode() for field in row] for row in table]
    return text_of(table, suffix).encode()


def types(rng: random.Random, suffix: str) -> bytes:
    objects = [dict(zip(("text", "label"), row)) for row in sound(rng)[1:]]
    for _ in range(rng.choice((1, 3))):
        rng.choice(objects)[rng.choice(("text", "label", "id", "pair", "\x1b[31m"))] = anything(rng)
    return "".join(json.dumps(row) + "\n" for row in objects).encode()


def numbers(rng: random.Random, suffix: str) -> bytes:
    table = sound(rng)
    labels = [
        "0",
        "1",
        "-1",
        "1e400",
        "99999999999999999999",
        "0.5",
        "1.0",
        "nan",
        "inf",
        "٣",
        "1_0",
        "0x1",
        "+1",
        "1e2",
        "-0",
        "³",
        "1" * 5000,
    ]
    for row in table[1:]:
        row[1] = rng.choice(("0", "1"))
    for _ in range(rng.randint(1, 3)):
        rng.choice(table[1:])[1] = rng.choice(labels)
    return text_of(table, suffix).encode()


def raw(rng: random.Random, suffix: str) -> bytes:
    """Bytes that are no text, or another encoding's."""
    source = text_of(sound(rng), suffix).encode()
    place, kind = rng.randrange(len(source)), rng.choice(range(13))
    return (
        source[:place],
        source[:place] + b"\0" * 30 + source[place:],
        source[:place] + b"\xff\xfe" + source[place:],
        source.decode().encode("utf-16"),
        source.decode().encode("utf-16-le"),
        source.decode().encode("utf-32"),
        source[:place] + "é".encode("latin-1") + source[place:] + "é".encode(),
        b"\xef\xbb\xbf" * 3 + source,
        rng.randbytes(2000),
        b"",
        b"\n" * 5000,
        source.replace(b"\n", b"\r"),
        source[:place] + b"\x1a\x1b[2J" + source[place:],
    )[kind]


def quotes(rng: random.Random, suffix: str) -> bytes:
    source = text_of(sound(rng), suffix)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(source))
        source = (
            source[:place] + rng.choice(('"', '""', '",', "\t", ",", "\n", "\r", "\\", "'", "{", "}")) + source[place:]
        )
    return source.encode()


def header(rng: random.Random, suffix: str) -> bytes:
    table = sound(rng)
    table[0] = rng.choice(
        (
            ["text", "text"],
            ["label", "text", "label"],
            ["sentence", "text"],
            ["Text", "LABEL"],
            ["", ""],
            [" text ", "label "],
            ["text"],
            ["a"] * 3000,
            ["x" * 100_000, "label"],
            ["\x1b[31m", "\u202e"],
            ["text", "label", "pair"],
            ["id", "label"],
            table[1],
            ["text;label"],
            ["{text", "label}"],
        )
    )
    table = [table[0], *([row[i % 2] for i in range(len(table[0]))] for row in table[1:])]
    return text_of(table, rng.choice((suffix, suffix, ".tsv", ".csv"))).encode()


def shape(rng: random.Random, suffix: str) -> bytes:
    """Too many or too few fields, rows, labels; depth."""
    table, kind = sound(rng), rng.choice(range(7))
    if kind == 0:
        rng.choice(table[1:]).append("more")
    elif kind == 1:
        rng.choice(table[1:]).pop()
    elif kind == 2:
        table = [table[0], *([f"text {i}", f"class {i}"] for i in range(3000))]
    elif kind == 3:
        table = table[:1] if rng.random() < 0.5 else table[:2]
    elif kind == 4:
        return (b'{"text": ' + b"[" * 100_000 + b"\n") * 2
    elif kind == 5:
        return (b'{"text": "a", "label": ' + b"9" * 10_000 + b"}\n") * 3
    else:
        table = [[field for field in row for _ in range(500)] for row in table]
    return text_of(table, suffix).encode()


def long_line(rng: random.Random, suffix: str) -> bytes:
    table = sound(rng)
    rng.choice(table[1:])[rng.choice((0, 0, 1))] = rng.choice(("x", "x ", "漢", "\U0001f600 ")) * rng.choice(
        (10**5, 3 * 10**6)
    )
    return text_of(table, suffix).encode()


KINDS: tuple[Callable[[random.Random, str], bytes], ...] = (
    fields,
    fields,
    types,
    numbers,
    raw,
    quotes,
    quotes,
    header,
    shape,
    long_line,
)


def make(seed: int, folder: Path) -> tuple[Path, str]:
    """One hostile data file, or a folder of which it is a part, in `folder`, and what it is: "kind: ..."."""
    rng = random.Random(seed)
    kind, suffix = rng.choice(KINDS), rng.choice(SUFFIXES)
    file = folder / f"rows{suffix if kind is not types else '.jsonl'}"
    file.write_bytes(kind(rng, file.suffix))
    what = f"{kind.__name__}: {file.suffix}"
    if rng.random() < 0.12:
        what = f"special: {file.suffix}, {place_special(rng, file)}"
    if rng.random() < 0.15:  # as one part of a data folder
        parts = folder / "parts"
        parts.mkdir()
        if not file.is_dir() or file.is_symlink():
            file.rename(parts / f"{rng.choice(('train', 'dev', 'test'))}{file.suffix}")
        for name in ("train", "test"):
            if not any(parts.glob(f"{name}.*")):
                (parts / f"{name}.tsv").write_text(text_of(sound(rng), ".tsv"))
        return parts, what + ", in a folder"
    return file, what


# ---- an independent reading


def texts(path: Path) -> list[str] | None:
    """The texts of an accepted file, read without minibd: plain lines, the csv module, json; None where the file is no
    plain case of its format."""
    source = path.read_bytes().decode("utf-8-sig").lstrip("\ufeff")
    if "\r" in source:
        return None
    if path.suffix == ".jsonl":
        table = [json.loads(line) for line in source.split("\n") if line.strip(" \r")]
        table = [{name.strip().lower(): value for name, value in row.items()} for row in table]
    elif path.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)
        lines = [row for row in csv.reader(io.StringIO(source, newline="")) if len(row) > 1 or "".join(row).strip()]
        table = [dict(zip([name.strip().lower() for name in lines[0]], row)) for row in lines[1:]]
    else:
        lines = [line.split("\t") for line in source.split("\n") if line.strip(" \r")]
        table = [dict(zip([name.strip().lower() for name in lines[0]], row)) for row in lines[1:]]
    name = next((name for name in ("text", "sentence") if table and name in table[0]), None)
    return None if name is None else [row[name].strip() for row in table]
