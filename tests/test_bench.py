"""bench.py's figures: which way round a ratio is, what counts as a token, and that both ways do the same work."""
import re
import sys

import pytest
import torch

from conftest import refused
from minibd import checkpoint, data


@pytest.fixture
def bench(here):
    run = here("bench.py")
    return run, sys.modules["bench_script"]


def rows_of(out: str) -> dict[str, list[str]]:
    """{way: its figures} of the lines below the head, without memory and share."""
    return {line[:22].strip(): line[22:].split() for line in out.splitlines()
            if re.search(r" \d+\.\d\d-\d+\.\d\d ", line)}


TIMES = {"a, ours": [1.0, 2.0, 4.0], "a, usual": [3.0, 4.0, 20.0], "b, ours": [2.0] * 3, "b, kept": [1.0] * 3}


def test_a_ratio_is_how_many_times_ours_the_other_takes(bench):
    """By round, and of those the median and the range; never the ratio of two medians."""
    figures = bench[1].figures
    assert figures(TIMES, "a, usual", 100) == (4.0, 3.0, 2.0, 5.0, 25.0)
    assert figures(TIMES, "a, ours", 100) == (2.0, 1.0, 1.0, 1.0, 50.0)
    assert figures(TIMES, "b, kept", 100) == (1.0, 0.5, 0.5, 0.5, 100.0)
    with pytest.raises(ValueError):
        figures({"a, ours": [1.0], "a, usual": [1.0, 2.0]}, "a, usual", 1)


def test_the_lines(bench, capsys):
    bench[1].print_figures(TIMES, {"a, ours": 3 << 20, "a, usual": None}, 100, {"a, ours": 1e9, "a, usual": 1e9}, 2e9)
    found = rows_of(capsys.readouterr().out)
    assert found["a, ours"] == ["2.00", "1.00", "1.00-1.00", "50", "3", "MiB", "25.0", "%"]
    assert found["a, usual"] == ["4.00", "3.00", "2.00-5.00", "25", "?", "12.5", "%"]


def test_ways_take_turns_batch_by_batch(bench):
    order = []
    ways = {name: lambda i, name=name: order.append((name, i)) for name in "ab"}
    times = bench[1].by_round(ways, 2, 2, torch.device("cpu"))
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)] * 2
    assert all(len(taken) == 2 and min(taken) >= 0 for taken in times.values())


def test_the_trainings(bench, tiny_file, folder, monkeypatch):
    """Real tokens alone are counted, a quick run takes what it says, and the kept teacher is asked before the clock."""
    run, module = bench
    monkeypatch.setattr(module, "product_speed", lambda *_: 1e9)
    done = run("train", "--ckpt", tiny_file, "--data", folder, "--quick")
    assert done.returncode == 0, done.stderr
    rows = checkpoint.load(tiny_file).tokenizer.encode(data.read_splits(folder, hold_out=False).train[:32])
    real = sum(rows.lengths)
    assert len({*rows.lengths}) > 3 and f"32 texts, {real} tokens, in batches of 16" in done.stdout
    found = rows_of(done.stdout)
    assert list(found) == ["TS-FT, ours", "TS-FT, usual", "MBTSAD, ours", "MBTSAD, teacher kept", "MBTSAD, usual"]
    for name, (took, ratio, spread, pace, *_) in found.items():
        low, high = map(float, spread.split("-"))
        assert low <= float(ratio) <= high and (float(ratio) == 1) >= name.endswith("ours")
        if float(took) > 0.05:
            assert float(pace) * float(took) == pytest.approx(real, rel=0.2)


def test_the_answers_and_pure_whole(bench, tiny, folder, tmp_path, monkeypatch):
    run, module = bench
    monkeypatch.setattr(module, "product_speed", lambda *_: 1e9)
    checkpoint.save(tiny, tmp_path / "model")
    done = run("evaluation", "--ckpt", tmp_path / "model", "--data", folder, "--batches", 2, "--batch-size", 8,
               "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = tiny.tokenizer.encode(data.read_splits(folder, hold_out=False).test[:16])
    assert f"16 rows, {sum(rows.lengths)} tokens" in done.stdout and "; 0 answers differ" in done.stdout
    assert list(rows_of(done.stdout)) == ["answers, ours", "answers, usual"]
    done = run("evaluation", "--ckpt", tmp_path / "model", "--data", folder, "--batches", 2, "--batch-size", 8,
               "--rounds", 1, "--dtype", "bfloat16")
    assert done.returncode == 0 and list(rows_of(done.stdout))[2:] == ["answers, usual float32"], done.stderr
    done = run("pure", "--ckpt", tmp_path / "model", "--data", folder, "--batches", 1, "--batch-size", 8, "--rounds", 1,
               "--rows", 8)
    assert done.returncode == 0, done.stderr
    found = rows_of(done.stdout)
    assert "8 dev rows" in done.stdout and "the same" in done.stdout and len(found) == 8
    for kind in ("ours", "usual"):
        parts = [float(found[f"{part}, {kind}"][0]) for part in ("FT", "pruning", "normalisation")]
        assert float(found[f"whole, {kind}"][0]) == pytest.approx(sum(parts), abs=0.02)
    refused(run("evaluation", "--ckpt", tmp_path / "model"), "give --ckpt a fine-tuned folder")
    refused(run("filters", "--ckpt", tmp_path / "model", "--data", tmp_path, "--lm", "lm.safetensors"),
            "--lm lm.safetensors", "a Hugging Face folder")
