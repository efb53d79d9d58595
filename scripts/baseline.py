#!/usr/bin/env python3
"""Defend a suspicious model with one of the baselines that a defence is compared with. METHOD --help lists its flags.

    python scripts/baseline.py ft --ckpt FOLDER --data FOLDER_OR_FILE --out TUNED
    python scripts/baseline.py fth --ckpt FOLDER --data FOLDER
    python scripts/baseline.py meft --ckpt weights/bert.safetensors --entropy-epochs 1
    python scripts/baseline.py cft --ckpt weights/bert.safetensors --clean 64
    python scripts/baseline.py reinit --ckpt weights/bert.safetensors --layers 1
    python scripts/baseline.py fineprune --ckpt FOLDER --data FOLDER --pretrained PRETRAINED --e-pur
    python scripts/baseline.py finepurify --ckpt weights/bert.safetensors --pretrained weights/bert-clean.safetensors

PURE's baselines, for a defender with a whole clean training set; --ckpt is an encoder, or a classifier, which is
measured first and whose head is then replaced. ft: fine-tuning. fth: the same at a higher learning rate. meft: maximum
entropy first, then fine-tuning.
MBTSAD's baselines, for a defender with a few clean rows; --ckpt is a classifier and keeps its head. cft: fine-tuning.
reinit: the last layer is reinitialised first. fineprune: idle units are pruned first. finepurify: weights that moved
further than the clean rows explain are reset to --pretrained first.
Without dev rows, a tenth of the clean rows is the validation set. The result goes to out/METHOD unless --out is given.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minibd.cli import AllClean, Attack, Clean, Pretrained, Resuming, Task, main, parse, setting
from minibd.job.idle import ATTACK, REPAIR_RULES
from minibd.job.repairs import REPAIRS

if TYPE_CHECKING:
    from minibd.checkpoint import Checkpoint
    from minibd.job.run import Job
    from minibd.records import Examples
    from minibd.train import StepLog

RATES = {"ft": 2e-5, "fth": 5e-5, "meft": 2e-5}  # PURE, Appendix B


@dataclass(frozen=True, slots=True)
class Baseline:
    """The method's numbers, the same for every attack."""
    lr: float | None = setting(None, "learning rate (default 2e-5; fth 5e-5)", paper="the same", kind=float)
    epochs: int = setting(3, "passes of the fine-tuning, of which the best on validation is kept", paper="3")
    batch_size: int = setting(32, "texts per step", paper="32")
    entropy_epochs: int | None = setting(
        None, "meft: passes that maximise the entropy, before the fine-tuning (default 2)",
        paper="4,000 steps, 2.1 passes of SST-2's 60,570 rows", kind=int,
    )
    keep_head: bool = setting(False, "keep the classifier that the checkpoint has, instead of a new one", paper="no")


FINETUNINGS = dict.fromkeys(RATES, (AllClean, Baseline))
# finemix has a script of its own
FLAGS = FINETUNINGS | {name: (Clean, repair.flags) for name, repair in REPAIRS.items() if name != "finemix"}


def run(log: StepLog | None = None) -> None:
    named = next((word for word in sys.argv[1:] if word in FLAGS), "")  # each method has its own flags
    rows, numbers = FLAGS.get(named, (None, None))
    groups = (Task, Resuming, rows, Pretrained, Attack, numbers) if named else ()
    method, task, resuming, clean, pretrained, attack, settings = parse(
        __doc__, *groups, first=("method", tuple(FLAGS)), rules=(*ATTACK, *REPAIR_RULES.get(named, ())), others=FLAGS
    )

    from minibd.job.run import start
    from minibd.job.task import split_validation
    from minibd.records import BadInput

    if method != named:
        raise BadInput(f"{named} stands before {method} and is a method's name too: begin with the method")
    repair = REPAIRS.get(method)
    settings = checked(method, settings)
    job = start(method, task, clean, attack, settings, new_classifier=not repair, pretrained=pretrained, log=log,
                resuming=resuming, needs_pretrained=bool(repair and repair.takes_pretrained))
    if repair:
        settings = job.resolved(settings)
        job.measure_victim()
    else:
        job.measure_if_classifier(settings.keep_head)
    job.undo()
    job.purify(pretrained)
    train, validation = split_validation(job.splits, job.clean, task.seed)
    tuned = trained(method, job, task, train, validation, settings)
    job.finish(tuned, {"trained_on": len(train), "validation": len(validation)})


def checked(method: str, settings: Any) -> Any:
    """The flags as the settings of `method`: Baseline for ft and fth, else its own class. Raises BadInput."""
    from dataclasses import asdict, replace

    from minibd.records import BadInput
    from minibd.train import Schedule

    if method in REPAIRS:
        return REPAIRS[method].settings_class(**asdict(settings))
    if settings.lr is None:
        settings = replace(settings, lr=RATES[method])
    if method == "meft":
        from minibd.mitigations.meft import MEFT
        return MEFT(**{name: value for name, value in asdict(settings).items() if value is not None})
    if settings.entropy_epochs is not None:
        raise BadInput(
            f"--entropy-epochs {settings.entropy_epochs} is for meft, and {method} has no such passes: leave it out"
        )
    Schedule(settings.lr, settings.epochs, settings.batch_size)
    return settings


def trained(method: str, job: Job, task: Task, train: Examples, validation: Examples, settings: Any) -> Checkpoint:
    """The method's model, measured as a row of the table."""
    import time

    options = {"seed": task.seed, "dtype": job.dtype, "log": job.log, "on_choice": job.on_choice}
    if method in REPAIRS:
        return REPAIRS[method](job.victim, job.pretrained, train, validation, settings, **options,
                               on_stage=job.on_stage)
    started = time.perf_counter()
    if method == "meft":
        from minibd.mitigations.meft import meft
        tuned = meft(job.victim, train, validation, settings, **options)
    else:
        from minibd.mitigations.finetune import finetune
        from minibd.train import Schedule
        schedule = Schedule(settings.lr, settings.epochs, settings.batch_size, weight_decay=0.0)  # Adam, as in PURE
        tuned = finetune(job.victim, train, schedule, validation=validation, keep_head=settings.keep_head,
                         name=method.upper(), **options)
    job.measure(method.upper(), tuned.model, time.perf_counter() - started)
    return tuned


if __name__ == "__main__":
    main(run)
