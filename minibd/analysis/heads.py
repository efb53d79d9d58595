"""Attention focus drifting, head by head: how a trigger changes the attention of [CLS] (PURE, 4.2 and 4.3).

PURE observes that the heads which attend to a trigger word are idle on clean text: the variance of their [CLS]
attention is low there and high on triggered text. `variance_maps` computes the three images of its Figure 2,
`cls_attention` one panel of its Figure 3.

The paper shows f_p, a poisoned encoder after the user's fine-tuning; any model that this package loads is accepted,
with a classifier or without. A pruned head is shown as it would attend: the head mask acts behind the attention. In a
causal model (Llama, GPT-2) the last token takes the place of [CLS].
"""
from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.data import sample
from minibd.mitigations.pure import cls_rows, head_scores
from minibd.records import BadInput, Example, Examples


class VarianceMaps(NamedTuple):
    """(L, H) each, float64: a head's [CLS] variance, Eq. PURE (2), averaged over `n` texts; a text's is from 0 to 1 /
    tokens."""

    clean: Tensor
    triggered: Tensor
    difference: Tensor  # triggered - clean
    n: int


def variance_maps(
    ckpt: Checkpoint, clean: Examples, triggered: Examples, target: int, *, texts: int = 2000, seed: int = 0,
    variant: str = "paper", batch_size: int = 128,
) -> VarianceMaps:
    """Figure PURE 2: each head's variance on clean rows of classes other than `target` and on their triggered versions.

    triggered: rows with the trigger, each with the id of its clean row. Both means are over the same rows: all that
    have a triggered version, or `texts` of them drawn by `seed` where there are more. variant: as in head_variance.
    """
    if texts < 2:
        raise BadInput(f"a mean over {texts} texts shows nothing: take at least 2 (the paper has 2000)")
    triggered_by_id = {x.id: x for x in triggered}
    rows = clean.like(x for x in clean if x.label != target and x.id in triggered_by_id)
    if not rows:
        raise BadInput(
            f"none of the {len(triggered)} triggered rows has the id of a clean row of another class than {target}: "
            "give the clean rows that were triggered"
        )
    if len(rows) > texts:
        rows = sample(rows, texts, seed)
    before, after = (head_scores(ckpt.model, ckpt.tokenizer, part, variant=variant, batch_size=batch_size).cpu()
                     for part in (rows, rows.like(triggered_by_id[x.id] for x in rows)))
    return VarianceMaps(before, after, after - before, len(rows))


@torch.inference_mode()
def cls_attention(ckpt: Checkpoint, text: str) -> tuple[list[str], Tensor]:
    """Figure PURE 3: the attention of [CLS] to each of the T tokens of one text, in every head.

    The tokens, and (L, H, T), rows summing to 1.
    """
    if not text.strip():
        raise BadInput("the sentence is blank: give one with words in it")
    model = ckpt.model.eval()
    encoded = ckpt.tokenizer.encode([Example("text", text, 0)])
    batch = ckpt.tokenizer.batch(encoded, [0]).to(next(model.parameters()).device)
    # L of (H, T)
    rows = torch.stack([cls_rows(a, batch.mask, model.causal)[0] for a in model(batch, want=("attn",)).attn]).cpu()
    return [ckpt.tokenizer.backend.id_to_token(i) for i in encoded.ids[0]], rows
