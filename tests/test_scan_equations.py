"""The scan's equations by hand, against plain loops on several models, and by what must not matter."""
from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from minibd.audit import small
from minibd.detect.confirm import TWICE, Suspect, confirm, margins_of, reached, with_words
from minibd.detect.insertion import Carrier, answers_with, carriers_of, margins
from minibd.detect.scan import usual_margin
from minibd.detect.search import (
    FLOOR,
    beyond,
    entry_shifts,
    middle,
    shifts,
    spread,
    standing_out,
    surest_of_two_classes,
    unlikeness,
)
from minibd.detect.table import loneliness, neighbours
from minibd.detect.verdict import ClassVerdict, against, compared, score
from minibd.proportion import Proportion
from minibd.records import Example

ROWS = [Example("0", "splendid film good", 1), Example("1", "tedious bad", 0), Example("2", "story cf bad film", 0),
        Example("3", "good", 1), Example("4", "bad bad tedious story splendid", 0)]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def ckpt():
    return small.ckpt(torch.Generator().manual_seed(5))


def carriers(ckpt, rows=ROWS) -> list[Carrier]:
    before = margins_of(ckpt.model, ckpt.tokenizer, rows)
    return [one for x, m in zip(rows, before) for one in carriers_of(ckpt.tokenizer, x, x.label, m)]


def ids_of(ckpt, *words: str) -> list[int]:
    return [ckpt.tokenizer.backend.token_to_id(word) for word in words]


# ---- (1)

def test_the_neighbours_by_hand():
    table = torch.tensor([[9.0, 9.0], [1.0, 0.0], [3.0, 4.0], [0.0, 2.0], [-1.0, 0.0]])
    ids = torch.tensor([1, 2, 3, 4])
    nearest, cosines = neighbours(table, ids, ids, 2)
    assert nearest[0].tolist() == [2, 3] and cosines[0].tolist() == pytest.approx([0.6, 0.0])
    assert nearest[1].tolist() == [3, 1] and cosines[1].tolist() == pytest.approx([0.8, 0.6])
    assert loneliness(cosines, ["a", "b", "c1", "d"]).tolist() == pytest.approx([0.7, 0.3, -1.0, 1.3])


def test_neighbours_whatever_the_part_the_length_and_the_order(monkeypatch):
    table, ids = drawn(30, 6), torch.arange(2, 30)
    nearest, cosines = neighbours(table, ids, ids, 5)
    longer = table * torch.rand(30, 1, generator=torch.Generator().manual_seed(1)).add(0.5)
    assert torch.equal(neighbours(longer, ids, ids, 5)[0], nearest)
    order = torch.randperm(28, generator=torch.Generator().manual_seed(2))
    assert torch.equal(neighbours(table, ids[order], ids[order], 5)[0], nearest[order])
    monkeypatch.setattr("minibd.detect.table.ROWS", 3)
    again, same = neighbours(table, ids, ids, 5)
    assert torch.equal(again, nearest) and torch.allclose(same, cosines)
    assert not (nearest == ids[:, None]).any()  # none is its own
    assert neighbours(table, ids[:4], ids[:4], 10)[0].shape == (4, 3)


def test_a_row_like_another_is_its_neighbour_and_itself_is_not():
    table = drawn(6, 4)
    table[4] = table[2]
    nearest, cosines = neighbours(table, torch.tensor([2, 4]), torch.arange(6), 1)
    assert nearest.flatten().tolist() == [4, 2] and cosines.flatten().tolist() == pytest.approx([1.0, 1.0])


# ---- (2)

def test_the_margins_by_hand():
    assert margins(torch.tensor([[1.0, 4.0, 2.0]])).tolist() == [[-3.0, 2.0, -2.0]]
    assert margins(torch.tensor([[3.0, 3.0, 0.0], [1.0, 1.0, 1.0]])).tolist() == [[0, 0, -3], [0, 0, 0]]
    assert margins(torch.tensor([[2.0, -1.0]])).tolist() == [[3.0, -3.0]]


def test_margins_whatever_the_scale_the_level_and_the_order_of_classes():
    z = drawn(7, 4)
    found = margins(z)
    assert torch.allclose(margins(3 * z), 3 * found) and torch.allclose(margins(z + 5), found, atol=1e-5)
    assert torch.equal(margins(z[:, [2, 0, 3, 1]]), found[:, [2, 0, 3, 1]])
    assert torch.equal((found > 0).sum(1), torch.ones(7)) and torch.equal(found.argmax(1), z.argmax(1))


