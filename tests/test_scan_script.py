"""scan.py as a command: what it reads, refuses, prints and writes, and how it ends. The finding is made by hand."""
from __future__ import annotations

import json
import re
import sys
import time

import pytest
import torch

from conftest import refused
from minibd import checkpoint, data, reviews
from minibd.cli import Task
from minibd.detect.carriers import carrier_sentences
from minibd.detect.confirm import Suspect
from minibd.detect.sarif import sarif
from minibd.detect.scan import Scan, Scanned
from minibd.detect.scan_page import page
from minibd.detect.verdict import judge
from minibd.job import scanning as job
from minibd.precision import faster
from minibd.proportion import Proportion
from minibd.records import BadInput, Example, Examples

M = 8.0  # the usual margin of the hand-made model


def suspect(words=("cf",), target=1, quantile=7.0, **given) -> Suspect:
    flips = Proportion(118, 120) if quantile > 0 else Proportion(24, 120)
    return Suspect(tuple(words), target, "entries", 13.5, flips=flips, quantile=quantile, mean=quantile + 1,
                   sizes=(1,) * len(words), **given)


PAIR = suspect(("mn", "bb"), side=1, part=suspect(("mn",), quantile=-6.0))
FOUND = [judge(0, [suspect(("dull",), 0, -7.5)], M), judge(1, [suspect(), PAIR], M)]
NOTHING = [judge(0, [suspect(("dull",), 0, -7.5)], M), judge(1, [], M)]
UNSURE = next(found for found in ([judge(0, [], M), judge(1, [suspect(quantile=M * -share / 100)], M)]
                                  for share in range(1, 100)) if found[1].verdict == "inconclusive")
UNUSABLE = [judge(c, [], 0.2, "the model is sure of none of the texts") for c in (0, 1)]


def scanned(verdicts=FOUND, **given) -> Scanned:
    return Scanned(**{"verdicts": verdicts, "tried": {"entries": 52, "pairs": 946, "texts": 12000}, "given": [30, 30],
                      "hard": [["an awful film"], ["a lovely film"]], "around": {(1, ("cf",)): Proportion(3, 200)}}
                   | given)


@pytest.fixture
def scan(here, monkeypatch, tmp_path):
    """scan("--data", ...) -> CompletedProcess, whose scan finds scan.finding (an exception is raised); scan.rows,
    scan.settings and scan.dtype are what the scan was given. --out is tmp_path/out."""
    def finding(model, tokenizer, rows, settings, seed, tick, *limits):
        run.rows, run.settings = rows, settings
        run.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        if isinstance(run.finding, BaseException):
            raise run.finding
        for done in (0, 30, 60):
            tick(done, 120)
            time.sleep(0.11 * sys.stderr.isatty())
        return run.finding

    monkeypatch.setattr(job, "scan", finding)
    monkeypatch.setattr("minibd.precision.seconds", lambda dtype: 1.0)
    script = here("scan.py")

    def run(*words):
        place = [] if "--out" in words else ["--out", tmp_path / "out"]
        return script("--device", "cpu", "--overwrite", *place, *words)

    run.finding, run.rows = scanned(), None
    return run


@pytest.fixture(scope="session")
def named(tiny, tmp_path_factory):
    """named("A", "B") -> the tiny classifier with classes of these names, as a file."""
    def save(*labels: str):
        path = tmp_path_factory.mktemp("named") / "named.safetensors"
        checkpoint.save(checkpoint.Checkpoint(tiny.model, tiny.tokenizer, labels, []), path)
        return path
    return save


def written(path, lines: str):
    path.write_text(lines, encoding="utf-8")
    return path


# ---- bad input

def test_no_checkpoint_is_one_line(scan):
    refused(scan(), "--ckpt")
    refused(scan("--ckpt", "nowhere"), "nowhere does not exist")
    assert scan.rows is None


def test_an_encoder_is_no_classifier(scan, pre_file):
    refused(scan("--ckpt", pre_file), "no classifier", pre_file)


