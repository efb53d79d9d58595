"""A folder's tokenizer, put together from its files as transformers 5 does it, or refused.

The class that tokenizer_config.json (else config.json, else the architecture) names decides what tokenizer.json is for:
PreTrainedTokenizerFast takes it as it is; BERT's, RoBERTa's, GPT-2's and Llama's own classes take its vocabulary, its
merges and (the last two) its special tokens' places, and build the rest from tokenizer_config.json. Then the tokens
of added_tokens_decoder are added, or, where that key is missing, those of special_tokens_map.json, added_tokens.json
and tokenizer.json; then every token with a purpose that is not among them.
Source: transformers 5.23, tokenization_utils_base.py (_from_pretrained), tokenization_utils_tokenizers.py.
"""
from __future__ import annotations

import base64
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import BPE, Unigram, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer, Precompiled
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from minibd.checkpoint.header import (
    Checkpoint,
    check_ends,
    hf_mapping_of,
    library_errors,
    parse_json,
    parse_tokenizer,
    read_text,
)
from minibd.checkpoint.tokenizer_trial import lacking_merge
from minibd.lines import as_json, listed, one_line, shown, visible
from minibd.models.encoder import HFMapping
from minibd.records import BadInput
from minibd.tokenizer import Settings, Tokenizer

TOKENIZER_FILES = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json", "vocab.txt",
    "vocab.json", "merges.txt",
)
# A special token's purposes, in the order in which tokens that a vocabulary lacks are added to it.
PURPOSES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Keys of tokenizer_config.json that put another vocabulary or another step in place of the files'.
REPLACING = (
    "vocab", "merges", "init_inputs", "post_processor", "tokenizer_object", "tokenizer_truncation",
    "tokenizer_padding", "model_specific_special_tokens", "gguf_file",
)
SENTENCEPIECE = ("tokenizer.model", "sentencepiece.bpe.model")  # vocabularies of a library that is none of ours
SIDES = ("right", "left")
# The tokens that a tokenizer may have for each purpose; where no file names one, the first that it has.
SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"), "sep_token": ("[SEP]", "</s>"), "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
CAUSAL_SPECIAL = {
    "unk_token": ("<unk>",), "bos_token": ("<|begin_of_text|>", "<s>", "<|endoftext|>"),
    "eos_token": ("<|end_of_text|>", "</s>", "<|endoftext|>"),
}
NEEDED = ("unk_token", "cls_token", "sep_token")  # BERT's and RoBERTa's tokens cannot be read without them
BOTH_ENDS = ("bos_token", "eos_token")            # nor XLM-R's without these


@dataclass(frozen=True, slots=True)
class TokenizerClass:
    """One of transformers' classes. model: the model it builds from a vocabulary, None where it takes tokenizer.json as
    it is. special: the tokens that it has where no file names others. type_ids: whether it hands out the type ids of
    pairs. padding_side: where no file says it. normalized: its special tokens are looked for in the normalised text,
    and the mask takes the blank before it along."""

    model: type | None = None
    special: tuple[tuple[str, str], ...] = ()
    type_ids: bool = False
    padding_side: str = "right"
    normalized: bool = False


