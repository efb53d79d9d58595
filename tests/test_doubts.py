"""What makes a run's numbers doubtful is said before it runs, or refused: in scripts and called from Python."""
from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from conftest import fails, refused, rows
from minibd import checkpoint, data
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cleantrain.peft import PEFT, train_peft
from minibd.cli import Attack, Clean, Task
from minibd.evaluate import Proportion, Scores
from minibd.job.run import start
from minibd.job.task import print_doubts, split_validation
from minibd.mitigations.epur import e_pur
from minibd.mitigations.finemix import FineMixing, finemix
from minibd.mitigations.fineprune import FinePruning, fineprune
from minibd.mitigations.finepurify import FinePurifying, finepurify
from minibd.mitigations.finetune import cft, finetune
from minibd.mitigations.mbtsad import MBTSAD, augmented, mbtsad
from minibd.mitigations.meft import meft
from minibd.mitigations.pure import PURE, pure
from minibd.mitigations.reinit import reinit
from minibd.records import Example, Examples
from minibd.report import Step
from minibd.train import Schedule, check_classes

BOTH = rows(12, 0, "clean")
ONE = BOTH.like(x for x in BOTH if x.label == 1)


# ---- rows of one class

@pytest.mark.parametrize("train", [
    lambda victim, pre: finetune(victim, ONE, Schedule(1e-3, 1)), lambda victim, pre: cft(victim, ONE),
    lambda victim, pre: reinit(victim, ONE), lambda victim, pre: fineprune(victim, ONE, None, FinePruning(share=0.5)),
    lambda victim, pre: meft(victim, ONE, BOTH), lambda victim, pre: pure(victim, ONE, BOTH, PURE(floor=0.0)),
    lambda victim, pre: mbtsad(victim, ONE), lambda victim, pre: finemix(victim, pre, ONE, None, FineMixing(rho=0.5)),
    lambda victim, pre: finepurify(victim, pre, ONE, None, FinePurifying(rho=0.5)),
    lambda victim, pre: train_peft(victim, ONE, PEFT("lora")), lambda victim, pre: musclelora(victim, ONE, BOTH),
    lambda victim, pre: musclelora(victim, BOTH, ONE),
])
def test_every_method_refuses_to_train_a_classifier_on_one_class(train, tiny, pre):
    fails(lambda: train(tiny, pre), "all of class 'positive'", "give rows of every class")


def test_rows_of_one_class_by_hand():
    check_classes(BOTH, "x")
    check_classes([], "x")  # no rows at all: fit says so
    line = fails(lambda: check_classes(ONE, "CFT"), "CFT: 6 rows", "'positive'")
    assert len(line) <= 300
    fails(lambda: check_classes([Example("a", "b", 3)], "CFT"), "class '3'")  # a plain list has no names
    assert "\x1b" not in fails(lambda: check_classes(Examples([Example("a", "b", 0)], ("\x1b[2J" * 99, "x")), "CFT"))


def test_unaligned_clean_rows_may_be_of_one_class(tiny):
    settings = MuScleLoRA(align=False, epochs=1, aux=4, bands=("1", "2"), rank=2)
    assert musclelora(tiny, BOTH, ONE, settings).labels == tiny.labels


def test_a_share_that_leaves_one_row_is_refused_before_anything_is_trained(here, tiny_file, folder, tmp_path):
    out = tmp_path / "out"
    run = here("baseline.py")("cft", "--ckpt", tiny_file, "--data", folder, "--clean", 0.001, "--out", out)
    refused(run, "all of class", "give rows of every class")
    assert not out.exists()


# ---- what is said of the rows

def lines(capsys, *parts) -> list[str]:
    print_doubts(*parts)
    return capsys.readouterr().out.splitlines()


def test_test_rows_that_are_trained_on_are_counted(capsys):
    test, dev = rows(20, 5, "test"), rows(6, 6, "dev")
    assert lines(capsys, BOTH, BOTH, test, dev) == [] == lines(capsys, BOTH, BOTH, test)
    again = test.like([*test, *(Example(f"again-{x.id}", x.text, x.label) for x in BOTH[:3])])
    (line,) = lines(capsys, BOTH, BOTH, again, dev)
    assert line.startswith("3 of 23 test rows are also among the rows that are trained on or chosen by")
    assert lines(capsys, BOTH, BOTH, test, dev.like(test[:2]))[0].startswith("2 of 20 test rows")
    assert lines(capsys, BOTH, BOTH, test, dev, test[:4])[0].startswith("4 of 20 test rows")
    pairs = [Example(x.id, x.text, x.label, "another text") for x in test]
    assert lines(capsys, BOTH, test, test.like(pairs)) == []  # the same text in another pair is another row


