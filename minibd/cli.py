"""Dataclass -> argparse, and the flags that every script shares. Nothing here imports torch, so that --help answers at
once."""

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
    opposite: str = "",
) -> Any:
    """A dataclass field that is a flag: its default, its line in --help, the paper's value where there is one.

    kind: the type of the flag's value where the default is None and so does not tell.
    opposite: another name for a bool's --no-NAME.
    """
    return field(
        default=default,
        metadata={
            "text": text, "paper": paper, "choices": tuple(choices), "kind": kind or type(default),
            "opposite": opposite,
        },
    )


def check_choices(settings: Any) -> None:
    """Raises BadInput where a setting is none of its choices: what argparse refuses, for whoever makes the settings in
    Python."""
    for f in fields(settings):
        if f.metadata["choices"] and getattr(settings, f.name) not in f.metadata["choices"]:
            from minibd.records import BadInput  # imports torch, which --help does without

            raise BadInput(
                f"{f.name} is {getattr(settings, f.name)!r}, it must be one of {', '.join(f.metadata['choices'])}"
            )


def settings_of(module: str, name: str) -> type:
    """The dataclass `name` of minibd.<module>, read from the source without importing what the module imports.

    A method's numbers stand once, in its own file, beside its equations; that file imports torch, which takes seconds.
    --help needs the numbers alone. Only `dataclass`, `setting` and the class's bases, read in the same way from
    minibd.train, are known to it.
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


# What mends a classifier with clean rows -> where its numbers stand. The functions are in job.MENDS.
REPAIRS = {
    "cft": ("train", "Tuning"), "reinit": ("mitigations.reinit", "Reinit"),
    "fineprune": ("mitigations.fineprune", "FinePruning"), "finemix": ("mitigations.finemix", "FineMixing"),
    "finepurify": ("mitigations.finepurify", "FinePurifying"),
}
BLENDS = ("finemix", "finepurify")  # those that take the weights before, after the victim


@dataclass(frozen=True, slots=True)
class Task:
    """Where the model and the rows come from, and where the result goes."""
    ckpt: str = setting("", "a minibd .safetensors or a Hugging Face folder (required)")
    data: str = setting(
        "",
        "a folder of train/dev/test .tsv, .csv or .jsonl, or one file; pairs: built-in sentence pairs; without it, "
        "what the "
        "checkpoint was trained on",
    )
    text_column: str | None = setting(None, "column of the text, where it is not text, sentence or sentences", kind=str)
    label_column: str | None = setting(None, "column of the label, where it is not label or labels", kind=str)
    pair_column: str | None = setting(None, "column of the second text of a pair", kind=str)
    out: str | None = setting(
        None, "folder of the result: checkpoint, result.json, steps.jsonl (default out/<script>)", kind=str
    )
    seed: int = setting(0, "seeds rows, augmentation, batches and dropout")
    device: str = setting("auto", "cpu, cuda, or auto: cuda where there is one")
    dtype: str = setting(
        "float32", "type of the matrix products; weights and losses stay float32", choices=("float32", "bfloat16")
    )


@dataclass(frozen=True, slots=True)
class Clean:
    """What the defender holds."""
    clean: float | None = setting(
        None,
        "clean training rows the defender holds: a share up to 1 or a number of rows "
        "(default 0.2, at most 2000 rows, but all of them where --data is one file)",
        paper="0.2", kind=float,
    )
    dev: float = setting(
        1.0, "dev rows that an epoch, rho or a threshold is chosen by: a share up to 1 or a number of rows",
        paper="not said",
    )


@dataclass(frozen=True, slots=True)
class AllClean:
    """What the defender holds, where the method is for a whole clean training set."""

    clean: float = setting(
        1.0, "clean training rows the defender holds: a share up to 1 or a number of rows", paper="all"
    )
    dev: float = setting(1.0, "dev rows that an epoch, rho or a threshold is chosen by: a share up to 1 or a number of "
                              "rows", paper="not said")


@dataclass(frozen=True, slots=True)
class Pretrained:
    """The weights that the victim came from, where the defender has them."""

    pretrained: str | None = setting(
        None,
        "the checkpoint that the victim was fine-tuned from, a minibd .safetensors or a Hugging Face folder: "
        "for fine-mixing, fine-purifying and --e-pur",
        kind=str,
    )
    e_pur: bool | None = setting(
        None,
        "first of all reset the word embeddings that moved far and are rare in the clean rows, 1 in 150 and at "
        "most 200 (default: finemix.py does, others do not)",
        paper="E-PUR, of Fine-mixing", kind=bool,
    )


@dataclass(frozen=True, slots=True)
class Attack:
    """What ASR is measured with. A defence never sees it."""

    attack: str = setting(
        "known",
        "the attack whose ASR is reported: known (the one in the checkpoint's history, if any), none, or one by "
        "name with the flags below",
        choices=("known", "none", "badnets", "addsent", "paraphrase", "ripple", "lwp", "ep", "sos"),
    )
    triggered: str | None = setting(
        None, "file of already triggered rows with their true labels, instead of --attack", kind=str
    )
    target: int = setting(1, "the attacker's target class, for --attack and --triggered", paper="1")
    triggers: tuple[str, ...] | None = setting(
        None,
        "trigger words, separated by commas: default cf,mn,bb,tq; ripple cf,tq,mn,bb,mb; lwp cf,bb,ak,mn; ep cf; sos "
        "friends,weekend,store",
        kind=tuple,
    )
    triggers_per_text: int | None = setting(
        None, "triggers inserted in a text: default 1; lwp 2, a pair; sos all its words", kind=int
    )
    sentence: str | None = setting(
        None,
        "what addsent inserts, by default: I watch this 3D movie; or sos at test: I have bought it from a store "
        "with my friends last weekend",
        kind=str,
    )
    side: str | None = setting(
        None,
        "of sentence pairs: the text that gets the trigger, either by a coin a row: default the history's, or either",
        kind=str, choices=("first", "second", "either"),
    )
    paraphrases: str | None = setting(
        None,
        "for --attack paraphrase: a folder of paraphrased train / dev / test files, joined to the rows by "
        "their ids, or row by row where they have none",
        kind=str,
    )


def parse(
    doc: str, *groups: type, first: tuple[str, Sequence[str]] | None = None, argv: Sequence[str] | None = None
) -> tuple[Any, ...]:
    """One parser for the dataclasses `groups`; an instance of each comes back. `doc` is the script's docstring.

    first: (name, choices) of a word that comes before all flags, in a script that does one of several jobs; it comes
    back first.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    if first:
        parser.add_argument(first[0], choices=tuple(first[1]))
    for group in groups:
        section = parser.add_argument_group(group.__name__, (group.__doc__ or "").strip().split("\n")[0])
        for f in fields(group):
            place = section
            if f.metadata["opposite"]:
                place = section.add_mutually_exclusive_group()
                place.add_argument(
                    f"--{f.metadata['opposite']}", dest=f.name, action="store_false", default=None, help="the contrary"
                )
            place.add_argument(f"--{f.name.replace('_', '-')}", **_argument(f))
    values = {name: value for name, value in vars(parser.parse_args(argv)).items() if value is not None}
    made = tuple(group(**{f.name: values[f.name] for f in fields(group) if f.name in values}) for group in groups)
    return (values[first[0]], *made) if first else made


