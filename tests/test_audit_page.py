"""The audit's page and its formulas: by hand, in a browser if there is one, escaped, same twice, loud on failure."""
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from minibd.audit.findings import AuditedEquation, Outcome, Place
from minibd.audit.page import TESTS, highlighted, page, wrapped
from minibd.audit.tex import GREEK, mathml, mathml_parts, plain

ROOT = Path(__file__).parents[1]

FORMULAS = [
    (r"L = \alpha L_{AT} + \beta L_{\mathrm{hid}} + \gamma L_{cls}", "L = alpha L_AT + beta L_hid + gamma L_cls"),
    (r"\lVert Q_T^l - Q_S^l \rVert_2", "||Q_T^l - Q_S^l||_2"),
    (r"\hat{g} \leftarrow \frac{\lvert \langle g, r \rangle \rvert}{\lVert r \rVert^2} r",
     "hat(g) <- (|<g, r>| / ||r||^2) r"),
    (r"\frac{\alpha}{r} R ((L x) \odot s)", "(alpha / r) R ((L x) * s)"),
    (r"Q = \frac{F}{\lVert F \rVert_2 + 10^{-6}}, \quad F = \sum_{h=1}^H |A_h|^p",
     "Q = F / (||F||_2 + 10^(-6)), F = sum_(h=1)^H |A_h|^p"),
    (r"a^* = \arg\max_{a \in \mathcal{A}} \mathbb{E}_{(x, y) \sim D_c} \mathrm{CE}(f_{\theta_B}(a(x)), y)",
     "a^* = argmax_(a in A) E_((x,y) ~ D_c) CE(f_(theta_B)(a(x)), y)"),
    (r"\frac{1}{n-1} \sum_j \left(a_j - \frac{1}{n}\right)^2", "(1 / (n - 1)) sum_j (a_j - 1 / n)^2"),
    (r"-y \log p(y|x) - (1-y)\log(1-p)", "-y log p(y | x) - (1 - y) log(1 - p)"),
    (r"\theta' \leftarrow \theta - \eta\frac{\partial L}{\partial\theta}", "theta' <- theta - eta (dL / dtheta)"),
    (r"\frac{\partial \log p}{\partial w_i} \overline{\mathrm{var}}_h^l", "((d log p) / dw_i) bar(var)_h^l"),
    (r"\sqrt{x_1 + \tilde{h}}\in\mathbb{R}^{d\times r}", "sqrt(x_1 + tilde(h)) in R^(d x r)"),
    (r"\frac{\frac{a}{b}}{c d} = c / \frac{a}{b} + {a + b}^2", "(a / b) / (c d) = c / (a / b) + (a + b)^2"),
    (r"n = \min(10, \max(1, \lceil 0.3 n \rceil)), D = \{x_1, \dots, x_n\}",
     "n = min(10, max(1, ceil(0.3 n))), D = {x_1, ..., x_n}"),
    (r"f(x) = \left\{ x & \text{if } x > 0 \\ 0 & \text{otherwise} \right.", "f(x) = {x if x > 0; 0 otherwise"),
    (r"a &= b, \\ c &= -d", "a = b; c = -d"),
    (r"x_12 + [0, 1) \mid \Gamma \ne \nabla_\theta A^\top f \circ g", "x_1 2 + [0, 1) | Gamma != grad_theta A^T f o g"),
]
SET = [
    ("x_i^2", "<msubsup><mi>x</mi><mi>i</mi><mn>2</mn></msubsup>"),
    ("a < 3.5", "<mrow><mi>a</mi><mo>&lt;</mo><mn>3.5</mn></mrow>"),
    ("-x", '<mrow><mo form="prefix">−</mo><mi>x</mi></mrow>'),
    ("a - x", "<mrow><mi>a</mi><mo>−</mo><mi>x</mi></mrow>"),
    (r"\frac{\alpha}{\Gamma}", '<mfrac><mi>α</mi><mi mathvariant="normal">Γ</mi></mfrac>'),
    (r"\sum_{i}^n", "<munderover><mo>∑</mo><mi>i</mi><mi>n</mi></munderover>"),
    (r"\arg\min_a", "<munder><mi>arg&#160;min</mi><mi>a</mi></munder>"),
    (r"y \log p", '<mrow><mi>y</mi><mspace width="0.167em"></mspace><mi>log</mi><mspace width="0.167em"></mspace>'
                  "<mi>p</mi></mrow>"),
    (r"\hat{g}", '<mover accent="true"><mi>g</mi><mo stretchy="false">^</mo></mover>'),
    (r"\overline{a b}", '<mrow style="border-top: 0.06em solid; padding-top: 0.12em"><mrow><mi>a</mi><mi>b</mi></mrow>'
                        "</mrow>"),
    ("f'", '<msup><mi>f</mi><mrow><mi mathvariant="normal">′</mi></mrow></msup>'),
    (r"\mathbb{E}\mathcal{L}", '<mrow><mi mathvariant="normal">𝔼</mi><mi mathvariant="normal">ℒ</mi></mrow>'),
    (r"\sqrt{2}", "<msqrt><mn>2</mn></msqrt>"),
    (r"\text{a & b}", "<mtext>a&#160;&amp;&#160;b</mtext>"),
    (r"\lVert x \rVert_2", '<msub><mrow><mo form="prefix" stretchy="false">‖</mo><mi>x</mi>'
                           '<mo form="postfix" stretchy="false">‖</mo></mrow><mn>2</mn></msub>'),
]


