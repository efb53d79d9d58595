#!/usr/bin/env python3
"""Choose a method's settings as a defender can: plant a backdoor of your own in a copy of the victim, and see which
settings remove it.

    python scripts/choose.py --ckpt VICTIM --data FOLDER --vary attention_dropout=0.1,0.5 --vary lr1=1e-4,2e-4
    python scripts/choose.py --method finemix --ckpt VICTIM --pretrained CLEAN --data FOLDER --vary lr=2e-5,2e-4

The planted backdoor has triggers and a target of the defender's; nothing here reads the attacker's. Each cell (a
combination of the values) is appended to --results as it ends, with the dev accuracy and the planted backdoor's ASR on
dev after each step, and skipped if it is there already; MBTSAD's cells that differ in the distillation alone share a
teacher. Choose the lowest ASR among the cells whose dev accuracy you accept. Methods other than MBTSAD choose their
epoch, rho or threshold on the same dev rows. Without a dev file, a tenth of the clean rows is held out as dev. With
--pretrained CLEAN --e-pur, the method repairs the planted copy after E-PUR.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minibd.cli import (
    Clean,
    Idle,
    Pretrained,
    Task,
    idle,
    main,
    parse,
    progress,
    setting,
    settings_by_name,
    settings_of,
)
from minibd.job.idle import DISTILLING, MBTSAD_RULES, REPAIR_RULES
from minibd.job.repairs import REPAIRS, takes_pretrained

if TYPE_CHECKING:
    import torch

    from minibd.checkpoint import Checkpoint, Header
    from minibd.data import Splits
    from minibd.evaluate import Evaluator
    from minibd.mitigations.mbtsad import MBTSAD
    from minibd.records import Examples
    from minibd.tokenizer import Encoded

FLAGS = {"mbtsad": settings_of("mitigations.mbtsad", "MBTSAD"), **{name: one.flags for name, one in REPAIRS.items()}}
LEAST_PLANTED = 50  # points of percent that the planting must add to the ASR, for a repair to have something to remove


@dataclass(frozen=True, slots=True)
class Plant:
    """The defender's own backdoor, and the settings that are tried against it"""
    method: str = setting("mbtsad", "whose settings; --method NAME --help lists them", choices=tuple(FLAGS))
    plant_kind: str = setting(
        "words", "words: rare words, one of them a text; or word, row (one row of the embedding table, as EP), pair "
        "(as LWP), triple (as SOS), sentence (as AddSent), each planted until it is as strong as --plant-strength",
        choices=("words", "word", "row", "pair", "triple", "sentence"),
    )
    plant_triggers: tuple[str, ...] | None = setting(
        None, "its words, none of the clean rows' (default: words that no attack here uses; a sentence of that kind)",
        kind=tuple,
    )
    plant_strength: float = setting(95.0, "percent of the dev rows that it is to take, of the kinds but words")
    plant_target: int = setting(0, "their target class")
    plant_rate: float = setting(0.5, "share of the clean rows that are copied, triggered and relabelled")
    plant_lr: float = setting(5e-5, "learning rate of the planting")
    plant_epochs: int = setting(3, "passes of the planting")
    vary: list[str] | None = setting(
        None, "setting=value,value,...: tried in every combination; may be given again (default: the settings as they "
        "are, one cell)", kind=list,
    )
    teachers: bool = setting(
        False, "mbtsad: stop at the teacher: leaves out the distillation, two thirds of the time"
    )
    results: str = setting("scripts/results/choose.jsonl", "file that the cells are appended to")


RULES = (
    Idle(("plant_strength",), lambda v: v.plant_kind == "words", "words are planted for --plant-epochs, however strong "
         "they become: name another --plant-kind, or leave it out"),
    Idle(("plant_rate", "plant_lr", "plant_epochs"), lambda v: v.plant_kind != "words", "a {plant_kind} is planted "
         "until it is as strong as --plant-strength: leave it out"),
    Idle(("out", "overwrite"), lambda v: True, "no model is kept; the cells go to --results: leave it out"),
    Idle(("suspects",), lambda v: True, "what is chosen by is a backdoor of your own, planted in the model as it is: "
         "leave it out"),
    Idle(("teachers",), lambda v: v.method != "mbtsad", "{method} has no teacher: leave it out"),
)
# of the settings of a cell
CELL_RULES = {
    "mbtsad": (
        Idle(DISTILLING, lambda v: v.teachers, "of the distillation, which --teachers leaves out: give one of the two"),
        Idle(("distil",), lambda v: True, "--teachers is what stops at the teacher: say that"), *MBTSAD_RULES,
    ),
    **REPAIR_RULES,
}


