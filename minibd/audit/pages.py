"""References to code in the Markdown pages, `minibd/align.py:40` align, kept at the line of their symbol's definition.

A page writes `PATH:LINE` SYMBOL, the path from the repository's root. SYMBOL is a function, a class, a constant of the
module or, after a dot, a member of a class (`PURE.mu`). `renewed` sets the line and makes the reference a link from the
page. A symbol that has left its file is followed if exactly one other file defines it, in the same folder or in all;
otherwise it is reported as a problem.
"""
from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path

from minibd.audit.walk import ROOT

FOLDERS = ("minibd", "scripts", "tests", "weights")  # beside README.md at the root, where pages stand
SOURCES = ("minibd", "scripts", "tests")
_REFERENCE = re.compile(r"\[?`((?:minibd|scripts|tests)/[\w/.-]+\.py):(\d+)`(?:\]\([^)]*\))?(\s+)(\w+(?:\.\w+)*)")


def pages(root: Path = ROOT) -> list[Path]:
    """Every Markdown page of the repository, the front page first."""
    return [root / "README.md", *sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.md"))]


def _defined(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield prefix + node.name, node.lineno
            if isinstance(node, ast.ClassDef):
                yield from _defined(node.body, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((prefix + target.id, node.lineno) for target in targets if isinstance(target, ast.Name))


def symbols(root: Path = ROOT) -> dict[str, dict[str, int]]:
    """file -> symbol -> line, of every source file; of a symbol that is defined twice, the last line."""
    return {path.relative_to(root).as_posix(): dict(_defined(ast.parse(path.read_text(encoding="utf-8")).body))
            for folder in SOURCES for path in sorted((root / folder).rglob("*.py"))}


def reference(page: Path, root: Path, file: str, line: int, name: str, space: str = " ") -> str:
    """The link from `page` to `name` at `file`:`line`."""
    return f"[`{file}:{line}`]({Path(os.path.relpath(root / file, page.parent)).as_posix()}#L{line}){space}{name}"


def renewed(page: Path, known: dict[str, dict[str, int]], root: Path = ROOT) -> tuple[str, list[str]]:
    """The page's text with every reference at its line, and the problems, a line each. known: `symbols(root)`."""
    problems = []

    def renew(match: re.Match) -> str:
        file, space, name = match[1], match[3], match[4]
        if name not in known.get(file, {}):
            elsewhere = [other for other in known if name in known[other] and not other.startswith("tests/")]
            elsewhere = [other for other in elsewhere if Path(other).parent == Path(file).parent] or elsewhere
            if len(elsewhere) != 1:
                where = f"it is defined in {', '.join(elsewhere)}" if elsewhere else "no file defines it"
                problems.append(f"{page.relative_to(root)}: {file} has no {name}; {where}")
                return match[0]
            file, = elsewhere
        return reference(page, root, file, known[file][name], name, space)

    return _REFERENCE.sub(renew, page.read_text(encoding="utf-8")), problems
