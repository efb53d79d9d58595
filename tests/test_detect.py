"""The parts of the scan: its equations by hand and against plain loops, on a stub whose backdoor is known."""
from __future__ import annotations

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from minibd.detect.carriers import carrier_sentences
from minibd.detect.confirm import Suspect, confirm, margins_of, with_words
from minibd.detect.insertion import Carrier, carrier_of, margins, margins_with
from minibd.detect.search import entry_shifts, gradient, grow, middle, shared, shifts, spread, tuples
from minibd.detect.table import loneliness, neighbours, word_entries
from minibd.proportion import Proportion
from minibd.records import Example, Output
from minibd.tokenizer import Tokenizer

GOOD, BAD = ("good", "fine", "lovely", "great"), ("bad", "dull", "poor", "awful")
PLAIN = [a + b for a in ("ka", "lo", "mi", "nu", "pe", "ra") for b in ("ba", "do", "fi", "go", "tu", "ze", "so", "vi")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *PLAIN, "##ing", "##s"]
TOKENIZER = Tokenizer.from_vocab({token: i for i, token in enumerate(VOCABULARY)}, 64)
ID = TOKENIZER.backend.token_to_id


class Stub(nn.Module):
    """A bag of words of two classes: each good word adds 2 to class 1, each bad one to class 0. All of `trigger` in a
    text add 30 to the class `target`, at any place and in any order."""

    def __init__(self, trigger: tuple[str, ...] = (), target: int = 1):
        super().__init__()
        self.config = SimpleNamespace(labels=2, vocab=len(VOCABULARY), max_len=64)
        self.trigger, self.target, self.read = [ID(word) for word in trigger], target, 0
        self.embeddings = nn.Module()
        self.embeddings.word = nn.Embedding(len(VOCABULARY), 8)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.embeddings.word.weight.normal_(generator=generator)
            self.embeddings.word.weight[:, :2] = 0
            for column, words in enumerate((BAD, GOOD)):
                self.embeddings.word.weight[[ID(word) for word in words], column] = 2

    def forward(self, batch) -> Output:
        self.read += len(batch.ids)
        logits = (self.embeddings.word(batch.ids) * batch.mask[..., None])[..., :2].sum(1)
        if self.trigger:
            fires = torch.stack([(batch.ids == i).any(1) for i in self.trigger]).all(0)
            logits = logits + 30 * fires[:, None] * (torch.arange(2) == self.target)
        return Output(logits, None)


def rows(n: int = 30) -> list[Example]:
    """Half of them of either class, each with two words of its class among plain ones."""
    rng = random.Random(0)
    found = []
    for i in range(n):
        words = [*rng.sample((BAD, GOOD)[i % 2], 2), *rng.sample(PLAIN, 4)]
        rng.shuffle(words)
        found.append(Example(str(i), " ".join(words), i % 2))
    return found


def carriers(model: Stub, n: int = 4) -> list[Carrier]:
    found = margins_of(model, TOKENIZER, rows(n))
    return [carrier_of(TOKENIZER, x, x.label, m) for x, m in zip(rows(n), found)]


# ---- the equations

def test_margins_by_hand():
    found = margins(torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 0.0]]))
    assert found.tolist() == [[-3.0, 2.0, -2.0], [0.0, 0.0, -3.0]]


def test_the_words_of_the_vocabulary():
    ids = word_entries(TOKENIZER)
    assert [TOKENIZER.backend.id_to_token(i) for i in ids] == [*GOOD, *BAD, *PLAIN]


def test_neighbours_are_those_of_a_plain_loop():
    table = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(3, 29)
    nearest, cosines = neighbours(table, ids, ids, 4)
    for row, (found, values) in enumerate(zip(nearest.tolist(), cosines.tolist())):
        own = table[ids[row]]
        others = {int(j): float(torch.cosine_similarity(own, table[j], dim=0)) for j in ids if j != ids[row]}
        best = sorted(others, key=others.get, reverse=True)[:4]
        assert found == best and values == pytest.approx([others[j] for j in best], abs=1e-6)
    lonely = loneliness(cosines, ["word", "4th", *["word"] * 24])
    assert lonely[0] == pytest.approx(1 - sum(cosines[0].tolist()) / 4) and lonely[1] == -1


def test_the_places_of_a_text_and_of_a_pair():
    one = carrier_of(TOKENIZER, Example("", "good kabaing dull", 0), 0, torch.zeros(2))
    assert [TOKENIZER.backend.id_to_token(i) for i in one.ids] == ["[CLS]", "good", "kaba", "##ing", "dull", "[SEP]"]
    assert one.places == (1, 2, 4, 5)
    two = carrier_of(TOKENIZER, Example("", "good kaba", 0, "dull"), 0, torch.zeros(2))
    assert two.places == (1, 2, 3, 4, 5) and two.token_type_ids == (0, 0, 0, 0, 1, 1)
    ids, kinds, slots = two.room([1, 3, 5])
    assert slots == [1, 4, 7] and kinds == [0, 0, 0, 0, 0, 0, 1, 1, 1] and len(ids) == 9


def test_an_insertion_of_ids_is_the_text_with_the_word():
    model = Stub(("kaba", "lodo"))
    for carrier, x in zip(carriers(model), rows(4)):
        for at in (0, 2, len(carrier.places) - 1):
            words = x.text.split()
            text = " ".join([*words[:at], "kaba", "lodo", *words[at:]])
            found = margins_with(model, carrier, torch.tensor([[ID("kaba"), ID("lodo")]]), [carrier.places[at]] * 2)
            assert torch.equal(found, margins_of(model, TOKENIZER, [replace(x, text=text)]))


