"""A generator per example, and length-bucketed batches by (seed, epoch)."""
from __future__ import annotations

import random
from collections.abc import Sequence

from minibd.records import BadInput

POOL = 50                                # batches sorted together


def generator(seed: int, *parts: object) -> random.Random:
    """A generator for (seed, parts), e.g. generator(0, epoch, example.id).

    Seeded by a string, which Random hashes with sha512: the same on every machine, whatever PYTHONHASHSEED, and no
    example's draws depend on which others were drawn before it. Parts count by their str: 2 and "2" are one part.
    """
    return random.Random("\x1f".join(map(str, (seed, *parts))))


def batches(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers 0..n-1, each once, in ceil(n / size) batches of `size` (one may be short), rows of a batch near in
    length.

    Shuffle, cut into pools of POOL * size rows, sort each pool by length, cut it into batches, shuffle the batches.
    Share of a batch's (B, T) cells that is padding, SST-2's 6,920 training texts (25.0 tokens on average), five epochs:

        size                 16       32       64
        random batches     46.2%    50.4%    53.6%
        these batches       2.4%     2.8%     3.3%

    At 32 a step thus computes half the cells (1.96 times fewer). The price: a batch's texts are alike in length.
    """
    _check_size(size)
    rng = generator(seed, "batches", epoch)
    rows = list(range(len(lengths)))
    rng.shuffle(rows)
    cut = []
    # a pool is whole batches, so only the last pool ends in a short one
    for start in range(0, len(rows), POOL * size):
        pool = sorted(rows[start:start + POOL * size], key=lengths.__getitem__)
        cut += [pool[i:i + size] for i in range(0, len(pool), size)]
    rng.shuffle(cut)
    return cut


def in_order(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Row numbers in batches for evaluation: longest first, so that memory peaks at once; nothing random.

    Padding on SST-2's training texts: 0.3% / 0.6% / 1.3% of the cells at sizes 16 / 32 / 64.
    """
    _check_size(size)
    rows = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def _check_size(size: int) -> None:
    if size < 1:
        raise BadInput(f"batch size {size} is below 1: give a batch size of at least 1")
