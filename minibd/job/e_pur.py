"""--pretrained and --e-pur: the weights that the victim came from, and E-PUR before any other method."""
from __future__ import annotations

from minibd import checkpoint
from minibd.cli import Pretrained, Task
from minibd.job.task import device_of
from minibd.mitigations.epur import e_pur
from minibd.records import BadInput, Examples


def check_pretrained(method: str, pretrained: Pretrained, needed: bool) -> None:
    """Raises BadInput where `method`, if that `needed` it, or --e-pur asks for --pretrained in vain, or it is given and
    neither reads it."""
    path, wanted = pretrained.pretrained, needed or pretrained.e_pur
    if wanted and not path:
        raise BadInput(
            f"{method if needed else '--e-pur'} sets weights back to what they were before the fine-tuning: name the "
            "checkpoint that "
            "the victim came from with --pretrained"
        )
    if path and not wanted:
        raise BadInput(f"--pretrained {path}: {method} reads it for --e-pur alone, give both or neither")


def pretrained_of(path: str, task: Task, victim: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """What --pretrained names; where that has no classifier, with a new one, so that a pooler that was pre-trained
    comes too."""
    device = device_of(task.device)
    ckpt = checkpoint.load(path, device=device)
    return ckpt if ckpt.labels else checkpoint.load(path, device=device, labels=victim.labels, seed=task.seed)


def purified(
    victim: checkpoint.Checkpoint, pretrained: checkpoint.Checkpoint, clean: Examples
) -> checkpoint.Checkpoint:
    """`victim` after E-PUR with the frequencies of the clean rows and epur.py's default number of resets."""
    return e_pur(victim, pretrained, clean)
