"""A folder's tokenizer files, key by key and class by class: the ids and logits of transformers' AutoTokenizer and
AutoModelForSequenceClassification, from the folder, from its copy here and from its single file; or a refusal."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from conftest import fails
from minibd import checkpoint
from minibd.checkpoint import Checkpoint
from test_encoders_transformers import FROM_PADDING
from test_folders_transformers import LONGEST, SPECIAL, WORDPIECE, examples, far, opened, saved, tokenizer

transformers = pytest.importorskip("transformers")

LONG = " ".join(f"{i} very boring film" for i in range(30))     # longer than every model here
TEXTS = (
    "a lovely film", "A LOVELY Film, naïve Café ÉCOLE", "the 電影 film 好", "🙂 moving 😀", "  two  blanks ", LONG,
    "@USER loved the film", "@user @USER<new>x <new> y", "[MASK] <mask> </s> [SEP] <|endoftext|> lovely",
    "a [PAD] b <pad>", "film</s>lovely<s>a <0> film",
)
PAIRS = (("who wrote it?", "nobody KNOWS"), (LONG, "boring"), ("boring", LONG), (LONG, LONG + " end"))
# (model, tokenizer_class, which of its files are there)
LAYOUTS = [
    ("bert", "BertTokenizer", "tokenizer.json"), ("bert", "BertTokenizerFast", "vocab"),
    ("bert", None, "tokenizer.json"), ("bert", None, "vocab"), ("bert", "PreTrainedTokenizerFast", "tokenizer.json"),
    ("distilbert", "DistilBertTokenizerFast", "tokenizer.json"), ("distilbert", "DistilBertTokenizer", "vocab"),
    ("roberta", "RobertaTokenizer", "tokenizer.json"), ("roberta", None, "vocab"),
    ("roberta", "TokenizersBackend", "tokenizer.json"), ("gpt2", "GPT2TokenizerFast", "tokenizer.json"),
    ("gpt2", None, "vocab"), ("gpt2", "PreTrainedTokenizerFast", "tokenizer.json"),
    ("llama", None, "tokenizer.json"), ("llama", "LlamaTokenizer", "tokenizer.json"),
    ("llama", "LlamaTokenizerFast", "metaspace"),
    ("mpnet", "MPNetTokenizer", "tokenizer.json"), ("mpnet", None, "vocab"),
    ("mpnet", "PreTrainedTokenizerFast", "tokenizer.json"), ("xlm-roberta", "XLMRobertaTokenizer", "tokenizer.json"),
    ("xlm-roberta", None, "tokenizer.json"), ("electra", "ElectraTokenizer", "tokenizer.json"),
    ("mistral", "LlamaTokenizer", "tokenizer.json"), ("qwen2", "Qwen2Tokenizer", "tokenizer.json"),
    ("qwen2", "PreTrainedTokenizerFast", "tokenizer.json"), ("qwen2", None, "vocab"),
]
TYPES = ("bert", "electra")  # whose models tell a pair's texts apart
CONFIG, MAP, ADDED, WHOLE = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "tokenizer.json"


def token(content: str, **flags: bool) -> dict:
    return {"content": content, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
            "special": False} | flags


CUT = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
FIXED = {"strategy": {"Fixed": 12}, "direction": "Left", "pad_to_multiple_of": 8, "pad_id": 0, "pad_type_id": 0,
         "pad_token": "<0>"}
# what each row changes: {file: {key: value}}; NEXT and AFTER stand for the first ids that the vocabulary does not have
NEXT, AFTER = "next id", "the id after"
KEYS = {
    "nothing": {},
    "truncation_side left": {CONFIG: {"truncation_side": "left"}},
    "truncation_side right": {CONFIG: {"truncation_side": "right"}, WHOLE: {"truncation": CUT}},
    "padding_side left": {CONFIG: {"padding_side": "left"}},
    "do_lower_case false": {CONFIG: {"do_lower_case": False}},
    "do_lower_case true": {CONFIG: {"do_lower_case": True}},
    "strip_accents true": {CONFIG: {"strip_accents": True, "do_lower_case": False}},
    "strip_accents false": {CONFIG: {"strip_accents": False}},
    "tokenize_chinese_chars false": {CONFIG: {"tokenize_chinese_chars": False}},
    "do_basic_tokenize": {CONFIG: {"do_basic_tokenize": False, "never_split": ["film"]}},
    "add_prefix_space": {CONFIG: {"add_prefix_space": True}},
    "no add_prefix_space": {CONFIG: {"add_prefix_space": False}},
    "trim_offsets": {CONFIG: {"trim_offsets": False}},
    "legacy": {CONFIG: {"legacy": True}},
    "not legacy": {CONFIG: {"legacy": False}},
    "clean_up": {CONFIG: {"clean_up_tokenization_spaces": True, "errors": "strict", "unheard_of": 3}},
    "model_max_length": {CONFIG: {"model_max_length": 7}},
    "max_len": {CONFIG: {"model_max_length": None, "max_len": 8}},
    "add_bos_token": {CONFIG: {"add_bos_token": True}},
    "add_eos_token": {CONFIG: {"add_eos_token": True, "add_bos_token": False}},
    "split_special_tokens": {CONFIG: {"split_special_tokens": True}},
    "model_input_names": {CONFIG: {"model_input_names": ["input_ids", "attention_mask"]}},
    "model_input_names, types": {CONFIG: {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}},
    "added_tokens_decoder": {CONFIG: {"added_tokens_decoder": {NEXT: token("@USER")}}},
    "added_tokens_decoder, normalized": {CONFIG: {"added_tokens_decoder": {NEXT: token("@USER", normalized=True)}}},
    "added_tokens_decoder, special": {
        CONFIG: {"added_tokens_decoder": {NEXT: token("<new>", special=True, lstrip=True)}}
    },
    "added_tokens_decoder, single_word": {CONFIG: {"added_tokens_decoder": {NEXT: token("<new>", single_word=True)}}},
    "added_tokens_decoder, empty": {CONFIG: {"added_tokens_decoder": {}}, ADDED: {"@USER": NEXT}},
    "added_tokens.json": {ADDED: {"@USER": NEXT}},
    "added_tokens.json, out of order": {ADDED: {"<new>": AFTER, "@USER": NEXT}},
    "an added token with a purpose": {
        CONFIG: {"added_tokens_decoder": {NEXT: token("@USER")}, "mask_token": "@USER", "split_special_tokens": True}
    },
    "added_tokens.json, special": {ADDED: {"<new>": NEXT}, CONFIG: {"additional_special_tokens": ["<new>"]}},
    "additional_special_tokens": {CONFIG: {"additional_special_tokens": ["@USER", "<new>"]}},
    "extra_special_tokens": {CONFIG: {"extra_special_tokens": ["<new>", "film"]}},
    "extra_special_tokens, named": {CONFIG: {"extra_special_tokens": {"user_token": "@USER"}}},
    "a token with a purpose of its own": {CONFIG: {"user_token": "@USER"}},
    "special_tokens_map.json": {
        MAP: {"additional_special_tokens": ["@USER"], "mask_token": token("<new>", lstrip=True)}
    },
    "special_tokens_map.json, extra": {MAP: {"extra_special_tokens": [{"content": "@USER", "lstrip": True}, "<new>"]}},
    "added pad": {CONFIG: {"pad_token": "[PAD]"}},
    "another mask": {CONFIG: {"mask_token": token("film", lstrip=True) | {"__type": "AddedToken"}}},
    "other ends": {CONFIG: {"cls_token": "film", "sep_token": "lovely", "bos_token": "film", "eos_token": "lovely"}},
    "another unknown": {CONFIG: {"unk_token": "film"}},
    "truncation in tokenizer.json": {WHOLE: {"truncation": CUT}},
    "padding in tokenizer.json": {WHOLE: {"padding": FIXED}},
    "no post_processor": {WHOLE: {"post_processor": None}},
    "no normalizer": {WHOLE: {"normalizer": None}},
}


@lru_cache
def metaspace() -> Tokenizer:
    """Llama 2's kind: blanks are a letter, and what has no letter is its bytes."""
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    merges = [("▁", "f"), ("i", "l"), ("il", "m"), ("▁f", "ilm"), ("l", "o"), ("▁", "lo"), ("e", "l")]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz", *("".join(pair) for pair in merges)]
    tokens = dict.fromkeys(["<unk>", "<s>", "</s>", *bytes_, *letters])
    made = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges, fuse_unk=True, byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    made.decoder = decoders.ByteFallback()
    made.add_special_tokens([AddedToken(t, special=True) for t in ("<unk>", "<s>", "</s>")])
    return made


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    """model_of("bert") -> the folder of a classifier without a tokenizer, transformers' model of it, and ours."""
    @lru_cache
    def make(name: str):
        folder = saved(name, tmp_path_factory.mktemp(name), vocab_size=tokenizer(name).get_vocab_size() + 20)
        theirs, ours = opened(folder), checkpoint.load(folder).model
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).unlink()
        return folder, theirs, ours
    return make


