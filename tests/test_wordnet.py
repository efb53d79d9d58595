"""WordNet's files: a small folder made here, by hand; Debian's, where they are; NLTK's reader, where it is. And the
lexicon of our own."""

import os
import shutil
from itertools import chain
from pathlib import Path
from random import Random

import pytest

from conftest import fails
from minibd.augment import lexicon
from minibd.augment.wordnet import ENDINGS, KINDS, WordNet, base_forms, others

WORDNET = Path(os.environ.get("WNSEARCHDIR", "/usr/share/wordnet"))  # WordNet's own variable; Debian's place
real = pytest.mark.skipif(
    not (WORDNET / "index.noun").is_file(), reason="WordNet's files are not here (apt install wordnet-base)"
)
LICENCE = "  1 This software and database is being provided to you, the LICENSEE\n  2 by Princeton University  \n"
SETS = {
    "noun": ["movie film Motion_picture", "film plastic_film", "Wolf", "man adult_male", "glass"],
    "verb": ["film shoot", "run go", "leave", "make"],
    "adj": ["good", "galore(ip) many(a) abounding(p)", "well-made good", "big"],
    "adv": ["well good"],
}
EXCEPTIONS = {
    "noun": "geese goose\nmen man\nleaves leaf leave\n", "verb": "ran run\n", "adj": "better good well\n",
    "adv": "best well\n",
}


def write(folder: Path, sets=SETS) -> Path:
    """The files as wndb(5WN) has them, a few pointers and a frame among the fields behind the words."""
    for kind in KINDS:
        data, at = LICENCE, {}
        for words in map(str.split, sets[kind]):
            offset = f"{len(data.encode()):08}"
            listed = " ".join(f"{word} {i:x}" for i, word in enumerate(words))
            data += (
                f'{offset} 03 {kind[0]} {len(words):02x} {listed} 001 @ 00000001 n 0000 | a gloss; "of {words[0]}"  \n'
            )
            for word in words:
                at.setdefault(word.partition("(")[0].lower(), []).append(offset)
        (folder / f"data.{kind}").write_bytes(data.encode())
        lines = (
            f"{lemma} {kind[0]} {len(offsets)} 1 @ {len(offsets)} 0 {' '.join(offsets)}  \n"
            for lemma, offsets in sorted(at.items())
        )
        (folder / f"index.{kind}").write_text(LICENCE + "".join(lines))
        (folder / f"{kind}.exc").write_text(EXCEPTIONS[kind])
    return folder


@pytest.fixture
def small(tmp_path) -> WordNet:
    return WordNet(write(tmp_path))


# ---- the small folder

def test_the_sets_of_a_word_come_in_the_files_order_by_part_of_speech(small):
    assert small.synsets("film", "noun") == [("movie", "film", "Motion_picture"), ("film", "plastic_film")]
    assert small.synsets("film", "verb") == [("film", "shoot")]
    assert small.synsets("film", "adj") == small.synsets("1", "noun") == small.synsets("", "noun") == []


def test_synonyms_of_every_part_of_speech_each_once_and_never_the_word(small):
    assert small.synonyms("film") == ("movie", "Motion picture", "plastic film", "shoot")
    assert small.synonyms("film", "verb") == ("shoot",)
    assert small.synonyms("film", "noun") == ("movie", "Motion picture", "plastic film")
    assert small.synonyms("good") == ("well-made", "well") and small.synonyms("wolf") == small.synonyms("zebra") == ()
    assert small.synonyms("good", "adv") == ("well",)


def test_case_and_blanks_of_the_word_do_not_matter(small):
    assert small.synonyms("FILM") == small.synonyms("film")
    assert small.synonyms("motion picture") == small.synonyms("motion_picture")[:2] == ("movie", "film")


def test_where_an_adjective_may_stand_is_no_part_of_it(small):
    assert small.synsets("many", "adj") == [("galore", "many", "abounding")]