BERT = TokenizerClass(WordPiece, (
    ("unk_token", "[UNK]"), ("sep_token", "[SEP]"), ("pad_token", "[PAD]"), ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
), type_ids=True)
ROBERTA = TokenizerClass(BPE, (
    ("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"), ("sep_token", "</s>"),
    ("pad_token", "<pad>"), ("cls_token", "<s>"), ("mask_token", "<mask>"),
))
GPT2 = TokenizerClass(BPE, (
    ("bos_token", "<|endoftext|>"), ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"),
))
LLAMA = TokenizerClass(
    BPE, (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")), padding_side="left"
)
MPNET = TokenizerClass(WordPiece, (*ROBERTA.special[:2], ("unk_token", "[UNK]"), *ROBERTA.special[3:]), normalized=True)
XLM_ROBERTA = TokenizerClass(Unigram, ROBERTA.special)
QWEN2 = TokenizerClass(BPE, (
    ("eos_token", "<|endoftext|>"), ("unk_token", "<|endoftext|>"), ("pad_token", "<|endoftext|>"),
))
QWEN2_WORDS = (  # what Qwen2's class splits a text into before the merges
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
AS_IT_IS = TokenizerClass()
CLASSES = {                               # by their names without "Fast"
    "BertTokenizer": BERT, "ElectraTokenizer": BERT,
    "DistilBertTokenizer": TokenizerClass(WordPiece, BERT.special),
    "RobertaTokenizer": ROBERTA, "BartTokenizer": ROBERTA, "LongformerTokenizer": ROBERTA,
    "GPT2Tokenizer": GPT2, "LlamaTokenizer": LLAMA, "MPNetTokenizer": MPNET, "XLMRobertaTokenizer": XLM_ROBERTA,
    "Qwen2Tokenizer": QWEN2,
    "PreTrainedTokenizer": AS_IT_IS, "TokenizersBackend": AS_IT_IS,
}


def read_tokenizer(path: Path, mapping: HFMapping, hf_config: dict, config: object) -> Tokenizer:
    """The tokenizer of the folder `path`, whose config.json holds `hf_config`. Raises BadInput."""
    file = path / "tokenizer_config.json"
    values = _read_values(file)
    _check_values(file, values)
    kind = _class_of(path, mapping, hf_config, values)
    whole = path / "tokenizer.json"
    source = parse_tokenizer(whole, read_text(whole), config) if whole.is_file() else None
    if source is not None:                # its places for the ends of a text are kept
        values.pop("add_bos_token", None)
        values.pop("add_eos_token", None)
    tokens = _collect_tokens(path, kind, values, source)
    where = whole if source is not None else file
    with library_errors(where):
        if source is None:
            backend = _from_vocabulary(path, kind, values, tokens, config)
        elif kind.model is None:
            backend = source
        else:
            backend = _rebuilt(whole, kind, values, tokens, source)
        _add_tokens(path, backend, tokens)
        if kind is QWEN2:                 # its class adds them once more, without their flags
            backend.add_tokens([AddedToken(str(token), special=True)
                                for token in [*tokens.special.values(), *tokens.more]])
        _set_ends(file, backend, kind, values, tokens, source)
    backend = parse_tokenizer(where, backend.to_str(), config)
    tokenizer = Tokenizer(
        backend, _max_len(file, values, config), config.pad, _settings(file, kind, values, tokens, source, config)
    )
    check_ends(where, tokenizer, config)
    return tokenizer


# ---- what the files say

def _read_values(file: Path) -> dict:
    return parse_json(file, read_text(file), dict) if file.is_file() else {}


def _refused(file: Path, key: str, value: object, why: str) -> BadInput:
    return BadInput(f"{file}: {key} is {as_json(value)}, {why}")


def _check_values(file: Path, values: dict) -> None:
    """Raises BadInput on a key that changes ids in a way that is not known here."""
    for key in REPLACING:
        if values.get(key):
            raise _refused(file, key, values[key], "which is not known here: save the tokenizer with transformers")
    if any(name not in (None, "tokenizer.json") for name in _entries(values.get("fast_tokenizer_files"))):
        raise _refused(file, "fast_tokenizer_files", values["fast_tokenizer_files"],
                       "only tokenizer.json is read here: save it again")
    if any(_entries(values.get("auto_map"))):
        raise _refused(file, "auto_map", values["auto_map"],
                       "code of the checkpoint's own, which is never run here: delete it")
    for key in ("truncation_side", "padding_side"):
        if values.get(key, "right") not in SIDES:
            raise _refused(file, key, values[key], 'only "right" and "left" are known: correct it')
    for key in ("add_bos_token", "add_eos_token", "split_special_tokens", "do_lower_case", "tokenize_chinese_chars"):
        if not isinstance(values.get(key, False), bool):
            raise _refused(file, key, values[key], "only true and false are known: correct it")
    for key in ("strip_accents", "add_prefix_space", "legacy"):
        if not isinstance(values.get(key), (bool, type(None))):
            raise _refused(file, key, values[key], "only true and false are known: correct it")


def _entries(value: object) -> list:
    """The values of a JSON object, the elements of a list, or the value alone."""
    return list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]


def _class_of(path: Path, mapping: HFMapping, hf_config: dict, values: dict) -> TokenizerClass:
    """The class that transformers takes; the architecture's own for a vocabulary without tokenizer.json. Raises
    BadInput."""
    named = next(((path / file, content["tokenizer_class"])
                  for file, content in (("tokenizer_config.json", values), ("config.json", hf_config))
                  if content.get("tokenizer_class") and not mapping.always_tokenizer), (path, mapping.tokenizer))
    name = str(named[1]).removesuffix("Fast")
    if name not in CLASSES:
        raise _refused(named[0], "tokenizer_class", named[1], "it is none of the architectures that are known here: "
                       "save it as PreTrainedTokenizerFast")
    whole = path / "tokenizer.json"
    if name == "LlamaTokenizer" and whole.is_file() and '"ByteLevel"' in read_text(whole):
        return AS_IT_IS                   # Llama 3's, which that class cannot build
    kind = CLASSES[name]
    return kind if kind.model or whole.is_file() else CLASSES[mapping.tokenizer.removesuffix("Fast")]


def _normalized(key: str, token: str | AddedToken) -> AddedToken:
    """A special token as MPNet's class makes it from its name."""
    return AddedToken(token, lstrip=key == "mask_token") if isinstance(token, str) else token


def _max_len(file: Path, values: dict, config: object) -> int:
    """The limit of a text's tokens: tokenizer_config.json's, at most the model's. Often 10^30, which means "unknown".
    """
    key = "model_max_length" if "model_max_length" in values else "max_len"
    limit = values.get(key)
    if limit is None:
        return config.max_len
    if type(limit) not in (int, float) or not limit >= 3 or limit < 10 ** 9 and limit != int(limit):
        raise _refused(file, key, limit, "not a whole number from 3: correct it")
    return int(min(limit, config.max_len))


def _settings(
    file: Path, kind: TokenizerClass, values: dict, tokens: Tokens, source: BackendTokenizer | None, config: object
) -> Settings:
    inputs = values.get("model_input_names", ["input_ids", "token_type_ids", "attention_mask"] if kind.type_ids else
                        ["input_ids", "attention_mask"])
    if not isinstance(inputs, list) or not {"input_ids", "attention_mask"} <= set(map(str, inputs)):
        raise _refused(file, "model_input_names", inputs, "input_ids and attention_mask must be among them: add them")
    truncation, padding = (source and source.truncation) or {}, (source and source.padding) or {}
    return Settings(
        truncation_side=values.get("truncation_side", truncation.get("direction", "right")),
        padding_side=values.get("padding_side", padding.get("direction", kind.padding_side)),
        # A model of one type of text is told nothing, whatever the names say.
        type_ids="token_type_ids" in inputs or getattr(config, "type_vocab_size", 1) <= 1,
        split_special=values.get("split_special_tokens", False),
        special=tuple((key, str(tokens.special[key])) for key in PURPOSES if key in tokens.special),
    )


# ---- the tokens beside the vocabulary

@dataclass(frozen=True, slots=True)
class Tokens:
    """added: id -> token of those that the files add by their id. special: purpose -> token, in the order in which
    missing ones are added. more: special tokens without a purpose."""

    added: dict[int, AddedToken]
    special: dict[str, str | AddedToken]
    more: list[str | AddedToken]


def _collect_tokens(path: Path, kind: TokenizerClass, values: dict, source: BackendTokenizer | None) -> Tokens:
    """All tokens that the files name. Raises BadInput."""
    file = path / "tokenizer_config.json"
    values = dict(values)
    if "additional_special_tokens" in values and not values.get("extra_special_tokens"):
        values["extra_special_tokens"] = values.pop("additional_special_tokens")
    if not isinstance(values.get("extra_special_tokens"), (list, dict, type(None))):
        raise _refused(file, "extra_special_tokens", values["extra_special_tokens"], "not a list of tokens: correct it")
    named: dict[str, object] = {}          # purposes of the checkpoint's own, which some multi-modal ones have
    if isinstance(values.get("extra_special_tokens"), dict):
        named = values.pop("extra_special_tokens")
    added: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        for i, token in _object(file, "added_tokens_decoder", values["added_tokens_decoder"]).items():
            key = f"added_tokens_decoder[{visible(i, 20)}]"
            if not isinstance(token, dict):
                raise _refused(file, key, token, "not a token: correct it")
            added[_id(file, i)] = _token(file, key, token)
    else:
        named |= _merge_special_tokens_map(path / "special_tokens_map.json", values)
        added = _read_added_tokens(path / "added_tokens.json", values)
        if source is not None:
            added |= source.get_added_tokens_decoder()
    known = {token.content: token for token in added.values()}
    special = {key: token for key, token in kind.special}
    own = {key: value for key, value in values.items()
           if key.endswith("_token") and key not in PURPOSES and isinstance(value, (str, dict, AddedToken))}
    for key, value in {**{key: values[key] for key in PURPOSES if key in values}, **own, **named}.items():
        if value is None and key in dict(kind.special) and key in (BOTH_ENDS if kind is XLM_ROBERTA else NEEDED) and (
            kind not in (GPT2, LLAMA, QWEN2)
        ):
            raise _refused(file, key, None, "and its tokenizer_class needs one: name a token")
        special.pop(key, None)
        if value is not None:
            special[key] = _token(file, key, value)
    padding = (source.padding if source is not None else None) or {}
    if padding and "pad_token" not in values and kind in (AS_IT_IS, LLAMA):
        special["pad_token"] = padding["pad_token"]
    order = [*PURPOSES, *(key for key in special if key not in PURPOSES)]
    if kind.normalized:
        special |= {key: _normalized(key, token) for key, token in special.items() if key in PURPOSES}
    more = values.get("extra_special_tokens", values.get("additional_special_tokens")) or []
    if not isinstance(more, list):
        raise _refused(file, "extra_special_tokens", more, "not a list of tokens: correct it")
    return Tokens(
        added, {key: known.get(str(special[key]), special[key]) for key in order if key in special},
        [_token(file, "extra_special_tokens", token) for token in more],
    )


def _merge_special_tokens_map(file: Path, values: dict) -> dict[str, object]:
    """special_tokens_map.json's entries into `values`, where they win; the purposes of the checkpoint's own."""
    for key, value in _read_values(file).items():
        if not key.endswith(("_token", "_special_tokens")):
            raise _refused(file, key, value, "which is no special token: move it to tokenizer_config.json")
        if key.endswith("_special_tokens") and not isinstance(value, (list, dict, type(None))):
            raise _refused(file, key, value, "not a list of tokens: correct it")
        if isinstance(value, dict) and key != "extra_special_tokens":
            value = _token(file, key, value | {"__type": "AddedToken", "special": True})
        elif key == "extra_special_tokens" and isinstance(value, list):
            held = list(values.get("extra_special_tokens") or [])
            new = (_token(file, key, token | {"__type": "AddedToken", "special": True}) if isinstance(token, dict)
                   else token for token in value)
            value = held + [token for token in new if token not in held]
        values[key] = value
    return values.pop("extra_special_tokens") if isinstance(values.get("extra_special_tokens"), dict) else {}


def _read_added_tokens(file: Path, values: dict) -> dict[int, AddedToken]:
    """added_tokens.json, {token: id}; a token with a purpose is special, which means that it is matched before the
    text is normalised."""
    special = {str(values[key]) for key in PURPOSES if values.get(key)}
    special |= {str(token) for token in values.get("extra_special_tokens") or []}
    return {
        _id(file, i): AddedToken(token, normalized=token not in special, special=token in special)
        for token, i in _read_values(file).items()
    }


def _object(file: Path, key: str, value: object) -> dict:
    if not isinstance(value, dict):
        raise _refused(file, key, value, "not a JSON object: correct it")
    return value


def _id(file: Path, value: object) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise BadInput(f"{file}: {as_json(value)} is not the id of a token: correct it") from None


def _token(file: Path, key: str, value: object) -> str | AddedToken:
    """A token as the JSON has it: its name, or an object of its name and how it is matched. Raises BadInput."""
    name = value.get("content") if isinstance(value, dict) else value
    if isinstance(name, str) and any("\ud800" <= letter <= "\udfff" for letter in name):
        raise _refused(file, key, value, "with half a letter, which no text has: correct it")
    if isinstance(value, (str, AddedToken)):
        return value
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    in_decoder = key.startswith("added_tokens_decoder")
    if not isinstance(value, dict) or not isinstance(value.get("content"), str) or not (
        in_decoder or value.get("__type") == "AddedToken"
    ) or not all(isinstance(value.get(flag, False), bool) for flag in flags):
        raise _refused(file, key, value, "not a token: correct it")
    special = value.get("special", False)
    return AddedToken(
        value["content"], single_word=value.get("single_word", False), lstrip=value.get("lstrip", False),
        rstrip=value.get("rstrip", False), normalized=value.get("normalized", not special), special=special,
    )


def _add_tokens(path: Path, backend: BackendTokenizer, tokens: Tokens) -> None:
    """Adds `tokens` in transformers' order. Raises BadInput where one does not get the id that its file names."""
    purposes = {str(token) for token in tokens.special.values()}
    new = [token for _, token in sorted(tokens.added.items())]
    held = {token.content for token in backend.get_added_tokens_decoder().values()} | {str(token) for token in new}
    for token in [*tokens.special.values(), *tokens.more]:
        if str(token) not in held:
            held.add(str(token))
            new.append(token)
    for token in new:
        if isinstance(token, str):
            token = AddedToken(token, special=True)
        elif token.content in purposes:
            token.special = True
        backend.add_tokens([token])
    for i, token in tokens.added.items():
        if (found := backend.token_to_id(token.content)) != i:
            raise BadInput(f"{path}: the added token {shown(token.content)} has the id {i} in its file and becomes "
                           f"{found}: take the tokenizer's files from one checkpoint")


# ---- the rest, as each class builds it

def _from_vocabulary(
    path: Path, kind: TokenizerClass, values: dict, tokens: Tokens, config: object
) -> BackendTokenizer:
    """From vocab.txt, or vocab.json and merges.txt. Raises BadInput."""
    if kind.model is WordPiece and (path / "vocab.txt").is_file():
        vocab = _read_vocabulary(path / "vocab.txt", kind, tokens, config)
        return _wordpiece(path / "vocab.txt", vocab, values, tokens)
    if kind in (ROBERTA, GPT2, QWEN2) and (path / "vocab.json").is_file() and (path / "merges.txt").is_file():
        vocab = parse_json(path / "vocab.json", read_text(path / "vocab.json"), dict)
        merges = [tuple(line.split()) for line in read_text(path / "merges.txt").split("\n")
                  if line.strip() and not line.startswith("#version")]
        backend = _bpe(path, kind, vocab, merges, values)
        _check_ends(path, backend, kind, tokens)
        return parse_tokenizer(path / "vocab.json", backend.to_str(), config)
    if file := next((name for name in SENTENCEPIECE if (path / name).is_file()), None):
        raise BadInput(
            f"{path} holds a SentencePiece {file} alone: write its tokenizer.json with transformers, "
            f"AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    raise BadInput(f"{path} holds no tokenizer.json, vocab.txt, or vocab.json with merges.txt: put one of them there")


def _read_vocabulary(file: Path, kind: TokenizerClass, tokens: Tokens, config: object) -> dict[str, int]:
    """vocab.txt: line i is token i."""
    lines = read_text(file).removesuffix("\n").split("\n")  # not splitlines, which cuts at tokens such as U+2028
    if len(lines) > config.vocab:
        raise BadInput(f"{file} has {len(lines)} tokens, the model {config.vocab}: take both from the same checkpoint")
    vocab = {token.rstrip("\r"): i for i, token in enumerate(lines)}
    added = {token.content for token in tokens.added.values()}
    wanted = NEEDED if kind is MPNET else (*NEEDED, "pad_token")
    needed = [str(tokens.special[key]) for key in wanted if key in tokens.special]
    if missing := [token for token in needed if token not in vocab and token not in added]:
        raise BadInput(
            f"{file}: the vocabulary lacks {listed(missing)}, which BERT needs: it is not a BERT vocab.txt"
        )
    return vocab


def _rebuilt(
    file: Path, kind: TokenizerClass, values: dict, tokens: Tokens, source: BackendTokenizer
) -> BackendTokenizer:
    """What the class `kind` builds from the vocabulary of tokenizer.json. Raises BadInput."""
    if type(source.model) is not kind.model:
        raise BadInput(f"{file} holds a {type(source.model).__name__}, and the tokenizer_class builds a "
                       f"{kind.model.__name__}: set it to PreTrainedTokenizerFast in tokenizer_config.json")
    model = json.loads(read_text(file))["model"]
    if kind.model is WordPiece:
        return _wordpiece(file, model["vocab"], values, tokens)
    if kind.model is Unigram:
        return _unigram(file, model["vocab"], values)
    merges = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    return _bpe(file, kind, model["vocab"], merges, values)


def _wordpiece(file: Path, vocab: dict[str, int], values: dict, tokens: Tokens) -> BackendTokenizer:
    unknown = str(tokens.special["unk_token"])
    if unknown not in vocab:
        raise _refused(file, "unk_token", unknown, "which the vocabulary lacks: take both from one checkpoint")
    backend = BackendTokenizer(WordPiece(vocab, unk_token=unknown))
    backend.normalizer = BertNormalizer(
        clean_text=True, handle_chinese_chars=values.get("tokenize_chinese_chars", True),
        strip_accents=values.get("strip_accents"), lowercase=values.get("do_lower_case", True),
    )
    backend.pre_tokenizer, backend.decoder = BertPreTokenizer(), WordPieceDecoder()
    return backend


def _unigram(file: Path, vocab: list, values: dict) -> BackendTokenizer:
    """XLM-R's, whose unknown token is always the fourth."""
    try:
        backend = BackendTokenizer(Unigram([(token, score) for token, score in vocab], 3, False))
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"{file}: its vocabulary is none of XLM-R's ({one_line(error)[:80]}): set tokenizer_class to "
                       f"PreTrainedTokenizerFast in tokenizer_config.json") from None
    normalizer = json.loads(read_text(file)).get("normalizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    # of other steps beside the map of letters, transformers takes none
    if letters := next((step["precompiled_charsmap"] for step in steps if step.get("type") == "Precompiled"), None):
        backend.normalizer = Precompiled(base64.b64decode(letters))
    scheme = "never" if values.get("add_prefix_space", True) is False else "always"
    backend.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Metaspace("▁", scheme)])
    return backend


