"""Fine-mixing: the ends bit by bit, the share drawn, what is touched; then the whole method on a tiny model."""

import math
from dataclasses import asdict, replace

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.blending import tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.mitigations import epur
from minibd.mitigations import finemix as module
from minibd.mitigations.epur import frequencies, purify_embeddings
from minibd.mitigations.finemix import FineMixing, finemix, mix
from minibd.predict import accuracy
from test_blending import CLEAN, HEAD, LETTERS, VALIDATION, moved, resized
from test_encoder import MODELS, made
from test_finetune import equal, weights

SETTINGS = FineMixing(rho=0.4, top=3, lr=1e-3, epochs=1, steps=3, batch_size=4)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- mixing

@pytest.mark.parametrize("select", ["random", "smallest", "largest"])
def test_the_ends_bit_by_bit(select, tiny):
    pre = moved(checkpoint.headless(tiny))
    victim, origin = weights(tiny), weights(pre)
    assert equal(weights(mix(tiny, pre, 1.0, chance(), select=select)), victim)
    none = weights(mix(tiny, pre, 0.0, chance(), select=select))
    assert all(torch.equal(none[name], victim[name] if name in HEAD else origin[name]) for name in victim)
    assert equal(weights(tiny), victim) and equal(weights(pre), origin)


def test_a_draw_of_0_is_not_kept_at_rho_0(tiny, monkeypatch):
    """One draw in 2^24 is."""
    monkeypatch.setattr(torch, "rand", lambda shape, generator, device: torch.zeros(shape))
    pre = moved(tiny)
    assert torch.equal(mix(tiny, pre, 0.0, chance()).model.embeddings.word.weight, pre.model.embeddings.word.weight)
    assert equal(weights(mix(tiny, pre, 0.01, chance())), weights(tiny))


