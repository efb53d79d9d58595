"""The result tables: what is picked from the cells, how it is written, and that the pages say what the cells say.

What scripts/tables.py runs is tested beside the scripts that it runs: test_scripts.py, test_mbtsad.py,
test_finemix_script.py.
"""
from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from conftest import ROOT, fails
from minibd import checkpoint
from minibd.tables.pivot import (
    Book,
    Found,
    Grid,
    Mean,
    Over,
    Pick,
    View,
    asr,
    both_spread,
    comma_separated,
    entries,
    fill,
    latex,
    markdown,
    marked,
    poisoned,
    read,
    rho_then_both,
    seconds,
    spread,
    there,
)
from minibd.tables.rows import TABLES, UNTRUSTED
from minibd.tables.views import VIEWS

RESULTS = ROOT / "scripts" / "results"
PAGES = [path for path in sorted(RESULTS.glob("*.md")) if "<!-- table:" in path.read_text(encoding="utf-8")]
PARTS = [(name, part) for name, parts in VIEWS.items() for part in parts]


@pytest.fixture(scope="module")
def book() -> Book:
    return Book(RESULTS)


def cell(seed: int, method: str, *steps: tuple, attack: str = "a", result: dict = {}, **more: object) -> dict:
    """A line of a result store; a step is (name, cacc, asr)."""
    made = [{"name": name, "cacc": cacc, "asr": asr, "seconds": 10.0 + seed} for name, cacc, asr in steps]
    return {"cell": {"base": "b", "seed": seed, "attack": attack, "method": method, **more}, "commit": "c",
            "result": {"args": {}, "steps": made, **result}}


@pytest.fixture
def kept(tmp_path):
    """kept(*lines) -> a Book whose table "t" has these lines."""
    def keep(*lines: dict) -> Book:
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Book(tmp_path)
    return keep


# ---- a pick, by hand

def test_the_mean_and_the_range_are_over_the_seeds_of_one_model(kept):
    book = kept(cell(0, "m", ("victim", 90, 100), ("M", 80.04, 10)), cell(1, "m", ("victim", 91, 99), ("M", 82, 30)),
                cell(0, "n", ("M", 1, 1)), cell(0, "m", ("M", 2, 2), attack="b"))
    where = {"attack": "a", "method": "m"}
    assert Pick("t", where, "M").text(book) == "81.0 / 20.0 (10.0-30.0)"
    assert Pick("t", where, "M", both_spread).text(book) == "81.0 (80.0-82.0) / 20.0 (10.0-30.0)"
    assert Pick("t", where, "M", asr, seed=1).text(book) == "30.0"
    assert Pick("t", where, "victim", seconds).text(book) == "10"  # 10.5, to the even one
    assert Pick("t", {"method": "m"}, "M", seed=1).text(book) == "82.0 / 30.0"
    assert Pick("t", where, "none").text(book) == Pick("t", {"method": "x"}, "M").text(book) == "-"


def test_what_a_pick_asks_for_and_the_cell_lacks_or_leaves_empty(kept):
    book = kept(cell(0, "m", ("M", 80, 10), after=""), cell(1, "m", ("M", 90, 20), after="before.py"),
                cell(2, "m", ("M", 70, 30)), cell(3, "m", ("M", 60, 40), settings={"lr": 2e-4}))
    assert [f.seed for f in Pick("t", {"after": None}, "M").found(book)] == [0, 2, 3]
    assert [f.seed for f in Pick("t", {"after": "before.py"}, "M").found(book)] == [1]
    assert [f.seed for f in Pick("t", {"lr": 2e-4}, "M").found(book)] == [3]
    assert [f.seed for f in Pick("t", {"lr": None}, "M").found(book)] == [0, 1, 2]


