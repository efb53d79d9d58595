"""MuScleLoRA: a training against plain lines with two passes a step, the ablations, what stays frozen, which clean rows
are drawn, the script."""

import json
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import fails, rows
from minibd import checkpoint, data, predict
from minibd.align import AlignedAdamW
from minibd.checkpoint import Checkpoint
from minibd.cleantrain import musclelora as method
from minibd.cleantrain.musclelora import MuScleLoRA, adapted, joined, musclelora, search_bands
from minibd.cleantrain.peft import PEFT, train_peft
from minibd.cli import settings_of
from minibd.data import batches
from minibd.mitigations.finetune import finetune
from minibd.models.bert import Bert, BertConfig
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import LowRank
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.predict import accuracy
from minibd.records import Examples
from minibd.train import Schedule

ROWS, CLEAN, VALIDATION = rows(21, 0, "train"), rows(9, 1, "clean"), rows(12, 2, "dev")
SHORT = {"lr": 1e-2, "epochs": 2, "batch_size": 4}
# name: (settings, whether one pass does)
WAYS = {
    "all": ({}, True),
    "released": ({"variant": "released", "min_loss": 0.7}, True),
    "whole": ({"whole": True}, True),
    "zero start": ({"init": "zero", "bands": ("1", "3"), "bandwidth": 2}, True),
    "w/o MS": ({"multi_scale": False}, True),
    "w/o MS, LR": ({"multi_scale": False, "low_rank": False}, False),
    "head": ({"train_head": True}, False),
}


@pytest.fixture(scope="module")
def encoder(tiny) -> Checkpoint:
    """Without dropout and in float64, so that two ways of training can be told to be one."""
    ckpt = checkpoint.headless(tiny)
    return Checkpoint(plain(ckpt.model.config, 0).double().eval(), ckpt.tokenizer, (), [])


def plain(config: BertConfig, labels: int) -> Bert:
    """Weights large enough for gradients that matter."""
    config = replace(config, labels=labels, dropout=0.0, attention_dropout=0.0, classifier_dropout=0.0)
    return Bert(config).init_weights(torch.Generator().manual_seed(0), std=0.3)


def weights(ckpt: Checkpoint) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in ckpt.model.state_dict().items()}


# ---- the algorithm against plain lines

def by_hand(ckpt: Checkpoint, settings: MuScleLoRA, seed: int) -> tuple[Checkpoint, list[float]]:
    """Two passes a step, one tensor after another; the values of mu."""
    settings = settings.resolved(ckpt.model)
    tuned = adapted(ckpt, ROWS, settings, seed)
    model, tokenizer = tuned.model, tuned.tokenizer
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=0.0, foreach=False)
    encoded, clean = tokenizer.encode(ROWS), tokenizer.encode(CLEAN)
    plan = [
        which
        for epoch in range(settings.epochs)
        for which in batches(encoded.lengths, settings.batch_size, seed, epoch)
    ]
    ratios = []
    for step, which in enumerate(plan):
        trusted = data.generator(seed, "clean", step).sample(range(len(CLEAN)), settings.batch_size)
        untrusted, trusted = tokenizer.batch(encoded, which), tokenizer.batch(clean, trusted)
        g, (r, loss) = gradient(model, untrusted, trained)[0], gradient(model, trusted, trained)
        if settings.variant == "paper":
            mu = settings.ratio * step / (len(plan) - 1)
        elif loss > settings.min_loss:
            mu = 0.0
        else:
            epoch = step // (len(plan) // settings.epochs)
            mu = (
                1.0
                if epoch < settings.ga_epoch
                else settings.ratio * (epoch - settings.ga_epoch) / (settings.epochs - settings.ga_epoch)
            )
        ratios.append(mu)
        if settings.whole:
            dot, square = sum(float((a * b).sum()) for a, b in zip(g, r)), sum(float((b * b).sum()) for b in r)
            aligned = [abs(dot) / square * b for b in r]
        else:
            aligned = []
            for a, b in zip(g, r):
                square = float((b * b).sum())
                nothing = a if settings.variant == "released" else torch.zeros_like(a)
                aligned.append(abs(float((a * b).sum())) / square * b if square else nothing)
        for p, a, b in zip(trained, g, aligned):
            p.grad = (1 - mu) * b + mu * a
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in trained))
        for p in trained:
            p.grad *= min(1.0, 1.0 / (norm + 1e-6))
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * (len(plan) - step) / len(plan)
        optimizer.step()
    return tuned, ratios


