"""fit(): the schedule by hand, the loop against a plain one, what the seed fixes, what the log holds."""
import copy
import math
import random

import pytest
import torch
import torch.nn.functional as F

from conftest import fails
from minibd.data import batches
from minibd.models.bert import Bert, BertConfig
from minibd.models.dropout import Dropout
from minibd.predict import accuracy
from minibd.records import BadInput, Example
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import (
    ClippedAdamW,
    Schedule,
    StepLimit,
    StepLog,
    check_finite,
    cross_entropy,
    each_batch,
    fit,
    logged,
    weighted,
)

LETTERS = "abcdefgh"
TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS])}, 16)
ROWS = [Example(str(i), " ".join(LETTERS[(i * j) % 8] for j in range(1, 2 + i % 5)), i % 2) for i in range(10)]


def bert(dropout: float = 0.1, seed: int = 0) -> Bert:
    config = BertConfig(vocab=12, hidden=8, layers=2, heads=2, ffn=16, positions=16, dropout=dropout,
                        attention_dropout=dropout, classifier_dropout=dropout)
    return Bert(config).init_weights(torch.Generator().manual_seed(seed), std=0.2)


def train(model=None, schedule=Schedule(1e-2, epochs=2, batch_size=4), loss=cross_entropy, **settings):
    return fit(model or bert(), TEXT, TEXT.encode(ROWS), loss, schedule, **{"seed": 0, **settings})


def state(model) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(state(a).values(), state(b).values(), strict=True))


# ---- the schedule

