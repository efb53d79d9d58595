"""A run looked at again: the terms of each step added up, and its first steps, or all of them, taken a second time.

    checked = audit_run(Path("out/mbtsad"), upto=20)
    print("\n".join(checked.lines()))

What is read is the folder that a run left: steps.jsonl, one line a step of an optimizer, and result.json, which says
how the run was started.

A step starts from the weights that the one before it left, and those are not saved. So none can be recomputed alone:
the script is run again from the checkpoint on, with the saved arguments, and each step is held beside the saved line as
it comes, until there are enough of them. The first 20 steps by default; the stages behind them are then not reached,
and the lines say which. upto=None goes to the end, for as long as the run took, and then holds its CACC and ASR beside
the saved ones, too.

The rows, rates and weights of a step must be equal, its terms and total within TOLERANCE. With the same versions,
device and number of threads they are equal to the last bit as a rule, and a difference of 0 is printed; another machine
adds in another order. A run on a GPU has to be repeated on one: dropout draws other numbers there. The script is this
project's own of that name, whatever lies in the audited folder.
"""
from __future__ import annotations

import importlib.util
import io
import json
import math
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from minibd import checkpoint
from minibd.job.run import NEW_LOG
from minibd.records import BadInput
from minibd.report import format_table, versions

SCRIPTS = Path(__file__).parents[2] / "scripts"
KEYS = ("stage", "step", "lr", "rows", "batch", "terms", "weights", "total")
UPTO = 20
UNIT = 2.0 ** -24  # the largest relative error of one rounding to float32
# Relative, of a term or total that is computed again, by the type of the matrix products. On one machine 0 is usual;
# with two threads for one, or without AVX, tiny models came to 2e-7 and 4e-4. A large model adds more numbers up, and a
# long run carries each difference on.
TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
POINTS = 1.0  # of percent, by which CACC and ASR may differ where the steps do differ by rounding
SHOWN = 5  # faults printed of each kind; the others are counted


@dataclass(frozen=True, slots=True)
class Fault:
    """What is not as it should be. where: "steps.jsonl, line 5 (CFT, step 4)", lines from 1 and steps from 0 as in the
    file."""

    where: str
    said: str

    def __str__(self) -> str:
        return f"{self.where}: {self.said}"


@dataclass(frozen=True, slots=True)
class Sums:
    """A stage's step whose total lies furthest from its sum of weights x terms: |sum - total| there, and how much
    rounding can make of it."""

    stage: str
    steps: int
    difference: float
    allowed: float


