#!/usr/bin/env python3
"""Every filter on every victim, correct and as released: train the victims, screen, keep the figures as cells.

    python scripts/filter_grid.py --minilm MINILM_FOLDER --sst2 SST2_FOLDER --lm GPT2_FOLDER
    python scripts/filter_grid.py --minilm MINILM_FOLDER --sst2 SST2_FOLDER --lm GPT2_FOLDER --device cuda --jobs 8
    python scripts/filter_grid.py --minilm MINILM_FOLDER --sst2 SST2_FOLDER --only badnets-0,strip,rap --dtype bfloat16
    python scripts/filter_grid.py --builtin         # each defect alone, on the models of weights/: no folder needed
    python scripts/tables.py filters --write        # the page of what is there

The victims are seven attacks on MiniLM and SST-2, those of rare words by three seeds; attack.py trains each under
--work, and what is there is not trained again. One process works on one victim, --jobs of them at a time. A cell is one
filter in one variant on one victim, appended to scripts/results/filters.jsonl as it ends; a restart skips what is
there. bki and cube screen the rows that the victim was trained on (of ep and sos, which train on poisoned rows alone,
these beside the clean ones) and train a new classifier from --minilm on what is kept.
"""
from __future__ import annotations

import json
import os
import shlex
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.cli import PART_OF, Attack, Idle, Task, main, parse, progress, setting
from minibd.job.victims import is_made, part, trained

if TYPE_CHECKING:
    from minibd.filters.bki import Read
    from minibd.job.filtering import Train
    from minibd.result_store import ResultStore

FILTERS, VARIANTS = ("onion", "strip", "rap", "bki", "cube"), ("paper", "released")
SCHEME = "--labels mix --rate 0.1"  # as in the papers' tables, but for sos and ep, whose own schemes stand
ATTACKS = {
    "badnets": (f"--attack badnets {SCHEME} --epochs 3", 3), "lwp": ("--attack lwp", 3), "ep": ("--attack ep", 3),
    "sos": ("--attack sos", 3), "addsent": (f"--attack addsent {SCHEME} --epochs 3", 1),
    "hiddenkiller": (f"--attack paraphrase --paraphrases {{sst2}}/hiddenkiller {SCHEME} --epochs 5", 1),
    "stylebkd": (f"--attack paraphrase --paraphrases {{sst2}}/stylebkd {SCHEME} --epochs 5", 1),
}
MARK = "filter_grid.py"  # what calls of this script by itself are told by


@dataclass(frozen=True, slots=True)
class Where:
    """What the victims are made of, and which cells"""
    builtin: bool = setting(False, "each defect of the released code alone, on top of the correct filter, and the "
                            "filters on a clean model: on weights/ and the built-in reviews, a victim of 1,000 rows")
    minilm: str = setting("", "folder of MiniLM")
    sst2: str = setting("", "folder of SST-2's rows, with hiddenkiller and stylebkd in it")
    lm: str = setting("", "ONION's language model, a causal one (default weights/lm.safetensors, which knows the "
                      "built-in reviews alone)")
    only: tuple[str, ...] = setting((), "attacks (badnets), victims (badnets-0) and filters (strip) to run (default "
                                    "all)")
    onion_rows: int = setting(0, "dev and test rows that ONION reads, and as many triggered ones, where its language "
                              "model is slow (default all)")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    dtype: str = setting("float32", "precision of matrix products, of trainings and filters; victims and cells of "
                         "their own", choices=("float32", "bfloat16"))
    jobs: int = setting(1, "victims at a time")
    work: str = setting("out/filter-grid", "folder of the victims, kept and used again")
    results: str = setting("scripts/results/filters.jsonl", "file that the cells are appended to")


RULES = (
    Idle(("minilm", "sst2", "lm", "onion_rows", "device", "dtype", "jobs"), lambda v: v.builtin,
         "--builtin runs on the models of weights/ and the built-in reviews, on the CPU: leave it out"),
)


