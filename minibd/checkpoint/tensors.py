"""The weights of a checkpoint: disk -> model, each tensor straight into memory of its own and its final type; back.

A model is built on the meta device, without memory for its weights, and takes the tensors that were read.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from minibd.checkpoint.header import Header, StoredTensor, hf_mapping_of, opened
from minibd.lines import listed
from minibd.models.encoder import Encoder, HFMapping, HFTensor
from minibd.records import BadInput

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
LESS = "use a machine with more, or a smaller checkpoint"
HEADS = ("pooler", "classifier", "mlm", "lm")   # parts that a model may lack, or have only for another purpose


# ---- models without weights

class _NoDraws(TorchFunctionMode):
    """torch.nn.init does nothing: on the meta device a draw imports torch's compiler, which takes a second."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return None if getattr(func, "__module__", "") == "torch.nn.init" else func(*args, **(kwargs or {}))


def empty_model(mapping: HFMapping, config: object) -> Encoder:
    """The model without memory for its weights, and without the time to draw them."""
    with torch.device("meta"), _NoDraws():
        return mapping.model(config)


def shapes_of(mapping: HFMapping, config: object) -> dict[str, tuple[int, ...]]:
    """{minibd's name: shape} of every tensor of the model."""
    return {name: tuple(tensor.shape) for name, tensor in empty_model(mapping, config).state_dict().items()}


def check_plain(model: Encoder, why: str) -> None:
    """Raises BadInput on weights that a checkpoint would lose: those that a method added to the architecture's."""
    if strangers := sorted(model.state_dict().keys() ^ shapes_of(hf_mapping_of(model), model.config).keys()):
        raise BadInput(
            f"{why}, and this model has others put in or missing ({strangers[0]}): merge low-rank layers first; a "
            f"model with adapters or a prefix cannot be saved, its scores are the result"
        )


def is_finite(tensor: Tensor) -> bool:
    """No NaN and no infinity: the extremes are NaN if any element is, in one pass and without a mask in memory."""
    return not tensor.numel() or all(bool(torch.isfinite(extreme)) for extreme in tensor.aminmax())


def check_finite(model: Encoder, why: str) -> None:
    """Raises BadInput, naming the first tensor that holds NaN or infinite numbers."""
    for name, tensor in model.state_dict().items():
        if not is_finite(tensor.detach()):
            raise BadInput(f"{why}: {name} holds NaN or infinite numbers, so that its training diverged: "
                           f"lower the learning rate")


@torch.no_grad()
def init_head(model: Encoder, new: Iterable[str], seed: int) -> None:
    """Weights of `new` ~ N(0, 0.02), a LayerNorm's 1; its biases are 0 already."""
    generator = torch.Generator().manual_seed(seed)
    for name in new:
        if name.endswith("norm.weight"):
            model.get_parameter(name).fill_(1.0)
        elif name.endswith(".weight"):
            model.get_parameter(name).normal_(0.0, 0.02, generator=generator)


# ---- reading

