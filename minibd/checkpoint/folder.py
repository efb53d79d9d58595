"""A Hugging Face folder: read as transformers, and the Hub's older checkpoints, lay it out; written so that
transformers loads it and gives the same logits."""
from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from pathlib import Path

import torch
from tokenizers import Tokenizer as BackendTokenizer
from torch import Tensor

from minibd.checkpoint.header import (
    LARGEST,
    Checkpoint,
    Header,
    StoredTensor,
    check_history,
    hf_mapping_of,
    mapping_named,
    parse_config,
    parse_json,
    read_text,
    stored_tensors,
)
from minibd.checkpoint.model_card import card, hf_class
from minibd.checkpoint.pickles import (
    check_no_adapter,
    no_config,
    no_weights,
    pickle_error,
    pickled_weights,
    prefix_error,
    wrapper_prefix,
)
from minibd.checkpoint.tensors import plain, read_tensor, save_tensors
from minibd.checkpoint.tokenizer_files import (
    TOKENIZER_FILES,
    check_carried,
    guessed_special,
    read_tokenizer,
    special_tokens,
    tokenizer_config,
)
from minibd.lines import as_json, shown, visible
from minibd.models.encoder import Encoder, HFMapping
from minibd.records import BadInput
from minibd.regular import check_regular

# What a folder is read from, beside its weights.
FOLDER_FILES = ("config.json", "minibd.json", "model.safetensors.index.json", *TOKENIZER_FILES)
# Those of them that results of versions before 0.3.0 hold no sha256 of.
SINCE_0_3_0 = ("special_tokens_map.json", "added_tokens.json")
SHARD = 5_000_000_000                    # bytes of a folder's largest weight file, as transformers has it


# ---- reading

def read_folder(path: Path) -> Header:
    """All but the weights. Raises BadInput."""
    check_no_adapter(path)
    for name in FOLDER_FILES:
        if os.path.lexists(path / name):
            check_regular(path / name, LARGEST)
    if not (path / "config.json").is_file():
        raise no_config(path)
    file = path / "config.json"
    hf_config = parse_json(file, read_text(file), dict)
    mapping = mapping_named(file, "model_type", hf_config.get("model_type"))
    _check_known(file, mapping, hf_config)
    tensors = _read_tensor_names(path, mapping)
    values = {name: hf_config[key] for name, key in mapping.config.items() if hf_config.get(key) is not None}
    values |= mapping.from_hf(hf_config)
    if values.get("tied", True):
        _drop_copies(path, mapping, tensors)
    if mapping.lm in {field.name for field in fields(mapping.config_class)}:
        lm_names = tuple(name for module, name in mapping.names.items() if module.split(".")[0] == mapping.lm)
        values[mapping.lm] = any(name.startswith(lm_names) for name in tensors)
    head = mapping.hf_tensor("classifier.weight").name
    values["labels"] = tensors[head].shape[0] if head in tensors else 0
    config = parse_config(file, mapping, values, tensors)
    extra_file = path / "minibd.json"
    extra = parse_json(extra_file, read_text(extra_file), dict) if extra_file.exists() else {}
    pruned = _read_pruned(extra_file, extra["head_mask"], config) if "head_mask" in extra else None
    tokenizer = read_tokenizer(path, mapping, hf_config, config)
    if mapping.model.causal and hf_config.get("pad_token_id") is None:
        if tokenizer.backend.encode("a").ids[-1:] == [config.pad]:
            raise BadInput(f"{file} names no pad_token_id, and its tokenizer ends each text with the end-of-text token "
                           f"{config.pad}, which would stand for padding too and not be read: name another token there")
    return Header(
        path, mapping, config, tokenizer, _read_labels(path, hf_config, config.labels),
        check_history(extra_file, extra.get("history", [])), tensors, mapping.hf_tensor, is_folder=True, pruned=pruned,
    )


