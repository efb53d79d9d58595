"""Predictions and accuracy: counts with a model whose answers are known."""
import pytest
import torch
from torch import nn

from conftest import fails
from minibd.predict import accuracy, predict
from minibd.records import Example, Examples, Output
from minibd.tokenizer import Tokenizer

WORDS = ["zero", "one", "two", "long"]
TEXT = Tokenizer.from_vocab({token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}, 32)


class Says(nn.Module):
    """Answers the class that a text's first word names; keeps the sizes of the batches it was shown."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.shown = []

    def forward(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        self.shown.append(len(batch.ids))
        return Output(torch.eye(3)[batch.ids[:, 1] - 4] * self.weight, None)


def rows(*pairs: tuple[str, int]) -> Examples:
    return Examples((Example(f"row-{i}", text, label) for i, (text, label) in enumerate(pairs)), ("zero", "one", "two"))


MIXED = rows(
    ("zero", 0), ("one long long long", 1), ("two long", 0), ("one", 2), ("zero long long", 0), ("two", 2),
    ("one long", 1),
)
ANSWERS = [0, 1, 2, 1, 0, 2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 100])
def test_predictions_stand_in_the_rows_order_whatever_the_batch_size(batch_size):
    model = Says()
    assert predict(model, TEXT, MIXED, batch_size) == ANSWERS
    assert sum(model.shown) == 7 and max(model.shown) == min(batch_size, 7)


def test_predictions_of_no_rows():
    assert predict(Says(), TEXT, rows()) == []


def test_a_row_is_predicted_alone_as_among_others():
    assert [predict(Says(), TEXT, [x])[0] for x in MIXED] == ANSWERS


@pytest.mark.parametrize("ask", [predict, accuracy])
def test_asking_leaves_the_model_in_eval_mode_and_the_global_state_alone(ask):
    model, before = Says().train(), torch.get_rng_state()
    ask(model, TEXT, MIXED)
    assert not model.training and torch.is_grad_enabled() and torch.equal(before, torch.get_rng_state())


def test_accuracy_is_the_share_of_rows_whose_answer_is_their_label():
    assert accuracy(Says(), TEXT, MIXED) == 5 / 7                # wrong: "two long" of class 0, "one" of class 2
    assert accuracy(Says(), TEXT, rows(("zero", 0), ("one", 1))) == 1.0
    assert accuracy(Says(), TEXT, rows(("zero", 1), ("one", 2), ("two", 0))) == 0.0


def test_the_order_of_rows_does_not_matter():
    assert accuracy(Says(), TEXT, MIXED.like(reversed(MIXED))) == accuracy(Says(), TEXT, MIXED)


def test_the_accuracy_of_no_rows_is_refused():
    fails(lambda: accuracy(Says(), TEXT, rows()), "no validation rows", "dev")
