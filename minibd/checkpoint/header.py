"""What a checkpoint says of itself before its tensors are read: config, tokenizer, labels, history, names and shapes.

file.py and folder.py fill a `Header`; what both of them check stands here.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as BackendTokenizer
from torch import Tensor

from minibd.models import bert, distilbert, electra, gpt2, llama, mistral, mpnet, qwen2, roberta, xlm_roberta
from minibd.models.encoder import Encoder, HFMapping, HFTensor
from minibd.records import BadInput
from minibd.tokenizer import Tokenizer

ARCHITECTURES = (bert, roberta, distilbert, llama, gpt2, mpnet, xlm_roberta, electra, mistral, qwen2)
HF_MAPPINGS = {mapping.model_type: mapping for mapping in (module.HF_MAPPING for module in ARCHITECTURES)}
SHOWN = 5                                # names shown in an error line


@dataclass
class Checkpoint:
    """A checkpoint in memory. `labels[i]` names class i; `history` is what was done to the model, oldest first, as
    JSON-able dictionaries."""

    model: Encoder
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    history: list[dict]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor on disk: the file, its name there, its shape."""
    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """A checkpoint on disk without its weights.

    tensors: by their names on disk. hf_tensor: of one of minibd's names, where it lies among them (in a file, under the
    same name). pruned (L, H): True at the heads whose mask minibd.json has at 0; None where there is no such file.
    """

    path: Path
    mapping: HFMapping
    config: object
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    history: list[dict]
    tensors: dict[str, StoredTensor]
    hf_tensor: Callable[[str], HFTensor]
    is_folder: bool
    pruned: Tensor | None = None


def hf_mapping_of(model: Encoder) -> HFMapping:
    """How transformers names the parts of `model`."""
    return next(mapping for mapping in HF_MAPPINGS.values() if mapping.model is type(model))


def mapping_named(where: Path, key: str, name: object) -> HFMapping:
    """The mapping of the architecture `name`, which stands under `key` in the file `where`. Raises BadInput."""
    if name not in HF_MAPPINGS:
        raise BadInput(
            f"{where}: {key} is {name!r}, only {', '.join(HF_MAPPINGS)} are known here: use another checkpoint"
        )
    return HF_MAPPINGS[name]


def stored_tensors(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one .safetensors file, by name and unread, and its metadata. Raises BadInput."""
    with opened(file) as f:
        tensors = {name: StoredTensor(file, name, tuple(f.get_slice(name).get_shape())) for name in f.keys()}
        return tensors, f.metadata() or {}


# ---- what both kinds check

def parse_config(where: Path, mapping: HFMapping, values: dict) -> object:
    """The architecture's config with `values`, each of the field's type and range. Raises BadInput."""
    known = {field.name: field for field in fields(mapping.config_class)}
    theirs = mapping.config if where.name == "config.json" else {}  # transformers' name of a number, in its own file
    if unknown := [name for name in values if name not in known]:
        raise BadInput(f"{where}: the config has the unknown {shorten(unknown)}: it was written by another version")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise BadInput(f"{where}: the config lacks {theirs.get(name, name)}: add it")
        if name in values and not _in_range(name, field.type, values[name]):
            raise BadInput(f"{where}: {theirs.get(name, name)} is {values[name]!r}, which no {mapping.model_type} has: "
                           f"correct the config")
    with errors_name(where):
        config = mapping.config_class(**values)
    if config.pad >= config.vocab:
        raise BadInput(
            f"{where}: the padding token {config.pad} is beyond the {config.vocab} tokens: correct the config"
        )
    return config


def _in_range(name: str, type_name: str, value: object) -> bool:
    if type_name == "int":
        return type(value) is int and value >= (0 if name in ("labels", "pad", "bottleneck", "sliding_window") else 1)
    if type_name == "float":
        return type(value) in (int, float) and (
            0 <= value < 1 if "dropout" in name else 0 < value < (1 if name == "eps" else float("inf"))
        )
    return type_name not in ("bool", "str") or type(value).__name__ == type_name


def check_history(where: Path, history: object) -> list[dict]:
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise BadInput(f"{where}: the history is not a list of JSON objects: correct it")
    return history


def parse_tokenizer(where: Path, source: str, config: object) -> BackendTokenizer:
    """The tokenizer whose JSON is `source`, if its tokens are among the model's. Raises BadInput."""
    try:
        backend = BackendTokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(
            f"{where}: its tokenizer cannot be read ({one_line(error)}): take the model's tokenizer.json"
        ) from None
    largest = max(backend.get_vocab().values(), default=0)
    if largest >= config.vocab:
        raise BadInput(
            f"{where}: the tokenizer's token {largest} is beyond the model's {config.vocab}: take both from one model"
        )
    return backend


# ---- reading, and the words of errors

@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A .safetensors file; what is wrong with it is raised as BadInput."""
    try:
        with safe_open(file, framework="pt") as f:
            yield f
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read ({one_line(error)}): download or save it again") from None


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read ({one_line(error)}): download or save it again") from None


def parse_json(where: Path, source: str, kind: type) -> dict | list | int:
    """The JSON value `source`, of the type `kind`, read from the file `where`. Raises BadInput."""
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} holds broken JSON ({one_line(error)}): download or save it again") from None
    if type(value) is not kind:
        raise BadInput(f"{where} holds a JSON {type(value).__name__}, not a {kind.__name__}: download or save it again")
    return value


@contextmanager
def errors_name(where: Path) -> Iterator[None]:
    """A BadInput raised inside names the file `where` first."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def one_line(error: BaseException) -> str:
    """An error's message on one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def shorten(names: Sequence[str]) -> str:
    """The first SHOWN of `names`, and how many there are."""
    return ", ".join(names[:SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > SHOWN else "")
