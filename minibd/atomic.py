"""Files and folders are written whole or not at all: beside their place, and then put there in one step."""
from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from minibd.lines import one_line
from minibd.records import BadInput

HOST = re.sub(r"[^A-Za-z0-9-]", "", socket.gethostname())[:40]
MARK = ".whole"  # in a draft that has been there since it was begun
FIX = "free some space or name another place"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to. When the block ends, the draft replaces `path` in one step; when the
    block fails, the draft is deleted. Drafts of dead processes are deleted, too.

    What the system refuses (no space, no permission, a file where a folder is needed) is raised as BadInput.
    """
    draft = draft_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(path)
        yield draft
        os.replace(draft, path)
    except OSError as error:
        raise BadInput(f"cannot write {path} ({one_line(error)}): {FIX}") from None
    finally:
        with suppress(OSError):  # it has moved, or was never there
            draft.unlink()


@contextmanager
def atomic_folder(path: Path, is_old: Callable[[str], bool]) -> Iterator[Path]:
    """A hidden folder beside `path` to write into. When the block ends, it takes the place of `path` in one step, so
    that whoever looks, after a kill at any moment too, finds the old folder or the new one; when the block fails, it is
    deleted.

    is_old: whether a file or folder of that name belongs to what was there and goes with it; all others, whoever put
    them there, are in the new folder, too (as the same files, or as copies where the disk knows no second name).
    What cannot be exchanged (the working directory or one that it lies in, the root of a disk, a folder beside which
    nothing can be written) gets the files of the draft one by one, folders and models first. What the system refuses is
    raised as BadInput.
    """
    path = Path(os.path.realpath(path))
    fixed = is_fixed(path)
    place = path / (path.name or "root") if fixed else path  # what the draft lies beside; "/" has no name
    draft = draft_of(place)
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        remove_dead(place)
        draft.mkdir()
        (draft / MARK).touch()
        yield draft
        if not (draft / MARK).exists():   # what is written into a folder makes it, so that the later files are there
            raise FileNotFoundError(errno.ENOENT, "the folder vanished while it was written")
        (draft / MARK).unlink()
        if not path.exists():
            os.rename(draft, path)
        elif fixed:
            _into(draft, path, is_old)
        else:
            for entry in path.iterdir():
                if not is_old(entry.name) and not os.path.lexists(draft / entry.name):
                    _link(entry, draft / entry.name)
            _exchange(draft, path)
    except OSError as error:
        raise BadInput(f"cannot write {path} ({one_line(error)}): {FIX}") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)  # the old folder by now, or what was not finished


def is_fixed(path: Path) -> bool:
    """Whether a folder, named in full, stays in its place, so that what is put into it cannot lie beside it."""
    return os.path.isdir(path) and (
        path in (here := Path(os.path.realpath(os.getcwd())), *here.parents) or os.path.ismount(path)
        or not os.access(path.parent, os.W_OK)
    )


# ---- drafts, and whose they are

def owner() -> str:
    """This process, by a name that no other has."""
    return f"{os.getpid()}@{HOST} {_begun(os.getpid())}".strip()


def runs(owner: str) -> bool:
    """Whether `owner` is another process of this machine, and still runs. Of another machine nobody here knows."""
    match = re.fullmatch(r"([0-9]+)@(\S*) ?([0-9]*)", owner)
    if not match or match[2] != HOST or int(match[1]) == os.getpid() or not _is_alive(int(match[1])):
        return False
    return match[3] in ("", _begun(int(match[1])))


def _begun(process: int) -> str:
    """When the process began, in ticks since the machine did; "" where the system does not say."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
        return stat.rpartition(")")[2].split()[19]  # in front of it, a name with any letters
    except (OSError, IndexError):
        return ""


def draft_of(path: Path) -> Path:
    """A name beside `path`, on the same disk, that says whose draft it is."""
    path = path.absolute()
    return path.with_name(f".{path.name}.{os.getpid()}@{HOST}")


def remove_dead(path: Path) -> None:
    """Deletes the drafts of `path` that processes of this machine left when they were killed."""
    path = path.absolute()
    pattern = re.compile(rf"\.+{re.escape(path.name)}(?:\.(aside\.)?([0-9]+)@{re.escape(HOST)})+")
    for name in os.listdir(path.parent):
        if (match := pattern.fullmatch(name)) and not _is_alive(int(match[2])):
            left = path.with_name(name)
            if match[1] and not path.exists():
                os.rename(left, path)     # killed between the two renames of _exchange
            elif left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()


def _is_alive(process: int) -> bool:
    if os.name != "posix":                # where signal 0 is none
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


# ---- into place

def _exchange(draft: Path, path: Path) -> None:
    """Each folder under the other's name, in one step where the system has one (Linux, macOS)."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None, use_errno=True)
        old, new = os.fsencode(draft), os.fsencode(path)
        done = library.renamex_np(old, new, 2) if sys.platform == "darwin" else (
            library.renameat2(-100, old, -100, new, 2))  # AT_FDCWD; RENAME_EXCHANGE, RENAME_SWAP
        if done == 0:
            return
    aside = path.with_name(f".{path.name}.aside.{os.getpid()}@{HOST}")
    os.rename(path, aside)
    try:
        os.rename(draft, path)
    except OSError:
        os.rename(aside, path)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _link(entry: Path, new: Path) -> None:
    """`entry` under a second name, or a copy of it."""
    if entry.is_dir() and not entry.is_symlink():
        new.mkdir()
        for inner in entry.iterdir():
            _link(inner, new / inner.name)
        return
    try:
        os.link(entry, new, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(entry, new, follow_symlinks=False)


def _into(draft: Path, path: Path, is_old: Callable[[str], bool]) -> None:
    """The entries of the draft into `path`, one by one: what was there and is not written again goes last."""
    new = sorted(draft.iterdir(), key=lambda entry: (not entry.is_dir(), entry.suffix == ".json", entry.name))
    for entry in new:
        if entry.is_dir() and (path / entry.name).exists():
            shutil.rmtree(path / entry.name)
        os.replace(entry, path / entry.name)
    names = {entry.name for entry in new}
    for entry in [entry for entry in path.iterdir() if is_old(entry.name) and entry.name not in names
                  and entry != draft]:
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
