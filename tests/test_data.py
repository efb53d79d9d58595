"""Files in and out, splits, samples and batches. The real data's tests are skipped where it is absent."""
import csv
import json
import os
import subprocess
import sys
from collections import Counter
from math import ceil
from pathlib import Path

import pytest

from conftest import fails
from minibd.data import (
    SUFFIXES,
    Splits,
    batches,
    counts,
    generator,
    in_order,
    read,
    read_splits,
    read_texts,
    sample,
    write,
)
from minibd.records import BadInput, Example, Examples

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not here")


def put(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pairs(examples: Examples) -> list[tuple[str, int]]:
    return [(e.text, e.label) for e in examples]


def task(*sizes: int) -> Examples:
    """sizes[c] rows of class c, in turn as long as a class has rows left."""
    rows = [(i, c) for c, size in enumerate(sizes) for i in range(size)]
    return Examples((Example(f"{c}.{i}", f"text {i}", c) for i, c in sorted(rows)), map(str, range(len(sizes))))


# ---- generator, batches

def test_generator_is_the_same_in_another_process_and_differs_by_part():
    def draws(*parts):
        return [generator(*parts).random() for _ in range(2)]
    code = "from minibd.data import generator; print(generator(7, 3, 'sst2-12').random())"
    other = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "12345"},
                           cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    assert float(other.stdout) == generator(7, 3, "sst2-12").random()
    assert draws(7, 3, "a")[0] == draws(7, 3, "a")[1]
    assert (
        len({generator(*p).random() for p in [(0,), (1,), (0, 1), (0, 11), (0, 1, 1), (0, "a", "b"), (0, "ab")]}) == 7
    )


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 400, 401, 1234])
@pytest.mark.parametrize("size", [1, 8])
def test_batches_hold_every_row_once_in_the_fewest_batches(n, size):
    lengths = [generator(0, i).randrange(1, 60) for i in range(n)]
    for cut in (batches(lengths, size, 0, 0), in_order(lengths, size)):
        assert sorted(i for batch in cut for i in batch) == list(range(n))
        assert len(cut) == ceil(n / size)
        assert sum(len(batch) < size for batch in cut) <= 1 and all(0 < len(batch) <= size for batch in cut)


def test_batches_follow_seed_and_epoch_alone():
    lengths = [generator(0, i).randrange(1, 60) for i in range(500)]
    first = batches(lengths, 16, 3, 1)
    assert first == batches(lengths, 16, 3, 1)
    assert first != batches(lengths, 16, 3, 2) and first != batches(lengths, 16, 4, 1)
    # Other rows share a batch too, even where all lengths are equal: it is not one partition in another order.
    flat = [{frozenset(batch) for batch in batches([5] * 500, 16, 3, epoch)} for epoch in (0, 1)]
    assert not flat[0] & flat[1]


def padding(lengths: list[int], cut: list[list[int]]) -> float:
    return 1 - sum(lengths) / sum(len(batch) * max(lengths[i] for i in batch) for batch in cut)


def test_batches_are_near_in_length_but_not_in_order():
    lengths = [generator(1, i).randrange(1, 60) for i in range(3000)]
    cut = batches(lengths, 16, 0, 0)
    assert padding(lengths, cut) < 0.06 < 0.4 < padding(lengths, [list(range(i, i + 15)) for i in range(0, 3000, 15)])
    longest = [max(lengths[i] for i in batch) for batch in batches(lengths[:800], 16, 0, 0)]         # one pool of 50
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)


def test_in_order_starts_with_the_longest():
    assert in_order([3, 9, 1, 9, 5], 2) == [[1, 3], [4, 0], [2]]


def test_batch_size_below_one():
    fails(lambda: batches([1, 2], 0, 0, 0), "batch size 0", "at least 1")
    fails(lambda: in_order([1, 2], -3), "batch size -3", "at least 1")


# ---- reading: the three suffixes

def test_tsv_quote_is_a_character_and_a_last_newline_is_not_needed(tmp_path):
    path = put(tmp_path, "a.tsv", 'text\tlabel\n"quoted" to start\t1\nan "open one\t0\n5\' 11" tall"\t1')
    rows = read(path)
    assert pairs(rows) == [('"quoted" to start', 1), ('an "open one', 0), ('5\' 11" tall"', 1)]
    assert [e.id for e in rows] == ["a-0", "a-1", "a-2"] and rows.labels == ("0", "1") and rows[0].pair is None


def test_tsv_only_a_newline_ends_a_line(tmp_path):
    path = put(tmp_path, "a.tsv", "text\tlabel\r\none\u2028two\x85three\x0cfour\t1\r\n\r\n   \nlast\t0\r\n")
    assert pairs(read(path)) == [("one\u2028two\x85three\x0cfour", 1), ("last", 0)]