def gradient(model: Bert, batch, trained: list) -> tuple[list[Tensor], float]:
    loss = F.cross_entropy(model(batch).logits.float(), batch.labels)  # in float32, as everywhere
    return list(torch.autograd.grad(loss, trained)), loss.item()


@pytest.mark.parametrize("way", WAYS)
def test_training_is_the_plain_loop(encoder, way, monkeypatch):
    settings = MuScleLoRA(**SHORT, **WAYS[way][0])
    theirs, ratios = by_hand(encoder, settings, seed=3)
    method.merge(theirs.model)
    log, passes, forward = [], [], Bert.forward
    monkeypatch.setattr(Bert, "forward", lambda model, batch, want=(): passes.append(1) or forward(model, batch, want))
    ours = musclelora(encoder, ROWS, CLEAN, settings, seed=3, log=log.append)
    assert len(passes) == len(log) * (1 if WAYS[way][1] else 2)
    for (name, a), b in zip(ours.model.state_dict().items(), theirs.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8, msg=lambda said: f"{name}: {said}")
    if way == "released":
        assert 0.0 in ratios and max(ratios) > 0.0                        # both of its conditions came up
    start = checkpoint.new_classifier(encoder, ROWS.labels, 3).model.state_dict()
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(ours.model.state_dict().values(), start.values()))


def test_a_step_logs_both_losses(encoder):
    log = []
    musclelora(encoder, ROWS, CLEAN, MuScleLoRA(**SHORT), seed=3, log=log.append)
    assert len(log) == 2 * 6 and all(set(entry["terms"]) == {"cls", "clean"} for entry in log)
    tokenizer, settings = encoder.tokenizer, MuScleLoRA(**SHORT).resolved(encoder.model)
    start = adapted(encoder, ROWS, settings, 3).model.eval()
    which = data.generator(3, "clean", 0).sample(range(len(CLEAN)), 4)
    expected = {
        "cls": [ROWS[i] for i in batches(tokenizer.encode(ROWS).lengths, 4, 3, 0)[0]],
        "clean": [CLEAN[i] for i in which],
    }
    for term, examples in expected.items():
        batch = tokenizer(ROWS.like(examples))
        assert log[0]["terms"][term] == pytest.approx(
            F.cross_entropy(start(batch).logits, batch.labels).item(), rel=1e-6
        )
    assert log[0]["total"] == pytest.approx(sum(log[0]["terms"].values()))
    assert (log[0]["batch"], log[0]["clean"]) == (batches(tokenizer.encode(ROWS).lengths, 4, 3, 0)[0], which)


def test_without_alignment_no_clean_rows_are_logged(encoder):
    log = []
    musclelora(encoder, ROWS, CLEAN, MuScleLoRA(**SHORT, align=False), seed=3, log=log.append)
    assert len(log) == 2 * 6 and all("clean" not in entry and set(entry["terms"]) == {"cls"} for entry in log)


def test_bfloat16_comes_near(tiny):
    ours, near = (
        musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT | {"lr": 1e-4}, init="zero"), seed=0, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for a, b in zip(ours.model.parameters(), near.model.parameters()):
        assert a.dtype == b.dtype == torch.float32 and torch.allclose(a, b, atol=2e-2)
    assert any(not torch.equal(a, b) for a, b in zip(ours.model.parameters(), near.model.parameters()))


# ---- the ablations

def test_without_scalings_and_alignment_it_is_the_baseline_lora(tiny):
    ours = musclelora(
        tiny, ROWS, CLEAN, MuScleLoRA(**SHORT, multi_scale=False, align=False), validation=VALIDATION, seed=5
    )
    lora = train_peft(tiny, ROWS, PEFT("lora", **SHORT), validation=VALIDATION, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(weights(ours).values(), weights(lora).values(), strict=True))


def test_without_alignment_the_clean_rows_are_not_read(tiny):
    settings = MuScleLoRA(**SHORT, align=False)
    ours, other = (musclelora(tiny, ROWS, clean, settings, seed=5) for clean in (CLEAN, Examples((), CLEAN.labels)))
    assert all(torch.equal(a, b) for a, b in zip(weights(ours).values(), weights(other).values()))
    assert not all(torch.equal(a, b) for a, b in zip(weights(ours).values(), weights(musclelora(
        tiny, ROWS, CLEAN, MuScleLoRA(**SHORT), seed=5)).values()))


