"""A repair from suspicion to receipt, with scans made by hand; and repair.py as a user runs it."""
from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
import torch

from conftest import fails, refused, rows
from minibd import checkpoint, data
from minibd.detect.carriers import carrier_sentences
from minibd.detect.wording import BUILT_IN
from minibd.job import repair_run as job
from minibd.job.receipt import NOT_SHOWN, NOTHING_FOUND, REPAIRED
from minibd.proportion import Proportion
from minibd.records import BadInput, Example, Examples
from scan_reports import judged, part, report, suspect

CLEAN = {"negative": judged("nothing found"), "positive": judged("nothing found", suspect(["joy"], 40))}


def scan_of(verdict, **classes):
    return report(verdict, CLEAN | classes, seconds=1.0)


NOTHING = scan_of("nothing found")
UNSURE = report("inconclusive", {name: judged("inconclusive", reason="few texts") for name in CLEAN},
                reason="few texts")


def finds(*words: str, **given):
    return scan_of("backdoored", positive=judged("backdoored", *(suspect([word], **given) for word in words)))


@pytest.fixture
def repair(here, monkeypatch, tmp_path, tiny_file):
    """repair("--data", ...) -> CompletedProcess; repair.scans are what its scans find, one after another, and
    repair.seen (checkpoint, texts, source) of each."""
    def scan(ckpt, task, settings, texts, source, started=None):
        run.seen.append((ckpt, texts, source))
        return {**run.scans[min(len(run.seen), len(run.scans)) - 1], "checkpoint_sha256": checkpoint.sha256(task.ckpt)}

    monkeypatch.setattr(job.scanning, "scan_of", scan)
    script = here("repair.py")

    def run(*words):
        run.seen = []
        words = ("--planted", "none", *words) if "--planted" not in words else words
        return script("--overwrite", "--device", "cpu", "--dtype", "float32", "--steps", 2, "--row-steps", 2,
                      "--batch-size", 8,
                      *([] if "--ckpt" in words else ["--ckpt", tiny_file]),
                      *([] if "--out" in words else ["--out", tmp_path / "out"]), *words)

    run.seen, run.scans = [], [NOTHING]
    return run


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    data.write(rows(60, 3, "f"), path)
    return path


def receipt_in(folder) -> dict:
    return json.loads((folder / "receipt.json").read_text(encoding="utf-8"))


# ---- the pipeline

def test_nothing_found_is_nothing_undone(repair, file, tmp_path, tiny):
    run = repair("--data", file)
    assert run.returncode == 0, run.stdout + run.stderr
    made, told = checkpoint.load(tmp_path / "out" / "tiny.safetensors"), receipt_in(tmp_path / "out")
    assert all(torch.equal(p, q) for p, q in zip(tiny.model.state_dict().values(), made.model.state_dict().values()))
    assert told["verdict"] == NOTHING_FOUND and told["undone"] == [] and len(told["scans"]) == 1
    assert "--method reinit" in told["next"] and told["changed"]["rows"] == 0
    assert "to undo what it does not name costs accuracy" in run.stdout and "verdict: nothing was found" in run.stdout
    assert run.stdout.index("time      about") < run.stdout.index("nothing found")
    assert [model["name"] for model in told["models"]] == ["victim"] and told["measure"] == "accuracy"


def test_what_is_found_is_undone_and_scanned_again(repair, file, tmp_path, tiny):
    repair.scans = [finds("cf"), NOTHING]
    run = repair("--data", file)
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 0, run.stdout + run.stderr
    assert told["verdict"] == REPAIRED and told["sentence"].startswith('"cf" was undone')
    assert told["undone"][0]["mode"] == "rows" and told["changed"]["entries"] == ["cf"]
    assert [one["name"] for one in told["models"]] == ["victim", "unlearned"] and "scan.py" in told["next"]
    first, second = repair.seen
    assert first[0].model is not second[0].model and len(first[1]) == 48 and first[2] == "rows.tsv"
    assert told["rows"] == {"source": "rows.tsv", "texts": 48, "held_out": 12, "labelled": True, "built_in": False}
    assert told["output_sha256"] == checkpoint.sha256(tmp_path / "out" / "tiny.safetensors")
    written = json.loads((tmp_path / "out" / "scan.json").read_text())
    assert written["checkpoint_sha256"] == told["output_sha256"] and written["verdict"] == "nothing found"
    steps = (tmp_path / "out" / "steps.jsonl").read_text().splitlines()
    assert len(steps) == told["losses"][0]["steps"] and json.loads(steps[0])["stage"] == "unlearn"


