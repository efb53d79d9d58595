r"""Converts a formula in a small subset of TeX to a line of plain text and to MathML, which browsers render.

The subset: letters, numbers and Greek; scripts and primes; \frac \sqrt \sum \prod; \hat \bar \tilde \overline;
\mathbb \mathcal \mathrm \text; the operators, functions and brackets of the tables below, \left and \right; \\ for a
new line and & for the alignment points. Brackets grow with their contents, with or without \left. A bar | opens |x| at
the start and after an operator, elsewhere it means "given"; \lvert and \mid are unambiguous. Anything else raises a
ValueError that names it: a formula is source code.

The syntax tree consists of tuples whose first item is the node's kind. A leaf is (kind, MathML content, plain text).
"""
from __future__ import annotations

import re
import unicodedata
from html import escape

# A bracket token includes the space before it: plain text writes f(x) and R (x) as the source does.
_TOKEN = re.compile(r"\\(?:text|mathrm)\{[^{}\\]+\}|\\arg\s*\\(?:max|min)|\s+(?:[(\[]|\\left(?![A-Za-z]))|\\[A-Za-z]+"
                    r"|\\\S|(?<=[_^])\d|\d+(?:\.\d+)?|\S")
GREEK = dict(zip(("alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu "
                  "nu xi omicron pi rho sigma tau upsilon phi chi psi omega").split(), "αβγδεζηθικλμνξοπρστυφχψω"))
LEAVES = {
    **{mark: ("rel", mark, mark) for mark in "=<>:"}, r"\mid": ("rel", "∣", "|"), r"\in": ("rel", "∈", "in"),
    r"\sim": ("rel", "∼", "~"), r"\le": ("rel", "≤", "<="), r"\ge": ("rel", "≥", ">="), r"\ne": ("rel", "≠", "!="),
    r"\to": ("rel", "→", "->"), r"\leftarrow": ("rel", "←", "<-"), r"\mapsto": ("rel", "↦", "|->"),
    "+": ("add", "+", "+"), "-": ("add", "−", "-"),
    "/": ("slash", "/", "/"), "*": ("times", "∗", "*"), r"\cdot": ("times", "⋅", "*"), r"\odot": ("times", "⊙", "*"),
    r"\times": ("times", "×", "x"), r"\otimes": ("times", "⊗", "(x)"), r"\circ": ("times", "∘", "o"),
    **{mark: ("punct", mark, mark) for mark in ",;."}, r"\sum": ("big", "∑", "sum"), r"\prod": ("big", "∏", "prod"),
    r"\partial": ("partial", "∂", "d"), r"\nabla": ("upright", "∇", "grad"), r"\infty": ("upright", "∞", "inf"),
    r"\top": ("upright", "⊤", "T"), r"\dots": ("upright", "…", "..."), r"\cdots": ("upright", "⋯", "..."),
    r"\#": ("upright", "#", "#"),
    r"\,": ("space", "0.167em", ""), r"\;": ("space", "0.278em", ""), r"\quad": ("space", "1em", ""),
    **{rf"\{name}": ("name", name, name) for name in ("max", "min", "log", "exp", "ln", "arg")},
    r"\arg\max": ("name", "arg max", "argmax"), r"\arg\min": ("name", "arg min", "argmin"),
    **{rf"\{name}": ("letter", letter, name) for name, letter in GREEK.items()},
    **{rf"\{name.capitalize()}": ("upright", letter.upper(), name.capitalize()) for name, letter in GREEK.items()},
}
# token: (MathML, plain text, its closing tokens). Only ( and [ open a function's arguments, without a space before.
OPENERS = {
    "(": ("(", "(", ")]"), "[": ("[", "[", "])"), r"\{": ("{", " {", (r"\}",)), "|": ("|", " |", "|"),
    r"\lvert": ("|", " |", (r"\rvert",)), r"\lVert": ("‖", " ||", (r"\rVert",)), r"\langle": ("⟨", " <", (r"\rangle",)),
    r"\lfloor": ("⌊", " floor(", (r"\rfloor",)), r"\lceil": ("⌈", " ceil(", (r"\rceil",)), ".": ("", "", ()),
}
CLOSERS = {  # token: (MathML, plain text)
    ")": (")", ")"), "]": ("]", "]"), r"\}": ("}", "}"), "|": ("|", "|"), r"\rvert": ("|", "|"), r"\rVert": ("‖", "||"),
    r"\rangle": ("⟩", ">"), r"\rfloor": ("⌋", ")"), r"\rceil": ("⌉", ")"), ".": ("", ""),
}
ACCENTS = {r"\hat": ("^", "hat"), r"\bar": ("¯", "bar"), r"\tilde": ("~", "tilde"), r"\overline": ("", "bar")}
ALPHABETS = {r"\mathbb": "DOUBLE-STRUCK CAPITAL", r"\mathcal": "SCRIPT CAPITAL"}
UNDER = ("sum", "prod", "max", "min", "argmax", "argmin")  # limits are set below and above, not beside
# After one of these a minus is a sign and a bracket does not open arguments.
OPERATORS = ("rel", "add", "slash", "times", "punct", "sign", "big", "space")


