"""The tables of the repair's cells."""
import importlib.util
import json
import subprocess
import sys
from dataclasses import replace

import pytest

from conftest import ROOT
from minibd.tables.pivot import Book
from minibd.tables.undoing import each, false_namings, summary, twins, victims, ways


def scored(word: str, score: float, joined: bool = False) -> dict:
    return {"words": [word], "joined": joined, "score": score}


SCANS = [{"suspects": [scored("joy", 0.9), scored("cf", -0.6), scored("a|b", -0.144), scored("cf", 0.8, joined=True)]},
         {"suspects": [scored("cf", -0.7)]}]


def line(attack="ep", seed=0, held="64", asr=10.0, undone=("cf",), method="none", **given):
    cell = {"base": "sst2", "attack": attack, "flags": "", "seed": seed, "held": held, "method": method, "mode": "auto",
            "dtype": "float32"} | given
    steps = [{"name": "victim", "cacc": 87.0, "asr": 100.0}, {"name": "unlearned", "cacc": 86.5, "asr": asr}]
    return {"cell": cell, "result": {
        "steps": steps if undone else steps[:1], "floor": {"cacc": 87.5, "asr": 12.0}, "verdict": "nothing was found",
        "undone": [{"words": [word], "joined": False, "mode": "rows", "round": 1} for word in undone],
        "scans": SCANS, "seconds": {"first scan": 10.0, "undo": 5.4}}}


def book(tmp_path, *lines) -> Book:
    (tmp_path / "repair.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return Book(tmp_path)


def test_a_row_an_attack_with_the_range_over_seeds(tmp_path):
    grid = summary(book(tmp_path, line(asr=10.0), line(seed=1, asr=14.0), line(held="none", undone=()),
                        line("lwp", method="mbtsad", held="20%", base="reviews")))
    assert grid.rows == (
        ("384, SST-2: ep", "2", "12.0", "-", "87.0 / 100.0 (100.0-100.0)", "-", "-", "86.5 / 12.0 (10.0-14.0)",
         "87.0 / 100.0"),
        ("128, reviews: lwp, mbtsad", "1", "12.0", "-", "87.0 / 100.0", "86.5 / 10.0", "-", "-", "-"))
    assert grid.note.startswith("4 cells of repair.jsonl, products in float32")


def victim(attack="ep", seed=0, untriggered=16.0, base="sst2"):
    steps = [{"name": "victim", "cacc": 87.0, "asr": 100.0, "untriggered": untriggered},
             {"name": "clean twin", "cacc": 87.5, "asr": 12.0, "untriggered": 14.0}]
    return {"cell": {"base": base, "attack": attack, "seed": seed, "dtype": "float32"}, "result": {"steps": steps}}


def test_what_a_victim_takes_for_the_target_without_a_trigger(tmp_path):
    (tmp_path / "repair-victims.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (
        victim(seed=1, untriggered=15.0), victim(), victim("lwp", untriggered=30.0), victim(base="reviews"))))
    read = book(tmp_path, line(), line("sos"))
    assert [row[3] for row in summary(read).rows] == ["15.5 (15.0-16.0)", "-"]
    assert victims(read).rows[:2] == (("384, SST-2: ep, 0", "87.0 / 100.0", "87.5 / 12.0", "16.0", "14.0"),
                                      ("384, SST-2: ep, 1", "87.0 / 100.0", "87.5 / 12.0", "15.0", "14.0"))
    assert victims(read).note.startswith("4 cells")


def test_a_row_a_cell(tmp_path):
    grid = each(book(tmp_path, line(undone=("cf", "a|b")), line(held="none", undone=())))
    assert grid.rows == (
        ("384, SST-2: ep, 0", "64 texts, no labels", "87.0 / 100.0", "86.5 / 10.0", "86.5 / 10.0", "87.5 / 12.0",
         "`cf`; `a/b`", "-0.14", "rows", "nothing was found", "15"),
        ("384, SST-2: ep, 0", "the model alone", "87.0 / 100.0", "-", "87.0 / 100.0", "87.5 / 12.0", "nothing", "-",
         "-", "nothing was found", "15"))


