"""The figure of a law of λ; see `wdjax.plots`."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from wdjax._trees import checks
from wdjax.plots import _canvas
from wdjax.plots._canvas import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scaling_law(
    law: Any, factor: str, *, at: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw a law of λ and the optima that it was fitted to along one factor, on logarithmic axes.

    The other factors stand at their geometric mean: what the law says of them is taken out of each
    optimum.

    Args:
        law: of `wdjax.scaling.fit_law`.
        factor: the one to draw along.
        at: a value of it that is to be predicted, marked with its interval; None draws none.
        ax: where to draw; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        ValueError: the law has no such factor.

    Example:
        >>> from wdjax.scaling import Law, Optimum
        >>> optima = tuple(Optimum({"batch": b}, 0.002 * b, 0.1, "") for b in (8, 16, 32))
        >>> law = Law({"batch": 1.0}, {"batch": 0.1}, -6.2, np.eye(2) / 100, 0.0, 1, optima)
        >>> ax = scaling_law(law, "batch", at=256)
        >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('batch', ['law', '95% interval', 'optima', 'prediction'])
    """
    checks.choice("factor", factor, tuple(law.exponents))
    ax = _canvas.axes(ax)
    found = [optimum for optimum in law.optima if not optimum.why]
    others = [name for name in law.exponents if name != factor]
    usual = {k: math.exp(np.mean([math.log(o.factors[k]) for o in found])) for k in others}
    taken_out = [
        math.prod((usual[k] / o.factors[k]) ** law.exponents[k] for k in others) for o in found
    ]
    x = np.array([o.factors[factor] for o in found])
    y = np.array([o.value for o in found]) * taken_out
    bars = np.nan_to_num(np.array([o.se for o in found]))
    ends = [*x, at] if at is not None else x
    along = np.geomspace(min(ends), max(ends), 100)
    line = np.array([law.predict(**usual, **{factor: float(value)}) for value in along])
    ax.plot(along, line[:, 0], color=COLORS[0], label="law")
    ax.fill_between(
        along, line[:, 1], line[:, 2], color=COLORS[0], alpha=0.15, lw=0, label="95% interval"
    )
    spread = [y * -np.expm1(-bars), y * np.expm1(bars)]
    ax.errorbar(x, y, spread, fmt="o", color=COLORS[1], capsize=3, label="optima")
    if at is not None:
        there = law.predict(**usual, **{factor: at})
        spread = [[there.value - there.low], [there.high - there.value]]
        ax.errorbar(
            [at], [there.value], spread, fmt="D", color=COLORS[2], capsize=3, label="prediction"
        )
    ax.set(xscale="log", yscale="log", xlabel=factor, ylabel="best λ")
    _tick(ax, sorted(set(ends)))
    ax.legend(frameon=False)
    return ax


def _tick(ax: "Axes", values: list[float]) -> None:
    """Name the factor's own values and, over less than two decades, λ at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator, NullLocator

    apart = values[:1]
    for value in values[1:]:  # names need room
        if value > apart[-1] * (values[-1] / values[0]) ** 0.12:
            apart.append(value)
    ax.set_xticks(apart, [f"{value:,g}" for value in apart])
    ax.xaxis.set_minor_locator(NullLocator())
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
