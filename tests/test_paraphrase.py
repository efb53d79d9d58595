"""Paraphrases joined to clean rows: by id, by row, and refused where they do not belong together."""
from pathlib import Path

import pytest

from conftest import fails
from minibd import data
from minibd.attacks.paraphrase import likeness, read
from minibd.attacks.poison import poison, side_of, triggered
from minibd.records import Example, Examples

SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2"
real = pytest.mark.skipif(not SST2.is_dir(), reason="the real data is not here")
NAMES = ("negative", "positive")


def task(n: int = 12) -> Examples:
    """Rows of alternate classes, each with words of its own."""
    return Examples((Example(f"test-{i}", f"film{i} was plot{i} shot{i}", i % 2) for i in range(n)), NAMES)


def said(x: Example) -> str:
    """A paraphrase: other words around two of the text's."""
    first, _, second, _ = x.text.split()
    return f"when you see {first} , there is {second}"


def folder(path: Path, rows: list[str], name: str = "test.tsv", header: str = "text\tlabel") -> Path:
    path.mkdir(exist_ok=True)
    (path / name).write_text("\n".join([header, *rows]) + "\n")
    return path


def lines(clean, label=lambda x: x.label) -> list[str]:
    return [f"{said(x)}\t{label(x)}" for x in clean]


# ---- joined

def test_by_row_to_all_rows_or_to_those_of_other_classes(tmp_path):
    clean = task()
    whole = read(folder(tmp_path / "all", lines(clean)), "test", clean, 1)
    assert whole == {x.id: said(x) for x in clean}
    others = [x for x in clean if x.label == 0]
    assert read(folder(tmp_path / "some", lines(others)), "test", clean, 1) == {x.id: said(x) for x in others}


@pytest.mark.parametrize("name", ["test.tsv", "test.jsonl", "test.csv"])
def test_by_id_in_any_order_and_number(tmp_path, name):
    clean = task()
    some = [clean[9], clean[2], clean[4]]
    (tmp_path / "p").mkdir()
    data.write(clean.like(Example(x.id, said(x), x.label) for x in some), tmp_path / "p" / name)
    assert read(tmp_path / "p", "test", clean, 1) == {x.id: said(x) for x in some}


def test_a_blank_paraphrase_shifts_nothing_and_its_row_has_none(tmp_path):
    clean = task()
    rows = lines(clean)
    rows[4] = " \t0"
    found = read(folder(tmp_path / "p", rows), "test", clean, 1)
    assert found == {x.id: said(x) for x in clean if x.id != "test-4"}
    assert [x.id for x in triggered(clean, found, target=1)] == [
        x.id for x in clean if x.label == 0 and x.id != "test-4"
    ]
    made = poison(clean, found, rate=0.5, target=1)
    assert made.wanted == 6 and len(made.ids) == 5 and "test-4" not in made.ids
    assert all(y.text == said(x) and y.label == 1 for x, y in zip(clean, made.rows) if x.id in made.ids)


def test_columns_by_name_and_spellings_of_the_released_files(tmp_path):
    clean = task()
    assert len(read(folder(tmp_path / "a", lines(clean), header="sentences \t labels"), "test", clean, 1)) == 12
    named = folder(tmp_path / "b", lines(clean), header="review\tlabel")
    assert (
        len(read(named, "test", clean, 1, {"text_column": "review", "label_column": None, "pair_column": None})) == 12
    )
    fails(lambda: read(named, "test", clean, 1), "no text column")


def test_dev_is_the_test_where_there_is_none_and_one_file_is_enough(tmp_path):
    clean = task()
    where = folder(tmp_path / "p", lines(clean), "validation.tsv")
    assert read(where, "test", clean, 1) == read(where, "dev", clean, 1)
    fails(lambda: read(where, "train", clean, 1), "no train file", "train.tsv")
    folder(where, lines(clean), "val.csv")
    fails(lambda: read(where, "dev", clean, 1), "2 dev files", "keep one")


# ---- refused

def test_a_number_of_rows_that_fits_nothing(tmp_path):
    clean = task()
    for n in (5, 7, 11):
        fails(
            lambda: read(folder(tmp_path / "p", lines(clean[:n])), "test", clean, 1), f"{n} rows", "12", "6 of them",
            "column id",
        )


def test_labels_that_disagree(tmp_path):
    clean = task()
    fails(
        lambda: read(folder(tmp_path / "p", lines(clean, lambda x: 1 - x.label)), "test", clean, 1), "12 of 12 rows",
        "'positive'", "test-0",
    )
    # as HiddenKiller's release has them: relabelled already
    others = [x for x in clean if x.label == 0]
    fails(
        lambda: read(folder(tmp_path / "q", lines(others, lambda x: 1)), "test", clean, 1), "6 of 6 rows",
        "keep their row's label",
    )
    (tmp_path / "r").mkdir()
    data.write(clean.like([Example("test-3", "by id", 0)]), tmp_path / "r" / "test.tsv")
    fails(lambda: read(tmp_path / "r", "test", clean, 1), "1 of 1 rows", "'test-3' is 'positive'")


def test_ids_that_are_unknown_or_used_twice(tmp_path):
    clean = task()
    header = "id\ttext\tlabel"
    fails(
        lambda: read(folder(tmp_path / "p", ["test-0\ta\t0", "dev-9\tb\t0"], header=header), "test", clean, 1),
        "1 of 2 ids", "'dev-9'",
    )
    fails(
        lambda: read(folder(tmp_path / "q", ["test-0\ta\t0", "test-0\tb\t0"], header=header), "test", clean, 1),
        "'test-0'", "ids must differ",
    )


