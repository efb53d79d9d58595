"""Qwen2 (Yang et al., 2024; 2.5 too): Llama's block with biases at query, key and value. The rest is in llama.py, the
sliding window, which no text may exceed, in mistral.py."""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from minibd.models import llama, mistral
from minibd.models.llama import Block, Llama
from minibd.models.mistral import MistralConfig


@dataclass(frozen=True, slots=True)
class Qwen2Config(MistralConfig):
    """A Qwen2's sizes: Mistral's fields."""


class Qwen2Block(Block):
    """Llama's block with biases at query, key and value."""

    def __init__(self, c: Qwen2Config):
        super().__init__(c)
        for name in ("query", "key", "value"):
            linear = getattr(self, name)
            setattr(self, name, nn.Linear(linear.in_features, linear.out_features))


class Qwen2(Llama):
    block = Qwen2Block


def from_hf(values: dict) -> dict:
    window = values.get("sliding_window", mistral.WINDOW) if values.get("use_sliding_window") else 0
    return llama.from_hf(values) | {"sliding_window": window or 0}


def to_hf(config: Qwen2Config) -> dict:
    return mistral.to_hf(config) | {"use_sliding_window": config.sliding_window > 0}


HF_MAPPING = replace(
    llama.HF_MAPPING,
    model_type="qwen2",
    model=Qwen2,
    config_class=Qwen2Config,
    from_hf=from_hf,
    to_hf=to_hf,
    classes=("Qwen2ForSequenceClassification", "Qwen2ForCausalLM", "Qwen2Model"),
    tokenizer="Qwen2Tokenizer",
    always_tokenizer=True,
    supported={},
)