def test_more_words_than_nine_are_counted_in_hexadecimal(tmp_path):
    words = [f"w{letter}" for letter in "abcdefghijklmnopq"]  # 17 = 0x11
    assert WordNet(write(tmp_path, SETS | {"noun": [" ".join(words)]})).synsets("wc", "noun") == [tuple(words)]


def test_an_inflected_form_is_looked_up_under_its_base_forms(small):
    assert small.synsets("films", "noun") == small.synsets("film", "noun")
    assert small.synonyms("films") == ("movie", "film", "Motion picture", "plastic film", "shoot")
    assert small.synonyms("wolves", "noun") == ("Wolf",) and small.synonyms("glasses") == ("glass",)
    assert small.synonyms("ran") == ("run", "go") and small.synonyms("filming") == ("film", "shoot")
    assert small.synonyms("men") == ("man", "adult male")
    assert small.synonyms("better", "adj") == ("good", "well-made")  # better good well; well is no adjective here


KNOWN = {
    "box", "bus", "quiz", "church", "wish", "wolf", "city", "fireman", "star", "starr", "bake", "cry", "fine", "leave",
    "axe", "ax",
}


@pytest.mark.parametrize(
    "form, kind, bases",
    [
        ("stars", "noun", ["star"]), ("boxes", "noun", ["box"]), ("buses", "noun", ["bus"]),
        ("quizes", "noun", ["quiz"]), ("churches", "noun", ["church"]), ("wishes", "noun", ["wish"]),
        ("wolves", "noun", ["wolf"]), ("cities", "noun", ["city"]), ("firemen", "noun", ["fireman"]),
        ("stars", "verb", ["star"]), ("bakes", "verb", ["bake"]), ("wishes", "verb", ["wish"]),
        ("cries", "verb", ["cry"]), ("baked", "verb", ["bake"]), ("starred", "verb", ["starr"]),
        ("baking", "verb", ["bake"]), ("wishing", "verb", ["wish"]), ("finer", "adj", ["fine"]),
        ("finest", "adj", ["fine"]), ("starrer", "adj", ["starr"]), ("starrest", "adj", ["starr"]),
        ("axes", "noun", ["axe", "ax"]), ("star", "noun", ["star"]), ("stars", "adv", []), ("finer", "noun", []),
        ("baked", "noun", []), ("s", "noun", []),
    ],
)
def test_each_ending_is_taken_off_and_only_known_words_stay(form, kind, bases):
    assert base_forms(form, kind, KNOWN, {}) == bases


def test_where_an_exception_names_base_forms_no_ending_is_taken_off():
    assert base_forms("axes", "noun", KNOWN, {"axes": ["axis", "wolf"]}) == ["wolf"]
    assert base_forms("leaves", "noun", KNOWN | {"leaves"}, {"leaves": ["leave"]}) == ["leaves", "leave"]


def test_members_of_several_sets_count_once():
    assert others("B", [["a", "b", "c_d"], ["b", "a", "e"]]) == ("a", "c d", "e")


def test_a_folder_that_lacks_files_is_refused(tmp_path):
    write(tmp_path)
    for name in ("data.verb", "adv.exc", "index.adj"):
        (tmp_path / name).unlink()
    line = fails(lambda: WordNet(tmp_path), "data.verb", "adv.exc", "index.adj", str(tmp_path), "/usr/share/wordnet")
    assert "noun" not in line
    fails(lambda: WordNet(tmp_path / "nowhere"), "index.noun")


def test_files_whose_line_ends_were_changed_are_refused(tmp_path):
    data = write(tmp_path) / "data.noun"
    data.write_bytes(data.read_bytes().replace(b"\n", b"\r\n"))
    fails(lambda: WordNet(tmp_path).synonyms("film"), "data.noun", "line ends")


# ---- the real files

@pytest.fixture(scope="module")
def full() -> WordNet:
    return WordNet(WORDNET)