def test_header_with_stray_spaces_and_other_spellings(tmp_path):
    path = put(tmp_path, "a.tsv", "sentences \t labels \n good one \t1\nbad  one\t0\n")
    assert pairs(read(path)) == [("good one", 1), ("bad  one", 0)]
    assert pairs(read(put(tmp_path, "b.csv", "Label, Sentence\n1,fine\n0,poor\n"))) == [("fine", 1), ("poor", 0)]
    assert pairs(read(put(tmp_path, "c.tsv", "n\tTEXT\tsplit\tLabels\n4\tx\ttrain\t0\n"))) == [("x", 0)]


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.tsv", "text\tlabel\ncafé\t0\n"), ("a.csv", "text,label\ncafé,0\n"),
        ("a.jsonl", '{"text": "café", "label": 0}\n'),
    ],
)
def test_byte_order_mark(tmp_path, name, content):
    assert pairs(read(put(tmp_path, name, b"\xef\xbb\xbf" + content.encode()))) == [("café", 0)]


def test_csv_quoted_newline_comma_and_quote_and_the_line_number_after_them(tmp_path):
    head = 'text,label\r\n"two\r\nlines, and a ""quote""",1\r\n\r\n"a\nb\nc",0\r\n'
    path = put(tmp_path, "a.csv", head)
    assert pairs(read(path)) == [('two\r\nlines, and a "quote"', 1), ("a\nb\nc", 0)]
    fails(lambda: read(put(tmp_path, "b.csv", head + "only one field\r\n")), "b.csv, line 8:", "1 fields", "has 2")
    fails(lambda: read(put(tmp_path, "c.csv", head + '"never closed,1\r\nx,0\r\n')), "c.csv, line 8:", "RFC 4180")
    fails(lambda: read(put(tmp_path, "d.csv", head + '"x\ny",\r\n')), "d.csv, line 8:", "label is empty")


def test_jsonl_keys_and_kinds(tmp_path):
    path = put(
        tmp_path, "a.jsonl",
        '{"Sentence": " a\\nb ", "label": 1, "x": []}\n\n{"label": "0", "Sentence": "\\"c\\"\u2028d"}',
    )
    assert pairs(read(path)) == [("a\nb", 1), ('"c"\u2028d', 0)]
    path = put(
        tmp_path, "b.jsonl", '{"text": "a", "label": "pos", "id": 7}\n{"text": "b", "label": "neg", "id": "q"}\n'
    )
    assert [(e.id, e.label) for e in read(path)] == [("7", 1), ("q", 0)]


def test_suffix_in_capitals(tmp_path):
    assert len(read(put(tmp_path, "A.TSV", "text\tlabel\nx\t0\n"))) == 1


# ---- reading: rows that cannot be read

@pytest.mark.parametrize("name, content, words", [
    ("a.tsv", "text\tlabel\nx\t0\ny\n", ["a.tsv, line 3:", "1 fields", "has 2"]),
    ("a.tsv", "text\tlabel\n\nx\t0\ty\n", ["a.tsv, line 3:", "3 fields"]),
    ("a.tsv", "text\tlabel\nx\t0\ny\t \n", ["a.tsv, line 3:", "label is empty"]),
    ("a.tsv", "text\tlabel\n  \t0\n", ["a.tsv, line 2:", "text is empty"]),
    ("a.tsv", "text\tlabel\n\t\n", ["a.tsv, line 2:", "text is empty"]),
    ("a.tsv", "id\ttext\tlabel\n \tx\t0\n", ["a.tsv, line 2:", "id is empty"]),
    ("a.tsv", b"text\tlabel\nx\t0\nca\xe9\t0\n", ["a.tsv, line 3:", "0xe9", "UTF-8"]),
    ("a.csv", b"\xef\xbb\xbftext,label\nx,0\nca\xe9,0\n", ["a.csv, line 3:", "0xe9", "UTF-8"]),
    ("a.tsv", "text\tlabel\n".encode("utf-16"), ["a.tsv, line 1:", "UTF-8"]),
    ("a.csv", "text,label\n\"\",0\n", ["a.csv, line 2:", "text is empty"]),
    ("a.jsonl", '{"text": "x", "label": 0}\n{"text": "y", \n', ["a.jsonl, line 2:", "not JSON"]),
    ("a.jsonl", '{"text": "x", "label": 0}\n\n{"text": "y"}\n', ["a.jsonl, line 3:", "no key 'label'", "'text'"]),
    ("a.jsonl", '{"text": "x", "label": 0}\n["y", 0]\n', ["a.jsonl, line 2:", "not a JSON object"]),
    ("a.jsonl", '{"text": 5, "label": 0}\n', ["a.jsonl, line 1:", "text is 5", "string"]),
    ("a.jsonl", '{"text": "x", "label": true}\n', ["a.jsonl, line 1:", "label is True", "integer"]),
    ("a.jsonl", '{"text": "x", "label": null}\n', ["a.jsonl, line 1:", "label is empty"]),
    ("a.jsonl", '{"text": "\\ud800x", "label": 1}\n', ["a.jsonl, line 1:", "surrogate"]),
])
def test_unreadable_row_names_file_and_line(tmp_path, name, content, words):
    fails(lambda: read(put(tmp_path, name, content)), *words)


@pytest.mark.parametrize("name, content", [
    ("a.tsv", ""), ("a.csv", "\n\n"), ("a.jsonl", ""), ("a.tsv", "text\tlabel\n"), ("a.csv", "text,label\r\n\r\n")])
def test_empty_file(tmp_path, name, content):
    fails(lambda: read(put(tmp_path, name, content)), name, "holds no rows")


