"""Flags: every one in --help with its default, without torch; a dataclass read from source is the real one; errors are
one line."""

import errno
import io
import os
import re
import subprocess
import sys
from contextvars import Context
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pytest

from minibd.cli import (
    PART_OF,
    Attack,
    Clean,
    Idle,
    Task,
    idle,
    main,
    parse,
    progress,
    setting,
    settings_of,
)
from minibd.records import BadInput

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.py"))
ENV = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "1000"}


@dataclass(frozen=True, slots=True)
class Toy:
    """Every kind of flag"""
    count: int = setting(3, "a number", paper="5")
    share: float = setting(0.5, "a share of 100 %")
    words: tuple[str, ...] = setting(("a", "b"), "some words")
    fast: bool = setting(False, "faster")
    kept: bool = setting(True, "kept")
    mode: str = setting("one", "which", choices=("one", "two"))
    file_name: str | None = setting(None, "a file", kind=str)
    limit: float | None = setting(None, "a limit", kind=float)


def toy(*argv: str) -> Toy:
    (values,) = parse("", Toy, argv=argv)
    return values


@pytest.mark.parametrize("name, kind, first, last", [
    ("seed", int, 0, 2**63 - 1), ("epochs2", int, None, 10_000), ("lr1", float, None, 10.0),
    ("attack_batch_size", int, None, 100_000), ("k", int, None, 1000), ("rank", int, None, 100_000),
    ("clip", float, 0, None), ("row_steps", int, None, 100_000), ("pool", int, -10**7, 10**7),
    ("alpha", float, -1e9, 1e9),
])
def test_numbers_have_their_ranges(name, kind, first, last, capsys):
    made = dataclass(frozen=True)(type("Made", (), {
        "__annotations__": {name: kind.__name__}, "__doc__": "One", name: setting(kind(1), "a number")}))
    for limit, step in ((first, -1), (last, 1)):
        if limit is not None:
            assert getattr(parse("", made, argv=[f"--{name.replace('_', '-')}={limit}"])[0], name) == limit
            with pytest.raises(SystemExit):
                parse("", made, argv=[f"--{name.replace('_', '-')}={limit + step}"])
            assert "give a number in between" in capsys.readouterr().err


# ---- scripts

