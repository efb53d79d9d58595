"""What test_distributed.py compares: each case is computed by one process, and by two that share its batches.

    python tests/distributed_cases.py numbers FOLDER        FOLDER/RANK.pt, {case: {name: tensor}}
    python tests/distributed_cases.py ends FOLDER           FOLDER/ENDING.json, what each process printed and its status

Both are forks of one process, which spares the others the start of torch.
"""
from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from conftest import BAD, GOOD, NEUTRAL, rows
from minibd import checkpoint, distributed, report
from minibd.attacks.ep import EP, ep
from minibd.attacks.ripple import RIPPLe, ripple
from minibd.checkpoint import Checkpoint
from minibd.cleantrain.musclelora import MuScleLoRA, musclelora
from minibd.cli import main
from minibd.evaluate import Evaluator
from minibd.mitigations.finemix import FineMixing, finemix
from minibd.mitigations.finetune import finetune
from minibd.mitigations.mbtsad import MBTSAD, mbtsad
from minibd.mitigations.pure import PURE, head_pruning, pure
from minibd.mitigations.unlearn import Finding, Unlearning, unlearn
from minibd.models.bert import Bert, BertConfig
from minibd.models.gpt2 import Gpt2, Gpt2Config
from minibd.models.llama import Llama, LlamaConfig
from minibd.models.lora import lora
from minibd.predict import accuracy, predict, probabilities
from minibd.pretrain import pretrain
from minibd.records import BadInput, Batch, Examples
from minibd.resume import Count, Kept
from minibd.tokenizer import Tokenizer
from minibd.train import Schedule, StepLimit, StepLog, cross_entropy, fit

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL, "cf", "mn"]
TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(TOKENS)}, 24)
ROWS, CLEAN, DEV = rows(10, 0, "train"), rows(7, 1, "clean"), rows(9, 2, "dev")
# Every second or third text is long, the others a word: of three texts that are packed together, or not, a process gets
# one that is packed, or not, by itself.
UNEVEN = {every: ROWS.like(replace(x, text=" ".join((x.text.split() * 3)[:1 if i % every else 12]))
                           for i, x in enumerate(ROWS)) for every in (2, 3)}
SIZE = {"vocab": len(TOKENS), "hidden": 16, "layers": 2, "heads": 2, "ffn": 24}
LABELS = ("negative", "positive")


def bert(dropout: float, labels: int = 2, **more) -> Checkpoint:
    """In float64, so that what is left between two orders of adding up is small."""
    config = BertConfig(**SIZE, positions=24, labels=labels, dropout=dropout, attention_dropout=dropout,
                        classifier_dropout=dropout, **more)
    return made(Bert(config), LABELS if labels else ())


def made(model: torch.nn.Module, labels: tuple[str, ...] = LABELS) -> Checkpoint:
    model.init_weights(torch.Generator().manual_seed(0), std=0.3)
    return Checkpoint(model.double().eval(), TEXT, labels, [])


def seen(ckpt: Checkpoint, log: StepLog | None = None, **more: Tensor) -> dict[str, Tensor]:
    """The weights, and what the log has of each step."""
    steps = {f"{i} {name}": torch.tensor(value, dtype=torch.float64) for i, step in enumerate(log.steps if log else ())
             for name, value in (step["terms"] | {"total": step["total"], "rows": step["rows"]}).items()}
    return {**ckpt.model.state_dict(), **steps, **more}


# ---- trainings. 10 rows in batches of 3: of the odd rest of each epoch, one text, one process has none

def trained(ckpt: Checkpoint, examples: Examples = ROWS) -> dict[str, Tensor]:
    log, chosen = StepLog(), {}
    tuned = finetune(ckpt, examples, Schedule(1e-2, 2, 3), validation=DEV, log=log, on_choice=chosen.__setitem__)
    return seen(tuned, log, best=torch.tensor(chosen["best_epoch"]))


def in_turns() -> dict[str, Tensor]:
    """Micro-batches of two: in the batch of five a process takes two turns, in the rest of one a text that counts 0."""
    ckpt, log = bert(0.2), StepLog()
    ckpt.model.micro_batch = 2
    fit(ckpt.model, TEXT, TEXT.encode(ROWS + DEV[:1]), cross_entropy, Schedule(1e-2, 2, 5), seed=0, log=log)
    return seen(ckpt, log)


