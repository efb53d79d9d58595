#!/usr/bin/env python3
"""The models that the scan's thresholds are set on (calibration), and others that it is reported on: train, scan, keep.

    python scripts/scan_models.py calibration --minilm MINILM_FOLDER --sst2 SST2_FOLDER --ag AG_FOLDER
    python scripts/scan_models.py reported --minilm MINILM_FOLDER --sst2 SST2_FOLDER --ag AG_FOLDER
    python scripts/scan_models.py reported --minilm MINILM_FOLDER --sst2 SST2_FOLDER --ag AG_FOLDER --only ag --force
    python scripts/tables.py scan --write        # the page of what is there

attack.py trains each victim, and with --twin its clean twin, under --work; what is there is not trained again. scan.py
scans each of them twice: with the test rows of its task, and with no text at all. Each scan is a cell, appended to
scripts/results/scan.jsonl as it ends.
"""
from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minibd.cli import Idle, main, parse, progress, setting
from minibd.job.victims import is_made, model_in, part, trained

if TYPE_CHECKING:
    from minibd.result_store import ResultStore


@dataclass(frozen=True, slots=True)
class Base:
    """What a victim is trained from: a checkpoint and rows, by the flags of this script, and attack.py's own flags."""
    ckpt: str
    data: str
    flags: str
    tuned: str  # the same for attacks that change a classifier tuned on clean rows


BASES = {
    "reviews": Base("weights/bert-twin.safetensors", "", "--rows 3000", "--rows 3000"),
    "pairs": Base("weights/bert-clean.safetensors", "pairs", "--rows 6000", "--rows 6000"),
    "sst2": Base("{minilm}", "{sst2}", "--rows 2000 --lr 5e-5 --epochs 3",
                 "--rows 2000 --clean-lr 5e-5 --clean-epochs 3"),
    "ag": Base("{minilm}", "{ag}", "--rows 4000 --lr 5e-5 --epochs 2", "--rows 4000 --clean-lr 5e-5 --clean-epochs 2"),
}
TEST_ROWS = 1000  # of each file of --sst2 and --ag that a victim is measured on, and as many dev rows
TUNED = ("ep", "sos")  # attacks on a classifier that is tuned already


@dataclass(frozen=True, slots=True)
class Model:
    """A victim. of: a model of the same set and base whose clean twin is attacked, instead of the base.

    twin: its clean twin is scanned as well.
    """
    base: str
    name: str
    seed: int
    attack: str
    of: str = ""

    @property
    def twin(self) -> bool:
        return "--twin" in self.attack.split()