# ---- parsing

def kind(node: tuple) -> str:
    """The node's kind for spacing; a node with scripts has its base's kind."""
    return kind(node[1]) if node[0] == "script" else node[0]


class Parser:
    """Recursive descent over one formula's tokens, stored in reverse. Each method consumes what it is named after."""

    def __init__(self, formula: str):
        self.formula = formula
        self.tokens = [re.sub(r"^\s+", " ", re.sub(r"(?<=\\arg)\s+", "", token))
                       for token in reversed(_TOKEN.findall(formula))]

    def error(self, what: str) -> ValueError:
        return ValueError(f"{what}, in the formula {self.formula!r}; minibd/audit/tex.py says what it reads")

    def next_token(self) -> str:
        return self.tokens.pop() if self.tokens else ""

    def body(self, *ends: str) -> tuple[tuple, str]:
        """The node of everything up to one of the tokens `ends`, and that token; "" is the end of the formula."""
        lines: list[list[list[tuple]]] = [[[]]]  # line, cell, node
        while (token := self.next_token()) not in ends:
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
        """The node that starts with `token`, with its primes and scripts."""
        base, primes, scripts = self.atom(token, before, end), 0, {}
        while self.tokens and self.tokens[-1] in ("_", "^", "'"):
            if (mark := self.next_token()) == "'":
                primes += 1
            elif mark in scripts:
                raise self.error(f"a second {mark} on one letter")
            else:
                scripts[mark] = self.atom(self.next_token(), [], "the script")
        return ("script", base, scripts.get("_"), scripts.get("^"), primes) if primes or scripts else base

    def atom(self, token: str, before: list[tuple], end: str) -> tuple:
        """A token's leaf, or a command's node with its arguments. before: the nodes to the left in the row."""
        # A row starts as if after an operator.
        left = next((kind(node) for node in reversed(before) if node[0] != "space"), "sign")
        if token == "|" and left not in OPERATORS:
            token = r"\mid"
        if token == "{":
            return self.body("}")[0]
        if token.strip() in OPENERS and token != ".":
            symbol, text, closers = OPENERS[token.strip()]
            body, closer = self.body(*closers)
            return "fence", symbol, " " * (token[0] == " ") + text, body, *CLOSERS[closer]
        if token.strip() == r"\left":
            (symbol, text, _), body = self.delimiter(OPENERS), self.body(r"\right")[0]
            return "fence", symbol, token.replace(r"\left", text), body, *self.delimiter(CLOSERS)
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
        if (token := self.next_token()) != "{":
            raise self.error(f"{of} wants {{...}}, not {token or 'the end'}")
        return self.body("}")[0]

    def capital(self, alphabet: str) -> tuple[str, str]:
        node = self.argument(alphabet)
        if node[0] != "letter" or not node[1].isupper():
            raise self.error(f"{alphabet} takes one capital letter")
        try:
            return unicodedata.lookup(f"MATHEMATICAL {ALPHABETS[alphabet]} {node[1]}"), node[1]
        except KeyError:  # some letters, as the script L, were in Unicode before the alphabet, under another name
            return unicodedata.lookup(f"{ALPHABETS[alphabet]} {node[1]}"), node[1]

    def delimiter(self, known: dict[str, tuple]) -> tuple:
        if (token := self.next_token().strip()) not in known:
            raise self.error(f"{token or 'the end'} is no bracket for {'left' if known is OPENERS else 'right'}")
        return known[token]


