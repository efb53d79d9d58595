#!/usr/bin/env python3
"""The result tables: run their cells, go on where an earlier run stopped, show them, write them into their pages.

    python scripts/tables.py mbtsad --base MINILM_FOLDER --data SST2_FOLDER --dtype bfloat16 --rows 1 --seeds 0,1,2
    python scripts/tables.py attacks --base MINILM_FOLDER --data SST2_FOLDER --proxy PROSCONS_FOLDER --dtype bfloat16
    python scripts/tables.py attacks-reviews
    python scripts/tables.py pure-4 --base weights/bert.safetensors
    python scripts/tables.py finemix-rho --base MINILM_FOLDER --data SST2_FOLDER --dtype bfloat16
    python scripts/tables.py finemix-pairs --base weights/bert-clean.safetensors --data pairs
    python scripts/tables.py mbtsad-3 --base MINILM_FOLDER --data SST2_FOLDER --mlm MLM_FOLDER --wordnet FOLDER \
--dtype bfloat16
    python scripts/tables.py mbtsad-3-reviews --base weights/bert.safetensors --mlm weights/bert-clean.safetensors \
--seeds 0,1,2
    python scripts/tables.py mbtsad --base MINILM_FOLDER --data SST2_FOLDER --dtype bfloat16 --print   # a line a model
    python scripts/tables.py mbtsad --base MINILM_FOLDER --data SST2_FOLDER --dtype bfloat16 --rows 1 --force   # again
    python scripts/tables.py mbtsad-base --base MPNET_FOLDER --data SST2_FOLDER --dtype bfloat16 --device cuda --jobs 4
    python scripts/tables.py musclelora-llama --base SMOLLM2_FOLDER --data SST2_FOLDER --dtype bfloat16 --rows 1,2,3
    python scripts/tables.py finemix --format latex      # as in its page: markdown, csv or latex
    python scripts/tables.py finemix --write             # into the pages of scripts/results that hold it
    python scripts/tables.py all --write

A cell is a row of the table at one seed, which draws poisoned rows, clean rows, splits, batches and dropout: attack.py
trains the victim on --base and --data, then the row's own script, where it has one, repairs it. Each cell is appended
to scripts/results/TABLE.jsonl as it ends; victims are kept under --work and shared by the rows that have the same. The
rows and their flags stand in minibd/tables/rows.py, the layout of the shown tables in minibd/tables/views.py.

A cell is found again, to be shown or not run twice, by what --base and --data hold, the sha256 of the weights and of
the rows' files, and not by their names. Cells of before 0.3.0 say nothing of their rows, which the folder's name stands
for, and where that is all there is of the base, too, a line on stderr says so. --force runs cells again, victims
included; their new lines stand behind the old ones, and the newest counts.
"""
from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.cli import Idle, main, parse, progress, setting
from minibd.job.victims import part
from minibd.lines import quoted
from minibd.tables.rows import STORED, TABLES, Row

if TYPE_CHECKING:
    from minibd.records import BadInput
    from minibd.result_store import ResultStore
    from minibd.tables.pivot import Book

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NEEDED = {"data": "the rows of --data: name their folder", "proxy": "the rows of --proxy: name their folder",
          "mlm": "the language model of --mlm: name its file or folder, or leave the row out by --rows",
          "wordnet": "WordNet's files of --wordnet: name their folder, or leave the row out by --rows"}


@dataclass(frozen=True, slots=True)
class Table:
    """Which cells"""
    base: str = setting("weights/bert-twin.safetensors", "the checkpoint that the victims are trained from")
    data: str = setting("", "folder of rows; without it, those that the base's history names")
    proxy: str = setting("", "folder of the attacker's rows where they are others than the user's (domain shift)")
    mlm: str = setting("", "checkpoint with its masked-language-model head, for the rows of contextual substitution "
                       "(scripts/pretrain.py makes one)")
    wordnet: str = setting("", "folder of WordNet's files, for the rows of EDA")
    rows: tuple[str, ...] = setting((), "numbers of the rows to run, from 1, separated by commas (default all)")
    seeds: tuple[str, ...] = setting(("0",), "seeds, separated by commas")
    dtype: str = setting("float32", "type of the matrix products in training", choices=("float32", "bfloat16"))
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    jobs: int = setting(1, "cells that are run at once, each in a process of its own")
    results: str = setting("", "file the cells are appended to (default scripts/results/TABLE.jsonl)")
    work: str = setting("out/tables", "folder of victims and repaired models")
    force: bool = setting(False, "run the cells again that are there already; the newest of a cell's lines counts")


