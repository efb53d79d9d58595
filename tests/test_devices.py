"""The table of many devices: weights of the published sizes, activations as the backward pass keeps them."""
import pytest
import torch

from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import lora
from minibd.records import Batch
from minibd.tables.devices import DEVICES, FULL, LORA, SHAPES, counts, needed, short


@pytest.mark.parametrize("size, published", [("7B", 6_738_415_616), ("70B", 68_976_648_192)])
def test_as_many_weights_as_were_published(size, published):
    """Theirs have an output layer over the vocabulary, ours a classifier of two classes."""
    config = SHAPES[size]
    found = counts(config, None)
    assert found.all == found.trained == published - config.vocab * config.hidden + 2 * config.hidden
    width = config.hidden // config.heads * (config.kv_heads or config.heads)  # of the values
    low = counts(config, 2)
    assert low.trained == config.layers * 2 * (config.hidden + config.hidden + config.hidden + width)
    assert low.all == found.all + low.trained and 0.95 < low.matrices / low.all < 1


def kept(config: LlamaConfig, tokens: int, low_rank: bool) -> int:
    """Bytes that the backward pass of a batch of so many tokens reads, without the weights."""
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).train()
    if low_rank:
        model.requires_grad_(False)
        lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(0))
    own, others = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(t: torch.Tensor) -> torch.Tensor:
        others[t.untyped_storage().data_ptr()] = t.untyped_storage()  # held, so that no place is used twice
        return t

    ids = torch.ones(1, tokens, dtype=torch.long)
    batch = Batch(ids, ids.bool(), ids, ids[:, 0])
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(batch)
    return sum(storage.nbytes() for place, storage in others.items() if place not in own)


@pytest.mark.parametrize("low_rank, formula", [(True, LORA), (False, FULL)])
def test_activations_of_a_token_and_block(low_rank, formula):
    def of_a_block(hidden: int, ffn: int) -> float:
        one, two = (
            kept(config, 48, low_rank) - kept(config, 16, low_rank) for config in
            (LlamaConfig(vocab=9, hidden=hidden, layers=layers, heads=4, ffn=ffn) for layers in (1, 2)))
        return (two - one) / 32  # without what is there once, and copies of weights

    base = of_a_block(64, 128)
    assert ((of_a_block(128, 128) - base) / 64, (of_a_block(64, 256) - base) / 128) == pytest.approx(formula, rel=0.15)


def test_a_row_by_hand():
    """7B whole: 4 and 2 bytes of each weight, 4 of its gradient, 8 of its moments; a ring sends 2 * 7 / 8 * 4 bytes."""
    n, found = 6_607_343_616 + 2 * 4096, needed(SHAPES["7B"], None)
    assert [found[key] * 1e9 for key in ("weights", "gradients", "moments", "sent")] == pytest.approx(
        [6 * n, 4 * n, 8 * n, 7 * n])
    assert found["activations"] * 1e9 == pytest.approx(16 * 512 / DEVICES * 32 * (36 * 4096 + 8 * 11008))
    assert found["in all"] == pytest.approx(sum(list(found.values())[:4]))
    assert (short(1234.56), short(0.0123)) == ("1,234.6", "0.012")


def test_parts_are_an_eighth():
    whole, parts = (needed(SHAPES["7B"], 2, 2, parts) for parts in (False, True))
    matrices = counts(SHAPES["7B"], 2).matrices
    assert parts["sent"] - whole["sent"] == pytest.approx(4 * 7 / 8 * 2 * matrices / 1e9)
    assert whole["weights"] - parts["weights"] == pytest.approx(
        ((4 + 2) * matrices - 4 * matrices / 8 - 2 * matrices / 32) / 1e9)


def test_all_that_is_trained_in_parts():
    """By hand, of two blocks on 8 devices: matrices an eighth each, everything else whole; one block is copied."""
    config = LlamaConfig(vocab=10, hidden=4, layers=2, heads=2, ffn=6)
    block = 4 * 4 * 4 + 3 * 4 * 6
    whole = 10 * 4 + (2 * 2 + 1) * 4 + 2 * 4  # embedding, norms, classifier
    found = needed(config, None, parts=True)
    held = whole + 2 * block / 8
    assert counts(config, None).matrices == 2 * block and counts(config, None).all == whole + 2 * block
    assert [found[key] * 1e9 for key in ("weights", "gradients", "moments")] == pytest.approx(
        [4 * held + 2 * (whole + block), 4 * (held + block), 8 * held])
    # gathered four times in bfloat16; a part of the sum comes back; what is whole goes around twice
    assert found["sent"] * 1e9 == pytest.approx(7 / 8 * (4 * 2 * 2 * block + 4 * 2 * block + 2 * 4 * whole))
