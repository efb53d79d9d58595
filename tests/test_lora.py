"""Low-rank layers: Eq. (6) by hand, against plain loops and the released code's numbers; merged models; two groups'
gradients in one pass."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import fails
from minibd import checkpoint
from minibd.align import AlignedAdamW, Groups, align, interpolate, twins_of
from minibd.checkpoint import Checkpoint
from minibd.models import encoder
from minibd.models.bert import Bert, BertConfig
from minibd.models.dropout import Dropout
from minibd.models.encoder import Encoder
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import PRESETS, LowRank, Preset, freeze, lora, merge, multi_scale, preset, with_groups
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.records import Batch
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, cross_entropy, fit
from test_encoder import LLAMAS, MODELS, SHAPE, made, padded
from test_mbtsad import LETTERS

GOLDEN = Path(__file__).parents[2] / "shared" / "golden" / "musclelora_layer.safetensors"
TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS])}, 48)
HEADED = [name for name in MODELS if name != "gpt2"]             # those with a penultimate layer
SMALL = {"bands": (1, 3), "bandwidth": 2, "alpha": 3.0}


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(inside: int, outside: int, dtype: torch.dtype = torch.float32, bias: bool = True) -> nn.Linear:
    made = nn.Linear(inside, outside, bias=bias, device="meta")
    made.weight = nn.Parameter(torch.randn(outside, inside, generator=chance(7)).to(dtype))
    made.bias = nn.Parameter(torch.randn(outside, generator=chance(8)).to(dtype)) if bias else None
    return made


def muscle(name: str, init: str = "kaiming", **more) -> Encoder:
    """A model as MuScleLoRA trains it, its R no longer 0."""
    model = made(name, **more)
    freeze(model)
    lora(model, rank=2, alpha=4, generator=chance(1))
    multi_scale(model, **SMALL, init=init, generator=chance(2))
    with torch.no_grad():
        for block in model.blocks:
            for layer in (block.query, block.value):
                layer.R.normal_(0.0, 0.3, generator=chance(3))
    return model


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def labelled(lengths: list[int], left: bool = False) -> Batch:
    batch = padded(lengths, left)
    return Batch(batch.ids, batch.mask, batch.token_type_ids, torch.arange(len(lengths)) % 2)


# ---- Eq. (6)

def test_the_layer_by_hand():
    layer = LowRank(linear(2, 2), 2, 3.0, chance(), s=torch.tensor([1.0, 4.0]))
    with torch.no_grad():
        layer.weight.copy_(torch.eye(2))
        layer.bias.copy_(torch.tensor([10.0, 20.0]))
        layer.L.copy_(torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
        layer.R.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
    # x = (1, 2): L x = (3, 4), * s = (3, 16), R of it = (3, 19), times 3 = (9, 57), and x + b
    assert layer(torch.tensor([1.0, 2.0])[None]).tolist() == [[20.0, 79.0]]
    layer.s = None
    assert layer(torch.tensor([1.0, 2.0])[None]).tolist() == [[20.0, 43.0]]           # R (3, 4) = (3, 7)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_against_plain_loops(scaled, bias):
    s = torch.tensor([1.0, 2.0, 5.0])
    layer = LowRank(linear(4, 2, torch.float64, bias), 3, 0.5, chance(), s=s if scaled else None, init="kaiming")
    x = torch.randn(2, 5, 4, generator=chance(4), dtype=torch.float64)
    y = layer(x)
    assert y.shape == (2, 5, 2) and y.dtype == torch.float64
    W, L, R = layer.weight.tolist(), layer.L.tolist(), layer.R.tolist()
    for i in range(2):
        for j in range(5):
            row = x[i, j].tolist()
            z = [sum(a * b for a, b in zip(line, row)) * (s[k].item() if scaled else 1.0) for k, line in enumerate(L)]
            expected = [sum(a * b for a, b in zip(W[o], row)) + (layer.bias[o].item() if bias else 0.0)
                        + 0.5 * sum(a * b for a, b in zip(R[o], z)) for o in range(2)]
            assert y[i, j].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("i", range(2))
def test_the_layer_is_that_of_the_released_code(i):
    if not GOLDEN.is_file():
        pytest.skip("the released code's numbers are not here")
    from safetensors.torch import load_file
    golden = {name.removesuffix(f"_{i}"): value for name, value in load_file(GOLDEN).items() if name.endswith(f"_{i}")}
    width = int(golden["inner_rank"])
    base = linear(*reversed(golden["weight"].shape))
    base.weight, base.bias = nn.Parameter(golden["weight"]), nn.Parameter(golden["bias"])

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.pooler = self.embeddings = base
            self.embeddings.word = None                               # part() looks at it
    model = Model()
    multi_scale(
        model, bands=golden["K"][::width].tolist(), bandwidth=width, alpha=golden["alpha"].item(), generator=chance()
    )
    layer = model.pooler
    assert (
        torch.equal(layer.s, golden["K"]) and layer.L.shape == golden["L"].shape and layer.R.shape == golden["R"].shape
    )
    with torch.no_grad():
        layer.L.copy_(golden["L"])
        layer.R.copy_(golden["R"])
        torch.testing.assert_close(layer(golden["x"]), golden["y"], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(layer.merged()(golden["x"]), golden["y"], rtol=1e-5, atol=1e-4)


# ---- how it starts

def test_the_two_starts():
    layer = LowRank(linear(400, 300), 8, 4.0, chance(), init="kaiming")
    for matrix, bound in ((layer.L, 1 / 20), (layer.R, 8 ** -0.5)):
        assert 0.97 * bound < matrix.max() <= bound and -bound <= matrix.min() < -0.97 * bound
        assert (
            matrix.std().item() == pytest.approx(bound / 3**0.5, rel=0.05) and abs(matrix.mean().item()) < 0.05 * bound
        )
    zero = LowRank(linear(400, 300), 8, 4.0, chance())
    assert torch.equal(zero.L, layer.L) and not zero.R.any() and zero.R.shape == (300, 8)
    x = torch.randn(3, 400, generator=chance(1))
    assert torch.equal(zero(x), F.linear(x, zero.weight, zero.bias)) and not torch.allclose(layer(x), zero(x))


def test_kaiming_is_torchs_own():
    """kaiming_uniform(a = sqrt 5), as released, has the bounds that are written out here."""
    layer = LowRank(linear(40, 30), 8, 4.0, chance(), init="kaiming")
    L, R = torch.empty(8, 40), torch.empty(30, 8)
    generator = chance()
    for ours, matrix in ((layer.L, L), (layer.R, R)):
        torch.testing.assert_close(ours.data, nn.init.kaiming_uniform_(matrix, a=math.sqrt(5), generator=generator))


def test_the_released_start_drowns_bert_base():
    """923 beside 15.4: what the module's docstring says."""
    base = linear(768, 768)
    with torch.no_grad():
        base.weight.mul_(0.02)
    numbers = PRESETS["bert-base"]
    layer = LowRank(
        base, 8, numbers.alpha, chance(), s=torch.tensor(numbers.bands, dtype=torch.float32), init="kaiming"
    )
    change = layer.merged().weight - layer.weight
    assert change.norm().item() == pytest.approx(922, rel=0.01) and layer.weight.norm().item() == pytest.approx(
        15.4, rel=0.01
    )
    assert change.std().item() == pytest.approx(1.20, rel=0.01)