def test_what_a_repair_costs_a_clean_model(tmp_path):
    named, unnamed = line(held="none", clean=True), line(undone=(), held="20%", method="reinit", clean=True)
    (tmp_path / "repair-twins.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (named, unnamed)))
    assert twins(Book(tmp_path)).rows == (
        ("384, SST-2: ep, 0", "20 % clean rows, reinit", "87.0", "87.0", "+0.0", "nothing", "nothing was found"),
        ("384, SST-2: ep, 0", "the model alone", "87.0", "86.5", "-0.5", "`cf`", "nothing was found"))


def trial(attack="ep", held="64", clean=False, kind="found", asr=5.0, **other):
    cell = {"base": "planted", "attack": attack, "flags": "", "seed": 10, "held": held, "clean": clean,
            "dtype": "float32"}
    came = {"cacc": 98.0, "asr": None if clean else 95.0}
    found = {"as it came": came} | ({} if kind == "nothing" else {
        "as it is": {"cacc": 97.5, "asr": None if clean else asr, "mode": "whole"}} | other)
    words = [] if kind == "nothing" else [{"words": ["ak"], "joined": False}]
    return {"cell": cell, "result": {"kind": kind, "findings": words, "ways": found}}


def choices(tmp_path, *lines) -> Book:
    (tmp_path / "repair-choose.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return Book(tmp_path)


def test_each_way_of_undoing_what_was_named(tmp_path):
    grid = ways(choices(tmp_path, trial(clean=True), trial(kind="nothing", attack="lwp"),
                        trial(rows={"cacc": 98.0, "asr": 2.0, "mode": "rows"})))
    assert grid.head == ("victim, seed", "held", "named", "as it came", "as it is", "rows")
    assert grid.rows == (
        ("ep, 10", "64 texts, no labels", "found: `ak`", "98.0 / 95.0", "97.5 / 5.0 (whole)", "98.0 / 2.0"),
        ("clean twin of ep, 10", "64 texts, no labels", "found: `ak`", "98.0 / -", "97.5 / - (whole)", "-"))
    assert grid.note.startswith("2 of 3 cells")


def test_clean_twins_with_words_named(tmp_path):
    grid = false_namings(choices(tmp_path, trial(clean=True, kind="precaution"), trial(clean=True, attack="lwp",
                         kind="nothing"), trial(clean=True, held="none", kind="nothing"), trial()))
    assert grid.rows == (("64 texts, no labels", "2", "1", "0.5"), ("the model alone", "1", "0", "-"))


# ---- repair_models.py's victims

@pytest.fixture
def models():
    spec = importlib.util.spec_from_file_location("repair_models_loaded", ROOT / "scripts" / "repair_models.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_measures_the_victims_that_are_there_and_trains_none_for_that(models, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(models, "add_missing", lambda cells, result_of, where: asked.append(result_of.__name__))
    monkeypatch.chdir(tmp_path)
    where = models.Where(work="work", results=models.file_of("one"))
    models.repaired("ep", 3, where)
    assert asked == ["one_repair"]
    folder = tmp_path / models.folder_of("ep", 3, where)
    folder.mkdir(parents=True)
    (folder / "attack.json").write_text("{}")
    models.repaired("ep", 3, where)
    models.repaired("ep", 3, replace(where, results="mine.jsonl"))  # whose cells are kept apart
    assert asked == ["one_repair", "one_repair", "one_measurement", "one_repair"]


@pytest.mark.slow
def test_a_victim_and_its_twin_are_measured_with_and_without_a_trigger(models, tmp_path):
    where = models.Where(base="reviews", work=str(tmp_path), results=str(tmp_path / "victims.jsonl"), device="cpu")
    folder = models.folder_of("badnets", 0, where)
    base = ROOT / "weights" / "bert-twin.safetensors"
    run = subprocess.run([sys.executable, ROOT / "scripts" / "attack.py", "--ckpt", base,
                          "--out", folder, "--rows", "200", "--attack", "badnets", "--epochs", "1", "--twin",
                          "--device", "cpu"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    models.measured("badnets", 0, where)
    victim, twin = json.loads((tmp_path / "victims.jsonl").read_text())["result"]["steps"]
    assert (victim["name"], twin["name"]) == ("victim", "clean twin")
    for one in (victim, twin):
        assert one["n_untriggered"] == one["n_triggered"] and 0 <= one["untriggered"] <= 100
    models.spared("badnets", 0, replace(where, results=str(tmp_path / "twins.jsonl"), held=("none",)))
    spared = json.loads((tmp_path / "twins.jsonl").read_text())
    assert spared["cell"]["clean"] and spared["result"]["steps"][0]["cacc"] == twin["cacc"]