@dataclass(frozen=True, slots=True)
class Shown:
    """Run nothing, show what is there"""
    print: bool = setting(False, "one line for each model of each row")
    format: str = setting("", "print the table as it stands in its page", choices=("markdown", "csv", "latex"))
    write: bool = setting(False, "write the table into its page, between the markers that name it")
    pages: str = setting("", "folder of the pages that --write fills (default scripts/results)")


RULES = (
    Idle(("format", "print"), lambda v: v.write, "--write fills pages with their Markdown: give one of the two"),
    Idle(("print",), lambda v: bool(v.format), "--format prints the table as in its page: give one of the two"),
    Idle(("base", "data", "proxy", "mlm", "wordnet", "rows", "seeds", "dtype", "device", "jobs", "work", "force"),
         lambda v: v.write or bool(v.format), "--write and --format show every cell and run none: leave it out"),
    Idle(("seeds",), lambda v: v.print, "--print lists every seed that is there: leave it out"),
    Idle(("force", "device", "jobs"), lambda v: v.print, "--print runs no cell: leave one of the two out"),
    Idle(("pages",), lambda v: not v.write, "the pages that --write fills: add it, or leave it out"),
)


def run() -> None:
    parsed = name, table, shown = parse(
        __doc__, Table, Shown, first=("table", (*TABLES, *STORED, "all")), rules=RULES
    )
    if shown.write or shown.format:
        return show(name, table, shown)
    if name not in TABLES:
        made = "one table at a time is run" if name == "all" else "its cells are made by other scripts"
        raise bad(f"{name}: {made}; --format and --write show what is there")

    from minibd.result_store import ResultStore

    rows, store = rows_of(name, table), ResultStore(table.results or RESULTS / f"{name}.jsonl")
    for place in ("proxy", "mlm", "wordnet"):
        if place in parsed.given and not any(f"{{{place}}}" in f"{row.attack} {row.method}" for row in rows):
            raise bad(f"--{place}: no row that is run reads it: leave it out")
    if shown.print:
        check_there(rows, table, store)
    else:
        run_cells(rows, table, store)
    for line in listing(rows, table, store):
        print(line)


def bad(message: str) -> BadInput:
    from minibd.records import BadInput  # imports torch, which --help does without
    return BadInput(message)


# ---- the cells

def rows_of(name: str, table: Table) -> tuple[Row, ...]:
    """Those of --rows."""
    rows = TABLES[name]
    if wrong := [n for n in table.rows if not (n.isdigit() and 1 <= int(n) <= len(rows))]:
        raise bad(f"--rows {','.join(wrong)}: {name} has the rows 1 to {len(rows)} "
                  f"({', '.join(f'{i} {row.name}' for i, row in enumerate(rows, 1))})")
    return tuple(rows[int(n) - 1] for n in table.rows) or rows


def run_cells(rows: Sequence[Row], table: Table, store: ResultStore) -> None:
    if table.jobs < 1:
        raise bad(f"--jobs {table.jobs}: at least one cell is run at once, give 1 or more")
    for row in rows:  # what is missing is said before the first hour
        filled(row.attack, table), filled(row.method, table, Path()), filled(row.after, table, Path())
    progress().kept = f"the cells in {store.path} stay, and the same command goes on behind them"
    again = Again() if table.force else None
    keys = [(row, seed, key(row, seed, table)) for row in rows for seed in table.seeds]
    if not table.force:
        say_how_found(list(filter(None, (store.get(cell) for _, _, cell in keys))), table)
    open_cells = [(row, seed, cell) for row, seed, cell in keys if table.force or store.get(cell) is None]
    if table.jobs > 1:
        return side_by_side(open_cells, table, store, again)
    for row, seed, cell in open_cells:
        store.add(cell, {"result": measure(row, seed, table, again)})
        progress().finished.append(f"{row.name} (seed {seed})")


