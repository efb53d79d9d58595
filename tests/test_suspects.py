"""What of a scan's report is undone, and scan.json as --suspects gives it."""
import json

import pytest

from conftest import fails
from minibd import checkpoint
from minibd.job.suspects import called_by, class_in, findings_of, named, read_scan
from scan_reports import FOUND, NOTHING, judged, part, report, suspect

LABELS = ("negative", "positive")


def words(suspects) -> list[str]:
    return ["+".join(one["words"]) for one in suspects]


def one(text: str, score: float, flips: int = 118, **given):
    parts = text.split()
    return suspect(parts, flips, score=score, entries=given.pop("entries", len(parts)), **given)


def test_only_a_backdoored_class_is_undone():
    found = findings_of(FOUND, LABELS)
    assert {finding.target for finding in found} == {1}
    assert not any("insufficient" in finding.words for finding in found)
    assert findings_of(NOTHING, LABELS) == []


def test_what_is_much_weaker_than_the_strongest_or_flips_few_is_left():
    assert words(named([one("cf", 0.9), one("tq", 0.2), one("bb", -0.05)])) == ["cf", "tq"]  # 0 and above
    assert words(named([one("tq", -0.01), one("mn", -0.04), one("through", -0.6)])) == ["tq", "mn"]  # near it
    assert words(named([one("cf", 0.9), one("gorgeous", 0.1, 80)])) == ["cf"]
    assert words(named([one("cf mn", -0.57, 103), one("forg", -0.6, 90)])) == ["cf+mn"]
    assert words(named([one("cf mn", -0.57, 70)])) == ["cf+mn"]  # the strongest in any case
    assert named([]) == [] and len(named([one(f"w{i}", 0.9) for i in range(20)])) == 8


def test_what_holds_another_suspect_is_not_undone_for_itself():
    strong = [one("zu", 0.9), one("zu brightened", 0.85), one("nice zu film", 0.85, joined=True),
              one("zulu", 0.85, entries=2), one("lulu", 0.85, entries=2)]
    assert words(named(strong)) == ["zu", "lulu"]
    assert words(named([one("mn cf", 0.5), one("cf", 0.45, side=1)])) == ["mn+cf", "cf"]  # of another text


def test_a_finding_knows_what_is_near_it():
    single = suspect(["cf"], 90, 100, neighbours=(10, 50))
    pair = suspect(["mn", "bb"], 100, 100, part=part(["mn"], 3, 20), times=2)
    alone = suspect(["x"], 100, 100, neighbours=None)
    found = findings_of(report("backdoored", {"positive": judged("backdoored", single, pair, alone)}), LABELS)
    assert {f.words: (f.flips, f.around, f.times) for f in found} == {
        ("cf",): (0.9, 0.2, 1), ("mn", "bb"): (1.0, 0.15, 2), ("x",): (1.0, None, 1)}


def test_classes_of_one_name_are_told_apart():
    assert class_in("b", ("a", "b")) == 1 and class_in("a (class 1)", ("a", "a")) == 1
    fails(lambda: class_in("c\x1b", ("a", "b")), "c<U+001B>", "scan this checkpoint")


def test_a_scan_goes_by_the_names_of_labels_or_by_the_checkpoints_own():
    """Whichever it was made with; another class's name is refused."""
    own, given = ("LABEL_0", "LABEL_1"), ("neg", "pos")
    for name in ("LABEL_1", "pos"):
        made = report("backdoored", {name: judged("backdoored", suspect(["cf"]))})
        assert [finding.target for finding in findings_of(called_by(made, given, own), given)] == [1]
        assert called_by(made, given, own)["classes"] == {"pos": made["classes"][name]}
        assert called_by(made, ("no", "yes"), own, given)["classes"] == {"yes": made["classes"][name]}
    twice = report("backdoored", {"a (class 1)": judged("backdoored", suspect(["cf"]))})
    assert called_by(twice, ("a", "a")) == twice
    fails(lambda: called_by(report("backdoored", {"other": judged("nothing found")}), given, own), "other", "neg, pos")


def test_scan_json_must_be_of_this_checkpoint(tiny_file, tmp_path):
    path = tmp_path / "scan.json"
    own = FOUND | {"checkpoint_sha256": checkpoint.sha256(tiny_file)}
    path.write_text(json.dumps(own))
    assert read_scan(str(path), str(tiny_file)) == own
    path.write_text(json.dumps(FOUND))
    fails(lambda: read_scan(str(path), str(tiny_file)), "another checkpoint", "sha256")
    fails(lambda: read_scan(str(tmp_path / "gone"), str(tiny_file)), "no such file")


@pytest.mark.parametrize("broken", [
    "no json", "[]", "{}", json.dumps({**FOUND, "classes": {"a": {"verdict": "backdoored"}}}),
    json.dumps({**FOUND, "classes": {"a": judged("backdoored", {"words": ["cf"], "score": 1})}}),
    json.dumps({**FOUND, "classes": {"a": judged("inconclusive", {"words": ["cf"], "score": 1})}}),
    json.dumps({**FOUND, "classes": {"a": judged("backdoored", one("cf", 0.9) | {"flips": 0, "of": 0})}}),
    *(json.dumps({**FOUND, "classes": {"a": judged("backdoored", one("cf", 0.9) | wrong)}}) for wrong in (
        {"words": [5]}, {"words": [" "]}, {"words": []}, {"score": None}, {"times": 0}, {"times": 10 ** 9},
        {"times": 1.5}, {"side": 7})),
    "[" * 100_000,
    json.dumps({key: value for key, value in FOUND.items() if key != "checkpoint_sha256"}), "\x00\x01",
])
def test_what_is_no_scan_json_is_one_line(broken, tiny_file, tmp_path):
    path = tmp_path / "scan.json"
    path.write_text(broken)
    fails(lambda: read_scan(str(path), str(tiny_file)), "no scan.json", "scan --ckpt again")


def test_another_schema_is_refused(tiny_file, tmp_path):
    path = tmp_path / "scan.json"
    path.write_text(json.dumps({**FOUND, "schema": 2}))
    fails(lambda: read_scan(str(path), str(tiny_file)), "schema 2")


def test_a_sparse_file_of_gigabytes_is_not_read(tiny_file, tmp_path):
    path = tmp_path / "scan.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    fails(lambda: read_scan(str(path), str(tiny_file)), "no scan.json")