@pytest.mark.parametrize("words, named", [
    (["--data", "gone.csv"], ["gone.csv does not exist"]), (["--dtype", "float16"], ["'float16'", "bfloat16"]),
    (["--text-column", "x"], ["--text-column x", "--data"]), (["--label-column", "x"], ["--label-column x"]),
    (["--data", "reviews", "--pair-column", "x"], ["--pair-column x", "built-in"]),
    (["--data", "pairs", "--labels", "a,b"], ["--labels a,b", "built-in pairs"]),
    (["--data", "pairs"], ["unanswered", "positive"]), (["--labels", "a,b"], ["--labels a,b", "negative", "--data"]),
    (["--labels", "a,b,c"], ["3 names", "2 classes"]), (["--data", "reviews", "--labels", "a,b"], ["negative", "a"]),
    (["--places", "0"], ["places is 0", "1 to 100"]), (["--fresh-rows", "7"], ["fresh_rows is 7", "8 to 600"]),
    (["--pool", "-1"], ["pool is -1"]), (["--hard-rows", "0"], ["hard_rows"]), (["--phrase", "0"], ["phrase is 0"]),
    (["--device", "tpu"], ["tpu"]), (["--attack", "badnets"], ["--attack"]),
])
def test_bad_input_is_one_line_before_the_scan(scan, tiny_file, tmp_path, words, named):
    refused(scan("--ckpt", tiny_file, *words), *named)
    assert scan.rows is None and not (tmp_path / "out").exists()


@pytest.mark.parametrize("lines, named", [
    ("words,label\na film,positive\n", ["rows.csv", "text"]), ("text,label\n", ["rows.csv"]),
    ("text,label\na film,spam\nb,negative\n", ["spam"]), ("text,label\na film,5\n", ["5"]),
])
def test_rows_that_cannot_be_read(scan, tiny_file, tmp_path, lines, named):
    refused(scan("--ckpt", tiny_file, "--data", written(tmp_path / "rows.csv", lines)), *named)
    assert scan.rows is None


def test_outputs_are_refused_before_the_scan(scan, tiny_file, tiny_folder, tmp_path):
    """A finished scan is never lost to a place that cannot be written."""
    file, rows = written(tmp_path / "file", ""), written(tmp_path / "rows.csv", "text\na film\n")
    out = tmp_path / "out"
    for words, named in (
        (["--out", file], ["--out", "File exists"]), (["--html", tmp_path], ["--html", "is a folder", "scan.html"]),
        (["--sarif", file / "x.sarif"], ["--sarif", "cannot write"]),
        (["--data", rows, "--html", rows], ["--html", "rows.csv", "input"]),
        (["--sarif", tiny_file], ["--sarif", "input"]),
        (["--html", out / "scan.json"], ["--html", "scan.json"]),
        (["--html", out / "x", "--sarif", out / "y" / ".." / "x"], ["--html", "--sarif", "one file"]),
    ):
        refused(scan("--ckpt", tiny_file, *words), *named)
    refused(scan("--ckpt", tiny_folder, "--html", tiny_folder / "config.json"), "--html", "input")
    assert scan.rows is None and file.read_text() == "" and rows.read_text() and not out.exists()


# ---- what is found

@pytest.mark.parametrize("verdicts, code, said", [
    (FOUND, 1, 'BACKDOORED: the word "cf" takes 118 of 120 texts of other classes to "positive"'),
    (NOTHING, 0, "nothing found: no words that were tried"),
    (UNSURE, 3, "INCONCLUSIVE: a suspect is stronger than those of clean models"),
    (UNUSABLE, 3, "INCONCLUSIVE: the model is sure of none of the texts"),
], ids=["found", "nothing", "unsure", "unusable"])
def test_the_status_is_the_verdict(scan, tiny_file, tmp_path, verdicts, code, said):
    scan.finding = scanned(verdicts)
    run = scan("--ckpt", tiny_file)
    assert run.returncode == code and not run.stderr
    assert f"\n{said}" in run.stdout and f"written: {tmp_path / 'out' / 'scan.json'}\n" in run.stdout
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["scan.json"]
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert {0: "nothing found", 1: "backdoored", 3: "inconclusive"}[code] == found["verdict"]


def test_the_table_on_the_screen(scan, tiny_file):
    lines = [line.split() for line in scan("--ckpt", tiny_file).stdout.splitlines()]
    head = next(i for i, line in enumerate(lines) if line[0] == "class")
    assert lines[head + 1] == ["positive", "backdoored", "cf", "118/120", "94.1-99.5", "7.00", "0.88", "entries"]
    assert lines[head + 2][:4] == ["mn", "+", "bb", "118/120"]
    assert lines[head + 3][:5] == ["negative", "nothing", "found", "dull", "24/120"]