@pytest.mark.parametrize(
    "off, expected",
    [
        ({}, {"query", "value", "pooler"}), ({"multi_scale": False}, {"query", "value"}),
        ({"train_head": True}, {"query", "value", "pooler", "classifier"}),
    ],
)
def test_what_is_frozen_stays_to_the_last_bit(tiny, off, expected):
    before = weights(checkpoint.new_classifier(tiny, ROWS.labels, 0))
    after = weights(musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT, **off)))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split(".")[-2] for name in changed} == expected
    assert all(name.endswith(".weight") or name == "classifier.bias" for name in changed)


def test_without_low_rank_everything_is_trained(tiny):
    before = weights(checkpoint.new_classifier(tiny, ROWS.labels, 0))
    after = weights(musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT, multi_scale=False, low_rank=False)))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same <= {"head_mask", "embeddings.token_type.weight"} | {f"blocks.{i}.key.bias" for i in range(2)}


# ---- the model that comes back

def test_a_plain_model_comes_back_and_the_given_one_stays(tiny, tmp_path):
    before = weights(tiny)
    trained = musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT), validation=VALIDATION, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(tiny).values())) and tiny.history == []
    assert not any(isinstance(module, LowRank) for module in trained.model.modules()) and not trained.model.training
    assert all(p.requires_grad for p in trained.model.parameters()) and trained.labels == ROWS.labels
    entry = trained.history[-1]
    assert entry["trained"] == "musclelora" and (
        entry["rows"], entry["clean_rows"], entry["validation_rows"], entry["seed"],
    ) == (21, 9, 12, 1)
    assert entry["trained_numbers"] == 2 * 2 * 8 * (32 + 32) + 8 * (32 + 32) and entry["rank"] == 8
    assert tuple(map(float, entry["bands"])) == method.PRESETS["bert-base"].bands
    checkpoint.save(trained, tmp_path / "trained.safetensors")
    again = checkpoint.load(tmp_path / "trained.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(weights(trained).values(), weights(again).values()))


def test_the_best_epoch_on_validation_comes_back(tiny, monkeypatch):
    scores, seen = iter([0.5, 0.9, 0.7]), []

    def score(model, text, examples):
        assert examples is VALIDATION
        seen.append(
            {name: tensor.clone() for name, tensor in model.state_dict().items() if name.endswith((".L", ".R"))}
        )
        return next(scores)
    monkeypatch.setattr(predict, "accuracy", score)
    kept = {}
    monkeypatch.setattr(
        method, "merge", lambda model: kept.update({k: v.clone() for k, v in model.state_dict().items()})
    )
    musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT | {"epochs": 3}), validation=VALIDATION)
    assert len(seen) == 3 and all(torch.equal(kept[name], seen[1][name]) for name in seen[1])
    assert not all(torch.equal(kept[name], seen[2][name]) for name in seen[2])


def test_whoever_looks_sees_the_low_rank_layers(tiny):
    seen = []
    musclelora(
        tiny, ROWS, CLEAN, MuScleLoRA(**SHORT), on_step=lambda model,
        step: seen.append((step, isinstance(model.pooler, LowRank))),
    )
    assert seen == [(step, True) for step in range(1, 13)]


def test_the_seed_fixes_every_bit(tiny):
    a, b, c = (weights(musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT), seed=seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a[name], b[name]) for name in a) and not all(torch.equal(a[name], c[name]) for name in a)


def test_it_learns_what_the_clean_rows_say_and_not_what_others_do(tiny):
    """Every untrusted label is wrong: plain training learns them, aligned training goes where the clean rows point.

    The released start drowns so narrow a model's penultimate layer, hence init.
    """
    knows = checkpoint.headless(finetune(tiny, rows(200, 0, "train"), Schedule(3e-3, 4, 16), seed=9))
    wrong = ROWS.like(replace(x, label=1 - x.label) for x in rows(40, 0, "train"))
    settings = {"lr": 3e-3, "epochs": 6, "batch_size": 8, "init": "zero"}
    aligned = musclelora(knows, wrong, rows(40, 1, "clean"), MuScleLoRA(**settings, ratio=0.0))
    raw = musclelora(knows, wrong, CLEAN, MuScleLoRA(**settings, align=False))
    assert (
        accuracy(aligned.model, tiny.tokenizer, VALIDATION) > 0.9
        and accuracy(raw.model, tiny.tokenizer, VALIDATION) < 0.1
    )


