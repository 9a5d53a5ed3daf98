"""Weight decay for JAX that cannot be silently wrong.

Say which parameters decay (`rules`), what pulls them (`penalties`), how strongly and when
(`schedules`), and where in the step (`transforms`); get an Optax transformation.
"""

import importlib
from typing import TYPE_CHECKING, Any

from wdjax import anchors, gates, penalties
from wdjax.audit import Audit, Difference, audit, check_decay, same_decay
from wdjax.optimizers import adagradw, adamw, decayed, lionw, muonw, sgdw
from wdjax.penalties import penalty_value
from wdjax.precision import compensated, stochastically_rounded
from wdjax.rules import RuleError, mask, resolve, standard
from wdjax.schedules import (
    corrected,
    cosine_ramp,
    decay_budget,
    delayed,
    fixed,
    from_half_life,
    from_timescale,
    geometric,
    inverse_sqrt,
    linear_ramp,
    log_time,
    lr_scaled,
    lr_squared,
    per_epoch,
    periodic,
    schedule_scaled,
    target_rms,
    warmed_up,
)
from wdjax.transforms import (
    add_decayed_weights,
    decay_after_step,
    decay_weights,
    prox_weights,
)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from wdjax import (
        adaptive,
        bounds,
        convert,
        datasets,
        dynamics,
        like,
        linear,
        matrices,
        metrics,
        plots,
        radial,
        scaling,
        spectra,
        stacking,
        sweeps,
        tuning,
    )
    from wdjax.dynamics import Explanation, explain
    from wdjax.training import History, TrainState, fit, make_train_step

__all__ = [
    "Audit",
    "Difference",
    "Explanation",
    "History",
    "RuleError",
    "TrainState",
    "adagradw",
    "adamw",
    "adaptive",
    "add_decayed_weights",
    "anchors",
    "audit",
    "bounds",
    "check_decay",
    "compensated",
    "convert",
    "corrected",
    "cosine_ramp",
    "datasets",
    "decay_after_step",
    "decay_budget",
    "decay_weights",
    "decayed",
    "delayed",
    "dynamics",
    "explain",
    "fit",
    "fixed",
    "from_half_life",
    "from_timescale",
    "gates",
    "geometric",
    "inverse_sqrt",
    "like",
    "linear",
    "linear_ramp",
    "lionw",
    "log_time",
    "lr_scaled",
    "lr_squared",
    "make_train_step",
    "mask",
    "matrices",
    "metrics",
    "muonw",
    "penalties",
    "penalty_value",
    "per_epoch",
    "periodic",
    "plots",
    "prox_weights",
    "radial",
    "resolve",
    "same_decay",
    "scaling",
    "schedule_scaled",
    "sgdw",
    "spectra",
    "stacking",
    "standard",
    "stochastically_rounded",
    "sweeps",
    "target_rms",
    "tuning",
    "warmed_up",
]


# names that are not modules, and where they live
_LATER = {
    "Explanation": "dynamics",
    "History": "training",
    "TrainState": "training",
    "explain": "dynamics",
    "fit": "training",
    "make_train_step": "training",
}


def __getattr__(name: str) -> Any:
    """Import the rest at its first use: most programs need little of it."""
    if name in _LATER:
        return getattr(importlib.import_module(f"wdjax.{_LATER[name]}"), name)
    if name in __all__:
        return importlib.import_module(f"wdjax.{name}")
    raise AttributeError(f"module 'wdjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