@real
def test_of_the_real_files_every_lemma_is_in_every_set_that_the_index_names(full):
    for kind in KINDS:
        assert len(full.index[kind]) > 3000
        for lemma in Random(0).sample(sorted(full.index[kind]), 1500):
            sets = full.synsets(lemma, kind)
            own = sets[:int(full.index[kind][lemma].split()[1])]  # other base forms' come after
            assert own and all(lemma in map(str.lower, words) for words in own), (kind, lemma)


@real
def test_words_of_the_real_files(full):
    assert {"movie", "picture", "motion picture", "pic", "shoot"} <= set(full.synonyms("film"))
    assert full.synonyms("motion picture", "noun")[:2] == ("movie", "film")
    assert (
        "goose" in full.synonyms("geese")
        and "good" in full.synonyms("better")
        and "run" in full.synonyms("ran", "verb")
    )
    assert "galore" in full.synsets("galore", "adj")[0]
    for word in ("", " ", "_", "zzzz", "the", "\U0001f600", "the\nfilm", "film noun"):
        assert full.synonyms(word) == ()


@real
def test_the_real_files_read_as_nltk_reads_them(full, tmp_path, monkeypatch):
    nltk = pytest.importorskip("nltk")
    from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Reader(WordNetCorpusReader):
        def map_wn(self, version="wordnet"):  # other languages', which need files that are not here
            return None
    shutil.copytree(WORDNET, tmp_path, dirs_exist_ok=True)  # NLTK follows no links
    if not (tmp_path / "lexnames").exists():
        (tmp_path / "lexnames").write_text("".join(f"{i:02}\tlexname.{i}\t1\n" for i in range(45)))
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    theirs = Reader(str(tmp_path), None)
    rng = Random(0)
    for kind, pos in zip(KINDS, "nvar"):
        words = rng.sample(sorted(full.index[kind]), 200) + rng.sample(
            sorted(full.exceptions[kind]), min(100, len(full.exceptions[kind]))
        )
        for word in [*words, *(word + "s" for word in words), *(word + "ed" for word in words)]:
            expected = [tuple(lemma.name() for lemma in synset.lemmas()) for synset in theirs.synsets(word, pos)]
            assert full.synsets(word, kind) == expected, (kind, word)


# ---- the lexicon

def test_every_line_of_the_lexicon_is_a_set_of_single_lower_case_words():
    count = 0
    for kind in KINDS:
        lines = lexicon.SETS[kind]
        assert len({frozenset(words) for words in lines}) == len(lines)
        for words in lines:
            assert len(words) == len(set(words)) > 1 and all(
                word.isalpha() and word.islower() and word.isascii() for word in words
            ), words
        count += len(lines)
    assert count > 500


def test_what_is_a_synonym_of_a_word_has_it_as_a_synonym():
    for sets in lexicon.SETS.values():
        for word in chain(*sets):
            found = lexicon.synonyms(word)
            assert found and word not in found and len(set(found)) == len(found)
            assert all(word in lexicon.synonyms(other) for other in found)


def test_words_of_the_lexicon():
    assert lexicon.synonyms("film") == lexicon.synonyms("FILM") == ("movie", "picture", "flick")
    assert set(lexicon.synonyms("films")) == {"film", "movie", "picture", "flick"}
    assert (
        "good" in lexicon.synonyms("better") and "see" in lexicon.synonyms("saw") and "man" in lexicon.synonyms("men")
    )
    assert lexicon.synonyms("boring") == ("dull", "tedious")  # not bored's, whose -ed is taken off to bore
    assert "tire" in lexicon.synonyms("bores")
    assert lexicon.synonyms("zebra") == lexicon.synonyms("") == lexicon.synonyms("12") == ()


def test_every_exception_of_the_lexicon_leads_to_a_word_of_it():
    for kind in KINDS:
        for form, bases in lexicon.EXCEPTIONS[kind].items():
            assert bases and all(base in chain(*lexicon.SETS[kind]) for base in bases), form


def test_every_part_of_speech_has_endings():
    assert tuple(ENDINGS) == KINDS
