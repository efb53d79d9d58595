"""A scan's report as one HTML page to hand on: verdict, suspects, what was tried, what it means, what is not seen.

The page is self-contained and fetches nothing: style and bars stand in it, and it has no script. Whatever comes from a
file, be it a word of the vocabulary, a class name, a path or a text, is escaped.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from minibd.detect.wording import BUILT_IN, FOUND, INCONCLUSIVE, NOTHING, VERDICTS, deed, listed, of_verdict, visible
from minibd.html_style import STYLE as BASE
from minibd.html_style import document

SHOWN = {FOUND: 12, INCONCLUSIVE: 8, NOTHING: 3}  # suspects of a class; scan.json has all
CLASSES = 3  # that the verdict's sentence names
TEXTS = 12  # hard rows that are quoted
TONE = {FOUND: "bad", INCONCLUSIVE: "doubt", NOTHING: "calm"}

STYLE = BASE + """
html { font-size: clamp(16px, 0.2vw + 14px, 20px); }
body { max-width: 76rem; }
h2 { font-size: 1.4rem; margin: 2.8rem 0 0.6rem; padding-top: 0.9rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.15rem; margin: 2rem 0 0.3rem; overflow-wrap: anywhere; }
h4 { margin: 1.2rem 0 0.3rem; }
bdi { unicode-bidi: isolate; }
.word { padding: 0.05em 0.35em; background: var(--panel); border: 1px solid var(--line); border-radius: 4px;
        overflow-wrap: anywhere; white-space: break-spaces; -webkit-box-decoration-break: clone;
        box-decoration-break: clone; }
.soft { color: var(--soft); }
.bad { color: var(--bad); font-weight: 700; }
.doubt { color: var(--doubt); font-weight: 700; }
.calm { font-weight: 650; }
.verdict { margin: 1rem 0; padding: 0.9rem 1.1rem; max-width: none; border: 1px solid var(--line);
           border-left: 0.5rem solid var(--edge); border-radius: 6px; font-size: 1.2rem; overflow-wrap: anywhere; }
.verdict.found { border-color: var(--bad); background: var(--alarm); }
.verdict.unsure { border-color: var(--doubt); }
.facts { display: flex; flex-wrap: wrap; gap: 0.4rem 2.2rem; margin: 1rem 0; padding: 0; }
.facts dt, .meaning dt { color: var(--soft); font-size: 0.9rem; }
.facts dd { margin: 0; font-size: 1.25rem; font-weight: 650; line-height: 1.25; font-variant-numeric: tabular-nums;
            overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; margin: 0.6rem 0; font-size: 0.92rem;
        font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 0.9rem 0.4rem 0; border-bottom: 1px solid var(--line); text-align: left;
         vertical-align: baseline; font-weight: 400; }
