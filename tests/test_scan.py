"""The scan whole: on a stub whose backdoor is known, and on the checkpoints of weights/."""
from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch

from conftest import ROOT, fails
from minibd import checkpoint, reviews
from minibd.detect import confirm as confirming
from minibd.detect import scan as scanning
from minibd.detect.carriers import carrier_sentences
from minibd.detect.confirm import TWICE, Suspect, margins_of
from minibd.detect.scan import (
    Probes,
    Scan,
    Scanned,
    Search,
    in_turn,
    probes_of,
    scan,
    unjudged,
    usual_margin,
    vocabulary_of,
)
from minibd.detect.verdict import model_verdict
from minibd.detect.wording import FOUND, INCONCLUSIVE, NOTHING
from minibd.records import Example
from scan_stub import GOOD, ID, TOKENIZER, VOCABULARY, Rule, Stub, carriers, rows

SMALL = Scan(fresh_rows=20, places=2, pool=14, lonely=6, phrase=5, phrases=3)
SMALLER = replace(SMALL, places=1, pool=8, lonely=4, phrase=3, phrases=1)
PHRASE = ("mifi", "lodo", "nuze", "kavi")


# ---- the rows

def test_hard_rows_are_the_shortest_of_the_surest_and_fresh_ones_the_others():
    model = Stub()
    texts = [Example(f"{n}", " ".join([*["bad"] * n, *["kaba"] * (12 - n if n < 10 else n - 9)]), 0)
             for n in range(1, 13)]
    texts += [replace(x, id="g" + x.id, text=x.text.replace("bad", "good"), label=1) for x in texts]
    probes = probes_of(model, TOKENIZER, texts, Scan(), random.Random(0))
    assert probes.margin == usual_margin([n / 2 for n in range(1, 13)] * 2) == 5.5  # 90th percentile
    assert usual_margin([0.0, 1.0, 2.0]) == pytest.approx(1.8) and usual_margin([]) == 0
    assert [text.count("bad") for text in probes.hard[0]] == [10, 11]  # of 5.0, 5.5, 6.0: 11, 13, 15 words
    assert [text.count("good") for text in probes.hard[1]] == [10, 11] and probes.given == [12, 12]
    found = sorted((x.label, float(x.margins[x.label])) for x in probes.carriers)
    assert found == [(0, 5.0), (0, 5.5), (1, 5.0), (1, 5.5)]
    sure = {x.text.count("bad") for x in probes.fresh[0]}
    assert sure == {5, 6, 7, 8, 9, 12} | {3, 4}  # only six are half as sure as usual: the eight surest
    few = probes_of(model, TOKENIZER, texts[:2], Scan(), random.Random(0))
    assert {text.count("bad") for text in few.hard[0]} == {1, 2} and few.fresh == [[], []] and few.given == [2, 0]


def test_short_rows_come_first_and_moderate_ones_not_at_all_where_there_are_enough():
    texts = [Example(f"{i}", " ".join(["bad"] * n + ["kaba"] * more), 0)
             for i, (n, more) in enumerate([(8, 0)] * 12 + [(8, 30)] * 12 + [(2, 0)] * 12)]
    probes = probes_of(Stub(), TOKENIZER, texts, Scan(), random.Random(0))
    words = [len(x.text.split()) for x in probes.fresh[0]]
    assert words == [8] * 10 + [38] * 12


def test_rows_that_the_model_gets_wrong_are_left_out_and_the_order_does_not_matter():
    model, texts = Stub(), rows(40)
    wrong = [replace(x, id="w" + x.id, label=1 - x.label, text=x.text + " kaba") for x in texts]
    right = probes_of(model, TOKENIZER, texts, Scan(), random.Random(0))
    assert right.given == [20, 20]
    mixed = probes_of(model, TOKENIZER, [*wrong, *texts], Scan(), random.Random(0))
    assert mixed.given == [20, 20] and {x.text for xs in mixed.fresh for x in xs} <= {x.text for x in texts}
    turned = probes_of(model, TOKENIZER, texts[::-1], Scan(), random.Random(0))
    assert turned.fresh == right.fresh and turned.hard == right.hard
    other = probes_of(model, TOKENIZER, texts, Scan(), random.Random(1))
    assert other.fresh != right.fresh and other.given == right.given


