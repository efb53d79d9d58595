"""A run without a measured ASR says so, and writes it into the model card; --suspects undoes before the method."""
import json

import pytest

from conftest import refused
from minibd import checkpoint
from minibd.job.unproven import NOT_SHOWN, lines_of, verdict_of
from scan_reports import NOTHING, judged, report, suspect

FAST = ("--steps", 1, "--epochs", 1, "--clean", 40, "--device", "cpu")


def test_the_block_names_the_next_command():
    verdict = verdict_of("a b/model", {"data": "rows.csv"})
    assert verdict["next"] == "python scripts/scan.py --ckpt 'a b/model' --data rows.csv"
    assert lines_of(verdict) == [f"verdict: {NOT_SHOWN}", f"next:    {verdict['next']}"]
    assert verdict_of("m", {"data": "", "text_column": "t"})["next"] == "python scripts/scan.py --ckpt m"
    alike = {"data": "r.csv", "text_column": "my text", "label_column": None, "pair_column": "b",
             "labels": ("no", "yes")}
    assert verdict_of("m", alike)["next"] == (
        "python scripts/scan.py --ckpt m --data r.csv --text-column 'my text' --pair-column b --labels no,yes")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_repair_without_a_known_attack_is_not_shown_to_be_clean(here, tiny_folder, tiny_file, folder, tmp_path, kind):
    ckpt = tiny_folder if kind == "folder" else tiny_file
    run = here("baseline.py")("cft", "--ckpt", ckpt, "--data", folder, "--out", tmp_path / "out", *FAST)
    assert run.returncode == 0, run.stderr
    assert f"verdict: {NOT_SHOWN}" in run.stdout and f"scan.py --ckpt {tmp_path / 'out'}" in run.stdout
    outcome = json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]
    assert outcome["verdict"] == NOT_SHOWN and outcome["next"].endswith(f"--data {folder}")
    path = tmp_path / "out" if kind == "folder" else tmp_path / "out" / "tiny.safetensors"
    assert not any("verdict" in entry for entry in checkpoint.load(path).history)
    if kind == "folder":
        card = (path / "README.md").read_text()
        assert f"**{NOT_SHOWN}.**" in card and card.count(NOT_SHOWN) == 1 and "Next: `python scripts/scan.py" in card


def test_with_a_measured_asr_nothing_is_said(here, tiny_file, folder, tmp_path):
    run = here("baseline.py")("cft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *FAST,
                              "--attack", "badnets")
    assert run.returncode == 0 and "verdict:" not in run.stdout
    assert "verdict" not in json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]


def test_evaluate_says_so_too(here, tiny_file, folder, tmp_path):
    run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--device", "cpu")
    assert run.returncode == 0 and f"verdict: {NOT_SHOWN}" in run.stdout


# ---- --suspects

def scan_json(path, ckpt, found) -> str:
    path.write_text(json.dumps({**found, "checkpoint_sha256": checkpoint.sha256(ckpt)}))
    return str(path)


@pytest.fixture
def cf_found(tiny_file, tmp_path, monkeypatch) -> str:
    """A scan.json that names "cf", of which two steps undo."""
    from minibd.mitigations import unlearn
    usual = unlearn.Unlearning.__init__.__defaults__
    monkeypatch.setattr(unlearn.Unlearning.__init__, "__defaults__",
                        tuple(2 if value in (100, 200) else value for value in usual))
    found = report("backdoored", {"negative": judged("nothing found"), "positive": judged(
        "backdoored", suspect(["cf"]))})
    return scan_json(tmp_path / "scan.json", tiny_file, found)


def test_suspects_are_undone_before_the_method(here, tiny_file, folder, tmp_path, cf_found):
    run = here("baseline.py")("cft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *FAST,
                              "--suspects", cf_found)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [step["name"] for step in result["steps"]] == ["victim", "unlearned", "CFT"]
    assert result["outcome"]["unlearned"]["rows"] == ["cf"] and "undone: rows trained, since" in run.stdout
    stages = [json.loads(line)["stage"] for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert stages[0] == "unlearn" and stages[-1] == "CFT"
    history = [entry.get("mitigation") for entry in checkpoint.load(tmp_path / "out" / "tiny.safetensors").history]
    assert history[:2] == ["unlearning", "fine-tuning"]


def test_what_the_method_brings_back_is_undone_again(
    here, tiny_file, pre_file, folder, tmp_path, cf_found, monkeypatch,
):
    from minibd.job import undone
    monkeypatch.setattr(undone, "brought_back", lambda ckpt, findings, texts, seed: findings)
    run = here("finemix.py")("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *FAST, "--rho", 1,
                             "--pretrained", pre_file, "--suspects", cf_found)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [step["name"] for step in result["steps"]][-2:] == ["Fine-mixing", "unlearned again"]
    assert {"unlearned", "unlearned again"} <= result["outcome"].keys()
    assert "undone again: cf, which finemix brought back" in run.stdout
    made = checkpoint.load(tmp_path / "out" / "tiny.safetensors")
    assert made.history[-1]["mitigation"] == "unlearning" and result["after"]["cacc"] == result["steps"][-1]["cacc"]


def test_a_scan_that_names_nothing_leaves_the_method_alone(here, tiny_file, folder, tmp_path):
    path = scan_json(tmp_path / "scan.json", tiny_file, NOTHING)
    run = here("baseline.py")("cft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *FAST,
                              "--suspects", path)
    assert run.returncode == 0 and "--suspects names no words" in run.stdout
    assert "unlearned" not in json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]


def test_suspects_that_cannot_be_are_refused_before_anything_is_loaded(here, tiny_file, pre_file, folder, tmp_path):
    path = scan_json(tmp_path / "scan.json", tiny_file, NOTHING)
    out = ("--out", tmp_path / "out", "--device", "cpu", "--data", folder)
    refused(here("baseline.py")("cft", "--ckpt", tiny_file, "--suspects", "gone.json", *out), "gone.json",
            "no such file")
    refused(here("pure.py")("--ckpt", pre_file, "--suspects", path, *out), "no classifier")
    refused(here("choose.py")("--ckpt", tiny_file, "--suspects", path, "--data", folder), "--suspects", "planted")
    assert not (tmp_path / "out").exists()
