"""XLM-R (Conneau et al., 2020): RoBERTa over a vocabulary of a hundred languages. All but the names is in roberta.py,
the tokenizer in minibd/checkpoint/tokenizer_files.py."""
from __future__ import annotations

from dataclasses import dataclass, replace

from minibd.models import roberta
from minibd.models.roberta import Roberta, RobertaConfig


@dataclass(frozen=True, slots=True)
class XLMRobertaConfig(RobertaConfig):
    """An XLM-R's sizes: RoBERTa's."""


class XLMRoberta(Roberta):
    """RoBERTa's model."""


HF_MAPPING = replace(
    roberta.HF_MAPPING,
    model_type="xlm-roberta",
    model=XLMRoberta,
    config_class=XLMRobertaConfig,
    classes=("XLMRobertaForSequenceClassification", "XLMRobertaForMaskedLM", "XLMRobertaModel"),
    tokenizer="XLMRobertaTokenizer",
)
