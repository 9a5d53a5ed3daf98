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
import numpy as np

from wdjax import schedules, stacking
from wdjax._trees import paths
from wdjax._trees.paths import Leaf
from wdjax.rules import RuleError, Rules, Selector, check_rules, is_guess, label, owners
from wdjax.schedules import Schedule, Strength
from wdjax.transforms import STANDARD, swallowed_below

Row = dict[str, Any]

_MOST_COUNTS = 2**20  # steps looked at
_LAST_COUNT = np.iinfo(np.int32).max
_WIDTH = 100  # of the table, unless long shapes leave a path less than this
_LEAST_PATH, _MOST_RULE = 32, 18
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
        >>> found = audit({"kernel": np.ones((2, 3)), "bias": np.ones(3)}, strength=0.5)
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
            textwrap.fill(
                f"! {note}",
                _WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
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
            `lr_scaled(0.1, lr)`; not λ, unless the law is `fixed`.
        rules: (selector, multiplier) pairs that give m; first match wins.
        steps: T >= 1, the length of the run; may be left out for a constant strength. Every step
            enters up to T = 2^20; of a longer run, one of each of 2^20 equal parts.

    Returns:
        The audit: print it, or log its `rows`.

    Raises:
        RuleError: as in `resolve`; a multiplier is traced.
        ValueError: the strength is negative or not finite at some step, traced, or so large that
            signs would flip; `steps` is missing or < 1.
        TypeError: `strength` is neither a number nor a schedule; a leaf is not an array.

    Example:
        >>> params = {"kernel": np.ones((2, 3), "float32"), "bias": np.ones(3, "float32")}
        >>> audit(params, strength=0.01, steps=100)
        2 float32 arrays, 9 numbers, 6 of them decayed (66.7%)
        strength 0.01 at each of 100 steps
                                                shrink   half    left
        path    shape  numbers  rule    mult     /step   life  at end
        kernel  2x3          6  weight     1  1.00e-02   69.0   0.366
        bias    3            3  bias       0         0  never       1
    """
    schedule = schedules.as_schedule(strength)
    steps = None if steps is None else _checked_steps(steps)
    counts = _counts(schedule, steps)
    strengths = _strengths(schedule, counts)
    peak = int(strengths.argmax())
    top = float(strengths[peak])
    decisions = _decisions(stacking.unstack(tree), _concrete(check_rules(rules)))
    _check_signs(decisions, top)
    multipliers = {m for _, _, m in decisions}
    left = {m: None if steps is None else _left(strengths * m, steps) for m in multipliers}
    rows = [_row(leaf, selector, m, top * m, left[m]) for leaf, selector, m in decisions]
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


def _decisions(tree: Any, rules: Rules) -> list[tuple[Leaf, Selector, float]]:
    """Each leaf, what decides it, and its multiplier."""
    decided = [(selector, float(m)) for selector, m in rules]
    decided.append(("not float", 0.0))  # index -1
    leaves = paths.leaves(tree)
    return [
        (leaf, *decided[owner]) for leaf, owner in zip(leaves, owners(rules, tree), strict=True)
    ]


def _row(leaf: Leaf, selector: Selector, m: float, shrink: float, left: float | None) -> Row:
    shape = [int(size) for size in leaf.shape]
    return {
        "path": leaf.path,
        "shape": shape,
        "dtype": str(leaf.dtype),
        "numbers": math.prod(shape),
        "rule": label(selector),
        "guess": is_guess(selector),
        "multiplier": m,
        "shrink": shrink,
        "half_life": _half_life(shrink),
        "left": left,
    }


def _checked_steps(steps: Any) -> int:
    """An integer >= 1, of Python."""
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1:
        raise ValueError(f"`steps` must be an integer >= 1; got {steps!r}. Count optimizer steps.")
    return int(steps)


def _counts(schedule: Schedule, steps: int | None) -> np.ndarray:
    """The steps at which the strength is looked at; one stands for all if it is constant."""
    if isinstance(schedule, schedules.Constant):
        return np.zeros(1, np.int32)
    if steps is None:
        raise ValueError(
            "`steps` must be given where `strength` is a schedule; got None. Pass the length of "
            "the run, steps=."
        )
    if steps <= _MOST_COUNTS:
        return np.arange(steps, dtype=np.int32)
    # one at random in each of as many equal parts: even distances could be in step with a schedule
    parts = np.arange(_MOST_COUNTS) + np.random.default_rng(0).random(_MOST_COUNTS)
    last = np.minimum(parts * (steps / _MOST_COUNTS), _LAST_COUNT)  # Optax stops there too
    counts: np.ndarray = last.astype(np.int32)
    return counts


def _strengths(schedule: Schedule, counts: np.ndarray) -> np.ndarray:
    """The strength at these steps in float64, checked."""
    strengths = schedules.sampled(schedule, counts)
    if strengths is None:
        raise ValueError(
            "`strength` must be known before training; got a traced value. Call `audit` outside "
            "jit, vmap and grad."
        )
    schedules.check_values(strengths, counts)
    positive: np.ndarray = np.maximum(strengths, 0)
    return positive


def _concrete(rules: Rules) -> Rules:
    """Rules with multipliers as floats."""
    for selector, m in rules:
        if isinstance(m, jax.core.Tracer):
            raise RuleError(
                f"the multiplier of rule {label(selector)!r} must be known before training; got a "
                "traced value. Call `audit` outside jit, vmap and grad."
            )
    return check_rules(tuple((selector, float(m)) for selector, m in rules))


def _check_signs(decisions: list[tuple[Leaf, Selector, float]], top: float) -> None:
    """Refuse decay that flips signs."""
    flipped = [repr(leaf.path) for leaf, _, m in decisions if top * m >= 1]
    if flipped:
        raise ValueError(
            "`strength` times multiplier must be < 1, the fraction taken off in a step; it reaches "
            f"{top:g} times the multiplier for {paths.listed(flipped)} and would flip signs. "
            "Lower λ, check the law's units, or use wdjax.prox_weights."
        )


# The table.


def _header(found: Audit) -> list[str]:
    """How many decay, how strongly, and how many were guessed."""
    dtypes = {row["dtype"] for row in found.rows}
    kind = f"{dtypes.pop()} array" if len(dtypes) == 1 else "array"
    share = found.decayed / max(found.total, 1)
    if found.step is not None:
        when = f"at most, at step {found.step:,} of {found.steps:,}"
    else:
        when = "at every step" if found.steps is None else f"at each of {found.steps:,} steps"
    guesses = sum(row["guess"] for row in found.rows)
    guessed = [f"{_plural(guesses, 'array')} decided by shape only (marked ?)"] if guesses else []
    return [
        f"{_plural(len(found.rows), kind)}, {_plural(found.total, 'number')}, "
        f"{found.decayed:,} of them decayed ({share:.1%})",
        f"strength {found.strength:.3g} {when}",
        *guessed,
    ]


def _merged(rows: list[Row]) -> list[Row]:
    """Rows as printed: repeated blocks in one, the most decayed and largest first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        words = tuple(_COUNTER.split(row["path"])[::2])  # the path without its counters
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
    """The columns, under titles of two lines."""
    if not lines:
        return []
    columns = [
        _column("shape", ["x".join(map(str, line["shape"])) or "scalar" for line in lines]),
        _column("dtype", [line["dtype"] for line in lines]),
        _column("numbers", [f"{line['numbers']:,}" for line in lines], str.rjust),
        _column("rule", [_rule_text(line) for line in lines]),
        _column("mult", [f"{line['multiplier']:.3g}" for line in lines], str.rjust),
        _column("shrink /step", [_shrink_text(line["shrink"]) for line in lines], str.rjust),
        _column("half life", [_half_life_text(line["half_life"]) for line in lines], str.rjust),
        _column("left at_end", [_left_text(line["left"]) for line in lines], str.rjust),
    ]
    if len({line["dtype"] for line in lines}) == 1:
        del columns[1]
    if lines[0]["left"] is None:
        del columns[-1]
    room = max(_LEAST_PATH, _WIDTH - sum(len(column[0]) + 2 for column in columns))
    names = _column("path", [_shortened(line["path"], room) for line in lines])
    return ["  ".join(cells) for cells in zip(names, *columns, strict=True)]


def _column(
    title: str, cells: list[str], adjust: Callable[[str, int], str] = str.ljust
) -> list[str]:
    """Cells of one width under a title, whose first of two words goes to the line above."""
    above, _, below = title.rpartition(" ")
    cells = [above, below.replace("_", " "), *cells]
    width = max(map(len, cells))
    return [adjust(cell, width) for cell in cells]


def _notes(found: Audit, lines: list[Row]) -> list[str]:
    """What is certainly wrong, a sentence each."""
    if not found.decayed:
        return [f"nothing decays: {_why_nothing(found)}"]
    notes = []
    moved = [line for line in lines if line["shrink"] > 0]
    for dtype in dict.fromkeys(line["dtype"] for line in moved):
        least = swallowed_below(dtype)
        names = [
            line["path"] for line in moved if line["dtype"] == dtype and line["shrink"] < least
        ]
        if names:
            notes.append(
                f"{dtype} swallows this decay: a change below {least:.3g} of a number rounds away, "
                f"for {paths.listed(names)}; wrap the optimizer in wdjax.compensated, or keep "
                "these parameters in float32"
            )
    weak = [line["path"] for line in moved if line["left"] is not None and line["left"] > 0.99]
    if weak:
        notes.append(
            f"almost no effect over this run: more than 0.99 is left of {paths.listed(weak)}"
        )
    return notes


def _why_nothing(found: Audit) -> str:
    if not found.total:
        return "the tree holds no numbers"
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


def _rule_text(line: Row) -> str:
    return _shortened("? " * line["guess"] + line["rule"], _MOST_RULE)


def _shrink_text(shrink: float) -> str:
    return f"{shrink:.2e}" if shrink else "0"


def _half_life_text(half_life: float | None) -> str:
    if half_life is None:
        return "never"
    if half_life >= 1e9:
        return f"{half_life:.2e}"
    return f"{half_life:,.0f}" if half_life >= 99.95 else f"{half_life:#.3g}"


def _left_text(left: float | None) -> str:
    if left is None:
        return ""
    return ">0.999" if 0.9995 <= left < 1 else f"{left:.3g}"
