"""What was predicted against what a run showed, per group of weights, and why they differ."""

import dataclasses
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from wdjax._trees import html, paths
from wdjax.dynamics._predict import Prediction, expected_rms
from wdjax.dynamics._reasons import RULES, Seen
from wdjax.dynamics._theory import decay_kept

Row = dict[str, Any]
Readings = Mapping[str, Any]

_WINDOW = 0.1  # the last part of the run, over which numbers are averaged
_WIDTH = 100  # of the report
_SAMPLES = 9  # steps at which rounding is looked at


@dataclasses.dataclass(frozen=True, repr=False)
class Explanation:
    """Predicted against measured. Its text is the report; `rows` and `sentences` are the data.

    Attributes:
        rows: one dict per group and quantity: group, quantity ("weight_rms", "rotation" in
            radians per step, "decay_to_update"), expected (from the start of this run), measured
            and equilibrium, averages over the last tenth of the run.
        sentences: group -> the sentences of the rules that fired.
        headers: group -> length of the run in timescales, and half-life.

    Example:
        >>> from wdjax import dynamics
        >>> p = dynamics.predict(dynamics.adam(), 1e-3, weight_decay=0.1, steps=1_000)
        >>> found = explain(p, {"kernel": {"weight_rms": np.full(1_000, 0.05)}})
        >>> found.sentences["kernel"][0]
        'decay acts on a 10,000-step timescale; this run has 1,000 steps: they take 10% off'
    """

    rows: list[Row]
    sentences: dict[str, list[str]]
    headers: dict[str, str]

    def __str__(self) -> str:
        """Return the report."""
        lines = []
        for group, header in self.headers.items():
            rows = [row for row in self.rows if row["group"] == group]
            lines += [f"{group}: {header}", _line("", "expected", "measured", "equilibrium")]
            for row in rows:
                numbers = [row[key] for key in ("expected", "measured", "equilibrium")]
                cells = (_cell(x)[0] for x in numbers)
                lines.append(_line(row["quantity"], *cells))
            lines += [_wrapped(sentence) for sentence in self.sentences[group]]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        """Return the report for notebooks, as a table with its sentences below."""
        names = ("expected", "measured", "equilibrium")
        return html.table(
            ("group", "quantity", *names),
            [
                (row["group"], row["quantity"], *(_cell(row[name]) for name in names))
                for row in self.rows
            ],
            above=[f"{group}: {header}" for group, header in self.headers.items()],
            below=[
                ("!", f"{group}: {text}")
                for group, found in self.sentences.items()
                for text in found
            ],
        )


def explain(
    predictions: Prediction | Mapping[str, Prediction],
    measured: Mapping[str, Readings],
    *,
    steps: Any = None,
    dtype: str | None = None,
) -> Explanation:
    """Compare what was predicted with what was measured, and say why they differ.

    Numbers are averages over the last tenth of the run. The column "expected" follows from the
    first measured RMS, step by step; "equilibrium" is where the weights would settle.

    Args:
        predictions: group -> prediction of T steps, as `dynamics.predict_each(params, optimizer,
            ...)` gives, so that strengths are the optimizer's own; or one for all groups.
        measured: group -> name -> (N,) values, as `metrics.series` gives. `weight_rms`, before the
            step, is needed; `rotation`, `effective_learning_rate`, `decay_to_update`, `gated` and
            `strength` are used if present. Values that are not finite are left out. Readings that
            were held, as `measured(every=10)` does, count once, for the step they were taken in.
        steps: (N,) which step each value belongs to, from 0; None if N = T.
        dtype: of the weights, or one to consider, such as "bfloat16": the report says what it
            would lose.

    Returns:
        The explanation: print it, or log its `rows` and `sentences`.

    Raises:
        TypeError: an argument is something else, such as a `History`, or they are swapped.
        ValueError: groups differ, `weight_rms` is missing or never finite, or `steps` do not fit.

    Example:
        >>> from wdjax import dynamics
        >>> p = dynamics.predict(dynamics.adam(), 2e-3, weight_decay=0.5, steps=4_000)
        >>> run = {"weight_rms": [0.01, 0.044, 0.046], "rotation": [0.05, 0.011, 0.010]}
        >>> explain(p, {"kernel": run}, steps=[0, 2_000, 3_999])
        kernel: 4,000 steps, 4 timescales, half-life 693 steps
                               expected     measured  equilibrium
          weight_rms             0.0445        0.046       0.0445
          rotation               0.0103         0.01       0.0103

    References:
        The formulas are in `wdjax.dynamics`.
    """
    of_group = _paired(predictions, measured)
    rows, sentences, headers = [], {}, {}
    for group, values in measured.items():
        prediction = jax.tree.map(np.asarray, of_group[group])
        found, seen = _compare(group, prediction, values, steps, dtype)
        rows += found
        fired = (rule(seen) for rule in RULES)
        sentences[group] = [sentence for sentence in fired if sentence]
        headers[group] = _header(prediction)
    return Explanation(rows, sentences, headers)


