"""The scan's page: what it says, escaped, self-contained, readable in light and dark, and in a browser at any width."""
import json
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minibd.detect.scan_page import SHOWN, TEXTS, decimal, page, percent
from minibd.detect.verdict import APART, TOGETHER
from minibd.detect.wording import BUILT_IN
from scan_reports import FOUND, NOTHING, UNUSABLE, judged, report, suspect

ROOT = Path(__file__).parents[1]
INLINE = {"bdi", "a", "i", "code"}
VOID = {"meta", "br", "hr", "img", "input", "link"}
EVIL = '</td></table><script>alert(1)</script><b onclick="x" title=\'y\'>&amp;'
STRANGE = [["x" * 3000], ["مرحبا"], ["שלום", "world"], ["\u202egnp.exe\u200b"], [EVIL, "b"]]
HOSTILE = report("backdoored", {
    EVIL: judged("backdoored", *map(suspect, STRANGE), suspect(["ünï", "漢字", "\x1b[31m"], joined=True)),
    "a very long class name that some data set has " * 20: judged("inconclusive", suspect(["a"], 60), reason=EVIL),
    "": judged("nothing found", score=None, probability=None, margin=None)},
    checkpoint=f"/models/{EVIL}", command=f"python scan.py {EVIL}", checkpoint_sha256={EVIL: "ab" * 32},
    settings={"hard_rows": 2, "phrase": 8, "note": EVIL}, reason=EVIL)
HOSTILE["texts"] |= {"source": EVIL, "hard": {EVIL: [EVIL, "long " * 400, "w" * 900, "مرحبا بالعالم", "bell\x07"]}}
MANY = report("nothing found", {f"class {i}": judged("nothing found", *(suspect([f"w{j}"], 30) for j in range(9)))
                                for i in range(40)})
REPORTS = {"found": FOUND, "nothing": NOTHING, "unusable": UNUSABLE, "hostile": HOSTILE, "many": MANY}


class Tags(HTMLParser):
    """The document's text, its elements with their attributes, and whether each is closed where it has to be."""

    def __init__(self, html):
        super().__init__()
        self.seen, self.open, self.text, self.said = [], [], "", []
        self.feed(html)
        assert not self.open
        self.text = " ".join("".join(self.said).split())

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in INLINE and (tag, *attributes) != ("span", ("class", "number")):
            self.said.append(" ")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.said.append(data)


@pytest.mark.parametrize("scan", REPORTS.values(), ids=REPORTS)
def test_a_page_is_well_formed_and_fetches_nothing(scan):
    html = page(scan)
    tags = Tags(html)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    links = [attributes["href"] for _, attributes in tags.seen if "href" in attributes]
    assert len(set(ids)) == len(ids) and links and {link[1:] for link in links} <= set(ids)
    assert not {"script", "link", "img", "iframe", "object", "b"} & {tag for tag, _ in tags.seen}
    assert not any(name.startswith("on") or name in ("src", "style") for _, given in tags.seen for name in given)
    assert not re.search(r"url\(|@import|https?:", html)
    assert "default-src 'none'" in html and html.encode("utf-8") and page(scan) == html
    heads = [tag for tag, _ in tags.seen if re.fullmatch("h[1-6]", tag)]
    assert heads.count("h1") == 1
    assert "None" not in tags.text and "nan" not in tags.text and "inf" not in tags.text.replace("inferred", "")


def test_a_found_backdoor_by_hand():
    html, text = page(FOUND), Tags(page(FOUND)).text
    assert "<title>Scan of models/victim: backdoored</title>" in html
    assert "This classifier is backdoored: the word cf takes 118 of 120 texts of other classes to positive." in text
    for fact in ("118 of 120 (98 %) 95 % interval 94.1 to 99.5 %", "12 of 200 (6 %)", "shift 13.1",
                 "entries beyond their neighbours", "mn bb each at a place of its own", "I watched side by side",
                 "without the weakest word: 3 of 20",
                 "score 0.77, probability 98 %", "score −0.30, probability under 1 %", "single entries 21,000",
                 "usual margin 7.9, 206 of the texts are given to it", "pairs 946",
                 "triples 364", "phrases 12", "texts with words in them 150,000",
                 "words and combinations 22,322",
                 "a joy from start to end of positive", "From 0.30 on: backdoored. From 0.00 on: inconclusive.",
                 "sha256 of model.safetensors " + "cd" * 32, "seed 7", "hard rows 2, places 3, phrase 8", "float32",
                 "seconds 55.1", "minibd 0.3.0", "python scripts/scan.py --ckpt models/victim --data rows.csv",
                 "scan.json"):
        assert fact in text, fact
    # the backdoored class comes first; its percentile of −0.04 is not said to be "−0.0"
    assert text.index("positive backdoored score") < text.index("negative nothing found score")
    assert "−0.0 " not in text and html.count('<svg class="bar"') == 4
    assert "repair.py" not in html


