"""Fine-mixing and E-PUR (Zhang et al., 2022), for who holds a suspicious classifier and the pre-trained weights it came
from.

    E-PUR
    1  delta_i <- e_i^B - e_i^Pre                                   of each word embedding
    2  score_i <- ||delta_i||_2 / log(max(f_i, 20))                 f_i: how often token i stands in the clean rows     `drift`
    3  the `top` embeddings of the highest score <- e_i^Pre                                                          `purify_embeddings`
    Fine-mixing
    4  m ~ Bernoulli(rho), one draw a scalar;  w <- m w_B + (1 - m) w_Pre                                            `mix`
    5  fine-tune all of w on the clean rows with cross-entropy
    6  rho: the smallest of 0.1, 0.2 .. 0.9 whose model of line 5 is accurate enough on validation rows              repair.smallest

A backdoor's few weights do not survive the loss of most of w_B, the task's many do, and line 5 brings back what is
missing. rho = 1 is fine-tuning; rho = 0 is fine-tuning of the pre-trained model, under the victim's classifier. A
frequent token's embedding moves in clean fine-tuning too, as log f: one that moved far and is rare is suspicious.

Of the paper only the abstract was read: its two steps, and that E-PUR repairs word embeddings and serves other methods.
The formulas of lines 2 and 4, the 20, the top 200 and line 6's "smallest acceptable" are recollections, not checked.
Chosen here: f over the clean rows at hand; "accurate enough", no more than `drop` points under the victim's accuracy,
judged after line 5, since before it no rho that forgets anything passes; bisection, so at most four fine-tunings; one
draw for all rho, so that a larger rho keeps what a smaller one keeps; the classifier stays the victim's; position and
segment embeddings are mixed and not purified.

Ablations: tune=False ends at line 4. select="smallest" keeps the rho share of the weights that moved least, "largest"
the share that moved most; which of the two the paper's selection is could not be recalled.
"""
from __future__ import annotations

import time
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.records import BadInput, Examples
from minibd.blending import (WORD, Counterparts, OnChoice, OnStage, blend, blend_and_tune, check_rho, counterparts,
                             smallest_share)
from minibd.tokenizer import Tokenizer
from minibd.train import Log, Tuning

RARE = 20  # a token counts as seen that often
TOP, TOKENS = 200, 150  # embeddings that E-PUR resets, at most one of so many


