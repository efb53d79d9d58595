"""atomic_write(): whole or not at all, and what the system refuses is one line."""
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import fails
from minibd.atomic import HOST, atomic_folder, atomic_write, draft_of
from minibd.records import BadInput


def write(path, text="new", error=None):
    with atomic_write(path) as draft:
        draft.write_text(text[:1])
        if error:
            raise error
        draft.write_text(text)


def test_a_file_appears_whole_in_a_folder_that_was_not_there(tmp_path):
    write(tmp_path / "a" / "b.txt")
    assert [f.name for f in (tmp_path / "a").iterdir()] == ["b.txt"] and (tmp_path / "a" / "b.txt").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("mine")])
def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "b.txt"
    path.write_text("old")
    if isinstance(error, OSError):
        fails(lambda: write(path, error=error), str(path), "No space left on device")
    else:
        with pytest.raises(type(error)):
            write(path, error=error)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    fails(lambda: write(tmp_path / "file" / "below.txt"), "below.txt")
    fails(lambda: write(tmp_path / "folder"), "folder")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 2


# ---- folders

def old(name: str) -> bool:
    return name.endswith(".json")


def folder_of(path, **files) -> None:
    path.mkdir()
    for name, text in files.items():
        (path / f"{name}.json").write_text(text)


def held(path) -> dict[str, str]:
    return {str(file.relative_to(path)): file.read_text() for file in sorted(path.rglob("*")) if file.is_file()}


def test_a_folder_takes_the_place_of_another_and_a_strangers_files_stay(tmp_path):
    out = tmp_path / "a" / "out"
    for text in ("1", "2"):
        with atomic_folder(out, old) as draft:
            (draft / f"{text}.json").write_text(text)
            (draft / "both.json").write_text(text)
            assert not (out / f"{text}.json").exists()
        assert held(out) == {f"{text}.json": text, "both.json": text}
    (out / "mine.txt").write_text("mine")
    (out / "deep" / "er").mkdir(parents=True)
    (out / "deep" / "er" / "x.json").write_text("x")
    (out / "link").symlink_to("nowhere")
    before = (out / "mine.txt").stat().st_ino
    with atomic_folder(out, old) as draft:
        (draft / "3.json").write_text("3")
    assert held(out) == {"3.json": "3", "mine.txt": "mine", "deep/er/x.json": "x"} and (out / "link").is_symlink()
    assert (out / "mine.txt").stat().st_ino == before and [f.name for f in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("mine")])
def test_a_folder_that_fails_leaves_the_old_one(tmp_path, error):
    folder_of(tmp_path / "out", a="1")
    with pytest.raises((BadInput, KeyboardInterrupt, ValueError)):
        with atomic_folder(tmp_path / "out", old) as draft:
            (draft / "b.json").write_text("2")
            raise error
    assert held(tmp_path) == {"out/a.json": "1"} and len(list(tmp_path.iterdir())) == 1


def test_without_an_exchange_in_one_step(tmp_path, monkeypatch):
    folder_of(tmp_path / "out", a="1")
    monkeypatch.setattr("ctypes.CDLL", lambda *args, **more: object())  # a system that knows none
    with atomic_folder(tmp_path / "out", old) as draft:
        (draft / "b.json").write_text("2")
    assert held(tmp_path) == {"out/b.json": "2"}


def test_the_working_directory_is_filled_and_not_exchanged(tmp_path, monkeypatch):
    folder_of(tmp_path / "out", a="1", c="1")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.chdir(tmp_path / "out")
    place = (tmp_path / "out").stat().st_ino
    with atomic_folder(Path("."), old) as draft:
        (draft / "b.json").write_text("2")
        (draft / "c.json").write_text("2")
    assert held(tmp_path / "out") == {"b.json": "2", "c.json": "2", "mine.txt": "mine"}
    assert (tmp_path / "out").stat().st_ino == place


def test_the_root_of_all_paths_has_no_name(tmp_path):
    with pytest.raises((KeyError, BadInput)), atomic_folder(Path("/"), old):
        raise KeyError                    # before anything is put there; BadInput: who may not write there
    assert not list(Path("/").glob(f".*{os.getpid()}@{HOST}"))


def test_what_dead_processes_left_goes_and_what_others_left_stays(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".out.{dead.pid}@{HOST}", f"..out.{dead.pid}@{HOST}.{dead.pid}@{HOST}", f".out.{os.getppid()}@{HOST}",
                 f".out.{dead.pid}@elsewhere", f".other.{dead.pid}@{HOST}", ".out.txt"):
        folder_of(tmp_path / name, a="1")
    (tmp_path / f".b.txt.{dead.pid}@{HOST}").write_text("half")
    with atomic_folder(tmp_path / "out", old) as draft:
        (draft / "b.json").write_text("2")
    write(tmp_path / "b.txt")
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted([
        "out", "b.txt", f".out.{os.getppid()}@{HOST}", f".out.{dead.pid}@elsewhere", f".other.{dead.pid}@{HOST}",
        ".out.txt"])
    assert draft_of(tmp_path / "out").parent == tmp_path


def test_a_run_killed_between_two_renames_is_put_back(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder_of(tmp_path / f".out.aside.{dead.pid}@{HOST}", a="1")
    with pytest.raises(ValueError), atomic_folder(tmp_path / "out", old):
        assert held(tmp_path / "out") == {"a.json": "1"}
        raise ValueError
    assert held(tmp_path) == {"out/a.json": "1"}


def test_places_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("mine")

    def put(path):
        with atomic_folder(path, old) as draft:
            (draft / "a.json").write_text("1")

    fails(lambda: put(tmp_path / "file"), "file")
    fails(lambda: put(tmp_path / "file" / "below"), "below")
    fails(lambda: put(tmp_path / ("n" * 300)), "too long")
    assert held(tmp_path) == {"file": "mine"}


@pytest.mark.parametrize("again", [False, True])
def test_a_draft_that_vanished_in_the_middle_is_not_put_in_place_in_part(tmp_path, again):
    """What is written behind it makes the folder again."""
    folder_of(tmp_path / "out", a="1")

    def put():
        with atomic_folder(tmp_path / "out", old) as draft:
            write(draft / "a.json")
            shutil.rmtree(draft)
            if again:
                write(draft / "b.json")

    fails(put, str(tmp_path / "out"), "vanished while")
    assert held(tmp_path) == {"out/a.json": "1"} and len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_another_one_in_it_took_the_place_of_is_the_same(tmp_path):
    """checkpoint.save puts a folder in the place of the draft that it is given."""
    with atomic_folder(tmp_path / "out", old) as draft:
        write(draft / "a.txt")
        with atomic_folder(draft, old) as inner:
            write(inner / "b.json")
    assert held(tmp_path / "out") == {"a.txt": "new", "b.json": "new"}


def test_a_file_that_came_into_the_place_stays(tmp_path):
    def put():
        with atomic_folder(tmp_path / "out", old) as draft:
            write(draft / "a.json")
            (tmp_path / "out").write_text("mine")

    fails(put, "out")
    assert held(tmp_path) == {"out": "mine"}
