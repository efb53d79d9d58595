"""What is found in place of a model.safetensors: pickles, adapters, names with a training wrapper's prefix; and the
command that helps. Nothing here opens a pickle."""
from __future__ import annotations

import json
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from minibd.lines import listed, shown, visible
from minibd.models.encoder import HFMapping
from minibd.records import BadInput
from minibd.regular import read_regular

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
OTHERS = (".safetensors", ".h5", ".msgpack", ".onnx", ".gguf")  # weights that are not read
# What trainers leave beside a model, and is none.
NO_WEIGHTS = re.compile(r"(training_args|optimizer|scheduler|scaler|sampler|rng_state|random_states|adapter_model|"
                        r"pytorch_adapter)[\w.-]*")
SMALL = 1 << 20                           # bytes of an adapter_config.json
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", "pytorch_adapter.bin")


def command(path: Path, strip: Iterable[str] = ()) -> str:
    """The command that converts `path`; the script's name where its words hold what ends a command in a message."""
    prefixes = "".join(f" --strip {shlex.quote(prefix)}" for prefix in strip)
    words = f"python scripts/convert.py {shlex.quote(str(path))} OUT{prefixes}"
    return f"`{words}`" if "`" not in words else "scripts/convert.py"


def pickle_error(path: Path, file: str = "") -> BadInput:
    """The refusal of a pickle, `path` or the only weights of the folder `path`."""
    what = f"{path} holds only {file}, a pickle" if file else f"{path} is a pickle"
    if not file and not (path.parent / "config.json").is_file():
        return BadInput(f"{what}, which can run any code: put its model's config.json and tokenizer beside it, then "
                        f"run {command(path)}")
    return BadInput(f"{what}, which can run any code: convert it first with {command(path)}")


def pickled_weights(folder: Path) -> list[Path]:
    """The pickles that hold the folder's model: pytorch_model.bin, its shards, or the only pickle there that can be
    one. Raises BadInput where several could, or a shard is missing."""
    if (folder / "pytorch_model.bin").is_file():
        return [folder / "pytorch_model.bin"]
    if shards := sorted(folder.glob("pytorch_model-*-of-*.bin")):
        wanted = _shard_names(shards[0].name)
        if missing := sorted(wanted - {file.name for file in shards}):
            raise BadInput(f"{folder} lacks {missing[0]}, one of {len(wanted)} shards: download it again")
        return [file for file in shards if file.name in wanted]
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICKLES and file.is_file()
                   and not NO_WEIGHTS.fullmatch(file.name))
    if len(found) > 1:
        raise BadInput(f"{folder} holds {len(found)} pickles, {_names(found)}, and no model.safetensors: convert the "
                       f"one that you mean, as with {command(found[0])}")
    return found


def _shard_names(name: str) -> set[str]:
    """The names of all shards that belong to one of them, none where that is no shard's name."""
    match = re.fullmatch(r"(.*)-\d+-of-(\d+)\.bin", name)
    if match is None:
        return set()
    start, count = match.groups()
    return {f"{start}-{i + 1:0{len(count)}}-of-{count}.bin" for i in range(int(count))}


def no_weights(folder: Path) -> BadInput:
    """The refusal of a folder without a model.safetensors and without a pickle in its place."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in OTHERS)
    if not found:
        return BadInput(f"{folder} holds no model.safetensors: put it there, or the shards with "
                        f"model.safetensors.index.json")
    fix = "rename the one that you mean" if found[0].suffix == ".safetensors" else "save it as one with transformers"
    return BadInput(f"{folder} holds no model.safetensors, only {_names(found)}: {fix}")


def no_config(folder: Path) -> BadInput:
    """The refusal of a folder without a config.json."""
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() in (*PICKLES, *OTHERS)
                   and not NO_WEIGHTS.fullmatch(file.name))
    if not found:
        return BadInput(f"{folder} holds no config.json: name a Hugging Face folder or a .safetensors file")
    return BadInput(f"{folder} holds no config.json: put that of the model from which {_names(found)} was trained "
                    f"there, and its tokenizer")


def _names(files: list[Path]) -> str:
    return listed(file.name for file in files)


# ---- adapters

def check_no_adapter(folder: Path) -> None:
    """Raises BadInput where the folder, or one in it, holds an adapter, which transformers puts on the weights."""
    for place in (folder, *sorted(place for place in folder.iterdir() if os.path.isdir(place))):
        # os.path, which says no where a folder may not be read
        if found := next((place / name for name in ADAPTERS if os.path.isfile(place / name)), None):
            raise adapter_error(found, place, (folder / "config.json").is_file())


def adapter_error(file: Path, folder: Path, is_beside: bool = False) -> BadInput:
    """The refusal of an adapter, of which `file` is a part."""
    what = "is an adapter beside the weights, and what it changes would not be seen" if is_beside else (
        f"is an adapter alone{_base_of(folder)}"
    )
    return BadInput(f"{file} {what}: merge it first, with peft: merge_and_unload(), then save_pretrained(FOLDER)")


def _base_of(folder: Path) -> str:
    """, made for the model NAME: as adapter_config.json has it."""
    try:
        name = json.loads(read_regular(folder / "adapter_config.json", SMALL))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return f" for {shown(name)}" if name else ""


# ---- prefixes

def wrapper_prefix(mapping: HFMapping, names: Iterable[str]) -> str:
    """What a training wrapper put before transformers' names, "module." or "model.", or "": the prefix behind which
    most of `names` are the architecture's."""
    known = "|".join(re.escape(name).replace(r"\{i\}", r"\d+") for theirs in mapping.names.values()
                     for name in (theirs, theirs.removeprefix(mapping.prefix)))
    own, found = re.compile(rf"(?:{known})(?:\.\w+)?"), Counter()
    for name in names:
        for cut in (0, *(i + 1 for i, letter in enumerate(name) if letter == ".")):
            found[name[:cut]] += bool(own.fullmatch(name[cut:]))
    return max(found, key=lambda prefix: (found[prefix], -len(prefix)), default="")


def prefix_error(path: Path, prefix: str) -> BadInput:
    return BadInput(f"{path}: its tensors' names begin with {shown(prefix)}: take that away with "
                    f"{command(path, [prefix])}")


def stripped(names: Iterable[str], prefixes: Iterable[str]) -> dict[str, str]:
    """{name: name without the prefixes}, each taken away once, in their order. Raises BadInput."""
    new = {name: name for name in names}
    for prefix in prefixes:
        prefix = prefix.rstrip(".") + "."
        if not any(name.startswith(prefix) for name in new.values()):
            raise BadInput(f"--strip {visible(prefix)}: no tensor's name begins so, the first is "
                           f"{shown(next(iter(new.values()), ''))}: correct the prefix or leave it out")
        new = {name: short.removeprefix(prefix) for name, short in new.items()}
    if len(set(new.values())) < len(new):
        twice = next(name for name, count in Counter(new.values()).items() if count > 1)
        raise BadInput(f"--strip leaves two tensors of the name {shown(twice)}: leave the last prefix out")
    return new