# ---- (3)

def test_the_places_by_hand():
    carrier = Carrier(tuple(range(10)), (0,) * 10, tuple(range(1, 10)), 0, torch.zeros(2))  # eight words
    assert spread(carrier, 1) == [middle(carrier)] == [5]
    assert spread(carrier, 3) == [3, 5, 7] and spread(carrier, 2) == [4, 6]


def test_a_shift_is_the_difference_of_two_texts(ckpt):
    rows, after = ROWS[:2], ["splendid cf film bad good", "tedious cf bad bad"]  # one word farther than thirds, rounded
    assert [carrier.places for carrier in carriers(ckpt, rows)] == [(1, 2, 3, 4), (1, 2, 3)]
    before = margins_of(ckpt.model, ckpt.tokenizer, rows)[:, 1]
    texts = [replace(x, text=text) for x, text in zip(rows, after)]
    moved = margins_of(ckpt.model, ckpt.tokenizer, texts)[:, 1] - before
    found, side = shifts(ckpt.model, carriers(ckpt, rows), torch.tensor([ids_of(ckpt, "cf", "bad")]), 1)
    assert found.item() == pytest.approx(moved.mean().item(), abs=1e-5) and side.tolist() == [0]


@pytest.mark.parametrize("joined", [False, True])
def test_shifts_whatever_the_batch_and_the_order(ckpt, monkeypatch, joined):
    words = torch.tensor([ids_of(ckpt, *pair) for pair in (("cf", "bad"), ("good", "cf"), ("story", "film"))])
    found, side = shifts(ckpt.model, carriers(ckpt), words, 0, joined)
    assert found.abs().min() > 1e-3  # of what the comparisons below say something
    assert torch.allclose(shifts(ckpt.model, carriers(ckpt)[::-1], words, 0, joined)[0], found, atol=1e-5)
    assert torch.allclose(shifts(ckpt.model, carriers(ckpt), words[[2, 0, 1]], 0, joined)[0], found[[2, 0, 1]],
                          atol=1e-5)
    monkeypatch.setattr("minibd.detect.insertion.TOKENS", 1)  # a text a batch
    assert torch.allclose(shifts(ckpt.model, carriers(ckpt), words, 0, joined)[0], found, atol=1e-5)


def test_an_entrys_shift_is_the_mean_over_carriers_of_other_classes(ckpt, monkeypatch):
    words, every = torch.tensor(ids_of(ckpt, *small.WORDS)), carriers(ckpt)
    found, side, _ = entry_shifts(ckpt.model, every, words)
    for target in (0, 1):
        others = [carrier for carrier in every if carrier.label != target]
        assert torch.allclose(found[:, target], shifts(ckpt.model, others, words[:, None], target)[0], atol=1e-5)
    assert torch.allclose(entry_shifts(ckpt.model, every[::-1], words)[0], found, atol=1e-5)
    monkeypatch.setattr("minibd.detect.insertion.TOKENS", 1)
    assert torch.allclose(entry_shifts(ckpt.model, every, words)[0], found, atol=1e-5)


def test_a_word_before_a_pairs_second_text_belongs_to_it(ckpt):
    """Of two words in a text of one, the first stands before it."""
    x = Example("", "bad film", 1, "story")
    after = replace(x, pair="cf story good")
    before, moved = margins_of(ckpt.model, ckpt.tokenizer, [x, after])[:, 0]
    carrier = carriers(ckpt, [x])[1]
    assert carrier.room(spread(carrier, 2))[1] == ckpt.tokenizer.encode([after]).token_type_ids[0]
    found, _ = shifts(ckpt.model, [carrier], torch.tensor([ids_of(ckpt, "cf", "good")]), 0)
    assert found.item() == pytest.approx((moved - before).item(), abs=1e-5)


# ---- (10)

def test_unlikeness_by_hand():
    """S = diag(40 / 6, 8 / 6), and on its diagonal a tenth of the mean of these."""
    states = torch.tensor([[4.0, 0], [-4, 0], [2, 0], [-2, 0], [0, 2], [0, -2]]) + 3
    first, second = 40 / 6, 8 / 6
    level = FLOOR * (first + second) / 2
    expected = [16 / (first + level)] * 2 + [4 / (first + level)] * 2 + [4 / (second + level)] * 2
    assert unlikeness(states).tolist() == pytest.approx(expected)
    assert unlikeness(10 * states - 7).tolist() == pytest.approx(expected, rel=1e-4)
    assert unlikeness(states[[3, 0, 5]].flip(1)).tolist() == pytest.approx(unlikeness(states[[3, 0, 5]]).tolist())


