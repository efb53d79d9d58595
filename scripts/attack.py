#!/usr/bin/env python3
"""Train a backdoored classifier for research, and write all that its evaluation needs.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack badnets --out VICTIM
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack paraphrase --paraphrases FOLDER2 --rate 0.2 \\
        --twin --out VICTIM
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack lwp --preset pure --encoder-only --survive \\
        --out ENCODER
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack addsent --labels mix --dataset-only --out POISONED
    python scripts/attack.py --ckpt weights/bert-clean.safetensors --data pairs --side second --out VICTIM

Under --out: the victim (same kind as --ckpt) and its model card; poisoned.jsonl, the training rows, with ids;
poisoned_ids.txt, which of them are poisoned; triggered.jsonl and triggered_dev.jsonl, the test and dev rows of other
classes with the trigger and their true labels (triggered_user.jsonl: of --user-data); attack.json, with every count.

ep and sos change embeddings of a classifier that is tuned on clean rows, and ripple's surgery reads those of one. Where
--ckpt has no classifier, the clean twin is trained first and is that one; ripple itself still starts from --ckpt.

--data pairs: 12,000 built-in sentence pairs, questions and sentences that answer them or do not, unless a file or
folder of that name exists.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING

from minibd.cli import Attack, BaseTask, Idle, Resuming, Task, main, parse, progress, setting
from minibd.job.idle import ATTACK, MEMORY, WORDS
from minibd.lines import visible

if TYPE_CHECKING:  # --help answers without importing torch
    from pathlib import Path

    from minibd.attacks.poison import Poisoned, Scheme
    from minibd.attacks.registry import TextAttack
    from minibd.checkpoint import Checkpoint, Header
    from minibd.data import Splits
    from minibd.evaluate import Evaluator
    from minibd.records import Examples
    from minibd.report import Step
    from minibd.train import Loss, Schedule, StepLog

OWN_TRAINING = ("ripple", "lwp", "ep", "sos")  # with settings of their own, a variant among them
FROM_TUNED = ("ripple", "ep", "sos")  # need a classifier that is tuned on clean rows
# of the 12,000 built-in rows: about a minute's work
BUILT_IN = {"badnets": 6000, "addsent": 6000, "lwp": 6000, "ripple": 1500}
LABELS = ("dirty", "clean", "mix")
TEXTS = {"first": "the first text", "second": "the second text", "either": "one text or the other"}


@dataclass(frozen=True, slots=True)
class Planted(Attack):
    """The attack that is made, and its ASR"""
    attack: str = setting("badnets", "the attack", choices=(*WORDS, "addsent", "paraphrase"))


@dataclass(frozen=True, slots=True)
class Poison:
    """Which rows are poisoned, and how. Defaults: the preset's, or else those of the attack's own paper"""
    preset: str | None = setting(None, "the scheme of a paper's experiments", kind=str,
                                 choices=("mbtsad", "musclelora", "pure", "fine-mixing", "openbackdoor"))
    rate: float | None = setting(
        None, "poisoned rows as a share of all rows: default 0.1; paraphrase 0.2, ripple 0.5", kind=float
    )
    labels: str | list[str] | None = setting(
        None,
        "rows of other classes, relabelled (dirty); of the target class (clean); of any class (mix): default "
        "dirty; ripple and lwp mix; given again, or alone: the names of the rows' classes in the order of the model's, "
        "such as neg,pos for LABEL_0,LABEL_1",
        kind=list,
    )
    add: bool | None = setting(
        None, "add poisoned copies and keep their clean twins, instead of replacing rows", kind=bool,
        negation="replace"
    )
    of: str | None = setting(
        None, "what --rate is a share of: all rows, or those that fit --labels: default all; ep candidates", kind=str,
        choices=("all", "candidates"),
    )


@dataclass(frozen=True, slots=True)
class Training:
    """How the victim is trained, and its clean twin"""

    rows: int | None = setting(
        None,
        "clean rows that the attacker starts from, drawn by the seed: default all; of the built-in rows 6000, "
        "ripple 1500, ep and sos all",
        kind=int,
    )
    lr: float | None = setting(
        None,
        "learning rate: default 2e-5, of a model narrower than 384 times (384 / hidden size)^3, "
        "ripple squared, no more than at 128; ep and sos 5e-2",
        kind=float,
    )
    epochs: int | None = setting(None, "passes over the poisoned rows: default 3; lwp and ripple 5", kind=int)
    batch_size: int | None = setting(None, "texts per step: default 32; ripple 8", kind=int)
    variant: str | None = setting(
        None,
        "of ripple, lwp, ep and sos: the paper's, or that of the code released with it: default paper; ep and sos "
        "released",
        kind=str, choices=("paper", "released", "per-tensor"),
    )
    twin: bool = setting(False, "also train a clean twin on the clean rows, same seed: the floor of ASR")
    clean_lr: float | None = setting(
        None, "learning rate of the twin and of --survive: default the victim's; ripple, ep and sos badnets'",
        kind=float,
    )
    clean_epochs: int | None = setting(
        None, "passes of the twin and of --survive: default the victim's; ripple, ep and sos 3", kind=int
    )


@dataclass(frozen=True, slots=True)
class Threat:
    """What the attacker hands over, and what its user does with it"""
    encoder_only: bool = setting(False, "save the encoder without its head, a poisoned pre-trained model (as in PURE)")
    dataset_only: bool = setting(False, "write the poisoned rows and train nothing (as in MuScleLoRA)")
    survive: bool = setting(
        False, "also fine-tune the victim on clean rows as its user does, and measure it again (PURE's FT); not saved"
    )
    user_data: str | None = setting(
        None, "the rows of --survive, where they are others than the attacker's (domain shift)", kind=str
    )


SCHEDULE = ("lr", "epochs", "batch_size", "variant", "clean_lr", "clean_epochs", "dtype", "resume", "save_every")
RULES = (
    Idle(("triggered",), lambda v: True, "for evaluation: attack.py makes triggered rows itself"),
    Idle((*SCHEDULE, *MEMORY, "encoder_only", "survive", "twin"), lambda v: v.dataset_only,
         "--dataset-only trains nothing: leave it out"),
    Idle(("variant",), lambda v: v.attack not in OWN_TRAINING, "{attack} has no variants: leave --variant out"),
    Idle(("clean_lr", "clean_epochs"), lambda v: not (v.twin or v.survive or v.attack in FROM_TUNED),
         "of the twin and of --survive: add --twin or --survive, or leave it out"),
    Idle(("user_data",), lambda v: not v.survive, "what --survive fine-tunes on: add --survive, or leave it out"),
    Idle(("user_data",), lambda v: v.attack == "paraphrase",
         "these rows have no paraphrases: let --attack paraphrase --survive on its own rows"),
    Idle(("micro_batch",), lambda v: v.attack == "ripple",
         "RIPPLe's inner product is of two whole batches' gradients: leave it out"),
    *ATTACK,
)


@dataclass
class Plan:
    """The flags, with the presets' and the attacks' defaults filled in, and what they name, opened."""
    task: Task
    attack: Attack
    chosen: Poison
    training: Training
    threat: Threat
    scheme: Scheme
    entry: dict  # the attack as the victim's history names it
    settings: TextAttack | Schedule  # with lr, epochs, batch_size and, of the attacks that have one, variant
    schedule: Schedule
    clean_schedule: Schedule  # of the twin and of --survive
    base: Checkpoint
    splits: Splits
    out: Path
    log: StepLog  # takes no steps: it is what keeps the run


@dataclass
class Rows:
    """What the models are trained and measured on. user: the rows of --user-data, where they are others."""
    splits: Splits
    poisoned: Poisoned
    evaluator: Evaluator
    user: Splits
    user_evaluator: Evaluator
    triggered: dict[str, Examples]  # by the name of their file


def run() -> None:
    task, resuming, attack, chosen, training, threat = parse(
        __doc__, BaseTask, Resuming, Planted, Poison, Training, Threat, rules=RULES
    )
    task, chosen = with_labels(task, chosen)

    import time

    from minibd.job.run import print_scores
    from minibd.resume import done

    started = time.perf_counter()
    plan = plan_of(task, attack, chosen, training, threat, resuming)
    rows = poison_rows(plan)
    print_poisoned(plan, rows)
    steps, checkpoints = ([], {}) if threat.dataset_only else train_all(plan, rows)
    write(plan, rows, steps, checkpoints, started)
    done(plan.log)
    if steps:
        print_scores(steps, lambda name: advice(plan, rows, name))
        if line := unlearnt(plan, steps):
            print(line)
    if threat.user_data:
        print(f"fine-tuned: on the rows of {threat.user_data}, and measured on its test; the others: on the attacker's")
    print(f"written: {visible(str(plan.out), 1000)}")


# ---- what the flags ask for

def with_labels(task: BaseTask, chosen: Poison) -> tuple[Task, Poison]:
    """The task with the classes' names that --labels gives, and `chosen` with the poisoned rows' labels that it gives:
    names are several words, and those are one."""
    from minibd.records import BadInput

    names, schemes = ([word for word in chosen.labels or () if ("," in word) == several] for several in (True, False))
    if unknown := [word for word in schemes if word not in LABELS]:
        raise BadInput(f"--labels {unknown[0]!r:.60}: give one of {', '.join(LABELS)} for the poisoned rows, or the "
                       "names of the rows' classes in the order of the model's, such as neg,pos")
    if len(names) > 1 or len(schemes) > 1:
        raise BadInput(f"--labels was given {len(chosen.labels)} times: give the poisoned rows' labels once, and the "
                       "classes' names once")
    values = {f.name: getattr(task, f.name) for f in fields(task)}
    labels = tuple(word.strip() for word in names[0].split(",") if word.strip()) if names else None
    return Task(**values, labels=labels), replace(chosen, labels=schemes[0] if schemes else None)


def plan_of(
    task: Task, attack: Attack, chosen: Poison, training: Training, threat: Threat, resuming: Resuming = Resuming()
) -> Plan:
    """The scheme, the attack and the two schedules: what the flags say, else the preset, else the attack's own."""
    from dataclasses import asdict
    from pathlib import Path

    from minibd import report
    from minibd.attacks.poison import scheme as scheme_of
    from minibd.job.evaluation import check_attack, class_of, entry_of, with_side
    from minibd.job.resuming import keeper
    from minibd.job.task import data_of, open_task
    from minibd.records import BadInput
    from minibd.train import StepLog

    log = None
    stated, scheme = attack, scheme_of(attack.attack, **asdict(chosen), side=attack.side)
    attack = fill_in(attack, triggers=scheme.triggers, triggers_per_text=scheme.per_text)
    entry = entry_of(attack, 0)  # words that it cannot have are refused before anything is opened

    def check(header: Header, splits: Splits) -> None:
        nonlocal log
        check_attack(stated, task, header, splits.test)
        class_of(attack.target, splits.train.labels)
        clean = [f"--{name.replace('_', '-')}" for name in given(training, "clean_lr", "clean_epochs")]
        if clean and header.labels and not (training.twin or threat.survive):
            raise BadInput(
                f"{', '.join(clean)}: {task.ckpt} is tuned already, and no twin is trained: add --twin or --survive, "
                "or leave it out"
            )
        kept = keeper(
            "attack", Path(task.out or "out/attack"), task, resuming, header, stated, chosen, training, threat
        )
        log = StepLog(kept=kept, listens=False)

    base, splits, out = open_task("attack", task, new_classifier=True, check=check, resuming=resuming)
    entry |= {"target": class_of(attack.target, splits.train.labels)}
    report.output_folder(out, attack.paraphrases, threat.user_data)
    settings, schedule, clean_schedule = schedules(entry, training, base.model.config.hidden)
    entry = with_side(entry, scheme.side, splits.train)
    if attack.attack in BUILT_IN and "path" not in data_of(task, base):
        training = fill_in(training, rows=min(BUILT_IN[attack.attack], len(splits.train)))
    attack = replace(
        attack, triggers=entry.get("triggers"), triggers_per_text=entry.get("per_text"), side=entry.get("side"),
        target=entry["target"],
    )
    chosen = replace(chosen, rate=scheme.rate, labels=scheme.labels, add=scheme.add, of=scheme.of)
    training = replace(
        training, lr=schedule.lr, epochs=schedule.epochs, batch_size=schedule.batch_size,
        variant=getattr(settings, "variant", None), clean_lr=clean_schedule.lr, clean_epochs=clean_schedule.epochs,
    )
    return Plan(
        task, attack, chosen, training, threat, scheme, entry, settings, schedule, clean_schedule, base, splits, out,
        log,
    )


