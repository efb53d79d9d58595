"""The Markdown pages: references to code stand at their line, links lead somewhere, --help knows their commands."""
from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import minibd
from minibd.audit import index, pages

ROOT = Path(__file__).parents[1]
PAGES = pages.pages(ROOT)
ROOMS = ("minibd/models", "minibd/augment", "minibd/attacks", "minibd/mitigations", "minibd/cleantrain",
         "minibd/analysis", "minibd/audit", "minibd/checkpoint", "minibd/data", "minibd/job", "minibd/tables",
         "minibd/resources", "scripts", "scripts/results", "weights", "tests")
MOST = 200  # lines of the front page


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


# ---- what a page holds

def fenced(text: str) -> list[str]:
    """The lines of the fenced blocks, a line that ends in a backslash joined with the next."""
    lines, inside = [], False
    for line in text.replace("\\\n", " ").splitlines():
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside:
            lines.append(line)
    return lines


def unfenced(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


def commands(text: str) -> list[list[str]]:
    """[script, word, word, ...] of each command on a script, in a fenced block or between backquotes in prose."""
    spans = [span for span in re.findall(r"`([^`]+)`", unfenced(text).replace("\n", " "))
             if re.match(r"(?:python )?scripts/\w+\.py(?= |$)", span)]
    found = []
    for line in [*fenced(text), *spans]:
        if match := re.search(r"(?:^|[\s$/])(?:python )?(scripts/\w+\.py)(?= |$)(.*)", line):
            found.append([match[1], *shlex.split(match[2].split(" && ")[0], comments=True)])
    return found


def links(text: str) -> list[str]:
    """Where the page's links lead, without those to other hosts."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", unfenced(text)) if not re.match(r"[a-z]+:", link)]


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings have: lower case, hyphens for spaces, no other marks."""
    headings = re.findall(r"^#+ (.+)$", unfenced(text), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@cache
def usage(script: str, *before: str) -> str:
    """The usage block of a script's --help, after the words that say which of its jobs or methods is asked."""
    command = [sys.executable, str(ROOT / script), *before, "--help"]
    run = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.split("\n\n")[0]


def jobs(script: str) -> list[str]:
    """The words that may come before all flags."""
    choices = re.search(r"\]\s+\{([^}]+)\}", usage(script))
    return choices[1].split(",") if choices else []


def unknown(command: list[str]) -> list[str]:
    """What --help does not know of a command: its script, its job, its flags."""
    script, *words = command
    if not (ROOT / script).exists():
        return [f"there is no {script}"]
    before = []
    if words and not words[0].startswith("-") and (known := jobs(script)):
        if words[0].isupper():  # NAME stands for any of them
            return []
        if words[0] not in known:
            return [f"{script} has no job {words[0]}"]
        before = words[:1]
    elif "--method" in words:  # choose.py's flags are its method's
        before = words[words.index("--method"):][:2]
    flags = set(re.findall(r"--[a-z][a-z0-9-]*", usage(script, *before)))
    return [f"{' '.join([script, *before])} has no flag {word}" for word in (word.split("=")[0] for word in words)
            if word.startswith("--") and word not in flags]


# ---- the readers themselves

def test_the_readers_see_what_a_page_holds():
    text = ("# A page: one, two\n[a](b.md) and [c](https://d.org) `scripts/x.py run --fast` `scripts/x.py`\n"
            "```\n$ python scripts/x.py --a 1 \\\n    --b '2 3'   # what it does\n"
            ".venv/bin/python scripts/y.py && echo z\n[n](o.md)\n```\n")
    assert links(text) == ["b.md"] and anchors(text) == {"a-page-one-two"}
    assert commands(text) == [["scripts/x.py", "--a", "1", "--b", "2 3"], ["scripts/y.py"],
                              ["scripts/x.py", "run", "--fast"], ["scripts/x.py"]]


@pytest.mark.parametrize("command, said", [
    ("scripts/mbtsad.py --ckpt A --k 4 --no-e-pur", ""), ("scripts/mbtsad.py --ckpt A --kk 4", "has no flag --kk"),
    ("scripts/choose.py --method finemix --top 0", ""), ("scripts/choose.py --top 0", "has no flag --top"),
    ("scripts/baseline.py reinit --layers 1", ""), ("scripts/baseline.py ft --layers 1", "has no flag --layers"),
    ("scripts/baseline.py retrain", "has no job retrain"), ("scripts/fix.py --ckpt A", "there is no scripts/fix.py"),
    ("scripts/baseline.py METHOD --help", ""),
])
def test_a_command_that_help_does_not_know_is_named(command, said):
    found = unknown(shlex.split(command))
    assert said in "; ".join(found) and bool(found) == bool(said)


def test_a_reference_goes_to_its_line_follows_its_symbol_and_names_what_is_gone(tmp_path):
    (tmp_path / "minibd" / "room").mkdir(parents=True)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "minibd" / "a.py").write_text("X = 1\n\n\nclass C:\n    y: int = 2\n\n    def f(self):\n        pass\n")
    (tmp_path / "minibd" / "b.py").write_text("def g():\n    pass\n\n\ndef twice():\n    pass\n")
    (tmp_path / "scripts" / "c.py").write_text("def twice():\n    pass\n")
    page = tmp_path / "minibd" / "room" / "README.md"
    known = pages.symbols(tmp_path)

    def renewed(text: str) -> tuple[str, list[str]]:
        page.write_text(text)
        return pages.renewed(page, known, tmp_path)

    assert renewed("see `minibd/a.py:9` X, which") == ("see [`minibd/a.py:1`](../a.py#L1) X, which", [])
    assert renewed("[`minibd/a.py:1`](../a.py#L1) C.f.") == ("[`minibd/a.py:7`](../a.py#L7) C.f.", [])
    assert renewed("`minibd/a.py:1` C.y")[0].endswith("#L5) C.y")
    assert renewed("`minibd/a.py:1`\n   g") == ("[`minibd/b.py:1`](../b.py#L1)\n   g", [])   # followed to where it went
    assert renewed("`minibd/gone.py:1` twice") == ("[`minibd/b.py:5`](../b.py#L5) twice", [])  # of two, to its folder's
    text, problems = renewed("`minibd/a.py:1` nothing")
    assert text == "`minibd/a.py:1` nothing"
    assert problems == ["minibd/room/README.md: minibd/a.py has no nothing; no file defines it"]
    text, problems = renewed("`minibd/room/gone.py:1` twice")
    assert text == "`minibd/room/gone.py:1` twice" and "it is defined in minibd/b.py, scripts/c.py" in problems[0]


# ---- the pages

def test_ci_finds_the_test_command_on_the_front_page():
    pattern = re.search(r"grep -m1 -E '([^']+)' README.md", text_of(ROOT / ".ci" / "run"))[1]
    assert len(re.findall(pattern, text_of(ROOT / "README.md"), flags=re.M)) == 1


def test_every_room_has_its_page():
    assert [room for room in ROOMS if not (ROOT / room / "README.md").exists()] == []


def test_the_front_page_is_one_that_is_read():
    assert len(text_of(ROOT / "README.md").splitlines()) <= MOST


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_reference_stands_at_its_line(page):
    text, problems = pages.renewed(page, pages.symbols(ROOT), ROOT)
    assert problems == [] and text == text_of(page), "python scripts/audit.py --readme renews the pages"


def test_the_equation_index_is_the_walks():
    text = text_of(index.PAGE)
    assert index.indexed(text) == text, "python scripts/audit.py --readme renews it"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    broken = []
    for link in links(text_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            broken.append(link)
        elif target.suffix == ".md" and anchor and anchor not in anchors(text_of(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_help_knows(page):
    assert [said for command in commands(text_of(page)) for said in unknown(command)] == []


def test_every_script_is_named_in_the_scripts_page():
    text = text_of(ROOT / "scripts" / "README.md")
    assert [path.name for path in sorted((ROOT / "scripts").glob("*.py")) if f"({path.name})" not in text] == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room.startswith("minibd/")])
def test_every_file_of_a_room_is_named_in_its_page(room):
    text = text_of(ROOT / room / "README.md")
    files = [path.name for path in sorted((ROOT / room).iterdir()) if path.suffix in (".py", ".json", ".txt")]
    assert [name for name in files if name != "__init__.py"
            and not re.search(rf"(?<![\w/]){re.escape(name)}", text)] == []


def test_the_map_names_what_is_there_and_all_of_it():
    """README's map: a path from the root at the beginning of each line; every file and room of minibd/ has one."""
    named = {line.split()[0].rstrip("/") for line in fenced(text_of(ROOT / "README.md"))
             if re.match(r"(?:minibd|scripts|weights|tests)/", line)}
    there = {name_of(path) for path in (ROOT / "minibd").iterdir() if path.suffix == ".py" or any(path.glob("*.py"))}
    assert sorted(name for name in named if not (ROOT / name).exists()) == []
    assert sorted(there - named - {"minibd/__init__.py"}) == [] and {"scripts", "weights", "tests"} <= named


@pytest.mark.parametrize("page, symbol", [
    ("minibd/audit/README.md", "MBTSAD (4) | minibd/mitigations/mbtsad.py attention_loss"),
    ("minibd/audit/README.md", "PURE (lambda) | minibd/mitigations/pure.py layer_weights"),
    ("minibd/audit/README.md", "E-PUR (score) | drift"),
    ("minibd/attacks/README.md", "minibd/attacks/badnets.py insert"),
    ("minibd/models/README.md", "minibd/models/attention.py attend"),
])
def test_what_is_asked_for_most_is_two_hops_away(page, symbol):
    """The front page links to a room's page; that has a link to the symbol, an equation in the row of its number."""
    assert page in {link.partition("#")[0] for link in links(text_of(ROOT / "README.md"))}
    number, _, place = symbol.rpartition(" | ")
    file, _, name = place.rpartition(" ")
    shown = [line for line in text_of(ROOT / page).splitlines() if number in line] if number else [text_of(ROOT / page)]
    assert any(re.search(rf"`{file or '[^`]+'}:\d+`\]\([^)]+#L\d+\)\s+{name}\b", line) for line in shown)


def numbers(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w.])\d+\.\d+(?!\.?\w)", text))


def test_scores_on_the_front_page_stand_in_the_results_page_beside_them():
    rows = [line for line in text_of(ROOT / "README.md").splitlines() if line.startswith("| **")]
    assert len(rows) >= 4
    base = text_of(ROOT / "scripts" / "results" / "base.md")
    for row in rows:
        page, = re.findall(r"\((scripts/results/\S+\.md)\)", row)
        scores, at_768 = re.sub(r"width 768[^;]*;", "", row.split("|")[-2]), re.findall(r"width 768[^;]*;", row)
        assert len(numbers(scores)) >= 4 and numbers(scores) <= numbers(text_of(ROOT / page)), row
        assert all(numbers(part) and numbers(part) <= numbers(base) for part in at_768), row


def test_speeds_are_those_of_the_runs():
    """Every figure in a table of speed.md is one of bench.txt, rounded."""
    run = {float(x) for x in re.findall(r"\d+(?:\.\d+)?", text_of(ROOT / "scripts" / "results" / "bench.txt"))}
    cells = [cell for line in text_of(ROOT / "scripts" / "results" / "speed.md").splitlines() if line.startswith("| ")
             for cell in line.split("|")[2:-1]]
    shown = [x for cell in cells for x in re.findall(r"(?<![\w-])\d+(?:\.\d+)?", cell)]
    assert len(shown) > 60

    def measured(x: str) -> bool:
        return any(abs(float(x) - y) <= 0.5000001 * 10 ** -len(x.partition(".")[2]) for y in run)

    assert [x for x in shown if not measured(x)] == []


def test_the_change_log_begins_with_the_version():
    versions = re.findall(r"^### (\d+\.\d+\.\d+)", text_of(ROOT / "tests" / "README.md"), flags=re.M)
    assert versions and versions[0] == minibd.__version__
