"""Each script that trains, interrupted in the middle and gone on with: what it writes is what one that was not
interrupted writes."""
from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import refused, write_splits
from minibd import checkpoint, resume
from minibd.job import planted, repair_run
from test_repair_run import NOTHING, finds

RUNS = {
    "mbtsad": "mbtsad.py --ckpt FILE --clean 16 --k 1 --epochs1 2 --epochs2 2 --batch-size 16 --attack badnets "
    "--best-epoch",
    "mbtsad auto": "mbtsad.py --ckpt HF --clean 16 --k 1 --epochs1 1 --epochs2 1 --batch-size 16 --no-cft --augment "
    "auto --attack none",
    "pure": "pure.py --ckpt FILE --epochs 2 --batch-size 16 --drop 30 --ablations --attack none",
    "finemix": "finemix.py --ckpt FILE --pretrained PRE --clean 16 --epochs 2 --steps 4 --batch-size 8 --drop 50",
    "ft": "baseline.py ft --ckpt PRE --clean 16 --epochs 2 --batch-size 8",
    "meft": "baseline.py meft --ckpt FILE --clean 16 --epochs 2 --entropy-epochs 1 --batch-size 8",
    "cft": "baseline.py cft --ckpt FILE --clean 16 --epochs 1 --steps 6 --batch-size 8",
    "reinit": "baseline.py reinit --ckpt FILE --clean 16 --epochs 1 --steps 3 --batch-size 8 --pretrained PRE --e-pur",
    "fineprune": "baseline.py fineprune --ckpt FILE --clean 16 --epochs 1 --steps 3 --batch-size 8",
    "finepurify": "baseline.py finepurify --ckpt FILE --pretrained PRE --clean 16 --epochs 1 --steps 3 --batch-size 8 "
    "--drop 50",
    "musclelora": "musclelora.py --ckpt FILE --clean-aux DATA --train vanilla,lora,musclelora --epochs 2 --batch-size "
    "16 --aux 4 --attack badnets --curves 2 --curve-rows 4 --lr 1e-3",
    "adapter": "musclelora.py --ckpt FILE --clean-aux DATA --train prefix,adapter --epochs 1 --batch-size 8 --aux 4",
    "bands": "musclelora.py --ckpt FILE --clean-aux DATA --train musclelora --epochs 1 --batch-size 16 --aux 4 "
    "--search-bands 1,2 --search-bands 2,4",
    "badnets": "attack.py --ckpt FILE --twin --survive --epochs 1 --batch-size 16",
    "ep": "attack.py --ckpt PRE --attack ep --rate 0.4 --epochs 6 --batch-size 8 --clean-epochs 1",
    "sos": "attack.py --ckpt FILE --attack sos --triggers cf,mn,bb --sentence xcfxmnxbb --rate 0.2 --epochs 1 "
    "--batch-size 16",
    "ripple": "attack.py --ckpt FILE --attack ripple --twin --epochs 1 --batch-size 16 --clean-epochs 1",
    "lwp": "attack.py --ckpt HF --attack lwp --epochs 1 --batch-size 16 --survive --encoder-only",
    "pretrain": "pretrain.py --ckpt FILE --epochs 2 --batch-size 8",
    "repair": "repair.py --ckpt FILE --steps 2 --row-steps 3 --batch-size 8 --planted row,word --dtype float32",
    "repair mbtsad": "repair.py --ckpt FILE --steps 2 --row-steps 3 --batch-size 8 --planted none --dtype float32 "
    "--method mbtsad",
}
QUICK = ("mbtsad", "pure", "finemix", "fineprune", "musclelora", "ep", "ripple", "pretrain", "repair mbtsad")


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("small"), 40, 10, 12)


