"""The figures; see `wdjax.plots`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from wdjax._trees import checks
from wdjax.plots import _canvas
from wdjax.plots._canvas import COLORS, LINES, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curve(
    losses: Mapping[str, Any],
    *,
    steps: Any = None,
    ax: "Axes | None" = None,
    ylabel: str = "loss",
) -> "Axes":
    """Draw losses over the steps; on a logarithmic axis when they span a factor of ten.

    Args:
        losses: label -> losses, each of shape (T,); one that is not positive keeps the axis linear.
        steps: the step of each loss, shape (T,), shared by all curves; None counts 1 ... T.
        ax: where to draw; None makes a new figure.
        ylabel: name and unit of the loss.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `losses` is not a dict.
        ValueError: `losses` is empty, or a curve is not as long as `steps`.

    Example:
        >>> ax = loss_curve({"train": [4.0, 1.0, 0.4], "test": [5.0, 2.0, 1.0]})
        >>> [line.get_label() for line in ax.get_lines()], ax.get_yscale()
        (['train', 'test'], 'log')
    """
    ax = _canvas.curves("losses", losses, steps=steps, ax=ax, ylabel=ylabel)
    _canvas.log_if_wide(ax)
    return ax


def weight_norms(
    norms: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    steps: Any = None,
    ax: "Axes | None" = None,
    ylabel: str = "weight norm ‖θ‖₂",
) -> "Axes":
    """Draw norms of the weights over the steps; the axis starts at zero.

    Args:
        norms: label -> norms, each of shape (T,).
        predicted: label -> norm at equilibrium, a number or (T,); dotted, in the color of the
            curve of that label. Infinite ones are left out.
        steps: the step of each norm, shape (T,), shared by all curves; None counts 1 ... T.
        ax: where to draw; None makes a new figure.
        ylabel: name of the norm.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `norms` or `predicted` is not a dict.
        ValueError: `norms` is empty, a curve is not as long as `steps`, or what was predicted
            fits no curve.

    Example:
        >>> ax = weight_norms({"L2": [2.0, 1.5, 1.0]}, steps=[0, 10, 20])
        >>> [float(number) for number in ax.get_lines()[0].get_xdata()]
        [0.0, 10.0, 20.0]
    """
    ax = _canvas.curves("norms", norms, steps=steps, ax=ax, ylabel=ylabel, predicted=predicted)
    ax.autoscale(axis="y")  # a fixed lower end would stop later calls from raising the upper one
    ax.set_ylim(bottom=0.0)
    return ax


def rotations(
    angles: Mapping[str, Any],
    *,
    predicted: Mapping[str, Any] | None = None,
    steps: Any = None,
    ax: "Axes | None" = None,
    ylabel: str = "rotation (radians per step)",
) -> "Axes":
    """Draw by how much the weights turn in each step; logarithmic if over a factor of ten.

    Args:
        angles: label -> angles between the weights before and after a step, each of shape (T,).
        predicted: label -> angle at equilibrium, a number or (T,), as in `weight_norms`.
        steps: the step of each angle, shape (T,), shared by all curves; None counts 1 ... T.
        ax: where to draw; None makes a new figure.
        ylabel: name and unit of the angle.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `angles` or `predicted` is not a dict.
        ValueError: `angles` is empty, a curve is not as long as `steps`, or what was predicted
            fits no curve.

    Example:
        >>> ax = rotations({"kernel": [0.3, 0.1, 0.01]}, predicted={"kernel": 0.02})
        >>> [text.get_text() for text in ax.get_legend().get_texts()], ax.get_yscale()
        (['kernel', 'predicted'], 'log')
    """
    ax = _canvas.curves("angles", angles, steps=steps, ax=ax, ylabel=ylabel, predicted=predicted)
    _canvas.log_if_wide(ax)
    return ax


def half_lives(
    steps: Mapping[str, float], *, run: float | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Draw the half-life of untouched weights as a bar for each group, on a logarithmic axis.

    Args:
        steps: group -> half-life in steps; an infinite one has no bar and reads "never".
        run: T, steps of the run, marked by a line: bars that end beyond it hardly decay.
        ax: where to draw; None makes a new figure.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `steps` is not a dict.
        ValueError: `steps` is empty.

    Example:
        >>> ax = half_lives({"kernel": 6931.0, "bias": np.inf}, run=10_000)
        >>> [text.get_text() for text in ax.texts]
        ['6,931', 'never']
    """
    values = {group: float(value) for group, value in _canvas.filled("steps", steps).items()}
    ax = _canvas.axes(ax)
    known = [x for x in (*values.values(), run) if x is not None and np.isfinite(x)] or [1.0]
    # whole decades, with room for a bar on the left and for a number on the right
    left = 10 ** np.floor(np.log10(min(known)) - 0.3)
    right = 10 ** np.ceil(np.log10(max(known)) + 0.3)
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
    for place, value in enumerate(values.values()):
        number = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        end, text = (value, number) if np.isfinite(value) else (left, "never")
        ax.barh(place, end - left, left=left, height=0.6, color=COLORS[0])
        ax.annotate(text, (end, place), (5, 0), textcoords="offset points", va="center", bbox=white)
    if run is not None:
        ax.axvline(run, color=COLORS[1], linestyle=LINES[1], label=f"run: {run:,.0f} steps")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    ax.set_xscale("log")
    ax.set_xlim(left, right)
    ax.set_yticks(range(len(values)), values)
    ax.set_ylim(len(values) - 0.5, -0.5)  # the first on top
    ax.set_xlabel("half-life of untouched weights (steps)")
    return ax