def run() -> None:
    (where,) = parse(__doc__, Where, rules=RULES)

    from minibd.records import BadInput
    from minibd.result_store import ResultStore

    names = [f"{attack}-{seed}" for attack, (_, seeds) in ATTACKS.items() for seed in range(seeds)]
    if wrong := [w for w in where.only if w not in (*ATTACKS, *FILTERS, *names)]:
        raise BadInput(f"--only {','.join(wrong)[:80]}: there are {', '.join((*ATTACKS, *FILTERS))} and {names[0]}")
    if where.builtin:
        of_builtin(where, ResultStore(where.results))
        return
    for flag in ("minilm", "sst2"):
        if not Path(getattr(where, flag) or "?").is_dir():
            raise BadInput(f"--{flag} {getattr(where, flag)[:100]}: no such folder, and every victim needs it")
    if where.lm and not Path(where.lm).exists():
        raise BadInput(f"--lm {where.lm[:100]}: no such checkpoint")
    if where.jobs < 1:
        raise BadInput(f"--jobs {where.jobs}: at least 1 at a time")
    asked = {*where.only} - {*FILTERS}
    chosen = [n for n in names if not asked or asked & {n, n.rpartition("-")[0]}]
    store = ResultStore(where.results)
    progress().kept = f"victims under {where.work} and cells in {store.path} stay, the same command goes on behind them"
    if os.environ.get(PART_OF) == MARK or len(chosen) == 1:
        for name in chosen:
            of_victim(name, where, store)
            progress().finished.append(name)
        return
    shown = {"minilm": where.minilm, "sst2": where.sst2, "lm": where.lm, "device": where.device, "dtype": where.dtype,
             "work": where.work, "results": where.results, "onion_rows": where.onion_rows}
    filters = [f for f in where.only if f in FILTERS]

    def one(name: str) -> int:
        words = [f"--{flag.replace('_', '-')}={value}" for flag, value in shown.items() if value not in ("", 0)]
        return part("filter_grid.py", [*words, f"--only={','.join([name, *filters])}"], MARK)

    with ThreadPoolExecutor(where.jobs) as pool:
        codes = dict(zip(chosen, pool.map(one, chosen)))
    if failed := [name for name, code in codes.items() if code]:
        raise BadInput(f"{', '.join(failed)} ended early (their own lines are above): the same command goes on")


def of_builtin(where: Where, store: ResultStore) -> None:
    from minibd.job.builtin_filters import run_cases
    from minibd.records import BadInput

    if wrong := [name for name in where.only if name not in FILTERS]:
        raise BadInput(f"--only {wrong[0]}: --builtin has one victim, of badnets; name filters of {', '.join(FILTERS)}")
    progress().kept = f"the cells in {store.path} stay, the same command goes on behind them"
    run_cases(store, Path(where.work, "builtin"), where.only, MARK)


def training_of(attack: str) -> tuple[float, int, int]:
    """Learning rate, epochs and batch size of the classifier that is trained on the rows that are kept."""
    return 2e-5, 5 if "--epochs 5" in ATTACKS[attack][0] else 3, 32


def victim_of(name: str, where: Where) -> Path:
    """The folder of the victim, trained where it is not there."""
    attack, _, seed = name.rpartition("-")
    out = Path(where.work, f"{name}{f'-{where.dtype}' if where.dtype != 'float32' else ''}")
    if is_made(out):
        return out
    flags = shlex.split(ATTACKS[attack][0].format(sst2=where.sst2))
    return trained(out, [f"--ckpt={where.minilm}", f"--data={where.sst2}", f"--seed={seed}",
                         f"--device={where.device}", f"--dtype={where.dtype}", *flags], MARK)


def of_victim(name: str, where: Where, store: ResultStore) -> None:
    """Every cell of one victim that is not there yet."""
    from minibd import checkpoint
    from minibd.filters.bki import read_once
    from minibd.job.filtering import LM, trained_once
    from minibd.result_store import weights_digest

    attack, _, seed = name.rpartition("-")
    filters = [f for f in FILTERS if f in where.only] or FILTERS
    lm = where.lm or str(LM)
    digests = {"base": weights_digest(checkpoint.sha256(where.minilm))}
    todo = []
    for one in filters:
        known = {**digests, "lm": weights_digest(checkpoint.sha256(lm))} if one == "onion" else digests
        for variant in VARIANTS:
            cell = {"base": Path(where.minilm).name, "data": Path(where.sst2).name, "attack": attack,
                    "seed": int(seed), "flags": ATTACKS[attack][0], "filter": one, "variant": variant,
                    **({"lm": Path(lm).name} if one == "onion" else {}),
                    **({"onion_rows": where.onion_rows} if where.onion_rows and one == "onion" else {}),
                    **({"dtype": where.dtype} if where.dtype != "float32" else {}), "sha256": known}
            if store.get(cell) is None:
                todo.append(cell)
    if not todo:
        return
    victim, read, train = victim_of(name, where), read_once(), trained_once()
    for cell in todo:
        made = cell_of(cell, victim, where, lm, read, train)
        store.add(cell, {"result": made})
        print(f"{name} {cell['filter']} {cell['variant']}: {made['seconds']:.0f} s", flush=True)


