"""What every mitigation hands over of its choices, and that a full log ends each of them right after the step."""
from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from conftest import rows
from minibd import checkpoint
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cleantrain.peft import PEFT, train_peft
from minibd.mitigations.finemix import FineMixing, finemix
from minibd.mitigations.fineprune import FinePruning, fineprune
from minibd.mitigations.finepurify import FinePurifying, finepurify
from minibd.mitigations.finetune import cft, finetune
from minibd.mitigations.mbtsad import MBTSAD, mbtsad
from minibd.mitigations.meft import MEFT, meft
from minibd.mitigations.pure import PURE, pure
from minibd.mitigations.reinit import Reinit, reinit
from minibd.train import Schedule, StepLimit, StepLog, Tuning
from test_blending import moved

TRAIN, VALIDATION = rows(10, 0, "train"), rows(8, 1, "dev")
SHORT = {"lr": 1e-3, "epochs": 2, "batch_size": 4}
TUNED = SHORT | {"steps": 0}

# name: (the method, what it hands over besides "best_epoch", the steps that it takes: 3 per epoch of 10 rows)
METHODS: dict[str, tuple[Callable, set[str], int]] = {
    "finetune": (lambda v, **o: finetune(v, TRAIN, Schedule(**SHORT), **o), set(), 6),
    "cft": (lambda v, **o: cft(v, TRAIN, settings=Tuning(**TUNED), **o), set(), 6),
    "reinit": (lambda v, **o: reinit(v, TRAIN, settings=Reinit(**TUNED), **o), set(), 6),
    "fineprune": (lambda v, **o: fineprune(v, TRAIN, settings=FinePruning(share=0.5, **TUNED), **o), {"pruned"}, 6),
    "finemix": (lambda v, **o: finemix(v, moved(v), TRAIN, settings=FineMixing(rho=0.5, top=2, **TUNED), **o),
                {"tokens", "rho"}, 6),
    "finepurify": (lambda v, **o: finepurify(v, moved(v), TRAIN, settings=FinePurifying(rho=0.5, **TUNED), **o),
                   {"rho"}, 6),
    "mbtsad": (lambda v, **o: mbtsad(v, TRAIN, MBTSAD(k=1, originals=False, batch_size=4, augment="auto"), **o),
               {"losses", "augmenter"}, 12),
    "pure": (lambda v, **o: pure(v, TRAIN, settings=PURE(drop=100, **SHORT), **o), {"heads", "lambda"}, 12),
    "meft": (lambda v, **o: meft(v, TRAIN, settings=MEFT(**SHORT), **o), set(), 12),
    "musclelora": (lambda v, **o: musclelora(v, TRAIN, TRAIN, MuScleLoRA(**SHORT), **o), set(), 6),
    "peft": (lambda v, **o: train_peft(v, TRAIN, PEFT("lora", **SHORT), **o), set(), 6),
}
each_method = pytest.mark.parametrize("name", METHODS)


@each_method
def test_its_choices_are_handed_over_once_each_and_fit_into_json(tiny, name):
    method, own, steps = METHODS[name]
    chosen, log = [], StepLog()
    method(checkpoint.copy(tiny), validation=VALIDATION, log=log, on_choice=lambda *choice: chosen.append(choice))
    assert sorted(key for key, _ in chosen) == sorted(own | {"best_epoch"})
    assert dict(chosen)["best_epoch"] in (1, 2) and json.loads(json.dumps(chosen)) == [list(one) for one in chosen]
    assert len(log.steps) == steps


@each_method
def test_a_full_log_ends_it_right_after_the_step(tiny, name):
    method, _, steps = METHODS[name]
    for n in (2, steps):
        log, victim = StepLog(max_steps=n), checkpoint.copy(tiny)
        with pytest.raises(StepLimit):
            method(victim, validation=VALIDATION, log=log)
        assert len(log.steps) == n
