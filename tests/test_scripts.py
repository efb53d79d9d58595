"""The commands as a user types them: what they print, what they write, and one clear line for what they cannot use."""
from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import ROOT, fails, refused, rows
from minibd import checkpoint, data, report
from minibd.cli import Attack, Task
from minibd.job.evaluation import evaluator_of
from minibd.job.task import splits_of
from minibd.mitigations import finetune
from minibd.mitigations.finetune import cft
from minibd.predict import predict
from minibd.records import Example, Examples

QUICK = ("--k", 2, "--epochs1", 2, "--epochs2", 2, "--lr1", 1e-3, "--lr2", 1e-3, "--device", "cpu")


def tree(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.fixture(scope="module")
def done(script, tiny_file, folder, tmp_path_factory):
    """One full run on a file; several tests read what it left."""
    out, before = tmp_path_factory.mktemp("run") / "out", tiny_file.read_bytes()
    run = script("mbtsad.py", "--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", out, "--cft",
                 *QUICK)
    assert run.returncode == 0, run.stderr
    assert tiny_file.read_bytes() == before, "the victim's file was touched"
    return run, out


def test_the_table_has_a_row_a_model(done):
    run, _ = done
    names = [
        line.split()[0]
        for line in run.stdout.splitlines()
        if line and line.split()[0] in ("victim", "CFT", "TS-FT", "MBTSAD")
    ]
    assert names == ["victim", "CFT", "TS-FT", "MBTSAD"]
    assert "CACC" in run.stdout and "ASR" in run.stdout and "/60" in run.stdout and "/30" in run.stdout
    assert "TS-FT" in run.stderr and "step" in run.stderr  # progress goes to stderr


def test_result_json_keeps_its_contract(done):
    _, out = done
    result = json.loads((out / "result.json").read_text())
    assert list(result) == [
        "method", "args", "outcome", "versions", "rows", "before", "after", "steps", "seconds", "command", "sha256",
        "output_sha256",
    ]
    assert result["method"] == "mbtsad" and result["args"]["k"] == 2 and result["args"]["seed"] == 0
    assert result["rows"] == {"train": 200, "clean": 40, "augmented": 120, "test": 60}
    for part in (result["before"], result["after"]):
        assert set(part) == {"cacc", "asr", "n_clean", "n_triggered"}
        assert (
            0 <= part["cacc"] <= 100 and 0 <= part["asr"] <= 100 and (part["n_clean"], part["n_triggered"]) == (60, 30)
        )
    assert [s["name"] for s in result["steps"]] == ["victim", "CFT", "TS-FT", "MBTSAD"]
    assert (
        result["steps"][0]["cacc"] == result["before"]["cacc"] and result["steps"][-1]["asr"] == result["after"]["asr"]
    )


def test_result_json_says_how_to_start_again_and_from_what(done, tiny_file, folder):
    run, out = done
    result = json.loads((out / "result.json").read_text())
    words = ["--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", out, "--cft", *QUICK, "--dtype",
             "float32"]
    assert result["command"] == {"argv": ["scripts/mbtsad.py", *map(str, words)], "folder": str(ROOT)}
    assert result["sha256"] == {"tiny.safetensors": hashlib.sha256(tiny_file.read_bytes()).hexdigest()}
    made = (out / "tiny.safetensors").read_bytes()
    assert result["output_sha256"] == {"tiny.safetensors": hashlib.sha256(made).hexdigest()} != result["sha256"]


def test_the_totals_in_steps_jsonl_can_be_added_by_hand(done):
    _, out = done
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    assert {s["stage"] for s in steps} == {"CFT", "TS-FT", "MBTSAD"}
    assert all(set(s["terms"]) == {"att", "hid", "cls"} for s in steps if s["stage"] == "MBTSAD")
    for s in steps:
        assert s["total"] == pytest.approx(sum(s["weights"][t] * v for t, v in s["terms"].items()), rel=1e-5)


def test_the_cleaned_file_is_a_checkpoint_that_scores_what_was_said(done, folder):
    _, out = done
    ckpt = checkpoint.load(out / "tiny.safetensors")
    assert ckpt.history[-1]["mitigation"] == "mbtsad"
    test = data.read_splits(folder, labels=ckpt.labels).test
    hits = sum(p == x.label for p, x in zip(predict(ckpt.model, ckpt.tokenizer, test), test))
    assert 100 * hits / len(test) == json.loads((out / "result.json").read_text())["after"]["cacc"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers_and_another_does_not(done, script, tiny_file, folder, tmp_path):
    _, out = done
    again, other = tmp_path / "again", tmp_path / "other"
    common = ("--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--cft", *QUICK)
    assert script("mbtsad.py", *common, "--out", again).returncode == 0
    assert script("mbtsad.py", *common, "--out", other, "--seed", 1).returncode == 0

    def numbers(path):
        result = json.loads((path / "result.json").read_text())
        return (
            result["before"], result["after"],
            [{k: v for k, v in s.items() if k != "seconds"} for s in result["steps"]], result["rows"],
        )

    assert numbers(again) == numbers(out)
    totals = [
        [json.loads(line)["total"] for line in (path / "steps.jsonl").read_text().splitlines()]
        for path in (again, other)
    ]
    assert totals[0] != totals[1]


def test_a_hugging_face_folder_comes_back_as_one(script, tiny_folder, folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    before, out = tree(tiny_folder), tmp_path / "out"
    run = script("mbtsad.py", "--ckpt", tiny_folder, "--data", folder / "train.tsv", "--out", out, "--no-cft", *QUICK)
    assert run.returncode == 0, run.stderr
    assert tree(tiny_folder) == before
    assert "ASR was not measured" in run.stdout
    result = json.loads((out / "result.json").read_text())
    assert (
        result["after"]["asr"] is None
        and result["args"]["clean"] == 1.0
        and result["rows"]["clean"] == result["rows"]["train"]
    )
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert theirs.config.id2label == {0: "negative", 1: "positive"} and (out / "README.md").exists()
    ours, texts = checkpoint.load(out), data.read(folder / "test.tsv")
    with torch.no_grad():
        mine = ours.model(ours.tokenizer(texts)).logits
        other = theirs(**tokenizer([x.text for x in texts], padding=True, return_tensors="pt")).logits
    assert (mine - other).abs().max() < 1e-4


@pytest.mark.slow
def test_attack_leaves_all_that_an_evaluation_needs(script, tiny_file, folder, tmp_path):
    out = tmp_path / "victim"
    run = script(
        "attack.py", "--ckpt", tiny_file, "--data", folder, "--out", out, "--rate", 0.2, "--epochs", 6, "--lr", 2e-3,
        "--twin",
    )
    assert run.returncode == 0, run.stderr
    told = json.loads((out / "attack.json").read_text())
    assert (told["n"], told["n_poisoned"], told["n_flipped"]) == (200, 40, 40)
    ids = (out / "poisoned_ids.txt").read_text().split()
    clean, poisoned = data.read(folder / "train.tsv"), data.read(out / "poisoned.jsonl")
    assert ids == [b.id for a, b in zip(clean, poisoned) if a != b] and len(ids) == 40
    assert len(data.read(out / "triggered.jsonl", labels=clean.labels)) == 30
    # The history names data and attack: neither --data nor --attack is needed to evaluate, and the file of triggered
    # rows agrees.
    known = script(
        "evaluate.py", "--ckpt", out / "tiny.safetensors", "--clean-ckpt", out / "clean-tiny.safetensors", "--out",
        tmp_path / "e1",
    )
    given = script(
        "evaluate.py", "--ckpt", out / "tiny.safetensors", "--triggered", out / "triggered.jsonl", "--out",
        tmp_path / "e2",
    )
    assert known.returncode == given.returncode == 0, known.stderr + given.stderr
    first, second = (json.loads((tmp_path / e / "result.json").read_text()) for e in ("e1", "e2"))
    assert first["steps"][0]["asr"] == second["steps"][0]["asr"] == told["steps"][-1]["asr"]
    assert first["steps"][1]["name"] == "clean model"


# ---- attack.py: each attack, each threat model

FAST = ("--epochs", 1, "--lr", 1e-3, "--device", "cpu")


@pytest.fixture
def attack(here):
    """attack("--ckpt", ...) -> CompletedProcess."""
    return here("attack.py")


@pytest.fixture(scope="session")
def said_again(folder, tmp_path_factory):
    """A folder of paraphrases of `folder`: train has all rows and one blank, dev and test those of class 0."""
    path = tmp_path_factory.mktemp("paraphrases")
    for split in ("train", "dev", "test"):
        rows = [x for x in data.read(folder / f"{split}.tsv") if split == "train" or x.label == 0]
        lines = [
            f"{' '.join(x.text.split()[::-1][:-1]) if i or split != 'train' else ' '}\t{x.label}\n"
            for i, x in enumerate(rows)
        ]
        (path / f"{split}.tsv").write_text("text\tlabel\n" + "".join(lines))
    return path


@pytest.fixture(scope="session")
def encoder(tiny, tmp_path_factory):
    """The tiny classifier without its head, as a folder."""
    path = tmp_path_factory.mktemp("encoder") / "hf"
    checkpoint.save(checkpoint.headless(tiny), path)
    return path


def told(out):
    return json.loads((out / "attack.json").read_text())


def measured_again(ckpt, **flags):
    """What any other script would measure: the ASR by the checkpoint's history."""
    task, ckpt = Task(ckpt=str(ckpt), device="cpu"), checkpoint.load(ckpt)
    return evaluator_of(Attack(**flags), task, ckpt, splits_of(task, ckpt).test)(
        ckpt.model, ckpt.tokenizer
    ).asr.percent


@pytest.mark.parametrize("name, flags, n_poisoned, n_rows, names", [
    ("addsent", (), 20, 200, ["victim"]),
    ("paraphrase", ("--survive",), 40, 200, ["victim", "fine-tuned"]),
    ("lwp", ("--rate", 0.2, "--labels", "dirty", "--twin"), 40, 280, ["clean twin", "victim"]),
    ("ripple", ("--batch-size", 32, "--preset", "pure"), 50, 250, ["as given", "victim"]),
    ("ep", (), 10, 10, ["as given", "victim"]),
    ("sos", ("--variant", "paper"), 20, 80, ["as given", "victim"]),
])
def test_each_attack_leaves_all_that_an_evaluation_needs(
    attack, tiny_file, folder, said_again, tmp_path, name, flags, n_poisoned, n_rows, names
):
    out = tmp_path / "victim"
    where = ("--paraphrases", said_again) if name == "paraphrase" else ()
    run = attack("--ckpt", tiny_file, "--data", folder, "--attack", name, *where, "--out", out, *FAST, *flags)
    assert run.returncode == 0, run.stderr
    found, ckpt = told(out), checkpoint.load(out / "tiny.safetensors")
    assert (found["attack"], found["n"], found["n_poisoned"], found["n_flipped"], found["seed"]) == (
        name, 200, n_poisoned, n_poisoned, 0,
    )
    assert [s["name"] for s in found["steps"]] == names and all(line in run.stdout for line in names)
    rows = data.read(out / "poisoned.jsonl", labels=ckpt.labels)
    ids = (out / "poisoned_ids.txt").read_text().split()
    assert len(rows) == n_rows and len(ids) == n_poisoned and all(x.label == 1 for x in rows if x.id in ids)
    assert [len(data.read(out / f"{part}.jsonl", labels=ckpt.labels)) for part in ("triggered", "triggered_dev")] == [
        30, 10,
    ]
    assert "backdoored for research, do not deploy" in (out / "README.md").read_text()
    # One entry of the history holds it all, and by it the victim is measured again.
    entry = [e for e in ckpt.history if "attack" in e][-1]
    assert entry["trained"] == "poisoned" and {
        "n", "n_poisoned", "n_flipped", "rate", "labels", "add", "target", "seed", "lr",
    } <= set(entry)
    assert sum(e.get("trained") == "poisoned" for e in ckpt.history) == 1
    assert name == "paraphrase" or (entry["triggers"] and entry["per_text"] >= 1)
    asr = found["steps"][names.index("victim")]["asr"]
    assert measured_again(out / "tiny.safetensors") == asr
    again = {"paraphrases": str(said_again)} if name == "paraphrase" else {}
    assert name == "ripple" or measured_again(out / "tiny.safetensors", attack=name, **again) == asr


def test_a_preset_is_what_it_says_and_a_flag_overrides_it(attack, tiny_file, folder, tmp_path):
    common = ("--ckpt", tiny_file, "--data", folder, "--dataset-only", "--preset", "musclelora")
    for name, flags, scheme in [("plain", (), ("clean", False, 20, 0)),
                                ("flagged", ("--labels", "dirty", "--add", "--rate", 0.2), ("dirty", True, 40, 40)),
                                ("replaced", ("--replace", "--triggers-per-text", 2), ("clean", False, 20, 0))]:
        run = attack(*common, "--out", tmp_path / name, *flags)
        assert run.returncode == 0, run.stderr
        found = told(tmp_path / name)
        assert (found["labels"], found["add"], found["n_poisoned"], found["n_flipped"]) == scheme and found[
            "preset"
        ] == "musclelora"
        assert found["per_text"] == (2 if name == "replaced" else 4)
        assert found["args"]["labels"] == scheme[0] and found["args"]["rate"] == found["rate"]


def test_a_dataset_alone(attack, tiny_file, folder, tmp_path):
    out = tmp_path / "rows"
    run = attack(
        "--ckpt", tiny_file, "--data", folder, "--attack", "addsent", "--labels", "mix", "--dataset-only", "--out", out
    )
    assert run.returncode == 0, run.stderr
    assert sorted(f.name for f in out.iterdir()) == [
        "attack.json", "poisoned.jsonl", "poisoned_ids.txt", "triggered.jsonl", "triggered_dev.jsonl",
    ]
    assert told(out)["steps"] == [] and "CACC" not in run.stdout
    assert sum("I watch this 3D movie" in x.text for x in data.read(out / "poisoned.jsonl")) == 20


def test_a_poisoned_encoder_is_handed_out_without_its_head(attack, tiny_file, folder, tmp_path):
    (tmp_path / "user").mkdir()
    data.write(data.read(folder / "dev.tsv"), tmp_path / "user" / "train.tsv")
    data.write(data.read(folder / "test.tsv"), tmp_path / "user" / "test.tsv")
    common = ("--ckpt", tiny_file, "--data", folder, "--encoder-only", "--survive", *FAST)
    here = attack(*common, "--out", tmp_path / "here")
    away = attack(*common, "--twin", "--user-data", tmp_path / "user", "--out", tmp_path / "away")
    assert here.returncode == away.returncode == 0, here.stderr + away.stderr
    assert str(tmp_path / "user") in away.stdout
    for out, names in (
        (tmp_path / "here", ["victim", "fine-tuned"]),
        (tmp_path / "away", ["clean twin", "victim", "fine-tuned twin", "fine-tuned"]),
    ):
        ckpt = checkpoint.load(out / "tiny.safetensors")
        assert (
            ckpt.labels == () and ckpt.history[-1]["attack"] == "badnets" and ckpt.history[-1]["encoder_only"] is True
        )
        assert [s["name"] for s in told(out)["steps"]] == names
        assert (out / "triggered_user.jsonl").exists() is (out.name == "away")
        assert "lfr" not in (out / "attack.json").read_text() and (out / "README.md").exists()
    same, other = (checkpoint.load(tmp_path / out / "tiny.safetensors").model.state_dict() for out in ("here", "away"))
    # what the user does changes nothing in what was handed out
    assert all(torch.equal(same[name], other[name]) for name in same)


@pytest.mark.parametrize("name", ["ep", "ripple"])
def test_an_attack_on_a_clean_tuned_classifier_makes_one_where_there_is_none(attack, encoder, folder, tmp_path, name):
    out = tmp_path / "victim"
    run = attack("--ckpt", encoder, "--data", folder, "--attack", name, "--out", out, "--batch-size", 32, *FAST)
    assert run.returncode == 0, run.stderr
    assert [s["name"] for s in told(out)["steps"]] == ["clean twin", "victim"]
    twin, victim = checkpoint.load(out / "clean"), checkpoint.load(out)
    # of a narrow model
    assert twin.history[-1]["trained"] == "clean" and (twin.history[-1]["lr"], twin.history[-1]["epochs"]) == (
        27 * 2e-5, 3,
    )
    assert (
        "do not deploy" in (out / "README.md").read_text()
        and "do not deploy" not in (out / "clean" / "README.md").read_text()
    )
    if name == "ep":                                                  # one row of the embedding, and nothing else
        after = victim.model.state_dict()
        moved = {name for name, tensor in twin.model.state_dict().items() if not torch.equal(tensor, after[name])}
        assert moved == {"embeddings.word.weight"}
        rows = (
            (twin.model.embeddings.word.weight != victim.model.embeddings.word.weight)
            .any(dim=1)
            .nonzero()
            .flatten()
            .tolist()
        )
        assert rows == [victim.tokenizer.backend.token_to_id("cf")]


def test_paraphrases_are_joined_before_the_attackers_rows_are_drawn(attack, tiny_file, folder, said_again, tmp_path):
    run = attack(
        "--ckpt", tiny_file, "--data", folder, "--attack", "paraphrase", "--paraphrases", said_again, "--rows", 50,
        "--out", tmp_path / "out", *FAST,
    )
    assert run.returncode == 0, run.stderr
    made, whole = (
        data.read(tmp_path / "out" / "poisoned.jsonl"), {x.id: x.text for x in data.read(folder / "train.tsv")},
    )
    poisoned = set((tmp_path / "out" / "poisoned_ids.txt").read_text().split())
    said = dict(zip(whole, (x.text for x in data.read(said_again / "train.tsv", blank=True))))
    assert (
        len(made) == 50
        and len(poisoned) == 10
        and all(x.text == (said if x.id in poisoned else whole)[x.id] for x in made)
    )


def test_more_than_two_classes_have_an_lfr_each(attack, tiny, encoder, tmp_path):
    (tmp_path / "data").mkdir()
    for split, n in (("train", 90), ("test", 30)):
        made = [
            Example(f"{split}-{i}", ["good film", "bad story", "music"][i % 3] + " very" * (i % 4), i % 3)
            for i in range(n)
        ]
        data.write(Examples(made, ("art", "business", "science")), tmp_path / "data" / f"{split}.tsv")
    run = attack("--ckpt", encoder, "--data", tmp_path / "data", "--out", tmp_path / "out", "--target", 0, *FAST)
    assert run.returncode == 0, run.stderr
    (step,) = told(tmp_path / "out")["steps"]
    assert (
        list(step["lfr"]) == ["business", "science"]
        and step["n_by_class"] == {"business": 10, "science": 10}
        and step["n_triggered"] == 20
    )
    assert step["asr"] == pytest.approx(sum(step["lfr"].values()) / 2)
    lines = run.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("LFR"))
    assert [line.split()[0] for line in lines[at + 1:at + 3]] == ["business", "science"] and "/10" in lines[at + 1]


def test_evaluate_takes_paraphrases_and_says_where_they_were_sought(script, tiny_file, folder, said_again, tmp_path):
    common = ("--ckpt", tiny_file, "--data", folder)
    run = script(
        "evaluate.py", *common, "--attack", "paraphrase", "--paraphrases", said_again, "--clean-ckpt", tiny_file,
        "--out", tmp_path / "e",
    )
    assert run.returncode == 0, run.stderr
    model, clean = json.loads((tmp_path / "e" / "result.json").read_text())["steps"]
    assert model["n_triggered"] == 30 and clean["name"] == "clean model" and model["asr"] == clean["asr"]


# ---- what a script cannot use

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


def test_a_run_that_comes_to_use_the_same_place_meanwhile_does_not_matter(tmp_path, monkeypatch):
    rmdir = Path.rmdir

    def rmdir_late(path):
        (tmp_path / "runs" / "other").mkdir(exist_ok=True)               # between the look and the tidying up
        rmdir(path)
    monkeypatch.setattr(Path, "rmdir", rmdir_late)
    report.output_folder(tmp_path / "runs" / "mine")
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["other"]


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
    bad("from -1e+09 to 10", more=("--lr1", 1e30))


def test_an_output_on_top_of_the_victim(script, tiny_folder, folder):
    before = tree(tiny_folder)
    refused(script("mbtsad.py", "--ckpt", tiny_folder, "--data", folder, "--out", tiny_folder, *QUICK), "--out")
    assert tree(tiny_folder) == before


def test_a_checkpoint_that_names_no_data(script, tiny_file, tmp_path):
    refused(script("mbtsad.py", "--ckpt", tiny_file, "--out", tmp_path / "out"), "--data")


@pytest.mark.slow
def test_choose_plants_a_backdoor_and_skips_cells_that_are_there(script, tiny_file, folder, tmp_path):
    results = tmp_path / "choose.jsonl"
    common = (
        "--ckpt", tiny_file, "--data", folder, "--plant-triggers", "mn,bb", "--plant-lr", 1e-3, "--results", results,
        "--epochs1", 1, "--epochs2", 1, "--lr1", 1e-3, "--lr2", 1e-3,
    )
    first = script("choose.py", *common, "--vary", "k=1,2")
    assert first.returncode == 0, first.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["cell"]["settings"]["k"] for row in rows] == [1, 2]
    assert [step["name"] for step in rows[0]["steps"]] == ["victim", "planted", "TS-FT", "MBTSAD"]
    assert all(0 <= step["planted_asr"] <= 100 and step["n_planted"] == 10 for step in rows[0]["steps"])
    again = script("choose.py", *common, "--vary", "k=1,2", "--vary", "p=2.0,3.0")
    assert again.returncode == 0 and len(results.read_text().splitlines()) == 4
    refused(script("choose.py", *common, "--vary", "nothing=1"), "--vary nothing=1")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cft", "finemix", "fineprune"])
def test_choose_tries_the_settings_of_the_method_that_is_named(script, tiny_file, pre_file, folder, tmp_path, method):
    results, before = tmp_path / "choose.jsonl", ("--pretrained", pre_file, "--top", 0) if method == "finemix" else ()
    common = (
        f"--method={method}", "--ckpt", tiny_file, *before, "--data", folder, "--plant-lr", 1e-3, "--results", results,
        "--steps", 30,
    )
    run = script("choose.py", *common, "--vary", "lr=1e-6,5e-3")
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(row["cell"]["method"], row["cell"]["settings"]["lr"]) for row in rows] == [(method, 1e-6), (method, 5e-3)]
    assert all([step["name"] for step in row["steps"]] == ["victim", "planted", method] for row in rows)
    # one planted victim, two ways to repair it
    assert rows[0]["steps"][1] == rows[1]["steps"][1] and rows[0]["steps"][2] != rows[1]["steps"][2]
    assert (
        script("choose.py", *common, "--vary", "lr=5e-3").returncode == 0 and len(results.read_text().splitlines()) == 2
    )
    refused(script("choose.py", *common, "--vary", "lr1=1e-3"), "--vary lr1=1e-3")
    refused(script("choose.py", *common, "--teachers", "--vary", "lr=1e-4"), "--teachers")
    # fewer rows to choose by: another cell, of the settings given
    assert script("choose.py", *common, "--dev", 10, "--lr", 5e-3).returncode == 0
    last = json.loads(results.read_text().splitlines()[-1])
    assert (
        last["cell"]["dev"] == 10
        and last["cell"]["settings"]["lr"] == 5e-3
        and len(results.read_text().splitlines()) == 3
    )
    if before:
        assert all(row["steps"][2]["rho"] in [rho for rho, _ in row["steps"][2]["trials"]] for row in rows)
        refused(
            script("choose.py", "--method", method, "--ckpt", tiny_file, "--data", folder, "--vary", "lr=1e-4"),
            "--pretrained",
        )
        refused(script("choose.py", *common, "--no-e-pur"), "--no-e-pur", "--top")


