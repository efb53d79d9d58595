"""The causal models against transformers: small random models, batches padded left, right and not at all."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor, nn

from conftest import fails
from minibd.models import gpt2, llama, mistral, qwen2
from minibd.models.encoder import Encoder, HFMapping, HFTensor, PackedBatch, part
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig, RMSNorm, RotaryPackedBatch, frequencies, rope_from_hf, rope_to_hf
from minibd.records import Batch

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

PAD = 5
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# An epsilon this large shows where it is forgotten.
LLAMA = dict(vocab_size=59, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=37,
             max_position_embeddings=80, rms_norm_eps=0.01, pad_token_id=PAD)
GPT2 = dict(vocab_size=59, n_embd=32, n_layer=3, n_head=4, n_positions=20, layer_norm_epsilon=0.01, pad_token_id=PAD)
CASES = {
    "llama": LLAMA,
    "one kv head, wide heads": LLAMA | dict(num_key_value_heads=1, head_dim=12),
    "two kv heads, llama3": LLAMA | dict(num_key_value_heads=2, rope_parameters=LLAMA3 | {"rope_theta": 10000.0}),
    "linear": LLAMA
    | dict(num_key_value_heads=2, rope_parameters={"rope_type": "linear", "factor": 3.0, "rope_theta": 500.0}),
    "dynamic": LLAMA | dict(rope_parameters={"rope_type": "dynamic", "factor": 2.3, "rope_theta": 10000.0}, head_dim=6),
    "mistral": LLAMA | dict(num_key_value_heads=2, sliding_window=None),
    "mistral, a window that no text exceeds": LLAMA | dict(num_key_value_heads=2, sliding_window=80),
    "qwen2": LLAMA | dict(num_key_value_heads=2),
    "gpt2": GPT2,
    "gpt2, narrow": GPT2 | dict(n_inner=20, activation_function="gelu"),
}
KINDS = {"gpt2": gpt2, "mistral": mistral, "qwen2": qwen2}  # the others are Llamas
LENGTHS = {"none": (7, 7, 7), "little": (9, 8, 9, 7), "much": (9, 1, 5, 2, 7)}
BATCHES = [("none", "right"), *((much, side) for much in ("little", "much") for side in ("right", "left"))]

every_case = pytest.mark.parametrize("case", CASES)
each = pytest.mark.parametrize("case", ["two kv heads, llama3", "gpt2", "qwen2"])
every_batch = pytest.mark.parametrize("batch", BATCHES, ids="-".join, indirect=True)


def texts(lengths: tuple[int, ...], side: str) -> Batch:
    """Random tokens without PAD, the same for either side."""
    generator = torch.Generator().manual_seed(sum(lengths))
    ids, mask = torch.full((len(lengths), max(lengths)), PAD), torch.zeros(len(lengths), max(lengths), dtype=torch.bool)
    for row, there, n in zip(ids, mask, lengths):
        at = slice(-n, None) if side == "left" else slice(n)
        tokens = torch.randint(0, 58, (n,), generator=generator)
        row[at], there[at] = tokens + (tokens >= PAD), True
    return Batch(ids, mask, torch.zeros_like(ids), torch.zeros(len(lengths), dtype=torch.long))


@pytest.fixture
def batch(request) -> Batch:
    return texts(LENGTHS[request.param[0]], request.param[1])


def lies(tensor: Tensor, hf_tensor: HFTensor) -> Tensor:
    """What is ours of a tensor of theirs."""
    return (tensor.T if hf_tensor.transposed else tensor).chunk(hf_tensor.chunks)[hf_tensor.chunk]


def twins(case: str, kind: int = 0, classes: int = 3, **more) -> tuple[Encoder, nn.Module, HFMapping]:
    """Ours and theirs with the same random weights, the config by way of their config.json. kind: of
    HF_MAPPING.classes."""
    torch.manual_seed(1)
    mapping = KINDS.get(case.split(",")[0], llama).HF_MAPPING
    shape = getattr(transformers, mapping.classes[2].replace("Model", "Config"))
    # it writes into the dicts that it is given
    config = shape(**copy.deepcopy(CASES[case]), **more, num_labels=classes)
    theirs = getattr(transformers, mapping.classes[kind])._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    values = config.to_dict()
    assert all(values.get(key) in known for key, known in mapping.supported.items())
    ours = {name: values[key] for name, key in mapping.config.items() if values.get(key) is not None} | mapping.from_hf(
        values
    )
    ours["labels"] = 0 if kind else classes
    if mapping is not gpt2.HF_MAPPING:
        ours["lm"] = kind == 1 and not config.tie_word_embeddings
    mine = mapping.model(mapping.config_class(**ours)).eval()
    state = {name if name.startswith((mapping.prefix, *mapping.head_prefixes)) else mapping.prefix + name: tensor
             for name, tensor in theirs.state_dict().items()}
    left = dict.fromkeys(state, 1.0)  # the share of each tensor of theirs that nobody has taken
    taken = {"head_mask": mine.head_mask}
    for name in mine.state_dict().keys() - {"head_mask"}:
        hf_tensor = mapping.hf_tensor(name)
        taken[name] = lies(state[hf_tensor.name], hf_tensor)
        left[hf_tensor.name] -= 1 / hf_tensor.chunks
    mine.load_state_dict(taken)
    for name in (name for name, share in left.items() if abs(share) > 1e-9):
        assert name.endswith(mapping.ignored) or torch.equal(state[name], state[mapping.tied[name]]), name
    return mine, theirs, mapping


def ask(theirs: nn.Module, batch: Batch, explicit: bool = True, **more):
    """explicit: places counted from the first real token; else from the first column, as transformers does by
    itself."""
    if explicit:
        more["position_ids"] = (batch.mask.long().cumsum(1) - 1).clamp(min=0)
    return theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), use_cache=False, **more)


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def far_maps(a: Tensor, b: Tensor, batch: Batch) -> float:
    """Between two (B, H, T, T), over the queries that are real tokens."""
    return far(a.transpose(1, 2)[batch.mask], b.transpose(1, 2)[batch.mask])


def test_the_batches_are_what_their_names_say():
    for much, side in BATCHES:
        packed = PackedBatch(texts(LENGTHS[much], side).mask, causal=True)
        assert (packed.mask is None) == (much == "none") and (packed.index is not None) == (much == "much")


# ---- the same numbers as transformers

@torch.no_grad()
@every_batch
@every_case
def test_logits_hidden_and_maps(case, batch):
    mine, theirs, _ = twins(case)
    out = mine(batch, want=("attn", "hidden"))
    for explicit in (True,) if case.startswith("gpt2") else (True, False):  # turns of q and k depend on distances alone
        ref = ask(theirs, batch, explicit, output_hidden_states=True, output_attentions=True)
        assert len(out.hidden) == len(ref.hidden_states) == 4 and len(out.attn) == len(ref.attentions) == 3
        assert far(out.logits, ref.logits) < 1e-5
        for a, b in zip(out.hidden, ref.hidden_states):
            assert far(a[batch.mask], b[batch.mask]) < 1e-5
        for a, b in zip(out.attn, ref.attentions):
            assert far_maps(a, b, batch) < 1e-5
    last = [row.nonzero()[-1].item() for row in batch.mask]
    assert far(out.pooled, out.hidden[-1][range(len(last)), last]) == 0


@torch.no_grad()
@each
def test_logits_of_two_classes_and_of_a_bare_model(case):
    batch = texts(LENGTHS["much"], "right")
    mine, theirs, _ = twins(case, classes=2)
    assert far(mine(batch).logits, ask(theirs, batch).logits) < 1e-5
    mine, theirs, _ = twins(case, kind=2)
    out = mine(batch, want=("hidden",))
    assert out.logits is None and out.pooled is None
    assert far(out.hidden[-1][batch.mask], ask(theirs, batch).last_hidden_state[batch.mask]) < 1e-5


@torch.no_grad()
@every_batch
@pytest.mark.parametrize(
    "case, tied", [("two kv heads, llama3", False), ("two kv heads, llama3", True), ("gpt2", True), ("mistral", False),
                   ("qwen2", True)]
)
def test_the_token_that_follows(case, tied, batch):
    mine, theirs, _ = twins(case, kind=1, tie_word_embeddings=tied)
    at = batch.mask & (torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.6)
    assert hasattr(mine, "lm") == (not tied) and mine.config.tied == tied
    assert far(mine.predict_tokens(batch, at), ask(theirs, batch).logits[at]) < 1e-5


@pytest.mark.parametrize("side", ["right", "left"])
@every_case
def test_gradients_of_logits_hidden_and_maps(case, side):
    mine, theirs, mapping = twins(case)
    batch = texts(LENGTHS["much"], side)

    def loss(logits, hidden, attn):
        real = batch.mask[:, :, None]
        return (logits.logsumexp(-1).sum() + sum((h.square() * real).sum() / 100 for h in hidden)
                + sum((a.square() * real[:, None]).sum() for a in attn))

    out = mine(batch, want=("hidden", "attn"))
    loss(out.logits, out.hidden, out.attn).backward()
    ref = ask(theirs, batch, output_hidden_states=True, output_attentions=True)
    loss(ref.logits, ref.hidden_states, ref.attentions).backward()
    reference, seen = {name: p.grad for name, p in theirs.named_parameters()}, set()
    for name, p in mine.named_parameters():
        hf_tensor = mapping.hf_tensor(name)
        assert p.grad.abs().max() > 0 and far(p.grad, lies(reference[hf_tensor.name], hf_tensor)) < 1e-4, name
        seen.add(hf_tensor.name)
    assert seen == reference.keys()


@torch.no_grad()
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("gpt2")])
def test_rotary_frequencies_are_theirs(case):
    mine, theirs, _ = twins(case)
    freq = frequencies(mine.config, torch.device("cpu"))
    assert torch.allclose(freq, theirs.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)
    if "llama3" in case:
        waves = 2 * torch.pi / frequencies(replace(mine.config, rope_scaling={}), torch.device("cpu"))
        # all three bands
        assert (waves < 64 / 4).any() and ((waves > 64 / 4) & (waves < 64)).any() and (waves > 64).any()


@torch.no_grad()
@each
@pytest.mark.parametrize("layer, heads", [(0, [1]), (2, [0, 3])])
def test_masked_heads_are_zeros_of_their_output_projection(case, layer, heads):
    mine, theirs, _ = twins(case)
    batch = texts(LENGTHS["much"], "left")
    mine.head_mask[layer, heads] = 0
    for head in heads:
        at = slice(8 * head, 8 * head + 8)
        if case == "gpt2":
            theirs.transformer.h[layer].attn.c_proj.weight[at] = 0
        else:
            theirs.model.layers[layer].self_attn.o_proj.weight[:, at] = 0
    assert far(mine(batch).logits, ask(theirs, batch).logits) < 1e-5


# ---- what must not matter, and what must

@torch.no_grad()
@every_batch
@every_case
def test_fused_path_equals_the_explicit_one(case, batch):
    mine, _, _ = twins(case)
    fused, explicit = mine(batch, want=("hidden",)), mine(batch, want=("hidden", "attn"))
    assert far(fused.logits, explicit.logits) < 1e-5
    assert all(far(a[batch.mask], b[batch.mask]) < 1e-5 for a, b in zip(fused.hidden, explicit.hidden))


@torch.no_grad()
@every_case
def test_padding_and_neighbours_do_not_matter(case):
    mine, _, _ = twins(case)
    right, left = texts(LENGTHS["much"], "right"), texts(LENGTHS["much"], "left")
    a, b = mine(right, want=("attn",)), mine(left, want=("attn",))
    assert far(a.logits, b.logits) < 1e-5
    for i, n in enumerate(LENGTHS["much"]):
        alone = mine(
            Batch(*(t[i : i + 1, :n] for t in (right.ids, right.mask, right.token_type_ids)), right.labels[i : i + 1]),
            want=("attn",),
        )
        assert far(alone.logits[0], a.logits[i]) < 1e-5
        for mine_alone, in_a, in_b in zip(alone.attn, a.attn, b.attn):
            assert far(mine_alone[0], in_a[i, :, :n, :n]) < 1e-5 and far(mine_alone[0], in_b[i, :, -n:, -n:]) < 1e-5
            assert (in_a[i, :, :n].sum(-1) - 1).abs().max() < 1e-5 and in_b[i, :, -n:, :-n].abs().sum() == 0


def test_rotary_places_are_counted_from_the_first_real_token():
    right, left = (texts(LENGTHS["much"], side).mask for side in ("right", "left"))
    last = torch.zeros(len(right), dtype=torch.long)
    a, b = (RotaryPackedBatch(mask, last, small().config) for mask in (right, left))
    for ours, theirs in ((a.cos, b.cos), (a.sin, b.sin)):
        assert torch.equal(a.unpack(ours)[right], b.unpack(theirs)[left])
    assert (a.unpack(a.cos)[:, 0] == 1).all()


def test_a_norm_does_not_overflow_half_precision():
    x = torch.tensor([[400.0, -400.0, 800.0, 0.0]])  # 400^2 is beyond float16
    norm = RMSNorm(4, 1e-6)
    assert far(norm.half()(x.half()).float(), x / x.square().mean().sqrt()) < 1e-3
    assert norm.double()(x.double()).dtype == torch.float64


@torch.no_grad()
@each
@pytest.mark.parametrize("much", LENGTHS)
def test_no_token_sees_those_after_it(case, much):
    mine, _, _ = twins(case)
    batch = texts(LENGTHS[much], "left")
    other = replace(batch, ids=batch.ids.clone())
    other.ids[:, -1] = (batch.ids[:, -1] + 7) % 59
    a, b = mine(batch, want=("hidden",)), mine(other, want=("hidden",))
    before = batch.mask[:, :-1]
    assert far(a.logits, b.logits) > 1e-3
    assert all(far(x[:, :-1][before], y[:, :-1][before]) < 1e-6 for x, y in zip(a.hidden, b.hidden))


@torch.no_grad()
@pytest.mark.parametrize("case", ["one kv head, wide heads", "two kv heads, llama3", "gpt2"])
def test_a_masked_head_changes_the_logits_and_no_map_of_its_layer(case):
    mine, _, _ = twins(case)
    batch = texts(LENGTHS["little"], "right")
    seen: list[Tensor] = []  # what the output projection reads, (N, H Dh)
    mine.blocks[1].output.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    before = mine(batch, want=("attn",))
    mine.head_mask[1, 2] = 0
    after, fused = mine(batch, want=("attn",)), mine(batch)
    assert far(before.logits, after.logits) > 1e-4 and far(after.logits, fused.logits) < 1e-5
    assert far_maps(before.attn[1], after.attn[1], batch) == 0 and far_maps(before.attn[2], after.attn[2], batch) > 1e-6
    full, masked, _ = (x.unflatten(-1, (4, -1)) for x in seen)  # (N, H, Dh)
    assert masked[:, 2].abs().max() == 0 and full[:, 2].abs().max() > 0
    assert far(full[:, [0, 1, 3]], masked[:, [0, 1, 3]]) == 0  # head 3 shares the masked head's keys and values


@torch.no_grad()
@every_case
def test_bfloat16_comes_near(case):
    mine, _, _ = twins(case)
    batch = texts(LENGTHS["much"], "right")
    full = mine(batch, want=("attn",))
    with torch.autocast("cpu", torch.bfloat16):
        automatic, fused = mine(batch, want=("attn",)), mine(batch)
    mine.to(torch.bfloat16)
    half, sdpa = mine(batch, want=("attn",)), mine(batch)
    assert half.logits.dtype == sdpa.logits.dtype == torch.bfloat16
    scale = full.logits.abs().max()
    for out in (automatic, fused, half, sdpa):
        assert 0 < far(out.logits.float(), full.logits) < 0.05 * scale
    assert all(far_maps(a.float(), b, batch) < 0.05 for a, b in zip(half.attn, full.attn))


# ---- heads, parts, dropout

def small(**more) -> Llama:
    config = LlamaConfig(
        **dict(vocab=59, hidden=16, layers=2, heads=4, kv_heads=2, ffn=20, positions=9, pad=PAD) | more
    )
    return Llama(config).init_weights(torch.Generator().manual_seed(0), std=0.3).eval()


def small_gpt2(**more) -> Gpt2:
    config = Gpt2Config(**dict(vocab=59, hidden=16, layers=2, heads=4, positions=9, pad=PAD) | more)
    return Gpt2(config).init_weights(torch.Generator().manual_seed(0), std=0.3).eval()


@torch.no_grad()
def test_a_bottleneck_is_a_product_of_two_matrices():
    two, one, batch = small(bottleneck=3), small(), texts(LENGTHS["much"], "right")
    weights = {name: tensor for name, tensor in two.state_dict().items() if not name.startswith("pooler.")}
    one.load_state_dict(weights | {"classifier.weight": two.classifier.weight @ two.pooler.weight})  # (C, 3) (3, D)
    out, folded = two(batch), one(batch)
    assert far(out.logits, folded.logits) < 1e-5
    assert (
        out.pooled.shape == (5, 3)
        and folded.pooled.shape == (5, 16)
        and far(out.pooled, two.pooler(folded.pooled)) < 1e-6
    )
    assert part(two, "penultimate") is two.pooler and two.pooler.bias is None and two.classifier.bias is None
    fails(lambda: part(one, "penultimate"), "penultimate", "classifier")


@torch.no_grad()
def test_dropout_acts_where_transformers_has_it():
    batch = texts(LENGTHS["much"], "right")
    still, trained = (model(batch, want=("hidden",)).logits for model in (small(), small().train()))
    assert torch.equal(trained, still)
    assert not torch.equal(small(bottleneck=3).train()(batch).logits, small(bottleneck=3)(batch).logits)
    assert not torch.equal(small(attention_dropout=0.5).train()(batch).logits, small()(batch).logits)
    none = dict(dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0)
    still = small_gpt2(**none)(batch, want=("hidden",))
    # the first hidden state it reaches
    for place, first in (("embedding_dropout", 0), ("dropout", 1), ("attention_dropout", 1)):
        moved = small_gpt2(**none | {place: 0.5}).train()(batch, want=("hidden",))
        same = [torch.equal(a[batch.mask], b[batch.mask]) for a, b in zip(still.hidden, moved.hidden)]
        assert same == [i < first for i in range(3)]
    for half in ("output", "down"):  # `dropout` acts on both halves of a block
        model = small_gpt2(**none | {"dropout": 0.5})
        for block in model.blocks:
            nn.init.zeros_(getattr(block, half).weight)
        assert not torch.equal(model.train()(batch).logits, model.eval()(batch).logits)


def test_parts_have_the_names_that_all_architectures_give_them():
    for model, wide in ((small(), 8), (small_gpt2(), 16)):
        assert part(model, "query", -1) is model.blocks[1].query and part(model, "key", 0).weight.shape == (wide, 16)
        assert part(model, "word") is model.embeddings.word and part(model, "classifier").weight.shape == (2, 16)
        for name in ("value", "output", "attention_norm", "up", "down", "norm"):
            assert part(model, name, 0) is getattr(model.blocks[0], name)
    assert part(small(), "gate", 0).weight.shape == (20, 16)
    fails(lambda: part(small_gpt2(), "gate", 0), "gate", "query")


def test_a_start_of_our_own():
    model = small()
    assert torch.equal(model.blocks[0].norm.weight, torch.ones(16)) and torch.equal(
        model.last_norm.weight, torch.ones(16)
    )
    assert model.embeddings.word.weight[PAD].abs().min() > 0  # what pads may be a token like any other
    assert small_gpt2().blocks[0].up.bias.abs().max() == 0 and small_gpt2().config.ffn == 64


# ---- what is refused

@pytest.mark.parametrize("model", [small(), small_gpt2()], ids=["llama", "gpt2"])
def test_a_text_too_long_is_refused(model):
    with torch.no_grad():
        assert model(texts((9, 4), "right")).logits.shape == (2, 2)
        fails(lambda: model(texts((10, 4), "right")), "10 tokens", "9 positions", "max_len")


def test_a_llama_without_a_language_model_head_says_so():
    batch = texts((3,), "right")
    fails(lambda: small().predict_tokens(batch, batch.mask), "no language-model head")


@pytest.mark.parametrize("more, words", [
    (dict(rope_scaling={"rope_type": "yarn", "factor": 4.0}), ("'yarn'", "default", "linear", "dynamic", "llama3")),
    (dict(rope_scaling=[1]), ("[1]", "llama3")),
    (dict(rope_scaling={"rope_type": ["linear"]}), ("['linear']", "llama3")),
    (dict(rope_scaling={"rope_type": "linear"}), ("'linear'", "factor", "None")),
    (dict(rope_scaling=LLAMA3 | {"factor": "8"}), ("'llama3'", "factor", "'8'")),
    (dict(rope_scaling=LLAMA3 | {"high_freq_factor": 1.0}), ("low_freq_factor 1.0", "high_freq_factor 1.0")),
    (dict(kv_heads=3), ("4 heads", "3 key-value heads")),
    (dict(head_size=5), ("5", "odd")),
    (dict(hidden=18), ("18", "4 heads")),
    (dict(activation="swish"), ("'swish'", "silu")),
    (dict(lm=True, tied=True), ("lm", "tied")),
])
def test_a_config_that_cannot_be_computed_is_refused(more, words):
    fails(lambda: small(**more), *words)


# ---- config.json

def test_configs_are_values():
    config = small(rope_scaling=dict(LLAMA3)).config
    assert LlamaConfig(**json.loads(json.dumps(asdict(config)))) == config == replace(config) and hash(config) == hash(
        replace(config)
    )
    assert config != replace(config, rope_scaling={}) and (config.max_len, config.kv_heads, config.head_size) == (
        9, 2, 4,
    )
    assert LlamaConfig(vocab=9, hidden=16, layers=1, heads=4, ffn=9).kv_heads == 4
    assert Gpt2Config(**json.loads(json.dumps(asdict(small_gpt2().config)))) == small_gpt2().config


@pytest.mark.parametrize(
    "values, ours",
    [
        ({}, (10000.0, {})), ({"rope_theta": 500.0, "rope_scaling": None}, (500.0, {})),
        (
            {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
            (500.0, {"rope_type": "linear", "factor": 2.0}),
        ),
        ({"rope_theta": 5e5, "rope_scaling": LLAMA3}, (5e5, LLAMA3)),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, (500.0, {})),
        ({"rope_parameters": LLAMA3 | {"rope_theta": 5e5}}, (5e5, LLAMA3)),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500.0}},
            (500.0, {"rope_type": "dynamic", "factor": 2.0}),
        ),
        (
            {
                "rope_scaling": {name: LLAMA3[name] for name in LLAMA3 if not name.startswith("original")},
                "max_position_embeddings": 64,
            },
            (10000.0, LLAMA3),
        ),
    ],
)
def test_rotary_positions_from_either_spelling_and_back(values, ours):
    rope = rope_from_hf(values)
    assert (rope["rope_theta"], rope["rope_scaling"]) == ours
    mine = small(**rope).config
    theirs = transformers.LlamaConfig(**{"max_position_embeddings": 96} | copy.deepcopy(values))
    back = transformers.LlamaConfig(**json.loads(json.dumps(rope_to_hf(mine))), max_position_embeddings=96)
    # both read it as we do
    assert theirs.rope_parameters.items() - {("type", "linear")} == back.rope_parameters.items()
    assert rope_from_hf(back.to_dict()) == rope_from_hf(rope_to_hf(mine)) == rope


@pytest.mark.parametrize("values, words", [
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 500.0}}, ("yarn",)),
    ({"rope_scaling": {"type": "longrope"}}, ("longrope",)),
    ({"rope_scaling": {"rope_type": "linear"}}, ("linear", "factor")),
    ({"rope_scaling": "linear 2"}, ("linear 2",)),
    ({"partial_rotary_factor": 0.5}, ("0.5",)),
    ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.25}}, ("linear", "0.25")),
])
def test_rotary_positions_that_are_not_known(values, words):
    fails(lambda: small(**rope_from_hf(values)), "rope type", *words)


@pytest.mark.parametrize("mapping", [llama.HF_MAPPING, gpt2.HF_MAPPING], ids=["llama", "gpt2"])
def test_what_pads_where_config_json_does_not_say(mapping):
    for values, pad in (
        ({}, 0), ({"eos_token_id": None}, 0), ({"eos_token_id": 7, "pad_token_id": None}, 7),
        ({"eos_token_id": [8]}, 8),
    ):
        assert mapping.from_hf(values)["pad"] == pad
    assert "pad" not in mapping.from_hf({"pad_token_id": 3, "eos_token_id": 7})
    assert llama.from_hf({"pad_token_id": -1, "eos_token_id": 7})["pad"] == 7  # so in folders of the first Llama


def test_buffers_of_old_folders_are_ignored_and_biases_are_not():
    assert all(
        name.endswith(gpt2.HF_MAPPING.ignored) for name in ("h.0.attn.bias", "transformer.h.11.attn.masked_bias")
    )
    assert "model.layers.0.self_attn.rotary_emb.inv_freq".endswith(llama.HF_MAPPING.ignored)
    for model, mapping in ((small(bottleneck=3), llama.HF_MAPPING), (small_gpt2(), gpt2.HF_MAPPING)):
        for name in model.state_dict().keys() - {"head_mask"}:
            assert not mapping.hf_tensor(name).name.endswith(mapping.ignored)