@pytest.mark.parametrize("formula, line", FORMULAS)
def test_a_formula_is_said_in_one_line(formula, line):
    assert plain(formula) == line
    assert line.isascii()


@pytest.mark.parametrize("formula, inner", SET)
def test_a_formula_is_set(formula, inner):
    assert mathml(formula) == f'<math display="block">{inner}</math>'


@pytest.mark.parametrize("formula", [formula for formula, _ in (*FORMULAS, *SET)])
def test_what_is_set_is_well_formed(formula):
    """Every element is one that browsers know, with as many children as it must have."""
    children = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "munder": 2, "mover": 2, "munderover": 3}
    for element in ET.fromstring(mathml(formula)).iter():
        assert element.tag in {*children, "math", "mrow", "mi", "mn", "mo", "mtext", "mspace", "msqrt", "mtable", "mtr",
                               "mtd"}
        assert len(element) == children.get(element.tag, len(element))


def test_a_formula_is_cut_where_a_narrow_page_may_break_it():
    assert mathml_parts(r"a = b , \quad c , \quad \frac{a \quad b}{c}") == [
        mathml("a = b ,"), mathml("c ,"), mathml(r"\frac{a \quad b}{c}")]
    for formula in ("a", "a + b", r"a &= b \\ c &= d", r"\{ a, \quad b \}"):
        assert mathml_parts(formula) == [mathml(formula)]


def test_brackets_grow_with_a_fraction_and_not_with_a_script():
    assert 'stretchy="true"' in mathml(r"(\frac{a}{b})")
    assert 'stretchy="true"' in mathml(r"\lVert \sum_i x_i \rVert")
    assert 'stretchy="true"' not in mathml(r"\left( x_i^2 \right)")


def test_lines_align_where_they_are_told_to():
    table = ET.fromstring(mathml(r"a &= b \\ c + d &= e"))[0]
    sides = [[cell.get("style").split(";")[0] for cell in row] for row in table]
    assert sides == [["text-align: right", "text-align: left"]] * 2
    assert mathml(r"a \\ b").count("text-align: left") == 2


def test_every_greek_letter():
    assert len(GREEK) == 24 and GREEK["lambda"] == "λ" and GREEK["sigma"] == "σ" and GREEK["omega"] == "ω"
    for name, letter in GREEK.items():
        assert plain(rf"\{name}") == name and letter in mathml(rf"\{name}")
        capital = rf"\{name.capitalize()}"
        assert plain(capital) == name.capitalize() and letter.upper() in mathml(capital)


