"""Label values -> classes: decided once for all files of a data set, and mapped onto a model's classes."""
import csv
import json
import sys
from pathlib import Path

import pytest

from conftest import fails
from minibd import checkpoint
from minibd.cli import Attack, Task
from minibd.data import read, read_splits
from minibd.job.evaluation import evaluator_of
from minibd.job.task import labels_of, open_task, print_notes, splits_of
from minibd.records import BadInput, Examples


def put(folder: Path, name: str, *labels: object) -> Path:
    """A file of a row "t<i>" for each of `labels`."""
    path = folder / name
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps({"text": f"t{i}", "label": label}) + "\n" for i, label in enumerate(labels))
        else:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([("text", "label"), *((f"t{i}", label) for i, label in enumerate(labels))])
    return path


def classes(rows: Examples) -> list[int]:
    return [x.label for x in rows]


# ---- numbers

@pytest.mark.parametrize("name", ["a.tsv", "a.csv", "a.jsonl"])
def test_labels_that_are_equal_as_numbers_are_one_class(tmp_path, name):
    labels = ["1", "1.0", "01", "+1", " 1 ", "1.", "1e0", "0", "-0", "0.00"]
    rows = read(put(tmp_path, name, *labels, *([1, 1.0, 0, 0.0] if name == "a.jsonl" else [])))
    assert rows.labels == ("0", "1")
    assert classes(rows) == [1] * 7 + [0] * 3 + ([1, 1, 0, 0] if name == "a.jsonl" else [])


def test_the_files_of_a_data_set_are_decided_together(tmp_path):
    put(tmp_path, "train.tsv", "0.0", "1.0"), put(tmp_path, "dev.csv", 1, 0), put(tmp_path, "test.jsonl", 1, "0", 2.0)
    splits = read_splits(tmp_path)
    assert [classes(part) for part in (splits.train, splits.dev, splits.test)] == [[0, 1], [1, 0], [1, 0, 2]]
    assert splits.train.labels == ("0", "1", "2")


@pytest.mark.parametrize("names", [None, ["neg", "pos"]])
def test_scores_are_no_classes(tmp_path, names):
    path = put(tmp_path, "a.tsv", "1", "0", "0.5", "0.25")
    fails(lambda: read(path, labels=names), "a.tsv, line 4: label '0.5'", "2 of 4 rows", "scores", "label_column=")
    path = put(tmp_path, "b.jsonl", 1, 2.5)
    fails(lambda: read(path, labels=names, flags=True), "b.jsonl, line 2:", "--label-column")


@pytest.mark.parametrize("label", [True, False, float("nan"), [1], {"a": 1}])
def test_a_json_value_that_is_no_label_is_named(tmp_path, label):
    fails(lambda: read(put(tmp_path, "a.jsonl", 1, label)), "a.jsonl, line 2: label is", "integer")


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_label_is_named_by_its_row(tmp_path, empty):
    for name in ("a.tsv", "a.csv", "a.jsonl"):
        line = 2 if name == "a.jsonl" else 3
        fails(lambda: read(put(tmp_path, name, "1", empty)), f"{name}, line {line}: the label is empty")


def test_numbers_below_the_first_class(tmp_path):
    fails(lambda: read(put(tmp_path, "a.tsv", "0", "-2", "1")), "a.tsv, line 3: label '-2'", "below 0", "labels=")


# ---- no label

