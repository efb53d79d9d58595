"""What a scan found, as unlearning takes it: --suspects scan.json, and a report at hand.

Only what the verdict names is undone: of a class that is called backdoored, the suspects that are nearly as strong as
its strongest, or above 0 themselves, and that flip most texts. Innocent words stand among the others, and to undo words
of meaning costs accuracy: the six strongest words of each class cost MiniLM on SST-2 three to five points.

Where nothing is found, a word may still do by itself what a trigger does, in a class that is inconclusive beside the
words of another one, as it often is with built-in sentences; or take most of the texts and move [CLS] as no other word
does, Eq. Scan (10); or several do that together, of which none does anything alone. Their rows of the embedding table
can be undone at no cost to texts that do not hold them: a precaution. LEAST_DOUBTED lies between the suspects of the
clean models of the scan's calibration, with built-in sentences 0.07 at most but for one with 0.67, and those of its
backdoored ones that are not found, 0.41 and more where they are a trigger (scripts/results/scan.jsonl).
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minibd import checkpoint
from minibd.detect.confirm import suspect_of
from minibd.detect.verdict import only_together, stands_out
from minibd.detect.wording import FOUND, INCONCLUSIVE, class_names, of_verdict
from minibd.lines import visible
from minibd.mitigations.unlearn import Finding
from minibd.records import BadInput
from minibd.regular import read_regular

NEAR = 0.1  # of a score, by which a suspect may lie under the strongest of its class
LEAST_FLIPS = 0.85  # share of the texts that it flips
MOST = 8  # suspects of a class
LEAST_DOUBTED = 0.25  # score of a suspect of an inconclusive class from which on it is undone all the same
MOST_TIMES = 100  # of a word in one text, far above any that a scan tries
LARGEST = 1 << 26  # bytes of a scan.json, far above any that scan.py writes


def findings_of(report: Mapping[str, Any], labels: Sequence[str]) -> list[Finding]:
    """What is to be undone of a scan's report (the content of scan.json), the strongest first; [] where nothing was
    found. labels: the model's classes. Raises BadInput where the report has none of them."""
    found = []
    for name, one in of_verdict(report, FOUND).items():
        found += [finding_of(suspect, class_in(name, labels)) for suspect in named(one["suspects"])]
    return found


def precautions_of(report: Mapping[str, Any], labels: Sequence[str], again: bool = False) -> list[Finding]:
    """What is undone where nothing was found: of inconclusive classes the suspects that act as much as a trigger does
    by themselves, and are doubtful beside the words of another class; those that act only together; and those that
    stand out, but not `again`, of a model whose words were undone: what is left then stands out by its meaning. Raises
    BadInput as findings_of does."""
    found = []
    for name, one in of_verdict(report, INCONCLUSIVE).items():
        target, doubted = class_in(name, labels), strong(one["suspects"], LEAST_DOUBTED)
        for suspect in one["suspects"]:
            s = suspect_of(suspect, target)
            if (stands_out(s) and not again or only_together(s)) and suspect not in doubted:
                doubted.append(suspect)
        found += [finding_of(suspect, target) for suspect in doubted]
    return found


def named(suspects: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of a backdoored class's suspects those that count: never none, where there are any."""
    if not suspects:
        return []
    return strong(suspects, min(0.0, suspects[0]["score"] - NEAR)) or list(suspects[:1])


def strong(suspects: Sequence[Mapping[str, Any]], least: float) -> list[Mapping[str, Any]]:
    """Those with this score at least that flip most texts, without those that hold another one whole."""
    left = [s for s in suspects if s["score"] >= least and s["flips"] >= LEAST_FLIPS * s["of"]]
    left.sort(key=lambda s: (s["entries"], -s["score"]))  # what is shorter is the trigger of what holds it
    kept: list[Mapping[str, Any]] = []
    for one in left:
        if not any(holds(one, other) for other in kept):
            kept.append(one)
    return sorted(kept, key=lambda s: -s["score"])[:MOST]


def holds(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether the words of one suspect are those of another with more: other words, or other pieces of a word."""
    if one["side"] != other["side"] or one["entries"] <= other["entries"]:
        return False
    return all(any(word == own or word.startswith(own) and one["entries"] > len(one["words"]) for word in one["words"])
               for own in other["words"])


def finding_of(suspect: Mapping[str, Any], target: int) -> Finding:
    near = suspect["neighbours"] if len(suspect["words"]) == 1 else suspect["part"]
    return Finding(
        tuple(suspect["words"]), target, suspect["joined"], suspect["side"], suspect.get("times", 1),
        flips=suspect["flips"] / suspect["of"], around=near["flips"] / near["of"] if near and near["of"] else None,
    )


def class_in(name: str, *names: Sequence[str]) -> int:
    """The class that a report calls `name`, by the first of `names` that has it, all names of the same classes in the
    same order: a name that stands twice has its number behind it."""
    for labels in names:
        for c, label in enumerate(labels):
            if name in (label, f"{label} (class {c})"):
                return c
    raise BadInput(f"the scan's class '{visible(name)}' is none of the model's, "
                   f"{', '.join(map(visible, names[0][:5]))}: scan this checkpoint")


def called_by(report: dict[str, Any], labels: Sequence[str], *others: Sequence[str]) -> dict[str, Any]:
    """The report with the classes by the names `labels`. others: more names of the same classes, in the same order,
    that a scan may go by: the checkpoint's own, those of --labels. Raises BadInput where a class has none of them."""
    names = class_names(labels)
    return report | {"classes": {names[class_in(name, labels, *others)]: one
                                 for name, one in report["classes"].items()}}


def checked(finding: Finding) -> Finding:
    """Raises ValueError where it has what no scan gives."""
    if not (finding.words and all(isinstance(word, str) and word.strip() for word in finding.words)):
        raise ValueError("words")
    if finding.side not in (0, 1) or finding.times not in range(1, MOST_TIMES + 1):
        raise ValueError("side, times")
    return finding


def read_scan(path: str, ckpt: str) -> dict[str, Any]:
    """The report in the file of --suspects, which must be of the checkpoint --ckpt. Raises BadInput."""
    file = Path(path)
    if not file.is_file():
        raise BadInput(f"--suspects {path}: there is no such file, name the scan.json that scan.py wrote")
    try:
        report = json.loads(read_regular(file, LARGEST).decode("utf-8"))
        known = report["method"] == "scan" and report["schema"] == 1
        sums, _ = report["checkpoint_sha256"], of_verdict(report, FOUND)
        for one in report["classes"].values():
            [(suspect_of(suspect, 0), checked(finding_of(suspect, 0))) for suspect in one["suspects"]]
            named(one["suspects"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError, ArithmeticError, RecursionError):
        raise BadInput(f"--suspects {path}: it is no scan.json as scan.py writes it, scan --ckpt again") \
            from None
    if not known:
        raise BadInput(f"--suspects {path}: it is a {visible(str(report['method']))} of schema "
                       f"{visible(str(report['schema']))}, and a scan of schema 1 is read: scan --ckpt again")
    if sums != checkpoint.sha256(ckpt):
        raise BadInput(f"--suspects {path}: it is the scan of another checkpoint than --ckpt "
                       f"{visible(ckpt)}, by their sha256: scan this one")
    return report