def test_the_generator_decides_and_nothing_else_is_drawn():
    first, again, other = (made("bert") for _ in range(3))
    state = torch.get_rng_state()
    for model, seed in ((first, 1), (again, 1), (other, 2)):
        freeze(model)
        lora(model, rank=2, alpha=4, generator=chance(seed))
        multi_scale(model, **SMALL, generator=chance(seed))
    assert all(torch.equal(p, q) for p, q in zip(trained(first), trained(again)))
    assert not torch.equal(first.blocks[0].query.L, other.blocks[0].query.L) and not torch.equal(
        first.pooler.R, other.pooler.R
    )
    assert not torch.equal(first.blocks[0].query.L, first.blocks[0].value.L)
    merge(first)
    assert torch.equal(torch.get_rng_state(), state)


# ---- where the layers stand

@pytest.mark.parametrize("name", [*HEADED, "gpt2"])
def test_lora_stands_at_query_and_value_and_changes_nothing_at_first(name):
    model, batch = made(name), padded([5, 3])
    before = model(batch).logits
    freeze(model)
    lora(model, rank=3, alpha=6, generator=chance())
    torch.testing.assert_close(model(batch).logits, before)
    names = sorted(n for n, p in model.named_parameters() if p.requires_grad)
    assert names == sorted(
        f"blocks.{i}.{part}.{matrix}" for i in range(2) for part in ("query", "value") for matrix in "LR"
    )
    query = model.blocks[1].query
    assert query.scale == 2.0 and query.L.shape == (3, 12) and query.R.shape == (12, 3) and query.s is None
    assert not query.training and (query.in_features, query.out_features) == (12, 12) and query.weight.shape == (12, 12)
    assert (query.bias is None) == (name in LLAMAS and name != "qwen2")


