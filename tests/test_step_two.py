"""The table of what MBTSAD's second step was tried with."""
import json
from dataclasses import asdict, replace

from minibd.mitigations.mbtsad import MBTSAD
from minibd.tables.pivot import Book
from minibd.tables.step_two import steps


def line(settings=MBTSAD(), ckpt="victim-1", student=20.0, clean=300, **plant):
    names = [("planted", 99.0), ("TS-FT", 45.0), *([("MBTSAD", student)] if student else [])]
    return {"cell": {"ckpt": ckpt, "seed": 1, "clean": clean, "plant": plant, "settings": asdict(settings)},
            "steps": [{"name": name, "dev": 85.0, "planted_asr": asr} for name, asr in names]}


def test_a_row_a_cell_with_its_rates_and_what_else_is_not_the_methods_own(tmp_path):
    own = MBTSAD()
    found = [line(replace(own, lr2=1e-3, epochs2=4, student_dropout=False, beta=200.0)),
             line(replace(own, lr2=3.5e-4)), line(replace(own, lr1=1e-3), student=None),
             line(plant_kind="pair", student=30.0)]
    (tmp_path / "mbtsad-step2.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    grid = steps(Book(tmp_path))
    assert grid.rows == (
        ("victim-1", "pair", "85.0 / 99.0", "85.0 / 45.0", "default", "85.0 / 30.0", "default", ""),
        ("victim-1", "rare words", "85.0 / 99.0", "85.0 / 45.0", "default", "85.0 / 20.0", "3.5e-4", ""),
        ("victim-1", "rare words", "85.0 / 99.0", "85.0 / 45.0", "default", "85.0 / 20.0", "1e-3",
         "epochs2 4, student dropout no, beta 200"),
        ("victim-1", "rare words", "85.0 / 99.0", "85.0 / 45.0", "1e-3", "-", "-", ""))
    assert grid.note.startswith("4 cells of mbtsad-step2.jsonl")


def test_a_setting_that_a_cell_lacks_is_told_in_the_others(tmp_path):
    lacks, *others = line(), line(ckpt="victim-2"), line(replace(MBTSAD(), student_dropout=False), ckpt="victim-3")
    del lacks["cell"]["settings"]["student_dropout"], others[0]["cell"]["settings"]["student_dropout"]
    (tmp_path / "mbtsad-step2.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (lacks, *others)))
    assert [row[-1] for row in steps(Book(tmp_path)).rows] == ["", "", "student dropout no"]


def test_the_clean_rows_are_told_where_a_victim_has_others_more_often(tmp_path):
    found = [line(), line(clean=600, student=10.0), line(replace(MBTSAD(), beta=2.0)), line(ckpt="victim-2", clean=900)]
    (tmp_path / "mbtsad-step2.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    assert [(row[0], row[5], row[-1]) for row in steps(Book(tmp_path)).rows] == [
        ("victim-1", "85.0 / 20.0", ""), ("victim-1", "85.0 / 10.0", "600 clean rows"),
        ("victim-1", "85.0 / 20.0", "beta 2"), ("victim-2", "85.0 / 20.0", "")]