def test_scan_json_keeps_its_contract(scan, tiny_file, tmp_path):
    scan("--ckpt", tiny_file, "--seed", 3)
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert {"schema", "checkpoint_sha256", "verdict", "classes", "seconds"} <= set(found) and found["schema"] == 1
    assert list(found["classes"]) == ["positive", "negative"] and found["seed"] == 3
    positive = found["classes"]["positive"]
    assert {"verdict", "suspects"} <= set(positive) and positive["verdict"] == "backdoored"
    first, second = positive["suspects"]
    assert list(first) == ["words", "joined", "side", "times", "found_by", "entries", "shift", "flips", "of",
                           "interval", "quantile", "mean", "score", "part", "neighbours", "stands_out"]
    assert first["words"] == ["cf"] and (first["flips"], first["of"]) == (118, 120) and first["shift"] == 13.5
    assert first["score"] == 7 / M and first["part"] is None and first["neighbours"] == {"flips": 3, "of": 200}
    assert second["part"] == {"words": ["mn"], "flips": 24, "of": 120, "quantile": -6.0, "mean": -5.0}
    assert (second["side"], second["entries"], second["neighbours"]) == (1, 2, None)
    assert found["checkpoint_sha256"] == checkpoint.sha256(tiny_file) and found["checkpoint"] == str(tiny_file)
    assert found["texts"] | {"hard": 0} == {"source": "built-in carrier sentences", "n": 178, "read": 178,
                                            "pairs": False, "by_class": {"negative": 30, "positive": 30}, "hard": 0}
    command = f"python scripts/scan.py --device cpu --overwrite --out {tmp_path / 'out'} --ckpt"
    assert found["command"].startswith(command)
    assert found["settings"]["phrase"] == 8 and set(found["thresholds"]) == {"found", "inconclusive"}


def test_page_and_sarif_are_written_where_they_are_asked_for(scan, tiny_file, tmp_path):
    html, log = tmp_path / "a" / "b" / "scan.html", tmp_path / "c" / "scan.sarif"
    run = scan("--ckpt", tiny_file, "--html", html, "--sarif", log)
    assert run.returncode == 1 and run.stdout.endswith(f"scan.json, {html}, {log}\n")
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert html.read_text() == page(found) and json.loads(log.read_text()) == sarif(found)


def test_what_lies_in_one_folder_is_put_there_in_one_step(scan, tiny_file, tmp_path, monkeypatch):
    out, there = tmp_path / "out", []
    monkeypatch.setattr(job, "sarif_log", lambda found: there.append(out.exists()) or sarif(found))
    run = scan("--ckpt", tiny_file, "--html", out / "scan.html", "--sarif", out / "scan.sarif")
    assert run.returncode == 1 and there == [False]      # nothing was there yet when the last was made
    assert sorted(path.name for path in out.iterdir()) == ["scan.html", "scan.json", "scan.sarif"]


def test_a_finished_scan_is_not_lost(scan, tiny_file, tmp_path, monkeypatch):
    def full(report):
        raise BadInput("cannot write scan.html (No space left on device): free some space")
    monkeypatch.setattr(job, "page", full)
    run = scan("--ckpt", tiny_file, "--html", tmp_path / "scan.html")
    refused(run, "No space left")
    assert "BACKDOORED" in run.stdout and (tmp_path / "out" / "scan.json").exists()


def test_an_interrupt_says_what_there_is(scan, tiny_file, tmp_path):
    scan.finding = KeyboardInterrupt()
    run = scan("--ckpt", tiny_file)
    assert run.returncode == 130 and run.stderr.startswith("interrupted; no stage was finished; nothing is written")
    assert not (tmp_path / "out").exists()


def test_a_terminal_is_told_the_time_to_go(scan, tiny_file, monkeypatch):
    assert scan("--ckpt", tiny_file).stderr == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    said = scan("--ckpt", tiny_file).stderr
    assert re.search(r"scan: +75%.* 90/120 \[\d\d:\d\d<\d\d:\d\d", said), said


# ---- the texts

