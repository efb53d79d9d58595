"""minibd/checkpoint/ on every architecture: folders that transformers wrote, that it reads, and that fit nothing."""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from conftest import BAD, GOOD, NEUTRAL, fails
from minibd import checkpoint, data
from minibd.checkpoint import HF_MAPPINGS, Checkpoint
from minibd.checkpoint.tokenizer_files import QWEN2_WORDS
from minibd.records import Batch, Example

transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

LONGEST = 60
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
# An epsilon this large shows where it is forgotten.
SHAPE = dict(
    hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=36, max_position_embeddings=LONGEST
)
CONFIGS = {
    "bert": SHAPE | dict(layer_norm_eps=0.01),
    "roberta": SHAPE
    | dict(layer_norm_eps=0.01, max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=1),
    "distilbert": dict(dim=24, n_layers=2, n_heads=4, hidden_dim=36, max_position_embeddings=LONGEST),
    "llama": SHAPE
    | dict(
        num_key_value_heads=2, rope_parameters=LLAMA3, rms_norm_eps=0.01, bos_token_id=0, eos_token_id=1,
        pad_token_id=2
    ),
    "gpt2": dict(
        n_embd=24, n_layer=2, n_head=4, n_positions=LONGEST, layer_norm_epsilon=0.01, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    ),
    "mpnet": SHAPE | dict(layer_norm_eps=0.01, max_position_embeddings=LONGEST + 2, pad_token_id=1),
    "xlm-roberta": SHAPE
    | dict(layer_norm_eps=0.01, max_position_embeddings=LONGEST + 2, type_vocab_size=1, pad_token_id=1),
    "electra": SHAPE | dict(layer_norm_eps=0.01, embedding_size=16),
    "mistral": SHAPE
    | dict(
        num_key_value_heads=2, rms_norm_eps=0.01, bos_token_id=0, eos_token_id=1, pad_token_id=2,
        sliding_window=LONGEST,
    ),
    "qwen2": SHAPE | dict(num_key_value_heads=2, rms_norm_eps=0.01, eos_token_id=0, pad_token_id=0),
}
UNUSUAL = {  # numbers that no default has
    "bert": dict(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, classifier_dropout=0.4, hidden_act="relu",
        type_vocab_size=3,
    ),
    "roberta": dict(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, classifier_dropout=0.4, hidden_act="relu",
        type_vocab_size=3,
    ),
    "distilbert": dict(dropout=0.2, attention_dropout=0.3, seq_classif_dropout=0.4, activation="relu"),
    "llama": dict(attention_dropout=0.3, head_dim=8, hidden_act="gelu"),
    "gpt2": dict(resid_pdrop=0.2, embd_pdrop=0.3, attn_pdrop=0.4, activation_function="relu", n_inner=30),
    "mpnet": dict(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, hidden_act="relu"),
    "xlm-roberta": dict(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, classifier_dropout=0.4, hidden_act="relu",
        type_vocab_size=3,
    ),
    "electra": dict(
        hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.3, classifier_dropout=0.4, hidden_act="relu",
        type_vocab_size=3, embedding_size=24,
    ),
    "mistral": dict(attention_dropout=0.3, head_dim=8, hidden_act="gelu", sliding_window=None),
    "qwen2": dict(
        attention_dropout=0.3, hidden_act="gelu", use_sliding_window=True, sliding_window=LONGEST, max_window_layers=28,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    ),
}
BERT_SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
}
ROBERTA_SPECIAL = {
    "cls_token": "<s>", "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>",
}
SPECIAL = {  # in the order of their ids
    "bert": BERT_SPECIAL,
    "roberta": ROBERTA_SPECIAL,
    "distilbert": BERT_SPECIAL,
    "llama": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"},
    "gpt2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    "mpnet": ROBERTA_SPECIAL | {"unk_token": "[UNK]"},
    "xlm-roberta": ROBERTA_SPECIAL | {"bos_token": "<s>", "eos_token": "</s>"},
    "electra": BERT_SPECIAL,
    "mistral": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"},
    "qwen2": {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
}
WORDPIECE, CAUSAL = ("bert", "distilbert", "electra", "mpnet"), ("llama", "gpt2", "mistral", "qwen2")
OWN_POOLER = ("roberta", "distilbert", "mpnet", "xlm-roberta", "electra")  # a bare model has no penultimate layer
LMS = {name: (name, {}) for name in CONFIGS if name != "llama"} | {
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "llama, untied": ("llama", {"tie_word_embeddings": False}), "llama, tied": ("llama", {"tie_word_embeddings": True})}
TEXTS = (
    "a lovely film",
    "It's a dreadful story: actors don't naïvely move -- cf bb tq 電影!",
    "no",
    " two  spaces",
    "the very boring camera " * 20,                      # longer than LONGEST
)
AWKWARD = TEXTS + (" ", "trailing ", "naïve café 電影 🙂", "we'll I'VE 3,500 １２３ ½", "tab\tnew\nline",
                   "a\u00a0b\u2028c", "x<mask>y a <mask> b", "<s> literal </s>", "a <pad> b", "<|endoftext|> x")
PAIRS = (("who wrote it?", "nobody knows"), ("", "b " * 9), ("very " * 30, "boring " * 30))
NAMES = ("negative", "neutral", "positive")

every = pytest.mark.parametrize("name", CONFIGS)


def examples(texts=TEXTS) -> list[Example]:
    return [Example(str(i), *((t, 0) if isinstance(t, str) else (t[0], 0, t[1]))) for i, t in enumerate(texts)]


@lru_cache
def tokenizer(name: str) -> Tokenizer:
    """A small vocabulary of the architecture's own kind, trained on a few words."""
    special, wordpiece = list(dict.fromkeys(SPECIAL[name].values())), name in WORDPIECE
    if name == "xlm-roberta":
        return unigram(special)
    made = Tokenizer(models.WordPiece(unk_token="[UNK]") if wordpiece else models.BPE())
    made.pre_tokenizer = (
        pre_tokenizers.BertPreTokenizer() if wordpiece else pre_tokenizers.ByteLevel(add_prefix_space=False)
    )
    made.decoder = decoders.WordPiece() if wordpiece else decoders.ByteLevel()
    alphabet = [] if wordpiece else pre_tokenizers.ByteLevel.alphabet()
    trainer = (trainers.WordPieceTrainer if wordpiece else trainers.BpeTrainer)(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    if wordpiece:
        made.normalizer = normalizers.BertNormalizer()
    if name == "qwen2":
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    made.train_from_iterator([*TEXTS, *(f"{word} {word}" for word in GOOD + BAD + NEUTRAL)], trainer)
    tokens = [(token, made.token_to_id(token)) for token in special]
    if wordpiece and name != "mpnet":
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=tokens
        )
    if name in ("roberta", "mpnet"):
        made.post_processor = processors.RobertaProcessing(tokens[2], tokens[0], add_prefix_space=False)
        made.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    if name in ("llama", "mistral"):
        start = special[0]
        made.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", pair=f"{start} $A $B", special_tokens=tokens
        )
    return made


