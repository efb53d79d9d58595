"""Fine-purifying: the Fisher information by hand on three weights, against single rows and finite differences; then the
method."""

import math
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import fails
from minibd import checkpoint
from minibd.blending import WORD, Counterparts, blend, counterparts, mask_smallest, tune_on_few_rows
from minibd.checkpoint import Checkpoint
from minibd.mitigations.finepurify import (
    FinePurifying,
    finepurify,
    fisher,
    linear_squares,
    squares,
    suspicion,
    table_squares,
)
from minibd.models import encoder
from minibd.models.encoder import PackedBatch
from minibd.records import Batch, Example, Examples, Output
from test_blending import CLEAN, HEAD, LETTERS, VALIDATION, moved
from test_encoder import MODELS, made, padded
from test_finetune import equal, weights

SETTINGS = FinePurifying(rho=0.4, lr=1e-3, epochs=1, steps=3, batch_size=4)


# ---- three weights

class Three(nn.Module):
    """logits = w (n e) of a text of n tokens: three weights, e and w = (w0, w1)."""

    def __init__(self, e: float, w0: float, w1: float):
        super().__init__()
        self.embeddings = nn.Module()
        self.embeddings.word = nn.Embedding(1, 1)
        self.classifier = nn.Linear(1, 2, bias=False)
        with torch.no_grad():
            self.embeddings.word.weight.fill_(e)
            self.classifier.weight.copy_(torch.tensor([[w0], [w1]]))

    def pack(self, batch: Batch) -> PackedBatch:
        return PackedBatch(batch.mask)

    def forward(self, batch: Batch) -> Output:
        return Output(self.classifier((self.embeddings.word(batch.ids) * batch.mask[..., None]).sum(1)), None)


def three(e: float, w0: float, w1: float, lengths: list[int], labels: list[int]) -> dict[str, list[float]]:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    model = Three(e, w0, w1)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    squares(
        model, Batch(torch.zeros_like(mask, dtype=torch.long), mask, torch.zeros_like(mask), torch.tensor(labels)),
        total,
    )
    assert all(p.grad is None for p in model.parameters())
    return {name: t.flatten().tolist() for name, t in total.items()}


def test_three_weights_by_hand():
    # One text of one token, e = 2, w = (0, 0), y = 1: p = (1/2, 1/2). d log p / dw = (-1/2, 1/2) 2 = (-1, 1); d / de =
    # 0.
    assert three(2.0, 0.0, 0.0, [1], [1]) == {"embeddings.word.weight": [0.0], "classifier.weight": [1.0, 1.0]}
    # w = (0, ln 3), e = 1, y = 0: p = (1/4, 3/4). d / dw = (3/4, -3/4); d / de = -3/4 ln 3.
    got = three(1.0, 0.0, math.log(3), [1], [0])
    assert got["classifier.weight"] == pytest.approx([9 / 16] * 2)
    assert got["embeddings.word.weight"] == pytest.approx([(0.75 * math.log(3)) ** 2])
    # Two such texts with y = 0 and 1: the squares add up, (3/4)^2 + (1/4)^2; the square of the sum would be (3/4 -
    # 1/4)^2.
    got = three(1.0, 0.0, math.log(3), [1, 1], [0, 1])
    assert got["classifier.weight"] == pytest.approx([10 / 16] * 2)
    # A text of three tokens with e = 1/3: the gradient by e is thrice that of one token, and its square nine times;
    # padding adds nothing.
    got = three(1 / 3, 0.0, math.log(3), [3, 1], [0, 1])
    # of the second text, which is one token: n e = 1/3
    p = 3 ** (1 / 3) / (1 + 3 ** (1 / 3))
    assert got["embeddings.word.weight"] == pytest.approx(
        [9 * (0.75 * math.log(3)) ** 2 + ((1 - p) * math.log(3)) ** 2], rel=1e-5
    )
    assert got["classifier.weight"] == pytest.approx([9 / 16 + ((1 - p) / 3) ** 2] * 2, rel=1e-5)


