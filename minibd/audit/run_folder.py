"""What a run left in its --out folder, checked without training: the totals of its steps, its scores, its checkpoint.

    result, steps = read_run(Path("out/mbtsad"))
    totals = check_totals(steps)
    output = check_output(Path("out/mbtsad"), result, exact=True)

The totals: every line of steps.jsonl has the loss terms, their weights and the total, which must be their sum.
The checkpoint: its files must have the sha256 that result.json names, and it is evaluated once, as is the victim: the
scores must be those that result.json gives as "after" and "before". What cannot be checked so is listed as unchecked.
"""
from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, fields
from pathlib import Path

from minibd import checkpoint
from minibd.cli import Attack, Task
from minibd.evaluate import Evaluator
from minibd.job.evaluation import as_read, evaluator_of
from minibd.job.task import device_of, output_path, splits_of
from minibd.records import BadInput
from minibd.report import scores

KEYS = ("stage", "step", "lr", "rows", "batch", "terms", "weights", "total")
UNIT = 2.0 ** -24  # the largest relative error of one rounding to float32
POINTS = 1.0  # of percent, by which CACC, ASR and LFR may differ on a machine that rounds otherwise
SHOWN = 60  # characters of a value in a message


@dataclass(frozen=True, slots=True)
class Fault:
    """What is not as it should be. where: "steps.jsonl, line 5 (CFT, step 4)", lines from 1 and steps from 0 as in the
    file."""
    where: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}: {self.text}"


@dataclass(frozen=True, slots=True)
class StageTotals:
    """A stage's step whose total lies furthest from its sum of weights x terms: |sum - total| there, and how much
    rounding can make of it."""
    stage: str
    steps: int
    difference: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Totals:
    """Every line of steps.jsonl, added up: the stages in their order."""
    stages: tuple[StageTotals, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class Output:
    """What was found of the checkpoint under --out and the saved scores. evaluated: "before", "after", as far as the
    models could be evaluated."""
    evaluated: tuple[str, ...]
    unchecked: tuple[str, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


# ---- reading

def read_run(folder: Path) -> tuple[dict, list[dict]]:
    """result.json, with a command and a checkpoint's sha256 in it, and the lines of steps.jsonl. Raises BadInput."""
    for name in ("result.json", "steps.jsonl"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder} holds no {name}: name the --out folder of a run that trains")
    result = _object(f"{folder / 'result.json'}", (folder / "result.json").read_text(encoding="utf-8"))
    if not _says_how_it_was_started(result):
        raise BadInput(
            f"{folder / 'result.json'} does not say how the run was started (command, args, sha256): an older version "
            "wrote it, run the script once more"
        )
    steps = [_object(f"{folder / 'steps.jsonl'}, line {n}", line)
             for n, line in enumerate((folder / "steps.jsonl").read_text(encoding="utf-8").splitlines(), 1)]
    if not steps:
        raise BadInput(f"{folder / 'steps.jsonl'} is empty: the run has taken no step that could be checked")
    return result, steps


def _says_how_it_was_started(result: dict) -> bool:
    command, args = result.get("command"), result.get("args")
    if not isinstance(command, dict) or not isinstance(args, dict):
        return False
    argv = command.get("argv")
    return (isinstance(argv, list) and bool(argv) and all(isinstance(word, str) for word in argv)
            and isinstance(command.get("folder"), str) and isinstance(args.get("ckpt"), str)
            and isinstance(result.get("sha256"), dict))


def _object(where: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON ({error}): restore it as the run wrote it") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where} is no JSON object: restore it as the run wrote it")
    return value


def started_in(result: dict) -> Path:
    """The folder that the run was started in, which its relative paths are of; where that is gone, the current one."""
    folder = Path(result["command"]["folder"])
    return folder if folder.is_dir() else Path.cwd()


def place(line: int, step: dict) -> str:
    """A step's place in the file, for a Fault."""
    return f"steps.jsonl, line {line} ({step.get('stage', 'no stage')}, step {step.get('step', '?')})"


def short(value: object) -> str:
    """A value as JSON, cut to a length that a message can hold."""
    text = "not there" if value is None else json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN - 3]}..."


