"""One run of one method on one victim: started, measured after each stage, finished with result.json and steps.jsonl."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from minibd import checkpoint, data, report
from minibd.cli import AllClean, Attack, Clean, Pretrained, Task
from minibd.evaluate import Evaluator
from minibd.job.e_pur import check_pretrained, pretrained_of, purified
from minibd.job.evaluation import evaluator_of
from minibd.job.task import args_of, beside, clean_amount, clean_rows, open_task, own_head, print_rows, with_dev
from minibd.records import BadInput, Examples

# settings whose .resolved(hidden) fills in what goes by the width: train.Tuning and its kin, MBTSAD
Resolvable = TypeVar("Resolvable")


# Makes the list that a Job keeps its steps in. An audit that repeats a run sets it, so that each step can be compared
# with the saved one as it is appended, and the run be ended there by raising. A context variable, not a global: a Job
# made outside that call keeps a plain list.
NEW_LOG: ContextVar[Callable[[], list[dict]]] = ContextVar("NEW_LOG", default=list)


@dataclass
class Job:
    """One run of one method on one victim."""
    method: str
    args: dict
    victim: checkpoint.Checkpoint
    splits: data.Splits
    clean: Examples
    evaluator: Evaluator
    out: Path
    steps: list[report.Step] = field(default_factory=list)
    log: list[dict] = field(default_factory=lambda: NEW_LOG.get()())
    pretrained: checkpoint.Checkpoint | None = None
    started: float = field(default_factory=time.perf_counter)
    sha256: dict[str, str] = field(init=False)  # of the victim's files as they were read: the run may be long

    def __post_init__(self):
        self.sha256 = checkpoint.sha256(self.args["ckpt"])

    def resolved(self, settings: Resolvable) -> Resolvable:
        """`settings` with what goes by the victim's width filled in; as such they stand in result.json."""
        settings = settings.resolved(self.victim.model.config.hidden)
        self.args |= dataclasses.asdict(settings)
        return settings

    def measure(self, name: str, model: torch.nn.Module, seconds: float) -> None:
        """Measure a model and keep it as a row of the table. The first is the victim, where it has a classifier; the
        last is the result."""
        self.steps.append(report.Step(name, self.evaluator(model, self.victim.tokenizer), seconds))

    def measure_own_head(self, keep_head: bool) -> None:
        """For methods that give an encoder a new classifier: one that is there is measured first; --keep-head needs
        one."""
        if own_head(self.victim):
            self.measure("victim", self.victim.model, 0.0)
        elif keep_head:
            raise BadInput(f"--keep-head: {self.args['ckpt']} has no classifier to keep, leave it out")

    def measure_mixtures(self, name: str, ckpt: checkpoint.Checkpoint, seconds: float) -> None:
        """A `on_stage` for methods that search rho: of the mixtures that are tried only one whose rho was given, and
        which is then tuned, is a row.

        Of a search the end alone counts; without tuning the mixture is the end, and comes under another name.
        """
        if not name.startswith("mixed") or self.args["rho"] is not None and self.args["tune"]:
            self.measure(name, ckpt.model, seconds)

    def note_search(self, ckpt: checkpoint.Checkpoint) -> None:
        """The search for rho, where there was one: the share of the validation rows that each rho got right, in the
        order of the looks, is printed, and stands in result.json under args, beside the rho that was chosen."""
        if trials := ckpt.history[-1].get("trials"):
            rho = ckpt.history[-1]["rho"]
            print(
                "on validation: "
                + ", ".join(f"rho {tried:g} {100 * right:.1f} %" for tried, right in trials)
                + f"; kept: rho {rho:g}"
            )
            self.args |= {"chosen": rho, "trials": [{"rho": tried, "accuracy": 100 * right} for tried, right in trials]}

    def purify(self, pretrained: Pretrained) -> None:
        """Where --e-pur says so, E-PUR before the method: from here on the purified model is the victim, measured where
        that was."""
        if not pretrained.e_pur:
            return
        started, headed = time.perf_counter(), own_head(self.victim)
        self.victim = purified(self.victim, self.pretrained, self.clean)
        if headed:
            self.measure("E-PUR", self.victim.model, time.perf_counter() - started)

    def finish(self, cleaned: checkpoint.Checkpoint | None, rows: dict[str, int]) -> None:
        """Write the cleaned checkpoint, where it can be one, steps.jsonl and result.json under `out`; print the
        table."""
        path = beside(self.out, self.args["ckpt"])
        if cleaned is not None:
            checkpoint.save(cleaned, path)
        report.write_lines(self.out / "steps.jsonl", self.log)
        rows = {"train": len(self.splits.train), "clean": len(self.clean), **rows, "test": len(self.splits.test)}
        report.write_json(
            self.out / "result.json",
            report.result(
                self.method, self.args, rows, self.steps, after=self.steps[-1],
                seconds=time.perf_counter() - self.started, sha256=self.sha256,
            ),
        )
        print_scores(self.steps)
        print(
            "written: "
            + f"{path}, " * (cleaned is not None)
            + f"{self.out / 'result.json'}, {self.out / 'steps.jsonl'}"
        )


def start(
    method: str, task: Task, clean: Clean | AllClean, attack: Attack, *settings: object, new_classifier: bool = False,
    pretrained: Pretrained = Pretrained(), needs_pretrained: bool = False,
) -> Job:
    """Open the task, draw the defender's clean rows and the judge's triggered ones, and say what was read.

    needs_pretrained: whether the method itself works on the weights before; else they are for --e-pur alone.
    """
    started = time.perf_counter()
    path = pretrained.pretrained or ""
    check_pretrained(method, pretrained, needs_pretrained)
    victim, splits, out = open_task(method, task, path, new_classifier=new_classifier)
    splits = with_dev(splits, clean, task.seed)
    before = pretrained_of(path, task, victim) if path else None
    held = clean_rows(task, clean, splits.train)
    evaluator = evaluator_of(attack, task, victim, splits.test)
    print_rows(train=splits.train, clean=held, test=splits.test, triggered=evaluator.triggered)
    args = args_of(task, clean, attack, pretrained, *settings) | {
        "clean": clean_amount(task, clean, len(splits.train)), "out": str(out),
    }
    return Job(method, args, victim, splits, held, evaluator, out, pretrained=before, started=started)


def print_scores(steps: Sequence[report.Step]) -> None:
    print(report.table(steps))
    if lines := report.lfr_table(steps):
        print(lines)
    if steps[0].scores.asr is None:
        print(
            "ASR was not measured: the attack is not known. Name it with --attack, or give triggered rows with "
            "--triggered."
        )
