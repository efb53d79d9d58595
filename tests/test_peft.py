"""Parameter-efficient training: what is frozen and what trains, the epoch that comes back, and that each method
learns."""

import math
import re
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from conftest import fails, rows
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cleantrain.peft import PEFT, train_peft
from minibd.cli import settings_of
from minibd.mitigations.finetune import finetune
from minibd.models.encoder import Encoder
from minibd.models.llama import Llama, LlamaConfig
from minibd.predict import accuracy, predict
from minibd.records import Examples
from minibd.train import Schedule, cross_entropy

TRAIN, VALIDATION = rows(40, 0, "train"), rows(12, 1, "dev")
METHODS = ["vanilla", "lora", "adapter", "prefix"]
DELTAS = METHODS[1:]
SHORT = {"bottleneck": 2, "lr": 1e-3, "epochs": 2, "batch_size": 8}
# What each method trains, and the name of its parameters while it does.
TRAINED = {
    "lora": r"blocks\.\d\.(query|value)\.[LR]", "adapter": r"blocks\.\d\.(output|down)\.(down|up)\.(weight|bias)",
    "prefix": r"blocks\.\d\.prefix\.(rows|mlp\.[02]\.(weight|bias))",
}
COUNTS = {
    "lora": 2 * 2 * 2 * (32 + 32), "adapter": 2 * 2 * (2 * 32 * 2 + 2 + 32),
    "prefix": 512 * 2 + 512 * 513 + 2 * 64 * 513,
}

every_method = pytest.mark.parametrize("method", METHODS)
every_delta = pytest.mark.parametrize("method", DELTAS)


def weights(ckpt: Checkpoint) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ckpt.model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def encoder(tiny) -> Checkpoint:
    """One that knows the task's words, as a pre-trained one does; without a head."""
    return checkpoint.headless(finetune(tiny, rows(200, 0, "train"), Schedule(3e-3, 4, 16), seed=9))


def flipped(examples: Examples) -> Examples:
    return examples.like(replace(x, label=1 - x.label) for x in examples)


def own(name: str) -> str:
    """The name of an encoder's own weight, were there no adapter around it."""
    return name.replace(".base.", ".")


def test_the_defaults_are_the_papers():
    settings = PEFT()
    assert (settings.bottleneck, settings.alpha, settings.lr, settings.epochs, settings.batch_size) == (
        8, 32, 2e-5, 10, 32,
    )
    assert (
        settings.schedule == Schedule(2e-5, 10, 32, warmup=0.0, weight_decay=0.0, clip=1.0) and not settings.train_head
    )


def test_the_schedule_is_what_is_set():
    assert PEFT(lr=1.0, epochs=2, batch_size=3, warmup=0.4, weight_decay=0.5).schedule == Schedule(1.0, 2, 3, 0.4, 0.5)


def test_the_flags_are_read_without_importing_torch():
    assert asdict(settings_of("cleantrain.peft", "PEFT")()) == asdict(PEFT())


