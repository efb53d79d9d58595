"""The commands as a user types them: what they print, what they write, and one clear line for what they cannot use."""
from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from minibd import checkpoint, data
from minibd.evaluate import predict

QUICK = ("--k", 2, "--epochs1", 2, "--epochs2", 2, "--lr1", 1e-3, "--lr2", 1e-3, "--device", "cpu")


def tree(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def done(script, tiny_file, folder, tmp_path_factory):
    """One full run on a file; several tests read what it left."""
    out, before = tmp_path_factory.mktemp("run") / "out", tiny_file.read_bytes()
    run = script("mbtsad.py", "--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", out, *QUICK)
    assert run.returncode == 0, run.stderr
    assert tiny_file.read_bytes() == before, "the victim's file was touched"
    return run, out


def test_the_table_has_a_row_a_model(done):
    run, _ = done
    names = [line.split()[0] for line in run.stdout.splitlines() if line and line.split()[0] in ("victim", "CFT", "TS-FT", "MBTSAD")]
    assert names == ["victim", "CFT", "TS-FT", "MBTSAD"]
    assert "CACC" in run.stdout and "ASR" in run.stdout and "/60" in run.stdout and "/30" in run.stdout
    assert "TS-FT" in run.stderr and "step" in run.stderr  # progress goes to stderr


def test_result_json_keeps_its_contract(done):
    _, out = done
    result = json.loads((out / "result.json").read_text())
    assert list(result) == ["method", "args", "versions", "rows", "before", "after", "steps", "seconds"]
    assert result["method"] == "mbtsad" and result["args"]["k"] == 2 and result["args"]["seed"] == 0
    assert result["rows"] == {"train": 200, "clean": 40, "augmented": 120, "test": 60}
    for part in (result["before"], result["after"]):
        assert set(part) == {"cacc", "asr", "n_clean", "n_triggered"}
        assert 0 <= part["cacc"] <= 100 and 0 <= part["asr"] <= 100 and (part["n_clean"], part["n_triggered"]) == (60, 30)
    assert [s["name"] for s in result["steps"]] == ["victim", "CFT", "TS-FT", "MBTSAD"]
    assert result["steps"][0]["cacc"] == result["before"]["cacc"] and result["steps"][-1]["asr"] == result["after"]["asr"]


def test_the_totals_in_steps_jsonl_can_be_added_by_hand(done):
    _, out = done
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert {s["stage"] for s in steps} == {"CFT", "TS-FT", "MBTSAD"}
    assert all(set(s["terms"]) == {"att", "hid", "cls"} for s in steps if s["stage"] == "MBTSAD")
    for s in steps:
        assert s["total"] == pytest.approx(sum(s["weights"][t] * v for t, v in s["terms"].items()), rel=1e-5)


def test_the_cleaned_file_is_a_checkpoint_that_scores_what_was_said(done, folder):
    _, out = done
    record = checkpoint.load(out / "tiny.safetensors")
    assert record.history[-1]["mitigation"] == "mbtsad"
    test = data.read_splits(folder, labels=record.labels).test
    hits = sum(p == x.label for p, x in zip(predict(record.model, record.text, test), test))
    assert 100 * hits / len(test) == json.loads((out / "result.json").read_text())["after"]["cacc"]


def test_the_same_seed_gives_the_same_numbers_and_another_does_not(done, script, tiny_file, folder, tmp_path):
    _, out = done
    again, other = tmp_path / "again", tmp_path / "other"
    common = ("--ckpt", tiny_file, "--data", folder, "--attack", "badnets", *QUICK)
    assert script("mbtsad.py", *common, "--out", again).returncode == 0
    assert script("mbtsad.py", *common, "--out", other, "--seed", 1).returncode == 0

    def numbers(path):
        result = json.loads((path / "result.json").read_text())
        return result["before"], result["after"], [{k: v for k, v in s.items() if k != "seconds"} for s in result["steps"]], result["rows"]

    assert numbers(again) == numbers(out)
    totals = [[json.loads(line)["total"] for line in (path / "steps.jsonl").read_text().splitlines()] for path in (again, other)]
    assert totals[0] != totals[1]


def test_a_hugging_face_folder_comes_back_as_one(script, tiny_folder, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    before, out = tree(tiny_folder), tmp_path / "out"
    run = script("mbtsad.py", "--ckpt", tiny_folder, "--data", folder / "train.tsv", "--out", out, "--no-cft", *QUICK)
    assert run.returncode == 0, run.stderr
    assert tree(tiny_folder) == before
    assert "ASR was not measured" in run.stdout
    result = json.loads((out / "result.json").read_text())
    assert result["after"]["asr"] is None and result["args"]["clean"] == 1.0 and result["rows"]["clean"] == result["rows"]["train"]
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.config.id2label == {0: "negative", 1: "positive"} and (out / "README.md").exists()
    ours, texts = checkpoint.load(out), data.read(folder / "test.tsv")
    with torch.no_grad():
        mine = ours.model(ours.text(texts)).logits
        other = theirs(**tokenizer([x.text for x in texts], padding=True, return_tensors="pt")).logits
    assert (mine - other).abs().max() < 1e-4


def test_attack_leaves_all_that_an_evaluation_needs(script, tiny_file, folder, tmp_path):
    out = tmp_path / "victim"
    run = script("attack.py", "--ckpt", tiny_file, "--data", folder, "--out", out, "--rate", 0.2, "--epochs", 6, "--lr", 2e-3, "--twin")
    assert run.returncode == 0, run.stderr
    told = json.loads((out / "attack.json").read_text())
    assert (told["n"], told["n_poisoned"], told["n_flipped"]) == (200, 40, 40)
    ids = (out / "poisoned_ids.txt").read_text().split()
    clean, poisoned = data.read(folder / "train.tsv"), data.read(out / "poisoned.jsonl")
    assert ids == [b.id for a, b in zip(clean, poisoned) if a != b] and len(ids) == 40
    assert len(data.read(out / "triggered.jsonl", labels=clean.labels)) == 30
    # The history names data and attack: neither --data nor --attack is needed to evaluate, and the file of triggered rows agrees.
    known = script("evaluate.py", "--ckpt", out / "tiny.safetensors", "--clean-ckpt", out / "clean-tiny.safetensors", "--out", tmp_path / "e1")
    given = script("evaluate.py", "--ckpt", out / "tiny.safetensors", "--triggered", out / "triggered.jsonl", "--out", tmp_path / "e2")
    assert known.returncode == given.returncode == 0, known.stderr + given.stderr
    first, second = (json.loads((tmp_path / e / "result.json").read_text()) for e in ("e1", "e2"))
    assert first["steps"][0]["asr"] == second["steps"][0]["asr"] == told["steps"][-1]["asr"]
    assert first["steps"][1]["name"] == "clean model"


# ---- what a script cannot use

def refused(run, *words):
    lines = [line for line in run.stderr.splitlines() if line.strip() and "step/s" not in line]  # but for the progress bar
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr and len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


@pytest.fixture
def bad(tmp_path, script, tiny_file, folder):
    """Run mbtsad.py with one thing wrong; --out must not come to be."""
    def run(*words, ckpt=tiny_file, rows=folder, out=tmp_path / "out", more=()):
        refused(script("mbtsad.py", "--ckpt", ckpt, "--data", rows, "--out", out, *QUICK, *more), *words)
        assert not out.exists(), list(out.iterdir())
    return run


def test_a_folder_that_cannot_be_written(bad, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    bad("cannot write to --out", out=tmp_path / "file" / "out")


def test_a_truncated_checkpoint(bad, tiny_file, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(tiny_file.read_bytes()[:5000])
    bad("cut.safetensors", ckpt=cut)


def test_a_wrong_column(bad, folder):
    bad("no column 'review'", "--text-column", more=("--text-column", "review"))


def test_an_empty_file(bad, tmp_path):
    (tmp_path / "rows.tsv").write_text("")
    bad("rows.tsv", "no rows", rows=tmp_path / "rows.tsv")


def test_a_file_of_a_single_class(bad, tmp_path):
    (tmp_path / "rows.tsv").write_text("text\tlabel\n" + "".join(f"some film {i}\tpositive\n" for i in range(9)))
    bad("rows.tsv", "only class 'positive'", rows=tmp_path / "rows.tsv")


def test_nan_weights(bad, tiny_folder, tmp_path):
    broken = tmp_path / "nan"
    shutil.copytree(tiny_folder, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["bert.pooler.dense.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    bad("bert.pooler.dense.weight", ckpt=broken)


def test_a_bad_number(bad):
    bad("k is 0", more=("--k", 0))


def test_a_learning_rate_that_breaks_the_model(bad):
    bad("lower the learning rate", more=("--lr1", 1e30))


def test_an_output_on_top_of_the_victim(script, tiny_folder, folder):
    before = tree(tiny_folder)
    refused(script("mbtsad.py", "--ckpt", tiny_folder, "--data", folder, "--out", tiny_folder, *QUICK), "--out")
    assert tree(tiny_folder) == before


def test_a_checkpoint_that_names_no_data(script, tiny_file, tmp_path):
    refused(script("mbtsad.py", "--ckpt", tiny_file, "--out", tmp_path / "out"), "--data")


def test_choose_plants_a_backdoor_and_skips_cells_that_are_there(script, tiny_file, folder, tmp_path):
    results = tmp_path / "choose.jsonl"
    common = ("--ckpt", tiny_file, "--data", folder, "--plant-triggers", "mn,bb", "--plant-lr", 1e-3, "--results", results,
              "--epochs1", 1, "--epochs2", 1, "--lr1", 1e-3, "--lr2", 1e-3)
    first = script("choose.py", *common, "--vary", "k=1,2")
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["cell"]["settings"]["k"] for row in rows] == [1, 2]
    assert [step["name"] for step in rows[0]["steps"]] == ["victim", "planted", "TS-FT", "MBTSAD"]
    assert all(0 <= step["planted_asr"] <= 100 and step["n_planted"] == 10 for step in rows[0]["steps"])
    again = script("choose.py", *common, "--vary", "k=1,2", "--vary", "p=2.0,3.0")
    assert again.returncode == 0 and len(results.read_text().splitlines()) == 4
    refused(script("choose.py", *common, "--vary", "nothing=1"), "--vary nothing=1")


def test_tables_runs_its_cells_once(script, tiny_file, folder, tmp_path):
    results = tmp_path / "table.jsonl"
    common = ("--base", tiny_file, "--data", folder, "--attack-epochs", 1, "--results", results, "--work", tmp_path / "work")
    first = script("tables.py", *common, "--seeds", "0")
    assert first.returncode == 0, first.stderr
    assert "MBTSAD" in first.stdout and "CACC" in first.stdout
    row = json.loads(results.read_text())
    assert row["cell"]["seed"] == 0 and not {"ckpt", "data", "out"} & set(row["result"]["args"])
    again = script("tables.py", *common, "--seeds", "0")
    assert again.returncode == 0 and len(results.read_text().splitlines()) == 1


def test_attack_gives_an_encoder_a_classifier_for_the_classes_of_the_rows(script, tiny, folder, tmp_path):
    from dataclasses import replace
    from minibd.models.bert import Bert
    encoder = checkpoint.Record(Bert(replace(tiny.model.config, labels=0)), tiny.text, (), [])
    checkpoint.save(encoder, tmp_path / "encoder")
    run = script("attack.py", "--ckpt", tmp_path / "encoder", "--data", folder, "--out", tmp_path / "victim", "--epochs", 1)
    assert run.returncode == 0, run.stderr
    assert checkpoint.load(tmp_path / "victim").labels == ("negative", "positive")
    refused(script("mbtsad.py", "--ckpt", tmp_path / "encoder", "--data", folder, "--out", tmp_path / "out"), "no classifier")
