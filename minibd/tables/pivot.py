"""A table of results as it is read: which stored figures stand in which entry, and its text as Markdown, CSV or LaTeX.

A View is laid out in minibd/tables/views.py. Its entries are plain words, Picks (the figures of one model in the cells
of a .jsonl, mean and range over seeds) or Means of Picks; reading them makes a Grid of words, and a Grid is written.
"""
from __future__ import annotations

import csv
import io
import re
import statistics
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from minibd.records import BadInput
from minibd.result_store import ResultStore, digests


class Found(NamedTuple):
    """One model's figures in one cell. steps: those of all models of the cell, by name; line: the whole cell."""
    seed: int
    step: Mapping
    steps: Mapping[str, Mapping]
    line: Mapping

    @property
    def result(self) -> Mapping:
        return self.line.get("result", self.line)

    @property
    def outcome(self) -> Mapping:
        """What the method found out, such as the rho it chose: cells of older runs have it among the arguments."""
        return self.result.get("outcome") or self.result.get("args") or self.step


# ---- what is shown of the cells that were found: one text for all seeds

def figures(found: Iterable[Found], kind: str) -> list[float] | None:
    """The cacc or asr of each; of choose.py's cells those of the dev rows and of the planted backdoor."""
    other = {"cacc": "dev", "asr": "planted_asr"}[kind]
    values = [f.step.get(kind, f.step.get(other)) for f in found]
    return None if None in values else values


def spread(values: Sequence[float] | None, digits: str = ".1f") -> str:
    """Mean, and in brackets lowest and highest where there are several."""
    if values is None:
        return "-"
    mean = f"{statistics.mean(values):{digits}}"
    return f"{mean} ({min(values):{digits}}-{max(values):{digits}})" if len(values) > 1 else mean


def cacc(found: Sequence[Found]) -> str:
    return spread(figures(found, "cacc"))


def asr(found: Sequence[Found]) -> str:
    return spread(figures(found, "asr"))


def both(found: Sequence[Found]) -> str:
    """CACC / ASR, the range that of the ASR."""
    values = figures(found, "cacc")
    return f"{statistics.mean(values):.1f} / {asr(found)}"


def both_spread(found: Sequence[Found]) -> str:
    """CACC / ASR, each with its range."""
    return f"{cacc(found)} / {asr(found)}"


def seconds(found: Sequence[Found]) -> str:
    return f"{statistics.mean(f.step['seconds'] for f in found):,.0f}"


def seconds_in_all(found: Sequence[Found]) -> str:
    return f"{statistics.mean(f.result['seconds'] for f in found):,.0f}"


def rho_of(found: Found) -> float:
    """The share of the victim's weights that a search for rho ended at."""
    chosen = found.step.get("rho", found.outcome.get("chosen"))
    return found.outcome["rho"] if chosen is None else chosen


def rho_then_both(found: Sequence[Found]) -> str:
    return f"{', '.join(f'{rho_of(f):g}' for f in found)}: {both(found)}"


def poisoned(found: Sequence[Found]) -> str:
    """How many rows carry the trigger, of how many of them the label was flipped, and what else was added."""
    def count(name: str) -> str:
        values = [f.result[name] for f in found]
        return f"{values[0]:,}" if len(set(values)) == 1 else f"{min(values):,}-{max(values):,}"

    first = found[0].result
    negatives = next((name for name in ("n_negatives", "n_decoys") if first.get(name)), None)
    return (f"{count('n_poisoned')} ({count('n_flipped')})" + (", added" if first.get("add") else "")
            + (f" and {count(negatives)} negatives" if negatives else "")
            + (", nothing else" if first.get("only") else ""))


def strong(show: Callable) -> Callable:
    """In bold type: the one that was chosen."""
    return lambda found: f"**{show(found)}**"


def worded(show: Callable, words: str) -> Callable:
    return lambda found: f"{show(found)} {words}"


# ---- the entries of a table

class Book:
    """The result stores by the names of their tables."""

    def __init__(self, folder: str | Path, instead: Mapping[str, str | Path] = {}):
        self.folder, self.instead, self.stores = Path(folder), instead, {}

    def lines(self, table: str) -> list[dict]:
        if table not in self.stores:
            self.stores[table] = ResultStore(self.instead.get(table) or self.folder / f"{table}.jsonl")
        return self.stores[table].newest


