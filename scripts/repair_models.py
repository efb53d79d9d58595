#!/usr/bin/env python3
"""How much a repair removes: victims of every attack, repaired with 20 % clean rows, with 64 texts without labels, with
nothing but the model.

    python scripts/repair_models.py all --minilm MINILM_FOLDER --sst2 SST2_FOLDER
    python scripts/repair_models.py all --minilm MINILM_FOLDER --sst2 SST2_FOLDER --device cuda --dtype bfloat16 \
        --jobs 6
    python scripts/repair_models.py all --minilm MINILM_FOLDER --sst2 SST2_FOLDER --only ep,sos --seeds 0 --held 20%
    python scripts/repair_models.py all --base reviews --only badnets --seeds 0
    python scripts/repair_models.py victims --minilm MINILM_FOLDER --sst2 SST2_FOLDER --only ep,sos --seeds 0
    python scripts/repair_models.py twins --minilm MINILM_FOLDER --sst2 SST2_FOLDER --only ep,sos    # clean models
    python scripts/repair_models.py choose --base planted --seeds 10    # what the defaults are chosen by
    python scripts/tables.py repair --write        # the page of what is there

attack.py trains each victim and its clean twin under --work; what is there is not trained again. Each repair is a cell,
appended to --results as it ends: CACC and ASR of the victim, after the undoing, after each further part, the clean
twin's floor on the same triggered rows, what the scans found, and seconds. No repair sees a triggered row. "twins"
repairs the clean twins in the victims' place: what a repair costs a model without a backdoor; its cells are appended
to scripts/results/repair-twins.jsonl. One process a victim ("one", "tried", "measured" and "spared" are these
processes).

"choose" scans each victim of --base planted, whose triggers are no attack's own, and its clean twin, and undoes what is
named in each of several ways; its cells are appended to scripts/results/repair-choose.jsonl.
"""
from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.cli import main, parse, progress, setting
from minibd.job.victims import is_made, model_in, part, trained

if TYPE_CHECKING:
    from minibd.checkpoint import Checkpoint
    from minibd.cli import Attack
    from minibd.evaluate import Scores
    from minibd.job.repair_run import Rows

SST2 = {  # attack.py's flags, those of the attacks' own papers but for LWP's more passes, which MiniLM needs
    "badnets": "--attack badnets --rate 0.1 --lr 2e-5 --epochs 3 --twin", "lwp": "--attack lwp --twin",
    "ep": "--attack ep --twin", "sos": "--attack sos --twin", "ripple": "--attack ripple --twin",
    "addsent": "--attack addsent --twin",
    "hiddenkiller": "--attack paraphrase --paraphrases {sst2}/hiddenkiller --rate 0.2 --twin",
    "stylebkd": "--attack paraphrase --paraphrases {sst2}/stylebkd --rate 0.2 --twin",
}
MORE = {  # MuScleLoRA's victims, by --only
    "badnets-mix": "--attack badnets --preset musclelora --twin",
    "addsent-mix": "--attack addsent --preset musclelora --twin",
}
REVIEWS = {  # the built-in classifier of width 128, on fewer rows
    "badnets": "--rows 3000 --attack badnets --twin", "lwp": "--rows 6000 --epochs 8 --attack lwp --twin",
    "ep": "--rows 3000 --attack ep --epochs 9 --twin", "sos": "--rows 3000 --attack sos --epochs 9 --twin",
    "ripple": "--rows 1000 --attack ripple --twin", "addsent": "--rows 3000 --attack addsent --twin",
}
PLANTED = {  # what the defaults are chosen by: words of nobody's attack, on the same classifier
    "badnets": "--rows 3000 --attack badnets --triggers mb,ak --twin",
    "badnets0": "--rows 3000 --attack badnets --triggers ak --target 0 --twin",
    "weak": "--rows 3000 --attack badnets --triggers velvet --rate 0.02 --twin",
    "lwp": "--rows 6000 --epochs 8 --attack lwp --triggers mb,ak,wren,uh --twin",
    "ep": "--rows 3000 --attack ep --triggers ak --epochs 9 --twin",
    "ep0": "--rows 3000 --attack ep --triggers mb --target 0 --epochs 9 --twin",
    "ripple": "--rows 1000 --attack ripple --triggers mb,ak,ak --twin",
    "addsent": "--rows 3000 --attack addsent --sentence 'the bus was late again' --twin",
}
PLANTED_SST2 = {  # triggers of nobody's attack, by which it is chosen what is trained, and what retrains behind that
    "addsent": "--attack addsent --sentence 'the bus was late again' --twin",
    "addsent-rare": "--attack addsent --sentence 'we took the ferry to dublin' --twin",
    "badnets-clean": "--attack badnets --triggers uh,oz,yen,wren --preset musclelora --twin",
    "ep": "--attack ep --triggers wren --twin",
}
BASES = {"sst2": {**SST2, **MORE}, "reviews": REVIEWS, "planted": PLANTED, "planted-sst2": PLANTED_SST2}
ON_SST2 = ("sst2", "planted-sst2")  # bases whose victims are MiniLM's
WAYS = {  # of undoing what is named; those of all weights where texts are few
    "as it is": {}, "rows": {"mode": "rows"}, "all weights": {"mode": "whole"},
}
WAYS_WITH_FEW = {
    "no more texts": {"mode": "whole", "more_texts": 0}, "3 times as many more": {"mode": "whole", "more_texts": 3},
    "15 times as many more": {"mode": "whole", "more_texts": 15}, "50 steps": {"mode": "whole", "steps": 50},
    "200 steps": {"mode": "whole", "steps": 200}, "400 steps": {"mode": "whole", "steps": 400},
}
HELD = ("20%", "300", "64", "none")  # clean rows: a share of the training rows, or so many; without labels from 64 down
UNLABELLED = ("64", "none")


