"""What is killed and gone on with ends as what was not: weights, steps, choices, bit for bit."""
from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from conftest import fails, rows
from minibd import atomic, resume
from minibd.mitigations.pure import PURE, head_pruning
from minibd.resume import Count, Kept, differences, folder_of, is_kept, once
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
    for n in range(9) if scores is None else (2, 4, 6, 8):
        went_on = gone_on_with(lambda log, loss: trained(log, loss, scores=scores), n, tmp_path / str(n))
        assert same(whole, went_on), n


@pytest.mark.parametrize("every", [2, 4, 100])
def test_it_goes_on_from_an_earlier_step_too(tmp_path, every):
    whole = trained(StepLog(), scores=[0.5, 0.9, 0.7])
    for n in (1, 4, 7, 8):
        assert same(whole, gone_on_with(lambda log, loss: trained(log, loss, scores=[0.5, 0.9, 0.7]), n,
                                        tmp_path / str(n), every))


@pytest.mark.parametrize("scores", [None, [0.1, 0.9, 0.5]])
def test_what_is_kept_is_not_trained_again(tmp_path, scores):
    taken = []

    def loss(model, batch):
        taken.append(1)
        return cross_entropy(model, batch)

    with pytest.raises(Killed):
        trained(StepLog(kept=Kept(tmp_path / "k", OF, 1)), killed_after(cross_entropy, 7), scores=scores)
    went_on = trained(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True)), loss, scores=scores)
    assert len(taken) == 2 and len(went_on["steps"]) == 9
    again = trained(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True)), loss, scores=scores)  # it had ended
    assert len(taken) == 2 and same(went_on, again)


@pytest.mark.parametrize("first, epoch", [(3, 1), (4, 2)])
def test_a_training_that_diverges_ends_where_it_would_have(tmp_path, capsys, first, epoch):
    """From its step `first` on the loss is a hundredfold: the weights of the last epoch that was not all of such steps
    come back, whenever it is stopped."""
    def diverging(log, loss):
        def too_large(model, batch):
            return {"cls": loss(model, batch)["cls"] * (100.0 if len(log.steps) >= first else 1.0)}
        return trained(log, too_large)

    whole = diverging(StepLog(), cross_entropy)
    assert whole["chosen"] == [("diverged", epoch)] and len(whole["steps"]) == 3 * epoch + 2
    for n in range(1, 3 * epoch + 3, 2):
        assert same(whole, gone_on_with(diverging, n, tmp_path / str(n))), n
    assert f"the weights of epoch {epoch} are kept" in capsys.readouterr().err


def test_a_training_of_so_many_steps(tmp_path):
    whole = trained(StepLog(), scores=[0.5, 0.9, 0.7], max_steps=7)
    assert whole["chosen"] == [] and len(whole["steps"]) == 7
    for n in (2, 5, 6):
        went_on = gone_on_with(lambda log, loss: trained(log, loss, scores=[0.5, 0.9, 0.7], max_steps=7), n,
                               tmp_path / str(n))
        assert same(whole, went_on)
    again = trained(StepLog(kept=Kept(tmp_path / "6", OF, 1, going_on=True)), killed_after(cross_entropy, 0),
                    scores=[], max_steps=7)
    assert same(whole, again)


# ---- a run of several