def side_by_side(cells: Sequence[tuple[Row, str, dict]], table: Table, store: ResultStore, again: Again | None) -> None:
    """The victims first, each once, then the cells, --jobs at once. One that fails leaves the others running, and is
    raised at the end."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    first = {victim_of(row, seed, table): (row, seed) for row, seed, _ in reversed(cells)}
    with ThreadPoolExecutor(table.jobs) as pool:
        victims = {victim: pool.submit(make_victim, *first[victim], table, again) for victim in reversed(first)}

        def scored(row: Row, seed: str) -> dict:
            # never for ever: victims stand before the cells in the queue
            victims[victim_of(row, seed, table)].result()
            return measure(row, seed, table, again, victim_made=True)

        running, failed = {pool.submit(scored, row, seed): (row, seed, cell) for row, seed, cell in cells}, []
        for done in as_completed(running):
            row, seed, cell = running[done]
            if done.exception() is None:
                store.add(cell, {"result": done.result()})
                progress().finished.append(f"{row.name} (seed {seed})")
            else:
                failed.append(done.exception())
    if failed:
        raise failed[0]


class Again(set):
    """The folders of victims and repaired models that this call has made: --force makes each once."""

    def clear_for(self, out: Path) -> None:
        if out not in self:
            self.add(out)
            shutil.rmtree(out, ignore_errors=True)


def key(row: Row, seed: str | int, table: Table) -> dict:
    """What a cell is known by."""
    used = ["base", "data", *["proxy"] * ("{proxy}" in row.attack), *["mlm"] * ("{mlm}" in row.method)]
    return {**{place: Path(getattr(table, place)).name for place in used}, "seed": int(seed), "dtype": table.dtype,
            "attack": row.attack, "method": row.method, **({"after": row.after} if row.after else {}),
            "sha256": contents(row, table)}


def contents(row: Row, table: Table) -> dict[str, str]:
    """The digests of what a row reads and is here. A language model also counts by its name."""
    flags = f"{row.attack} {row.after} {row.method}"
    used = ["base", "data", *(place for place in ("proxy", "mlm", "wordnet") if f"{{{place}}}" in flags)]
    found = {"mlm_weights" if place == "mlm" else place: digest(place, getattr(table, place)) for place in used}
    return {place: known for place, known in found.items() if known}


@cache
def digest(place: str, path: str) -> str | None:
    from minibd import checkpoint, data
    from minibd.result_store import folder_digest, weights_digest

    if not path or not Path(path).exists():
        return None  # built-in rows, or a name to be shown
    if place in ("base", "mlm"):
        return weights_digest(checkpoint.sha256(path))
    return folder_digest(path, () if place == "wordnet" else data.SUFFIXES)


def filled(flags: str, table: Table, attack: Path | None = None) -> list[str]:
    """A row's flags as words, with this script's files and folders in their places."""
    for place, what in NEEDED.items():
        if f"{{{place}}}" in flags and not getattr(table, place):
            raise bad(f"{flags} needs {what}")
    given = {place: getattr(table, place) for place in ("base", *NEEDED)}
    return [word.format(**given, attack=attack) for word in shlex.split(flags)]


def measure(
    row: Row, seed: str, table: Table, again: Again | None = None, victim_made: bool = False
) -> dict:
    """The result of one cell. What is not there yet is made: the victim, then what the method makes of it. again: what
    is there is made anew."""
    if not victim_made:
        make_victim(row, seed, table, again)
    victim = victim_of(row, seed, table)
    mark = mark_of_victim(row, seed, table)
    return repaired(row, victim, mark, seed, table, again) if row.method else result_in(victim / "attack.json")


def mark_of_victim(row: Row, seed: str, table: Table) -> str:
    inputs = {place: known for place, known in contents(row, table).items() if place in ("base", "data", "proxy")}
    return mark_of(table.base, table.data, filled(row.attack, table), {"seed": seed, "dtype": table.dtype}, inputs)


def victim_of(row: Row, seed: str, table: Table) -> Path:
    """The folder of what the row's attack leaves, or --base."""
    return Path(table.work, "victims", mark_of_victim(row, seed, table)) if row.attack else Path(table.base)