def parse(formula: str) -> tuple:
    """The syntax tree. Raises ValueError, naming what is unknown, missing or not closed."""
    if not formula.strip():
        raise ValueError("the formula is empty")
    return Parser(formula).body("")[0]


# ---- one line of plain text

def plain(formula: str) -> str:
    r"""`\frac{\lvert a + b \rvert}{2} R_i^\top` -> `(|a + b| / 2) R_i^T`, in ASCII. Raises ValueError as `parse`."""
    return to_text(parse(formula)).strip()


def to_text(node: tuple) -> str:
    match node:
        case ("row", *items):
            return text_row(items)
        case ("lines", lines):
            return "; ".join(text_row([item for cell in cells for item in cell]).strip(" ,;") for cells in lines)
        case ("frac", above, below):
            return f"{factor(above)} / {factor(below)}"
        case ("sqrt", body):
            return f"sqrt({to_text(body).strip()})"
        case ("accent", _, name, body):
            return f"{name}({to_text(body).strip()})"
        case ("fence", _, opens, body, _, closes):
            return f"{opens}{to_text(body).strip()}{closes}"
        case ("script", base, sub, sup, primes):
            return (factor(base) if base[0] in ("row", "frac") else to_text(base)) + "'" * primes \
                + (f"_{script(sub)}" if sub else "") + (f"^{script(sup)}" if sup else "")
        case (_, _, word):
            return word


def text_row(items: list[tuple]) -> str:
    text = ""
    for left, item, right in zip([None, *items], items, [*items[1:], None]):
        left, right = left and kind(left), right and kind(right)
        word = to_text(item)
        # A fraction among factors needs brackets; between plus, minus and relations it does not.
        if item[0] == "frac" and (left not in (None, "rel", "add", "sign", "punct")
                                  or right not in (None, "rel", "add", "punct")):
            word = f"({word})"
        argument = kind(item) == "fence" and word[:1] != " " and left not in OPERATORS
        tight = (kind(item) == "punct" or argument or left in (None, "sign")
                 or left == "partial" and kind(item) != "name")
        text = text.rstrip() + ("" if tight else " ") + word.strip()
    return text


def factor(node: tuple) -> str:
    """The text, in brackets where it has a space outside all brackets and / or ^ would take a part of it."""
    text = outside = to_text(node).strip()
    while (less := re.sub(r"\([^()]*\)", "", outside)) != outside:
        outside = less
    return f"({text})" if node[0] in ("row", "lines", "frac") and " " in outside else text


def script(node: tuple) -> str:
    """AT, (i=1): letters are joined, operators have no spaces, more than one word is in brackets."""
    if node[0] == "row" and {item[0] for item in node[1:]} <= {"letter", "number"}:
        return "".join(map(to_text, node[1:]))
    text = re.sub(r" ([=+*/-]) ", r"\1", to_text(node).strip()).replace(", ", ",")
    return text if re.fullmatch(r"[A-Za-z0-9'*]+|\([^()]*\)", text) else f"({text})"


# ---- MathML

ELEMENTS = {
    "number": "<mn>{}</mn>", "letter": "<mi>{}</mi>", "name": "<mi>{}</mi>",
    "upright": '<mi mathvariant="normal">{}</mi>', "partial": '<mi mathvariant="normal">{}</mi>',
    "text": "<mtext>{}</mtext>", "space": '<mspace width="{}"></mspace>',
    "sign": '<mo form="prefix">{}</mo>', "slash": '<mo lspace="0" rspace="0">{}</mo>',
}


