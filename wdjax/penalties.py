"""R: towards what shape the parameters are pulled.

A `Penalty` is a record of pure functions of one leaf z (the displacement from the anchor): value
R(z), gradient ∂R(z), and proximal map prox_{sR}(z) = argmin_x ½‖x − z‖² + s R(x). A constraint
has only its prox: the projection. The convention throughout: `l2` is ½‖θ‖², so λ multiplies θ.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from wdjax.leafwise import widened
from wdjax.rules import Rules, resolve, standard

Axes = int | Sequence[int] | None
STANDARD = standard()


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty R on one leaf, as pure functions.

    Attributes:
        name: how messages and tables call it.
        prox: (z, s) -> argmin_x ½‖x − z‖² + s R(x), same shape as z.
        value: z -> R(z), a scalar; None for a constraint.
        gradient: z -> ∂R(z), same shape as z, 0 at z = 0; None for a constraint.
        curvature: the largest second derivative of R. An explicit step with
            s · curvature >= 1 jumps over the minimum and flips signs.

    Example:
        >>> l2.prox(jnp.array([3.0, -1.0]), 0.5)
        Array([ 2.        , -0.6666667], dtype=float32)
        >>> l1.prox(jnp.array([3.0, -1.0, 0.2]), 0.5)
        Array([ 2.5, -0.5,  0. ], dtype=float32)
    """

    name: str
    prox: Callable[[jax.Array, Any], jax.Array]
    value: Callable[[jax.Array], jax.Array] | None = None
    gradient: Callable[[jax.Array], jax.Array] | None = None
    curvature: float = 0.0

    def __repr__(self) -> str:
        return f"<penalty {self.name}>"


def _abs2(z: jax.Array) -> jax.Array:
    """|z|², real also for complex z."""
    return jnp.real(z * jnp.conj(z))


def _abs(z: jax.Array) -> jax.Array:
    """|z| with the derivative sign(z), which is 0 at 0 (JAX's own is 1 there)."""
    return jnp.where(z == 0, 0, jnp.abs(z))


def _norm(z: jax.Array, axes: Axes) -> jax.Array:
    """‖z‖₂ over `axes`, kept as axes of length 1; its derivative at 0 is 0, not NaN."""
    squared = jnp.sum(_abs2(z), axis=_checked(axes, z), keepdims=True)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1)), 0)


def _checked(axes: Axes, z: jax.Array) -> tuple[int, ...] | None:
    """Return the axes as non-negative numbers, or raise where the leaf has no such axis."""
    if axes is None:
        return None
    wanted = (axes,) if isinstance(axes, int) else tuple(axes)
    for axis in wanted:
        if not -z.ndim <= axis < z.ndim:
            raise ValueError(
                f"`axes` must be axes of every penalised leaf; got {axes!r} for a leaf of shape "
                f"{z.shape}. Restrict the penalty by `rules`, or use axes=None for the whole leaf."
            )
    return tuple(axis % z.ndim for axis in wanted)


def _shrink_factor(norm: jax.Array, s: Any) -> jax.Array:
    """max(1 − s/‖z‖, 0), and 0 at ‖z‖ = 0."""
    return jnp.where(norm > s, 1 - s / jnp.where(norm > 0, norm, 1), 0)


def _soft_threshold(z: jax.Array, s: Any) -> jax.Array:
    """sign(z) max(|z| − s, 0), for complex z too."""
    return jnp.sign(z) * jnp.maximum(jnp.abs(z) - s, 0)


l2 = Penalty(
    name="l2",
    value=lambda z: jnp.sum(_abs2(z)) / 2,
    gradient=lambda z: z,
    prox=lambda z, s: z / (1 + s),
    curvature=1.0,
)
"""Ridge, weight decay: ½‖z‖².

    R(z) = ½ Σ z²      ∂R(z) = z      prox(z, s) = z / (1 + s)

References:
    Hoerl and Kennard, *Ridge Regression*, 1970; Krogh and Hertz, *A Simple Weight Decay Can
    Improve Generalization*, 1991.
"""