def _bpe(
    where: Path, kind: TokenizerClass, vocab: dict[str, int], merges: list[tuple[str, ...]], values: dict
) -> BackendTokenizer:
    if lacking := lacking_merge(vocab, merges):
        raise BadInput(f"{where}: vocab.json and merges.txt do not fit each other (the merges make {shown(lacking)}, "
                       f"which the vocabulary lacks): take both from the same checkpoint")
    try:
        model = BPE(vocab, merges, fuse_unk=kind is LLAMA, byte_fallback=kind is LLAMA)
    except Exception as error:  # the library raises nothing narrower
        raise BadInput(f"{where}: vocab.json and merges.txt do not fit each other ({one_line(error)}): take both "
                       f"from the same checkpoint") from None
    backend = BackendTokenizer(model)
    prefix = values.get("add_prefix_space")
    if kind is QWEN2:
        words = Split(Regex(QWEN2_WORDS), "isolated")
        backend.normalizer, backend.decoder = NFC(), ByteLevelDecoder()
        backend.pre_tokenizer = PreTokenizers([words, ByteLevel(add_prefix_space=bool(prefix), use_regex=False)])
        return backend
    if kind is LLAMA:
        scheme = "never" if prefix is False else "always" if values.get("legacy", False) else "first"
        backend.pre_tokenizer = Metaspace("▁", scheme, split=False)
    else:
        backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=bool(prefix)), ByteLevelDecoder()
    return backend


