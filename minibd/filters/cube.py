"""CUBE (Cui et al., NeurIPS 2022): poisoned rows gather in clusters of their own among the rows of the class they are
labelled as.

Of a classifier that was trained on the suspicious rows:
1. the features of a label's rows, what the last layer reads of them, are reduced to `dims` principal components, each
   scaled to a variance of 1.
2. HDBSCAN clusters the rows of that label, with min_cluster_size a share `smallest` of all rows, and min_samples. A row
   that it calls noise (-1) belongs to the cluster of the nearest row that has one.
3. of the rows of a label the largest cluster is kept, and any that holds half of them; the others are suspicious.
4. with clean rows, each of which belongs to the cluster of its label's nearest row, suspicious clusters are dropped
   from the one that holds the fewest clean rows of that label for its size, as long as all dropped ones hold no more
   than the share `frr` of these; without clean rows, all of them. CUBE has no score.

The paper reduces all rows by PCA, then by UMAP to 2 dimensions, and its released code clusters by the package hdbscan;
here it is PCA and scikit-learn's HDBSCAN (pip install 'minibd[plots]'): neither of the two packages is needed. Line 1
stands in for UMAP, which measures distances in a row's own neighbourhood. By PCA of all rows 98 % of the variance of a
victim's features (BadNets, SST-2 / MiniLM) lie along the one direction between the classes; poisoned rows, whose
nearest neighbours are poisoned to 99 %, then lie in the cluster of their label, and none is dropped.

variant="released" does the rest as OpenBackdoor (openbackdoor/defenders/cube_defender.py): noise is a cluster like any
other, and may be the one that is kept; min_samples is 100 and min_cluster_size 5, however many rows there are; no clean
rows are read. All rows are reduced and clustered together, to 20 components as they are. Its look-ups of rows in lists
take a time that grows with the square of their number; these do not, and the result is the same. `defects` names some
of it on top of the correct filter: noise, hundred, lookups (kept_by_lists, which changes the time alone).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import in_order
from minibd.records import BadInput, Examples
from minibd.rejection import Screen, check_defects, check_rate

NOISE = -1
DEFECTS = ("noise", "hundred", "lookups")
RELEASED, RELEASED_DIMS = {"min_samples": 100, "min_cluster_size": 5}, 20
FLAT = 1e-6  # of the largest deviation along a component: one with less is rounding


@dataclass(frozen=True, slots=True)
class Cube:
    """CUBE's settings."""
    frr: float = setting(0.05, "share of the clean rows of a label that the dropped clusters may hold",
                         paper="not known")
    dims: int = setting(3, "principal components of a label's rows", paper="20 of all rows, then UMAP to 2")
    smallest: float = setting(0.01, "rows of the smallest cluster, as a share of all", paper="5 rows")
    min_samples: int = setting(5, "rows around a row that tell HDBSCAN how dense it is there", paper="100")
    batch_texts: int = setting(128, "texts that the model reads at a time")
    variant: str = setting("paper", "released: as OpenBackdoor does it, but for UMAP", choices=("paper", "released"))
    defects: tuple[str, ...] = setting((), "some of the released code's defects on top of the correct filter: noise, "
                                       "hundred, lookups")

    def __post_init__(self):
        check_choices(self)
        check_rate(self.frr)
        check_defects(self.defects, DEFECTS, self.variant)
        for name in ("dims", "min_samples", "batch_texts"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        if not 0 < self.smallest <= 0.5:
            raise BadInput(f"smallest is {self.smallest}, a share of the rows: it must be above 0 and at most 0.5, "
                           "such as 0.01")


@dataclass(frozen=True, slots=True)
class Cubed:
    """screen: of the training rows. clusters: how many rows of each label are in each cluster, {(label, cluster): n};
    -1 is noise. dropped: those of them that are dropped."""
    screen: Screen
    clusters: dict[tuple[int, int], int]
    dropped: list[tuple[int, int]]


def cube(victim: Checkpoint, rows: Examples, clean: Examples | None = None, settings: Cube = Cube()) -> Cubed:
    """Lines 1 to 4. victim: trained on `rows`; clean: trusted rows, or None.

    Raises BadInput where there are fewer than ten rows, or scikit-learn is not installed.
    """
    if len(rows) < 10:
        raise BadInput(f"CUBE clusters training rows, and {len(rows)} are too few: give ten or more")
    labels = [x.label for x in rows]
    of_rows = features(victim, rows, settings.batch_texts)
    if settings.variant == "released":
        middle, axes = principal(of_rows, RELEASED_DIMS)
        found = clusters_of((of_rows - middle) @ axes, **RELEASED)
        return _screened(labels, found, suspicious(labels, found))
    least = max(5, round(settings.smallest * len(rows)))
    sizes = RELEASED if "hundred" in settings.defects else {
        "min_samples": settings.min_samples, "min_cluster_size": least}
    found, held = [0] * len(rows), Counter()
    of_clean = features(victim, clean, settings.batch_texts) if clean else None
    for label in sorted(set(labels)):
        at = [i for i, own in enumerate(labels) if own == label]
        middle, axes = scaled(of_rows[at], settings.dims)
        points = (of_rows[at] - middle) @ axes
        own = clusters_of(points, **sizes)
        if "noise" not in settings.defects:
            own = without_noise(points, own)
        for i, cluster in zip(at, own):
            found[i] = cluster
        if clean and (held_at := [i for i, x in enumerate(clean) if x.label == label]):
            held.update((label, own[i]) for i in nearest(points, (of_clean[held_at] - middle) @ axes))
    dropped = suspicious(labels, found)
    if clean:
        dropped = allowed(dropped, Counter(zip(labels, found)), held, settings.frr)
    return _screened(labels, found, dropped, by_lists="lookups" in settings.defects)


def _screened(labels: Sequence[int], found: Sequence[int], dropped: Sequence[tuple[int, int]], by_lists: bool = False
              ) -> Cubed:
    gone = set(dropped)
    keep = kept_by_lists(labels, found, dropped) if by_lists else [pair not in gone for pair in zip(labels, found)]
    return Cubed(Screen(None, keep), dict(Counter(zip(labels, found))), list(dropped))


def kept_by_lists(labels: Sequence[int], found: Sequence[int], dropped: Sequence[tuple[int, int]]) -> list[bool]:
    """Which rows are kept, as the released code looks it up: of each row whether a list of row numbers holds it."""
    gone: list[int] = []
    for pair in dropped:
        gone.extend(i for i in range(len(labels)) if (labels[i], found[i]) == pair)
    return [i not in gone for i in range(len(labels))]


# ---- line 1

@torch.inference_mode()
def features(victim: Checkpoint, rows: Examples, batch_size: int) -> Tensor:
    """What the model's last layer reads of each row, (N, D), float64, on the CPU."""
    model, tokenizer = victim.model.eval(), victim.tokenizer
    encoded = tokenizer.encode(rows)
    found: Tensor | None = None
    for which in in_order(encoded.lengths, batch_size):
        pooled = model(tokenizer.batch(encoded, which).to(model.head_mask.device)).pooled.double().cpu()
        found = torch.empty(len(rows), pooled.shape[1], dtype=torch.float64) if found is None else found
        found[which] = pooled
    return found


def principal(x: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Eq. CUBE (PCA): the mean of x (N, D), and its `dims` directions of largest variance, (D, k), each of norm 1 with
    its largest entry positive; k is at most D."""
    middle = x.mean(0)
    _, axes = torch.linalg.eigh((x - middle).T @ (x - middle))  # by rising variance
    axes = axes.flip(1)[:, :dims]
    largest = axes.abs().argmax(0, keepdim=True)
    return middle, axes * axes.gather(0, largest).sign()


def scaled(x: Tensor, dims: int) -> tuple[Tensor, Tensor]:
    """Eq. CUBE (scale): the mean of x (N, D), and its principal directions (D, k), each divided by the deviation of the
    rows along it. Directions along which the rows are the same are left out; k is at most `dims`."""
    middle, axes = principal(x, dims)
    deviation = ((x - middle) @ axes).square().mean(0).sqrt()  # (k,)
    spread = deviation > FLAT * deviation.max()
    return middle, axes[:, spread] / deviation[spread]


# ---- line 2

def clusters_of(points: Tensor, min_samples: int, min_cluster_size: int) -> list[int]:
    """HDBSCAN's cluster of each of the points (N, k); -1: noise. Points that are all the same, or fewer than a cluster
    has, are one. Raises BadInput."""
    if not points.shape[1] or len(points) < max(2, min_cluster_size):
        return [0] * len(points)
    try:
        from sklearn.cluster import HDBSCAN
    except ImportError:
        raise BadInput("CUBE clusters with scikit-learn, which is not installed: pip install 'minibd[plots]'") from None

    # its own number as a neighbour counts
    least = min(min_samples, len(points) - 1)
    return HDBSCAN(min_samples=least, min_cluster_size=max(2, min(min_cluster_size, len(points))), copy=True
                   ).fit_predict(np.asarray(points)).tolist()


def nearest(points: Tensor, others: Tensor) -> list[int]:
    """The number of the point (N, k) that is nearest to each of `others` (M, k); of equal ones the first."""
    return [i for part in others.split(256) for i in torch.cdist(part, points).argmin(1).tolist()]


def without_noise(points: Tensor, found: Sequence[int]) -> list[int]:
    """Line 2's end: noise joins the cluster of the nearest point that has one; where none has, all are one cluster."""
    at = [i for i, cluster in enumerate(found) if cluster != NOISE]
    noise = [i for i, cluster in enumerate(found) if cluster == NOISE]
    if not at:
        return [0] * len(found)
    joined = list(found)
    for i, near in zip(noise, nearest(points[at], points[noise])):
        joined[i] = found[at[near]]
    return joined


# ---- lines 3 and 4

def suspicious(labels: Sequence[int], found: Sequence[int]) -> list[tuple[int, int]]:
    """Eq. CUBE (keep): (label, cluster) of all clusters of a label's rows but the largest, and but those that hold half
    of them; of equal ones the first in the rows is the largest."""
    sizes, of_label = Counter(zip(labels, found)), Counter(labels)
    largest: dict[int, tuple[int, int]] = {}
    for pair, n in sizes.items():
        if pair[0] not in largest or n > sizes[largest[pair[0]]]:
            largest[pair[0]] = pair
    return [pair for pair, n in sizes.items() if pair != largest[pair[0]] and n < 0.5 * of_label[pair[0]]]


def allowed(dropped: Sequence[tuple[int, int]], sizes: Counter, held: Counter, frr: float) -> list[tuple[int, int]]:
    """Eq. CUBE (frr): those of `dropped` that line 4 drops. sizes, held: how many training rows, and clean rows, each
    (label, cluster) has."""
    kept: list[tuple[int, int]] = []
    for label in {label: None for label, _ in dropped}:
        clean = sum(n for pair, n in held.items() if pair[0] == label)
        taken = 0
        for pair in sorted((pair for pair in dropped if pair[0] == label), key=lambda p: (held[p] / sizes[p], p)):
            taken += held[pair]
            if taken > frr * clean:
                break
            kept.append(pair)
    return kept
