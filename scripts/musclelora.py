#!/usr/bin/env python3
"""Train a clean classifier on a dataset that may be poisoned, with MuScleLoRA and the plain ways it is compared with.

    python scripts/attack.py --ckpt PRETRAINED --data FOLDER --attack addsent --preset musclelora --dataset-only --out
    POISONED python scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --out CLEANED python
    scripts/musclelora.py --ckpt PRETRAINED --data rows.csv --clean-aux clean.csv --train musclelora python
    scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --train lora,adapter,prefix python
    scripts/musclelora.py --ckpt PRETRAINED --data POISONED --clean-aux FOLDER --plant "it rained all day" --lr 1e-3
    --aux 384

--ckpt is an encoder, or a classifier whose head is then replaced. --clean-aux: its dev rows (a single file: four fifths
of its rows) are trusted, some to align gradients to, the others to choose the best epoch by; its test rows (the last
fifth) measure CACC. Of the models that are trained, the last is saved, unless that has adapters or a prefix, which no
checkpoint holds: its scores are the result. --plant is for a choice of settings, which should not be made by the ASR
that one reports: what comes of it has a backdoor of your own.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import Attack, Task, main, parse, setting, settings_of

WAYS = ("vanilla", "lora", "adapter", "prefix", "musclelora")


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the defender holds beside the dataset, and what is trained"""

    clean_aux: str = setting(
        "",
        "a folder or file of clean rows of the same task (default: what the checkpoint was pre-trained on, if it says "
        "so)",
        paper="96 of the validation rows",
    )
    train: tuple[str, ...] = setting(
        ("vanilla", "musclelora"), f"the models to train, one after another, of {', '.join(WAYS)}"
    )
    curves: int = setting(
        0,
        "every N steps, record how low and high in frequency what is learnt is: OUT/curves-MODEL.json, drawn by "
        "plot.py "
        "(default 0: not at all)",
        paper="5",
    )
    curve_rows: int = setting(
        200,
        "test rows of each kind that this looks at: clean, triggered, and, as a control, clean of the target class "
        "alone",
        paper="the training rows; released the dev rows",
    )
    search_bands: tuple[str, ...] | None = setting(
        None,
        "first choose the radial scalings on clean rows alone: a vector such as 1,2,3,4, or published for "
        "the paper's four; may be given again",
        paper="searched", kind=list,
    )
    plant: str | None = setting(
        None,
        "choose settings as a defender can: this text of your own, such as a sentence, is put into a tenth of the "
        "untrusted rows, and CACC and ASR are those of the clean rows that no gradient is aligned to",
        kind=str,
    )
    plant_target: int = setting(0, "the class that it means")
    vanilla_lr: float | None = setting(
        None, "learning rate of vanilla (default --lr; without it 2e-5, causal 1e-5)", paper="2e-5, Llama 1e-5",
        kind=float,
    )
    prefix_lr: float | None = setting(
        None, "learning rate of prefix (default --lr; without it the low-rank layers', narrow 3e-4)",
        paper="2e-5, Llama 1e-5", kind=float,
    )