thead th { color: var(--soft); font-weight: 600; line-height: 1.25; vertical-align: bottom; }
tr { break-inside: avoid; }
.number { white-space: nowrap; }
.note { display: block; color: var(--soft); font-size: 0.88em; }
.suspects { table-layout: fixed; }
.suspects thead :nth-child(1) { width: 25%; } .suspects thead :nth-child(2) { width: 18%; }
.suspects thead :nth-child(3) { width: 22%; } .suspects thead :nth-child(4) { width: 12%; }
.suspects thead :nth-child(5) { width: 14%; } .suspects thead :nth-child(6) { width: 9%; }
.bar { display: block; width: 100%; max-width: 13rem; height: 0.95rem; margin-top: 0.2rem; }
.bar .all { fill: var(--line); } .bar .share { fill: var(--edge); } .found .bar .share { fill: var(--bad); }
.bar line { vector-effect: non-scaling-stroke; stroke-width: 2px; stroke: var(--ink); }
.bar .edge { stroke-width: 6px; stroke: var(--paper); }
.meaning dt { margin-top: 1rem; color: var(--ink); font-size: 1rem; font-weight: 650; }
.meaning dd { margin: 0; }
.formula { overflow-x: auto; overflow-y: hidden; padding: 0.35rem 0; }
math { font-size: 1.2rem; font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; }
ul { margin: 0.4rem 0; padding-left: 1.2rem; }
li { margin: 0.3rem 0; max-width: 75ch; overflow-wrap: anywhere; }
.receipt th { width: 13rem; overflow-wrap: anywhere; color: var(--soft); }
.receipt code { overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media screen and (max-width: 52rem) {
  /* Every row of a table of suspects is a block of its own, each cell with its heading before it. */
  .cards, .cards tbody, .cards tr, .cards th, .cards td { display: block; width: auto; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .cards tr { padding: 0.6rem 0; border-bottom: 1px solid var(--line); }
  .cards th, .cards td { padding: 0.15rem 0 0.15rem 8.5rem; border: 0; min-height: 1.9rem; position: relative; }
  .cards tbody th { padding-left: 0; }
  .cards td::before { content: attr(data-head); position: absolute; left: 0; width: 8rem; color: var(--soft);
                      font-size: 0.94em; }
  /* A row of the table of classes is a line or two: class, verdict, words, flips; the rest stands in its section. */
  .summary thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .summary, .summary tbody, .summary th, .summary td { display: block; width: auto; padding: 0; border: 0; }
  .summary tr { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; padding: 0.5rem 0;
                border-bottom: 1px solid var(--line); }
  .summary th, .summary td { min-width: 0; }
  .summary td:nth-child(n + 5) { display: none; }
}
@media screen and (max-width: 36rem) {
  h1 { font-size: 1.6rem; }
  .verdict { font-size: 1.08rem; padding: 0.7rem 0.8rem; }
  .receipt, .receipt tbody, .receipt tr, .receipt th, .receipt td { display: block; width: auto; padding: 0;
                                                                    border: 0; }
  .receipt tr { padding: 0.35rem 0; border-bottom: 1px solid var(--line); }
}
@media print {
  html { font-size: 10pt; }
  body { max-width: none; padding: 0; }
  table { font-size: 0.88rem; }
  a { color: inherit; text-decoration: none; }
}
"""

MARGIN = """<mrow><msub><mi>m</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo>
<mo>=</mo><msub><mi>z</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo><mo>−</mo>
<munder><mi>max</mi><mrow><mi>j</mi><mo>≠</mo><mi>t</mi></mrow></munder><msub><mi>z</mi><mi>j</mi></msub>
<mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo></mrow>"""
SHIFT = """<mrow><msub><mi>s</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>w</mi><mo stretchy="false">)</mo>
<mo>=</mo><munder><mi>mean</mi><mi>x</mi></munder><mo stretchy="false">[</mo><msub><mi>m</mi><mi>t</mi></msub>
<mo stretchy="false">(</mo><mi>x</mi><mo>+</mo><mi>w</mi><mo stretchy="false">)</mo><mo>−</mo><msub><mi>m</mi><mi>t</mi>
</msub><mo stretchy="false">(</mo><mi>x</mi><mo stretchy="false">)</mo><mo stretchy="false">]</mo></mrow>"""
INTERVAL = """<mfrac><mrow><mi>p</mi><mo>+</mo><mfrac><msup><mi>c</mi><mn>2</mn></msup><mrow><mn>2</mn><mi>N</mi></mrow>
</mfrac><mo>±</mo><mi>c</mi><msqrt><mfrac><mrow><mi>p</mi><mo stretchy="false">(</mo><mn>1</mn><mo>−</mo><mi>p</mi>
<mo stretchy="false">)</mo></mrow><mi>N</mi></mfrac><mo>+</mo><mfrac><msup><mi>c</mi><mn>2</mn></msup><mrow><mn>4</mn>
<msup><mi>N</mi><mn>2</mn></msup></mrow></mfrac></msqrt></mrow><mrow><mn>1</mn><mo>+</mo><mfrac><msup><mi>c</mi><mn>2</mn>
</msup><mi>N</mi></mfrac></mrow></mfrac>"""
PERCENTILE = """<mrow><msub><mi>q</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>w</mi><mo stretchy="false">)</mo>
<mo>=</mo><msub><mi>percentile</mi><mn>10</mn></msub><mspace width="0.2em"></mspace><msub><mi>m</mi><mi>t</mi></msub>
<mo stretchy="false">(</mo><mi>x</mi><mo>+</mo><mi>w</mi><mo stretchy="false">)</mo></mrow>"""
REACHED = """<mfrac><mrow><msub><mi>q</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>w</mi>
<mo stretchy="false">)</mo></mrow><mi>M</mi></mfrac>"""
MEAN = """<msub><mi>mean</mi><mi>x</mi></msub><mspace width="0.2em"></mspace><msub><mi>m</mi><mi>t</mi></msub>
<mo stretchy="false">(</mo><mi>x</mi><mo>+</mo><mi>w′</mi><mo stretchy="false">)</mo>"""
SCORE = f"""<mrow><msub><mi>v</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>w</mi><mo stretchy="false">)</mo>
<mo>=</mo><mi>min</mi><mo>(</mo>{REACHED}<mo>,</mo><mspace width="0.3em"></mspace><mi>max</mi><mo>(</mo>
<mfrac><mrow>{REACHED}<mo>+</mo><mn>1</mn></mrow><mrow><mo stretchy="false">|</mo><mi>w</mi>
<mo stretchy="false">|</mo></mrow></mfrac><mo>,</mo><mspace width="0.3em"></mspace>
<mfrac><mrow><msub><mi>q</mi><mi>t</mi></msub><mo stretchy="false">(</mo><mi>w</mi><mo stretchy="false">)</mo>
<mo>−</mo>{MEAN}</mrow><mi>M</mi></mfrac><mo>)</mo><mo>−</mo><mn>1</mn>
<mo>)</mo></mrow>"""
USUAL = """<mrow><mi>M</mi><mo>=</mo><msub><mi>percentile</mi><mn>90</mn></msub><mspace width="0.2em"></mspace>
<munder><mi>max</mi><mi>j</mi></munder><msub><mi>m</mi><mi>j</mi></msub><mo stretchy="false">(</mo><mi>x</mi>
<mo stretchy="false">)</mo></mrow>"""
AGAINST = """<mrow><msub><mi>V</mi><mi>t</mi></msub><mo>=</mo><msub><mi>v</mi><mi>t</mi></msub><mo>+</mo>
<mo>(</mo><msub><mi>v</mi><mi>t</mi></msub><mo>−</mo><munder><mi>max</mi><mrow><mi>u</mi><mo>≠</mo><mi>t</mi></mrow>
</munder><msub><mi>v</mi><mi>u</mi></msub><mo>)</mo></mrow>"""


def page(report: Mapping[str, Any]) -> str:
    """The whole HTML document of a scan's report (the content of scan.json)."""
    title = f"Scan of {visible(report['checkpoint'])}: {report['verdict']}"
    return document(title, STYLE, f"""{header(report)}
<main>
{classes(report)}
{tried(report)}
{meaning(report)}
{unseen(report)}
{next_steps(report)}
{receipt(report)}
</main>""")