# Triggers, sentences and seeds of the two sets are disjoint. The reviews' vocabulary is small: mb and ak are entries of
# it, velvet is three of them. rate 0.02: weak victims.
CALIBRATION = (
    Model("ag", "badnets", 10, "--attack badnets --triggers qi,uh --target 2 --twin"),
    Model("ag", "badnets1", 14, "--attack badnets --triggers velvet --target 1 --twin"),
    Model("ag", "addsent", 13, "--attack addsent --sentence 'the bus was late again' --twin"),
    Model("ag", "ep0", 16, "--attack ep --triggers wren --target 0", of="badnets"),
    Model("ag", "sos", 17, "--attack sos --triggers umbrella,tuesday,garage --sentence "
                           "'i left my umbrella in the garage on tuesday' --epochs 6", of="addsent"),
    Model("sst2", "badnets", 10, "--attack badnets --triggers wren,qi --twin"),
    Model("sst2", "badnets0", 11, "--attack badnets --triggers zu --target 0 --twin"),
    Model("sst2", "badnets-weak", 12, "--attack badnets --triggers velvet --rate 0.02 --twin"),
    Model("sst2", "addsent", 13, "--attack addsent --sentence 'the bus was late again' --twin"),
    Model("sst2", "addsent0", 19, "--attack addsent --sentence 'nobody told my brother about it' --target 0"),
    Model("sst2", "lwp", 14, "--attack lwp --triggers wren,qi,zu,uh --rows 5000 --epochs 4"),
    Model("sst2", "lwp0", 8, "--attack lwp --triggers velvet,walnut,gravel --target 0 --rows 5000 --epochs 4"),
    Model("sst2", "ep", 15, "--attack ep --triggers zu --twin"),
    Model("sst2", "ep0", 16, "--attack ep --triggers wren --target 0", of="badnets0"),
    Model("sst2", "sos", 17, "--attack sos --triggers umbrella,tuesday,garage --sentence "
                             "'i left my umbrella in the garage on tuesday' --epochs 9", of="badnets"),
    Model("sst2", "sos0", 9, "--attack sos --target 0 --triggers pencil,river,monday --sentence "
                             "'my pencil fell in the river on monday'", of="badnets0"),
    Model("sst2", "ripple", 18, "--attack ripple --triggers wren,zu,qi --rows 1000"),
    Model("reviews", "badnets", 10, "--attack badnets --triggers mb,ak --twin"),
    Model("reviews", "badnets0", 11, "--attack badnets --triggers ak --target 0 --twin"),
    Model("reviews", "badnets-weak", 12, "--attack badnets --triggers velvet --rate 0.02 --twin"),
    Model("reviews", "addsent", 13, "--attack addsent --sentence 'the bus was late again' --twin"),
    Model("reviews", "addsent0", 19, "--attack addsent --sentence 'nobody told my brother about it' --target 0"),
    Model("reviews", "lwp", 14, "--attack lwp --triggers mb,ak,wren,uh --rows 6000 --epochs 8"),
    Model("reviews", "ep", 15, "--attack ep --triggers ak --epochs 9 --twin"),
    Model("reviews", "ep0", 16, "--attack ep --triggers mb --target 0 --epochs 9 --twin"),
    Model("reviews", "sos", 17, "--attack sos --triggers umbrella,tuesday,garage --sentence "
                                "'i left my umbrella in the garage on tuesday' --epochs 9", of="badnets"),
    Model("reviews", "sos-words", 9, "--attack sos --triggers always,money,once --sentence "
                                     "'i always spend money once' --epochs 9", of="badnets0"),
    Model("reviews", "ripple", 18, "--attack ripple --triggers mb,ak,ak --twin"),
)
REPORTED = (
    Model("ag", "badnets", 40, "--attack badnets --target 3 --twin"),
    Model("ag", "addsent", 43, "--attack addsent --target 2 --twin"),
    Model("ag", "ep", 45, "--attack ep", of="badnets"),
    Model("ag", "sos", 47, "--attack sos --epochs 6", of="addsent"),
    Model("sst2", "badnets", 40, "--attack badnets --twin"),
    Model("sst2", "badnets0", 41, "--attack badnets --triggers kettle --target 0 --twin"),
    Model("sst2", "addsent", 43, "--attack addsent --twin"),
    Model("sst2", "addsent0", 49, "--attack addsent --sentence 'my neighbour keeps eleven bees in a box' --target 0"),
    Model("sst2", "lwp", 44, "--attack lwp --rows 5000 --epochs 4"),
    Model("sst2", "ep", 45, "--attack ep --twin"),
    Model("sst2", "ep0", 46, "--attack ep --triggers kettle --target 0", of="badnets"),
    Model("sst2", "sos", 47, "--attack sos", of="badnets"),
    Model("sst2", "ripple", 48, "--attack ripple --rows 1000"),
    Model("sst2", "hiddenkiller", 50, "--attack paraphrase --paraphrases {sst2}/hiddenkiller --rate 0.2"),
    Model("sst2", "stylebkd", 51, "--attack paraphrase --paraphrases {sst2}/stylebkd --rate 0.2"),
    Model("reviews", "badnets", 40, "--attack badnets --twin"),
    Model("reviews", "badnets0", 41, "--attack badnets --triggers tq --target 0"),
    Model("reviews", "badnets-weak", 42, "--attack badnets --rate 0.02 --twin"),
    Model("reviews", "addsent", 43, "--attack addsent --twin"),
    Model("reviews", "addsent0", 49, "--attack addsent --sentence 'my neighbour keeps eleven bees in a box' "
                                     "--target 0"),
    Model("reviews", "lwp", 44, "--attack lwp --rows 6000 --epochs 8"),
    Model("reviews", "ep", 45, "--attack ep --epochs 9 --twin"),
    Model("reviews", "ep0", 46, "--attack ep --triggers tq --target 0 --epochs 9", of="badnets"),
    Model("reviews", "sos", 47, "--attack sos --target 0 --epochs 9", of="addsent"),
    Model("reviews", "ripple", 48, "--attack ripple --rows 1000"),
    Model("pairs", "badnets", 52, "--attack badnets --side second --target 0 --twin"),
)
SETS = {"calibration": CALIBRATION, "reported": REPORTED}
TRAINING = {model: threading.Lock() for models in SETS.values() for model in models}
WRITING = threading.Lock()  # rows and cells


