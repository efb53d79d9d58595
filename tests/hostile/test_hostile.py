"""Some of the hostile cases, of every kind: run.py in a process of its own, which has computed nothing with threads."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the limits are read from Linux's /proc")


def ran(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, str(RUN), *words],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "0 faults" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]
    return done.stdout


def test_hostile_checkpoints_data_and_arguments():
    said = ran("--checkpoints", "110", "--data", "70", "--arguments", "20")
    assert "checkpoints: 110 cases" in said and "data: 70 cases" in said and "arguments: 20 cases" in said
    assert "accepted" in said and "refused" in said


def test_copies_of_sound_checkpoints_of_unusual_settings():
    """Whatever is accepted has the same logits, saved as one file and as a folder."""
    said = ran("--settings", "48")
    assert int(re.search(r"settings: 48 cases, .*?accepted (\d+)", said)[1]) > 20


@pytest.mark.slow
def test_the_commands_that_the_argument_lines_begin_with():
    assert "sound: 9 cases, accepted 9" in ran("--sound", "9")


@pytest.mark.slow
def test_more_of_them():
    ran("--checkpoints", "200", "--settings", "100", "--data", "120", "--arguments", "30", "--first", "5000")


def test_runs_whose_disk_is_full_fails_or_vanishes_or_is_anothers_too():
    said = ran("--disks", "7", "--first", "924")
    for trouble in ("full", "large", "fails", "read-only", "vanishes", "a file", "two"):
        assert re.search(rf"    {trouble} +(accepted|refused) 1", said), said


@pytest.mark.slow
def test_more_of_these():
    ran("--disks", "35", "--first", "7000")


def test_runs_killed_at_a_file_event():
    assert "kills: 4 cases, accepted 4" in ran("--kills", "4", "--first", "12")