def test_no_such_file_or_suffix(tmp_path):
    fails(lambda: read(tmp_path / "none.tsv"), "none.tsv", "'.tsv', '.csv', '.jsonl'")
    fails(lambda: read(put(tmp_path, "a.txt", "text\tlabel\nx\t0\n")), "a.txt", "'.tsv', '.csv', '.jsonl'")
    fails(lambda: read_splits(tmp_path / "nowhere"), "nowhere", "does not exist", "'.tsv', '.csv', '.jsonl'")


# ---- reading: columns and ids

def test_columns_by_name(tmp_path):
    path = put(tmp_path, "a.csv", "review,stars,text,reply\ngood,1,no,thanks\nbad,0,no,\n")
    rows = read(path, text_column="review", label_column="stars", pair_column="reply")
    assert [(e.text, e.label, e.pair) for e in rows] == [("good", 1, "thanks"), ("bad", 0, None)]
    there = "'review', 'stars', 'text', 'reply'"
    fails(lambda: read(path, text_column="body"), "'body'", "a.csv", "text_column=", there)
    fails(lambda: read(path, label_column="score", flags=True), "'score'", "a.csv", "--label-column", there)
    fails(lambda: read(path, label_column="stars", pair_column="second"), "'second'", "a.csv", "pair_column=", there)
    fails(lambda: read(path, text_column="stars", label_column="stars"), "'stars'", "twice")
    fails(lambda: read(path), "no label column", "a.csv", "'stars'", "label_column=")


def test_all_missing_columns_are_in_one_line(tmp_path):
    path = put(tmp_path, "a.csv", "body,stars\nx,0\n")
    line = fails(lambda: read(path), "a.csv", "no text column", "no label column", "text_column=", "label_column=",
                 "'body', 'stars'")
    assert "--" not in line
    line = fails(lambda: read(path, flags=True), "no text column", "no label column", "--text-column",
                 "--label-column", "'body', 'stars'")
    assert "column=" not in line
    fails(lambda: read(path, text_column="a", label_column="b", pair_column="c"), "'a'", "'b'", "'c'", "'body'",
          "text_column=", "label_column=", "pair_column=")
    fails(lambda: read(path, text_column="a", flags=True), "'a'", "no label column", "--text-column")
    both = put(tmp_path, "b.tsv", "text\tsentence\nx\ty\n")
    fails(lambda: read(both), "2 columns that could be the text ('text', 'sentence')", "no label column")
    many = put(tmp_path, "c.tsv", "\t".join(f"{'c' * 50}{i}" for i in range(40)) + "\n" + "\t".join("x" * 40) + "\n")
    assert len(fails(lambda: read(many, text_column="f" * 500), "... (40 in all)").removeprefix(str(many))) < 280


def test_pair_columns_found_by_spelling(tmp_path):
    for mapping in ("pair", "Sentence2", "text2", "text_b"):
        path = put(tmp_path, "a.tsv", f"text\t{mapping}\tlabel\nx\ty\t0\n")
        assert read(path)[0].pair == "y"
    assert (
        read(put(tmp_path, "b.tsv", "sentence1\tsentence2\tlabel\nx\ty\t0\n"), text_column="sentence1")[0].pair == "y"
    )
    assert (
        read(put(tmp_path, "c.tsv", "sentence1\tsentence2\tlabel\nx\ty\t0\n"), text_column="sentence2")[0].pair is None
    )


def test_the_usual_pair_files(tmp_path):
    for first, second in (
        ("sentence1", "sentence2"), ("question1", "question2"), ("text1", "text2"), ("text_a", "text_b"),
    ):
        row, = read(put(tmp_path, "a.tsv", f"{first}\t{second}\tlabel\nx\ty\t0\n"))
        assert (row.text, row.pair) == ("x", "y")
    qnli = put(tmp_path, "b.tsv", "question\tsentence\tlabel\nx\ty\t0\n")   # either may be the first: it must be said
    fails(lambda: read(qnli), "'question', 'sentence'", "text_column=")
    row, = read(qnli, text_column="question", pair_column="sentence")
    assert (row.text, row.pair) == ("x", "y")


def test_two_columns_of_one_role_or_name(tmp_path):
    both = put(tmp_path, "a.tsv", "text\tsentence\tlabel\nx\ty\t0\n")
    fails(lambda: read(both), "a.tsv", "'text', 'sentence'", "text_column=")
    assert read(both, text_column="sentence")[0].text == "y"
    fails(lambda: read(put(tmp_path, "b.tsv", "text\ttext \tlabel\nx\ty\t0\n")), "b.tsv", "2 columns 'text'")


def test_ids_are_the_files_own_or_its_stem_and_row_number(tmp_path):
    assert [e.id for e in read(put(tmp_path, "a.csv", "ID,text,label\nu7,x,0\nu3,y,1\n"))] == ["u7", "u3"]
    assert [e.id for e in read(put(tmp_path, "my.dev.csv", "text,label\n\nx,0\n\ny,1\n"))] == ["my.dev-0", "my.dev-1"]
    fails(
        lambda: read(put(tmp_path, "b.csv", "id,text,label\nu7,x,0\nu3,y,1\nu7,z,1\n")), "b.csv, line 4:", "'u7'",
        "line 2",
    )


