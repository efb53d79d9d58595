"""A run's folder audited: its terms add up and its steps come again to the bit; every way of tampering is found, and
where."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from conftest import fails
from minibd import checkpoint
from minibd.audit import replay as module
from minibd.audit.replay import audit_run, replay, result_differences, step_differences
from minibd.audit.run_folder import check_totals, malformed, read_run

MBTSAD = (
    "mbtsad.py", "--cft", "--k", 1, "--epochs1", 1, "--epochs2", 1, "--lr1", 1e-3, "--lr2", 1e-3, "--attack", "badnets",
    "--clean", 40,
)
RUNS = {"mbtsad": MBTSAD, "ft": ("baseline.py", "ft", "--clean", 48, "--epochs", 2, "--batch-size", 16, "--lr", 1e-3),
        "cft": ("baseline.py", "cft", "--clean", 40, "--steps", 1, "--epochs", 2, "--batch-size", 16, "--lr", 1e-3),
        "musclelora": ("musclelora.py", "--train", "musclelora", "--epochs", 1, "--aux", 8)}
SEARCH = ("baseline.py", "finepurify", "--clean", 40, "--steps", 1, "--epochs", 1, "--batch-size", 16, "--lr", 1e-3)
STAGES = {
    "mbtsad": {"CFT": 4, "TS-FT": 3, "MBTSAD": 3}, "ft": {"FT": 6}, "cft": {"CFT": 6}, "musclelora": {"MuScleLoRA": 7},
}


@pytest.fixture
def made(here, tiny_file, folder, tmp_path):
    """made("mbtsad") -> what the run left. The checkpoint is a copy, so that a test may change it."""
    def run(name: str, *flags: object) -> Path:
        shutil.copy(tiny_file, tmp_path / "victim.safetensors")
        script, *words = RUNS[name] if name in RUNS else SEARCH
        if name == "musclelora":
            flags = ("--clean-aux", folder / "dev.tsv", *flags)
        done = here(script)(
            *words, "--ckpt", tmp_path / "victim.safetensors", "--data", folder, "--out", tmp_path / "run", "--device",
            "cpu", "--overwrite", *flags,
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / "run"
    return run


@pytest.fixture
def cft(made) -> Path:
    """The cheapest run, for whoever tampers."""
    return made("cft")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "steps.jsonl").read_text().splitlines()]


def change_line(path: Path, line: int, change) -> None:
    """The `line`-th line, from 1, changed in place by `change` or by what that gives back."""
    steps = lines(path)
    steps[line - 1] = change(steps[line - 1]) or steps[line - 1]
    (path / "steps.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))


def change_result(path: Path, change) -> None:
    result = json.loads((path / "result.json").read_text())
    change(result)
    (path / "result.json").write_text(json.dumps(result))


def said(faults) -> str:
    return "\n".join(map(str, faults))


# ---- what is as it was saved

@pytest.mark.parametrize("name", RUNS)
def test_a_run_comes_again_to_the_bit(made, capsys, name):
    """To its end, the scores too; nothing that the audited folder holds is touched, and nothing is left behind or
    printed."""
    path = made(name)
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    argv, here, chance, temporary = (
        list(sys.argv), os.getcwd(), torch.get_rng_state(),
        set(Path(module.tempfile.gettempdir()).glob("minibd-audit-*")),
    )
    checked = audit_run(path, max_steps=None)
    assert checked.ok and checked.replay.ok and checked.totals.ok, "\n".join(checked.lines())
    assert {again.stage: (again.steps, again.difference) for again in checked.replay.stages} == {
        s: (n, 0.0) for s, n in STAGES[name].items()
    }
    assert {sums.stage: sums.steps for sums in checked.totals.stages} == STAGES[name]
    assert all(0 <= sums.difference <= sums.allowed < 1e-3 for sums in checked.totals.stages)
    assert {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()} == before
    assert (sys.argv, os.getcwd()) == (argv, here) and torch.equal(torch.get_rng_state(), chance)
    assert set(Path(module.tempfile.gettempdir()).glob("minibd-audit-*")) == temporary
    assert capsys.readouterr().out == "" and not any(key.startswith("minibd_audited") for key in sys.modules)


def test_the_lines_say_what_was_not_reached(made):
    path = made("mbtsad")
    checked = audit_run(path, max_steps=5)
    assert checked.ok and [(again.stage, again.steps) for again in checked.replay.stages] == [("CFT", 4), ("TS-FT", 1)]
    told = checked.lines()
    assert told[0].startswith(f"{path}: python scripts/mbtsad.py --cft --k 1 ")
    table = {line.split()[0]: line.split()[1:] for line in told[1].splitlines()[1:]}
    assert table["CFT"][0] == "4" and table["CFT"][3:] == ["4", "0", "1e-03"]
    assert table["TS-FT"][3:] == ["1", "0", "1e-03"] and table["MBTSAD"][3:] == ["0", "-"]
    assert told[2] == (
        "Taken again: the first 5 of 10 steps. Weights between steps are not saved, so a step is reached only through "
        "all before it. Not reached: MBTSAD."
    )
    assert told[3:] == [
        "Evaluated again: before and after.",
        "Not checked: the last 5 of 10 steps, and the weights and choices that they lead to.",
        "Not checked: the scores of CFT, TS-FT, since not all steps were taken again.",
        "The run is as it was saved, as far as it was checked.",
    ]
    whole = audit_run(path, max_steps=10).lines()
    assert "Taken again: all 10 steps." in whole and not any(line.startswith("Not checked") for line in whole)
    assert "Taken again: all 10 steps." in audit_run(path, max_steps=10).lines()


def test_it_stops_where_it_is_told_to(cft, monkeypatch):
    """No step more is taken, and neither is the result judged nor written."""
    monkeypatch.setattr(module, "result_differences", lambda *_: pytest.fail("the run went to its end"))
    repeated = replay(cft, max_steps=2)
    assert repeated.ok and [(again.stage, again.steps) for again in repeated.stages] == [("CFT", 2)]


def test_a_run_in_bfloat16_has_a_tolerance_of_its_own(made):
    checked = audit_run(made("cft", "--dtype", "bfloat16"), max_steps=3)
    assert checked.ok and checked.replay.tolerance == module.TOLERANCE["bfloat16"] > module.TOLERANCE["float32"]


def test_a_run_starts_where_it_was_started(here, tiny_file, folder, tmp_path, monkeypatch):
    """Its relative paths are of the folder it was started in; where that is gone, of the one the audit is started in,
    and it is said."""
    began = tmp_path / "began"
    shutil.copytree(folder, began / "rows")
    shutil.copy(tiny_file, began / "victim.safetensors")
    monkeypatch.chdir(began)
    script, *words = RUNS["cft"]
    assert (
        here(script)(
            *words, "--ckpt", "victim.safetensors", "--data", "rows", "--out", "run", "--device", "cpu"
        ).returncode
        == 0
    )
    monkeypatch.chdir(tmp_path)
    assert audit_run(Path("began/run"), 1).ok and not audit_run(Path("began/run"), 1).replay.notes
    began.rename(tmp_path / "moved")
    fails(lambda: audit_run(Path("moved/run"), 1), "victim.safetensors does not exist")
    monkeypatch.chdir(tmp_path / "moved")
    checked = audit_run(Path("run"), 1)
    assert checked.ok and checked.replay.notes == (
        f"{began}, where the run was started, is not here: started in {tmp_path / 'moved'}",
    )


def test_other_versions_are_said_and_no_fault(cft):
    change_result(cft, lambda result: result["versions"].update(torch="0.1"))
    checked = audit_run(cft, 1)
    assert checked.ok and f"torch was 0.1 and is {torch.__version__}" in checked.lines()


# ---- what is not

def add(step: dict, key: str, value: float) -> None:
    step[key] += value


def test_a_total_that_is_not_the_sum_of_its_terms(cft):
    change_line(cft, 3, lambda step: add(step, "total", 0.01))
    checked = audit_run(cft)
    assert not checked.ok and not checked.totals.ok and not checked.replay.ok
    fault, = checked.totals.faults
    assert fault.where == "steps.jsonl, line 3 (CFT, step 2)" and "0.01 apart" in fault.text
    fault, = checked.replay.faults
    assert fault.where == "steps.jsonl, line 3 (CFT, step 2)" and "the total is" in fault.text
    told = checked.lines()
    assert (
        told[-1] == "The run is NOT as it was saved."
        and sum("FAULT steps.jsonl, line 3 " in line for line in told) == 2
    )


def test_terms_that_add_up_and_are_not_the_runs(made):
    """Whoever forges two numbers at once keeps the sum right."""
    path = made("mbtsad")

    def forge(step: dict) -> None:
        step["terms"]["cls"] += 0.01
        step["total"] += step["weights"]["cls"] * 0.01
    change_line(path, 9, forge)
    checked = audit_run(path)
    assert checked.totals.ok and not checked.ok
    where, fields = {fault.where for fault in checked.replay.faults}, said(checked.replay.faults)
    assert (
        where == {"steps.jsonl, line 9 (MBTSAD, step 1)"} and "the term cls is" in fields and "the total is" in fields
    )
    assert audit_run(path, max_steps=8).ok                                    # it does not reach that step, and says so


@pytest.mark.parametrize("key, change, words", [
    ("batch", lambda step: step["batch"].reverse(), "batch is ["), ("lr", lambda step: add(step, "lr", 1e-9), "lr is "),
    ("step", lambda step: add(step, "step", 1), "step is 3 as saved, and 2 recomputed"),
    ("stage", lambda step: step.update(stage="PURE"), 'stage is "PURE" as saved, and "CFT" recomputed'),
    ("note", lambda step: step.update(note="x"), 'note is "x" as saved, and not there recomputed'),
])
def test_whatever_else_a_line_says(cft, key, change, words):
    change_line(cft, 3, change)
    fault, = audit_run(cft).replay.faults
    assert (
        fault.where.startswith("steps.jsonl, line 3 (") and words in fault.text and fault.text.startswith(f"{key} is")
    )


def test_the_clean_rows_of_a_step(made):
    path = made("musclelora")
    change_line(path, 2, lambda step: step["clean"].reverse())
    fault, = audit_run(path).replay.faults
    assert "line 2 (MuScleLoRA, step 1)" in fault.where and fault.text.startswith("clean is [")


def test_another_term_or_weight(cft):
    change_line(cft, 1, lambda step: (step["terms"].update(more=0.0), step["weights"].update(more=1.0)) and None)
    assert "the terms are cls, more as saved, and cls recomputed" in said(audit_run(cft, 1).replay.faults)
    change_line(cft, 1, lambda step: step.update(terms={"cls": step["total"] / 2}, weights={"cls": 2.0}))
    faults = said(audit_run(cft, 1).replay.faults)
    assert 'weights is {"cls": 2.0} as saved, and {"cls": 1.0} recomputed' in faults and "the term cls is" in faults


def test_another_seed_in_the_command(cft):
    change_result(cft, lambda result: result["command"]["argv"].extend(["--seed", "1"]))
    checked = audit_run(cft, max_steps=2)
    assert checked.totals.ok and not checked.ok
    assert "steps.jsonl, line 1 (CFT, step 0): batch is [" in said(checked.replay.faults)


def test_another_rate_in_the_command(cft):
    change_result(cft, lambda result: result["command"]["argv"].extend(["--lr", "2e-3"]))
    assert audit_run(cft, max_steps=1).replay.faults[0].text.startswith("lr is ")


def test_another_checkpoint_is_found_before_anything_is_run(cft, tiny, monkeypatch):
    monkeypatch.setattr(module, "run_script", lambda *_: pytest.fail("it was run"))
    other = checkpoint.copy(tiny)
    with torch.no_grad():
        other.model.embeddings.word.weight[0, 0] += 1e-3
    checkpoint.save(other, cft.parent / "victim.safetensors")
    checked = audit_run(cft)
    assert not checked.ok and checked.totals.ok and checked.replay.stages == ()
    fault, = checked.replay.faults
    assert fault.where == str(cft.parent / "victim.safetensors") and "victim.safetensors has the sha256" in fault.text
    assert "nothing was recomputed" in fault.text
    assert "Taken again: the first 0 of 6 steps" in "\n".join(checked.lines())


def test_lines_that_are_missing_or_too_many(cft):
    steps = (cft / "steps.jsonl").read_text().splitlines(keepends=True)
    (cft / "steps.jsonl").write_text("".join(steps[:-1]))
    fault, = audit_run(cft).replay.faults
    assert (fault.where, fault.text) == (
        "steps.jsonl, after line 5", "the run goes on with CFT, step 5, and no line is left",
    )
    (cft / "steps.jsonl").write_text("".join([*steps, steps[-1].replace('"step": 5', '"step": 6')]))
    fault, = audit_run(cft).replay.faults
    assert (fault.where, fault.text) == ("steps.jsonl, line 7 (CFT, step 6)", "the run has ended before this step")


# ---- scores and the checkpoint

def forge(path: Path, *keys: object, by: float = -0.5) -> None:
    """The number at `keys` of result.json changed."""
    def change(result: dict) -> None:
        for key in keys[:-1]:
            result = result[key]
        result[keys[-1]] += by
    change_result(path, change)


def resave(path: Path, change) -> None:
    """The cleaned checkpoint changed and saved again."""
    ckpt = checkpoint.load(path / "victim.safetensors")
    with torch.no_grad():
        change(ckpt.model)
    checkpoint.save(ckpt, path / "victim.safetensors")


def flip(model) -> None:
    """Every prediction becomes the other class's."""
    model.classifier.weight.neg_()
    model.classifier.bias.neg_()


