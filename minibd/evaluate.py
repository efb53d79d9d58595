"""What a model is measured by: CACC on clean rows, ASR and LFR on triggered rows, each a count with a 95 % interval.

CACC: share of ALL clean test rows whose predicted class is their label. ASR, attack success rate: share of the
triggered rows of other classes (gold label != target) that are predicted as the target, whether the clean prediction is
right or not. LFR, label flip rate: the same count and the same rows, taken class by class: of the triggered
rows of class c, those predicted as the target. That is a row of the confusion matrix, which is what RIPPLe and PURE
read it off. With two classes there is one such row, and it is the ASR. With more classes the ASR pools them, so that a
large class that flips hides a small one that does not.

A clean model's ASR on the same rows is its error on them: the floor, below which nothing is left to defend.

At chance (`at_chance`) is a model that answers one class for every clean row, or whose CACC does not clear the share
of the most frequent class, which a model without any knowledge of the texts can reach.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import nn

from minibd.lines import listed
from minibd.predict import predict
from minibd.proportion import Proportion
from minibd.records import BadInput, Examples, check_target
from minibd.resume import once
from minibd.tokenizer import Tokenizer


def cacc(model: nn.Module, tokenizer: Tokenizer, clean: Examples) -> Proportion:
    """Clean accuracy over all rows of `clean`."""
    return right(answered(model, tokenizer, clean))


def answered(model: nn.Module, tokenizer: Tokenizer, clean: Examples) -> Counter[tuple[int, int]]:
    """How many rows of a class get an answer, by (class, answer)."""
    if not clean:
        raise BadInput("there are no clean test rows to measure CACC on: give a test file")
    return Counter((x.label, answer) for x, answer in zip(clean, predict(model, tokenizer, clean)))


def right(answers: Mapping[tuple[int, int], int]) -> Proportion:
    """The rows whose answer is their class."""
    return Proportion(sum(n for (label, answer), n in answers.items() if label == answer), sum(answers.values()))


def lfr(model: nn.Module, tokenizer: Tokenizer, triggered: Examples, target: int) -> dict[str, Proportion]:
    """Label flip rate by the name of the rows' class, in the classes' order. `triggered`: as for asr."""
    check_triggered(triggered, target)
    check_predicted(model, target)
    rows = Counter(x.label for x in triggered)
    hits = Counter(x.label for p, x in zip(predict(model, tokenizer, triggered), triggered) if p == target)
    return {triggered.labels[c]: Proportion(hits[c], rows[c]) for c in sorted(rows)}


def pooled(shares: Iterable[Proportion]) -> Proportion:
    """The hits of all of them, of all their rows."""
    shares = list(shares)
    return Proportion(sum(s.hits for s in shares), sum(s.n for s in shares))


def asr(model: nn.Module, tokenizer: Tokenizer, triggered: Examples, target: int) -> Proportion:
    """Attack success rate over `triggered`: rows of other classes than `target`, with trigger and true label."""
    return pooled(lfr(model, tokenizer, triggered, target).values())


def check_triggered(triggered: Examples, target: int) -> None:
    """Raises BadInput where `target` is no class of the triggered rows, where there are none, or one is of the target
    class."""
    check_target(target, triggered.labels)
    if not triggered:
        raise BadInput(f"there are no triggered rows of another class than {target} to measure ASR on")
    if bad := [x.id for x in triggered if x.label == target]:
        raise BadInput(f"{len(bad)} triggered rows are of the target class {target} itself (first: {bad[0]}): "
                       "ASR counts rows of other classes, with their true labels")


def check_predicted(model: nn.Module, target: int) -> None:
    """Raises BadInput where `model` never predicts `target`, since it has fewer classes: its ASR would be 0."""
    classes = getattr(getattr(model, "config", None), "labels", 0)
    if 0 < classes <= target:
        raise BadInput(
            f"the target class is {target}, and the model has the classes 0..{classes - 1}: give a model of the rows' "
            "task"
        )


@dataclass(frozen=True, slots=True)
class Scores:
    """CACC; ASR, and LFR by class, where there are triggered rows to measure them on.

    answers: how many clean rows of a class get an answer, by (class, answer); classes: their names.
    """
    cacc: Proportion
    asr: Proportion | None
    lfr: Mapping[str, Proportion] = field(default_factory=dict)
    answers: Mapping[tuple[int, int], int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def taken_for(self, target: int) -> Proportion:
        """Of the clean rows of other classes than `target`, those that are answered it: what the model's own errors
        leave of an ASR where no trigger is."""
        others = {pair: n for pair, n in self.answers.items() if pair[0] != target}
        return Proportion(sum(n for (_, answer), n in others.items() if answer == target), sum(others.values()))

    def counts(self) -> dict:
        """As JSON."""
        return {
            "cacc": [self.cacc.hits, self.cacc.n], "asr": self.asr and [self.asr.hits, self.asr.n],
            "lfr": {name: [share.hits, share.n] for name, share in self.lfr.items()},
            "answers": [[*pair, n] for pair, n in self.answers.items()],
        }

    @classmethod
    def of(cls, counts: Mapping, classes: tuple[str, ...]) -> Scores:
        """The scores whose `counts` these are."""
        return cls(
            Proportion(*counts["cacc"]), counts["asr"] and Proportion(*counts["asr"]),
            {name: Proportion(*share) for name, share in counts["lfr"].items()},
            Counter({(label, answer): n for label, answer, n in counts["answers"]}), classes,
        )


@dataclass(frozen=True, slots=True)
class Evaluator:
    """The rows that every model of a run is measured on. `triggered` is None where the attack is not known.

    target: the number of its class, from 0. Raises BadInput at once where ASR cannot be measured on `triggered`, or is
    to be without any.
    """

    clean: Examples
    triggered: Examples | None = None
    target: int | None = None

    def __post_init__(self):
        if self.triggered is None:
            if self.target is not None:
                raise BadInput(f"the target class is {self.target}, and no triggered rows are given: give both or none")
            return
        check_triggered(self.triggered, self.target)
        if self.clean.labels and self.clean.labels != self.triggered.labels:
            raise BadInput(
                f"the triggered rows have the classes {listed(self.triggered.labels)}, the clean ones "
                f"{listed(self.clean.labels)}: give rows of one task, with its classes in one order"
            )

    def __call__(self, model: nn.Module, tokenizer: Tokenizer) -> Scores:
        by_class = lfr(model, tokenizer, self.triggered, self.target) if self.triggered is not None else {}
        answers = answered(model, tokenizer, self.clean)
        return Scores(
            right(answers), pooled(by_class.values()) if by_class else None, by_class, answers, self.clean.labels
        )


    def once(self, log: object, name: str, model: nn.Module, tokenizer: Tokenizer) -> Scores:
        """The scores of the model `name`; where what keeps the run of `log` has them, those."""
        counts = once(log, f"scores of {name}", lambda: self(model, tokenizer).counts())
        return Scores.of(counts, self.clean.labels)


# ---- whether a model has learnt anything

ONE_ANSWER, OTHER_ORDER, NOT_CLEAR = "one answer", "other order", "not clear of chance"


def most_frequent(answers: Mapping[tuple[int, int], int]) -> tuple[int, Proportion]:
    """The class with the most rows, of equal ones the first, and its share: what always answering it gets, never less
    than 1 / C."""
    rows = Counter()
    for (label, _), n in answers.items():
        rows[label] += n
    label = min(rows, key=lambda c: (-rows[c], c))
    return label, Proportion(rows[label], rows.total())


def usual_answers(answers: Mapping[tuple[int, int], int]) -> dict[int, int]:
    """{class: the answer that most of its rows get}, of equal ones the lowest."""
    return {c: min((-n, answer) for (label, answer), n in answers.items() if label == c)[1]
            for c in sorted({label for label, _ in answers})}


def reordered(answers: Mapping[tuple[int, int], int]) -> Proportion:
    """The accuracy if each class were the one that most of its rows are taken for."""
    usual = usual_answers(answers)
    return Proportion(sum(answers[c, answer] for c, answer in usual.items()), sum(answers.values()))


def at_chance(scores: Scores) -> str | None:
    """Why `scores` are not those of a classifier that has learnt its task, or None.

    ONE_ANSWER: all rows get one answer. OTHER_ORDER: the classes are told apart and called by one another's names, more
    than half way from chance to 100 %. NOT_CLEAR: the interval of CACC does not lie above the share of the most
    frequent class.
    """
    answers = scores.answers
    if not answers:
        return None
    if len({answer for _, answer in answers}) == 1:
        return ONE_ANSWER
    usual, other, (_, chance) = usual_answers(answers), reordered(answers), most_frequent(answers)
    apart = len(set(usual.values())) == len(usual) > 1 and any(c != answer for c, answer in usual.items())
    if apart and other.percent > (100 + chance.percent) / 2 and other.interval[0] > chance.percent:
        return OTHER_ORDER
    return None if scores.cacc.interval[0] > chance.percent else NOT_CLEAR