def _check_ends(path: Path, backend: BackendTokenizer, kind: TokenizerClass, tokens: Tokens) -> None:
    added = {token.content for token in tokens.added.values()}
    needed = [str(tokens.special[key]) for key in ("cls_token", "sep_token") if kind is ROBERTA]
    if missing := [token for token in needed if backend.token_to_id(token) is None and token not in added]:
        raise BadInput(f"{path}: the vocabulary lacks {listed(missing)}, which RoBERTa needs: it is not a RoBERTa "
                       f"vocab.json")


def _set_ends(
    file: Path, backend: BackendTokenizer, kind: TokenizerClass, values: dict, tokens: Tokens,
    source: BackendTokenizer | None,
) -> None:
    """The special tokens around a text or pair."""
    names = {key: str(token) for key, token in tokens.special.items()}
    ids = {key: backend.token_to_id(token) for key, token in names.items()}
    for key in ("bos_token", "eos_token", "cls_token", "sep_token"):
        if not re.fullmatch(r"[^\s:]+", names.get(key, "_")):
            raise _refused(file, key, names[key], "which holds a blank or a colon: use another checkpoint")
    if kind is XLM_ROBERTA:
        bos, eos = names["bos_token"], names["eos_token"]
        backend.post_processor = TemplateProcessing(
            single=[bos, "$A", eos], pair=[bos, "$A", eos, eos, "$B", eos],
            special_tokens=[(bos, ids["bos_token"]), (eos, ids["eos_token"])],
        )
    elif kind is MPNET:
        backend.post_processor = RobertaProcessing(
            (names["sep_token"], ids["sep_token"]), (names["cls_token"], ids["cls_token"]), True, False
        )
    elif kind.model is WordPiece:
        cls, sep = names["cls_token"], names["sep_token"]
        backend.post_processor = TemplateProcessing(
            single=f"{cls}:0 $A:0 {sep}:0", pair=f"{cls}:0 $A:0 {sep}:0 $B:1 {sep}:1",
            special_tokens=[(cls, ids["cls_token"]), (sep, ids["sep_token"])],
        )
    elif kind is ROBERTA:
        backend.post_processor = RobertaProcessing(
            (names["sep_token"], ids["sep_token"]), (names["cls_token"], ids["cls_token"]),
            values.get("trim_offsets", True), bool(values.get("add_prefix_space")),
        )
    elif source is not None and source.post_processor is not None:
        backend.post_processor = source.post_processor
    else:
        ends = {key: f"{token}:" for key, token in names.items()
                if key in ("bos_token", "eos_token") and values.get(f"add_{key}")}
        single = " ".join(_around(ends, "$A", 0))
        backend.post_processor = TemplateProcessing(
            single=single, pair=" ".join([single, *_around(ends, "$B", 1)]),
            special_tokens=[(names[key], ids[key]) for key in ends],
        )


