"""Sentence pairs against transformers: its checkpoints load, say the same of a pair through their own tokenizers, and
leave intact."""

from __future__ import annotations

import json

import torch

from conftest import fails
from minibd import checkpoint, data
from minibd.records import Example
from test_folders_transformers import (
    LONGEST,
    NAMES,
    PAIRS,
    SPECIAL,
    edit,
    every,
    examples,
    far,
    opened,
    saved,
    transformers,
)

PAIRED = PAIRS + (("a lovely film", "a lovely film"), ("the very boring camera", ""), ("b", "very " * 70))
CLASSES = dict(id2label=dict(enumerate(NAMES)), label2id={name: i for i, name in enumerate(NAMES)})


@torch.no_grad()
def said_of(folder, texts) -> tuple[torch.Tensor, dict]:
    """transformers' logits of pairs, from the folder alone: its tokenizer, its model; what the tokenizer made of
    them."""
    tokenizer, model = transformers.AutoTokenizer.from_pretrained(folder), opened(folder)
    rows = tokenizer(*map(list, zip(*texts)), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
    return model(**rows).logits, rows


def stored(name: str, folder):
    """A classifier of three classes as transformers saves it, whose tokenizer, like BERT's own, tells the two texts
    apart."""
    saved(name, folder, **CLASSES)
    edit(
        folder / "tokenizer_config.json",
        model_input_names=["input_ids", *["token_type_ids"] * (name == "bert"), "attention_mask"],
    )
    return folder


@torch.no_grad()
def ours(ckpt, texts) -> torch.Tensor:
    return ckpt.model(ckpt.tokenizer(examples(texts))).logits


@every
def test_a_pair_is_read_and_left_as_transformers_reads_it(tmp_path, name):
    folder = stored(name, tmp_path / "in")
    ckpt = checkpoint.load(folder)
    theirs, rows = said_of(folder, PAIRED)
    batch = ckpt.tokenizer(examples(PAIRED))
    assert torch.equal(rows["input_ids"], batch.ids) and torch.equal(rows["attention_mask"].bool(), batch.mask)
    assert batch.ids.shape[1] == LONGEST and far(ours(ckpt, PAIRED), theirs) < 1e-5 and theirs.std() > 0.05
    assert far(ours(ckpt, PAIRED[:1]), said_of(folder, PAIRED[:1])[0]) < 1e-5    # alone, without padding
    checkpoint.save(ckpt, tmp_path / "out")
    assert far(said_of(tmp_path / "out", PAIRED)[0], theirs) < 1e-6
    checkpoint.save(ckpt, tmp_path / "one.safetensors")
    assert torch.equal(ours(checkpoint.load(tmp_path / "one.safetensors"), PAIRED), ours(ckpt, PAIRED))
    assert torch.equal(ours(checkpoint.load(tmp_path / "out"), PAIRED), ours(ckpt, PAIRED))


@every
def test_both_texts_and_their_order_count(tmp_path, name):
    ckpt = checkpoint.load(saved(name, tmp_path, **CLASSES))
    one, turned, other, alone = (
        ours(ckpt, [texts])
        for texts in (
            ("a lovely film", "no actors"), ("no actors", "a lovely film"), ("a lovely film", "the story"),
            "a lovely film",
        )
    )
    assert min(far(one, turned), far(one, other), far(one, alone)) > 1e-3


def test_berts_second_text_is_of_kind_1_and_robertas_of_kind_0(tmp_path):
    for name, token_types in (("bert", {0, 1}), ("roberta", {0})):
        ckpt = checkpoint.load(stored(name, tmp_path / name))
        assert set(ckpt.tokenizer(examples([("a film", "the story")])).token_type_ids.flatten().tolist()) == token_types


def test_llama_begins_either_text_where_its_tokenizer_says_so(tmp_path):
    """As Llama's own tokenizer has it: a start token before the second text too."""
    folder = stored("llama", tmp_path / "in")
    made = json.loads((folder / "tokenizer.json").read_text())
    start = SPECIAL["llama"]["bos_token"]
    made["post_processor"]["pair"] = [
        {"SpecialToken": {"id": start, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": start, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}},
    ]
    (folder / "tokenizer.json").write_text(json.dumps(made))
    ckpt, (theirs, rows) = checkpoint.load(folder), said_of(folder, PAIRED)
    assert (rows["input_ids"] == 0).sum(1).tolist() == [2] * len(PAIRED) and torch.equal(
        rows["input_ids"], ckpt.tokenizer(examples(PAIRED)).ids
    )
    assert far(ours(ckpt, PAIRED), theirs) < 1e-5
    checkpoint.save(ckpt, tmp_path / "out")
    assert far(said_of(tmp_path / "out", PAIRED)[0], theirs) < 1e-6


@every
def test_a_pair_file_gives_the_tokens_that_transformers_makes_of_its_columns(tmp_path, name):
    folder = stored(name, tmp_path / "in")
    path = tmp_path / "rows.tsv"
    path.write_text("question\tsentence\tlabel\nwho wrote it?\tnobody knows\tneutral\nno\ta lovely film\tpositive\n")
    ckpt = checkpoint.load(folder)
    rows = data.read(path, text_column="question", pair_column="sentence", labels=ckpt.labels)
    assert rows == [Example("rows-0", "who wrote it?", 1, "nobody knows"), Example("rows-1", "no", 2, "a lovely film")]
    theirs, _ = said_of(folder, [(x.text, x.pair) for x in rows])
    with torch.no_grad():
        assert far(ckpt.model(ckpt.tokenizer(rows)).logits, theirs) < 1e-5
    # which of the two comes first is not guessed
    fails(lambda: data.read(path), "'question', 'sentence'", "text_column=")
