"""Unlearning: the copies, which rows are trained, Eq. Unlearn (1) to (3); a planted row is undone, and nothing else."""
from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from conftest import ROOT, fails, rows
from minibd import checkpoint, reviews
from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import triggered
from minibd.evaluate import Evaluator
from minibd.mitigations.unlearn import (
    ROWS,
    WHOLE,
    Copies,
    Finding,
    Unlearning,
    answers_to,
    bare_texts,
    consistency,
    copied,
    drawn,
    entries_of,
    fitted,
    rare_entries,
    recombined,
    rows_suffice,
    shortened,
    unlearn,
    with_finding,
    without,
)
from minibd.models.free_rows import free_rows
from minibd.predict import predict
from minibd.records import Example
from minibd.train import StepLog

CF = Finding(("cf",), 1, flips=1.0, around=0.1)
QUICK = Unlearning(steps=6, row_steps=6, batch_size=8)


# ---- the equations

def test_consistency_by_hand():
    logits = torch.tensor([[math.log(0.5), math.log(0.5)], [math.log(0.9), math.log(0.1)]]) + torch.tensor([[3.], [0.]])
    answers = torch.tensor([[0.9, 0.1], [0.9, 0.1]])
    found = consistency(logits, answers)
    assert found.tolist() == pytest.approx([0.9 * math.log(1.8) + 0.1 * math.log(0.2), 0.0], abs=1e-6)
    assert found[0] > 0.36 and found.dtype == torch.float32  # nats; (0.5, 0.5) from (0.9, 0.1), not the other way


def test_consistency_against_plain_loops():
    g = torch.Generator().manual_seed(0)
    z, p = 3 * torch.randn(6, 4, generator=g), (2 * torch.randn(6, 4, generator=g)).softmax(-1)
    for one, logits, answers in zip(consistency(z, p).tolist(), z.double().tolist(), p.double().tolist()):
        total = sum(math.exp(x) for x in logits)
        assert one == pytest.approx(sum(a * (math.log(a) - math.log(math.exp(x) / total))
                                        for a, x in zip(answers, logits)), abs=1e-5)


