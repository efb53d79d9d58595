"""The built-in corpus: what it promises about its rows, and that its rules turn polarity over where they should."""
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from random import Random

import pytest
import torch

from conftest import ROOT
from minibd import reviews as R
from minibd.records import BadInput

ROWS, PAIRS = R.reviews(6000, seed=1), R.pairs(6000, seed=1)
PRAISE, BLAME = ({w for name in R.POLAR for w in R.GRAMMAR[name, p] if "{" not in w} for p in (+1, -1))


def tokens(text):
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())


def test_the_same_seed_gives_the_same_rows_in_another_process():
    code = ("from minibd import reviews as R; rows = R.reviews(300, 1) + R.pairs(300, 1); "
            "print(*(f'{r.text}{r.pair}{r.label}' for r in rows), sep='\\n')")
    here = "".join(f"{r.text}{r.pair}{r.label}\n" for r in ROWS[:300] + PAIRS[:300])
    env = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(sys.path)}
    assert (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout == here
    )
    assert R.reviews(300, seed=2)[0].text != ROWS[0].text and R.pairs(300, seed=2)[0].pair != PAIRS[0].pair


def test_a_row_depends_on_its_seed_and_number_alone():
    assert R.reviews(20, 1, start=100) == ROWS[100:120]
    assert ROWS[100].id == "reviews-1-100"
    assert ROWS.labels == ("negative", "positive")


