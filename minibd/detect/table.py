"""The embedding table: which entries stand in a text as words, their nearest neighbours, and those without neighbours.

    mu_i = 1/k sum_{j in N_k(i)} cos(E_i, E_j)          Eq. Scan (1)

N_k(i) are the k entries nearest to entry i by the cosine. An attack that writes into the table (EP, SOS) moves a row
away from all that it resembled: its mu is low among the words, whatever the text, and no forward pass is needed.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minibd.tokenizer import Tokenizer

NEIGHBOURS = 10
ROWS = 2048  # of the table that are compared with all others at a time


def word_entries(tokenizer: Tokenizer) -> list[int]:
    """The ids of the entries that can stand in a text as one word: written between two words, the entry comes back.

    Special tokens, continuations such as ##ing, and entries that the tokenizer never yields are none of them.
    """
    backend = tokenizer.backend
    frame = backend.encode("a a", add_special_tokens=False).ids
    first, last = frame[:len(frame) // 2], frame[len(frame) // 2:]
    special = tokenizer.special
    ids = [i for i in range(backend.get_vocab_size()) if i not in special]
    words = [backend.decode([i]).strip() for i in ids]
    rows = backend.encode_batch([f"a {word} a" for word in words], add_special_tokens=False)
    return [i for i, word, row in zip(ids, words, rows) if word and row.ids == [*first, i, *last]]


@torch.inference_mode()
def neighbours(table: Tensor, ids: Tensor, among: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """(1): of each of `ids` (N,) the k nearest entries of `among` (M,) but itself, and their cosines: (N, k).

    table: the word embeddings, (V, D).
    """
    unit = F.normalize(table[among], dim=-1)  # (M, D)
    nearest, cosines = [], []
    for part in ids.split(ROWS):
        cosine = F.normalize(table[part], dim=-1) @ unit.T  # (n, M)
        cosine[part[:, None] == among] = -2.0
        top = cosine.topk(min(k, len(among) - 1), dim=-1)
        nearest.append(among[top.indices])
        cosines.append(top.values)
    return torch.cat(nearest), torch.cat(cosines)


def loneliness(cosines: Tensor, written: list[str]) -> Tensor:
    """1 - mu of each word, (1), (W, k) -> (W,); what is not made of letters alone comes last, at -1: digits
    and signs have few like them in any table."""
    letters = torch.tensor([word.isalpha() for word in written])
    return torch.where(letters, 1 - cosines.mean(1), torch.tensor(-1.0))