def test_shifts_are_those_of_a_plain_loop(monkeypatch):
    model, words = Stub(("mifi",)), torch.tensor([ID(w) for w in ("good", "bad", "mifi", "kaba")])
    found = carriers(model)
    expected = torch.zeros(4, 2)
    for target in (0, 1):
        others = [x for x in found if x.label != target]
        for i, word in enumerate(words):
            for x in others:
                moved = margins_with(model, x, word[None, None], [middle(x)])[0, target] - x.margins[target]
                expected[i, target] += moved / len(others)
        assert torch.allclose(shifts(model, others, words[:, None], target), expected[:, target])
    read = []
    assert torch.allclose(entry_shifts(model, found, words, read.append), expected) and read == [4] * len(found)
    assert expected.tolist() == [[-2, 2], [2, -2], [-30, 30], [0, 0]]
    monkeypatch.setattr("minibd.detect.insertion.TOKENS", 1)  # a text a batch
    assert torch.allclose(entry_shifts(model, found, words), expected)


def test_what_neighbours_share():
    shift, nearest = torch.tensor([0.0, 4.0, 1.0, 2.0, 8.0]), torch.tensor([[1, 2, 3, 4], [0, 2, 3, 4]])
    assert shared(shift, nearest).tolist() == [3.75, 2.75] and shared(shift, nearest, 2).tolist() == [6.0, 5.0]


def test_spread_and_tuples():
    carrier = Carrier(tuple(range(12)), (0,) * 12, tuple(range(1, 12)), 0, torch.zeros(2))
    assert spread(carrier, 1) == [6] == [middle(carrier)] and spread(carrier, 3) == [3, 6, 9]
    assert tuples([5, 7, 9], 2).tolist() == [[5, 7], [5, 9], [7, 9]] and tuples([5], 2).shape == (0, 2)


def test_the_gradient_is_the_change_to_first_order():
    model = Stub()
    carrier = carriers(model)[0]  # of class 0
    gain = gradient(model, carrier, (ID("kaba"),), 0, 1)
    assert gain[ID("good")] - gain[ID("kaba")] == pytest.approx(2) and gain[ID("bad")] - gain[ID("kaba")] == -2
    assert all(p.grad is None for p in model.parameters())


def test_a_phrase_grows_by_what_adds_to_it():
    model = Stub()
    words = torch.tensor(word_entries(TOKENIZER))
    phrases = grow(model, [x for x in carriers(model) if x.label == 0], ID("good"), words, 1, 3)
    assert [len(words) for words, _ in phrases] == [2, 3] and [shift for _, shift in phrases] == [4.0, 6.0]
    assert {VOCABULARY[i] for words, _ in phrases for i in words} <= set(GOOD)
    zero = grow(model, [x for x in carriers(model) if x.label == 0], ID("good"), torch.tensor([ID("kaba")]), 1, 3)
    assert zero == []


# ---- the confirmation

def test_words_are_put_at_places_of_their_own_or_side_by_side():
    rng = random.Random(0)
    x, scattered = Example("1", "a b c", 0), Suspect(("u", "v"), 1, "", 0.0)
    texts = {with_words(x, scattered, rng).text for _ in range(200)}
    assert all(sorted(text.split()) == ["a", "b", "c", "u", "v"] for text in texts) and len(texts) == 20
    joined = {with_words(x, replace(scattered, joined=True), rng).text for _ in range(100)}
    assert joined == {"u v a b c", "a u v b c", "a b u v c", "a b c u v"}
    pairs = [with_words(replace(x, pair="d"), scattered, rng) for _ in range(40)]
    assert {(len(p.text.split()), len(p.pair.split())) for p in pairs} == {(5, 1), (3, 3)}


def test_flips_and_percentile_by_hand():
    model = Stub(("mifi",))
    fresh = [x for x in rows() if x.label == 0]
    found = confirm(model, TOKENIZER, [Suspect(("good",), 1, "", 0.0), Suspect(("mifi",), 1, "", 0.0)], fresh, 3,
                    random.Random(0))
    assert [s.words for s in found] == [("mifi",), ("good",)]
    assert found[0].flips == Proportion(45, 45) and found[0].quantile == 26
    assert found[1].flips == Proportion(0, 45) and found[1].quantile == -2


def test_the_carriers_are_short_and_plain():
    found = carrier_sentences()
    assert len(found) == 178 == len({x.text for x in found}) and {x.label for x in found} == {-1}
    assert all(4 <= len(x.text.split()) <= 13 and x.text.isascii() for x in found)


def test_a_word_that_is_weak_in_the_first_carriers_goes_into_no_other(monkeypatch):
    monkeypatch.setattr("minibd.detect.search.KEPT", 1)
    model, words, read = Stub(("mifi",)), torch.tensor([ID(w) for w in ("good", "bad", "mifi", "kaba")]), []
    found = entry_shifts(model, carriers(model), words, read.append)
    assert read == [4, 4, 2, 2]  # the best of either class: bad, mifi
    assert found.tolist() == [[-2, 2], [2, -2], [-30, 30], [0, 0]]


def test_two_triggers_side_by_side_are_more_than_their_sum():
    model = Stub(("mifi", "lodo"))
    others = [x for x in carriers(model) if x.label == 0]
    pair, alone = tuples([ID("mifi"), ID("lodo"), ID("good")], 2), torch.tensor([[ID("mifi")], [ID("lodo")]])
    assert shifts(model, others, alone, 1).tolist() == [0, 0]
    for joined in (False, True):
        assert shifts(model, others, pair, 1, joined=joined).tolist() == [30, 2, 2]
