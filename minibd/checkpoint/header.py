"""What a checkpoint says of itself before its tensors are read: config, tokenizer, labels, history, names and shapes.

file.py and folder.py fill a `Header`; what both of them check stands here.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as BackendTokenizer
from torch import Tensor

from minibd.checkpoint import tokenizer_trial as trial
from minibd.lines import listed, one_line, shown
from minibd.models import bert, distilbert, electra, gpt2, llama, mistral, mpnet, qwen2, roberta, xlm_roberta
from minibd.models.encoder import Encoder, HFMapping, HFTensor
from minibd.records import BadInput
from minibd.regular import check_regular, read_regular
from minibd.tokenizer import Tokenizer, is_panic

ARCHITECTURES = (bert, roberta, distilbert, llama, gpt2, mpnet, xlm_roberta, electra, mistral, qwen2)
HF_MAPPINGS = {mapping.model_type: mapping for mapping in (module.HF_MAPPING for module in ARCHITECTURES)}
SIZES = ("vocab", "hidden", "heads", "ffn", "type_vocab_size", "head_size", "kv_heads", "bottleneck", "labels")
MOST = 2**31 - 1                         # the largest whole number that a config holds
LARGEST_FLOAT = 1e30                     # an int may be larger than any float
LARGEST = 64 << 20                       # bytes of a text file: the largest tokenizer.json in use has 33 MB


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
    if not isinstance(name, str) or name not in HF_MAPPINGS:
        raise BadInput(
            f"{where}: {key} is {shown(name)}, only {', '.join(HF_MAPPINGS)} are known here: use another checkpoint"
        )
    return HF_MAPPINGS[name]


def stored_tensors(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of one .safetensors file, by name and unread, and its metadata. Raises BadInput."""
    with opened(file) as f:
        tensors = {name: StoredTensor(file, name, tuple(f.get_slice(name).get_shape())) for name in f.keys()}
        return tensors, f.metadata() or {}


# ---- what both kinds check

def parse_config(where: Path, mapping: HFMapping, values: dict, tensors: Mapping[str, StoredTensor]) -> object:
    """The architecture's config with `values`, each of the field's type and range, and no size beyond those of the
    stored `tensors`: nothing has been built by then. Raises BadInput."""
    known = {field.name: field for field in fields(mapping.config_class)}
    theirs = mapping.config if where.name == "config.json" else {}  # transformers' name of a number, in its own file
    if unknown := [name for name in values if name not in known]:
        raise BadInput(f"{where}: the config has the unknown {listed(unknown)}: it was written by another version")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise BadInput(f"{where}: the config lacks {theirs.get(name, name)}: add it")
        if name in values and not _in_range(name, field.type, values[name]):
            raise BadInput(f"{where}: {theirs.get(name, name)} is {shown(values[name])}, which no "
                           f"{mapping.model_type} has: correct the config")
    with errors_name(where):
        config = mapping.config_class(**values)
    _check_sizes(where, mapping, config, tensors)
    if config.pad >= config.vocab:
        raise BadInput(
            f"{where}: the padding token {config.pad} is beyond the {config.vocab} tokens: correct the config"
        )
    return config


def _check_sizes(where: Path, mapping: HFMapping, config: object, tensors: Mapping[str, StoredTensor]) -> None:
    """Raises BadInput where a size is larger than any in the file's own header: a model that is built by it would be,
    too."""
    theirs = mapping.config if where.name == "config.json" else {}
    largest = max((side for tensor in tensors.values() for side in tensor.shape), default=0)
    sizes = {name: getattr(config, name, 0) for name in SIZES}
    sizes["head_size"] *= config.heads
    if "embeddings.position" in mapping.names:  # others are angles, and no table
        sizes["positions"] = config.positions
    for name, size in sizes.items():
        if size > largest:
            raise BadInput(f"{where}: {theirs.get(name, name)} of {size} is larger than any side of its tensors, "
                           f"{largest}: take config and weights from one checkpoint")
    if config.layers > len(tensors):
        raise BadInput(f"{where}: its config has {config.layers} layers, more than the {len(tensors)} tensors it "
                       f"holds: take config and weights from one checkpoint")