@pytest.mark.parametrize("formula, named", [
    (r"a + \foo", r"\foo is unknown"), ("5 % 2", "% is unknown"), ("α", "α is unknown"), ("a}", "} is unknown"),
    (r"a \rVert", r"\rVert is unknown"), ("_i", "_ is unknown"), ("{a", "ends before }"), ("(a", "ends before ) or ]"),
    (r"\lVert a", r"ends before \rVert"), ("x^", "ends before the script"), (r"\left( a", r"ends before \right"),
    (r"\left< a \right>", "< is no bracket"), (r"\left(", "ends before"), (r"\left( a \right", "the end is no bracket"),
    ("x_1_2", "a second _"), (r"\frac12", r"\frac wants {...}, not 12"), (r"\mathbb{ab}", r"\mathbb takes one capital"),
    (r"\mathcal{x}", "takes one"), (r"\text{a\b}", r"\text is unknown"),
    ("", "empty"), ("  ", "empty"),
])
def test_what_it_cannot_read_is_refused_by_name(formula, named):
    for reader in (plain, mathml):
        with pytest.raises(ValueError, match=re.escape(named)):
            reader(formula)


# ---- the page

ATTENTION = '''def attention_map(attn: Tensor, mask: Tensor, p: float = 2.0) -> Tensor:
    """Eq. MBTSAD (3): Q = F / (||F||_2 + 1e-6), F = sum over heads of |A|^p, the 2-norm over a text's whole map.

    attn: (B, H, T, T) softmax probabilities of one layer -> (B, T, T). Padded queries are zeroed; padded keys are 0.
    """
    f = attn.float().pow(p).sum(dim=1) * mask[:, :, None]  # (B, T, T); |A| = A for a softmax
    return f / (torch.linalg.vector_norm(f, dim=(1, 2), keepdim=True) + 1e-6)'''
ALIGN = '''def align(g: Tensor, r: Tensor, *, variant: str = "paper") -> Tensor:
    """Eq. MuScleLoRA (7): |<g, r>| / ||r||^2 r, of g's shape and type. Where r is 0: 0; released: g."""
    wide, along = g.double(), r.double()
    square = along.square().sum()
    if square == 0:
        return g.clone() if variant == "released" else torch.zeros_like(g)
    return ((wide * along).sum().abs() / square * along).to(g.dtype)'''


def place(paper: str, number: str, file: str, line: int, source: str) -> Place:
    return Place(paper, number, file, line, re.match(r"def (\w+)", source)[1], "", source)


MAP = AuditedEquation(
    "MBTSAD", "3", "Attention map of a layer",
    r"F_l = \sum_{h=1}^{H} \lvert A_l^h \rvert^p, \quad Q_l = \frac{F_l}{\lVert F_l \rVert_2 + 10^{-6}}",
    "The norm is over a text's whole map. Padded queries are zeroed first: a map does not depend on its neighbours.",
    "", "", "A_1 = [[0.9, 0.1], [0.2, 0.8]], A_2 = [[0.5, 0.5], [0.6, 0.4]], p = 2\n"
    "F = A_1^2 + A_2^2 = [[1.06, 0.26], [0.40, 0.80]], ||F|| = 1.411\nQ = [[0.751, 0.184], [0.283, 0.567]]",
    (Outcome("paper, p = 2", 2.3e-7, 1e-6, 4.1e-7, 1e-5), Outcome("paper, p = 1", 1.1e-7, 1e-6)),
    place("MBTSAD", "3", "minibd/mitigations/mbtsad.py", 133, ATTENTION),
    tuple(f"tests/test_mbtsad.py::test_attention_map_{i}" for i in range(9)))
