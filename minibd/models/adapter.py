"""Adapters (Houlsby et al., 2019), the baseline Adapter of MuScleLoRA's Table 1: two small layers behind each half of a
frozen block.

    y = h + W_up act(W_down h + b_down) + b_up,   h = W x + b the half's last projection (`output`, `down`)

y takes the place of h: dropout, the residual and (in BERT) the LayerNorm follow. W_down is (b, D), W_up (D, b), b the
bottleneck; 2 L (2 D b + b + D) numbers train, 313,536 of BERT-base with b = 8. Both matrices are initialised as N(0,
0.01) and the biases as 0, so that y differs from h by some 0.4 % of its size: the model starts about as it was. act is
GELU in its tanh form.

Departures. The initialisation and act are OpenDelta's, the library that the released code calls. OpenDelta reads h one
step later, behind the half's residual and LayerNorm, and so adds to the next half's input. Houlsby's models train their
LayerNorms and the classifier too; here, as in the released code, only the adapters train. The paper has no adapter for
Llama; here it has the same two layers.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from minibd.models.encoder import ACTIVATIONS, Encoder
from minibd.records import BadInput

STD = 0.01


class Adapter(nn.Module):
    """Eq. Adapter (y): a projection `base` (I -> D) and the two layers behind it: (N, I) -> (N, D).

    The two are float32 even where `base` is bfloat16, in which a small step would be rounded away.
    """

    def __init__(self, base: nn.Linear, bottleneck: int, generator: torch.Generator):
        super().__init__()
        d, dtype = base.out_features, torch.promote_types(base.weight.dtype, torch.float32)
        self.base, self.act = base, ACTIVATIONS["gelu_new"]
        # skip_init: a layer would draw its initialisation from the global random state.
        self.down, self.up = nn.utils.skip_init(nn.Linear, d, bottleneck), nn.utils.skip_init(nn.Linear, bottleneck, d)
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, 0.0, STD, generator=generator)
            nn.init.zeros_(layer.bias)
            layer.to(base.weight.device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        h = self.base(x)  # (N, D)
        return h + self.up(self.act(self.down(h.to(self.down.weight.dtype)))).to(h.dtype)


def adapter(model: Encoder, *, bottleneck: int, generator: torch.Generator) -> None:
    """Put an adapter behind both halves of every block of `model`, in place. The caller freezes the rest before.

    generator: on the CPU, wherever the model is, so that a seed gives the same initialisation on every device.
    """
    if bottleneck < 1:
        raise BadInput(
            f"an adapter's bottleneck of {bottleneck} passes nothing: it must be at least 1, such as 8"
        )
    for block in model.blocks:
        block.output = Adapter(block.output, bottleneck, generator)
        block.down = Adapter(block.down, bottleneck, generator)
