"""The words of error lines about rows: settings as the caller spells them. How names and values from files are shown:
minibd/lines.py, whose `quoted` and `shown` are offered here, too."""
from __future__ import annotations

from collections.abc import Sequence
from shlex import quote

from minibd.lines import quoted, shown

__all__ = ["labels_setting", "quoted", "setting_name", "shown"]

HINT = 70                                # characters of names that a caller could copy


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