def test_classes_that_the_rows_at_hand_lack_are_named(capsys):
    names = ("a", "b\x1b", "c", "d", "e")
    full = Examples((Example(str(i), f"text {i}", i % 5) for i in range(10)), names)
    some = full.like(x for x in full if x.label != 1)
    assert lines(capsys, full, full, full.like([])) == []
    (line,) = lines(capsys, full, some, full.like([]))
    assert line.startswith("none of the 8 clean rows is of class 'b\\x1b': ") and line.isprintable()
    (line,) = lines(capsys, full, full, full.like([]), full.like(full[:1]))
    assert line.startswith("none of the 1 dev rows is of class 'b\\x1b', 'c', 'd', ...: ")
    assert lines(capsys, some, some, full.like([])) == []  # no training row is of it either


def test_a_choice_by_a_handful_of_rows_is_told_of(capsys):
    none = BOTH.like([])
    assert len(split_validation(data.Splits(BOTH, none, BOTH), BOTH, 0)[1]) == 1
    told = capsys.readouterr().out
    assert told.startswith("1 of the 12 clean rows, held out, choose") and "100 points" in told
    many = rows(100, 1, "many")
    assert len(split_validation(data.Splits(many, none, many), many, 0)[1]) == 10
    assert len(split_validation(data.Splits(BOTH, BOTH, BOTH), BOTH, 0)[1]) == 12
    assert capsys.readouterr().out == ""


def test_a_run_says_so_before_it_trains(tiny_file, folder, tmp_path, capsys):
    leaking = tmp_path / "leaking"
    leaking.mkdir()
    parts = data.read_splits(folder)
    data.write(parts.train, leaking / "train.tsv")
    data.write(parts.test.like([*parts.test, *parts.train[:7]]), leaking / "test.tsv")
    start("cft", Task(ckpt=str(tiny_file), data=str(leaking), out=str(tmp_path / "out")), Clean(clean=1.0), Attack())
    assert "7 of 67 test rows are also among" in capsys.readouterr().out
    start("cft", Task(ckpt=str(tiny_file), data=str(folder), out=str(tmp_path / "out")), Clean(clean=1.0), Attack())
    assert "also among" not in capsys.readouterr().out


# ---- a result that is the victim

def test_a_result_that_is_the_victim_says_so(here, tiny_file, pre_file, folder, tmp_path):
    script, out = here("finemix.py"), tmp_path / "out"
    flags = ("--ckpt", tiny_file, "--pretrained", pre_file, "--data", folder, "--no-tune", "--no-e-pur", "--out", out,
             "--overwrite")
    kept = script(*flags, "--rho", 1)
    assert kept.returncode == 0, kept.stderr
    assert "unchanged: what is written has every weight of" in kept.stdout
    assert json.loads((out / "result.json").read_text())["outcome"]["unchanged"] is True
    mixed = script(*flags, "--rho", 0.9)
    assert mixed.returncode == 0 and "unchanged" not in mixed.stdout
    assert "unchanged" not in json.loads((out / "result.json").read_text())["outcome"]


def test_an_augmenter_that_changes_nothing_says_so(capsys):
    for changed, settings in ((False, MBTSAD(min_char=99, k=2)), (True, MBTSAD())):
        rewritten = augmented(BOTH, settings, 0)
        assert len(rewritten) == (1 + settings.k) * len(BOTH)
        assert ("warning: split changes no word of the 12 clean rows" in capsys.readouterr().err) == (not changed)


# ---- the victim as its own origin

def test_weights_that_are_the_victims_own_are_refused_where_they_are_to_undo_it(tiny, pre):
    for repair in (
        lambda before: finemix(tiny, before, BOTH, None, FineMixing(rho=0.5)),
        lambda before: finepurify(tiny, before, BOTH, None, FinePurifying(rho=0.5)),
        lambda before: e_pur(tiny, before, BOTH),
    ):
        for before in (checkpoint.copy(tiny), checkpoint.headless(tiny)):
            fails(lambda: repair(before), "the victim's own weights", "that the victim was fine-tuned from")
    moved = checkpoint.copy(tiny)
    with torch.no_grad():
        moved.model.embeddings.word.weight[-1, 0] += 0.5
    assert e_pur(tiny, moved, BOTH).labels == tiny.labels


