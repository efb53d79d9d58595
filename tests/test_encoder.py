"""PackedBatch: packing loses nothing and changes nothing; part() finds the same parts in every architecture; names
there and back."""

import pytest
import torch

from conftest import fails
from minibd.checkpoint import HF_MAPPINGS
from minibd.models import bert, encoder, gpt2, llama
from minibd.models.bert import Bert, BertConfig
from minibd.models.distilbert import DistilBert, DistilBertConfig
from minibd.models.dropout import Dropout
from minibd.models.electra import Electra, ElectraConfig
from minibd.models.encoder import HFTensor, PackedBatch, part
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.mistral import Mistral, MistralConfig
from minibd.models.mpnet import MPNet, MPNetConfig
from minibd.models.qwen2 import Qwen2, Qwen2Config
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.models.xlm_roberta import XLMRoberta, XLMRobertaConfig
from minibd.records import Batch

SHAPE = {"vocab": 30, "hidden": 12, "layers": 2, "heads": 3, "ffn": 20}
MODELS = {
    "bert": lambda **more: Bert(BertConfig(**SHAPE, **more)),
    "roberta": lambda **more: Roberta(RobertaConfig(**SHAPE, **more)),
    "distilbert": lambda **more: DistilBert(DistilBertConfig(**SHAPE, **more)),
    "llama": lambda **more: Llama(LlamaConfig(**SHAPE, kv_heads=1, bottleneck=4, **more)),
    "gpt2": lambda **more: Gpt2(Gpt2Config(**SHAPE, **more)),
    "mpnet": lambda **more: MPNet(MPNetConfig(**SHAPE, **more)),
    "xlm-roberta": lambda **more: XLMRoberta(XLMRobertaConfig(**SHAPE, **more)),
    "electra": lambda **more: Electra(ElectraConfig(**SHAPE, embedding_size=8, **more)),
    "mistral": lambda **more: Mistral(MistralConfig(**SHAPE, kv_heads=1, bottleneck=4, **more)),
    "qwen2": lambda **more: Qwen2(Qwen2Config(**SHAPE, kv_heads=1, bottleneck=4, **more)),
}


LLAMAS = ("llama", "mistral", "qwen2")
CAUSAL = (*LLAMAS, "gpt2")


def made(name: str, **more) -> encoder.Encoder:
    return MODELS[name](**more).init_weights(torch.Generator().manual_seed(0), std=0.3).eval()


def padded(lengths: list[int], left: bool = False) -> Batch:
    t = max(lengths)
    ids = torch.randint(2, 30, (len(lengths), t), generator=torch.Generator().manual_seed(1))
    at, n = torch.arange(t), torch.tensor(lengths)[:, None]
    mask = at >= t - n if left else at < n
    return Batch(torch.where(mask, ids, 1), mask, torch.zeros_like(ids), torch.zeros(len(lengths), dtype=torch.long))


# ---- PackedBatch

def test_packed_rows_by_hand():
    packed = PackedBatch(torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0]], dtype=torch.bool))
    x = torch.arange(8.0).reshape(2, 4, 1)
    assert packed.pack(x).flatten().tolist() == [0, 4, 5]
    assert packed.unpack(packed.pack(x)).flatten().tolist() == [0, 0, 0, 0, 4, 5, 0, 0]
    assert packed.pooled_rows.tolist() == [0, 1] and packed.positions().tolist() == [[0, 0, 0, 0], [0, 1, 1, 1]]


def test_a_full_batch_and_one_with_little_padding_are_not_moved():
    for mask in (torch.ones(2, 4, dtype=torch.bool), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)):
        packed = PackedBatch(mask)
        x = torch.arange(8.0).reshape(2, 4, 1)
        assert (
            packed.index is None
            and packed.pack(x).data_ptr() == x.data_ptr()
            and torch.equal(packed.unpack(packed.pack(x)), x)
        )
    assert PackedBatch(torch.ones(2, 4, dtype=torch.bool)).mask is None