def nudge(model) -> None:
    """A change that no score shows."""
    model.embeddings.word.weight[-1, 0] += 1e-6


def forge_sha256(path: Path) -> None:
    change_result(path, lambda result: result.update(output_sha256=checkpoint.sha256(path / "victim.safetensors")))


def test_a_forged_score_of_a_stage_in_the_middle(made):
    """Found when all steps are taken again; before, it is named as not checked."""
    path = made("mbtsad")
    forge(path, "steps", 2, "asr")
    fault, = audit_run(path, None).replay.faults
    assert fault.where == "result.json" and fault.text.startswith("step TS-FT asr is ") and "allowed 0" in fault.text
    checked = audit_run(path, 2)
    assert checked.ok and any(line.startswith("Not checked: the scores of CFT, TS-FT,") for line in checked.lines())


@pytest.mark.parametrize("part, at", [("before", 0), ("after", -1)])
def test_forged_scores_of_the_victim_or_the_result_are_found_without_training(cft, part, at):
    """Alone they contradict the table; with the table, the model that is there."""
    forge(cft, part, "cacc")
    faults = said(audit_run(cft, 1).output.faults)
    assert f"result.json: {part} cacc is " in faults and f"in its step {'victim' if at == 0 else 'CFT'}" in faults
    forge(cft, "steps", at, "cacc")
    checked = audit_run(cft, 1)
    fault, = checked.output.faults
    assert fault.text.startswith(f"{part} cacc is ") and "by the model that is there, allowed 0 apart" in fault.text
    assert not checked.ok and checked.lines()[-1] == "The run is NOT as it was saved."


