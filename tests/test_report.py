"""An --out folder: another run in it is refused or goes whole, what others put there stays; what is written is said."""
from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import fails
from minibd import cli
from minibd.report import check_free, is_run_file, whole, write_json, write_text


@pytest.fixture
def done() -> cli.Progress:
    """That of a script that runs."""
    token = cli.RUNNING.set(cli.Progress())
    yield cli.progress()
    cli.RUNNING.reset(token)


@pytest.fixture
def out(tmp_path) -> Path:
    """A run's folder, with a stranger's file in it."""
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("result.json", "steps.jsonl", "m.safetensors", "notes.txt"):
        (folder / name).write_text("1")
    return folder


def held(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize("name, is_one", [
    ("result.json", True), ("steps.jsonl", True), ("bert.safetensors", True), ("clean-bert.safetensors", True),
    ("config.json", True), ("receipt.json", True), ("poisoned_ids.txt", True), ("curves-PURE.json", True),
    ("receipt.html", True),
    ("notes.txt", False), ("rows.csv", False), ("result.json.bak", False), (".safetensors", False),
])
def test_which_files_are_a_runs(name, is_one):
    assert is_run_file(name) == is_one


def test_a_folder_with_another_run_is_refused_unless_it_may_go(out, tmp_path):
    line = fails(lambda: check_free(out), f"--out {out}", "another run", "'m.safetensors', 'result.json'",
                 "--overwrite")
    assert "notes" not in line
    check_free(out, overwrite=True)
    check_free(tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    check_free(tmp_path / "mine")


def test_a_run_takes_the_place_of_another_whole(out, done):
    done.written.append("before")
    with whole(out) as draft:
        write_json(draft / "result.json", 2)
        (draft / "other.safetensors").write_text("2")
        assert held(out)["result.json"] == "1" and draft.parent == out.parent
    assert held(out) == {"result.json": "2\n", "other.safetensors": "2", "notes.txt": "1"}
    assert done.written == ["before", str(out / "result.json")] and list(out.parent.iterdir()) == [out]


def test_a_part_of_a_run_takes_the_place_of_that_part(out, done):
    with whole(out, ("steps.jsonl", "notes.txt").__contains__) as draft:
        write_text(draft / "notes.txt", "2")
    assert held(out) == {"result.json": "1", "m.safetensors": "1", "notes.txt": "2"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), KeyError("x")])
def test_a_run_that_fails_leaves_the_other(out, done, error):
    before = held(out)
    with pytest.raises((type(error), ValueError)), whole(out) as draft:
        write_json(draft / "result.json", 2)
        raise error
    assert held(out) == before and done.written == [] and list(out.parent.iterdir()) == [out]


def test_a_word_of_half_a_letter_is_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": "\ud800", "b": "é"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": "\ud800", "b": "é"}


def test_a_run_that_came_into_the_place_meanwhile_is_not_lost(tmp_path, done):
    out = tmp_path / "out"
    check_free(out)

    def put():
        with whole(out) as draft:
            write_json(draft / "result.json", 2)
            out.mkdir(exist_ok=True)      # another run, which ends first
            (out / "result.json").write_text("1\n")

    fails(put, f"--out {out}", "while this one ran", "'result.json'", "--overwrite")
    assert held(out) == {"result.json": "1\n"} and list(tmp_path.iterdir()) == [out]
    check_free(out, overwrite=True)
    done.free.clear()                     # another process's
    put()
    assert held(out) == {"result.json": "2\n"}


def test_a_run_may_write_twice(tmp_path, done):
    check_free(tmp_path / "out")
    for n in (1, 2):
        with whole(tmp_path / "out") as draft:
            write_json(draft / "result.json", n)
    assert held(tmp_path / "out") == {"result.json": "2\n"}


def test_a_run_of_names_of_its_own_is_refused_by_those_alone(out):
    check_free(out, among=("lm.safetensors",))
    fails(lambda: check_free(out, among=("m.safetensors", "x")), "another run ('m.safetensors')")
