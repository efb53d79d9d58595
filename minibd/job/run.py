"""One run of one method on one victim: started, measured after each stage, written as result.json and steps.jsonl."""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from minibd import checkpoint, data, report
from minibd.cli import AllClean, Attack, Clean, Pretrained, Resuming, Task, progress
from minibd.distributed import leads
from minibd.evaluate import Evaluator
from minibd.job.chance import Advice, advice_for, chance_lines, chances
from minibd.job.e_pur import check_pretrained, pretrained_of, purified
from minibd.job.evaluation import check_attack, evaluator_of, target_args
from minibd.job.resuming import keeper
from minibd.job.task import (
    args_of,
    clean_amount,
    clean_rows,
    dtype_args,
    head_is_new,
    limit_dev,
    open_task,
    output_path,
    print_doubts,
    print_dtype,
    print_rows,
)
from minibd.job.unproven import lines_of, verdict_of
from minibd.lines import visible
from minibd.records import BadInput, Examples
from minibd.resume import carried, done, kept_by
from minibd.train import StepLog, check_classes

if TYPE_CHECKING:
    from minibd.mitigations.unlearn import Finding

# Settings whose .resolved(hidden) fills in what depends on the hidden size: train.Tuning and its subclasses, MBTSAD.
Resolvable = TypeVar("Resolvable")


