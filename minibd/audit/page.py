"""The audit as one HTML page to project, print or send: each equation with its code, check and released variant.

The page is self-contained: it fetches no script, font or image. The formulas are MathML, which browsers render.
"""
from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator, Sequence
from html import escape
from itertools import accumulate

from minibd.audit.findings import AuditedEquation, Outcome, Place
from minibd.audit.tex import mathml_parts, plain
from minibd.html_style import STYLE as BASE
from minibd.html_style import document

TESTS = 5  # listed by name; the rest is a count
FAILING = ' class="failing"'

STYLE = BASE + """
.line { --hang: calc(var(--in) + 4ch); display: block; white-space: pre-wrap;
        padding-left: var(--hang); text-indent: calc(-1 * var(--hang)); }
.muted { color: var(--muted); }
.counts { display: flex; flex-wrap: wrap; gap: 0.5rem 2.5rem; margin: 1.2rem 0; padding: 0; }
.counts dt { color: var(--soft); font-size: 0.9rem; }
.counts dd { margin: 0; font-size: 1.5rem; font-weight: 650; line-height: 1.2;
             font-variant-numeric: tabular-nums; }
.pass { color: var(--good); font-weight: 650; }
.fail { color: var(--bad); font-weight: 750; text-transform: uppercase; letter-spacing: 0.04em; }
h3 .pass, h3 .fail { margin-left: auto; font-size: 1rem; }
.alarm { margin: 0.8rem 0; padding: 0.7rem 1rem; max-width: none; background: var(--alarm);
         border: 2px solid var(--bad); border-radius: 6px; font-weight: 650; }
.papers { columns: 24rem; column-gap: 2.5rem; }
.papers section { break-inside: avoid; padding-bottom: 1rem; }
.papers h3 { margin: 0; font-size: 1.1rem; }
.papers ul { list-style: none; margin: 0; padding: 0; }
.papers li { display: flex; gap: 0.7rem; padding: 0.15rem 0; }
.papers li span { flex: 0 0 2.6rem; font-size: 0.9rem; }
article { margin: 1.5rem 0 3rem; padding: 1.3rem clamp(0.8rem, 2vw, 2rem) 1.6rem; border: 1px solid var(--line);
          border-radius: 10px; }
article.failing { border: 3px solid var(--bad); }
.formula { display: flex; flex-wrap: wrap; justify-content: safe center; align-items: center; gap: 0.6rem 1.6em;
           overflow-x: auto; overflow-y: hidden; scrollbar-width: thin; padding: 0.9rem 0.3rem;
           /* A shadow at an edge where the formula goes on; the two layers that scroll with it cover the shadow. */
           background: linear-gradient(to right, var(--paper) 50%, transparent) left / 3rem 100% no-repeat local,
                       linear-gradient(to left, var(--paper) 50%, transparent) right / 3rem 100% no-repeat local,
                       linear-gradient(to right, var(--edge), transparent) left / 1.2rem 100% no-repeat scroll,
                       linear-gradient(to left, var(--edge), transparent) right / 1.2rem 100% no-repeat scroll; }
math { font-size: clamp(1.15rem, 1.9vw, 2.1rem);
       font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math; }
mfrac { margin: 0 0.1em; }
munderover > :nth-child(3) { position: relative; top: -0.15em; }  /* without a maths font the limit touches the sum */
.plain { display: block; text-align: center; color: var(--soft); }
.halves { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 4fr); gap: 0 2.5rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.35rem 0.7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th { font-weight: 600; }
thead th { color: var(--soft); line-height: 1.25; vertical-align: bottom; }
th:first-child { text-align: left; padding-left: 0; width: 45%; }
td:last-child, th:last-child { padding-right: 0; }
.number { white-space: nowrap; }
tr.failing > * { background: var(--alarm); }
.tests { margin: 0.3rem 0; padding-left: 1.2rem; }
@media (max-width: 75rem) { .halves { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 36rem) {
  h1 { font-size: 1.7rem; }
  table { font-size: 0.86rem; }
  th, td { padding: 0.35rem 0.3rem; }
  th:first-child { width: auto; }
  pre { padding: 0.6rem 0.7rem; }
  .line { --hang: calc(min(var(--in), 12ch) + 2ch); }
}
@media print {
  html { font-size: 10.5pt; }
  body { max-width: none; padding: 0; }
  article:not(.failing) { border-width: 1px 0 0; border-radius: 0; padding: 1rem 0; }
  .halves { display: block; }
}
"""


