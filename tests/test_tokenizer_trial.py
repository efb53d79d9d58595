"""A stranger's tokenizer: what is refused by its JSON alone, what is tried in a process of its own, what is neither."""

import json

import pytest
from tokenizers import Tokenizer as BackendTokenizer

from conftest import fails
from minibd import checkpoint
from minibd.checkpoint import tokenizer_trial as trial


def changed(ckpt, **parts) -> dict:
    return json.loads(ckpt.tokenizer.backend.to_str()) | parts


def test_what_nearly_every_checkpoint_has_is_not_tried(tiny):
    assert trial.is_harmless(changed(tiny)) and not trial.wrong(changed(tiny), 99)
    llama = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}
    assert trial.is_harmless(changed(tiny, normalizer=llama))
    for known in trial.KNOWN:
        split = {"type": "Split", "pattern": {"Regex": known}, "behavior": "Isolated", "invert": False}
        whole = {"type": "Sequence", "pretokenizers": [split, {"type": "ByteLevel"}]}
        assert trial.is_harmless(changed(tiny, pre_tokenizer=whole))


def grow(pattern: dict, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


@pytest.mark.parametrize("parts", [
    {"normalizer": grow({"Regex": "a"}, "b")}, {"normalizer": grow({"String": ""}, "b")},
    {"normalizer": grow({"String": "a"}, "a" * 65)}, {"normalizer": {"type": "Precompiled"}},
    {"normalizer": {"type": "Sequence", "normalizers": [grow({"String": "a"}, "aa")] * 7}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}}, {"pre_tokenizer": {"type": "FixedLength"}},
    {"decoder": grow({"Regex": "a"}, "b")}, {"model": {"type": "Unigram"}}, {"normalizer": "x"},
    {"added_tokens": [{"content": ""}]},
    {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"], "continuing_subword_prefix": "##"}},
])
def test_what_may_never_end_is_tried(tiny, parts):
    assert not trial.is_harmless(changed(tiny, **parts))


@pytest.mark.parametrize("parts, word", [
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]"}}, "'[UNK]'"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5}}, "at random"),
    ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}}, "make 'ab'"),
    ({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"], ["ab", "a"]]}}, "make 'aba'"),
    ({"model": {"type": "Unigram", "vocab": [["a", -1]], "unk_id": None}}, "none of its 1 tokens"),
    ({"model": {"type": "Unigram", "vocab": [["a", -1]], "unk_id": 1}}, "none of its 1 tokens"),
    ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": ""}]}}, "an empty text"),
    ({"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 99], "cls": ["[CLS]", 2]}}, "the token 99"),
    ({"post_processor": {"type": "Sequence", "processors": [
        {"type": "TemplateProcessing", "special_tokens": {"x": {"ids": [3, 100]}}}]}}, "the token 100"),
])
def test_what_is_wrong_is_seen_in_the_json(tiny, parts, word):
    assert word in trial.wrong(changed(tiny, **parts), 99)


def test_the_largest_type_id_by_hand():
    template = {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 3}}],
                "pair": [{"SpecialToken": {"id": "x", "type_id": 5}}]}
    assert trial.types({"post_processor": template}) == 6 and trial.types({"post_processor": None}) == 1


@pytest.mark.parametrize("parts, word", [
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "it fails"),
    ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAGFiY2Q="}}, "it fails"),
])
def test_what_fails_there_is_one_line(tiny, parts, word):
    fault, largest = trial.tried(json.dumps(changed(tiny, **parts)))
    assert word in fault and "\n" not in fault and not largest


def test_what_never_ends_is_ended(tiny, monkeypatch):
    monkeypatch.setattr(trial, "SECONDS", 0.2)           # of the clock, three times; the child has its own
    endless = changed(tiny, normalizer={
        "type": "Sequence", "normalizers": [grow({"Regex": "."}, "aaaaaaaa")] * 6})
    assert "did not end within" in trial.tried(json.dumps(endless))[0]


def test_a_sound_one_passes_with_the_largest_id_that_it_gave(tiny):
    state = changed(tiny, normalizer=grow({"Regex": "a"}, "b"))
    fault, largest = trial.tried(json.dumps(state))
    assert not fault and 0 < largest < tiny.model.config.vocab


def test_through_a_checkpoint(tiny, tmp_path):
    checkpoint.save(tiny, tmp_path / "m")
    file, config = tmp_path / "m" / "tokenizer.json", tmp_path / "m" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    for parts, word in (({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "in a process of its own"),
                        ({"post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 10**6]}},
                         "the token 1000000")):
        file.write_text(json.dumps(changed(tiny, **parts)))
        fails(lambda: checkpoint.load(tmp_path / "m"), "tokenizer.json", word)
    assert BackendTokenizer.from_str(tiny.tokenizer.backend.to_str())
