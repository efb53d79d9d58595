"""RAP: the loss and the step by hand, a word that is learnt on a sum of word vectors, what must not matter; each defect
of the released code."""
from __future__ import annotations

import random

import pytest
import torch

from conftest import fails
from filter_stub import examples, words_model
from minibd.filters import rap as module
from minibd.filters.rap import Rap, bounds_loss, rap, rare_word, stepped, tokens_of
from minibd.models.free_rows import free_rows
from minibd.predict import probabilities
from minibd.records import Examples

VECTORS = {"good": (0.0, 1.5), "bad": (1.5, 0.0), "film": (0.0, 0.0), "cf": (0.0, 6.0), "qz": (1.0, 0.9),
           "q": (0.0, 0.1), "##x": (0.3, 0.1), "zu": (0.8, 1.0)}


@pytest.fixture
def victim():
    return words_model(VECTORS)


def clean(n: int = 30) -> Examples:
    return examples(*(("good film" if i % 2 else "bad film") + " film" * (i % 3) for i in range(n)),
                    labels=[i % 2 for i in range(n)])


# ---- the formulas

def test_the_loss_by_hand():
    d = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.5, -0.4])
    assert bounds_loss(d, 0.1, 0.3, 2.0).tolist() == pytest.approx([0.2, 0.0, 0.0, 0.0, 0.2, 1.0], abs=1e-6)


def test_the_loss_has_the_gradient_of_its_differences():
    d = torch.tensor([0.05, 0.2, 0.45], dtype=torch.float64, requires_grad=True)
    bounds_loss(d, 0.1, 0.3, 3.0).sum().backward()
    assert d.grad.tolist() == [-3.0, 0.0, 1.0]


def test_the_step_by_hand():
    e, g, norms = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0]])
    moved = torch.tensor([3.0, 4.0 - 0.5 * 5.0])
    assert torch.allclose(stepped(e, g, 0.5, norms)[0], moved * 5 / moved.norm())
    straight = torch.tensor([3.0, 4.0 - 0.5 * 2.0])
    assert torch.allclose(stepped(e, g, 0.5, norms, "released")[0], straight * 5 / straight.norm())
    assert torch.equal(stepped(e, torch.zeros(1, 2), 0.5, norms), e)
    assert torch.equal(stepped(e, torch.tensor([[6.0, 8.0]]), 0.5, norms, "released"), e)  # to 0: no direction is left


# ---- the word

def test_the_word_is_one_token_that_no_clean_row_holds(victim):
    drawn = {rare_word(victim.tokenizer, examples("good film qz"), random.Random(i)) for i in range(30)}
    assert drawn == {"bad", "cf", "zu"}
    assert rare_word(victim.tokenizer, clean(), random.Random(0)) == rare_word(victim.tokenizer, clean(),
                                                                              random.Random(0))
    fails(lambda: rare_word(victim.tokenizer, examples("good bad film cf qz zu"), random.Random(0)), "word")


def test_the_tokens_of_a_word(victim):
    ids = victim.tokenizer.backend.token_to_id
    assert tokens_of(victim.tokenizer, "qx") == [ids("q"), ids("##x")] and tokens_of(victim.tokenizer, "zu") == [
        ids("zu")]
    for word in ("unknown", "good film", ""):
        fails(lambda word=word: tokens_of(victim.tokenizer, word), "word")


def test_free_rows_changes_those_rows_alone_and_leaves_no_hook(victim):
    before = victim.model.embeddings.word.weight.detach().clone()
    with free_rows(victim.model, [6, 8, 6]) as e:
        assert e.shape == (2, 2) and e.requires_grad
        victim.model(victim.tokenizer(examples("bad cf"))).logits.sum().backward()
        with torch.no_grad():
            e += 1
    after = victim.model.embeddings.word.weight
    assert torch.equal(after[[6, 8]], before[[6, 8]] + 1) and not victim.model.embeddings.word._forward_hooks
    others = [i for i in range(len(before)) if i not in (6, 8)]
    assert torch.equal(after[others], before[others]) and after.requires_grad


# ---- the filter

def test_a_word_is_learnt_that_clean_texts_feel_and_triggered_ones_do_not(victim):
    weights = victim.model.embeddings.word.weight.detach().clone()
    done = rap(victim, clean(), [clean(), examples("cf bad film", "cf film good")], Rap(word="zu"))
    assert min(done.within.values()) > 0.8 and done.word == "zu" and set(done.limits) == {0, 1}
    assert done.screens[0].keep.count(False) <= 2 and done.screens[1].keep == [False, False]
    assert done.answers is victim and torch.equal(victim.model.embeddings.word.weight, weights)


def test_a_text_is_judged_by_the_word_of_the_class_that_it_is_taken_for(victim):
    done = rap(victim, clean(), [clean(), examples("cf bad", "bad")], Rap(word="zu"), target=1)
    assert set(done.limits) == {1} and done.screens[1].keep[1] and done.screens[1].scores[1] == float("-inf")
    assert not done.screens[1].keep[0]
    own = module.with_word_trained(victim, clean().like(x for x in clean() if x.label == 1),
                                   tokens_of(victim.tokenizer, "zu"), "zu", 1, Rap(word="zu"))
    rows = examples("cf bad")
    p, q = (probabilities(m.model, m.tokenizer, r)[:, 1] for m, r in (
        (victim, rows), (own, rows.like([module.inserted(rows[0], "zu")]))))
    assert done.screens[1].scores[0] == pytest.approx(-(p - q).item(), abs=1e-9)


