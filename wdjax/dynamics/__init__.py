"""What theory says of decay: timescales, norms, rotation, and bounds on the weights.

Where gradients are mostly noise, a step is θ⁺ = a θ − η u with a = 1 − s. Its direction u has a
root mean square q and a *memory* M = 1 + 2 Σ_k aᵏ ρ_k, with ρ_k the correlation of directions k
steps apart. All else follows from the four numbers η, s, q and M.

The optimizer matters through q and M (`sgd`, `adam`, `lion`, `muon`), the law through s.
"""

from wdjax.dynamics._each import Predictions, predict_declared, predict_each
from wdjax.dynamics._explain import Explanation, explain
from wdjax.dynamics._predict import Prediction, expected_rms, predict
from wdjax.dynamics._theory import (
    Direction,
    adam,
    adam_bound,
    coupled_memory,
    decay_kept,
    decay_to_update,
    epochs,
    equilibrium_rms,
    equilibrium_rotation,
    foldings,
    foldings_to_equilibrium,
    half_life,
    lion,
    lion_memory,
    momentum_memory,
    muon,
    muon_bound,
    norm_bound,
    sgd,
    steps_to_equilibrium,
    timescale,
)

__all__ = [
    "Direction",
    "Explanation",
    "Prediction",
    "Predictions",
    "adam",
    "adam_bound",
    "coupled_memory",
    "decay_kept",
    "decay_to_update",
    "epochs",
    "equilibrium_rms",
    "equilibrium_rotation",
    "expected_rms",
    "explain",
    "foldings",
    "foldings_to_equilibrium",
    "half_life",
    "lion",
    "lion_memory",
    "momentum_memory",
    "muon",
    "muon_bound",
    "norm_bound",
    "predict",
    "predict_declared",
    "predict_each",
    "sgd",
    "steps_to_equilibrium",
    "timescale",
]
