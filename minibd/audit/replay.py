"""A finished run checked: the totals of its steps, its checkpoint and scores, and its first steps, or all, taken again.

    checked = audit_run(Path("out/mbtsad"), max_steps=20)
    print("\n".join(checked.lines()))

What is read is the folder that a run left: steps.jsonl, one line for each step of an optimizer, result.json, which says
how the run was started, and the checkpoint. What needs no training is in run_folder.py.

A step starts from the weights that the one before it left, and those are not saved. So none can be repeated alone: the
script is run again from the checkpoint on, with the saved arguments and a log that compares each step with the saved
line as it comes, until there are enough of them. The first 20 steps by default; the stages behind them are then not
reached, and the report says which. max_steps=None goes to the end, for as long as the run took, and then compares the
scores of every stage, what the method chose, and the weights of the checkpoint, too.

The rows, rates and weights of a step must be equal, its terms and total within TOLERANCE. With the same versions,
device and number of threads they are equal to the last bit as a rule, and a difference of 0 is printed; another machine
adds in another order. A run on a GPU has to be repeated on one: dropout draws other numbers there. The script is this
project's own of that name, whatever lies in the audited folder.
"""
from __future__ import annotations

import importlib.util
import inspect
import io
import json
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch

from minibd import checkpoint
from minibd.audit.run_folder import (
    POINTS,
    Fault,
    Output,
    Totals,
    check_output,
    check_totals,
    malformed,
    place,
    read_run,
    score_differences,
    short,
    started_in,
    working_folder,
)
from minibd.job.task import output_path
from minibd.records import BadInput
from minibd.report import format_table, versions
from minibd.train import StepLimit, StepLog

SCRIPTS = Path(__file__).parents[2] / "scripts"
MAX_STEPS = 20
# Relative, of a repeated step's terms and total, by the type of the matrix products. On one machine 0 is usual; with
# two threads instead of one, or without AVX, tiny models differed by 2e-7 and 4e-4. A large model adds more numbers up,
# and a long run carries each difference on.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
SHOWN = 5  # faults of each kind that are printed; the others are counted


@dataclass(frozen=True, slots=True)
class RepeatedStage:
    """A stage's steps as they were taken again: how many, and the largest relative difference of a term or total."""
    stage: str
    steps: int
    difference: float


