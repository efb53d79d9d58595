#!/usr/bin/env python3
"""Fine-tune a suspicious pre-trained model with PURE: prune the heads that are idle on clean text, then keep [CLS]'s
attention spread out.

    python scripts/pure.py --ckpt FOLDER --data FOLDER_OR_FILE --out CLEANED
    python scripts/pure.py --ckpt FOLDER --data FOLDER --drop 2
    python scripts/pure.py --ckpt weights/bert.safetensors --floor 0.95

--ckpt is an encoder, or a classifier, which is measured first and whose head is then replaced. Prints ACC (CACC) and
LFR (ASR) of plain fine-tuning (FT), of the same model with its heads pruned, and of PURE. Without dev rows, a tenth of
the clean rows is the validation set.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibd.cli import AllClean, Attack, Pretrained, Resuming, Task, main, parse, setting, settings_of
from minibd.job.idle import ATTACK, PURE_RULES

if TYPE_CHECKING:
    from minibd.train import StepLog


@dataclass(frozen=True, slots=True)
class Script:
    """This script's own flags"""
    ablations: bool = setting(False, "also train Prune-only and Norm-only from the same f_p, for comparison")


def run(log: StepLog | None = None) -> None:
    task, resuming, clean, pretrained, attack, script, settings = parse(
        __doc__, Task, Resuming, AllClean, Pretrained, Attack, Script, settings_of("mitigations.pure", "PURE"),
        rules=(*ATTACK, *PURE_RULES))

    from dataclasses import asdict, replace

    from minibd.job.run import print_scores, start
    from minibd.job.task import split_validation
    from minibd.mitigations.pure import PURE, head_pruning, pure
    from minibd.records import BadInput

    settings = PURE(**asdict(settings))
    if script.ablations and (settings.prune_only or settings.norm_only):
        raise BadInput("--ablations trains both beside PURE: leave --prune-only and --norm-only out")
    job = start("pure", task, clean, attack, script, settings, new_classifier=True, pretrained=pretrained, log=log,
                resuming=resuming)
    job.measure_if_classifier(settings.keep_head)
    job.undo()
    job.purify(pretrained)
    train, validation = split_validation(job.splits, job.clean, task.seed)
    rows = (job.victim, train, validation)
    options = {"seed": task.seed, "dtype": job.dtype, "log": job.log, "on_stage": job.on_stage}
    try:
        step1 = head_pruning(*rows, settings, **options)
    except BadInput:  # accuracy is under the floor before pruning: show the models that were trained until then
        if job.steps:
            print_scores(job.steps, job.advice)
        raise
    for ablation in ("prune_only", "norm_only") if script.ablations else ():
        pure(*rows, replace(settings, **{ablation: True}), **options, step1=step1)
    cleaned = pure(*rows, settings, **options, step1=step1, on_choice=job.on_choice)
    left = cleaned.model.head_mask  # (L, H)
    print(f"pruned {len(job.outcome['heads'])} of {left.numel()} heads; left in each layer: "
          + " ".join(str(int(n)) for n in left.sum(1)))
    job.finish(cleaned, {"trained_on": len(train), "validation": len(validation)})


if __name__ == "__main__":
    main(run)