@pytest.mark.parametrize("lengths", [[4, 4], [4, 3], [4, 1, 1]], ids=["full", "little padding", "packed"])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_ends_are_first_or_last_real_tokens(lengths, left, causal):
    batch = padded(lengths, left)
    packed = PackedBatch(batch.mask, causal)
    for b, ids in enumerate(packed.pack(batch.ids)[packed.pooled_rows].tolist()):
        real = batch.ids[b][batch.mask[b]]
        assert ids == real[-1 if causal else 0]
        assert packed.positions()[b][batch.mask[b]].tolist() == list(range(len(real)))


@pytest.mark.parametrize("lengths", [[4, 4], [4, 3], [4, 1, 1]], ids=["full", "little padding", "packed"])
def test_the_index_of_the_token_that_is_classified(lengths):
    batch = padded(lengths)
    last = torch.tensor([0, *(n - 1 for n in lengths[1:])])
    packed = PackedBatch(batch.mask, causal=True, last=last)
    assert packed.pack(batch.ids)[packed.pooled_rows].tolist() == batch.ids[torch.arange(len(lengths)), last].tolist()


def test_who_sees_whom_in_a_causal_model():
    mask = PackedBatch(torch.tensor([[0, 1, 1], [1, 1, 0]], dtype=torch.bool), causal=True).mask[:, 0].int().tolist()
    assert mask == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]],           # left padding sees itself alone
                    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


