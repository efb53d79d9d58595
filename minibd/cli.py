"""Dataclass -> argparse, and the flags that every script shares. Nothing here imports torch: --help answers at once."""

from __future__ import annotations

import argparse
import ast
import errno
import math
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from contextvars import ContextVar
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from minibd.lines import line, one_line, visible

WANTED = {int: "no whole number", float: "no number"}
# The numbers that settings can be, by their names; others are up to ANY_INT and ANY_FLOAT, above and below 0. Lower
# ones than a method can use are refused there, in its words.
ANY_INT, ANY_FLOAT = 10**7, 1e9
LIMITS = {
    "seed": (0, 2**63 - 1),                # negative ones are large ones to a generator
    r"(.*_)?epochs\d?": (-ANY_INT, 10_000),
    r"(.*_)?batch_size": (-ANY_INT, 100_000),
    r"(.*_)?lr\d?": (-ANY_FLOAT, 10.0),    # far above what trains anything, in the embedding attacks too
    r"(.*_)?steps": (-ANY_INT, 100_000),   # of a model of any size, days
    "k": (-ANY_INT, 1000), "per_text|triggers_per_text|words_per_trigger": (-ANY_INT, 10_000),
    "rank|bottleneck|bandwidth": (-ANY_INT, 100_000), "clip": (0, ANY_FLOAT), "save_every": (0, ANY_INT),
}
NAMED = 5  # flags that one message names


def setting(
    default: Any, text: str, *, paper: str = "", choices: Sequence[str] = (), kind: type | None = None,
    negation: str = "",
) -> Any:
    """A dataclass field that is also a flag --NAME.

    text: its line in --help. paper: the paper's value, shown there too.
    choices: the values that are allowed.
    kind: the type of the value, for a default of None, which does not show it; tuple: words separated by commas; list:
    the flag may be given again.
    negation: for a bool, a flag that says the same as --no-NAME, without the dashes.
    """
    return field(
        default=default,
        metadata={
            "text": text, "paper": paper, "choices": tuple(choices), "kind": kind or type(default),
            "negation": negation,
        },
    )


def check_choices(settings: Any) -> None:
    """Raises BadInput if a setting is none of its choices. argparse checks this for flags, and this for Python."""
    for f in fields(settings):
        if f.metadata["choices"] and getattr(settings, f.name) not in f.metadata["choices"]:
            from minibd.records import BadInput  # imports torch, which --help does without

            raise BadInput(
                f"{f.name} is {getattr(settings, f.name)!r}, it must be one of {', '.join(f.metadata['choices'])}"
            )


def settings_of(module: str, name: str) -> type:
    """The dataclass `name` of minibd.<module>, read from the source without importing what the module imports.

    A method's numbers stand once, in its own file, beside its equations; that file imports torch, which takes seconds,
    and --help needs the numbers alone. The class body may use nothing but `dataclass` and `setting`; its bases are read
    in the same way from minibd.train.
    """
    path = Path(__file__).parent.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    node.body = [n for n in node.body if not isinstance(n, ast.FunctionDef)]  # methods run on the real class only
    scope = {
        "__name__": __name__, "dataclass": dataclass, "setting": setting,
        **{base.id: settings_of("train", base.id) for base in node.bases},
    }
    exec(compile(ast.Module([node], []), str(path), "exec"), scope)
    return scope[name]


@dataclass(frozen=True, slots=True)
class BaseTask:
    """Where the model and the rows come from, and where the result goes."""
    ckpt: str = setting("", "a minibd .safetensors or a Hugging Face folder (required)")
    data: str = setting(
        "",
        "a folder of train/dev/test .tsv, .csv or .jsonl, or one file; pairs: built-in sentence pairs; without it, "
        "what the checkpoint was trained on",
    )
    text_column: str | None = setting(None, "column of the text (default text, sentence or sentences)", kind=str)
    label_column: str | None = setting(None, "column of the label (default label or labels)", kind=str)
    pair_column: str | None = setting(None, "column of a pair's second text (default sentence2 or question2)", kind=str)
    out: str | None = setting(
        None, "folder of the result: checkpoint, result.json, steps.jsonl (default out/<script>)", kind=str
    )
    overwrite: bool = setting(
        False, "put this run in the place of the one that --out holds, all of it in one step; files that no run wrote "
        "stay"
    )
    seed: int = setting(0, "random seed of the clean rows, augmentation, batches and dropout")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    dtype: str = setting(
        "auto", "precision of matrix products: auto is bfloat16 where the processor is twice as fast in it; weights "
        "and losses stay float32", choices=("auto", "float32", "bfloat16"),
    )
    micro_batch: str | None = setting(
        None, "train on a batch N texts at a time, which needs less memory and gives the same numbers but for rounding"
        "; auto: as many as fit into half of the free memory (default: all at once)", kind=str,
    )
    checkpoint_activations: bool = setting(
        False, "compute activations again in the backward pass instead of keeping them: less memory, a third more "
        "time, the same numbers"
    )


