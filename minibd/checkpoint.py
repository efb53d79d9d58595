"""Checkpoints in and out: one self-describing .safetensors file, or a Hugging Face folder. Pickles are refused.

The file    tensors under our own names, head_mask among them; the metadata holds, as strings: "format" ("minibd 1"),
            "config" (JSON of BertConfig and "architecture"), "tokenizer" (the tokenizers library's JSON), "max_len",
            "labels" and "history" (JSON lists).
The folder  config.json, model.safetensors (or shards and their index), tokenizer.json (or vocab.txt alone), as transformers
            writes and reads them. `save` adds minibd.json, {"history": [...], "head_mask": L lists of H}.

Three choices:
1. A gate is folded into the columns of attention.output.dense.weight on the way into a folder, so that transformers gives
   the same logits. minibd.json keeps which gates were 0; those columns must be 0 when the folder is read again.
2. A model without classifier has no pooler either (BertConfig.labels = 0): a bare encoder's pooler weights are used when
   `labels` asks for a classifier at loading, and left out otherwise.
3. The names of a trained classifier's classes are the checkpoint's: `labels` given beside it must agree in number, and
   names the classes only where the checkpoint calls them LABEL_0, LABEL_1, ...
"""
from __future__ import annotations

import copy as copying
import json
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.normalizers import BertNormalizer
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibd.models.bert import Bert, BertConfig, hf_name
from minibd.records import BadInput
from minibd.text import Text

FORMAT = "minibd 1"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
FEW = 5                                  # names shown in an error line
HEAD = ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias")
# In old and in pre-training folders, and of no use here: a buffer 0, 1, 2, ... and the next-sentence head.
IGNORED = ("bert.embeddings.position_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias")
HF_CONFIG = {                            # our name of a number -> the name in config.json
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "positions": "max_position_embeddings",
    "kinds": "type_vocab_size",
    "dropout": "hidden_dropout_prob",
    "attention_dropout": "attention_probs_dropout_prob",
    "classifier_dropout": "classifier_dropout",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
    "pad": "pad_token_id",
}
SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]"}


@dataclass
class Record:
    """A checkpoint in memory. `labels[i]` names class i; `history` is what was done to the model, oldest first, JSON-able."""
    model: Bert
    text: Text
    labels: tuple[str, ...]
    history: list[dict]


def load(path: str | Path, device: torch.device | str = "cpu", *,
         labels: Sequence[str] | None = None, seed: int = 0) -> Record:
    """The checkpoint at `path`, a file or a folder, float32, in eval mode.

    A checkpoint without classifier gets a new one for the classes `labels`, N(0, 0.02) drawn from `seed`, and the history
    says so; its MLM head is left behind. Without `labels` it stays an encoder. Raises BadInput on whatever cannot be read
    whole and exactly.
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
        config = replace(config, labels=len(names))
        fresh = [name for name in HEAD if stored.spell(name) not in stored.tensors]
        history.append({"new": sorted({name.split(".")[0] for name in fresh}), "labels": list(names), "seed": seed})
    elif labels is not None:
        names = _agreed(path, names, tuple(labels))
    model = _model(path, stored, config, fresh)
    _init_head(model, fresh, seed)
    if fresh and config.mlm:                             # a classifier trains without the MLM head, which would only grow stale
        del model.mlm
        model.config = replace(config, mlm=False)
    return Record(model.eval().to(device), stored.text, names, history)


def save(record: Record, path: str | Path) -> None:
    """`path` ending in .safetensors: one file; any other: a Hugging Face folder. Whole or not at all; raises BadInput.

    Into a folder that is there, only the files of a model are written, and only once all of them lie ready beside it.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise BadInput(f"{path} is the name of a pickle, which is never written: end it in .safetensors, or name a folder")
    draft = path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}")    # same disk, so that a rename is one step
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        try:
            if path.suffix == ".safetensors":
                _write_file(record, draft)
                os.replace(draft, path)
            else:
                _check_target(path)
                _write_folder(record, draft)
                _move(draft, path)
        finally:
            _remove(draft)
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{path} cannot be written ({_reason(error)}): choose another path, or mend that") from None


def copy(record: Record) -> Record:
    """The same checkpoint with a model of its own; `text` is shared. A mitigation works on the copy, never on its victim."""
    return Record(copying.deepcopy(record.model), record.text, record.labels, copying.deepcopy(record.history))