def test_order_and_batches_of_what_is_screened_do_not_matter(victim):
    rows = examples("good film film", "cf bad", "bad", ("film bad", "good"))
    found = rap(victim, clean(), [rows], Rap(word="zu")).screens[0].scores
    turned = rap(victim, clean(), [rows.like(rows[::-1])], Rap(word="zu")).screens[0].scores
    assert turned[::-1] == pytest.approx(found, abs=1e-9)
    for x, score in zip(rows, found):
        assert rap(victim, clean(), [rows.like([x])], Rap(word="zu")).screens[0].scores == pytest.approx([score])


def test_all_tokens_of_a_word_are_trained(victim):
    made = module.with_word_trained(victim, clean(), tokens_of(victim.tokenizer, "qx"), "qx", 1, Rap())
    moved = (made.model.embeddings.word.weight != victim.model.embeddings.word.weight).any(1).nonzero()[:, 0].tolist()
    assert moved == sorted(tokens_of(victim.tokenizer, "qx"))


def test_a_class_that_no_clean_text_is_taken_for_keeps_its_texts(victim):
    rows = examples(*["good film"] * 6, labels=[0, 1] * 3)  # all are taken for 1
    done = rap(victim, rows, [examples("bad", "cf")], Rap(word="zu"))
    assert done.limits[0] == float("inf") and done.screens[0].keep[0] and done.within[0] == 0.0


def test_what_cannot_be_is_refused(victim):
    one_class = examples("good film", labels=[1])
    fails(lambda: rap(victim, one_class, [one_class], Rap(word="zu")), "class negative", "give rows")
    fails(lambda: rap(victim, clean(), [], Rap(variant="released")), "target class", "poisoned rows")
    fails(lambda: rap(victim, clean(), [], Rap(word="zu"), target=5), "5", "0..1")
    for wrong in ({"frr": 1.0}, {"low": 0.4}, {"lr": 0.0}, {"epochs": 0}, {"variant": "other"}):
        fails(lambda wrong=wrong: Rap(**wrong), next(iter(wrong)))


# ---- the defects of the released code

RELEASED = Rap(variant="released", epochs=2)


def test_released_gradients_are_never_zeroed(victim, monkeypatch):
    """The step of two equal batches is twice as long the second time; ours is not."""
    seen = {"released": [], "paper": []}
    take = module.stepped

    def kept(e, gradient, lr, norms, variant="paper"):
        seen[variant].append(gradient.clone())
        return e if variant == "released" else take(e, torch.zeros_like(gradient), lr, norms)  # the word stays

    monkeypatch.setattr(module, "stepped", kept)
    for variant in seen:
        module.with_word_trained(victim, clean(4), tokens_of(victim.tokenizer, "zu"), "zu", 1,
                                 Rap(variant=variant, epochs=2, steps=1, low=0.9, high=0.95))
    first, second = seen["released"]
    assert torch.allclose(second, 2 * first) and torch.allclose(seen["paper"][0], seen["paper"][1])
    assert first.norm() > 0


def test_alone_each_defect_changes_its_own_part(victim):
    rows = examples("bad film", "good film", "good cf")
    ours = rap(victim, clean(), [rows], Rap())

    def with_defects(*names: str, **more):
        return rap(victim, clean(), [rows], Rap(defects=names, **more), target=1 if "target" in names else None)

    assert with_defects("word").word == "cf" and ours.word != "cf" and with_defects("target").word == ours.word
    target = with_defects("target")
    assert set(target.limits) == {1} and target.limits[1] == ours.limits[1]
    taken = probabilities(victim.model, victim.tokenizer, rows).argmax(-1).tolist()
    assert [s > float("-inf") for s in target.screens[0].scores] == [c == 1 for c in taken]
    assert with_defects("summed").limits != ours.limits
    changed = with_defects("changed")
    assert changed.answers is not victim and changed.word == ours.word and ours.answers is victim
    moved = (changed.answers.model.embeddings.word.weight != victim.model.embeddings.word.weight).any(1)
    assert moved.nonzero()[:, 0].tolist() == tokens_of(victim.tokenizer, ours.word)
    assert changed.screens[0].keep == ours.screens[0].keep  # no row holds its word


def test_alone_only_the_words_first_token_moves(victim):
    for names, count in ((("piece", "changed"), 1), (("changed",), 2)):
        done = rap(victim, clean(), [], Rap(word="qx", defects=names))
        moved = (done.answers.model.embeddings.word.weight != victim.model.embeddings.word.weight).any(1)
        assert moved.nonzero()[:, 0].tolist() == tokens_of(victim.tokenizer, "qx")[:count]


def test_the_defect_target_needs_one(victim):
    fails(lambda: rap(victim, clean(), [], Rap(defects=("target",))), "target class")
    fails(lambda: Rap(defects=("sum",)), "sum", "summed")
    fails(lambda: Rap(variant="released", defects=("word",)), "word", "released")


def test_released_the_word_is_badnets_own_and_the_victim_is_left_changed(victim):
    done = rap(victim, clean(), [clean()], RELEASED, target=1)
    assert done.word == "cf"
    moved = (done.answers.model.embeddings.word.weight != victim.model.embeddings.word.weight).any(1)
    assert done.answers is not victim and moved.nonzero()[:, 0].tolist() == tokens_of(victim.tokenizer, "cf")


def test_released_judges_every_text_by_the_target_that_it_is_told(victim):
    for target in (0, 1):
        done = rap(victim, clean(), [examples("bad film", "good")], RELEASED, target=target)
        assert set(done.limits) == {target} and all(s > float("-inf") for s in done.screens[0].scores)


def test_released_only_the_words_first_token_moves(victim):
    done = rap(victim, clean(), [], Rap(variant="released", word="qx", lr=1.0), target=1)
    moved = (done.answers.model.embeddings.word.weight != victim.model.embeddings.word.weight).any(1)
    assert moved.nonzero()[:, 0].tolist() == tokens_of(victim.tokenizer, "qx")[:1]
