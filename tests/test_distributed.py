"""Two processes that share each batch have the numbers of one; what a run of several prints, writes and ends with."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from distributed_cases import CASES
from minibd import checkpoint

CASES_FILE = Path(__file__).with_name("distributed_cases.py")


def forked(what: str, folder: Path) -> Path:
    done = subprocess.run([sys.executable, CASES_FILE, what, folder], cwd=ROOT, text=True, capture_output=True,
                          timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    return folder


# ---- numbers

@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> list[dict]:
    """Every case as each of two processes has it."""
    folder = forked("numbers", tmp_path_factory.mktemp("numbers"))
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_numbers_of_one(name, of_two):
    one, (first, second) = CASES[name](), (of[name] for of in of_two)
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
        assert torch.allclose(value.double(), first[key].double(), rtol=1e-5, atol=1e-6), (
            f"{key}: {(value - first[key]).abs().max()}")


# ---- ends

@pytest.fixture(scope="module")
def ends(tmp_path_factory) -> Path:
    return forked("ends", tmp_path_factory.mktemp("ends"))


def ended(ends: Path, name: str) -> tuple[list[int], str, str, list[dict]]:
    """The exit statuses of three processes, and what they printed, all together."""
    every = json.loads((ends / f"{name}.json").read_text())
    assert all(one["seconds"] < 60 for one in every)
    return ([one["status"] for one in every], *("".join(one[stream] for one in every) for stream in ("out", "err")),
            every)


def test_one_process_prints_and_writes(ends):
    statuses, out, err, _ = ended(ends, "whole")
    assert (statuses, out, err) == ([0, 0, 0], "the result\n", "a warning\n")
    assert [path.name for path in ends.glob("*.txt")] == ["0.txt"]
    assert [path.name for path in (ends / "run").iterdir()] == ["model.safetensors"]


def test_the_processes_leave_no_thread_behind_that_could_abort_them(ends):
    statuses, out, err, _ = ended(ends, "trained_last")
    assert (statuses, out, err) == ([0, 0, 0], "", "")


def test_bad_input_is_one_line_and_status_2_for_all(ends):
    statuses, out, err, _ = ended(ends, "bad_input")
    assert (statuses, out, err) == ([2, 2, 2], "", "error: no row is of class 1: give rows of both\n")


@pytest.mark.parametrize("name, who", [("bad_input_of_one", 1), ("not_written", 0)])
def test_bad_input_of_one_process_ends_all(ends, name, who):
    statuses, _, err, every = ended(ends, name)
    assert statuses[who] == 2 and all(status == 1 for i, status in enumerate(statuses) if i != who)
    assert err.count("\n") == 1 and every[who]["err"].startswith("error: ")


def test_a_process_that_is_killed_ends_the_run_in_one_line(ends):
    statuses, _, err, _ = ended(ends, "killed")
    assert statuses == [1, -9, 1]
    assert err.count("\n") == 1 and err.startswith("error: one of the 3 processes has ended")


def test_a_bug_has_one_traceback(ends):
    statuses, _, err, _ = ended(ends, "bug")
    assert statuses == [1, 1, 1] and err.count("Traceback") == 1 and err.endswith("ZeroDivisionError\n")


# ---- with torchrun, from the command line

def started(world: int, name: str, *args: object) -> subprocess.CompletedProcess:
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(world)] if world > 1 else []
    return subprocess.run([sys.executable, *launch, f"scripts/{name}", *map(str, args)], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


@pytest.mark.slow
@pytest.mark.parametrize("name, flags", [
    ("mbtsad.py", ("--clean", 42, "--best-epoch", "--epochs1", 1, "--epochs2", 1, "--attack", "badnets")),
    ("pure.py", ("--clean", 45, "--epochs", 1, "--floor", 0, "--keep-head", "--attack", "badnets")),
    ("baseline.py", ("meft", "--clean", 45, "--epochs", 1, "--attack", "badnets")),
])
def test_a_script_has_the_same_result(name, flags, tiny_file, folder, tmp_path):
    results = []
    for world in (1, 2):
        job = [*flags[:1], "--ckpt", tiny_file] if name == "baseline.py" else ["--ckpt", tiny_file, *flags[:1]]
        done = started(world, name, *job, *flags[1:], "--data", folder, "--out", tmp_path / str(world))
        assert done.returncode == 0, done.stderr
        results.append((done.stdout, json.loads((tmp_path / str(world) / "result.json").read_text()), [
            json.loads(line) for line in (tmp_path / str(world) / "steps.jsonl").read_text().splitlines()]))
    (one_said, one, one_steps), (two_said, two, two_steps) = results
    assert one_said.count("\n") == two_said.count("\n")
    for result in (one, two):
        for key in ("seconds", "command", "output_sha256"):
            del result[key]
        del result["args"]["out"]
        for step in result["steps"]:
            del step["seconds"]
    assert one == two
    for a, b in zip(one_steps, two_steps, strict=True):
        assert a["batch"] == b["batch"] and a["total"] == pytest.approx(b["total"], rel=1e-3)
    # A softmax does not see a key's bias: its gradient is rounding, which Adam makes into whole steps.
    weights = [torch.cat([p.detach().flatten() for name, p in checkpoint.load(path).model.named_parameters()
                          if not name.endswith("key.bias")])
               for path in (tiny_file, *(tmp_path / world / tiny_file.name for world in "12"))]
    assert (weights[1] - weights[2]).norm() < 0.1 * (weights[1] - weights[0]).norm()


@pytest.mark.slow
def test_bad_input_under_torchrun_is_said_once(tiny_file, folder, tmp_path):
    """torchrun ends with a report of its own and status 1, whatever the processes' is."""
    done = started(2, "mbtsad.py", "--ckpt", tiny_file, "--data", folder, "--lr1", "-1", "--out", tmp_path / "none")
    assert done.returncode == 1 and done.stderr.count("error: a learning rate of -1.0") == 1
    assert "exitcode  : 2" in done.stderr and not (tmp_path / "none").exists()
