"""The table: as text, in a short form, and as HTML."""

import dataclasses
import math
import re
import textwrap
from collections import Counter
from collections.abc import Callable
from typing import Any

from wdjax._trees import html

Row = dict[str, Any]

_WIDTH = 100  # of the table, unless long shapes leave a path less than this
_LEAST_PATH, _MOST_RULE = 32, 18
_MOST_LINES = 80  # more are printed in the short form
# a bare integer or a trailing _3 in a segment: what tells repeated blocks apart
_COUNTER = re.compile(r"((?<![^/_])\d+(?=/|$))")
# layer0, layer1, layer2: only if there are several
_SUFFIX = re.compile(r"((?<=[A-Za-z])\d+(?=/|$))")
_LEAST_SUFFIXES = 3


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """What decay does to each parameter. Its text is the table; `rows` are the data.

    Attributes:
        rows: one dict of plain Python values per leaf, in the order of `jax.tree.leaves`: path,
            shape (list), dtype, numbers (how many), rule, guess (judged by shape only),
            multiplier, shrink (largest fraction taken off in a step), half_life (in steps, at that
            shrink; None is never), left (fraction of an untouched weight at the end; None without
            `steps`). A measured audit has also: acts ("weights", "gradient", "both", "constant",
            "point", "none" or "unknown"), and law (how shrink follows the learning rate, where it
            can be told); its shrink is negative where weights grow, None where it is not
            a number.
        total: how many numbers the tree holds.
        decayed: how many of them decay.
        strength: the largest strength of the run; measured, the largest shrink.
        step: the first step that has it; None for a constant strength.
        steps: T, or None.
        warnings: a sentence for everything that is certainly wrong.
        notes: a sentence for everything that could not be measured.

    Example:
        >>> import numpy as np
        >>> import wdjax
        >>> params = {"kernel": np.ones((2, 3)), "bias": np.ones(3)}
        >>> found = wdjax.audit(params, strength=0.5)
        >>> found.decayed, found.total, [row["half_life"] for row in found.rows]
        (6, 9, [None, 1.0])
    """

    rows: list[Row]
    total: int
    decayed: int
    strength: float
    step: int | None
    steps: int | None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the table; for very large trees the short form."""
        lines = merged(self.rows)
        table = _table(lines) if len(lines) <= _MOST_LINES else _table(by_rule(self.rows))
        return "\n".join([*_header(self), *table, *self._sentences()])

    __repr__ = __str__

    def short(self) -> str:
        """Return the table with one line for each rule and each way to decay.

        Example:
            >>> import numpy as np
            >>> import wdjax
            >>> params = {"a": {"kernel": np.ones((2, 3))}, "b": {"kernel": np.ones((3, 3))}}
            >>> print(wdjax.audit(params, strength=0.5).short())
            2 float64 arrays, 15 numbers, 15 of them decayed (100.0%)
            strength 0.5 at every step
                                                   shrink  half
            path            shape  numbers  rule    mult     /step  life
            a/kernel and 1 more  ...       15  weight     1  5.00e-01  1.00
        """
        return "\n".join([*_header(self), *_table(by_rule(self.rows)), *self._sentences()])

    def _sentences(self) -> list[str]:
        return [
            textwrap.fill(
                f"{mark} {text}",
                _WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for mark, texts in (("!", self.warnings), ("?", self.notes))
            for text in texts
        ]

    def _repr_html_(self) -> str:
        """Return the table for notebooks: click on a title to sort by it."""
        return as_html(self)


def _header(found: Audit) -> list[str]:
    """How many decay, how strongly, and how many were guessed."""
    dtypes = {row["dtype"] for row in found.rows}
    kind = f"{dtypes.pop()} array" if len(dtypes) == 1 else "array"
    share = found.decayed / max(found.total, 1)
    if found.step is not None:
        of = "" if found.steps is None else f" of {found.steps:,}"
        when = f"at most, at step {found.step:,}{of}"
    else:
        when = "at every step" if found.steps is None else f"at each of {found.steps:,} steps"
    guesses = sum(row["guess"] for row in found.rows)
    guessed = [f"{_plural(guesses, 'array')} judged by shape only (marked ?)"] if guesses else []
    measured = "measured: " if found.rows and "acts" in found.rows[0] else ""
    strength = f"strength {found.strength:.3g} {when}"
    if not found.strength and any(row["shrink"] is None for row in found.rows):
        strength = "what a step takes off is not a fraction of the weights"
    return [
        f"{_plural(len(found.rows), kind)}, {_plural(found.total, 'number')}, "
        f"{found.decayed:,} of them decayed ({share:.1%})",
        f"{measured}{strength}",
        *guessed,
    ]


# Rows as printed.


def merged(rows: list[Row]) -> list[Row]:
    """Rows as printed: repeated blocks in one, the most decayed and largest first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault((_words(_COUNTER, row["path"]), *_like(row)), []).append(row)
    lines = []
    for group, found in _several(groups).items():
        pattern = _SUFFIX if group[0] == "suffix" else _COUNTER
        lines.append(_line(found, _shared(found, pattern)))
    return sorted(lines, key=_order)


