"""models/prefix.py against peft's PREFIX_TUNING: logits, and gradients of the prefix, for BERT, Llama and GPT-2.

peft hands the prefix over as what a model has already read, and so transformers counts the text's tokens from n on; it
adds n to the places that it is given, too. Ours are counted from 0. Both are held against ours below: peft with its n
taken back, and peft as it is.
"""
from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from minibd.models import bert
from minibd.models.encoder import Encoder
from minibd.models.llama import frequencies
from minibd.models.prefix import prefix
from minibd.records import Batch

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
from test_causal_transformers import LENGTHS, PAD, far, lies, texts, twins

# peft's, of transformers
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

N = 3
BERT = dict(
    vocab_size=59, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=37,
    max_position_embeddings=20, layer_norm_eps=0.01, pad_token_id=PAD, num_labels=3,
)
CASES = ["bert", "llama", "two kv heads, llama3", "gpt2"]
# BERT's positions are columns: its padding belongs on the right.
BATCHES = [(case, much, side) for case in CASES for much in LENGTHS for side in ("right", "left")
           if side == "right" or case != "bert" and much != "none"]

both = pytest.mark.parametrize("mlp", [True, False], ids=["mlp", "direct"])


def bert_twins() -> tuple[Encoder, nn.Module]:
    torch.manual_seed(1)
    theirs = transformers.BertForSequenceClassification._from_config(
        transformers.BertConfig(**BERT), attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    ours = {name: BERT[key] for name, key in bert.HF_MAPPING.config.items() if key in BERT}
    mine = bert.Bert(bert.BertConfig(**ours, labels=3)).eval()
    state = theirs.state_dict()
    hf_tensor = {name: bert.HF_MAPPING.hf_tensor(name) for name in mine.state_dict() if name != "head_mask"}
    mine.load_state_dict(
        {name: lies(state[where.name], where) for name, where in hf_tensor.items()} | {"head_mask": mine.head_mask}
    )
    return mine, theirs


def prefixed(case: str, mlp: bool) -> tuple[Encoder, nn.Module]:
    """Ours and theirs, both with the prefix that peft draws."""
    mine, theirs = bert_twins() if case == "bert" else twins(case)[:2]
    # peft makes its embedding as wide as the keys; ours has any width
    d = mine.blocks[0].key.out_features
    settings = peft.PrefixTuningConfig(
        task_type="SEQ_CLS", num_virtual_tokens=N, prefix_projection=mlp, encoder_hidden_size=d
    )
    theirs = peft.get_peft_model(theirs, settings).eval()
    for p in theirs.parameters():
        p.requires_grad_(False)
    encoder = theirs.prompt_encoder.default.requires_grad_(True)
    mine.requires_grad_(False)
    prefix(mine, tokens=N, generator=torch.Generator().manual_seed(0), reparameterise=mlp, width=d)
    with torch.no_grad():
        if mlp:
            first = mine.blocks[0].prefix
            first.rows.copy_(encoder.embedding.weight)
            first.mlp[0].weight.copy_(encoder.transform[0].weight)
            first.mlp[0].bias.copy_(encoder.transform[0].bias)
        for l, block in enumerate(mine.blocks):
            for p, whole in zip(own(block), layers(encoder)):
                p.copy_(whole(l, d))
    return mine, theirs


def own(block: nn.Module) -> list[nn.Parameter]:
    """What of the prefix is this layer's alone."""
    return [block.prefix.rows] if block.prefix.mlp is None else [block.prefix.mlp[2].weight, block.prefix.mlp[2].bias]


def layers(encoder: nn.Module, grad: bool = False):
    """The same of theirs, each by (layer, width of the keys): keys of layer 0, values of layer 0, keys of layer 1,
    ..."""
    read = (lambda p: p.grad) if grad else (lambda p: p)
    if not encoder.prefix_projection:
        return [lambda l, d: read(encoder.embedding.weight)[:, 2 * l * d:2 * (l + 1) * d]]
    return [
        lambda l, d, p=p: read(p)[2 * l * d : 2 * (l + 1) * d]
        for p in (encoder.transform[2].weight, encoder.transform[2].bias)
    ]


def ask(theirs: nn.Module, batch: Batch, first: int) -> Tensor:
    """Their logits, the first token of every text having position `first`."""
    token_types = {"token_type_ids": batch.token_type_ids} if theirs.config.model_type == "bert" else {}
    columns = torch.arange(batch.ids.shape[1]).expand_as(batch.ids)
    at = columns if token_types else (batch.mask.long().cumsum(1) - 1).clamp(min=0)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long(), "position_ids": at - N + first}
    return theirs(**inputs, **token_types).logits


