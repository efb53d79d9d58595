"""A repair's receipt as one HTML page to hand on. Self-contained: it fetches nothing and has no script.

Whatever comes from a file, be it a word, a class name or a path, is escaped.
"""
from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from minibd.detect.scan_page import STYLE, cell, count, table, word
from minibd.detect.wording import visible
from minibd.html_style import document
from minibd.job.receipt import NOT_SHOWN, NOTHING_FOUND, REPAIRED

KIND = {REPAIRED: "good", NOT_SHOWN: "unsure", NOTHING_FOUND: ""}
MOVED = 16  # parts of the model that are listed
OWN = """
.verdict.good { border-color: var(--good); }
.parts { columns: 22rem; column-gap: 2rem; padding: 0; list-style: none; max-width: none; }
.parts li { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--line);
            break-inside: avoid; margin: 0; padding: .25rem 0; }
.undone { table-layout: fixed; }
"""


def page(receipt: Mapping[str, Any]) -> str:
    """The whole HTML document of a receipt (the content of receipt.json)."""
    title = f"Repair of {visible(receipt['checkpoint'])}: {receipt['verdict']}"
    return document(title, STYLE + OWN, f"""{header(receipt)}
<main>
{undone(receipt)}
{accuracy(receipt)}
{evidence(receipt)}
{tested(receipt)}
{training(receipt)}
{unseen(receipt)}
{next_step(receipt)}
{details(receipt)}
</main>""")


def header(receipt: Mapping[str, Any]) -> str:
    before, after = receipt["models"][0], receipt["models"][-1]
    facts = {
        f"{receipt['measure']}, before": share(before), f"{receipt['measure']}, after": share(after),
        "triggers undone": count(len({tuple(one["words"]) for one in receipt["undone"]})),
        "scans": count(len(receipt["scans"])), "seconds": count(round(sum(receipt["seconds"].values()))),
    }
    caution = ("<p><strong>Caution:</strong> no texts of the task were given. Built-in sentences stood in for them, "
               "and what happens in texts of the task was not looked at.</p>\n") if receipt["rows"]["built_in"] else ""
    return f"""<header>
<p class="soft">minibd's receipt of a repair of the text classifier {word(receipt["checkpoint"])}</p>
<h1>{escape(first_upper(receipt["verdict"]))}</h1>
<p class="verdict {KIND.get(receipt["verdict"], "")}">{escape(receipt["sentence"])}</p>
{caution}<dl class="facts">{"".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in
                                   facts.items())}</dl>
</header>"""


def first_upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def share(one: Mapping[str, Any]) -> str:
    return f"{one['percent']:.1f} %"


def of(one: Mapping[str, Any] | None) -> str:
    """61 of 64 (95.3 %) and its interval."""
    if one is None:
        return "not measured"
    low, high = one["interval"]
    return (f'<span class="number">{count(one["hits"])} of {count(one["n"])}</span> '
            f'<span class="number">({one["percent"]:.1f} %)</span>'
            f'<span class="note">95 % interval {low:.1f} to {high:.1f} %</span>')


def words_of(one: Mapping[str, Any]) -> str:
    shown = [" ".join(one["words"])] if one.get("joined") else one["words"]
    return " ".join(map(word, shown))


def undone(receipt: Mapping[str, Any]) -> str:
    if not receipt["undone"]:
        return ("<section>\n<h2>What was undone</h2>\n<p>Nothing: the scan names no words, and to undo words that it "
                "does not name costs accuracy and repairs nothing.</p>\n</section>")
    rows = ""
    for one in receipt["undone"]:
        how = "rows of the embedding table" if one["mode"] == "rows" else "all weights"
        rows += (f'<tr><th scope="row">{words_of(one)}</th>' + cell("towards", word(one["target"]))
                 + cell("before", of(one["before"])) + cell("after", of(one["after"]))
                 + cell("trained", f'{how}<span class="note">round {one["round"]}: {escape(visible(one["why"], 400))}'
                                   "</span>") + "</tr>\n")
    heads = ["words", "towards class", "texts they take there, before", "after", "what was trained"]
    return f"""<section>
<h2>What was undone</h2>
<p>The model was trained to answer texts with these words in them, alone and together, as it answered them without.
No label is read for that. Before and after are counts of held-out texts of other classes, with the words at random
places.</p>
{table("undone cards", heads, rows)}</section>"""


