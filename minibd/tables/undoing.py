"""The tables of scripts/results/repair.md: what a repair leaves of each attack (scripts/repair_models.py)."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

from minibd.detect.wording import score_of_undone
from minibd.tables.pivot import Book, Computed, Grid

BASES = {"sst2": "384, SST-2", "reviews": "128, reviews", "planted": "128, planted",
         "planted-sst2": "384, planted"}
HELD = {"20%": "20 % clean rows", "300": "300 rows", "64": "64 texts, no labels", "none": "the model alone"}


def cells(book: Book, file: str = "repair") -> list[Mapping]:
    """The cells, by base, attack, what is held, and seed."""
    return sorted(book.lines(file), key=lambda line: (
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


def untriggered(book: Book, base: str, attack: str) -> str:
    """What a victim takes for the target of the same rows without a trigger, over the seeds that were measured."""
    found = [line["result"]["steps"][0]["untriggered"] for line in book.lines("repair-victims")
             if (line["cell"]["base"], line["cell"]["attack"]) == (base, attack)]
    return spread(found) if found else "-"


def summary(book: Book) -> Grid:
    """A row an attack and a method behind the undoing: floor, the victim's own errors, victim, and the repaired model
    by what was held."""
    found, rows = cells(book), []
    for key in dict.fromkeys(map(kind_of, found)):
        own = [line for line in found if kind_of(line) == key]
        base, attack, method, mode = key
        by_held = [[line for line in own if line["cell"]["held"] == held] for held in HELD]
        behind = (f", {method}" if method != "none" else "") + (f", {mode}" if mode != "auto" else "")
        seeds = len({line["cell"]["seed"] for line in own})
        floor = f"{mean(line['result']['floor']['asr'] for line in own):.1f}"
        rows.append((f"{BASES[base]}: {attack}{behind}", f"{seeds}", floor, untriggered(book, base, attack),
                     scores(own, 0), *(scores(part, -1) for part in by_held)))
    return Grid(("victim", "seeds", "floor of ASR", "taken without a trigger", "as it came", *HELD.values()),
                tuple(rows), note(found))


def victims(book: Book) -> Grid:
    """A row a victim: it and its clean twin on the triggered rows, and on the same rows without a trigger."""
    found = sorted(book.lines("repair-victims"), key=lambda line: (
        [*BASES].index(line["cell"]["base"]), line["cell"]["attack"], line["cell"]["seed"]))
    rows = []
    for line in found:
        both_models = line["result"]["steps"]  # victim and clean twin
        rows.append((victim_of(line["cell"]), *map(both, both_models),
                     *(f"{one['untriggered']:.1f}" for one in both_models)))
    return Grid(("victim, seed", "as it came", "clean twin", "victim without a trigger", "twin without a trigger"),
                tuple(rows), f"{len(rows)} cells of repair-victims.jsonl. CACC / ASR; percent of the same rows that "
                             "are taken for the target")


def twins(book: Book) -> Grid:
    """A row a clean twin and what was held: what a repair does to a model that has no backdoor."""
    rows = []
    for line in cells(book, "repair-twins"):
        result = line["result"]
        came, end = result["steps"][0]["cacc"], result["steps"][-1]["cacc"]
        rows.append((victim_of(line["cell"]), held_by(line["cell"]), f"{came:.1f}", f"{end:.1f}", f"{end - came:+.1f}",
                     undone_of(result), result["verdict"]))
    return Grid(("clean twin of, seed", "held", "CACC as it came", "in the end", "points", "undone", "verdict"),
                tuple(rows), f"{len(rows)} cells of repair-twins.jsonl.")


def kind_of(line: Mapping) -> tuple[str, str, str, str]:
    cell = line["cell"]
    return cell["base"], cell["attack"], cell["method"], cell["mode"]


def each(book: Book) -> Grid:
    """A row a cell."""
    found = cells(book)
    return Grid(("victim, seed", "held", "as it came", "after undoing", "in the end", "clean twin", "undone", "score",
                 "trained", "verdict", "seconds"), tuple(map(row, found)), note(found))


def row(line: Mapping) -> tuple[str, ...]:
    cell, result = line["cell"], line["result"]
    undone = undone_of(result)
    modes = ", then ".join(dict(sorted({one["round"]: one["mode"] for one in result["undone"]}.items())).values())
    steps = {step["name"]: step for step in result["steps"]}
    return (victim_of(cell), held_by(cell), both(steps["victim"]), both(steps.get("unlearned")),
            both(result["steps"][-1]), both(result["floor"]), undone, strongest(result), modes or "-",
            result["verdict"], f"{sum(result['seconds'].values()):.0f}")


def strongest(result: Mapping) -> str:
    """The largest score of what was undone, of the suspects that the cell keeps of each scan."""
    score = score_of_undone((one for scan in result["scans"] for one in scan["suspects"]), result["undone"])
    return "-" if score is None else f"{score:.2f}"


def victim_of(cell: Mapping) -> str:
    return f"{BASES[cell['base']]}: {cell['attack']}, {cell['seed']}"


def held_by(cell: Mapping) -> str:
    """What is held, and what retrains behind the undoing."""
    return HELD[cell["held"]] + (f", {cell['method']}" if cell["method"] != "none" else "")


def undone_of(result: Mapping) -> str:
    return "; ".join(dict.fromkeys(map(worded, result["undone"]))) or "nothing"


def both(step: Mapping | None) -> str:
    """CACC / ASR of a model."""
    return f"{step['cacc']:.1f} / {step['asr']:.1f}" if step else "-"


def worded(one: Mapping) -> str:
    return "`" + (" " if one["joined"] else " + ").join(one["words"]).replace("|", "/").replace("`", "'") + "`"


def note(lines: Sequence[Mapping]) -> str:
    dtypes = " and ".join(sorted({line["cell"]["dtype"] for line in lines}))
    return f"{len(lines)} cells of repair.jsonl, products in {dtypes}. CACC / ASR; range over the seeds."


# ---- what the defaults are chosen by

def ways(book: Book) -> Grid:
    """A row a victim and what is held: each way of undoing what one scan named. Of clean twins those of which words
    were named."""
    lines = sorted((line for line in book.lines("repair-choose") if line["result"]["kind"] != "nothing"),
                   key=lambda line: ([*HELD].index(line["cell"]["held"]), line["cell"]["clean"],
                                     line["cell"]["attack"], line["cell"]["seed"]))
    names = list(dict.fromkeys(name for line in lines for name in line["result"]["ways"]))

    def row(line: Mapping) -> tuple[str, ...]:
        cell, found = line["cell"], line["result"]
        victim = f"{'clean twin of ' if cell['clean'] else ''}{cell['attack']}, {cell['seed']}"
        named = "; ".join(worded(one) for one in found["findings"])
        return (victim, HELD[cell["held"]], f"{found['kind']}: {named}", *(way(found["ways"].get(name), name)
                                                                            for name in names))

    return Grid(("victim, seed", "held", "named", *names), tuple(map(row, lines)),
                f"{len(lines)} of {len(book.lines('repair-choose'))} cells of repair-choose.jsonl, those in which "
                "words are named. CACC / ASR")


def way(scores: Mapping | None, name: str) -> str:
    """CACC / ASR, and of the defaults what they chose to train."""
    if scores is None:
        return "-"
    asr = "-" if scores["asr"] is None else f"{scores['asr']:.1f}"
    mode = f" ({scores['mode']})" if name == "as it is" else ""
    return f"{scores['cacc']:.1f} / {asr}{mode}"


def false_namings(book: Book) -> Grid:
    """How many clean twins had words named, and what undoing them cost."""
    rows = []
    for held, said in HELD.items():
        clean = [line["result"] for line in book.lines("repair-choose")
                 if line["cell"]["clean"] and line["cell"]["held"] == held]
        if clean:
            named = [one for one in clean if one["kind"] != "nothing"]
            lost = [one["ways"]["as it came"]["cacc"] - one["ways"]["as it is"]["cacc"] for one in named]
            rows.append((said, f"{len(clean)}", f"{len(named)}", f"{max(lost):.1f}" if lost else "-"))
    return Grid(("held", "clean twins", "with words named", "most points of CACC lost"), tuple(rows),
                f"{sum(int(row[1]) for row in rows)} cells of repair-choose.jsonl.")


def views() -> dict[str, Computed]:
    return {"attacks": Computed(summary), "every repair": Computed(each)}


def measured() -> dict[str, Computed]:
    return {"without a trigger": Computed(victims)}


def unattacked() -> dict[str, Computed]:
    return {"clean models": Computed(twins)}


def choices() -> dict[str, Computed]:
    return {"ways": Computed(ways), "clean twins": Computed(false_namings)}
