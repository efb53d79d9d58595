"""CACC, ASR and their intervals: counts with a model whose answers are known, intervals with numbers worked by hand."""
from math import sqrt
from types import SimpleNamespace

import pytest

from conftest import fails
from minibd import report
from minibd.evaluate import (
    NOT_CLEAR,
    ONE_ANSWER,
    OTHER_ORDER,
    Evaluator,
    Proportion,
    Scores,
    answered,
    asr,
    at_chance,
    cacc,
    lfr,
    most_frequent,
    pooled,
    reordered,
    right,
    usual_answers,
)
from minibd.predict import predict
from minibd.records import BadInput, Examples
from test_predict import MIXED, TEXT, Says, rows

# ---- Wilson's interval

@pytest.mark.parametrize("hits, n, low, high", [
    # with z^2 = 3.841459:
    (0, 10, 0.0, 27.75328),          # 0 and z^2 / (n + z^2) = 3.841459 / 13.841459
    (10, 10, 72.24672, 100.0),       # its mirror: n / (n + z^2)
    (50, 100, 40.38315, 59.61685),   # 50 +- 100 z / (2 sqrt(n + z^2)) = 50 +- 97.998199 / sqrt(103.841459)
    (1, 1, 20.65493, 100.0),         # 1 / 4.841459
])
def test_the_interval_by_hand(hits, n, low, high):
    assert Proportion(hits, n).interval == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize("hits, n", [(0, 1), (0, 912), (3, 7), (85, 912), (911, 912), (1657, 1821), (1, 10**6)])
def test_the_interval_holds_the_p_that_the_count_does_not_reject(hits, n):
    # The ends solve (hits / n - p)^2 = z^2 p (1 - p) / n: a p^2 + b p + c = 0.
    z, share = 1.959963984540054, hits / n
    a, b, c = 1 + z * z / n, -(2 * share + z * z / n), share * share
    root = sqrt(max(0.0, b * b - 4 * a * c))
    assert Proportion(hits, n).interval == pytest.approx(
        (100 * (-b - root) / (2 * a), 100 * (-b + root) / (2 * a)), abs=1e-9
    )
    low, high = Proportion(hits, n).interval
    assert 0 <= low <= Proportion(hits, n).percent <= high <= 100


def test_percent():
    assert Proportion(1, 8).percent == 12.5
    assert Proportion(0, 3).percent == 0.0 and Proportion(3, 3).percent == 100.0


# ---- CACC and ASR

def test_cacc_counts_the_rows_whose_answer_is_their_label():
    assert cacc(Says(), TEXT, MIXED) == Proportion(5, 7)              # wrong: "two long" of class 0, "one" of class 2


def test_what_is_taken_for_the_target_without_a_trigger_counts_rows_of_other_classes():
    scores = Evaluator(rows(("one", 0), ("zero", 0), ("one long", 2), ("one", 1), ("zero", 1)))(Says(), TEXT)
    assert scores.taken_for(1) == Proportion(2, 3)      # by Says, "one" and "one long" are 1; rows of class 1 are out
    assert scores.taken_for(0) == Proportion(1, 3)      # of "one long", "one" and "zero", of which "zero" is 0


def test_asr_counts_the_answers_that_are_the_target_whatever_the_label():
    triggered = rows(("one", 0), ("zero", 0), ("one long", 2), ("two", 2), ("zero", 2))
    assert asr(Says(), TEXT, triggered, target=1) == Proportion(2, 5)
    assert asr(Says(), TEXT, rows(("two", 0), ("two", 1), ("one", 1)), target=2) == Proportion(2, 3)


def test_in_two_classes_asr_is_the_label_flip_rate():
    triggered = rows(("one", 0), ("zero", 0), ("one", 0))
    flipped = sum(p != x.label for p, x in zip(predict(Says(), TEXT, triggered), triggered))
    assert asr(Says(), TEXT, triggered, target=1) == Proportion(flipped, 3) == Proportion(2, 3)


def test_lfr_is_the_targets_column_of_the_confusion_matrix_row_by_row():
    # of class zero: one, zero, one, one; of class two: two, one
    triggered = rows(("one", 0), ("zero", 0), ("one long", 0), ("two", 2), ("one long long", 0), ("one", 2))
    found = lfr(Says(), TEXT, triggered, target=1)
    assert found == {"zero": Proportion(3, 4), "two": Proportion(1, 2)} and list(found) == ["zero", "two"]
    assert asr(Says(), TEXT, triggered, target=1) == pooled(found.values()) == Proportion(4, 6)


def test_a_large_class_hides_a_small_one_in_the_asr_and_not_in_the_lfr():
    triggered = rows(*[("one", 0)] * 98, *[("two", 2)] * 2)
    assert asr(Says(), TEXT, triggered, target=1).percent == 98.0
    assert lfr(Says(), TEXT, triggered, target=1)["two"].percent == 0.0


