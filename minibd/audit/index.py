"""All equations together: their places in the code, their checks, both as text and as JSON; the index in README.md."""
from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from minibd.audit import (
    check_attacks,
    check_filters,
    check_finemix,
    check_mbtsad,
    check_musclelora,
    check_pure,
    check_scan,
    check_unlearn,
)
from minibd.audit.check import Equation, outcomes
from minibd.audit.findings import AuditedEquation, Place
from minibd.audit.pages import reference
from minibd.audit.tex import plain
from minibd.audit.walk import ROOT, called_by, places

EQUATIONS = (
    *check_mbtsad.EQUATIONS, *check_musclelora.EQUATIONS, *check_pure.EQUATIONS, *check_finemix.EQUATIONS,
    *check_attacks.EQUATIONS, *check_scan.EQUATIONS, *check_unlearn.EQUATIONS, *check_filters.EQUATIONS,
)
NUMBERED = {"MBTSAD": 9, "MuScleLoRA": 13, "PURE": 3}  # numbered equations of each paper; Fine-mixing's is not at hand


def equations_of(paper: str, equations: Sequence[Equation] = EQUATIONS) -> list[Equation]:
    """The equations of `paper`, upper or lower case; of all papers where it is ""."""
    return [e for e in equations if paper.lower() in ("", e.paper.lower())]


def missing(found: Sequence[Place], equations: Sequence[Equation] = EQUATIONS, paper: str = "") -> list[str]:
    """The gaps, a line each: a paper's numbers and places in the code without a check, numbers with two places.

    found: walk.places().
    """
    checked = {(e.paper, e.number) for e in equations}
    found = [place for place in found if paper.lower() in ("", place.paper.lower())]
    gaps = [f"{name} ({n}) is in the paper and has no check" for name, count in NUMBERED.items()
            if paper.lower() in ("", name.lower()) for n in range(1, count + 1) if (name, str(n)) not in checked]
    gaps += [f"{place.file}:{place.line} is {place.paper} ({place.number}) by its docstring, which has no check"
             for place in found if (place.paper, place.number) not in checked]
    gaps += [f"{name} ({number}) is named in {n} places"
             for (name, number), n in Counter((place.paper, place.number) for place in found).items() if n > 1]
    return gaps


def audit(found: Sequence[Place], seed: int = 0, paper: str = "") -> list[AuditedEquation]:
    """The equations of `paper`, or all, checked on numbers drawn from `seed`. found: walk.places()."""
    place_of, tests = {(place.paper, place.number): place for place in found}, called_by(found)
    audited = []
    for e in equations_of(paper):
        place = place_of.get((e.paper, e.number))
        audited.append(AuditedEquation(
            e.paper, e.number, e.title, e.formula, e.ours, e.released, e.effect, e.example(), outcomes(e, seed), place,
            tests[place.file, place.name] if place else (),
        ))
    return audited


# ---- as text and as JSON

def lines(one: AuditedEquation) -> list[str]:
    """An equation as the terminal shows it."""
    def field(name: str, text: str) -> list[str]:
        return textwrap.wrap(text, 140, initial_indent=f"    {name:9} ", subsequent_indent=" " * 14) if text else []

    where = f"{one.place.file}:{one.place.line} {one.place.name}" if one.place else "NO DOCSTRING NAMES IT"
    text = [f"{one.paper} ({one.number})  {one.title}", f"    {plain(one.formula)}", *field("where", where),
            *field("paper", one.ours), *field("released", one.released), *field("effect", one.effect)]
    for outcome in one.outcomes:
        slope = "" if outcome.gradient is None else \
            f", gradient off by {outcome.gradient:.1e} (at most {outcome.gradient_tolerance:.0e})"
        text.append(f"    {'holds' if outcome.ok else 'FAILS':9} {outcome.what}: off by {outcome.difference:.1e} "
                    f"(at most {outcome.tolerance:.0e}){slope}")
    return text


def as_json(every: Sequence[AuditedEquation], missing: Sequence[str], seed: int) -> dict:
    return {"seed": seed, "ok": not missing and all(one.ok for one in every), "missing": list(missing),
            "equations": [{**asdict(one), "plain": plain(one.formula), "ok": one.ok,
                           "outcomes": [{**asdict(outcome), "ok": outcome.ok} for outcome in one.outcomes]}
                          for one in every]}


# ---- the index in the room's page

PAGE = ROOT / "minibd" / "audit" / "README.md"
BEGIN, END = "<!-- equations: python scripts/audit.py --readme -->", "<!-- /equations -->"


def table() -> str:
    """The equations as a Markdown table: paper and number, title, place in the code, a test of it."""
    found = places()
    place_of, tests = {(place.paper, place.number): place for place in found}, called_by(found)
    lines = ["| equation | what | where | a test |", "|---|---|---|---|"]
    for e in EQUATIONS:
        place = place_of[e.paper, e.number]
        test = next(iter(tests[place.file, place.name]), "")
        where = reference(PAGE, ROOT, place.file, place.line, place.name)
        lines.append(f"| {e.paper} ({e.number}) | {e.title} | {where} | {test and f'`{test}`'} |")
    return "\n".join(lines)


def indexed(page: str) -> str:
    """`page` with the index renewed. Raises ValueError where its markers are missing."""
    head, middle, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (middle and end):
        raise ValueError(f"minibd/audit/README.md lacks {BEGIN} and {END}, the markers of the index")
    return f"{head}{BEGIN}\n{table()}\n{end}{tail}"
