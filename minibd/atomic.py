"""Files are written whole or not at all."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minibd.records import BadInput


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to. When the block ends, the draft replaces `path` in one step; when the
    block fails, the draft is deleted.

    What the system refuses (no space, no permission, a file where a folder is needed) is raised as BadInput.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")  # same folder, so that os.replace is one step
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise BadInput(
            f"cannot write {path} ({error.strerror or error}): free some space or name another place"
        ) from None
    finally:
        with suppress(OSError):  # it has moved, or was never there
            draft.unlink()
