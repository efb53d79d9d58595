"""E-PUR, embedding purification (Zhang et al., 2022), for a defender who holds a suspicious model and the pre-trained
weights it came from.

    1  delta_i <- e_i^B - e_i^Pre                                       of each word embedding
    2  score_i <- ||delta_i||_2 / log(max(f_i, 20))                     f_i: how often token i occurs in the clean rows
    3  e_i <- e_i^Pre for the `top` embeddings with the highest score

Functions: `frequencies` counts f, `drift` is line 2, `reset` line 3, `purify_embeddings` and `e_pur` all of it.

A frequent token's embedding moves in clean fine-tuning too, as log f: one that moved far and is rare is suspicious.
E-PUR is the first step of Fine-mixing (mitigations/finemix.py, the same paper) and may stand before any other method
(`--e-pur`).

Of the paper only the abstract was read: that E-PUR repairs word embeddings and serves other methods. Line 2, the 20 and
the top 200 are recollections, not checked. Chosen here: f over the clean rows at hand; for a small vocabulary at most
one embedding in 150; position and token type embeddings are left alone.
"""
from __future__ import annotations

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.blending import WORD, Counterparts, check_moved, counterparts
from minibd.checkpoint import Checkpoint
from minibd.records import BadInput, Examples
from minibd.tokenizer import Tokenizer
from minibd.train import OnChoice

RARE = 20  # the lowest f that line 2 counts
TOP, TOKENS_PER_RESET = 200, 150  # embeddings that are reset, at most one in so many


def default_top(tokens: int) -> int:
    """How many of a vocabulary's `tokens` embeddings are reset by default: 200 of BERT's 30,522, fewer of a small
    vocabulary, of whose 1,600 tokens 200 would be an eighth."""
    return min(TOP, tokens // TOKENS_PER_RESET)


# ---- the equations. own, before: word embeddings (V, D) of w_B and w_Pre; f (V,): how often each token occurs

def frequencies(tokenizer: Tokenizer, rows: Examples) -> Tensor:
    """f: how often each token occurs in `rows`, special tokens included: (V,) integers, V the tokenizer's tokens."""
    ids = torch.tensor([i for row in tokenizer.encode(rows).ids for i in row], dtype=torch.int64)
    return torch.bincount(ids, minlength=1 + max(tokenizer.backend.get_vocab().values()))


def drift(own: Tensor, before: Tensor, f: Tensor) -> Tensor:
    """Eq. E-PUR (score): ||e_i^B - e_i^Pre||_2 / log(max(f_i, 20)), log natural: (V,), float32."""
    return torch.linalg.vector_norm(own.float() - before.float(), dim=-1) / f.clamp(min=RARE).float().log()


# ---- the algorithm

def reset(victim: Checkpoint, before: Counterparts, f: Tensor, top: int) -> tuple[Checkpoint, list[str]]:
    """Lines 1 to 3: a copy of `victim` with w_Pre's embeddings at the `top` highest scores, and their tokens, the
    highest score first, which its history lists too."""
    purified = checkpoint.copy(victim)
    own, original = purified.model.embeddings.word.weight.detach(), before.weights[WORD]
    if len(f) > len(own):
        raise BadInput(f"there are frequencies of {len(f)} tokens and the victim has {len(own)}: count them with the "
                       "victim's own tokenizer")
    counts = torch.zeros(len(own), dtype=torch.int64, device=own.device)  # rows that only pad the table never occur
    counts[:len(f)] = f.to(own.device)
    worst = drift(own, original, counts).topk(min(top, len(own))).indices
    own[worst] = original[worst]
    tokens = [purified.tokenizer.backend.id_to_token(i) or f"row {i}" for i in worst.tolist()]
    purified.history.append({"mitigation": "e-pur", "top": top, "tokens": tokens, "kept": list(before.kept)})
    return purified, tokens


def purify_embeddings(victim: Checkpoint, pretrained: Checkpoint, frequencies: Tensor, top: int = TOP) -> Checkpoint:
    """Eq. E-PUR (reset): e_i^Pre at the `top` highest scores; word embeddings change, nothing else. Returns a new
    checkpoint. frequencies: f, (V,)."""
    purified, _ = reset(victim, counterparts(victim, pretrained), frequencies, top)
    return purified


def e_pur(
    victim: Checkpoint, pretrained: Checkpoint | Counterparts, clean: Examples, top: int | None = None, *,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """E-PUR with f counted on the clean rows: what --e-pur and Fine-mixing run. Returns a new checkpoint.

    pretrained: the model that the victim came from, or its `counterparts` where they are known already. top: None takes
    `default_top`. on_choice: called with "tokens" and the tokens whose embeddings were reset, the highest score first.
    """
    before = pretrained if isinstance(pretrained, Counterparts) else counterparts(victim, pretrained)
    check_moved(victim, before)
    top = default_top(len(before.weights[WORD])) if top is None else top
    purified, tokens = reset(victim, before, frequencies(victim.tokenizer, clean), top)
    if on_choice is not None:
        on_choice("tokens", tokens)
    return purified
