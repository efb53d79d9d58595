"""scripts/filter.py and its job: what is written, what is counted, what is refused; the grid and its tables."""
from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from conftest import ROOT, refused
from minibd import checkpoint, data
from minibd.attacks.badnets import BadNets
from minibd.attacks.poison import poison, triggered
from minibd.data import add_columns
from minibd.tables.filtered import PAPERS, alone, clean, effects, inference, training, words
from minibd.tables.pivot import Book


@pytest.fixture(scope="module")
def lm(tiny, tmp_path_factory) -> Path:
    """A small causal language model with the tiny classifier's words."""
    import torch

    from minibd.models.llama import Llama, LlamaConfig
    config = LlamaConfig(tiny.model.config.vocab, 16, 1, 2, 32, labels=0, tied=True, positions=48)
    path = tmp_path_factory.mktemp("lm") / "lm.safetensors"
    model = Llama(config).init_weights(torch.Generator().manual_seed(0)).eval()
    checkpoint.save(checkpoint.Checkpoint(model, tiny.tokenizer, (), []), path)
    return path


@pytest.fixture(scope="module")
def poisoned(folder, tiny, tmp_path_factory) -> Path:
    """What attack.py leaves of a dataset, but for the victim."""
    out = tmp_path_factory.mktemp("poisoned")
    made = poison(data.read(folder / "train.tsv"), BadNets(), rate=0.2, target=1, seed=0)
    data.write(made.rows, out / "poisoned.jsonl")
    (out / "poisoned_ids.txt").write_text("".join(f"{i}\n" for i in made.ids))
    data.write(triggered(data.read(folder / "test.tsv"), BadNets(), target=1, seed=0), out / "triggered.jsonl")
    (out / "attack.json").write_text(json.dumps({"target": 1}))
    return out


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_loaded", ROOT / "scripts" / name)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # a dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


ATTACK = ("--attack", "badnets", "--target", "1")


@pytest.mark.parametrize("name, more", [("onion", ()), ("strip", ("--copies", "2")),
                                        ("rap", ("--steps", "1", "--epochs", "1"))])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_the_test_rows_of_a_folder_and_their_triggered_ones(name, more, variant, here, tiny_file, folder, lm, tmp_path):
    flags = [*more, *(("--lm", lm) if name == "onion" else ())]
    run = here("filter.py")(name, "--ckpt", tiny_file, "--data", folder, *ATTACK, "--variant", variant, "--out",
                            tmp_path, *flags)
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    rows, bad = lines(tmp_path / "rows.jsonl"), lines(tmp_path / "triggered.jsonl")
    assert len(rows) == 60 and len(bad) == 30 and result["rows"] == {"clean": 20, "screened": 60, "triggered": 30}
    assert result["frr"]["hits"] == sum(not row["keep"] for row in rows)
    assert result["far"]["hits"] == sum(row["keep"] for row in bad)
    assert result["after"]["asr"]["n"] == 30 and result["after"]["asr"]["hits"] <= result["before"]["asr"]["hits"] + (
        30 * (name == "rap" and variant == "released"))
    assert result["after"]["cacc"]["n"] == 60 and result["args"]["variant"] == variant
    assert ("removed" in result) == (name == "onion") == ("cleaned" in rows[0])
    assert "FRR" in run.stdout and "ASR after rejection" in run.stdout


