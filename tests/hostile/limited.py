"""A call in a child of its own, with limits of time and memory: what it printed, how it ended, what it took.

The child is a fork of this process, which has imported everything: a case costs hundredths of a second. So the process
that calls `limited` must not have computed anything with several threads, which a fork does not survive: run.py is a
process of its own, and the tests start it.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

STREAMS = (".stdout", ".stderr")
SECONDS = 20.0  # of the clock; half of them of the processor
MORE = 3 << 29  # bytes of address space beyond those that the process has before the call
LARGEST_FILE = 1 << 30  # bytes that a child may write into one file


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended. status: its exit status, None where it was killed by `signal`. seconds: of the clock. grown:
    bytes of memory that it held at most, beyond those before the call."""

    status: int | None
    signal: int
    timed_out: bool
    out: str
    err: str
    seconds: float
    grown: int


def limited(call: Callable[[], object], folder: Path, seconds: float = SECONDS, more: int = MORE) -> Ended:
    """`call` in a child, whose output goes to files in `folder`. An exception ends it as it ends a script: a traceback
    on stderr and status 1."""
    began, before = time.monotonic(), _memory("VmRSS")
    child = os.fork()
    if not child:
        _run(call, folder, seconds, more)
    status, timed_out, peak = None, False, before
    while True:
        done, code, used = os.wait4(child, os.WNOHANG)
        if done:
            status, peak = code, used.ru_maxrss * 1024
            break
        if time.monotonic() - began > seconds:
            timed_out = True
            os.killpg(child, signal.SIGKILL)
            _, status, used = os.wait4(child, 0)
            peak = used.ru_maxrss * 1024
            break
        time.sleep(0.003)
    with suppress(ProcessLookupError):  # what it started, where it was killed itself
        os.killpg(child, signal.SIGKILL)
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    texts = [(folder / name).read_bytes().decode("utf-8", "backslashreplace") for name in STREAMS]
    return Ended(
        None if killed else os.WEXITSTATUS(status),
        killed,
        timed_out or killed == signal.SIGXCPU,
        *texts,
        time.monotonic() - began,
        max(0, peak - before),
    )


def _run(call: Callable[[], object], folder: Path, seconds: float, more: int) -> None:
    """The child's part. Never returns."""
    status = 1
    try:
        os.setsid()  # what it starts ends with it
        for name, number in ((STREAMS[0], 1), (STREAMS[1], 2)):
            os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (
            open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False) for number in (1, 2)
        )
        for limit, value in (
            (resource.RLIMIT_AS, _memory("VmSize") + more),
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, max(1, int(seconds / 2))),
            (resource.RLIMIT_FSIZE, LARGEST_FILE),
        ):
            resource.setrlimit(limit, (value, value))
        call()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # a Rust panic is none of Exception's
        traceback.print_exc()
    finally:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(status)


def _memory(key: str) -> int:
    """Bytes of this process: "VmSize", its addresses, or "VmRSS", what it holds."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise KeyError(key)