def _around(ends: dict[str, str], text: str, type_id: int) -> list[str]:
    before, after = (f"{ends[key]}{type_id}" if key in ends else "" for key in ("bos_token", "eos_token"))
    return [part for part in (before, f"{text}:{type_id}", after) if part]


# ---- writing

def guessed_special(ckpt: Checkpoint) -> dict[str, str]:
    """The tokens that the tokenizer has for each purpose, by their usual names: {"pad_token": "<pad>", ...}."""
    backend, special = ckpt.tokenizer.backend, {}
    for key, tokens in (CAUSAL_SPECIAL if ckpt.model.causal else SPECIAL).items():
        if token := next((token for token in tokens if backend.token_to_id(token) is not None), None):
            special[key] = token
    return special | _pad_token(ckpt)


def special_tokens(ckpt: Checkpoint) -> dict[str, str]:
    """The tokens that the tokenizer's files named for each purpose, or the guessed ones."""
    named, pad = dict(ckpt.tokenizer.settings.special), _pad_token(ckpt)
    if not named:
        return guessed_special(ckpt)
    added = {token.content for token in ckpt.tokenizer.backend.get_added_tokens_decoder().values()}
    # A word of the vocabulary that is named becomes a special token, and a text that holds it has other ids.
    return named | pad if "pad_token" not in named or added.issuperset(pad.values()) else named