def test_two_findings_of_a_class_train_all_weights_and_then_the_rows(repair, file, tmp_path):
    repair.scans = [finds("cf", "bb"), NOTHING]
    run = repair("--data", file)
    assert {one["mode"] for one in receipt_in(tmp_path / "out")["undone"]} == {"whole"}
    assert "all weights, then 2 rows of the embedding table trained" in run.stdout


def test_the_next_command_reads_the_same_rows_into_another_folder(repair, file, tmp_path):
    """It runs as it is printed: the columns, the classes' names and a folder that is free."""
    path = tmp_path / "my rows.csv"
    path.write_text("body,verdict\n" + "\n".join(f"{x.text},{('neg', 'pos')[x.label]}" for x in data.read(file)),
                    encoding="utf-8")
    flags = ("--data", path, "--text-column", "body", "--label-column", "verdict", "--labels", "neg,pos")
    given = ["--data", str(path), "--text-column", "body", "--label-column", "verdict", "--labels", "neg,pos"]
    for first, script in ((finds("cf"), "scan.py"), (UNSURE, "repair.py")):
        repair.scans = [first, NOTHING]
        repair(*flags)
        words = shlex.split(receipt_in(tmp_path / "out")["next"])
        assert words[:2] == ["python", f"scripts/{script}"] and not {*given} - {*words}
        assert words[-2:] == ["--out", f"{tmp_path / 'out'}-2"]
    assert repair(*words[2:]).returncode == 0


def test_a_second_round_needs_a_second_finding_and_trains_all(repair, file, tmp_path):
    repair.scans = [finds("cf"), finds("mn"), NOTHING]
    assert repair("--data", file).returncode == 0
    told = receipt_in(tmp_path / "out")
    assert [(one["words"], one["mode"], one["round"]) for one in told["undone"]] == [
        (["cf"], "rows", 1), (["mn"], "whole", 2)]
    assert len(repair.seen) == 3 and told["verdict"] == REPAIRED and told["undone"][1]["why"] == job.FOUND_AGAIN
    held = data.read(file)[0].text.split()[0]
    repair.scans = [finds("cf"), finds("mn", held), NOTHING]  # rows that texts need stay where rows are asked for
    assert repair("--data", file, "--mode", "rows").returncode == 0
    assert [(one["words"], one["mode"]) for one in receipt_in(tmp_path / "out")["undone"]] == [
        (["cf"], "rows"), (["mn"], "rows")]


def test_of_a_class_that_the_first_scan_cleared_nothing_is_undone(repair, file, tmp_path):
    """Its words were moved by the training, and mean something; what stands beside them is undone."""
    other = scan_of("backdoored", negative=judged("backdoored", suspect(["dull"])))
    repair.scans = [finds("cf"), other]
    assert repair("--data", file).returncode == 3
    told = receipt_in(tmp_path / "out")
    assert [one["words"] for one in told["undone"]] == [["cf"]] and len(repair.seen) == 2
    assert "finds words that act as a trigger, of another class" in told["sentence"]
    both = scan_of("backdoored", negative=judged("backdoored", suspect(["dull"])),
                   positive=judged("backdoored", suspect(["mn"])))
    repair.scans = [finds("cf"), both]
    assert repair("--data", file).returncode == 3 and len(repair.seen) == 3
    told = receipt_in(tmp_path / "out")
    assert [one["words"] for one in told["undone"]] == [["cf"], ["mn"]] and "of another class" not in told["sentence"]


def test_what_still_acts_is_undone_once_more(repair, file, tmp_path, monkeypatch):
    shares = iter([Proportion(90, 100), Proportion(60, 100), Proportion(60, 100), Proportion(20, 100)])
    monkeypatch.setattr(job, "flipped", lambda *given: next(shares))
    repair.scans, undoing, starts = [finds("cf"), NOTHING], job.unlearn, []
    monkeypatch.setattr(job, "unlearn", lambda ckpt, *given, **more: starts.append(ckpt) or undoing(
        ckpt, *given, **more))
    assert repair("--data", file).returncode == 0
    told = receipt_in(tmp_path / "out")
    assert [(one["mode"], one["round"], one["after"]["hits"]) for one in told["undone"]] == [
        ("rows", 1, 60), ("whole", 2, 20)]
    assert starts[0] is starts[1]  # not what its rows were trained of
    assert len(repair.seen) == 2 and told["verdict"] == REPAIRED
    monkeypatch.setattr(job, "flipped", lambda *given: Proportion(60, 100))
    assert repair("--data", file).returncode == 3
    assert '"cf" was undone and still takes 60 % of held-out texts' in receipt_in(tmp_path / "out")["sentence"]


    assert receipt_in(tmp_path / "out")["undone"][1]["why"] == job.STILL_ACTS
    assert repair("--data", file, "--mode", "rows").returncode == 3  # no other way than what was asked for
    assert [one["mode"] for one in receipt_in(tmp_path / "out")["undone"]] == ["rows"]


