"""Head surgery: copies of a checkpoint in memory with another head, or with none. The original is never changed."""
from __future__ import annotations

import copy as copying
from collections.abc import Sequence
from dataclasses import fields, replace

import torch

from minibd.checkpoint.header import Checkpoint, hf_mapping_of
from minibd.checkpoint.tensors import check_plain, empty_model, init_head
from minibd.records import BadInput


def copy(ckpt: Checkpoint) -> Checkpoint:
    """The same checkpoint with a model of its own; the tokenizer is shared. A mitigation works on the copy, never on
    its victim."""
    return Checkpoint(copying.deepcopy(ckpt.model), ckpt.tokenizer, ckpt.labels, copying.deepcopy(ckpt.history))


def headless(ckpt: Checkpoint) -> Checkpoint:
    """A copy without pooler and classifier, as a pre-trained model is published: fine-tuning gives it a new head."""
    config = ckpt.model.config
    none = {name: 0 for name in ("labels", "bottleneck") if name in {field.name for field in fields(config)}}
    return _with_config(ckpt, replace(config, **none), ())


def with_head(ckpt: Checkpoint, labels: Sequence[str], seed: int) -> Checkpoint:
    """A copy of an encoder with a new classifier for the classes `labels`, drawn as `load` draws it."""
    return _with_config(ckpt, replace(ckpt.model.config, labels=len(labels)), tuple(labels), seed)


def with_mlm(ckpt: Checkpoint, seed: int) -> Checkpoint:
    """A copy without classifier and with a masked-language-model head: its own, or a new one drawn from `seed`. Raises
    BadInput."""
    encoder = headless(ckpt)
    if not hasattr(encoder.model.config, "mlm"):
        raise BadInput(f"a {hf_mapping_of(ckpt.model).model_type} reads from left to right and fills no masks: use a "
                       f"BERT, RoBERTa or DistilBERT")
    return _with_config(encoder, replace(encoder.model.config, mlm=True), (), seed)


def to_tune(ckpt: Checkpoint, labels: Sequence[str], seed: int, keep_head: bool) -> Checkpoint:
    """What a fine-tuning of `ckpt` starts from: a copy with a new classifier for the classes `labels`, or with its own
    where `keep_head`.

    The new one is drawn from seed + 1: whoever trained `ckpt` with the same seed began with another. Raises BadInput
    where there is no classifier to keep.
    """
    if not keep_head:
        return with_head(headless(ckpt), labels, seed + 1)
    if not ckpt.labels:
        raise BadInput(
            "keep_head: this checkpoint has no classifier to keep, leave it out: fine-tune it with a new one"
        )
    return copy(ckpt)


def new_classifier(ckpt: Checkpoint, labels: Sequence[str], seed: int, bottleneck: int = 0) -> Checkpoint:
    """A copy with a new last layer for the classes `labels`, drawn from seed + 1; the penultimate layer, if there is
    one, stays: BERT's is pre-trained.

    bottleneck: the penultimate layer's width where the architecture leaves it open (Llama); at another width it is new,
    too.
    """
    config = replace(ckpt.model.config, labels=len(labels))
    if hasattr(config, "bottleneck"):
        config = replace(config, bottleneck=bottleneck)
    return _with_config(ckpt, config, tuple(labels), seed + 1, redrawn="classifier.")


def _with_config(
    ckpt: Checkpoint, config: object, labels: tuple[str, ...], seed: int = 0, redrawn: str | None = None
) -> Checkpoint:
    """A copy with the parts of `config`: those that it does not have are left out, new ones are drawn from `seed`.

    redrawn: prefix of the names of parts that are drawn anew although the checkpoint has them.
    """
    check_plain(ckpt.model, "a new head is for a plain model")
    model = empty_model(hf_mapping_of(ckpt.model), config)
    held = {name: tensor for name, tensor in ckpt.model.state_dict().items()
            if not (redrawn and name.startswith(redrawn))}
    like = ckpt.model.embeddings.word.weight
    # On the CPU first: a seed draws the same head for every device.
    new = [name for name, meta in model.state_dict().items() if name not in held or held[name].shape != meta.shape]
    tensors = {name: torch.zeros(meta.shape, dtype=like.dtype) if name in new else held[name].cpu().clone()
               for name, meta in model.state_dict().items()}
    model.load_state_dict(tensors, assign=True)
    for name in ("micro_batch", "recompute", "cache"):
        setattr(model, name, getattr(ckpt.model, name))
    init_head(model, new, seed)
    return Checkpoint(model.eval().to(like.device), ckpt.tokenizer, labels, copying.deepcopy(ckpt.history))
