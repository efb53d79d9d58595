"""scripts/baseline.py as a user types it: each method on a classifier and on an encoder, what it leaves, and what it
cannot use."""

from __future__ import annotations

import json

import pytest
import torch

from conftest import refused
from minibd import checkpoint, data
from minibd.blending import tune_on_few_rows
from minibd.mitigations.finemix import frequencies, purify_embeddings
from minibd.mitigations.fineprune import FinePruning, fineprune
from minibd.mitigations.finepurify import FinePurifying, finepurify
from minibd.mitigations.finetune import finetune
from minibd.mitigations.meft import MEFT, meft
from minibd.mitigations.reinit import Reinit, reinit
from minibd.predict import predict
from minibd.train import Schedule

METHODS = ("ft", "fth", "meft")
REPAIRS = ("cft", "reinit", "fineprune", "finepurify")  # of a classifier with its head, with a few clean rows
RATES = {"ft": 2e-5, "fth": 5e-5, "meft": 2e-5}
QUICK = ("--clean", 40, "--epochs", 2, "--batch-size", 16, "--device", "cpu", "--overwrite")


@pytest.fixture
def baseline(here):
    """baseline("ft", "--ckpt", ...) -> CompletedProcess."""
    return here("baseline.py")


@pytest.fixture(scope="module")
def encoder(tiny, tmp_path_factory):
    """The tiny classifier without its head, as a folder whose history names an attack."""
    path, ckpt = tmp_path_factory.mktemp("encoder") / "hf", checkpoint.headless(tiny)
    ckpt.history.append({"trained": "poisoned", "attack": "badnets", "target": 1, "triggers": ["cf"], "per_text": 1})
    checkpoint.save(ckpt, path)
    return path


def ended(run):
    assert run.returncode == 0, run.stderr
    return run


def read(out):
    return json.loads((out / "result.json").read_text()), [
        json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()
    ]


def weights(ckpt):
    return ckpt.model.state_dict()


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check(out, method, steps, stages):
    """The contract of result.json and steps.jsonl."""
    result, log = read(out)
    assert list(result) == [
        "method", "args", "outcome", "versions", "rows", "before", "after", "steps", "seconds", "command", "sha256",
        "output_sha256",
    ]
    assert result["method"] == method and [s["name"] for s in result["steps"]] == steps
    for part in (result["before"], result["after"]):
        assert set(part) == {"cacc", "asr", "n_clean", "n_triggered"} and (part["n_clean"], part["n_triggered"]) == (
            60, 30,
        )
        assert 0 <= part["cacc"] <= 100 and 0 <= part["asr"] <= 100
    assert [result["steps"][i][share] for i, share in ((0, "cacc"), (-1, "asr"))] == [
        result["before"]["cacc"], result["after"]["asr"],
    ]
    assert list(dict.fromkeys(s["stage"] for s in log)) == stages
    for s in log:
        assert s["total"] == pytest.approx(sum(s["weights"][t] * v for t, v in s["terms"].items()), rel=1e-5)
    return result, log


@pytest.mark.parametrize("method", METHODS)
def test_a_classifier_is_measured_first(baseline, tiny, tiny_file, folder, tmp_path, method):
    before, out, learns = (
        tiny_file.read_bytes(), tmp_path / "out", ("--lr", 2e-3, "--epochs", 5, "--batch-size", 8, "--device", "cpu"),
    )
    run = ended(baseline(method, "--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", out, *learns))
    assert tiny_file.read_bytes() == before, "the victim's file was touched"
    name = method.upper()
    result, log = check(out, method, ["victim", name], ["max-entropy", "MEFT"] if method == "meft" else [name])
    assert result["rows"] == {"train": 200, "clean": 200, "trained_on": 200, "validation": 20, "test": 60}
    assert result["before"]["cacc"] < 80 < result["after"]["cacc"]
    lines = [line.split()[0] for line in run.stdout.splitlines() if line and line.split()[0] in ("victim", name)]
    assert lines == ["victim", name] and "CACC" in run.stdout and "/30" in run.stdout
    test = data.read_splits(folder, labels=tiny.labels).test
    for model, at in ((tiny, "before"), (checkpoint.load(out / "tiny.safetensors"), "after")):
        hits = sum(p == x.label for p, x in zip(predict(model.model, model.tokenizer, test), test))
        assert 100 * hits / len(test) == result[at]["cacc"]


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_has_the_result_alone(baseline, encoder, folder, tmp_path, method):
    out = tmp_path / "out"
    ended(baseline(method, "--ckpt", encoder, "--data", folder, "--out", out, *QUICK))
    result, _ = check(out, method, [method.upper()], ["max-entropy", "MEFT"] if method == "meft" else [method.upper()])
    assert result["before"] == result["after"]                     # the attack is the one that the history names
    ckpt = checkpoint.load(out)
    assert ckpt.labels == ("negative", "positive") and ckpt.history[0]["attack"] == "badnets"
    assert ckpt.history[-1]["mitigation"] == ("meft" if method == "meft" else "fine-tuning")


