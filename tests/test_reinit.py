"""Reinitialisation: what is drawn and what is not, from which distribution; then the fine-tuning."""
from dataclasses import asdict, replace

import pytest
import torch
from torch import nn

from conftest import fails
from minibd import checkpoint
from minibd.blending import tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.mitigations.reinit import Reinit, redraw, reinit
from minibd.models.bert import BertConfig, Block
from minibd.records import Example, Examples
from test_blending import CLEAN, LETTERS, VALIDATION, moved
from test_encoder import MODELS, made
from test_finetune import equal, weights

SETTINGS = Reinit(lr=1e-3, epochs=1, steps=3, batch_size=4)


def drawn(victim: Checkpoint, settings: Reinit = SETTINGS, seed: int = 0, clean=CLEAN) -> dict[str, torch.Tensor]:
    """The weights between the two lines."""
    seen = {}
    reinit(
        victim, clean, None, settings, seed=seed, on_stage=lambda name, ckpt,
        seconds: seen.setdefault(name, weights(ckpt)),
    )
    return seen["reinitialised"]


def changed(victim: Checkpoint, after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, t in weights(victim).items() if not torch.equal(t, after[name])}


def test_a_drawn_block_is_as_bert_begins():
    block = Block(BertConfig(vocab=9, hidden=64, layers=1, heads=4, ffn=256))
    with torch.no_grad():
        for p in block.parameters():
            p.fill_(7.0)
    redraw(block, torch.Generator().manual_seed(0), 0.02)
    for name, module in block.named_children():
        if isinstance(module, nn.Linear):
            n = module.weight.numel()
            assert abs(module.weight.mean().item()) < 4 * 0.02 / n ** 0.5, name
            assert module.weight.std().item() == pytest.approx(0.02, rel=4 / (2 * n) ** 0.5), name
            assert module.bias.abs().max() == 0
        elif isinstance(module, nn.LayerNorm):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert not torch.equal(block.query.weight, block.key.weight)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_the_last_layers_are_drawn_and_nothing_else(name, layers):
    victim = moved(Checkpoint(made(name), LETTERS, ("bad", "good"), []), 0.01)
    texts = Examples([Example(str(i), "a b c", i % 2) for i in range(4)], ("bad", "good"))
    pooled = name != "gpt2"                                                 # which has none
    if not layers and not pooled:
        return
    before, after = weights(victim), drawn(victim, replace(SETTINGS, layers=layers, pooler=pooled), clean=texts)
    parts = tuple(f"blocks.{i}." for i in range(2 - layers, 2)) + (("pooler.",) if pooled else ())
    assert changed(victim, after) == {n for n in before if n.startswith(parts)} and equal(before, weights(victim))


def test_one_layer_and_no_pooler_by_default(tiny):
    assert {n.rsplit(".", 2)[0] for n in changed(tiny, drawn(tiny))} == {"blocks.1"}
    assert asdict(Reinit())["layers"] == 1 and not Reinit().pooler and Reinit().std == 0.02


def test_the_rate_goes_by_the_width_where_none_is_given(tiny):
    assert [Reinit().resolved(hidden).lr for hidden in (768, 384, 192, 128, 32)] == pytest.approx(
        [2e-5, 2e-5, 1.6e-4, 5.4e-4, 5.4e-4]
    )
    assert Reinit(lr=3e-5).resolved(128) == Reinit(lr=3e-5) and Reinit(epochs=7).resolved(128).epochs == 7
    log = []
    done = reinit(tiny, CLEAN, None, Reinit(epochs=1, steps=2, warmup=0.0), log=log.append)
    assert done.history[-1]["lr"] == log[0]["lr"] == pytest.approx(5.4e-4)


def test_the_standard_deviation_is_the_settings(tiny):
    wide = drawn(tiny, replace(SETTINGS, std=0.5))["blocks.1.up.weight"]
    assert wide.std().item() == pytest.approx(0.5, rel=0.1)


def test_pruned_heads_stay_pruned(tiny):
    victim = checkpoint.copy(tiny)
    victim.model.head_mask[1, 0] = 0
    assert torch.equal(drawn(victim)["head_mask"], victim.model.head_mask)


def test_then_it_is_fine_tuning(tiny):
    before = weights(tiny)
    for seed, validation in ((0, None), (3, VALIDATION)):
        log, seen = [], []
        done = reinit(
            tiny, CLEAN, validation, SETTINGS, seed=seed, log=log.append, on_stage=lambda name, ckpt,
            s: seen.append((name, ckpt, s)),
        )
        start = checkpoint.copy(tiny)
        start.model.load_state_dict(drawn(tiny, seed=seed))
        assert equal(weights(seen[0][1]), weights(start))                   # untouched by what came after
        tuned = tune_on_few_rows(
            start, CLEAN, validation, SETTINGS.schedule, 3, seed=seed, dtype=torch.float32, log=None, name="x"
        )
        assert equal(weights(done), weights(tuned)) and equal(weights(tiny), before) and tiny.history == []
        assert (
            [name for name, *_ in seen] == ["reinitialised", "Reinitialisation"]
            and seen[1][1] is done
            and all(s > 0 for *_, s in seen)
        )
        assert {entry["stage"] for entry in log} == {"Reinitialisation"}
        assert done.history == [
            {
                "mitigation": "reinitialisation", "clean_rows": 10, "validation_rows": len(validation or ()),
                "seed": seed, **asdict(SETTINGS),
            }
        ]


def test_the_same_seed_gives_the_same_bits_and_the_global_state_stays(tiny):
    state = torch.get_rng_state()
    one, again, other = (drawn(tiny, seed=seed) for seed in (1, 1, 2))
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_in_bfloat16_the_weights_stay_float32(tiny):
    done = reinit(tiny, CLEAN, None, SETTINGS, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in done.model.parameters())
    assert not equal(weights(done), weights(reinit(tiny, CLEAN, None, SETTINGS)))


def test_more_layers_than_there_are_are_refused(tiny):
    fails(lambda: reinit(tiny, CLEAN, None, replace(SETTINGS, layers=3)), "layers is 3", "the model has 2")
    gpt = Checkpoint(made("gpt2"), LETTERS, ("bad", "good"), [])
    fails(lambda: reinit(gpt, CLEAN, None, replace(SETTINGS, pooler=True)), "no part 'penultimate'")


@pytest.mark.parametrize(
    "values, words",
    [
        ({"layers": -1}, ("layers is -1",)), ({"layers": 0}, ("layers is 0", "nothing would be drawn")),
        ({"std": 0.0}, ("std is 0.0",)), ({"steps": -1}, ("steps is -1",)), ({"lr": 0.0}, ("0.0",)),
        ({"epochs": 0}, ("epochs is 0",)), ({"batch_size": 0}, ("batch_size is 0",)),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: Reinit(**values), *words)
