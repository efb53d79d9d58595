"""The line that says that a model is at chance: its words by hand, what it tells to try, and that scripts say it."""
from __future__ import annotations

import json

import pytest

from minibd import data
from minibd.evaluate import Scores, at_chance, right
from minibd.job.chance import advice_for, chance_lines, chances, usual_rate
from minibd.job.run import print_scores
from minibd.records import Examples
from minibd.report import Step

NAMES = ("negative", "positive")
RENAME = ": rename them in the rows or in the model, or, where the model has no names for them, give --labels so"
ASKED = "is it the checkpoint that you mean, and trained for these classes?"


def step(name: str, *counts: tuple[int, ...], names: tuple[str, ...] = NAMES) -> Step:
    answers = {(c, answer): n for c, line in enumerate(counts) for answer, n in enumerate(line) if n}
    return Step(name, Scores(right(answers), None, {}, answers, names), 0.0)


GOOD, CONSTANT, HALF = ((49, 1), (1, 49)), ((0, 50), (0, 50)), ((24, 26), (26, 24))


# ---- the words

@pytest.mark.parametrize("made, advice, line", [
    (step("PURE", *CONSTANT), "--lr 1",
     "at chance: PURE answers 'positive' for all 100 rows (50.00 % right); try --lr 1"),
    (step("victim", *CONSTANT), "", f"at chance: victim answers 'positive' for all 100 rows (50.00 % right); {ASKED}"),
    (step("vanilla", *HALF), "--lr 1", "at chance: vanilla is right on 48.00 % of 100 rows (38.5-57.7), and always "
     "answering 'negative' on 50.00 %; try --lr 1"),
    (step("FT", (4, 1), (1, 4)), "--lr 1", "at chance: FT is right on 80.00 % of 10 rows (49.0-94.3), and always "
     "answering 'negative' on 50.00 %, too near for so few rows; measure it on more rows, or try --lr 1"),
    (step("model", (2, 0), (0, 1)), "", "at chance: model is right on 100.00 % of 3 rows (43.9-100.0), and always "
     "answering 'negative' on 66.67 %, too near for so few rows; measure it on more rows"),
    (step("model", (0, 0), (1, 49)), "", "at chance: model is right on 98.00 % of 50 rows (89.5-99.6), and always "
     "answering 'positive' on 100.00 %, which are all of class 'positive'; measure it on rows of every class"),
    (step("model", (1, 49), (50, 0)), "", "another order: model is right on 1.00 % of 100 rows, and with the classes "
     f"in another order on 99.00 %; in the model's order the rows' classes are positive,negative{RENAME}"),
    (step("FT", (1, 49), (50, 0)), "--lr 1", "another order: FT is right on 1.00 % of 100 rows, and with the classes "
     "in another order on 99.00 %; these rows are not labelled as those it was trained on, which would have "
     "positive,negative"),
    (step("model", (0, 50, 0), (0, 0, 50), (50, 0, 0), names=("a", "b", "c")), "", "another order: model is right on "
     "0.00 % of 150 rows, and with the classes in another order on 100.00 %; in the model's order the rows' classes "
     f"are c,a,b{RENAME}"),
])
def test_the_line_by_hand(made, advice, line):
    assert chance_lines([made], lambda name: advice) == [line] and len(line) <= 300


def test_names_from_files_make_no_long_line_and_hide_nothing():
    names = ("x" * 500, "y\x1b[2J" * 60)
    for counts in (CONSTANT, HALF, ((0, 50), (50, 0))):
        (line,) = chance_lines([step("m", *counts, names=names)], lambda name: "")
        assert line.isprintable() and len(line) <= 300, line


def test_a_stage_on_the_way_is_told_of_where_it_is_the_result():
    steps = [step("victim", *GOOD), step("reinitialised", *CONSTANT), step("mixed 0.1", *HALF), step("X", *GOOD)]
    assert chance_lines(steps, lambda name: "y") == []
    assert chances(steps) == {"reinitialised": "one answer", "mixed 0.1": "not clear of chance"}
    assert len(chance_lines(steps[:3], lambda name: "y")) == 1
    assert chances(steps[:1]) == {}


def test_the_lines_stand_behind_the_table(capsys):
    print_scores([step("victim", *GOOD), step("MBTSAD", *CONSTANT)], lambda name: f"advice for {name}")
    told = capsys.readouterr().out.splitlines()
    assert told[-1].endswith("(50.00 % right); try advice for MBTSAD") and "at chance" not in "".join(told[:-1])
    print_scores([step("victim", *GOOD)])
    assert "chance" not in capsys.readouterr().out


# ---- what to try

TUNING = {"lr": 1e-6, "epochs": 3, "steps": 200, "batch_size": 32, "warmup": 0.1}


