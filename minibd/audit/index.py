"""All equations together: where they stand, what is said of them, how their checks end; the index in README.md."""
from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from minibd.audit import check_attacks, check_finemix, check_mbtsad, check_musclelora, check_pure
from minibd.audit.check import Equation, outcomes
from minibd.audit.pages import reference
from minibd.audit.report import Found, Place
from minibd.audit.tex import plain
from minibd.audit.walk import ROOT, called_by, places

EQUATIONS = (
    *check_mbtsad.EQUATIONS, *check_musclelora.EQUATIONS, *check_pure.EQUATIONS, *check_finemix.EQUATIONS,
    *check_attacks.EQUATIONS,
)
NUMBERED = {"MBTSAD": 9, "MuScleLoRA": 13, "PURE": 3}  # as many as each paper numbers; Fine-mixing's were not at hand


def of(paper: str, equations: Sequence[Equation] = EQUATIONS) -> list[Equation]:
    """The equations of `paper`, in any case; of all papers where it is ""."""
    return [e for e in equations if paper.lower() in ("", e.paper.lower())]


def unknown(stand: Sequence[Place], equations: Sequence[Equation] = EQUATIONS, paper: str = "") -> list[str]:
    """What is missing, a line each: numbers of a paper and places in the code without a check, numbers used twice."""
    checked = {(e.paper, e.number) for e in equations}
    stand = [place for place in stand if paper.lower() in ("", place.paper.lower())]
    said = [f"{name} ({n}) is in the paper and has no check" for name, count in NUMBERED.items()
            if paper.lower() in ("", name.lower()) for n in range(1, count + 1) if (name, str(n)) not in checked]
    said += [f"{place.file}:{place.line} says that it is {place.paper} ({place.number}), which has no check"
             for place in stand if (place.paper, place.number) not in checked]
    said += [f"{name} ({number}) stands in {n} places"
             for (name, number), n in Counter((place.paper, place.number) for place in stand).items() if n > 1]
    return said


def found(stand: Sequence[Place], seed: int = 0, paper: str = "") -> list[Found]:
    """The equations of `paper`, or all, checked on numbers drawn from `seed`. stand: walk.places()."""
    at, tests = {(place.paper, place.number): place for place in stand}, called_by(stand)
    made = []
    for e in of(paper):
        place = at.get((e.paper, e.number))
        made.append(Found(e.paper, e.number, e.title, e.formula, e.ours, e.released, e.effect, e.example(),
                          outcomes(e, seed), place, tests[place.file, place.name] if place else ()))
    return made


# ---- as text and as JSON

def lines(one: Found) -> list[str]:
    """An equation as the terminal shows it."""
    def said(name: str, text: str) -> list[str]:
        return textwrap.wrap(text, 140, initial_indent=f"    {name:9} ", subsequent_indent=" " * 14) if text else []

    where = f"{one.place.file}:{one.place.line} {one.place.name}" if one.place else "NO DOCSTRING NAMES IT"
    made = [f"{one.paper} ({one.number})  {one.title}", f"    {plain(one.formula)}", *said("where", where),
            *said("paper", one.ours), *said("released", one.released), *said("effect", one.effect)]
    for outcome in one.outcomes:
        slope = "" if outcome.gradient is None else \
            f", gradient off by {outcome.gradient:.1e} (at most {outcome.gradient_tolerance:.0e})"
        made.append(f"    {'holds' if outcome.ok else 'FAILS':9} {outcome.what}: off by {outcome.difference:.1e} "
                    f"(at most {outcome.tolerance:.0e}){slope}")
    return made


def as_json(every: Sequence[Found], missing: Sequence[str], seed: int) -> dict:
    return {"seed": seed, "ok": not missing and all(one.ok for one in every), "missing": list(missing),
            "equations": [{**asdict(one), "plain": plain(one.formula), "ok": one.ok,
                           "outcomes": [{**asdict(outcome), "ok": outcome.ok} for outcome in one.outcomes]}
                          for one in every]}


# ---- the index in the room's page

PAGE = ROOT / "minibd" / "audit" / "README.md"
BEGIN, END = "<!-- equations: python scripts/audit.py --readme -->", "<!-- /equations -->"


def table() -> str:
    """The equations as a Markdown table: paper and number, what it is, where it stands, a test that holds it."""
    stand = places()
    at, tests = {(place.paper, place.number): place for place in stand}, called_by(stand)
    lines = ["| equation | what | where | a test |", "|---|---|---|---|"]
    for e in EQUATIONS:
        place = at[e.paper, e.number]
        test = next(iter(tests[place.file, place.name]), "")
        where = reference(PAGE, ROOT, place.file, place.line, place.name)
        lines.append(f"| {e.paper} ({e.number}) | {e.title} | {where} | {test and f'`{test}`'} |")
    return "\n".join(lines)


def indexed(page: str) -> str:
    """`page` with the index as it is now. Raises ValueError where its marks are missing."""
    head, middle, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (middle and end):
        raise ValueError(f"minibd/audit/README.md lacks {BEGIN} and {END}, between which the index stands")
    return f"{head}{BEGIN}\n{table()}\n{end}{tail}"