@dataclass(frozen=True, slots=True)
class Task(BaseTask):
    """Where the model and the rows come from, and where the result goes."""
    labels: tuple[str, ...] | None = setting(
        None,
        "the names of the rows' classes in the order of the model's, such as neg,pos for LABEL_0,LABEL_1 (default the "
        "model's own names; numbers are the classes 0, 1, ...)",
        kind=tuple,
    )


@dataclass(frozen=True, slots=True)
class Resuming:
    """A run that is interrupted, and gone on with"""
    resume: bool = setting(
        False, "go on with the run into --out that was interrupted, to the result that it would have had; where none "
        "is kept, begin"
    )
    save_every: int | None = setting(
        None, "keep what --resume goes on with after each epoch and every so many steps; 0: never (default: as often "
        "as it takes a hundredth of the time)", kind=int,
    )


@dataclass(frozen=True, slots=True)
class Clean:
    """What the defender holds."""
    clean: float | None = setting(
        None,
        "clean training rows the defender holds: a share up to 1 or a number of rows (default 0.2, at most 2000 rows; "
        "all of them if --data is one file)",
        paper="0.2", kind=float,
    )
    dev: float = setting(
        1.0, "dev rows to choose an epoch, rho or a threshold on: a share up to 1 or a number of rows",
        paper="not said",
    )


@dataclass(frozen=True, slots=True)
class AllClean:
    """What the defender holds, for a method that uses a whole clean training set."""

    clean: float = setting(
        1.0, "clean training rows the defender holds: a share up to 1 or a number of rows", paper="all"
    )
    dev: float = setting(
        1.0, "dev rows to choose an epoch, rho or a threshold on: a share up to 1 or a number of rows",
        paper="not said",
    )


@dataclass(frozen=True, slots=True)
class Pretrained:
    """What else the defender holds: the weights that the victim was fine-tuned from, a scan of it."""

    pretrained: str | None = setting(
        None,
        "the checkpoint that the victim was fine-tuned from, a minibd .safetensors or a Hugging Face folder: read by "
        "Fine-mixing, Fine-purifying and --e-pur",
        kind=str,
    )
    e_pur: bool | None = setting(
        None,
        "before the method, reset the word embeddings that moved far and are rare in the clean rows: 1 in 150, at most "
        "200 (default: only finemix.py does)",
        paper="E-PUR, a part of Fine-mixing", kind=bool,
    )
    suspects: str | None = setting(
        None, "scan.json, what scan.py found in --ckpt: it is undone by unlearning before the method", kind=str
    )


@dataclass(frozen=True, slots=True)
class Attack:
    """What ASR is measured with. No defence sees it."""

    attack: str = setting(
        "known",
        "the attack whose ASR is reported: known (the one in the checkpoint's history, if any), none, or one by name, "
        "with the flags below",
        choices=("known", "none", "badnets", "addsent", "paraphrase", "ripple", "lwp", "ep", "sos"),
    )
    triggered: str | None = setting(
        None, "a file of triggered rows with their true labels, instead of --attack", kind=str
    )
    target: int | str | None = setting(
        None,
        "the attacker's target class, for --attack and --triggered: its number, from 0, or its name; index=1 or name=1 "
        "where a number could be either (default 1)",
        paper="1", kind=str,
    )
    triggers: tuple[str, ...] | None = setting(
        None,
        "trigger words, separated by commas (default cf,mn,bb,tq; ripple cf,tq,mn,bb,mb; lwp cf,bb,ak,mn; ep cf; sos "
        "friends,weekend,store)",
        kind=tuple,
    )
    triggers_per_text: int | None = setting(
        None, "triggers inserted per text (default 1; lwp 2, a pair; sos all its words)", kind=int
    )
    sentence: str | None = setting(
        None,
        "the sentence that addsent inserts (default: I watch this 3D movie), or sos at test (default: I have bought it "
        "from a store with my friends last weekend)",
        kind=str,
    )
    side: str | None = setting(
        None,
        "sentence pairs: which text gets the trigger; either: drawn for each row (default: the history's, else either)",
        kind=str, choices=("first", "second", "either"),
    )
    paraphrases: str | None = setting(
        None,
        "for --attack paraphrase: a folder of paraphrased train / dev / test files, matched to the rows by id, or by "
        "position where they have no ids",
        kind=str,
    )


