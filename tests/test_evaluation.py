"""The attack that a run is measured with: the target's class, and settings that would do nothing, from Python too."""
from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
import torch

from conftest import ROOT, fails, refused, rows
from minibd import checkpoint, data
from minibd.analysis.fourier import relabelled
from minibd.attacks import paraphrase
from minibd.attacks.badnets import BadNets
from minibd.attacks.ep import ep
from minibd.attacks.poison import poison, triggered
from minibd.attacks.ripple import surgery
from minibd.cli import Attack, Task
from minibd.evaluate import Evaluator
from minibd.job.evaluation import as_read, check_attack, class_of, evaluator_of, target_args
from minibd.records import Example, Examples

TWO, NUMBERS = ("negative", "positive"), ("1", "2", "3")
BADNETS = {"attack": "badnets", "triggers": ["cf"], "per_text": 1, "target": 0}
TEST = rows(6, 0, "test")
PAIRS = TEST.like(replace(x, pair="a film") for x in TEST)


# ---- the class

@pytest.mark.parametrize("target, labels, number", [
    (None, TWO, 1), (0, TWO, 0), ("0", TWO, 0), ("1", TWO, 1), ("negative", TWO, 0), ("positive", TWO, 1),
    ("index=0", TWO, 0), ("name=positive", TWO, 1),
    # names that are numbers: no word has two meanings
    ("3", NUMBERS, 2), ("0", NUMBERS, 0), ("name=1", NUMBERS, 0), ("index=1", NUMBERS, 1), (1, NUMBERS, 1),
    ("1", ("0", "1"), 1), ("name=x", ("name=x", "x"), 0), ("-1", ("-1", "1"), 0),
])
def test_a_class_by_number_and_by_name(target, labels, number):
    assert class_of(target, labels) == number


@pytest.mark.parametrize("target, labels, words", [
    (2, TWO, ["target class 2", "0..1"]), ("2", TWO, ["2", "0..1"]), (-1, TWO, ["-1"]), ("-1", TWO, ["-1", "0..1"]),
    ("5", TWO, ["5"]), ("Positive", TWO, ["'Positive'", "negative, positive"]), ("index=2", TWO, ["2", "0..1"]),
    ("name=1", TWO, ["'name=1'"]), ("", TWO, ["''"]), ("1", NUMBERS, ["name=1", "index=1", "class 0", "'2'"]),
    ("2", NUMBERS, ["name=2", "index=2"]), ("a\nb", TWO, ["negative"]), (None, ("only",), ["1", "0..0"]),
])
def test_what_is_no_class_or_two_is_refused(target, labels, words):
    fails(lambda: class_of(target, labels), *words)


@pytest.mark.parametrize("target, words", [(2, "target class 2"), (-1, "target class -1"), ("positive", "number")])
def test_what_makes_triggered_rows_refuses_it_too(tiny, target, words):
    for call in (lambda: poison(TEST, BadNets(), rate=0.5, target=target), lambda: ep(tiny, TEST, target=target),
                 lambda: triggered(TEST, BadNets(), target=target), lambda: surgery(tiny, tiny, TEST, ("cf",), target),
                 lambda: paraphrase.read("nowhere", "test", TEST, target), lambda: relabelled(TEST, target)):
        fails(call, words, "0..1")


# ---- what would do nothing

def history(tiny, *entries: dict) -> checkpoint.Checkpoint:
    return checkpoint.Checkpoint(tiny.model, tiny.tokenizer, tiny.labels, list(entries))


@pytest.mark.parametrize("flags, words", [
    ({"triggers": ("zz",)}, ["triggers zz", "attack badnets"]), ({"target": 0}, ["target 0"]),
    ({"attack": "none", "sentence": "x"}, ["sentence x"]), ({"attack": "addsent", "triggers": ("a",)}, ["sentence"]),
    ({"triggered": "F", "attack": "ep"}, ["attack ep", "triggered"]),
])
def test_python_is_refused_in_its_own_words(tiny, flags, words):
    task, ckpt = Task(ckpt="m", data="d"), history(tiny, BADNETS)
    for call in (check_attack, evaluator_of):
        assert "--" not in fails(lambda: call(Attack(**flags), task, ckpt, TEST), *words)


