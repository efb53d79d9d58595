#!/usr/bin/env python3
"""Mend a suspicious model with clean rows in one of the plain ways that a defence is compared with. METHOD --help lists
its flags.

    python scripts/baseline.py ft --ckpt FOLDER --data FOLDER_OR_FILE --out TUNED
    python scripts/baseline.py fth --ckpt FOLDER --data FOLDER
    python scripts/baseline.py meft --ckpt weights/bert.safetensors --entropy-epochs 1
    python scripts/baseline.py cft --ckpt weights/bert.safetensors --clean 64
    python scripts/baseline.py reinit --ckpt weights/bert.safetensors --layers 1
    python scripts/baseline.py fineprune --ckpt FOLDER --data FOLDER --pretrained PRETRAINED --e-pur
    python scripts/baseline.py finepurify --ckpt weights/bert.safetensors --pretrained weights/bert-clean.safetensors

PURE's, for who holds all of a clean training set: --ckpt is an encoder, or a classifier, which is measured first and
whose head is then replaced. ft: fine-tuning. fth: the same at a higher rate. meft: maximum entropy first, then
fine-tuning. MBTSAD's, for who holds a few clean rows: --ckpt is a classifier and keeps its head. cft: fine-tuning.
reinit: the last layer is drawn anew first. fineprune: idle units are pruned first. finepurify: weights that moved
further than clean rows ask for are reset to --pretrained first. Without dev rows, a tenth of the clean rows is the
validation set. The result goes to out/METHOD where --out does not say.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass

from minibd.cli import BLENDS, REPAIRS, AllClean, Attack, Clean, Pretrained, Task, main, parse, setting, settings_of

RATES = {"ft": 2e-5, "fth": 5e-5, "meft": 2e-5}  # PURE, Appendix B


@dataclass(frozen=True, slots=True)
class Baseline:
    """The method's numbers, the same for every attack."""
    lr: float | None = setting(None, "learning rate (default 2e-5; fth 5e-5)", paper="the same", kind=float)
    epochs: int = setting(3, "passes of the fine-tuning, of which the best on validation is kept", paper="3")
    batch_size: int = setting(32, "texts a step", paper="32")
    entropy_epochs: int | None = setting(
        None, "meft: passes that maximise the entropy, before the fine-tuning (default 2)",
        paper="4,000 steps, 2.1 passes of SST-2's 60,570 rows", kind=int,
    )
    keep_head: bool = setting(False, "keep the classifier that the checkpoint has, instead of a new one", paper="no")


METHODS = {**dict.fromkeys(RATES, (AllClean, Baseline)),
           # which has a script of its own
           **{name: (Clean, settings_of(*where)) for name, where in REPAIRS.items() if name != "finemix"}}


def run() -> None:
    asked = next((word for word in sys.argv[1:] if word in METHODS), "")  # each method has its own flags
    groups = (Task, METHODS[asked][0], Pretrained, Attack, METHODS[asked][1]) if asked else ()
    method, *groups = parse(__doc__, *groups, first=("method", tuple(METHODS)))
    task, clean, pretrained, attack, settings = groups

    import time
    from dataclasses import asdict, replace

    import torch

    from minibd.job.registry import MENDS

    from minibd.job.run import start

    from minibd.job.task import validated
    from minibd.mitigations.finetune import finetune
    from minibd.mitigations.meft import MEFT, meft
    from minibd.records import BadInput
    from minibd.train import Schedule

    if method != asked:
        raise BadInput(f"{asked} stands before {method} and is a method's name too: begin with the method")
    mends = method not in RATES
    if method in RATES and settings.lr is None:
        settings = replace(settings, lr=RATES[method])
    if method in ("ft", "fth") and settings.entropy_epochs is not None:
        raise BadInput(
            f"--entropy-epochs {settings.entropy_epochs} is for meft, and {method} has no such passes: leave it out"
        )
    if method not in ("ft", "fth"):  # whose numbers stand in their own files
        settings = (MENDS[method][0] if mends else MEFT)(
            **{name: value for name, value in asdict(settings).items() if value is not None}
        )
    else:
        schedule = Schedule(settings.lr, settings.epochs, settings.batch_size, weight_decay=0.0)  # Adam, as in PURE

    job = start(method, task, clean, attack, settings, new_classifier=not mends, pretrained=pretrained,
                     needs_pretrained=method in BLENDS)
    if mends:
        settings = job.resolved(settings)
        job.measure("victim", job.victim.model, 0.0)
    else:
        job.measure_own_head(settings.keep_head)
    job.purify(pretrained)
    train, validation = validated(job.splits, job.clean, task.seed)
    shared = {"seed": task.seed, "dtype": getattr(torch, task.dtype), "log": job.log.append}
    if mends:
        before = (job.pretrained,) if method in BLENDS else ()
        tuned = MENDS[method][1](
            job.victim, *before, train, validation, settings, **shared, on_stage=job.measure_mixtures
        )
        job.note_search(tuned)
    else:
        started = time.perf_counter()
        if method == "meft":
            tuned = meft(job.victim, train, validation, settings, **shared)
        else:
            tuned = finetune(
                job.victim, train, schedule, validation=validation, keep_head=settings.keep_head, name=method.upper(),
                **shared,
            )
        job.measure(method.upper(), tuned.model, time.perf_counter() - started)
    job.finish(tuned, {"trained_on": len(train), "validation": len(validation)})


if __name__ == "__main__":
    main(run)