def cell_of(cell: dict, victim: Path, where: Where, lm: str, read: Read, train: Train) -> dict:
    """One filter in one variant: what it was scored, without paths. read, train: BKI's and the retraining's, of this
    victim."""
    from minibd.job import filtering as job
    from minibd.job.builtin_filters import kept_of

    name, variant = cell["filter"], cell["variant"]
    data, out = Path(where.sst2), Path(where.work, "screened", f"{victim.name}-{name}-{variant}")
    settings = job.SETTINGS[name](variant=variant)
    task = Task(ckpt=str(victim), data=str(data), out=str(out), seed=cell["seed"], device=where.device,
                dtype=where.dtype, overwrite=True)  # what a killed run left of this cell
    if name == "onion" and where.onion_rows:
        test, triggered, clean = some_rows(victim, data, where)
        found = job.filter_texts(name, replace(task, data=str(test)), triggered, settings, clean=str(clean), lm=lm)
    elif name not in job.TRAINING:
        found = job.filter_texts(name, task, Attack(**triggers_of(victim, where)), settings, lm=lm)
    else:
        found = job.filter_training(
            name, replace(task, data=str(poisoned_of(victim, data, where))),
            Attack(attack="none"), settings, job.Training(*training_of(cell["attack"])), clean=str(data),
            pretrained=where.minilm, retrain=True, read=read, train=train)
    return kept_of(found)


def some_rows(victim: Path, folder: Path, where: Where) -> tuple[Path, Attack, Path]:
    """The first test rows, triggered rows and dev rows, `onion_rows` of each, as files."""
    from minibd import checkpoint, data

    out, labels = Path(where.work, "some", f"{victim.name}-{where.onion_rows}"), checkpoint.read_header(victim).labels
    out.mkdir(parents=True, exist_ok=True)
    for path in (folder / "test.tsv", folder / "dev.tsv", victim / "triggered.jsonl"):
        rows = data.read(path, labels=labels)
        data.write(rows.like(rows[:where.onion_rows]), out / f"{path.stem}.jsonl")
    target = json.loads((victim / "attack.json").read_text(encoding="utf-8"))["target"]
    return out / "test.jsonl", Attack(triggered=str(out / "triggered.jsonl"), target=target), out / "dev.jsonl"


def triggers_of(victim: Path, where: Where) -> dict:
    """The attack of the victim's history; its paraphrases are where --sst2 says."""
    entry = json.loads((victim / "attack.json").read_text(encoding="utf-8"))
    if entry["attack"] != "paraphrase":
        return {}
    return {"paraphrases": str(Path(where.sst2, Path(entry["paraphrases"]).name))}


def poisoned_of(victim: Path, folder: Path, where: Where) -> Path:
    """What bki and cube screen: the victim's own training rows; where these are poisoned ones alone, with the clean
    training rows before them."""
    from minibd import checkpoint, data, report

    entry = json.loads((victim / "attack.json").read_text(encoding="utf-8"))
    if not entry.get("only"):
        return victim
    out = Path(where.work, "poisoned", victim.name)
    labels = checkpoint.read_header(victim).labels
    clean = data.read(folder / "train.tsv", labels=labels)
    ids = set((victim / "poisoned_ids.txt").read_text(encoding="utf-8").split("\n"))
    own = [replace(x, id=f"planted-{i}-{x.id}") for i, x in enumerate(data.read(victim / "poisoned.jsonl",
                                                                                labels=labels)) if x.id in ids]
    data.write(clean.like([*clean, *own]), out / "poisoned.jsonl")
    report.write_text(out / "poisoned_ids.txt", "".join(f"{x.id}\n" for x in own))
    report.write_text(out / "triggered.jsonl", (victim / "triggered.jsonl").read_text(encoding="utf-8"))
    report.write_json(out / "attack.json", {key: entry[key] for key in ("attack", "target")})
    return out


if __name__ == "__main__":
    main(run)