def build_model(header: Header, config: object, new: Iterable[str], dtype: torch.dtype) -> Encoder:
    """The model of `config` with the tensors of `header`; those of `new` are zeros. Raises BadInput."""
    path = header.path
    model = empty_model(header.mapping, config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # a file holds head_mask; a folder's is in minibd.json
    read = [name for name in shapes if name not in new and not (header.is_folder and name == "head_mask")]
    wanted = {name: header.hf_tensor(name) for name in read}
    unused = _unused(header, config)
    stored = {name: tensor for name, tensor in header.tensors.items() if name not in unused}
    _check_names(path, header.mapping, {hf_tensor.name for hf_tensor in wanted.values()}, stored)
    stored_shapes = {hf_tensor.name: _stored_shape(shapes[name], hf_tensor) for name, hf_tensor in wanted.items()}
    _check_shapes(path, stored_shapes, stored)
    _check_memory(path, sum(prod(shape) for shape in shapes.values()) * dtype.itemsize)
    try:
        tensors = _read(stored, wanted, dtype)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        raise BadInput(f"{path}: its weights do not fit the memory that is left here: {LESS}") from None
    tensors |= {name: torch.zeros(shapes[name], dtype=dtype) for name in new}
    if header.is_folder:
        tensors["head_mask"] = torch.ones(config.layers, config.heads, dtype=dtype)
    model.load_state_dict(tensors, assign=True)
    if header.pruned is not None:
        _prune(path, model, header.pruned)
    return model


def _check_memory(path: Path, needed: int) -> None:
    """Raises BadInput where the weights, `needed` bytes, are more than the memory that is free, on Linux."""
    try:
        found = re.search(r"MemAvailable: *([0-9]+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return
    if found and needed > (free := 1024 * int(found[1])):
        raise BadInput(f"{path}: its weights take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free: "
                       f"{LESS}")


def _unused(header: Header, config: object) -> set[str]:
    """Names on disk of what the checkpoint has and `config` does not ask for: a bare encoder's pooler, a replaced LM
    head."""
    mapping = header.mapping
    parts = {f"{part}.{leaf}" for part in HEADS if part in mapping.names for leaf in ("weight", "bias")}
    surplus = (parts | set(shapes_of(mapping, header.config))) - set(shapes_of(mapping, config))
    return {header.hf_tensor(name).name for name in surplus if name.split(".")[0] in HEADS}


def _stored_shape(shape: tuple[int, ...], hf_tensor: HFTensor) -> tuple[int, ...]:
    """The shape on disk of the tensor that one of minibd's, of `shape`, is a part of."""
    shape = (shape[0] * hf_tensor.chunks, *shape[1:])
    return shape[::-1] if hf_tensor.transposed else shape


def _check_names(path: Path, mapping: HFMapping, wanted: Iterable[str], stored: Iterable[str]) -> None:
    missing, unknown = sorted(n for n in wanted if n not in stored), [n for n in stored if n not in wanted]
    faults = [f"{verb} {listed(names)}" for verb, names in (("lacks", missing), ("has the unknown", unknown)) if names]
    if faults:
        raise BadInput(f"{path} {' and '.join(faults)}: it is not the {mapping.model_type} that its config describes")


def _check_shapes(path: Path, wanted: dict[str, tuple[int, ...]], stored: dict[str, StoredTensor]) -> None:
    wrong = [
        f"{name} {stored[name].shape} not {shape}" for name, shape in wanted.items() if stored[name].shape != shape
    ]
    if wrong:
        raise BadInput(f"{path} has tensors of another shape than its config, {listed(wrong)}: correct the config")


def _read(stored: dict[str, StoredTensor], wanted: dict[str, HFTensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """{minibd's name: tensor}, file by file and each file open once, so that no more than one of them is ever in
    memory."""
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        with opened(file) as f:
            for name, hf_tensor in wanted.items():
                source = stored[hf_tensor.name]
                if source.file == file:
                    tensors[name] = _part(source, f.get_tensor(source.name), hf_tensor, dtype)
    return tensors


def read_tensor(stored: StoredTensor) -> Tensor:
    """One tensor as it is on disk."""
    with opened(stored.file) as f:
        return f.get_tensor(stored.name)


def _part(stored: StoredTensor, tensor: Tensor, hf_tensor: HFTensor, dtype: torch.dtype) -> Tensor:
    """minibd's part of the tensor on disk, in memory of its own: the file may change afterwards. Raises BadInput."""
    if tensor.dtype not in FLOATS:
        raise BadInput(
            f"{stored.file}: {stored.name} is {str(tensor.dtype).removeprefix('torch.')}, not a float of 16, 32 or "
            f"64 bits: use a checkpoint that is not quantised"
        )
    tensor = (tensor.T if hf_tensor.transposed else tensor).chunk(hf_tensor.chunks)[hf_tensor.chunk]
    tensor = tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not is_finite(tensor):
        raise BadInput(f"{stored.file}: {stored.name} holds NaN or infinite numbers: use another checkpoint")
    return tensor


@torch.no_grad()
def _prune(path: Path, model: Encoder, pruned: Tensor) -> None:
    """Sets the head mask to 0 where minibd.json has it so, if the folder's weights agree. Raises BadInput."""
    for layer, block in enumerate(model.blocks):
        columns = block.output.weight.unflatten(1, (model.config.heads, -1)).abs().sum((0, 2))  # (D, H, Dh) -> (H,)
        for head in torch.nonzero(pruned[layer] & (columns > 0)).flatten().tolist():
            raise BadInput(f"{path / 'minibd.json'}: head {head} of layer {layer} is pruned, but its columns in "
                           f"model.safetensors are not 0: delete minibd.json if the weights were changed since")
    model.head_mask[pruned] = 0.0


# ---- writing

def plain(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, without a graph: what safetensors takes."""
    return tensor.detach().cpu().contiguous()


def save_tensors(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    """One .safetensors file; the same tensors and metadata give the same bytes."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata)                   # leaves a file that only its owner may read
    file.chmod(mode)
    _order_metadata(file)


def _order_metadata(file: Path) -> None:
    """Sorts the metadata's keys: the library's order is another each time, and the same model must have the same
    sha256."""
    with open(file, "r+b") as f:                         # 8 bytes of length n, n bytes of JSON and blanks, tensors
        size = int.from_bytes(f.read(8), "little")
        header = json.loads(f.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        source = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(source) <= size:                          # the library writes the same JSON as briefly
            f.seek(8)
            f.write(source.ljust(size))