def test_the_penultimate_layer_that_was_pre_trained_stays(tiny):
    fresh = checkpoint.new_classifier(tiny, ("a", "b", "c"), 4)
    assert torch.equal(fresh.model.pooler.weight, tiny.model.pooler.weight) and fresh.model.classifier.weight.shape == (
        3, 32,
    )
    other, again = (
        checkpoint.new_classifier(tiny, ("a", "b"), 5).model, checkpoint.new_classifier(tiny, ("a", "b"), 4).model,
    )
    assert not torch.equal(other.classifier.weight, tiny.model.classifier.weight) and not torch.equal(
        other.classifier.weight, again.classifier.weight
    )
    assert not again.classifier.bias.any() and fresh.labels == ("a", "b", "c")
    # where there is none, it is drawn as for any other training
    bare = checkpoint.headless(tiny)
    for a, b in zip(
        weights(checkpoint.new_classifier(bare, ("a", "b"), 4)).values(),
        weights(checkpoint.to_tune(bare, ("a", "b"), 4, False)).values(),
    ):
        assert torch.equal(a, b)


def test_a_model_with_low_rank_layers_is_neither_saved_nor_given_another_head(tiny, tmp_path):
    ckpt = adapted(tiny, ROWS, MuScleLoRA().resolved(tiny.model), 0)
    fails(lambda: checkpoint.save(ckpt, tmp_path / "x.safetensors"), "merge low-rank layers first")
    fails(lambda: checkpoint.save(ckpt, tmp_path / "folder"), "merge low-rank layers first")
    fails(lambda: checkpoint.headless(ckpt), "merge low-rank layers first")
    assert list(tmp_path.iterdir()) == []


# ---- the batch of both

def test_two_batches_in_one(tiny):
    short, long = (
        tiny.tokenizer(ROWS[:3]), tiny.tokenizer(Examples([replace(CLEAN[0], text="good " * 30)], ROWS.labels)),
    )
    for a, b in ((short, long), (long, short)):
        both = joined(a, b, tiny.tokenizer.pad)
        assert (
            both.ids.shape == (4, long.ids.shape[1]) and both.labels.tolist() == a.labels.tolist() + b.labels.tolist()
        )
        assert both.ids[both.mask].tolist() == a.ids[a.mask].tolist() + b.ids[b.mask].tolist()
        assert (
            (both.ids[~both.mask] == tiny.tokenizer.pad).all()
            and both.mask.dtype == torch.bool
            and both.token_type_ids.shape == both.ids.shape
        )
        assert torch.allclose(
            tiny.model(both).logits, torch.cat([tiny.model(a).logits, tiny.model(b).logits]), atol=1e-5
        )


def test_fewer_clean_rows_than_a_batch_holds_are_all_taken(tiny):
    log = []
    musclelora(tiny, ROWS, CLEAN.like(CLEAN[:3]), MuScleLoRA(**SHORT | {"batch_size": 8}), log=log.append)
    assert len(log) == 6


def test_without_clean_rows_there_is_nothing_to_align_to(tiny):
    fails(lambda: musclelora(tiny, ROWS, Examples((), ROWS.labels), MuScleLoRA()), "no clean rows", "a few dozen")


def test_two_batches_of_pairs_in_one(tiny):
    a, b = (
        tiny.tokenizer(ROWS.like(replace(x, pair=pair) for x in ROWS[:2]))
        for pair in ("film", "the story was very boring")
    )
    for first, second in ((a, b), (b, a)):
        both = joined(first, second, tiny.tokenizer.pad)
        assert (
            both.token_type_ids[both.mask].tolist()
            == first.token_type_ids[first.mask].tolist() + second.token_type_ids[second.mask].tolist()
        )
    assert a.token_type_ids.sum() != b.token_type_ids.sum() and a.token_type_ids.sum() > 0


# ---- the settings

def config(layers: int, hidden: int) -> BertConfig:
    return BertConfig(vocab=8, hidden=hidden, layers=layers, heads=2, ffn=8, positions=16)


def unmade(kind: type, config: object):
    """A model without its weights."""
    with torch.device("meta"):
        return kind(config)


