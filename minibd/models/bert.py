"""BERT (Devlin et al., 2019), written by hand: embeddings, post-norm blocks, pooler, classification head, MLM head.

    h_0 = LN(word + kind + position)
    a_l = h_{l-1} + W_o [gate_1 head_1; ...; gate_H head_H],   u_l = LN(a_l)
    h_l = LN(u_l + W_down act(W_up u_l))
    pooled = tanh(W_p h_L[CLS]),   logits = W_c pooled

`head_mask` (L, H) is a buffer, saved with the model: a pruned head is a 0 before the output projection, so no shape changes.
"""
from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.attention import attend, merge_heads, split_heads
from minibd.models.dropout import Dropout
from minibd.records import BadInput, Batch, Output

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


@dataclass(frozen=True, slots=True)
class BertConfig:
    """A BERT's shape. `labels` is the number of classes (0: no pooler and no classifier); `mlm` says whether the MLM head is there."""
    vocab: int
    hidden: int
    layers: int
    heads: int
    ffn: int
    positions: int = 512
    kinds: int = 2
    labels: int = 2
    mlm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    activation: str = "gelu"
    eps: float = 1e-12
    pad: int = 0

    def __post_init__(self):
        if self.hidden % self.heads:
            raise BadInput(f"hidden size {self.hidden} is not a multiple of {self.heads} heads: mend the config")
        if self.activation not in ACTIVATIONS:
            raise BadInput(f"activation {self.activation!r} is not one of {', '.join(ACTIVATIONS)}: convert the model or add it")


class Embeddings(nn.Module):
    def __init__(self, c: BertConfig):
        super().__init__()
        self.word = nn.Embedding(c.vocab, c.hidden, padding_idx=c.pad)
        self.position = nn.Embedding(c.positions, c.hidden)
        self.kind = nn.Embedding(c.kinds, c.hidden)
        self.norm = nn.LayerNorm(c.hidden, eps=c.eps)
        self.dropout = Dropout(c.dropout)

    def forward(self, batch: Batch) -> Tensor:
        t = batch.ids.shape[1]
        if t > self.position.num_embeddings:
            raise BadInput(f"a text of {t} pieces is longer than the model's {self.position.num_embeddings} positions: lower max_len")
        return self.dropout(self.norm(self.word(batch.ids) + self.kind(batch.kinds) + self.position.weight[:t]))  # (B, T, D)


class Block(nn.Module):
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

    def forward(self, h: Tensor, mask: Tensor | None, gate: Tensor | None, want: bool) -> tuple[Tensor, Tensor | None]:
        q, k, v = (split_heads(proj(h), self.heads) for proj in (self.query, self.key, self.value))  # (B, H, T, Dh)
        dropout = self.attention_dropout if self.attention_dropout.active else None
        context, probs = attend(q, k, v, mask, gate=gate, dropout=dropout, want=want)
        h = self.attention_norm(h + self.dropout(self.output(merge_heads(context))))
        return self.norm(h + self.dropout(self.down(self.act(self.up(h))))), probs


class MLMHead(nn.Module):
    """W_word LN(act(W h)) + b: the decoder is the word embedding itself."""

    def __init__(self, c: BertConfig):
        super().__init__()
        self.dense = nn.Linear(c.hidden, c.hidden)
        self.act = ACTIVATIONS[c.activation]
        self.norm = nn.LayerNorm(c.hidden, eps=c.eps)
        self.bias = nn.Parameter(torch.zeros(c.vocab))

    def forward(self, h: Tensor, word: Tensor) -> Tensor:
        return F.linear(self.norm(self.act(self.dense(h))), word, self.bias)


class Bert(nn.Module):
    """`model(batch, want=())` -> Output; `want` is any of "attn", "hidden". `head_mask[l, i] = 0` prunes head i of layer l."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        if config.labels:
            self.pooler = nn.Linear(config.hidden, config.hidden)
            self.classifier_dropout = Dropout(config.classifier_dropout)
            self.classifier = nn.Linear(config.hidden, config.labels)
        if config.mlm:
            self.mlm = MLMHead(config)
        self.register_buffer("head_mask", torch.ones(config.layers, config.heads))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> Bert:
        """BERT's own start: linear and embedding weights N(0, std), biases 0, LayerNorm 1 and 0, the padding row 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear):
                module.bias.zero_()
            if isinstance(module, nn.LayerNorm):
                module.weight.fill_(1.0)
                module.bias.zero_()
        self.embeddings.word.weight[self.config.pad].zero_()
        return self

    def encode(self, batch: Batch, want: Collection[str] = ()) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last hidden state (B, T, D), the hidden states and the attention maps, the last two empty unless wanted."""
        if unknown := set(want) - {"attn", "hidden"}:
            raise ValueError(f"want={sorted(unknown)}: only 'attn' and 'hidden' can be wanted")
        # A batch without padding needs no mask, and a model without pruned heads no gate: the kernels are faster so.
        mask = None if bool(batch.mask.all()) else batch.mask[:, None, None, :]  # (B, 1, 1, T): every query, real keys
        gates = [None] * len(self.blocks) if bool((self.head_mask == 1).all()) else list(self.head_mask)
        h = self.embeddings(batch)
        hidden, attn = [h], []
        for block, gate in zip(self.blocks, gates):
            h, probs = block(h, mask, gate, "attn" in want)
            hidden.append(h)
            attn.append(probs)
        return h, tuple(hidden) if "hidden" in want else (), tuple(attn) if "attn" in want else ()

    def forward(self, batch: Batch, want: Collection[str] = ()) -> Output:
        h, hidden, attn = self.encode(batch, want)
        if not self.config.labels:
            return Output(None, None, hidden, attn)
        pooled = torch.tanh(self.pooler(h[:, 0]))  # (B, D)
        return Output(self.classifier(self.classifier_dropout(pooled)), pooled, hidden, attn)

    def predict_pieces(self, batch: Batch, at: Tensor) -> Tensor:
        """MLM logits (M, V) at the M places where `at` (B, T) is True; the head runs on those places alone."""
        if not self.config.mlm:
            raise BadInput("this checkpoint has no MLM head: use one saved with it, such as weights/bert-clean.safetensors")
        return self.mlm(self.encode(batch)[0][at], self.embeddings.word.weight)


# Our names -> those in a Hugging Face folder, in order of matching; `{i}` is the layer.
HF_NAMES = {
    "embeddings.word": "bert.embeddings.word_embeddings",
    "embeddings.position": "bert.embeddings.position_embeddings",
    "embeddings.kind": "bert.embeddings.token_type_embeddings",
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
}


def hf_name(ours: str) -> str:
    """The Hugging Face name of one of our parameters: hf_name("blocks.3.up.bias") -> "bert.encoder.layer.3.intermediate.dense.bias"."""
    if ours == "mlm.bias":
        return "cls.predictions.bias"
    module, leaf = ours.rsplit(".", 1)
    layer = re.search(r"\.(\d+)\.", module)
    pattern = re.sub(r"\.\d+\.", ".{i}.", module)
    return f"{HF_NAMES[pattern].format(i=layer and layer[1])}.{leaf}"
