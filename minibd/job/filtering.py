"""A filter from its flags to its report: the rows it screens, the clean rows of its threshold, what is left."""
from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from tqdm import tqdm

from minibd import checkpoint, data, report
from minibd.checkpoint import Checkpoint
from minibd.cli import Attack, Task, progress
from minibd.detect.wording import visible
from minibd.evaluate import Evaluator
from minibd.filters.bki import Bki, Read, bki
from minibd.filters.cube import Cube, cube
from minibd.filters.onion import Onion, onion
from minibd.filters.rap import Rap, rap
from minibd.filters.strip import Strip, strip
from minibd.job.evaluation import check_labelled, evaluator_of
from minibd.job.task import (
    args_of,
    data_of,
    device_of,
    dtype_args,
    labels_of,
    output_path,
    print_dtype,
    print_notes,
    print_rows,
    products_of,
    reading_of,
    sparing,
    splits_of,
    texts_at_once,
)
from minibd.models.cast_once import only_asked
from minibd.predict import predict
from minibd.proportion import Proportion
from minibd.records import BadInput, Example, Examples
from minibd.regular import read_regular
from minibd.rejection import Screen, asr_of, auroc, cacc_of, let_through, rejected
from minibd.train import Schedule, cross_entropy, fit

SETTINGS = {"onion": Onion, "strip": Strip, "rap": Rap, "bki": Bki, "cube": Cube}
TRAINING = ("bki", "cube")  # those that screen training rows
LARGEST = 64 << 20  # bytes of a result.json
SHOWN = 20  # words in result.json's lists; the first ones on the screen
LM = Path(__file__).resolve().parents[2] / "weights" / "lm.safetensors"


@dataclass
class Screened:
    """What a filter did with rows, and with triggered ones: screens and the model's answers, in that order; `cleaned`
    of ONION the rows without the words it removes, and the answers to these."""
    rows: list[Examples]
    screens: list[Screen]
    before: list[list[int]]
    answers: list[list[int]]
    outcome: dict[str, object] = field(default_factory=dict)
    words: Counter[str] = field(default_factory=Counter)
    cleaned: list[Examples] | None = None
    cleaned_answers: list[list[int]] | None = None
    target: int | None = None


@contextmanager
def _bar(total: int, name: str):
    with tqdm(total=total, unit="row", desc=name, disable=not sys.stderr.isatty()) as bar:
        yield bar.update


# ---- at inference

def screened(name: str, victim: Checkpoint, clean: Examples, parts: Sequence[Examples], settings, *, seed: int,
             target: int | None = None, lm: Checkpoint | None = None) -> Screened:
    """ONION, STRIP or RAP on `parts`: rows, and, if there are any, triggered ones. clean: rows to choose a threshold
    on. lm: ONION's language model. target: of the attack, which only RAP with the defect target reads."""
    before = [predict(victim.model, victim.tokenizer, rows) for rows in parts]
    found = Screened(list(parts), [], before, before, target=target)
    if name == "onion":
        with _bar(None, "ONION") as tick:
            done = onion(lm, clean, parts, settings, tick)
        found.screens, found.cleaned, found.words = done.screens, done.cleaned, done.words
        found.cleaned_answers = [predict(victim.model, victim.tokenizer, rows) for rows in done.cleaned]
        found.outcome = {"threshold": done.text_threshold, "word_threshold": done.word_threshold,
                         "words_removed": [{"removed": n, "of": of} for n, of in done.removed]}
        short = [sum(score == -float("inf") for score in screen.scores) for screen in done.screens]
        found.outcome["not_scored"] = short
    elif name == "strip":
        done = strip(victim, clean, parts, settings, seed)
        found.screens, found.outcome = done.screens, {"threshold": done.limit}
    else:
        done = rap(victim, clean, parts, settings, seed, target if settings.has("target") else None)
        found.screens = done.screens
        found.answers = [predict(done.answers.model, victim.tokenizer, rows) for rows in parts]
        found.outcome = {"thresholds": {victim.labels[c]: limit if limit < float("inf") else None
                                        for c, limit in done.limits.items()},
                         "word": done.word, "within": {victim.labels[c]: s for c, s in done.within.items()}}
    return found


