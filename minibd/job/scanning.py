"""A scan from its flags to its report: the model, the texts, the search, scan.json."""
from __future__ import annotations

import math
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from minibd import __version__, checkpoint, data, report, reviews
from minibd.cli import Task
from minibd.data.messages import quoted
from minibd.detect.carriers import carrier_sentences
from minibd.detect.confirm import Suspect
from minibd.detect.sarif import sarif as sarif_log
from minibd.detect.scan import MOST_TEXTS, Around, Scan, Scanned, scan
from minibd.detect.scan_page import page
from minibd.detect.verdict import ClassVerdict, model_verdict, thresholds
from minibd.detect.wording import BUILT_IN, FOUND, INCONCLUSIVE, NOTHING, class_names, deed, of_verdict, visible
from minibd.job.idle import built_in
from minibd.job.task import device_of, labels_of, print_notes, reading_of, splits_of
from minibd.models.cast_once import only_asked
from minibd.precision import dtype_of
from minibd.proportion import Proportion
from minibd.records import BadInput, Example

SCHEMA = 1
EXIT = {NOTHING: 0, FOUND: 1, INCONCLUSIVE: 3}
SHOWN = 4  # suspects of a class in the table on the screen
REVIEWS = "reviews"  # --data: the built-in reviews, that the checkpoints of weights/ classify


def scanned(task: Task, settings: Scan) -> dict:
    """Scan the checkpoint of `task`; the report, as scan.json has it. Raises BadInput."""
    started, device = time.perf_counter(), device_of(task.device)
    header = checkpoint.read_header(task.ckpt)
    if len(header.labels) < 2:
        raise BadInput(f"{task.ckpt} has no classifier of two classes or more: the scan asks one for its answers, give "
                       "a checkpoint fine-tuned on the task")
    rows, source = texts_of(task, header)
    ckpt = checkpoint.load(header, device, labels=task.labels, seed=task.seed)
    return scan_of(ckpt, task, settings, rows, source, started)


def scan_of(
    ckpt: checkpoint.Checkpoint, task: Task, settings: Scan, rows: Sequence[Example], source: str,
    started: float | None = None,
) -> dict:
    """Scan a checkpoint that is loaded from `task.ckpt`, with texts that are at hand; the report. source: what they
    are. started: the time.perf_counter() that the seconds count from (default now)."""
    started, device = started or time.perf_counter(), ckpt.model.embeddings.word.weight.device
    dtype = dtype_of(task.dtype, device)
    print(f"texts     {len(rows)} of {visible(source)}")
    print(f"products  in {str(dtype).removeprefix('torch.')}", flush=True)
    with tqdm(total=None, unit="text", desc="scan", disable=not sys.stderr.isatty()) as bar, \
            only_asked(dtype, ckpt.model):
        def tick(texts: int, total: int) -> None:
            bar.total = total
            bar.update(texts)

        found = scan(ckpt.model, ckpt.tokenizer, rows, settings, task.seed, tick, thresholds(source == BUILT_IN))
    return as_report(task, settings, ckpt.labels, found, rows, source, dtype, time.perf_counter() - started)


def texts_of(task: Task, header: checkpoint.Header) -> tuple[Sequence[Example], str]:
    """The texts of --data, all of a file or the test rows of a folder, or the built-in ones; and what they are. Raises
    BadInput."""
    names = labels_of(task, header)
    if not task.data:
        check_renamed(task, header)
        return carrier_sentences(), BUILT_IN
    if built_in(task.data, (REVIEWS,)):
        return reviews_of(task, names), "the built-in reviews"
    path = Path(task.data)
    if path.is_file():
        return data.read_texts(path, labels=names, **reading_of(task)), path.name
    splits = splits_of(task, header, hold_out=False)
    print_notes(splits)
    return splits.test, path.name if path.exists() else "the built-in pairs"


def check_renamed(task: Task, header: checkpoint.Header) -> None:
    """Raises BadInput where --labels would do nothing: the texts have no labels, and the model has names of its own."""
    if task.labels and not all(name == f"LABEL_{c}" for c, name in enumerate(header.labels)):
        raise BadInput(f"--labels {','.join(task.labels)}: {task.ckpt} has names of its own, {quoted(header.labels)}, "
                       "and the built-in sentences have no labels: leave it out, or name rows with --data")


def reviews_of(task: Task, names: Sequence[str]) -> list[Example]:
    """The built-in reviews with the numbers of a model's classes, which are called `names` as --labels has it."""
    if sorted(names) != sorted(reviews.LABELS):
        raise BadInput(f"--data {REVIEWS}: they are {quoted(reviews.LABELS)}, {task.ckpt}'s classes {quoted(names)}: "
                       f"give --labels {','.join(reviews.LABELS)} in their order, name rows of your own, or leave "
                       "--data out")
    rows = reviews.splits(**reviews.PAIRS)[2]
    return [replace(x, label=names.index(rows.labels[x.label])) for x in rows]


# ---- the report

