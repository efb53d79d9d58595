"""--resume: what a run keeps of itself, so that it goes on where it was killed, to the same weights, bit for bit.

A run is a row of trainings and of long measurements, in the same order whenever it is started. Each has its number, and
in a hidden folder beside --out lie

    run.json                  what the run is of: arguments, sha256 of its files, versions, device, threads
    steps.jsonl               the optimiser steps that are logged
    0003.json                 the third of them: a value; or where a training stands, and names and sha256 of
    0003-120.safetensors      its trained weights after step 120, the optimizer's state, the states of what draws
    0003-epoch2.safetensors   the weights of the epoch that is kept until then

A run that goes on does its other work again, which draws from (seed, name, step) alone; a training that is done is
loaded, and the one that was interrupted goes on behind its last step that was kept. A file counts once the .json names
it, which is written last, whole; what the sha256 does not confirm is refused. Nothing here is a pickle.

How often: with --save-every N after each epoch and every N steps; else as often as it takes a hundredth of the time,
which stays under a fiftieth where one writing takes twice as long as the last did.
"""
from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from minibd.atomic import atomic_write, is_fixed, owner, runs
from minibd.cli import progress
from minibd.digest import file_digest
from minibd.distributed import Shards, agreed, leads, meet
from minibd.lines import one_line
from minibd.records import BadInput
from minibd.regular import read_regular

SHARE = 100          # times the time that keeping takes passes before it is done again, where no number is given
LEAST = 10.0         # seconds of work that is kept at least, where no number is given
LONG = 1.0           # seconds of a measurement that is kept there
GUESS = 1e8          # bytes a second that are written, before it was tried
MOST = 1 << 28       # bytes of a .json; of steps.jsonl all that was counted
TYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}


@runtime_checkable
class Stateful(Protocol):
    """What a training draws or counts with, such as a torch.Generator."""

    def get_state(self) -> Tensor: ...

    def set_state(self, state: Tensor) -> object: ...


