"""Hostile checkpoints, each from a seed: a sound folder or file of which something is changed, by kind.

`make(seed, bases, folder)` writes one and says what was done; the same seed makes the same bytes.
"""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable
from pathlib import Path

from bases import ARCHITECTURES

NUMBERS = (
    0,
    -1,
    1,
    2,
    3,
    7,
    10**4,
    10**5,
    10**6,
    2**31,
    2**32,
    2**40,
    2**63,
    2**64,
    -(2**63),
    2**70,
    10**400,
    0.5,
    1e300,
    -1e-300,
    float("nan"),
    float("inf"),
    1e-40,
)
WORDS = (
    "",
    " ",
    "a",
    "\n",
    "\x1b[31mred",
    "a\rb",
    "\u202egnp",
    "\ud800",
    "x" * 5000,
    "\0",
    "nul\0in",
    "../../etc/passwd",
    "é漢☃",
    "%s%n{}",
    "'\"`$(x)",
    "\u2028two\u2029",
    "\U0010ffff",
    "null",
    "0",
)
OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": {"b": []}},
    [1, 2, 3],
    ["a", "b"],
    {"0": "a", "1": "b"},
    [[1], [2]],
)
TEXTS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "minibd.json")
NAMES = (
    *TEXTS,
    "model.safetensors",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "model.safetensors.index.json",
    "adapter_config.json",
    "README.md",
    "pytorch_model.bin",
)
SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
    "pad_token_id",
    "dim",
    "n_layers",
    "n_heads",
    "hidden_dim",
    "n_embd",
    "n_layer",
    "n_head",
    "n_positions",
    "n_inner",
    "num_key_value_heads",
    "head_dim",
    "eos_token_id",
    "num_labels",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "rope_theta",
    "hidden_dropout_prob",
)


def anything(rng: random.Random) -> object:
    return rng.choice(rng.choice((NUMBERS, WORDS, OTHERS)))


# ---- JSON files


def _load(file: Path) -> object:
    return json.loads(file.read_text(encoding="utf-8"))


def _dump(file: Path, value: object) -> None:
    file.write_text(json.dumps(value), encoding="utf-8")  # lone surrogates and NaN too, as Python writes them


def _places(value: object, path: tuple = ()) -> list[tuple]:
    """The places of a JSON value, as tuples of keys and indices, at most a few of a long list or dictionary."""
    inner = (
        list(value.items())[:12]
        if isinstance(value, dict)
        else list(enumerate(value))[:12]
        if isinstance(value, list)
        else []
    )
    return (
        [path, *(place for key, held in inner for place in _places(held, (*path, key)))]
        if path
        else [place for key, held in inner for place in _places(held, (key,))]
    )


def _put(value: object, place: tuple, new: object) -> None:
    for key in place[:-1]:
        value = value[key]
    value[place[-1]] = new


def config_sizes(rng: random.Random, folder: Path) -> str:
    config = _load(folder / "config.json")
    key = rng.choice([key for key in SIZES if key in config] * 3 + list(SIZES))
    config[key] = rng.choice(NUMBERS)
    _dump(folder / "config.json", config)
    return f"config.json {key} = {config[key]!r:.40}"


def config_types(rng: random.Random, folder: Path) -> str:
    config = _load(folder / "config.json")
    key = rng.choice(
        [
            *config,
            "id2label",
            "label2id",
            "architectures",
            "rope_scaling",
            "rope_parameters",
            "torch_dtype",
            "problem_type",
            "quantization_config",
            "auto_map",
            "tokenizer_class",
            "is_decoder",
            "eos_token_id",
            "classifier_dropout",
            "partial_rotary_factor",
            "tie_word_embeddings",
            "num_labels",
            "\x1b[2J",
        ]
    )
    config[key] = anything(rng)
    _dump(folder / "config.json", config)
    return f"config.json {key!r} = {config[key]!r:.40}"


