"""The audit as one page to project, print or send: each equation set, beside its code, its check and what the released code does otherwise.

The page holds all that it shows: no script, no font and no picture is fetched. The formulas are MathML, which a browser sets by itself.
"""
from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate

from minibd.audit.report import AuditedEquation, Outcome, Place
from minibd.audit.tex import mathml, plain

TESTS = 5  # named in full; the rest as a count
FAILING = ' class="failing"'

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f4f5f7; --ink: #16181d; --soft: #565d69; --line: #c9ced6; --link: #0b4fa8;
        --good: #0f6b34; --bad: #a8071a; --alarm: #fdeaec; --muted: #566b57; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --panel: #1e2127; --ink: #eceef2; --soft: #aab1bd; --line: #414853; --link: #8fbcff;
          --good: #6fd99a; --bad: #ff9aa5; --alarm: #3d1a20; --muted: #95b398; }
}
* { box-sizing: border-box; }
html { font-size: clamp(17px, 0.4vw + 12px, 24px); scroll-behavior: smooth; }
body { margin: 0 auto; max-width: 105rem; padding: 2rem clamp(1rem, 3vw, 3.5rem) 5rem; background: var(--paper); color: var(--ink);
       font-family: system-ui, "Segoe UI", "Helvetica Neue", "Liberation Sans", Arial, sans-serif; line-height: 1.5; overflow-wrap: break-word; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 0.5rem; }
h2 { font-size: 1.6rem; line-height: 1.2; margin: 3.5rem 0 0.5rem; }
h3 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; align-items: baseline; }
h4 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
h2, h3, h4 { break-after: avoid; }
p { margin: 0.4rem 0; max-width: 75ch; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 0.84em; }
pre { margin: 0.4rem 0; padding: 0.8rem 1rem; overflow-x: auto; background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
      line-height: 1.5; tab-size: 4; }
.line { display: block; white-space: pre-wrap; padding-left: calc(var(--in) + 4ch); text-indent: calc(-1 * (var(--in) + 4ch)); }
.muted { color: var(--muted); }
.counts { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; margin: 1.2rem 0; padding: 0; }
.counts dt { color: var(--soft); font-size: 0.9rem; }
.counts dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.2; font-variant-numeric: tabular-nums; }
.pass { color: var(--good); font-weight: 650; }
.fail { color: var(--bad); font-weight: 750; text-transform: uppercase; letter-spacing: 0.04em; }
h3 .pass, h3 .fail { margin-left: auto; font-size: 1rem; }
.alarm { margin: 0.8rem 0; padding: 0.7rem 1rem; max-width: none; background: var(--alarm); border: 2px solid var(--bad); border-radius: 6px;
         font-weight: 650; }
.papers { columns: 24rem; column-gap: 2.5rem; }
.papers section { break-inside: avoid; padding-bottom: 1rem; }
.papers h3 { margin: 0; font-size: 1.1rem; }
.papers ul { list-style: none; margin: 0; padding: 0; }
.papers li { display: flex; gap: 0.7rem; padding: 0.15rem 0; }
.papers li span { flex: 0 0 2.6rem; font-size: 0.9rem; }
article { margin: 1.5rem 0 3rem; padding: 1.3rem clamp(0.8rem, 2vw, 2rem) 1.6rem; border: 1px solid var(--line); border-radius: 10px; }
article.failing { border: 3px solid var(--bad); }
.formula { overflow-x: auto; overflow-y: hidden; padding: 0.9rem 0.3rem; }
math { font-size: clamp(1.35rem, 1.9vw, 2.1rem); font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; }
mfrac { margin: 0 0.1em; }
munderover > :nth-child(3) { position: relative; top: -0.15em; }  /* where no font for mathematics is installed, the limit touches the sum */
.said { display: block; text-align: center; color: var(--soft); }
.halves { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 4fr); gap: 0 2.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th { font-weight: 600; }
td { white-space: nowrap; }
thead th { color: var(--soft); line-height: 1.25; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; width: 45%; }
tr.failing > * { background: var(--alarm); }
.tests { margin: 0.3rem 0; padding-left: 1.2rem; }
@media (max-width: 75rem) { .halves { grid-template-columns: minmax(0, 1fr); } }
@media print {
  html { font-size: 10.5pt; }
  body { max-width: none; padding: 0; }
  article:not(.failing) { border-width: 1px 0 0; border-radius: 0; padding: 1rem 0; }
  .halves { display: block; }
}
"""


def page(found: Sequence[AuditedEquation], *, title: str, seed: int, version: str, missing: Sequence[str] = ()) -> str:
    """The whole HTML document, papers in the order of their first equation. Raises ValueError where tex.py cannot read a formula.

    missing: what index.unknown says, a line each.
    """
    papers: dict[str, list[AuditedEquation]] = {}
    for one in found:
        papers.setdefault(one.paper, []).append(one)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
{header(found, title, seed, version, missing)}
{contents(papers)}
<main>
{"".join(section(paper, equations) for paper, equations in papers.items())}</main>
</body>
</html>
"""


