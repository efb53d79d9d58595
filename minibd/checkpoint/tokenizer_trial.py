"""A stranger's tokenizer, tried before it is used: its library panics, fills the memory or never ends on some.

`check_tokenizer` looks at the JSON first: of the steps that nearly every checkpoint has, whatever they are set to, each
is known to be harmless, and nothing more is done. A tokenizer with another (an expression, a map in bytes, a text that
a step makes longer) is loaded and run on some texts in a process of its own, which may compute for SECONDS and hold
MEMORY: that is this file, started as a script, which imports the tokenizers library and nothing of minibd. What it
cannot show is that no other text would make the tokenizer hang.
"""
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import lru_cache

SECONDS = 10                              # of the processor; three times as many of the clock
MEMORY = 1 << 29                          # bytes, beside those that the JSON itself takes
GROWTH = 64                               # times as long as it was a text may become by harmless steps
NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents", "Strip", "Nmt", "ByteLevel"}
PRE_TOKENIZERS = {
    "BertPreTokenizer", "ByteLevel", "Whitespace", "WhitespaceSplit", "Punctuation", "Digits", "UnicodeScripts",
    "Metaspace", "CharDelimiterSplit",
}
DECODERS = {"WordPiece", "ByteLevel", "Metaspace", "BPEDecoder", "CTC", "Fuse", "Strip", "ByteFallback"}
# Expressions that large checkpoints share: GPT-2's, Llama 3's and Qwen 2's.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
KNOWN = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _WORDS + r"\p{N}{1,3}" + _REST,
    _WORDS + r"\p{N}" + _REST,
}
SENTENCE = "The film wasn't bad, it cost $1,234,567.89 (really!) 漢字 é \U0001f600 don't."
TEXTS = (
    "", "a", " ", SENTENCE, "a" * 3000, f"{SENTENCE} " * 40, f"{'a' * 60}!", "x" * 3000, " " * 3000, "7" * 3000,
    "ab" * 1500, "\n\t\r " * 500, "é" * 1000, "漢" * 1000, "\u0301" * 500, "".join(map(chr, range(32, 1500))),
    "[UNK] <s>",
)


# ---- what is wrong, or may be

def wrong(state: object, vocab: int) -> str:
    """What a tokenizer's JSON says that its library, or a model of `vocab` tokens, stumbles over; "" where nothing
    does."""
    if not isinstance(state, dict) or not isinstance(model := state.get("model"), dict):
        return ""                         # which the library refuses
    words, kind = model.get("vocab"), model.get("type")
    unknown = model.get("unk_token")
    if not isinstance(unknown, (str, type(None))):
        return f"its unknown token is {unknown!r:.40}, and no text"
    if kind in ("WordPiece", "WordLevel") and isinstance(words, dict) and unknown not in words:
        return f"its vocabulary lacks the unknown token {unknown!r}, which every unknown word needs"
    if kind == "BPE" and unknown is not None and isinstance(words, dict) and unknown not in words:
        return f"its vocabulary lacks the unknown token {unknown!r}"
    if kind == "BPE" and isinstance(words, dict) and not model.get("continuing_subword_prefix") and (
        lacking := lacking_merge(words, model.get("merges"))
    ):
        return f"its merges make {lacking!r:.40}, which its vocabulary lacks"
    if kind == "BPE" and model.get("dropout"):
        return f"it leaves out merges at random (dropout {model['dropout']!r}), so that a text has no ids of its own"
    if kind == "Unigram" and isinstance(words, list) and not (
        type(model.get("unk_id")) is int and 0 <= model["unk_id"] < len(words)
    ):
        return f"its unknown token {model.get('unk_id')!r} is none of its {len(words)} tokens"
    if any(step.get("type") == "Prepend" and not step.get("prepend")
           for step in steps(state.get("normalizer"), "normalizers")):
        return "its normalizer puts an empty text before each text"
    for step in steps(state.get("post_processor"), "processors"):
        known = step.get("special_tokens")
        for name in _named(step):
            if not isinstance(known, dict) or name not in known:
                return f"it puts {name!r:.40} around a text, and says no token of that name"
        for token in _around(step):
            if type(token) is int and token >= vocab:
                return f"it puts the token {token} around a text, and the model has {vocab}"
    return ""


def lacking_merge(vocab: dict, merges: object) -> str | None:
    """The first token that the `merges` of a BPE make and its `vocab` lacks: the library panics on one that is longer
    than all others."""
    for merge in merges if isinstance(merges, Iterable) else ():
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair) and (
            (made := pair[0] + pair[1]) not in vocab
        ):
            return made
    return None


def _named(step: dict) -> Iterator[str]:
    """The names of the tokens in a post-processor's templates."""
    for form in (step.get("single"), step.get("pair")):
        for part in form if isinstance(form, list) else ():
            token = part.get("SpecialToken") if isinstance(part, dict) else None
            if isinstance(token, dict) and isinstance(token.get("id"), str):
                yield token["id"]


def _around(step: dict) -> Iterator[object]:
    """The ids of the tokens that a post-processor puts around a text."""
    for key in ("sep", "cls"):
        if isinstance(pair := step.get(key), list):
            yield from pair
    if isinstance(tokens := step.get("special_tokens"), dict):
        for token in tokens.values():
            if isinstance(token, dict) and isinstance(token.get("ids"), list):
                yield from token["ids"]