@dataclass(frozen=True, slots=True)
class FineMixing(Tuning):
    """The method's numbers, the same for every attack."""

    rho: float | None = setting(
        None, "share of the weights kept from the victim, 0..1 (default: the smallest of 0.1 .. 0.9 that is accurate)",
        paper="searched on clean dev rows (recalled)", kind=float,
    )
    drop: float = setting(
        2.0, "points of percent by which accuracy on validation may lie under the victim's, where rho is searched",
        paper="a threshold (recalled)",
    )
    select: str = setting(
        "random", "which share is kept: drawn, or that of the weights that moved least or most", paper="random",
        choices=("random", "smallest", "largest"),
    )
    top: int | None = setting(
        None,
        "E-PUR: word embeddings that are reset before the mixing, 0 leaves it out (default: 200, or 1 in 150 of a "
        "smaller vocabulary)",
        paper="about 200, of BERT's 30,522 (recalled)", kind=int,
    )
    tune: bool = setting(True, "fine-tune the mixture; without it the mixture is the result", paper="yes")

    def __post_init__(self):
        check_choices(self)
        check_rho(self.rho, self.drop)
        if (self.top or 0) < 0:
            raise BadInput(f"top is {self.top}, a number of word embeddings: it must not be negative")
        self.check_tuning()

    def resets(self, tokens: int) -> int:
        """How many word embeddings of a vocabulary E-PUR resets: BERT's 200 would be an eighth of one of 1,600."""
        return min(TOP, tokens // TOKENS) if self.top is None else self.top


# ---- E-PUR. own, before: word embeddings (V, D) of w_B and w_Pre; f (V,): how often each token stands in the clean
# rows


def frequencies(tokenizer: Tokenizer, rows: Examples) -> Tensor:
    """f: how often each token stands in `rows`, special tokens included: (V,) integers, V the tokens that the tokenizer
    knows."""
    ids = torch.tensor([i for row in tokenizer.encode(rows).ids for i in row], dtype=torch.int64)
    return torch.bincount(ids, minlength=1 + max(tokenizer.backend.get_vocab().values()))


def drift(own: Tensor, before: Tensor, f: Tensor) -> Tensor:
    """Eq. E-PUR (score): ||e_i^B - e_i^Pre||_2 / log(max(f_i, 20)), log natural: (V,), float32."""
    return torch.linalg.vector_norm(own.float() - before.float(), dim=-1) / f.clamp(min=RARE).float().log()


def purify(victim: Checkpoint, before: Counterparts, f: Tensor, top: int) -> Checkpoint:
    """Lines 1 to 3: a copy of `victim` whose `top` most drifted word embeddings are w_Pre's; its history names their
    tokens, worst first."""
    made = checkpoint.copy(victim)
    own, original = made.model.embeddings.word.weight.detach(), before.weights[WORD]
    if len(f) > len(own):
        raise BadInput(
            f"there are frequencies of {len(f)} tokens and the victim has {len(own)}: count them with the victim's own "
            "tokenizer"
        )
    known = torch.zeros(len(own), dtype=torch.int64, device=own.device)  # rows that only pad the table are never read
    known[:len(f)] = f.to(own.device)
    worst = drift(own, original, known).topk(min(top, len(own))).indices
    own[worst] = original[worst]
    tokens = [made.tokenizer.backend.id_to_token(i) or f"row {i}" for i in worst.tolist()]
    made.history.append({"mitigation": "e-pur", "top": top, "tokens": tokens, "kept": list(before.kept)})
    return made


def purify_embeddings(victim: Checkpoint, pretrained: Checkpoint, frequencies: Tensor, top: int = TOP) -> Checkpoint:
    """Eq. E-PUR (reset), to stand before any other mitigation: word embeddings are touched, nothing else. `victim`
    stays as it was."""
    return purify(victim, counterparts(victim, pretrained), frequencies, top)


# ---- Fine-mixing

def mixture(
    victim: Checkpoint, before: Counterparts, rho: float, generator: torch.Generator, select: str = "random"
) -> Checkpoint:
    """Line 4: a copy of `victim` that keeps each scalar of w_B with probability rho, or the rho share that moved least
    (most)."""
    if not 0 <= rho <= 1:
        raise BadInput(f"rho is {rho}, the share of the weights that is kept: it must lie in 0..1")
    weights = before.weights
    if select == "random":  # drawn where the generator is: a seed mixes the same on every device
        keep = {
            name: (torch.rand(w.shape, generator=generator, device=generator.device) < rho).to(w.device)
            for name, w in weights.items()
        }
    else:
        moved = {name: (victim.model.get_parameter(name).detach() - w).abs().float() for name, w in weights.items()}
        keep = smallest_share(moved if select == "smallest" else {name: -by for name, by in moved.items()}, rho)
    made = blend(victim, before, keep)
    made.history.append(
        {
            "mitigation": "mixing", "rho": rho, "select": select, "correlation": before.correlation,
            "kept": list(before.kept),
        }
    )
    return made


def mix(
    victim: Checkpoint, pretrained: Checkpoint, rho: float, generator: torch.Generator, *, select: str = "random"
) -> Checkpoint:
    """Eq. Fine-mixing (w): m w_B + (1 - m) w_Pre alone; rho = 1 is the victim, rho = 0 the pre-trained model under its
    classifier, bit by bit.

    A tensor without a counterpart is the victim's; the last entry of the history lists them as "kept".
    """
    return mixture(victim, counterparts(victim, pretrained), rho, generator, select)


def finemix(
    victim: Checkpoint, pretrained: Checkpoint, clean: Examples, validation: Examples | None = None,
    settings: FineMixing = FineMixing(), *, seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None,
    on_stage: OnStage | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """E-PUR, mixing, fine-tuning. A new record comes back; `victim` and `pretrained` stay as they were.

    validation: rows on which rho is searched and the best epoch chosen; without them `settings.rho` must say it, and
    the last epoch stays.
    log: see train.fit. on_stage: called with "E-PUR" and the purified victim, "mixed RHO" and the mixture of each rho
    that is tried, then "Fine-mixing" (tune=False: "Mixing") and the result, and the seconds each took.
    on_choice: called with "rho" and its value, then "trials" and each [rho, accuracy] of the search ([] without one).
    """
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    before, theta = counterparts(victim, pretrained), victim
    if top := settings.resets(len(before.weights[WORD])):
        theta = purify(victim, before, frequencies(victim.tokenizer, clean), top)
        if on_stage is not None:
            on_stage("E-PUR", theta, time.perf_counter() - started)

    name = "Fine-mixing" if settings.tune else "Mixing"
    repaired = blend_and_tune(
        victim, lambda rho: mixture(theta, before, rho, torch.Generator().manual_seed(seed), settings.select), clean,
        validation, rho=settings.rho, drop=settings.drop, schedule=settings.schedule if settings.tune else None,
        steps=settings.steps, seed=seed, dtype=dtype, log=log, name=name, on_stage=on_stage,
    )
    result = repaired.ckpt
    if on_choice is not None:
        on_choice("rho", repaired.rho)
        on_choice("trials", repaired.trials)
    result.history.append(
        {
            "mitigation": "fine-mixing", "clean_rows": len(clean), "validation_rows": len(validation or ()),
            "seed": seed, "trials": repaired.trials, **asdict(settings), "rho": repaired.rho,
        }
    )
    if on_stage is not None:
        on_stage(name, result, repaired.seconds)
    return result