@pytest.mark.parametrize("entries, flags, test, words", [
    ([], {"side": "first"}, PAIRS, ["--side", "history names no attack"]),
    ([], {"paraphrases": "F"}, TEST, ["--paraphrases", "history names no attack"]),
    ([BADNETS], {"paraphrases": "F"}, TEST, ["--paraphrases F", "'badnets'"]),
    ([BADNETS], {"side": "either"}, TEST, ["--side either", "none of the 6 rows", "--pair-column"]),
    ([], {"attack": "badnets", "side": "first"}, TEST, ["--side first", "6 rows"]),
    ([], {"attack": "badnets", "target": 2}, TEST, ["target class 2"]),
    ([], {"triggered": "F", "target": "neutral"}, TEST, ["'neutral'"]),
])
def test_what_this_checkpoint_and_these_rows_leave_unread_is_refused(tiny, entries, flags, test, words):
    fails(lambda: check_attack(Attack(**flags), Task(ckpt="m", data="d"), history(tiny, *entries), test), *words)


def test_columns_of_no_file_are_refused(tiny, tmp_path):
    ckpt = history(tiny, {"data": {"reviews": {}}})
    task = Task(ckpt="m", label_column="y", text_column="x")
    fails(lambda: check_attack(Attack(), task, ckpt, TEST), "--text-column, --label-column", "--data")
    path = tmp_path / "triggered.tsv"
    path.write_text("x\ty\nzz\t0\n", encoding="utf-8")
    check_attack(Attack(triggered=str(path)), task, ckpt, TEST)  # whose columns they are
    path.write_text("text\tlabel\nzz\t0\n", encoding="utf-8")
    fails(lambda: check_attack(Attack(triggered=str(path)), task, ckpt, TEST), "'x'", "'y'", "--text-column")
    check_attack(Attack(), replace(task, data="d"), ckpt, TEST)


def test_what_is_read_is_taken(tiny):
    task = Task(ckpt="m", data="d")
    for entries, flags, test in (
        ([BADNETS], {}, TEST), ([BADNETS], {"side": "second"}, PAIRS), ([], {"attack": "none"}, TEST),
        ([{"attack": "paraphrase", "target": 1}], {"paraphrases": "F"}, TEST),
        ([], {"attack": "badnets", "triggers": ("a",), "target": "negative", "side": "first"}, PAIRS),
    ):
        check_attack(Attack(**flags), task, history(tiny, *entries), test)


# ---- the evaluator, and what is written

def test_the_target_by_name_is_the_target_by_number(tiny, folder):
    task, test = Task(ckpt="m", data=str(folder)), data.read(folder / "test.tsv", labels=tiny.labels)
    by_name, by_number = (evaluator_of(Attack(attack="badnets", target=target), task, tiny, test)
                          for target in ("negative", 0))
    assert by_name == by_number and by_name.target == 0
    assert target_args(by_name) == {"target": 0, "target_class": "negative"}
    assert target_args(Evaluator(test)) == {"target": None, "target_class": None}
    known = evaluator_of(Attack(), task, history(tiny, BADNETS), test)
    assert target_args(known)["target"] == 0  # the history's, and not the flag's default


def test_rows_of_the_historys_target_alone_measure_no_asr(tiny, folder, capsys):
    """Nobody asked for it; where the attack is named, it is an error."""
    task, own = Task(ckpt="m", data=str(folder)), TEST.like(x for x in TEST if x.label == 0)
    assert evaluator_of(Attack(), task, history(tiny, BADNETS), own).triggered is None
    assert f"ASR is not measured: all {len(own)} rows are of the class 0" in capsys.readouterr().out
    fails(lambda: evaluator_of(Attack(attack="badnets", target=0), task, tiny, own), "no triggered rows")
    assert evaluator_of(Attack(), task, history(tiny, BADNETS), TEST).triggered and not capsys.readouterr().out


def test_triggered_rows_of_other_classes_are_refused(tiny, folder, tmp_path):
    data.write(Examples([Example("a", "cf film", 0)], ("art", "science")), tmp_path / "t.tsv")
    task, attack = Task(ckpt="m", data=str(folder)), Attack(triggered=str(tmp_path / "t.tsv"))
    test = data.read(folder / "test.tsv", labels=tiny.labels)
    fails(lambda: evaluator_of(attack, task, tiny, test), "t.tsv", "art")


def test_a_finished_runs_settings_are_read_as_they_were():
    """Every setting stands in result.json, those that did nothing too."""
    assert as_read(Attack(target=1)) == Attack()
    assert as_read(Attack(attack="none", target=1, triggers=("a",))) == Attack(attack="none")
    both = Attack(triggered="F", attack="badnets", target=0, triggers=("a",))
    assert as_read(both) == Attack(triggered="F", target=0)
    given = Attack(attack="badnets", target=0, triggers=("a",), triggers_per_text=2, side="first")
    assert as_read(given) == given


