"""What judges the hostile cases: that it sees every fault, on ends that are made up; that a child is limited."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from limited import Ended
from verdicts import digest, judged

LINE = "error: FILE holds nothing: give another\n"


def end(status: int | None = 2, out: str = "", err: str = LINE, signal: int = 0, late: bool = False, grown: int = 0):
    return Ended(status, signal, late, out, err, 1.0, grown)


@pytest.mark.parametrize(
    "ended, kind",
    [
        (end(), "refused"),
        (end(0, "all is well\n", ""), "accepted"),
        (end(err="reading 10%|#  | 1/9 [00:01<00:09, 3.0it/s]\n" + LINE), "refused"),
        (end(err="error: FOLDER-6/settings-61/ckpt holds nothing: give another\n"), "refused"),
        (end(None, late=True), "hang"),
        (end(None, signal=6), "abort"),
        (end(1, err="Traceback (most recent call last):\n  File\nKeyError: 1\n"), "traceback"),
        (end(1, err="Traceback (most recent call last):\nMemoryError\n"), "memory"),
        (end(0, "fine\n", "", grown=1 << 40), "memory"),
        (end(err=LINE + LINE), "several lines"),
        (end(err="no such file\n"), "several lines"),
        (end(err=f"error: {'x' * 301}\n"), "over-long line"),
        (end(0, f"next: {'x' * 301}\n", ""), "over-long line"),
        (end(0, f"written: {'x' * 301}\n", ""), "accepted"),
        (end(err="error: a\x1b[31mb\n"), "control characters"),
        (end(0, "a\u202eb\n", ""), "control characters"),
        (end(1, err="AssertionError: COPY DIFFERS"), "traceback"),
        (end(5, err=""), "traceback"),
    ],
)
def test_every_fault_is_seen(ended, kind):
    found = judged(ended)
    assert found.kind == kind or kind == "traceback" and ended.status == 1 and "COPY" in ended.err


def test_a_changed_input_is_seen(tmp_path):
    (tmp_path / "a").write_text("1")
    before = digest(tmp_path)
    assert digest(tmp_path) == before
    (tmp_path / "a").write_text("2")
    assert digest(tmp_path) != before
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").mkdir()
    assert digest(tmp_path) != before


CHILD = """
import sys, time
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from limited import limited
calls = {"sleeps": partial(time.sleep, 60), "fills": lambda: bytearray(1 << 32), "ends": lambda: print("well"),
         "exits": partial(sys.exit, 2), "fails": lambda: 1 / 0}
for name, call in calls.items():
    e = limited(call, Path(sys.argv[2]), seconds=1.0, more=1 << 28)
    print(name, e.status, e.timed_out, e.signal, e.out.strip(), e.err.strip().splitlines()[-1:])
"""


def test_a_child_is_limited(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        "sleeps None True 9  []",
        "fills 1 False 0  ['MemoryError']",
        "ends 0 False 0 well []",
        "exits 2 False 0  []",
        "fails 1 False 0  ['ZeroDivisionError: division by zero']",
    ], done.stderr
