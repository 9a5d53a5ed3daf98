"""Groups of a leaf: the axes along which one group extends, its sums and its length.

The other axes number the groups; `axes=None` is the whole leaf. All derivatives at 0 are 0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from wdjax._trees import checks

Axes: TypeAlias = int | Sequence[int] | None


def along(axes: Axes, ndim: int) -> tuple[int, ...] | None:
    """Return the axes as a tuple, or None for the whole leaf, or where a leaf lacks them.

    Leaves that do not decay may lack them, and the state has a place for these too.
    """
    wanted = (axes,) if isinstance(axes, int) else axes
    if wanted is None or not all(-ndim <= axis < ndim for axis in wanted):
        return None
    return tuple(wanted)


def check_axes(axes: Axes) -> None:
    """Raise unless the axes are None, an integer or a sequence of integers."""
    several = isinstance(axes, Sequence) and all(isinstance(axis, int) for axis in axes)
    fits, rule = (
        axes is None or isinstance(axes, int) or several,
        "be None, an axis or several axes",
    )
    advice = 'Under optax.inject_hyperparams pass static_args=("axes",).'
    checks.must("axes", fits, rule, repr(axes), advice, TypeError)


def total(x: jax.Array, axes: Axes) -> jax.Array:
    """Sum each group, whose axes stay with length 1."""
    return jnp.sum(x, axis=along(axes, x.ndim), keepdims=True)


def inner(a: jax.Array, b: jax.Array, axes: Axes) -> jax.Array:
    """⟨a, b⟩ of each group, real also for complex leaves."""
    return jnp.sum(product(a, b), axis=checked_axes(axes, a), keepdims=True)


def size(x: jax.Array, axes: Axes) -> int:
    """Count the entries of one group, at least 1 so that it can divide."""
    inside = along(axes, x.ndim)
    return max(1, x.size if inside is None else math.prod(x.shape[axis] for axis in inside))


@jax.custom_jvp
def root(x: jax.Array) -> jax.Array:
    """Return √x for x >= 0, with derivative 0 at 0."""
    return jnp.sqrt(x)


@root.defjvp
def _root_jvp(x: tuple[Any], tangent: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    y = root(*x)
    return y, ratio(*tangent, 2 * y)


def ratio(a: Any, b: Any) -> jax.Array:
    """Return a / b, and 0 where b is 0."""
    return jnp.where(b <= 0, 0, a / jnp.where(b <= 0, 1, b))


def abs2(z: jax.Array) -> jax.Array:
    """|z|², real also for complex z."""
    return jnp.real(z * jnp.conj(z))


def product(a: jax.Array, b: jax.Array) -> jax.Array:
    """Re(āb): the product of real numbers, the inner product of complex ones in the plane."""
    return jnp.real(jnp.conj(a) * b)


def soft_threshold(z: jax.Array, s: Any) -> jax.Array:
    """sign(z) max(|z| − s, 0), for complex z too."""
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - s, 0)


def absolute(z: jax.Array) -> jax.Array:
    """|z| with the derivative sign(z), which is 0 at 0 (JAX's own is 1 there)."""
    return jnp.where(z == 0, 0, jnp.abs(z))


def _once(formula: Callable[..., Any]) -> Callable[[jax.Array, Axes], Any]:
    """Trace formula(z, axes) once for each shape and dtype, and not for each leaf."""
    traced = jax.jit(formula, static_argnums=1)
    return functools.wraps(formula)(lambda z, axes: traced(z, checked_axes(axes, z)))


@_once
def norm(z: jax.Array, axes: Axes) -> jax.Array:
    """‖z‖₂ over `axes`, kept as axes of length 1; its derivative at 0 is 0, not NaN."""
    return root(jnp.sum(abs2(z), axis=axes, keepdims=True))


@_once
def scaled(z: jax.Array, axes: Axes) -> jax.Array:
    """Return z / t with t near max|z|, so that squares and products neither under- nor overflow."""
    return _scaled(z, axes)[0]


def _scaled(z: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Return z / t and t, which is max|z|, for complex z a quarter of it, or ∞ where that is 0."""
    # a quarter, because 1/t of the largest numbers would be subnormal and count as 0
    top = jnp.max(jnp.abs(z), axis=axes, keepdims=True, initial=0) / 4
    top = jnp.where(top == 0, jnp.inf, top)
    if jnp.iscomplexobj(z):  # a complex division overflows
        return z * (1 / top), top
    # not by 1/t: of that XLA makes z² (1/t)² later on, which is ∞ or 0
    return z / 4 / top, 4 * top


@functools.partial(jax.jit, static_argnums=1)
def _is_longer(z: jax.Array, axes: Axes, length: Any) -> jax.Array:
    small, t = _scaled(z, axes)
    longer: jax.Array = norm(small, axes) > length / t
    return longer


def is_longer(z: jax.Array, axes: Axes, length: Any) -> jax.Array:
    """Whether ‖z‖ > length, whatever the size of z."""
    longer: jax.Array = _is_longer(z, checked_axes(axes, z), length)
    return longer


def deviations(z: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """z̄ and z − z̄, which is 0 exactly in a group of equal numbers."""
    along = checked_axes(axes, z)
    count = max(1, math.prod(z.shape[axis] for axis in along))

    def mean_of(x: jax.Array) -> jax.Array:
        return jnp.sum(x, axis=along, keepdims=True) / count

    rough = jax.lax.stop_gradient(mean_of(z))
    near = z - rough  # what rounding leaves of the mean of many numbers is taken off, too
    mean = rough + mean_of(near)
    rest = near - mean_of(near)
    noise = 16 * float(jnp.finfo(z.dtype).eps) * jnp.abs(mean)  # type: ignore[no-untyped-call]
    largest = jnp.max(jnp.abs(rest), axis=along, keepdims=True, initial=0)
    return mean, jnp.where(largest <= noise, 0, rest)


@_once
def direction(z: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """N(z) = z/‖z‖, whatever the size of z, and whether there is one: N(0) = 0."""
    small, _ = _scaled(z, axes)
    # at least 1, which is the largest entry, or 0 where there is nothing but zeros
    square = jnp.sum(abs2(small), axis=axes, keepdims=True)
    return small / jnp.sqrt(jnp.maximum(square, 1)), square > 0


def unit(z: jax.Array, axes: Axes) -> jax.Array:
    """N(z) = z/‖z‖, and 0 where z = 0, whatever the size of z."""
    found: jax.Array = direction(z, axes)[0]
    return found


def checked_axes(axes: Axes, z: jax.Array) -> tuple[int, ...]:
    """Return the axes as non-negative numbers, or raise where the leaf has no such axis."""
    if axes is None:
        return tuple(range(z.ndim))
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)
    checks.must(
        "axes",
        all(-z.ndim <= axis < z.ndim for axis in wanted),
        "be axes of every penalized leaf",
        f"{axes!r} for a leaf of shape {z.shape}",
        "Restrict the penalty by `rules`, or use axes=None for the whole leaf.",
    )
    return tuple(axis % z.ndim for axis in wanted)