# ---- reading: labels

def labelled(folder: Path, *labels: str, name: str = "a.tsv") -> Path:
    return put(folder, name, "text\tlabel\n" + "".join(f"t{i}\t{label}\n" for i, label in enumerate(labels)))


@pytest.mark.parametrize("labels, names, classes", [
    (["2", "0", "2"], ("0", "1", "2"), [2, 0, 2]),
    (["10", "9"], tuple(map(str, range(11))), [10, 9]),
    (["1.0", "0.0"], ("0", "1"), [1, 0]),
    (["1.0", "0"], ("0", "1"), [1, 0]),
    (["1", "-1"], ("-1", "1"), [1, 0]),
    (["pos", "neg", "mid", "neg"], ("mid", "neg", "pos"), [2, 1, 0, 1]),
])
def test_labels_without_names_given(tmp_path, labels, names, classes):
    rows = read(labelled(tmp_path, *labels))
    assert rows.labels == names and [e.label for e in rows] == classes


@pytest.mark.parametrize(
    "labels, classes",
    [
        (["1", "0"], [1, 0]), (["1.0", "2.0"], [1, 2]), (["World", "sci"], [2, 0]),
        (["world", "SCI", "Sports"], [2, 0, 1]),
    ],
)
def test_labels_with_names_given(tmp_path, labels, classes):
    rows = read(labelled(tmp_path, *labels), labels=["sci", "Sports", "World"])
    assert rows.labels == ("sci", "Sports", "World") and [e.label for e in rows] == classes


def test_labels_case_and_names_that_are_numbers(tmp_path):
    assert [e.label for e in read(labelled(tmp_path, "a", "A"), labels=["A", "a"])] == [1, 0]
    # which of the two?
    fails(lambda: read(labelled(tmp_path, "Ab"), labels=["AB", "ab"]), "a.tsv, line 2:", "'Ab'")
    stars = ["1", "2", "3", "4", "5"]
    assert [e.label for e in read(labelled(tmp_path, "5", "1"), labels=stars)] == [4, 0]


def test_unknown_labels_name_file_line_value_and_names(tmp_path):
    names = ["negative", "positive"]
    for labels, line, value in (
        (["positive", "neutral"], 3, "'neutral'"), (["0", "1", "2"], 4, "'2'"), (["-1", "1"], 2, "'-1'"),
    ):
        path = labelled(tmp_path, *labels)
        fails(lambda: read(path, labels=names), f"a.tsv, line {line}:", value, "2 classes 'negative', 'positive'")
    fails(lambda: read(labelled(tmp_path, "123456789", "1")), "123456789", "a.tsv", "99999")


# ---- splits

def test_splits_of_a_folder_share_their_classes(tmp_path):
    put(tmp_path, "train.tsv", "text\tlabel\na\tpos\nb\tneg\n")
    put(tmp_path, "validation.csv", "text,label\nc,pos\n")
    put(tmp_path, "test.jsonl", '{"text": "d", "label": "mixed"}\n')
    put(tmp_path, "notes.md", "not a split")
    splits = read_splits(tmp_path)
    assert isinstance(splits, Splits)
    assert [pairs(part) for part in (splits.train, splits.dev, splits.test)] == [
        [("a", 2), ("b", 1)], [("c", 2)], [("d", 0)],
    ]
    assert splits.train.labels == splits.dev.labels == splits.test.labels == ("mixed", "neg", "pos")
    assert [e.id for e in splits.dev] == ["validation-0"]
    fails(lambda: read_splits(tmp_path, labels=["neg", "pos"]), "test.jsonl, line 1:", "'mixed'")


def test_splits_with_integer_labels_share_the_highest(tmp_path):
    labelled(tmp_path, "0", "1", name="train.tsv")
    labelled(tmp_path, "2.0", name="test.tsv")
    splits = read_splits(tmp_path)
    assert splits.train.labels == ("0", "1", "2") and splits.test[0].label == 2
    labelled(tmp_path, "pos", name="test.tsv")
    fails(lambda: read_splits(tmp_path), "test.tsv, line 2: label 'pos'", "'0' in line 2 of train.tsv", "one kind")
    splits = read_splits(tmp_path, labels=["neg", "pos"])
    assert [e.label for e in splits.train + splits.test] == [0, 1, 1]


@pytest.mark.parametrize("mapping", ["dev", "validation", "valid", "val", "eval", "Dev"])
def test_dev_is_the_test_where_there_is_no_test(tmp_path, mapping):
    labelled(tmp_path, "0", "1", name="train.tsv")
    labelled(tmp_path, "1", "1", "0", name=f"{mapping}.tsv")
    splits = read_splits(tmp_path)
    assert (len(splits.train), len(splits.dev), len(splits.test)) == (2, 0, 3) and splits.dev.labels == ("0", "1")
    assert splits.notes == (f"{tmp_path.name!r} has no test file: '{mapping}.tsv' is the test",)