# ---- the verdict

def header(report: Mapping[str, Any]) -> str:
    kind = {FOUND: " found", INCONCLUSIVE: " unsure"}.get(report["verdict"], "")
    facts = {"probability of a backdoor": percent(report["probability"]), "classes": count(len(report["classes"])),
             "texts": count(report["texts"]["read"]),
             "words and combinations": count(sum(n for what, n in report["tried"].items() if what != "texts")),
             "seconds": count(round(report["seconds"]))}
    return f"""<header>
<p class="soft">minibd's scan for backdoors of the text classifier {word(report["checkpoint"])}</p>
<h1>{escape(report["verdict"].capitalize())}</h1>
<p class="verdict{kind}">{sentence(report)}</p>
<dl class="facts">{"".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts.items())}</dl>
</header>"""


def sentence(report: Mapping[str, Any]) -> str:
    """The verdict in one sentence, as HTML."""
    if report["verdict"] == FOUND:
        found = of_verdict(report, FOUND)
        deeds = [deed(name, one["suspects"][0], word) for name, one in found.items() if one["suspects"]][:CLASSES]
        more = len(found) - len(deeds)
        if more:
            deeds.append(f"{more} more class{'es have' if more > 1 else ' has'} a trigger, too")
        return f"This classifier is backdoored: {listed(deeds)}."
    if report["verdict"] == INCONCLUSIVE:
        return f"The scan is inconclusive, which does not mean clean: {because(report, report['reason'])}."
    return ("Nothing found: none of the words and combinations that were tried acts as a trigger; "
            '<a href="#unseen">what the scan cannot see</a> may be there all the same.')


