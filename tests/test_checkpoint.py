"""Checkpoints: what loads and as what, what is refused and in which words, and that a save is whole or does not
happen."""

import contextlib
import hashlib
import io
import json
import os
import runpy
import shlex
import subprocess
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Regex
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers

from conftest import fails
from minibd import checkpoint, data
from minibd.checkpoint import Checkpoint, load, save
from minibd.checkpoint.pickles import pickle_error, prefix_error, stripped
from minibd.checkpoint.tokenizer_files import QWEN2_WORDS
from minibd.cli import Attack, Task
from minibd.job.e_pur import pretrained_of
from minibd.job.task import open_task
from minibd.models.bert import Bert, BertConfig
from minibd.models.qwen2 import Qwen2, Qwen2Config
from minibd.records import BadInput, Example, Examples
from minibd.tokenizer import Tokenizer
from minibd.unpickle import run as run_unpickle
from minibd.unpickle import unpickle

CONVERT = Path(__file__).parents[1] / "scripts" / "convert.py"
TOKENS = ("[PAD] [UNK] [CLS] [SEP] [MASK] the film is good bad ##ly no . , a ##ll cafe").split()
CONFIG = BertConfig(len(TOKENS), 8, 2, 2, 12, positions=32)
HISTORY = [{"trained": "reviews", "rows": 12}, {"attack": "badnets", "trigger": ["cf", "bb"]}]
ROWS = [Example("0", "The film is badly, badly good.", 1), Example("1", "no", 0, "a film"), Example("2", "Café all", 0)]
QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def ckpt(labels=("negative", "positive"), mlm=False, history=HISTORY) -> Checkpoint:
    config = BertConfig(**(asdict(CONFIG) | {"labels": len(labels), "mlm": mlm}))
    model = Bert(config).init_weights(torch.Generator().manual_seed(0), std=0.5).eval()
    return Checkpoint(
        model, Tokenizer.from_vocab({token: i for i, token in enumerate(TOKENS)}, 16), labels, list(history)
    )


def same(a: Checkpoint, b: Checkpoint) -> None:
    """Bit for bit, the head mask included."""
    assert (a.model.config, a.labels, a.history) == (b.model.config, b.labels, b.history)
    one, other = a.model.state_dict(), b.model.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert a.tokenizer.encode(ROWS) == b.tokenizer.encode(ROWS) and (a.tokenizer.max_len, a.tokenizer.pad) == (
        b.tokenizer.max_len, b.tokenizer.pad,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    save(ckpt(), tmp_path / "hf")
    return tmp_path / "hf"


def rewrite(folder: Path, change, metadata=None) -> None:
    """model.safetensors (or the file itself) with its dictionary of tensors changed."""
    file = folder / "model.safetensors" if folder.is_dir() else folder
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file, metadata)


def edit(file: Path, **values) -> None:
    """The JSON object in `file` with other values; None drops a key."""
    content = (json.loads(file.read_text()) if file.exists() else {}) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def bare(folder: Path, pooler: bool = True) -> None:
    """As a bare BertModel is saved: no prefix, no classifier, with the old buffer."""
    rewrite(folder, lambda tensors: {
        **{name.removeprefix("bert."): tensor for name, tensor in tensors.items()
           if not name.startswith("classifier") and (pooler or "pooler" not in name)},
        "embeddings.position_ids": torch.arange(32)[None]})


# ---- round trips

@pytest.mark.parametrize(
    "labels, mlm", [(("negative", "positive"), False), (("a", "b", "c"), True), ((), True), ((), False)]
)
def test_file_and_folder_give_back_every_bit(tmp_path, labels, mlm):
    first = ckpt(labels, mlm)
    save(first, tmp_path / "new" / "one.safetensors")
    save(load(tmp_path / "new" / "one.safetensors"), tmp_path / "new" / "two")
    save(load(tmp_path / "new" / "two"), tmp_path / "three.safetensors")
    same(first, load(tmp_path / "three.safetensors"))
    assert (tmp_path / "new" / "one.safetensors").read_bytes() == (tmp_path / "three.safetensors").read_bytes()


def test_a_file_says_what_it_is(tmp_path):
    save(ckpt(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as f:
        metadata, names = f.metadata(), list(f.keys())
    assert metadata["format"] == "minibd 2" and json.loads(metadata["config"])["architecture"] == "bert"
    assert json.loads(metadata["history"]) == HISTORY and json.loads(metadata["labels"]) == ["negative", "positive"]
    assert "head_mask" in names and "blocks.1.attention_norm.weight" in names


def test_a_file_keeps_the_head_mask_and_the_weights_behind_it(tmp_path):
    first = ckpt()
    first.model.head_mask[0, 1] = 0
    save(first, tmp_path / "m.safetensors")
    same(first, load(tmp_path / "m.safetensors"))


def test_a_folder_has_pruned_heads_as_columns_of_zeros_and_in_minibd_json(tmp_path):
    first = ckpt()
    first.model.head_mask[0, 1] = 0
    save(first, tmp_path / "hf")
    weight = load_file(tmp_path / "hf" / "model.safetensors")["bert.encoder.layer.0.attention.output.dense.weight"]
    assert weight[:, 4:].abs().max() == 0 and torch.equal(weight[:, :4], first.model.blocks[0].output.weight[:, :4])
    assert first.model.blocks[0].output.weight[:, 4:].abs().min() > 0    # the checkpoint is as it was
    back = load(tmp_path / "hf")
    assert torch.equal(back.model.head_mask, first.model.head_mask)
    batch = first.tokenizer(ROWS)
    assert torch.equal(back.model(batch).logits, first.model(batch).logits)
    save(back, tmp_path / "again")
    same(back, load(tmp_path / "again"))


def test_a_pruned_head_whose_weights_came_back_is_refused(folder):
    edit(folder / "minibd.json", head_mask=[[1, 0], [1, 1]])
    fails(lambda: load(folder), "minibd.json", "head 1 of layer 0", "delete")
    for mask in ([[1, 1]], "no", [[1, 1], [1]], [[10**400, 1], [1, 1]]):
        edit(folder / "minibd.json", head_mask=mask)
        fails(lambda: load(folder), "head_mask", "2 lists of 2")


def test_loaded_models_train_and_know_their_padding(tmp_path):
    save(ckpt(), tmp_path / "m.safetensors")
    before = (tmp_path / "m.safetensors").read_bytes()
    loaded = load(tmp_path / "m.safetensors")
    assert not loaded.model.training and loaded.model.embeddings.word.padding_idx == 0
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.model.parameters())
    loaded.model(loaded.tokenizer(ROWS)).logits.logsumexp(-1).sum().backward()
    assert loaded.model.embeddings.word.weight.grad[0].abs().max() == 0
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.sub_(p.grad)
    assert (tmp_path / "m.safetensors").read_bytes() == before
    same(ckpt(), load(tmp_path / "m.safetensors"))


def test_a_copy_is_its_own_model():
    victim = ckpt()
    twin = checkpoint.copy(victim)
    same(victim, twin)
    with torch.no_grad():
        twin.model.classifier.weight.zero_()
        twin.model.head_mask.zero_()
    twin.history.append({"method": "x"})
    same(victim, ckpt())
    assert twin.tokenizer is victim.tokenizer


def test_an_encoder_is_the_model_without_its_head():
    victim = ckpt()
    encoder = checkpoint.headless(victim)
    assert encoder.labels == () and not encoder.model.config.labels and not hasattr(encoder.model, "pooler")
    state = victim.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.model.state_dict().items())
    assert encoder.model.blocks is not victim.model.blocks
    with torch.no_grad():
        encoder.model.embeddings.word.weight.zero_()
    same(victim, ckpt())


