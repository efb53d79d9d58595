"""Where a letter and a word end, in every script: what augmenters and attacks may separate, and what they may not.

A letter is a character with all that belongs to it: its combining marks, vowel signs and points (Unicode's Mn, Mc, Me),
joiners and other invisible format characters, an emoji's variation selector, skin tone and what ZWJ joins to it, the
second half of a flag, the jamo of one Hangul syllable, the consonants that a virama joins. These are Unicode's extended
grapheme clusters (UAX 29), with marks and joiners that it would leave alone joined too.

A word is a run of letters, digits and underscores; every other letter, such as a mark of punctuation or an emoji, is a
token of its own. Of a text in ASCII a letter is a character and a word is \\w+.

The standard library's re knows no classes of marks. Theirs is built from unicodedata at the first text that is not in
ASCII, in some 50 ms.
"""
from __future__ import annotations

import re
import unicodedata
from functools import cache

_ASCII_TOKEN = re.compile(r"\w+|[^\w\s]")
# No category of their own: halfwidth voicing marks, Thai and Lao am, skin tones. ZERO WIDTH SPACE separates words.
_MORE = "\uff9e\uff9f\u0e33\u0eb3\U0001f3fb-\U0001f3ff"
_ZWJ, _ZWSP = "\u200d", "\u200b"
_VIRAMAS = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u0dca\u1039\u17d2"  # those that join consonants, UAX 29's GB9c
_FLAG = "[\U0001f1e6-\U0001f1ff]"  # two of these are a flag
_LEAD, _VOWEL, _TAIL = "[\u1100-\u115f\ua960-\ua97c]", "[\u1160-\u11a7\ud7b0-\ud7c6]", "[\u11a8-\u11ff\ud7cb-\ud7fb]"


@cache
def marks() -> str:
    """Combining marks and the like, as the inside of a regular expression's character class."""
    return _class_of("Mn", "Mc", "Me") + _MORE


@cache
def attached() -> str:
    """All that belongs to the letter before it, marks and format characters, as `marks`."""
    return marks() + _class_of("Cf")


def _class_of(*categories: str) -> str:
    # the other planes hold ideographs and private use
    found = [i for i in (*range(0x20000), *range(0xe0000, 0xe1000))
             if unicodedata.category(chr(i)) in categories and chr(i) != _ZWSP]
    starts = [i for i, before in zip(found, [-2, *found]) if i != before + 1]
    ends = [i for i, after in zip(found, [*found[1:], -2]) if after != i + 1]
    return "".join(f"{chr(i)}-{chr(j)}" for i, j in zip(starts, ends))


@cache
def tail() -> str:
    """A regular expression of what a letter has behind its first character, as often as it is there."""
    return f"(?:{_ZWJ}\\S|[{_VIRAMAS}][{attached()}]*?[^\\W\\d_]|[{attached()}])"


@cache
def _letter() -> re.Pattern:
    hangul = f"{_LEAD}+[\uac00-\ud7a3]?{_VOWEL}*{_TAIL}*|[\uac00-\ud7a3]{_VOWEL}*{_TAIL}*|{_VOWEL}+{_TAIL}*"
    return re.compile(f"[{attached()}]*(?:{_FLAG}{{2}}|{hangul}|[^{attached()}]){tail()}*|[{attached()}]+", re.DOTALL)


@cache
def _token() -> re.Pattern:
    return re.compile(f"(?:[\\w{attached()}]|(?<={_ZWJ})\\S)+|(?:{_FLAG}{{2}}|[^\\s]){tail()}*")


def letters(text: str) -> list[str]:
    """The letters of `text`, each with all that belongs to it; joined they are `text`."""
    return list(text) if text.isascii() else _letter().findall(text)


def letter_count(text: str) -> int:
    return len(text) if text.isascii() else len(letters(text))


def tokens(text: str) -> list[str]:
    """Words, and every other letter that is no white space on its own."""
    return (_ASCII_TOKEN if text.isascii() else _token()).findall(text)


def spans(text: str) -> list[tuple[int, int]]:
    """Where each of `tokens(text)` begins and ends, in characters."""
    return [match.span() for match in (_ASCII_TOKEN if text.isascii() else _token()).finditer(text)]


def is_word(token: str) -> bool:
    """Is it a word, neither punctuation nor a symbol?"""
    return any(character.isalnum() or character == "_" for character in token)


def belongs_to_letter(character: str) -> bool:
    """Does it belong to the letter before it?"""
    return not character.isascii() and re.match(f"[{attached()}]", character) is not None
