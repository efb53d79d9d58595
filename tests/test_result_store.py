"""The result store: cells are appended as they end, found again after a restart."""
from __future__ import annotations

import hashlib
import json

import pytest

from conftest import ROOT, fails
from minibd import checkpoint
from minibd.records import BadInput
from minibd.result_store import PUBLISHED, ResultStore, digests, folder_digest, weights_digest


def test_a_cell_is_found_again_after_a_restart(tmp_path):
    path = tmp_path / "results" / "cells.jsonl"
    first = ResultStore(path)
    assert first.get({"seed": 0, "words": ("a", "b")}) is None
    first.add({"seed": 0, "words": ("a", "b")}, {"asr": 12.5})
    again = ResultStore(path)
    assert again.get({"seed": 0, "words": ("a", "b")})["asr"] == 12.5
    assert again.get({"seed": 1, "words": ("a", "b")}) is None


def test_cells_are_appended_not_rewritten(tmp_path):
    path = tmp_path / "cells.jsonl"
    for seed in range(3):
        ResultStore(path).add({"seed": seed}, {"n": seed})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["cell"]["seed"] for row in rows] == [0, 1, 2] and all("commit" in row for row in rows)


def test_the_newest_line_of_a_cell_counts_and_stands_where_its_first_stood(tmp_path):
    store = ResultStore(tmp_path / "cells.jsonl")
    for n, seed in enumerate((0, 1, 0, 0)):
        store.add({"seed": seed}, {"n": n})
    for found in (store, ResultStore(store.path)):
        assert [row["n"] for row in found.newest] == [3, 1] and found.get({"seed": 0})["n"] == 3
        assert [row["n"] for row in found.rows] == [0, 1, 2, 3]
    assert [json.loads(line)["n"] for line in store.path.read_text().splitlines()] == [0, 1, 2, 3]


def test_a_cell_is_known_by_what_its_folders_hold_and_by_their_names_where_that_is_not_said(tmp_path):
    store, x, y = ResultStore(tmp_path / "cells.jsonl"), {"base": "x" * 64}, {"base": "y" * 64}
    store.add({"base": "model", "seed": 0, "sha256": x}, {"n": 0})
    assert store.get({"base": "elsewhere", "seed": 0, "sha256": x})["n"] == 0
    assert store.get({"base": "model", "seed": 0, "sha256": y}) is None
    assert store.get({"base": "model", "seed": 1, "sha256": x}) is None
    assert store.get({"base": "model", "seed": 0})["n"] == 0 and store.get({"base": "elsewhere", "seed": 0}) is None
    store.add({"base": "old", "data": "rows", "seed": 0}, {"n": 1})
    assert store.get({"base": "old", "data": "rows", "seed": 0, "sha256": x | {"data": "z"}})["n"] == 1
    assert store.get({"base": "old", "data": "other", "seed": 0, "sha256": x | {"data": "z"}}) is None
    # one that says more takes its place
    store.add({"base": "old", "data": "rows", "seed": 0, "sha256": y}, {"n": 2})
    assert [row["n"] for row in ResultStore(store.path).newest] == [0, 2]


def test_a_run_that_read_the_base_itself_says_what_it_was():
    result = {"result": {"sha256": {"model.safetensors": "m" * 64, "config.json": "c" * 64}}}
    for cell, known in (
        ({"attack": "", "method": "mbtsad.py"}, True), ({"attack": "a", "method": "x --at {attack}"}, True),
        ({"attack": "a", "method": "mbtsad.py"}, False), ({"attack": "", "method": "m", "after": "n"}, False),
    ):
        assert digests({"cell": {"base": "mine"} | cell} | result) == ({"base": "m" * 64} if known else {})
    # the published results name checkpoints that are known
    assert digests({"cell": {"base": "bert.safetensors", "attack": "a", "method": ""}})["base"].startswith("732dcc215c")


def test_the_checkpoints_of_the_published_results_are_those_that_their_runs_read():
    results, seen = ROOT / "scripts" / "results", set()
    for path in results.glob("*.jsonl"):
        for row in ResultStore(path).rows:
            cell, read = row["cell"], row.get("result", {}).get("sha256")
            if read and "base" in cell and digests(row) != digests({"cell": cell}):
                raise AssertionError(f"{path.name}: {cell['base']} was {weights_digest(read)}")
            seen |= {cell["base"]} if read and digests(row | {"cell": cell | {"base": "?"}}) else set()
    assert seen == {"all-MiniLM-L6-v2", "bert.safetensors", "mpnet-base", "smollm2-135m"}
    for name in ("bert", "bert-twin", "bert-clean"):
        file = ROOT / "weights" / f"{name}.safetensors"
        assert checkpoint.sha256(file) == {file.name: PUBLISHED[file.name]}


def test_the_digest_of_weights_and_of_rows(tmp_path):
    assert weights_digest({"a.safetensors": "1", "config.json": "2"}) == "1"
    assert weights_digest({"config.json": "2"}) is None
    shards = weights_digest({"b.safetensors": "1", "c.safetensors": "3", "config.json": "2"})
    assert shards == weights_digest({"x.safetensors": "3", "y.safetensors": "1"}) and len(shards) == 64
    for name in ("one", "two"):
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "train.tsv").write_text("a\n")
        (tmp_path / name / "deeper" / "test.tsv").write_text("b\n")
        (tmp_path / name / "notes.md").write_text(name)
    rows = folder_digest(tmp_path / "one", (".tsv",))
    assert rows == folder_digest(tmp_path / "two", (".tsv",)) != folder_digest(tmp_path / "two")
    (tmp_path / "two" / "deeper" / "test.tsv").write_text("c\n")
    assert rows != folder_digest(tmp_path / "two", (".tsv",))
    assert folder_digest("") is folder_digest(tmp_path / "none") is None
    assert folder_digest(tmp_path / "one" / "train.tsv") == hashlib.sha256(b"a\n").hexdigest()


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text("{not json\n")
    with pytest.raises(BadInput, match="cells.jsonl"):
        ResultStore(path)


def test_a_line_that_is_no_cell_is_refused(tmp_path):
    for line in ("[1]", '{"a": 1}', '{"cell": 3}'):
        (tmp_path / "odd.jsonl").write_text(line + "\n")
        fails(lambda: ResultStore(tmp_path / "odd.jsonl"), "odd.jsonl", "no cell")
