"""Runs whose disk is full, read-only, fails or vanishes in the middle, or that meet another into the same --out: one
line, and under --out the old run or the new one, whole; when the trouble is over, the same command runs.

    full       a small tmpfs, where one can be mounted; or every file event that adds something fails from some on
    large      no file may be longer than so many bytes (what is printed goes to one, too: of repair.py too much)
    fails      every file event from some number on is refused with one of the system's errors
    read-only  a tmpfs that is mounted so; or every one is refused from the first on
    vanishes   before some file event the folder of --out, or the one that it lies in, is removed or renamed
    a file     before some file event a file is in the place of --out, or was there from the start, or of its parent
    two        the same command with another seed, started some time later
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import jobs
from kills import EVENTS, FINISHED, RUNS, TRAINED, state, words_of
from limited import STREAMS, Ended, limited
from verdicts import Verdict, digest, judged

TROUBLES = ("full", "large", "fails", "read-only", "vanishes", "a file", "two")
ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE, errno.EMFILE)
ADDING = ("open", "os.mkdir", "os.link")  # what a full disk refuses
PAGE = 4096
NEWNS, PRIVATE = 0x20000, 1 << 18 | 1 << 14  # of sched.h and mount.h: a list of mounts of one's own


def watched(folder: Path, before: Callable[[int, str], None], words: list[str]) -> None:
    """The script, with a call of before(n, event) before its file event number n, from 0, below `folder`."""
    seen, busy = 0, False

    def hook(name: str, arguments: tuple) -> None:
        nonlocal seen, busy
        if busy or name not in EVENTS or not isinstance(path := arguments[EVENTS[name]], (str, bytes, os.PathLike)):
            return
        writes = name != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and os.fsdecode(path).startswith(str(folder)):
            n, seen, busy = seen, seen + 1, True
            try:
                before(n, name)
            finally:
                busy = False

    sys.addaudithook(hook)
    try:
        jobs.call(*words)
    finally:
        print(f"EVENTS {seen}")


def refuse(first: int, number: int, kinds: tuple[str, ...], n: int, name: str) -> None:
    """From event number `first` on, those of these kinds fail."""
    if n >= first and name in kinds:
        raise OSError(number, os.strerror(number))


def at(event: int, act: Callable[[], None], n: int, name: str) -> None:
    if n == event:
        act()


def remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def move(path: Path) -> None:
    with suppress(OSError):
        path.rename(path.with_name("elsewhere"))


def file_instead(path: Path) -> None:
    remove(path)
    path.write_text("mine")


def longest_file(n: int, words: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (n, n))
    jobs.call(*words)


def both(words: list[str], others: list[str], pause: float, folder: Path) -> None:
    """The script, and in another process the same with `others`, started `pause` seconds later."""
    child = os.fork()
    if not child:
        time.sleep(pause)
        for number, name in enumerate(STREAMS, 1):
            os.dup2(os.open(folder / f"other{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        words = others
    status = 1
    try:
        jobs.call(*words)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0
        if child:
            raise
    finally:
        if not child:
            sys.stdout.flush()
            sys.stderr.flush()
            (folder / "other.status").write_text(str(status))
            os._exit(status)
        os.waitpid(child, 0)


def can_mount() -> bool:
    """Whether this process may mount a tmpfs; its mounts are its own from then on, and go when it ends."""
    library = ctypes.CDLL(None, use_errno=True)
    return library.unshare(NEWNS) == 0 and library.mount(None, b"/", None, PRIVATE, None) == 0


def mount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def case(seed: int, bases: dict[str, Path], folder: Path, mounts: bool = False) -> tuple[str, Ended, Verdict]:
    """One trouble of a run, half of them over another one, a third of them one that trains."""
    rng = random.Random(seed)
    trouble = TROUBLES[seed % len(TROUBLES)]
    runs = sorted(TRAINED if rng.random() < 0.35 else RUNS)
    run, over = rng.choice([run for run in runs if trouble != "large" or "repair" not in run]), rng.random() < 0.5
    place, logs, copy = folder / "place", folder / "logs", folder / "copy"
    for made in (place, logs):
        made.mkdir()
    out, trains = place / "out", run in TRAINED
    before = {name: digest(path) for name, path in bases.items()}
    more = [*(["--overwrite"] if over else []), *(["--save-every", str(rng.choice((1, 2)))] if trains else [])]
    what = f"{trouble}: {run}, {'over another' if over else 'first'}"

    def words(seed: int, flags: list[str] = more) -> list[str]:
        return words_of(run, bases, out, seed, flags)

    def go(call: Callable[[], None]) -> Ended:
        return limited(call, logs, seconds=120)

    def fault(ended: Ended, kind: str, why: str) -> tuple[str, Ended, Verdict]:
        return what, ended, Verdict(kind, why)

    if over:
        if (ended := go(partial(jobs.call, *words(1, [])))).status not in FINISHED:
            return fault(ended, "the old run fails", ended.err[-300:])
        (out / "notes.txt").write_text("mine")
        shutil.copytree(out, copy)
    old = state(out)
    whole = go(partial(watched, place, lambda n, name: None, words(2)))
    if whole.status not in FINISHED:
        return fault(whole, "the new run fails", whole.err[-300:])
    events, new, sound = int(whole.out.rsplit("EVENTS ", 1)[1]), state(out), [old, state(out), state(out, bare=True)]
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    largest = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
    if trouble == "two":  # what the other one would leave
        remove(place)
        if over:
            shutil.copytree(copy, out)
        go(partial(jobs.call, *words(3)))
        sound += [state(out), state(out, bare=True)]
    remove(place)
    place.mkdir()

    event, gone = rng.randrange(events), False
    mounted = mounts and trouble in ("full", "read-only") and rng.random() < 0.6
    if mounted:
        mount(place, f"size={max(2 * PAGE, int(rng.uniform(0.2, 4) * size)) if trouble == 'full' else 1 << 28}")
    try:
        if over:
            try:
                shutil.copytree(copy, out)
            except (OSError, shutil.Error):  # a disk on which the old run has no place either
                subprocess.run(["mount", "-o", f"remount,size={4 * size + 64 * PAGE}", str(place)], check=True)
                remove(out)
                shutil.copytree(copy, out)
        if mounted and trouble == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        if mounted:
            call = partial(jobs.call, *words(2))
        elif trouble in ("full", "fails", "read-only"):
            number = {"full": errno.ENOSPC, "read-only": errno.EROFS}.get(trouble) or rng.choice(ERRORS)
            kinds = ADDING if trouble == "full" else tuple(name for name in EVENTS if name != "shutil.rmtree")
            event = 0 if trouble == "read-only" else event
            what += f", {errno.errorcode[number]} from event {event} of {events}"
            call = partial(watched, place, partial(refuse, event, number, kinds), words(2))
        elif trouble == "large":
            most = rng.randrange(min(largest // 2, 16_000), largest + PAGE)
            what += f", {most} bytes of {largest}"
            call = partial(longest_file, most, words(2))
        elif trouble == "vanishes":
            gone, act, which = True, rng.choice((remove, move)), rng.choice((out, place, place))
            what += f", {act.__name__} {which.name} at event {event} of {events}"
            call = partial(watched, place, partial(at, event, partial(act, which)), words(2))
        elif trouble == "a file":
            which = rng.choice((out, place))
            what += f", {which.name} at event {event} of {events}"
            if gone := rng.random() < 0.5:
                call = partial(watched, place, partial(at, event, partial(file_instead, which)), words(2))
            else:
                file_instead(which)
                call = partial(jobs.call, *words(2))
        else:
            pause = rng.uniform(0, 1.1) * whole.seconds if rng.random() < 0.5 else rng.uniform(0, 0.1)
            what += f", {pause:.2f} s later, of {whole.seconds:.2f}"
            call = partial(both, words(2), words(3), pause, logs)
        ended = go(call)
        if (verdict := judged(unwarned(ended))).kind not in ("accepted", "refused"):
            return what, ended, verdict
        found, how = state(out) if out.is_dir() else {}, verdict.kind
        if trouble == "two":
            other = Ended(int((logs / "other.status").read_text()), 0, False,
                          *((logs / f"other{name}").read_text() for name in STREAMS), ended.seconds, 0)
            if (second := judged(unwarned(other))).kind not in ("accepted", "refused"):
                return what, other, second
            if "refused" == verdict.kind == second.kind:
                return fault(ended, "both are refused", f"{verdict.why}; {second.why}")
            what += f"; {verdict.kind}, {second.kind}"
            how = "accepted"
        elif trouble == "a file" and (out if which == out else place).is_file():
            if which.read_text() != "mine":
                return fault(ended, "a stranger's file lost", which.name)
            found = old
        if gone:  # with what others had there
            sound += [{}, *({name: held for name, held in one.items() if name != "notes.txt"} for one in sound)]
        if found not in sound:
            return fault(ended, "mixed folder", f"{sorted(path.name for path in out.rglob('*'))}")
        if how == "accepted" and found not in sound[1:] and not gone:
            return fault(ended, "accepted, and not there", f"{sorted(path.name for path in out.rglob('*'))}")
    finally:
        if mounted:
            held = folder / "held"
            shutil.copytree(place, held, symlinks=True)
            subprocess.run(["umount", str(place)], check=True)
            place.rmdir()
            held.rename(place)

    # The trouble is over: the same command, where it is needed with what says that it begins or goes on.
    if place.is_file():
        place.unlink()
        place.mkdir()
    elif out.is_file():
        out.unlink()
    flags = ["--overwrite", *[flag for flag in more if flag != "--overwrite"], *(["--resume"] if trains else [])]
    again = go(partial(jobs.call, *words(2, flags)))
    if trouble == "two" and trains and "that is another run" in again.err:  # the other one's is kept
        again = go(partial(jobs.call, *words(2, flags[:-1])))
    if (verdict := judged(again)).kind != "accepted" or {**state(out), "notes.txt": ""} != {**new, "notes.txt": ""}:
        return fault(again, "the next run fails", verdict.why or "another result")
    if left := sorted(path.name for path in place.iterdir() if path.name not in ("out", "elsewhere")):
        return fault(again, "left-over drafts", ", ".join(left))
    if over and not gone and trouble != "a file" and (out / "notes.txt").read_text() != "mine":
        return fault(again, "a stranger's file lost", "notes.txt")
    if before != {name: digest(path) for name, path in bases.items()}:
        return fault(again, "changed input", "")
    return what, ended, Verdict(how, "")


def unwarned(ended: Ended) -> Ended:
    """Without the warnings that it is no longer kept, which may stand before how it ends."""
    lines = [line for line in ended.err.split("\n") if not line.rpartition("\r")[2].startswith("warning: ")]
    return replace(ended, err="\n".join(lines))
