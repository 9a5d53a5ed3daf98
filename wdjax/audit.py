"""The table to read before training: which parameters decay, how fast, and what is left at the end.

With the strength s(t), a multiplier m and T steps, an untouched weight shrinks by s(t) m per step:

    half-life = ln 2 / −ln(1 − s m)        left at the end = Π_{t<T} (1 − s(t) m)
"""

import dataclasses
import math
import numbers
import re
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax import paths, schedules
from wdjax.rules import RuleError, Rules, check_rules, is_guess, label, owners
from wdjax.schedules import Schedule, Strength
from wdjax.transforms import STANDARD

Row = dict[str, Any]

_MOST_COUNTS = 2**20
_LAST_COUNT = np.iinfo(np.int32).max
_WIDTH = 100
_LEAST_PATH, _MOST_RULE = 24, 20
# a bare integer or a trailing _3 in a segment: what tells repeated blocks apart
_COUNTER = re.compile(r"((?<![^/_])\d+(?=/|$))")


@dataclasses.dataclass(frozen=True, repr=False)
class Audit:
    """What decay will do to each parameter. Its text is the table; `rows` are the data.

    Attributes:
        rows: one dict of plain Python values per leaf, in the order of `jax.tree.leaves`: path,
            shape (list), dtype, numbers (how many), rule, guess (decided by shape only),
            multiplier, shrink (largest fraction taken off in a step), half_life (in steps, at that
            shrink; None is never), left (fraction of an untouched weight at the end; None without
            `steps`).
        total: how many numbers the tree holds.
        decayed: how many of them decay.
        strength: the largest strength of the run.
        step: the first step that has it; None for a constant strength.
        steps: T, or None.

    Example:
        >>> found = audit({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}, strength=0.5)
        >>> found.decayed, found.total, [row["half_life"] for row in found.rows]
        (6, 9, [None, 1.0])
    """

    rows: list[Row]
    total: int
    decayed: int
    strength: float
    step: int | None
    steps: int | None

    def __str__(self) -> str:
        """Return the table."""
        lines = _merged(self.rows)
        notes = [
            textwrap.fill(note, _WIDTH, initial_indent="! ", subsequent_indent="  ")
            for note in _notes(self, lines)
        ]
        return "\n".join([*_header(self), *_table(lines), *notes])

    __repr__ = __str__


def audit(
    tree: Any, *, strength: Strength, rules: Rules = STANDARD, steps: int | None = None
) -> Audit:
    """Show, before anything is trained, what `decay_weights` with the l2 penalty will do.

        shrink = max_t s(t) m;  half-life = ln 2 / −ln(1 − shrink);  left = Π_{t<T} (1 − s(t) m)

    In the printed table, arrays that differ only in a bare integer or a trailing `_3` of a segment
    share a line, with their count behind the path and their numbers added up; long paths are
    shortened in the middle. Problems that are certain stand below it, marked "!".

    Args:
        tree: a pytree of arrays or of ShapeDtypeStructs, as `jax.eval_shape` gives.
        strength: s, the fraction taken off per step, in [0, 1): a number or a schedule, such as
            `lr_scaled(0.1, lr)`. Not the learning rate, and not λ unless the law is `fixed`.
        rules: (selector, multiplier) pairs that give m; first match wins.
        steps: T >= 1, the length of the run; may be left out for a constant strength. Every step
            enters up to T = 2^20; of a longer run, 2^20 evenly spaced steps do.

    Returns:
        The audit: print it, or log its `rows`.

    Raises:
        RuleError: as in `resolve`; a multiplier is traced.
        ValueError: the strength is negative or not finite at some step, traced, or so large that
            signs would flip; `steps` is missing or < 1.
        TypeError: `strength` is neither a number nor a schedule; a leaf is not an array.

    Example:
        >>> params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}
        >>> audit(params, strength=0.01, steps=100)
        2 float32 arrays, 9 numbers, 6 of them decayed (66.7%)
        strength 0.01 at each of 100 steps
                                                  shrink               left
        path    shape  numbers  rule    mult       /step  half-life  at end
        kernel  2x3          6  weight     1    1.00e-02       69.0   0.366
        bias    3            3  bias       0           0      never       1
    """
    schedule = schedules.as_schedule(strength)
    counts = _counts(schedule, steps)
    strengths = _strengths(schedule, counts)
    peak = int(strengths.argmax())
    top = float(strengths[peak])
    rows = _rows(tree, _concrete(check_rules(rules)), top)
    _check_signs(rows, top)
    if steps is not None:
        kept = {m: _left(strengths * m, steps) for m in {row["multiplier"] for row in rows}}
        for row in rows:
            row["left"] = kept[row["multiplier"]]
    return Audit(
        rows=rows,
        total=sum(row["numbers"] for row in rows),
        decayed=sum(row["numbers"] for row in rows if row["shrink"] > 0),
        strength=top,
        step=None if isinstance(schedule, schedules.Constant) else int(counts[peak]),
        steps=steps,
    )