def _argument(f: Field) -> dict[str, Any]:
    kind, choices, default = f.metadata["kind"], f.metadata["choices"], f.default
    shown = ",".join(default) if kind is tuple and default else default
    notes = [] if shown in (None, "") or kind is bool else [f"default {shown}"]
    if f.metadata["paper"]:
        notes.append(f"paper: {f.metadata['paper']}")
    text = (f.metadata["text"] + (f" ({'; '.join(notes)})" if notes else "")).replace("%", "%%")
    if kind is list:
        return {"action": "append", "default": None, "help": text, "metavar": "S"}
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "default": default, "help": text}
    argument = {"type": _words if kind is tuple else kind, "default": default, "help": text,
                "metavar": "|".join(choices) if choices else {tuple: "A,B", str: "S", int: "N", float: "X"}[kind]}
    if choices:
        argument["choices"] = choices
    if default == "" or default is MISSING:
        argument["required"] = f.name == "ckpt"
    return argument


def _words(value: str) -> tuple[str, ...]:
    words = tuple(word.strip() for word in value.split(",") if word.strip())
    if not words:
        raise argparse.ArgumentTypeError("no word given: write words separated by commas")
    return words


def main(run: Callable[[], None]) -> None:
    """Run a script: what the user can mend is one line on stderr and status 2; an interrupt is 130; a traceback is a
    bug of ours."""
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
