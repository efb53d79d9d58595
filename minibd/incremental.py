"""Accuracy on fixed rows, measured again and again while heads of the model are pruned: exact, and without repeating
the work of earlier passes. PURE's step 1 (mitigations/pure.py) asks for it after every head.

- The input of a block and the context that its heads gather, before the head mask, are cached: a pass starts at the
  lowest block whose heads have changed since it last reached the batch, with that block's output projection.
- In the last block, what follows the heads is computed for the classified token of each text alone.
- Rows that were right come first, and a pass ends as soon as its outcome is certain. A batch that it did not reach is
  brought up to date by a later pass.
- A batch holds texts of similar length, so that there is almost no padding.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import torch
from torch import Tensor

from minibd.data import in_order
from minibd.models.encoder import Encoder, PackedBatch
from minibd.predict import predict
from minibd.records import Examples
from minibd.tokenizer import Tokenizer


class IncrementalAccuracy:
    """How many of `rows` a model gets right, as its head mask changes in place between two calls.

    hits: how many of the `n` rows it got right at the start. memory: bytes for the cache; if all blocks need more, only
    every second, third ... block is cached.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Encoder, tokenizer: Tokenizer, rows: Examples, *, batch_size: int = 64, memory: int = 2 << 30
    ):
        self.model = model.eval()
        self.head_mask = model.head_mask.clone()  # as the last pass saw it: (L, H)
        weight = model.embeddings.word.weight
        encoded, layers = tokenizer.encode(rows), len(model.blocks)
        size = layers * sum(encoded.lengths) * model.config.hidden * weight.element_size()  # of all inputs, bytes
        self.every = max(1, ceil(2 * size / memory))
        right = [p == x.label for p, x in zip(predict(model, tokenizer, rows, batch_size), rows)]
        self.hits, self.n = sum(right), len(rows)
        self.batches = []
        for was_right in (True, False):
            group = [i for i in range(len(rows)) if right[i] is was_right]
            for which in in_order([encoded.lengths[i] for i in group], batch_size):
                batch = tokenizer.batch(encoded, [group[i] for i in which]).to(weight.device)
                packed = model.pack(batch)
                self.batches.append(CachedBatch(packed, batch.labels, {0: model.embeddings(batch, packed)}))

    @torch.inference_mode()
    def at_least(self, needed: int) -> bool:
        """Whether the model, with its present head mask, is right on `needed` rows or more."""
        self._mark_stale()
        hits, seen = 0, 0
        for cached in self.batches:
            if hits >= needed or hits + self.n - seen < needed:
                break
            self._update(cached)
            hits += cached.hits
            seen += len(cached.labels)
        return hits >= needed

    def _mark_stale(self) -> None:
        """Find the lowest layer whose heads have changed since the last call; from there on no batch is up to date."""
        changed = (self.model.head_mask != self.head_mask).any(1).nonzero()
        if len(changed):
            self.head_mask.copy_(self.model.head_mask)
            for cached in self.batches:
                cached.stale = min(cached.stale, int(changed[0]))

    def _update(self, cached: CachedBatch) -> None:
        """Recount the hits of a batch from its lowest stale block on."""
        blocks = self.model.blocks
        if cached.stale == len(blocks):
            return
        start = max(layer for layer in cached.inputs if layer <= cached.stale)
        h = cached.inputs[start]  # (N, D)
        for layer in range(start, len(blocks)):
            context = cached.contexts.get(layer) if layer == start else None
            if context is None:
                context, _ = blocks[layer].attention(h, cached.packed, head_mask=None, want=False)  # (N, H * Dh)
                if layer % self.every == 0:
                    cached.inputs[layer], cached.contexts[layer] = h, context
            head_mask = self.model.head_mask[layer]  # (H,)
            # (N, H, Dh) -> (N, H * Dh)
            context = (context.unflatten(-1, (len(head_mask), -1)) * head_mask[:, None]).flatten(-2)
            if layer == len(blocks) - 1:
                h, context = h[cached.packed.pooled_rows], context[cached.packed.pooled_rows]  # (B, D), (B, H * Dh)
            h = blocks[layer].feed_forward(h, context)
        logits, _ = self.model.classify(self.model.finish(h))
        cached.hits = int((logits.argmax(-1) == cached.labels).sum())
        cached.stale = len(blocks)


@dataclass(slots=True)
class CachedBatch:
    """A batch with the inputs (N, D) and contexts (N, H * Dh) of its cached blocks, N tokens in all.

    stale: the lowest block whose heads have changed since `hits` was counted; as many as there are blocks if none has.
    """

    packed: PackedBatch
    labels: Tensor
    inputs: dict[int, Tensor]
    contexts: dict[int, Tensor] = field(default_factory=dict)
    stale: int = 0
    hits: int = 0
