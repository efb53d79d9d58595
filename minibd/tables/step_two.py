"""The table of MBTSAD's second step: settings of the distillation beside what they leave of a planted backdoor."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping

from minibd.tables.pivot import Book, Computed, Grid

PLANTED = {"words": "rare words", "row": "row of the embedding table", "pair": "pair", "triple": "three words"}
RATES = ("lr1", "lr2")  # which are shown with every cell


def steps(book: Book) -> Grid:
    """A row a cell: the victim, what is planted in it, teacher and student with their rates, and what is not as in most
    cells: settings, and of the same victim the clean rows."""
    lines = book.lines("mbtsad-step2")
    usual = {name: commonest(line["cell"]["settings"].get(name) for line in lines)
             for name in dict.fromkeys(name for line in lines for name in line["cell"]["settings"])}
    rows_of = {name: commonest(line["cell"]["clean"] for line in lines if line["cell"]["ckpt"] == name)
               for name in {line["cell"]["ckpt"] for line in lines}}

    def changed(line: Mapping) -> str:
        cell = line["cell"]
        more = [f"{cell['clean']} clean rows"] if cell["clean"] != rows_of[cell["ckpt"]] else []
        return ", ".join([f"{name.replace('_', ' ')} {worded(value)}" for name, value in cell["settings"].items()
                          if name not in RATES and value != usual[name]] + more)

    def row(line: Mapping) -> tuple[str, ...]:
        found = {step["name"]: f"{step['dev']:.1f} / {step['planted_asr']:.1f}" for step in line["steps"]}
        return (line["cell"]["ckpt"], kind_of(line["cell"]), found["planted"], found["TS-FT"], said(line, "lr1"),
                found.get("MBTSAD", "-"), said(line, "lr2") if "MBTSAD" in found else "-", changed(line))

    lines = sorted(lines, key=lambda line: (line["cell"]["ckpt"], kind_of(line["cell"]), rate(line, "lr1"),
                                            rate(line, "lr2"), changed(line)))
    return Grid(("victim", "planted", "planted victim", "TS-FT", "lr1", "MBTSAD", "lr2", "other settings"),
                tuple(map(row, lines)), f"{len(lines)} cells of mbtsad-step2.jsonl. Dev accuracy / planted ASR.")


def commonest(values: Iterable[object]) -> object:
    """The value, as JSON has it, that occurs most often; of several the first."""
    return json.loads(Counter(map(json.dumps, values)).most_common(1)[0][0])


def worded(value: object) -> str:
    """yes, no, or the value."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else f"{value}"


def kind_of(cell: Mapping) -> str:
    kind = cell["plant"].get("plant_kind", "words")
    return PLANTED.get(kind, kind)


def rate(line: Mapping, name: str) -> float:
    return line["cell"]["settings"][name] or 0.0


def said(line: Mapping, name: str) -> str:
    return f"{rate(line, name):.1e}".replace("e-0", "e-").replace(".0", "") if rate(line, name) else "default"


def views() -> dict[str, Computed]:
    return {"": Computed(steps)}
