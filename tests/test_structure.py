"""The plan of the rooms, read from the imports: arrows point one way, a defence cannot see a trigger, chance is handed
over."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "minibd").rglob("*.py"), *(ROOT / "scripts").glob("*.py")])
SOURCES = [path for path in FILES if "scripts" not in path.relative_to(ROOT).parts]
RUNTIME = {"torch", "tokenizers", "safetensors", "numpy", "tqdm"}
# What one file alone asks for, in an extra: what it times us against, what it draws with.
MEASURED = {
    "scripts.bench": {"transformers", "peft", "nlpaug", "textaugment", "nltk"}, "scripts.plot": {"matplotlib"},
    "minibd.analysis.perturbation": {"sklearn"}, "minibd.filters.cube": {"sklearn"},
}

# Rooms from the top down; a file may import from lower floors, and on its own floor only along STAIRS or inside its own
# folder.
FLOORS = [
    {"scripts"},
    {"audit"},
    {"job"},
    {"detect", "mitigations", "cleantrain", "filters", "attacks", "analysis", "evaluate", "report", "tables"},
    {"blending", "incremental", "pretrain", "rejection"},
    {"train", "augment", "models", "checkpoint", "unpickle", "predict"},
    {"align", "data", "tokenizer", "distributed", "cli", "reviews", "result_store", "resume"},
    {"records", "minibd", "atomic", "digest", "words", "html_style", "proportion", "precision",
     "lines", "regular"},  # minibd: its version
]
PLANNED = set()                                                 # rooms of the plan that no file is in yet
STAIRS = {
    ("report", "evaluate"), ("train", "models"), ("checkpoint", "models"), ("augment", "models"),
    ("augment", "checkpoint"), ("reviews", "data"), ("atomic", "records"), ("analysis", "mitigations"),
    ("tables", "detect"), ("records", "lines"), ("regular", "records"), ("regular", "lines"), ("digest", "records"),
    ("digest", "lines"), ("digest", "regular"), ("atomic", "lines"), ("resume", "cli"), ("distributed", "cli"),
    ("result_store", "distributed"), ("resume", "distributed"),
}
STRANGERS = ("mitigations", "cleantrain", "filters")             # folders whose files never import one another, but for
STEPS = {("minibd.mitigations.finemix", "minibd.mitigations.epur")}  # E-PUR, Fine-mixing's first step in the same paper
BLIND = ("detect", "mitigations", "cleantrain", "filters")       # nor attacks


def module(path: Path) -> str:
    """minibd/models/bert.py -> minibd.models.bert; scripts/attack.py -> scripts.attack."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def modules() -> set[str]:
    return {module(path) for path in FILES}


def room(name: str) -> str:
    """minibd.models.bert -> models; minibd.train -> train; scripts.attack -> scripts."""
    parts = name.split(".")
    return parts[0] if parts[0] == "scripts" else parts[1] if len(parts) > 1 else "minibd"


def imports(tree: ast.Module, known: set[str]) -> Iterator[str]:
    """Every module that `tree` imports, at the top or inside a function; `from minibd import data` is minibd.data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in known else node.module


def read(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def arrows() -> Iterator[tuple[str, str]]:
    for path in FILES:
        for name in imports(read(path), modules()):
            if name.split(".")[0] == "minibd":
                yield module(path), name


def floor(name: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room(name) in rooms)


def allowed(source: str, target: str) -> bool:
    above, below = floor(source), floor(target)
    if above != below:
        return above < below
    if room(source) == room(target):
        return (source, target) in STEPS or room(source) not in STRANGERS and room(source) != "scripts"
    return (room(source), room(target)) in STAIRS


def dotted(node: ast.expr) -> str:
    """torch.cuda.manual_seed of the call's expression, "" where it is no plain name."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


DRAWS = {"rand", "randn", "randint", "randperm", "bernoulli", "normal", "multinomial", "poisson"}


def global_chance(tree: ast.Module) -> Iterator[str]:
    """Calls that draw from, or seed, a random state that nobody handed over."""
    # what `import a as b` and `from a import b as c` call things
    named = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            named |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            named |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, tail = dotted(node.func).partition(".")
        name = named.get(head, head) + (f".{tail}" if tail else "")
        package, _, leaf = name.rpartition(".")
        given = {keyword.arg for keyword in node.keywords}
        if (
            leaf.startswith(("manual_seed", "set_rng_state"))
            and package.split(".")[0] == "torch"
            or name == "torch.seed"
        ):
            yield f"line {node.lineno}: {name}"
        elif package == "random" and leaf != "Random":
            yield f"line {node.lineno}: {name}"
        elif package == "numpy.random" and leaf not in ("default_rng", "Generator", "SeedSequence", "PCG64"):
            yield f"line {node.lineno}: {name}"
        elif package == "torch" and leaf in DRAWS and "generator" not in given:
            yield f"line {node.lineno}: {name} without generator="
        elif name in ("torch.nn.functional.dropout", "torch.nn.Dropout", "torch.dropout"):
            yield f"line {node.lineno}: {name}"


# ---- the readers themselves

