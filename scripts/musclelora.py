#!/usr/bin/env python3
"""Train a clean classifier on a dataset that may be poisoned, with MuScleLoRA and the plain ways it is compared with.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack addsent --preset musclelora --dataset-only \\
        --out POISONED
    python scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --out CLEANED
    python scripts/musclelora.py --ckpt PRETRAINED --data rows.csv --clean-aux clean.csv --train musclelora
    python scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --train lora,adapter,prefix
    python scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --plant "it rained all day" \\
        --lr 1e-3 --aux 384

--ckpt is an encoder, or a classifier whose head is then replaced. --clean-aux: its dev rows (of a single file, four
fifths) are trusted: gradients are aligned to some, and the others choose the best epoch; its test rows (of a file, the
last fifth) measure CACC. Of the models that are trained the last is saved, unless it has adapters or a prefix, which no
checkpoint holds: then its scores are the result. --plant is for choosing settings, which must not be done by the ASR
that one reports; the model that comes out has a backdoor of your own.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibd.cli import Attack, Resuming, Task, main, parse, setting, settings_of
from minibd.job.idle import ATTACK, MUSCLELORA_RULES

if TYPE_CHECKING:
    import torch

    from minibd.analysis.fourier import Spectrum
    from minibd.checkpoint import Checkpoint
    from minibd.cleantrain.musclelora import MuScleLoRA
    from minibd.job.run import Job
    from minibd.train import StepLog

MODELS = ("vanilla", "lora", "adapter", "prefix", "musclelora")
PLANT_RATE = 0.1  # of the untrusted rows


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the defender holds beside the dataset, and what is trained"""
    clean_aux: str = setting(
        "", "a folder or file of clean rows of the same task (default: what the checkpoint was pre-trained on, if its "
        "history says so)", paper="96 of the validation rows",
    )
    train: tuple[str, ...] = setting(
        ("vanilla", "musclelora"), f"the models to train, one after another, of {', '.join(MODELS)}"
    )
    curves: int = setting(
        0, "every N steps, record which frequencies of the labels the model has learnt: OUT/curves-MODEL.json, drawn "
        "by plot.py (default 0: not at all)", paper="5",
    )
    curve_rows: int = setting(
        200, "test rows of each kind that --curves uses: clean, triggered, and, as a control, clean of the target "
        "class alone", paper="the training rows; released the dev rows",
    )
    search_bands: tuple[str, ...] | None = setting(
        None, "first choose the radial scalings on clean rows alone: a vector such as 1,2,3,4, or published for the "
        "paper's four; may be given again", paper="searched", kind=list,
    )
    plant: str | None = setting(
        None, "choose settings as a defender can: insert this text of your own, such as a sentence, into a tenth of "
        "the untrusted rows; CACC and ASR are then those of the clean rows that no gradient is aligned to", kind=str,
    )
    plant_target: int = setting(0, "the target class of --plant")
    vanilla_lr: float | None = setting(
        None, "learning rate of vanilla (default --lr; without it 2e-5, causal 1e-5)", paper="2e-5, Llama 1e-5",
        kind=float,
    )
    prefix_lr: float | None = setting(
        None, "learning rate of prefix (default --lr; without it that of the low-rank layers, narrow 3e-4)",
        paper="2e-5, Llama 1e-5", kind=float,
    )


