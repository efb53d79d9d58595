"""A folder's tokenizer files, key by key and class by class: the ids and logits of transformers' AutoTokenizer and
AutoModelForSequenceClassification, from the folder, from its copy here and from its single file; or a refusal."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from conftest import fails
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.records import BadInput
from test_folders_transformers import SPECIAL, examples, far, opened, saved, tokenizer

transformers = pytest.importorskip("transformers")

LONG = " ".join(f"{i} very boring film" for i in range(30))     # longer than every model here
TEXTS = (
    "a lovely film", "A LOVELY Film, naïve Café ÉCOLE", "the 電影 film 好", "🙂 moving 😀", "  two  blanks ", LONG,
    "@USER loved the film", "@user @USER<new>x <new> y", "[MASK] <mask> </s> [SEP] <|endoftext|> lovely", "a [PAD] b <pad>",
)
PAIRS = (("who wrote it?", "nobody KNOWS"), (LONG, "boring"), ("boring", LONG), (LONG, LONG + " end"))
FAMILY = {"Bert": "wordpiece", "DistilBert": "wordpiece", "Roberta": "roberta", "GPT2": "gpt2", "Llama": "llama"}
# (model, tokenizer_class, which of its files are there)
LAYOUTS = [
    ("bert", "BertTokenizer", "tokenizer.json"), ("bert", "BertTokenizerFast", "vocab"), ("bert", None, "tokenizer.json"),
    ("bert", None, "vocab"), ("bert", "PreTrainedTokenizerFast", "tokenizer.json"),
    ("distilbert", "DistilBertTokenizerFast", "tokenizer.json"), ("distilbert", "DistilBertTokenizer", "vocab"),
    ("roberta", "RobertaTokenizer", "tokenizer.json"), ("roberta", None, "vocab"),
    ("roberta", "TokenizersBackend", "tokenizer.json"), ("gpt2", "GPT2TokenizerFast", "tokenizer.json"),
    ("gpt2", None, "vocab"), ("gpt2", "PreTrainedTokenizerFast", "tokenizer.json"),
    ("llama", None, "tokenizer.json"), ("llama", "LlamaTokenizer", "tokenizer.json"),
    ("llama", "LlamaTokenizerFast", "metaspace"),
]
CONFIG, MAP, ADDED, WHOLE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"


def token(content: str, **flags: bool) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": False} | flags


CUT = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
FIXED = {"strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
         "pad_token": "<0>"}
# what each row changes: {file: {key: value}}; NEXT stands for the first id that the vocabulary does not have
NEXT = "next id"
KEYS = {
    "nothing": {},
    "truncation_side left": {CONFIG: {"truncation_side": "left"}},
    "truncation_side right": {CONFIG: {"truncation_side": "right"}, WHOLE: {"truncation": CUT}},
    "padding_side left": {CONFIG: {"padding_side": "left"}},
    "do_lower_case false": {CONFIG: {"do_lower_case": False}},
    "do_lower_case true": {CONFIG: {"do_lower_case": True}},
    "strip_accents true": {CONFIG: {"strip_accents": True, "do_lower_case": False}},
    "strip_accents false": {CONFIG: {"strip_accents": False}},
    "tokenize_chinese_chars false": {CONFIG: {"tokenize_chinese_chars": False}},
    "do_basic_tokenize": {CONFIG: {"do_basic_tokenize": False, "never_split": ["film"]}},
    "add_prefix_space": {CONFIG: {"add_prefix_space": True}},
    "no add_prefix_space": {CONFIG: {"add_prefix_space": False}},
    "trim_offsets": {CONFIG: {"trim_offsets": False}},
    "legacy": {CONFIG: {"legacy": True}},
    "not legacy": {CONFIG: {"legacy": False}},
    "clean_up": {CONFIG: {"clean_up_tokenization_spaces": True, "errors": "strict", "unheard_of": 3}},
    "model_max_length": {CONFIG: {"model_max_length": 7}},
    "max_len": {CONFIG: {"model_max_length": None, "max_len": 8}},
    "add_bos_token": {CONFIG: {"add_bos_token": True}},
    "add_eos_token": {CONFIG: {"add_eos_token": True, "add_bos_token": False}},
    "split_special_tokens": {CONFIG: {"split_special_tokens": True}},
    "model_input_names": {CONFIG: {"model_input_names": ["input_ids", "attention_mask"]}},
    "model_input_names, types": {CONFIG: {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}},
    "added_tokens_decoder": {CONFIG: {"added_tokens_decoder": {NEXT: token("@USER")}}},
    "added_tokens_decoder, normalized": {CONFIG: {"added_tokens_decoder": {NEXT: token("@USER", normalized=True)}}},
    "added_tokens_decoder, special": {CONFIG: {"added_tokens_decoder": {NEXT: token("<new>", special=True, lstrip=True)}}},
    "added_tokens_decoder, single_word": {CONFIG: {"added_tokens_decoder": {NEXT: token("<new>", single_word=True)}}},
    "added_tokens_decoder, empty": {CONFIG: {"added_tokens_decoder": {}}, ADDED: {"@USER": NEXT}},
    "added_tokens.json": {ADDED: {"@USER": NEXT}},
    "added_tokens.json, special": {ADDED: {"<new>": NEXT}, CONFIG: {"additional_special_tokens": ["<new>"]}},
    "additional_special_tokens": {CONFIG: {"additional_special_tokens": ["@USER", "<new>"]}},
    "extra_special_tokens": {CONFIG: {"extra_special_tokens": ["<new>", "film"]}},
    "extra_special_tokens, named": {CONFIG: {"extra_special_tokens": {"user_token": "@USER"}}},
    "a token with a purpose of its own": {CONFIG: {"user_token": "@USER"}},
    "special_tokens_map.json": {MAP: {"additional_special_tokens": ["@USER"], "mask_token": token("<new>", lstrip=True)}},
    "special_tokens_map.json, extra": {MAP: {"extra_special_tokens": [token("@USER", lstrip=True)]}},
    "added pad": {CONFIG: {"pad_token": "[PAD]"}},
    "another mask": {CONFIG: {"mask_token": token("film", lstrip=True) | {"__type": "AddedToken"}}},
    "other ends": {CONFIG: {"cls_token": "film", "sep_token": "lovely", "bos_token": "film", "eos_token": "lovely"}},
    "another unknown": {CONFIG: {"unk_token": "film"}},
    "truncation in tokenizer.json": {WHOLE: {"truncation": CUT}},
    "padding in tokenizer.json": {WHOLE: {"padding": FIXED}},
    "no post_processor": {WHOLE: {"post_processor": None}},
    "no normalizer": {WHOLE: {"normalizer": None}},
}


@lru_cache
def metaspace() -> Tokenizer:
    """Llama 2's kind: blanks are a letter, and what has no letter is its bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    merges = [("▁", "f"), ("i", "l"), ("il", "m"), ("▁f", "ilm"), ("l", "o"), ("▁", "lo"), ("e", "l")]
    tokens = dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *"▁abcdefghijklmnopqrstuvwxyz", *("".join(m) for m in merges)])
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    made.decoder = decoders.ByteFallback()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return made


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """model_of("bert") -> the folder of a classifier without a tokenizer, transformers' model of it, and ours."""
    @lru_cache
    def make(name: str):
        folder = saved(name, tmp_path_factory.mktemp(name), vocab_size=tokenizer(name).get_vocab_size() + 20)
        theirs, ours = opened(folder), checkpoint.load(folder).model
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        return folder, theirs, ours
    return make