def types(state: dict) -> int:
    """One more than the largest type id that a post-processor gives a token."""
    largest = 0
    for step in steps(state.get("post_processor"), "processors"):
        for form in (step.get("single"), step.get("pair")):
            for part in form if isinstance(form, list) else ():
                for held in part.values() if isinstance(part, dict) else ():
                    if isinstance(held, dict) and type(held.get("type_id")) is int:
                        largest = max(largest, held["type_id"])
    return largest + 1


def is_harmless(state: object) -> bool:
    """Whether every step of a tokenizer's JSON is one that ends, and soon, whatever the text."""
    if not isinstance(state, dict) or not isinstance(model := state.get("model"), dict):
        return True                       # the library refuses it before it computes anything
    added = state.get("added_tokens") or []
    return (
        str(model.get("type")) in ("WordPiece", "BPE", "WordLevel") and isinstance(added, list) and len(added) < 10_000
        and not (model.get("type") == "BPE" and model.get("continuing_subword_prefix"))
        and all(isinstance(token, dict) and token.get("content") for token in added)
        and all(len(str(model.get(key) or "")) < 20 for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        and _growth(steps(state.get("normalizer"), "normalizers")) <= GROWTH
        and all(step.get("type") in PRE_TOKENIZERS or _is_known(step)
                for step in steps(state.get("pre_tokenizer"), "pretokenizers"))
        and all(step.get("type") in DECODERS or "String" in (step.get("pattern") or ())
                for step in steps(state.get("decoder"), "decoders"))
    )


def _growth(normalizers: Iterator[dict]) -> float:
    """By how many times the steps can make a text longer; infinity where that is not known."""
    grown = 1.0
    for step in normalizers:
        pattern, content = step.get("pattern"), step.get("content")
        if step.get("type") == "Replace" and isinstance(pattern, dict) and isinstance(content, str) and isinstance(
            pattern.get("String"), str
        ) and pattern["String"]:
            grown *= max(1.0, len(content) / len(pattern["String"]))
        elif step.get("type") == "Prepend" and isinstance(step.get("prepend"), str):
            grown += len(step["prepend"])
        elif step.get("type") not in NORMALIZERS:
            return float("inf")
    return grown


def _is_known(step: dict) -> bool:
    pattern = step.get("pattern")
    return step.get("type") == "Split" and isinstance(pattern, dict) and (
        str(pattern.get("Regex")) in KNOWN or bool(pattern.get("String")))


def steps(part: object, inner: str) -> Iterator[dict]:
    """A part of the JSON, or those in its sequence, one by one; what is none has no type."""
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get(inner), list):
        for step in part[inner]:
            yield from steps(step, inner)
    elif part is not None:
        yield part if isinstance(part, dict) and isinstance(part.get("type"), str) else {}


# ---- the child

@lru_cache(maxsize=8)
def tried(source: str) -> tuple[str, int]:
    """("", the largest id that the tokenizer of the JSON `source` gave a text), or what became of it and 0."""
    settings = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "RUST_BACKTRACE": "0"}
    try:
        done = subprocess.run(
            [sys.executable, os.path.abspath(__file__)], input=source.encode("utf-8", "surrogatepass"),
            capture_output=True, timeout=3 * SECONDS, env={**os.environ, **settings},
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {3 * SECONDS} s", 0
    except OSError as error:
        return f"no process could be started for it ({error.strerror})", 0
    said = done.stdout.decode("utf-8", "replace").strip()
    if done.returncode == 0 and said.isdecimal():
        return "", int(said)
    words = done.stderr.decode("utf-8", "replace")
    if done.returncode in (-24, -9):      # SIGXCPU, SIGKILL
        return f"it did not end within {SECONDS} s of computing", 0
    if "memory allocation of" in words or "MemoryError" in words:
        return f"it needs more than {MEMORY >> 20} MB", 0
    lines = [line for line in words.splitlines() if line.strip() and not line.startswith(("note:", "thread "))]
    return f"it fails: {lines[-1].strip() if lines else f'status {done.returncode}'}"[:160], 0


def _limit(size: int) -> None:
    """Sets this process's limits, where the system has any."""
    try:
        import resource
    except ImportError:
        return
    memory = MEMORY + 40 * size
    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_CORE, 0)):
        most = resource.getrlimit(limit)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))


def _letters(state: object) -> list[str]:
    """Texts of the letters that the tokenizer's expressions name, over and over."""
    found = json.dumps(state)
    expressions = [part.split('"')[0] for part in found.split('"Regex": "')[1:]]
    letters = sorted({letter for expression in expressions[:20] for letter in expression[:200] if letter.isalnum()})
    return [text for letter in letters[:30] for text in (letter * 40 + "!", letter * 2000)]


def main() -> None:
    source = sys.stdin.buffer.read()
    _limit(len(source))
    from tokenizers import Tokenizer

    text = source.decode("utf-8", "surrogatepass")
    tokenizer, largest = Tokenizer.from_str(text), 0
    tokenizer.no_padding()
    tokenizer.no_truncation()
    state = json.loads(text)
    state.pop("model", None)
    for text in (*TEXTS, *_letters(state)):
        for pair in ((text,), (text, "a pair")):
            largest = max([largest, *tokenizer.encode(*pair).ids])
    Tokenizer.from_str(tokenizer.to_str())
    print(largest)


if __name__ == "__main__":
    main()