def accuracy(receipt: Mapping[str, Any]) -> str:
    measured = any(model["asr"] for model in receipt["models"])
    rows = ""
    for model in receipt["models"]:
        rows += (f'<tr><th scope="row">{escape(visible(model["name"]))}</th>' + cell(receipt["measure"], of(model))
                 + (cell("known trigger", of(model["asr"]) if model["asr"] else "–") if measured else "")
                 + cell("seconds", f"{model['seconds']:.1f}") + "</tr>\n")
    asr = ["texts that the known trigger takes"] if measured else []
    rows_of = receipt["rows"]
    labels = "with labels" if rows_of["labelled"] else "without labels, so that agreement is measured"
    return f"""<section>
<h2>Accuracy</h2>
<p>On {count(rows_of["held_out"])} held-out rows of {escape(visible(rows_of["source"]))}, {labels}.</p>
{table("cards", ["model", escape(receipt["measure"]), *asr, "seconds"], rows)}</section>"""


def evidence(receipt: Mapping[str, Any]) -> str:
    if not receipt["evidence"]:
        return ("<section>\n<h2>The same treatment of planted backdoors</h2>\n<p>None was planted, so that nothing "
                "here says how much this treatment finds and removes.</p>\n</section>")
    rows = ""
    for one in receipt["evidence"]:
        named = " ".join(map(word, one["named"][:4])) or "none"
        weak = "" if one["strong"] else (f'<span class="note">weaker than a real attack; {of(one["kept"])} answers '
                                         "without it stay</span>")
        own = escape(visible(" ".join(one["words"])))
        rows += (f'<tr><th scope="row">{escape(one["kind"])}<span class="note">{own}</span></th>'
                 + cell("planted", of(one["planted"]) + weak)
                 + cell("the scan", f'{escape(one["verdict"])}<span class="note">named: {named}</span>')
                 + cell("left", of(one["left"])) + cell("before planting", of(one["floor"])) + "</tr>\n")
    heads = ["backdoor", "texts it takes, planted", "what the scan said", "texts it takes, treated",
             "the same words before planting"]
    return f"""<section>
<h2>The same treatment of planted backdoors</h2>
<p>Backdoors of our own were planted in copies of the result, one at a time, then scanned for and undone in the same
way. What is left of them tells what this treatment removes from this model. It does not tell that nothing else is in
it: an attacker's trigger may be of a kind that was not planted here.</p>
{table("undone cards", heads, rows)}</section>"""


def tested(receipt: Mapping[str, Any]) -> str:
    names = ("first, of the model as it came", *("of the result",) * len(receipt["scans"]))
    rows = ""
    for name, scan in zip(names, receipt["scans"]):
        tried = sum(n for what, n in scan["tried"].items() if what != "texts")
        best = next(iter(scan["suspects"]), None)
        strongest = f'{words_of(best)}<span class="note">{best["flips"]} of {best["of"]}</span>' if best else "none"
        rows += (f'<tr><th scope="row">{name}</th>' + cell("verdict", escape(visible(scan["verdict"])))
                 + cell("strongest words", strongest) + cell("words tried", count(tried))
                 + cell("texts", count(scan["texts"])) + cell("seconds", f'{scan["seconds"]:.0f}') + "</tr>\n")
    retrained = receipt["retrained"]
    return f"""<section>
<h2>What was tested</h2>
{table("cards", ["scan", "verdict", "strongest words", "words and combinations tried", "texts", "seconds"], rows)}
<p>Retrained with: {escape(retrained["method"])}, {escape(visible(retrained["why"], 400))}.</p>
</section>"""