def _several(groups: dict[Any, list[Row]]) -> dict[Any, list[Row]]:
    """Join also layer0, layer1, layer2, where there are three or more and all else agrees."""
    wider: dict[Any, list[Any]] = {}
    for key in groups:
        words = tuple(_words(_SUFFIX, "\0".join(key[0])))
        wider.setdefault((words, len(key[0]), *key[1:]), []).append(key)
    joined: dict[Any, list[Row]] = {}
    for keys in wider.values():
        if len(keys) >= _LEAST_SUFFIXES and all(len(key[0]) == 1 for key in keys):
            joined["suffix", keys[0]] = [row for key in keys for row in groups[key]]
        else:
            joined.update({("plain", key): groups[key] for key in keys})
    return joined


def by_rule(rows: list[Row]) -> list[Row]:
    """One line for each rule and each way to decay."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = (row["rule"], row["multiplier"], *_measured(row))
        groups.setdefault(key, []).append(row)
    lines = []
    for group in groups.values():
        more = f" and {len(group) - 1:,} more" if len(group) > 1 else ""
        line = _line(group, group[0]["path"] + more)
        same = len({tuple(row["shape"]) for row in group}) == 1
        lines.append(line if same else {**line, "shape": None})
    return sorted(lines, key=_order)


def _like(row: Row) -> tuple[Any, ...]:
    return (*row["shape"], row["dtype"], row["rule"], row["multiplier"], *_measured(row))


def _measured(row: Row) -> tuple[Any, ...]:
    """What two rows must agree in to be told in one line."""
    return tuple(
        f"{row[name]:.4g}" if isinstance(row.get(name), float) else row.get(name)
        for name in ("acts", "shrink", "left", "law")
    )


def _line(group: list[Row], path: str) -> Row:
    return {**group[0], "path": path, "numbers": sum(row["numbers"] for row in group)}


def _order(line: Row) -> tuple[float, ...]:
    if "acts" in line:
        shrink = float(f"{abs(line['shrink'] or 0.0):.3g}")
        return -shrink, line["acts"] == "none", -line["numbers"]
    return -line["multiplier"], -line["numbers"]


def _words(pattern: re.Pattern[str], path: str) -> tuple[str, ...]:
    """The path without its counters."""
    return tuple(pattern.split(path)[::2])


def _shared(group: list[Row], pattern: re.Pattern[str]) -> str:
    """The path of repeated blocks, `*` where their numbers differ, and how many they are."""
    pieces = zip(*(pattern.split(row["path"]) for row in group), strict=True)
    path = "".join(piece[0] if len(set(piece)) == 1 else "*" for piece in pieces)
    count = f" ×{len(group)}" if len(group) > 1 else ""
    return (path or "(bare array)") + count


# Text.


def _table(lines: list[Row]) -> list[str]:
    """The columns, under titles of two lines."""
    if not lines:
        return []
    columns = [
        _column(title, [show(line) for line in lines], adjust)
        for title, show, adjust in _columns(lines)
    ]
    room = max(_LEAST_PATH, _WIDTH - sum(len(column[0]) + 2 for column in columns))
    names = _column("path", _apart([line["path"] for line in lines], room))
    return ["  ".join(cells).rstrip() for cells in zip(names, *columns, strict=True)]


def _columns(
    lines: list[Row],
) -> list[tuple[str, Callable[[Row], str], Callable[[str, int], str]]]:
    """Title, text and side of each column that says something."""
    measured = "acts" in lines[0]
    several = len({line["dtype"] for line in lines}) > 1
    every = [
        ("shape", True, lambda line: _shape_text(line["shape"]), str.ljust),
        ("dtype", several, lambda line: line["dtype"], str.ljust),
        ("numbers", True, lambda line: f"{line['numbers']:,}", str.rjust),
        ("rule", True, _rule_text, str.ljust),
        ("mult", True, lambda line: f"{line['multiplier']:.3g}", str.rjust),
        ("acts", measured, lambda line: line["acts"], str.ljust),
        ("shrink /step", True, lambda line: _shrink_text(line["shrink"]), str.rjust),
        ("half life", True, lambda line: _half_life_text(line["half_life"], line), str.rjust),
        (
            "left at_end",
            any(line["left"] is not None for line in lines),
            lambda line: _left_text(line["left"]),
            str.rjust,
        ),
        ("law", any(line.get("law") for line in lines), lambda x: x["law"] or "", str.ljust),
    ]
    return [(title, show, adjust) for title, wanted, show, adjust in every if wanted]


def _column(
    title: str, cells: list[str], adjust: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Cells of one width under a title, whose first of two words goes to the line above."""
    above, _, below = title.rpartition(" ")
    cells = [above, below.replace("_", " "), *cells]
    width = max(map(len, cells))
    return [adjust(cell, width) for cell in cells]


