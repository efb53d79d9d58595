"""--dtype auto: bfloat16 where the processor multiplies in it at least twice as fast as in float32."""
from __future__ import annotations

import time
from functools import cache

import torch

FASTER = 2.0  # times, from which on bfloat16 is worth its rounding
SHAPE = (256, 384, 1536)  # of the products that are timed: a batch's tokens through a feed-forward layer
TURNS, ROUNDS = 4, 3  # each type is timed in so many turns, the least of so many products in each


def dtype_of(name: str, device: torch.device) -> torch.dtype:
    """The type of matrix products that `name` says: float32, bfloat16, or auto, which times both for some milliseconds
    (on CUDA: bfloat16 where the device has it). Within a process the answer stays the same."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if faster() else torch.float32


@cache
def faster() -> bool:
    """Whether the processor multiplies at least FASTER times as fast in bfloat16: by the least times of several turns,
    so that other work on the machine does not decide."""
    whole = half = float("inf")
    for turn in range(TURNS):
        whole, half = min(whole, seconds(torch.float32)), min(half, seconds(torch.bfloat16))
        if turn and half >= FASTER * whole:  # a processor without such instructions, which is slow at it
            return False
    return whole >= FASTER * half


def seconds(dtype: torch.dtype) -> float:
    """The least time that a product of SHAPE takes on the processor, of ROUNDS, on one thread: several wait for one
    another where other work has one of their cores."""
    n, inner, outer = SHAPE
    a, b, least = torch.ones(n, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype), float("inf")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            started = time.perf_counter()
            torch.mm(a, b)
            least = min(least, time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return least