def as_report(
    task: Task, settings: Scan, labels: Sequence[str], found: Scanned, rows: Sequence[Example], source: str,
    dtype: torch.dtype, seconds: float,
) -> dict:
    """What scan.json holds; numbers that are not finite are None."""
    names = class_names(labels)
    classes = {names[verdict.target]: of_class(verdict, found.around) for verdict in
               sorted(found.verdicts, key=lambda verdict: -verdict.score)}
    verdict, reason = model_verdict(found.verdicts)
    limits = found.verdicts[0].limits
    return finite({
        "schema": SCHEMA, "method": "scan", "minibd": __version__, "checkpoint": str(Path(task.ckpt)),
        "checkpoint_sha256": checkpoint.sha256(task.ckpt), "verdict": verdict, "reason": reason,
        "probability": max((one["probability"] for one in classes.values() if one["probability"] is not None),
                           default=None),
        "classes": classes,
        "texts": {"source": source, "n": len(rows), "read": min(len(rows), MOST_TEXTS),
                  "pairs": any(x.pair is not None for x in rows),
                  "by_class": {name: found.given[c] for c, name in enumerate(names)},
                  "hard": {name: found.hard[c] for c, name in enumerate(names)}},
        "tried": found.tried, "thresholds": {"found": limits.found, "inconclusive": limits.inconclusive},
        "settings": asdict(settings), "seed": task.seed, "dtype": str(dtype).removeprefix("torch."),
        "command": shlex.join(["python", *report.command()["argv"]]), "versions": report.versions(),
        "seconds": round(seconds, 2),
    })


def finite(value: Any) -> Any:
    """The same with None for numbers that are not finite, which JSON has none for."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def of_class(verdict: ClassVerdict, around: Around) -> dict:
    """One class of the report; of one that could not be judged, score and probability are None."""
    unjudged = verdict.reason and not verdict.suspects
    return {
        "verdict": verdict.verdict, "reason": verdict.reason, "score": None if unjudged else verdict.score,
        "probability": None if unjudged else verdict.probability, "margin": verdict.margin,
        "suspects": [of_suspect(suspect, score, around.get((verdict.target, suspect.words)))
                     for suspect, score in verdict.suspects],
    }


def of_suspect(suspect: Suspect, score: float, around: Proportion | None) -> dict:
    """side: the text of a pair. times: how often each word stands in a text. part: the strongest part with one word
    less. neighbours: flips of the words nearest to a single word, in its place. stands_out: of a single word, Eq. Scan
    (10) over the 20th largest."""
    part = suspect.part
    return {
        "words": list(suspect.words), "joined": suspect.joined, "side": suspect.side, "times": suspect.times,
        "found_by": suspect.found_by, "entries": suspect.entries, "shift": suspect.shift,
        **counted(suspect.flips), "interval": list(suspect.flips.interval), "quantile": suspect.quantile,
        "mean": suspect.mean, "score": score,
        "part": part and {"words": list(part.words), **counted(part.flips), "quantile": part.quantile,
                          "mean": part.mean},
        "neighbours": around and counted(around), "stands_out": suspect.stands_out or None,
    }


def counted(flips: Proportion) -> dict[str, int]:
    return {"flips": flips.hits, "of": flips.n}


def table_of(scan_report: Mapping) -> str:
    """What is shown on the screen: the strongest suspects of each class."""
    rows = [("class", "verdict", "suspect", "flips", "95 %", "margin, 10th percentile", "score", "found by")]
    for name, found in scan_report["classes"].items():
        label, verdict = visible(name), found["verdict"]
        for suspect in found["suspects"][:SHOWN]:
            words = (" " if suspect["joined"] else " + ").join(map(visible, suspect["words"]))
            words += ", twice each" if suspect.get("times", 1) > 1 else ""
            rows.append((label, verdict, words, f"{suspect['flips']}/{suspect['of']}",
                         "{:.1f}-{:.1f}".format(*suspect["interval"]), f"{suspect['quantile']:.2f}",
                         f"{suspect['score']:.2f}", suspect["found_by"]))
            label = verdict = ""
        if not found["suspects"]:
            rows.append((label, verdict, "-", "", "", "", "", found["reason"]))
    return report.format_table(rows)


def sentence(scan_report: Mapping) -> str:
    """The verdict in one line."""
    if scan_report["verdict"] == FOUND:
        name, found = next(iter(of_verdict(scan_report, FOUND).items()))
        return f"BACKDOORED: {deed(name, found['suspects'][0])}"
    if scan_report["verdict"] == INCONCLUSIVE:
        return f"INCONCLUSIVE: {scan_report['reason']}"
    return "nothing found: no words that were tried take the rows of other classes to one class"


def write(scan_report: Mapping, out: Path, html: str | None, sarif: str | None) -> list[Path]:
    """scan.json under `out`, the page and the SARIF file where they are asked for; the paths. Those that lie in `out`
    are put there in one step."""
    written = [out / "scan.json", *(Path(path) for path in (html, sarif) if path)]
    inside = [path for path in written if os.path.realpath(path.parent) == os.path.realpath(out)]

    def put(path: Path, place: Path) -> None:
        if path == written[0]:
            report.write_json(place, scan_report)
        elif html and path == Path(html):
            report.write_text(place, page(scan_report))
        else:
            report.write_json(place, sarif_log(scan_report))

    with report.whole(out) as draft:
        for path in inside:
            put(path, draft / path.name)
    for path in written:
        if path not in inside:
            put(path, path)
    return written
