"""DistilBERT (Sanh et al., 2019): BERT's blocks, no segments, another penultimate layer. The rest is in bert.py.

    h_0 = drop(LN(word + position))
    u_l = LN(h_{l-1} + W_o [m_1 head_1; ...; m_H head_H]),   h_l = LN(u_l + drop(W_down act(W_up u_l)))
    pooled = relu(W_p h_L[CLS]),   logits = W_c drop(pooled)

The authors' code, which is transformers', has no dropout between W_o and the residual, where BERT has one.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from minibd.models.bert import Bert, Block
from minibd.models.encoder import HFMapping, ModelConfig, check_config


@dataclass(frozen=True, slots=True)
class DistilBertConfig(ModelConfig):
    """A DistilBERT's sizes under BERT's names. What every DistilBERT has alike is no field: config.json has it not."""
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int = 512
    labels: int = 2
    mlm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.2
    activation: str = "gelu"
    pad: int = 0

    type_vocab_size: ClassVar[int] = 0
    eps: ClassVar[float] = 1e-12

    def __post_init__(self):
        check_config(self)


class DistilBertBlock(Block):
    """BERT's block without the dropout behind the attention half."""

    def feed_forward(self, h: Tensor, context: Tensor) -> Tensor:
        h = self.attention_norm(h + self.output(context))
        return self.norm(h + self.dropout(self.down(self.act(self.up(h)))))


class DistilBert(Bert):
    block = DistilBertBlock

    def pool(self, h: Tensor) -> Tensor:
        return torch.relu(self.pooler(h))


HF_MAPPING = HFMapping(
    model_type="distilbert",
    model=DistilBert,
    config_class=DistilBertConfig,
    classes=("DistilBertForSequenceClassification", "DistilBertForMaskedLM", "DistilBertModel"),
    tokenizer="BertTokenizer",
    config={
        "vocab": "vocab_size",
        "hidden": "dim",
        "layers": "n_layers",
        "heads": "n_heads",
        "ffn": "hidden_dim",
        "positions": "max_position_embeddings",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "classifier_dropout": "seq_classif_dropout",
        "activation": "activation",
        "pad": "pad_token_id",
    },
    # sinusoidal_pos_embds says what the position table began as; the table itself is in the folder either way.
    supported={"tie_word_embeddings": (True, None)},
    names={
        "embeddings.word": "distilbert.embeddings.word_embeddings",
        "embeddings.position": "distilbert.embeddings.position_embeddings",
        "embeddings.norm": "distilbert.embeddings.LayerNorm",
        "blocks.{i}.query": "distilbert.transformer.layer.{i}.attention.q_lin",
        "blocks.{i}.key": "distilbert.transformer.layer.{i}.attention.k_lin",
        "blocks.{i}.value": "distilbert.transformer.layer.{i}.attention.v_lin",
        "blocks.{i}.output": "distilbert.transformer.layer.{i}.attention.out_lin",
        "blocks.{i}.attention_norm": "distilbert.transformer.layer.{i}.sa_layer_norm",
        "blocks.{i}.up": "distilbert.transformer.layer.{i}.ffn.lin1",
        "blocks.{i}.down": "distilbert.transformer.layer.{i}.ffn.lin2",
        "blocks.{i}.norm": "distilbert.transformer.layer.{i}.output_layer_norm",
        "pooler": "pre_classifier",
        "classifier": "classifier",
        "mlm.dense": "vocab_transform",
        "mlm.norm": "vocab_layer_norm",
        "mlm.bias": "vocab_projector.bias",
    },
    prefix="distilbert.",
    head_prefixes=("vocab_", "pre_classifier.", "classifier."),
    ignored=("embeddings.position_ids",),
    tied={"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"},
)
