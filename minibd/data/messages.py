"""The words of error lines: values and names from files in quotes and cut short, settings as the caller spells them."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from shlex import quote

QUOTED = 100                             # characters of a list of names
HINT = 70                                # characters of names that a caller could copy


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def quoted(names: Iterable[str]) -> str:
    """The first of `names`, each in quotes, at most twelve and about QUOTED characters, and how many there are."""
    names, parts = list(names), []
    for name in map(shown, names[:12]):
        if parts and len(", ".join([*parts, name])) > QUOTED:
            break
        parts.append(name)
    more = f", ... ({len(names)} in all)" if len(names) > len(parts) else ""
    return ", ".join(parts) + more or "(none)"


def setting_name(name: str, flags: bool) -> str:
    """The setting `name`, such as "text_column", as a caller writes it: "--text-column" for a script, else
    "text_column="."""
    return f"--{name.replace('_', '-')}" if flags else f"{name}="


def labels_setting(names: Sequence[str], flags: bool) -> str:
    """`labels` with the value `names`, "--labels neg,pos" or "labels=['neg', 'pos']"; "" where that would be long or,
    as a flag, could not be typed."""
    names = list(names)
    if sum(map(len, names)) > HINT or flags and not all(name.isprintable() and "," not in name for name in names):
        return ""
    if not flags:
        return f"labels=[{', '.join(map(shown, names))}]"
    text = quote(",".join(names))
    return f"--labels{'=' if names[0].startswith('-') else ' '}{text}"  # argparse takes a dash only behind "="