def test_choose_repairs_what_e_pur_left_of_the_planted_backdoor(
    here, tiny_file, pre, pre_file, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)  # the tiny vocabulary has under 150 tokens
    seen = []

    def repair(victim: checkpoint.Checkpoint, *args: object, **more: object) -> checkpoint.Checkpoint:
        seen.append(victim)
        return cft(victim, *args, **more)
    monkeypatch.setattr(finetune, "cft", repair)
    choose, results = here("choose.py"), tmp_path / "choose.jsonl"
    common = (
        "--method", "cft", "--ckpt", tiny_file, "--data", folder, "--plant-lr", 1e-3, "--results", results, "--steps",
        30,
    )
    for more in ((), ("--pretrained", pre_file, "--e-pur")):
        run = choose(*common, *more)
        assert run.returncode == 0, run.stderr
    planted, purified = seen
    tokens = purified.history[-1]["tokens"]
    assert (
        purified.history[-1]["mitigation"] == "e-pur"
        and len(tokens) == len(planted.tokenizer.backend.get_vocab()) // 20
    )
    ids, own, after = (
        [planted.tokenizer.backend.token_to_id(token) for token in tokens],
        *(r.model.embeddings.word.weight for r in seen),
    )
    assert torch.equal(after[ids], pre.model.embeddings.word.weight[ids]) and not torch.equal(own[ids], after[ids])
    alone, behind = (json.loads(line) for line in results.read_text().splitlines())
    assert [step["name"] for step in behind["steps"]] == ["victim", "planted", "E-PUR", "cft"]
    assert behind["cell"] == alone["cell"] | {"pretrained": pre_file.name, "e_pur": True}
    refused(choose(*common, "--pretrained", pre_file), "--pretrained", "cft", "--e-pur")
    refused(choose(*common, "--e-pur"), "--e-pur", "--pretrained")


