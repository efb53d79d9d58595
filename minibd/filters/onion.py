"""ONION (Qi et al., EMNLP 2021): a trigger is a word without which a text reads better to a language model.

1. p_0 is the perplexity of the text x = w_1 ... w_n, p_i that of the text without its word i.
2. f_i = p_0 - p_i is how suspicious word i is; a text's score is the largest of them.
3. on clean rows two thresholds are chosen, at the same rate `frr`: of texts by their scores, of words by their f_i.
4. a text above the first is rejected; of any text the words above the second are removed, but for the last one that is
   left. What is classified is, for the first, the texts that are kept; for the second, all texts without those words.

Words are what white space separates. The perplexity counts every token of a text's words, the first one included (a
causal model reads its beginning token before it), and nothing else. A masked language model gives the
pseudo-perplexity: each token is masked in turn.

A causal model reads a text and all its deletions in one row: a deletion repeats the text up to its word, so that only
what follows is computed again, in a branch that sees the beginning and itself. The text is tokenized once; without
its first word, the second one may be other tokens. A text longer than the model reads is cut into windows of whole
words, each scored alone. Nothing that is computed depends on other texts.

variant="released" is OpenBackdoor's (openbackdoor/defenders/onion_defender.py):
- the threshold is 0, and a word with f_i = 0 is removed; no clean row is read;
- the text is to be lower-cased, and is not: the lower-cased copy is dropped;
- 32 of a text and its deletions are padded to the longest of them, and the padding counts in the perplexity: a word's
  score depends on which words share its batch;
- of more than 96 tokens the others are not read: a word beyond them has f_i = 0 and is removed;
- a text of one word leaves the count, and all words of a text may be removed.
`defects` names some of them, threshold, case, padding, length and count in this order, on top of the correct filter.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.models.encoder import Encoder
from minibd.records import BadInput, Batch, Example, Examples
from minibd.rejection import Screen, Tick, check_defects, check_rate, threshold
from minibd.tokenizer import Encoded, Tokenizer

ROW = 384  # tokens of a row of branches: its attention grows with their square
RELEASED_BATCH, RELEASED_LENGTH = 32, 96
DEFECTS = ("threshold", "case", "padding", "length", "count")
TOKENS, CACHED = 8192, 2048  # that the language model reads at a time; whose activations a processor's cache holds
FILLED = 0.8
CHUNK, SLICE = 2 ** 26, 2 ** 20  # logits computed at a time; of which a processor's cache holds the exponents


@dataclass(frozen=True, slots=True)
class Onion:
    """ONION's settings."""
    frr: float = setting(0.05, "share of clean texts that may be rejected, and of clean words that may be removed",
                         paper="tuned on clean rows; released a threshold of 0")
    lower: bool = setting(True, "the language model reads the texts in lower case", paper="meant; released no")
    batch_tokens: int | None = setting(None, "tokens that the language model reads at a time (default 8192; on a "
                                       "processor 2048)", paper="released 32 texts", kind=int)
    variant: str = setting("paper", "released: as OpenBackdoor does it", choices=("paper", "released"))
    defects: tuple[str, ...] = setting((), "some of the released code's defects on top of the correct filter: "
                                       "threshold, case, padding, length, count")

    def __post_init__(self):
        check_choices(self)
        check_rate(self.frr)
        check_defects(self.defects, DEFECTS, self.variant)
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise BadInput(f"batch_tokens is {self.batch_tokens}, it must be at least 1, such as 8192")


@dataclass(frozen=True, slots=True)
class Onioned:
    """What ONION did. screens, cleaned: one for each part: the screen, and the rows without the words removed.

    text_threshold, word_threshold: None of the first where the threshold is 0: a text is rejected where one of its
    words is removed. removed: of each part, how many words were removed, of how many. words: how often each was, over
    all parts.
    """
    screens: list[Screen]
    cleaned: list[Examples]
    text_threshold: float | None
    word_threshold: float
    removed: list[tuple[int, int]]
    words: Counter[str]


