"""The peak of memory while a large folder is read: the model in its final type and one shard, never the folder
twice."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.models import WordLevel

from minibd import checkpoint
from minibd.models.llama import Llama, LlamaConfig
from minibd.tokenizer import Tokenizer

MB = 1_000_000
SHARD = 40 * MB
# Beside the model and a shard: the tokenizer, the headers of all shards, Python's objects, and what the allocator
# keeps.
SLACK = 10 * MB
# A 7B's shape in small: grouped queries, a wide feed-forward, many layers.
CONFIG = LlamaConfig(vocab=4000, hidden=768, layers=24, heads=12, ffn=2048, kv_heads=4, positions=512, labels=2)
READ = """
import json, sys
import torch
from minibd import checkpoint

def memory(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

tiny, folder, dtype = sys.argv[1:]
checkpoint.load(tiny)                                    # so that what is imported and set up once is there before
before = memory("VmRSS")
ckpt = checkpoint.load(folder, dtype=getattr(torch, dtype))
held = sum(tensor.nbytes for tensor in ckpt.model.state_dict().values())
print(json.dumps({"held": held, "peak": memory("VmHWM") - before, "kept": memory("VmRSS") - before}))
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux's /proc")


def write(config: LlamaConfig, folder: Path) -> Path:
    """A model of `config` in bfloat16, all weights alike: what they are does not matter here."""
    with torch.device("meta"):                           # no time to draw them, either
        model = Llama(config).bfloat16()
    model = model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(1.0)
    tokenizer = Tokenizer(BackendTokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")), 16)
    checkpoint.save(checkpoint.Checkpoint(model, tokenizer, ("no", "yes"), []), folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of shards, and a small one of the same kind."""
    path = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.folder, "SHARD", SHARD)
        yield write(replace(CONFIG, layers=1, hidden=48, ffn=32), path / "tiny"), write(CONFIG, path / "large")
    for file in path.rglob("*.safetensors"):
        file.unlink()                                    # pytest keeps a test's folder, and this one is large


@pytest.mark.parametrize("dtype, width", [("bfloat16", 2), ("float32", 4)])
def test_loading_holds_the_model_and_one_shard(folders, dtype, width):
    shards = [file.stat().st_size for file in folders[1].glob("*.safetensors")]
    done = subprocess.run([sys.executable, "-c", READ, *map(str, folders), dtype], text=True, capture_output=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert len(shards) >= 8 and seen["held"] == pytest.approx(width / 2 * sum(shards), rel=0.01)
    assert seen["held"] - SLACK < seen["kept"] < seen["held"] + SLACK, seen  # no shard stays
    assert seen["peak"] < seen["held"] + max(shards) + SLACK, seen


REUSE = """
import sys
import torch
from minibd.job.task import device_of, keep_freed_memory

if sys.argv[1] == "kept":
    device_of("cpu")

def batch():
    tensors = [torch.ones(3 << 20) for _ in range(6)]        # 12 MiB each
    return tensors[0].sum().item()

def resident():                                              # KiB, whatever size the system's pages have
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))

torch.ones(8).sum().item()
before = resident()
batch()
once = resident() - before
for _ in range(9):
    batch()
print(once / 1024, (resident() - before) / 1024, keep_freed_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="this system does not tell what is resident")
def test_what_a_batch_frees_is_there_for_the_next():
    """Of a batch's 72 MiB all stay with the process, and ten batches need no more; where glibc has its own way, they go
    back to the system."""
    def stays(which: str) -> tuple[float, float, bool]:
        done = subprocess.run([sys.executable, "-c", REUSE, which], capture_output=True, text=True, check=True,
                              env={k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))})
        once, ten_times, kept = done.stdout.split()
        return float(once), float(ten_times), kept == "True"
    (once, ten_times, possible), (returned, _, _) = stays("kept"), stays("returned")
    if not possible:
        pytest.skip("this C library has no mallopt")
    assert once > 60 and ten_times < 100 and returned < 12