def _check_known(file: Path, mapping: HFMapping, hf_config: dict) -> None:
    """Raises BadInput where config.json asks for something that the architecture's file does not compute."""
    for key, what in (
        ("quantization_config", "asks for quantised weights: use a checkpoint that is not quantised"),
        ("compression_config", "asks for compressed weights: use a checkpoint that is not compressed"),
        ("auto_map", "names code of the checkpoint's own, which is never run here: use another checkpoint, or delete "
                     "it if the model is the architecture's own"),
        ("transformers_weights", "names other weights than model.safetensors: rename that file and delete the key"),
    ):
        if hf_config.get(key):
            raise BadInput(f"{file}: {key} is {as_json(hf_config[key])}, which {what}")
    for key, known in {**mapping.supported, "problem_type": ("single_label_classification", None)}.items():
        if hf_config.get(key) not in known:
            raise BadInput(
                f"{file}: {key} is {shown(hf_config.get(key))}, only {known[0]!r} is known here: use another checkpoint"
            )


def _read_tensor_names(path: Path, mapping: HFMapping) -> dict[str, StoredTensor]:
    """{name as the architecture's class with a head has it: tensor}, without what is ignored."""
    tensors: dict[str, StoredTensor] = {}
    stored = [item for file in weight_files(path) for item in stored_tensors(file)[0].items()]
    if prefix := wrapper_prefix(mapping, (name for name, _ in stored)):
        raise prefix_error(path, prefix)
    for stored_name, tensor in stored:
        name = _full_name(mapping, stored_name)
        if name in tensors:
            raise BadInput(f"{path} holds {name} twice, as {tensors[name].name} and {tensor.name}: drop one")
        if not name.endswith(mapping.ignored):
            tensors[name] = tensor
    return tensors


def weight_files(path: Path) -> list[Path]:
    """model.safetensors, or the shards that the folder's index names. Raises BadInput."""
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = parse_json(index, read_text(index), dict).get("weight_map")
        # A shard lies in the folder itself: an index must not reach for other files.
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise BadInput(f"{index}: weight_map is not {{tensor: file in this folder}}: download it again")
        return [path / name for name in sorted(set(shards.values()))]
    if pickles := pickled_weights(path):
        raise pickle_error(path, visible(pickles[0].name))
    raise no_weights(path)


def _full_name(mapping: HFMapping, name: str) -> str:
    """`name` with what old and bare checkpoints write otherwise: LayerNorm's gamma and beta, names without prefix."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith((mapping.prefix, *mapping.head_prefixes)) else mapping.prefix + name


def _drop_copies(path: Path, mapping: HFMapping, tensors: dict[str, StoredTensor]) -> None:
    """A tied tensor is stored once, or twice and equal; under whichever name, it stays in `tensors` under its twin's.
    """
    for name, twin in mapping.tied.items():
        if name in tensors and twin in tensors:
            copy, original = (read_tensor(tensors[n]) for n in (name, twin))
            if not torch.equal(copy, original):
                raise BadInput(
                    f"{path}: {name} differs from {twin}, and only a tied language-model head is known here: tie them"
                )
            del tensors[name]
        elif name in tensors:
            tensors[twin] = tensors.pop(name)


def _read_labels(path: Path, hf_config: dict, classes: int) -> tuple[str, ...]:
    """The class names, LABEL_0, ... where config.json has none. Raises BadInput."""
    if classes == 1:
        raise BadInput(f"{path}: a classifier of 1 class is a regression: use a model of two classes or more")
    names, count = hf_config.get("id2label"), hf_config.get("num_labels")
    if classes and not names and count not in (None, classes):
        raise BadInput(f"{path / 'config.json'}: num_labels is {as_json(count)}, the classifier has {classes} "
                       f"classes: correct it")
    if not names or not classes:
        return tuple(f"LABEL_{i}" for i in range(classes))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(classes)}:
        raise BadInput(
            f"{path / 'config.json'}: id2label does not name the classifier's classes 0 to {classes - 1}: correct it"
        )
    return tuple(str(names[str(i)]) for i in range(classes))


def _read_pruned(file: Path, head_mask: object, config: object) -> Tensor:
    """(L, H), True where minibd.json's head mask is 0. Raises BadInput."""
    try:
        values = torch.tensor(head_mask, dtype=torch.float32)  # (L, H)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # OverflowError: a whole number beyond all floats
        values = torch.empty(0)
    if values.shape != (config.layers, config.heads):
        raise BadInput(
            f"{file}: head_mask is not {config.layers} lists of {config.heads} numbers: correct or delete the file"
        )
    return values == 0


# ---- writing

