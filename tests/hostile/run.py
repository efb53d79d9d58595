#!/usr/bin/env python3
"""Hostile inputs, made from seeds, each tried in a limited child; the verdict by kind.

    python tests/hostile/run.py --cases 5000 --kills 200
    python tests/hostile/run.py --checkpoints 300 --first 1000    checkpoints of the seeds 1000 to 1299
    python tests/hostile/run.py --only checkpoints:1017 --show    one case, and what it printed

--cases N: N checkpoints, N / 5 sound ones of unusual settings, 3 N / 5 data files, N / 5 argument lines. --kills K: K
runs killed at a file event. --disks D: D runs whose disk is full, fails or vanishes, or is another run's, too. Exit
status 1 where any case is a fault: a traceback, a hang, an abort, memory, a line that is too long or not printable, a
changed input, a copy with other logits, a mixed folder.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RUST_BACKTRACE": "0"}

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[1])]

import disks
import hostile_arguments
import hostile_checkpoints
import hostile_data
import jobs
import kills
import sound_settings
import verdicts
from bases import write_bases
from limited import Ended, limited
from verdicts import RIGHT, Verdict, digest, judged


def checkpoint_case(
    seed: int, bases: dict[str, Path], folder: Path, make: Callable = hostile_checkpoints.make
) -> tuple[str, Ended, Verdict]:
    path, what = make(seed, bases, folder)
    before = digest(path)
    ended = limited(partial(jobs.evaluate, path, bases["data"], folder), folder, seconds=90)
    return what, ended, _unchanged(judged(ended, verdicts.HEAP + 3 * _size(path)), before, path)


def data_case(seed: int, bases: dict[str, Path], folder: Path) -> tuple[str, Ended, Verdict]:
    path, what = hostile_data.make(seed, folder)
    before = digest(path)
    ended = limited(partial(jobs.read, path, folder), folder)
    return what, ended, _unchanged(judged(ended), before, path)


def argument_case(seed: int, bases: dict[str, Path], folder: Path) -> tuple[str, Ended, Verdict]:
    line, what = hostile_arguments.make(seed, bases, folder)
    before = {name: digest(path) for name, path in bases.items()}
    os.chdir(folder)  # where a relative --out goes
    ended = limited(partial(jobs.call, *line), folder, seconds=60)
    os.chdir("/")
    verdict = judged(ended)
    changed = next((name for name, path in bases.items() if digest(path) != before[name]), "")
    return what, ended, Verdict("changed input", changed) if changed else verdict


def sound_case(seed: int, bases: dict[str, Path], folder: Path) -> tuple[str, Ended, Verdict]:
    """A command as the argument lines begin with it: were it refused, its lines would try nothing."""
    script = sorted(hostile_arguments.SOUND)[seed % len(hostile_arguments.SOUND)]
    ended = limited(partial(jobs.call, *hostile_arguments.sound(script, bases), "--out", folder / "out"), folder, 120)
    verdict = judged(ended)
    return script, ended, verdict if verdict.kind == "accepted" else Verdict("sound, and not accepted", verdict.why)


def _unchanged(verdict: Verdict, before: str, path: Path) -> Verdict:
    return verdict if digest(path) == before else Verdict("changed input", str(path))


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_blocks * 512 for file in files if file.is_file())


MOUNTS = disks.can_mount()  # before there are threads
CASES: dict[str, Callable[[int, dict[str, Path], Path], tuple[str, Ended, Verdict]]] = {
    "checkpoints": checkpoint_case,
    "settings": partial(checkpoint_case, make=sound_settings.make),
    "data": data_case,
    "arguments": argument_case,
    "sound": sound_case,
    "kills": kills.case,
    "disks": partial(disks.case, mounts=MOUNTS),
}


def run(kind: str, seeds: range, bases: dict[str, Path], work: Path, show: bool = False) -> Counter:
    """{verdict: number of cases}; every fault is printed with its seed."""
    found: Counter = Counter()
    by_kind: Counter = Counter()
    went_on = 0
    longest, most = (0.0, 0), (0, 0)
    for seed in seeds:
        folder = work / f"{kind}-{seed}"
        folder.mkdir()
        try:
            what, ended, verdict = CASES[kind](seed, bases, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        found[verdict.kind] += 1
        went_on += "went on" in verdict.why
        by_kind[what.partition(":")[0], verdict.kind] += 1
        longest, most = max(longest, (ended.seconds, seed)), max(most, (ended.grown, seed))
        if verdict.kind not in RIGHT or show:
            print(f"{kind}:{seed}  {verdict.kind}  [{what[:160]!r}]\n    {verdict.why[-600:]!r}", flush=True)
        if show:
            print(ended.out, ended.err, f"{ended.seconds:.2f} s, {ended.grown >> 20} MB", sep="\n")
    print(
        f"{kind}: {len(seeds)} cases, "
        + ", ".join(f"{name} {n}" for name, n in found.most_common())
        + f"; the longest {longest[0]:.1f} s (seed {longest[1]}), the most memory {most[0] >> 20} MB (seed {most[1]})"
        + (f"; {went_on} went on from what was kept" if went_on else "")
    )
    for name in sorted({name for name, _ in by_kind}):
        print(
            f"    {name:28}" + "  ".join(f"{verdict} {n}" for (of, verdict), n in sorted(by_kind.items()) if of == name)
        )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=0)
    for kind in CASES:
        parser.add_argument(f"--{kind}", type=int)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", help="KIND:SEED")
    parser.add_argument("--show", action="store_true")
    args = parser.parse_args()
    shares = {"checkpoints": 1.0, "settings": 0.2, "data": 0.6, "arguments": 0.2}
    counts = {
        kind: getattr(args, kind) if getattr(args, kind) is not None else round(args.cases * shares.get(kind, 0))
        for kind in CASES
    }
    seeds = {kind: range(args.first, args.first + n) for kind, n in counts.items()}
    if args.only:
        kind, _, seed = args.only.partition(":")
        seeds = {kind: range(int(seed), int(seed) + 1)}
    began, faults = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="hostile-") as work:
        bases = write_bases(Path(work) / "bases")
        for name in ("evaluate", *hostile_arguments.SOUND, "filter", "repair", "make_weights"):
            jobs.script(name)
        for kind, wanted in seeds.items():
            if len(wanted):
                found = run(kind, wanted, bases, Path(work), args.show)
                faults += sum(n for verdict, n in found.items() if verdict not in RIGHT)
    print(f"{faults} faults, {time.monotonic() - began:.0f} s")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
