#!/usr/bin/env python3
"""Repair a stranger's classifier, from suspicion to receipt: scan it, undo what is found, scan it again, say what is
left.

    python scripts/repair.py --ckpt FOLDER --data rows.csv
    python scripts/repair.py --ckpt FOLDER --data rows.csv --pretrained PRETRAINED
    python scripts/repair.py --ckpt FOLDER --data rows.csv --method reinit
    python scripts/repair.py --ckpt FOLDER --data rows.csv --suspects out/scan/scan.json
    python scripts/repair.py --ckpt FOLDER
    python scripts/repair.py --ckpt weights/bert.safetensors --data reviews

--data: a file of texts, with or without labels, or a folder of train / dev / test; of a file a fifth is held out to
measure on. Without labels what is measured is how often the result answers as the model did. Without --data built-in
sentences of many domains serve.

What the scan names is undone by consistency: the model is trained to answer texts with the words in them as it answers
them without, which reads no label. Where the scan is inconclusive, words that act as a trigger does lose their rows of
the embedding table, where no text needs these; else nothing is undone. --method retrains behind that. Left to itself,
labelled rows of which 200 or more train, reinitialisation does so where what was undone is a part of a trigger, and
Fine-mixing where nothing is found and --pretrained is given; what words a retraining brings back are undone once more.

Writes the repaired checkpoint, receipt.json, receipt.html (a page to hand on), scan.json (of the result) and
steps.jsonl under --out, all in one step; then the evidence of --planted into the receipt, in another. Exit status: 0
repaired as far as was tested, or nothing was found; 2 bad input; 3 not shown to be clean.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from minibd.cli import Attack, Clean, Idle, Resuming, Task, main, parse, progress, setting, settings_of
from minibd.job.idle import ATTACK, IN_NO_FILE

METHODS = ("auto", "none", "mbtsad", "pure", "cft", "reinit", "fineprune", "finemix", "finepurify")


@dataclass(frozen=True, slots=True)
class RepairTask(Task):
    """What is repaired, with what, and where the result goes"""
    data: str = setting(
        "", "a file of texts, with or without labels, or a folder of train/dev/test; reviews: built-in reviews; pairs: "
        "built-in sentence pairs; without it, built-in sentences of many domains",
    )
    out: str | None = setting(
        None, "folder of the result: checkpoint, receipt.json, receipt.html, scan.json, steps.jsonl (default "
        "out/repair)", kind=str,
    )


@dataclass(frozen=True, slots=True)
class Repair:
    """How it is repaired"""
    method: str = setting(
        "auto", "what retrains behind the undoing: none, or a method with its default settings, but that reinit "
        "redraws two layers, at 1e-4, where no words were undone and 1,000 rows or more train; auto: reinit where a "
        "part of a trigger was undone, finemix where nothing was found and --pretrained is given, else none",
        choices=METHODS,
    )
    pretrained: str | None = setting(
        None, "the checkpoint that --ckpt was fine-tuned from, for Fine-mixing with E-PUR, or finepurify", kind=str
    )
    suspects: str | None = setting(None, "scan.json of --ckpt: the first scan is left out", kind=str)
    planted: tuple[str, ...] = setting(
        ("word", "row", "pair", "triple", "sentence"), "backdoors of one's own that the same treatment is tried on, in "
        "copies of the result, after it is written; none leaves them out, and their time",
    )


RULES = (*ATTACK, Idle(("dev",), lambda v: True, "a method that chooses by validation rows holds a tenth of the clean "
                       "ones out: leave it out"),
         Idle(("clean",), lambda v: not v.data, "the built-in sentences are used whole: name rows with --data"),
         IN_NO_FILE)


def run() -> None:
    task, resuming, clean, repair, attack, settings, scan = parse(
        __doc__, RepairTask, Resuming, Clean, Repair, Attack, settings_of("mitigations.unlearn", "Unlearning"),
        settings_of("detect.scan", "Scan"), rules=RULES)

    from dataclasses import asdict

    from minibd import checkpoint, report
    from minibd.detect.scan import Scan
    from minibd.detect.wording import visible
    from minibd.job import repair_run as job
    from minibd.job.evaluation import check_labelled
    from minibd.job.receipt import EXIT, lines_of
    from minibd.job.receipt_page import page
    from minibd.job.resuming import keeper
    from minibd.job.run import print_scores
    from minibd.job.suspects import called_by, read_scan
    from minibd.job.task import args_of, device_of, sparing, texts_at_once
    from minibd.mitigations.unlearn import Unlearning
    from minibd.records import BadInput
    from minibd.resume import done
    from minibd.train import StepLog

    settings, scan, kinds = Unlearning(**asdict(settings)), Scan(**asdict(scan)), job.kinds_of(repair.planted)
    device, _ = device_of(task.device), texts_at_once(task)
    inputs = (task.ckpt, task.data, repair.pretrained or "", repair.suspects or "")
    out = report.output_folder(task.out or Path("out", "repair"), *inputs)
    report.check_free(out, task.overwrite, resuming=resuming)
    header = checkpoint.read_header(task.ckpt)
    if len(header.labels) < 2:
        raise BadInput(f"{task.ckpt} has no classifier of two classes or more: give one that is fine-tuned on the "
                       "task, and an encoder to pure.py")
    suspects = read_scan(repair.suspects, task.ckpt) if repair.suspects else None
    rows = job.open_rows(task, clean, header)
    job.check_texts(rows.texts)
    method, why = job.chosen_method(repair.method, repair.pretrained, rows)
    if method not in ("none", "auto", "mbtsad") or method == "auto" and repair.pretrained:
        job.with_validation(rows.texts, method, task.seed)  # refuses too few before the first scan
    check_labelled(attack, task, header, rows.test)
    kept = keeper("repair", out, task, resuming, header, clean, repair, attack, settings, scan)
    victim = sparing(checkpoint.load(header, device, labels=task.labels, seed=task.seed), task)
    if suspects:
        suspects = called_by(suspects, victim.labels, header.labels, task.labels or ())
    pretrained = job.pretrained_for(repair.pretrained, task, victim)
    one = job.Repair(task, settings.resolved(victim.model.config.hidden), scan, victim, rows,
                     job.open_evaluator(attack, task, victim, rows), out, pretrained, StepLog(kept=kept))
    print(f"rows      {len(rows.texts)} of {visible(rows.source)} to work with, {len(rows.test)} held out; "
          f"measured: {rows.measure}")
    print(job.time_line(*job.time_to_go(one, method, suspects is not None, kinds)), flush=True)
    arguments = args_of(task, clean, repair, attack, settings, scan)

    def write(evidence: list[dict], folder: Path) -> dict:
        receipt = job.receipt_of(one, cleaned, evidence, arguments)
        report.write_json(folder / "receipt.json", receipt)
        report.write_text(folder / "receipt.html", page(receipt))
        one.write_card(cleaned, receipt, folder)
        return receipt

    with report.whole(out) as one.draft:
        cleaned = one.run(method, why, suspects)
        report.write_json(one.draft / "scan.json", one.scans[-1])
        report.write_lines(one.draft / "steps.jsonl", one.log.steps)
        receipt = write([], one.draft)
    one.draft = None
    print_scores(one.steps, said=False)
    print("\n".join(lines_of(receipt)), flush=True)
    if kinds:
        progress().kept = f"the result and {out / 'receipt.json'} are written, without the evidence"
        evidence = one.evidence(cleaned, kinds)
        told = ("receipt.json", "receipt.html", *(["README.md"] if one.path.is_dir() else []))
        with report.whole(out, told.__contains__) as draft:
            receipt = write(evidence, draft)
    done(one.log)
    files = ("receipt.json", "receipt.html", "scan.json", "steps.jsonl")
    print("written: " + ", ".join(visible(str(path), 1000) for path in (one.path, *(out / name for name in files))))
    sys.exit(EXIT[receipt["verdict"]])


if __name__ == "__main__":
    main(run)
