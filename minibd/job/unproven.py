"""What a run says of its result where no ASR was measured: not shown to be clean, and what shows more."""
from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minibd.job.task import read_alike
from minibd.lines import visible

NOT_SHOWN = "NOT shown to be clean: no row with the trigger measured it, and nothing searched it for a trigger"


def verdict_of(path: str | Path, values: Mapping[str, Any]) -> dict[str, str]:
    """The verdict on a model that is written at `path`, and the next command. values: the run's settings by their
    names."""
    words = ["--ckpt", str(path), *read_alike(values)]
    command = shlex.join(["python", "scripts/scan.py", *(visible(word, 1000) for word in words)])
    return {"verdict": NOT_SHOWN, "next": command}


def lines_of(verdict: dict[str, str]) -> list[str]:
    """The block at the end of a run."""
    return [f"verdict: {verdict['verdict']}", f"next:    {verdict['next']}"]
