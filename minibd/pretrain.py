"""Language modelling, before any task: masked (Devlin et al., 2019, 3.1), as a BERT learns it, and from left to right,
as a Llama does (the end of the file).

Of a text's tokens 15 % are chosen; 80 % of these become [MASK], 10 % a random token, 10 % stay as they are; the model
predicts the original tokens. This makes the small checkpoints of weights/, and trains a new language-model head for a
checkpoint published without one, which contextual augmentation needs (augment/contextual.py). The causal one is trained
on every next token; filters/onion.py reads it.
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
from minibd.train import Log, Schedule, dense_optimizer, fit


def masking(
    model: Encoder, tokenizer: Tokenizer, share: float, generator: torch.Generator
) -> Callable[[Batch], tuple[Batch, Tensor]]:
    """A function that takes a batch on the model's device and returns it with tokens hidden, and which were chosen, a
    (B, T) mask. Special tokens are never chosen.

    share: the probability that a token is chosen, independently. generator: of the CPU. Raises BadInput where `model`
    has no mask token.
    """
    if not 0 < share <= 1:
        raise BadInput(f"mask is {share}, a share of a text's tokens: it must be above 0 and at most 1")
    mask, special, device = mask_of(model, tokenizer), tokenizer.special, model.head_mask.device
    ordinary = torch.tensor([i for i in range(tokenizer.backend.get_vocab_size()) if i not in special])
    maskable = torch.zeros(model.config.vocab, dtype=torch.bool).index_fill(0, ordinary, True).to(device)

    def hide(batch: Batch) -> tuple[Batch, Tensor]:
        shape, rows = batch.whole.mask.shape, batch.whole.rows.cpu()  # every process draws for all texts
        chosen = (torch.rand(shape, generator=generator)[rows] < share).to(device)  # (B, T)
        chosen = chosen & batch.mask & maskable[batch.ids]
        draws = torch.rand(shape, generator=generator)[rows].to(device)  # (B, T)
        random_ids = ordinary[torch.randint(len(ordinary), shape, generator=generator)[rows]].to(device)
        ids = torch.where(chosen & (draws < 0.8), mask, torch.where(chosen & (draws >= 0.9), random_ids, batch.ids))
        return replace(batch, ids=ids), chosen

    return hide


def pretrain(
    ckpt: Checkpoint, rows: Encoded, schedule: Schedule, share: float = 0.15, *, seed: int = 0,
    dtype: torch.dtype = torch.float32, log: Log | None = None,
) -> Checkpoint:
    """A copy of `ckpt` without classifier, with its language-model head or a new one, trained to fill masks in `rows`.

    A text's loss is the mean over its chosen tokens, in nats; 0 where none is chosen. schedule, log: see train.fit.
    """
    learner = checkpoint.with_mlm(ckpt, seed)
    generator = torch.Generator().manual_seed(seed)
    hide = masking(learner.model, ckpt.tokenizer, share, generator)

    def loss(model: Encoder, batch: Batch) -> dict[str, Tensor]:
        hidden, chosen = hide(batch)
        logits = model.predict_tokens(hidden, chosen).float()  # (M, V)
        losses = F.cross_entropy(logits, batch.ids[chosen], reduction="none")  # (M,)
        text_of = chosen.nonzero()[:, 0]  # (M,), the text that each chosen token belongs to
        return {"mlm": losses.new_zeros(len(chosen)).index_add(0, text_of, losses) / chosen.sum(dim=1).clamp(min=1)}

    fit(learner.model, ckpt.tokenizer, rows, loss, schedule, seed=seed, dtype=dtype, log=log, name="MLM",
        parts=[generator], optimizer=dense_optimizer(learner.model, schedule))
    return learner


@torch.inference_mode()
def masked_loss(ckpt: Checkpoint, rows: Examples, share: float = 0.15, seed: int = 0, batch_size: int = 128) -> float:
    """Mean cross-entropy of the tokens that `seed` chooses in `rows`, nats a token: ln of the masked perplexity."""
    model, tokenizer, encoded = ckpt.model.eval(), ckpt.tokenizer, ckpt.tokenizer.encode(rows)
    hide = masking(model, tokenizer, share, torch.Generator().manual_seed(seed))
    total, count = 0.0, 0
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


def frequency_loss(tokenizer: Tokenizer, train: Examples, test: Examples) -> float:
    """What guessing by frequency gets, the level of chance of `masked_loss`: mean cross-entropy of the tokens of `test`
    under their frequencies in `train`, each counted once more, nats a token."""
    ordinary = [i for i in range(tokenizer.backend.get_vocab_size()) if i not in tokenizer.special]
    counts = [
        torch.bincount(torch.tensor([i for row in tokenizer.encode(rows).ids for i in row], dtype=torch.int64),
                       minlength=ordinary[-1] + 1)[ordinary].double()
        for rows in (train, test)
    ]  # each (V without special tokens,)
    logs = ((counts[0] + 1) / (counts[0] + 1).sum()).log()
    return float(-(counts[1] * logs).sum() / counts[1].sum())


# ---- from left to right

def followed(batch: Batch) -> Tensor:
    """The tokens of `batch` that another one follows, (B, T)."""
    return batch.mask & F.pad(batch.mask, (0, 1))[:, 1:]


def next_token_losses(model: Encoder, batch: Batch) -> tuple[Tensor, Tensor]:
    """-log p(token | those before it) of every token but each text's first, (M,), in nats, and the text of each, (M,).
    """
    at = followed(batch)
    losses = F.cross_entropy(model.predict_tokens(batch, at).float(), batch.ids[:, 1:][at[:, :-1]], reduction="none")
    return losses, at.nonzero()[:, 0]


def pretrain_causal(
    ckpt: Checkpoint, rows: Encoded, schedule: Schedule, *, seed: int = 0, dtype: torch.dtype = torch.float32,
    log: Log | None = None,
) -> Checkpoint:
    """A copy of `ckpt`, a causal language model, trained to predict the next token of `rows`.

    A text's loss is the mean over its tokens but the first, in nats. schedule, log: see train.fit.
    """
    learner = checkpoint.copy(ckpt)

    def loss(model: Encoder, batch: Batch) -> dict[str, Tensor]:
        losses, text_of = next_token_losses(model, batch)
        counts = followed(batch).sum(dim=1).clamp(min=1)
        return {"lm": losses.new_zeros(len(counts)).index_add(0, text_of, losses) / counts}

    fit(learner.model, ckpt.tokenizer, rows, loss, schedule, seed=seed, dtype=dtype, log=log, name="LM",
        optimizer=dense_optimizer(learner.model, schedule))
    return learner


@torch.inference_mode()
def causal_loss(ckpt: Checkpoint, rows: Examples, batch_size: int = 128) -> float:
    """Mean cross-entropy of every next token of `rows`, nats a token: ln of the perplexity."""
    encoded, total, count = ckpt.tokenizer.encode(rows), 0.0, 0
    for which in in_order(encoded.lengths, batch_size):
        losses, _ = next_token_losses(ckpt.model.eval(), ckpt.tokenizer.batch(encoded, which).to(
            ckpt.model.head_mask.device))
        total, count = total + losses.double().sum().item(), count + len(losses)
    if not count:
        raise BadInput(f"none of {len(rows)} rows has two tokens: give longer ones")
    return total / count
