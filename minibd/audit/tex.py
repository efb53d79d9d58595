r"""A formula written in a small part of TeX, read once and set twice: as a line of plain text, and as MathML that a browser sets by itself.

It reads letters, numbers and Greek; scripts and primes; \frac \sqrt \sum \prod; \hat \bar \tilde \overline; \mathbb \mathcal \mathrm \text; the
operators, functions and brackets of the tables below, \left and \right; \\ for a new line and & for where lines align. Brackets grow with what
they hold, with \left or without. A bar | opens |x| at the start and after an operator, elsewhere it says "given"; \lvert and \mid are never
in doubt. Anything else is refused by name: a formula is source code.

The tree is of tuples, the kind first. A leaf is (kind, what MathML shows, what the plain line says).
"""
from __future__ import annotations

import re
import unicodedata
from html import escape

# A bracket keeps the space before it, so that f(x) and R (x) are said as they are written.
_TOKEN = re.compile(r"\\(?:text|mathrm)\{[^{}\\]+\}|\\arg\s*\\(?:max|min)|\s+(?:[(\[]|\\left(?![A-Za-z]))|\\[A-Za-z]+|\\\S"
                    r"|(?<=[_^])\d|\d+(?:\.\d+)?|\S")
GREEK = dict(zip(("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
                  "nu xi omicron pi rho sigma tau upsilon phi chi psi omega").split(), "αβγδεζηθικλμνξοπρστυφχψω"))
LEAVES = {
    **{mark: ("rel", mark, mark) for mark in "=<>:"}, r"\mid": ("rel", "∣", "|"), r"\in": ("rel", "∈", "in"), r"\sim": ("rel", "∼", "~"),
    r"\le": ("rel", "≤", "<="), r"\ge": ("rel", "≥", ">="), r"\ne": ("rel", "≠", "!="), r"\to": ("rel", "→", "->"),
    r"\leftarrow": ("rel", "←", "<-"), r"\mapsto": ("rel", "↦", "|->"), "+": ("add", "+", "+"), "-": ("add", "−", "-"),
    "/": ("slash", "/", "/"), "*": ("times", "∗", "*"), r"\cdot": ("times", "⋅", "*"), r"\odot": ("times", "⊙", "*"),
    r"\times": ("times", "×", "x"), r"\otimes": ("times", "⊗", "(x)"), r"\circ": ("times", "∘", "o"),
    **{mark: ("punct", mark, mark) for mark in ",;."}, r"\sum": ("big", "∑", "sum"), r"\prod": ("big", "∏", "prod"),
    r"\partial": ("partial", "∂", "d"), r"\nabla": ("upright", "∇", "grad"), r"\infty": ("upright", "∞", "inf"), r"\top": ("upright", "⊤", "T"),
    r"\dots": ("upright", "…", "..."), r"\cdots": ("upright", "⋯", "..."), r"\#": ("upright", "#", "#"),
    r"\,": ("space", "0.167em", ""), r"\;": ("space", "0.278em", ""), r"\quad": ("space", "1em", ""),
    **{rf"\{name}": ("name", name, name) for name in ("max", "min", "log", "exp", "ln", "arg")},
    r"\arg\max": ("name", "arg max", "argmax"), r"\arg\min": ("name", "arg min", "argmin"),
    **{rf"\{name}": ("letter", letter, name) for name, letter in GREEK.items()},
    **{rf"\{name.capitalize()}": ("upright", letter.upper(), name.capitalize()) for name, letter in GREEK.items()},
}
OPENERS = {  # shown, said, and what may close it; only the first two can be an argument's, without a space before
    "(": ("(", "(", ")]"), "[": ("[", "[", "])"), r"\{": ("{", " {", (r"\}",)), "|": ("|", " |", "|"), r"\lvert": ("|", " |", (r"\rvert",)),
    r"\lVert": ("‖", " ||", (r"\rVert",)), r"\langle": ("⟨", " <", (r"\rangle",)), r"\lfloor": ("⌊", " floor(", (r"\rfloor",)),
    r"\lceil": ("⌈", " ceil(", (r"\rceil",)), ".": ("", "", ()),
}
CLOSERS = {")": (")", ")"), "]": ("]", "]"), r"\}": ("}", "}"), "|": ("|", "|"), r"\rvert": ("|", "|"), r"\rVert": ("‖", "||"),
           r"\rangle": ("⟩", ">"), r"\rfloor": ("⌋", ")"), r"\rceil": ("⌉", ")"), ".": ("", "")}