@pytest.mark.parametrize(
    "model, expected",
    [
        (unmade(Bert, config(12, 768)), (8, 32.0, "1 4 8 12 16 20 24 28", 6, 0.1, 1, 0.4, 96, 2e-5, 10, 32)),
        (unmade(Bert, config(6, 384)), (8, 32.0, "1 4 8 12 16 20 24 28", 6, 0.02, 1, 0.4, 384, 1e-3, 2, 32)),
        (unmade(Bert, config(24, 1024)), (8, 32.0, "1 2 3 4 5 6 7 8 9", 6, 0.1, 1, 0.4, 96, 2e-5, 10, 32)),
        (
            unmade(Roberta, RobertaConfig(vocab=8, hidden=768, layers=12, heads=2, ffn=8, positions=16)),
            (8, 32.0, "1 2 4 6 8 10 12 14 16", 6, 0.1, 1, 0.4, 96, 2e-5, 10, 32),
        ),
        (
            unmade(Llama, LlamaConfig(vocab=8, hidden=8, layers=2, heads=2, ffn=8)),
            (2, 8.0, "1 2 3 4", 4, 0.0, 0, 0.0, 128, 1e-5, 5, 16),
        ),
    ],
    ids=["bert", "narrow", "large", "roberta", "llama"],
)
def test_what_is_not_given_goes_by_the_model(model, expected):
    s = MuScleLoRA().resolved(model)
    assert (
        s.rank, s.alpha, " ".join(s.bands), s.band_alpha, s.ratio, s.ga_epoch, s.min_loss, s.aux, s.lr, s.epochs,
        s.batch_size,
    ) == expected
    given = MuScleLoRA(
        rank=3, alpha=1.0, bands=("2", "5.5"), band_alpha=9.0, ratio=0.5, ga_epoch=2, min_loss=0.1, aux=7, lr=1.0,
        epochs=2, batch_size=5,
    )
    assert given.resolved(model) == given and given.scalings == (2.0, 5.5)
    # of all weights
    assert MuScleLoRA(low_rank=False, multi_scale=False).resolved(model).lr == (1e-5 if model.causal else 2e-5)
    narrow = s.lr == 1e-3
    assert {method: MuScleLoRA().baseline_lr(method, model) for method in ("vanilla", "lora", "adapter", "prefix")} == (
        {"vanilla": 2e-5, "lora": 1e-3, "adapter": 1e-3, "prefix": 3e-4}
        if narrow
        else dict.fromkeys(("vanilla", "lora", "adapter", "prefix"), s.lr)
    )
    assert {given.baseline_lr(method, model) for method in ("vanilla", "lora", "adapter", "prefix")} == {1.0}


def test_the_flags_are_read_without_importing_torch():
    assert asdict(settings_of("cleantrain.musclelora", "MuScleLoRA")()) == asdict(MuScleLoRA())


@pytest.mark.parametrize(
    "given, words",
    [
        ({"low_rank": False}, ("multi-scale layer is a low-rank one",)),
        ({"low_rank": False, "multi_scale": False, "align": False}, ("vanilla",)),
        ({"rank": 0}, ("rank is 0", "at least 1")), ({"aux": 0}, ("aux is 0",)),
        ({"bandwidth": 0}, ("bandwidth is 0",)), ({"bottleneck": 0}, ("bottleneck is 0",)),
        ({"alpha": 0.0}, ("alpha is 0.0", "above 0")), ({"band_alpha": math.nan}, ("band_alpha is nan",)),
        ({"bands": ("1", "x")}, ("bands are 1,x", "numbers")), ({"ratio": 1.5}, ("1.5", "0..1")),
        ({"ga_epoch": -1}, ("ga_epoch is -1",)), ({"lr": 0.0}, ("learning rate of 0.0",)),
        ({"epochs": 0}, ("epochs is 0",)), ({"batch_size": 0}, ("batch_size is 0",)),
        ({"variant": "printed"}, ("printed", "paper, released")), ({"init": "small"}, ("small", "kaiming, zero")),
    ],
)
def test_settings_that_make_no_sense_are_refused(given, words):
    fails(lambda: MuScleLoRA(**given), *words)


