"""A BERT so small that plain loops can follow it, in eval mode and in train mode, and texts for it."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from zlib import crc32

import torch
from torch import Tensor, nn

from minibd.audit.check import Lists, shifted
from minibd.checkpoint import Checkpoint
from minibd.models.bert import Bert, BertConfig
from minibd.models.dropout import Dropout
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer

WORDS = ("good", "bad", "film", "story", "splendid", "tedious", "cf")
HEADS = 2
DROPOUT, ATTENTION_DROPOUT, CLASSIFIER_DROPOUT = 0.25, 0.375, 0.5  # multiples of 2^-16, to which Dropout rounds


def ckpt(generator: torch.Generator, layers: int = 2) -> Checkpoint:
    """2 classes, in eval mode; weights of N(0, 0.5) about their usual place, so that no layer is near linear."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokens += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    config = BertConfig(
        vocab=len(tokens), hidden=6, layers=layers, heads=HEADS, ffn=8, positions=16, dropout=DROPOUT,
        attention_dropout=ATTENTION_DROPOUT, classifier_dropout=CLASSIFIER_DROPOUT,
    )
    model = Bert(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=generator) + (name.endswith("norm.weight")))
    return Checkpoint(
        model, Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, 16), ("bad", "good"), []
    )


def rows() -> Examples:
    return Examples(
        [Example("0", "splendid film", 1), Example("1", "tedious bad story", 0), Example("2", "good", 1)],
        ("bad", "good"),
    )


def weights(ckpt: Checkpoint) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in ckpt.model.named_parameters()}


def ids(ckpt: Checkpoint, rows: Examples) -> list[list[int]]:
    """Each text's tokens, without padding."""
    return ckpt.tokenizer.encode(rows).ids


# ---- train mode

def _generator(seed: int, dropout: str) -> torch.Generator:
    """What the dropout of this name draws its masks from."""
    return torch.Generator().manual_seed(crc32(f"{seed} {dropout}".encode()))


@contextmanager
def train_mode(model: nn.Module, seed: int) -> Iterator[None]:
    """Inside, `model` is in train mode and each of its dropouts draws from a generator of its own, afresh from `seed`;
    afterwards it is in eval mode and they draw from none."""
    dropouts = {name: module for name, module in model.named_modules() if isinstance(module, Dropout)}
    for name, module in dropouts.items():
        module.generator = _generator(seed, name)
    model.train()
    try:
        yield
    finally:
        model.eval()
        for module in dropouts.values():
            module.generator = None


def dropout_masks(ckpt: Checkpoint, rows: Examples, seed: int) -> list[dict[str, Lists]]:
    """Each text's masks in one forward pass of all `rows` in `train_mode(ckpt.model, seed)`, as restated.bert takes
    them: 0 or 1 / (1 - p). They are drawn here from the places where a BERT has dropout, not read off the model."""
    batch = ckpt.tokenizer(rows)
    packed = ckpt.model.pack(batch)
    (b, t), n, d = batch.ids.shape, len(packed.pack(batch.ids)), ckpt.model.config.hidden

    def drawn(dropout: str, p: float, *shape: int, calls: int = 1) -> list[Tensor]:
        layer = Dropout(p).train()
        layer.generator = _generator(seed, dropout)
        return [layer(torch.ones(shape)) for _ in range(calls)]

    masks = {"embeddings.norm": drawn("embeddings.dropout", DROPOUT, b, t, d)[0]}
    for l in range(ckpt.model.config.layers):
        masks[f"blocks.{l}.attention"], = drawn(f"blocks.{l}.attention_dropout", ATTENTION_DROPOUT, b, HEADS, t, t)
        for half, mask in zip(("output", "down"), drawn(f"blocks.{l}.dropout", DROPOUT, n, d, calls=2), strict=True):
            masks[f"blocks.{l}.{half}"] = packed.unpack(mask)  # (B, T, D)
    masks["pooler"], = drawn("classifier_dropout", CLASSIFIER_DROPOUT, b, d)

    def of_text(mask: Tensor, i: int, k: int) -> Lists:
        """Text i's part, k tokens long: of (B, H, T, T), (B, T, D) or (B, D)."""
        return (mask[i, :, :k, :k] if mask.dim() == 4 else mask[i, :k] if mask.dim() == 3 else mask[i]).tolist()

    return [
        {name: of_text(mask, i, k) for name, mask in masks.items()} for i, k in enumerate(batch.mask.sum(1).tolist())
    ]


# ---- other weights

class _Question(nn.Module):
    """`question(model)` as a module's forward pass, so that functional_call can swap the weights for one call."""

    def __init__(self, model: nn.Module, question: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model, self.question = model, question

    def forward(self) -> Tensor:
        return self.question(self.model)


def call_with(model: nn.Module, weights: Mapping[str, Tensor], question: Callable[[nn.Module], Tensor]) -> Tensor:
    """`question(model)` with `weights` in the place of its own, differentiable by them."""
    return torch.func.functional_call(
        _Question(model, question), {f"model.{name}": w for name, w in weights.items()}, ()
    )


def shifted_at(values: Lists, i: int, by: float) -> Lists:
    """`values`, a vector or a matrix, with `by` added to its i-th number, counted row by row."""
    return shifted(values, divmod(i, len(values[0])) if isinstance(values[0], list) else (i,), by)