ALIGNED = AuditedEquation(
    "MuScleLoRA", "7", "Gradient alignment",
    r"\hat{g} = \frac{\lvert \langle g, r \rangle \rvert}{\lVert r \rVert_2^2} \, r",
    "Where r is 0 the result is 0: nothing clean speaks for g.", "Where r is 0, `g` is left as it is, raw.",
    "Figures that this test made up.\n\nOn 872 rows 0.5 instead of 0.6, at LoRA's first step alone.",
    "g = (3, 4), r = (-2, 0)\n<g, r> = -6, ||r||^2 = 4\ng^ = 6 / 4 (-2, 0) = (-3, 0)",
    (Outcome("paper", 0.0, 1e-6), Outcome("released, r = 0", 0.0, 0.0)),
    place("MuScleLoRA", "7", "minibd/align.py", 40, ALIGN),
    ("tests/test_align.py::test_align_by_hand", "tests/test_align.py::test_align_in_loops"))
BROKEN = replace(ALIGNED, number="9", title="An equation that went wrong", outcomes=(
    Outcome("paper", 3.2e-2, 1e-6, 0.4, 1e-5), Outcome("released <b> & co", 1e-8, 1e-6)))
LOST = replace(MAP, paper="PURE", number="lambda", title="Weights of the layers", place=None, outcomes=(), tests=(),
               formula=r"\lambda_l = \frac{x_l - \min_k x_k}{\max_k x_k - \min_k x_k}, \quad "
                       r"x_l = -\log_2 \bar{\sigma}_l")


def drawn(*found: AuditedEquation) -> str:
    return page(found, title="The audit of minibd", seed=11, version="0.1.0")


class Tags(HTMLParser):
    """Every element closes in its turn. seen: (tag, attributes) in order; text: what is read."""
    VOID = {"meta", "br", "link", "img"}

    def __init__(self, html: str):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data * ("style" not in self.open)


def test_the_page_is_well_formed_and_its_headings_are_in_order():
    tags = Tags(drawn(MAP, ALIGNED, BROKEN, LOST))
    levels = [int(tag[1]) for tag, _ in tags.seen if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in zip(levels, levels[1:]))
    assert ("html", {"lang": "en"}) in tags.seen and [tag for tag, _ in tags.seen].count("title") == 1
    assert [tag for tag, _ in tags.seen].count("math") == 6, "two of the formulas have two parts"


def test_every_link_leads_to_a_place_on_the_page_and_none_outside():
    html = drawn(MAP, ALIGNED, BROKEN, LOST)
    tags = Tags(html)
    ids = [attributes["id"] for _, attributes in tags.seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes[name] for _, attributes in tags.seen
             for name in ("href", "src", "srcset", "data", "action") if name in attributes]
    assert links and {link[1:] for link in links} <= set(ids) and all(link[0] == "#" for link in links)
    assert "http" not in html and "url(" not in html and "@import" not in html and "<script" not in html


def test_the_counts_and_the_facts_are_there():
    text = " ".join(Tags(drawn(MAP, ALIGNED)).text.split())
    assert "equations2equationsfailed0checks4checksfailed0seed11version0.1.0" in text.replace(" ", "")
    for fact in ("MBTSAD (3): Attention map of a layer pass", "F_l = sum_(h=1)^H |A_l^h|^p", "paper, p = 2",
                 "2.3e-7 ≤ 1e-6", "4.1e-7 ≤ 1e-5", "none", "minibd/mitigations/mbtsad.py:133",
                 "return f / (torch.linalg.vector_norm(f, dim=(1, 2), keepdim=True) + 1e-6)",
                 "tests/test_mbtsad.py::test_attention_map_0", f"and {9 - TESTS} more",
                 "Where r is 0, g is left as it is, raw.", "g = (3, 4), r = (-2, 0)"):
        assert fact in text, fact
    assert "fail" not in text.replace("failed0", "")


def test_papers_stand_in_the_order_of_their_first_equation():
    html = drawn(ALIGNED, MAP, BROKEN)
    assert re.findall(r'<h2 id="([^"]+)"', html) == ["contents", "musclelora", "mbtsad"]
    assert re.findall(r'<article id="([^"]+)"', html) == [
        "eq-musclelora-7-gradient-alignment", "eq-musclelora-9-an-equation-that-went-wrong",
        "eq-mbtsad-3-attention-map-of-a-layer"]


