"""The parts of the scan: its equations by hand and against plain loops, on a stub whose backdoor is known."""
from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from minibd.detect.confirm import Suspect, confirm, margins_of, parts_of, reduced, with_words
from minibd.detect.insertion import Carrier, carriers_of, margins, margins_with, readable
from minibd.detect.search import (
    beyond,
    entry_shifts,
    gradient,
    grow,
    middle,
    shifts,
    spread,
    surest_of_two_classes,
    tuples,
)
from minibd.detect.table import entries_of, loneliness, neighbours, word_entries
from minibd.detect.verdict import LISTED, STANDS_OUT, WITH_TEXTS, judge, model_verdict, score
from minibd.detect.wording import FOUND, INCONCLUSIVE, NOTHING
from minibd.proportion import Proportion
from minibd.records import Example
from minibd.tokenizer import Settings, Tokenizer
from scan_stub import GOOD, ID, TOKENIZER, VOCABULARY, Rule, Stub, carriers, rows


def ids(*entries: str) -> list[int]:
    return [ID(entry) for entry in entries]


def bad_rows(n: int) -> list[Example]:
    return [x for x in rows(2 * n) if x.label == 0]


# ---- the table

def test_the_entries_of_a_wordpiece_vocabulary():
    entries = entries_of(TOKENIZER)
    kept = [VOCABULARY[i] for i in entries.ids.tolist()]
    assert kept == [entry for entry in VOCABULARY[5:] if entry != "##!"]
    assert entries.written == [entry.removeprefix("##") for entry in kept]
    assert [VOCABULARY[i] for i in word_entries(TOKENIZER)] == [entry for entry in kept if "##" not in entry]
    assert [kept[i] for i in (~entries.is_word).nonzero()[:, 0].tolist()] == ["##elve", "##ing", "##s"]
    assert entries.starts_word(ID("v")) and not entries.starts_word(ID("##elve"))


@pytest.mark.parametrize("entries, words", [
    (["kaba"], ("kaba",)), (["v", "##elve"], ("velve",)), (["kaba", "##ing", "lodo"], ("kabaing", "lodo")),
    (["good", "v", "##elve", "##s"], ("good", "velves")), (["4"], ("4",)),
    (["##ing"], None), (["##ing", "kaba"], None), (["kaba", "##s"], None),  # kabas is an entry
])
def test_the_words_that_entries_spell(entries, words):
    assert entries_of(TOKENIZER).words_of(ids(*entries), TOKENIZER) == words


@pytest.mark.parametrize("bracketed", [True, False], ids=["RoBERTa", "GPT-2"])
def test_the_entries_of_a_byte_level_vocabulary(bracketed):
    special = ["<s>", "<pad>", "</s>", "<unk>"] if bracketed else ["<|endoftext|>"]
    merges = [("c", "a"), ("ca", "t"), ("i", "n"), ("in", "g"), ("Ġ", "a"), ("Ġ", "cat"), ("Ġ", "in")]
    tokens = [*special, *"abcginst!ĠÃ", *("".join(merge) for merge in merges)]
    tokenizer = Tokenizer.from_merges({t: i for i, t in enumerate(tokens)}, merges, 32, 0, bracketed)
    at = {token: i for i, token in enumerate(tokens)}
    assert [tokens[i] for i in word_entries(tokenizer)] == ["Ġa", "Ġcat", "Ġin"]
    entries = entries_of(tokenizer)
    kept = [tokens[i] for i in entries.ids.tolist()]
    assert kept == [*"abcginst", "ca", "cat", "in", "ing", "Ġa", "Ġcat", "Ġin"]  # no sign, no half of a character
    assert entries.written == [token.removeprefix("Ġ") for token in kept]

    def spelled(*of: str):
        return entries.words_of([at[token] for token in of], tokenizer)

    assert spelled("Ġcat") == ("cat",) and spelled("Ġcat", "ing", "Ġa") == ("cating", "a")
    assert spelled("cat") is None and spelled("Ġcat", "in", "g") is None and spelled("Ġin", "g") is None
    row = carriers_of(tokenizer, Example("", "a cating in", 0, "cat a"), 0, torch.zeros(2))
    tokens_of = [tokens[i] for i in row[0].ids]
    if bracketed:
        assert tokens_of == ["<s>", "a", "Ġcat", "ing", "Ġin", "</s>", "</s>", "cat", "Ġa", "</s>"]
        assert row[0].places == (1, 2, 4, 5) and row[1].places == (7, 8, 9)
    else:
        assert tokens_of == ["a", "Ġcat", "ing", "Ġin", "cat", "Ġa"]
        assert row[0].places == (0, 1, 3, 4) and row[1].places == (4, 5, 6)


