"""models/lora.py against peft: the same A and B in both, the same logits and gradients, on small random BERTs and
Llamas."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import LowRank, freeze, lora, merge
from minibd.tokenizer import Tokenizer
from test_encoder import SHAPE, made, padded

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
transformers.utils.logging.set_verbosity_error()

TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}, 48)
# Where transformers has a block's query and value.
PLACES = {"bert": ("bert.encoder.layer.{}.attention.self.query", "bert.encoder.layer.{}.attention.self.value"),
          "llama": ("model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj")}


@pytest.fixture(params=["bert", "llama"])
def pair(request, tmp_path):
    """The same model twice, ours and peft's, with the same matrices, none of them 0; and ours -> theirs of the low-rank
    layers."""
    # A Llama with one layer of head, as theirs.
    model = made("bert") if request.param == "bert" else \
        Llama(LlamaConfig(**SHAPE, kv_heads=1)).init_weights(torch.Generator().manual_seed(0), std=0.3).eval()
    checkpoint.save(Checkpoint(model, TEXT, ("bad", "good"), []), tmp_path / "model")
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").eval()
    names = PLACES[request.param]
    targets = [name.rsplit(".", 1)[1] for name in names]
    config = peft.LoraConfig(r=3, lora_alpha=12, lora_dropout=0.0, target_modules=targets)
    theirs = peft.get_peft_model(base, config).eval()
    freeze(model)
    lora(model, rank=3, alpha=12, generator=torch.Generator().manual_seed(1))
    twins: dict[LowRank, nn.Module] = {}
    with torch.no_grad():
        for i, block in enumerate(model.blocks):
            for ours, name in zip((block.query, block.value), names):
                ours.R.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(2 + i))
                other = theirs.get_submodule(f"base_model.model.{name.format(i)}")
                other.lora_A["default"].weight.copy_(ours.L)
                other.lora_B["default"].weight.copy_(ours.R)
                twins[ours] = other
    return model, theirs, twins


def logits(model, theirs, batch) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.where(batch.mask, batch.ids, model.config.pad)
    return model(batch).logits, theirs(input_ids=ids, attention_mask=batch.mask.long()).logits


@pytest.mark.parametrize("lengths", [[9, 8, 9], [9, 2, 4, 1]], ids=["little padding", "packed"])
def test_logits_and_gradients_are_pefts(pair, lengths):
    model, theirs, twins = pair
    ours, expected = logits(model, theirs, padded(lengths))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    for each in (ours, expected):
        (each * torch.tensor([1.0, -2.0])).square().sum().backward()
    assert len(twins) == 4
    for mine, other in twins.items():
        a, b = other.lora_A["default"].weight, other.lora_B["default"].weight
        for grad, reference in ((mine.L.grad, a.grad), (mine.R.grad, b.grad)):
            assert reference.abs().max() > 1e-3
            torch.testing.assert_close(grad, reference, rtol=1e-4, atol=1e-4 * reference.abs().max().item())
        assert mine.weight.grad is None


def test_merged_weights_are_pefts(pair):
    model, theirs, twins = pair
    merge(model)
    for block in model.blocks:
        assert type(block.query) is type(block.value) is nn.Linear
    theirs.merge_adapter()
    for layer, other in zip((m for block in model.blocks for m in (block.query, block.value)), twins.values()):
        torch.testing.assert_close(layer.weight, other.weight, rtol=1e-6, atol=1e-6)


def test_the_start_is_pefts(pair):
    """A uniform within 1 / sqrt(I), B zero."""
    _, theirs, _ = pair
    config = peft.LoraConfig(r=8, lora_alpha=32, target_modules=["query", "value", "q_proj", "v_proj"])
    fresh = peft.get_peft_model(theirs.unload(), config)
    bound = SHAPE["hidden"] ** -0.5
    seen = {"lora_A": [], "lora_B": []}
    for name, p in fresh.named_parameters():
        for kind, values in seen.items():
            if kind in name:
                values.append(p.detach().flatten())
    model = made("bert")
    lora(model, rank=8, alpha=32, generator=torch.Generator().manual_seed(0))
    ours = torch.cat([m.L.detach().flatten() for block in model.blocks for m in (block.query, block.value)])
    for values in (torch.cat(seen["lora_A"]), ours):
        assert 0.95 * bound < values.abs().max() <= bound
    assert not torch.cat(seen["lora_B"]).any() and not model.blocks[0].query.R.any()
    other = next(m for m in fresh.modules() if hasattr(m, "lora_A"))
    assert other.scaling["default"] == model.blocks[0].query.scale == 4.0