def header(found: Sequence[AuditedEquation], title: str, seed: int, version: str, missing: Sequence[str]) -> str:
    outcomes = [outcome for one in found for outcome in one.outcomes]
    failing = [one for one in found if not one.ok]
    counts = {"equations": len(found), "equations failed": len(failing), "checks": len(outcomes),
              "checks failed": sum(not outcome.ok for outcome in outcomes), "seed": seed, "version": version}
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in counts.items())
    names = ", ".join(f'<a href="#{anchor(one)}">{escape(one.paper)} ({escape(one.number)})</a>' for one in failing)
    alarm = f'<p class="alarm">{mark(False)} {len(failing)} of {len(found)} equations: {names}</p>\n' if failing else ""
    alarm += "".join(f'<p class="alarm">{mark(False)} {escape(line)}</p>\n' for line in missing)
    return f"""<header>
<h1>{escape(title)}</h1>
<p>The papers' equations, each beside the code that computes it. A check draws numbers from the seed, gives them to that code and to a second
writing of the equation in plain loops, and compares the results; often also the gradient, with differences of those loops. It passes where the two
differ by no more than its tolerance, relative to the largest number. An equation passes where a docstring of the package names it and all its
checks pass.</p>
<dl class="counts">{listed}</dl>
{alarm}</header>"""


def contents(papers: dict[str, list[AuditedEquation]]) -> str:
    lists = "".join(f'<section><h3><a href="#{slug(paper)}">{escape(paper)}</a></h3>\n<ul>\n' + "".join(
        f'<li>{mark(one.ok)} <a href="#{anchor(one)}">({escape(one.number)}) {escape(one.title)}</a></li>\n' for one in equations)
        + "</ul></section>\n" for paper, equations in papers.items())
    return f'<nav aria-labelledby="contents">\n<h2 id="contents">Contents</h2>\n<div class="papers">\n{lists}</div>\n</nav>'


def section(paper: str, equations: Sequence[AuditedEquation]) -> str:
    return f'<section>\n<h2 id="{slug(paper)}">{escape(paper)}</h2>\n{"".join(map(article, equations))}</section>\n'


def article(one: AuditedEquation) -> str:
    """One equation: over the whole width the formula, then in two halves what was measured and is said of it, and its code."""
    alarms = ["No docstring of the package names this equation: there is no code to show."] * (one.place is None) \
        + ["Nothing was checked."] * (not one.outcomes)
    return f"""<article id="{anchor(one)}"{"" if one.ok else FAILING}>
<h3>{escape(heading(one))} {mark(one.ok)}</h3>
<div class="formula">{mathml(one.formula)}</div>
<code class="said">{escape(plain(one.formula))}</code>
{"".join(f'<p class="alarm">{alarm}</p>' for alarm in alarms)}
<div class="halves">
<div>
{checks(one.outcomes)}{told("As the paper says", one.ours)}{told("As the code was released", one.released)}
{told("What the difference changes", one.effect)}<h4>A small example</h4>
<pre>{lines(escape(one.example))}</pre>
</div>
<div>
{code(one.place) if one.place else ""}{called_by(one.tests)}</div>
</div>
</article>
"""