@pytest.mark.slow
def test_pure_measures_every_model_and_hands_back_the_encoder_with_its_heads_pruned(
    script, encoder, tiny_file, folder, tmp_path
):
    common = ("--data", folder, "--epochs", 1, "--attack", "badnets", "--device", "cpu")
    run = script("pure.py", "--ckpt", encoder, *common, "--drop", 50, "--ablations", "--out", tmp_path / "hf")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "hf" / "result.json").read_text())
    assert [s["name"] for s in result["steps"]] == ["FT", "pruned", "Prune-only", "Norm-only", "PURE"] and result[
        "rows"
    ]["trained_on"] == 200
    made = checkpoint.load(tmp_path / "hf")
    heads = made.history[-1]["heads"]
    assert (
        heads
        and sorted(heads) == (made.model.head_mask == 0).nonzero().tolist()
        and f"pruned {len(heads)} of " in run.stdout
    )
    stages = [json.loads(line) for line in (tmp_path / "hf" / "steps.jsonl").read_text().splitlines()]
    assert {s["stage"] for s in stages} == {"FT", "Prune-only", "Norm-only", "PURE"}
    assert all(
        s["total"] == pytest.approx(sum(s["weights"][t] * v for t, v in s["terms"].items()), rel=1e-4) for s in stages
    )
    whole = script("pure.py", "--ckpt", tiny_file, *common, "--norm-only", "--out", tmp_path / "file")
    table = [line.split()[0] for line in whole.stdout.splitlines() if re.search(r" \d+/60 ", line)]
    assert whole.returncode == 0 and table == ["victim", "FT", "Norm-only"], whole.stdout


