"""Repair: which weights have a counterpart and which model is refused; the blend; the search; the last training on few
rows."""

import math
from dataclasses import replace

import pytest
import torch

from conftest import fails, rows
from minibd import blending, checkpoint
from minibd.blending import (
    RHOS,
    WORD,
    blend,
    check_rho,
    counterparts,
    mask_smallest,
    related,
    repair_by_blending,
    smallest_accurate_rho,
    tune_on_few_rows,
)
from minibd.checkpoint import Checkpoint
from minibd.mitigations.finemix import FineMixing
from minibd.mitigations.fineprune import FinePruning
from minibd.mitigations.finepurify import UP_TO, FinePurifying
from minibd.mitigations.reinit import Reinit
from minibd.models.bert import Bert
from minibd.records import Examples
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit
from test_encoder import MODELS, made
from test_finetune import equal, weights

CLEAN, VALIDATION = rows(10, 0, "train"), rows(12, 1, "dev")
HEAD = ("pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias")
LETTERS = Tokenizer.from_vocab(
    {p: i for i, p in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"])}, 32
)


def moved(ckpt: Checkpoint, by: float = 0.002, seed: int = 5) -> Checkpoint:
    """A copy, each weight `by` N(0, 1) away: what the victim came from."""
    other, g = checkpoint.copy(ckpt), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in other.model.parameters():
            p.add_(by * torch.randn(p.shape, generator=g))
    return other


def resized(ckpt: Checkpoint, vocab: int, tokens: int) -> Checkpoint:
    """The record with `vocab` word rows, those past its own drawn, and a tokenizer of its first `tokens` tokens, and
    new ones past its own."""
    own, g = ckpt.model, torch.Generator().manual_seed(7)
    model = Bert(replace(own.config, vocab=vocab)).init_weights(g)
    state = own.state_dict()
    n = min(vocab, len(state[WORD]))
    state[WORD] = torch.cat([state[WORD][:n], model.embeddings.word.weight.detach()[n:]])
    model.load_state_dict(state)
    known = sorted(ckpt.tokenizer.backend.get_vocab(), key=ckpt.tokenizer.backend.get_vocab().get)
    known = known[:tokens] + [f"new{i}" for i in range(len(known), tokens)]
    return Checkpoint(model.eval(), Tokenizer.from_vocab({p: i for i, p in enumerate(known)}, 48), ckpt.labels, [])


# ---- counterparts

def test_every_weight_but_the_head_has_one(tiny):
    before = counterparts(tiny, pre := moved(checkpoint.headless(tiny)))
    theirs = dict(pre.model.named_parameters())
    assert before.kept == HEAD and set(before.weights) == {n for n, _ in tiny.model.named_parameters()} - set(HEAD)
    assert all(torch.equal(w, theirs[name]) and not w.requires_grad for name, w in before.weights.items())


def test_a_pooler_counts_where_the_pretrained_model_brings_its_own(tiny):
    with_own = moved(tiny)
    assert counterparts(tiny, with_own).kept == ("classifier.weight", "classifier.bias")
    assert torch.equal(counterparts(tiny, with_own).weights["pooler.bias"], with_own.model.pooler.bias)
    with_own.history.append({"new": ["classifier"]})
    assert "pooler.weight" in counterparts(tiny, with_own).weights
    with_own.history.append({"new": ["classifier", "pooler"]})
    assert counterparts(tiny, with_own).kept == HEAD
    with_own.history.append({"trained": "on the task"})                     # no longer new
    assert "pooler.weight" in counterparts(tiny, with_own).weights


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture(name):
    victim = Checkpoint(made(name), LETTERS, ("bad", "good"), [])
    before = counterparts(victim, moved(checkpoint.headless(victim)))
    assert {n.split(".")[0] for n in before.kept} <= {"pooler", "classifier"} and len(before.weights) > 10
    assert set(before.kept) | set(before.weights) == {n for n, _ in victim.model.named_parameters()}


def test_a_language_model_head_is_kept(tiny):
    config = replace(tiny.model.config, mlm=True)
    model = Bert(config).init_weights(torch.Generator().manual_seed(0))
    both = Checkpoint(model, tiny.tokenizer, tiny.labels, [])
    assert {n for n in counterparts(both, moved(both)).kept if n.startswith("mlm")} == {
        n for n, _ in model.named_parameters() if "mlm" in n
    }


def test_half_precision_becomes_the_victims(tiny):
    half = checkpoint.headless(tiny)
    half.model.half()
    before = counterparts(tiny, half)
    assert all(w.dtype == torch.float32 for w in before.weights.values()) and before.correlation > 0.999


def test_another_model_is_refused_by_name(tiny):
    def other(**more) -> Checkpoint:
        return Checkpoint(
            Bert(replace(tiny.model.config, **more)).init_weights(torch.Generator().manual_seed(0)), tiny.tokenizer,
            tiny.labels, [],
        )

    for more in (
        {"hidden": 16}, {"layers": 1}, {"heads": 2}, {"ffn": 32}, {"activation": "relu"}, {"eps": 1e-5},
        {"type_vocab_size": 1},
    ):
        (name, value), = more.items()
        line = fails(
            lambda: counterparts(tiny, other(**more)), f"{name} {value!r}", repr(getattr(tiny.model.config, name))
        )
        assert "fine-tuned from" in line
    fails(lambda: counterparts(tiny, other(positions=40)), "embeddings.position.weight", "(40, 32)", "(48, 32)")
    for more in (
        {"dropout": 0.3}, {"classifier_dropout": 0.0}, {"attention_dropout": 0.0}, {"labels": 3}, {"mlm": True},
        {"labels": 0},
    ):
        counterparts(tiny, other(**more))
    victim, strange = (Checkpoint(made(name), LETTERS, ("bad", "good"), []) for name in ("bert", "roberta"))
    fails(lambda: counterparts(victim, strange), "is a roberta", "the victim a bert")


def test_another_vocabulary_is_refused_by_its_token(tiny):
    vocab = tiny.tokenizer.backend.get_vocab()
    swapped = vocab | {"cf": vocab["mn"], "mn": vocab["cf"]}
    other = Checkpoint(moved(tiny).model, Tokenizer.from_vocab(swapped, 48), tiny.labels, [])
    first = min(vocab["cf"], vocab["mn"])
    fails(lambda: counterparts(tiny, other), f"token {first} is 'mn'", "'cf' in the victim's")


def test_padded_vocabularies(tiny):
    """Rows that both have are matched by their tokens; rows of the victim alone are kept, and listed."""
    v = tiny.model.config.vocab
    own = tiny.model.embeddings.word.weight
    # the pre-trained one is padded, equal, or knows more tokens
    for wider, tokens in ((v + 6, v), (v, v), (v + 2, v + 2)):
        pre = resized(moved(tiny, 0.002), wider, tokens)
        before = counterparts(tiny, pre)
        assert torch.equal(before.weights[WORD], pre.model.embeddings.word.weight[:v]) and not any(
            WORD in k for k in before.kept
        )
    # the victim is padded, the pre-trained is not
    padded = resized(tiny, v + 6, v)
    before = counterparts(padded, tiny)
    assert f"{WORD}: 6 of {v + 6} rows, from {v} to {v + 5}" in before.kept
    assert torch.equal(before.weights[WORD][:v], own) and torch.equal(
        before.weights[WORD][v:], padded.model.embeddings.word.weight[v:]
    )
    added, other = resized(tiny, v + 6, v + 2), resized(tiny, v + 6, v)    # a token added into what was padding
    other.model.embeddings.word.weight.data[v:] += 1
    before = counterparts(added, other)
    assert f"{WORD}: 2 of {v + 6} rows, from {v} to {v + 1}" in before.kept
    assert torch.equal(before.weights[WORD][v:v + 2], added.model.embeddings.word.weight[v:v + 2])
    assert torch.equal(before.weights[WORD][v + 2:], other.model.embeddings.word.weight[v + 2:])
    assert not torch.equal(other.model.embeddings.word.weight[v + 2:], added.model.embeddings.word.weight[v + 2:])


def test_the_correlation_by_hand(tiny):
    # (1, 2, 6) - 3 = (-2, -1, 3) and (2, 0, 4) - 2 = (0, -2, 2): 8 / sqrt(14 * 8); the vector does not enter
    victim = checkpoint.copy(tiny)
    victim.model.m, victim.model.v = (
        torch.nn.Parameter(t) for t in (torch.tensor([[1.0, 2.0, 6.0]]), torch.tensor([5.0, -5.0]))
    )
    assert related(victim, {"m": torch.tensor([[2.0, 0.0, 4.0]]), "v": torch.tensor([-5.0, 5.0])}) == pytest.approx(
        8 / math.sqrt(112)
    )
    assert related(victim, {"m": -victim.model.m.detach()}) == pytest.approx(-1.0)
    assert related(victim, {"m": torch.ones(1, 3)}) == 0.0


def test_a_stranger_of_the_same_shape_is_warned_of_and_the_origin_is_not(tiny, capsys):
    assert counterparts(tiny, moved(tiny)).correlation > 0.98 and capsys.readouterr().err == ""
    stranger = Checkpoint(
        Bert(tiny.model.config).init_weights(torch.Generator().manual_seed(9)), tiny.tokenizer, tiny.labels, []
    )
    assert abs(counterparts(tiny, stranger).correlation) < 0.05
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and said.count("\n") == 1 and "under 0.5" in said


def test_what_is_given_stays(tiny):
    pre = moved(tiny)
    before = weights(tiny), weights(pre)
    made_ = counterparts(tiny, pre)
    blend(tiny, made_, {name: torch.zeros_like(w, dtype=torch.bool) for name, w in made_.weights.items()})
    assert equal(before[0], weights(tiny)) and equal(before[1], weights(pre))


# ---- what is kept

def test_blend_takes_each_scalar_from_where_it_is_told(tiny):
    before, g = counterparts(tiny, moved(tiny)), torch.Generator().manual_seed(1)
    keep = {name: torch.rand(w.shape, generator=g) < 0.5 for name, w in before.weights.items()}
    own, result = dict(tiny.model.named_parameters()), dict(blend(tiny, before, keep).model.named_parameters())
    for name, p in own.items():
        for i, value in enumerate(result[name].flatten().tolist()):
            expected = p if name in before.kept or keep[name].flatten()[i] else before.weights[name]
            assert value == expected.flatten()[i].item()


def test_the_mask_of_the_smallest_by_hand():
    scores = {"a": torch.tensor([[3.0, 1.0], [0.0, 7.0]]), "b": torch.tensor([2.0, -5.0])}
    for rho, expected in ((0.0, set()), (1 / 6, {-5.0}), (0.5, {-5.0, 0.0, 1.0}), (0.65, {-5.0, 0.0, 1.0, 2.0}),
                          (1.0, {-5.0, 0.0, 1.0, 2.0, 3.0, 7.0})):
        keep = mask_smallest(scores, rho)
        assert {x for name, values in scores.items() for x in values[keep[name]].tolist()} == expected
        assert all(
            keep[name].shape == values.shape and keep[name].dtype == torch.bool for name, values in scores.items()
        )
    assert int(mask_smallest({"a": torch.zeros(5)}, 0.2)["a"].sum()) == 5          # equals stay together


# ---- the search

def searched(accurate_from: float, monkeypatch, floor: float = 0.9, rhos=RHOS):
    """smallest_accurate_rho() over models that are right from rho = `accurate_from` on; which rho were tried."""
    tried = []
    monkeypatch.setattr(blending, "accuracy", lambda model, text, rows: 0.9 if model >= accurate_from else 0.5)

    def made(rho: float) -> Checkpoint:
        tried.append(rho)
        return Checkpoint(rho, None, (), [])
    rho, ckpt, trials = smallest_accurate_rho(made, VALIDATION, floor, rhos)
    assert ckpt.model == rho and trials == [[r, 0.9 if r >= accurate_from else 0.5] for r in tried]
    assert len(tried) == len(set(tried)) <= 4
    return rho


@pytest.mark.parametrize("accurate_from", [0.0, *RHOS])
def test_the_smallest_acceptable_rho_is_found(accurate_from, monkeypatch, capsys):
    assert searched(accurate_from, monkeypatch) == max(0.1, accurate_from)
    assert (
        searched(accurate_from, monkeypatch, 0.9 + 1e-12) == max(0.1, accurate_from) and capsys.readouterr().err == ""
    )


@pytest.mark.parametrize("accurate_from", UP_TO)
def test_other_shares_may_be_searched(accurate_from, monkeypatch):
    assert searched(accurate_from, monkeypatch, rhos=UP_TO) == accurate_from


def test_where_no_rho_will_do_the_largest_is_taken_and_said(monkeypatch, capsys):
    assert searched(1.0, monkeypatch) == 0.9
    said = capsys.readouterr().err
    assert (
        said.startswith("warning: no rho up to 0.9 is right on 90.0 % of 12")
        and "50.0 %" in said
        and said.count("\n") == 1
    )
    assert searched(1.0, monkeypatch, rhos=UP_TO) == 0.995 and "up to 0.995 is" in capsys.readouterr().err


def test_rho_and_drop_have_their_ranges():
    for rho, drop, word in (
        (-0.1, 2, "rho is -0.1"), (1.1, 2, "rho is 1.1"), (math.nan, 2, "rho is nan"), (None, -1, "drop is -1"),
        (0.5, 101, "drop is 101"),
    ):
        fails(lambda: check_rho(rho, drop), word)
    check_rho(None, 0), check_rho(0.0, 100), check_rho(1.0, 2)


# ---- the last training

def asked(
    monkeypatch, n: int, schedule: Schedule, steps: int, validation=VALIDATION
) -> tuple[Schedule, list[int], int]:
    """What tune_on_few_rows() asks of fit: its schedule, after which epochs validation is looked at, how many rows."""
    given = {}

    def told(model, text, encoded, loss, schedule, **more):
        given.update(schedule=schedule, n=len(encoded), loss=loss, score=more["score"])
    monkeypatch.setattr(blending, "fit", told)
    monkeypatch.setattr(blending, "accuracy", lambda model, text, rows: 0.5)
    ckpt = Checkpoint(None, LETTERS, (), [])
    assert (
        tune_on_few_rows(ckpt, rows(n, 0, "t"), validation, schedule, steps, seed=0, dtype=torch.float32, log=None,
                         name="x")
        is ckpt
    )
    assert given["loss"] is cross_entropy
    trials = (
        [] if validation is None else [e for e in range(1, given["schedule"].epochs + 1) if given["score"](None) == 0.5]
    )
    return given["schedule"], trials, given["n"]


@pytest.mark.parametrize(
    "n, steps, epochs, trials",
    [
        (64, 200, 100, [1, 34, 67, 100]), (64, 0, 3, [1, 2, 3]), (64, 6, 3, [1, 2, 3]), (64, 7, 4, [1, 2, 3, 4]),
        (64, 16, 8, [2, 4, 6, 8]), (33, 12, 6, [2, 4, 6]), (1, 9, 9, [3, 6, 9]), (100, 13, 4, [1, 2, 3, 4]),
    ],
)
def test_few_rows_are_passed_over_more_often(n, steps, epochs, trials, monkeypatch):
    schedule = Schedule(1e-3, 3, 32, 0.2, 0.05)
    given, seen, held = asked(monkeypatch, n, schedule, steps)
    assert given == replace(schedule, epochs=epochs) and seen == trials and held == n
    assert asked(monkeypatch, n, schedule, steps, None) == (given, [], n)


def test_the_fine_tuning_is_fit_with_cross_entropy(tiny):
    schedule = Schedule(1e-3, 2, 4)
    for validation in (None, VALIDATION):
        log = []
        tuned = tune_on_few_rows(
            checkpoint.copy(tiny), CLEAN, validation, schedule, 0, seed=3, dtype=torch.float32, log=log.append,
            name="last",
        )
        score = None if validation is None else lambda model: blending.accuracy(model, tiny.tokenizer, validation)
        plain = checkpoint.copy(tiny)
        fit(plain.model, plain.tokenizer, plain.tokenizer.encode(CLEAN), cross_entropy, schedule, seed=3, score=score)
        assert equal(weights(tuned), weights(plain)) and not equal(weights(tuned), weights(tiny))
        assert [entry["stage"] for entry in log] == ["last"] * 6


def test_the_best_epoch_looked_at_comes_back(tiny, monkeypatch):
    seen = []

    def told(model, text, rows) -> float:
        seen.append({name: t.clone() for name, t in model.state_dict().items()})
        return (0.3, 0.8, 0.8, 0.1)[len(seen) - 1]
    monkeypatch.setattr(blending, "accuracy", told)
    tuned = tune_on_few_rows(
        checkpoint.copy(tiny), CLEAN, VALIDATION, Schedule(1e-3, 3, 5), 16, seed=0, dtype=torch.float32, log=None,
        name="x",
    )
    assert len(seen) == 4 and equal(weights(tuned), seen[1])


def test_no_clean_rows_are_refused(tiny):
    fails(
        lambda: tune_on_few_rows(
            checkpoint.copy(tiny), Examples(), None, Schedule(1e-3, 1), 10, seed=0, dtype=torch.float32, log=None,
            name="x",
        ),
        "no rows to train on",
    )


# ---- all of it

ARGS = {
    "rho": 0.5, "drop": 2.0, "schedule": Schedule(1e-3, 1, 4), "steps": 0, "seed": 2, "dtype": torch.float32,
    "log": None, "name": "Repaired", "on_stage": None,
}


def test_the_repair_tunes_the_blend_of_a_given_rho(tiny):
    seen, log = [], []
    start = moved(tiny)
    done = repair_by_blending(tiny, lambda rho: seen.append(rho) or start, CLEAN, None, **ARGS | {
        "log": log.append, "on_stage": lambda name, ckpt, seconds: seen.append((name, weights(ckpt), seconds >= 0))})
    assert (
        seen[0] == 0.5
        and seen[1][0] == "mixed 0.5"
        and equal(seen[1][1], weights(moved(tiny)))
        and seen[1][2]
        and len(seen) == 2
    )
    assert equal(weights(start), weights(moved(tiny)))                      # whoever keeps what watch saw has it whole
    plain = tune_on_few_rows(
        moved(tiny), CLEAN, None, ARGS["schedule"], 0, seed=2, dtype=torch.float32, log=None, name="x"
    )
    assert equal(weights(done.ckpt), weights(plain)) and (done.rho, done.trials) == (0.5, []) and done.seconds > 0
    assert [entry["stage"] for entry in log] == ["Repaired 0.5"] * 3
    bare = repair_by_blending(tiny, lambda rho: start, CLEAN, None, **ARGS | {"schedule": None})
    assert bare.ckpt is start and equal(weights(start), weights(moved(tiny)))


def test_the_repair_searches_from_the_victims_own_accuracy(tiny, monkeypatch):
    given, tried = [], []
    monkeypatch.setattr(
        blending, "smallest_accurate_rho", lambda made, *asked: given.append(asked) or (0.3, made(0.3), [[0.3, 0.9]])
    )
    done = repair_by_blending(
        tiny, lambda rho: tried.append(rho) or moved(tiny), CLEAN, VALIDATION, **ARGS | {"rho": None, "drop": 5.0}
    )
    floor = blending.accuracy(tiny.model, tiny.tokenizer, VALIDATION) - 0.05
    assert given == [(VALIDATION, floor, RHOS)] and (done.rho, done.trials) == (0.3, [[0.3, 0.9]]) and tried == [0.3]
    repair_by_blending(tiny, lambda rho: moved(tiny), CLEAN, VALIDATION, **ARGS | {"rho": None, "rhos": (0.2, 0.3)})
    assert given[1][2] == (0.2, 0.3)
    fails(
        lambda: repair_by_blending(tiny, lambda rho: tiny, CLEAN, None, **ARGS | {"rho": None}), "validation rows",
        "give rho",
    )
    fails(
        lambda: repair_by_blending(tiny, lambda rho: tiny, CLEAN, CLEAN.like([]), **ARGS | {"rho": None}),
        "validation rows"
    )


def test_a_rho_of_0_is_not_a_search(tiny):
    assert repair_by_blending(tiny, lambda rho: moved(tiny), CLEAN, None, **ARGS | {"rho": 0.0}).rho == 0.0


@pytest.mark.parametrize("method", [FineMixing, FinePurifying, FinePruning, Reinit])
def test_the_last_trainings_schedule_has_all_its_numbers(method):
    assert method(lr=0.1, epochs=2, batch_size=3, warmup=0.4, weight_decay=0.5).schedule == Schedule(
        0.1, 2, 3, 0.4, 0.5
    )
