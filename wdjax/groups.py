"""Groups of a leaf: the axes along which one group extends, its sums and its length.

The other axes number the groups; `axes=None` is the whole leaf. All derivatives at 0 are 0.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

Axes: TypeAlias = int | Sequence[int] | None


def along(axes: Axes, ndim: int) -> tuple[int, ...] | None:
    """Return the axes as a tuple; None, the whole leaf, also where a leaf has no such axes.

    A leaf that rules leave alone may lack them; the state has a place for it all the same.
    """
    wanted = (axes,) if isinstance(axes, int) else axes
    if wanted is None or not all(-ndim <= axis < ndim for axis in wanted):
        return None
    return tuple(wanted)


def check_axes(axes: Axes) -> None:
    """Raise unless the axes are None, an integer or a sequence of integers."""
    several = isinstance(axes, Sequence) and all(isinstance(axis, int) for axis in axes)
    if not (axes is None or isinstance(axes, int) or several):
        raise TypeError(
            f"`axes` must be None, an axis or a sequence of axes; got {axes!r}. "
            'Under optax.inject_hyperparams name it: static_args=("axes",).'
        )


def total(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum each group, whose axes stay with length 1."""
    return jnp.sum(x, axis=along(axes, x.ndim), keepdims=True)


def size(x: jax.Array, axes: Axes) -> int:
    """Count the entries of one group, at least 1 so that it can divide."""
    inside = along(axes, x.ndim)
    return max(1, x.size if inside is None else math.prod(x.shape[axis] for axis in inside))


def root(x: jax.Array) -> jax.Array:
    """Return √x, with derivative 0 at 0."""
    return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)


def ratio(a: Any, b: Any) -> jax.Array:
    """Return a / b, and 0 where b is 0."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def abs2(z: jax.Array) -> jax.Array:
    """|z|², real also for complex z."""
    return jnp.real(z * jnp.conj(z))


def absolute(z: jax.Array) -> jax.Array:
    """|z| with the derivative sign(z), which is 0 at 0 (JAX's own is 1 there)."""
    return jnp.where(z == 0, 0, jnp.abs(z))


def norm(z: jax.Array, axes: Axes) -> jax.Array:
    """‖z‖₂ over `axes`, kept as axes of length 1; its derivative at 0 is 0, not NaN."""
    return root(jnp.sum(abs2(z), axis=checked_axes(axes, z), keepdims=True))


def scaled(z: jax.Array, axes: Axes) -> jax.Array:
    """Return z / max|z|, so that squares and products neither underflow nor overflow."""
    top = jnp.max(jnp.abs(z), axis=checked_axes(axes, z), keepdims=True, initial=0)
    return z / jnp.where(top > 0, top, 1)


def unit(z: jax.Array, axes: Axes) -> jax.Array:
    """N(z) = z/‖z‖, and 0 where z = 0, whatever the size of z."""
    z = scaled(z, axes)
    length = norm(z, axes)
    return z / jnp.where(length > 0, length, 1)


def checked_axes(axes: Axes, z: jax.Array) -> tuple[int, ...]:
    """Return the axes as non-negative numbers, or raise where the leaf has no such axis."""
    if axes is None:
        return tuple(range(z.ndim))
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in wanted:
        if not -z.ndim <= axis < z.ndim:
            raise ValueError(
                f"`axes` must be axes of every penalised leaf; got {axes!r} for a leaf of shape "
                f"{z.shape}. Restrict the penalty by `rules`, or use axes=None for the whole leaf."
            )
    return tuple(axis % z.ndim for axis in wanted)
