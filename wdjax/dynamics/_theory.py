"""Timescales, norms, rotation, and bounds on the weights, as functions; see `wdjax.dynamics`."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks

Number = Any  # a float, an array or a traced scalar
NEAR = 0.05  # of equilibrium


def numpy_of(*values: Number) -> Any:
    """jax.numpy for its own arrays and traced values, else numpy, which keeps float64."""
    return jnp if any(isinstance(value, jax.Array) for value in values) else np


def divide(x: Number, y: Number) -> Number:
    """Divide x by y, infinite where y = 0."""
    xp = numpy_of(x, y)
    positive = xp.asarray(y) > 0
    return xp.where(positive, x / xp.where(positive, y, 1), math.inf)


# Time.


def half_life(shrink: Number) -> Number:
    """Steps in which an untouched weight halves.

        h = ln 2 / −ln(1 − s)

    Args:
        shrink: s in [0, 1), the fraction taken off per step; ηλ under `lr_scaled`.

    Returns:
        h, in steps; infinite for s = 0.

    Example:
        >>> float(half_life(0.5)), float(half_life(0.0))
        (1.0, inf)

    References:
        The closed form of (1 − s)^h = 1/2; the inverse of `from_half_life`.
    """
    return divide(math.log(2), foldings(shrink))


def timescale(shrink: Number) -> Number:
    """Steps over which the weights average their updates.

        τ = 1 / s

    Args:
        shrink: s in [0, 1), the fraction taken off per step; ηλ under `lr_scaled`.

    Returns:
        τ, in steps; infinite for s = 0.

    Example:
        >>> float(timescale(1e-3 * 0.1))
        10000.0

    References:
        Wang and Aitchison, *How to set AdamW's weight decay as you scale model and dataset
        size*, 2024, arXiv:2405.13698, section 3; the inverse of `from_timescale`.
    """
    return divide(1.0, shrink)


def foldings(shrink: Number) -> Number:
    """Number of e-foldings lost to decay in one step; they add up over steps.

        f = −ln(1 − s)

    Args:
        shrink: s in [0, 1).

    Returns:
        f >= 0, a little more than s.

    Example:
        >>> round(float(foldings(0.5)), 4)
        0.6931

    References:
        Π (1 − s_t) = exp(−Σ f_t).
    """
    return -numpy_of(shrink).log1p(-shrink)


def epochs(steps: Number, batch_size: Any, examples: Any) -> Number:
    """Turn steps into passes over the data.

        e = t / ⌈N/B⌉

    Args:
        steps: t, in steps.
        batch_size: B >= 1, in examples.
        examples: N >= 1, size of the training set; the last, short batch counts as a step.

    Returns:
        e, in epochs.

    Raises:
        TypeError: B or N is not a whole number.
        ValueError: B or N is < 1.

    Example:
        >>> epochs(50, batch_size=4, examples=10)
        16.666666666666668
    """
    checks.whole("batch_size", batch_size)
    checks.whole("examples", examples)
    return steps / -(-examples // batch_size)


# Memory: how long the directions of an optimizer agree with one another.


def momentum_memory(shrink: Number, momentum: Number) -> Number:
    """Memory of directions that are a moving average of noise: heavy ball, Adam.

        M = 1 + 2 Σ_k (a β)ᵏ = (1 + a β) / (1 − a β),      a = 1 − s

    Args:
        shrink: s in [0, 1).
        momentum: β in [0, 1).

    Returns:
        M >= 1.

    Example:
        >>> momentum_memory(0.0, 0.5)
        3.0

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212, in the limit
        of small s.
    """
    kept = (1 - shrink) * momentum
    return (1 + kept) / (1 - kept)


def coupled_memory(shrink: Number, momentum: Number) -> Number:
    """Memory of heavy ball with L2 in its gradient, whose momentum holds the decay, too.

        M = (1 + β)² (2 − s) / ((1 − β) (2 (1 + β) − s (1 − β))),      s = ηλ/(1 − β)

    With it the stationary variance is that of θ⁺ = (1 + β − ηλ) θ − β θ⁻ − η g, an autoregression
    of second order.

    Args:
        shrink: s in [0, 1).
        momentum: β in [0, 1).

    Returns:
        M >= 1.

    Example:
        >>> coupled_memory(0.0, 0.5)
        3.0

    References:
        Box and Jenkins, *Time Series Analysis*, 1970, section 3.2.4, for the variance.
    """
    more, less = 1 + momentum, 1 - momentum
    return more**2 * (2 - shrink) / (less * (2 * more - shrink * less))


def lion_memory(shrink: Number, b1: Number = 0.9, b2: Number = 0.99) -> Number:
    """Memory of Lion's directions, signs of two moving averages of Gaussian noise.

        M = 1 + 2 Σ_k aᵏ (2/π) arcsin(ρ β₂ᵏ⁻¹)                 by the arcsine law
        ρ = β₁ (1 − β₂) (1 − β₁ + β₁ β₂/(1 + β₂)) / ((1 − β₁)² + β₁² (1 − β₂)/(1 + β₂))

    With arcsin x = Σ_n c_n x²ⁿ⁺¹ the sum over k is a geometric one for each n; 40 of them do.

    Args:
        shrink: s in [0, 1).
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).

    Returns:
        M >= 1.

    Example:
        >>> round(float(lion_memory(1e-4)), 2)
        45.48

    References:
        Chen et al., *Symbolic Discovery of Optimization Algorithms*, 2023, arXiv:2302.06675, for
        Lion; Van Vleck and Middleton, *The Spectrum of Clipped Noise*, 1966, for the arcsine law.
        `radial.lion_rotation` is the limit of s << 1 − β₂ and ρ << 1.
    """
    variance = (1 - b1) ** 2 + b1**2 * (1 - b2) / (1 + b2)
    rho = b1 * (1 - b2) * (1 - b1 + b1 * b2 / (1 + b2)) / variance
    a, series = 1 - shrink, 0.0
    for n in range(40):
        power = 2 * n + 1
        c = math.comb(2 * n, n) / 4**n / power
        series = series + c * a * rho**power / (1 - a * b2**power)
    return 1 + 4 / math.pi * series


# Equilibrium: what noise adds and decay takes off balance.


def equilibrium_rms(
    learning_rate: Number, shrink: Number, *, direction_rms: Number = 1.0, memory: Number = 1.0
) -> Number:
    """Root mean square of the weights where noise and decay balance.

        ρ = η q √(M / (s (2 − s)))

    For AdamW with s = ηλ << 1 that is √(η / 2λ). Norms are √d times as large.

    Args:
        learning_rate: η >= 0.
        shrink: s in [0, 1), the fraction taken off per step.
        direction_rms: q, root mean square of the optimizer's direction per entry.
        memory: M, from `momentum_memory`, `coupled_memory` or `lion_memory`.

    Returns:
        ρ, in the unit of the weights; infinite for s = 0. Where gradients shrink as 1/‖θ‖,
        because the loss does not see the scale of θ, give q at ρ = 1 and take the square root.

    Example:
        >>> round(float(equilibrium_rms(2e-3, 2e-3 * 0.1)), 4)
        0.1

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212, Table 1, in
        the limit of small s.
    """
    return divide(learning_rate * direction_rms * memory**0.5, (shrink * (2 - shrink)) ** 0.5)


def equilibrium_rotation(shrink: Number, memory: Number = 1.0) -> Number:
    """Angle by which the weights turn in a step, at equilibrium.

        φ = √((s (2 − s)/M − s²) / (1 − s))      ≈ √(2 s / M)

    The balance of norms fixes the angle between u and θ, and so the length of the chord.

    Args:
        shrink: s in [0, 1), the fraction taken off per step.
        memory: M, from `momentum_memory`, `coupled_memory` or `lion_memory`.

    Returns:
        φ, in radians per step (root mean square).

    Example:
        >>> round(float(equilibrium_rotation(1e-3 * 0.1, momentum_memory(1e-3 * 0.1, 0.9))), 5)
        0.00324

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212 (η_r); its
        small-s forms are `radial.adamw_rotation`, `sgdm_rotation` and `lion_rotation`.
    """
    return ((shrink * (2 - shrink) / memory - shrink**2) / (1 - shrink)) ** 0.5


def decay_to_update(shrink: Number, memory: Number = 1.0) -> Number:
    """Length of decay's part of a step relative to the optimizer's, at equilibrium.

        s ρ / (η q) = √(s M / (2 − s))

    Args:
        shrink: s in [0, 1), the fraction taken off per step.
        memory: M, from `momentum_memory`, `coupled_memory` or `lion_memory`.

    Returns:
        The ratio of the two lengths.

    Example:
        >>> round(decay_to_update(2e-4), 4)
        0.01

    References:
        `equilibrium_rms`, divided by η q / s.
    """
    return (shrink * memory / (2 - shrink)) ** 0.5


def foldings_to_equilibrium(start: Number, *, within: float = NEAR, power: int = 2) -> Number:
    """Decay needed until the weights no longer depend on their initial size.

        ρ_tᵖ = ρᵖ + (ρ₀ᵖ − ρᵖ) e^(−p F)      so      F = ln(|x₀ᵖ − 1| / |(1 ± δ)ᵖ − 1|) / p

    with x₀ = ρ₀/ρ, the upper sign for x₀ > 1.

    Args:
        start: x₀ >= 0, the RMS at first as a fraction of the RMS at equilibrium.
        within: δ in (0, 1), how near is near enough.
        power: p, 2; 4 where gradients shrink as 1/‖θ‖.

    Returns:
        F = Σ −ln(1 − s_t) >= 0; for a constant s, F times `timescale` steps.

    Example:
        >>> round(float(foldings_to_equilibrium(0.0)), 3), float(foldings_to_equilibrium(1.0))
        (1.164, 0.0)

    References:
        The solution of ρ²⁺ = (1 − s)² ρ² + (η q)² M.
    """
    xp = numpy_of(start)
    near = xp.where(start > 1, (1 + within) ** power - 1, 1 - (1 - within) ** power)
    return xp.log(xp.maximum(abs(start**power - 1) / near, 1)) / power


def steps_to_equilibrium(
    shrink: Number, start: Number = 0.0, *, within: float = NEAR, power: int = 2
) -> Number:
    """Steps until the weights are near their equilibrium RMS, at a constant s.

        t = F(x₀) / −ln(1 − s)

    Args:
        shrink: s in [0, 1), the fraction taken off per step.
        start: x₀ >= 0, the RMS at first as a fraction of the RMS at equilibrium.
        within: δ in (0, 1), how near is near enough.
        power: p, 2; 4 where gradients shrink as 1/‖θ‖.

    Returns:
        t, in steps; infinite for s = 0.

    Example:
        >>> round(float(steps_to_equilibrium(1e-4)))
        11639

    References:
        `foldings_to_equilibrium`.
    """
    needed = foldings_to_equilibrium(start, within=within, power=power)
    return divide(needed, foldings(shrink))


# Bounds: they hold for every sequence of gradients.


def adam_bound(b1: Number = 0.9, b2: Number = 0.999) -> Number:
    """Largest entry of Adam's direction, whatever the gradients.

        B = (1 − β₁) / √((1 − β₂)(1 − β₁²/β₂))

    The supremum over all gradients grows with the step and tends to B. The often quoted
    (1 − β₁)/√(1 − β₂) is not a bound.

    Args:
        b1: β₁ in [0, √β₂).
        b2: β₂ in (0, 1).

    Returns:
        B, in the maximum norm; infinite where β₁² >= β₂.

    Example:
        >>> round(float(adam_bound(0.9, 0.999)), 2)
        7.27

    References:
        The inequality of Cauchy and Schwarz, for û = m̂/√v̂.
    """
    room = numpy_of(b1, b2).maximum(1 - b1 * b1 / b2, 0)
    return divide(1 - b1, ((1 - b2) * room) ** 0.5)


def muon_bound(
    iterations: int = 5, coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315)
) -> float:
    """Largest singular value of Muon's direction, whatever the gradients.

        B = max over σ in [0, 1] of p(p(...p(σ))),      p(σ) = a σ + b σ³ + c σ⁵

    Args:
        iterations: how often the polynomial of Newton and Schulz is applied.
        coefficients: (a, b, c).

    Returns:
        B, in the spectral norm, before any scaling by the shape of the matrix. An exact polar
        factor has 1.

    Example:
        >>> round(muon_bound(), 4)
        1.2024

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """
    a, b, c = coefficients
    sigma = np.linspace(0, 1, 200_001)
    for _ in range(iterations):
        sigma = a * sigma + b * sigma**3 + c * sigma**5
    return float(np.abs(sigma).max())


def norm_bound(learning_rate: Number, shrink: Number, bound: Number) -> Number:
    """Largest norm that weights can reach under updates of bounded size.

        ‖θ_t‖ <= max(‖θ₀‖, B max_t η_t / s_t)

    Under `lr_scaled` that is B/λ, for every sequence of gradients.

    Args:
        learning_rate: η >= 0, a number or (T,) values.
        shrink: s in [0, 1], likewise.
        bound: B, of the direction, in any norm: 1 for Lion and the maximum norm, `adam_bound`
            for Adam, `muon_bound` and the spectral norm for Muon.

    Returns:
        B max η/s, infinite where a step has no decay.

    Example:
        >>> float(norm_bound(1e-3, 1e-3 * 0.5, bound=1.0))
        2.0

    References:
        Xie and Li, *Implicit Bias of AdamW*, 2024, arXiv:2404.04454; the induction
        ‖θ⁺‖ <= (1 − s)‖θ‖ + η B.
    """
    xp = numpy_of(learning_rate, shrink)
    ratio = xp.where(learning_rate > 0, divide(learning_rate, shrink), 0)
    return bound * ratio.max()


# Rounding.


def decay_kept(dtype: Any, shrink: float, step: float) -> float:
    """How much of the decay survives when weights are rounded to a dtype after every step.

        κ = Σ_x w(x) Σ_j [Φ((δ − j − ½)/σ) − Φ((−δ − j − ½)/σ)] / δ      δ = s x/q,  σ = h/q

    In units of the spacing q = ε 2^⌊log₂ x⌋ around a weight x, decay shifts it by δ and the step
    scatters it by σ; the inner sum is by how much the rounded value shifts on average. Large steps
    carry the decay over the edge, without them all decay below ½ is lost. Weights are Gaussian
    with RMS 1, w(x) ∝ x² exp(−x²/2), and so are steps: for Lion, whose steps all have one size,
    κ is rough.

    Args:
        dtype: of the weights, such as "bfloat16".
        shrink: s > 0, the fraction taken off per step.
        step: h >= 0, RMS of a step relative to the RMS of the weights.

    Returns:
        κ: 1 means nothing is lost, 0 that weights do not decay at all.

    Example:
        >>> [round(decay_kept("bfloat16", 1e-4, step), 2) for step in (0.0, 1e-3, 5e-3)]
        [0.0, 0.11, 0.93]

    References:
        The average of a rounded Gaussian; `swallowed_below` is the limit of no step at all.
    """
    x = (np.arange(800) + 0.5) / 160
    q = float(jnp.finfo(dtype).eps) * 2.0 ** np.floor(np.log2(x))  # type: ignore[no-untyped-call]
    shift, scatter = shrink * x / q, np.maximum(step / q, 1e-9)
    edges = (np.arange(16) + 0.5)[:, None]
    moved = (_normal((shift - edges) / scatter) - _normal((-shift - edges) / scatter)).sum(0)
    kept = np.where((shift > 4) | (scatter > 2), 1, moved / shift)
    return float(np.average(kept, weights=x**2 * np.exp(-(x**2) / 2)))


# Optimizers, as their directions look when gradients are noise.


class Direction(NamedTuple):
    """What the theory needs to know of an optimizer.

    Attributes:
        rms: q, root mean square of u per entry (with `power` 4: at weights of RMS 1); NaN where
            the theory does not give it.
        memory: s -> M.
        bound: B, the largest norm of u for any gradients; infinite if there is none.
        gain: decay per step as a multiple of s, for decay that passes through the momentum.
        power: the power of the RMS that relaxes exponentially: 2, or 4 where gradients shrink
            as 1/‖θ‖.
        rotation: (s, M) -> φ at equilibrium.
    """

    rms: Number
    memory: Callable[[Number], Number]
    bound: Number = math.inf
    gain: Number = 1.0
    power: int = 2
    rotation: Callable[[Number, Number], Number] = equilibrium_rotation


def sgd(
    gradient_rms: Number,
    *,
    momentum: Number = 0.0,
    coupled: bool = False,
    scale_invariant: bool = True,
) -> Direction:
    """SGD with or without heavy-ball momentum α.

        q = σ / √(1 − α²);   s = ηλ, M by `momentum_memory`;
                             coupled: s = ηλ/(1 − α), M by `coupled_memory`

    If coupled, the weights are an autoregression of second order, and turn by √(2ηλ/(1 + α)) in a
    step. With σ = γ/ρ, as for weights before a normalization, the RMS settles at
    (η γ²/(2λ(1 − α)))^¼ if coupled and (η γ²/(2λ(1 − α)²))^¼ if not. Nesterov's momentum is not
    covered: its steps are √((1 − α²)(1 + α)² + α⁴) times as long, 1.16 at α = 0.9, and turn more.

    Args:
        gradient_rms: σ, root mean square of the gradient per entry; if scale invariant γ, that
            of the gradient times that of the weights, which stays the same as weights grow.
            Norms ‖g‖ ‖θ‖ instead of the two RMS give norms.
        momentum: α in [0, 1).
        coupled: True for L2 in the gradient, as `add_decayed_weights` before `optax.sgd`.
        scale_invariant: whether gradients shrink as 1/‖θ‖, as before BatchNorm or LayerNorm.

    Returns:
        The direction.

    Example:
        >>> from wdjax.dynamics import predict
        >>> found = predict(sgd(1.0), 0.1, weight_decay=0.05, steps=100)
        >>> [round(float(found.equilibrium_rms[-1]), 2), round(float(found.rotation[-1]), 2)]
        [1.0, 0.1]

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212, Table 1.
    """
    rms, power = gradient_rms / (1 - momentum**2) ** 0.5, 4 if scale_invariant else 2
    if not coupled:
        return Direction(rms, lambda shrink: momentum_memory(shrink, momentum), power=power)
    return Direction(
        rms, lambda shrink: coupled_memory(shrink, momentum), gain=1 / (1 - momentum), power=power,
        rotation=lambda shrink, _: (2 * shrink * (1 - momentum) / (1 + momentum)) ** 0.5,
    )  # fmt: skip


def adam(b1: Number = 0.9, b2: Number = 0.999) -> Direction:
    """Adam, followed by decay.

        q = √((1 − β₁)/(1 + β₁)),   M = (1 + a β₁)/(1 − a β₁)

    NAdam is not covered: its steps are longer, by 1.16 at β₁ = 0.9, and turn more; see `sgd`.

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in (β₁², 1), near 1: at 0.95 the rotation is some 2% less.

    Returns:
        The direction.

    Example:
        >>> from wdjax.dynamics import predict
        >>> found = predict(adam(), 2e-3, weight_decay=0.1, steps=100)
        >>> round(float(found.equilibrium_rms[-1]), 3), round(float(found.bound), 1)
        (0.1, 72.7)

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212, Table 1.
    """
    rms = ((1 - b1) / (1 + b1)) ** 0.5
    return Direction(rms, lambda shrink: momentum_memory(shrink, b1), bound=adam_bound(b1, b2))


def lion(b1: Number = 0.9, b2: Number = 0.99) -> Direction:
    """Lion, whose every entry is ±1.

        q = 1,   M by `lion_memory`,   B = 1 in the maximum norm

    Args:
        b1: β₁ in [0, 1).
        b2: β₂ in [0, 1).

    Returns:
        The direction.

    Example:
        >>> from wdjax.dynamics import predict
        >>> found = predict(lion(), 1e-4, weight_decay=1.0, steps=100)
        >>> round(float(found.rotation[-1]), 5), float(found.bound)
        (0.00209, 1.0)

    References:
        Chen et al., *Symbolic Discovery of Optimization Algorithms*, 2023, arXiv:2302.06675.
    """
    return Direction(1.0, lambda shrink: lion_memory(shrink, b1, b2), bound=1.0)


def muon(scale: Number = 1.0, *, iterations: int = 5) -> Direction:
    """Muon: no theory of its noise, but a bound on singular values.

        B = scale · `muon_bound`

    Args:
        scale: what the direction is multiplied by for its shape; `optax.contrib.muon` takes
            √max(1, fan-out/fan-in).
        iterations: of Newton and Schulz.

    Returns:
        The direction.

    Example:
        >>> from wdjax.dynamics import predict
        >>> round(float(predict(muon(), 0.02, weight_decay=0.1, steps=9).bound), 2)
        12.02

    References:
        Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024.
    """
    return Direction(
        math.nan, lambda shrink: math.nan * shrink, bound=scale * muon_bound(iterations)
    )


_normal = np.vectorize(lambda x: math.erfc(-x / math.sqrt(2)) / 2)  # Φ
