#!/usr/bin/env python3
"""Choose a method's settings as a defender can: plant a backdoor of one's own in a copy of the victim, and see which
setting removes it.

    python scripts/choose.py --ckpt VICTIM --data FOLDER --vary attention_dropout=0.1,0.5 --vary lr1=1e-4,2e-4
    python scripts/choose.py --method finemix --ckpt VICTIM --pretrained CLEAN --data FOLDER --vary lr=2e-5,2e-4

The planted backdoor has triggers and a target of the defender's; nothing here reads those of the attacker. Each cell (a
combination of the values) is appended to --results as it ends, with the dev accuracy and the planted backdoor's ASR on
dev after each step, and skipped when it is there already; MBTSAD's cells that differ in the distillation alone share
their teacher. Choose the lowest ASR among the cells whose dev accuracy you accept. Methods other than MBTSAD choose
their own epoch, rho or threshold by the same dev rows. With --pretrained CLEAN --e-pur what is mended is the planted
copy after E-PUR.
"""
from __future__ import annotations

import argparse
from dataclasses import dataclass

from minibd.cli import BLENDS, REPAIRS, Clean, Pretrained, Task, main, parse, setting, settings_of

METHODS = {"mbtsad": ("mitigations.mbtsad", "MBTSAD"), **REPAIRS}


@dataclass(frozen=True, slots=True)
class Plant:
    """The defender's own backdoor, and what is tried against it"""
    method: str = setting("mbtsad", "whose settings; --method NAME --help lists them", choices=tuple(METHODS))
    plant_triggers: tuple[str, ...] = setting(("mb", "ak"), "rare words that occur in no clean row")
    plant_target: int = setting(0, "the class they mean")
    plant_rate: float = setting(0.5, "share of the clean rows that are copied, triggered and relabelled")
    plant_lr: float = setting(5e-5, "learning rate of the planting")
    plant_epochs: int = setting(3, "passes of the planting")
    vary: list[str] | None = setting(
        None,
        "setting=value,value,...: tried in every combination; may be given again (default: the settings as "
        "they are, one cell)",
        kind=list,
    )
    teachers: bool = setting(
        False, "mbtsad: stop at the teacher: the distillation, two thirds of the time, is left out"
    )
    results: str = setting("scripts/results/choose.jsonl", "file the cells are appended to")


