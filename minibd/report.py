"""What a script leaves behind: the table on the screen, result.json and steps.jsonl."""
from __future__ import annotations

import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType

from minibd import __version__
from minibd.atomic import atomic_folder, atomic_write
from minibd.checkpoint.folder import is_model_file
from minibd.cli import Resuming, progress
from minibd.distributed import agreed, leads, meet
from minibd.evaluate import Scores
from minibd.lines import one_line, quoted, visible
from minibd.records import BadInput
from minibd.resume import is_kept


@dataclass(frozen=True, slots=True)
class Step:
    """One row of the table: a model's name, its scores, and the seconds it took to train."""
    name: str
    scores: Scores
    seconds: float


def table(steps: Sequence[Step]) -> str:
    """Steps as aligned columns: CACC and ASR in percent, their counts and Wilson 95 % intervals, seconds."""
    rows = [("", "CACC", "", "95 %", "ASR", "", "95 %", "seconds")]
    for step in steps:
        cells = [step.name]
        for share in (step.scores.cacc, step.scores.asr):
            cells += (
                [f"{share.percent:.2f}", f"{share.hits}/{share.n}", "{:.1f}-{:.1f}".format(*share.interval)]
                if share
                else ["-", "", ""]
            )
        rows.append((*cells, f"{step.seconds:.1f}"))
    return format_table(rows)


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column flush left, the others flush right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        " ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w + 1) for i, (cell, w) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    )


def lfr_table(steps: Sequence[Step]) -> str:
    """LFR of each step in percent with its counts, one line for each class of the triggered rows; "" if there is one
    class, since that is the ASR."""
    classes = list(steps[0].scores.lfr)
    if len(classes) < 2:
        return ""
    return format_table(
        [
            ("LFR", *(step.name for step in steps)),
            *(
                (visible(c, 30), *(f"{s.percent:.2f} {s.hits}/{s.n}" for s in (step.scores.lfr[c] for step in steps)))
                for c in classes
            ),
        ]
    )


def output_folder(path: str | Path, *inputs: str | Path) -> Path:
    """`path` as a folder that can be written and is none of the run's inputs, checked before any work is done; nothing
    is left behind. Raises BadInput."""
    folder = Path(path)
    for source in (Path(os.path.realpath(i)) for i in inputs if i):
        if Path(os.path.realpath(folder)) == (source.parent if os.path.isfile(source) else source):
            raise BadInput(f"--out {folder} would write over or beside the input {source}: give another folder")
    _check_writable(folder, f"--out {folder}")
    return folder


def output_file(path: str | Path, flag: str, *inputs: str | Path) -> Path:
    """`path`, the value of `flag`, as a file that can be written and is none of the run's inputs nor in a folder of
    them, checked before any work is done; nothing is left behind. Raises BadInput."""
    file = Path(path)
    if os.path.isdir(file):
        raise BadInput(f"{flag} {file} is a folder: name a file, such as {file / 'scan'}.{flag.lstrip('-')}")
    for source in (Path(os.path.realpath(i)) for i in inputs if i):
        if source in (real := Path(os.path.realpath(file)), *real.parents):
            raise BadInput(f"{flag} {file} would write over or into the input {source}: name another place")
    _check_writable(file.parent, f"{flag} {file}")
    return file


# What a run leaves in its folder, beside the files of a model; the folders of attack.py's other models.
RUN_FILES = re.compile(r"(result|attack|scan|receipt)\.json|receipt\.html|steps\.jsonl|curves-[\w-]+\.json|"
                       r"poisoned_ids\.txt|(poisoned|triggered\w*)\.jsonl|clean|twin|(clean-|twin-)?[^/]+\.safetensors")


def is_run_file(name: str) -> bool:
    """Whether an entry of a folder is a part of the run in it, and goes where another takes its place."""
    return RUN_FILES.fullmatch(name) is not None or is_model_file(name)


def check_free(
    folder: Path, overwrite: bool = False, said: str = "--out", resuming: Resuming | None = None,
    among: Sequence[str] = (),
) -> None:
    """Raises BadInput where `folder`, the --out of a run (or what it is `said` by), holds another, or one that was
    interrupted is kept for it, and neither --overwrite nor --resume is said. resuming: of a run that can be gone on
    with. among: the names that the run writes, where they are always the same, and others stay."""
    if resuming is not None and is_kept(folder):
        if resuming.resume or overwrite:
            return
        raise BadInput(f"{said} {folder}: a run into it was interrupted, and is kept: say --resume to go on with it, "
                       "or --overwrite to begin anew")
    held = _held(folder, among)
    if held and not overwrite:
        raise BadInput(f"{said} {folder} holds another run ({quoted(held)}): name another folder, or say --overwrite "
                       f"to put this one in its place")
    if not overwrite:
        progress().free[os.path.realpath(folder)] = tuple(among)


def _held(folder: Path, among: Sequence[str]) -> list[str]:
    """The entries of a folder that are a run's; those `among` some names, if there are any."""
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    return [name for name in names if (name in among if among else is_run_file(name))]