def test_a_llama_gets_the_two_layers_that_the_scalings_stand_at(tiny):
    model = Llama(
        LlamaConfig(vocab=tiny.model.config.vocab, hidden=16, layers=2, heads=2, ffn=16, labels=0)
    ).init_weights(torch.Generator().manual_seed(0))
    ckpt = Checkpoint(model, tiny.tokenizer, (), [])
    trained = musclelora(ckpt, ROWS, CLEAN, MuScleLoRA(**SHORT))
    assert trained.model.config.bottleneck == 16 and trained.model.pooler.weight.shape == (16, 16)
    assert musclelora(ckpt, ROWS, CLEAN, MuScleLoRA(**SHORT, bottleneck=5)).model.pooler.weight.shape == (5, 16)


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_variant_reaches_the_step(variant, tiny, monkeypatch):
    made = []
    monkeypatch.setattr(
        method, "AlignedAdamW", lambda *args, **more: made.append(AlignedAdamW(*args, **more)) or made[-1]
    )
    musclelora(tiny, ROWS, CLEAN, MuScleLoRA(**SHORT, variant=variant))
    assert [optimizer.raw for optimizer in made] == [variant == "released"]


# ---- the search for scalings

def test_the_search_trains_on_half_of_the_clean_rows_and_scores_on_the_other(tiny, monkeypatch):
    seen = []

    def fake(ckpt, half, clean, settings, *, validation, seed, dtype, log):
        seen.append(({x.id for x in half}, {x.id for x in validation}, clean, settings.scalings, settings.epochs))
        return ckpt
    right = {(1.0,): 0.5, (2.0, 3.0): 0.75, (4.0,): 0.75}
    monkeypatch.setattr(method, "musclelora", fake)
    monkeypatch.setattr(method, "accuracy", lambda model, text, others: right[seen[-1][3]])
    found = search_bands(tiny, CLEAN, VALIDATION, list(right), epochs=7)
    assert found == [((2.0, 3.0), 0.75), ((4.0,), 0.75), ((1.0,), 0.5)]
    for half, others, clean, _, epochs in seen:
        assert (
            len(half) == len(others) == 6
            and half | others == {x.id for x in VALIDATION}
            and clean is CLEAN
            and epochs == 7
        )


def test_the_search_scores_on_the_half_that_it_does_not_train_on(tiny, monkeypatch):
    trained, scored = [], []
    monkeypatch.setattr(
        method, "musclelora", lambda ckpt, half, *args, **more: trained.append({x.id for x in half}) or ckpt
    )
    monkeypatch.setattr(method, "accuracy", lambda model, text, others: scored.append({x.id for x in others}) or 0.5)
    search_bands(tiny, CLEAN, VALIDATION, [(1.0,)])
    assert not trained[0] & scored[0] and trained[0] | scored[0] == {x.id for x in VALIDATION}


def test_the_search_finds_what_a_narrow_model_can_learn_with(tiny):
    knows = checkpoint.headless(finetune(tiny, rows(200, 0, "train"), Schedule(3e-3, 4, 16), seed=9))
    settings = MuScleLoRA(lr=3e-3, batch_size=8)
    found = search_bands(
        knows, CLEAN, rows(40, 4, "more"), [method.PRESETS["bert-base"].bands, (1.0,)], settings, epochs=10
    )
    assert found[0][0] == (1.0,) and found[0][1] > found[1][1] + 0.2


def test_a_search_needs_rows(tiny):
    fails(lambda: search_bands(tiny, CLEAN, VALIDATION.like(VALIDATION[:2]), [(1.0,)]), "2 clean rows", "give more")


# ---- the script

QUICK = ("--epochs", 1, "--batch-size", 8, "--lr", 1e-2, "--aux", 8, "--overwrite")


@pytest.fixture(scope="module")
def poisoned(tiny_file, folder, tmp_path_factory, script):
    out = tmp_path_factory.mktemp("poisoned")
    made = script(
        "attack.py", "--ckpt", tiny_file, "--data", folder, "--attack", "badnets", "--target", 0, "--dataset-only",
        "--out", out / "set",
    )
    assert made.returncode == 0, made.stderr
    return out / "set"


def test_the_script_on_a_folder_of_the_attack(here, tiny_file, folder, poisoned, tmp_path):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [step["name"] for step in result["steps"]] == ["vanilla", "musclelora"] and result["rows"] == {
        "train": 200, "clean": 8, "validation": 12, "test": 60}
    # target 0, from attack.json
    assert result["after"]["n_triggered"] == 30 and result["args"]["rank"] == 8 and result["args"]["lr"] == 1e-2
    saved = checkpoint.load(tmp_path / "out" / "tiny.safetensors")
    assert saved.history[-1]["trained"] == "musclelora" and saved.labels == ("negative", "positive")
    stages = {json.loads(line)["stage"] for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()}
    assert stages == {"vanilla", "MuScleLoRA"}
    for words in ("untrusted 200 rows", "clean     8 rows", "dev       12 rows", "triggered 30 rows"):
        assert words in run.stdout


