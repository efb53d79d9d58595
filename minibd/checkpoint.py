"""Checkpoints in and out: one self-describing .safetensors file, or a Hugging Face folder. Pickles are refused.

The file    tensors under our own names, head_mask among them; the metadata holds, as strings: "format" ("minibd 2"; "minibd 1" is read),
            "config" (JSON of the model's config and "architecture"), "tokenizer" (the tokenizers library's JSON),
            "max_len", "labels" and "history" (JSON lists).
The folder  config.json, model.safetensors (or shards and their index), tokenizer.json (or vocab.txt, or vocab.json and
            merges.txt), as transformers writes and reads them. `save` adds minibd.json, {"history": [...], "head_mask":
            L lists of H}.

How transformers spells an architecture stands in its own file (models/bert.py: HF_MAPPING); nothing here knows one by
name.

Five choices:
1. A gate is folded into its columns of the output projection on the way into a folder, so that transformers gives the
same
   logits. minibd.json keeps which gates were 0; those columns must be 0 when the folder is read again.
2. A model without classifier has no pooler either (labels = 0): a bare encoder's pooler weights are used when `labels`
asks
   for a classifier at loading, and left out otherwise.
3. The names of a trained classifier's classes are the checkpoint's: `labels` given beside it must agree in number, and
   names the classes only where the checkpoint calls them LABEL_0, LABEL_1, ...
4. Tensors are read file by file, each one straight into memory of its own and its final type: at its peak, loading
holds
   the model and one shard. A folder of more than SHARD bytes is written in shards.
5. Llama's two-layer head is two matrices without anything between them: a folder, where transformers knows one, holds
   their product. The logits are the same; the head that comes back has one layer.
"""
from __future__ import annotations

import copy as copying
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.normalizers import BertNormalizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibd.models import bert, distilbert, gpt2, llama, roberta
from minibd.models.encoder import Encoder, HFTensor, HFMapping
from minibd.records import BadInput
from minibd.tokenizer import Tokenizer
from minibd.atomic import atomic_write

FORMAT = "minibd 2"
FORMATS = (FORMAT, "minibd 1")  # those that are read
# What a file of format "minibd 1" names otherwise: entries of its config, and beginnings of its tensors' names.
RENAMED_CONFIG = {"kinds": "type_vocab_size"}
RENAMED_TENSORS = {"embeddings.kind.": "embeddings.token_type."}
HF_MAPPINGS = {
    mapping.model_type: mapping for mapping in (m.HF_MAPPING for m in (bert, roberta, distilbert, llama, gpt2))
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
HEADS = ("pooler", "classifier", "mlm", "lm")   # parts that a model may lack, or have only for another purpose
FEW = 5                                  # names shown in an error line
# What a folder is read from, beside its weights.
BESIDE = (
    "config.json", "minibd.json", "model.safetensors.index.json", "tokenizer_config.json", "tokenizer.json",
    "vocab.txt", "vocab.json", "merges.txt",
)
SHARD = 5_000_000_000                    # bytes of a folder's largest weight file, as transformers has it
# The tokens that a tokenizer may have for each purpose; the first that is there is named in the folder's
# tokenizer_config.json.
SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"), "sep_token": ("[SEP]", "</s>"), "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
CAUSAL_SPECIAL = {"unk_token": ("<unk>",), "bos_token": ("<|begin_of_text|>", "<s>", "<|endoftext|>"),
                  "eos_token": ("<|end_of_text|>", "</s>", "<|endoftext|>")}


@dataclass
class Checkpoint:
    """A checkpoint in memory. `labels[i]` names class i; `history` is what was done to the model, oldest first,
    JSON-able."""

    model: Encoder
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    history: list[dict]


def load(path: str | Path, device: torch.device | str = "cpu", *, labels: Sequence[str] | None = None, seed: int = 0,
         bottleneck: int = 0, dtype: torch.dtype = torch.float32) -> Checkpoint:
    """The checkpoint at `path`, a file or a folder, in eval mode, its weights in `dtype`.

    A checkpoint without classifier gets a new one for the classes `labels`, N(0, 0.02) drawn from `seed`, and the
    history says so; its language-model head is left behind, unless it is the word embedding itself. Without `labels` it
    stays an encoder.
    bottleneck: the width of a new two-layer head, D -> bottleneck -> C without anything between (Llama; MuScleLoRA has
    16). Raises BadInput on whatever cannot be read whole and exactly.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES and not path.is_dir():
        raise _pickle(path)
    stored = _read_folder(path) if path.is_dir() else _read_file(path)
    config, names, history = stored.config, stored.labels, list(stored.history)
    fresh: list[str] = []
    if labels is not None and not config.labels:
        names = tuple(labels)
        if len(names) < 2:
            raise BadInput(f"{path}: {len(names)} labels for a new classifier: give two or more")
        config = _headed(path, stored, len(names), bottleneck)
        fresh = [name for name in _shapes(stored.mapping, config)
                 if name.startswith(("pooler.", "classifier.")) and stored.spell(name).name not in stored.tensors]
        history.append({"new": sorted({name.split(".")[0] for name in fresh}), "labels": list(names), "seed": seed})
    elif bottleneck:
        raise BadInput(f"{path}: a bottleneck of {bottleneck} is for a new classifier: "
                       + ("this checkpoint has one already" if config.labels else "name its classes too"))
    elif labels is not None:
        names = _agreed(path, names, tuple(labels))
    model = _model(path, stored, config, fresh, dtype)
    _init_head(model, fresh, seed)
    return Checkpoint(model.eval().to(device), stored.tokenizer, names, history)


def _headed(path: Path, stored: _Stored, classes: int, bottleneck: int) -> object:
    """The config with a classifier and without a language-model head of its own, which would only grow stale beside
    it."""
    config = replace(stored.config, labels=classes)
    if hasattr(config, stored.mapping.lm):
        config = replace(config, **{stored.mapping.lm: False})
    if bottleneck:
        if not hasattr(config, "bottleneck"):
            raise BadInput(f"{path} is a {stored.mapping.model_type}, whose head takes none: leave the bottleneck out")
        config = replace(config, bottleneck=bottleneck)
    return config


def save(ckpt: Checkpoint, path: str | Path) -> None:
    """`path` ending in .safetensors: one file; any other: a Hugging Face folder. Whole or not at all; raises BadInput.

    Into a folder that is there, only the files of a model are written, and only once all of them lie ready beside it.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise BadInput(
            f"{path} is the name of a pickle, which is never written: end it in .safetensors, or name a folder"
        )
    _check_plain(ckpt.model, f"{path} would hold an encoder's own weights alone")
    try:
        if path.suffix == ".safetensors":
            with atomic_write(path) as draft:
                _write_file(ckpt, draft)
            return
        _check_target(path)
        # same disk, so that a rename is one step
        draft = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            _write_folder(ckpt, draft)
            _move(draft, path)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"cannot write {path} ({_reason(error)}): free some space or name another place") from None


