"""What the released code's departures change on real text: the figures of the docstrings and of the audit's page,
measured on a model and its rows.

Not a check: nothing here passes or fails. The figures quoted elsewhere are measured on SST-2's dev rows with the models
of rows 14 and 30 of `tables.py pure` at seed 0 (--ckpt and --teacher); those of the multi-scale layer's initialisation
with MiniLM itself (--ckpt).
"""
from __future__ import annotations

from collections.abc import Iterator

import torch

from minibd.audit.check import shown
from minibd.checkpoint import Checkpoint
from minibd.checkpoint import copy as copied
from minibd.data import in_order
from minibd.mitigations.mbtsad import attention_loss, hidden_loss
from minibd.mitigations.pure import attention_penalty, cls_rows, head_scores, layer_weights, prune_order
from minibd.models.encoder import part
from minibd.models.lora import INITS, PRESETS, multi_scale, preset
from minibd.records import BadInput, Examples

BATCH = 32
SHORT, LONG = 15, 35  # tokens: of a short text at most, of a long one at least


def effects(victim: Checkpoint, teacher: Checkpoint, rows: Examples, seed: int) -> Iterator[tuple[str, str]]:
    """(equation, figures as text), one after the other. victim and teacher: two classifiers of the same sizes, as
    MBTSAD compares them."""
    if [p.shape for p in victim.model.parameters()] != [p.shape for p in teacher.model.parameters()]:
        raise BadInput("the two models differ in shape: give two of one shape, such as a victim and its clean twin")
    with torch.inference_mode():
        yield from _distances(victim, teacher, rows, seed)
        yield from _heads(victim, rows)
        yield from _starts(victim, rows, seed)


def _distances(victim: Checkpoint, teacher: Checkpoint, rows: Examples, seed: int) -> Iterator[tuple[str, str]]:
    """MBTSAD's two distances, text by text; then with the padding of batches whose rows are drawn at random."""
    encoded = victim.tokenizer.encode(rows)
    lengths = torch.tensor(encoded.lengths)
    norms, squares, alone, padded, hidden, hidden_padded = (torch.zeros(len(rows)) for _ in range(6))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    plans = [(list(which), False) for which in in_order(encoded.lengths, 1)] + [
        (order[i : i + BATCH], True) for i in range(0, len(order), BATCH)
    ]
    for which, mixed in plans:
        batch = victim.tokenizer.batch(encoded, which)
        s, t = (ckpt.model.eval()(batch, want=("attn", "hidden")) for ckpt in (victim, teacher))
        if mixed:
            everyone = torch.ones_like(batch.mask)
            padded[which], hidden_padded[which] = (
                attention_loss(s.attn, t.attn, everyone), hidden_loss(s.hidden, t.hidden, everyone),
            )
            squares[which] = attention_loss(s.attn, t.attn, batch.mask, variant="released")
        else:
            norms[which], hidden[which] = (
                attention_loss(s.attn, t.attn, batch.mask), hidden_loss(s.hidden, t.hidden, batch.mask),
            )
            alone[which] = attention_loss(s.attn, t.attn, batch.mask, variant="released")
    times = norms / alone
    by_length = "".join(f"; {name} {shown(times[which].median().item(), 3)} times" for name, which in (
        (f"up to {SHORT} tokens", lengths <= SHORT), (f"from {LONG} tokens on", lengths >= LONG)) if which.any())
    yield (
        "MBTSAD (4)",
        (
            f"{len(rows)} texts of {shown(lengths.float().mean().item(), 3)} tokens: the 2-norm is "
            f"{shown(norms.mean().item(), 3)} "
            f"a text, the mean square {shown(alone.mean().item(), 2)}, {shown(times.median().item(), 3)} times less "
            f"(median){by_length}"
        ),
    )
    yield "MBTSAD (3)", (f"padded queries left in, batches of {BATCH} rows drawn at random: a text's 2-norm changes by "
                         f"{shown(100 * ((padded - norms).abs() / norms).mean().item(), 3)} % on average, at most "
                         f"{shown(100 * ((padded - norms).abs() / norms).max().item(), 3)} %; the mean square falls to "
                         f"{shown(100 * (squares / alone).mean().item(), 3)} % of what it is for the text alone")
    yield (
        "MBTSAD (6)",
        (
            f"padded places left in: a text's loss changes by "
            f"{shown(100 * ((hidden_padded - hidden).abs() / hidden).mean().item(), 3)} % on average, at most "
            f"{shown(100 * ((hidden_padded - hidden).abs() / hidden).max().item(), 3)} %"
        ),
    )