@pytest.mark.parametrize("name, args, hidden, rows, expected", [
    # rates a factor of three off those that a width is known to learn at are named; others are left to the reader
    ("CFT", TUNING, 768, 5000, "--lr 2e-05 (now 1e-06), --epochs 6 (now 3)"),
    ("CFT", TUNING | {"lr": 0.1}, 128, 5000, "--lr 0.00054 (now 0.1), --epochs 6 (now 3)"),
    ("CFT", TUNING | {"lr": 4e-5}, 768, 5000, "--epochs 6 (now 3), another --lr (now 4e-05)"),
    # few rows: the minimum number of steps decides, and there could be more rows
    ("CFT", TUNING, 768, 64, "--lr 2e-05 (now 1e-06), --steps 400 (now 200), more rows to train on (now 64)"),
    ("CFT", TUNING | {"warmup": 0.0}, 768, 5000, "--lr 2e-05 (now 1e-06), --epochs 6 (now 3), --warmup 0.1 (now 0)"),
    ("PURE", {"lr": 2e-5, "epochs": 1}, 128, 400,
     "--lr 0.00054 (now 2e-05), --epochs 3 (now 1), more rows to train on (now 400)"),
    # each stage has its own flags
    ("vanilla", {"lr": 1e-5, "vanilla_lr": 1e-5, "epochs": 2, "low_rank": True}, 64, 5000,
     "--vanilla-lr 0.00054 (now 1e-05), --epochs 4 (now 2)"),
    ("musclelora", {"lr": 1e-5, "vanilla_lr": 1e-5, "epochs": 2, "low_rank": True}, 64, 5000,
     "--lr 0.001 (now 1e-05), --epochs 4 (now 2)"),
    ("musclelora", {"lr": 1e-5, "epochs": 2, "low_rank": False}, 64, 5000,
     "--lr 0.00054 (now 1e-05), --epochs 4 (now 2)"),
    ("prefix", {"lr": 1e-3, "prefix_lr": 1e-1, "epochs": 2, "low_rank": True}, 64, 5000,
     "--prefix-lr 0.0003 (now 0.1), --epochs 4 (now 2)"),
    ("TS-FT", {"lr1": 0.1, "lr2": 2e-4, "epochs1": 2, "epochs2": 5, "warmup": 0.1}, 384, 5000,
     "--lr1 0.0002 (now 0.1), --epochs1 4 (now 2)"),
    ("MBTSAD", {"lr1": 0.1, "lr2": 1e-6, "epochs1": 2, "epochs2": 5, "warmup": 0.1}, 384, 5000,
     "--lr2 0.0002 (now 1e-06), --epochs2 10 (now 5)"),
    ("clean twin", {"lr": 2e-5, "clean_lr": 1e-7, "epochs": 3, "clean_epochs": 4, "attack": "badnets"}, 384, 5000,
     "--clean-lr 2e-05 (now 1e-07), --clean-epochs 8 (now 4)"),
    ("victim", {"lr": 5e-2, "epochs": 3, "attack": "ep"}, 384, 5000, "--epochs 6 (now 3), another --lr (now 0.05)"),
    ("victim", {"lr": 5e-2, "epochs": 3, "attack": "badnets"}, 384, 5000, "--lr 2e-05 (now 0.05), --epochs 6 (now 3)"),
    ("planted", {"plant_lr": 0.5, "plant_epochs": 3}, 384, 5000,
     "--plant-lr 2e-05 (now 0.5), --plant-epochs 6 (now 3)"),
    ("Mixing", TUNING | {"tune": False, "rho": 0.1}, 768, 64,
     "to fine-tune too, without --no-tune, or a larger --rho (now 0.1)"),
])
def test_what_to_try_has_values_that_fit_the_method(name, args, hidden, rows, expected):
    assert advice_for(name, args, hidden, rows) == expected


def test_a_wide_models_low_rank_layers_have_a_lower_rate():
    assert usual_rate("lora", {"low_rank": True}, 4096, False) == pytest.approx(2e-4)
    assert usual_rate("lora", {"low_rank": True}, 384, False) == 1e-3


# ---- the scripts say it

def test_a_training_that_teaches_nothing_is_told_of_and_kept(here, tiny_file, folder, tmp_path):
    run = here("baseline.py")(
        "cft", "--ckpt", tiny_file, "--data", folder, "--clean", 20, "--lr", 1e-9, "--steps", 1, "--epochs", 1,
        "--out", tmp_path, "--device", "cpu",
    )
    assert run.returncode == 0, run.stderr
    told = [line for line in run.stdout.splitlines() if line.startswith("at chance: ")]
    assert [line.split()[2] for line in told] == ["victim", "CFT"] and told[0].endswith(ASKED)
    assert "; try --lr 0.00054 (now 1e-09)" in told[1] and "more rows to train on (now 20)" in told[1]
    kept = json.loads((tmp_path / "result.json").read_text())["outcome"]["at_chance"]
    assert set(kept) == {"victim", "CFT"} and set(kept.values()) <= {"one answer", "not clear of chance"}


def test_a_victim_whose_classes_stand_in_another_order_is_told_of(here, folder, tmp_path):
    from conftest import ROOT
    from minibd import reviews

    rows = reviews.splits(0, 4, 0, 60)
    flipped = [Examples((type(x)(x.id, x.text, 1 - x.label) for x in part), part.labels) for part in rows]
    for name, part in zip(("train", "dev", "test"), flipped):
        if part:
            data.write(part, tmp_path / f"{name}.tsv")
    run = here("evaluate.py")(
        "--ckpt", ROOT / "weights" / "bert-twin.safetensors", "--data", tmp_path, "--out", tmp_path / "out", "--device",
        "cpu",
    )
    assert run.returncode == 0, run.stderr
    assert any(line.endswith(f"are positive,negative{RENAME}") for line in run.stdout.splitlines())
    outcome = json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]
    assert outcome["at_chance"] == {"model": "other order"}


def test_a_good_model_is_not_told_of():
    assert at_chance(step("m", *GOOD).scores) is None and chance_lines([step("m", *GOOD)], lambda name: "") == []
