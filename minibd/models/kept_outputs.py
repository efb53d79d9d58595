"""What a frozen model says of each text, kept over the epochs of a training (--cache).

A distillation asks its teacher for the hidden states and maps of every text once an epoch, a quarter of its matrix
products, and the teacher answers the same each time. Here it is asked once: kept are a text's own tokens, without
padding, (L + 1, T, D) hidden states and (L, T, T) sums over heads, and put together for each batch.

Exact: what a text gets are the bits of its first batch, which is computed whole, as without. They are those of any
other batch wherever a text's bits do not hang on its neighbours. Measured (AVX2, torch 2.13): no row of a matrix
product does, from four rows on; the width T of the batch changes bits only below 12, where scores and softmax take
other paths. So a text that stands in a batch narrower than SMALL is kept for batches of that width alone. The sums are
kept as they are and normalised in each batch: a norm over T^2 places adds up in an order that the width decides.
Where only some texts are kept, the others of a batch are asked for without them, and some processors' kernels round a
batch of fewer texts in another way; so auto keeps all texts or none, and only a size that is given keeps some.

A text is known by its ids, not by its number: copies that augmentation left alike are one, and texts that never come
again are never found. A run that goes on after a break computes the first batch that a text stood in, not the one at
hand, and so has the bits of the run that was not broken, whatever the kernels do.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import ceil

import torch
from torch import Tensor, nn

from minibd.records import Batch, Output
from minibd.tokenizer import Encoded, Tokenizer

SMALL = 16                # tokens of a batch's longest text, from which on its width changes no bit of a text
SHARE, MOST = 8, 4 << 30  # auto: an eighth of the memory, at most 4 GiB, of which twice as much must be free

Key = tuple[tuple[int, ...], tuple[int, ...]]  # a text's ids and type ids


class KeptOutputs:
    """`outputs(batch)` -> Output with hidden, L + 1 of (B, T, D), and attn, L of (B, T, T): the maps' sums over heads,
    0 at padding; hidden states at padding are any. Neither has gradients.

    plan: the batches in which the texts of `rows` come first, by their indices. want: as of the model. most: bytes that
    are kept; of the batches of `plan` those from the start that fit, the texts of the others are computed whenever they
    are asked for, equal to rounding. sums: (B, H, T, T) -> (B, T, T). Nothing may change the weights meanwhile.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, rows: Encoded, plan: Sequence[Sequence[int]], *,
        want: Collection[str], most: int, sums: Callable[[Tensor], Tensor],
    ):
        self.model, self.tokenizer, self.rows, self.plan, self.want, self.sums = (
            model, tokenizer, rows, plan, want, sums)
        self.number: dict[Key, int] = {}  # of a text that is kept
        self.home: list[int] = []         # by number: the batch of the plan that it is computed in
        self.length, self.token, self.square = [], [0], [0]  # and how long it is, and where it lies
        self.ends: list[tuple[int, int]] = []  # the numbers of the texts that are computed in each batch
        self.needed, kept = 0, True       # bytes of all texts
        self.bytes = 0                    # and how many are kept once all batches of the plan were asked for
        seen: set[Key] = set()
        for batch, which in enumerate(plan):
            new = dict.fromkeys(key for i in which if (key := self._key(i)) not in seen)
            seen.update(new)
            size = sum(map(self._bytes, (len(ids) for ids, _ in new)))
            if kept := kept and self.needed + size <= most:
                self._add(batch, new)
                self.bytes += size
            self.needed += size
        self.texts = len(seen)
        self.width = [max(len(rows.ids[i]) for i in which) for which in plan]
        self.filled: set[int] = set()
        self.dtype, device = model.head_mask.dtype, model.head_mask.device
        self.hidden, self.maps = [], []  # reserved by the first text
        self.token, self.square, self.length = (torch.tensor(x, device=device)
                                                for x in (self.token, self.square, self.length))

    def _key(self, i: int) -> Key:
        return tuple(self.rows.ids[i]), tuple(self.rows.token_type_ids[i])

    def _bytes(self, n: int) -> int:
        """Bytes of a text of n tokens."""
        c = self.model.config
        numbers = ("hidden" in self.want) * (c.layers + 1) * n * c.hidden + ("attn" in self.want) * c.layers * n * n
        return self.model.head_mask.itemsize * numbers

    def _add(self, batch: int, texts: Collection[Key]) -> None:
        self.ends.append((len(self.home), len(self.home) + len(texts)))
        for key in texts:
            n = len(key[0])
            self.number[key] = len(self.home)
            self.home.append(batch)
            self.length.append(n)
            self.token.append(self.token[-1] + n)
            self.square.append(self.square[-1] + n * n)

    def _reserve(self) -> None:
        config, options = self.model.config, {"dtype": self.dtype, "device": self.token.device}
        layers = {"hidden": config.layers + 1, "attn": config.layers}
        tokens, maps = (layers[name] if name in self.want else 0 for name in layers)
        self.hidden = [torch.empty(int(self.token[-1]), config.hidden, **options) for _ in range(tokens)]
        self.maps = [torch.empty(int(self.square[-1]), **options) for _ in range(maps)]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Output:
        t = batch.ids.shape[1]
        numbers = [self.number.get(key, -1) for key in keys_of(batch)]
        held = [n >= 0 and (t == (w := self.width[self.home[n]]) or min(t, w) >= SMALL) for n in numbers]
        if not any(held):
            return self._asked(batch)
        for home in dict.fromkeys(self.home[n] for n, has in zip(numbers, held) if has):
            if home not in self.filled:
                self._fill(home, batch)
        if all(held):
            return self._read(numbers, batch.mask)
        which = torch.tensor(held, device=batch.mask.device)
        here, there = which.nonzero().squeeze(1), (~which).nonzero().squeeze(1)
        known = self._read([n for n, has in zip(numbers, held) if has], batch.mask[here])
        found = self._asked(Batch(*(x[there] for x in (batch.ids, batch.mask, batch.token_type_ids, batch.labels))))

        def merged(a: Tensor, b: Tensor) -> Tensor:
            return a.new_empty(len(held), *a.shape[1:]).index_copy(0, here, a).index_copy(0, there, b)
        return Output(None, None, tuple(map(merged, known.hidden, found.hidden)),
                      tuple(map(merged, known.attn, found.attn)))

    def _asked(self, batch: Batch) -> Output:
        """What the model says now."""
        output, real = self.model(batch, self.want), batch.mask
        pairs = real[:, :, None] & real[:, None, :]  # (B, T, T)
        return Output(None, None, tuple(h.to(self.dtype) for h in output.hidden),
                      tuple(self.sums(a.to(self.dtype)) * pairs for a in output.attn))

    def _fill(self, home: int, at_hand: Batch) -> None:
        """Keep what the model says of the texts that first stand in the batch `home` of the plan, which is computed in
        parts where the batch at hand is."""
        if not self.filled:
            self._reserve()
        whole = self.tokenizer.batch(self.rows, self.plan[home]).to(at_hand.ids.device)
        turns = at_hand.part.turns if at_hand.part else 1
        turns = ceil(len(whole.labels) / ceil(len(at_hand.whole.mask) / turns))
        first, end = self.ends[home]
        number, row = first, 0
        for part in whole.in_turns(turns) if turns > 1 else [whole]:
            output = self._asked(part)
            own, start = [], number  # the texts' rows in the order of their numbers, each at its first place
            for b in range(len(part.labels)):
                key = self._key(self.plan[home][row + b])
                if number < end and self.number.get(key) == number:
                    own.append(b)
                    number += 1
            row += len(part.labels)
            if not own:
                continue
            real = part.mask[own]
            pairs = real[:, :, None] & real[:, None, :]
            tokens, squares = (slice(int(x[start]), int(x[number])) for x in (self.token, self.square))
            for kept, h in zip(self.hidden, output.hidden):
                kept[tokens] = h[own][real]
            for kept, f in zip(self.maps, output.attn):
                kept[squares] = f[own][pairs]
        self.filled.add(home)

    def _read(self, numbers: Sequence[int], real: Tensor) -> Output:
        """What is kept of the texts `numbers`, (B,), laid out as `real`, (B, T)."""
        which = torch.tensor(numbers, device=real.device)
        token, square, n = self.token[which], self.square[which], self.length[which]  # (B,)
        place = torch.arange(real.shape[1], device=real.device)  # (T,)
        hidden = maps = ()
        if self.hidden:  # padding reads the text's first token
            index = (token[:, None] + place * real).flatten()  # (B T,)
            hidden = tuple(h.index_select(0, index).unflatten(0, real.shape) for h in self.hidden)
        if self.maps:
            pairs = real[:, :, None] & real[:, None, :]  # (B, T, T)
            index = square[:, None, None] + (place[:, None] * n[:, None, None] + place) * pairs
            maps = tuple(f.take(index) * pairs for f in self.maps)
        return Output(None, None, hidden, maps)


def keys_of(batch: Batch) -> list[Key]:
    """Each text's ids and type ids, without padding."""
    lengths = batch.mask.sum(1).tolist()
    return [(tuple(ids[:n]), tuple(kinds[:n]))
            for ids, kinds, n in zip(batch.ids.tolist(), batch.token_type_ids.tolist(), lengths)]


def room(cache: int | str | None, device: torch.device) -> int:
    """The bytes that `Encoder.cache` allows to be kept. auto: an eighth of the device's memory, at most MOST; none
    where not twice as much is free. It goes by what the device has, since what is free is another at each start."""
    if cache != "auto":
        return cache or 0
    free, whole = memory(device)
    most = min(MOST, whole // SHARE)
    return most if free >= 2 * most else 0


def memory(device: torch.device) -> tuple[int, int]:
    """Bytes of the device's memory that are free, and all of them; (0, 0) where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            found = {name: 1024 * int(rest.split()[0]) for name, rest in (line.split(":") for line in lines)}
        return found["MemAvailable"], found["MemTotal"]
    except (OSError, KeyError):
        return 0, 0