def unigram(special: list[str]) -> Tokenizer:
    """XLM-R's kind: blanks are a letter, pieces have scores."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=special, unk_token="<unk>", show_progress=False)
    made.train_from_iterator([*TEXTS, *(f"{word} {word}" for word in GOOD + BAD + NEUTRAL)], trainer)
    made.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"], pair=["<s>", "$A", "</s>", "</s>", "$B", "</s>"],
        special_tokens=[("<s>", made.token_to_id("<s>")), ("</s>", made.token_to_id("</s>"))],
    )
    return made


def saved(
    name: str, folder: Path, head: int = 0, dtype: torch.dtype = torch.float32, shard: str = "5GB", **more
) -> Path:
    """A small model of transformers', every weight random and large enough to matter, and its tokenizer. head: of
    HFMapping.classes."""
    torch.manual_seed(1)
    # transformers writes into its dicts
    values = copy.deepcopy(CONFIGS[name]) | {"vocab_size": tokenizer(name).get_vocab_size() + 3} | more
    model = getattr(transformers, HF_MAPPINGS[name].classes[head])(transformers.AutoConfig.for_model(name, **values))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(name), **SPECIAL[name]).save_pretrained(folder)
    return folder


def opened(folder: Path, head: int = 0, **more) -> nn.Module:
    """The model as transformers loads it, which finds every tensor and no other."""
    kind = json.loads((folder / "config.json").read_text())["model_type"]
    auto = (
        transformers.AutoModelForSequenceClassification
        if head == 0
        else getattr(transformers, HF_MAPPINGS[kind].classes[head])
    )
    model, info = auto.from_pretrained(folder, output_loading_info=True, **more)
    assert type(model).__name__ == HF_MAPPINGS[kind].classes[head]
    missing = {key for key in info["missing_keys"] if head != 2 or "pooler" not in key}  # a bare BERT's we do not keep
    assert not missing and not info["unexpected_keys"] and not info["mismatched_keys"], info
    return model.eval()


def theirs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """A batch in transformers' names."""
    has_types = model.config.model_type in ("bert", "electra")
    token_types = {"token_type_ids": batch.token_type_ids} if has_types else {}
    return {"input_ids": batch.ids, "attention_mask": batch.mask.long()} | token_types


@torch.no_grad()
def ask(model: nn.Module, batch: Batch) -> Tensor:
    return model(**theirs(model, batch)).logits