@pytest.mark.parametrize("name", HEADED)
def test_the_multi_scale_layer_stands_at_the_penultimate_one(name):
    model = made(name)
    base = model.pooler
    freeze(model)
    multi_scale(model, bands=(1, 4, 9), bandwidth=2, alpha=6, generator=chance())
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["pooler.L", "pooler.R"]
    layer = model.pooler
    assert layer.s.tolist() == [1, 1, 4, 4, 9, 9] and layer.scale == 3.0 and layer.L.shape == (6, 12) and layer.R.any()
    assert layer.weight is base.weight and layer.bias is base.bias and encoder.part(model, "penultimate") is layer
    assert not any(p is layer.s for p in model.parameters()) and "pooler.s" in model.state_dict()


def test_what_a_layer_stands_in_the_place_of_is_frozen():
    layer = LowRank(linear(4, 3), 2, 1.0, chance())
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["L", "R"]


def test_the_published_numbers():
    assert PRESETS["bert-base"] == Preset((1, 4, 8, 12, 16, 20, 24, 28), 6, 1) and PRESETS["llama"] == Preset(
        (1, 2, 3, 4), 4, 1
    )
    assert PRESETS["roberta-base"] == Preset((1, 2, 4, 6, 8, 10, 12, 14, 16), 6, 1) and PRESETS["large"] == Preset(
        tuple(range(1, 10)), 6, 1
    )


@pytest.mark.parametrize(
    "model, layers, row",
    [
        (Bert, 12, "bert-base"), (Bert, 24, "large"), (Roberta, 12, "roberta-base"), (Roberta, 24, "large"),
        (Bert, 6, "bert-base"), (Roberta, 6, "roberta-base"), (Bert, 18, "bert-base"), (Bert, 19, "large"),
        (Llama, 32, "llama"), (Llama, 22, "llama"),
    ],
)
def test_the_published_row_of_a_model(model, layers, row):
    config = {Bert: BertConfig, Roberta: RobertaConfig, Llama: LlamaConfig}[model](**SHAPE | {"layers": layers})
    with torch.device("meta"):
        assert preset(model(config)) == row


def test_the_published_row_of_the_others():
    assert preset(made("distilbert")) == "bert-base" and preset(made("gpt2")) == "llama"


def test_models_and_numbers_that_cannot_be():
    for model in (made("gpt2"), Llama(LlamaConfig(**SHAPE)).eval(), made("bert", labels=0)):
        fails(lambda: multi_scale(model, **SMALL, generator=chance()), "no penultimate", "bottleneck=16")
    bert = made("bert")
    fails(lambda: multi_scale(bert, bands=(), bandwidth=1, alpha=1, generator=chance()), "0 bands")
    fails(lambda: multi_scale(bert, bands=(1,), bandwidth=0, alpha=1, generator=chance()), "width 0")
    fails(lambda: multi_scale(bert, **SMALL, init="ones", generator=chance()), "'ones'", "kaiming, zero")
    fails(lambda: lora(bert, rank=0, alpha=1, generator=chance()), "rank of 0")
    with pytest.raises(ValueError, match="LowRank"):
        multi_scale(muscle("bert"), **SMALL, generator=chance())