def share(found: Proportion | None) -> dict | None:
    """A count as result.json has it."""
    return found and {"percent": found.percent, "hits": found.hits, "n": found.n, "interval": list(found.interval)}


def measures(found: Screened, counting: str, labelled: bool) -> dict:
    """All that is counted: FRR, FAR, AUROC; CACC and ASR of every row, of what is left after rejection, and after
    ONION's removal of words. labelled: whether the rows' labels are known."""
    rows, triggered = found.rows[0], found.rows[1] if len(found.rows) > 1 else None
    screens = found.screens

    def scores(answers: Sequence[Sequence[int]], some: Sequence[Screen]) -> dict:
        cacc = cacc_of(some[0], answers[0], rows, counting) if labelled else None
        asr = triggered and asr_of(some[1], answers[1], triggered, found.target, counting)
        return {"cacc": share(cacc), "asr": share(asr or None)}

    kept = [Screen(None, [True] * len(screen.keep)) for screen in screens]
    measured = {"frr": share(rejected(screens[0])),
                "far": share(let_through(screens[1])) if triggered else None,
                "auroc": auroc(screens[1].scores, screens[0].scores) if triggered and screens[0].scores else None,
                "before": scores(found.before, kept), "after": scores(found.answers, screens)}
    if found.cleaned is not None:
        counted = [Screen(None, screen.keep, screens[i].counted) for i, screen in enumerate(kept)]
        measured["removed"] = scores(found.cleaned_answers, counted)
    return measured


# ---- the rows of the task

def clean_rows(task: Task, given: str, header: checkpoint.Header, splits: data.Splits | None) -> Examples:
    """The clean rows that a threshold is chosen on: those of --clean, of a folder its dev rows; else the dev rows of
    the task. Raises BadInput."""
    if given:
        path = Path(given)
        if path.is_file():
            return data.read(path, labels=labels_of(task, header), **reading_of(task))
        parts = data.read_splits(path, seed=task.seed, labels=labels_of(task, header), **reading_of(task))
        return parts.dev or parts.train
    if splits is None and any("data" in entry for entry in header.history):
        recorded = data_of(replace(task, data=""), header)
        if "path" not in recorded or Path(recorded["path"]).exists():
            splits = splits_of(replace(task, data="", labels=None), header)
    rows = splits and splits.dev
    if not rows:
        raise BadInput("a threshold is chosen on clean rows, and there are none: name some with --clean FILE, such as "
                       "a dev file of the task")
    return rows


@dataclass(frozen=True)
class Opened:
    """A task that is open: rows to screen (from `file`, where they are those of one), clean rows, how ASR is measured.
    """
    victim: Checkpoint
    rows: Examples
    labelled: bool
    file: Path | None
    clean: Examples
    evaluator: Evaluator | None
    out: Path


def open_inference(name: str, task: Task, attack: Attack, clean: str, lm: str | None) -> Opened:
    """The victim, its rows, the clean ones, all checked before a model is loaded. Raises BadInput."""
    device = device_of(task.device)
    out = report.output_folder(task.out or Path("out", name), task.ckpt, task.data, clean, *([lm] if lm else []))
    report.check_free(out, task.overwrite)
    header = checkpoint.read_header(task.ckpt)
    if len(header.labels) < 2:
        raise BadInput(f"{task.ckpt} has no classifier of two classes or more, whose answers are screened: give a "
                       "checkpoint fine-tuned on the task")
    path, splits = Path(task.data), None
    if task.data and path.is_file():
        rows = data.read_texts(path, labels=labels_of(task, header), **reading_of(task))
    else:
        splits = splits_of(task, header)
        print_notes(splits)
        rows = splits.test
    held = clean_rows(task, clean, header, splits)
    labelled = check_labelled(attack, task, header, rows)
    given = attack.attack not in ("known", "none") or attack.triggered
    victim = checkpoint.load(header, device, labels=task.labels, seed=task.seed)
    # the texts of a single file may hold a trigger already
    known = labelled and (given or splits is not None)
    evaluator = evaluator_of(attack, task, victim, rows) if known else None
    return Opened(victim, rows, labelled, path if splits is None else None, held, evaluator, out)


