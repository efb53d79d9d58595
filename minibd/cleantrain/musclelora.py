"""MuScleLoRA: multi-scale low-rank adaptation with aligned gradients, to train a clean model on a poisoned dataset.

Who uses it: a defender who holds a dataset of which some rows may be poisoned, a pre-trained encoder to trust, and a
few dozen clean rows. A backdoor is a map of low frequency and is learnt first. With little capacity to learn it, an
input spread over several scales, and gradients that point where those of the clean rows point, the task is to be learnt
first instead.

    1  theta <- the pre-trained encoder with a new classifier, all of it frozen                `adapted`
    2  LoRA at query and value of every block, multi-scale LoRA at the penultimate layer       Eq. (6), models/lora.py
    3  for each batch of untrusted rows:
    4      g <- gradient of its mean cross-entropy,  r <- that of as many clean rows, drawn anew
               (one pass for both: align.TwoGroupLoRA)
    5      g^ <- |<g, r>| / ||r||^2 r, tensor by tensor                                        Eq. (7), align.align
    6      theta <- AdamW's step along (1 - mu) g^ + mu g, mu rising from 0 to its maximum
               (Eq. (8), align.interpolate, align.Ratio)
    7  the epoch that is best on clean validation rows; the low-rank updates are added to the weights they update

Ablations (the paper's Table 3): without MS the penultimate layer stays as it is; without GA a step takes g; without MS
and GA it is the baseline LoRA. Without LR (and MS, which is low-rank) every parameter is trained, the classifier too,
and a step takes two passes.

Choices where the paper is silent: the classifier stays at its random start, as released (`train_head` trains it, in two
passes a step), and the penultimate layer is BERT's pre-trained pooler if the checkpoint has it; which scalings suit a
new model is searched (`search_bands`); the clean rows of a step are drawn without replacement, afresh at each step;
LoRA starts at R = 0, the multi-scale layer as released (models/lora.py has what that does); mu rises step by step;
encoders narrower than the paper's have other numbers (NARROW).

variant="released": mu by the released conditions (align.Ratio), and a tensor whose clean gradient is 0 keeps the
untrusted one.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minibd import checkpoint
from minibd.align import AlignedAdamW, Groups, Ratio, swap, twins_of
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import generator, sample
from minibd.distributed import share, total
from minibd.models.cast_once import cast_once
from minibd.models.encoder import Encoder
from minibd.models.lora import PRESETS, freeze, lora, merge, multi_scale, preset, with_groups
from minibd.predict import accuracy, best_on
from minibd.records import BadInput, Batch, Examples, Part
from minibd.resume import Count, kept_by
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import Log, Loss, OnChoice, Schedule, check_classes, cross_entropy, fit, listens, logged

# By architecture: the numbers of section B.4 and the released configs for BERT and RoBERTa, and for Llama 2.
USUAL = {
    "rank": 8, "alpha": 32.0, "ratio": 0.1, "ga_epoch": 1, "min_loss": 0.4, "aux": 96, "lr": 2e-5, "epochs": 10,
    "batch_size": 32,
}
CAUSAL = {
    "rank": 2, "alpha": 8.0, "ratio": 0.0, "ga_epoch": 0, "min_loss": 0.0, "aux": 128, "lr": 1e-5, "epochs": 5,
    "batch_size": 16,
}
# Ours, for encoders narrower than BERT-base, whose low-rank layers learn almost nothing at 2e-5: chosen on MiniLM by a
# planted text and dev rows (scripts/tables.py musclelora-choose). If all weights are trained the rate stays.
NARROW = {"ratio": 0.02, "aux": 384, "lr": 1e-3, "epochs": 2}
# at 1e-3 its MLP's large matrices end in a constant prediction; the best of 2e-5, 1e-4, this and 1e-3 (the same table)
NARROW_PREFIX = 3e-4
WIDTH = 768  # BERT-base's


def narrow(model: Encoder) -> bool:
    """Whether NARROW's numbers stand for `model`."""
    return not model.causal and model.config.hidden < WIDTH