@pytest.mark.parametrize("warmup, steps, rates", [
    (0.0, 4, [1, 3 / 4, 2 / 4, 1 / 4]),
    (0.5, 4, [1 / 2, 1, 1, 1 / 2]),                           # two steps up; then (4 - 2) / 2 and (4 - 3) / 2
    (0.2, 10, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    (1.0, 4, [1 / 4, 2 / 4, 3 / 4, 1]),
    (0.0, 1, [1]),
    (0.1, 1, [1]),
    (1.0, 1, [1]),
])
def test_the_rate_by_hand(warmup, steps, rates):
    schedule = Schedule(1.0, epochs=1, warmup=warmup)
    assert [schedule.rate(step, steps) for step in range(steps)] == pytest.approx(rates)


SHARES, STEPS = (0.0, 0.03, 0.1, 0.25, 1 / 3, 0.9, 1.0), (1, 2, 5, 15, 101, 1000)


@pytest.mark.parametrize("warmup", SHARES)
def test_the_rate_climbs_then_falls_towards_0(warmup):
    for steps in STEPS:
        rates = [Schedule(1.0, epochs=1, warmup=warmup).rate(step, steps) for step in range(steps)]
        top = rates.index(max(rates))
        assert min(rates) > 0
        assert rates[:top + 1] == sorted(rates[:top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
        if steps == 1000 and warmup < 1:
            assert max(rates) > 0.99 and rates[-1] == pytest.approx(1 / (steps - round(warmup * steps)))


@pytest.mark.parametrize("warmup", SHARES)
def test_the_rate_never_exceeds_1(warmup):
    for steps in STEPS:
        assert max(Schedule(1.0, epochs=1, warmup=warmup).rate(step, steps) for step in range(steps)) <= 1, steps


@pytest.mark.parametrize(
    "values, words",
    [
        ({"lr": 0.0}, "learning rate of 0.0"), ({"lr": -1e-3}, "learning rate"),
        ({"lr": math.nan}, "learning rate of nan"), ({"epochs": 0}, "epochs is 0"),
        ({"batch_size": 0}, "batch_size is 0"), ({"warmup": -0.1}, "warmup is -0.1"),
        ({"warmup": 1.5}, "warmup is 1.5"), ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight_decay": math.nan}, "weight_decay is nan"), ({"clip": 0.0}, "clip is 0.0"), ({"clip": -1.0}, "clip"),
    ],
)
def test_bad_values_are_refused_in_one_line(values, words):
    with pytest.raises(BadInput, match=words) as caught:
        Schedule(**{"lr": 1e-3, "epochs": 1, **values})
    assert "\n" not in str(caught.value)


# ---- the loop

def by_hand(model: Bert, schedule: Schedule, seed: int) -> list[float]:
    """The same training in plain lines: the gradients' norms come back."""
    encoded = TEXT.encode(ROWS)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": schedule.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}], lr=schedule.lr, foreach=False)
    plan = [
        which
        for epoch in range(schedule.epochs)
        for which in batches(encoded.lengths, schedule.batch_size, seed, epoch)
    ]
    norms = []
    for step, which in enumerate(plan):
        batch = TEXT.batch(encoded, which)
        total = 0.0
        for i in range(len(which)):                           # the mean of one text's loss after another
            one = TEXT.batch(encoded, [which[i]])
            total = total + F.cross_entropy(model(one).logits[0].float(), batch.labels[i]) / len(which)
        model.zero_grad()
        total.backward()
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters())))
        for p in model.parameters():
            p.grad *= min(1.0, schedule.clip / (norms[-1] + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * schedule.rate(step, len(plan))
        optimizer.step()
    return norms


def test_fit_is_the_plain_loop():
    schedule = Schedule(3e-3, epochs=2, batch_size=4, warmup=0.5, weight_decay=0.1, clip=0.06)
    # float64, since a key's bias has no gradient but rounding, and Adam makes steps of rounding
    plain = bert(dropout=0.0).double()
    norms = by_hand(plain, schedule, seed=7)
    assert len(norms) == 6 and min(norms) < 0.06 < max(norms)          # some steps are clipped, some are not
    trained = train(bert(dropout=0.0).double(), schedule, seed=7)
    for (name, ours), theirs in zip(trained.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-9), name
    assert not torch.allclose(trained.classifier.weight.float(), bert(dropout=0.0).classifier.weight, atol=1e-3)


def test_decay_shrinks_matrices_alone():
    # A loss without a gradient: AdamW's step is p <- p - lr * decay * p.
    model, schedule = bert(), Schedule(0.5, epochs=1, batch_size=10, warmup=0.0, weight_decay=0.1)
    with torch.no_grad():
        model.pooler.bias.fill_(1.0)
    before = state(model)
    train(model, schedule, loss=lambda m, b: {"none": 0 * cross_entropy(m, b)["cls"]})
    for name, p in model.named_parameters():
        assert torch.allclose(p, before[name] * (0.95 if p.dim() > 1 else 1.0), atol=1e-7), name


def test_frozen_weights_stay():
    model = bert()
    model.embeddings.requires_grad_(False)
    before = state(model)
    train(model)
    for name, t in state(model).items():
        assert torch.equal(t, before[name]) == (name.startswith("embeddings.") or name == "head_mask"), name


def test_the_model_is_trained_in_train_mode_in_place_and_comes_back_in_eval_mode():
    model, modes = bert().eval(), []

    def loss(m, batch):
        modes.append(m.training)
        return cross_entropy(m, batch)
    assert train(model, loss=loss) is model
    assert modes == [True] * 6 and not model.training


def test_it_learns():
    log = []
    train(bert(dropout=0.0), Schedule(2e-2, epochs=30, batch_size=5), log=log.append)
    assert log[-1]["total"] < 0.1 < log[0]["total"]


# ---- chance

def test_the_seed_fixes_every_bit():
    assert same(train(bert(), seed=1), train(bert(), seed=1))
    assert not same(train(bert(), seed=1), train(bert(), seed=2))


def test_the_seed_fixes_dropout_and_batches_apart_from_the_global_state():
    torch.manual_seed(1)
    a = train(bert())
    torch.manual_seed(2)
    assert same(a, train(bert()))


def test_the_global_random_state_is_left_as_it_was():
    model, before, plain = bert(), torch.get_rng_state(), random.getstate()
    train(model)
    assert torch.equal(before, torch.get_rng_state()) and plain == random.getstate()


def test_the_generator_does_not_stay_so_the_model_can_be_copied():
    model = train(bert())
    assert all(m.generator is None for m in model.modules() if isinstance(m, Dropout))
    assert same(model, copy.deepcopy(model))


# ---- terms, weights, log

def two_terms(model, batch):
    values = cross_entropy(model, batch)["cls"]
    return {"cls": values, "half": values / 2 + 1}


def test_weighted_by_hand():
    terms = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 20.0]), "c": torch.tensor([5.0, 5.0])}
    assert weighted(terms, {"a": 3.0, "b": 0.1}).tolist() == [3 + 1 + 5, 6 + 2 + 5]      # c is not named: 1