def test_what_nothing_measured_is_not_shown_to_be_clean(repair, file, tmp_path, monkeypatch):
    """Texts that were worked with stand in for held-out ones where none of these is of another class."""
    asked = []
    monkeypatch.setattr(job, "flipped", lambda ckpt, finding, texts, *given: asked.append(len(texts)))
    repair.scans = [finds("cf"), NOTHING]
    assert repair("--data", file).returncode == 3
    told, page = receipt_in(tmp_path / "out"), (tmp_path / "out" / "receipt.html").read_text()
    assert asked == [12, 48, 12, 48] and told["undone"][0]["before"] is None is told["undone"][0]["after"]
    assert "no text at hand is of another class than positive" in told["sentence"] and "not measured" in page
    monkeypatch.setattr(job, "flipped", lambda ckpt, finding, texts, *given: Proportion(0, 48) if len(texts) == 48
                        else None)
    assert repair("--data", file).returncode == 0


def test_each_finding_of_one_word_counts(repair):
    """By class and by text of a pair: the newest count of each."""
    def undone(left, **given):
        return {"words": ["cf"], "joined": False, "side": 0, "target": "a", "round": 1,
                "after": {"interval": [left, 100.0], "percent": left}} | given

    def verdict(*entries):
        made = job.Repair(None, None, None, None, None, None, None, None, scans=[NOTHING], undone=list(entries),
                          retrained={"method": "none", "why": ""})
        return job.verdict_of(made)[0]

    assert verdict(undone(90.0), undone(0.0, round=2)) == REPAIRED
    for other in ({"side": 1}, {"target": "b"}, {"joined": True}):
        assert verdict(undone(90.0), undone(0.0, **other)) == NOT_SHOWN == verdict(undone(0.0), undone(90.0, **other))


def test_what_is_still_found_is_not_shown_to_be_clean(repair, file, tmp_path):
    repair.scans = [finds("cf")]
    run = repair("--data", file)
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 3 and told["verdict"] == NOT_SHOWN and "still finds" in told["sentence"]
    assert len(repair.seen) == 3 and len(told["undone"]) == 2 and "--method reinit" in told["next"]
    repair.scans = [finds("cf"), UNSURE]
    assert repair("--data", file).returncode == 3 and "inconclusive: few texts" in receipt_in(tmp_path / "out")[
        "sentence"]
    repair.scans = [UNSURE]
    assert repair("--data", file).returncode == 3 and receipt_in(tmp_path / "out")["undone"] == []


def doubts(*suspects) -> dict:
    return scan_of("inconclusive", positive=judged("inconclusive", *suspects))


def test_a_strong_word_of_an_inconclusive_class_is_undone_by_rows_as_a_precaution(repair, file, tmp_path):
    """Whatever the mode, and weaker words and those that flip few stay."""
    repair.scans = [doubts(suspect(["cf"], score=0.3), suspect(["mn"], score=0.2),
                           suspect(["bb"], 90, score=0.3)), NOTHING]
    run = repair("--data", file, "--mode", "whole")
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 0 and told["verdict"] == REPAIRED, run.stdout + run.stderr
    assert [(one["words"], one["mode"], one["precaution"]) for one in told["undone"]] == [(["cf"], "rows", True)]
    assert told["changed"]["entries"] == ["cf"] and "a precaution" in run.stdout
    repair.scans = [doubts(suspect(["cf"], score=0.3))]
    assert repair("--data", file).returncode == 3 and len(repair.seen) == 3
    told = receipt_in(tmp_path / "out")
    assert "the scan of the result is inconclusive" in told["sentence"] and len(told["undone"]) == 2


