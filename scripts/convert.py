#!/usr/bin/env python3
"""Between a pickle, a Hugging Face folder and one .safetensors, of any architecture that minibd knows.

    python scripts/convert.py pytorch_model.bin OUT.safetensors   a pickle beside config.json and tokenizer -> one file
    python scripts/convert.py FOLDER OUT.safetensors              a Hugging Face folder, of pickles or not -> one file
    python scripts/convert.py FILE.safetensors OUT                one file -> a Hugging Face folder
    python scripts/convert.py FOLDER OUT --dtype bfloat16         half the bytes
    python scripts/convert.py last.ckpt OUT --strip model.        a training script's file beside config.json

OUT is another place than the input's; one that holds a checkpoint is refused unless --overwrite says that it goes.

A pickle may hold the tensors in an entry of its own, as Lightning's "state_dict"; a folder's pickle may have any name.
A pickle is only ever opened by torch.load(weights_only=True), in a separate process: that makes tensors and runs no
code from the file.
"""
from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minibd.cli import Parser, main

DTYPES = ("float32", "float16", "bfloat16")


def stored(path: Path, strip: list[str]) -> list[Path]:
    """The files that are rewritten before `path` can be loaded: its pickles, or with `strip` its safetensors. Raises
    BadInput."""
    from minibd import checkpoint
    from minibd.checkpoint.folder import weight_files
    from minibd.checkpoint.pickles import check_no_adapter, no_config, pickled_weights
    from minibd.records import BadInput, not_there
    if not path.is_dir() and path.suffix.lower() not in checkpoint.PICKLES:
        if strip:
            raise BadInput(f"--strip is for a pickle or a Hugging Face folder, and {path} is neither: leave it out")
        return []
    if not path.exists():
        raise BadInput(f"{not_there(path)}: name a pickle, a .safetensors or a Hugging Face folder")
    folder = path if path.is_dir() else path.parent
    check_no_adapter(folder)
    if not (folder / "config.json").is_file():
        raise no_config(folder)
    if not path.is_dir():
        return [path]
    if any((path / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return weight_files(path) if strip else []
    return pickled_weights(path)


def unpickle(files: list[Path], out: Path) -> None:
    """Writes the tensors of the pickles `files` into the safetensors `out`. Raises BadInput."""
    from minibd.records import BadInput
    from minibd.regular import check_regular
    print(f"warning: {files[0]} is a pickle; it is read in a process of its own, as tensors alone", file=sys.stderr)
    for file in files:
        check_regular(file)
    done = subprocess.run(
        [sys.executable, "-m", "minibd.unpickle", *map(str, files), str(out)], capture_output=True, text=True,
        errors="replace",
    )
    if done.returncode < 0:               # by its own limits of time and memory, or by the system's
        raise BadInput(f"{files[0]} was read in a process of its own, which ended by signal {-done.returncode}: it "
                       f"takes too long or too much memory, take another checkpoint")
    if done.returncode:
        message = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        if done.returncode == 2:
            raise BadInput(message.removeprefix("error: "))
        raise BadInput(f"{files[0]} cannot be read ({message}): take another checkpoint")
    print(done.stdout, end="", file=sys.stderr)


def rewrite(files: list[Path], out: Path, strip: list[str]) -> None:
    """Writes the tensors of `files`, pickles or safetensors, into the safetensors `out`, without the prefixes `strip`
    of their names. Raises BadInput."""
    from safetensors.torch import load_file, save_file

    from minibd.checkpoint.pickles import stripped
    if files[0].suffix != ".safetensors":
        unpickle(files, out)
        files = [out]
    if strip:
        tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
        save_file({new: tensors[name] for name, new in stripped(tensors, strip).items()}, out)


def convert(path: Path, out: Path, labels: list[str] | None = None, dtype: str = "float32",
            strip: list[str] = []) -> None:
    """Writes the checkpoint at `path` to `out`, with a new classifier for `labels` if it has none. Raises BadInput.

    strip: what is taken away from the beginning of the tensors' names, one after the other.
    """
    import torch

    from minibd import checkpoint
    from minibd.checkpoint.folder import FOLDER_FILES
    from minibd.records import BadInput
    files = stored(path, strip)
    with tempfile.TemporaryDirectory() as folder:
        if files:
            rewrite(files, Path(folder) / "model.safetensors", strip)
            for name in FOLDER_FILES:
                if (file := files[0].parent / name).is_file() and not name.startswith("model."):
                    shutil.copy(file, folder)
        try:
            ckpt = checkpoint.load(folder if files else path, labels=labels, dtype=getattr(torch, dtype))
        except BadInput as error:
            more = "".join(f" --strip {shlex.quote(prefix)}" for prefix in strip)
            message = error.whole.replace(f"{shlex.quote(folder)} OUT", f"{shlex.quote(str(path))} OUT{more}")
            raise BadInput(message.replace(folder, str(path))) from None
    checkpoint.save(ckpt, out)


def check_out(path: Path, out: Path, overwrite: bool) -> None:
    """Raises BadInput where `out` is the input `path` or lies in it, or another checkpoint's that is not to go."""
    from minibd import report
    from minibd.records import BadInput
    places = Path(os.path.realpath(out)), Path(os.path.realpath(path))
    if places[1] in (places[0], *places[0].parents) or path.is_file() and places[0] == places[1].parent:
        raise BadInput(f"{out} would be written over or beside the input {path}: name another place")
    if os.path.isdir(out):
        report.check_free(out, overwrite, "OUT")
    elif os.path.lexists(out) and not overwrite:
        raise BadInput(f"{out} is there: name another place, or say --overwrite to put the checkpoint there")


def run() -> None:
    parser = Parser(__doc__)
    parser.add_argument("path", type=Path, help="a pickle, a .safetensors, or a Hugging Face folder")
    parser.add_argument("out", type=Path, help="one file if it ends in .safetensors, else a folder")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="the classes of a new classifier, if there is none")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="type of the weights that are written (default float32)"
    )
    parser.add_argument(
        "--strip", action="append", default=[], metavar="PREFIX",
        help="take PREFIX away from the beginning of the tensors' names, as in module.bert...; may be given again",
    )
    parser.add_argument("--overwrite", action="store_true", help="OUT may hold another checkpoint, which goes")
    args = parser.parse_args()
    check_out(args.path, args.out, args.overwrite)
    convert(args.path, args.out, args.labels, args.dtype, args.strip)


if __name__ == "__main__":
    main(run)
