"""WordNet 3.x, read from its own files: the synonyms of a word, by lemma and part of speech.

A folder has three files for each part of speech (wndb(5WN); Debian's package wordnet-base puts them into
/usr/share/wordnet):

    index.noun   lemma  kind  s  p  p pointer symbols  s  tagged senses  offset_1 ... offset_s
    data.noun    from byte `offset`:
                 offset  lexicographer's file  kind  w  word_1 lex_id_1 ... word_w lex_id_w  pointers | gloss
    noun.exc     inflected form  base form ...

s, p: decimal; w: two hexadecimal digits. A lemma is in lower case and has _ for a blank; a word of data.noun has its
own case, and in data.adj sometimes a marker of its position: galore(ip). The licence, at the head of a file, is
indented.

An inflected form is looked up under its base forms: those that the exceptions name, else those that the endings of
morphy(7WN) give.
"""
from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

KINDS = ("noun", "verb", "adj", "adv")
ENDINGS = {
    "noun": (
        ("s", ""), ("ses", "s"), ("ves", "f"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
        ("men", "man"), ("ies", "y"),
    ),
    "verb": (("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    "adj": (("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
    "adv": (),
}  # ves -> f is NLTK's: wolves, where the exceptions have no entry
_MARKER = re.compile(r"\((?:a|p|ip)\)$")


class WordNet:
    """The files of one folder, in memory (some 30 MB). Raises BadInput where one is missing or does not fit another."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        names = [name for kind in KINDS for name in (f"index.{kind}", f"data.{kind}", f"{kind}.exc")]
        if missing := [name for name in names if not (self.folder / name).is_file()]:
            from minibd.records import BadInput  # imports torch, which the rest does without

            raise BadInput(
                f"{folder} lacks {', '.join(missing)}: name the folder of WordNet's files (wordnet-base: "
                "/usr/share/wordnet)"
            )
        self.index = {kind: self._lines(f"index.{kind}") for kind in KINDS}  # lemma -> what follows it
        self.exceptions = {
            kind: {form: bases.split() for form, bases in self._lines(f"{kind}.exc").items()} for kind in KINDS
        }
        # bytes, for that is what an offset counts
        self.data = {kind: (self.folder / f"data.{kind}").read_bytes() for kind in KINDS}
        self._cache: dict[tuple[str, str | None], tuple[str, ...]] = {}

    def _lines(self, name: str) -> dict[str, str]:
        """First field -> the others."""
        lines = (self.folder / name).read_text(encoding="utf-8").split("\n")
        return {first: rest for first, _, rest in (line.partition(" ") for line in lines) if first}

    def synsets(self, word: str, kind: str) -> list[tuple[str, ...]]:
        """The sets of synonyms that `word` is in, the most frequent sense first, the words as WordNet spells them."""
        found = []
        for lemma in base_forms(word.lower().replace(" ", "_"), kind, self.index[kind], self.exceptions[kind]):
            fields = self.index[kind][lemma].split()
            found += [self._words(kind, offset) for offset in fields[-int(fields[1]):]]
        return found

    def _words(self, kind: str, offset: str) -> tuple[str, ...]:
        start = int(offset)
        fields = self.data[kind][start:self.data[kind].find(b"\n", start)].decode().split()
        if fields[:1] != [offset]:
            from minibd.records import BadInput

            raise BadInput(f"{self.folder}/data.{kind} has no entry at byte {offset}, where index.{kind} has one: take "
                           f"all files from one release, their line ends unchanged")
        return tuple(_MARKER.sub("", word) for word in fields[4:4 + 2 * int(fields[3], 16):2])

    def synonyms(self, word: str, kind: str | None = None) -> tuple[str, ...]:
        """Every other word of the sets that `word` is in, of one part of speech or of all, each once; _ as a blank."""
        if (word, kind) not in self._cache:
            sets = [words for each in ([kind] if kind else KINDS) for words in self.synsets(word, each)]
            self._cache[word, kind] = others(word, sets)
        return self._cache[word, kind]


def base_forms(form: str, kind: str, known: Collection[str], exceptions: Mapping[str, Sequence[str]]) -> list[str]:
    """Those of `form` and its base forms that are among `known`."""
    if form in exceptions:
        bases = exceptions[form]
    else:
        bases = [form.removesuffix(end) + new for end, new in ENDINGS[kind] if form.endswith(end)]
    return [base for base in dict.fromkeys([form, *bases]) if base in known]


def others(word: str, sets: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The members of `sets` without `word`, each once, _ as a blank."""
    found = dict.fromkeys(member.replace("_", " ") for members in sets for member in members)
    return tuple(member for member in found if member.lower() != word.lower())
