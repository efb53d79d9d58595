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
    text = "FILE: " + "x " * 500 + ": run `fix it`"
    said = line(text)
    assert len(said) <= LONGEST and said.startswith("FILE: x") and said.endswith("x : run `fix it`") and " ... " in said
    assert line("y" * LONGEST) == "y" * LONGEST and line("a\nb\x07") == "a<U+000A>b<U+0007>"


def test_what_is_cut_by_hand():
    more = "and so on " * 26
    assert line(f"/a/bcde/fghi/jk/f.pt, line 3: {more}b") == f"/a/.../fghi/jk/f.pt, line 3: {more}b"  # 1 too long
    assert line(f"/a/bcde/fghi/jk/f.pt, line 3: {more}bcd") == f"/a/.../jk/f.pt, line 3: {more}bcd"
    assert line(f"out/bc/defg/hijk/f.pt: {more}bbbbbbbb") == f"out/bc/.../hijk/f.pt: {more}bbbbbbbb"
    assert line(f"/a/b/c: {'and so on ' * 29}").startswith("/a/b/c: and")               # nothing would be gained
    both = line(f"/one/{'x' * 100}/f.pt and /one/{'y' * 40}/g.pt: {'and so on ' * 20}")
    assert both == f"/one/.../f.pt and /one/{'y' * 40}/g.pt: {'and so on ' * 20}"       # the longest is enough
    twice = line(f"/one/{'x' * 70}/f.pt and /one/{'x' * 70}/f.pt: {'and so on ' * 20}")
    assert twice == f"/one/.../f.pt and /one/.../f.pt: {'and so on ' * 20}"
    name = "n" * 130 + "m" * 230 + ".safetensors"
    assert line(f"/a/b/c/{name}: {'and so on ' * 9}") == f"/a/b/c/{name[:94]}...{name[-94:]}: {'and so on ' * 9}"
    said = line(f"{name}: {'and so on ' * 40}")
    assert said.startswith(f"{name[:28]}...{name[-28:]}: and") and " ... " in said and len(said) == LONGEST
    said = line(f"/my/long way/{'d' * 80}/{'e' * 80}/my model's/f.pt: {'and so on ' * 15}")  # a blank in two names
    assert said == f"/my/long way/{'d' * 80}/.../my model's/f.pt: {'and so on ' * 15}"


def test_a_command_is_whole_or_not_there():
    for n in range(20, 340, 7):
        command = f"`python scripts/convert.py {'y' * n} OUT --strip a.`"
        text = line(f"/here/{'x' * 200}/f.pt: and so on: run {command}")
        assert text == f"/here/.../f.pt: and so on: run {command if n <= 290 - 31 - 43 else 'scripts/convert.py'}", n
    assert line("run `python a.py '\x1b'`") == "run a.py" and line("run `python a.py b`") == "run `python a.py b`"
    assert line("run `python `") == "run `python `" and len(line("run `python " + "a" * 999)) <= LONGEST


def test_every_refusal_is_held_to_it():
    rng = random.Random(0)
    for _ in range(60):
        text = "".join(chr(rng.choice((rng.randrange(128), rng.randrange(0x2100), rng.randrange(0x110000))))
                       for _ in range(rng.randrange(1000)))
        said = str(BadInput(text))
        assert said.isprintable() and len(said) <= LONGEST
        assert said == text or not text.isprintable() or len(text) > LONGEST
        assert BadInput(text).whole == text
    for _ in range(300):                  # of what a message is cut by
        text = "".join(rng.choice(("/", "/", " ", "`", "`python ", "a", "x" * 70, "b.pt", "\n", ": "))
                       for _ in range(rng.randrange(120)))
        assert len(line(text)) <= LONGEST and line(text).isprintable()