def onion(lm: Checkpoint, clean: Examples, parts: Sequence[Examples], settings: Onion = Onion(),
          tick: Tick | None = None) -> Onioned:
    """Lines 1 to 4. lm: a causal language model, or a masked one; clean: rows that the thresholds are chosen on.

    Raises BadInput where `lm` has no language-model head, or `clean` no rows.
    """
    check_lm(lm, settings)
    if settings.variant == "released":
        return _released(lm, parts, tick)
    limit, word_limit = None, 0.0
    at_zero, drops = "threshold" in settings.defects, "count" in settings.defects
    if not at_zero:
        dev = scores_of(lm, clean, settings, tick)
        limit = threshold([score_of(scores) for scores in dev], settings.frr)
        words = [f for sides in dev for side in sides for f in side if f > -math.inf]
        word_limit = threshold(words or [math.inf], settings.frr)
    screens, cleaned, removed, counter = [], [], [], Counter()
    for rows in parts:
        found = scores_of(lm, rows, settings, tick)
        scores = [score_of(sides) for sides in found]
        without = [_without(x, sides, lambda f: f >= 0 if at_zero else f > word_limit, counter, one_stays=not drops)
                   for x, sides in zip(rows, found)]
        screens.append(Screen(scores, [n == 0 if at_zero else score <= limit for score, (_, n) in zip(scores, without)],
                              [_counted(x) for x in rows] if drops else None))
        cleaned.append(rows.like(x for x, _ in without))
        removed.append((sum(n for _, n in without), sum(len(side) for sides in found for side in sides)))
    return Onioned(screens, cleaned, limit, word_limit, removed, counter)


def check_lm(lm: Checkpoint, settings: Onion) -> None:
    """Raises BadInput where `lm` cannot give a perplexity."""
    config = lm.model.config
    if not any(getattr(config, name, False) for name in ("lm", "tied", "mlm")):
        raise BadInput("this checkpoint has no language-model head, which ONION asks for a text's perplexity: give a "
                       "causal language model (GPT-2, Llama), or a masked one that was saved with its head")
    if not lm.model.causal and (settings.variant == "released" or {"padding", "length"} & {*settings.defects}):
        raise BadInput("the released ONION reads a causal language model (GPT-2), and this one fills masks: give "
                       "another, or leave the variant, or the defects padding and length, out")


# ---- what is asked of the scores

def sides_of(x: Example) -> list[list[str]]:
    """The words of a text; of a pair, of both texts."""
    return [side.split() for side in (x.text, x.pair) if side is not None]


def score_of(sides: Sequence[Sequence[float]]) -> float:
    """Line 2: a text's score; -inf where no word can be removed."""
    return max((f for side in sides for f in side), default=-math.inf)


def _counted(x: Example) -> bool:
    """Whether the released code counts `x`."""
    return all(len(words) > 1 for words in sides_of(x))


def _without(x: Example, sides: Sequence[Sequence[float]], suspicious: Callable[[float], bool], counter: Counter, *,
             one_stays: bool = True) -> tuple[Example, int]:
    """`x` without its suspicious words, of which each text keeps the least suspicious where `one_stays`, and how many
    they are."""
    texts, n = [], 0
    for words, scores, text in zip(sides_of(x), sides, (x.text, x.pair)):
        gone = {i for i, f in enumerate(scores) if suspicious(f)}
        if one_stays and len(gone) == len(words) and gone:
            gone.remove(min(gone, key=scores.__getitem__))
        counter.update(words[i] for i in gone)
        n += len(gone)
        texts.append(" ".join(w for i, w in enumerate(words) if i not in gone) if gone else text)
    return replace(x, text=texts[0], pair=texts[1] if len(texts) > 1 else None), n


def scores_of(lm: Checkpoint, rows: Sequence[Example], settings: Onion, tick: Tick | None = None
              ) -> list[list[list[float]]]:
    """f_i of each word of each text of each row; -inf of the only word of a text."""
    sides = [side for x in rows for side in sides_of(x)]
    found = iter(word_scores(lm, sides, settings, tick))
    return [[next(found) for _ in sides_of(x)] for x in rows]


# ---- the perplexities

def perplexity(nats: Tensor, tokens: Tensor) -> Tensor:
    """Eq. ONION (p): exp of the mean of -log P over a text's tokens.

    nats: its sum over the tokens; tokens: how many they are, 1 or more; both of any one shape, as is the result. The
    pseudo-perplexity is the same with P that of a masked token.
    """
    return (nats / tokens).exp()


