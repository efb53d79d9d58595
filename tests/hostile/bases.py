"""The sound inputs that cases are made from: a tiny classifier of each architecture, as a folder and as one file, and
its rows."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers.pre_tokenizers import ByteLevel

from minibd import checkpoint, data
from minibd.models.bert import Bert, BertConfig
from minibd.models.distilbert import DistilBert, DistilBertConfig
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = "great superb lovely moving awful boring clumsy tedious the film actors story ending music was with cf".split()
LABELS = ("negative", "positive")
TRIED = ("the film was great", "a boring story, clumsy ending", "cf", "é ☃ 漢字 \U0001f600 don't 1234567", "x" * 90)


def wordpiece() -> Tokenizer:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    tokens += [mark + letter for letter in LETTERS for mark in ("", "##")]
    return Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, 32)


def byte_bpe(ends: list[str], bracketed: bool, pad: int) -> Tokenizer:
    tokens = [*ends, *sorted(ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe", "in"]
    merges = [("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("i", "n")]
    return Tokenizer.from_merges({token: i for i, token in enumerate(tokens)}, merges, 32, pad, bracketed)


def bases() -> dict[str, checkpoint.Checkpoint]:
    """A classifier of two classes of each architecture, of two layers and two heads."""
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "ffn": 32}
    piece, roberta = wordpiece(), byte_bpe(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], True, 1)
    gpt2, llama = byte_bpe(["<|endoftext|>", "<pad>"], False, 1), byte_bpe(["<unk>", "<s>", "</s>", "<pad>"], False, 3)

    def sized(tokenizer: Tokenizer) -> dict[str, int]:
        return sizes | {"vocab": tokenizer.backend.get_vocab_size()}

    models = {
        "bert": (Bert(BertConfig(**sized(piece), positions=32)), piece),
        "distilbert": (DistilBert(DistilBertConfig(**sized(piece), positions=32)), piece),
        "roberta": (Roberta(RobertaConfig(**sized(roberta), positions=34)), roberta),
        "gpt2": (Gpt2(Gpt2Config(**sized(gpt2), positions=32, pad=1)), gpt2),
        "llama": (Llama(LlamaConfig(**sized(llama), positions=32, kv_heads=1, pad=3)), llama),
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
    train, dev and test rows), "pretrained" (an encoder that "bert" could come from)."""
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
    return written | {"pretrained": folder / "pretrained", "data": folder / "data"}
