"""Examples -> Batch, through the `tokenizers` library. Texts are tokenized once; batches are taken from the ids."""
from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tokenizers import AddedToken, Encoding
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import RobertaProcessing, TemplateProcessing

from minibd.lines import one_line
from minibd.records import BadInput, Batch, Example

PIECE = 10_000  # texts that are tokenized at a time: the library's results hold much more than ids


def is_panic(error: BaseException) -> bool:
    """Whether the tokenizers library's Rust side gave up: its exception is none of Python's Exception."""
    return type(error).__name__ == "PanicException"


@dataclass(frozen=True, slots=True)
class Encoded:
    """N tokenized texts: ids[i] and token_type_ids[i] have one entry a token of text i, special tokens included;
    labels[i] is its class."""

    ids: list[list[int]]
    token_type_ids: list[list[int]]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        return [len(row) for row in self.ids]


@dataclass(frozen=True, slots=True)
class Settings:
    """What decides a text's ids beside the tokenizers library's JSON, or transformers' reading of a saved folder.

    truncation_side: the end of a long text that is cut off, "right" or "left".
    padding_side: kept for transformers. Batches here are padded on the right, so that a text's logits are those that
    it has alone.
    type_ids: whether the model is told a pair's second text from its first; without it, type ids are 0.
    split_special: a special token's name in a text is read as any other word.
    special: (purpose, token) of each special token with a purpose, ("pad_token", "<pad>"); () where nothing says it.
    """

    truncation_side: str = "right"
    padding_side: str = "right"
    type_ids: bool = True
    split_special: bool = False
    special: tuple[tuple[str, str], ...] = ()


class Tokenizer:
    """A tokenizer with the model's length limit: `tokenizer(examples)` -> Batch, or `encode` once and `batch` often."""

    def __init__(
        self, backend: BackendTokenizer, max_len: int, pad: int = 0, settings: Settings = Settings()
    ):
        self.max_len, self.pad, self.settings = max_len, pad, settings
        self.warned = False  # whether the warning that texts are truncated was printed
        self.backend = backend
        backend.no_padding()  # batch() pads, each batch to its longest text
        backend.enable_truncation(max_len, direction=settings.truncation_side)
        backend.encode_special_tokens = settings.split_special

    @classmethod
    def from_vocab(cls, vocab: dict[str, int], max_len: int, lowercase: bool = True) -> Tokenizer:
        """BERT's WordPiece from a vocabulary alone (an old folder's vocab.txt). Raises BadInput."""
        if missing := [token for token in ("[UNK]", "[CLS]", "[SEP]", "[PAD]") if token not in vocab]:
            raise BadInput(f"the vocabulary lacks {', '.join(missing)}, which BERT needs: it is not a BERT vocab.txt")
        backend = BackendTokenizer(WordPiece(vocab, unk_token="[UNK]"))
        backend.normalizer = BertNormalizer(lowercase=lowercase)
        backend.pre_tokenizer = BertPreTokenizer()
        backend.post_processor = TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])])
        backend.add_special_tokens(
            [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in vocab]
        )
        return cls(backend, max_len, vocab["[PAD]"])

    @classmethod
    def from_merges(
        cls, vocab: dict[str, int], merges: list[tuple[str, str]], max_len: int, pad: int, bracketed: bool,
        prefix: bool = False,
    ) -> Tokenizer:
        """The byte-level BPE of RoBERTa (`bracketed`: <s> A </s>, pairs <s> A </s></s> B </s>) or GPT-2, from
        vocab.json and merges.txt.

        prefix: a blank is put before a text without one, so that its first word is tokenized like any other. Raises
        BadInput.
        """
        try:
            backend = BackendTokenizer(BPE(vocab, merges))
        except Exception as error:  # the library raises nothing narrower
            reason = " ".join(str(error).split())  # on one line
            raise BadInput(
                f"vocab.json and merges.txt do not fit each other ({reason}): take both from the same checkpoint"
            ) from None
        backend.pre_tokenizer = ByteLevel(add_prefix_space=prefix)
        backend.decoder = ByteLevelDecoder()
        backend.add_special_tokens(
            [token for token in ("<s>", "<pad>", "</s>", "<unk>", "<|endoftext|>") if token in vocab]
        )
        if "<mask>" in vocab:
            backend.add_special_tokens([AddedToken("<mask>", lstrip=True)])
        if bracketed:
            if missing := [token for token in ("<s>", "</s>") if token not in vocab]:
                raise BadInput(
                    f"the vocabulary lacks {', '.join(missing)}, which RoBERTa needs: it is not a RoBERTa vocab.json"
                )
            backend.post_processor = RobertaProcessing(
                ("</s>", vocab["</s>"]), ("<s>", vocab["<s>"]), add_prefix_space=prefix
            )
        return cls(backend, max_len, pad)

    @property
    def special(self) -> set[int]:
        """The ids of the special tokens, which stand for no text: [CLS], [MASK], ..."""
        return {i for i, token in self.backend.get_added_tokens_decoder().items() if token.special}

    def encode(self, examples: Iterable[Example]) -> Encoded:
        """The token ids of each text or pair, truncated to max_len; the first truncation prints a warning."""
        examples = list(examples)
        ids, types, cut = [], [], 0
        known: dict[int, int] = {}         # of equal numbers and equal type ids one in memory, however many texts
        kinds: dict[tuple[int, ...], list[int]] = {}
        for start in range(0, len(examples), PIECE):
            for row in self._encoded(examples[start:start + PIECE]):
                cut += bool(row.overflowing)
                # Without special tokens (GPT-2) an empty text has no token at all, and a model nothing to read: it
                # gets one of padding.
                ids.append([known.setdefault(i, i) for i in row.ids] or [self.pad])
                kind = tuple(row.type_ids) or (0,) if self.settings.type_ids else (0,) * len(ids[-1])
                types.append(kinds.setdefault(kind, list(kind)))
        if not self.warned and cut:
            self.warned = True
            print(
                f"{cut} of {len(examples)} texts are longer than the model's {self.max_len} tokens and are truncated "
                f"(this warning comes once)",
                file=sys.stderr,
            )
        return Encoded(ids, types, [x.label for x in examples])

    def _encoded(self, examples: Sequence[Example]) -> list[Encoding]:
        """The library's result for each text or pair. Raises BadInput where the library fails on one."""
        try:
            return self.backend.encode_batch([x.text if x.pair is None else (x.text, x.pair) for x in examples])
        except BaseException as error:
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise BadInput(f"the tokenizer fails on a text among {len(examples)} ({one_line(error)}): take the model's "
                           f"tokenizer.json") from None

    def batch(self, rows: Encoded, which: Sequence[int]) -> Batch:
        """The rows with the indices `which`, padded to the longest of them: B = len(which)."""
        t = max(len(rows.ids[i]) for i in which)
        ids = torch.tensor([rows.ids[i] + [self.pad] * (t - len(rows.ids[i])) for i in which])  # (B, T)
        token_type_ids = torch.tensor([rows.token_type_ids[i] + [0] * (t - len(rows.token_type_ids[i])) for i in which])
        lengths = torch.tensor([len(rows.ids[i]) for i in which])
        return Batch(
            ids, torch.arange(t) < lengths[:, None], token_type_ids, torch.tensor([rows.labels[i] for i in which])
        )

    def __call__(self, examples: Iterable[Example]) -> Batch:
        rows = self.encode(examples)
        return self.batch(rows, range(len(rows)))