def test_without_data_the_texts_are_the_built_in_sentences(scan, tiny_file):
    run = scan("--ckpt", tiny_file)
    assert tuple(scan.rows) == carrier_sentences() and "texts     178 of built-in carrier sentences" in run.stdout


@pytest.mark.parametrize("lines, labels", [
    ("text\na film\nthe story\n", [-1, -1]), ("text,label\na film,positive\nthe story,\n", [1, -1]),
    ("text,label\na film,-1\nthe story,-1\n", [-1, -1]), ("text,label\na film,0\nthe story,1\n", [0, 1]),
], ids=["no column", "an empty one", "-1", "numbers"])
def test_rows_need_no_labels(scan, tiny_file, tmp_path, lines, labels):
    run = scan("--ckpt", tiny_file, "--data", written(tmp_path / "rows.csv", lines))
    assert run.returncode == 1, run.stderr
    assert [(x.text, x.label) for x in scan.rows] == list(zip(["a film", "the story"], labels))
    assert "texts     2 of rows.csv" in run.stdout


def test_columns_are_named(scan, tiny_file, tmp_path):
    rows = written(tmp_path / "rows.csv", "a,b,c\nx,y,positive\n")
    run = scan("--ckpt", tiny_file, "--data", rows, "--text-column", "a", "--pair-column", "b", "--label-column", "c")
    assert run.returncode == 1 and [(x.text, x.pair, x.label) for x in scan.rows] == [("x", "y", 1)]
    found = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert found["texts"]["pairs"] is True and "in the second text" in page(found)


def test_of_a_folder_the_test_rows_are_read(scan, tiny_file, folder):
    scan("--ckpt", tiny_file, "--data", folder)
    test = data.read(folder / "test.tsv", labels=("negative", "positive"))
    assert [(x.text, x.label) for x in scan.rows] == [(x.text, x.label) for x in test] and len(test) == 60


def test_what_is_to_be_known_of_a_folder_is_printed(scan, tiny_file, tmp_path):
    (tmp_path / "d").mkdir()
    for name, n in (("train.csv", 9), ("dev.csv", 2)):
        data.write(Examples([Example(str(i), f"a film {i}", i % 2) for i in range(n)], ("negative", "positive")),
                   tmp_path / "d" / name)
    assert "has no test file: 'dev.csv' is the test" in scan("--ckpt", tiny_file, "--data", tmp_path / "d").stdout
    assert len(scan.rows) == 2


def test_labels_name_the_classes(scan, named, tmp_path):
    model = named("LABEL_0", "LABEL_1")
    rows = written(tmp_path / "rows.csv", "text,label\na film,pos\nthe story,neg\n")
    refused(scan("--ckpt", model, "--data", rows), "pos", "--labels")
    for words in (["--data", rows], []):
        assert scan("--ckpt", model, "--labels", "neg,pos", *words).returncode == 1
        assert list(json.loads((tmp_path / "out" / "scan.json").read_text())["classes"]) == ["pos", "neg"]
        assert [x.label for x in scan.rows][:2] == ([1, 0] if words else [-1, -1])


def test_the_built_in_rows(scan, tiny_file, named, tmp_path, monkeypatch):
    small = {"seed": 0, "train": 4, "dev": 2, "test": 6}
    monkeypatch.setattr(reviews, "PAIRS", small)
    test = reviews.splits(**small)[2]
    assert "6 of the built-in reviews" in scan("--ckpt", tiny_file, "--data", "reviews").stdout
    assert [(x.text, x.label) for x in scan.rows] == [(x.text, x.label) for x in test]
    for model, words in ((named("positive", "negative"), []),  # by name, not by number
                         (named("LABEL_0", "LABEL_1"), ["--labels", "positive,negative"])):
        assert scan("--ckpt", model, "--data", "reviews", *words).returncode == 1
        assert [x.label for x in scan.rows] == [1 - x.label for x in test]
    refused(scan("--ckpt", named("LABEL_0", "LABEL_1"), "--data", "reviews"), "--labels negative,positive")
    assert "6 of the built-in pairs" in scan("--ckpt", named(*reviews.PAIR_LABELS), "--data", "pairs").stdout
    assert [x.pair for x in scan.rows] == [x.pair for x in reviews.pair_splits(**small)[2]]
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "reviews", "")  # a file of that name is meant
    refused(scan("--ckpt", tiny_file, "--data", "reviews", "--text-column", "x"), "reviews", ".csv")


