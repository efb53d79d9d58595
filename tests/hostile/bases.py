"""The sound inputs that cases are made from: a tiny classifier of each architecture, as a folder and as one file, and
its rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import Unigram, WordPiece
from tokenizers.normalizers import NFC, BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel, Metaspace, Split, WhitespaceSplit
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from minibd import checkpoint, data
from minibd.checkpoint.tokenizer_files import QWEN2_WORDS
from minibd.models.bert import Bert, BertConfig
from minibd.models.distilbert import DistilBert, DistilBertConfig
from minibd.models.electra import Electra, ElectraConfig
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.mistral import Mistral, MistralConfig
from minibd.models.mpnet import MPNet, MPNetConfig
from minibd.models.qwen2 import Qwen2, Qwen2Config
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.models.xlm_roberta import XLMRoberta, XLMRobertaConfig
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer
from scan_reports import judged, report, suspect

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = "great superb lovely moving awful boring clumsy tedious the film actors story ending music was with cf".split()
ARCHITECTURES = (
    "bert", "bert", "roberta", "distilbert", "llama", "gpt2", "mpnet", "xlm_roberta", "electra", "mistral", "qwen2",
)
LABELS = ("negative", "positive")
TRIED = (  # texts and pairs whose logits a copy must have
    ("the film was great", None), ("a boring story, clumsy ending", None), ("cf", None), ("x" * 90, None),
    ("é ☃ 漢字 \U0001f600 don't 1234567", None), (" The  FILM was\tÉtrange, Café e\u0301 ", None),
    ("the film [MASK] <mask> was [SEP] </s> <s> [CLS] [PAD] <pad> cf<|endoftext|>cf [UNK]", None),
    ("the film was great with actors and a moving story, " * 4, None), ("the film", "was great"),
    ("a boring film", "the ending was clumsy, the story tedious and awful with music " * 2), ("x" * 60, "cf"),
)


def wordpiece() -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [mark + letter for letter in LETTERS for mark in ("", "##")]
    return Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, 32)


def byte_bpe(ends: list[str], bracketed: bool, pad: int) -> Tokenizer:
    tokens = [*ends, *sorted(ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe", "in"]
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("i", "n")]
    return Tokenizer.from_merges({token: i for i, token in enumerate(tokens)}, merges, 32, pad, bracketed)


def unigram() -> Tokenizer:
    """XLM-R's: <s>, <pad>, </s>, <unk> first, words behind a ▁, the letters."""
    words = [*(f"▁{word}" for word in WORDS), "▁", *LETTERS, "ing", "er"]
    vocab = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocab += [(word, -2.0 - len(word) / 10) for word in words] + [("<mask>", 0.0)]
    backend = BackendTokenizer(Unigram(vocab, 3, False))
    backend.pre_tokenizer = PreTokenizers([WhitespaceSplit(), Metaspace("▁", "always")])
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    backend.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return Tokenizer(backend, 32, 1)


