"""MPNet (Song et al., 2020): BERT's blocks with a learned bias by relative position, RoBERTa's positions and head, no
segments. The rest is in bert.py.

    h_0 = drop(LN(word + position[pad + 1 + i])),   i = 0, 1, ... among the text's real tokens
    head = drop(softmax(q k' / sqrt(Dh) + b)) v,   b_ij = table[bucket(j - i)], one number a head, alike in all layers
    pooled = tanh(W_p drop(h_L[<s>])),   logits = W_c drop(pooled)
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models import bert, roberta
from minibd.models.bert import Bert
from minibd.models.encoder import HFMapping, ModelConfig, PackedBatch, check_config
from minibd.models.roberta import RobertaEmbeddings
from minibd.records import BadInput, Batch

BUCKETS = 32        # rows of the table: half of them for keys before the query, half for those behind it
MAX_DISTANCE = 128  # from here on all distances share the last bucket


@dataclass(frozen=True, slots=True)
class MPNetConfig(ModelConfig):
    """An MPNet's sizes under BERT's names. The padding token is 1 in every MPNet: positions are counted from it."""
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
    activation: str = "gelu"
    eps: float = 1e-12
    pad: int = 1

    type_vocab_size: ClassVar[int] = 0

    def __post_init__(self):
        check_config(self)
        if self.pad != 1:
            raise BadInput(f"padding token {self.pad}: an MPNet counts its positions from padding token 1: correct it")
        if self.max_len < 1:
            raise BadInput(f"{self.positions} positions leave none after padding token 1: the config needs 3 or more")

    @property
    def max_len(self) -> int:
        """Tokens of the longest text, special tokens included: positions 0 and 1 are not used."""
        return self.positions - 2

    @property
    def classifier_dropout(self) -> float:
        """That of the hidden states: MPNet's config has no other."""
        return self.dropout


def bucket(distance: Tensor) -> Tensor:
    """The row of the bias table for each key's distance j - i from its query, any shape.

    Keys before the query (and itself) have rows 0 to 15, those behind it 16 to 31; 8 distances have a row each, larger
    ones share theirs, on a logarithmic scale up to MAX_DISTANCE.
    """
    half, exact = BUCKETS // 2, BUCKETS // 4
    far = distance.abs()
    shared = exact + ((far / exact).log() / math.log(MAX_DISTANCE / exact) * (half - exact)).clamp(min=0).long()
    return torch.where(far < exact, far, shared.clamp(max=half - 1)) + half * (distance > 0)


class RelativePositionBias(nn.Embedding):
    """b, added to the scores of every layer: (B, H, T, T). weight: (BUCKETS, H)."""

    def __init__(self, heads: int):
        super().__init__(BUCKETS, heads)

    @staticmethod
    def rows(t: int, device: torch.device) -> Tensor:
        """The row that each pair of query and key reads: (T, T)."""
        place = torch.arange(t, device=device)
        return bucket(place[None, :] - place[:, None])

    def forward(self, real: Tensor) -> Tensor:
        b, t = real.shape
        # Each text has a view of its own, so that its share of the gradient can be told from its neighbours'.
        return super().forward(self.rows(t, real.device)).permute(2, 0, 1).contiguous().expand(b, -1, -1, -1)


class MPNet(Bert):
    embed = RobertaEmbeddings

    def __init__(self, config: MPNetConfig):
        super().__init__(config)
        self.relative_attention_bias = RelativePositionBias(config.heads)
        if config.mlm:
            self.mlm.act = F.gelu  # whatever the blocks' activation is

    def pack(self, batch: Batch) -> PackedBatch:
        packed = super().pack(batch)
        packed.bias = self.relative_attention_bias(batch.mask)
        return packed

    def pool(self, h: Tensor) -> Tensor:
        return super().pool(self.classifier_dropout(h))


HF_MAPPING = HFMapping(
    model_type="mpnet",
    model=MPNet,
    config_class=MPNetConfig,
    classes=("MPNetForSequenceClassification", "MPNetForMaskedLM", "MPNetModel"),
    tokenizer="MPNetTokenizer",
    config={
        ours: theirs
        for ours, theirs in bert.HF_MAPPING.config.items()
        if ours not in ("type_vocab_size", "classifier_dropout")
    },
    # Both are fixed in transformers' code, whatever config.json says.
    supported={
        "relative_attention_num_buckets": (BUCKETS, None), "pad_token_id": (1, None),
        "tie_word_embeddings": (True, None),
    },
    names={
        "embeddings.word": "mpnet.embeddings.word_embeddings",
        "embeddings.position": "mpnet.embeddings.position_embeddings",
        "embeddings.norm": "mpnet.embeddings.LayerNorm",
        "relative_attention_bias": "mpnet.encoder.relative_attention_bias",
        "blocks.{i}.query": "mpnet.encoder.layer.{i}.attention.attn.q",
        "blocks.{i}.key": "mpnet.encoder.layer.{i}.attention.attn.k",
        "blocks.{i}.value": "mpnet.encoder.layer.{i}.attention.attn.v",
        "blocks.{i}.output": "mpnet.encoder.layer.{i}.attention.attn.o",
        "blocks.{i}.attention_norm": "mpnet.encoder.layer.{i}.attention.LayerNorm",
        "blocks.{i}.up": "mpnet.encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.down": "mpnet.encoder.layer.{i}.output.dense",
        "blocks.{i}.norm": "mpnet.encoder.layer.{i}.output.LayerNorm",
        **{ours: theirs for ours, theirs in roberta.HF_MAPPING.names.items()
           if ours in ("pooler", "classifier", "mlm.dense", "mlm.norm", "mlm.bias")},
    },
    prefix="mpnet.",
    head_prefixes=("lm_head.", "classifier."),
    # A bare encoder's pooler is not the classifier's penultimate layer, and nothing here reads it.
    ignored=("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    tied={"lm_head.decoder.weight": "mpnet.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias"},
)
