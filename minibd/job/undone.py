"""What words that were undone still do: put into clean texts, how many of these they take to their class.

A training behind the undoing may bring them back: Fine-mixing and E-PUR put a word's row back to the pre-trained one,
which is the trigger's again where the backdoor sits in the weights.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from minibd.checkpoint import Checkpoint
from minibd.data import generator
from minibd.job.receipt import counted
from minibd.mitigations.unlearn import Finding, with_finding
from minibd.predict import predict
from minibd.proportion import Proportion
from minibd.records import Example

CHECKED = 200  # texts that an undone finding is put into again
STILL = 0.25  # share of them that it may still flip, beyond what a few texts cannot tell


def flipped(
    ckpt: Checkpoint, finding: Finding, texts: Sequence[Example], by: Checkpoint, seed: int,
) -> Proportion | None:
    """Of texts that `by` gives to other classes than the finding's, those that `ckpt` gives to it with the words at
    random places; None where there is no such text."""
    some = texts[:2 * CHECKED]
    answers = predict(by.model, by.tokenizer, some)
    others = [x for x, answer in zip(some, answers) if answer != finding.target][:CHECKED]
    if not others:
        return None
    given = [with_finding(x, finding, generator(seed, "left", finding.named, x.id)) for x in others]
    got = predict(ckpt.model, ckpt.tokenizer, given)
    return Proportion(sum(answer == finding.target for answer in got), len(got))


def still_acts(share: Mapping[str, Any] | None) -> bool:
    """Whether words that take this share of texts, a count, take more than chance would have it; not where none was
    counted."""
    return share is not None and share["interval"][0] > 100 * STILL


def brought_back(ckpt: Checkpoint, findings: Sequence[Finding], texts: Sequence[Example], seed: int) -> list[Finding]:
    """Those of `findings`, undone once, that take texts to their class in `ckpt`, which was trained since."""
    return [one for one in findings if still_acts(counted(flipped(ckpt, one, texts, ckpt, seed)))]
