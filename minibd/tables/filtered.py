"""The tables of scripts/results/filters.md: each filter on each victim, correct and as released
(scripts/filter_grid.py), the papers' rows beside ours; each defect alone, and a clean model (--builtin)."""
from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from minibd.tables.pivot import Book, Computed, Grid

ATTACKS = {"badnets": "BadNets", "addsent": "AddSent", "lwp": "LWP", "ep": "EP", "sos": "SOS",
           "hiddenkiller": "HiddenKiller", "stylebkd": "StyleBkd"}
FILTERS = {"onion": "ONION", "strip": "STRIP", "rap": "RAP", "bki": "BKI", "cube": "CUBE"}
TRAINING = ("bki", "cube")
# CACC / ASR on BERT-base: MBTSAD's Table I (BadNets, LWP, EP), MuScleLoRA's Table 2 (AddSent, HiddenKiller, StyleBkd)
PAPERS = {
    ("badnets", ""): "91.3 / 89.9", ("badnets", "strip"): "91.5 / 39.4", ("badnets", "rap"): "90.7 / 32.4",
    ("lwp", ""): "90.7 / 94.4", ("lwp", "strip"): "90.9 / 93.7", ("lwp", "rap"): "90.8 / 53.3",
    ("ep", ""): "91.2 / 95.2", ("ep", "strip"): "87.7 / 93.2", ("ep", "rap"): "87.9 / 93.4",
    ("addsent", ""): "91.0 / 99.9", ("addsent", "onion"): "87.0 / 49.8", ("addsent", "bki"): "90.7 / 33.1",
    ("addsent", "cube"): "87.7 / 37.9", ("addsent", "strip"): "91.4 / 28.6", ("addsent", "rap"): "91.7 / 27.2",
    ("hiddenkiller", ""): "91.1 / 93.5", ("hiddenkiller", "onion"): "85.2 / 96.1",
    ("hiddenkiller", "bki"): "88.4 / 94.9", ("hiddenkiller", "cube"): "85.5 / 45.6",
    ("hiddenkiller", "strip"): "90.4 / 90.6", ("hiddenkiller", "rap"): "88.3 / 89.1",
    ("stylebkd", ""): "91.7 / 77.2", ("stylebkd", "onion"): "85.5 / 81.8", ("stylebkd", "bki"): "90.3 / 82.5",
    ("stylebkd", "cube"): "90.8 / 22.4", ("stylebkd", "strip"): "89.9 / 78.6", ("stylebkd", "rap"): "90.2 / 79.4",
}


def results(book: Book, attack: str, name: str, variant: str) -> list[Mapping]:
    """The results of one filter on one attack, a seed each, of the cells of the `grid`."""
    return [line["result"] for line in sorted(grid(book), key=lambda line: line["cell"]["seed"])
            if line["cell"]["attack"] == attack and line["cell"]["filter"] == name
            and line["cell"]["variant"] == variant]


def grid(book: Book) -> list[Mapping]:
    """The grid's cells, without those of ONION that another language model read than the newest one's."""
    lines = [line for line in book.lines("filters") if "defects" not in line["cell"]]
    read = [lm_of(line["cell"]) for line in lines if line["cell"]["filter"] == "onion"]
    return [line for line in lines if line["cell"]["filter"] != "onion" or lm_of(line["cell"]) == read[-1]]


def lm_of(cell: Mapping) -> tuple:
    return cell.get("lm"), (cell.get("sha256") or {}).get("lm")


def spread(values: Sequence[float | None], digits: int = 1) -> str:
    """Mean, and in brackets lowest and highest of several; a dash where one was not measured."""
    if not values or None in values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ({min(values):.{digits}f}-{max(values):.{digits}f})" if len(values) > 1 else mean


def percent(found: Sequence[Mapping], *path: str) -> str:
    """The percentages at `path` in each result."""
    values = []
    for result in found:
        for key in path:
            result = (result or {}).get(key)
        values.append(result and result["percent"])
    return spread(values)


def both(found: Sequence[Mapping], when: str) -> str:
    """CACC / ASR at a stage."""
    return f"{percent(found, when, 'cacc')} / {percent(found, when, 'asr')}" if found else "-"


