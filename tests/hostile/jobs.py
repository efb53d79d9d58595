"""What a case's child does with a hostile input: the scripts as a user calls them, and what must hold of what they
accept."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

import hostile_data
from bases import TRIED
from minibd import checkpoint, data
from minibd.cli import main
from minibd.records import Example, Examples

ROOT = Path(__file__).parents[2]
CLOSE = 1e-5  # how far the logits of a copy may lie from the original's, of a scale of 1


def script(name: str) -> ModuleType:
    """A script as a module, once a process."""
    full = f"{name}_script"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, ROOT / "scripts" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


def call(name: str, *words: object) -> None:
    """A script with these words behind it. Ends in SystemExit where it is refused."""
    sys.argv = [str(ROOT / "scripts" / f"{name}.py"), *map(str, words)]
    main(script(name).run)


def logits(ckpt: checkpoint.Checkpoint) -> torch.Tensor:
    rows = Examples((Example(str(i), text, 0, pair) for i, (text, pair) in enumerate(TRIED)), ckpt.labels)
    with torch.no_grad():
        return ckpt.model(ckpt.tokenizer(rows)).logits


def copies(path: Path, folder: Path) -> None:
    """The checkpoint saved as one file and as a folder has the same logits."""
    first = checkpoint.load(path)
    if not first.labels:
        return
    expected = logits(first)
    for name in ("copy.safetensors", "copy"):
        checkpoint.save(first, folder / name)
        found = logits(checkpoint.load(folder / name))
        gap = float((found - expected).abs().max() / expected.abs().max().clamp(min=1))
        assert gap < CLOSE, f"COPY DIFFERS: the logits of {name} by {gap:.3g}"


def evaluate(path: Path, rows: Path, folder: Path) -> None:
    """evaluate.py; then the copies. (Neither the accuracy nor the classes of a hostile checkpoint mean anything.)"""
    main(lambda: call("evaluate", "--ckpt", path, "--data", rows, "--out", folder / "out", "--attack", "none"))
    main(lambda: copies(path, folder))


def read(path: Path, folder: Path) -> None:
    """The rows, read as a script reads them; what is accepted is what an independent reading finds, and is the same
    again when it is written and read."""

    def job() -> None:
        splits = data.read_splits(path, flags=True)
        for note in splits.notes:
            print(note)
        for part in {id(part): part for part in (splits.train, splits.dev, splits.test) if len(part)}.values():
            print(data.counts(part))
            data.write(part, folder / "again.jsonl")
            again = data.read(folder / "again.jsonl", labels=part.labels)
            assert [(x.id, x.text, x.label, x.pair) for x in again] == [
                (x.id, x.text, x.label, x.pair) for x in part
            ], "WRONG ROW: not the same again"
        if path.is_file() and (wanted := hostile_data.texts(path)) is not None:
            rows = data.read(path)
            assert [row.text for row in rows] == wanted, "WRONG ROW: another text"

    main(job)