# ---- the terms of a step and its total

def malformed(step: dict) -> str:
    """What is wrong with the form of a line of steps.jsonl; "" if nothing is."""
    if missing := [key for key in KEYS if key not in step]:
        return f"it lacks {', '.join(missing)}"
    if not isinstance(step["stage"], str):
        return f"stage is {step['stage']!r}, not a name"
    for key in ("terms", "weights"):
        if not isinstance(step[key], dict) or not step[key]:
            return f"{key} is {step[key]!r}, not a number for each term's name"
    for name in step["terms"].keys() ^ step["weights"].keys():
        return f"{name} has a {'term and no weight' if name in step['terms'] else 'weight and no term'}"
    numbers = {"total": step["total"], "lr": step["lr"], "rows": step["rows"],
               **{f"{key} {name}": value for key in ("terms", "weights") for name, value in step[key].items()}}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"{name} is {value!r}, not a number"
    if not isinstance(step["batch"], list) or len(step["batch"]) != step["rows"]:
        return f"rows is {step['rows']}, and batch does not name as many"
    return ""


def check_totals(steps: Sequence[dict]) -> Totals:
    """Compare each line's sum of weights x terms with its total.

    total is the mean over B rows of the sum of T terms, a sum of T x B products in float32; each term is logged as its
    own mean over B. The two are one number but for rounding: B roundings in either mean, T + 2 more in the weights,
    products and sums, each of at most UNIT of what is added, sum |w t| (a loss term has one sign). So the difference is
    at most (2 B + T + 2) UNIT sum |w t|, which is the tolerance.
    """
    stages: dict[str, StageTotals] = {}
    faults = []
    for line, step in enumerate(steps, 1):
        if problem := malformed(step):
            faults.append(Fault(place(line, step), problem))
            continue
        parts = [step["weights"][name] * value for name, value in step["terms"].items()]
        added = math.fsum(parts)
        difference = abs(added - step["total"])
        allowed = (2 * step["rows"] + len(parts) + 2) * UNIT * math.fsum(map(abs, parts))
        if not difference <= allowed:
            faults.append(Fault(
                place(line, step),
                f"weights x terms are {added:.9g} and the total is {step['total']:.9g}, {difference:.2g} apart, where "
                f"rounding makes at most {allowed:.2g}",
            ))
        so_far = stages.get(step["stage"], StageTotals(step["stage"], 0, -1.0, 0.0))
        worst = max((so_far.difference, so_far.allowed), (difference, allowed), key=lambda pair: pair[0])
        stages[step["stage"]] = StageTotals(step["stage"], so_far.steps + 1, *worst)
    return Totals(tuple(stages.values()), tuple(faults))


# ---- scores

def score_differences(name: str, saved: object, found: dict, points: float, other: str) -> Iterator[str]:
    """The scores of one model that differ by more than `points` of percent, in words. name: "after" or a stage's;
    other: what `found` is, such as "recomputed"."""
    saved = saved if isinstance(saved, dict) else {}
    for key in ("cacc", "asr", "lfr", "n_clean", "n_triggered", "n_by_class"):
        allowed = points if key in ("cacc", "asr", "lfr") else 0
        if not _near(saved.get(key), found.get(key), allowed):
            yield (f"{name} {key} is {short(saved.get(key))} as saved, and {short(found.get(key))} {other}, allowed "
                   f"{allowed:g} apart")


def _near(one: object, other: object, points: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key], points) for key in one)
    numbers = all(isinstance(value, (int, float)) for value in (one, other))
    return one == other or numbers and abs(one - other) <= points


def malformed_scores(result: dict) -> str:
    """What is wrong with the form of result.json's steps; "" if nothing is."""
    steps = result.get("steps")
    formed = isinstance(steps, list) and steps and all(isinstance(step, dict) for step in steps)
    return "" if formed else f"steps is {short(steps)}, not the scores of each model"


