"""Llama (Touvron et al., 2023; its versions 2 and 3 too), written by hand: RMSNorm, rotary positions, grouped queries,
SwiGLU.

    h_0 = word
    a_l = h_{l-1} + W_o [m_1 head_1; ...; m_H head_H],   m the layer's head mask; the heads read norm(h_{l-1}),
          with q and k rotated by their token's position; drop(softmax) in each head
    h_l = a_l + W_down (silu(W_gate x) * W_up x),   x = norm(a_l)
    z = norm(h_L)[last token],   logits = W_c z,   or W_c drop(W_p z) with a bottleneck: two matrices, no activation
    next token: W_lm norm(h_L), or W_word norm(h_L) where the two are tied
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.attention import attend, merge_heads, split_heads
from minibd.models.cast_once import cast_input
from minibd.models.dropout import Dropout
from minibd.models.encoder import (
    ACTIVATIONS,
    Arranged,
    Encoder,
    HFMapping,
    ModelConfig,
    PackedBatch,
    check_config,
    end_of_text,
)
from minibd.records import BadInput, Batch

# Scalings of the rotary frequencies for longer texts, and the numbers each needs. "dynamic" scales only beyond
# `positions`, and no longer text is accepted: up to there it is "default".
ROPES = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True, slots=True)
class LlamaConfig(ModelConfig):
    """A Llama's sizes. labels: number of classes (0: no classifier).

    kv_heads: heads of keys and values, each serving heads / kv_heads queries (0: as many as heads). head_size: 0 is
    hidden / heads.
    lm: it has an LM head of its own. tied: the word embedding is the LM head.
    bottleneck: width of the two-layer classification head (MuScleLoRA: 16), `classifier_dropout` between the layers; 0:
    one layer, without dropout.
    rope_scaling: {} or {"rope_type": one of ROPES, its numbers}.
    """
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    kv_heads: int = 0
    head_size: int = 0
    positions: int = 2048
    labels: int = 2
    lm: bool = False
    tied: bool = False
    bottleneck: int = 0
    attention_dropout: float = 0.0
    classifier_dropout: float = 0.1
    activation: str = "silu"
    eps: float = 1e-6
    pad: int = 0
    rope_theta: float = 10000.0
    rope_scaling: dict = field(default_factory=dict, hash=False)

    def __post_init__(self):
        check_llama(self)


def check_llama(config: LlamaConfig) -> None:
    """Fills in the sizes that hang on others, and checks them all. Raises BadInput."""
    check_config(config)
    object.__setattr__(config, "kv_heads", config.kv_heads or config.heads)
    object.__setattr__(config, "head_size", config.head_size or config.hidden // config.heads)
    if config.heads % config.kv_heads:
        raise BadInput(
            f"{config.heads} heads are not a multiple of {config.kv_heads} key-value heads: correct the config"
        )
    if config.head_size % 2:
        raise BadInput(f"head size {config.head_size} is odd, rotary positions rotate pairs: correct the config")
    if config.lm and config.tied:
        raise BadInput(
            "the language-model head is either a matrix of its own or the word embedding: set lm or tied to false"
        )
    check_rope(config.rope_scaling)


# ---- rotary positions

def check_rope(scaling: object) -> None:
    """`scaling` is one of ROPES with all its numbers. Raises BadInput."""
    kind = scaling.get("rope_type", "default") if isinstance(scaling, dict) else scaling
    if kind not in list(ROPES):
        raise BadInput(f"rope type {kind!r} is not one of {', '.join(ROPES)}: convert the model or add it")
    for name in ROPES[kind]:
        if type(scaling.get(name)) not in (int, float) or not 0 < scaling[name] < math.inf:
            raise BadInput(f"rope type {kind!r} needs a positive {name}, not {scaling.get(name)!r}: correct the config")
    if kind == "llama3" and not scaling["low_freq_factor"] < scaling["high_freq_factor"]:
        raise BadInput(
            f"rope type 'llama3' has low_freq_factor {scaling['low_freq_factor']}, not below high_freq_factor "
            f"{scaling['high_freq_factor']}: correct the config"
        )


def frequencies(c: LlamaConfig, device: torch.device) -> Tensor:
    """Radians by which each of a head's Dh / 2 pairs rotates from one position to the next: theta^(-2j / Dh), scaled,
    (Dh / 2,)."""
    # Always float32, whatever the weights are, and in this order of operations: at late positions an ulp of frequency
    # shows.
    freq = 1.0 / c.rope_theta ** (torch.arange(0, c.head_size, 2, dtype=torch.float32, device=device) / c.head_size)
    scaling = c.rope_scaling
    kind = scaling.get("rope_type", "default")
    if kind == "linear":
        return freq / scaling["factor"]
    if kind == "llama3":
        # Pairs that rotate often within the original length keep their frequency, slow ones are divided by the factor,
        # those between are interpolated linearly.
        turns = scaling["original_max_position_embeddings"] * freq / (2 * math.pi)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * freq + (1 - kept) * freq / scaling["factor"]
    return freq


class RotaryPackedBatch(PackedBatch):
    """A PackedBatch with the rotation of each token's queries and keys, computed once for all blocks."""

    def __init__(self, real: Tensor, last: Tensor, c: LlamaConfig):
        super().__init__(real, causal=True, last=last)
        self.turn(c)

    def turn(self, c: LlamaConfig) -> None:
        positions = self.pack(self.positions())
        angles = positions[:, None, None] * frequencies(c, positions.device)  # (N, 1, Dh / 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def rotate(self, x: Tensor, heads: int) -> Tensor:
        """(N, H * Dh) -> the same, in each head the plane of elements j and j + Dh / 2 rotated, in float32, so that
        half precision rounds once."""
        a, b = x.unflatten(-1, (heads, -1)).chunk(2, dim=-1)
        return torch.cat((a * self.cos - b * self.sin, a * self.sin + b * self.cos), dim=-1).flatten(1).to(x.dtype)