def page(found: Sequence[AuditedEquation], *, title: str, seed: int, version: str, missing: Sequence[str] = ()) -> str:
    """The whole HTML document, papers in the order of their first equation. Raises ValueError for a formula that tex.py
    cannot parse.

    missing: the lines of index.missing.
    """
    papers: dict[str, list[AuditedEquation]] = {}
    for equation in found:
        papers.setdefault(equation.paper, []).append(equation)
    return document(title, STYLE, f"""{header(found, title, seed, version, missing)}
{contents(papers)}
<main>
{"".join(section(paper, equations) for paper, equations in papers.items())}</main>""", policy="")


def header(found: Sequence[AuditedEquation], title: str, seed: int, version: str, missing: Sequence[str]) -> str:
    outcomes = [outcome for equation in found for outcome in equation.outcomes]
    failing = [equation for equation in found if not equation.ok]
    counts = {"equations": len(found), "equations failed": len(failing), "checks": len(outcomes),
              "checks failed": sum(not outcome.ok for outcome in outcomes), "seed": seed, "version": version}
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(str(value))}</dd></div>" for name, value in counts.items())
    names = ", ".join(f'<a href="#{anchor(equation)}">{escape(equation.paper)} ({escape(equation.number)})</a>'
                      for equation in failing)
    alarms = [escape(line) for line in missing]
    if failing:
        alarms.insert(0, f"{len(failing)} of {len(found)} equations: {names}")
    alarm = "".join(f'<p class="alarm">{result(False)} {line}</p>\n' for line in alarms)
    return f"""<header>
<h1>{escape(title)}</h1>
<p>Each equation of the papers, and of the scan, with the code that computes it. A check passes the same random numbers
to that code and to a second implementation in plain float64 loops and compares the two results, and often the gradient
with central differences of those loops. It passes if they differ by at most its tolerance, relative to the largest
number. An equation passes if a docstring of the package names it and all its checks pass.</p>
<dl class="counts">{listed}</dl>
{alarm}</header>"""


def contents(papers: dict[str, list[AuditedEquation]]) -> str:
    lists = ""
    for paper, equations in papers.items():
        items = "".join(f'<li>{result(equation.ok)} <a href="#{anchor(equation)}">({escape(equation.number)}) '
                        f"{escape(equation.title)}</a></li>\n" for equation in equations)
        lists += f'<section><h3><a href="#{slug(paper)}">{escape(paper)}</a></h3>\n<ul>\n{items}</ul></section>\n'
    return (f'<nav aria-labelledby="contents">\n<h2 id="contents">Contents</h2>\n'
            f'<div class="papers">\n{lists}</div>\n</nav>')


def section(paper: str, equations: Sequence[AuditedEquation]) -> str:
    return f'<section>\n<h2 id="{slug(paper)}">{escape(paper)}</h2>\n{"".join(map(article, equations))}</section>\n'


def article(equation: AuditedEquation) -> str:
    """One equation: the formula over the full width; below it the check and text on the left, the code on the right."""
    alarms = []
    if equation.place is None:
        alarms.append("No docstring of the package names this equation: there is no code to show.")
    if not equation.outcomes:
        alarms.append("Nothing was checked.")
    formula = "".join(mathml_parts(equation.formula))
    return f"""<article id="{anchor(equation)}"{"" if equation.ok else FAILING}>
<h3>{escape(heading(equation))} {result(equation.ok)}</h3>
<div class="formula" role="group" aria-label="formula" tabindex="0">{formula}</div>
<code class="plain">{escape(plain(equation.formula))}</code>
{"".join(f'<p class="alarm">{alarm}</p>' for alarm in alarms)}
<div class="halves">
<div>
{checks(equation.outcomes)}{paragraphs("In the paper", equation.ours)}
{paragraphs("In the released code", equation.released)}
{paragraphs("What the difference changes", equation.effect)}
<h4>A small example</h4>
<pre>{wrapped(escape(equation.example))}</pre>
</div>
<div>
{code(equation.place) if equation.place else ""}{callers(equation.tests)}</div>
</div>
</article>
"""


