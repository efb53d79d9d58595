"""One .safetensors file that holds everything: tensors under minibd's names; config, tokenizer, labels and history in
its metadata."""
from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from minibd.checkpoint.header import (
    Checkpoint,
    Header,
    check_ends,
    check_history,
    hf_mapping_of,
    mapping_named,
    parse_config,
    parse_json,
    parse_tokenizer,
    stored_tensors,
)
from minibd.checkpoint.tensors import plain, save_tensors
from minibd.checkpoint.tokenizer_files import parse_settings, settings_json
from minibd.lines import shown
from minibd.models.encoder import HFTensor
from minibd.records import BadInput
from minibd.tokenizer import Settings, Tokenizer

FORMAT = "minibd 2"
# With tokenizer_settings, which a reader of "minibd 2" would pass over and then give a text other ids.
FORMAT_WITH_SETTINGS = "minibd 3"
FORMATS = (FORMAT_WITH_SETTINGS, FORMAT, "minibd 1")  # those that are read
# What a file of format "minibd 1" names otherwise: entries of its config, and prefixes of its tensors' names.
RENAMED_CONFIG = {"kinds": "type_vocab_size"}
RENAMED_TENSORS = {"embeddings.kind.": "embeddings.token_type."}
METADATA = ("config", "tokenizer", "max_len", "labels", "history")


def read_file(path: Path) -> Header:
    """All but the weights. Raises BadInput."""
    if path.suffix != ".safetensors":
        raise BadInput(f"{path} is not a checkpoint: name a .safetensors file or a Hugging Face folder")
    tensors, metadata = stored_tensors(path)
    if metadata.get("format") not in FORMATS:
        raise BadInput(f"{path} has format {shown(metadata.get('format'))} in its metadata, not {FORMAT!r}: "
                       f"if it is a part of a Hugging Face folder, name the folder")
    if absent := [key for key in METADATA if key not in metadata]:
        raise BadInput(f"{path} lacks {', '.join(absent)} in its metadata: save it again")
    values = {RENAMED_CONFIG.get(key, key): v for key, v in parse_json(path, metadata["config"], dict).items()}
    mapping = mapping_named(path, "architecture", values.pop("architecture", None))
    config = parse_config(path, mapping, values, tensors)
    labels = parse_json(path, metadata["labels"], list)
    if len(labels) != config.labels:
        raise BadInput(f"{path} names {len(labels)} labels, its config {config.labels}: save it again")
    max_len = parse_json(path, metadata["max_len"], int)
    if not 3 <= max_len <= config.max_len:
        raise BadInput(
            f"{path}: max_len {max_len} is not from 3 to the model's {config.max_len} positions: save it again"
        )
    backend = parse_tokenizer(path, metadata["tokenizer"], config)
    settings = parse_settings(path, metadata["tokenizer_settings"]) if "tokenizer_settings" in metadata else Settings()
    tokenizer = Tokenizer(backend, max_len, config.pad, settings)
    check_ends(path, tokenizer, config)
    return Header(
        path, mapping, config, tokenizer,
        tuple(map(str, labels)), check_history(path, parse_json(path, metadata["history"], list)),
        {_current_name(name): tensor for name, tensor in tensors.items()}, HFTensor, is_folder=False,
    )


def _current_name(name: str) -> str:
    """The name that a tensor of a file of an older format has today."""
    return next((new + name[len(old):] for old, new in RENAMED_TENSORS.items() if name.startswith(old)), name)


def write_file(ckpt: Checkpoint, file: Path) -> None:
    tokenizer, settings = ckpt.tokenizer, settings_json(ckpt)
    metadata = {
        "format": FORMAT_WITH_SETTINGS if settings else FORMAT,
        "config": json.dumps({"architecture": hf_mapping_of(ckpt.model).model_type} | asdict(ckpt.model.config)),
        "tokenizer": tokenizer.backend.to_str(),
        "max_len": str(tokenizer.max_len),
        "labels": json.dumps(ckpt.labels),
        "history": json.dumps(ckpt.history),
    } | ({"tokenizer_settings": settings} if settings else {})
    save_tensors({name: plain(tensor) for name, tensor in ckpt.model.state_dict().items()}, file, metadata)