@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_without_torch(script):
    code = f"""
import runpy, sys
sys.argv = [{script!r}, "--help"]
try:
    runpy.run_path({str(ROOT / 'scripts' / script)!r}, run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
else:
    raise AssertionError("--help did not end the script")
print("torch" in sys.modules, "transformers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"


def test_mbtsads_help_lists_every_flag_with_its_default():
    done = subprocess.run(
        [sys.executable, "scripts/mbtsad.py", "--help"], cwd=ROOT, env=ENV, capture_output=True, text=True
    )
    assert done.returncode == 0 and not done.stderr
    from minibd.mitigations.mbtsad import MBTSAD
    entries = re.split(r"\n  (?=--)", done.stdout)                # a long flag's text stands on a line of its own
    lines = {entry.split()[0].rstrip(","): " ".join(entry.split()) for entry in entries}
    for group in (Task, Clean, Attack, MBTSAD):
        for f in fields(group):
            line = lines[f"--{f.name.replace('_', '-')}"]
            assert f.metadata["text"] in line
            if f.default not in (None, "") and not isinstance(f.default, (tuple, bool)):
                assert f"default {f.default}" in line, line
            if f.metadata["paper"]:
                assert f"paper: {f.metadata['paper']}" in line
    assert "default cf,mn,bb,tq" in lines["--triggers"]


def test_an_unknown_flag_or_no_checkpoint_ends_with_status_2():
    for argv in (["--ckpt", "x", "--alhpa", "2"], ["--ckpt", "x", "--alp", "2"], []):
        done = subprocess.run(
            [sys.executable, "scripts/mbtsad.py", *argv], cwd=ROOT, env=ENV, capture_output=True, text=True
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr


# ---- a dataclass from its source

def test_settings_of_is_the_real_dataclass():
    from minibd.mitigations.mbtsad import MBTSAD
    read = settings_of("mitigations.mbtsad", "MBTSAD")
    assert read is not MBTSAD
    assert [(f.name, f.default, dict(f.metadata)) for f in fields(read)] == [
        (f.name, f.default, dict(f.metadata)) for f in fields(MBTSAD)
    ]
    assert MBTSAD(**asdict(read())) == MBTSAD()
    assert read.__doc__ == MBTSAD.__doc__


def test_the_flags_of_settings_read_so_reach_the_real_class():
    from minibd.mitigations.mbtsad import MBTSAD

    (read,) = parse(
        "", settings_of("mitigations.mbtsad", "MBTSAD"),
        argv=["--k", "7", "--lr2", "0.5", "--ablate", "no-hid", "--batch-size", "3"],
    )
    assert MBTSAD(**asdict(read)) == MBTSAD(k=7, lr2=0.5, ablate="no-hid", batch_size=3)


def test_bad_values_pass_the_reader_and_the_real_class_refuses_them():
    from minibd.mitigations.mbtsad import MBTSAD
    (read,) = parse("", settings_of("mitigations.mbtsad", "MBTSAD"), argv=["--k", "0"])
    with pytest.raises(BadInput):
        MBTSAD(**asdict(read))


# ---- flags

def test_defaults():
    assert toy() == Toy()


def test_values_of_each_kind():
    values = toy(
        "--count", "7", "--share", "1e-3", "--words", "x, y,,z", "--fast", "--no-kept", "--mode", "two", "--file-name",
        "f", "--limit", "2",
    )
    assert values == Toy(7, 0.001, ("x", "y", "z"), True, False, "two", "f", 2.0)
    assert isinstance(values.limit, float)


@pytest.mark.parametrize("argv", [
    ["--count", "2.5"], ["--count", "x"], ["--share", "x"], ["--words", " , "], ["--mode", "three"], ["--unknown", "1"],
    ["--coun", "1"],                                             # no abbreviations
    ["--count"], ["stray"],
])
def test_what_is_no_value_of_a_flag_ends_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as end:
        toy(*argv)
    assert end.value.code == 2 and "error:" in capsys.readouterr().err


def test_what_is_no_utf_8_is_refused_unless_it_names_a_file(capsys, tmp_path, monkeypatch):
    """The shell's other bytes come as lone surrogates, which no tokenizer reads."""
    monkeypatch.chdir(tmp_path)
    there = "a\udcff"
    Path(there).touch()
    assert toy("--file-name", there).file_name == there and toy("--words", "größe").words == ("größe",)
    for argv in (["--file-name", there + "b"], ["--words", "a,b\udcff"]):
        with pytest.raises(SystemExit) as end:
            toy(*argv)
        shown = capsys.readouterr().err
        assert end.value.code == 2 and f"error: {argv[0]} " in shown and "<U+DCFF>" in shown and "UTF-8" in shown


