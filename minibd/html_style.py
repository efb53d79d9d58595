"""What every HTML page begins with: the style, colours in light and dark, headings, text, code; the frame of a page."""
from __future__ import annotations

from html import escape

SELF_CONTAINED = """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
"""  # nothing is fetched, and no script runs

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --panel: #f4f5f7; --ink: #16181d; --soft: #565d69; --line: #c9ced6;
        --link: #0b4fa8; --good: #0f6b34; --bad: #a8071a; --alarm: #fdeaec; --doubt: #7a4d00; --muted: #566b57;
        --edge: #8b93a0; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14161a; --panel: #1e2127; --ink: #eceef2; --soft: #aab1bd; --line: #414853;
          --link: #8fbcff; --good: #6fd99a; --bad: #ff9aa5; --alarm: #3d1a20; --doubt: #f0c36a; --muted: #95b398;
          --edge: #6d7686; }
}
* { box-sizing: border-box; }
html { font-size: clamp(16px, 0.4vw + 12px, 24px); scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 105rem; padding: 2rem clamp(0.8rem, 3vw, 3.5rem) 5rem;
       background: var(--paper); color: var(--ink); line-height: 1.5; overflow-wrap: break-word;
       font-family: system-ui, "Segoe UI", "Helvetica Neue", "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 0.5rem; }
h2 { font-size: 1.6rem; line-height: 1.2; margin: 3.5rem 0 0.5rem; }
h3 { font-size: 1.3rem; line-height: 1.3; margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: 0.2rem 1rem;
     align-items: baseline; }
h4 { font-size: 1rem; margin: 1.6rem 0 0.4rem; }
h2, h3, h4 { break-after: avoid; }
p { margin: 0.4rem 0; max-width: 75ch; }
a { color: var(--link); }
code, pre { font-family: ui-monospace, "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
            font-size: 0.84em; }
pre { margin: 0.4rem 0; padding: 0.8rem 1rem; overflow-x: auto; background: var(--panel); border: 1px solid var(--line);
      border-radius: 6px; line-height: 1.5; tab-size: 4; }
"""


def document(title: str, style: str, body: str, policy: str = SELF_CONTAINED) -> str:
    """The whole HTML document. title: as text; style, body, policy: as HTML."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{policy}<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
