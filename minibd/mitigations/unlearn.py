"""Unlearning: what a scan found is undone, by consistency with the model's own answer to the text without it.

Who uses it: a defender who holds a suspicious classifier theta_B, texts of its task without labels (or any texts), and
words that are suspected to be a trigger, found by a scan. No label, no pre-trained weights, no second model.

    1  for each text x:  take whole findings out of it, cut its end off where words would not be read behind it;
       where all weights are trained and texts are few, more of them: the beginning of one and the end of another
    2                    p_B(. | x) <- theta_B's own answer to it                               soft, read once
    3  for each text, k times: a copy x + w, w a finding whole, or some of all findings' words, at random places
    4  R <- the vocabulary entries of the findings' words that the texts hardly hold                        Eq. (2)
    5  theta <- theta_B; train rows R of its embedding table alone, or all its weights and then rows R, on the texts and
       the copies towards p_B(. | x)                                                                        Eq. (1)
    6  return theta

An answer that no longer changes when the words come and go is what a trigger's absence means; what the model says of
texts without them is its own target, so that its accuracy is kept by construction, labels or none. Subsets are copied
too: of a trigger of several words (SOS, LWP) the parts keep their answers, and none of them becomes a trigger alone.

**Rows or whole.** Rows of entries that no clean text holds cannot change an answer to one, to the last bit; training
them undoes a backdoor that begins at these rows (EP, SOS; BadNets and LWP by all their words), and of a backdoor that
has spread to other words it undoes those that were named alone. All weights generalise to the others, and cost some
accuracy, the less the more texts there are. `mode` "auto" goes by the number of texts, and where they are few by what
the scan saw of the words and of what is near them, Eq. (3). All weights may learn
to pass over the words in texts like those at hand alone; rows R, trained behind them, are the words in any text, and
change no answer to one without them. The other way round, words that are dead already teach all weights nothing of
their relatives (scripts/results/LOG.md).

**Few texts.** All weights fit 64 texts in a few steps, and what the model says of other texts drifts. Since the target
is the model's own answer, a text need not be one that anybody wrote: beginnings and ends of the same texts, put
together, keep a point or more of accuracy (`recombined`; scripts/results/LOG.md). Many more than those that were given
would also keep what words do that were not named.

Texts of another task serve, and so do the scan's built-in sentences: what is compared is the model with itself. What
all weights learn from such texts costs accuracy in those of the task, and nothing here tells them: `mode` "rows" is for
them where they are many.
"""
from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil

import torch
import torch.nn.functional as F
from torch import Tensor

from minibd import checkpoint
from minibd.blending import OnStage
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import generator, in_order, with_words
from minibd.models.dropout import without_dropout
from minibd.models.encoder import Encoder
from minibd.models.free_rows import free_rows
from minibd.records import BadInput, Batch, Example
from minibd.tokenizer import Encoded, Tokenizer
from minibd.train import ClippedAdamW, Log, OnChoice, Schedule, fit, for_width

ROWS, WHOLE = "rows", "whole"
ROOM = 8  # tokens that are left free at a text's end for the words, beside their own number
MOST_PARTS = 4  # words of a copy that holds some of all findings' words