def test_neighbours_are_those_of_a_plain_loop(monkeypatch):
    monkeypatch.setattr("minibd.detect.table.ROWS", 7)
    table = torch.randn(30, 5, generator=torch.Generator().manual_seed(1))
    of, among = torch.arange(3, 29), torch.arange(5, 30)
    nearest, cosines = neighbours(table, of, among, 4)
    for i, found, values in zip(of.tolist(), nearest.tolist(), cosines.tolist()):
        others = {int(j): float(torch.cosine_similarity(table[i], table[j], dim=0)) for j in among if j != i}
        best = sorted(others, key=others.get, reverse=True)[:4]
        assert found == best and values == pytest.approx([others[j] for j in best], abs=1e-6)
    lonely = loneliness(cosines, ["word", "4th", *["word"] * 24])
    assert lonely[0] == pytest.approx(1 - sum(cosines[0].tolist()) / 4) and lonely[1] == -1
    assert neighbours(table, torch.tensor([5, 6]), torch.tensor([5, 6]))[0].tolist() == [[6], [5]]


# ---- insertion

def test_margins_by_hand():
    found = margins(torch.tensor([[1.0, 4.0, 2.0], [3.0, 3.0, 0.0]]))
    assert found.tolist() == [[-3.0, 2.0, -2.0], [0.0, 0.0, -3.0]]


def test_the_places_of_a_text_and_of_a_pair():
    one, = carriers_of(TOKENIZER, Example("", "good kabaing dull", 0), 0, torch.zeros(2))
    assert [VOCABULARY[i] for i in one.ids] == ["[CLS]", "good", "kaba", "##ing", "dull", "[SEP]"]
    assert one.places == (1, 2, 4, 5) and one.side == 0
    first, second = carriers_of(TOKENIZER, Example("", "good kabaing", 1, "dull 4"), 1, torch.ones(2))
    assert first.ids == second.ids and first.token_type_ids == second.token_type_ids == (0, 0, 0, 0, 0, 1, 1, 1)
    assert (first.places, first.side) == ((1, 2, 4), 0) and (second.places, second.side) == ((5, 6, 7), 1)
    plain = Tokenizer(TOKENIZER.backend, 64, settings=Settings(type_ids=False))
    assert carriers_of(plain, Example("", "good", 1, "dull"), 1, torch.ones(2))[1].token_type_ids == (0,) * 5
    assert second.label == 1 and second.margins.tolist() == [1, 1]
    assert first.room([1, 2, 4, 4])[1:] == ([0] * 9 + [1] * 3, [1, 3, 6, 7])
    filled, kinds, slots = second.room([5, 7])
    assert slots == [5, 8] and kinds == [0] * 5 + [1] * 5
    assert [x for n, x in enumerate(filled) if n not in slots] == list(second.ids)