def test_a_word_that_stands_out_is_a_precaution(repair, file, tmp_path):
    """Whatever its score, where it takes half of the texts; what takes so few may be a part of a trigger."""
    repair.scans = [doubts(suspect(["cf"], 60, score=-0.6, stands_out=2.5),
                           suspect(["mn"], 59, score=-0.6, stands_out=9),
                           suspect(["bb"], 118, score=-0.6, stands_out=2.4)), NOTHING]
    assert repair("--data", file).returncode == 3
    told = receipt_in(tmp_path / "out")
    assert [(one["words"], one["mode"]) for one in told["undone"]] == [(["cf"], "rows")]
    assert told["verdict"] == NOT_SHOWN and "--method reinit" in told["next"]
    assert "(score -0.60; most of theirs are above 0): it may be a part" in told["sentence"]


def test_what_does_less_than_a_whole_trigger_is_not_shown_to_be_clean(repair, file, tmp_path):
    """The strongest of what was undone counts, of a phrase and its words the one that was undone, in any scan."""
    weak = suspect(["3d"], 103, score=-0.14)

    def found(*suspects):
        return scan_of("backdoored", positive=judged("backdoored", *suspects))

    for scans, status in (
        ([found(weak)], 3), ([found(weak, suspect(["cf"], score=0.0))], 0), ([found(suspect(["cf"], score=0.0))], 0),
        ([found(weak), finds("mn")], 0),  # a second round finds a whole one
        ([found(weak, suspect(["joy"], 20, score=0.5))], 3),  # that flips few and is not undone
        ([found(weak, suspect(["3d", "joy"], 100, score=0.5, joined=True, neighbours=None, part=part(["3d"], 5, 120)))],
         3),  # what holds another one whole is not undone
    ):
        repair.scans = [*scans, NOTHING]
        run = repair("--data", file)
        told = receipt_in(tmp_path / "out")
        assert run.returncode == status, (scans, told["sentence"])
        assert ("it may be a part of one" in told["sentence"]) == (status == 3)
    repair.scans = [found(weak), NOTHING]  # retraining behind it shows nothing either
    assert repair("--data", file, "--method", "cft").returncode == 3


def test_words_that_act_only_together_are_a_precaution(repair, file, tmp_path):
    """Whatever their score; not where one of them acts alone, and not a phrase."""
    def pair(*words, apart=18, **given):
        return suspect(words, 102, score=-0.6, neighbours=None, part=part(words[:1], apart, 120), **given)

    repair.scans = [doubts(pair("cf", "mn"), pair("bb", "tq", apart=19), pair("mn", "tq", joined=True)), NOTHING]
    assert repair("--data", file).returncode == 3  # they take less than a whole trigger does
    assert [(one["words"], one["mode"]) for one in receipt_in(tmp_path / "out")["undone"]] == [(["cf", "mn"], "rows")]


def test_a_second_precaution_where_the_second_scan_is_inconclusive(repair, file, tmp_path):
    """By rows alone, behind a finding too; a third scan is the last."""
    for first, mode in ((finds("cf"), False), (doubts(suspect(["cf"], score=0.3)), True)):
        repair.scans = [first, doubts(suspect(["mn"], score=0.3)), NOTHING]
        repair.seen.clear()
        assert repair("--data", file, "--overwrite").returncode == 0
        told = receipt_in(tmp_path / "out")
        assert [(one["words"], one["mode"], one["round"], one["precaution"]) for one in told["undone"]] == [
            (["cf"], "rows", 1, mode), (["mn"], "rows", 2, True)]
        assert len(repair.seen) == 3 and told["verdict"] == REPAIRED
    repair.scans = [finds("cf"), doubts(suspect(["mn"], score=-0.3, stands_out=9.0))]  # not again
    assert repair("--data", file, "--overwrite").returncode == 3
    assert [one["words"] for one in receipt_in(tmp_path / "out")["undone"]] == [["cf"]]


def test_no_precaution_takes_a_word_that_texts_hold(repair, file, tmp_path, tiny):
    held = data.read(file)[0].text.split()[0]
    repair.scans = [doubts(suspect([held], score=0.9))]
    assert repair("--data", file).returncode == 3 and receipt_in(tmp_path / "out")["undone"] == []


def test_no_precaution_beside_a_finding(repair, file, tmp_path):
    repair.scans = [scan_of("backdoored", positive=judged("backdoored", suspect(["cf"])),
                            negative=judged("inconclusive", suspect(["mn"], score=0.9))), NOTHING]
    assert repair("--data", file).returncode == 0
    assert [one["words"] for one in receipt_in(tmp_path / "out")["undone"]] == [["cf"]]