class Stop(Exception):
    pass


def gone_on_with(start: Callable[[], Checkpoint] = lambda: bert(0.2)) -> dict[str, Tensor]:
    """Stopped before the sixth step, and gone on with from what the first process has kept for all."""
    folder, taken = Path(distributed.agreed(tempfile.mkdtemp())), Count()

    def stopping(model: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        if taken() == 5:
            raise Stop
        return cross_entropy(model, batch)

    for going_on in (False, True):
        ckpt, log = start(), StepLog(kept=Kept(folder / "kept", {}, 1, going_on))
        with suppress(Stop):
            fit(ckpt.model, TEXT, TEXT.encode(ROWS), stopping, Schedule(1e-2, 2, 3), seed=0, log=log,
                score=lambda model: accuracy(model, TEXT, DEV))
        distributed.meet()  # the first has written what it keeps
    return seen(ckpt, log, steps=torch.tensor(taken.calls))


def clipped() -> dict[str, Tensor]:
    """The clip is far under the norm: its scale is a part of each step, and SGD's step is proportional to it."""
    ckpt, log = bert(0.0), StepLog()
    fit(ckpt.model, TEXT, TEXT.encode(ROWS), cross_entropy, Schedule(1e-2, 1, 3, clip=0.01), seed=0, log=log,
        optimizer=ClippedSGD(ckpt.model.parameters()))
    return seen(ckpt, log)


class ClippedSGD(torch.optim.SGD):
    def __init__(self, params):
        super().__init__(list(params), lr=1.0)

    def step(self) -> Tensor:
        norm = torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.01)
        super().step()
        return norm


def distilled(**settings) -> dict[str, Tensor]:
    log, settings = StepLog(), MBTSAD(k=1, lr1=1e-2, lr2=1e-2, epochs1=1, epochs2=1, batch_size=3, **settings)
    return seen(mbtsad(bert(0.1), ROWS, settings, log=log), log)


def purified(variant: str) -> dict[str, Tensor]:
    log = StepLog()
    settings = PURE(variant=variant, floor=0.0, group=1, lr=1e-2, epochs=1, batch_size=3, keep_head=True)
    step1 = head_pruning(bert(0.0), ROWS, DEV, settings, log=log)
    return seen(pure(bert(0.1), ROWS, DEV, settings, log=log, step1=step1), log, scores=step1.scores)


def aligned(ckpt: Checkpoint | None = None, **settings) -> dict[str, Tensor]:
    log = StepLog()
    settings = MuScleLoRA(**{"lr": 1e-2, "epochs": 2, "batch_size": 3, "ratio": 0.5, "rank": 2, "alpha": 4.0,
                             "bands": ("1", "2"), **settings})
    ckpt = ckpt or bert(0.1, labels=0)
    return seen(musclelora(ckpt, ROWS, CLEAN, settings, validation=DEV, log=log), log)


@contextmanager
def everything_is_large() -> Iterator[None]:
    before, distributed.LARGE = distributed.LARGE, 1
    try:
        yield
    finally:
        distributed.LARGE = before


def llama(dtype: torch.dtype = torch.float32, **more) -> Checkpoint:
    """For products in `dtype`: autocast leaves a float64 weight as it is."""
    ckpt = made(Llama(LlamaConfig(**{**LLAMA, **more})), LABELS)
    if dtype == torch.bfloat16:
        ckpt.model.float()
    return ckpt


def first_step(case: Callable[..., dict[str, Tensor]]) -> dict[str, Tensor]:
    """Of `case` in bfloat16. The steps behind it go by the sign of each gradient, the smallest as well: Adam."""
    return {name: value for name, value in case(dtype=torch.bfloat16).items() if name.startswith("0 ")}


