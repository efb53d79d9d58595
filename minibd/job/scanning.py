"""A scan from its flags to its report: the model, the texts, the search, scan.json."""
from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from minibd import __version__, checkpoint, data, report, reviews
from minibd.cli import Task
from minibd.detect.carriers import carrier_sentences
from minibd.detect.confirm import Suspect
from minibd.detect.sarif import sarif as sarif_log
from minibd.detect.scan import Around, Scan, Scanned, scan
from minibd.detect.scan_page import page
from minibd.detect.verdict import ClassVerdict, model_verdict, thresholds
from minibd.detect.wording import BUILT_IN, FOUND, INCONCLUSIVE, NOTHING, deed, of_verdict, visible
from minibd.job.task import device_of, labels_of, reading_of, splits_of
from minibd.precision import dtype_of
from minibd.proportion import Proportion
from minibd.records import BadInput, Example

SCHEMA = 1
EXIT = {NOTHING: 0, FOUND: 1, INCONCLUSIVE: 3}
SHOWN = 4  # suspects of a class in the table on the screen
REVIEWS = "reviews"  # --data: the built-in reviews, that the checkpoints of weights/ classify


def scanned(task: Task, settings: Scan, out: Path) -> dict:
    """Scan the checkpoint of `task`; the report, as scan.json has it. Raises BadInput."""
    started, device = time.perf_counter(), device_of(task.device)
    header = checkpoint.read_header(task.ckpt)
    if len(header.labels) < 2:
        raise BadInput(f"{task.ckpt} has no classifier of two classes or more: the scan asks one for its answers, give "
                       "a checkpoint fine-tuned on the task")
    rows, source = texts_of(task, header)
    ckpt = checkpoint.load(header, device, labels=task.labels, seed=task.seed)
    dtype = dtype_of(task.dtype, device)
    print(f"texts     {len(rows)} of {source}")
    print(f"products  in {str(dtype).removeprefix('torch.')}", flush=True)
    with tqdm(total=None, unit="text", desc="scan", disable=not sys.stderr.isatty()) as bar, \
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        def tick(texts: int, total: int) -> None:
            bar.total = total
            bar.update(texts)

        found = scan(ckpt.model, ckpt.tokenizer, rows, settings, task.seed, tick, thresholds(source == BUILT_IN))
    return as_report(task, settings, ckpt.labels, found, rows, source, dtype, time.perf_counter() - started)


def texts_of(task: Task, header: checkpoint.Header) -> tuple[Sequence[Example], str]:
    """The texts of --data, all of a file or the test rows of a folder, or the built-in ones; and what they are."""
    if not task.data:
        return carrier_sentences(), BUILT_IN
    path = Path(task.data)
    if task.data == REVIEWS and not path.exists():
        return reviews.splits(**reviews.PAIRS)[2], "the built-in reviews"
    if path.is_file():
        return data.read_texts(path, labels=labels_of(task, header), **reading_of(task)), path.name
    return splits_of(task, header, hold_out=False).test, path.name


# ---- the report

def as_report(
    task: Task, settings: Scan, labels: Sequence[str], found: Scanned, rows: Sequence[Example], source: str,
    dtype: torch.dtype, seconds: float,
) -> dict:
    classes = {labels[verdict.target]: of_class(verdict, found.around) for verdict in
               sorted(found.verdicts, key=lambda verdict: -verdict.score)}
    verdict, reason = model_verdict(found.verdicts)
    known = [one.probability for one in found.verdicts if one.probability is not None]
    limits = found.verdicts[0].limits
    return {
        "schema": SCHEMA, "method": "scan", "minibd": __version__, "checkpoint": Path(task.ckpt).name,
        "checkpoint_sha256": checkpoint.sha256(task.ckpt), "verdict": verdict, "reason": reason,
        "probability": max(known) if known else None, "classes": classes,
        "texts": {"source": source, "n": len(rows),
                  "by_class": {name: found.given[c] for c, name in enumerate(labels)},
                  "hard": {name: found.hard[c] for c, name in enumerate(labels)}},
        "tried": found.tried, "thresholds": {"found": limits.found, "inconclusive": limits.inconclusive},
        "settings": asdict(settings), "seed": task.seed, "dtype": str(dtype).removeprefix("torch."),
        "command": shlex.join(report.command()["argv"]), "versions": report.versions(), "seconds": round(seconds, 2),
    }


def of_class(verdict: ClassVerdict, around: Around) -> dict:
    """One class of the report; numbers that are not finite are None."""
    return {
        "verdict": verdict.verdict, "reason": verdict.reason, "score": verdict.score,
        "probability": verdict.probability, "margin": verdict.margin,
        "suspects": [of_suspect(suspect, score, around.get((verdict.target, suspect.words)))
                     for suspect, score in verdict.suspects],
    }


def of_suspect(suspect: Suspect, score: float, around: Proportion | None) -> dict:
    """side: the text of a pair. part: the strongest part with one word less. neighbours: flips of the words nearest to
    a single word, in its place."""
    part = suspect.part
    return {
        "words": list(suspect.words), "joined": suspect.joined, "side": suspect.side, "found_by": suspect.found_by,
        "entries": suspect.entries, "shift": suspect.shift, **counted(suspect.flips), "interval": list(suspect.flips.interval),
        "quantile": suspect.quantile, "mean": suspect.mean, "score": score,
        "part": part and {"words": list(part.words), **counted(part.flips), "quantile": part.quantile,
                          "mean": part.mean},
        "neighbours": around and counted(around),
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
    """scan.json under `out`, the page and the SARIF file where they are asked for; the paths."""
    written = [out / "scan.json"]
    report.write_json(written[0], scan_report)
    if html:
        written.append(Path(html))
        report.write_text(written[-1], page(scan_report))
    if sarif:
        written.append(Path(sarif))
        report.write_json(written[-1], sarif_log(scan_report))
    return written
