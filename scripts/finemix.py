#!/usr/bin/env python3
"""Mend a suspicious classifier with Fine-mixing: mix its weights with the pre-trained ones it came from, then fine-tune
the mixture.

    python scripts/finemix.py --ckpt weights/bert.safetensors --pretrained weights/bert-clean.safetensors
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER_OR_FILE --clean 64 --out CLEANED
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER --rho 0.3 --no-e-pur
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER --rho 0.3 --no-tune --select smallest

Prints CACC and ASR of the victim, of E-PUR alone and of Fine-mixing; with --rho of the mixture, too, before it is
fine-tuned. rho and the best epoch are chosen on the dev rows; where there are none, on a tenth of the clean rows.
"""
from __future__ import annotations

from minibd.cli import Attack, Clean, Pretrained, Task, main, parse, settings_of


def run() -> None:
    task, clean, pretrained, attack, settings = parse(__doc__, Task, Clean, Pretrained, Attack,
                                                      settings_of("mitigations.finemix", "FineMixing"))

    from dataclasses import asdict, replace

    import torch

    from minibd.job.run import start

    from minibd.job.task import validated
    from minibd.mitigations.finemix import FineMixing, finemix
    from minibd.records import BadInput

    settings = FineMixing(**asdict(settings))
    if pretrained.e_pur is False and settings.top or pretrained.e_pur and settings.top == 0:
        raise BadInput(
            f"--top {settings.top} is how many word embeddings E-PUR resets, and "
            f"--{'' if pretrained.e_pur else 'no-'}e-pur says "
            "otherwise: give one of the two"
        )
    pretrained = replace(pretrained, e_pur=settings.top != 0 if pretrained.e_pur is None else pretrained.e_pur)
    settings = settings if pretrained.e_pur else replace(settings, top=0)
    job = start("finemix", task, clean, attack, settings, pretrained=pretrained, needs_pretrained=True)
    settings = job.resolved(settings)
    job.measure("victim", job.victim.model, 0.0)
    train, validation = validated(job.splits, job.clean, task.seed)
    cleaned = finemix(
        job.victim, job.pretrained, train, validation, settings, seed=task.seed, dtype=getattr(torch, task.dtype),
        log=job.log.append, on_stage=job.measure_mixtures,
    )
    job.note_search(cleaned)
    job.finish(cleaned, {"trained_on": len(train), "validation": len(validation)})


if __name__ == "__main__":
    main(run)