@dataclass(frozen=True, slots=True)
class MuScleLoRA:
    """The method's numbers, the same for every attack; None depends on the model (`resolved`), narrow being an encoder
    of hidden size under 768."""

    rank: int | None = setting(None, "LoRA's rank (default 8, causal 2)", paper="8, Llama 2", kind=int)
    alpha: float | None = setting(
        None, "LoRA's update weighs alpha / rank (default 32, causal 8)", paper="not mentioned; released 32, Llama 8",
        kind=float,
    )
    bands: tuple[str, ...] | None = setting(
        None, "radial scalings of the penultimate layer (default by the model)", kind=tuple,
        paper="BERT 1,4,8,12,16,20,24,28; RoBERTa 1,2,4,6,8,10,12,14,16; large 1,2,3,4,5,6,7,8,9; Llama 1,2,3,4",
    )
    bandwidth: int = setting(1, "rows of L that share a scaling", paper="1")
    band_alpha: float | None = setting(
        None, "the multi-scale update weighs band_alpha / bandwidth (default 6, causal 4)",
        paper="not mentioned; released 6, Llama 4", kind=float,
    )
    init: str = setting(
        "kaiming", "start of the multi-scale layer's R: random, or zero as LoRA's", paper="as LoRA's; released kaiming",
        choices=("kaiming", "zero"),
    )
    bottleneck: int = setting(
        16, "width of a Llama's new two-layer classifier, whose first layer is the penultimate one", paper="16"
    )
    ratio: float | None = setting(
        None, "the largest mu, the untrusted gradient's share (default 0.1, narrow 0.02, causal 0)",
        paper="0.1, Llama 0", kind=float,
    )
    ga_epoch: int | None = setting(
        None, "released variant: the epoch, from 0, at which mu begins to rise (default 1, causal 0)",
        paper="not mentioned; released 1, Llama 0", kind=int,
    )
    min_loss: float | None = setting(
        None,
        "released variant: the clean loss under which untrusted gradients are let through (default 0.4, causal 0)",
        paper="not mentioned; released 0.4, Llama 0", kind=float,
    )
    aux: int | None = setting(
        None, "clean rows that the gradient is aligned to (default 96, narrow 384, causal 128)", paper="96, Llama 128",
        kind=int,
    )
    lr: float | None = setting(
        None, "learning rate (default 2e-5, narrow 1e-3 but 2e-5 of all weights, causal 1e-5)",
        paper="2e-5, Llama 1e-5", kind=float,
    )
    epochs: int | None = setting(
        None,
        "passes over the untrusted rows; the best on validation is kept (default 10, narrow 2, causal 5)",
        paper="10, Llama 5", kind=int,
    )
    batch_size: int | None = setting(
        None, "untrusted texts per step, and as many clean ones (default 32, causal 16)", paper="32, Llama 16", kind=int
    )
    multi_scale: bool = setting(True, "MS, the multi-scale layer; off (ablation), the penultimate layer stays as it is")
    low_rank: bool = setting(True, "LR; off (ablation), every parameter is trained, and there is no multi-scale layer")
    align: bool = setting(True, "GA, the gradient alignment; off (ablation), the untrusted gradient as it is")
    train_head: bool = setting(False, "train the new classifier too", paper="not mentioned; released no")
    whole: bool = setting(
        False, "align the gradient of all parameters as one vector, not tensor by tensor",
        paper="not mentioned; released no",
    )
    variant: str = setting(
        "paper", "mu as printed, or by the released code's conditions", choices=("paper", "released")
    )

    def __post_init__(self):
        self.validate()

    def validate(self) -> None:
        """Raises BadInput if a number is out of range."""
        check_choices(self)
        if self.multi_scale and not self.low_rank:
            raise BadInput("the multi-scale layer is a low-rank one: without low_rank, leave out multi_scale too")
        if not (self.low_rank or self.align):
            raise BadInput(
                "without low_rank and align nothing of the method is left: plain training is the baseline vanilla"
            )
        for name in ("rank", "aux", "bandwidth", "bottleneck"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("alpha", "band_alpha"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise BadInput(f"{name} is {getattr(self, name)}, which leaves the update out: it must be above 0")
        try:
            tuple(map(float, self.bands or ()))
        except ValueError:
            raise BadInput(f"bands are {','.join(self.bands)}: give numbers, such as 1,4,8,12") from None
        given = {name: usual if getattr(self, name) is None else getattr(self, name) for name, usual in USUAL.items()}
        Schedule(given["lr"], given["epochs"], given["batch_size"]).validate()
        Ratio(given["ratio"], self.variant, given["ga_epoch"], given["min_loss"]).validate()

    @property
    def scalings(self) -> tuple[float, ...]:
        """s as numbers."""
        return tuple(map(float, self.bands or ()))

    def resolved(self, model: Encoder) -> MuScleLoRA:
        """These settings with nothing left open."""
        own, paper = PRESETS[preset(model)], CAUSAL if model.causal else USUAL
        usual = paper | {"bands": tuple(map(str, own.bands)), "band_alpha": own.alpha}
        if narrow(model):
            usual |= NARROW if self.low_rank else NARROW | {"lr": paper["lr"]}
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})

    def baseline_lr(self, method: str, model: Encoder) -> float:
        """The learning rate of a baseline (peft.py) compared with these settings: theirs if they have one, else the one
        that suits the baseline's parameters."""
        if method == "vanilla":
            return replace(self, low_rank=False, multi_scale=False, align=True).resolved(model).lr
        return NARROW_PREFIX if method == "prefix" and narrow(model) and self.lr is None else self.resolved(model).lr

    @property
    def share(self) -> Ratio:
        """mu at each step."""
        return Ratio(self.ratio, self.variant, self.ga_epoch, self.min_loss)

    @property
    def schedule(self) -> Schedule:
        """The schedule of settings that are `resolved`: as released, no warm-up, no weight decay."""
        return Schedule(self.lr, self.epochs, self.batch_size, warmup=0.0, weight_decay=0.0)


