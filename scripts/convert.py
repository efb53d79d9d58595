#!/usr/bin/env python3
"""Between a pickle, a Hugging Face folder and one .safetensors, of any architecture that minibd knows.

    python scripts/convert.py pytorch_model.bin OUT.safetensors     a pickle, config.json and tokenizer beside it -> one file
    python scripts/convert.py FOLDER OUT.safetensors                a Hugging Face folder, of pickles or not -> one file
    python scripts/convert.py FILE.safetensors OUT                  one file -> a Hugging Face folder
    python scripts/convert.py FOLDER OUT --dtype bfloat16           half the bytes

A pickle is opened by torch.load(weights_only=True), in a process of its own, and by nothing else: that makes tensors
and runs no code of the file's.
"""
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minibd.cli import main

DTYPES = ("float32", "float16", "bfloat16")
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")
BESIDE = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer.model", "minibd.json",
)


def pickles(path: Path) -> list[Path]:
    """The pickles that `path` is, or holds where it holds no safetensors."""
    from minibd import checkpoint
    if not path.is_dir():
        return [path] if path.suffix.lower() in checkpoint.PICKLES else []
    if any(path.glob("model*.safetensors")):
        return []
    return next((found for pattern in PICKLED if (found := sorted(path.glob(pattern)))), [])


def unpickle(files: list[Path], folder: Path) -> None:
    """The tensors of `files` into `folder` as safetensors, with the config and tokenizer that lie beside them."""
    from minibd.records import BadInput
    print(f"warning: {files[0]} is a pickle; it is read in a process of its own, as tensors alone", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "minibd.unpickle", *map(str, files), str(folder / "model.safetensors")],
        capture_output=True, text=True,
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise BadInput(
            said.removeprefix("error: ")
            if done.returncode == 2
            else f"{files[0]} cannot be read ({said}): take another checkpoint"
        )
    for name in BESIDE:
        if (files[0].parent / name).exists():
            shutil.copy(files[0].parent / name, folder)


def convert(path: Path, out: Path, labels: list[str] | None = None, dtype: str = "float32") -> None:
    import torch

    from minibd import checkpoint
    from minibd.records import BadInput
    found = pickles(path)
    with tempfile.TemporaryDirectory() as folder:
        if found:
            unpickle(found, Path(folder))
        try:
            ckpt = checkpoint.load(folder if found else path, labels=labels, dtype=getattr(torch, dtype))
        except BadInput as error:
            raise BadInput(str(error).replace(folder, str(path))) from None
    checkpoint.save(ckpt, out)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a pickle, a .safetensors, or a Hugging Face folder")
    parser.add_argument("out", type=Path, help="one file if it ends in .safetensors, else a folder")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="the classes of a new classifier, if there is none")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type of the weights that are written (default float32)"
    )
    args = parser.parse_args()
    convert(args.path, args.out, args.labels, args.dtype)


if __name__ == "__main__":
    main(run)