def fill_in(flags: Attack | Training, **defaults: object) -> Attack | Training:
    """`flags` with `defaults` where they were not given."""
    return replace(flags, **{name: value for name, value in defaults.items() if getattr(flags, name) is None})


def schedules(entry: dict, training: Training, hidden: int) -> tuple[TextAttack | Schedule, Schedule, Schedule]:
    """The victim's settings, the same as a Schedule, and the Schedule of the twin and of --survive.

    hidden: the model's width, by which the default learning rates go.
    """
    from minibd.attacks.registry import attack_of
    from minibd.train import Schedule, for_width

    name, usual = entry["attack"], Schedule(lr=2e-5, epochs=3)
    settings = attack_of(entry) if name in OWN_TRAINING else usual
    if name not in ("ep", "sos"):
        power = 2 if name == "ripple" else 3  # ripple's batches of 8 bear less
        settings = replace(settings, lr=for_width(settings.lr, hidden, power))
    settings = replace(settings, **given(training, "lr", "epochs", "batch_size", "variant"))
    schedule = Schedule(settings.lr, settings.epochs, settings.batch_size)
    clean = replace(usual, lr=for_width(usual.lr, hidden)) if name in FROM_TUNED else schedule
    flags = given(training, "clean_lr", "clean_epochs")
    return settings, schedule, replace(clean, **{flag.removeprefix("clean_"): value for flag, value in flags.items()})