@pytest.mark.parametrize("name", MODELS)
def test_the_share_drawn(name):
    victim = Checkpoint(made(name), LETTERS, ("bad", "good"), [])
    pre = moved(checkpoint.headless(victim), 0.01)
    for rho in (0.1, 0.5, 0.9):
        mixed, own, origin = (dict(r.model.named_parameters()) for r in (mix(victim, pre, rho, chance()), victim, pre))
        kept = torch.cat([(mixed[n] == own[n]).flatten() for n in origin])
        reset = torch.cat([(mixed[n] == origin[n]).flatten() for n in origin])
        assert (kept | reset).all() and not (kept & reset).any()
        unpack = math.sqrt(rho * (1 - rho) / len(kept))
        assert abs(kept.double().mean() - rho) < 4 * unpack, name
        halves = kept[: len(kept) // 2 * 2].view(-1, 2)                     # neighbours are drawn apart
        assert abs((halves[:, 0] & halves[:, 1]).double().mean() - rho ** 2) < 4 * rho / math.sqrt(len(halves))


def test_a_larger_rho_keeps_what_a_smaller_one_keeps_and_a_generator_draws_on(tiny):
    pre = moved(tiny)
    own = torch.cat([p.flatten() for p in tiny.model.parameters()])
    few, many, other = (torch.cat([p.flatten() for p in mix(tiny, pre, rho, chance(seed)).model.parameters()]) == own
                        for rho, seed in ((0.3, 0), (0.6, 0), (0.6, 1)))
    assert not (few & ~many).any() and (few & ~other).any()
    one = chance()
    assert equal(weights(mix(tiny, pre, 0.3, one)), weights(mix(tiny, pre, 0.3, chance())))
    assert not equal(weights(mix(tiny, pre, 0.3, one)), weights(mix(tiny, pre, 0.3, chance())))


def test_selection_keeps_what_moved_least_or_most(tiny):
    pre = moved(checkpoint.headless(tiny))
    origin = dict(pre.model.named_parameters())
    moves = torch.cat([(tiny.model.get_parameter(n) - p).abs().flatten() for n, p in origin.items()])
    for select, order in (("smallest", 1), ("largest", -1)):
        mixed = mix(tiny, pre, 0.3, chance(), select=select).model
        kept = torch.cat([(mixed.get_parameter(n) == tiny.model.get_parameter(n)).flatten() for n in origin]) & (
            moves > 0
        )
        assert abs(int(kept.sum()) / len(moves) - 0.3) < 0.01
        assert (order * moves[kept]).max() <= (order * moves[~kept & (moves > 0)]).min()


def test_what_has_no_counterpart_is_kept_and_listed(tiny):
    v = tiny.model.config.vocab
    padded = resized(tiny, v + 4, v)
    mixed = mix(padded, moved(checkpoint.headless(tiny)), 0.0, chance())
    entry = mixed.history[-1]
    assert (
        entry["mitigation"] == "mixing"
        and entry["rho"] == 0.0
        and set(HEAD) < set(entry["kept"])
        and entry["correlation"] > 0.9
    )
    assert torch.equal(mixed.model.embeddings.word.weight[v:], padded.model.embeddings.word.weight[v:])
    assert (
        mixed.labels == tiny.labels
        and mixed.tokenizer is padded.tokenizer
        and torch.equal(mixed.model.head_mask, tiny.model.head_mask)
    )
    fails(lambda: mix(tiny, moved(tiny), 1.5, chance()), "rho is 1.5", "0..1")


def test_pruned_heads_stay_pruned(tiny):
    victim = checkpoint.copy(tiny)
    victim.model.head_mask[1, 2] = 0
    assert torch.equal(mix(victim, moved(tiny), 0.0, chance()).model.head_mask, victim.model.head_mask)


# ---- the method

class Run:
    """One run, with everything that it lets others see."""

    def __init__(
        self, victim: Checkpoint, settings: FineMixing = SETTINGS, validation=VALIDATION, seed: int = 0, **more
    ):
        self.log, self.seen, self.chosen, self.pre = [], [], {}, moved(checkpoint.headless(victim))
        self.result = finemix(
            victim, self.pre, CLEAN, validation, settings, seed=seed, log=self.log.append, on_stage=self.on_stage,
            on_choice=self.chosen.__setitem__, **more,
        )

    def on_stage(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        self.seen.append((name, weights(ckpt), seconds))


def test_it_is_e_pur_then_mixing_then_fine_tuning(tiny):
    before = weights(tiny)
    for seed in (0, 3):
        done = Run(tiny, seed=seed)
        pure = purify_embeddings(tiny, done.pre, frequencies(tiny.tokenizer, CLEAN), 3)
        mixed = mix(pure, done.pre, 0.4, chance(seed))
        assert [name for name, *_ in done.seen] == ["E-PUR", "mixed 0.4", "Fine-mixing"] and all(
            s > 0 for *_, s in done.seen
        )
        assert equal(done.seen[0][1], weights(pure)) and equal(done.seen[1][1], weights(mixed))
        tuned = tune_on_few_rows(
            mixed, CLEAN, VALIDATION, SETTINGS.schedule, 3, seed=seed, dtype=torch.float32, log=None, name="x"
        )
        assert equal(weights(tuned), done.seen[2][1]) and equal(weights(tuned), weights(done.result))
        assert (
            equal(weights(tiny), before)
            and equal(weights(done.pre), weights(moved(checkpoint.headless(tiny))))
            and tiny.history == []
        )


def test_the_history_has_all_of_it(tiny):
    purified, mixed, last = Run(tiny).result.history
    assert purified["mitigation"] == "e-pur" and len(purified["tokens"]) == purified["top"] == 3
    assert (mixed["mitigation"], mixed["rho"], mixed["select"]) == ("mixing", 0.4, "random")
    assert last == {
        "mitigation": "fine-mixing", "clean_rows": 10, "validation_rows": 12, "seed": 0, "trials": [],
        **asdict(SETTINGS),
    }


def test_the_search_leads_to_the_same_model_as_its_rho(tiny):
    searched = Run(tiny, replace(SETTINGS, rho=None, drop=100.0))
    last = searched.result.history[-1]
    assert last["rho"] == 0.1 and [rho for rho, _ in last["trials"]] == [0.5, 0.3, 0.2, 0.1]
    assert [name for name, *_ in searched.seen] == [
        "E-PUR", "mixed 0.5", "mixed 0.3", "mixed 0.2", "mixed 0.1", "Fine-mixing",
    ]
    assert equal(weights(searched.result), weights(Run(tiny, replace(SETTINGS, rho=0.1)).result))
    assert last["trials"][-1][1] == accuracy(searched.result.model, tiny.tokenizer, VALIDATION)
    assert len({entry["stage"] for entry in searched.log}) == 4


def test_what_it_chose_is_handed_over(tiny):
    searched, given = Run(tiny, replace(SETTINGS, rho=None, drop=100.0, epochs=2)), Run(tiny)
    bare = Run(tiny, replace(SETTINGS, tune=False, top=0), None)
    last = searched.result.history[-1]
    assert searched.chosen == {
        "tokens": searched.result.history[0]["tokens"], "trials": last["trials"], "rho": 0.1,
        "best_epoch": searched.chosen["best_epoch"],
    } and searched.chosen["best_epoch"] in (1, 2)
    assert given.chosen == {"tokens": given.result.history[0]["tokens"], "rho": 0.4, "best_epoch": 1}
    assert bare.chosen == {"rho": 0.4}


def test_without_validation_rho_must_be_given(tiny):
    fails(lambda: Run(tiny, replace(SETTINGS, rho=None), None), "validation rows", "give rho")
    assert Run(tiny, SETTINGS, None).result.history[-1]["validation_rows"] == 0


def test_the_ablations(tiny):
    bare = Run(tiny, replace(SETTINGS, tune=False, top=0))
    assert [name for name, *_ in bare.seen] == ["mixed 0.4", "Mixing"] and bare.log == []
    assert equal(weights(bare.result), weights(mix(tiny, bare.pre, 0.4, chance())))
    smallest = Run(tiny, replace(SETTINGS, tune=False, top=0, select="smallest"))
    assert equal(
        weights(smallest.result), weights(mix(tiny, smallest.pre, 0.4, chance(), select="smallest"))
    )
    assert not equal(weights(smallest.result), weights(bare.result))


def test_the_same_seed_gives_the_same_bits_and_the_global_state_stays(tiny):
    state = torch.get_rng_state()
    one, again, other = (weights(Run(tiny, seed=seed).result) for seed in (1, 1, 2))
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_in_bfloat16_the_weights_stay_float32(tiny):
    done = Run(tiny, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in done.result.model.parameters())
    assert not equal(weights(done.result), weights(Run(tiny).result))


def test_the_frequencies_are_those_of_the_clean_rows(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(epur, "frequencies", lambda text, clean: asked.append(clean) or frequencies(text, clean))
    Run(tiny)
    assert len(asked) == 1 and asked[0] is CLEAN


def test_it_repairs_a_model_that_has_lost_its_task(tiny):
    """A mixture with a model that knows nothing, under a classifier of another sign, learns from the clean rows
    again."""
    clean = rows(60, 0, "train")
    done = finemix(tiny, moved(tiny), clean, VALIDATION, FineMixing(rho=0.3, lr=5e-3, steps=120, batch_size=16))
    assert accuracy(done.model, done.tokenizer, VALIDATION) > 0.9 > accuracy(tiny.model, tiny.tokenizer, VALIDATION)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"rho": 1.2}, ("rho is 1.2",)), ({"drop": -2.0}, ("drop is -2.0",)),
        ({"select": "all"}, ("'all'", "random, smallest, largest")), ({"top": -1}, ("top is -1",)),
        ({"steps": -1}, ("steps is -1",)), ({"lr": 0.0}, ("0.0",)), ({"epochs": 0}, ("epochs is 0",)),
        ({"batch_size": 0}, ("batch_size is 0",)), ({"warmup": 2.0}, ("warmup is 2.0",)),
    ],
)
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: FineMixing(**values), *words)


def test_e_pur_may_be_imported_from_here_too():
    assert (module.frequencies, module.purify_embeddings) == (frequencies, purify_embeddings)
    assert [FineMixing().resets(n) for n in (30522, 1600, 100)] == [200, 10, 0]
    assert FineMixing(top=7).resets(30522) == 7 and FineMixing(top=0).resets(30522) == 0