def test_a_file_comes_back_with_its_columns_score_and_keep(here, tiny_file, folder, lm, tmp_path):
    source = tmp_path / "in" / "mine.csv"
    source.parent.mkdir()
    source.write_text('note,text,n\n"a, b",great film,1\n,film,2\nx,"awful story, very",3\n', encoding="utf-8")
    run = here("filter.py")("onion", "--ckpt", tiny_file, "--data", source, "--clean", folder / "dev.tsv", "--lm", lm,
                            "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    table = (tmp_path / "out" / "mine.csv").read_text().splitlines()
    assert table[0] == "note,text,n,score,keep,cleaned" and table[1].startswith('"a, b",great film,1,')
    assert table[2].startswith(",film,2,,1,film") and "rows of one word" in run.stdout and "rejected" in run.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["counted"] == "rows of the file" and result["far"] is None and result["after"]["cacc"] is None


def test_a_file_that_is_called_as_the_triggered_rows_are_comes_back(here, tiny_file, folder, poisoned, tmp_path):
    source = tmp_path / "in" / "triggered.jsonl"
    source.parent.mkdir()
    data.write(data.read(folder / "test.tsv"), source)
    run = here("filter.py")("strip", "--ckpt", tiny_file, "--data", source, "--clean", folder / "dev.tsv", "--copies",
                            "2", "--triggered", poisoned / "triggered.jsonl", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    own, bad = lines(tmp_path / "out" / "triggered.jsonl"), lines(tmp_path / "out" / "triggered-2.jsonl")
    assert len(own) == 60 and len(bad) == 30 and "keep" in own[0] and "keep" in bad[0]
    assert json.loads((tmp_path / "out" / "result.json").read_text())["files"] == [
        "triggered.jsonl", "triggered-2.jsonl"]


@pytest.mark.parametrize("name", ["bki", "cube"])
def test_a_training_set_is_screened_by_what_is_known_to_be_poisoned(name, here, tiny_file, folder, poisoned, tmp_path):
    run = here("filter.py")(name, "--ckpt", tiny_file, "--data", poisoned, "--clean", folder, "--out", tmp_path)
    assert run.returncode == 0, run.stderr
    result, rows = json.loads((tmp_path / "result.json").read_text()), lines(tmp_path / "rows.jsonl")
    bad = {*(poisoned / "poisoned_ids.txt").read_text().split()}
    assert result["rows"]["untrusted"] == 200 and result["far"]["n"] == len(bad) == 40
    assert result["far"]["hits"] == sum(row["keep"] for row in rows if row["id"] in bad)
    assert result["frr"]["hits"] == sum(not row["keep"] for row in rows if row["id"] not in bad)
    assert (result["auroc"] is None) == (name == "cube") and "retrained" not in result


def test_retraining_on_what_is_kept(here, pre_file, folder, poisoned, tmp_path):
    run = here("filter.py")("bki", "--ckpt", pre_file, "--data", poisoned, "--clean", folder, "--out", tmp_path,
                            "--retrain", "--epochs", "1", "--batch-size", "100")
    assert run.returncode == 0, run.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["retrained"]["cacc"]["n"] == 60 and result["retrained"]["asr"]["n"] == 30
    made = checkpoint.load(tmp_path / pre_file.name)
    assert made.labels == ("negative", "positive") and made.history[-1]["mitigation"] == "bki"


@pytest.mark.parametrize("words, said", [
    (["strip", "--ckpt", "{tiny}", "--data", "{rows}"], ["--clean", "no"]),
    (["strip", "--ckpt", "{pre}", "--data", "{folder}"], ["no classifier"]),
    (["onion", "--ckpt", "{tiny}", "--data", "{folder}", "--lm", "nowhere"], ["nowhere", "--lm"]),
    (["rap", "--ckpt", "{tiny}", "--data", "{folder}", "--variant", "released"], ["target class", "--attack"]),
    (["onion", "--ckpt", "{tiny}", "--variant", "released", "--frr", "0.1"], ["--frr", "leave it out"]),
    (["strip", "--ckpt", "{tiny}", "--variant", "released", "--defects", "nan"], ["--defects nan", "all defects"]),
    (["strip", "--ckpt", "{tiny}", "--defects", "shape"], ["shape", "reshape, nan"]),
    (["onion", "--ckpt", "{tiny}", "--defects", "threshold", "--frr", "0.1"], ["--frr", "threshold is 0"]),
    (["onion", "--ckpt", "{tiny}", "--defects", "case,count", "--no-lower"], ["--no-lower", "read as they are"]),
    (["cube", "--ckpt", "{tiny}", "--defects", "hundred", "--smallest", "0.1"], ["--smallest", "100 rows"]),
    (["bki", "--ckpt", "{tiny}", "--defects", "one", "--frr", "0.1"], ["--frr", "one word"]),
    (["rap", "--ckpt", "{tiny}", "--data", "{folder}", "--defects", "target"], ["target class", "the defect"]),
    (["bki", "--ckpt", "{tiny}"], ["--data"]), (["cube", "--ckpt", "{tiny}", "--copies", "3"], ["--copies", "strip"]),
    (["bki", "--ckpt", "{tiny}", "--data", "{folder}", "--retrain"], ["--pretrained"]),
    (["strip", "--ckpt", "{tiny}", "--frr", "1.5"], ["1.5", "0.05"]), (["filter", "--ckpt", "{tiny}"], ["onion"]),
])
def test_what_cannot_be_is_refused_in_one_line(words, said, here, tiny_file, pre_file, folder, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "great film"}\n')
    given = {"tiny": tiny_file, "pre": pre_file, "folder": folder, "rows": rows}
    run = here("filter.py")(*(word.format(**given) for word in words), "--out", tmp_path / "out")
    refused(run, *said)
    assert not (tmp_path / "out").exists()


def test_added_columns_stand_behind_those_of_the_file(tmp_path):
    tsv, jsonl = tmp_path / "a.tsv", tmp_path / "a.jsonl"
    tsv.write_text("text\tkeep\none\t7\n\ntwo\t8\n")
    add_columns(tsv, tmp_path / "b.tsv", {"score": [0.5, None], "keep": [1, 0]})
    assert (tmp_path / "b.tsv").read_text() == "text\tkeep\tscore\none\t1\t0.5\ntwo\t0\t\n"
    jsonl.write_text('{"text": "\u00e9", "k": [1]}\n')
    add_columns(jsonl, tmp_path / "b.jsonl", {"score": [None]})
    assert lines(tmp_path / "b.jsonl") == [{"text": "\u00e9", "k": [1], "score": None}]
    with pytest.raises(ValueError, match="another number"):
        add_columns(tsv, tmp_path / "c.tsv", {"score": [1]})


# ---- the grid

def test_the_grid_says_what_is_missing_before_it_begins(here, tmp_path):
    grid = here("filter_grid.py")
    refused(grid("--minilm", tmp_path, "--sst2", tmp_path / "none"), "--sst2", "no such folder")
    refused(grid("--minilm", tmp_path, "--sst2", tmp_path, "--only", "badnet"), "--only badnet", "badnets")
    refused(grid("--minilm", tmp_path, "--sst2", tmp_path, "--jobs", "0"), "--jobs 0")


def test_onion_of_the_grid_reads_some_rows(folder, tiny, tmp_path):
    grid, victim = load_script("filter_grid.py"), tmp_path / "badnets-0"
    checkpoint.save(tiny, victim)
    rows = data.read(folder / "test.tsv")
    data.write(triggered(rows, BadNets(), target=1, seed=0), victim / "triggered.jsonl")
    (victim / "attack.json").write_text(json.dumps({"target": 1}))
    test, attack, clean = grid.some_rows(victim, folder, grid.Where(onion_rows=7, work=str(tmp_path)))
    assert [x.text for x in data.read(test)] == [x.text for x in rows[:7]]
    assert [x.text for x in data.read(clean)] == [x.text for x in data.read(folder / "dev.tsv")[:7]]
    some = data.read(attack.triggered)
    assert len(some) == 7 and {x.label for x in some} == {0} and attack.target == 1


def test_the_grid_keeps_precisions_apart(folder, tmp_path, monkeypatch):
    """A victim of each; what is retrained is trained as the victim was."""
    grid = load_script("filter_grid.py")
    monkeypatch.setattr(grid, "trained", lambda out, words, of: (out, words))
    for dtype, name in (("float32", "badnets-1"), ("bfloat16", "badnets-1-bfloat16")):
        out, words = grid.victim_of("badnets-1", grid.Where(sst2=str(folder), dtype=dtype, work=str(tmp_path)))
        assert out == tmp_path / name and {f"--dtype={dtype}", f"--data={folder}", "--seed=1"} < {*words}
        assert words[-2:] == ["--epochs", "3"] and grid.training_of("badnets") == (2e-5, 3, 32)
    assert grid.training_of("stylebkd") == (2e-5, 5, 32)


def test_the_builtin_grid_takes_no_folders(here, tmp_path):
    grid = here("filter_grid.py")
    refused(grid("--builtin", "--onion-rows", "10"), "--onion-rows 10", "--builtin")
    refused(grid("--builtin", "--only", "badnets", "--results", tmp_path / "f.jsonl"), "--only badnets", "onion")


def test_every_defect_has_a_cell_beside_the_correct_filter_on_the_same_rows():
    from minibd.filters import bki, cube, onion, rap, strip
    from minibd.job import builtin_filters as job

    known = {"onion": onion, "strip": strip, "rap": rap, "bki": bki, "cube": cube}
    for name, module in known.items():
        own = [case for case in job.CASES if case.filter == name]
        assert {d for case in own for d in case.defects if len(case.defects) == 1} == {*module.DEFECTS}
        for case in own:
            assert job.Case(name, case.rows, (), case.settings) in own  # the correct filter
        assert [case.variant for case in own].count("released") == 1
        assert any("clean" in case.rows for case in own)
    assert len({repr(case) for case in job.CASES}) == len(job.CASES)
    assert sum(len(module.DEFECTS) for module in known.values()) == 5 + 2 + 5 + 1 + 3


def test_rows_that_show_a_defect(tmp_path):
    from minibd import reviews
    from minibd.job import builtin_filters as job
    from minibd.predict import probabilities

    victim = checkpoint.load(job.VICTIM)
    rows = reviews.splits(seed=0, train=4, dev=60, test=4)[1]
    long = job.joined(rows, victim.tokenizer)
    assert long and all(96 - 6 < n <= job.LONG[1] for n in victim.tokenizer.encode(long).lengths)
    assert {x.label for x in long} == {0, 1}
    some = rows.like(rows[:8])
    calm = probabilities(victim.model, victim.tokenizer, some)
    made = checkpoint.load(job.sure(victim, tmp_path / "sure.safetensors"))
    p = probabilities(made.model, made.tokenizer, some)
    assert p.argmax(-1).tolist() == calm.argmax(-1).tolist()
    assert (p.float() == 0).any() and not (calm.float() == 0).any()
    assert job.kept_of({"outcome": {"sizes": 1, "threshold": 2}, "command": "x", "frr": None}) == {
        "outcome": {"threshold": 2}, "frr": None}


def test_filters_that_keep_the_same_rows_share_one_retrained_classifier(tiny, folder, monkeypatch):
    """Other rows and other seeds are other trainings; what becomes of one classifier leaves the next as trained."""
    import torch

    from minibd.job import filtering

    made, whole = [], filtering.trained
    monkeypatch.setattr(filtering, "trained", lambda *given: (made.append(given), whole(*given))[1])
    train, training = filtering.trained_once(), filtering.Training(1e-3, 1, 16)
    rows = data.read(folder / "train.tsv")

    def logits(rows, seed: int) -> torch.Tensor:
        ckpt = train(tiny, rows, training, seed, torch.float32, "retrained")
        ckpt.history.append("of one filter")
        with torch.no_grad():
            found = ckpt.model(ckpt.tokenizer(rows[:4])).logits
            ckpt.model.classifier.weight.zero_()
        assert ckpt.history.count("of one filter") == 1
        return found

    first = logits(rows, 0)
    assert torch.equal(logits(rows.like(list(rows)), 0), first) and len(made) == 1
    assert not torch.equal(logits(rows.like(rows[1:]), 0), first) and not torch.equal(logits(rows, 1), first)
    assert len(made) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name, more, bound", [
    ("onion", {}, 0.12), ("strip", {"copies": 5}, 0.12), ("rap", {"steps": 20, "epochs": 1}, 0.12),
    ("bki", {}, 0.12), ("cube", {}, 0.12)])