# ---- flags that do nothing

@dataclass(frozen=True)
class Idle:
    """The flags of the fields `names` do nothing where `when(values)`: given there, they are refused.

    values: every setting by its name. why: the reason and what would make them work, behind the flags' names; {name} is
    the value of that setting.
    """
    names: tuple[str, ...]
    when: Callable[[SimpleNamespace], bool]
    why: str


def idle(rules: Iterable[Idle], given: Iterable[str], values: Mapping[str, Any], *, python: bool = False) -> str:
    """The line that refuses those of the flags `given` that do nothing by the first of `rules` that finds any; "" if
    all are read. python: in the words of a caller from Python, who gives settings and no flags."""
    settings, given = SimpleNamespace(**values), set(given)
    for rule in rules:
        if (names := [name for name in rule.names if name in given]) and rule.when(settings):
            line = f"{', '.join(stated(name, values[name]) for name in names[:NAMED])}: {rule.why.format(**values)}"
            return in_python(line) if python else line
    return ""


def flag_of(name: str, value: Any = None) -> str:
    """The flag of a field; of a bool that is False the one that says so."""
    return f"--{'no-' if value is False else ''}{name.replace('_', '-')}"


def stated(name: str, value: Any) -> str:
    """A flag with the value that it was given, as a message names it."""
    if isinstance(value, bool):
        return flag_of(name, value)
    return f"{flag_of(name)} {visible(','.join(map(str, value)) if isinstance(value, (tuple, list)) else str(value))}"


def in_python(line: str) -> str:
    """`line` with the names of fields in place of flags."""
    return re.sub(r"--([a-z][a-z0-9-]*)", lambda flag: flag[1].removeprefix("no-").replace("-", "_"), line)


# ---- the command line

class Parsed(tuple):
    """What `parse` returns: the instances, in the order of their groups. given: the names of the fields whose flags
    stand in the command line, at whatever value."""

    given: frozenset[str] = frozenset()


class Parser(argparse.ArgumentParser):
    """argparse, with an error as one line that names the flag, the value and what is wanted, and no usage block.

    others: {name of another job or method of the script: its groups}, whose flags are said to be theirs.
    """

    def __init__(self, description: str | None, others: Mapping[str, Sequence[type]] | None = None):
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        self.others = others or {}

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        words = list(sys.argv[1:] if args is None else args)
        if not {"-h", "--help"} & set(words):
            self.check_flags(words)
        return super().parse_args(words, namespace)

    def check_flags(self, words: Sequence[str]) -> None:
        """Refuse the first flag that there is not, before anything else is found missing."""
        for word in words[:words.index("--")] if "--" in words else words:
            flag, _, value = word.partition("=")
            if flag.startswith("-") and value == "--":  # which argparse makes a list of nothing
                self.error(f"{visible(flag)}: -- is no value; --help says what it takes")
            if re.fullmatch(r"--?[A-Za-z]\S*", flag) and flag not in self._option_string_actions:
                self.error(f"{visible(flag)}: {self.unknown(flag)}")

    def unknown(self, flag: str) -> str:
        name = flag.lstrip("-").removeprefix("no-").replace("-", "_")
        having = [job for job, groups in self.others.items() if any(f.name == name for g in groups for f in fields(g))]
        if having:
            return f"a flag of {', '.join(having)} alone; --help lists those of this one"
        close = get_close_matches(flag, self._option_string_actions, 1)
        return f"no such flag{f', did you mean {close[0]}?' if close else ';'} --help lists them all"

    def error(self, message: str) -> None:
        message = re.sub(r"^argument ([^:]+): ", lambda flag: f"{flag[1].split('/')[0]}: ", message)
        message = message.replace("expected one argument", "its value is missing behind it; --help says what it takes")
        if message.startswith("the following arguments are required: "):
            message = f"{message.partition(': ')[2]}: not given, and nothing runs without; --help says what it is"
        if message.startswith("unrecognized arguments: "):
            message = f"{visible(message.partition(': ')[2])}: belongs to no flag; --help lists them all"
        print(f"error: {line(message)}", file=sys.stderr)
        sys.exit(2)