def run(log: StepLog | None = None) -> None:
    parsed = task, resuming, attack, trusted, settings = parse(
        __doc__, Task, Resuming, Attack, Trusted, settings_of("cleantrain.musclelora", "MuScleLoRA"),
        rules=(*MUSCLELORA_RULES, *ATTACK))

    from dataclasses import asdict, replace

    from minibd import checkpoint
    from minibd.cleantrain.musclelora import MuScleLoRA
    from minibd.job.evaluation import target_args
    from minibd.job.task import products_of
    from minibd.records import BadInput

    if unknown := [name for name in trusted.train if name not in MODELS]:
        raise BadInput(f"--train {','.join(unknown)}: there are {', '.join(MODELS)}")
    if len(set(trusted.train)) < len(trusted.train):
        raise BadInput(f"--train {','.join(trusted.train)}: a model stands there twice, name each once")
    if trusted.plant is not None:
        attack = replace(attack, attack="none")
    settings, dtype = MuScleLoRA(**asdict(settings)), products_of(task)
    if "bottleneck" in parsed.given and not hasattr((header := checkpoint.read_header(task.ckpt)).config, "bottleneck"):
        raise BadInput(f"--bottleneck {settings.bottleneck}: of a Llama's classifier, and {task.ckpt} is a "
                       f"{header.mapping.model_type}: leave it out")
    candidates = band_vectors(trusted.search_bands or ())
    job = start_untrusted(
        task, trusted.clean_aux, lambda ckpt: settings.resolved(ckpt.model).aux, attack, trusted, settings, log=log,
        plant_target=None if trusted.plant is None else trusted.plant_target, resuming=resuming,
    )
    if trusted.plant is not None:
        plant_backdoor(job, trusted.plant, trusted.plant_target, task.seed)
    job.args |= target_args(job.evaluator)
    rates = baseline_rates(job, settings, trusted)
    settings = settings.resolved(job.victim.model)
    job.args |= asdict(settings)
    if candidates:
        settings = with_best_bands(job, candidates, settings, task.seed, dtype)

    new_spectrum = spectrum_maker(job, trusted, task.seed)
    for name in trusted.train:
        trained = train(job, name, settings, rates, new_spectrum and new_spectrum(), task.seed, dtype)
    # no checkpoint holds adapters or a prefix: for these the scores are the result
    unsaved = name in ("adapter", "prefix")
    job.finish(None if unsaved else trained, {"validation": len(job.splits.dev)})
    if unsaved:
        print(f"no model is written: {name}'s added layers fit in no checkpoint; let another be the last of --train")
    elif len(trusted.train) > 1 and name != "musclelora":
        print(f"the model that is written is {name}, the last of --train")


def band_vectors(flags: tuple[str, ...]) -> list[tuple]:
    """The radial scalings that --search-bands names: one vector a flag, or the paper's four."""
    from minibd.cleantrain.musclelora import MuScleLoRA
    from minibd.models.lora import PRESETS

    vectors = []
    for flag in flags:
        if flag == "published":
            vectors += [preset.bands for preset in PRESETS.values()]
        else:
            vectors.append(MuScleLoRA(bands=tuple(flag.split(","))).scalings)
    return vectors


def plant_backdoor(job: Job, text: str, target: int, seed: int) -> None:
    """--plant: poison the untrusted rows with the defender's own text, and evaluate on the dev rows, with that text as
    the trigger. The test rows stay unread."""
    from minibd import data
    from minibd.attacks.addsent import AddSent
    from minibd.attacks.poison import poison, triggered
    from minibd.evaluate import Evaluator
    from minibd.records import BadInput

    attack, dev, tokenizer = AddSent(text), job.splits.dev, job.victim.tokenizer
    if not dev:
        raise BadInput(
            "--plant is scored on the clean rows that no gradient is aligned to, and there are none: give more, or a "
            "smaller --aux"
        )
    poisoned = poison(
        job.splits.train, attack, rate=PLANT_RATE, labels="mix", target=target, tokenizer=tokenizer, seed=seed
    )
    job.splits = data.Splits(poisoned.rows, dev, dev)
    job.evaluator = Evaluator(dev, triggered(dev, attack, target=target, tokenizer=tokenizer, seed=seed), target)
    print(f"planted   {len(poisoned.ids)} rows, {poisoned.flipped} of them with a flipped label; "
          f"{len(dev)} dev rows score it")


def baseline_rates(job: Job, settings: MuScleLoRA, trusted: Trusted) -> dict[str, float]:
    """The learning rate of each model but MuScleLoRA. Those that have a flag stand in result.json's args."""
    rates = {name: settings.baseline_lr(name, job.victim.model) for name in MODELS if name != "musclelora"}
    for name, rate in (("vanilla", trusted.vanilla_lr), ("prefix", trusted.prefix_lr)):
        if rate is not None:
            rates[name] = rate
    job.args |= {"vanilla_lr": rates["vanilla"], "prefix_lr": rates["prefix"]}
    return rates