def filter_texts(name: str, task: Task, attack: Attack, settings, *, clean: str = "", lm: str = "",
                 counting: str = "rejected") -> dict:
    """scripts/filter.py onion|strip|rap: screen the rows, write them with score and keep, and result.json; its content.
    """
    started = time.perf_counter()
    reads = str(lm or LM) if name == "onion" else None
    if reads and not Path(reads).exists():
        raise BadInput(f"{reads} is not here: name a language model with --lm FOLDER")
    opened = open_inference(name, task, attack, clean, reads)
    victim, evaluator = opened.victim, opened.evaluator
    triggered = evaluator.triggered if evaluator else None
    target = evaluator.target if evaluator else None
    print_rows(clean=opened.clean, **{"screened": opened.rows} if opened.labelled else {}, triggered=triggered)
    if not opened.labelled:
        print(f"screened  {len(opened.rows)} texts")
    if name == "rap" and settings.variant == "released" and target is None:
        raise BadInput("the released RAP reads the target class off the poisoned rows, and the attack is not known: "
                       "name it with --attack, or leave --variant out")
    parts = [opened.rows, *([triggered] if triggered else [])]
    device = victim.model.head_mask.device
    dtype = products_of(task)
    print_dtype(task)
    lm = checkpoint.load(reads, device) if reads else None
    with only_asked(dtype, victim.model, *([lm.model] if lm else [])):
        found = screened(name, victim, opened.clean, parts, settings, seed=task.seed, target=target, lm=lm)
    measured = measures(found, counting, opened.labelled)
    result = {
        "method": name,
        "args": args_of(task, attack, settings) | dtype_args(task) | {"counting": counting, "clean": clean},
        "counted": "clean rows" if opened.file is None or triggered else "rows of the file", "outcome": found.outcome,
        "rows": {"clean": len(opened.clean), "screened": len(opened.rows), "triggered": len(triggered or ())},
        **measured, "words": found.words.most_common(SHOWN), "versions": report.versions(),
        "seconds": round(time.perf_counter() - started, 2), "command": report.command(),
        "sha256": checkpoint.sha256(task.ckpt), "lm_sha256": checkpoint.sha256(reads) if reads else None,
    }
    with _whole(opened.out) as draft:
        written = [_write_rows(opened, found, 0, draft / "rows.jsonl")]
        if triggered:
            taken = written[0].name == "triggered.jsonl"  # as the file that was screened is called
            written.append(_write_rows(opened, found, 1, draft / f"triggered{'-2' if taken else ''}.jsonl"))
        result["files"] = [path.name for path in written]
        report.write_json(draft / "result.json", result)
    _print(result, [opened.out / name for name in (*result["files"], "result.json")])
    return result


@contextmanager
def _whole(out: Path) -> Iterator[Path]:
    """report.whole, of a run that may take the place of another filter's: its rows go, too."""
    try:
        last = json.loads(read_regular(out / "result.json", LARGEST))
        names = {str(name) for name in last["files"]} if last["method"] in SETTINGS else set()
    except (ValueError, KeyError, TypeError):  # there is none, or that of another script
        names = set()
    old = {name for name in names if Path(name).suffix in data.SUFFIXES}
    with report.whole(out, lambda name: report.is_run_file(name) or name in old) as draft:
        yield draft


def _write_rows(opened: Opened, found: Screened, part: int, path: Path) -> Path:
    """The file that was screened with score and keep, and of ONION what is left of each text, beside `path`; else
    `path`, a .jsonl."""
    screen, rows = found.screens[part], found.rows[part]
    scores = [None if s == -float("inf") else s for s in screen.scores or [None] * len(rows)]
    columns: dict[str, Sequence[object]] = {"score": scores, "keep": [int(kept) for kept in screen.keep]}
    if found.cleaned is not None:
        columns["cleaned"] = [x.text for x in found.cleaned[part]]
        if any(x.pair is not None for x in rows):
            columns["cleaned_pair"] = [x.pair for x in found.cleaned[part]]
    if part == 0 and opened.file is not None:
        return _add_columns(opened.file, path.with_name(opened.file.name), columns)
    return write_screened(rows, columns, path)


