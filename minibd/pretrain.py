"""Masked language modelling (Devlin et al., 2019, 3.1): what a BERT learns before it learns a task.

Of a text's tokens 15 % are chosen; 80 % of these become [MASK], 10 % another token, 10 % stay as they are; the model
names what stood there. It makes the small checkpoints of weights/, and gives a checkpoint that was handed out without
its language-model head a new one, which contextual augmentation needs (augment/contextual.py).
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minibd import checkpoint
from minibd.augment.contextual import mask_of
from minibd.checkpoint import Checkpoint
from minibd.data import in_order
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Batch, Examples
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import Log, Schedule, fit


def masking(
    model: Encoder, tokenizer: Tokenizer, share: float, generator: torch.Generator
) -> Callable[[Batch], tuple[Batch, Tensor]]:
    """A function of a batch on the model's device: the batch with tokens hidden, and which were chosen, (B, T), True
    there. No special token ever is.

    share: of the tokens that are chosen, each by itself. generator: of the CPU. Raises BadInput where `model` has no
    token for a mask.
    """
    if not 0 < share <= 1:
        raise BadInput(f"mask is {share}, a share of a text's tokens: it must be above 0 and at most 1")
    mask, special, device = mask_of(model, tokenizer), tokenizer.special, model.head_mask.device
    ordinary = torch.tensor([i for i in range(tokenizer.backend.get_vocab_size()) if i not in special])
    may = torch.zeros(model.config.vocab, dtype=torch.bool).index_fill(0, ordinary, True).to(device)

    def hide(batch: Batch) -> tuple[Batch, Tensor]:
        chosen = batch.mask & may[batch.ids] & (torch.rand(batch.ids.shape, generator=generator) < share).to(device)
        fate = torch.rand(batch.ids.shape, generator=generator).to(device)
        another = ordinary[torch.randint(len(ordinary), batch.ids.shape, generator=generator)].to(device)
        ids = torch.where(chosen & (fate < 0.8), mask, torch.where(chosen & (fate >= 0.9), another, batch.ids))
        return replace(batch, ids=ids), chosen

    return hide


def pretrain(
    ckpt: Checkpoint, rows: Encoded, schedule: Schedule, share: float = 0.15, *, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None,
) -> Checkpoint:
    """A copy of `ckpt` without its classifier, with its language-model head or a new one, trained to fill the masks in
    `rows`.

    A text's loss is the mean over its chosen tokens, 0 where none was. schedule, log: see train.fit.
    """
    learner = checkpoint.with_mlm(ckpt, seed)
    hide = masking(learner.model, ckpt.tokenizer, share, torch.Generator().manual_seed(seed))

    def loss(model: Encoder, batch: Batch) -> dict[str, Tensor]:
        hidden, chosen = hide(batch)
        # (M,)
        each = F.cross_entropy(model.predict_tokens(hidden, chosen).float(), batch.ids[chosen], reduction="none")
        of = chosen.nonzero()[:, 0]  # the text that each chosen token belongs to
        return {"mlm": each.new_zeros(len(chosen)).index_add(0, of, each) / chosen.sum(dim=1).clamp(min=1)}

    fit(learner.model, ckpt.tokenizer, rows, loss, schedule, seed=seed, dtype=dtype, log=log, name="MLM")
    return learner


@torch.inference_mode()
def masked_loss(ckpt: Checkpoint, rows: Examples, share: float = 0.15, seed: int = 0, batch_size: int = 128) -> float:
    """Nats a chosen token, the mean over all that `seed` chooses in `rows`: ln of the perplexity under masks."""
    model, tokenizer, encoded = ckpt.model.eval(), ckpt.tokenizer, ckpt.tokenizer.encode(rows)
    hide, total, count = masking(model, tokenizer, share, torch.Generator().manual_seed(seed)), 0.0, 0
    for which in in_order(encoded.lengths, batch_size):
        batch = tokenizer.batch(encoded, which).to(model.head_mask.device)
        hidden, chosen = hide(batch)
        total += F.cross_entropy(
            model.predict_tokens(hidden, chosen).double(), batch.ids[chosen], reduction="sum"
        ).item()
        count += int(chosen.sum())
    if not count:
        raise BadInput(f"of {len(rows)} rows no token was chosen: give more rows or a larger mask than {share}")
    return total / count