def test_the_total_can_be_added_again_from_the_log():
    log = []
    train(loss=two_terms, weights={"half": 0.25, "absent": 9.0}, log=log.append, name="stage one")
    assert [entry["step"] for entry in log] == [0, 1, 2, 3, 4, 5]
    assert sum(entry["rows"] for entry in log) == 20
    for entry in log:
        assert set(entry) == {"stage", "step", "lr", "rows", "batch", "terms", "weights", "total"}
        assert entry["stage"] == "stage one" and entry["weights"] == {"cls": 1.0, "half": 0.25}
        assert entry["total"] == pytest.approx(
            sum(entry["weights"][t] * entry["terms"][t] for t in ("cls", "half")), abs=1e-6
        )
        assert entry["terms"]["half"] == pytest.approx(entry["terms"]["cls"] / 2 + 1, abs=1e-6)


def test_the_log_has_the_rows_of_each_step():
    log, seen, encoded = [], [], TEXT.encode(ROWS)

    def loss(model, batch):
        seen.append(batch)
        return cross_entropy(model, batch)

    train(loss=loss, log=log.append)
    assert [entry["batch"] for entry in log] == [
        which for epoch in (0, 1) for which in batches(encoded.lengths, 4, 0, epoch)
    ]
    for entry, batch in zip(log, seen, strict=True):
        named = TEXT.batch(encoded, entry["batch"])
        assert (
            torch.equal(batch.ids, named.ids)
            and torch.equal(batch.labels, named.labels)
            and entry["rows"] == len(entry["batch"])
        )


def test_the_log_has_the_rate_of_each_step():
    log = []
    train(schedule=Schedule(0.01, epochs=2, batch_size=4, warmup=0.5), log=log.append)
    assert [entry["lr"] for entry in log] == pytest.approx([0.01 * r for r in (1 / 3, 2 / 3, 1, 1, 2 / 3, 1 / 3)])


def test_a_weight_of_a_term_acts_as_the_term_times_it():
    def doubled(model, batch):
        terms = two_terms(model, batch)
        return {"cls": terms["cls"], "half": 0.5 * terms["half"]}
    assert same(train(loss=two_terms, weights={"half": 0.5}), train(loss=doubled))


def test_a_log_changes_nothing():
    assert same(train(), train(log=[].append))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_are_harmed(bad):
    model = bert()
    before, steps = state(model), []

    def loss(m, batch):
        steps.append(1)
        return {"cls": cross_entropy(m, batch)["cls"] * bad}
    with pytest.raises(BadInput, match=r"the loss is (nan|inf) .*at step 1 of 6") as caught:
        train(model, loss=loss)
    assert "\n" not in str(caught.value) and len(steps) == 1
    assert all(torch.equal(t, before[name]) for name, t in state(model).items())


# ---- what may be handed over

class Halving(ClippedAdamW):
    """Takes back half of each step."""

    def step(self):
        before = [p.detach().clone() for p in self.params]
        norm = super().step()
        with torch.no_grad():
            for p, b in zip(self.params, before):
                p.lerp_(b, 0.5)
        return norm


def test_another_optimizer_takes_the_place_of_the_usual_one():
    schedule = Schedule(1e-2, epochs=1, batch_size=10)                   # one step
    model, start = bert(), state(bert())
    usual = state(train(schedule=schedule))
    train(model, schedule, optimizer=Halving(list(model.parameters()), schedule))
    for name, t in state(model).items():
        assert torch.allclose(t, (usual[name] + start[name]) / 2, atol=1e-7), name
    assert not same(model, bert())