def _add_columns(file: Path, path: Path, columns: Mapping[str, Sequence[object]]) -> Path:
    """The rows of `file` with more columns, in its own form."""
    data.add_columns(file, path, columns)
    progress().written.append(str(path))
    return path


def write_screened(rows: Sequence[Example], columns: Mapping[str, Sequence[object]], path: Path) -> Path:
    """`rows` as .jsonl with more columns."""
    labels = getattr(rows, "labels", ())
    report.write_lines(path, [
        {"id": x.id, "text": x.text, "label": labels[x.label] if x.label >= 0 else None,
         **({} if x.pair is None else {"pair": x.pair}), **{name: values[i] for name, values in columns.items()}}
        for i, x in enumerate(rows)])
    return path


def _print(result: dict, written: Sequence[Path]) -> None:
    """The end of a run that wrote `written`."""
    print(table_of(result))
    for line in notes_of(result):
        print(line)
    print("written: " + ", ".join(visible(str(path), 1000) for path in written))


def table_of(result: Mapping) -> str:
    """FRR, FAR, CACC and ASR as aligned columns, with counts and intervals."""
    first = "FRR" if result.get("counted", "") != "rows of the file" else "rejected"
    lines = [("", "percent", "", "95 %")]

    def line(name: str, found: Mapping | None) -> None:
        if found:
            lines.append((name, f"{found['percent']:.2f}", f"{found['hits']}/{found['n']}",
                          "{:.1f}-{:.1f}".format(*found["interval"])))
    line(first, result["frr"])
    line("FAR", result["far"])
    for when, said in (("before", "before"), ("after", "after rejection"), ("removed", "after removal of words"),
                       ("retrained", "retrained")):
        for kind in ("cacc", "asr"):
            line(f"{kind.upper()} {said}", (result.get(when) or {}).get(kind))
    return report.format_table(lines)


def notes_of(result: Mapping) -> list[str]:
    notes, outcome = [], result["outcome"]
    if result.get("auroc") is not None:
        notes.append(f"AUROC {result['auroc']:.4f}")
    if outcome.get("word_threshold") is not None and outcome.get("words_removed"):
        counts = ", ".join(f"{one['removed']} of {one['of']}" for one in outcome["words_removed"])
        notes.append(f"words removed: {counts} (of the rows{', of the triggered ones' if result['far'] else ''})")
    if any(outcome.get("not_scored", ())):
        notes.append(f"{outcome['not_scored'][0]} rows of one word cannot lose it: they have no score and are kept")
    if "within" in outcome:
        shares = ", ".join(f"{visible(name)} {100 * s:.0f} %" for name, s in outcome["within"].items())
        notes.append(f"{visible(outcome['word'])!r} takes what it is to take from the clean rows of {shares}")
        if max(outcome["within"].values()) < 0.5:
            notes.append("that is too few: RAP's word was not learnt; try another --lr, more --epochs, more clean rows")
    if result.get("words"):
        first = "removed" if result["method"] == "onion" else "suspicious words"
        notes.append(f"{first} most: " + ", ".join(f"{visible(w)} {n}" for w, n in result["words"][:10]))
    if "clusters" in outcome:
        notes.append(f"clusters: {outcome['clusters']} of label and cluster, {len(outcome['dropped'])} dropped")
    return notes


# ---- a training set

@dataclass(frozen=True)
class Training:
    """How a classifier is trained on the suspicious rows, or on those that are kept."""
    lr: float
    epochs: int
    batch_size: int

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.lr, self.epochs, self.batch_size)


Train = Callable[[Checkpoint, Examples, Training, int, torch.dtype, str], Checkpoint]


def trained(base: Checkpoint, rows: Examples, training: Training, seed: int, dtype: torch.dtype, name: str
            ) -> Checkpoint:
    """A copy of `base` with a new classifier, trained on `rows` as attack.py trains a victim."""
    ckpt = checkpoint.with_head(checkpoint.headless(base), rows.labels, seed)
    fit(ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(rows), cross_entropy, training.schedule, seed=seed,
        dtype=dtype, name=name)
    return ckpt


