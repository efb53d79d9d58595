"""Examples -> Batch, through the `tokenizers` library. Texts are tokenised once; batches are cut from the ids."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from minibd.records import BadInput, Batch, Example


@dataclass(frozen=True, slots=True)
class Encoded:
    """N tokenised texts: ids[i] and kinds[i] are as long as text i has pieces, special pieces included; labels[i] its class."""
    ids: list[list[int]]
    kinds: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]


class Text:
    """A tokenizer with the model's length limit: `text(examples)` -> Batch, or `encode` once and `batch` often."""

    def __init__(self, tokenizer: Tokenizer, max_len: int, pad: int = 0):
        self.max_len, self.pad = max_len, pad
        self.tokenizer = tokenizer
        tokenizer.no_padding()  # Padding is cut to each batch, below.
        tokenizer.enable_truncation(max_len)

    @classmethod
    def from_vocab(cls, vocab: dict[str, int], max_len: int, lowercase: bool = True) -> Text:
        """BERT's WordPiece from a vocabulary alone (an old folder's vocab.txt)."""
        if missing := [piece for piece in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if piece not in vocab]:
            raise BadInput(f"the vocabulary lacks {', '.join(missing)}, which BERT needs: it is not a BERT vocab.txt")
        tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = BertNormalizer(lowercase=lowercase)
        tokenizer.pre_tokenizer = BertPreTokenizer()
        tokenizer.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])])
        tokenizer.add_special_tokens([piece for piece in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if piece in vocab])
        return cls(tokenizer, max_len, vocab["[PAD]"])

    def encode(self, examples: Iterable[Example]) -> Encoded:
        examples = list(examples)
        rows = self.tokenizer.encode_batch([x.text if x.pair is None else (x.text, x.pair) for x in examples])
        return Encoded([r.ids for r in rows], [r.type_ids for r in rows], [x.label for x in examples])

    def batch(self, rows: Encoded, which: Sequence[int]) -> Batch:
        """The rows of `which`, padded to the longest of them. B = len(which)."""
        t = max(len(rows.ids[i]) for i in which)
        ids = torch.tensor([rows.ids[i] + [self.pad] * (t - len(rows.ids[i])) for i in which])  # (B, T)
        kinds = torch.tensor([rows.kinds[i] + [0] * (t - len(rows.kinds[i])) for i in which])
        lengths = torch.tensor([len(rows.ids[i]) for i in which])
        return Batch(ids, torch.arange(t) < lengths[:, None], kinds, torch.tensor([rows.labels[i] for i in which]))

    def __call__(self, examples: Iterable[Example]) -> Batch:
        rows = self.encode(examples)
        return self.batch(rows, range(len(rows)))