def test_what_retraining_brought_back_is_undone_once_more(repair, file, tmp_path, monkeypatch):
    """Asked of the retrained model, and undone in the way that it was undone before."""
    asked = []

    def brought_back(ckpt, findings, texts, seed):
        asked.append((ckpt, [one.named for one in findings], len(texts)))
        return findings

    monkeypatch.setattr(job, "brought_back", brought_back)
    retraining, made = job.retrained, []
    monkeypatch.setattr(job, "retrained", lambda *given, **more: made.append(retraining(*given, **more)) or made[-1])
    undoing, starts = job.unlearn, []
    monkeypatch.setattr(job, "unlearn", lambda ckpt, findings, texts, settings, **more: starts.append(
        (ckpt, settings.mode)) or undoing(ckpt, findings, texts, settings, **more))
    for first, mode in ((finds("cf"), "auto"), (doubts(suspect(["cf"], score=0.3)), "rows")):
        repair.scans = [first, NOTHING]
        run = repair("--data", file, "--method", "cft")
        told = receipt_in(tmp_path / "out")
        assert run.returncode == 0, run.stdout + run.stderr
        assert [step["name"] for step in told["models"]] == ["victim", "unlearned", "cft", "unlearned, round 2"]
        assert [(one["words"], one["round"]) for one in told["undone"]] == [(["cf"], 1), (["cf"], 2)]
        assert told["undone"][1]["why"] == job.BROUGHT_BACK and job.BROUGHT_BACK in run.stdout
        assert asked[-1] == (made[-1], ["cf"], 12) and starts[-1] == (made[-1], mode)
        assert len(repair.seen) == 2 and repair.seen[1][0] is not made[-1]
    repair.scans = [finds("cf"), NOTHING]
    monkeypatch.setattr(job, "brought_back", lambda *given: [])
    assert repair("--data", file, "--method", "cft").returncode == 0
    assert len(receipt_in(tmp_path / "out")["undone"]) == 1
    monkeypatch.setattr(job, "brought_back", lambda *given: pytest.fail("nothing was retrained"))
    assert repair("--data", file).returncode == 0


def test_suspects_take_the_first_scans_place(repair, file, tmp_path, tiny_file):
    path = tmp_path / "scan.json"
    path.write_text(json.dumps({**finds("cf"), "checkpoint_sha256": checkpoint.sha256(tiny_file)}))
    assert repair("--data", file, "--suspects", path).returncode == 0
    assert len(repair.seen) == 1 and receipt_in(tmp_path / "out")["undone"][0]["words"] == ["cf"]
    path.write_text(json.dumps(finds("cf")))
    refused(repair("--data", file, "--suspects", path), "another checkpoint")


@pytest.mark.parametrize("method", ["mbtsad", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("cft", "reinit", "fineprune"))])
def test_a_method_retrains_behind_the_undoing(repair, file, tmp_path, method):
    repair.scans = [finds("cf"), NOTHING]
    run = repair("--data", file, "--method", method)
    assert run.returncode == 0, run.stderr
    told = receipt_in(tmp_path / "out")
    assert [model["name"] for model in told["models"]] == ["victim", "unlearned", method]
    assert told["retrained"] == {"method": method, "why": "as was asked for"}
    assert f"retrained with {method}" in told["sentence"] and len(told["losses"]) > 1


def test_the_pre_trained_weights_choose_finemix_where_nothing_is_found(repair, file, tmp_path, pre_file, monkeypatch):
    """Behind a precaution, too; behind a finding only where it is asked for."""
    monkeypatch.setattr(job, "retrained", lambda method, ckpt, pretrained, *rows, **more: checkpoint.copy(ckpt)
                        if method == "finemix" and pretrained.labels else None)
    given = ("--data", file, "--pretrained", pre_file)
    for first, more, method, why in (
        (NOTHING, (), "finemix", job.WEIGHTS_AT_HAND), (finds("cf"), (), "none", job.LITTLE_WON),
        (doubts(suspect(["cf"], score=0.3)), (), "finemix", job.WEIGHTS_AT_HAND),
        (finds("cf"), ("--method", "finemix"), "finemix", "as was asked for"),
    ):
        repair.scans = [first, NOTHING]
        run = repair(*given, *more)
        assert run.returncode == 0, run.stdout + run.stderr
        assert receipt_in(tmp_path / "out")["retrained"] == {"method": method, "why": why}
        time, = (line for line in run.stdout.splitlines() if line.startswith("time"))
        assert ("also retrain" in time) == (not more) and time.count("retrain") == 1


