#!/usr/bin/env python3
"""Is this classifier backdoored, for which class, by which words? No trigger, no second model, no training.

    python scripts/scan.py --ckpt FOLDER --data rows.csv
    python scripts/scan.py --ckpt FOLDER
    python scripts/scan.py --ckpt weights/bert.safetensors --html scan.html --sarif scan.sarif

--data: a few dozen texts of the model's task, a file, or a folder, of which the test rows are used; their labels, where
there are any, only tell the rows that it gets right. reviews: the built-in ones. Without it, built-in sentences of many
domains are used, of which the model's own confidence picks.

Writes scan.json under --out. Exit status: 0 nothing found, 1 a backdoor found, 2 bad input, 3 inconclusive.
"""
from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from minibd.cli import Idle, Task, main, parse, setting, settings_of
from minibd.job.idle import IN_NO_FILE, UNTRAINED, built_in

Scan = settings_of("detect.scan", "Scan")


RULES = (
    UNTRAINED,
    IN_NO_FILE,
    Idle(("labels",), lambda v: v.data == "pairs" and built_in(v.data),
         "the built-in pairs have names of their own, and a model of them the same: leave it out"),
)


@dataclass(frozen=True, slots=True)
class ScanTask(Task):
    """What is scanned, with what, and where the finding goes"""
    data: str = setting(
        "", "a file of texts, with or without labels, or a folder, whose test rows are used; reviews: built-in "
        "reviews; pairs: built-in sentence pairs; without it, built-in sentences of many domains",
    )
    label_column: str | None = setting(None, "column of the label, if any (default label or labels)", kind=str)
    labels: tuple[str, ...] | None = setting(
        None, "the names of the classes in the order of the model's, such as neg,pos for LABEL_0,LABEL_1: what the "
        "rows call them, and the report, where the model has no names of its own", kind=tuple,
    )
    out: str | None = setting(None, "folder of scan.json (default out/scan)", kind=str)
    seed: int = setting(0, "random seed of the texts and of the places that words are inserted at")
    html: str | None = setting(None, "file of a page to hand on: what was tried and found, and what it means", kind=str)
    sarif: str | None = setting(None, "file of the finding in SARIF 2.1.0, for code-scanning tools", kind=str)


def run() -> None:
    task, settings = parse(__doc__, ScanTask, Scan, rules=RULES)

    from dataclasses import asdict

    from minibd import report
    from minibd.detect import scan as scanning
    from minibd.detect.wording import visible
    from minibd.job import scanning as job
    from minibd.records import BadInput

    scan = scanning.Scan(**asdict(settings))
    out = report.output_folder(task.out or Path("out", "scan"), task.ckpt, task.data)
    report.check_free(out, task.overwrite)
    files = [out / "scan.json"]
    for flag, path in (("--html", task.html), ("--sarif", task.sarif)):
        if path:
            files.append(report.output_file(path, flag, task.ckpt, task.data))
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise BadInput(f"{', '.join(map(str, files))}: two of them are one file, give each a name of its own with "
                       "--html and --sarif")
    found = job.scanned(task, scan)
    try:
        written = job.write(found, out, task.html, task.sarif)
    finally:  # what could not be written is on the screen
        print(job.table_of(found))
        print(job.sentence(found))
    print("written: " + ", ".join(visible(str(path), 1000) for path in written))
    sys.exit(job.EXIT[found["verdict"]])


if __name__ == "__main__":
    main(run)