def inference(book: Book) -> Grid:
    rows = []
    for attack, said in ATTACKS.items():
        victims = next((found for name in ("strip", "rap", "onion")
                        if (found := results(book, attack, name, "paper"))), [])
        rows.append((f"{said}: no filter", "", "", "", both(victims, "before"), "", "", "",
                     PAPERS.get((attack, ""), "")))
        for name in ("onion", "strip", "rap"):
            ours, theirs = (results(book, attack, name, variant) for variant in ("paper", "released"))
            rows.append((f"{said}: {FILTERS[name]}", percent(ours, "frr"), percent(ours, "far"),
                         spread([r["auroc"] for r in ours], 3), both(ours, "after"), percent(theirs, "frr"),
                         percent(theirs, "far"), both(theirs, "after"),
                         "" if name == "onion" else PAPERS.get((attack, name), "")))
            if name == "onion":
                rows.append((f"{said}: ONION, words removed", words(ours, 0), words(ours, 1), "",
                             both(ours, "removed"), words(theirs, 0), words(theirs, 1), both(theirs, "removed"),
                             PAPERS.get((attack, name), "")))
    return Grid(("attack: filter", "FRR", "FAR", "AUROC", "CACC / ASR", "released: FRR", "FAR", "CACC / ASR",
                 "*paper, BERT-base*"), tuple(rows), note(book))


def words(found: Sequence[Mapping], part: int) -> str:
    """The share of the words that ONION removes, of the rows (0) or of the triggered ones (1)."""
    shares = [100 * one["removed"] / one["of"] for r in found
              for one in (r["outcome"].get("words_removed") or [])[part:part + 1]]
    return f"{spread(shares)} % of words" if shares else "-"


def training(book: Book) -> Grid:
    rows = []
    for attack, said in ATTACKS.items():
        some = next((found for name in TRAINING if (found := results(book, attack, name, "paper"))), [])
        rows.append((f"{said}: no filter", "", "", both(some, "before"), "", "", "", PAPERS.get((attack, ""), "")))
        for name in TRAINING:
            ours, theirs = (results(book, attack, name, variant) for variant in ("paper", "released"))
            rows.append((f"{said}: {FILTERS[name]}", percent(ours, "frr"), percent(ours, "far"),
                         both(ours, "retrained"), percent(theirs, "frr"), percent(theirs, "far"),
                         both(theirs, "retrained"), PAPERS.get((attack, name), "")))
    return Grid(("attack: filter", "FRR", "FAR", "CACC / ASR, retrained", "released: FRR", "FAR",
                 "CACC / ASR, retrained", "*paper, BERT-base*"), tuple(rows), note(book))


def effects(book: Book) -> Grid:
    """What the released variant changes: means over the attacks of the differences, in points."""
    rows = []
    for name, said in FILTERS.items():
        stage = "retrained" if name in TRAINING else "after"
        pairs = [pair for attack in ATTACKS for pair in zip(*(results(book, attack, name, variant)
                                                              for variant in ("released", "paper")))]
        stages = [(said, stage)] + ([(f"{said}, words removed", "removed")] if name == "onion" else [])
        for label, when in stages:
            reads: list[Callable[[Mapping], Mapping | None]] = [
                lambda r: r["frr"], lambda r: r["far"], lambda r, w=when: (r.get(w) or {}).get("cacc"),
                lambda r, w=when: (r.get(w) or {}).get("asr")]
            rows.append((label, str(len(pairs)), *(difference(pairs, read) for read in reads)))
    return Grid(("released less paper, points", "victims", "FRR", "FAR", "CACC", "ASR"), tuple(rows), note(book))


def difference(pairs: Sequence[tuple[Mapping, Mapping]], read: Callable[[Mapping], Mapping | None]) -> str:
    values = [read(a)["percent"] - read(b)["percent"] for a, b in pairs if read(a) and read(b)]
    return f"{statistics.mean(values):+.1f} ({min(values):+.1f} to {max(values):+.1f})" if values else "-"