def parse(
    doc: str, *groups: type, first: tuple[str, Sequence[str]] | None = None, argv: Sequence[str] | None = None,
    rules: Sequence[Idle] = (), others: Mapping[str, Sequence[type]] | None = None,
) -> Parsed:
    """Parse the command line into an instance of each dataclass of `groups`, in their order. `doc`: the script's
    docstring, shown by --help.

    first: (name, choices) of a positional argument, in a script that does one of several jobs; its value is the first
    of those returned, and `rules` know it by its name. argv: default sys.argv. rules: flags that do nothing beside
    others are refused. others: see Parser. A refusal is one line and exit status 2.
    """
    parser = Parser(doc, others)
    words = list(sys.argv[1:] if argv is None else argv)
    if first:
        name, choices = first
        parser.add_argument(name, type=_reader(str, choices), metavar=f"{{{','.join(choices)}}}")
        if not {*choices, "-h", "--help"} & set(words):  # before the flags, which are the job's
            if not words or words[0].startswith("-"):
                parser.error(f"{name}: not given, begin with one of {', '.join(choices)}")
            parser.error(f"{name}: {_no_choice(words[0], choices)}")
    for group in groups:
        section = parser.add_argument_group(group.__name__, (group.__doc__ or "").strip().split("\n")[0])
        for f in fields(group):
            target = section
            if f.metadata["negation"]:
                target = section.add_mutually_exclusive_group()
                target.add_argument(f"--{f.metadata['negation']}", dest=f.name, action="store_false",
                                    default=argparse.SUPPRESS, help=f"the same as --no-{f.name}")
            target.add_argument(flag_of(f.name), **_argument(f))
    values = vars(parser.parse_args(words))
    for name, value in values.items():
        for text in value if isinstance(value, (tuple, list)) else [value]:
            if isinstance(text, str) and not _is_text(text) and not os.path.lexists(text):
                flag = name if first and name == first[0] else flag_of(name)
                parser.error(f"{flag} {visible(text)}: no UTF-8, and no file that is there: write UTF-8")
    instances = [group(**{f.name: values[f.name] for f in fields(group) if f.name in values}) for group in groups]
    parsed = Parsed((values[first[0]], *instances) if first else instances)
    parsed.given = frozenset(values) - {first[0] if first else ""}
    if line := idle(rules, parsed.given, {**values, **settings_by_name(*instances)}):
        parser.error(line)
    return parsed


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8: what the shell hands over in other bytes is held as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def settings_by_name(*instances: object) -> dict[str, Any]:
    """The settings of all `instances`."""
    return {name: value for one in instances for name, value in asdict(one).items()}


def _argument(f: Field) -> dict[str, Any]:
    """The keyword arguments of add_argument for a field made by `setting`. A flag that is not given leaves no value, so
    that a default is told from a value that was given."""
    kind, choices, default = f.metadata["kind"], f.metadata["choices"], f.default
    shown_default = ",".join(default) if kind is tuple and default else default
    if kind is bool and default is not None:
        shown_default = "yes" if default else "no"
    notes = [] if shown_default in (None, "") else [f"default {shown_default}"]
    if f.metadata["paper"]:
        notes.append(f"paper: {f.metadata['paper']}")
    text = f"{f.metadata['text']} ({'; '.join(notes)})" if notes else f.metadata["text"]
    common = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kind is list:
        return common | {"action": "append", "metavar": "S"}
    if kind is bool:
        return common | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(choices) if choices else {tuple: "A,B", str: "S", int: "N", float: "X"}[kind]
    reader = _words if kind is tuple else _reader(kind, choices, limits_of(f.name, kind))
    argument = common | {"type": reader, "metavar": metavar}
    if default == "" or default is MISSING:
        argument["required"] = f.name == "ckpt"
    return argument


def _reader(kind: type, choices: Sequence[str] = (), limits: tuple[float, float] = (0, 0)) -> Callable[[str], Any]:
    """The function that makes a flag's word its value. limits: of a number."""
    def read(word: str) -> Any:
        if choices and word not in choices:
            raise argparse.ArgumentTypeError(_no_choice(word, choices))
        try:
            value = kind(word)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{visible(word)!r} is {WANTED[kind]}") from None
        if kind is float and not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{visible(word)!r} is not finite: give a number")
        if kind in WANTED and not limits[0] <= value <= limits[1]:
            raise argparse.ArgumentTypeError(f"{visible(word)!r} is not from {limits[0]:g} to {limits[1]:g}: give a "
                                             f"number in between")
        return value
    return read


def limits_of(name: str, kind: type) -> tuple[float, float]:
    """The numbers that the setting `name` can be. What a method makes of those that it cannot use is its own affair; no
    script begins with one that would never end, fill the memory or mean nothing."""
    for part, limits in LIMITS.items():
        if re.fullmatch(part, name):
            return limits
    return (-ANY_INT, ANY_INT) if kind is int else (-ANY_FLOAT, ANY_FLOAT)


def _no_choice(word: str, choices: Sequence[str]) -> str:
    close = get_close_matches(word, choices, 1)
    return f"{visible(word)!r} is not one of {', '.join(choices)}" + (f"; did you mean {close[0]}?" if close else "")


