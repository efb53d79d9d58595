#!/usr/bin/env python3
"""The README's result tables: run their cells, continue where an earlier run stopped, print mean and spread over seeds.

    python scripts/tables.py --base MINILM_FOLDER --data SST2_FOLDER --seeds 0,1,2 --dtype bfloat16
    python scripts/tables.py --base weights/bert-twin.safetensors --name reviews --attack-lr 1e-4
    python scripts/tables.py --base MINILM_FOLDER --data SST2_FOLDER --seeds 0 --dtype bfloat16 --mbtsad "--attention-dropout 0.1"

A cell is one seed: attack.py trains a victim on --base and --data, mbtsad.py mends it with its defaults; the seed draws poisoned rows,
clean rows, splits, batches and dropout. Each cell is appended to --results as it ends.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import main, parse, setting


@dataclass(frozen=True, slots=True)
class Table:
    """Which cells"""
    base: str = setting("weights/bert-clean.safetensors", "the pre-trained checkpoint that the victims are trained from")
    data: str = setting("", "folder of rows; without it, those that the base's history names")
    name: str = setting("sst2-minilm", "name of the table among the results")
    seeds: tuple[str, ...] = setting(("0", "1", "2"), "seeds, separated by commas")
    dtype: str = setting("float32", "type of the matrix products in training", choices=("float32", "bfloat16"))
    rate: float = setting(0.1, "poisoned rows as a share of all rows", paper="0.1")
    attack_lr: float = setting(2e-5, "learning rate of the attack")
    attack_epochs: int = setting(3, "passes of the attack")
    mbtsad: str = setting("", "flags for mbtsad.py other than its defaults, in one string, for an ablation")
    results: str = setting("scripts/results/mbtsad.jsonl", "file the cells are appended to")
    work: str = setting("out/tables", "folder of victims and cleaned models")


def run() -> None:
    (table,) = parse(__doc__, Table)

    import json
    import statistics
    import subprocess
    import sys
    from pathlib import Path

    from minibd.cells import Cells
    from minibd.records import BadInput

    here, cells = Path(__file__).parent, Cells(table.results)

    def script(name: str, *more: str, **flags: object) -> None:
        words = [word for flag, value in flags.items() if value != "" for word in (f"--{flag.replace('_', '-')}", str(value))] + [*more]
        if (code := subprocess.run([sys.executable, str(here / name), *words]).returncode) != 0:
            raise BadInput(f"{name} ended with status {code} (its own line is above)")

    rows = []
    for seed in table.seeds:
        cell = {"table": table.name, "base": Path(table.base).name, "attack": "badnets", "rate": table.rate, "seed": int(seed),
                "dtype": table.dtype, "attack_lr": table.attack_lr, "attack_epochs": table.attack_epochs,
                **({"mbtsad": table.mbtsad} if table.mbtsad else {})}
        if cells.get(cell) is None:
            victim, cleaned = (Path(table.work, table.name, f"{kind}-{seed}") for kind in ("victim", "cleaned"))
            if not (victim / "attack.json").exists():  # written last: a victim without it is half made
                script("attack.py", ckpt=table.base, data=table.data, out=victim, seed=seed, dtype=table.dtype, rate=table.rate,
                       lr=table.attack_lr, epochs=table.attack_epochs)
            ckpt = victim / Path(table.base).name if Path(table.base).is_file() else victim
            script("mbtsad.py", *table.mbtsad.split(), ckpt=ckpt, data=table.data, out=cleaned, seed=seed, dtype=table.dtype)
            result = json.loads((cleaned / "result.json").read_text())
            for place in ("ckpt", "data", "out"):  # they say where, not what
                del result["args"][place]
            cells.add(cell, {"result": result})
        rows.append(cells.get(cell)["result"]["steps"])

    print(f"{table.name}: {len(rows)} seeds ({', '.join(table.seeds)}), mean (lowest-highest)")
    for models in zip(*rows):
        cells_of = [f"{kind.upper()} {statistics.mean(v):6.2f} ({min(v):.2f}-{max(v):.2f})"
                    for kind in ("cacc", "asr") for v in [[m[kind] for m in models]]]
        print(f"{models[0]['name']:8} {cells_of[0]}   {cells_of[1]}   {statistics.mean(m['seconds'] for m in models):7.1f} s")


if __name__ == "__main__":
    main(run)