class RotaryArranged(Arranged, RotaryPackedBatch):
    """The same with positions and a mask that are given."""

    def __init__(self, positions: Tensor, mask: Tensor, c: LlamaConfig):
        super().__init__(positions, mask)
        self.turn(c)


# ---- the model

class RMSNorm(nn.Module):
    """weight * x / sqrt(mean(x^2) + eps), the quotient in float32 at least: a square overflows half precision."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()).to(x.dtype)


class Embeddings(nn.Module):
    def __init__(self, c: LlamaConfig):
        super().__init__()
        # No padding row: the padding token is often the end-of-text token, which is trained.
        self.word = nn.Embedding(c.vocab, c.hidden)

    def forward(self, batch: Batch, packed: PackedBatch) -> Tensor:
        return self.word(packed.pack(batch.ids))  # (N, D)


class Block(nn.Module):
    """Pre-norm: each half normalises its input and adds its output to it. Dropout on the probabilities alone."""

    def __init__(self, c: LlamaConfig):
        super().__init__()
        self.heads, self.kv_heads, self.act = c.heads, c.kv_heads, ACTIVATIONS[c.activation]
        self.query = nn.Linear(c.hidden, c.heads * c.head_size, bias=False)
        self.key = nn.Linear(c.hidden, c.kv_heads * c.head_size, bias=False)
        self.value = nn.Linear(c.hidden, c.kv_heads * c.head_size, bias=False)
        self.output = nn.Linear(c.heads * c.head_size, c.hidden, bias=False)
        self.attention_norm = RMSNorm(c.hidden, c.eps)
        self.gate = nn.Linear(c.hidden, c.ffn, bias=False)
        self.up = nn.Linear(c.hidden, c.ffn, bias=False)
        self.down = nn.Linear(c.ffn, c.hidden, bias=False)
        self.norm = RMSNorm(c.hidden, c.eps)
        self.attention_dropout = Dropout(c.attention_dropout)
        self.prefix: nn.Module | None = None  # models/prefix.py: keys and values in front of the text's own

    def attention(
        self, h: Tensor, packed: RotaryPackedBatch, head_mask: Tensor | None, want: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = cast_input(self.attention_norm(h))  # (N, D)
        q = split_heads(packed.unpack(packed.rotate(self.query(x), self.heads)), self.heads)  # (B, H, T, Dh)
        k = split_heads(packed.unpack(packed.rotate(self.key(x), self.kv_heads)), self.kv_heads)  # (B, H_kv, T, Dh)
        v = split_heads(packed.unpack(self.value(x)), self.kv_heads)
        if self.prefix is not None:
            k, v = self.prefix(k, v)
        dropout = self.attention_dropout if self.attention_dropout.active else None
        context, probs = attend(q, k, v, packed.mask, causal=True, head_mask=head_mask, dropout=dropout, want=want)
        return packed.pack(merge_heads(context)), probs

    def feed_forward(self, h: Tensor, context: Tensor) -> Tensor:
        h = h + self.output(context)
        x = cast_input(self.norm(h))
        return h + self.down(self.act(self.gate(x)) * self.up(x))


class Llama(Encoder):
    causal, block = True, Block

    def __init__(self, config: LlamaConfig):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.layers))
        self.last_norm = RMSNorm(config.hidden, config.eps)
        self.build_head(config.bottleneck, bias=False)
        if config.labels and not config.bottleneck:
            self.classifier_dropout.p = 0.0  # the usual head of one layer has no dropout
        if config.lm:
            self.lm = nn.Linear(config.hidden, config.vocab, bias=False)

    def pack(self, batch: Batch) -> RotaryPackedBatch:
        return RotaryPackedBatch(batch.mask, self.last_read(batch), self.config)

    def arrange(self, positions: Tensor, mask: Tensor) -> RotaryArranged:
        return RotaryArranged(positions, mask, self.config)

    def finish(self, h: Tensor) -> Tensor:
        return self.last_norm(h)

    def pool(self, h: Tensor) -> Tensor:
        return self.pooler(h) if self.config.bottleneck else h

    def lm_logits(self, h: Tensor) -> Tensor:
        if not (self.config.lm or self.config.tied):
            return super().lm_logits(h)
        return F.linear(h, self.lm.weight if self.config.lm else self.embeddings.word.weight)


# ---- the mapping to Hugging Face's names

def rope_from_hf(values: dict) -> dict:
    """rope_theta and rope_scaling of a config.json: in rope_parameters (transformers 5), or under these two keys."""
    scaling = values.get("rope_scaling") or values.get("rope_parameters") or {}
    if not isinstance(scaling, dict):
        return {"rope_scaling": scaling}  # LlamaConfig refuses it
    kind = str(scaling.get("rope_type", scaling.get("type", "default")))
    if (share := scaling.get("partial_rotary_factor", values.get("partial_rotary_factor"))) not in (None, 1):
        kind += f" of {share} of a head"  # LlamaConfig refuses this kind, too
    original = scaling.get("original_max_position_embeddings", values.get("max_position_embeddings"))
    numbers = scaling | {"original_max_position_embeddings": values.get("original_max_position_embeddings", original)}
    return {
        "rope_theta": scaling.get("rope_theta", values.get("rope_theta", 10000.0)),
        "rope_scaling": {}
        if kind == "default"
        else {"rope_type": kind} | {name: numbers.get(name) for name in ROPES.get(kind, ())},
    }


def rope_to_hf(config: LlamaConfig) -> dict:
    """Entries of config.json under the older keys, which transformers 4 and 5 both read."""
    return {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling or None}


def from_hf(values: dict) -> dict:
    """Rotary positions; the LM head is tied only where config.json says it is; padding: the (first) end-of-text token,
    unless config.json names one."""
    ours = rope_from_hf(values) | {"tied": values.get("tie_word_embeddings") or False}
    if values.get("pad_token_id") in (None, -1):
        ours["pad"] = end_of_text(values)
    return ours


HF_MAPPING = HFMapping(
    model_type="llama",
    model=Llama,
    config_class=LlamaConfig,
    from_hf=from_hf,
    to_hf=rope_to_hf,
    classes=("LlamaForSequenceClassification", "LlamaForCausalLM", "LlamaModel"),
    tokenizer="PreTrainedTokenizerFast",
    lm="lm",
    config={
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "kv_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "positions": "max_position_embeddings",
        "tied": "tie_word_embeddings",
        "attention_dropout": "attention_dropout",
        "activation": "hidden_act",
        "eps": "rms_norm_eps",
        "pad": "pad_token_id",
    },
    supported={"attention_bias": (False, None), "mlp_bias": (False, None)},
    names={
        "embeddings.word": "model.embed_tokens",
        "blocks.{i}.query": "model.layers.{i}.self_attn.q_proj",
        "blocks.{i}.key": "model.layers.{i}.self_attn.k_proj",
        "blocks.{i}.value": "model.layers.{i}.self_attn.v_proj",
        "blocks.{i}.output": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.attention_norm": "model.layers.{i}.input_layernorm",
        "blocks.{i}.gate": "model.layers.{i}.mlp.gate_proj",
        "blocks.{i}.up": "model.layers.{i}.mlp.up_proj",
        "blocks.{i}.down": "model.layers.{i}.mlp.down_proj",
        "blocks.{i}.norm": "model.layers.{i}.post_attention_layernorm",
        "last_norm": "model.norm",
        "pooler": "score.dense",  # in no folder of transformers' own: its `score` is one matrix
        "classifier": "score",
        "lm": "lm_head",
    },
    prefix="model.",
    head_prefixes=("lm_head.", "score."),
    ignored=(".rotary_emb.inv_freq",),
    tied={"lm_head.weight": "model.embed_tokens.weight"},
)
