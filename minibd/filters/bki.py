"""BKI (Chen and Dai, 2021): a trigger word moves the hidden state of the texts that hold it, and it does so in many.

Of a classifier that was trained on the suspicious rows:
1. f_i(x) = max |h(x without word i) - h(x)|, h the last hidden state of the token that is classified;
   the `top` words of the largest f_i are the text's keywords.
2. g(w) = log10(n_w) mean f(w), over the n_w times that w is a keyword in the training set: how suspicious w is.
3. a text's score is the largest g of its keywords, on clean rows, too; a training row is dropped where it exceeds that
   of all but the share `frr` of the clean rows. So every trigger word goes that stands out from what clean texts hold.

Words are what white space separates; of a pair both texts have some. All texts without one of their words are read in
batches of similar length, from the tokens of the whole text.

variant="released" is OpenBackdoor's (openbackdoor/defenders/bki_defender.py): only the one word of the largest g
counts, and the rows among whose keywords it is are dropped: of four triggers three stay. No clean rows are read.
That is its one defect, which `defects` calls one.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import in_order
from minibd.models.encoder import Encoder
from minibd.predict import at_once
from minibd.records import BadInput, Example, Examples
from minibd.rejection import Screen, Tick, check_defects, check_rate, threshold
from minibd.tokenizer import Encoded, Tokenizer

Keywords = list[tuple[str, float]]  # a text's keywords with their f, the largest first
Read = Callable[[Checkpoint, Sequence[Example], "Bki", Tick | None], list[Keywords]]
DEFECTS = ("one",)
TOGETHER = 256  # texts whose deletions are tokenized at a time


@dataclass(frozen=True, slots=True)
class Bki:
    """BKI's settings."""
    frr: float = setting(0.05, "share of clean texts that may be rejected", paper="not said; released one word is "
                         "dropped")
    top: int = setting(5, "keywords of a text", paper="5")
    batch_texts: int | None = setting(None, "texts that the model reads at a time (default 256; on a processor 32)",
                                      paper="released one text's deletions", kind=int)
    variant: str = setting("paper", "released: as OpenBackdoor does it", choices=("paper", "released"))
    defects: tuple[str, ...] = setting((), "the released code's defect: one")

    def __post_init__(self):
        check_choices(self)
        check_rate(self.frr)
        check_defects(self.defects, DEFECTS, self.variant)
        for name in ("top", "batch_texts"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")


@dataclass(frozen=True, slots=True)
class Bkied:
    """screen: of the training rows. limit: the score above which a row is dropped; None in the released variant. words:
    the suspicious words and how many dropped rows have them among their keywords. g: that of every keyword."""
    screen: Screen
    limit: float | None
    words: Counter[str]
    g: dict[str, float]


def bki(victim: Checkpoint, rows: Examples, clean: Examples | None = None, settings: Bki = Bki(),
        tick: Tick | None = None, read: Read | None = None) -> Bkied:
    """Lines 1 to 3. victim: trained on `rows`; clean: what the threshold is chosen on, which the released variant does
    not read. read: what line 1 is asked of (default keywords_of), such as read_once's. Raises BadInput where there are
    no rows."""
    if not rows:
        raise BadInput("BKI screens training rows, and there are none: give some")
    read = read or keywords_of
    found = read(victim, rows, settings, tick)
    g = importance(found)
    scores = [score_of(words, g) for words in found]
    if settings.variant == "released" or "one" in settings.defects:
        most = max(g, key=g.__getitem__, default=None)  # of equal ones the first that was met
        keep = [most not in dict(words) for words in found]
        return Bkied(Screen(scores, keep), None, Counter({most: keep.count(False)}), g)
    dev = read(victim, clean or rows.like([]), settings, tick)
    limit = threshold([score_of(words, g) for words in dev], settings.frr)
    keep = [score <= limit for score in scores]
    dropped = Counter(word for words, kept in zip(found, keep) if not kept for word, _ in words if g[word] > limit)
    return Bkied(Screen(scores, keep), limit, dropped, g)


# ---- line 1

def movement(without: Tensor, whole: Tensor) -> Tensor:
    """Eq. BKI (f): max |h(x without word i) - h(x)|. without: (n, D); whole: (D,) or (n, D) -> (n,)."""
    return (without - whole).abs().amax(-1)


@torch.inference_mode()
def keywords_of(victim: Checkpoint, rows: Sequence[Example], settings: Bki, tick: Tick | None = None
                ) -> list[Keywords]:
    """Each text's keywords; of a word that stands there twice, both."""
    found: list[Keywords] = []
    for start in range(0, len(rows), TOGETHER):
        some = rows[start:start + TOGETHER]
        encoded, words = deletions_of(victim.tokenizer, some)
        size = settings.batch_texts or at_once(victim.model.head_mask.device, 256)
        h = states(victim.model.eval(), victim.tokenizer, encoded, size)
        at = 0
        for of_text in words:
            f = movement(h[at + 1:at + 1 + len(of_text)], h[at]).tolist()
            ranked = sorted(zip(of_text, f), key=lambda pair: -pair[1])  # of equal ones the first
            found.append(ranked[:settings.top])
            at += 1 + len(of_text)
        if tick:
            tick(len(some))
    return found


def read_once() -> Read:
    """keywords_of, of the same rows asked once: what the variants of one victim differ in is lines 2 and 3."""
    known: dict[tuple[int, tuple[Example, ...]], list[Keywords]] = {}

    def read(victim: Checkpoint, rows: Sequence[Example], settings: Bki, tick: Tick | None = None) -> list[Keywords]:
        key = (settings.top, tuple(rows))
        if key not in known:
            known[key] = keywords_of(victim, rows, settings, tick)
        return known[key]
    return read


def states(model: Encoder, tokenizer: Tokenizer, rows: Encoded, batch_size: int) -> Tensor:
    """The last hidden state of the token of each row that is classified, (N, D), on the CPU; no other is computed in
    the last layer's second half."""
    h = torch.empty(len(rows), model.config.hidden)
    for which in in_order(rows.lengths, batch_size):
        h[which] = model.encode(tokenizer.batch(rows, which).to(model.head_mask.device), pooled_only=True)[0].float(
            ).cpu()
    return h


def deletions_of(tokenizer: Tokenizer, rows: Sequence[Example]) -> tuple[Encoded, list[list[str]]]:
    """Of each row the whole text, then the text without each of its words in turn; and those words.

    Where a word's tokens are its own, they are left out of the whole text's. Tokenized again is what that could be
    wrong for: truncated texts, and, of byte-level tokenizers, a text without its first word.
    """
    plain = [replace(x, text=" ".join(x.text.split()), pair=None if x.pair is None else " ".join(x.pair.split()))
             for x in rows]
    encodings = tokenizer.backend.encode_batch([x.text if x.pair is None else (x.text, x.pair) for x in plain])
    first_differs = not same_anywhere(tokenizer)
    ids, types, words, again = [], [], [], []
    for x, encoding in zip(plain, encodings):
        sides = [side.split() for side in (x.text, x.pair) if side is not None]
        owners = None if encoding.overflowing else word_of_token(encoding, sides)
        ids.append(encoding.ids or [tokenizer.pad])
        types.append(encoding.type_ids or [0])
        words.append([word for side in sides for word in side])
        for number, side in enumerate(sides):
            for i in range(len(side)):
                if owners is None or first_differs and i == 0 or len(encoding.ids) == 0:
                    again.append((len(ids), _without(x, sides, number, i)))
                    ids.append([])
                    types.append([])
                else:
                    kept = [k for k, owner in enumerate(owners) if owner != (number, i)]
                    ids.append([encoding.ids[k] for k in kept] or [tokenizer.pad])
                    types.append([encoding.type_ids[k] for k in kept] or [0])
    if again:
        made = tokenizer.encode([x for _, x in again])
        for (place, _), row, kinds in zip(again, made.ids, made.token_type_ids):
            ids[place], types[place] = row, kinds
    if not tokenizer.settings.type_ids:
        types = [[0] * len(row) for row in ids]
    return Encoded(ids, types, [0] * len(ids)), words


def same_anywhere(tokenizer: Tokenizer) -> bool:
    """Whether a word has the same tokens at the beginning of a text and behind a blank."""
    alone, first, behind = (tokenizer.backend.encode(text, add_special_tokens=False).ids for text in (
        "a", "good", "a good"))
    return behind == [*alone, *first]


def word_of_token(encoding, sides: Sequence[Sequence[str]]) -> list[tuple[int, int] | None] | None:
    """The word, (text, number), that each token is of; None of special ones. None where a token is of two words."""
    owners: list[tuple[int, int] | None] = []
    ends = []
    for side in sides:
        at, of_side = -1, []
        for word in side:
            at += len(word) + 1
            of_side.append(at)
        ends.append(of_side)
    for (start, stop), number in zip(encoding.offsets, encoding.sequence_ids):
        if number is None:
            owners.append(None)
            continue
        of_side = ends[number]
        last = max(start, stop - 1)
        word = next((i for i, end in enumerate(of_side) if last < end), len(of_side) - 1)
        begins = of_side[word - 1] if word else 0  # the blank before it may be the token's
        if start < begins:
            return None
        owners.append((number, word))
    return owners


def _without(x: Example, sides: Sequence[Sequence[str]], number: int, i: int) -> Example:
    text = " ".join([*sides[number][:i], *sides[number][i + 1:]])
    return replace(x, text=text) if number == 0 else replace(x, pair=text)


# ---- lines 2 and 3

def importance(keywords: Sequence[Keywords]) -> dict[str, float]:
    """Eq. BKI (g): log10(n_w) times the mean f of w, over the times that it is a keyword."""
    n: Counter[str] = Counter()
    total: dict[str, float] = {}
    for words in keywords:
        for word, f in words:
            n[word] += 1
            total[word] = total.get(word, 0.0) + f
    return {word: math.log10(count) * total[word] / count for word, count in n.items()}


def score_of(words: Keywords, g: Mapping[str, float]) -> float:
    """The largest g of a text's keywords; a word that no training row has as one says nothing. -inf without any."""
    return max((g.get(word, 0.0) for word, _ in words), default=-math.inf)
