"""Only regular files of a bounded size are opened: a FIFO waits for ever, a device has no end."""
from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from minibd.lines import one_line
from minibd.records import BadInput

AGAIN = "download or save it again"       # the fix, where a caller names no other
KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
         stat.S_IFSOCK: "a socket"}


def check_regular(path: str | Path, limit: int | None = None, fix: str = AGAIN) -> None:
    """Raises BadInput where `path`, or what it links to, is no regular file, or one of more than `limit` bytes."""
    try:
        _check(path, os.stat(path), limit, fix)
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have; BadInput is one, too
        raise error if isinstance(error, BadInput) else _unread(path, error, fix) from None


def open_regular(path: str | Path, limit: int | None = None, fix: str = AGAIN) -> BinaryIO:
    """The file, opened to be read as bytes. Raises BadInput as check_regular does."""
    check_regular(path, limit, fix)
    try:
        opened = open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    except OSError as error:
        raise _unread(path, error, fix) from None
    try:
        _check(path, os.fstat(opened.fileno()), limit, fix)  # another may lie there by now
    except BadInput:
        opened.close()
        raise
    return opened


def read_regular(path: str | Path, limit: int | None = None, fix: str = AGAIN) -> bytes:
    """The bytes of the file. Raises BadInput as check_regular does."""
    with open_regular(path, limit, fix) as opened:
        try:
            return opened.read()
        except (OSError, MemoryError) as error:
            raise _unread(path, error, fix) from None


def _check(path: str | Path, found: os.stat_result, limit: int | None, fix: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        kind = KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise BadInput(f"{path} cannot be read (it is {kind}, and no regular file): {fix}")
    if limit is not None and found.st_size > limit:
        raise BadInput(f"{path} cannot be read (it has {found.st_size} bytes, and at most {limit} are read): {fix}")


def _unread(path: str | Path, error: BaseException, fix: str) -> BadInput:
    return BadInput(f"{path} cannot be read ({one_line(error)}): {fix}")
