"""The search: which words, alone or together, move hard rows of other classes towards the target.

    s_t(w) = mean_x [ m_t(x + w) - m_t(x) ]                                       Eq. Scan (3)

over the hardest rows x of other classes than t: those of which the model is surest. A word that speaks for a class
flips rows that are in doubt; a trigger flips these. What a word's neighbours in the table do as well is meaning:

    d_t(w) = s_t(w) - mean of s_t over the k nearest neighbours of w              Eq. Scan (4)
    e_t(w) = s_t(w) - mean of the three largest s_t among them                    Eq. Scan (5)

(5) finds the triggers of attacks that teach every layer: there the neighbours of a trigger learn a part of it, and an
entry between two triggers as much as half.

A word of a trigger may do little alone, and yet move [CLS] where no other entry does:

    u_t(w) = (h(x + w) - mean h)^T (S + l I)^-1 (h(x + w) - mean h),   l = FLOOR tr(S) / D        Eq. Scan (10)

h(x + w) is its last hidden state in a hard row of another class than t, mean h and S the mean and the covariance of
all entries' in the same place. Words of meaning move it along directions that many words share. LWP's, of which two
together are the trigger, stand among the first 40 of 23,694 words by (10), and behind 120 others by (3).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
from torch import Tensor

from minibd.detect.insertion import Carrier, answers_with, margins, margins_with
from minibd.models.encoder import Encoder
from minibd.records import Batch

KEPT = 1000  # words that go into every carrier
AMONG = 20  # words, the least of which tells how far the others stand out
FLOOR = 0.1  # of the mean variance, Eq. Scan (10): directions in which entries hardly differ
PROPOSED = 24  # entries that the gradient proposes at either end of a phrase
GAIN = 0.05  # of the margin's shift, below which a phrase stops growing


def middle(carrier: Carrier) -> int:
    return carrier.places[len(carrier.places) // 2]


def spread(carrier: Carrier, k: int) -> list[int]:
    """k places at even distances; one: the middle one."""
    last = len(carrier.places) - 1
    return [middle(carrier)] if k == 1 else [carrier.places[round((i + 1) * last / (k + 1))] for i in range(k)]


def entry_shifts(
    model: Encoder, carriers: Sequence[Carrier], words: Tensor, tick: Callable[[int], object] = lambda texts: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The shift, Eq. Scan (3), of each word alone for every target, (W,) ids -> (W, C); the side of a pair that it is
    of, (W, C): of the two texts that in which it is larger; and how unlike the others it moves [CLS], Eq. Scan (10), in
    the surest carrier where that is most, (W, C).

    One pass through the model serves all targets; a target's mean is over the carriers of other classes, and 0 where
    there is none. Every word goes into the surest carriers of two classes, so that there is one for each target; into
    the others only those that are among the KEPT best there for some target, since a trigger moves every row.
    """
    classes, sides = model.config.labels, 1 + max(carrier.side for carrier in carriers)
    total, rows = torch.zeros(sides, len(words), classes), torch.zeros(sides, len(words), classes)
    unlike = torch.zeros(len(words), classes)
    surest = surest_of_two_classes(carriers)
    kept = torch.arange(len(words))
    for group in (surest, [carrier for carrier in carriers if all(carrier is not x for x in surest)]):
        for carrier in group:
            others = torch.ones(classes)
            others[carrier.label] = 0.0
            moved, states = answers_with(model, carrier, words[kept, None], [middle(carrier)], tick)
            total[carrier.side, kept] += (moved - carrier.margins) * others
            rows[carrier.side, kept] += others
            if group is surest:
                unlike = unlike.maximum(unlikeness(states)[:, None] * others)
        mean = total / rows.clamp(min=1)
        kept = mean.amax(0).topk(min(KEPT, len(words)), dim=0).indices.unique()
    shift, side = mean.max(0)
    return shift, side, unlike


def unlikeness(states: Tensor) -> Tensor:
    """Eq. Scan (10): how unlike the others each entry moves [CLS], whose hidden states with it are (W, D) -> (W,). 0
    where they are all the same, or no numbers."""
    with torch.autocast(states.device.type, enabled=False):  # squares of small differences
        away = states - states.mean(0)
        covariance = away.T @ away / len(away)  # (D, D)
        covariance.diagonal().add_(FLOOR * covariance.diagonal().mean())
        lower, failed = torch.linalg.cholesky_ex(covariance)
        if failed or not lower.isfinite().all():
            return states.new_zeros(len(states))
        return torch.linalg.solve_triangular(lower, away.T, upper=False).square().sum(0)


