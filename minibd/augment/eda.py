"""EDA (Wei and Zou, 2019): one of four small operations on a text of l words, n = max(1, floor(alpha l)) times.

    SR   synonym replacement   n words that are no stop words: all occurrences of each become a random synonym of it
    RI   random insertion      n times: a random synonym of a random word that is no stop word, at a random place
    RS   random swap           n times: two random words change places
    RD   random deletion       each word is deleted with probability alpha, but never all of them

Here one call gives one augmented text, so the operation is drawn, each as likely as another; the released code makes
some texts by each and adds the original.

A word runs from the first to the last letter or digit between two blanks, with the combining marks of either
(words.py): (well-made), is one. Case, punctuation and white space stay: a synonym takes its word's capitals, and marks
of punctuation stay where they are, whatever happens to the words between them.

variant="released" follows the released eda.py: the text is lower-cased, loses its apostrophes and keeps only a to z,
and so do the synonyms; RI takes a word of any kind, inserted ones included, gives up after nine without synonyms, and
never inserts at the end; RS gives up after three draws of the same two places. One departure from it: there RI takes
the first of a word's synonyms, in an order that changes from run to run.

Given a budget, n is that many words: replaced (their places counted one by one), inserted, deleted, or, two a swap,
swapped.
"""
from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Sequence
from functools import cache
from importlib.resources import files

from minibd.augment import lexicon
from minibd.words import marks, tail

OPERATIONS = ("SR", "RI", "RS", "RD")
STOPWORDS = frozenset((files("minibd") / "resources" / "stopwords.txt").read_text(encoding="utf-8").split())
Synonyms = Callable[[str], Sequence[str]]


