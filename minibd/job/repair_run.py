"""A repair from suspicion to receipt: scan, undo what is found, retrain where that helps, scan again, what is left.

    1  scan the victim                                                                    detect/, or --suspects
    2  undo what the verdict names; once more where its words still take held-out texts   mitigations/unlearn.py
       where it is inconclusive, and its words do what a trigger does, the rows that no text needs: a precaution
    3  retrain, where a method is asked for, where what was undone is a part of a         the other mitigations
       trigger, or where nothing was found and the pre-trained weights are there; what
       that brings back of 2 is undone once more                                          undone.py
    4  scan the result; what this second scan finds is undone once more, all weights trained, but of classes in which
       the first found nothing; where it is inconclusive, once more as a precaution; and it is scanned a third time
    5  evidence: the same treatment of copies of the result with backdoors of one's own   planted.py

The verdict is "repaired as far as was tested" where the last scan finds nothing, what was undone takes held-out texts
no more, and some of it scored 0 or more, Eq. Scan (8): below that it may be a part of a trigger, whose rest acts still.

A second round needs a second finding: to undo again what no scan names only costs accuracy. What a second scan finds
of a class that the first one cleared are words of meaning that the training moved, and to undo them costs accuracy,
too. Nothing here knows an attacker's trigger; where it is known (--attack, --triggered, a victim of ours), ASR is
measured beside, and decides nothing.
"""
from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from minibd import __version__, checkpoint, data, report, reviews
from minibd.checkpoint import Checkpoint
from minibd.cli import Attack, Clean, Task, progress
from minibd.data import generator
from minibd.detect.carriers import carrier_sentences
from minibd.detect.scan import TEXTS_A_CLASS, Scan
from minibd.detect.wording import (
    BUILT_IN,
    FOUND,
    INCONCLUSIVE,
    NOTHING,
    listed,
    of_verdict,
    score_of_undone,
    visible,
)
from minibd.evaluate import Evaluator, asr
from minibd.job import scanning
from minibd.job.e_pur import pretrained_of
from minibd.job.evaluation import evaluator_of
from minibd.job.idle import built_in
from minibd.job.planted import KINDS, Planted, plant, trigger_of
from minibd.job.receipt import (
    CANNOT_SEE,
    NOT_SHOWN,
    NOTHING_FOUND,
    REPAIRED,
    SCHEMA,
    brief,
    changed,
    counted,
    evidence_line,
    losses,
    quoted_words,
)
from minibd.job.repairs import REPAIRS, takes_pretrained
from minibd.job.suspects import class_in, findings_of, precautions_of
from minibd.job.task import (
    clean_rows,
    labels_of,
    output_path,
    print_notes,
    products_of,
    read_alike,
    reading_of,
    splits_of,
)
from minibd.job.undone import brought_back, flipped, still_acts
from minibd.mitigations.unlearn import ROWS, WHOLE, Finding, Unlearning, rare_rows, unlearn
from minibd.predict import predict
from minibd.proportion import Proportion
from minibd.records import BadInput, Example, Examples
from minibd.resume import carried, kept_by, once
from minibd.train import StepLog, check_classes

HELD_OUT = 0.2  # of the rows of a file, and of the built-in sentences, that measure and train nothing
ROUNDS = 2
METHODS = ("auto", "none", "mbtsad", "pure", *REPAIRS)
LEAST_STEPS = 200  # of each of MBTSAD's trainings, however few the rows
OFFERED = "reinit"  # what the receipt offers where words do not get there
PLANTED_TEXTS = 600  # that a backdoor of one's own is planted with, at most
PART_ROWS = 200  # labelled rows from which on what holds a part of a trigger is retrained
DEEPER = {"layers": 2, "lr": 1e-4}  # of reinitialisation, where no words were undone; a narrow model's rate is higher
DEEPER_ROWS = 1000  # and so many labelled rows train; fewer lose three points of accuracy by it (repair.md)
STRANGE_TEXTS = "the texts are not of the task, and what all weights learn from them costs accuracy in those that are"
NO_LABELS = "retraining reads labels of two classes or more, which these texts do not have"
UNDONE = "what was found is undone without it; --method retrains all the same"
LITTLE_WON = ("what was found is undone without the pre-trained weights, and Fine-mixing behind that costs accuracy "
              "and wins little; --method finemix retrains all the same")