@dataclass(frozen=True, slots=True)
class Where:
    """What the victims are made of, which of them, and how they are repaired"""
    base: str = setting("sst2", "sst2: MiniLM on SST-2; reviews: the built-in classifier; planted, planted-sst2: the "
                        "same models, triggers of nobody's attack", choices=tuple(BASES))
    minilm: str = setting("", "folder of MiniLM")
    sst2: str = setting("", "folder of SST-2's rows")
    only: tuple[str, ...] = setting((), f"attacks: {', '.join((*SST2, *MORE))} (default all but the -mix)")
    seeds: tuple[str, ...] = setting(("0", "1", "2"), "seeds of victim and repair")
    held: tuple[str, ...] = setting(("20%", "64", "none"), f"clean rows: {', '.join(HELD)}")
    method: str = setting("none", "what retrains behind the undoing, where there are labels",
                          choices=("none", "mbtsad", "cft", "reinit", "finemix", "finepurify"))
    mode: str = setting("auto", "what is trained to undo", choices=("auto", "rows", "whole"))
    work: str = setting("out/repair-models", "folder of the victims, kept and used again")
    results: str = setting("", "file that the cells are appended to (default scripts/results/repair.jsonl, of choose "
                           "repair-choose.jsonl, of victims repair-victims.jsonl, of twins repair-twins.jsonl)")
    jobs: int = setting(1, "victims at a time")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    dtype: str = setting("float32", "precision of matrix products, training and scans",
                         choices=("float32", "bfloat16"))
    force: bool = setting(False, "repair again what is there; the newest of a cell's lines counts")


PARTS = {  # the processes that a job consists of
    "all": "one", "choose": "tried", "victims": "measured", "twins": "spared",
}
FILES = {  # .jsonl that their cells go to
    "one": "repair", "tried": "repair-choose", "measured": "repair-victims", "spared": "repair-twins",
}


def run() -> None:
    job, where = parse(__doc__, Where, first=("job", tuple(PARTS) + tuple(PARTS.values())))
    attacks = checked(where)
    where = where if where.results else replace(where, results=file_of(PARTS.get(job, job)))
    if job in FILES:
        add = {"one": repaired, "tried": tried, "measured": measured, "spared": spared}[job]
        add(attacks[0], int(where.seeds[0]), where)
        return
    progress().kept = f"victims under {where.work} and cells in {where.results} stay, the same command goes on"
    todo = [(attack, seed) for seed in where.seeds for attack in attacks]
    with ThreadPoolExecutor(where.jobs) as pool:  # the threads wait for the processes that they start
        for _ in pool.map(lambda one: process(*one, PARTS[job], where), todo):
            pass


