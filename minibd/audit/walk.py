"""Where the code implements the papers' equations: a walk over the package's docstrings, which imports nothing of it.

A docstring that opens with `Eq. PAPER (n)` marks its function or class as that equation; `(2) and (4)`, `(5), (6)` and
`(3) to (5)` name several. An equation that the paper does not number has a name in the brackets, `Eq. E-PUR (score)`.
"""
from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

from minibd.audit.findings import Place

ROOT = Path(__file__).parents[2]
_OPENS = re.compile(r"Eq\. ([A-Z][\w-]*) (\([^)]+\)(?:(?:, | and | to )\([^)]+\))*)")
_NUMBER = re.compile(r"( to )?\(([^)]+)\)")


def numbers(brackets: str) -> list[str]:
    """"(2) and (4)" -> 2, 4; "(3) to (5)" -> 3, 4, 5."""
    found: list[str] = []
    for through, number in _NUMBER.findall(brackets):
        if through:
            found += map(str, range(int(found[-1]) + 1, int(number)))
        found.append(number)
    return found


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    """(qualified name, node) of every function, class and method."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}{node.name}.")


def places(root: Path = ROOT) -> list[Place]:
    """Every equation that the package's docstrings name, by file and line; minibd/audit is left out."""
    found = []
    for path in sorted((root / "minibd").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if file.startswith("minibd/audit/"):
            continue
        text = path.read_text(encoding="utf-8")
        for name, node in definitions(ast.parse(text, file).body):
            if opens := _OPENS.match(doc := cleandoc(ast.get_docstring(node) or "")):
                source = cleandoc("\n" + "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno]))
                found += [Place(opens[1], number, file, node.lineno, name, doc, source) for number in numbers(opens[2])]
    return found


def called_by(places: list[Place], root: Path = ROOT) -> dict[tuple[str, str], tuple[str, ...]]:
    """(file, name) of each place -> the tests that call it by its last name, `tests/test_mbtsad.py::test_...`.

    Tests in the test file of the same name come first, and of these the ones by hand or against plain loops.
    """
    wanted = {(place.file, place.name): place.name.split(".")[-1] for place in places}
    found: dict[tuple[str, str], list[str]] = {at: [] for at in wanted}
    for path in sorted((root / "tests").rglob("test_*.py")):
        if path.stem == "test_audit":  # it breaks what it calls
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            f"{(node.module or '').replace('.', '/')}.py" for node in tree.body if isinstance(node, ast.ImportFrom)
        }
        imported |= {
            f"{node.module}.{alias.name}".replace(".", "/") + ".py"
            for node in tree.body
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                called = {inner.id if isinstance(inner, ast.Name) else inner.attr for inner in ast.walk(node)
                          if isinstance(inner, (ast.Name, ast.Attribute))}
                for at, last in wanted.items():
                    if last in called and at[0] in imported:
                        found[at].append(f"{path.relative_to(root).as_posix()}::{node.name}")

    def late(file: str, test: str) -> tuple[bool, bool]:
        return f"/test_{Path(file).stem}.py" not in test, not any(
            word in test for word in ("by_hand", "plain_loops", "plain_lines")
        )

    return {
        (file, name): tuple(sorted(tests, key=lambda test, file=file: late(file, test)))
        for (file, name), tests in found.items()
    }