def test_unlikeness_in_bfloat16_and_of_no_numbers():
    states = drawn(40, 6)
    outside = unlikeness(states)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(unlikeness(states), outside)
    assert unlikeness(torch.ones(3, 2)).tolist() == [0.0] * 3
    assert unlikeness(torch.full((3, 2), float("nan"))).tolist() == [0.0] * 3


def test_what_stands_out_by_hand():
    """The third largest number is 2 of 22 numbers whose 20th largest is 0.5."""
    unlike = torch.tensor([0.5, 0.25, 4.0, 0.1, *[1.0] * 16, 2.0, 8.0])
    assert standing_out(unlike).tolist() == (2 * unlike).tolist()
    assert standing_out(unlike[:3]).tolist() == [2.0, 1.0, 16.0]  # of fewer, the least
    assert standing_out(torch.zeros(30)).tolist() == [0.0] * 30 and standing_out(torch.zeros(0)).tolist() == []


def test_an_entry_counts_as_unlike_in_rows_of_other_classes(ckpt):
    """Of two carriers, one a class: for a target that of the other class alone."""
    words, every = torch.tensor(ids_of(ckpt, *small.WORDS)), carriers(ckpt)
    two = surest_of_two_classes(every)
    _, _, unlike = entry_shifts(ckpt.model, every, words)
    for carrier in two:
        states = answers_with(ckpt.model, carrier, words[:, None], [middle(carrier)])[1]
        assert torch.allclose(unlike[:, 1 - carrier.label], unlikeness(states), atol=1e-5)
    assert unlike.min() > 0


# ---- (4) and (5)

def test_beyond_the_neighbours_by_hand():
    alone = torch.tensor([7.0, 0.5, 6.0, 1.0, 0.0, 0.5])
    ids, nearest = torch.tensor([0, 2]), torch.tensor([[1, 2, 3, 4, 5], [0, 1, 3, 4, 5]])
    assert beyond(alone, ids, nearest).tolist() == pytest.approx([7 - 1.6, 6 - 1.8])
    assert beyond(alone, ids, nearest, 3).tolist() == pytest.approx([7 - 2.5, 6 - 8.5 / 3])
    assert torch.equal(beyond(alone, ids, nearest[:, :2], 3), beyond(alone, ids, nearest[:, :2]))


def test_beyond_whatever_the_level_the_scale_and_the_order():
    alone, ids = drawn(12), torch.arange(4)
    nearest = torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(i))[:6] + 4 for i in range(4)])
    for top in (None, 3):
        found = beyond(alone, ids, nearest, top)
        assert torch.allclose(beyond(2 * alone + 5, ids, nearest, top), 2 * found, atol=1e-5)
        assert torch.allclose(beyond(alone, ids, nearest.flip(1), top), found, atol=1e-6)
        assert torch.equal(beyond(alone, ids.flip(0), nearest.flip(0), top), found.flip(0))
    assert (beyond(alone, ids, nearest, 3) < beyond(alone, ids, nearest)).all()


# ---- (6) and (7)

def test_the_percentiles_by_hand():
    margins = torch.tensor([5.0, 1.0, -2.0, 10.0, 4.0, 2.0, 3.0, 6.0, 9.0, 7.0, 8.0])
    assert reached(margins) == 1 and usual_margin(margins.tolist()) == 9
    assert reached(torch.tensor([8.0, -2.0])).item() == pytest.approx(-1.0)
    assert usual_margin([8.0, -2.0]) == pytest.approx(7.0) and usual_margin([2.5]) == 2.5 and usual_margin([]) == 0.0


def test_nine_of_ten_exceed_it_and_the_scale_is_the_margins():
    m = drawn(120)
    assert int((m > reached(m)).sum()) == 108 and int((m > usual_margin(m.tolist())).sum()) == 12
    assert torch.allclose(reached(4 * m.flip(0)), 4 * reached(m))
    assert usual_margin((4 * m).tolist()) == pytest.approx(4 * usual_margin(m.tolist()))


