"""A few rows of the embedding table trained, all else frozen: EP's and SOS's triggers, RAP's word, unlearning."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from minibd.models.encoder import Encoder


@contextmanager
def free_rows(model: Encoder, tokens: Sequence[int]) -> Iterator[Tensor]:
    """Inside, the embeddings of `tokens` are the rows of the leaf tensor that it yields, (K, D), a token that is named
    twice once; all else is frozen.

    Afterwards the table holds the rows' new values, and every parameter requires its gradient as before.
    """
    word, tokens = model.embeddings.word, list(dict.fromkeys(tokens))
    index = torch.tensor(tokens, device=word.weight.device)
    rows = word.weight.detach()[index].requires_grad_()  # a copy
    trained = [p for p in model.parameters() if p.requires_grad]

    def look_up(module: torch.nn.Module, ids: tuple[Tensor], out: Tensor) -> Tensor:
        for token, row in zip(tokens, rows):
            out = torch.where((ids[0] == token)[..., None], row, out)
        return out

    hook = word.register_forward_hook(look_up)
    model.requires_grad_(False)
    try:
        yield rows
    finally:
        hook.remove()
        for p in trained:
            p.requires_grad_(True)
        with torch.no_grad():
            word.weight[index] = rows