def test_a_failed_check_is_loud():
    html, text = drawn(MAP, BROKEN), " ".join(Tags(drawn(MAP, BROKEN)).text.split())
    assert "fail 1 of 2 equations: MuScleLoRA (9)" in text
    assert "MuScleLoRA (9): An equation that went wrong fail" in text
    assert "MBTSAD (3): Attention map of a layer pass" in text
    assert "fail (9) An equation that went wrong" in text and "pass (3) Attention map" in text  # the contents
    assert re.findall(r'<article id="([^"]+)" class="failing"', html) == ["eq-musclelora-9-an-equation-that-went-wrong"]
    assert html.count('<tr class="failing">') == 1


@pytest.mark.parametrize("outcome, fails, told", [
    (Outcome("a", 2e-6, 1e-6), True, "2e-6 not ≤ 1e-6"), (Outcome("a", float("nan"), 1e-6), True, "nan not ≤ 1e-6"),
    (Outcome("a", 0.0, 1e-6, 0.26, 0.1), True, "0.26 not ≤ 0.1"), (Outcome("a", 0.0, 0.0, 0.0, 0.0), False, "0 ≤ 0"),
    (Outcome("a", float("inf"), 1e-12), True, "inf not ≤ 1e-12")])
def test_a_row_fails_by_either_difference_and_nan_fails(outcome, fails, told):
    html = drawn(replace(MAP, outcomes=(outcome,)))
    assert ('<tr class="failing">' in html) == ('class="failing"' in html) == fails
    assert told in Tags(html).text


def test_an_equation_without_a_place_or_without_a_check_is_loud():
    text = " ".join(Tags(drawn(LOST)).text.split())
    assert "No docstring of the package names this equation" in text
    assert "Nothing was checked." in text and "No test calls it." in text
    assert "fail 1 of 1 equations" in text
    html = drawn(replace(MAP, place=None))
    assert "Nothing was checked." not in html and 'class="failing"' in html


def test_what_is_not_there_has_no_heading():
    assert "In the released code" in drawn(ALIGNED) and "What the difference changes" in drawn(ALIGNED)
    assert "In the released code" not in drawn(MAP) and "What the difference changes" not in drawn(MAP)


def test_special_characters_are_escaped():
    bad = '<i>&"\'</i>'
    source = f'def f():\n    """{bad[:5]}"""\n    return "</pre><script>"  # <u>'
    equation = replace(MAP, paper=f"P{bad}", number=f"3{bad}", title=bad, ours=bad, released=bad, effect=bad,
                       example=bad, tests=(bad,), outcomes=(Outcome(bad, 0, 1),), place=place("P", "3", bad, 1, source))
    html = page([equation], title=bad, seed=1, version=bad)
    assert not {"i", "u", "script"} & {tag for tag, _ in Tags(html).seen}
    assert Tags(html).text.count(bad) == 17 and 'return "</pre><script>"' in Tags(html).text


def test_comments_and_docstrings_are_muted_and_strings_are_not():
    source = ('@cached  # why\ndef f(x: str = "a # b"):\n    """Doc of\n    two lines."""\n    # before\n'
              '    g("é # no", """no""")  # after\n    return """no"""')
    html = highlighted(source)
    assert re.findall('<span class="muted">(.*?)</span>', html, re.S) == [
        "# why", "&quot;&quot;&quot;Doc of", "    two lines.&quot;&quot;&quot;", "# before", "# after"]
    assert Tags(html).text == source


def test_a_line_wraps_under_its_own_indent():
    html = wrapped("a\n    <b>b</b>\n\n  c")
    assert re.findall(r"--in: (\d+)ch", html) == ["0", "4", "0", "2"]
    assert Tags(html).text == "a\n    b\n\n  c\n"