def training(receipt: Mapping[str, Any]) -> str:
    rows = ""
    for stage in receipt["losses"]:
        for term in stage["terms"]:
            rows += (f'<tr><th scope="row">{escape(visible(stage["stage"]))}</th>'
                     + cell("term", escape(visible(term["term"]))) + cell("weight", f'{term["weight"]:g}')
                     + cell("first step", f'{term["first"]:.4f}') + cell("last step", f'{term["last"]:.4f}')
                     + cell("steps", count(stage["steps"])) + "</tr>\n")
    loss = table("cards", ["training", "term", "weight", "first step", "last step", "steps"], rows) if rows else \
        "<p>Nothing was trained.</p>\n"
    changed = receipt["changed"]
    moved = sorted((one for one in changed["parts"] if one["moved"]), key=lambda one: -one["moved"])[:MOVED]
    parts = "".join(f'<li><span>{escape(visible(one["part"]))}</span><span class="number">{100 * one["moved"]:.3f} %'
                    "</span></li>\n" for one in moved)
    few = 0 < changed["rows"] <= len(changed["entries"])
    entries = f": {' '.join(map(word, changed['entries']))}" if few else ""
    rows_said = f"<p>{count(changed['rows'])} rows of the embedding table changed{entries}.</p>\n"
    layers = (f"<p>How far each part of the model moved, of its own length:</p>\n<ul class=\"parts\">\n{parts}</ul>\n"
              if parts else "<p>No weight changed.</p>\n")
    return f"""<section>
<h2>What changed in the model</h2>
{loss}{rows_said}{layers}</section>"""


def unseen(receipt: Mapping[str, Any]) -> str:
    points = "".join(f"<li>{escape(point)}</li>\n" for point in receipt["cannot_see"])
    return f"<section>\n<h2>What this cannot see</h2>\n<ul>\n{points}</ul>\n</section>"


def next_step(receipt: Mapping[str, Any]) -> str:
    if not receipt["next"]:
        return ""
    said = {REPAIRED: "To look once more, with another seed or with texts of where the model will be used:",
            NOT_SHOWN: "Do not use this model where someone gains by its wrong answers. To go on:",
            NOTHING_FOUND: "Where the model decides something that matters, retraining is what is left to do; alone it "
                           "weakens a backdoor and seldom removes it:"}[receipt["verdict"]]
    return (f'<section>\n<h2>What to do next</h2>\n<p>{said}</p>\n<pre>'
            f'{escape(visible(receipt["next"], 2000))}</pre>\n</section>')


def details(receipt: Mapping[str, Any]) -> str:
    hashes: dict[str, str] = {}
    for what in ("checkpoint", "output"):
        hashes |= {f"sha256 of {visible(name)}, {'as it came' if what == 'checkpoint' else 'repaired'}": digest
                   for name, digest in receipt[f"{what}_sha256"].items()}
    settings = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in receipt["settings"].items())
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in receipt["seconds"].items())
    rows = {"as it came": receipt["checkpoint"], "repaired": receipt["output"], **hashes, "seed": receipt["seed"],
            "settings": settings, "dtype": receipt["dtype"], "seconds": seconds, "minibd": receipt["minibd"],
            "schema": receipt["schema"]}
    return f"""<section>
<h2>Receipt</h2>
<p>The same command on the same files gives the same numbers.</p>
<pre>{escape(visible(receipt["command"], 10_000))}</pre>
<table class="receipt">
<tbody>
{"".join(row(name, value) for name, value in rows.items())}</tbody>
</table>
</section>"""


def row(name: str, value: object) -> str:
    return (f'<tr><th scope="row">{escape(visible(name))}</th>'
            f"<td><code>{escape(visible(str(value), 1000))}</code></td></tr>\n")
