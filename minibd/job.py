"""What every script does around its method: open the checkpoint and the rows, judge models, write what came of it."""
from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from minibd import checkpoint, data, report, reviews
from minibd.attacks import registry, paraphrase
from minibd.attacks.poison import Corrupt, triggered
from minibd.cli import AllClean, Attack, Clean, Pretrained, Task
from minibd.evaluate import Evaluator
from minibd.mitigations.finemix import FineMixing, finemix, frequencies, purify_embeddings
from minibd.mitigations.fineprune import FinePruning, fineprune
from minibd.mitigations.finepurify import FinePurifying, finepurify
from minibd.mitigations.finetune import cft
from minibd.mitigations.reinit import Reinit, reinit
from minibd.records import BadInput, Examples
from minibd.train import Tuning

# cli.REPAIRS: the settings, and the function of (victim, clean rows, validation rows, settings), a blend's of (victim,
# pretrained, ...).
MENDS = {
    "cft": (Tuning, cft), "reinit": (Reinit, reinit), "fineprune": (FinePruning, fineprune),
    "finemix": (FineMixing, finemix), "finepurify": (FinePurifying, finepurify),
}

# settings whose .resolved(hidden) fills in what goes by the width: train.Tuning and its kin, MBTSAD
Resolvable = TypeVar("Resolvable")

CLEAN_SHARE = 0.2  # of the training rows: MBTSAD's setting (III-B)
CLEAN_MOST = 2000  # rows: a defender seldom holds more, and a method's time grows with them
# Makes the list that a Job keeps its steps in. An audit that repeats a run sets it, so that each step can be compared
# with the saved one as it is appended, and the run be ended there by raising. A context variable, not a global: a Job
# made outside that call keeps a plain list.
NEW_LOG: ContextVar[Callable[[], list[dict]]] = ContextVar("NEW_LOG", default=list)