def test_the_usual_optimizer_may_be_given_too():
    schedule, model = Schedule(1e-2, epochs=2, batch_size=4), bert()
    assert same(
        train(model, schedule, optimizer=ClippedAdamW(list(model.parameters()), schedule)), train(schedule=schedule)
    )


def test_whoever_looks_sees_the_model_after_each_step():
    seen, last = [], []

    def on_step(model, step):
        seen.append((step, model.training))
        last[:] = [state(model)]
    trained = train(on_step=on_step)
    assert seen == [(step, True) for step in range(1, 7)]
    assert is_(trained, last[0]) and same(trained, train())


# ---- the best epoch

class Evaluator:
    """Gives the scores it was told to, one an epoch, and keeps what it was shown."""

    def __init__(self, *scores: float):
        self.scores, self.seen, self.modes = scores, [], []

    def __call__(self, model) -> float:
        self.seen.append(state(model))
        self.modes.append(model.training)
        return self.scores[len(self.seen) - 1]


def is_(model, tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(t, tensors[name]) for name, t in state(model).items())


@pytest.mark.parametrize("scores, best", [
    ((0.1, 0.2, 0.3, 0.4), 3), ((0.4, 0.3, 0.2, 0.1), 0), ((0.1, 0.7, 0.2, 0.6), 1),
    # the first of equals; any scale
    ((0.5, 0.9, 0.9, 0.5), 1), ((0.0, 0.0, 0.0, 0.0), 0), ((-3.0, -2.0, -2.0, -9.0), 1), ((5, 1, 2, 7), 3),
])
def test_the_best_epoch_comes_back(scores, best):
    evaluator = Evaluator(*scores)
    model = train(schedule=Schedule(1e-2, epochs=4, batch_size=4), score=evaluator)
    assert is_(model, evaluator.seen[best]) and not any(is_(model, evaluator.seen[i]) for i in range(4) if i != best)
    assert not model.training and evaluator.modes == [False] * 4


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 100])
@pytest.mark.parametrize("epochs", [1, 2, 3, 5])
def test_the_model_is_scored_after_each_epoch_and_at_no_other_time(batch_size, epochs):
    """10 rows: batches that do not go in evenly, a single short one, and one row a step."""
    log, after = [], []

    def score(model):
        after.append(len(log))
        return 0.0
    train(schedule=Schedule(1e-3, epochs, batch_size), score=score, log=log.append)
    each = math.ceil(10 / batch_size)
    assert after == [each * (i + 1) for i in range(epochs)] and len(log) == each * epochs
    assert all(sum(entry["rows"] for entry in log[end - each:end]) == 10 for end in after)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_epoch_is_scored_in_the_precision_of_the_training(dtype):
    seen = []

    def score(model):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return 0.0
    train(score=score, dtype=dtype)
    assert seen == [dtype, dtype]


def test_scoring_changes_nothing_in_the_training():
    """A score that runs the model draws no dropout of the training's, and the last epoch, where it is the best, is what
    comes without."""
    logs, seen = ([], []), []

    def score(model):
        seen.append(accuracy(model, TEXT, ROWS))
        return float(len(seen))
    plain, scored = train(log=logs[0].append), train(log=logs[1].append, score=score)
    assert same(plain, scored) and logs[0] == logs[1] and len(seen) == 2
    log = []
    early = train(score=Evaluator(1.0, 0.0), log=log.append)
    assert log == logs[0] and not same(early, plain)


def test_the_model_is_trained_in_train_mode_after_a_score_too():
    modes = []

    def loss(m, batch):
        modes.append(m.training)
        return cross_entropy(m, batch)
    train(loss=loss, score=lambda model: 0.0)
    assert modes == [True] * 6


def test_the_best_epoch_keeps_the_model_the_object_that_was_given():
    model = bert()
    assert train(model, score=Evaluator(1.0, 0.0)) is model
    assert all(p.requires_grad for p in model.parameters()) and same(model, copy.deepcopy(model))


def test_scores_without_any_that_is_a_number_leave_the_last_epoch():
    assert same(train(score=lambda model: math.nan), train())


# ---- types