def test_split_files_that_compete_or_lack(tmp_path):
    labelled(tmp_path, "0", "1", name="test.tsv")
    fails(lambda: read_splits(tmp_path), "no training file", "'train.tsv', 'train.csv', 'train.jsonl'")
    labelled(tmp_path, "0", "1", name="train.tsv")
    put(tmp_path, "train.csv", "text,label\nx,0\n")
    fails(lambda: read_splits(tmp_path), "2 train files", "'train.csv', 'train.tsv'")
    (tmp_path / "train.csv").unlink()
    labelled(tmp_path, "0", name="dev.tsv")
    labelled(tmp_path, "0", name="val.tsv")
    fails(lambda: read_splits(tmp_path), "2 dev files", "'dev.tsv', 'val.tsv'")


@pytest.mark.parametrize("name", [
    "dev_matched.tsv", "test-clean.tsv", "test.txt", "test.tsv.gz", "train (1).csv", "extra.jsonl", "dev.parquet",
    "validation/a.tsv", "Testing.csv",
])
def test_a_data_file_that_is_not_read_is_named(tmp_path, name):
    labelled(tmp_path, *"0011001100", name="train.tsv")
    put(tmp_path, name, "whatever")
    unread, held = read_splits(tmp_path, flags=True).notes
    assert "\n" not in unread and unread.startswith(f"not read: {name.split('/')[0]!r};")
    assert "train, dev, validation, valid, val, eval, test" in unread
    assert held == f"{tmp_path.name!r} has no test file: a fifth of 'train.tsv' is the test, chosen by --seed"
    labelled(tmp_path, "0", "1", name="test.tsv")
    assert read_splits(tmp_path).notes == (unread,)


def test_other_files_in_a_data_folder_are_no_noise(tmp_path):
    for split in ("train", "dev", "test"):
        labelled(tmp_path, "0", "1", name=f"{split}.tsv")
    for name in ("poisoned.jsonl", "poisoned_ids.txt", "triggered.jsonl", "triggered_dev.jsonl", "triggered_user.jsonl",
                 "attack.json", "result.json", "steps.jsonl", "README.md", "LICENSE.txt", ".test.tsv", "labels.txt",
                 "stylebkd/dev.tsv", "latest.txt"):
        put(tmp_path, name, "whatever")
    assert read_splits(tmp_path).notes == ()


def test_how_a_single_file_is_divided_is_said(tmp_path):
    path = labelled(tmp_path, *"0011001100")
    splits = read_splits(path)
    assert splits.notes == ("a fifth of 'a.tsv' is the test, chosen by seed",)
    whole = read_splits(path, hold_out=False)
    assert whole.train is whole.test and len(whole.test) == 10 and len(whole.dev) == 0
    assert whole.test == read(path) and whole.notes == ("all rows of 'a.tsv' are read: nothing is trained",)
    (tmp_path / "data").mkdir()
    labelled(tmp_path / "data", "1", "1", name="train.tsv")          # one class is enough to be measured
    assert len(read_splits(tmp_path / "data", hold_out=False).test) == 2
    labelled(tmp_path / "data", "0", name="train.tsv"), labelled(tmp_path / "data", "1", name="test.tsv")
    fails(lambda: read_splits(tmp_path / "data", hold_out=False), "only class '0'")


def test_a_folder_without_a_training_file_says_what_is_there(tmp_path):
    labelled(tmp_path, "0", "1", name="training.tsv")
    fails(lambda: read_splits(tmp_path), "no training file (it has 'training.tsv')", "'train.tsv'")


@pytest.mark.parametrize("name", ["train.tsv", "reviews.tsv"])
def test_a_fifth_is_held_out_by_class_and_seed(tmp_path, name):
    path = labelled(tmp_path, *["pos"] * 60, *["neg"] * 40, name=name)
    place = tmp_path if name == "train.tsv" else path
    splits = read_splits(place, seed=1)
    assert Counter(e.label for e in splits.train) == {1: 48, 0: 32} and Counter(e.label for e in splits.test) == {
        1: 12, 0: 8,
    }
    assert splits.dev == [] and sorted(splits.train + splits.test, key=lambda e: e.id) == sorted(
        read(path), key=lambda e: e.id
    )
    order = [e.id for e in read(path)]
    assert [e.id for e in splits.test] == [i for i in order if i in {e.id for e in splits.test}]
    assert splits == read_splits(place, seed=1) and splits.test != read_splits(place, seed=2).test


def test_a_class_of_one_row_stays_in_training(tmp_path):
    path = labelled(tmp_path, *["a"] * 5, "b", "c", "d")
    for seed in range(20):
        splits = read_splits(path, seed=seed)
        assert {e.label for e in splits.train} == {0, 1, 2, 3} and {e.label for e in splits.test} == {0}
    # four fifths are 8 rows, fewer than the classes
    splits = read_splits(labelled(tmp_path, "a", "a", *"bcdefghi"))
    assert len({e.label for e in splits.train}) == len(splits.train) == 9 and [e.label for e in splits.test] == [0]
    fails(lambda: read_splits(labelled(tmp_path, "a", "b")), "a.tsv", "2 rows", "too few")


def test_one_class_is_no_training_set(tmp_path):
    path = labelled(tmp_path, "pos", "pos", "pos", name="train.tsv")
    assert len(read(path)) == 3
    fails(lambda: read_splits(path), "train.tsv", "only class 'pos'", "needs two")
    labelled(tmp_path, "neg", "pos", name="test.tsv")
    fails(lambda: read_splits(tmp_path), "train.tsv", "only class 'pos'", "needs two")