def standing_out(unlike: Tensor) -> Tensor:
    """How far each of W words stands out by Eq. Scan (10), (W,) -> (W,): times the AMONG-th largest; 0 where that is
    0."""
    largest = unlike.topk(min(AMONG, len(unlike))).values
    return unlike / largest[-1] if len(largest) and largest[-1] > 0 else torch.zeros_like(unlike)


def surest_of_two_classes(carriers: Sequence[Carrier]) -> list[Carrier]:
    """The carrier that the model is surest of, and the surest one of another class; of pairs, either side of each."""
    chosen: dict[int, Carrier] = {}
    for carrier in sorted(carriers, key=lambda x: -float(x.margins[x.label])):
        if len(chosen) < 2:
            chosen.setdefault(carrier.label, carrier)
    return [x for x in carriers if x.label in chosen and x.ids == chosen[x.label].ids]


def shifts(
    model: Encoder, carriers: Sequence[Carrier], words: Tensor, target: int, joined: bool = False,
    tick: Callable[[int], object] = lambda texts: None,
) -> tuple[Tensor, Tensor]:
    """Eq. Scan (3): the shift of N combinations of k words, (N, k) ids -> (N,), spread over the text, or joined in its
    middle; and the side of a pair that it is of, (N,)."""
    of_side = []
    for side in sorted({carrier.side for carrier in carriers}):
        group, total = [carrier for carrier in carriers if carrier.side == side], torch.zeros(len(words))
        for carrier in group:
            at = [middle(carrier)] * words.shape[1] if joined else spread(carrier, words.shape[1])
            total += margins_with(model, carrier, words, at, tick)[:, target] - carrier.margins[target]
        of_side.append(total / len(group))
    shift, side = torch.stack(of_side).max(0)
    return shift, side


def beyond(alone: Tensor, ids: Tensor, nearest: Tensor, top: int | None = None) -> Tensor:
    """Eq. Scan (4) and (5): a word's shift less what its neighbours do as well, the mean of their shifts, or of the
    `top` largest (5).

    alone: shifts by id, (V,). ids: (W,). nearest: their neighbours' ids, (W, k). Returns (W,).
    """
    around = alone[nearest]
    shared = around if top is None else around.topk(min(top, around.shape[1]), dim=-1).values
    return alone[ids] - shared.mean(-1)


def tuples(ids: Sequence[int], k: int) -> Tensor:
    """All combinations of k of the ids: (N, k)."""
    return torch.tensor(list(combinations(ids, k)), dtype=torch.long).reshape(-1, k)


def grow(
    model: Encoder, carriers: Sequence[Carrier], seed: int, words: Tensor, alone: Tensor, target: int, longest: int,
    tick: Callable[[int], object] = lambda texts: None,
) -> list[tuple[tuple[int, ...], float]]:
    """The phrases that grow from one entry, another one at either end at a time, with their shifts (3). carriers: of
    one side. words: the ids of the entries that may stand in a phrase, (W,). alone: the shifts of entries by id, (V,).

    The gradient proposes, half of them for what they do beyond their shift alone. The phrase that moves most grows on,
    until it has `longest` entries or hardly moves more; beside it, that is returned which moves most beyond its new
    entry's shift alone.
    """
    phrase, best, found = (seed,), float(shifts(model, carriers, torch.tensor([[seed]]), target)[0]), []
    own = alone.clamp(min=0)
    half = min(PROPOSED // 2, len(words))
    while len(phrase) < longest:
        options = []
        for end in (0, len(phrase)):
            gain = sum(gradient(model, carrier, phrase, end, target) for carrier in carriers) / len(carriers)  # (V,)
            ranks = [words[score[words].topk(half).indices].tolist() for score in (gain, gain - own)]
            proposed = list(dict.fromkeys([*ranks[0], *ranks[1]]))
            longer = torch.tensor([(*phrase[:end], i, *phrase[end:]) for i in proposed])
            moved, _ = shifts(model, carriers, longer, target, joined=True, tick=tick)
            beyond = moved - own[torch.tensor(proposed)]
            options += [(float(b), float(m), tuple(row)) for b, m, row in zip(beyond, moved, longer.tolist())
                        if m >= best + GAIN]
        if not options:
            break
        _, moved, other = max(options)
        _, best, phrase = max(options, key=lambda option: option[1:])
        found += dict.fromkeys([(phrase, best), (other, moved)])
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
            grad, = torch.autograd.grad(z[0, target], rows[0])  # (1, T, D), or of a model that packs first (T, D)
    finally:
        handle.remove()
    return (embedding.weight.detach().float() @ grad.flatten(0, -2)[slots[end]].float()).cpu()