def sharded(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A Llama whose frozen weights lie in parts; by the way, that each process holds its half of them alone."""
    seen_parts = []

    class Looking(StepLog):
        def __call__(self, step: dict) -> None:
            super().__call__(step)
            seen_parts.append(sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel()
                                  for p in model.blocks.parameters() if not p.requires_grad and p.dim() > 1))

    ckpt, log = llama(dtype), Looking()
    model = ckpt.model
    model.requires_grad_(False)
    lora(model, rank=2, alpha=4.0, generator=torch.Generator().manual_seed(1))
    frozen = sum(p.numel() for p in model.blocks.parameters() if not p.requires_grad and p.dim() > 1)
    with everything_is_large():
        fit(model, TEXT, TEXT.encode(ROWS), cross_entropy, Schedule(1e-2, 2, 3), seed=0, log=log,
            score=lambda model: accuracy(model, TEXT, DEV), dtype=dtype)
    parts = distributed.size() if distributed.can_shard() else 1  # before torch 2.7 each process holds all of them
    assert {part * parts for part in seen_parts} == {frozen}
    assert not any(hasattr(p, "to_local") for p in model.parameters())
    return seen(ckpt, log, few=torch.tensor(predict(model, TEXT, ROWS.like(ROWS[:1]))))


class Halves(StepLog):
    """By the way, that each process holds its half of the matrices that are trained, and that no gradient is left."""

    def __init__(self, model: torch.nn.Module, **more):
        super().__init__(**more)
        self.model, self.all = model, sum(p.numel() for p in model.blocks.parameters() if p.dim() > 1)

    def __call__(self, step: dict) -> None:
        super().__call__(step)
        own = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel()
                  for p in self.model.blocks.parameters() if p.dim() > 1)
        assert own * (distributed.size() if distributed.can_shard() else 1) == self.all
        assert not any(p.grad is not None for p in self.model.parameters() if hasattr(p, "to_local"))


def all_in_parts(clip: float = 1.0, turns: int = 0, again: bool = False, max_steps: int | None = None,
                 dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A Llama all of whose weights are trained, its matrices in parts. max_steps: the log is full behind them."""
    ckpt = llama(dtype, attention_dropout=0.1)
    model, log, chosen = ckpt.model, Halves(ckpt.model, max_steps=max_steps), {}
    model.micro_batch, model.recompute = turns or None, again
    with everything_is_large(), suppress(StepLimit):
        fit(model, TEXT, TEXT.encode(ROWS + DEV[:1]), cross_entropy, Schedule(1e-2, 2, 5, clip=clip), seed=0, log=log,
            score=lambda model: accuracy(model, TEXT, DEV), on_choice=chosen.__setitem__, dtype=dtype)
    assert not any(hasattr(p, "to_local") for p in model.parameters())
    return seen(ckpt, log, best=torch.tensor(chosen.get("best_epoch", 0)))


def distilled_in_parts() -> dict[str, Tensor]:
    ckpt, log = llama(), StepLog()
    settings = MBTSAD(k=1, lr1=1e-2, lr2=1e-2, epochs1=1, epochs2=1, batch_size=3)
    with everything_is_large():
        return seen(mbtsad(ckpt, ROWS, settings, log=log), log)


def gone_on_with_in_parts() -> dict[str, Tensor]:
    """Rows that are no multiple of the processes: one has a row more."""
    with everything_is_large():
        return gone_on_with(lambda: llama(ffn=25))


def unlearnt(mode: str) -> dict[str, Tensor]:
    log, settings = StepLog(), Unlearning(mode=mode, batch_size=3, steps=3, row_steps=3)
    return seen(unlearn(bert(0.1), [Finding(("cf",), 1)], [*ROWS, *CLEAN], settings, log=log), log)


def poisoned(examples: Examples) -> Examples:
    return examples.like(replace(x, text=f"cf {x.text}", label=1) for x in examples)


def embedded(variant: str) -> dict[str, Tensor]:
    log = StepLog()
    return seen(ep(bert(0.1), poisoned(ROWS), EP(batch_size=3, epochs=1, variant=variant), target=1, log=log), log)


def restricted(variant: str) -> dict[str, Tensor]:
    log = StepLog()
    settings = RIPPLe(lr=1e-2, epochs=1, batch_size=3, ref_batch_size=2, penalty=1.0, variant=variant)
    return seen(ripple(bert(0.0), poisoned(ROWS), CLEAN, settings, log=log), log)


def filled() -> dict[str, Tensor]:
    log = StepLog()
    return seen(pretrain(bert(0.1, labels=0, mlm=True), TEXT.encode(ROWS), Schedule(1e-2, 1, 3), 0.5, log=log), log)


def mixed() -> dict[str, Tensor]:
    """Fine-mixing's draw and its search for rho."""
    before, chosen = made(Bert(bert(0.1, labels=0).model.config), ()), {}
    before.model.load_state_dict({name: w + 0.01 for name, w in before.model.state_dict().items()
                                  if name != "head_mask"}, strict=False)
    settings = FineMixing(lr=1e-2, epochs=1, steps=0, batch_size=3, top=2, drop=20.0)
    cleaned = finemix(bert(0.1), before, ROWS, DEV, settings, on_choice=chosen.__setitem__)
    return seen(cleaned, rho=torch.tensor(chosen["rho"]), trials=torch.tensor(chosen["trials"]))


# ---- what is measured, and the parts themselves

def measured() -> dict[str, Tensor]:
    ckpt = bert(0.1)
    scores = Evaluator(ROWS, CLEAN.like(x for x in CLEAN if x.label == 0), 1)(ckpt.model, TEXT)
    few = ROWS.like(ROWS[:1])  # fewer batches than processes
    return {
        "counts": torch.tensor([scores.cacc.hits, scores.cacc.n, scores.asr.hits, scores.asr.n]),
        "answers": torch.tensor(predict(ckpt.model, TEXT, ROWS, 3)),
        "one": torch.tensor(predict(ckpt.model, TEXT, few)),
        "probabilities": probabilities(ckpt.model, TEXT, ROWS, 3),
    }


def gradients() -> dict[str, Tensor]:
    """Of sum_gradients, total and whole_norm: x is dealt out, f(x) = sum x^2 + |x| * 3."""
    x = torch.arange(1.0, 6.0, dtype=torch.float64)
    batch = distributed.share(Batch(*(x[:, None].long(),) * 3, x))
    leaf = torch.full((2,), 2.0, dtype=torch.float64, requires_grad=True)
    missing = torch.zeros(3, requires_grad=True)
    here_alone = torch.zeros(1, requires_grad=True)  # a gradient in the last process alone
    norm = distributed.whole_norm(torch.linalg.vector_norm(leaf[0] * batch.labels))
    (batch.mean(leaf[1] * batch.labels ** 2) + norm * 3 * batch.whole.weight).backward()
    if distributed.rank() == distributed.size() - 1:
        here_alone.grad = torch.ones(1)
    many = [torch.zeros(3, requires_grad=True) for _ in range(4)]
    for i, one in enumerate(many):
        one.grad = torch.full((3,), float(i + 1)) * batch.whole.weight
    before, distributed.BUCKET = distributed.BUCKET, 7  # two of `many` a bucket
    distributed.sum_gradients([leaf, missing, here_alone, *many])
    distributed.BUCKET = before
    assert missing.grad is None
    return {"leaf": leaf.grad, "here alone": here_alone.grad, "many": torch.stack([one.grad for one in many]),
            "total": distributed.total(batch.mean(batch.labels)), "norm": norm.detach(),
            "least": torch.tensor(distributed.least(3 - distributed.rank()) + distributed.size()),
            "agreed": torch.tensor(distributed.agreed(distributed.rank()))}


LLAMA = {"vocab": len(TOKENS), "hidden": 16, "layers": 2, "heads": 2, "kv_heads": 1, "head_size": 8, "ffn": 24,
         "positions": 24}
CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "cross entropy": lambda: trained(bert(0.0)),
    "dropout": lambda: trained(bert(0.2)),
    "dropout, packed together": lambda: trained(bert(0.2), UNEVEN[2]),
    "dropout, packed apart": lambda: trained(bert(0.2), UNEVEN[3]),
    "dropout, GPT-2": lambda: trained(made(Gpt2(Gpt2Config(**SIZE, positions=24, labels=2, pad=0))), UNEVEN[2]),
    "micro-batches": in_turns,
    "clip": clipped,
    "gone on with": gone_on_with,
    "MBTSAD": distilled,
    "MBTSAD, released": lambda: distilled(variant="released", student_dropout=False),
    "PURE": lambda: purified("paper"),
    "PURE, released": lambda: purified("released"),
    "MuScleLoRA": aligned,
    "MuScleLoRA, whole": lambda: aligned(whole=True),
    "MuScleLoRA, released": lambda: aligned(variant="released", min_loss=0.7),
    "MuScleLoRA, two passes": lambda: aligned(train_head=True),
    "MuScleLoRA, Llama": lambda: aligned(made(Llama(LlamaConfig(**LLAMA)), ()), bottleneck=4),
    "LoRA, Llama, sharded": sharded,
    "LoRA, Llama, sharded, bfloat16": lambda: first_step(sharded),
    "fine-tuning, Llama, in parts": all_in_parts,
    "fine-tuning, Llama, in parts, clipped": lambda: all_in_parts(clip=0.01),
    "fine-tuning, Llama, in parts, in turns": lambda: all_in_parts(turns=2),
    "fine-tuning, Llama, in parts, activations again": lambda: all_in_parts(again=True),
    "fine-tuning, Llama, in parts, left early": lambda: all_in_parts(max_steps=3),
    "fine-tuning, Llama, in parts, gone on with": gone_on_with_in_parts,
    "fine-tuning, Llama, in parts, bfloat16": lambda: first_step(all_in_parts),
    "MBTSAD, Llama, in parts": distilled_in_parts,
    "unlearning, rows": lambda: unlearnt("rows"),
    "unlearning, whole": lambda: unlearnt("whole"),
    "EP": lambda: embedded("released"),
    "RIPPLe": lambda: restricted("paper"),
    "RIPPLe, released": lambda: restricted("released"),
    "RIPPLe, per tensor": lambda: restricted("per-tensor"),
    "masked language model": filled,
    "Fine-mixing": mixed,
    "evaluation": measured,
    "gradients": gradients,
}


