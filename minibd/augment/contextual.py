"""CWEA: words that a masked language model finds likely, in place of some words or before them (Kobayashi, 2018; as
nlpaug does it).

1. n counts the words and marks of a text, as the model's tokenizer separates them, but with the combining marks and
   joiners of a word in it (words.py), where that cuts them off or leaves them out; eligible are those with a letter or
   a digit, and for an insertion those of them after a blank or at the start.
2. n_target = min(eligible, clip(ceil(rate n), min_targets, max_targets)) of them are drawn without replacement.
3. each target, from the last to the first, is masked, whole (action "insert": a mask is put before it), and the word
   for the mask drawn from the top_k likeliest words in proportion to their probabilities. The model already reads the
   words drawn before, further on in the text.

What is drawn is a whole word: no special token, no token inside a word, no mark, nothing without a letter or a digit,
and never the word that it replaces. It takes that word's capitals; the rest of the text is unchanged, and so is a text
without words. What lies beyond the model's length is neither counted nor changed.

variant="released" draws as nlpaug does: ten of the top_k without replacement, in proportion, then one of the ten,
uniformly. One departure from it: the top_k are counted among whole words, not among all tokens.

All texts take their steps together, in batches of texts of similar length, and the language-model head runs on masked
places alone. A text's draws are its own generator's. The other texts of a batch move the probabilities by rounding
only, some 1e-6.
"""
from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import Encoding
from tokenizers.models import WordPiece

from minibd.augment.eda import in_case_of
from minibd.data import in_order
from minibd.models.cast_once import only_asked
from minibd.models.encoder import Encoder
from minibd.records import BadInput
from minibd.tokenizer import Encoded, Tokenizer
from minibd.words import belongs_to_letter, spans
from minibd.words import tokens as words_and_marks


@dataclass(frozen=True, slots=True)
class Target:
    """A word to be masked: its tokens are ids[first:end], its characters text[start:stop]."""
    first: int
    end: int
    start: int
    stop: int


def contextual(
    text: str, rng: random.Random, model: Encoder, tokenizer: Tokenizer, *, budget: int | None = None, **more
) -> str:
    """`text` rewritten alone, as `each_contextual` rewrites it among others, which is faster for many.

    budget: n_target, for example split.budget(text); None: by line 2 above. more: the other arguments of
    `each_contextual`. Raises the same errors.
    """
    return each_contextual([text], [rng], model, tokenizer, budgets=None if budget is None else [budget], **more)[0]


@torch.inference_mode()
def each_contextual(
    texts: Sequence[str], rngs: Sequence[random.Random], model: Encoder, tokenizer: Tokenizer, *,
    action: str = "substitute", top_k: int = 100, rate: float = 0.3, min_targets: int = 1, max_targets: int = 10,
    budgets: Sequence[int] | None = None, variant: str = "paper", batch_size: int = 64,
    dtype: torch.dtype = torch.float32,
) -> list[str]:
    """Each of `texts` with some words substituted, or some inserted, by the masked language model `model` and its
    tokenizer.

    rngs: a generator for each text. action: "substitute" or "insert". rate, min_targets, max_targets: see above.
    budgets: n_target for each text instead, for example split.budget(text). variant: "paper" or "released". Raises
    BadInput where `model` is no masked language model.
    """
    if action not in ("substitute", "insert") or variant not in ("paper", "released"):
        raise ValueError(f"action={action!r}, variant={variant!r}: 'substitute' or 'insert', 'paper' or 'released'")
    if len(rngs) != len(texts) or budgets is not None and len(budgets) != len(texts):
        raise ValueError(f"{len(texts)} texts need as many generators and budgets")
    mask, words = mask_of(model, tokenizer), whole_words(model, tokenizer)
    model.eval()
    device = model.head_mask.device
    no_word = torch.ones(model.config.vocab, dtype=torch.bool, device=device)  # (V,)
    no_word[list(words)] = False
    tokens_of: dict[str, list[int]] = {}  # a word in lower case -> its tokens, whatever their case
    for i, word in words.items():
        tokens_of.setdefault(word.lower(), []).append(i)

    augmented, ids, targets = list(texts), [], []
    for i, encoding in enumerate(tokenizer.backend.encode_batch(augmented)):
        n, eligible = find_targets(augmented[i], encoding, action)
        n_target = max(min_targets, min(max_targets, math.ceil(rate * n))) if budgets is None else budgets[i]
        ids.append(encoding.ids)
        drawn = rngs[i].sample(eligible, min(n_target, len(eligible)))
        targets.append(sorted(drawn, key=lambda target: target.first, reverse=True))

    with only_asked(dtype, model):
        for step in range(max(map(len, targets), default=0)):
            active = [i for i in range(len(augmented)) if step < len(targets[i])]
            for i in active:
                target = targets[i][step]
                ids[i][target.first:target.end if action == "substitute" else target.first] = [mask]
                if len(ids[i]) > tokenizer.max_len:
                    del ids[i][-2]  # the token before the closing one: it is after the mask
            rows = Encoded([ids[i] for i in active], [[0] * len(ids[i]) for i in active], [0] * len(active))
            for which in in_order(rows.lengths, batch_size):
                batch = tokenizer.batch(rows, which)
                at = torch.tensor([targets[active[row]][step].first for row in which])  # (B,)
                masked = torch.arange(batch.ids.shape[1]) == at[:, None]  # (B, T), one True a row
                logits = model.predict_tokens(batch.to(device), masked.to(device)).float()  # (B, V)
                logits.masked_fill_(no_word, -math.inf)
                if action == "substitute":
                    for j, row in enumerate(which):
                        replaced = word_at(augmented[active[row]], targets[active[row]][step])
                        logits[j, tokens_of.get(replaced.lower(), [])] = -math.inf
                values, candidates = logits.topk(min(top_k, len(words)))
                for row, probabilities, tokens in zip(which, values.double().softmax(1).tolist(), candidates.tolist()):
                    i, target = active[row], targets[active[row]][step]
                    ids[i][target.first] = token = draw(tokens, probabilities, rngs[i], variant)
                    old, new = word_at(augmented[i], target), words[token]
                    new = in_case_of(old, new) if action == "substitute" else f"{new} {old}"
                    augmented[i] = augmented[i][:target.start] + new + augmented[i][target.stop:]
    return augmented