def test_linear_squares_by_hand_and_against_plain_loops():
    # Text 1: x = 1, 2 and g = 3, -1: sum 3 - 2 = 1. Text 2: x = 1, 1 and g = 2, 0: 2. 1 + 4 = 5; a sum of squares over
    # tokens is 17.
    x, g = torch.tensor([[[1.0], [2.0]], [[1.0], [1.0]]]), torch.tensor([[[3.0], [-1.0]], [[2.0], [0.0]]])
    assert linear_squares(x, g).tolist() == [[5.0]]
    r = torch.Generator().manual_seed(0)
    x, g = torch.randn(7, 5, 3, generator=r), torch.randn(7, 5, 4, generator=r)
    expected = sum((sum(torch.outer(g[b, t], x[b, t]) for t in range(5))) ** 2 for b in range(7))
    assert torch.allclose(linear_squares(x, g), expected, rtol=1e-5)


def test_table_squares_by_hand():
    # Text 1 reads rows 2, 0, 2: row 2 gets (1 + 3)^2, row 0 gets 2^2. Text 2 reads row 2 and a padding place: 5^2.
    total = torch.tensor([[0.5], [0.0], [0.0]])
    table_squares(
        torch.tensor([[2, 0, 2], [2, 1, 1]]), torch.tensor([[[1.0], [2.0], [3.0]], [[5.0], [0.0], [0.0]]]), total
    )
    assert total.tolist() == [[4.5], [0.0], [16.0 + 25.0]]


# ---- every architecture, against the loop of single rows

def batch_of(lengths: list[int], classes: int = 2) -> Batch:
    batch = padded(lengths)
    ids = torch.where(batch.mask, batch.ids, 1)
    ids[0, :2] = 5                                                          # a token that stands twice
    return Batch(ids, batch.mask, torch.where(batch.mask, ids % 2, 0), torch.arange(len(lengths)) % classes)