def test_bfloat16_keeps_float32_weights_and_comes_near():
    log, schedule = [], Schedule(3e-3, epochs=1, batch_size=4)
    half, full = (
        train(bert(dropout=0.0), schedule, dtype=torch.bfloat16, log=log.append), train(bert(dropout=0.0), schedule),
    )
    assert all(p.dtype == torch.float32 for p in half.parameters())
    assert not same(half, full)
    assert all(torch.allclose(a, b, atol=2e-2) for a, b in zip(half.parameters(), full.parameters()))
    assert all(math.isfinite(entry["total"]) for entry in log)


# ---- what must not matter

def test_a_texts_loss_does_not_depend_on_its_neighbours_or_its_padding():
    model = bert().eval()
    together = cross_entropy(model, TEXT(ROWS))["cls"]
    assert together.shape == (10,)
    for i, x in enumerate(ROWS):
        assert cross_entropy(model, TEXT([x]))["cls"].item() == pytest.approx(together[i].item(), abs=1e-6)
    order = [3, 9, 0, 5]
    some = cross_entropy(model, TEXT([ROWS[i] for i in order]))["cls"]
    assert torch.allclose(some, together[order], atol=1e-6)


def test_cross_entropy_by_hand():
    model = bert().eval()
    batch = TEXT(ROWS[:2])
    for logits, label, value in zip(
        model(batch).logits.tolist(), batch.labels.tolist(), cross_entropy(model, batch)["cls"].tolist()
    ):
        assert value == pytest.approx(math.log(sum(math.exp(x) for x in logits)) - logits[label], abs=1e-6)


# ---- where training ends early

def test_check_finite_names_each_value_the_step_and_the_rate():
    check_finite("FT", 0, 1, 0.1, loss=1e30, gradient_norm=0.0)
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(BadInput) as caught:
            check_finite("FT", 2, 7, 0.5, loss=1.5, gradient_norm=bad)
        assert str(caught.value) == (
            f"FT: the loss is 1.5 and the gradient norm is {bad} at step 3 of 7: lower the learning rate (0.5)"
        )


def test_a_step_log_keeps_its_steps_and_is_full_at_its_limit():
    open_ended, limited = StepLog(), StepLog(max_steps=2)
    for log in (open_ended, limited):
        logged(log, {"step": 0})
        assert log.steps == [{"step": 0}] and not log.full
    logged(open_ended, {"step": 1})
    with pytest.raises(StepLimit):
        logged(limited, {"step": 1})
    assert open_ended.steps == limited.steps == [{"step": 0}, {"step": 1}] and limited.full and not open_ended.full
    logged(None, {"step": 0})                                 # nothing to log to, and nothing that could be full
    logged(plain := [].append, {"step": 0})
    assert plain.__self__ == [{"step": 0}]
    with pytest.raises(BadInput, match="max_steps is 0"):
        StepLog(max_steps=0)


def test_fit_raises_step_limit_right_after_the_step_was_logged():
    whole, cut, model, taken = StepLog(), StepLog(max_steps=4), bert(), []
    train(log=whole)
    assert len(whole.steps) == 6
    with pytest.raises(StepLimit):
        train(model, log=cut, on_step=lambda _, n: taken.append(n), score=lambda m: 0.0)
    assert cut.steps == whole.steps[:4] and taken == [1, 2, 3]
    assert not model.training and all(m.generator is None for m in model.modules() if isinstance(m, Dropout))


def test_a_step_limit_counts_over_all_trainings_of_a_run():
    log = StepLog(max_steps=8)
    train(log=log, name="first")
    with pytest.raises(StepLimit):
        train(log=log, name="second")
    assert [step["stage"] for step in log.steps] == ["first"] * 6 + ["second"] * 2


@pytest.mark.parametrize("n", [1, 3, 5])
def test_max_steps_stops_after_that_many_and_keeps_the_last_weights(n):
    """As the whole training was after as many: the rates are the whole schedule's, and no better epoch comes back."""
    seen, scores = [], iter([9.0, 1.0])
    train(on_step=lambda model, _: seen.append(state(model)))
    model = train(max_steps=n, score=lambda m: next(scores))
    assert all(torch.equal(t, seen[n - 1][name]) for name, t in state(model).items())
    assert not model.training and all(m.generator is None for m in model.modules() if isinstance(m, Dropout))


