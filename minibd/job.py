"""What every script does around its method: open the checkpoint and the rows, judge models, write what came of it."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from minibd import checkpoint, data, report, reviews
from minibd.attacks.known import corruption
from minibd.attacks.poison import triggered
from minibd.cli import Attack, Clean, Task
from minibd.evaluate import Judge
from minibd.records import BadInput, Examples

CLEAN_SHARE = 0.2  # of the training rows: MBTSAD's setting (III-B)


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not to be had here: use cpu, cuda or auto") from None
    return device


def splits_of(task: Task, record: checkpoint.Record) -> data.Splits:
    """The rows of --data, or those that the checkpoint's history says it was trained on, with the checkpoint's classes."""
    columns = {"text_column": task.text_column, "label_column": task.label_column, "pair_column": task.pair_column}
    if task.data:
        return data.read_splits(task.data, seed=task.seed, labels=record.labels or None, **columns)
    named = [entry["data"] for entry in record.history if "data" in entry]
    if not named:
        raise BadInput(f"{task.ckpt} does not say what it was trained on: name the rows with --data FOLDER_OR_FILE")
    if "reviews" in named[-1]:
        return data.Splits(*reviews.splits(**named[-1]["reviews"]))
    if not Path(named[-1]["path"]).exists():
        raise BadInput(f"{task.ckpt} was trained on {named[-1]['path']}, which is not here: name the rows with --data FOLDER_OR_FILE")
    return data.read_splits(named[-1]["path"], seed=task.seed, labels=record.labels or None, **columns)


def data_of(task: Task, record: checkpoint.Record) -> dict:
    """The rows as a history names them, so that a later run finds them without --data."""
    if task.data:
        return {"path": str(Path(task.data).resolve())}
    return next(entry["data"] for entry in reversed(record.history) if "data" in entry)


def judge_of(attack: Attack, task: Task, record: checkpoint.Record, test: Examples) -> Judge:
    """CACC on `test`; ASR by --triggered, --attack or the checkpoint's own history, in this order, or not at all."""
    if attack.triggered:
        return Judge(test, data.read(attack.triggered, labels=record.labels, text_column=task.text_column,
                                     label_column=task.label_column, pair_column=task.pair_column), attack.target)
    entry = None
    if attack.attack == "known":
        entry = next((e for e in reversed(record.history) if "attack" in e), None)
    elif attack.attack != "none":
        entry = entry_of(attack)
    if entry is None:
        return Judge(test)
    return Judge(test, triggered(test, corruption(entry), target=entry["target"], seed=task.seed), entry["target"])


def entry_of(attack: Attack) -> dict:
    """The attack of the flags as a history names it."""
    return {"attack": attack.attack, "triggers": list(attack.triggers), "per_text": attack.triggers_per_text, "target": attack.target}


@dataclass
class Job:
    """One run of one method on one victim."""
    method: str
    args: dict
    victim: checkpoint.Record
    splits: data.Splits
    clean: Examples
    judge: Judge
    out: Path
    steps: list[report.Step] = field(default_factory=list)
    log: list[dict] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def judged(self, name: str, model: torch.nn.Module, seconds: float) -> None:
        """Measure a model and keep it as a row of the table. The first is the victim, the last the result."""
        self.steps.append(report.Step(name, self.judge(model, self.victim.text), seconds))

    def finish(self, cleaned: checkpoint.Record, rows: dict[str, int]) -> None:
        """Write the cleaned checkpoint, steps.jsonl and result.json under `out`; print the table."""
        path = beside(self.out, self.args["ckpt"])
        checkpoint.save(cleaned, path)
        report.write_lines(self.out / "steps.jsonl", self.log)
        rows = {"train": len(self.splits.train), "clean": len(self.clean), **rows, "test": len(self.splits.test)}
        report.write_json(self.out / "result.json", report.result(self.method, self.args, rows, self.steps, after=self.steps[-1],
                                                                  seconds=time.perf_counter() - self.started))
        say_scores(self.steps)
        print(f"written: {path}, {self.out / 'result.json'}, {self.out / 'steps.jsonl'}")


def open_task(method: str, task: Task, *, new_classifier: bool = False) -> tuple[checkpoint.Record, data.Splits, Path]:
    """The checkpoint, its rows and the output folder, checked before any work is done.

    A checkpoint without classifier is refused, or given a new one for the classes of the rows where `new_classifier` says so.
    """
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data)
    record = checkpoint.load(task.ckpt, device=device)
    if not record.labels and not new_classifier:
        raise BadInput(f"{task.ckpt} has no classifier: {method} works on one, give a checkpoint fine-tuned on the task")
    splits = splits_of(task, record)
    if not record.labels:
        record = checkpoint.load(task.ckpt, device=device, labels=splits.train.labels, seed=task.seed)
    return record, splits, out


def start(method: str, task: Task, clean: Clean, attack: Attack, *settings: object) -> Job:
    """Open the task, draw the defender's clean rows and the judge's triggered ones, and say what was read."""
    started = time.perf_counter()
    victim, splits, out = open_task(method, task)
    held = clean_rows(task, clean, splits.train)
    judge = judge_of(attack, task, victim, splits.test)
    say_rows(train=splits.train, clean=held, test=splits.test, triggered=judge.triggered)
    args = args_of(task, clean, attack, *settings) | {"clean": clean_share(task, clean), "out": str(out)}
    return Job(method, args, victim, splits, held, judge, out, started=started)


def clean_share(task: Task, clean: Clean) -> float:
    return clean.clean if clean.clean is not None else 1.0 if task.data and Path(task.data).is_file() else CLEAN_SHARE


def clean_rows(task: Task, clean: Clean, train: Examples) -> Examples:
    """The rows that the defender holds: --clean of them, drawn by the seed."""
    return data.sample(train, clean_share(task, clean), task.seed)


def say_rows(**parts: Examples | None) -> None:
    for name, rows in parts.items():
        if rows is not None:
            print(f"{name:10}{data.counts(rows)}")


def say_scores(steps: Sequence[report.Step]) -> None:
    print(report.table(steps))
    if steps[0].scores.asr is None:
        print("ASR was not measured: the attack is not known. Name it with --attack, or give triggered rows with --triggered.")


def beside(out: Path, ckpt: str, prefix: str = "") -> Path:
    """Where a result of the same kind as `ckpt` goes: a file of its name in `out`, or `out` itself (`out`/prefix) as a folder."""
    return out / (prefix + Path(ckpt).name) if Path(ckpt).is_file() else out / prefix.rstrip("-")


def args_of(*settings: object) -> dict:
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()}
