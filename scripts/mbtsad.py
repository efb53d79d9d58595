#!/usr/bin/env python3
"""Mend a suspicious classifier with MBTSAD: retrain it on token-split clean text, then distil attention from that into
it.

    python scripts/mbtsad.py --ckpt weights/bert.safetensors
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER_OR_FILE --out CLEANED
    python scripts/mbtsad.py --ckpt FOLDER --data FOLDER --triggered triggered.tsv --target 1
    python scripts/mbtsad.py --ckpt weights/bert.safetensors --pick --mlm weights/bert-clean.safetensors
    python scripts/mbtsad.py --ckpt weights/bert.safetensors --augment auto --mlm weights/bert-clean.safetensors

Prints CACC and ASR of the victim, of clean fine-tuning for as many steps (CFT), of the retrained teacher (TS-FT,
whatever --augment is) and of MBTSAD. --pick trains nothing: it prints what --augment auto would choose by, the victim's
mean cross-entropy in nats on one copy of each clean row (Eq. 9, equal budgets), and how far the copies' [CLS] vectors
lie from the clean ones (0 to 1).
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import Attack, Clean, Pretrained, Task, main, parse, setting, settings_of


@dataclass(frozen=True, slots=True)
class Script:
    """This script's own"""
    cft: bool = setting(True, "also train the CFT row, for comparison; --no-cft saves its time")
    best_epoch: bool = setting(
        False,
        "keep of each training the epoch that is best on the dev rows (without any, on a tenth of the clean ones), as "
        "the other mitigations do; otherwise the last",
        paper="not said",
    )
    pick: bool = setting(
        False, "train nothing: print how much each augmenter shakes the victim, and which one auto would take"
    )


def run() -> None:
    task, clean, pretrained, attack, script, settings = parse(__doc__, Task, Clean, Pretrained, Attack, Script,
                                                              settings_of("mitigations.mbtsad", "MBTSAD"))

    import time
    from dataclasses import asdict, replace

    import torch

    from minibd.job.run import start

    from minibd.job.task import device_of, validated
    from minibd import report
    from minibd.analysis.perturbation import perturbations
    from minibd.mitigations.finetune import finetune
    from minibd.mitigations.mbtsad import MBTSAD, mbtsad, resources_of
    from minibd.records import BadInput

    settings = MBTSAD(**asdict(settings))
    if script.pick and pretrained.e_pur:
        raise BadInput("--pick looks at the victim as it is and --e-pur changes it: leave one of the two out")
    report.output_folder(task.out or "out/mbtsad", settings.mlm)
    dtype = getattr(torch, task.dtype)
    # what is missing is said before anything is trained
    resources = resources_of(settings, device_of(task.device), dtype)
    job = start("mbtsad", task, clean, attack, script, settings, pretrained=pretrained)
    if script.pick:
        found = perturbations(job.victim, job.clean, replace(settings, budget="equal"), task.seed, resources)
        rows = [(name, f"{of.loss:.4f}", f"{of.distance:.4f}") for name, of in found.items()]
        print(report.format_table([("", "cross-entropy", "distance"), *rows]))
        del found["clean"]
        print(f"auto: {max(found, key=lambda name: found[name].loss)}")
        return

    def on_choice(name: str, value: object) -> None:
        if name == "losses":
            job.args["losses"] = value
        elif name == "augmenter":
            job.args["chosen"] = value
            print(
                f"auto: {value}, by the victim's mean cross-entropy: "
                + ", ".join(f"{of} {loss:.4f}" for of, loss in job.args["losses"].items())
            )

    settings = job.resolved(settings)
    train, validation = validated(job.splits, job.clean, task.seed) if script.best_epoch else (job.clean, None)
    job.measure("victim", job.victim.model, 0.0)
    job.purify(pretrained)
    if script.cft:
        # The teacher's schedule over the clean rows alone, with as many more passes: the same number of steps.
        started = time.perf_counter()
        schedule = replace(settings.schedule(1), epochs=settings.epochs1 * (settings.k + settings.originals))
        tuned = finetune(
            job.victim, train, schedule, validation=validation, seed=task.seed, dtype=dtype, log=job.log.append
        )
        job.measure("CFT", tuned.model, time.perf_counter() - started)
    cleaned = mbtsad(
        job.victim, train, settings, validation=validation, seed=task.seed, dtype=dtype, log=job.log.append,
        resources=resources, on_choice=on_choice, on_stage=lambda name, ckpt,
        seconds: job.measure(name, ckpt.model, seconds),
    )
    job.finish(
        cleaned,
        {"augmented": (settings.k + settings.originals) * len(train)}
        | ({"validation": len(validation)} if validation else {}),
    )


if __name__ == "__main__":
    main(run)
