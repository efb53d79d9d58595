"""What the architectures share: where a batch's real tokens lie, the walk through the blocks, the classification head,
names.

Every model is an `Encoder`, and every one names its parts alike, so that a method holds no `if` for an architecture:

    embeddings.word                              the word embedding, (V, D)
    blocks[i].query  .key  .value  .output       attention's projections (D -> heads, heads -> D)
    blocks[i].up  .down                          the feed-forward layer; Llama has .gate beside .up
    blocks[i].attention_norm  .norm              the LayerNorms of the two halves
    pooler, classifier                           the penultimate and the last linear layer: logits = classifier(act(pooler(h)))
    head_mask (L, H)                             a buffer, saved with the model: 0 prunes a head, no shape changes

`part(model, "query", 3)` and `part(model, "penultimate")` find them. `HFMapping` and `HFTensor` say how transformers
names them.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd.models.dropout import Dropout
from minibd.records import BadInput, Batch, Output

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
PACK = 0.7  # a batch that is fuller than this carries its padding: finding and moving the real tokens would cost more


class ModelConfig:
    """What every architecture's config has beside its fields."""
    __slots__ = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest text, special ones included."""
        return self.positions


def check_config(config: ModelConfig) -> None:
    """What every architecture's config must hold, beyond each number's own range. Raises BadInput."""
    if config.hidden % config.heads:
        raise BadInput(f"hidden size {config.hidden} is not a multiple of {config.heads} heads: mend the config")
    if config.activation not in ACTIVATIONS:
        raise BadInput(
            f"activation {config.activation!r} is not one of {', '.join(ACTIVATIONS)}: convert the model or add it"
        )


class PackedBatch:
    """Where a batch's real tokens lie. The blocks see them as N rows, (N, D); attention alone needs them as texts, (B,
    T, D).

    A batch with much padding is packed: N counts its real tokens, and no layer pays for padding. A batch with little or
    none is taken as it is, N = B T, padding included, without moving anything.
    mask: True where a query may look, broadcastable to (B, H, T, T); None where every query may look everywhere it
    could.
    ends: (B,), the row of each text's first real token, or of its last one in a causal model.
    """

    def __init__(self, real: Tensor, causal: bool = False):
        self.real, self.mask, self.at = real, None, None  # real: (B, T), True at real tokens
        b, t = real.shape
        rows = torch.arange(0, b * t, t, device=real.device)  # (B,)
        n = int(real.sum())
        if n == b * t:
            self.ends = rows + (t - 1 if causal else 0)
            return
        self.mask = real[:, None, None, :]  # (B, 1, 1, T): every query, real keys
        if causal:
            # A padded query sees itself, so that a row without any key, which would be NaN, cannot be.
            before = torch.ones(t, t, dtype=torch.bool, device=real.device).tril()
            self.mask = before & self.mask | torch.eye(t, dtype=torch.bool, device=real.device)  # (B, 1, T, T)
        if n < PACK * b * t:
            self.at = real.flatten().nonzero().squeeze(1)  # (N,) of B * T
            lengths = real.sum(1)
            self.ends = lengths.cumsum(0) - (1 if causal else lengths)
        else:
            self.ends = rows + (t - 1 - real.flip(1).int().argmax(1) if causal else real.int().argmax(1))

    def positions(self) -> Tensor:
        """The place of each token in its text, counted from 0 at the first real one: (B, T); on padding some place of
        the text."""
        return (self.real.cumsum(1) - 1).clamp_(min=0)

    def pack(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (N, ...)."""
        return x.flatten(0, 1) if self.at is None else x.flatten(0, 1)[self.at]

    def unpack(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, T, ...), zeros where padding was left out."""
        if self.at is not None:
            x = x.new_zeros(self.real.numel(), *x.shape[1:]).index_copy(0, self.at, x)
        return x.unflatten(0, self.real.shape)


class Encoder(nn.Module):
    """`model(batch, want=())` -> Output; `want` is any of "attn", "hidden". `head_mask[l, i] = 0` prunes head i of
    layer l.

    A subclass builds `embeddings(batch, places) -> (N, D)`, `blocks`, and, where `config.labels` is not 0, the head
    (`build_head`); it may override `packed`, `pool`, `finish` and `lm_logits`. A block has two halves: `attention(h,
    packed, head_mask, want)`, what its heads gather from other tokens, (N, H * Dh), and the maps or None;
    `feed_forward(h, context)`, what it makes of that, token by token, (N, D).
    """
    causal = False  # whether a token sees only those before it, and a text is read off its last one
    # Whether training, too, computes of the last block only what is classified (evaluation does): with 12 layers a
    # sixteenth of the blocks' products is not taken. Other dropout masks are drawn then, so that it is for whoever
    # trains to say, before the first step.
    trim = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.register_buffer("head_mask", torch.ones(config.layers, config.heads))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator, std: float = 0.02) -> Encoder:
        """BERT's own start, and the others': linear and embedding weights N(0, std), biases 0, norms 1 and 0, the
        padding row 0."""
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
        """Where the real tokens lie. What all blocks alike need to know of them, such as rotary positions, rides
        along."""
        return PackedBatch(batch.mask, self.causal)

    def encode(
        self, batch: Batch, want: Collection[str] = (), ends: bool = False
    ) -> tuple[Tensor, PackedBatch, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The last hidden state (N, D) and its places, the hidden states and the attention maps, the last two empty
        unless wanted.

        ends: the last hidden state is that of each text's first (last) token alone, (B, D); the last block's second
        half sees no other.
        """
        if unknown := set(want) - {"attn", "hidden"}:
            raise ValueError(f"want={sorted(unknown)}: only 'attn' and 'hidden' can be wanted")
        if (t := batch.ids.shape[1]) > self.config.longest:
            raise BadInput(
                f"a text of {t} tokens is longer than the model's {self.config.longest} positions: lower max_len"
            )
        packed = self.pack(batch)
        h = self.embeddings(batch, packed)  # (N, D)
        hidden, attn = [h], []
        # A model without pruned heads needs no head mask.
        head_masks = [None] * len(self.blocks) if bool((self.head_mask == 1).all()) else list(self.head_mask)
        for block, head_mask in zip(self.blocks, head_masks):
            context, probs = block.attention(h, packed, head_mask, "attn" in want)
            if ends and block is self.blocks[-1]:
                h, context = h[packed.ends], context[packed.ends]
            h = block.feed_forward(h, context)
            hidden.append(h)
            attn.append(probs)
        hidden[-1] = h = self.finish(h)
        return (
            h, packed, tuple(map(packed.unpack, hidden)) if "hidden" in want else (),
            tuple(attn) if "attn" in want else (),
        )

    def forward(self, batch: Batch, want: Collection[str] = ()) -> Output:
        ends = bool(self.config.labels) and "hidden" not in want and (self.trim or not self.training)
        h, packed, hidden, attn = self.encode(batch, want, ends)
        if not self.config.labels:
            return Output(None, None, hidden, attn)
        logits, pooled = self.classify(h if ends else h[packed.ends])
        return Output(logits, pooled, hidden, attn)

    def classify(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) and pooled (B, width) from the hidden state (B, D) of each text's first (last) token, of
        whichever layer."""
        pooled = self.pool(h)
        return self.classifier(self.classifier_dropout(pooled)), pooled

    def build_head(self, width: int, bias: bool = True) -> None:
        """The penultimate layer D -> width (0: none) and the classifier, where there are classes."""
        c = self.config
        if c.labels:
            if width:
                self.pooler = nn.Linear(c.hidden, width, bias=bias)
            self.classifier_dropout = Dropout(c.classifier_dropout)
            self.classifier = nn.Linear(width or c.hidden, c.labels, bias=bias)

    def pool(self, h: Tensor) -> Tensor:
        """What the classifier reads, from the hidden state of a text's first (last) token: (B, D) -> (B, width)."""
        return torch.tanh(self.pooler(h))

    def finish(self, h: Tensor) -> Tensor:
        """What follows the last block."""
        return h

    def predict_tokens(self, batch: Batch, at: Tensor) -> Tensor:
        """Logits (M, V) at the M places where `at` (B, T) is True, none of them padding; the head runs on those places
        alone.

        Of a masked LM: for the token at the place. Of a causal LM: for the token that follows it.
        """
        h, packed, _, _ = self.encode(batch)
        return self.lm_logits(h[packed.pack(at)])

    def lm_logits(self, h: Tensor) -> Tensor:
        """The language-model head: hidden states (M, D) -> logits (M, V)."""
        raise BadInput("this checkpoint has no language-model head: use one saved with it")


