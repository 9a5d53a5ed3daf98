"""What all figures share: colors that everyone can tell apart, curves, axes, legends."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito, Color Universal Design, 2008: told apart with every common color blindness. Line
# styles and markers change as well, for print in gray.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
DOTS = (0, (1.0, 1.6))  # for what was predicted
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def curves(
    argument: str,
    data: Mapping[str, Any],
    *,
    steps: Any,
    ax: "Axes | None",
    ylabel: str,
    predicted: Mapping[str, Any] | None = None,
) -> "Axes":
    """Draw a line for each entry of label -> (T,) values, over the steps, with a legend."""
    rows = {label: np.asarray(row) for label, row in filled(argument, data).items()}
    for label, row in rows.items():
        shape = row.shape[:1] if steps is None else np.shape(steps)
        if row.ndim != 1 or row.shape != shape:
            raise ValueError(
                f"`{argument}` must hold one number for each step; got shape {row.shape} in "
                f"'{label}' and {'no steps' if steps is None else f'steps {shape}'}. "
                "Draw curves of different lengths in two calls with the same `ax`."
            )
    ax = axes(ax)
    first = len(ax.get_lines())  # a second call on the same Axes continues the colors
    for index, (label, row) in enumerate(rows.items(), start=first):
        ax.plot(
            np.arange(1, len(row) + 1) if steps is None else np.asarray(steps),
            row,
            color=COLORS[index % len(COLORS)],
            linestyle=LINES[index % len(LINES)],
            linewidth=1.5,
            label=label,
        )
    ax.set(xlabel="step", ylabel=ylabel)
    _add_predictions(ax, predicted)
    ax.legend()
    return ax


def log_if_wide(ax: "Axes") -> None:
    """Make the vertical axis logarithmic where positive values span a factor of ten."""
    low, high = ax.dataLim.intervaly
    if low > 0 and high >= 10 * low:
        ax.set_yscale("log")


def _add_predictions(ax: "Axes", predicted: Mapping[str, Any] | None) -> None:
    """Add what was predicted for some of the curves, a number or (T,), dotted in their color."""
    from matplotlib import patheffects

    drawn = {str(line.get_label()): line for line in ax.get_lines()}
    sizes = {label: np.size(line.get_xdata()) for label, line in drawn.items()}
    for label, value in labelled("predicted", predicted).items():
        row = np.asarray(value, np.float64)
        if label not in drawn or row.shape not in ((), (sizes[label],)):
            raise ValueError(
                f"`predicted` must hold, for labels of curves, a number or one for each step; got "
                f"shape {row.shape} in '{label}', and curves of lengths {sizes}."
            )
        x = np.asarray(drawn[label].get_xdata(), np.float64)
        row = np.where(np.isfinite(row), row, np.nan) + np.zeros_like(x)
        # a white rim, to be seen on top of noise of the same color
        rim = [patheffects.withStroke(linewidth=5.0, foreground="white")]
        ax.plot(
            x, row, linestyle=DOTS, linewidth=2.0, color=drawn[label].get_color(), label="_",
            path_effects=rim, zorder=3,
        )  # fmt: skip
    if predicted:
        ax.plot([], [], linestyle=DOTS, linewidth=2.0, color="0.3", label="predicted")


def verticals(ax: "Axes", chosen: Mapping[str, float] | None) -> None:
    """Mark values on the horizontal axis, label -> value, for the legend."""
    for index, (label, value) in enumerate(labelled("chosen", chosen).items()):
        color, style = COLORS[2 + index % 5], LINES[1 + index % 3]
        ax.axvline(value, color=color, linestyle=style, label=f"{label}: {value:.3g}")


def counts_above(ax: "Axes", x: np.ndarray[Any, Any], counts: np.ndarray[Any, Any]) -> None:
    """Write the number of non-zero coefficients above at most twelve of the values."""
    if counts.shape != x.shape:
        raise ValueError(
            f"`nonzeros` must be a number for each value; got {len(counts)} for {len(x)}."
        )
    few = np.linspace(0, len(x) - 1, min(len(x), 12)).astype(int)
    place: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "ha": "center"}
    for i in few:
        ax.text(x[i], 1.01, f"{counts[i]:d}", va="bottom", fontsize="x-small", **place)
    ax.set_title("non-zero coefficients", fontsize="small", pad=14)


def strength_axis(ax: "Axes", x: np.ndarray[Any, Any]) -> None:
    """Make it logarithmic where values span a factor of ten; 0 is set apart on the left."""
    positive = x[x > 0]
    if (x < 0).any() or not len(positive) or positive.max() < 10 * positive.min():
        return
    if len(positive) == len(x):
        ax.set_xscale("log")
        return
    ax.set_xscale("symlog", linthresh=positive.min(), linscale=0.5)
    ax.set_xlim(left=-0.3 * positive.min())


def cell_ticks(set_ticks: Any, values: Any) -> None:
    """Write at most six labels, in the middle of their cells."""
    step = -(-len(values) // 6)
    places = np.arange(0, len(values), step)
    set_ticks(places + 0.5, [f"{values[i]:.2g}" for i in places])


def legend_above(ax: "Axes", entries: int) -> None:
    """Put the legend into new space above the data, which fills the rest of the axes."""
    share = min(0.6, 0.06 + 0.065 * entries)  # of the height of the axes
    transform = ax.transScale
    (x, low), (_, high) = transform.transform(list(zip(ax.get_xlim(), ax.get_ylim(), strict=True)))
    top = transform.inverted().transform((x, high + (high - low) * share / (1.0 - share)))[1]
    ax.set_ylim(top=top)
    ax.legend(loc="upper center")


def axes(ax: "Axes | None") -> "Axes":
    """Return the Axes given, or those of a new figure that pyplot does not know."""
    if ax is not None:
        return ax
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib draws the figures and is not installed. Run: pip install matplotlib"
        ) from error
    return Figure(layout="constrained").subplots()


def filled(argument: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the data, or raise if there are none."""
    if not labelled(argument, data):
        raise ValueError(f"`{argument}` must have at least one entry; got none. Pass label: data.")
    return data


def labelled(argument: str, data: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return label -> data, empty for None, or raise if it has no labels."""
    if not isinstance(data, Mapping | None):
        raise TypeError(
            f"`{argument}` must be a dict, label: data; got {type(data).__name__}. "
            f"Pass {argument}={{'label': data}}."
        )
    return data or {}