# BERT's, DistilBERT's and ELECTRA's positions are columns: their padding belongs on the right.
@pytest.mark.parametrize(
    "name, left", [*((name, False) for name in MODELS),
                   *((name, True) for name in MODELS if name not in ("bert", "distilbert", "electra"))]
)
def test_packing_changes_no_number_and_no_gradient(name, left, monkeypatch):
    batch, results = padded([9, 2, 4, 1], left), []
    for share in (0.0, 1.0):                                     # never packed, always packed
        monkeypatch.setattr(encoder, "PACK", share)
        model = made(name)
        out = model(batch, ("attn", "hidden"))
        real = [h[batch.mask] for h in out.hidden] + [a.transpose(1, 2)[batch.mask] for a in out.attn]
        sum(x.square().sum() for x in (out.logits, *real)).backward()
        results.append([out.logits, out.pooled, *real, *(p.grad for p in model.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 20
    for a, b in zip(*results):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_stands_at_padding(name):
    batch = padded([9, 2, 4])
    out = made(name)(batch, ("attn", "hidden"))
    assert all(h[~batch.mask].abs().max() == 0 for h in out.hidden)
    for maps in out.attn:
        assert torch.allclose(maps.sum(-1), torch.ones(3, 3, 9)) and (maps >= 0).all()
        assert (
            maps.transpose(1, 2)[batch.mask]
            .masked_select(~batch.mask.repeat_interleave(batch.mask.sum(1), 0)[:, None])
            .abs()
            .max()
            == 0
        )


def test_only_maps_and_hidden_states_can_be_wanted():
    with pytest.raises(ValueError, match="attention"):
        made("bert")(padded([3]), ("attention",))


# ---- one name for a part, in every architecture

@pytest.mark.parametrize("name", MODELS)
def test_parts(name):
    model = made(name)
    for layer in (0, 1, -1):
        for which in ("query", "key", "value", "output", "up", "down", "attention_norm", "norm"):
            assert part(model, which, layer) is getattr(model.blocks[layer], which)
    assert part(model, "word") is model.embeddings.word and part(model, "classifier").out_features == 2
    if name == "gpt2":
        fails(lambda: part(model, "penultimate"), "this model has no part 'penultimate'", "word, classifier")
    else:
        assert part(model, "penultimate").in_features == 12
        assert part(model, "penultimate").out_features == part(model, "classifier").in_features
    fails(lambda: part(model, "query", 2), "no layer 2", "the model has 2")
    fails(lambda: part(model, "gating", 1), "layer 1 has no part 'gating'", "query, key, value")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_classes_has_no_head(name):
    model = MODELS[name](labels=0).eval()
    out = model(padded([3, 2]))
    assert out.logits is None and out.pooled is None and not hasattr(model, "classifier")


# ---- transformers' names

def test_names_by_hand():
    assert bert.HF_MAPPING.hf_tensor("blocks.3.up.bias") == HFTensor("bert.encoder.layer.3.intermediate.dense.bias")
    assert bert.HF_MAPPING.hf_tensor("mlm.bias") == HFTensor("cls.predictions.bias")
    assert gpt2.HF_MAPPING.hf_tensor("blocks.11.value.weight") == HFTensor(
        "transformer.h.11.attn.c_attn.weight", 2, 3, True
    )
    assert gpt2.HF_MAPPING.hf_tensor("blocks.11.value.bias") == HFTensor(
        "transformer.h.11.attn.c_attn.bias", 2, 3, False
    )
    assert llama.HF_MAPPING.hf_tensor("classifier.weight") == HFTensor("score.weight")


@pytest.mark.parametrize("name", MODELS)
def test_no_two_of_our_tensors_lie_in_one_place(name):
    state, mapping = made(name).state_dict(), HF_MAPPINGS[name]
    packed = [mapping.hf_tensor(tensor) for tensor in state if tensor != "head_mask"]
    assert len(set(packed)) == len(packed) == len(state) - 1
    assert {ours.split(".")[0] for ours in mapping.names} >= {tensor.split(".")[0] for tensor in state} - {"head_mask"}


def test_every_architecture_is_tested():
    assert list(MODELS) == list(HF_MAPPINGS)


# ---- of the last block, only what is classified

def rows_of_the_last_block(model: encoder.Encoder, batch: Batch, **call) -> tuple[int, encoder.Output]:
    """How many rows its second half sees."""
    seen = []
    hook = model.blocks[-1].down.register_forward_hook(lambda module, given, out: seen.append(len(out)))
    output = model(batch, **call)
    hook.remove()
    return seen[0], output


@pytest.mark.parametrize("lengths", [[5, 5, 5], [5, 4, 5], [5, 1, 1]], ids=["full", "little padding", "packed"])
@pytest.mark.parametrize("name", MODELS)
def test_evaluation_closes_the_last_block_for_what_is_classified_alone(name, lengths):
    model, batch = made(name), padded(lengths)
    n, output = rows_of_the_last_block(model, batch)
    whole, full = rows_of_the_last_block(model, batch, want=("hidden",))
    maps, with_maps = rows_of_the_last_block(model, batch, want=("attn",))
    assert n == maps == 3 and whole == (sum(lengths) if sum(lengths) < encoder.PACK * 15 else 15)
    assert torch.allclose(output.logits, full.logits, atol=1e-5) and torch.allclose(
        output.pooled, full.pooled, atol=1e-5
    )
    assert torch.allclose(with_maps.logits, full.logits, atol=1e-5)
    assert all(
        torch.equal(a, b) for a, b in zip(with_maps.attn, model(batch, want=("attn", "hidden")).attn, strict=True)
    )


@pytest.mark.parametrize("name", MODELS)
def test_training_does_so_where_it_says_so(name):
    model, batch = made(name).train(), padded([5, 3, 5])
    for module in model.modules():
        if isinstance(module, Dropout):
            module.p = 0.0
    whole, full = rows_of_the_last_block(model, batch)
    full.logits.sum().backward()
    expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.trim = True
    n, output = rows_of_the_last_block(model, batch)
    output.logits.sum().backward()
    assert (whole, n) == (15, 3) and torch.allclose(output.logits, full.logits, atol=1e-5)
    for key, p in model.named_parameters():
        assert (p.grad is None) == (key not in expected) and (
            p.grad is None or torch.allclose(p.grad, expected[key], atol=1e-4)
        ), key
