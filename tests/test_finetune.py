"""Fine-tuning: cross-entropy and nothing else; the last epoch or the best on validation; the head that is there or a
new one."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.mitigations.finetune import finetune
from minibd.predict import accuracy
from minibd.records import Examples
from minibd.train import Schedule, cross_entropy, fit

SCHEDULE = Schedule(1e-3, epochs=3, batch_size=8)
CLEAN, VALIDATION = rows(21, 0, "train"), rows(12, 1, "dev")
MORE = rows(40, 0, "train")                                     # enough to learn from
FLIPPED = VALIDATION.like(replace(x, label=1 - x.label) for x in VALIDATION)


def weights(ckpt: Checkpoint) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in ckpt.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_hand(start: Checkpoint, schedule: Schedule = SCHEDULE, rows=CLEAN, seed: int = 0, **more) -> Checkpoint:
    tuned = checkpoint.copy(start)
    fit(tuned.model, tuned.tokenizer, tuned.tokenizer.encode(rows), cross_entropy, schedule, seed=seed, **more)
    return tuned


def test_it_is_fit_with_cross_entropy_and_the_victim_stays(tiny):
    before = weights(tiny)
    log = []
    tuned = finetune(tiny, CLEAN, SCHEDULE, seed=4, log=log.append)
    assert equal(weights(tuned), weights(by_hand(tiny, seed=4))) and not equal(weights(tuned), before)
    assert (
        equal(weights(tiny), before) and tiny.history == [] and tuned.labels == tiny.labels and not tuned.model.training
    )
    assert [entry["stage"] for entry in log] == ["CFT"] * 9 and all(set(entry["terms"]) == {"cls"} for entry in log)


def test_its_name_stands_in_the_log(tiny):
    log = []
    finetune(tiny, CLEAN, replace(SCHEDULE, epochs=1), log=log.append, name="FTH")
    assert [entry["stage"] for entry in log] == ["FTH"] * 3


def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny):
    state = torch.get_rng_state()
    one, again, other = (
        weights(finetune(tiny, CLEAN, SCHEDULE, validation=VALIDATION, keep_head=False, seed=seed))
        for seed in (1, 1, 2)
    )
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_validation_chooses_the_epoch(tiny):
    """On rows whose labels are the other way round a model is the worse the more it has learnt: an early epoch is the
    best."""
    schedule = Schedule(5e-3, epochs=6, batch_size=8)
    for validation in (VALIDATION, FLIPPED):
        scores = []
        by_hand(
            tiny, schedule, MORE, score=lambda model: scores.append(accuracy(model, tiny.tokenizer, validation)) or 0.0
        )
        tuned = finetune(tiny, MORE, schedule, validation=validation)
        assert accuracy(tuned.model, tuned.tokenizer, validation) == max(scores)
    assert scores[-1] < max(scores)


def test_validation_changes_nothing_else(tiny):
    once = replace(SCHEDULE, epochs=1)                       # the only epoch is the best
    assert equal(weights(finetune(tiny, CLEAN, once)), weights(finetune(tiny, CLEAN, once, validation=VALIDATION)))
    logs = [], []
    finetune(tiny, CLEAN, SCHEDULE, log=logs[0].append)
    finetune(tiny, CLEAN, SCHEDULE, validation=FLIPPED, log=logs[1].append)
    assert logs[0] == logs[1]


def test_the_head_is_kept_unless_a_new_one_is_asked_for(tiny):
    still = Schedule(1e-20, epochs=1)
    renewed = checkpoint.with_head(checkpoint.headless(tiny), CLEAN.labels, 6)
    for keep_head, start in ((True, tiny), (False, renewed)):
        tuned = finetune(tiny, CLEAN, still, keep_head=keep_head, seed=5)
        assert all(
            torch.allclose(tensor, tuned.model.state_dict()[name], atol=1e-12)
            for name, tensor in start.model.state_dict().items()
        )
    assert not torch.equal(renewed.model.classifier.weight, tiny.model.classifier.weight)
    assert equal(weights(finetune(tiny, CLEAN, SCHEDULE, keep_head=False, seed=5)), weights(by_hand(renewed, seed=5)))


def test_an_encoder_gets_a_head_for_the_classes_of_the_rows(tiny):
    encoder = checkpoint.headless(tiny)
    tuned = finetune(encoder, Examples(CLEAN, ("a", "b", "c")), SCHEDULE, keep_head=False)
    assert tuned.labels == ("a", "b", "c") and len(tuned.model.classifier.bias) == 3 and encoder.labels == ()
    fails(lambda: finetune(encoder, CLEAN, SCHEDULE), "keep_head", "no classifier")


def test_it_is_pures_own_row_ft(tiny):
    """What scripts/pure.py prints as FT and what baseline.py ft gives are one model."""
    from minibd.mitigations.pure import PURE, pure
    seen, settings = {}, PURE(lr=1e-3, epochs=2, batch_size=8, norm_only=True)
    pure(
        tiny, CLEAN, VALIDATION, settings, seed=2, on_stage=lambda name, ckpt,
        seconds: seen.setdefault(name, weights(ckpt)),
    )
    assert equal(
        seen["FT"], weights(finetune(tiny, CLEAN, settings.schedule, validation=VALIDATION, keep_head=False, seed=2))
    )


@pytest.mark.parametrize("more, told", [
    ({}, {"validation_rows": 0, "keep_head": True}),
    ({"validation": VALIDATION, "keep_head": False}, {"validation_rows": 12, "keep_head": False}),
])
def test_the_history_names_the_mitigation(tiny, more, told):
    (last,) = finetune(tiny, CLEAN, SCHEDULE, seed=1, **more).history
    assert last == {"mitigation": "fine-tuning", "clean_rows": 21, "seed": 1, **told, **asdict(SCHEDULE)}


def test_no_validation_rows_are_refused(tiny):
    fails(lambda: finetune(tiny, CLEAN, SCHEDULE, validation=CLEAN.like([])), "no validation rows", "dev")


def test_in_bfloat16_the_weights_stay_float32(tiny):
    log = []
    tuned = finetune(tiny, CLEAN, SCHEDULE, dtype=torch.bfloat16, log=log.append)
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters()) and not equal(
        weights(tuned), weights(by_hand(tiny))
    )
    assert all(math.isfinite(entry["total"]) for entry in log)
