"""How a stranger's word stands in a message: on one line, printable, cut; whatever the word is."""

import random

import pytest

from minibd.lines import LONGEST, as_json, line, listed, one_line, quoted, shown, visible
from minibd.records import BadInput

STRANGE = ["\x1b[31m", "a\nb", "a\r\nb", "\u202egnp", "\ud800", "\0", "\u2028", "\U0010ffff", "é漢☃", "x" * 5000, "",
           10**5000, float("nan"), None, [[]], {"a": "\n"}, b"\xff"]


@pytest.mark.parametrize("text, seen", [
    ("cf", "cf"), ("a\nb", "a<U+000A>b"), ("\x1b[31m", "<U+001B>[31m"), ("\ud800", "<U+D800>"), ("漢字", "漢字"),
    ("x" * 60, "x" * 60), ("x" * 61, "x" * 57 + "..."),
])
def test_a_word_by_hand(text, seen):
    assert visible(text) == seen


def test_values_by_hand():
    assert shown("a\nb") == r"'a\nb'" and shown([1, 2]) == "[1, 2]" and as_json({"a": True}) == '{"a": true}'
    assert shown(10**5000) == "a int" and as_json({1, 2}) == "{1, 2}"
    assert quoted(["a", "b"]) == "'a', 'b'" and quoted([]) == "(none)" and listed(["a", "b"]) == "a, b"
    assert listed("abcdefg") == "a, b, c, d, e, ... (7 in all)" and quoted(["x" * 50] * 3).endswith("... (3 in all)")
    assert one_line(OSError(28, "No space left on device")) == "No space left on device"
    assert one_line(ValueError("a\n  b")) == "a b" and one_line(ValueError()) == "ValueError"


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_nothing_breaks_the_rule(value):
    for said in (shown(value), as_json(value), quoted([value] * 30), visible(str(shown(value)))):
        assert said.isprintable() and len(said) <= 200, said


def test_a_message_keeps_its_beginning_and_its_end():
    text = "FILE: " + "x" * 1000 + ": run `fix it`"
    said = line(text)
    assert len(said) <= LONGEST and said.startswith("FILE: x") and said.endswith("x: run `fix it`") and " ... " in said
    assert line("y" * LONGEST) == "y" * LONGEST and line("a\nb\x07") == "a<U+000A>b<U+0007>"


def test_every_refusal_is_held_to_it():
    rng = random.Random(0)
    for _ in range(60):
        text = "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x2100), rng.randrange(0x110000))))
                       for _ in range(rng.randrange(1000)))
        said = str(BadInput(text))
        assert said.isprintable() and len(said) <= LONGEST
        assert said == text or not text.isprintable() or len(text) > LONGEST
