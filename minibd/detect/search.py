"""The search: which words, alone or together, move hard rows of other classes towards the target.

    s_t(w) = mean_x [ m_t(x + w) - m_t(x) ]                                       Eq. Scan (3)

over the hardest rows x of other classes than t: those of which the model is surest. A word that speaks for a class
flips rows that are in doubt; a trigger flips these. What a word's neighbours in the table do as well is meaning:

    d_t(w) = s_t(w) - mean of s_t over the k nearest neighbours of w              Eq. Scan (4)
    e_t(w) = s_t(w) - mean of the three largest s_t among them                    Eq. Scan (5)

(5) finds the triggers of attacks that teach every layer: there the neighbours of a trigger learn a part of it, and an
entry between two triggers as much as half.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from minibd.detect.insertion import Carrier, margins, margins_with
from minibd.models.encoder import Encoder
from minibd.records import Batch

KEPT = 3000  # words that go into every carrier
PROPOSED = 48  # entries that the gradient proposes at either end of a phrase
GAIN = 0.05  # of the margin's shift, below which a phrase stops growing


def middle(carrier: Carrier) -> int:
    return carrier.places[len(carrier.places) // 2]


def spread(carrier: Carrier, k: int) -> list[int]:
    """k places at even distances; one: the middle one."""
    last = len(carrier.places) - 1
    return [middle(carrier)] if k == 1 else [carrier.places[round((i + 1) * last / (k + 1))] for i in range(k)]


def entry_shifts(
    model: Encoder, carriers: Sequence[Carrier], words: Tensor, tick: Callable[[int], object] = lambda texts: None,
) -> Tensor:
    """The scan's (3) of each word alone for every target: (W,) ids -> (W, C). One pass through the model serves all
    targets; a target's mean is over the carriers of other classes, and 0 where there is none.

    Every word goes into the first carrier of each class; into the others only those that are among the KEPT best there
    for some target, since a trigger moves every row.
    """
    classes = model.config.labels
    total, rows = torch.zeros(len(words), classes), torch.zeros(len(words), classes)
    first = {carrier.label: carrier for carrier in reversed(carriers)}.values()
    kept = torch.arange(len(words))
    for group in (first, [carrier for carrier in carriers if all(carrier is not x for x in first)]):
        for carrier in group:
            others = torch.ones(classes)
            others[carrier.label] = 0.0
            moved = margins_with(model, carrier, words[kept, None], [middle(carrier)]) - carrier.margins
            total[kept] += moved * others
            rows[kept] += others
            tick(len(kept))
        kept = (total / rows.clamp(min=1)).topk(min(KEPT, len(words)), dim=0).indices.unique()
    return total / rows.clamp(min=1)


def shifts(
    model: Encoder, carriers: Sequence[Carrier], words: Tensor, target: int, joined: bool = False,
    tick: Callable[[int], object] = lambda texts: None,
) -> Tensor:
    """(3) of N combinations of k words, (N, k) ids -> (N,): spread over the text, or joined in its middle."""
    total = torch.zeros(len(words))
    for carrier in carriers:
        at = [middle(carrier)] * words.shape[1] if joined else spread(carrier, words.shape[1])
        total += margins_with(model, carrier, words, at)[:, target] - carrier.margins[target]
        tick(len(words))
    return total / len(carriers)


def shared(shift: Tensor, nearest: Tensor, top: int | None = None) -> Tensor:
    """What a word's neighbours do as well: the mean of their shifts (4), or of the `top` largest (5).

    shift: by id, (V,). nearest: the neighbours' ids, (W, k). Returns (W,).
    """
    around = shift[nearest]
    return (around if top is None else around.topk(min(top, around.shape[1]), dim=-1).values).mean(-1)


def tuples(ids: Sequence[int], k: int) -> Tensor:
    """All combinations of k of the ids: (N, k)."""
    return torch.tensor(list(combinations(ids, k)), dtype=torch.long).reshape(-1, k)


def grow(
    model: Encoder, carriers: Sequence[Carrier], seed: int, words: Tensor, target: int, longest: int,
    tick: Callable[[int], object] = lambda texts: None,
) -> list[tuple[tuple[int, ...], float]]:
    """The phrases that grow from one word, an entry at either end at a time, with their shifts (3).

    The gradient proposes, the shift decides. It ends at `longest` words, or where another one adds next to nothing.
    """
    phrase, best, found = (seed,), float(shifts(model, carriers, torch.tensor([[seed]]), target)), []
    while len(phrase) < longest:
        options = []
        for end in (0, len(phrase)):
            gain = sum(gradient(model, carrier, phrase, end, target) for carrier in carriers)  # (V,)
            proposed = words[gain[words].topk(min(PROPOSED, len(words))).indices].tolist()
            longer = torch.tensor([(*phrase[:end], i, *phrase[end:]) for i in proposed])
            moved = shifts(model, carriers, longer, target, joined=True, tick=tick)
            options.append((float(moved.max()), tuple(longer[int(moved.argmax())].tolist())))
        shift, longer = max(options)
        if shift < best + GAIN:
            break
        phrase, best = longer, shift
        found.append((phrase, shift))
    return found


def gradient(model: Encoder, carrier: Carrier, phrase: Sequence[int], end: int, target: int) -> Tensor:
    """To first order, how far each entry moves the margin of the target as it stands before index `end` of the phrase,
    in the middle of the carrier: (V,). The slot holds the entry next to it."""
    embedding = model.embeddings.word
    ids, kinds, slots = carrier.room([middle(carrier)] * (len(phrase) + 1))
    for slot, word in zip(slots, (*phrase[:end], phrase[min(end, len(phrase) - 1)], *phrase[end:])):
        ids[slot] = word
    device = embedding.weight.device
    ids, kinds, rows = torch.tensor([ids], device=device), torch.tensor([kinds], device=device), []

    def keep(module, inputs, output):
        rows.append(output.detach().requires_grad_())
        return rows[0]

    handle = embedding.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            z = margins(model(Batch(ids, torch.ones_like(ids, dtype=torch.bool), kinds, ids[:, 0])).logits.float())
            grad, = torch.autograd.grad(z[0, target], rows[0])  # (1, T, D)
    finally:
        handle.remove()
    return (embedding.weight.detach().float() @ grad[0, slots[end]].float()).cpu()
