"""What the architectures share: packing of a batch's real tokens, the pass through the blocks, the classification head,
the mapping to Hugging Face's names.

Every model is an `Encoder` and gives its parts the same names, so that no method has an `if` for an architecture:

    embeddings.word                              the word embedding, (V, D)
    blocks[i].query  .key  .value  .output       attention's projections (D -> heads, heads -> D)
    blocks[i].up  .down                          the feed-forward layer; Llama has .gate beside .up
    blocks[i].attention_norm  .norm              the LayerNorms of the two halves
    pooler, classifier                           the last two linear layers: logits = classifier(act(pooler(h)))
    head_mask (L, H)                             a buffer, saved with the model: 0 prunes a head, no shape changes

`part(model, "query", 3)` and `part(model, "penultimate")` return them. `HFMapping` and `HFTensor` map them to
transformers' names.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.dropout import Drawing, Dropout
from minibd.models.recompute import recomputed
from minibd.records import BadInput, Batch, Output

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
PACK = 0.7  # share of real tokens from which a batch keeps its padding: indexing the real ones would cost more


class ModelConfig:
    """Base of every architecture's config."""
    __slots__ = ()

    @property
    def max_len(self) -> int:
        """Tokens of the longest text that the model takes, special tokens included."""
        return self.positions


def check_config(config: ModelConfig) -> None:
    """Checks that all architectures' configs share. Raises BadInput."""
    if config.hidden % config.heads:
        raise BadInput(f"hidden size {config.hidden} is not a multiple of {config.heads} heads: correct the config")
    if config.activation not in ACTIVATIONS:
        raise BadInput(
            f"activation {config.activation!r} is not one of {', '.join(ACTIVATIONS)}: convert the model or add it"
        )