def _pad_token(ckpt: Checkpoint) -> dict[str, str]:
    """The token that the model takes for padding, which transformers must pad with."""
    token = ckpt.tokenizer.backend.id_to_token(ckpt.tokenizer.pad)
    return {} if token is None else {"pad_token": token}


def tokenizer_config(ckpt: Checkpoint) -> dict:
    """tokenizer_config.json without its special tokens."""
    tokenizer, inputs = ckpt.tokenizer, ["input_ids", "attention_mask"]
    if getattr(ckpt.model.config, "type_vocab_size", 1) > 1 and tokenizer.settings.type_ids:
        inputs.insert(1, "token_type_ids")
    values = {
        # The class that takes tokenizer.json as it is; an architecture's own builds another from the vocabulary.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": inputs,
        "model_max_length": tokenizer.max_len,
    }
    steps = json.loads(tokenizer.backend.to_str())["pre_tokenizer"] or {}
    prefix = any(step.get("add_prefix_space") for step in steps.get("pretokenizers", [steps]))
    if prefix and hf_mapping_of(ckpt.model).always_tokenizer:
        values["add_prefix_space"] = True  # Qwen2's class is built anew whatever is named, and reads this alone
    for key in ("truncation_side", "padding_side"):
        if (side := getattr(tokenizer.settings, key)) != "right":
            values[key] = side
    return values | ({"split_special_tokens": True} if tokenizer.settings.split_special else {})


