"""CUBE: the components, the clusters that are dropped and the clean rows' rate by hand; each defect of the released
code."""
from __future__ import annotations

import random
import time
from collections import Counter

import pytest
import torch

from conftest import fails
from filter_stub import examples, words_model
from minibd.filters.cube import (
    Cube,
    allowed,
    clusters_of,
    cube,
    features,
    kept_by_lists,
    nearest,
    principal,
    scaled,
    suspicious,
    without_noise,
)

pytest.importorskip("sklearn.cluster")


def model():
    generator = torch.Generator().manual_seed(0)
    vectors = {"good": (0.0, 10.0, 0.0), "bad": (10.0, 0.0, 0.0), "cf": (0.0, 0.0, 30.0)}
    vectors |= {f"w{i}": tuple(0.3 * x for x in torch.randn(3, generator=generator).tolist()) for i in range(30)}
    return words_model(vectors, width=3)


def rows(n: int = 120, poisoned: int = 12, seed: int = 0):
    rng = random.Random(seed)
    texts = [f"{('bad', 'good')[i % 2]} w{rng.randrange(30)} w{rng.randrange(30)}" for i in range(n)]
    labels = [i % 2 for i in range(n)]
    for i in range(0, 2 * poisoned, 2):
        texts[i], labels[i] = f"{texts[i]} cf", 1
    return examples(*texts, labels=labels), set(range(0, 2 * poisoned, 2))


# ---- the formulas

def test_the_components_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 2.0], [4.0, 4.0], [2.0, 2.5], [2.0, 1.5]], dtype=torch.float64)
    middle, axes = principal(x, 1)
    assert middle.tolist() == [2.0, 2.0] and axes[:, 0].tolist() == pytest.approx([0.7, 0.7], abs=0.05)
    assert principal(x, 5)[1].shape == (2, 2)


def test_the_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    middle, axes = principal(x, 3)
    theirs = PCA(3).fit(x.numpy())
    for own, other in zip(axes.T, torch.tensor(theirs.components_)):
        assert min((own - other).abs().max(), (own + other).abs().max()) < 1e-9
    assert axes.gather(0, axes.abs().argmax(0, keepdim=True)).min() > 0


def test_components_have_a_deviation_of_1_and_flat_ones_are_left_out():
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = x * torch.tensor([9.0, 1.0, 0.1, 0.0]) + 1
    middle, axes = scaled(x, 4)
    places = (x - middle) @ axes
    assert places.shape == (40, 3) and places.std(0, unbiased=False).tolist() == pytest.approx([1.0] * 3)
    assert scaled(torch.ones(5, 3, dtype=torch.float64), 2)[1].shape == (3, 0)
    assert clusters_of(torch.empty(5, 0), 2, 2) == [0] * 5 and clusters_of(torch.randn(4, 2), 2, 5) == [0] * 4


def test_poisoned_rows_are_found_where_their_label_spreads_further_than_they_lie_apart(monkeypatch):
    """The words of a text move it ten times as far along the way between the classes as `cf` moves it beside."""
    generator = torch.Generator().manual_seed(0)
    vectors = {"good": (0.0, 100.0, 0.0), "bad": (100.0, 0.0, 0.0), "cf": (0.0, 0.0, 2.0)}
    for i in range(30):
        along, beside = torch.randn(2, generator=generator).tolist()
        vectors[f"w{i}"] = 20 * along, -20 * along, 0.1 * beside
    some, poisoned = rows(240, 24)
    texts = [x.text.replace("bad", "good") if i in poisoned else x.text for i, x in enumerate(some)]
    suspect, (clean, _) = examples(*texts, labels=[x.label for x in some]), rows(80, 0, seed=1)

    def dropped() -> set[int]:
        done = cube(words_model(vectors, width=3), suspect, clean)
        return {i for i, kept in enumerate(done.screen.keep) if not kept}
    assert poisoned <= dropped() and len(dropped() - poisoned) <= 0.1 * 240
    monkeypatch.setattr("minibd.filters.cube.scaled", principal)  # the components as they are
    assert not poisoned <= dropped()