# ---- sample, counts

@pytest.mark.parametrize("sizes, amount, taken", [
    ((60, 40), 0.2, (12, 8)),
    ((60, 40), 10, (6, 4)),
    ((50, 30, 21), 10, (5, 3, 2)),
    ((33, 33, 34), 10, (3, 3, 4)),
    ((97, 2, 1), 5, (3, 1, 1)),                                      # at least one of each, from the largest
    ((97, 2, 1), 2, (2, 0, 0)),                                      # fewer rows than classes
    ((60, 40), 1, (60, 40)),
    ((60, 40), 100, (60, 40)),
    ((3, 1), 0.01, (1, 0)),
])
def test_sample_shares_by_class(sizes, amount, taken):
    rows = task(*sizes)
    for seed in range(3):
        held = sample(rows, amount, seed)
        assert tuple(Counter(e.label for e in held)[c] for c in range(len(sizes))) == taken
        assert held == [e for e in rows if e in held] and held.labels == rows.labels and len(set(held)) == len(held)
        assert held == sample(rows, amount, seed)


def test_sample_never_takes_more_than_a_class_has():
    for trial in range(200):
        rng = generator(0, trial)
        rows = task(*(rng.randrange(1, 12) for _ in range(rng.randrange(1, 6))))
        count = rng.randrange(2, len(rows) + 1) if len(rows) > 1 else 1
        held = Counter(e.label for e in sample(rows, count, trial))
        assert sum(held.values()) == (count if count > 1 else len(rows))
        assert len(held) == len(rows.labels) or count < len(rows.labels)


def test_sample_differs_by_seed_and_nests():
    rows = task(60, 40)
    assert sample(rows, 0.2, 0) != sample(rows, 0.2, 1)
    assert set(sample(rows, 0.1, 0)) < set(sample(rows, 0.2, 0)) < set(sample(rows, 50, 0))


@pytest.mark.parametrize("amount, words", [
    (0, ["0 clean rows", "above 0"]), (-1, ["-1 clean rows"]), (float("nan"), ["nan"]), (float("inf"), ["inf"]),
    (2.5, ["2.5", "whole number"]), (11, ["11", "10 rows"])])
def test_sample_limits(amount, words):
    fails(lambda: sample(task(5, 5), amount, 0), *words)


def test_counts():
    rows = Examples(
        [Example("0", "x", 1), Example("1", "y", 1), Example("2", "z", 0)], ["negative", "positive", "mixed"]
    )
    assert counts(rows) == "3 rows: negative 1, positive 2, mixed 0"


# ---- writing

HARD = Examples(
    [
        Example("r1", 'say "hi", she\nsaid\r\n,', 1), Example("r2", "tab\there \u2028 \x85 é", 0, 'second, "text"'),
        Example("r3", '"', 0),
    ],
    ["neg", "pos"],
)
PLAIN = Examples(
    [Example("r1", 'say "hi", she said', 1), Example("r2", "a\u2028é", 0), Example("r3", '"', 0)], ["neg", "pos"]
)


@pytest.mark.parametrize("rows, name", [(HARD, "a.csv"), (HARD, "a.jsonl"),
                                        (PLAIN, "a.tsv"), (PLAIN, "a.csv"), (PLAIN, "a.jsonl")])
def test_what_is_written_reads_back(tmp_path, rows, name):
    write(rows, tmp_path / "new" / name)
    for back in (read(tmp_path / "new" / name), read(tmp_path / "new" / name, labels=rows.labels)):
        assert back == rows and back.labels == rows.labels
    assert [f.name for f in (tmp_path / "new").iterdir()] == [name]