# ---- the algorithm

def adapted(ckpt: Checkpoint, rows: Examples, settings: MuScleLoRA, seed: int) -> Checkpoint:
    """Lines 1 and 2: a copy of `ckpt` with a new classifier for the classes of `rows`, ready to be trained."""
    tuned = checkpoint.new_classifier(ckpt, rows.labels, seed, settings.bottleneck)
    if not settings.low_rank:
        return tuned
    rng = torch.Generator().manual_seed(seed + 2)  # seed + 1 has drawn the classifier
    freeze(tuned.model)
    lora(tuned.model, rank=settings.rank, alpha=settings.alpha, generator=rng)
    if settings.multi_scale:
        multi_scale(
            tuned.model, bands=settings.scalings, bandwidth=settings.bandwidth, alpha=settings.band_alpha,
            init=settings.init, generator=rng,
        )
    if settings.train_head:
        tuned.model.classifier.requires_grad_(True)
    return tuned


def joined(untrusted: Batch, clean: Batch, pad: int) -> Batch:
    """Both batches' texts in one, the untrusted ones first: (B + B', max T); of two parts the part of both wholes."""
    t = max(untrusted.ids.shape[1], clean.ids.shape[1])
    part = None
    if untrusted.part and clean.part:
        n = len(untrusted.part.mask)  # texts of the whole
        part = Part(torch.cat([F.pad(x.part.mask, (0, t - x.part.mask.shape[1])) for x in (untrusted, clean)]),
                    torch.cat((untrusted.part.rows, clean.part.rows + n)), 1.0)

    def both(a: Tensor, b: Tensor, fill: int | bool) -> Tensor:
        return torch.cat([F.pad(x, (0, t - x.shape[1]), value=fill) for x in (a, b)])

    return Batch(
        both(untrusted.ids, clean.ids, pad), both(untrusted.mask, clean.mask, False),
        both(untrusted.token_type_ids, clean.token_type_ids, 0), torch.cat((untrusted.labels, clean.labels)), part,
    )


def clean_of(step: int, n: int, size: int, seed: int) -> list[int]:
    """Line 4's clean rows: the indices of `size` of `n` (of all, if there are fewer), without replacement, afresh at
    each step."""
    return generator(seed, "clean", step).sample(range(n), min(size, n))


