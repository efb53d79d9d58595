"""The tables of scripts/results/repair.md: what a repair leaves of each attack (scripts/repair_models.py)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from minibd.tables.pivot import Book, Computed, Grid

BASES = {"sst2": "384, SST-2", "reviews": "128, reviews"}
HELD = {"20%": "20 % clean rows", "300": "300 rows", "64": "64 texts, no labels", "none": "the model alone"}


def cells(book: Book) -> list[Mapping]:
    """The cells, by base, attack, what is held, and seed."""
    return sorted(book.lines("repair"), key=lambda line: (
        [*BASES].index(line["cell"]["base"]), line["cell"]["attack"], [*HELD].index(line["cell"]["held"]),
        line["cell"]["method"], line["cell"]["mode"], line["cell"]["seed"]))


def spread(values: Sequence[float]) -> str:
    """The mean, and of several the lowest and the highest."""
    return f"{mean(values):.1f}" + (f" ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else "")


def scores(lines: Sequence[Mapping], step: int) -> str:
    """CACC / ASR of a step over the seeds."""
    if not lines:
        return "-"
    steps = [line["result"]["steps"][step] for line in lines]
    return f"{mean(one['cacc'] for one in steps):.1f} / {spread([one['asr'] for one in steps])}"


def summary(book: Book) -> Grid:
    """A row an attack and a method behind the undoing: floor, victim, and the repaired model by what was held."""
    found, rows = cells(book), []
    for key in dict.fromkeys(map(kind_of, found)):
        own = [line for line in found if kind_of(line) == key]
        base, attack, method, mode = key
        by_held = [[line for line in own if line["cell"]["held"] == held] for held in HELD]
        behind = (f", {method}" if method != "none" else "") + (f", {mode}" if mode != "auto" else "")
        seeds = len({line["cell"]["seed"] for line in own})
        floor = f"{mean(line['result']['floor']['asr'] for line in own):.1f}"
        rows.append((f"{BASES[base]}: {attack}{behind}", f"{seeds}", floor, scores(own, 0),
                     *(scores(part, -1) for part in by_held)))
    return Grid(("victim", "seeds", "floor of ASR", "as it came", *HELD.values()), tuple(rows), note(found))


def kind_of(line: Mapping) -> tuple[str, str, str, str]:
    cell = line["cell"]
    return cell["base"], cell["attack"], cell["method"], cell["mode"]


def each(book: Book) -> Grid:
    """A row a cell."""
    found = cells(book)
    return Grid(("victim, seed", "held", "as it came", "after undoing", "in the end", "clean twin", "undone", "trained",
                 "verdict", "seconds"), tuple(map(row, found)), note(found))


def row(line: Mapping) -> tuple[str, ...]:
    cell, result = line["cell"], line["result"]
    behind = f", {cell['method']}" if cell["method"] != "none" else ""
    undone = "; ".join(dict.fromkeys(worded(one) for one in result["undone"])) or "nothing"
    modes = ", then ".join(dict(sorted({one["round"]: one["mode"] for one in result["undone"]}.items())).values())
    steps = {step["name"]: step for step in result["steps"]}

    def both(step: Mapping | None) -> str:
        return f"{step['cacc']:.1f} / {step['asr']:.1f}" if step else "-"
    floor = result["floor"]
    twin = f"{floor['cacc']:.1f} / {floor['asr']:.1f}"
    return (f"{BASES[cell['base']]}: {cell['attack']}, {cell['seed']}", HELD[cell["held"]] + behind,
            both(steps["victim"]), both(steps.get("unlearned")), both(result["steps"][-1]), twin, undone, modes or "-",
            result["verdict"], f"{sum(result['seconds'].values()):.0f}")


def worded(one: Mapping) -> str:
    return "`" + (" " if one["joined"] else " + ").join(one["words"]).replace("|", "/").replace("`", "'") + "`"


def note(lines: Sequence[Mapping]) -> str:
    dtypes = " and ".join(sorted({line["cell"]["dtype"] for line in lines}))
    return f"{len(lines)} cells of repair.jsonl, products in {dtypes}. CACC / ASR; range over the seeds."


def views() -> dict[str, Computed]:
    return {"attacks": Computed(summary), "every repair": Computed(each)}
