"""What is killed and gone on with ends as what was not: weights, steps, choices, bit for bit."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from minibd.resume import Count, Kept
from minibd.train import Schedule, StepLog, cross_entropy, fit
from test_train import ROWS, TEXT, bert

OF = {"method": "a test"}


class Killed(Exception):
    pass


def killed_after(call: Callable, n: int) -> Callable:
    """`call`, which is killed at its call number n, from 0."""
    counted = Count()

    def killing(*args, **more):
        if counted() == n:
            raise Killed
        return call(*args, **more)
    return killing


def trained(log: StepLog | None, loss=cross_entropy, *, scores: list[float] | None = None, lr: float = 1e-2,
            epochs: int = 3, **more) -> dict:
    """A tiny training with dropout, of 3 steps an epoch: its weights, steps and choices."""
    model, chosen, given = bert(), [], Count()

    def score(model) -> float:
        assert not model.training
        return scores[given()]

    fit(model, TEXT, TEXT.encode(ROWS), loss, Schedule(lr, epochs, 4), seed=0, log=log,
        score=None if scores is None else score, on_choice=lambda *choice: chosen.append(choice), parts=[given], **more)
    assert not model.training
    return {"weights": model.state_dict(), "steps": log.steps, "chosen": chosen}


def same(one: dict, other: dict) -> bool:
    return one["steps"] == other["steps"] and one["chosen"] == other["chosen"] and all(
        torch.equal(a, b) for a, b in zip(one["weights"].values(), other["weights"].values(), strict=True))


def gone_on_with(run: Callable[[StepLog, Callable], object], n: int, folder: Path, every: int = 1) -> object:
    """What `run(log, loss)` gives, killed at the call number n of its loss and then gone on with."""
    with pytest.raises(Killed):
        run(StepLog(kept=Kept(folder, OF, every)), killed_after(cross_entropy, n))
    return run(StepLog(kept=Kept(folder, OF, every, going_on=folder.is_dir())), cross_entropy)


# ---- fit

@pytest.mark.parametrize("scores", [None, [0.5, 0.9, 0.7], [0.9, 0.9, 0.1], [0.1, 0.2, 0.3]])
def test_a_training_stopped_at_any_step_ends_as_it_would_have(tmp_path, scores):
    whole = trained(StepLog(), scores=scores)
    for n in range(9):
        went_on = gone_on_with(lambda log, loss: trained(log, loss, scores=scores), n, tmp_path / str(n))
        assert same(whole, went_on), n


@pytest.mark.parametrize("every", [2, 4, 100])
def test_it_goes_on_from_an_earlier_step_too(tmp_path, every):
    whole = trained(StepLog(), scores=[0.5, 0.9, 0.7])
    for n in range(9):
        assert same(whole, gone_on_with(lambda log, loss: trained(log, loss, scores=[0.5, 0.9, 0.7]), n,
                                        tmp_path / str(n), every))


def test_what_is_kept_is_not_trained_again(tmp_path):
    taken = []

    def loss(model, batch):
        taken.append(1)
        return cross_entropy(model, batch)

    with pytest.raises(Killed):
        trained(StepLog(kept=Kept(tmp_path / "k", OF, 1)), killed_after(cross_entropy, 7))
    went_on = trained(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True)), loss)
    assert len(taken) == 2 and len(went_on["steps"]) == 9
    again = trained(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True)), loss)  # it had ended
    assert len(taken) == 2 and same(went_on, again)