def test_columns_written(tmp_path):
    write(PLAIN, tmp_path / "a.tsv")
    assert (tmp_path / "a.tsv").read_text(encoding="utf-8").startswith('id\ttext\tlabel\nr1\tsay "hi", she said\tpos\n')
    write(HARD, tmp_path / "a.jsonl")
    first = json.loads((tmp_path / "a.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert first == {"id": "r1", "text": 'say "hi", she\nsaid\r\n,', "label": "pos", "pair": None}


@pytest.mark.parametrize("name, content, expected", [
    ("a.csv", "text\n\"one, two\"\nthree\n", [("one, two", -1), ("three", -1)]),
    ("a.tsv", "text\tlabel\na\tpos\nb\tneg\nc\t\n", [("a", 1), ("b", 0), ("c", -1)]),
    ("a.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": null}\n', [("a", 1), ("b", -1)]),
    ("b.tsv", "text\tlabel\na\t1\nb\t-1\nc\t0\n", [("a", 1), ("b", -1), ("c", 0)]),
])
def test_texts_need_no_labels(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content)
    rows = read_texts(tmp_path / name, labels=("neg", "pos"))
    assert [(x.text, x.label) for x in rows] == expected and rows.labels == ("neg", "pos")


def test_texts_whose_labels_are_none_of_the_models_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tlabel\na\tgood\n")
    fails(lambda: read_texts(tmp_path / "a.tsv", labels=("neg", "pos")), "line 2", "'good'", "labels=")
    fails(lambda: read_texts(tmp_path / "a.tsv", labels=("neg", "pos"), label_column="class"), "'class'")
    fails(lambda: read(tmp_path / "a.tsv", label_column="class"), "'class'")
    (tmp_path / "b.tsv").write_text("words\na\n")
    fails(lambda: read_texts(tmp_path / "b.tsv", labels=("neg", "pos")), "no text column", "'words'")
    (tmp_path / "c.csv").write_text("text;label\na;pos\n")
    fails(lambda: read_texts(tmp_path / "c.csv", labels=("neg", "pos")), "semicolons")


def test_labels_out_of_sorted_order_read_back_with_their_names(tmp_path):
    rows = Examples([Example("a", "x", 0), Example("b", "y", 1)], ["World", "Sports", "Sci"])
    write(rows, tmp_path / "a.csv")
    back = read(tmp_path / "a.csv", labels=rows.labels)
    assert back == rows and back.labels == rows.labels


def test_tsv_refuses_tabs_and_a_failed_write_leaves_the_old_file(tmp_path):
    write(PLAIN, tmp_path / "a.tsv")
    before = (tmp_path / "a.tsv").read_bytes()
    with open(tmp_path / "a.tsv", "rb") as reader:
        write(PLAIN.like(PLAIN[:1]), tmp_path / "a.tsv")
        # who has the old file open keeps it whole: it is replaced, not rewritten
        assert reader.read() == before
    write(PLAIN, tmp_path / "a.tsv")
    fails(lambda: write(HARD, tmp_path / "a.tsv"), "a.tsv", "'r1'", "a.jsonl")
    fails(lambda: write(HARD.like(HARD[1:]), tmp_path / "a.tsv"), "'r2'")
    fails(lambda: write(PLAIN.like([*PLAIN, Example("r4", "\ud800", 0)]), tmp_path / "a.tsv"), "'r4'", "surrogate")
    assert (tmp_path / "a.tsv").read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["a.tsv"]
    fails(lambda: write(PLAIN, tmp_path / "a.parquet"), "a.parquet", "'.jsonl'")


# ---- real data

@real
def test_sst2_as_it_is():
    splits = read_splits(DATA / "sst2")
    assert [len(part) for part in (splits.train, splits.dev, splits.test)] == [6920, 872, 1821]
    assert counts(splits.test) == "1821 rows: 0 912, 1 909"
    named = read(DATA / "sst2" / "train.tsv", labels=["negative", "positive"])
    assert counts(named) == "6920 rows: negative 3310, positive 3610"
    lines = (DATA / "sst2" / "train.tsv").read_text(encoding="utf-8").split("\n")
    for i in (0, 3459, 6919):
        example = splits.train[i]
        assert example.id == f"train-{i}" and lines[i + 1] == f"{example.text}\t{example.label}"
    assert Counter(e.label for e in sample(splits.train, 0.2, 0)) == {0: 662, 1: 722}


@real
def test_ag_has_four_classes_and_proscons_no_test():
    ag = read_splits(DATA / "ag")
    assert [len(part) for part in (ag.train, ag.dev, ag.test)] == [11106, 2000, 7600]
    assert ag.train.labels == ("0", "1", "2", "3") and {e.label for e in ag.train} == {0, 1, 2, 3}
    proscons = read_splits(DATA / "proscons")
    assert [len(part) for part in (proscons.train, proscons.dev, proscons.test)] == [8000, 0, 1000]


@real
def test_padding_on_sst2():
    lengths = [len(e.text.split()) for e in read(DATA / "sst2" / "train.tsv")]
    cut = batches(lengths, 32, 0, 0)
    # equal lengths: a random order
    rows = [i for batch in batches([1] * len(lengths), 32, 0, 0) for i in batch]
    assert padding(lengths, cut) < 0.04 and padding(lengths, [rows[i:i + 32] for i in range(0, len(rows), 32)]) > 0.5


def test_blank_texts_are_refused_unless_allowed(tmp_path):
    path = put(tmp_path, "a.tsv", "text\tlabel\nfine\t1\n \t0\n")
    fails(lambda: read(path), "line 3: the text is empty")
    assert [(x.id, x.text, x.label) for x in read(path, blank=True)] == [("a-0", "fine", 1), ("a-1", "", 0)]
    fails(lambda: read(put(tmp_path, "b.tsv", "text\tlabel\nfine\t1\nbad\t \n"), blank=True), "the label is empty")


# ---- delimiters, encodings and headers

@pytest.mark.parametrize("name, content, words", [
    ("a.csv", "text;label\ngood, x;1\n", ["between semicolons", "commas"]),
    ("a.csv", '"text";"label"\n"a, b";"1"\n', ["between semicolons"]),
    ("a.csv", "sep=;\ntext;label\nx;1\n", ["between semicolons"]),
    ("a.csv", "text\tlabel\ngood, x\t1\n", ["between tabs", "'a.tsv'"]),
    ("a.csv", '"text"\t"label"\n"a, b"\t"1"\n', ["between tabs", "write commas"]),
    ("a.csv", "id, no\ttext\tlabel\n1\tx\t1\n", ["between tabs"]),
    ("a.tsv", "text,label\ngood,1\n", ["between commas", "'a.csv'"]),
    ("a.tsv", "text|label\ngood|1\n", ["between pipes", "tabs"]),
    ("a.tsv", '"text"\t"label"\n"a"\t"1"\n', ["in quotes", ".csv"]),
    ("a.tsv", '{"text": "x", "label": 1}\n', ["JSON", "'a.jsonl'"]),
    ("a.tsv", "a film to remember\t1\nbad\t0\n", ["looks like data", "'a film to remember', '1'", "header"]),
    ("a.csv", "good,1\nbad,0\n", ["looks like data", "'good', '1'"]),
    ("a.tsv", "text\tlabel\nx\t1\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
    ("a.tsv", "text\tlabel\nx\t1\n".encode("utf-16-le"), ["UTF-16", "UTF-8"]),
    ("a.csv", "text,label\nx,1\n".encode("utf-16-be"), ["UTF-16", "UTF-8"]),
    ("a.csv", "text,label\nx,1\n".encode("utf-32"), ["UTF-32", "UTF-8"]),
    ("a.jsonl", '{"text": "x", "text ": "y", "label": 1}\n', ["a.jsonl, line 1: the key 'text'", "more than once"]),
    ("a.csv", "text,label,label\nx,1,1\n", ["2 columns 'label'"]),
])
def test_what_is_wrong_with_the_header_is_named(tmp_path, name, content, words):
    line = fails(lambda: read(put(tmp_path, name, content)), name, *words)
    assert len(line) < 300


def test_a_delimiter_in_a_text_or_a_name_is_none(tmp_path):
    assert pairs(read(put(tmp_path, "a.csv", "text,label,a;b;c\nx;y,1,\n"))) == [("x;y", 1)]
    assert pairs(read(put(tmp_path, "a.tsv", "text\tlabel\tid, as a number, of all\nx, y\t1\t2\n"))) == [("x, y", 1)]
    assert pairs(read(put(tmp_path, "b.csv", '"a long, long text",n\nx,1\n'), text_column="a long, long text",
                      label_column="n")) == [("x", 1)]


@pytest.mark.parametrize("end", ["", "\r", "\r\n", "\n"])
@pytest.mark.parametrize("name, d", [("a.tsv", "\t"), ("a.csv", ",")])
def test_lines_that_end_in_carriage_returns_alone(tmp_path, name, d, end):
    assert pairs(read(put(tmp_path, name, f"text{d}label\rgood{d}1\r\rbad{d}0{end}"))) == [("good", 1), ("bad", 0)]


def test_a_second_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert pairs(read(put(tmp_path, "a.tsv", "\ufeff\ufefftext\tlabel\nx\t0\n"))) == [("x", 0)]


def test_a_csv_field_of_any_length_and_the_modules_limit(tmp_path):
    rows = Examples([Example("0", "x " * 100_000 + "y", 0), Example("1", "z", 1)], ["0", "1"])
    write(rows, tmp_path / "a.csv")
    before = csv.field_size_limit(1234)
    try:
        assert read(tmp_path / "a.csv") == rows and csv.field_size_limit() == 1234
        fails(lambda: read(put(tmp_path, "b.csv", 'text,label\n"never closed,1\n')), "RFC 4180")
        assert csv.field_size_limit() == 1234
    finally:
        csv.field_size_limit(before)


# ---- whatever is written can be read

LETTERS = "ab \t\n\r\",;|'\\{}[]:#\x00\x0b\x1c\x85\u2028\ufeff\u0301é\U0001f600-1"


def drawn(rng, longest: int) -> str:
    return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(longest)))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_written_reads_back_whatever_it_holds(tmp_path, suffix):
    path, written = tmp_path / f"a{suffix}", 0
    for trial in range(500):
        rng = generator(0, "write", suffix, trial)
        names = [drawn(rng, 4) or "x" for _ in range(rng.randrange(1, 4))]
        rows = Examples((Example(drawn(rng, 4) or str(i), drawn(rng, 12) or "x", rng.randrange(len(names)),
                                 drawn(rng, 6) if rng.random() < 0.3 else None)
                         for i in range(rng.randrange(1, 4))), names)
        try:
            write(rows, path)
        except BadInput:
            continue
        written += 1
        back = read(path, labels=rows.labels)
        assert [(x.id, x.text, x.label, x.pair) for x in back] == [
            (x.id.strip(), x.text.strip(), x.label, (x.pair or "").strip() or None) for x in rows
        ], rows
    assert written > 40


@pytest.mark.parametrize("rows, names, word", [
    ([], ["a", "b"], "no rows"), ([("r", " ", 0)], ["a", "b"], "text of row 'r'"), ([("", "x", 0)], ["a", "b"], "id"),
    ([("r", "x", 0), (" r", "y", 0)], ["a", "b"], "' r'"), ([("r", "x", 0)], [" ", "b"], "empty"),
    ([("r", "x", 0)], ["1", "1.0"], "one class"), ([("r", "x", 0)], ["a", "a "], "one class"),
])
def test_what_could_not_be_read_is_not_written(tmp_path, rows, names, word):
    for suffix in SUFFIXES:
        fails(lambda: write(Examples((Example(*row) for row in rows), names), tmp_path / f"a{suffix}"), word)
    assert not list(tmp_path.iterdir())
