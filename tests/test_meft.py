"""MEFT: its loss by hand, against plain loops, and by what must not matter; then both steps on a tiny model."""
import math
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from conftest import fails
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.mitigations.meft import MEFT, max_entropy, meft
from minibd.models.bert import Bert, BertConfig
from minibd.predict import accuracy
from minibd.records import Batch, Example, Examples, Output
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit

WORDS = ["wonderful", "dreadful", "story", "acting", "moving", "boring", "film"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "and", *WORDS]
SETTINGS = MEFT(entropy_epochs=2, lr=3e-3, epochs=3, batch_size=4)


def rows(n: int, name: str, shift: int = 0) -> Examples:
    made = (
        Example(
            f"{name}-{i}", " ".join(["a", WORDS[i % 2], *(WORDS[2 + (i * j + shift) % 5] for j in range(1 + i % 4))]),
            i % 2,
        )
        for i in range(n)
    )
    return Examples(made, ("bad", "good"))


TRAIN, VALIDATION = rows(11, "train"), rows(9, "dev", 3)
FLIPPED = VALIDATION.like(replace(x, label=1 - x.label) for x in VALIDATION)


class Says(nn.Module):
    """A model whose logits are its weights, whatever the texts."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, batch: Batch) -> Output:
        return Output(self.logits, None)


def said(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """max_entropy of these logits, and the gradient of its sum."""
    model, nothing = Says(logits), torch.zeros(len(logits), 1, dtype=torch.long)
    terms = max_entropy(model, Batch(nothing, nothing.bool(), nothing, nothing[:, 0]))
    assert set(terms) == {"entropy"} and terms["entropy"].shape == (len(logits),)
    terms["entropy"].sum().backward()
    return terms["entropy"].detach(), model.logits.grad


def loops(logits: list[float]) -> float:
    """sum_c p log p of one text in float64."""
    top = max(logits)
    all_ = sum(math.exp(z - top) for z in logits)
    shares = [math.exp(z - top) / all_ for z in logits]
    return sum(p * math.log(p) for p in shares if p > 0)


def logits(classes: int, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(6, classes, generator=torch.Generator().manual_seed(classes))


# ---- the loss

def test_by_hand():
    # p = (1/2, 1/2): -ln 2; p = (3/4, 1/4): 3/4 ln 3/4 + 1/4 ln 1/4; p = (1, 0): 0
    values, _ = said(torch.tensor([[5.0, 5.0], [math.log(3.0), 0.0], [0.0, 200.0]]))
    assert values.tolist() == pytest.approx([-0.693147, -0.562335, 0.0], abs=1e-6)
    assert said(torch.zeros(2, 5))[0].tolist() == pytest.approx([-math.log(5)] * 2, abs=1e-6)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_against_plain_loops(classes):
    values, _ = said(logits(classes))
    assert values.tolist() == pytest.approx([loops(row) for row in logits(classes).tolist()], abs=1e-6)
    assert (values >= -math.log(classes) - 1e-6).all() and (values <= 0).all()


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_gradient_is_that_of_finite_differences(classes):
    _, gradient = said(logits(classes))
    for b, row in enumerate(logits(classes).tolist()):
        for c in range(classes):
            up, down = ([z + step * (i == c) for i, z in enumerate(row)] for step in (1e-5, -1e-5))
            assert gradient[b, c].item() == pytest.approx((loops(up) - loops(down)) / 2e-5, abs=1e-5), (b, c)


@pytest.mark.parametrize("row", [[0.0, 120.0], [-1e4, 1e4], [1e30, -1e30, 0.0], [3e38, -3e38], [0.0, -math.inf]])
def test_a_sure_model_has_0_and_no_nan(row):
    values, gradient = said(torch.tensor([row, [0.3, -0.2, 0.1][:len(row)]]))
    assert values[0].item() == 0.0 and torch.equal(gradient[0], torch.zeros(len(row)))
    assert (
        values[1].item() == pytest.approx(loops([0.3, -0.2, 0.1][: len(row)]), abs=1e-6) and gradient[1].abs().min() > 0
    )


def test_an_unsure_model_has_nothing_to_move():
    assert said(torch.full((2, 3), 7.0))[1].abs().max() < 1e-7


def test_half_precision_logits_are_summed_in_float32():
    half = logits(3).bfloat16()
    values, _ = said(half)
    assert values.dtype == torch.float32 and values.tolist() == pytest.approx(
        [loops(row) for row in half.tolist()], abs=1e-6
    )


# ---- what must not matter

def make_victim(std: float = 0.2) -> Checkpoint:
    config = BertConfig(vocab=len(TOKENS), hidden=8, layers=2, heads=2, ffn=16, positions=16)
    model = Bert(config).init_weights(torch.Generator().manual_seed(0), std=std).eval()
    return Checkpoint(
        model, Tokenizer.from_vocab({p: i for i, p in enumerate(TOKENS)}, 16), ("bad", "good"),
        [{"trained": "poisoned"}],
    )


def test_a_texts_loss_does_not_depend_on_its_neighbours_or_its_padding():
    victim = make_victim()
    together = max_entropy(victim.model, victim.tokenizer(TRAIN))["entropy"]
    assert together.shape == (11,) and together.unique().numel() > 5
    for i, x in enumerate(TRAIN):
        assert max_entropy(victim.model, victim.tokenizer([x]))["entropy"].item() == pytest.approx(
            together[i].item(), abs=1e-6
        )
    order = [3, 9, 0, 5]
    assert torch.allclose(
        max_entropy(victim.model, victim.tokenizer([TRAIN[i] for i in order]))["entropy"], together[order], atol=1e-6
    )


def test_labels_do_not_matter():
    victim = make_victim()
    other = [replace(x, label=1 - x.label) for x in TRAIN]
    assert torch.equal(
        max_entropy(victim.model, victim.tokenizer(other))["entropy"],
        max_entropy(victim.model, victim.tokenizer(TRAIN))["entropy"],
    )


# ---- the two steps

def weights(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def entropy(ckpt: Checkpoint, rows: Examples = TRAIN) -> float:
    with torch.no_grad():
        return -max_entropy(ckpt.model, ckpt.tokenizer(rows))["entropy"].mean().item()


class Run:
    """One run, with everything that it lets others see."""

    def __init__(
        self, settings: MEFT = SETTINGS, seed: int = 0, victim: Checkpoint | None = None, train=TRAIN,
        validation=VALIDATION, **more,
    ):
        self.victim, self.log, self.seen = victim or make_victim(), [], []
        self.before = weights(self.victim.model)
        self.result = meft(
            self.victim, train, validation, settings, seed=seed, log=self.log.append, on_stage=self.on_stage, **more
        )

    def on_stage(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        self.seen.append((name, ckpt, weights(ckpt.model), seconds))


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def test_the_victim_stays_as_it_was(run):
    assert equal(run.before, weights(run.victim.model)) and run.victim.history == [{"trained": "poisoned"}]
    assert run.victim.labels == ("bad", "good") and not run.victim.model.training
    kept = Run(replace(SETTINGS, keep_head=True))
    assert equal(kept.before, weights(kept.victim.model)) and len(kept.victim.history) == 1


def test_the_steps_are_shown_and_the_first_is_not_touched_by_the_second(run):
    assert [name for name, *_ in run.seen] == ["max-entropy", "MEFT"] and all(seconds > 0 for *_, seconds in run.seen)
    (_, theta, then, _), (_, f, last, _) = run.seen
    assert equal(weights(theta.model), then) and f is run.result and not equal(then, last)


@pytest.mark.parametrize("seed, dtype", [(0, torch.float32), (3, torch.float32), (0, torch.bfloat16)])
def test_it_is_these_two_fits(seed, dtype):
    """Bit for bit: a new head, passes of the one loss, then of the other; neither with weight decay."""
    run, scores, same = Run(seed=seed, dtype=dtype), [], {"seed": seed, "dtype": dtype}
    tokenizer, encoded = run.victim.tokenizer, run.victim.tokenizer.encode(TRAIN)
    theta = checkpoint.with_head(checkpoint.headless(run.victim), ("bad", "good"), seed + 1)
    fit(theta.model, tokenizer, encoded, max_entropy, Schedule(3e-3, epochs=2, batch_size=4, weight_decay=0.0), **same)
    assert equal(weights(theta.model), run.seen[0][2])

    def score(model):
        scores.append(accuracy(model, tokenizer, VALIDATION))
        return scores[-1]

    fit(
        theta.model, tokenizer, encoded, cross_entropy, Schedule(3e-3, epochs=3, batch_size=4, weight_decay=0.0),
        score=score, **same,
    )
    assert len(scores) == 3 and equal(weights(theta.model), weights(run.result.model))


def test_the_best_epoch_on_validation_comes_back():
    """On rows whose labels are the other way round a model is the worse the more it has learnt: an early epoch is the
    best."""
    settings = replace(SETTINGS, lr=2e-2, epochs=6)
    for validation in (VALIDATION, FLIPPED):
        done, scores = Run(settings, validation=validation), []
        again = checkpoint.copy(done.seen[0][1])
        fit(again.model, again.tokenizer, again.tokenizer.encode(TRAIN), cross_entropy, settings.schedule, seed=0,
            score=lambda model: scores.append(accuracy(model, again.tokenizer, validation)) or 0.0)
        assert accuracy(done.result.model, done.result.tokenizer, validation) == max(scores)
    assert scores[-1] < max(scores)


def test_the_first_step_raises_the_entropy():
    """A classifier that is sure of its answers, and of wrong ones, becomes unsure of all of them."""
    sure = make_victim(std=1.0)
    done = Run(replace(SETTINGS, keep_head=True, lr=2e-2, entropy_epochs=8), victim=sure)
    theta = done.seen[0][1]
    assert entropy(sure) < 0.5 and entropy(theta) > 0.6 and entropy(theta, VALIDATION) > 0.55          # ln 2 is 0.693
    terms = [entry["terms"]["entropy"] for entry in done.log if entry["stage"] == "max-entropy"]
    assert terms[-1] < terms[0] < 0


def test_no_label_enters_the_first_step(run):
    other = Run(train=TRAIN.like(replace(x, label=1 - x.label) for x in TRAIN))
    assert equal(other.seen[0][2], run.seen[0][2]) and not equal(other.seen[1][2], run.seen[1][2])


def test_the_log_has_each_term_and_adds_up(run):
    # 11 rows in batches of 4
    assert [entry["stage"] for entry in run.log] == ["max-entropy"] * 6 + ["MEFT"] * 9
    for entry in run.log:
        (term,) = entry["terms"]
        assert term == ("entropy" if entry["stage"] == "max-entropy" else "cls")
        assert entry["total"] == pytest.approx(entry["weights"][term] * entry["terms"][term], rel=1e-5)
    assert [sum(e["rows"] for e in run.log if e["stage"] == name) for name in ("max-entropy", "MEFT")] == [22, 33]
    assert [max(e["lr"] for e in run.log if e["stage"] == name) for name in ("max-entropy", "MEFT")] == [3e-3, 3e-3]


def test_the_head_is_new_unless_it_is_kept():
    """With steps too small to move a weight, what comes back is what it began with."""
    settings, victim = replace(SETTINGS, lr=1e-20), make_victim()
    renewed = checkpoint.with_head(checkpoint.headless(victim), ("bad", "good"), 4)
    for keep_head, start in ((False, renewed), (True, victim)):
        done = Run(replace(settings, keep_head=keep_head), seed=3)
        assert all(
            torch.allclose(done.seen[i][2][name], tensor, atol=1e-12)
            for i in (0, 1)
            for name, tensor in start.model.state_dict().items()
        )
    assert not torch.equal(renewed.model.classifier.weight, victim.model.classifier.weight)


def test_an_encoder_gets_a_head_for_the_classes_of_the_rows():
    encoder = checkpoint.headless(make_victim())
    done = Run(victim=encoder)
    assert done.result.labels == ("bad", "good") and done.result.model.config.labels == 2 and encoder.labels == ()
    assert equal(weights(done.result.model), weights(Run().result.model))              # the old head left no trace
    three = Run(victim=encoder, train=Examples(TRAIN, ("bad", "good", "other")))
    assert three.result.labels == ("bad", "good", "other") and len(three.result.model.classifier.bias) == 3
    fails(
        lambda: meft(encoder, TRAIN, VALIDATION, replace(SETTINGS, keep_head=True)), "keep_head", "no classifier",
        "leave it out",
    )


def test_the_history_names_the_mitigation(run):
    first, *_, last = run.result.history
    assert first == {"trained": "poisoned"}
    assert last == {"mitigation": "meft", "clean_rows": 11, "validation_rows": 9, "seed": 0, **asdict(SETTINGS)}


def test_the_same_seed_gives_the_same_bits_and_another_does_not(run):
    again, other = Run(), Run(seed=1)
    assert equal(weights(run.result.model), weights(again.result.model)) and run.log == again.log
    assert not equal(weights(run.result.model), weights(other.result.model))


def test_the_global_random_state_is_left_as_it_was():
    victim, before = make_victim(), torch.get_rng_state()
    Run(victim=victim)
    assert torch.equal(before, torch.get_rng_state())


def test_in_bfloat16_the_weights_stay_float32():
    done = Run(dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in done.result.model.parameters())
    assert all(math.isfinite(entry["total"]) for entry in done.log) and done.log != Run().log
    assert not done.result.model.training


# ---- refusals

@pytest.mark.parametrize(
    "values, words",
    [
        ({"entropy_epochs": 0}, ["entropy_epochs is 0", "ft"]), ({"entropy_epochs": -1}, ["entropy_epochs is -1"]),
        ({"epochs": 0}, ["epochs is 0"]), ({"batch_size": 0}, ["batch_size is 0"]),
        ({"lr": 0.0}, ["learning rate of 0.0"]), ({"lr": -1.0}, ["-1.0"]),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: MEFT(**values), *words)


def test_no_validation_rows_are_refused():
    fails(lambda: meft(make_victim(), TRAIN, VALIDATION.like([]), SETTINGS), "no validation rows", "dev")


def test_the_papers_numbers():
    assert asdict(MEFT()) == {"entropy_epochs": 2, "lr": 2e-5, "epochs": 3, "batch_size": 32, "keep_head": False}
    assert MEFT().schedule.weight_decay == 0.0