def run() -> None:
    task, attack, trusted, settings = parse(
        __doc__, Task, Attack, Trusted, settings_of("cleantrain.musclelora", "MuScleLoRA")
    )

    import time
    from dataclasses import asdict, replace

    import torch

    from minibd import checkpoint, data, report
    from minibd.job.untrusted import start_untrusted
    from minibd.analysis.fourier import Fourier, Spectrum, relabelled, one_class
    from minibd.attacks.addsent import AddSent
    from minibd.attacks.poison import poison, triggered
    from minibd.cleantrain.musclelora import MuScleLoRA, musclelora, search_bands
    from minibd.cleantrain.peft import PEFT, train_peft
    from minibd.evaluate import Evaluator
    from minibd.models.lora import PRESETS
    from minibd.records import BadInput

    if bad := [name for name in trusted.train if name not in WAYS]:
        raise BadInput(f"--train {','.join(bad)}: there are {', '.join(WAYS)}")
    if trusted.plant is not None and (attack.attack != "known" or attack.triggered):
        raise BadInput("--plant measures the ASR of its own text: leave --attack and --triggered out")
    settings = MuScleLoRA(**asdict(settings))
    vectors = []
    for vector in trusted.search_bands or ():
        vectors += (
            [own.bands for own in PRESETS.values()]
            if vector == "published"
            else [MuScleLoRA(bands=tuple(vector.split(","))).scalings]
        )
    attack = attack if trusted.plant is None else replace(attack, attack="none")
    job = start_untrusted(
        "musclelora", task, trusted.clean_aux, lambda ckpt: settings.resolved(ckpt.model).aux, attack, trusted
    )
    if trusted.plant is not None:
        own, target, dev = AddSent(trusted.plant), trusted.plant_target, job.splits.dev
        if not dev:
            raise BadInput(
                "--plant is scored on the clean rows that no gradient is aligned to, and there are none: give more, or "
                "a smaller --aux"
            )
        made = poison(
            job.splits.train, own, rate=0.1, labels="mix", target=target, tokenizer=job.victim.tokenizer,
            seed=task.seed
        )
        job.splits = data.Splits(made.rows, dev, dev)  # the test rows stay unread
        job.evaluator = Evaluator(
            dev, triggered(dev, own, target=target, tokenizer=job.victim.tokenizer, seed=task.seed), target
        )
        print(
            f"planted   {len(made.ids)} rows, {made.flipped} of them with a flipped label; {len(dev)} dev rows score it"
        )
    lrs = {name: settings.baseline_lr(name, job.victim.model) for name in WAYS if name != "musclelora"}
    lrs |= {name: lr for name, lr in (("vanilla", trusted.vanilla_lr), ("prefix", trusted.prefix_lr)) if lr is not None}
    settings = settings.resolved(job.victim.model)
    job.args |= {"vanilla_lr": lrs["vanilla"], "prefix_lr": lrs["prefix"]}
    dtype = getattr(torch, task.dtype)
    if vectors:
        found = search_bands(job.victim, job.clean, job.splits.dev, vectors, settings, seed=task.seed, dtype=dtype)
        for bands, right in found:
            print(
                f"{100 * right:6.2f} % of the clean rows held out, with the scalings "
                f"{','.join(f'{s:g}' for s in bands)}"
            )
        settings = replace(settings, bands=tuple(f"{s:g}" for s in found[0][0]))
        job.args["search"] = [{"bands": list(bands), "accuracy": 100 * right} for bands, right in found]
    job.args |= asdict(settings)

    sets = {}
    if trusted.curves:
        if job.evaluator.triggered is None:
            raise BadInput(
                f"--curves {trusted.curves} compares clean with triggered rows, and the attack is not known: name it "
                "with --attack, or give "
                "--triggered"
            )
        target = job.evaluator.target
        rows = {
            "clean": job.splits.test, "triggered": relabelled(job.evaluator.triggered, target),
            "control": one_class(job.splits.test, target),
        }
        n = min(trusted.curve_rows, *map(len, rows.values()))  # as many of each: the measures grow with the rows
        sets = {name: data.sample(examples, n, task.seed) for name, examples in rows.items()}
        headed = checkpoint.with_head(checkpoint.headless(job.victim), job.splits.train.labels, task.seed)

    shared = {"validation": job.splits.dev or None, "seed": task.seed, "dtype": dtype, "log": job.log.append}
    for name in trusted.train:
        spectrum = Spectrum(headed.model, headed.tokenizer, sets, Fourier(every=trusted.curves)) if sets else None
        shared["on_step"] = spectrum and spectrum.on_step
        started = time.perf_counter()
        if name == "musclelora":
            trained = musclelora(job.victim, job.splits.train, job.clean, settings, **shared)
        else:
            way = PEFT(
                name, settings.rank, settings.alpha, lrs[name], settings.epochs, settings.batch_size,
                train_head=settings.train_head,
            )
            trained = train_peft(job.victim, job.splits.train, way, **shared)
        job.measure(name, trained.model, time.perf_counter() - started)
        if spectrum:
            report.write_json(job.out / f"curves-{name}.json", spectrum.finish())
    job.finish(None if name in ("adapter", "prefix") else trained, {"validation": len(job.splits.dev)})


if __name__ == "__main__":
    main(run)
