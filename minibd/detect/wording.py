"""A scan's findings in words: what the table, the page and the SARIF file say alike.

Words, class names and paths come from files of strangers: what would not be seen on a screen, or would move what stands
beside it, is spelled out.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from minibd import lines

BUILT_IN = "built-in carrier sentences"  # the source of the texts where the user gave none
LONGEST = 120  # characters of a word or a name that are shown
FOUND, INCONCLUSIVE, NOTHING = VERDICTS = ("backdoored", "inconclusive", "nothing found")


def visible(text: str, longest: int = LONGEST) -> str:
    """A word or a name as a finding shows it: lines.visible, cut behind `longest` characters; of an empty one that
    it is empty."""
    cut = text if len(text) <= longest else text[:longest] + "…"
    return lines.visible(cut, len(cut)) or "(empty)"


def quoted(text: str) -> str:
    return f'"{visible(text)}"'


def listed(parts: Sequence[str], last: str = "and") -> str:
    """a; a and b; a, b and c."""
    return f" {last} ".join(filter(None, (", ".join(parts[:-1]), *parts[-1:])))


def named(suspect: Mapping[str, Any], mark: Callable[[str], str] = quoted) -> str:
    """What a suspect is called in a sentence: the word "cf"; the words "a" and "b" together; the phrase "a b".

    mark: what sets a word off from the sentence.
    """
    words, twice = suspect["words"], suspect.get("times", 1) > 1
    if len(words) == 1:
        return f"the word {mark(words[0])}{' twice' if twice else ''}"
    if suspect["joined"]:
        return f"the phrase {mark(' '.join(words))}"
    return f"the words {listed([mark(word) for word in words])} together{', twice each,' if twice else ''}"


def deed(name: str, suspect: Mapping[str, Any], mark: Callable[[str], str] = quoted) -> str:
    """What a suspect of the class `name` does: the word "cf" takes 118 of 120 texts of other classes to "positive"."""
    verb = "take" if len(suspect["words"]) > 1 and not suspect["joined"] else "takes"
    return f"{named(suspect, mark)} {verb} {suspect['flips']} of {suspect['of']} texts of other classes to {mark(name)}"


def score_of_undone(suspects: Iterable[Mapping[str, Any]], undone: Iterable[Mapping[str, Any]]) -> float | None:
    """The largest score, Eq. Scan (8), that scans gave to words that were undone, as a receipt has them; None where
    none of `suspects` is one. Below 0 they do no more than words of meaning do, by themselves or added up: as a part
    of a trigger does."""
    words = {(tuple(one["words"]), one["joined"]) for one in undone}
    return max((s["score"] for s in suspects if (tuple(s["words"]), s["joined"]) in words), default=None)


def class_names(labels: Sequence[str]) -> list[str]:
    """The classes as a report calls them: a name that stands twice has its number behind it."""
    return [name if labels.count(name) == 1 else f"{name} (class {c})" for c, name in enumerate(labels)]


def of_verdict(report: Mapping[str, Any], verdict: str) -> dict[str, Mapping[str, Any]]:
    """The classes that have the verdict, by name, in the report's order."""
    return {name: found for name, found in report["classes"].items() if found["verdict"] == verdict}