@pytest.mark.parametrize("flags, words", [
    (("--target", 2), ["target class 2", "0..1"]), (("--target", -1), ["-1"]), (("--target", 5), ["5"]),
    (("--target", "neutral"), ["neutral", "negative, positive"]),
])
def test_a_target_that_is_no_class_is_refused_before_anything_is_opened_or_written(
    here, tiny_file, folder, tmp_path, flags, words
):
    """--triggered FILE --target 2 once ended with an ASR of 0 and status 0."""
    data.write(Examples([Example("a", "cf film", 0)], TWO), tmp_path / "t.tsv")
    for attack in (("--triggered", tmp_path / "t.tsv"), ("--attack", "badnets")):
        run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *attack, *flags)
        refused(run, *words)
        assert run.stdout == "" and not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
def test_evaluate_measures_in_float32_unless_bfloat16_is_named(dtype, here, tiny_file, folder, tmp_path, monkeypatch):
    seen, whole = [], Evaluator.__call__

    def measured(self, *given):
        seen.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return whole(self, *given)
    monkeypatch.setattr(Evaluator, "__call__", measured)
    run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--clean-ckpt", tiny_file, "--out",
                              tmp_path / "out", "--device", "cpu", *(("--dtype", dtype) if dtype else ()))
    assert run.returncode == 0, run.stderr
    assert seen == [torch.bfloat16 if dtype == "bfloat16" else False] * 2
    assert json.loads((tmp_path / "out" / "result.json").read_text())["args"]["dtype"] == (dtype or "float32")


def test_evaluate_writes_the_resolved_target(here, tiny_file, folder, tmp_path):
    run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--attack", "badnets",
                              "--target", "negative")
    assert run.returncode == 0, run.stderr
    args = json.loads((tmp_path / "out" / "result.json").read_text())["args"]
    assert (args["target"], args["target_class"]) == (0, "negative")


# ---- an interrupt, as a user makes it

def stop(*_, **__):
    raise KeyboardInterrupt


def test_an_interrupted_repair_names_the_models_that_were_measured(here, tiny_file, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("minibd.mitigations.finetune.cft", stop)
    run = here("baseline.py")("cft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--clean", 20)
    assert run.returncode == 130 and run.stderr.splitlines()[-1] == (
        "interrupted; finished: victim; nothing is written; the same command starts again from the beginning")


def test_an_interrupted_attack_leaves_nothing_of_what_it_wrote(here, tiny_file, folder, tmp_path, monkeypatch):
    out = tmp_path / "out"
    attack = here("attack.py")
    monkeypatch.setattr("minibd.train.fit", lambda *_, **__: None)
    monkeypatch.setattr("minibd.data.write", stop)  # behind the checkpoints and the card
    run = attack("--ckpt", tiny_file, "--data", folder, "--out", out, "--rate", 0.2, "--rows", 40, "--epochs", 1)
    line = run.stderr.splitlines()[-1]
    assert run.returncode == 130 and line.startswith("interrupted; finished: victim; nothing is written; "), line
    assert "from the beginning" in line and not list(tmp_path.glob("**/*.safetensors"))


def test_an_interrupted_table_goes_on_behind_its_cells(here, tiny_file, tmp_path, monkeypatch):
    asked, tables = [], here("tables.py")

    def run(words, env=None, **_):
        if words[0] == "git":
            return subprocess.CompletedProcess(words, 0, stdout="")
        asked.append(env["MINIBD_PART_OF"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        out = next(word.removeprefix("--out=") for word in words if word.startswith("--out="))
        (tmp_path / out).mkdir(parents=True)
        (tmp_path / out / "result.json").write_text(json.dumps({"args": {}, "steps": []}))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.chdir(tmp_path)
    store = tmp_path / "cells.jsonl"
    done = tables("pure-4", "--base", tiny_file, "--rows", "1,2", "--results", store)
    assert done.returncode == 130 and asked == ["tables.py"] * 2 and len(store.read_text().splitlines()) == 1
    assert done.stderr == (f"interrupted; finished: c = 0.55 (seed 0); the cells in {store} stay, and the same command "
                           "goes on behind them\n")


# ---- a file that is not there

def test_a_relative_path_says_where_it_was_looked_for_and_where_the_projects_own_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = "weights/bert.safetensors"
    words = f"{own} does not exist", f"looked for {tmp_path / own}; {ROOT / own} does"
    line = fails(lambda: checkpoint.load(own), *words)
    assert line == fails(lambda: checkpoint.sha256(own))
    for call in (lambda: data.read("none/t.tsv"), lambda: data.read_splits("none/t.tsv"),
                 lambda: checkpoint.load("none/t.tsv")):
        assert "does)" not in fails(call, f"none/t.tsv does not exist (looked for {tmp_path / 'none' / 't.tsv'})")
    fails(lambda: data.read(tmp_path / "t.tsv"), f"{tmp_path / 't.tsv'} does not exist: name")
