"""Two processes that share each batch have the numbers of one; what a run of several prints, writes and ends with."""
from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from distributed_cases import CASES

HERE = Path(__file__).parent
WORLD = 2


def start(command: list[object], world: int = WORLD, **more: str) -> list[subprocess.Popen]:
    """The processes that torchrun would start, without its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "WORLD_SIZE": str(world),
             "MASTER_ADDR": "localhost", "MASTER_PORT": port, **more}
    return [subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, env={**given, "RANK": str(i), "LOCAL_RANK": str(i)})
            for i in range(world)]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> list[dict]:
    """Every case as each of two processes has it."""
    folder = tmp_path_factory.mktemp("two")
    for process in start([HERE / "distributed_cases.py", folder]):
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_have_the_numbers_of_one(name, of_two):
    one, (first, second) = CASES[name](), (of[name] for of in of_two)
    assert one.keys() == first.keys() == second.keys()
    for key, value in one.items():
        assert torch.equal(first[key], second[key]), f"{key} differs between the processes"
        assert torch.allclose(value.double(), first[key].double(), rtol=1e-5, atol=1e-6), (
            f"{key}: {(value - first[key]).abs().max()}")
