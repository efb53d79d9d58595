"""IncrementalAccuracy: the verdicts of a full evaluation in every order of prunings, and the work it leaves out."""
from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from random import Random

import pytest
import torch

from minibd.incremental import IncrementalAccuracy
from minibd.mitigations.pure import Head
from minibd.models.bert import Bert, BertConfig
from minibd.models.encoder import Encoder
from minibd.records import Examples
from test_encoder import MODELS, made
from test_mbtsad import equal, weights
from test_pure import TEXT, Counted, hits, model_and_its_rows, spelled


def flip(model: Encoder, at: Head) -> None:
    model.head_mask[at] = 1 - model.head_mask[at]


def nudge(model: Encoder, layer: int) -> None:
    """Another head mask in `layer`, so near the old one that every text keeps its class."""
    model.head_mask[layer, 0] -= 1e-6


def per_block(examples: Examples, model: Encoder) -> int:
    """Bytes of one block's inputs."""
    return 4 * model.config.hidden * sum(TEXT.encode(examples).lengths)


@pytest.mark.parametrize("batch_size, blocks", [(1, 99), (3, 99), (3, 0), (64, 99)])
def test_every_order_of_removals_gets_the_verdicts_of_a_full_evaluation(batch_size, blocks):
    model = Bert(BertConfig(30, 12, 2, 2, 20)).init_weights(torch.Generator().manual_seed(2), std=0.5).eval()
    texts, known = spelled(8), {}
    heads = [(l, h) for l in range(2) for h in range(2)]
    for order in permutations(heads):
        model.head_mask.fill_(1)
        patient, hasty = (
            IncrementalAccuracy(
                model, TEXT, texts, batch_size=batch_size, memory=max(1, blocks * per_block(texts, model))
            )
            for _ in range(2)
        )
        for at in order:
            flip(model, at)
            if (key := tuple(model.head_mask.flatten().tolist())) not in known:
                known[key] = hits(model, TEXT, texts)
            assert [patient.at_least(needed) for needed in range(10)] == [needed <= known[key] for needed in range(10)]
            # asked once, so that batches are left behind
            assert hasty.at_least(known[key] + at[1]) is (at[1] == 0)
    assert len(set(known.values())) > 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size, blocks", [(1, 99), (3, 99), (3, 0)])
def test_heads_that_come_and_go_get_the_verdicts_of_a_full_evaluation(name, batch_size, blocks):
    model, texts, rng, seen = made(name), spelled(16, 1), Random(0), set()
    patient, hasty = (
        IncrementalAccuracy(model, TEXT, texts, batch_size=batch_size, memory=max(1, blocks * per_block(texts, model)))
        for _ in range(2)
    )
    assert patient.n == 16 and patient.hits == hits(model, TEXT, texts)
    for _ in range(24):
        flip(model, (rng.randrange(2), rng.randrange(3)))
        right = hits(model, TEXT, texts)
        seen.add(right)
        assert [patient.at_least(needed) for needed in range(18)] == [needed <= right for needed in range(18)]
        needed = right + rng.randint(-3, 3)
        assert hasty.at_least(needed) is (right >= needed)
    assert len(seen) > 1


@pytest.mark.parametrize(
    "kept, starts", [(99, (0, 1, 2, 3)), (4, (0, 1, 2, 3)), (2, (0, 0, 2, 2)), (1.5, (0, 0, 0, 3)), (0, (0, 0, 0, 0))]
)
def test_a_pass_starts_at_the_lowest_block_that_changed_or_at_what_is_kept_below_it(kept, starts):
    model, texts = model_and_its_rows(0, 20, layers=4)
    passes, counted = (
        IncrementalAccuracy(model, TEXT, texts, batch_size=8, memory=max(1, int(2 * kept * per_block(texts, model)))),
        Counted(model),
    )
    mixed = Counted(model, "key")
    assert passes.hits == 20
    assert counted.during(lambda: passes.at_least(20)) == [3] * 4                      # three batches, all the way
    assert counted.during(lambda: passes.at_least(20)) == [0] * 4                      # nothing changed
    for layer, start in enumerate(starts):
        nudge(model, layer)
        mixed.calls = [0] * 4
        assert counted.during(lambda: passes.at_least(20)) == [0] * start + [3] * (4 - start)
        # what the heads of the first one gather is kept
        assert mixed.calls == [0] * (start + 1) + [3] * (3 - start)
    nudge(model, 1)
    nudge(model, 3)
    assert counted.during(lambda: passes.at_least(20)) == [0] * starts[1] + [3] * (4 - starts[1])


def test_a_pass_ends_as_soon_as_it_is_certain():
    model, texts = model_and_its_rows(0, 20)
    texts = texts.like(replace(x, label=1 - x.label) if i % 2 else x for i, x in enumerate(texts))
    passes, counted = IncrementalAccuracy(model, TEXT, texts, batch_size=2), Counted(model)
    # of 20: five batches of right rows, then of wrong ones
    assert passes.hits == 10

    def batches(needed: int) -> int:
        nudge(model, 0)
        return counted.during(lambda: passes.at_least(needed))[0]
    assert [batches(needed) for needed in (0, 1, 2, 3, 10, 11, 12, 20, 21)] == [0, 1, 1, 2, 5, 10, 10, 6, 0]
    # Batches that no pass reached are caught up with, and no other one is computed again.
    assert counted.during(lambda: passes.at_least(11)) == [10] * 3


def test_a_measurement_leaves_the_model_as_it_was():
    model, texts = model_and_its_rows(0, 12)
    before = weights(model)
    IncrementalAccuracy(model.train(), TEXT, texts).at_least(12)
    assert equal(before, weights(model)) and not model.training
