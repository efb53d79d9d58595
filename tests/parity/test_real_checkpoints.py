"""Two checkpoints as they are published, mpnet-base and smollm2-135m, against transformers: skipped unless MINIBD_BASE
names the folder that holds both.

MPNet: every hidden state, every map, the gradients. SmolLM2: the language model on real sentences; a classifier of one
layer and of two, LoRA and the multi-scale layer, merged, saved, and the same logits in transformers.
"""
from __future__ import annotations

import copy
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minibd import checkpoint
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.models import mpnet
from minibd.models.lora import freeze, lora, merge
from minibd.records import Batch, Example, Examples

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()

BASE = Path(os.environ.get("MINIBD_BASE", ""))
NAMES = ("negative", "positive")
TEXTS = (
    "a gorgeous, witty, seductive movie .", "no", "the film is a bore " * 20, "naïve 電影",
    "It never fails to engage us , and its story is a small triumph of wit over budget .",
    "The capital of France is Paris, and the capital of Italy is Rome.",
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("MINIBD_BASE" not in os.environ, reason="MINIBD_BASE names no folder of real checkpoints"),
]


def examples(texts=TEXTS) -> Examples:
    return Examples([Example(str(i), text, i % 2) for i, text in enumerate(texts)], NAMES)


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def of_real_tokens(x: Tensor, batch: Batch) -> Tensor:
    """Of hidden states (B, T, D) or maps (B, H, T, T): the rows of real tokens."""
    return (x.transpose(1, 2) if x.dim() == 4 else x)[batch.mask]


def inputs(batch: Batch) -> dict[str, Tensor]:
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long()}


def test_mpnet():
    mine = checkpoint.load(BASE / "mpnet-base", labels=NAMES)
    theirs = transformers.MPNetModel.from_pretrained(BASE / "mpnet-base", attn_implementation="eager").eval()
    for model in (mine.model, theirs):  # in float32 two threads add up to 1.1e-5 apart
        model.double()
    batch = mine.tokenizer(examples())
    ids = transformers.AutoTokenizer.from_pretrained(BASE / "mpnet-base")(list(TEXTS), padding=True)["input_ids"]
    assert batch.ids.tolist() == ids
    out = mine.model(batch, want=("attn", "hidden"))
    ref = theirs(**inputs(batch), output_hidden_states=True, output_attentions=True)
    assert len(out.hidden) == 13 and len(out.attn) == 12
    for ours, others in ((out.hidden, ref.hidden_states), (out.attn, ref.attentions)):
        for a, b in zip(ours, others, strict=True):
            assert far(of_real_tokens(a, batch), of_real_tokens(b, batch)) < 1e-5
    with torch.no_grad():
        fused = mine.model(batch, want=("hidden",)).hidden[-1]
    assert far(of_real_tokens(fused, batch), of_real_tokens(out.hidden[-1].detach(), batch)) < 1e-5
    for hidden in (out.hidden[-1], ref.last_hidden_state):
        of_real_tokens(hidden, batch).pow(3).mean().backward()
    reference = {f"mpnet.{name}": p.grad for name, p in theirs.named_parameters()}
    seen = 0
    for name, p in mine.model.named_parameters():
        if name.split(".")[0] in ("embeddings", "blocks", "relative_attention_bias"):
            assert far(p.grad, reference[mpnet.HF_MAPPING.hf_tensor(name).name]) < 1e-4, name
            seen += 1
    assert seen == len(reference) - 2  # but for the pooler


def test_mpnets_folder_there_and_back(tmp_path):
    mine = checkpoint.load(BASE / "mpnet-base", labels=NAMES)
    mine.model.head_mask[3, 5] = mine.model.head_mask[11, 0] = 0
    checkpoint.save(mine, tmp_path / "out")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = mine.tokenizer(examples())
    with torch.no_grad():
        assert far(mine.model(batch).logits, theirs(**inputs(batch)).logits) < 1e-5


@torch.no_grad()
def test_smollm2_as_a_language_model():
    mine = checkpoint.load(BASE / "smollm2-135m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BASE / "smollm2-135m").eval()
    batch = mine.tokenizer(examples())
    ids = transformers.AutoTokenizer.from_pretrained(BASE / "smollm2-135m")(list(TEXTS))["input_ids"]
    assert [row[there].tolist() for row, there in zip(batch.ids, batch.mask)] == ids
    ours = mine.model.predict_tokens(batch, batch.mask)
    assert far(ours, theirs(**inputs(batch)).logits[batch.mask]) < 1e-4
    following = batch.ids[-1, batch.mask[-1]].tolist()  # it has learnt something: " Paris" and " Rome" are foreseen
    last = ours[-len(following):].argmax(-1).tolist()
    for city in (" Paris", " Rome"):
        at = following.index(mine.tokenizer.backend.encode(city, add_special_tokens=False).ids[0])
        assert last[at - 1] == following[at]


@pytest.mark.parametrize("bottleneck", [0, 16])
def test_a_classifier_of_smollm2(tmp_path, bottleneck):
    ckpt = checkpoint.load(BASE / "smollm2-135m", labels=NAMES, bottleneck=bottleneck)
    generator = torch.Generator().manual_seed(0)
    freeze(ckpt.model)
    lora(ckpt.model, rank=2, alpha=8, generator=generator)
    with torch.no_grad():
        for block in ckpt.model.blocks:
            for layer in (block.query, block.value):
                layer.R.normal_(0.0, 0.02, generator=generator)
    batch = ckpt.tokenizer(examples())
    plain = checkpoint.load(BASE / "smollm2-135m", labels=NAMES, bottleneck=bottleneck)
    with torch.no_grad():
        tuned = ckpt.model(batch).logits
        assert far(tuned, plain.model(batch).logits) > 1e-3
        merge(ckpt.model)
        assert far(ckpt.model(batch).logits, tuned) < 1e-4
        ckpt.model.classifier.weight.mul_(20)  # so that a mistake shows
        tuned = ckpt.model(batch).logits
        checkpoint.save(ckpt, tmp_path / "out")
        theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
        assert far(theirs(**inputs(batch)).logits, tuned) < 1e-4
        back = checkpoint.load(tmp_path / "out")
    assert back.labels == NAMES and far(back.model(batch).logits, tuned) < 1e-4


def test_musclelora_on_smollm2(tmp_path):
    """One step of the whole: low-rank layers, two gradients in one pass, merged into a plain classifier."""
    untrusted, clean = examples(TEXTS[:4]), examples(TEXTS[4:])
    start = checkpoint.load(BASE / "smollm2-135m", labels=NAMES)
    before = copy.deepcopy(start.model.state_dict())
    settings = MuScleLoRA(epochs=1, batch_size=4, aux=2)
    tuned = musclelora(start, untrusted, clean, settings=settings, seed=0)
    assert all(torch.equal(before[name], t) for name, t in start.model.state_dict().items())
    checkpoint.save(tuned, tmp_path / "out")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    batch = tuned.tokenizer(examples())
    with torch.no_grad():
        assert far(theirs(**inputs(batch)).logits, tuned.model(batch).logits) < 1e-4
    after = tuned.model.state_dict()
    moved = [name for name, t in before.items() if name in after and not torch.equal(after[name], t)]
    assert any("query" in name for name in moved) and any("value" in name for name in moved)