class PackedBatch:
    """The indices of a batch's real tokens. The blocks compute on N rows, (N, D); attention alone on texts, (B, T, D).

    A batch with much padding is packed: N counts its real tokens, and no linear layer computes padding. A batch with
    little or no padding stays as it is, N = B T, without a copy.
    real: (B, T), True at real tokens. index: (N,), the rows of B * T that are kept; None where all are.
    mask: attention mask, broadcastable to (B, H, T, T), True where a query attends to a key; None: to all (causal: to
    all up to its own position).
    bias: added to the attention scores, broadcastable to (B, H, T, T); None: nothing.
    pooled_rows: (B,), of N: each text's first real token, which is classified; in a causal model its last one, or that
    at the index `last` (B,).
    """

    bias: Tensor | None = None

    def __init__(self, real: Tensor, causal: bool = False, last: Tensor | None = None):
        self.real, self.mask, self.index = real, None, None
        b, t = real.shape
        rows = torch.arange(0, b * t, t, device=real.device)  # (B,)
        n = int(real.sum())
        if causal and last is None:
            last = t - 1 - real.flip(1).int().argmax(1)  # (B,)
        if n == b * t:
            self.pooled_rows = rows + last if causal else rows
            return
        self.mask = real[:, None, None, :]  # (B, 1, 1, T): every query, real keys
        if causal:
            # A padded query attends to itself: a row without any key would be NaN.
            before = torch.ones(t, t, dtype=torch.bool, device=real.device).tril()
            self.mask = before & self.mask | torch.eye(t, dtype=torch.bool, device=real.device)  # (B, 1, T, T)
        if self.is_packed(n, b, t):
            self.index = real.flatten().nonzero().squeeze(1)  # (N,) of B * T
            lengths = real.sum(1)
            self.pooled_rows = lengths.cumsum(0) - lengths
            if causal:
                self.pooled_rows = self.pooled_rows + self.positions().gather(1, last[:, None])[:, 0]
        else:
            self.pooled_rows = rows + (last if causal else real.int().argmax(1))

    @staticmethod
    def is_packed(n: int, b: int, t: int) -> bool:
        """Whether a batch of (b, t) places, n of them real tokens, is packed."""
        return n < PACK * b * t

    def positions(self) -> Tensor:
        """Each token's position in its text, from 0 at the first real token: (B, T); of padding, any such position."""
        return (self.real.cumsum(1) - 1).clamp_(min=0)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1) if self.index is None else x.flatten(0, 1)[self.index]

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros at the padding that `pack` left out."""
        if self.index is not None:
            x = x.new_zeros(self.real.numel(), *x.shape[1:]).index_copy(0, self.index, x)
        return x.unflatten(0, self.real.shape)


class Arranged(PackedBatch):
    """A batch whose positions (B, T) and attention mask (B, 1, T, T) are given: every place is kept. For causal models,
    whose embeddings read `positions()`: several continuations of one beginning in one row."""

    def __init__(self, positions: Tensor, mask: Tensor):
        b, t = positions.shape
        self.real, self.index = torch.ones_like(positions, dtype=torch.bool), None
        self.given, self.mask = positions, mask
        self.pooled_rows = torch.arange(0, b * t, t, device=positions.device) + t - 1

    def positions(self) -> Tensor:
        return self.given


class Encoder(nn.Module):
    """`model(batch, want=())` -> Output; `want` is any of "attn", "hidden". `head_mask[l, i] = 0` prunes head i of
    layer l.

    A subclass builds `embeddings(batch, packed) -> (N, D)`, `blocks`, and, where `config.labels` is not 0, the head
    (`build_head`); it may override `pack`, `pool`, `finish` and `lm_logits`. A block has two halves: `attention(h,
    packed, head_mask, want)` returns the heads' contexts, (N, H * Dh), and the attention maps or None;
    `feed_forward(h, context)` projects and adds them and applies the feed-forward layer, (N, D).
    """
    causal = False  # a token attends only to those up to itself, and the token `last_read` is classified
    # Skip, in training too, what is not classified in the last block's second half (evaluation always does): with 12
    # layers a sixteenth of the blocks' products. Other dropout masks are drawn then, so it is set by whoever trains,
    # before the first step.
    trim = False
    drawing: Drawing | None = None  # set by seed_dropout, and laid out for each batch
    # What train.fit may do to need less memory, set by whoever trains; a copy of a checkpoint has the same. Neither
    # changes a number but by rounding.
    micro_batch: int | str | None = None  # texts of a batch that go through the model at once; "auto"; None: all
    recompute = False  # a block's activations are computed again in the backward pass, and not kept
    cache: int | str | None = "auto"  # bytes of a frozen model's outputs that are kept over epochs; None: nothing is

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.register_buffer("head_mask", torch.ones(config.layers, config.heads))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> Encoder:
        """BERT's initialisation, used by all: linear and embedding weights N(0, std), biases 0, norms 1 and 0, the
        padding token's row 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                module.weight.normal_(0.0, std, generator=generator)
            elif getattr(module, "weight", None) is not None:  # a norm
                module.weight.fill_(1.0)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        if self.embeddings.word.padding_idx is not None:
            self.embeddings.word.weight[self.embeddings.word.padding_idx].zero_()
        return self

    def pack(self, batch: Batch) -> PackedBatch:
        """The batch's real tokens, with what every block reads of them, such as rotary positions."""
        return PackedBatch(batch.mask, self.causal, self.last_read(batch) if self.causal else None)

    def arrange(self, positions: Tensor, mask: Tensor) -> PackedBatch:
        """As `pack`, of a batch that is arranged otherwise than as texts (see Arranged)."""
        return Arranged(positions, mask)

    def last_read(self, batch: Batch) -> Tensor:
        """Where in each text stands its last token that is not the padding token, (B,): the one that transformers
        classifies in a causal model, whatever the mask says. Where the padding token is also the end-of-text token, a
        text that ends in it is classified by the token before. 0 where there is none."""
        read = batch.mask & (batch.ids != self.config.pad)  # (B, T)
        return (torch.arange(read.shape[1], device=read.device) * read).argmax(1)

    def encode(
        self, batch: Batch, want: Collection[str] = (), pooled_only: bool = False, packed: PackedBatch | None = None
    ) -> tuple[Tensor, PackedBatch, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last hidden state (N, D), the batch's packing, the hidden states and the attention maps; the last two are
        empty unless wanted.

        pooled_only: the last hidden state is that of each text's first (last) token alone, (B, D), and the last block's
        second half computes no other. packed: what `arrange` returned, instead of `pack`'s.
        """
        if unknown := set(want) - {"attn", "hidden"}:
            raise ValueError(f"want={sorted(unknown)}: only 'attn' and 'hidden' can be wanted")
        if packed is None and (t := batch.ids.shape[1]) > self.config.max_len:
            raise BadInput(
                f"a text of {t} tokens is longer than the model's {self.config.max_len} positions: lower max_len"
            )
        packed = self.pack(batch) if packed is None else packed
        if self.drawing is not None:
            self.drawing.lay_out(batch.part, packed)
        h = self.embeddings(batch, packed)  # (N, D)
        hidden, attn = [h], []
        # A model without pruned heads needs no head mask.
        head_masks = [None] * len(self.blocks) if bool((self.head_mask == 1).all()) else list(self.head_mask)
        for block, head_mask in zip(self.blocks, head_masks):
            def run(h: Tensor, block=block, head_mask=head_mask) -> tuple[Tensor, Tensor | None]:
                context, probs = block.attention(h, packed, head_mask, "attn" in want)
                if pooled_only and block is self.blocks[-1]:
                    h, context = h[packed.pooled_rows], context[packed.pooled_rows]
                return block.feed_forward(h, context), probs

            kept = not (self.recompute and self.training and torch.is_grad_enabled())
            h, probs = run(h) if kept else recomputed(run, h, block, self.drawing)
            hidden.append(h)
            attn.append(probs)
        hidden[-1] = h = self.finish(h)
        return (
            h, packed, tuple(map(packed.unpack, hidden)) if "hidden" in want else (),
            tuple(attn) if "attn" in want else (),
        )

    def forward(self, batch: Batch, want: Collection[str] = ()) -> Output:
        pooled_only = bool(self.config.labels) and "hidden" not in want and (self.trim or not self.training)
        h, packed, hidden, attn = self.encode(batch, want, pooled_only)
        if not self.config.labels:
            return Output(None, None, hidden, attn)
        cls = h if pooled_only else h[packed.pooled_rows]
        logits, pooled = self.classify(cls)
        return Output(logits, pooled, hidden, attn, cls)

    def classify(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and pooled (B, width) from the hidden state (B, D), of any layer, of each text's first (last)
        token."""
        pooled = self.pool(h)
        return self.classifier(self.classifier_dropout(pooled)), pooled

    def build_head(self, width: int, bias: bool = True) -> None:
        """Add the penultimate layer D -> width (0: none) and the classifier, if config.labels is not 0."""
        c = self.config
        if c.labels:
            if width:
                self.pooler = nn.Linear(c.hidden, width, bias=bias)
            self.classifier_dropout = Dropout(c.classifier_dropout)
            self.classifier = nn.Linear(width or c.hidden, c.labels, bias=bias)

    def pool(self, h: Tensor) -> Tensor:
        """The classifier's input from the hidden state of each text's first (last) token: (B, D) -> (B, width)."""
        return torch.tanh(self.pooler(h))

    def finish(self, h: Tensor) -> Tensor:
        """The final norm of an architecture that has one: (N, D) -> (N, D)."""
        return h

    def predict_tokens(self, batch: Batch, at: Tensor) -> Tensor:
        """Logits (M, V) at the M real tokens where `at` (B, T) is True; the head computes those alone.

        A masked LM predicts the token at that position, a causal LM the one that follows it.
        """
        h, packed, _, _ = self.encode(batch)
        return self.lm_logits(h[packed.pack(at)])

    def lm_logits(self, h: Tensor) -> Tensor:
        """The language-model head: hidden states (M, D) -> logits (M, V)."""
        raise BadInput("this checkpoint has no language-model head: use one saved with it")


def part(model: Encoder, name: str, layer: int | None = None) -> nn.Module:
    """A part by the name that all architectures give it: part(m, "query", 3), part(m, "penultimate").

    With `layer`, a child of that block (-1 is the last); without it, "word", "penultimate" or "classifier". Raises
    BadInput.
    """
    if layer is None:
        parts = {
            "word": model.embeddings.word, "penultimate": getattr(model, "pooler", None),
            "classifier": getattr(model, "classifier", None),
        }
        where = "this model"
    else:
        if not -len(model.blocks) <= layer < len(model.blocks):
            raise BadInput(f"there is no layer {layer}: the model has {len(model.blocks)}, from 0")
        parts = dict(model.blocks[layer].named_children())
        where = f"layer {layer}"
    if parts.get(name) is None:
        present = ", ".join(n for n, p in parts.items() if p is not None)
        raise BadInput(f"{where} has no part {name!r}: it has {present}")
    return parts[name]


# ---- the mapping to Hugging Face's names

@dataclass(frozen=True, slots=True)
class HFTensor:
    """The tensor of a Hugging Face folder that holds one of ours: chunk `chunk` of `chunks` along our first axis,
    transposed or not."""

    name: str
    chunk: int = 0
    chunks: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class HFMapping:
    """One architecture's keys in Hugging Face's config.json and its tensors' names.

    model_type: config.json's. model, config_class: our classes.
    config: our config's field -> its key in config.json.
    supported: key of config.json -> the values that this code implements, the first being the one that is written; None
    stands for an absent key.
    names: our module -> theirs, `{i}` the layer; a whole parameter where its leaf differs.
    fused: our module -> (chunk, chunks), where one of their tensors holds several of ours side by side.
    transposed: our modules whose weight is theirs transposed (GPT-2's Conv1D).
    prefix: what names of encoder tensors begin with; a bare encoder's lack it. head_prefixes: what names of the heads'
    tensors begin with, which never have `prefix`.
    ignored: endings of names that hold buffers, and heads that are not used here.
    tied: their name of an output layer -> the tensor of which it is a copy.
    classes: the transformers classes of a classifier, a language model, a bare model. tokenizer: its class of the
    tokenizer, where a folder names none. always_tokenizer: it takes that class whatever a folder names.
    lm: our name of the language-model head: the module, and the config's field that says whether the model has one.
    from_hf: config.json's values -> fields of our config that renaming alone does not give. to_hf: the reverse.
    """
    model_type: str
    model: type[Encoder]
    config_class: type
    config: Mapping[str, str]
    names: Mapping[str, str]
    prefix: str
    head_prefixes: tuple[str, ...]
    classes: tuple[str, str, str]
    tokenizer: str
    always_tokenizer: bool = False
    lm: str = "mlm"
    supported: Mapping[str, tuple] = field(default_factory=dict)
    fused: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    from_hf: Callable[[dict], dict] = lambda values: {}
    to_hf: Callable[[Any], dict] = lambda config: {}

    def hf_tensor(self, ours: str) -> HFTensor:
        """hf_tensor("blocks.3.up.bias") -> HFTensor("bert.encoder.layer.3.intermediate.dense.bias")."""
        layer = re.search(r"\.(\d+)\.", ours)
        pattern = re.sub(r"\.\d+\.", ".{i}.", ours)
        if pattern in self.names:
            return HFTensor(self.names[pattern])
        module, leaf = pattern.rsplit(".", 1)
        name = f"{self.names[module].format(i=layer and layer[1])}.{leaf}"
        return HFTensor(name, *self.fused.get(module, (0, 1)), module in self.transposed and leaf == "weight")


def end_of_text(values: dict) -> int:
    """The (first) end-of-text token of a config.json, 0 where it has none: the padding of a causal model that names no
    padding token."""
    end = values.get("eos_token_id")
    return (end[0] if isinstance(end, list) and end else end) or 0
