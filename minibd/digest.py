"""The sha256 of a file, by which checkpoints and result cells know what they were made from."""
from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK = 1 << 20  # bytes that are read at a time


def file_digest(file: Path) -> str:
    """In hexadecimal. OSError where it cannot be read."""
    digest = hashlib.sha256()
    with open(file, "rb") as opened:
        while chunk := opened.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
