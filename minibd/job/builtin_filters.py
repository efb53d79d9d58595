"""Each defect of the released filters alone, on top of the correct filter, and the filters on a clean model: on the
checkpoints of weights/ and the built-in reviews."""
from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from minibd import checkpoint, data, reviews
from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import triggered
from minibd.checkpoint import Checkpoint
from minibd.cli import Attack, Task
from minibd.data import generator
from minibd.filters.cube import kept_by_lists, suspicious
from minibd.job import filtering as job
from minibd.job.victims import model_in, trained
from minibd.records import Examples
from minibd.result_store import ResultStore, weights_digest
from minibd.tokenizer import Tokenizer

WEIGHTS = Path(__file__).resolve().parents[2] / "weights"
VICTIM, TWIN = WEIGHTS / "bert.safetensors", WEIGHTS / "bert-twin.safetensors"
TEXTS, TRAINING = 200, 1000  # dev and test rows; training rows
RECIPE = job.Training(4e-4, 6, 32)
# of so few rows a tenth poisoned teaches no backdoor
PLANTED = f"--attack badnets --rate 0.3 --lr {RECIPE.lr:g} --epochs {RECIPE.epochs}"
LONG = (100, 126)  # tokens of a long text: more than the released ONION reads, no more than the models do
SURE = 20.0
LOOK_UPS = 12000  # rows that the look-ups are timed on
TWO_TOKENS = "xylo"  # RAP's word where the first token alone is to be something else
KEPT = ("counted", "outcome", "rows", "frr", "far", "auroc", "before", "after", "removed", "retrained", "words",
        "versions", "seconds")


@dataclass(frozen=True)
class Case:
    """A filter with some defects. rows: a function of ROWS; settings: others than the default ones, of all rows alike.
    """
    filter: str
    rows: str
    defects: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)
    variant: str = "paper"


CASES = (
    *(Case(name, rows) for rows in ("reviews", "clean model") for name in ("strip", "rap", "onion")),
    *(Case(name, rows) for rows in ("training rows", "clean training rows") for name in ("bki", "cube")),
    *(Case("strip", "reviews", (defect,)) for defect in ("reshape", "nan")),
    Case("strip", "sure model"), Case("strip", "sure model", ("nan",)),
    *(Case("rap", "reviews", defects) for defects in (
        ("summed",), ("word",), ("target",), ("changed",), ("word", "changed"))),
    *(Case("rap", "reviews", defects, {"word": TWO_TOKENS}) for defects in ((), ("piece",))),
    Case("bki", "training rows", ("one",)),
    *(Case("cube", "training rows", (defect,)) for defect in ("noise", "hundred", "lookups")),
    *(Case("onion", "reviews", (defect,)) for defect in ("threshold", "case", "padding", "length", "count")),
    *(Case("onion", "long reviews", defects) for defects in ((), ("length",))),
    *(Case("onion", "one-word reviews", defects) for defects in ((), ("count",))),
    *(Case(name, rows, variant="released") for name, rows in (
        ("strip", "reviews"), ("rap", "reviews"), ("bki", "training rows"), ("cube", "training rows"),
        ("onion", "reviews"))),
)


def run_cases(store: ResultStore, work: Path, only: Sequence[str] = (), mark: str = "") -> None:
    """Every cell of CASES that `store` lacks, of the filters `only` (default all)."""
    digests = {path: weights_digest(checkpoint.sha256(path)) for path in (VICTIM, TWIN, job.LM)}
    for case in CASES:
        if only and case.filter not in only:
            continue
        clean = case.rows in ("clean model", "clean training rows")
        base = TWIN if clean or case.filter in job.TRAINING else VICTIM
        cell = {"base": base.name, "data": case.rows, "attack": "none" if clean else "badnets", "seed": 0,
                "filter": case.filter, "variant": case.variant, "defects": list(case.defects),
                "settings": case.settings, "texts": TEXTS,
                **({"flags": PLANTED} if case.rows == "training rows" else {}),
                "sha256": {"base": digests[base], **({"lm": digests[job.LM]} if case.filter == "onion" else {})}}
        if store.get(cell) is None:
            made = result_of(case, work, mark)
            store.add(cell, {"result": made})
            print(f"{case.filter} {case.rows} {','.join(case.defects) or case.variant}: {made['seconds']:.0f} s",
                  flush=True)


def result_of(case: Case, work: Path, mark: str) -> dict:
    settings = job.SETTINGS[case.filter](variant=case.variant, defects=case.defects, **case.settings)
    task = Task(ckpt=str(VICTIM), out=str(work / "screened"), seed=0, device="cpu", dtype="float32", overwrite=True)
    if case.filter in job.TRAINING:
        found = of_training(case, task, settings, work, mark)
        if "lookups" in case.defects:
            found["outcome"]["look_ups"] = look_up_seconds()
    else:
        found = of_texts(case, task, settings, work)
    return kept_of(found)