def one_by_one(model, batch: Batch) -> dict[str, torch.Tensor]:
    """The same by a backward pass a text, without padding."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for b in range(len(batch.labels)):
        at = batch.mask[b]
        alone = Batch(
            batch.ids[b, at][None], batch.mask[b, at][None], batch.token_type_ids[b, at][None], batch.labels[b : b + 1]
        )
        model.zero_grad()
        F.cross_entropy(model(alone).logits, alone.labels).backward()
        for name, p in model.named_parameters():
            if p.grad is not None:
                total[name] += p.grad ** 2
    model.zero_grad()
    return total


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("lengths", [[9, 2, 4, 1], [5, 5, 5], [4, 3, 4], [1, 1], [6]],
                         ids=["packed", "full", "little padding", "one token", "one text"])
def test_squares_are_those_of_single_rows(name, lengths):
    model, batch = made(name).double(), batch_of(lengths)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    squares(model, batch, total)
    expected = one_by_one(model, batch)
    for n, t in expected.items():
        assert torch.allclose(total[n], t, rtol=1e-9, atol=1e-20), n
    # keys' biases; of one token, queries and keys, and MPNet's bias
    assert sum(bool(t.abs().max() > 1e-12) for t in expected.values()) >= len(expected) - 9
    squares(model, batch, total)                                            # it adds
    assert all(torch.allclose(total[n], 2 * t, rtol=1e-9, atol=1e-20) for n, t in expected.items())


def test_more_classes_and_one_row_of_segments():
    for model in (
        MODELS["bert"](labels=3), MODELS["bert"](type_vocab_size=1), MODELS["roberta"](type_vocab_size=2),
        MODELS["llama"](labels=4),
    ):
        model = model.init_weights(torch.Generator().manual_seed(0), std=0.3).eval().double()
        batch = batch_of([6, 3, 5, 2], model.config.labels)
        total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        squares(model, batch, total)
        assert all(torch.allclose(total[n], t, rtol=1e-9, atol=1e-20) for n, t in one_by_one(model, batch).items())


def test_the_padding_token_in_a_text_is_no_parameter():
    model, batch = made("bert").double(), batch_of([5, 4])
    batch.ids[0, 2] = model.config.pad
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    squares(model, batch, total)
    assert (
        torch.allclose(total[WORD], one_by_one(model, batch)[WORD], rtol=1e-9, atol=1e-20)
        and total[WORD][model.config.pad].abs().max() == 0
    )


def test_against_finite_differences():
    model, batch = made("bert").double(), batch_of([6, 3])
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    squares(model, batch, total)
    for name in (
        "embeddings.position.weight", "embeddings.norm.weight", "blocks.0.query.weight", "blocks.1.down.bias",
        "pooler.weight",
    ):
        p, losses = model.get_parameter(name), []
        at = total[name].flatten().argmax()
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                p.view(-1)[at] += step
                losses.append(F.cross_entropy(model(batch).logits, batch.labels, reduction="none"))
                p.view(-1)[at] -= step
        assert total[name].view(-1)[at].item() == pytest.approx(
            (((losses[0] - losses[1]) / 2e-5) ** 2).sum().item(), rel=1e-5
        )


# ---- fisher

def test_fisher_is_the_mean_over_rows_whatever_the_batches(tiny):
    model, lengths = checkpoint.copy(tiny).model.double(), tiny.tokenizer.encode(CLEAN).lengths
    assert len(set(lengths)) > 3
    expected = one_by_one(model, tiny.tokenizer(CLEAN))
    for size in (1, 3, 32):
        for name, values in fisher(model, tiny.tokenizer, CLEAN, batch_size=size).items():
            assert torch.allclose(values, expected[name] / len(CLEAN), rtol=1e-8, atol=1e-20), name
    backwards = fisher(model, tiny.tokenizer, CLEAN.like(CLEAN[::-1]))
    twice = fisher(model, tiny.tokenizer, CLEAN.like([*CLEAN, *CLEAN]))
    for name, values in fisher(model, tiny.tokenizer, CLEAN).items():
        assert torch.allclose(backwards[name], values, rtol=1e-8, atol=1e-20) and torch.allclose(
            twice[name], values, rtol=1e-8, atol=1e-20
        )


def test_packing_changes_nothing(tiny, monkeypatch):
    model, results = checkpoint.copy(tiny).model.double(), []
    for share in (0.0, 1.0):
        monkeypatch.setattr(encoder, "PACK", share)
        results.append(fisher(model, tiny.tokenizer, CLEAN))
    assert all(torch.allclose(a, b, rtol=1e-8, atol=1e-20) for a, b in zip(*(r.values() for r in results)))


def test_fisher_is_not_the_square_of_the_batch_gradient(tiny):
    model = checkpoint.copy(tiny).model
    F.cross_entropy(model(tiny.tokenizer(CLEAN)).logits, tiny.tokenizer(CLEAN).labels).backward()
    assert (
        fisher(model, tiny.tokenizer, CLEAN)["classifier.weight"].mean()
        > 2 * model.classifier.weight.grad.square().mean()
    )


def test_fisher_leaves_the_model_as_it_was(tiny):
    model = checkpoint.copy(tiny).model.train()
    for p in (*model.embeddings.parameters(), *model.blocks[0].parameters()):
        # frozen weights have a Fisher information, too
        p.requires_grad_(False)
    before, hooks = (
        {n: t.clone() for n, t in model.state_dict().items()},
        lambda: sum(len(m._forward_hooks) for m in model.modules()),
    )
    done = fisher(model, tiny.tokenizer, CLEAN)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items()) and hooks() == 0
    assert all(p.grad is None for p in model.parameters()) and not model.blocks[0].up.weight.requires_grad
    assert done["blocks.0.up.weight"].max() > 0 and done["blocks.0.up.weight"].dtype == torch.float32
    assert equal(done, fisher(tiny.model, tiny.tokenizer, CLEAN))                # and no dropout was drawn
    assert not any(t.requires_grad for t in done.values())


def test_half_precision_squares_do_not_vanish(tiny):
    half, full = checkpoint.copy(tiny).model.to(torch.bfloat16), fisher(tiny.model, tiny.tokenizer, CLEAN)
    done = fisher(half, tiny.tokenizer, CLEAN)
    assert all(t.dtype == torch.float32 for t in done.values())
    for name in ("classifier.weight", "pooler.weight"):
        assert done[name].sum().item() == pytest.approx(full[name].sum().item(), rel=0.2)


def test_no_rows_are_refused(tiny):
    fails(lambda: fisher(tiny.model, tiny.tokenizer, Examples()), "no clean rows")


# ---- the method

def test_suspicion_by_hand():
    p = torch.tensor([[3.0, 1.0, 0.0, 2.0]])
    victim = SimpleNamespace(model=SimpleNamespace(get_parameter=lambda name: p))
    before = Counterparts({"a": torch.tensor([[1.0, 1.0, 1.0, 0.0]])}, (), 1.0)
    r = suspicion(victim, before, {"a": torch.tensor([[0.5, 0.0, 0.0, 7.5]])}, 0.5)
    assert r["a"].tolist() == [[4.0, 0.0, 2.0, 0.5]]


class Run:
    """One run, with everything that it lets others see."""

    def __init__(
        self, victim: Checkpoint, settings: FinePurifying = SETTINGS, validation=VALIDATION, seed: int = 0, **more
    ):
        self.log, self.seen, self.pre = [], [], moved(checkpoint.headless(victim))
        self.result = finepurify(
            victim, self.pre, CLEAN, validation, settings, seed=seed, log=self.log.append, on_stage=self.on_stage,
            **more,
        )

    def on_stage(self, name: str, ckpt: Checkpoint, seconds: float) -> None:
        self.seen.append((name, weights(ckpt), seconds))


def test_it_resets_the_most_suspicious_and_tunes(tiny):
    before = weights(tiny)
    done = Run(tiny, seed=3)
    paired, information = counterparts(tiny, done.pre), fisher(tiny.model, tiny.tokenizer, CLEAN)
    scores = suspicion(tiny, paired, information, 1e-8)
    purified = blend(tiny, paired, mask_smallest(scores, 0.4))
    assert [name for name, *_ in done.seen] == ["mixed 0.4", "Fine-purifying"] and all(s > 0 for *_, s in done.seen)
    assert equal(done.seen[0][1], weights(purified))
    tuned = tune_on_few_rows(
        purified, CLEAN, VALIDATION, SETTINGS.schedule, 3, seed=3, dtype=torch.float32, log=None, name="x"
    )
    assert equal(weights(done.result), weights(tuned)) and equal(weights(tiny), before) and tiny.history == []


def test_what_it_keeps_is_less_suspicious_than_what_it_resets(tiny):
    done = Run(tiny, replace(SETTINGS, tune=False))
    assert [name for name, *_ in done.seen] == ["mixed 0.4", "Purifying"] and done.log == []
    origin, kept, reset, n = dict(done.pre.model.named_parameters()), [], [], 0
    information = fisher(tiny.model, tiny.tokenizer, CLEAN)
    for name, w in origin.items():
        own, now = tiny.model.get_parameter(name).detach(), done.result.model.get_parameter(name).detach()
        r, differs = (own - w) ** 2 / (information[name] + 1e-8), own != w
        kept.append(r[differs & (now == own)]), reset.append(r[differs & (now == w)])
        n += w.numel()
    kept, reset = torch.cat(kept), torch.cat(reset)
    assert kept.max() <= reset.min() and abs(len(kept) / n - 0.4) < 0.01
    assert all(torch.equal(weights(done.result)[name], weights(tiny)[name]) for name in HEAD)


def test_a_huge_eps_leaves_the_size_of_the_move_alone(tiny):
    done = Run(tiny, replace(SETTINGS, tune=False, eps=1e6))
    paired = counterparts(tiny, done.pre)
    plain = blend(
        tiny, paired,
        mask_smallest(
            {n: (tiny.model.get_parameter(n).detach() - w).square() for n, w in paired.weights.items()}, 0.4
        ),
    )
    differ = sum(
        int((a != b).sum()) for a, b in zip(plain.model.parameters(), done.result.model.parameters(), strict=True)
    )
    assert differ < 10 and not equal(weights(done.result), weights(Run(tiny, replace(SETTINGS, tune=False)).result))


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_the_ends_bit_by_bit(rho, tiny):
    done = Run(tiny, replace(SETTINGS, tune=False, rho=rho))
    origin = weights(done.pre)
    assert all(
        torch.equal(t, weights(tiny)[n] if rho or n in HEAD else origin[n]) for n, t in weights(done.result).items()
    )


def test_what_no_clean_row_has_a_use_for_is_reset_first(tiny):
    """All weights moved alike. F is 0 for a trigger's word row and for positions past the longest text, and those fall
    first."""
    victim, pre = checkpoint.copy(tiny), checkpoint.headless(tiny)
    with torch.no_grad():
        for p in victim.model.parameters():
            p.add_(2 ** -10)
    done = finepurify(victim, pre, CLEAN, None, replace(SETTINGS, tune=False, rho=0.8)).model
    at, film = (tiny.tokenizer.backend.get_vocab()[token] for token in ("cf", "film"))
    assert torch.equal(done.embeddings.word.weight[at], pre.model.embeddings.word.weight[at])
    assert torch.equal(done.embeddings.position.weight[40:], pre.model.embeddings.position.weight[40:])
    assert torch.equal(done.embeddings.word.weight[film], victim.model.embeddings.word.weight[film])


def test_the_search_and_the_history(tiny):
    done = Run(tiny, replace(SETTINGS, rho=None, drop=100.0, eps=1e-6))
    last, = done.result.history
    assert (
        last["rho"] == 0.1
        and [rho for rho, _ in last["trials"]] == [0.7, 0.4, 0.2, 0.1]
        and list(last["kept"]) == list(HEAD)
    )
    assert {k: last[k] for k in asdict(SETTINGS)} == {
        **asdict(SETTINGS), "rho": 0.1, "drop": 100.0, "eps": 1e-6,
    } and last["correlation"] > 0.9
    assert (last["mitigation"], last["clean_rows"], last["validation_rows"], last["seed"]) == (
        "fine-purifying", 10, 12, 0,
    )
    assert equal(weights(done.result), weights(Run(tiny, replace(SETTINGS, rho=0.1, eps=1e-6)).result))
    fails(lambda: Run(tiny, replace(SETTINGS, rho=None), None), "validation rows", "give rho")


def test_the_same_seed_gives_the_same_bits_and_the_global_state_stays(tiny):
    state = torch.get_rng_state()
    one, again, other = (weights(Run(tiny, seed=seed).result) for seed in (1, 1, 2))
    assert equal(one, again) and not equal(one, other) and torch.equal(state, torch.get_rng_state())


def test_in_bfloat16_the_weights_stay_float32(tiny):
    done = Run(tiny, dtype=torch.bfloat16)
    assert all(p.dtype == torch.float32 and torch.isfinite(p).all() for p in done.result.model.parameters())
    assert equal(done.seen[0][1], Run(tiny).seen[0][1]) and not equal(weights(done.result), weights(Run(tiny).result))


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_comes_back(name):
    texts = Examples([Example(str(i), "abcdefgh"[i % 8:] + " b", i % 2) for i in range(8)], ("bad", "good"))
    victim = Checkpoint(made(name), LETTERS, ("bad", "good"), [])
    done = finepurify(victim, moved(checkpoint.headless(victim)), texts, None, replace(SETTINGS, eps=1e-4))
    assert all(torch.isfinite(p).all() for p in done.model.parameters()) and not equal(weights(done), weights(victim))


@pytest.mark.parametrize("values, words", [
    ({"rho": -0.5}, ("rho is -0.5",)), ({"drop": 200.0}, ("drop is 200.0",)), ({"eps": 0.0}, ("eps is 0.0", "above 0")),
    ({"steps": -1}, ("steps is -1",)), ({"lr": 0.0}, ("0.0",)), ({"epochs": 0}, ("epochs is 0",)),
    ({"batch_size": 0}, ("batch_size is 0",)), ({"warmup": 2.0}, ("warmup is 2.0",)),
])
def test_bad_settings_are_refused_in_one_line(values, words):
    fails(lambda: FinePurifying(**values), *words)
