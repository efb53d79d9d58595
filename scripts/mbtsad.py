#!/usr/bin/env python3
"""Mend a suspicious classifier with MBTSAD: retrain it on token-split clean text, then distil attention from that into it.

    python scripts/mbtsad.py --ckpt weights/bert.safetensors
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER_OR_FILE --out CLEANED
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER --triggered triggered.tsv --target 1

Prints CACC and ASR of the victim, of clean fine-tuning for as many steps (CFT), of the retrained teacher (TS-FT) and of MBTSAD.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import Attack, Clean, Task, main, parse, setting, settings_of


@dataclass(frozen=True, slots=True)
class Script:
    """This script's own"""
    cft: bool = setting(True, "also train the CFT row, for comparison; --no-cft saves its time")


def run() -> None:
    task, clean, attack, script, settings = parse(__doc__, Task, Clean, Attack, Script, settings_of("mitigations.mbtsad", "MBTSAD"))

    import time
    from dataclasses import asdict, replace

    import torch

    from minibd import job as jobs
    from minibd.mitigations.finetune import finetune
    from minibd.mitigations.mbtsad import MBTSAD, mbtsad

    settings = MBTSAD(**asdict(settings))
    job = jobs.start("mbtsad", task, clean, attack, script, settings)
    settings = settings.sized(job.victim.model.config.hidden)
    job.args |= asdict(settings)
    dtype = getattr(torch, task.dtype)
    job.judged("victim", job.victim.model, 0.0)
    if script.cft:
        # The teacher's schedule over the unsplit rows alone, with as many more passes: the same number of steps.
        started = time.perf_counter()
        schedule = replace(settings.schedule(1), epochs=settings.epochs1 * (settings.k + settings.originals))
        tuned = finetune(job.victim, job.clean, schedule, seed=task.seed, dtype=dtype, log=job.log.append)
        job.judged("CFT", tuned.model, time.perf_counter() - started)
    cleaned = mbtsad(job.victim, job.clean, settings, seed=task.seed, dtype=dtype, log=job.log.append,
                     watch=lambda name, record, seconds: job.judged(name, record.model, seconds))
    job.finish(cleaned, {"augmented": (settings.k + settings.originals) * len(job.clean)})


if __name__ == "__main__":
    main(run)