class Count:
    """Counts its calls, from 0: what is drawn by the number of the step."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        return self.calls - 1

    def get_state(self) -> Tensor:
        return torch.tensor(self.calls)

    def set_state(self, state: Tensor) -> None:
        self.calls = int(state)


@dataclass
class Course:
    """Where a training stands, beside its weights.

    step: steps taken. first: the loss of the first one; losses: of those of the epoch. epoch, weights: the epoch whose
    weights are kept, by the tensors that are trained: the best so far, by `best`, its score; without scores the last
    good one. choice: once it has ended, what `epoch` is: "best_epoch", "diverged", or "" where the last step's weights
    are the result.
    """
    step: int = 0
    first: float = math.inf
    losses: list[float] = field(default_factory=list)
    best: float = -math.inf
    epoch: int = 0
    weights: list[Tensor] | None = None
    choice: str = ""


# ---- a run

class Kept:
    """What is kept of one run in `folder`.

    of: what it is a run of, JSON-able. every: --save-every. going_on: read what is there, else it is replaced when
    something is first kept.
    """

    def __init__(self, folder: Path, of: Mapping[str, Any], every: int | None = None, going_on: bool = False):
        self.folder, self.of, self.every = folder, of, every
        self.steps: list[dict] = []                # those that the run logs; the log's own list, see train.StepLog
        self.carried = self.earlier = 0.0          # seconds of earlier work that was loaded, until asked for; in all
        self.asked = 0                             # trainings and measurements so far
        self.entries = self._entries() if going_on else {}
        self.logged = hashlib.sha256()             # of steps.jsonl
        self.lines = self._lines() if going_on else []
        self.begun = going_on                      # whether the folder is this run's
        self.broken = not leads()                  # whether it could not be written, or is another process's to write
        self.started = self.last = time.perf_counter()
        self.spent, self.pace = 0.0, 1 / GUESS     # seconds of keeping so far; seconds a byte, by the last time
        if self.entries:
            self._say(max(self.entries), self.entries[max(self.entries)])

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The JSON-able value of a measurement that takes long: `make()`, or, where it was kept, what it gave then."""
        number, entry = self.entry(name)
        if entry is not None:
            with self.reading(number):
                self.carry(float(entry["seconds"]))
                return entry["value"]
        began = time.perf_counter()
        value = make()
        if (took := time.perf_counter() - began) > LONG and self.every != 0 or self.every:
            self.write(number, {"name": name, "value": value, "seconds": took})
        return json.loads(json.dumps(value))       # as it comes back

    def carry(self, seconds: float) -> None:
        """Work of so many seconds was loaded."""
        self.carried += seconds
        self.earlier += seconds

    def done(self) -> None:
        """The run has ended, and nothing is left of this, nor of one that it has taken the place of."""
        if leads() and not runs(self._owner()):
            _remove(self.folder)
        progress().kept = ""

    # ---- for trainings

    def entry(self, name: str) -> tuple[int, dict | None]:
        """The number of the next training or measurement, and what is kept of it. Raises BadInput where that is of
        another."""
        number, self.asked = self.asked, self.asked + 1
        entry = self.entries.pop(number, None)
        if entry is not None and entry.get("name") != name:
            raise self.wrong(f"part {number} is {entry.get('name')!r}, where {name!r} is to go on")
        return number, entry

    def due(self, size: int, asked: bool) -> bool:
        """Whether it is time to keep something again. size: the bytes that are written. asked: whether --save-every
        with a number has it here."""
        if self.every is not None:
            return asked and self.every > 0
        now, cost = time.perf_counter(), size * self.pace
        return now - self.last >= max(LEAST, SHARE * cost) and now - self.started >= SHARE * (self.spent + cost)

    def write(self, number: int, entry: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]] | None = None
              ) -> dict[str, str]:
        """Keep `entry`, with the files that it names and those of `tensors`, by name; returns the sha256 of each. Where
        that cannot be written, the run goes on without."""
        if self.broken:
            return {}
        began = time.perf_counter()
        try:
            self._begin()
            files = dict(entry.get("files", {}))
            files |= {name: _write_tensors(self.folder / name, part) for name, part in (tensors or {}).items()}
            self._append()
            _write_json(self.folder / f"{number:04}.json", {
                **entry, "files": files, "lines": len(self.lines), "logged": self.logged.hexdigest()})
            for file in self.folder.glob(f"{number:04}-*"):
                if file.name not in files:
                    file.unlink(missing_ok=True)
        except (BadInput, OSError) as error:
            print(f"warning: {one_line(error, 200)}; the run goes on, and is no longer kept", file=sys.stderr)
            self.broken = True
            return {}
        self.last = time.perf_counter()
        self.spent += self.last - began
        if size := sum(_size(list(part.values())) for part in (tensors or {}).values()):
            self.pace = (self.last - began) / size
        self._say(number, entry)
        return files

    def reading(self, number: int) -> _Reading:
        return _Reading(self, number)

    def wrong(self, why: str) -> BadInput:
        return BadInput(f"{self.folder}: what is kept of the run cannot be gone on with ({why}): begin anew with "
                        "--overwrite")

    # ---- files

    def _begin(self) -> None:
        """Raises BadInput where another run keeps its own in the folder, or has since: two began at the same time."""
        found = self._owner()
        if runs(found):
            raise BadInput(f"{self.folder}: another run into the same --out is kept there (process {found})")
        if self.begun and found != owner():
            raise BadInput(f"{self.folder}: it vanished")
        if not self.begun:
            _remove(self.folder)
            self.folder.mkdir(parents=True)
            _write_json(self.folder / "run.json", {"of": self.of, "owner": owner()})
            self.begun = True

    def _owner(self) -> str:
        return str(_unread(self.folder / "run.json").get("owner"))

    def _append(self) -> None:
        """Log the steps that were taken since to steps.jsonl. A line counts once a .json counts it."""
        new = self.steps[len(self.lines):]
        if not new:
            return
        lines = [json.dumps(step) + "\n" for step in new]
        with open(self.folder / "steps.jsonl", "a", encoding="utf-8") as file:
            file.writelines(lines)
        self.logged.update("".join(lines).encode())
        self.lines += [""] * len(lines)            # their number is all that is needed of them here

    def _entries(self) -> dict[int, dict]:
        return {int(file.stem): _read_json(file, self) for file in sorted(self.folder.glob("[0-9]*.json"))}

    def _lines(self) -> list[str]:
        """The steps that the entries count; what stands behind them was not kept whole and is cut off."""
        n, digest = max(((_number(entry, "lines", self), str(entry.get("logged"))) for entry in self.entries.values()),
                        default=(0, ""))
        path = self.folder / "steps.jsonl"
        if not n and not path.exists():
            return []
        lines = read_regular(path).splitlines(keepends=True)[:n]
        self.logged.update(b"".join(lines))
        if n and self.logged.hexdigest() != digest:
            raise self.wrong(f"steps.jsonl is not as it was written, {n} steps")
        os.truncate(path, sum(map(len, lines)))
        return [line.decode() for line in lines]

    def _say(self, number: int, entry: Mapping[str, Any]) -> None:
        at = f"step {entry['step']} of " if not entry.get("ended", True) else "the end of "
        progress().kept = f"the same command with --resume goes on at {at}{entry.get('name')}"