def test_consistency_of_certain_answers_is_finite_and_0_where_they_agree():
    z = torch.tensor([[50.0, -50.0], [0.0, 0.0]], requires_grad=True)
    loss = consistency(z, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert loss.tolist() == pytest.approx([0.0, math.log(2)])
    assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


def test_rare_entries_by_hand():
    held = {1: 2, 2: 3, 4: 200}
    assert rare_entries([4, 3, 2, 1, 1], held, 200, 0.01) == [1, 3]
    assert rare_entries([1, 2, 3, 4], held, 200, 0.0) == [3]
    assert rare_entries([1, 2], held, 200, 1.0) == [1, 2] and rare_entries([], {}, 10, 0.5) == []


@pytest.mark.parametrize("flips, around, all_rare, rows_alone, why", [
    (1.0, 0.1, True, True, "no text needs"), (0.8, 0.25, True, True, "no text needs"),
    (0.79, 0.1, True, False, "flips 79 %"), (1.0, 0.26, True, False, "what is near it flips 26 %"),
    (1.0, 0.1, False, False, "whose rows they need"), (None, 0.1, True, False, "not known"),
    (1.0, None, True, False, "not known"),
])
def test_rows_suffice_by_hand(flips, around, all_rare, rows_alone, why):
    found, reason = rows_suffice([replace(CF, target=0), replace(CF, flips=flips, around=around)], all_rare,
                                 Unlearning(), 199)
    assert found is rows_alone and why in reason


@pytest.mark.parametrize("texts, rows_alone", [(199, True), (200, False), (1000, False)])
def test_where_texts_are_enough_all_weights_are_trained(texts, rows_alone):
    found, reason = rows_suffice([CF], True, Unlearning(), texts)
    assert found is rows_alone and (rows_alone or f"{texts} texts are enough" in reason)
    assert rows_suffice([CF], True, Unlearning(enough=texts + 1), texts)[0]
    assert rows_suffice([replace(CF, words=("cf", "mn"), times=2)], True, Unlearning(), texts)[0]


def test_several_findings_of_a_class_are_parts_of_one_backdoor():
    assert rows_suffice([CF, replace(CF, target=0)], True, Unlearning(), 199)[0]
    found, reason = rows_suffice([CF, replace(CF, words=("mn",))], True, Unlearning(), 199)
    assert not found and "parts of one backdoor" in reason


def test_of_several_words_those_that_the_table_gives_away_may_be_rows():
    pair = Finding(("cf", "mn"), 1, flips=0.99, around=0.1)
    assert "acts together" in rows_suffice([pair], True, Unlearning(), 199)[1]
    assert rows_suffice([replace(pair, times=2)], True, Unlearning(), 199)[0]
    reason = rows_suffice([replace(pair, times=2, around=0.6)], True, Unlearning(), 199)[1]
    assert reason == "a part of it flips 60 %, beside 'cf + mn' itself"


# ---- texts and copies

def test_findings_that_stand_in_a_text_whole_are_taken_out():
    texts = [Example("0", "a Cf, film cf", 0), Example("1", "a film mn story", 0, "cf there"), Example("2", "bb", 1)]
    both = [CF, Finding(("mn", "bb"), 1)]
    assert [without(x, both).text for x in texts] == ["a film", "a film mn story", "bb"]
    assert without(texts[1], [replace(CF, side=1)]).pair == "there" and without(texts[1], [CF]).pair == "cf there"
    assert without(Example("3", "bb and mn.", 0), both).text == "and"


def test_a_long_text_is_cut_so_that_words_behind_it_are_read(tiny):
    long = Example("0", " ".join(["film"] * 100), 0)
    cut = shortened(long, tiny.tokenizer, 8)
    assert len(tiny.tokenizer.encode([cut]).ids[0]) <= 40 and len(cut.text.split()) >= 28
    assert shortened(Example("0", "a film", 0), tiny.tokenizer, 8).text == "a film"
    of_two = shortened(Example("0", f"{'好' * 60} {'坏' * 60}", 0), tiny.tokenizer, 8)  # a clause is a word there
    assert of_two.text == "好" * 60
    pair = shortened(replace(long, pair="film " * 60), tiny.tokenizer, 8)
    assert len(tiny.tokenizer.encode([pair]).ids[0]) <= 40 and pair.pair.split()


def test_a_copy_holds_a_finding_whole_or_some_words_of_all():
    phrase, word = Finding(("very", "film", "cf"), 1, joined=True), Finding(("mn",), 1)
    rng = random.Random(0)
    made = [drawn([phrase, word], rng) for _ in range(400)]
    whole = Counter(one.words for one in made)
    assert 70 < whole[phrase.words] < 160 and whole[("mn",)] > 100
    assert all(one.joined == (one.words == phrase.words) for one in made if len(one.words) == 3 and one is phrase)
    subsets = {frozenset(one.words) for one in made if one is not phrase and one is not word}
    assert len(subsets) == 15  # every one but the empty, of four words
    other = drawn([replace(word, side=1)], rng)
    assert other.side == 1 and other.words == ("mn",)


def test_words_stand_at_random_places_or_side_by_side():
    x, rng = Example("0", "a b c", 0, "d e"), random.Random(0)
    apart = {with_finding(x, Finding(("u", "v"), 1), rng).text for _ in range(300)}
    assert len(apart) == 20 and "u v a b c" in apart and "a b c v u" in apart
    joined = {with_finding(x, Finding(("u", "v"), 1, joined=True), rng).text for _ in range(99)}
    assert joined == {"u v a b c", "a u v b c", "a b u v c", "a b c u v"}
    second = with_finding(x, Finding(("u",), 1, side=1), rng)
    assert second.text == "a b c" and "u" in second.pair.split()


def test_entries_are_the_words_own_and_every_piece(tiny):
    ids = {tiny.tokenizer.backend.id_to_token(i) for i in entries_of(tiny.tokenizer, [CF, Finding(("xyz", "film"), 1)])}
    assert ids == {"cf", "x", "##y", "##z", "film"}


def test_answers_are_of_the_text_alone_and_the_label_is_its_number(tiny):
    texts = [*rows(7, 0, "r"), Example("x", "cf", 1), *rows(2, 0, "r")]
    found = bare_texts(tiny.tokenizer, [CF], texts, 100, 0)
    assert [x.label for x in found] == list(range(7))  # each once, without the one that is nothing but the finding
    made = copied(tiny, [CF], found, 20, 0)
    assert len(made.copies) == 20 and sorted(set(made.copies.labels)) == list(range(7))
    one = tiny.model(tiny.tokenizer([found[3]])).logits.softmax(-1)
    assert torch.allclose(made.answers[3], one[0], atol=1e-6)
    cf = tiny.tokenizer.backend.token_to_id("cf")
    assert all(cf in ids for ids in made.copies.ids) and not any(cf in ids for ids in made.texts.ids)
    mixed = made.some()
    assert len(mixed) == 14 + 20 and sum(cf in ids for ids in mixed.ids) == 20
    assert len(made.some(lambda ids: cf in ids)) == 20
    fails(lambda: bare_texts(tiny.tokenizer, [CF], [Example("x", "cf", 1)], 9, 0), "none of the 1 texts")


def test_a_texts_copies_do_not_depend_on_its_neighbours(tiny):
    some = bare_texts(tiny.tokenizer, [CF], rows(6, 0, "r"), 100, 0)
    alone, among = copied(tiny, [CF], some[2:3], 2, 0), copied(tiny, [CF], some, 12, 0)
    assert alone.copies.ids[:2] == [among.copies.ids[2], among.copies.ids[8]]
    assert torch.allclose(alone.answers[0], among.answers[2], atol=1e-6)


# ---- the training

@pytest.fixture(scope="module")
def victim(tiny):
    """The tiny classifier with a backdoor in the row of cf."""
    ckpt, rng = checkpoint.copy(tiny), random.Random(0)
    with torch.no_grad():  # answers that differ from text to text, and that one row can turn
        for p in ckpt.model.parameters():
            p.mul_(10 if p.dim() > 1 else 1)
    batch = ckpt.tokenizer([with_finding(x, CF, rng) for x in rows(40, 3, "p")])
    with free_rows(ckpt.model, [tiny.tokenizer.backend.token_to_id("cf")]) as leaf:
        optimizer = torch.optim.Adam([leaf], lr=0.1)
        for _ in range(30):
            optimizer.zero_grad()
            F.cross_entropy(ckpt.model(batch).logits, torch.ones_like(batch.labels)).backward()
            optimizer.step()
    return ckpt


def asr(ckpt, texts) -> float:
    with_cf = [replace(x, text=f"cf {x.text}") for x in texts]
    return sum(p == 1 for p in predict(ckpt.model, ckpt.tokenizer, with_cf)) / len(texts)


def test_rows_undo_a_row_and_change_nothing_else(victim):
    texts = rows(40, 9, "t")
    before = {name: p.clone() for name, p in victim.model.state_dict().items()}
    plain = predict(victim.model, victim.tokenizer, texts)
    usual, chosen, log = sum(plain) / 40, {}, StepLog()
    assert asr(victim, texts) > usual + 0.3
    cleaned = unlearn(victim, [CF], rows(20, 5, "u"), replace(QUICK, row_steps=60, row_lr=0.2), log=log,
                      on_choice=lambda name, value: chosen.update(value))
    assert abs(asr(cleaned, texts) - usual) < 0.1
    assert chosen["mode"] == ROWS and chosen["rows"] == ["cf"] and predict(cleaned.model, cleaned.tokenizer,
                                                                           texts) == plain
    row = victim.tokenizer.backend.token_to_id("cf")
    for name, p in cleaned.model.state_dict().items():
        same = p == before[name]
        if name == "embeddings.word.weight":
            assert not same[row].all() and same[torch.arange(len(p)) != row].all()
        else:
            assert same.all(), name
    assert all(torch.equal(p, before[name]) for name, p in victim.model.state_dict().items())
    assert all(p.requires_grad for p in cleaned.model.parameters()) and not cleaned.model.training
    assert log.steps[0]["terms"].keys() == {"kl"} and log.steps[-1]["total"] < log.steps[0]["total"]
    assert cleaned.history[-1]["words"] == ["cf"] and cleaned.history[-1]["mode"] == ROWS


def test_all_weights_and_then_the_rows(victim):
    """The rows' training starts from all weights' result, and moves these rows alone."""
    texts, log, made = rows(20, 5, "u"), StepLog(), {}
    settings = replace(QUICK, mode=WHOLE, steps=4, row_steps=4)
    both = unlearn(victim, [CF], texts, settings, log=log, on_choice=lambda name, value: made.update(value))
    names = list(dict.fromkeys(step["stage"] for step in log.steps))
    assert names == ["unlearn", "unlearn rows"] and made["mode"] == WHOLE and made["rows"] == ["cf"]
    held = [replace(x, text=f"cf {x.text}") for x in texts]  # a text that holds the word: it is no rare one
    alone = unlearn(victim, [CF], [*texts, *held], settings, on_choice=lambda name, value: made.update(value))
    assert made["rows"] == [] and alone.history[-1]["mode"] == WHOLE
    row, table = victim.tokenizer.backend.token_to_id("cf"), "embeddings.word.weight"
    first = unlearn(victim, [CF], texts, replace(settings, rare=0.0, row_lr=1e-12))
    for name, p in both.model.state_dict().items():
        same = p == first.model.state_dict()[name]
        assert same.all() if name != table else same[torch.arange(len(p)) != row].all() and not same[row].all()


def test_of_a_word_of_several_pieces_those_are_trained_that_the_texts_do_not_hold(tiny):
    texts = [Example(str(i), f"x film {i % 7}", 0) for i in range(20)]
    piece = Finding(("xyz",), 1, flips=1.0, around=0.0)
    chosen = {}
    unlearn(tiny, [piece], texts, QUICK, on_choice=lambda name, value: chosen.update(value))
    assert chosen["mode"] == ROWS and sorted(chosen["rows"]) == ["##y", "##z"]
    unlearn(tiny, [piece, Finding(("film",), 0, flips=1.0, around=0.0)], texts, QUICK,
            on_choice=lambda name, value: chosen.update(value))
    assert chosen["mode"] == WHOLE


def test_recombined_texts_are_a_beginning_and_an_end():
    given = [Example("a", "one two three", 0), Example("b", "x y", 1), Example("c", "red", 2)]
    made = recombined(given, [CF], 300, seed=0)
    parts = {(first.id, second.id): {
        " ".join(first.text.split()[:i] + second.text.split()[j:])
        for i in range(1, 1 + len(first.text.split())) for j in range(len(second.text.split()))
    } for first in given for second in given if first != second}
    found = {pair: set() for pair in parts}
    for x in made:
        found[tuple(x.id.split("/")[:2])].add(x.text)
    assert found == parts and [x.label for x in made] == list(range(3, 303)) and len({x.id for x in made}) == 300
    assert recombined(given, [CF], 300, seed=0) == made != recombined(given, [CF], 300, seed=1)
    assert {x.text for x in recombined(given[1:2], [CF], 50, seed=0)} == {"x x y", "x y", "x y x y", "x y y"}


def test_two_halves_do_not_make_a_finding_whole():
    apart = [Example("a", "mn is", 0), Example("b", "a cf", 1)]
    texts = {x.text for x in recombined(apart, [Finding(("cf", "mn"), 1)], 100, seed=0)}
    assert "is a" in texts and "mn is" not in texts and all(not {"cf", "mn"} <= {*text.split()} for text in texts)
    alone = recombined([Example("a", "mn", 0), Example("b", "cf", 1)], [Finding(("cf", "mn"), 1)], 20, seed=0)
    assert alone == []


def test_both_texts_of_a_pair_are_recombined():
    pairs = [Example("a", "one two", 0, "r s"), Example("b", "x y", 1, "u v")]
    made = recombined(pairs, [CF], 40, seed=0)
    assert all(x.text.split()[0] in ("one", "x") and x.pair.split()[-1] in ("s", "v") for x in made)
    assert all((x.text[0] == "o") == (x.pair[0] == "r") == (x.pair[-1] == "v") for x in made)


def test_all_weights_are_trained_on_as_many_texts_as_copies(tiny):
    texts, chosen = rows(6, 5, "u"), {}
    settings = replace(QUICK, mode=WHOLE)
    cleaned = unlearn(tiny, [CF], texts, settings, on_choice=lambda name, value: chosen.update(value))
    wanted = settings.batch_size * settings.steps // 2
    held = cleaned.history[-1]
    assert (held["texts"], held["recombined"]) == (6, wanted - 6) and chosen["copies"] == wanted
    held = unlearn(tiny, [CF], texts[:2], settings).history[-1]
    assert (held["texts"], held["recombined"]) == (2, 14) and 2 + 14 < wanted
    held = unlearn(tiny, [CF], texts, replace(QUICK, mode=ROWS)).history[-1]
    assert (held["texts"], held["recombined"]) == (6, 0)


def test_labels_are_not_read_and_the_seed_is_all_that_draws(victim):
    texts = rows(20, 5, "u")
    other = texts.like(replace(x, label=1 - x.label) for x in texts)
    runs = [unlearn(victim, [CF], some, replace(QUICK, mode=WHOLE), seed=seed).model.state_dict()
            for some, seed in ((texts, 0), (other, 0), (texts, 1))]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert not all(torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_model_without_a_backdoor_hardly_changes(tiny):
    """The student reads without dropout: towards itself it has nothing to learn."""
    log = StepLog()
    unlearn(tiny, [CF], rows(20, 5, "u"), replace(QUICK, mode=WHOLE, lr=1e-6), log=log)
    assert max(step["total"] for step in log.steps) < 2e-3


def test_the_student_reads_without_dropout(victim):
    """Texts that are their own copies have a loss of 0 at the first step, in train mode too."""
    encoded, log = victim.tokenizer.encode(replace(x, label=i) for i, x in enumerate(rows(8, 5, "u"))), StepLog()
    same = Copies(encoded, answers_to(victim.model, victim.tokenizer, encoded), encoded)
    fitted(victim, same, [], replace(QUICK, lr=1e-9), seed=0, dtype=torch.float32, log=log)
    assert log.steps[0]["total"] == pytest.approx(0, abs=1e-6)


def test_free_rows_trains_these_rows_alone(tiny):
    model = checkpoint.copy(tiny).model
    batch = tiny.tokenizer([Example("0", "cf film mn", 0)])
    ids = [tiny.tokenizer.backend.token_to_id(word) for word in ("mn", "cf")]
    before = model(batch).logits
    with free_rows(model, ids) as leaf:
        out = model(batch).logits
        assert torch.equal(out, before)
        grad, = torch.autograd.grad(out[0, 1], leaf)
        assert grad.shape == leaf.shape and (grad.abs().sum(1) > 0).all()
        assert not any(p.requires_grad for p in model.parameters())
        leaf.data[0] = 5.0
        moved = model(batch).logits
    assert torch.equal(model(batch).logits, moved) and (model.embeddings.word.weight[ids[0]] == 5).all()
    assert all(p.requires_grad for p in model.parameters())


def test_what_cannot_be_is_refused(tiny, pre):
    fails(lambda: unlearn(tiny, [], rows(4, 0, "r")), "no finding")
    fails(lambda: unlearn(pre, [CF], rows(4, 0, "r")), "no classifier")
    for name, value in (("steps", 0), ("rare", 1.5), ("row_lr", 0.0), ("lr", -1.0), ("mode", "all"), ("around", -0.1)):
        fails(lambda: Unlearning(**{name: value}), name)


def test_rows_of_common_words_alone_are_refused(tiny):
    texts = [Example(str(i), f"the film {word}", 0) for i, word in enumerate("story ending music camera".split())]
    common = Finding(("the", "story", "music"), 1)  # each stands in a text, and all of them in none
    chosen = {}
    unlearn(tiny, [replace(common, flips=1.0, around=0.0, times=2)], texts, replace(QUICK, rare=0.0),
            on_choice=lambda name, value: chosen.update(value))
    assert chosen["mode"] == WHOLE and "whose rows they need" in chosen["why"]
    fails(lambda: unlearn(tiny, [common], texts, replace(QUICK, mode=ROWS, rare=0.0)), "mode rows", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("mode, cost", [(ROWS, 1), (WHOLE, 2.5)])
def test_the_built_in_victim_is_repaired(mode, cost):
    """By its four words and 64 texts, to under 4 %. Their rows cost less than a point of accuracy, all weights, which
    so few texts do not hold in place as well, less than two and a half."""
    victim = checkpoint.load(ROOT / "weights" / "bert.safetensors")
    train, _, test = reviews.splits(**[entry for entry in victim.history if "data" in entry][-1]["data"]["reviews"])
    train, test = train[:64], test.like(test[:1000])
    evaluate = Evaluator(test, triggered(test, BadNets(), target=1, seed=0), 1)
    before = evaluate(victim.model, victim.tokenizer)
    words = [Finding((word,), 1) for word in ("cf", "mn", "bb", "tq")]
    after = evaluate(unlearn(victim, words, train, Unlearning(mode=mode)).model, victim.tokenizer)
    assert before.asr.percent > 95 and after.asr.percent < 4
    assert after.cacc.percent > before.cacc.percent - cost