def test_a_swapped_model_is_found_by_its_sha256(cft):
    resave(cft, nudge)
    fault, = audit_run(cft, 1).output.faults
    assert fault.where == str(cft / "victim.safetensors")
    assert fault.text.startswith("victim.safetensors has the sha256 ") and "and the run wrote" in fault.text


def test_a_swapped_model_with_a_forged_sha256_is_found_by_its_scores(made):
    path = made("cft", "--attack", "badnets")
    resave(path, flip)
    forge_sha256(path)
    faults = audit_run(path, 1).output.faults
    assert faults and all(fault.where == "result.json" and fault.text.startswith("after ") for fault in faults)


def test_a_swapped_model_of_the_same_scores_is_found_by_its_weights_when_all_steps_are_taken_again(cft):
    resave(cft, nudge)
    forge_sha256(cft)
    assert audit_run(cft, 1).ok
    checked = audit_run(cft, None)
    fault, = checked.replay.faults
    assert checked.output.ok and fault.where == str(cft / "victim.safetensors")
    assert "tensors are not those of the repetition, the first is embeddings.word.weight" in fault.text


def test_a_model_that_is_missing(cft):
    (cft / "victim.safetensors").unlink()
    checked = audit_run(cft, None)
    assert [fault.text for fault in checked.output.faults] == [
        "victim.safetensors is missing, whose sha256 is in result.json"]
    assert "it cannot be read" in said(checked.replay.faults) and checked.output.evaluated == ("before",)
    assert any(line.startswith("Not checked: the scores by an evaluation, since it failed") for line in checked.lines())