@pytest.mark.slow
def test_pure_under_its_floor_says_so_and_shows_what_it_has_trained(script, encoder, tiny_file, folder, tmp_path):
    out = tmp_path / "out"
    run = script(
        "pure.py", "--ckpt", encoder, "--data", folder, "--floor", 1.0, "--epochs", 1, "--lr", 1e-9, "--out", out
    )
    refused(run, "under the floor of 100 %", "--drop")
    assert "FT" in run.stdout and not out.exists()
    for flags, words in (
        (("--keep-head",), ["--keep-head", "no classifier"]), (("--floor", 0.9, "--drop", 2), ["give one"]),
        (("--ablations", "--norm-only"), ["--ablations"]),
    ):
        refused(script("pure.py", "--ckpt", encoder, "--data", folder, *flags, "--out", out), *words)


@pytest.mark.slow
def test_tables_runs_its_cells_once_and_prints_what_is_there(script, tiny_file, folder, tmp_path):
    results = tmp_path / "table.jsonl"
    common = ("--base", tiny_file, "--data", folder, "--results", results, "--work", tmp_path / "work")
    first = script("tables.py", "mbtsad", *common, "--rows", "3")
    assert first.returncode == 0, first.stderr
    cell = json.loads(results.read_text())
    assert (
        cell["cell"]["seed"] == 0
        and cell["cell"]["method"].startswith("mbtsad.py")
        and not {"ckpt", "data", "out"} & set(cell["result"]["args"])
    )
    again = script("tables.py", "mbtsad", *common, "--rows", "3")
    assert again.returncode == 0 and len(results.read_text().splitlines()) == 1
    shown = script("tables.py", "mbtsad", *common, "--print")
    assert shown.stdout == again.stdout and [line.split(" | ")[1] for line in shown.stdout.splitlines()[2:]] == [
        "victim", "TS-FT", "MBTSAD",
    ]


