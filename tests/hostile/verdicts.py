"""How a case ended, in one word: what is right, and what is a fault of ours."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from limited import Ended

RIGHT = ("accepted", "refused")
LONGEST = 300  # characters of a line
HEAP = 400 << 20  # bytes that a case may hold, beside three times the files that it reads
LISTED = "written: "  # and paths, as long as --out is
PROGRESS = re.compile(r"\d+%\|.*|.*\d(it|step|steps|text|texts|row|rows)?/s(?=[],\s]|$)|.*\[\d\d:\d\d[<,?].*")
WARNING = "(this warning comes once)"  # of texts that are truncated; it may stand before a refusal


@dataclass(frozen=True, slots=True)
class Verdict:
    kind: str  # one of RIGHT, or the name of a fault
    why: str


def judged(ended: Ended, budget: int = HEAP) -> Verdict:
    """A script's end. Right are status 0, 1 or 3 with printable lines, and status 2 with one line."""
    words = f"{ended.out[-2000:]}\n{ended.err[-4000:]}"
    lines = [
        line
        for line in re.split(r"[\n\r]", ended.err)
        if line.strip() and not line.endswith(WARNING) and not (len(line) < 500 and PROGRESS.search(line))
    ]
    if ended.timed_out:
        return Verdict("hang", f"after {ended.seconds:.1f} s: {words[-300:]}")
    if ended.signal:
        return Verdict("abort", f"signal {ended.signal}: {words[-300:]}")
    if ended.status != 2 and re.search(
        r"MemoryError|bad_alloc|not enough memory|Cannot allocate memory|memory allocation of", words
    ):
        return Verdict("memory", words[-400:])
    if "Traceback" in words or "panicked" in words or ended.status not in (0, 1, 2, 3):
        return Verdict("traceback", f"status {ended.status}: {words[-700:]}")
    if ended.grown > budget:
        return Verdict("memory", f"{ended.grown >> 20} MB")
    if ended.status == 2:
        if len(lines) != 1 or not lines[0].startswith("error: "):
            return Verdict("several lines", repr(ended.err[-500:]))
        fault = _fault(lines[0].removeprefix("error: "))
    else:
        fault = next((fault for line in [*ended.out.split("\n"), *lines] if (fault := _fault(line))), "")
    if fault:
        return Verdict(fault, (lines or [ended.out])[0][:500])
    return Verdict("refused" if ended.status == 2 else "accepted", lines[0] if ended.status == 2 else "")


def _fault(line: str) -> str:
    if not line.isprintable():
        return "control characters"
    return "over-long line" if len(line) > LONGEST and not line.startswith(LISTED) else ""


def digest(path: Path) -> str:
    """Of a file or of all below a folder: names, kinds, and the contents of regular files of ordinary size."""
    total = hashlib.sha256()
    for file in sorted([path, *path.rglob("*")]) if path.is_dir() else [path]:
        mode = os.lstat(file)
        total.update(os.fsencode(file.relative_to(path)) + stat.filemode(mode.st_mode).encode())
        if stat.S_ISREG(mode.st_mode):
            total.update(str(mode.st_size).encode())
            if mode.st_blocks * 512 < 1 << 24 and mode.st_size < 1 << 24:
                total.update(file.read_bytes())
    return total.hexdigest()