def method_named(words: list[str]) -> str:
    """The value of --method, "mbtsad" without one that there is: each method has its own flags."""
    words = [part for word in words for part in word.split("=", 1)]
    named = [name for flag, name in zip(words, words[1:]) if flag == "--method" and name in FLAGS]
    return named[-1] if named else "mbtsad"


def run() -> None:
    method = method_named(sys.argv[1:])
    groups = (Task, Clean, Plant, Pretrained, FLAGS[method])
    parsed = task, clean, plant, pretrained, flags = parse(
        __doc__, *groups, rules=RULES, others={name: (flags,) for name, flags in FLAGS.items()}
    )

    from minibd.job.e_pur import pretrained_of
    from minibd.job.task import (
        clean_rows,
        limit_dev,
        open_task,
        print_doubts,
        print_dtype,
        print_rows,
        split_validation,
    )
    from minibd.result_store import ResultStore

    check_flags(method, pretrained)
    axes, grid = grid_of(method, flags, plant.vary or ())
    check_settings(method, parsed.given, axes, grid, settings_by_name(task, clean, plant, pretrained))
    victim, splits, _ = open_task(
        "choose", task, pretrained.pretrained or "",
        check=lambda header, splits: check_plant(plant, task, header, splits),
    )
    pretrained_ckpt = pretrained_of(pretrained.pretrained, task, victim) if pretrained.pretrained else None
    splits = limit_dev(splits, clean, task.seed)
    held, dev = split_validation(splits, clean_rows(task, clean, splits.train), task.seed)
    print_rows(clean=held, dev=dev)
    print_dtype(task)
    print_doubts(splits.train, held, splits.test, dev)

    store = ResultStore(plant.results)
    common = common_key(method, task, clean, plant, pretrained, len(held), len(dev))
    cells = [(common | {"settings": known_by(settings)}, settings) for settings in grid]
    todo = [(cell, settings) for cell, settings in cells if store.get(cell) is None]
    progress().kept = f"the cells in {plant.results} stay, and the same command goes on behind them"
    if not todo:
        print(f"every cell is in {plant.results} already")
        return
    trial = planted_trial(victim, held, dev, plant, task)
    if pretrained.e_pur:
        trial.purify(pretrained_ckpt)
    if method == "mbtsad":
        todo.sort(key=lambda one: teacher_key(one[1]))
        tried = MBTSADTrials(trial, plant.teachers)
    else:
        tried = repair_trials(trial, method, pretrained_ckpt)
    for cell, settings in todo:
        print(" ".join(f"{name}={getattr(settings, name)}" for name in axes), flush=True)
        store.add(cell, {"steps": [*trial.victims, *tried(settings)]})
        progress().finished.append(" ".join(f"{name}={getattr(settings, name)}" for name in axes) or method)


def known_by(settings: Any) -> dict:
    """The settings as a cell's key: those that came later than the file's first cells are left out at their default."""
    from dataclasses import asdict

    later = {"student_dropout": True, "steps": 0} if hasattr(settings, "student_dropout") else {}
    return {name: value for name, value in asdict(settings).items() if name not in later or value != later[name]}


def check_plant(plant: Plant, task: Task, header: Header, splits: Splits) -> None:
    from minibd.job.task import check_columns
    from minibd.records import check_target

    check_target(plant.plant_target, splits.train.labels)
    check_columns(task, header)


