"""What shakes the model: its vectors against its own hidden states, the distance by hand and by plain loops, the map by
its clusters."""

from __future__ import annotations

import math
import sys

import numpy
import pytest
import torch

from conftest import fails, rows
from minibd.analysis.perturbation import cloud_distance, cls_vectors, perturbations, tsne
from minibd.checkpoint import Checkpoint
from minibd.mitigations.mbtsad import AUGMENTERS, MBTSAD, AugmentResources, augmented, mean_loss
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.records import Example

TEXTS = rows(9, 7, "train")


def blob(n: int, at: float, seed: int, d: int = 3) -> torch.Tensor:
    return at + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


# ---- the vectors

@pytest.mark.parametrize("batch_size", [1, 4, 128])
def test_a_vector_is_the_last_hidden_state_of_cls(tiny, batch_size):
    found = cls_vectors(tiny, TEXTS, batch_size)
    assert found.shape == (9, 32) and found.dtype == torch.float32 and not found.requires_grad
    for x, vector in zip(TEXTS, found):
        torch.testing.assert_close(
            vector, tiny.model(tiny.tokenizer([x]), want=("hidden",)).hidden[-1][0, 0].detach(), rtol=0, atol=1e-5
        )
    pair = [Example("p", TEXTS[0].text, 0, TEXTS[1].text)]
    assert (cls_vectors(tiny, pair) - found[0]).abs().max() > 1e-3


def test_of_a_causal_model_the_last_token_is_read(tiny):
    config = Gpt2Config(vocab=tiny.model.config.vocab, hidden=8, layers=1, heads=2, ffn=16, positions=48, labels=2)
    ckpt = Checkpoint(
        Gpt2(config).init_weights(torch.Generator().manual_seed(0), std=0.3).eval(), tiny.tokenizer, tiny.labels, []
    )
    for x, vector in zip(TEXTS, cls_vectors(ckpt, TEXTS)):
        torch.testing.assert_close(
            vector, ckpt.model(tiny.tokenizer([x]), want=("hidden",)).hidden[-1][0, -1].detach(), rtol=0, atol=1e-5
        )


# ---- the distance

def test_the_distance_by_hand():
    point = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0]])
    # E|x - y| = 1, E|x - x'| = (0 + 2 + 2 + 0) / 4 = 1, E|y - y'| = 0
    assert cloud_distance(*point) == pytest.approx(1 - 1 / 2) and cloud_distance(*point[::-1]) == pytest.approx(
        1 - 1 / 2
    )
    assert cloud_distance(torch.zeros(3, 2), torch.ones(2, 2)) == 1.0
    assert cloud_distance(torch.zeros(3, 2), torch.zeros(2, 2)) == 0.0
    # (0, 0) and (3, 4) are 5 apart: E|x - y| = 5/2, E|y - y'| = 5/2
    assert cloud_distance(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(1 - 2.5 / 5)


def test_the_distance_against_plain_loops():
    x, y = blob(7, 0.0, 1), blob(5, 0.7, 2)

    def apart(a, b):
        return sum(math.dist(p, q) for p in a.tolist() for q in b.tolist()) / (len(a) * len(b))
    wanted = 1 - (apart(x, x) + apart(y, y)) / (2 * apart(x, y))
    assert cloud_distance(x, y) == pytest.approx(wanted, abs=1e-7) and 0.05 < wanted < 0.5
    many = torch.cat([x] * 200), torch.cat([y] * 300)  # more vectors than are held against the others at once
    assert cloud_distance(*many) == pytest.approx(wanted, abs=1e-7)


def test_what_the_distance_does_not_see():
    x, y = blob(30, 0.0, 1), blob(30, 0.5, 2)
    d = cloud_distance(x, y)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(3)))[0]
    for a, b in ((y, x), (x.flip(0), y), (10 * x, 10 * y), (x + 3, y + 3), (x @ turn, y @ turn)):
        assert cloud_distance(a, b) == pytest.approx(d, abs=1e-5)
    assert cloud_distance(x, x) == 0 and cloud_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    assert 0 < d < cloud_distance(x, y + 1) < cloud_distance(x, y + 10) < 1