def run() -> None:
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)  # each method has its own flags
    first.add_argument("--method", choices=tuple(METHODS), default="mbtsad")
    asked = first.parse_known_args()[0].method
    task, clean, plant, before, settings = parse(__doc__, Task, Clean, Plant, Pretrained, settings_of(*METHODS[asked]))

    import itertools
    import time
    from dataclasses import asdict, fields
    from pathlib import Path

    import torch

    from minibd import checkpoint
    from minibd.job.e_pur import check_pretrained, pretrained_of, purified
    from minibd.job.registry import MENDS
    from minibd.job.task import clean_rows, open_task, print_rows, with_dev
    from minibd.attacks.badnets import BadNets
    from minibd.attacks.poison import poison, triggered
    from minibd.evaluate import Evaluator
    from minibd.mitigations.mbtsad import MBTSAD, augmented, distil, retrain
    from minibd.records import BadInput
    from minibd.result_store import ResultStore
    from minibd.train import Schedule, Tuning, cross_entropy, fit

    Settings, mend = (MBTSAD, None) if asked == "mbtsad" else MENDS[asked]
    if plant.teachers and asked != "mbtsad":
        raise BadInput(f"--teachers: {asked} has no teacher, leave it out")
    if asked == "finemix" and before.e_pur is not None:
        raise BadInput(
            f"--{'' if before.e_pur else 'no-'}e-pur: E-PUR is a part of finemix, --top says how many embeddings it "
            "resets, 0 none"
        )
    check_pretrained(asked, before, asked in BLENDS)
    kinds = {f.name: f.metadata["kind"] for f in fields(Settings)}
    axes = {}
    for axis in plant.vary or ():
        name, _, values = axis.partition("=")
        if name not in kinds or not values:
            raise BadInput(f"--vary {axis}: write setting=value,value with one of {', '.join(kinds)}")
        axes[name] = [
            value in ("True", "true", "1") if kinds[name] is bool else kinds[name](value) for value in values.split(",")
        ]
    grid = [Settings(**asdict(settings) | dict(zip(axes, values))) for values in itertools.product(*axes.values())]

    victim, splits, _ = open_task("choose", task, before.pretrained or "")
    pretrained = pretrained_of(before.pretrained, task, victim) if before.pretrained else None
    splits = with_dev(splits, clean, task.seed)
    held, dev = clean_rows(task, clean, splits.train), splits.dev or splits.test
    print_rows(clean=held, dev=dev)

    def cell_of(chosen: MBTSAD | Tuning) -> dict:
        return {
            "ckpt": Path(task.ckpt).name, "seed": task.seed, "dtype": task.dtype, "clean": len(held),
            **({"dev": len(dev)} if clean.dev != 1 else {}), **({"teachers": True} if plant.teachers else {}),
            **({} if asked == "mbtsad" else {"method": asked}),
            **({"pretrained": Path(before.pretrained).name} if before.pretrained else {}),
            **({"e_pur": True} if before.e_pur else {}),
            "plant": {k: v for k, v in asdict(plant).items() if k.startswith("plant_")}, "settings": asdict(chosen),
        }

    store = ResultStore(plant.results)
    todo = [chosen for chosen in grid if store.get(cell_of(chosen)) is None]
    if not todo:
        print(f"every cell is in {plant.results} already")
        return
    own = BadNets(plant.plant_triggers)
    rows = poison(held, own, rate=plant.plant_rate, target=plant.plant_target, add=True, seed=task.seed + 1).rows
    planted, dtype = checkpoint.copy(victim), getattr(torch, task.dtype)
    fit(
        planted.model, victim.tokenizer, victim.tokenizer.encode(rows), cross_entropy,
        Schedule(plant.plant_lr, plant.plant_epochs), seed=task.seed, dtype=dtype, name="plant",
    )
    evaluator = Evaluator(dev, triggered(dev, own, target=plant.plant_target, seed=task.seed), plant.plant_target)

    def measured(name: str, ckpt: checkpoint.Checkpoint, started: float) -> dict:
        seconds = time.perf_counter() - started
        scores = evaluator(ckpt.model, ckpt.tokenizer)
        step = {
            "name": name, "dev": scores.cacc.percent, "n_dev": scores.cacc.n, "planted_asr": scores.asr.percent,
            "n_planted": scores.asr.n, "seconds": round(seconds, 1),
        }
        print(f"{name:8} dev {step['dev']:6.2f}  planted ASR {step['planted_asr']:6.2f}  {seconds:6.1f} s", flush=True)
        return step

    victims = [measured("victim", victim, time.perf_counter()), measured("planted", planted, time.perf_counter())]
    if before.e_pur:
        started = time.perf_counter()
        planted = purified(planted, pretrained, held)
        victims.append(measured("E-PUR", planted, started))

    def of_teacher(chosen: MBTSAD) -> str:
        """What the teacher depends on: every setting but those that the distillation alone reads."""
        return str(
            {
                name: value
                for name, value in asdict(chosen).items()
                if name
                not in ("lr2", "epochs2", "attention_dropout2", "alpha", "beta", "gamma", "p", "ablate", "variant")
            }
        )

    taught = {}  # the last teacher by the settings that made it: cells of one teacher come one after another

    def taught_and_distilled(chosen: MBTSAD) -> list[dict]:
        key = of_teacher(chosen)
        if key not in taught:
            taught.clear()
            started = time.perf_counter()
            d_aug = victim.tokenizer.encode(augmented(held, chosen, task.seed))
            teacher = retrain(planted, d_aug, chosen, seed=task.seed, dtype=dtype)
            taught[key] = d_aug, teacher, measured("TS-FT", teacher, started)
        d_aug, teacher, step = taught[key]
        if plant.teachers:
            return [step]
        started = time.perf_counter()
        return [step, measured("MBTSAD", distil(planted, teacher, d_aug, chosen, seed=task.seed, dtype=dtype), started)]

    def mended(chosen: Tuning) -> list[dict]:
        started = time.perf_counter()
        result = mend(planted, *[pretrained] * (asked in BLENDS), held, dev, chosen, seed=task.seed, dtype=dtype)
        return [
            measured(asked, result, started)
            | {name: result.history[-1][name] for name in ("rho", "looks") if name in result.history[-1]}
        ]

    for chosen in sorted(todo, key=of_teacher) if asked == "mbtsad" else todo:
        print(" ".join(f"{name}={getattr(chosen, name)}" for name in axes), flush=True)
        store.add(
            cell_of(chosen), {"steps": [*victims, *(taught_and_distilled if asked == "mbtsad" else mended)(chosen)]}
        )


if __name__ == "__main__":
    main(run)
