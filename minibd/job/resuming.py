"""--resume and --save-every: what a run is of, and what keeps it."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from minibd import __version__, checkpoint, resume
from minibd.cli import Resuming, Task, flag_of
from minibd.digest import file_digest
from minibd.distributed import size
from minibd.job.task import args_of, data_of, device_of, products_of

CHECKPOINTS = ("ckpt", "pretrained", "mlm")
FILES = ("data", "triggered", "paraphrases", "suspects", "wordnet", "clean_aux", "user_data")
OTHERS = ("out", "device")  # flags that no number comes from, or that stand under another name


def keeper(
    method: str, out: Path, task: Task, resuming: Resuming, header: checkpoint.Header, *settings: object
) -> resume.Kept:
    """What keeps the run of `method` into `out`. settings: the flags of the run's other groups. Raises BadInput where
    --resume names another run."""
    of = run_of(method, task, header, args_of(task, *settings))
    going_on = resuming.resume and resume.is_kept(out)
    kept = resume.begin(out, of, resuming.save_every, going_on)
    if going_on:
        print(f"resumed   {len(kept.entries)} parts of the run are kept, {len(kept.lines)} logged steps", flush=True)
    elif resuming.resume:
        print("resumed   nothing is kept of a run into this folder: it starts from the beginning", flush=True)
    return kept


def run_of(method: str, task: Task, header: checkpoint.Header, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers of a run come from: its flags, the sha256 of the files that they name, what computes it."""
    of: dict[str, Any] = {"the method": method}
    for name, value in args.items():
        path = isinstance(value, str) and value != "" and name in (*CHECKPOINTS, *FILES) and os.path.exists(value)
        if name not in OTHERS:
            of[flag_of(name)] = digests(name, Path(value)) if path else value
    if not task.data and any("data" in entry for entry in header.history):
        data = data_of(task, header)
        of["the checkpoint's data"] = (
            digests("data", Path(data["path"])) if os.path.exists(data.get("path", "")) else data
        )
    device = device_of(task.device)
    of["--dtype"] = str(products_of(task)).removeprefix("torch.")  # what auto is
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return of | {"minibd": __version__, "torch": torch.__version__, "the device": kind,
                 "the number of threads": torch.get_num_threads(), "the number of processes": size()}


def digests(name: str, path: Path) -> dict[str, str]:
    """The sha256 of the files that a run reads under a flag `name`: of a checkpoint those of its parts, of another
    folder all that lie in it."""
    if name in CHECKPOINTS:
        return checkpoint.sha256(path)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    return {file.name: file_digest(file) for file in files}