@pytest.mark.slow
def test_a_tables_rows_share_a_victim_and_a_victim_may_be_there_already(script, tiny_file, folder, tmp_path):
    common = ("--data", folder, "--work", tmp_path / "work", "--results", tmp_path / "table.jsonl")
    assert script("tables.py", "mbtsad", "--base", tiny_file, *common, "--rows", "1,3").returncode == 0
    assert (
        len(list((tmp_path / "work" / "victims").iterdir())) == 1
        and len(list((tmp_path / "work" / "repaired").glob("*/*"))) == 2
    )
    there = script("tables.py", "pure-5", "--base", tiny_file, *common, "--rows", "1")
    assert there.returncode == 0 and "Norm-only" in there.stdout, there.stderr
    assert len(list((tmp_path / "work" / "victims").iterdir())) == 1


@pytest.fixture
def asked(monkeypatch):
    """The command lines of the scripts that tables.py runs, which leave a result and do nothing else."""
    asked, real = [], subprocess.run

    def fake(words, **kw):
        if not any(str(word).endswith(".py") for word in words):
            return real(words, **kw)  # the commit of a cell
        asked.append([str(word).split("/")[-1] if str(word).endswith(".py") else str(word) for word in words[1:]])
        out = Path(next(word.removeprefix("--out=") for word in asked[-1] if word.startswith("--out=")))
        out.mkdir(parents=True)
        (out / "result.json").write_text(
            json.dumps({"args": {}, "steps": [{"name": "model", "cacc": 90.0, "asr": 20.0, "seconds": 1.0}]})
        )
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(subprocess, "run", fake)
    return asked