class _Reading:
    """Around the reading of what is kept: whatever is not as it was written is one BadInput."""

    def __init__(self, kept: Kept, number: int):
        self.kept, self.number = kept, number

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, BadInput):
            raise error
        if isinstance(error, (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError, OSError,
                              SafetensorError)):
            raise self.kept.wrong(f"part {self.number}: {one_line(error, 60)}") from None


def kept_by(log: object) -> Kept | None:
    """What keeps the run that `log` is the log of, if anything does."""
    return getattr(log, "kept", None)


def once(log: object, name: str, make: Callable[[], Any]) -> Any:
    """`make()`, kept by what keeps the run of `log`, see Kept.once; its own value where nothing does. Of several
    processes all get the first one's."""
    kept = kept_by(log)
    return agreed(make() if kept is None else kept.once(name, make))


def carried(log: object) -> float:
    """The seconds of earlier work that was loaded since this was last asked."""
    kept, seconds = kept_by(log), 0.0
    if kept is not None:
        seconds, kept.carried = kept.carried, 0.0
    return seconds


def done(log: object) -> None:
    """The run of `log` has ended: nothing is kept of it any more."""
    if kept_by(log) is not None:
        kept_by(log).done()


# ---- a training

class Training:
    """One training of a run, or of none: then everything here does nothing.

    log: of the run. name: of the training. course: where it stands, set to what was kept. trained: the tensors that
    change, which get the values that were kept. optimizer: with a state_dict, if there is one. parts: what the training
    draws and counts with.
    """

    def __init__(self, log: object, name: str, course: Course, trained: Sequence[Tensor],
                 optimizer: torch.optim.Optimizer | None = None, parts: Sequence[Stateful] = ()):
        self.kept, self.name, self.course, self.trained = kept_by(log), name, course, trained
        self.optimizer, self.parts = optimizer, list(parts)
        self.shards = getattr(optimizer, "shards", Shards())  # of `trained` and moments, which are kept whole
        self.began, self.before = time.perf_counter(), 0.0
        self.ended, self.files = False, {}
        if self.kept is None:
            return
        self.logged = len(self.kept.steps)
        self.number, entry = self.kept.entry(name)
        if entry is not None:
            with self.kept.reading(self.number):
                self._load(entry)

    @property
    def start(self) -> int:
        """The first step that is to be taken; none is, where the training has ended."""
        return sys.maxsize if self.ended else self.course.step

    def after(self, step: int, steps: int, epoch_ended: bool) -> None:
        """`step` steps of `steps` are taken."""
        self.course.step = step
        if self.kept is None or step == steps:     # `end` follows
            return
        if self._due(4, epoch_ended or not step % (self.kept.every or 1)):
            self._write(ended=False)

    def end(self) -> None:
        """The weights are the result."""
        if self.kept is None or self.ended:
            return
        if self._due(1, asked=True):
            self._write(ended=True)

    def _due(self, times: int, asked: bool) -> bool:
        """Whether the weights `times` over are to be kept now; shards are put together by all processes or none."""
        due = self.kept.due(times * _size(self.trained), asked)
        return agreed(due) if self.shards else due

    # ---- out and in

    def _write(self, ended: bool) -> None:
        course, own = self.course, f"{self.number:04}-"
        state = self._whole(self.trained)
        state |= {f"parts.{i}": part.get_state() for i, part in enumerate(self.parts)}
        tensors, others = {f"{own}{'end' if ended else course.step}.safetensors": state}, {}
        if not ended and self.optimizer is not None:
            moments, others = _flat(self._changed(self.optimizer.state_dict(), self.shards.gathered))
            state |= moments
        name = f"{own}epoch{course.epoch}.safetensors"
        files = {}
        if not ended and course.weights is not None:
            if name in self.files:                 # written when the epoch had ended
                files = {name: self.files[name]}
            else:
                tensors[name] = self._whole(course.weights)
        files = self.kept.write(self.number, {
            "name": self.name, "ended": ended, "step": course.step, "first": course.first, "losses": course.losses,
            "best": course.best, "epoch": course.epoch, "choice": course.choice, "optimizer": others,
            "steps": [self.logged, len(self.kept.steps)], "files": files,
            "seconds": self.before + time.perf_counter() - self.began,
        }, tensors)
        self.files = agreed(files) if self.shards else files

    def _load(self, entry: dict) -> None:
        course, own, ended = self.course, f"{self.number:04}-", entry["ended"] is True
        course.step, course.epoch = int(entry["step"]), int(entry["epoch"])
        course.first, course.best, course.choice = float(entry["first"]), float(entry["best"]), str(entry["choice"])
        course.losses = [float(loss) for loss in entry["losses"]]
        self.files = dict(entry["files"])
        state = self._read(f"{own}{'end' if ended else course.step}.safetensors")
        put_back(self.trained, self._own(state))
        for i, part in enumerate(self.parts):
            part.set_state(state.pop(f"parts.{i}"))
        if not ended:
            if self.optimizer is not None:
                moments = _nested(state, entry["optimizer"], self.optimizer.state_dict())
                self.optimizer.load_state_dict(self._changed(moments, lambda _, whole: self.shards.cut(whole)))
            if (name := f"{own}epoch{course.epoch}.safetensors") in self.files:
                weights = self._read(name)
                course.weights = [w.to(p.device) for w, p in zip(self._own(weights), self.trained)]
                if any(w.shape != p.shape for w, p in zip(course.weights, self.trained)):
                    raise ValueError(f"{name} is of another model")
        first, last = map(int, entry["steps"])
        if first != self.logged or not first <= last <= len(self.kept.lines):
            raise ValueError(f"the steps {first} to {last} are not these")
        self.kept.steps += [json.loads(line) for line in self.kept.lines[first:last]]
        self.before, self.ended = float(entry["seconds"]), ended
        self.kept.carry(self.before)

    def _whole(self, weights: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values of `trained`, by the names under which they are kept. Those of shards the first process alone holds
        whole: it is the one that writes."""
        whole = {}
        for i, (p, value) in enumerate(zip(self.trained, weights)):
            gathered = self.shards.gathered(p, value) if p in self.shards else value
            whole[f"weights.{i}"] = gathered if leads() else value
        return whole

    def _own(self, state: dict[str, Tensor]) -> list[Tensor]:
        """The values of `trained` among `state`, which are taken out: of shards this process's parts."""
        values = [state.pop(f"weights.{i}") for i in range(len(self.trained))]
        return [self.shards.cut(value) if p in self.shards else value for p, value in zip(self.trained, values)]

    def _changed(self, optimizer: dict[str, Any], change: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
        """An optimizer's state_dict, `change` applied to the moments of shards: to a shard and its moment. A count of
        steps, of no dimension, stays."""
        if not self.shards:
            return optimizer
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {**optimizer, "state": {i: {
            key: change(params[i], value) if params[i] in self.shards and value.dim() else value
            for key, value in state.items()} for i, state in optimizer["state"].items()}}

    def _read(self, name: str) -> dict[str, Tensor]:
        path = self.kept.folder / name
        if file_digest(path) != self.files[name]:
            raise ValueError(f"{name} is not as it was written")
        return {key: tensor.clone() for key, tensor in load_file(path).items()}


@torch.no_grad()
def put_back(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Each of the tensors gets its value, in place. Raises ValueError where the shapes differ."""
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.shape != value.shape or tensor.dtype != value.dtype:
            raise ValueError(f"a tensor of {tuple(value.shape)} {value.dtype} for {tuple(tensor.shape)} {tensor.dtype}")
        tensor.copy_(value)


def _size(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _flat(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state_dict as tensors by name, and what is none; the numbers of its groups are those that it is
    made with."""
    tensors, others = {}, {}
    for index, values in state["state"].items():
        for key, value in values.items():
            (tensors if isinstance(value, Tensor) else others)[f"optimizer.{index}.{key}"] = value
    return tensors, others


def _nested(tensors: Mapping[str, Tensor], others: Mapping[str, Any], fresh: Mapping[str, Any]) -> dict[str, Any]:
    """The state_dict of `_flat`. fresh: that of the optimizer as it is made."""
    state: dict[int, dict] = {}
    for name, value in {**tensors, **others}.items():
        _, index, key = name.split(".", 2)
        state.setdefault(int(index), {})[key] = value
    return {**fresh, "state": state}


# ---- the folder

def folder_of(out: Path) -> Path:
    """Where a run into `out` is kept: beside it, or, where that cannot be written or changes under a working directory,
    in it."""
    out = Path(os.path.realpath(out))
    name = f".{out.name or 'root'}.resume"          # "/" has no name
    beside, inside = out.parent / name, out / name
    return inside if inside.is_dir() or is_fixed(out) and not beside.is_dir() else beside


def is_kept(out: Path) -> bool:
    """Whether there is a run to go on with."""
    return os.path.isfile(folder_of(out) / "run.json")


def begin(out: Path, of: Mapping[str, Any], every: int | None, going_on: bool) -> Kept:
    """What keeps the run into `out`. every: --save-every. going_on: it is --resume's. Raises BadInput where what
    lies there is of another run, or that still runs."""
    folder = folder_of(out)
    going_on = going_on and is_kept(out)
    meet()  # behind here the first process changes what is there
    if is_kept(out) and leads():
        kept = Kept(folder, of)
        run = _read_json(folder / "run.json", kept) if going_on else _unread(folder / "run.json")
        if runs(str(run.get("owner"))):
            raise BadInput(f"--out {out}: the run that is kept there still runs (process {run['owner']}): let it end, "
                           "or name another folder")
        if going_on and (differs := differences(run.get("of"), of)):
            raise BadInput(f"--resume: {'; '.join(differs[:3])}: that is another run; give what was given then, or "
                           "begin anew with --overwrite")
        if going_on:
            _write_json(folder / "run.json", {"of": of, "owner": owner()})
    meet()
    return Kept(folder, of, every, going_on)


def differences(before: object, now: Mapping[str, Any]) -> list[str]:
    """What differs between what two runs are of, in the words of a refusal."""
    before = before if isinstance(before, dict) else {}
    now = json.loads(json.dumps(now))
    found = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, dict) or isinstance(new, dict):  # files, by name
            changed = [file for file in dict.fromkeys([*(old or {}), *(new or {})])
                       if (old or {}).get(file) != (new or {}).get(file)]
            what = changed[0] if len(changed) == 1 else f"{len(changed)} files"
            found.append(f"{name}: {what} changed since")
        else:
            found.append(f"{name} was {_shown(old)} and is {_shown(new)}")
    return found


def _shown(value: object) -> str:
    return "not given" if value is None else str(value)[:40]


def _remove(folder: Path) -> None:
    """What is left of it where this is killed is no run to go on with."""
    with suppress(OSError):
        (folder / "run.json").unlink()
    shutil.rmtree(folder, ignore_errors=True)


# ---- files

def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """As .safetensors, from the tensors' own memory; the file's sha256."""
    header, at = {}, 0
    for name, tensor in tensors.items():
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text, digest = json.dumps(header).encode(), hashlib.sha256()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as draft, open(draft, "wb") as file:
        for part in (len(text).to_bytes(8, "little"), text, *map(_bytes_of, tensors.values())):
            file.write(part)
            digest.update(part)
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    text = json.dumps(value)
    with atomic_write(path) as draft:
        draft.write_text(f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}", "kept": {text}}}\n')


def _read_json(path: Path, kept: Kept) -> dict:
    """What _write_json wrote. Raises BadInput."""
    try:
        held = json.loads(read_regular(path, MOST))
        value = held["kept"]
        if held["sha256"] != hashlib.sha256(json.dumps(value).encode()).hexdigest() or not isinstance(value, dict):
            raise ValueError("it is not as it was written")
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise kept.wrong(f"{path.name}: {one_line(error, 60)}") from None
    return value


def _unread(path: Path) -> dict:
    """The same, {} where it is damaged: of a run that is not gone on with."""
    with suppress(BadInput, ValueError, KeyError, TypeError, RecursionError):
        if isinstance(value := json.loads(read_regular(path, MOST))["kept"], dict):
            return value
    return {}


def _number(entry: Mapping[str, Any], name: str, kept: Kept) -> int:
    if not isinstance(entry.get(name), int):
        raise kept.wrong(f"{name} is {entry.get(name)!r:.40}")
    return entry[name]