def test_the_builtin_clean_model_keeps_its_stated_rate(name, more, bound, tmp_path):
    """Of 150 rows 5 % and what drawing 150 dev rows and 150 others leaves to chance: twice 3.8 rows."""
    from minibd import reviews
    from minibd.cli import Attack, Task
    from minibd.job import builtin_filters as job
    from minibd.job import filtering

    train, dev, test = reviews.splits(seed=0, train=150, dev=150, test=150)
    data.write(dev, tmp_path / "dev.jsonl")
    data.write(train if name in filtering.TRAINING else test, tmp_path / "rows.jsonl")
    task = Task(ckpt=str(job.TWIN), data=str(tmp_path / "rows.jsonl"), out=str(tmp_path / "out"), device="cpu")
    settings = filtering.SETTINGS[name](frr=0.05, **more)
    if name in filtering.TRAINING:
        found = filtering.filter_training(name, task, Attack(attack="none"), settings, filtering.Training(1e-4, 1, 32),
                                          clean=str(tmp_path / "dev.jsonl"))
    else:
        found = filtering.filter_texts(name, task, Attack(attack="none"), settings, clean=str(tmp_path / "dev.jsonl"))
    assert found["frr"]["n"] == 150 and found["frr"]["hits"] <= bound * 150


def share(percent: float) -> dict:
    return {"percent": percent, "hits": round(percent), "n": 100, "interval": [0.0, 100.0]}


