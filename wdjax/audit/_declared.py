"""The table to read before training: which parameters decay, how fast, and what is left at the end.

With the strength s(t), a multiplier m and T steps, an untouched weight shrinks by s(t) m per step:

    half-life = ln 2 / −ln(1 − s m)        left at the end = Π_{t<T} (1 − s(t) m)
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from wdjax import schedules, stacking
from wdjax._lift.rounding import swallowed_below
from wdjax._trees import checks, paths
from wdjax._trees.paths import Leaf
from wdjax.audit._table import Audit, Row, merged
from wdjax.rules import RuleError, Rules, Selector, check_rules, is_guess, label, ruled
from wdjax.schedules import Schedule, Strength

_MOST_COUNTS = 2**20  # steps looked at
_LAST_COUNT = np.iinfo(np.int32).max


def declared(tree: Any, strength: Strength, rules: Rules, steps: int | None) -> Audit:
    """Show what `decay_weights` with the l2 penalty does by this strength and these rules.

    shrink = max_t s(t) m;  half-life = ln 2 / −ln(1 − shrink);  left = Π_{t<T} (1 − s(t) m)
    """
    schedule = schedules.as_schedule(strength)
    counts = _counts(schedule, steps)
    strengths = _strengths(schedule, counts)
    peak = int(strengths.argmax())
    top = float(strengths[peak])
    decisions = decisions_of(stacking.unstack(tree), rules)
    taken = [(leaf.path, top * m) for leaf, _, m in decisions]
    checks.fractions("`strength` times multiplier", taken)
    multipliers = {m for _, _, m in decisions}
    left = {m: None if steps is None else _left(strengths * m, steps) for m in multipliers}
    rows = [_row(leaf, selector, m, top * m, left[m]) for leaf, selector, m in decisions]
    found = Audit(
        rows=rows,
        total=sum(row["numbers"] for row in rows),
        decayed=sum(row["numbers"] for row in rows if row["shrink"] > 0),
        strength=top,
        step=None if isinstance(schedule, schedules.Constant) else int(counts[peak]),
        steps=steps,
    )
    return dataclasses.replace(found, warnings=tuple(_notes(found, merged(rows))))


def checked_steps(steps: Any) -> int | None:
    """The length of a run as an int of Python, or None."""
    checks.whole("steps", steps, optional=True, advice="Count optimizer steps.")
    return None if steps is None else int(steps)


def decisions_of(tree: Any, rules: Rules) -> list[tuple[Leaf, Selector, float]]:
    """Each leaf, what decides it, and its multiplier."""
    rows, _ = ruled(_concrete(rules), tree)
    return [(leaf, "not float" if by is None else by, float(m)) for leaf, by, m in rows]


# The numbers.


def half_life_of(shrink: float | None) -> float | None:
    """Steps until an untouched weight has halved; None is never."""
    if shrink is None or shrink <= 0:
        return None
    return math.log(2) / -math.log1p(-shrink) if shrink < 1 else 0.0


def _left(shrinks: np.ndarray, steps: int) -> float:
    """Π_t (1 − s(t) m) = exp(T · mean ln(1 − s m)): exact if every step is there."""
    return math.exp(steps * float(np.log1p(-shrinks).mean()))


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
        "half_life": half_life_of(shrink),
        "left": left,
    }


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
    """Rules, checked, with multipliers as floats."""
    rules = check_rules(rules)
    for selector, m in rules:
        if isinstance(m, jax.core.Tracer):
            raise RuleError(
                f"the multiplier of rule {label(selector)!r} must be known before training; got a "
                "traced value. Call `audit` outside jit, vmap and grad."
            )
    return check_rules(tuple((selector, float(m)) for selector, m in rules))  # of arrays, as well


# What is certainly wrong.


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
            "decay has almost no effect over this run: more than 99% is left of "
            f"{paths.listed(weak)}"
        )
    return notes


def _why_nothing(found: Audit) -> str:
    if not found.total:
        return "the tree holds no numbers"
    if found.strength == 0:
        return "the strength is 0 at every step"
    return "the multiplier of every parameter is 0"
