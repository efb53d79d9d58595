#!/usr/bin/env python3
"""Between a pickle, a Hugging Face folder and one .safetensors.

    python scripts/convert.py pytorch_model.bin OUT.safetensors     a pickle, config.json and tokenizer beside it -> one file
    python scripts/convert.py FOLDER OUT.safetensors                a Hugging Face folder, of pickles or not -> one file
    python scripts/convert.py FILE.safetensors OUT                  one file -> a Hugging Face folder

A pickle is opened by torch.load(weights_only=True) and by nothing else: that makes tensors and runs no code of the file's.
"""
from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

from minibd.cli import main


def unpickle(path: Path, folder: Path) -> None:
    """The tensors of `path`, or of every pytorch_model*.bin in it, into `folder` as safetensors; config and tokenizer too."""
    import torch
    from minibd.records import BadInput
    from safetensors.torch import save_file
    tensors = {}
    for file in sorted(path.glob("pytorch_model*.bin")) if path.is_dir() else [path]:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            # A clone each: tied weights are one tensor in a pickle, and safetensors takes no tensor twice.
            tensors |= {name: tensor.clone().contiguous() for name, tensor in state.items()}
        except Exception as error:                               # a file of unknown making fails in unknown ways
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(f"{file} is not a pickle of named tensors alone ({why}): take another checkpoint") from None
    save_file(tensors, folder / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "minibd.json"):
        source = (path if path.is_dir() else path.parent) / name
        if source.exists():
            shutil.copy(source, folder)


def convert(path: Path, out: Path, labels: list[str] | None) -> None:
    from minibd import checkpoint
    from minibd.records import BadInput
    if path.is_dir():
        pickled = any(path.glob("pytorch_model*.bin")) and not any(path.glob("model*.safetensors"))
    else:
        pickled = path.suffix.lower() in checkpoint.PICKLES
    with tempfile.TemporaryDirectory() as folder:
        if pickled:
            unpickle(path, Path(folder))
        try:
            record = checkpoint.load(folder if pickled else path, labels=labels)
        except BadInput as error:
            raise BadInput(str(error).replace(folder, str(path))) from None
    checkpoint.save(record, out)


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="a pickle, a .safetensors, or a Hugging Face folder")
    parser.add_argument("out", type=Path, help="one file if it ends in .safetensors, else a folder")
    parser.add_argument("--labels", nargs="+", metavar="NAME", help="the classes of a new classifier, if there is none")
    args = parser.parse_args()
    convert(args.path, args.out, args.labels)


if __name__ == "__main__":
    main(run)