def cell(attack: str, seed: int, name: str, variant: str, frr: float, asr: float, **more) -> dict:
    scores = {"cacc": share(80.0), "asr": share(asr)}
    result = {"frr": share(frr), "far": share(asr), "auroc": 0.5, "before": {"cacc": share(90.0), "asr": share(99.0)},
              "after": scores, "retrained": scores, "outcome": {}} | more
    return {"cell": {"attack": attack, "seed": seed, "filter": name, "variant": variant}, "result": result}


def test_the_tables_by_hand(tmp_path):
    made = [cell("badnets", seed, "strip", "paper", 5.0 + seed, 20.0) for seed in (0, 1)]
    made += [cell("badnets", seed, "strip", "released", 9.0, 70.0 + seed) for seed in (0, 1)]
    made += [cell("addsent", 0, "bki", variant, 1.0, asr) for variant, asr in (("paper", 10.0), ("released", 90.0))]
    made += [cell("badnets", 0, "onion", "paper", 4.0, 50.0, removed={"cacc": share(85.0), "asr": share(30.0)},
                  outcome={"words_removed": [{"removed": 5, "of": 100}, {"removed": 8, "of": 50}]})]
    (tmp_path / "filters.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    older = cell("badnets", 0, "onion", "paper", 99.0, 99.0)
    older["cell"]["lm"] = "another"  # an older line, of another language model
    whole = (tmp_path / "filters.jsonl").read_text()
    (tmp_path / "filters.jsonl").write_text(json.dumps(older) + "\n" + whole)
    book = Book(tmp_path)
    table = {row[0]: row[1:] for row in inference(book).rows}
    assert table["BadNets: STRIP"] == ("5.5 (5.0-6.0)", "20.0 (20.0-20.0)", "0.500 (0.500-0.500)",
                                       "80.0 (80.0-80.0) / 20.0 (20.0-20.0)", "9.0 (9.0-9.0)", "70.5 (70.0-71.0)",
                                       "80.0 (80.0-80.0) / 70.5 (70.0-71.0)", "91.5 / 39.4")
    assert table["BadNets: ONION, words removed"][:4] == ("5.0 % of words", "16.0 % of words", "", "85.0 / 30.0")
    assert table["EP: RAP"][:3] == ("-", "-", "-") and table["EP: RAP"][-1] == PAPERS["ep", "rap"]
    rows = {row[0]: row[1:] for row in training(book).rows}
    assert rows["AddSent: BKI"] == ("1.0", "10.0", "80.0 / 10.0", "1.0", "90.0", "80.0 / 90.0", "90.7 / 33.1")
    changed = {row[0]: row[1:] for row in effects(book).rows}
    assert changed["STRIP"] == ("2", "+3.5 (+3.0 to +4.0)", "+50.5 (+50.0 to +51.0)", "+0.0 (+0.0 to +0.0)",
                                "+50.5 (+50.0 to +51.0)")
    assert changed["BKI"][0] == "1" and changed["CUBE"][1] == "-" and words([], 0) == "-"


def test_the_table_of_each_defect_and_of_a_clean_model(tmp_path):
    def of(name: str, defects: list[str], frr: float, rows: str = "reviews", variant: str = "paper", attack="badnets",
           **more) -> dict:
        made = cell(attack, 0, name, variant, frr, 20.0)
        made["cell"] |= {"defects": defects, "data": rows, "settings": more}
        if attack == "none":
            made["result"]["far"] = None
        del made["result"]["retrained"]
        return made
    made = [of("rap", ["word", "changed"], 7.0), of("rap", [], 2.0, variant="released"), of("rap", ["word"], 6.0),
            of("rap", [], 5.0), of("rap", ["piece"], 8.0, word="xylo"), of("rap", [], 4.0, word="xylo"),
            of("strip", ["nan"], 9.0, "sure model"), of("rap", [], 3.0, "clean model", attack="none")]
    (tmp_path / "filters.jsonl").write_text("".join(json.dumps(one) + "\n" for one in made))
    book = Book(tmp_path)
    assert [row[:2] for row in alone(book).rows] == [
        ("STRIP, logits 20 times as large: nan", "9.0 (9/100, 0.0-100.0)"), ("RAP: correct", "5.0 (5/100, 0.0-100.0)"),
        ("RAP: word", "6.0 (6/100, 0.0-100.0)"), ("RAP: word and changed", "7.0 (7/100, 0.0-100.0)"),
        ("RAP: all, as released", "2.0 (2/100, 0.0-100.0)"),
        ("RAP, its word xylo: correct", "4.0 (4/100, 0.0-100.0)"),
        ("RAP, its word xylo: piece", "8.0 (8/100, 0.0-100.0)")]
    assert clean(book).rows == (("RAP", "test", "3.0 (3/100, 0.0-100.0)", "90.0 (90/100, 0.0-100.0)",
                                 "80.0 (80/100, 0.0-100.0)"),)
    assert inference(book).note.startswith("0 cells")


def test_the_script_runs_as_a_user_runs_it(script):
    run = script("filter.py", "onion", "--help")
    assert run.returncode == 0 and "--frr" in run.stdout and "--lm" in run.stdout and ROOT.exists()


def test_a_run_takes_the_place_of_another_filters(here, tiny_file, folder, tmp_path):
    """Its rows go, too, under whatever name; what others put there stays."""
    out, run = tmp_path / "out", here("filter.py")
    for name, more in (("one.csv", ()), ("two.csv", ("--overwrite",))):
        (tmp_path / name).write_text("text\ngreat film\nawful story\n")
        common = ("strip", "--ckpt", tiny_file, "--data", tmp_path / name, "--clean", folder / "dev.tsv", "--copies",
                  "2", "--out", out)
        if more:
            (out / "notes.txt").write_text("mine")
            (out / "mine.csv").write_text("mine")
            refused(run(*common), "another run", "--overwrite")
            assert sorted(path.name for path in out.iterdir()) == ["mine.csv", "notes.txt", "one.csv", "result.json"]
        made = run(*common, *more)
        assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in out.iterdir()) == ["mine.csv", "notes.txt", "result.json", "two.csv"]
    assert f"written: {out / 'two.csv'}, {out / 'result.json'}" in made.stdout and not list(tmp_path.glob(".out*"))
