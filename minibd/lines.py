"""How the words of strangers stand in a line: file names, class names, words of the command line, what a file holds.

One rule: a message is one line of at most LONGEST characters, and nothing in it is unprintable. `line` holds a whole
message to it (records.BadInput does that for every refusal), the others one value or several: cut, and spelled out
where a letter would not be seen or would move what stands beside it. Nothing here imports torch.
"""
from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

LONGEST = 290                            # characters of a message; a script prints 7 before it
VALUE = 60                               # characters of one value in it
NAMES = 100                              # characters of a list of names, about
MOST = 12                                # names of a list
COMMAND = re.compile(r"(`python [^\s`][^`]*`)")  # to be copied
PATH = re.compile(r"/[^/\s`]*/[^\s`]*")   # or the part of one behind a blank
WORD = re.compile(rf"[^/\s`]{{{VALUE + 1},}}")


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
    """A whole message: one line, nothing unprintable in it, at most LONGEST characters.

    What is too long loses, until it fits: the inner folders of its paths, the longest first; the middle of its longest
    words; its command, which is whole or the script's name alone; its own middle, so that the value stands at its
    beginning and the fix at its end.
    """
    if len(text) > 100 * LONGEST:
        text = text[:50 * LONGEST] + text[-50 * LONGEST:]
    text = COMMAND.sub(lambda found: found[0] if found[0].isprintable() else _script(found[0]), text)
    text = visible(text, len(text))
    if len(text) <= LONGEST:
        return text
    parts = COMMAND.split(text)           # words, command, words, ..., words
    for what, shorter in ((PATH, _without_inner_folders), (WORD, _without_middle)):
        found = {match[0] for words in parts[::2] for match in what.finditer(words)}
        for old in sorted(found, key=lambda old: (-len(old), old)):
            if (over := _over(parts)) > 0:
                new = shorter(old, -(-over // sum(words.count(old) for words in parts[::2])))
                parts[::2] = [words.replace(old, new) for words in parts[::2]]
    if _over(parts) > 0:
        parts[1::2] = map(_script, parts[1::2])
    text = "".join(parts)
    end = LONGEST * 13 // 20              # the fix stands there
    return text if len(text) <= LONGEST else f"{text[:LONGEST - end - 5]} ... {text[-end:]}"


def _over(parts: list[str]) -> int:
    return sum(map(len, parts)) - LONGEST


def _script(command: str) -> str:
    """What a message says in place of a command that would not be whole."""
    return command.strip("`").split()[1]


def _without_inner_folders(path: str, least: int) -> str:
    """/a/.../d/f.txt of /a/b/c/d/f.txt: `least` characters less, or as few as there can be."""
    first, *inner, last = path[1:].split("/")
    for i in range(1, len(inner) + 1):
        if len("/".join(inner[:i])) - 3 >= least:
            break
    return f"/{first}/.../{'/'.join([*inner[i:], last])}" if len("/".join(inner)) > 3 else path


def _without_middle(word: str, least: int) -> str:
    """The two ends of a word, `least` characters less, but VALUE of them at least."""
    kept = max(VALUE, len(word) - least) - 3
    return f"{word[:kept // 2]}...{word[-(kept - kept // 2):]}"