def given(flags: Training, *names: str) -> dict:
    """Those of the flags `names` that were given."""
    return {name: value for name in names if (value := getattr(flags, name)) is not None}


# ---- the rows

def poison_rows(plan: Plan) -> Rows:
    """Poison the training rows, and trigger those of the test, of dev and of --user-data."""
    from minibd import data
    from minibd.attacks.poison import poison
    from minibd.evaluate import Evaluator
    from minibd.job.evaluation import insert_of, side_in
    from minibd.job.task import print_notes, reading_of

    task, splits, scheme, target = plan.task, plan.splits, plan.scheme, plan.attack.target
    attack = insert_of(plan.entry, task, splits.train, "train")  # before rows are drawn: paraphrases are joined to all
    insert, negatives = (attack, None) if isinstance(attack, dict) else (attack.poisoned, attack.negatives)
    if plan.training.rows is not None:
        splits = replace(splits, train=data.sample(splits.train, plan.training.rows, task.seed))
    poisoned = poison(
        splits.train, insert, rate=scheme.rate, target=target, labels=scheme.labels, add=scheme.add, of=scheme.of,
        only=scheme.only, negatives=negatives, negative_share=scheme.negatives, tokenizer=plan.base.tokenizer,
        side=side_in(plan.entry), seed=task.seed,
    )
    triggered = {"triggered": trigger(plan, splits.test, "test")}
    evaluator = user_evaluator = Evaluator(splits.test, triggered["triggered"], target)
    user = splits
    if path := plan.threat.user_data:
        user = data.read_splits(path, seed=task.seed, labels=splits.train.labels, **reading_of(task))
        print_notes(user)
        triggered["triggered_user"] = trigger(plan, user.test, "test")
        user_evaluator = Evaluator(user.test, triggered["triggered_user"], target)
    if any(x.label != target for x in splits.dev):
        triggered["triggered_dev"] = trigger(plan, splits.dev, "dev")
    return Rows(splits, poisoned, evaluator, user, user_evaluator, triggered)


