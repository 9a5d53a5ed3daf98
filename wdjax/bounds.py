"""Constraints R(θ) <= κ for `adaptive.cpr`: measures R, and where the bound κ comes from.

A measure is a function of one leaf and the axes of its groups; a `Bound` is a small record of two
pure functions, and the functions that build one say how κ is found.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wdjax._trees import checks, groups
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
        R and its gradient. Without a factor ½, a multiplier μ decays by the fraction 2μ.

    Example:
        >>> sum_squares(jnp.array([1.0, 2.0])).gradient
        Array([2., 4.], dtype=float32)
    """
    groups.check_axes(axes)
    return Measured(groups.total(z * z, axes), 2 * z, groups.size(z, axes), 0.5)


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
    groups.check_axes(axes)
    n = groups.size(z, axes)
    _, centered = groups.deviations(z, groups.along(axes, z.ndim))
    value = groups.root(groups.total(centered * centered, axes) / max(1, n - 1))
    return Measured(value, groups.ratio(centered, max(1, n - 1) * value), 1, max(1, n - 1) * value)


class Bound(NamedTuple):
    """Where κ comes from, for one leaf; z = (κ, ...) is what the bound remembers.

    κ = ∞ says that there is none yet. A group whose R is 0 at the time gets none.

    Attributes:
        start: R(θ₀) -> z.
        follow: (R, count, z) -> z, called after each step with the R of the candidate.
    """

    start: Callable[[jax.Array], tuple[jax.Array, ...]]
    follow: Callable[[jax.Array, jax.Array, tuple[jax.Array, ...]], tuple[jax.Array, ...]]


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
    checks.number("value", value, least=0)

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
    checks.number("factor", factor, least=0)

    def of_start(measured: Any) -> Any:
        return jnp.where(measured > 0, factor * measured, jnp.inf)

    # R(θ₀) itself is kept too, for the factor of a restored run may be another
    return Bound(
        lambda measured: (of_start(measured), measured),
        lambda measured, count, z: (of_start(z[1]), z[1]),
    )