# ---- types

@pytest.mark.parametrize(
    "weight, matrices",
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_what_is_trained_is_float32_at_least(weight, matrices):
    layer = LowRank(linear(6, 5, weight), 2, 1.0, chance(), s=torch.tensor([1.0, 2.0]), init="kaiming")
    assert layer.L.dtype == layer.R.dtype == matrices and layer.weight.dtype == weight
    x = torch.ones(3, 6, dtype=weight, requires_grad=True)
    layer(x).sum().backward()
    assert layer(x).dtype == x.grad.dtype == weight and layer.L.grad.dtype == matrices


def test_a_step_that_bfloat16_would_round_away_counts():
    layer = LowRank(linear(4096, 5, torch.bfloat16), 2, 1.0, chance())
    before = layer.L.detach().clone()
    optimizer = torch.optim.AdamW([layer.L], lr=1e-5, weight_decay=0.0)
    layer.L.grad = torch.ones_like(layer.L)
    optimizer.step()
    assert (layer.L != before).all() and (layer.L.bfloat16() == before.bfloat16()).float().mean() > 0.5


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_the_layer_under_autocast(weight):
    layer = LowRank(linear(64, 48, weight), 4, 2.0, chance(), s=torch.tensor([1.0, 2.0, 3.0, 5.0]), init="kaiming")
    x, dy = torch.randn(20, 64, generator=chance(1)), torch.randn(20, 48, generator=chance(2))
    results = []
    for on in (False, True):
        leaf = x.clone().requires_grad_()
        plain = copy.deepcopy(layer) if on else copy.deepcopy(layer).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            y = plain(leaf)
        assert y.dtype == (torch.bfloat16 if on else torch.float32)
        (y.float() * dy).sum().backward()
        assert leaf.grad.dtype == plain.L.grad.dtype == plain.R.grad.dtype == torch.float32
        results.append([y.float().detach(), leaf.grad, plain.L.grad, plain.R.grad])
    for a, b in zip(*results):                                        # three roundings to 8 bits, one after the other
        assert (a - b).norm() < 0.02 * a.norm()


def test_products_are_taken_in_the_inputs_type():
    layer = LowRank(linear(6, 5, torch.bfloat16), 2, 1.0, chance(), s=torch.tensor([1.0, 2.0]), init="kaiming")
    x = torch.randn(3, 6, generator=chance(1))
    torch.testing.assert_close(layer(x), copy.deepcopy(layer).float()(x), rtol=1e-6, atol=1e-6)
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_no_graph_is_kept_where_none_is_wanted():
    model = muscle("bert")
    with torch.no_grad():
        assert model(padded([4, 2])).logits.grad_fn is None
    with torch.inference_mode():
        torch.testing.assert_close(model(padded([4, 2])).logits, model(padded([4, 2])).logits)


# ---- merged models

@pytest.mark.parametrize("name", HEADED)
def test_a_merged_model_is_a_plain_one_with_the_same_logits(name):
    model, batch = muscle(name), padded([9, 2, 4, 1])
    ours = model(batch).logits
    before = {n: p.clone() for n, p in model.named_parameters()}
    merge(model)
    assert list(model.state_dict()) == list(made(name).state_dict()) and not [
        m for m in model.modules() if isinstance(m, LowRank)
    ]
    torch.testing.assert_close(model(batch).logits, ours, rtol=1e-4, atol=1e-4)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"pooler.weight", *(f"blocks.{i}.{part}.weight" for i in range(2) for part in ("query", "value"))}
    assert type(model.blocks[0].query) is nn.Linear and not trained(model) and not model.pooler.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_merged_weight_is_rounded_once(dtype):
    layer = LowRank(linear(30, 20, dtype), 3, 7.0, chance(), s=torch.tensor([1.0, 5.0, 28.0]), init="kaiming")
    exact = layer.weight.double() + 7.0 * layer.R.double() @ torch.diag(layer.s.double()) @ layer.L.double()
    assert torch.equal(layer.merged().weight, exact.to(dtype)) and layer.merged().weight.dtype == dtype
    assert layer.merged().bias is layer.bias


