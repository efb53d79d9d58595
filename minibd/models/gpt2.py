"""GPT-2 (Radford et al., 2019), written by hand: learned positions, pre-norm blocks, the LM head is the word embedding.

    h_0 = drop(word + position)
    a_l = h_{l-1} + drop(W_o [m_1 head_1; ...; m_H head_H]),   m the layer's head mask; the heads read LN(h_{l-1}),
          with drop(softmax) in each
    h_l = a_l + drop(W_down act(W_up LN(a_l)))
    logits = W_c LN(h_L)[last token],   next token: W_word LN(h_L)
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.attention import attend, merge_heads, split_heads
from minibd.models.cast_once import cast_input
from minibd.models.dropout import Dropout
from minibd.models.encoder import ACTIVATIONS, Encoder, HFMapping, ModelConfig, PackedBatch, check_config, end_of_text
from minibd.records import Batch


@dataclass(frozen=True, slots=True)
class Gpt2Config(ModelConfig):
    """A GPT-2's sizes. labels: number of classes (0: no classifier). ffn: 0 is 4 hidden.

    dropout: of the output of each half of a block. embedding_dropout: of the sum of the embeddings.
    """
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int = 0
    positions: int = 1024
    labels: int = 2
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    activation: str = "gelu_new"
    eps: float = 1e-5
    pad: int = 0

    tied: ClassVar[bool] = True  # the word embedding is the language-model head
    classifier_dropout: ClassVar[float] = 0.0

    def __post_init__(self):
        check_config(self)
        object.__setattr__(self, "ffn", self.ffn or 4 * self.hidden)


class Embeddings(nn.Module):
    """drop(word + position), positions counted from a text's first real token."""

    def __init__(self, c: Gpt2Config):
        super().__init__()
        # No padding row: the padding token is often the end-of-text token, which is trained.
        self.word = nn.Embedding(c.vocab, c.hidden)
        self.position = nn.Embedding(c.positions, c.hidden)
        self.dropout = Dropout(c.embedding_dropout)

    def forward(self, batch: Batch, packed: PackedBatch) -> Tensor:
        # (N, D)
        return self.dropout(self.word(packed.pack(batch.ids)) + self.position(packed.pack(packed.positions())))


class Block(nn.Module):
    """Pre-norm: each half normalises its input and adds its output to it, behind dropout."""

    def __init__(self, c: Gpt2Config):
        super().__init__()
        self.heads, self.act = c.heads, ACTIVATIONS[c.activation]
        self.query = nn.Linear(c.hidden, c.hidden)
        self.key = nn.Linear(c.hidden, c.hidden)
        self.value = nn.Linear(c.hidden, c.hidden)
        self.output = nn.Linear(c.hidden, c.hidden)
        self.attention_norm = nn.LayerNorm(c.hidden, eps=c.eps)
        self.up = nn.Linear(c.hidden, c.ffn)
        self.down = nn.Linear(c.ffn, c.hidden)
        self.norm = nn.LayerNorm(c.hidden, eps=c.eps)
        self.dropout, self.attention_dropout = Dropout(c.dropout), Dropout(c.attention_dropout)
        self.prefix: nn.Module | None = None  # models/prefix.py: keys and values in front of the text's own

    def attention(
        self, h: Tensor, packed: PackedBatch, head_mask: Tensor | None, want: bool
    ) -> tuple[Tensor, Tensor | None]:
        x = cast_input(self.attention_norm(h))  # (N, D)
        # (B, H, T, Dh)
        q, k, v = (split_heads(packed.unpack(proj(x)), self.heads) for proj in (self.query, self.key, self.value))
        if self.prefix is not None:
            k, v = self.prefix(k, v)
        dropout = self.attention_dropout if self.attention_dropout.active else None
        context, probs = attend(q, k, v, packed.mask, causal=True, head_mask=head_mask, dropout=dropout, want=want)
        return packed.pack(merge_heads(context)), probs

    def feed_forward(self, h: Tensor, context: Tensor) -> Tensor:
        h = h + self.dropout(self.output(context))
        return h + self.dropout(self.down(self.act(self.up(self.norm(h)))))


class Gpt2(Encoder):
    causal = True

    def __init__(self, config: Gpt2Config):
        super().__init__(config)
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.last_norm = nn.LayerNorm(config.hidden, eps=config.eps)
        self.build_head(0, bias=False)

    def finish(self, h: Tensor) -> Tensor:
        return self.last_norm(h)

    def pool(self, h: Tensor) -> Tensor:
        return h

    def lm_logits(self, h: Tensor) -> Tensor:
        return F.linear(h, self.embeddings.word.weight)


def from_hf(values: dict) -> dict:
    """Padding: the (first) end-of-text token, unless config.json names a padding token."""
    return {} if values.get("pad_token_id") is not None else {"pad": end_of_text(values)}


HF_MAPPING = HFMapping(
    model_type="gpt2",
    model=Gpt2,
    config_class=Gpt2Config,
    from_hf=from_hf,
    classes=("GPT2ForSequenceClassification", "GPT2LMHeadModel", "GPT2Model"),
    tokenizer="GPT2Tokenizer",
    lm="lm",
    config={
        "vocab": "vocab_size",
        "hidden": "n_embd",
        "layers": "n_layer",
        "heads": "n_head",
        "ffn": "n_inner",
        "positions": "n_positions",
        "dropout": "resid_pdrop",
        "embedding_dropout": "embd_pdrop",
        "attention_dropout": "attn_pdrop",
        "activation": "activation_function",
        "eps": "layer_norm_epsilon",
        "pad": "pad_token_id",
    },
    supported={
        "scale_attn_weights": (True, None),
        "scale_attn_by_inverse_layer_idx": (False, None),
        "reorder_and_upcast_attn": (False, None),
        "add_cross_attention": (False, None),
        "tie_word_embeddings": (True, None),
    },
    names={
        "embeddings.word": "transformer.wte",
        "embeddings.position": "transformer.wpe",
        "blocks.{i}.query": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.key": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.value": "transformer.h.{i}.attn.c_attn",
        "blocks.{i}.output": "transformer.h.{i}.attn.c_proj",
        "blocks.{i}.attention_norm": "transformer.h.{i}.ln_1",
        "blocks.{i}.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.down": "transformer.h.{i}.mlp.c_proj",
        "blocks.{i}.norm": "transformer.h.{i}.ln_2",
        "last_norm": "transformer.ln_f",
        "classifier": "score",
    },
    fused={"blocks.{i}.query": (0, 3), "blocks.{i}.key": (1, 3), "blocks.{i}.value": (2, 3)},
    transposed=frozenset(f"blocks.{{i}}.{name}" for name in ("query", "key", "value", "output", "up", "down")),
    prefix="transformer.",
    head_prefixes=("lm_head.", "score."),
    ignored=(".attn.bias", ".attn.masked_bias"),  # causal masks; with its dot, the first does not end "c_attn.bias"
    tied={"lm_head.weight": "transformer.wte.weight"},
)