def mathml(formula: str) -> str:
    """One math element in display style. Raises ValueError as `parse`."""
    return math(parse(formula))


def mathml_parts(formula: str) -> list[str]:
    r"""The formula as several math elements, cut at each \quad, so that a narrow page can break the line there.

    A browser does not break a line inside a math element.
    """
    tree, parts = parse(formula), [[]]
    for node in tree[1:] if tree[0] == "row" else [tree]:
        if node == LEAVES[r"\quad"]:
            parts.append([])
        else:
            parts[-1].append(node)
    return [math(part[0] if len(part) == 1 else ("row", *part)) for part in parts if part]


def math(tree: tuple) -> str:
    return f'<math display="block">{to_mathml(tree)}</math>'


def to_mathml(node: tuple) -> str:
    """Exactly one element for any node, as fractions and scripts need."""
    match node:
        case ("row", *items):
            return mathml_row(items)
        case ("lines", lines):
            return mathml_table(lines, "right")
        case ("frac", above, below):
            return f"<mfrac>{to_mathml(above)}{to_mathml(below)}</mfrac>"
        case ("sqrt", body):
            return f"<msqrt>{to_mathml(body)}</msqrt>"
        case ("accent", "", _, body):  # a rule over the whole width, which not every font has
            return f'<mrow style="border-top: 0.06em solid; padding-top: 0.12em">{to_mathml(body)}</mrow>'
        case ("accent", mark, _, body):
            return f'<mover accent="true">{to_mathml(body)}<mo stretchy="false">{mark}</mo></mover>'
        case ("fence", opens, _, body, closes, _):
            # Lines in a brace are cases.
            inner = mathml_table(body[1], "left") if body[0] == "lines" else to_mathml(body)
            # A script alone does not stretch its bracket.
            stretchy = str(any(f"<{tall}" in inner for tall in ("mfrac", "munder", "mtable"))).lower()
            left, right = (f'<mo form="{form}" stretchy="{stretchy}">{bracket}</mo>'
                           for form, bracket in (("prefix", opens), ("postfix", closes)))
            return f"<mrow>{left}{inner}{right}</mrow>"
        case ("script", base, sub, sup, primes):
            above = ("row", ("upright", "′" * primes, ""), *([sup] if sup else [])) if primes else sup
            low, high = ("under", "over") if base[-1] in UNDER else ("sub", "sup")
            tag = "m" + low * (sub is not None) + high * (above is not None)
            return f"<{tag}>{''.join(to_mathml(part) for part in (base, sub, above) if part)}</{tag}>"
        case (leaf, words, _):
            return ELEMENTS.get(leaf, "<mo>{}</mo>").format(escape(words, quote=False).replace(" ", "&#160;"))


def mathml_row(items: list[tuple]) -> str:
    """MathML puts no space between a function's name and its neighbours, as in y log p: add a thin one."""
    text = ""
    for left, item in zip([None, *items], items):
        if left and "name" in (kind(left), kind(item)) and kind(left) not in OPERATORS \
                and kind(item) not in (*OPERATORS, "fence"):
            text += to_mathml(LEAVES[r"\,"])
        text += to_mathml(item)
    return f"<mrow>{text}</mrow>"


def mathml_table(lines: list[list[list[tuple]]], first: str) -> str:
    """A table with a row for each line. Columns align to `first` and to the left in turn, a single one to the left."""
    sides = (first if max(map(len, lines)) > 1 else "left", "left")
    padding = {"right": "0.3em 0 0.3em 0", "left": "0.3em 0.8em 0.3em 0"}
    styles = [f"text-align: {side}; padding: {padding[side]}" for side in sides]
    rows = ["".join(f'<mtd style="{styles[i % 2]}">{mathml_row(cell)}</mtd>' for i, cell in enumerate(cells))
            for cells in lines]
    return f'<mtable displaystyle="true">{"".join(f"<mtr>{row}</mtr>" for row in rows)}</mtable>'
