#!/usr/bin/env python3
"""Between a pickle, a Hugging Face folder and one .safetensors, of any architecture that minibd knows.

    python scripts/convert.py pytorch_model.bin OUT.safetensors   a pickle beside config.json and tokenizer -> one file
    python scripts/convert.py FOLDER OUT.safetensors              a Hugging Face folder, of pickles or not -> one file
    python scripts/convert.py FILE.safetensors OUT                one file -> a Hugging Face folder
    python scripts/convert.py FOLDER OUT --dtype bfloat16         half the bytes

A pickle is only ever opened by torch.load(weights_only=True), in a separate process: that makes tensors and runs no
code from the file.
"""
from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minibd.cli import Parser, main

DTYPES = ("float32", "float16", "bfloat16")
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth")
COMPANIONS = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt",
    "tokenizer.model", "minibd.json",
)


def pickles(path: Path) -> list[Path]:
    """`path` itself where it is a pickle, or the pickles of a folder without safetensors."""
    from minibd import checkpoint
    if not path.is_dir():
        return [path] if path.suffix.lower() in checkpoint.PICKLES else []
    if any(path.glob("model*.safetensors")):
        return []
    return next((found for pattern in PICKLED if (found := sorted(path.glob(pattern)))), [])


def unpickle(files: list[Path], folder: Path) -> None:
    """Writes the tensors of `files` into `folder` as safetensors, and copies the config and tokenizer beside them.
    Raises BadInput."""
    from minibd.records import BadInput
    print(f"warning: {files[0]} is a pickle; it is read in a process of its own, as tensors alone", file=sys.stderr)
    done = subprocess.run(
        [sys.executable, "-m", "minibd.unpickle", *map(str, files), str(folder / "model.safetensors")],
        capture_output=True, text=True,
    )
    if done.returncode:
        message = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        if done.returncode == 2:
            raise BadInput(message.removeprefix("error: "))
        raise BadInput(f"{files[0]} cannot be read ({message}): take another checkpoint")
    for name in COMPANIONS:
        if (files[0].parent / name).exists():
            shutil.copy(files[0].parent / name, folder)


def convert(path: Path, out: Path, labels: list[str] | None = None, dtype: str = "float32") -> None:
    """Writes the checkpoint at `path` to `out`, with a new classifier for `labels` if it has none. Raises BadInput."""
    import torch

    from minibd import checkpoint
    from minibd.records import BadInput
    pickled = pickles(path)
    with tempfile.TemporaryDirectory() as folder:
        if pickled:
            unpickle(pickled, Path(folder))
        try:
            ckpt = checkpoint.load(folder if pickled else path, labels=labels, dtype=getattr(torch, dtype))
        except BadInput as error:
            raise BadInput(str(error).replace(folder, str(path))) from None
    checkpoint.save(ckpt, out)


def run() -> None:
    parser = Parser(__doc__)
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