@dataclass(frozen=True, slots=True)
class Replay:
    """command: what was run. notes: what is worth knowing and no fault. tolerance: relative, of terms and totals.
    unchecked: what the repetition did not reach."""
    command: str
    notes: tuple[str, ...]
    tolerance: float
    stages: tuple[RepeatedStage, ...]
    faults: tuple[Fault, ...]
    unchecked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.faults and bool(self.stages)

    @property
    def exact(self) -> bool:
        """Whether every step came again to the last bit, so that scores and weights must, too."""
        return bool(self.stages) and not any(stage.difference for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Audit:
    """One run's folder, checked in three ways. models: the names of the models that result.json has scores of."""
    folder: Path
    models: tuple[str, ...]
    totals: Totals
    replay: Replay
    output: Output

    @property
    def ok(self) -> bool:
        return self.totals.ok and self.replay.ok and self.output.ok

    def lines(self) -> list[str]:
        """The report: what was run, a table with a line for each stage, what was checked and what was not, the faults,
        the verdict."""
        verdict = "The run is as it was saved, as far as it was checked." if self.ok else (
            "The run is NOT as it was saved.")
        return [
            f"{self.folder}: {self.replay.command}", *self.replay.notes, self._table(), self._reach(),
            *([f"Evaluated again: {' and '.join(self.output.evaluated)}."] if self.output.evaluated else []),
            *(f"Not checked: {one}." for one in self.unchecked()),
            *self._fault_lines(), verdict,
        ]

    def unchecked(self) -> list[str]:
        """What neither the repetition nor the evaluation reached, in words."""
        taken = sum(stage.steps for stage in self.replay.stages)
        total = sum(stage.steps for stage in self.totals.stages)
        found = [*self.replay.unchecked, *self.output.unchecked]
        if taken < total:
            found.append(f"the last {total - taken} of {total} steps, and the weights and choices that they lead to")
            first = 1 if "before" in self.output.evaluated else 0
            last = len(self.models) - ("after" in self.output.evaluated)
            if names := self.models[first:last]:
                found.append(f"the scores of {', '.join(names)}, since not all steps were taken again")
        return found

    def _table(self) -> str:
        repeated = {stage.stage: stage for stage in self.replay.stages}
        rows = [("", "steps", "|sum - total|", "allowed", "taken again", "difference", "allowed")]
        for stage in self.totals.stages:
            again = repeated.get(stage.stage)
            rows.append((
                stage.stage, str(stage.steps), _number(stage.difference), f"{stage.allowed:.1e}",
                *((str(again.steps), _number(again.difference), f"{self.replay.tolerance:.0e}") if again else
                  ("0", "-", "")),
            ))
        return format_table(rows)

    def _reach(self) -> str:
        taken = sum(stage.steps for stage in self.replay.stages)
        total = sum(stage.steps for stage in self.totals.stages)
        if taken >= total:
            return f"Taken again: all {total} steps."
        reached = {stage.stage for stage in self.replay.stages}
        missed = [stage.stage for stage in self.totals.stages if stage.stage not in reached]
        line = (f"Taken again: the first {taken} of {total} steps. Weights between steps are not saved, so a step is "
                "reached only through all before it.")
        return f"{line} Not reached: {', '.join(missed)}." if missed else line

    def _fault_lines(self) -> Iterator[str]:
        for faults in (self.totals.faults, self.replay.faults, self.output.faults):
            yield from (f"FAULT {fault}" for fault in faults[:SHOWN])
            if len(faults) > SHOWN:
                yield f"FAULT and {len(faults) - SHOWN} more like these"


def _number(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


def audit_run(folder: Path, max_steps: int | None = MAX_STEPS) -> Audit:
    """Check `folder`, the --out of a run: its totals, its first `max_steps` steps taken again (None: all), its
    checkpoint and scores. Raises BadInput if it is no run's folder, or the run cannot be started."""
    folder = Path(os.path.realpath(folder))
    result, steps = read_run(folder)
    totals, repeated = check_totals(steps), replay(folder, max_steps)
    output = check_output(folder, result, exact=repeated.exact)
    models = tuple(str(step.get("name")) for step in result.get("steps") or () if isinstance(step, dict))
    return Audit(folder, models, totals, repeated, output)


# ---- the run once more

class ComparedLog(StepLog):
    """The log of a repetition: each step is compared with the saved line of the same place as it comes.

    It is full after `max_steps` steps, and where the run takes more steps than were saved.
    """

    def __init__(self, saved: Sequence[dict], max_steps: int | None, tolerance: float):
        super().__init__(max_steps)
        self.saved, self.tolerance = saved, tolerance
        self.faults: list[Fault] = []
        self.largest: dict[str, float] = {}  # relative difference, by stage
        self.overrun = False

    @property
    def full(self) -> bool:
        return self.overrun or super().full

    def __call__(self, step: dict) -> None:
        step = json.loads(json.dumps(step))  # as a file gives it back
        if len(self.steps) == len(self.saved):
            text = f"the run goes on with {step['stage']}, step {step['step']}, and no line is left"
            self.faults.append(Fault(f"steps.jsonl, after line {len(self.saved)}", text))
            self.overrun = True
            return
        saved = self.saved[len(self.steps)]
        super().__call__(step)
        largest, differences = step_differences(saved, step, self.tolerance)
        self.faults += [Fault(place(len(self.steps), saved), text) for text in differences]
        self.largest[saved["stage"]] = max(self.largest.get(saved["stage"], 0.0), largest)


def step_differences(saved: dict, again: dict, tolerance: float) -> tuple[float, list[str]]:
    """The largest relative difference among terms and total of two lines of one step, and in words what differs by more
    than it may."""
    differences = [f"{key} is {short(saved.get(key))} as saved, and {short(again.get(key))} recomputed"
                   for key in {**again, **saved} if key not in ("terms", "total") and saved.get(key) != again.get(key)]
    if saved["terms"].keys() != again["terms"].keys():
        differences.append(
            f"the terms are {', '.join(saved['terms'])} as saved, and {', '.join(again['terms'])} recomputed"
        )
    numbers = [(f"the term {name}", value, again["terms"][name]) for name, value in saved["terms"].items()
               if name in again["terms"]]
    largest = 0.0
    for name, one, other in [*numbers, ("the total", saved["total"], again["total"])]:
        difference = abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0
        largest = max(largest, difference)
        if not difference <= tolerance:
            differences.append(
                f"{name} is {one:.9g} as saved, and {other:.9g} recomputed, apart by {difference:.1e} of it, allowed "
                f"{tolerance:.0e}"
            )
    return largest, differences


def result_differences(saved: dict, again: dict, points: float) -> Iterator[str]:
    """What differs between two result.json of one run, in words: the scores of every model by more than `points` of
    percent; the rows, the arguments that both name, and, with points 0, what the method chose."""
    for part in ("before", "after"):
        yield from score_differences(part, saved.get(part), again[part], points, "recomputed")
    steps = [step for step in saved.get("steps") or () if isinstance(step, dict)]
    names, names_again = [step.get("name") for step in steps], [step["name"] for step in again["steps"]]
    if names != names_again:
        yield f"the models are {short(names)} as saved, and {short(names_again)} recomputed"
    else:
        for one, other in zip(steps, again["steps"]):
            yield from score_differences(f"step {one['name']}", one, other, points, "recomputed")
    parts = [("rows", saved.get("rows"), again["rows"])]
    if not points and isinstance(chosen := saved.get("outcome"), dict):
        parts += [(f"outcome {name}", chosen.get(name), again["outcome"].get(name))
                  for name in {**chosen, **again["outcome"]} if name != "next"  # the command names where the model lies
                  and (name not in ("at_chance", "verdict") or name in chosen)]  # not in older runs
    # before 0.3.0 the target was the flag's, whatever class was measured
    other = {"out", "dtype_auto"} | (set() if "target_class" in saved["args"] else {"target"})
    parts += [(f"args {name}", saved["args"][name], again["args"][name])
              for name in saved["args"] if name in again["args"] and name not in other]
    for name, one, other in parts:
        if one != other:
            yield f"{name} is {short(one)} as saved, and {short(other)} recomputed"


def weight_differences(saved: Path, again: Path) -> Iterator[str]:
    """The tensors of two checkpoints that are not equal, in words. Raises BadInput where one cannot be read."""
    ours, theirs = (checkpoint.load(path).model.state_dict() for path in (saved, again))
    changed = [name for name in {**ours, **theirs}
               if name not in ours or name not in theirs or not torch.equal(ours[name], theirs[name])]
    if changed:
        yield f"{len(changed)} of {len(theirs)} tensors are not those of the repetition, the first is {changed[0]}"


@contextmanager
def started_as(argv: list[str], folder: Path) -> Iterator[None]:
    """Inside, sys.argv and the working directory are those of a process started so, and what is printed is dropped."""
    before = sys.argv
    sys.argv = argv
    try:
        with working_folder(folder), redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.argv = before


def run_script(script: Path, argv: list[str], folder: Path, log: StepLog) -> bool:
    """Run `script` with the arguments `argv`, started in `folder`, its steps logged to `log`; whether it ended before
    the log was full.

    The script is loaded by its path: the package does not import scripts. Its progress bar goes to stderr as always.
    """
    name = f"minibd_audited_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses looks up the module of a class
    try:
        with started_as([str(script), *argv], folder):
            spec.loader.exec_module(module)
            if "log" not in inspect.signature(module.run).parameters:
                raise BadInput(f"{script.name} takes no log: it trains nothing that could be repeated")
            module.run(log=log)
    except StepLimit:
        return False
    finally:
        del sys.modules[name]
    return True


def replay(folder: Path, max_steps: int | None = MAX_STEPS) -> Replay:
    """The run that `folder` is the result of, started once more and compared with steps.jsonl over `max_steps` steps;
    None: to its end, and with result.json and the checkpoint.

    `folder` and the victim are only read: the result of the repetition goes to a temporary folder, which is removed. A
    victim that is not the one the run began from is a fault, and nothing is run. Raises BadInput where the run cannot
    be started.
    """
    folder = Path(os.path.realpath(folder))
    result, steps = read_run(folder)
    if max_steps is not None and max_steps < 1:
        raise BadInput(f"{max_steps} steps to take again: give at least 1")
    argv, args = result["command"]["argv"], result["args"]
    script = SCRIPTS / Path(argv[0]).name
    if script.suffix != ".py" or not script.is_file():
        raise BadInput(
            f"{folder / 'result.json'} was written by {argv[0]}, and {SCRIPTS} holds no such script: use the version "
            "that has it"
        )
    command, began = f"python {shlex.join(argv)}", started_in(result)
    tolerance = TOLERANCE.get(args.get("dtype"), TOLERANCE["float32"])
    notes = tuple(differing_surroundings(result, began))
    if faults := tuple(unfit(steps, args["ckpt"], began, result["sha256"])):
        return Replay(command, notes, tolerance, (), faults)

    log = ComparedLog(steps, max_steps if max_steps and max_steps < len(steps) else None, tolerance)
    unchecked = []
    with tempfile.TemporaryDirectory(prefix="minibd-audit-") as temporary:
        out = Path(temporary, "out")
        # what the defaults came to then: here, or since, they may come to something else
        settled = ["--dtype", args["dtype"]] if "dtype" in args else []
        settled += ["--cft" if args["cft"] else "--no-cft"] if "cft" in args else []
        try:  # of two --out, the last counts
            ended = run_script(script, [*argv[1:], *settled, "--out", str(out)], began, log)
        except BadInput as error:
            raise BadInput(f"{command} cannot be run again: {error}") from None
        except SystemExit:
            raise BadInput(
                f"{command} is refused by {script.name}: its flags are not those the run was started with"
            ) from None
        if ended and len(log.steps) < len(steps):
            line = len(log.steps)
            log.faults.append(Fault(place(line + 1, steps[line]), "the run has ended before this step"))
        elif ended:
            different, unchecked = compare_ends(folder, out, result, exact=not any(log.largest.values()))
            log.faults += different
    counts = Counter(step["stage"] for step in steps[:len(log.steps)])
    stages = tuple(RepeatedStage(name, counts[name], largest) for name, largest in log.largest.items())
    return Replay(command, notes, tolerance, stages, tuple(log.faults), tuple(unchecked))


def differing_surroundings(result: dict, began: Path) -> Iterator[str]:
    """Versions and a starting folder that are not those of the run: worth knowing, and no fault."""
    if isinstance(saved := result.get("versions"), dict):
        yield from (f"{name} was {saved[name]} and is {now}" for name, now in versions().items()
                    if saved.get(name, now) != now)
    if str(began) != result["command"]["folder"]:
        yield f"{result['command']['folder']}, where the run was started, is not here: started in {began}"


def unfit(steps: Sequence[dict], ckpt: str, began: Path, read: dict) -> Iterator[Fault]:
    """Why the run is not repeated: a malformed line, or a victim whose files are not those that the run read."""
    if any(map(malformed, steps)):
        yield Fault("steps.jsonl", "a line is not what a line must be: nothing was recomputed")
        return
    found = checkpoint.sha256(began / ckpt)
    for name in {**read, **{name: None for name in found if name not in checkpoint.SINCE_0_3_0}}:
        if read.get(name) != found.get(name):
            yield Fault(ckpt, f"{name} has the sha256 {short(found.get(name))}, and what the run read had "
                              f"{short(read.get(name))}: nothing was recomputed")


def compare_ends(folder: Path, out: Path, result: dict, *, exact: bool) -> tuple[list[Fault], list[str]]:
    """result.json and the checkpoint in `folder` compared with those of the whole repetition in `out`: the differences,
    and what could not be compared. exact: all steps were equal to the last bit, and so must the rest be."""
    again = json.loads((out / "result.json").read_text(encoding="utf-8"))
    faults = [Fault("result.json", text) for text in result_differences(result, again, 0.0 if exact else POINTS)]
    if again["output_sha256"] is None:
        return faults, []
    if not exact:
        return faults, ["the output's weights and what the method chose, since the steps differ by rounding"]
    ckpt = str(started_in(result) / result["args"]["ckpt"])
    saved = output_path(folder, ckpt)
    try:
        faults += [Fault(str(saved), text) for text in weight_differences(saved, output_path(out, ckpt))]
    except BadInput as error:
        faults.append(Fault(str(saved), f"it cannot be read ({error})"))
    return faults, []