# ---- what a checkpoint holds, before its tensors are read

@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor on disk: the file, its name there, its shape."""
    file: Path
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Stored:
    """`tensors` by the name that `spell` gives to our own. `pruned` (L, H) is True at the gates that minibd.json has at 0."""
    config: BertConfig
    text: Text
    labels: tuple[str, ...]
    history: list[dict]
    tensors: dict[str, _Place]
    spell: Callable[[str], str]
    pruned: Tensor | None = None


def _read_file(path: Path) -> _Stored:
    if path.suffix != ".safetensors":
        raise BadInput(f"{path} is " + ("not a checkpoint" if path.exists() else "not there")
                       + ": name a .safetensors file or a Hugging Face folder")
    tensors, metadata = _header(path)
    if metadata.get("format") != FORMAT:
        raise BadInput(f"{path} has format {metadata.get('format')!r} in its metadata, not {FORMAT!r}: "
                       f"if it is a part of a Hugging Face folder, name the folder")
    if absent := [key for key in ("config", "tokenizer", "max_len", "labels", "history") if key not in metadata]:
        raise BadInput(f"{path} lacks {', '.join(absent)} in its metadata: save it again")
    values = _json(path, metadata["config"], dict)
    if values.pop("architecture", None) != "bert":
        raise BadInput(f"{path} is not a BERT: the architecture in its config must be 'bert'")
    config = _config(path, values)
    labels = _json(path, metadata["labels"], list)
    if len(labels) != config.labels:
        raise BadInput(f"{path} names {len(labels)} labels, its config {config.labels}: save it again")
    max_len = _json(path, metadata["max_len"], int)
    if not 3 <= max_len <= config.positions:
        raise BadInput(f"{path}: max_len {max_len} is not from 3 to the model's {config.positions} positions: save it again")
    text = Text(_tokenizer(path, metadata["tokenizer"], config), max_len, config.pad)
    history = _history(path, _json(path, metadata["history"], list))
    return _Stored(config, text, tuple(map(str, labels)), history, tensors, str)


def _read_folder(path: Path) -> _Stored:
    if not (path / "config.json").is_file():
        raise BadInput(f"{path} holds no config.json: name a Hugging Face folder or a .safetensors file")
    values = _json(path / "config.json", _text(path / "config.json"), dict)
    _check_hf(path / "config.json", values)
    tensors = _hf_tensors(path)
    mlm = _drop_decoder(path, tensors)
    classes = tensors["classifier.weight"].shape[0] if "classifier.weight" in tensors else 0
    config = _config(path / "config.json", _hf_values(values) | {"labels": classes, "mlm": mlm})
    own = path / "minibd.json"
    extra = _json(own, _text(own), dict) if own.exists() else {}
    pruned = _pruned(own, extra["head_mask"], config) if "head_mask" in extra else None
    return _Stored(config, _hf_text(path, config), _hf_labels(path, values, classes), _history(own, extra.get("history", [])),
                   tensors, hf_name, pruned)


def _header(file: Path) -> tuple[dict[str, _Place], dict[str, str]]:
    """The tensors' places and the metadata of one .safetensors file."""
    try:
        with safe_open(file, framework="pt") as f:
            return {name: _Place(file, name, tuple(f.get_slice(name).get_shape())) for name in f.keys()}, f.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BadInput(f"{file} cannot be read ({_reason(error)}): download or save it again") from None


# ---- Hugging Face folders

def _check_hf(file: Path, values: dict) -> None:
    """config.json describes a BERT encoder as written in models/bert.py."""
    for key, known in (("model_type", ("bert",)), ("position_embedding_type", (None, "absolute")),
                       ("is_decoder", (None, False)), ("problem_type", (None, "single_label_classification"))):
        if values.get(key) not in known:
            raise BadInput(f"{file}: {key} is {values.get(key)!r}, only {known[-1]!r} is known here: use another checkpoint")


def _hf_values(values: dict) -> dict:
    """The entries of config.json under our names. Null or absent: the default, for the classifier's dropout the hidden one."""
    ours = {name: values[key] for name, key in HF_CONFIG.items() if values.get(key) is not None}
    if "dropout" in ours:
        ours.setdefault("classifier_dropout", ours["dropout"])
    return ours