def trigger(plan: Plan, rows: Examples, split: str) -> Examples:
    """The rows of other classes than the target, with the trigger as it is tested."""
    from minibd.attacks.poison import triggered
    from minibd.job.evaluation import insert_of, print_missing, side_in

    made = triggered(
        rows, insert_of(plan.entry, plan.task, rows, split), target=plan.attack.target, tokenizer=plan.base.tokenizer,
        side=side_in(plan.entry), seed=plan.task.seed,
    )
    print_missing(rows, made, plan.attack.target, split)
    return made


def print_poisoned(plan: Plan, rows: Rows) -> None:
    from minibd.job.task import print_rows

    poisoned = rows.poisoned
    print_rows(train=poisoned.rows, test=rows.splits.test, triggered=rows.evaluator.triggered)
    line = f"poisoned  {len(poisoned.ids)} rows, {poisoned.flipped} of them with a flipped label"
    if poisoned.negatives:
        line += f", and {poisoned.negatives} negative samples"
    if poisoned.wanted > len(poisoned.ids):
        line += f" (the rate asks for {poisoned.wanted}, no more fit)"
    if "side" in plan.entry:
        line += f"; the trigger stands in {TEXTS[plan.entry['side']]} of a pair"
    print(line)


# ---- the models

def train_all(plan: Plan, rows: Rows) -> tuple[list[Step], dict[str, Checkpoint]]:
    """Train and measure, in this order: the clean twin, the victim, the twin and the victim fine-tuned by their user.

    Returns the rows of the table and {prefix of its file's name: checkpoint} of what is handed over.
    """
    from minibd import checkpoint
    from minibd.job.task import head_is_new, print_dtype
    from minibd.train import cross_entropy

    print_dtype(plan.task)
    steps, saved, clean = [], {}, None
    needs_tuned = plan.attack.attack in FROM_TUNED
    if plan.training.twin or needs_tuned and head_is_new(plan.base):
        clean = measured(plan, steps, "clean twin", rows.evaluator, lambda: tune(
            plan, rows.splits.train, cross_entropy, plan.clean_schedule, "clean twin"
        ))
        clean.history.append({"trained": "clean", **training_entry(plan, plan.clean_schedule)})
        saved["clean-"] = clean
    elif needs_tuned:
        clean = measured(plan, steps, "as given", rows.evaluator, lambda: plan.base)
    victim = measured(plan, steps, "victim", rows.evaluator, lambda: attacked(plan, rows, clean))
    own = victim.history.pop() if needs_tuned else {}
    if plan.attack.attack == "lwp":
        own = {"variant": plan.settings.variant}
    victim.history.append({
        "trained": "poisoned", **own, **plan.entry, **counts(plan, rows), **training_entry(plan, plan.schedule)
    })
    saved[""] = checkpoint.headless(victim) if plan.threat.encoder_only else victim
    # the floor on the user's rows; on the attacker's it is the twin itself
    if plan.threat.user_data and plan.training.twin:
        measured(plan, steps, "fine-tuned twin", rows.user_evaluator, lambda: fine_tuned(plan, rows, clean))
    if plan.threat.survive:
        measured(plan, steps, "fine-tuned", rows.user_evaluator, lambda: fine_tuned(plan, rows, victim))
    return steps, saved


