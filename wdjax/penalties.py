"""R: towards what shape the parameters are pulled.

A `Penalty` is a record of pure functions of one leaf z (the displacement from the anchor): value
R(z), gradient ∂R(z), and proximal map prox_{sR}(z) = argmin_x ½‖x − z‖² + s R(x), the global
minimizer where R is not convex. A constraint has only its prox: the projection. The convention
throughout: `l2` is ½‖θ‖², so λ multiplies θ. Penalties of matrices are in `wdjax.matrices`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax import stacking
from wdjax._lift.leaves import Params, is_off, warn_if_idle, widened
from wdjax._trees import checks
from wdjax._trees.groups import (
    Axes,
    abs2,
    absolute,
    check_axes,
    checked_axes,
    deviations,
    is_longer,
    norm,
    size,
    soft_threshold,
    unit,
)
from wdjax.rules import STANDARD, Rules, check_rules, ruled


@dataclasses.dataclass(frozen=True)
class Penalty:
    """A penalty R on one leaf, as pure functions.

    Attributes:
        name: how messages and tables call it.
        prox: (z, s) -> argmin_x ½‖x − z‖² + s R(x), same shape as z; None where R has no
            closed one.
        value: z -> R(z), a scalar; None for a constraint.
        gradient: z -> ∂R(z), same shape as z, 0 at z = 0; None for a constraint, and where it
            is unbounded.
        curvature: the largest second derivative of R. An explicit step with
            s · curvature >= 1 jumps over the minimum and flips signs. 0 where there is no bound.
        separable: R is a sum over entries, and prox takes an s of z's shape, too.

    Example:
        >>> l2.prox(jnp.array([3.0, -1.0]), 0.5)
        Array([ 2.        , -0.6666667], dtype=float32)
        >>> l1.prox(jnp.array([3.0, -1.0, 0.2]), 0.5)
        Array([ 2.5, -0.5,  0. ], dtype=float32)
    """

    name: str
    prox: Callable[[jax.Array, Any], jax.Array] | None
    value: Callable[[jax.Array], jax.Array] | None = None
    gradient: Callable[[jax.Array], jax.Array] | None = None
    curvature: float = 0.0
    separable: bool = False

    def __repr__(self) -> str:
        return f"<penalty {self.name}>"

    @classmethod
    def constraint(cls, name: str, project: Callable[[jax.Array], jax.Array]) -> "Penalty":
        """Make a constraint of its projection; a strength of 0 switches it off: 0 · ∞ is 0."""
        return cls(name, prox=lambda z, s: jnp.where(s > 0, project(z), z))


def _shrink_factor(length: jax.Array, s: Any) -> jax.Array:
    """max(1 − s/‖z‖, 0), and 1 for s = 0, also where squares underflow."""
    return jnp.where((length <= s) & (s > 0), 0, 1 - s / jnp.where(length == 0, 1, length))


l2 = Penalty(
    name="l2",
    value=lambda z: jnp.sum(abs2(z)) / 2,
    gradient=lambda z: z,
    prox=lambda z, s: z / (1 + s),
    curvature=1.0,
    separable=True,
)
"""Ridge, weight decay: ½‖z‖².

    R(z) = ½ Σ z²      ∂R(z) = z      prox(z, s) = z / (1 + s)

References:
    Hoerl and Kennard, *Ridge Regression*, 1970; Krogh and Hertz, *A Simple Weight Decay Can
    Improve Generalization*, 1991.
"""

l1 = Penalty(
    name="l1",
    value=lambda z: jnp.sum(absolute(z)),
    gradient=jnp.sign,
    prox=soft_threshold,
    separable=True,
)
"""Lasso: ‖z‖₁. Its prox sets small entries to exactly zero; its gradient step does not.

    R(z) = Σ |z|      ∂R(z) = sign(z), 0 at 0      prox(z, s) = sign(z) max(|z| − s, 0)

References:
    Tibshirani, *Regression Shrinkage and Selection via the Lasso*, 1996.