def lay(folder: Path, out: Path, layout: tuple[str, str | None, str], change: dict) -> Path:
    """A folder of the layout, with the change."""
    name, kind, files = layout
    shutil.copytree(folder, out)
    backend = metaspace() if files == "metaspace" else tokenizer(name)
    content = {CONFIG: {"model_max_length": 20} | ({"tokenizer_class": kind} if kind else {})}
    if kind in ("PreTrainedTokenizerFast", "TokenizersBackend") or files == "tokenizer.json" and name == "llama":
        content[CONFIG] |= SPECIAL[name]
    if files != "vocab":
        content[WHOLE] = json.loads(backend.to_str())
    elif name in ("bert", "distilbert"):
        vocab = backend.get_vocab()
        (out / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    else:
        backend.model.save(str(out))
    following = backend.get_vocab_size()
    for file, values in change.items():
        if file != WHOLE or file in content:
            content[file] = content.get(file, {}) | values
    for file, values in content.items():
        source = json.dumps(values).replace(f'"{NEXT}":', f'"{following}":').replace(f'"{NEXT}"', str(following))
        (out / file).write_text(source)
    return out


def their_ids(ref, texts: tuple, limit: int) -> list[dict]:
    """One text or pair at a time, as a user asks for it."""
    return [ref(*((t,) if isinstance(t, str) else t), truncation=True, max_length=min(ref.model_max_length, limit))
            for t in texts]


def same_ids(ours, theirs: list[dict], types: bool) -> bool:
    """types: whether the model tells a pair's texts apart. A text without a token gets one of padding here."""
    rows = ours.encode(examples(TEXTS + PAIRS))
    return rows.ids == [row["input_ids"] or [ours.pad] for row in theirs] and (not types or rows.token_type_ids == [
        row.get("token_type_ids", [0] * len(row["input_ids"])) for row in theirs])