def trained_once() -> Train:
    """`trained`, of the same rows once: filters of one victim that keep the same rows retrain the same classifier. For
    one base and one precision."""
    known: dict[tuple[tuple[Example, ...], Training, int], Checkpoint] = {}

    def train(base: Checkpoint, rows: Examples, training: Training, seed: int, dtype: torch.dtype, name: str
              ) -> Checkpoint:
        key = (tuple(rows), training, seed)
        if key not in known:
            known[key] = trained(base, rows, training, seed, dtype, name)
        return checkpoint.copy(known[key])  # what it goes through next is the copy's
    return train


def screened_training(name: str, victim: Checkpoint, rows: Examples, clean: Examples | None, settings,
                      read: Read | None = None) -> tuple[Screen, dict, Counter]:
    """BKI or CUBE on training rows: the screen, what it found out, BKI's words. read: see bki."""
    if name == "bki":
        with _bar(len(rows) + len(clean or ()), "BKI") as tick:
            done = bki(victim, rows, clean, settings, tick, read)
        most = sorted(done.g.items(), key=lambda pair: -pair[1])[:SHOWN]
        return done.screen, {"threshold": done.limit, "g": most}, done.words
    done = cube(victim, rows, clean, settings)
    pairs = [{"label": rows.labels[label], "cluster": c, "rows": n, "dropped": (label, c) in done.dropped}
             for (label, c), n in sorted(done.clusters.items())]
    dropped = [pair for pair in pairs if pair["dropped"]]
    return done.screen, {"clusters": len(pairs), "dropped": dropped, "sizes": pairs}, Counter()


def training_measures(screen: Screen, rows: Examples, poisoned: set[str] | None) -> dict:
    """FRR of the clean training rows, FAR of the poisoned ones, AUROC; where it is not known which are, `frr` is the
    share of all that are dropped."""
    def part(chosen: Callable[[Example], bool]) -> Screen:
        which = [i for i, x in enumerate(rows) if chosen(x)]
        return Screen(screen.scores and [screen.scores[i] for i in which], [screen.keep[i] for i in which])

    if poisoned is None:
        return {"frr": share(rejected(screen)), "far": None, "auroc": None}
    clean, bad = part(lambda x: x.id not in poisoned), part(lambda x: x.id in poisoned)
    return {"frr": share(rejected(clean)), "far": share(let_through(bad)),
            "auroc": auroc(bad.scores, clean.scores) if screen.scores else None}


