"""How the words of strangers stand in a line: file names, class names, words of the command line, what a file holds.

One rule: a message is one line of at most LONGEST characters, and nothing in it is unprintable. `line` holds a whole
message to it (records.BadInput does that for every refusal), the others one value or several: cut, and spelled out
where a letter would not be seen or would move what stands beside it. Nothing here imports torch.
"""
from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 290                            # characters of a message; a script prints 7 before it
VALUE = 60                               # characters of one value in it
NAMES = 100                              # characters of a list of names, about
MOST = 12                                # names of a list


def visible(text: str, longest: int = VALUE) -> str:
    """The text with control characters, directions, zero widths, unassigned characters and unusual spaces as <U+200B>,
    cut to `longest` characters before that."""
    cut = text if len(text) <= longest else text[:longest - 3] + "..."
    if cut.isprintable():
        return cut
    return "".join(char if char == " " or unicodedata.category(char)[0] not in "CZ" else f"<U+{ord(char):04X}>"
                   for char in cut)


def shown(value: object, longest: int = VALUE) -> str:
    """A value as Python writes it, a text in quotes, cut short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within lists without end
        text = f"a {type(value).__name__}"
    return visible(text, longest)


def as_json(value: object) -> str:
    """A value as a JSON file spells it, cut short."""
    try:
        return visible(json.dumps(value))
    except (TypeError, ValueError, RecursionError):  # of a type that JSON does not have, or endless
        return shown(value)


def quoted(names: Iterable[object]) -> str:
    """The first of `names`, each in quotes, at most MOST and about NAMES characters, and how many there are."""
    return _listed(list(names), shown, MOST) or "(none)"


def listed(names: Iterable[str]) -> str:
    """The first of `names`, at most five and about 1.5 NAMES characters, and how many there are."""
    return _listed(list(names), lambda name: visible(name, NAMES), 5, NAMES * 3 // 2)


def _listed(names: list, how: Callable[[Any], str], most: int, length: int = NAMES) -> str:
    parts: list[str] = []
    for name in map(how, names[:most]):
        if parts and len(", ".join([*parts, name])) > length:
            break
        parts.append(name)
    more = f", ... ({len(names)} in all)" if len(names) > len(parts) else ""
    return ", ".join(parts) + more


def one_line(error: BaseException, longest: int = 100) -> str:
    """An error's message on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return visible(" ".join(text[:10 * longest].split()), longest)


def line(text: str) -> str:
    """A whole message: one line, nothing unprintable in it, its middle cut out where it is longer than LONGEST, so that
    the value stands at its beginning and the fix at its end."""
    if len(text) > 20 * LONGEST:
        text = text[:10 * LONGEST] + text[-10 * LONGEST:]
    text = visible(text, len(text))
    if len(text) <= LONGEST:
        return text
    end = LONGEST * 13 // 20             # a command that helps stands there, and must be whole
    return f"{text[:LONGEST - end - 5]} ... {text[-end:]}"
