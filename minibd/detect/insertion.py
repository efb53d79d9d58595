"""Words put into a text at the level of token ids: many candidates into one text, in batches without padding.

    m_t(x) = z_t(x) - max_{j != t} z_j(x)                    Eq. Scan (2): the margin of class t; z are the logits
"""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minibd.models.encoder import Encoder
from minibd.records import Batch, Example
from minibd.tokenizer import Tokenizer

MOST_WORDS = 48  # of a text; what stands behind them is cut off
TOKENS = 2048  # in a batch: of more, the products of a processor leave its cache
AT_ONCE = 32  # times as many on another device, which starts a product no sooner than a processor ends a small one


def at_once(on_a_processor: int, device: torch.device) -> int:
    """How much of it is read at a time on this device."""
    return on_a_processor * (1 if device.type == "cpu" else AT_ONCE)


def margins(logits: Tensor) -> Tensor:
    """Eq. Scan (2): logits (B, C) -> the margin of every class, (B, C). Above 0 for the predicted class alone."""
    top = logits.topk(2, dim=-1)
    best, second = top.values.split(1, dim=-1)  # (B, 1)
    predicted = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, top.indices[:, :1], True)
    return logits - torch.where(predicted, second, best)


@dataclass(frozen=True, slots=True)
class Carrier:
    """A tokenized text that words are inserted into. ids, token_type_ids: (T,), special tokens included.

    places: the indices before which a word may stand, in order: before each word, and behind the last one. Of a pair,
    those in one of its texts: side 0 or 1.
    label: the class that the model gives it. margins: (C,), Eq. Scan (2), without any insertion.
    """
    ids: tuple[int, ...]
    token_type_ids: tuple[int, ...]
    places: tuple[int, ...]
    label: int
    margins: Tensor
    side: int = 0

    def room(self, at: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        """ids and token_type_ids with an empty slot for a word before each of the indices `at`, ascending, and the
        slots' indices. Of a pair, a slot belongs to the text that its places are in."""
        ids, kinds, slots = list(self.ids), list(self.token_type_ids), []
        own = kinds[self.places[0]]
        for n, place in enumerate(at):
            slots.append(place + n)
            ids.insert(place + n, 0)
            kinds.insert(place + n, own)
        return ids, kinds, slots


def carriers_of(tokenizer: Tokenizer, example: Example, label: int, margins: Tensor) -> list[Carrier]:
    """The text of `example`, or its pair, once with places in either text."""
    row = tokenizer.backend.encode(*((example.text,) if example.pair is None else (example.text, example.pair)))
    kinds = tuple(row.type_ids) if tokenizer.settings.type_ids else (0,) * len(row.ids)
    found = []
    for side in range(1 if example.pair is None else 2):
        places, before = [], None
        for i, at in enumerate([*zip(row.sequence_ids, row.word_ids), (None, None)]):
            if at[0] == side and at != before or at[0] != side and before is not None and before[0] == side:
                places.append(i)
            before = at
        found.append(Carrier(tuple(row.ids), kinds, tuple(places), label, margins, side))
    return found


def readable(tokenizer: Tokenizer, example: Example, room: int) -> Example:
    """The example, of a long one its first words: at most MOST_WORDS of a text, and of a pair as many of either text,
    so that the model reads them with `room` more tokens. A word put into a text that is read in part may be cut off."""
    limit, texts = tokenizer.max_len - room, [example.text.split(), (example.pair or "").split()]

    def cut(n: int) -> Example:
        text, pair = (" ".join(words[:n]) for words in texts)
        return replace(example, text=text, pair=None if example.pair is None else pair)

    def too_long(x: Example) -> bool:
        return len(tokenizer.backend.encode(*filter(None, (x.text, x.pair))).ids) > limit

    if max(map(len, texts)) > MOST_WORDS:
        example = cut(MOST_WORDS)
    if not too_long(example):
        return example
    longest = min(limit, MOST_WORDS, max(map(len, texts))) + 1
    return cut(max(1, bisect_left(range(longest), True, key=lambda n: too_long(cut(n))) - 1))


@torch.inference_mode()
def answers_with(
    model: Encoder, carrier: Carrier, words: Tensor, at: Sequence[int],
    tick: Callable[[int], object] = lambda texts: None,
) -> tuple[Tensor, Tensor]:
    """The margins (N, C) of the carrier with each of N combinations of k words, (N, k) ids, before the k indices `at`,
    ascending, and the last hidden states of its [CLS], (N, D). Words at the same index stand side by side. tick: called
    with the number of texts of each batch."""
    device = model.embeddings.word.weight.device
    ids, kinds, slots = carrier.room(at)
    row, kinds = torch.tensor(ids, device=device), torch.tensor(kinds, device=device)
    found, states = [], []
    for part in words.to(device).split(max(1, at_once(TOKENS, device) // len(row))):
        ids = row.repeat(len(part), 1)  # (n, T)
        ids[:, slots] = part
        batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), kinds.expand(len(part), -1), ids[:, 0])
        output = model(batch)
        found.append(margins(output.logits.float()).cpu())
        states.append(output.cls.float().cpu())
        tick(len(part))
    return torch.cat(found), torch.cat(states)


def margins_with(
    model: Encoder, carrier: Carrier, words: Tensor, at: Sequence[int],
    tick: Callable[[int], object] = lambda texts: None,
) -> Tensor:
    """The margins of `answers_with` alone, (N, C)."""
    return answers_with(model, carrier, words, at, tick)[0]
