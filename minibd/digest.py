"""The sha256 of a file, by which checkpoints and result cells know what they were made from."""
from __future__ import annotations

import hashlib
from pathlib import Path

from minibd.lines import one_line
from minibd.records import BadInput
from minibd.regular import open_regular

CHUNK = 1 << 20  # bytes that are read at a time


def file_digest(file: Path) -> str:
    """In hexadecimal. Raises BadInput."""
    digest = hashlib.sha256()
    with open_regular(file) as opened:
        try:
            while chunk := opened.read(CHUNK):
                digest.update(chunk)
        except OSError as error:
            raise BadInput(f"{file} cannot be read ({one_line(error)}): save it again") from None
    return digest.hexdigest()
