"""A BERT so small that plain loops can follow it, and texts for it."""
from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from minibd.audit.check import Lists, moved
from minibd.checkpoint import Checkpoint
from minibd.models.bert import Bert, BertConfig
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer

WORDS = ("good", "bad", "film", "story", "splendid", "tedious", "cf")
HEADS = 2


def ckpt(generator: torch.Generator, layers: int = 2) -> Checkpoint:
    """2 classes; weights of N(0, 0.5) about their usual place, so that no layer is near linear."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokens += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    config = BertConfig(
        vocab=len(tokens), hidden=6, layers=layers, heads=HEADS, ffn=8, positions=16, dropout=0.0,
        attention_dropout=0.0, classifier_dropout=0.0,
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


class Asked(nn.Module):
    """What `question` says of the model, with other weights in its place: functional_call swaps them for one call of
    this module."""

    def __init__(self, model: nn.Module, question: Callable[[nn.Module], Tensor]):
        super().__init__()
        self.model, self.question = model, question

    def forward(self) -> Tensor:
        return self.question(self.model)


def asked(model: nn.Module, weights: Mapping[str, Tensor], question: Callable[[nn.Module], Tensor]) -> Tensor:
    """`question(model)` at `weights`, differentiable by them."""
    return torch.func.functional_call(Asked(model, question), {f"model.{name}": w for name, w in weights.items()}, ())


def nudged(values: Lists, i: int, by: float) -> Lists:
    """`values`, a vector or a matrix, with `by` added to its i-th number, counted row by row."""
    return moved(values, divmod(i, len(values[0])) if isinstance(values[0], list) else (i,), by)
