"""Checkpoints in and out: one self-describing .safetensors file, or a Hugging Face folder. Pickles are refused.

The file    tensors under minibd's names, head_mask among them; the metadata holds, as strings: "format" ("minibd 2";
            "minibd 1" is read), "config" (JSON of the model's config and "architecture"), "tokenizer" (the tokenizers
            library's JSON), "max_len", "labels" and "history" (JSON lists). A tokenizer whose settings are not the
            usual ones has them in "tokenizer_settings", and "format" is "minibd 3". file.py
The folder  config.json, model.safetensors (or shards and their index), tokenizer.json (or vocab.txt, or vocab.json and
            merges.txt) and what stands beside them, as transformers writes and reads them: tokenizer_files.py. `save`
            adds minibd.json, {"history": [...], "head_mask": L lists of H}. folder.py

How transformers names the parts of an architecture stands in the architecture's own file (models/bert.py: HF_MAPPING);
nothing here knows one by name. header.py reads what a checkpoint says of itself, tensors.py its weights; pickles.py
says what to do about other weights and adapters; head_surgery.py changes the head of a checkpoint in memory;
model_card.py writes a folder's README.md.

Five choices:
1. A head mask is folded into its columns of the output projection on the way into a folder, so that transformers gives
   the same logits. minibd.json keeps which entries were 0; those columns must be 0 when the folder is read again.
2. A model without classifier has no pooler either (labels = 0): a bare encoder's pooler weights are used when `labels`
   asks for a classifier at loading, and left out otherwise.
3. The class names of a trained classifier are the checkpoint's: `labels` given beside it must agree in number, and
   name the classes only where the checkpoint calls them LABEL_0, LABEL_1, ...
4. Tensors are read file by file, each one straight into memory of its own and its final type: at its peak, loading
   holds the model and one shard. A folder of more than folder.SHARD bytes is written in shards.
5. Llama's two-layer head is two matrices without anything between them: a folder, where transformers knows one, holds
   their product. The logits are the same; the head that comes back has one layer.
"""
from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError

from minibd.atomic import atomic_folder, atomic_write
from minibd.checkpoint.file import read_file, write_file
from minibd.checkpoint.folder import (
    FOLDER_FILES,
    SINCE_0_3_0,
    check_target,
    is_model_file,
    read_folder,
    weight_files,
    write_folder,
)
from minibd.checkpoint.head_surgery import copy, headless, new_classifier, to_tune, with_head, with_mlm
from minibd.checkpoint.header import (
    HF_MAPPINGS,
    Checkpoint,
    Header,
    hf_mapping_of,
)
from minibd.checkpoint.model_card import card
from minibd.checkpoint.pickles import ADAPTERS, PICKLES, adapter_error, pickle_error
from minibd.checkpoint.tensors import HEADS, build_model, check_finite, check_plain, init_head, shapes_of
from minibd.digest import file_digest
from minibd.distributed import leads, meet
from minibd.lines import listed, one_line
from minibd.records import BadInput, not_there

__all__ = [
    "HEADS", "HF_MAPPINGS", "PICKLES", "SINCE_0_3_0", "Checkpoint", "Header", "card", "copy", "headless",
    "hf_mapping_of", "load", "new_classifier", "read_header", "save", "sha256", "to_tune", "with_head", "with_mlm",
]


def read_header(path: str | Path) -> Header:
    """All that the checkpoint at `path` holds but its weights: config, tokenizer, labels, history. Raises BadInput.

    `load` takes the header in place of the path: whoever must see the labels or the history before he can say which
    classifier a bare encoder needs reads the checkpoint once, not twice.
    """
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{not_there(path)}: name a checkpoint, a .safetensors or a Hugging Face folder")
    if path.name in ADAPTERS and path.is_file():
        raise adapter_error(path, path.parent)
    if path.suffix.lower() in PICKLES and path.is_file():
        raise pickle_error(path)
    return read_folder(path) if path.is_dir() else read_file(path)


