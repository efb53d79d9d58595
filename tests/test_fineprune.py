"""Fine-pruning: activity by hand and against plain loops, who falls first, where it stops, and that a pruned unit stays
dead."""

from dataclasses import asdict, replace

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.blending import tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.mitigations import fineprune as module
from minibd.mitigations.fineprune import FinePruning, activity, fineprune, idle_units, prune
from minibd.models import encoder
from minibd.predict import accuracy, predict
from minibd.records import Example, Examples
from test_blending import CLEAN, LETTERS, VALIDATION, moved
from test_encoder import MODELS, made
from test_finetune import equal, weights

SETTINGS = FinePruning(share=0.5, lr=1e-2, epochs=2, steps=10, batch_size=4, weight_decay=0.1)
TEXTS = Examples([Example(str(i), "abcdefgh"[i % 8:] + " b" * (i % 4), i % 2) for i in range(8)], ("bad", "good"))


# ---- activity

def plain_activity(ckpt: Checkpoint, texts) -> torch.Tensor:
    """Text by text from the hidden states, layer by layer: the mean of |what `down` reads|."""
    model, total, n = ckpt.model, 0.0, 0
    for x in texts:
        hidden = model(ckpt.tokenizer([x]), ("hidden",)).hidden
        per_layer = []
        for block, h in zip(model.blocks, hidden):
            packed = model.pack(ckpt.tokenizer([x]))
            context, _ = block.attention(h[0], packed, None, False)
            if model.causal:
                y = block.norm(h[0] + block.output(context))
            else:
                y = block.attention_norm(h[0] + block.output(context))
            inner = block.act(block.gate(y)) * block.up(y) if hasattr(block, "gate") else block.act(block.up(y))
            per_layer.append(inner.abs().sum(0))
        total, n = total + torch.stack(per_layer).double(), n + len(y)
    return total / n


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_activity_against_plain_loops(name, monkeypatch):
    ckpt = Checkpoint(made(name), LETTERS, ("bad", "good"), [])
    for share in (0.0, 1.0):                                                # padding in the batch, and none
        monkeypatch.setattr(encoder, "PACK", share)
        for size in (1, 3, 128):
            got = activity(ckpt.model, LETTERS, TEXTS, batch_size=size)
            torch.testing.assert_close(got, plain_activity(ckpt, TEXTS), rtol=1e-4, atol=1e-6)


def test_activity_by_hand():
    """A unit that reads nothing gives act(bias): relu(2) = 2, relu(-3) = 0; |gelu(-1)| = 0.158655."""
    for act, bias, expected in (("relu", 2.0, 2.0), ("relu", -3.0, 0.0), ("gelu", -1.0, 0.158655)):
        model = made("bert", activation=act)
        with torch.no_grad():
            model.blocks[1].up.weight[4] = 0
            model.blocks[1].up.bias[4] = bias
        scores = activity(model, LETTERS, TEXTS)
        assert scores.shape == (2, 20) and scores[1, 4].item() == pytest.approx(expected, abs=1e-5)


def test_activity_leaves_the_model_as_it_was(tiny):
    model = checkpoint.copy(tiny).model.train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    # no dropout
    assert torch.equal(activity(model, tiny.tokenizer, CLEAN), activity(tiny.model, tiny.tokenizer, CLEAN))
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    fails(lambda: activity(model, tiny.tokenizer, Examples()), "no clean rows")


# ---- pruning

@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_the_least_active_units_fall_and_nothing_else(name):
    ckpt = moved(Checkpoint(made(name), LETTERS, ("bad", "good"), []), 0.01)  # biases are not 0 either
    model, before = ckpt.model, weights(ckpt)
    scores = torch.arange(40.0).reshape(2, 20) * 7 % 20                     # an order that is not the units' own
    prune(model, scores, 3, 2)
    for layer in (0, 1):
        idle = scores[layer].argsort()[:3].tolist()
        for n, t in weights(ckpt).items():
            if not n.startswith(f"blocks.{layer}."):
                continue
            kind = n.split(".")[2]
            rows_ = [i for i in range(len(t)) if not torch.equal(t[i], before[n][i])] if kind in ("up", "gate") else []
            if kind in ("up", "gate"):
                assert set(rows_) <= set(idle) and t[idle].abs().max() == 0 and (rows_ or "bias" in n)
            elif n.endswith("down.weight"):
                assert [j for j in range(20) if not torch.equal(t[:, j], before[n][:, j])] == sorted(idle) and t[
                    :, idle
                ].abs().max() == 0
            else:
                assert torch.equal(t, before[n])
    assert equal(
        {n: t for n, t in weights(ckpt).items() if "blocks" not in n},
        {n: t for n, t in before.items() if "blocks" not in n},
    )
    assert (activity(model, LETTERS, TEXTS) == 0).sum(1).tolist() == [3, 3]