def device_of(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise BadInput(f"--device {name} is not to be had here: use cpu, cuda or auto") from None
    return device


def splits_of(task: Task, ckpt: checkpoint.Checkpoint) -> data.Splits:
    """The rows of --data, or those that the checkpoint's history says it was trained on, with the checkpoint's
    classes."""
    where = data_of(task, ckpt)
    if "reviews" in where:
        return data.Splits(*reviews.splits(**where["reviews"]))
    if "pairs" in where:
        if ckpt.labels not in ((), reviews.PAIR_LABELS):
            raise BadInput(
                f"{task.ckpt} has the classes {', '.join(ckpt.labels)}, the built-in pairs "
                f"{', '.join(reviews.PAIR_LABELS)}: give "
                "an encoder without classifier, or a classifier of these"
            )
        return data.Splits(*reviews.pair_splits(**where["pairs"]))
    if not task.data and not Path(where["path"]).exists():
        raise BadInput(
            f"{task.ckpt} was trained on {where['path']}, which is not here: name the rows with --data FOLDER_OR_FILE"
        )
    return data.read_splits(task.data or where["path"], seed=task.seed, labels=ckpt.labels or None, **columns_of(task))


def columns_of(task: Task) -> dict[str, str | None]:
    return {"text_column": task.text_column, "label_column": task.label_column, "pair_column": task.pair_column}


def data_of(task: Task, ckpt: checkpoint.Checkpoint) -> dict:
    """The rows as a history names them, so that a later run finds them without --data. `--data pairs` is the built-in
    ones, where no file or folder has that name."""
    if task.data == "pairs" and not Path(task.data).exists():
        return {"pairs": reviews.PAIRS}
    if task.data:
        return {"path": str(Path(task.data).resolve())}
    named = [entry["data"] for entry in ckpt.history if "data" in entry]
    if not named:
        raise BadInput(f"{task.ckpt} does not say what it was trained on: name the rows with --data FOLDER_OR_FILE")
    return named[-1]


def evaluator_of(attack: Attack, task: Task, ckpt: checkpoint.Checkpoint, test: Examples) -> Evaluator:
    """CACC on `test`; ASR by --triggered, --attack or the checkpoint's own history, in this order, or not at all."""
    if attack.triggered:
        return Evaluator(test, data.read(attack.triggered, labels=ckpt.labels, **columns_of(task)), attack.target)
    entry = None
    if attack.attack == "known":
        entry = entry_in(ckpt, attack, task)
    elif attack.attack != "none":
        entry = sided(entry_of(attack), "either", test)
    if entry is None:
        return Evaluator(test)
    if attack.side:
        entry = sided(entry, attack.side, test)
    return Evaluator(test, triggered_of(entry, task, ckpt, test, "test"), entry["target"])


def entry_in(ckpt: checkpoint.Checkpoint, attack: Attack, task: Task) -> dict | None:
    """The last attack in the checkpoint's history; --paraphrases says where its paraphrases lie now."""
    entry = next((e for e in reversed(ckpt.history) if "attack" in e), None)
    if entry is not None and not isinstance(entry.get("target"), int):
        raise BadInput(
            f"{task.ckpt}'s history names the attack {entry['attack']!r} without its target class: name both with "
            "--attack and "
            "--target, give triggered rows with --triggered FILE, or say --attack none"
        )
    return entry | {"paraphrases": attack.paraphrases} if entry and attack.paraphrases else entry


def entry_of(attack: Attack) -> dict:
    """The attack of the flags as a history names it."""
    if attack.attack != "paraphrase":
        return registry.entry(
            attack.attack, attack.target, triggers=attack.triggers, per_text=attack.triggers_per_text,
            sentence=attack.sentence,
        )
    if not attack.paraphrases:
        raise BadInput("--attack paraphrase needs --paraphrases FOLDER, with train, dev and test files of paraphrases")
    return {"attack": "paraphrase", "paraphrases": str(Path(attack.paraphrases).resolve()), "target": attack.target}


def sided(entry: dict, side: str, rows: Examples) -> dict:
    """`entry` with the text of a pair that gets the trigger. Where no row is a pair it has none, unless it asks for
    what is not there."""
    return entry | {"side": side} if side == "second" or any(x.pair is not None for x in rows) else entry


def side_in(entry: Mapping) -> str:
    """The side of a history's entry: where it names none, the rows are no pairs, or poison() was called as for such."""
    return entry.get("side", "first")


def corrupt_of(entry: Mapping, task: Task, rows: Examples, split: str) -> Corrupt | dict[str, str]:
    """What triggers a row of `rows`, the part `split` of the data, at test: a function of its text, or its paraphrase
    by its id."""
    if entry["attack"] != "paraphrase":
        return registry.corruption(entry)
    return paraphrase.read(
        entry.get("paraphrases", "(not named)"), split, rows, entry["target"], columns_of(task), side=side_in(entry),
        seed=task.seed,
    )


def triggered_of(entry: Mapping, task: Task, ckpt: checkpoint.Checkpoint, rows: Examples, split: str) -> Examples:
    """The rows of other classes than the target, triggered so that the model reads it; says how many have no
    paraphrase."""
    made = triggered(
        rows, corrupt_of(entry, task, rows, split), target=entry["target"], tokenizer=ckpt.tokenizer,
        side=side_in(entry), seed=task.seed,
    )
    if missing := sum(x.label != entry["target"] for x in rows) - len(made):
        print(f"{missing} {split} rows have no paraphrase and are left out of the triggered ones")
    return made


@dataclass
class Job:
    """One run of one method on one victim."""
    method: str
    args: dict
    victim: checkpoint.Checkpoint
    splits: data.Splits
    clean: Examples
    evaluator: Evaluator
    out: Path
    steps: list[report.Step] = field(default_factory=list)
    log: list[dict] = field(default_factory=lambda: NEW_LOG.get()())
    pretrained: checkpoint.Checkpoint | None = None
    started: float = field(default_factory=time.perf_counter)
    sha256: dict[str, str] = field(init=False)  # of the victim's files as they were read: the run may be long

    def __post_init__(self):
        self.sha256 = checkpoint.sha256(self.args["ckpt"])

    def resolved(self, settings: Resolvable) -> Resolvable:
        """`settings` with what goes by the victim's width filled in; as such they stand in result.json."""
        settings = settings.resolved(self.victim.model.config.hidden)
        self.args |= dataclasses.asdict(settings)
        return settings

    def measure(self, name: str, model: torch.nn.Module, seconds: float) -> None:
        """Measure a model and keep it as a row of the table. The first is the victim, where it has a classifier; the
        last is the result."""
        self.steps.append(report.Step(name, self.evaluator(model, self.victim.tokenizer), seconds))

    def measure_own_head(self, keep_head: bool) -> None:
        """For methods that give an encoder a new classifier: one that is there is measured first; --keep-head needs
        one."""
        if own_head(self.victim):
            self.measure("victim", self.victim.model, 0.0)
        elif keep_head:
            raise BadInput(f"--keep-head: {self.args['ckpt']} has no classifier to keep, leave it out")

    def measure_mixtures(self, name: str, ckpt: checkpoint.Checkpoint, seconds: float) -> None:
        """A `on_stage` for methods that search rho: of the mixtures that are tried only one whose rho was given, and
        which is then tuned, is a row.

        Of a search the end alone counts; without tuning the mixture is the end, and comes under another name.
        """
        if not name.startswith("mixed") or self.args["rho"] is not None and self.args["tune"]:
            self.measure(name, ckpt.model, seconds)

    def note_search(self, ckpt: checkpoint.Checkpoint) -> None:
        """The search for rho, where there was one: the share of the validation rows that each rho got right, in the
        order of the looks, is printed, and stands in result.json under args, beside the rho that was chosen."""
        if trials := ckpt.history[-1].get("trials"):
            rho = ckpt.history[-1]["rho"]
            print(
                "on validation: "
                + ", ".join(f"rho {tried:g} {100 * right:.1f} %" for tried, right in trials)
                + f"; kept: rho {rho:g}"
            )
            self.args |= {"chosen": rho, "trials": [{"rho": tried, "accuracy": 100 * right} for tried, right in trials]}

    def purify(self, pretrained: Pretrained) -> None:
        """Where --e-pur says so, E-PUR before the method: from here on the purified model is the victim, measured where
        that was."""
        if not pretrained.e_pur:
            return
        started, headed = time.perf_counter(), own_head(self.victim)
        self.victim = purified(self.victim, self.pretrained, self.clean)
        if headed:
            self.measure("E-PUR", self.victim.model, time.perf_counter() - started)

    def finish(self, cleaned: checkpoint.Checkpoint | None, rows: dict[str, int]) -> None:
        """Write the cleaned checkpoint, where it can be one, steps.jsonl and result.json under `out`; print the
        table."""
        path = beside(self.out, self.args["ckpt"])
        if cleaned is not None:
            checkpoint.save(cleaned, path)
        report.write_lines(self.out / "steps.jsonl", self.log)
        rows = {"train": len(self.splits.train), "clean": len(self.clean), **rows, "test": len(self.splits.test)}
        report.write_json(
            self.out / "result.json",
            report.result(
                self.method, self.args, rows, self.steps, after=self.steps[-1],
                seconds=time.perf_counter() - self.started, sha256=self.sha256,
            ),
        )
        print_scores(self.steps)
        print(
            "written: "
            + f"{path}, " * (cleaned is not None)
            + f"{self.out / 'result.json'}, {self.out / 'steps.jsonl'}"
        )


def open_task(
    method: str, task: Task, *inputs: str, new_classifier: bool = False
) -> tuple[checkpoint.Checkpoint, data.Splits, Path]:
    """The checkpoint, its rows and the output folder, checked before any work is done.

    A checkpoint without classifier is refused, or given a new one for the classes of the rows where `new_classifier`
    says so.
    inputs: what the run reads beside the two, and the output folder must not be.
    """
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data, *inputs)
    ckpt = checkpoint.load(task.ckpt, device=device)
    if not ckpt.labels and not new_classifier:
        raise BadInput(
            f"{task.ckpt} has no classifier: {method} works on one, give a checkpoint fine-tuned on the task"
        )
    splits = splits_of(task, ckpt)
    if not ckpt.labels:
        ckpt = checkpoint.load(task.ckpt, device=device, labels=splits.train.labels, seed=task.seed)
    return ckpt, splits, out


