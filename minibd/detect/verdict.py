"""The verdict on a class, from its strongest suspect.

    v_t(w) = q_t(w) / M                                                          Eq. Scan (7)

M is the median margin that the model has on its own rows: v is 1 where a suspect leaves nine of ten rows of other
classes as sure of the target as the model is of its own rows, 0 where a tenth of them are lost, -1 where it moves none.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minibd.detect.confirm import Suspect


@dataclass(frozen=True, slots=True)
class ClassVerdict:
    target: int
    suspects: list[Suspect]
    margin: float
    reason: str = ""


def judge(target: int, suspects: Sequence[Suspect], margin: float, reason: str = "") -> ClassVerdict:
    return ClassVerdict(target, list(suspects), margin, reason)
