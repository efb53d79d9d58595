"""The mutation check's list fits the code that it breaks; the check itself is `python tests/mutants.py`."""
from pathlib import Path

import pytest

from mutants import MUTANTS, SYSTEMS, Mutant, code, first_failure, mutated, problem, problems, table


def test_every_mutant_stands_once_in_its_file_and_changes_the_program():
    assert problems() == []


def test_there_are_enough_of_each_system_and_no_two_alike():
    assert len(MUTANTS) >= 60 and len(SYSTEMS) == 10 and all(len(mutants) >= 10 for mutants in SYSTEMS.values())
    assert len({(mutant.file, mutant.old, mutant.new) for _, mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.file, mutant.what) for _, mutant in MUTANTS}) == len(MUTANTS)


@pytest.fixture
def root(tmp_path) -> Path:
    """A repository of one file, and its test."""
    (tmp_path / "minibd").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "minibd" / "one.py").write_text(
        '"""Adds a + b."""\n\n\ndef add(a, b):\n    """x + y, of course."""\n    return a + b  # a sum\n'
    )
    (tmp_path / "tests" / "test_one.py").touch()
    return tmp_path


@pytest.mark.parametrize("mutant, said", [
    (Mutant("one.py", "", "return a + b", "return a - b"), ""),
    (Mutant("two.py", "", "a", "b"), "there is no minibd/two.py"),
    (Mutant("one.py", "", "a * b", "a - b"), "stands 0 times"),
    (Mutant("one.py", "", "a + b", "a - b"), "stands 2 times"),
    (Mutant("one.py", "", "x + y", "x - y"), "the same"),
    (Mutant("one.py", "", "# a sum", "# none"), "the same"),
    (Mutant("one.py", "", "return a + b", "return a +"), "not compile"),
    (Mutant("one.py", "", "return a + b", "return a - b", ("test_two.py",)), "there is no tests/test_two.py"),
])
def test_what_is_no_mutant_is_named(root, mutant, said):
    found = problem(mutant, root)
    assert said in found and bool(found) == bool(said)


def test_a_mutant_is_put_in_and_nothing_else(root):
    text = (root / "minibd" / "one.py").read_text()
    changed = mutated(text, Mutant("one.py", "", "return a + b", "return a - b"))
    assert changed == text.replace("return a + b", "return a - b") and code(changed) != code(text)


def test_who_noticed_first_is_read_from_the_output():
    summary = "..F\n=== short test summary info ===\nFAILED tests/test_a.py::test_b[x y] - AssertionError: 1 - 2\n"
    assert first_failure(summary) == "tests/test_a.py::test_b[x y]"
    assert first_failure("ERROR tests/test_a.py - ImportError: no\n1 error") == "tests/test_a.py"
    audit = (
        "MBTSAD (3)  The map\n    holds     paper: 0\n\n"
        "MBTSAD (4)  Distance\n    F = 1\n    FAILS     p = 2: 0.1\n\n2 equations\n"
    )
    assert first_failure(audit) == "MBTSAD (4)  Distance: p = 2: 0.1"
    assert first_failure("Traceback\nValueError: none\n") == "ValueError: none" and first_failure("") == ""


def test_the_table_counts_what_was_noticed_and_names_what_was_not():
    results = {number: {"number": number, "file": mutant.file, "what": mutant.what, "noticed": by}
               for (number, (_, mutant)), by in zip(enumerate(MUTANTS, 1), ("audit", "tests", "timeout", "nobody"))}
    lines = [line.split() for line in table(results).splitlines()]
    assert lines[1] == ["MBTSAD", "3", "/", "4", "1", "1", "1"] and lines[11] == [
        "all", "3", "/", "4", "1", "1", "1", "75.0", "%",
    ]
    assert lines[13] == ["survivors:", "1"]
    assert lines[14] == ["4", f"{MUTANTS[3][1].file}:", *MUTANTS[3][1].what.split()]
