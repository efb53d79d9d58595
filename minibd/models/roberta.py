"""RoBERTa (Liu et al., 2019): BERT's blocks; other positions, one segment, another head. The rest is in bert.py.

    h_0 = drop(LN(word + token_type_0 + position[pad + 1 + i])),   i = 0, 1, ... among the text's real tokens
    pooled = tanh(W_p drop(h_L[<s>])),   logits = W_c drop(pooled)
"""
from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from minibd.models import bert
from minibd.models.bert import Bert, BertConfig, Embeddings, from_hf
from minibd.models.encoder import HFMapping, check_config
from minibd.records import BadInput, Batch


@dataclass(frozen=True, slots=True)
class RobertaConfig(BertConfig):
    """A RoBERTa's sizes: BERT's fields with RoBERTa's defaults."""
    positions: int = 514
    type_vocab_size: int = 1
    eps: float = 1e-5
    pad: int = 1

    def __post_init__(self):
        check_config(self)
        if self.max_len < 1:
            raise BadInput(
                f"{self.positions} positions leave none after padding token {self.pad}: the config needs "
                f"{self.pad + 2} or more"
            )

    @property
    def max_len(self) -> int:
        """Tokens of the longest text, special tokens included: positions 0 .. pad are not used."""
        return self.positions - self.pad - 1


class RobertaEmbeddings(Embeddings):
    """drop(LN(word + token_type_0 + position)), positions counted from the first real token: padding on either side.

    A padding token within a text does not count, as in transformers, and has the padding's position.
    """

    def __init__(self, c: RobertaConfig):
        super().__init__(c)
        # RoBERTa was trained without segments: of a longer table only row 0 is read
        self.type_vocab_size = min(c.type_vocab_size, 1)
        self.pad = c.pad

    def positions(self, batch: Batch) -> Tensor:
        """The row of the position table that each token reads, (B, T): `pad` that of padding, then one a token."""
        counted = batch.mask & (batch.ids != self.pad)
        return counted.cumsum(1) * counted + self.pad

    def position_vectors(self, batch: Batch) -> Tensor:
        return self.position(self.positions(batch))  # (B, T, D)


class Roberta(Bert):
    embed = RobertaEmbeddings

    def __init__(self, config: RobertaConfig):
        super().__init__(config)
        if config.mlm:
            self.mlm.act = F.gelu  # whatever the blocks' activation is

    def pool(self, h: Tensor) -> Tensor:
        return super().pool(self.classifier_dropout(h))


HF_MAPPING = HFMapping(
    model_type="roberta",
    model=Roberta,
    config_class=RobertaConfig,
    from_hf=from_hf,
    classes=("RobertaForSequenceClassification", "RobertaForMaskedLM", "RobertaModel"),
    tokenizer="RobertaTokenizer",
    config=bert.HF_MAPPING.config,
    supported=bert.HF_MAPPING.supported,
    names={
        **bert.names_under("roberta."),
        "pooler": "classifier.dense",
        "classifier": "classifier.out_proj",
        "mlm.dense": "lm_head.dense",
        "mlm.norm": "lm_head.layer_norm",
        "mlm.bias": "lm_head.bias",
    },
    prefix="roberta.",
    head_prefixes=("lm_head.", "classifier."),
    # A bare encoder's pooler is not the classifier's penultimate layer, and nothing here reads it.
    ignored=("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"),
    tied={
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.bias": "lm_head.bias",
    },
)
