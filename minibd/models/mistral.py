"""Mistral (Jiang et al., 2023): Llama's block; the rest is in llama.py. Its sliding window, in which a token attends to
the `sliding_window` last ones, itself included, is not computed: no text may be longer."""
from __future__ import annotations

from dataclasses import dataclass, replace

from minibd.models import llama
from minibd.models.llama import Llama, LlamaConfig, check_llama
from minibd.records import BadInput

WINDOW = 4096  # where config.json has no such key


@dataclass(frozen=True, slots=True)
class MistralConfig(LlamaConfig):
    """A Mistral's sizes: Llama's fields. sliding_window: tokens that one attends to (0: all before it)."""
    sliding_window: int = 0

    def __post_init__(self):
        check_llama(self)
        if 0 < self.sliding_window < self.positions:
            raise BadInput(
                f"sliding_window {self.sliding_window} is below the {self.positions} positions, and a longer text "
                f"would not be attended to whole: set max_position_embeddings to {self.sliding_window} or less"
            )


class Mistral(Llama):
    """Llama's model."""


def from_hf(values: dict) -> dict:
    return llama.from_hf(values) | {"sliding_window": values.get("sliding_window", WINDOW) or 0}


def to_hf(config: MistralConfig) -> dict:
    return llama.rope_to_hf(config) | {"sliding_window": config.sliding_window or None}


HF_MAPPING = replace(
    llama.HF_MAPPING,
    model_type="mistral",
    model=Mistral,
    config_class=MistralConfig,
    from_hf=from_hf,
    to_hf=to_hf,
    classes=("MistralForSequenceClassification", "MistralForCausalLM", "MistralModel"),
    always_tokenizer=True,
    supported={},
)