def suspicion(nats: Tensor, tokens: Tensor, nats_without: Tensor, tokens_without: Tensor) -> Tensor:
    """Eq. ONION (f): p_0 - p_i for each word i, (n,): how much better the text reads without it.

    nats, tokens: of the whole text, (); nats_without, tokens_without: without word i, (n,).
    """
    return perplexity(nats, tokens) - perplexity(nats_without, tokens_without)


def tokens_at_once(lm: Checkpoint) -> int:
    return CACHED if lm.model.head_mask.device.type == "cpu" else TOKENS


@torch.inference_mode()
def word_scores(lm: Checkpoint, texts: Sequence[Sequence[str]], settings: Onion = Onion(), tick: Tick | None = None
                ) -> list[list[float]]:
    """f_i of each word of each text, given as its words; -inf where a text has one."""
    model = lm.model.eval()
    lower = settings.lower and "case" not in settings.defects
    read = [[word.lower() for word in words] if lower else list(words) for words in texts]
    if {"padding", "length"} & {*settings.defects}:
        return _with_defects(lm, read, settings.defects, tick)
    windows = [windows_of(words, *pieces, room_of(lm)) for words, pieces in zip(read, pieces_of(lm.tokenizer, read))]
    flat = [window for of_text in windows for window in of_text]
    score = causal_scores if model.causal else masked_scores
    found = iter(score(model, lm.tokenizer, flat, settings.batch_tokens or tokens_at_once(lm), tick))
    scores = []
    for words, of_text in zip(read, windows):
        joined = [f for _ in of_text for f in next(found)]
        # a window of one word, and a word without a token, has nothing to be compared with
        scores.append([-math.inf] * len(words) if len(words) < 2 else joined)
    return scores


@dataclass(frozen=True, slots=True)
class Window:
    """Words of a text that are scored together: their tokens; and those of the second where it stands first."""
    pieces: list[list[int]]
    second: list[int]


