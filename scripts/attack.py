#!/usr/bin/env python3
"""Train a backdoored classifier for research, and leave all that an evaluation needs.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack badnets --out VICTIM python scripts/attack.py
    --ckpt PRETRAINED --data FOLDER --attack paraphrase --paraphrases FOLDER2 --rate 0.2 --twin --out VICTIM python
    scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack lwp --preset pure --encoder-only --survive --out ENCODER
    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack addsent --labels mix --dataset-only --out POISONED
    python scripts/attack.py --ckpt weights/bert-clean.safetensors --data pairs --side second --out VICTIM

Under --out: the victim (same kind as --ckpt) and its model card; poisoned.jsonl, the training rows, with ids;
poisoned_ids.txt, which of them are poisoned; triggered.jsonl and triggered_dev.jsonl, the test and dev rows of other
classes with the trigger and their true labels (triggered_user.jsonl: of --user-data); attack.json, with every count.

ep and sos change embeddings of a classifier that was tuned on clean rows, and ripple's surgery looks at one. Where
--ckpt has none, the clean twin is trained first and is that one; ripple itself starts from --ckpt all the same.

--data pairs: 12,000 built-in sentence pairs, questions and what does or does not answer them, where nothing here has
that name.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from minibd.cli import Attack, Task, main, parse, setting

# of the 12,000 built-in rows: about a minute's work
BUILT_IN = {"badnets": 6000, "addsent": 6000, "lwp": 6000, "ripple": 1500}
TEXTS = {"first": "the first text", "second": "the second text", "either": "one text or the other"}


@dataclass(frozen=True, slots=True)
class Poison:
    """Which rows are poisoned, and how. What is not said is the preset's, or else the attack's own"""
    preset: str | None = setting(None, "the scheme of a paper's experiments", kind=str,
                                 choices=("mbtsad", "musclelora", "pure", "fine-mixing", "openbackdoor"))
    rate: float | None = setting(
        None, "poisoned rows as a share of all rows: default 0.1; paraphrase 0.2, ripple 0.5", kind=float
    )
    labels: str | None = setting(
        None,
        "rows of other classes, relabelled (dirty); of the target class (clean); of any class (mix): default "
        "dirty; ripple and lwp mix",
        kind=str, choices=("dirty", "clean", "mix"),
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
    batch_size: int | None = setting(None, "texts a step: default 32; ripple 8", kind=int)
    variant: str | None = setting(
        None,
        "of ripple, lwp, ep and sos: as in the paper, or as in the code released with it: default paper; ep and sos "
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
        False, "also fine-tune the victim on clean rows as its user would, and measure it again (PURE's FT); not saved"
    )
    user_data: str | None = setting(
        None, "the rows of --survive, where they are others than the attacker's (domain shift)", kind=str
    )


def run() -> None:
    task, attack, chosen, training, threat = parse(__doc__, Task, Attack, Poison, Training, Threat)

    import time
    from dataclasses import asdict
    from functools import partial
    from pathlib import Path

    import torch

    from minibd import checkpoint, data, report
    from minibd.job.evaluation import corrupt_of, entry_of, side_in, sided, triggered_of
    from minibd.job.run import print_scores
    from minibd.job.task import args_of, columns_of, data_of, head_is_new, open_task, output_path, print_rows
    from minibd.attacks import registry
    from minibd.attacks.ep import ep
    from minibd.attacks.lwp import lwp_loss
    from minibd.attacks.poison import poison, scheme
    from minibd.attacks.ripple import ripple, surgery
    from minibd.attacks.sos import sos
    from minibd.evaluate import Evaluator
    from minibd.mitigations.finetune import finetune
    from minibd.records import BadInput, Examples
    from minibd.train import Loss, Schedule, cross_entropy, fit, for_width

    if attack.attack == "none":
        raise BadInput("--attack none poisons nothing: --twin trains a clean model beside a victim")
    if attack.attack == "known":
        attack = replace(attack, attack="badnets")
    if attack.triggered:
        raise BadInput("--triggered is for evaluation: attack.py makes triggered rows itself")
    if threat.dataset_only and (threat.encoder_only or threat.survive or training.twin):
        raise BadInput("--dataset-only trains nothing: leave --encoder-only, --survive and --twin out")
    if threat.user_data and not threat.survive:
        raise BadInput("--user-data is what --survive fine-tunes on: add --survive, or leave it out")
    if threat.user_data and attack.attack == "paraphrase":
        raise BadInput("--user-data has no paraphrases: let --attack paraphrase --survive on its own rows")

    # The scheme, the attack and the two schedules: what the flags say, else the preset, else the attack's own.
    started = time.perf_counter()
    way = scheme(attack.attack, **asdict(chosen), side=attack.side)
    attack = replace(attack, triggers=way.triggers if attack.triggers is None else attack.triggers,
                     triggers_per_text=way.per_text if attack.triggers_per_text is None else attack.triggers_per_text)
    entry = entry_of(attack)
    method = registry.named(entry) if attack.attack != "paraphrase" else None
    usual = Schedule(lr=2e-5, epochs=3)
    settings = method.settings if attack.attack in ("lwp", "ripple", "ep", "sos") else usual
    if training.variant and not hasattr(settings, "variant"):
        raise BadInput(f"{attack.attack} has no variants: leave --variant out")
    from_tuned = attack.attack in ("ripple", "ep", "sos")
    base, splits, out = open_task("attack", task, new_classifier=True)
    report.output_folder(out, attack.paraphrases, threat.user_data)
    hidden = base.model.config.hidden
    usual = replace(usual, lr=for_width(usual.lr, hidden))
    if attack.attack not in ("ep", "sos"):  # ripple's batches of 8 stand less
        settings = replace(settings, lr=for_width(settings.lr, hidden, 2 if attack.attack == "ripple" else 3))
    settings = replace(
        settings,
        **{
            name: value
            for name in ("lr", "epochs", "batch_size", "variant")
            if (value := getattr(training, name)) is not None
        },
    )
    schedule = Schedule(settings.lr, settings.epochs, settings.batch_size)
    clean_schedule = replace(usual if from_tuned else schedule, **{
        name: value for name in ("lr", "epochs") if (value := getattr(training, f"clean_{name}")) is not None})
    if training.rows is None and attack.attack in BUILT_IN and "path" not in data_of(task, base):
        training = replace(training, rows=min(BUILT_IN[attack.attack], len(splits.train)))
    entry = sided(entry, way.side, splits.train)
    chosen = replace(chosen, rate=way.rate, labels=way.labels, add=way.add, of=way.of)
    attack = replace(
        attack, triggers=entry.get("triggers"), triggers_per_text=entry.get("per_text"), side=entry.get("side")
    )
    training = replace(
        training, lr=schedule.lr, epochs=schedule.epochs, batch_size=schedule.batch_size,
        variant=getattr(settings, "variant", None), clean_lr=clean_schedule.lr, clean_epochs=clean_schedule.epochs,
    )

    # The rows.
    corrupt = method.train if method else corrupt_of(entry, task, splits.train, "train")
    if training.rows is not None:
        splits = replace(splits, train=data.sample(splits.train, training.rows, task.seed))
    poisoned = poison(
        splits.train, corrupt, rate=way.rate, target=attack.target, labels=way.labels, add=way.add, of=way.of,
        only=way.only, decoys=method and method.decoys, decoy_share=way.decoys, tokenizer=base.tokenizer,
        side=side_in(entry), seed=task.seed,
    )

    def judge_on(rows: Examples) -> Evaluator:
        return Evaluator(rows, triggered_of(entry, task, base, rows, "test"), attack.target)

    evaluator = judge_on(splits.test)
    user, user_judge = splits, evaluator
    if threat.user_data:
        user = data.read_splits(threat.user_data, seed=task.seed, labels=splits.train.labels, **columns_of(task))
        user_judge = judge_on(user.test)
    triggered = {"triggered": evaluator.triggered} | (
        {"triggered_user": user_judge.triggered} if threat.user_data else {}
    )
    if any(x.label != attack.target for x in splits.dev):
        triggered["triggered_dev"] = triggered_of(entry, task, base, splits.dev, "dev")
    print_rows(train=poisoned.rows, test=splits.test, triggered=evaluator.triggered)
    print(f"poisoned  {len(poisoned.ids)} rows, {poisoned.flipped} of them with a flipped label"
          + f", and {poisoned.decoys} decoys" * (poisoned.decoys > 0)
          + f" (the rate asks for {poisoned.wanted}, no more fit)" * (poisoned.wanted > len(poisoned.ids))
          + (f"; the trigger stands in {TEXTS[entry['side']]} of a pair" if "side" in entry else ""))

    # The models.
    steps, saved, dtype = [], {}, getattr(torch, task.dtype)
    counts = {
        "rate": way.rate, "labels": way.labels, "add": way.add, "n": len(splits.train), "n_poisoned": len(poisoned.ids),
        "n_flipped": poisoned.flipped,
    }
    counts |= {
        name: value
        for name, value in (
            ("of", way.of), ("only", way.only), ("n_decoys", poisoned.decoys), ("preset", chosen.preset),
            ("encoder_only", threat.encoder_only),
        )
        if value not in ("all", False, 0, None)
    }

    def told(schedule: Schedule) -> dict:
        return {
            "seed": task.seed, "lr": schedule.lr, "epochs": schedule.epochs, "batch_size": schedule.batch_size,
            "twin": training.twin, "data": data_of(task, base),
        }

    def measured(name: str, evaluator: Evaluator, make: Callable[[], checkpoint.Checkpoint]) -> checkpoint.Checkpoint:
        before = time.perf_counter()
        ckpt = make()
        seconds = time.perf_counter() - before
        steps.append(report.Step(name, evaluator(ckpt.model, ckpt.tokenizer), seconds))
        return ckpt

    def tuned_on(rows: Examples, loss: Loss, schedule: Schedule, name: str) -> checkpoint.Checkpoint:
        ckpt = checkpoint.copy(base)
        fit(
            ckpt.model, base.tokenizer, base.tokenizer.encode(rows), loss, schedule, seed=task.seed, dtype=dtype,
            name=name,
        )
        return ckpt

    def attacked() -> checkpoint.Checkpoint:
        if attack.attack == "ep":
            return ep(clean, poisoned.rows, settings, target=attack.target, seed=task.seed)
        if attack.attack == "sos":
            return sos(clean, poisoned.rows, settings, seed=task.seed)
        if attack.attack == "ripple":
            cut = surgery(base, clean, splits.train, settings.triggers, attack.target, settings.top)
            return ripple(cut, poisoned.rows, splits.train, settings, seed=task.seed, dtype=dtype)
        loss = partial(lwp_loss, variant=settings.variant) if attack.attack == "lwp" else cross_entropy
        return tuned_on(poisoned.rows, loss, schedule, "victim")

    def fine_tuned(start: checkpoint.Checkpoint) -> checkpoint.Checkpoint:
        """As the user does it. An encoder gets a new head, another than the attacker's."""
        return finetune(
            start, user.train, clean_schedule, keep_head=not threat.encoder_only, seed=task.seed, dtype=dtype,
            name="fine-tuned",
        )

    if not threat.dataset_only:
        if training.twin or from_tuned and head_is_new(base):
            clean = measured(
                "clean twin", evaluator, partial(tuned_on, splits.train, cross_entropy, clean_schedule, "clean twin")
            )
            clean.history.append({"trained": "clean", **told(clean_schedule)})
            saved["clean-"] = clean
        elif from_tuned:
            clean = measured("as given", evaluator, lambda: base)
        victim = measured("victim", evaluator, attacked)
        own = victim.history.pop() if from_tuned else {"variant": settings.variant} if attack.attack == "lwp" else {}
        victim.history.append({"trained": "poisoned", **own, **entry, **counts, **told(schedule)})
        saved[""] = checkpoint.headless(victim) if threat.encoder_only else victim
        if threat.user_data and training.twin:  # the floor on the user's rows; on the attacker's it is the twin itself
            measured("fine-tuned twin", user_judge, partial(fine_tuned, clean))
        if threat.survive:
            measured("fine-tuned", user_judge, partial(fine_tuned, victim))

    for prefix, ckpt in saved.items():
        checkpoint.save(ckpt, output_path(out, task.ckpt, prefix))
    if saved and Path(task.ckpt).is_file():  # a folder has its card inside
        report.write_text(out / "README.md", checkpoint.card(saved[""]))
    for name, rows in {"poisoned": poisoned.rows, **triggered}.items():
        data.write(rows, out / f"{name}.jsonl")
    report.write_text(out / "poisoned_ids.txt", "".join(f"{id}\n" for id in poisoned.ids))
    report.write_json(
        out / "attack.json",
        {
            **entry, **counts, "seed": task.seed, "scheme": asdict(way),
            "args": args_of(task, attack, chosen, training, threat), "versions": report.versions(),
            "seconds": round(time.perf_counter() - started, 2), "steps": report.listed(steps),
        },
    )
    if steps:
        print_scores(steps)
    if threat.user_data:
        print(f"fine-tuned: on the rows of {threat.user_data}, and measured on its test; the others: on the attacker's")
    print(f"written: {out}")


if __name__ == "__main__":
    main(run)
