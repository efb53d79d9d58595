#!/usr/bin/env python3
"""Train a masked language model on plain texts: a head, fitted to the rows, for a checkpoint without one.

    python scripts/pretrain.py --ckpt FOLDER --data FOLDER_OR_FILE --out MLM
    python scripts/mbtsad.py --ckpt VICTIM --augment contextual --mlm MLM

For contextual augmentation (CWEA), where a masked language model proposes the new words. The whole encoder is trained;
labels are not used; a classifier is dropped. Prints the loss on the test rows in nats a masked token, before (about ln
of the vocabulary size for a new head) and after, and says so where it did not fall, or is no lower than guessing each
token by its frequency. Use a checkpoint that you trust: the words it proposes go into the
rows that the defence trains on.
"""
from __future__ import annotations

from dataclasses import dataclass

from minibd.cli import Resuming, Task, main, parse, progress, setting
from minibd.lines import visible


@dataclass(frozen=True, slots=True)
class Pretraining:
    """BERT's pre-training, masked language modelling alone"""
    epochs: int = setting(10, "passes over the train rows", paper="40, of other text")
    lr: float = setting(5e-4, "learning rate", paper="1e-4")
    batch_size: int = setting(64, "texts a step", paper="256")
    mask: float = setting(0.15, "share of tokens to predict", paper="0.15")


def run() -> None:
    task, resuming, settings = parse(__doc__, Task, Resuming, Pretraining)

    from dataclasses import asdict

    from minibd import checkpoint, report
    from minibd.job.resuming import keeper
    from minibd.job.task import (
        check_columns,
        data_of,
        device_of,
        output_path,
        print_dtype,
        print_notes,
        products_of,
        sparing,
        splits_of,
        texts_at_once,
    )
    from minibd.pretrain import frequency_loss, masked_loss, pretrain
    from minibd.resume import done, once
    from minibd.train import Schedule, StepLog

    schedule = Schedule(settings.lr, settings.epochs, settings.batch_size)
    device, _ = device_of(task.device), texts_at_once(task)
    out = report.output_folder(task.out or "out/pretrain", task.ckpt, task.data)
    report.check_free(out, task.overwrite, resuming=resuming)
    header = checkpoint.read_header(task.ckpt)
    check_columns(task, header)
    splits = splits_of(task, header)
    print_notes(splits)
    print_dtype(task)
    log = StepLog(kept=keeper("pretrain", out, task, resuming, header, settings), listens=False)
    ckpt = sparing(checkpoint.load(header, device), task)
    start = checkpoint.with_mlm(ckpt, task.seed)
    before = once(log, "loss before", lambda: masked_loss(start, splits.test, settings.mask, task.seed))
    learner = pretrain(
        ckpt, ckpt.tokenizer.encode(splits.train), schedule, settings.mask, seed=task.seed,
        dtype=products_of(task), log=log,
    )
    after = once(log, "loss after", lambda: masked_loss(learner, splits.test, settings.mask, task.seed))
    print(
        f"{len(splits.train)} train rows, {len(splits.test)} test rows: {before:.3f} nats a masked token before, "
        f"{after:.3f} after"
    )
    guessed = frequency_loss(ckpt.tokenizer, splits.train, splits.test)
    if line := not_learnt(before, after, guessed, settings, len(splits.train)):
        print(line)
    learner.history.append(
        {
            "trained": "masked language modelling", "rows": len(splits.train), "seed": task.seed, **asdict(settings),
            "data": data_of(task, ckpt), "nats": {"before": before, "after": after, "by_frequency": guessed},
        }
    )
    with report.whole(out) as draft:
        checkpoint.save(learner, path := output_path(draft, task.ckpt))
        progress().written.append(str(path))
    done(log)
    print(f"written: {visible(progress().written[-1], 1000)}")


def not_learnt(before: float, after: float, guessed: float, settings: Pretraining, rows: int) -> str:
    """The line that says that nothing was learnt, and what to try; "" where something was. guessed: the loss of
    guessing by frequency, the others those of the model; nats a masked token."""
    usual = Pretraining()
    lr = f"--lr {usual.lr:g}" if not usual.lr / 3 <= settings.lr <= usual.lr * 3 else "another --lr"
    tries = (f"try {lr} (now {settings.lr:g}), --epochs {2 * settings.epochs} (now {settings.epochs}), more rows (now "
             f"{rows})")
    if not after < before:
        return f"nothing learnt: the loss did not fall, from {before:.3f} to {after:.3f} nats a masked token; {tries}"
    if not after < guessed:
        found = f"{after:.3f} nats a masked token, and guessing by each token's frequency gets {guessed:.3f}"
        return f"at chance: {found}; {tries}"
    return ""


if __name__ == "__main__":
    main(run)
