"""scripts/finemix.py and --e-pur as a user types them: what is measured and written, that it is the library's call,
what they cannot use."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import fails, refused
from minibd import checkpoint, data
from minibd.blending import WORD, counterparts
from minibd.cli import Attack, Clean, Pretrained, Task
from minibd.job.run import start as start_job
from minibd.mitigations.finemix import FineMixing, finemix, frequencies, purify_embeddings
from minibd.predict import predict
from test_baseline import check, ended, equal, read, weights
from test_blending import moved

FAST = {"lr": 1e-3, "epochs": 1, "steps": 3, "batch_size": 16}
UNTUNED = ("--clean", 40, "--device", "cpu")
QUICK = ("--lr", 1e-3, "--epochs", 1, "--steps", 3, "--batch-size", 16, *UNTUNED)


@pytest.fixture
def mixing(here, tiny_file, pre_file, folder, tmp_path):
    """mixing("--rho", 0.5, ...) -> CompletedProcess of finemix.py on the tiny classifier; its result is in tmp_path /
    "out"."""
    script = here("finemix.py")
    return lambda *flags, ckpt=tiny_file, before=("--pretrained", pre_file): script(
        "--ckpt", ckpt, *before, "--data", folder, "--out", tmp_path / "out", "--overwrite",
        *(UNTUNED if "--no-tune" in flags else QUICK), *flags
    )


def steps(out):
    return [s["name"] for s in read(out)[0]["steps"]]


# ---- finemix.py

def test_each_stage_is_measured_and_the_contract_kept(mixing, tiny, tiny_file, pre_file, folder, tmp_path):
    before = tiny_file.read_bytes(), pre_file.read_bytes()
    run = ended(mixing("--rho", 0.5, "--top", 3, "--attack", "badnets"))
    assert (tiny_file.read_bytes(), pre_file.read_bytes()) == before
    result, log = check(
        tmp_path / "out", "finemix", ["victim", "E-PUR", "mixed 0.5", "Fine-mixing"], ["Fine-mixing 0.5"]
    )
    assert (
        result["rows"] == {"train": 200, "clean": 40, "trained_on": 40, "validation": 20, "test": 60} and len(log) == 3
    )
    args = result["args"]
    assert (args["pretrained"], args["e_pur"], args["top"], args["rho"], args["clean"]) == (
        str(pre_file), True, 3, 0.5, 40,
    )
    names = [line.split("  ")[0] for line in run.stdout.splitlines()]
    assert [n for n in names if n in ("victim", "E-PUR", "mixed 0.5", "Fine-mixing")] == [
        "victim", "E-PUR", "mixed 0.5", "Fine-mixing",
    ]
    assert "on validation" not in run.stdout
    made, test = (
        checkpoint.load(tmp_path / "out" / "tiny.safetensors"), data.read_splits(folder, labels=tiny.labels).test,
    )
    hits = sum(p == x.label for p, x in zip(predict(made.model, made.tokenizer, test), test))
    assert 100 * hits / len(test) == result["after"]["cacc"]


@pytest.mark.parametrize(
    "flags, numbers",
    [
        (("--rho", 0.4, "--top", 3), {"rho": 0.4, "top": 3}), (("--rho", 0.4, "--no-e-pur"), {"rho": 0.4, "top": 0}),
        (
            ("--rho", 0.4, "--no-tune", "--select", "smallest", "--e-pur", "--top", 2),
            {"rho": 0.4, "tune": False, "select": "smallest", "top": 2},
        ),
        (("--drop", 30, "--dtype", "bfloat16"), {"drop": 30.0}),
    ],
)
def test_it_is_the_library_call(mixing, tiny, pre, folder, tmp_path, flags, numbers):
    """Bit for bit, and on the rows that every method of the seed gets."""
    ended(mixing("--seed", 3, *flags))
    splits, looked = data.read_splits(folder, labels=tiny.labels), []
    numbers = numbers if "tune" in numbers else FAST | numbers
    theirs = finemix(
        tiny, pre, data.sample(splits.train, 40, 3), splits.dev, FineMixing(**numbers), seed=3,
        dtype=torch.bfloat16 if "bfloat16" in flags else torch.float32, on_stage=lambda name, *_: looked.append(name),
    )
    ours = checkpoint.load(tmp_path / "out" / "tiny.safetensors")
    assert equal(weights(ours), weights(theirs))
    assert ours.history == json.loads(json.dumps(theirs.history))
    # of a search the mixtures are left out, of --no-tune they are the end
    searched = "rho" not in numbers or "tune" in numbers
    assert steps(tmp_path / "out") == [
        "victim", *(name for name in looked if not (searched and name.startswith("mixed"))),
    ]


def test_a_search_is_shown_and_only_its_end_is_measured(mixing, tmp_path):
    run = ended(mixing("--drop", 100))
    assert steps(tmp_path / "out")[0] == "victim" and steps(tmp_path / "out")[-1] == "Fine-mixing"
    entry = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history[-1]
    assert [rho for rho, _ in entry["trials"]] == [0.5, 0.3, 0.2, 0.1]
    line, = (line for line in run.stdout.splitlines() if line.startswith("on validation"))
    assert (
        line
        == "on validation: "
        + ", ".join(f"rho {rho} {100 * right:.1f} %" for rho, right in entry["trials"])
        + "; kept: rho 0.1"
    )
    result, _ = read(tmp_path / "out")
    assert result["args"]["rho"] is None and not {"chosen", "trials"} & result["args"].keys()
    assert result["outcome"]["rho"] == 0.1
    assert result["outcome"]["trials"] == [
        {"rho": rho, "accuracy": pytest.approx(100 * right)} for rho, right in entry["trials"]
    ]
    assert not any(name.startswith("mixed") for name in steps(tmp_path / "out"))


def test_e_pur_is_there_unless_it_is_left_out(mixing, monkeypatch, tmp_path):
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)  # the tiny vocabulary has under 150 tokens
    for flags, there in (((), True), (("--e-pur",), True), (("--no-e-pur",), False), (("--top", 0), False)):
        ended(mixing("--rho", 0.5, "--no-tune", *flags))
        result, log = read(tmp_path / "out")
        assert [s["name"] for s in result["steps"]] == ["victim", *["E-PUR"] * there, "Mixing"] and log == []
        assert result["args"]["e_pur"] is there
        history = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history
        assert ["e-pur" in e.values() for e in history] == [*[True] * there, False, False]


def test_a_fifth_of_the_rows_is_clean_unless_it_says_so_and_without_dev_rows_a_tenth_of_them_chooses(
    here, tiny_file, pre_file, folder, tmp_path
):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        shutil.copy(folder / f"{split}.tsv", tmp_path / "data")
    common = (
        "--ckpt", tiny_file, "--pretrained", pre_file, "--data", tmp_path / "data", "--out", tmp_path / "out", "--rho",
        0.5, "--overwrite", "--device", "cpu", "--epochs", 1, "--steps", 1,
    )
    for flags, clean, held in (((), 40, 4), (("--clean", 64), 64, 6)):
        ended(here("finemix.py")(*common, *flags))
        result, log = read(tmp_path / "out")
        assert result["rows"] == {
            "train": 200, "clean": clean, "trained_on": clean - held, "validation": held, "test": 60,
        }
        assert sum(s["rows"] for s in log) == clean - held and result["after"]["asr"] is None


def test_as_a_command(script, tiny_folder, pre_file, folder, tmp_path):
    """A folder comes back as one, whatever the kind of --pretrained; progress goes to stderr."""
    run = ended(
        script(
            "finemix.py", "--ckpt", tiny_folder, "--pretrained", pre_file, "--data", folder, "--out", tmp_path / "out",
            "--rho", 0.5, *QUICK,
        )
    )
    assert "Fine-mixing" in run.stderr and (tmp_path / "out" / "config.json").is_file()
    assert checkpoint.load(tmp_path / "out").history[-1]["mitigation"] == "fine-mixing"


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--no-e-pur", "--top", 5), ["--top 5", "--no-e-pur"]), (("--e-pur", "--top", 0), ["--top 0", "--e-pur"]),
        (("--rho", 1.5), ["rho is 1.5"]), (("--drop", -1), ["drop is -1.0"]), (("--lr", 0), ["0.0"]),
        (("--clean", 201), ["201", "200"]), (("--pretrained", "nowhere"), ["nowhere"]),
        (("--lr", 1e30, "--rho", 0.5), ["--lr", "1e+30", "to 10"]),
    ],
)
def test_what_it_cannot_use(mixing, tmp_path, flags, words):
    refused(mixing(*flags), *words)
    assert not (tmp_path / "out").exists()


def test_it_needs_the_weights_before_and_a_classifier(mixing, pre_file, tmp_path):
    refused(mixing(before=()), "finemix", "--pretrained")
    refused(mixing(ckpt=pre_file), "no classifier")
    assert not (tmp_path / "out").exists()


def test_other_weights_are_refused(mixing, tiny, tmp_path):
    from minibd.models.bert import Bert, BertConfig

    other = Bert(
        BertConfig(
            **{name: getattr(tiny.model.config, name) for name in ("vocab", "hidden", "heads", "ffn", "positions")}
            | {"layers": 1}
        )
    )
    checkpoint.save(
        checkpoint.Checkpoint(
            other.init_weights(torch.Generator().manual_seed(1)), tiny.tokenizer, ("negative", "positive"), []
        ),
        tmp_path / "other.safetensors",
    )
    refused(mixing(before=("--pretrained", tmp_path / "other.safetensors")), "layers 1", "2")
    assert not (tmp_path / "out").exists()


def test_an_output_on_top_of_the_pretrained_weights(here, tiny_file, pre, folder, tmp_path):
    checkpoint.save(pre, tmp_path / "pre")
    before = {f.name: f.read_bytes() for f in (tmp_path / "pre").iterdir()}
    refused(
        here("finemix.py")(
            "--ckpt", tiny_file, "--pretrained", tmp_path / "pre", "--data", folder, "--out", tmp_path / "pre", *QUICK
        ),
        "--out",
    )
    assert {f.name: f.read_bytes() for f in (tmp_path / "pre").iterdir()} == before


# ---- --pretrained

def task_of(ckpt, folder, tmp_path):
    return Task(ckpt=str(ckpt), data=str(folder), out=str(tmp_path / "out"), device="cpu")


def start(task, **flags):
    return start_job("any", task, Clean(40.0), Attack(attack="badnets"), pretrained=Pretrained(**flags))


def test_a_pooler_that_was_pre_trained_comes_with_the_encoder(tiny, tiny_file, pre_file, folder, tmp_path):
    checkpoint.save(moved(tiny), tmp_path / "bare")
    state, config = (
        load_file(tmp_path / "bare" / "model.safetensors"), json.loads((tmp_path / "bare" / "config.json").read_text()),
    )
    save_file(
        {name: t for name, t in state.items() if not name.startswith("classifier.")},
        tmp_path / "bare" / "model.safetensors", metadata={"format": "pt"},
    )
    config["architectures"] = ["BertModel"]
    (tmp_path / "bare" / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if k not in ("id2label", "label2id", "num_labels")})
    )
    task = task_of(tiny_file, folder, tmp_path)
    kept = [
        counterparts(tiny, start(task, pretrained=str(path), e_pur=True).pretrained).kept
        for path in (tmp_path / "bare", pre_file)
    ]
    assert kept == [
        ("classifier.weight", "classifier.bias"),
        ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias"),
    ]


def test_pretrained_weights_of_other_classes_serve(tiny, tiny_file, folder, tmp_path):
    checkpoint.save(checkpoint.with_head(checkpoint.headless(tiny), ("a", "b", "c"), 0), tmp_path / "three.safetensors")
    before = start(
        task_of(tiny_file, folder, tmp_path), pretrained=str(tmp_path / "three.safetensors"), e_pur=True
    ).pretrained
    assert before.labels == ("a", "b", "c") and "classifier.weight" in counterparts(tiny, before).kept


# ---- --e-pur, before any other method

def test_the_job_goes_on_with_the_purified_victim(monkeypatch, tiny, pre, tiny_file, pre_file, folder, tmp_path):
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)
    task = task_of(tiny_file, folder, tmp_path)
    job = start(task, pretrained=str(pre_file), e_pur=True)
    job.measure("victim", job.victim.model, 0.0)
    job.purify(Pretrained(str(pre_file), True))
    clean = data.sample(data.read_splits(folder, labels=tiny.labels).train, 40, 0)
    top = len(tiny.tokenizer.backend.get_vocab()) // 20
    theirs = purify_embeddings(tiny, pre, frequencies(tiny.tokenizer, clean), top)
    assert equal(weights(job.victim), weights(theirs)) and job.victim.history == json.loads(json.dumps(theirs.history))
    assert len(job.victim.history[-1]["tokens"]) == top and job.victim.history[-1]["tokens"][0] == "cf"
    assert [s.name for s in job.steps] == ["victim", "E-PUR"] and job.steps[1].seconds > 0
    changed = {name for name, w in weights(tiny).items() if not torch.equal(w, weights(job.victim)[name])}
    assert changed == {WORD}


def test_without_the_flag_the_victim_stays(tiny_file, folder, tmp_path):
    job = start(task_of(tiny_file, folder, tmp_path))
    before = job.victim
    job.purify(Pretrained())
    assert job.victim is before and job.steps == [] and job.pretrained is None


def test_an_encoder_is_purified_and_not_measured(pre, pre_file, tiny, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)
    checkpoint.save(checkpoint.headless(tiny), tmp_path / "encoder.safetensors")
    flags = Pretrained(str(pre_file), True)
    job = start_job(
        "any", task_of(tmp_path / "encoder.safetensors", folder, tmp_path), Clean(40.0), Attack(attack="badnets"),
        new_classifier=True, pretrained=flags,
    )
    job.purify(flags)
    assert job.steps == [] and job.victim.history[-1]["mitigation"] == "e-pur"


def test_the_flags_go_together(tiny_file, pre_file, folder, tmp_path):
    task = task_of(tiny_file, folder, tmp_path)
    fails(lambda: start(task, e_pur=True), "--e-pur", "--pretrained")
    for e_pur in (None, False):
        fails(lambda: start(task, pretrained=str(pre_file), e_pur=e_pur), "--pretrained", str(pre_file), "--e-pur")
    fails(lambda: start(task, pretrained="nowhere", e_pur=True), "nowhere")


@pytest.mark.parametrize("name, flags, models", [
    ("mbtsad.py", ("--no-cft", "--k", 1, "--epochs1", 1, "--epochs2", 1), ["TS-FT", "MBTSAD"]),
    ("pure.py", ("--norm-only", "--epochs", 1), ["FT", "Norm-only"]),
])
def test_the_scripts_take_it(here, monkeypatch, tiny_file, pre_file, folder, tmp_path, name, flags, models):
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)
    common = ("--ckpt", tiny_file, "--data", folder, "--clean", 40, "--device", "cpu", *flags)
    results = []
    for i, more in enumerate(((), ("--pretrained", pre_file, "--e-pur"))):
        ended(here(name)(*common, *more, "--out", tmp_path / str(i)))
        results.append(checkpoint.load(tmp_path / str(i) / "tiny.safetensors"))
    assert steps(tmp_path / "0") == ["victim", *models] and steps(tmp_path / "1") == ["victim", "E-PUR", *models]
    assert [sum("e-pur" in e.values() for e in r.history) for r in results] == [0, 1]
    cf = results[0].tokenizer.backend.token_to_id("cf")
    moved_back = (weights(results[1])[WORD][cf] - weights(results[0])[WORD][cf]).mean()
    assert moved_back == pytest.approx(0.1, abs=0.02)                     # where the pre-trained row lies
    refused(here(name)(*common, "--e-pur", "--out", tmp_path / "no"), "--pretrained")


# ---- the tables

def test_the_tables_rows(here):
    here("tables.py")
    tables = sys.modules["tables_script"].TABLES
    for name, before in (("finemix", "{base}"), ("finemix-reviews", "weights/bert-clean.safetensors")):
        rows = tables[name]
        assert len(rows) == 4 * 2 * 7 == len({(r.attack, r.method) for r in rows}) == len({r.name for r in rows})
        assert {r.attack.split()[1] for r in rows} == {"badnets", "addsent", "lwp", "ep"}
        assert all(f"--pretrained {before}" in r.method for r in rows if "mix" in r.method or "purify" in r.method)
        for held, flag in (("20 %", "--clean 0.2"), ("64 rows", "--clean 64 --dev 64")):
            assert all(r.method.endswith(flag) for r in rows if held in r.name)
        # the others always keep their best epoch
        assert all(("--best-epoch" in r.method) == ("MBTSAD" in r.name) for r in rows)
    by_name = {r.name: r.paper for r in tables["finemix"]}
    assert (
        by_name["lwp, 20 %, MBTSAD"]["MBTSAD"] == "90.7 / 15.9"
        and by_name["ep, 20 %, Fine-mixing"]["Fine-mixing"] == "88.5 / 11.2"
    )
    assert (
        by_name["badnets, 20 %, CFT"]["victim"] == "91.3 / 89.9"
        and not by_name["ep, 64 rows, CFT"]
        and not by_name["addsent, 20 %, CFT"]
    )
    assert not by_name["ep, 20 %, Fine-mixing + E-PUR"] and not any(r.paper for r in tables["finemix-reviews"])
    assert [(r.attack, r.method) for r in tables["finemix-pairs"]] == [
        ("--attack badnets", r.method) for r in tables["finemix"][:14]
    ]
    assert {r.attack for r in tables["finemix-rho"]} == {r.attack for r in tables["finemix"]} and len(
        tables["finemix-rho"]
    ) == 12
    assert {re.sub(r" --rho \S+", "", r.method) for r in tables["finemix-rho"]} == {tables["finemix"][4].method}


def test_a_tables_cell(here, monkeypatch, tmp_path):
    """What the two scripts are called with, and what is kept of the result; the scripts themselves are left out."""
    calls = []

    def stub(words, **_):
        if words[0] == "git":
            return subprocess.CompletedProcess(words, 0, "abc", "")
        flags, out = (
            [str(w) for w in words[2:]],
            next(Path(w.removeprefix("--out=")) for w in map(str, words) if w.startswith("--out=")),
        )
        calls.append((Path(words[1]).name, flags))
        out.mkdir(parents=True)
        result = {
            "args": {"pretrained": "P", "ckpt": "C", "top": 0},
            "steps": [{"name": name, "cacc": 90.0, "asr": 9.0, "seconds": 1.0} for name in ("victim", "Fine-mixing")],
            "command": {"argv": ["scripts/finemix.py"], "folder": "HERE"},
        }
        (out / ("attack.json" if words[1].endswith("attack.py") else "result.json")).write_text(json.dumps(result))
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(subprocess, "run", stub)
    run = ended(
        here("tables.py")(
            "finemix", "--base", "MINILM", "--data", "SST2", "--results", tmp_path / "t.jsonl", "--work", tmp_path,
            "--rows", "5,12",
        )
    )
    (first, attack), (second, one), (third, two) = calls
    assert (
        (first, second, third) == ("attack.py", "finemix.py", "finemix.py")
        and "--ckpt=MINILM" in attack
        and "badnets" in attack
    )
    assert (
        one[-5:] == ["--no-e-pur", "--pretrained", "MINILM", "--clean", "0.2"]
        and two[-1] == "64"
        and "--data=SST2" in one
    )
    assert one[0] == two[0] and one[0].startswith(f"--ckpt={tmp_path}/victims/")
    cell = json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0])
    assert cell["cell"]["method"] == "finemix.py --no-e-pur --pretrained {base} --clean 0.2" and cell["result"][
        "args"
    ] == {"top": 0}
    assert "command" not in cell["result"]  # it says where, not what
    assert (
        "| badnets, 20 %, Fine-mixing | Fine-mixing | 90.0 (90.0-90.0) | 9.0 (9.0-9.0) | 1 | 1 | 88.3 / 15.8 |"
        in run.stdout
    )
