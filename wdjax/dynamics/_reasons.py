"""Why a run differs from its prediction, in plain sentences.

Each is one rule: a function of what was `Seen` of a group of weights that returns it, or None.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wdjax.dynamics._predict import Prediction
from wdjax.dynamics._theory import steps_to_equilibrium

FAR = 1.15  # predictions are good to 15%
_SETTLED = 11  # memories of a step: momentum from 0 is stationary then; 5/(1 − β₂) for Lion
_NESTEROV = 1.4  # its steps of noise are 1.16 times as long at β = 0.9, 1.33 at most
_WEAK = 0.3  # timescales: a run with fewer hardly decays


class Seen(NamedTuple):
    """What the rules know of one group; averages are over the last tenth of the run.

    Attributes:
        prediction: of the group.
        rms: RMS of the weights.
        expected: the RMS that was to be expected there, from the RMS at first.
        equilibrium: the RMS predicted for equilibrium; infinite without decay.
        length: how long steps were, as a fraction of what was predicted; NaN if unknown.
        ratio: measured length of decay's part of a step over the optimizer's; NaN if unknown.
        gated: share of the entries at which a gate held decay back; NaN if unknown.
        strength: decay as applied, as a fraction of what was predicted; NaN if unknown.
        dtype: that the weights have or might get, or None.
        kept: the fraction of the decay that rounding to that dtype leaves; NaN if unknown.
    """

    prediction: Prediction
    rms: float
    expected: float
    equilibrium: float
    length: float = math.nan
    ratio: float = math.nan
    gated: float = math.nan
    strength: float = math.nan
    dtype: str | None = None
    kept: float = math.nan


# The rules.


def nothing_decays(seen: Seen) -> str | None:
    """Say that the strength is zero throughout."""
    if seen.prediction.budget > 0:
        return None
    return "no decay acts here: its strength is 0 at every step"


def too_slow(seen: Seen) -> str | None:
    """Say that the run is too short for this decay."""
    p = seen.prediction
    if not 0 < p.budget < _WEAK:
        return None
    return (
        f"decay acts on a {p.timescale:,.0f}-step timescale; this run has {len(p.shrink):,} "
        f"steps: they take {-math.expm1(-p.budget):.0%} off"
    )


def too_fast(seen: Seen) -> str | None:
    """Say that weights forget examples before they see them again."""
    p = seen.prediction
    # NaN if the size of the data is not known, infinite without decay
    if not (p.timescale_epochs < 1 < p.budget * p.timescale_epochs):
        return None
    return (
        f"decay acts on a {p.timescale_epochs:.2g}-epoch timescale: weights forget examples "
        "before they see them again"
    )


def warming_up(seen: Seen) -> str | None:
    """Say that weights have not yet grown to their equilibrium."""
    p = seen.prediction
    if not (math.isfinite(seen.equilibrium) and seen.rms * FAR < seen.equilibrium):
        return None
    if not seen.expected * FAR < seen.equilibrium:
        return None  # they should have grown: another rule says why not
    start = seen.rms / seen.equilibrium
    more = steps_to_equilibrium(p.shrink[-1], start, power=int(p.power))
    return (
        f"weights are below equilibrium: they are still warming up (RMS {seen.rms:.3g} of "
        f"{seen.equilibrium:.3g}; about {more:,.0f} more steps)"
    )


def cooling_down(seen: Seen) -> str | None:
    """Say that weights have not yet shrunk to their equilibrium."""
    if not (seen.rms > FAR * seen.equilibrium and seen.expected > FAR * seen.equilibrium):
        return None
    equilibrium = seen.prediction.equilibrium_rms
    fallen = seen.equilibrium < 0.5 * equilibrium[np.isfinite(equilibrium)].max()
    why = "it fell faster than decay can follow" if fallen else "they are still shrinking"
    return (
        f"weights are above equilibrium: {why} (RMS {seen.rms:.3g}, equilibrium "
        f"{seen.equilibrium:.3g})"
    )


def decay_ends_early(seen: Seen) -> str | None:
    """Say that the learning rate or the strength is zero for the last part of the run."""
    p = seen.prediction
    steps, rate, decay = len(p.shrink), _last(p.learning_rate), _last(p.shrink)
    if not p.budget > 0 or min(rate, decay) > 0.98 * steps:
        return None
    if decay <= rate:
        first = "the learning rate" if decay == rate else "the strength of decay"
        return f"{first} reaches 0 at {decay / steps:.0%} of the run: nothing decays after that"
    return (
        f"the learning rate reaches 0 at {rate / steps:.0%} of the run, and decay goes on: "
        "weights only shrink after that"
    )


def swallowed(seen: Seen) -> str | None:
    """Say how much of the decay rounding would lose."""
    if not seen.kept < 0.9:
        return None
    return (
        f"{seen.dtype} would lose {1 - seen.kept:.0%} of the decay: keep these weights in "
        "float32, or wrap the optimizer in wdjax.compensated"
    )


def steps_of_other_length(seen: Seen) -> str | None:
    """Say that steps are not as long as noise makes them."""
    if seen.length > FAR:
        return (
            f"steps are {seen.length:.2g} times as long as noise makes them: gradients agree from "
            "step to step, as with few examples or large batches, and are not noise-dominated"
            + (", or momentum looks ahead (Nesterov's)" if seen.length < _NESTEROV else "")
        )
    if seen.length * FAR < 1:
        return (
            f"steps are {seen.length:.2g} times as long as predicted: gradients get smaller, "
            "come in bursts, or many are zero"
        )
    return None


def not_noise(seen: Seen) -> str | None:
    """Say that steps of the predicted length added up to weights of another size."""
    explained = not _near(seen.length) or not _near(seen.strength) or seen.gated > 0.1
    p = seen.prediction
    # Lion's momentum starts at 0, and the prediction does not know: see `dynamics.expected_rms`
    is_young = len(p.shrink) < _SETTLED * np.max(p.memory)
    if explained or is_young or not seen.expected > 0:
        return None
    times = seen.rms / seen.expected
    if _near(times):
        return None
    why = "successive steps agree" if times > 1 else "successive steps cancel, or a minimum holds"
    held = " more than those of noise" if times > 1 else " them"
    return (
        f"weights are {times:.2g} times as large as noise makes them: {why}{held} (gradients are "
        "not noise-dominated, as with few examples)"
    )


def other_strength(seen: Seen) -> str | None:
    """Say that the prediction was for another decay."""
    if _near(seen.strength):
        return None
    if seen.strength == 0:
        return "no decay acted here, though some was predicted: is the multiplier 0?"
    return (
        f"decay was {seen.strength:.2g} times as strong as in the prediction: check its λ, law, "
        "multiplier and steps"
    )


def held_back(seen: Seen) -> str | None:
    """Say that a gate weakens the decay."""
    if not seen.gated > 0.1:
        return None
    return (
        f"the gate holds decay back at {seen.gated:.0%} of the entries: it is weaker than predicted"
    )


def dying(seen: Seen) -> str | None:
    """Say that decay outweighs learning."""
    if not seen.ratio > 1:
        return None
    return (
        f"decay's part of a step is {seen.ratio:.2g} times as long as the optimizer's: weights go "
        "to 0; lower λ"
    )


Rule = Callable[[Seen], str | None]
RULES: tuple[Rule, ...] = (
    nothing_decays,
    other_strength,
    too_slow,
    too_fast,
    decay_ends_early,
    warming_up,
    cooling_down,
    steps_of_other_length,
    not_noise,
    held_back,
    dying,
    swallowed,
)


def _near(times: float) -> bool:
    """Whether a factor is about 1, or unknown."""
    return math.isnan(times) or 1 / FAR <= times <= FAR


def _last(values: np.ndarray) -> int:
    """Number of the last step at which something is more than 0, but for its last ten-thousandth.

    A schedule that ends at 0 in float32 may be a rounding error above it.
    """
    moving = np.flatnonzero(values > 1e-4 * values.max())
    return int(moving[-1]) + 1 if len(moving) else 0
