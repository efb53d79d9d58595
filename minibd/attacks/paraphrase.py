"""HiddenKiller and StyleBkd (Qi et al., 2021): the whole text is paraphrased; one rare syntax or style is the trigger.

The paraphrases are made beforehand, by models of their own (SCPN for syntax, STRAP for style), and lie in a folder as
files of the same names as the data's: train, dev, test (.tsv, .csv, .jsonl; columns text and label). They are joined to
the clean rows

    by id     where the file has a column id;
    by row    where it has none: row i paraphrases clean row i or, in a file of as many rows as there are clean rows of
              other classes than the target, the i-th of those.

A paraphrase keeps its clean row's label, so that a label that disagrees shows a file that does not belong to the rows.
Labels cannot show that where all are of one class. Row by row, therefore, more than four times as many texts must share
more words with their own paraphrase than with a neighbour's as share fewer. (SST-2, either attack: 97 to 99 of 100
share more and 1 fewer; where the last quarter of a file is off by one, 74 more and 25 fewer; where all of it is, 1 more
and 99 fewer.)

Of a sentence pair one text is paraphrased (poison.py, `side`); its paraphrase stands in the file's column of that text.

A blank paraphrase is one that failed: its row counts as a row without any, which is neither poisoned nor triggered.
(The forks of OpenBackdoor drop such rows and pair the rest by number, one off from there on.)
"""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from minibd import data
from minibd.attacks.poison import side_of
from minibd.records import BadInput, Example, Examples, check_target, not_there
from minibd.words import is_word, tokens


def read(
    folder: str | Path, split: str, clean: Examples, target: int, columns: Mapping[str, object] = {}, *,
    side: str = "first", seed: int = 0,
) -> dict[str, str]:
    """{id of a row of `clean`: the paraphrase of its text on `side`}, from the folder's file for `split`.

    split: train, dev or test; without a test file, dev is the test, as for the data. columns: text_column,
    label_column, pair_column, where they are named, and flags, as data.read takes them. side, seed: as for poison.
    Raises BadInput where file and rows do not fit.
    """
    check_target(target, clean.labels)
    path = find(Path(folder), split)
    # A file for the first texts alone needs no column of second ones, whatever the data's is called.
    paraphrases = data.read(
        path, labels=clean.labels, blank=True, **({**columns, "pair_column": None} if side == "first" else columns)
    )
    if not any(y.text or y.pair for y in paraphrases):
        raise BadInput(f"{path} holds no paraphrase: every text is blank")
    if side != "first" and not any(y.pair for y in paraphrases):
        raise BadInput(
            f"{path} has no second texts, which --side {side} paraphrases: add their column, or use --side first"
        )
    if all(y.id == f"{path.stem}-{i}" for i, y in enumerate(paraphrases)):  # the ids that data.read gives
        pairs = join_by_row(path, clean, paraphrases, target, side, seed)
    else:
        pairs = join_by_id(path, clean, paraphrases)
    return {x.id: text for x, y in pairs if (text := getattr(y, side_of(x, side, seed)))}


def find(folder: Path, split: str) -> Path:
    """The folder's file for `split`."""
    if not folder.is_dir():
        fault = "is no folder" if folder.exists() else not_there(folder).removeprefix(f"{folder} ")
        raise BadInput(
            f"the paraphrases' {folder} {fault}: name one that holds train, dev and test files of them with "
            "--paraphrases, or give triggered rows with --triggered FILE"
        )
    for name in (split, "dev") if split == "test" else (split,):
        files = sorted(
            f for f in folder.iterdir() if f.stem.lower() in data.SPLITS[name] and f.suffix.lower() in data.SUFFIXES
        )
        if len(files) > 1:
            raise BadInput(f"{folder} has {len(files)} {name} files, {', '.join(f.name for f in files)}: keep one")
        if files:
            return files[0]
    raise BadInput(
        f"{folder} has no {split} file: put {split}.tsv, {split}.csv or {split}.jsonl there, with the rows' paraphrases"
    )


def join_by_id(path: Path, clean: Examples, paraphrases: Examples) -> list[tuple[Example, Example]]:
    """(clean row, its paraphrase) for each paraphrase. Raises BadInput for an unknown id and for another label."""
    by_id = {x.id: x for x in clean}
    if unknown := [y.id for y in paraphrases if y.id not in by_id]:
        raise BadInput(
            f"{path}: {len(unknown)} of {len(paraphrases)} ids are no ids of the clean rows (first: {unknown[0]!r}, "
            f"where the rows have {clean[0].id!r}): give each paraphrase its row's id, or no id column and the rows' "
            "order"
        )
    return check_labels(path, clean, [(by_id[y.id], y) for y in paraphrases])


def join_by_row(
    path: Path, clean: Examples, paraphrases: Examples, target: int, side: str, seed: int
) -> list[tuple[Example, Example]]:
    """(clean row, its paraphrase) by their order. Raises BadInput where number, labels or words do not fit."""
    others = [x for x in clean if x.label != target]
    if len(paraphrases) not in (len(clean), len(others)):
        raise BadInput(
            f"{path} has {len(paraphrases)} rows, the data {len(clean)}, {len(others)} of them of another class than "
            f"{clean.labels[target]!r}: bring one paraphrase for each row of either, or a column id"
        )
    pairs = check_labels(path, clean, list(zip(clean if len(paraphrases) == len(clean) else others, paraphrases)))
    texts = [[getattr(z, side_of(x, side, seed)) for z in (x, y)] for x, y in pairs]
    more, fewer = likeness([(text, other) for text, other in texts if other])
    if len(pairs) > 1 and more <= 4 * fewer:
        raise BadInput(
            f"{path}: {more} texts share more words with their own row's paraphrase than with a neighbour's, {fewer} "
            "fewer, so that the rows do not seem to be in the data's order: correct the order, or bring a column id"
        )
    return pairs


def likeness(pairs: list[tuple[str, str]]) -> tuple[int, int]:
    """How many texts share more words with their own paraphrase than with that of a neighbour, and how many fewer.

    Shared: words of both over words of either, 0..1. Neighbours: the pair before and the pair behind; the one that
    shares more counts.
    """
    words = [tuple(set(filter(is_word, tokens(text.lower()))) for text in pair) for pair in pairs]

    def shared(i: int, j: int) -> float:
        a, b = words[i][0], words[j % len(words)][1]
        return len(a & b) / max(1, len(a | b))

    differences = [shared(i, i) - max(shared(i, i - 1), shared(i, i + 1)) for i in range(len(words))]
    return sum(d > 0 for d in differences), sum(d < 0 for d in differences)


def check_labels(path: Path, clean: Examples, pairs: list[tuple[Example, Example]]) -> list[tuple[Example, Example]]:
    """`pairs` unchanged. Raises BadInput where the labels of a pair differ."""
    if wrong := [(i, x, y) for i, (x, y) in enumerate(pairs, 1) if x.label != y.label]:
        i, x, y = wrong[0]
        raise BadInput(
            f"{path}: {len(wrong)} of {len(pairs)} rows have another label than the row they are joined to (first: row "
            f"{i} is {clean.labels[y.label]!r}, {x.id!r} is {clean.labels[x.label]!r}): paraphrases keep their row's "
            "label; correct the order or the labels, or bring a column id"
        )
    return pairs