def filter_training(name: str, task: Task, attack: Attack, settings, training: Training, *, clean: str = "",
                    pretrained: str = "", retrain: bool = False, read: Read | None = None, train: Train | None = None
                    ) -> dict:
    """scripts/filter.py bki|cube: screen training rows; with `retrain`, train on what is kept. read: see bki. train:
    what the retrained classifier is asked of (default trained), such as trained_once's. Returns result.json."""
    started = time.perf_counter()
    device, dtype, _ = device_of(task.device), products_of(task), texts_at_once(task)
    out = report.output_folder(task.out or Path("out", name), task.ckpt, task.data, clean, pretrained)
    report.check_free(out, task.overwrite)
    header = checkpoint.read_header(task.ckpt)
    if not task.data:
        raise BadInput(f"{name} screens training rows: name them with --data, a file, a folder or what attack.py left")
    if pretrained and header.labels and not retrain:
        raise BadInput("--pretrained is what --retrain starts from: add it, or leave this out")
    base_header = checkpoint.read_header(pretrained) if pretrained else None if header.labels else header
    if retrain and base_header is None:
        raise BadInput(f"--retrain starts from weights without the backdoor, and {task.ckpt} was trained on the rows: "
                       "name the encoder with --pretrained")
    path = Path(task.data)
    attacked = path.is_dir() and (path / "attack.json").is_file()
    labels, columns = labels_of(task, header), reading_of(task)
    splits = None
    if attacked:
        rows = data.read(path / "poisoned.jsonl", labels=labels, **columns)
    elif path.is_dir():
        splits = data.read_splits(path, seed=task.seed, labels=labels, **columns)
        rows = splits.train
    else:
        rows = data.read(path, labels=labels, **columns)
    task_labels = replace(task, labels=None)
    held = test = None
    if clean:
        held = clean_rows(task, clean, header, None)
        if Path(clean).is_dir():
            test = data.read_splits(clean, seed=task.seed, labels=labels or rows.labels, **columns).test
    elif settings.variant == "paper" or retrain:
        held = clean_rows(task_labels, "", header, splits) if splits is None else splits.dev
    test = test or (splits.test if splits else None)
    if not held and name == "bki" and settings.variant == "paper":
        raise BadInput("BKI's threshold is chosen on clean rows, and there are none: name some with --clean FILE")
    poisoned = None
    if attacked and (ids := path / "poisoned_ids.txt").is_file():
        poisoned = set(ids.read_text(encoding="utf-8").split("\n")) - {""}
    evaluator = None
    if retrain and test:
        if attacked and (path / "triggered.jsonl").is_file():
            target = json.loads((path / "attack.json").read_text(encoding="utf-8")).get("target")
            evaluator = Evaluator(test, data.read(path / "triggered.jsonl", labels=rows.labels, **columns), target)
        else:
            evaluator = Evaluator(test)
    print_rows(untrusted=rows, clean=held, test=test if evaluator else None,
               triggered=evaluator.triggered if evaluator else None)
    print_dtype(task)
    if header.labels:
        victim = checkpoint.load(header, device, labels=task.labels, seed=task.seed)
    else:
        victim = trained(sparing(checkpoint.load(header, device), task), rows, training, task.seed, dtype, "untrusted")
    with only_asked(dtype, victim.model):
        screen, outcome, words = screened_training(name, victim, rows, held or None, settings, read)
    kept = rows.like(x for x, k in zip(rows, screen.keep) if k)
    measured, model = training_measures(screen, rows, poisoned), None
    if evaluator:
        measured["before"] = _scored(evaluator, victim)
    if retrain:
        if len({x.label for x in kept}) < 2:
            raise BadInput(f"{len(kept)} rows are kept, all of one class: nothing is trained on them; lower --frr")
        base = sparing(checkpoint.load(base_header, device), task)
        model = (train or trained)(base, kept, training, task.seed, dtype, "retrained")
        model.history.append({"mitigation": name, "kept": len(kept), "of": len(rows), "seed": task.seed,
                              **asdict(settings)})
        if evaluator:
            measured["retrained"] = _scored(evaluator, model)
    result = {
        "method": name, "args": args_of(task, settings, training) | dtype_args(task) | {
            "clean": clean, "pretrained": pretrained, "retrain": retrain},
        "counted": "clean rows" if poisoned is not None else "rows of the file", "outcome": outcome,
        "rows": {"untrusted": len(rows), "clean": len(held or ()), "kept": len(kept),
                 "poisoned": None if poisoned is None else len(poisoned)},
        **measured, "words": words.most_common(SHOWN), "versions": report.versions(),
        "seconds": round(time.perf_counter() - started, 2), "command": report.command(),
        "sha256": checkpoint.sha256(task.ckpt), "output_sha256": None,
    }
    columns = {"score": screen.scores or [None] * len(rows), "keep": [int(k) for k in screen.keep]}
    with _whole(out) as draft:
        screened_file = (_add_columns(path, draft / path.name, columns) if path.is_file()
                         else write_screened(rows, columns, draft / "rows.jsonl"))
        result["files"] = [screened_file.name]
        if model is not None:
            place = output_path(draft, task.ckpt)
            checkpoint.save(model, place)
            progress().written.append(str(place))
            result["output_sha256"] = checkpoint.sha256(place)
        report.write_json(draft / "result.json", result)
    _print(result, [out / screened_file.name, *([output_path(out, task.ckpt)] if model else []), out / "result.json"])
    return result


def _scored(evaluator: Evaluator, ckpt: Checkpoint) -> dict:
    scores = evaluator(ckpt.model, ckpt.tokenizer)
    return {"cacc": share(scores.cacc), "asr": share(scores.asr)}