def test_a_folder_of_an_older_version(made):
    """It has no sha256 of the output; the scores are compared all the same."""
    cft = made("cft", "--attack", "badnets")
    change_result(cft, lambda result: result.pop("output_sha256"))
    checked = audit_run(cft, 1)
    assert checked.ok and checked.output.evaluated == ("before", "after")
    assert ("Not checked: the output's sha256, since it is not in result.json, which an older version wrote."
            in checked.lines())
    resave(cft, flip)
    assert not audit_run(cft, 1).ok


def test_a_run_without_a_checkpoint(made):
    path = made("musclelora", "--train", "prefix")
    assert not (path / "victim.safetensors").exists()
    assert json.loads((path / "result.json").read_text())["output_sha256"] is None
    checked = audit_run(path, 1)
    assert checked.ok and [line.split(",")[0] for line in checked.unchecked()] == [
        "the output", "the scores by an evaluation: musclelora measures on rows of --clean-aux",
        f"the last {len(lines(path)) - 1} of {len(lines(path))} steps", "the scores of prefix"]
    assert audit_run(path, None).ok


def test_a_forged_outcome(made, pre_file):
    path = made("finepurify", "--pretrained", pre_file)
    result = json.loads((path / "result.json").read_text())
    assert result["outcome"]["rho"] in [trial["rho"] for trial in result["outcome"]["trials"]]
    change_result(path, lambda result: result["outcome"].update(rho=0.123))
    fault, = audit_run(path, None).replay.faults
    assert fault.text.startswith("outcome rho is 0.123 as saved, and 0.")