def weight_histogram(
    weights: Mapping[str, Any], *, ax: "Axes | None" = None, bins: int = 61
) -> "Axes":
    """Draw how the weights of several models are spread, over common bins.

    The counts are logarithmic, because a sparse model puts most of its weights in one bin; the
    legend says how many are exactly zero.

    Args:
        weights: label -> weights, an array or a pytree of arrays, of any size.
        ax: where to draw; None makes a new figure.
        bins: number of bins, symmetric around zero; odd puts zero in the middle of a bin.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `weights` is not a dict.
        ValueError: `weights` is empty, or holds a number that is not finite.

    Example:
        >>> ax = weight_histogram({"L1": {"kernel": np.array([0.0, 0.0, 1.5])}})
        >>> ax.get_legend().get_texts()[0].get_text()
        'L1 (2 of 3 exactly 0)'
    """
    flat = {label: _flat(label, tree) for label, tree in _canvas.filled("weights", weights).items()}
    ax = _canvas.axes(ax)
    limit = max(float(np.abs(values).max(initial=0.0)) for values in flat.values()) or 1.0
    edges = np.linspace(-limit, limit, bins + 1)
    for index, (label, values) in enumerate(flat.items()):
        ax.stairs(
            np.histogram(values, edges)[0],
            edges,
            color=COLORS[index % len(COLORS)],
            linestyle=LINES[index % len(LINES)],
            linewidth=1.5,
            label=_zeros_label(label, values),
        )
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7)  # below one count, so that a bin with a single weight is visible
    ax.set(xlabel="weight θ", ylabel=f"weights per bin of width {edges[1] - edges[0]:.2g}")
    _canvas.legend_above(ax, len(flat))
    return ax


def coefficients(
    values: Mapping[str, Any],
    *,
    names: Sequence[str] | np.ndarray[Any, Any] | None = None,
    ax: "Axes | None" = None,
    ylabel: str = "coefficient",
) -> "Axes":
    """Draw the coefficients of linear models side by side; exact zeros are hollow markers.

    Args:
        values: label -> coefficients, each of shape (D,), or (D, 1) as a kernel of one output.
        names: the D features; None numbers them from 0.
        ax: where to draw; None makes a new figure.
        ylabel: name and unit of a coefficient.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `values` is not a dict.
        ValueError: `values` is empty, its entries or `names` differ in length, or an entry has
            several targets.

    Example:
        >>> ax = coefficients({"L2": [0.5, -0.1], "L1": [0.4, 0.0]}, names=["bmi", "age"])
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['L2 (0 of 2 exactly 0)', 'L1 (1 of 2 exactly 0)']
    """
    filled = _canvas.filled("values", values)
    rows = {label: _one_target(label, np.asarray(row)) for label, row in filled.items()}
    size = len(next(iter(rows.values())))
    names = [str(number) for number in range(size)] if names is None else list(names)
    sizes = {label: len(row) for label, row in rows.items()} | {"names": len(names)}
    if set(sizes.values()) != {size}:
        raise ValueError(f"`values` and `names` must have equal lengths; got {sizes}.")
    ax = _canvas.axes(ax)
    ax.axhline(0.0, color="0.6", linewidth=0.8)
    for index, (label, row) in enumerate(rows.items()):
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        place = np.arange(size) + 0.6 * ((index + 0.5) / len(rows) - 0.5)
        zero = row == 0
        ax.vlines(place, 0.0, row, color=color, linewidth=1.0)
        ax.plot(place[~zero], row[~zero], marker, color=color, label=_zeros_label(label, row))
        ax.plot(place[zero], row[zero], marker, color=color, markerfacecolor="white")
    ax.set_xticks(np.arange(size), names)
    ax.set_xlim(-0.5, size - 0.5)
    ax.set_ylabel(ylabel)
    _canvas.legend_above(ax, len(rows))
    return ax