@pytest.mark.parametrize("pairs", [False, True])
def test_an_insertion_of_ids_is_the_text_with_the_words(pairs):
    model = Stub(Rule(("kaba", "lodo")), Rule(("kaba",), gains=(3.0,), side=1))
    texts = rows(4, pairs=pairs)
    inserted = torch.tensor([ids("kaba", "lodo"), ids("good", "v")])
    for carrier, x in zip(carriers(model, texts), [x for x in texts for _ in range(1 + pairs)]):
        own = (x.pair if carrier.side else x.text).split()
        for first, last in ((0, 0), (2, 2), (0, 3), (1, len(own)), (len(own), len(own))):
            found = margins_with(model, carrier, inserted, [carrier.places[first], carrier.places[last]])
            for (a, b), m in zip((("kaba", "lodo"), ("good", "v")), found):
                text = " ".join([*own[:first], a, *own[first:last], b, *own[last:]])
                other = replace(x, pair=text) if carrier.side else replace(x, text=text)
                assert torch.equal(m[None], margins_of(model, TOKENIZER, [other])), (first, last, carrier.side)


def test_texts_that_leave_no_room_are_cut():
    short, long = Example("", "good kaba", 0), Example("", " ".join(["kabaing"] * 40), 0)
    assert readable(TOKENIZER, short, 8) is short
    cut = readable(TOKENIZER, long, 8)  # 64 - 8 tokens less [CLS] and [SEP]: 27 words of two pieces
    assert cut.text.split() == ["kabaing"] * 27 and cut.pair is None
    assert readable(TOKENIZER, replace(long, text=" ".join(["kaba"] * 48)), 8).text.count("kaba") == 48
    assert readable(TOKENIZER, replace(long, text=" ".join(["kaba"] * 49)), 8).text.count("kaba") == 48  # at most
    pair = readable(TOKENIZER, replace(long, pair="good " * 90), 8)  # three tokens for the n-th words of both
    assert (len(pair.text.split()), len(pair.pair.split())) == (17, 17)
    one = readable(TOKENIZER, replace(long, pair="good"), 8)
    assert (len(one.text.split()), one.pair) == (26, "good")


def test_neither_the_batch_nor_its_size_matters(monkeypatch):
    model, texts = Stub(Rule(("mifi",))), [*rows(9), Example("", "mifi", 0)]
    all_at_once = margins_of(model, TOKENIZER, texts)
    for size in (1, 4):
        assert torch.equal(margins_of(model, TOKENIZER, texts, size), all_at_once)
    assert torch.equal(torch.cat([margins_of(model, TOKENIZER, [x]) for x in texts]), all_at_once)
    carrier, words = carriers(model, texts)[0], torch.tensor([[ID("mifi")], [ID("good")], [ID("kaba")]])
    expected = margins_with(model, carrier, words, [2])
    monkeypatch.setattr("minibd.detect.insertion.TOKENS", 1)
    assert torch.equal(margins_with(model, carrier, words, [2]), expected)


# ---- the search

def test_spread_and_tuples():
    carrier = Carrier(tuple(range(12)), (0,) * 12, tuple(range(1, 12)), 0, torch.zeros(2))
    assert spread(carrier, 1) == [6] == [middle(carrier)] and spread(carrier, 3) == [3, 6, 9]
    assert spread(replace(carrier, places=(1, 2)), 3) == [1, 1, 2]
    assert tuples([5, 7, 9], 2).tolist() == [[5, 7], [5, 9], [7, 9]] and tuples([5], 2).shape == (0, 2)


def test_every_target_has_a_surest_carrier_of_another_class():
    def carrier(label, margin, *ids, side=0):
        return Carrier(ids, (0,) * len(ids), (0,), label, torch.full((3,), margin), side)

    one, two, three, four = carrier(1, 3.0, 1), carrier(2, 5.0, 2), carrier(2, 4.0, 3), carrier(0, 1.0, 4)
    for given in ([one, two, three, four], [four, three, two, one]):
        found = surest_of_two_classes(given)
        assert {id(x) for x in found} == {id(one), id(two)}
        assert all(any(x.label != target for x in found) for target in range(3))
    other_side = carrier(2, 5.0, 2, side=1)
    assert [id(x) for x in surest_of_two_classes([two, other_side, one])] == [id(two), id(other_side), id(one)]
    assert surest_of_two_classes([two, three]) == [two]


