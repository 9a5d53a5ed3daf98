"""The picture of `growth`: small multiples in log-log, drawn from the figures' readings."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.timing import Figure
from wdjax.plots._canvas import COLORS, LINES, MARKERS, legend_above

COLUMNS = 3


def draw(figures: list[Figure], file: Path) -> None:
    """Write a picture with a panel for each thing that grows, its slopes in the legend."""
    panels: dict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.readings and "panel" in figure.readings:
            panels[figure.readings["panel"]].append(figure)
    if not panels:
        return
    from matplotlib.figure import Figure as Canvas  # an extra, needed here alone

    rows = -(-len(panels) // COLUMNS)
    canvas = Canvas(figsize=(3.6 * COLUMNS, 3.6 * rows), layout="constrained")
    axes = canvas.subplots(rows, COLUMNS, squeeze=False)
    for ax, (panel, curves) in zip(axes.flat, panels.items(), strict=False):
        _panel(ax, panel, curves)
    for ax in axes[:, 0]:
        ax.set_ylabel("milliseconds")
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    file.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(file, dpi=150)


def _panel(ax: Any, panel: str, curves: list[Figure]) -> None:
    for index, figure in enumerate(curves):
        readings: Any = figure.readings
        ax.loglog(
            readings["sizes"],
            readings["ms"],
            color=COLORS[index % len(COLORS)],
            linestyle=LINES[index % len(LINES)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4,
            label=f"{readings['curve']}: {figure.ratio[0]:.2f}",
        )
    ax.set_xlabel(panel)
    ax.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
    legend_above(ax, len(curves) + 1)
    ax.get_legend().set_title("slope over the last decade")