# The numbers.


def _half_life(shrink: float) -> float | None:
    """Steps until an untouched weight has halved; None is never."""
    return math.log(2) / -math.log1p(-shrink) if shrink > 0 else None


def _left(shrinks: np.ndarray, steps: int) -> float:
    """Π_t (1 − s(t) m) = exp(T · mean ln(1 − s m)): exact if every step is there."""
    return math.exp(steps * float(np.log1p(-shrinks).mean()))


def _rows(tree: Any, rules: Rules, top: float) -> list[Row]:
    """One row per leaf; what is left at the end comes later."""
    rows = []
    for leaf, owner in zip(paths.leaves(tree), owners(rules, tree), strict=True):
        selector, m = rules[owner] if owner >= 0 else ("not floating", 0.0)
        rows.append(
            {
                "path": leaf.path,
                "shape": [int(size) for size in leaf.shape],
                "dtype": str(leaf.dtype),
                "numbers": math.prod(map(int, leaf.shape)),
                "rule": label(selector),
                "guess": is_guess(selector),
                "multiplier": m,
                "shrink": top * m,
                "half_life": _half_life(top * m) if top * m < 1 else None,
                "left": None,
            }
        )
    return rows


def _counts(schedule: Schedule, steps: int | None) -> np.ndarray:
    """The steps at which the strength is looked at: one stands for all if it is constant."""
    if steps is None and not isinstance(schedule, schedules.Constant):
        raise ValueError(
            "`steps` must be the length of the run where `strength` is a schedule; got None. "
            "Pass steps=."
        )
    if steps is not None and (
        isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1
    ):
        raise ValueError(f"`steps` must be an integer >= 1; got {steps!r}. Count optimizer steps.")
    if steps is None or isinstance(schedule, schedules.Constant):
        return np.zeros(1, np.int32)
    if steps <= _MOST_COUNTS:
        return np.arange(steps, dtype=np.int32)
    middles = (np.arange(_MOST_COUNTS) + 0.5) * (steps / _MOST_COUNTS)
    return np.minimum(middles, _LAST_COUNT).astype(np.int32)  # optax saturates its count there


