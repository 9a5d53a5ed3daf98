"""What a run will do, predicted before training from its optimizer, rates and decay."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax import schedules
from wdjax._trees import checks, html
from wdjax.dynamics import _relaxation
from wdjax.dynamics._theory import (
    NEAR,
    Direction,
    Number,
    decay_to_update,
    epochs,
    equilibrium_rms,
    foldings,
    half_life,
    norm_bound,
    numpy_of,
    timescale,
)
from wdjax.schedules import Schedule, Strength, lr_scaled

SAY = "Say what moves the weights, such as dynamics.adam(b1=0.9)."
_STILL = 1e-3  # of the largest η


class Prediction(NamedTuple):
    """What to expect of one group of weights; a pytree of numbers.

    Attributes:
        learning_rate: (T,) η.
        shrink: (T,) s, the fraction that decay takes off in each step.
        step_rms: (T,) η q, root mean square of a step per entry (with `power` 4 at weights of
            RMS 1).
        memory: (T,) M, likewise.
        equilibrium_rms: (T,) ρ, where weights would settle if η and s stayed as they are then; of
            decay that acts in every k-th step, as if a k-th of it acted in each.
        rotation: (T,) φ at that equilibrium, radians per step.
        decay_to_update: (T,) length of decay's part of a step over the optimizer's, likewise.
        budget: S = Σ s.
        left: Π (1 − s), the fraction of an untouched weight that is left at the end.
        half_life: in steps, at the mean s.
        timescale: in steps, at the mean s: T / S.
        half_life_epochs: the same in epochs; NaN where the size of the data is not given.
        timescale_epochs: likewise.
        settled: steps until the weights are within 5% of equilibrium and stay there for a
            timescale or to the end; infinite if they never do, also where it moves faster than
            they can follow.
        bound: what the norm cannot exceed, unless it does so at first, or in steps with less than
            a thousandth of the largest η; infinite if nothing is known.
        power: 2, or 4 where gradients shrink as 1/‖θ‖.
    """

    learning_rate: Number
    shrink: Number
    step_rms: Number
    memory: Number
    equilibrium_rms: Number
    rotation: Number
    decay_to_update: Number
    budget: Number
    left: Number
    half_life: Number
    timescale: Number
    half_life_epochs: Number
    timescale_epochs: Number
    settled: Number
    bound: Number
    power: int

    @property
    def is_plain(self) -> bool:
        """Whether it holds numbers of one run, neither traced nor mapped."""
        return not (np.ndim(self.budget) or isinstance(self.budget, jax.core.Tracer))

    def __str__(self) -> str:
        """Return a summary; for traced or mapped predictions, what `repr` shows."""
        if not self.is_plain:
            return repr(self)
        return "\n".join(f"{name:<24}{text}" for name, text in _summary(self))

    def _repr_html_(self) -> str | None:
        """Return the summary for notebooks; None, which shows `repr`, where there is none."""
        return html.table(("", "predicted"), _summary(self)) if self.is_plain else None


def predict(
    direction: Direction,
    learning_rate: Strength,
    *,
    weight_decay: Strength,
    steps: int,
    law: Callable[[Strength, Strength], Schedule] = lr_scaled,
    multiplier: Number = 1.0,
    start_rms: Number = 0.0,
    batch_size: int | None = None,
    examples: int | None = None,
) -> Prediction:
    """Predict timescales, norm and rotation of one group of weights, before training.

        s_t = multiplier · gain · law(λ, η)(t)

    Args:
        direction: the optimizer: `sgd(...)`, `adam(...)`, `lion(...)` or `muon(...)`.
        learning_rate: η, a number or schedule.
        weight_decay: λ, a number or schedule.
        steps: T >= 1, the length of the run.
        law: (λ, η) -> s(t), as for `decayed`; a law with a peak through functools.partial.
        multiplier: m of the group, as the rules give it.
        start_rms: ρ₀ of the weights at first, for `settled`.
        batch_size: B, in examples; with `examples`, times are also given in epochs.
        examples: N, size of the training set.

    Returns:
        The prediction. Numbers are float64 on the host; under vmap and jit they are traced.

    Raises:
        TypeError: T, B or N is not a whole number.
        ValueError: T, B or N is < 1; a strength is negative, not finite or >= 1; only one of B
            and N is given.

    Example:
        >>> from wdjax.dynamics import adam
        >>> found = predict(adam(), 1e-3, weight_decay=0.1, steps=3_000)
        >>> round(float(found.timescale)), round(float(found.left), 3), float(found.settled)
        (10000, 0.741, inf)
        >>> print(found)
        run                     3,000 steps, 0.3 timescales
        shrink                  0.0001 per step, at step 0
        half-life               6,931 steps
        timescale               10,000 steps
        left at the end         0.741
        weight RMS, settled     0.0707
        rotation, settled       0.00324 radians per step
        settled after           not within this run
        norm at most            72.7

    References:
        The functions above.
    """
    checks.record("direction", direction, Direction, SAY)
    checks.whole("steps", steps)
    per_epoch = passes(batch_size, examples)
    eta = at_steps("learning_rate", learning_rate, steps)
    s = at_steps("law", law(weight_decay, learning_rate), steps) * multiplier * direction.gain
    if isinstance(s, np.ndarray):
        advice = "Lower λ, or check the law's units."
        checks.fractions("the strength from `weight_decay`", [("", s.max())], advice)
    return predicted(direction, eta, s, start_rms, per_epoch)


def predicted(
    direction: Direction, eta: Number, s: Number, start_rms: Number, per_epoch: float
) -> Prediction:
    """Return the prediction, given η and s at every step, and how many epochs a step is."""
    even = _relaxation.spread(s, (s > 0) | (eta > 0))
    memory = direction.memory(even)
    rho = equilibrium_rms(eta, even, direction_rms=direction.rms, memory=memory)
    rho = rho**0.5 if direction.power == 4 else rho
    spent, mean = foldings(s).sum(), s.mean()
    # where a cosine ends, η and s are rounding errors above 0, and their ratio is none of theirs
    moving = numpy_of(eta).where(eta > _STILL * eta.max(), eta, 0)
    return Prediction(
        learning_rate=eta,
        shrink=s,
        step_rms=eta * direction.rms,
        memory=memory,
        equilibrium_rms=rho,
        rotation=direction.rotation(even, memory),
        decay_to_update=decay_to_update(even, memory),
        budget=s.sum(),
        left=numpy_of(s).exp(-spent),
        half_life=half_life(mean),
        timescale=timescale(mean),
        half_life_epochs=half_life(mean) * per_epoch,
        timescale_epochs=timescale(mean) * per_epoch,
        settled=_settled(even, eta * direction.rms, memory, rho, start_rms, direction.power),
        bound=norm_bound(moving, s, direction.bound),
        power=direction.power,
    )


def _settled(
    s: Number, length: Number, memory: Number, rho: Number, start: Number, power: int
) -> Number:
    """Steps until ρᵖ⁺ = ρᵖ + (ρ_tᵖ − ρᵖ)(1 − (1 − s)ᵖ) is near, ρ_t being the equilibrium now."""
    xp, f = numpy_of(s, rho), foldings(s)
    towards = xp.where(s > 0, rho, 0) ** power * -xp.expm1(-power * f)
    added = xp.where(s > 0, towards, power / 2 * length**2 * memory)
    path = _relaxation.relaxed(xp.exp(-power * f), added, start**power)
    return _relaxation.arrival(path ** (1 / power), rho, NEAR, f.cumsum())


def expected_rms(prediction: Prediction, start_rms: Number) -> Number:
    """Root mean square of the weights after each step, on the way to equilibrium.

        ρ²⁺ = (1 − s)² ρ² + η² q² + 2 η q c      c⁺ = x (c + η q)      x = (M − 1)/(M + 1)

    c is what past steps say about the next one. Where gradients shrink as 1/‖θ‖, read q/ρ for q.
    Lion forgets otherwise, as β₂ᵏ, and its momentum starts at 0: in its first 5/(1 − β₂) steps
    weights grow more slowly than this says, at first half as fast. Adam's first steps are longer
    than its later ones, RMS 1 in place of q: in a run that starts near 0, or that has decayed
    before 1/(1 − β₂) steps, weights are up to 1.6 times this for a while, and settle later.

    Args:
        prediction: of the run, from `predict`.
        start_rms: ρ₀ >= 0, the RMS before the first step.

    Returns:
        (T,) the RMS.

    Example:
        >>> from wdjax.dynamics import adam
        >>> found = predict(adam(), 2e-3, weight_decay=0.5, steps=3_000)
        >>> path = expected_rms(found, 0.01)
        >>> [round(float(path[t]), 4) for t in (0, 999, 2_999)]
        [0.01, 0.0415, 0.0445]

    References:
        `equilibrium_rms` is its fixed point.
    """
    checks.record("prediction", prediction, Prediction, "It comes from dynamics.predict.")
    sizes = (prediction.shrink, prediction.step_rms, prediction.memory)
    dtype = jnp.result_type(*sizes)
    invariant = prediction.power == 4

    def step(carry: tuple[Any, Any], now: tuple[Any, ...]) -> tuple[Any, Any]:
        square, past = carry
        s, length, memory = now
        added = (length**2 + 2 * length * past) / (square if invariant else 1)
        new = (1 - s) ** 2 * square + added
        return (new, (memory - 1) / (memory + 1) * (past + length)), new**0.5

    start = (jnp.asarray(start_rms, dtype) ** 2, jnp.zeros((), dtype))
    return jax.lax.scan(step, start, tuple(jnp.asarray(size, dtype) for size in sizes))[1]


def _summary(p: Prediction) -> list[tuple[str, str]]:
    """What to print of a run, for the step at which decay is strongest."""
    top = int(np.argmax(p.shrink))
    settled = f"{p.settled:,.0f} steps" if np.isfinite(p.settled) else "not within this run"
    return [
        ("run", f"{len(p.shrink):,} steps, {p.budget:.3g} timescales"),
        ("shrink", f"{p.shrink[top]:.3g} per step, at step {top:,}"),
        ("half-life", _time(p.half_life, p.half_life_epochs)),
        ("timescale", _time(p.timescale, p.timescale_epochs)),
        ("left at the end", f"{p.left:.3g}"),
        ("weight RMS, settled", f"{p.equilibrium_rms[top]:.3g}"),
        ("rotation, settled", f"{p.rotation[top]:.3g} radians per step"),
        ("settled after", settled),
        ("norm at most", f"{p.bound:.3g}"),
    ]


def _time(steps: float, passes: float) -> str:
    return f"{steps:,.0f} steps" + ("" if math.isnan(passes) else f", {passes:.3g} epochs")


def passes(batch_size: int | None, examples: int | None) -> float:
    """How many epochs a step is; NaN where the size of the data is not given."""
    if (batch_size is None) != (examples is None):
        raise ValueError(
            "`batch_size` and `examples` must be given together. Pass both or neither."
        )
    known = batch_size is not None and examples is not None
    return epochs(1, batch_size, examples) if known else math.nan


def at_steps(name: str, value: Strength, steps: int) -> Number:
    """(T,) values of a schedule: float64 and checked on the host, or traced."""
    schedule = schedules.as_schedule(value, name)
    counts = np.arange(steps, dtype=np.int32)
    with jax.enable_x64(True):
        known = schedules.sampled(schedule, counts)
    if known is None:
        return jax.vmap(schedule)(counts)
    schedules.check_values(known, counts, name)
    return np.maximum(known, 0)
