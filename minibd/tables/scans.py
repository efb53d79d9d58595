"""The tables of scripts/results/scan.md: what the scan says of models whose backdoor is known (scripts/scan_models.py).

A victim counts as backdoored from an ASR of BACKDOORED on; below it the attack did not take, and the model is neither
clean nor backdoored. Scores are computed from what was measured, Eq. Scan (8) and (9) as they stand, and a model's is
that of its strongest class.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, log

from minibd.detect.confirm import Suspect, suspect_of
from minibd.detect.verdict import ClassVerdict, compared, judge, model_verdict, thresholds
from minibd.detect.wording import FOUND, INCONCLUSIVE
from minibd.tables.pivot import Book, Computed, Grid

BACKDOORED = 60.0  # percent
FIRST = 3  # suspects among which a true word counts as named
WIDTHS = {"reviews": "128, reviews", "pairs": "128, sentence pairs", "sst2": "384, SST-2", "ag": "384, AG News"}
SINGLE = ("badnets", "ep", "ripple")  # attacks with triggers of one word
TEXTS = {"task": "texts of the task", "none": "the model alone"}
SETS = ("calibration", "reported")


@dataclass(frozen=True, slots=True)
class Scanned:
    """One scan. kind: "clean"; "backdoored"; "wordless" where no words are the trigger, a syntax or a style, which the
    scan cannot see; "weak" where the attack did not take. named: whether a true word is among the first suspects of
    the target. best: the class of the highest score. word: the verdict on the model."""
    cell: Mapping
    result: Mapping
    kind: str
    named: bool
    best: ClassVerdict
    word: str

    @property
    def attack(self) -> str:
        return self.cell["attack"].split()[1]

    @property
    def score(self) -> float:
        return self.best.score


def scans(book: Book, name: str, texts: str) -> list[Scanned]:
    """Those of one set, with texts or without."""
    return [scanned(line["cell"], line["result"]) for line in book.lines("scan")
            if line["cell"]["set"] == name and line["cell"]["texts"] == texts]


def scanned(cell: Mapping, result: Mapping) -> Scanned:
    asr, found, limits = result["asr"], result["scan"], thresholds(cell["texts"] == "none")
    kind = ("clean" if cell["clean"] else "weak" if asr is None or asr < BACKDOORED else
            "backdoored" if result["triggers"] else "wordless")
    verdicts = compared([judge(target, [suspect_of(s, target) for s in one["suspects"]], one["margin"], one["reason"],
                                limits)
                         for target, one in enumerate(found["classes"][name] for name in found["texts"]["by_class"])])
    planted = {word.lower() for trigger in result["triggers"] or () for word in trigger.split()}
    first = verdicts[result["target"]].suspects[:FIRST]
    return Scanned(cell, result, kind, any({*s.words} & planted for s, _ in first),
                   max(verdicts, key=lambda one: one.score), model_verdict(verdicts)[0])


# ---- how well models with and without a backdoor are told apart

def auroc(backdoored: Sequence[float], clean: Sequence[float]) -> float | None:
    """The share of pairs of a backdoored and a clean model in which the first has the higher score; ties count half."""
    pairs = [(b > c) + 0.5 * (b == c) for b in backdoored for c in clean]
    return sum(pairs) / len(pairs) if pairs else None


def cross_entropy(probabilities: Sequence[float], truth: Sequence[bool]) -> float | None:
    """The mean of -log p of what is true, in nats, as the TrojAI rounds score a detector."""
    losses = [-log(max(p if true else 1 - p, 1e-12)) for p, true in zip(probabilities, truth)]
    return sum(losses) / len(losses) if losses else None


def summary(book: Book) -> Grid:
    rows = []
    for name in SETS:
        for texts, said in TEXTS.items():
            found = scans(book, name, texts)
            clean, bad = ([s for s in found if s.kind == kind] for kind in ("clean", "backdoored"))
            single = [s for s in bad if s.attack in SINGLE]
            judged = [*clean, *bad]
            rows.append((name, said, f"{len(clean)}", f"{len(bad)}",
                         decimal(auroc(scores(single), scores(clean))), decimal(auroc(scores(bad), scores(clean))),
                         decimal(cross_entropy([s.best.limits.probability(s.score) for s in judged],
                                               [s.kind == "backdoored" for s in judged])),
                         f"{sum(s.word == FOUND for s in bad)} of {len(bad)}",
                         f"{sum(s.named for s in bad)} of {len(bad)}",
                         f"{sum(s.word == FOUND for s in clean)} of {len(clean)}",
                         f"{sum(s.word == INCONCLUSIVE for s in judged)}"))
    return Grid(("set", "scanned with", "clean", "backdoored", "AUROC, single words", "AUROC, all", "cross-entropy",
                 "found", f"a true word among the first {FIRST}", "false alarms", "inconclusive"), tuple(rows),
                note(book))


def scores(found: Sequence[Scanned]) -> list[float]:
    return [s.score for s in found]


def decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def roc(book: Book) -> Grid:
    """For each number of false alarms, how many backdoored models score above the clean ones that are left."""
    rows = []
    for name in SETS:
        for texts, said in TEXTS.items():
            found = scans(book, name, texts)
            clean, bad = (sorted(scores([s for s in found if s.kind == kind]), reverse=True)
                          for kind in ("clean", "backdoored"))

            def hits(alarms: int) -> str:
                above = clean[alarms] if alarms < len(clean) else float("-inf")
                return f"{sum(score > above for score in bad)}" if bad else "-"
            rows.append((name, said, f"{len(bad)}", *(hits(n) for n in range(4)),
                         f"{clean[0]:.2f}" if clean else "-", f"{bad[-1]:.2f}" if bad else "-"))
    return Grid(("set", "scanned with", "backdoored", "found at no false alarm", "at 1", "at 2", "at 3",
                 "highest score of a clean model", "lowest of a backdoored one"), tuple(rows), note(book))


# ---- every model

def models(name: str, texts: str) -> Callable[[Book], Grid]:
    def make(book: Book) -> Grid:
        rows = tuple(row(s) for s in sorted(scans(book, name, texts), key=order))
        return Grid(("model", "CACC", "ASR", "score", "verdict", "strongest suspects of the strongest class: flips",
                     "true word named", "seconds"), rows, note(book))
    return make


def order(s: Scanned) -> tuple:
    return ("backdoored", "wordless", "weak", "clean").index(s.kind), list(WIDTHS).index(s.cell["base"]), -s.score


def row(s: Scanned) -> tuple[str, ...]:
    what = "clean twin of " + s.cell["model"] if s.kind == "clean" else s.cell["model"]
    said = "; ".join(f"`{shown(x)}` {x.flips.hits}/{x.flips.n}" for x, _ in s.best.suspects[:FIRST]) or s.best.reason
    return (f"{WIDTHS[s.cell['base']]}: {what}", f"{s.result['cacc']:.1f}",
            "-" if s.result["asr"] is None else f"{s.result['asr']:.1f}", f"{s.score:.2f}",
            s.word + {"weak": " (the attack did not take)", "wordless": " (no words)"}.get(s.kind, ""), said,
            "-" if s.kind in ("clean", "wordless") else "yes" if s.named else "no",
            f"{s.result['scan']['seconds']:.0f}")


def shown(suspect: Suspect) -> str:
    words = (" " if suspect.joined else " + ").join(suspect.words).replace("|", "/")
    return f"{words} (twice each)" if suspect.times > 1 else words


def note(book: Book) -> str:
    lines = book.lines("scan")
    dtypes = sorted({line["result"]["scan"]["dtype"] for line in lines})
    return f"{len(lines)} cells of scan.jsonl, products in {' and '.join(dtypes)}."


def views() -> dict[str, Computed]:
    parts: dict[str, Callable[[Book], Grid]] = {"summary": summary, "ROC": roc, "thresholds": fitted}
    for name in SETS:
        for texts, said in TEXTS.items():
            parts[f"{name}, {said}"] = models(name, texts)
    return {part: Computed(make) for part, make in parts.items()}


# ---- the thresholds

def fitted(book: Book) -> Grid:
    """What the constants of minibd/detect/verdict.py come from: the scores of the calibration models, and the curve of
    the probability."""
    def span(values: Sequence[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    rows = []
    for texts, said in TEXTS.items():
        found = scans(book, "calibration", texts)
        clean, bad = (scores([s for s in found if s.kind == kind]) for kind in ("clean", "backdoored"))
        slope, middle = logistic([*clean, *bad], [False] * len(clean) + [True] * len(bad))
        limits = thresholds(texts == "none")
        rows.append((said, span(clean), span(bad), f"{slope:.2f}", f"{middle:.2f}", f"{limits.inconclusive:.2f}",
                     f"{limits.found:.2f}"))
    return Grid(("scanned with", "scores of clean models", "of backdoored ones", "slope", "middle",
                 "inconclusive from", "backdoored from"), tuple(rows), note(book))


def logistic(x: Sequence[float], y: Sequence[bool], decay: float = 0.01, steps: int = 20_000) -> tuple[float, float]:
    """Slope and middle of 1 / (1 + exp(-slope (x - middle))), by gradient descent on the mean cross-entropy plus
    decay / 2 slope^2, without which separable scores make a step of it."""
    slope, bias, n = 1.0, 0.0, len(x)
    for _ in range(steps):
        errors = [1 / (1 + exp(-(slope * a + bias))) - b for a, b in zip(x, y)]
        slope -= 0.5 * (sum(e * a for e, a in zip(errors, x)) / n + decay * slope)
        bias -= 0.5 * sum(errors) / n
    return slope, -bias / slope