@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_a_merged_model_is_saved_as_a_plain_folder(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    model, batch = muscle(name), padded([9, 6, 4])
    ours = model(batch).logits
    merge(model)
    checkpoint.save(Checkpoint(model, TEXT, ("bad", "good"), []), tmp_path / "model")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    token_types = {"token_type_ids": batch.token_type_ids} if name == "bert" else {}
    ids = torch.where(batch.mask, batch.ids, model.config.pad)
    logits = theirs(input_ids=ids, attention_mask=batch.mask.long(), **token_types).logits
    torch.testing.assert_close(logits, ours, rtol=1e-4, atol=1e-4)
    checkpoint.save(Checkpoint(model, TEXT, ("bad", "good"), []), tmp_path / "model.safetensors")
    torch.testing.assert_close(
        checkpoint.load(tmp_path / "model.safetensors").model(batch).logits, ours, rtol=1e-4, atol=1e-4
    )


# ---- two groups

class Masks:
    """Dropout masks of one pass over both groups, played again to each group alone: in place of Dropout.forward."""

    def __init__(self, groups: list[Groups]):
        self.groups, self.masks, self.at, self.play, self.generator = groups, [], 0, None, chance(5)

    def over(self, play: str | None) -> None:
        """From the first mask again: None draws, "first" and "others" play a group's rows."""
        self.at, self.play = 0, play

    def __call__(self, x: Tensor, p: float) -> Tensor:
        if self.play is None:
            self.masks.append(torch.empty(x.shape).bernoulli_(1 - p, generator=self.generator) / (1 - p))
        mask = self.masks[self.at]
        if self.play is not None:
            n = self.groups[self.at * len(self.groups) // len(self.masks)].untrusted(len(mask))
            mask = mask[:n] if self.play == "first" else mask[n:]
        self.at += 1
        return x * mask.to(x.dtype)


def rows_of(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.ids[rows], batch.mask[rows], batch.token_type_ids[rows], batch.labels[rows])


def loss(model: Encoder, batch: Batch) -> Tensor:
    return cross_entropy(model, batch)["cls"]


# Per step its micro-batches: the texts' lengths and how many of the first are untrusted.
STEPS = [
    [([9, 2, 4, 1, 7, 3], 2), ([5, 1, 1, 2, 8], 3)], [([8, 3, 4, 8, 1, 8, 2, 6], 4), ([3, 9, 1], 1)],
    [([4, 2, 6], 2), ([9, 1, 5, 2], 2)],
]
packed = pytest.mark.parametrize("share", [0.0, 1.0], ids=["not packed", "packed"])


def compare(name: str, share: float, left: bool, monkeypatch, dtype: torch.dtype, autocast: bool):
    """Step by step (our model, theirs, their g and r, our optimizer after its backward pass): one pass beside two."""
    monkeypatch.setattr(encoder, "PACK", share)
    ours = muscle(name).to(dtype).train()
    theirs = copy.deepcopy(ours)
    twins = twins_of(trained(ours))
    optimizer = AlignedAdamW(trained(ours), twins, lr=0.01, clip=0.5)
    adam = torch.optim.AdamW(trained(theirs), lr=0.01, weight_decay=0.0)
    seen: Masks
    monkeypatch.setattr(Dropout, "forward", lambda self, x: seen(x, self.p) if self.active else x)
    for step, micro in enumerate(STEPS):
        batches = [(labelled(lengths, left), n) for lengths, n in micro]
        seen = Masks([Groups(batch.mask, n) for batch, n in batches])
        optimizer.zero_grad()
        for batch, n in batches:
            with (
                with_groups(ours, Groups(batch.mask, n), twins),
                torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            ):
                values = loss(ours, batch)
            ((values[:n].mean() + values[n:].mean()) / len(batches)).backward()
        found = []
        for which in ("first", "others"):
            seen.over(which)
            adam.zero_grad()
            for batch, n in batches:
                part = rows_of(batch, slice(n) if which == "first" else slice(n, None))
                with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                    values = loss(theirs, part)
                (values.mean() / len(batches)).backward()
            found.append([p.grad.clone() for p in trained(theirs)])
        yield ours, theirs, found, optimizer
        optimizer.mu = ratio = 0.1 * step / (len(STEPS) - 1)
        for p, g, r in zip(trained(theirs), *found):
            p.grad = interpolate(g, align(g, r), ratio)
        expected = nn.utils.clip_grad_norm_(trained(theirs), 0.5)
        adam.step()
        assert optimizer.step().item() == pytest.approx(expected.item(), rel=0.05 if autocast else 1e-6)


@packed
@pytest.mark.parametrize("name, left", [("bert", False), ("roberta", True), ("llama", False), ("llama", True)])
def test_one_pass_is_two(name, left, share, monkeypatch):
    """In float64, so that Adam's division does not blow rounding up."""
    for ours, theirs, (g, r), optimizer in compare(name, share, left, monkeypatch, torch.float64, False):
        for p, q in zip(trained(ours), trained(theirs)):              # after the last step
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
        for (p, twin), a, b in zip(optimizer.pairs, g, r, strict=True):
            assert a.norm() > 0 and b.norm() > 0
            torch.testing.assert_close(p.grad, a, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(twin.grad, b, rtol=1e-9, atol=1e-9)
    assert len(optimizer.pairs) == 2 * 2 * 2 + 2
    for p, q in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


@packed
@pytest.mark.parametrize("name", ["bert", "roberta", "llama"])
def test_one_pass_is_two_under_autocast(name, share, monkeypatch):
    """Both round every product to 8 bits, 2^-9 of itself; some are added in another order, and of 2 layers' the errors
    come together: a tensor's gradient agrees to 3 % of its norm. Updates then differ by at most Adam's own step either
    way where a gradient is all rounding."""
    for i, (ours, theirs, (g, r), optimizer) in enumerate(
        compare(name, share, False, monkeypatch, torch.float32, True)
    ):
        for p, q in zip(trained(ours), trained(theirs)):
            assert (p - q).abs().max() <= 2 * 0.0101 * i
            with torch.no_grad():
                # so that each step is compared from the same point
                q.copy_(p)
        for (p, twin), a, b in zip(optimizer.pairs, g, r, strict=True):
            if i == 0:
                assert p.grad.dtype == twin.grad.dtype == torch.float32
                assert (p.grad - a).norm() < 0.03 * a.norm() and (twin.grad - b).norm() < 0.03 * b.norm()


def test_the_other_groups_texts_do_not_matter():
    """g is the untrusted texts' alone, whatever the clean ones are, and the other way round."""
    model = muscle("bert")
    twins, found = twins_of(trained(model)), []
    one = labelled([5, 3, 7, 2, 6])
    for change in (None, slice(3, None), slice(3)):
        ids = one.ids.clone()
        if change is not None:
            ids[change] = ids[change].flip(1).clamp(min=3)
        batch = Batch(ids, one.mask, one.token_type_ids, one.labels)
        for t in (*trained(model), *twins):
            t.grad = None
        with with_groups(model, Groups(batch.mask, 3), twins):
            loss(model, batch).sum().backward()
        found.append(([p.grad for p in trained(model)], [t.grad for t in twins]))
    (g, r), (g_same, r_other), (g_other, r_same) = found
    for kept, same, other in ((g, g_same, g_other), (r, r_same, r_other)):
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(kept, same))
        assert not any(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(kept, other))


def test_after_the_groups_all_texts_count_again_even_after_a_failure():
    model, batch = muscle("bert"), labelled([5, 3, 7, 2])
    twins, plain = twins_of(trained(model)), copy.deepcopy(model)
    with pytest.raises(RuntimeError, match="on purpose"):
        with with_groups(model, Groups(batch.mask, 2), twins):
            raise RuntimeError("on purpose")
    with with_groups(model, Groups(batch.mask, 2), twins):
        with pytest.raises(ValueError, match="another batch's"):
            model(labelled([4, 4, 4]))
        values = loss(model, batch)
    model(labelled([4, 4, 4]))                                        # no groups any more
    values.sum().backward()                                           # but what was computed with them knows them still
    assert all(t.grad is not None for t in twins)
    for t in (*trained(model), *twins):
        t.grad = None
    for each in (model, plain):
        loss(each, batch).sum().backward()
    for p, q in zip(trained(model), trained(plain)):
        torch.testing.assert_close(p.grad, q.grad)
    assert all(t.grad is None for t in twins)


def test_groups_need_a_model_that_trains_low_rank_matrices_alone():
    model, batch = muscle("bert"), labelled([5, 3])
    groups, twins = Groups(batch.mask, 1), twins_of(trained(model))
    model.classifier.bias.requires_grad_(True)

    def enter(twins: list[Tensor]) -> None:
        with with_groups(model, groups, twins):
            pytest.fail("entered")
    fails(lambda: enter([*twins, *twins_of([model.classifier.bias])]), "classifier.bias", "two passes")
    model.classifier.bias.requires_grad_(False)
    for wrong in (twins[1:], twins[::-1], [t.clone() for t in twins]):
        with pytest.raises(ValueError, match="not the twins"):
            enter(wrong)
    model.blocks[0].query.R.requires_grad_(False)                     # a matrix may be frozen, too
    fewer = twins_of(trained(model))
    with with_groups(model, groups, fewer):
        loss(model, batch).sum().backward()
    assert model.blocks[0].query.R.grad is None and all(t.grad is not None for t in fewer)


# ---- in fit

def test_fit_trains_the_low_rank_matrices_alone_aligned(tiny):
    from conftest import rows
    ckpt = Checkpoint(copy.deepcopy(tiny.model), tiny.tokenizer, tiny.labels, [])
    model, encoded = ckpt.model, ckpt.tokenizer.encode(rows(48, 0, "train"))
    freeze(model)
    lora(model, rank=2, alpha=8, generator=chance(1))
    multi_scale(model, bands=(1, 2), bandwidth=1, alpha=2, generator=chance(2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    twins, schedule, logged = twins_of(trained(model)), Schedule(1e-3, 2, 16), []
    optimizer = AlignedAdamW(trained(model), twins, lr=schedule.lr, clip=schedule.clip)

    def grouped(model: Encoder, batch: Batch) -> dict[str, Tensor]:
        with with_groups(model, Groups(batch.mask, 8), twins):
            return cross_entropy(model, batch)
    fit(model, ckpt.tokenizer, encoded, grouped, schedule, seed=0, optimizer=optimizer, log=logged.append)
    assert len(logged) == 6 and logged[0]["lr"] == pytest.approx(1e-3) and logged[-1]["lr"] < 1e-3
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {name for name in before if name.endswith((".L", ".R"))}
    assert all(twin.data_ptr() == p.data_ptr() for p, twin in zip(trained(model), twins))


def test_fit_trains_a_plain_lora(tiny):
    from conftest import rows
    model = copy.deepcopy(tiny.model).init_weights(chance(), std=0.2)  # a frozen head of 0.02 hardly speaks
    freeze(model)
    lora(model, rank=2, alpha=8, generator=chance(1))
    multi_scale(model, bands=(1, 2), bandwidth=1, alpha=2, generator=chance(2), init="zero")
    losses = []
    fit(
        model, tiny.tokenizer, tiny.tokenizer.encode(rows(16, 0, "train")), cross_entropy, Schedule(0.03, 30, 16),
        seed=0, log=lambda step: losses.append(step["total"]),
    )
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])