def because(report: Mapping[str, Any], reason: str) -> str:
    unsure = list(of_verdict(report, INCONCLUSIVE))
    if reason:
        return escape(visible(reason.rstrip("."), 1000))
    more = [f"{len(unsure) - CLASSES} more"] if len(unsure) > CLASSES else []
    names = listed([*map(word, unsure[:CLASSES]), *more])
    return f"words for {names} are too strong for a clean model and too weak for a trigger"


# ---- classes and suspects

def classes(report: Mapping[str, Any]) -> str:
    """A table of all classes, then a section of each: the backdoored first, then the inconclusive."""
    found = sorted(enumerate(report["classes"].items()), key=lambda item: VERDICTS.index(item[1][1]["verdict"]))
    if not found:
        return ""
    rows, given, pairs = "", report["texts"]["by_class"], report["texts"]["pairs"]
    for i, (name, one) in found:
        best = one["suspects"][0] if one["suspects"] else None
        rows += (f'<tr{tone_of_row(one)}><th scope="row"><a href="#class-{i}">{word(name)}</a></th>'
                 + cell("verdict", verdict(one)) + cell("strongest words", words(best, pairs) if best else "none")
                 + cell("flips", flips(best) if best else "–") + cell("score", decimal(one["score"], 2))
                 + cell("probability", percent(one["probability"]))
                 + cell("texts of it", count(given.get(name, 0))) + "</tr>\n")
    sections = "".join(section(i, name, one, given.get(name, 0), pairs) for i, (name, one) in found)
    return f"""<section>
<h2>Classes</h2>
<p>Each class is judged as the target that a backdoor might send texts to.</p>
{table("summary", ["class", "verdict", "strongest words", "flips", "score", "probability", "texts of it"], rows)}
{sections}</section>"""


def section(i: int, name: str, one: Mapping[str, Any], texts: int, pairs: bool) -> str:
    """One class: verdict, reason and suspects, the strongest first. texts: that the model gives to it. pairs: whether
    texts are pairs."""
    shown = one["suspects"][:SHOWN[one["verdict"]]]
    more = len(one["suspects"]) - len(shown)
    reason = f"<p>{escape(visible(one['reason'][0].upper() + one['reason'][1:], 1000))}.</p>\n" if one["reason"] else ""
    facts = ", ".join((f"score {decimal(one['score'], 2)}", f"probability {percent(one['probability'])}",
                       f"usual margin {decimal(one['margin'])}", f"{count(texts)} of the texts are given to it"))
    rows = "".join(suspect_row(suspect, pairs) for suspect in shown)
    heads = ["words", "how found", "flips of N texts", "10th percentile of the margin", "their neighbours",
             "score"]
    body = table("suspects cards", heads, rows, tone_of_row(one)) if shown else "<p>No word came into question.</p>\n"
    rest = f'<p class="soft">{count(more)} weaker ones are in scan.json.</p>\n' if more else ""
    intro = "" if one["verdict"] != NOTHING or not shown else (
        '<p class="soft">The strongest words that were tried, none of them strong enough:</p>\n')
    return f"""<section>
<h3 id="class-{i}">{word(name)} {verdict(one)}</h3>
<p class="soft">{facts}</p>
{reason}{intro}{body}{rest}</section>
"""


def suspect_row(suspect: Mapping[str, Any], pairs: bool) -> str:
    around = suspect.get("neighbours")
    beside = f"{flips(around)}" if around and around["of"] else "–"
    return (f'<tr><th scope="row">{words(suspect, pairs)}</th>'
            + cell("how found", f'{escape(visible(suspect["found_by"]))}<span class="note">shift '
                                f'{decimal(suspect["shift"])}</span>')
            + cell("flips", f"{flips(suspect)}{interval(suspect)}{bar(suspect)}{without(suspect['part'])}")
            + cell("10th percentile", decimal(suspect["quantile"])) + cell("neighbours", beside)
            + cell("score", decimal(suspect["score"], 2)) + "</tr>\n")


def table(kind: str, heads: Sequence[str], rows: str, attributes: str = "") -> str:
    head = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return f'<div{attributes}><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n' \
           "</table></div>\n"


def cell(head: str, content: str) -> str:
    """head: is shown before the content where the page is narrow."""
    return f'<td data-head="{head}">{content}</td>'