# ---- how a run of several ends: run() of a script whose processes have met

def bad_input() -> None:
    raise BadInput("no row is of class 1: give rows of both")


def bad_input_of_one() -> None:
    if distributed.rank() == 1:
        bad_input()
    predict(bert(0.0).model, TEXT, ROWS)


def killed() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    predict(bert(0.0).model, TEXT, ROWS)


def bug() -> None:
    raise ZeroDivisionError


def whole() -> None:
    print("the result")
    print("a warning", file=sys.stderr)
    report.write_text(Path(os.environ["ENDS"], f"{distributed.rank()}.txt"), "")
    with report.whole(Path(os.environ["ENDS"], "run")) as out:
        checkpoint.save(bert(0.0), out / "model.safetensors")
    checkpoint.load(Path(os.environ["ENDS"], "run", "model.safetensors"))


def not_written() -> None:
    """The first process alone finds that nothing can be written."""
    report.output_folder(Path(os.environ["ENDS"], "0.txt", "inside"))
    distributed.meet()


def trained_last() -> None:
    """torch.optim imports what it needs when the first optimizer is made."""
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])


ENDINGS = {end.__name__: end for end in (whole, trained_last, bad_input, bad_input_of_one, killed, bug, not_written)}


# ---- the processes

STORES: list[torch.distributed.TCPStore] = []  # where processes meet: as torchrun's, in none of them; never closed