@both
@pytest.mark.parametrize("case, much, side", BATCHES)
def test_the_same_logits_and_the_same_gradients_of_the_prefix(case, much, side, mlp):
    mine, theirs = prefixed(case, mlp)
    batch, encoder, d = texts(LENGTHS[much], side), theirs.prompt_encoder.default, mine.blocks[0].key.out_features
    logits = ask(theirs, batch, 0)
    logits.square().sum().backward()
    for want in ((), ("attn",)):
        mine.zero_grad()
        ours = mine(batch, want).logits
        ours.square().sum().backward()
        assert far(ours, logits) < 2e-5 * max(1, logits.abs().max().item())
        pairs = [
            (p.grad, whole(l, d))
            for l, block in enumerate(mine.blocks)
            for p, whole in zip(own(block), layers(encoder, grad=True))
        ]
        if mlp:
            first = mine.blocks[0].prefix
            pairs += [
                (first.rows.grad, encoder.embedding.weight.grad),
                (first.mlp[0].weight.grad, encoder.transform[0].weight.grad),
                (first.mlp[0].bias.grad, encoder.transform[0].bias.grad),
            ]
        largest = max(theirs.abs().max().item() for _, theirs in pairs)
        assert largest > 0.01 and len(pairs) == (9 if mlp else 3)
        assert all(far(a, b) < 1e-4 * max(1, largest) for a, b in pairs)


@pytest.mark.parametrize("case", ["bert", "llama", "gpt2"])
def test_the_prefix_is_seen(case):
    """What the test above would not tell of two models that both overlook it."""
    mine, theirs = prefixed(case, False)
    batch = texts(LENGTHS["little"], "right")
    with_one = ask(theirs, batch, 0)
    assert far(with_one, theirs.get_base_model()(input_ids=batch.ids, attention_mask=batch.mask.long()).logits) > 0.01
    with torch.no_grad():
        mine.blocks[2].prefix.rows[N - 1] += 1.0                 # the last position of the last layer
    assert far(mine(batch).logits, with_one) > 1e-3


@pytest.mark.parametrize("case", ["bert", "gpt2"])
def test_peft_as_it_is_counts_learned_positions_from_n(case):
    mine, theirs = prefixed(case, False)
    batch = texts(LENGTHS["little"], "right")
    token_types = {"token_type_ids": batch.token_type_ids} if case == "bert" else {}
    logits = theirs(input_ids=batch.ids, attention_mask=batch.mask.long(), **token_types).logits
    assert far(mine(batch).logits, logits) > 0.01
    with torch.no_grad():
        mine.embeddings.position.weight.copy_(mine.embeddings.position.weight.roll(-N, 0))
    assert far(mine(batch).logits, logits) < 2e-5 * max(1, logits.abs().max().item())


@pytest.mark.parametrize("case", ["llama", "two kv heads, llama3"])
def test_peft_as_it_is_has_llamas_prefix_turned_by_n_places(case):
    """A query at n + p over P_K is a query at p over P_K turned back by n: the same set of models."""
    mine, theirs = prefixed(case, False)
    batch = texts(LENGTHS["little"], "right")
    logits = theirs(input_ids=batch.ids, attention_mask=batch.mask.long()).logits
    assert far(mine(batch).logits, logits) > 1e-3
    angles = -N * frequencies(mine.config, torch.device("cpu"))  # (Dh / 2,)
    with torch.no_grad():
        for block in mine.blocks:
            keys, values = block.prefix.rows.chunk(2, dim=-1)
            a, b = keys.unflatten(-1, (mine.config.kv_heads, 2, -1)).unbind(2)  # (n, H_kv, Dh / 2) each
            turned = torch.stack((a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()), dim=2)
            block.prefix.rows.copy_(torch.cat((turned.flatten(1), values), dim=-1))
    assert far(mine(batch).logits, logits) < 2e-5 * max(1, logits.abs().max().item())