def test_a_later_training_waits_for_an_earlier_one_that_was_not_kept(tmp_path):
    """At the default a short training is not kept: it is trained again, and the steps that it logs are counted once."""
    def both(log, loss):
        return trained(log, cross_entropy), trained(log, loss)

    whole = both(StepLog(), cross_entropy)[1]
    kept = Kept(tmp_path / "k", OF, 1)
    with pytest.raises(Killed):
        both(StepLog(kept=kept), killed_after(cross_entropy, 5))
    for file in (tmp_path / "k").glob("0000*"):
        file.unlink()
    again = both(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True)), cross_entropy)[1]
    assert same(whole, again) and len(again["steps"]) == 18
    lines = (tmp_path / "k" / "steps.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == whole["steps"]


def test_what_was_measured_is_not_measured_again(tmp_path):
    log = StepLog(kept=Kept(tmp_path / "k", OF, 1))
    assert once(log, "heads", lambda: ((0, 1), (1, 2))) == [[0, 1], [1, 2]]
    log = StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True))
    assert once(log, "heads", lambda: 1 / 0) == [[0, 1], [1, 2]] and once(log, "more", lambda: 3) == 3
    log = StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True))
    fails(lambda: once(log, "tails", lambda: 0), "part 0", "'heads'", "'tails'", "--overwrite")
    assert once(StepLog(), "x", lambda: (1, 2)) == (1, 2) and once(None, "x", lambda: 1) == 1


def test_a_step_that_was_not_kept_whole_is_cut_off(tmp_path):
    whole = trained(StepLog())
    with pytest.raises(Killed):
        trained(StepLog(kept=Kept(tmp_path / "k", OF, 1)), killed_after(cross_entropy, 4))
    with open(tmp_path / "k" / "steps.jsonl", "a", encoding="utf-8") as file:
        file.write('{"stage": "fi')
    assert same(whole, trained(StepLog(kept=Kept(tmp_path / "k", OF, 1, going_on=True))))
    assert (tmp_path / "k" / "steps.jsonl").read_text() == "".join(json.dumps(step) + "\n" for step in whole["steps"])


def test_heads_that_were_found_are_pruned(tmp_path, tiny):
    """What is measured behind them is of the pruned model, where its own scores were not kept."""
    kept, seen = Kept(tmp_path / "k", OF, 0), {}
    kept.entries = {1: {"name": "heads", "value": [[0, 1], [1, 3]], "seconds": 2.0}}
    step1 = head_pruning(tiny, rows(16, 0, "train"), rows(8, 1, "dev"), PURE(epochs=1, batch_size=8),
                         log=StepLog(kept=kept), on_stage=lambda name, ckpt, seconds: seen.update({name: ckpt.model}))
    assert step1.heads == ((0, 1), (1, 3))
    assert seen["pruned"].head_mask.tolist() == [[1, 0, 1, 1], [1, 1, 1, 0]] and seen["FT"].head_mask.all()


# ---- when something is kept

def test_by_default_it_takes_a_hundredth_of_the_time(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])
    kept = Kept(tmp_path / "k", OF)
    write = resume._write_json

    def slow(path, value):
        write(path, value)
        if path.name != "run.json":
            written.append(now[0])
            now[0] += 0.5                       # what keeping takes here

    monkeypatch.setattr(resume, "_write_json", slow)

    def loss(model, batch):
        now[0] += 4.0
        return cross_entropy(model, batch)

    trained(StepLog(kept=kept), loss, epochs=80)
    assert written[0] == 12.0                   # LEAST, 10 s
    gaps = [later - earlier for earlier, later in zip(written, written[1:])]
    assert len(written) > 10 and all(48 <= gap < 110 for gap in gaps[:-1])  # 100 times 0.5 s; the end is less
    assert all(0.5 * (n + 1) / at < 0.011 for n, at in enumerate(written) if n)