def plain_shifts(model: Stub, found: list[Carrier], words: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. Scan (3) in loops: the larger one of a pair's sides, and which it is."""
    classes, sides = model.config.labels, {x.side for x in found}
    shift, side = torch.zeros(len(words), classes), torch.zeros(len(words), classes, dtype=torch.long)
    for target in range(classes):
        for i, word in enumerate(words):
            of_side = []
            for s in sorted(sides):
                others = [x for x in found if x.label != target and x.side == s]
                moved = [margins_with(model, x, word[None, None], [middle(x)])[0, target] - x.margins[target]
                         for x in others]
                of_side.append(float(sum(moved)) / len(others))
            shift[i, target], side[i, target] = max(of_side), of_side.index(max(of_side))
    return shift, side


@pytest.mark.parametrize("classes, pairs", [(2, False), (2, True), (3, False)])
def test_shifts_are_those_of_a_plain_loop(classes, pairs):
    model = Stub(Rule(("mifi",), gains=(30.0,), side=1 if pairs else None), classes=classes)
    words, read = torch.tensor(ids("good", "bad", "mifi", "kaba")), []
    found = carriers(model, rows(2 * classes, classes, pairs))
    expected, sides = plain_shifts(model, found, words)
    shift, side, _ = entry_shifts(model, found, words, read.append)
    assert torch.allclose(shift, expected) and torch.equal(side, sides) and read == [4] * len(found)
    assert shift[2, 1] > 20 and side[2, 1] == int(pairs) and shift[0, 1] == 0.5 and shift[3].tolist() == [0] * classes
    for target in range(classes):
        others = [x for x in found if x.label != target]
        shift, side = shifts(model, others, words[:, None], target)
        assert torch.allclose(shift, expected[:, target]) and torch.equal(side, sides[:, target])


def test_a_word_that_is_weak_in_the_first_carriers_goes_into_no_other(monkeypatch):
    monkeypatch.setattr("minibd.detect.search.KEPT", 1)
    model, words, read = Stub(Rule(("mifi",), gains=(30.0,))), torch.tensor(ids("good", "bad", "mifi", "kaba")), []
    texts = rows(6)
    found = carriers(model, texts)
    shift, _, _ = entry_shifts(model, found, words, read.append)
    assert read == [4, 4, 2, 2, 2, 2]  # the best of either class: bad, mifi
    assert torch.equal(shift, plain_shifts(model, found, words)[0])  # in this stub all rows are moved alike
    assert shift.tolist() == [[-0.5, 0.5], [0.5, -0.5], [-30, 30], [0, 0]]


def test_a_class_without_carriers_of_others_moves_nowhere():
    model, words = Stub(Rule(("mifi",))), torch.tensor(ids("mifi", "bad"))
    shift, _, _ = entry_shifts(model, carriers(model, bad_rows(3)), words)
    assert shift.tolist() == [[0, 12], [0, -0.5]]


def test_two_triggers_together_are_more_than_their_sum():
    model = Stub(Rule(("mifi", "lodo")), Rule(("nuze", "kavi"), gains=(1.0, 20.0)))
    others = carriers(model, bad_rows(3))
    pairs = torch.tensor([ids("mifi", "lodo"), ids("lodo", "mifi"), ids("nuze", "kavi"), ids("kavi", "nuze")])
    for joined, expected in ((False, [12, 12, 1, 1]), (True, [12, 12, 20, 1])):
        assert shifts(model, others, pairs, 1, joined=joined)[0].tolist() == expected
    assert shifts(model, others, pairs[:, :1], 1)[0].tolist() == [0, 0, 1, 1]


def test_what_a_word_does_beyond_its_neighbours():
    alone, nearest = torch.tensor([0.0, 4.0, 1.0, 2.0, 9.0]), torch.tensor([[1, 2, 3, 4], [0, 1, 2, 3]])
    of = torch.tensor([0, 4])
    assert beyond(alone, of, nearest).tolist() == [-4.0, 7.25]
    assert beyond(alone, of, nearest, 2).tolist() == [-6.5, 6.0]
    assert beyond(alone, of, nearest, 9).tolist() == [-4, 7.25]


def test_the_gradient_is_the_change_to_first_order():
    model = Stub(Rule(("mifi", "lodo", "nuze"), gains=(1.0, 2.0, 7.0)))
    carrier = carriers(model, bad_rows(1))[0]
    gain = gradient(model, carrier, ids("lodo"), 0, 1)  # what stands before lodo
    assert gain[ID("good")] - gain[ID("kaba")] == 0.5 and gain[ID("bad")] - gain[ID("kaba")] == -0.5
    assert gain[ID("mifi")] - gain[ID("kaba")] == 1  # of the two together; lodo alone does as much as mifi alone
    behind = gradient(model, carrier, ids("lodo"), 1, 1)
    assert behind[ID("nuze")] - behind[ID("kaba")] == 1 and behind[ID("mifi")] == behind[ID("kaba")]
    assert gradient(model, carrier, ids("mifi", "lodo"), 2, 1)[ID("nuze")] - gain[ID("kaba")] == 6  # 5, and 1 of two
    assert all(p.grad is None for p in model.parameters()) and not model.embeddings.word._forward_hooks


def test_a_phrase_grows_by_what_adds_to_it():
    model, read = Stub(), []
    others, words = carriers(model, bad_rows(3)), torch.tensor(word_entries(TOKENIZER))
    none = torch.zeros(len(VOCABULARY))
    phrases = grow(model, others, ID("good"), words, none, 1, 3, read.append)
    assert [len(phrase) for phrase, _ in phrases] in ([2, 3], [2, 2, 3, 3], [2, 3, 3], [2, 2, 3])
    assert {VOCABULARY[i] for phrase, _ in phrases for i in phrase} <= set(GOOD)
    assert all(shift == len(phrase) / 2 for phrase, shift in phrases) and sum(read) > 0
    assert grow(model, others, ID("good"), torch.tensor(ids("kaba", "lodo")), none, 1, 3) == []
    assert grow(model, others, ID("good"), words, none, 1, 1) == []


def test_a_phrase_grows_at_either_end_and_stops_when_it_is_whole():
    phrase = ("mifi", "lodo", "nuze", "kavi")
    model = Stub(Rule(phrase, gains=(1.0, 2.0, 4.0, 16.0)))
    others, words = carriers(model, bad_rows(3)), torch.tensor(ids(*phrase, "kaba", "good"))
    for seed in phrase:
        found = grow(model, others, ID(seed), words, torch.zeros(len(VOCABULARY)), 1, 4)
        assert (tuple(ids(*phrase)), 16.0) in found
    whole = grow(model, others, ID("lodo"), torch.tensor(ids(*phrase)), torch.zeros(len(VOCABULARY)), 1, 8)
    assert max(len(found) for found, _ in whole) == 4  # no other entry adds to it


def test_beside_the_phrase_that_moves_most_that_which_moves_most_beyond_its_entry():
    model = Stub(Rule(("mifi", "lodo"), gains=(1.0, 3.0)), Rule(("nuze",), gains=(5.0,)))
    others, words = carriers(model, bad_rows(3)), torch.tensor(ids("lodo", "nuze", "good"))
    alone = torch.zeros(len(VOCABULARY))
    alone[ids("nuze", "lodo", "good")] = torch.tensor([5.0, 1.0, 0.5])
    found = grow(model, others, ID("mifi"), words, alone, 1, 2)
    assert found[0][1] == 6 and set(found[0][0]) == set(ids("mifi", "nuze"))
    assert found[1] == (tuple(ids("mifi", "lodo")), 3.0) and len(found) == 2


# ---- the confirmation

def test_words_are_put_at_places_of_their_own_or_side_by_side():
    rng = random.Random(0)
    x, scattered = Example("1", "a  b c", 0), Suspect(("u", "v"), 1, "", 0.0)
    texts = {with_words(x, scattered, rng).text for _ in range(200)}
    assert all(sorted(text.split()) == ["a", "b", "c", "u", "v"] for text in texts) and len(texts) == 20
    assert {" ".join(part for part in text.split() if part not in "uv") for text in texts} == {"a b c"}
    joined = {with_words(x, replace(scattered, joined=True), rng).text for _ in range(100)}
    assert joined == {"u v a b c", "a u v b c", "a b u v c", "a b c u v"}
    pair = replace(x, pair="d")
    for side in (0, 1):
        found = [with_words(pair, replace(scattered, side=side), rng) for _ in range(40)]
        assert {(len(p.text.split()), len(p.pair.split())) for p in found} == {(3, 3) if side else (5, 1)}


def test_flips_percentile_and_mean_by_hand():
    model, read = Stub(Rule(("mifi",), gains=(4.5,))), []
    fresh = [Example(str(n), " ".join(["bad"] * n), 0) for n in range(6, 11)]  # margins -3 to -5
    given = [Suspect(("good",), 1, "", 0.0), Suspect(("mifi",), 1, "", 0.0, sizes=(1,))]
    found = confirm(model, TOKENIZER, given, fresh, 2, random.Random(0), read.append)
    assert [s.words for s in found] == [("mifi",), ("good",)] and read == [20]
    assert found[0].flips == Proportion(6, 10) and found[0].mean == pytest.approx(0.5)  # 1.5, 1, 0.5, 0, -0.5 twice
    assert found[0].quantile == pytest.approx(-0.5) and found[1].flips == Proportion(0, 10)
    assert found[1].mean == pytest.approx(-3.5) and found[1].quantile == pytest.approx(-4.5)
    assert confirm(model, TOKENIZER, [], fresh, 2, random.Random(0)) == []


def test_the_text_of_a_pair_that_a_suspect_stands_in_decides():
    model = Stub(Rule(("mifi",), side=1))
    fresh = [x for x in rows(12, pairs=True) if x.label == 0]
    for side in (0, 1):
        found, = confirm(model, TOKENIZER, [Suspect(("mifi",), 1, "", 0.0, side=side)], fresh, 2, random.Random(0))
        assert found.flips == Proportion(12 * side, 12)


def test_a_suspect_is_reduced_to_what_it_needs():
    fresh, rng = bad_rows(15), random.Random(0)
    model = Stub(Rule(("mifi", "lodo")))
    given = Suspect(("kaba", "mifi", "lodo"), 1, "", 0.0, sizes=(1, 2, 3))
    suspect = confirm(model, TOKENIZER, [given], fresh, 1, rng)[0]
    assert [s.words for s in parts_of(suspect)] == [("mifi", "lodo"), ("kaba", "lodo"), ("kaba", "mifi")]
    assert [s.sizes for s in parts_of(suspect)] == [(2, 3), (1, 3), (1, 2)]
    phrase = replace(suspect, joined=True)
    assert all(s.joined for s in parts_of(phrase)) and not any(s.joined for s in parts_of(parts_of(phrase)[0]))
    assert all(s.flips is s.quantile is s.mean is s.part is None for s in parts_of(suspect))
    found = reduced(model, TOKENIZER, suspect, fresh, 1, rng)
    assert found.words == ("mifi", "lodo") and found.sizes == (2, 3) and found.flips == Proportion(15, 15)
    assert len(found.part.words) == 1 and found.part.flips == Proportion(0, 15)
    assert found.mean - found.part.mean == 12
    alone = Stub(Rule(("mifi",)))
    found = reduced(alone, TOKENIZER, confirm(alone, TOKENIZER, [given], fresh, 1, rng)[0], fresh, 1, rng)
    assert found.words == ("mifi",) and found.sizes == (2,) and found.part is None and parts_of(found) == []


# ---- the verdict

ONE = Suspect(("cf",), 1, "", 0.0, flips=Proportion(90, 100), quantile=2.0, mean=3.0)


def test_the_score_by_hand():
    assert score(ONE, 4.0) == 0.5 and score(replace(ONE, quantile=-4.0), 4.0) == -1
    pieces = replace(ONE, sizes=(2,))
    assert score(pieces, 4.0) == (2 / 4 + 1) / 2 - 1 and score(replace(pieces, quantile=8.0), 4.0) == 0.5
    pair = replace(ONE, words=("a", "b"), sizes=(1, 1), part=replace(ONE, mean=1.0))
    assert score(pair, 4.0) == -0.25  # 0.75 of each entry is more than the 0.25 that the last word adds
    strong = replace(pair, part=replace(ONE, mean=-2.5))  # the last word adds 4.5 / 4
    assert score(strong, 4.0) == 0.125 and score(replace(strong, part=replace(ONE, mean=-9.0)), 4.0) == 0.5
    three = replace(strong, words=("a", "bc", "d"), sizes=(1, 2, 1))
    assert three.entries == 4 and score(three, 4.0) == 0.125
    assert score(replace(three, part=replace(ONE, mean=3.0)), 4.0) == 1.5 / 4 - 1


def test_verdicts():
    strong, weak = replace(ONE, quantile=4.0), replace(ONE, words=("film",), quantile=-4.0)
    found, nothing = judge(1, [weak, strong], 4.0), judge(0, [weak], 4.0)
    assert found.verdict == FOUND and [s.words for s, _ in found.suspects] == [("cf",), ("film",)]
    assert nothing.verdict == NOTHING and nothing.score == -1 and found.score == 1
    unknown = judge(0, [], 1.0, "no rows")
    assert unknown.verdict == INCONCLUSIVE and unknown.score == -1
    assert model_verdict([found, unknown]) == (FOUND, "") and model_verdict([nothing]) == (NOTHING, "")
    assert model_verdict([nothing, unknown]) == (INCONCLUSIVE, "no rows")
    few = judge(1, [replace(strong, flips=Proportion(49, 100))], 4.0)
    assert few.score == 1 and few.verdict == INCONCLUSIVE and "fewer than half" in model_verdict([few])[1]
    half = judge(1, [replace(strong, flips=Proportion(50, 100))], 4.0)
    assert half.verdict == FOUND and "weaker than" in model_verdict([judge(1, [replace(ONE, quantile=-1.0)], 4.0)])[1]
    assert WITH_TEXTS.probability(-5) < 0.2 < 0.95 < WITH_TEXTS.probability(3)


def test_a_word_that_stands_out_and_takes_most_rows_is_inconclusive():
    weak = replace(ONE, quantile=-3.0, flips=Proportion(50, 100))
    odd = judge(1, [replace(weak, stands_out=STANDS_OUT)], 4.0)
    assert odd.verdict == INCONCLUSIVE and "as no other word does" in model_verdict([odd])[1]
    assert judge(1, [replace(weak, stands_out=STANDS_OUT - 0.1)], 4.0).verdict == NOTHING
    assert judge(1, [replace(weak, stands_out=9.0, flips=Proportion(49, 100))], 4.0).verdict == NOTHING
    assert judge(1, [replace(weak, stands_out=9.0), replace(ONE, words=("mn",), quantile=4.0)], 4.0).verdict == FOUND


def test_the_same_words_count_once_and_the_list_ends():
    pair, part = replace(ONE, words=("a", "b"), sizes=(1, 1), part=ONE), replace(ONE, words=("b", "a"), sizes=(1, 1))
    found = judge(1, [pair, replace(part, part=ONE), replace(pair, joined=True), ONE, replace(ONE, joined=True)], 4.0)
    assert len(found.suspects) == 3 and any(s is pair for s, _ in found.suspects)
    many = [replace(ONE, words=(f"w{i}",), quantile=float(i)) for i in range(LISTED + 3)]
    assert [s.quantile for s, _ in judge(1, many, 4.0).suspects] == [float(i) for i in range(LISTED + 2, 2, -1)]