def make_victim(row: Row, seed: str, table: Table, again: Again | None = None) -> None:
    victim = victim_of(row, seed, table)
    if row.attack and again is not None:
        again.clear_for(victim)
    if row.attack and not (victim / "attack.json").exists():  # written last: a victim without it is half made
        call(["attack.py", *filled(row.attack, table)], table.base, victim, seed, table)


def repaired(row: Row, victim: Path, mark: str, seed: str, table: Table, again: Again | None) -> dict:
    inside = Path(table.base).name if Path(table.base).is_file() else ""  # a run leaves a file where it was given one
    ckpt = table.base if "{attack}" in row.method or not row.attack else victim / inside
    out = Path(table.work, "repaired", mark)
    for method in filter(None, (row.after, row.method)):
        words = filled(method, table, victim)
        # the mark: another --mlm leaves another model
        out /= re.sub(r"[^\w.]+", "-", f"{method} {mark_of(words, contents(row, table))}")
        if again is not None:
            again.clear_for(out)
        if not (out / "result.json").exists():  # written last
            call(words, ckpt, out, seed, table)
        ckpt = out / inside
    return result_in(out / "result.json")


def mark_of(*made_from: object) -> str:
    return hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:10]


def call(words: Sequence[str], ckpt: str | Path, out: Path, seed: str, table: Table) -> None:
    flags = {"ckpt": ckpt, "data": table.data, "out": out, "seed": seed}
    if words[0] != "evaluate.py" and "--dataset-only" not in words:  # these train nothing
        flags["dtype"] = table.dtype
    if table.device != "auto":
        flags["device"] = table.device
    stated = [f"--{flag}={value}" for flag, value in flags.items() if value != ""]  # first: a row's own override them
    if words[0] == "mbtsad.py":
        stated.append("--cft")
    # over what an interrupted table or --force left
    if code := part(words[0], [*stated, "--overwrite", *words[1:]], "tables.py"):
        raise bad(f"{words[0]} ended with status {code} (its own line is above)")


def result_in(path: Path) -> dict:
    """What of a run's result is kept: what it was and what it scored, not where."""
    result = json.loads(path.read_text())
    for place in ("ckpt", "data", "out", "user_data", "paraphrases", "clean_aux", "pretrained", "mlm", "wordnet"):
        result["args"].pop(place, None)
    result.pop("command", None)
    if "paraphrases" in result:
        result["paraphrases"] = Path(result["paraphrases"]).name
    return result


# ---- what is there

def cells_of(rows: Sequence[Row], table: Table, store: ResultStore) -> list[list[dict]]:
    """Of each row the lines of its cells, of every seed."""
    from minibd.result_store import same_cell

    def is_of(row: Row, line: dict) -> bool:
        cell = line["cell"]
        flags = (cell.get("attack"), cell.get("method"))  # first, for it is fast
        return flags == (row.attack, row.method) and same_cell(
            line, {"cell": key(row, cell.get("seed", -1), table)})
    return [[line for line in store.newest if is_of(row, line)] for row in rows]


def check_there(rows: Sequence[Row], table: Table, store: ResultStore) -> None:
    """Say on stderr how many cells are shown. Raises BadInput, which says what is there, where that is none."""
    found = [line for lines in cells_of(rows, table, store) for line in lines]
    asked = said(Path(table.base).name, digest("base", table.base), Path(table.data).name, table.dtype)
    if found:
        print(f"{len(found)} of the {len(store.newest)} cells in {store.path.name}: {asked}", file=sys.stderr)
        return say_how_found(found, table)
    if not store.newest:
        raise bad(f"{store.path} holds no cell: run the table without --print first")
    from minibd.result_store import digests

    groups = Counter(said(line["cell"].get("base", "?"), digests(line).get("base"), line["cell"].get("data", ""),
                          line["cell"].get("dtype", "?")) for line in store.newest)
    most = "; ".join(f"{count} of {group}" for group, count in groups.most_common(2))
    more = f"; {len(groups) - 2} kinds more" if len(groups) > 2 else ""
    of = f"these {len(rows)} rows" if table.rows else "this table"
    raise bad(f"none of the {len(store.newest)} cells in {store.path.name} is of {of} and {asked}, there are {most}"
              f"{more}: name theirs with --base, --data, --dtype")