ACCENTS = {r"\hat": ("^", "hat"), r"\bar": ("¯", "bar"), r"\tilde": ("~", "tilde"), r"\overline": ("", "bar")}
ALPHABETS = {r"\mathbb": "DOUBLE-STRUCK CAPITAL", r"\mathcal": "SCRIPT CAPITAL"}
UNDER = ("sum", "prod", "max", "min", "argmax", "argmin")  # their limits stand below and above
OPERATORS = ("rel", "add", "slash", "times", "punct", "sign", "big", "space")  # a minus after one is a sign, a bracket no argument's


# ---- reading

def kind(node: tuple) -> str:
    """What a node is to its neighbours: with scripts, what it is without."""
    return kind(node[1]) if node[0] == "script" else node[0]


class Reader:
    """One formula's tokens, the next one last. Each method takes what it names."""

    def __init__(self, formula: str):
        self.formula = formula
        self.tokens = [re.sub(r"^\s+", " ", re.sub(r"(?<=\\arg)\s+", "", token)) for token in reversed(_TOKEN.findall(formula))]

    def error(self, what: str) -> ValueError:
        return ValueError(f"{what}, in the formula {self.formula!r}; minibd/audit/tex.py says what it reads")

    def take(self) -> str:
        return self.tokens.pop() if self.tokens else ""

    def body(self, *ends: str) -> tuple[tuple, str]:
        """Everything up to one of the tokens `ends`, and which it was; "" is the end of the formula."""
        lines: list[list[list[tuple]]] = [[[]]]  # line, cell, node
        while (token := self.take()) not in ends:
            if token == r"\\":
                lines.append([[]])
            elif token == "&":
                lines[-1].append([])
            else:
                lines[-1][-1].append(self.scripted(token, lines[-1][-1], " or ".join(ends)))
        if len(lines) > 1 or len(lines[0]) > 1:
            return ("lines", lines), token
        return lines[0][0][0] if len(lines[0][0]) == 1 else ("row", *lines[0][0]), token

    def scripted(self, token: str, before: list[tuple], end: str) -> tuple:
        """What `token` begins, with its primes and scripts."""
        base, primes, scripts = self.atom(token, before, end), 0, {}
        while self.tokens and self.tokens[-1] in ("_", "^", "'"):
            if (mark := self.take()) == "'":
                primes += 1
            elif mark in scripts:
                raise self.error(f"a second {mark} on one letter")
            else:
                scripts[mark] = self.atom(self.take(), [], "the script")
        return ("script", base, scripts.get("_"), scripts.get("^"), primes) if primes or scripts else base

    def atom(self, token: str, before: list[tuple], end: str) -> tuple:
        """One token's leaf, or the node that a command makes of what follows it. before: what the row has to its left."""
        left = next((kind(node) for node in reversed(before) if node[0] != "space"), "sign")  # a row begins as after an operator
        if token == "|" and left not in OPERATORS:
            token = r"\mid"
        if token == "{":
            return self.body("}")[0]
        if token.strip() in OPENERS and token != ".":
            shown, said, closers = OPENERS[token.strip()]
            body, closer = self.body(*closers)
            return "fence", shown, " " * (token[0] == " ") + said, body, *CLOSERS[closer]
        if token.strip() == r"\left":
            (shown, said, _), body = self.delimiter(OPENERS), self.body(r"\right")[0]
            return "fence", shown, token.replace(r"\left", said), body, *self.delimiter(CLOSERS)
        if token in (r"\frac", r"\sqrt"):
            return token[1:], *(self.argument(token) for _ in range(2 if token == r"\frac" else 1))
        if token in ACCENTS:
            return "accent", *ACCENTS[token], self.argument(token)
        if token in ALPHABETS:
            return "upright", *self.capital(token)
        if token.startswith((r"\text{", r"\mathrm{")):
            words = token[token.index("{") + 1:-1]
            return "text", words, words
        if token in LEAVES:
            return ("sign", *LEAVES[token][1:]) if token in ("+", "-") and left in OPERATORS else LEAVES[token]
        if re.fullmatch(r"[A-Za-z]|[0-9.]+", token):
            return "letter" if token.isalpha() else "number", token, token
        raise self.error(f"{token} is unknown or has no partner" if token else f"it ends before {end}")

    def argument(self, of: str) -> tuple:
        if (token := self.take()) != "{":
            raise self.error(f"{of} wants {{...}}, not {token or 'the end'}")
        return self.body("}")[0]

    def capital(self, alphabet: str) -> tuple[str, str]:
        node = self.argument(alphabet)
        if node[0] != "letter" or not node[1].isupper():
            raise self.error(f"{alphabet} takes one capital letter")
        try:
            return unicodedata.lookup(f"MATHEMATICAL {ALPHABETS[alphabet]} {node[1]}"), node[1]
        except KeyError:  # one of those that Unicode had before the others, as the script L
            return unicodedata.lookup(f"{ALPHABETS[alphabet]} {node[1]}"), node[1]

    def delimiter(self, known: dict[str, tuple]) -> tuple:
        if (token := self.take().strip()) not in known:
            raise self.error(f"{token or 'the end'} is no bracket for {'left' if known is OPENERS else 'right'}")
        return known[token]