def sha256(path: str | Path) -> dict[str, str]:
    """Of each file that `load(path)` reads, by its name: the one file, or a folder's weights, config, tokenizer and
    history."""
    path = Path(path)
    if not path.exists():
        raise BadInput(f"{path} does not exist: name a checkpoint, a .safetensors or a Hugging Face folder")
    found = {}
    for file in (
        [path] if path.is_file() else [*_hf_files(path), *(file for name in BESIDE if (file := path / name).is_file())]
    ):
        digest = hashlib.sha256()
        with open(file, "rb") as opened:
            while part := opened.read(1 << 20):
                digest.update(part)
        found[file.name] = digest.hexdigest()
    return found


def _check_plain(model: Encoder, why: str) -> None:
    """Refuses what would be lost: weights that a method put in."""
    if strangers := sorted(model.state_dict().keys() ^ _shapes(hf_mapping_of(model), model.config).keys()):
        raise BadInput(
            f"{why}, and this model has others put in or missing ({strangers[0]}): merge low-rank layers first; a "
            "model with "
            "adapters or a prefix cannot be saved, its scores are the result"
        )


def copy(ckpt: Checkpoint) -> Checkpoint:
    """The same checkpoint with a model of its own; `text` is shared. A mitigation works on the copy, never on its
    victim."""
    return Checkpoint(copying.deepcopy(ckpt.model), ckpt.tokenizer, ckpt.labels, copying.deepcopy(ckpt.history))


def headless(ckpt: Checkpoint) -> Checkpoint:
    """A copy without pooler and classifier, as a pre-trained model is handed out: whoever fine-tunes it gets a new
    head."""
    none = {name: 0 for name in ("labels", "bottleneck") if name in {field.name for field in fields(ckpt.model.config)}}
    return _resized(ckpt, replace(ckpt.model.config, **none), ())


def with_head(ckpt: Checkpoint, labels: Sequence[str], seed: int) -> Checkpoint:
    """A copy of an encoder with a new classifier for the classes `labels`, drawn as `load` draws it."""
    return _resized(ckpt, replace(ckpt.model.config, labels=len(labels)), tuple(labels), seed)


def with_mlm(ckpt: Checkpoint, seed: int) -> Checkpoint:
    """A copy without classifier and with a masked-language-model head: its own, or a new one drawn from `seed`. Raises
    BadInput."""
    encoder = headless(ckpt)
    if not hasattr(encoder.model.config, "mlm"):
        raise BadInput(
            f"a {hf_mapping_of(ckpt.model).model_type} reads from left to right and fills no masks: use a BERT, "
            "RoBERTa or DistilBERT"
        )
    return _resized(encoder, replace(encoder.model.config, mlm=True), (), seed)


def to_tune(ckpt: Checkpoint, labels: Sequence[str], seed: int, keep_head: bool) -> Checkpoint:
    """What a fine-tuning of `ckpt` starts from: a copy with a new classifier for the classes `labels`, or with its own
    where `keep_head`.

    The new one is drawn from seed + 1: whoever trained `ckpt` with the same seed began with another.
    """
    if not keep_head:
        return with_head(headless(ckpt), labels, seed + 1)
    if not ckpt.labels:
        raise BadInput(
            "keep_head: this checkpoint has no classifier to keep, leave it out: fine-tune it with a new one"
        )
    return copy(ckpt)


