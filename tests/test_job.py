"""What scripts share: how many clean rows a defender holds, a run's log and its outcome, the table of repairs."""
from __future__ import annotations

import inspect
import os
import subprocess
import sys
import types
from dataclasses import asdict

import pytest

from conftest import ROOT, fails
from minibd import data
from minibd.cli import AllClean, Attack, Clean, Task
from minibd.job.evaluation import entry_of
from minibd.job.repairs import REPAIRS, Repair, _imported
from minibd.job.run import start
from minibd.job.task import clean_amount, data_of, limit_dev, split_validation
from minibd.train import StepLog


@pytest.mark.parametrize("clean, data, n, amount", [
    (None, "", 6920, 0.2), (None, "", 10_000, 0.2), (None, "", 10_001, 2000), (None, "", 12_000, 2000),
    (0.2, "", 12_000, 0.2), (64.0, "", 12_000, 64.0),
])
def test_clean_rows_by_default_are_a_fifth_and_at_most_two_thousand(clean, data, n, amount):
    assert clean_amount(Task(ckpt="m", data=data), Clean(clean=clean), n) == amount


def test_all_rows_of_a_single_file_are_clean(tmp_path, folder):
    assert clean_amount(Task(ckpt="m", data=str(folder / "train.tsv")), Clean(), 50_000) == 1.0
    assert clean_amount(Task(ckpt="m", data=str(folder)), Clean(), 100) == 0.2


@pytest.mark.parametrize("method", [Clean, AllClean])
def test_the_dev_rows_that_a_defender_chooses_by(tiny_file, folder, tmp_path, method):
    def splits(**clean):
        return start(
            "m", Task(ckpt=str(tiny_file), data=str(folder), out=str(tmp_path / "out"), device="cpu"), method(**clean),
            Attack(),
        ).splits

    everyone = splits()
    few = splits(dev=4)
    assert len(few.dev) == 4 and {x.id for x in few.dev} < {x.id for x in everyone.dev}
    assert few.train == everyone.train and few.test == everyone.test
    assert split_validation(few, few.train, 0) == (few.train, few.dev)
    fails(lambda: splits(dev=10_000), "10000", str(len(everyone.dev)))


def test_dev_rows_that_are_not_there_cannot_be_limited(folder):
    nothing = data.read_splits(folder / "train.tsv")
    fails(lambda: limit_dev(nothing, Clean(dev=4), 0), "--dev 4", "no dev rows")
    assert limit_dev(nothing, Clean(), 0) == nothing


def started(tiny_file, folder, tmp_path, **more):
    task = Task(ckpt=str(tiny_file), data=str(folder), out=str(tmp_path / "out"), device="cpu")
    return start("m", task, Clean(), Attack(), **more)


def test_a_jobs_log_is_its_own_unless_one_is_handed_over(tiny_file, folder, tmp_path):
    given = StepLog(3)
    assert started(tiny_file, folder, tmp_path, log=given).log is given
    one, other = (started(tiny_file, folder, tmp_path).log for _ in range(2))
    assert one is not other and one.steps == [] and not one.full


# ---- what a method chose

def test_choices_are_kept_and_printed_once_they_are_whole(tiny_file, folder, tmp_path, capsys):
    job = started(tiny_file, folder, tmp_path)
    capsys.readouterr()
    rho, trials = ("rho", 0.5), ("trials", [[0.5, 0.75], [0.3, 0.5]])
    for order in ((rho, trials), (trials, rho)):
        for name, value in order:
            assert capsys.readouterr().out == ""
            job.on_choice(name, value)
        assert capsys.readouterr().out == "on validation: rho 0.5 75.0 %, rho 0.3 50.0 %; kept: rho 0.5\n"
        assert job.outcome == {"rho": 0.5, "trials": [{"rho": 0.5, "accuracy": 75.0}, {"rho": 0.3, "accuracy": 50.0}]}
        job.outcome.clear()
    job.on_choice("augmenter", "eda")
    assert capsys.readouterr().out == ""
    job.on_choice("losses", {"split": 1.0, "eda": 2.5})
    assert capsys.readouterr().out == "auto: eda, by the victim's mean cross-entropy: split 1.0000, eda 2.5000\n"
    job.on_choice("heads", [[0, 1]])
    assert job.outcome == {"augmenter": "eda", "losses": {"split": 1.0, "eda": 2.5}, "heads": [[0, 1]]}
    assert capsys.readouterr().out == "" and not {"rho", "augmenter", "losses"} & job.args.keys()