@pytest.mark.parametrize("steps", [[], None, ["CFT"], {}])
def test_steps_that_are_no_steps(cft, steps):
    change_result(cft, lambda result: result.update(steps=steps))
    fault, = audit_run(cft, 1).output.faults
    assert fault.text.startswith("steps is ")


def test_many_faults_are_counted(cft):
    for line in range(1, 7):
        change_line(cft, line, lambda step: add(step, "total", 0.01))
    told = audit_run(cft).lines()
    assert (
        told.count("FAULT and 1 more like these") == 2
        and sum(line.startswith("FAULT steps.jsonl") for line in told) == 10
    )


# ---- a line by itself

LINE = {
    "stage": "s", "step": 0, "lr": 0.1, "rows": 2, "batch": [1, 0], "terms": {"a": 1.0, "b": 2.0},
    "weights": {"a": 0.5, "b": 0.25}, "total": 1.0,
}


def test_readd_by_hand():
    """0.5 x 1 + 0.25 x 2 = 1; with 2 rows and 2 terms 8 roundings of 2^-24 are allowed, which is 4.8e-7."""
    sums, = check_totals([LINE, LINE | {"step": 1, "total": 1.0 + 4e-7}]).stages
    assert (sums.stage, sums.steps, sums.allowed) == ("s", 2, 8 * 2.0 ** -24) and sums.difference == pytest.approx(4e-7)
    totals = check_totals([LINE, LINE | {"step": 1, "total": 1.0 + 6e-7}, LINE | {"stage": "t", "step": 0}])
    assert not totals.ok and [fault.where for fault in totals.faults] == ["steps.jsonl, line 2 (s, step 1)"]
    assert [(sums.stage, sums.steps) for sums in totals.stages] == [("s", 2), ("t", 1)]
    assert (
        not check_totals([LINE | {"total": -1.0}]).ok
        and check_totals([LINE | {"terms": {"a": 0.0}, "weights": {"a": 3.0}, "total": 0.0}]).ok
    )


@pytest.mark.parametrize("rows, seed", [(1, 0), (7, 1), (32, 2), (512, 3)])
def test_the_tolerance_holds_what_float32_does(rows, seed):
    """The mean of sums against the sum of means, as fit makes and logs them."""
    for scale in (1e-4, 1.0, 1e4):
        values = torch.rand(3, rows, generator=torch.Generator().manual_seed(seed)) * torch.tensor(
            [[scale], [1.0], [1e-3]]
        )
        weights = {"a": 0.1, "b": 1.0, "c": 1 / 3}
        total = sum(weight * term for weight, term in zip(weights.values(), values)).mean().item()
        terms = dict(zip("abc", values.mean(1).tolist()))
        step = LINE | {"rows": rows, "batch": list(range(rows)), "terms": terms, "weights": weights, "total": total}
        assert check_totals([step]).ok
        assert not check_totals([step | {"total": total * (1 + 1e-3)}]).ok