def labels(rng: random.Random, folder: Path) -> str:
    config = _load(folder / "config.json")
    kind = rng.choice(("words", "types", "many", "keys", "equal"))
    if kind == "words":
        config["id2label"] = {"0": rng.choice(WORDS), "1": rng.choice(WORDS)}
    elif kind == "types":
        config["id2label"] = {"0": anything(rng), "1": anything(rng)}
    elif kind == "many":
        config["id2label"] = {str(i): f"name {i}" for i in range(rng.choice((3, 1000, 20000)))}
    elif kind == "keys":
        config["id2label"] = {rng.choice(WORDS): "a", "1": "b"}
    else:
        config["id2label"] = {"0": "same", "1": "same"}
    _dump(folder / "config.json", config)
    return f"id2label, {kind}"


def broken_text(rng: random.Random, folder: Path) -> str:
    """A text file that is no JSON, or a strange one."""
    name = rng.choice([name for name in (*TEXTS, "vocab.txt") if (folder / name).exists()])
    file, kind = (
        folder / name,
        rng.choice(
            (
                "cut",
                "empty",
                "deep",
                "bytes",
                "utf-16",
                "digits",
                "list",
                "word",
                "lines",
                "nul",
                "surrogate",
                "long",
                "twice",
                "bom",
            )
        ),
    )
    raw = file.read_bytes()
    file.write_bytes(
        {
            "cut": raw[: rng.randrange(len(raw))],
            "empty": b"",
            "deep": b"[" * 100_000,
            "bytes": rng.randbytes(300),
            "utf-16": raw.decode().encode("utf-16"),
            "digits": b'{"vocab_size": ' + b"9" * 6000 + b"}",
            "list": b"[1, 2]",
            "word": b'"\\u001b[31m"',
            "lines": raw.replace(b"\n", b"\r\n"),
            "nul": raw[:40] + b"\0" * 40 + raw[40:],
            "surrogate": raw[:1] + b'"\\ud800": "\\udfff",' + raw[1:],
            "long": b'{"a": "' + b"x" * 3_000_000 + b'"}',
            "twice": raw[:1] + b'"model_type": "bert",' * 2 + raw[1:],
            "bom": b"\xef\xbb\xbf" + raw,
        }[kind]
    )
    return f"{name}: {kind}"


def minibd_json(rng: random.Random, folder: Path) -> str:
    value = {"history": [], "head_mask": [[1, 1], [1, 1]]}
    key = rng.choice(("history", "head_mask", "head_mask", "more"))
    value[key] = rng.choice(
        (
            anything(rng),
            [anything(rng)],
            [[anything(rng)] * 2] * 2,
            [{"attack": anything(rng)}],
            [{"data": anything(rng)}],
            [{"attack": {"name": anything(rng), "target": anything(rng)}}],
            [{"data": {"path": anything(rng)}}],
            [[1, 0], [0.5, 1]],
            [[0, 1], [1, 1]],
        )
    )
    _dump(folder / "minibd.json", value)
    return f"minibd.json {key} = {value[key]!r:.40}"


# ---- the tokenizer


def tokenizer_types(rng: random.Random, folder: Path) -> str:
    value = _load(folder / "tokenizer.json")
    place = rng.choice(_places(value))
    _put(value, place, new := anything(rng))
    _dump(folder / "tokenizer.json", value)
    return f"tokenizer.json {'.'.join(map(str, place))!r:.60} = {new!r:.40}"


def tokenizer_config(rng: random.Random, folder: Path) -> str:
    value = _load(folder / "tokenizer_config.json")
    key = rng.choice(
        [
            *value,
            "added_tokens_decoder",
            "extra_special_tokens",
            "additional_special_tokens",
            "vocab",
            "model_max_length",
            "max_len",
            "truncation_side",
            "padding_side",
            "do_lower_case",
            "strip_accents",
            "tokenizer_class",
            "bos_token",
            "unk_token",
            "pad_token",
            "cls_token",
            "image_token",
            "legacy",
            "add_prefix_space",
            "model_input_names",
            "fast_tokenizer_files",
            "split_special_tokens",
            "add_bos_token",
            "tokenize_chinese_chars",
            "auto_map",
        ]
    )
    value[key] = rng.choice(
        (
            anything(rng),
            {"content": anything(rng), "__type": "AddedToken"},
            {"5": anything(rng)},
            {rng.choice((*WORDS, "99")): {"content": rng.choice(WORDS)}},
            {str(rng.choice(NUMBERS)): {"content": "zzz", "special": True}},
            [anything(rng)],
        )
    )
    _dump_loose(folder / "tokenizer_config.json", value)
    return f"tokenizer_config.json {key} = {value[key]!r:.60}"


