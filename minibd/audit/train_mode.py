"""Losses of a whole BERT in train mode, against plain loops under the same dropout masks: a dropout that is missing, or
acts in another place, shows in each of them."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minibd.audit import restated, small
from minibd.audit.check import Case, Inputs
from minibd.mitigations.mbtsad import MBTSAD, distill_loss
from minibd.mitigations.pure import attention_penalty
from minibd.records import Batch
from minibd.train import cross_entropy

SEED = 11  # of the dropout masks
WHAT = "train mode, a whole BERT with dropout, 3 texts"


class _Student:
    """A BERT in train mode and its loops: the same rows, the same masks."""

    def __init__(self, generator: torch.Generator):
        self.ckpt, self.rows = small.ckpt(generator), small.rows()
        self.batch: Batch = self.ckpt.tokenizer(self.rows)
        self.masks = small.dropout_masks(self.ckpt, self.rows, SEED)
        self.ids, self.labels = small.ids(self.ckpt, self.rows), [x.label for x in self.rows]

    def case(
        self, ours: Callable[[nn.Module], Tensor], loops: Callable[[list[tuple]], list], by: tuple[str, ...] = (),
    ) -> Case:
        """ours: of the model, in train mode. loops: of restated.bert's result for each text under its masks."""

        def question(model: nn.Module) -> Tensor:
            with small.train_mode(model, SEED):
                return ours(model)

        def restate(w) -> list:
            return loops([restated.bert(w, ids, small.HEADS, masks) for ids, masks in zip(self.ids, self.masks)])

        def of_weights(w: Inputs) -> Tensor:
            return small.call_with(self.ckpt.model, w, question)

        return Case(WHAT, small.weights(self.ckpt), of_weights, restate, by)


def cross_entropy_case(generator: torch.Generator) -> Case:
    """-log p(y | x) of each text: train.cross_entropy, which every training minimises."""
    student = _Student(generator)
    return student.case(
        lambda model: cross_entropy(model, student.batch)["cls"],
        lambda texts: [restated.cross_entropy(logits, y) for (*_, logits), y in zip(texts, student.labels)],
        by=("classifier.weight", "blocks.1.down.weight", "blocks.0.value.weight"),
    )


def mean_loss_case(generator: torch.Generator) -> Case:
    """The mean over the texts of the same: a step's total."""
    student = _Student(generator)
    return student.case(
        lambda model: cross_entropy(model, student.batch)["cls"].mean(),
        lambda texts: restated.mean(
            [restated.cross_entropy(logits, y) for (*_, logits), y in zip(texts, student.labels)]
        ),
    )


def distillation_case(generator: torch.Generator) -> Case:
    """MBTSAD's (1): the student in train mode, the teacher in eval mode."""
    student, teacher = _Student(generator), small.ckpt(generator)
    settings, want = MBTSAD(alpha=0.7, beta=1.3, gamma=0.4), ("attn", "hidden")
    with torch.no_grad():
        targets = teacher.model(student.batch, want)
    weights = {name: w.tolist() for name, w in small.weights(teacher).items()}

    def loops(texts: list[tuple]) -> list[float]:
        losses = []
        for (hidden, maps, _, logits), ids, y in zip(texts, student.ids, student.labels):
            t_hidden, t_maps, _, _ = restated.bert(weights, ids, small.HEADS)
            real = [[True] * len(ids)]
            att = restated.attention_loss([[A] for A in maps], [[A] for A in t_maps], real, 2.0)[0]
            hid = restated.hidden_loss([[h] for h in hidden], [[h] for h in t_hidden], real)[0]
            losses.append(0.7 * att + 1.3 * hid + 0.4 * restated.cross_entropy(logits, y))
        return losses

    return student.case(lambda model: distill_loss(model(student.batch, want), targets, student.batch, settings), loops)


def maps_case(generator: torch.Generator) -> Case:
    """The maps of all layers and what [CLS] pays in them: before dropout, of hidden states behind it."""
    student = _Student(generator)

    def ours(model: nn.Module) -> Tensor:
        attn = torch.stack(model(student.batch, ("attn",)).attn)[:, :, :, 0]  # (L, B, H, T)
        return torch.cat([attn[:, b, :, :len(ids)].flatten() for b, ids in enumerate(student.ids)])

    return student.case(
        ours, lambda texts: [a for _, maps, _, _ in texts for layer in maps for head in layer for a in head[0]]
    )


def penalty_case(generator: torch.Generator) -> Case:
    """PURE's (3): the cross-entropy and mu times the norms of the maps."""
    student, mu, head_mask, lambdas = _Student(generator), 0.15, [[1.0, 0.0], [1.0, 1.0]], [0.7, 1.0]

    def ours(model: nn.Module) -> Tensor:
        out, batch = model(student.batch, ("attn",)), student.batch
        penalty = attention_penalty(out.attn, batch.mask, torch.tensor(head_mask), torch.tensor(lambdas))
        return nn.functional.cross_entropy(out.logits, batch.labels, reduction="none") + mu * penalty

    def loops(texts: list[tuple]) -> list[float]:
        losses = []
        for (_, maps, _, logits), y in zip(texts, student.labels):
            penalty = restated.attention_penalty([[A] for A in maps], head_mask, lambdas)[0]
            losses.append(restated.cross_entropy(logits, y) + mu * penalty)
        return losses

    return student.case(ours, loops)
