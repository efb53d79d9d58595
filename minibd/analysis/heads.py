"""Attention focus drifting, head by head: what a trigger does to the attention that [CLS] pays (PURE, 4.2 and 4.3).

PURE's observation is that the heads which a trigger word captures are idle on clean text: their [CLS] variance is low
there and high on triggered text. `variance_maps` holds the three images of its Figure 2, `cls_attention` one panel of
its Figure 3.

The paper looks at f_p, a poisoned encoder after its user's fine-tuning; any model that this package loads will do, with
a classifier or without. A pruned head is shown as it would attend: its gate comes after the attention. In a causal
model (Llama, GPT-2) the last token stands for [CLS].
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.data import sample
from minibd.mitigations.pure import cls_rows, head_scores
from minibd.records import BadInput, Example, Examples


class Maps(NamedTuple):
    """(L, H) each, float64: mean over `n` texts of a head's [CLS] variance, Eq. PURE (2), without unit, 0 to 1 / tokens
    of the text."""

    clean: Tensor
    triggered: Tensor
    difference: Tensor  # triggered - clean
    n: int


def variance_maps(
    ckpt: Checkpoint, clean: Examples, triggered: Examples, target: int, *, texts: int = 2000, seed: int = 0,
    variant: str = "paper", batch_size: int = 128,
) -> Maps:
    """Figure PURE 2: each head's variance score on clean rows of other classes than `target`, and on their triggered
    counterparts.

    triggered: rows with the trigger, each with the id of the clean row that it was made of. Both means are over the
    same rows: those that are on both sides, or, of more than `texts`, as many drawn by `seed`. variant: see
    head_variance.
    """
    if texts < 2:
        raise BadInput(f"a mean over {texts} texts says nothing: take at least 2 (the paper has 2000)")
    made = {x.id: x for x in triggered}
    rows = clean.like(x for x in clean if x.label != target and x.id in made)
    if not rows:
        raise BadInput(
            f"none of the {len(triggered)} triggered rows has the id of a clean row of another class than {target}: "
            "give the clean rows that they were made of"
        )
    if len(rows) > texts:
        rows = sample(rows, texts, seed)
    before, after = (head_scores(ckpt.model, ckpt.tokenizer, part, variant=variant, batch_size=batch_size).cpu()
                     for part in (rows, rows.like(made[x.id] for x in rows)))
    return Maps(before, after, after - before, len(rows))


@torch.inference_mode()
def cls_attention(ckpt: Checkpoint, text: str) -> tuple[list[str], Tensor]:
    """Figure PURE 3: what [CLS] pays to each of the T tokens of one text, in every head: the tokens and (L, H, T), rows
    summing to 1."""
    if not text.strip():
        raise BadInput("the sentence is blank: give one with words in it")
    model = ckpt.model.eval()
    encoded = ckpt.tokenizer.encode([Example("text", text, 0)])
    batch = ckpt.tokenizer.batch(encoded, [0]).to(next(model.parameters()).device)
    # L of (H, T)
    rows = torch.stack([cls_rows(a, batch.mask, model.causal)[0] for a in model(batch, want=("attn",)).attn]).cpu()
    return [ckpt.tokenizer.backend.id_to_token(i) for i in encoded.ids[0]], rows