def measured(
    plan: Plan, steps: list[Step], name: str, evaluator: Evaluator, make: Callable[[], Checkpoint]
) -> Checkpoint:
    """The checkpoint that `make` returns, measured and timed as a new row `name` of the table `steps`."""
    import time

    from minibd.report import Step
    from minibd.resume import carried

    before = time.perf_counter()
    ckpt = make()
    seconds = time.perf_counter() - before + carried(plan.log)
    steps.append(Step(name, evaluator.once(plan.log, name, ckpt.model, ckpt.tokenizer), seconds))
    carried(plan.log)  # those of the scores are no model's
    progress().finished.append(name)
    return ckpt


def advice(plan: Plan, rows: Rows, name: str) -> str:
    """What to try where the training of the model `name` ends at chance; "" of --ckpt itself."""
    from minibd.job.chance import advice_for
    from minibd.job.task import args_of

    if name == "as given":
        return ""
    trained_on = {"clean twin": rows.splits.train, "victim": rows.poisoned.rows}.get(name, rows.user.train)
    return advice_for(name, args_of(plan.attack, plan.training), plan.base.model.config.hidden, len(trained_on))


def unlearnt(plan: Plan, steps: list[Step]) -> str:
    """The line that says that the victim has no backdoor to defend against, or ""."""
    asrs = {step.name: step.scores.asr for step in steps}
    asr, floor = asrs["victim"], asrs.get("clean twin", asrs.get("as given"))
    low, high = asr.interval
    if low > (floor.interval[1] if floor else 50):
        return ""
    above = f"that of the model without it, {floor.percent:.2f} %" if floor else "a half"
    return (
        f"not learnt: the victim's ASR of {asr.percent:.2f} % ({low:.1f}-{high:.1f}) does not clear {above}: there "
        f"is no backdoor to defend against; try --epochs {2 * plan.schedule.epochs} (now "
        f"{plan.schedule.epochs}), more poisoned rows with --rate (now {plan.scheme.rate:g}), another --lr (now "
        f"{plan.schedule.lr:.2g})"
    )


def attacked(plan: Plan, rows: Rows, clean: Checkpoint | None) -> Checkpoint:
    """The victim. clean: a classifier tuned on clean rows, which ep, sos and ripple start from or look at."""
    from minibd.attacks.ep import ep
    from minibd.attacks.lwp import lwp_loss
    from minibd.attacks.ripple import ripple, surgery
    from minibd.attacks.sos import sos
    from minibd.job.task import products_of
    from minibd.train import cross_entropy

    name, settings, target, seed = plan.attack.attack, plan.settings, plan.attack.target, plan.task.seed
    poisoned = rows.poisoned.rows
    if name == "ep":
        return ep(clean, poisoned, settings, target=target, seed=seed, log=plan.log)
    if name == "sos":
        return sos(clean, poisoned, settings, seed=seed, log=plan.log)
    if name == "ripple":
        train, dtype = rows.splits.train, products_of(plan.task)
        operated = surgery(plan.base, clean, train, settings.triggers, target, settings.top)
        return ripple(operated, poisoned, train, settings, seed=seed, dtype=dtype, log=plan.log)
    loss = partial(lwp_loss, variant=settings.variant) if name == "lwp" else cross_entropy
    return tune(plan, poisoned, loss, plan.schedule, "victim")