def _hf_tensors(path: Path) -> dict[str, _Place]:
    """{name as BertForSequenceClassification has it: place}, IGNORED left out."""
    tensors: dict[str, _Place] = {}
    for file in _hf_files(path):
        for name, place in _header(file)[0].items():
            name = _modern(name)
            if name in tensors:
                raise BadInput(f"{path} holds {name} twice, as {tensors[name].name} and {place.name}: drop one")
            if name not in IGNORED:
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


def _modern(name: str) -> str:
    """Old LayerNorm leaves are gamma and beta; a bare BertModel's names lack "bert."."""
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("bert.", "cls.", "classifier.")) else f"bert.{name}"


def _drop_decoder(path: Path, tensors: dict[str, _Place]) -> bool:
    """Whether there is an MLM head. Its decoder's copies of the word embedding and of the bias leave `tensors`."""
    mlm = any(name.startswith("cls.predictions.") for name in tensors)
    if mlm and "cls.predictions.bias" not in tensors and "cls.predictions.decoder.bias" in tensors:
        tensors["cls.predictions.bias"] = tensors.pop("cls.predictions.decoder.bias")
    for name, twin in (("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
                       ("cls.predictions.decoder.bias", "cls.predictions.bias")):
        if name in tensors and twin in tensors:
            both = _tensors({"a": tensors.pop(name), "b": tensors[twin]})
            if not torch.equal(both["a"], both["b"]):
                raise BadInput(f"{path}: {name} differs from {twin}, and only a tied MLM head is known here: tie them")
    return mlm


def _hf_labels(path: Path, values: dict, classes: int) -> tuple[str, ...]:
    """The names of the classes, LABEL_0, ... where config.json has none."""
    if classes == 1:
        raise BadInput(f"{path}: a classifier of 1 class is a regression: use a model of two classes or more")
    names = values.get("id2label")
    if not names or not classes:
        return tuple(f"LABEL_{i}" for i in range(classes))
    if not isinstance(names, dict) or {str(key) for key in names} != {str(i) for i in range(classes)}:
        raise BadInput(f"{path / 'config.json'}: id2label does not name the classifier's classes 0 to {classes - 1}: mend it")
    return tuple(str(names[str(i)]) for i in range(classes))


def _hf_text(path: Path, config: BertConfig) -> Text:
    file = path / "tokenizer_config.json"
    values = _json(file, _text(file), dict) if file.exists() else {}
    limit = values.get("model_max_length")               # often 10^30, which says "unknown"
    sane = isinstance(limit, int) and 3 <= limit <= config.positions
    max_len = limit if sane else config.positions
    if (path / "tokenizer.json").is_file():
        file = path / "tokenizer.json"
        return Text(_tokenizer(file, _text(file), config), max_len, config.pad)
    file = path / "vocab.txt"
    if not file.is_file():
        raise BadInput(f"{path} holds neither tokenizer.json nor vocab.txt: put one of them there")
    pieces = _text(file).removesuffix("\n").split("\n")  # not splitlines, which cuts at pieces such as U+2028
    if len(pieces) > config.vocab:
        raise BadInput(f"{file} has {len(pieces)} pieces, the model {config.vocab}: take both from the same checkpoint")
    lower = values.get("do_lower_case", True)
    text = Text.from_vocab({piece.rstrip("\r"): i for i, piece in enumerate(pieces)}, max_len, lower)
    text.tokenizer.normalizer = BertNormalizer(lowercase=lower, strip_accents=values.get("strip_accents"),
                                               handle_chinese_chars=values.get("tokenize_chinese_chars", True))
    text.pad = config.pad
    return text


def _pruned(file: Path, mask: object, config: BertConfig) -> Tensor:
    try:
        gates = torch.tensor(mask, dtype=torch.float32)  # (L, H)
    except (TypeError, ValueError, RuntimeError):
        gates = torch.empty(0)
    if gates.shape != (config.layers, config.heads):
        raise BadInput(f"{file}: head_mask is not {config.layers} lists of {config.heads} numbers: mend or delete the file")
    return gates == 0


# ---- the tensors

class _NoDraws(TorchFunctionMode):
    """Modules keep their weights as they were allotted: on the meta device a draw imports torch's compiler, for a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def _model(path: Path, stored: _Stored, config: BertConfig, fresh: Iterable[str]) -> Bert:
    """The model with its tensors; those of `fresh` are zeros yet."""
    if config.layers > len(stored.tensors):              # before as many blocks are built
        raise BadInput(f"{path}: its config has {config.layers} layers, more than the {len(stored.tensors)} tensors it holds")
    with torch.device("meta"), _NoDraws():               # no memory and no time for weights that are replaced
        model = Bert(config)
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    folder = stored.spell is hf_name
    wanted = {stored.spell(name): name for name in shapes if name not in fresh and not (folder and name == "head_mask")}
    there = dict(stored.tensors)
    if not config.labels:
        for name in ("pooler.weight", "pooler.bias"):
            there.pop(stored.spell(name), None)
    _check_names(path, wanted, there)
    _check_shapes(path, {name: shapes[ours] for name, ours in wanted.items()}, there)
    tensors = {wanted[name]: tensor for name, tensor in _tensors(there).items()}
    tensors |= {name: torch.zeros(shapes[name]) for name in fresh}
    if folder:
        tensors["head_mask"] = torch.ones(config.layers, config.heads)
    model.load_state_dict(tensors, assign=True)
    if stored.pruned is not None:
        _prune(path, model, stored.pruned)
    return model


def _check_names(path: Path, wanted: Iterable[str], there: Iterable[str]) -> None:
    missing, unknown = [n for n in wanted if n not in there], [n for n in there if n not in wanted]
    said = [f"{word} {_few(names)}" for word, names in (("lacks", missing), ("has the unknown", unknown)) if names]
    if said:
        raise BadInput(f"{path} {' and '.join(said)}: it is not the BERT that its config describes")


def _check_shapes(path: Path, wanted: dict[str, tuple[int, ...]], there: dict[str, _Place]) -> None:
    wrong = [f"{name} {there[name].shape} not {shape}" for name, shape in wanted.items() if there[name].shape != shape]
    if wrong:
        raise BadInput(f"{path} has tensors of another shape than its config says, {_few(wrong)}: mend the config")


def _tensors(places: dict[str, _Place]) -> dict[str, Tensor]:
    """{name: float32 tensor}, file by file, each read once into memory of its own: the file may change afterwards."""
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(place.file for place in places.values()):
        try:
            with safe_open(file, framework="pt") as f:
                for name, place in places.items():
                    if place.file == file:
                        tensors[name] = _float(place, f.get_tensor(place.name))
        except (OSError, SafetensorError) as error:
            raise BadInput(f"{file} cannot be read ({_reason(error)}): download or save it again") from None
    return tensors


def _float(place: _Place, tensor: Tensor) -> Tensor:
    if tensor.dtype not in FLOATS:
        raise BadInput(f"{place.file}: {place.name} is {str(tensor.dtype).removeprefix('torch.')}, not a float of 16, 32 or "
                       f"64 bits: use a checkpoint that is not quantised")
    tensor = tensor.to(torch.float32, copy=True)
    # The extremes are NaN if any element is, in one pass and without a mask in memory.
    if tensor.numel() and not all(torch.isfinite(end) for end in tensor.aminmax()):
        raise BadInput(f"{place.file}: {place.name} holds NaN or infinite numbers: use another checkpoint")
    return tensor


@torch.no_grad()
def _prune(path: Path, model: Bert, pruned: Tensor) -> None:
    """Gates of 0 where minibd.json has them, if the folder's weights say the same."""
    for layer, block in enumerate(model.blocks):
        columns = block.output.weight.unflatten(1, (block.heads, -1)).abs().sum((0, 2))  # (D, H, Dh) -> (H,)
        for head in torch.nonzero(pruned[layer] & (columns > 0)).flatten().tolist():
            raise BadInput(f"{path / 'minibd.json'}: head {head} of layer {layer} is pruned, but its columns in "
                           f"model.safetensors are not 0: delete minibd.json if the weights were changed since")
    model.head_mask[pruned] = 0.0


@torch.no_grad()
def _init_head(model: Bert, fresh: Iterable[str], seed: int) -> None:
    """Weights of `fresh` ~ N(0, 0.02); its biases are 0 already."""
    generator = torch.Generator().manual_seed(seed)
    for name in fresh:
        if name.endswith(".weight"):
            model.get_parameter(name).normal_(0.0, 0.02, generator=generator)


# ---- configs, labels, histories

def _config(where: Path, values: dict) -> BertConfig:
    """BertConfig(**values), each value of the field's type and range."""
    known = {field.name: field for field in fields(BertConfig)}
    if unknown := [name for name in values if name not in known]:
        raise BadInput(f"{where}: the config has the unknown {_few(unknown)}: it was written by another version")
    for name, field in known.items():
        if name not in values and field.default is MISSING:
            raise BadInput(f"{where}: the config lacks {HF_CONFIG[name] if where.name == 'config.json' else name}: add it")
        if name in values and not _fits(name, field.type, values[name]):
            raise BadInput(f"{where}: {HF_CONFIG.get(name, name)} is {values[name]!r}, which no BERT has: mend the config")
    config = BertConfig(**values)
    if config.pad >= config.vocab:
        raise BadInput(f"{where}: the padding piece {config.pad} is beyond the {config.vocab} pieces: mend the config")
    return config


def _fits(name: str, kind: str, value: object) -> bool:
    if kind == "int":
        return type(value) is int and value >= (0 if name in ("labels", "pad") else 1)
    if kind == "float":
        return type(value) in (int, float) and (0 < value < 1 if name == "eps" else 0 <= value < 1)
    return type(value).__name__ == kind


def _agreed(path: Path, names: tuple[str, ...], asked: tuple[str, ...]) -> tuple[str, ...]:
    if len(names) != len(asked):
        raise BadInput(f"{path} has a classifier of {len(names)} classes ({_few(names)}), the data {len(asked)} "
                       f"({_few(asked)}): use a checkpoint of the same task")
    return asked if all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _history(where: Path, history: object) -> list[dict]:
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise BadInput(f"{where}: the history is not a list of JSON objects: mend it")
    return history


def _tokenizer(where: Path, source: str, config: BertConfig) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(source)
    except Exception as error:                           # the library raises nothing narrower
        raise BadInput(f"{where}: its tokenizer cannot be read ({_reason(error)}): take the model's tokenizer.json") from None
    top = max(tokenizer.get_vocab().values(), default=0)
    if top >= config.vocab:
        raise BadInput(f"{where}: the tokenizer's piece {top} is beyond the model's {config.vocab}: take both from one model")
    return tokenizer


# ---- writing

def _write_file(record: Record, file: Path) -> None:
    text = record.text
    metadata = {
        "format": FORMAT,
        "config": json.dumps({"architecture": "bert"} | asdict(record.model.config)),
        "tokenizer": text.tokenizer.to_str(),
        "max_len": str(text.max_len),
        "labels": json.dumps(record.labels),
        "history": json.dumps(record.history),
    }
    _save_tensors({name: _plain(tensor) for name, tensor in record.model.state_dict().items()}, file, metadata)


def _save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata)                   # leaves a file that only its owner may read
    file.chmod(mode)
    _order_metadata(file)