def _in_range(name: str, type_name: str, value: object) -> bool:
    if type_name == "int":
        least = 0 if name in ("labels", "pad", "bottleneck", "sliding_window") else 1
        return type(value) is int and MOST >= value >= least
    if type_name == "float":
        return type(value) in (int, float) and abs(value) <= LARGEST_FLOAT and (
            0 <= value < 1 if "dropout" in name else 0 < value < (1 if name == "eps" else float("inf"))
        )
    return type_name not in ("bool", "str") or type(value).__name__ == type_name


def check_history(where: Path, history: object) -> list[dict]:
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise BadInput(f"{where}: the history is not a list of JSON objects: correct it")
    return history


def parse_tokenizer(where: Path, source: str, config: object) -> BackendTokenizer:
    """The tokenizer whose JSON is `source`, if it works and its tokens are among the model's. Raises BadInput."""
    try:
        state = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: its tokenizer cannot be read ({one_line(error)}): take the model's "
                       f"tokenizer.json") from None
    if fault := trial.wrong(state, config.vocab):
        raise BadInput(f"{where}: its tokenizer is none for this model, {fault}: take the model's tokenizer.json")
    largest = 0
    if not trial.is_harmless(state):
        fault, largest = trial.tried(source)
        if fault:
            raise BadInput(f"{where}: its tokenizer was tried in a process of its own, and {fault}: take the model's "
                           f"tokenizer.json")
    backend = loaded(where, source)
    largest = max(largest, max(backend.get_vocab().values(), default=0))
    if largest >= config.vocab:
        raise BadInput(
            f"{where}: the tokenizer's token {largest} is beyond the model's {config.vocab}: take both from one model"
        )
    return backend


def loaded(where: Path, source: str) -> BackendTokenizer:
    """What the library makes of a tokenizer's JSON. Raises BadInput."""
    with library_errors(where):
        return BackendTokenizer.from_str(source)


@contextmanager
def library_errors(where: Path) -> Iterator[None]:
    """What the tokenizers library raises is raised as BadInput: it has nothing narrower than Exception, and its Rust
    side panics."""
    try:
        yield
    except BadInput:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise BadInput(
            f"{where}: its tokenizer cannot be read ({one_line(error)}): take the model's tokenizer.json"
        ) from None


def check_ends(where: Path, tokenizer: Tokenizer, config: object) -> None:
    """Raises BadInput where the tokens around a text leave it no place, or have types that the model does not know."""
    around = tokenizer.backend.num_special_tokens_to_add(False)
    if around >= tokenizer.max_len:
        raise BadInput(f"{where}: its tokenizer puts {around} tokens around a text, which has {tokenizer.max_len} with "
                       f"them: take the model's tokenizer.json")
    known = getattr(config, "type_vocab_size", 0)
    if known > 1 and tokenizer.settings.type_ids and known < (
        given := trial.types(json.loads(tokenizer.backend.to_str()))
    ):
        raise BadInput(f"{where}: its tokenizer gives the type id {given - 1}, and the model has {known}: take the "
                       f"model's tokenizer.json")


# ---- reading, and the words of errors

@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A .safetensors file; what is wrong with it is raised as BadInput."""
    check_regular(file)
    try:
        with safe_open(file, framework="pt") as f:
            yield f
    except (OSError, MemoryError, SafetensorError, UnicodeError) as error:  # UnicodeError: a name of half a letter
        raise BadInput(f"{file} cannot be read ({one_line(error)}): download or save it again") from None


def read_text(file: Path) -> str:
    try:
        return read_regular(file, LARGEST).decode("utf-8")
    except UnicodeDecodeError as error:
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