@pytest.mark.parametrize(
    "given, words",
    [
        ({"method": "bitfit"}, ("bitfit", "vanilla, lora, adapter, prefix")),
        ({"bottleneck": 0}, ("bottleneck is 0", "at least 1")), ({"alpha": 0.0}, ("alpha is 0.0", "above 0")),
        ({"alpha": math.nan}, ("alpha is nan",)), ({"weight_decay": -0.1}, ("weight_decay is -0.1",)),
        ({"lr": 0.0}, ("learning rate of 0.0",)), ({"epochs": 0}, ("epochs is 0",)),
        ({"warmup": 1.5}, ("warmup is 1.5",)),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    fails(lambda: PEFT(**given), *words)


# ---- what is frozen, what trains

@pytest.mark.parametrize("train_head", [False, True])
@every_delta
def test_only_the_deltas_train(tiny, method, train_head):
    seen, before = [], weights(tiny)
    settings = PEFT(method, train_head=train_head, **SHORT)
    tuned = train_peft(tiny, TRAIN, settings, seed=3, on_step=lambda model, step: seen.append({
        name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}))
    head = {"pooler.weight", "pooler.bias", "classifier.weight", "classifier.bias"}
    assert len(seen) == 2 * 5 and all(names == seen[0] for names in seen)
    inserted = set(seen[0]) - head
    assert (
        inserted
        and all(re.fullmatch(TRAINED[method], name) for name in inserted)
        and (head <= set(seen[0])) == train_head
    )
    assert {name.split(".")[1] for name in inserted} == {"0", "1"}  # in both layers
    assert tuned.history[-1]["trained_numbers"] == COUNTS[method] + (32 * 32 + 32 + 2 * 32 + 2) * train_head
    start, end = (
        weights(checkpoint.new_classifier(tiny, TRAIN.labels, 3)), {own(name): t for name, t in weights(tuned).items()},
    )
    changed = {name for name in start if not torch.equal(start[name], end[name])}
    merged = (
        {f"blocks.{i}.{name}.weight" for i in range(2) for name in ("query", "value")} if method == "lora" else set()
    )
    assert changed == merged | (head if train_head else set())
    assert equal(weights(tiny), before) and tiny.history == [] and not tuned.model.training


@pytest.mark.parametrize("method", ["adapter", "prefix"])
def test_every_delta_moves(tiny, method):
    still, moved = (weights(train_peft(tiny, TRAIN, PEFT(method, **SHORT | {"lr": lr}))) for lr in (1e-20, 1e-3))
    for name in moved:
        assert torch.equal(moved[name], still[name]) != bool(re.fullmatch(TRAINED[method], name)), name


def test_lora_weighs_alpha_over_rank_and_comes_back_as_a_plain_model(tiny, tmp_path):
    """Of one step of training dW is alpha / r R L, and the step of R, from 0, is lr in every number (Adam's first)."""
    once = {"bottleneck": 2, "lr": 1e-3, "epochs": 1, "batch_size": 40}
    start = weights(checkpoint.new_classifier(tiny, TRAIN.labels, 0))
    seen = {}
    tuned = train_peft(tiny, TRAIN, PEFT("lora", alpha=6.0, **once), on_step=lambda model, step: seen.update(
        {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}))
    assert weights(tuned).keys() == start.keys() and not any(hasattr(block.query, "L") for block in tuned.model.blocks)
    for at in ("blocks.0.query", "blocks.1.value"):
        R, L = seen[f"{at}.R"], seen[f"{at}.L"]
        assert R.abs().max().item() == pytest.approx(1e-3, rel=0.05)
        assert torch.allclose(weights(tuned)[f"{at}.weight"] - start[f"{at}.weight"], 6.0 / 2 * R @ L, atol=1e-7)
    checkpoint.save(tuned, tmp_path / "merged")
    assert predict(checkpoint.load(tmp_path / "merged").model, tiny.tokenizer, VALIDATION) == predict(
        tuned.model, tiny.tokenizer, VALIDATION
    )


def test_vanilla_is_fine_tuning_with_a_new_head(tiny, monkeypatch):
    monkeypatch.setattr(Encoder, "trim", True)                   # the same dropout masks for both
    settings, bare = PEFT("vanilla", **SHORT), checkpoint.headless(tiny)
    for validation in (None, VALIDATION):
        tuned = train_peft(bare, TRAIN, settings, validation=validation, seed=2)
        assert equal(
            weights(tuned),
            weights(finetune(bare, TRAIN, settings.schedule, validation=validation, keep_head=False, seed=2)),
        )
    assert tuned.history[-1]["trained_numbers"] == sum(p.numel() for p in tiny.model.parameters())


@every_method
def test_whoever_trains_the_result_next_trains_all_of_it(tiny, method):
    tuned = train_peft(tiny, TRAIN, PEFT(method, **SHORT | {"epochs": 1}))
    assert all(p.requires_grad for p in tuned.model.parameters())
    again = finetune(tuned, TRAIN, Schedule(1e-3, 1, 8))
    assert not torch.equal(again.model.embeddings.word.weight, tuned.model.embeddings.word.weight)


def test_an_encoder_gets_a_head_for_the_classes_of_the_rows(tiny):
    encoder = checkpoint.headless(tiny)
    tuned = train_peft(encoder, Examples(TRAIN, ("a", "b", "c")), PEFT("adapter", **SHORT))
    assert tuned.labels == ("a", "b", "c") and len(tuned.model.classifier.bias) == 3 and encoder.labels == ()
    assert torch.equal(
        tuned.model.classifier.weight, checkpoint.with_head(encoder, ("a", "b", "c"), 1).model.classifier.weight
    )


@every_method
def test_a_llama_with_two_numbers(tiny, method):
    """The paper's bottleneck for it, and its classifier of two layers, 16 wide."""
    config = LlamaConfig(vocab=tiny.model.config.vocab, hidden=16, layers=2, heads=4, kv_heads=2, ffn=24, positions=48)
    llama = Checkpoint(
        Llama(config).init_weights(torch.Generator().manual_seed(0)).eval(), tiny.tokenizer, tiny.labels, []
    )
    tuned = train_peft(llama, TRAIN, PEFT(method, **SHORT))
    assert tuned.history[-1]["trained_numbers"] == {
        "vanilla": sum(p.numel() for p in llama.model.parameters()) + 16 * 16, "lora": 2 * 2 * (16 + 16 + 16 + 8),
        "adapter": 2 * 2 * (2 * 16 * 2 + 2 + 16), "prefix": 512 * 2 + 512 * 513 + 2 * 16 * 513}[method]


# ---- the training

@every_method
def test_the_same_seed_gives_the_same_bits_and_another_does_not(tiny, method):
    state = torch.get_rng_state()
    one, again, other = (weights(train_peft(tiny, TRAIN, PEFT(method, **SHORT), seed=seed)) for seed in (1, 1, 2))
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_the_deltas_start_by_the_seed(tiny):
    """Not only the head and the batches are another."""
    still = {"bottleneck": 2, "lr": 1e-20, "epochs": 1}
    one, other = (weights(train_peft(tiny, TRAIN, PEFT("adapter", **still), seed=seed)) for seed in (1, 2))
    assert not torch.allclose(one["blocks.0.output.down.weight"], other["blocks.0.output.down.weight"], atol=1e-4)


both_labellings = pytest.mark.parametrize(
    "labels", [lambda examples: examples, flipped], ids=["as they are", "flipped"]
)


@both_labellings
@pytest.mark.parametrize("method, more", [("vanilla", {"lr": 1e-3}), ("lora", {}), ("adapter", {}),
                                          ("prefix", {"lr": 3e-3, "train_head": True})])
def test_each_method_learns(encoder, method, more, labels):
    """Whatever the head's start, one of the two labellings contradicts it: the deltas have to turn the hidden state
    round.

    A prefix beside a frozen head cannot, in a model so small.
    """
    train, test = (labels(rows(n, seed, "some")) for n, seed in ((200, 0), (60, 2)))
    tuned = train_peft(
        encoder, train, PEFT(method, **{"lr": 1e-2, "epochs": 3, "batch_size": 16} | more),
        validation=labels(VALIDATION),
    )
    assert accuracy(tuned.model, encoder.tokenizer, test) > 0.9


@both_labellings
def test_a_prefix_beside_a_frozen_head_learns_what_it_can(encoder, labels):
    train, losses = labels(rows(200, 0, "some")), []
    for lr in (1e-20, 2e-3):
        tuned = train_peft(encoder, train, PEFT("prefix", lr=lr, epochs=5, batch_size=16))
        with torch.no_grad():
            losses.append(cross_entropy(tuned.model, tuned.tokenizer(train))["cls"].mean().item())
    assert losses[1] < losses[0] - 0.001


@pytest.mark.parametrize("method, more", [("vanilla", {"lr": 1e-5}), ("lora", {"lr": 1e-3}), ("adapter", {"lr": 3e-3}),
                                          ("prefix", {"lr": 3e-4, "train_head": True})])
def test_validation_chooses_the_epoch(encoder, method, more):
    """On rows whose labels are the other way round a model is the worse the more it has learnt: an early epoch is the
    best."""
    settings, contrary, scores = PEFT(method, epochs=8, batch_size=20, **more), flipped(TRAIN), []

    def on_step(model, step):
        if step % 2 == 0:
            scores.append(accuracy(model, encoder.tokenizer, VALIDATION))
            model.train()
    last = train_peft(encoder, contrary, settings, on_step=on_step)
    best = train_peft(encoder, contrary, settings, validation=VALIDATION)
    assert len(scores) == 8 and scores[-1] < max(scores)
    assert accuracy(last.model, encoder.tokenizer, VALIDATION) == scores[-1] and accuracy(
        best.model, encoder.tokenizer, VALIDATION
    ) == max(scores)


@every_method
def test_the_log_and_the_looks_are_fits(tiny, method):
    log, steps = [], []
    settings = PEFT(method, **SHORT | {"warmup": 0.5})
    train_peft(tiny, TRAIN, settings, log=log.append, on_step=lambda model, step: steps.append(step))
    assert steps == list(range(1, 11)) and [entry["stage"] for entry in log] == [method] * 10
    assert all(set(entry["terms"]) == {"cls"} for entry in log)
    assert [entry["lr"] for entry in log] == pytest.approx(
        [1e-3 * settings.schedule.rate(step, 10) for step in range(10)]
    )


@every_method
def test_in_bfloat16_the_weights_stay_float32(tiny, method):
    log = []
    settings = PEFT(method, **SHORT)
    tuned = train_peft(tiny, TRAIN, settings, dtype=torch.bfloat16, log=log.append)
    assert all(p.dtype == torch.float32 for p in tuned.model.parameters()) and all(
        math.isfinite(entry["total"]) for entry in log
    )
    assert not equal(weights(tuned), weights(train_peft(tiny, TRAIN, settings)))


@pytest.mark.parametrize("validation", [None, VALIDATION])
def test_the_history_names_the_method_and_its_numbers(tiny, validation):
    settings = PEFT("adapter", **SHORT)
    (last,) = train_peft(tiny, TRAIN, settings, validation=validation, seed=1).history
    assert last == {
        "mitigation": "peft", "rows": 40, "validation_rows": len(validation or ()), "seed": 1,
        "trained_numbers": COUNTS["adapter"], **asdict(settings),
    }


def test_no_rows_to_train_on_or_to_choose_by_are_refused(tiny):
    fails(lambda: train_peft(tiny, TRAIN.like([]), PEFT(**SHORT)), "no rows to train on")
    fails(lambda: train_peft(tiny, TRAIN, PEFT(**SHORT), validation=TRAIN.like([])), "no validation rows", "dev")