def with_best_bands(
    job: Job, candidates: list[tuple], settings: MuScleLoRA, seed: int, dtype: torch.dtype
) -> MuScleLoRA:
    """--search-bands: `settings` with the scalings that learn the clean rows best; all that were tried are printed."""
    from collections import Counter
    from dataclasses import replace

    from minibd import data
    from minibd.cleantrain.musclelora import search_bands
    from minibd.evaluate import Proportion
    from minibd.resume import kept_by
    from minibd.train import StepLog

    found = search_bands(
        job.victim, job.clean, job.splits.dev, candidates, settings, seed=seed, dtype=dtype,
        log=StepLog(kept=kept_by(job.log), listens=False),
    )
    for bands, right in found:
        print(f"{100 * right:6.2f} % of the clean rows held out, with the scalings {','.join(f'{s:g}' for s in bands)}")
    n = len(job.splits.dev) - len(data.sample(job.splits.dev, 0.5, seed))
    most = 100 * max(Counter(x.label for x in job.splits.dev).values()) / len(job.splits.dev)
    if Proportion(round(found[0][1] * n), n).interval[0] <= most:
        print(f"at chance: the best scalings are right on {100 * found[0][1]:.2f} % of {n} rows, and always answering "
              f"one class on {most:.2f} %: which come first says nothing; try another --lr (now {settings.lr:g}), more "
              "clean rows")
    bands = tuple(f"{s:g}" for s in found[0][0])
    job.outcome |= {
        "bands": list(bands), "trials": [{"bands": list(tried), "accuracy": 100 * right} for tried, right in found],
    }
    return replace(settings, bands=bands)


def spectrum_maker(job: Job, trusted: Trusted, seed: int) -> Callable[[], Spectrum] | None:
    """--curves: a function that gives a new recorder of the learnt frequencies per model; None without it."""
    from minibd import checkpoint, data
    from minibd.analysis.fourier import Fourier, Spectrum, one_class, relabelled
    from minibd.records import BadInput

    if not trusted.curves:
        return None
    if job.evaluator.triggered is None:
        raise BadInput(
            f"--curves {trusted.curves} compares clean with triggered rows, and the attack is not known: name it with "
            "--attack, or give --triggered"
        )
    target = job.evaluator.target
    rows = {"clean": job.splits.test, "triggered": relabelled(job.evaluator.triggered, target),
            "control": one_class(job.splits.test, target)}
    n = min(trusted.curve_rows, *map(len, rows.values()))  # the same number of each: the measures grow with the rows
    sets = {name: data.sample(examples, n, seed) for name, examples in rows.items()}
    start = checkpoint.with_head(checkpoint.headless(job.victim), job.splits.train.labels, seed)
    return lambda: Spectrum(start.model, start.tokenizer, sets, Fourier(every=trusted.curves))


def train(job: Job, name: str, settings: MuScleLoRA, rates: dict[str, float], spectrum: Spectrum | None, seed: int,
          dtype: torch.dtype) -> Checkpoint:
    """The model `name` trained on the untrusted rows, measured as a row of the table."""
    import time

    from minibd.cleantrain.musclelora import musclelora
    from minibd.cleantrain.peft import PEFT, train_peft

    options = {"validation": job.splits.dev or None, "seed": seed, "dtype": dtype, "log": job.log,
               "on_choice": job.outcome.setdefault(name, {}).__setitem__,  # several models: each has choices of its own
               "on_step": spectrum}
    started = time.perf_counter()
    if name == "musclelora":
        trained = musclelora(job.victim, job.splits.train, job.clean, settings, **options)
    else:
        baseline = PEFT(name, settings.rank, settings.alpha, rates[name], settings.epochs, settings.batch_size,
                        train_head=settings.train_head)
        trained = train_peft(job.victim, job.splits.train, baseline, **options)
    job.measure(name, trained.model, time.perf_counter() - started)
    if spectrum:
        job.more[f"curves-{name}.json"] = spectrum.finish()
    return trained