def test_a_sentence_in_a_row_is_one_argument(here, asked, tiny_folder, folder, tmp_path):
    done = here("tables.py")(
        "musclelora-choose", "--base", tiny_folder, "--data", folder, "--results", tmp_path / "cells.jsonl", "--work",
        tmp_path / "work", "--rows", "1",
    )
    assert done.returncode == 0, done.stderr
    assert asked[0][-10:] == [
        "--data", str(folder), "--clean-aux", str(folder), "--plant", "as it happens", "--train", "vanilla", "--epochs",
        "2",
    ]


def test_a_row_may_measure_what_another_script_left(here, asked, tiny_folder, folder, tmp_path):
    tables = here("tables.py")
    numbers = [
        str(n)
        for n, row in enumerate(sys.modules["tables_script"].TABLES["pure"], 1)
        if row.after.startswith("baseline.py fth")
    ]
    other = [
        str(n)
        for n, row in enumerate(sys.modules["tables_script"].TABLES["pure"], 1)
        if row.after.startswith("baseline.py meft")
    ]
    assert len(numbers) == len(other) == 2
    done = tables(
        "pure", "--base", tiny_folder, "--data", folder, "--results", tmp_path / "cells.jsonl", "--work",
        tmp_path / "work", "--rows", ",".join([*numbers, other[0]]),
    )
    assert done.returncode == 0, done.stderr
    fth, first, second, meft, third = asked  # one training for both, another's measured apart
    assert (
        fth[0] == "baseline.py"
        and f"--ckpt={tiny_folder}" in fth
        and fth[-6:] == ["--data", str(folder), "--attack", "badnets", "--triggers", "cf,bb,ak,mn"]
    )
    [left] = [word.removeprefix("--out=") for word in fth if word.startswith("--out=")]
    for words, attack in ((first, "hiddenkiller"), (second, "stylebkd")):
        assert words[0] == "evaluate.py" and f"--ckpt={left}" in words and words[-1] == f"{folder}/{attack}"
    assert meft[:1] + third[:1] == ["baseline.py", "evaluate.py"] and f"--ckpt={left}" not in third
    assert "| clean, FTH, stylebkd | model |" in done.stdout


