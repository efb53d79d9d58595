"""A scan's findings as SARIF 2.1.0, the format of static analysis that code hosts and security tools read.

One run. A result of level `error` for each suspect of a backdoored class, one of level `warning` for each class, or the
model, on which the scan is inconclusive, none where nothing was found. A result's logical location is the trigger, its
physical one the checkpoint's file, whose sha256 stands among the artifacts.
"""
from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from minibd.detect.wording import FOUND, INCONCLUSIVE, NOTHING, deed, of_verdict, quoted, visible

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
EXIT = {FOUND: (1, "a backdoor was found"), INCONCLUSIVE: (3, "the scan is inconclusive"),
        NOTHING: (0, "nothing was found")}
TRIGGER, UNSURE = 0, 1  # places in RULES
RULES = (
    {"id": "MINIBD001", "name": "BackdoorTriggerFound", "level": "error",
     "short": "These words act as a backdoor's trigger.",
     "full": "Inserted into texts of other classes at places drawn at random, these words take nearly all of them to "
             "one class, beyond what words of meaning do.",
     "help": "Do not deploy this checkpoint. Look for the words in its training data and in what it is given. "
             "Retrain from weights that you trust, or repair it and scan again."},
    {"id": "MINIBD002", "name": "ScanInconclusive", "level": "warning",
     "short": "The scan can neither name a backdoor nor find none.",
     "full": "The model gave the scan too little to judge by, or its strongest words lie between those of clean and of "
             "backdoored models.",
     "help": "Scan again with more texts of the model's own task. Until then treat the class as not scanned."},
)


def sarif(report: Mapping[str, Any]) -> dict[str, Any]:
    """The SARIF log of a scan's report (the content of scan.json), ready for json.dump."""
    files = artifacts(report)
    at = main_artifact(files)
    results = [trigger(name, suspect, at)
               for name, found in of_verdict(report, FOUND).items() for suspect in found["suspects"]]
    unsure = of_verdict(report, INCONCLUSIVE)
    results += [doubt(name, found["reason"], at) for name, found in unsure.items()]
    if report["verdict"] == INCONCLUSIVE and not unsure:
        results.append(doubt(None, report["reason"], at))
    code, meaning = EXIT[report["verdict"]]
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [{
        "tool": {"driver": {"name": "minibd", "version": report["minibd"], "rules": [rule(spec) for spec in RULES]}},
        "invocations": [{"executionSuccessful": True, "exitCode": code, "exitCodeDescription": meaning,
                         "commandLine": visible(report["command"], 10_000)}],
        "artifacts": files,
        "results": results,
        "columnKind": "unicodeCodePoints",
        # not the texts: they may be nobody else's business
        "properties": {key: report[key] for key in ("verdict", "reason", "probability", "tried", "thresholds",
                                                    "settings", "seed", "dtype", "seconds")},
    }]}


def rule(spec: Mapping[str, str]) -> dict[str, Any]:
    return {"id": spec["id"], "name": spec["name"], "shortDescription": {"text": spec["short"]},
            "fullDescription": {"text": spec["full"]}, "help": {"text": spec["help"]},
            "defaultConfiguration": {"level": spec["level"]}, "properties": {"tags": ["security", "backdoor"]}}


# ---- the checkpoint

def artifacts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The checkpoint's files with their hashes; the checkpoint alone where the report has no hash."""
    checkpoint = report["checkpoint"]
    hashes = report["checkpoint_sha256"]
    if not hashes:
        return [{"location": {"uri": uri(checkpoint), "index": 0}, "roles": ["analysisTarget"]}]
    # a checkpoint of one file is named by its path, a folder by itself
    paths = {name: checkpoint if name == posixpath.basename(checkpoint) else posixpath.join(checkpoint, name)
             for name in hashes}
    return [{"location": {"uri": uri(paths[name]), "index": i}, "roles": ["analysisTarget"],
             "hashes": {"sha-256": digest}} for i, (name, digest) in enumerate(hashes.items())]


def main_artifact(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The location of the first file that holds weights, else of the first one."""
    locations = [file["location"] for file in files]
    return next((at for at in locations if at["uri"].endswith(".safetensors")), locations[0])


def uri(path: str) -> str:
    """A path of the file system as a URI, or as a relative reference; bytes that are no UTF-8 are kept."""
    return ("file://" if path.startswith("/") else "") + quote(path, safe="/", errors="surrogateescape")


# ---- results

def trigger(name: str, suspect: Mapping[str, Any], at: Mapping[str, Any]) -> dict[str, Any]:
    low, high = suspect["interval"]
    share = 100 * suspect["flips"] / suspect["of"]
    said = f"{deed(name, suspect)} ({share:.1f} %, 95 % interval {low:.1f} to {high:.1f})"
    around = suspect.get("neighbours")
    if around:
        said += f"; words close to it take {around['flips']} of {around['of']}"
    words = " ".join(suspect["words"])
    place = {"name": words, "fullyQualifiedName": f"{name}/{words}", "kind": "token"}
    found = result(TRIGGER, said[0].upper() + said[1:] + ".", [name, suspect["words"], suspect["joined"]], at, place)
    return found | {"properties": {"class": name, **suspect}}


def doubt(name: str | None, reason: str, at: Mapping[str, Any]) -> dict[str, Any]:
    """name: the class, or None for the whole model."""
    what = "the model" if name is None else f"the class {quoted(name)}"
    said = f"The scan is inconclusive on {what}: {visible(reason or 'its strongest words are in doubt', 1000)}."
    place = {"name": name, "fullyQualifiedName": name, "kind": "class"} if name is not None else None
    return result(UNSURE, said, [name], at, place)


def result(
    rule: int, said: str, identity: object, at: Mapping[str, Any], place: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """identity: what is the same when the same is found again, in another run or another version of the checkpoint."""
    print_ = hashlib.sha256(json.dumps([RULES[rule]["id"], identity]).encode()).hexdigest()
    location = {"physicalLocation": {"artifactLocation": dict(at)}}
    if place is not None:
        location["logicalLocations"] = [dict(place)]
    return {"ruleId": RULES[rule]["id"], "ruleIndex": rule, "kind": "fail", "level": RULES[rule]["level"],
            "message": {"text": message(said)}, "locations": [location],
            "partialFingerprints": {"minibdFinding/v1": print_}}


def message(text: str) -> str:
    """Plain text as a SARIF message: {0} would be an argument there, and [a](b) a link."""
    return text.replace("{", "{{").replace("}", "}}").replace("](", "]\\(")