def check_saved_scores(result: dict) -> Iterator[Fault]:
    """before must be the first of result.json's steps, after the last."""
    steps = result["steps"]
    for part, step in (("before", steps[0]), ("after", steps[-1])):
        for text in score_differences(part, result.get(part), step, 0.0, f"in its step {step.get('name')}"):
            yield Fault("result.json", text)


# ---- the checkpoint under --out

def check_output(folder: Path, result: dict, *, exact: bool) -> Output:
    """Compare the checkpoint under --out with result.json: its files' sha256, its scores and the victim's.

    exact: the scores must be equal; otherwise they may differ by POINTS.
    """
    if problem := malformed_scores(result):
        return Output((), (), (Fault("result.json", problem),))
    path = output_path(folder, str(started_in(result) / result["args"]["ckpt"]))
    faults, unchecked = list(check_saved_scores(result)), []
    written = "output_sha256" not in result or result["output_sha256"] is not None
    if not written:
        unchecked.append("the output, since the run wrote no checkpoint: its scores are all that is left of it")
    elif "output_sha256" not in result:
        unchecked.append("the output's sha256, since it is not in result.json, which an older version wrote")
    else:
        faults += changed_files(path, result["output_sha256"])
    evaluated, different, reasons = _evaluate(path if written else None, result, 0.0 if exact else POINTS)
    return Output(evaluated, (*unchecked, *reasons), (*faults, *different))


def changed_files(path: Path, saved: object) -> Iterator[Fault]:
    """The files of the checkpoint `path` that are missing, or whose sha256 is not that of `saved`, by name."""
    try:
        found = checkpoint.sha256(path)
    except BadInput:
        found = {}
    saved = saved if isinstance(saved, dict) else {}
    for name in {**saved, **{name: None for name in found if name not in checkpoint.SINCE_0_3_0}}:
        if name not in found:
            yield Fault(str(path), f"{name} is missing, whose sha256 is in result.json")
        elif found[name] != saved.get(name):
            yield Fault(str(path), f"{name} has the sha256 {short(found[name])}, and the run wrote "
                                   f"{short(saved.get(name))}")


def _evaluate(path: Path | None, result: dict, points: float) -> tuple[tuple[str, ...], list[Fault], tuple[str, ...]]:
    """The victim and the output (None: there is none) evaluated once: which of before and after were compared, the
    differences, and why where one was not."""
    if "clean_aux" in result["args"]:
        return (), [], (f"the scores by an evaluation: {result.get('method')} measures on rows of --clean-aux",)
    evaluated, faults = [], []
    try:
        with working_folder(started_in(result)), redirect_stdout(io.StringIO()):
            evaluator, victim = evaluator_of_args(result["args"])
            models = [("before", None)] if result["steps"][0].get("name") == "victim" else []
            for part, file in [*models, *([("after", path)] if path else [])]:
                ckpt = checkpoint.load(file, next(victim.model.parameters()).device) if file else victim
                found = scores(evaluator(ckpt.model, ckpt.tokenizer))
                evaluated.append(part)
                faults += [Fault("result.json", text) for text in score_differences(
                    part, result.get(part), found, points, "by the model that is there")]
    except BadInput as error:
        return tuple(evaluated), faults, (f"the scores by an evaluation, since it failed: {error}",)
    return tuple(evaluated), faults, ()


def evaluator_of_args(args: dict) -> tuple[Evaluator, checkpoint.Checkpoint]:
    """The evaluator that a run with these arguments of result.json had, and its victim. Relative paths are of the
    current folder. Raises BadInput."""
    task, attack = (group(**{f.name: tuple(value) if isinstance(value := args[f.name], list) else value
                             for f in fields(group) if f.name in args}) for group in (Task, Attack))
    device, header = device_of(task.device), checkpoint.read_header(task.ckpt)
    splits = splits_of(task, header)
    labels = None if header.labels else splits.train.labels
    victim = checkpoint.load(header, device, labels=labels, seed=task.seed)
    return evaluator_of(as_read(attack), task, victim, splits.test), victim


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Inside, relative paths are of `folder`."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