# ---- attack.py

def test_a_victim_without_a_backdoor_is_told_of(here, tiny_file, folder, tmp_path):
    script = here("attack.py")
    flags = ("--ckpt", tiny_file, "--data", folder, "--rate", 0.2, "--device", "cpu", "--out", tmp_path / "out",
             "--overwrite")
    (line,) = [line for line in script(*flags, "--epochs", 1, "--lr", 1e-9, "--twin").stdout.splitlines()
               if line.startswith("not learnt: ")]
    assert "does not clear that of the model without it, " in line
    assert "try --epochs 2 (now 1), more poisoned rows with --rate (now 0.2), another --lr (now 1e-09)" in line
    kept = json.loads((tmp_path / "out" / "attack.json").read_text())["at_chance"]
    assert set(kept) == {"clean twin", "victim"}


@pytest.mark.parametrize("victim, twin, told", [
    ((99, 100), None, False), ((50, 100), None, True), ((57, 100), None, True), ((99, 100), (2, 100), False),
    ((30, 100), (2, 100), False), ((30, 100), (25, 100), True), ((99, 100), (98, 100), True),
])
def test_which_victims_have_learnt_their_backdoor(here, victim, twin, told):
    here("attack.py")  # loads it
    named = {"clean twin": twin, "victim": victim}
    steps = [Step(name, Scores(Proportion(9, 10), Proportion(*asr)), 0.0) for name, asr in named.items() if asr]
    plan = SimpleNamespace(schedule=Schedule(1e-3, 3), scheme=SimpleNamespace(rate=0.1))
    line = sys.modules["attack_script"].unlearnt(plan, steps)
    assert bool(line) == told and len(line) <= 300


# ---- choose.py

@pytest.fixture
def trial(here, tiny_file, folder, tmp_path):
    """choose.py on rows without a dev file, and what it appends to."""
    for name in ("train", "test"):
        data.write(getattr(data.read_splits(folder), name), tmp_path / f"{name}.tsv")
    results = tmp_path / "cells.jsonl"
    script = here("choose.py")

    def run(*flags: object):
        return script("--method", "cft", "--ckpt", tiny_file, "--data", tmp_path, "--clean", 60, "--steps", 1,
                      "--epochs", 1, "--plant-epochs", 1, "--results", results, "--device", "cpu", *flags), results
    return run


def test_without_dev_rows_choose_holds_some_out_and_leaves_the_test_unread(trial):
    run, results = trial()
    assert run.returncode == 0, run.stderr
    (cell,) = map(json.loads, results.read_text().splitlines())
    assert cell["cell"]["clean"] == 54 and {step["n_dev"] for step in cell["steps"]} == {6}
    assert "dev       6 rows" in run.stdout and "6 of the 60 clean rows, held out, choose" in run.stdout


def test_a_backdoor_that_was_not_planted_is_told_of(trial):
    run, results = trial("--plant-lr", 1e-9)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("not planted: ")]
    assert "no setting can be judged" in line and "--plant-epochs 2 (now 1)" in line and "(now 54)" in line
    assert json.loads(results.read_text())["steps"][1]["not_planted"] is True


@pytest.mark.parametrize("vary, words", [
    ("epochs=two", ("epochs=two", "a whole number")), ("lr=fast", ("lr=fast", "a number")),
    ("epochs=1.5", ("epochs=1.5", "a whole number")),
])
def test_a_value_that_is_none_is_refused(trial, vary, words):
    run, results = trial("--vary", vary)
    refused(run, *words)
    assert not results.exists()


def test_yes_is_no_truth_value(here, pre_file, tiny_file, folder, tmp_path):
    script = here("choose.py")
    flags = ("--method", "finemix", "--ckpt", tiny_file, "--pretrained", pre_file, "--data", folder, "--results",
             tmp_path / "cells.jsonl")
    refused(script(*flags, "--vary", "tune=yes"), "tune=yes", "true or false")