def test_the_formulas_are_those_of_the_code():
    """The score, Eq. Scan (8), and M, Eq. Scan (7), as they are read from left to right."""
    maths = ["".join(re.sub("<.*?>", "", one).split()) for one in re.findall("<math.*?</math>", page(FOUND), re.S)]
    assert "M=percentile90maxjmj(x)" in maths and "qt(w)=percentile10mt(x+w)" in maths
    assert "vt(w)=min(qt(w)M,max(qt(w)M+1|w|,qt(w)−meanxmt(x+w′)M)−1)" in maths
    assert "Vt=vt+(vt−maxu≠tvu)" in maths
    text = Tags(page(FOUND)).text
    assert f"flip {TOGETHER:.0f} % of the texts together, and no more than {APART:.0f} %" in " ".join(text.split())
    assert "median" not in text and "resist words of meaning best" in text
    assert "one text in ten has a larger one" in text


def test_a_suspect_of_several_entries_and_of_pairs():
    """The side is told of pairs alone, the number of entries where it is not that of the words."""
    classes = {"a": judged("backdoored", suspect(["velvet"], entries=3, side=1), suspect(["I", "was"], joined=True),
                           suspect(["mn", "bb"], entries=3))}
    text = Tags(page(report("backdoored", classes))).text
    assert "velvet 3 entries of the vocabulary" in text and "I was side by side entries" in text
    assert "mn bb each at a place of its own, 3 entries of the vocabulary" in text and "in the first text" not in text
    assert "of a pair" not in text and "in the second text" not in text
    pairs = report("backdoored", classes)
    pairs["texts"]["pairs"] = True
    text = Tags(page(pairs)).text
    assert "velvet 3 entries of the vocabulary, in the second text" in text
    assert "I was side by side, in the first text" in text
    assert "one of the two texts of a pair at a time" in text and "words in both texts of a pair" in text


def test_what_was_tried_is_what_was_read():
    most = FOUND | {"texts": FOUND["texts"] | {"read": 400}, "settings": FOUND["settings"] | {"phrase": 5}}
    text = Tags(page(most)).text
    assert "The model read 400 texts of 412, drawn by the seed (rows.csv). Every entry of the vocabulary" in text
    assert "phrases that grow to 5 entries at most" in text and "more than 5 entries of the vocabulary side by" in text
    assert "The model read 412 texts (rows.csv)." in Tags(page(FOUND)).text
    assert "Every entry of the vocabulary" not in Tags(page(UNUSABLE | {"tried": {"texts": 0}})).text


def test_the_bar_says_what_the_numbers_say():
    bars = re.findall(r"<svg.*?</svg>", page(FOUND))
    assert '<rect class="share" width="98.3"' in bars[0] and 'x1="94.1" x2="99.5"' in bars[0]
    assert 'aria-label="98.3 %, between 94.1 and 99.5 %"' in bars[0]
    assert bars[0].count('x1="6.0" x2="6.0"') == 2 and bars[1].count("<line") == 1  # the neighbours, if they were tried


def test_several_classes_are_said_in_one_sentence():
    classes = {name: judged("backdoored", suspect([f"w{name}"])) for name in "abcde"}
    said = re.search(r'<p class="verdict found">(.*?)</p>', page(report("backdoored", classes)))[1]
    assert said.startswith('This classifier is backdoored: the word <bdi class="word">wa</bdi> takes 118 of 120 texts')
    assert said.endswith('other classes to <bdi class="word">c</bdi> and 2 more classes have a trigger, too.')
    classes.pop("e")
    assert "and 1 more class has a trigger, too." in page(report("backdoored", classes))


def test_nothing_found_is_not_said_to_be_clean():
    html, text = page(NOTHING), Tags(page(NOTHING)).text
    assert "Nothing found: none of the words and combinations that were tried acts as a trigger" in text
    assert text.count("is clean") == text.count("no proof that a model is clean") == 1
    assert "The strongest words that were tried, none of them strong enough:" in text
    assert "No word came into question." in text and 'class="verdict"' in html


def test_an_inconclusive_scan_says_why():
    text = Tags(page(UNUSABLE)).text
    assert "which does not mean clean: the model gives every text to one class." in text
    assert "0 of the texts belong to other classes." in text and "score –, probability –, usual margin –" in text
    many = report("inconclusive", {name: judged("inconclusive", suspect(["w"])) for name in "abcde"})
    assert "words for a, b, c and 2 more are too strong for a clean model" in Tags(page(many)).text
    assert "inconclusive" in Tags(page(report("inconclusive", {}, reason="nan"))).text