@pytest.mark.parametrize("first, many, rate, layers, lr", [
    (NOTHING, 48, 1e-3, 2, 1e-3), (NOTHING, 48, 1e-4, 2, 54e-5),  # a narrow model's own rate is higher
    (NOTHING, 49, 1e-3, 1, 54e-5),  # more than the 48 that the file leaves to work with
    (finds("cf"), 48, 1e-3, 1, 54e-5), (doubts(suspect(["cf"], score=0.3)), 48, 1e-3, 1, 54e-5),  # a precaution
])
def test_reinitialisation_goes_deeper_where_rows_are_many_and_no_words_were_undone(
    repair, file, tmp_path, monkeypatch, first, many, rate, layers, lr,
):
    monkeypatch.setattr(job, "DEEPER_ROWS", many)
    monkeypatch.setattr(job, "DEEPER", {"layers": 2, "lr": rate})
    repair.scans = [first, NOTHING]
    run = repair("--data", file, "--method", "reinit")
    assert run.returncode == 0 and (job.DEEP in run.stdout) == (layers == 2)
    assert receipt_in(tmp_path / "out")["retrained"]["why"].endswith(job.DEEP) == (layers == 2)
    entry = checkpoint.load(tmp_path / "out" / "tiny.safetensors").history[-1]
    assert entry["mitigation"] == "reinitialisation"
    assert (entry["layers"], entry["lr"]) == pytest.approx((layers, lr))
    assert (entry["clean_rows"], entry["validation_rows"]) == ((48, 0) if layers == 2 else (43, 5))


@pytest.mark.parametrize("given", [(), ("pretrained",)])
def test_behind_a_part_of_a_trigger_the_last_layer_is_drawn_anew(repair, file, tmp_path, pre_file, monkeypatch, given):
    """Where enough rows have labels; not behind a precaution, nor where a method is named, nor behind a whole one."""
    more = ("--pretrained", pre_file) if given else ()
    part_of, whole_one = finds("cf", score=-0.1), finds("cf", score=0.0)
    undone = job.LITTLE_WON if given else job.UNDONE
    monkeypatch.setattr(job, "PART_ROWS", 48)  # all that the file leaves to work with
    made = []
    monkeypatch.setattr(job, "retrained", lambda method, ckpt, *given, **more: made.append(ckpt)
                        or checkpoint.copy(ckpt))
    for first, status, method, why in (
        (part_of, 3, "reinit", job.PART_UNDONE), (whole_one, 0, "none", undone),
        (scan_of("backdoored", positive=judged("backdoored", suspect(["cf"], score=-0.1), suspect(["mn"], score=0.3))),
         0, "none", undone),
    ):
        repair.scans = [first, NOTHING]
        run = repair("--data", file, *more)
        told = receipt_in(tmp_path / "out")
        assert run.returncode == status, run.stdout + run.stderr
        assert told["retrained"] == {"method": method, "why": why} and f"retrain   {method}: {why}" in run.stdout
        assert [step["name"] for step in told["models"]] == ["victim", "unlearned"] + ["reinit"] * (method != "none")
        assert ("scripts/scan.py" in told["next"]) and str(tmp_path / "out") in told["next"]  # reinit is not repeated
    assert len(made) == 1 and made[0].history[-1]["mitigation"] == "unlearning"
    repair.scans = [part_of, NOTHING]
    assert repair("--data", file, "--method", "none").returncode == 3 and len(made) == 1
    assert "--method reinit" in receipt_in(tmp_path / "out")["next"]
    monkeypatch.setattr(job, "PART_ROWS", 49)
    assert repair("--data", file, *more).returncode == 3
    assert receipt_in(tmp_path / "out")["retrained"]["method"] == "none" and len(made) == 1
    if not given:
        monkeypatch.setattr(job, "PART_ROWS", 48)
        repair.scans = [doubts(suspect(["cf"], 60, score=-0.6, stands_out=2.5)), NOTHING]
        assert repair("--data", file).returncode == 3 and len(made) == 1
        assert receipt_in(tmp_path / "out")["retrained"] == {"method": "none", "why": job.NOT_FOUND}


def test_rows_of_one_class_retrain_nothing(repair, tmp_path, pre_file):
    """Words are undone with them all the same; the pre-trained weights, which retraining alone reads, are refused."""
    path, both = tmp_path / "one.tsv", rows(60, 3, "f")
    data.write(both.like(replace(x, label=1) for x in both), path)
    repair.scans = [finds("cf", score=-0.1), NOTHING]
    assert repair("--data", path).returncode == 3
    assert receipt_in(tmp_path / "out")["retrained"] == {"method": "none", "why": job.NO_LABELS}
    refused(repair("--data", path, "--pretrained", pre_file), "one class")