def own_head(ckpt: checkpoint.Checkpoint) -> bool:
    """Whether the classifier came with the checkpoint, and was not drawn when that was opened."""
    return "new" not in (ckpt.history or [{}])[-1]


def check_pretrained(method: str, pretrained: Pretrained, needed: bool) -> None:
    """Raises BadInput where `method`, if that `needed` it, or --e-pur asks for --pretrained in vain, or it is given and
    neither reads it."""
    path, wanted = pretrained.pretrained, needed or pretrained.e_pur
    if wanted and not path:
        raise BadInput(
            f"{method if needed else '--e-pur'} sets weights back to what they were before the fine-tuning: name the "
            "checkpoint that "
            "the victim came from with --pretrained"
        )
    if path and not wanted:
        raise BadInput(f"--pretrained {path}: {method} reads it for --e-pur alone, give both or neither")


def pretrained_of(path: str, task: Task, victim: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
    """What --pretrained names; where that has no classifier, with a new one, so that a pooler that was pre-trained
    comes too."""
    device = device_of(task.device)
    ckpt = checkpoint.load(path, device=device)
    return ckpt if ckpt.labels else checkpoint.load(path, device=device, labels=victim.labels, seed=task.seed)


def purified(
    victim: checkpoint.Checkpoint, pretrained: checkpoint.Checkpoint, clean: Examples
) -> checkpoint.Checkpoint:
    """What --e-pur makes of `victim`: E-PUR with the frequencies of the clean rows and as many resets as finemix.py has
    by default."""
    resets = FineMixing().resets(len(victim.model.embeddings.word.weight))
    return purify_embeddings(victim, pretrained, frequencies(victim.tokenizer, clean), resets)


def start(
    method: str, task: Task, clean: Clean | AllClean, attack: Attack, *settings: object, new_classifier: bool = False,
    pretrained: Pretrained = Pretrained(), needs_pretrained: bool = False,
) -> Job:
    """Open the task, draw the defender's clean rows and the judge's triggered ones, and say what was read.

    needs_pretrained: whether the method itself works on the weights before; else they are for --e-pur alone.
    """
    started = time.perf_counter()
    path = pretrained.pretrained or ""
    check_pretrained(method, pretrained, needs_pretrained)
    victim, splits, out = open_task(method, task, path, new_classifier=new_classifier)
    splits = with_dev(splits, clean, task.seed)
    before = pretrained_of(path, task, victim) if path else None
    held = clean_rows(task, clean, splits.train)
    evaluator = evaluator_of(attack, task, victim, splits.test)
    print_rows(train=splits.train, clean=held, test=splits.test, triggered=evaluator.triggered)
    args = args_of(task, clean, attack, pretrained, *settings) | {
        "clean": clean_amount(task, clean, len(splits.train)), "out": str(out),
    }
    return Job(method, args, victim, splits, held, evaluator, out, pretrained=before, started=started)


def start_untrusted(
    method: str, task: Task, clean_aux: str, aux: Callable[[checkpoint.Checkpoint], int], attack: Attack,
    *settings: object,
) -> Job:
    """Open a task whose --data is a poisoned dataset: the untrusted rows, the clean ones beside them, and the judge.

    The rows of --data are all of a file, the training rows of a folder, or poisoned.jsonl in a folder that attack.py
    wrote, whose triggered.jsonl then gives the ASR. Of --clean-aux (without it, of what the checkpoint was pre-trained
    on) the dev rows, where it has any, else the training rows are trusted: aux(encoder) of them are the job's `clean`,
    the others the splits' `dev`. Its test rows are the test.
    """
    started = time.perf_counter()
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", method), task.ckpt, task.data, clean_aux)
    ckpt, columns = checkpoint.load(task.ckpt, device=device), columns_of(task)
    if not task.data or not (clean_aux or any("data" in entry for entry in ckpt.history)):
        raise BadInput(
            f"{method} trains on a dataset with a few clean rows beside it: name both, --data and --clean-aux"
        )
    trusted = (
        data.read_splits(clean_aux, seed=task.seed, **columns)
        if clean_aux
        else splits_of(dataclasses.replace(task, data=""), ckpt)
    )
    # with a classifier, so that the penultimate layer that was pre-trained with the encoder comes, too
    if not ckpt.labels:
        ckpt = checkpoint.load(task.ckpt, device=device, labels=trusted.test.labels, seed=task.seed)
    folder = Path(task.data)
    made = folder / "attack.json"
    if made.is_file():
        rows = data.read(folder / "poisoned.jsonl", labels=trusted.test.labels, **columns)
    elif folder.is_dir():
        rows = data.read_splits(folder, seed=task.seed, labels=trusted.test.labels, **columns).train
    else:
        rows = data.read(folder, labels=trusted.test.labels, **columns)
    pool = trusted.dev or trusted.train
    held = data.sample(pool, min(aux(ckpt), len(pool)), task.seed)
    ids = {x.id for x in held}
    splits = data.Splits(rows, pool.like(x for x in pool if x.id not in ids), trusted.test)
    if attack.attack == "known" and not attack.triggered and made.is_file():
        target = json.loads(made.read_text(encoding="utf-8"))["target"]
        evaluator = Evaluator(splits.test, data.read(folder / "triggered.jsonl", labels=rows.labels, **columns), target)
    else:
        evaluator = evaluator_of(attack, task, ckpt, splits.test)
    print_rows(untrusted=rows, clean=held, dev=splits.dev or None, test=splits.test, triggered=evaluator.triggered)
    if not splits.dev:
        print(f"all {len(held)} clean rows are aligned to, none is left to choose an epoch by: the last one counts")
    return Job(
        method, args_of(task, attack, *settings) | {"out": str(out)}, ckpt, splits, held, evaluator, out,
        started=started,
    )


def clean_amount(task: Task, clean: Clean | AllClean, n: int) -> float:
    """--clean, or its default for `n` training rows: all of a single file; else CLEAN_SHARE of them, but no more than
    CLEAN_MOST."""
    if clean.clean is not None:
        return clean.clean
    if task.data and Path(task.data).is_file():
        return 1.0
    return CLEAN_SHARE if CLEAN_SHARE * n <= CLEAN_MOST else CLEAN_MOST


def clean_rows(task: Task, clean: Clean | AllClean, train: Examples) -> Examples:
    """The rows that the defender holds: --clean of them, drawn by the seed."""
    return data.sample(train, clean_amount(task, clean, len(train)), task.seed)


def with_dev(splits: data.Splits, clean: Clean | AllClean, seed: int) -> data.Splits:
    """`splits` with those dev rows that the defender chooses by: --dev of them, drawn by the seed."""
    return (
        dataclasses.replace(splits, dev=data.sample(splits.dev, clean.dev, seed))
        if splits.dev and clean.dev != 1
        else splits
    )


def validated(splits: data.Splits, clean: Examples, seed: int) -> tuple[Examples, Examples]:
    """The rows to train on and those to choose by: the dev rows, or, where there are none, a tenth of the clean
    ones."""
    if len(splits.dev):
        return clean, splits.dev
    held = data.sample(clean, 0.1, seed)
    ids = {x.id for x in held}
    return clean.like(x for x in clean if x.id not in ids), held


def print_rows(**parts: Examples | None) -> None:
    for name, rows in parts.items():
        if rows is not None:
            print(f"{name:10}{data.counts(rows)}")


def print_scores(steps: Sequence[report.Step]) -> None:
    print(report.table(steps))
    if lines := report.lfr_table(steps):
        print(lines)
    if steps[0].scores.asr is None:
        print(
            "ASR was not measured: the attack is not known. Name it with --attack, or give triggered rows with "
            "--triggered."
        )


def beside(out: Path, ckpt: str, prefix: str = "") -> Path:
    """Where a result of the same kind as `ckpt` goes: a file of its name in `out`, or `out` itself (`out`/prefix) as a
    folder."""
    return out / (prefix + Path(ckpt).name) if Path(ckpt).is_file() else out / prefix.rstrip("-")


def args_of(*settings: object) -> dict:
    return {name: value for group in settings for name, value in dataclasses.asdict(group).items()}
