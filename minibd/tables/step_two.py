"""The table of MBTSAD's second step: settings of the distillation beside what they leave of a planted backdoor."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from minibd.tables.pivot import Book, Computed, Grid

PLANTED = {"words": "rare words", "row": "row of the embedding table", "pair": "pair", "triple": "three words"}
RATES = ("lr1", "lr2")  # which are shown with every cell


def steps(book: Book) -> Grid:
    """A row a cell: the victim, what is planted in it, the settings that are not MBTSAD's own, teacher and student."""
    lines = sorted(book.lines("mbtsad-step2"), key=lambda line: (
        line["cell"]["ckpt"], kind_of(line["cell"]), rate(line, "lr1"), rate(line, "lr2"), changed(line["cell"])))
    return Grid(("victim", "planted", "planted victim", "TS-FT", "lr1", "MBTSAD", "lr2", "other settings"),
                tuple(map(row, lines)), f"{len(lines)} cells of mbtsad-step2.jsonl. Dev accuracy / planted ASR.")


def row(line: Mapping) -> tuple[str, ...]:
    found = {step["name"]: f"{step['dev']:.1f} / {step['planted_asr']:.1f}" for step in line["steps"]}
    return (line["cell"]["ckpt"], kind_of(line["cell"]), found["planted"], found["TS-FT"], said(line, "lr1"),
            found.get("MBTSAD", "-"), said(line, "lr2") if "MBTSAD" in found else "-", changed(line["cell"]))


def kind_of(cell: Mapping) -> str:
    kind = cell["plant"].get("plant_kind", "words")
    return PLANTED.get(kind, kind)


def rate(line: Mapping, name: str) -> float:
    return line["cell"]["settings"][name] or 0.0


def said(line: Mapping, name: str) -> str:
    return f"{rate(line, name):.1e}".replace("e-0", "e-").replace(".0", "") if rate(line, name) else "default"


def changed(cell: Mapping) -> str:
    """The settings that are not MBTSAD's own, the rates aside."""
    from minibd.mitigations.mbtsad import MBTSAD  # imports torch

    own = asdict(MBTSAD())
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else
                     f"{name.replace('_', ' ')} {'yes' if value is True else 'no' if value is False else value}"
                     for name, value in cell["settings"].items() if name not in RATES and value != own[name])


def views() -> dict[str, Computed]:
    return {"": Computed(steps)}