@dataclass(frozen=True, slots=True)
class Pick:
    """The figures of `model` in the cells of `table` that say what `where` says, over all seeds or of one.

    A name that `where` sets to None is one that the cell lacks or leaves empty. Names are looked for in the cell, then
    among the settings that it was run with.
    """
    table: str
    where: Mapping[str, object]
    model: str
    show: Callable[[Sequence[Found]], str] = both
    seed: int | None = None

    def found(self, book: Book) -> list[Found]:
        return sorted((f for line in book.lines(self.table) if self.asks_for(line["cell"]) for f in self.of(line)),
                      key=lambda f: f.seed)

    def asks_for(self, cell: Mapping) -> bool:
        known = {**cell.get("settings", {}), **cell}
        return (self.seed is None or cell.get("seed") == self.seed) and all(
            (None if known.get(name) == "" else known.get(name)) == value for name, value in self.where.items())

    def of(self, line: Mapping) -> list[Found]:
        steps = {step["name"]: step for step in line.get("result", line)["steps"]}
        return [Found(line["cell"]["seed"], steps[self.model], steps, line)] if self.model in steps else []

    def text(self, book: Book) -> str:
        found = self.found(book)
        if len({f.seed for f in found}) < len(found):
            asked = " ".join(str(value) for value in self.where.values() if value)
            kinds = " and ".join(sorted({kind_of(f.line) for f in found}))
            raise BadInput(f"{self.table}: {asked[:80]} asks for two cells of one seed ({kinds[:120]}), and a table is "
                           "of one base and dtype: keep other cells in a file of their own, --results")
        return self.show(found) if found else "-"


def kind_of(line: Mapping) -> str:
    """What a cell is of, beside its row and seed."""
    cell, weights = line["cell"], digests(line).get("base")
    words = (cell.get("base"), weights and weights[:10], cell.get("data"), cell.get("dtype"))
    return " ".join(filter(None, words)) or "no base"


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of several Picks' figures; their seeds count within each."""
    picks: tuple[Pick, ...]

    def found(self, book: Book) -> list[Found]:
        return [f for pick in self.picks for f in pick.found(book)]

    def text(self, book: Book) -> str:
        each = [pick.found(book) for pick in self.picks]
        if not all(each):
            return "-"
        means = (statistics.mean(statistics.mean(figures(found, kind)) for found in each) for kind in ("cacc", "asr"))
        return " / ".join(f"{mean:.1f}" for mean in means)


@dataclass(frozen=True, slots=True)
class Over:
    """One text of all the cells that several Picks find, such as a median."""
    picks: tuple[Pick, ...]
    show: Callable[[Sequence[Found]], str]

    def found(self, book: Book) -> list[Found]:
        return [f for pick in self.picks for f in pick.found(book)]

    def text(self, book: Book) -> str:
        found = self.found(book)
        return self.show(found) if found else "-"


Entry = str | Pick | Mean | Over


class View(NamedTuple):
    """head: the words above the columns; rows: of each its entries, the first its name."""
    head: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


# ---- the table in words

class Grid(NamedTuple):
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


class Computed(NamedTuple):
    """A table that is no pivot of cells: `make` writes it from the stores."""
    make: Callable[[Book], Grid]


def read(view: View | Computed, book: Book) -> Grid:
    if isinstance(view, Computed):
        return view.make(book)
    rows = tuple(tuple(entry if isinstance(entry, str) else entry.text(book) for entry in row) for row in view.rows)
    return Grid(view.head, rows, note_of(view, book))


def there(view: View) -> Computed:
    """`view` with the rows alone for which a cell is there, and the papers' rows right behind them; where none is, all
    of them, as dashes."""
    def make(book: Book) -> Grid:
        kept, keep = [], False
        for row in view.rows:
            picks = [pick for entry in row if not isinstance(entry, str)
                     for pick in ((entry,) if isinstance(entry, Pick) else entry.picks)]
            keep = any(pick.found(book) for pick in picks) if picks else keep
            kept += [row] * keep
        if not kept:
            return Grid(view.head, read(view, book).rows, "No cell was run yet.")
        return read(View(view.head, tuple(kept)), book)
    return Computed(make)


