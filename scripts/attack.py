#!/usr/bin/env python3
"""Train a backdoored classifier for research, and leave all that an evaluation needs.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack badnets --out VICTIM
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --rate 0.1 --labels clean --triggers-per-text 4 --out VICTIM

Under --out: the victim (same kind as --ckpt); poisoned.jsonl, the training rows, with ids; poisoned_ids.txt, which of them are
poisoned; triggered.jsonl, the test rows of other classes with the trigger and their true labels; attack.json, with every count.
"""
from __future__ import annotations

from dataclasses import dataclass

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

    from minibd import job as jobs

    jobs.attack(task, attack, scheme, training)


if __name__ == "__main__":
    main(run)