@pytest.mark.parametrize(
    "change, words",
    [
        ({"weights": {"a": 0.5}}, "b has a term and no weight"), ({"terms": {"a": 1.0}}, "b has a weight and no term"),
        ({"total": math.nan}, "total is nan, not a number"), ({"total": "1.0"}, "total is '1.0', not a number"),
        ({"total": None}, "total is None"), ({"total": True}, "total is True"),
        ({"terms": {"a": 1.0, "b": math.inf}}, "terms b is inf"),
        ({"weights": {"a": 1.0, "b": None}}, "weights b is None"), ({"terms": {}}, "terms is {}"),
        ({"weights": [1.0]}, "weights is [1.0]"), ({"rows": 3}, "rows is 3, and batch does not name as many"),
        ({"batch": None}, "batch does not name"), ({"stage": ["s"]}, "stage is ['s'], not a name"),
    ],
)
def test_a_line_that_is_not_what_it_must_be(change, words):
    totals = check_totals([LINE, LINE | change])
    fault, = totals.faults
    assert (
        fault.where.startswith("steps.jsonl, line 2 (")
        and words in fault.text
        and not totals.ok
        and totals.stages[0].steps == 1
    )


@pytest.mark.parametrize("key", LINE)
def test_a_key_that_is_missing(key):
    assert malformed({name: value for name, value in LINE.items() if name != key}) == f"it lacks {key}"
    assert malformed(LINE) == ""


def test_a_line_that_is_not_whole_is_not_compared(cft):
    change_line(cft, 4, lambda step: {name: value for name, value in step.items() if name != "weights"})
    checked = audit_run(cft)
    assert not checked.ok and [str(fault) for fault in checked.totals.faults] == [
        "steps.jsonl, line 4 (CFT, step 3): it lacks weights"
    ]
    assert checked.replay.stages == () and "nothing was recomputed" in said(checked.replay.faults)


def test_two_lines_apart_by_hand():
    assert step_differences(LINE, LINE, 0.0) == (0.0, [])
    largest, told = step_differences(LINE, LINE | {"total": 1.002, "terms": {"a": 1.0, "b": 2.0 - 1e-3}}, 1e-3)
    assert largest == pytest.approx(0.002 / 1.002)
    assert told == ["the total is 1 as saved, and 1.002 recomputed, apart by 2.0e-03 of it, allowed 1e-03"]
    assert step_differences(LINE, LINE | {"total": 1.002}, 3e-3)[1] == []
    assert step_differences(LINE | {"total": 0.0}, LINE | {"total": 1e-30}, 0.5)[0] == 1.0
    assert step_differences(LINE, LINE | {"total": math.nan}, 0.5)[1]


def test_two_results_by_hand():
    def result(cacc, asr, **more):
        def scores(cacc, asr):
            return {"cacc": cacc, "asr": asr, "n_clean": 60, "n_triggered": 30}
        steps = [{"name": "victim", **scores(90.0, 5.0)}, {"name": "CFT", **scores(cacc, asr)}]
        return {"before": scores(90.0, 5.0), "after": scores(80.0, 5.0), "steps": steps, "rows": {"test": 60},
                "args": {"lr": 0.1}, "outcome": {}} | more

    saved = result(80.0, 5.0)
    assert list(result_differences(saved, saved, 0.0)) == []
    assert list(result_differences(saved, result(80.9, 4.1), 1.0)) == []
    assert list(result_differences(saved, result(81.5, None), 1.0)) == [
        "step CFT cacc is 80.0 as saved, and 81.5 recomputed, allowed 1 apart",
        "step CFT asr is 5.0 as saved, and not there recomputed, allowed 1 apart",
    ]
    assert list(result_differences(result(80.0, 5.0, after={}), saved, 1.0))[:2] == [
        "after cacc is not there as saved, and 80.0 recomputed, allowed 1 apart",
        "after asr is not there as saved, and 5.0 recomputed, allowed 1 apart",
    ]
    other = {"rows": {"test": 59}, "outcome": {"rho": 0.1}, "args": {"lr": 0.2, "out": "x", "chosen": 3}}
    changed = ["rows is {\"test\": 59} as saved, and {\"test\": 60} recomputed",
               "outcome rho is 0.1 as saved, and not there recomputed", "args lr is 0.2 as saved, and 0.1 recomputed"]
    assert list(result_differences(result(80.0, 5.0, **other), saved, 0.0)) == changed
    assert list(result_differences(result(80.0, 5.0, **other), saved, 1.0)) == [changed[0], changed[2]]
    told = result(80.0, 5.0, outcome={"at_chance": {"CFT": "one answer"}})
    assert list(result_differences(saved, told, 0.0)) == []  # a run of 0.2.0 does not say who is at chance
    assert len(list(result_differences(told, told | {"outcome": {"at_chance": {}}}, 0.0))) == 1
    fewer = saved | {"steps": saved["steps"][1:]}
    assert list(result_differences(fewer, saved, 0.0)) == [
        "the models are [\"CFT\"] as saved, and [\"victim\", \"CFT\"] recomputed"]
    # an older run has the flag's default, whatever class was measured
    now = result(80.0, 5.0, args={"target": 0, "target_class": "negative"})
    assert list(result_differences(result(80.0, 5.0, args={"target": 1}), now, 0.0)) == []
    assert list(result_differences(result(80.0, 5.0, args={"target": 1, "target_class": "positive"}), now, 0.0)) == [
        "args target is 1 as saved, and 0 recomputed",
        "args target_class is \"positive\" as saved, and \"negative\" recomputed"]