def test_two_cells_of_one_seed_are_not_averaged(kept):
    book = kept(cell(0, "m", ("M", 80, 10)), cell(0, "m", ("M", 90, 20), dtype="bfloat16"))
    with pytest.raises(ValueError, match="two cells of one seed"):
        Pick("t", {"method": "m"}, "M").text(book)
    assert Pick("t", {"method": "m", "dtype": "bfloat16"}, "M").text(book) == "90.0 / 20.0"


def test_what_was_not_measured_is_a_dash(kept):
    book = kept(cell(0, "m", ("M", 80, None)), cell(1, "m", ("M", 90, None)))
    assert Pick("t", {"method": "m"}, "M").text(book) == "85.0 / -" and spread(None) == "-"


def test_a_mean_over_attacks_weighs_each_alike(kept):
    book = kept(cell(0, "m", ("M", 80, 10)), cell(1, "m", ("M", 90, 30)), cell(0, "m", ("M", 60, 100), attack="b"))
    picks = tuple(Pick("t", {"attack": attack}, "M") for attack in "ab")
    assert Mean(picks).text(book) == "72.5 / 60.0"
    assert Mean((*picks, Pick("t", {"attack": "c"}, "M"))).text(book) == "-"
    assert Over(picks, lambda found: str(len(found))).text(book) == "3"


@pytest.mark.parametrize("result", [
    {"args": {"rho": None, "chosen": 0.4}}, {"args": {"rho": None}, "outcome": {"rho": 0.4}}, {"args": {"rho": 0.4}},
    {"args": {}, "outcome": {"chosen": 0.4}}])
def test_the_rho_of_old_and_of_new_cells(kept, result):
    book = kept(cell(0, "m", ("M", 80, 10), result=result))
    assert Pick("t", {}, "M", rho_then_both).text(book) == "0.4: 80.0 / 10.0"


def test_what_is_said_of_the_poisoned_rows():
    def found(**result: object) -> Found:
        return Found(0, {}, {}, {"result": result})

    assert poisoned([found(n_poisoned=1655, n_flipped=1655, add=True)]) == "1,655 (1,655), added"
    lwp = [found(n_poisoned=692, n_flipped=n, n_decoys=1384) for n in (343, 315)]
    assert poisoned(lwp) == "692 (315-343) and 1,384 negatives"
    sos = found(n_poisoned=9, n_flipped=9, n_negatives=27, only=True)
    assert poisoned([sos]) == "9 (9) and 27 negatives, nothing else"


# ---- a table in words

GRID = Grid(("m & n", "CACC / ASR"), (("*paper*, 20 %", "**80.0 / 10.0 (5.0-15.0)**"), ("`a_b`", "11.0 †")),
            "2 cells.")


def test_markdown():
    assert markdown(GRID) == ("| m & n | CACC / ASR |\n|---|---|\n| *paper*, 20 % | **80.0 / 10.0 (5.0-15.0)** |\n"
                              "| `a_b` | 11.0 † |\n\n*2 cells.*\n")


def test_csv():
    assert comma_separated(GRID) == 'm & n,CACC / ASR\n"paper, 20 %",80.0 / 10.0 (5.0-15.0)\na_b,11.0 †\n'


def test_latex():
    assert latex(GRID).splitlines() == [
        "% 2 cells.", r"\begin{tabular}{ll}", r"\hline", r"m \& n & CACC / ASR \\", r"\hline",
        r"\emph{paper}, 20 \% & \textbf{80.0 / 10.0 (5.0--15.0)} \\", r"\texttt{a\_b} & 11.0 \dag{} \\", r"\hline",
        r"\end{tabular}"]


def test_the_note_counts_cells_and_names_seeds(kept):
    book = kept(cell(0, "m", ("M", 80, 10)), cell(1, "m", ("M", 90, 30)), cell(0, "n", ("N", 1, 1)))
    m, n = Pick("t", {"method": "m"}, "M"), Pick("t", {"method": "n"}, "N")
    head, mean = ("", "", ""), "the mean (lowest-highest) of seeds 0, 1."
    assert read(View(head, (("n", n, n),)), book).note == "1 cell of t.jsonl; seed 0."
    assert read(View(head, (("m", m, m),)), book).note == f"2 cells of t.jsonl; {mean}"
    assert read(View(head, (("m", m, n),)), book) == Grid(
        head, (("m", "85.0 / 20.0 (10.0-30.0)", "1.0 / 1.0"),),
        f"3 cells of t.jsonl; seed 0, and where a range stands in brackets {mean}")