def check_carried(ckpt: Checkpoint, folder: Path) -> None:
    """Raises BadInput where the tokenizer whose files were written into `folder` is another when it is read: an
    architecture whose class is taken whatever a folder names has no other."""
    mapping = hf_mapping_of(ckpt.model)
    if not mapping.always_tokenizer:
        return
    why = f"a folder of {mapping.model_type} has the tokenizer that its own class builds, and this one is another"
    try:
        found = read_tokenizer(folder, mapping, {}, ckpt.model.config)
    except BadInput:
        raise BadInput(f"{why}: end the name in .safetensors") from None
    if _decides_ids(found.backend) != _decides_ids(ckpt.tokenizer.backend):
        raise BadInput(f"{why}: end the name in .safetensors")


def _decides_ids(backend: BackendTokenizer) -> list:
    """The parts of a tokenizer that a text's ids depend on; a template that adds nothing is none."""
    state = json.loads(backend.to_str())
    ends = state["post_processor"] or {}
    if ends.get("type") == "TemplateProcessing" and not ends["special_tokens"] and len(ends["single"]) == 1:
        ends = {}
    model = {key: value for key, value in state["model"].items() if value}
    return [state["normalizer"], state["pre_tokenizer"], model, ends, state["added_tokens"]]


def settings_json(ckpt: Checkpoint) -> str:
    """The settings for a single file's metadata, "" where they are what a file without them has."""
    settings = ckpt.tokenizer.settings
    if special_tokens(ckpt) == guessed_special(ckpt):
        settings = replace(settings, special=())
    return "" if settings == Settings() else json.dumps(asdict(settings))


def parse_settings(where: Path, source: str) -> Settings:
    """What settings_json wrote. Raises BadInput."""
    values = parse_json(where, source, dict)
    special = values.get("special")
    valid = (
        values.keys() == {field.name for field in fields(Settings)}
        and values["truncation_side"] in SIDES and values["padding_side"] in SIDES
        and isinstance(values["type_ids"], bool) and isinstance(values["split_special"], bool)
        and isinstance(special, list)
        and all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(x, str) for x in pair) for pair in special)
    )
    if not valid:
        raise BadInput(f"{where}: the tokenizer_settings of its metadata are not those of this version: save it again")
    return Settings(
        values["truncation_side"], values["padding_side"], values["type_ids"], values["split_special"],
        tuple((key, token) for key, token in special),
    )