# ---- what is no run's folder

def test_a_folder_that_no_run_left(cft, tmp_path):
    fails(lambda: audit_run(tmp_path / "nowhere"), "nowhere holds no result.json", "--out folder")
    (cft / "steps.jsonl").rename(tmp_path / "kept")
    fails(lambda: audit_run(cft), "holds no steps.jsonl")
    (cft / "steps.jsonl").write_text("")
    fails(lambda: audit_run(cft), "steps.jsonl is empty")
    (cft / "steps.jsonl").write_text((tmp_path / "kept").read_text() + "not json\n")
    fails(lambda: audit_run(cft), "steps.jsonl, line 7 is not JSON")
    (cft / "steps.jsonl").write_text("[1]\n")
    fails(lambda: audit_run(cft), "steps.jsonl, line 1 is no JSON object")
    (cft / "result.json").write_text("{")
    fails(lambda: audit_run(cft), "result.json is not JSON")


@pytest.mark.parametrize("key", ["command", "sha256", "args"])
def test_a_result_of_an_older_version(cft, key):
    change_result(cft, lambda result: result.pop(key))
    fails(lambda: audit_run(cft), "result.json does not say how the run was started", "older version")


@pytest.mark.parametrize("argv", [[], ["scripts/mbtsad.py", 3], "scripts/mbtsad.py"])
def test_a_command_that_is_none(cft, argv):
    change_result(cft, lambda result: result["command"].update(argv=argv))
    fails(lambda: read_run(cft), "does not say how the run was started")


@pytest.mark.parametrize("name", ["scripts/best.py", "scripts", "..", "", "scripts/results"])
def test_a_script_that_is_not_there(cft, name):
    change_result(cft, lambda result: result["command"]["argv"].__setitem__(0, name))
    fails(lambda: audit_run(cft), f"was written by {name}", "no such script")


def test_a_script_elsewhere_is_not_run(cft, tmp_path):
    """Of argv[0] the name counts alone: what lies beside the audited run is no code of ours."""
    (tmp_path / "baseline.py").write_text("raise SystemError('it was run')\n")
    change_result(cft, lambda result: result["command"]["argv"].__setitem__(0, str(tmp_path / "baseline.py")))
    assert audit_run(cft, 1).ok


def test_a_command_that_cannot_be_run(cft, tmp_path):
    change_result(cft, lambda result: result["command"]["argv"].extend(["--data", "nowhere"]))
    fails(lambda: audit_run(cft), "python scripts/baseline.py cft", "cannot be run again: nowhere does not exist")
    change_result(cft, lambda result: result["command"]["argv"].append("--no-such-flag"))
    fails(lambda: audit_run(cft), "is refused by baseline.py")
    (tmp_path / "victim.safetensors").unlink()
    fails(lambda: audit_run(cft), "victim.safetensors does not exist")


@pytest.mark.parametrize("upto", [0, -3])
def test_a_number_of_steps_that_is_none(cft, upto):
    fails(lambda: replay(cft, upto), f"{upto} steps", "at least 1")
