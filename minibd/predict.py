"""A model's predictions on rows, and its accuracy: for measuring a model and for choosing between two."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from minibd.data import in_order
from minibd.distributed import sums, turns
from minibd.records import BadInput, Examples
from minibd.tokenizer import Tokenizer

CACHED = 32  # texts of a batch whose activations a processor's cache holds


def at_once(device: torch.device, texts: int = 128) -> int:
    """How many texts to read at a time where many wait: `texts` of a device that large batches fill; of a processor
    fewer, which on one core take a seventh less time."""
    return min(CACHED, texts) if device.type == "cpu" else texts


@torch.inference_mode()
def predict(model: nn.Module, tokenizer: Tokenizer, examples: Examples, batch_size: int | None = None) -> list[int]:
    """The predicted class of each example, in their order; of several processes each computes its batches, and all
    get all answers. batch_size: None for as many texts as suit the device. Raises BadInput where the logits are
    NaN."""
    model.eval()
    device = next(model.parameters()).device
    rows = tokenizer.encode(examples)
    predicted = torch.zeros(len(rows), dtype=torch.int64, device=device)
    for which, counts in turns(in_order(rows.lengths, batch_size or at_once(device))):
        logits = model(tokenizer.batch(rows, which).to(device)).logits
        if counts:  # argmax would make a class of NaN
            predicted[which] = torch.where(logits.isnan().any(-1), -1, logits.argmax(-1))
    predicted = sums([predicted])[0].tolist()
    if -1 in predicted:
        raise BadInput("the model's logits are NaN: its weights are so large that they overflow, use another")
    return predicted


@torch.inference_mode()
def probabilities(
    model: nn.Module, tokenizer: Tokenizer, examples: Examples, batch_size: int | None = None
) -> Tensor:
    """Softmax of the logits of each example, in their order: (N, C), float64, on the CPU. batch_size: as for
    predict."""
    model.eval()
    device = next(model.parameters()).device
    rows = tokenizer.encode(examples)
    found = torch.zeros(len(rows), model.config.labels, dtype=torch.float64)
    for which, counts in turns(in_order(rows.lengths, batch_size or at_once(device))):
        p = model(tokenizer.batch(rows, which).to(device)).logits.double().softmax(-1).cpu()
        if counts:
            found[which] = p
    return sums([found])[0]


def accuracy(model: nn.Module, tokenizer: Tokenizer, examples: Examples) -> float:
    """Share of `examples` whose predicted class is their label, 0..1."""
    if not examples:
        raise BadInput("there are no validation rows to choose by: give a dev file")
    return sum(p == x.label for p, x in zip(predict(model, tokenizer, examples), examples)) / len(examples)


def best_on(tokenizer: Tokenizer, validation: Examples | None) -> Callable[[nn.Module], float] | None:
    """The score by which train.fit keeps the best epoch: accuracy on `validation`.

    None where there are no such rows: fit then keeps the last epoch.
    """
    return None if validation is None else lambda model: accuracy(model, tokenizer, validation)
