#!/usr/bin/env python3
"""Repair a suspicious classifier with MBTSAD: retrain it on token-split clean text, then distil that model's attention
into it.

    python scripts/mbtsad.py --ckpt weights/bert.safetensors
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER_OR_FILE --out CLEANED --cft
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER --triggered triggered.tsv --target 1
    python scripts/mbtsad.py --ckpt weights/bert.safetensors --pick --mlm weights/bert-clean.safetensors
    python scripts/mbtsad.py --ckpt weights/bert.safetensors --augment auto --mlm weights/bert-clean.safetensors

Prints CACC and ASR of the victim, of clean fine-tuning for as many steps (CFT, with --cft, or without --data), of the
retrained teacher (TS-FT, whatever --augment is) and of MBTSAD. --pick trains nothing: it prints what --augment auto
chooses by, the victim's mean cross-entropy in nats on one copy of each clean row (Eq. 9, equal budgets), and how far
the copies' [CLS] vectors lie from the clean ones (0 to 1).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibd.cli import Attack, Clean, Idle, Pretrained, Resuming, Task, main, parse, setting, settings_of
from minibd.job.idle import ATTACK, ATTACK_FLAGS, DISTILLING, MBTSAD_RULES

if TYPE_CHECKING:
    from minibd.job.run import Job
    from minibd.mitigations.mbtsad import MBTSAD, AugmentResources
    from minibd.train import StepLog


@dataclass(frozen=True, slots=True)
class Script:
    """This script's own flags"""
    cft: bool | None = setting(
        None, "also train the CFT row, for comparison, which takes a third of the time (default: only without --data)",
        kind=bool,
    )
    best_epoch: bool = setting(
        False, "keep the epoch of each training that is best on the dev rows (without any, on a tenth of the clean "
        "ones), as the other mitigations do; otherwise the last", paper="not said",
    )
    cache: str = setting(
        "auto", "keep the teacher's outputs over the epochs of the distillation, which spares its forward pass and "
        "changes no number: a size in MiB, off, or auto, an eighth of the memory, at most 4 GiB"
    )
    pick: bool = setting(
        False, "train nothing: print how much each augmenter shakes the victim, and which one auto would choose"
    )


TRAINED = (
    "cft", "best_epoch", "cache", "k", "originals", "lr1", "lr2", "epochs1", "epochs2", "batch_size", "warmup",
    "weight_decay", "attention_dropout", "distil", *DISTILLING, "augment", "budget", "dev", "out", "e_pur", "suspects",
    "attack", "triggered", *ATTACK_FLAGS, "resume", "save_every",
)
RULES = (
    Idle(TRAINED, lambda v: v.pick, "--pick looks at the victim as it is with every augmenter, trains and measures "
         "nothing and writes no file: leave it out"),
    Idle(("cache",), lambda v: not v.distil, "of the distillation, which --no-distil leaves out: give one of the two"),
    Idle(("cache",), lambda v: v.ablate in ("no-att", "cls-only") or v.alpha == 0,
         "without the attention term the teacher is not asked for maps, and is asked each time: leave it out"),
    Idle(("cache",), lambda v: v.variant == "released",
         "the released attention term reads padding, which is another in each epoch: leave it out"),
    Idle(("cache",), lambda v: v.epochs2 < 2 and not v.steps,
         "--epochs2 {epochs2} asks the teacher once for each text: leave it out"),
    Idle(("dev",), lambda v: not v.best_epoch, "no epoch is chosen: say --best-epoch, or leave it out"),
    *ATTACK, *MBTSAD_RULES,
)


def run(log: StepLog | None = None) -> None:
    task, resuming, clean, pretrained, attack, script, settings = parse(
        __doc__, Task, Resuming, Clean, Pretrained, Attack, Script, settings_of("mitigations.mbtsad", "MBTSAD"),
        rules=RULES)

    import time
    from dataclasses import asdict, replace

    from minibd import report
    from minibd.job.run import start
    from minibd.job.task import bytes_kept, device_of, products_of, split_validation
    from minibd.mitigations.finetune import finetune
    from minibd.mitigations.mbtsad import MBTSAD, mbtsad, resources_of
    from minibd.records import BadInput

    settings, dtype, cache = MBTSAD(**asdict(settings)), products_of(task), bytes_kept(script.cache)
    if script.pick and pretrained.e_pur:
        raise BadInput("--pick looks at the victim as it is and --e-pur changes it: leave one of the two out")
    if script.pick:  # which writes nothing, so that a run in --out is not in its way
        task, resuming = replace(task, overwrite=True), None
    device = device_of(task.device)
    report.output_folder(task.out or "out/mbtsad", settings.mlm)
    resources = resources_of(settings, device, dtype)  # first: what is missing is reported at once
    job = start("mbtsad", task, clean, attack, script, settings, pretrained=pretrained, log=log, resuming=resuming)
    if script.pick:
        return print_perturbations(job, settings, task.seed, resources)

    settings, job.victim.model.cache = job.resolved(settings), cache
    train, validation = (
        split_validation(job.splits, job.clean, task.seed) if script.best_epoch else (job.clean, None)
    )
    options = {"validation": validation, "seed": task.seed, "dtype": dtype, "log": job.log}
    job.measure_victim()
    job.undo()
    job.purify(pretrained)
    copies = settings.k + settings.originals
    job.args["cft"] = script.cft if script.cft is not None else not task.data
    if job.args["cft"]:
        # The teacher's schedule over the clean rows alone, with as many more passes: the same number of steps.
        started, schedule = time.perf_counter(), settings.schedule(1, copies * len(train))
        schedule = replace(schedule, epochs=schedule.epochs * copies)
        tuned = finetune(job.victim, train, schedule, **options)
        job.measure("CFT", tuned.model, time.perf_counter() - started)
    cleaned = mbtsad(
        job.victim, train, settings, **options, resources=resources, on_stage=job.on_stage, on_choice=job.on_choice
    )
    rows = {"augmented": copies * len(train)}
    job.finish(cleaned, rows | {"validation": len(validation)} if validation else rows)


def print_perturbations(job: Job, settings: MBTSAD, seed: int, resources: AugmentResources) -> None:
    """What --pick prints: each augmenter's loss and distance, and the one of the largest loss."""
    from dataclasses import replace

    from minibd import report
    from minibd.analysis.perturbation import perturbations

    found = perturbations(job.victim, job.clean, replace(settings, budget="equal"), seed, resources)
    lines = [(name, f"{one.loss:.4f}", f"{one.distance:.4f}") for name, one in found.items()]
    print(report.format_table([("", "cross-entropy", "distance"), *lines]))
    del found["clean"]
    print(f"auto: {max(found, key=lambda name: found[name].loss)}")


if __name__ == "__main__":
    main(run)