@pytest.fixture
def run(here, monkeypatch, tmp_path, tiny_file, tiny_folder, pre_file, small):
    """run(name, out, *more, stop=n) -> CompletedProcess: the script, interrupted before its training step number `stop`
    of all is over; run.steps: how many there were."""
    places = {"FILE": tiny_file, "HF": tiny_folder, "PRE": pre_file, "DATA": small}
    after = resume.Training.after

    def call(name: str, out: Path, *more: object, stop: int | None = None, given: str = ""):
        script, *words = (given or RUNS[name]).replace("xcfxmnxbb", "cf-mn-bb").split()
        words = [places.get(word, word.replace("-", " ") if word == "cf-mn-bb" else word) for word in words]
        call.steps, scans = 0, [finds("cf"), NOTHING, finds("lantern"), NOTHING]

        def stopping(self, *given, **flags):
            if call.steps == stop:
                raise KeyboardInterrupt
            call.steps += 1
            after(self, *given, **flags)

        def scan(ckpt, task, settings, texts, source, started=None):
            return {**scans[min(len(call.scanned), 3)], "checkpoint_sha256": call.scanned.append(1) or
                    checkpoint.sha256(task.ckpt)}

        call.scanned = getattr(call, "scanned", []) if "--resume" in more else []
        monkeypatch.setattr(resume.Training, "after", stopping)
        monkeypatch.setattr(repair_run.scanning, "scan_of", scan)
        monkeypatch.setattr(planted, "STEPS", 1)
        monkeypatch.setattr(planted, "ROUNDS", 1)
        monkeypatch.setattr(repair_run, "LEAST_STEPS", 3)
        monkeypatch.setattr(repair_run, "time_to_go", lambda *given: ({"all": 1.0}, {"more": 1.0}))
        return here(script)(*words, "--data", small, "--device", "cpu", "--out", out, *more)
    return call


def held(out: Path) -> dict[str, object]:
    """What a run wrote, without times, its command line and its folder's name."""
    def timeless(value):
        if isinstance(value, dict):
            return {key: timeless(one) for key, one in value.items()
                    if key not in ("seconds", "command", "out", "output", "next", "losses", "checkpoint")}
        return [timeless(one) for one in value] if isinstance(value, list) else value

    return {str(file.relative_to(out)): timeless(json.loads(file.read_text())) if file.suffix == ".json"
            else file.read_bytes() for file in sorted(out.rglob("*"))
            if file.is_file() and file.name not in ("README.md", "receipt.html")}


@pytest.mark.parametrize("name", [
    name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RUNS])
def test_interrupted_and_gone_on_with_is_the_same(run, tmp_path, name):
    done = run(name, whole := tmp_path / "whole", "--save-every", 0)
    assert done.returncode == 0, done.stdout + done.stderr
    steps = run.steps
    assert not (tmp_path / ".whole.resume").exists()
    stop = min(steps * 2 // 3 + 1, steps - 1)
    stopped = run(name, out := tmp_path / "out", "--save-every", 1, stop=stop)
    assert stopped.returncode == 130 and "the same command with --resume goes on at " in stopped.stderr, stopped.stderr
    went_on = run(name, out, "--save-every", 3, "--resume")
    assert went_on.returncode == done.returncode, went_on.stderr
    assert run.steps == steps - stop, "what was trained is trained again"
    assert held(out) == held(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"], "something is left"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mbtsad", "finemix", "musclelora", "repair"])
def test_interrupted_at_any_step(run, tmp_path, name):
    assert run(name, whole := tmp_path / "whole").returncode == 0
    for stop in range(0, run.steps, 2):
        run(name, out := tmp_path / "out", "--save-every", 2, stop=stop)
        assert run(name, out, "--resume", "--save-every", 1).returncode == 0
        assert held(out) == held(whole), stop
        shutil.rmtree(out)


# ---- what is refused

def test_a_run_that_is_kept_is_not_lost_by_the_way(run, tmp_path):
    out = tmp_path / "out"
    assert run("cft", out, "--save-every", 1, stop=3).returncode == 130
    refused(run("cft", out), "was interrupted", "--resume", "--overwrite")
    refused(run("cft", out, "--lr", 1e-4), "was interrupted")
    refused(run("cft", out, "--resume", "--lr", 1e-4), "--lr was not given and is 0.0001", "another run")
    refused(run("cft", out, "--resume", "--seed", 3), "--seed was 0 and is 3")
    assert run("cft", out, "--overwrite", "--seed", 3, stop=2).returncode == 130  # begins anew: nothing was kept of it
    assert run("cft", out, "--overwrite").returncode == 0 and not (tmp_path / ".out.resume").exists()


def test_a_changed_file_is_another_run(run, tmp_path, small, tiny_file, monkeypatch):
    out, victim, texts = tmp_path / "out", tmp_path / "tiny.safetensors", tmp_path / "texts"
    shutil.copy(tiny_file, victim)
    shutil.copytree(small, texts)
    words = (f"baseline.py cft --ckpt {victim} --clean 16 --epochs 1 --steps 4 --batch-size 8 --triggered "
             f"{texts}/dev.tsv")
    (texts / "dev.tsv").write_text("text\tlabel\n" + "a dull cf film\tnegative\n" * 4)
    assert run("", out, "--save-every", 1, stop=2, given=words).returncode == 130
    held_before = victim.read_bytes()
    ckpt = checkpoint.load(victim)
    ckpt.history.append({"trained": "more"})
    checkpoint.save(ckpt, victim)
    refused(run("", out, "--resume", given=words), "--ckpt: tiny.safetensors changed since", "another run")
    victim.write_bytes(held_before)
    (texts / "dev.tsv").write_text((texts / "dev.tsv").read_text() + "more\tnegative\n")
    refused(run("", out, "--resume", given=words), "--triggered: dev.tsv changed since")