@pytest.mark.parametrize("method", METHODS)
def test_the_rate_is_the_methods_unless_it_is_given(baseline, tiny_file, folder, tmp_path, method):
    for more, lr in (((), RATES[method]), (("--lr", 3e-4), 3e-4)):
        ended(baseline(method, "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", *QUICK, *more))
        result, log = read(tmp_path / "out")
        assert result["args"]["lr"] == lr == max(s["lr"] for s in log)


@pytest.mark.parametrize("keep_head, dtype", [(False, "float32"), (True, "float32"), (False, "bfloat16")])
@pytest.mark.parametrize("method", METHODS)
def test_it_is_the_library_call(baseline, tiny, tiny_file, folder, tmp_path, method, keep_head, dtype):
    """Bit for bit: the same victim, rows, schedule, head and seed, without weight decay."""
    out, splits = tmp_path / "out", data.read_splits(folder, labels=tiny.labels)
    clean = data.sample(splits.train, 40, 3)
    flags = (
        "--lr", 1e-3, "--seed", 3, "--dtype", dtype, *("--keep-head",) * keep_head,
        *("--entropy-epochs", 1) * (method == "meft"),
    )
    ended(baseline(method, "--ckpt", tiny_file, "--data", folder, "--out", out, *QUICK, *flags))
    same = {"seed": 3, "dtype": getattr(torch, dtype)}
    if method == "meft":
        theirs = meft(tiny, clean, splits.dev, MEFT(1, 1e-3, 2, 16, keep_head), **same)
    else:
        theirs = finetune(
            tiny, clean, Schedule(1e-3, 2, 16, weight_decay=0.0), validation=splits.dev, keep_head=keep_head, **same
        )
    ours = checkpoint.load(out / "tiny.safetensors")
    assert equal(weights(ours), weights(theirs)) and ours.history == theirs.history
    args = read(out)[0]["args"]
    assert (
        args["keep_head"] is keep_head
        and args["seed"] == 3
        and args["entropy_epochs"] == (1 if method == "meft" else None)
    )