def of_turn(clean: Batch, turn: int, turns: int) -> Batch:
    """The clean texts that are computed in a turn; where there are too few for it one that does not count."""
    if turns == 1:
        return clean
    rows = range(len(clean.labels) * turn // turns, len(clean.labels) * (turn + 1) // turns)
    return clean.some(rows) if rows else clean.some([0], weight=0.0)


def aligning(
    tokenizer: Tokenizer, clean: Encoded, trained: list[nn.Parameter], settings: MuScleLoRA, steps: int, seed: int
) -> tuple[Loss, AlignedAdamW, Count]:
    """Lines 4 to 6 for `fit`: a loss whose backward pass keeps g and r apart, the optimizer that aligns, interpolates
    and updates, and the count of the steps, by which the loss draws.

    The terms of the loss: "cls", the untrusted texts' cross-entropy, (B,); "clean", the clean texts' mean, the same for
    every text.
    """
    twins = twins_of(trained)
    optimizer = AlignedAdamW(trained, twins, lr=settings.lr, whole=settings.whole, variant=settings.variant)
    taken, of_turns = Count(), []  # the clean loss of each turn of a step

    def loss(model: Encoder, batch: Batch) -> dict[str, Tensor]:
        n, part = len(batch.labels), batch.whole
        if not part.turn:
            taken()
            of_turns.clear()
        step = taken.calls - 1
        drawn = share(tokenizer.batch(clean, clean_of(step, len(clean), settings.batch_size, seed)))
        drawn = of_turn(drawn, part.turn, part.turns).to(batch.ids.device)
        if settings.low_rank and not settings.train_head:
            both = joined(batch, drawn, tokenizer.pad)
            with with_groups(model, Groups(both.mask, n), twins):
                values = cross_entropy(model, both)["cls"]
            untrusted, trusted = values[:n], total(drawn.mean(values[n:]))
        else:  # a second pass: gradients of an ordinary layer add up before they can be told apart
            trusted = drawn.mean(cross_entropy(model, drawn)["cls"])
            swap(trained, twins)  # of an earlier turn
            with torch.autocast(batch.ids.device.type, enabled=False):
                trusted.backward()
            swap(trained, twins)
            untrusted, trusted = cross_entropy(model, batch)["cls"], total(trusted.detach())
        # a function of the mean norm of r, which step() computes
        of_turns.append(trusted.item())
        optimizer.mu = partial(settings.share.mu, step, steps, settings.epochs, sum(of_turns))
        return {"cls": untrusted, "clean": (trusted / part.share).expand(n)}

    return loss, optimizer, taken


def search_bands(
    ckpt: Checkpoint, clean: Examples, trusted: Examples, candidates: Sequence[tuple[float, ...]],
    settings: MuScleLoRA = MuScleLoRA(), *, epochs: int = 30, seed: int = 0, dtype: torch.dtype = torch.float32,
    log: Log | None = None,
) -> list[tuple[tuple[float, ...], float]]:
    """The radial scalings for a new model, on clean rows alone (the paper searches them and does not say how): [(bands,
    accuracy)], best first.

    Each of `candidates` is trained on half of `trusted`, aligned to `clean`, and scored on the other half; of equal
    ones the first given comes first. It shows which scalings let the model learn at all; how much of a backdoor they
    keep out, clean rows cannot show.
    """
    half = sample(trusted, 0.5, seed)
    ids = {x.id for x in half}
    others = trusted.like(x for x in trusted if x.id not in ids)
    if not others or len(half) < 2:
        raise BadInput(
            f"{len(trusted)} clean rows besides those that are aligned to: a search trains on half and scores on half, "
            "give more"
        )
    scores = []
    for bands in candidates:
        tried = replace(settings, bands=tuple(map(str, bands)), epochs=epochs)
        trained = musclelora(ckpt, half, clean, tried, validation=others, seed=seed, dtype=dtype, log=log)
        scores.append((bands, accuracy(trained.model, trained.tokenizer, others)))
    return sorted(scores, key=lambda score: -score[1])


def musclelora(
    ckpt: Checkpoint, rows: Examples, clean: Examples, settings: MuScleLoRA = MuScleLoRA(), *,
    validation: Examples | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None,
    on_step: Callable[[nn.Module, int], None] | None = None, on_choice: OnChoice | None = None,
) -> Checkpoint:
    """A copy of `ckpt`, an encoder or a classifier whose head is replaced, trained on the untrusted `rows`; `ckpt`
    stays as it was.

    clean: trusted rows that gradients are aligned to. validation: other trusted rows, by which the best epoch is kept;
    without them, the last.
    log: as of train.fit and, if gradients are aligned, with "clean", the indices in `clean` of the step's clean rows.
    on_step: as of train.fit; it sees the low-rank layers before they are merged. on_choice: called with "best_epoch".
    """
    if settings.align and not clean:
        raise BadInput("there are no clean rows to align to: give a few dozen, or leave the alignment out")
    check_classes(rows, "MuScleLoRA")
    if settings.align:
        check_classes(clean, "MuScleLoRA, the clean rows that it aligns to")
    settings = settings.resolved(ckpt.model)
    tuned = adapted(ckpt, rows, settings, seed)
    model, tokenizer, encoded = tuned.model, tuned.tokenizer, tuned.tokenizer.encode(rows)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.trim = True
    loss, optimizer, parts = cross_entropy, None, ()
    if settings.align:
        steps = settings.epochs * -(-len(rows) // settings.batch_size)
        loss, optimizer, *parts = aligning(tokenizer, tokenizer.encode(clean), trained, settings, steps, seed)

    def with_clean_rows(step: dict) -> None:
        logged(log, step | {"clean": clean_of(step["step"], len(clean), settings.batch_size, seed)})

    with_clean_rows.kept, with_clean_rows.listens = kept_by(log), listens(log)
    with cast_once(model, dtype):
        fit(
            model, tokenizer, encoded, loss, settings.schedule, seed=seed, dtype=dtype,
            log=with_clean_rows if settings.align and log is not None else log, on_step=on_step, optimizer=optimizer,
            name="MuScleLoRA", score=best_on(tokenizer, validation), on_choice=on_choice, parts=parts,
        )
    model.trim = False
    merge(model)
    tuned.history.append({
        "trained": "musclelora", "rows": len(rows), "clean_rows": len(clean) if settings.align else 0,
        "validation_rows": len(validation or ()), "seed": seed, "trained_numbers": sum(p.numel() for p in trained),
        **asdict(settings),
    })
    model.requires_grad_(True)  # as in every checkpoint: the next training chooses what is frozen
    return tuned