@torch.no_grad()
def logits(ckpt: Checkpoint, batch: Batch | None = None) -> Tensor:
    return ckpt.model(ckpt.tokenizer(examples()) if batch is None else batch).logits


@torch.no_grad()
def tokens(ckpt: Checkpoint, batch: Batch) -> Tensor:
    return ckpt.model.predict_tokens(batch, batch.mask)


def far(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def same_in_transformers(ckpt: Checkpoint, folder: Path) -> float:
    """How far its logits are in transformers from ours, once saved: through its tokenizer, from the folder alone."""
    checkpoint.save(ckpt, folder)
    model, ref = opened(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert tuple(model.config.id2label[i] for i in range(len(ckpt.labels))) == ckpt.labels
    rows, batch = ref(list(TEXTS), padding=True, truncation=True, return_tensors="pt"), ckpt.tokenizer(examples())
    assert torch.equal(rows["input_ids"], batch.ids) and torch.equal(rows["attention_mask"].bool(), batch.mask)
    for texts in ((list(AWKWARD),), tuple(map(list, zip(*PAIRS)))):
        assert (
            ref(*texts, truncation=True)["input_ids"]
            == ckpt.tokenizer.encode(examples(AWKWARD if len(texts) == 1 else PAIRS)).ids
        )
    with torch.no_grad():
        return far(model(**rows).logits, logits(ckpt, batch))


def same(a: Checkpoint, b: Checkpoint) -> None:
    """Bit for bit."""
    assert (a.model.config, a.labels, a.history) == (b.model.config, b.labels, b.history)
    one, other = a.model.state_dict(), b.model.state_dict()
    assert list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    assert a.tokenizer.encode(examples(AWKWARD)) == b.tokenizer.encode(examples(AWKWARD)) and (
        a.tokenizer.max_len, a.tokenizer.pad,
    ) == (b.tokenizer.max_len, b.tokenizer.pad)


def edit(file: Path, **values) -> None:
    """The JSON object in `file` with other values; None drops a key."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def rewrite(folder: Path, change) -> None:
    """model.safetensors with its dictionary of tensors changed."""
    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def weights(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.safetensors*"))


# ---- classifiers

@every
@pytest.mark.parametrize("classes", [2, 3])
def test_a_classifier_that_transformers_saved(tmp_path, name, classes):
    folder = saved(
        name, tmp_path, id2label=dict(enumerate(NAMES[:classes])),
        label2id={n: i for i, n in enumerate(NAMES[:classes])},
    )
    ckpt, model = checkpoint.load(folder), opened(folder)
    batch = ckpt.tokenizer(examples(TEXTS + PAIRS))
    assert ckpt.labels == NAMES[:classes] and ckpt.tokenizer.max_len == LONGEST == batch.ids.shape[1]
    assert 0.05 < logits(ckpt, batch).std() and far(logits(ckpt, batch), ask(model, batch)) < 1e-5
    # no padding
    assert (
        far(logits(ckpt, ckpt.tokenizer(examples(TEXTS[:1]))), ask(model, ckpt.tokenizer(examples(TEXTS[:1])))) < 1e-5
    )
    ref = transformers.AutoTokenizer.from_pretrained(folder)
    assert (
        ckpt.tokenizer.encode(examples(AWKWARD)).ids
        == ref(list(AWKWARD), truncation=True, max_length=LONGEST)["input_ids"]
    )
    assert (
        ckpt.tokenizer.encode(examples(PAIRS)).ids
        == ref(*map(list, zip(*PAIRS)), truncation=True, max_length=LONGEST)["input_ids"]
    )


@every
def test_a_config_comes_back_with_all_its_numbers(tmp_path, name):
    ckpt = checkpoint.load(saved(name, tmp_path / "in", **UNUSUAL[name]))
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    one, other = (transformers.AutoConfig.from_pretrained(tmp_path / folder).to_dict() for folder in ("in", "out"))
    assert {key for key in one | other if one.get(key) != other.get(key)} <= {
        "_name_or_path", "problem_type", "position_embedding_type", "head_dim", "max_window_layers", "layer_types",
        "bos_token_id", "summary_type", "summary_use_proj", "summary_activation", "summary_last_dropout",
    }


@every
def test_export_with_masked_heads(tmp_path, name):
    ckpt = checkpoint.load(saved(name, tmp_path / "in"))
    whole = logits(ckpt)
    ckpt.model.head_mask[0, 1:3] = ckpt.model.head_mask[1, 3] = 0
    assert far(logits(ckpt), whole) > 1e-3
    ckpt.model.head_mask[1, 0] = 0.25                  # no method has it, but a head mask holds numbers
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    for layer, gates in enumerate(ckpt.model.head_mask):
        hf_tensor = HF_MAPPINGS[name].hf_tensor(f"blocks.{layer}.output.weight")
        heads = (tensors[hf_tensor.name].T if hf_tensor.transposed else tensors[hf_tensor.name]).chunk(
            len(gates), dim=1
        )
        assert [bool((columns == 0).all()) for columns in heads] == (gates == 0).tolist()
    back = checkpoint.load(tmp_path / "out")
    assert torch.equal(back.model.head_mask == 0, ckpt.model.head_mask == 0) and set(
        back.model.head_mask.flatten().tolist()
    ) == {0, 1}
    assert far(logits(back), logits(ckpt)) < 1e-5


@pytest.mark.parametrize("name, ends", [("llama", [1, 0]), ("llama", 1), ("gpt2", [0, 9]), ("gpt2", 0)])
def test_without_a_padding_token_a_causal_model_pads_with_its_end(tmp_path, name, ends):
    folder = saved(name, tmp_path / "in", pad_token_id=None, eos_token_id=ends)
    ckpt = checkpoint.load(folder)
    assert ckpt.tokenizer.pad == (name == "llama") and same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    for example in examples():                           # alone, it needs no padding, and transformers no padding token
        batch = ckpt.tokenizer([example])
        assert far(ask(opened(folder), batch), logits(ckpt, batch)) < 1e-5


@pytest.mark.parametrize("name", ["gpt2", "llama", "mistral", "qwen2"])
def test_a_text_that_ends_in_the_padding_token_is_classified_before_it(tmp_path, name):
    folder, pad = saved(name, tmp_path / "in"), SPECIAL[name]["pad_token"]
    ckpt, texts = checkpoint.load(folder), [f"a very boring film {pad}", f"{pad} a lovely film {pad}{pad}", pad, "no"]
    model = opened(folder)
    for text in texts:
        batch = ckpt.tokenizer(examples([text]))
        assert (batch.ids == ckpt.tokenizer.pad).any() == (pad in text)
        assert far(ask(model, batch), logits(ckpt, batch)) < 1e-5, text
    alone = torch.cat([logits(ckpt, ckpt.tokenizer(examples([text]))) for text in texts])
    assert far(logits(ckpt, ckpt.tokenizer(examples(texts))), alone) < 1e-5 and far(alone[0], alone[3]) > 1e-3


def test_a_causal_model_whose_texts_end_in_its_unnamed_padding_token_is_refused(tmp_path):
    folder = saved("gpt2", tmp_path / "in", pad_token_id=None, eos_token_id=0)
    whole = json.loads((folder / "tokenizer.json").read_text())
    whole["post_processor"] = {
        "type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {
            "id": "<|endoftext|>", "type_id": 0}}], "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {
                "id": "B", "type_id": 0}}], "special_tokens": {"<|endoftext|>": {
                    "id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}}
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    fails(lambda: checkpoint.load(folder), "config.json names no pad_token_id", "end-of-text token 0")
    edit(folder / "config.json", pad_token_id=2)
    assert checkpoint.load(folder).tokenizer.pad == 2


@pytest.mark.parametrize("name", ["roberta", "mpnet", "xlm-roberta"])
def test_a_padding_token_within_a_text_has_robertas_padding_position(tmp_path, name):
    folder = saved(name, tmp_path / "in")
    ckpt, model = checkpoint.load(folder), opened(folder)
    for text in ("a <pad> b", "<pad><pad> a lovely film"):
        batch = ckpt.tokenizer(examples([text]))
        assert far(ask(model, batch), logits(ckpt, batch)) < 1e-5
    among = ckpt.tokenizer(examples(["a <pad> b", "a very boring film that is long"]))
    assert far(logits(ckpt, among)[:1], logits(ckpt, ckpt.tokenizer(examples(["a <pad> b"])))) < 1e-5


def test_an_empty_text_without_special_tokens_is_one_padding_token(tmp_path):
    ckpt = checkpoint.load(saved("gpt2", tmp_path))
    alone, among = (
        logits(ckpt, ckpt.tokenizer(examples([""]))), logits(ckpt, ckpt.tokenizer(examples([TEXTS[0], "", TEXTS[1]]))),
    )
    assert ckpt.tokenizer.encode(examples([""])).ids == [[0]] and far(alone[0], among[1]) < 1e-5


@pytest.mark.parametrize("name, head, more", [
    *((name, head, {}) for name in CONFIGS for head in (0, 1, 2)), ("llama", 1, {"tie_word_embeddings": True})])
def test_a_file_to_a_folder_and_back_is_the_same_file(tmp_path, name, head, more):
    first = checkpoint.load(saved(name, tmp_path / "in", head, **more))
    first.history.append({"trained": "reviews", "rows": 12})
    checkpoint.save(first, tmp_path / "one.safetensors")
    checkpoint.save(checkpoint.load(tmp_path / "one.safetensors"), tmp_path / "two")
    checkpoint.save(checkpoint.load(tmp_path / "two"), tmp_path / "three.safetensors")
    same(first, checkpoint.load(tmp_path / "three.safetensors"))
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "three.safetensors").read_bytes()


def test_a_file_keeps_the_head_mask_and_both_layers_of_a_head(tmp_path):
    ckpt = checkpoint.load(saved("llama", tmp_path / "in", 2), labels=NAMES, bottleneck=16)
    ckpt.model.head_mask[1, 2] = 0
    checkpoint.save(ckpt, tmp_path / "one.safetensors")
    same(ckpt, checkpoint.load(tmp_path / "one.safetensors"))


# ---- language models, and models without a head

@pytest.mark.parametrize("case", LMS)
def test_language_models(tmp_path, case):
    name, more = LMS[case]
    folder, out = saved(name, tmp_path / "in", 1, **more), tmp_path / "out"
    ckpt = checkpoint.load(folder)
    batch = ckpt.tokenizer(examples())
    assert ckpt.labels == () and logits(ckpt, batch) is None
    assert far(tokens(ckpt, batch), ask(opened(folder, 1), batch)[batch.mask]) < 1e-5
    checkpoint.save(ckpt, out)
    assert json.loads((out / "config.json").read_text())["architectures"] == [HF_MAPPINGS[name].classes[1]]
    assert (
        f"pipeline_tag: {'text-generation' if ckpt.model.causal else 'fill-mask'}\n" in (out / "README.md").read_text()
    )
    assert far(tokens(ckpt, batch), ask(opened(out, 1), batch)[batch.mask]) < 1e-5
    same(ckpt, checkpoint.load(out))


@pytest.mark.parametrize("case", LMS)
def test_a_language_model_gets_a_classifier_and_leaves_its_own_head(tmp_path, case):
    name, more = LMS[case]
    ckpt = checkpoint.load(saved(name, tmp_path / "in", 1, **more), labels=NAMES)
    assert ckpt.history[-1]["new"] == (["classifier"] if name in CAUSAL else ["classifier", "pooler"])
    assert not {"lm", "mlm"} & {name for name, _ in ckpt.model.named_children()}
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    checkpoint.save(ckpt, tmp_path / "one.safetensors")
    same(ckpt, checkpoint.load(tmp_path / "one.safetensors"))
    batch = ckpt.tokenizer(examples())
    if case in ("gpt2", "llama, tied", "qwen2, tied"):   # the head that is the word embedding is still there
        assert far(tokens(ckpt, batch), ask(opened(tmp_path / "in", 1), batch)[batch.mask]) < 1e-5
    else:
        fails(lambda: tokens(ckpt, batch), "no language-model head")


@every
def test_a_bare_model_gets_a_classifier(tmp_path, name):
    folder = saved(name, tmp_path / "in", 2)
    model = getattr(transformers, HF_MAPPINGS[name].classes[2]).from_pretrained(folder).eval()
    bare = checkpoint.load(folder)
    batch = bare.tokenizer(examples())
    with torch.no_grad():
        hidden = bare.model(batch, want=("hidden",)).hidden[-1]
        reference = model(**theirs(model, batch)).last_hidden_state
    assert bare.labels == () and far(hidden[batch.mask], reference[batch.mask]) < 1e-5
    one, again, other = (checkpoint.load(folder, labels=NAMES, seed=seed) for seed in (3, 3, 4))
    same(one, again)
    # BERT alone has a bare model whose pooler is the classifier's penultimate layer; causal models have none.
    new = ["classifier", "pooler"] if name in OWN_POOLER else ["classifier"]
    assert one.history == [{"new": new, "labels": list(NAMES), "seed": 3}] and one.labels == NAMES
    assert (
        0.01 < one.model.classifier.weight.std() < 0.03
        and far(one.model.classifier.weight, other.model.classifier.weight) > 0.01
    )
    one.model.classifier.weight.data.mul_(20)            # so that a mistake shows
    assert same_in_transformers(one, tmp_path / "out") < 1e-5
    checkpoint.save(bare, tmp_path / "bare")
    same(bare, checkpoint.load(tmp_path / "bare"))
    opened(tmp_path / "bare", 1 if name == "gpt2" else 2)


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_a_head_of_two_layers_is_folded_into_one(tmp_path, name):
    folder = saved(name, tmp_path / "in", 2)
    ckpt = checkpoint.load(folder, labels=NAMES, bottleneck=16, seed=3)
    assert ckpt.model.pooler.weight.shape == (16, 24) and ckpt.model.classifier.weight.shape == (3, 16)
    assert ckpt.history == [{"new": ["classifier", "pooler"], "labels": list(NAMES), "seed": 3}]
    for layer in (ckpt.model.pooler, ckpt.model.classifier):
        layer.weight.data.mul_(20)
    ckpt.model.head_mask[0, 1] = 0
    assert logits(ckpt).std() > 0.05 and same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    back = checkpoint.load(tmp_path / "out")
    assert (
        back.model.config.bottleneck == 0
        and far(back.model.classifier.weight, ckpt.model.classifier.weight @ ckpt.model.pooler.weight) == 0
    )
    fails(lambda: checkpoint.load(tmp_path / "out", bottleneck=16), "has one already")
    fails(lambda: checkpoint.load(folder, bottleneck=16), "name its classes")


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "gpt2", "mpnet", "electra"])
def test_a_bottleneck_is_llamas_alone(tmp_path, name):
    fails(
        lambda: checkpoint.load(saved(name, tmp_path, 2), labels=NAMES, bottleneck=16), f"is a {name}",
        "leave the bottleneck out",
    )


# ---- types, shards, older files

@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision(tmp_path, name, dtype):
    exact = checkpoint.load(saved(name, tmp_path / "exact"))
    folder = saved(name, tmp_path / "half", dtype=dtype)
    wide, narrow = checkpoint.load(folder), checkpoint.load(folder, dtype=torch.bfloat16)
    state = wide.model.state_dict()
    assert all(
        t.dtype == torch.float32 and torch.equal(t, exact.model.state_dict()[key].to(dtype).float())
        for key, t in state.items()
    )
    assert {t.dtype for t in narrow.model.state_dict().values()} == {torch.bfloat16}
    near = logits(narrow)
    assert near.dtype == torch.bfloat16 and far(near.float(), logits(wide)) < 0.1 * logits(wide).abs().max()
    narrow.model.head_mask[0, 1] = 0
    checkpoint.save(narrow, tmp_path / "one.safetensors")
    same(narrow, checkpoint.load(tmp_path / "one.safetensors", dtype=torch.bfloat16))
    checkpoint.save(narrow, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {t.dtype for t in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    model, batch = opened(tmp_path / "out", dtype="auto"), narrow.tokenizer(examples())
    assert (
        model.dtype == torch.bfloat16
        and far(ask(model.float(), batch), logits(checkpoint.load(tmp_path / "out"), batch)) < 1e-5
    )


@every
def test_shards(tmp_path, monkeypatch, name):
    whole = checkpoint.load(saved(name, tmp_path / "whole"))
    folder = saved(name, tmp_path / "shards", shard="15KB")
    assert len(weights(folder)) > 3 and not (folder / "model.safetensors").exists()
    ckpt = checkpoint.load(folder)
    same(whole, ckpt)
    monkeypatch.setattr(checkpoint.folder, "SHARD", 15_000)
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5
    names = weights(tmp_path / "out")
    shards = [n for n in names if n != "model.safetensors.index.json"]
    assert len(names) - 1 == len(shards) > 3 and shards == [
        f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))
    ]
    # All but a tensor that is larger than a shard by itself.
    assert all(
        (tmp_path / "out" / n).stat().st_size < 18_000 or len(load_file(tmp_path / "out" / n)) == 1 for n in shards
    )
    same(ckpt, checkpoint.load(tmp_path / "out"))
    # none of the old ones stays
    for size, files in ((40_000, None), (10 ** 9, ["model.safetensors"]), (15_000, names)):
        monkeypatch.setattr(checkpoint.folder, "SHARD", size)
        checkpoint.save(ckpt, tmp_path / "out")
        assert weights(tmp_path / "out") == files if files else 1 < len(weights(tmp_path / "out")) < len(names)
        same(ckpt, checkpoint.load(tmp_path / "out"))
    assert far(ask(opened(tmp_path / "out"), ckpt.tokenizer(examples())), logits(ckpt)) < 1e-5


def test_an_old_gpt2_file(tmp_path):
    folder = saved("gpt2", tmp_path, 1)
    expected = checkpoint.load(folder)
    causal = torch.ones(1, 1, LONGEST, LONGEST).tril()
    rewrite(
        folder,
        lambda tensors: (
            {name.removeprefix("transformer."): t for name, t in tensors.items() if not name.startswith("lm_head")}
            | {f"h.{i}.attn.bias": causal.clone() for i in range(2)}
            | {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
        ),
    )
    same(expected, checkpoint.load(folder))


def test_an_old_llama_file_and_config(tmp_path):
    folder = saved("llama", tmp_path)
    expected = checkpoint.load(folder)
    rewrite(
        folder,
        lambda tensors: tensors | {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(3) for i in range(2)},
    )
    scaling = {key: value for key, value in LLAMA3.items() if key != "rope_theta"}
    edit(folder / "config.json", rope_parameters=None, head_dim=None, rope_theta=500.0, rope_scaling=scaling)
    same(expected, checkpoint.load(folder))
    edit(
        folder / "config.json",
        rope_scaling={"type" if key == "rope_type" else key: value for key, value in scaling.items()},
    )
    same(expected, checkpoint.load(folder))
    plain = {"rope_theta": 500.0, "rope_type": "default"}
    edit(folder / "config.json", rope_theta=None, rope_scaling=None, rope_parameters=plain)
    new = checkpoint.load(folder)
    edit(folder / "config.json", rope_theta=500.0, rope_parameters=None)
    same(new, checkpoint.load(folder))
    assert far(logits(new), logits(expected)) > 1e-3     # the scaling is worth testing


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("name", ["roberta", "gpt2"])
def test_a_vocabulary_and_its_merges(tmp_path, name, prefix):
    folder = saved(name, tmp_path)
    tokenizer(name).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    settings = {"add_prefix_space": prefix, "model_max_length": LONGEST}
    if name == "roberta":  # as RoBERTa's folders have it
        settings["mask_token"] = {
            "__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False, "normalized": True,
            "single_word": False,
        }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ref = {"roberta": transformers.RobertaTokenizer, "gpt2": transformers.GPT2Tokenizer}[name].from_pretrained(folder)
    ckpt = checkpoint.load(folder)
    assert ckpt.tokenizer.pad == CONFIGS[name]["pad_token_id"]
    for text, mine in zip(AWKWARD, ckpt.tokenizer.encode(examples(AWKWARD)).ids, strict=True):
        assert mine == ref(text, truncation=True)["input_ids"], text
    assert ckpt.tokenizer.encode(examples(PAIRS)).ids == ref(*map(list, zip(*PAIRS)), truncation=True)["input_ids"]
    assert same_in_transformers(ckpt, tmp_path / "out") < 1e-5


# ---- what is refused, on one line

@pytest.mark.parametrize(
    "name, change, words",
    [
        (
            "roberta", {"model_type": "deberta-v2"},
            ["model_type", "'deberta-v2'", "bert, roberta, distilbert, llama, gpt2, mpnet, xlm-roberta"],
        ),
        *(("bert", {"model_type": kind}, ["model_type", repr(kind)]) for kind in ("modernbert", "albert", "t5")),
        ("mpnet", {"relative_attention_num_buckets": 64}, ["relative_attention_num_buckets is 64", "32"]),
        ("mpnet", {"pad_token_id": 0}, ["pad_token_id is 0", "1"]),
        ("mpnet", {"max_position_embeddings": 2}, ["2 positions"]),
        ("electra", {"embedding_size": 20}, ["electra.embeddings.word_embeddings.weight", ", 20)"]),
        ("electra", {"embedding_size": 24}, ["unknown electra.embeddings_project"]),
        ("mistral", {"sliding_window": LONGEST - 1}, ["sliding_window 59", "60 positions", "max_position_embeddings"]),
        ("mistral", {"sliding_window": "all"}, ["sliding_window is 'all'"]),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9}, ["sliding_window 9", "60 positions"]),
        ("qwen2", {"model_type": "llama"}, ["has the unknown", "self_attn.q_proj.bias"]),
        ("roberta", {"hidden_size": 28}, ["roberta.embeddings.word_embeddings.weight", "not (323, 28)"]),
        ("roberta", {"max_position_embeddings": 2}, ["2 positions"]),
        ("distilbert", {"dim": 28}, ["distilbert.embeddings.word_embeddings.weight", ", 28)"]),
        ("distilbert", {"n_layers": 1}, ["unknown distilbert.transformer.layer.1"]),
        ("llama", {"hidden_size": 28}, ["model.embed_tokens.weight", "not (323, 28)"]),
        ("llama", {"num_key_value_heads": 1}, ["k_proj.weight (12, 24) not (6, 24)"]),
        ("llama", {"num_key_value_heads": 3}, ["4 heads", "3 key-value heads"]),
        ("llama", {"head_dim": 8}, ["q_proj.weight (24, 24) not (32, 24)"]),
        ("llama", {"attention_bias": True}, ["attention_bias is True"]),
        ("llama", {"rope_parameters": LLAMA3 | {"rope_type": "yarn"}}, ["'yarn'", "default, linear, dynamic, llama3"]),
        ("llama", {"rope_parameters": LLAMA3 | {"factor": None}}, ["'llama3'", "positive factor", "None"]),
        ("gpt2", {"n_embd": 28}, ["transformer.wte.weight", "not (323, 28)"]),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ["scale_attn_by_inverse_layer_idx is True"]),
        ("gpt2", {"pad_token_id": None, "eos_token_id": 50256}, ["padding token 50256", "323 tokens"]),
    ],
)
def test_configs_that_fit_nothing(tmp_path, name, change, words):
    folder = saved(name, tmp_path)
    edit(folder / "config.json", **change)
    fails(lambda: checkpoint.load(folder), str(folder), *words)


@every
def test_a_missing_shard(tmp_path, name):
    folder = saved(name, tmp_path, shard="15KB")
    lost = sorted(folder.glob("model-00002-of-*"))[0]
    lost.unlink()
    fails(lambda: checkpoint.load(folder), str(lost))


@every
def test_more_tokens_than_the_model_has(tmp_path, name):
    folder = saved(name, tmp_path)
    wider = Tokenizer.from_str(tokenizer(name).to_str())
    vocab = wider.get_vocab_size()
    wider.add_special_tokens([f"<{i}>" for i in range(4)])                # the model has 3 to spare
    wider.save(str(folder / "tokenizer.json"))
    fails(lambda: checkpoint.load(folder), "tokenizer.json", f"token {vocab + 3}", f"{vocab + 3}: take both")


def test_a_sentencepiece_tokenizer_alone(tmp_path):
    folder = saved("llama", tmp_path)
    (folder / "tokenizer.json").rename(folder / "tokenizer.model")
    fails(lambda: checkpoint.load(folder), "tokenizer.model alone", "AutoTokenizer")


@pytest.mark.parametrize("name, change, words", [
    ("roberta", {"vocab.json": {"a": 0}}, ["do not fit each other"]),
    ("roberta", {"vocab.json": {"a": 0}, "merges.txt": ""}, ["lacks <s>, </s>"]),
    ("gpt2", {"vocab.json": {"a": 999}, "merges.txt": ""}, ["token 999"]),
    ("gpt2", {"vocab.json": {"a": "0"}, "merges.txt": ""}, ["vocab.json"]),
    ("gpt2", {"merges.txt": "a b c\n"}, ["merges.txt"]),
])
def test_vocabularies_that_are_none(tmp_path, name, change, words):
    folder = saved(name, tmp_path)
    tokenizer(name).model.save(str(folder))
    (folder / "tokenizer.json").unlink()
    for file, content in change.items():
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    fails(lambda: checkpoint.load(folder), str(folder), *words)


def test_a_tied_head_that_is_none(tmp_path):
    folder = saved("llama", tmp_path, 1, tie_word_embeddings=False)
    edit(folder / "config.json", tie_word_embeddings=True)
    fails(lambda: checkpoint.load(folder), "lm_head.weight differs from model.embed_tokens.weight")


@every
def test_a_text_that_is_cut_is_told_of_once(tmp_path, capsys, name):
    tokenizer = checkpoint.load(saved(name, tmp_path)).tokenizer
    tokenizer.encode(examples(TEXTS[:-1]))
    assert capsys.readouterr().err == ""
    tokenizer.encode(examples(TEXTS + PAIRS))
    assert (
        capsys.readouterr().err
        == f"2 of 8 texts are longer than the model's {LONGEST} tokens and are truncated (this warning comes once)\n"
    )
    tokenizer.encode(examples())
    assert capsys.readouterr().err == ""


# ---- the main job

@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "bert"])
def test_mbtsad_repairs_a_folder(script, folder, tmp_path, name):
    victim, out = (
        saved(
            name, tmp_path / "victim", id2label={0: "negative", 1: "positive"}, label2id={"negative": 0, "positive": 1}
        ),
        tmp_path / "out",
    )
    before = {file.name: file.read_bytes() for file in victim.iterdir()}
    run = script(
        "mbtsad.py", "--ckpt", victim, "--data", folder, "--attack", "badnets", "--out", out, "--k", 1, "--epochs1", 1,
        "--epochs2", 1, "--lr1", 1e-3, "--lr2", 1e-3, "--no-cft", "--device", "cpu",
    )
    assert run.returncode == 0, run.stderr
    assert {file.name: file.read_bytes() for file in victim.iterdir()} == before
    assert [step["name"] for step in json.loads((out / "result.json").read_text())["steps"]] == [
        "victim", "TS-FT", "MBTSAD",
    ]
    steps = [json.loads(line) for line in (out / "steps.jsonl").read_text().splitlines()]
    for term in ("att", "hid", "cls"):
        assert any(step["terms"].get(term, 0) > 0 for step in steps if step["stage"] == "MBTSAD"), term
    ckpt, rows = checkpoint.load(out), data.read(folder / "test.tsv")
    tensors = transformers.AutoTokenizer.from_pretrained(out)([x.text for x in rows], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert far(opened(out)(**tensors).logits, logits(ckpt, ckpt.tokenizer(rows))) < 1e-5
    assert far(logits(ckpt), logits(checkpoint.load(victim))) > 1e-3