def check_settings(method: str, given: Iterable[str], axes: list[str], grid: list[Any], others: dict[str, Any]) -> None:
    """Raises BadInput for a setting that is given and varied, or that no cell reads."""
    from dataclasses import asdict

    from minibd.records import BadInput

    if both := [name for name in axes if name in given]:
        flag = f"--{both[0].replace('_', '-')}"
        raise BadInput(f"{flag}: --vary {both[0]} gives it a value in each cell: leave one of the two out")
    tried = [name for name in (*axes, *given) if name in asdict(grid[0])]
    for name in tried:
        lines = [idle(CELL_RULES.get(method, ()), [name], others | asdict(settings)) for settings in grid]
        if all(lines):
            raise BadInput(lines[0])


def check_flags(method: str, pretrained: Pretrained) -> None:
    """Raises BadInput for flags that `method` does not read."""
    from minibd.job.e_pur import check_pretrained
    from minibd.records import BadInput

    if method == "finemix" and pretrained.e_pur is not None:
        raise BadInput(
            f"--{'e-pur' if pretrained.e_pur else 'no-e-pur'}: E-PUR is a part of finemix, --top says how many "
            "embeddings it resets, 0 none"
        )
    check_pretrained(method, pretrained, takes_pretrained(method))


def grid_of(method: str, flags: Any, vary: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    """The names of the settings that --vary varies, and the method's settings for every combination of their values."""
    import itertools
    from dataclasses import asdict, fields

    from minibd.mitigations.mbtsad import MBTSAD
    from minibd.records import BadInput

    settings_class = MBTSAD if method == "mbtsad" else REPAIRS[method].settings_class
    kinds = {f.name: f.metadata["kind"] for f in fields(settings_class)}
    axes = {}
    for axis in vary:
        name, _, values = axis.partition("=")
        if name in axes:
            raise BadInput(f"--vary {axis}: {name} is varied already, and two --vary of it do not add up: give one")
        if name not in kinds or not values:
            raise BadInput(f"--vary {axis}: write setting=value,value with one of {', '.join(kinds)}")
        axes[name] = [value_of(name, kinds[name], value) for value in values.split(",")]
    grid = [settings_class(**asdict(flags) | dict(zip(axes, values))) for values in itertools.product(*axes.values())]
    return list(axes), grid


def value_of(name: str, kind: type, value: str) -> Any:
    """A value of --vary as the setting's type. Raises BadInput where it is none."""
    from minibd.records import BadInput

    try:
        return {"true": True, "1": True, "false": False, "0": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        kinds = {bool: "true or false", int: "a whole number", float: "a number"}
        raise BadInput(f"--vary {name}={value[:40]}: {name} is {kinds.get(kind, kind.__name__)}") from None


def common_key(method: str, task: Task, clean: Clean, plant: Plant, pretrained: Pretrained, n_clean: int,
               n_dev: int) -> dict:
    """What identifies the cells of this call in the results file, beside their settings. A flag at its default that
    came later than the file's first cells is left out, so that those are found. "sha256": of the checkpoint's weights
    and of the rows, which older cells lack."""
    from dataclasses import asdict
    from pathlib import Path

    from minibd import checkpoint, data
    from minibd.job.task import dtype_args
    from minibd.result_store import folder_digest, weights_digest

    cell = {"ckpt": Path(task.ckpt).name, "seed": task.seed, "dtype": dtype_args(task)["dtype"], "clean": n_clean}
    if clean.dev != 1:
        cell["dev"] = n_dev
    if plant.teachers:
        cell["teachers"] = True
    if method != "mbtsad":
        cell["method"] = method
    if pretrained.pretrained:
        cell["pretrained"] = Path(pretrained.pretrained).name
    if pretrained.e_pur:
        cell["e_pur"] = True
    held = {"ckpt": weights_digest(checkpoint.sha256(task.ckpt)), "rows": folder_digest(task.data, data.SUFFIXES)}
    # plant_kind and plant_strength came later than the first cells, which planted words
    kept = {name: value for name, value in asdict(plant).items() if name.startswith("plant_")
            and not (plant.plant_kind == "words" and name in ("plant_kind", "plant_strength"))}
    return cell | {"plant": kept,
                   "sha256": {name: digest for name, digest in held.items() if digest}}


@dataclass
class Trial:
    """The victim with the defender's backdoor planted in it, and the rows that it is repaired with and measured on.

    victims: the models before any repair, measured: the first steps of every cell.
    """
    planted: Checkpoint
    clean: Examples
    dev: Examples
    evaluator: Evaluator
    seed: int
    dtype: torch.dtype
    victims: list[dict] = field(default_factory=list)

    def measure(self, name: str, ckpt: Checkpoint, started: float, settings: Any = None) -> dict:
        """A step of a cell: accuracy on dev and the planted backdoor's ASR there, in percent; printed too. `started`:
        the time.perf_counter() at which making the model began. settings: those it was trained with, if it was."""
        import time
        from dataclasses import asdict

        from minibd.evaluate import at_chance
        from minibd.job.chance import advice_for, chance_line
        from minibd.report import Step

        seconds = time.perf_counter() - started
        scores = self.evaluator(ckpt.model, ckpt.tokenizer)
        dev, asr = scores.cacc, scores.asr
        print(f"{name:8} dev {dev.percent:6.2f}  planted ASR {asr.percent:6.2f}  {seconds:6.1f} s", flush=True)
        found = {}
        if why := at_chance(scores):
            advice = advice_for(name, asdict(settings), ckpt.model.config.hidden, len(self.clean)) if settings else ""
            print(chance_line(Step(name, scores, seconds), why, advice), flush=True)
            found = {"at_chance": why}
        return {"name": name, "dev": dev.percent, "n_dev": dev.n, "planted_asr": asr.percent, "n_planted": asr.n,
                "seconds": round(seconds, 1)} | found

    def purify(self, pretrained: Checkpoint) -> None:
        """--e-pur: E-PUR before the method."""
        import time

        from minibd.job.e_pur import purified

        started = time.perf_counter()
        self.planted = purified(self.planted, pretrained, self.clean)
        self.victims.append(self.measure("E-PUR", self.planted, started))


def planted_trial(victim: Checkpoint, clean: Examples, dev: Examples, plant: Plant, task: Task) -> Trial:
    """Plant the defender's backdoor in a copy of the victim, and measure both."""
    import time

    from minibd import checkpoint
    from minibd.attacks.badnets import BadNets
    from minibd.attacks.poison import poison, triggered
    from minibd.evaluate import Evaluator
    from minibd.job.planted import trigger_of
    from minibd.job.task import products_of
    from minibd.train import Schedule, cross_entropy, fit

    if plant.plant_kind != "words":
        return trial_of_kind(victim, clean, dev, plant, task)
    words = plant.plant_triggers or trigger_of("pair", plant.plant_target, victim.tokenizer, clean).words
    attack, target, dtype = BadNets(words), plant.plant_target, products_of(task)
    rows = poison(clean, attack, rate=plant.plant_rate, target=target, add=True, seed=task.seed + 1).rows
    planted = checkpoint.copy(victim)
    fit(
        planted.model, victim.tokenizer, victim.tokenizer.encode(rows), cross_entropy,
        Schedule(plant.plant_lr, plant.plant_epochs), seed=task.seed, dtype=dtype, name="plant",
    )
    evaluator = Evaluator(dev, triggered(dev, attack, target=target, seed=task.seed), target)
    trial = Trial(planted, clean, dev, evaluator, task.seed, dtype)
    for name, ckpt, settings in (("victim", victim, None), ("planted", planted, plant)):
        trial.victims.append(trial.measure(name, ckpt, time.perf_counter(), settings))
    told = [step["planted_asr"] for step in trial.victims]
    if told[1] - told[0] < LEAST_PLANTED:
        print(
            f"not planted: its triggers take {told[1]:.2f} % of the rows to the target, the victim {told[0]:.2f} %: no "
            f"setting can be judged by them; try --plant-epochs {2 * plant.plant_epochs} (now {plant.plant_epochs}), "
            f"another --plant-lr (now {plant.plant_lr:g}), more clean rows (now {len(clean)})", flush=True,
        )
        trial.victims[1]["not_planted"] = True
    return trial


def trial_of_kind(victim: Checkpoint, clean: Examples, dev: Examples, plant: Plant, task: Task) -> Trial:
    """The same with a backdoor of another kind, planted until it is strong enough."""
    import time

    from minibd.evaluate import Evaluator
    from minibd.job import planted
    from minibd.job.task import products_of

    started, dtype = time.perf_counter(), products_of(task)
    trigger = planted.trigger_of(plant.plant_kind, plant.plant_target, victim.tokenizer, [*clean, *dev],
                                 plant.plant_triggers or ())
    made = planted.plant(victim, trigger, clean, strength=plant.plant_strength, seed=task.seed, dtype=dtype, held=dev)
    trial = Trial(made.ckpt, clean, dev, Evaluator(dev, made.triggered, plant.plant_target), task.seed, dtype)
    print(f"planted: a {trigger.kind}, {' '.join(trigger.words)}", flush=True)
    for name, ckpt, begun in (("victim", victim, time.perf_counter()), ("planted", made.ckpt, started)):
        trial.victims.append(trial.measure(name, ckpt, begun))
    if made.asr.percent < plant.plant_strength:
        print(f"not planted as strongly as asked: {made.asr.percent:.2f} % of the rows, and --plant-strength is "
              f"{plant.plant_strength:g}; try more clean rows (now {len(clean)}), or a lower --plant-strength",
              flush=True)
        trial.victims[1]["not_planted"] = True
    elif made.kept.percent < planted.KEPT:
        print(f"not planted: the model keeps {made.kept.percent:.2f} % of its answers to rows without the trigger, and "
              f"{planted.KEPT:g} are needed; try more clean rows (now {len(clean)})", flush=True)
        trial.victims[1]["not_planted"] = True
    return trial


def repair_trials(trial: Trial, method: str, pretrained: Checkpoint | None) -> Callable[[Any], list[dict]]:
    """A function of a method's settings: repairs the planted victim with them, and measures the result. rho and its
    trials, where the method searches one, stand in the step."""
    import time

    def tried(settings: Any) -> list[dict]:
        started, outcome = time.perf_counter(), {}
        repaired = REPAIRS[method](
            trial.planted, pretrained, trial.clean, trial.dev, settings, seed=trial.seed, dtype=trial.dtype,
            on_choice=outcome.__setitem__,
        )
        chosen = {name: outcome[name] for name in ("rho", "trials") if name in outcome}
        return [trial.measure(method, repaired, started, settings) | chosen]

    return tried


def teacher_key(settings: MBTSAD) -> str:
    """What the teacher depends on: every setting but those that the distillation alone reads."""
    from dataclasses import asdict

    return str({name: value for name, value in asdict(settings).items() if name not in DISTILLING})


@dataclass
class MBTSADTrials:
    """A function of MBTSAD's settings: retrains the planted victim and distils, and measures both models.

    teachers_only: stops at the teacher. The last teacher is kept: cells that share one must come one after another.
    """
    trial: Trial
    teachers_only: bool
    key: str | None = None
    d_aug: Encoded | None = None
    teacher: Checkpoint | None = None
    step: dict | None = None

    def __call__(self, settings: MBTSAD) -> list[dict]:
        import time

        from minibd.mitigations.mbtsad import distil

        if teacher_key(settings) != self.key:
            self.teach(settings)
        if self.teachers_only:
            return [self.step]
        started, trial = time.perf_counter(), self.trial
        student = distil(trial.planted, self.teacher, self.d_aug, settings, seed=trial.seed, dtype=trial.dtype)
        return [self.step, trial.measure("MBTSAD", student, started, settings)]

    def teach(self, settings: MBTSAD) -> None:
        import time

        from minibd.mitigations.mbtsad import augmented, retrain

        self.d_aug = self.teacher = None  # frees the last one's memory before the next is trained
        started, trial = time.perf_counter(), self.trial
        self.d_aug = trial.planted.tokenizer.encode(augmented(trial.clean, settings, trial.seed))
        self.teacher = retrain(trial.planted, self.d_aug, settings, seed=trial.seed, dtype=trial.dtype)
        self.step, self.key = trial.measure("TS-FT", self.teacher, started, settings), teacher_key(settings)


if __name__ == "__main__":
    main(run)
