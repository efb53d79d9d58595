#!/usr/bin/env python3
"""Repair a suspicious classifier with Fine-mixing: mix its weights with the pre-trained ones that it came from, then
fine-tune the mixture.

    python scripts/finemix.py --ckpt weights/bert.safetensors --pretrained weights/bert-clean.safetensors
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER_OR_FILE --clean 64 --out CLEANED
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER --rho 0.3 --no-e-pur
    python scripts/finemix.py --ckpt VICTIM --pretrained CLEAN --data FOLDER --rho 0.3 --no-tune --select smallest

Prints CACC and ASR of the victim, after E-PUR alone and after Fine-mixing; with --rho also of the mixture before it is
fine-tuned. rho and the best epoch are chosen on the dev rows; without any, on a tenth of the clean rows.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from minibd.cli import Attack, Clean, Pretrained, Resuming, Task, main, parse, settings_of
from minibd.job.idle import ATTACK, REPAIR_RULES

if TYPE_CHECKING:
    from minibd.mitigations.finemix import FineMixing
    from minibd.train import StepLog


def run(log: StepLog | None = None) -> None:
    task, resuming, clean, pretrained, attack, settings = parse(
        __doc__, Task, Resuming, Clean, Pretrained, Attack, settings_of("mitigations.finemix", "FineMixing"),
        rules=(*ATTACK, *REPAIR_RULES["finemix"]))

    from dataclasses import asdict

    from minibd.job.run import start
    from minibd.job.task import split_validation
    from minibd.mitigations.finemix import FineMixing, finemix

    settings, pretrained = agreed(FineMixing(**asdict(settings)), pretrained)
    job = start("finemix", task, clean, attack, settings, pretrained=pretrained, needs_pretrained=True, log=log,
                resuming=resuming)
    settings = job.resolved(settings)
    job.measure_victim()
    job.undo()
    train, validation = split_validation(job.splits, job.clean, task.seed)
    cleaned = finemix(
        job.victim, job.pretrained, train, validation, settings, seed=task.seed, dtype=job.dtype,
        log=job.log, on_stage=job.on_stage, on_choice=job.on_choice,
    )
    job.finish(cleaned, {"trained_on": len(train), "validation": len(validation)})


def agreed(settings: FineMixing, pretrained: Pretrained) -> tuple[FineMixing, Pretrained]:
    """--top and --e-pur, which both say whether E-PUR runs, made to agree; it does unless one of them is against it.
    Raises BadInput where they contradict each other."""
    from dataclasses import replace

    from minibd.records import BadInput

    top, e_pur = settings.top, pretrained.e_pur
    if e_pur is False and top or e_pur and top == 0:
        raise BadInput(
            f"--top {top} is how many word embeddings E-PUR resets, and --{'e-pur' if e_pur else 'no-e-pur'} "
            "contradicts it: give one of the two"
        )
    e_pur = top != 0 if e_pur is None else e_pur
    return settings if e_pur else replace(settings, top=0), replace(pretrained, e_pur=e_pur)


if __name__ == "__main__":
    main(run)