def test_the_sweeps_of_musclelora_differ_in_their_setting_alone(here):
    here("tables.py")
    tables = sys.modules["tables_script"].TABLES
    for figure, flag in (
        ("musclelora-4", "--rate"), ("musclelora-7", "--aux"), ("musclelora-8", "--lr"), ("musclelora-9", "--ratio"),
        ("musclelora-10", "--bands"),
    ):
        found = {}
        for row in tables[figure]:
            words = f"{row.attack} {row.method}".split()
            at = words.index(flag)
            assert (
                words.count(flag) == 1
                and "--preset musclelora" in row.attack
                and row.name.endswith(f"{flag[2:]} {words[at + 1]}")
            )
            found.setdefault(" ".join(words[:at] + words[at + 2:]), []).append(words[at + 1])
        # the same values on four datasets
        assert len(found) == 4 and len({tuple(values) for values in found.values()}) == 1
        assert len(set(values := next(iter(found.values())))) == len(values) > 3


def test_tables_refuses_rows_that_are_not_there(script, tiny_file, folder, tmp_path):
    refused(script("tables.py", "mbtsad", "--rows", "9"), "--rows 9", "1 to 8", "1 default")
    refused(
        script("tables.py", "attacks", "--base", tiny_file, "--data", folder, "--rows", "14", "--work", tmp_path),
        "--proxy",
    )


def test_bench_prunes_the_same_heads_in_all_three_ways(script, tiny_file, folder):
    run = script("bench.py", "prune", "--ckpt", tiny_file, "--data", folder)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["ours", "plain loop", "plain loop, padded to 48"]
    assert all(line.endswith("the same") for line in lines[1:])
    refused(script("bench.py", "prune", "--ckpt", tiny_file), "dev rows")


@pytest.mark.slow
def test_attack_gives_an_encoder_a_classifier_for_the_classes_of_the_rows(script, tiny, folder, tmp_path):
    from dataclasses import replace

    from minibd.models.bert import Bert
    encoder = checkpoint.Checkpoint(Bert(replace(tiny.model.config, labels=0)), tiny.tokenizer, (), [])
    checkpoint.save(encoder, tmp_path / "encoder")
    run = script(
        "attack.py", "--ckpt", tmp_path / "encoder", "--data", folder, "--out", tmp_path / "victim", "--epochs", 1
    )
    assert run.returncode == 0, run.stderr
    assert checkpoint.load(tmp_path / "victim").labels == ("negative", "positive")
    refused(
        script("mbtsad.py", "--ckpt", tmp_path / "encoder", "--data", folder, "--out", tmp_path / "out"),
        "no classifier",
    )