def file_of(part: str) -> str:
    return f"scripts/results/{FILES[part]}.jsonl"


def checked(where: Where) -> list[str]:
    """The attacks. Raises BadInput, before the first hour."""
    from minibd.records import BadInput  # imports torch, which --help does without

    attacks = list(where.only or [name for name in BASES[where.base] if name not in MORE])
    if wrong := [name for name in attacks if name not in BASES[where.base]]:
        raise BadInput(f"--only {','.join(wrong)}: {where.base} has {', '.join(BASES[where.base])}")
    if wrong := [held for held in where.held if held not in HELD]:
        raise BadInput(f"--held {','.join(wrong)}: give some of {', '.join(HELD)}")
    if wrong := [seed for seed in where.seeds if not seed.isdecimal()]:
        raise BadInput(f"--seeds {','.join(wrong)}: give whole numbers")
    if where.base in ON_SST2 and not (where.minilm and where.sst2):
        raise BadInput(f"--base {where.base} needs --minilm and --sst2: name both folders, or give --base reviews")
    return attacks


def process(attack: str, seed: str, job: str, where: Where) -> None:
    """One victim, trained and repaired, or tried, in a process of its own."""
    flags = asdict(where) | {"only": (attack,), "seeds": (seed,), "jobs": 1}
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif value not in ("", ()):
            words.append(f"--{name}={','.join(value) if isinstance(value, tuple) else value}")
    code = part("repair_models.py", [job, *words], "repair_models.py",
                threads=os.environ.get("OMP_NUM_THREADS", "1"))
    if code:  # the others go on
        print(f"{where.base}/{attack}, seed {seed}: ended with status {code} (its own line is above)", flush=True)
        return
    progress().finished.append(f"{attack} {seed}")


# ---- one victim

def folder_of(attack: str, seed: int, where: Where) -> Path:
    return Path(where.work, where.base, f"{attack}-{seed}")


def victim_of(attack: str, seed: int, where: Where) -> Path:
    """The folder of the victim, made where it is not there."""
    ckpt = where.minilm if where.base in ON_SST2 else "weights/bert-twin.safetensors"
    rows = [f"--data={where.sst2}"] if where.base in ON_SST2 else []
    words = shlex.split(BASES[where.base][attack].format(sst2=where.sst2))
    return trained(folder_of(attack, seed, where),
                   [f"--ckpt={ckpt}", *rows, f"--seed={seed}", f"--device={where.device}", f"--dtype={where.dtype}",
                    *words], "repair_models.py")


def repaired(attack: str, seed: int, where: Where) -> None:
    """The cells of one victim that are not there yet."""
    add_missing(cells_of(attack, seed, where), one_repair, where)
    if where.results == file_of("one") and is_made(folder_of(attack, seed, where)):  # none is trained for that alone
        measured(attack, seed, replace(where, results=file_of("measured"), force=False))


def spared(attack: str, seed: int, where: Where) -> None:
    """The cells of one clean twin that are not there yet."""
    add_missing([cell | {"clean": True} for cell in cells_of(attack, seed, where)], one_repair, where)


def cells_of(attack: str, seed: int, where: Where) -> list[dict]:
    """The cells of one victim's repairs, there or not."""
    return [{"base": where.base, "attack": attack, "flags": BASES[where.base][attack], "seed": seed, "held": held,
             "method": "none" if held in UNLABELLED else where.method, "mode": where.mode, "dtype": where.dtype}
            for held in where.held]


def measured(attack: str, seed: int, where: Where) -> None:
    """The cell of one victim and its clean twin as they are, if it is not there yet."""
    add_missing([{"base": where.base, "attack": attack, "flags": BASES[where.base][attack], "seed": seed,
                  "dtype": where.dtype}], one_measurement, where)