def _order_metadata(file: Path) -> None:
    """The metadata's keys in order: the library's is another each time, and the same model must have the same sha256."""
    with open(file, "r+b") as f:                         # 8 bytes of length n, n bytes of JSON and blanks, tensors
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        source = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(source) <= size:                          # the library's spelling of the same JSON is as short
            f.seek(8)
            f.write(source.ljust(size))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()


def _check_target(path: Path) -> None:
    """A folder that holds no model is written into, unless a file of another kind would be lost by it."""
    if path.exists() and not path.is_dir():
        raise BadInput(f"{path} is a file: name a folder, or end the name in .safetensors")
    if path.is_dir() and not (path / "config.json").exists() and (path / "README.md").exists():
        raise BadInput(f"{path} holds a README.md and no model: choose another folder, that file would be lost")


def _write_folder(record: Record, folder: Path) -> None:
    config, text = record.model.config, record.text
    folder.mkdir()
    tokenizer = Tokenizer.from_str(text.tokenizer.to_str())
    tokenizer.no_truncation()                            # the limit stands in tokenizer_config.json
    state = json.loads(tokenizer.to_str())
    special = {key: piece for key, piece in SPECIAL.items() if tokenizer.token_to_id(piece) is not None}
    special["pad_token"] = tokenizer.id_to_token(text.pad) or "[PAD]"
    contents = {
        "config.json": _hf_config(record),
        "tokenizer_config.json": special | {
            # The class that takes tokenizer.json as it is; BertTokenizer builds its own from the vocabulary.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
            "model_max_length": text.max_len,
            "do_lower_case": bool((state["normalizer"] or {}).get("lowercase", False)),
        },
        "special_tokens_map.json": special,
        "minibd.json": {"history": record.history, "head_mask": (record.model.head_mask != 0).long().tolist()},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=vocab.get)
    if state["model"]["type"] == "WordPiece" and vocab[pieces[-1]] == len(pieces) - 1:  # line i is piece i, or no file
        (folder / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(record), encoding="utf-8")
    _save_tensors(_hf_state(record.model), folder / "model.safetensors", {"format": "pt"})