def _apart(texts: list[str], width: int) -> list[str]:
    """Shorten texts so that those that differ still do."""
    short = [_shortened(text, width) for text in texts]
    alike = {text for text, count in Counter(short).items() if count > 1}
    for each in alike:
        where = [i for i, text in enumerate(short) if text == each]
        names = [texts[i] for i in where]
        if len(set(names)) == 1:
            continue
        start = next(i for i, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1)
        start = names[0].rfind("/", 0, start) + 1
        for i, name in zip(where, names, strict=True):
            short[i] = _shortened("…" + name[start:], width) if start else name
        if len({short[i] for i in where}) < len(set(names)):
            for i, name in zip(where, names, strict=True):
                short[i] = name
    return short


def _shortened(text: str, width: int) -> str:
    """Cut out of the middle; the end says more than the beginning."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _shape_text(shape: list[int] | None) -> str:
    return "..." if shape is None else "x".join(map(str, shape)) or "scalar"


def _rule_text(line: Row) -> str:
    return _shortened("? " * line["guess"] + line["rule"], _MOST_RULE)


def _shrink_text(shrink: float | None) -> str:
    if shrink is None:
        return "?"
    return f"{shrink:.2e}" if shrink else "0"


def _half_life_text(half_life: float | None, line: Row) -> str:
    if half_life is None:
        return "never" if line["shrink"] is not None else "?"
    if half_life >= 1e9:
        return f"{half_life:.2e}"
    return f"{half_life:,.0f}" if half_life >= 99.95 else f"{half_life:#.3g}"


def _left_text(left: float | None) -> str:
    if left is None:
        return "?"
    return ">0.999" if 0.9995 <= left < 1 else f"{left:.3g}"


# HTML.

_VALUES = {"mult": "multiplier", "shrink /step": "shrink", "left at_end": "left"}


def as_html(found: Audit) -> str:
    """Return the table that notebooks show."""
    lines = merged(found.rows)
    columns = _columns(lines) if lines else []
    return html.table(
        ["path", *(title.replace("_", " ") for title, _, _ in columns)],
        [[line["path"], *(_cell(line, *column) for column in columns)] for line in lines],
        above=_header(found),
        below=[*(("!", text) for text in found.warnings), *(("?", text) for text in found.notes)],
    )


def _cell(
    line: Row, title: str, show: Callable[[Row], str], adjust: Callable[[str, int], str]
) -> html.Cell:
    if adjust is str.ljust:
        return show(line)
    if title == "half life":
        never = math.inf if line["shrink"] is not None else -1
        return show(line), never if line["half_life"] is None else line["half_life"]
    return show(line), line[_VALUES.get(title, title)]
