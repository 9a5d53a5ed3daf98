"""Constraints R(θ) <= κ for `adaptive.cpr`: measures R, and where the bound κ comes from.

A measure is a function of one leaf and the axes of its groups; a `Bound` is a small record of two
pure functions, and the functions that build one say how κ is found.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wdjax._trees import groups
from wdjax._trees.groups import Axes


class Measured(NamedTuple):
    """A measure R of one leaf's groups; all but the gradient keep the group's axes as length 1.

    Attributes:
        value: R(z).
        gradient: ∂R(z), same shape as z.
        per: the multiplier learns from (R − κ) / per: the number of entries of a sum, else 1.
        farthest: the step along −∂R that arrives at the minimum of R.
    """

    value: jax.Array
    gradient: jax.Array
    per: float
    farthest: Any


Measure = Callable[[jax.Array, Axes], Measured]


def sum_squares(z: jax.Array, axes: Axes = None) -> Measured:
    """Measure a group by its squared norm.

        R(z) = Σ z²      ∂R(z) = 2z

    Args:
        z: a leaf.
        axes: along which a group extends; None is the whole leaf.

    Returns:
        R and its gradient. There is no factor ½: a multiplier μ decays by the fraction 2μ.

    Example:
        >>> sum_squares(jnp.array([1.0, 2.0])).gradient
        Array([2., 4.], dtype=float32)
    """
    return Measured(groups.total(z * z, axes), 2 * z, groups.size(z, axes), 0.5)


def sum_magnitudes(z: jax.Array, axes: Axes = None) -> Measured:
    """Measure a group by the sum of its magnitudes.

        R(z) = Σ |z|      ∂R(z) = sign(z)

    Args:
        z: a leaf.
        axes: as in `sum_squares`.

    Returns:
        R and its gradient.

    Example:
        >>> sum_magnitudes(jnp.array([1.0, -2.0])).value
        Array([3.], dtype=float32)
    """
    top = jnp.max(jnp.abs(z), axis=groups.along(axes, z.ndim), keepdims=True, initial=0)
    return Measured(groups.total(jnp.abs(z), axes), jnp.sign(z), groups.size(z, axes), top)


def sum_huber(z: jax.Array, axes: Axes = None) -> Measured:
    """Measure a group by a sum that is quadratic up to 1 and linear beyond.

        R(z) = Σ ½z² where |z| < 1, else |z| − ½      ∂R(z) = clip(z, −1, 1)

    Args:
        z: a leaf.
        axes: as in `sum_squares`.

    Returns:
        R and its gradient.

    Example:
        >>> sum_huber(jnp.array([1.0, -2.0])).value
        Array([2.], dtype=float32)
    """
    size = jnp.abs(z)
    value = jnp.where(size < 1, z * z / 2, size - 0.5)
    return Measured(groups.total(value, axes), jnp.clip(z, -1, 1), groups.size(z, axes), 1.0)


def deviation(z: jax.Array, axes: Axes = None) -> Measured:
    """Measure a group by its standard deviation, which leaves its mean free.

        R(z) = √(Σ (z − z̄)² / (n − 1))      ∂R(z) = (z − z̄) / ((n − 1) R(z)), 0 where R = 0

    Args:
        z: a leaf.
        axes: as in `sum_squares`.

    Returns:
        R and its gradient; 0 for a group of one entry or none.

    Example:
        >>> deviation(jnp.array([1.0, 2.0, 3.0])).value
        Array([1.], dtype=float32)
    """
    n = groups.size(z, axes)
    _, centred = groups.deviations(z, groups.along(axes, z.ndim))
    value = groups.root(groups.total(centred * centred, axes) / max(1, n - 1))
    return Measured(value, groups.ratio(centred, max(1, n - 1) * value), 1, max(1, n - 1) * value)


class Bound(NamedTuple):
    """Where κ comes from, for one leaf; z = (κ, ...) is what the bound remembers.

    κ = ∞ says that there is none yet. A group whose R is 0 at the time gets none.

    Attributes:
        start: R(θ₀) -> z.
        follow: (R, count, z) -> z, called after each step with the R of the candidate.
    """

    start: Callable[[jax.Array], tuple[jax.Array, ...]]
    follow: Callable[[jax.Array, jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


def _positive(measured: jax.Array) -> jax.Array:
    return jnp.where(measured > 0, measured, jnp.inf)


def uniform(value: float) -> Bound:
    """Bound every group by the same number.

        κ = value

    Args:
        value: κ >= 0, in units of the measure.

    Returns:
        The bound.

    Raises:
        ValueError: the value is negative or not finite.

    Example:
        >>> uniform(2.0).start(jnp.ones(1))
        (Array([2.], dtype=float32),)
    """
    check_range("value", value, 0)

    def start(measured: Any) -> Any:
        return (jnp.full_like(measured, value),)

    return Bound(start, lambda measured, count, z: start(measured))


def dependent(factor: float) -> Bound:
    """Bound every group relative to its start.

        κ = factor · R(θ₀)

    A group that starts at zero has no bound.

    Args:
        factor: >= 0; below 1 the group has to shrink.

    Returns:
        The bound.

    Raises:
        ValueError: the factor is negative or not finite.

    Example:
        >>> dependent(0.5).start(jnp.array([4.0]))
        (Array([2.], dtype=float32), Array([4.], dtype=float32))
    """
    check_range("factor", factor, 0)

    def of_start(measured: Any) -> Any:
        return jnp.where(measured > 0, factor * measured, jnp.inf)

    # R(θ₀) itself is kept too, for the factor of a restored run may be another
    return Bound(
        lambda measured: (of_start(measured), measured),
        lambda measured, count, z: (of_start(z[1]), z[1]),
    )


def warm_start(steps: int) -> Bound:
    """Bound every group by what it has grown to after some steps.

        κ = R(θ_k), in force from step k + 1, the first step being 1

    A group that is zero then has no bound.

    Args:
        steps: k >= 1, usually the length of the learning rate's warm-up.

    Returns:
        The bound.

    Raises:
        ValueError: k < 1.

    Example:
        >>> warm_start(2).start(jnp.array([4.0]))
        (Array([inf], dtype=float32),)
    """
    check_range("steps", steps, 1)

    def follow(measured: Any, count: Any, z: Any) -> Any:
        return (jnp.where(count + 1 == steps, _positive(measured), z[0]),)

    return Bound(lambda measured: (jnp.full_like(measured, jnp.inf),), follow)


def inflection_point(every: int = 200, *, decay: float = 0.99) -> Bound:
    """Bound every group by its size when its growth slows down for the first time.

        R̄ ← β R̄ + (1 − β) R;  every n steps  d = R̄ − R̄ₙ  and  κ = R where d < the last d

    The running mean starts at 0, and the earliest decision is at step 4n, as in the authors' code.
    In force from the step after.

    Args:
        every: n >= 1, steps between two looks.
        decay: β in [0, 1).

    Returns:
        The bound.

    Raises:
        ValueError: n < 1, or β is outside [0, 1).

    Example:
        >>> inflection_point().start(jnp.array([4.0]))[0]
        Array([inf], dtype=float32)
    """
    check_range("every", every, 1)
    check_range("decay", decay, 0, 1)

    def start(measured: Any) -> Any:
        # arrays of their own: a donated state must not hold one buffer twice
        zeros = (jnp.zeros_like(measured) for _ in range(3))
        return jnp.full_like(measured, jnp.inf), *zeros

    def follow(measured: Any, count: Any, z: Any) -> Any:
        bound, mean, before, growth = z
        step = count + 1
        mean = decay * mean + (1 - decay) * measured
        looks = (step % every == 0) & (step > every)
        slower = looks & (step > 3 * every) & (mean - before < growth) & jnp.isinf(bound)
        return (
            jnp.where(slower, _positive(measured), bound),
            mean,
            jnp.where(looks, mean, before),
            jnp.where(looks, mean - before, growth),
        )

    return Bound(start, follow)


def check_range(name: str, value: Any, least: float, below: float = math.inf) -> None:
    """Raise unless a known number is in [least, below); traced values pass."""
    if isinstance(value, jax.core.Tracer):
        return
    is_number = hasattr(value, "dtype") or isinstance(value, int | float)
    if not (is_number and least <= float(value) < below):
        wanted = f"finite and >= {least:g}" if below == math.inf else f"in [{least:g}, {below:g})"
        raise ValueError(f"`{name}` must be {wanted}; got {value!r}.")
