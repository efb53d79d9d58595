"""Examples -> Batch, through the `tokenizers` library. Texts are tokenised once; batches are cut from the ids."""
from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

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
        self.max_len, self.pad, self.said = max_len, pad, False  # said: that a text was cut
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

    @classmethod
    def from_merges(cls, vocab: dict[str, int], merges: list[tuple[str, str]], max_len: int, pad: int, bracketed: bool, prefix: bool = False) -> Text:
        """The byte-level BPE of RoBERTa (`bracketed`: <s> A </s>, pairs <s> A </s></s> B </s>) or GPT-2, from vocab.json and merges.txt.

        prefix: a text begins with a blank, whether it has one or not, so that its first word is cut like any other.
        """
        try:
            tokenizer = Tokenizer(BPE(vocab, merges))
        except Exception as error:  # the library raises nothing narrower
            said = " ".join(str(error).split())  # on one line
            raise BadInput(f"vocab.json and merges.txt do not fit each other ({said}): take both from the same checkpoint") from None
        tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
        tokenizer.decoder = ByteLevelDecoder()
        tokenizer.add_special_tokens([piece for piece in ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>") if piece in vocab])
        if "<mask>" in vocab:
            tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        if bracketed:
            if missing := [piece for piece in ("<s>", "</s>") if piece not in vocab]:
                raise BadInput(f"the vocabulary lacks {', '.join(missing)}, which RoBERTa needs: it is not a RoBERTa vocab.json")
            tokenizer.post_processor = RobertaProcessing(("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=prefix)
        return cls(tokenizer, max_len, pad)

    @property
    def special(self) -> set[int]:
        """The pieces that stand for no text: [CLS], [MASK] and their like."""
        return {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}

    def encode(self, examples: Iterable[Example]) -> Encoded:
        examples = list(examples)
        rows = self.tokenizer.encode_batch([x.text if x.pair is None else (x.text, x.pair) for x in examples])
        if not self.said and (cut := sum(bool(r.overflowing) for r in rows)):
            self.said = True
            print(f"{cut} of {len(rows)} texts are longer than the model's {self.max_len} pieces and were cut to them (said once)", file=sys.stderr)
        # Without special pieces (GPT-2) an empty text has none at all, and a model nothing to read: it is one of padding.
        return Encoded([r.ids or [self.pad] for r in rows], [r.type_ids or [0] for r in rows], [x.label for x in examples])

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