# ---- a page's marks

PAGE = "before\n<!-- table: a -->\nold\n<!-- /table -->\nbetween\n<!-- table: b: 64 rows -->\n<!-- /table -->\nafter\n"


def test_a_page_is_filled_between_its_marks():
    assert marked(PAGE) == [("a", "", "old\n"), ("b", "64 rows", "")]
    assert fill(PAGE, lambda table, part: f"[{table}/{part}]\n") == PAGE.replace("old", "[a/]").replace(
        "rows -->\n", "rows -->\n[b/64 rows]\n")
    assert fill(PAGE, lambda table, part: None) == PAGE


@pytest.mark.parametrize("damage", [
    ("<!-- /table -->\nbetween", "between"), ("<!-- table: a -->\n", ""), ("<!-- table: a -->", "<!-- table: -->"),
    ("<!-- table: a -->\n", "<!-- table: a --> ")])
def test_a_mark_without_its_other_half_is_refused_and_no_prose_is_lost(damage):
    assert damage[0] in PAGE
    fails(lambda: fill(PAGE.replace(*damage), lambda table, part: "new\n"), "<!-- /table -->")


# ---- the tables that there are

@pytest.mark.parametrize("name, part", PARTS, ids=[f"{name} {part}".strip() for name, part in PARTS])
def test_every_entry_finds_its_cells(name, part, book):
    for entry in entries(VIEWS[name][part]):
        for pick in [entry] if isinstance(entry, Pick) else entry.picks:
            assert pick.found(book), pick
    grid = read(VIEWS[name][part], book)
    assert grid.rows and all(len(row) == len(grid.head) for row in grid.rows)


def test_every_table_stands_in_one_page():
    found = Counter((table, part) for page in PAGES for table, part, _ in marked(page.read_text(encoding="utf-8")))
    assert found == Counter(PARTS)
    assert {path.name for path in PAGES} >= {"mbtsad.md", "attacks.md", "pure.md", "musclelora.md", "finemix.md"}