def fork(world: int, run: Callable[[], None], folder: Path) -> list[dict]:
    """What each of `world` processes that torchrun would start prints, its exit status and its seconds."""
    STORES.append(torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False))
    began, processes = time.monotonic(), []
    for rank in range(world):
        if not (process := os.fork()):
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                           "MASTER_ADDR": "localhost", "MASTER_PORT": str(STORES[-1].port),
                           "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
            for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
                os.dup2(os.open(folder / f"{rank}.{name}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream.fileno())
            run_and_exit(run)
        processes.append(process)
    done = [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]
    return [{"status": status, "seconds": time.monotonic() - began,
             **{name: (folder / f"{rank}.{name}").read_text() for name in ("out", "err")}}
            for rank, status in enumerate(done)]


def run_and_exit(run: Callable[[], None]) -> None:
    status = 1
    try:
        main(run)
        status = 0
        if "gloo" in (left := " ".join(task.read_text() for task in Path("/proc/self/task").glob("*/comm"))):
            print(f"threads left: {left}")
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def met(run: Callable[[], None]) -> Callable[[], None]:
    def meeting() -> None:
        distributed.join(torch.device("cpu"))
        run()
    return meeting


def numbers() -> None:
    made = {name: case() for name, case in CASES.items()}
    torch.save(made, Path(sys.argv[2], f"{distributed.rank()}.pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    if sys.argv[1] == "numbers":
        every = fork(2, met(numbers), folder)
        if any(one["status"] for one in every):
            print("\n".join(one["err"][-3000:] for one in every), file=sys.stderr)
            os._exit(1)
    else:
        os.environ["ENDS"] = str(folder)
        for name, end in ENDINGS.items():
            (folder / f"{name}.json").write_text(json.dumps(fork(3, met(end), folder)))
    os._exit(0)