def checks(outcomes: Sequence[Outcome]) -> str:
    """The table of the checks. Its numbers wrap before the comparison sign, so that it fits a telephone's width."""
    rows = "".join(f'<tr{"" if o.ok else FAILING}><th scope="row">{escape(o.what)}</th>'
                   f"<td>{comparison(o.difference, o.tolerance)}</td>"
                   f'<td>{"none" if o.gradient is None else comparison(o.gradient, o.gradient_tolerance)}</td>'
                   f"<td>{result(o.ok)}</td></tr>\n" for o in outcomes)
    return f"""<h4>The check</h4>
<div class="table"><table>
<thead><tr><th scope="col">case</th><th scope="col">difference ≤&#160;tolerance</th><th scope="col">of the gradient</th>
<th scope="col">result</th></tr></thead>
<tbody>
{rows}</tbody>
</table></div>
""" if outcomes else ""


def paragraphs(title: str, text: str) -> str:
    """A heading and the paragraphs of `text`, with `code` in backticks; "" for an empty text."""
    html = "".join(f"<p>{escape(part)}</p>\n" for part in re.split(r"\n\s*\n", text) if part.strip())
    html = re.sub("`([^`]+)`", r"<code>\1</code>", html)
    return f"<h4>{title}</h4>\n{html}" if html else ""


def code(place: Place) -> str:
    source = wrapped(highlighted(place.source))
    return f"<h4>The code: <code>{escape(place.file)}:{place.line}</code></h4>\n<pre>{source}</pre>\n"


def callers(tests: Sequence[str]) -> str:
    if not tests:
        return "<h4>Tests</h4>\n<p>No test calls it.</p>\n"
    named = "".join(f"<li><code>{escape(test)}</code></li>\n" for test in tests[:TESTS])
    more = f"<li>and {len(tests) - TESTS} more</li>\n" if len(tests) > TESTS else ""
    return f'<h4>Tests that call it</h4>\n<ul class="tests">\n{named}{more}</ul>\n'


# ---- helpers

def heading(equation: AuditedEquation) -> str:
    return f"{equation.paper} ({equation.number}): {equation.title}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def anchor(equation: AuditedEquation) -> str:
    """The prefix eq- keeps it apart from a paper's anchor."""
    return slug(f"eq {heading(equation)}")


def result(ok: bool) -> str:
    """In words: colour alone is invisible on a poor projector and to some readers."""
    return f'<span class="{"pass" if ok else "fail"}">{"pass" if ok else "fail"}</span>'


def comparison(value: float, limit: float) -> str:
    """2.3e-7 ≤ 1e-6; "not ≤" where it is larger or nan. A line can break between the two spans alone."""
    return (f'<span class="number">{number(value)}</span> '
            f'<span class="number">{"≤" if value <= limit else "not ≤"} {number(limit)}</span>')


def number(value: float) -> str:
    """Two digits of it: 2.3e-7, 1e-6, 0.031, 0, nan."""
    return re.sub(r"e([+-])0", r"e\1", f"{value:.2g}")


def wrapped(html: str) -> str:
    """Each line as an element with a hanging indent, so that a long line wraps and nothing is cut off."""
    indents = [len(line) - len(line.lstrip(" ")) for line in re.sub("<[^>]*>", "", html).split("\n")]
    return "".join(f'<span class="line" style="--in: {indent}ch">{line}\n</span>'
                   for indent, line in zip(indents, html.split("\n")))


def highlighted(source: str) -> str:
    """Python source as HTML with comments and docstrings in a muted colour; no element spans the end of a line."""
    # Offset of each line in characters.
    starts = list(accumulate((len(line) + 1 for line in source.split("\n")), initial=0))
    html, at = "", 0
    for span in comment_spans(source):
        begin, end = (starts[line - 1] + column for line, column in span)
        inner = escape(source[begin:end]).replace("\n", '</span>\n<span class="muted">')
        html += f'{escape(source[at:begin])}<span class="muted">{inner}</span>'
        at = end
    return html + escape(source[at:])


def comment_spans(source: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of comments and docstrings as (line, column); a docstring is a string that starts a statement."""
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        docstring = token.type == tokenize.STRING and before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.COMMENT or docstring:
            yield token.start, token.end
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type
