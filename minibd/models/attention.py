"""Attention: scores, mask, softmax, dropout, weighted sum of the values, head mask. Every encoder here calls `attend`.

Shapes: q, k, v (B, H, T, Dh); mask broadcastable to (B, H, T, T), True where a query attends to a key; head_mask (H,),
1 keeps a head, 0 prunes it. With a prefix of n positions in front of k and v (models/prefix.py): k, v (B, H, n + T,
Dh), the probabilities (B, H, T, n + T).
"""
from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NARROW = 16  # numbers that a processor's widest registers hold
PROBABILITIES = 1 << 23  # that a layer may keep for the backward pass, 50 MB: 32 texts of 12 heads, 147 tokens


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, bias: Tensor | None = None, causal: bool = False,
    head_mask: Tensor | None = None, dropout: Callable[[Tensor], Tensor] | None = None, want: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Eq. PURE (A): softmax(q k' / sqrt(Dh)) v -> context (B, H, T, Dh) and, if wanted, the probabilities (B, H, T, T).

    bias: added to the scores q k' / sqrt(Dh), broadcastable to (B, H, T, T): MPNet's by relative position.

    The probabilities are those before dropout and before the head mask, so their rows sum to 1 (transformers returns
    them after dropout: in train mode its rows do not). `dropout`, if given, is applied to them. Without `want` and
    without dropout the fused kernel runs and never materialises them, but where it is the slower one (`by_products`).
    causal: without a mask, a query attends to the keys up to its own position; a mask, if given, has that in it. Keys
    beyond the number of queries are a prefix, which stands in front and which `mask` and `bias` do not cover: its bias
    is 0. k and v may have fewer heads than q (grouped queries): each then serves H / H_kv neighbouring heads.
    """
    if n := k.shape[2] - q.shape[2]:  # every query attends to the whole prefix
        if mask is not None:
            mask = F.pad(mask, (n, 0), value=True)
        elif causal:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(n)
        if bias is not None:
            bias = F.pad(bias, (n, 0))
    products = want or dropout is not None or by_products(q, k)
    if causal and mask is None and (products or bias is not None):
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    if not products:
        if k.shape[1] != q.shape[1]:
            k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        added = mask
        if bias is not None:  # the kernel adds a mask of numbers to the scores
            bias = bias.to(q.dtype)
            added = bias if mask is None else bias.masked_fill(~mask, float("-inf"))
        context, probs = (
            F.scaled_dot_product_attention(q, k, v, attn_mask=added, is_causal=causal and mask is None), None,
        )
    else:
        scores = per_key_head(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5  # (B, H, T, T)
        if bias is not None:
            scores = scores + bias
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        probs = over_keys(scores)
        context = per_key_head((probs if dropout is None else dropout(probs)).to(v.dtype), v)
    if head_mask is not None:
        # One number a head, so it may multiply the context: mask * (probs v) = (mask * probs) v.
        context = context * head_mask[:, None, None]
    return context, probs if want else None


def over_keys(scores: Tensor) -> Tensor:
    """softmax of the scores over the last dimension, in float32 or wider: half precision is too coarse for a sum over
    keys.

    On a processor torch's kernel takes rows shorter than NARROW one number at a time; passes over all rows at once are
    five times as fast there. A backward pass would keep all they leave, so they run where there is none.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    if scores.shape[-1] >= NARROW or scores.device.type != "cpu" or scores.requires_grad:
        return scores.softmax(dim=-1, dtype=wide)
    scores = scores.to(wide)
    probs = (scores - scores.amax(-1, keepdim=True)).exp_()
    return probs.div_(probs.sum(-1, keepdim=True))


def per_key_head(x: Tensor, y: Tensor) -> Tensor:
    """x @ y, (B, H, T, I) by (B, H_kv, I, J): a head of y serves H / H_kv neighbouring ones of x, and is not copied."""
    if x.shape[1] == y.shape[1]:
        return x @ y
    each = x.unflatten(1, (y.shape[1], -1))  # (B, H_kv, H / H_kv, T, I)
    return (each.flatten(2, 3) @ y).unflatten(2, each.shape[2:4]).flatten(1, 2)


def by_products(q: Tensor, k: Tensor) -> bool:
    """Whether plain products are faster than the fused kernel, and their probabilities small enough to keep.

    On a processor the kernel is slower in bfloat16 than in float32: of 32 texts of 32 tokens, 12 heads, its two passes
    take ten times as long as the products in bfloat16, of two texts of 512 tokens 1.6 times.
    """
    small = q.shape[:3].numel() * k.shape[2] <= PROBABILITIES
    return small and q.dtype == torch.bfloat16 and q.device.type == "cpu"


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, H * Dh) -> (B, H, T, Dh)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, T, Dh) -> (B, T, H * Dh)."""
    return x.transpose(1, 2).flatten(2)
