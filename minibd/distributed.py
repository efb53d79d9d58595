"""Many processes, one training, with the numbers of one process: the only file that knows of torch.distributed.

    torchrun --nproc-per-node N scripts/mbtsad.py ...       the same flags, the same global batch

Every process runs the same script on the same rows and draws the same plan of batches. Of a batch it computes its
`share` of the texts; a loss is one value a text, so `Batch.mean` of a share is its part of the mean over the whole
batch, and the gradients' sum over the processes (`sum_gradients`) is the gradient of that mean. From there on all
processes do the same: one norm to clip to, the same step, the same weights bit by bit. What an equation takes over a
whole batch (MuScleLoRA's clean loss, RIPPLe's inner product, the released PURE's norm) goes through `total`, whose
gradient is right, too. `predict` shares its batches and gathers the answers. What one process chose, `agreed` hands to
the others. The first process writes and prints (`leads`); cli.main ends a run of several.

Gradients are summed in plain all-reduces over flattened gradients, not by DistributedDataParallel: that wraps a forward
pass whose gradients backward() leaves in the parameters, and averages processes as if each had as many texts. Here a
loss calls the model once, twice (MuScleLoRA's second pass) or through torch.autograd.grad (RIPPLe, EP), gradients also
go to the twins of parameters (align.py), and an odd rest leaves a process fewer texts, or none. The price: the sum
begins when the backward pass has ended, where DDP overlaps the two.

A world of one has nothing to sum: every function returns what it was given, and no caller asks how many there are.
"""
from __future__ import annotations

import copy
import inspect
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minibd.cli import RankLost, progress
from minibd.records import BadInput, Batch

T = TypeVar("T")
GIVEN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun tells a process
PATIENCE = timedelta(minutes=30)  # that one process waits for another: one may be writing a large checkpoint
LARGE = 1_000_000_000  # weights of a model's blocks, from which on each process holds a part: 4 GB of float32
BUCKET = 25_000_000  # numbers that are summed at once: what a sum needs beside the gradients, 100 MB of float32


def joined() -> bool:
    """Whether this process has met others (some builds of torch know of none)."""
    return dist.is_available() and dist.is_initialized()


def size() -> int:
    """How many processes train together."""
    return dist.get_world_size() if joined() else 1


def rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if joined() else 0


def leads() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


# ---- a step

def share(batch: Batch) -> Batch:
    """This process's texts of `batch`: neighbours, as many as the others', or one more. Where there are more processes
    than texts, some get a text that another one computes, too, at weight 0, so that all take the same steps."""
    if size() == 1:
        return batch
    n = len(batch.labels)
    start, end = n * rank() // size(), n * (rank() + 1) // size()
    return batch.some(range(start, end)) if start < end else batch.some([0], weight=0.0)


def sum_gradients(leaves: Sequence[Tensor]) -> None:
    """Replace the gradient of each of `leaves` by its sum over the processes; it stays missing where it is missing in
    all of them."""
    if size() == 1 or not leaves:
        return
    there = _reduced(torch.tensor([leaf.grad is not None for leaf in leaves], dtype=torch.int32,
                                  device=leaves[0].device)).tolist()
    leaves = [leaf for leaf, n in zip(leaves, there) if n]
    for leaf in leaves:
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
    bucket: list[Tensor] = []
    for i, leaf in enumerate(leaves):
        bucket.append(leaf.grad)
        following = leaves[i + 1].grad if i + 1 < len(leaves) else None
        if (
            following is None or (following.dtype, following.device) != (leaf.grad.dtype, leaf.grad.device)
            or sum(grad.numel() for grad in bucket) + following.numel() > BUCKET
        ):
            flat = _reduced(torch.cat([grad.flatten() for grad in bucket]))
            for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket])):
                grad.copy_(summed.view_as(grad))
            bucket = []


class _Total(torch.autograd.Function):
    """y = the sum of x over the processes, the same y in each. With L the sum of the processes' losses, dL/dx is the
    sum over the processes of their dL/dy."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return _reduced(x.clone())

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return _reduced(dy.clone())


def total(x: Tensor) -> Tensor:
    """The sum of x over the processes, of x's shape, for a loss as for a number that is logged."""
    return x if size() == 1 else _Total.apply(x)


def sums(xs: Sequence[Tensor]) -> list[Tensor]:
    """The sum over the processes of each of `xs`, of one type; without gradients."""
    if size() == 1:
        return list(xs)
    flat = _reduced(torch.cat([x.detach().flatten() for x in xs]))
    return [part.view_as(x) for part, x in zip(flat.split([x.numel() for x in xs]), xs)]