@pytest.mark.parametrize("missing, others", [
    ("-1", "01"), ("-1.0", "012"), ("-1", ["neg", "pos"]), ("-", ["n", "e", "c"]),
])
def test_rows_without_a_label_are_refused_in_training_and_left_out_of_the_test(tmp_path, missing, others):
    put(tmp_path, "train.tsv", *others), put(tmp_path, "test.tsv", missing, others[1], missing)
    splits = read_splits(tmp_path)
    assert [x.id for x in splits.test] == ["test-1"] and splits.test.labels == tuple(sorted(others))
    assert splits.notes == ("2 of 3 rows of 'test.tsv' have no label (-1) and are left out",)
    put(tmp_path, "train.tsv", *others, missing, missing)
    fails(lambda: read_splits(tmp_path), f"train.tsv, line {len(others) + 2}: label '{missing}'",
          f"2 of {len(others) + 2} rows", "without these rows")
    put(tmp_path, "train.tsv", *others), put(tmp_path, "dev.tsv", *others, missing)
    fails(lambda: read_splits(tmp_path), "dev.tsv, line", f"label '{missing}'")     # by which an epoch is chosen
    (tmp_path / "test.tsv").unlink()
    splits = read_splits(tmp_path)                                                  # dev is the test
    assert len(splits.test) == len(others) and splits.notes[0].startswith(f"1 of {len(others) + 1} rows of 'dev.tsv'")


def test_a_single_file_without_some_labels(tmp_path):
    path = put(tmp_path, "a.tsv", *"0101010101", "-1")
    fails(lambda: read_splits(path), "a.tsv, line 12: label '-1'")
    fails(lambda: read(path), "a.tsv, line 12: label '-1'", "labels=['-1', '0', '1']")
    fails(lambda: read(path, flags=True), "--labels=-1,0,1")
    assert "labels" not in fails(lambda: read(path, labels=["neg", "pos"], flags=True), "a.tsv, line 12: label '-1'")
    splits = read_splits(path, hold_out=False)
    assert len(splits.test) == 10 and splits.notes[0].startswith("1 of 11 rows")


def test_a_test_file_without_any_label_is_refused(tmp_path):
    put(tmp_path, "train.tsv", "0", "1"), put(tmp_path, "test.tsv", "-1", "-1")
    fails(lambda: read_splits(tmp_path), "test.tsv: all 2 labels are '-1'", "take the file out")


def test_signs_are_two_classes(tmp_path):
    assert (read(put(tmp_path, "a.tsv", "1", "-1")).labels, classes(read(tmp_path / "a.tsv"))) == (("-1", "1"), [1, 0])
    assert read(put(tmp_path, "b.tsv", "+", "-")).labels == ("+", "-")
    fails(lambda: read(tmp_path / "a.tsv", labels=["neg", "pos"], flags=True), "'-1'", "--labels=-1,1")
    assert classes(read(tmp_path / "a.tsv", labels=["-1", "1"])) == [1, 0]
    assert classes(read(put(tmp_path, "c.tsv", "0", "-1", "1"), labels=["-1", "0", "1"])) == [1, 0, 2]


# ---- names

def test_the_row_of_the_rarer_kind_is_at_fault(tmp_path):
    put(tmp_path, "train.tsv", "0", "1", "1"), put(tmp_path, "test.tsv", "0", "pos")
    fails(lambda: read_splits(tmp_path), "test.tsv, line 3: label 'pos' is a name", "4 of 5 rows have a number",
          "'0' in line 2 of train.tsv")
    put(tmp_path, "train.tsv", "neg", "pos", "7", "pos"), put(tmp_path, "test.tsv", "neg", "pos")
    fails(lambda: read_splits(tmp_path), "train.tsv, line 4: label '7' is a number", "'neg' in line 2")
    fails(lambda: read(put(tmp_path, "a.jsonl", 1, "0", "pos", 0)), "a.jsonl, line 3: label 'pos' is a name")
    rows = read(put(tmp_path, "b.tsv", "1", "2", "other"), labels=["1", "2", "other"])
    assert classes(rows) == [0, 1, 2]


def test_names_that_differ_in_case_alone(tmp_path):
    path = put(tmp_path, "a.tsv", "Positive", "positive", "negative", "positive")
    fails(lambda: read(path), "a.tsv, line 2: label 'Positive'", "'positive'", "only in its case", "labels=")
    assert classes(read(path, labels=["negative", "positive"])) == [1, 1, 0, 1]
    assert classes(read(put(tmp_path, "b.tsv", "A", "a"), labels=["a", "A"])) == [1, 0]
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    assert classes(read(put(tmp_path, "c.tsv", composed, decomposed), labels=["x", composed])) == [1, 1]