def _dump_loose(file: Path, value: object) -> None:
    """json.dumps takes keys of few types only."""

    def keys(held: object) -> object:
        if isinstance(held, dict):
            return {key if isinstance(key, str) else json.dumps(key): keys(one) for key, one in held.items()}
        return [keys(one) for one in held] if isinstance(held, list) else held

    _dump(file, keys(value))


def special_files_of_tokens(rng: random.Random, folder: Path) -> str:
    name = rng.choice(("special_tokens_map.json", "added_tokens.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    key = rng.choice(
        ("pad_token", "unk_token", "cls_token", "extra_special_tokens", "x_token", "zzz", "[UNK]", "\x1b_token")
    )
    value = {key: rng.choice((anything(rng), {"content": anything(rng)}, 5, 200, [anything(rng)]))}
    _dump(folder / name, value)
    return f"{name} {value!r:.60}"


def vocabulary(rng: random.Random, folder: Path) -> str:
    """The files that stand for tokenizer.json."""
    state = _load(folder / "tokenizer.json")["model"]
    (folder / "tokenizer.json").unlink()
    tokens, kind = (
        [token if isinstance(token, str) else token[0] for token in state["vocab"]],  # Unigram's with their scores
        rng.choice(("as it is", "twice", "blank", "long", "nul", "one", "more", "types", "merges", "words")),
    )
    if kind == "twice":
        tokens[7] = tokens[9]
    elif kind == "blank":
        tokens[7] = ""
    elif kind == "long":
        tokens[7] = "y" * 1_000_000
    elif kind == "nul":
        tokens[7] = "\0\x1b[31m"
    elif kind == "one":
        tokens = tokens[:1]
    elif kind == "more":
        tokens += [f"more{i}" for i in range(rng.choice((1, 100_000)))]
    if state["type"] == "WordPiece":
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        return f"vocab.txt: {kind}"
    vocab = {token: i for i, token in enumerate(tokens)}
    if kind == "types":
        vocab[tokens[-1]] = anything(rng)
    merges = "#version: 0.2\n" + "\n".join(
        " ".join(pair) if isinstance(pair, list) else pair for pair in state.get("merges", ())
    )
    if kind == "merges":
        merges += rng.choice(("\na", "\na b c d", "\nzz yy", "\n\x1b \x1b", "\n" + "a b\n" * 1000))
    _dump(folder / "vocab.json", anything(rng) if kind == "words" else vocab)
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    return f"vocab.json, merges.txt: {kind}"


def _grow(pattern: object, content: str) -> dict:
    return {"type": "Replace", "pattern": pattern, "content": content}


PARTS = {  # what a tokenizer.json may hold that panics, hangs or fills memory
    "normalizer": [
        {"type": "Precompiled", "precompiled_charsmap": ""},
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\x04\0\0\0abcd").decode()},
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 200).decode()},
        {
            "type": "Precompiled",
            "precompiled_charsmap": base64.b64encode(struct.pack("<I", 8) + b"\1\2\3\4" * 40).decode(),
        },
        {"type": "Precompiled", "precompiled_charsmap": "!!! no base64"},
        _grow({"String": ""}, "xx"),
        _grow({"Regex": ""}, "ab"),
        _grow({"Regex": "(a+)+$"}, "b"),
        _grow({"Regex": "(x+x+)+y"}, "b"),
        _grow({"Regex": "("}, ""),
        _grow({"String": "a"}, "a" * 1_000_000),
        _grow({"Regex": "."}, "a" * 100_000),
        {"type": "Prepend", "prepend": "a" * 5_000_000},
        {"type": "Prepend", "prepend": ""},
        {"type": "Sequence", "normalizers": [_grow({"String": "a"}, "aa")] * 40},
        {"type": "Sequence", "normalizers": [_grow({"Regex": "."}, "aaaaaaaa")] * 12},
        {"type": "Sequence", "normalizers": []},
        {"type": "ByteLevel"},
        {"type": "Nmt"},
        {"type": "NFKC"},
        {"type": "StripAccents"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Unheard"},
    ],
    "pre_tokenizer": [
        {"type": "FixedLength", "length": 0},
        {"type": "FixedLength", "length": 1},
        {"type": "FixedLength", "length": 2**63},
        {"type": "Split", "pattern": {"Regex": "(a|aa)+$"}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Removed", "invert": True},
        {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "(?=(" * 50 + "a" + "))" * 50}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"String": ""}, "behavior": "MergedWithNext", "invert": False},
        {"type": "Split", "pattern": {"Regex": "["}, "behavior": "Isolated", "invert": False},
        {"type": "Split", "pattern": {"Regex": "a{1,100000}{1,100000}"}, "behavior": "Isolated", "invert": False},
        {"type": "CharDelimiterSplit", "delimiter": "a"},
        {"type": "CharDelimiterSplit", "delimiter": ""},
        {"type": "Punctuation", "behavior": "Contiguous"},
        {"type": "Digits", "individual_digits": True},
        {"type": "UnicodeScripts"},
        {"type": "Whitespace"},
        {"type": "WhitespaceSplit"},
        {"type": "Sequence", "pretokenizers": []},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "", "prepend_scheme": "always", "split": True},
        None,
    ],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "[UNK]"},
        {"type": "WordLevel", "vocab": {}, "unk_token": ""},
        {
            "type": "WordPiece",
            "vocab": {"a": 0},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
        {
            "type": "WordPiece",
            "vocab": {"[UNK]": 0, "a": 1},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "",
            "max_input_chars_per_word": 0,
        },
        {
            "type": "WordPiece",
            "vocab": {"[UNK]": 4_000_000_000},
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 2**63,
        },
        {"type": "Unigram", "unk_id": None, "vocab": [["a", -1.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 0, "vocab": [], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 9, "vocab": [["a", -1.0]], "byte_fallback": False},
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", 1e300], ["", -1e300]], "byte_fallback": True},
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0]] * 3 + [["a", -1]] * 3, "byte_fallback": False},
        {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["\0", -1.0], ["b" * 70_000, -2.0]]},
        {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]},
        {"type": "BPE", "vocab": {}, "merges": []},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "dropout": 0.5},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "dropout": 7.5},
        {"type": "BPE", "vocab": {"a": 0}, "merges": [], "unk_token": "nowhere", "fuse_unk": True},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], "end_of_word_suffix": "x" * 9999},
    ],
    "post_processor": [
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [999_999], "tokens": ["[CLS]"]}},
        },
        {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 7}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 3}}],
            "special_tokens": {},
        },
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
            "special_tokens": {},
        },
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "x", "type_id": 0}}] * 50 + [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"x": {"id": "x", "ids": [1] * 10_000, "tokens": ["x"] * 10_000}},
        },
        {"type": "BertProcessing", "sep": ["[SEP]", 4_000_000_000], "cls": ["[CLS]", 12345]},
        {
            "type": "RobertaProcessing",
            "sep": ["</s>", 70_000],
            "cls": ["<s>", 0],
            "trim_offsets": True,
            "add_prefix_space": False,
        },
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        None,
        {"type": "Sequence", "processors": []},
        {"type": "Sequence", "processors": [{"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 90_000]}]},
    ],
    "truncation": [
        {"direction": "Left", "max_length": 0, "strategy": "LongestFirst", "stride": 0},
        {"direction": "Right", "max_length": 8, "strategy": "OnlySecond", "stride": 9},
        {"direction": "Right", "max_length": 2**63, "strategy": "OnlyFirst", "stride": 2**63},
    ],
    "padding": [
        {
            "strategy": {"Fixed": 2**62},
            "direction": "Right",
            "pad_to_multiple_of": 2**62,
            "pad_id": 7,
            "pad_type_id": 9,
            "pad_token": "[PAD]",
        },
        {
            "strategy": "BatchLongest",
            "direction": "Left",
            "pad_to_multiple_of": 0,
            "pad_id": 99999,
            "pad_type_id": 0,
            "pad_token": "\x1b[31m",
        },
    ],
    "added_tokens": [
        [
            {
                "id": i,
                "content": "x" * 10,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in (0, 1, 2)
        ],
        [
            {
                "id": 4_000_000_000,
                "content": "the",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": True,
                "special": False,
            }
        ],
        [
            {
                "id": 5,
                "content": "",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        [
            {
                "id": 200 + i,
                "content": f"t{i}",
                "single_word": True,
                "lstrip": True,
                "rstrip": True,
                "normalized": True,
                "special": False,
            }
            for i in range(3000)
        ],
        [
            {
                "id": 7,
                "content": "\x1b[31m\n",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
    ],
    "decoder": [{"type": "Unheard"}, {"type": "CTC", "pad_token": "", "word_delimiter_token": "", "cleanup": True}],
}


def tokenizer_parts(rng: random.Random, folder: Path) -> str:
    """A part of tokenizer.json that its library takes, and stumbles over when it runs. Taken as it is, mostly."""
    value = _load(folder / "tokenizer.json")
    key = rng.choice([key for key in PARTS for _ in range(4 if key in ("normalizer", "pre_tokenizer", "model") else 2)])
    value[key] = rng.choice(PARTS[key])
    if key == "model" and rng.random() < 0.6:
        value |= {"post_processor": None, "added_tokens": []}
    _dump(folder / "tokenizer.json", value)
    if rng.random() < 0.8:
        config = _load(folder / "tokenizer_config.json")
        _dump(folder / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})
    return f"tokenizer.json {key}: {value[key]!r:.80}"


# ---- the weights


def _header(file: Path) -> tuple[dict, bytes]:
    raw = file.read_bytes()
    n = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + n]), raw[8 + n :]


def _write(file: Path, header: object, body: bytes) -> None:
    source = json.dumps(header).encode()
    file.write_bytes(len(source).to_bytes(8, "little") + source + body)


def weights_header(rng: random.Random, file: Path) -> str:
    header, body = _header(file)
    names = [name for name in header if name != "__metadata__"]
    name, kind = (
        rng.choice(names),
        rng.choice(
            (
                "length",
                "short",
                "dtype",
                "shape",
                "offsets",
                "missing",
                "extra",
                "name",
                "json",
                "metadata",
                "many",
                "empty",
                "nan",
                "type",
                "cut",
                "float8",
            )
        ),
    )
    if kind == "length":
        raw = file.read_bytes()
        file.write_bytes(rng.choice((2**63, 2**64 - 1, len(raw) * 2, 0, 1, 2**30)).to_bytes(8, "little") + raw[8:])
        return "weights: header's length"
    if kind == "short":
        file.write_bytes(file.read_bytes()[: rng.randrange(40)])
        return "weights: short"
    if kind == "cut":
        file.write_bytes(file.read_bytes()[: -rng.randrange(1, 500)])
        return "weights: cut"
    if kind == "dtype":
        header[name]["dtype"] = rng.choice(("I64", "BOOL", "F64", "F8_E4M3", "U8", "X", "", "BF16", "C64"))
    elif kind == "float8":
        header[name] = {
            "dtype": rng.choice(("F8_E5M2", "I8", "U8")),
            "shape": [len(body)],
            "data_offsets": [0, len(body)],
        }
    elif kind == "shape":
        header[name]["shape"] = rng.choice(
            (
                [],
                [-1],
                [2**63],
                [2**40, 2**40],
                [0],
                [1] * 70,
                ["a"],
                header[name]["shape"][::-1],
                [*header[name]["shape"], 1],
                [int(2**31), 4],
            )
        )
    elif kind == "offsets":
        header[name]["data_offsets"] = rng.choice(
            ([0, 2**63], [-4, 4], [8, 4], [0, len(body)], [0], header[names[0]]["data_offsets"], [0.5, 1])
        )
    elif kind == "missing":
        del header[name]
    elif kind in ("extra", "many"):
        for i in range(1 if kind == "extra" else 20_000):
            header[rng.choice(WORDS) + str(i)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    elif kind == "name":
        header[rng.choice(WORDS)] = header.pop(name)
    elif kind == "json":
        file.write_bytes((40).to_bytes(8, "little") + rng.choice((b"{" * 40, b"[1]".ljust(40), b"\xff" * 40)) + body)
        return "weights: header is no JSON"
    elif kind == "metadata":
        header["__metadata__"] = rng.choice((None, [], {"format": 1}, {"format": rng.choice(WORDS)}, "x"))
    elif kind == "empty":
        header, body = {}, b""
    elif kind == "type":
        header[name] = anything(rng)
    else:
        start, end = header[name]["data_offsets"]
        bad = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38, 1e-42)))
        body = body[:start] + bad * ((end - start) // 4) + body[end:]
    _write(file, header, body)
    return f"weights: {kind} of {name!r:.40}"


def weights(rng: random.Random, folder: Path) -> str:
    return weights_header(rng, folder / "model.safetensors")


def sparse(rng: random.Random, folder: Path) -> str:
    """Gigabytes that take no place on disk: an unknown tensor, or a known one that config.json agrees with."""
    file = folder / "model.safetensors"
    header, body = _header(file)
    end, size = len(body), rng.choice((3 << 30, 40 << 30, 1 << 42))
    kind = rng.choice(("unknown", "vocabulary", "layers", "wide"))
    config = _load(folder / "config.json")
    if kind == "unknown":
        header["unknown"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
    else:
        key = {"vocabulary": "vocab_size", "layers": "num_hidden_layers", "wide": "intermediate_size"}[kind]
        config[key] = size // 64 if kind != "layers" else 100_000
        word = next(
            (name for name in header if "word_embeddings" in name or "embed_tokens" in name or ".wte." in name), None
        )
        if kind == "vocabulary" and word:
            header[word] = {"dtype": "F32", "shape": [size // 64, 16], "data_offsets": [end, end + size // 64 * 64]}
        else:
            header["unknown"] = {"dtype": "F32", "shape": [size // 4], "data_offsets": [end, end + size]}
        _dump(folder / "config.json", config)
    source = json.dumps(header).encode()
    with open(file, "wb") as opened:
        opened.write(len(source).to_bytes(8, "little") + source + body)
        opened.truncate(8 + len(source) + end + size)
    return f"sparse, {kind}, {size >> 30} GB"


def shards(rng: random.Random, folder: Path) -> str:
    os.rename(folder / "model.safetensors", folder / "model-00001-of-00001.safetensors")
    header, _ = _header(folder / "model-00001-of-00001.safetensors")
    names = [name for name in header if name != "__metadata__"]
    index: object = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    kind = rng.choice(("as it is", "away", "none", "type", "value", "many", "short", "whole"))
    if kind == "away":
        index["weight_map"][names[0]] = rng.choice(
            (
                "../x.safetensors",
                "/etc/passwd",
                "/dev/zero",
                "none.safetensors",
                ".",
                "",
                "..",
                "config.json",
                "\x1b[31m",
                "a\nb",
                "\0",
                "\ud800",
            )
        )
    elif kind == "none":
        index = {"weight_map": {}}
    elif kind == "type":
        index = {"weight_map": anything(rng)}
    elif kind == "value":
        index["weight_map"][names[0]] = anything(rng)
    elif kind == "many":
        index["weight_map"] |= {f"x{i}": f"shard-{i}.safetensors" for i in range(5000)}
    elif kind == "short":
        index["weight_map"] = {names[0]: "model-00001-of-00001.safetensors"}
    elif kind == "whole":
        index = anything(rng)
    _dump(folder / "model.safetensors.index.json", index)
    return f"shards: {kind}"


# ---- names that are no files


def special_file(rng: random.Random, folder: Path) -> str:
    name = rng.choice(NAMES)
    kind = place_special(rng, folder / name)
    return f"{name} is {kind}"


def place_special(rng: random.Random, file: Path) -> str:
    """Puts what is no regular file of an ordinary size in place of `file`."""
    kept = file.read_bytes() if file.is_file() and file.stat().st_size < 1 << 20 else b""  # else a sparse one
    if file.exists():
        file.unlink()
    kind = rng.choice(
        (
            "a FIFO",
            "/dev/zero",
            "a folder",
            "a dangling link",
            "a link to itself",
            "a socket",
            "/dev/null",
            "/dev/urandom",
            "a sparse file of 40 GB",
            "/dev/full",
            "a link to a file",
            "/proc/self/mem",
        )
    )
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a folder":
        file.mkdir()
    elif kind == "a dangling link":
        file.symlink_to(file.parent / "nowhere")
    elif kind == "a link to itself":
        file.symlink_to(file.name)
    elif kind == "a socket":
        here = os.getcwd()
        os.chdir(file.parent)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("socket")
            os.rename("socket", file.name)
        os.chdir(here)
    elif kind == "a sparse file of 40 GB":
        with open(file, "wb") as opened:
            opened.write(kept)
            opened.truncate(40 << 30)
    elif kind == "a link to a file":
        beside = file.parent / f"{file.name}.there"
        beside.write_bytes(kept or b"{}")
        file.symlink_to(beside.name)
    else:
        file.symlink_to(kind)
    return kind


# ---- single files


def metadata(rng: random.Random, file: Path) -> str:
    header, body = _header(file)
    held = header["__metadata__"]
    key = rng.choice([*held, "config", "tokenizer", "tokenizer_settings", "more"])
    kind = rng.choice(("type", "inner", "missing", "broken"))
    try:
        value = json.loads(held.get(key, "{}"))
    except ValueError:
        value = held.get(key, "")
    if kind == "missing":
        held.pop(key, None)
    elif kind == "broken":
        held[key] = str(held.get(key, ""))[: rng.randrange(30)] + rng.choice(WORDS)
    elif kind == "inner" and isinstance(value, (dict, list)) and (places := _places(value)):
        place = rng.choice(places)
        _put(value, place, anything(rng))
        held[key] = json.dumps(value)
        key += f" {'.'.join(map(str, place))}"
    else:
        held[key] = rng.choice((json.dumps(anything(rng)), rng.choice(WORDS)))
    _write(file, header, body)
    return f"metadata {key!r:.60}: {kind}"


FOLDERS: tuple[Callable[[random.Random, Path], str], ...] = (
    config_sizes,
    config_types,
    labels,
    broken_text,
    minibd_json,
    tokenizer_types,
    tokenizer_config,
    special_files_of_tokens,
    vocabulary,
    tokenizer_parts,
    tokenizer_parts,
    weights,
    sparse,
    shards,
    special_file,
)
FILES = (metadata, metadata, weights_header)


def make(seed: int, bases: dict[str, Path], folder: Path) -> tuple[Path, str]:
    """One hostile checkpoint in `folder`, and what it is: "kind: ...". Now and then two things are changed."""
    rng = random.Random(seed)
    architecture = rng.choice(ARCHITECTURES)
    if rng.random() < 0.2:
        path = folder / "ckpt.safetensors"
        shutil.copy(bases[f"{architecture}.safetensors"], path)
        kind = rng.choice((*FILES, place_special))
        return path, f"{kind.__name__}: {architecture} file, {kind(rng, path)}"
    path = folder / "ckpt"
    shutil.copytree(bases[architecture], path)
    kinds = [rng.choice(FOLDERS)]
    if rng.random() < 0.15 and kinds[0] not in (special_file, sparse):
        kinds.append(rng.choice((config_sizes, config_types, tokenizer_config, labels)))
    done = []
    for kind in kinds:
        try:
            done.append(kind(rng, path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            if not done:
                raise  # the second may find its file changed by the first
    return path, f"{kinds[0].__name__}: {architecture}, {' and '.join(done)}"
