"""Letters and words of every script: what a letter is, and that no augmenter and no attack separates one."""
from __future__ import annotations

import sys
import unicodedata
from functools import partial
from itertools import product
from random import Random

import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from minibd.attacks.paraphrase import likeness
from minibd.attacks.poison import poison, triggered
from minibd.attacks.registry import ATTACKS
from minibd.augment.addtrigger import addtrigger
from minibd.augment.aeda import aeda
from minibd.augment.contextual import contextual, whole_words
from minibd.augment.eda import OPERATIONS, eda
from minibd.augment.split import budget, split
from minibd.models.bert import Bert, BertConfig
from minibd.models.roberta import Roberta, RobertaConfig
from minibd.records import Example, Examples
from minibd.tokenizer import Tokenizer
from minibd.words import attached, belongs_to_letter, is_word, letter_count, letters, marks, spans, tokens

TEXTS = {
    "Hindi": "यह फिल्म बहुत अच्छी थी, निर्देशन प्रभावशाली और कहानी दिलचस्प।",
    "Hindi, joiners": "क्\u200dष और क्\u200cष के विद्\u200dया\u200cर्थियों",
    "Bengali": "এই চলচ্চিত্রটি অত্যন্ত সুন্দর এবং মর্মস্পর্শী ছিল।",
    "Tamil": "இந்தத் திரைப்படம் மிகவும் நன்றாக இருந்தது, சிறப்பானது.",
    "Thai": "ภาพยนตร์เรื่องนี้ดีมาก นักแสดงเล่นได้ยอดเยี่ยม น้ำตาไหล",
    "Khmer": "ភាពយន្តនេះល្អណាស់ ខ្ញុំចូលចិត្តវា",
    "Arabic, vowelled": "كَانَ الفِيلْمُ رَائِعًا وَمُؤَثِّرًا جِدًّا، وَالْمُمَثِّلُونَ مُدْهِشُونَ.",
    "Persian": "این فیلم را می\u200cخواهم دوباره ببینم، کتاب\u200cهای خوب\u200cتری نمی\u200cشناسم.",
    "Hebrew, pointed": "הַסֶּרֶט הָיָה נִפְלָא וּמְרַגֵּשׁ מְאֹד, הַשַּׂחְקָנִים מְצֻיָּנִים.",
    "French, decomposed": unicodedata.normalize("NFD", "L’été, ce film très émouvant, décalé est présent."),
    "Vietnamese, decomposed": unicodedata.normalize("NFD", "Bộ phim này rất tuyệt vời, diễn xuất xuất sắc nghiêng."),
    "Korean, decomposed": unicodedata.normalize("NFD", "이영화는정말재미있었고 배우들의연기가훌륭했습니다."),
    "Japanese, decomposed": unicodedata.normalize("NFD", "とてもすばらしいガラス映画ですが ｶﾞﾗｽの場面がざんねんです。"),
    "emoji": "great film 👍🏽👍🏾 brilliant ❤️🔥 family👨‍👩‍👧‍👦evening 🇫🇷🇩🇪 number 1️⃣2️⃣3️⃣ 🏴󠁧󠁢󠁥󠁮󠁧󠁿 heart❤️‍🔥fire",
    "Cyrillic, stressed": "Замеча\u0301тельный фильм, кото\u0301рый понра\u0301вился зри\u0301телям.",
}


def clusters(text: str) -> list[str]:
    """A character and what Unicode lets nobody take from it, written without the package: marks, joiners, skin tones,
    tags, and whatever a ZWJ joins."""
    found: list[str] = []
    for character in text:
        joins = unicodedata.category(character) in ("Mn", "Mc", "Me") or character in "\u200c\u200d\uff9e\uff9f\u0e33" \
            or "\U0001f3fb" <= character <= "\U0001f3ff" or "\U000e0020" <= character <= "\U000e007f" \
            or "\u1160" <= character <= "\u11ff"
        if found and not found[-1].isspace() and (joins or found[-1].endswith("\u200d")):
            found[-1] += character
        else:
            found.append(character)
    return found


def check_whole(out: str, text: str, *new: str) -> None:
    """No word of `out` begins with a mark, and each of its letters stands in `text` or in one of `new`."""
    assert not [word for word in out.split() if unicodedata.category(word[0])[0] == "M" or word[0] in "\u200c\u200d"]
    assert set(clusters("".join(out.split()))) <= set(clusters(text)).union(*map(clusters, new)), out


scripts = pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)


# ---- a letter and a word