def check_target(path: Path) -> None:
    """A folder without a model is written into, unless that would overwrite a README.md of another kind. Raises
    BadInput."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file: name a folder, or end the name in .safetensors")
    if path.is_dir() and not (path / "config.json").exists() and (path / "README.md").exists():
        raise BadInput(f"{path} holds a README.md and no model: choose another folder, that file would be lost")


def write_folder(ckpt: Checkpoint, folder: Path) -> None:
    """`folder`, which is empty, with all that transformers and `read_folder` read, and the model card."""
    backend = BackendTokenizer.from_str(ckpt.tokenizer.backend.to_str())
    backend.no_truncation()                              # the limit stands in tokenizer_config.json
    state = json.loads(backend.to_str())
    special = special_tokens(ckpt)
    contents = {
        "config.json": _hf_config(ckpt),
        "tokenizer_config.json": special | tokenizer_config(ckpt) | {
            "do_lower_case": bool((state["normalizer"] or {}).get("lowercase", False)),
        },
        "special_tokens_map.json": special,
        "minibd.json": {"history": ckpt.history, "head_mask": (ckpt.model.head_mask != 0).long().tolist()},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    check_carried(ckpt, folder)
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    if state["model"]["type"] == "WordPiece" and vocab[tokens[-1]] == len(tokens) - 1:  # line i is token i, or no file
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(ckpt), encoding="utf-8")
    _save_shards(_hf_state(ckpt.model), folder)


def _save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """model.safetensors, or, above SHARD bytes, model-00001-of-0000N.safetensors, ... and their index."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD:
            shards, size = [*shards, {}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        save_tensors(shard, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
             "weight_map": {name: file for file, shard in zip(files, shards) for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _hf_state(model: Encoder) -> dict[str, Tensor]:
    """The tensors under transformers' names, each head's mask folded into its Dh columns of the output projection."""
    mapping = hf_mapping_of(model)
    tensors = {name: plain(tensor) for name, tensor in model.state_dict().items() if name != "head_mask"}
    for layer, head_mask in enumerate(plain(model.head_mask)):                  # (H,)
        if bool((head_mask != 1).any()):
            name = f"blocks.{layer}.output.weight"
            columns = head_mask.repeat_interleave(tensors[name].shape[1] // len(head_mask))  # (H,) -> (H * Dh,)
            tensors[name] = tensors[name] * columns
    if getattr(model.config, "bottleneck", 0) and model.config.labels:
        tensors["classifier.weight"] = tensors["classifier.weight"] @ tensors.pop("pooler.weight")  # (C, 16) (16, D)
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        hf_tensor = mapping.hf_tensor(name)
        fused = parts.setdefault(hf_tensor.name, [torch.empty(0)] * hf_tensor.chunks)
        fused[hf_tensor.chunk] = tensor.T if hf_tensor.transposed else tensor
    # Side by side along their last axis where they are transposed, and for a bias along its only one.
    return {name: torch.cat(fused, dim=-1) if len(fused) > 1 else fused[0].contiguous()
            for name, fused in parts.items()}


def _hf_config(ckpt: Checkpoint) -> dict:
    model, config, mapping = ckpt.model, ckpt.model.config, hf_mapping_of(ckpt.model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    values = {"architectures": [hf_class(model)], "model_type": mapping.model_type, "dtype": dtype}
    values |= {key: known[0] for key, known in mapping.supported.items()}
    values |= {key: getattr(config, name) for name, key in mapping.config.items()} | mapping.to_hf(config)
    # where texts begin and end, or transformers takes its own default's ids
    if model.causal:
        backend, special = ckpt.tokenizer.backend, guessed_special(ckpt) | special_tokens(ckpt)
        values |= {f"{key}_id": backend.token_to_id(special.get(key, "")) for key in ("bos_token", "eos_token")}
    if config.labels:
        values["id2label"] = {str(i): name for i, name in enumerate(ckpt.labels)}
        values["label2id"] = {name: i for i, name in enumerate(ckpt.labels)}
        values["problem_type"] = "single_label_classification"
    return values


def is_model_file(name: str) -> bool:
    """Whether a file of that name in a folder is a part of its model, and goes where another is written there."""
    return name in FOLDER_FILES or re.fullmatch(r"model.*\.safetensors|README\.md", name) is not None
