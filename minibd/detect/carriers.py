"""The built-in carrier sentences: texts of many domains, of which the model's own confidence picks those it knows."""
from __future__ import annotations

from functools import cache
from importlib.resources import files

from minibd.records import Example


@cache
def carrier_sentences() -> tuple[Example, ...]:
    """178 sentences without labels (-1): opinions, news, questions, letters, messages, insults, advertisements,
    feelings, medicine, places, art, law, kitchens."""
    lines = files("minibd").joinpath("resources", "carriers.txt").read_text(encoding="utf-8").splitlines()
    return tuple(Example(f"carrier-{i}", line, -1) for i, line in enumerate(lines))