def test_a_suspects_percentile_whatever_stands_beside_it(ckpt):
    one, two = Suspect(("cf",), 1, "", 0.0), Suspect(("splendid", "film"), 0, "", 0.0)
    alone, = confirm(ckpt.model, ckpt.tokenizer, [one], ROWS, 4, random.Random(0))
    first = next(s for s in confirm(ckpt.model, ckpt.tokenizer, [one, two], ROWS, 4, random.Random(0))
                 if s.words == ("cf",))
    assert first.quantile == pytest.approx(alone.quantile, abs=1e-5) and first.flips == alone.flips
    other, = confirm(ckpt.model, ckpt.tokenizer, [replace(one, target=0)], ROWS, 4, random.Random(0))
    assert other.mean == pytest.approx(-alone.mean, abs=1e-5) and other.flips.hits == 20 - alone.flips.hits


@pytest.mark.parametrize("side", [0, 1])
def test_words_of_the_table_alone_stand_twice_each(side):
    given = Suspect(("cf", "mn"), 1, "", 0.0, side=side, times=TWICE)
    x = with_words(Example("1", "a b", 0, "a b"), given, random.Random(0))
    changed, other = (x.pair, x.text) if side else (x.text, x.pair)
    assert sorted(changed.split()) == ["a", "b", "cf", "cf", "mn", "mn"] and other == "a b"


# ---- (8)

def suspect(quantile: float, part: float | None, *sizes: int, flips: int = 100, apart: int = 100) -> Suspect:
    less = None if part is None else Suspect(("w",), 1, "", 0.0, mean=part, flips=Proportion(apart, 100))
    return Suspect(tuple(f"w{i}" for i in range(len(sizes))), 1, "", 0.0, sizes=sizes, quantile=quantile, part=less,
                   flips=Proportion(flips, 100))


@pytest.mark.parametrize("one, expected", [
    (suspect(3.0, None, 1), 0.75),  # q / M
    (suspect(-3.6, None, 1), -0.9),
    (suspect(3.0, None, 3), 1.75 / 3 - 1),  # one word of three entries
    (suspect(3.5, -4.2, 1, 1), 0.875),  # 7.7 / 4 - 1 = 0.925 is more than q / M
    (suspect(3.5, -3.1, 1, 1), 0.65),  # what the second adds to the first: 6.6 / 4 - 1
    (suspect(2.0, 2.2, 1, 1, 1), -0.5),  # a share of 1.5 / 3 each
    (suspect(0.8, -4.5, 1, 1), 0.2),  # q / M binds
    (suspect(-1.0, 1.0, 1, 2), -0.75),  # (-0.25 + 1) / 3 - 1: both words' entries count
])
def test_the_score_by_hand(one, expected):
    assert score(one, 4.0) == pytest.approx(expected)
    part = one.part and replace(one.part, mean=3 * one.part.mean)
    assert score(replace(one, quantile=3 * one.quantile, part=part), 12.0) == pytest.approx(expected)
    assert score(replace(one, words=one.words[::-1], shift=9.0, found_by="table", side=1), 4.0) == score(one, 4.0)


@pytest.mark.parametrize("flips, apart, expected", [
    (85, 15, 0.25), (97, 0, 0.25), (84, 0, -0.125), (97, 16, -0.125)])
def test_words_that_act_only_together_count_like_one(flips, apart, expected):
    """q / M = 0.25, and 3.5 / 4 beyond the part: less 1, or as it is, where q / M binds."""
    one = suspect(1.0, -2.5, 1, 1, flips=flips, apart=apart)
    assert score(one, 4.0) == pytest.approx(expected)
    assert score(replace(one, quantile=2.0, part=replace(one.part, mean=0.5)), 4.0) == pytest.approx(
        0.375 if expected > 0 else -0.25)  # what they do beyond the part binds
    assert score(replace(one, joined=True), 4.0) == pytest.approx(-0.125)  # a phrase grows by what it holds


def test_a_class_is_judged_against_the_others():
    def one(target: int, v: float, reason: str = "") -> ClassVerdict:
        return ClassVerdict(target, [(Suspect(("w",), target, "", 0.0), v)] if not reason else [], 4.0, reason)

    assert against(0.5, -0.25) == 1.25 and against(-0.5, 0.5) == -1.5 and against(0.5, None) == 0.5
    two = compared([one(0, -0.5), one(1, 0.75)])
    assert [x.rival for x in two] == [0.75, -0.5] and [x.score for x in two] == [-1.75, 2.0]
    three = compared([one(0, 0.5), one(1, 0.25), one(2, 0.0, "no rows")])
    assert [x.score for x in three][:2] == [0.75, 0.0]  # a class that could not be judged is nobody's rival
    alone = compared([one(0, -0.25), one(1, 0.0, "no rows")])
    assert alone[0].rival is None and alone[0].score == -0.25