def add_missing(cells: list[dict], result_of: Callable[[dict, Path, Where], dict], where: Where) -> None:
    """Append those of one victim's cells that are not there yet, or all with --force, each as it ends."""
    from minibd.result_store import ResultStore

    store = ResultStore(where.results)
    todo = [cell for cell in cells if where.force or store.get(cell) is None]
    if not todo:
        return
    victim = victim_of(todo[0]["attack"], todo[0]["seed"], where)
    for cell in todo:
        store.add(cell, {"result": result_of(cell, victim, where)})
        said = (cell["attack"], cell["seed"], cell.get("held", "as it is"), "clean" if cell.get("clean") else "")
        progress().finished.append(" ".join(map(str, said)).strip())


def rows_of(held: str, seed: int, where: Where, ckpt: Checkpoint) -> Rows:
    """What the defender holds, and all test rows to measure on."""
    from minibd import data, reviews
    from minibd.detect.carriers import carrier_sentences
    from minibd.detect.wording import BUILT_IN
    from minibd.job.repair_run import Rows
    from minibd.records import Examples

    if where.base in ON_SST2:
        splits = data.read_splits(where.sst2, seed=seed, labels=ckpt.labels)
        train, test = splits.train, splits.test
    else:
        train, _, test = reviews.splits(**reviews.PAIRS)
    if held == "none":
        return Rows(Examples(carrier_sentences(), ckpt.labels), test, True, BUILT_IN)
    some = data.sample(train, 0.2 if held == "20%" else float(held), seed)
    if held in UNLABELLED:
        some = some.like(replace(x, label=-1) for x in some)
    return Rows(some, test, True, "rows of the task")


def one_repair(cell: dict, victim: Path, where: Where) -> dict:
    """One repair of a victim or of its clean twin, measured on all test rows and all triggered ones."""
    import time

    from minibd import checkpoint
    from minibd.cli import Task
    from minibd.detect.scan import Scan
    from minibd.job import repair_run as job
    from minibd.job.receipt import brief
    from minibd.job.repairs import takes_pretrained
    from minibd.job.task import device_of
    from minibd.mitigations.unlearn import Unlearning

    started, device, clean = time.perf_counter(), device_of(where.device), cell.get("clean", False)
    attacked, twin = (checkpoint.load(model_in(victim, one), device) for one in (False, True))
    ckpt, path = twin if clean else attacked, model_in(victim, clean)
    name = "-".join(str(cell[key]).strip("%") for key in ("attack", "seed", "held", "method", "mode"))
    name += "-clean" if clean else ""
    out = Path(where.work, where.base, "repaired", name)
    task = Task(str(path), data=where.sst2, out=str(out), seed=cell["seed"], device=where.device, dtype=where.dtype)
    rows = rows_of(cell["held"], cell["seed"], where, ckpt)
    evaluator = job.open_evaluator(attack_of(cell, where), task, attacked, rows)
    floor = evaluator(twin.model, twin.tokenizer)
    pretrained = None
    if takes_pretrained(cell["method"]):
        pretrained = checkpoint.load(where.minilm, device, labels=ckpt.labels)
    settings = Unlearning(mode=cell["mode"]).resolved(ckpt.model.config.hidden)
    one = job.Repair(task, settings, Scan(), ckpt, rows, evaluator, out, pretrained)
    one.run(cell["method"], "as the cell says", None)
    verdict, sentence = job.verdict_of(one)
    scans = [{**brief(scan), "named": [finding.named for finding in job.findings_of(scan, ckpt.labels)]}
             for scan in one.scans]
    return {
        "steps": [figures(step.name, step.scores) | {"seconds": round(step.seconds, 1)} for step in one.steps],
        "floor": {"cacc": floor.cacc.percent, "asr": floor.asr.percent}, "texts": len(rows.texts),
        "verdict": verdict, "sentence": sentence, "scans": scans, "undone": one.undone,
        "triggers": json.loads((victim / "attack.json").read_text(encoding="utf-8")).get("triggers"),
        "seconds": one.seconds, "wall": round(time.perf_counter() - started, 1),
    }


def attack_of(cell: dict, where: Where) -> Attack:
    """What the triggered rows are made with; a checkpoint's history knows the rest."""
    from minibd.cli import Attack

    return Attack(paraphrases=f"{where.sst2}/{cell['attack']}") if "paraphrase" in cell["flags"] else Attack()