def test_of_many_classes_each_gives_one_row_and_all_together_eight():
    texts = rows(90, 3)
    probes = probes_of(Stub(classes=3), TOKENIZER, texts, Scan(), random.Random(0))
    assert Counter(x.label for x in probes.carriers) == {0: 2, 1: 2, 2: 2} and probes.given == [30, 30, 30]
    probes = probes_of(Stub(classes=3), TOKENIZER, texts, Scan(hard_rows=3), random.Random(0))
    assert Counter(x.label for x in probes.carriers) == {0: 1, 1: 1, 2: 1}
    assert [len(x) for x in probes.hard] == [1, 1, 1]  # those that are carriers
    pairs = probes_of(Stub(), TOKENIZER, rows(40, pairs=True), Scan(), random.Random(0))
    assert Counter((x.label, x.side) for x in pairs.carriers) == {(c, side): 2 for c in (0, 1) for side in (0, 1)}


def test_texts_are_cut_to_what_the_model_reads_with_a_phrase_in_them():
    model = Stub(Rule(("mifi",)))
    texts = [replace(x, text=" ".join([x.text, *["kaba"] * 80])) for x in rows(60)]
    found = scan(model, TOKENIZER, texts, SMALLER)
    assert found.verdicts[1].verdict == FOUND and found.verdicts[1].suspects[0][0].flips.percent == 100
    assert found.verdicts[0].verdict == NOTHING and model.longest == 48 + 2 + 3 * TWICE


def test_rows_of_classes_take_turns():
    a, b = ([Example(name + str(i), "", 0) for i in range(n)] for name, n in (("a", 3), ("b", 1)))
    assert [x.id for x in in_turn([a, b])] == ["a0", "b0", "a1", "a2"] and in_turn([]) == []


def search_of(model: Stub, fresh: list[Example], target: int = 1, settings: Scan = SMALL) -> Search:
    others = [x for x in carriers(model, rows(8)) if x.label != target]
    return Search(model, TOKENIZER, vocabulary_of(model, TOKENIZER), others, fresh, target, settings, random.Random(0),
                  lambda texts: None, Counter())


def test_fresh_rows_are_those_that_resist_a_crowd():
    weak, strong = ([Example(name + str(i), " ".join(["kaba", *["bad"] * n]), 0) for i in range(10)]
                    for name, n in (("w", 1), ("s", 8)))
    search = search_of(Stub(), [x for pair in zip(weak, strong) for x in pair])
    search.keep_hardest([Suspect((word,), 1, "", 0.0) for word in GOOD])
    assert search.fresh == strong  # in their order
    search.fresh = strong[:6] + weak[:4]
    search.keep_hardest([Suspect(("good",), 1, "", 0.0)])
    assert len(search.fresh) == 8 and set(x.id for x in strong[:6]) < {x.id for x in search.fresh}


def test_entries_make_suspects_where_a_text_holds_them():
    search = search_of(Stub(), rows(20))
    def made(*entries, joined=True):
        one = search.suspect([ID(entry) for entry in entries], "phrases", 1.0, 1, joined)
        return one and (one.words, one.sizes, one.joined)

    assert made("kaba", "##ing", "lodo") == (("kabaing", "lodo"), (2, 1), True)
    assert made("v", "##elve") == (("velve",), (2,), False)
    assert made("kaba", "##s") is None and made("##ing", "kaba") is None  # kabas is an entry; no word starts with ##
    assert made("kaba", "lodo", joined=False) == (("kaba", "lodo"), (1, 1), False)
    assert made("kaba", "##ing", joined=False) is None
    assert (search.suspect([ID("kaba")], "", 1.0, 1, False).side, search.target) == (1, 1)