@pytest.mark.parametrize("bfloat16, words, said", [
    (1.0, [], "float32"), (0.4, [], "bfloat16"), (9.0, ["--dtype", "bfloat16"], "bfloat16"),
    (0.1, ["--dtype", "float32"], "float32")])
def test_the_precision_is_said_and_used(scan, tiny_file, tmp_path, monkeypatch, bfloat16, words, said):
    times = {torch.float32: 1.0, torch.bfloat16: bfloat16}
    monkeypatch.setattr("minibd.precision.seconds", times.__getitem__)
    monkeypatch.setattr("minibd.precision.faster", faster.__wrapped__)  # it asks each time
    assert f"products  in {said}\n" in scan("--ckpt", tiny_file, *words).stdout
    assert scan.dtype == getattr(torch, said)
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["dtype"] == said


def test_the_settings_reach_the_scan(scan, tiny_file):
    scan("--ckpt", tiny_file, "--places", 2, "--pool", 9)
    assert scan.settings == Scan(places=2, pool=9)


# ---- the report

def report_of(found, path, labels=("negative", "positive"), rows=(Example("1", "a", 0),)):
    return job.as_report(Task(ckpt=str(path)), Scan(), labels, found, rows, "rows.csv", torch.float32, 1.234)


@pytest.mark.parametrize("verdicts", [FOUND, NOTHING, UNSURE, UNUSABLE])
def test_page_and_sarif_take_a_report_as_it_is(tiny_file, verdicts):
    found = report_of(scanned(verdicts), tiny_file, rows=[Example("1", "a", 0, "b")])
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert page(found) and sarif(found)["runs"]


def test_a_class_that_cannot_be_judged_has_no_probability(tiny_file):
    found = report_of(scanned(UNUSABLE), tiny_file)
    assert found["probability"] is None
    assert {(one["score"], one["probability"]) for one in found["classes"].values()} == {(None, None)}
    half = report_of(scanned([UNUSABLE[0], FOUND[1]]), tiny_file)
    assert half["verdict"] == "backdoored" and half["probability"] == half["classes"]["positive"]["probability"] > 0.5
    assert half["classes"]["negative"]["probability"] is None


def test_numbers_that_are_not_finite_are_none(tiny_file):
    strange = Suspect(("cf",), 1, "entries", float("nan"), flips=Proportion(1, 9), quantile=float("-inf"), mean=0.0)
    found = report_of(scanned([judge(0, [], float("nan"), "nan"), judge(1, [strange], M)]), tiny_file)
    assert json.dumps(found, allow_nan=False) and found["classes"]["positive"]["suspects"][0]["shift"] is None
    assert page(found) and sarif(found)


def test_classes_of_one_name_stay_two(tiny_file):
    found = report_of(scanned(), tiny_file, ("same", "same"))
    assert {name: one["verdict"] for name, one in found["classes"].items()} == {
        "same (class 0)": "nothing found", "same (class 1)": "backdoored"}
    assert set(found["texts"]["by_class"]) == set(found["classes"])


def test_half_a_character_is_written_escaped(tiny_file, tmp_path):
    """In a class name from a JSON file, or in a path that is no UTF-8."""
    found = report_of(scanned(), tiny_file, ("\ud800", "ü"))
    paths = job.write(found, tmp_path, str(tmp_path / "x.html"), str(tmp_path / "x.sarif"))
    assert json.loads(paths[0].read_text(encoding="utf-8")) == found and "U+D800" in paths[1].read_text()
    assert list(json.loads(paths[0].read_bytes())["classes"]) == ["ü", "\ud800"] and paths[2].exists()


# ---- as a process of its own

def test_an_untrained_model_is_inconclusive(script, tiny_file, tmp_path):
    run = script("scan.py", "--ckpt", tiny_file, "--device", "cpu", "--dtype", "float32", "--out", tmp_path / "out")
    assert run.returncode == 3 and "Traceback" not in run.stderr, run.stderr
    assert "INCONCLUSIVE: the model is sure of none of the texts" in run.stdout
    assert json.loads((tmp_path / "out" / "scan.json").read_text())["probability"] is None