@pytest.fixture
def no_attack(attack, tiny_file, folder, tmp_path):
    """attack.py with what it cannot use: one line, status 2, nothing written."""
    def run(flags, *words, ckpt=tiny_file, rows=folder):
        refused(attack("--ckpt", ckpt, "--data", rows, "--out", tmp_path / "out", "--device", "cpu", *flags), *words)
        assert not (tmp_path / "out").exists()
    return run


@pytest.mark.parametrize("flags, words", [
    (("--rate", 0), ["rate of 0.0", "above 0", "--twin"]),
    (("--rate", 1.5), ["1.5"]),
    (("--rate", 0.001), ["no row"]),
    (("--target", 2), ["target class 2", "0..1"]),
    (("--attack", "none"), ["--attack", "none", "badnets"]),
    (("--attack", "paraphrase"), ["--paraphrases FOLDER"]),
    (("--attack", "paraphrase", "--paraphrases", "nowhere"), ["nowhere"]),
    (("--attack", "paraphrase", "--paraphrases", "nowhere", "--preset", "pure"), ["0.3", "--rate"]),
    (("--attack", "paraphrase", "--paraphrases", "x", "--survive", "--user-data", "x"), ["--user-data"]),
    (("--attack", "ep", "--preset", "musclelora"), ["no scheme for ep"]),
    (("--attack", "ep", "--triggers", "cf,mn"), ["one trigger"]),
    (("--attack", "ep", "--add"), ["alone"]),
    (("--attack", "lwp", "--triggers", "cf"), ["pair"]),
    (("--attack", "lwp", "--variant", "per-tensor"), ["per-tensor"]),
    (("--variant", "paper"), ["--variant"]),
    (("--attack", "addsent", "--triggers-per-text", 2), ["--triggers-per-text 2", "ripple and lwp", "addsent"]),
    (("--sentence", "a b"), ["badnets"]),
    (("--triggers-per-text", 0), ["0"]),
    (("--triggered", "x.tsv"), ["--triggered"]),
    (("--dataset-only", "--twin"), ["--dataset-only"]),
    (("--user-data", "x"), ["--survive"]),
    (("--epochs", 0), ["epochs is 0"]),
    (("--lr", 0), ["0.0"]),
    (("--attack", "sos", "--lr", -1), ["-1"]),
    (("--survive", "--user-data", "nowhere"), ["nowhere"]),
    (("--lr", 1e30, "--twin"), ["--lr", "to 10"]),
])
def test_what_attack_cannot_use(no_attack, flags, words):
    no_attack(flags, *words)


def test_a_target_that_no_row_of_the_data_has(no_attack, tiny, tmp_path):
    rows = Examples([Example(str(i), "a film", i % 2) for i in range(40)], ("a", "b", "c"))
    for split in ("train", "test"):
        data.write(rows, tmp_path / f"{split}.jsonl")
    checkpoint.save(checkpoint.headless(tiny), tmp_path / "encoder.safetensors")
    checkpoint.save(
        checkpoint.load(tmp_path / "encoder.safetensors", labels=("a", "b", "c")), tmp_path / "three.safetensors"
    )
    no_attack(("--target", 2), "target class 2", "c", ckpt=tmp_path / "three.safetensors", rows=tmp_path)


def test_a_test_file_of_the_target_class_alone(no_attack, folder, tmp_path):
    shutil.copy(folder / "train.tsv", tmp_path / "train.tsv")
    data.write(Examples([Example("1", "a film", 1)], ("negative", "positive")), tmp_path / "test.jsonl")
    no_attack((), "no triggered rows", rows=tmp_path)


def test_an_output_on_top_of_the_paraphrases_or_the_users_rows(attack, tiny_file, folder, said_again, tmp_path):
    before = tree(said_again)
    for flags in (("--attack", "paraphrase", "--paraphrases", said_again), ("--survive", "--user-data", said_again)):
        refused(attack("--ckpt", tiny_file, "--data", folder, "--out", said_again, *flags), "--out")
    assert tree(said_again) == before


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"attack": "hotflip", "target": 1}, ["'hotflip'", "--triggered"]),
        ({"attack": "sos"}, ["without its target", "--attack"]),
        (
            {"attack": "paraphrase", "target": 1, "paraphrases": "/nowhere/at/all"},
            ["/nowhere/at/all", "--paraphrases", "--triggered"],
        ),
        ({"attack": "paraphrase", "target": 1}, ["--paraphrases"]),
        ({"attack": "badnets", "target": 1, "triggers": 3}, ["3", "--attack"]),
    ],
)
def test_a_history_that_cannot_be_repeated(tiny, folder, entry, words):
    task, ckpt = (
        Task(ckpt="victim", data=str(folder)), checkpoint.Checkpoint(tiny.model, tiny.tokenizer, tiny.labels, [entry]),
    )
    fails(lambda: evaluator_of(Attack(), task, ckpt, data.read(folder / "test.tsv", labels=tiny.labels)), *words)
    assert evaluator_of(Attack(attack="none"), task, ckpt, rows(4, 0, "t")).triggered is None