def test_a_rho_that_was_given_is_no_search(tiny_file, folder, tmp_path, capsys):
    job = started(tiny_file, folder, tmp_path)
    capsys.readouterr()
    job.on_choice("rho", 0.5)
    job.on_choice("trials", [])
    assert job.outcome == {"rho": 0.5, "trials": []} and capsys.readouterr().out == ""


# ---- the table of repairs

def test_each_repair_is_read_without_torch_and_is_what_it_names():
    for name, repair in REPAIRS.items():
        settings, function = repair.settings_class, inspect.signature(_imported(repair.function))
        flags = repair.flags
        assert flags is not settings and asdict(flags()) == asdict(settings()), name
        named = list(function.parameters)
        assert named[:2 + repair.takes_pretrained] == ["victim", *["pretrained"] * repair.takes_pretrained, "clean"]
        assert {"validation", "settings", "seed", "dtype", "log", "on_stage", "on_choice"} <= set(named), name
        assert function.parameters["settings"].default == settings()


@pytest.mark.parametrize("takes", [False, True])
def test_the_pretrained_weights_go_to_who_takes_them(monkeypatch, takes):
    module = types.ModuleType("minibd.made_up")
    module.repair = lambda *rows, **options: (rows, options)
    monkeypatch.setitem(sys.modules, "minibd.made_up", module)
    repair = Repair("made_up.Settings", "made_up.repair", takes)
    found = repair("victim", "pretrained", "clean", "validation", "settings", seed=3)
    assert found == (("victim", *["pretrained"] * takes, "clean", "validation", "settings"), {"seed": 3})


@pytest.mark.parametrize("script, words, needed", [
    ("mbtsad.py", ("--cft", "--epochs1", "1", "--epochs2", "1", "--k", "1"), {"mbtsad", "finetune"}),
    ("pure.py", ("--floor", "0", "--epochs", "1"), {"pure"}), ("finemix.py", (), None),
    ("baseline.py", ("cft", "--steps", "1", "--epochs", "1"), {"finetune"}),
    ("baseline.py", ("reinit", "--steps", "1", "--epochs", "1"), {"reinit"}),
])
def test_a_script_imports_the_method_that_it_runs_and_no_other(tiny_file, folder, tmp_path, script, words, needed):
    """finemix.py is not run to its end: it has no pre-trained weights."""
    code = f"""
import runpy, sys
sys.argv = {[script, *words, "--ckpt", str(tiny_file), "--data", str(folder), "--clean", "20", "--device", "cpu",
             "--out", str(tmp_path / "out")]!r}
try:
    runpy.run_path({str(ROOT / "scripts" / script)!r}, run_name="__main__")
except SystemExit as end:
    assert {needed is None} and end.code == 2, end.code
print(*sorted(name for name in sys.modules if name.startswith(("minibd.mitigations.", "minibd.cleantrain."))))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found = {name.rpartition(".")[2] for name in done.stdout.splitlines()[-1].split()}
    assert found - {"epur"} == (needed or {"finemix"}) and ("epur" not in found or needed is None)


def test_a_link_to_itself_is_no_file_and_no_traceback(tiny, tiny_file, tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert data_of(Task(ckpt="m", data=str(loop)), tiny) == {"path": str(loop)}
    assert entry_of(Attack(attack="paraphrase", paraphrases=str(loop)), 0)["paraphrases"] == str(loop)
    fails(lambda: data.read_splits(loop), f"{loop} does not exist")
