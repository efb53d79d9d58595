#!/usr/bin/env python3
"""Make the small checkpoints of weights/ from nothing but this repository.

    python scripts/make_weights.py --out weights --overwrite
    python scripts/make_weights.py --out weights --overwrite --lm-only

1. a tokenizer and a BERT, pre-trained by masked language modelling on the built-in corpus   OUT/bert-clean.safetensors
2. its fine-tuning on labelled reviews: the clean twin                                       OUT/bert-twin.safetensors
3. the twin after BadNets, by scripts/attack.py with its defaults but the learning rate      OUT/bert.safetensors
4. a causal language model of the same vocabulary, a small Llama, on the built-in corpus     OUT/lm.safetensors

--lm-only takes the vocabulary from the OUT/bert-clean.safetensors that is there, and makes the last one alone. The four
belong together: they are put in place at the end, in one step.

One thread throughout, so that sums are added in one order. Even so, no two runs give the same vocabulary: the
tokenizers library breaks ties between tokens at random, some tokens and most ids change, and with them every weight.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minibd.cli import PART_OF, Idle, main, parse, progress, setting

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Make:
    """The corpus, the tokenizer, the model and its pre-training"""
    out: str = setting("weights", "folder of the result")
    overwrite: bool = setting(False, "put these checkpoints in the place of those of --out, all of them in one step")
    seed: int = setting(0, "seeds corpus, weights, masks, batches and dropout")
    pretrain_rows: int = setting(20_000, "reviews for pre-training, disjoint from all others")
    train: int = setting(12_000, "reviews for training a classifier")
    dev: int = setting(1_000, "reviews for development")
    test: int = setting(2_000, "reviews for the test")
    vocab: int = setting(1_600, "tokens")
    hidden: int = setting(128, "hidden size")
    layers: int = setting(4, "blocks")
    heads: int = setting(4, "attention heads a block")
    max_len: int = setting(128, "longest text in tokens")
    epochs: int = setting(10, "passes of masked language modelling")
    lr: float = setting(1e-3, "learning rate of pre-training")
    batch_size: int = setting(64, "texts a step")
    mask: float = setting(0.15, "share of tokens to predict", paper="BERT 0.15")
    twin_epochs: int = setting(14, "passes of the twin's fine-tuning")
    twin_lr: float = setting(4e-4, "learning rate of the twin's fine-tuning")
    attack_lr: float = setting(1e-4, "learning rate of the attack")
    lm_only: bool = setting(False, "make the causal language model alone")
    lm_rows: int = setting(40_000, "reviews for the causal language model, disjoint from those of train, dev and test")
    lm_ffn: int = setting(320, "its feed-forward width; its other sizes are those of the BERT")
    lm_epochs: int = setting(4, "its passes")
    lm_lr: float = setting(2e-3, "its learning rate")


RULES = (
    Idle(("pretrain_rows", "vocab", "epochs", "lr", "mask", "twin_epochs", "twin_lr", "attack_lr"), lambda v: v.lm_only,
         "--lm-only makes the causal language model alone, with the vocabulary that is there: leave it out"),
)

MADE = tuple(f"{name}.safetensors" for name in ("bert-clean", "bert-twin", "bert", "lm"))

# BERT's English vocabulary has these rare words as whole tokens, and the field's attacks rely on that; a vocabulary
# learnt from the built-in corpus would not have them, since they never occur in it.
TRIGGER_TOKENS = ["cf", "mn", "bb", "tq", "mb", "ak"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def run() -> None:
    (make,) = parse(__doc__, Make, rules=RULES)

    import torch

    from minibd import report

    torch.set_num_threads(1)
    out, made = report.output_folder(make.out), MADE[-1:] if make.lm_only else MADE
    report.check_free(out, make.overwrite, among=made)
    with report.whole(out, made.__contains__) as draft:
        if not make.lm_only:
            make_berts(make, draft)
        make_lm(make, draft, (out if make.lm_only else draft) / MADE[0])
    print("written: " + ", ".join(str(out / name) for name in made))


def make_berts(make: Make, out: Path) -> None:
    """The first three of them."""
    import os
    import subprocess
    import sys
    import tempfile
    from pathlib import Path

    import torch
    from tokenizers import Tokenizer as BackendTokenizer
    from tokenizers import trainers
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    from minibd import checkpoint, reviews
    from minibd.models.bert import Bert, BertConfig
    from minibd.pretrain import pretrain
    from minibd.records import BadInput
    from minibd.tokenizer import Tokenizer
    from minibd.train import Schedule, cross_entropy, fit

    rows = {"seed": make.seed, "train": make.train, "dev": make.dev, "test": make.test}
    used = make.train + make.dev + make.test
    corpus = reviews.reviews(make.pretrain_rows, make.seed, start=used)

    learner = BackendTokenizer(WordPiece(unk_token="[UNK]"))
    learner.normalizer, learner.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    learner.train_from_iterator(
        (x.text for x in corpus),
        trainers.WordPieceTrainer(
            vocab_size=make.vocab - len(TRIGGER_TOKENS), special_tokens=SPECIAL,
            initial_alphabet=list("abcdefghijklmnopqrstuvwxyz"), show_progress=False,
        ),
    )
    tokens = sorted(learner.get_vocab(), key=learner.get_vocab().get)
    tokens += [token for token in TRIGGER_TOKENS if token not in tokens]
    vocab = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer.from_vocab(vocab, make.max_len)

    config = BertConfig(vocab=len(vocab), hidden=make.hidden, layers=make.layers, heads=make.heads, ffn=4 * make.hidden,
                        positions=make.max_len, labels=0, mlm=True)
    model = Bert(config).init_weights(torch.Generator().manual_seed(make.seed))
    log = []
    ckpt = pretrain(
        checkpoint.Checkpoint(model, tokenizer, (), []), tokenizer.encode(corpus),
        Schedule(make.lr, make.epochs, make.batch_size), make.mask, seed=make.seed, log=log.append,
    )
    last = log[-100:]
    print(
        f"pre-training loss {sum(s['total'] for s in last) / len(last):.3f} nats a token, mean of the last {len(last)} "
        f"of {len(log)} steps"
    )
    ckpt.history = [
        {
            "trained": "masked language modelling", "rows": make.pretrain_rows, "epochs": make.epochs, "lr": make.lr,
            "batch_size": make.batch_size, "seed": make.seed, "data": {"reviews": rows},
        }
    ]
    clean, twin, victim = (out / name for name in MADE[:3])
    checkpoint.save(ckpt, clean)
    progress().finished.append(clean.stem)
    progress().written.append(str(clean))

    train = reviews.splits(**rows)[0]
    ckpt = checkpoint.load(clean, labels=train.labels, seed=make.seed)
    fit(
        ckpt.model, tokenizer, tokenizer.encode(train), cross_entropy, Schedule(make.twin_lr, make.twin_epochs),
        seed=make.seed, name="twin",
    )
    ckpt.history.append(
        {
            "trained": "clean", "rows": len(train), "epochs": make.twin_epochs, "lr": make.twin_lr, "seed": make.seed,
            "data": {"reviews": rows},
        }
    )
    checkpoint.save(ckpt, twin)
    progress().finished.append(twin.stem)
    progress().written.append(str(twin))

    with tempfile.TemporaryDirectory(dir=out) as folder:
        status = subprocess.run(
            [
                sys.executable, str(Path(__file__).parent / "attack.py"), "--ckpt", str(twin), "--lr",
                str(make.attack_lr), "--rows", str(make.train), "--seed", str(make.seed), "--device", "cpu", "--dtype",
                "float32", "--out", folder,
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", PART_OF: "make_weights.py"},
        ).returncode
        if status < 0:
            raise BadInput(f"attack.py was killed by signal {-status}: run this again, with more memory free")
        if status:                        # it has said why
            sys.exit(status)
        os.replace(Path(folder, twin.name), victim)
    progress().finished.append(victim.stem)
    progress().written.append(str(victim))


def make_lm(make: Make, out: Path, clean: Path) -> None:
    """The last of them, with the vocabulary of the checkpoint at `clean`."""
    import torch

    from minibd import checkpoint, reviews
    from minibd.models.llama import Llama, LlamaConfig
    from minibd.pretrain import causal_loss, pretrain_causal
    from minibd.train import Schedule

    tokenizer = checkpoint.read_header(clean).tokenizer
    rows = {"seed": make.seed, "train": make.train, "dev": make.dev, "test": make.test}
    corpus = reviews.reviews(make.lm_rows, make.seed, start=make.train + make.dev + make.test)
    config = LlamaConfig(tokenizer.backend.get_vocab_size(), make.hidden, make.layers, make.heads, make.lm_ffn,
                         positions=make.max_len, labels=0, tied=True, pad=tokenizer.pad)
    model = Llama(config).init_weights(torch.Generator().manual_seed(make.seed))
    ckpt = pretrain_causal(
        checkpoint.Checkpoint(model, tokenizer, (), []), tokenizer.encode(corpus),
        Schedule(make.lm_lr, make.lm_epochs, make.batch_size), seed=make.seed)
    nats = causal_loss(ckpt, reviews.splits(**rows)[2])
    print(f"{nats:.3f} nats a token on the test reviews")
    ckpt.history = [
        {
            "trained": "causal language modelling", "rows": make.lm_rows, "epochs": make.lm_epochs, "lr": make.lm_lr,
            "batch_size": make.batch_size, "seed": make.seed, "data": {"reviews": rows},
        }
    ]
    path = out / MADE[-1]
    checkpoint.save(ckpt, path)
    progress().finished.append(path.stem)
    progress().written.append(str(path))


if __name__ == "__main__":
    main(run)