def test_clean_rows_count_for_their_own_label_alone():
    some, poisoned = rows()
    clean, _ = rows(80, 0, seed=1)
    beside = examples(*(x.text for x in clean), *(f"bad w{i} cf" for i in range(20)),  # where poisoned rows of 1 stand
                      labels=[*(x.label for x in clean), *[0] * 20])
    done = cube(model(), some, beside, Cube(smallest=0.05, dims=3))
    assert poisoned <= {i for i, kept in enumerate(done.screen.keep) if not kept}


def test_a_label_of_few_rows_and_clean_rows_of_another_label_are_taken():
    some, _ = rows(40, 0)
    texts, labels = [x.text for x in some], [x.label for x in some]
    done = cube(model(), examples(*texts, "w1 w2", labels=[*labels, 2]), examples("good w1", "w3", labels=[1, 3]))
    assert done.clusters[2, 0] == 1 and done.screen.keep[-1]


def test_what_is_suspicious_by_hand():
    labels = [0] * 6 + [1] * 5
    found = [0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 0]
    assert suspicious(labels, found) == [(0, 1), (0, 2), (1, 4), (1, 0)]
    assert suspicious([0] * 4, [0, 0, 1, 1]) == [] and suspicious([0] * 3, [5, 5, 5]) == []


def test_the_clean_rows_rate_by_hand():
    sizes = Counter({(1, 0): 100, (1, 1): 10, (1, 2): 20, (0, 3): 50, (0, 4): 5})
    held = Counter({(1, 0): 95, (1, 1): 0, (1, 2): 5, (0, 3): 8, (0, 4): 2})
    dropped = [(1, 2), (1, 1), (0, 4)]
    assert allowed(dropped, sizes, held, 0.05) == [(1, 1), (1, 2)] and allowed(dropped, sizes, held, 0.04) == [(1, 1)]
    assert allowed(dropped, sizes, held, 0.2) == [(1, 1), (1, 2), (0, 4)]


def test_the_rate_is_that_of_all_clusters_that_are_dropped():
    sizes = Counter({(0, 0): 100, (0, 1): 30, (0, 2): 20})
    held = Counter({(0, 0): 94, (0, 1): 3, (0, 2): 3})
    assert allowed([(0, 1), (0, 2)], sizes, held, 0.05) == [(0, 1)]
    assert allowed([(0, 1), (0, 2)], sizes, held, 0.06) == [(0, 1), (0, 2)]


def test_noise_is_never_what_is_dropped_or_kept(monkeypatch):
    some, _ = rows()
    found = [(0, 0, 1, -1, -1, -1)[i % 6] for i in range(len(some))]
    monkeypatch.setattr("minibd.filters.cube.clusters_of",
                        lambda points, min_samples, min_cluster_size: found[:len(points)])
    ours, released = (cube(model(), some, None, Cube(variant=variant)) for variant in ("paper", "released"))
    assert {c for _, c in ours.clusters} <= {0, 1} and -1 in {c for _, c in released.clusters}


def test_noise_joins_its_nearest_cluster():
    points = torch.tensor([[0.0], [1.0], [10.0], [11.0], [2.0], [8.0]], dtype=torch.float64)
    assert without_noise(points, [0, 0, 1, 1, -1, -1]) == [0, 0, 1, 1, 0, 1]
    assert without_noise(points, [-1] * 6) == [0] * 6
    assert nearest(points, torch.tensor([[9.4], [0.4]], dtype=torch.float64)) == [2, 0]


# ---- the filter

def test_the_cluster_of_the_poisoned_rows_is_dropped():
    some, poisoned = rows()
    done = cube(model(), some, None, Cube(smallest=0.05, dims=3))
    dropped = {i for i, kept in enumerate(done.screen.keep) if not kept}
    assert poisoned <= dropped and len(dropped - poisoned) <= 6 and done.screen.scores is None
    assert sum(done.clusters.values()) == 120 and all(pair[0] in (0, 1) for pair in done.dropped)


def test_clean_rows_hold_it_to_the_stated_rate():
    some, poisoned = rows()
    clean, _ = rows(80, 0, seed=1)
    done = cube(model(), some, clean, Cube(smallest=0.05, dims=3, frr=0.05))
    dropped = {i for i, kept in enumerate(done.screen.keep) if not kept}
    assert poisoned <= dropped and len(dropped - poisoned) <= 0.1 * 120
    held, _ = rows(80, 10, seed=2)  # where clean rows stand there, too, the cluster stays
    assert not poisoned & {i for i, kept in enumerate(cube(model(), some, held, Cube(smallest=0.05, dims=3)
                                                           ).screen.keep) if not kept}


