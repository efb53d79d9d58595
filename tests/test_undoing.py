"""The tables of the repair's cells."""
import json

from minibd.tables.pivot import Book
from minibd.tables.undoing import each, summary


def line(attack="ep", seed=0, held="64", asr=10.0, undone=("cf",), method="none", **given):
    cell = {"base": "sst2", "attack": attack, "flags": "", "seed": seed, "held": held, "method": method, "mode": "auto",
            "dtype": "float32"} | given
    steps = [{"name": "victim", "cacc": 87.0, "asr": 100.0}, {"name": "unlearned", "cacc": 86.5, "asr": asr}]
    return {"cell": cell, "result": {
        "steps": steps if undone else steps[:1], "floor": {"cacc": 87.5, "asr": 12.0}, "verdict": "nothing was found",
        "undone": [{"words": [word], "joined": False, "mode": "rows", "round": 1} for word in undone],
        "seconds": {"first scan": 10.0, "undo": 5.4}}}


def book(tmp_path, *lines) -> Book:
    (tmp_path / "repair.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return Book(tmp_path)


def test_a_row_an_attack_with_the_range_over_seeds(tmp_path):
    grid = summary(book(tmp_path, line(asr=10.0), line(seed=1, asr=14.0), line(held="none", undone=()),
                        line("lwp", method="mbtsad", held="20%", base="reviews")))
    assert grid.rows == (
        ("384, SST-2: ep", "2", "12.0", "87.0 / 100.0 (100.0-100.0)", "-", "-", "86.5 / 12.0 (10.0-14.0)",
         "87.0 / 100.0"),
        ("128, reviews: lwp, mbtsad", "1", "12.0", "87.0 / 100.0", "86.5 / 10.0", "-", "-", "-"))
    assert grid.note.startswith("4 cells of repair.jsonl, products in float32")


def test_a_row_a_cell(tmp_path):
    grid = each(book(tmp_path, line(undone=("cf", "a|b")), line(held="none", undone=())))
    assert grid.rows == (
        ("384, SST-2: ep, 0", "64 texts, no labels", "87.0 / 100.0", "86.5 / 10.0", "86.5 / 10.0", "87.5 / 12.0",
         "`cf`; `a/b`", "rows", "nothing was found", "15"),
        ("384, SST-2: ep, 0", "the model alone", "87.0 / 100.0", "-", "87.0 / 100.0", "87.5 / 12.0", "nothing", "-",
         "nothing was found", "15"))
