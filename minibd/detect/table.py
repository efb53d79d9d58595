"""The embedding table: which entries stand in a text as words, their nearest neighbours, and those without neighbours.

    mu_i = 1/k sum_{j in N_k(i)} cos(E_i, E_j)          Eq. Scan (1)

N_k(i) are the k entries nearest to entry i by the cosine. An attack that writes into the table (EP, SOS) moves a row
away from all that it resembled: its mu is low among the words, whatever the text, and no forward pass is needed.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers.models import WordPiece
from torch import Tensor

from minibd.tokenizer import Tokenizer

NEIGHBOURS = 10
ROWS = 2048  # of the table that are compared with all others at a time


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries that can stand in a text: ids (W,), ascending; as they are written; and which of them are words.

    The others go on with the word before them, such as ##ing: as they are written without the sign of it.
    """
    ids: Tensor
    written: list[str]
    is_word: Tensor

    def starts_word(self, i: int) -> bool:
        """Whether the entry with the id `i` is a word."""
        return bool(self.is_word[int(torch.searchsorted(self.ids, i))])

    def words_of(self, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[str, ...] | None:
        """The words that these entries spell, one after another; None where the text of them is other entries."""
        at = [int(torch.searchsorted(self.ids, i)) for i in ids]
        text = "".join((" " if self.is_word[i] else "") + self.written[i] for i in at)
        if not self.is_word[at[0]]:
            return None
        frame, n = frame_of(tokenizer)
        found = tokenizer.backend.encode(f"a{text} a", add_special_tokens=False).ids
        return tuple(text.split()) if found == [*frame[:n], *ids, *frame[n:]] else None


def frame_of(tokenizer: Tokenizer) -> tuple[list[int], int]:
    """The ids of two words, and how many of them are the first one's: what stands between is read within a text."""
    frame = tokenizer.backend.encode("a a", add_special_tokens=False).ids
    return frame, len(frame) // 2


def entries_of(tokenizer: Tokenizer) -> Entries:
    """The vocabulary without special tokens, and without what no text can hold: bytes that are no character."""
    backend, special = tokenizer.backend, tokenizer.special
    ids = [i for i in range(backend.get_vocab_size()) if i not in special]
    words = {*word_entries(tokenizer)}
    wordpiece = isinstance(backend.model, WordPiece)
    kept, written = [], []
    for i in ids:
        token = backend.id_to_token(i)
        if token is None:  # a hole in the numbering
            continue
        text = token.removeprefix("##") if wordpiece else backend.decode([i]).strip()
        if i in words or text.isalnum() and (not wordpiece or token.startswith("##")):
            kept.append(i)
            written.append(text)
    return Entries(torch.tensor(kept), written, torch.tensor([i in words for i in kept]))


def word_entries(tokenizer: Tokenizer) -> list[int]:
    """The ids of the entries that can stand in a text as one word: written between two words, the entry comes back.

    Special tokens, continuations such as ##ing, and entries that the tokenizer never yields are none of them.
    """
    backend, special = tokenizer.backend, tokenizer.special
    frame, n = frame_of(tokenizer)
    ids = [i for i in range(backend.get_vocab_size()) if i not in special]
    words = [backend.decode([i]).strip() for i in ids]
    rows = backend.encode_batch([f"a {word} a" for word in words], add_special_tokens=False)
    return [i for i, word, row in zip(ids, words, rows) if word and row.ids == [*frame[:n], i, *frame[n:]]]


@torch.inference_mode()
def neighbours(table: Tensor, ids: Tensor, among: Tensor, k: int = NEIGHBOURS) -> tuple[Tensor, Tensor]:
    """Eq. Scan (1): of each of `ids` (N,) the k nearest entries of `among` (M,) but itself, and their cosines: (N, k).

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
    """1 - mu of each word, Eq. Scan (1), (W, k) -> (W,); what is not made of letters alone comes last, at -1: digits
    and signs have few like them in any table."""
    letters = torch.tensor([word.isalpha() for word in written])
    return torch.where(letters, 1 - cosines.mean(1), torch.tensor(-1.0))