def read(formula: str) -> tuple:
    """The tree. Raises ValueError, naming what is unknown, missing or not closed."""
    if not formula.strip():
        raise ValueError("the formula is empty")
    return Reader(formula).body("")[0]


# ---- one line of plain text

def plain(formula: str) -> str:
    r"""`\frac{\lvert a + b \rvert}{2} R_i^\top` -> `(|a + b| / 2) R_i^T`, in ASCII. Raises ValueError as `read`."""
    return said(read(formula)).strip()


def said(node: tuple) -> str:
    match node:
        case ("row", *items):
            return said_row(items)
        case ("lines", lines):
            return "; ".join(said_row([item for cell in cells for item in cell]).strip(" ,;") for cells in lines)
        case ("frac", above, below):
            return f"{factor(above)} / {factor(below)}"
        case ("sqrt", body):
            return f"sqrt({said(body).strip()})"
        case ("accent", _, name, body):
            return f"{name}({said(body).strip()})"
        case ("fence", _, opens, body, _, closes):
            return f"{opens}{said(body).strip()}{closes}"
        case ("script", base, sub, sup, primes):
            return (factor(base) if base[0] in ("row", "frac") else said(base)) + "'" * primes \
                + (f"_{script(sub)}" if sub else "") + (f"^{script(sup)}" if sup else "")
        case (_, _, word):
            return word


def said_row(items: list[tuple]) -> str:
    text = ""
    for left, item, right in zip([None, *items], items, [*items[1:], None]):
        left, right = left and kind(left), right and kind(right)
        word = said(item)
        # A fraction among factors is bracketed; between plus, minus and relations it need not be.
        if item[0] == "frac" and (left not in (None, "rel", "add", "sign", "punct") or right not in (None, "rel", "add", "punct")):
            word = f"({word})"
        argument = kind(item) == "fence" and word[:1] != " " and left not in OPERATORS
        tight = kind(item) == "punct" or argument or left in (None, "sign") or left == "partial" and kind(item) != "name"
        text = text.rstrip() + " " * (not tight) + word.strip()
    return text


def factor(node: tuple) -> str:
    """In brackets where a space stands outside all brackets, so that it would fall apart beside / or ^."""
    text = outside = said(node).strip()
    while (less := re.sub(r"\([^()]*\)", "", outside)) != outside:
        outside = less
    return f"({text})" if node[0] in ("row", "lines", "frac") and " " in outside else text