def load(source: str | Path | Header, device: torch.device | str = "cpu", *, labels: Sequence[str] | None = None,
         seed: int = 0, bottleneck: int = 0, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """The checkpoint at `source`, a file or a folder (or its header), in eval mode, its weights in `dtype`.

    A checkpoint without classifier gets a new one for the classes `labels`, N(0, 0.02) drawn from `seed`, and an entry
    in its history; its language-model head is left out, unless it is the word embedding itself. Without `labels` it
    stays an encoder.
    bottleneck: the width of a new two-layer head, D -> bottleneck -> C without anything between (Llama; MuScleLoRA has
    16). Raises BadInput on whatever cannot be read whole and exactly.
    """
    header = source if isinstance(source, Header) else read_header(source)
    path, config, names, history = header.path, header.config, header.labels, copying.deepcopy(header.history)
    new: list[str] = []
    if labels is not None and not config.labels:
        names = tuple(labels)
        if len(names) < 2:
            raise BadInput(f"{path}: {len(names)} labels for a new classifier: give two or more")
        config = _config_with_head(header, len(names), bottleneck)
        new = [name for name in shapes_of(header.mapping, config)
               if name.startswith(("pooler.", "classifier.")) and header.hf_tensor(name).name not in header.tensors]
        history.append({"new": sorted({name.split(".")[0] for name in new}), "labels": list(names), "seed": seed})
    elif bottleneck:
        why = "this checkpoint has one already" if config.labels else "name its classes too"
        raise BadInput(f"{path}: a bottleneck of {bottleneck} is for a new classifier: {why}")
    elif labels is not None:
        names = _matching_labels(path, names, tuple(labels))
    model = build_model(header, config, new, dtype)
    init_head(model, new, seed)
    return Checkpoint(model.eval().to(device), header.tokenizer, names, history)


def _config_with_head(header: Header, classes: int, bottleneck: int) -> object:
    """The config with a classifier and without a separate language-model head, which would only grow stale beside it.
    """
    mapping, config = header.mapping, replace(header.config, labels=classes)
    if hasattr(config, mapping.lm):
        config = replace(config, **{mapping.lm: False})
    if bottleneck:
        if not hasattr(config, "bottleneck"):
            raise BadInput(f"{header.path} is a {mapping.model_type}, whose head takes none: leave the bottleneck out")
        config = replace(config, bottleneck=bottleneck)
    return config


def _matching_labels(path: Path, names: tuple[str, ...], given: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a trained classifier's classes, see choice 3."""
    if len(names) != len(given):
        raise BadInput(f"{path} has a classifier of {len(names)} classes ({listed(names)}), the data {len(given)} "
                       f"({listed(given)}): use a checkpoint of the same task")
    return given if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def save(ckpt: Checkpoint, path: str | Path) -> None:
    """`path` ending in .safetensors: one file; any other: a Hugging Face folder. Whole or not at all; raises BadInput.

    Into a folder that exists, only the files of a model are written, all of them in one step; those of another model
    that lie there go, whatever else does stays.
    Weights that are NaN or infinite are refused: whatever trained them diverged. Of several processes the first one
    writes, and the others wait for it.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise BadInput(
            f"{path} is the name of a pickle, which is never written: end it in .safetensors, or name a folder"
        )
    check_plain(ckpt.model, f"{path} would hold an encoder's own weights alone")
    check_finite(ckpt.model, f"{path} is not written")
    if leads():
        _write(ckpt, path)
    meet()


def _write(ckpt: Checkpoint, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            with atomic_write(path) as draft:
                write_file(ckpt, draft)
            return
        check_target(path)
        with atomic_folder(path, is_model_file) as draft:
            write_folder(ckpt, draft)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"cannot write {path} ({one_line(error)}): free some space or name another place") from None


def sha256(path: str | Path) -> dict[str, str]:
    """The digest of each file that `load(path)` reads, by file name: the one file, or a folder's weights, config,
    tokenizer and history."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{not_there(path)}: name a checkpoint, a .safetensors or a Hugging Face folder")
    files = [path]
    if path.is_dir():
        files = [*weight_files(path), *(path / name for name in FOLDER_FILES if (path / name).is_file())]
    return {file.name: file_digest(file) for file in files}