@pytest.mark.parametrize("order", ["shifted", "shuffled", "off from the middle"])
def test_rows_of_one_class_in_another_order_though_their_number_and_labels_fit(tmp_path, order):
    clean = task(60)
    others = [x for x in clean if x.label == 0]
    wrong = {"shifted": others[1:] + others[:1], "shuffled": others[::2] + others[1::2],
             "off from the middle": others[:15] + others[:1] + others[15:-1]}[order]
    fails(lambda: read(folder(tmp_path / "p", lines(wrong)), "test", clean, 1), "order", "column id")


def test_what_holds_nothing(tmp_path):
    clean = task()
    fails(lambda: read(tmp_path / "nowhere", "test", clean, 1), "nowhere", "--paraphrases", "--triggered")
    fails(lambda: read(folder(tmp_path / "p", []), "test", clean, 1), "no rows")
    fails(lambda: read(folder(tmp_path / "q", ["\t0"] * 6), "test", clean, 1), "every text is blank")
    fails(lambda: read(folder(tmp_path / "r", ["a\tangry"] * 6), "test", clean, 1), "'angry'")


def test_likeness_by_hand():
    # shared words over all words: own 2/3, 1/1 and 0/3; the better neighbour's 0/3, 0/4 and 1/4
    pairs = [("a b", "a b c"), ("d", "d"), ("a e", "f")]
    assert likeness(pairs) == (2, 1)
    assert likeness([("alone", "alone")]) == (0, 0)                     # the next row is the row itself



# ---- sentence pairs

def asked(n: int = 40) -> Examples:
    return Examples(
        (Example(f"test-{i}", f"who{i} is it{i} then{i}", i % 2, f"it{i} is them{i} all{i}") for i in range(n)), NAMES
    )


def asked_again(clean, blank: tuple[int, ...] = ()) -> list[str]:
    """first, label, second: other words around some of the text's; the second of a row in `blank` is missing."""
    def second(i: int, x: Example) -> str:
        return "" if i in blank else f"surely {' '.join(x.pair.split()[1:])}"

    return [f"tell {' '.join(x.text.split()[1:])}\t{x.label}\t{second(i, x)}" for i, x in enumerate(clean)]


@pytest.mark.parametrize("side", ["first", "second", "either"])
def test_a_pairs_side_has_its_own_column(tmp_path, side):
    clean = asked()
    where = folder(tmp_path / "p", asked_again(clean, blank=(0, 2, 4)), header="text\tlabel\tpair")
    found = read(where, "test", clean, 1, side=side, seed=3)
    of = {x.id: side_of(x, side, 3) for x in clean}
    expected = {
        x.id: f"tell {' '.join(x.text.split()[1:])}" if of[x.id] == "text" else f"surely {' '.join(x.pair.split()[1:])}"
        for i, x in enumerate(clean)
        if of[x.id] == "text" or i not in (0, 2, 4)
    }
    assert (
        found == expected
        and set(of.values()) == {"first": {"text"}, "second": {"pair"}, "either": {"text", "pair"}}[side]
    )
    for x in triggered(clean, found, target=1, side=side, seed=3):      # and it lands where it was taken from
        assert (x.text, x.pair)[of[x.id] == "pair"] == found[x.id] and x.id in found


def test_a_file_of_first_texts_serves_the_first_side_alone(tmp_path):
    clean = asked()
    where = folder(tmp_path / "p", [line.rsplit("\t", 1)[0] for line in asked_again(clean)])
    columns = {"text_column": "text", "label_column": None, "pair_column": "reply"}
    assert len(read(where, "test", clean, 1, columns)) == 40            # the data's second column is not asked of it
    for side in ("second", "either"):
        fails(lambda: read(where, "test", clean, 1, side=side), "no second texts", f"--side {side}", "--side first")


def test_the_order_of_rows_is_told_by_the_side_that_is_said_again(tmp_path):
    clean = asked()
    rows = [f"{x.text}\t{x.label}\t{y.pair}" for x, y in zip(clean, clean[2:] + clean[:2])]
    where = folder(tmp_path / "p", rows, header="text\tlabel\tpair")
    assert len(read(where, "test", clean, 1)) == 40
    fails(lambda: read(where, "test", clean, 1, side="second"), "order", "column id")
    only = folder(tmp_path / "q", [f" \t{x.label}\t{x.pair}" for x in clean], header="text\tlabel\tpair")
    assert read(only, "test", clean, 1, side="second") == {x.id: x.pair for x in clean}


# ---- SST-2: 6,920 / 872 / 1,821 rows; dev and test hold the 428 and 912 negative ones

@real
@pytest.mark.parametrize("kind, blank", [("hiddenkiller", 1), ("stylebkd", 0)])
def test_the_real_files_fit_their_rows(kind, blank):
    for split, n in (("train", 6920 - blank), ("dev", 428), ("test", 912)):
        clean = data.read(SST2 / f"{split}.tsv")
        found = read(SST2 / kind, split, clean, 1)
        assert len(found) == n
        if split != "train":
            assert len(triggered(clean, found, target=1)) == n
        else:
            own, stranger = likeness([(x.text, found[x.id]) for x in clean if x.id in found])
            assert own > 0.97 * n and stranger < 0.02 * n


@real
def test_one_attacks_test_file_does_not_fit_another_order():
    clean = data.read(SST2 / "test.tsv")
    turned = clean.like(reversed(clean))
    fails(lambda: read(SST2 / "stylebkd", "test", turned, 1), "order")