def test_what_the_scan_cannot_see_depends_on_its_texts():
    own = FOUND | {"texts": FOUND["texts"] | {"source": BUILT_IN}}
    assert "built-in sentences stood in for them" in Tags(page(own)).text
    assert "stood in for" not in Tags(page(FOUND)).text
    for text in (Tags(page(scan)).text for scan in (FOUND, NOTHING, UNUSABLE)):
        assert "a syntax, a style" in text and "more words than were tried together" in text


def test_strange_words_are_shown_as_they_are():
    html, text = page(HOSTILE), Tags(page(HOSTILE)).text
    assert EVIL not in html and text.count(EVIL) >= 10
    assert "<U+202E>gnp.exe<U+200B>" in text and "<U+001B>[31m" in text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u202a-\u202e]", html)
    assert "x" * 120 + "…" in text and "x" * 121 not in text
    assert "bell<U+0007>" in text and "w" * 300 + "…" in text
    assert '<bdi class="word">(empty)</bdi>' in html and '<bdi class="word">שלום</bdi>' in html


def test_what_is_left_out_is_counted():
    for verdict, shown in SHOWN.items():
        one = report(verdict, {"a": judged(verdict, *(suspect([f"w{i}"]) for i in range(shown + 1001)))})
        html = page(one)
        assert html.count('<svg class="bar"') == shown and "1,001 weaker ones are in scan.json" in html
    one = report("nothing found", {"a": judged("nothing found")})
    one["texts"]["hard"] = {"a": [f"t{i}" for i in range(TEXTS + 2)]}
    assert "2 more are in scan.json" in page(one) and f"<bdi>t{TEXTS}</bdi>" not in page(one)
    assert "The texts that the search" not in page(one | {"texts": one["texts"] | {"hard": {}}})


@pytest.mark.parametrize("value, said", [(-0.74, "−0.7"), (0.75, "0.8"), (-0.04, "0.0"), (12345.67, "12345.7"),
                                         (None, "–"), (float("nan"), "–"), (float("-inf"), "–")])
def test_a_number(value, said):
    assert re.sub("<.*?>", "", decimal(value)) == said


@pytest.mark.parametrize("share, said", [(0.0, "under 1 %"), (0.0099, "under 1 %"), (0.01, "1 %"), (0.984, "98 %"),
                                         (0.99, "99 %"), (0.991, "over 99 %"), (1.0, "over 99 %"), (None, "–")])
def test_a_probability_is_never_certain(share, said):
    assert percent(share) == said


# ---- how it looks

def luminance(colour):
    """WCAG 2's relative luminance of #rrggbb."""
    channels = (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_and_bars_stand_out(scheme):
    """WCAG 2: 4.5 for text, 3 for what is drawn."""
    html = page(FOUND)
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", html, re.S)[scheme]))
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= set(colours)
    pairs = [*((text, "paper", 4.5) for text in ("ink", "soft", "link", "bad", "doubt")),
             *((text, "panel", 4.5) for text in ("ink", "soft", "link", "bad", "doubt")), ("ink", "alarm", 4.5),
             *((drawn, "paper", 3) for drawn in ("ink", "bad", "edge"))]
    for one, other, least in pairs:
        dark, light = sorted((luminance(colours[one]), luminance(colours[other])))
        assert (light + 0.05) / (dark + 0.05) >= least, f"{one} on {other}"


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
MEASURE = """
<body><script>
function measure() {
  document.body.textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, root = page.documentElement;
    const outside = [...page.body.querySelectorAll("*")].filter(e => {
      const box = e.getBoundingClientRect();
      return !e.closest("thead, math, svg") && box.width && (box.right > root.clientWidth + 1 || box.left < -1);
    });
    const squeezed = [...page.querySelectorAll("tbody td, tbody th")].filter(e => {
      const style = getComputedStyle(e), px = side => parseFloat(style["padding" + side]);
      return e.textContent.length > 8 && e.clientWidth && e.clientWidth - px("Left") - px("Right") < 70;
    });
    return [root.scrollWidth, root.clientWidth, outside.length, squeezed.length];
  }));
}
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_nothing_is_wider_than_the_page(tmp_path):
    """In a browser from a telephone's width to a screen's: no element reaches out of the page, no cell is a column of
    single letters."""
    widths, scans = (420, 720, 900, 1280), (FOUND, UNUSABLE, HOSTILE)
    frames = "".join(f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(page(scan))}"></iframe>'
                     for scan in scans for width in widths)
    (tmp_path / "frames.html").write_text(MEASURE + frames + '<script>addEventListener("load", measure)</script>')
    run = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                          "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                          (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(re.search(r"\[\[.*\]\]", run.stdout)[0])
    for width, (scroll, client, outside, squeezed) in zip(widths * len(scans), measured, strict=True):
        assert width - 20 <= client <= width and scroll <= client, (width, scroll, client)
        assert not outside and not squeezed, (width, outside, squeezed)


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None; import minibd.detect.scan_page, minibd.detect.sarif"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