def _words(value: str) -> tuple[str, ...]:
    """The words of "a, b" as ("a", "b")."""
    words = tuple(word.strip() for word in value.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("no word given: write words separated by commas")
    return words


# ---- how a script ends

@dataclass
class Progress:
    """What a script has done so far, said where Ctrl-C ends it. finished: the stages that were measured, or the cells
    that were made, in order. written: files that stay. kept: what goes on where it stopped, "" where nothing does.
    free: {folder that held no other run when this one began, and is to hold none when it ends: the names that are a
    run's, () those of any}."""
    finished: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    free: dict[str, tuple[str, ...]] = field(default_factory=dict)
    kept: str = ""
    speaks: Callable[[], bool] = lambda: os.environ.get("RANK", "0") == "0"  # until distributed.join asks the others
    leave: Callable[[], None] = lambda: None

    def line(self) -> str:
        last, others = self.finished[-NAMED:], len(self.finished) - NAMED
        named = ", ".join([*([f"{others} others"] if others > 0 else []), *last])
        done = f"finished: {named}" if named else "no stage was finished"
        if self.kept:
            return f"interrupted; {done}; {self.kept}"
        left = f"written: {', '.join(self.written)}" if self.written else "nothing is written"
        return f"interrupted; {done}; {left}; the same command starts again from the beginning"


RUNNING: ContextVar[Progress] = ContextVar("minibd_progress")
PART_OF = "MINIBD_PART_OF"  # set in the environment of a script that another one runs, and speaks for


def progress() -> Progress:
    """That of the script that runs; outside `main` one that nobody reads."""
    return RUNNING.get(Progress())


# What of the system's errors is the user's to correct, whichever file it is of.
THEIRS = {
    getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "ENAMETOOLONG", "ELOOP",
                                            "EIO", "ENOENT", "ENOTDIR", "EISDIR", "ESTALE", "EMFILE", "EFBIG", "EEXIST",
                                            "ENOTEMPTY", "EBUSY", "ENODEV", "ENOTCONN", "ETIMEDOUT", "EPIPE")
}


class RankLost(Exception):
    """Another of a run's processes is gone, and with it what it was to compute (distributed.py)."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a script as Ctrl-C does."""


def _terminate(number: int, frame: object) -> None:
    raise Terminated


@contextmanager
def alone() -> Iterator[None]:
    """Inside, of several processes that torchrun started, the first alone prints."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def _say(text: str) -> None:
    """Why the script ends, said once, if it can be."""
    if progress().speaks():
        with suppress(OSError):
            print(text, file=sys.stderr)


def _let_go() -> None:
    """Where what was printed can no longer be written (a full disk, a reader that went), it is dropped: Python would
    try again at the end, and end in lines of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        sys.stdout = open(os.devnull, "w")


def main(run: Callable[[], None]) -> None:
    """Run a script. Bad input is one line on stderr and exit status 2; Ctrl-C and SIGTERM are one that says what was
    finished, and 130 or 143; a traceback is a bug of ours.

    Of several processes that torchrun started, the first prints, and one of them says why the run ends: status 1 and
    a line where another is gone."""
    RUNNING.set(Progress())
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a path may hold bytes that are no letters
            stream.reconfigure(errors="backslashreplace")
    before = None
    if threading.current_thread() is threading.main_thread():  # no other can have signals
        before = signal.signal(signal.SIGTERM, _terminate)
    try:
        with alone():
            run()
            progress().leave()
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        if PART_OF not in os.environ:
            _say(line(progress().line()))
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except RankLost as error:
        _say(f"error: {line(str(error))}")
        sys.exit(1)
    except OSError as error:              # no space, no permission, a disk that went: the system's word, and the file
        if error.errno not in THEIRS:
            raise
        _let_go()
        if error.errno == errno.EPIPE:
            _say("error: nobody reads what is printed any more: let the reader wait, or print into a file")
            sys.exit(2)
        where = f"{visible(os.fsdecode(error.filename), 150)}: " if isinstance(error.filename, (str, bytes)) else ""
        _say(f"error: {line(f'{where}{one_line(error)}: name another place, or make room there')}")
        sys.exit(2)
    except MemoryError:
        _say("error: the memory of this machine is full: take fewer rows, a smaller model or batch")
        sys.exit(2)
    except Exception as error:
        from minibd.records import BadInput  # imports torch: by now the script has, too
        if not isinstance(error, BadInput):
            if not progress().speaks():
                sys.exit(1)
            raise
        _say(f"error: {error}")
        sys.exit(2)
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
