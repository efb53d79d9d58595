"""The encoders beside BERT against transformers: small random models, batches with much, little and no padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from conftest import fails
from minibd.models import distilbert, electra, mpnet, roberta, xlm_roberta
from minibd.models.dropout import seed_dropout
from minibd.models.encoder import Encoder, HFMapping, PackedBatch, part
from minibd.records import Batch

transformers = pytest.importorskip("transformers")

LONGEST = 13
SHAPE = dict(vocab=61, hidden=24, layers=3, heads=4, ffn=37, dropout=0.0, attention_dropout=0.0, classifier_dropout=0.5)
OWN = {  # the positions come to LONGEST tokens; an epsilon this large shows where it is forgotten
    "roberta": dict(positions=LONGEST + 2, pad=1, eps=0.01, type_vocab_size=1),
    "distilbert": dict(positions=LONGEST, pad=0),
    "mpnet": dict(positions=LONGEST + 2, pad=1, eps=0.01),
    "xlm-roberta": dict(positions=LONGEST + 2, pad=1, eps=0.01, type_vocab_size=1),
    "electra": dict(positions=LONGEST, pad=0, eps=0.01, embedding_size=16),
}
HF_MAPPINGS = {module.HF_MAPPING.model_type: module.HF_MAPPING
               for module in (roberta, distilbert, mpnet, xlm_roberta, electra)}
FROM_PADDING = ("roberta", "mpnet", "xlm-roberta")  # positions are counted from the padding index
LENGTHS = {"packed": (LONGEST, 1, 4, 7), "padded": (LONGEST, 12, 9, LONGEST), "full": (LONGEST,) * 3}

every = pytest.mark.parametrize("name", HF_MAPPINGS)
every_batch = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)


def build(name: str, head: int = 0, **more) -> tuple[Encoder, nn.Module]:
    """Ours and transformers' with the same random weights, in eval mode. head: of HF_MAPPING.classes (0 classifier, 1
    LM, 2 bare)."""
    torch.manual_seed(1)
    mapping, shape = HF_MAPPINGS[name], SHAPE | OWN[name] | more
    labels = shape.pop("labels", 3)
    shape = {key: value for key, value in shape.items() if key in mapping.config}
    theirs = getattr(transformers, mapping.classes[head])(
        getattr(transformers, mapping.config_class.__name__)(
            **{mapping.config[key]: value for key, value in shape.items()}, num_labels=labels,
            attn_implementation="eager",
        )
    ).eval()
    mine = mapping.model(mapping.config_class(**shape, labels=0 if head else labels, mlm=head == 1)).eval()
    state = {with_prefix(mapping, key): tensor for key, tensor in theirs.state_dict().items()}
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * (0.2 if p.dim() > 1 else 0.1))  # or no score, no bias and no norm would matter
        used = set()
        for ours, p in mine.named_parameters():
            there = mapping.hf_tensor(ours)
            assert (there.chunk, there.chunks, there.transposed) == (0, 1, False) and p.shape == state[there.name].shape
            p.copy_(state[there.name])
            used.add(there.name)
    assert len(used) == len(list(mine.parameters()))
    for tensor in set(state) - used:
        assert tensor.endswith(mapping.ignored) or torch.equal(state[tensor], state[mapping.tied[tensor]]), tensor
    return mine, theirs


def with_prefix(mapping: HFMapping, tensor: str) -> str:
    """A tensor's name as a model with a head has it: a bare model's lack the prefix."""
    return tensor if tensor.startswith((mapping.prefix, *mapping.head_prefixes)) else mapping.prefix + tensor


def batch_of(name: str, lengths: tuple[int, ...], left: bool = False) -> Batch:
    """Random tokens, none of them padding, and random token types, which ELECTRA alone may look at."""
    random = torch.Generator().manual_seed(2)
    b, t, pad = len(lengths), max(lengths), OWN[name]["pad"]
    ids, mask = torch.full((b, t), pad), torch.zeros(b, t, dtype=torch.bool)
    for i, n in enumerate(lengths):
        where = slice(t - n, t) if left else slice(n)
        ids[i, where] = torch.randint(2, SHAPE["vocab"], (n,), generator=random)
        mask[i, where] = True
    return Batch(ids, mask, torch.randint(0, 2, (b, t), generator=random), torch.zeros(b, dtype=torch.long))


def one(batch: Batch, i: int) -> Batch:
    """Text i alone, without padding."""
    real = batch.mask[i]
    return Batch(
        batch.ids[i : i + 1, real], batch.mask[i : i + 1, real], batch.token_type_ids[i : i + 1, real],
        batch.labels[i : i + 1],
    )


def ask(theirs: nn.Module, batch: Batch):
    types = {"token_type_ids": batch.token_type_ids} if theirs.config.model_type == "electra" else {}
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), **types}
    return theirs(**inputs, output_hidden_states=True, output_attentions=True)


def rows(maps: Tensor, batch: Batch) -> Tensor:
    """(B, H, T, T) -> the rows of real queries, (N, H, T)."""
    return maps.transpose(1, 2)[batch.mask]


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def same_states(out, ref, batch: Batch) -> None:
    """Hidden states at real tokens and attention maps at real queries, all layers."""
    assert (
        len(out.hidden) == len(ref.hidden_states) == SHAPE["layers"] + 1
        and len(out.attn) == len(ref.attentions) == SHAPE["layers"]
    )
    for a, b in zip(out.hidden, ref.hidden_states):
        assert far(a[batch.mask], b[batch.mask]) < 1e-5
    for a, b in zip(out.attn, ref.attentions):
        assert far(rows(a, batch), rows(b, batch)) < 1e-5


def same_gradients(mine: Encoder, theirs: nn.Module, mapping: HFMapping) -> None:
    """Every parameter's, and none of transformers' left over."""
    reference = {mapping.tied.get(name, name): p.grad for name, p in theirs.named_parameters()}
    for name, p in mine.named_parameters():
        other = reference.pop(mapping.hf_tensor(name).name)
        # A softmax does not see what is added to all its scores alike, so a key's bias has no gradient.
        assert name.endswith("key.bias") or p.grad.abs().max() > 1e-3, name
        assert far(p.grad, other) < 1e-4, name
    assert not reference


def test_the_batches_take_all_paths():
    packed, padded, full = (PackedBatch(batch_of("roberta", lengths).mask) for lengths in LENGTHS.values())
    assert packed.index is not None and padded.index is None and padded.mask is not None and full.mask is None


# ---- the same numbers as transformers

@every
@every_batch
@pytest.mark.parametrize("labels", [2, 3])
@torch.no_grad()
def test_logits_hidden_states_and_attention(name, lengths, labels):
    mine, theirs = build(name, labels=labels)
    batch = batch_of(name, lengths)
    out, ref = mine(batch, want=("attn", "hidden")), ask(theirs, batch)
    assert out.logits.shape == (len(lengths), labels) and far(out.logits, ref.logits) < 1e-5
    same_states(out, ref, batch)
    assert far(part(mine, "classifier")(out.pooled), out.logits) == 0


@every
@torch.no_grad()
def test_a_bare_encoder(name):
    mine, theirs = build(name, head=2)
    batch = batch_of(name, LENGTHS["packed"])
    out = mine(batch, want=("attn", "hidden"))
    assert out.logits is None and out.pooled is None
    same_states(out, ask(theirs, batch), batch)


@pytest.mark.parametrize("lengths", [LENGTHS["packed"], LENGTHS["padded"]], ids=["packed", "padded"])
@pytest.mark.parametrize("name", FROM_PADDING)
@torch.no_grad()
def test_padding_on_the_left(name, lengths):
    mine, theirs = build(name)
    left, right = batch_of(name, lengths, left=True), batch_of(name, lengths)
    assert torch.equal(left.ids[left.mask], right.ids[right.mask])
    out = mine(left, want=("attn", "hidden"))
    same_states(out, ask(theirs, left), left)
    # transformers' head reads column 0, which is padding here: it must be asked with padding on the right.
    assert far(out.logits, ask(theirs, right).logits) < 1e-5


@pytest.mark.parametrize("name", ["roberta", "xlm-roberta"])
@torch.no_grad()
def test_the_first_row_of_a_longer_kind_table_is_read(name):
    mine, theirs = build(name, type_vocab_size=2)
    batch = batch_of(name, LENGTHS["packed"])
    assert len(mine.embeddings.token_type.weight) == 2 and far(mine(batch).logits, ask(theirs, batch).logits) < 1e-5


@torch.no_grad()
def test_an_electra_as_wide_as_its_embeddings_has_no_projection():
    mine, theirs = build("electra", embedding_size=24)
    batch = batch_of("electra", LENGTHS["padded"])
    assert mine.embeddings.project is None and far(mine(batch).logits, ask(theirs, batch).logits) < 1e-5


@every
# RoBERTa's head is a gelu whatever its blocks are, DistilBERT's is not
@pytest.mark.parametrize("activation", ["gelu", "relu"])
@every_batch
def test_masked_lm_logits_and_gradients(name, activation, lengths):
    mine, theirs = build(name, head=1, activation=activation)
    batch = batch_of(name, lengths)
    at = batch.mask & (torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.5)
    out, ref = mine.predict_tokens(batch, at), ask(theirs, batch).logits[at]
    assert far(out, ref) < 1e-5
    for logits in (out, ref):
        logits.square().mean().backward()
    same_gradients(mine, theirs, HF_MAPPINGS[name])


@every
@every_batch
def test_gradients_of_logits_hidden_and_attention(name, lengths):
    mine, theirs = build(name)
    batch = batch_of(name, lengths)

    def loss(logits, hidden, attn):
        return (logits.logsumexp(-1).sum() + sum(h[batch.mask].pow(3).mean() for h in hidden)
                + sum(rows(a, batch).square().sum() for a in attn))

    out, ref = mine(batch, want=("hidden", "attn")), ask(theirs, batch)
    loss(out.logits, out.hidden, out.attn).backward()
    loss(ref.logits, ref.hidden_states, ref.attentions).backward()
    same_gradients(mine, theirs, HF_MAPPINGS[name])


# ---- what must not matter, and what must

@every
@every_batch
@torch.no_grad()
def test_fused_path_equals_the_explicit_one(name, lengths):
    mine, _ = build(name)
    batch = batch_of(name, lengths)
    fused, explicit = mine(batch, want=("hidden",)), mine(batch, want=("hidden", "attn"))
    assert far(mine(batch).logits, explicit.logits) < 1e-5 and far(fused.pooled, explicit.pooled) < 1e-5
    assert all(far(a[batch.mask], b[batch.mask]) < 1e-5 for a, b in zip(fused.hidden, explicit.hidden))


@every
@pytest.mark.parametrize("lengths", [LENGTHS["packed"], LENGTHS["padded"]], ids=["packed", "padded"])
@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(name, lengths):
    mine, _ = build(name)
    batch = batch_of(name, lengths)
    together = mine(batch, want=("attn",))
    backwards = mine(Batch(*(t.flip(0) for t in (batch.ids, batch.mask, batch.token_type_ids, batch.labels))))
    assert far(backwards.logits.flip(0), together.logits) < 1e-5
    for i, t in enumerate(lengths):
        alone = mine(one(batch, i), want=("attn",))
        assert far(alone.logits[0], together.logits[i]) < 1e-5
        assert far(alone.attn[-1][0], together.attn[-1][i, :, :t, :t]) < 1e-5


@every
@torch.no_grad()
def test_a_masked_head_changes_the_logits_and_not_its_own_map(name):
    mine, _ = build(name)
    batch = batch_of(name, LENGTHS["packed"])
    before = mine(batch, want=("attn",))
    mine.head_mask[1, 2] = 0
    after, fused = mine(batch, want=("attn",)), mine(batch)
    assert far(before.logits, after.logits) > 1e-3 and far(after.logits, fused.logits) < 1e-5
    assert (
        far(before.attn[1], after.attn[1]) == 0 and far(rows(before.attn[2], batch), rows(after.attn[2], batch)) > 1e-4
    )


@pytest.mark.parametrize("name", [name for name in HF_MAPPINGS if name != "mpnet"])  # whose head has no p of its own
@torch.no_grad()
def test_the_head_in_train_mode(name):
    mine, _ = build(name)
    batch = batch_of(name, LENGTHS["packed"])
    seed_dropout(mine.train(), torch.Generator().manual_seed(3))
    out = mine(batch, want=("hidden",))
    seed_dropout(mine, torch.Generator().manual_seed(3))  # only the head drops here: see SHAPE
    drop, first = mine.classifier_dropout, out.hidden[-1][:, 0]
    act = {"distilbert": torch.relu, "electra": nn.functional.gelu}.get(name, torch.tanh)
    pooled = act(mine.pooler(first if name == "distilbert" else drop(first)))
    assert far(out.pooled, pooled) < 1e-6 and far(out.logits, mine.classifier(drop(pooled))) < 1e-6


@every
def test_too_long_a_batch(name):
    mine, _ = build(name)
    assert mine.config.max_len == LONGEST
    fails(lambda: mine(batch_of(name, (LONGEST + 1, 2))), str(LONGEST + 1), str(LONGEST), "max_len")


@every
def test_parts(name):
    mine, _ = build(name)
    assert part(mine, "penultimate") is mine.pooler and part(mine, "classifier") is mine.classifier
    assert part(mine, "word") is mine.embeddings.word and part(mine, "query", 1) is mine.blocks[1].query
    hf_tensor = HF_MAPPINGS[name].hf_tensor
    assert (
        hf_tensor("blocks.1.query.weight").name
        == {
            "roberta": "roberta.encoder.layer.1.attention.self.query.weight",
            "distilbert": "distilbert.transformer.layer.1.attention.q_lin.weight",
            "mpnet": "mpnet.encoder.layer.1.attention.attn.q.weight",
            "xlm-roberta": "roberta.encoder.layer.1.attention.self.query.weight",
            "electra": "electra.encoder.layer.1.attention.self.query.weight",
        }[name]
    )
    assert hf_tensor("pooler.bias").name == {"distilbert": "pre_classifier.bias"}.get(name, "classifier.dense.bias")


@every
def test_init_weights_hang_on_the_seed_alone(name):
    mine, _ = build(name)
    other = HF_MAPPINGS[name].model(mine.config)
    mine.init_weights(torch.Generator().manual_seed(4))
    other.init_weights(torch.Generator().manual_seed(4))
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), other.state_dict().values(), strict=True))
    assert mine.embeddings.word.weight[OWN[name]["pad"]].abs().max() == 0 and 0.01 < mine.pooler.weight.std() < 0.03
    other.init_weights(torch.Generator().manual_seed(5))
    assert far(mine.pooler.weight, other.pooler.weight) > 0.01


def test_configs_that_cannot_be():
    config, shape = roberta.RobertaConfig, dict(vocab=9, hidden=8, layers=1, heads=2, ffn=8)
    assert config(**shape).max_len == 512 and config(**shape, positions=3).max_len == 1
    fails(lambda: config(**shape, positions=2), "2 positions", "3")
    fails(lambda: config(**shape | {"heads": 3}), "8", "3 heads")
    fails(lambda: distilbert.DistilBertConfig(**shape | {"heads": 3}), "8", "3 heads")
    fails(lambda: distilbert.DistilBertConfig(**shape, activation="tanhh"), "tanhh", "gelu")
    config = mpnet.MPNetConfig
    assert config(**shape).max_len == 510 and config(**shape, dropout=0.3).classifier_dropout == 0.3
    fails(lambda: config(**shape, positions=2), "2 positions", "3")
    fails(lambda: config(**shape, pad=0), "padding token 0", "1")
    fails(lambda: config(**shape | {"heads": 3}), "8", "3 heads")
    fails(lambda: electra.ElectraConfig(**shape | {"heads": 3}), "8", "3 heads")


# ---- MPNet's bias by relative position

def row_of(distance: int) -> int:
    """The same by its words: 0 and the 7 distances next to it have a row each; then row 8 + floor(8 log_16(d / 8)), 15
    at most; keys behind the query 16 rows further."""
    d = abs(distance)
    row = d if d < 8 else min(15, 8 + math.floor(8 * math.log(d / 8) / math.log(16) + 1e-9))
    return row + 16 * (distance > 0)


def test_buckets_against_a_plain_loop():
    distances = list(range(-600, 601))
    assert mpnet.bucket(torch.tensor(distances)).tolist() == [row_of(d) for d in distances]
    assert {row_of(d) for d in distances} == set(range(32)) - {16}  # a key behind the query is at least 1 away


def test_buckets_are_transformers():
    bias = transformers.models.mpnet.modeling_mpnet.MPNetEncoder
    place = torch.arange(512)
    expected = bias.relative_position_bucket(place[None, :] - place[:, None])
    assert torch.equal(mpnet.RelativePositionBias.rows(512, torch.device("cpu")), expected)


@torch.no_grad()
def test_the_bias_is_added_once_in_every_layer_and_hangs_on_the_distance_alone():
    mine, _ = build("mpnet")
    batch = batch_of("mpnet", LENGTHS["padded"])
    bias = mine.pack(batch).bias  # (B, H, T, T)
    table = mine.relative_attention_bias.weight
    for i, j in ((0, 0), (3, 1), (2, 11), (12, 0)):
        assert torch.equal(bias[:, :, i, j], table[row_of(j - i)].expand(4, -1))
    block, packed = mine.blocks[1], mine.pack(batch)
    h = packed.pack(torch.randn(4, LONGEST, 24, generator=torch.Generator().manual_seed(0)))
    _, with_bias = block.attention(h, packed, None, want=True)
    packed.bias = None
    _, without = block.attention(h, packed, None, want=True)
    added = (without.log() + bias).softmax(-1)  # exp(s + b) / sum
    assert far(rows(with_bias, batch), rows(added, batch)) < 1e-5 and far(with_bias, without) > 0.01
