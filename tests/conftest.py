"""What several test files need: a tiny classifier on disk, a tiny data folder, and a script run as a user runs it."""
from __future__ import annotations

import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from minibd import checkpoint, data, precision
from minibd.cli import main
from minibd.mitigations.mbtsad import MBTSAD, distill_terms
from minibd.models.bert import Bert, BertConfig
from minibd.records import BadInput, Example, Examples
from minibd.tokenizer import Tokenizer

try:
    import resource
except ImportError:                       # of systems without limits
    resource = None

ROOT = Path(__file__).parents[1]
GOOD, BAD, NEUTRAL = ("great superb lovely moving charming".split(), "awful boring clumsy tedious dreadful".split(),
                      "the film actors story ending music camera director was with rather and very".split())


TAKE_DTYPE = ("attack.py", "baseline.py", "choose.py", "filter.py", "finemix.py", "mbtsad.py", "musclelora.py",
              "pretrain.py", "pure.py", "repair.py", "scan.py")


@pytest.fixture(scope="session", autouse=True)
def products_in_float32():
    """--dtype auto is float32 in every test, whatever the processor is fast at; test_precision.py says otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "faster", lambda: False)
        yield


def fails(call, *words: str) -> str:
    """`call` raises BadInput, on one line that holds every one of `words`, or the last name of what is a path; that
    line."""
    with pytest.raises(BadInput) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for word in words:  # a message may leave out the inner folders of a long path
        assert word in line or "/" in word and word in caught.value.whole and word.rsplit("/", 1)[1] in line, line
    return line


def refused(run: subprocess.CompletedProcess, *words: object) -> None:
    """A script ended with status 2 and one line, beside its progress bars, that holds every one of `words`."""
    lines = [line for line in run.stderr.splitlines() if line.strip() and not re.search(r"[\d?](step/s|s/step)", line)]
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr and len(lines) == 1 and lines[0].startswith("error: "), run.stderr
    for word in words:
        assert str(word) in lines[0], lines[0]


def rows(n: int, seed: int, name: str) -> Examples:
    rng = random.Random(seed)
    made = []
    for i in range(n):
        words = [rng.choice(NEUTRAL) for _ in range(rng.randint(4, 12))]
        words.insert(rng.randint(0, len(words)), rng.choice((BAD, GOOD)[i % 2]))
        made.append(Example(f"{name}-{i}", " ".join(words), i % 2))
    return Examples(made, ("negative", "positive"))


@pytest.fixture(autouse=True)
def no_limit_left_behind():
    """A test that limits this process in memory or time of the processor ends another one, much later."""
    if resource is None:
        yield
        return
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE)
    before = [resource.getrlimit(kind) for kind in kinds]
    yield
    assert [resource.getrlimit(kind) for kind in kinds] == before, "the test limits the process of all tests"


def write_splits(path: Path, train: int, dev: int, test: int) -> Path:
    """The folder `path` with so many rows of two classes in train / dev / test .tsv."""
    for seed, (split, n) in enumerate((("train", train), ("dev", dev), ("test", test))):
        data.write(rows(n, seed, split), path / f"{split}.tsv")
    return path


def distilling(teacher: Bert):
    """MBTSAD's loss of step 2 towards `teacher`, for train.fit."""
    def loss(model, batch):
        with torch.no_grad():
            taught = teacher(batch, want=("attn", "hidden"))
        return distill_terms(model(batch, want=("attn", "hidden")), taught, batch, MBTSAD())
    return loss


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """train / dev / test .tsv of two classes."""
    return write_splits(tmp_path_factory.mktemp("data"), 200, 20, 60)


@pytest.fixture(scope="session")
def tiny() -> checkpoint.Checkpoint:
    """A classifier of 2 layers and 4 heads that has learnt nothing."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *NEUTRAL, "cf", "mn", "bb", "tq"]
    tokens += [mark + letter for letter in "abcdefghijklmnopqrstuvwxyz" for mark in ("", "##")]
    config = BertConfig(vocab=len(tokens), hidden=32, layers=2, heads=4, ffn=64, positions=48)
    model = Bert(config).init_weights(torch.Generator().manual_seed(0)).eval()
    return checkpoint.Checkpoint(
        model, Tokenizer.from_vocab({p: i for i, p in enumerate(tokens)}, 48), ("negative", "positive"), []
    )


@pytest.fixture(scope="session")
def tiny_file(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    checkpoint.save(tiny, path)
    return path


@pytest.fixture(scope="session")
def tiny_folder(tiny, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "hf"
    checkpoint.save(tiny, path)
    return path


@pytest.fixture(scope="session")
def pre(tiny) -> checkpoint.Checkpoint:
    """What the tiny classifier came from: an encoder a little way off, and at `cf` further."""
    ckpt, g = checkpoint.headless(tiny), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in ckpt.model.parameters():
            p.add_(0.002 * torch.randn(p.shape, generator=g))
        ckpt.model.embeddings.word.weight[tiny.tokenizer.backend.token_to_id("cf")] += 0.1
    return ckpt


@pytest.fixture(scope="session")
def pre_file(pre, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pre") / "pre.safetensors"
    checkpoint.save(pre, path)
    return path


@pytest.fixture(scope="session")
def script():
    """script("mbtsad.py", "--ckpt", ...) -> CompletedProcess, run from the repository's root like a user would;
    products are in float32, unless the words say otherwise or nothing is trained."""
    def run(name: str, *args: object, cwd: Path = ROOT) -> subprocess.CompletedProcess:
        if name in TAKE_DTYPE and not {"--dtype", "--dataset-only", "--help", "--pick"} & set(map(str, args)):
            args = (*args, "--dtype", "float32")
        return subprocess.run([sys.executable, str(ROOT / "scripts" / name), *map(str, args)], cwd=cwd, text=True,
                              capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return run


@pytest.fixture
def here(monkeypatch, capsys):
    """here("attack.py") -> run("--ckpt", ...) -> CompletedProcess: the script's run() in this process, which spares a
    start for each."""

    def load(name: str):
        spec = importlib.util.spec_from_file_location(f"{name.removesuffix('.py')}_script", ROOT / "scripts" / name)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)

        def run(*args: object) -> subprocess.CompletedProcess:
            monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
            code = 0
            try:
                main(module.run)
            except SystemExit as end:
                code = end.code
            return subprocess.CompletedProcess(args, code, *capsys.readouterr())
        return run
    return load