def eda(
    text: str, rng: random.Random, *, synonyms: Synonyms = lexicon.synonyms, operation: str | None = None,
    alpha: float = 0.1, budget: int | None = None, stopwords: Collection[str] = STOPWORDS, variant: str = "paper",
) -> str:
    """`text` after one operation; unchanged where it has no words, or none to operate on.

    synonyms: lexicon.synonyms or WordNet(folder).synonyms. operation: one of OPERATIONS (None: drawn). alpha: share of
    the words. budget: words to change, for example split.budget(text) (None: by alpha). stopwords: in lower case.
    variant: "paper" or "released".
    """
    if variant not in ("paper", "released") or operation not in (None, *OPERATIONS):
        raise ValueError(
            f"variant={variant!r}, operation={operation!r}: 'paper' or 'released', None or one of {OPERATIONS}"
        )
    released = variant == "released"
    tokens = words_and_gaps(only_letters(text) if released else text)
    gaps, words = tokens[::2], tokens[1::2]  # gaps: before, between and after the words, one more than words
    n = max(1, int(alpha * len(words))) if budget is None else budget
    if not words or n == 0:
        return text
    # Places are drawn as int(rng.random() * count), a third of randint's time; off uniform by count / 2^53.
    match operation or OPERATIONS[int(rng.random() * 4)]:
        case "SR":
            synonym_replacement(
                words, n, rng, only_letters_of(synonyms) if released else synonyms, stopwords,
                by_place=budget is not None,
            )
        case "RI":
            random_insertion(
                words, gaps, n, rng, only_letters_of(synonyms) if released else synonyms, stopwords, released
            )
        case "RS":
            random_swap(words, n if budget is None else max(1, n // 2), rng, released)
        case "RD":
            words, gaps = random_deletion(words, gaps, alpha if budget is None else None, n, rng)
    tokens = [""] * (2 * len(words) + 1)
    tokens[::2], tokens[1::2] = gaps, words
    return "".join(tokens)


# ---- the operations, on the words of a text and the gaps around them

def synonym_replacement(
    words: list[str], n: int, rng: random.Random, synonyms: Synonyms, stopwords: Collection[str], by_place: bool
) -> None:
    """EDA's SR, in place. by_place: n counts the places that change; else the words that do, wherever they stand."""
    places: dict[str, list[int]] = {}
    for i, word in enumerate(words):
        if (word := word.lower()) not in stopwords:
            places.setdefault(word, []).append(i)
    remaining = list(places)
    while remaining and n > 0:
        word = pop_random(remaining, rng)
        if found := synonyms(word):
            new = found[int(rng.random() * len(found))]
            at = places[word][:n] if by_place else places[word]
            for i in at:
                words[i] = in_case_of(words[i], new)
            n -= len(at) if by_place else 1


def random_insertion(
    words: list[str], gaps: list[str], n: int, rng: random.Random, synonyms: Synonyms, stopwords: Collection[str],
    released: bool,
) -> None:
    """EDA's RI, in place."""
    remaining = [word.lower() for word in words if word.lower() not in stopwords]
    for _ in range(n):
        found = ()
        if released:
            tries = (synonyms(words[int(rng.random() * len(words))]) for _ in range(9))
            found = next(filter(None, tries), ())
        else:
            while remaining and not found:
                found = synonyms(word := pop_random(remaining, rng))
            if found:
                remaining.append(word)  # may be drawn again
        if found:
            at = int(rng.random() * (len(words) + (not released)))
            words.insert(at, found[int(rng.random() * len(found))])
            # after the new word, or before it at the end of the text: marks stay at the end
            gaps.insert(min(at + 1, len(words) - 1), " ")


def random_swap(words: list[str], n: int, rng: random.Random, released: bool) -> None:
    """EDA's RS, in place."""
    count = len(words)
    for _ in range(n if count > 1 else 0):
        i = j = int(rng.random() * count)
        if released:
            for _ in range(3):
                j = int(rng.random() * count)
                if j != i:
                    break
        else:
            j = int(rng.random() * (count - 1))
            j += j >= i
        words[i], words[j] = words[j], words[i]


def random_deletion(
    words: list[str], gaps: list[str], p: float | None, n: int, rng: random.Random
) -> tuple[list[str], list[str]]:
    """EDA's RD: the remaining words, and their gaps. p: probability that a word is deleted; None: n of them are."""
    count = len(words)
    if p is None:
        deleted = set(rng.sample(range(count), min(n, count - 1)))
        remaining = [i for i in range(count) if i not in deleted]
    else:
        remaining = [i for i in range(count) if rng.random() >= p] or [int(rng.random() * count)]
    new_gaps, last = [], -1
    for i in (*remaining, count):
        # Between two remaining words lie the gaps of the deleted ones, marks included, without the blanks before them.
        gap = "".join(map(str.rstrip, gaps[last + 1:i])) + gaps[i] if i > last + 1 else gaps[i]
        new_gaps.append(gap.lstrip() if last < 0 < i else gap)
        last = i
    return [words[i] for i in remaining], new_gaps


# ---- words

_WORD = re.compile(r"(\w(?:\S*\w)?)")


def words_and_gaps(text: str) -> list[str]:
    """A gap, a word, a gap, ..., a gap; joined they are `text`."""
    return (_WORD if text.isascii() else _word_with_marks()).split(text)


@cache
def _word_with_marks() -> re.Pattern:
    # marks before the first letter have no other letter to belong to
    return re.compile(f"((?:(?<!\\S)[{marks()}]+)?\\w(?:\\S*\\w)?{tail()}*)")


@cache
def _strange(allowed: str) -> re.Pattern:
    """Runs of letters that are none of `allowed`: with an accent "e" is none, in one character or in two."""
    return re.compile(f"(?:[{allowed}][{marks()}]+|[^{allowed}])+")


def pop_random(words: list[str], rng: random.Random) -> str:
    """Removes a random one of `words` and returns it; the order of the others changes."""
    i = int(rng.random() * len(words))
    words[i], words[-1] = words[-1], words[i]
    return words.pop()


def in_case_of(word: str, new: str) -> str:
    """`new` with the capitals of `word`: all of it, its first letter, or as it is."""
    if len(word) > 1 and word.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if word[:1].isupper() else new


def only_letters(text: str) -> str:
    """Released EDA's cleaning: lower case, no apostrophes, one blank for each run of other characters than a to z."""
    return _strange("a-z").sub(" ", text.lower().replace("'", "").replace("\u2019", "")).strip()


def only_letters_of(synonyms: Synonyms) -> Synonyms:
    """Released EDA's synonyms: each once, cleaned (marks and digits leave no blank here), without the word itself."""
    def clean_synonyms(word: str) -> list[str]:
        found = dict.fromkeys(_strange("a-z ").sub("", new.replace("-", " ").lower()) for new in synonyms(word))
        return [new for new in found if new not in ("", word)]

    return clean_synonyms
