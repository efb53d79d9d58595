"""The scripts that train, scan or screen, on a GPU: skipped where there is none."""
import json
import math

import pytest
import torch

from conftest import write_splits
from minibd import checkpoint
from minibd.records import Example
from test_resume_scripts import RUNS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICE = "cuda"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("small"), 40, 10, 12)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in RUNS if not name.startswith("repair")])
def test_a_training(here, tmp_path, tiny_file, tiny_folder, pre_file, small, name, dtype):
    places = {"FILE": tiny_file, "HF": tiny_folder, "PRE": pre_file, "DATA": small, "xcfxmnxbb": "cf mn bb"}
    script, *words = RUNS[name].split()
    run = here(script)(*(places.get(word, word) for word in words), "--data", small, "--device", DEVICE, "--dtype",
                       dtype, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    if script not in ("attack.py", "pretrain.py"):  # they keep no steps
        steps = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
        assert steps and all(math.isfinite(step["total"]) for step in steps)


@pytest.mark.parametrize("name", ["onion", "strip", "rap", "bki", "cube"])
def test_a_filter(here, tmp_path, tiny_file, small, name):
    if name == "cube":
        pytest.importorskip("sklearn")
    run = here("filter.py")(name, "--ckpt", tiny_file, "--data", small / "train.tsv", "--clean", small / "dev.tsv",
                            "--device", DEVICE, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    assert len((tmp_path / "out" / "train.tsv").read_text().splitlines()) > 40


def test_a_scan_and_a_repair(here, tmp_path, tiny_file, small):
    run = here("scan.py")("--ckpt", tiny_file, "--data", small, "--device", DEVICE, "--out", tmp_path / "out")
    assert run.returncode in (0, 1, 3), run.stderr
    run = here("repair.py")("--ckpt", tiny_file, "--data", small, "--suspects", tmp_path / "out" / "scan.json",
                            "--planted", "none", "--device", DEVICE, "--out", tmp_path / "repaired")
    assert run.returncode in (0, 3), run.stderr


def test_a_forward_pass_is_the_cpus(tiny):
    rows = [Example("0", "good film", 1), Example("1", "a bad , dull plot cf", 0)]
    batch = tiny.tokenizer.batch(tiny.tokenizer.encode(rows), [0, 1])
    there = checkpoint.copy(tiny).model.to(DEVICE)
    with torch.no_grad():
        own, other = tiny.model(batch, ("attn", "hidden")), there(batch.to(DEVICE), ("attn", "hidden"))
    for a, b in zip((own.logits, *own.hidden, *own.attn), (other.logits, *other.hidden, *other.attn), strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-4)