def checks(outcomes: Sequence[Outcome]) -> str:
    rows = "".join(f'<tr{"" if o.ok else FAILING}><th scope="row">{escape(o.what)}</th><td>{within(o.difference, o.tolerance)}</td>'
                   f'<td>{"none" if o.gradient is None else within(o.gradient, o.gradient_tolerance)}</td><td>{mark(o.ok)}</td></tr>\n'
                   for o in outcomes)
    return f"""<h4>The check</h4>
<div class="table"><table>
<thead><tr><th scope="col">case</th><th scope="col">difference ≤&#160;tolerance</th><th scope="col">of the gradient</th>
<th scope="col">result</th></tr></thead>
<tbody>
{rows}</tbody>
</table></div>
""" if outcomes else ""


def told(what: str, text: str) -> str:
    """A heading and the paragraphs of `text`, with `code` in backticks; nothing where there is no text."""
    paragraphs = "".join(f"<p>{escape(part)}</p>\n" for part in re.split(r"\n\s*\n", text) if part.strip())
    paragraphs = re.sub("`([^`]+)`", r"<code>\1</code>", paragraphs)
    return f"<h4>{what}</h4>\n{paragraphs}" if paragraphs else ""


def code(place: Place) -> str:
    return f"<h4>The code: <code>{escape(place.file)}:{place.line}</code></h4>\n<pre>{lines(highlighted(place.source))}</pre>\n"


def called_by(tests: Sequence[str]) -> str:
    if not tests:
        return "<h4>Tests</h4>\n<p>No test calls it.</p>\n"
    named = "".join(f"<li><code>{escape(test)}</code></li>\n" for test in tests[:TESTS])
    more = f"<li>and {len(tests) - TESTS} more</li>\n" if len(tests) > TESTS else ""
    return f'<h4>Tests that call it</h4>\n<ul class="tests">\n{named}{more}</ul>\n'


# ---- the small parts

def heading(one: AuditedEquation) -> str:
    return f"{one.paper} ({one.number}): {one.title}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def anchor(one: AuditedEquation) -> str:
    """eq- keeps it apart from a paper's own."""
    return slug(f"eq {heading(one)}")


def mark(ok: bool) -> str:
    """In words: colour alone is lost on a bad projector and on some eyes."""
    return f'<span class="{"pass" if ok else "fail"}">{"pass" if ok else "fail"}</span>'


def within(value: float, limit: float) -> str:
    """2.3e-7 <= 1e-6. In words where it is not, which is true of nan, too."""
    return f"{number(value)} {'≤' if value <= limit else 'not ≤'} {number(limit)}"


def number(value: float) -> str:
    """Two digits of it: 2.3e-7, 1e-6, 0.031, 0, nan."""
    return re.sub(r"e([+-])0", r"e\1", f"{value:.2g}")


def lines(html: str) -> str:
    """Each line an element that wraps under itself, four characters further in: nothing is cut off on a projector."""
    indents = [len(line) - len(line.lstrip(" ")) for line in re.sub("<[^>]*>", "", html).split("\n")]
    return "".join(f'<span class="line" style="--in: {indent}ch">{line}\n</span>' for indent, line in zip(indents, html.split("\n")))


def highlighted(source: str) -> str:
    """Python source as HTML, comments and docstrings marked; no mark goes over the end of a line."""
    starts = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))  # of each line, in characters
    html, at = "", 0
    for span in muted(source):
        begin, end = (starts[line - 1] + column for line, column in span)
        inner = escape(source[begin:end]).replace("\n", '</span>\n<span class="muted">')
        html += f'{escape(source[at:begin])}<span class="muted">{inner}</span>'
        at = end
    return html + escape(source[at:])


def muted(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where comments and docstrings begin and end, as (line, column); a docstring is a string that begins a statement."""
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            yield token.start, token.end
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type
