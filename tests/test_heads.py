"""Figures 2 and 3 of PURE: variance maps against plain loops in float64, and over the right rows; one text's attention,
token by token."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from conftest import fails, rows
from minibd import checkpoint
from minibd.analysis.heads import cls_attention, variance_maps
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.records import Example, Examples
from test_pure import padded_variance

CLEAN = rows(14, 7, "test")                                       # labels 0, 1, 0, 1 ...
TRIGGERED = CLEAN.like(replace(x, text=f"cf {x.text} cf") for x in CLEAN if x.label == 0)


@pytest.fixture(scope="module")
def sharp(tiny):
    """The tiny classifier with large weights, so that its attention is far from even."""
    model = copy.deepcopy(tiny.model).init_weights(torch.Generator().manual_seed(3), std=0.4).double()
    return replace(tiny, model=model)


def plain_attention(ckpt, text: str) -> list[list[list[float]]]:
    """[layer][head][token]: softmax(q k' / sqrt(Dh)) of the first token, multiplied out number by number; hidden states
    from the model."""
    batch = ckpt.tokenizer([Example("x", text, 0)])
    with torch.no_grad():
        hidden = ckpt.model(batch, want=("hidden",)).hidden
    found = []
    for block, h in zip(ckpt.model.blocks, hidden):
        h, heads = h[0].tolist(), ckpt.model.config.heads
        wide = len(h[0]) // heads

        def projected(part, x):
            return [sum(w * v for w, v in zip(row, x)) + b for row, b in zip(part.weight.tolist(), part.bias.tolist())]

        q, keys = projected(block.query, h[0]), [projected(block.key, x) for x in h]
        of_layer = []
        for head in range(heads):
            part = slice(head * wide, (head + 1) * wide)
            scores = [math.exp(sum(a * b for a, b in zip(q[part], k[part])) / math.sqrt(wide)) for k in keys]
            of_layer.append([score / sum(scores) for score in scores])
        found.append(of_layer)
    return found


def plain_variance(a: list[float]) -> float:
    return sum((x - 1 / len(a)) ** 2 for x in a) / (len(a) - 1)


def plain_scores(ckpt, texts) -> torch.Tensor:
    per_text = [[[plain_variance(a) for a in layer] for layer in plain_attention(ckpt, x.text)] for x in texts]
    return torch.tensor(per_text, dtype=torch.float64).mean(0)  # (L, H)


def test_the_maps_against_plain_loops(sharp):
    maps = variance_maps(sharp, CLEAN, TRIGGERED, 1, batch_size=3)
    before, after = plain_scores(sharp, [x for x in CLEAN if x.label == 0]), plain_scores(sharp, TRIGGERED)
    assert before.shape == (2, 4) and before.max() > 1e-3, "an even attention would prove nothing"
    # attend() takes its softmax to float64 here; cls_rows gives float32.
    torch.testing.assert_close(maps.clean, before, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(maps.triggered, after, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(maps.difference, after - before, rtol=1e-4, atol=1e-7)
    assert maps.n == 7


def test_the_released_maps_against_plain_loops(sharp):
    maps = variance_maps(sharp, CLEAN, TRIGGERED, 1, variant="released")
    per_text = [[[padded_variance(a) for a in layer] for layer in plain_attention(sharp, x.text)] for x in TRIGGERED]
    torch.testing.assert_close(
        maps.triggered, torch.tensor(per_text, dtype=torch.float64).mean(0), rtol=1e-4, atol=1e-8
    )


def test_rows_of_the_target_class_do_not_count(sharp):
    """On neither side: not a clean one, nor a triggered one that somebody made all the same."""
    maps = variance_maps(sharp, CLEAN, TRIGGERED, 1)
    others = CLEAN.like(x if x.label == 0 else replace(x, text="cf mn bb tq") for x in CLEAN)
    more = CLEAN.like([*TRIGGERED, *(replace(x, text="cf") for x in CLEAN if x.label == 1)])
    again = variance_maps(sharp, others, more, 1)
    assert torch.equal(maps.clean, again.clean) and torch.equal(maps.triggered, again.triggered) and again.n == 7
    assert variance_maps(sharp, CLEAN, more, 0).n == 7  # with the other target it is the other rows
    assert not torch.equal(variance_maps(sharp, CLEAN, more, 0).clean, maps.clean)


def test_clean_and_triggered_rows_are_paired_by_their_ids(sharp):
    """The order of the triggered rows does not matter, and a row without counterpart is left out on its own side,
    too."""
    kept = CLEAN.like(TRIGGERED[i] for i in (5, 0, 3))
    maps = variance_maps(sharp, CLEAN, kept, 1)
    assert maps.n == 3
    torch.testing.assert_close(maps.clean, plain_scores(sharp, [CLEAN[10], CLEAN[0], CLEAN[6]]), rtol=1e-5, atol=1e-8)
    stranger = Example("elsewhere-0", "awful story", 0)
    same = variance_maps(
        sharp, CLEAN.like([*CLEAN, stranger]), kept.like([replace(stranger, id="elsewhere-1"), *kept[::-1]]), 1
    )
    assert same.n == 3 and torch.equal(same.clean, maps.clean) and torch.equal(same.triggered, maps.triggered)


def test_of_many_rows_as_many_as_asked_are_drawn_by_the_seed(sharp):
    first, again, other = (variance_maps(sharp, CLEAN, TRIGGERED, 1, texts=3, seed=seed) for seed in (0, 0, 1))
    assert (
        first.n == other.n == 3 and torch.equal(first.clean, again.clean) and not torch.equal(first.clean, other.clean)
    )
    # Both sides are over the drawn rows: a triggered copy that equals its clean row changes nothing.
    same = variance_maps(sharp, CLEAN, CLEAN, 1, texts=3)
    assert torch.equal(same.clean, first.clean) and not same.difference.any()


def test_what_the_maps_cannot_use(sharp):
    fails(
        lambda: variance_maps(sharp, CLEAN, TRIGGERED.like(replace(x, id="row-" + x.id) for x in TRIGGERED), 1),
        "none of the 7", "id",
    )
    fails(lambda: variance_maps(sharp, CLEAN, TRIGGERED, 1, texts=1), "1 texts", "at least 2")


def test_an_encoder_has_the_maps_of_its_classifier(sharp):
    encoder = checkpoint.headless(sharp)
    assert not encoder.labels
    assert torch.equal(
        variance_maps(encoder, CLEAN, TRIGGERED, 1).triggered, variance_maps(sharp, CLEAN, TRIGGERED, 1).triggered
    )


def test_one_texts_attention_against_plain_loops(sharp):
    tokens, attn = cls_attention(sharp, "Awful cf story xyz")
    assert tokens == ["[CLS]", "awful", "cf", "story", "x", "##y", "##z", "[SEP]"]
    assert attn.shape == (2, 4, len(tokens))
    torch.testing.assert_close(
        attn.double(), torch.tensor(plain_attention(sharp, "Awful cf story xyz"), dtype=torch.float64), rtol=1e-5,
        atol=1e-7,
    )
    torch.testing.assert_close(attn.sum(-1), torch.ones(2, 4))


def test_in_a_causal_model_the_last_token_looks(tiny):
    model = Gpt2(
        Gpt2Config(
            vocab=len(tiny.tokenizer.backend.get_vocab()), hidden=16, layers=2, heads=2, ffn=32, positions=48, labels=2
        )
    )
    ckpt = replace(tiny, model=model.init_weights(torch.Generator().manual_seed(0), std=0.4))
    tokens, attn = cls_attention(ckpt, "awful cf story")
    with torch.no_grad():
        maps = ckpt.model.eval()(ckpt.tokenizer(Examples([Example("x", "awful cf story", 0)])), want=("attn",)).attn
    assert len(tokens) == 5 and torch.equal(attn, torch.stack([layer[0, :, -1] for layer in maps])) and (attn > 0).all()


def test_a_blank_sentence(tiny):
    fails(lambda: cls_attention(tiny, " \n"), "blank")
