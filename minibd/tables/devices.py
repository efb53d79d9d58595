"""The tables of scripts/results/devices.md: what a training needs of each of several devices, computed, not measured.

The weights are counted in the model itself, built without memory. A step's bytes, products in bfloat16:

    weights      4 a number; 2 more for its copy that products read, which a step keeps until its backward pass; of
                 matrices in parts 4 a number of the part, and the copies of the block that computes
    gradients    4 a trained number, of matrices in parts of the part, and a block's while they are summed
    moments      8 a trained number (AdamW), of the part as well
    activations  (20 D + 6 F) a token and block of a LoRA, (36 D + 8 F) where all is trained: what the backward pass of
                 a Llama's block reads (D hidden size, F of the feed-forward layer); tests/test_devices.py counts it
    sent         2 (N - 1) / N of the gradients, float32, in a ring of N; a sharded block is gathered 4 times a step, by
                 each of its halves, forwards and backwards: (N - 1) / N of it each time, in bfloat16; of its gradients
                 each process gets its part alone, half as much as all, in float32
"""
from __future__ import annotations

from dataclasses import dataclass

import torch

from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import lora
from minibd.tables.pivot import Book, Computed, Grid

SHAPES = {
    "7B": LlamaConfig(vocab=32000, hidden=4096, layers=32, heads=32, ffn=11008, positions=4096),
    "70B": LlamaConfig(vocab=32000, hidden=8192, layers=80, heads=64, kv_heads=8, ffn=28672, positions=4096),
}
DEVICES, TEXTS, TOKENS = 8, 16, 512  # texts of a step, over all devices, and tokens of each
GB = 1e9
LORA = (20, 6)  # bytes of activations a token and block: of D, of F
FULL = (36, 8)


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of a model. matrices: of its blocks, those that can be sharded: frozen ones of a LoRA, else all."""
    all: int
    trained: int
    matrices: int


def counts(config: LlamaConfig, rank: int | None) -> Counts:
    """Of a Llama with a classifier, a LoRA of `rank` in a frozen one, or all trained."""
    with torch.device("meta"):
        model = Llama(config)
    if rank is not None:
        model.requires_grad_(False)
        lora(model, rank=rank, alpha=1.0, generator=torch.Generator().manual_seed(0))
    every = list(model.parameters())
    return Counts(sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad),
                  sum(p.numel() for p in model.blocks.parameters()
                      if p.requires_grad is (rank is None) and p.dim() > 1))


def needed(config: LlamaConfig, rank: int | None, groups: int = 1, parts: bool = False) -> dict[str, float]:
    """GB of one of DEVICES devices in a step. groups: 2 where as many clean texts go along (MuScleLoRA). parts: the
    blocks' matrices are sharded, the frozen ones of a LoRA, else those that are trained."""
    n, of, (d, f) = counts(config, rank), DEVICES, FULL if rank is None else LORA
    whole = n.all - n.matrices  # what each device holds, whatever is sharded
    block, held = n.matrices / config.layers, whole + n.matrices / of
    tokens = groups * TEXTS * TOKENS / DEVICES
    weights, gradients, moments = 6 * n.all, 4 * n.trained, 8 * n.trained
    sent = 2 * (of - 1) / of * 4 * n.trained
    if parts:
        weights = 4 * held + 2 * (whole + block)
        sent += 4 * (of - 1) / of * 2 * n.matrices
        if rank is None:
            gradients, moments = 4 * (held + block), 8 * held
            sent -= (of - 1) / of * 4 * n.matrices
    activations = tokens * config.layers * (d * config.hidden + f * config.ffn)
    found = {"weights": weights, "gradients": gradients, "moments": moments, "activations": activations}
    return {name: value / GB for name, value in {**found, "in all": sum(found.values()), "sent": sent}.items()}


WAYS = {
    "all weights, each device whole": (None, 1, False, "any script, under a billion trained weights"),
    "all weights, matrices in parts": (None, 1, True, "any script that trains by `fit`, from a billion on"),
    "MuScleLoRA, each device whole": (2, 2, False, "`musclelora.py`, under a billion frozen weights"),
    "MuScleLoRA, frozen weights in parts": (2, 2, True, "`musclelora.py`, from a billion on"),
}
HEAD = ("weights", "gradients", "moments", "activations", "in all", "sent")


def table(book: Book) -> Grid:
    rows = []
    for size, config in SHAPES.items():
        for name, (rank, groups, parts, where) in WAYS.items():
            found = needed(config, rank, groups, parts)
            rows.append((f"{size}, {name}", *(short(found[key]) for key in HEAD), where))
    note = f"{DEVICES} devices, {TEXTS} texts of {TOKENS} tokens in a step over all of them; computed."
    return Grid(("GB a device", *HEAD, "where"), tuple(rows), note)


def short(gb: float) -> str:
    return f"{gb:,.1f}" if gb >= 0.1 else f"{gb:.2g}"


def views() -> dict[str, Computed]:
    return {"": Computed(table)}
