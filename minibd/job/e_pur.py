"""--pretrained and --e-pur: the weights that the victim came from, and E-PUR before any other method."""
from __future__ import annotations

from minibd import checkpoint
from minibd.cli import Pretrained, Task
from minibd.job.task import device_of
from minibd.records import BadInput, Examples


def check_pretrained(method: str, pretrained: Pretrained, needed: bool) -> None:
    """Raises BadInput if --pretrained is missing where `method` (`needed`) or --e-pur reads it, or given where neither
    does."""
    path, read = pretrained.pretrained, needed or pretrained.e_pur
    if read and not path:
        raise BadInput(
            f"{method if needed else '--e-pur'} resets weights to their values before the fine-tuning: name the "
            "checkpoint that the victim was fine-tuned from with --pretrained"
        )
    if path and not read:
        raise BadInput(f"--pretrained {path}: {method} reads it for --e-pur alone, give both or neither")


def pretrained_of(path: str, task: Task, victim: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """The checkpoint that --pretrained names. One without classifier gets a new one, so that a pre-trained pooler is
    loaded too."""
    header = checkpoint.read_header(path)
    labels = None if header.labels else victim.labels
    return checkpoint.load(header, device_of(task.device), labels=labels, seed=task.seed)


def purified(
    victim: checkpoint.Checkpoint, pretrained: checkpoint.Checkpoint, clean: Examples
) -> checkpoint.Checkpoint:
    """`victim` after E-PUR with the frequencies of the clean rows and epur.py's default number of resets."""
    from minibd.mitigations.epur import e_pur  # only a run with --e-pur imports it

    return e_pur(victim, pretrained, clean)