# ---- given names

def test_numbers_among_names_that_are_numbers_are_never_indices(tmp_path):
    stars = ["1", "2", "3"]
    put(tmp_path, "train.tsv", "1", "2", "3"), put(tmp_path, "test.tsv", "1.0", "2")
    splits = read_splits(tmp_path, labels=stars)
    assert (classes(splits.train), classes(splits.test)) == ([0, 1, 2], [0, 1])
    fails(lambda: read(put(tmp_path, "a.tsv", "1", "0", "2"), labels=stars), "a.tsv, line 3: label '0'", "3 classes",
          "labels=['0', '1', '2']")
    assert classes(read(tmp_path / "a.tsv", labels=["0", "1", "2"])) == [1, 0, 2]
    fails(lambda: read(tmp_path / "a.tsv", labels=["5", "6", "7"]), "a.tsv, line 2: label '1'")
    fails(lambda: read(put(tmp_path, "b.tsv", "1", "0"), labels=["1", "other"]), "b.tsv, line 3: label '0'")


def test_names_of_other_spelling_say_how_to_map_them(tmp_path):
    path, model = put(tmp_path, "a.tsv", "pos", "neg"), ["LABEL_0", "LABEL_1"]
    fails(lambda: read(path, labels=model, flags=True), "a.tsv, line 2: label 'pos'", "'LABEL_0', 'LABEL_1'",
          "the model's order", "--labels neg,pos")
    assert "--" not in fails(lambda: read(path, labels=model), "labels=['neg', 'pos']")
    rows = read(path, labels=["neg", "pos"])
    assert rows.labels == ("neg", "pos") and classes(rows) == [1, 0]
    fails(lambda: read(path, labels=["A", "B", "C"], flags=True), "the rows' 3 classes", "--labels")
    fails(lambda: read(put(tmp_path, "b.tsv", "a", "b", "c"), labels=model, flags=True), "3 classes", "a model with")
    fails(lambda: read(put(tmp_path, "c.tsv", "1", "2"), labels=model, flags=True), "line 3: label '2'", "--labels 1,2")
    long = put(tmp_path, "d.tsv", *(f"{'x' * 200}{i}" for i in range(4)))
    line = fails(lambda: read(long, labels=["y" * 200 + str(i) for i in range(4)], flags=True), "d.tsv, line 2:")
    assert len(line.removeprefix(str(long))) < 300
    spaced = put(tmp_path, "e.tsv", "very good", "bad")
    fails(lambda: read(spaced, labels=model, flags=True), "--labels 'bad,very good'")
    many = put(tmp_path, "f.tsv", *(f"class{i}" for i in range(40)))
    line = fails(lambda: read(many, labels=[f"LABEL_{i}" for i in range(40)], flags=True), "40 classes", "--labels")
    assert len(line.removeprefix(str(many))) < 300
    fails(lambda: read(path, labels=["a", "a"]), "'a' and 'a' are one class")


@pytest.fixture(scope="module")
def unnamed_file(tiny, tmp_path_factory) -> Path:
    """The tiny classifier with the names that transformers gives classes without any."""
    path = tmp_path_factory.mktemp("unnamed") / "model.safetensors"
    checkpoint.save(checkpoint.Checkpoint(tiny.model, tiny.tokenizer, ("LABEL_0", "LABEL_1"), []), path)
    return path


@pytest.fixture
def named_rows(tmp_path) -> Path:
    """A folder whose rows are neg and pos."""
    path = tmp_path / "rows"
    path.mkdir()
    for split in ("train", "test"):
        put(path, f"{split}.tsv", "pos", "neg", "pos", "neg")
    return path


