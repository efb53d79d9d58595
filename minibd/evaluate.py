"""What a model does: CACC on clean rows, ASR on triggered rows, each a count with its 95 % interval.

CACC: share of ALL clean test rows whose predicted class is their label.
ASR: share of the triggered rows of other classes (gold label != target) that are predicted as the target; not conditioned on
the clean prediction being right. In a two-class task it equals LFR, the label flip rate. A clean model's ASR on the same rows
is its error on them: the floor, below which there is nothing left to defend.
"""
from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import nn

from minibd.data import in_order
from minibd.records import BadInput, Examples
from minibd.text import Text


@dataclass(frozen=True, slots=True)
class Share:
    """hits of n; `percent` in 0..100; `interval`: Wilson's 95 % interval in percent."""
    hits: int
    n: int

    @property
    def percent(self) -> float:
        return 100.0 * self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        z = 1.959963984540054  # the normal quantile at 0.975
        p, zz = self.hits / self.n, z * z / self.n
        middle, half = (p + zz / 2) / (1 + zz), z * sqrt(p * (1 - p) / self.n + zz / (4 * self.n)) / (1 + zz)
        return max(0.0, 100 * (middle - half)), min(100.0, 100 * (middle + half))


@torch.inference_mode()
def predict(model: nn.Module, text: Text, examples: Examples, batch_size: int = 128) -> list[int]:
    """The predicted class of each example, in their order."""
    model.eval()
    device = next(model.parameters()).device
    rows = text.encode(examples)
    predicted = [0] * len(rows)
    for which in in_order(rows.lengths, batch_size):
        for i, label in zip(which, model(text.batch(rows, which).to(device)).logits.argmax(-1).tolist()):
            predicted[i] = label
    return predicted


def cacc(model: nn.Module, text: Text, clean: Examples) -> Share:
    """Clean accuracy over all rows of `clean`."""
    if not clean:
        raise BadInput("there are no clean test rows to measure CACC on: give a test file")
    return Share(sum(p == x.label for p, x in zip(predict(model, text, clean), clean)), len(clean))


def asr(model: nn.Module, text: Text, triggered: Examples, target: int) -> Share:
    """Attack success rate over `triggered`, rows with the trigger and their true label, none of which is the target."""
    if not triggered:
        raise BadInput(f"there are no triggered rows of another class than {target} to measure ASR on")
    if bad := [x.id for x in triggered if x.label == target]:
        raise BadInput(f"{len(bad)} triggered rows are of the target class {target} itself (first: {bad[0]}): "
                       "ASR counts rows of other classes, with their true labels")
    return Share(sum(p == target for p in predict(model, text, triggered)), len(triggered))


@dataclass(frozen=True, slots=True)
class Scores:
    """CACC, and ASR where there are triggered rows to measure it on."""
    cacc: Share
    asr: Share | None


@dataclass(frozen=True, slots=True)
class Judge:
    """The rows that every model of a run is measured on. `triggered` is None where the attack is not known."""
    clean: Examples
    triggered: Examples | None = None
    target: int | None = None

    def __call__(self, model: nn.Module, text: Text) -> Scores:
        return Scores(cacc(model, text, self.clean), asr(model, text, self.triggered, self.target) if self.triggered is not None else None)