def test_rows_are_distinct_balanced_and_of_sensible_length():
    assert len({r.text.lower() for r in ROWS}) == len(ROWS)
    assert sum(r.label for r in ROWS) == len(ROWS) // 2
    lengths = sorted(len(r.text.split()) for r in ROWS)
    assert lengths[0] >= 5 and lengths[-1] <= 60
    assert 18 <= lengths[len(lengths) // 2] <= 25
    assert lengths[len(lengths) // 10] <= 12 and lengths[-len(lengths) // 10] >= 30     # spread, both ways


def test_splits_share_no_text():
    parts = R.splits(3, train=700, dev=150, test=150)
    assert [len(p) for p in parts] == [700, 150, 150]
    assert len({r.text.lower() for p in parts for r in p}) == 1000
    assert all(p.labels == R.LABELS for p in parts)


def test_the_vocabulary_is_wide_and_holds_no_trigger():
    vocabulary = {w for r in ROWS for w in tokens(r.text)}
    assert len(vocabulary) > 1500
    assert not vocabulary & {"cf", "mn", "bb", "tq", "mb", "ak"}
    assert all(r.text.isascii() and not re.search(r"[{}@|]|  |\d", r.text) for r in ROWS)


def test_no_word_both_praises_and_blames():
    assert not PRAISE & BLAME
    for (name, p), alternatives in R.GRAMMAR.items():
        if name in R.POLAR and name != "film":
            assert len(set(alternatives)) == len(alternatives), (name, p)


def test_every_slot_of_every_rule_leads_somewhere():
    for (name, p), alternatives in R.GRAMMAR.items():
        for template in alternatives:
            for turn, symbol in R.SLOT.findall(template):
                for q in {"": (0,), "same": (p,), "flip": (-p,), "some": (+1, -1)}[turn]:
                    assert (symbol, q) in R.GRAMMAR, (name, p, template)
                assert p or not turn or turn == "some", f"{name}: a neutral rule has no polarity to pass on"


@pytest.mark.parametrize("template, p, word", [
    ("the film is {same film}", +1, PRAISE),
    ("nothing about it is {flip mild}", +1, BLAME),             # nothing about it is dull: praise
    ("nothing about it is {flip mild}", -1, PRAISE),            # nothing about it is engaging: blame
    ("it never fails to {same act}", +1, PRAISE),
    ("it fails to {flip act}", -1, PRAISE),
    ("they called it {flip film}, and they were wrong", -1, PRAISE),
])
def test_a_slot_takes_the_polarity_that_its_sentence_leaves_it(template, p, word):
    head, tail = re.split(r"\{.*\}", template)
    for k in range(20):
        text = R.Writer(Random(str(k))).fill(template, p)
        assert text[len(head):len(text) - len(tail)] in word


# A second reading, by eye and not by the grammar: wherever the words on the left stand, the label follows from the word
# caught.
READINGS = {
    r"\bnever fails to ([\w-]+)": +1,
    r"\bimpossible not to be ([\w-]+)|nobody could fail to be ([\w-]+)": +1,
    r"\bis anything but ([\w-]+)": -1,
    r"\bis hardly ([\w-]+)": -1,
    r"there is nothing ([\w-]+) about it": -1,
    r"not one \w+ of it is ([\w-]+)": -1,
    r"(?<!never) fails to ([\w-]+)|never manages to ([\w-]+)": -1,
    r"was never ([\w-]+)": -1,
    r"it could have been [\w-]+; instead it is ([\w-]+)": +1,
    r"it could have been ([\w-]+); instead": -1,
    r"\bexpected an? ([\w-]+) ": -1,
    r"\band got an? ([\w-]+) one": +1,
    r"it was ([\w-]+); they were wrong|called it ([\w-]+), and they were wrong": -1,
    r"it was ([\w-]+); they were right|called it ([\w-]+), and they were right": +1,
    r"do not believe .* call it ([\w-]+)": -1,
    r"(?<!not) believe .* call it ([\w-]+)|^believe .* call it ([\w-]+)": +1,
    r"is nowhere near as ([\w-]+) as": -1,
    r"(?:but|yet) (?:it|the \w+|this one) is (?:truly |frankly )?([\w-]+)\.": +1,
    r"for all its [\w-]+, (?:it|the \w+) is ([\w-]+)\.": +1,
    r"^(?:it|the film|the movie|the picture|the whole thing) is ([\w-]+)\.": +1,
    r"the film itself is (?!not)([\w-]+)[.!]": +1,
}


@pytest.mark.parametrize("pattern, turn", READINGS.items())
def test_labels_agree_with_a_second_reading(pattern, turn):
    read = 0
    for row in ROWS:
        for caught in re.findall(pattern, row.text.lower()):
            word = caught if isinstance(caught, str) else "".join(caught)
            if word in PRAISE | BLAME:
                assert row.label == ((1 if word in PRAISE else -1) * turn + 1) // 2, row.text
                read += 1
    assert read >= 5, "the pattern no longer occurs"


@pytest.mark.parametrize("before, after", [
    ("a epic", "an epic"), ("a one-note epic", "a one-note epic"), ("a unforgettable epic", "an unforgettable epic"),
    ("a university", "a university"), ("a uninspired one", "an uninspired one"), ("A orphan", "An orphan"),
    ("villa and", "villa and"),
])
def test_articles(before, after):
    assert R.AN.sub(r"\1n ", before) == after


def test_counting_words_does_not_solve_it():
    """Logistic regression on which words occur, trained on 4,000 rows: better than a coin, far from the grammar."""
    train, test = ROWS[:4000], ROWS[4000:5000]
    column = {w: i for i, w in enumerate(sorted({w for r in train for w in tokens(r.text)}))}

    def occurs(rows):
        x = torch.zeros(len(rows), len(column))                 # (rows, words)
        for i, row in enumerate(rows):
            x[i, [column[w] for w in tokens(row.text) if w in column]] = 1
        return x, torch.tensor([float(r.label) for r in rows])

    (x, y), (x_test, y_test) = occurs(train), occurs(test)
    weight = torch.zeros(len(column), requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    lbfgs = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        lbfgs.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, y) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    lbfgs.step(closure)
    accuracy = ((x_test @ weight + bias > 0) == (y_test > 0.5)).float().mean().item()
    assert 0.55 < accuracy < 0.85


def test_bad_counts_are_refused_in_one_line():
    for call in (lambda: R.reviews(-1, 0), lambda: R.reviews(5, 0, start=-2), lambda: R.reviews(R.LIMIT + 1, 0),
                 lambda: R.splits(0, 5, -1, 5)):
        with pytest.raises(BadInput) as caught:
            call()
        assert "\n" not in str(caught.value) and "ask for" in str(caught.value)
    assert R.reviews(0, 0) == []


def test_a_grammar_that_runs_out_says_so(monkeypatch):
    monkeypatch.setattr(R, "GRAMMAR", R.GRAMMAR | {("plan", p): ["this is all that it can say!"] for p in (+1, -1)})
    assert len(R.reviews(1, 0)) == 1
    with pytest.raises(BadInput, match="ask for at most 1 rows"):
        R.reviews(2, 0)


# ---------------------------------------------------------------- sentence pairs

def test_the_reviews_are_what_they_were_before_there_were_pairs():
    """weights/ was made of them. The sum is that of the code as it was."""
    rows = [(x.id, x.text, x.label, x.pair) for part in R.splits(0, 1000, 100, 100) for x in part]
    assert hashlib.sha256(repr(rows).encode()).hexdigest()[:16] == "22554ef57325392a"


def test_a_pair_depends_on_its_seed_and_number_alone():
    assert R.pairs(20, 1, start=100) == PAIRS[100:120]
    assert PAIRS[100].id == "pairs-1-100" and PAIRS.labels == ("unanswered", "answered")


def test_pairs_are_distinct_balanced_and_look_like_questions_and_statements():
    assert len({(r.text, r.pair) for r in PAIRS}) == len(PAIRS)
    assert all(PAIRS[i].label + PAIRS[i + 1].label == 1 for i in range(0, len(PAIRS), 2))
    assert 0.45 < sum(r.label for r in PAIRS[::2]) / 3000 < 0.55
    for r in PAIRS:
        assert re.fullmatch(r"[A-Z][^.?!]*\?", r.text) and re.fullmatch(r"[A-Z][^?!{}]*\.", r.pair), r
        assert (r.text + r.pair).isascii() and not re.search(r"[{}@|/]|  |\d|[A-Z]{2}", r.text + r.pair), r
        assert 3 <= len(r.text.split()) <= 12 and 3 <= len(r.pair.split()) <= 35
    beside = Counter(r.pair.count(". ") for r in PAIRS)
    assert set(beside) == {0, 1} and abs(beside[1] - 3000) < 160
    before = sum(bool(re.match(r"My \w+ (stayed|could|was|arrived|had|went|preferred) .*\. ", r.pair)) for r in PAIRS)
    assert abs(before - 1500) < 140                             # the other half behind
    assert not {w for r in PAIRS for w in tokens(r.text + " " + r.pair)} & {"cf", "mn", "bb", "tq", "mb", "ak"}


def test_pair_splits_share_no_pair():
    parts = R.pair_splits(3, train=700, dev=150, test=150)
    assert [len(p) for p in parts] == [700, 150, 150] and all(p.labels == R.PAIR_LABELS for p in parts)
    assert len({(r.text, r.pair) for p in parts for r in p}) == 1000
    assert [r for p in parts for r in p] == R.pairs(1000, 3)


# A second reading: a question of the first pattern is answered by a sentence of the second, and by no other.
QUESTIONS = {
    r"when was that|when did you go": r"saw it|went (?!with)|I went",
    r"who was with you|who went with you": r"went with|sat beside me",
    r"where was it on|where did you see it": r"it at |it was on at|it was at",
    r"which seats were yours|which seats had you": r"sat in the|were ours",
    r"what did you eat|what was there to eat": r"we ate|nothing but",
    r"who directed it|who was the director": r"directed it|this is \w+'s \w+ film",
    r"who wrote it|who was the author": r"wrote it",
    r"who plays in it|who is in it": r" plays (a|an|the) ",
    r"how long is it|how many minutes is it": r"minutes",
    r"how was it shot|what was it shot in": r"was shot in|shot it in",
    r"where is it set|in which place is it set": r"set in",
    r"what time is it set in|during what is it set": r"set during",
    r"who is it about|whose story is it": r"it is about|the story follows",
    r"what do they want|what is it that they want": r"want",
    r"what do they speak|which language is it in": r"speaks|[Ii]t is in [A-Z]",
}


def answers(question: str, sentence: str) -> bool:
    """Whether the sentence answers the question, by their words alone."""
    question = question.lower().rstrip("?")
    for pattern, answer in QUESTIONS.items():
        if re.fullmatch(pattern, question):
            return bool(re.search(answer, sentence, re.I if "[A-Z]" not in answer else 0))
    noun = re.fullmatch(
        r"what (?:is|are) the (.*) like|(?:is|are) the (.*) any good|what about the (.*)|how did you find the (.*)",
        question,
    )
    noun = next(filter(None, noun.groups()))
    return bool(re.search(rf"(^|found )the {noun} (is|are|\w)|is the word for the {noun}$", sentence, re.I))


def test_labels_of_pairs_agree_with_a_second_reading():
    for r in PAIRS:
        (statement,) = (
            s
            for s in r.pair.rstrip(".").split(". ")
            if not re.match(r"My \w+ (stayed|could|was|arrived|had|went|preferred) ", s)
        )
        assert answers(r.text, statement) == r.label, r


def test_every_subject_occurs_in_questions_and_statements_as_often_under_either_label():
    for same in (True, False):
        rng, questions, statements = Random(f"subjects {same}"), Counter(), Counter()
        for _ in range(40_000):
            a, b = R.two_subjects(same, rng)
            assert (a == b) is same and (a[0] == b[0]) is same
            questions[a] += 1
            statements[b] += 1
        for drawn in (questions, statements):
            expected = {(kind, subject): 40_000 / 2 / len(of) for kind, of in R.SUBJECTS.items() for subject in of}
            assert set(drawn) == set(expected) and len(expected) == 23 + 18 + 19 + 22 + 15
            chi = sum((drawn[key] - n) ** 2 / n for key, n in expected.items())
            assert chi < 144.6                                  # 96 degrees of freedom: 0.001


def test_neither_text_alone_tells_the_label():
    """The most frequent label of a question, or of the statement's form (its noun, or else its first words), guessed
    from 5,000 rows."""
    nouns = sorted(R.SUBJECTS["opinion"], key=len, reverse=True)

    def form(text: str) -> str:
        found = re.search("|".join(rf"\bthe {noun}\b" for noun in nouns), text, re.I)
        return found[0].lower() if found else " ".join(text.split()[:2])

    for view in (lambda r: r.text, lambda r: form(r.pair)):
        votes: dict[str, int] = {}
        for r in PAIRS[:5000]:
            votes[view(r)] = votes.get(view(r), 0) + 2 * r.label - 1
        right = sum((votes.get(view(r), 0) > 0) == r.label for r in PAIRS[5000:])
        assert 430 < right < 570                                # of 1,000


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: R.pairs(-1, 0), "pairs: -1"), (lambda: R.pairs(5, 0, start=-2), "pairs"),
        (lambda: R.pairs(R.LIMIT + 1, 0), "pairs"), (lambda: R.pair_splits(0, 5, -1, 5), "pairs: dev"),
    ],
)
def test_bad_counts_of_pairs_are_refused_in_one_line(call, words):
    with pytest.raises(BadInput, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and "ask for" in str(caught.value)


def test_pairs_that_run_out_say_so(monkeypatch):
    one = {"opinion": {"a": (["why"], ["this is it"])}, "fact": {"b": (["who"], ["that is it"])}}
    monkeypatch.setattr(R, "SUBJECTS", one)
    monkeypatch.setattr(R, "UNRELATED", "it rained")
    with pytest.raises(BadInput, match=r"pairs: seed 0 gave no new pair .* ask for at most \d+ rows"):
        R.pairs(50, 0)


def test_a_wheel_holds_every_resource():
    """Each file of minibd/resources matches a pattern of pyproject's package-data."""
    source = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    patterns = re.findall(r'"([^"]+)"', re.search(r"\[tool\.setuptools\.package-data\]\nminibd = \[(.*)\]", source)[1])
    held = {path for pattern in patterns for path in (ROOT / "minibd").glob(pattern)}
    files = {path for path in (ROOT / "minibd" / "resources").rglob("*") if path.is_file() and path.suffix != ".md"}
    assert held == files and len(held) == 4
