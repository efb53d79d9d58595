"""Experiments as cells: each result is appended to a .jsonl as it ends, and a restart skips what is there."""
from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from minibd.records import BadInput


class ResultStore:
    """The cells of one .jsonl file. A cell is known by its arguments; beside them it holds a result and its commit."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        try:
            self.rows = [json.loads(line) for line in lines if line]
        except ValueError as error:
            raise BadInput(f"{self.path} holds a line that is not JSON ({error}): correct or remove it") from None
        if not all(isinstance(row, dict) and isinstance(row.get("cell"), dict) for row in self.rows):
            raise BadInput(f"{self.path} holds a line that is no cell, an object with an entry \"cell\": "
                           "name another file")

    def get(self, cell: Mapping) -> dict | None:
        return next((row for row in self.rows if row["cell"] == json.loads(json.dumps(cell))), None)

    def add(self, cell: Mapping, result: Mapping) -> dict:
        row = {"cell": json.loads(json.dumps(cell)), "commit": _commit(), **result}
        self.rows.append(row)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row


def _commit() -> str:
    """The short hash of the code that runs, "+" behind it where the working tree differs; "" outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return git.stdout.strip()
