#!/usr/bin/env python3
"""Check every equation of the papers, and of the scan, against plain loops; or a finished run against its own log.

    python scripts/audit.py
    python scripts/audit.py --paper mbtsad --json audit.json
    python scripts/audit.py --html audit.html
    python scripts/audit.py --run out/mbtsad --steps 20
    python scripts/audit.py --readme
    python scripts/audit.py --effects --ckpt VICTIM --teacher CLEAN --data SST2_FOLDER

Each equation is printed with the paper's formula, where it stands in the code, what the variants do, and the check: our
function in float32 on random numbers against the same equation in plain loops of float64 (minibd/audit/restated.py),
and its gradient against central differences of those loops. Differences are relative to the largest number. The exit
status is 1 where a check fails or a numbered equation has none.

--run adds up the terms of every step in FOLDER/steps.jsonl, compares the checkpoint there with its sha256 in
result.json, evaluates it and the victim once, and starts the run again from its checkpoint, seed and rows, comparing
step by step: weights are not kept at each step, so a step is reached through those before it. With --steps all it also
compares the scores of every stage and the weights of the result. What was not checked is listed.
--readme renews the equation index in minibd/audit/README.md and the line numbers of every reference to code in the
pages. --effects measures what the released code's departures change on real rows; its figures are those of the page and
the docstrings.
"""
from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from minibd.cli import Idle, main, parse, setting


@dataclass(frozen=True, slots=True)
class Audit:
    """What is checked"""
    paper: str = setting(
        "", "only this paper's equations: mbtsad, musclelora, pure, e-pur, fine-mixing, ripple, scan ...")
    seed: int = setting(0, "draws the numbers of the checks")
    json: str | None = setting(None, "also write the results to this file, as JSON", kind=str)
    html: str | None = setting(None, "also write them as a page of its own, which needs no network", kind=str)
    run: str | None = setting(None, "instead: the folder of a finished run", kind=str)
    steps: str = setting("20", "with --run: how many steps are taken again, from the first one on, or all")
    readme: bool = setting(False, "instead: renew the equation index and the line numbers in the pages")
    effects: bool = setting(False, "instead: measure the departures on --ckpt, --teacher and --data")


@dataclass(frozen=True, slots=True)
class Measured:
    """With --effects"""
    ckpt: str | None = setting(None, "a model, as a rule a fine-tuned classifier", kind=str)
    teacher: str | None = setting(None, "another of the same shape, such as its clean twin", kind=str)
    data: str | None = setting(None, "folder of rows, of which the dev rows are read (without any, the test rows), or "
                              "one file, which is read whole", kind=str)


def _other_job(v: SimpleNamespace) -> bool:
    return v.run is not None or v.readme or v.effects


RULES = (
    Idle(("paper", "json", "html"), _other_job,
         "of the checks of all equations alone, and not of --run, --readme or --effects: leave it out"),
    Idle(("steps",), lambda v: v.run is None,
         "how many steps of --run are taken again: name a run's folder with --run"),
    Idle(("seed",), lambda v: v.run is not None or v.readme,
         "--run has the run's own seed, and --readme draws nothing: leave it out"),
    Idle(("ckpt", "teacher", "data"), lambda v: not v.effects, "what --effects compares: add it, or leave it out"),
)


def renew_pages() -> int:
    """Write the equation index, then the line of every reference in every page; 1 where one leads to nothing."""
    from minibd import report
    from minibd.audit import index, pages

    report.write_text(index.PAGE, index.indexed(index.PAGE.read_text(encoding="utf-8")))
    known, problems = pages.symbols(), []
    for page in pages.pages():
        text, missing = pages.renewed(page, known)
        problems += missing
        if text != page.read_text(encoding="utf-8"):
            report.write_text(page, text)
            print(f"written: {page}")
    print("\n".join(problems) if problems else "every reference stands at its line")
    return bool(problems)


def run() -> None:
    audit, measured = parse(__doc__, Audit, Measured, rules=RULES)

    import sys
    from pathlib import Path

    from minibd import __version__, checkpoint, data, report
    from minibd.audit import index
    from minibd.records import BadInput

    if sum((audit.run is not None, audit.readme, audit.effects)) > 1:
        raise BadInput("--run, --readme and --effects are jobs of their own: give one")
    if audit.effects:
        from minibd.audit.effects import effects
        if None in (measured.ckpt, measured.teacher, measured.data):
            raise BadInput("--effects compares two models on rows: name --ckpt, --teacher and --data")
        splits = data.read_splits(measured.data, seed=audit.seed, hold_out=False)
        print(*splits.notes, sep="\n", end="\n" if splits.notes else "")
        rows = splits.dev or splits.test
        pair = []
        for path in (measured.ckpt, measured.teacher):
            header = checkpoint.read_header(path)
            labels = None if header.labels else rows.labels  # an encoder gets a new head
            pair.append(checkpoint.load(header, labels=labels, seed=audit.seed))
        for name, said in effects(*pair, rows, audit.seed):
            print(f"{name}: {said}")
        return
    if audit.readme:
        sys.exit(renew_pages())
    if audit.run is not None:
        from minibd.audit.replay import audit_run
        if audit.steps != "all" and not audit.steps.isdigit():
            raise BadInput(f"--steps {audit.steps}: give a number of steps, such as 20, or all")
        checked = audit_run(Path(audit.run), max_steps=None if audit.steps == "all" else int(audit.steps))
        print("\n".join(checked.lines()))
        sys.exit(0 if checked.ok else 1)

    if not index.equations_of(audit.paper):
        papers = ", ".join(dict.fromkeys(e.paper for e in index.EQUATIONS))
        raise BadInput(f"--paper {audit.paper}: it is none of {papers}")
    stand = index.places()
    found, missing = index.audit(stand, audit.seed, audit.paper), index.missing(stand, paper=audit.paper)
    for one in found:
        print("\n".join(index.lines(one)), end="\n\n")
    for line in missing:
        print(line)
    failed = sum(not one.ok for one in found)
    print(f"{len(found)} equations, {sum(len(one.outcomes) for one in found)} checks: "
          + (f"{failed} equations failed" if failed else "all hold")
          + (f"; {len(missing)} entries are missing" if missing else ""))
    if audit.json:
        report.write_json(Path(audit.json), index.as_json(found, missing, audit.seed))
    if audit.html:
        from minibd.audit.page import page
        report.write_text(Path(audit.html), page(found, title="minibd: every equation, checked", seed=audit.seed,
                                                 version=__version__, missing=missing))
    sys.exit(1 if failed or missing else 0)


if __name__ == "__main__":
    main(run)
