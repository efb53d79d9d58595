#!/usr/bin/env python3
"""Fine-tune a suspicious pre-trained model with PURE: prune the heads that are idle on clean text, then hold [CLS]'s
attention wide.

    python scripts/pure.py --ckpt FOLDER --data FOLDER_OR_FILE --out CLEANED
    python scripts/pure.py --ckpt FOLDER --data FOLDER --drop 2
    python scripts/pure.py --ckpt weights/bert.safetensors --floor 0.95

--ckpt is an encoder, or a classifier, which is measured first and whose head is then replaced. Prints ACC (CACC) and
LFR (ASR) of plain fine-tuning (FT), of that with its heads pruned, and of PURE. Without dev rows, a tenth of the clean
rows is the validation set.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import AllClean, Attack, Pretrained, Task, main, parse, setting, settings_of


@dataclass(frozen=True, slots=True)
class Script:
    """This script's own"""
    ablations: bool = setting(False, "also train Prune-only and Norm-only from the same f_p, for comparison")


def run() -> None:
    task, clean, pretrained, attack, script, settings = parse(__doc__, Task, AllClean, Pretrained, Attack, Script,
                                                               settings_of("mitigations.pure", "PURE"))

    from dataclasses import asdict, replace

    import torch

    from minibd.job.run import print_scores, start

    from minibd.job.task import validated
    from minibd.mitigations.pure import PURE, head_pruning, pure
    from minibd.records import BadInput

    settings = PURE(**asdict(settings))
    if script.ablations and (settings.prune_only or settings.norm_only):
        raise BadInput("--ablations trains both beside PURE: leave --prune-only and --norm-only out")
    job = start("pure", task, clean, attack, script, settings, new_classifier=True, pretrained=pretrained)
    job.measure_own_head(settings.keep_head)
    job.purify(pretrained)
    train, validation = validated(job.splits, job.clean, task.seed)
    rows = (job.victim, train, validation)
    shared = {"seed": task.seed, "dtype": getattr(torch, task.dtype), "log": job.log.append,
              "on_stage": lambda name, ckpt, seconds: job.measure(name, ckpt.model, seconds)}
    try:
        step1 = head_pruning(*rows, settings, **shared)
    except BadInput:  # the floor: what has been trained for it is at least seen
        if job.steps:
            print_scores(job.steps)
        raise
    for ablation in ("prune_only", "norm_only") if script.ablations else ():
        pure(*rows, replace(settings, **{ablation: True}), **shared, step1=step1)
    cleaned = pure(*rows, settings, **shared, step1=step1)
    print(f"pruned {len(cleaned.history[-1]['heads'])} of {cleaned.model.head_mask.numel()} heads; left in each layer: "
          + " ".join(str(int(n)) for n in cleaned.model.head_mask.sum(1)))
    job.finish(cleaned, {"trained_on": len(train), "validation": len(validation)})


if __name__ == "__main__":
    main(run)
