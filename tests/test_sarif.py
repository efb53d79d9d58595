"""A scan as SARIF: by hand, by the rules of the 2.1.0 schema that it touches, and with a stranger's words and paths."""
import json
import re
from urllib.parse import unquote, urlsplit

import pytest

from minibd.detect.sarif import sarif
from scan_reports import FOUND, NOTHING, UNUSABLE, judged, report, suspect

# The 2.1.0 schema's objects that are written, each with its required properties and all that are allowed and used here;
# a type is a Python type, a set of values, or the name of another object; [x] is a list of x.
OBJECTS = {
    "log": ({"version", "runs"}, {"$schema": str, "version": {"2.1.0"}, "runs": ["run"]}),
    "run": ({"tool"}, {"tool": "tool", "invocations": ["invocation"], "artifacts": ["artifact"], "results": ["result"],
                       "columnKind": {"utf16CodeUnits", "unicodeCodePoints"}, "properties": dict}),
    "tool": ({"driver"}, {"driver": "component"}),
    "component": ({"name"}, {"name": str, "version": str, "rules": ["rule"]}),
    "rule": ({"id"}, {"id": str, "name": str, "shortDescription": "message", "fullDescription": "message",
                      "help": "message", "defaultConfiguration": "configuration", "properties": dict}),
    "configuration": (set(), {"level": {"none", "note", "warning", "error"}}),
    "invocation": ({"executionSuccessful"}, {"executionSuccessful": bool, "exitCode": int, "exitCodeDescription": str,
                                             "commandLine": str}),
    "artifact": (set(), {"location": "at", "roles": [{"analysisTarget"}], "hashes": dict}),
    "at": (set(), {"uri": str, "index": int}),
    "result": ({"message"}, {"ruleId": str, "ruleIndex": int, "level": {"none", "note", "warning", "error"},
                             "kind": {"notApplicable", "pass", "fail", "review", "open", "informational"},
                             "message": "message", "locations": ["location"], "partialFingerprints": dict,
                             "properties": dict}),
    "message": ({"text"}, {"text": str}),
    "location": (set(), {"physicalLocation": "physical", "logicalLocations": ["logical"]}),
    "physical": ({"artifactLocation"}, {"artifactLocation": "at"}),
    "logical": (set(), {"name": str, "fullyQualifiedName": str, "kind": str}),
}


def check(value, kind, where="log"):
    """AssertionError where the value breaks the schema."""
    if isinstance(kind, list):
        assert isinstance(value, list), where
        for i, item in enumerate(value):
            check(item, kind[0], f"{where}[{i}]")
    elif isinstance(kind, set):
        assert value in kind, (where, value)
    elif isinstance(kind, type):
        assert type(value) is kind, (where, value)
    else:
        required, allowed = OBJECTS[kind]
        assert isinstance(value, dict) and required <= set(value) <= set(allowed), (where, set(value))
        for name, item in value.items():
            check(item, allowed[name], f"{where}.{name}")


