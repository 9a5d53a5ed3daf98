"""Matplotlib figures (the extra `plot`): data and an Axes in, the same Axes out.

Without an Axes, each function draws on a new figure of its own, reachable as `ax.figure`. Neither
pyplot nor any global setting is touched, so everything works without a display and inside threads.
"""

from wdjax.plots._canvas import COLORS, LINES, MARKERS
from wdjax.plots._figures import (
    coefficient_path,
    coefficients,
    half_lives,
    heat_map,
    loss_curve,
    rotations,
    scaling_law,
    validation_curve,
    weight_histogram,
    weight_norms,
)

__all__ = [
    "COLORS",
    "LINES",
    "MARKERS",
    "coefficient_path",
    "coefficients",
    "half_lives",
    "heat_map",
    "loss_curve",
    "rotations",
    "scaling_law",
    "validation_curve",
    "weight_histogram",
    "weight_norms",
]