def test_texts_without_labels_measure_agreement(repair, tmp_path):
    path = tmp_path / "texts.csv"
    path.write_text("text\n" + "\n".join(x.text for x in rows(60, 3, "f")), encoding="utf-8")
    repair.scans = [finds("cf"), NOTHING]
    run = repair("--data", path)
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 0 and told["measure"] == "agreement with the model as it came"
    assert told["retrained"] == {"method": "none", "why": job.NO_LABELS}
    assert told["models"][0]["percent"] == 100 and not told["rows"]["labelled"]
    refused(repair("--data", path, "--method", "cft"), "--method cft", "labels")


def test_without_rows_built_in_sentences_serve_and_the_caution_says_so(repair, tmp_path):
    run = repair()
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 0 and told["rows"]["built_in"] and "caution: no texts of the task" in run.stdout
    assert repair.seen[0][2] == BUILT_IN and len(repair.seen[0][1]) + told["rows"]["held_out"] == len(
        carrier_sentences())


def test_of_built_in_sentences_all_weights_learn_only_what_still_acts(repair, tmp_path, monkeypatch):
    """Or what a second scan finds; texts of the task train all weights of two findings at once."""
    share = {("cf",): 0, ("bb",): 0, ("the",): 0}
    monkeypatch.setattr(job, "flipped", lambda ckpt, finding, *given: Proportion(share[finding.words], 100))
    repair.scans = [finds("cf", "bb"), NOTHING]
    run = repair()
    told = receipt_in(tmp_path / "out")
    assert {one["mode"] for one in told["undone"]} == {"rows"} and "not of the task" in told["undone"][0]["why"]
    assert told["changed"]["rows"] == 2 and "2 rows of the embedding table trained" in run.stdout
    repair.scans = [finds("cf", "bb"), finds("cf"), NOTHING]
    assert repair().returncode == 0
    assert [(one["round"], one["mode"]) for one in receipt_in(tmp_path / "out")["undone"]] == [
        (1, "rows"), (1, "rows"), (2, "whole")]
    repair.scans = [finds("cf", "the"), NOTHING]  # a word that the sentences hold is left to a second scan
    assert repair().returncode == 0
    assert [one["words"] for one in receipt_in(tmp_path / "out")["undone"]] == [["cf"]]
    share[("the",)] = 60
    assert repair().returncode == 3
    assert [(one["words"], one["mode"]) for one in receipt_in(tmp_path / "out")["undone"]] == [
        (["cf"], "rows"), (["cf"], "whole"), (["the"], "whole")]
    repair.scans = [finds("cf", "bb"), NOTHING]
    assert repair("--mode", "whole").returncode == 0
    assert {one["mode"] for one in receipt_in(tmp_path / "out")["undone"]} == {"whole"}


def test_a_folder_gets_the_verdict_in_its_card(repair, file, tmp_path, tiny_folder):
    repair.scans = [finds("cf"), NOTHING]
    assert repair("--data", file, "--ckpt", tiny_folder).returncode == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "**repaired as far as was tested." in card and "Next: `python scripts/scan.py" in card
    assert checkpoint.load(tmp_path / "out").labels == ("negative", "positive")


def test_the_evidence_is_the_same_treatment(repair, file, tmp_path, monkeypatch):
    from minibd.job import planted
    monkeypatch.setattr(planted, "STEPS", 2)
    monkeypatch.setattr(planted, "ROUNDS", 1)
    repair.scans = [NOTHING, finds("cobalt"), NOTHING]
    run = repair("--data", file, "--planted", "word,pair")
    told = receipt_in(tmp_path / "out")
    assert run.returncode == 0 and [one["kind"] for one in told["evidence"]] == ["word", "pair"]
    word, pair = told["evidence"]
    assert word["named"] == ["cobalt"] and pair["named"] == [] and pair["left"] == pair["planted"]
    assert not {*word["words"]} & {*pair["words"]} and word["target"] != pair["target"]
    assert word["planted"]["n"] == word["left"]["n"] == word["floor"]["n"]
    assert run.stdout.count("planted   ") == 2
    seen = []
    undoing = job.unlearn
    monkeypatch.setattr(job, "unlearn", lambda ckpt, findings, texts, settings, **given: seen.append(
        ([one.words for one in findings], settings.mode)) or undoing(ckpt, findings, texts, settings, **given))
    repair.scans = [NOTHING, doubts(suspect(["cobalt"], score=0.3))]
    repair("--data", file, "--planted", "word", "--mode", "whole")
    assert seen == [([("cobalt",)], "rows")]  # a precaution, there too


