"""Our dropout: how much it keeps, what it scales by, whose random numbers it draws; where each architecture drops."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minibd.models.attention import merge_heads, split_heads
from minibd.models.bert import Bert, BertConfig
from minibd.models.dropout import Dropout, attention_dropout, seed_dropout
from minibd.models.encoder import Encoder
from minibd.models.llama import Llama, LlamaConfig
from minibd.records import Batch, Output
from test_encoder import LLAMAS, MODELS, padded


def seeded(p: float, seed: int = 0) -> Dropout:
    layer = Dropout(p).train()
    layer.generator = torch.Generator().manual_seed(seed)
    return layer


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5, 0.9])
def test_it_keeps_a_share_of_1_minus_p(p):
    n = 1_000_000
    kept = seeded(p)(torch.ones(n)).count_nonzero().item()
    assert abs(kept - n * (1 - p)) < 5 * (n * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("p, scale", [(0.5, 2.0), (0.25, 4 / 3), (0.1, 1 / 0.9)])
def test_what_is_kept_is_scaled_by_1_over_1_minus_p(p, scale):
    x = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    y = seeded(p)(x)
    kept = y != 0
    # p is rounded to 2^-16, so the scale is off by at most 2^-17 / (1 - p)^2
    assert torch.allclose(y[kept], x[kept] * scale, rtol=2e-5)
    assert 0 < kept.sum() < 1000


def test_the_mean_is_kept():
    y = seeded(0.1)(torch.ones(1_000_000))
    assert abs(y.mean().item() - 1) < 5 * (0.1 / 0.9 / 1_000_000) ** 0.5   # variance of one element: p / (1 - p)


def test_neighbours_fall_independently():
    # Four elements share one 64-bit draw: each of the 16 patterns of a group must come up with its own share.
    kept = (seeded(0.5)(torch.ones(160_000)) != 0).view(-1, 4)
    pattern = (kept * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    counts = torch.bincount(pattern, minlength=16).double()                # 2500 expected of each
    assert ((counts - 2500) ** 2 / 2500).sum() < 37.7                      # chi-square, 15 degrees of freedom: 0.001


def test_the_same_generator_state_gives_the_same_mask_and_the_next_call_another():
    x = torch.ones(64)
    a, b = seeded(0.5, seed=3), seeded(0.5, seed=3)
    first = a(x)
    assert torch.equal(first, b(x))
    second = a(x)
    assert torch.equal(second, b(x)) and not torch.equal(first, second)
    assert not torch.equal(first, seeded(0.5, seed=4)(x))


def test_a_generator_of_its_own_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    seeded(0.5)(torch.ones(10))
    assert torch.equal(before, torch.get_rng_state())


def test_seed_dropout_reaches_every_dropout_and_none_takes_it_back():
    model, g = nn.Sequential(Dropout(0.1), nn.Sequential(nn.Linear(2, 2), Dropout(0.2))), torch.Generator()
    seed_dropout(model, g)
    assert model[0].generator is g and model[1][1].generator is g
    seed_dropout(model, None)
    assert model[0].generator is None and model[1][1].generator is None


def test_in_eval_mode_and_at_p_0_it_is_the_identity_and_draws_nothing():
    x = torch.ones(8)
    for layer in (seeded(0.5).eval(), seeded(0.0)):
        state = layer.generator.get_state()
        assert layer(x) is x and not layer.active
        assert torch.equal(state, layer.generator.get_state())


def test_the_gradient_is_the_mask_times_the_scale():
    x = torch.randn(37, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = seeded(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 2.0))


@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (7, 3), (2, 3, 5, 5), ()])
def test_any_number_of_elements(shape):
    y = seeded(0.5)(torch.ones(shape))
    assert y.shape == shape and set(y.flatten().tolist()) <= {0.0, 2.0}


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0)])
def test_an_empty_tensor_stays_empty(shape):
    assert seeded(0.5)(torch.ones(shape)).shape == shape


def test_a_tensor_that_is_not_contiguous_keeps_its_places():
    x = torch.arange(1.0, 13.0).view(3, 4).t()
    y = seeded(0.5)(x)
    assert torch.equal(y[y != 0], 2 * x[y != 0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_type_is_kept_and_the_mask_is_that_of_float32(dtype):
    y = seeded(0.5)(torch.ones(101, dtype=dtype))
    assert y.dtype == dtype
    assert torch.equal(y.float(), seeded(0.5)(torch.ones(101)))


def test_attention_dropout_is_lent_and_given_back():
    model = Bert(BertConfig(vocab=9, hidden=8, layers=2, heads=2, ffn=8, attention_dropout=0.1, dropout=0.2))
    with pytest.raises(RuntimeError, match="midway"):
        with attention_dropout(model, 0.7):
            assert [block.attention_dropout.p for block in model.blocks] == [0.7, 0.7]
            assert model.blocks[0].dropout.p == 0.2 and model.embeddings.dropout.p == 0.2
            raise RuntimeError("midway")
    assert [block.attention_dropout.p for block in model.blocks] == [0.1, 0.1]


# ---- where each architecture drops

POST_NORM = ("bert", "roberta", "distilbert", "mpnet", "xlm-roberta", "electra")
BEFORE_POOLER = ("roberta", "mpnet", "xlm-roberta", "electra")          # which drop there, too
# All distinct, and multiples of 2^-16, to which a Dropout rounds them.
P = {"dropout": 0.125, "embedding_dropout": 0.1875, "attention_dropout": 0.25, "classifier_dropout": 0.375}
TAKES = {
    **{name: ("dropout", "attention_dropout", "classifier_dropout") for name in POST_NORM},
    "mpnet": ("dropout", "attention_dropout"),  # its head's is the hidden states'
    **{name: ("attention_dropout", "classifier_dropout") for name in LLAMAS},
    "gpt2": ("dropout", "embedding_dropout", "attention_dropout"),
}
# Calls of a block's `dropout`: behind both halves; DistilBERT has none behind attention, Llama none at all.
HALVES = dict.fromkeys(POST_NORM, 2) | dict.fromkeys(LLAMAS, 0) | {"distilbert": 1, "gpt2": 2}


class Trace:
    """One forward pass in train mode: what every module was given and gave, call by call, and what came out."""

    def __init__(self, model: Encoder, batch: Batch):
        self.calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

        def keep(name: str):
            return lambda module, given, out: self.calls.setdefault(name, []).append((given[0], out))

        hooks = [module.register_forward_hook(keep(name)) for name, module in model.named_modules() if name]
        self.output: Output = model.train()(batch, want=("attn",))
        for hook in hooks:
            hook.remove()

    def given(self, name: str, call: int = 0) -> Tensor:
        return self.calls[name][call][0]

    def out(self, name: str, call: int = 0) -> Tensor:
        return self.calls[name][call][1]


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=1e-6)


def check_dropouts(name: str, model: Encoder, batch: Batch) -> None:
    """Every dropout of `model` reads the output of the layer before it, and what it returns is what the next layer
    reads: embeddings, attention probabilities, both halves of each block, classifier; and there is no other."""
    trace, packed = Trace(model, batch), model.pack(batch)
    times = {}                                                        # calls of each dropout, and the p it has

    def dropped(dropout: str, p: str, source: Tensor, call: int = 0) -> Tensor:
        """The output of the dropout's `call`, which read `source` and zeroed about a share P[p] of it."""
        times[dropout] = call + 1, P[p]
        x, y = trace.calls[dropout][call]
        zero = y == 0
        assert same(x, source) and zero.any() and not zero.all(), (dropout, call)
        assert same(y, torch.where(zero, 0, x / (1 - P[p]))), (dropout, call)
        return y

    post = name in POST_NORM
    if post:
        h = packed.pack(dropped("embeddings.dropout", "dropout", trace.out("embeddings.norm")))
        if name == "electra":
            assert same(trace.given("embeddings.project"), h)
            h = trace.out("embeddings.project")
    elif name == "gpt2":
        h = dropped(
            "embeddings.dropout", "embedding_dropout", trace.out("embeddings.word") + trace.out("embeddings.position")
        )
    else:
        h = trace.out("embeddings.word")
    for i, block in enumerate(model.blocks):
        at = f"blocks.{i}"
        assert same(trace.given(f"{at}.query" if post else f"{at}.attention_norm"), h)
        # the attention probabilities: what is returned is before dropout, what the values are weighed by is after it
        v = split_heads(packed.unpack(trace.out(f"{at}.value")), getattr(block, "kv_heads", block.heads))
        v = v.repeat_interleave(block.heads // v.shape[1], dim=1)
        probs = dropped(f"{at}.attention_dropout", "attention_dropout", trace.output.attn[i])
        context = packed.pack(merge_heads(probs @ v))
        if model.trim and i == len(model.blocks) - 1:
            h, context = h[packed.pooled_rows], context[packed.pooled_rows]
        assert same(trace.given(f"{at}.output"), context)
        attended, fed = trace.out(f"{at}.output"), trace.out(f"{at}.down")
        if HALVES[name] == 2:
            attended = dropped(f"{at}.dropout", "dropout", attended)
        if HALVES[name]:
            fed = dropped(f"{at}.dropout", "dropout", fed, HALVES[name] - 1)
        if post:
            assert same(trace.given(f"{at}.attention_norm"), h + attended)
            assert same(trace.given(f"{at}.norm"), trace.out(f"{at}.attention_norm") + fed)
            h = trace.out(f"{at}.norm")
        else:
            assert same(trace.given(f"{at}.norm"), h + attended)
            h = h + attended + fed
    if not post:
        assert same(trace.given("last_norm"), h)
        h = trace.out("last_norm")
    pooled = h if model.trim else h[packed.pooled_rows]
    head = "dropout" if name == "mpnet" else "classifier_dropout"
    if name in BEFORE_POOLER:
        pooled = dropped("classifier_dropout", head, pooled)
    if name != "gpt2":
        assert same(trace.given("pooler"), pooled)
        pooled = dropped("classifier_dropout", head, trace.output.pooled, int(name in BEFORE_POOLER))
    assert same(trace.given("classifier"), pooled)
    made = {key: (len(trace.calls[key]), module.p) for key, module in model.named_modules()
            if isinstance(module, Dropout) and module.p}
    assert made == times


@pytest.mark.parametrize("trim", [False, True], ids=["whole", "trimmed"])
@pytest.mark.parametrize("lengths", [[9, 9, 9], [9, 8, 9], [9, 2, 5]], ids=["full", "little padding", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_every_dropout_acts_where_it_should(name, lengths, trim):
    model = MODELS[name](**{key: P[key] for key in TAKES[name]})
    model.init_weights(torch.Generator().manual_seed(0), std=0.3)
    model.trim = trim
    seed_dropout(model, torch.Generator().manual_seed(1))
    check_dropouts(name, model, padded(lengths))


def test_a_llama_with_a_head_of_one_layer_drops_nothing_before_it():
    config = LlamaConfig(30, 12, 2, 3, 20, attention_dropout=0.0, classifier_dropout=0.9)
    model = Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.3)
    batch = padded([5, 3])
    assert torch.equal(model.train()(batch).logits, model.eval()(batch, want=("hidden",)).logits)


@pytest.mark.parametrize("name", MODELS)
def test_a_language_models_blocks_drop_as_a_classifiers_do(name):
    """predict_tokens in train mode goes through the same dropouts, the classifier's apart."""
    more = {"lm": True} if name in LLAMAS else {} if name == "gpt2" else {"mlm": True}
    model = MODELS[name](labels=0, **more, **{key: P[key] for key in TAKES[name]}).train()
    seen = []
    for key, module in model.named_modules():
        if isinstance(module, Dropout) and module.p:
            module.register_forward_hook(lambda module, given, out, key=key: seen.append((key, module.p)))
    batch = padded([4, 3])
    model.predict_tokens(batch, batch.mask)
    block = [("attention_dropout", P["attention_dropout"])] + [("dropout", P["dropout"])] * HALVES[name]
    start = [] if name in LLAMAS else [("embeddings.dropout", P["embedding_dropout" if name == "gpt2" else "dropout"])]
    assert seen == start + [(f"blocks.{i}.{key}", p) for i in range(2) for key, p in block]
