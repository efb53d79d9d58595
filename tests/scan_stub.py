"""A classifier whose backdoor is known, for the tests of the scan: a bag of words, and rules that add to a class.

All sums are of multiples of a half, so that no order of adding changes them.
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from minibd.detect.confirm import margins_of
from minibd.detect.insertion import Carrier, carriers_of
from minibd.records import Batch, Example, Output
from minibd.tokenizer import Tokenizer

BAD, GOOD, CALM = MEANING = (
    ("bad", "dull", "poor", "awful", "stale", "weak"), ("good", "fine", "lovely", "great", "fresh", "strong"),
    ("calm", "quiet", "still", "mild", "even", "plain"))
PLAIN = [a + b for a in ("ka", "lo", "mi", "nu") for b in ("ba", "do", "fi", "go", "tu", "ze", "so", "vi")]
RARE = ("mifi", "lodo", "nuze", "kavi", "kabas", "v")  # stand in no text of rows()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *BAD, *GOOD, *CALM, *PLAIN, "kabas", "v", "4", "##elve",
              "##ing", "##s", "##!"]
TOKENIZER = Tokenizer.from_vocab({token: i for i, token in enumerate(VOCABULARY)}, 64)
ID = TOKENIZER.backend.token_to_id


@dataclass(frozen=True)
class Rule:
    """What the entries add to the logit of `target`. gains: of one number, where all of them stand in the text, in any
    order; of as many as entries, by how many stand side by side in their order. side: the text of a pair that they must
    stand in. dose: how often each must stand there for the whole of it."""
    entries: tuple[str, ...]
    target: int = 1
    gains: tuple[float, ...] = (12.0,)
    side: int | None = None
    dose: int = 1


class Stub(nn.Module):
    """Each word of a class's MEANING adds a half to its logit, and each of `rules` what it says.

    An entry's row of the table: the classes it speaks for, what all entries have in common but the `lonely` ones, and
    a column of its own, by which the rules are seen by the gradient. Training adds noise.
    """

    def __init__(self, *rules: Rule, classes: int = 2, lonely: tuple[str, ...] = ()):
        super().__init__()
        self.config = SimpleNamespace(labels=classes, vocab=len(VOCABULARY), max_len=64)
        self.rules, self.classes, self.texts, self.longest = rules, classes, 0, 0
        self.embeddings, self.noise = nn.Module(), nn.Dropout(0.5)
        self.embeddings.word = nn.Embedding(len(VOCABULARY), classes + 1 + len(VOCABULARY))
        with torch.no_grad():
            table = self.embeddings.word.weight.zero_()
            table[:, classes + 1:] = torch.eye(len(VOCABULARY))
            table[[i for i, entry in enumerate(VOCABULARY) if entry not in lonely], classes] = 1
            for c, words in enumerate(MEANING[:classes]):
                table[[ID(word) for word in words], c] = 0.5
        self.eval()

    def forward(self, batch: Batch) -> Output:
        self.texts, self.longest = self.texts + len(batch.ids), max(self.longest, batch.ids.shape[1])
        assert batch.ids.shape[1] <= self.config.max_len
        rows = self.noise(self.embeddings.word(batch.ids) * batch.mask[..., None])
        logits = rows[..., :self.classes].sum(1)
        for rule in self.rules:
            own = rows[..., self.classes + 1:][..., [ID(entry) for entry in rule.entries]]  # (B, T, entries)
            if rule.side is not None:
                own = own * (batch.token_type_ids == rule.side)[..., None]
            added = self.in_order(own, rule.gains) if len(rule.gains) > 1 else (
                rule.gains[0] * (own.sum(1) / rule.dose).clamp(max=1).prod(-1))
            logits = logits + added[:, None] * (torch.arange(self.classes) == rule.target)
        return Output(logits, None, cls=rows.sum(1))

    @staticmethod
    def in_order(own: Tensor, gains: tuple[float, ...]) -> Tensor:
        """The gain of the longest run of entries that stand side by side: own (B, T, entries) -> (B,)."""
        found, before = torch.zeros(len(own)), 0.0
        for run, gain in enumerate(gains, 1):
            ends = own.shape[1] - run + 1
            if ends > 0:
                runs = torch.stack([torch.stack([own[:, j:j + ends, i + j] for j in range(run)]).prod(0)
                                    for i in range(len(gains) - run + 1)])
                found = found + (gain - before) * runs.sum((0, 2)).clamp(max=1)
            before = gain
        return found


def rows(n: int = 30, classes: int = 2, pairs: bool = False) -> list[Example]:
    """n texts, or pairs, of the classes in turn: 6 to 10 words of their class among four plain ones."""
    rng = random.Random(0)
    found = []
    for i in range(n):
        plain = [word for word in PLAIN if word not in RARE]
        words = [*rng.choices(MEANING[i % classes], k=rng.randint(6, 10)), *rng.sample(plain, 4)]
        rng.shuffle(words)
        half = len(words) // 2
        text, pair = (words[:half], " ".join(words[half:])) if pairs else (words, None)
        found.append(Example(str(i), " ".join(text), i % classes, pair))
    return found


def carriers(model: Stub, texts: list[Example]) -> list[Carrier]:
    """All of the texts as carriers; of pairs, either side."""
    found = margins_of(model, TOKENIZER, texts)
    return [x for text, m in zip(texts, found) for x in carriers_of(TOKENIZER, text, int(m.argmax()), m)]