def note(book: Book) -> str:
    lines = grid(book)
    lms = sorted({line["cell"]["lm"] for line in lines if line["cell"].get("lm")})
    read = sorted({line["cell"]["onion_rows"] for line in lines if line["cell"].get("onion_rows")})
    dtypes = sorted({line["cell"].get("dtype", "float32") for line in lines})
    return (f"{len(lines)} cells of filters.jsonl"
            + (f"; ONION reads {' and '.join(lms)}" if lms else "")
            + (f", and the first {read[0]} dev, test and triggered rows alone" if read else "")
            + (f"; products in {' and '.join(dtypes)}" if lines else "") + ".")


# ---- each defect alone, and a clean model

TITLES = {"reviews": "", "training rows": "", "sure model": "logits 20 times as large",
          "long reviews": "texts of 100 tokens and more", "one-word reviews": "every other text one word"}


def alone(book: Book) -> Grid:
    """Each defect on top of the correct filter, which stands above it, on the same rows."""
    lines = [line for line in book.lines("filters") if "defects" in line["cell"] and line["cell"]["attack"] != "none"]
    rows = []
    for name, said in FILTERS.items():
        own = [line for line in lines if line["cell"]["filter"] == name]
        groups = dict.fromkeys((line["cell"]["data"], *line["cell"]["settings"].values()) for line in own)
        for group in sorted(groups, key=lambda g: (TITLES[g[0]] != "", len(g))):
            told = [TITLES[group[0]], *(f"its word {word}" for word in group[1:])]
            where = "".join(f", {one}" for one in told if one)
            some = [line for line in own if (line["cell"]["data"], *line["cell"]["settings"].values()) == group]
            for line in sorted(some, key=lambda line: (line["cell"]["variant"] != "paper", *order(line["cell"]))):
                cell, result = line["cell"], line["result"]
                released = cell["variant"] == "released"
                what = "all, as released" if released else " and ".join(cell["defects"]) or "correct"
                after = result.get("retrained") or result["after"]
                removed = result.get("removed")
                rows.append((f"{said}{where}: {what}", counted(result["frr"]), counted(result["far"]),
                             counted(after["cacc"]), counted(after["asr"]),
                             f"{percent([removed], 'cacc')} / {percent([removed], 'asr')}" if removed else ""))
    return Grid(("filter: defect", "FRR", "FAR", "CACC", "ASR", "words removed: CACC / ASR"), tuple(rows),
                f"{len(lines)} cells of filters.jsonl; counts and 95 % intervals in brackets.")


def order(cell: Mapping) -> tuple[int, int]:
    """By the number of defects, and as the issue and the filters' files name them."""
    names = ("threshold", "case", "padding", "length", "count", "reshape", "nan", "summed", "word", "target", "piece",
             "changed", "one", "noise", "hundred", "lookups")
    return len(cell["defects"]), names.index(cell["defects"][0]) if cell["defects"] else -1


def counted(found: Mapping | None) -> str:
    """Percent, count and interval of a proportion."""
    if not found:
        return "-"
    return "{:.1f} ({}/{}, {:.1f}-{:.1f})".format(found["percent"], found["hits"], found["n"], *found["interval"])


def clean(book: Book) -> Grid:
    """The false-rejection rate on a model without a backdoor."""
    lines = [line for line in book.lines("filters") if "defects" in line["cell"] and line["cell"]["attack"] == "none"]
    rows = []
    for name, said in FILTERS.items():
        for line in lines:
            if line["cell"]["filter"] == name:
                before, after = ((line["result"].get(when) or {}).get("cacc") for when in ("before", "after"))
                rows.append((said, "training" if name in TRAINING else "test", counted(line["result"]["frr"]),
                             counted(before), counted(after)))
    return Grid(("filter", "rows", "FRR, stated 5 %", "CACC before", "CACC after rejection"), tuple(rows),
                f"{len(lines)} cells of filters.jsonl; counts and 95 % intervals in brackets.")


def views() -> dict[str, Computed]:
    return {"inference": Computed(inference), "training": Computed(training), "effects": Computed(effects),
            "each defect": Computed(alone), "clean model": Computed(clean)}
