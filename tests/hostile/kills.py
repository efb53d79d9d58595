"""Runs killed at a file event, or after some time: what is left under --out is the old run or the new one, whole, and
never a mixture; and a run that trains, gone on with, ends with the same weights, steps and scores, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import jobs
from limited import Ended, limited
from minibd import checkpoint
from verdicts import Verdict, digest, judged

# Runs that take a second and write what the long ones write. {out} and {ckpt} are filled in.
RUNS = {
    "finemix folder": "finemix --ckpt {bert} --pretrained {pretrained} --data {data} --rho 0.5 --no-tune --no-e-pur",
    "finemix file": "finemix --ckpt {bert.safetensors} --pretrained {pretrained} --data {data} --rho 0.5 --no-tune "
    "--no-e-pur",
    "evaluate": "evaluate --ckpt {bert} --data {data} --attack none",
    "dataset": "attack --ckpt {bert} --data {data} --attack badnets --triggers cf --rate 0.2 --dataset-only",
    "filter file": "filter strip --ckpt {bert} --data {rows} --clean {rows} --copies 2 --attack badnets --triggers cf "
    "--target 1",
    "filter, retrained": "filter cube --ckpt {pretrained} --data {data} --retrain --epochs 1 --batch-size 8 "
    "--variant released",
    "scan": "scan --ckpt {bert} --data {data} --pool 2 --lonely 1 --phrases 0 --fresh-rows 8",
    "repair folder": "repair --ckpt {bert} --data {data} --pool 2 --lonely 1 --phrases 0 --fresh-rows 8 --steps 1 "
    "--planted none",
    "make_weights": "make_weights --pretrain-rows 40 --train 24 --dev 8 --test 8 --vocab 120 --hidden 8 --layers 1 "
    "--heads 1 --max-len 16 --epochs 1 --batch-size 8 --twin-epochs 1 --lm-rows 24 --lm-ffn 8 --lm-epochs 1",
    "reinit": "baseline reinit --ckpt {bert} --data {data} --clean 8 --epochs 1 --steps 1 --batch-size 8",
}
# Runs that train, and are gone on with. All of them keep their state after each step or after every second one.
TRAINED = {
    "mbtsad": "mbtsad --ckpt {bert} --data {data} --clean 12 --k 1 --epochs1 2 --epochs2 2 --batch-size 8 --attack "
    "badnets --triggers cf --best-epoch",
    "pure": "pure --ckpt {bert.safetensors} --data {data} --epochs 2 --batch-size 8 --drop 60",
    "finemix": "finemix --ckpt {bert.safetensors} --pretrained {pretrained} --data {data} --clean 12 --epochs 1 "
    "--steps 2 --batch-size 8 --drop 60",
    "musclelora": "musclelora --ckpt {bert} --data {data} --clean-aux {data} --epochs 2 --batch-size 8 --aux 4",
    "meft": "baseline meft --ckpt {roberta} --data {data} --clean 12 --epochs 2 --entropy-epochs 1 --batch-size 8",
    "fineprune": "baseline fineprune --ckpt {bert} --data {data} --clean 12 --epochs 1 --steps 3 --batch-size 8",
    "cft": "baseline cft --ckpt {llama.safetensors} --data {data} --clean 12 --epochs 2 --steps 4 --batch-size 8",
    "twin": "attack --ckpt {distilbert} --data {data} --attack badnets --triggers cf --rate 0.2 --twin --survive "
    "--epochs 1 --batch-size 8",
    "ep": "attack --ckpt {bert.safetensors} --data {data} --attack ep --rate 0.4 --epochs 3 --batch-size 4",
    "pretrain": "pretrain --ckpt {bert} --data {data} --epochs 3 --batch-size 8",
    "repair": "repair --ckpt {bert} --data {data} --suspects {suspects} --pool 2 --lonely 1 --phrases 0 --fresh-rows "
    "8 --steps 4 --row-steps 4 --batch-size 8 --clean 16 --planted row",
    "repair, retrained": "repair --ckpt {bert.safetensors} --data {data} --pool 2 --lonely 1 --phrases 0 --fresh-rows "
    "8 --batch-size 8 --method cft --planted none",
}
FINISHED = (0, 1, 3)  # scan.py and repair.py say by it what they found
# What a process does to files, as Python's audit events name it, with the place of the path in its arguments.
EVENTS = {
    "open": 0,
    "os.rename": 1,
    "os.remove": 0,
    "os.mkdir": 0,
    "os.rmdir": 0,
    "os.chmod": 0,
    "os.link": 1,
    "os.truncate": 0,
    "shutil.rmtree": 0,
}


def words_of(run: str, bases: dict[str, Path], out: Path, seed: int, more: list[str]) -> list[str]:
    script, *words = (RUNS | TRAINED)[run].split()
    filled = [str(bases[word[1:-1]]) if word[:1] == "{" else word for word in words]
    return [script, *filled, "--out", str(out), "--seed", str(seed), *more]


def killed_at(event: float, folder: Path, words: list[str]) -> None:
    """The script, killed before the file event number `event` (from 0) below `folder`; where that is no whole number,
    after so many seconds; -1: never."""
    seen = 0
    if isinstance(event, float):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # as hard as SIGKILL: nothing of ours runs
        signal.setitimer(signal.ITIMER_REAL, event)

    def hook(name: str, arguments: tuple) -> None:
        nonlocal seen
        if name not in EVENTS or not isinstance(path := arguments[EVENTS[name]], (str, bytes, os.PathLike)):
            return
        writes = name != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        if writes and os.fsdecode(path).startswith(str(folder)):
            if seen == event:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(hook)
    try:
        jobs.call(*words)
    finally:
        print(f"EVENTS {seen}")


def one_run(
    run: str, bases: dict[str, Path], place: Path, logs: Path, event: float, seed: int, flags: list[str]
) -> Ended:
    """`run` into place/out, killed as `killed_at` says."""
    words = words_of(run, bases, place / "out", seed, flags)
    return limited(partial(killed_at, event, place, words), logs, seconds=120)


def case(seed: int, bases: dict[str, Path], folder: Path) -> tuple[str, Ended, Verdict]:
    """Half of the runs are over an existing one, a quarter trains. After the kill the same command is run again, whole;
    one that trains, with --resume, and half of these are killed twice."""
    rng = random.Random(seed)
    trains = seed % 4 == 3
    run, over = rng.choice(sorted(TRAINED if trains else RUNS)), rng.random() < 0.5
    place, logs = folder / "place", folder / "logs"
    place.mkdir()
    logs.mkdir()
    out = place / "out"
    before = {name: digest(path) for name, path in bases.items()}
    more = ["--overwrite"] if over else []
    if trains:
        more += ["--save-every", str(rng.choice((1, 2)))]

    go = partial(one_run, run, bases, place, logs)

    def fault(ended: Ended, kind: str, why: str) -> tuple[str, Ended, Verdict]:
        return what, ended, Verdict(kind, why)

    what = f"{run}: {'over another' if over else 'first'}"
    if over:  # the old run, of another seed, and a file that no run wrote
        if (ended := go(-1, 1, [])).status not in FINISHED:
            return fault(ended, "the old run fails", ended.err[-300:])
        (out / "notes.txt").write_text("mine")
    old = state(out)
    copy = folder / "copy"
    if out.exists():
        shutil.copytree(out, copy)
    whole = go(-1, 2, more)  # the new run, not killed: how many events there are
    if whole.status not in FINISHED:
        return fault(whole, "the new run fails", whole.err[-300:])
    events, new = int(whole.out.rsplit("EVENTS ", 1)[1]), state(out)
    sound = (old, new, state(out, bare=True))
    if trains and place.joinpath(".out.resume").exists():
        return fault(whole, "left-over state", "")
    shutil.rmtree(place)
    place.mkdir()
    if over:
        shutil.copytree(copy, out)
    timed = rng.random() < (0.5 if trains else 0.25)
    event = rng.uniform(0.2, 0.9) * whole.seconds if timed else rng.randrange(events)
    what += f", second {event:.2f} of {whole.seconds:.2f}" if timed else f", event {event} of {events}"
    ended = go(event, 2, more)
    if ended.signal not in (signal.SIGKILL, signal.SIGALRM) and not (timed and ended.status in FINISHED):
        return fault(ended, "not killed", ended.err[-300:])
    if (found := state(out)) not in sound:
        return fault(ended, "mixed folder", f"{sorted(p.name for p in out.rglob('*'))}")
    anew = ["--overwrite"] if out.exists() else more
    if trains:  # where nothing was kept yet, or the run had ended, --overwrite says that it begins anew
        anew = [*more, "--resume", "--overwrite"]
        if rng.random() < 0.5:
            what += ", and again"
            go(rng.randrange(events), 2, anew)
            if (found := state(out)) not in sound:
                return fault(ended, "mixed folder", f"{sorted(p.name for p in out.rglob('*'))}")
    again = go(-1, 2, anew)
    if (verdict := judged(again)).kind != "accepted" or state(out) != new:
        return fault(again, "the next run fails", verdict.why or "another result")
    if left := sorted(path.name for path in place.iterdir() if path != out):
        return fault(again, "left-over drafts", ", ".join(left))
    if over and (out / "notes.txt").read_text() != "mine":
        return fault(again, "a stranger's file lost", "notes.txt")
    if before != {name: digest(path) for name, path in bases.items()}:
        return fault(again, "changed input", "")
    went_on = "; went on" if "parts of the run are kept" in again.out else ""
    return what, again, Verdict("accepted", ("old" if found == old else "new") + went_on)


def state(out: Path, bare: bool = False) -> dict[str, str]:
    """{file: what it holds}, without what differs from one run to the next: times, command lines. bare: as it is before
    repair.py, which writes its result first, has the evidence."""
    if not out.exists():
        return {}
    if (out / "lm.safetensors").exists():
        return _made(out)
    found = {}
    for path in sorted(out.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(out))
            held = path.read_bytes()
            if path.suffix == ".json":
                held = json.dumps(_timeless(json.loads(held), bare)).encode()
            elif name == "README.md" or path.suffix == ".html":  # with times
                held = b""
            found[name] = f"{len(held)} {hash(held)}"
    return found


def _timeless(value: object, bare: bool) -> object:
    if isinstance(value, dict):
        value = {key: held for key, held in value.items() if key not in ("seconds", "command")}
        return {key: [] if bare and key == "evidence" else _timeless(held, bare) for key, held in value.items()}
    return [_timeless(held, bare) for held in value] if isinstance(value, list) else value


def _made(out: Path) -> dict[str, str]:
    """Of what make_weights.py wrote, no two runs of which are the same: each file's seed, and whether its words are
    those of the first."""
    found, words = {}, set()
    for path in sorted(out.rglob("*")):
        if path.suffix != ".safetensors":
            found[str(path.relative_to(out))] = f"{len(path.read_bytes())}"
            continue
        header = checkpoint.read_header(path)
        words.add(header.tokenizer.backend.to_str())
        found[path.name] = f"seed {header.history[0]['seed']}, vocabulary {len(words)}"
    return found
