"""A pickle's tensors -> one .safetensors, in a process of its own: `python -m minibd.unpickle FILE... OUT`.

torch.load(weights_only=True) makes tensors and runs no code from the file; should that protection ever fail, this
process holds nothing else: scripts/convert.py starts it and reads only what it wrote, and the lines that it printed.
"""
from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minibd.cli import main
from minibd.lines import quoted, shown, visible
from minibd.records import BadInput
from minibd.regular import check_regular

# Under which names training scripts put the model's tensors, beside an epoch, an optimizer's state and the like.
STATES = ("state_dict", "model_state_dict", "model", "module", "model_state", "net", "network", "weights", "params")
TIMES, SPARE = 3, 512 << 20               # bytes of memory: the tensors, a clone of them, the file; and beside these
SECONDS, SPEED = 60, 20 << 20             # of the processor; bytes in each second more
DEPTH = 3                                 # {"model": {"state_dict": {...}}} and no deeper


def state_in(value: object, depth: int = DEPTH) -> tuple[dict[str, Tensor], str]:
    """The named tensors in what a pickle holds, and under which keys they were: "model.state_dict"; ({}, "") where
    there are none.

    A dictionary of tensors is taken as it is, without what else it holds; so is the first of STATES that is or holds
    one, or the only other entry that does. Raises BadInput where several entries do.
    """
    if not isinstance(value, Mapping) or not depth:
        return {}, ""
    inner = {key: state_in(held, depth - 1) for key, held in value.items() if isinstance(key, str)}
    inner = {key: found for key, found in inner.items() if found[0]}
    named = [key for key in STATES if key in inner] or [key for key in inner if "optim" not in key.lower()]
    if len(named) > 1 and named[0] not in STATES:
        raise BadInput(f"it holds several models, {quoted(named)}: save the one that you mean with torch.save")
    if named:
        tensors, keys = inner[named[0]]
        return tensors, ".".join(key for key in (named[0], keys) if key)
    return {key: held for key, held in value.items() if isinstance(key, str) and isinstance(held, Tensor)}, ""


def limit(size: int) -> None:
    """Limits this process for good: only for one that does nothing else than to read pickles of `size` bytes in all. A
    few bytes of a pickle can ask for terabytes, and a compressed one unpacks to a thousand times its size. Nothing
    where the system knows no limits."""
    try:
        import resource
    except ImportError:
        return
    held = next((int(line.split()[1]) << 10 for line in Path("/proc/self/status").read_text().splitlines()
                 if line.startswith("VmSize")), 8 << 30) if Path("/proc/self/status").exists() else 8 << 30
    limits = {resource.RLIMIT_AS: held + TIMES * size + SPARE, resource.RLIMIT_CPU: SECONDS + size // SPEED}
    for which, most in limits.items():
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))


def unpickle(files: list[Path], out: Path) -> None:
    """Writes the tensors of all `files` into `out`, and prints in which entry of a file they were. Raises BadInput."""
    tensors = {}
    for file in files:
        check_regular(file)
        try:
            state, keys = state_in(torch.load(file, map_location="cpu", weights_only=True))
            if not state:
                raise BadInput("it holds no dictionary of tensors")
            # A clone each: tied weights are one tensor in a pickle, and safetensors takes no tensor twice.
            tensors |= {name: tensor.clone().contiguous() for name, tensor in state.items()}
        except Exception as error:  # a file of unknown origin fails in unknown ways
            raise BadInput(f"{file} is not a pickle of named tensors alone ({_reason(error)}): take another "
                           f"checkpoint, or save model.state_dict() with torch.save where it was made") from None
        if keys:
            print(f"{file}: the tensors in its entry {shown(keys)} are taken")
    save_file(tensors, out)


def _reason(error: Exception) -> str:
    """What torch.load says, in short: the name that is not a tensor's, or its first line."""
    text = str(error) or type(error).__name__
    if isinstance(error, MemoryError) or "not enough memory" in text or "memory" in text and "alloc" in text:
        return "it needs more memory than three times its size"
    if name := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it names {name[1][:60]}"
    return visible(text.splitlines()[0], 80)


def run() -> None:
    *files, out = map(Path, sys.argv[1:])
    limit(sum(file.stat().st_size for file in files if file.exists()))
    unpickle(files, out)


if __name__ == "__main__":
    main(run)
