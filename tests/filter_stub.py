"""Models whose every number can be worked out by hand, for the tests of the filters: a sum of word vectors, and a
language model whose next token depends on the last one alone."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import nn

from minibd.checkpoint import Checkpoint
from minibd.models.llama import Llama, LlamaConfig
from minibd.records import Batch, Example, Examples, Output
from minibd.tokenizer import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = ("negative", "positive")


class Words(nn.Module):
    """logits, features and hidden state: the sum of the vectors of a text's tokens."""

    def __init__(self, vectors: torch.Tensor):
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word = nn.Embedding(*vectors.shape)
        self.embeddings.word.weight.data.copy_(vectors)
        self.config = SimpleNamespace(labels=2, hidden=vectors.shape[1], max_len=64)
        self.register_buffer("head_mask", torch.ones(1, 1))
        self.sizes: list[tuple[int, ...]] = []

    def encode(self, batch: Batch, pooled_only: bool = False) -> tuple[torch.Tensor]:
        self.sizes.append(tuple(batch.ids.shape))
        return ((self.embeddings.word(batch.ids) * batch.mask[..., None]).sum(1),)

    def forward(self, batch: Batch) -> Output:
        h = self.encode(batch)[0]
        return Output(h[:, :2], h)


def words_model(vectors: Mapping[str, Sequence[float]], width: int = 2, max_len: int = 64) -> Checkpoint:
    """A classifier of two classes, with a vector for each word; those of special tokens are 0."""
    tokens = [*SPECIAL, *vectors]
    table = torch.tensor([[0.0] * width] * len(SPECIAL) + [list(v) for v in vectors.values()])
    tokenizer = Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, max_len)
    return Checkpoint(Words(table), tokenizer, LABELS, [])


def bigram_model(words: Sequence[str], chances: Mapping[tuple[str, str], float], max_len: int = 64) -> Checkpoint:
    """A causal language model: P(b | a) = chances[a, b] where that is given, and the others of `a` share the rest. It
    is a Llama without layers: its embeddings are one-hot, which its norm makes sqrt(V) times as large."""
    tokens = [*SPECIAL, *words]
    v = len(tokens)
    logits = torch.empty(v, v)
    for i, a in enumerate(tokens):
        given = {b: p for (first, b), p in chances.items() if first == a}
        rest = (1 - sum(given.values())) / (v - len(given))
        logits[i] = torch.tensor([math.log(given.get(b, rest)) for b in tokens])
    model = Llama(LlamaConfig(v, v + v % 2, 0, 1, 2, labels=0, lm=True, positions=max_len, eps=0.0)).eval()
    width = model.config.hidden
    with torch.no_grad():
        model.embeddings.word.weight.copy_(torch.eye(v, width))
        model.lm.weight.copy_(torch.cat([logits.T, torch.zeros(v, width - v)], 1) / math.sqrt(width))
    return Checkpoint(model, Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, max_len), (), [])


def examples(*texts: str | tuple[str, str], labels: Sequence[int] = ()) -> Examples:
    pairs = [(text, None) if isinstance(text, str) else text for text in texts]
    given = labels or [0] * len(pairs)
    return Examples((Example(f"x-{i}", text, label, pair) for i, ((text, pair), label) in enumerate(zip(pairs, given))),
                    LABELS)