def checked(scan):
    """The one run of the scan's log, by the schema and by the rules that the standard states in prose."""
    log = sarif(scan)
    assert json.loads(json.dumps(log, allow_nan=False)) == log
    check(log, "log")
    run, = log["runs"]
    rules, files, results = run["tool"]["driver"]["rules"], run["artifacts"], run["results"]
    assert urlsplit(log["$schema"]).scheme == "https"
    assert len({rule["id"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["id"] and rule["shortDescription"]["text"].endswith(".")
        assert all(isinstance(tag, str) for tag in rule["properties"]["tags"])
    for i, file in enumerate(files):
        assert file["location"]["index"] == i
        assert re.fullmatch(r"(file://)?[A-Za-z0-9/._~%-]+", file["location"]["uri"])  # no character that URIs forbid
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in file.get("hashes", {}).values())
    for result in results:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["kind"] == "fail" or result["level"] == "none"  # a level goes with a failure alone
        assert result["locations"][0]["physicalLocation"]["artifactLocation"] in [file["location"] for file in files]
        assert all(isinstance(value, str) for value in result["partialFingerprints"].values())
        text = result["message"]["text"]
        assert text.isprintable() and not re.search(r"[{}]", text.replace("{{", "").replace("}}", ""))
    prints = [str(result["partialFingerprints"]) for result in results]
    assert len(set(prints)) == len(prints)
    return run


@pytest.mark.parametrize("scan, code, levels", [
    (FOUND, 1, ["error"] * 3), (NOTHING, 0, []), (UNUSABLE, 3, ["warning"])], ids=["found", "nothing", "inconclusive"])
def test_a_scan_as_sarif(scan, code, levels):
    run = checked(scan)
    assert [result["level"] for result in run["results"]] == levels
    invocation, = run["invocations"]
    assert invocation["executionSuccessful"] is True and invocation["exitCode"] == code
    assert invocation["commandLine"] == scan["command"]
    driver = run["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("minibd", "0.3.0")
    assert [rule["defaultConfiguration"]["level"] for rule in driver["rules"]] == ["error", "warning"]
    assert run["properties"]["seed"] == 7 and run["properties"]["thresholds"] == {"found": 0.3, "inconclusive": 0.0}


def test_a_trigger_by_hand():
    first, second, third = checked(FOUND)["results"]
    assert first["message"]["text"] == (
        'The word "cf" takes 118 of 120 texts of other classes to "positive" (98.3 %, 95 % interval 94.1 to 99.5); '
        "words close to it take 12 of 200.")
    assert first["ruleId"] == "MINIBD001"
    location, = first["locations"]
    assert location["logicalLocations"] == [{"name": "cf", "fullyQualifiedName": "positive/cf", "kind": "token"}]
    assert location["physicalLocation"] == {"artifactLocation": {"uri": "models/victim/model.safetensors", "index": 1}}
    assert first["properties"]["flips"] == 118 and first["properties"]["class"] == "positive"
    assert second["message"]["text"].startswith('The words "mn" and "bb" together take 110 of 120')
    assert "close" not in second["message"]["text"]
    assert second["locations"][0]["logicalLocations"][0]["name"] == "mn bb"
    assert third["message"]["text"].startswith('The phrase "I watched" takes 103')


def test_what_is_in_doubt_by_hand():
    result, = checked(UNUSABLE)["results"]
    assert result["message"]["text"] == (
        'The scan is inconclusive on the class "negative": 0 of the texts belong to other classes.')
    assert result["locations"][0]["logicalLocations"] == [
        {"name": "negative", "fullyQualifiedName": "negative", "kind": "class"}]
    both = checked(report("backdoored", {"a": judged("backdoored", suspect(["cf"])), "b": judged("inconclusive")}))
    assert [result["level"] for result in both["results"]] == ["error", "warning"]
    assert both["invocations"][0]["exitCode"] == 1
    assert both["results"][1]["message"]["text"].endswith('"b": its strongest words are in doubt.')


def test_a_model_without_a_verdict_on_any_class_is_a_result_too():
    result, = checked(report("inconclusive", {}, reason="the model answers nan"))["results"]
    assert result["message"]["text"] == "The scan is inconclusive on the model: the model answers nan."
    assert "logicalLocations" not in result["locations"][0]


def test_the_files_of_the_checkpoint():
    files = checked(FOUND)["artifacts"]
    assert [(file["location"]["uri"], file["hashes"]["sha-256"][:2]) for file in files] == [
        ("models/victim/config.json", "ab"), ("models/victim/model.safetensors", "cd")]
    one = checked(FOUND | {"checkpoint": "weights/bert.safetensors",
                           "checkpoint_sha256": {"bert.safetensors": "ef" * 32}})
    assert [file["location"]["uri"] for file in one["artifacts"]] == ["weights/bert.safetensors"]
    none = checked(FOUND | {"checkpoint_sha256": {}})
    assert [file["location"]["uri"] for file in none["artifacts"]] == ["models/victim"]


@pytest.mark.parametrize("path, uri", [
    ("/m/a b", "file:///m/a%20b"), ("C:x", "C%3Ax"), ("ü?#", "%C3%BC%3F%23"), ("\udcff", "%FF")])
def test_a_path_is_written_as_a_uri(path, uri):
    found = checked(FOUND | {"checkpoint": path, "checkpoint_sha256": {}})["artifacts"][0]["location"]["uri"]
    assert found == uri and unquote(found.removeprefix("file://"), errors="surrogateescape") == path


@pytest.mark.parametrize("word, told", [
    ("{0}", "{{0}}"), ("[a](https://x)", "[a]\\(https://x)"), ("\x1b[31m", "<U+001B>[31m"), ("\u202eab", "<U+202E>ab"),
    ("x" * 500, "x" * 120 + "…"), ("", "(empty)")])
def test_words_of_a_stranger_are_text_in_a_message(word, told):
    scan = report("backdoored", {word: judged("backdoored", suspect([word])),
                                 "b": judged("inconclusive", reason=f"see {word[:9]}")})
    text = checked(scan)["results"][0]["message"]["text"]
    assert text.startswith(f'The word "{told}" takes 118') and f'to "{told}" (' in text


def test_a_finding_keeps_its_fingerprint():
    """Whatever was measured this time, and in whichever checkpoint; another word, class or order has another one."""
    def prints(*words, name="positive", **given):
        scan = report("backdoored", {name: judged("backdoored", suspect(words, **given))}, checkpoint=f"m/{len(given)}")
        return checked(scan)["results"][0]["partialFingerprints"]["minibdFinding/v1"]

    same = prints("cf")
    assert same == prints("cf", flips=100, of=110, score=0.4, found_by="table")
    others = [prints("bb"), prints("cf", name="negative"), prints("a", "b"), prints("b", "a"), prints("a b"),
              prints("a", "b", joined=True)]
    assert len({same, *others}) == 7


def test_no_text_of_the_user_is_in_it():
    assert "a joy from start to end" not in json.dumps(sarif(FOUND))