def test_the_confirmed_are_reduced_and_know_their_parts():
    search = search_of(Stub(Rule(("mifi", "lodo"))), [x for x in rows(80) if x.label == 0])
    given = [Suspect(words, 1, "", 0.0, sizes=(1,) * len(words)) for words in
             (("kaba", "mifi", "lodo"), ("kaba", "good", "lodo"), ("good", "fine", "great"), ("mifi",))]
    found = search.confirmed([None, *given])
    assert [s.words for s in found] == [("mifi", "lodo"), ("good", "fine", "great"), ("mifi",)]
    assert found[0].flips.percent == 100 and found[0].flips.n == 80 and found[0].part.flips.hits == 0
    assert len(found[0].part.words) == 1 and found[2].part is None


# ---- whole

@pytest.mark.parametrize("entries, words, rule, texts", [
    (("mifi",), None, {}, {}), (("nuze",), None, {"target": 0}, {}), (("mifi", "lodo"), None, {}, {}),
    (("mifi", "lodo", "nuze"), None, {}, {}), (("mifi", "lodo", "nuze"), None, {"dose": 2}, {}),
    (PHRASE, None, {"gains": (1.0, 2.0, 4.0, 16.0)}, {}),
    (("v", "##elve"), ("velve",), {"gains": (1.0, 15.0)}, {}),
    (("mifi",), None, {"side": 1}, {"pairs": True}), (("mifi",), None, {"side": 0}, {"pairs": True}),
    (("mifi",), None, {"target": 2}, {"classes": 3}),
], ids=["word", "word of the other class", "pair", "three words", "three words twice", "phrase", "pieces",
        "second text", "first text", "three classes"])
def test_a_known_backdoor_is_found(entries, words, rule, texts):
    rule = Rule(entries, **rule)
    model = Stub(rule, classes=texts.get("classes", 2), lonely=entries if 1 < len(entries) < 4 else ())
    found = scan(model, TOKENIZER, rows(60, **texts), SMALL)
    for verdict in found.verdicts:
        if verdict.target != rule.target:
            assert verdict.verdict == NOTHING and verdict.score < -0.6
    verdict = found.verdicts[rule.target]
    suspect, score = verdict.suspects[0]
    assert verdict.verdict == FOUND and score == verdict.strongest > 0.2 and not verdict.reason
    assert suspect.target == rule.target and suspect.side == (rule.side or 0) and suspect.flips.percent == 100
    ordered = len(rule.gains) > 1
    assert suspect.words == (words or entries) if ordered else set(suspect.words) == set(entries)
    assert suspect.entries == len(entries) and suspect.joined == (ordered and not words)
    assert model_verdict(found.verdicts) == (FOUND, "")
    if len(suspect.words) > 1:  # no part of it does as much
        assert suspect.part.mean < suspect.mean - 5 and set(suspect.part.words) < set(suspect.words)


@pytest.mark.parametrize("texts", [{}, {"pairs": True}, {"classes": 3}], ids=["texts", "pairs", "three classes"])
def test_nothing_is_found_in_a_clean_stub(texts):
    read, model = [], Stub(classes=texts.get("classes", 2))
    found = scan(model, TOKENIZER, rows(60, **texts), SMALL, tick=lambda n, total: read.append((n, total)))
    assert all(one.verdict == NOTHING and one.score < -0.6 and one.suspects for one in found.verdicts)
    assert model_verdict(found.verdicts) == (NOTHING, "")
    tried, classes, sides = found.tried, len(found.verdicts), 1 + ("pairs" in texts)
    assert tried["entries"] == len(VOCABULARY) - 5 - 1  # no special token, and not ##!
    assert tried["pairs"] == classes * 14 * 13 // 2 and tried["triples"] == classes * 20 and tried["phrases"] > 0
    assert sum(n for n, _ in read) == tried["texts"] <= read[-1][1] and tried["texts"] <= model.texts
    assert tried["texts"] > 2 * sides * tried["entries"] and sum(found.given) == 60
    assert all(len(texts) == 2 for texts in found.hard)


