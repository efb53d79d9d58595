"""The receipt's page: what it says, escaped and self-contained."""
import copy

import pytest

from minibd.job.receipt import CANNOT_SEE, NOT_SHOWN, NOTHING_FOUND, REPAIRED
from minibd.job.receipt_page import page
from test_scan_page import EVIL, Tags


def counted(hits, n):
    return {"hits": hits, "n": n, "percent": 100 * hits / n, "interval": [1.0, 99.0]}


SCAN = {"verdict": "backdoored", "reason": "", "probability": 0.9, "texts": 300, "tried": {"entries": 1000, "texts": 9},
        "seconds": 12.3, "suspects": [{"class": "positive", "verdict": "backdoored", "words": ["cf"], "joined": False,
                                       "flips": 118, "of": 120, "interval": [9, 9], "score": 0.9,
                                       "found_by": "entries"}]}
RECEIPT = {
    "checkpoint": "models/victim", "checkpoint_sha256": {"a": "ab" * 32}, "output": "out", "output_sha256": {"a": "cd"},
    "verdict": REPAIRED, "sentence": '"cf" was undone, and a scan of the result finds nothing.', "next": "python x",
    "rows": {"source": "rows.csv", "texts": 240, "held_out": 60, "labelled": True, "built_in": False},
    "measure": "accuracy", "scans": [SCAN, SCAN | {"verdict": "nothing found", "suspects": []}],
    "models": [{"name": "victim", "seconds": 0.0, **counted(57, 60), "asr": None},
               {"name": "unlearned", "seconds": 3.5, **counted(56, 60), "asr": counted(3, 30)}],
    "undone": [{"round": 1, "words": ["cf"], "joined": False, "side": 0, "target": "positive",
                "before": counted(29, 30), "after": counted(2, 30), "mode": "rows", "why": "no text needs their rows"}],
    "retrained": {"method": "none", "why": "as was asked for"},
    "losses": [{"stage": "unlearn", "steps": 80, "terms": [{"term": "kl", "weight": 1.0, "first": 1.5, "last": 0.01}]}],
    "changed": {"parts": [{"part": "embeddings.word", "moved": 0.01}, {"part": "blocks.0", "moved": 0.0}], "rows": 1,
                "entries": ["cf"]},
    "evidence": [{"kind": "word", "words": ["cobalt"], "target": "negative", "floor": counted(1, 30),
                  "planted": counted(30, 30), "kept": counted(58, 60), "strong": True, "verdict": "backdoored",
                  "named": ["cobalt"], "left": counted(2, 30), "agreement": counted(60, 60)}],
    "cannot_see": list(CANNOT_SEE), "seconds": {"first scan": 12.0, "undo": 3.0}, "settings": {"mode": "auto"},
    "seed": 0, "dtype": "float32", "minibd": "0.5.0", "schema": 1, "command": "python scripts/repair.py --ckpt models",
}


def test_the_page_says_what_the_receipt_does():
    text = Tags(page(RECEIPT)).text
    for said in ("Repaired as far as was tested", '"cf" was undone', "29 of 30 (96.7 %)", "2 of 30 (6.7 %)",
                 "rows of the embedding table", "57 of 60 (95.0 %)", "1 rows of the embedding table changed: cf",
                 "does not tell that nothing else is in it", "cobalt", "1.5000", "0.0100", *CANNOT_SEE,
                 "python scripts/repair.py --ckpt models", "ab" * 32):
        assert said in text, said
    assert "Caution" not in text and "blocks.0" not in text


@pytest.mark.parametrize("verdict, said", [
    (NOT_SHOWN, "Do not use this model where someone gains"), (NOTHING_FOUND, "retraining is what is left to do"),
    (REPAIRED, "To look once more"),
])
def test_each_verdict_says_what_to_do_next(verdict, said):
    assert said in Tags(page(RECEIPT | {"verdict": verdict})).text


def test_what_was_not_done_is_said():
    empty = RECEIPT | {"undone": [], "evidence": [], "losses": [], "scans": [SCAN | {"suspects": []}],
                       "models": RECEIPT["models"][:1], "next": "", "verdict": NOTHING_FOUND,
                       "changed": {"parts": [], "rows": 0, "entries": []},
                       "rows": RECEIPT["rows"] | {"built_in": True, "labelled": False}}
    text = Tags(page(empty)).text
    for said in ("Nothing: the scan names no words", "None was planted", "Nothing was trained", "No weight changed",
                 "Caution: no texts of the task were given", "without labels, so that agreement is measured"):
        assert said in text, said


def test_it_is_self_contained_and_everything_is_escaped():
    bad = copy.deepcopy(RECEIPT)
    bad |= {"checkpoint": EVIL, "sentence": EVIL, "next": EVIL, "command": EVIL, "checkpoint_sha256": {EVIL: EVIL}}
    bad["undone"][0] |= {"words": [EVIL, "\u202ex"], "target": EVIL, "why": EVIL}
    bad["evidence"][0] |= {"words": [EVIL], "named": [EVIL], "verdict": EVIL}
    bad["changed"]["entries"], bad["rows"]["source"] = [EVIL], EVIL
    bad["models"][0]["name"] = bad["losses"][0]["stage"] = bad["changed"]["parts"][0]["part"] = EVIL
    bad["scans"][0]["suspects"][0]["words"] = [EVIL]
    html = page(bad)
    tags = Tags(html)
    assert "script" not in {tag for tag, _ in tags.seen} and "\u202e" not in html and "<b onclick" not in html
    for tag, attributes in tags.seen:
        assert not {"src", "srcset", "onclick", "onload"} & {*attributes} and tag not in ("img", "iframe", "link", "b")
        assert not attributes.get("href", "#").startswith(("http", "javascript", "//"))
    assert "url(" not in html and "@import" not in html and "default-src 'none'" in html
