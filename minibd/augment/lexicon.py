"""A small thesaurus of common English words, those of film reviews among them, for where WordNet's files are absent.

It is resources/lexicon.txt: sections [noun], [verb], [adj], [adv], a line of which is a set of words of that part of
speech that can often stand for each other; a word may be in several. Inflected forms that are in none are looked up
under their base forms, as in WordNet (wordnet.py), those of [noun exceptions], ... under the ones named there.
"""
from __future__ import annotations

from functools import cache
from importlib.resources import files

from minibd.augment.wordnet import KINDS, base_forms, others


def read(text: str) -> dict[str, list[list[str]]]:
    """{section: its lines, each a list of words}; # opens a comment line."""
    sections: dict[str, list[list[str]]] = {}
    for line in text.splitlines():
        if line.startswith("["):
            lines = sections.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            lines.append(line.split())
    return sections


_SECTIONS = read((files("minibd") / "resources" / "lexicon.txt").read_text(encoding="utf-8"))
SETS = {kind: _SECTIONS[kind] for kind in KINDS}
EXCEPTIONS = {kind: {form: bases for form, *bases in _SECTIONS[f"{kind} exceptions"]} for kind in KINDS}


@cache
def _sets_of(kind: str) -> dict[str, list[list[str]]]:
    """Each word of `kind` -> the sets that it is in."""
    sets_of: dict[str, list[list[str]]] = {}
    for members in SETS[kind]:
        for member in members:
            sets_of.setdefault(member, []).append(members)
    return sets_of


@cache
def synonyms(word: str) -> tuple[str, ...]:
    """Every other word of all the sets that `word` is in, whatever its part of speech, each once.

    Only a word that is in no set is looked up under its base forms: "boring" is "dull", and is not "to tire".
    """
    form = word.lower()
    sets = [members for kind in KINDS for members in _sets_of(kind).get(form, ())]
    if not sets:
        sets = [members for kind in KINDS for base in base_forms(form, kind, _sets_of(kind), EXCEPTIONS[kind])
                for members in _sets_of(kind)[base]]
    return others(word, sets)