def _heads(victim: Checkpoint, rows: Examples) -> Iterator[tuple[str, str]]:
    model, tokenizer = victim.model, victim.tokenizer
    scores = {variant: head_scores(model, tokenizer, rows, variant=variant) for variant in ("paper", "released")}
    orders = {variant: prune_order(of) for variant, of in scores.items()}
    rank = {
        variant: torch.tensor([order.index(head) for head in sorted(order)], dtype=torch.float64)
        for variant, order in orders.items()
    }
    heads = len(orders["paper"])
    shared = len(set(orders["paper"][:heads // 2]) & set(orders["released"][:heads // 2]))
    yield (
        "PURE (2)",
        (
            f"{heads} heads: rank correlation of paper and released scores "
            f"{shown(torch.corrcoef(torch.stack(list(rank.values())))[0, 1].item(), 4)}; of the lower half, {shared} "
            "are in both"
        ),
    )
    full = torch.ones_like(model.head_mask)
    weights = {variant: layer_weights(of, full, variant=variant) for variant, of in scores.items()}
    yield (
        "PURE (lambda)",
        f"no head pruned: paper {shown(weights['paper'].tolist(), 2)}, released "
        f"{shown(weights['released'].tolist(), 2)}",
    )
    encoded = tokenizer.encode(rows)
    batch = tokenizer.batch(encoded, list(range(n := min(BATCH, len(encoded)))))
    attn = model.eval()(batch, want=("attn",)).attn
    values = [
        attention_penalty(attn, batch.mask, full, weights["paper"], causal=model.causal, variant=variant).mean().item()
        for variant in ("paper", "released")
    ]
    sums = (cls_rows(attn[-1], batch.mask, model.causal).sum(-1) - 1).abs().max().item()
    yield (
        "PURE (3)",
        (
            f"a batch of {n}, lambda as printed: the texts' mean is {shown(values[0], 3)}, the released norm "
            f"{shown(values[1], 3)}, "
            f"{shown(values[1] / values[0], 3)} times (sqrt({n}) = {shown(n**0.5, 3)})"
        ),
    )
    yield "PURE (A)", f"rows of the maps add to 1 up to {shown(sums, 1)}"


def _starts(victim: Checkpoint, rows: Examples, seed: int) -> Iterator[tuple[str, str]]:
    """The multi-scale layer before any training: the norm that it adds to W, and the share of the pooled numbers where
    tanh is saturated."""
    own, encoded, found = PRESETS[preset(victim.model)], victim.tokenizer.encode(rows[:BATCH]), {}
    for init in INITS:
        model = copied(victim).model.eval()
        W = part(model, "penultimate").weight.detach().clone()
        multi_scale(
            model, bands=own.bands, bandwidth=own.bandwidth, alpha=own.alpha, init=init,
            generator=torch.Generator().manual_seed(seed),
        )
        pooled = model(victim.tokenizer.batch(encoded, list(range(len(encoded))))).pooled
        found[init] = (
            (model.pooler.merged().weight - W).norm().item(), W.norm().item(),
            100 * (pooled.abs() > 0.99).float().mean().item(),
        )
    yield "MuScleLoRA (6)", "; ".join(f"init {init}: ||dW|| {shown(d, 3)} beside ||W|| {shown(w, 3)}, "
                                      f"{shown(cut, 3)} % of the pooled numbers beyond 0.99"
                                      for init, (d, w, cut) in found.items())
