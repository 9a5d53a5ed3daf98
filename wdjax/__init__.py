"""Weight decay for JAX that cannot be silently wrong.

Say which parameters decay (`rules`), what pulls them (`penalties`), how strongly and when
(`schedules`), and where in the step (`transforms`); get an Optax transformation.
"""

from wdjax import anchors, datasets, gates, penalties, plots
from wdjax.audit import Audit, audit
from wdjax.fitting import History, fit
from wdjax.optimizers import adagradw, adamw, decayed, lionw, muonw, sgdw
from wdjax.penalties import penalty_value
from wdjax.precision import compensated
from wdjax.rules import RuleError, mask, resolve, standard
from wdjax.schedules import (
    corrected,
    fixed,
    from_half_life,
    from_timescale,
    geometric,
    inverse_sqrt,
    lr_scaled,
    lr_squared,
    per_epoch,
    schedule_scaled,
    target_rms,
)
from wdjax.training import TrainState, make_train_step
from wdjax.transforms import add_decayed_weights, decay_weights, prox_weights

__version__ = "0.1.0"

__all__ = [
    "Audit",
    "History",
    "RuleError",
    "TrainState",
    "adagradw",
    "adamw",
    "add_decayed_weights",
    "anchors",
    "audit",
    "compensated",
    "corrected",
    "datasets",
    "decay_weights",
    "decayed",
    "fit",
    "fixed",
    "from_half_life",
    "from_timescale",
    "gates",
    "geometric",
    "inverse_sqrt",
    "lionw",
    "lr_scaled",
    "lr_squared",
    "make_train_step",
    "mask",
    "muonw",
    "penalties",
    "penalty_value",
    "per_epoch",
    "plots",
    "prox_weights",
    "resolve",
    "schedule_scaled",
    "sgdw",
    "standard",
    "target_rms",
]