@torch.no_grad()
def test_only_the_last_layers_and_the_first_of_equals():
    ckpt = Checkpoint(made("bert"), LETTERS, ("bad", "good"), [])
    before = weights(ckpt)
    prune(ckpt.model, torch.ones(2, 20), 2, 1)
    after = weights(ckpt)
    assert equal(
        {n: t for n, t in after.items() if "blocks.0" in n}, {n: t for n, t in before.items() if "blocks.0" in n}
    )
    assert after["blocks.1.up.weight"][:2].abs().max() == 0 and after["blocks.1.up.weight"][2:].abs().amin(0).min() > 0
    prune(ckpt.model, torch.ones(2, 20), 0, 2)
    assert equal(after, weights(ckpt))


def test_pruning_a_unit_takes_out_what_it_gave(tiny):
    """The logits are those of a model whose activation is 0 there."""
    model, scores = checkpoint.copy(tiny).model, activity(tiny.model, tiny.tokenizer, CLEAN)
    idle = scores.argsort(dim=1)[:, :32]
    hooks = [block.down.register_forward_pre_hook(lambda _, inputs, at=at: inputs[0].index_fill(1, at, 0.0))
             for block, at in zip(model.blocks, idle)]
    with torch.no_grad():
        expected = model(tiny.tokenizer(CLEAN)).logits
        for hook in hooks:
            hook.remove()
        whole = model(tiny.tokenizer(CLEAN)).logits
        prune(model, scores, 32, 2)
        got = model(tiny.tokenizer(CLEAN)).logits
    assert torch.allclose(got, expected, atol=1e-7) and not torch.allclose(got, whole, atol=1e-5)


# ---- how many

@pytest.mark.parametrize(
    "accuracies, allowed",
    [
        ([0.9, 0.9, 0.88, 0.879, 0.9], 6), ([0.9, 0.87], 0), ([0.9, 0.5, 0.9], 0), ([0.9] * 20, 61),
        ([0.9, 0.88, 0.88, 0.88, 0.1], 10),
    ],
)
def test_pruning_stops_where_accuracy_falls_and_gives_the_last_group_back(accuracies, allowed, tiny, monkeypatch):
    """64 units a layer: groups end at 3, 6, 10, 13, ... 61 units."""
    seen = []

    def told(model, text, examples) -> float:
        assert examples is VALIDATION
        seen.append([int((block.up.weight.abs().amax(1) == 0).sum()) for block in model.blocks])
        return accuracies[len(seen) - 1]
    monkeypatch.setattr(module, "accuracy", told)
    assert idle_units(tiny, activity(tiny.model, tiny.tokenizer, CLEAN), VALIDATION, 1, 2.0) == allowed
    assert (
        seen[0] == [0, 0]
        and all(first == 0 for first, _ in seen)
        and [last for _, last in seen[1:5]] == [3, 6, 10, 13][: len(seen) - 1]
    )
    assert not any((block.up.weight.abs().amax(1) == 0).any() for block in tiny.model.blocks)


def test_pruned_to_the_tolerance_on_real_accuracy(tiny):
    """Labels that are the victim's own answers: any change is a fall."""
    asked = rows(40, 3, "dev")
    own = asked.like(replace(x, label=p) for x, p in zip(asked, predict(tiny.model, tiny.tokenizer, asked)))
    scores = activity(tiny.model, tiny.tokenizer, CLEAN)
    for drop in (0.0, 5.0, 100.0):
        count = idle_units(tiny, scores, own, 2, drop)
        reached = {}
        for n in {count, min(61, round((round(count / 3.2) + 1) * 3.2))}:
            trial = checkpoint.copy(tiny)
            prune(trial.model, scores, n, 2)
            reached[n] = accuracy(trial.model, tiny.tokenizer, own)
        assert reached[count] >= 1 - drop / 100 - 1e-9 and (count == 61 or min(reached.values()) < 1 - drop / 100)
    assert count == 61


# ---- the method

