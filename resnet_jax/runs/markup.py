"""What every page is made of: a whole HTML document that needs nothing else, its style, its tables."""

import html
from collections.abc import Sequence

from resnet_jax.version import __version__

STYLE = """
:root { color-scheme: light dark; --ink: #24292f; --soft: #656d76; --line: #d0d7de; --paper: #fff; --mark: #fff3c4; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; --paper: #0d1117; --mark: #4d3f0a; } }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1.5rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
p { margin: .3rem 0; } .soft, small, caption { color: var(--soft); }
svg.curves { width: 100%; height: auto; margin-top: 1rem; } svg.curves text { font-family: inherit !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { font-weight: 600; vertical-align: bottom; } thead th { border-bottom: 2px solid var(--line); }
td.text, th.text, td.run, th.run { text-align: left; }
td.run { font-weight: 600; overflow-wrap: anywhere; min-width: 6rem; }
td small { display: block; white-space: nowrap; }
td.text { overflow-wrap: break-word; } mark { background: var(--mark); color: inherit; }
svg.key { vertical-align: middle; }
details { margin-top: 1.5rem; } summary { cursor: pointer; font-size: 1.1rem; font-weight: 600; }
code, td.code, pre { font: .85rem/1.5 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
pre { white-space: pre-wrap; }
@media print { @page { size: A4 landscape; margin: 12mm; }
  html { font-size: 10.5px; }
  body { margin: 0; padding: 0; max-width: none; font-size: 1rem; } table, svg.curves, tr { break-inside: avoid; }
  .wide { overflow: visible; } th, td { padding: .2rem .35rem; } mark { font-weight: 600; } }
"""


def document(title: str, *parts: str, made_by: str) -> str:
    """A page in one string: no script, no style and no picture from elsewhere.

    Args:
      title: text, also the heading.
      *parts: HTML, in order.
      made_by: the command.
    """
    title = html.escape(title)
    lines = [
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>{title}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>',
        f"<h1>{title}</h1>",
        *parts,
        f"<p class=soft><small>Made by <code>{made_by}</code> of resnet_jax {__version__}.</small></p>",
        "</body>\n</html>\n",
    ]
    return "\n".join(lines)


def grid(titles: Sequence[str], kinds: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already; `kinds` are the CSS classes of the columns."""

    def line(tag: str, row: Sequence[str]) -> str:
        classes = (f' class="{kind}"' if kind else "" for kind in kinds)
        return "".join(f"<{tag}{kind}>{cell}</{tag}>" for kind, cell in zip(classes, row, strict=True))

    head = f"<thead><tr>{line('th', [html.escape(title) for title in titles])}</tr></thead>"
    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return f"<div class=wide><table>{head}<tbody>\n{body}\n</tbody></table></div>"


def quiet(text: str) -> str:
    """A remark, smaller and paler; `text` is escaped."""
    return f"<p class=soft><small>{html.escape(text)}</small></p>"
