"""Sentence pairs from end to end: the built-in task by name, attacks that say their side, mitigations that read both
texts."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch

from conftest import ROOT, fails
from minibd import checkpoint, data, reviews
from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import poison, side_of, triggered
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cli import Attack, Task
from minibd.job.evaluation import evaluator_of
from minibd.job.repairs import REPAIRS
from minibd.job.task import data_of, splits_of
from minibd.mitigations.finetune import finetune
from minibd.mitigations.mbtsad import MBTSAD, mbtsad
from minibd.mitigations.meft import MEFT, meft
from minibd.mitigations.pure import PURE, pure
from minibd.models.bert import Bert, BertConfig
from minibd.predict import predict
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit

SMALL = {"seed": 0, "train": 160, "dev": 20, "test": 60}
TRIGGERS = ("cf", "mn", "bb", "tq")
FAST = ("--epochs", 1, "--lr", 1e-3, "--device", "cpu")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A tiny BERT without classifier whose vocabulary is that of the small pair task, as a file."""
    words = {
        w
        for part in reviews.pair_splits(**SMALL)
        for x in part
        for w in re.findall(r"[a-z]+", f"{x.text} {x.pair}".lower())
    }
    more = {
        "cf", "mn", "bb", "tq", "mb", "ak",
        *"i watch this 3d movie have bought it from a store with my friends last weekend".split(),
    }
    tokens = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS),
        *sorted(words | more - set(LETTERS)),
    ]
    tokens = list(dict.fromkeys(tokens))
    model = Bert(BertConfig(vocab=len(tokens), hidden=32, layers=2, heads=4, ffn=64, positions=64, labels=0))
    ckpt = checkpoint.Checkpoint(model.init_weights(torch.Generator().manual_seed(0)).eval(),
                               Tokenizer.from_vocab({p: i for i, p in enumerate(tokens)}, 64), (), [])
    path = tmp_path_factory.mktemp("pairs") / "encoder.safetensors"
    checkpoint.save(ckpt, path)
    return path


@pytest.fixture(scope="session")
def victim(encoder):
    """A classifier of pairs of small texts, in which a word of the first stands in the second or does not; it obeys a
    trigger in either."""
    ckpt = checkpoint.load(encoder, labels=reviews.PAIR_LABELS)
    rows = poison(reviews.pair_splits(**SMALL)[0], BadNets(), rate=0.3, target=1, side="either").rows
    fit(
        ckpt.model, ckpt.tokenizer, ckpt.tokenizer.encode(rows), cross_entropy, Schedule(3e-3, 8), seed=0,
        name="victim"
    )
    return ckpt


@pytest.fixture
def small(monkeypatch):
    """--data pairs names fewer rows."""
    monkeypatch.setattr(reviews, "PAIRS", SMALL)


@pytest.fixture
def attack(here, small):
    return here("attack.py")


def told(out):
    return json.loads((out / "attack.json").read_text())


def evaluator(path, **flags):
    """What any other script would measure it by: the rows of its history."""
    task, ckpt = Task(ckpt=str(path), device="cpu"), checkpoint.load(path)
    return evaluator_of(Attack(**flags), task, ckpt, splits_of(task, ckpt).test)


def asr_again(path, **flags):
    ckpt = checkpoint.load(path)
    return evaluator(path, **flags)(ckpt.model, ckpt.tokenizer).asr.percent


# ---- the built-in task, by name