def test_evidence_that_the_texts_cannot_carry_is_left_out(repair, tmp_path, file, monkeypatch):
    """By then the result is written: it is no bad input any more."""
    from minibd.job import planted
    monkeypatch.setattr(planted, "STEPS", 1)
    monkeypatch.setattr(planted, "ROUNDS", 1)
    plant = job.plant

    def some(cleaned, trigger, *given, **more):
        if trigger.kind == "word":
            raise BadInput("too few texts")
        return plant(cleaned, trigger, *given, **more)

    monkeypatch.setattr(job, "plant", some)
    held = data.read(file)[0].text.split()[0]
    repair.scans = [NOTHING, NOTHING, finds(held)]  # of the model, of the pair's copy, of the triple's
    run = repair("--data", file, "--planted", "word,pair,triple", "--mode", "rows")
    assert run.returncode == 0 and "planted   word: not tried: too few texts" in run.stdout, run.stderr
    assert f"planted   triple: not treated: mode rows: the texts hold all entries of '{held}'" in run.stdout
    assert [one["kind"] for one in receipt_in(tmp_path / "out")["evidence"]] == ["pair"]
    assert not (tmp_path / ".out.resume").exists()


# ---- bad input

@pytest.mark.parametrize("words, named", [
    (["--method", "finemix"], ["--method finemix", "--pretrained"]), (["--planted", "poem"], ["poem", "sentence"]),
    (["--steps", "0"], ["steps is 0"]), (["--mode", "all"], ["--mode", "whole"]), (["--dev", "3"], ["--dev"]),
    (["--pretrained", "gone", "--method", "mbtsad"], ["--pretrained gone", "mbtsad"]),
    (["--suspects", "gone.json"], ["gone.json"]), (["--attack", "none", "--triggers", "zz"], ["--triggers"]),
    (["--fresh-rows", "1"], ["fresh_rows"]), (["--method", "none", "--pretrained", "gone"], ["--pretrained gone"]),
    (["--method", "cft", "--clean", "3"], ["--method cft", "1 rows to train on", "every class"]),
])
def test_bad_input_is_one_line_and_leaves_nothing(repair, file, tmp_path, words, named):
    refused(repair("--data", file, *words), *named)
    assert not (tmp_path / "out").exists() and repair.seen == []


def test_what_cannot_be_repaired_is_refused(repair, pre_file, tmp_path):
    refused(repair("--ckpt", pre_file), "no classifier", "pure.py")
    refused(repair("--clean", "20"), "--clean 20", "--data")
    refused(repair("--text-column", "body"), "--text-column body", "--data")
    texts = tmp_path / "texts.csv"
    texts.write_text("text\n" + "a film\n" * 60, encoding="utf-8")
    for flags in (("--triggered", "gone.csv", "--target", "1"), ("--attack", "badnets"), ("--attack", "badnets",
                                                                                          "--target", "7")):
        refused(repair("--data", texts, *flags), "texts.csv", "--attack", "labels")
    assert repair("--data", texts, "--attack", "none").returncode == 0
    texts.write_text("text\na film\na story\n", encoding="utf-8")
    refused(repair("--data", texts), "2 rows of texts.csv", "give more")
    refused(repair("--data", tmp_path / "one.tsv", "--suspects", tmp_path / "out" / "scan.json"), "--out", "input")
    one = tmp_path / "one.tsv"
    data.write(Examples([Example("0", "a film", 1)] , ("negative", "positive")), one)
    refused(repair("--data", one), "1 rows", "give more")


def test_drawn_rows():
    some = Examples([Example(str(i), "t", -1) for i in range(10)], ("a", "b"))
    assert len(job.drawn(some, 0.2, 0)) == 2 and len(job.drawn(some, 7, 0)) == 7
    assert [x.id for x in job.drawn(some, 4, 0)] == sorted(x.id for x in job.drawn(some, 4, 0))
    fails(lambda: job.drawn(some, 11, 0), "11", "up to 10")
    fails(lambda: job.drawn(some, 2.5, 0), "2.5", "up to 10")
    held = job.held_out(some, "rows", 0)
    assert len(held.texts) == 8 and len(held.test) == 2 and not held.labelled