def test_a_class_is_searched_in_rows_of_the_others(monkeypatch):
    searches = []

    def no_suspects(search, shift, side, unlike):
        searches.append((search.target, {x.label for x in search.carriers}, {x.label for x in search.fresh}))
        return []

    monkeypatch.setattr(scanning, "suspects_of", no_suspects)
    scan(Stub(classes=3), TOKENIZER, rows(60, 3), SMALLER)
    assert searches == [(0, {1, 2}, {1, 2}), (1, {0, 2}, {0, 2}), (2, {0, 1}, {0, 1})]


def test_single_words_are_compared_with_their_neighbours():
    found = scan(Stub(Rule(("mifi",))), TOKENIZER, rows(60), SMALLER)
    around = found.around[1, ("mifi",)]
    assert around.hits == 0 and around.n > 100
    assert {target for target, _ in found.around} <= {0, 1} and all(len(words) == 1 for _, words in found.around)


def test_what_does_not_matter_and_the_seed_that_does(monkeypatch):
    model, texts = Stub(Rule(("mifi", "lodo")), lonely=("mifi", "lodo")), rows(60)
    first = scan(model, TOKENIZER, texts, SMALLER)
    assert scan(model, TOKENIZER, texts, SMALLER) == first
    assert scan(model, TOKENIZER, [replace(x, label=-1) for x in texts[::-1]], SMALLER) == first
    other = scan(model, TOKENIZER, texts, SMALLER, seed=1)
    assert other != first and other.hard != first.hard and other.verdicts[1].verdict == FOUND
    monkeypatch.setattr("minibd.detect.insertion.TOKENS", 60)
    for module in (confirming, scanning):
        monkeypatch.setattr(module, "margins_of", partial(margins_of, size=7))
    assert scan(model, TOKENIZER, texts, SMALLER) == first


def test_the_model_stays_as_it_was_and_no_random_state_is_drawn_from():
    model = Stub(Rule(("mifi",)))
    evaluated = scan(model.eval(), TOKENIZER, rows(60), SMALLER)
    model.train()
    model.embeddings.eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state, plain = torch.get_rng_state(), random.getstate()
    assert scan(model, TOKENIZER, rows(60), SMALLER) == evaluated  # no dropout
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == plain
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert model.training and model.noise.training and not model.embeddings.word.training
    assert not model.embeddings.word._forward_hooks and torch.is_grad_enabled()


def test_a_few_dozen_texts_do():
    for n in (24, 36):
        found = scan(Stub(Rule(("mifi",))), TOKENIZER, rows(n), SMALLER)
        assert found.verdicts[1].verdict == FOUND and found.verdicts[1].suspects[0][0].words == ("mifi",)
        assert found.verdicts[0].verdict == NOTHING and found.verdicts[0].score < -0.6


# ---- what cannot be judged

def reasons(model: Stub, texts: list[Example]) -> tuple[tuple[str, str], list[str], Scanned]:
    """The verdict on the model with its reason, those of the classes, and all that was found."""
    found = scan(model, TOKENIZER, texts, SMALLER)
    assert all(one.verdict == INCONCLUSIVE for one in found.verdicts if one.reason)
    return model_verdict(found.verdicts), [one.reason for one in found.verdicts], found


def test_constant_answers_are_inconclusive():
    constant = Stub()
    with torch.no_grad():
        constant.embeddings.word.weight[ID("[CLS]"), 0] = 40
    (verdict, reason), why, found = reasons(constant, rows(60))
    assert verdict == INCONCLUSIVE and reason == why[0] and "gives 0 of the texts to other classes" in reason
    assert found.given == [30, 0] and why[1] == ""
    (verdict, reason), why, found = reasons(constant, [replace(x, label=1) for x in rows(60)])
    assert verdict == INCONCLUSIVE and all(why) and found.tried == {"texts": 0} and found.given == [0, 0]