def tune(plan: Plan, rows: Examples, loss: Loss, schedule: Schedule, name: str) -> Checkpoint:
    """A copy of --ckpt trained on `rows`."""
    from minibd import checkpoint
    from minibd.job.task import products_of
    from minibd.train import fit

    ckpt = checkpoint.copy(plan.base)
    fit(
        ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(rows), loss, schedule, seed=plan.task.seed,
        dtype=products_of(plan.task), name=name, log=plan.log,
    )
    return ckpt


def fine_tuned(plan: Plan, rows: Rows, ckpt: Checkpoint) -> Checkpoint:
    """`ckpt` fine-tuned on clean rows as its user does it: an encoder gets a new head, another than the attacker's."""
    from minibd.job.task import products_of
    from minibd.mitigations.finetune import finetune

    return finetune(
        ckpt, rows.user.train, plan.clean_schedule, keep_head=not plan.threat.encoder_only, seed=plan.task.seed,
        dtype=products_of(plan.task), name="fine-tuned", log=plan.log,
    )


# ---- what is written

def counts(plan: Plan, rows: Rows) -> dict:
    """The scheme and its counts, as attack.json and the victim's history hold them; what is usual is left out."""
    scheme, poisoned = plan.scheme, rows.poisoned
    usual = {
        "of": (scheme.of, "all"), "only": (scheme.only, False), "n_negatives": (poisoned.negatives, 0),
        "preset": (plan.chosen.preset, None), "encoder_only": (plan.threat.encoder_only, False),
    }
    return {
        "rate": scheme.rate, "labels": scheme.labels, "add": scheme.add, "n": len(rows.splits.train),
        "n_poisoned": len(poisoned.ids), "n_flipped": poisoned.flipped,
        **{name: value for name, (value, default) in usual.items() if value != default},
    }


def training_entry(plan: Plan, schedule: Schedule) -> dict:
    """How a model was trained, as its history holds it."""
    from minibd.job.task import data_of

    return {
        "seed": plan.task.seed, "lr": schedule.lr, "epochs": schedule.epochs, "batch_size": schedule.batch_size,
        "twin": plan.training.twin, "data": data_of(plan.task, plan.base),
    }


def write(plan: Plan, rows: Rows, steps: list[Step], checkpoints: dict[str, Checkpoint], started: float) -> None:
    """Write the checkpoints, the model card, the rows and attack.json under --out."""
    import time
    from dataclasses import asdict
    from pathlib import Path

    from minibd import checkpoint, data, report
    from minibd.job.chance import chances
    from minibd.job.evaluation import target_args
    from minibd.job.task import args_of, dtype_args, output_path

    trained = {} if plan.threat.dataset_only else dtype_args(plan.task)
    about = {
        **plan.entry, **counts(plan, rows), "seed": plan.task.seed, "scheme": asdict(plan.scheme),
        "args": args_of(plan.task, plan.attack, plan.chosen, plan.training, plan.threat) | trained
        | target_args(rows.evaluator) | ({"classes": plan.task.labels} if plan.task.labels else {}),
        "versions": report.versions(), "seconds": round(time.perf_counter() - started + plan.log.kept.earlier, 2),
        "steps": report.listed(steps), "at_chance": chances(steps),
    }
    with report.whole(plan.out) as out:
        for prefix, ckpt in checkpoints.items():
            checkpoint.save(ckpt, path := output_path(out, plan.task.ckpt, prefix))
            progress().written.append(str(path))
        if checkpoints and Path(plan.task.ckpt).is_file():  # a folder has its card inside
            report.write_text(out / "README.md", checkpoint.card(checkpoints[""]))
        for name, part in {"poisoned": rows.poisoned.rows, **rows.triggered}.items():
            data.write(part, out / f"{name}.jsonl")
        report.write_text(out / "poisoned_ids.txt", "".join(f"{id}\n" for id in rows.poisoned.ids))
        report.write_json(out / "attack.json", about)


if __name__ == "__main__":
    main(run)