def test_the_methods_differ(baseline, tiny_file, folder, tmp_path):
    for method in METHODS:
        ended(baseline(method, "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / method, *QUICK))
    ft, fth, meft_ = (weights(checkpoint.load(tmp_path / method / "tiny.safetensors")) for method in METHODS)
    assert not equal(ft, fth) and not equal(ft, meft_) and not equal(fth, meft_)


def test_all_rows_are_clean_by_default_and_the_dev_rows_choose(baseline, tiny_file, folder, tmp_path):
    ended(
        baseline(
            "ft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--epochs", 1, "--device", "cpu"
        )
    )
    result, log = read(tmp_path / "out")
    assert (
        result["rows"] == {"train": 200, "clean": 200, "trained_on": 200, "validation": 20, "test": 60}
        and result["args"]["clean"] == 1.0
    )
    assert sum(s["rows"] for s in log) == 200


@pytest.mark.parametrize("method, passes", [("ft", 2), ("meft", 4)])
def test_without_dev_rows_a_tenth_of_the_clean_ones_chooses(baseline, tiny_file, folder, tmp_path, method, passes):
    (tmp_path / "data").mkdir()
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.tsv").write_bytes((folder / f"{split}.tsv").read_bytes())
    run = ended(baseline(method, "--ckpt", tiny_file, "--data", tmp_path / "data", "--out", tmp_path / "out", *QUICK))
    result, log = read(tmp_path / "out")
    assert (
        result["rows"] == {"train": 200, "clean": 40, "trained_on": 36, "validation": 4, "test": 60}
        and result["after"]["asr"] is None
    )
    assert sum(s["rows"] for s in log) == passes * 36 and "ASR was not measured" in run.stdout


def test_as_a_command(script, tiny_folder, folder, tmp_path):
    """A folder comes back as one; progress goes to stderr."""
    run = ended(
        script("baseline.py", "meft", "--ckpt", tiny_folder, "--data", folder, "--out", tmp_path / "out", *QUICK)
    )
    assert "max-entropy" in run.stderr and "max-entropy" not in run.stdout
    assert (tmp_path / "out" / "config.json").is_file() and checkpoint.load(tmp_path / "out").history[-1][
        "mitigation"
    ] == "meft"


@pytest.mark.parametrize("method", METHODS)
def test_the_same_seed_gives_the_same_file_and_another_does_not(baseline, tiny_file, folder, tmp_path, method):
    for out, seed in (("one", 0), ("again", 0), ("other", 1)):
        ended(baseline(method, "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / out, "--seed", seed, *QUICK))
    one, again, other = ((tmp_path / out / "tiny.safetensors").read_bytes() for out in ("one", "again", "other"))
    assert one == again != other


def test_the_result_goes_to_a_folder_of_the_methods_name(baseline, tiny_file, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ended(baseline("fth", "--ckpt", tiny_file, "--data", folder, *QUICK))
    assert (tmp_path / "out" / "fth" / "result.json").is_file()


# ---- repairs of a classifier with its head

UNTUNED = ("--clean", 40, "--device", "cpu")
FEW = (*UNTUNED, "--epochs", 1, "--steps", 3, "--batch-size", 16, "--lr", 1e-3)
NUMBERS = {"epochs": 1, "steps": 3, "batch_size": 16, "lr": 1e-3}
NAMES = {"cft": ["CFT"], "reinit": ["reinitialised", "Reinitialisation"], "fineprune": ["pruned", "Fine-pruning"],
         "finepurify": ["mixed 0.5", "Fine-purifying"]}


@pytest.fixture
def repaired(baseline, tiny_file, pre_file, folder, tmp_path):
    """repaired("cft", "--seed", 3, ...) -> its CompletedProcess; finepurify has its weights and a rho."""
    def run(method, *flags):
        own = ("--pretrained", pre_file, "--rho", 0.5) if method == "finepurify" else ()
        return baseline(
            method, "--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--out", tmp_path / "out",
            "--overwrite", *(UNTUNED if "--no-tune" in flags else FEW), *own, *flags,
        )

    return run


def library(method, victim, pre, train, dev, **same):
    if method == "reinit":
        return reinit(victim, train, dev, Reinit(**NUMBERS), **same)
    if method == "fineprune":
        return fineprune(victim, train, dev, FinePruning(**NUMBERS), **same)
    if method == "finepurify":
        return finepurify(victim, pre, train, dev, FinePurifying(rho=0.5, **NUMBERS), **same)
    return tune_on_few_rows(
        checkpoint.copy(victim), train, dev, Schedule(1e-3, 1, 16, 0.1, 0.01), 3, **same, log=None, name="CFT"
    )


@pytest.mark.parametrize("method", REPAIRS)
def test_a_repair_keeps_the_contract_and_the_head(repaired, tiny_file, tmp_path, method):
    before, run = tiny_file.read_bytes(), ended(repaired(method))
    assert tiny_file.read_bytes() == before, "the victim's file was touched"
    result, log = check(
        tmp_path / "out", method, ["victim", *NAMES[method]],
        [{"finepurify": "Fine-purifying 0.5"}.get(method, NAMES[method][-1])],
    )
    assert (
        result["rows"] == {"train": 200, "clean": 40, "trained_on": 40, "validation": 20, "test": 60} and len(log) == 3
    )
    assert result["args"]["clean"] == 40 and result["args"]["steps"] == 3 and result["args"]["warmup"] == 0.1
    last = [line.split("  ")[0] for line in run.stdout.splitlines()]
    assert [name for name in last if name in ("victim", *NAMES[method])] == ["victim", *NAMES[method]]
    entry = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history[-1]
    assert (entry["clean_rows"], entry["validation_rows"], entry["seed"], entry["steps"], entry["lr"]) == (
        40, 20, 0, 3, 1e-3,
    )
    assert entry["mitigation"] == {"cft": "fine-tuning", "reinit": "reinitialisation", "fineprune": "fine-pruning"}.get(
        method, "fine-purifying"
    )


@pytest.mark.parametrize("e_pur", [False, True])
@pytest.mark.parametrize("method", REPAIRS)
def test_a_repair_is_the_library_call(repaired, tiny, pre, pre_file, folder, tmp_path, monkeypatch, method, e_pur):
    """Bit for bit, the clean rows the same for all of them; after E-PUR, of the purified victim."""
    monkeypatch.setattr("minibd.mitigations.epur.TOKENS_PER_RESET", 20)  # the tiny vocabulary has under 150 tokens
    purify = ("--pretrained", pre_file, "--e-pur") if e_pur else ()
    ended(repaired(method, "--seed", 3, "--dtype", "bfloat16", *purify))
    splits = data.read_splits(folder, labels=tiny.labels)
    clean = data.sample(splits.train, 40, 3)
    victim = (
        purify_embeddings(tiny, pre, frequencies(tiny.tokenizer, clean), len(tiny.tokenizer.backend.get_vocab()) // 20)
        if e_pur
        else tiny
    )
    theirs = library(method, victim, pre, clean, splits.dev, seed=3, dtype=torch.bfloat16)
    assert equal(weights(checkpoint.load(tmp_path / "out" / "tiny.safetensors")), weights(theirs))
    result = read(tmp_path / "out")[0]
    assert [s["name"] for s in result["steps"]] == ["victim", *["E-PUR"] * e_pur, *NAMES[method]]
    assert result["args"]["e_pur"] is (True if e_pur else None)


def test_a_repairs_own_numbers_are_flags(repaired, tmp_path):
    ended(repaired("reinit", "--layers", 2, "--pooler"))
    ended(repaired("fineprune", "--share", 0.25, "--layers", 1))
    pruned = checkpoint.load(tmp_path / "out" / "tiny.safetensors")
    assert [int((block.down.weight == 0).all(0).sum()) for block in pruned.model.blocks] == [0, 16] and pruned.history[
        -1
    ]["share"] == 0.25
    ended(repaired("finepurify", "--no-tune", "--eps", 1e-6))
    made = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history[-1]
    assert (made["tune"], made["eps"], made["rho"]) == (False, 1e-6, 0.5)
    assert [s["name"] for s in read(tmp_path / "out")[0]["steps"]] == ["victim", "Purifying"]


def test_a_search_shows_what_it_looked_at(baseline, tiny_file, pre_file, folder, tmp_path):
    run = ended(
        baseline(
            "finepurify", "--ckpt", tiny_file, "--pretrained", pre_file, "--data", folder, "--out", tmp_path / "out",
            *FEW, "--drop", 100,
        )
    )
    assert [s["name"] for s in read(tmp_path / "out")[0]["steps"]] == ["victim", "Fine-purifying"]
    assert "on validation: rho 0.7 " in run.stdout and run.stdout.count("kept: rho 0.1") == 1


def test_a_fifth_is_clean_by_default(baseline, tiny_file, folder, tmp_path):
    ended(
        baseline(
            "cft", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--epochs", 1, "--steps", 1,
            "--device", "cpu",
        )
    )
    assert read(tmp_path / "out")[0]["rows"]["clean"] == 40


def test_each_method_has_the_flags_that_it_has(baseline, tiny_file, folder):
    for method, flag in (
        ("cft", "--keep-head"), ("ft", "--steps"), ("reinit", "--share"), ("fineprune", "--rho"),
        ("finepurify", "--pooler"),
    ):
        run = baseline(method, "--ckpt", tiny_file, "--data", folder, flag)
        assert run.returncode == 2 and flag in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    "method, flags, words",
    [
        ("cft", ("--steps", -1), ["steps is -1"]), ("cft", ("--lr", 0), ["0.0"]),
        ("reinit", ("--layers", 0), ["layers is 0"]), ("reinit", ("--layers", 3), ["layers is 3", "2"]),
        ("fineprune", ("--share", 2), ["share is 2.0"]), ("finepurify", ("--eps", 0), ["eps is 0.0"]),
        ("cft", ("--e-pur",), ["--e-pur", "--pretrained"]),
        ("reinit", ("--pretrained", "x"), ["--pretrained x", "reinit", "--e-pur"]),
        ("finepurify", ("--pretrained", "nowhere"), ["nowhere"]), ("ft", ("--e-pur",), ["--e-pur", "--pretrained"]),
    ],
)
def test_what_a_repair_cannot_use(baseline, tiny_file, folder, tmp_path, method, flags, words):
    refused(
        baseline(method, "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--device", "cpu", *flags),
        *words,
    )
    assert not (tmp_path / "out").exists()


def test_a_repair_needs_a_classifier_and_fine_purifying_the_weights_before(
    baseline, encoder, tiny_file, folder, tmp_path
):
    for method in REPAIRS:
        before = ("--pretrained", encoder) if method == "finepurify" else ()
        refused(
            baseline(method, "--ckpt", encoder, *before, "--data", folder, "--out", tmp_path / "out"), "no classifier",
            method,
        )
    refused(
        baseline("finepurify", "--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out"), "finepurify",
        "--pretrained",
    )


def test_a_methods_name_before_the_method(baseline, tiny_file, folder):
    refused(baseline("--out", "cft", "fth", "--ckpt", tiny_file, "--data", folder), "cft stands before fth")


def test_flags_may_stand_before_the_method(baseline, tiny_file, folder, tmp_path):
    """As tables.py calls it."""
    ended(baseline(f"--ckpt={tiny_file}", f"--data={folder}", f"--out={tmp_path / 'out'}", "cft", *FEW))
    assert read(tmp_path / "out")[0]["method"] == "cft"


# ---- what it cannot use

@pytest.mark.parametrize(
    "method, flags, words",
    [
        ("ft", ("--entropy-epochs", 2), ["--entropy-epochs 2", "meft", "ft has no such"]),
        ("fth", ("--entropy-epochs", 0), ["--entropy-epochs 0", "meft"]),
        ("meft", ("--entropy-epochs", 0), ["entropy_epochs is 0"]), ("ft", ("--lr", 0), ["0.0"]),
        ("fth", ("--lr", -1), ["-1"]), ("meft", ("--lr", 0), ["0.0"]), ("ft", ("--epochs", 0), ["epochs is 0"]),
        ("meft", ("--batch-size", 0), ["batch_size is 0"]), ("ft", ("--clean", 201), ["201", "200"]),
        ("meft", ("--clean", 0), ["0.0"]), ("ft", ("--lr", 1e30), ["--lr", "to 10"]),
        ("ft", ("--data", "nowhere"), ["nowhere"]), ("ft", ("--ckpt", "nowhere"), ["nowhere"]),
        ("ft", ("--triggered", "x.tsv"), ["x.tsv"]),
    ],
)
def test_what_it_cannot_use(baseline, tiny_file, folder, tmp_path, method, flags, words):
    common = ("--ckpt", tiny_file, "--data", folder, "--out", tmp_path / "out", "--device", "cpu")
    refused(baseline(method, *common, *flags), *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", METHODS)
def test_an_encoder_has_no_head_to_keep(baseline, encoder, folder, tmp_path, method):
    refused(
        baseline(method, "--ckpt", encoder, "--data", folder, "--out", tmp_path / "out", "--keep-head"), "--keep-head",
        "no classifier",
    )
    assert not (tmp_path / "out").exists()


def test_a_method_that_there_is_not(baseline, tiny_file, folder):
    run = baseline("best", "--ckpt", tiny_file, "--data", folder)
    assert (
        run.returncode == 2
        and "'best'" in run.stderr
        and all(method in run.stderr for method in (*METHODS, *REPAIRS))
        and "Traceback" not in run.stderr
    )


def test_an_output_on_top_of_the_victim(baseline, tiny_folder, folder):
    refused(baseline("ft", "--ckpt", tiny_folder, "--data", folder, "--out", tiny_folder), "--out")