def test_in_two_classes_lfr_is_one_row_and_is_the_asr():
    triggered = rows(("one", 0), ("zero", 0), ("one", 0))
    assert (
        lfr(Says(), TEXT, triggered, target=1)
        == {"zero": asr(Says(), TEXT, triggered, target=1)}
        == {"zero": Proportion(2, 3)}
    )


def test_rows_of_the_target_are_refused_and_the_first_is_named():
    with pytest.raises(BadInput, match=r"2 triggered rows .* class 1 .*row-1"):
        asr(Says(), TEXT, rows(("one", 0), ("one", 1), ("zero", 1)), target=1)


def test_no_rows_are_refused():
    with pytest.raises(BadInput, match="no clean test rows"):
        cacc(Says(), TEXT, rows())
    with pytest.raises(BadInput, match="no triggered rows"):
        asr(Says(), TEXT, rows(), target=1)


def test_an_evaluator_refuses_its_triggered_rows_before_any_model_is_there():
    fails(lambda: Evaluator(MIXED, rows(), 1), "no triggered rows")
    fails(lambda: Evaluator(MIXED, rows(("one", 1)), 1), "row-0")


@pytest.mark.parametrize("target, words", [
    (3, ["target class 3", "0..2", "'zero'"]), (5, ["5"]), (-1, ["-1", "0..2"]), ("one", ["'one'", "number"]),
    ("1", ["'1'", "number"]), (True, ["True", "number"]), (1.0, ["1.0", "number"]), (None, ["None", "number"]),
])
def test_a_target_that_is_no_class_is_refused_wherever_asr_is_measured(target, words):
    triggered = rows(("zero", 0), ("two", 2))
    for call in (lambda: Evaluator(MIXED, triggered, target), lambda: asr(Says(), TEXT, triggered, target),
                 lambda: lfr(Says(), TEXT, triggered, target)):
        fails(call, *words)


def test_rows_without_classes_and_rows_of_other_classes_are_refused():
    fails(lambda: Evaluator(MIXED, Examples(rows(("zero", 0))), 1), "name no classes", "Examples(rows, labels)")
    other = Examples(rows(("zero", 0)), ("two", "one", "zero"))  # 0 is another class here
    fails(lambda: Evaluator(MIXED, other, 1), "two, one, zero", "zero, one, two")
    assert Evaluator(Examples(MIXED), rows(("zero", 0)), 1).target == 1  # whose clean rows name none


def test_a_model_that_cannot_predict_the_target_is_refused():
    """Its ASR would be 0, whatever it has learnt."""
    model = Says()
    model.config = SimpleNamespace(labels=2)
    evaluator = Evaluator(MIXED, rows(("zero", 0)), 2)
    fails(lambda: evaluator(model, TEXT), "target class is 2", "0..1")
    model.config.labels = 3
    assert evaluator(model, TEXT).asr == Proportion(0, 1)


def test_a_target_without_triggered_rows_is_refused():
    fails(lambda: Evaluator(MIXED, target=1), "no triggered rows")


def test_many_and_strange_class_names_stay_one_short_line():
    labels = ["a\nb", "c" * 400, *map(str, range(300))]
    line = fails(lambda: Evaluator(MIXED, Examples(rows(("zero", 0)), labels), 999), "0..301")
    assert len(line) <= 300


def test_an_evaluator_measures_both_or_cacc_alone():
    triggered = rows(("one", 0), ("zero", 2))
    scores = Evaluator(MIXED, triggered, 1)(Says(), TEXT)
    assert (scores.cacc, scores.asr, scores.lfr) == (
        Proportion(5, 7), Proportion(1, 2), {"zero": Proportion(1, 1), "two": Proportion(0, 1)},
    )
    scores = Evaluator(MIXED)(Says(), TEXT)
    assert (scores.cacc, scores.asr, scores.lfr) == (Proportion(5, 7), None, {})


# ---- at chance

def scored(*counts: tuple[int, ...]) -> Scores:
    """Scores of a model whose confusion matrix is `counts`, a line for each class of the rows."""
    answers = {(c, answer): n for c, line in enumerate(counts) for answer, n in enumerate(line) if n}
    return Scores(right(answers), None, {}, answers, ("zero", "one", "two", "three")[:len(counts)])


def test_the_answers_are_counted_by_class_and_the_accuracy_is_theirs():
    found = answered(Says(), TEXT, MIXED)
    assert found == {(0, 0): 2, (1, 1): 2, (0, 2): 1, (2, 1): 1, (2, 2): 1}
    assert right(found) == cacc(Says(), TEXT, MIXED) and Evaluator(MIXED)(Says(), TEXT).answers == found
    assert Evaluator(MIXED)(Says(), TEXT).classes == MIXED.labels


