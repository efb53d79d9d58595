"""ELECTRA (Clark et al., 2020): BERT's blocks behind embeddings of another width, and another head. The rest is in
bert.py.

    h_0 = W_e drop(LN(word + token_type + position)) + b_e,   without W_e where the two widths are equal
    pooled = gelu(W_p drop(h_L[CLS])),   logits = W_c drop(pooled)
    masked token (the generator's head): W_word LN(gelu(W h)) + b

The discriminator's own head, which tells replaced tokens, is not used.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models import bert
from minibd.models.bert import Bert, BertConfig, Embeddings, MLMHead, from_hf
from minibd.models.encoder import HFMapping, PackedBatch, check_config
from minibd.records import Batch


@dataclass(frozen=True, slots=True)
class ElectraConfig(BertConfig):
    """An ELECTRA's sizes: BERT's fields. embedding_size: the embeddings' width."""
    embedding_size: int = 128

    def __post_init__(self):
        check_config(self)


class ElectraEmbeddings(Embeddings):
    """BERT's embeddings, `embedding_size` wide, projected to the hidden size where that is another."""

    def __init__(self, c: ElectraConfig):
        super().__init__(c, c.embedding_size)
        self.project = nn.Linear(c.embedding_size, c.hidden) if c.embedding_size != c.hidden else None

    def forward(self, batch: Batch, packed: PackedBatch) -> Tensor:
        h = super().forward(batch, packed)  # (N, embedding_size)
        return h if self.project is None else self.project(h)  # (N, D)


class Electra(Bert):
    embed = ElectraEmbeddings

    def __init__(self, config: ElectraConfig):
        super().__init__(config)
        if config.mlm:
            self.mlm = MLMHead(config, config.embedding_size)
            self.mlm.act = F.gelu  # whatever the blocks' activation is

    def pool(self, h: Tensor) -> Tensor:
        return F.gelu(self.pooler(self.classifier_dropout(h)))


HF_MAPPING = HFMapping(
    model_type="electra",
    model=Electra,
    config_class=ElectraConfig,
    from_hf=from_hf,
    classes=("ElectraForSequenceClassification", "ElectraForMaskedLM", "ElectraModel"),
    tokenizer="BertTokenizer",
    config=bert.HF_MAPPING.config | {"embedding_size": "embedding_size"},
    supported=bert.HF_MAPPING.supported,
    names={
        **bert.names_under("electra."),
        "embeddings.project": "electra.embeddings_project",
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
        "mlm.dense": "generator_predictions.dense",
        "mlm.norm": "generator_predictions.LayerNorm",
        "mlm.bias": "generator_lm_head.bias",
    },
    prefix="electra.",
    head_prefixes=("generator_", "discriminator_predictions.", "classifier."),
    ignored=(
        "embeddings.position_ids",
        *(f"discriminator_predictions.{layer}.{leaf}" for layer in ("dense", "dense_prediction")
          for leaf in ("weight", "bias")),
    ),
    tied={"generator_lm_head.weight": "electra.embeddings.word_embeddings.weight"},
)
