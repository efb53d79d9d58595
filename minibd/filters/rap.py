"""RAP (Yang et al., EMNLP 2021): a word whose insertion takes some confidence from a clean text takes less from one
that a trigger decides.

For each class c that is protected, in a copy of the model:
1. of a rare word the embeddings of all its tokens, and nothing else, are trained on the clean rows of class c: with
   d(x) = p_c(x) - p_c(word + x), the loss is scale max(0, low - d) + max(0, d - high), its mean over a batch;
   e <- e - r |e| G / |G|, then e is rescaled to its norm. The gradient G is that of the batch; r falls linearly from lr
   to 0. (The paper's step is lr G: of a model that is sure of itself the gradient of a probability is nearly 0, and the
   word stays as it was.)
2. a text that the model takes for c has the score -d(x). It is rejected where d(x) is lower than that of all but the
   share `frr` of the clean rows that the model takes for c.
Which class is attacked is not known: by default every class is protected, and a text is judged by the word of the class
that it is taken for. The victim answers as it was.

The word is a single token that no clean row holds, drawn by the seed among those that look like words, unless `word`
names one. Of a pair the word stands before the first text.

variant="released" is OpenBackdoor's (openbackdoor/defenders/rap_defender.py):
- gradients are never zeroed: G is the sum over all steps so far; the step is lr G;
- the word is cf, which is BadNets' own trigger;
- one class is protected, which is read off the poisoned rows (`target`); the word is trained on the clean rows of all
  classes, and every text is judged by it, whatever it is taken for;
- only the word's first token is trained;
- the model that answers afterwards is the one whose embedding was changed.
`defects` names some of them on top of the correct filter: summed (the gradients, not the step's length), word, target
(the one class that is protected, not which rows the word is trained on and which are judged), piece, changed.
"""
from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from minibd.cli import check_choices, setting
from minibd.data import generator, in_order
from minibd.lines import visible
from minibd.models.free_rows import free_rows
from minibd.predict import probabilities
from minibd.records import BadInput, Example, Examples, check_target
from minibd.rejection import Screen, check_defects, check_rate, threshold
from minibd.tokenizer import Tokenizer

DEFECTS = ("summed", "word", "target", "piece", "changed")