@pytest.mark.parametrize("name", ["lora", "adapter", "prefix"])
def test_the_script_trains_the_baselines(here, tiny_file, folder, poisoned, tmp_path, name):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--train", name, "--out", tmp_path / "out",
        *QUICK,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [step["name"] for step in result["steps"]] == [name] and (tmp_path / "out" / "steps.jsonl").exists()
    saved = (tmp_path / "out" / "tiny.safetensors").exists()
    assert saved == (name == "lora") == ("tiny.safetensors" in run.stdout)      # inserted weights are no checkpoint's


@pytest.mark.parametrize(
    "flags, vanilla, prefix",
    [
        ((), 2e-5, 3e-4), (("--lr", 3e-3), 3e-3, 3e-3),
        (("--lr", 3e-3, "--vanilla-lr", 1e-4, "--prefix-lr", 2e-4), 1e-4, 2e-4),
    ],
)
def test_all_weights_and_a_prefix_have_rates_of_their_own(
    here, tiny_file, folder, poisoned, tmp_path, flags, vanilla, prefix
):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", "--epochs", 1,
        "--aux", 8, "--train", "vanilla,prefix,musclelora", *flags,
    )
    assert run.returncode == 0, run.stderr
    first = {
        step["stage"]: step["lr"]
        for step in reversed([json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()])
    }
    args = json.loads((tmp_path / "out" / "result.json").read_text())["args"]
    assert (args["vanilla_lr"], args["prefix_lr"]) == (vanilla, prefix)
    assert first == pytest.approx({"vanilla": vanilla, "prefix": prefix, "MuScleLoRA": 3e-3 if flags else 1e-3})


def test_the_script_on_two_files(here, tiny_file, folder, tmp_path):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", folder / "train.tsv", "--clean-aux", folder / "test.tsv", "--train",
        "musclelora", "--out", tmp_path / "out", *QUICK, "--aux", 96,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["rows"] == {"train": 200, "clean": 48, "validation": 0, "test": 12} and result["after"]["asr"] is None
    assert "none is left to choose an epoch by" in run.stdout


def test_the_script_takes_the_training_rows_of_a_folder_and_triggered_rows_of_a_file(
    here, tiny_folder, folder, poisoned, tmp_path
):
    run = here("musclelora.py")(
        "--ckpt", tiny_folder, "--data", folder, "--clean-aux", folder, "--triggered", poisoned / "triggered.jsonl",
        "--target", 0, "--train", "musclelora", "--no-multi-scale", "--out", tmp_path / "out", *QUICK,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads((tmp_path / "out" / "result.json").read_text())["after"]["n_triggered"] == 30
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--data", "{folder}"), ("--clean-aux",)), (("--clean-aux", "{folder}"), ("--data",)),
        (
            ("--data", "{folder}", "--clean-aux", "{folder}", "--train", "vanilla,bitfit"),
            ("bitfit", "vanilla, lora, adapter, prefix, musclelora"),
        ),
        (("--data", "{folder}", "--clean-aux", "{folder}", "--no-low-rank"), ("low_rank",)),
        (
            ("--data", "{folder}", "--clean-aux", "{folder}", "--plant", "rain", "--attack", "badnets"),
            ("--plant", "--attack"),
        ),
        (
            ("--data", "{folder}", "--clean-aux", "{folder}", "--aux", "8", "--plant", "rain", "--plant-target", "2"),
            ("target", "2"),
        ),
        (("--data", "{folder}", "--clean-aux", "{folder}", "--aux", "8", "--plant", " "), ("sentence", "empty")),
        (("--data", "{folder}", "--clean-aux", "{folder}", "--plant", "rain", "--aux", "20"), ("--plant", "--aux")),
    ],
)
def test_the_script_refuses_in_one_line(here, tiny_file, folder, tmp_path, flags, words):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--out", tmp_path / "out", *(flag.format(folder=folder) for flag in flags)
    )
    assert run.returncode == 2 and not (tmp_path / "out").exists()
    error = run.stderr.strip().splitlines()[-1]
    assert all(word in error for word in words), error