def _compare(
    group: str, p: Prediction, values: Readings, steps: Any, dtype: str | None
) -> tuple[list[Row], Seen]:
    """Average both sides over the last tenth of the run."""
    where, first, rms = _checked(group, p, values, steps)
    path = np.full(len(p.shrink), np.nan)
    path[first:] = _path(p, first, rms)
    read = _read(values, len(where))
    late = where >= where[-1] - _WINDOW * len(p.shrink)
    late = late & read if (late & read).any() else late
    now = where[late]

    def column(name: str, chosen: np.ndarray = late) -> np.ndarray:
        found = np.asarray(values.get(name, np.full(len(where), np.nan)), np.float64)
        of_steps: np.ndarray = found[chosen]
        return of_steps

    invariant = p.power == 4
    # RMS of a step at the expected RMS of the weights
    length = _quotient(p.step_rms[now], path[now] if invariant else 1.0)
    sides = {
        "weight_rms": (path[now], p.equilibrium_rms[now]),
        "rotation": (_quotient(length, path[now]), p.rotation[now]),
        "decay_to_update": (_quotient(p.shrink[now] * path[now], length), p.decay_to_update[now]),
    }
    rows: list[Row] = [
        {
            "group": group,
            "quantity": name,
            "expected": _mean(expected),
            "measured": _mean(column(name)),
            "equilibrium": float(np.mean(equilibrium)),
        }
        for name, (expected, equilibrium) in sides.items()
        if name in values
    ]
    taken = column("effective_learning_rate") * column("weight_rms") ** (p.power // 2)
    seen = Seen(
        prediction=p,
        rms=rows[0]["measured"],
        expected=rows[0]["expected"],
        equilibrium=rows[0]["equilibrium"],
        length=_times(taken, p.step_rms[now]),
        ratio=_mean(column("decay_to_update")),
        gated=_mean(column("gated")),
        strength=_times(column("strength", read), p.shrink[where[read]]),
        dtype=dtype,
        kept=math.nan if dtype is None else _kept(dtype, p, path, where, values),
    )
    return rows, seen


def _read(values: Readings, count: int) -> np.ndarray:
    """Which values are readings: where one is held, nothing changes.

    Readings belong to their own step. Until the next one, η may have changed.
    """
    changed: np.ndarray = np.arange(count) == 0
    for column in values.values():
        x = np.asarray(column, np.float64)
        changed[1:] |= (x[1:] != x[:-1]) & ~(np.isnan(x[1:]) & np.isnan(x[:-1]))
    return changed


def _kept(
    dtype: str, p: Prediction, path: np.ndarray, where: np.ndarray, values: Readings
) -> float:
    """What rounding leaves of the decay, from some steps of the run, measured if they were."""
    length = _quotient(p.step_rms[where], path[where] if p.power == 4 else 1.0)
    step = values.get("effective_learning_rate", _quotient(length, path[where]))
    shrink, step = p.shrink[where], np.asarray(step, np.float64)
    some = np.flatnonzero((shrink > 0) & np.isfinite(step))
    some = some[np.linspace(0, len(some) - 1, min(_SAMPLES, len(some))).astype(int)]
    kept = [decay_kept(dtype, shrink[i], step[i]) for i in some]
    return float(np.average(kept, weights=shrink[some])) if kept else math.nan


def _path(p: Prediction, first: int, rms: float) -> np.ndarray:
    """RMS expected before each step from the `first` on, where it was `rms`."""
    cut = p._replace(shrink=p.shrink[first:], step_rms=p.step_rms[first:], memory=p.memory[first:])
    with jax.enable_x64(True):
        after = np.asarray(expected_rms(cut, rms))
    return np.append(rms, after[:-1])


def _checked(
    group: str, p: Prediction, values: Readings, steps: Any
) -> tuple[np.ndarray, int, float]:
    """The step of each value; the first step whose RMS is finite, and that RMS."""
    rms = np.asarray(values.get("weight_rms", ()), np.float64)
    finite = np.flatnonzero(np.isfinite(rms))
    if not len(finite):
        raise ValueError(
            f"`measured` must hold 'weight_rms' of each group, with a finite value; got "
            f"{sorted(values)} in '{group}'."
        )
    count = len(p.shrink)
    where = np.arange(count) if steps is None else np.asarray(steps)
    inside = where.shape == rms.shape == (rms.size,) and where[0] >= 0 and where[-1] < count
    if not (inside and (np.diff(where) > 0).all()):
        raise ValueError(
            f"`steps` must give the step of each value, rising within 0 ... {count - 1}, the steps "
            f"of the prediction; got {where} for {rms.size} values in '{group}'."
        )
    return where, int(where[finite[0]]), float(rms[finite[0]])


def _paired(predictions: Any, measured: Any) -> Mapping[str, Prediction]:
    """The prediction of each group. Refuse a History, swapped arguments, groups that differ."""
    if single := isinstance(predictions, Prediction):
        predictions = {"": predictions}
    for name, groups, kind in (
        ("predictions", predictions, Prediction),
        ("measured", measured, Mapping),
    ):
        inside = groups.values() if isinstance(groups, Mapping) else [groups]
        wrong = [type(x).__name__ for x in inside if not isinstance(x, kind)]
        if wrong or not isinstance(groups, Mapping):
            raise TypeError(
                f"`{name}` must be group -> {kind.__name__}; got {wrong}. Call "
                "explain(dynamics.predict(...), metrics.series(history))."
            )
    found: Any = dict.fromkeys(measured, predictions[""]) if single else predictions
    differing = sorted(set(found) ^ set(measured))
    if not measured:
        raise ValueError("`measured` is empty; it needs at least one group.")
    if differing:
        raise ValueError(
            "`predictions` and `measured` must have the same groups; they differ in "
            f"{paths.listed(map(repr, differing))}."
        )
    return dict(found)


def _mean(values: np.ndarray) -> float:
    """The mean of what is finite, or NaN."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _times(measured: np.ndarray, predicted: np.ndarray) -> float:
    """What was measured as a multiple of what was predicted, over the values that are finite."""
    finite = np.isfinite(measured)
    return float(_quotient(_mean(measured), _mean(predicted[finite])))


def _quotient(x: Any, y: Any) -> Any:
    """Divide; what is over 0 is not finite, and left out of means."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(x, y)


def _header(p: Prediction) -> str:
    """The length of the run, in units of the decay."""
    if not p.budget > 0:
        return f"{len(p.shrink):,} steps, no decay"
    scales = f"{float(p.budget):.2g}"
    ending = "" if scales == "1" else "s"
    return (
        f"{len(p.shrink):,} steps, {scales} timescale{ending}, half-life "
        f"{float(p.half_life):,.0f} steps"
    )


def _wrapped(sentence: str) -> str:
    return textwrap.fill(
        f"! {sentence}",
        _WIDTH,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def _cell(x: float) -> tuple[str, float]:
    return "-" if math.isnan(x) else f"{x:.3g}", x


def _line(*cells: str) -> str:
    return f"  {cells[0]:<16}" + "".join(f"{cell:>13}" for cell in cells[1:])