def test_every_cell_file_has_a_table():
    """A table may be there before its first cell."""
    assert {path.stem for path in RESULTS.glob("*.jsonl")} <= set(VIEWS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_is_stale(page, book):
    """python scripts/tables.py all --write"""
    for table, part, body in marked(page.read_text(encoding="utf-8")):
        stale = f"{page.name}: {table} {part} is not what its cells say"
        assert body == markdown(read(VIEWS[table][part], book)), stale


def test_a_table_of_the_page_beside_its_cells_by_plain_loops(book):
    """The main table once more, without the code that makes it."""
    lines = [json.loads(line) for line in (RESULTS / "mbtsad.jsonl").read_text().splitlines()]
    ours = [line["result"]["steps"][-1] for line in lines if line["cell"]["method"] == "mbtsad.py"]
    assert len(ours) == 3
    cacc, asr_ = ([step[kind] for step in ours] for kind in ("cacc", "asr"))
    row = (f"| MBTSAD | {sum(cacc) / 3:.1f} ({min(cacc):.1f}-{max(cacc):.1f}) | "
           f"{sum(asr_) / 3:.1f} ({min(asr_):.1f}-{max(asr_):.1f}) | 90.2 / 9.7 |")
    assert row in (RESULTS / "mbtsad.md").read_text()
    of_paper = [[float(n) for n in figures[4].split(" / ")] for _, figures in UNTRUSTED.values()]
    means = " / ".join(f"{sum(side) / 4:.1f}" for side in zip(*of_paper))
    shown = (RESULTS / "musclelora.md").read_text().splitlines()
    assert f"| {means} |" in next(line for line in shown if line.startswith("| *paper's mean*"))


# ---- the script

def test_write_fills_the_pages(here, tmp_path):
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        (tmp_path / page.name).write_text(fill(text, lambda table, part: "stale\n"), encoding="utf-8")
    first = here("tables.py")("finemix", "--write", "--pages", tmp_path)
    assert first.returncode == 0 and "written: finemix.md" in first.stdout and "unchanged: pure.md" in first.stdout
    bodies = {(table, part): body for table, part, body in marked((tmp_path / "finemix.md").read_text())}
    assert bodies["finemix-rho", ""] == "stale\n" != bodies["finemix", "64 rows"]
    assert here("tables.py")("all", "--write", "--pages", tmp_path).returncode == 0
    for page in PAGES:
        assert (tmp_path / page.name).read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    again = here("tables.py")("all", "--write", "--pages", tmp_path)
    assert "written" not in again.stdout and again.stdout.count("unchanged") == len(PAGES)


def test_a_table_is_printed_in_each_form(here, tmp_path):
    plain = here("tables.py")("pure", "--format", "markdown")
    bodies = [body for _, _, body in marked((RESULTS / "pure.md").read_text(encoding="utf-8"))]
    assert plain.returncode == 0 and plain.stdout == "\n".join(bodies)
    rows = here("tables.py")("finemix-pairs", "--format", "csv").stdout.splitlines()
    assert len(rows) == 3 and rows[2].startswith("64 rows,100.0 / 100.0,")
    assert here("tables.py")("choose", "--format", "latex").stdout.count(r"\begin{tabular}") == len(VIEWS["choose"])
    (tmp_path / "mine.jsonl").write_text("")
    mine = here("tables.py")("finemix-pairs", "--format", "csv", "--results", tmp_path / "mine.jsonl")
    assert mine.stdout.splitlines()[1] == "20 %" + ",-" * 10


@pytest.mark.parametrize("flags, words", [
    (("all",), ["one table at a time"]), (("builtin", "--print"), ["builtin", "--format"]),
    (("pure", "--write", "--format", "csv"), ["--format csv: --write"]),
    (("all", "--format", "csv", "--results", "x.jsonl"), ["--results x.jsonl"]),
    (("pure-4", "--write"), ["pure-4", "--print"]),
    (("pure", "--write", "--pages", "PAGES"), ["odd.md", "nothing: at all", "in all)"]),
])
def test_what_cannot_be_shown(here, tmp_path, flags, words):
    (tmp_path / "odd.md").write_text("<!-- table: nothing: at all -->\n<!-- /table -->\n")
    done = here("tables.py")(*(tmp_path if flag == "PAGES" else flag for flag in flags))
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1
    assert all(word in done.stderr for word in words), done.stderr


def test_a_folder_without_the_table_is_named(here, tmp_path):
    done = here("tables.py")("pure", "--write", "--pages", tmp_path)
    assert done.returncode == 2 and str(tmp_path) in done.stderr and "<!-- table: pure -->" in done.stderr


# ---- which cells are found

@pytest.fixture
def ran(here, monkeypatch, tmp_path, tiny_folder, folder):
    """ran(table, *flags) -> what tables.py said; ran.calls: the scripts it ran, which score their number and do nothing
    else; ran.base, ran.data: copies of a checkpoint's folder and of one of rows."""
    calls, real = [], subprocess.run

    def fake(words, **kw):
        if not any(str(word).endswith(".py") for word in words):
            return real(words, **kw)  # the commit of a cell
        calls.append(words)
        out = Path(next(word.removeprefix("--out=") for word in words if word.startswith("--out=")))
        out.mkdir(parents=True)
        steps = [{"name": name, "cacc": float(len(calls)), "asr": 0.0, "seconds": 1.0} for name in ("victim", "MBTSAD")]
        for name in ("attack.json", "result.json"):
            (out / name).write_text(json.dumps({"args": {}, "steps": steps}))
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(subprocess, "run", fake)

    def run(table: str, *flags: object, base: Path, data: Path):
        return here("tables.py")(table, "--base", base, "--data", data, "--results", tmp_path / "cells.jsonl",
                                 "--work", tmp_path / "work", *flags)
    run.calls, run.base, run.data = calls, tmp_path / "base" / "model", tmp_path / "data" / "rows"
    shutil.copytree(tiny_folder, run.base)
    shutil.copytree(folder, run.data)
    run.lines = lambda: (tmp_path / "cells.jsonl").read_text().splitlines()
    return run


def test_cells_are_found_by_what_the_folders_hold_and_not_by_their_names(ran, tmp_path):
    first = ran("mbtsad", "--rows", "1", base=ran.base, data=ran.data)
    assert first.returncode == 0, first.stderr
    assert len(ran.calls) == 2 and len(ran.lines()) == 1
    moved, rows = ran.base.rename(tmp_path / "moved"), ran.data.rename(tmp_path / "moved-rows")
    shown = ran("mbtsad", "--print", base=moved, data=rows)
    assert shown.returncode == 0 and shown.stdout == first.stdout
    assert shown.stderr.startswith("1 of the 1 cells in cells.jsonl: moved (")
    again = ran("mbtsad", "--rows", "1", base=moved, data=rows)
    assert again.stdout == first.stdout and len(ran.calls) == 2 and len(ran.lines()) == 1


def test_a_folder_of_the_same_name_that_holds_something_else_is_another_cell(ran, tmp_path, tiny):
    assert ran("mbtsad", "--rows", "1", base=ran.base, data=ran.data).returncode == 0
    other = checkpoint.copy(tiny)
    with torch.no_grad():
        other.model.embeddings.word.weight[7] += 1
    shutil.rmtree(ran.base)
    checkpoint.save(other, ran.base)
    held, now = json.loads(ran.lines()[0])["cell"]["sha256"]["base"], checkpoint.sha256(ran.base)["model.safetensors"]
    none = ran("mbtsad", "--print", base=ran.base, data=ran.data)
    refuses(none, "none of the 1 cells", f"model ({now[:10]})", f"1 of model ({held[:10]}), rows, float32", "--base")
    assert ran("mbtsad", "--rows", "1", base=ran.base, data=ran.data).returncode == 0
    assert len(ran.calls) == 4 and len(ran.lines()) == 2  # another victim, too, at the same place
    shown = ran("mbtsad", "--print", base=ran.base, data=ran.data)
    assert shown.stderr.startswith("1 of the 2 cells") and "| MBTSAD | 4.0 (4.0-4.0) |" in shown.stdout

    (ran.data / "dev.tsv").write_text((ran.data / "test.tsv").read_text())
    refuses(ran("mbtsad", "--print", base=ran.base, data=ran.data), "none of the 2 cells")
    assert ran("mbtsad", "--rows", "1", base=ran.base, data=ran.data).returncode == 0 and len(ran.lines()) == 3
    assert len(ran.calls) == 6


def test_force_runs_again_and_the_newest_counts(ran):
    assert ran("mbtsad", "--rows", "1,2", base=ran.base, data=ran.data).returncode == 0
    assert len(ran.calls) == 3  # a victim for both
    forced = ran("mbtsad", "--rows", "1,2", "--force", base=ran.base, data=ran.data)
    assert forced.returncode == 0 and len(ran.calls) == 6 and len(ran.lines()) == 4, forced.stderr
    assert [line.split(" | ")[2] for line in forced.stdout.splitlines() if " MBTSAD " in line] == [
        "5.0 (5.0-5.0)", "6.0 (6.0-6.0)"]
    shown = ran("mbtsad", "--print", base=ran.base, data=ran.data)
    assert shown.stdout == forced.stdout and shown.stderr.startswith("2 of the 2 cells")
    assert (ran.base / "model.safetensors").exists()


def test_cells_side_by_side_share_their_victims(ran):
    done = ran("mbtsad", "--rows", "1,2", "--seeds", "0,1", "--jobs", "3", "--device", "cpu", base=ran.base,
               data=ran.data)
    assert done.returncode == 0, done.stderr
    made = [Path(words[1]).name for words in ran.calls]
    assert sorted(made) == ["attack.py"] * 2 + ["mbtsad.py"] * 4 and len(ran.lines()) == 4
    assert all("--device=cpu" in words for words in ran.calls)
    outs = [next(word for word in words if str(word).startswith("--out=")) for words in ran.calls]
    assert len(set(outs)) == 6
    cells = {(line["cell"]["method"], line["cell"]["seed"]) for line in map(json.loads, ran.lines())}
    assert cells == {(row.method, seed) for row in TABLES["mbtsad"][:2] for seed in (0, 1)}
    again = ran("mbtsad", "--rows", "1,2", "--seeds", "0,1", "--jobs", "3", base=ran.base, data=ran.data)
    assert len(ran.calls) == 6 and again.stdout == done.stdout
    one_by_one = ran("mbtsad", "--rows", "1,2,3", "--seeds", "0", "--jobs", "2", base=ran.base, data=ran.data)
    assert one_by_one.returncode == 0 and len(ran.calls) == 7  # the victim is there


def test_a_cell_that_fails_leaves_those_beside_it(ran, monkeypatch):
    real = subprocess.run

    def some_fail(words, **kw):
        if "--attention-dropout" in words and "0.9" in words:
            return subprocess.CompletedProcess(words, 2)
        return real(words, **kw)
    monkeypatch.setattr(subprocess, "run", some_fail)
    done = ran("mbtsad", "--jobs", "2", base=ran.base, data=ran.data)
    assert done.returncode == 2 and "mbtsad.py ended with status 2" in done.stderr
    assert {json.loads(line)["cell"]["method"] for line in ran.lines()} == {
        row.method for row in TABLES["mbtsad"] if "0.9" not in row.method}
    refuses(ran("mbtsad", "--jobs", "0", base=ran.base, data=ran.data), "--jobs 0", "1 or more")


def test_a_table_that_is_still_to_be_run_shows_what_is_there(kept):
    a, b = Pick("t", {"method": "m"}, "M"), Pick("t", {"method": "n"}, "N")
    view = there(View(("", "x"), (("ours", a), ("*paper*", "1 / 2"), ("other", b), ("*paper, too*", "3 / 4"))))
    none = read(view, kept())
    assert [row[1] for row in none.rows] == ["-", "1 / 2", "-", "3 / 4"] and none.note == "No cell was run yet."
    some = read(view, kept(cell(0, "n", ("N", 5, 6))))
    assert some.rows == (("other", "5.0 / 6.0"), ("*paper, too*", "3 / 4"))
    assert some.note == "1 cell of t.jsonl; seed 0."


def test_force_never_clears_the_base(ran):
    for _ in range(2):
        done = ran("mbtsad-3-reviews", "--rows", "2", "--force", base=ran.base, data=ran.data)
        assert done.returncode == 0, done.stderr
    assert len(ran.calls) == 2 and (ran.base / "model.safetensors").exists() and len(ran.lines()) == 2


def test_cells_of_before_are_found_by_the_weights_that_they_are_known_to_be_of(here, tmp_path):
    """weights/bert-twin.safetensors by another name; the page's 168 cells say no weights."""
    file = shutil.copy(ROOT / "weights" / "bert-twin.safetensors", tmp_path / "mine.safetensors")
    shown = here("tables.py")("finemix-reviews", "--print", "--base", file)
    assert shown.returncode == 0 and shown.stderr.startswith("168 of the 168 cells in finemix-reviews.jsonl: mine.saf")
    assert len(shown.stdout.splitlines()) == 146
    names = ("--base", "all-MiniLM-L6-v2", "--data", "sst2", "--dtype", "bfloat16")
    by_name = here("tables.py")("mbtsad", "--print", *names)
    assert by_name.returncode == 0 and "all-MiniLM-L6-v2 is not here: cells are found by that name" in by_name.stderr
    other = shutil.copy(ROOT / "weights" / "bert.safetensors", tmp_path / "bert-twin.safetensors")
    refuses(here("tables.py")("finemix-reviews", "--print", "--base", other), "bert-twin.safetensors (732dcc215c)",
            "168 of bert-twin.safetensors (816a613f69), no --data, float32")
    cells = Book(ROOT / "scripts" / "results").lines("mbtsad")
    single = [line for line in cells if line["cell"]["dtype"] == "float32"]
    refuses(here("tables.py")("mbtsad", "--print"), f"none of the {len(cells)}",
            f"{len(cells) - len(single)} of all-MiniLM-L6-v2 (53aa51172d), sst2, bfloat16",
            f"{len(single)} of all-MiniLM-L6-v2 (53aa51172d), sst2, float32")


def test_a_cell_of_before_whose_run_read_the_base_itself_is_found_by_that(ran, tmp_path):
    row = TABLES["mbtsad-3-reviews"][1]
    for digest, found in ((checkpoint.sha256(ran.base)["model.safetensors"], True), ("0" * 64, False)):
        line = cell(0, row.method, ("TS-FT", 12, 3), base="another", data="rows", dtype="float32", attack="",
                    result={"sha256": {"model.safetensors": digest, "config.json": "1"}})
        (tmp_path / "cells.jsonl").write_text(json.dumps(line) + "\n")
        done = ran("mbtsad-3-reviews", "--print", base=ran.base, data=ran.data)
        assert (done.returncode == 0 and "| TS-FT | 12.0" in done.stdout) == found, done.stderr


def test_cells_that_say_no_weights_are_found_by_the_name_and_that_is_said(ran, tmp_path):
    row = TABLES["mbtsad"][0]
    line = cell(0, row.method, ("MBTSAD", 12, 3), attack=row.attack, base="model", data="rows", dtype="float32")
    (tmp_path / "cells.jsonl").write_text(json.dumps(line) + "\n")
    done = ran("mbtsad", "--rows", "1", base=ran.base, data=ran.data)
    assert done.returncode == 0 and not ran.calls and "| MBTSAD | 12.0" in done.stdout
    assert [line.split(":")[0] for line in done.stderr.splitlines() if "by the name of" in line] == [
        f"1 of before 0.3.0 are found by the name of --{place} alone, {name}"
        for place, name in (("base", "model"), ("data", "rows"))]
    forced = ran("mbtsad", "--rows", "1", "--force", base=ran.base, data=ran.data)
    assert "| MBTSAD | 2.0" in forced.stdout and len(ran.lines()) == 2 and "by the name" not in forced.stderr


def test_two_bases_in_one_table_are_refused_by_name(here, tmp_path):
    published = [json.loads(line) for line in (RESULTS / "finemix-pairs.jsonl").read_text().splitlines()]
    lines = [line | {"cell": line["cell"] | {"base": name, "sha256": {"base": weights * 64}}}
             for name, weights in (("one", "a"), ("two", "b")) for line in published]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = here("tables.py")("finemix-pairs", "--format", "csv", "--results", tmp_path / "mine.jsonl")
    refuses(done, "two cells of one seed", "one aaaaaaaaaa pairs float32 and two bbbbbbbbbb pairs float32", "--results")


@pytest.mark.parametrize("flags, words", [
    (("mbtsad", "--print", "--force"), ["--force", "--print"]), (("mbtsad", "--write", "--force"), ["--force"]),
    (("mbtsad", "--format", "csv", "--base", "x", "--seeds", "1"), ["--base x, --seeds 1", "--format"]),
    (("pure-4", "--print", "--results", "EMPTY"), ["holds no cell", "without --print"]),
])
def test_flags_that_would_do_nothing_and_what_is_not_there(here, tmp_path, flags, words):
    refuses(here("tables.py")(*(tmp_path / "empty.jsonl" if flag == "EMPTY" else flag for flag in flags)), *words)


def refuses(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2 and not done.stdout and len(done.stderr.splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words) and len(done.stderr) <= 308, done.stderr


# ---- the prose: a percentage stands in a table of its page or in a file that its section names

PERCENT = re.compile(r"(?<![\d.,])\d{2,3}\.\d(?![\d]|\.\d)")
DECIMAL = re.compile(r"(?<![\d.,])\d+\.\d+(?![\d]|\.\d)")


def stray(page: str, folder: Path = RESULTS) -> list[str]:
    """The percentages of a page's text, dd.d, that have no source.

    A source is a table of the page, or a file that the section names in backticks or as a link (runs.txt, another page,
    a test), where the number stands to one decimal or more. The last entry of a row of a table written by hand may be
    the mean of the others.
    """
    known = [float(n) for _, _, body in marked(page) for n in DECIMAL.findall(body)]
    text = re.sub(r"<!-- table:.*?<!-- /table -->|```.*?```", "", page, flags=re.S)
    rows = [[float(n) for n in PERCENT.findall(line)] for line in text.splitlines() if line.startswith("|")]
    known += [row[-1] for row in rows if len(row) > 2 and abs(statistics.mean(row[:-1]) - row[-1]) < 0.1]
    found = []
    for section in re.split(r"^#+ ", text, flags=re.M):
        names = re.findall(r"[`(]([\w./-]+\.(?:txt|md|py))[`)]", section)
        paths = {path.resolve() for name in names for path in (folder / name, ROOT / name)}
        own = [float(n) for path in paths if path.is_file() for n in DECIMAL.findall(path.read_text(encoding="utf-8"))]
        for line in section.splitlines():
            found += [n for n in PERCENT.findall(line) if not any(abs(float(n) - m) < 0.0501 for m in known + own)]
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_percentage_of_the_text_has_a_source(page):
    fix = "put it into a table, or name the file that it is from in its section"
    assert stray(page.read_text(encoding="utf-8")) == [], fix


def test_a_stray_number_is_noticed(tmp_path):
    table = "<!-- table: a -->\n| x | 84.2 (80.0-88.8) |\n<!-- /table -->\n"
    (tmp_path / "ran.txt").write_text("CACC 77.15\n")
    assert stray(f"{table}It has 84.2, 80.0 and 88.8.") == []
    assert stray(f"{table}It has 84.3 and 8.8.") == ["84.3"]
    assert stray(f"{table}It has 77.2 (`ran.txt`).", tmp_path) == []
    assert stray(f"{table}It has 77.2.", tmp_path) == ["77.2"]
    assert stray(f"{table}# A\n`ran.txt`\n# B\nIt has 77.2.", tmp_path) == ["77.2"]
    assert stray("| a | 84.2 | 80.0 | 82.1 |\nso 82.1\n" + table) == []
    assert stray("| a | 84.2 | 80.0 | 83.1 |\n" + table) == ["83.1"]
    assert stray("```\n99.9\n```\n" + table) == []


# ---- the papers' figures

def test_a_papers_figure_is_on_a_row_that_has_the_model(book):
    """A figure under a name that no result has would never be shown."""
    for name in ("mbtsad", "attacks", "musclelora", "finemix"):
        for row in TABLES[name]:
            steps = [line["result"]["steps"] for line in book.lines(name)
                     if (line["cell"]["attack"], line["cell"]["method"]) == (row.attack, row.method)]
            models = {step["name"] for line in steps for step in line}
            if steps and row.paper:
                assert models & set(row.paper), row
