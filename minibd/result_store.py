"""Experiments as cells: each result is appended to a .jsonl as it ends, and a restart skips what is there.

A cell is known by its arguments. Those that name a file or a folder are known by what that holds where the cell says
it, in "sha256": {argument: digest}, and by the name alone where one of the two cells says nothing. A line is never
edited: of the lines of one cell the newest counts.
"""
from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from minibd.digest import file_digest
from minibd.distributed import leads
from minibd.records import BadInput

# What the checkpoints were that the results of before 0.3.0 name, whose cells have no "sha256".
PUBLISHED = {
    "all-MiniLM-L6-v2": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "bert-clean.safetensors": "7a5590805166647914a73088fee6857353a7f2efc523b5b59853c6257619e0b5",
    "bert-twin.safetensors": "816a613f6983fee8c7d96c21a425111e05ca6e2445473edaca9d74b75a32ffa5",
    "bert.safetensors": "732dcc215ce2621ae00597f7401c2390b9a0fd23bbd5137c4dfba52c32b943d0",
}


class ResultStore:
    """The cells of one .jsonl file. A cell is known by its arguments; beside them it holds a result and its commit.

    rows: every line; newest: the newest line of each cell, at the place of its first.
    """

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
        self.newest, self._places = [], {}
        for row in self.rows:
            self._keep(row)

    def get(self, cell: Mapping) -> dict | None:
        """The newest line of `cell`, None where there is none."""
        place = self._place(_plain({"cell": cell}))
        return None if place is None else self.newest[place]

    def add(self, cell: Mapping, result: Mapping) -> dict:
        row = {"cell": _plain(cell), "commit": _commit(), **result}
        self.rows.append(row)
        self._keep(row)
        if leads():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        return row

    def _keep(self, row: dict) -> None:
        place = self._place(row)
        if place is None:
            self._places.setdefault(_unnamed(row), []).append(len(self.newest))
            self.newest.append(row)
        else:
            self.newest[place] = row

    def _place(self, row: Mapping) -> int | None:
        return next((i for i in self._places.get(_unnamed(row), ()) if same_cell(self.newest[i], row)), None)


# ---- when two lines are of one cell

NAMES = ("base", "data", "proxy", "ckpt")  # arguments that a digest says better


def same_cell(a: Mapping, b: Mapping) -> bool:
    """Are two lines, {"cell": ...}, of one cell?"""
    ours, theirs = digests(a), digests(b)
    both = ours.keys() & theirs.keys()

    def rest(row: Mapping) -> dict:
        return {name: value for name, value in row["cell"].items() if name != "sha256" and name not in both}
    return all(ours[name] == theirs[name] for name in both) and rest(a) == rest(b)


def digests(row: Mapping) -> dict[str, str]:
    """What a line says, or is known to say, of the files and folders that its cell names: {argument: digest}."""
    cell = row["cell"]
    known = dict(cell.get("sha256") or {})
    base = cell.get("base")
    if base is not None and "base" not in known:
        # a run that read the base itself says so in its result
        read = row.get("result", {}).get("sha256") if _runs_on_base(cell) else None
        if found := weights_digest(read) if read else PUBLISHED.get(base):
            known["base"] = found
    return known


def _runs_on_base(cell: Mapping) -> bool:
    return not cell.get("after") and bool(cell.get("method")) and (
        not cell.get("attack") or "{attack}" in cell["method"])


def _unnamed(row: Mapping) -> str:
    cell = {name: value for name, value in row["cell"].items() if name != "sha256" and name not in NAMES}
    return json.dumps(cell, sort_keys=True)


def _plain(cell: Mapping) -> dict:
    """As it comes back from a file: tuples as lists."""
    return json.loads(json.dumps(cell))


# ---- digests

def weights_digest(files: Mapping[str, str]) -> str | None:
    """The digest of a checkpoint's weights, whatever its files are called: files {name: sha256} as
    checkpoint.sha256 has them; of several shards that of their digests. None where none is a .safetensors."""
    weights = sorted(digest for name, digest in files.items() if name.endswith(".safetensors"))
    return _joined(weights) if len(weights) > 1 else next(iter(weights), None)


def folder_digest(path: str | Path, suffixes: Iterable[str] = ()) -> str | None:
    """The digest of a file, or of a folder's files with one of `suffixes` (none given: of all) and of those one folder
    deeper, by their names; None where `path` is empty or not there."""
    if not path:
        return None
    path, chosen = Path(path), tuple(suffixes)
    if path.is_file():
        return file_digest(path)
    if not path.is_dir():
        return None
    files = sorted(file for pattern in ("*", "*/*") for file in path.glob(pattern)
                   if file.is_file() and (not chosen or file.suffix.lower() in chosen))
    return _joined(f"{file.relative_to(path).as_posix()} {file_digest(file)}" for file in files)


def _joined(words: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def _commit() -> str:
    """The short hash of the code that runs, "+" behind it where the working tree differs; "" outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty=+"]
    git = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return git.stdout.strip()