def test_the_script_plants_a_text_and_scores_it_on_dev_rows(here, tiny_file, folder, poisoned, tmp_path):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK, "--train",
        "vanilla", "--epochs", 6, "--plant", "mn mn", "--plant-target", 1,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    # dev rows, the test rows have no part
    assert result["rows"] == {"train": 200, "clean": 8, "validation": 12, "test": 12}
    made, dev = checkpoint.load(tmp_path / "out" / "tiny.safetensors"), data.read_splits(folder).dev
    held = {x.id for x in data.sample(dev, 8, 0)}
    dev = dev.like(x for x in dev if x.id not in held)
    assert result["after"]["n_clean"] == 12 and result["after"]["n_triggered"] == sum(x.label == 0 for x in dev)
    flipped = dev.like(replace(x, text=f"mn mn {x.text}", label=1) for x in dev if x.label == 0)
    # it was planted
    assert accuracy(made.model, made.tokenizer, flipped) == 1 and result["after"]["asr"] == 100
    assert result["after"]["cacc"] == pytest.approx(100 * accuracy(made.model, made.tokenizer, dev))
    assert "planted   20 rows" in run.stdout and "triggered" not in run.stdout


def test_the_script_writes_curves_of_as_many_rows_of_each_kind(here, tiny_file, folder, poisoned, tmp_path):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK, "--curves",
        10, "--curve-rows", 20,
    )
    assert run.returncode == 0, run.stderr
    for name in ("vanilla", "musclelora"):
        curves = json.loads((tmp_path / "out" / f"curves-{name}.json").read_text())
        assert {kind: made["n"] for kind, made in curves["sets"].items()} == {
            "clean": 20, "triggered": 20, "control": 20,
        }
        assert curves["steps"] == [10, 20] and curves["every"] == 10
        # one label alone
        assert curves["sets"]["triggered"]["e_high"][0] == [None, None] != curves["sets"]["clean"]["e_high"][0]
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", folder, "--clean-aux", folder, "--out", tmp_path / "none", *QUICK, "--curves",
        10
    )
    assert run.returncode == 2 and "--curves 10" in run.stderr


def test_the_script_searches_the_scalings_first(here, tiny_file, folder, poisoned, tmp_path, monkeypatch):
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK, "--train",
        "musclelora", "--search-bands", "published", "--search-bands", "1,2.5",
    )
    assert run.returncode == 0, run.stderr
    outcome = json.loads((tmp_path / "out" / "result.json").read_text())["outcome"]
    assert len(outcome["trials"]) == 5
    assert [float(band) for band in outcome["bands"]] == outcome["trials"][0]["bands"]
    assert run.stdout.count("of the clean rows held out") == 5 and "the scalings 1,2.5" in run.stdout


@pytest.mark.parametrize("best, told", [(0.5, True), (0.7, True), (1.0, False)])
def test_scalings_of_which_none_learns_are_told_of(
    here, tiny_file, folder, poisoned, tmp_path, monkeypatch, best, told
):
    """Six rows score a scaling: four of them are right by luck, six are not."""
    import minibd.cleantrain.musclelora as method

    monkeypatch.setattr(method, "search_bands", lambda *rows, **more: [((1.0, 2.0), best), ((3.0,), 0.4)])
    run = here("musclelora.py")(
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK, "--train",
        "musclelora", "--search-bands", "1,2",
    )
    assert run.returncode == 0, run.stderr
    assert ("at chance: the best scalings are right on" in run.stdout) == told, run.stdout


def test_a_model_named_twice_and_one_that_no_checkpoint_holds(here, tiny_file, folder, poisoned, tmp_path):
    flags = (
        "--ckpt", tiny_file, "--data", poisoned, "--clean-aux", folder, "--out", tmp_path / "out", *QUICK, "--train",
    )
    script = here("musclelora.py")
    twice = script(*flags, "lora,lora")
    assert twice.returncode == 2 and "twice" in twice.stderr and not (tmp_path / "out").exists()
    unsaved = script(*flags, "prefix")
    assert unsaved.returncode == 0 and "no model is written: prefix's" in unsaved.stdout
    assert json.loads((tmp_path / "out" / "result.json").read_text())["output_sha256"] is None
    other = script(*flags, "musclelora,lora")
    assert other.returncode == 0 and "the model that is written is lora, the last" in other.stdout