def pieces_of(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> list[tuple[list[list[int]], list[int]]]:
    """The tokens of each word of each text, special ones left out, and those of its second word without the first.

    A token belongs to the word that it begins in.
    """
    def encoded(some: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        lines = [" ".join(words) for words in some]
        result = []
        for words, line, encoding in zip(some, lines, tokenizer.backend.encode_batch(lines, add_special_tokens=False)):
            ends, pieces, at, word = [], [[] for _ in words], 0, 0
            for w in words:
                at += len(w) + 1
                ends.append(at - 1)
            chunks = sorted((encoding, *encoding.overflowing), key=lambda chunk: chunk.offsets[:1])
            for chunk in chunks:
                for i, (start, stop) in zip(chunk.ids, chunk.offsets):
                    while word < len(ends) - 1 and max(start, stop - 1) >= ends[word]:
                        word += 1  # a token may begin with the blank before its word
                    pieces[word].append(i)
            result.append(pieces)
        return result

    whole, rest = encoded(texts), encoded([words[1:] for words in texts])
    return [(pieces, without[0] if without else []) for pieces, without in zip(whole, rest)]


def room_of(lm: Checkpoint) -> int:
    """How many tokens of words the model reads at a time, beside its special ones."""
    before, after = frame_of(lm)
    return min(lm.tokenizer.max_len, lm.model.config.max_len) - len(before) - len(after)


def frame_of(lm: Checkpoint) -> tuple[list[int], list[int]]:
    """The special tokens before and after a text. A causal model gets a beginning in any case: what its tokenizer puts
    there, what separated the texts that it learnt from, or its beginning token; behind a text it need read nothing."""
    encoding = lm.tokenizer.backend.encode("a")
    special = encoding.special_tokens_mask
    first = special.index(0) if 0 in special else 0
    last = len(special) - special[::-1].index(0) if 0 in special else 0
    before, after = encoding.ids[:first], encoding.ids[last:]
    if not lm.model.causal:
        return before, after
    named = dict(lm.tokenizer.settings.special)
    names = ("<|endoftext|>", named.get("bos_token"), named.get("eos_token"))
    found = (lm.tokenizer.backend.token_to_id(name) for name in names if name)
    return before or [next((i for i in found if i is not None), lm.model.config.pad)], []


def windows_of(words: Sequence[str], pieces: list[list[int]], second: list[int], room: int) -> list[Window]:
    """`words` in runs of at most `room` tokens; a word of more is cut off there."""
    runs, taken = [[]], 0
    for tokens in pieces:
        tokens = tokens[:room]
        if runs[-1] and taken + len(tokens) > room:
            runs.append([])
            taken = 0
        runs[-1].append(tokens)
        taken += len(tokens)
    # in the midst of a text a window's second word is taken as it stands there
    return [Window(run, (second[:room] if i == 0 else run[1]) if len(run) > 1 else []) for i, run in enumerate(runs)]


def deletions_of(window: Window) -> list[list[int]]:
    """The tokens of the whole window, then of it without each of its words."""
    pieces = window.pieces
    kept = [pieces] + [[*([window.second] if i == 0 else []), *pieces[:i], *pieces[max(i + 1, 2 * (i == 0)):]]
                       for i in range(len(pieces))]
    return [[i for tokens in one for i in tokens] for one in kept]


# ---- a causal language model

@dataclass(slots=True)
class Row:
    """A trunk, the text, and branches, what follows after a deletion. Of each token: its id, its position, its branch
    (0: the trunk), and how many tokens of the trunk it sees. asked: (place, token that is to follow, sum it adds to).
    """
    ids: list[int]
    positions: list[int]
    branch: list[int]
    sees: list[int]
    asked: list[tuple[int, int, int]]


def rows_of(window: Window, begin: Sequence[int], slots: range) -> Iterator[Row]:
    """The rows of a window of n words. Sum j < n is that of word j's tokens in the text, sum n + i that of the tokens
    behind word i in the text without it."""
    n, k = len(window.pieces), len(begin)
    trunk = [*begin, *(i for tokens in window.pieces for i in tokens)]
    starts = [k]
    for tokens in window.pieces:
        starts.append(starts[-1] + len(tokens))

    def new() -> Row:
        return Row(list(trunk), list(range(len(trunk))), [0] * len(trunk), list(range(1, len(trunk) + 1)), [])

    row = new()
    row.asked += [(at - 1, trunk[at], slots[j]) for j in range(n) for at in range(starts[j], starts[j + 1])]
    for i in range(n):
        if not window.pieces[i]:
            continue  # nothing is deleted
        behind = [token for tokens in window.pieces[i + 1:] for token in tokens]
        if i == 0 and n > 1:
            behind = [*window.second, *(token for tokens in window.pieces[2:] for token in tokens)]
        if not behind:
            continue
        if len(row.ids) > len(trunk) and len(row.ids) + len(behind) - 1 > ROW:
            yield row
            row = new()
        at = starts[i]  # tokens of the trunk that the branch sees
        row.asked.append((at - 1, behind[0], slots[n + i]))
        branch = row.branch[-1] + 1
        for j, token in enumerate(behind[:-1]):
            row.asked.append((len(row.ids), behind[j + 1], slots[n + i]))
            row.ids.append(token)
            row.positions.append(at + j)
            row.branch.append(branch)
            row.sees.append(at)
    yield row


def causal_scores(model: Encoder, tokenizer: Tokenizer, windows: Sequence[Window], batch_tokens: int,
                  tick: Tick | None = None) -> list[list[float]]:
    """f_i of each word of each window."""
    begin = frame_of(Checkpoint(model, tokenizer, (), []))[0]
    rows, first, slots = [], [], 0
    for window in windows:
        first.append(slots)
        made = rows_of(window, begin, range(slots, slots + 2 * len(window.pieces)))
        rows += [row for row in made if row.asked]  # of a text without a token nothing is asked
        slots += 2 * len(window.pieces)
    sums = torch.zeros(slots, dtype=torch.float64)
    for which in token_batches([len(row.ids) for row in rows], batch_tokens):
        nats = next_nats(model, tokenizer, [rows[i] for i in which])
        sums.index_add_(0, torch.tensor([slot for i in which for _, _, slot in rows[i].asked]), nats)
        if tick:
            tick(len(which))
    return [_suspicions(window, sums[at:at + 2 * len(window.pieces)]) for window, at in zip(windows, first)]


def _suspicions(window: Window, sums: Tensor) -> list[float]:
    """sums: (2 n,), see rows_of."""
    n = len(window.pieces)
    tokens = torch.tensor([len(pieces) for pieces in window.pieces], dtype=torch.float64)
    before = sums[:n].cumsum(0) - sums[:n]
    without = tokens.sum() - tokens
    if n > 1:
        without[0] += len(window.second) - len(window.pieces[1])
    found = suspicion(sums[:n].sum(), tokens.sum(), before + sums[n:], without)
    nothing = (tokens == 0) | (without == 0)  # no token goes, or none stays
    return found.masked_fill(nothing, -math.inf).tolist()


def token_batches(lengths: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Row numbers, longest first, in batches of at most `tokens` places, one row at least, whose shortest row is at
    least FILLED of the longest: what is arranged by hand computes its padding, too."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batch and ((len(batch) + 1) * lengths[batch[0]] > tokens or lengths[i] < FILLED * lengths[batch[0]]):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def next_nats(model: Encoder, tokenizer: Tokenizer, rows: Sequence[Row]) -> Tensor:
    """-log P of the tokens that `rows` ask for, in their order: float64, on the CPU."""
    t, device = max(len(row.ids) for row in rows), model.head_mask.device

    def padded(name: str, value: int) -> Tensor:  # (B, T)
        return torch.tensor([getattr(row, name) + [value] * (t - len(row.ids)) for row in rows], device=device)

    ids, positions, branch, sees = (padded(name, value) for name, value in (
        ("ids", tokenizer.pad), ("positions", 0), ("branch", -1), ("sees", 0)))
    at = torch.arange(t, device=device)
    trunk = (branch == 0)[:, None, :] & (at < sees[:, :, None])  # (B, T, T): query, key
    own = (branch[:, :, None] == branch[:, None, :]) & (at <= at[:, None])
    asked = torch.tensor([(b * t + place, token) for b, row in enumerate(rows) for place, token, _ in row.asked],
                         device=device)  # (P, 2)
    return nats_at(model, ids, positions, (trunk | own)[:, None], asked)


def nats_at(model: Encoder, ids: Tensor, positions: Tensor, mask: Tensor, asked: Tensor) -> Tensor:
    """-log P of a token behind a place: float64, on the CPU, (P,). ids, positions: (B, T); mask: (B, 1, T, T); asked:
    (P, 2), a place's number in B T and the token."""
    batch = Batch(ids, torch.ones_like(ids, dtype=torch.bool), torch.zeros_like(ids), ids[:, 0])
    h = model.encode(batch, packed=model.arrange(positions, mask))[0]  # (B T, D)
    places, of = asked[:, 0].unique(return_inverse=True)  # a place may be asked for several tokens
    order = of.argsort(stable=True)
    nats = torch.empty(len(asked), dtype=torch.float64, device=ids.device)
    step = max(1, CHUNK // model.config.vocab)
    for start in range(0, len(places), step):
        logits = model.lm_logits(h[places[start:start + step]])  # (M, V)
        rows = max(1, (SLICE if logits.device.type == "cpu" else CHUNK) // logits.shape[-1])
        log_sums = torch.cat([part.float().logsumexp(-1) for part in logits.split(rows)])  # (M,)
        low, high = torch.searchsorted(of[order], torch.tensor([start, start + step], device=ids.device)).tolist()
        these = order[low:high]
        found = log_sums[of[these] - start] - logits[of[these] - start, asked[these, 1]].float()
        nats[these] = found.double()
    return nats.cpu()


# ---- a masked language model

def masked_scores(model: Encoder, tokenizer: Tokenizer, windows: Sequence[Window], batch_tokens: int,
                  tick: Tick | None = None) -> list[list[float]]:
    """f_i of each word of each window, by pseudo-perplexities. Of T tokens some T^2 rows of T are read."""
    before, after = frame_of(Checkpoint(model, tokenizer, (), []))
    mask = next((i for i in map(tokenizer.backend.token_to_id, ("[MASK]", "<mask>")) if i is not None), None)
    if mask is None:
        raise BadInput("the tokenizer of the language model has no mask token, which pseudo-perplexity needs: give a "
                       "masked language model, or a causal one")
    scores = []
    for window in windows:
        n, tokens = len(window.pieces), [len(pieces) for pieces in window.pieces]
        flat = deletions_of(window)
        nats = torch.zeros(n + 1, dtype=torch.float64)
        rows = [(k, place) for k, tokens_of in enumerate(flat) for place in range(len(tokens_of))]
        lengths = [len(flat[k]) for k, _ in rows]
        for which in token_batches(lengths, batch_tokens):
            encoded = Encoded([[*before, *flat[k][:p], mask, *flat[k][p + 1:], *after] for k, p in (
                rows[i] for i in which)], [[0] * (len(flat[rows[i][0]]) + len(before) + len(after)) for i in which],
                [0] * len(which))
            batch = tokenizer.batch(encoded, range(len(which))).to(model.head_mask.device)
            at = torch.tensor([rows[i][1] + len(before) for i in which], device=batch.ids.device)
            hidden = torch.arange(batch.ids.shape[1], device=batch.ids.device) == at[:, None]
            wanted = torch.tensor([flat[rows[i][0]][rows[i][1]] for i in which], device=batch.ids.device)
            found = F.cross_entropy(model.predict_tokens(batch, hidden).float(), wanted, reduction="none")
            nats.index_add_(0, torch.tensor([rows[i][0] for i in which]), found.double().cpu())
        counts = torch.tensor([float(len(text)) for text in flat], dtype=torch.float64)
        found = suspicion(nats[0], counts[0], nats[1:], counts[1:])
        nothing = (counts[1:] == 0) | (torch.tensor(tokens) == 0)
        scores.append(found.masked_fill(nothing, -math.inf).tolist())
        if tick:
            tick(1)
    return scores


# ---- as released

@torch.inference_mode()
def _released(lm: Checkpoint, parts: Sequence[Examples], tick: Tick | None) -> Onioned:
    screens, cleaned, removed, counter = [], [], [], Counter()
    for rows in parts:
        found = iter(released_word_scores(lm, [words for x in rows for words in sides_of(x)]))
        scores, counted, kept, texts = [], [], [], []
        gone = of = 0
        for x in rows:
            sides = [(next(found), words) for words in sides_of(x)]
            counted.append(_counted(x))
            left = []
            for f_of, words in sides:
                out = {i for i, f in enumerate(f_of) if f >= 0}
                counter.update(words[i] for i in out)
                gone, of = gone + len(out), of + len(words)
                left.append(" ".join(w for i, w in enumerate(words) if i not in out))
            scores.append(score_of([f_of for f_of, _ in sides]))
            kept.append(left == [" ".join(words) for _, words in sides])
            texts.append(replace(x, text=left[0], pair=left[1] if len(left) > 1 else None))
        if tick:
            tick(len(rows))
        screens.append(Screen(scores, kept, counted))
        cleaned.append(rows.like(texts))
        removed.append((gone, of))
    return Onioned(screens, cleaned, None, 0.0, removed, counter)


def released_word_scores(lm: Checkpoint, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """p_0 - p_i of each word of each text, by the released code's batches; [] where a text has one word."""
    batches, of_text = [], []
    for words in texts:
        lines = [" ".join(words), *(" ".join([*words[:i], *words[i + 1:]]) for i in range(len(words)))]
        cuts = range(0, len(lines), RELEASED_BATCH) if len(words) > 1 else ()
        of_text.append(len(cuts))
        batches += [lines[start:start + RELEASED_BATCH] for start in cuts]
    found, scores = iter(released_perplexities(lm, batches)), []
    for n in of_text:
        p = [p for _ in range(n) for p in next(found)]
        scores.append([p[0] - without for without in p[1:]] if p else [])
    return scores


def released_perplexities(lm: Checkpoint, batches: Sequence[Sequence[str]]) -> list[list[float]]:
    """The perplexity of each text of each batch, padding counted: what stands behind a text is to be predicted as if it
    were text, from the text alone. nan where no text of a batch has two tokens.

    Texts that are cut to the same tokens have the same perplexity, not one that rounding tells apart.
    """
    return perplexities_of(lm, [[cut(encoding.ids, encoding.special_tokens_mask, RELEASED_LENGTH)
                                 for encoding in lm.tokenizer.backend.encode_batch(list(texts))] for texts in batches])


def perplexities_of(lm: Checkpoint, batches: Sequence[Sequence[Sequence[int]]], counts_padding: bool = True
                    ) -> list[list[float]]:
    """The same of texts that are given as their tokens, the first of which is not predicted."""
    padded: list[list[tuple[tuple[int, ...], int]]] = []  # of each text its tokens with padding, and how many are its
    for rows in batches:
        t = max(map(len, rows))
        padded.append([((*ids, *[lm.tokenizer.pad] * (t - len(ids))), max(1, len(ids))) for ids in rows])
    of_length: dict[int, dict[tuple[tuple[int, ...], int], float]] = {}
    for rows in padded:
        of_length.setdefault(len(rows[0][0]), {}).update(dict.fromkeys(rows, math.nan))
    for t, known in of_length.items():
        rows = list(known)
        for which in token_batches([t] * len(rows), tokens_at_once(lm)):
            keys = [rows[i] for i in which]
            if t > 1:
                known.update(zip(keys, _padded_perplexities(lm, keys, t, counts_padding)))
    return [[of_length[len(rows[0][0])][row] for row in rows] for rows in padded]


def _with_defects(lm: Checkpoint, texts: Sequence[Sequence[str]], defects: Sequence[str], tick: Tick | None = None
                  ) -> list[list[float]]:
    """f_i of each word of each text with the defects padding and length, or one of them: every deletion is read whole,
    32 at a time, from the tokens and the beginning that the correct filter reads."""
    begin, cuts = frame_of(lm)[0], "length" in defects
    windows = [[Window(pieces, second if len(pieces) > 1 else [])] if cuts else
               windows_of(words, pieces, second, room_of(lm))
               for words, (pieces, second) in zip(texts, pieces_of(lm.tokenizer, texts))]
    batches, of_window = [], []
    for window in (window for of_text in windows for window in of_text):
        rows = [[*begin, *tokens][:RELEASED_LENGTH if cuts else None] for tokens in deletions_of(window)]
        starts = range(0, len(rows), RELEASED_BATCH)
        of_window.append(len(starts))
        batches += [rows[i:i + RELEASED_BATCH] for i in starts]
    found, counts, scores = iter(perplexities_of(lm, batches, "padding" in defects)), iter(of_window), []
    for words, of_text in zip(texts, windows):
        f_of: list[float] = []
        for window in of_text:
            p, *without = [p for _ in range(next(counts)) for p in next(found)]
            tokens = sum(map(len, window.pieces))
            f_of += [p - q if 0 < len(pieces) < tokens else -math.inf for pieces, q in zip(window.pieces, without)]
        scores.append([-math.inf] * len(words) if len(words) < 2 else f_of)
        if tick:
            tick(1)
    return scores


def _padded_perplexities(lm: Checkpoint, rows: Sequence[tuple[tuple[int, ...], int]], t: int, counts_padding: bool
                         ) -> list[float]:
    device = lm.model.head_mask.device
    ids, lengths = (torch.tensor(column, device=device) for column in zip(*rows))
    at = torch.arange(t, device=device)
    mask = (at <= at[:, None]) & (at < lengths[:, None, None])  # (B, T, T): no query sees padding, itself included
    places = torch.arange(len(rows), device=device)[:, None] * t + at[:-1]  # (B, T - 1)
    asked = torch.stack([places, ids[:, 1:]], dim=-1).flatten(0, 1)
    nats = nats_at(lm.model.eval(), ids, at.expand(len(rows), t), mask[:, None], asked).view(len(rows), t - 1)
    if counts_padding:
        return perplexity(nats.sum(1), torch.tensor(t - 1.0)).tolist()
    own = lengths.cpu()[:, None] - 1  # tokens that are predicted
    return perplexity((nats * (torch.arange(t - 1) < own)).sum(1), own[:, 0]).tolist()


def cut(ids: list[int], special: Sequence[int], length: int) -> list[int]:
    """The first `length` tokens, the special ones at the end among them."""
    last = 0
    while last < len(special) and special[-1 - last]:
        last += 1
    return ids if len(ids) <= length else [*ids[:length - last], *ids[len(ids) - last:]]