def validation_curve(
    curve: Any,
    *,
    chosen: Mapping[str, float] | None = None,
    nonzeros: Any = None,
    ax: "Axes | None" = None,
    ylabel: str = "validation score",
) -> "Axes":
    """Draw mean validation scores with error bars of one standard error, and training scores.

    Values where every run diverged are crosses on the upper edge. The value 0 has a place on the
    logarithmic axis, to the left of the others.

    Args:
        curve: from `sweeps.validation_curve`, or anything with x, mean, se and train, each (L,),
            and a name.
        chosen: label -> value, marked by vertical lines, such as {"min": 0.1, "1-SE": 1.0}.
        nonzeros: (L,) numbers of coefficients that are not 0, written above some of the values.
        ax: where to draw; None makes a new figure.
        ylabel: name and unit of the score.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `chosen` is not a dict.
        ValueError: `nonzeros` has another length than the curve.

    Example:
        >>> from wdjax.sweeps import Curve
        >>> x, mean, se = np.array([0.1, 1.0, 10.0]), np.array([2.0, 1.0, np.inf]), np.full(3, 0.1)
        >>> curve = Curve("weight_decay", x, mean, se, mean, np.arange(3))
        >>> ax = validation_curve(curve, chosen={"min": 1.0})
        >>> [text.get_text() for text in ax.get_legend().get_texts()]
        ['training', 'min: 1', 'diverged', 'validation ± 1 SE']
    """
    ax = _canvas.axes(ax)
    x, mean = np.asarray(curve.x), np.asarray(curve.mean)
    good = np.isfinite(mean)
    train = np.where(np.isfinite(curve.train), curve.train, np.nan)
    ax.plot(x[good], train[good], LINES[1], color=COLORS[1], linewidth=1.5, label="training")
    se = np.nan_to_num(np.asarray(curve.se)[good])
    bars = ax.errorbar(x[good], mean[good], se, fmt="-o", color=COLORS[0], ms=4, capsize=2)
    bars.set_label("validation ± 1 SE")
    _canvas.verticals(ax, chosen)
    if not good.all():
        edge, top = ax.get_xaxis_transform(), np.ones_like(x[~good])
        ax.plot(x[~good], top, "kx", transform=edge, clip_on=False, label="diverged")
    _canvas.strength_axis(ax, x)
    if nonzeros is not None:
        _canvas.counts_above(ax, x, np.asarray(nonzeros))
    ax.set(xlabel=curve.name, ylabel=ylabel)
    ax.legend()
    return ax


def heat_map(
    scores: Any,
    *,
    chosen: Mapping[str, tuple[float, float]] | None = None,
    ax: "Axes | None" = None,
    label: str = "validation score",
) -> "Axes":
    """Draw scores over two hyperparameters; cells in which all runs diverged are crossed out.

    Cells have one size whatever the spacing of the values. Colors are logarithmic when the scores
    span a factor of ten.

    Args:
        scores: from `sweeps.heatmap`: names, x (X,), y (Y,), mean and diverged (Y, X).
        chosen: label -> (x, y), marked in the map.
        ax: where to draw; None makes a new figure.
        label: name and unit of the score, at the color bar.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `chosen` is not a dict.

    Example:
        >>> from wdjax.sweeps import HeatMap
        >>> mean, diverged = np.array([[1.0, np.nan]]), np.array([[False, True]])
        >>> ax = heat_map(HeatMap(("a", "b"), np.array([0.1, 1.0]), np.zeros(1), mean, diverged))
        >>> [text.get_text() for text in ax.get_xticklabels()]
        ['0.1', '1']
    """
    ax = _canvas.axes(ax)
    mean = np.ma.masked_invalid(np.asarray(scores.mean, np.float64))
    low, high = (float(mean.min()), float(mean.max())) if mean.count() else (0.0, 1.0)
    norm = "log" if low > 0 and high >= 10 * low else "linear"
    mesh = ax.pcolormesh(mean, cmap="viridis_r", norm=norm)
    ax.set_facecolor("0.85")
    if mean.count():
        ax.figure.colorbar(mesh, ax=ax, label=label)
    up, across = np.nonzero(scores.diverged)
    if len(up):
        ax.plot(across + 0.5, up + 0.5, "x", color="0.2", markersize=5, label="diverged")
    for index, (name, place) in enumerate(_canvas.labelled("chosen", chosen).items()):
        column, level = (
            int(np.abs(np.asarray(values) - at).argmin()) + 0.5
            for values, at in zip((scores.x, scores.y), place, strict=True)
        )
        marker, color = "*Ps"[index % 3], COLORS[1]
        ax.plot(column, level, marker, color=color, ms=11, mec="white", ls="", label=name)
    _canvas.cell_ticks(ax.set_xticks, scores.x)
    _canvas.cell_ticks(ax.set_yticks, scores.y)
    ax.set(xlabel=scores.names[0], ylabel=scores.names[1])
    if chosen or len(up):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    return ax