@dataclass(frozen=True, slots=True)
class Readded:
    """Every line, added up: a Sums a stage, in their order."""
    sums: tuple[Sums, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults


@dataclass(frozen=True, slots=True)
class Again:
    """A stage's steps as they were recomputed: how many, and the largest relative difference of a term or total."""
    stage: str
    steps: int
    difference: float


@dataclass(frozen=True, slots=True)
class Replayed:
    """command: what was run. notes: what is worth knowing and no fault. tolerance: relative, of terms and totals."""
    command: str
    notes: tuple[str, ...]
    tolerance: float
    again: tuple[Again, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        return not self.faults and bool(self.again)


@dataclass(frozen=True, slots=True)
class Audited:
    """One run's folder, checked both ways."""
    folder: Path
    readded: Readded
    replayed: Replayed

    @property
    def ok(self) -> bool:
        return self.readded.ok and self.replayed.ok

    def lines(self) -> list[str]:
        """The report: what was run, a table with a line a stage, what was not reached, the faults, the verdict."""
        again = {stage.stage: stage for stage in self.replayed.again}
        rows = [("", "steps", "|sum - total|", "allowed", "recomputed", "difference", "allowed")]
        for sums in self.readded.sums:
            seen = again.get(sums.stage)
            rows.append(
                (
                    sums.stage, str(sums.steps), _exact(sums.difference), f"{sums.allowed:.1e}",
                    *(
                        (str(seen.steps), _exact(seen.difference), f"{self.replayed.tolerance:.0e}")
                        if seen
                        else ("0", "-", "")
                    ),
                )
            )
        total, done = sum(sums.steps for sums in self.readded.sums), sum(stage.steps for stage in self.replayed.again)
        said = [f"{self.folder}: {self.replayed.command}", *self.replayed.notes, format_table(rows)]
        if done < total:
            missed = [sums.stage for sums in self.readded.sums if sums.stage not in again]
            said.append(
                f"Recomputed: the first {done} of {total} steps. Weights between steps are not saved, so a step is "
                "reached only through all "
                "before it." + f" Not reached: {', '.join(missed)}." * bool(missed)
            )
        else:
            said.append(f"Recomputed: all {total} steps.")
        for faults in (self.readded.faults, self.replayed.faults):
            said += [f"FAULT {fault}" for fault in faults[:SHOWN]]
            if len(faults) > SHOWN:
                said.append(f"FAULT and {len(faults) - SHOWN} more like these")
        return [
            *said,
            "The run is as it was saved, as far as it was recomputed."
            if self.ok
            else "The run is NOT as it was saved.",
        ]


def _exact(difference: float) -> str:
    return f"{difference:.1e}" if difference else "0"


# ---- what lies in the folder

def run_of(folder: Path) -> tuple[dict, list[dict]]:
    """result.json, with a command and a checkpoint's sha256 in it, and the lines of steps.jsonl. Raises BadInput."""
    for name in ("result.json", "steps.jsonl"):
        if not (folder / name).is_file():
            raise BadInput(f"{folder} holds no {name}: name the --out folder of a run that trains")
    result = _object(f"{folder / 'result.json'}", (folder / "result.json").read_text(encoding="utf-8"))
    command, args = result.get("command"), result.get("args")
    if not (
        isinstance(command, dict)
        and isinstance(command.get("folder"), str)
        and isinstance(command.get("argv"), list)
        and command["argv"]
        and all(isinstance(word, str) for word in command["argv"])
        and isinstance(args, dict)
        and isinstance(args.get("ckpt"), str)
        and isinstance(result.get("sha256"), dict)
    ):
        raise BadInput(
            f"{folder / 'result.json'} does not say how the run was started (command, args, sha256): an older version "
            "wrote it, run the "
            "script once more"
        )
    steps = [_object(f"{folder / 'steps.jsonl'}, line {n}", line)
             for n, line in enumerate((folder / "steps.jsonl").read_text(encoding="utf-8").splitlines(), 1)]
    if not steps:
        raise BadInput(f"{folder / 'steps.jsonl'} is empty: the run has taken no step that could be checked")
    return result, steps


def _object(where: str, text: str) -> dict:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadInput(f"{where} is not JSON ({error}): restore it as the run wrote it") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where} is no JSON object: restore it as the run wrote it")
    return value


def place(line: int, step: dict) -> str:
    return f"steps.jsonl, line {line} ({step.get('stage', 'no stage')}, step {step.get('step', '?')})"


# ---- the terms of a step and its total

def malformed(step: dict) -> str:
    """What a line of steps.jsonl has too much or too little; "" where it has what it must."""
    if missing := [key for key in KEYS if key not in step]:
        return f"it lacks {', '.join(missing)}"
    if not isinstance(step["stage"], str):
        return f"stage is {step['stage']!r}, not a name"
    for key in ("terms", "weights"):
        if not isinstance(step[key], dict) or not step[key]:
            return f"{key} is {step[key]!r}, not what each term is by its name"
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


def readd(steps: Sequence[dict]) -> Readded:
    """Each line's weights x terms beside its total.

    total is the mean over B rows of the sum of T terms, a sum of T x B products in float32; each term is logged as its
    own mean over B. The two are one number but for rounding: B roundings in either mean, T + 2 more in the weights,
    products and sums, each of at most UNIT of what is added, sum |w t| (a loss term has one sign). So the difference is
    at most (2 B + T + 2) UNIT sum |w t|, which is the tolerance.
    """
    sums: dict[str, Sums] = {}
    faults = []
    for line, step in enumerate(steps, 1):
        if said := malformed(step):
            faults.append(Fault(place(line, step), said))
            continue
        parts = [step["weights"][name] * value for name, value in step["terms"].items()]
        added = math.fsum(parts)
        difference = abs(added - step["total"])
        allowed = (2 * step["rows"] + len(parts) + 2) * UNIT * math.fsum(map(abs, parts))
        if not difference <= allowed:
            faults.append(
                Fault(
                    place(line, step),
                    f"weights x terms are {added:.9g} and the total is {step['total']:.9g}, {difference:.2g} apart, "
                    f"where rounding makes at most {allowed:.2g}",
                )
            )
        before = sums.get(step["stage"], Sums(step["stage"], 0, -1.0, 0.0))
        worst = (difference, allowed) if difference > before.difference else (before.difference, before.allowed)
        sums[step["stage"]] = Sums(step["stage"], before.steps + 1, *worst)
    return Readded(tuple(sums.values()), tuple(faults))


# ---- the run once more

class Enough(Exception):
    """The steps that were asked for are done."""


class Beside(list):
    """The log of a run that is repeated: what is appended is held beside the saved line of the same place."""

    def __init__(self, saved: Sequence[dict], upto: int | None, tolerance: float):
        super().__init__()
        self.saved, self.upto, self.tolerance = saved, upto, tolerance
        self.faults: list[Fault] = []
        self.worst: dict[str, float] = {}  # the largest relative difference, by stage

    def append(self, step: dict) -> None:
        """Raises Enough after the last step that was asked for, or where the run has more steps than were saved."""
        step = json.loads(json.dumps(step))  # as a file gives it back
        line = len(self) + 1
        if line > len(self.saved):
            said = f"the run goes on with {step['stage']}, step {step['step']}, and no line is left"
            self.faults.append(Fault(f"steps.jsonl, after line {len(self.saved)}", said))
            raise Enough
        super().append(step)
        largest, said = apart(self.saved[line - 1], step, self.tolerance)
        self.faults += [Fault(place(line, self.saved[line - 1]), each) for each in said]
        stage = self.saved[line - 1]["stage"]
        self.worst[stage] = max(self.worst.get(stage, 0.0), largest)
        if line == self.upto:
            raise Enough


def apart(saved: dict, again: dict, tolerance: float) -> tuple[float, list[str]]:
    """The largest relative difference among terms and total of two lines of one step, and in words what differs more
    than it may."""
    said = [f"{key} is {_short(saved.get(key))} as saved, and {_short(again.get(key))} recomputed"
            for key in {**again, **saved} if key not in ("terms", "total") and saved.get(key) != again.get(key)]
    if saved["terms"].keys() != again["terms"].keys():
        said.append(f"the terms are {', '.join(saved['terms'])} as saved, and {', '.join(again['terms'])} recomputed")
    largest = 0.0
    pairs = [
        (f"the term {name}", saved["terms"][name], again["terms"][name])
        for name in saved["terms"]
        if name in again["terms"]
    ]
    for name, one, other in [*pairs, ("the total", saved["total"], again["total"])]:
        difference = abs(one - other) / max(abs(one), abs(other)) if one != other else 0.0
        largest = max(largest, difference)
        if not difference <= tolerance:
            said.append(
                f"{name} is {one:.9g} as saved, and {other:.9g} recomputed, apart by {difference:.1e} of it, allowed "
                f"{tolerance:.0e}"
            )
    return largest, said


def _short(value: object) -> str:
    said = "not there" if value is None else json.dumps(value)
    return said if len(said) <= 60 else f"{said[:57]}..."


def scores_apart(saved: dict, again: dict, points: float) -> Iterator[str]:
    """CACC and ASR of two result.json that differ by more than `points` of percent, in words."""
    for part in ("before", "after"):
        for kind in ("cacc", "asr"):
            one, other = (
                result[part].get(kind) if isinstance(result.get(part), dict) else None for result in (saved, again)
            )
            if one != other and not (
                isinstance(one, (int, float)) and isinstance(other, (int, float)) and abs(one - other) <= points
            ):
                yield f"{part} {kind} is {_short(one)} as saved, and {_short(other)} recomputed, allowed {points:g} apart"


@contextmanager
def started_as(argv: list[str], folder: Path) -> Iterator[None]:
    """Inside, sys.argv and the working directory are those of a process started so, and what is printed is dropped.
    Afterwards as before."""
    given, here = sys.argv, os.getcwd()
    sys.argv = argv
    os.chdir(folder)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        sys.argv = given
        os.chdir(here)


def run_script(script: Path, argv: list[str], folder: Path, log: Beside) -> None:
    """`script` with the arguments `argv`, started in `folder`, its steps appended to `log`, which may end it by
    raising.

    The script is loaded by its path: the package does not import scripts. Its progress bar goes to stderr as always.
    """
    name = f"minibd_audited_{script.stem}"
    spec = importlib.util.spec_from_file_location(name, script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses looks up the module of a class
    made = NEW_LOG.set(lambda: log)
    try:
        with started_as([str(script), *argv], folder):
            spec.loader.exec_module(module)
            module.run()
    finally:
        NEW_LOG.reset(made)
        del sys.modules[name]


def replay(folder: Path, upto: int | None = UPTO) -> Replayed:
    """The run that `folder` is the result of, started once more and compared with steps.jsonl over `upto` steps; None:
    to its end.

    `folder` and the checkpoint are only read: the result of the repetition goes to a temporary folder, which is
    removed. A checkpoint that is not the one the run began from is a fault, and nothing is run. Raises BadInput where
    the run cannot be started.
    """
    folder = folder.resolve()
    result, steps = run_of(folder)
    if upto is not None and upto < 1:
        raise BadInput(f"{upto} steps to recompute: give at least 1")
    argv, args = result["command"]["argv"], result["args"]
    script = SCRIPTS / Path(argv[0]).name
    if script.suffix != ".py" or not script.is_file():
        raise BadInput(
            f"{folder / 'result.json'} was written by {argv[0]}, and {SCRIPTS} holds no such script: use the version "
            "that has it"
        )
    began = Path(result["command"]["folder"])
    notes = [f"{name} was {result['versions'][name]} and is {now}" for name, now in versions().items()
             if isinstance(result.get("versions"), dict) and result["versions"].get(name, now) != now]
    if not began.is_dir():
        notes.append(f"{began}, where the run was started, is not here: started in {Path.cwd()}")
        began = Path.cwd()
    tolerance = TOLERANCE.get(args.get("dtype"), TOLERANCE["float32"])
    command = f"python {shlex.join(argv)}"
    read, found = result["sha256"], checkpoint.sha256(began / args["ckpt"])
    if any(map(malformed, steps)):
        return Replayed(
            command, tuple(notes), tolerance, (),
            (Fault("steps.jsonl", "a line is not what a line must be: nothing was recomputed"),),
        )
    if changed := [name for name in {**read, **found} if read.get(name) != found.get(name)]:
        faults = [
            Fault(
                args["ckpt"],
                f"{name} has the sha256 {_short(found.get(name))}, and what the run read had {_short(read.get(name))}: "
                "nothing was recomputed",
            )
            for name in changed
        ]
        return Replayed(command, tuple(notes), tolerance, (), tuple(faults))

    log = Beside(steps, upto if upto and upto < len(steps) else None, tolerance)
    with tempfile.TemporaryDirectory(prefix="minibd-audit-") as made:
        try:
            # of two --out, the last counts
            run_script(script, [*argv[1:], "--out", str(Path(made, "out"))], began, log)
        except Enough:
            pass
        except BadInput as error:
            raise BadInput(f"{command} cannot be run again: {error}") from None
        except SystemExit:
            raise BadInput(
                f"{command} is refused by {script.name}: its flags are not those the run was started with"
            ) from None
        else:
            if len(log) < len(steps):
                log.faults.append(Fault(place(len(log) + 1, steps[len(log)]), "the run has ended before this step"))
            else:
                scores = json.loads(Path(made, "out", "result.json").read_text(encoding="utf-8"))
                points = POINTS if any(log.worst.values()) else 0.0
                log.faults += [Fault("result.json", said) for said in scores_apart(result, scores, points)]
    counts = Counter(step["stage"] for step in steps[:len(log)])
    return Replayed(
        command, tuple(notes), tolerance, tuple(Again(name, counts[name], worst) for name, worst in log.worst.items()),
        tuple(log.faults),
    )


def audit_run(folder: Path, upto: int | None = UPTO) -> Audited:
    """`folder`, the --out of a run: its terms added up, and its first `upto` steps recomputed (None: all). Raises
    BadInput."""
    return Audited(folder, readd(run_of(folder)[1]), replay(folder, upto))