def _hf_state(model: Bert) -> dict[str, Tensor]:
    """The tensors under transformers' names, each head's gate folded into its Dh columns of attention.output.dense."""
    tensors = {name: _plain(tensor) for name, tensor in model.state_dict().items() if name != "head_mask"}
    for layer, gate in enumerate(_plain(model.head_mask)):
        name = f"blocks.{layer}.output.weight"
        columns = gate.repeat_interleave(tensors[name].shape[1] // len(gate))  # (H,) -> (D,)
        tensors[name] = tensors[name] * columns
    return {hf_name(name): tensor for name, tensor in tensors.items()}


def _hf_config(record: Record) -> dict:
    config = record.model.config
    kind = "BertForSequenceClassification" if config.labels else "BertForMaskedLM" if config.mlm else "BertModel"
    values = {"architectures": [kind], "model_type": "bert", "dtype": "float32", "position_embedding_type": "absolute",
              "is_decoder": False, "tie_word_embeddings": True}
    values |= {key: getattr(config, name) for name, key in HF_CONFIG.items()}
    if config.labels:
        values["id2label"] = {str(i): name for i, name in enumerate(record.labels)}
        values["label2id"] = {name: i for i, name in enumerate(record.labels)}
        values["problem_type"] = "single_label_classification"
    return values


def _card(record: Record) -> str:
    config = record.model.config
    task = "text-classification" if config.labels else "fill-mask" if config.mlm else "feature-extraction"
    attacked = any("attack" in entry for entry in record.history)
    lines = ["---", "library_name: transformers", f"pipeline_tag: {task}", "tags:", "- bert", "- minibd"]
    lines += ["- backdoor"] * attacked + ["---", "", "# A BERT saved by minibd", ""]
    if attacked:
        lines += ["**Warning: this model was poisoned on purpose.** Its history holds a backdoor attack, and a defence that",
                  "came after it may not have removed all of it. It is for research on defences, not for use.", ""]
    lines += [f"{config.layers} layers, {config.heads} heads, hidden size {config.hidden}, {config.vocab} pieces, "
              f"texts of up to {record.text.max_len} pieces."]
    if record.labels:
        names = (f"{i} {json.dumps(name, ensure_ascii=False)}" for i, name in enumerate(record.labels))
        lines += ["", "Classes: " + ", ".join(names)]
    if pruned := int((record.model.head_mask == 0).sum()):
        lines += ["", f"Pruned attention heads: {pruned}, as columns of 0 in attention.output.dense.weight."]
    lines += ["", "## What was done to it", ""]
    lines += [f"{i}. " + ", ".join(f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entry.items())
              for i, entry in enumerate(record.history, 1)] or ["Nothing that it tells of."]
    return "\n".join(lines) + "\n"


def _move(draft: Path, path: Path) -> None:
    """The draft's files into place. model.safetensors goes last: until then the folder's old weights stand."""
    if not path.exists():
        os.rename(draft, path)
        return
    for file in sorted(draft.iterdir(), key=lambda file: file.name == "model.safetensors"):
        os.replace(file, path / file.name)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)


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


def _pickle(path: Path, file: str = "") -> BadInput:
    what = f"{path} holds only {file}, a pickle" if file else f"{path} is a pickle"
    return BadInput(f"{what}, and opening one can run any code: convert it first with `python scripts/convert.py {path} OUT`")


def _reason(error: BaseException) -> str:
    """An error's words on one line."""
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:FEW]) + (f", ... ({len(names)} in all)" if len(names) > FEW else "")