def test_labels_name_the_classes_of_a_model_without_names_and_no_others(tmp_path, unnamed_file, tiny_file, named_rows):
    def opened(ckpt: Path, *labels: str):
        return open_task("m", Task(ckpt=str(ckpt), data=str(named_rows), out=str(tmp_path / "out"), device="cpu",
                                   labels=labels or None))

    for ckpt, names in ((unnamed_file, ("neg", "pos")), (tiny_file, ("negative", "positive"))):
        fails(lambda: opened(ckpt), "train.tsv, line 2: label 'pos'", "--labels neg,pos")
        found, splits, _ = opened(ckpt, "neg", "pos")
        assert found.labels == names and splits.train.labels == splits.test.labels == ("neg", "pos")
        assert classes(splits.test) == [1, 0, 1, 0]
    checkpoint.save(opened(unnamed_file, "neg", "pos")[0], tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text(encoding="utf-8"))
    assert config["id2label"] == {"0": "neg", "1": "pos"}


def test_triggered_rows_have_the_names_of_the_rows(tmp_path, tiny_file, named_rows):
    task = Task(ckpt=str(tiny_file), data=str(named_rows), out=str(tmp_path / "out"), device="cpu",
                labels=("neg", "pos"))
    ckpt, splits, _ = open_task("m", task)
    attack = Attack(triggered=str(put(tmp_path, "triggered.tsv", "neg", "neg")), target=1)
    assert classes(evaluator_of(attack, task, ckpt, splits.test).triggered) == [0, 0]


@pytest.mark.parametrize("labels, words", [
    (("neg",), ["1 names", "2 classes", "'negative', 'positive'"]), (("a", "b", "c"), ["3 names", "2 classes"]),
    (("a", "a"), ["one class"]), (("positive", "negative"), ["'positive'", "order"]),
    (("x", "NEGATIVE"), ["'NEGATIVE'"]),
])
def test_labels_that_do_not_fit_the_model(tiny_file, labels, words):
    header = checkpoint.read_header(tiny_file)
    fails(lambda: labels_of(Task(ckpt="m", labels=labels), header), *words)
    assert labels_of(Task(ckpt="m", labels=("Negative", "p")), header) == ("Negative", "p")
    assert labels_of(Task(ckpt="m"), header) == ("negative", "positive")


def test_labels_are_of_files(tiny_file):
    header = checkpoint.read_header(tiny_file)
    header.history.append({"data": {"reviews": {}}})
    fails(lambda: splits_of(Task(ckpt=str(tiny_file), labels=("a", "b")), header), "--labels a,b", "--data")


def test_a_class_without_rows_is_named(tmp_path, capsys):
    path = put(tmp_path, "a.tsv", *["good", "bad"] * 10)
    print_notes(read_splits(path, labels=["bad", "neutral", "good"]))
    assert capsys.readouterr().out.splitlines()[1:] == ["no row is of class 'neutral', of 3 classes"]
    print_notes(read_splits(path, labels=["bad", "good"]))
    assert len(capsys.readouterr().out.splitlines()) == 1


# ---- scripts

def test_evaluate_measures_all_rows_of_a_file(here, unnamed_file, tmp_path):
    path, out = put(tmp_path, "rows.tsv", *["pos", "neg"] * 15), tmp_path / "out"
    common = ("--ckpt", unnamed_file, "--data", path, "--labels", "neg,pos", "--device", "cpu", "--out", out)
    for more, n, words in (
        ((), 30, ["measured: all rows", "all rows of 'rows.tsv' are read"]), (("--all",), 30, ["measured: all rows"]),
        (("--no-all",), 6, ["measured: the test rows", "a fifth of 'rows.tsv' is the test, chosen by --seed"]),
    ):
        run = here("evaluate.py")(*common, "--overwrite", *more)
        assert run.returncode == 0, run.stderr
        assert json.loads((out / "result.json").read_text(encoding="utf-8"))["rows"] == {"test": n}
        for word in words:
            assert word in run.stdout


