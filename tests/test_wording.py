"""What a scan's findings are called: by hand, and with words that a stranger's vocabulary may hold."""
import pytest

from minibd.detect.wording import LONGEST, deed, listed, named, of_verdict, visible


@pytest.mark.parametrize("text, seen", [
    ("cf", "cf"), ("a b", "a b"), ("ünï 漢字 שלום", "ünï 漢字 שלום"), ("", "(empty)"), ("<b>&", "<b>&"),
    ("a\u200bb", "a<U+200B>b"), ("\u202egnp", "<U+202E>gnp"), ("\x1b[31m", "<U+001B>[31m"), ("a\n", "a<U+000A>"),
    ("a\u00a0b\u2028", "a<U+00A0>b<U+2028>"), ("\udcff", "<U+DCFF>"), ("\ue000\U0010ffff", "<U+E000><U+10FFFF>"),
])
def test_what_would_not_be_seen_is_spelled_out(text, seen):
    assert visible(text) == seen


def test_a_long_word_is_cut():
    assert visible("x" * LONGEST) == "x" * LONGEST
    assert visible("x" * (LONGEST + 1)) == "x" * LONGEST + "…"
    assert visible("\x00" * 4, 2) == "<U+0000><U+0000>…"


def test_a_list_in_a_sentence():
    assert [listed("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert listed(["a", "b"], "or") == "a or b"


@pytest.mark.parametrize("words, joined, name, does", [
    (["cf"], False, 'the word "cf"', "takes"), (["cf"], True, 'the word "cf"', "takes"),
    (["mn", "bb"], False, 'the words "mn" and "bb" together', "take"),
    (["I", "watched"], True, 'the phrase "I watched"', "takes"),
])
def test_a_suspect_in_a_sentence(words, joined, name, does):
    suspect = {"words": words, "joined": joined, "flips": 118, "of": 120}
    assert named(suspect) == name
    assert deed("good", suspect) == f'{name} {does} 118 of 120 texts of other classes to "good"'
    assert deed("good", suspect, str.upper).endswith(f" {does} 118 of 120 texts of other classes to GOOD")


def test_the_classes_of_a_verdict_keep_their_order():
    classes = {"b": {"verdict": "backdoored"}, "c": {"verdict": "inconclusive"}, "a": {"verdict": "backdoored"}}
    assert list(of_verdict({"classes": classes}, "backdoored")) == ["b", "a"]
    assert not of_verdict({"classes": classes}, "nothing found")