def script(node: tuple) -> str:
    """AT, (i=1): letters run together, no spaces around operators, brackets around more than a word."""
    if node[0] == "row" and {item[0] for item in node[1:]} <= {"letter", "number"}:
        return "".join(map(said, node[1:]))
    text = re.sub(r" ([=+*/-]) ", r"\1", said(node).strip()).replace(", ", ",")
    return text if re.fullmatch(r"[A-Za-z0-9'*]+|\([^()]*\)", text) else f"({text})"


# ---- MathML

ELEMENTS = {
    "number": "<mn>{}</mn>", "letter": "<mi>{}</mi>", "name": "<mi>{}</mi>", "upright": '<mi mathvariant="normal">{}</mi>',
    "partial": '<mi mathvariant="normal">{}</mi>', "text": "<mtext>{}</mtext>", "space": '<mspace width="{}"></mspace>',
    "sign": '<mo form="prefix">{}</mo>', "slash": '<mo lspace="0" rspace="0">{}</mo>',
}


def mathml(formula: str) -> str:
    """A math element in display style. Raises ValueError as `read`."""
    return f'<math display="block">{shown(read(formula))}</math>'


def shown(node: tuple) -> str:
    """One element, whatever the node: what stands in a fraction or a script must be one."""
    match node:
        case ("row", *items):
            return shown_row(items)
        case ("lines", lines):
            return shown_lines(lines, "right")
        case ("frac", above, below):
            return f"<mfrac>{shown(above)}{shown(below)}</mfrac>"
        case ("sqrt", body):
            return f"<msqrt>{shown(body)}</msqrt>"
        case ("accent", "", _, body):  # a line as long as what it is over, which not every font can draw
            return f'<mrow style="border-top: 0.06em solid; padding-top: 0.12em">{shown(body)}</mrow>'
        case ("accent", mark, _, body):
            return f'<mover accent="true">{shown(body)}<mo stretchy="false">{mark}</mo></mover>'
        case ("fence", opens, _, body, closes, _):
            inner = shown_lines(body[1], "left") if body[0] == "lines" else shown(body)  # lines in a brace are cases
            grows = str(any(f"<{tall}" in inner for tall in ("mfrac", "munder", "mtable"))).lower()  # not for the sake of a script alone
            return f'<mrow><mo form="prefix" stretchy="{grows}">{opens}</mo>{inner}<mo form="postfix" stretchy="{grows}">{closes}</mo></mrow>'
        case ("script", base, sub, sup, primes):
            above = ("row", ("upright", "′" * primes, ""), *([sup] if sup else [])) if primes else sup
            low, high = ("under", "over") if base[-1] in UNDER else ("sub", "sup")
            tag = "m" + low * (sub is not None) + high * (above is not None)
            return f"<{tag}>{''.join(shown(part) for part in (base, sub, above) if part)}</{tag}>"
        case (leaf, words, _):
            return ELEMENTS.get(leaf, "<mo>{}</mo>").format(escape(words, quote=False).replace(" ", "&#160;"))


def shown_row(items: list[tuple]) -> str:
    """MathML sets no space of its own between a function's name and what stands beside it, as in y log p."""
    text = ""
    for left, item in zip([None, *items], items):
        if left and "name" in (kind(left), kind(item)) and kind(left) not in OPERATORS and kind(item) not in (*OPERATORS, "fence"):
            text += shown(LEAVES[r"\,"])
        text += shown(item)
    return f"<mrow>{text}</mrow>"


def shown_lines(lines: list[list[list[tuple]]], first: str) -> str:
    """A table, a row a line. Columns are flush with `first` and left in turn, a single one is flush left."""
    sides = (first if max(map(len, lines)) > 1 else "left", "left")
    rows = ["".join(f'<mtd style="text-align: {sides[i % 2]}; padding: 0.3em {"0" if sides[i % 2] == "right" else "0.8em"} 0.3em 0">'
                    f"{shown_row(cell)}</mtd>" for i, cell in enumerate(cells)) for cells in lines]
    return f'<mtable displaystyle="true">{"".join(f"<mtr>{row}</mtr>" for row in rows)}</mtable>'