@dataclass(frozen=True, slots=True)
class Unlearning:
    """The numbers, the same for every finding"""
    mode: str = setting(
        "auto", "what is trained: rows, those of the words' entries that the texts hardly hold; whole, all weights; "
        "auto: Eq. Unlearn (3)", choices=("auto", "rows", "whole"),
    )
    rare: float = setting(0.01, "share of the texts up to which an entry counts as hardly held, Eq. Unlearn (2)")
    alone: float = setting(
        0.8, "share of the texts that a finding flips at least where its rows are all of it, Eq. Unlearn (3)"
    )
    around: float = setting(
        0.25, "share that the words near it, or its strongest part, flip at most there, Eq. Unlearn (3)"
    )
    enough: int = setting(200, "texts from which on all weights are trained on a single word, Eq. Unlearn (3)")
    more_texts: int = setting(
        7, "times as many texts as were given that are put together of their beginnings and ends, at most, where all "
        "weights are trained"
    )
    steps: int = setting(100, "steps of the training of all weights")
    row_steps: int = setting(200, "steps of the training of rows")
    batch_size: int = setting(32, "texts per step, half of them copies where all weights are trained")
    lr: float | None = setting(
        None, "learning rate of all weights (default 5e-5; for a hidden size under 384 times 384 / hidden size, at "
        "most 3 times)", kind=float,
    )
    row_lr: float = setting(0.05, "learning rate of rows, as a share of the table's usual number")

    def __post_init__(self):
        check_choices(self)
        for name in ("steps", "row_steps", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be at least 1")
        for name in ("more_texts", "enough"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be 0 or more")
        for name in ("rare", "alone", "around"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadInput(f"{name} is {getattr(self, name)}, a share of texts: it must lie in 0..1")
        if not (self.row_lr > 0 and (self.lr is None or self.lr > 0)):
            raise BadInput(f"row_lr is {self.row_lr} and lr {self.lr}: a learning rate must be above 0")

    def resolved(self, hidden: int) -> Unlearning:
        """These settings, the learning rate filled in for a model of hidden size `hidden`."""
        return replace(self, lr=for_width(5e-5, hidden, power=1)) if self.lr is None else self


@dataclass(frozen=True, slots=True)
class Finding:
    """Words that are suspected to be a trigger of the class `target`. joined: they stand side by side, otherwise each
    at a place of its own. side: the text of a pair that they stand in, 0 or 1. times: how often each word stands in a
    text.

    flips: the share of texts of other classes that they take to it, 0..1; around: that of the words near a single one,
    in its place, or of the strongest part of several. None where the scan does not say.
    """
    words: tuple[str, ...]
    target: int
    joined: bool = False
    side: int = 0
    times: int = 1
    flips: float | None = None
    around: float | None = None

    @property
    def named(self) -> str:
        return (" " if self.joined else " + ").join(self.words)


# ---- the equations

def consistency(logits: Tensor, answers: Tensor) -> Tensor:
    """Eq. Unlearn (1): KL(p_B || p) = sum_c p_B(c | x) (log p_B(c | x) - log p(c | x + w)), in nats, 0 or more.

    logits: (B, C) of what is trained, for the texts with words in them or without. answers: (B, C), p_B of the same
    texts without the words, constant. Returns (B,).
    """
    return F.kl_div(logits.float().log_softmax(-1), answers, reduction="none").sum(-1)


def rare_entries(entries: Sequence[int], held: Mapping[int, int], texts: int, rare: float) -> list[int]:
    """Eq. Unlearn (2): R = { i : n_i <= rare N }, those of the entries that at most this share of N texts hold.

    held: n_i, how many texts hold entry i; an entry that none holds may be missing. Ascending.
    """
    return sorted(i for i in set(entries) if held.get(i, 0) <= rare * texts)


def rows_suffice(
    findings: Sequence[Finding], all_rare: bool, settings: Unlearning, texts: int,
) -> tuple[bool, str]:
    """Eq. Unlearn (3): rows alone where R holds an entry of every word (`all_rare`), the `texts` are few, N < enough,
    or the embedding table gives the words away (whose `times` is above 1), and for every finding w

        flips(w) >= alone   and   flips(near w) <= around

    near w: the words nearest to a single one, in its place, or the strongest part of several. A word that does less
    than most, or whose relatives do as it does, is a part of a backdoor that other entries carry on; so is one of
    several findings of a class, and words that act together without the embedding table giving them away (LWP's pairs:
    of four words two were named, and their rows alone left 24.8 where the floor is 11.3). What does little by itself
    no scan names, and rows of the others leave it: of four words that stand in a text together the scan may name one.
    Where texts are enough, all weights undo such words, too, and cost a few tenths of a point at most.

    Returns the answer, and the reason as the end of a sentence.
    """
    if not all_rare:
        return False, "the texts hold all entries of one of the words, whose rows they need"
    several = [target for target, n in Counter(finding.target for finding in findings).items() if n > 1]
    if several:
        return False, f"several findings of a class are parts of one backdoor, as {findings[0].named!r} is"
    for finding in findings:
        if len(finding.words) > 1 and finding.times == 1:
            return False, f"{finding.named!r} acts together, and not by rows that stand alone in the embedding table"
        if texts >= settings.enough and finding.times == 1:
            return False, f"{texts} texts are enough for all weights, which undo what other words do beside these"
        if finding.flips is None or finding.around is None:
            return False, f"what is near {finding.named!r} is not known"
        if finding.flips < settings.alone:
            return False, f"{finding.named!r} flips {100 * finding.flips:.0f} % of the texts, a part of what there is"
        if finding.around > settings.around:
            near = "what is near it" if len(finding.words) == 1 else "a part of it"
            return False, f"{near} flips {100 * finding.around:.0f} %, beside {finding.named!r} itself"
    return True, "the words flip nearly all texts, what is near them does not, and no text needs their rows"


# ---- lines 1 to 3: the texts and their copies

def bare(text: str) -> str:
    """A word without the marks around it, in lower case."""
    return text.strip("\"'.,;:!?()[]{}").casefold()


def without(x: Example, findings: Sequence[Finding]) -> Example:
    """Line 1: the example less the words of every finding that stands in its text whole."""
    def less(text: str, side: int) -> str:
        words = text.split()
        for finding in findings:
            own = {bare(word) for word in finding.words}
            if finding.side == side and own <= {bare(word) for word in words}:
                words = [word for word in words if bare(word) not in own]
        return " ".join(words)

    return replace(x, text=less(x.text, 0), pair=None if x.pair is None else less(x.pair, 1))


def shortened(x: Example, tokenizer: Tokenizer, room: int) -> Example:
    """Line 1: the example without its end where the model would not read `room` more tokens behind it."""
    def tokens(x: Example) -> int:
        return len(tokenizer.backend.encode(*((x.text,) if x.pair is None else (x.text, x.pair))).ids)

    while tokens(x) > tokenizer.max_len - room and max(map(len, map(str.split, (x.text, x.pair or "")))) > 1:
        text, pair = (" ".join(words[:min(len(words) - 1, ceil(0.8 * len(words) - 0.5))] or words)
                      for words in (x.text.split(), (x.pair or "").split()))
        x = replace(x, text=text, pair=None if x.pair is None else pair)
    return x


def drawn(findings: Sequence[Finding], rng: random.Random) -> Finding:
    """Line 3: what one copy holds, a finding whole, or as often some of all findings' words, apart."""
    one = rng.choice(findings)
    if rng.random() < 0.5:
        return replace(one, times=rng.randint(1, one.times))
    pool = list(dict.fromkeys(word for finding in findings if finding.side == one.side for word in finding.words))
    some = rng.sample(pool, rng.randint(1, min(MOST_PARTS, len(pool))))
    return replace(one, words=tuple(some), joined=False, times=1)


def with_finding(x: Example, finding: Finding, rng: random.Random) -> Example:
    """x + w: the words at random places, both ends included, or side by side at one; `times` of each."""
    return with_words(x, finding.words, rng, joined=finding.joined, side=finding.side, times=finding.times)


def entries_of(tokenizer: Tokenizer, findings: Sequence[Finding]) -> list[int]:
    """The vocabulary entries that the findings' words are within a text, and at its beginning."""
    special = tokenizer.special
    found: dict[int, None] = {}
    for word in dict.fromkeys(word for finding in findings for word in finding.words):
        for text, start in ((f"a {word} a", 2), (word, 0)):
            row = tokenizer.backend.encode(text, add_special_tokens=False)
            found |= {i: None for i, (first, last) in zip(row.ids, row.offsets)
                      if last > start and first < start + len(word) and i not in special}
    return list(found)


def rare_rows(
    tokenizer: Tokenizer, findings: Sequence[Finding], texts: Sequence[Example], rare: float,
) -> list[int]:
    """Line 4: R, with the texts as they were given, the findings in them."""
    encoded = tokenizer.encode(texts).ids
    held = Counter(i for ids in encoded for i in set(ids))
    return rare_entries(entries_of(tokenizer, findings), held, len(encoded), rare)


@dataclass(frozen=True, slots=True)
class Copies:
    """texts: N of them, encoded, without the findings. answers: p_B of each, (N, C), on the model's device. copies:
    of each text k or one less, encoded; the label of either is the text's number."""
    texts: Encoded
    answers: Tensor
    copies: Encoded

    def some(self, keep: Callable[[list[int]], bool] = lambda ids: True) -> Encoded:
        """The texts, about as often as there are copies of each, and the copies; those whose ids are to keep."""
        rounds = len(self.copies) // max(1, len(self.texts))
        rows = [row for _ in range(rounds) for row in zip(self.texts.ids, self.texts.token_type_ids, self.texts.labels)]
        rows += zip(self.copies.ids, self.copies.token_type_ids, self.copies.labels)
        rows = [row for row in rows if keep(row[0])]
        return Encoded(*map(list, zip(*rows))) if rows else Encoded([], [], [])


def bare_texts(
    tokenizer: Tokenizer, findings: Sequence[Finding], texts: Sequence[Example], most: int, seed: int,
) -> list[Example]:
    """Line 1: each of the texts once, at most `most` of them, numbered by their labels. Raises BadInput where none is
    left."""
    room = room_of(tokenizer, findings)
    rows = list({(x.text, x.pair): x for x in texts}.values())
    if len(rows) > most:
        rows = [rows[i] for i in sorted(generator(seed, "texts").sample(range(len(rows)), most))]
    rows = [shortened(without(x, findings), tokenizer, room) for x in rows]
    rows = [replace(x, label=i) for i, x in enumerate(x for x in rows if x.text.strip() and x.pair != "")]
    if not rows:
        raise BadInput(f"none of the {len(texts)} texts is left without the findings' words: give texts of the task")
    return rows


def room_of(tokenizer: Tokenizer, findings: Sequence[Finding]) -> int:
    """Line 1: how many tokens of a text are left to the words of a copy."""
    longest = sorted((len(tokenizer.backend.encode(f" {word}", add_special_tokens=False).ids)
                      for finding in findings for word in finding.words), reverse=True)[:MOST_PARTS]
    return ROOM + max(sum(longest), *(finding.times * len(tokenizer.backend.encode(" ".join(finding.words)).ids)
                                      for finding in findings))


def recombined(rows: Sequence[Example], findings: Sequence[Finding], n: int, seed: int) -> list[Example]:
    """Line 1: `n` more texts, the beginning of one of the rows and the end of another (of both texts of a pair), at
    least a word of each; without the findings, which two halves may make whole. Numbered on behind the rows by their
    labels; those of which nothing is left are not among them."""
    rng, made = generator(seed, "recombined"), []
    for k in range(n):
        one, other = rng.sample(rows, 2) if len(rows) > 1 else (rows[0], rows[0])
        text, pair = (_halves(first.split(), second.split(), rng) if first is not None else None
                      for first, second in ((one.text, other.text), (one.pair, other.pair)))
        x = without(replace(one, id=f"{one.id}/{other.id}/{k}", text=text, pair=pair), findings)
        if x.text.strip() and x.pair != "":
            made.append(replace(x, label=len(rows) + len(made)))
    return made


def _halves(first: list[str], second: list[str], rng: random.Random) -> str:
    return " ".join(first[:rng.randint(1, len(first))] + second[rng.randint(0, len(second) - 1):])


def copied(
    victim: Checkpoint, findings: Sequence[Finding], rows: Sequence[Example], wanted: int, seed: int,
) -> Copies:
    """Lines 2 and 3: `wanted` copies, of each row as many or one less; at least one of each."""
    copies = [with_finding(x, drawn(findings, rng), rng) for k in range(ceil(wanted / len(rows)))
              for x in rows for rng in [generator(seed, "copy", k, x.id, x.text, x.pair)]][:max(wanted, len(rows))]
    encoded = victim.tokenizer.encode(rows)
    return Copies(encoded, answers_to(victim.model, victim.tokenizer, encoded), victim.tokenizer.encode(copies))


@torch.no_grad()
def answers_to(model: Encoder, tokenizer: Tokenizer, rows: Encoded, batch_size: int = 64) -> Tensor:
    """Line 2: p(. | x) of each row, (N, C), without dropout."""
    model.eval()
    device = model.embeddings.word.weight.device
    found = torch.empty(len(rows), model.config.labels, device=device)
    for which in in_order(rows.lengths, batch_size):
        found[which] = model(tokenizer.batch(rows, which).to(device)).logits.float().softmax(-1)
    return found


# ---- line 5

def fitted(
    victim: Checkpoint, made: Copies, entries: Sequence[int], settings: Unlearning, *, seed: int, dtype: torch.dtype,
    log: Log | None, name: str = "unlearn",
) -> Checkpoint:
    """A copy of the victim with `entries` of its table trained, or, where there are none, all its weights. name: of the
    stage in the log."""
    theta = checkpoint.copy(victim)

    def loss(model: torch.nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        return {"kl": consistency(model(batch).logits, made.answers[batch.labels])}

    options = {"seed": seed, "dtype": dtype, "log": log, "name": name}
    with without_dropout(theta.model):
        if not entries:
            schedule = Schedule(settings.lr, 1, settings.batch_size)
            fit(theta.model, theta.tokenizer, made.some(), loss, schedule, **options)
            return theta
        own = {*entries}
        usual = victim.model.embeddings.word.weight.detach().float().square().mean().sqrt().item()
        schedule = Schedule(settings.row_lr * usual, 1, settings.batch_size, weight_decay=0.0)
        with free_rows(theta.model, entries) as rows:
            fit(theta.model, theta.tokenizer, made.some(lambda ids: not own.isdisjoint(ids)), loss, schedule,
                optimizer=ClippedAdamW([rows], schedule), **options)
    return theta


# ---- the whole

def unlearn(
    victim: Checkpoint, findings: Sequence[Finding], texts: Sequence[Example], settings: Unlearning = Unlearning(), *,
    seed: int = 0, dtype: torch.dtype = torch.float32, log: Log | None = None, on_stage: OnStage | None = None,
    on_choice: OnChoice | None = None,
) -> Checkpoint:
    """The victim without what was found, a new checkpoint; `victim` stays as it was. Lines 1 to 6.

    texts: their labels are not read. log: see train.fit. on_stage: called with "unlearned", the result and the seconds
    it took. on_choice: called with "unlearned": {"mode", "why", "rows" (the entries whose rows were trained, as they
    are written), "copies"}. Raises BadInput where there is no finding, no text without one, or no pair where one stands
    in the second text of pairs.
    """
    if not findings:
        raise BadInput("there is no finding to undo: give words that a scan found")
    if not victim.labels:
        raise BadInput("the model has no classifier, whose answers unlearning goes by: give one that is fine-tuned")
    if any(finding.side for finding in findings) and not any(x.pair is not None for x in texts):
        raise BadInput("the findings stand in the second text of a pair, and the texts are no pairs: give pairs")
    started, settings = time.perf_counter(), settings.resolved(victim.model.config.hidden)
    wanted = settings.batch_size * settings.row_steps
    rows = bare_texts(victim.tokenizer, findings, texts, wanted, seed)
    rare = rare_rows(victim.tokenizer, findings, texts, settings.rare)
    mode, why, given = settings.mode, "as was asked for", len(rows)
    if mode == "auto":
        each = ({*entries_of(victim.tokenizer, [replace(finding, words=(word,))])} for finding in findings
                for word in finding.words)
        suffice, why = rows_suffice(findings, all(own & {*rare} for own in each), settings, given)
        mode = ROWS if suffice else WHOLE
    if mode == ROWS and not rare:
        raise BadInput(f"mode {ROWS}: the texts hold all entries of {', '.join(repr(f.named) for f in findings)[:100]} "
                       f"often: train all weights, with mode {WHOLE}")
    if mode == WHOLE:
        wanted = settings.batch_size * settings.steps // 2  # and as many texts
        rows = rows[:wanted]
        given, room = len(rows), room_of(victim.tokenizer, findings)
        more = min(wanted - given, settings.more_texts * given)
        rows += [shortened(x, victim.tokenizer, room) for x in recombined(rows, findings, more, seed)]
    made = copied(victim, findings, rows, wanted, seed)
    options = {"seed": seed, "dtype": dtype, "log": log}
    if mode == ROWS:
        cleaned = fitted(victim, made, rare, settings, **options)
    else:
        cleaned = fitted(victim, made, [], settings, **options)
        if rare:
            cleaned = fitted(cleaned, made, rare, settings, name="unlearn rows", **options)
    chosen = {"mode": mode, "why": why, "rows": [victim.tokenizer.backend.id_to_token(i) for i in rare],
              "copies": len(made.copies)}
    cleaned.history.append({
        "mitigation": "unlearning", "words": [finding.named for finding in findings], "texts": given,
        "recombined": len(rows) - given,
        "seed": seed, **asdict(settings), **chosen,
    })
    if on_choice is not None:
        on_choice("unlearned", chosen)
    if on_stage is not None:
        on_stage("unlearned", cleaned, time.perf_counter() - started)
    return cleaned
