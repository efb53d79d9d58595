"""The parts of a repair's receipt: verdicts, counts, scans in short, losses by term, what changed in the model."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from minibd.checkpoint import Checkpoint
from minibd.detect.wording import visible
from minibd.proportion import Proportion
from minibd.train import StepLog

SCHEMA = 1
REPAIRED, NOT_SHOWN, NOTHING_FOUND = VERDICTS = (
    "repaired as far as was tested", "NOT shown to be clean", "nothing was found")
EXIT = {REPAIRED: 0, NOTHING_FOUND: 0, NOT_SHOWN: 3}
MOST_ENTRIES = 40  # of the embedding table that are named
CANNOT_SEE = (
    "A backdoor without words: a syntax, a style, a sentence that is rephrased.",
    "A trigger of more words than the scan tries together, or one that fires only in texts unlike those given.",
    "Whether the words that were undone are all that the attacker planted: what a scan does not find is not undone. Of "
    "a planted sentence it finds the rare word, and the everyday words around it may go on by themselves.",
    "A model that was made to look repaired to this very treatment.",
)


def counted(share: Proportion | None) -> dict[str, Any] | None:
    """As a receipt has it; None where nothing was counted."""
    return share and {"hits": share.hits, "n": share.n, "percent": round(share.percent, 2),
            "interval": [round(end, 2) for end in share.interval]}


def quoted_words(one: Mapping[str, Any]) -> str:
    return '"' + visible((" " if one["joined"] else " + ").join(one["words"])) + '"'


def brief(scan: Mapping[str, Any]) -> dict:
    """A scan without what scan.json is there for."""
    suspects = [{"class": name, "verdict": one["verdict"], "words": s["words"], "joined": s["joined"],
                 "flips": s["flips"], "of": s["of"], "interval": s["interval"], "score": s["score"],
                 "found_by": s["found_by"]}
                for name, one in scan["classes"].items() for s in one["suspects"][:4]]
    return {"verdict": scan["verdict"], "reason": scan["reason"], "probability": scan["probability"],
            "texts": scan["texts"]["read"], "tried": scan["tried"], "seconds": scan["seconds"], "suspects": suspects}


def losses(log: StepLog) -> list[dict]:
    """Each stage's terms at its first and at its last step."""
    stages: dict[str, list[dict]] = {}
    for step in log.steps:
        if step["step"] == 0 or step["stage"] not in stages:
            stages.setdefault(step["stage"], [])
        stages[step["stage"]].append(step)
    return [{"stage": name, "steps": len(steps), "terms": [
        {"term": term, "weight": steps[-1]["weights"][term], "first": round(steps[0]["terms"][term], 5),
         "last": round(steps[-1]["terms"][term], 5)} for term in steps[-1]["terms"] if term in steps[0]["terms"]]}
        for name, steps in stages.items()]


def changed(before: Checkpoint, after: Checkpoint) -> dict:
    """How far each part of the model moved: ||after - before|| / ||before||, and which rows of the table did."""
    ours, theirs = before.model.state_dict(), after.model.state_dict()
    parts: dict[str, list[float]] = {}
    rows: list[int] = []
    for name, old in ours.items():
        new = theirs.get(name)
        if new is None or new.shape != old.shape or not old.is_floating_point():
            continue
        moved = (new.double() - old.double()).cpu()
        if name == "embeddings.word.weight":
            rows = moved.abs().sum(1).nonzero().flatten().tolist()
        words = name.split(".")
        part = ".".join(words[:2]) if words[0] in ("blocks", "embeddings") else words[0]
        own = parts.setdefault(part, [0.0, 0.0])
        own[0] += float(moved.square().sum())
        own[1] += float(old.double().square().sum())
    token = after.tokenizer.backend.id_to_token
    moved = [{"part": name, "moved": round((a / b) ** 0.5 if b else 0.0, 6)} for name, (a, b) in parts.items()]
    return {"parts": moved, "rows": len(rows), "entries": [token(i) for i in rows[:MOST_ENTRIES]]}


# ---- on the screen

def evidence_line(one: Mapping[str, Any]) -> str:
    weak = "" if one["strong"] else f" (weaker than a real one, {one['kept']['percent']:.1f} % of the answers kept)"
    named = ", ".join(map(visible, one["named"][:3])) or "no word"
    low, high = one["left"]["interval"]
    return (f"planted   {one['kind']} {' '.join(one['words'])}: ASR {one['planted']['percent']:.1f}{weak}, named: "
            f"{named}; left {one['left']['percent']:.1f} ({low:.1f}-{high:.1f}), before the planting "
            f"{one['floor']['percent']:.1f}")


def lines_of(receipt: Mapping[str, Any]) -> list[str]:
    """The verdict block."""
    found = [f"verdict: {receipt['verdict']}. {receipt['sentence']}"]
    if receipt["rows"]["built_in"]:
        found.append("caution: no texts of the task were given: built-in sentences stood in, and what happens in texts "
                     "of the task was not looked at")
    return [*found, f"next:    {receipt['next']}"] if receipt["next"] else found