def test_help_lines(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as end:
        toy("--help")
    assert end.value.code == 0
    shown = capsys.readouterr().out
    for line in (
        "--count N", "a number (default 3; paper: 5)", "a share of 100 % (default 0.5)", "some words (default a,b)",
        "--fast, --no-fast", "which (default one)", "Every kind of flag",
    ):
        assert line in shown, line
    assert "a file\n" in shown                                   # no default, so none is said


def test_groups_come_back_in_their_order():
    task, clean, attack = parse(
        "", Task, Clean, Attack, argv=["--ckpt", "m", "--clean", "50", "--triggers", "aa,bb", "--seed", "4"]
    )
    assert (task.ckpt, task.seed, clean.clean, attack.triggers) == ("m", 4, 50.0, ("aa", "bb"))
    assert (task.data, task.out, attack.triggered) == ("", None, None)


def test_a_checkpoint_is_required(capsys):
    with pytest.raises(SystemExit) as end:
        parse("", Task, argv=[])
    assert end.value.code == 2 and "--ckpt" in capsys.readouterr().err


# ---- how a script ends

def test_bad_input_is_one_line_and_status_2(capsys):
    def run():
        raise BadInput("k is 0: give 1")
    with pytest.raises(SystemExit) as end:
        main(run)
    assert end.value.code == 2
    assert capsys.readouterr() == ("", "error: k is 0: give 1\n")


@pytest.mark.parametrize("error", [ValueError("ours"), KeyError("ours"), RuntimeError("ours")])
def test_any_other_exception_keeps_its_traceback(error):
    def run():
        raise error
    with pytest.raises(type(error)) as caught:
        main(run)
    assert caught.value is error


def test_a_run_that_ends_well_returns():
    assert main(lambda: None) is None


# ---- errors of the command line: one line, with the flag, the value and what is wanted

@dataclass(frozen=True, slots=True)
class Other:
    """Another job's flags"""
    depth: int = setting(1, "how deep")


def refused_by(call, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        call()
    said = capsys.readouterr()
    assert end.value.code == 2 and not said.out and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert "usage" not in said.err and len(said.err) <= 300
    return said.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("argv, line", [
    (["--cuont", "1"], "--cuont: no such flag, did you mean --count? --help lists them all"),
    (["--no-fats"], "--no-fats: no such flag, did you mean --no-fast? --help lists them all"),
    (["--zzz=3"], "--zzz: no such flag; --help lists them all"), (["-q"], "-q: no such flag; --help lists them all"),
    (["--depth", "2"], "--depth: a flag of dive alone; --help lists those of this one"),
    (["--count", "x"], "--count: 'x' is no whole number"), (["--count", "2.5"], "--count: '2.5' is no whole number"),
    (["--share", "x"], "--share: 'x' is no number"), (["--limit", "nan"], "--limit: 'nan' is not finite"),
    (["--share", "inf"], "--share: 'inf' is not finite"),
    (["--mode", "tow"], "--mode: 'tow' is not one of one, two; did you mean two?"),
    (["--mode", "a\nb"], "--mode: 'a<U+000A>b' is not one of one, two"),
    (["--count"], "--count: its value is missing behind it"), (["--count", "--fast"], "--count: its value is missing"),
    (["--words", ","], "--words: no word given"), (["stray", "word"], "stray word: belongs to no flag"),
    (["--count", "x" * 500], "--count: '" + "x" * 57 + "...' is no whole number"),
])
def test_what_is_wrong_with_a_flag_is_one_line(capsys, argv, line):
    assert refused_by(lambda: parse("", Toy, argv=argv, others={"dive": (Other,)}), capsys).startswith(line)


def test_an_unknown_flag_is_said_before_what_is_missing(capsys):
    assert refused_by(lambda: parse("", Task, argv=["--clena", "2"]), capsys).startswith("--clena: no such flag")
    assert refused_by(lambda: parse("", Task, argv=["--seed", "2"]), capsys).startswith("--ckpt: not given")


def test_the_job_comes_first(capsys):
    def jobs(*argv):
        return parse("", Toy, first=("what", ("dig", "dive")), argv=argv)

    assert jobs("dive", "--count", "4") == ("dive", Toy(4)) and jobs("--count", "4", "dig") == ("dig", Toy(4))
    assert refused_by(lambda: jobs("dig", "dive"), capsys).startswith("dive: belongs to no flag")
    assert refused_by(lambda: jobs("--no-such", "1"), capsys) == "what: not given, begin with one of dig, dive"
    assert refused_by(jobs, capsys) == "what: not given, begin with one of dig, dive"
    assert refused_by(lambda: jobs("dgi"), capsys) == "what: 'dgi' is not one of dig, dive; did you mean dig?"


# ---- flags that do nothing

SLOW = (Idle(("count", "words", "kept"), lambda v: v.fast, "of what --fast leaves out (mode {mode}): leave it out"),)


def test_a_default_is_told_from_the_same_value_given():
    assert parse("", Toy, argv=[]).given == set()
    parsed = parse("", Toy, argv=["--count", "3", "--no-fast", "--words", "a,b"])
    assert parsed == (Toy(),) and parsed.given == {"count", "fast", "words"}
    assert parse("", Toy, first=("what", ("dig",)), argv=["dig", "--limit", "1"]).given == {"limit"}


@pytest.mark.parametrize("argv, line", [
    (["--count", "3"], "--count 3: of what --fast leaves out (mode one): leave it out"),
    (["--no-kept", "--words", "a,b", "--mode", "two"], "--words a,b, --no-kept: of what --fast leaves out (mode two)"),
    (["--words", "x" * 99], f"--words {'x' * 57}...: of"),
])
def test_idle_flags_are_named_with_their_values(capsys, argv, line):
    assert refused_by(lambda: parse("", Toy, argv=["--fast", *argv], rules=SLOW), capsys).startswith(line)
    assert parse("", Toy, argv=argv, rules=SLOW).given
    assert parse("", Toy, argv=["--fast", "--mode", "two"], rules=SLOW) == (Toy(fast=True, mode="two"),)


def test_python_is_told_of_settings_and_not_of_flags():
    values = asdict(Toy(fast=True, file_name="f"))
    assert idle(SLOW, ["count"], values, python=True) == "count 3: of what fast leaves out (mode one): leave it out"
    assert idle(SLOW, [], values) == idle(SLOW, ["count"], asdict(Toy())) == ""


# ---- how a script is interrupted

def interrupted(run, capsys) -> str:
    def stopped():
        run()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        main(stopped)
    said = capsys.readouterr()
    assert end.value.code == 130 and not said.out
    return said.err


def test_an_interrupt_says_what_was_finished_and_what_can_be_gone_on_with(capsys, monkeypatch):
    again = "the same command starts again from the beginning"
    assert interrupted(lambda: None, capsys) == (
        f"interrupted; no stage was finished; nothing is written; {again}\n")
    assert interrupted(lambda: progress().finished.extend(["victim", "CFT"]), capsys) == (
        f"interrupted; finished: victim, CFT; nothing is written; {again}\n")  # and nothing of the run before

    def written():
        progress().finished.append("victim")
        progress().written.append("out/m.safetensors")
    assert interrupted(written, capsys) == f"interrupted; finished: victim; written: out/m.safetensors; {again}\n"

    assert interrupted(lambda: progress().finished.extend(map(str, range(40))), capsys).startswith(
        "interrupted; finished: 35 others, 35, 36, 37, 38, 39; ")

    def kept():
        progress().kept = "the cells in x.jsonl stay"
    assert interrupted(kept, capsys) == "interrupted; no stage was finished; the cells in x.jsonl stay\n"
    monkeypatch.setenv(PART_OF, "tables.py")  # whose own line says it
    assert interrupted(written, capsys) == ""


def refusing():
    raise BadInput("mine")


class Full(io.StringIO):
    """What is printed goes to a full disk, or to a reader that went."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def flush(self) -> None:
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize("number, word", [(errno.ENOSPC, "No space left"), (errno.EPIPE, "nobody reads")])
def test_what_cannot_be_printed_is_one_line(capsys, monkeypatch, number, word):
    monkeypatch.setattr(sys, "stdout", Full(number))
    with pytest.raises(SystemExit) as end:
        main(lambda: print("a result"))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and word in said
    sys.stdout.flush()                    # as Python does when it ends
    monkeypatch.setattr(sys, "stderr", Full(number))
    monkeypatch.setattr(sys.stderr, "write", lambda text: sys.stderr.flush())
    with pytest.raises(SystemExit):
        main(refusing)


def test_outside_a_script_progress_is_nobodys():
    def twice() -> list[str]:
        progress().finished.append("x")
        return progress().finished

    assert Context().run(twice) == []