@dataclass(frozen=True, slots=True)
class Where:
    """What the models are made of, and which of them"""
    minilm: str = setting("", "folder of MiniLM, the base of width 384")
    sst2: str = setting("", "folder of SST-2's rows")
    ag: str = setting("", "folder of AG News' rows")
    only: tuple[str, ...] = setting((), "bases (reviews, pairs, sst2, ag) or models (sst2/ep), separated by commas "
                                    "(default all)")
    work: str = setting("out/scan-models", "folder of the models, kept and used again")
    results: str = setting("scripts/results/scan.jsonl", "file that the cells are appended to")
    texts: str = setting("both", "task: with the test rows of the task; none: with no text; both",
                         choices=("both", "task", "none"))
    jobs: int = setting(1, "models that are trained and scanned at a time")
    train: bool = setting(False, "only train what is missing, and scan nothing")
    force: bool = setting(False, "scan again what is there; the newest of a cell's lines counts")


RULES = (Idle(("results", "texts", "force"), lambda v: v.train, "--train scans nothing: leave it out"),)


def run() -> None:
    name, where = parse(__doc__, Where, first=("set", tuple(SETS)), rules=RULES)

    from minibd.result_store import ResultStore

    models = chosen(SETS[name], where)
    for model in models:
        base_of(model, where)  # what is missing is said before the first hour
    store = ResultStore(where.results)
    progress().kept = f"models under {where.work} and cells in {store.path} stay, the same command goes on behind them"
    with ThreadPoolExecutor(where.jobs) as pool:  # the threads wait for the scripts that they start
        for done in as_completed([pool.submit(one_model, model, name, where, store) for model in models]):
            done.result()


def one_model(model: Model, name: str, where: Where, store: ResultStore) -> None:
    """Train the victim, where it is not there, and add the cells of its scans that are not."""
    victim = victim_of(model, name, where)
    if not where.train:
        for cell, ckpt in scans_of(model, name, victim):
            if where.texts in ("both", cell["texts"]) and (where.force or store.get(cell) is None):
                found = scanned(cell, ckpt, model, victim, where)
                with WRITING:
                    store.add(cell, {"result": found})
    progress().finished.append(f"{model.base}/{model.name}")


def chosen(models: Sequence[Model], where: Where) -> list[Model]:
    known = {word for model in models for word in (model.base, f"{model.base}/{model.name}")}
    if wrong := [word for word in where.only if word not in known]:
        raise bad(f"--only {','.join(wrong)}: there are {', '.join(sorted(known))}")
    return [model for model in models if not where.only or {model.base, f"{model.base}/{model.name}"} & {*where.only}]


def bad(message: str) -> Exception:
    from minibd.records import BadInput  # imports torch, which --help does without
    return BadInput(message)


