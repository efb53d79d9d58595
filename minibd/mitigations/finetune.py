"""Clean fine-tuning (CFT), the baseline that every mitigation is measured against: cross-entropy on the clean rows, nothing else."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from minibd import checkpoint
from minibd.checkpoint import Record
from minibd.records import Example
from minibd.train import Log, Schedule, cross_entropy, fit


def finetune(victim: Record, clean: Sequence[Example], schedule: Schedule, *, seed: int = 0, dtype: torch.dtype = torch.float32,
             log: Log | None = None, name: str = "CFT") -> Record:
    """A copy of `victim` fine-tuned on `clean`; the victim stays as it was."""
    tuned = checkpoint.copy(victim)
    fit(tuned.model, victim.text, victim.text.encode(clean), cross_entropy, schedule, seed=seed, dtype=dtype, log=log, name=name)
    tuned.history.append({"mitigation": "fine-tuning", "clean_rows": len(clean), "seed": seed, **asdict(schedule)})
    return tuned
