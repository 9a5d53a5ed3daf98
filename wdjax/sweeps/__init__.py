"""Choosing λ by evidence: many configurations, folds and seeds trained in one compiled program.

Make hyperparameters with `grid` or `random`, folds with `kfold`, train with `sweep`, look at it
with `table`, `validation_curve` and `heatmap`, choose with `select`, and train on all with `refit`.
"""

from wdjax.folds import Folds, holdout, kfold, time_folds
from wdjax.sweeps._grids import grid, log_grid, random
from wdjax.sweeps._results import SweepResult, table
from wdjax.sweeps._selection import (
    Curve,
    HeatMap,
    Selection,
    heatmap,
    select,
    validation_curve,
)
from wdjax.sweeps._sweep import refit, sweep

__all__ = [
    "Curve",
    "Folds",
    "HeatMap",
    "Selection",
    "SweepResult",
    "grid",
    "heatmap",
    "holdout",
    "kfold",
    "log_grid",
    "random",
    "refit",
    "select",
    "sweep",
    "table",
    "time_folds",
    "validation_curve",
]