def start_untrusted(
    task: Task, clean_aux: str, aux: Callable[[Checkpoint], int], attack: Attack, *settings: object,
    log: StepLog | None = None, plant_target: int | None = None, resuming: Resuming | None = None,
) -> Job:
    """Open a task whose --data is a dataset that may be poisoned: its rows, the clean ones, the evaluator.

    The rows of --data are all of a file, the training rows of a folder, or poisoned.jsonl in a folder that attack.py
    wrote, whose triggered.jsonl then gives the ASR. Of --clean-aux (without it, of what the checkpoint was pre-trained
    on) the dev rows, where it has any, else the training rows are trusted: aux(encoder) of them are the job's `clean`,
    the others the splits' `dev`. Its test rows are the test.
    """
    import json
    import time
    from dataclasses import replace
    from pathlib import Path

    from minibd import checkpoint, data, report
    from minibd.evaluate import Evaluator
    from minibd.job.evaluation import check_attack, evaluator_of
    from minibd.job.resuming import keeper
    from minibd.job.run import Job
    from minibd.job.task import (
        args_of,
        device_of,
        dtype_args,
        print_doubts,
        print_dtype,
        print_notes,
        print_rows,
        reading_of,
        sparing,
        splits_of,
        texts_at_once,
    )
    from minibd.records import BadInput, check_target
    from minibd.train import StepLog

    started = time.perf_counter()
    device, _ = device_of(task.device), texts_at_once(task)
    out = report.output_folder(task.out or Path("out", "musclelora"), task.ckpt, task.data, clean_aux)
    report.check_free(out, task.overwrite, resuming=resuming)
    header, columns = checkpoint.read_header(task.ckpt), reading_of(task)
    if not task.data or not (clean_aux or any("data" in entry for entry in header.history)):
        raise BadInput(
            "musclelora trains on a dataset with a few clean rows beside it: name both, --data and --clean-aux"
        )
    trusted = (
        data.read_splits(clean_aux, seed=task.seed, labels=task.labels, **columns)
        if clean_aux
        else splits_of(replace(task, data=""), header)
    )
    print_notes(trusted)
    folder = Path(task.data)
    counts = folder / "attack.json"
    attacked = counts.is_file() and attack.attack == "known" and not attack.triggered
    if plant_target is not None:
        check_target(plant_target, trusted.test.labels)
    if not attacked:
        check_attack(attack, task, header, trusted.test)
    elif attack.side or attack.paraphrases:
        raise BadInput(
            f"{'--side' if attack.side else '--paraphrases'}: ASR is measured on the triggered.jsonl that attack.py "
            f"left in {folder}: leave it out, or name the attack with --attack"
        )
    if counts.is_file():
        rows = data.read(folder / "poisoned.jsonl", labels=trusted.test.labels, **columns)
    elif folder.is_dir():
        untrusted = data.read_splits(folder, seed=task.seed, labels=trusted.test.labels, **columns)
        print_notes(untrusted)
        rows = untrusted.train
    else:
        rows = data.read(folder, labels=trusted.test.labels, **columns)
    kept = None
    if resuming is not None and log is None:
        kept = keeper("musclelora", out, task, resuming, header, attack, *settings)
    # With a classifier, so that the penultimate layer that was pre-trained with the encoder is loaded too.
    labels = None if header.labels else trusted.test.labels
    ckpt = sparing(checkpoint.load(header, device, labels=labels, seed=task.seed), task)
    pool = trusted.dev or trusted.train
    held = data.sample(pool, min(aux(ckpt), len(pool)), task.seed)
    ids = {x.id for x in held}
    splits = data.Splits(rows, pool.like(x for x in pool if x.id not in ids), trusted.test)
    if attacked:
        target = json.loads(counts.read_text(encoding="utf-8")).get("target")
        evaluator = Evaluator(splits.test, data.read(folder / "triggered.jsonl", labels=rows.labels, **columns), target)
    else:
        evaluator = evaluator_of(attack, task, ckpt, splits.test)
    print_rows(untrusted=rows, clean=held, dev=splits.dev or None, test=splits.test, triggered=evaluator.triggered)
    print_dtype(task)
    print_doubts(rows, held, splits.test, splits.dev, rows)
    if not splits.dev:
        print(f"all {len(held)} clean rows are aligned to, none is left to choose an epoch by: the last one counts")
    return Job(
        "musclelora", args_of(task, attack, *settings) | {"out": str(out), **dtype_args(task)}, ckpt, splits, held,
        evaluator, out, started=started, log=StepLog(kept=kept) if log is None else log, trains_on_all=True,
    )


if __name__ == "__main__":
    main(run)