# ---- all of it

def test_the_sets_are_the_clean_rows_and_one_copy_by_each_augmenter(tiny):
    before = {name: value.clone() for name, value in tiny.model.state_dict().items()}
    found = perturbations(tiny, TEXTS, MBTSAD(budget="equal", k=7), 5, AugmentResources())
    assert list(found) == ["clean", *(name for name in AUGMENTERS if name != "contextual")]
    assert found["clean"].distance == pytest.approx(0, abs=1e-9) and found["clean"].loss == mean_loss(
        tiny.model, tiny.tokenizer, TEXTS
    )
    for name in list(found)[1:]:
        made = augmented(TEXTS, MBTSAD(augment=name, budget="equal", k=1, originals=False), 5)
        assert len(made) == 9 and found[name].loss == mean_loss(tiny.model, tiny.tokenizer, made)
        assert torch.equal(found[name].cls, cls_vectors(tiny, made))
        assert found[name].distance == cloud_distance(found["clean"].cls, found[name].cls) > 0
    stock = perturbations(tiny, TEXTS, MBTSAD(), 5, AugmentResources())
    assert stock["split"].loss == found["split"].loss and stock["aeda"].loss != found["aeda"].loss
    assert perturbations(tiny, TEXTS, MBTSAD(), 6, AugmentResources())["split"].loss != stock["split"].loss
    assert all(torch.equal(value, tiny.model.state_dict()[name]) for name, value in before.items())


# ---- the map

def test_one_map_for_all_clouds():
    pytest.importorskip("sklearn")
    clouds, state = [blob(40, 0.0, 1), blob(20, 20.0, 2), blob(30, 0.0, 3)], numpy.random.get_state()[1].copy()
    first, far, same = placed = tsne(clouds, seed=0)
    assert [tuple(packed.shape) for packed in placed] == [(40, 2), (20, 2), (30, 2)] and all(
        p.isfinite().all() for p in placed
    )
    # Of each place the nearest other one: the far cloud keeps to itself, the two that lie in each other do not.
    near = torch.cdist(torch.cat(placed), torch.cat(placed)).fill_diagonal_(math.inf).argmin(1)
    assert ((near[40:60] >= 40) & (near[40:60] < 60)).all() and (near[60:] < 40).sum() > 8
    assert all(torch.equal(a, b) for a, b in zip(placed, tsne(clouds, seed=0)))
    assert (numpy.random.get_state()[1] == state).all(), "the global random state moved"


def test_what_scikit_learn_is_asked_for(monkeypatch):
    manifold, asked = pytest.importorskip("sklearn.manifold"), []

    class Fake:
        def __init__(self, **settings):
            asked.append(settings)

        def fit_transform(self, vectors):
            return vectors[:, :2]
    monkeypatch.setattr(manifold, "TSNE", Fake)
    clouds = [blob(60, 0.0, 1), blob(31, 1.0, 2)]
    assert all(torch.equal(packed, cloud[:, :2]) for packed, cloud in zip(tsne(clouds, seed=7), clouds, strict=True))
    tsne([blob(10, 0.0, 1)], seed=8)
    assert asked == [{"perplexity": 30.0, "random_state": 7}, {"perplexity": 3.0, "random_state": 8}]


def test_a_map_of_few_vectors_and_without_scikit_learn(monkeypatch):
    pytest.importorskip("sklearn")
    assert [len(packed) for packed in tsne([blob(3, 0.0, 1), blob(2, 1.0, 2)], seed=1)] == [3, 2]
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    fails(lambda: tsne([blob(3, 0.0, 1)], seed=0), "scikit-learn", "[plots]")