def test_the_same_page_twice():
    assert drawn(MAP, ALIGNED, BROKEN, LOST) == drawn(MAP, ALIGNED, BROKEN, LOST)


def test_a_formula_that_cannot_be_read_is_not_left_out():
    with pytest.raises(ValueError, match=r"\\foo is unknown"):
        drawn(replace(MAP, formula=r"\foo"))


def test_light_and_dark_and_print():
    html = drawn(MAP)
    names = [set(re.findall(r"(--\w+):", block)) for block in re.findall(r":root \{(.*?)\}", html, re.S)]
    assert "prefers-color-scheme: dark" in html and "@media print" in html and len(names) == 2 and names[0] == names[1]


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance of #rrggbb."""
    channels = (int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_all_text_has_the_contrast_that_wcag_asks_for(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w{6})", re.findall(r":root \{(.*?)\}", drawn(MAP), re.S)[scheme]))
    for text, ground in [*((text, "paper") for text in ("ink", "soft", "link", "good", "bad")),
                         *((text, "panel") for text in ("ink", "muted")),
                         *((text, "alarm") for text in ("ink", "link", "bad"))]:
        dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
        assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{text} on {ground}"


def test_what_may_be_wider_than_the_page_scrolls_by_itself():
    """Without a browser: tables, formulas and code stand in boxes that scroll, and the tables' numbers may wrap."""
    html = drawn(MAP, ALIGNED, BROKEN, LOST)
    assert html.count("<table>") == html.count('<div class="table"><table>') == 3
    assert all(html.rindex('<div class="formula"', 0, at) > html.rindex("</div>", 0, at)
               for at in (m.start() for m in re.finditer("<math", html)))
    for box in (".table", ".formula", "pre"):
        assert re.search(rf"^{re.escape(box)} \{{[^}}]*overflow-x: auto", html, re.M), box
    assert not re.search(r"^t[dh][^{]*\{[^}]*nowrap", html, re.M)


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
MEASURE = """
<body><script>
function measure() {
  const widths = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, of = element => [element.scrollWidth, element.clientWidth];
    return {page: of(page.documentElement), tables: [...page.querySelectorAll(".table")].map(of),
            codes: [...page.querySelectorAll("pre")].map(of)};
  });
  document.body.textContent = JSON.stringify(widths);
}
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")
def test_nothing_is_wider_than_a_telephone(tmp_path):
    """In a browser at 420 and 1280 pixels: neither the page nor a table nor code has to be scrolled sideways."""
    long = replace(BROKEN, number="10", title="A title of some length that does not fit one line", outcomes=(
        Outcome("released, sigma 2 and 4, with a name of some length", 1.5e-10, 1.5e-10, 1.8e-10, 1.5e-10),))
    html = escape(drawn(MAP, ALIGNED, BROKEN, LOST, long), quote=True)
    frames = "".join(f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{html}"></iframe>'
                     for width in (420, 1280))
    (tmp_path / "frames.html").write_text(MEASURE + frames + '<script>addEventListener("load", measure)</script>')
    run = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
                          "--disable-background-networking", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
                          (tmp_path / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True)
    measured = json.loads(re.search(r"\[.*\]", run.stdout)[0])
    for width, frame in zip((420, 1280), measured, strict=True):
        scroll, client = frame["page"]
        assert width - 20 <= client <= width and scroll <= client, frame  # a scroll bar takes some of the width
        assert len(frame["tables"]) == 4 and len(frame["codes"]) == 9
        assert all(scroll <= client for scroll, client in (*frame["tables"], *frame["codes"])), frame


def test_no_torch_is_needed():
    code = "import sys; sys.modules['torch'] = None; import minibd.audit.page, minibd.audit.tex"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_what_is_missing_is_loud():
    html = page([MAP], title="t", seed=0, version="0", missing=["PURE (2) is in the paper and has no check <x>"])
    assert html.count('class="alarm"') == 1 and "PURE (2) is in the paper and has no check &lt;x&gt;" in html