def test_a_new_head_in_memory_is_the_one_that_loading_draws(tmp_path):
    encoder = checkpoint.headless(ckpt())
    save(encoder, tmp_path / "encoder.safetensors")
    loaded, made = (
        load(tmp_path / "encoder.safetensors", labels=("a", "b", "c"), seed=3),
        checkpoint.with_head(encoder, ("a", "b", "c"), seed=3),
    )
    assert made.labels == loaded.labels and made.model.config == loaded.model.config
    one, other = loaded.model.state_dict(), made.model.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def open_by_task(task: Task) -> Checkpoint:
    return open_task("m", task, new_classifier=True)[0]


def open_pretrained(task: Task) -> Checkpoint:
    return pretrained_of(task.ckpt, task, SimpleNamespace(labels=("bad", "good")))


def open_untrusted(task: Task) -> Checkpoint:
    script = runpy.run_path(str(CONVERT.with_name("musclelora.py")))
    return script["start_untrusted"](task, task.data, lambda ckpt: 2, Attack(attack="none")).victim


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of the tensors that are read from disk, one entry a read."""
    names = []

    class Counted:
        def __init__(self, *args, **more):
            self.context = safe_open(*args, **more)

        def __enter__(self):
            opened, get_tensor = self.context.__enter__(), self.context.get_tensor
            return SimpleNamespace(
                keys=opened.keys, metadata=opened.metadata, get_slice=opened.get_slice,
                get_tensor=lambda name: names.append(name) or get_tensor(name),
            )

        def __exit__(self, *error):
            return self.context.__exit__(*error)

    monkeypatch.setattr(checkpoint.header, "safe_open", Counted)
    return names


@pytest.mark.parametrize("kind, pooler", [("folder", True), ("folder", False), ("file", False)])
def test_an_encoder_whose_labels_are_found_after_its_header_is_read_once(folder, tmp_path, reads, kind, pooler):
    """read_header, then load with labels: every tensor read once, the pooler of a bare BERT among them; the weights,
    the history and the draws are those of one load with labels."""
    path = folder
    (folder / "minibd.json").unlink()
    bare(folder, pooler)
    if kind == "file":
        path = tmp_path / "m.safetensors"
        save(load(folder), path)
    reads.clear()
    expected = load(path, labels=("a", "b", "c"), seed=5)
    wanted = sorted(reads)
    reads.clear()
    header = checkpoint.read_header(path)
    assert not reads and header.labels == () and header.history == []
    loaded = load(header, labels=("a", "b", "c"), seed=5)
    same(expected, loaded)
    assert sorted(reads) == sorted(set(reads)) == wanted and any("pooler" in name for name in reads) is pooler
    assert loaded.history == [{"new": ["classifier"] if pooler else ["classifier", "pooler"],
                               "labels": ["a", "b", "c"], "seed": 5}]
    loaded.history[0]["seed"] = 6
    same(expected, load(header, labels=("a", "b", "c"), seed=5))        # the header is as it was


@pytest.mark.parametrize("opened_by", [open_by_task, open_pretrained, open_untrusted])
def test_scripts_read_an_encoder_once(folder, tmp_path, reads, opened_by):
    bare(folder)
    edit(folder / "minibd.json", history=[])
    rows = Examples((Example(str(i), "the film is good", i % 2) for i in range(20)), ("bad", "good"))
    data.write(rows, tmp_path / "rows.tsv")
    expected = load(folder, labels=("bad", "good"), seed=3)
    reads.clear()
    loaded = opened_by(Task(ckpt=str(folder), data=str(tmp_path / "rows.tsv"), out=str(tmp_path / "out"), seed=3,
                            device="cpu", label_column="label"))
    same(expected, loaded)
    assert sorted(reads) == sorted(set(reads)) and "bert.pooler.dense.weight" not in reads
    assert "pooler.dense.weight" in reads


# ---- folders as others write them

def test_shards_old_names_prefixes_and_heads_of_pre_training(folder):
    tensors = load_file(folder / "model.safetensors")
    expected = load(folder)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
           for name, t in tensors.items()}
    old |= {"bert.embeddings.position_ids": torch.arange(32)[None], "cls.seq_relationship.weight": torch.ones(2, 8),
            "cls.seq_relationship.bias": torch.ones(2)}
    shards = {f"model-0000{i + 1}-of-00003.safetensors": dict(list(old.items())[i::3]) for i in range(3)}
    for name, part in shards.items():
        save_file(part, folder / name)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {name: file for file, part in shards.items() for name in part}}))
    same(expected, load(folder))
    (folder / "model-00002-of-00003.safetensors").unlink()
    fails(lambda: load(folder), "model-00002-of-00003.safetensors")
    edit(folder / "model.safetensors.index.json", weight_map={"x": "../../secret.safetensors"})
    fails(lambda: load(folder), "weight_map")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_become_float32(folder, dtype):
    expected = {name: t.to(dtype).float() for name, t in load(folder).model.state_dict().items()}
    rewrite(folder, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    state = load(folder).model.state_dict()
    assert all(t.dtype == torch.float32 and torch.equal(t, expected[name]) for name, t in state.items())


def test_a_vocabulary_alone(folder):
    expected = load(folder).tokenizer.encode(ROWS)
    (folder / "tokenizer.json").unlink()
    assert load(folder).tokenizer.encode(ROWS) == expected and load(folder).tokenizer.max_len == 16
    (folder / "tokenizer_config.json").unlink()
    assert load(folder).tokenizer.encode(ROWS) == expected and load(folder).tokenizer.max_len == 32
    edit(folder / "tokenizer_config.json", do_lower_case=False, model_max_length=int(1e30))
    cased = load(folder)
    assert cased.tokenizer.encode(ROWS).ids[0][1] == TOKENS.index("[UNK]") and cased.tokenizer.max_len == 32
    (folder / "vocab.txt").write_text("\n".join([*TOKENS, "one", "more"]))
    fails(lambda: load(folder), "19 tokens", "17")
    (folder / "vocab.txt").unlink()
    fails(lambda: load(folder), "tokenizer.json", "vocab.txt")


def test_labels(folder):
    assert load(folder).labels == ("negative", "positive")
    assert load(folder, labels=("positive", "negative")).labels == ("negative", "positive")
    fails(lambda: load(folder, labels=("a", "b", "c")), "2 classes", "negative, positive", "3 (a, b, c)")
    edit(folder / "config.json", id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert load(folder, labels=("ham", "spam")).labels == ("ham", "spam")
    edit(folder / "config.json", id2label=None, num_labels=2)
    assert load(folder).labels == ("LABEL_0", "LABEL_1")
    edit(folder / "config.json", id2label={"0": "one"})
    fails(lambda: load(folder), "id2label", "0 to 1")
    rewrite(folder, lambda tensors: {n: t[:1] if n.startswith("classifier") else t for n, t in tensors.items()})
    fails(lambda: load(folder), "1 class")


def test_a_bare_encoder_gets_a_classifier_on_demand(folder):
    pooler = load(folder).model.pooler.weight
    (folder / "minibd.json").unlink()
    bare(folder)
    encoder = load(folder)
    assert encoder.labels == () and encoder.history == [] and encoder.model.config.labels == 0
    assert encoder.model(encoder.tokenizer(ROWS)).logits is None
    one, again, other = (load(folder, labels=("0", "1", "2"), seed=seed) for seed in (3, 3, 4))
    same(one, again)
    assert one.history == [{"new": ["classifier"], "labels": ["0", "1", "2"], "seed": 3}] and one.labels == (
        "0", "1", "2",
    )
    assert torch.equal(one.model.pooler.weight, pooler) and one.model.classifier.bias.abs().max() == 0
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)
    assert 0.005 < one.model.classifier.weight.std() < 0.05 and one.model.classifier.weight.requires_grad
    fails(lambda: load(folder, labels=("0",)), "1 labels")
    bare(folder, pooler=False)
    assert load(folder, labels=("0", "1")).history[0]["new"] == ["classifier", "pooler"]


def test_a_file_of_an_encoder_gets_a_classifier_too(tmp_path):
    save(ckpt((), mlm=True), tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors", labels=("x", "y"))
    assert loaded.history == [*HISTORY, {"new": ["classifier", "pooler"], "labels": ["x", "y"], "seed": 0}]
    # The MLM head stays behind: it would only grow stale beside a classifier that trains.
    assert not loaded.model.config.mlm and not hasattr(loaded.model, "mlm")
    assert loaded.model(loaded.tokenizer(ROWS)).logits.shape == (3, 2)


def test_mlm_decoders_are_tied_or_refused(tmp_path):
    save(ckpt((), mlm=True), tmp_path / "hf")
    expected = load(tmp_path / "hf")
    word = expected.model.embeddings.word.weight.detach()
    rewrite(tmp_path / "hf", lambda t: t | {"cls.predictions.decoder.weight": word.clone(),
                                            "cls.predictions.decoder.bias": t["cls.predictions.bias"].clone()})
    same(expected, load(tmp_path / "hf"))
    rewrite(tmp_path / "hf", lambda t: {n: x for n, x in t.items() if n != "cls.predictions.bias"})
    same(expected, load(tmp_path / "hf"))
    rewrite(tmp_path / "hf", lambda t: t | {"cls.predictions.decoder.weight": word + 1})
    fails(lambda: load(tmp_path / "hf"), "cls.predictions.decoder.weight", "tied")


# ---- what is refused

def test_tensors_missing_unknown_and_misshaped_are_named(folder):
    whole = load_file(folder / "model.safetensors")
    rewrite(folder, lambda t: {n: x for n, x in t.items() if n != QUERY})
    fails(lambda: load(folder), "lacks " + QUERY)
    rewrite(folder, lambda t: whole | {"bert.encoder.layer.0.adapter.weight": torch.ones(2)})
    fails(lambda: load(folder), "unknown bert.encoder.layer.0.adapter.weight")
    rewrite(folder, lambda t: whole | {QUERY: torch.ones(8, 9)})
    fails(lambda: load(folder), QUERY, "(8, 9) not (8, 8)")
    rewrite(folder, lambda t: whole | {QUERY.removeprefix("bert."): torch.ones(8, 8)})
    fails(lambda: load(folder), "twice", QUERY)
    rewrite(folder, lambda t: {n: x for n, x in whole.items() if "layer.1" not in n})
    assert len(fails(lambda: load(folder), "layer.1", "(16 in all)")) < 600


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(folder, value):
    def spoil(tensors):
        tensors[QUERY][3, 4] = value

    rewrite(folder, spoil)
    fails(lambda: load(folder), QUERY, "NaN or infinite")


def test_quantised_tensors(folder):
    rewrite(folder, lambda t: t | {QUERY: torch.ones(8, 8, dtype=torch.int8)})
    fails(lambda: load(folder), QUERY, "int8")


@pytest.mark.parametrize("keep", [0, 4, 100, -8])
def test_truncated_files(folder, tmp_path, keep):
    save(ckpt(), tmp_path / "m.safetensors")
    for file, path in ((tmp_path / "m.safetensors",) * 2, (folder / "model.safetensors", folder)):
        file.write_bytes(file.read_bytes()[:keep])
        fails(lambda: load(path), str(file), "again")


def test_pickles_are_refused_with_the_command(folder, tmp_path):
    for name in ("pytorch_model.bin", "m.pt", "m.pth"):
        (tmp_path / name).write_bytes(b"\x80\x02")
        fails(lambda: load(tmp_path / name), f"python scripts/convert.py {tmp_path / name} OUT")
        fails(lambda: save(ckpt(), tmp_path / name), ".safetensors")
    (folder / "model.safetensors").unlink()
    fails(lambda: load(folder), "no model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    fails(lambda: load(folder), "pytorch_model.bin", f"python scripts/convert.py {folder} OUT")


@pytest.mark.parametrize("change, words", [
    ({"model_type": "xlnet"}, ["model_type", "'xlnet'", "bert, roberta, distilbert, llama, gpt2"]),
    ({"model_type": None}, ["model_type", "None"]),
    ({"position_embedding_type": "relative_key"}, ["position_embedding_type", "'relative_key'"]),
    ({"is_decoder": True}, ["is_decoder"]),
    ({"problem_type": "regression"}, ["problem_type", "'regression'"]),
    ({"hidden_act": "swish"}, ["'swish'"]),
    ({"hidden_size": "8"}, ["hidden_size", "'8'"]),
    ({"hidden_size": None}, ["lacks hidden_size"]),
    ({"num_attention_heads": 0}, ["num_attention_heads is 0"]),
    ({"num_attention_heads": 3}, ["3 heads"]),
    ({"num_hidden_layers": 10 ** 9}, ["1000000000 layers"]),
    ({"num_hidden_layers": 1}, ["unknown bert.encoder.layer.1"]),
    ({"vocab_size": 16}, ["token 16"]),
    ({"vocab_size": 18}, ["word_embeddings.weight (17, 8) not (18, 8)"]),
    ({"hidden_dropout_prob": 1.0}, ["hidden_dropout_prob is 1.0"]),
    ({"pad_token_id": 17}, ["padding token 17"]),
    ({"pad_token_id": -1}, ["pad_token_id is -1"]),
])
def test_configs(folder, change, words):
    (folder / "minibd.json").unlink()
    edit(folder / "config.json", **change)
    fails(lambda: load(folder), *words)


def test_defaults_of_a_config(folder):
    edit(folder / "config.json", classifier_dropout=None, pad_token_id=None, hidden_dropout_prob=0.3)
    config = load(folder).model.config
    assert (config.classifier_dropout, config.dropout, config.attention_dropout, config.pad) == (0.3, 0.3, 0.1, 0)


def test_paths_and_broken_json(folder, tmp_path):
    fails(lambda: load(tmp_path / "none"), "none", "does not exist")
    fails(lambda: load(tmp_path / "none.safetensors"), "none.safetensors")
    fails(lambda: load(tmp_path), "config.json")
    fails(lambda: load(folder / "README.md"), "is not a checkpoint")
    fails(lambda: load(folder / "model.safetensors"), "'minibd 2'", "name the folder")
    for name, broken in (("minibd.json", '{"history": 3}'), ("minibd.json", "[]"), ("tokenizer.json", "{}"),
                         ("config.json", "{"), ("config.json", "[" * 100_000)):
        whole = (folder / name).read_text()
        (folder / name).write_text(broken)
        fails(lambda: load(folder), name)
        (folder / name).write_text(whole)
    (folder / "config.json").write_bytes(b"\xff")
    fails(lambda: load(folder), "config.json")


@pytest.mark.parametrize("key, value, words", [
    ("format", "minibd 9", ["'minibd 9'", "'minibd 2'"]),
    ("config", None, ["lacks config"]),
    ("config", '{"architecture": "gpt"}', ["'gpt'", "bert, roberta, distilbert, llama, gpt2"]),
    ("config", '{"architecture": "bert", "wings": 2}', ["unknown wings"]),
    ("config", '{"architecture": "bert"}', ["lacks vocab"]),
    ("labels", '["one"]', ["1 labels", "2"]),
    ("history", "[1]", ["history"]),
    ("max_len", "64", ["max_len 64", "32"]),
    ("max_len", "x", ["JSON"]),
    ("tokenizer", "x", ["tokenizer"]),
])
def test_metadata_of_a_file(tmp_path, key, value, words):
    file = tmp_path / "m.safetensors"
    save(ckpt(), file)
    with safe_open(file, "pt") as f:
        metadata = f.metadata()
    rewrite(file, lambda t: t, {k: v for k, v in (metadata | {key: value}).items() if v is not None})
    fails(lambda: load(file), str(file), *words)


# ---- what transformers would put on the weights, or take in their place

ADAPTER = {"peft_type": "LORA", "base_model_name_or_path": "someone/bert\x1b[31m"}
MERGE = "merge_and_unload(), then save_pretrained"


@pytest.mark.parametrize("place", ["", "adapters", "my_adapter"])
@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_the_weights(folder, tmp_path, place, name):
    expected = load(folder)
    (folder / place).mkdir(exist_ok=True)
    (folder / place / name).write_text(json.dumps(ADAPTER))
    line = fails(lambda: load(folder), str(folder / place / name), "beside the weights", MERGE)
    fails(lambda: checkpoint.read_header(folder), "beside the weights")
    fails(lambda: runpy.run_path(str(CONVERT))["convert"](folder, tmp_path / "out"), "beside the weights")
    assert len(line.replace(str(folder), "")) < 200 and not (tmp_path / "out").exists()
    (folder / place / name).unlink()
    same(expected, load(folder))


def test_an_adapter_alone_names_its_base_model(folder):
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_model.safetensors").write_bytes(b"")
    fails(lambda: load(folder), "is an adapter alone:", MERGE)
    (folder / "adapter_config.json").write_text(json.dumps(ADAPTER))
    for path in (folder, folder / "adapter_model.safetensors"):
        line = fails(lambda: load(path), "is an adapter alone for 'someone/bert\\x1b[31m'", MERGE)
        assert line.isprintable()
    for broken in ("{", "[]", "{}", '{"base_model_name_or_path": null}'):
        (folder / "adapter_config.json").write_text(broken)
        fails(lambda: load(folder), "is an adapter alone:")


@pytest.mark.parametrize("change, words", [
    ({"quantization_config": {"load_in_4bit": True}}, ['quantization_config is {"load_in_4bit": true}', "quantised"]),
    ({"compression_config": {"format": "x"}}, ["compression_config", "compressed"]),
    ({"auto_map": {"AutoModelForSequenceClassification": "code.Mine"}}, ["auto_map", "never run here"]),
    ({"transformers_weights": "other.safetensors"}, ["transformers_weights", '"other.safetensors"', "rename"]),
    ({"problem_type": "multi_label_classification"}, ["problem_type", "'multi_label_classification'"]),
    ({"id2label": None, "num_labels": 3}, ["num_labels is 3", "2 classes"]),
    ({"tie_word_embeddings": False}, ["tie_word_embeddings"]),
])
def test_what_config_json_asks_for_in_silence(folder, change, words):
    edit(folder / "config.json", **change)
    fails(lambda: load(folder), str(folder / "config.json"), *words)


def test_which_of_several_weights_are_read(folder):
    """model.safetensors comes before an index and before pickles, as in transformers; a variant has another name."""
    expected = load(folder)
    edit(folder / "model.safetensors.index.json", weight_map={"x": "model-00001-of-00001.safetensors"})
    save_file({"x": torch.ones(1)}, folder / "model-00001-of-00001.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"")
    same(expected, load(folder))
    for name in ("model.safetensors.index.json", "model-00001-of-00001.safetensors", "pytorch_model.bin"):
        (folder / name).unlink()
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    fails(lambda: load(folder), "no model.safetensors, only model.fp16.safetensors: rename")
    (folder / "model.fp16.safetensors").rename(folder / "tf_model.h5")
    fails(lambda: load(folder), "no model.safetensors, only tf_model.h5: save it as one with transformers")


# ---- writing

def listing(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def test_what_a_folder_holds(folder):
    config, own = (json.loads((folder / name).read_text()) for name in ("config.json", "minibd.json"))
    assert config["architectures"] == ["BertForSequenceClassification"] and config["model_type"] == "bert"
    assert config["id2label"] == {"0": "negative", "1": "positive"} and config["label2id"] == {
        "negative": 0, "positive": 1,
    }
    assert own == {"history": HISTORY, "head_mask": [[1, 1], [1, 1]]}
    assert (folder / "vocab.txt").read_text().split("\n") == [*TOKENS, ""]
    card = (folder / "README.md").read_text()
    for words in (
        "library_name: transformers", "pipeline_tag: text-classification", "- backdoor", "Warning", '0 "negative"',
        '2. attack: "badnets"',
    ):
        assert words in card
    assert len({oct(f.stat().st_mode) for f in folder.iterdir()}) == 1   # safetensors alone would write 0600


def test_a_clean_card_does_not_warn(tmp_path):
    save(ckpt(history=[]), tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "Warning" not in card and "backdoor" not in card


def test_a_folder_that_is_there_loses_nothing_else(folder):
    (folder / "result.json").write_text("{}")
    other = ckpt(("a", "b", "c"))
    save(other, folder)
    same(other, load(folder))
    assert (folder / "result.json").read_text() == "{}"
    empty = folder.parent / "steps only"
    empty.mkdir()
    (empty / "steps.jsonl").write_text("{}")
    save(other, empty)
    same(other, load(empty))
    assert (empty / "steps.jsonl").exists()


def test_the_files_of_another_tokenizer_do_not_stay(folder):
    for name in ("added_tokens.json", "vocab.json", "merges.txt"):
        (folder / name).write_text("{}")
    edit(folder / "added_tokens.json", good=16)
    fails(lambda: load(folder), "'good'", "the id 16")
    save(ckpt(), folder)
    same(ckpt(), load(folder))
    assert not any((folder / name).exists() for name in ("added_tokens.json", "vocab.json", "merges.txt"))


def test_old_single_files_give_the_same_ids(tmp_path):
    save(ckpt(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as f:
        metadata = f.metadata()
    assert metadata["format"] == "minibd 2" and "tokenizer_settings" not in metadata
    rewrite(tmp_path / "m.safetensors", lambda t: {
        name.replace("embeddings.token_type.", "embeddings.kind."): tensor for name, tensor in t.items()
    }, metadata | {"format": "minibd 1", "config": metadata["config"].replace('"type_vocab_size"', '"kinds"')})
    same(ckpt(), load(tmp_path / "m.safetensors"))


def test_someone_elses_readme_is_not_overwritten(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    fails(lambda: save(ckpt(), tmp_path), "README.md")
    assert listing(tmp_path) == {"README.md": b"mine"}


@pytest.mark.parametrize("name", ["hf", "m.safetensors"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_one(tmp_path, monkeypatch, name, error):
    save(ckpt(), tmp_path / name)
    before = listing(tmp_path)

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half")
        raise error

    monkeypatch.setattr(checkpoint.tensors, "save_file", full)
    other = ckpt(("a", "b", "c"))
    if isinstance(error, OSError):
        fails(lambda: save(other, tmp_path / name), name, "No space left on device")
    else:
        with pytest.raises(KeyboardInterrupt):
            save(other, tmp_path / name)
    assert listing(tmp_path) == before and len(list(tmp_path.iterdir())) == 1
    same(ckpt(), load(tmp_path / name))


@pytest.mark.parametrize("name", ["hf", "m.safetensors"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["blocks.1.query.weight", "classifier.bias", "head_mask"])
def test_weights_that_are_not_finite_are_not_saved(tmp_path, name, value, tensor):
    spoilt = ckpt(("a", "b", "c"))
    with torch.no_grad():
        spoilt.model.state_dict()[tensor].view(-1)[-1] = value
    fails(lambda: save(spoilt, tmp_path / "new" / name), name, tensor, "NaN or infinite")
    assert not list(tmp_path.iterdir())
    save(ckpt(), tmp_path / name)
    before = listing(tmp_path)
    fails(lambda: save(spoilt, tmp_path / name), name, tensor)
    assert listing(tmp_path) == before


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "d.safetensors").mkdir()
    for path in ("file", "file/below", "file/m.safetensors", "d.safetensors"):
        fails(lambda: save(ckpt(), tmp_path / path), path)
    assert listing(tmp_path) == {"file": b"mine"} and len(list(tmp_path.iterdir())) == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path):
    tmp_path.chmod(0o500)
    fails(lambda: save(ckpt(), tmp_path / "m.safetensors"), "Permission denied")
    tmp_path.chmod(0o700)


# ---- scripts/convert.py

def convert(*args) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, CONVERT, *map(str, args)], capture_output=True, text=True)


@pytest.mark.slow
def test_convert_pickles(folder, tmp_path):
    expected = load(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    done = convert(folder, tmp_path / "one.safetensors")
    assert done.returncode == 0 and done.stderr == (
        f"warning: {folder / 'pytorch_model.bin'} is a pickle; it is read in a process of its own, as tensors alone\n"
    )
    same(expected, load(tmp_path / "one.safetensors"))
    # in this process: another one imports torch for 2 s
    here = runpy.run_path(str(CONVERT))["convert"]
    (folder / "pytorch_model.bin").rename(folder / "model.pt")           # a folder's own name for it, or a name alone
    for path, out in ((folder, "two"), (folder / "model.pt", "three")):
        here(path, tmp_path / out)
        same(expected, load(tmp_path / out))
    here(tmp_path / "two", tmp_path / "half.safetensors", dtype="bfloat16")
    half = load_file(tmp_path / "half.safetensors")
    assert {t.dtype for t in half.values()} == {torch.bfloat16}
    assert all(torch.equal(half[name], t.bfloat16()) for name, t in expected.model.state_dict().items())
    (folder / "config.json").unlink()
    fails(lambda: here(folder, tmp_path / "four"), f"{folder} holds no config.json")


def follow(line: str, out: Path, capsys) -> str:
    """Runs the command that a refusal prints, and those that it leads to, until one ends well; all that they print."""
    module, said = runpy.run_path(str(CONVERT)), ""
    for _ in range(3):
        words = shlex.split(line.split("`")[1])
        assert words[:2] == ["python", "scripts/convert.py"] and words[3] == "OUT"
        strip = [words[i + 1] for i, word in enumerate(words) if word == "--strip"]
        try:
            module["convert"](Path(words[2]), out, strip=strip)
            return said + capsys.readouterr().err
        except BadInput as error:
            assert str(error) != line
            line = str(error)
            said += line
    raise AssertionError(line)


def here_unpickle(monkeypatch) -> None:
    """The child process is this one: another imports torch for seconds."""
    def run(words, **_):
        assert words[1:3] == ["-m", "minibd.unpickle"]
        out, err = io.StringIO(), io.StringIO()
        code = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                unpickle([Path(word) for word in words[3:-1]], Path(words[-1]))
            except BadInput as error:
                code = 2
                print(f"error: {error}", file=sys.stderr)
        return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())

    monkeypatch.setattr(subprocess, "run", run)


def prefixed(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


ADAM = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}
PICKLED = {  # file name, what it holds, what the commands say on the way
    "best.ckpt": ("best.ckpt", lambda t: t, []),
    "model.bin": ("model.bin", lambda t: t, []),
    "weights.pkl": ("weights.pkl", lambda t: t, []),
    "pytorch_model.pt": ("pytorch_model.pt", lambda t: t, []),
    "Lightning": ("last.ckpt", lambda t: {"epoch": 3, "state_dict": prefixed("model.", t), "optimizer_states": [ADAM]},
                  ["'model.'", "its entry 'state_dict'"]),
    "model_state_dict": ("m.pth", lambda t: {"model_state_dict": t, "optimizer_state_dict": ADAM}, ["'model_state_"]),
    "model": ("m.pt", lambda t: {"model_ema": {n: x + 1 for n, x in t.items()}, "model": t}, ["its entry 'model'"]),
    "DeepSpeed": ("m.pt", lambda t: {"module": t, "lr_scheduler": None}, ["its entry 'module'"]),
    "two deep": ("m.pt", lambda t: {"model": {"state_dict": t, "args": "x"}}, ["'model.state_dict'"]),
    "another name": ("m.pt", lambda t: {"encoder": t, "optimizer": {"exp_avg": torch.ones(2)}}, ["'encoder'"]),
    "flat": ("m.pt", lambda t: t | {"epoch": 3}, []),
    "DDP": ("m.pt", lambda t: prefixed("module.", t), ["'module.'"]),
    "compiled DDP": ("m.pt", lambda t: prefixed("_orig_mod.module.", t), ["'_orig_mod.module.'"]),
    "net": ("m.pt", lambda t: prefixed("net.", t), ["'net.'"]),
}


@pytest.mark.parametrize("case", PICKLED)
def test_the_command_of_a_refusal_works_for_that_folder(folder, tmp_path, capsys, monkeypatch, case):
    here_unpickle(monkeypatch)
    expected, tensors = load(folder), load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)           # with whose path the command could be too long for a line
    victim = folder.rename("my model's")  # a name that a shell must be told
    file, wrap, words = PICKLED[case]
    torch.save(wrap(tensors), victim / file)
    torch.save(ADAM, victim / "optimizer.pt")                            # what a trainer leaves there
    torch.save({"lr": 0.1}, victim / "training_args.bin")
    for path, out in ((victim, tmp_path / "one"), (victim / file, tmp_path / "two")):
        line = fails(lambda: load(path), "pickle", file)
        said = follow(line, out, capsys)
        same(expected, load(out))
        assert all(word in said for word in words), said


def test_the_command_of_a_refusal_is_whole_or_not_there_however_long_the_path_is():
    folder = "/" + "/".join(f"{i}{'d' * 20}" for i in range(12))
    for n in range(20, 251, 5):
        path = Path(f"{folder[:n - 9]}/it's.bin")
        errors = {pickle_error(path): [], pickle_error(path.parent, path.name): [],
                  prefix_error(path, "module."): ["module."], prefix_error(path, "a" * 100): ["a" * 100],
                  prefix_error(path, "my net's."): ["my net's."]}
        for error, prefix in errors.items():
            text = str(error)
            assert len(text) <= 290 and ("it's.bin" in text), text
            if "`" in text:
                place = error.whole.split("`")[1]
                assert text.endswith(f"`{place}`")
                words = shlex.split(text.split("`")[1])
                assert words[:2] == ["python", "scripts/convert.py"] and words[3] == "OUT"
                assert words[2] in (str(path), str(path.parent)) and words[5:] == prefix
            else:
                assert text.endswith(" scripts/convert.py") and (n > 110 or prefix == ["a" * 100]), text
    for path in (Path("/a/b`c/m.bin"), Path("/a/b\x1bc/m.bin")):     # no line can hold them
        assert str(pickle_error(path)).endswith("then run scripts/convert.py")


def test_a_wrappers_names_in_a_safetensors_too(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder.relative_to(tmp_path)
    expected = load(folder)
    rewrite(folder, lambda t: prefixed("module.model.", t))
    line = fails(lambda: load(folder), "begin with 'module.model.'", "--strip module.model.")
    follow(line, tmp_path / "out", capsys)
    same(expected, load(tmp_path / "out"))
    convert_here = runpy.run_path(str(CONVERT))["convert"]
    convert_here(folder, tmp_path / "again", strip=["module", "model."])  # one after the other, with a dot or without
    same(expected, load(tmp_path / "again"))
    fails(lambda: convert_here(folder, tmp_path / "out", strip=["module."]), "begin with 'model.'",
          "OUT --strip module. --strip model.`")
    fails(lambda: convert_here(folder, tmp_path / "out", strip=["net."]), "--strip net.", "no tensor", "module.model.")
    save(expected, tmp_path / "m.safetensors")
    fails(lambda: convert_here(tmp_path / "m.safetensors", tmp_path / "out", strip=["net."]), "--strip is for a pickle")


def test_a_bare_encoder_in_a_wrapper(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder.relative_to(tmp_path)
    bare(folder)
    expected = load(folder)
    rewrite(folder, lambda t: prefixed("encoder.", t))
    follow(fails(lambda: load(folder), "begin with 'encoder.'"), tmp_path / "out", capsys)
    same(expected, load(tmp_path / "out"))


def test_pickles_that_convert_cannot_choose_from_or_find(folder, tmp_path, capsys, monkeypatch):
    here_unpickle(monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = folder.relative_to(tmp_path)
    expected, tensors = load(folder), load_file(folder / "model.safetensors")
    here = runpy.run_path(str(CONVERT))["convert"]
    (folder / "model.safetensors").unlink()
    torch.save(ADAM, folder / "optimizer.pt")
    for refused in (lambda: load(folder), lambda: here(folder, tmp_path / "out")):
        fails(refused, "no model.safetensors: put it there")
    for name in ("a.ckpt", "b.ckpt"):
        torch.save(tensors, folder / name)
    for refused in (lambda: load(folder), lambda: here(folder, tmp_path / "out")):
        line = fails(refused, "2 pickles, a.ckpt, b.ckpt", f"convert.py {folder / 'a.ckpt'} OUT")
    follow(line, tmp_path / "out", capsys)
    same(expected, load(tmp_path / "out"))
    names = list(tensors)
    for i in range(2):
        torch.save({name: tensors[name] for name in names[i::2]}, folder / f"pytorch_model-0000{i + 1}-of-00002.bin")
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, folder / "pytorch_model.fp16.bin")
    here(folder, tmp_path / "shards")
    same(expected, load(tmp_path / "shards"))
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    fails(lambda: load(folder), "lacks pytorch_model-00001-of-00002.bin", "one of 2 shards")
    torch.save(tensors, folder / "pytorch_model.bin")
    here(folder, tmp_path / "whole")
    same(expected, load(tmp_path / "whole"))
    fails(lambda: here(tmp_path / "none.ckpt", tmp_path / "out"), "none.ckpt does not exist")
    fails(lambda: load(tmp_path / "none.ckpt"), "none.ckpt does not exist")


def test_a_pickle_without_its_config(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "best.ckpt")
    here = runpy.run_path(str(CONVERT))["convert"]
    fails(lambda: load(tmp_path / "best.ckpt"), "is a pickle", "put its model's config.json and tokenizer", "then run ")
    for path in (tmp_path, tmp_path / "best.ckpt"):
        fails(lambda: here(path, tmp_path / "out"), f"{tmp_path} holds no config.json", "best.ckpt was trained",
              "tokenizer")
    fails(lambda: load(tmp_path), f"{tmp_path} holds no config.json", "best.ckpt was trained")


@pytest.mark.parametrize("held, words", [
    ({"epoch": 3}, ["no dictionary of tensors"]),
    ([torch.ones(2)], ["no dictionary of tensors"]),
    ({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}}, ["several models, 'a', 'b'"]),
    ({"x": Path("y")}, ["it names pathlib"]),
    ({"a": {"b": {"c": {"x": torch.ones(2)}}}}, ["no dictionary of tensors"]),
])
def test_pickles_that_hold_no_model(tmp_path, held, words):
    torch.save(held, tmp_path / "m.pt")
    line = fails(lambda: unpickle([tmp_path / "m.pt"], tmp_path / "out.safetensors"), "m.pt is not a pickle of named",
                 "model.state_dict()", *words)
    assert not (tmp_path / "out.safetensors").exists() and len(line) <= 290


def test_the_process_that_opens_a_pickle_is_limited_and_no_other(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "m.pt")
    limits = []
    monkeypatch.setattr("minibd.unpickle.limit", limits.append)
    unpickle([tmp_path / "m.pt"], tmp_path / "here.safetensors")
    assert limits == []
    monkeypatch.setattr(sys, "argv", ["minibd.unpickle", str(tmp_path / "m.pt"), str(tmp_path / "there.safetensors")])
    run_unpickle()
    assert limits == [(tmp_path / "m.pt").stat().st_size] and load_file(tmp_path / "there.safetensors").keys() == {"a"}


@pytest.mark.slow
def test_a_pickle_of_zeros_that_unpacks_to_gigabytes(folder, tmp_path):
    """A megabyte of zip, 800 MB unpacked: stopped by the limit of its process, and not by this machine's memory."""
    (folder / "model.safetensors").unlink()
    plain = tmp_path / "plain.bin"
    torch.save({"a": torch.zeros(8)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(folder / "pytorch_model.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            if name.endswith("/data/0"):
                with new.open(name, "w", force_zip64=True) as held:
                    for _ in range(800):
                        held.write(bytes(1 << 20))
            else:
                new.writestr(name, old.read(name))
    done = convert(folder / "pytorch_model.bin", tmp_path / "out")
    assert done.returncode == 2 and "(it needs more memory than three times its size)" in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key, value, words", [
    ("vocab_size", 10**6, "larger than any side"), ("hidden_size", 10**6, "larger than any side"),
    ("num_attention_heads", 10**6, "not a multiple"), ("intermediate_size", 2**31 - 1, "larger than any side"),
    ("max_position_embeddings", 33, "larger than any side"), ("type_vocab_size", 10**6, "larger than any side"),
    ("num_hidden_layers", 100_000, "more than the"), ("num_hidden_layers", 2**40, "which no bert has"),
])
def test_sizes_are_held_to_the_weights_header_before_anything_is_built(folder, monkeypatch, key, value, words):
    def built(*_):
        raise AssertionError("a model was built")
    monkeypatch.setattr("minibd.checkpoint.tensors.empty_model", built)
    edit(folder / "config.json", **{key: value})
    fails(lambda: load(folder), "config.json", str(value), words)


def test_a_token_beyond_the_last_is_refused(folder):
    last = len(TOKENS) - 1
    edit(folder / "config.json", vocab_size=last)
    fails(lambda: load(folder), f"token {last} is beyond the model's {last}")


@pytest.mark.parametrize("setting", [
    {"added_tokens_decoder": {"0": {"content": "\ud800"}}}, {"own_token": "\udfff"},
    {"extra_special_tokens": ["a", "x\ud800"]}, {"own_token": {"__type": "AddedToken", "content": "\ud800"}}])
def test_a_token_of_half_a_letter_is_refused(folder, setting):
    edit(folder / "tokenizer_config.json", **setting)
    fails(lambda: load(folder), "tokenizer_config.json", "half a letter")


def test_convert_writes_over_nothing_unasked(folder, tmp_path):
    check = runpy.run_path(str(CONVERT))["check_out"]
    save(ckpt(), tmp_path / "m.safetensors")
    check(folder, tmp_path / "new", False)
    check(folder, tmp_path / "new.safetensors", False)
    check(tmp_path / "m.safetensors", tmp_path / "n.safetensors", False)
    for out, words in ((tmp_path / "m.safetensors", ("is there", "--overwrite")),
                       (tmp_path / "other", ("another run", "'config.json'", "--overwrite"))):
        save(ckpt(), tmp_path / "other")
        fails(lambda: check(folder, out, False), str(out), *words)
        check(folder, out, True)
    for out in (folder, folder / "one.safetensors", folder / "in"):      # the input is never changed
        for overwrite in (False, True):
            fails(lambda: check(folder, out, overwrite), "over or beside the input", "another place")
    for out in (tmp_path, tmp_path / "m.safetensors"):
        fails(lambda: check(tmp_path / "m.safetensors", out, True), "over or beside the input")
    (tmp_path / "link").symlink_to(folder)
    fails(lambda: check(folder, tmp_path / "link", True), "over or beside the input")


def test_two_names_that_stripping_makes_one(tmp_path):
    fails(lambda: stripped(["module.a", "a"], ["module."]), "two tensors of the name 'a'")
    assert stripped(["module.model.a", "module.b"], ["module.", "model."]) == {"module.model.a": "a", "module.b": "b"}


def test_convert_runs_no_code_of_a_pickle(folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Evil()}, folder / "pytorch_model.bin")
    done = convert(folder / "pytorch_model.bin", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.count("\n") == 2  # the warning, and why not
    assert done.stderr.splitlines()[1].startswith(
        f"error: {folder / 'pytorch_model.bin'} is not a pickle of named tensors alone"
    )
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()


def test_convert_help_needs_no_torch():
    code = ("import sys, runpy; sys.modules['torch'] = None; sys.argv = ['convert.py', '--help']; "
            f"runpy.run_path({str(CONVERT)!r}, run_name='__main__')")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "python scripts/convert.py FOLDER OUT.safetensors" in done.stdout


# ---- which files it was

def test_the_sha256_of_what_is_read_and_of_nothing_else(folder, tmp_path):
    def expected(*files: Path) -> dict[str, str]:
        return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}

    file = tmp_path / "one.safetensors"
    save(ckpt(), file)
    assert checkpoint.sha256(file) == expected(file)
    names = ("model.safetensors", "config.json", "minibd.json", "tokenizer_config.json", "special_tokens_map.json",
             "tokenizer.json", "vocab.txt")
    before = expected(*(folder / name for name in names))
    assert checkpoint.sha256(folder) == before
    (folder / "result.json").write_text("{}")
    assert checkpoint.sha256(folder) == before
    edit(folder / "config.json", more=1)
    assert [name for name, digest in checkpoint.sha256(folder).items() if digest != before[name]] == ["config.json"]