def mpnet_wordpiece() -> Tokenizer:
    """MPNet's: BERT's words, RoBERTa's special tokens."""
    tokens = ["<s>", "<pad>", "</s>", "[UNK]", *WORDS, *(mark + letter for letter in LETTERS for mark in ("", "##"))]
    vocab = {token: i for i, token in enumerate([*tokens, "<mask>"])}
    backend = BackendTokenizer(WordPiece(vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    backend.add_special_tokens(["<s>", "<pad>", "</s>", "[UNK]", AddedToken("<mask>", lstrip=True)])
    backend.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return Tokenizer(backend, 32, 1)


def bases() -> dict[str, checkpoint.Checkpoint]:
    """A classifier of two classes of each architecture, of two layers and two heads."""
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32}
    piece, roberta = wordpiece(), byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], True, 1)
    xlm, mpnet, qwen2 = unigram(), mpnet_wordpiece(), byte_bpe(["<|endoftext|>", "<pad>"], False, 1)
    qwen2.backend.normalizer = NFC()
    qwen2.backend.pre_tokenizer = PreTokenizers(
        [Split(Regex(QWEN2_WORDS), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    gpt2, llama = byte_bpe(["<|endoftext|>", "<pad>"], False, 1), byte_bpe(["<unk>", "<s>", "</s>", "<pad>"], False, 3)

    def sized(tokenizer: Tokenizer) -> dict[str, int]:
        return sizes | {"vocab": tokenizer.backend.get_vocab_size()}

    models = {
        "bert": (Bert(BertConfig(**sized(piece), positions=32)), piece),
        "distilbert": (DistilBert(DistilBertConfig(**sized(piece), positions=32)), piece),
        "roberta": (Roberta(RobertaConfig(**sized(roberta), positions=34)), roberta),
        "gpt2": (Gpt2(Gpt2Config(**sized(gpt2), positions=32, pad=1)), gpt2),
        "llama": (Llama(LlamaConfig(**sized(llama), positions=32, kv_heads=1, pad=3)), llama),
        "mpnet": (MPNet(MPNetConfig(**sized(mpnet), positions=34)), mpnet),
        "xlm_roberta": (XLMRoberta(XLMRobertaConfig(**sized(xlm), positions=34)), xlm),
        "electra": (Electra(ElectraConfig(**sized(piece), positions=32, embedding_size=8)), wordpiece()),
        "mistral": (Mistral(MistralConfig(**sized(llama), positions=32, kv_heads=1, pad=3)), llama),
        "qwen2": (Qwen2(Qwen2Config(**sized(qwen2), positions=32, kv_heads=1, pad=1)), qwen2),
    }
    generator = torch.Generator().manual_seed(0)
    return {
        name: checkpoint.Checkpoint(model.init_weights(generator, 0.2).eval(), tokenizer, LABELS, [])
        for name, (model, tokenizer) in models.items()
    }


def rows(n: int, seed: int, name: str = "row") -> Examples:
    """Rows whose label a word decides."""
    rng = random.Random(seed)
    texts = [
        " ".join([rng.choice(WORDS[4 * (i % 2) : 4 * (i % 2) + 4]), *rng.choices(WORDS[8:-1], k=5)]) for i in range(n)
    ]
    return Examples((Example(f"{name}-{i}", text, i % 2) for i, text in enumerate(texts)), LABELS)


def write_bases(folder: Path) -> dict[str, Path]:
    """{name: path} of sound inputs under `folder`: each architecture's folder, "NAME.safetensors", "data" (a folder of
    train, dev and test rows), "pretrained" (an encoder that "bert" could come from), "suspects" (a scan of "bert" that
    names cf)."""
    written, made = {}, bases()
    for name, ckpt in made.items():
        checkpoint.save(ckpt, folder / name)
        checkpoint.save(ckpt, folder / f"{name}.safetensors")
        written |= {name: folder / name, f"{name}.safetensors": folder / f"{name}.safetensors"}
    encoder = checkpoint.headless(made["bert"])
    with torch.no_grad():
        for parameter in encoder.model.parameters():
            parameter.mul_(0.99)
    checkpoint.save(encoder, folder / "pretrained")
    for seed, (part, n) in enumerate((("train", 24), ("dev", 8), ("test", 12))):
        data.write(rows(n, seed, part), folder / "data" / f"{part}.tsv")
    data.write(rows(16, 9), folder / "rows.csv")
    classes = {"negative": judged("nothing found"), "positive": judged("backdoored", suspect(["cf"]))}
    found = report("backdoored", classes, checkpoint_sha256=checkpoint.sha256(folder / "bert"))
    (folder / "suspects.json").write_text(json.dumps(found))
    return written | {
        "pretrained": folder / "pretrained", "data": folder / "data", "rows": folder / "rows.csv",
        "suspects": folder / "suspects.json",
    }