def new_classifier(ckpt: Checkpoint, labels: Sequence[str], seed: int, bottleneck: int = 0) -> Checkpoint:
    """A copy with a new last layer for the classes `labels`, drawn from seed + 1; the penultimate one that is there
    stays: BERT's is pre-trained.

    bottleneck: the penultimate layer's width where the architecture lets one choose (Llama); at another width it is
    new, too.
    """
    config = replace(ckpt.model.config, labels=len(labels))
    if hasattr(config, "bottleneck"):
        config = replace(config, bottleneck=bottleneck)
    return _resized(ckpt, config, tuple(labels), seed + 1, drop="classifier.")


def _resized(
    ckpt: Checkpoint, config: object, labels: tuple[str, ...], seed: int = 0, drop: str | None = None
) -> Checkpoint:
    """A copy with `config`'s parts: those that it does not have are left behind, those that are new are drawn from
    `seed`.

    drop: how the names of parts begin that are drawn anew although they are there.
    """
    _check_plain(ckpt.model, "a new head is for a plain model")
    model = _empty(hf_mapping_of(ckpt.model), config)
    held = {name: tensor for name, tensor in ckpt.model.state_dict().items() if not (drop and name.startswith(drop))}
    like = ckpt.model.embeddings.word.weight
    # On the CPU first: a seed draws the same head for every device.
    fresh = [name for name, meta in model.state_dict().items() if name not in held or held[name].shape != meta.shape]
    tensors = {name: torch.zeros(meta.shape, dtype=like.dtype) if name in fresh else held[name].cpu().clone()
               for name, meta in model.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    _init_head(model, fresh, seed)
    return Checkpoint(model.eval().to(like.device), ckpt.tokenizer, labels, copying.deepcopy(ckpt.history))


# ---- what a checkpoint holds, before its tensors are read

@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor on disk: the file, its name there, its shape."""
    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """`tensors` by their names on disk; `spell` says where one of ours lies. `pruned` (L, H) is True at the gates that
    minibd.json has at 0."""

    mapping: HFMapping
    config: object
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    history: list[dict]
    tensors: dict[str, _Place]
    spell: Callable[[str], HFTensor]
    pruned: Tensor | None = None


def _read_file(path: Path) -> _Stored:
    if path.suffix != ".safetensors":
        raise BadInput(f"{path} is " + ("not a checkpoint" if path.exists() else "not there")
                       + ": name a .safetensors file or a Hugging Face folder")
    tensors, metadata = _header(path)
    if metadata.get("format") not in FORMATS:
        raise BadInput(f"{path} has format {metadata.get('format')!r} in its metadata, not {FORMAT!r}: "
                       f"if it is a part of a Hugging Face folder, name the folder")
    if absent := [key for key in ("config", "tokenizer", "max_len", "labels", "history") if key not in metadata]:
        raise BadInput(f"{path} lacks {', '.join(absent)} in its metadata: save it again")
    values = {RENAMED_CONFIG.get(name, name): value for name, value in _json(path, metadata["config"], dict).items()}
    tensors = {_renamed(name): place for name, place in tensors.items()}
    mapping = _mapping(path, "architecture", values.pop("architecture", None))
    config = _config(path, mapping, values)
    labels = _json(path, metadata["labels"], list)
    if len(labels) != config.labels:
        raise BadInput(f"{path} names {len(labels)} labels, its config {config.labels}: save it again")
    max_len = _json(path, metadata["max_len"], int)
    if not 3 <= max_len <= config.max_len:
        raise BadInput(
            f"{path}: max_len {max_len} is not from 3 to the model's {config.max_len} positions: save it again"
        )
    tokenizer = Tokenizer(_tokenizer(path, metadata["tokenizer"], config), max_len, config.pad)
    history = _history(path, _json(path, metadata["history"], list))
    return _Stored(mapping, config, tokenizer, tuple(map(str, labels)), history, tensors, HFTensor)


def _renamed(name: str) -> str:
    """The name that a tensor of an older file has today."""
    return next((new + name[len(old):] for old, new in RENAMED_TENSORS.items() if name.startswith(old)), name)


def _read_folder(path: Path) -> _Stored:
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} holds no config.json: name a Hugging Face folder or a .safetensors file")
    file = path / "config.json"
    values = _json(file, _text(file), dict)
    mapping = _mapping(file, "model_type", values.get("model_type"))
    _check_hf(file, mapping, values)
    tensors = _hf_tensors(path, mapping)
    ours = {name: values[key] for name, key in mapping.config.items() if values.get(key) is not None} | mapping.from_hf(
        values
    )
    if ours.get("tied", True):
        _drop_copies(path, mapping, tensors)
    if mapping.lm in {field.name for field in fields(mapping.config_class)}:
        theirs = tuple(name for module, name in mapping.names.items() if module.split(".")[0] == mapping.lm)
        ours[mapping.lm] = any(name.startswith(theirs) for name in tensors)
    head = mapping.hf_tensor("classifier.weight").name
    ours["labels"] = tensors[head].shape[0] if head in tensors else 0
    config = _config(file, mapping, ours)
    own = path / "minibd.json"
    extra = _json(own, _text(own), dict) if own.exists() else {}
    pruned = _pruned(own, extra["head_mask"], config) if "head_mask" in extra else None
    return _Stored(mapping, config, _hf_text(path, mapping, config), _hf_labels(path, values, config.labels),
                   _history(own, extra.get("history", [])), tensors, mapping.hf_tensor, pruned)


def _mapping(where: Path, key: str, name: object) -> HFMapping:
    if name not in HF_MAPPINGS:
        raise BadInput(
            f"{where}: {key} is {name!r}, only {', '.join(HF_MAPPINGS)} are known here: use another checkpoint"
        )
    return HF_MAPPINGS[name]


def _header(file: Path) -> tuple[dict[str, _Place], dict[str, str]]:
    """The tensors' places and the metadata of one .safetensors file."""
    try:
        with safe_open(file, framework="pt") as f:
            return {
                name: _Place(file, name, tuple(f.get_slice(name).get_shape())) for name in f.keys()
            }, f.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read ({_reason(error)}): download or save it again") from None


# ---- Hugging Face folders

def _check_hf(file: Path, mapping: HFMapping, values: dict) -> None:
    """config.json asks for nothing that the architecture's file does not compute."""
    for key, known in {**mapping.supported, "problem_type": ("single_label_classification", None)}.items():
        if values.get(key) not in known:
            raise BadInput(
                f"{file}: {key} is {values.get(key)!r}, only {known[0]!r} is known here: use another checkpoint"
            )


def _hf_tensors(path: Path, mapping: HFMapping) -> dict[str, _Place]:
    """{name as the architecture's class with a head has it: place}, without what is ignored."""
    tensors: dict[str, _Place] = {}
    for file in _hf_files(path):
        for name, place in _header(file)[0].items():
            name = _modern(mapping, name)
            if name in tensors:
                raise BadInput(f"{path} holds {name} twice, as {tensors[name].name} and {place.name}: drop one")
            if not name.endswith(mapping.ignored):
                tensors[name] = place
    return tensors


def _hf_files(path: Path) -> list[Path]:
    if (path / "model.safetensors").is_file():
        return [path / "model.safetensors"]
    index = path / "model.safetensors.index.json"
    if index.is_file():
        shards = _json(index, _text(index), dict).get("weight_map")
        # A shard lies in the folder itself: an index must not reach for other files.
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise BadInput(f"{index}: weight_map is not {{tensor: file in this folder}}: download it again")
        return [path / name for name in sorted(set(shards.values()))]
    if pickles := sorted(f for f in path.iterdir() if f.suffix.lower() in PICKLES):
        raise _pickle(path, pickles[0].name)
    raise BadInput(f"{path} holds no model.safetensors: put it there, or the shards with model.safetensors.index.json")


def _modern(mapping: HFMapping, name: str) -> str:
    """Old LayerNorm leaves are gamma and beta; a bare model's names lack the prefix."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith((mapping.prefix, *mapping.head_prefixes)) else mapping.prefix + name


def _drop_copies(path: Path, mapping: HFMapping, tensors: dict[str, _Place]) -> None:
    """A tied tensor is stored once, or twice and equal; under whichever name, it stays in `tensors` under its
    twin's."""
    for name, twin in mapping.tied.items():
        if name in tensors and twin in tensors:
            copy, original = (_values(tensors[n]) for n in (name, twin))
            if not torch.equal(copy, original):
                raise BadInput(
                    f"{path}: {name} differs from {twin}, and only a tied language-model head is known here: tie them"
                )
            del tensors[name]
        elif name in tensors:
            tensors[twin] = tensors.pop(name)


def _hf_labels(path: Path, values: dict, classes: int) -> tuple[str, ...]:
    """The names of the classes, LABEL_0, ... where config.json has none."""
    if classes == 1:
        raise BadInput(f"{path}: a classifier of 1 class is a regression: use a model of two classes or more")
    names = values.get("id2label")
    if not names or not classes:
        return tuple(f"LABEL_{i}" for i in range(classes))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(classes)}:
        raise BadInput(
            f"{path / 'config.json'}: id2label does not name the classifier's classes 0 to {classes - 1}: mend it"
        )
    return tuple(str(names[str(i)]) for i in range(classes))


