"""A table for notebooks: sorts by the title that is clicked, and needs no outside scripts."""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

Cell = str | tuple[str, Any]

_KINDS = {"!": "wrong", "?": "unknown", "": ""}
_STYLE = """
.wdjax-table {font: 13px/1.5 system-ui, sans-serif; color: inherit; overflow-x: auto}
.wdjax-table table {border-collapse: collapse; margin: .5em 0; color: inherit; font: inherit}
.wdjax-table th, .wdjax-table td {padding: .15em .7em; text-align: left; background: none;
  border-bottom: 1px solid rgba(128, 128, 128, .35); color: inherit; white-space: nowrap}
.wdjax-table th {cursor: pointer; font-weight: 600}
.wdjax-table td.number {text-align: right; font-variant-numeric: tabular-nums}
.wdjax-table .wrong {border-left: 3px solid #d33; padding-left: .6em; margin: .3em 0}
.wdjax-table .unknown {border-left: 3px solid #999; padding-left: .6em; margin: .3em 0}
"""
_SORT = (
    "var t=this.closest('table'),i=this.cellIndex,d=this.dataset.d=this.dataset.d=='1'?'-1':'1';"
    "Array.from(t.tBodies[0].rows).sort(function(a,b){a=a.cells[i].dataset.v;b=b.cells[i].dataset.v;"
    "return d*((isNaN(a)||isNaN(b))?a.localeCompare(b):a-b)}).forEach(function(r){"
    "t.tBodies[0].appendChild(r)})"
)


def table(
    titles: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    above: Iterable[str] = (),
    below: Iterable[tuple[str, str]] = (),
) -> str:
    """Return a table that takes color and font of the page, so it reads in light and dark.

    Args:
        titles: of the columns.
        rows: of cells: a text; or (text, value) for a number, which stands to the right and sorts
            by its value, or by its text where that is None.
        above: lines before the table.
        below: (mark, sentence) pairs after it: "!" has a red bar, "?" a gray one, "" none.

    Returns:
        HTML, with everything escaped.
    """
    head = "".join(f'<th onclick="{escape(_SORT)}">{escape(title)}</th>' for title in titles)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    said = "".join(
        f'<div class="{_KINDS[mark]}">{escape(sentence)}</div>' for mark, sentence in below
    )
    return (
        f'<div class="wdjax-table"><style>{_STYLE}</style>'
        + "".join(f"<div>{escape(line)}</div>" for line in above)
        + f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{said}</div>"
    )


def _cell(cell: Cell) -> str:
    if isinstance(cell, str):
        return f'<td data-v="{escape(cell)}">{escape(cell)}</td>'
    text, value = cell
    sort = text if value is None else str(value)
    if value in (math.inf, -math.inf):
        sort = sort.replace("inf", "1e999")  # what scripts read as a number
    return f'<td class="number" data-v="{escape(sort)}">{escape(text)}</td>'