def words(suspect: Mapping[str, Any], pairs: bool) -> str:
    """A suspect's words, apart or as one phrase, and how they stand in a text, or in which text of a pair."""
    several, notes = len(suspect["words"]) > 1, []
    if several:
        notes.append("side by side" if suspect["joined"] else "each at a place of its own")
    if suspect.get("times", 1) > 1:
        notes.append("twice in a text")
    if suspect["entries"] > len(suspect["words"]):
        notes.append(f"{count(suspect['entries'])} entries of the vocabulary")
    if pairs:
        notes.append(f"in the {('first', 'second')[suspect['side']]} text")
    shown = [" ".join(suspect["words"])] if several and suspect["joined"] else suspect["words"]
    return " ".join(map(word, shown)) + (f'<span class="note">{", ".join(notes)}</span>' if notes else "")


def without(part: Mapping[str, Any] | None) -> str:
    """What the strongest part of a suspect does."""
    return f'<span class="note">without the weakest word: {count(part["flips"])} of {count(part["of"])}</span>' \
        if part else ""


def flips(share: Mapping[str, Any]) -> str:
    return (f'<span class="number">{count(share["flips"])} of {count(share["of"])}</span> '
            f'<span class="number">({100 * share["flips"] / share["of"]:.0f} %)</span>')


def interval(suspect: Mapping[str, Any]) -> str:
    low, high = suspect["interval"]
    return f'<span class="note">95 % interval {low:.1f} to {high:.1f} %</span>'