def kept_of(found: dict) -> dict:
    """What a cell keeps of result.json: no paths."""
    found["outcome"].pop("sizes", None)
    return {key: found[key] for key in KEPT if key in found}


def of_texts(case: Case, task: Task, settings, work: Path) -> dict:
    folder = work / case.rows.replace(" ", "-")
    tokenizer = checkpoint.read_header(VICTIM).tokenizer
    _, dev, test = reviews.splits(seed=0, train=12000, dev=1000, test=2000)
    if case.rows == "long reviews":
        dev, test = (joined(rows, tokenizer) for rows in (reviews.splits(seed=0, train=4000, dev=4000, test=4000)[1:]))
    rows = [some.like(some[:TEXTS]) for some in (dev, test)]
    if case.rows == "one-word reviews":
        rows = [some.like(replace(x, text=x.text.split()[0]) if i % 2 else x for i, x in enumerate(some))
                for some in rows]
    for some, name in zip(rows, ("dev", "test")):
        data.write(some, folder / f"{name}.jsonl")
    given = Attack(attack="none")
    if case.rows == "clean model":
        task = replace(task, ckpt=str(TWIN))
    else:
        data.write(triggered(rows[1], BadNets(), target=1, seed=0), folder / "triggered.jsonl")
        given = Attack(triggered=str(folder / "triggered.jsonl"), target=1)
    if case.rows == "sure model":
        task = replace(task, ckpt=str(sure(checkpoint.load(VICTIM), work / "sure.safetensors")))
    return job.filter_texts(case.filter, replace(task, data=str(folder / "test.jsonl")), given, settings,
                            clean=str(folder / "dev.jsonl"))


def joined(rows: Examples, tokenizer: Tokenizer) -> Examples:
    """Texts of several reviews of one class, of LONG tokens."""
    lengths = tokenizer.encode(rows).lengths
    made, texts, tokens = [], {0: [], 1: []}, {0: 0, 1: 0}
    for x, n in zip(rows, lengths):
        if tokens[x.label] + n > LONG[1]:
            if tokens[x.label] >= LONG[0]:
                made.append(replace(x, text=" ".join(texts[x.label])))
            texts[x.label], tokens[x.label] = [], 0
        texts[x.label].append(x.text)
        tokens[x.label] += n
    return rows.like(made)


def sure(victim: Checkpoint, path: Path) -> Path:
    """`victim` with logits SURE times as large, as a file: its answers are the same, and its probabilities 0 and 1."""
    with torch.no_grad():
        for parameter in victim.model.classifier.parameters():
            parameter.mul_(SURE)
    checkpoint.save(victim, path)
    return path


def of_training(case: Case, task: Task, settings, work: Path, mark: str) -> dict:
    train, dev, test = reviews.splits(seed=0, train=12000, dev=1000, test=2000)
    folder = work / "rows"
    for some, name in ((train.like(train[:TRAINING]), "train"), (dev.like(dev[:TEXTS]), "dev"), (test, "test")):
        data.write(some, folder / f"{name}.jsonl")
    if case.rows == "clean training rows":
        return job.filter_training(case.filter, replace(task, ckpt=str(TWIN), data=str(folder / "train.jsonl")),
                                   Attack(attack="none"), settings, RECIPE, clean=str(folder / "dev.jsonl"))
    victim = trained(work / "victim", [f"--ckpt={TWIN}", f"--data={folder}", *PLANTED.split(), "--seed=0",
                                       "--device=cpu", "--dtype=float32"], mark)
    return job.filter_training(case.filter, replace(task, ckpt=str(model_in(victim)), data=str(victim)),
                               Attack(attack="none"), settings, RECIPE, clean=str(folder), pretrained=str(TWIN),
                               retrain=True)


def look_up_seconds() -> dict[str, float]:
    """How long either way to look up which rows are kept takes, of LOOK_UPS rows of which a quarter is dropped."""
    rng = generator(0, "look-ups")
    labels = [rng.randrange(2) for _ in range(LOOK_UPS)]
    found = [int(rng.random() < 0.25) for _ in range(LOOK_UPS)]
    dropped, seconds = suspicious(labels, found), {}
    for name, way in (("lists", lambda: kept_by_lists(labels, found, dropped)),
                      ("sets", lambda: [pair not in gone for gone in [set(dropped)] for pair in zip(labels, found)])):
        started = time.process_time()
        way()
        seconds[name] = time.process_time() - started
    return seconds
