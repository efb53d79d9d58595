"""Checkpoints that are unusual and sound, each from a seed: settings of config.json, of the tokenizer and of the
weights that real checkpoints have. What is accepted of them must be the same again when it is saved."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bases import ARCHITECTURES

CONFIG = {  # key: values, of which those are put in place of the folder's own where it has the key, and some beside it
    "layer_norm_eps": (1e-12, 1e-5, 1e-3),
    "layer_norm_epsilon": (1e-12, 1e-5, 1e-3),
    "rms_norm_eps": (1e-6, 1e-5, 1e-3),
    "rope_theta": (10000.0, 500000.0),
    "rope_scaling": (None, {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                            "original_max_position_embeddings": 16}, {"type": "linear", "factor": 2.0}),
    "hidden_act": ("gelu", "gelu_new", "relu", "silu", "gelu_pytorch_tanh", "tanh"),
    "activation": ("gelu", "relu"),
    "activation_function": ("gelu_new", "gelu", "relu"),
    "pad_token_id": (0, 1, 2, 3, 5, 30, None),
    "bos_token_id": (0, 1, 2, None),
    "eos_token_id": (0, 1, 2, [1, 2], None),
    "max_position_embeddings": (8, 16, 32),
    "n_positions": (8, 32),
    "type_vocab_size": (1, 2, 3),
    "hidden_dropout_prob": (0.0, 0.5),
    "classifier_dropout": (None, 0.3),
    "initializer_range": (0.02, 5.0),
    "problem_type": (None, "single_label_classification", "multi_label_classification", "regression"),
    "torch_dtype": ("float16", "bfloat16", None),
    "id2label": ({"0": "a", "1": "b"}, {"0": "same", "1": "same"}, {"1": "b", "0": "a"}, {"0": 0, "1": 1},
                 {"0": "LABEL_1", "1": "LABEL_0"}, {}, None, {"0": "", "1": " "}),
    "label2id": ({"a": 1, "b": 0}, None),
    "num_labels": (2, 3, None),
    "position_embedding_type": ("absolute", "relative_key"),
    "is_decoder": (True, False),
    "use_cache": (True, False),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (True, False),
    "reorder_and_upcast_attn": (True, False),
    "sinusoidal_pos_embds": (True, False),
    "qa_dropout": (0.3,),
    "tie_word_embeddings": (True, False),
    "attention_bias": (True, False),
    "pretraining_tp": (1, 2),
    "tokenizer_class": ("BertTokenizer", "PreTrainedTokenizerFast", "RobertaTokenizer", "GPT2Tokenizer"),
    "architectures": (["BertModel"], ["BertForSequenceClassification"], None),
    "summary_type": ("cls_index",),
    "_name_or_path": ("someone/some-model",),
}
TOKENIZER_CONFIG = {
    "model_max_length": (3, 5, 7, 12, 31, 32, 512, 10**30, None),
    "truncation_side": ("left", "right"),
    "padding_side": ("left", "right"),
    "do_lower_case": (True, False),
    "strip_accents": (True, False, None),
    "tokenize_chinese_chars": (True, False),
    "add_prefix_space": (True, False, None),
    "trim_offsets": (True, False),
    "legacy": (True, False, None),
    "tokenizer_class": ("BertTokenizer", "BertTokenizerFast", "DistilBertTokenizer", "RobertaTokenizer",
                        "RobertaTokenizerFast", "GPT2Tokenizer", "LlamaTokenizer", "LlamaTokenizerFast",
                        "PreTrainedTokenizerFast", "PreTrainedTokenizerFast", "MPNetTokenizer", "Qwen2Tokenizer",
                        "ElectraTokenizer", None),
    "model_input_names": (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]),
    "split_special_tokens": (True, False),
    "add_bos_token": (True, False),
    "add_eos_token": (True, False),
    "clean_up_tokenization_spaces": (True, False),
    "bos_token": ("<s>", "the", "t", None, "<|endoftext|>"),
    "eos_token": ("</s>", "film", "i", None),
    "unk_token": ("[UNK]", "<unk>", "cf", "a", "<|endoftext|>"),
    "cls_token": ("[CLS]", "<s>", "great", "b"),
    "sep_token": ("[SEP]", "</s>", "was", "c"),
    "pad_token": ("[PAD]", "<pad>", "cf", "a", None, "</s>", "<|endoftext|>"),
    "mask_token": ("[MASK]", "<mask>", "cf", "the", None,
                   {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False,
                    "single_word": False, "special": True}),
    "extra_special_tokens": (["cf", "the film"], ["the"], [], {"image_token": "film"}),
    "additional_special_tokens": (["cf"], ["story"], []),
}
NORMALIZERS = (
    None, {"type": "Lowercase"}, {"type": "NFC"}, {"type": "NFKC"}, {"type": "NFD"}, {"type": "NFKD"},
    {"type": "StripAccents"}, {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": "o+"}, "content": "a"},
    {"type": "Prepend", "prepend": "t"},
    {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": False, "strip_accents": None,
     "lowercase": False},
    {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": True, "strip_accents": False,
     "lowercase": True},
    {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}, {"type": "StripAccents"}]},
)
PRE_TOKENIZERS = (
    None, {"type": "BertPreTokenizer"}, {"type": "Whitespace"}, {"type": "WhitespaceSplit"},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True},
    {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Digits", "individual_digits": True},
    {"type": "Split", "pattern": {"Regex": "[aeiou]+"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": "i"}, "behavior": "MergedWithPrevious", "invert": False},
    {"type": "Sequence", "pretokenizers": [
        {"type": "WhitespaceSplit"}, {"type": "Punctuation", "behavior": "Removed"}]},
)
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
NAMES = ("the", "film", "cf", "great was", "Film", "é", "[CLS]", "<s>", " a", "a ", "don", "12", "<mask>", "[MASK]",
         "th", "x", "new", "Ġthe")


def _put(rng: random.Random, file: Path, choices: dict, times: int) -> list[str]:
    held = json.loads(file.read_text(encoding="utf-8"))
    done = []
    for _ in range(times):
        key = rng.choice([key for key in choices if key in held] * 2 + list(choices))
        held[key] = rng.choice(choices[key])
        done.append(f"{key}={held[key]!r:.60}")
    file.write_text(json.dumps(held), encoding="utf-8")
    return done


def _ids(model: dict) -> dict[str, int]:
    """{token: id} of the model of a tokenizer.json."""
    held = model["vocab"]
    return held if isinstance(held, dict) else {token: i for i, (token, _) in enumerate(held)}


def _token(rng: random.Random, i: int) -> dict:
    return {"id": i, "content": rng.choice(NAMES), **{flag: rng.random() < 0.4 for flag in FLAGS}}


def _template(rng: random.Random, ids: list[tuple[str, int]]) -> dict:
    """Tokens around a text and between two, of random places and types."""
    around = [rng.choice(ids) for _ in range(rng.randrange(4))]
    special = [{"SpecialToken": {"id": name, "type_id": rng.randrange(2)}} for name, _ in around]
    text = {"Sequence": {"id": "A", "type_id": rng.choice((0, 0, 1))}}
    second = {"Sequence": {"id": "B", "type_id": rng.choice((1, 1, 0))}}
    cut = rng.randrange(len(special) + 1)
    return {
        "type": "TemplateProcessing",
        "single": [*special[:cut], text, *special[cut:]],
        "pair": [*special[:cut], text, *special[cut:], second, *special[cut:]],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in around},
    }


def _tokenizer(rng: random.Random, file: Path) -> list[str]:
    state = json.loads(file.read_text(encoding="utf-8"))
    model, what = state["model"], rng.choice(
        ("normalizer", "pre_tokenizer", "post_processor", "added", "added", "flags", "truncation", "padding", "model",
         "moved"))
    vocab = _ids(model)
    if what == "normalizer":
        state[what] = rng.choice(NORMALIZERS)
    elif what == "pre_tokenizer":
        state[what] = rng.choice(PRE_TOKENIZERS)
    elif what == "post_processor":
        known = rng.sample(sorted(vocab.items(), key=lambda held: held[1]), 3)
        state[what] = rng.choice((None, _template(rng, known), _template(rng, known), {
            "type": "RobertaProcessing", "sep": list(known[0]), "cls": list(known[1]), "trim_offsets": True,
            "add_prefix_space": False}, {"type": "BertProcessing", "sep": list(known[0]), "cls": list(known[1])}))
    elif what == "added":
        token = _token(rng, len(vocab))
        token["id"] = vocab.get(token["content"], len(vocab) - 1)
        state["added_tokens"] = [*(t for t in state["added_tokens"] if t["id"] != token["id"]), token]
        state["added_tokens"].sort(key=lambda t: t["id"])
    elif what == "flags" and state["added_tokens"]:
        token = rng.choice(state["added_tokens"])
        token[rng.choice(FLAGS)] ^= True
    elif what == "truncation":
        state[what] = {"direction": rng.choice(("Left", "Right")), "max_length": rng.choice((4, 9, 512)), "strategy":
                       rng.choice(("LongestFirst", "OnlyFirst", "OnlySecond")), "stride": rng.choice((0, 0, 2))}
    elif what == "padding":
        state[what] = {"strategy": rng.choice(("BatchLongest", {"Fixed": 20})), "direction":
                       rng.choice(("Left", "Right")), "pad_to_multiple_of": rng.choice((None, 8)), "pad_id":
                       rng.choice((0, 1, 3)), "pad_type_id": rng.choice((0, 1)), "pad_token":
                       rng.choice(("[PAD]", "<pad>", "cf"))}
    elif what == "model":
        key, value = rng.choice((("unk_token", "cf"), ("max_input_chars_per_word", 4), ("fuse_unk", True),
                                 ("byte_fallback", True), ("ignore_merges", True), ("end_of_word_suffix", "</w>"),
                                 ("continuing_subword_prefix", "##"), ("dropout", 0.5), ("dropout", 0.0),
                                 ("unk_token", None)))
        model[key] = value
        what += f" {key}={value!r}"
    elif what == "moved":                  # two words of the vocabulary change places
        held, (one, two) = model["vocab"], rng.sample(range(len(vocab)), 2)
        if isinstance(held, dict):
            one, two = (sorted(held)[i] for i in (one, two))
        held[one], held[two] = held[two], held[one]
    file.write_text(json.dumps(state), encoding="utf-8")
    return [f"tokenizer.json {what}"]


def _files(rng: random.Random, folder: Path) -> list[str]:
    """tokenizer.json's vocabulary in the older files; or a special_tokens_map.json, added_tokens.json of its own."""
    kind = rng.choice(("old", "map", "added", "decoder"))
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    model, vocab = state["model"], _ids(state["model"])
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    if kind == "old":
        (folder / "tokenizer.json").unlink()
        tokens = sorted(vocab, key=vocab.get)
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
        if model["type"] == "BPE":
            (folder / "vocab.txt").unlink()
            (folder / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
            merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
            (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
        config["tokenizer_class"] = rng.choice(("BertTokenizer", "RobertaTokenizer", "GPT2Tokenizer", None))
    elif kind == "map":
        key = rng.choice(("mask_token", "unk_token", "cls_token", "pad_token", "additional_special_tokens"))
        named = rng.choice(NAMES)
        (folder / "special_tokens_map.json").write_text(json.dumps({key: [named] if key[-1] == "s" else named}))
    elif kind == "added":
        token = rng.choice(NAMES)
        (folder / "added_tokens.json").write_text(json.dumps({token: vocab.get(token, len(vocab))}))
    else:
        token = _token(rng, 0)
        i = vocab.get(token["content"], len(vocab))
        del token["id"]
        config["added_tokens_decoder"] = {str(i): token}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return [f"files: {kind}"]


def _weights(rng: random.Random, file: Path) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}
    kind = rng.choice(("float16", "bfloat16", "float64", "zeros", "large", "more"))
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    if kind in ("float16", "bfloat16", "float64"):
        tensors = {name: tensor.to(getattr(torch, kind)) for name, tensor in tensors.items()}
    elif kind == "more":                  # rows of the word embedding beyond the tokenizer's
        for name, tensor in tensors.items():
            if "word_embeddings" in name or "embed_tokens" in name or ".wte." in name:
                tensors[name] = torch.cat([tensor, torch.randn(8, tensor.shape[1], generator=generator)])
                config = json.loads((file.parent / "config.json").read_text())
                config["vocab_size"] += 8
                (file.parent / "config.json").write_text(json.dumps(config))
    else:
        name = rng.choice(sorted(tensors))
        tensors[name] = torch.zeros_like(tensors[name]) if kind == "zeros" else 30 * tensors[name]
    save_file(tensors, file, {"format": "pt"})
    return [f"weights: {kind}"]


def settings(rng: random.Random, folder: Path) -> str:
    """Changes one to four things of a sound folder."""
    done = []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4))):
        which = rng.randrange(10)
        if which < 2:
            done += _put(rng, folder / "config.json", CONFIG, 1)
        elif which < 5:
            done += _put(rng, folder / "tokenizer_config.json", TOKENIZER_CONFIG, rng.choice((1, 2)))
        elif which < 7 and (folder / "tokenizer.json").exists():
            done += _tokenizer(rng, folder / "tokenizer.json")
        elif which < 9 and (folder / "tokenizer.json").exists():
            done += _files(rng, folder)
        else:
            done += _weights(rng, folder / "model.safetensors")
    return ", ".join(done)


def make(seed: int, bases: dict[str, Path], folder: Path) -> tuple[Path, str]:
    """One sound checkpoint of unusual settings in `folder`, and what it is."""
    rng = random.Random(seed)
    architecture, path = rng.choice(ARCHITECTURES), folder / "ckpt"
    shutil.copytree(bases[architecture], path)
    return path, f"{architecture}: {settings(rng, path)}"