STILL_ACTS = "the words take held-out texts still"
FOUND_AGAIN = "a second scan finds more than was undone"
PART_UNDONE = "what was undone did less than whole triggers do, and a new last layer passes on less of the rest"
NOT_FOUND = "nothing was found, and retraining costs accuracy where nothing is there; --method retrains all the same"
WEIGHTS_AT_HAND = "nothing was found, and Fine-mixing with E-PUR goes back to the pre-trained weights"
DEEP = f"; {DEEPER['layers']} layers deep, since no words were undone and {DEEPER_ROWS} rows or more train"
BROUGHT_BACK = "retraining brought them back"
PRECAUTION = "the scan is inconclusive, these words act as a trigger does, and no text needs their rows: a precaution"


@dataclass(frozen=True, slots=True)
class Rows:
    """What the defender holds. texts: to scan with, to undo and to train on, -1 where a text has no label. test: held
    out, with labels; where the rows have none, the victim's own answers. labelled: whether all have labels. source:
    what they are, as a scan says it."""
    texts: Examples
    test: Examples
    labelled: bool
    source: str

    @property
    def measure(self) -> str:
        """What CACC on `test` is."""
        return "accuracy" if self.labelled else "agreement with the model as it came"


@dataclass
class Repair:
    """One repair. steps: the models that were measured, in their order. done: what was undone, round by round."""
    task: Task
    settings: Unlearning
    scan: Scan
    victim: Checkpoint
    rows: Rows
    evaluator: Evaluator
    out: Path
    pretrained: Checkpoint | None
    log: StepLog = field(default_factory=StepLog)
    steps: list[report.Step] = field(default_factory=list)
    scans: list[dict] = field(default_factory=list)
    undone: list[dict] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    retrained: dict[str, str] | None = None
    draft: Path | None = None  # what takes the place of `out` when the run is finished

    @property
    def dtype(self) -> torch.dtype:
        return products_of(self.task)

    @property
    def path(self) -> Path:
        """Where the result is written."""
        return output_path(self.out, self.task.ckpt)

    @property
    def place(self) -> Path:
        """Where it lies now."""
        return output_path(self.draft or self.out, self.task.ckpt)

    def timed(self, name: str, started: float) -> float:
        """Adds the seconds since `started` to those of the part `name`, and what was loaded of it; returns them."""
        seconds = time.perf_counter() - started + carried(self.log)
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)
        return seconds

    @property
    def quiet(self) -> StepLog:
        """What takes no steps, and keeps what is trained as `log` does."""
        return StepLog(kept=kept_by(self.log), listens=False)

    def measure(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        scores = self.evaluator.once(self.log, name, ckpt.model, ckpt.tokenizer)
        self.steps.append(report.Step(name, scores, seconds))
        carried(self.log)  # those of the scores are no stage's
        progress().finished.append(name)

    # ---- the steps

    def look(self, ckpt: Checkpoint, path: Path | str, name: str) -> dict:
        """Steps 1 and 4: a scan of the checkpoint, which lies at `path`."""
        started = time.perf_counter()
        task = replace(self.task, ckpt=str(path), dtype=self.task.dtype)
        found = once(self.log, name, lambda: scanning.scan_of(ckpt, task, self.scan, self.rows.texts, self.rows.source))
        if path == self.place:
            found["checkpoint"] = str(self.path)
        self.scans.append(found)
        self.timed(name, started)
        print(scanning.table_of(found))
        print(scanning.sentence(found), flush=True)
        progress().finished.append(name)
        return found

    def undo(self, ckpt: Checkpoint, findings: Sequence[Finding], settings: Unlearning, why: str = "") -> Checkpoint:
        """Step 2, and what the words do before and after it in held-out texts. why: the reason where it is none of the
        words' own."""
        started, chosen = time.perf_counter(), {}
        cleaned = unlearn(ckpt, findings, self.rows.texts, settings, seed=self.task.seed + len(self.undone),
                          dtype=self.dtype, log=self.log, on_choice=lambda name, value: chosen.update(value))
        seconds, why = self.timed("undo", started), why or chosen["why"]
        n = 1 + max((one["round"] for one in self.undone), default=0)
        for finding in findings:
            before, after = (self.flips(model, finding, ckpt) for model in (ckpt, cleaned))
            self.undone.append({
                "round": n, "words": list(finding.words), "joined": finding.joined, "side": finding.side,
                "target": self.victim.labels[finding.target], "before": counted(before), "after": counted(after),
                "mode": chosen["mode"], "why": why, "precaution": why == PRECAUTION,
            })
        what = f"{len(chosen['rows'])} rows of the embedding table"
        what = what if chosen["mode"] == ROWS else f"all weights, then {what}" if chosen["rows"] else "all weights"
        print(f"undo      {'; '.join(visible(finding.named) for finding in findings)}: {what} trained, since {why}",
              flush=True)
        self.measure("unlearned" if n == 1 else f"unlearned, round {n}", cleaned, seconds)
        return cleaned

    def flips(self, ckpt: Checkpoint, finding: Finding, by: Checkpoint) -> Proportion | None:
        """`flipped` of held-out texts, or where none of these is of another class of those that were worked with."""
        return (flipped(ckpt, finding, self.rows.test, by, self.task.seed)
                or flipped(ckpt, finding, self.rows.texts, by, self.task.seed))

    def undo_until_gone(
        self, ckpt: Checkpoint, findings: Sequence[Finding], settings: Unlearning, why: str = "",
    ) -> Checkpoint:
        """Step 2, and once more, all weights and twice the steps, where one of the words still takes held-out texts:
        that is a finding, too, but where rows alone were asked for. Behind rows it begins again: dead words teach all
        weights nothing of their relatives. why: the first one's reason where it is none of the words' own."""
        taken, first, own = self.first_way(findings, settings)
        cleaned = self.undo(ckpt, taken, first, why or own)
        shares = [one["after"] for one in self.undone[-len(taken):]]
        shares += [counted(self.flips(cleaned, one, ckpt)) for one in findings if one not in taken]
        if any(map(still_acts, shares)) and settings.mode != ROWS:
            start = ckpt if self.undone[-1]["mode"] == ROWS else cleaned
            again = replace(settings, mode=WHOLE, steps=2 * settings.steps)
            cleaned = self.undo(start, findings, again, STILL_ACTS)
        return cleaned

    def first_way(
        self, findings: Sequence[Finding], settings: Unlearning,
    ) -> tuple[Sequence[Finding], Unlearning, str]:
        """Which findings are undone at first and how, and the reason where it is none of the words' own: built-in
        sentences train rows alone, of the words that have some."""
        if settings.mode == "auto" and self.rows.source == BUILT_IN and (rare := self.with_rare_rows(findings)):
            return rare, replace(settings, mode=ROWS), STRANGE_TEXTS
        return findings, settings, ""

    def precautions(self, found: Mapping[str, Any], again: bool = False) -> list[Finding]:
        """Step 2, where nothing was found: the words of inconclusive classes whose rows no text needs. again: `found`
        is of the result."""
        return self.with_rare_rows(precautions_of(found, self.victim.labels, again))

    def with_rare_rows(self, findings: Sequence[Finding]) -> list[Finding]:
        """Those of which the texts hardly hold an entry."""
        return [one for one in findings
                if rare_rows(self.victim.tokenizer, [one], self.rows.texts, self.settings.rare)]

    def retrain(self, ckpt: Checkpoint, method: str) -> Checkpoint:
        """Step 3."""
        started = time.perf_counter()
        cleaned = retrained(method, ckpt, self.pretrained, self.rows.texts, seed=self.task.seed, dtype=self.dtype,
                            log=self.log, deeper=self.goes_deeper(method))
        self.measure(method, cleaned, self.timed("retrain", started))
        return cleaned

    @property
    def score(self) -> float | None:
        """The largest that the scans gave to what was undone, Eq. Scan (8): below 0 it may be a part of a trigger."""
        return score_of_undone((one for scan in self.scans for found in scan["classes"].values()
                                for one in found["suspects"]), self.undone)

    @property
    def part(self) -> bool:
        """Whether what was undone did less than whole triggers do."""
        return self.score is not None and self.score < 0

    def goes_deeper(self, method: str) -> bool:
        """Whether `method` is reinitialisation by DEEPER."""
        return method == "reinit" and not self.undone and len(self.rows.texts) >= DEEPER_ROWS

    def behind(self, findings: Sequence[Finding]) -> tuple[str, str]:
        """Step 3 as "auto" has it: who retrains the model in which `findings` were undone, and why."""
        if not findings:
            return ("finemix", WEIGHTS_AT_HAND) if self.pretrained else ("none", NOT_FOUND)
        if self.part and len(self.rows.texts) >= PART_ROWS:
            return "reinit", PART_UNDONE
        return "none", LITTLE_WON if self.pretrained else UNDONE

    def run(self, method: str, why: str, suspects: dict | None) -> Checkpoint:
        """Steps 1 to 4. method: "none", who retrains, or "auto", which goes by what was found; why: the reason of any
        but auto. suspects: the scan of --suspects."""
        self.measure("victim", self.victim, 0.0)
        found = suspects if suspects is not None else self.look(self.victim, self.task.ckpt, "first scan")
        if suspects is not None:
            self.scans.append(suspects)
        ckpt, findings, settings = self.victim, findings_of(found, self.victim.labels), self.settings
        doubtful = [] if findings else self.precautions(found)
        if findings:
            ckpt = self.undo_until_gone(ckpt, findings, settings)
        elif doubtful:
            settings = replace(settings, mode=ROWS)
            ckpt = self.undo(ckpt, doubtful, settings, PRECAUTION)
        else:
            print("undo      nothing: the scan names no words, and to undo what it does not name costs accuracy")
        if method == "auto":
            method, why = self.behind(findings)
        if self.goes_deeper(method):
            why += DEEP
        self.retrained = {"method": method, "why": why}
        print(f"retrain   {method}: {why}", flush=True)
        if method != "none":
            ckpt = self.retrain(ckpt, method)
            if back := brought_back(ckpt, [*findings, *doubtful], self.rows.test, self.task.seed):
                ckpt = self.undo(ckpt, back, settings, BROUGHT_BACK)
        if ckpt is self.victim:
            ckpt = checkpoint.copy(ckpt)
        self.save(ckpt)
        if not self.undone and method == "none":
            return ckpt
        again = self.look(ckpt, self.place, "second scan")
        known = cleared(found, self.victim)
        more = [one for one in findings_of(again, self.victim.labels) if one.target not in known]
        if self.settings.mode == ROWS:
            more = self.with_rare_rows(more)
        doubtful = [] if more else self.precautions(again, again=True)
        if more:  # what is found again is more than rows
            found_again = self.undone and self.settings.mode == "auto"
            settings = replace(self.settings, mode=WHOLE) if found_again else self.settings
            ckpt = self.undo_until_gone(ckpt, more, settings, FOUND_AGAIN if found_again else "")
        elif doubtful:
            ckpt = self.undo(ckpt, doubtful, replace(self.settings, mode=ROWS), PRECAUTION)
        if more or doubtful:
            self.save(ckpt)
            self.look(ckpt, self.place, "third scan")
        return ckpt

    def save(self, ckpt: Checkpoint) -> None:
        checkpoint.save(ckpt, self.place)
        if str(self.place) not in progress().written:
            progress().written.append(str(self.place))

    def write_card(self, cleaned: Checkpoint, receipt: Mapping[str, Any], folder: Path) -> None:
        """The verdict in the model card of a checkpoint that is a folder, into `folder`; the checkpoint's own files,
        whose sha256 was taken, stay."""
        if self.place.is_dir():
            said = {"verdict": f"{receipt['verdict']}. {receipt['sentence']}".rstrip("."), "next": receipt["next"]}
            told = replace(cleaned, history=[*cleaned.history, said])
            report.write_text(folder / "README.md", checkpoint.card(told))

    # ---- the evidence

    def evidence(self, cleaned: Checkpoint, kinds: Sequence[str]) -> list[dict]:
        """Step 5: what the same treatment leaves of backdoors of one's own in copies of the result; those that these
        texts cannot carry are left out with a line."""
        started, taken, told = time.perf_counter(), [], []
        texts = self.rows.texts[:PLANTED_TEXTS]
        for n, kind in enumerate(kinds):
            target = n % len(cleaned.labels)
            try:
                trigger = trigger_of(kind, target, cleaned.tokenizer, texts, taken=taken)
                made = plant(cleaned, trigger, texts, seed=self.task.seed + n, dtype=self.dtype, log=self.quiet)
            except BadInput as error:  # the result is written: it stays, without this evidence
                print(f"planted   {kind}: not tried: {error}", flush=True)
                continue
            taken += trigger.words
            try:
                told.append(self.treated(made))
            except BadInput as error:
                print(f"planted   {kind}: not treated: {error}", flush=True)
                continue
            print(evidence_line(told[-1]), flush=True)
            progress().finished.append(f"planted {kind}")
        self.timed("evidence", started)
        return told

    def treated(self, made: Planted) -> dict:
        """One planted copy: scan, undo what the verdict names, and what is left."""
        task = replace(self.task, ckpt=str(self.path))
        found = once(self.log, f"scan of {made.trigger.kind}", lambda: scanning.scan_of(
            made.ckpt, task, self.scan, self.rows.texts, self.rows.source))
        findings, settings, _ = self.first_way(findings_of(found, self.victim.labels), self.settings)
        if not findings:
            findings, settings = self.precautions(found), replace(self.settings, mode=ROWS)
        left = made.ckpt if not findings else unlearn(made.ckpt, findings, self.rows.texts, settings,
                                                      seed=self.task.seed, dtype=self.dtype, log=self.quiet)
        trigger = made.trigger
        after = asr(left.model, left.tokenizer, made.triggered, trigger.target)
        own = {*trigger.words}
        return {
            "kind": trigger.kind, "words": list(trigger.words), "target": self.victim.labels[trigger.target],
            "floor": counted(made.before), "planted": counted(made.asr), "kept": counted(made.kept),
            "strong": made.strong,
            "verdict": found["verdict"], "named": [finding.named for finding in findings],
            "true_word_named": any(own & {*finding.words} for finding in findings), "left": counted(after),
            "agreement": counted(agreement(left, made.ckpt, self.rows.test)),
        }


def cleared(scan: Mapping[str, Any], ckpt: Checkpoint) -> set[int]:
    """The classes in which a scan found nothing."""
    return {class_in(name, ckpt.labels) for name in of_verdict(scan, NOTHING)}


def agreement(one: Checkpoint, other: Checkpoint, test: Examples) -> Proportion:
    pairs = zip(predict(one.model, one.tokenizer, test), predict(other.model, other.tokenizer, test))
    return Proportion(sum(a == b for a, b in pairs), len(test))


# ---- what is opened

def open_rows(task: Task, clean: Clean, header: checkpoint.Header) -> Rows:
    """The rows of --data, or the built-in sentences. Raises BadInput."""
    names = labels_of(task, header)
    if not task.data:
        scanning.check_renamed(task, header)
        return held_out(Examples(carrier_sentences(), names), BUILT_IN, task.seed)
    if built_in(task.data, (scanning.REVIEWS,)):
        scanning.reviews_of(task, names)  # refuses other classes
        train, _, test = (part.like(replace(x, label=names.index(part.labels[x.label])) for x in part)
                          for part in reviews.splits(**reviews.PAIRS))
        return Rows(Examples(clean_rows(task, clean, train), names), Examples(test, names), True,
                    "the built-in reviews")
    path = Path(task.data)
    if path.is_file():
        rows = data.read_texts(path, labels=names, **reading_of(task))
        if clean.clean is not None:
            rows = drawn(rows, clean.clean, task.seed)
        return held_out(rows, path.name, task.seed)
    splits = splits_of(task, header)
    print_notes(splits)
    return Rows(clean_rows(task, clean, splits.train), splits.test, True,
                path.name if path.exists() else "the built-in pairs")


def drawn(rows: Examples, amount: float, seed: int) -> Examples:
    """`amount` of the rows, a share or a number; where all have labels of each class as many, as data.sample."""
    if all(x.label >= 0 for x in rows):
        return data.sample(rows, amount, seed)
    n = round(amount * len(rows)) if amount <= 1 else amount
    if not 0 < n <= len(rows) or n != int(n):
        raise BadInput(f"{amount:g} clean rows: give a fraction above 0 and up to 1, or a number up to {len(rows)}")
    return rows.like(rows[i] for i in sorted(generator(seed, "clean").sample(range(len(rows)), int(n))))


def held_out(rows: Examples, source: str, seed: int) -> Rows:
    """The rows of one file, a fifth of which measures and trains nothing."""
    if round(HELD_OUT * len(rows)) < 1:
        raise BadInput(f"{len(rows)} rows of {source}: a fifth is held out to measure on, and that is none: give more")
    test = drawn(rows, HELD_OUT, seed)
    ids = {id(x) for x in test}
    rest = rows.like(x for x in rows if id(x) not in ids)
    if not rest:
        raise BadInput(f"{len(rows)} rows of {source}: a fifth is held out to measure on, and none is left: give more")
    return Rows(rest, test, all(x.label >= 0 for x in rows), source)


def chosen_method(method: str, pretrained: str | None, rows: Rows) -> tuple[str, str]:
    """Who retrains, and why; "auto" where that goes by what the first scan finds. Raises BadInput where the method
    cannot be run with what is held."""
    classes = len({x.label for x in rows.texts}) if rows.labelled else 0
    if method == "none" and pretrained:
        raise BadInput(f"--pretrained {pretrained}: --method none does not read it: leave one of the two out")
    if method == "none" or method == "auto" and not pretrained and classes < 2:
        return "none", "as was asked for" if method == "none" else NO_LABELS
    if method == "auto" and not rows.labelled:
        raise BadInput(f"--pretrained {pretrained}: Fine-mixing fine-tunes on labelled rows, and these have no labels: "
                       "give labels, or leave it out")
    if not rows.labelled:
        raise BadInput(f"--method {method} trains on labelled rows, and these have none: give labels, or leave it out")
    if classes < 2:
        raise BadInput(f"--method {method}: the {len(rows.texts)} rows are of one class: give rows of every class")
    if method == "auto":
        return "auto", ""
    if takes_pretrained(method) and not pretrained:
        raise BadInput(f"--method {method} goes back to the pre-trained weights: name them with --pretrained")
    if pretrained and not takes_pretrained(method):
        raise BadInput(f"--pretrained {pretrained}: --method {method} does not read it: leave one of the two out")
    return method, "as was asked for"


def with_validation(clean: Examples, method: str, seed: int) -> tuple[Examples, Examples]:
    """The rows that train and the tenth that chooses. Raises BadInput where they are too few."""
    validation = data.sample(clean, 0.1, seed)
    ids = {x.id for x in validation}
    train = clean.like(x for x in clean if x.id not in ids)
    check_classes(train, f"--method {method}")
    return train, validation


def retrained(
    method: str, ckpt: Checkpoint, pretrained: Checkpoint | None, clean: Examples, *, seed: int, dtype: torch.dtype,
    log: StepLog, deeper: bool = False,
) -> Checkpoint:
    """Step 3: the method's own defaults; a tenth of the rows chooses an epoch or rho where the method chooses one.
    deeper: reinitialisation by DEEPER, whose last epoch is kept: the one that a tenth of the rows chose left twice as
    much of a planted sentence (scripts/results/LOG.md)."""
    options = {"seed": seed, "dtype": dtype, "log": log}
    if method == "mbtsad":
        from minibd.mitigations.mbtsad import MBTSAD, mbtsad
        return mbtsad(ckpt, clean, MBTSAD(steps=LEAST_STEPS), **options)
    train, validation = (clean, None) if deeper else with_validation(clean, method, seed)
    if method == "pure":
        from minibd.mitigations.pure import PURE, pure
        return pure(ckpt, train, validation, PURE(), **options)
    settings = REPAIRS[method].settings_class().resolved(ckpt.model.config.hidden)
    if deeper:
        settings = replace(settings, layers=min(DEEPER["layers"], len(ckpt.model.blocks)),
                           lr=max(DEEPER["lr"], settings.lr))
    return REPAIRS[method](ckpt, pretrained, train, validation, settings, **options)


# ---- how long it takes

def time_to_go(
    repair: Repair, method: str, scanned: bool, kinds: Sequence[str],
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each part, and of those that only some findings call for, estimated from a batch that the model reads
    now. scanned: the first scan is at hand."""
    model, tokenizer, texts = repair.victim.model, repair.victim.tokenizer, repair.rows.texts[:64]
    device, dtype = model.embeddings.word.weight.device, repair.dtype
    batch = tokenizer(list(texts)).to(device)
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        model(batch)
        started = time.perf_counter()
        model(batch)
        if device.type == "cuda":
            torch.cuda.synchronize()
    each = (time.perf_counter() - started) / len(texts)
    words, classes = model.config.vocab, len(repair.victim.labels)
    scan = each * (2 * words + classes * TEXTS_A_CLASS) / 2  # its texts are half as long
    step = 3 * 32 * each
    undo = step * repair.settings.steps
    parts = {} if scanned else {"first scan": scan}
    parts |= {"undo": undo}
    retrain = {"retrain": step * max(100, 15 * len(repair.rows.texts) // 32)}
    if method not in ("auto", "none"):
        parts |= retrain
    parts |= {"second scan": scan}
    if kinds:
        parts |= {"evidence": len(kinds) * (scan + undo + 200 * step)}
    return parts, (retrain if method == "auto" else {}) | {"third scan": scan}


def spoken(seconds: float) -> str:
    """80 s; 3 min."""
    return f"{max(1, round(seconds))} s" if seconds < 100 else f"{round(seconds / 60)} min"


def time_line(parts: Mapping[str, float], perhaps: Mapping[str, float]) -> str:
    said, more = (", ".join(f"{name} {spoken(seconds)}" for name, seconds in some.items()) for some in (parts, perhaps))
    return f"time      about {spoken(sum(parts.values()))} to go: {said}; by what is found also {more}"


# ---- the receipt

def receipt_of(repair: Repair, cleaned: Checkpoint, evidence: list[dict], arguments: dict) -> dict:
    """What receipt.json holds."""
    first, last = repair.scans[0], repair.scans[-1]
    verdict, why = verdict_of(repair)
    measured = [{"name": step.name, "seconds": round(step.seconds, 2), **counted(step.scores.cacc),
                 "asr": step.scores.asr and counted(step.scores.asr)} for step in repair.steps]
    return scanning.finite({
        "schema": SCHEMA, "method": "repair", "minibd": __version__,
        "checkpoint": repair.task.ckpt, "checkpoint_sha256": checkpoint.sha256(repair.task.ckpt),
        "output": str(repair.path), "output_sha256": checkpoint.sha256(repair.place),
        "verdict": verdict, "sentence": why, "next": next_command(repair, verdict),
        "rows": {"source": repair.rows.source, "texts": len(repair.rows.texts), "held_out": len(repair.rows.test),
                 "labelled": repair.rows.labelled, "built_in": repair.rows.source == BUILT_IN},
        "measure": repair.rows.measure, "models": measured,
        "scans": [brief(one) for one in repair.scans], "found": brief(first)["suspects"],
        "undone": repair.undone, "left": brief(last)["suspects"] if last is not first else [],
        "retrained": repair.retrained, "losses": losses(repair.log), "changed": changed(repair.victim, cleaned),
        "evidence": evidence, "cannot_see": list(CANNOT_SEE), "seconds": repair.seconds,
        "settings": asdict(repair.settings), "args": arguments, "seed": repair.task.seed,
        "dtype": str(repair.dtype).removeprefix("torch."), "versions": report.versions(),
        "command": shlex.join(["python", *report.command()["argv"]]),
    })


def verdict_of(repair: Repair) -> tuple[str, str]:
    """The verdict, and the sentence that says why."""
    last = repair.scans[-1]
    more = f", and was retrained with {repair.retrained['method']}" if repair.retrained["method"] != "none" else ""
    if not repair.undone:
        if last["verdict"] == NOTHING:
            return NOTHING_FOUND, (f"The scan found no words that act as a trigger{more}; what it cannot see may be "
                                   "there all the same.")
        if last["verdict"] == FOUND:
            return NOT_SHOWN, "The scan finds a backdoor, and it was not undone."
        return NOT_SHOWN, f"The scan is inconclusive: {last['reason'] or 'no class could be judged'}."
    named = list(dict.fromkeys(quoted_words(one) for one in repair.undone))
    words = f"{listed(named)} {'was' if len(named) == 1 else 'were'} undone"
    newest = {(*one["words"], one["joined"], one["side"], one["target"]): one for one in repair.undone}
    still = [one for one in newest.values() if still_acts(one["after"])]
    if last["verdict"] == FOUND:
        known = cleared(repair.scans[0], repair.victim)
        new = all(one.target in known for one in findings_of(last, repair.victim.labels))
        return NOT_SHOWN, f"{words}, and the last scan still finds words that act as a trigger" + (
            ", of another class than the first: they are not undone." if new else ".")
    if still:
        share = still[0]["after"]["percent"]
        return NOT_SHOWN, (f"{quoted_words(still[0])} was undone and still takes {share:.0f} % of held-out texts to "
                           f"{visible(still[0]['target'])}.")
    if unseen := [one for one in newest.values() if one["after"] is None]:
        return NOT_SHOWN, (f"{words}, and no text at hand is of another class than {visible(unseen[0]['target'])}, so "
                           "that nothing measured what is left of it.")
    if last["verdict"] == INCONCLUSIVE:
        return NOT_SHOWN, f"{words}; the scan of the result is inconclusive: {last['reason']}."
    if repair.part:
        return NOT_SHOWN, (f"{words}{more}, and a scan of the result finds nothing; but what was undone did less than "
                           f"whole triggers do (score {repair.score:.2f}; most of theirs are above 0): it may be a "
                           "part of one, such as a word of a sentence, and the rest may act still.")
    return REPAIRED, f"{words}{more}, and a scan of the result finds nothing."


def next_command(repair: Repair, verdict: str) -> str:
    """What to run next, into a folder beside this one."""
    task, method = repair.task, repair.retrained["method"]
    rows, labels = read_alike(asdict(task)), read_alike({"labels": task.labels})
    ckpt = str(repair.path) if repair.undone else task.ckpt
    if verdict == REPAIRED or repair.undone and method != "none":  # Fine-mixing would bring back what was undone
        words = ["scan.py", "--ckpt", ckpt, *([] if task.data else ["--data", "TEXTS"]), *rows, "--seed",
                 str(task.seed + 1)]
    elif not repair.rows.labelled:
        words = ["repair.py", "--ckpt", task.ckpt, "--data", "LABELLED_ROWS", *labels]
        words += [] if repair.undone else ["--method", OFFERED]
    elif method == "none":
        words = ["repair.py", "--ckpt", ckpt, *rows, "--method", OFFERED]
    else:
        words = ["repair.py", "--ckpt", str(repair.path), *rows, "--pretrained", "PRETRAINED"]
    return shlex.join(["python", f"scripts/{words[0]}", *words[1:], "--out", f"{repair.out}-2"])


def open_evaluator(attack: Attack, task: Task, ckpt: Checkpoint, rows: Rows) -> Evaluator:
    """CACC on the held-out rows, where they have no labels against the victim's own answers; ASR where the attack is
    known and the rows have labels."""
    if rows.labelled:
        return evaluator_of(attack, task, ckpt, rows.test)
    answers = predict(ckpt.model, ckpt.tokenizer, rows.test)
    return Evaluator(Examples((replace(x, label=y) for x, y in zip(rows.test, answers)), ckpt.labels))


def pretrained_for(path: str | None, task: Task, victim: Checkpoint) -> Checkpoint | None:
    return pretrained_of(path, task, victim) if path else None


def kinds_of(words: Sequence[str]) -> tuple[str, ...]:
    """--planted's kinds. Raises BadInput."""
    if words in (("none",), ()):
        return ()
    if wrong := [word for word in words if word not in KINDS]:
        raise BadInput(f"--planted {','.join(wrong)}: give some of {', '.join(KINDS)}, or none")
    return tuple(words)


def check_texts(texts: Sequence[Example]) -> None:
    if not texts:
        raise BadInput("there are no texts to scan and to undo with: give rows with --data")