def part(model: Encoder, name: str, layer: int | None = None) -> nn.Module:
    """A part by the name that all architectures give it: part(m, "query", 3), part(m, "penultimate"), part(m,
    "classifier").

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
        raise BadInput(
            f"{where} has no part {name!r}: it has {', '.join(n for n, p in parts.items() if p is not None)}"
        )
    return parts[name]


# ---- how transformers names what is ours

@dataclass(frozen=True, slots=True)
class HFTensor:
    """The tensor of a Hugging Face folder that one of ours lies in: part `part` of `of` along our first axis,
    transposed or not."""

    name: str
    part: int = 0
    of: int = 1
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class HFMapping:
    """One architecture as transformers spells it, in config.json and in the tensors' names.

    model, config_class: our class and that of its config.
    config: our name of a number -> its key in config.json.
    known: key of config.json -> the values that this code computes, the first being the one that is written; None is
    "absent".
    names: our module -> theirs, `{i}` the layer; a whole parameter where its leaf differs.
    fused: our module -> (part, of): several of ours lie side by side in one of theirs.
    transposed: our modules whose weight is theirs transposed (GPT-2's Conv1D).
    prefix, outside: a bare encoder's names lack `prefix`; the heads' names, which begin with one of `outside`, never
    had it.
    ignored: endings of names that hold buffers and heads of no use here.
    tied: their name of an output layer -> its twin, of which it is a copy.
    classes: the transformers classes of a classifier, a language model, a bare model.
    lm: our name of the language-model head: the module, and the entry of the config that says whether it is there.
    from_hf: what renaming cannot do: entries under our names, from config.json's. to_hf: the way back, from our config.
    """
    model_type: str
    model: type[Encoder]
    config_class: type
    config: Mapping[str, str]
    names: Mapping[str, str]
    prefix: str
    outside: tuple[str, ...]
    classes: tuple[str, str, str]
    lm: str = "mlm"
    known: Mapping[str, tuple] = field(default_factory=dict)
    fused: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    transposed: frozenset[str] = frozenset()
    ignored: tuple[str, ...] = ()
    tied: Mapping[str, str] = field(default_factory=dict)
    from_hf: Callable[[dict], dict] = lambda values: {}
    to_hf: Callable[[Any], dict] = lambda config: {}

    def hf_tensor(self, ours: str) -> HFTensor:
        """foreign("blocks.3.up.bias") -> HFTensor("bert.encoder.layer.3.intermediate.dense.bias")."""
        layer = re.search(r"\.(\d+)\.", ours)
        pattern = re.sub(r"\.\d+\.", ".{i}.", ours)
        if pattern in self.names:
            return HFTensor(self.names[pattern])
        module, leaf = pattern.rsplit(".", 1)
        part, of = self.fused.get(module, (0, 1))
        return HFTensor(
            f"{self.names[module].format(i=layer and layer[1])}.{leaf}", part, of,
            module in self.transposed and leaf == "weight",
        )


def end_of_text(values: dict) -> int:
    """The (first) end-of-text token that a config.json names, 0 where it names none: what pads a causal model that has
    no padding token."""
    end = values.get("eos_token_id")
    return (end[0] if isinstance(end, list) and end else end) or 0