l1 = Penalty(
    name="l1",
    value=lambda z: jnp.sum(_abs(z)),
    gradient=jnp.sign,
    prox=_soft_threshold,
)
"""Lasso: ‖z‖₁. Its prox sets small entries to exactly zero; its gradient step does not.

    R(z) = Σ |z|      ∂R(z) = sign(z), 0 at 0      prox(z, s) = sign(z) max(|z| − s, 0)

References:
    Tibshirani, *Regression Shrinkage and Selection via the Lasso*, 1996.
"""


def elastic_net(l1_ratio: float) -> Penalty:
    """Mixture of `l1` and `l2`.

        R(z) = r ‖z‖₁ + (1 − r) ½‖z‖²      prox(z, s) = S(z, s r) / (1 + s (1 − r))

    S is the soft threshold. This is scikit-learn's parametrisation.

    Args:
        l1_ratio: r in [0, 1]; 1 is `l1`, 0 is `l2`.

    Returns:
        The penalty.

    Raises:
        ValueError: r is outside [0, 1].

    Example:
        >>> elastic_net(0.5).prox(jnp.array([2.0, -0.2]), 1.0)
        Array([ 1., -0.], dtype=float32)

    References:
        Zou and Hastie, *Regularization and Variable Selection via the Elastic Net*, 2005.
    """
    r = l1_ratio
    if not 0 <= r <= 1:
        raise ValueError(f"`l1_ratio` must be in [0, 1]; got {r}.")
    return Penalty(
        name=f"elastic_net({r:g})",
        value=lambda z: r * jnp.sum(_abs(z)) + (1 - r) * jnp.sum(_abs2(z)) / 2,
        gradient=lambda z: r * jnp.sign(z) + (1 - r) * z,
        prox=lambda z, s: _soft_threshold(z, s * r) / (1 + s * (1 - r)),
        curvature=1 - r,
    )


def group_lasso(axes: Axes = None) -> Penalty:
    """Sum of the Euclidean norms of groups: whole groups become exactly zero.

        R(z) = Σ_G ‖z_G‖      ∂R(z)_G = z_G / ‖z_G‖, 0 at 0
        prox(z, s)_G = z_G max(1 − s/‖z_G‖, 0)

    No factor √|G|: groups of one leaf have equal size, put it into the multiplier if wanted.

    Args:
        axes: the axes along which one group extends; the other axes number the groups. For a
            kernel (in, out), axes=0 makes one group of each output neuron's weights, axes=1 one
            of each input's. None: the whole leaf is one group.

    Returns:
        The penalty.

    Raises:
        ValueError: at trace, a penalised leaf has no such axis.

    Example:
        >>> group_lasso(axes=1).prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        Array([[2.4, 3.2],
               [0. , 0. ]], dtype=float32)

    References:
        Yuan and Lin, *Model Selection and Estimation in Regression with Grouped Variables*, 2006.
    """

    def gradient(z: jax.Array) -> jax.Array:
        norm = _norm(z, axes)
        return z / jnp.where(norm > 0, norm, 1)

    return Penalty(
        name=f"group_lasso(axes={axes})",
        value=lambda z: jnp.sum(_norm(z, axes)),
        gradient=gradient,
        prox=lambda z, s: z * _shrink_factor(_norm(z, axes), s),
    )


def huber(delta: float) -> Penalty:
    """Quadratic near zero, linear beyond δ: large weights are pulled with bounded force.

        R(z) = Σ ½z² where |z| <= δ, else δ|z| − ½δ²      ∂R(z) = clip(z, −δ, δ)
        prox(z, s) = z / (1 + s) where |z| <= (1 + s) δ, else z − s δ sign(z)

    Args:
        delta: δ > 0, in units of the weights.

    Returns:
        The penalty.

    Raises:
        ValueError: δ <= 0.

    Example:
        >>> huber(1.0).prox(jnp.array([0.5, 4.0]), 1.0)
        Array([0.25, 3.  ], dtype=float32)

    References:
        Guo and Fan, *AdamHD: Decoupled Huber Decay Regularization*, 2025, arXiv:2511.14721.
    """
    if not delta > 0:
        raise ValueError(f"`delta` must be > 0, in units of the weights; got {delta}.")

    def value(z: jax.Array) -> jax.Array:
        size = jnp.abs(z)
        return jnp.sum(jnp.where(size <= delta, size**2 / 2, delta * size - delta**2 / 2))

    def gradient(z: jax.Array) -> jax.Array:
        return jnp.sign(z) * jnp.minimum(jnp.abs(z), delta)

    def prox(z: jax.Array, s: Any) -> jax.Array:
        inside = jnp.abs(z) <= (1 + s) * delta
        return jnp.where(inside, z / (1 + s), z - s * delta * jnp.sign(z))

    return Penalty(f"huber({delta:g})", prox=prox, value=value, gradient=gradient, curvature=1.0)