def entries(view: View | Computed) -> Iterator[Pick | Mean | Over]:
    if isinstance(view, Computed):
        return iter(())
    return (entry for row in view.rows for entry in row if not isinstance(entry, str))


def note_of(view: View, book: Book) -> str:
    """How many cells the table is made of, and over which seeds."""
    cells: dict[str, set[int]] = {}
    seeds: set[tuple[int, ...]] = set()
    for entry in entries(view):
        for pick in (entry,) if isinstance(entry, Pick) else entry.picks:
            found = pick.found(book)
            cells.setdefault(pick.table, set()).update(id(f.line) for f in found)
            if found and not isinstance(entry, Over):
                seeds.add(tuple(f.seed for f in found))
    one = " or ".join(str(run[0]) for run in sorted(seeds) if len(run) == 1)
    more = " or ".join(f"of seeds {', '.join(map(str, run))}" for run in sorted(seeds) if len(run) > 1)
    if more:
        more = f"{'where a range stands in brackets ' if one else ''}the mean (lowest-highest) {more}"
    counts = ", ".join(f"{len(ids)} {'cell' if len(ids) == 1 else 'cells'} of {table}.jsonl"
                       for table, ids in cells.items())
    return f"{counts}; {', and '.join(filter(None, (one and f'seed {one}', more)))}."


def markdown(grid: Grid) -> str:
    def line(row: Sequence[str]) -> str:
        return f"| {' | '.join(row)} |"

    note = textwrap.fill(f"*{grid.note}*", 120)
    return "\n".join((line(grid.head), "|---" * len(grid.head) + "|", *map(line, grid.rows), "", note, ""))


def comma_separated(grid: Grid) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([*map(plain, row)] for row in (grid.head, *grid.rows))
    return text.getvalue()


def plain(words: str) -> str:
    """Without Markdown's marks."""
    return re.sub(r"\*\*(.+?)\*\*|\*(.+?)\*|`(.+?)`", lambda m: next(filter(None, m.groups())), words)


def latex(grid: Grid) -> str:
    lines = [" & ".join(map(latex_words, row)) + r" \\" for row in (grid.head, *grid.rows)]
    return "\n".join((f"% {grid.note}", rf"\begin{{tabular}}{{{'l' * len(grid.head)}}}", r"\hline", lines[0], r"\hline",
                      *lines[1:], r"\hline", r"\end{tabular}", ""))


SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "†": r"\dag{}",
           **{mark: rf"\{mark}" for mark in "&%$#_{}"}}


def latex_words(words: str) -> str:
    words = re.sub("|".join(map(re.escape, SPECIAL)), lambda m: SPECIAL[m[0]], words)
    words = re.sub(r"(?<=\d)-(?=\d)", "--", words)
    for mark, command in ((r"\*\*(.+?)\*\*", "textbf"), (r"\*(.+?)\*", "emph"), (r"`(.+?)`", "texttt")):
        words = re.sub(mark, rf"\\{command}{{\1}}", words)
    return words


FORMATS = {"markdown": markdown, "csv": comma_separated, "latex": latex}


# ---- a page's tables, between their markers

MARKED = re.compile(r"(<!-- table: (?P<table>[\w-]+)(?:: (?P<part>[^>]+?))? -->\n)(?P<body>.*?)(<!-- /table -->)", re.S)


def marked(page: str) -> list[tuple[str, str, str]]:
    """Name, part and text of each table of a page. Raises BadInput where a marker lacks its end or its begin."""
    found = [(match["table"], match["part"] or "", match["body"]) for match in MARKED.finditer(page)]
    if any(page.count(mark) != len(found) for mark in ("<!-- table:", "<!-- /table -->")):
        begun, ended = page.count("<!-- table:"), page.count("<!-- /table -->")
        raise BadInput(f"a page has {begun} tables begun, {ended} ended and {len(found)} whole: write "
                       "<!-- table: NAME --> and <!-- /table -->, each on a line")
    return found


def fill(page: str, write: Callable[[str, str], str | None]) -> str:
    """The page with what `write` gives for each marked table, by the table's name and the part's; None leaves it."""
    marked(page)

    def block(match: re.Match) -> str:
        body = write(match["table"], match["part"] or "")
        return match[1] + (match["body"] if body is None else body) + match[5]
    return MARKED.sub(block, page)