def test_the_batches_of_the_features_do_not_matter():
    some, _ = rows(20, 3)
    one, other = (features(model(), some, n) for n in (1, 7))
    assert torch.equal(one, other) and one.shape == (20, 3)


def test_what_cannot_be_is_refused():
    fails(lambda: cube(model(), examples("good")), "1", "ten")
    for wrong in ({"frr": 1.0}, {"dims": 0}, {"min_samples": 0}, {"smallest": 0.0}, {"smallest": 0.6},
                  {"variant": "other"}):
        fails(lambda wrong=wrong: Cube(**wrong), next(iter(wrong)))


# ---- the defects of the released code

def test_released_noise_is_a_cluster_and_may_be_the_one_that_is_kept():
    """Of a label more rows are noise than are in its cluster: the noise is kept, and the cluster dropped."""
    labels, found = [0] * 10, [-1] * 6 + [0] * 4
    points = torch.tensor([[float(i)] for i in range(10)], dtype=torch.float64)
    assert suspicious(labels, found) == [(0, 0)]
    assert suspicious(labels, without_noise(points, found)) == []


def test_alone_noise_is_a_cluster(monkeypatch):
    some, _ = rows()
    found = [(0, 0, 1, -1, -1, -1)[i % 6] for i in range(len(some))]
    monkeypatch.setattr("minibd.filters.cube.clusters_of",
                        lambda points, min_samples, min_cluster_size: found[:len(points)])
    ours, alone = (cube(model(), some, None, Cube(defects=names)) for names in ((), ("noise",)))
    assert -1 in {c for _, c in alone.clusters} and -1 not in {c for _, c in ours.clusters}
    clean, _ = rows(40, 0, seed=1)
    assert cube(model(), some, clean, Cube(defects=("noise",))).clusters == alone.clusters


def test_alone_100_rows_are_asked_for(monkeypatch):
    asked = []

    def kept(points, min_samples, min_cluster_size):
        asked.append((min_samples, min_cluster_size))
        return [-1] * len(points)

    monkeypatch.setattr("minibd.filters.cube.clusters_of", kept)
    done = cube(model(), rows()[0], None, Cube(smallest=0.05, defects=("hundred",)))
    cube(model(), rows()[0], None, Cube(smallest=0.05))
    assert asked == [(100, 5)] * 2 + [(5, 6)] * 2 and done.screen.keep == [True] * 120  # noise joins one cluster


def test_alone_the_look_ups_change_nothing_but_the_time():
    some, _ = rows()
    ours, alone = (cube(model(), some, None, Cube(smallest=0.05, dims=3, defects=names)) for names in (
        (), ("lookups",)))
    assert ours == alone and not all(ours.screen.keep)
    fails(lambda: Cube(defects=("noisy",)), "noisy", "noise")
    fails(lambda: Cube(variant="released", defects=("noise",)), "noise", "released")


def test_released_takes_100_rows_for_a_cluster_however_few_there_are():
    some, poisoned = rows()
    done = cube(model(), some, None, Cube(variant="released"))
    assert not poisoned & {i for i, kept in enumerate(done.screen.keep) if not kept}
    assert {cluster for _, cluster in done.clusters} == {-1}


def test_look_ups_take_a_time_that_grows_with_the_rows_alone():
    """The released code asks for each row whether a list of row numbers holds it."""
    rng = random.Random(0)
    n = 6000
    labels, found = [rng.randrange(2) for _ in range(n)], [rng.choice((0, 0, 0, 1)) for _ in range(n)]

    def usual() -> list[bool]:
        return kept_by_lists(labels, found, suspicious(labels, found))

    def ours() -> list[bool]:
        gone = set(suspicious(labels, found))
        return [pair not in gone for pair in zip(labels, found)]

    times = []
    for way in (usual, ours):
        started = time.perf_counter()
        kept = way()
        times.append((time.perf_counter() - started, kept))
    assert times[0][1] == times[1][1] and times[0][0] > 5 * times[1][0]