def coefficient_path(
    strengths: Any,
    coefficients: Any,
    *,
    names: Sequence[str] | np.ndarray[Any, Any] | None = None,
    chosen: Mapping[str, float] | None = None,
    ax: "Axes | None" = None,
    xlabel: str = "strength λ",
    ylabel: str = "coefficient",
) -> "Axes":
    """Draw how each coefficient of a linear model changes with the strength of its penalty.

    Args:
        strengths: (L,) λ, in any order; logarithmic axis.
        coefficients: (L, D).
        names: the D features, written at the end of their lines on the left, where the penalty is
            weakest; None writes none.
        chosen: label -> value, marked by vertical lines.
        ax: where to draw; None makes a new figure.
        xlabel: name and unit of the strength.
        ylabel: name and unit of a coefficient.

    Returns:
        The Axes.

    Raises:
        ImportError: `ax` is None and matplotlib is missing.
        TypeError: `chosen` is not a dict.
        ValueError: shapes do not fit.

    Example:
        >>> ax = coefficient_path([0.1, 1.0], [[2.0, -1.0], [0.5, 0.0]], names=["bmi", "age"])
        >>> [text.get_text().strip() for text in ax.texts], ax.get_xscale()
        (['bmi', 'age'], 'log')
    """
    x, values = np.asarray(strengths), np.asarray(coefficients)
    count = values.shape[1] if values.ndim == 2 else 0
    misnamed = names is not None and len(names) != count
    if x.ndim != 1 or values.shape != (len(x), count) or misnamed:
        raise ValueError(
            "`coefficients` must have shape (L, D), with L strengths and D names; got "
            f"{values.shape}, strengths {x.shape} and "
            f"{'no' if names is None else len(names)} names."
        )
    ax = _canvas.axes(ax)
    order = np.argsort(x)
    x, values = x[order], values[order]
    ranks = values[0].argsort().argsort()
    ax.axhline(0.0, color="0.6", linewidth=0.8)
    for index, column in enumerate(values.T):
        color = COLORS[index % len(COLORS)]
        ax.plot(x, column, LINES[index % len(LINES)], color=color, linewidth=1.5)
        if names is not None:
            aside = " " * (1 + 9 * (ranks[index] % 2))  # neighbors would cover each other
            ax.text(x[0], column[0], f"{names[index]}{aside}", ha="right", va="center", color=color)
    _canvas.verticals(ax, chosen)
    _canvas.strength_axis(ax, x)
    if names is not None and x[0] > 0:
        ax.set_xlim(left=x[0] * (x[0] / x[-1]) ** 0.2)  # room for the names
    ax.set(xlabel=xlabel, ylabel=ylabel)
    if chosen:
        ax.legend()
    return ax


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


def _flat(label: str, tree: Any) -> np.ndarray[Any, Any]:
    leaves = [np.ravel(np.asarray(leaf, np.float64)) for leaf in jax.tree.leaves(tree)]
    values = np.concatenate(leaves) if leaves else np.zeros(0)
    broken = int(np.sum(~np.isfinite(values)))
    if broken:
        raise ValueError(
            f"`weights` must be finite; got {broken} of {values.size} NaN or infinite in "
            f"'{label}'. Leave the diverged model out."
        )
    return values


def _one_target(label: str, row: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    if row.size > max(row.shape, default=1):
        raise ValueError(
            f"`values` must hold one coefficient for each feature; got shape {row.shape} in "
            f"'{label}'. Give each target a label of its own: {{'{label} 0': coef[:, 0], ...}}."
        )
    return row.ravel()


def _zeros_label(label: str, values: np.ndarray[Any, Any]) -> str:
    return f"{label} ({int(np.sum(values == 0))} of {values.size} exactly 0)"


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
