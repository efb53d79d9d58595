#!/usr/bin/env python3
"""Screen texts, or a training set, with one of five filters: ONION, STRIP, RAP; BKI, CUBE.

    python scripts/filter.py onion --ckpt weights/bert.safetensors
    python scripts/filter.py strip --ckpt VICTIM --data rows.csv --clean dev.csv
    python scripts/filter.py rap --ckpt VICTIM --data FOLDER --attack badnets --triggers cf,mn,bb,tq --target 1
    python scripts/filter.py onion --ckpt VICTIM --data FOLDER --lm GPT2_FOLDER --variant released
    python scripts/filter.py bki --ckpt VICTIM --data POISONED --clean FOLDER
    python scripts/filter.py cube --ckpt PRETRAINED --data POISONED --clean FOLDER --retrain

onion, strip, rap screen texts before they are answered: all rows of a file, with labels or without; of a folder, and of
what the checkpoint was trained on, the test rows. Where the attack is known, its triggered rows are screened too. bki
and cube screen training rows: those of a file, of a folder, or the poisoned.jsonl that attack.py left; --ckpt is a
classifier that was trained on them, or an encoder, which is first. --retrain trains on what is kept.

Thresholds are chosen on clean rows, at the share --frr of them that may be rejected; no filter sees a trigger, a poison
flag or the test rows. --variant released does what OpenBackdoor's code does, --defects a part of it by name:
minibd/filters/README.md says what.

Under --out: the file with the columns score (the higher, the more suspicious), keep, and of onion cleaned, the text
without the words it removes; rows.jsonl and triggered.jsonl where the rows come from elsewhere; result.json.
"""
from __future__ import annotations

import sys
from dataclasses import dataclass

from minibd.cli import Attack, Idle, Task, main, parse, setting, settings_of
from minibd.job.idle import ATTACK, UNTRAINED

CLASSES = {"onion": "Onion", "strip": "Strip", "rap": "Rap", "bki": "Bki", "cube": "Cube"}


@dataclass(frozen=True, slots=True)
class Rows:
    """What the defender holds, and how is counted"""
    clean: str = setting("", "a file of clean rows to choose the threshold on, or a folder, of which the dev rows "
                         "(default: the dev rows of --data, or of what the checkpoint was trained on)")
    counting: str = setting(
        "rejected", "what a rejected text counts as: rejected, neither right nor a success; released, OpenBackdoor's, "
        "where texts that ONION drops leave the count; flipped, MuScleLoRA's copy of it, where its class is the other",
        choices=("rejected", "released", "flipped"))


@dataclass(frozen=True, slots=True)
class Model:
    """ONION's language model"""
    lm: str = setting("", "a causal language model, or a masked one with its head (default weights/lm.safetensors, a "
                      "tiny one for the built-in reviews)", paper="GPT-2")


@dataclass(frozen=True, slots=True)
class Retraining:
    """Training on the suspicious rows, where --ckpt is an encoder, and on what is kept"""
    clean: str = setting("", "a file of clean rows to choose the threshold on, or a folder: its dev rows, and its test "
                         "rows for CACC (default: as for --data)")
    retrain: bool = setting(False, "train a new classifier on the rows that are kept")
    pretrained: str = setting("", "the encoder that --retrain starts from (default --ckpt, where it is one)")
    lr: float = setting(2e-5, "learning rate", paper="2e-5")
    epochs: int = setting(3, "passes", paper="10")
    batch_size: int = setting(32, "texts a step", paper="32")


def groups_of(name: str) -> tuple[type, ...]:
    own = settings_of(f"filters.{name}", CLASSES[name])
    if name in ("bki", "cube"):
        return Task, Retraining, own
    return (Task, Attack, Rows, *([Model] if name == "onion" else []), own)


ALL = Idle(("defects",), lambda v: v.variant == "released", "the released variant has all defects: leave one out")
RULES = {
    "onion": (ALL, Idle(("frr",), lambda v: "threshold" in v.defects, "with the defect threshold the threshold is 0: "
                        "leave it out"),
              Idle(("lower",), lambda v: "case" in v.defects, "with the defect case texts are read as they are: leave "
                   "it out"),
              *ATTACK, UNTRAINED, Idle(("frr", "lower", "batch_tokens"), lambda v: v.variant == "released",
                            "the released ONION has a threshold of 0, reads texts as they are, 32 at a time: leave it "
                            "out")),
    "strip": (ALL, *ATTACK, UNTRAINED), "rap": (ALL, *ATTACK, UNTRAINED),
    "bki": (ALL, Idle(("frr",), lambda v: v.variant == "released" or v.defects, "the released BKI drops one word and "
                      "has no threshold: leave it out"),),
    "cube": (ALL, Idle(("smallest", "min_samples"), lambda v: "hundred" in v.defects, "with the defect hundred a "
                       "cluster's least is 100 rows: leave it out"),
             Idle(("frr", "smallest", "min_samples", "dims"), lambda v: v.variant == "released", "the released CUBE "
                  "has 20 components, takes 100 rows for a cluster's least and drops what is not the largest: leave it "
                  "out"),),
}


def run() -> None:
    named = next((word for word in sys.argv[1:] if word in CLASSES), "")
    groups = groups_of(named) if named else ()
    others = {name: groups_of(name) for name in CLASSES}
    parsed = parse(__doc__, *groups, first=("filter", tuple(CLASSES)), rules=RULES.get(named, ()), others=others)

    from dataclasses import asdict

    from minibd.job import filtering as job
    from minibd.records import BadInput

    if parsed[0] != named:
        raise BadInput(f"{named} stands before {parsed[0]} and is a filter's name too: begin with the filter")
    settings = job.SETTINGS[named](**asdict(parsed[-1]))
    if named in job.TRAINING:
        _, task, retraining, _ = parsed
        training = job.Training(retraining.lr, retraining.epochs, retraining.batch_size)
        training.schedule  # refuses what trains nothing
        job.filter_training(named, task, Attack(attack="none"), settings, training, clean=retraining.clean,
                            pretrained=retraining.pretrained, retrain=retraining.retrain)
    else:
        _, task, attack, rows, *model, _ = parsed
        job.filter_texts(named, task, attack, settings, clean=rows.clean, counting=rows.counting,
                         lm=model[0].lm if model else "")


if __name__ == "__main__":
    main(run)