def whole_norm(norms: Tensor) -> Tensor:
    """The 2-norm of a vector of which each process has a part, of their `norms`; elementwise, with its gradient."""
    with torch.no_grad():
        whole = sums([norms.square()])[0].sqrt().clamp(min=torch.finfo(norms.dtype).tiny)
        shares = norms / whole
    return total(norms * shares)


# ---- an evaluation, a choice

def turns(plan: Sequence[T]) -> list[tuple[T, bool]]:
    """The batches of a plan that this process evaluates, and whether each counts: as many for every process, since a
    forward pass of a model that is `sharded` takes all of them, and so some get one that is another's."""
    mine = plan[rank()::size()]
    return [(batch, True) for batch in mine] + [(plan[0], False) for _ in range(-(-len(plan) // size()) - len(mine))]


def agreed(value: T) -> T:
    """The first process's `value`: what a choice goes by that each has computed by itself."""
    if size() == 1:
        return value
    box = [value]
    with _Watched():
        dist.broadcast_object_list(box, src=0, device=_device())
    return box[0]


def least(n: int) -> int:
    """The least of the processes' numbers n."""
    return min(_gathered(n))


# ---- weights that are too many for each process

class Shards:
    """Trained matrices of which each process holds a part, for the length of a training.

    matrices: as the model has them there (DTensors of FSDP2); a backward pass leaves in each process the mean over the
    processes of its part's gradient. own: this process's part of each, in the same memory, for an optimizer to train.
    """

    def __init__(self, pairs: Sequence[tuple[nn.Parameter, nn.Parameter]] = ()):
        """pairs: each matrix outside of the training, and the same in it."""
        self.outside, self.matrices = [p for p, _ in pairs], [m for _, m in pairs]
        self.own = [nn.Parameter(m.to_local().detach()) for m in self.matrices]
        self.at = {id(t): i for tensors in (self.matrices, self.own) for i, t in enumerate(tensors)}

    def __bool__(self) -> bool:
        return bool(self.own)

    def __contains__(self, p: Tensor) -> bool:
        return id(p) in self.at

    def shard_of(self, p: nn.Parameter) -> nn.Parameter:
        """What is trained of the model's parameter p: this process's part, or p, where that is whole."""
        return self.own[self.at[id(p)]] if p in self else p

    def take_gradients(self) -> None:
        """Give each of `own` its gradient, summed over the processes."""
        for matrix, own in zip(self.matrices, self.own):
            own.grad = None if matrix.grad is None else matrix.grad.to_local() * size()
            matrix.grad = None

    def gathered(self, own: Tensor, value: Tensor) -> Tensor:
        """Of a tensor like `own`, of which each process has its `value`, the whole: a weight, a moment."""
        from torch.distributed.tensor import DTensor

        matrix = self.matrices[self.at[id(own)]]
        whole = DTensor.from_local(value.detach(), matrix.device_mesh, matrix.placements, run_check=False,
                                   shape=matrix.shape, stride=matrix.stride())
        with _Watched():
            return whole.full_tensor()

    def cut(self, whole: Tensor) -> Tensor:
        """This process's part of what `gathered` gives: of the rows dealt out in order."""
        parts = whole.chunk(size())
        return parts[rank()] if rank() < len(parts) else whole[:0]

    @torch.no_grad()
    def settle(self) -> None:
        """The matrices outside have the values that are trained here."""
        for p, own in zip(self.outside, self.own):
            p.copy_(self.gathered(own, own))


@contextmanager
def sharded(model: nn.Module, dtype: torch.dtype = torch.float32, trained: bool = False) -> Iterator[Shards]:
    """Inside, where the blocks of a causal `model` have LARGE frozen weights or more (LoRA, MuScleLoRA), each process
    holds its part of its matrices on its device, and a block's are whole there, in `dtype`, while it computes: FSDP2's
    fully_shard, a block at a time. What is trained, and vectors, are whole in every process, as ever; the frozen
    weights wait in main memory.

    trained: the same where LARGE weights or more are trained, for an optimizer that trains the Shards. Those outside
    wait in main memory, too, and have the trained values once the Shards are settled.

    Elsewhere nothing changes, and there are no Shards: in one process, and before torch 2.7, which cannot leave out
    what is whole."""
    blocks = getattr(model, "blocks", None)
    asked = [] if blocks is None else [p for p in blocks.parameters() if p.requires_grad is trained]
    if (size() == 1 or not getattr(model, "causal", False) or sum(p.numel() for p in asked) < LARGE
            or any(hasattr(p, "to_local") for p in blocks.parameters()) or not can_shard()):
        yield Shards()
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    # as autocast has it: a matrix is cast for its products, a norm's scale is not; gradients are summed in float32
    narrow = dtype != torch.float32
    policy = MixedPrecisionPolicy(param_dtype=dtype if narrow else None, reduce_dtype=torch.float32 if narrow else None,
                                  cast_forward_inputs=False)
    device = asked[0].device
    mesh, copies = init_device_mesh(device.type, (size(),)), nn.ModuleList()
    pairs, waiting = [], []
    for block in blocks:
        shared = {p for p in block.parameters() if p.requires_grad and not (trained and p.dim() > 1)}
        one = copy.deepcopy(block, {id(p): p for p in shared})
        before = dict(block.named_parameters())
        waiting += [p for p in before.values() if p not in shared]
        for p in before.values():
            p.data = p.data if p in shared else p.data.cpu()
        fully_shard(one, mesh=mesh, reshard_after_forward=True, mp_policy=policy,
                    ignored_params={p for p in one.parameters() if p in shared or p.dim() < 2})
        for half in ("attention", "feed_forward"):
            register_fsdp_forward_method(one, half)
        pairs += [(before[name], p) for name, p in one.named_parameters() if p.requires_grad and p not in shared]
        copies.append(one)
    model.blocks = copies
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # of changes in place, which no encoder makes
            yield Shards(pairs)
    finally:
        model.blocks = blocks.train(copies.training)
        for p in waiting:
            p.data = p.data.to(device)


def gradient_norm(whole: Sequence[Tensor], shards: Sequence[Tensor] = ()) -> Tensor:
    """The 2-norm of all gradients: of tensors that every process has whole, and of some of which each has a part."""
    norm = nn.utils.get_total_norm([p.grad for p in whole if p.grad is not None])
    if not shards:
        return norm
    own = nn.utils.get_total_norm([p.grad for p in shards if p.grad is not None]).to(shards[0].device)
    return (norm.square() + sums([own.square()])[0]).sqrt()


def can_shard() -> bool:
    """Whether this torch's fully_shard can leave out what is to stay whole."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError:
        return False
    return "ignored_params" in inspect.signature(fully_shard).parameters


# ---- the processes

def join(device: torch.device) -> torch.device:
    """Where torchrun started several processes, meet the others; the device of this one: its own, of several CUDA
    devices. Raises BadInput where there is none."""
    if joined():
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    if any(name not in os.environ for name in GIVEN) or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if device.type == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there or device.index is not None:
            raise BadInput(f"--device {device} with {os.environ['WORLD_SIZE']} processes: each takes a device of its "
                           f"own, of {there} here: give torchrun --nproc-per-node {max(there, 1)}, and --device cuda")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # Imported when the group is there (the first optimizer does), it keeps the group as a default argument beyond
    # destroy_process_group; a thread of gloo's that then still holds a tensor aborts Python at its end.
    from torch.distributed.nn import functional  # noqa: F401
    with _Watched():
        dist.init_process_group(backend, timeout=PATIENCE)
    meet()  # whoever ended before all are connected would leave the others waiting for it
    progress().speaks, progress().leave = _speaks, leave
    return device


def meet() -> None:
    """Wait until every process has come this far."""
    if size() > 1:
        _reduced(torch.zeros(1, device=_device()))


def leave() -> None:
    """The end of a run: none says that all is well while another fails."""
    meet()
    if joined():
        dist.destroy_process_group()


def _speaks() -> bool:
    """Whether nobody has said yet why the run ends: the first process that asks gets True."""
    with suppress(Exception):  # the process that keeps the count may be the one that died
        return dist.distributed_c10d._get_default_store().add("minibd said why", 1) == 1
    return True


def _device() -> torch.device:
    """Where the process group's small messages lie."""
    nccl = "nccl" in dist.get_backend_config()
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def _gathered(n: int) -> list[int]:
    """Every process's n."""
    mine = torch.tensor([n * (i == rank()) for i in range(size())])
    return sums([mine.to(_device())])[0].tolist() if size() > 1 else mine.tolist()


def _reduced(x: Tensor) -> Tensor:
    """x, in place, summed over the processes."""
    with _Watched():
        dist.all_reduce(x)
    return x


class _Watched:
    """What torch.distributed raises inside, since another process is gone, is a RankLost."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            raise RankLost(
                f"one of the {os.environ.get('WORLD_SIZE', size())} processes has ended, or has not answered for "
                f"{PATIENCE.seconds // 60} minutes: the system may have ended it (memory?); nothing more is written"
            ) from error