def test_the_reader_of_imports_sees_every_form():
    tree = ast.parse(
        "import torch.nn as nn\nfrom minibd import data, job as jobs\nfrom minibd.records import Batch\ndef f():\n    "
        "import time\n"
    )
    known = {"minibd.data", "minibd.job", "minibd.records"}
    assert list(imports(tree, known)) == ["torch.nn", "minibd.data", "minibd.job", "minibd.records", "time"]


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.manual_seed(0)", "import torch\ntorch.cuda.manual_seed_all(0)",
        "from torch import manual_seed\nmanual_seed(0)", "import random\nrandom.shuffle(x)",
        "import random as r\nr.random()", "from random import choice\nchoice(x)", "import random\nrandom.seed(0)",
        "import numpy as np\nnp.random.rand(3)", "from numpy import random\nrandom.seed(0)",
        "import torch\ntorch.randn(3)", "import torch.nn.functional as F\nF.dropout(x)",
        "from torch import nn\nnn.Dropout(0.1)",
    ],
)
def test_the_reader_of_chance_sees_a_global_draw(code):
    assert list(global_chance(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "import random\nrandom.Random(0).shuffle(x)", "from random import Random\nRandom('a')", "rng.random()",
        "self.rng.choice(x)", "import torch\ntorch.Generator().manual_seed(0)",
        "import torch\ntorch.randn(3, generator=g)", "import numpy as np\nnp.random.default_rng(0)",
    ],
)
def test_the_reader_of_chance_lets_a_generator_pass(code):
    assert not list(global_chance(ast.parse(code)))


def test_the_plan_refuses_what_it_should():
    assert allowed("scripts.mbtsad", "minibd.mitigations.mbtsad") and allowed("minibd.train", "minibd.records")
    assert allowed("minibd.attacks.registry", "minibd.attacks.badnets") and allowed(
        "minibd.models.bert", "minibd.models.attention"
    )
    assert allowed("minibd.mitigations.finemix", "minibd.mitigations.epur")
    # a package's files may import one another, whatever the package's floor
    assert allowed("minibd.job.run", "minibd.job.task") and allowed("minibd.tables.views", "minibd.tables.pivot")
    assert allowed("minibd.data.splits", "minibd.data.files") and allowed("minibd.checkpoint", "minibd.checkpoint.file")
    assert allowed("minibd.checkpoint.folder", "minibd.data.files") and allowed("minibd.job.run", "minibd.attacks.ep")
    for source, target in [
        ("minibd.records", "minibd.data"), ("minibd.mitigations.epur", "minibd.mitigations.finemix"),
        ("minibd.mitigations.pure", "minibd.mitigations.mbtsad"),
        ("minibd.mitigations.mbtsad", "minibd.attacks.badnets"), ("minibd.train", "minibd.evaluate"),
        ("minibd.mitigations.mbtsad", "minibd.evaluate"), ("minibd.models.bert", "minibd.train"),
        ("minibd.data.files", "minibd.checkpoint.file"), ("minibd.mitigations.mbtsad", "minibd.job.run"),
        ("minibd.detect.scan", "minibd.attacks.badnets"), ("minibd.attacks.ep", "minibd.tables.rows"),
        ("minibd.data", "minibd.tokenizer"), ("scripts.attack", "scripts.mbtsad"), ("minibd.evaluate", "minibd.report"),
    ]:
        assert not allowed(source, target), (source, target)


# ---- the source

def test_there_is_something_to_read():
    assert {"minibd.records", "minibd.train", "minibd.mitigations.mbtsad", "scripts.mbtsad"} <= modules()
    assert len(list(arrows())) > 30


def rooms() -> set[str]:
    """Those that hold a source file; "minibd" is the package itself."""
    return {room(name) for name in modules()}


def test_the_plan_names_every_room_once_and_no_other_but_the_planned():
    named = [name for floor in FLOORS for name in sorted(floor)]
    assert sorted(named) == sorted(rooms() | PLANNED)


def test_a_planned_room_that_is_built_is_planned_no_more():
    assert not PLANNED & rooms()


def test_every_rule_speaks_of_rooms_on_the_plan():
    assert {name for pair in STAIRS for name in pair} | {*STRANGERS, *BLIND} <= set().union(*FLOORS)


def test_no_two_files_share_a_basename():
    """Whoever looks for a file by its name finds one."""
    names = [path.name for path in SOURCES if path.name != "__init__.py"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_arrows_point_one_way():
    assert [f"{source} -> {target}" for source, target in arrows() if not allowed(source, target)] == []


def test_every_arrow_leads_to_a_file():
    assert [f"{source} -> {target}" for source, target in arrows() if target not in modules()] == []


def test_no_defence_sees_an_attack():
    """Not even by way of what it imports."""
    seen: dict[str, set[str]] = {}
    for source, target in arrows():
        seen.setdefault(source, set()).add(target)
    for start in sorted(name for name in seen if room(name) in BLIND):
        reached, todo = set(), [start]
        while todo:
            reached |= (new := seen.get(todo.pop(), set()) - reached)
            todo += new
        assert not [name for name in reached if room(name) == "attacks"], start


def test_only_these_packages_are_needed_at_run_time():
    for path in FILES:
        for name in imports(read(path), modules()):
            top = name.split(".")[0]
            assert top in RUNTIME | {"minibd"} | MEASURED.get(module(path), set()) or top in sys.stdlib_module_names, (
                f"{module(path)} imports {name}"
            )


@pytest.mark.parametrize("path", SOURCES, ids=module)
def test_chance_is_handed_over(path):
    assert list(global_chance(read(path))) == []


def test_the_flags_import_no_torch():
    """cli.py answers --help; what it needs of records.py it imports when an error is already there, and lines.py, whose
    words it takes, imports nothing."""
    for file, lower in (("cli.py", {"minibd.lines"}), ("lines.py", set())):
        top = [node for node in read(ROOT / "minibd" / file).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = set(imports(ast.Module(top, []), modules()))
        assert {name for name in names if name.split(".")[0] in RUNTIME | {"minibd"}} == lower