def find_targets(text: str, encoding: Encoding, action: str) -> tuple[int, list[Target]]:
    """How many words and marks the model reads of `text`, and those that may be targets."""
    found: dict[int, Target] = {}
    for at, (word, (start, stop)) in enumerate(zip(encoding.word_ids, encoding.offsets)):
        if word is not None:
            first = found.get(word, Target(at, at, start, stop))
            found[word] = Target(first.first, at + 1, first.start, stop)
    targets = []
    for target in found.values():
        # some byte-level tokenizers count the blank to the word
        blanks = len(word_at(text, target)) - len(word_at(text, target).lstrip())
        targets.append(replace(target, start=target.start + blanks))
    if not text.isascii():
        targets = with_marks(text, targets)
    if encoding.overflowing:
        targets.pop()  # the last word read may continue beyond
    eligible = [target for target in targets if any(map(str.isalnum, word_at(text, target)))]
    if action == "insert":  # not into don't or well-made
        eligible = [target for target in eligible if target.start == 0 or text[target.start - 1].isspace()]
    return len(targets), eligible


def with_marks(text: str, targets: Sequence[Target]) -> list[Target]:
    """`targets`, those joined that a byte-level tokenizer separates at a mark or joiner, each with the marks behind it
    that a tokenizer strips."""
    inside = {i for start, stop in spans(text) for i in range(start + 1, stop)}  # where a cut would be in a word
    joined: list[Target] = []
    for target in targets:
        at = target.start
        if joined and at in inside and (belongs_to_letter(text[at]) or belongs_to_letter(text[at - 1])):
            joined[-1] = replace(joined[-1], end=target.end, stop=max(joined[-1].stop, target.stop))
        else:
            joined.append(target)
    for i, target in enumerate(joined):
        stop = target.stop
        while stop in inside and belongs_to_letter(text[stop]):
            stop += 1
        joined[i] = replace(target, stop=stop)
    return joined


def word_at(text: str, target: Target) -> str:
    return text[target.start:target.stop]


def draw(tokens: Sequence[int], probabilities: Sequence[float], rng: random.Random, variant: str) -> int:
    """One of `tokens`, drawn by their probabilities (see the head of the file for "released")."""
    # In the order of the tokens, not of the probabilities: rounding can swap two that are nearly equal.
    weighted = sorted((token, p) for token, p in zip(tokens, probabilities) if p > 0)
    if variant == "released":
        # Without replacement, in proportion: the largest of u^(1 / p), u uniform (Efraimidis and Spirakis, 2006).
        keys = [(math.log(1 - rng.random()) / p, token) for token, p in weighted]
        return rng.choice(sorted(token for _, token in heapq.nlargest(10, keys)))
    return rng.choices([token for token, _ in weighted], [p for _, p in weighted])[0]


def mask_of(model: Encoder, tokenizer: Tokenizer) -> int:
    """The token that stands for a hidden word. Raises BadInput where `model` has none, or reads from left to right."""
    known = [i for i in map(tokenizer.backend.token_to_id, ("[MASK]", "<mask>")) if i is not None]
    if model.causal or not known:
        raise BadInput(
            "this checkpoint is no masked language model: contextual substitution needs one, such as a BERT saved with "
            "its MLM head"
        )
    return known[0]


def whole_words(model: Encoder, tokenizer: Tokenizer) -> dict[int, str]:
    """{token id: word} of the tokens that are words: letters and digits alone, with their marks, and nothing that
    continues a word."""
    backend, special = tokenizer.backend, tokenizer.special
    if isinstance(backend.model, WordPiece):
        words = {i: token for token, i in backend.get_vocab().items()}
    else:  # a byte-level token, which begins a word where it begins with a blank
        words = {
            i: backend.decode([i]).strip() for token, i in backend.get_vocab().items() if token.startswith("\u0120")
        }
    words = {i: word for i, word in sorted(words.items()) if i not in special and i < model.config.vocab
             and (word.isalnum() or word[:1].isalnum() and "_" not in word and words_and_marks(word) == [word])}
    if len({word.lower() for word in words.values()}) < 2:
        raise BadInput(
            f"the tokenizer has {len(words)} whole words among its tokens, contextual substitution needs two: use "
            "another"
        )
    return words
