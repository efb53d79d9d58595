"""Hostile argument lines, each from a seed: a sound command of a script, of which flags are given strange values."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

from hostile_checkpoints import place_special
from minibd import cli
from minibd.cli import settings_of

# A sound command, short where it runs; and the groups of the script's own flags beside Task's, which `settings` names.
SOUND = {
    "evaluate": "--ckpt {bert} --data {data} --attack badnets --triggers cf",
    "finemix": "--ckpt {bert} --pretrained {pretrained} --data {data} --rho 0.5 --no-tune --no-e-pur",
    "mbtsad": "--ckpt {bert} --data {data} --k 1 --epochs1 1 --epochs2 1 --no-cft --clean 4",
    "baseline": "--ckpt {bert} --data {data} --clean 4 --epochs 1 --steps 0",
    "pure": "--ckpt {bert} --data {data} --clean 8 --epochs 1 --drop 100",
    "attack": "--ckpt {bert} --data {data} --attack badnets --triggers cf --rate 0.3 --epochs 1",
    "pretrain": "--ckpt {bert} --data {data} --epochs 1",
    "scan": "--ckpt {bert} --data {data} --pool 2 --lonely 1 --phrases 0 --fresh-rows 8",
    "musclelora": "--ckpt {pretrained} --data {data} --clean-aux {data} --epochs 1 --rank 2",
}
SETTINGS = {
    "finemix": ("mitigations.finemix", "FineMixing"),
    "mbtsad": ("mitigations.mbtsad", "MBTSAD"),
    "pure": ("mitigations.pure", "PURE"),
    "musclelora": ("cleantrain.musclelora", "MuScleLoRA"),
    "scan": ("detect.scan", "Scan"),
}
OWN = {
    "baseline": ("lr", "epochs", "batch_size", "steps"),
    "attack": ("rate", "lr", "epochs", "batch_size", "rows"),
    "pretrain": ("epochs", "lr", "batch_size", "mask"),
    "evaluate": (),
    "scan": (),
}
NUMBERS = (
    "-1",
    "0",
    "1e308",
    "-1e308",
    "nan",
    "inf",
    "-inf",
    str(2**31),
    str(2**63),
    str(2**70),
    "1000000",
    "1e3",
    "1e-300",
    "0x10",
    "1_0",
    "٣",
    "",
    " ",
    "1e400",
    "0.5",
    "9" * 5000,
    "-0.0",
    "\x1b[31m",
    "1,2",
    "--",
    "two",
    "1\n2",
    "-5",
)
TEXTS = (
    "",
    " ",
    "\n",
    "\x1b[31mred",
    "a" * 3000,
    "a" * 100_000,
    "\udcff",
    "nowhere",
    "/dev/zero",
    "/dev/null",
    "/",
    ".",
    "..",
    "a,b",
    ",",
    "%s",
    "index=1",
    "name=1",
    "-1",
    str(2**70),
    "/proc/self/mem",
    "漢" * 200,
    "1",
    "x\ty",
    "\u202e",
    "~",
)
USUAL = ("0", "1", "2", "3", "0.5", "0.001", "10", "1e3", "5e-2", "100")
PATHS = ("ckpt", "data", "out", "triggered", "paraphrases", "pretrained", "clean_ckpt", "mlm", "wordnet", "clean_aux")


def flags_of(script: str) -> dict[str, type]:
    """{field: its type} of the flags that are tried on a script."""
    groups = [cli.Task, *([cli.Clean] if script in ("mbtsad", "baseline", "finemix", "pure") else [])]
    if script not in ("pretrain", "scan"):
        groups.append(cli.Attack)
    if script in SETTINGS:
        groups.append(settings_of(*SETTINGS[script]))
    named = {f.name: f.metadata["kind"] for group in groups for f in fields(group)}
    return named | dict.fromkeys(OWN.get(script, ()), float)


def sound(script: str, bases: dict[str, Path]) -> list[str]:
    """The command of a script that nothing is wrong with, the script first, without --out."""
    return [script, *(["cft"] if script == "baseline" else []),
            *(str(bases[word[1:-1]]) if word[:1] == "{" else word for word in SOUND[script].split())]


def make(seed: int, bases: dict[str, Path], folder: Path) -> tuple[list[str], str]:
    """One argument line, its script first, and what is strange in it."""
    rng = random.Random(seed)
    script = rng.choice(sorted(SOUND))
    job = [rng.choice(("cft", "reinit", "fineprune", "ft"))] if script == "baseline" else []
    words = sound(script, bases)[1 + len(job):]
    flags, strange = flags_of(script), []
    for _ in range(rng.choice((1, 1, 2))):
        name, kind = rng.choice(sorted(flags.items(), key=str))
        if kind is bool:
            strange += [rng.choice((cli.flag_of(name), f"--no-{name}", f"--{name}=x"))]
            continue
        value = rng.choice(NUMBERS if kind in (int, float) and rng.random() < 0.8 else TEXTS)
        if kind in (int, float) and rng.random() < 0.4:
            value = rng.choice(USUAL)
        if name == "out" and value == "/":
            value = "/proc"  # the other would be written to
        if name in PATHS and rng.random() < 0.5:
            place = folder / rng.choice(("file.tsv", "ckpt.safetensors", "folder", "n" * 240))
            place_special(rng, place)
            value = str(place)
        strange += [f"{cli.flag_of(name)}={value}"] if rng.random() < 0.7 else [cli.flag_of(name), value]
    if rng.random() < 0.05:
        strange.append(rng.choice(("--no-such", "--\x1b[2J", "word", "-x", "--seed", "--=", "--" + "y" * 3000)))
    out = [] if any(word.startswith("--out") for word in strange) else ["--out", str(folder / "out")]
    line = [script, *job, *words, *out, *strange]
    line = [word for word in line if "\0" not in word]  # which no command line can hold
    return line, f"{script}: {' '.join(strange)[:120]!r}"