def test_the_sha256_of_each_shard(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoint.folder, "SHARD", 2000)
    save(ckpt(), tmp_path / "hf")
    shards = {file.name for file in (tmp_path / "hf").glob("*.safetensors")}
    assert len(shards) > 1 and shards | {"model.safetensors.index.json"} < checkpoint.sha256(tmp_path / "hf").keys()


def test_what_is_not_there_has_no_sha256(tmp_path):
    fails(lambda: checkpoint.sha256(tmp_path / "none"), "none does not exist")


def test_a_folder_that_would_change_the_tokenizer_is_not_written(tmp_path):
    """transformers builds Qwen2's from the vocabulary alone, whatever tokenizer.json says."""
    tokens = ["<|endoftext|>", "<pad>", *sorted(ByteLevel.alphabet()), "Ġt", "in"]
    text = Tokenizer.from_merges({t: i for i, t in enumerate(tokens)}, [("Ġ", "t"), ("i", "n")], 16, 1, bracketed=False)
    model = Qwen2(Qwen2Config(len(tokens), 8, 1, 2, 12, positions=16, kv_heads=1, pad=1))
    first = Checkpoint(model.init_weights(torch.Generator().manual_seed(0)).eval(), text, ("a", "b"), [])
    save(first, tmp_path / "m.safetensors")
    fails(lambda: save(first, tmp_path / "hf"), "folder of qwen2", "end the name in .safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]
    text.backend.normalizer = NFC()
    text.backend.pre_tokenizer = PreTokenizers(
        [Split(Regex(QWEN2_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    save(first, tmp_path / "hf")
    same(first, load(tmp_path / "hf"))
