"""The result store: cells are appended as they end, found again after a restart."""
from __future__ import annotations

import json

import pytest

from conftest import fails
from minibd.records import BadInput
from minibd.result_store import ResultStore


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


def test_a_broken_file_is_named(tmp_path):
    path = tmp_path / "cells.jsonl"
    path.write_text("{not json\n")
    with pytest.raises(BadInput, match="cells.jsonl"):
        ResultStore(path)


def test_a_line_that_is_no_cell_is_refused(tmp_path):
    for line in ("[1]", '{"a": 1}', '{"cell": 3}'):
        (tmp_path / "odd.jsonl").write_text(line + "\n")
        fails(lambda: ResultStore(tmp_path / "odd.jsonl"), "odd.jsonl", "no cell")