@dataclass
class Job:
    """One run of one method on one victim.

    args: the flags, defaults filled in. outcome: what the method chose, by name (`on_choice`). steps: the models that
    were measured, in their order. more: further JSON files of the run, by name. log: takes every optimiser step.
    pretrained: the weights that the victim came from.
    trains_on_all: it is trained on all of the splits' train rows, with the clean ones beside them. findings: what
    --suspects names, to be undone first; None without it.
    """
    method: str
    args: dict
    victim: checkpoint.Checkpoint
    splits: data.Splits
    clean: Examples
    evaluator: Evaluator
    out: Path
    pretrained: checkpoint.Checkpoint | None = None
    started: float = field(default_factory=time.perf_counter)
    log: StepLog = field(default_factory=StepLog)
    steps: list[report.Step] = field(default_factory=list)
    outcome: dict[str, object] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)
    trains_on_all: bool = False
    findings: list[Finding] | None = None
    given: checkpoint.Checkpoint = field(init=False)  # the victim as it came, which E-PUR's replaces
    sha256: dict[str, str] = field(init=False)  # of the victim's files before the run, which may be long

    def __post_init__(self):
        self.given = self.victim
        self.sha256 = checkpoint.sha256(self.args["ckpt"])

    def resolved(self, settings: Resolvable) -> Resolvable:
        """`settings` with what depends on the victim's hidden size filled in, in result.json's args too."""
        settings = settings.resolved(self.victim.model.config.hidden)
        self.args |= dataclasses.asdict(settings)
        return settings

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return getattr(torch, self.args["dtype"])

    # ---- what is measured

    def measure(self, name: str, model: torch.nn.Module, seconds: float) -> None:
        """Evaluate `model` and add it to the table. The first row is the victim, if it has a classifier; the last is
        the result. seconds: since the run was started or gone on with."""
        seconds += carried(self.log)
        self.steps.append(report.Step(name, self.evaluator.once(self.log, name, model, self.victim.tokenizer), seconds))
        carried(self.log)  # those of the scores are no stage's
        progress().finished.append(name)

    def measure_victim(self) -> None:
        self.measure("victim", self.victim.model, 0.0)

    def measure_if_classifier(self, keep_head: bool) -> None:
        """The victim, for a method that gives an encoder a new classifier: measured if it came with one, which
        --keep-head needs."""
        if not head_is_new(self.victim):
            self.measure_victim()
        elif keep_head:
            raise BadInput(f"--keep-head: {self.args['ckpt']} has no classifier to keep, leave it out")

    # ---- what a mitigation calls

    def on_stage(self, name: str, ckpt: checkpoint.Checkpoint, seconds: float) -> None:
        """Measure each model that a mitigation makes, except the mixtures ("mixed RHO") that are steps of a search for
        rho, or that without fine-tuning are the result, which comes under its own name."""
        if not name.startswith("mixed ") or self.args["rho"] is not None and self.args["tune"]:
            self.measure(name, ckpt.model, seconds)

    def on_choice(self, name: str, value: object) -> None:
        """Keep what a mitigation chose for result.json's outcome, and print it once its parts are known.

        trials: [rho, share of the validation rows that are right] each, kept as {"rho", "accuracy" in percent}.
        """
        if name == "trials":
            value = [{"rho": rho, "accuracy": 100 * right} for rho, right in value]
        self.outcome[name] = value
        if line := report.choice(name, self.outcome):
            print(line, flush=True)

    def advice(self, name: str) -> str:
        """What to try where the stage `name` is at chance; "" of the victim, which came so."""
        if name == "victim":
            return ""
        if name == "E-PUR":
            return "to leave E-PUR out, with --no-e-pur, or to reset fewer embeddings"
        rows = self.splits.train if self.trains_on_all else self.clean
        return advice_for(name, self.args, self.victim.model.config.hidden, len(rows))

    # ---- before and after

    def purify(self, pretrained: Pretrained) -> None:
        """With --e-pur, E-PUR before the method: the purified model is the victim from here on, measured if that was.
        """
        if not pretrained.e_pur:
            return
        started, measured = time.perf_counter(), not head_is_new(self.victim)
        self.victim = purified(self.victim, self.pretrained, self.clean)
        if measured:
            self.measure("E-PUR", self.victim.model, time.perf_counter() - started)

    def undo(self) -> None:
        """With --suspects, what it names is undone before the method: the unlearned model is the victim from here on.
        """
        if self.findings is None:
            return
        if not self.findings:
            print("--suspects names no words: nothing is undone, and the method alone is run", flush=True)
            return
        self.victim = self.unlearned(self.victim, self.findings)
        print(f"undone: {self.outcome['unlearned']['mode']} trained, since {self.outcome['unlearned']['why']}",
              flush=True)

    def undo_again(self, cleaned: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
        """What --suspects names once more, where the method brought it back; else `cleaned`."""
        if not self.findings:
            return cleaned
        from minibd.job.undone import brought_back

        back = brought_back(cleaned, self.findings, self.clean, self.args["seed"])
        if not back:
            return cleaned
        print(f"undone again: {'; '.join(visible(one.named) for one in back)}, which {self.method} brought back",
              flush=True)
        return self.unlearned(cleaned, back, " again")

    def unlearned(self, ckpt: checkpoint.Checkpoint, findings: list[Finding], again: str = "") -> checkpoint.Checkpoint:
        """`ckpt` with the findings undone. again: what the names of stage and choice end with, and another seed."""
        from minibd.mitigations.unlearn import unlearn  # only a run with --suspects imports it

        return unlearn(
            ckpt, findings, self.clean, seed=self.args["seed"] + bool(again), dtype=self.dtype, log=self.log,
            on_stage=lambda name, made, seconds: self.on_stage(name + again, made, seconds),
            on_choice=lambda name, value: self.on_choice(name + again, value),
        )

    def finish(self, cleaned: checkpoint.Checkpoint | None, rows: dict[str, int]) -> None:
        """Write the cleaned checkpoint (None: the model cannot be one), steps.jsonl and result.json under `out`; print
        the table."""
        cleaned = cleaned and self.undo_again(cleaned)
        output_sha256 = None
        verdict = None if self.steps[-1].scores.asr else verdict_of(
            output_path(self.out, self.args["ckpt"]), self.args)
        if verdict and cleaned is not None:
            self.outcome |= verdict
        rows = {"train": len(self.splits.train), "clean": len(self.clean), **rows, "test": len(self.splits.test)}
        self.outcome["at_chance"] = chances(self.steps)
        self.outcome |= {"unchanged": True} if (unchanged := cleaned is not None and same(cleaned, self.given)) else {}
        before = len(progress().written)
        with report.whole(self.out) as out:
            if cleaned is not None:
                path = output_path(out, self.args["ckpt"])
                checkpoint.save(cleaned, path)
                progress().written.append(str(path))
                output_sha256 = checkpoint.sha256(path) if leads() else None  # the others wrote none
                if verdict and path.is_dir():  # in the card, not in the history: the checkpoint is the method's
                    told = dataclasses.replace(cleaned, history=[*cleaned.history, verdict])
                    report.write_text(path / "README.md", checkpoint.card(told))
            for name, value in self.more.items():
                report.write_json(out / name, value)
            report.write_lines(out / "steps.jsonl", self.log.steps)
            report.write_json(out / "result.json", report.result(
                self.method, self.args, rows, self.steps, after=self.steps[-1],
                seconds=time.perf_counter() - self.started + (kept.earlier if (kept := kept_by(self.log)) else 0.0),
                sha256=self.sha256, outcome=self.outcome, output_sha256=output_sha256,
            ))
        done(self.log)
        print_scores(self.steps, self.advice)
        if unchanged:
            print(f"unchanged: what is written has every weight of {self.args['ckpt']}, {self.method} changed none")
        if verdict and cleaned is not None:
            print("\n".join(lines_of(verdict)))
        names = [visible(name, 1000) for name in progress().written[before:]]
        print("written: " + ", ".join(sorted(names, key=lambda name: name.endswith("steps.jsonl"))))


def start(
    method: str, task: Task, clean: Clean | AllClean, attack: Attack, *settings: object, new_classifier: bool = False,
    pretrained: Pretrained = Pretrained(), needs_pretrained: bool = False, log: StepLog | None = None,
    resuming: Resuming | None = None,
) -> Job:
    """Open the task, draw the defender's clean rows, build the evaluator, and print which rows there are.

    new_classifier: give a checkpoint without classifier a new one, instead of refusing it.
    needs_pretrained: the method itself reads --pretrained; otherwise it is for --e-pur alone.
    log: takes the optimiser steps; by default a new StepLog without limit. resuming: how the run is kept, and whether
    it is gone on with; None: not at all.
    """
    started = time.perf_counter()
    path = pretrained.pretrained or ""
    check_pretrained(method, pretrained, needs_pretrained)
    findings, kept = None, None
    out = Path(task.out or Path("out", method))

    def check(header: checkpoint.Header, splits: data.Splits) -> None:
        nonlocal findings, kept
        check_attack(attack, task, header, splits.test)
        if pretrained.suspects:
            findings = suspected(pretrained.suspects, header, splits.train.labels)
        if resuming is not None and log is None:
            kept = keeper(method, out, task, resuming, header, clean, attack, pretrained, *settings)

    victim, splits, out = open_task(
        method, task, path, new_classifier=new_classifier, check=check, resuming=resuming
    )
    splits = limit_dev(splits, clean, task.seed)
    pretrained_ckpt = pretrained_of(path, task, victim) if path else None
    held = clean_rows(task, clean, splits.train)
    evaluator = evaluator_of(attack, task, victim, splits.test)
    print_rows(train=splits.train, clean=held, test=splits.test, triggered=evaluator.triggered)
    print_dtype(task)
    check_classes(held, method)
    print_doubts(splits.train, held, splits.test, splits.dev)
    args = args_of(task, clean, attack, pretrained, *settings) | {
        "clean": clean_amount(task, clean, len(splits.train)), "out": str(out), **dtype_args(task),
        **target_args(evaluator),
    }
    return Job(
        method, args, victim, splits, held, evaluator, out, pretrained=pretrained_ckpt, started=started,
        log=StepLog(kept=kept) if log is None else log, findings=findings,
    )


def suspected(path: str, header: checkpoint.Header, labels: Sequence[str]) -> list[Finding]:
    """What the scan.json of --suspects names. labels: the classes as the run calls them. Raises BadInput."""
    # only a run with --suspects imports the scan's code
    from minibd.job.suspects import called_by, findings_of, read_scan

    if not header.labels:
        raise BadInput(f"--suspects {path}: {header.path} has no classifier, and unlearning goes by its answers: leave "
                       "it out")
    return findings_of(called_by(read_scan(path, str(header.path)), labels, header.labels), labels)


def same(one: checkpoint.Checkpoint, other: checkpoint.Checkpoint) -> bool:
    """Whether two models have the same weights, the head mask's too, bit by bit."""
    ours, theirs = one.model.state_dict(), other.model.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def print_scores(steps: Sequence[report.Step], advice: Advice = lambda name: "", said: bool = True) -> None:
    """The table of the steps; LFR by class, where there are several; a line where ASR could not be measured, unless not
    `said`; a line for each model at chance, with what to try where it was trained: `advice` of its name."""
    print(report.table(steps))
    if lines := report.lfr_table(steps):
        print(lines)
    if said and steps[0].scores.asr is None:
        print("ASR was not measured: the attack is not known. Name it with --attack, or give triggered rows with "
              "--triggered.")
    for line in chance_lines(steps, advice):
        print(line)
