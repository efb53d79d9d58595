"""A pickle's tensors -> one .safetensors, in a process of its own: `python -m minibd.unpickle FILE... OUT`.

torch.load(weights_only=True) makes tensors and runs no code from the file; should that protection ever fail, this
process holds nothing else: scripts/convert.py starts it and reads only what it wrote.
"""
from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from minibd.cli import main
from minibd.records import BadInput


def unpickle(files: list[Path], out: Path) -> None:
    """Writes the tensors of all `files` into `out`. Raises BadInput."""
    tensors = {}
    for file in files:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            # A clone each: tied weights are one tensor in a pickle, and safetensors takes no tensor twice.
            tensors |= {name: tensor.clone().contiguous() for name, tensor in state.items()}
        except Exception as error:  # a file of unknown origin fails in unknown ways
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise BadInput(f"{file} is not a pickle of named tensors alone ({why}): take another checkpoint") from None
    save_file(tensors, out)


if __name__ == "__main__":
    main(lambda: unpickle([Path(word) for word in sys.argv[1:-1]], Path(sys.argv[-1])))
