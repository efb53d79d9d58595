#!/usr/bin/env python3
"""Train a backdoored classifier for research, and leave all that an evaluation needs.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack badnets --out VICTIM
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --rate 0.1 --labels clean --triggers-per-text 4 --out VICTIM

Under --out: the victim (same kind as --ckpt); poisoned.jsonl, the training rows, with ids; poisoned_ids.txt, which of them are
poisoned; triggered.jsonl, the test rows of other classes with the trigger and their true labels; attack.json, with every count.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from minibd.cli import Attack, Task, main, parse, setting


@dataclass(frozen=True, slots=True)
class Poison:
    """Which rows are poisoned, and how"""
    rate: float = setting(0.1, "poisoned rows as a share of all rows", paper="0.1")
    labels: str = setting("dirty", "rows of other classes, relabelled (dirty); of the target class (clean); of any class (mix)",
                          choices=("dirty", "clean", "mix"))
    add: bool = setting(False, "add poisoned copies and keep their clean twins, instead of replacing rows")


@dataclass(frozen=True, slots=True)
class Training:
    """How the victim is trained"""
    lr: float = setting(2e-5, "learning rate")
    epochs: int = setting(3, "passes over the poisoned rows")
    batch_size: int = setting(32, "texts a step")
    twin: bool = setting(False, "also train a clean twin on the clean rows, same schedule and seed: the floor of ASR")


def run() -> None:
    task, attack, scheme, training = parse(__doc__, Task, Attack, Poison, Training)

    import time
    from dataclasses import asdict

    import torch

    from minibd import checkpoint, data, report
    from minibd import job as jobs
    from minibd.attacks.known import corruption
    from minibd.attacks.poison import poison, triggered
    from minibd.evaluate import Judge
    from minibd.records import BadInput
    from minibd.train import Schedule, cross_entropy, fit

    if attack.attack in ("known", "none"):
        attack = replace(attack, attack="badnets")
    if attack.triggered:
        raise BadInput("--triggered is for evaluation: attack.py makes triggered rows itself")
    started = time.perf_counter()
    base, splits, out = jobs.open_task("attack", task, new_classifier=True)
    entry = jobs.entry_of(attack)
    corrupt = corruption(entry)
    poisoned = poison(splits.train, corrupt, rate=scheme.rate, target=attack.target, labels=scheme.labels, add=scheme.add, seed=task.seed)
    judge = Judge(splits.test, triggered(splits.test, corrupt, target=attack.target, seed=task.seed), attack.target)
    jobs.say_rows(train=poisoned.rows, test=splits.test, triggered=judge.triggered)
    print(f"poisoned  {len(poisoned.ids)} rows, {poisoned.flipped} of them with a flipped label")

    schedule = Schedule(training.lr, training.epochs, training.batch_size)
    steps = []

    def train(name: str, rows: data.Examples) -> checkpoint.Record:
        before = time.perf_counter()
        record = checkpoint.copy(base)
        fit(record.model, base.text, base.text.encode(rows), cross_entropy, schedule, seed=task.seed, dtype=getattr(torch, task.dtype), name=name)
        steps.append(report.Step(name, judge(record.model, base.text), time.perf_counter() - before))
        return record

    told = {"seed": task.seed, **asdict(training), "data": jobs.data_of(task, base)}
    if training.twin:
        twin = train("clean twin", splits.train)
        twin.history.append({"trained": "clean", **told})
        checkpoint.save(twin, jobs.beside(out, task.ckpt, "clean-"))
    victim = train("victim", poisoned.rows)
    counts = {"rate": scheme.rate, "labels": scheme.labels, "add": scheme.add, "n": len(splits.train),
              "n_poisoned": len(poisoned.ids), "n_flipped": poisoned.flipped}
    victim.history.append({"trained": "poisoned", **entry, **counts, **told})

    checkpoint.save(victim, jobs.beside(out, task.ckpt))
    data.write(poisoned.rows, out / "poisoned.jsonl")
    data.write(judge.triggered, out / "triggered.jsonl")
    report.write_text(out / "poisoned_ids.txt", "".join(f"{id}\n" for id in poisoned.ids))
    report.write_json(out / "attack.json", {**entry, **counts, "args": jobs.args_of(task, attack, scheme, training),
                                            "versions": report.versions(), "seconds": round(time.perf_counter() - started, 2),
                                            "steps": [{"name": s.name, **report.scores(s.scores)} for s in steps]})
    print(report.table(steps))
    print(f"written: {out}")


if __name__ == "__main__":
    main(run)
