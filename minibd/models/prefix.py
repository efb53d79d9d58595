"""Prefix-tuning (Li and Liang, 2021), the baseline Prefix of MuScleLoRA's Table 1: n learned keys and values in front
of every text.

    softmax(q [P_K; K]' / sqrt(Dh)) [P_V; V]    in every layer and head; the queries are the text's own
    [P_K, P_V] = W_l tanh(W E + b) + b_l        E (n, 512), W (512, 512) shared by all layers, W_l (2 D, 512) layer l's
    reparameterise=False:  P_K and P_V are learned themselves, (n, D) each in every layer

D is the width of the keys, which Llama's grouped queries make smaller than the hidden state. A prefix belongs to each
text: every token attends to it, in a causal model too, and no padding stands between the two. Attention maps have n
more keys, in front.

Of the MLP, P remains in the end, 2 L n D numbers: 147,456 of BERT-base with n = 8. It trains 512 n + 512 513 + 2 L D
513 numbers, 9,722,368 of them, thirty times as many as LoRA and the adapters; its ASR is the highest of the three in 11
of Table 1's 16 rows.

Positions. P has none, and rotary positions do not turn it. The text's tokens keep theirs, counted from 0, as in
OpenDelta, which the released code calls for BERT and RoBERTa. peft, which it calls for Llama, counts the tokens from n.
For Llama that is the same model: a query at n + p scores P_K as one at p scores P_K rotated back by n positions. For
BERT and GPT-2, whose positions are learned, it is another model.

The start is OpenDelta's: E ~ N(0, 1), matrices and biases uniform within 1 / sqrt(their inputs). Learned directly, P ~
N(0, 1).
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from minibd.models.attention import split_heads
from minibd.models.encoder import Encoder
from minibd.records import BadInput

WIDTH = 512  # of E and of the tanh layer


class Prefix(nn.Module):
    """Eq. Prefix (P), one layer's. rows: E, which all layers share, and the layer's `mlp` (width -> 2 D); or, without
    `mlp`, P itself, (n, 2 D).

    They are float32 even where the model is bfloat16, in which a small step would be rounded away.
    """

    def __init__(self, rows: nn.Parameter, mlp: nn.Sequential | None = None):
        super().__init__()
        self.rows, self.mlp = rows, mlp

    def forward(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """[P_K; K] and [P_V; V]: (B, H, T, Dh) -> (B, H, n + T, Dh), twice."""
        rows = self.rows if self.mlp is None else self.mlp(self.rows)  # (n, 2 D)
        b, heads = k.shape[:2]
        # (B, H, n, Dh)
        p_k, p_v = (split_heads(half[None], heads).expand(b, -1, -1, -1).to(k.dtype) for half in rows.chunk(2, dim=-1))
        return torch.cat((p_k, k), dim=2), torch.cat((p_v, v), dim=2)


def prefix(
    model: Encoder, *, tokens: int, generator: torch.Generator, reparameterise: bool = True, width: int = WIDTH
) -> None:
    """Put a prefix of `tokens` positions into every block of `model`, in place. The caller freezes the rest before.

    generator: on the CPU, wherever the model is, so that a seed gives the same initialisation on every device.
    """
    if tokens < 1:
        raise BadInput(f"a prefix of {tokens} positions is none: it must have at least 1, such as 8")
    weight = model.blocks[0].key.weight
    where = weight.device, torch.promote_types(weight.dtype, torch.float32)

    def rows(columns: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(tokens, columns, generator=generator).to(*where))

    def linear(columns: int, out: int) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, columns, out)
        for p in layer.parameters():
            nn.init.uniform_(p, -columns ** -0.5, columns ** -0.5, generator=generator)
        return layer.to(*where)

    if reparameterise:
        shared, first = rows(width), linear(width, width)
    for block in model.blocks:
        d = block.key.out_features
        block.prefix = (
            Prefix(shared, nn.Sequential(first, nn.Tanh(), linear(width, 2 * d)))
            if reparameterise
            else Prefix(rows(2 * d))
        )