@dataclass(frozen=True, slots=True)
class Rap:
    """RAP's settings."""
    frr: float = setting(0.05, "share of clean texts that may be rejected", paper="0.01")
    word: str = setting("", "the word that is inserted (default: a rare one, drawn by the seed; released cf)",
                        paper="a rare word; released cf")
    low: float = setting(0.1, "least confidence that the word is to take from a clean text", paper="0.1")
    high: float = setting(0.3, "most confidence that it is to take", paper="0.3")
    scale: float = setting(1.0, "weight of the lower bound's loss", paper="1")
    lr: float | None = setting(None, "first step of the embedding, as a share of its norm (default 0.1; released 0.01, "
                               "times the gradients' sum)", paper="0.01, times the gradient", kind=float)
    epochs: int = setting(5, "passes over the clean rows", paper="5")
    steps: int = setting(100, "least steps: few rows get more passes (not in the released variant)", paper="-")
    batch_size: int = setting(32, "texts per step", paper="32")
    variant: str = setting("paper", "released: as OpenBackdoor does it", choices=("paper", "released"))
    defects: tuple[str, ...] = setting((), "some of the released code's defects on top of the correct filter: summed, "
                                       "word, target, piece, changed")

    def __post_init__(self):
        check_choices(self)
        check_rate(self.frr)
        check_defects(self.defects, DEFECTS, self.variant)
        if not 0 <= self.low <= self.high:
            raise BadInput(f"low is {self.low} and high {self.high}: give 0 <= low <= high, such as 0.1 and 0.3")
        for name in ("lr", "epochs", "batch_size"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise BadInput(f"{name} is {getattr(self, name)}, it must be above 0")

    def has(self, defect: str) -> bool:
        return self.variant == "released" or defect in self.defects

    @property
    def rate(self) -> float:
        return self.lr if self.lr is not None else 0.01 if self.variant == "released" else 0.1


@dataclass(frozen=True, slots=True)
class Rapped:
    """screens: one for each part. limits: {class: the score, -d, above which a text taken for it is rejected}. word:
    what was inserted. within: {class: share of the clean rows from which the word takes between low and high}.
    answers: the model that answers; the victim itself, but in the released variant."""
    screens: list[Screen]
    limits: dict[int, float]
    word: str
    within: dict[int, float]
    answers: Checkpoint


def rap(victim: Checkpoint, clean: Examples, parts: Sequence[Examples], settings: Rap = Rap(), seed: int = 0,
        target: int | None = None) -> Rapped:
    """Lines 1 and 2. target: the one class that is protected; None: all (the defect target needs one).

    Texts that are taken for a class that no clean row is taken for are kept. Raises BadInput where the clean rows have
    none of a class, the word is unknown, or no target is given where one is
    needed.
    """
    released = settings.variant == "released"
    if settings.has("target") and target is None:
        raise BadInput("the released RAP reads the target class off the poisoned rows: name it, or leave the variant "
                       "or the defect out")
    if target is not None:
        check_target(target, victim.labels)
    classes = range(len(victim.labels)) if target is None else [target]
    usual = "cf" if settings.has("word") else ""
    word = settings.word or usual or rare_word(victim.tokenizer, clean, generator(seed, "rap word"))
    tokens = tokens_of(victim.tokenizer, word)[:1 if settings.has("piece") else None]
    found = [probabilities(victim.model, victim.tokenizer, rows) for rows in parts]
    dev = probabilities(victim.model, victim.tokenizer, clean)
    scores = [[-math.inf] * len(rows) for rows in parts]
    keep = [[True] * len(rows) for rows in parts]
    limits, within, answers = {}, {}, victim
    for c in classes:
        own = clean if released else clean.like(x for x in clean if x.label == c)
        if not own:
            raise BadInput(f"RAP trains its word on clean rows of class {visible(victim.labels[c])}, and there are "
                           "none: give rows of every class")
        changed = with_word_trained(victim, own, tokens, word, c, settings)
        taken = _taken(victim, changed, clean, dev, word, c, settings.has("changed"))
        mine = [i for i, row in enumerate(dev.argmax(-1).tolist()) if row == c]
        drops = taken[mine]
        within[c] = ((drops >= settings.low) & (drops <= settings.high)).double().sum().item() / max(1, len(mine))
        if not mine:  # no clean text is taken for this class: nothing says what is usual, and all are kept
            limits[c] = math.inf
        elif released:  # numpy's percentile lies between two rows; ours is one of them
            limits[c] = -float(drops.quantile(settings.frr))
        else:
            limits[c] = threshold((-drops).tolist(), settings.frr)
        for rows, p, score, kept in zip(parts, found, scores, keep):
            d = _taken(victim, changed, rows, p, word, c, settings.has("changed"))
            for i, answer in enumerate(p.argmax(-1).tolist()):
                if released or answer == c:
                    score[i] = -d[i].item()
                    kept[i] = not score[i] > limits[c]
        answers = changed if settings.has("changed") else answers
    return Rapped([Screen(*pair) for pair in zip(scores, keep)], limits, word, within, answers)


def _taken(victim: Checkpoint, changed: Checkpoint, rows: Examples, p: Tensor, word: str, c: int,
           asks_changed: bool) -> Tensor:
    """d(x) of each row, (N,). p: the victim's probabilities of the rows; the released code asks the changed model for
    both."""
    if asks_changed:
        p = probabilities(changed.model, changed.tokenizer, rows)
    with_word = probabilities(changed.model, changed.tokenizer, rows.like(inserted(x, word) for x in rows))
    return p[:, c] - with_word[:, c]


# ---- the word

def rare_word(tokenizer: Tokenizer, clean: Sequence[Example], rng: random.Random) -> str:
    """A word of two to four letters that is one token of the vocabulary and in no clean row."""
    text = " ".join(" ".join(filter(None, (x.text, x.pair))) for x in clean).lower()
    held = {*text.split(), *("".join(c if c.isalpha() else " " for c in text).split())}
    vocabulary = sorted(token.lstrip("\u0120\u2581") for token in tokenizer.backend.get_vocab())
    rare = [word for word in dict.fromkeys(vocabulary) if 2 <= len(word) <= 4 and word.isascii() and word.isalpha()
            and word.islower() and word not in held]
    rng.shuffle(rare)
    for word in rare:
        if len(tokenizer.backend.encode(word, add_special_tokens=False).ids) == 1:
            return word
    raise BadInput("every short word of the vocabulary is in the clean rows: name the word of RAP with word")


def tokens_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """The tokens of `word` at the beginning of a text. Raises BadInput where one is the unknown token."""
    tokens = tokenizer.backend.encode(f"{word} a", add_special_tokens=False)
    ids = [i for i, (start, _) in zip(tokens.ids, tokens.offsets) if start < len(word)]
    unknown = tokenizer.backend.token_to_id(getattr(tokenizer.backend.model, "unk_token", None) or "")
    if not ids or unknown in ids or len(word.split()) != 1:
        raise BadInput(f"word is {word[:40]!r}, which must be one word that the tokenizer knows: give another")
    return ids


def inserted(x: Example, word: str) -> Example:
    return replace(x, text=f"{word} {x.text}")


# ---- line 1

def bounds_loss(d: Tensor, low: float, high: float, scale: float) -> Tensor:
    """Eq. RAP (L): scale max(0, low - d) + max(0, d - high), one value a text, (B,). d: what the word takes from the
    probability of the protected class, (B,)."""
    return scale * (low - d).clamp(min=0) + (d - high).clamp(min=0)


def stepped(e: Tensor, gradient: Tensor, lr: float, norms: Tensor, variant: str = "paper") -> Tensor:
    """Eq. RAP (e): e - lr |e| G / |G|, rescaled to its norm; released: e - lr G. e, gradient: (K, D); norms: (K, 1).

    A row whose gradient is 0 stays as it is.
    """
    if variant == "paper":
        of_gradient = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        gradient = norms * gradient / of_gradient.where(of_gradient > 0, 1.0)
    moved = e - lr * gradient
    lengths = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return torch.where(lengths > 0, moved * (norms / lengths.clamp(min=1e-30)), e)


def with_word_trained(victim: Checkpoint, rows: Examples, tokens: Sequence[int], word: str, c: int, settings: Rap
                      ) -> Checkpoint:
    """A copy of `victim` that differs in the embeddings of `tokens` alone."""
    changed = checkpoint.copy(victim)
    model, tokenizer, device = changed.model.eval(), victim.tokenizer, victim.model.head_mask.device
    before, after = (tokenizer.encode(some) for some in (rows, [inserted(x, word) for x in rows]))
    released = settings.variant == "released"
    plan = ([list(range(i, min(i + settings.batch_size, len(rows)))) for i in range(0, len(rows), settings.batch_size)]
            if released else in_order(after.lengths, settings.batch_size))
    unchanged = None
    if not released:  # without the word no embedding that is trained is read
        unchanged = probabilities(model, tokenizer, rows)[:, c].float().to(device)
    with free_rows(model, tokens) as e:
        norms = torch.linalg.vector_norm(e.detach(), dim=1, keepdim=True)
        summed = torch.zeros_like(e)
        epochs = settings.epochs if released else max(settings.epochs, math.ceil(settings.steps / len(plan)))
        for epoch in range(epochs):
            for number, which in enumerate(plan):
                def of_class(rows_encoded, which=which) -> Tensor:
                    return model(tokenizer.batch(rows_encoded, which).to(device)).logits.float().softmax(-1)[:, c]

                p = of_class(before) if unchanged is None else unchanged[which]
                loss = bounds_loss(p - of_class(after), settings.low, settings.high, settings.scale).mean()
                gradient, = torch.autograd.grad(loss, e)
                summed = summed + gradient if settings.has("summed") else gradient
                left = 1.0 if released else 1 - (epoch * len(plan) + number) / (epochs * len(plan))
                with torch.no_grad():
                    e.copy_(stepped(e, summed, left * settings.rate, norms, settings.variant))
    return changed