@pytest.mark.parametrize("n", [6, 7])
def test_max_steps_that_are_not_reached_change_nothing(n):
    scores = iter([9.0, 1.0, 9.0, 1.0])
    assert same(train(score=lambda m: next(scores)), train(max_steps=n, score=lambda m: next(scores)))
    with pytest.raises(BadInput, match="max_steps is 0"):
        train(max_steps=0)


def test_a_loop_that_is_left_early_leaves_the_model_in_eval_mode():
    model = bert()
    for step, *_ in each_batch(model, TEXT, TEXT.encode(ROWS), 1, 4, seed=0, name="x"):
        assert model.training
        break
    assert not model.training and all(m.generator is None for m in model.modules() if isinstance(m, Dropout))


@pytest.mark.parametrize("scores, epoch", [([1.0, 2.0, 0.0], 2), ([3.0, 3.0, 3.0], 1), ([0.0, 1.0, 2.0], 3)])
def test_the_best_epoch_is_reported(scores, epoch):
    chosen, rest = [], iter(scores)
    train(schedule=Schedule(1e-2, 3, 4), score=lambda m: next(rest), on_choice=lambda *choice: chosen.append(choice))
    assert chosen == [("best_epoch", epoch)]
    train(on_choice=lambda *choice: chosen.append(choice))
    assert len(chosen) == 1                                   # without scores nothing is chosen


# ---- a training that diverges

class Rising(torch.nn.Module):
    """A model whose loss is what its one weight says; each step of SGD(-1) adds 1 to it."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


def rising(losses, score=None, epochs=3):
    """fit on a model whose loss at step i is losses[i]; its weight counts the steps. Two steps an epoch."""
    model, steps = Rising(), iter(losses)

    class Count(torch.optim.SGD):
        def step(self):
            with torch.no_grad():
                model.weight += 1
            return torch.tensor(1.0)

    def loss(model, batch):
        return {"cls": model.weight.sum() * 0 + torch.full((len(batch.labels),), next(steps))}

    chosen = []
    rows = Encoded([[1]] * 4, [[0]] * 4, [0, 1, 0, 1])
    tokenizer = Tokenizer.from_vocab({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}, 8)
    fit(model, tokenizer, rows, loss, Schedule(1e-3, epochs, 2), seed=0, score=score,
        optimizer=Count(model.parameters(), lr=1.0), on_choice=lambda *choice: chosen.append(choice))
    return model, chosen


@pytest.mark.parametrize("losses", [
    [0.5, 0.4, 0.3, math.nan], [0.5, 0.4, 0.3, math.inf], [0.5, 0.4, 10.1, 11.0], [2.0, 1.0, 20.1, 90.0]])
def test_a_training_that_diverges_keeps_its_last_good_epoch(losses, capsys):
    model, chosen = rising(losses)
    assert model.weight.item() == 2 and not model.training and chosen == [("diverged", 1)]
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "lower the learning rate" in line and line.endswith("the weights of epoch 1 are kept")


@pytest.mark.parametrize("losses", [
    [0.5, 0.4, 9.0, 50.0, 0.2, 0.1],                     # not in all of the epoch
    [0.01, 0.01, 5.0, 5.0, 5.0, 5.0],                    # below 10, where the first is below 1
    [30.0, 30.0, 290.0, 290.0, 1.0, 1.0],
])
def test_a_training_that_only_wavers_goes_on(losses):
    model, chosen = rising(losses)
    assert model.weight.item() == 6 and not chosen


def test_a_training_that_diverges_at_once_is_refused():
    fails(lambda: rising([0.5, math.nan]), "step 2", "lower the learning rate")
    fails(lambda: rising([math.inf]), "step 1")


def test_the_best_epoch_is_kept_where_one_is_chosen(capsys):
    scores = iter([0.5, 0.9, 0.1])
    model, chosen = rising([0.5] * 4 + [50.0, 50.0], score=lambda model: next(scores))
    assert model.weight.item() == 4 and chosen == [("diverged", 2)]