def _hf_text(path: Path, mapping: HFMapping, config: object) -> Tokenizer:
    file = path / "tokenizer_config.json"
    values = _json(file, _text(file), dict) if file.exists() else {}
    limit = values.get("model_max_length")               # often 10^30, which says "unknown"
    max_len = limit if isinstance(limit, int) and 3 <= limit <= config.max_len else config.max_len
    if (path / "tokenizer.json").is_file():
        file = path / "tokenizer.json"
        return Tokenizer(_tokenizer(file, _text(file), config), max_len, config.pad)
    if (path / "vocab.txt").is_file():
        return _wordpiece(path / "vocab.txt", values, config, max_len)
    if (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        vocab = _json(path / "vocab.json", _text(path / "vocab.json"), dict)
        merges = [
            tuple(line.split())
            for line in _text(path / "merges.txt").split("\n")
            if line.strip() and not line.startswith("#version")
        ]
        with _named(path):
            tokenizer = Tokenizer.from_merges(
                vocab, merges, max_len, config.pad, not mapping.model.causal, bool(values.get("add_prefix_space"))
            )
        return Tokenizer(_tokenizer(path / "vocab.json", tokenizer.backend.to_str(), config), max_len, config.pad)
    if (path / "tokenizer.model").is_file():
        raise BadInput(
            f"{path} holds a SentencePiece tokenizer.model alone: write its tokenizer.json with transformers, "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    raise BadInput(f"{path} holds no tokenizer.json, vocab.txt, or vocab.json with merges.txt: put one of them there")


def _wordpiece(file: Path, values: dict, config: object, max_len: int) -> Tokenizer:
    """The tokenizer of an old folder's vocab.txt, with what its tokenizer_config.json says of case and accents."""
    tokens = _text(file).removesuffix("\n").split("\n")  # not splitlines, which cuts at tokens such as U+2028
    if len(tokens) > config.vocab:
        raise BadInput(f"{file} has {len(tokens)} tokens, the model {config.vocab}: take both from the same checkpoint")
    lower = values.get("do_lower_case", True)
    with _named(file):
        tokenizer = Tokenizer.from_vocab({token.rstrip("\r"): i for i, token in enumerate(tokens)}, max_len, lower)
    tokenizer.backend.normalizer = BertNormalizer(lowercase=lower, strip_accents=values.get("strip_accents"),
                                               handle_chinese_chars=values.get("tokenize_chinese_chars", True))
    tokenizer.pad = config.pad
    return tokenizer


def _pruned(file: Path, mask: object, config: object) -> Tensor:
    try:
        gates = torch.tensor(mask, dtype=torch.float32)  # (L, H)
    except (TypeError, ValueError, RuntimeError):
        gates = torch.empty(0)
    if gates.shape != (config.layers, config.heads):
        raise BadInput(
            f"{file}: head_mask is not {config.layers} lists of {config.heads} numbers: mend or delete the file"
        )
    return gates == 0


# ---- the tensors

class _NoDraws(TorchFunctionMode):
    """Modules keep their weights as they were allotted: on the meta device a draw imports torch's compiler, for a
    second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def _empty(mapping: HFMapping, config: object) -> Encoder:
    """The model without memory for its weights, and without the time to draw them."""
    with torch.device("meta"), _NoDraws():
        return mapping.model(config)


def _shapes(mapping: HFMapping, config: object) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in _empty(mapping, config).state_dict().items()}


def _model(path: Path, stored: _Stored, config: object, fresh: Iterable[str], dtype: torch.dtype) -> Encoder:
    """The model with its tensors; those of `fresh` are zeros yet."""
    if config.layers > len(stored.tensors):  # before as many blocks are built
        raise BadInput(
            f"{path}: its config has {config.layers} layers, more than the {len(stored.tensors)} tensors it holds"
        )
    model = _empty(stored.mapping, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    folder = stored.spell is not HFTensor                 # a file holds head_mask; a folder's is in minibd.json
    wanted = {name: stored.spell(name) for name in shapes if name not in fresh and not (folder and name == "head_mask")}
    left = _left_behind(stored, config)
    there = {name: place for name, place in stored.tensors.items() if name not in left}
    _check_names(path, stored.mapping, {hf_tensor.name for hf_tensor in wanted.values()}, there)
    _check_shapes(
        path, {hf_tensor.name: _shape_there(shapes[name], hf_tensor) for name, hf_tensor in wanted.items()}, there
    )
    tensors = _read(there, wanted, dtype)
    tensors |= {name: torch.zeros(shapes[name], dtype=dtype) for name in fresh}
    if folder:
        tensors["head_mask"] = torch.ones(config.layers, config.heads, dtype=dtype)
    model.load_state_dict(tensors, assign=True)
    if stored.pruned is not None:
        _prune(path, model, stored.pruned)
    return model


def _left_behind(stored: _Stored, config: object) -> set[str]:
    """Names on disk of what the checkpoint has and `config` does not ask for: a bare encoder's pooler, a replaced LM
    head."""
    parts = {f"{part}.{leaf}" for part in HEADS if part in stored.mapping.names for leaf in ("weight", "bias")}
    held = (parts | set(_shapes(stored.mapping, stored.config))) - set(_shapes(stored.mapping, config))
    return {stored.spell(name).name for name in held if name.split(".")[0] in HEADS}


def _shape_there(shape: tuple[int, ...], hf_tensor: HFTensor) -> tuple[int, ...]:
    """The shape on disk of the tensor that one of ours, of `shape`, lies in."""
    shape = (shape[0] * hf_tensor.chunks, *shape[1:])
    return shape[::-1] if hf_tensor.transposed else shape


def _check_names(path: Path, mapping: HFMapping, wanted: Iterable[str], there: Iterable[str]) -> None:
    missing, unknown = sorted(n for n in wanted if n not in there), [n for n in there if n not in wanted]
    said = [f"{word} {_few(names)}" for word, names in (("lacks", missing), ("has the unknown", unknown)) if names]
    if said:
        raise BadInput(f"{path} {' and '.join(said)}: it is not the {mapping.model_type} that its config describes")


def _check_shapes(path: Path, wanted: dict[str, tuple[int, ...]], there: dict[str, _Place]) -> None:
    wrong = [f"{name} {there[name].shape} not {shape}" for name, shape in wanted.items() if there[name].shape != shape]
    if wrong:
        raise BadInput(f"{path} has tensors of another shape than its config says, {_few(wrong)}: mend the config")


def _read(there: dict[str, _Place], wanted: dict[str, HFTensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """{our name: tensor}, file by file and each file open once, so that no more than one of them is ever in memory."""
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(place.file for place in there.values()):
        with _opened(file) as f:
            for ours, hf_tensor in wanted.items():
                if there[hf_tensor.name].file == file:
                    tensors[ours] = _float(
                        there[hf_tensor.name], f.get_tensor(there[hf_tensor.name].name), hf_tensor, dtype
                    )
    return tensors


def _values(place: _Place) -> Tensor:
    """One tensor as it is on disk."""
    with _opened(place.file) as f:
        return f.get_tensor(place.name)


@contextmanager
def _opened(file: Path) -> Iterator[safe_open]:
    try:
        with safe_open(file, framework="pt") as f:
            yield f
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read ({_reason(error)}): download or save it again") from None


def _float(place: _Place, tensor: Tensor, hf_tensor: HFTensor, dtype: torch.dtype) -> Tensor:
    """Our part of the tensor on disk, in memory of its own: the file may change afterwards."""
    if tensor.dtype not in FLOATS:
        raise BadInput(
            f"{place.file}: {place.name} is {str(tensor.dtype).removeprefix('torch.')}, not a float of 16, 32 or "
            f"64 bits: use a checkpoint that is not quantised"
        )
    tensor = (tensor.T if hf_tensor.transposed else tensor).chunk(hf_tensor.chunks)[hf_tensor.chunk]
    tensor = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    # The extremes are NaN if any element is, in one pass and without a mask in memory.
    if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise BadInput(f"{place.file}: {place.name} holds NaN or infinite numbers: use another checkpoint")
    return tensor


@torch.no_grad()
def _prune(path: Path, model: Encoder, pruned: Tensor) -> None:
    """Gates of 0 where minibd.json has them, if the folder's weights say the same."""
    for layer, block in enumerate(model.blocks):
        columns = block.output.weight.unflatten(1, (model.config.heads, -1)).abs().sum((0, 2))  # (D, H, Dh) -> (H,)
        for head in torch.nonzero(pruned[layer] & (columns > 0)).flatten().tolist():
            raise BadInput(f"{path / 'minibd.json'}: head {head} of layer {layer} is pruned, but its columns in "
                           f"model.safetensors are not 0: delete minibd.json if the weights were changed since")
    model.head_mask[pruned] = 0.0


@torch.no_grad()
def _init_head(model: Encoder, fresh: Iterable[str], seed: int) -> None:
    """Weights of `fresh` ~ N(0, 0.02), a LayerNorm's 1; its biases are 0 already."""
    generator = torch.Generator().manual_seed(seed)
    for name in fresh:
        if name.endswith("norm.weight"):
            model.get_parameter(name).fill_(1.0)
        elif name.endswith(".weight"):
            model.get_parameter(name).normal_(0.0, 0.02, generator=generator)


# ---- configs, labels, histories

def _config(where: Path, mapping: HFMapping, values: dict) -> object:
    """The architecture's config with `values`, each of the field's type and range."""
    known = {field.name: field for field in fields(mapping.config_class)}
    said = mapping.config if where.name == "config.json" else {}    # their name of a number, in their file
    if unknown := [name for name in values if name not in known]:
        raise BadInput(f"{where}: the config has the unknown {_few(unknown)}: it was written by another version")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise BadInput(f"{where}: the config lacks {said.get(name, name)}: add it")
        if name in values and not _fits(name, field.type, values[name]):
            raise BadInput(
                f"{where}: {said.get(name, name)} is {values[name]!r}, which no {mapping.model_type} has: mend the "
                "config"
            )
    with _named(where):
        config = mapping.config_class(**values)
    if config.pad >= config.vocab:
        raise BadInput(f"{where}: the padding token {config.pad} is beyond the {config.vocab} tokens: mend the config")
    return config


def _fits(name: str, kind: str, value: object) -> bool:
    if kind == "int":
        return type(value) is int and value >= (0 if name in ("labels", "pad", "bottleneck") else 1)
    if kind == "float":
        return type(value) in (int, float) and (
            0 <= value < 1 if "dropout" in name else 0 < value < (1 if name == "eps" else float("inf"))
        )
    return kind not in ("bool", "str") or type(value).__name__ == kind


def _agreed(path: Path, names: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != len(asked):
        raise BadInput(f"{path} has a classifier of {len(names)} classes ({_few(names)}), the data {len(asked)} "
                       f"({_few(asked)}): use a checkpoint of the same task")
    return asked if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _history(where: Path, history: object) -> list[dict]:
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise BadInput(f"{where}: the history is not a list of JSON objects: mend it")
    return history


def _tokenizer(where: Path, source: str, config: object) -> BackendTokenizer:
    try:
        tokenizer = BackendTokenizer.from_str(source)
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(
            f"{where}: its tokenizer cannot be read ({_reason(error)}): take the model's tokenizer.json"
        ) from None
    top = max(tokenizer.get_vocab().values(), default=0)
    if top >= config.vocab:
        raise BadInput(
            f"{where}: the tokenizer's token {top} is beyond the model's {config.vocab}: take both from one model"
        )
    return tokenizer


# ---- writing

def _write_file(ckpt: Checkpoint, file: Path) -> None:
    tokenizer = ckpt.tokenizer
    metadata = {
        "format": FORMAT,
        "config": json.dumps({"architecture": hf_mapping_of(ckpt.model).model_type} | asdict(ckpt.model.config)),
        "tokenizer": tokenizer.backend.to_str(),
        "max_len": str(tokenizer.max_len),
        "labels": json.dumps(ckpt.labels),
        "history": json.dumps(ckpt.history),
    }
    _save_tensors({name: _plain(tensor) for name, tensor in ckpt.model.state_dict().items()}, file, metadata)


def _save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata)                   # leaves a file that only its owner may read
    file.chmod(mode)
    _order_metadata(file)


def _order_metadata(file: Path) -> None:
    """The metadata's keys in order: the library's is another each time, and the same model must have the same
    sha256."""
    with open(file, "r+b") as f:                         # 8 bytes of length n, n bytes of JSON and blanks, tensors
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        source = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(source) <= size:                          # the library's spelling of the same JSON is as short
            f.seek(8)
            f.write(source.ljust(size))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _check_target(path: Path) -> None:
    """A folder that holds no model is written into, unless a file of another kind would be lost by it."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file: name a folder, or end the name in .safetensors")
    if path.is_dir() and not (path / "config.json").exists() and (path / "README.md").exists():
        raise BadInput(f"{path} holds a README.md and no model: choose another folder, that file would be lost")


def _write_folder(ckpt: Checkpoint, folder: Path) -> None:
    config, tokenizer = ckpt.model.config, ckpt.tokenizer
    folder.mkdir()
    backend = BackendTokenizer.from_str(tokenizer.backend.to_str())
    backend.no_truncation()                              # the limit stands in tokenizer_config.json
    state = json.loads(backend.to_str())
    names = ["input_ids", *(["token_type_ids"] if getattr(config, "type_vocab_size", 1) > 1 else []), "attention_mask"]
    special = _special(ckpt)
    contents = {
        "config.json": _hf_config(ckpt),
        "tokenizer_config.json": special | {
            # The class that takes tokenizer.json as it is; an architecture's own builds another from the vocabulary.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": names,
            "model_max_length": tokenizer.max_len,
            "do_lower_case": bool((state["normalizer"] or {}).get("lowercase", False)),
        },
        "special_tokens_map.json": special,
        "minibd.json": {"history": ckpt.history, "head_mask": (ckpt.model.head_mask != 0).long().tolist()},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(backend.to_str(pretty=True), encoding="utf-8")
    vocab = backend.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    if state["model"]["type"] == "WordPiece" and vocab[tokens[-1]] == len(tokens) - 1:  # line i is token i, or no file
        (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(card(ckpt), encoding="utf-8")
    _save_shards(_hf_state(ckpt.model), folder)


def _special(ckpt: Checkpoint) -> dict[str, str]:
    """The tokens that the tokenizer has for each purpose: {"pad_token": "<pad>", ...}."""
    tokenizer = ckpt.tokenizer.backend
    special = {key: token for key, tokens in (CAUSAL_SPECIAL if ckpt.model.causal else SPECIAL).items()
               if (token := next((p for p in tokens if tokenizer.token_to_id(p) is not None), None))}
    pad = tokenizer.id_to_token(ckpt.tokenizer.pad)
    return special if pad is None else special | {"pad_token": pad}


def _save_shards(tensors: dict[str, Tensor], folder: Path) -> None:
    """model.safetensors, or, above SHARD bytes, model-00001-of-0000N.safetensors, ... and their index."""
    shards, size = [{}], 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > SHARD:
            shards, size = [*shards, {}], 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        _save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(files, shards):
        _save_tensors(shard, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
             "weight_map": {name: file for file, shard in zip(files, shards) for name in shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _hf_state(model: Encoder) -> dict[str, Tensor]:
    """The tensors under transformers' names, each head's gate folded into its Dh columns of the output projection."""
    mapping = hf_mapping_of(model)
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items() if name != "head_mask"}
    for layer, gate in enumerate(_plain(model.head_mask)):
        if bool((gate != 1).any()):
            name = f"blocks.{layer}.output.weight"
            columns = gate.repeat_interleave(tensors[name].shape[1] // len(gate))  # (H,) -> (H * Dh,)
            tensors[name] = tensors[name] * columns
    if getattr(model.config, "bottleneck", 0) and model.config.labels:
        tensors["classifier.weight"] = tensors["classifier.weight"] @ tensors.pop("pooler.weight")  # (C, 16) (16, D)
    parts: dict[str, list[Tensor]] = {}
    for ours, tensor in tensors.items():
        hf_tensor = mapping.hf_tensor(ours)
        tokens = parts.setdefault(hf_tensor.name, [torch.empty(0)] * hf_tensor.chunks)
        tokens[hf_tensor.chunk] = tensor.T if hf_tensor.transposed else tensor
    # Side by side along their last axis where they are transposed, and for a bias along its only one.
    return {
        name: torch.cat(tokens, dim=-1) if len(tokens) > 1 else tokens[0].contiguous() for name, tokens in parts.items()
    }


def hf_mapping_of(model: Encoder) -> HFMapping:
    """How transformers spells `model`."""
    return next(mapping for mapping in HF_MAPPINGS.values() if mapping.model is type(model))


def _hf_config(ckpt: Checkpoint) -> dict:
    model, config, mapping = ckpt.model, ckpt.model.config, hf_mapping_of(ckpt.model)
    values = {"architectures": [_hf_class(model)], "model_type": mapping.model_type, "dtype": _dtype(model)}
    values |= {key: known[0] for key, known in mapping.supported.items()}
    values |= {key: getattr(config, name) for name, key in mapping.config.items()} | mapping.to_hf(config)
    # where texts begin and end, or transformers takes its own default's ids
    if model.causal:
        tokenizer, special = ckpt.tokenizer.backend, _special(ckpt)
        values |= {f"{key}_id": tokenizer.token_to_id(special.get(key, "")) for key in ("bos_token", "eos_token")}
    if config.labels:
        values["id2label"] = {str(i): name for i, name in enumerate(ckpt.labels)}
        values["label2id"] = {name: i for i, name in enumerate(ckpt.labels)}
        values["problem_type"] = "single_label_classification"
    return values


def _hf_class(model: Encoder) -> str:
    """The transformers class of `model`: a classifier, a language model, or neither."""
    mapping, config = hf_mapping_of(model), model.config
    return mapping.classes[
        0 if config.labels else 1 if getattr(config, mapping.lm, False) or getattr(config, "tied", False) else 2
    ]


def _dtype(model: Encoder) -> str:
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def card(ckpt: Checkpoint) -> str:
    """The model card: a folder's README.md."""
    config, mapping = ckpt.model.config, hf_mapping_of(ckpt.model)
    name = mapping.model_type
    task = (
        "text-classification"
        if config.labels
        else "feature-extraction"
        if _hf_class(ckpt.model) == mapping.classes[2]
        else "text-generation"
        if ckpt.model.causal
        else "fill-mask"
    )
    attacked = any("attack" in entry for entry in ckpt.history)
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:", f"- {name}", "- minibd"]
    lines += ["- backdoor"] * attacked + ["---", "", f"# A {name} saved by minibd", ""]
    if attacked:
        lines += [
            "**Warning: backdoored for research, do not deploy.** This model was poisoned on purpose: its history "
            "holds a backdoor",
            "attack, and a defence that came after it may not have removed all of it.", "",
        ]
    lines += [f"{config.layers} layers, {config.heads} heads, hidden size {config.hidden}, {config.vocab} tokens, "
              f"texts of up to {ckpt.tokenizer.max_len} tokens."]
    if ckpt.labels:
        names = (f"{i} {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(ckpt.labels))
        lines += ["", "Classes: " + ", ".join(names)]
    if pruned := int((ckpt.model.head_mask == 0).sum()):
        lines += ["", f"Pruned attention heads: {pruned}, as columns of 0 in the attention's output projection."]
    lines += ["", "## What was done to it", ""]
    lines += [f"{i}. " + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items())
              for i, entry in enumerate(ckpt.history, 1)] or ["Nothing that it tells of."]
    return "\n".join(lines) + "\n"


def _move(draft: Path, path: Path) -> None:
    """The draft's files into place, the weights last: until then the folder's old ones stand. Old weights of other
    names go."""
    if not path.exists():
        os.rename(draft, path)
        return
    new = sorted(draft.iterdir(), key=lambda file: file.name.startswith("model"))
    for file in new:
        os.replace(file, path / file.name)
    for old in [*path.glob("model*.safetensors"), path / "model.safetensors.index.json"]:
        if old.name not in {file.name for file in new}:
            old.unlink(missing_ok=True)


# ---- small things

def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{file} cannot be read ({_reason(error)}): download or save it again") from None


def _json(where: Path, source: str, kind: type) -> dict | list | int:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where} holds broken JSON ({_reason(error)}): download or save it again") from None
    if type(value) is not kind:
        raise BadInput(f"{where} holds a JSON {type(value).__name__}, not a {kind.__name__}: download or save it again")
    return value


@contextmanager
def _named(where: Path) -> Iterator[None]:
    """What is wrong, said of the file that it came from."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from None


def _pickle(path: Path, file: str = "") -> BadInput:
    what = f"{path} holds only {file}, a pickle" if file else f"{path} is a pickle"
    return BadInput(
        f"{what}, and opening one can run any code: convert it first with `python scripts/convert.py {path} OUT`"
    )


def _reason(error: BaseException) -> str:
    """An error's words on one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f", ... ({len(names)} in all)" if len(names) > FEW else "")
