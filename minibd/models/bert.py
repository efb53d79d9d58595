"""BERT (Devlin et al., 2019), written by hand: embeddings, post-norm blocks, pooler, classification head, MLM head.

    h_0 = drop(LN(word + token_type + position))
    u_l = LN(h_{l-1} + drop(W_o [m_1 head_1; ...; m_H head_H])),   m the layer's head mask, drop(softmax) in each head
    h_l = LN(u_l + drop(W_down act(W_up u_l)))
    pooled = tanh(W_p h_L[CLS]),   logits = W_c drop(pooled)
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.attention import attend, merge_heads, split_heads
from minibd.models.cast_once import cast_input
from minibd.models.dropout import Dropout
from minibd.models.encoder import ACTIVATIONS, Encoder, HFMapping, ModelConfig, PackedBatch, check_config
from minibd.records import Batch


@dataclass(frozen=True, slots=True)
class BertConfig(ModelConfig):
    """A BERT's sizes. labels: number of classes (0: no pooler and no classifier). mlm: whether it has the MLM head."""

    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int = 512
    type_vocab_size: int = 2
    labels: int = 2
    mlm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    activation: str = "gelu"
    eps: float = 1e-12
    pad: int = 0

    def __post_init__(self):
        check_config(self)


class Embeddings(nn.Module):
    """drop(LN(word + token_type + position)). type_vocab_size 0: no segments; 1: one vector for every token. width: of
    the vectors, 0 for the hidden size."""

    def __init__(self, c: BertConfig, width: int = 0):
        super().__init__()
        width = width or c.hidden
        self.word = nn.Embedding(c.vocab, width, padding_idx=c.pad)
        self.position = nn.Embedding(c.positions, width)
        if c.type_vocab_size:
            self.token_type = nn.Embedding(c.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=c.eps)
        self.dropout = Dropout(c.dropout)
        self.type_vocab_size = c.type_vocab_size

    def position_vectors(self, batch: Batch) -> Tensor:
        """The position vectors, broadcastable to (B, T, D)."""
        return self.position.weight[:batch.ids.shape[1]]

    def forward(self, batch: Batch, packed: PackedBatch) -> Tensor:
        h = self.word(batch.ids)  # (B, T, D)
        if self.type_vocab_size:
            h = h + (self.token_type(batch.token_type_ids) if self.type_vocab_size > 1 else self.token_type.weight[0])
        return packed.pack(self.dropout(self.norm(h + self.position_vectors(batch))))  # (N, D)


class Block(nn.Module):
    """Post-norm: each half adds its input and normalises the sum. Dropout acts on the probabilities and both halves."""

    def __init__(self, c: BertConfig):
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
        h = cast_input(h)
        # (B, H, T, Dh)
        q, k, v = (split_heads(packed.unpack(proj(h)), self.heads) for proj in (self.query, self.key, self.value))
        if self.prefix is not None:
            k, v = self.prefix(k, v)
        dropout = self.attention_dropout if self.attention_dropout.active else None
        context, probs = attend(
            q, k, v, packed.mask, bias=packed.bias, head_mask=head_mask, dropout=dropout, want=want
        )
        return packed.pack(merge_heads(context)), probs

    def feed_forward(self, h: Tensor, context: Tensor) -> Tensor:
        h = self.attention_norm(h + self.dropout(self.output(context)))
        return self.norm(h + self.dropout(self.down(self.act(self.up(h)))))


class MLMHead(nn.Module):
    """W_word LN(act(W h)) + b: the output matrix is the word embedding."""

    def __init__(self, c: BertConfig, width: int = 0):
        super().__init__()
        width = width or c.hidden  # of the word embedding
        self.dense = nn.Linear(c.hidden, width)
        self.act = ACTIVATIONS[c.activation]
        self.norm = nn.LayerNorm(width, eps=c.eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab))

    def forward(self, h: Tensor, word: Tensor) -> Tensor:
        return F.linear(self.norm(self.act(self.dense(h))), word, self.bias)


class Bert(Encoder):
    embed, block = Embeddings, Block

    def __init__(self, config: BertConfig):
        super().__init__(config)
        self.embeddings = self.embed(config)
        self.blocks = nn.ModuleList(self.block(config) for _ in range(config.layers))
        self.build_head(config.hidden)
        if config.mlm:
            self.mlm = MLMHead(config)

    def lm_logits(self, h: Tensor) -> Tensor:
        return self.mlm(h, self.embeddings.word.weight) if self.config.mlm else super().lm_logits(h)


def from_hf(values: dict) -> dict:
    """The classifier's dropout; without one in config.json, that of the hidden states."""
    dropout = values.get("classifier_dropout")
    return {"classifier_dropout": values.get("hidden_dropout_prob", 0.1) if dropout is None else dropout}


HF_MAPPING = HFMapping(
    model_type="bert",
    model=Bert,
    config_class=BertConfig,
    from_hf=from_hf,
    classes=("BertForSequenceClassification", "BertForMaskedLM", "BertModel"),
    tokenizer="BertTokenizer",
    config={
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn": "intermediate_size",
        "positions": "max_position_embeddings",
        "type_vocab_size": "type_vocab_size",
        "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
        "classifier_dropout": "classifier_dropout",
        "activation": "hidden_act",
        "eps": "layer_norm_eps",
        "pad": "pad_token_id",
    },
    supported={
        "position_embedding_type": ("absolute", None), "is_decoder": (False, None), "tie_word_embeddings": (True, None),
    },
    names={
        "embeddings.word": "bert.embeddings.word_embeddings",
        "embeddings.position": "bert.embeddings.position_embeddings",
        "embeddings.token_type": "bert.embeddings.token_type_embeddings",
        "embeddings.norm": "bert.embeddings.LayerNorm",
        "blocks.{i}.query": "bert.encoder.layer.{i}.attention.self.query",
        "blocks.{i}.key": "bert.encoder.layer.{i}.attention.self.key",
        "blocks.{i}.value": "bert.encoder.layer.{i}.attention.self.value",
        "blocks.{i}.output": "bert.encoder.layer.{i}.attention.output.dense",
        "blocks.{i}.attention_norm": "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "blocks.{i}.up": "bert.encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.down": "bert.encoder.layer.{i}.output.dense",
        "blocks.{i}.norm": "bert.encoder.layer.{i}.output.LayerNorm",
        "pooler": "bert.pooler.dense",
        "classifier": "classifier",
        "mlm.dense": "cls.predictions.transform.dense",
        "mlm.norm": "cls.predictions.transform.LayerNorm",
        "mlm.bias": "cls.predictions.bias",
    },
    prefix="bert.",
    head_prefixes=("cls.", "classifier."),
    ignored=("embeddings.position_ids", "cls.seq_relationship.weight", "cls.seq_relationship.bias"),
    tied={
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
)


def names_under(prefix: str) -> dict[str, str]:
    """The names of embeddings and blocks in a model that spells them as BERT's, under its own prefix."""
    return {ours: theirs.replace(HF_MAPPING.prefix, prefix, 1) for ours, theirs in HF_MAPPING.names.items()
            if ours.startswith(("embeddings.", "blocks."))}