# Constraints: only a prox, which is the projection wherever the strength is positive.


def _constraint(name: str, project: Callable[[jax.Array], jax.Array]) -> Penalty:
    # A strength of zero switches the constraint off: 0 · ∞ counts as 0.
    return Penalty(name, prox=lambda z, s: jnp.where(s > 0, project(z), z))


def ball(radius: float, axes: Axes = None) -> Penalty:
    """Max-norm constraint: no group's Euclidean norm exceeds the radius.

        prox(z, s)_G = z_G min(1, r / ‖z_G‖) for s > 0, else z_G

    Args:
        radius: r > 0, in units of the weights.
        axes: as in `group_lasso`; for a kernel (in, out), axes=0 bounds each output neuron.

    Returns:
        The constraint.

    Raises:
        ValueError: r <= 0, or at trace, a leaf has no such axis.

    Example:
        >>> ball(1.0, axes=1).prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        Array([[0.6, 0.8],
               [0.3, 0.4]], dtype=float32)

    References:
        Srivastava et al., *Dropout*, 2014, section 5.1 (max-norm regularization).
    """
    _check_radius(radius)

    def project(z: jax.Array) -> jax.Array:
        norm = _norm(z, axes)
        return z * jnp.where(norm > radius, radius / jnp.where(norm > 0, norm, 1), 1)

    return _constraint(f"ball({radius:g}, axes={axes})", project)


def sphere(radius: float, axes: Axes = None) -> Penalty:
    """Fixed-norm constraint: every group's Euclidean norm equals the radius.

        prox(z, s)_G = r z_G / ‖z_G‖ for s > 0, else z_G

    A group of zeros has no direction and stays zero.

    Args:
        radius: r > 0, in units of the weights.
        axes: as in `group_lasso`.

    Returns:
        The constraint.

    Raises:
        ValueError: r <= 0, or at trace, a leaf has no such axis.

    Example:
        >>> sphere(1.0, axes=1).prox(jnp.array([[3.0, 4.0], [0.0, 0.0]]), 1.0)
        Array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)

    References:
        Salimans and Kingma, *Weight Normalization*, 2016, arXiv:1602.07868, equation 2 with
        fixed g.
    """
    _check_radius(radius)

    def project(z: jax.Array) -> jax.Array:
        norm = _norm(z, axes)
        return z * jnp.where(norm > 0, radius / jnp.where(norm > 0, norm, 1), 1)

    return _constraint(f"sphere({radius:g}, axes={axes})", project)


def _check_radius(radius: float) -> None:
    if not 0 < radius < math.inf:
        raise ValueError(f"`radius` must be a finite number > 0; got {radius}.")


def penalty_value(penalty: Penalty, params: chex.ArrayTree, rules: Rules = STANDARD) -> jax.Array:
    """Sum of a penalty over the parameters, for losses and reports.

        Σ_leaves m R(θ)

    Args:
        penalty: R.
        params: pytree of arrays.
        rules: which parameters count, and how much; the default is `standard()`.

    Returns:
        A scalar, float32 or wider.

    Raises:
        RuleError: a rule or a leaf is wrong.
        TypeError: `penalty` is a constraint and has no value.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([7.0])}
        >>> float(penalty_value(l2, params))
        12.5

    References:
        The λ-free part of the penalised objective; Goodfellow et al., *Deep Learning*, 2016,
        equation 7.1 (Ω).
    """
    if penalty.value is None:
        raise TypeError(
            f"`penalty` must have a value; got the constraint {penalty.name}, which has only a "
            "projection."
        )
    multipliers = jax.tree.leaves(resolve(rules, params))
    values: list[jax.Array] = [
        m * penalty.value(widened(param))
        for m, param in zip(multipliers, jax.tree.leaves(params), strict=True)
        if not (isinstance(m, float) and m == 0)  # a traced multiplier is never left out
    ]
    total: jax.Array = sum(values, start=jnp.zeros((), jnp.float32))
    return total