def lay(folder: Path, out: Path, layout: tuple[str, str | None, str], change: dict) -> Path:
    """A folder of the layout, with the change."""
    name, kind, files = layout
    shutil.copytree(folder, out)
    backend = metaspace() if files == "metaspace" else tokenizer(name)
    content = {CONFIG: {"model_max_length": 20} | ({"tokenizer_class": kind} if kind else {})}
    if kind in ("PreTrainedTokenizerFast", "TokenizersBackend") or files == "tokenizer.json" and name in (
        "llama", "mistral"
    ):
        content[CONFIG] |= SPECIAL[name]
    if files != "vocab":
        content[WHOLE] = json.loads(backend.to_str())
    elif name in WORDPIECE:
        vocab = backend.get_vocab()
        (out / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n", encoding="utf-8")
    else:
        backend.model.save(str(out))
    following = backend.get_vocab_size()
    for file, values in change.items():
        if file != WHOLE or file in content:
            content[file] = content.get(file, {}) | values
    for file, values in content.items():
        source = json.dumps(values)
        for i, name in enumerate((NEXT, AFTER)):
            source = source.replace(f'"{name}":', f'"{following + i}":').replace(f'"{name}"', str(following + i))
        (out / file).write_text(source)
    return out


def their_ids(ref, texts: tuple, limit: int) -> list[dict]:
    """One text or pair at a time, as a user asks for it."""
    return [ref(*((t,) if isinstance(t, str) else t), truncation=True, max_length=min(ref.model_max_length, limit))
            for t in texts]


def ids_of(ours, types: bool) -> list[tuple]:
    """types: whether the model tells a pair's texts apart."""
    rows = ours.encode(examples(TEXTS + PAIRS))
    return list(zip(rows.ids, rows.token_type_ids if types else [None] * len(rows)))


@torch.no_grad()
def check(model_of, tmp_path: Path, layout: tuple, key: str) -> None:
    """The folder here, its copy in transformers and in a single file: all give transformers' ids and logits."""
    name, types = layout[0], layout[0] in TYPES
    folder, theirs, ours = model_of(name)
    original = lay(folder, tmp_path / "in", layout, KEYS[key])
    ref = transformers.AutoTokenizer.from_pretrained(original)
    rows = their_ids(ref, TEXTS + PAIRS, LONGEST)
    ckpt = Checkpoint(ours, checkpoint.read_header(original).tokenizer, ("a", "b"), [])
    # a text without a token gets one of padding here
    expected = [(row["input_ids"] or [ckpt.tokenizer.pad],
                 (row.get("token_type_ids") or [0] * len(row["input_ids"])) if types else None) for row in rows]
    assert ids_of(ckpt.tokenizer, types) == expected
    for text, row in zip((*TEXTS, *PAIRS)[5:], rows[5:]):
        if name in FROM_PADDING and "<pad>" in text:  # whose position there is the padding's in transformers
            continue
        inputs = {k: torch.tensor([v]) for k, v in row.items() if types or k != "token_type_ids"}
        logits = ours(ckpt.tokenizer(examples([text]))).logits
        assert far(theirs(**inputs).logits, logits) < 1e-5, text
    checkpoint.save(ckpt, tmp_path / "out")
    again = their_ids(transformers.AutoTokenizer.from_pretrained(tmp_path / "out"), TEXTS + PAIRS, LONGEST)
    assert [row["input_ids"] for row in again] == [row["input_ids"] for row in rows]
    assert not types or [row.get("token_type_ids") for row in again] == [row.get("token_type_ids") for row in rows]
    checkpoint.save(ckpt, tmp_path / "one.safetensors")
    checkpoint.save(checkpoint.load(tmp_path / "one.safetensors"), tmp_path / "two")
    for path in ("out", "one.safetensors", "two"):
        back = checkpoint.read_header(tmp_path / path).tokenizer
        assert ids_of(back, types) == expected, path
        assert (back.settings.padding_side, back.max_len) == (ref.padding_side, ckpt.tokenizer.max_len), path
    for file in (WHOLE, CONFIG):
        one, other = (json.loads((tmp_path / folder / file).read_text()) for folder in ("out", "two"))
        assert one == other, file


# Each key with some layouts and each layout with some keys; the slow test has all of them.
SOME = [(layout, key) for i, layout in enumerate(LAYOUTS) for j, key in enumerate(KEYS) if (3 * i + j) % 16 == 0]
SOME.append((("roberta", None, "vocab"), "added pad"))


@pytest.mark.parametrize("layout, key", SOME, ids=str)
def test_a_key_of_a_tokenizer_file(model_of, tmp_path, layout, key):
    check(model_of, tmp_path, layout, key)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_key_of_every_tokenizer_file(model_of, tmp_path, layout):
    for i, key in enumerate(KEYS):
        if (layout, key) not in SOME:
            try:
                check(model_of, tmp_path / str(i), layout, key)
            except AssertionError as error:
                raise AssertionError(f"{layout}, {key}") from error


def test_the_keys_change_ids(model_of, tmp_path):
    """Those of the table are worth testing: most of them change the ids of some class."""
    folder = model_of("bert")[0]
    found = {key: checkpoint.read_header(lay(folder, tmp_path / str(i), LAYOUTS[1], KEYS[key])).tokenizer
             for i, key in enumerate(KEYS)}
    plain = ids_of(found["nothing"], True)
    assert [key for key, one in found.items() if ids_of(one, True) == plain] == [
        "nothing", "truncation_side right", "padding_side left", "do_lower_case true", "do_basic_tokenize",
        "add_prefix_space", "no add_prefix_space", "trim_offsets", "legacy", "not legacy", "clean_up",
        "add_bos_token", "add_eos_token", "model_input_names, types", "added_tokens_decoder, empty", "added pad",
        "truncation in tokenizer.json", "padding in tokenizer.json", "no post_processor", "no normalizer",
    ]


@pytest.mark.parametrize("files", ["tokenizer.json", "vocab"])
def test_a_gpt2_with_an_added_pad_is_padded_in_transformers_too(model_of, tmp_path, files):
    folder, _, _ = model_of("gpt2")
    pad = tokenizer("gpt2").get_vocab_size()
    lay(folder, tmp_path / "in", ("gpt2", None, files), {ADDED: {"[PAD]": pad}, CONFIG: {"pad_token": "[PAD]"}})
    config = tmp_path / "in" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token_id": pad}))
    ckpt = checkpoint.load(tmp_path / "in")
    checkpoint.save(ckpt, tmp_path / "out")
    ref = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (ref.pad_token, ref.pad_token_id, ckpt.tokenizer.pad) == ("[PAD]", pad, pad)
    rows = ref(list(TEXTS), padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        assert far(opened(tmp_path / "out")(**rows).logits, ckpt.model(ckpt.tokenizer(examples(TEXTS))).logits) < 1e-5


@pytest.mark.parametrize("change, words", [
    ({CONFIG: {"tokenizer_class": "BertweetTokenizer"}},
     [CONFIG, 'tokenizer_class is "BertweetTokenizer"', "save it as"]),
    ({CONFIG: {"truncation_side": "middle"}}, [CONFIG, 'truncation_side is "middle"', '"left"']),
    ({CONFIG: {"padding_side": None}}, [CONFIG, "padding_side is null"]),
    ({CONFIG: {"do_lower_case": "false"}}, [CONFIG, 'do_lower_case is "false"', "true and false"]),
    ({CONFIG: {"strip_accents": 1}}, [CONFIG, "strip_accents is 1"]),
    ({CONFIG: {"model_max_length": "512"}}, [CONFIG, 'model_max_length is "512"']),
    ({CONFIG: {"model_max_length": 2}}, [CONFIG, "model_max_length is 2", "from 3"]),
    ({CONFIG: {"model_max_length": 20.5}}, [CONFIG, "model_max_length is 20.5"]),
    ({CONFIG: {"model_input_names": ["input_ids"]}}, [CONFIG, "model_input_names", "attention_mask"]),
    ({CONFIG: {"cls_token": None}}, [CONFIG, "cls_token is null"]),
    ({CONFIG: {"cls_token": {"content": "[CLS]"}}}, [CONFIG, "cls_token", "not a token"]),
    ({CONFIG: {"cls_token": "a b"}}, ["a b"]),
    ({CONFIG: {"unk_token": "<none>"}}, ["<none>", "vocabulary lacks"]),
    ({CONFIG: {"extra_special_tokens": "@USER"}}, [CONFIG, 'extra_special_tokens is "@USER"']),
    ({CONFIG: {"added_tokens_decoder": {"7": token("@USER")}}}, ["'@USER'", "the id 7", "becomes"]),
    ({CONFIG: {"added_tokens_decoder": {"x": token("@USER")}}}, [CONFIG, '"x" is not the id']),
    ({CONFIG: {"added_tokens_decoder": ["@USER"]}}, [CONFIG, "added_tokens_decoder", "not a JSON object"]),
    ({CONFIG: {"vocab": {"a": 0}}}, [CONFIG, "vocab is", "not known here"]),
    ({CONFIG: {"fast_tokenizer_files": ["tokenizer.4.0.json"]}}, [CONFIG, "fast_tokenizer_files", "tokenizer.4.0"]),
    ({CONFIG: {"auto_map": {"AutoTokenizer": ["a.B", None]}}}, [CONFIG, "auto_map", "never run"]),
    ({CONFIG: {"fast_tokenizer_files": 4}}, [CONFIG, "fast_tokenizer_files is 4"]),
    ({CONFIG: {"auto_map": 4}}, [CONFIG, "auto_map is 4"]),
    ({CONFIG: {"additional_special_tokens": 4}}, [CONFIG, "extra_special_tokens is 4"]),
    ({CONFIG: {"extra_special_tokens": [4]}}, [CONFIG, "extra_special_tokens is 4"]),
    ({CONFIG: {"unk_token": "\x1b[31m"}}, ["[31m", "vocabulary lacks"]),
    ({ADDED: {"@USER": 7}}, ["'@USER'", "the id 7", "becomes"]),
    ({ADDED: {f"<{i}>": tokenizer("bert").get_vocab_size() + i for i in range(21)}}, ["beyond the model's"]),
    ({MAP: {"truncation_side": "left"}}, [MAP, "truncation_side", "move it"]),
    ({MAP: {"extra_special_tokens": [token("@USER") | {"lstrip": "no"}]}}, [MAP, "extra_special_tokens"]),
])
@pytest.mark.parametrize("files", ["tokenizer.json", "vocab"])
def test_what_cannot_be_obeyed_is_refused(model_of, tmp_path, files, change, words):
    original = lay(model_of("bert")[0], tmp_path / "in", ("bert", None, files), change)
    line = fails(lambda: checkpoint.load(original), str(original), *words)
    assert line.isprintable() and len(line.replace(str(original), "")) < 300


def test_a_class_of_another_kind_than_its_tokenizer_json(model_of, tmp_path):
    original = lay(model_of("bert")[0], tmp_path / "in", ("bert", "GPT2Tokenizer", "tokenizer.json"), {})
    fails(lambda: checkpoint.load(original), "tokenizer.json holds a WordPiece", "builds a BPE")


@pytest.mark.parametrize("change", [
    {"truncation_side": "up"}, {"special": [["pad_token"]]}, {"type_ids": 1}, {"more": 1}, {"padding_side": None},
])
def test_settings_of_a_single_file_that_are_none(model_of, tmp_path, change):
    original = lay(model_of("bert")[0], tmp_path / "in", LAYOUTS[0], KEYS["truncation_side left"])
    file = tmp_path / "one.safetensors"
    checkpoint.save(checkpoint.load(original), file)
    with safe_open(file, "pt") as f:
        metadata = f.metadata()
    assert metadata["format"] == "minibd 3"
    values = json.loads(metadata["tokenizer_settings"]) | change
    save_file(load_file(file), file, metadata | {"tokenizer_settings": json.dumps(values)})
    fails(lambda: checkpoint.load(file), str(file), "tokenizer_settings")