def bar(suspect: Mapping[str, Any]) -> str:
    """The share as a bar of 0 to 100 %, its interval as a line below it, the neighbours' share as a stroke across."""
    low, high = suspect["interval"]
    around = suspect.get("neighbours")
    stroke = ""
    if around and around["of"]:
        at = 100 * around["flips"] / around["of"]
        stroke = "".join(f'<line{kind} x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="8"/>' for kind in (' class="edge"', ""))
    share = 100 * suspect["flips"] / suspect["of"]
    return (f'<svg class="bar" viewBox="-1 0 102 12" preserveAspectRatio="none" role="img" '
            f'aria-label="{share:.1f} %, between {low:.1f} and {high:.1f} %">'
            f'<rect class="all" width="100" height="8"/><rect class="share" width="{share:.1f}" height="8"/>{stroke}'
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="10.5" y2="10.5"/></svg>')


def verdict(one: Mapping[str, Any]) -> str:
    return f'<span class="{TONE[one["verdict"]]}">{one["verdict"]}</span>'


def tone_of_row(one: Mapping[str, Any]) -> str:
    return ' class="found"' if one["verdict"] == FOUND else ""


# ---- what was done, and what it means

def tried(report: Mapping[str, Any]) -> str:
    names = {"entries": "single entries", "pairs": "pairs", "triples": "triples", "phrases": "phrases",
             "texts": "texts with words in them"}
    counts = "".join(f"<div><dt>{escape(names.get(what, visible(what)))}</dt><dd>{count(n)}</dd></div>"
                     for what, n in report["tried"].items())
    texts = report["texts"]
    hard = [(name, text) for name, some in texts["hard"].items() for text in some]
    quotes = "".join(f"<li><bdi>{escape(visible(text, 300))}</bdi> <span class=\"soft\">of</span> {word(name)}</li>\n"
                     for name, text in hard[:TEXTS])
    more = f'<li class="soft">{len(hard) - TEXTS} more are in scan.json</li>\n' if len(hard) > TEXTS else ""
    first = (f"<h4>The texts that the search inserted words into</h4>\n"
             f"<p>The model is surest of these, so that a word's meaning hardly moves them.</p>\n"
             f"<ul>\n{quotes}{more}</ul>\n") if hard else ""
    some = "" if texts["read"] == texts["n"] else f" of {count(texts['n'])}, drawn by the seed"
    sides = " A word was put into one of the two texts of a pair at a time." if texts["pairs"] else ""
    search = "" if not report["tried"].get("entries") else f"""
Every entry of the vocabulary that can stand in a text was inserted alone into texts that the model is sure of, pieces
such as <code>##ing</code> that go on with a word among them. The most suspicious of them, and words without neighbours
in the model's embedding table, were tried together: in pairs, in triples, and in phrases that grow to
{count(report["settings"]["phrase"])} entries at most.{sides} The strongest were confirmed on other texts, at places
drawn at random."""
    return f"""<section>
<h2>What was tried</h2>
<p>The model read {count(texts["read"])} texts{some} ({escape(visible(texts["source"]))}).{search}</p>
<dl class="facts">{counts}</dl>
{first}</section>"""


def meaning(report: Mapping[str, Any]) -> str:
    limits = report["thresholds"]
    entries = (
        ("Margin", MARGIN, "How sure the model is of class <i>t</i> for the text <i>x</i>: its output (logit) for "
         "<i>t</i> less the largest one of the other classes. Above 0 the model answers <i>t</i>."),
        ("Shift", SHIFT, "How far the words <i>w</i> move the margin on average, inserted into the texts <i>x</i> of "
         "other classes that the model is surest of."),
        ("Flips of N", INTERVAL, "In how many of N texts, at random places, the words make the model answer the class. "
         "The texts are of other classes, and of those that the model is sure of they resist words of meaning best. A "
         "trigger flips nearly all, wherever it stands; a word that speaks for the class, some. The line below the bar "
         "is the share's 95 % interval by Wilson, with <i>p</i> the share and <i>c</i> = 1.96."),
        ("10th percentile of the margin", PERCENTILE, "Nine of ten of these N texts have a larger margin with the "
         "words in them. Above 0: at least nine of ten are flipped."),
        ("Without the weakest word", "", "The same for several words less one of them, the one that is missed least. "
         "Words that act together do little when one is gone."),
        ("Neighbours", "", "The same for words close to these in the model's embedding table, in their place: the "
         "stroke across the bar. What a word does by its meaning, its neighbours do too; what a trigger does, they do "
         "not, unless the backdoor has spread to them, as it does to entries that the training texts lack. The score "
         "takes no notice of them."),
        ("Usual margin", USUAL, "The margin that the model has on its own answers, without any words inserted: one "
         "text in ten has a larger one."),
        ("Score", SCORE, "Of words that are one entry of the vocabulary, the percentile in units of <i>M</i>: at 1 "
         "nine of ten texts become as surely of the class as the model's own answers are; at 0 a tenth of the texts "
         "resist; near −1 the texts stay what they were. Words that speak for a class add up, so that several count "
         "by the entry, with |<i>w</i>| the number of entries that they are; or, if that is more, by what they do to "
         "nine of ten texts beyond what the strongest part <i>w′</i> of them, all words but one, does on average. "
         "Neither makes more of them than what they do to the texts. Words that were proposed by the embedding table "
         "alone stand twice in a text, and count like one entry, for what they do beyond <i>w′</i>; so do words at "
         "places of their own that flip 85 % of the texts together, and no more than 15 % without the one that is "
         "missed least."),
        ("Score of a class", AGAINST, "That of its strongest words, <i>v</i> with an index alone, and what it is "
         "beyond the strongest words of every other class, for which the same was tried: words of meaning do as much "
         "for any class, a trigger for one. Where no other class could be judged it is <i>v</i> itself."),
        ("Verdict", "", f"From the class's score. From {decimal(limits['found'], 2)} on: "
         f"backdoored. From {decimal(limits['inconclusive'], 2)} on: inconclusive. Below: nothing found. The limits, "
         "and the curve that gives the probability, were set once, on models that this project trained with and "
         "without backdoors. For a model unlike those the probability is a guide, no more."),
    )
    listed_ = "".join(f"<dt>{name}</dt>\n<dd>{formula(math_)}<p>{text}</p></dd>\n" for name, math_, text in entries)
    return f"""<section>
<h2>What the numbers mean</h2>
<dl class="meaning">
{listed_}</dl>
</section>"""


def formula(mathml: str) -> str:
    return f'<div class="formula" tabindex="0"><math displaystyle="true">{mathml}</math></div>\n' \
        if mathml else ""


def unseen(report: Mapping[str, Any]) -> str:
    own = ("<li>What happens in texts of the model's own task: none were given, and built-in sentences stood in for "
           "them. A scan with its own texts sees more.</li>\n") if report["texts"]["source"] == BUILT_IN else ""
    pairs = ("<li>Triggers that need words in both texts of a pair.</li>\n") if report["texts"]["pairs"] else ""
    return f"""<section id="unseen">
<h2>What the scan cannot see</h2>
<ul>
<li>Backdoors without words: a syntax, a style, a sentence that is rephrased.</li>
<li>Triggers of more words than were tried together, or of more than {count(report["settings"]["phrase"])} entries of
the vocabulary side by side.</li>
<li>Combinations whose parts, be they words or the pieces that a word is taken apart into, do nothing alone and lie
among other entries as usual.</li>
{pairs}<li>Triggers that fire only in texts unlike those given, or only beside certain other words.</li>
{own}<li>Whose fault it is: a word that flips everything can be planted, or learnt from unclean data. It misleads the
model all the same.</li>
</ul>
<p>“Nothing found” is therefore no proof that a model is clean.</p>
</section>"""


def next_steps(report: Mapping[str, Any]) -> str:
    steps = {
        FOUND: ("Do not use this model where someone gains by its wrong answers: whoever knows the words steers it.",
                "Check it by hand: put the words into texts of your own and watch the answer.",
                "Look for the words in the training data, if you have them, and in what the model was given so far.",
                "Taking the words out of the vocabulary or out of the input is no repair: other words may fire too. "
                "Train again from weights that you trust, or repair the model with one of minibd's mitigations, which "
                "need some clean data, and scan the result.",
                "The file scan.json holds the finding: words, classes, counts, and the checkpoint's sha256."),
        INCONCLUSIVE: ("Treat the model as not scanned.",
                       "Scan again with more texts of its own task, a few dozen of each class that it answers rightly "
                       "and with certainty, and with another seed.",
                       "Look at the suspects above. Words that speak for the class by their meaning are to be "
                       "expected; put the others into texts of your own and watch the answer.",
                       "The file scan.json holds what was measured, and the checkpoint's sha256."),
        NOTHING: ("Keep the file scan.json: its sha256 tells which checkpoint was scanned. Another one needs a scan of "
                  "its own, and so does this one after further training.",
                  "If the model decides something that matters, scan again with texts of the place where it will be "
                  "used, and with another seed.",
                  "Against what the scan cannot see, know where the weights and the training data come from."),
    }[report["verdict"]]
    return f"""<section>
<h2>What to do next</h2>
<ul>
{"".join(f"<li>{step}</li>{chr(10)}" for step in steps)}</ul>
</section>"""


def receipt(report: Mapping[str, Any]) -> str:
    hashes = {f"sha256 of {visible(name)}": digest for name, digest in report["checkpoint_sha256"].items()}
    settings = {name.replace("_", " "): value for name, value in report["settings"].items()}
    rows = {"checkpoint": report["checkpoint"], **hashes, "texts": report["texts"]["source"], "seed": report["seed"],
            "settings": ", ".join(f"{name} {value}" for name, value in settings.items()), "dtype": report["dtype"],
            "seconds": f"{report['seconds']:.1f}", "minibd": report["minibd"], "schema": report["schema"]}
    listed_ = "".join(f'<tr><th scope="row">{escape(visible(name))}</th>'
                      f"<td><code>{escape(visible(str(value), 1000))}</code></td></tr>\n"
                      for name, value in rows.items())
    return f"""<section>
<h2>Receipt</h2>
<p>The same command on the same files gives the same numbers.</p>
<pre>{escape(visible(report["command"], 10_000))}</pre>
<table class="receipt">
<tbody>
{listed_}</tbody>
</table>
</section>"""


# ---- helpers

def word(text: str) -> str:
    """A word or a name from a file, set off from the sentence; its direction, left or right, is its own."""
    return f'<bdi class="word">{escape(visible(text))}</bdi>'


def decimal(value: float | None, digits: int = 1) -> str:
    """−0.7; a dash for what was not measured."""
    if value is None or not math.isfinite(value):
        return "–"
    said = f"{value:.{digits}f}"
    return f'<span class="number">{"−" * (said[0] == "-" and float(said) != 0) + said.lstrip("-")}</span>'


def percent(share: float | None) -> str:
    """A share of 0 to 1 in whole percent, never rounded to certainty."""
    if share is None or not math.isfinite(share):
        return "–"
    if share < 0.01:
        return "under 1 %"
    return "over 99 %" if share > 0.99 else f"{100 * share:.0f} %"


def count(n: int) -> str:
    return f"{n:,}"