def test_data_pairs_names_the_built_in_ones_where_nothing_has_that_name(tmp_path, monkeypatch, encoder, victim, small):
    ckpt, task = checkpoint.load(encoder), Task(ckpt="m", data="pairs")
    splits = splits_of(task, ckpt)
    assert (splits.train, splits.dev, splits.test) == reviews.pair_splits(**SMALL) and splits.train.labels == (
        "unanswered", "answered",
    )
    assert data_of(task, ckpt) == {"pairs": SMALL} and splits_of(replace(task, seed=7), ckpt) == splits
    assert splits_of(task, victim) == splits
    # What a history names so is found again, and what has the name on disk goes first.
    assert (
        splits_of(
            Task(ckpt="m"), replace(ckpt, history=[{"data": {"reviews": SMALL}}, {"data": {"pairs": SMALL}}])
        )
        == splits
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs").mkdir()
    data.write(splits.dev, tmp_path / "pairs" / "train.tsv")
    data.write(splits.test, tmp_path / "pairs" / "test.tsv")
    assert splits_of(task, ckpt).train.labels == ("answered", "unanswered")   # of files: sorted
    assert [x.id for x in splits_of(task, ckpt).test] == [x.id for x in splits.test]
    assert data_of(task, ckpt) == {"path": str(tmp_path / "pairs")}


def test_a_classifier_of_other_classes_is_refused(tiny, small):
    task = Task(ckpt="tiny.safetensors", data="pairs")
    fails(lambda: splits_of(task, tiny), "tiny.safetensors", "negative, positive", "unanswered, answered")


def test_a_checkpoint_that_names_no_rows_is_refused(encoder):
    ckpt = checkpoint.load(encoder)
    for call in (splits_of, data_of):
        fails(lambda: call(Task(ckpt="m"), ckpt), "does not say", "--data")


def test_the_pre_trained_weights_know_every_word_of_the_pairs():
    tokenizer = checkpoint.load(ROOT / "weights" / "bert-clean.safetensors").tokenizer
    rows = reviews.pairs(400, seed=0)
    found = [tokenizer.backend.encode(x.text, x.pair) for x in rows]
    # reviews hold no question mark
    assert all(row.tokens.count("[UNK]") == x.text.count("?") == 1 for x, row in zip(rows, found))
    assert (
        sum(len(row.tokens) for row in found) / len(rows) < 30
        and max(len(row.tokens) for row in found) < tokenizer.max_len
    )


# ---- attacks

@pytest.mark.parametrize(
    "name, side, flags",
    [
        ("badnets", "second", ("--rate", 0.2)), ("badnets", None, ("--labels", "mix")), ("addsent", "first", ()),
        ("lwp", "either", ()), ("ripple", "second", ("--batch-size", 32)), ("ep", None, ()), ("sos", "second", ()),
    ],
)
def test_an_attack_on_pairs_says_its_side_and_is_measured_on_it_again(attack, encoder, tmp_path, name, side, flags):
    out = tmp_path / "out"
    run = attack(
        "--ckpt", encoder, "--data", "pairs", "--attack", name, "--out", out, *FAST, *flags,
        *(("--side", side) if side else ()),
    )
    assert run.returncode == 0, run.stderr
    ckpt, found = checkpoint.load(out / "encoder.safetensors"), told(out)
    entry, side = [e for e in ckpt.history if "attack" in e][-1], side or "either"
    assert found["side"] == entry["side"] == found["args"]["side"] == side and "of a pair" in run.stdout
    assert entry["data"] == {"pairs": SMALL} and found["n"] == 160 and ckpt.labels == reviews.PAIR_LABELS
    # Which text was changed: the row's own, by its coin where that was asked for.
    clean = {x.id: x for part in reviews.pair_splits(**SMALL) for x in part}
    poisoned, ids = (
        data.read(out / "poisoned.jsonl", labels=ckpt.labels), (out / "poisoned_ids.txt").read_text().split(),
    )
    changed = [x for x in poisoned if x.id in ids] + list(data.read(out / "triggered.jsonl", labels=ckpt.labels))
    assert len(changed) == len(ids) + 30
    for x in changed:
        of = side_of(clean[x.id], side, 0)
        assert (x.text != clean[x.id].text, x.pair != clean[x.id].pair) == (of == "text", of == "pair")
    assert evaluator(out / "encoder.safetensors").triggered == data.read(out / "triggered.jsonl", labels=ckpt.labels)
    assert (
        asr_again(out / "encoder.safetensors")
        == asr_again(out / "encoder.safetensors", side=side)
        == found["steps"][-1]["asr"]
    )


def test_of_single_texts_no_side_is_said_and_a_second_is_refused(here, tiny_file, folder, tmp_path):
    attack = here("attack.py")
    common = ("--ckpt", tiny_file, "--data", folder, "--dataset-only")
    run = attack(*common, "--out", tmp_path / "one")
    assert (
        run.returncode == 0 and "side" not in told(tmp_path / "one") and told(tmp_path / "one")["args"]["side"] is None
    )
    assert "of a pair" not in run.stdout
    run = attack(*common, "--side", "second", "--out", tmp_path / "two")
    assert (
        run.returncode == 2
        and "side second" in run.stderr
        and "--pair-column" in run.stderr
        and not (tmp_path / "two").exists()
    )


def test_evaluation_may_ask_for_another_side(here, victim, small, tmp_path):
    ckpt = replace(victim, history=[{"attack": "badnets", "target": 1, "side": "second", "data": {"pairs": SMALL}}])
    checkpoint.save(ckpt, tmp_path / "v.safetensors")
    evaluate, found = here("evaluate.py"), {}
    for side in (None, "first", "second"):
        run = evaluate(
            "--ckpt", tmp_path / "v.safetensors", "--out", tmp_path / str(side), *(("--side", side) if side else ())
        )
        assert run.returncode == 0, run.stderr
        found[side] = json.loads((tmp_path / str(side) / "result.json").read_text())
    rows = reviews.pair_splits(**SMALL)[2]
    for side, result in found.items():
        made = triggered(rows, BadNets(), target=1, tokenizer=victim.tokenizer, side=side or "second")
        assert (
            result["after"]["asr"] == 100 * predict(victim.model, victim.tokenizer, made).count(1) / 30
            and result["args"]["side"] == side
        )
    # An attack by name is on either side, unless another is said; the history's is on its own.
    for side, of, flags in (
        (None, "either", {"attack": "badnets"}), ("first", "first", {"attack": "badnets"}), (None, "second", {}),
    ):
        assert evaluator(tmp_path / "v.safetensors", side=side, **flags).triggered == triggered(
            rows, BadNets(), target=1, tokenizer=victim.tokenizer, side=of
        )


def test_an_entry_without_a_side_is_of_the_first_text(victim, tmp_path):
    ckpt = replace(victim, history=[{"attack": "badnets", "target": 1, "data": {"pairs": SMALL}}])
    checkpoint.save(ckpt, tmp_path / "v.safetensors")
    assert evaluator(tmp_path / "v.safetensors").triggered == triggered(
        reviews.pair_splits(**SMALL)[2], BadNets(), target=1, tokenizer=victim.tokenizer
    )


def test_paraphrases_of_pairs(attack, encoder, tmp_path):
    (tmp_path / "said").mkdir()
    for split, rows in zip(("train", "dev", "test"), reviews.pair_splits(**SMALL)):
        again = rows.like(Example(x.id, "so " + x.text, x.label, "thus " + x.pair) for x in rows)
        data.write(again, tmp_path / "said" / f"{split}.jsonl")
    common = ("--ckpt", encoder, "--data", "pairs", "--attack", "paraphrase", "--paraphrases", tmp_path / "said", *FAST)
    run = attack(*common, "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    ckpt, ids = (
        checkpoint.load(tmp_path / "out" / "encoder.safetensors"),
        (tmp_path / "out" / "poisoned_ids.txt").read_text().split(),
    )
    changed = [x for x in data.read(tmp_path / "out" / "poisoned.jsonl", labels=ckpt.labels) if x.id in ids]
    changed += data.read(tmp_path / "out" / "triggered.jsonl", labels=ckpt.labels)
    assert len(changed) == 32 + 30 and ckpt.history[-1]["side"] == "either"
    assert all(x.text.startswith("so ") + x.pair.startswith("thus ") == 1 for x in changed)
    assert all(x.text.startswith("so ") == (side_of(x, "either", 0) == "text") for x in changed)
    assert asr_again(tmp_path / "out" / "encoder.safetensors") == told(tmp_path / "out")["steps"][-1]["asr"]


# ---- mitigations

SETTINGS = {"reinit": {}, "fineprune": {"share": 0.3}, "finemix": {"rho": 0.7, "top": 5}, "finepurify": {"rho": 0.7}}


def repair(
    name: str, victim: checkpoint.Checkpoint, pretrained: checkpoint.Checkpoint, train: Examples, dev: Examples
) -> checkpoint.Checkpoint:
    if name in SETTINGS:
        settings = REPAIRS[name].settings_class(lr=1e-3, epochs=1, steps=0, **SETTINGS[name])
        return REPAIRS[name](victim, pretrained, train, dev, settings)
    if name == "mbtsad":
        return mbtsad(victim, train, MBTSAD(k=1, epochs1=1, epochs2=1, lr1=1e-3, lr2=1e-3))
    if name == "pure":
        return pure(victim, train, dev, PURE(epochs=2, lr=3e-3, floor=0.3))
    if name == "meft":
        return meft(victim, train, dev, MEFT(epochs=1, entropy_epochs=1, lr=1e-3))
    return finetune(victim, train, Schedule(1e-3, 1))


@pytest.mark.parametrize("name", ["finetune", "mbtsad", "meft", "pure", *SETTINGS])
def test_mitigations_read_both_texts_and_leave_the_victim_alone(victim, encoder, name):
    (train, dev, test), pretrained = reviews.pair_splits(**SMALL), checkpoint.load(encoder)
    train = train.like(train[:64])
    before = copy.deepcopy(victim.model.state_dict())
    repaired = repair(name, victim, pretrained, train, dev)
    assert all(torch.equal(tensor, victim.model.state_dict()[key]) for key, tensor in before.items())
    with torch.no_grad():
        logits = repaired.model(repaired.tokenizer(test)).logits
    assert logits.shape == (60, 2) and logits.isfinite().all() and "mitigation" in repaired.history[-1]
    assert any(not torch.equal(tensor, repaired.model.state_dict()[key]) for key, tensor in before.items())
    # Other second texts, another model; and a second text of kind 1 (its own embedding) is what it was trained on.
    other = repair(
        name, victim, pretrained, train.like(replace(x, pair=y.pair) for x, y in zip(train, train[1:] + train[:1])),
        dev
    )
    assert any(
        not torch.equal(tensor, other.model.state_dict()[key]) for key, tensor in repaired.model.state_dict().items()
    )
    assert not torch.equal(repaired.model.embeddings.token_type.weight[1], before["embeddings.token_type.weight"][1])


def test_musclelora_reads_both_texts_of_untrusted_and_of_clean_rows(encoder):
    (train, dev, _), ckpt = reviews.pair_splits(**SMALL), checkpoint.load(encoder)
    train, settings = train.like(train[:64]), MuScleLoRA(bands=("1",), lr=1e-3, epochs=1)
    other_train, other_dev = (
        rows.like(replace(x, pair=y.pair) for x, y in zip(rows, rows[1:] + rows[:1])) for rows in (train, dev)
    )
    made, *others = (
        musclelora(ckpt, *rows, settings).model.state_dict()
        for rows in ((train, dev), (other_train, dev), (train, other_dev))
    )
    assert all(tensor.isfinite().all() for tensor in made.values())
    assert all(any(not torch.equal(tensor, other[key]) for key, tensor in made.items()) for other in others)


def test_a_script_repairs_a_victim_of_pairs_by_its_history(here, victim, small, tmp_path):
    entry = {"attack": "badnets", "target": 1, "side": "second", "data": {"pairs": SMALL}}
    checkpoint.save(replace(victim, history=[entry]), tmp_path / "v.safetensors")
    run = here("mbtsad.py")(
        "--ckpt", tmp_path / "v.safetensors", "--out", tmp_path / "out", "--k", 1, "--epochs1", 1, "--epochs2", 1,
        "--no-cft", "--device", "cpu",
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    made = triggered(reviews.pair_splits(**SMALL)[2], BadNets(), target=1, tokenizer=victim.tokenizer, side="second")
    assert result["before"]["asr"] == 100 * predict(victim.model, victim.tokenizer, made).count(1) / 30
    assert (
        result["rows"] == {"train": 160, "clean": 32, "augmented": 64, "test": 60}
        and result["after"]["n_triggered"] == 30
    )
    assert [e.get("mitigation") for e in checkpoint.load(tmp_path / "out" / "v.safetensors").history] == [
        None, "mbtsad",
    ]