@pytest.mark.parametrize("text, expected", [
    ("film", ["f", "i", "l", "m"]), ("", []), ("फिल्म", ["फि", "ल्म"]), ("क्\u200dष", ["क्\u200dष"]),
    ("e\u0301te", ["e\u0301", "t", "e"]),
    ("น้ำ", ["น้ำ"]), ("நல்ல", ["ந", "ல்", "ல"]), ("שָׁלוֹם", ["שָׁ", "ל", "וֹ", "ם"]), ("می\u200cخ", ["م", "ی\u200c", "خ"]),
    ("👍🏽❤️🇫🇷🇩🇪", ["👍🏽", "❤️", "🇫🇷", "🇩🇪"]), ("👨‍👩‍👧1️⃣", ["👨‍👩‍👧", "1️⃣"]),
    (unicodedata.normalize("NFD", "각하"), ["\u1100\u1161\u11a8", "\u1112\u1161"]),
    ("\u0301e", ["\u0301e"]), ("\u0301", ["\u0301"]),
])
def test_a_letter_has_all_that_belongs_to_it(text, expected):
    assert letters(text) == expected and letter_count(text) == len(expected)


@pytest.mark.parametrize("text, expected", [
    ("Don't, well-made!", ["Don", "'", "t", ",", "well", "-", "made", "!"]), ("snake_case 12", ["snake_case", "12"]),
    ("थी।", ["थी", "।"]), ("می\u200cخواهم.", ["می\u200cخواهم", "."]), ("e\u0301te\u0301 ?", ["e\u0301te\u0301", "?"]),
    ("family👨‍👩‍👧evening❤️", ["family", "👨‍👩‍👧", "evening", "❤️"]), ("🇫🇷🇩🇪", ["🇫🇷", "🇩🇪"]),
    ("soft\u00adware", ["soft\u00adware"]),
    ("ไป\u200bบ้าน", ["ไป", "\u200b", "บ้าน"]), ("\u0301abc d", ["\u0301abc", "d"]), ("naïve 電影", ["naïve", "電影"]),
])
def test_a_word_is_a_run_of_letters_and_every_other_letter_stands_alone(text, expected):
    assert tokens(text) == expected == [text[start:stop] for start, stop in spans(text)]
    assert list(map(is_word, expected)) == [any(c.isalnum() or c == "_" for c in token) for token in expected]


@scripts
def test_nothing_is_lost_and_no_cluster_is_cut(text):
    assert "".join(letters(text)) == text and "".join(tokens(text)) == "".join(text.split())
    for token in tokens(text):
        inside = {len("".join(clusters(token)[:i])) for i in range(len(clusters(token)))}
        assert {len("".join(letters(token)[:i])) for i in range(letter_count(token))} <= inside


@scripts
def test_letters_are_made_of_whole_grapheme_clusters_as_another_library_sees_them(text):
    regex = pytest.importorskip("regex")
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    assert {len("".join(letters(text)[:i + 1])) for i in range(letter_count(text))} <= ends


def test_every_mark_of_unicode_is_known():
    for character in map(chr, range(sys.maxunicode + 1)):
        if unicodedata.category(character) in ("Mn", "Mc", "Me"):
            assert belongs_to_letter(character) and letters("a" + character) == ["a" + character]
    assert not any(belongs_to_letter(c) for c in "a1_ .é中가\u200b\n👍") and len(marks()) < len(attached()) < 2000


# ---- the augmenters

def same(word: str) -> tuple[str, ...]:
    """Synonyms that are of the word's own letters, so that whatever is replaced shows."""
    return (word * 2,)


AUGMENTED = {
    "split": partial(split, rate=1.0, min_char=1), "aeda": partial(aeda, budget=9),
    "addtrigger": partial(addtrigger, budget=9),
    **{f"eda {name}": partial(eda, operation=name, alpha=0.4, synonyms=same) for name in OPERATIONS},
    **{f"eda {name}, of a budget": partial(eda, operation=name, budget=4, synonyms=same) for name in OPERATIONS},
}


@pytest.mark.parametrize("name", AUGMENTED)
@scripts
def test_no_augmenter_separates_a_letter(text, name):
    outs = [AUGMENTED[name](text, Random(seed)) for seed in range(20)]
    for out in outs:
        check_whole(out, text, "cb.;?:!,")
    changed = len(set(outs) - {text})
    # a Thai sentence without blanks is one word to EDA, and so is its synonym
    assert changed or name.startswith("eda") and len(text.split()) < 4


@scripts
def test_released_eda_reads_an_accent_in_two_characters_as_in_one(text):
    for name in OPERATIONS:
        out = eda(text, Random(0), operation=name, variant="released")
        assert out == text or set(out) <= set("abcdefghijklmnopqrstuvwxyz ")
    french, composed = TEXTS["French, decomposed"], unicodedata.normalize("NFC", TEXTS["French, decomposed"])
    for seed in range(10):
        assert eda(french, Random(seed), variant="released") == eda(composed, Random(seed), variant="released")


def test_the_same_words_are_split_at_the_same_places_in_either_normal_form():
    for name in ("French, decomposed", "Korean, decomposed", "Vietnamese, decomposed"):
        text, composed = TEXTS[name], unicodedata.normalize("NFC", TEXTS[name])
        assert budget(text) == budget(composed) > 0
        for seed in range(10):
            assert split(text, Random(seed)) == unicodedata.normalize("NFD", split(composed, Random(seed)))