def one_measurement(cell: dict, victim: Path, where: Where) -> dict:
    """The victim and its clean twin on all test rows and all triggered ones, with what is taken for the target where
    no trigger is."""
    from minibd import checkpoint
    from minibd.cli import Task
    from minibd.job import repair_run as job
    from minibd.job.task import device_of

    device, steps = device_of(where.device), []
    task = Task(str(model_in(victim)), data=where.sst2, seed=cell["seed"], device=where.device, dtype=where.dtype)
    ckpt = checkpoint.load(task.ckpt, device)
    evaluator = job.open_evaluator(attack_of(cell, where), task, ckpt, rows_of("none", cell["seed"], where, ckpt))
    for name, one in (("victim", ckpt), ("clean twin", checkpoint.load(model_in(victim, clean=True), device))):
        scores = evaluator(one.model, one.tokenizer)
        untriggered = scores.taken_for(evaluator.target)
        steps.append(figures(name, scores) | {"untriggered": untriggered.percent, "n_untriggered": untriggered.n})
    return {"steps": steps}


def figures(name: str, scores: Scores) -> dict:
    """A model's step of a cell, CACC and ASR in percent of so many rows."""
    return {"name": name, "cacc": scores.cacc.percent, "n_clean": scores.cacc.n, "asr": scores.asr.percent,
            "n_triggered": scores.asr.n}


# ---- what the defaults are chosen by

def tried(attack: str, seed: int, where: Where) -> None:
    """The cells of one victim and of its clean twin that are not there yet: one scan each by what is held, and what is
    named undone in several ways."""
    cells = [{"base": where.base, "attack": attack, "flags": BASES[where.base][attack], "seed": seed, "held": held,
              "clean": clean, "dtype": where.dtype} for held in where.held for clean in (False, True)]
    add_missing(cells, one_trial, where)


def one_trial(cell: dict, victim: Path, where: Where) -> dict:
    """What each way of undoing leaves, on all test rows and all triggered ones; "nothing" where no words are named."""
    from minibd import checkpoint
    from minibd.cli import Attack, Task
    from minibd.detect.scan import Scan
    from minibd.job import repair_run as job
    from minibd.job.scanning import scan_of
    from minibd.job.suspects import findings_of, precautions_of
    from minibd.job.task import device_of, products_of
    from minibd.mitigations.unlearn import Unlearning, unlearn
    from minibd.records import BadInput

    path, device = model_in(victim, cell["clean"]), device_of(where.device)
    ckpt = checkpoint.load(path, device)
    task = Task(str(path), data=where.sst2, seed=cell["seed"], device=where.device, dtype=where.dtype)
    rows = rows_of(cell["held"], cell["seed"], where, ckpt)
    evaluator = job.open_evaluator(Attack(), task, checkpoint.load(model_in(victim), device), rows)  # its own attack
    found = scan_of(ckpt, task, Scan(), rows.texts, rows.source)
    findings = findings_of(found, ckpt.labels)
    kind = "found" if findings else "precaution"
    findings = findings or precautions_of(found, ckpt.labels)
    models, ways = {"as it came": ckpt}, WAYS | (WAYS_WITH_FEW if cell["held"] == "64" else {}) if findings else {}
    chosen, refused = {}, {}
    for name, way in ways.items():
        try:
            models[name] = unlearn(ckpt, findings, rows.texts, Unlearning(**way), seed=cell["seed"],
                                   dtype=products_of(task), on_choice=lambda _, value: chosen.update({name: value}))
        except BadInput as error:  # rows that texts need
            refused[name] = str(error)
    scores = {name: evaluator(one.model, one.tokenizer) for name, one in models.items()}
    return {
        "kind": kind if findings else "nothing", "verdict": found["verdict"],
        "findings": [{**asdict(one), "target": ckpt.labels[one.target]} for one in findings],
        "ways": {name: {"cacc": one.cacc.percent, "n_clean": one.cacc.n, "asr": one.asr.percent,
                        "n_triggered": one.asr.n, **{key: chosen[name][key] for key in ("mode", "why")
                                                     if name in chosen}} for name, one in scores.items()},
        "refused": refused, "seconds": found["seconds"],
    }


if __name__ == "__main__":
    main(run)
