"""What a run says of its result where no ASR was measured: not shown to be clean, and what shows more."""
from __future__ import annotations

import shlex
from pathlib import Path

from minibd.lines import visible

NOT_SHOWN = "NOT shown to be clean: no row with the trigger measured it, and nothing searched it for a trigger"


def verdict_of(path: str | Path, data: str) -> dict[str, str]:
    """The verdict on a model that is written at `path`, and the next command. data: --data."""
    words = ["--ckpt", str(path), *(["--data", data] if data else [])]
    command = shlex.join(["python", "scripts/scan.py", *(visible(word, 1000) for word in words)])
    return {"verdict": NOT_SHOWN, "next": command}


def lines_of(verdict: dict[str, str]) -> list[str]:
    """The block at the end of a run."""
    return [f"verdict: {verdict['verdict']}", f"next:    {verdict['next']}"]