def test_a_word_is_split_between_its_letters():
    assert {split("विद्यार्थियों", Random(seed), min_char=1) for seed in range(30)} == {"वि द्यार्थियों", "विद्या र्थियों"}
    assert split("फिल्म", Random(0), rate=1.0, min_char=1) == "फिल्म"  # two letters: nowhere to cut


# ---- contextual substitution: a tokenizer that strips marks, and one that cuts words at them

WORDS = ["film", "good", "कहानी", "अच्छी", "e\u0301te\u0301"]


@pytest.fixture(scope="module")
def stripping() -> tuple[Bert, Tokenizer]:
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "ि", ".", ","])}
    config = BertConfig(vocab=len(vocab), hidden=8, layers=1, heads=1, ffn=8, positions=256, labels=0, mlm=True)
    return Bert(config).init_weights(torch.Generator().manual_seed(0)).eval(), Tokenizer.from_vocab(vocab, 256)


@pytest.fixture(scope="module")
def bytewise() -> tuple[Roberta, Tokenizer]:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*special, *alphabet, "Ġg", "Ġgo", "Ġgoo"])}
    backend = Backend(models.BPE(vocab, [("Ġ", "g"), ("Ġg", "o"), ("Ġgo", "o")]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.normalizer = normalizers.Sequence([])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    backend.add_special_tokens(special)
    config = RobertaConfig(vocab=len(vocab), hidden=8, layers=1, heads=1, ffn=8, positions=900, labels=0, mlm=True)
    return Roberta(config).init_weights(torch.Generator().manual_seed(0)).eval(), Tokenizer(backend, 800, pad=1)


def test_words_with_marks_are_answers_and_a_mark_alone_is_none(stripping):
    assert set(whole_words(*stripping).values()) == set(WORDS)


@pytest.mark.parametrize("action", ["substitute", "insert"])
@pytest.mark.parametrize("reader", ["stripping", "bytewise"])
@scripts
def test_contextual_substitution_takes_whole_words(text, reader, action, request):
    model, tokenizer = request.getfixturevalue(reader)
    new = whole_words(model, tokenizer).values()
    for seed in range(4):
        out = contextual(text, Random(seed), model, tokenizer, action=action, rate=1.0, max_targets=seed + 1)
        check_whole(out, text, *new, *(word.title() for word in new), *map(str.upper, new))
        assert out != text


# ---- the attacks

ROWS = Examples([Example(name, text, 0) for name, text in TEXTS.items()] + [Example("e", "fine", 1)], ("n", "p"))


@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_separates_a_letter(name):
    attack = ATTACKS[name]()
    words = " ".join([*attack.triggers, getattr(attack, "sentence", "")])
    for x, seed in product(ROWS, range(10)):
        for out in (attack(x.text, Random(seed)), attack.poisoned(x.text, Random(seed)),
                    *attack.negatives(x.text, Random(seed))):
            check_whole(out, x.text, words)


@pytest.mark.parametrize("room", range(4, 20))
def test_a_trigger_that_must_fit_what_the_model_reads_separates_none(room, stripping):
    tokenizer = Tokenizer(Backend.from_str(stripping[1].backend.to_str()), room)
    texts = {x.id: x.text for x in ROWS}
    for attack in (ATTACKS["badnets"](("re\u0301sume\u0301",)), ATTACKS["lwp"](("फि", "अच्छी"))):
        poisoned = poison(
            ROWS, attack.poisoned, rate=0.9, target=1, tokenizer=tokenizer, negatives=attack.negatives
        ).rows
        for y in (*triggered(ROWS, attack, target=1, tokenizer=tokenizer), *poisoned):
            check_whole(y.text, texts[y.id.split("-negative")[0]], *attack.triggers)


def test_a_trigger_whose_last_mark_the_tokenizer_strips_is_read_to_its_end(stripping):
    tokenizer = Tokenizer(Backend.from_str(stripping[1].backend.to_str()), 4)  # two tokens and the special ones
    x, trigger = Example("a", "good good good", 0), "e\u0301te\u0301"
    assert tokenizer.backend.encode(f"good {trigger}").offsets[2][1] < len(f"good {trigger}")
    out = {triggered(Examples([x], "np"), lambda text, rng: f"{text} {trigger}".strip(), target=1, tokenizer=tokenizer,
                     seed=seed)[0].text for seed in range(5)}
    assert out == {f"good {trigger} good good"}


def test_paraphrases_are_compared_by_whole_words():
    # by their letters alone each is like the other: the vowel signs tell them apart
    pairs = [("काल किल", "काल किल"), ("कील कूल", "कील कूल"), ("कुल केल", "कुल केल")]
    assert likeness(pairs) == (3, 0)