@contextmanager
def whole(out: Path, is_old: Callable[[str], bool] = is_run_file) -> Iterator[Path]:
    """The folder to write a run into: when the block ends, all that was written there takes the place of the run in
    `out` in one step; what else lies there stays. is_old: whether an entry of that name is a part of what goes. Of
    several processes the first one makes it and writes there, and all read. Raises BadInput where the system
    refuses, and where `out` was found free (`check_free`) and another run is in it by now."""
    written, place = progress().written, os.path.realpath(out)
    before, done = list(written), False
    if not leads():
        yield Path(agreed(""))
        meet()  # all have read what is there before it moves
        meet()
        return
    try:
        with atomic_folder(out, is_old) as draft:
            yield Path(agreed(str(draft)))
            if place in progress().free and (held := _held(out, progress().free[place])):
                raise BadInput(f"--out {out}: another run was put there while this one ran ({quoted(held)}): "
                               "--overwrite puts this one in its place, with --resume from where it is kept")
            meet()
        meet()
        done = True
        progress().free.pop(place, None)    # what lies there now is this run's
    finally:
        new = [str(out / Path(name).relative_to(draft)) for name in written[len(before):]] if done else []
        written[:] = before + new


def _check_writable(folder: Path, said: str) -> None:
    if not leads():
        meet()  # the first process makes folders and takes them away: nobody else is to look meanwhile
        return
    missing = [f for f in (folder, *folder.parents) if not os.path.lexists(f)]  # deepest first
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # on Linux without a name, so that a kill leaves nothing
            pass
    except (OSError, ValueError) as error:  # ValueError: a name that no folder can have
        raise BadInput(f"cannot write to {said} ({one_line(error)}): give a folder you may write to") from None
    finally:
        for created in missing:
            with suppress(OSError, ValueError):  # it was not made, or another run uses it by now
                created.rmdir()
    meet()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; of several processes the first one does."""
    if leads():
        with atomic_write(path) as draft:
            draft.write_text(text, encoding="utf-8")
    progress().written.append(str(path))


def write_json(path: Path, value: object) -> None:
    """As UTF-8; with every letter beyond ASCII escaped where a word from a file or a path holds half a character."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        text = json.dumps(value, indent=2)
    write_text(path, text + "\n")


def write_lines(path: Path, values: Iterable[object]) -> None:
    write_text(path, "".join(json.dumps(value) + "\n" for value in values))


def result(
    method: str, args: dict, rows: dict[str, int], steps: Sequence[Step], *, after: Step, seconds: float,
    sha256: dict[str, str], outcome: Mapping[str, object] = MappingProxyType({}),
    output_sha256: dict[str, str] | None = None,
) -> dict:
    """result.json. Scores are in percent, 0..100; asr is None where it was not measured.

    before: the first step, the victim if it has a classifier. outcome: what the method chose, as args is what it was
    given. sha256: of each file of --ckpt. output_sha256: of each file of the checkpoint
    under --out; None if there is none.
    """
    return {
        "method": method, "args": args, "outcome": dict(outcome), "versions": versions(), "rows": rows,
        "before": scores(steps[0].scores), "after": scores(after.scores), "steps": listed(steps),
        "seconds": round(seconds, 2), "command": command(), "sha256": sha256, "output_sha256": output_sha256,
    }


def choice(name: str, outcome: Mapping[str, object]) -> str:
    """The line that says what a method chose, once `name` completes what it needs of `outcome`; "" before, and where
    nothing was searched."""
    if name in ("rho", "trials") and outcome.get("trials") and "rho" in outcome:
        trials = ", ".join(f"rho {trial['rho']:g} {trial['accuracy']:.1f} %" for trial in outcome["trials"])
        return f"on validation: {trials}; kept: rho {outcome['rho']:g}"
    if name in ("augmenter", "losses") and {"augmenter", "losses"} <= outcome.keys():
        losses = ", ".join(f"{augmenter} {loss:.4f}" for augmenter, loss in outcome["losses"].items())
        return f"auto: {outcome['augmenter']}, by the victim's mean cross-entropy: {losses}"
    return ""


def command() -> dict:
    """How this process was started, so that it can be started again: argv, its script by its name under scripts/, and
    the working directory."""
    return {"argv": [f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]], "folder": os.getcwd()}


def listed(steps: Sequence[Step]) -> list[dict]:
    """The steps as result.json and attack.json hold them."""
    return [{"name": step.name, "seconds": round(step.seconds, 2), **scores(step.scores)} for step in steps]


def scores(s: Scores) -> dict:
    """Scores as result.json holds them; lfr is there if the triggered rows are of several classes: of one it is the
    ASR."""
    by_class = {
        "lfr": {c: share.percent for c, share in s.lfr.items()},
        "n_by_class": {c: share.n for c, share in s.lfr.items()},
    }
    return {"cacc": s.cacc.percent, "asr": s.asr and s.asr.percent,
            "n_clean": s.cacc.n, "n_triggered": s.asr.n if s.asr else 0, **(by_class if len(s.lfr) > 1 else {})}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "minibd": __version__,
            **{name: version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")}}
