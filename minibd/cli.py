"""Dataclass -> argparse, and the flags that every script shares. Nothing here imports torch: --help answers at once."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any


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
    seed: int = setting(0, "random seed of the clean rows, augmentation, batches and dropout")
    device: str = setting("auto", "cpu, cuda, or auto: cuda if there is one")
    dtype: str = setting(
        "float32", "precision of matrix products; weights and losses stay float32", choices=("float32", "bfloat16")
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
    """The weights that the victim was fine-tuned from, if the defender has them."""

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
    target: int = setting(1, "the attacker's target class, for --attack and --triggered", paper="1")
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


def parse(
    doc: str, *groups: type, first: tuple[str, Sequence[str]] | None = None, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """Parse the command line into an instance of each dataclass of `groups`, in their order. `doc`: the script's
    docstring, shown by --help.

    first: (name, choices) of a positional argument, in a script that does one of several jobs; its value is the first
    of those returned. argv: default sys.argv.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if first:
        parser.add_argument(first[0], choices=tuple(first[1]))
    for group in groups:
        section = parser.add_argument_group(group.__name__, (group.__doc__ or "").strip().split("\n")[0])
        for f in fields(group):
            target = section
            if f.metadata["negation"]:
                target = section.add_mutually_exclusive_group()
                target.add_argument(f"--{f.metadata['negation']}", dest=f.name, action="store_false", default=None,
                                    help=f"the same as --no-{f.name}")
            target.add_argument(f"--{f.name.replace('_', '-')}", **_argument(f))
    values = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    instances = [group(**{f.name: values[f.name] for f in fields(group) if f.name in values}) for group in groups]
    return (values[first[0]], *instances) if first else tuple(instances)


def _argument(f: Field) -> dict[str, Any]:
    """The keyword arguments of add_argument for a field made by `setting`."""
    kind, choices, default = f.metadata["kind"], f.metadata["choices"], f.default
    shown = ",".join(default) if kind is tuple and default else default
    notes = [] if shown in (None, "") or kind is bool else [f"default {shown}"]
    if f.metadata["paper"]:
        notes.append(f"paper: {f.metadata['paper']}")
    text = f"{f.metadata['text']} ({'; '.join(notes)})" if notes else f.metadata["text"]
    common = {"default": default, "help": text.replace("%", "%%")}
    if kind is list:
        return common | {"action": "append", "default": None, "metavar": "S"}
    if kind is bool:
        return common | {"action": argparse.BooleanOptionalAction}
    metavar = "|".join(choices) if choices else {tuple: "A,B", str: "S", int: "N", float: "X"}[kind]
    argument = common | {"type": _words if kind is tuple else kind, "metavar": metavar}
    if choices:
        argument["choices"] = choices
    if default == "" or default is MISSING:
        argument["required"] = f.name == "ckpt"
    return argument


def _words(value: str) -> tuple[str, ...]:
    """The words of "a, b" as ("a", "b")."""
    words = tuple(word.strip() for word in value.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("no word given: write words separated by commas")
    return words


def main(run: Callable[[], None]) -> None:
    """Run a script. Bad input is one line on stderr and exit status 2, an interrupt 130; a traceback is a bug of ours.
    """
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from minibd.records import BadInput  # imports torch: by now the script has, too
        if not isinstance(error, BadInput):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
