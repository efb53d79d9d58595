"""The models in train mode against transformers under the same dropout masks: the same places in the same order, the
same probabilities, the same logits and gradients."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minibd.models import bert, distilbert, electra, gpt2, llama, mistral, mpnet, qwen2, roberta, xlm_roberta
from minibd.models.dropout import Dropout, seed_dropout
from minibd.models.encoder import Encoder, HFMapping, PackedBatch
from minibd.records import Batch

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

PAD = 1
SHAPE = dict(vocab=61, hidden=24, layers=3, heads=4, ffn=37, positions=20, pad=PAD, attention_dropout=0.25)
# No two kinds of places have one probability, and each is a multiple of 2^-16, to which ours rounds them.
HALVES, HEAD = dict(dropout=0.125), dict(classifier_dropout=0.375)
CASES: dict[str, tuple[HFMapping, dict]] = {
    "bert": (bert.HF_MAPPING, SHAPE | HALVES | HEAD),
    "roberta": (roberta.HF_MAPPING, SHAPE | HALVES | HEAD | dict(type_vocab_size=1, eps=1e-5)),
    "distilbert": (distilbert.HF_MAPPING, SHAPE | HALVES | HEAD),
    "llama": (llama.HF_MAPPING, SHAPE | dict(kv_heads=2)),
    "gpt2": (gpt2.HF_MAPPING, SHAPE | HALVES | dict(embedding_dropout=0.1875)),
    "mpnet": (mpnet.HF_MAPPING, SHAPE | HALVES),
    "xlm-roberta": (xlm_roberta.HF_MAPPING, SHAPE | HALVES | HEAD | dict(type_vocab_size=1, eps=1e-5)),
    "electra": (electra.HF_MAPPING, SHAPE | HALVES | HEAD | dict(embedding_size=16)),
    "mistral": (mistral.HF_MAPPING, SHAPE | dict(kv_heads=2)),
    "qwen2": (qwen2.HF_MAPPING, SHAPE | dict(kv_heads=2)),
}
# What transformers' classifiers drop, from the first to the last: the probabilities, in the order of the calls.
PLACES = {
    "bert": [0.125, *[0.25, 0.125, 0.125] * 3, 0.375],
    "roberta": [0.125, *[0.25, 0.125, 0.125] * 3, 0.375, 0.375],
    "distilbert": [0.125, *[0.25, 0.125] * 3, 0.375],  # none behind the attention half
    "llama": [0.25] * 3,
    "gpt2": [0.1875, *[0.25, 0.125, 0.125] * 3],
    "mpnet": [0.125, *[0.25, 0.125, 0.125] * 3, 0.125, 0.125],
    "xlm-roberta": [0.125, *[0.25, 0.125, 0.125] * 3, 0.375, 0.375],
    "electra": [0.125, *[0.25, 0.125, 0.125] * 3, 0.375, 0.375],
    "mistral": [0.25] * 3,
    "qwen2": [0.25] * 3,
}


def pair(name: str) -> tuple[Encoder, nn.Module, HFMapping]:
    """Ours and theirs, classifiers of 3 classes with the same random weights, in train mode."""
    torch.manual_seed(1)
    mapping, shape = CASES[name]
    config = getattr(transformers, mapping.classes[0]).config_class(
        **{mapping.config[key]: value for key, value in shape.items()}, num_labels=3
    )
    theirs = getattr(transformers, mapping.classes[0])._from_config(config, attn_implementation="eager").train()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * (0.2 if p.dim() > 1 else 0.1))
    mine, state = mapping.model(mapping.config_class(**shape, labels=3)).train(), theirs.state_dict()
    with torch.no_grad():
        for key, p in mine.named_parameters():
            p.copy_(ours_of(state, mapping, key))
    seed_dropout(mine, torch.Generator().manual_seed(3))
    return mine, theirs, mapping


def ours_of(tensors: dict[str, Tensor], mapping: HFMapping, key: str) -> Tensor:
    """Our parameter `key`, out of a dictionary of theirs."""
    there = mapping.hf_tensor(key)
    tensor = tensors[there.name]
    return (tensor.T if there.transposed else tensor).chunk(there.chunks)[there.chunk]


def batch_of(*lengths: int) -> Batch:
    """Random tokens, none of them padding, which stands on the right."""
    random, b, t = torch.Generator().manual_seed(2), len(lengths), max(lengths)
    mask = torch.arange(t) < torch.tensor(lengths)[:, None]
    ids = torch.randint(2, SHAPE["vocab"], (b, t), generator=random).where(mask, PAD)
    return Batch(ids, mask, torch.zeros_like(ids), torch.zeros(b, dtype=torch.long))


def real(x: Tensor, batch: Batch) -> Tensor:
    """Of what a dropout reads, (B, T, D), (B, H, T, T) or (B, D): the values of real tokens, or of real queries."""
    return x if x.dim() == 2 else (x.transpose(1, 2) if x.dim() == 4 else x)[batch.mask]


def as_texts(x: Tensor, packed: PackedBatch) -> Tensor:
    """(N, D) -> (B, T, D); what already is in that form, or of the classifier's (B, D), stays."""
    return packed.unpack(x) if x.dim() == 2 and len(x) == len(packed.pack(packed.real)) else x


@pytest.mark.parametrize("lengths", [(9, 9, 9), (9, 8, 9), (9, 2, 5)], ids=["full", "little padding", "packed"])
@pytest.mark.parametrize("name", CASES)
def test_train_mode_is_transformers_under_the_same_masks(name, lengths, monkeypatch):
    mine, theirs, mapping = pair(name)
    batch = batch_of(*lengths)
    packed, drops = mine.pack(batch), []  # (p, what it read, its mask), call by call

    def keep(module: Dropout, given: tuple[Tensor], out: Tensor) -> None:
        if module.active:
            x, y = as_texts(given[0].detach(), packed), as_texts(out.detach(), packed)
            drops.append((module.p, x, torch.where(y == 0, 0.0, 1 / (1 - module.p))))

    for module in mine.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(keep)
    logits = mine(batch).logits
    assert [p for p, _, _ in drops] == PLACES[name]

    asked = []

    def same_mask(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or not p:
            return x
        ours_p, read, mask = drops[len(asked)]
        asked.append(p)
        assert p == ours_p and (real(x.detach(), batch) - real(read, batch)).abs().max() < 1e-5, len(asked)
        return x * mask

    monkeypatch.setattr(nn.functional, "dropout", same_mask)
    reference = theirs(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert asked == PLACES[name]
    assert (logits - reference).abs().max() < 1e-5

    logits.square().sum().backward()
    reference.square().sum().backward()
    gradients = {key: p.grad for key, p in theirs.named_parameters()}
    for key, p in mine.named_parameters():
        assert (p.grad - ours_of(gradients, mapping, key)).abs().max() < 1e-4, key
