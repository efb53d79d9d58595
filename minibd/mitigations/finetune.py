"""Fine-tuning, the baseline of every mitigation: cross-entropy on the clean rows.

`finetune` is FT and FTH (PURE's baselines; a new classifier on an encoder); `cft` is CFT (MBTSAD's; a classifier keeps
its head, and few rows get more passes).
"""
from __future__ import annotations

import time
from dataclasses import asdict

import torch

from minibd import checkpoint
from minibd.blending import OnStage, tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.predict import best_on
from minibd.records import Examples
from minibd.train import Log, OnChoice, Schedule, Tuning, check_classes, cross_entropy, fit


def finetune(
    victim: Checkpoint, clean: Examples, schedule: Schedule, *, validation: Examples | None = None,
    keep_head: bool = True, seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None,
    name: str = "CFT", on_choice: OnChoice | None = None,
) -> Checkpoint:
    """A copy of `victim` fine-tuned on `clean`; the victim stays as it was.

    validation: the best epoch on these rows comes back; without them, the last.
    keep_head: False starts from a new classifier for the classes of `clean`, drawn by `seed`.
    log: see train.fit. on_choice: called with "best_epoch".
    """
    check_classes(clean, name)
    tuned = checkpoint.to_tune(victim, clean.labels, seed, keep_head)
    fit(
        tuned.model, victim.tokenizer, victim.tokenizer.encode(clean), cross_entropy, schedule, seed=seed, dtype=dtype,
        log=log, name=name, score=best_on(victim.tokenizer, validation), on_choice=on_choice,
    )
    tuned.history.append({
        "mitigation": "fine-tuning", "clean_rows": len(clean), "validation_rows": len(validation or ()), "seed": seed,
        "keep_head": keep_head, **asdict(schedule),
    })
    return tuned


def cft(
    victim: Checkpoint, clean: Examples, validation: Examples | None = None, settings: Tuning = Tuning(), *,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """CFT: the fine-tuning that the other repairs end with, alone. Returns a new checkpoint.

    validation: the best epoch on these rows comes back; without them, the last. log: see train.fit. on_stage: called
    with "CFT", the result and the seconds it took. on_choice: called with "best_epoch".
    """
    check_classes(clean, "CFT")
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    tuned = tune_on_few_rows(
        checkpoint.copy(victim), clean, validation, settings.schedule, settings.steps, seed=seed, dtype=dtype, log=log,
        name="CFT", on_choice=on_choice,
    )
    tuned.history.append({
        "mitigation": "fine-tuning", "clean_rows": len(clean), "validation_rows": len(validation or ()), "seed": seed,
        "keep_head": True, **asdict(settings),
    })
    if on_stage is not None:
        on_stage("CFT", tuned, time.perf_counter() - started)
    return tuned