def said(base: str, weights: str | None, data: str, dtype: str) -> str:
    return f"{base[:40]}{f' ({weights[:10]})' if weights else ''}, {data[:30] or 'no --data'}, {dtype}"


def say_how_found(lines: Sequence[dict], table: Table) -> None:
    """A line on stderr for each name by which alone cells were found."""
    from minibd.result_store import digests

    for place in ("base", "data", "proxy"):
        path, named = getattr(table, place), [line for line in lines if line["cell"].get(place)]
        if not digest(place, path):
            if place == "base" and lines:
                print(f"{path} is not here: cells are found by that name", file=sys.stderr)
        elif unsure := sum(place not in digests(line) for line in named):
            print(f"{unsure} of before 0.3.0 are found by the name of --{place} alone, {Path(path).name}: they do not "
                  "say what it held; --force runs them again", file=sys.stderr)


def listing(rows: Sequence[Row], table: Table, store: ResultStore) -> Iterator[str]:
    """A line for each model of each row: mean and range over the seeds that are there."""
    yield "| row | model | CACC, mean (range) | ASR, mean (range) | seconds | seeds | paper |"
    yield "|---|---|---|---|---|---|---|"
    for row, lines in zip(rows, cells_of(rows, table, store)):
        for models in zip(*(line["result"]["steps"] for line in lines)):
            paper = row.paper.get(models[0]["name"], "")
            yield f"| {' | '.join((row.name, *listed(models), str(len(lines)), paper))} |"


def listed(models: Sequence[dict]) -> Iterator[str]:
    """Name, CACC, ASR and seconds of one model, a step of each seed's cell."""
    yield models[0]["name"]
    for kind in ("cacc", "asr"):
        values = [model[kind] for model in models]
        yield f"{statistics.mean(values):.1f} ({min(values):.1f}-{max(values):.1f})" if None not in values else "-"
    timed = all("seconds" in model for model in models)
    yield f"{statistics.mean(model['seconds'] for model in models):.0f}" if timed else "-"


def show(name: str, table: Table, shown: Shown) -> None:
    """Print the table as it stands in its page, or write it there."""
    from minibd.tables.pivot import FORMATS, Book, read
    from minibd.tables.views import VIEWS

    if name == "all" and table.results:
        raise bad(f"--results {table.results}: name the table whose cells it holds")
    if name not in ("all", *VIEWS):
        raise bad(f"{name} has no table in a page: --print lists its cells")
    book = Book(RESULTS, {name: table.results} if table.results else {})
    if shown.write:
        return write(name, Path(shown.pages or RESULTS), book)
    views = [view for table_name, parts in VIEWS.items() if name in ("all", table_name) for view in parts.values()]
    print("\n".join(FORMATS[shown.format](read(view, book)) for view in views), end="")


def write(name: str, folder: Path, book: Book) -> None:
    """Fill the marked tables of the pages in `folder`, those of one name or all."""
    from minibd.atomic import atomic_write
    from minibd.tables.pivot import fill, markdown, read
    from minibd.tables.views import VIEWS

    found = []

    def body(page: Path, table: str, part: str) -> str | None:
        if part not in VIEWS.get(table, {}):
            known = [name + (of and f": {of}") for name, parts in VIEWS.items() for of in parts]
            raise bad(f"{page} marks a table {table}{f': {part}' if part else ''} that minibd/tables/views.py does not "
                      f"know: it has {quoted(known)}")
        if name not in ("all", table):
            return None
        found.append((table, part))
        return markdown(read(VIEWS[table][part], book))

    for page in sorted(folder.glob("*.md")):
        old = page.read_text(encoding="utf-8")
        new = fill(old, lambda table, part: body(page, table, part))
        if new != old:
            with atomic_write(page) as draft:
                draft.write_text(new, encoding="utf-8")
        print(f"{'written' if new != old else 'unchanged'}: {page.name}")
    if not found:
        raise bad(f"no page of {folder} marks the table {name}: write <!-- table: {name} --> and <!-- /table --> there")


if __name__ == "__main__":
    main(run)
