"""A count of a number of rows, with its interval."""
from __future__ import annotations

from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True, slots=True)
class Proportion:
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