"""


def elastic_net(l1_ratio: float) -> Penalty:
    """Mixture of `l1` and `l2`.

        R(z) = r ‖z‖₁ + (1 − r) ½‖z‖²      prox(z, s) = S(z, s r) / (1 + s (1 − r))

    S is the soft threshold. This is scikit-learn's parametrization.

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
    checks.number("l1_ratio", l1_ratio, least=0, most=1)
    r = l1_ratio
    return Penalty(
        name=f"elastic_net({r:g})",
        value=lambda z: r * jnp.sum(absolute(z)) + (1 - r) * jnp.sum(abs2(z)) / 2,
        gradient=lambda z: r * jnp.sign(z) + (1 - r) * z,
        prox=lambda z, s: soft_threshold(z, s * r) / (1 + s * (1 - r)),
        curvature=1 - r,
        separable=True,
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
        ValueError: at trace, a penalized leaf has no such axis.
        TypeError: `axes` is not an axis or several.

    Example:
        >>> group_lasso(axes=1).prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        Array([[2.4, 3.2],
               [0. , 0. ]], dtype=float32)

    References:
        Yuan and Lin, *Model Selection and Estimation in Regression with Grouped Variables*, 2006.
    """
    check_axes(axes)
    return Penalty(
        name=f"group_lasso(axes={axes})",
        value=lambda z: jnp.sum(norm(z, axes)),
        gradient=lambda z: unit(z, axes),
        prox=lambda z, s: z * _shrink_factor(norm(z, axes), s),
    )


def cubic(axes: Axes = None, *, least: float = 0.0) -> Penalty:
    """Decay relative to the size of the weights: every group is pulled at the rate of its RMS.

        R(z) = Σ_G |G| h(RMS(z_G))      h(x) = x³/3 + ε³/6, ε x²/2 below ε
        ∂R(z)_G = max(ε, RMS(z_G)) z_G
        prox(z, s)_G = z_G / (1 + s q),  q = max(ε, 2 r / (1 + √(1 + 4 s r))),  r = RMS(z_G)

    This is what Adafactor's implementations with relative steps decay by: their step, decay
    included, is multiplied by max(ε, RMS(θ)). With ε = 0 it is ‖z_G‖³ / (3 √|G|).

    Args:
        axes: as in `group_lasso`; None: the whole leaf is one group, as in Adafactor.
        least: ε >= 0, the RMS below which a group is pulled as by ε `l2`; Adafactor's is 1e-3.

    Returns:
        The penalty. An explicit step flips signs where s RMS(z_G) > 1.

    Raises:
        ValueError: ε is negative or not finite; at trace, a penalized leaf has no such axis.
        TypeError: ε is not a number, or `axes` not an axis or several.

    Example:
        >>> cubic().gradient(jnp.array([0.2, -0.2]))
        Array([ 0.04, -0.04], dtype=float32)

    References:
        Shazeer and Stern, *Adafactor: Adaptive Learning Rates with Sublinear Memory Cost*, 2018,
        arXiv:1804.04235, section 8 (relative steps, ε₂); Nesterov and Polyak, *Cubic
        Regularization of Newton Method and its Global Performance*, 2006 (the penalty).
    """
    check_axes(axes)
    checks.number("least", least, least=0)

    def rms(z: jax.Array) -> jax.Array:
        found: jax.Array = norm(z, axes) / math.sqrt(size(z, axes))
        return found

    def value(z: jax.Array) -> jax.Array:
        x = rms(z)
        h: jax.Array = jnp.where(x < least, least * x**2 / 2, x**3 / 3 + least**3 / 6)
        return jnp.sum(size(z, axes) * h)

    def prox(z: jax.Array, s: Any) -> jax.Array:
        r = rms(z)
        q = jnp.maximum(least, 2 * r / (1 + jnp.sqrt(1 + 4 * s * r)))
        left: jax.Array = z / (1 + s * q)
        return left

    return Penalty(
        name=f"cubic(axes={axes})",
        value=value,
        gradient=lambda z: jnp.maximum(least, rms(z)) * z,
        prox=prox,
    )


def spread(axes: Axes = None) -> Penalty:
    """Standard deviation of a group: entries are pulled to their mean, not to zero.

        R(z) = Σ_G √(Σ (z − z̄)² / (n − 1))      ∂R(z)_G = (z − z̄) / ((n − 1) std), 0 at std = 0
        prox(z, s)_G = z̄ + (z − z̄) max(1 − s / (√(n − 1) ‖z − z̄‖), 0)

    n is the size of a group; one of a single entry has no spread and stays as it is.

    Args:
        axes: as in `group_lasso`.

    Returns:
        The penalty.

    Raises:
        ValueError: at trace, a penalized leaf has no such axis.
        TypeError: `axes` is not an axis or several.

    Example:
        >>> spread().prox(jnp.array([1.0, 2.0, 3.0]), 1.0)
        Array([1.5, 2. , 2.5], dtype=float32)

    References:
        Franke et al., *Improving Deep Learning Optimization through Constrained Parameter
        Regularization*, 2024, arXiv:2311.09058.
    """
    check_axes(axes)

    def parts(z: jax.Array) -> tuple[jax.Array, jax.Array, float]:
        n = math.prod(z.shape[axis] for axis in checked_axes(axes, z))
        return *deviations(z, axes), math.sqrt(max(n - 1, 1))

    def value(z: jax.Array) -> jax.Array:
        _, rest, root = parts(z)
        return jnp.sum(norm(rest, axes)) / root

    def gradient(z: jax.Array) -> jax.Array:
        _, rest, root = parts(z)
        return unit(rest, axes) / root

    def prox(z: jax.Array, s: Any) -> jax.Array:
        mean, rest, root = parts(z)
        left = _shrink_factor(norm(rest, axes), s / root)
        return jnp.where(left == 0, mean, z - rest * (1 - left))

    return Penalty(f"spread(axes={axes})", prox, value, gradient)


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
    checks.number("delta", delta, above=0)

    def value(z: jax.Array) -> jax.Array:
        size = jnp.abs(z)
        return jnp.sum(jnp.where(size <= delta, size**2 / 2, delta * size - delta**2 / 2))

    def gradient(z: jax.Array) -> jax.Array:
        return jnp.sign(z) * jnp.minimum(jnp.abs(z), delta)

    def prox(z: jax.Array, s: Any) -> jax.Array:
        inside = jnp.abs(z) <= (1 + s) * delta
        return jnp.where(inside, z / (1 + s), z - s * delta * jnp.sign(z))

    return Penalty(f"huber({delta:g})", prox, value, gradient, curvature=1.0, separable=True)


def p_norm(p: float, floor: float = 1e-3) -> Penalty:
    """Power of the size, smoothed below a floor: p < 1 prunes, p = 1 is lasso, p = 2 is 2 · ridge.

        R(z) = Σ |z|ᵖ − (1 − p/2) fᵖ where |z| >= f, else (p/2) fᵖ⁻² z²
        ∂R(z) = p z max(|z|, f)ᵖ⁻²
        prox(z, s) solves x + s p x max(|x|, f)ᵖ⁻² = z, by Newton's method in log x

    Not the convention of `l2`: λ multiplies ‖θ‖ₚᵖ, so p = 2 is decay with 2λ. The published step
    θ⁺ = c X / (X + p s), X = |θ|²⁻ᵖ, takes a quadratic bound of R at the old θ instead of R. There
    θ = 0 is absorbing for p < 2: zero-initialized biases, adapters and gates never move. Here the
    prox of the candidate itself is exact, and zero is left as soon as a step is large enough.

    Args:
        p: the power, in (0, 2].
        floor: f > 0, in units of the weights. The pull on smaller ones is linear, so they fade
            geometrically and never become exactly zero (`l_half` and `l0` do that). The explicit
            form needs s p fᵖ⁻² < 1.

    Returns:
        The penalty; not convex for p < 1.

    Raises:
        ValueError: p is outside (0, 2], or f is not a finite number > 0, or too small.

    Example:
        >>> p_norm(2.0).prox(jnp.array([3.0, -1.0]), 0.5)
        Array([ 1.5, -0.5], dtype=float32)
        >>> p_norm(1.5).prox(jnp.array([0.0, 4.0]), 2.0)
        Array([0., 1.], dtype=float32)

    References:
        Outmezguine and Levi, *Decoupled Weight Decay for Any p Norm*, 2024, arXiv:2404.10824.
    """
    checks.number("p", p, above=0, most=2)
    checks.number("floor", floor, above=0)

    dtype = jnp.result_type(float)
    if math.log(p) + (p - 2) * math.log(floor) > math.log(np.finfo(dtype).max):
        raise ValueError(
            f"`floor` must be larger: {dtype} cannot hold p fᵖ⁻², the steepest pull; got {floor}."
        )
    steepest = p * floor ** (p - 2)

    def pull(x: Any) -> Any:
        """∂R(x) / x."""
        return p * jnp.maximum(x, floor) ** (p - 2)

    def values(size: Any) -> Any:
        power = jnp.maximum(size, floor) ** p - (1 - p / 2) * floor**p
        return jnp.where(size < floor, steepest / 2 * size**2, power)

    def prox(z: jax.Array, s: Any) -> jax.Array:
        size = jnp.abs(z)

        def sum_of_pulls(x: Any) -> Any:
            return x * (1 + s * pull(x))

        def cost(x: Any) -> Any:
            return (x - size) ** 2 / 2 + s * values(x)

        # beyond the turning point the sum of pulls grows, and one root at most is left
        turn = (s * p * (1 - p)) ** (1 / (2 - p)) if p < 1 else 0.0
        least = jax.lax.stop_gradient(jnp.maximum(floor, turn))
        large = _largest_root(size, s, p, least)
        small = size / (1 + s * steepest)
        only_large = size > sum_of_pulls(floor)
        is_large = (size > sum_of_pulls(least)) & (only_large | (cost(large) < cost(small)))
        return jnp.sign(z) * jnp.where(is_large, large, small)

    return Penalty(
        f"p_norm({p:g}, floor={floor:g})",
        prox=prox,
        value=lambda z: jnp.sum(values(absolute(z))),
        gradient=lambda z: z * pull(jnp.abs(z)),
        curvature=steepest,
        separable=True,
    )


@jax.jit  # outside jit, too, the loop is then compiled once per shape
def _largest_root(size: jax.Array, s: Any, p: Any, least: Any) -> jax.Array:
    """Solve x + s p xᵖ⁻¹ = size for the largest x >= least."""
    rounding = jnp.finfo(size.dtype).eps  # type: ignore[no-untyped-call]
    top = jnp.maximum(size, least)

    def newton(x: Any, size: Any, s: Any) -> Any:
        # in log x the left side is a sum of exponentials: convex, so steps from above stay above
        pull = s * p * x ** (p - 2)
        slope = 1 + (p - 1) * pull
        return (1 + pull - size / x) / jnp.where(slope > rounding, slope, 1)

    def step(_: Any, x: Any) -> Any:
        return jnp.clip(x * jnp.exp(-newton(x, *known)), least, top)

    known = jax.lax.stop_gradient((size, s))
    x = jax.lax.fori_loop(0, 12, step, jax.lax.stop_gradient(top) + jnp.zeros_like(size * s))
    # the last step carries the derivatives: dx = −dF / F'
    return jnp.maximum(x - x * newton(x, size, s), 0)


# Not convex: large entries are pulled less or not at all. Each prox is the global minimizer.


def _hard_threshold(z: jax.Array, least: Any) -> jax.Array:
    return jnp.where(jnp.abs(z) <= least, 0, z)


l0 = Penalty(
    name="l0",
    value=lambda z: jnp.sum(jnp.where(jnp.isnan(z), jnp.nan, z != 0), dtype=jnp.float32),
    prox=lambda z, s: _hard_threshold(z, jnp.sqrt(2 * s)),
    separable=True,
)
"""The number of entries that are not zero. Its prox removes small ones and leaves the rest.

    R(z) = Σ 1[z ≠ 0]      prox(z, s) = z where |z| > √(2s), else 0

References:
    Blumensath and Davies, *Iterative Thresholding for Sparse Approximations*, 2008; Yun, Lozano
    and Yang, *Adaptive Proximal Gradient Methods for Structured Neural Networks*, 2021.
"""


def _half_threshold(z: jax.Array, s: Any) -> jax.Array:
    size = jnp.abs(z)
    cut = size <= 1.5 * jnp.cbrt(s) ** 2
    safe = jnp.where(cut, 1, size)
    cosine = jnp.where(cut, 0, -(27**0.5) / 4 * (s / safe) / jnp.sqrt(safe))
    shrunk = z * (2 / 3 * (1 + jnp.cos(2 / 3 * jnp.arccos(cosine))))
    return jnp.where(cut, 0, jnp.where(s == 0, z, shrunk))


l_half = Penalty(
    name="l_half",
    value=lambda z: jnp.sum(jnp.sqrt(jnp.where(z == 0, 1, jnp.abs(z))) - (z == 0)),
    prox=_half_threshold,
    separable=True,
)
"""Square roots: sparser than `l1`, and large entries are pulled less.

    R(z) = Σ √|z|
    prox(z, s) = ⅔ z (1 + cos(⅔ arccos(−(3√3/4) s |z|^(−3/2)))) where |z| > (3/2) s^(2/3), else 0

References:
    Xu et al., *L1/2 Regularization: A Thresholding Representation Theory*, 2012; Yun, Lozano and
    Yang, *Adaptive Proximal Gradient Methods for Structured Neural Networks*, 2021.
"""


def mcp(gamma: float) -> Penalty:
    """Minimax concave penalty: `l1` near zero, no pull at all beyond γ.

        R(z) = Σ |z| − z²/(2γ) where |z| <= γ, else γ/2
        ∂R(z) = sign(z) max(1 − |z|/γ, 0)
        prox(z, s) = S(z, s) / (1 − s/γ) where |z| <= γ, else z      for s < γ
                     z where |z| > √(s γ), else 0                    for s >= γ

    S is the soft threshold. The usual pair (λ, γ) is strength λ and `gamma` λγ here.

    Args:
        gamma: γ > 0, in units of the weights: what is larger is left alone.

    Returns:
        The penalty.

    Raises:
        ValueError: γ is not a finite number > 0.

    Example:
        >>> mcp(2.0).prox(jnp.array([0.5, 1.5, 3.0]), 1.0)
        Array([0., 1., 3.], dtype=float32)

    References:
        Zhang, *Nearly Unbiased Variable Selection under Minimax Concave Penalty*, 2010.
    """
    checks.number("gamma", gamma, above=0)

    def value(z: jax.Array) -> jax.Array:
        size = absolute(z)
        return jnp.sum(jnp.where(size > gamma, gamma / 2, size - size**2 / (2 * gamma)))

    def prox(z: jax.Array, s: Any) -> jax.Array:
        steeper = 1 - s / gamma
        firm = soft_threshold(z, s) / jnp.where(steeper > 0, steeper, 1)
        firm = jnp.where(jnp.abs(z) <= gamma, firm, z)
        return jnp.where(steeper > 0, firm, _hard_threshold(z, jnp.sqrt(s * gamma)))

    return Penalty(
        f"mcp({gamma:g})",
        prox=prox,
        value=value,
        gradient=lambda z: jnp.sign(z) * jnp.maximum(1 - jnp.abs(z) / gamma, 0),
        separable=True,
    )


def scad(knee: float, a: float = 3.7) -> Penalty:
    """Smoothly clipped absolute deviation: `l1` up to k, fading, no pull at all beyond a k.

        R'(|z|) = 1 for |z| <= k,   (a k − |z|) / ((a − 1) k) for |z| <= a k,   0 beyond
        prox(z, s) = S(z, s) for |z| <= k + s,   (z − s a sign(z) / (a − 1)) / (1 − s / ((a − 1) k))
                     for |z| <= a k,   z beyond                          for s < (a − 1) k
                     z where |z| > t, else S(z, s)                       for s >= (a − 1) k

    S is the soft threshold; t = (s + (a + 1) k)/2 for s < (a + 1) k, else √(s (a + 1) k). Fan and
    Li's λ is both the strength and the knee.

    Args:
        knee: k > 0, in units of the weights: up to here it is `l1`.
        a: > 2; 3.7 is Fan and Li's choice.

    Returns:
        The penalty.

    Raises:
        ValueError: k is not a finite number > 0, or a <= 2.

    Example:
        >>> scad(1.0, a=3.0).prox(jnp.array([0.5, 1.5, 2.5, 4.0]), 1.0)
        Array([0. , 0.5, 2. , 4. ], dtype=float32)

    References:
        Fan and Li, *Variable Selection via Nonconcave Penalized Likelihood*, 2001, equations 2.7
        and 2.8.
    """
    checks.number("knee", knee, above=0)
    checks.number("a", a, above=2)
    k, end = knee, a * knee

    def value(z: jax.Array) -> jax.Array:
        size = absolute(z)
        fading = (2 * end * size - size**2 - k**2) / (2 * (end - k))
        return jnp.sum(jnp.where(size <= k, size, jnp.where(size > end, (end + k) / 2, fading)))

    def prox(z: jax.Array, s: Any) -> jax.Array:
        size, soft = jnp.abs(z), soft_threshold(z, s)
        steeper = 1 - s / (end - k)
        fading = (z - s * end / (end - k) * jnp.sign(z)) / jnp.where(steeper > 0, steeper, 1)
        smooth = jnp.where(size <= k + s, soft, jnp.where(size <= end, fading, z))
        jump = jnp.where(s < end + k, (s + end + k) / 2, jnp.sqrt(s * (end + k)))
        return jnp.where(steeper > 0, smooth, jnp.where(size > jump, z, soft))

    return Penalty(
        f"scad({k:g}, a={a:g})",
        prox=prox,
        value=value,
        gradient=lambda z: jnp.sign(z) * jnp.clip((end - jnp.abs(z)) / (end - k), 0, 1),
        separable=True,
    )


# Constraints: only a prox, which is the projection wherever the strength is positive.


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
        TypeError: `axes` is not an axis or several.

    Example:
        >>> ball(1.0, axes=1).prox(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 1.0)
        Array([[0.6, 0.8],
               [0.3, 0.4]], dtype=float32)

    References:
        Srivastava et al., *Dropout*, 2014, section 5.1 (max-norm regularization).
    """
    check_axes(axes)
    checks.number("radius", radius, above=0)

    def project(z: jax.Array) -> jax.Array:
        return jnp.where(is_longer(z, axes, radius), radius * unit(z, axes), z)

    return Penalty.constraint(f"ball({radius:g}, axes={axes})", project)


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
        TypeError: `axes` is not an axis or several.

    Example:
        >>> sphere(1.0, axes=1).prox(jnp.array([[3.0, 4.0], [0.0, 0.0]]), 1.0)
        Array([[0.6, 0.8],
               [0. , 0. ]], dtype=float32)

    References:
        Salimans and Kingma, *Weight Normalization*, 2016, arXiv:1602.07868, equation 2 with
        fixed g.
    """
    check_axes(axes)
    checks.number("radius", radius, above=0)

    def project(z: jax.Array) -> jax.Array:
        return radius * unit(z, axes)

    return Penalty.constraint(f"sphere({radius:g}, axes={axes})", project)


def penalty_value(penalty: Penalty, params: Params, rules: Rules = STANDARD) -> jax.Array:
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
        TypeError: `penalty` is not a penalty, or is a constraint, which has no value.

    Warns:
        UserWarning: no parameter counts, and only vectors with unfamiliar names might.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, 4.0]]), "bias": jnp.array([7.0])}
        >>> float(penalty_value(l2, params))
        12.5

    References:
        The λ-free part of the penalized objective; Goodfellow et al., *Deep Learning*, 2016,
        equation 7.1 (Ω).
    """
    value: Any = getattr(penalty, "value", None)
    fits = isinstance(penalty, Penalty) and value is not None
    rule = "be a penalty with a value, such as wdjax.penalties.l2; constraints have none"
    checks.must("penalty", fits, rule, checks.shown(penalty), error=TypeError)
    params = stacking.unstack(params)
    rows, _ = ruled(check_rules(rules), params)
    values: list[jax.Array] = [
        row.multiplier * value(widened(param))
        for row, param in zip(rows, jax.tree.leaves(params), strict=True)
        if not is_off(row.multiplier)
    ]
    if not values:
        warn_if_idle("penalty_value", rows, params)
    total: jax.Array = sum(values, start=jnp.zeros((), jnp.float32))
    return total