def test_evaluate_measures_the_test_of_a_folder_or_all_of_it(here, tiny_file, folder, tmp_path):
    for more, n, word in (((), 60, "measured: the test rows"), (("--all",), 280, "measured: all rows")):
        run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--device", "cpu", "--out", tmp_path,
                                  "--overwrite", *more)
        assert run.returncode == 0 and word in run.stdout, run.stderr
        assert json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))["rows"] == {"test": n}
    run = here("evaluate.py")("--ckpt", tiny_file, "--data", folder, "--out", tmp_path, "--no-all")
    assert run.returncode == 2 and "--no-all" in run.stderr and "no single file" in run.stderr


def test_attack_has_both_meanings_of_labels(here, unnamed_file, named_rows, tmp_path):
    for split in ("train", "test"):
        put(named_rows, f"{split}.tsv", *["pos", "neg"] * 10)
    common = ("--ckpt", unnamed_file, "--data", named_rows, "--device", "cpu", "--dataset-only", "--rate", "0.5")
    run = here("attack.py")(*common, "--labels", "neg,pos", "--labels", "clean", "--out", tmp_path / "out")
    assert run.returncode == 0, run.stderr
    made = json.loads((tmp_path / "out" / "attack.json").read_text(encoding="utf-8"))
    assert made["labels"] == "clean" and made["args"]["classes"] == ["neg", "pos"] and made["n_flipped"] == 0
    assert read(tmp_path / "out" / "triggered.jsonl").labels == ("neg",)
    for given, word in ((["cleen"], "'cleen'"), (["mix", "clean"], "2 times"), (["a,b", "c,d"], "2 times")):
        run = here("attack.py")(*common, *(word for one in given for word in ("--labels", one)))
        assert run.returncode == 2 and run.stderr.startswith("error: --labels") and word in run.stderr


def test_columns_are_refused_before_the_weights_are_read(here, tiny_file, folder, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    path.write_text("body,stars\nx,1\n", encoding="utf-8")
    monkeypatch.setattr(checkpoint, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    for script in ("evaluate.py", "mbtsad.py", "pretrain.py", "attack.py", "choose.py", "musclelora.py"):
        more = ("--clean-aux", folder) if script == "musclelora.py" else ()
        where = () if script == "choose.py" else ("--out", tmp_path / "out")
        run = here(script)("--ckpt", tiny_file, "--data", path, "--device", "cpu", *where, *more)
        assert run.returncode == 2 and "Traceback" not in run.stderr
        assert "no text column and no label column: choose --text-column and --label-column from 'body', 'stars'" in (
            run.stderr)


def test_scripts_that_train_nothing_read_a_file_whole(here, tiny_file, folder, tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr("minibd.audit.effects.effects", lambda one, other, rows, seed: measured.append(rows) or ())
    for path, n in ((folder / "test.tsv", 60), (folder, 20)):      # of a folder its dev rows
        run = here("audit.py")("--effects", "--ckpt", tiny_file, "--teacher", tiny_file, "--data", path)
        assert run.returncode == 0 and len(measured.pop()) == n, run.stderr
        assert ("all rows of 'test.tsv' are read" in run.stdout) == (n == 60)
    here("bench.py")
    bench = sys.modules["bench_script"].splits_read
    assert len(bench(str(folder / "test.tsv")).train) == 60 and len(bench(str(folder)).dev) == 20


@pytest.mark.parametrize("figure", [("mbtsad-3",), ("pure-2", "--attack", "badnets")])
def test_figures_read_a_file_whole(here, tiny_file, folder, tmp_path, monkeypatch, figure):
    pytest.importorskip("matplotlib")
    asked = []

    def opened(*_, hold_out: bool = True, **__):
        asked.append(hold_out)
        raise BadInput("enough")

    monkeypatch.setattr("minibd.job.task.open_task", opened)
    run = here("plot.py")(*figure, "--ckpt", tiny_file, "--data", folder / "test.tsv", "--out", tmp_path / "x.png")
    assert (run.stderr, asked) == ("error: enough\n", [False])