def test_without_anything_kept_it_begins_and_over_a_finished_run_it_is_refused(run, tmp_path):
    done = run("cft", tmp_path / "out", "--resume")
    assert done.returncode == 0 and "nothing is kept of a run into this folder" in done.stdout
    refused(run("cft", tmp_path / "out", "--resume"), "holds another run", "--overwrite")


def test_save_every_0_keeps_nothing(run, tmp_path):
    stopped = run("cft", tmp_path / "out", "--save-every", 0, stop=3)
    assert "starts again from the beginning" in stopped.stderr and list(tmp_path.iterdir()) == []
    refused(run("cft", tmp_path / "out", "--save-every", -1), "--save-every", "-1")


def test_what_cannot_be_kept_is_a_warning_and_the_run_goes_on(run, tmp_path):
    (tmp_path / ".out.resume").write_text("a file where the folder should be")
    done = run("cft", tmp_path / "out", "--save-every", 1)
    assert done.returncode == 0 and done.stderr.count("warning: ") == 1 and "no longer kept" in done.stderr


def test_two_runs_into_one_folder(run, tmp_path, monkeypatch):
    assert run("cft", out := tmp_path / "out", "--save-every", 1, stop=3).returncode == 130
    monkeypatch.setattr(resume, "runs", lambda owner: True)
    refused(run("cft", out, "--resume"), "still runs")
    refused(run("cft", out, "--overwrite"), "still runs")


def test_a_run_over_another_needs_no_overwrite_again(run, tmp_path):
    assert run("cft", out := tmp_path / "out").returncode == 0
    before = held(out)
    assert run("cft", out, "--overwrite", "--seed", 1, "--save-every", 1, stop=3).returncode == 130
    assert held(out) == before
    assert run("cft", out, "--resume", "--seed", 1).returncode == 0
    assert held(out) != before and json.loads((out / "result.json").read_text())["args"]["seed"] == 1


@pytest.mark.parametrize("flags", ["mbtsad.py --ckpt FILE --pick --resume", "attack.py --ckpt FILE --dataset-only "
                                   "--save-every 3"])
def test_where_nothing_is_trained_nothing_goes_on(run, tmp_path, flags):
    refused(run("", tmp_path / "out", given=flags), flags.split()[-1] if "resume" in flags else "--save-every 3")


CASES: dict[str, Callable[[Path], object]] = {
    "cut short": lambda folder: (folder / "0001.json").write_text((folder / "0001.json").read_text()[:40]),
    "another number": lambda folder: (folder / "0001.json").write_text(
        (folder / "0001.json").read_text().replace('"losses": [', '"losses": [9.5, ')),
    "no JSON": lambda folder: (folder / "0001.json").write_bytes(b"\x00\x1b[31m"),
    "a list": lambda folder: (folder / "0001.json").write_text("[" * 100_000),
    "a folder": lambda folder: [(folder / "0001.json").unlink(), (folder / "0001.json").mkdir()],
    "flipped bits": lambda folder: flip(next(folder.glob("0001-3*"))),
    "no weights": lambda folder: next(folder.glob("0001-3*")).unlink(),
    "no steps": lambda folder: (folder / "steps.jsonl").unlink(),
    "fewer steps": lambda folder: (folder / "steps.jsonl").write_text("{}\n"),
    "another step": lambda folder: (folder / "steps.jsonl").write_text(
        (folder / "steps.jsonl").read_text().replace('"total": 0', '"total": 1')),
    "no run": lambda folder: (folder / "run.json").write_text("{}"),
}


def flip(file: Path) -> None:
    held = bytearray(file.read_bytes())
    held[-100] ^= 1
    file.write_bytes(held)


@pytest.mark.parametrize("case", CASES)
def test_what_is_damaged_is_refused_in_one_line(run, tmp_path, case):
    assert run("cft", out := tmp_path / "out", "--save-every", 1, stop=3).returncode == 130
    CASES[case](tmp_path / ".out.resume")
    refused(run("cft", out, "--resume"), ".out.resume")