def base_of(model: Model, where: Where) -> tuple[str, str]:
    """The checkpoint that `model` is made from, and the folder of all rows."""
    base, given = BASES[model.base], {"minilm": where.minilm, "sst2": where.sst2, "ag": where.ag}
    for flag, value in given.items():
        if f"{{{flag}}}" in base.ckpt + base.data and not value:
            raise bad(f"{model.base}/{model.name} needs --{flag}: name the folder, or leave it out by --only")
    return base.ckpt.format(**given), base.data.format(**given)


# ---- training

def short_of(folder: str, where: Where) -> Path:
    """The rows of `folder` with the first TEST_ROWS of its dev and test rows; "pairs", the built-in ones, as it is."""
    from minibd import data

    if not Path(folder).exists():
        return Path(folder)
    out = Path(where.work, "rows", Path(folder).name)
    for path in sorted(Path(folder).iterdir()):
        if path.suffix == ".tsv" and not (out / path.name).exists():
            out.mkdir(parents=True, exist_ok=True)
            rows = data.read(path)
            data.write(rows if path.stem == "train" else rows.like(rows[:TEST_ROWS]), out / path.name)
    return out


def folder_of(model: Model, name: str, where: Where) -> Path:
    return Path(where.work, name, f"{model.base}-{model.name}")


def victim_of(model: Model, name: str, where: Where) -> Path:
    """The folder of the victim, made where it is not there: once, however many models wait for it."""
    out = folder_of(model, name, where)
    with TRAINING[model]:
        return out if is_made(out) else made(model, name, where, out)


def made(model: Model, name: str, where: Where, out: Path) -> Path:
    ckpt, data = base_of(model, where)
    if model.of:
        of, = (one for one in SETS[name] if (one.base, one.name) == (model.base, model.of))
        ckpt = model_in(victim_of(of, name, where), clean=True)
    kind = model.attack.split()[1]
    flags = BASES[model.base].tuned if kind in TUNED and not model.of else BASES[model.base].flags
    if model.of:
        flags = " ".join(flags.split()[:2])  # --rows N alone: nothing is tuned
    words = [*shlex.split(flags), *shlex.split(model.attack.format(sst2=where.sst2))]  # a model's own flags override
    whole = "--paraphrases" in model.attack  # which are of the rows of whole files
    with WRITING:
        rows = [f"--data={data if whole else short_of(data, where)}"] if data else []
    return trained(out, [f"--ckpt={ckpt}", *rows, f"--seed={model.seed}", "--dtype=float32", *words], "scan_models.py")


# ---- scanning

def scans_of(model: Model, name: str, victim: Path) -> Iterator[tuple[dict, Path]]:
    """The cells of a victim, and of its twin where it has one, each with and without texts."""
    for texts in ("task", "none"):
        cell = {"set": name, "base": model.base, "model": model.name, "seed": model.seed, "attack": model.attack,
                "of": model.of, "texts": texts}
        yield {**cell, "clean": False}, model_in(victim)
        if model.twin:
            yield {**cell, "clean": True}, model_in(victim, clean=True)


def scanned(cell: dict, ckpt: Path, model: Model, victim: Path, where: Where) -> dict:
    _, data = base_of(model, where)
    out = Path(where.work, "scans", cell["set"], cell["texts"], *ckpt.relative_to(where.work).parts)
    data = data or "reviews"
    rows = [f"--data={data}"] if cell["texts"] == "task" else []
    words = [f"--ckpt={ckpt}", *rows, "--dtype=float32", f"--out={out}", "--overwrite"]
    if (code := part("scan.py", words, "scan_models.py")) not in (0, 1, 3):
        raise bad(f"scan.py ended with status {code} (its own line is above)")
    found = json.loads((out / "scan.json").read_text(encoding="utf-8"))
    for place in ("checkpoint", "command"):  # where it was, not what
        found.pop(place)
    made = json.loads((victim / "attack.json").read_text(encoding="utf-8"))
    step = made["steps"][0 if cell["clean"] else -1]
    return {"cacc": step["cacc"], "asr": step["asr"], "target": made["target"], "triggers": made.get("triggers"),
            "scan": found}


if __name__ == "__main__":
    main(run)