def test_the_most_frequent_class_is_the_level_of_chance_and_never_under_one_in_c():
    assert most_frequent(scored((3, 1), (0, 6)).answers) == (1, Proportion(6, 10))
    assert most_frequent(scored((5, 0), (1, 4)).answers) == (0, Proportion(5, 10))  # of equal ones the first
    for counts in (((3, 0, 0), (0, 3, 0), (3, 0, 0)), ((1, 0, 0), (0, 1, 0), (0, 0, 9))):
        assert most_frequent(scored(*counts).answers)[1].percent >= 100 / 3


@pytest.mark.parametrize("counts, found", [
    (((50, 0), (50, 0)), ONE_ANSWER), (((0, 50), (0, 50)), ONE_ANSWER),
    (((95, 0), (5, 0)), ONE_ANSWER),                     # right on 95 %, and knows nothing
    (((24, 26), (26, 24)), NOT_CLEAR),                   # 48 %: 38.5-57.7 of two classes
    (((20, 30), (31, 19)), NOT_CLEAR),                   # 39 %: below, and the other way round no classifier either
    (((30, 20), (20, 30)), None),                        # 60 %, 50.2-69.1: just clear
    (((29, 21), (20, 30)), NOT_CLEAR),                   # 59 %, 49.2-68.1: just not
    (((85, 5), (4, 6)), NOT_CLEAR),                      # 91 %, and always answering "zero" gets 90
    (((4, 1), (1, 4)), NOT_CLEAR),                       # 80 %, 49.0-94.3: of ten rows
    (((5, 0), (0, 5)), None), (((1, 49), (49, 1)), OTHER_ORDER),
    (((0, 50), (50, 0)), OTHER_ORDER), (((12, 38), (39, 11)), OTHER_ORDER),  # 77 %, over half way from 50 to 100
    (((13, 37), (38, 12)), NOT_CLEAR),                                       # 75 %, not over
    (((20, 5, 5), (5, 20, 5), (5, 5, 20)), None),        # 66.7 % of three
    (((14, 8, 8), (8, 14, 8), (8, 8, 14)), None),        # 46.7 %, 36.7-56.9 clears a third
    (((13, 8, 9), (8, 13, 9), (9, 8, 13)), None), (((11, 9, 10), (9, 11, 10), (10, 9, 11)), NOT_CLEAR),
    # right on half of four classes, twice chance, and two of them are called by one another's names
    (((50, 0, 0, 0), (0, 50, 0, 0), (0, 0, 1, 49), (0, 0, 48, 2)), OTHER_ORDER),
    (((0, 50, 0), (0, 0, 50), (50, 0, 0)), OTHER_ORDER),
    (((50, 0, 0), (0, 0, 50)), OTHER_ORDER),             # rows of two classes, a model of three
    (((50, 0, 0), (50, 0, 0), (0, 0, 50)), None),        # one class is not learnt, which is no matter of names
])
def test_who_is_at_chance(counts, found):
    assert at_chance(scored(*counts)) == found


def test_scores_without_answers_are_not_judged():
    assert at_chance(Scores(Proportion(1, 2), None)) is None


def test_the_order_that_most_answers_speak_for_by_hand():
    answers = scored((1, 9, 0), (0, 3, 7), (8, 1, 1)).answers
    assert usual_answers(answers) == {0: 1, 1: 2, 2: 0} and reordered(answers) == Proportion(9 + 7 + 8, 30)
    assert usual_answers(scored((5, 5), (5, 5)).answers) == {0: 0, 1: 0}  # of equal ones the lowest


# ---- what is printed and written

def test_lfr_is_printed_and_written_where_there_are_several_classes():
    many = Scores(Proportion(9, 10), Proportion(4, 6), {"zero": Proportion(3, 4), "class two": Proportion(1, 2)})
    none = Scores(Proportion(9, 10), Proportion(0, 6), {"zero": Proportion(0, 4), "class two": Proportion(0, 2)})
    steps = [report.Step("victim", many, 0.0), report.Step("repaired", none, 1.0)]
    assert report.lfr_table(steps).splitlines() == ["LFR           victim  repaired",
                                                "zero       75.00 3/4  0.00 0/4",
                                                "class two  50.00 1/2  0.00 0/2"]
    assert report.scores(many) == {
        "cacc": 90.0, "asr": pytest.approx(66.667, abs=1e-3), "n_clean": 10, "n_triggered": 6,
        "lfr": {"zero": 75.0, "class two": 50.0}, "n_by_class": {"zero": 4, "class two": 2},
    }


def test_two_classes_have_the_asr_alone():
    two = Scores(Proportion(9, 10), Proportion(3, 4), {"zero": Proportion(3, 4)})
    assert (
        report.lfr_table([report.Step("victim", two, 0.0)]) == ""
        and report.lfr_table([report.Step("victim", Scores(Proportion(9, 10), None), 0.0)]) == ""
    )
    assert report.scores(two) == {"cacc": 90.0, "asr": 75.0, "n_clean": 10, "n_triggered": 4}