def test_a_large_model_is_not_kept_before_it_pays(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(resume.time, "perf_counter", lambda: now[0])
    kept = Kept(tmp_path / "k", OF)
    now[0] = 12.0
    assert kept.due(1 << 20, False) and not kept.due(int(1e8), False)  # a second of writing, by the first guess
    now[0] = 101.0
    assert kept.due(int(1e8), False)
    kept.spent = 0.5                            # what is left of a hundredth is less
    assert not kept.due(int(1e8), False) and kept.due(int(4e7), False)


# ---- whose it is

def test_where_it_lies_and_when_it_is_there(tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert folder_of(out) == tmp_path / ".out.resume" and not is_kept(out)
    assert folder_of(Path("/")) == Path("/.root.resume")
    out.mkdir()
    monkeypatch.chdir(out)                      # which cannot be exchanged: what is kept lies in it
    assert folder_of(out) == out / ".out.resume"
    Kept(folder_of(out), OF, 1).once("x", lambda: 1)
    monkeypatch.chdir(tmp_path)
    assert is_kept(out) and folder_of(out) == out / ".out.resume"


def test_the_differences_between_two_runs_in_words():
    assert differences({"--lr": 0.1, "--ckpt": {"a": "1"}}, {"--lr": 0.1, "--ckpt": {"a": "1"}}) == []
    assert differences({"--lr": None, "minibd": "1", "--data": {"a": "1"}, "--k": 3, "--labels": None},
                       {"--lr": 0.1, "minibd": "2", "--data": {"a": "2", "b": "3"}, "--labels": ("a", "b")}) == [
        "--lr was not given and is 0.1", "minibd was 1 and is 2", "--data: 2 files changed since",
        "--k was 3 and is not given", "--labels was not given and is ['a', 'b']"]
    assert differences("damaged", {"--lr": 1}) == ["--lr was not given and is 1"]


def test_an_owner_that_still_runs(tmp_path):
    assert not atomic.runs(atomic.owner()) and not atomic.runs("") and not atomic.runs("0@x y z")
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        name = f"{other.pid}@{atomic.HOST}"
        assert atomic.runs(name) and atomic.runs(f"{name} {atomic._begun(other.pid)}")
        assert not atomic.runs(f"{name} 12345"), "its number is another process's by now"
        assert not atomic.runs(f"{other.pid}@elsewhere")
    finally:
        other.communicate(b"\n")
    assert not atomic.runs(f"{other.pid}@{atomic.HOST}")


def test_of_two_runs_that_begin_at_once_one_is_kept(tmp_path, monkeypatch, capsys):
    """Nothing of the other is put among what is kept of it, nor taken away."""
    first, second = Kept(tmp_path / "k", OF, 1), Kept(tmp_path / "k", {"method": "another"}, 1)
    first.once("x", lambda: 1)
    before = {path.name: path.read_bytes() for path in (tmp_path / "k").iterdir()}
    monkeypatch.setattr(resume, "runs", lambda owner: True)  # as the second sees it
    second.once("y", lambda: 2)
    second.done()
    assert "another run into the same --out" in capsys.readouterr().err and second.broken
    assert {path.name: path.read_bytes() for path in (tmp_path / "k").iterdir()} == before


@pytest.mark.parametrize("lose", [shutil.rmtree, lambda folder: (folder / "run.json").unlink()])
def test_what_is_kept_vanishes_and_the_run_goes_on(tmp_path, capsys, lose):
    kept = Kept(tmp_path / "k", OF, 1)
    assert kept.once("x", lambda: 1) == 1
    lose(tmp_path / "k")
    assert kept.once("y", lambda: 2) == kept.once("z", lambda: 2) == 2
    assert capsys.readouterr().err.count("vanished; the run goes on, and is no longer kept") == 1
    kept.done()
    assert not is_kept(tmp_path) and not (tmp_path / "k").exists()


# ---- an optimizer with a state of its own

@pytest.mark.parametrize("n", [2, 5])
def test_an_optimizer_is_gone_on_with_by_its_state_dict(tmp_path, n):
    def run(log, loss):
        model = bert()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        step = optimizer.step
        optimizer.step = lambda: step() or torch.zeros(())
        fit(model, TEXT, TEXT.encode(ROWS), loss, Schedule(1e-2, 3, 4), seed=0, log=log, optimizer=optimizer)
        return {"weights": model.state_dict(), "steps": log.steps, "chosen": []}
    assert same(run(StepLog(), cross_entropy), gone_on_with(run, n, tmp_path / "k"))