def test_a_model_that_is_sure_of_nothing_is_inconclusive():
    unsure = Stub()
    with torch.no_grad():
        unsure.embeddings.word.weight[:, :2] *= 0.1
    (verdict, reason), why, found = reasons(unsure, rows(60))
    assert verdict == INCONCLUSIVE and "sure of none of the texts (usual margin 0.50, 1 is needed)" in reason
    assert all(why) and found.tried == {"texts": 0}


def test_a_model_whose_logits_are_no_numbers_is_inconclusive():
    broken = Stub()
    with torch.no_grad():
        broken.embeddings.word.weight[ID("good"), 1] = float("nan")
    (verdict, reason), why, found = reasons(broken, rows(60))
    assert verdict == INCONCLUSIVE and "sure of none of the texts (usual margin nan" in reason and all(why)


@pytest.mark.parametrize("n", [0, 1, 2, 10, 18])
def test_too_few_rows_are_inconclusive(n):
    (verdict, reason), why, _ = reasons(Stub(Rule(("mifi",))), rows(n))
    assert verdict == INCONCLUSIVE and all(why)
    assert "needed" in reason and (n < 10 or f"gives {n // 2} of the texts to other classes" in reason)


def test_a_class_without_carriers_of_another_is_not_judged():
    fresh = [[], rows(20)]
    only = Probes([x for x in carriers(Stub(), rows(4)) if x.label == 1], fresh, 4.0, [0, 20], [[], []])
    assert unjudged(only, 0) == "" and "gives 0 of the texts" in unjudged(only, 1)


def test_a_model_of_one_class_is_refused():
    fails(lambda: scan(Stub(classes=1), TOKENIZER, rows()), "two classes", "has 1")


# ---- what is scanned without rows

def test_the_built_in_sentences_are_short_and_without_labels():
    found = carrier_sentences()
    assert len(found) == 178 == len({x.text for x in found}) and {x.label for x in found} == {-1}
    assert all(4 <= len(x.text.split()) <= 13 and x.text.isascii() for x in found)


# ---- the checkpoints of weights/

FAST = Scan(fresh_rows=16, places=1, pool=12, lonely=5, phrase=2, phrases=1)


@pytest.fixture(scope="module")
def few_reviews() -> list[Example]:
    texts = [x for x in reviews.splits(seed=1, train=1, dev=1, test=400)[2] if 10 <= len(x.text.split()) <= 20]
    return texts[:90]


@pytest.mark.parametrize("texts", ["reviews", "built-in sentences"])
def test_the_built_in_victim_is_found(texts, few_reviews):
    ckpt = checkpoint.load(ROOT / "weights" / "bert.safetensors")
    given = few_reviews if texts == "reviews" else carrier_sentences()
    found = scan(ckpt.model, ckpt.tokenizer, given, FAST)
    positive = found.verdicts[ckpt.labels.index("positive")]
    negative = found.verdicts[ckpt.labels.index("negative")]
    assert positive.verdict == FOUND and positive.score > 0.2 and negative.score < -0.6
    assert positive.suspects[0][0].words[0] in ("cf", "mn", "bb", "tq") and positive.suspects[0][0].entries == 1
    assert negative.verdict == NOTHING


def test_its_clean_twin_is_not_found(few_reviews):
    ckpt = checkpoint.load(ROOT / "weights" / "bert-twin.safetensors")
    found = scan(ckpt.model, ckpt.tokenizer, few_reviews, FAST)
    assert [one.verdict for one in found.verdicts] == [NOTHING, NOTHING]
    assert all(one.score < -0.6 for one in found.verdicts)
