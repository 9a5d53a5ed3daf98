"""Weight decay for JAX that cannot be silently wrong.

Say which parameters decay (`rules`), what pulls them (`penalties`), how strongly and when
(`schedules`), and where in the step (`transforms`); get an Optax transformation.
"""

from wdjax import gates, penalties
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
from wdjax.transforms import add_decayed_weights, decay_weights, prox_weights

__version__ = "0.1.0"

__all__ = [
    "RuleError",
    "adagradw",
    "adamw",
    "add_decayed_weights",
    "compensated",
    "corrected",
    "decay_weights",
    "decayed",
    "fixed",
    "from_half_life",
    "from_timescale",
    "gates",
    "geometric",
    "inverse_sqrt",
    "lionw",
    "lr_scaled",
    "lr_squared",
    "mask",
    "muonw",
    "penalties",
    "penalty_value",
    "per_epoch",
    "prox_weights",
    "resolve",
    "schedule_scaled",
    "sgdw",
    "standard",
    "target_rms",
]