def _strengths(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """s at these steps in float64, checked."""
    strengths = schedules.sampled(schedule, counts)
    if strengths is None:
        raise ValueError(
            "`strength` must be known before training; got a traced value. Call `audit` outside "
            "jit, vmap and grad."
        )
    bad = ~(np.isfinite(strengths) & (strengths >= 0))
    if bad.any():
        raise ValueError(
            f"`strength` must be finite and >= 0 at every step; got {strengths[bad][0]:g} at step "
            f"{counts[bad][0]}. Check the schedule and its arguments."
        )
    return strengths


def _concrete(rules: Rules) -> Rules:
    """Rules with multipliers as floats."""
    for selector, m in rules:
        if isinstance(m, jax.core.Tracer):
            raise RuleError(
                f"the multiplier of rule {label(selector)!r} must be known before training; got a "
                "traced value. Call `audit` outside jit, vmap and grad."
            )
    return check_rules(tuple((selector, float(m)) for selector, m in rules))


def _check_signs(rows: list[Row], top: float) -> None:
    flipped = [row["path"] for row in rows if row["shrink"] >= 1]
    if flipped:
        raise ValueError(
            f"`strength` times multiplier must be < 1, the fraction taken off in a step; it "
            f"reaches {top:g} times the multiplier for {paths.listed(map(repr, flipped))} and "
            "would flip signs. Lower λ, check the law's units, or use wdjax.prox_weights."
        )


# The table.


def _header(found: Audit) -> list[str]:
    """Two lines: how many decay, and how strongly."""
    dtypes = {row["dtype"] for row in found.rows}
    kind = f"{dtypes.pop()} " if len(dtypes) == 1 else ""
    share = found.decayed / max(found.total, 1)
    count = f"{_plural(len(found.rows), kind + 'array')}, {_plural(found.total, 'number')}"
    first = f"{count}, {found.decayed:,} of them decayed ({share:.1%})"
    guesses = sum(row["guess"] for row in found.rows)
    marked = f"; {guesses:,} decided by shape only (marked ?)" if guesses else ""
    if found.step is not None:
        when = f"at most, at step {found.step:,} of {found.steps:,}"
    else:
        when = "at every step" if found.steps is None else f"at each of {found.steps:,} steps"
    return [first + marked, f"strength {found.strength:.3g} {when}"]


def _merged(rows: list[Row]) -> list[Row]:
    """Rows as printed: repeated blocks in one, the most decayed and largest first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        words = tuple(_COUNTER.split(row["path"])[::2])
        key = (words, *row["shape"], row["dtype"], row["rule"], row["multiplier"])
        groups.setdefault(key, []).append(row)
    lines = [
        {**group[0], "path": _shared(group), "numbers": sum(row["numbers"] for row in group)}
        for group in groups.values()
    ]
    return sorted(lines, key=lambda line: (-line["multiplier"], -line["numbers"]))


def _shared(group: list[Row]) -> str:
    """The path of repeated blocks, `*` where their numbers differ, and how many they are."""
    pieces = zip(*(_COUNTER.split(row["path"]) for row in group), strict=True)
    path = "".join(piece[0] if len(set(piece)) == 1 else "*" for piece in pieces)
    count = f" ×{len(group)}" if len(group) > 1 else ""
    return (path or "(bare array)") + count


def _table(lines: list[Row]) -> list[str]:
    """Columns under a title of two lines."""
    if not lines:
        return []
    columns: list[tuple[str, Callable[[str, int], str], list[str]]] = [
        ("\nshape", str.ljust, ["x".join(map(str, line["shape"])) or "scalar" for line in lines]),
        ("\ndtype", str.ljust, [line["dtype"] for line in lines]),
        ("\nnumbers", str.rjust, [f"{line['numbers']:,}" for line in lines]),
        ("\nrule", str.ljust, ["? " * line["guess"] + line["rule"] for line in lines]),
        ("\nmult", str.rjust, [f"{line['multiplier']:.3g}" for line in lines]),
        ("shrink\n/step", str.rjust, [_shrink_text(line["shrink"]) for line in lines]),
        ("\nhalf-life", str.rjust, [_half_life_text(line["half_life"]) for line in lines]),
        ("left\nat end", str.rjust, [_left_text(line["left"]) for line in lines]),
    ]
    hidden = {"\ndtype"} if len({line["dtype"] for line in lines}) == 1 else set()
    hidden |= {"left\nat end"} if lines[0]["left"] is None else set()
    blocks = [
        _block(
            title,
            adjust,
            [_shortened(text, _MOST_RULE) if "rule" in title else text for text in cells],
        )
        for title, adjust, cells in columns
        if title not in hidden
    ]
    room = max(_LEAST_PATH, _WIDTH - sum(len(block[0]) + 2 for block in blocks))
    names = _block("\npath", str.ljust, [_shortened(line["path"], room) for line in lines])
    return ["  ".join(cells).rstrip() for cells in zip(names, *blocks, strict=True)]


def _block(title: str, adjust: Callable[[str, int], str], cells: list[str]) -> list[str]:
    """A column, title on top, padded to one width."""
    cells = [*title.split("\n"), *cells]
    width = max(map(len, cells))
    return [adjust(cell, width) for cell in cells]


def _notes(found: Audit, lines: list[Row]) -> list[str]:
    """What is certainly wrong, a sentence each."""
    if not found.decayed:
        return [f"nothing decays: {_why_nothing(found)}"]
    notes, swallowed = [], {}
    moved = [line for line in lines if line["shrink"] > 0]
    for line in moved:
        # just below 1 numbers lie eps/2 apart: a smaller change than half of that rounds away
        if line["shrink"] < float(jnp.finfo(line["dtype"]).eps) / 4:
            swallowed.setdefault(line["dtype"], []).append(line["path"])
    for dtype, names in swallowed.items():
        notes.append(
            f"{dtype} swallows this decay: a change below {float(jnp.finfo(dtype).eps) / 4:.2g} of "
            f"a number rounds away, for {paths.listed(names)}; wrap the optimizer in "
            "wdjax.compensated, or keep these parameters in float32"
        )
    weak = [line["path"] for line in moved if line["left"] is not None and line["left"] > 0.99]
    if weak:
        notes.append(
            f"almost no effect over this run: more than 0.99 is left of {paths.listed(weak)}"
        )
    return notes


def _why_nothing(found: Audit) -> str:
    if not found.rows:
        return "the tree has no parameters"
    if found.strength == 0:
        return "the strength is 0 at every step"
    return "the multiplier of every parameter is 0"


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + "s" * (count != 1)


def _shortened(text: str, width: int) -> str:
    """Cut out of the middle; the end says more than the beginning."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def _shrink_text(shrink: float) -> str:
    return f"{shrink:.2e}" if shrink else "0"


def _half_life_text(half_life: float | None) -> str:
    if half_life is None:
        return "never"
    if half_life >= 1e9:
        return f"{half_life:.2e}"
    return f"{half_life:,.0f}" if half_life >= 100 else f"{half_life:#.3g}"


def _left_text(left: float | None) -> str:
    if left is None:
        return ""
    return ">0.999" if 0.9995 <= left < 1 else f"{left:.3g}"
