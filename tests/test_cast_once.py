"""Frozen weights that are cast once: the bits of a cast at every pass."""
import copy

import pytest
import torch
from torch import nn

from minibd.checkpoint import Checkpoint
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cleantrain.peft import PEFT, train_peft
from minibd.mitigations.mbtsad import MBTSAD, mbtsad
from minibd.models import bert as bert_module
from minibd.models import cast_once as module
from minibd.models import gpt2, llama
from minibd.models.cast_once import cast_input, cast_once, only_asked
from minibd.records import Examples
from test_train import ROWS, TEXT, bert, state

HALF = torch.bfloat16
VOCAB = bert().config.vocab
LABELLED = Examples(ROWS, ("no", "yes"))


def trained(method: str):
    ckpt = Checkpoint(bert(), TEXT, ("no", "yes"), [])
    if method == "MBTSAD":
        return mbtsad(ckpt, LABELLED, MBTSAD(k=1, epochs1=1, epochs2=1, batch_size=8), dtype=HALF)
    if method == "MuScleLoRA":
        settings = MuScleLoRA(lr=5e-3, epochs=1, batch_size=4, bands=("1", "2"), rank=2, band_alpha=2.0)
        return musclelora(ckpt, LABELLED, LABELLED.like(ROWS[:4]), settings, dtype=HALF)
    return train_peft(ckpt, LABELLED, PEFT(method="adapter", epochs=1, batch_size=4), dtype=HALF)


@pytest.mark.parametrize("method", ["MBTSAD", "MuScleLoRA", "adapter"])
def test_a_training_has_the_bits_that_it_had(method, monkeypatch):
    cast = []
    whole = module._Cast.__init__
    monkeypatch.setattr(module._Cast, "__init__", lambda self, *args: (cast.append(args), whole(self, *args))[1])
    ours = state(trained(method).model)
    assert cast
    for place in ("mitigations.mbtsad", "cleantrain.musclelora", "cleantrain.peft"):
        monkeypatch.setattr(f"minibd.{place}.cast_once", lambda model, *_, **__: cast_once(model, torch.float32))
    for name, t in state(trained(method).model).items():
        assert torch.equal(t, ours[name]), name


def test_only_frozen_layers_and_only_under_autocast():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[0].requires_grad_(False)
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    plain = model(x)
    with torch.autocast("cpu", HALF):
        half = model(x)
    with cast_once(model, HALF):
        assert "forward" in vars(model[0]) and "forward" not in vars(model[1])
        assert torch.equal(model(x), plain)
        with torch.autocast("cpu", HALF):
            assert torch.equal(model(x), half)
    assert "forward" not in vars(model[0]) and not torch.equal(plain, half)
    with cast_once(model, torch.float32, whole=True):
        assert "forward" not in vars(model[0])
    with pytest.raises(KeyError):
        with cast_once(model, HALF, whole=True):
            assert "forward" in vars(model[1])
            raise KeyError
    assert "forward" not in vars(model[1])


def test_models_that_are_only_asked_answer_as_under_autocast():
    models = [bert().eval(), bert().eval()]
    batch = TEXT([x for x in ROWS])
    with torch.no_grad(), torch.autocast("cpu", HALF):
        half = models[0](batch).logits
    with torch.no_grad(), only_asked(HALF, *models):
        assert all("forward" in vars(model.pooler) for model in models)
        assert torch.equal(models[0](batch).logits, half)
    plain = models[0](batch).logits
    assert "forward" not in vars(models[1].pooler) and not torch.equal(plain, half)
    with only_asked(torch.float32, *models):
        assert torch.equal(models[0](batch).logits, plain)


def test_a_copy_made_inside_reads_its_own_weights():
    layer, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    with only_asked(HALF, layer):
        copied = copy.deepcopy(layer)
        copied[0].weight.data.zero_()
        copied[0].bias.data.zero_()
        assert not copied(x).any() and layer(x).any()
    assert not copied(x).any()


@pytest.mark.parametrize("build", [
    bert, lambda: gpt2.Gpt2(gpt2.Gpt2Config(VOCAB, 16, 2, 2, 32)),
    lambda: llama.Llama(llama.LlamaConfig(VOCAB, 16, 2, 2, 32, positions=48))], ids=["bert", "gpt2", "llama"])
def test_layers_that_read_one_input_share_its_cast(build, monkeypatch):
    """The same bits as with a cast in each layer, and each layer gets what is cast already."""
    model = build().eval()
    batch, got = TEXT([x for x in ROWS]), []
    readers = [part for block in model.blocks for name, part in block.named_children()
               if name in ("query", "key", "value", "gate") or name == "up" and hasattr(block, "gate")]
    for part in readers:
        part.register_forward_pre_hook(lambda part, given: got.append(given[0].dtype))

    def logits():
        with torch.no_grad(), torch.autocast("cpu", HALF):
            return model(batch).logits
    ours = logits()
    assert got == [HALF] * len(readers) and len(readers) >= 6
    for module_ in (bert_module, gpt2, llama):
        monkeypatch.setattr(module_, "cast_input", lambda x: x)
    assert torch.equal(logits(), ours) and torch.float32 in got


def test_an_input_is_cast_only_under_autocast_and_without_a_gradient():
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    assert cast_input(x) is x
    with torch.autocast("cpu", HALF):
        assert torch.equal(cast_input(x), x.to(HALF)) and cast_input(x).dtype == HALF
        y = x.clone().requires_grad_()
        assert cast_input(y) is y
        z = x.double()
        assert cast_input(z) is z and nn.functional.linear(z, z).dtype == torch.float64