def dead(ckpt: Checkpoint) -> list[int]:
    return [int((block.up.weight.abs().amax(1) == 0).sum()) for block in ckpt.model.blocks]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_a_pruned_unit_stays_dead(name, dtype):
    """Not a bit of it moves in ten large steps with decay, while all around it does."""
    victim, seen = Checkpoint(made(name), LETTERS, ("bad", "good"), []), {}
    before = weights(victim)
    done = fineprune(
        victim, TEXTS, None, SETTINGS, dtype=dtype, on_stage=lambda what, ckpt, s: seen.setdefault(what, ckpt)
    )
    scores = activity(victim.model, LETTERS, TEXTS)
    for block, start, idle in zip(
        done.model.blocks, seen["pruned"].model.blocks, scores.argsort(dim=1, stable=True)[:, :10]
    ):
        alive = torch.ones(20, dtype=torch.bool).index_fill(0, idle, False)
        for part in ("up", "gate"):
            if (linear := getattr(block, part, None)) is not None:
                assert linear.weight[idle].abs().max() == 0 and (
                    linear.bias is None or linear.bias[idle].abs().max() == 0
                )
                assert (linear.weight[alive] != getattr(start, part).weight[alive]).any(1).all()
        assert (
            block.down.weight[:, idle].abs().max() == 0
            and (block.down.weight[:, alive] != start.down.weight[:, alive]).any(0).all()
        )
    assert (activity(done.model, LETTERS, TEXTS) == 0).sum(1).tolist() == [10, 10] == [done.history[-1]["pruned"]] * 2
    assert equal(weights(victim), before)


def test_it_is_pruning_and_then_fine_tuning(tiny):
    before = weights(tiny)
    for seed, validation in ((0, None), (3, VALIDATION)):
        log, seen = [], []
        done = fineprune(
            tiny, CLEAN, validation, SETTINGS, seed=seed, log=log.append, on_stage=lambda *what: seen.append(what)
        )
        start = checkpoint.copy(tiny)
        prune(start.model, activity(tiny.model, tiny.tokenizer, CLEAN), 32, 2)
        assert equal(weights(seen[0][1]), weights(start))  # untouched by what came after
        tuned = tune_on_few_rows(
            start, CLEAN, validation, SETTINGS.schedule, 10, seed=seed, dtype=torch.float32, log=None, name="x"
        )
        assert equal(weights(done), weights(tuned)) and equal(weights(tiny), before) and tiny.history == []
        assert (
            [name for name, *_ in seen] == ["pruned", "Fine-pruning"]
            and seen[1][1] is done
            and all(s > 0 for *_, s in seen)
        )
        assert {entry["stage"] for entry in log} == {"Fine-pruning"}
        assert done.history == [
            {
                "mitigation": "fine-pruning", "clean_rows": 10, "validation_rows": len(validation or ()), "seed": seed,
                "pruned": 32, "units": 64, **asdict(SETTINGS),
            }
        ]


def test_without_a_share_the_tolerance_says_how_many(tiny):
    settings = replace(SETTINGS, share=None, drop=4.0)
    done = fineprune(tiny, CLEAN, VALIDATION, settings)
    count = idle_units(tiny, activity(tiny.model, tiny.tokenizer, CLEAN), VALIDATION, 2, 4.0)
    assert done.history[-1]["pruned"] == count and dead(done) == [count, count]
    assert dead(fineprune(tiny, CLEAN, VALIDATION, replace(settings, layers=1, drop=100.0))) == [0, 61]
    fails(lambda: fineprune(tiny, CLEAN, None, settings), "validation rows", "give share")
    # a share of 0 is not a search
    assert dead(fineprune(tiny, CLEAN, None, replace(SETTINGS, share=0.0))) == [0, 0]


def test_the_same_seed_gives_the_same_bits_and_the_global_state_stays(tiny):
    state = torch.get_rng_state()
    one, again, other = (weights(fineprune(tiny, CLEAN, None, SETTINGS, seed=seed)) for seed in (1, 1, 2))
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_a_result_saved_and_loaded_is_as_dead(tiny, tmp_path):
    done = fineprune(tiny, CLEAN, None, SETTINGS)
    for path in (tmp_path / "one.safetensors", tmp_path / "folder"):
        checkpoint.save(done, path)
        assert dead(checkpoint.load(path)) == [32, 32]


@pytest.mark.parametrize(
    "values, words",
    [
        ({"share": 1.5}, ("share is 1.5", "0..1")), ({"share": -0.1}, ("share is -0.1",)),
        ({"drop": 101.0}, ("drop is 101.0",)), ({"layers": 0}, ("layers is 0",)), ({"steps": -1}, ("steps is -1",)),
        ({"lr": 0.0}, ("0.0",)), ({"epochs": 0}, ("epochs is 0",)), ({"batch_size": 0}, ("batch_size is 0",)),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: FinePruning(**values), *words)


def test_more_layers_than_there_are_are_refused(tiny):
    fails(lambda: fineprune(tiny, CLEAN, None, replace(SETTINGS, layers=3)), "layers is 3", "the model has 2")
