"""The victims of a grid: scripts that are started as parts of another, and what attack.py leaves in a folder."""
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from minibd.cli import PART_OF

SCRIPTS = Path(__file__).parents[2] / "scripts"


def part(script: str, words: Sequence[str], of: str, *, threads: str | None = None) -> int:
    """Run `script` of scripts/ with the flags `words` as a part of the script `of`, which speaks for it; its exit
    status. threads: how many it computes on; default as many as this process."""
    own = {PART_OF: of} | ({"OMP_NUM_THREADS": threads} if threads else {})
    return subprocess.run([sys.executable, str(SCRIPTS / script), *words], env={**os.environ, **own}).returncode


def is_made(out: Path) -> bool:
    """Whether attack.py has ended in the folder `out`."""
    return (out / "attack.json").exists()  # written last


def trained(out: Path, words: Sequence[str], of: str) -> Path:
    """`out`, a victim's folder, which attack.py makes with the flags `words` where it is not there. Raises BadInput
    where that ends early."""
    from minibd.records import BadInput  # imports torch, which --help does without

    if not is_made(out):
        if code := part("attack.py", [f"--out={out}", "--overwrite", *words], of):
            raise BadInput(f"{out.name}: attack.py ended with status {code} (its own line is above)")
    return out


def model_in(victim: Path, clean: bool = False) -> Path:
    """The checkpoint in a victim's folder, or that of the clean twin that attack.py --twin leaves beside it: a folder,
    or a file, whose name is the victim's behind "clean-"."""
    if (victim / "config.json").exists():
        return victim / "clean" if clean else victim
    files = sorted(victim.glob("*.safetensors"), key=lambda path: len(path.name))
    return files[-1 if clean else 0]
