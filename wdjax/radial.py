"""Norm and direction of groups of weights, controlled separately; each comes last in the chain.

A group is the part of a leaf that runs along `axes`; N(x) = x/‖x‖ is taken per group. With the
optimizer's finished update Δ and the candidate c = θ + Δ:

    norm_control      θ⁺ = c − k (1 − r R/‖θ‖) θ              pull the norm towards r R
    hyperball         θ⁺ = R N(θ + η R N(Δ))                  hold the norm at R
    radial_brake      ‖θ⁺‖ = ‖θ‖ + s (‖c‖ − ‖θ‖)              slow the norm down
    project_radial    Δ⁺ = Δ − N(θ) ⟨N(θ), Δ⟩                 turn only
    update_floor      ‖Δ⁺‖ = max(‖Δ‖, τ ‖θ‖)                  step at least so far
    relative_update   ‖Δ⁺‖ = η ‖θ‖                            step exactly so far
    rotational        turn by η on average, at norm R
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax import schedules
from wdjax._lift.leaves import Params, needed_gradient, widened
from wdjax._lift.method import Samples, by_leaf, lift
from wdjax._trees import checks, paths
from wdjax._trees.groups import Axes, along, checked_axes, direction, inner, norm, unit
from wdjax.rules import STANDARD, Ruled, Rules
from wdjax.schedules import Strength

# Geometry of one leaf, group by group. Every norm is safe at zero: N(0) = 0.


def _radial_part(x: jax.Array, at: jax.Array, axes: Axes) -> jax.Array:
    """N(at) ⟨N(at), x⟩; x minus this is tangent to the sphere at `at`."""
    outwards = unit(at, axes)
    return outwards * inner(outwards, x, axes)


def _centered(x: jax.Array, axes: Axes) -> jax.Array:
    along = checked_axes(axes, x)
    return x if x.size == 0 else x - jnp.mean(x, axis=along, keepdims=True)


def _on_sphere(x: jax.Array, radius: jax.Array, stay: jax.Array, axes: Axes) -> jax.Array:
    """R N(x), and `stay` where x = 0 has no direction."""
    turned, exists = direction(x, axes)
    return jnp.where(exists, radius * turned, stay)


def norm_control(
    rate: Strength,
    ratio: Strength = 1.0,
    *,
    radius: float | None = None,
    axes: Axes = None,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Pull each group's norm towards a target, instead of towards zero (AdamWN).

        θ⁺ = θ + Δ − k(t) m (1 − r(t) R/‖θ‖) θ

    R is the initial norm ‖θ₀‖, or `radius`. Without Δ, ‖θ⁺‖ = (1 − k m)‖θ‖ + k m r R exactly:
    r = 0 is decoupled decay, k = 1 reaches the target at once, r > 1 lets weights grow. A group
    at θ = 0 has no direction and is not pulled.

    Args:
        rate: k, the fraction of the distance to the target closed per step, k m in [0, 1]: a
            number, schedule or traced scalar. Build it with a law, such as `lr_scaled`.
        ratio: r >= 0, the target in units of R: a number, schedule or traced scalar.
        radius: R > 0 in units of the weights; None takes each group's norm at `init`.
        axes: the axes along which one group extends, as in `penalties.group_lasso`; None: the
            whole leaf is one group. Layers stacked by scan need axes without the layer axis.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. It keeps one number per group; its update needs `params`.

    Raises:
        ValueError: a rate, ratio or radius is out of range; a leaf has no such axes or, with
            radius=None and a ratio other than 0, a group of zeros (at `init`); `params` is
            missing (at `update`).

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold.

    Example:
        >>> tx = norm_control(0.5, ratio=2.0)
        >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
        >>> tx.update({"kernel": jnp.zeros((1, 2))}, tx.init(params), params)[0]["kernel"]
        Array([[1.5, 2. ]], dtype=float32)

    References:
        Loshchilov, *Weight Norm Control*, 2023, arXiv:2311.11446 (AdamWN).
    """

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, k: Any, r: Any) -> Any:
        del grad
        (length,) = kept = _renewed(kept, radius)
        return update - k * m * (param - r * length * unit(param, axes)), kept

    return _lift(
        "norm_control",
        step,
        {"rate": rate, "ratio": ratio},
        axes=axes,
        rules=rules,
        start=_radii(radius, axes, needed=not _is_zero(ratio)),
        fractions=("rate",),
    )


def hyperball(
    learning_rate: Strength,
    *,
    radius: float | None = None,
    axes: Axes = None,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Hold each group's norm: the optimizer gives the direction, η the angle.

        θ⁺ = R N(θ + η(t) m R N(Δ))

    The length of Δ does not matter, nor then does the learning rate of the optimizer before it;
    a turn by Δ ⊥ θ has the angle arctan(η m). No decay is needed. R is kept in the state, so the
    norm does not drift. Where the candidate is exactly zero the group stays as it is.

    Args:
        learning_rate: η >= 0, the step in units of the norm: a number, schedule or traced scalar.
            `adamw_rotation` gives the η that turns weights as fast as AdamW does.
        radius: R > 0 in units of the weights; None takes each group's norm at `init`. With a
            radius, a group of zeros takes the direction of its first step.
        axes: as in `norm_control`.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. It keeps one number per group; its update needs `params`.

    Raises:
        ValueError: η or the radius is out of range; a leaf has no such axes or, with radius=None,
            a group of zeros (at `init`; under `jit`, where values are not known, such a group
            takes Δ as it comes); `params` is missing (at `update`).
        TypeError: at `update`, updates are of a narrower dtype than their parameters.

    Example:
        >>> tx = optax.chain(optax.sgd(1.0), hyperball(0.75))
        >>> params, grads = {"kernel": jnp.array([[4.0, 0.0]])}, {"kernel": jnp.array([[0.0, 9.0]])}
        >>> optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])["kernel"]
        Array([[ 3.2, -2.4]], dtype=float32)

    References:
        Wen et al., *Hyperball Optimization*, 2026, arXiv:2606.16899 (AdamH, MuonH).
    """

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, eta: Any) -> Any:
        del grad
        (r,) = kept = _renewed(kept, radius)
        candidate = param + eta * m * r * unit(update, axes)
        moved = _on_sphere(candidate, r, param, axes) - param
        return jnp.where(r > 0, moved, update), kept

    return _lift(
        "hyperball",
        step,
        {"learning_rate": learning_rate},
        axes=axes,
        rules=rules,
        start=_radii(radius, axes),
        exact=True,
    )


def radial_brake(
    outward: Strength = 0.5,
    inward: Strength = 1.0,
    *,
    axes: Axes = None,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Let only a fraction of each step's change of norm happen; the direction is the step's own.

        θ⁺ = c (‖θ‖ + s (‖c‖ − ‖θ‖)) / ‖c‖      c = θ + Δ, s = outward if ‖c‖ > ‖θ‖, else inward

    s = 1 is the identity, s = 0 keeps the norm; outward = 0 makes a norm that never grows. The
    multiplier scales the braking: s becomes 1 − m (1 − s). Groups with θ = 0 or c = 0 stay.

    Args:
        outward: s in [0, 1] for growth: a number, schedule or traced scalar.
        inward: s in [0, 1] for shrinkage.
        axes: as in `norm_control`.
        rules: (selector, multiplier) pairs that give m in [0, 1]; first match wins.

    Returns:
        The transformation. It keeps only a step count; its update needs `params`.

    Raises:
        ValueError: a fraction is outside [0, 1]; a leaf has no such axes (at `init`); `params` is
            missing (at `update`).

    Example:
        >>> tx = radial_brake(outward=0.5)
        >>> params = {"kernel": jnp.array([[3.0, 4.0]])}
        >>> updates = {"kernel": jnp.array([[3.0, 4.0]])}
        >>> tx.update(updates, tx.init(params), params)[0]["kernel"]  # norm 5 -> 7.5, not 10
        Array([[1.5, 2. ]], dtype=float32)

    References:
        The radial brake of the modded-nanogpt optimization track, 2026.
    """

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, out: Any, into: Any) -> Any:
        del grad
        candidate, start = param + update, norm(param, axes)
        growth = jnp.where(start > 0, norm(candidate, axes) - start, 0)
        s = jnp.where(growth > 0, out, into)
        return update - m * (1 - s) * growth * unit(candidate, axes), kept

    return _lift(
        "radial_brake",
        step,
        {"outward": outward, "inward": inward},
        axes=axes,
        rules=rules,
        fractions=("outward", "inward"),
        most=1,
    )


def project_radial(
    strength: Strength = 0.0,
    *,
    cosine: float | None = None,
    decay_ratio: Strength = 1.0,
    axes: Axes = None,
    also_whole: bool = False,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Take the radial part out of each group's step: it turns the weights, and only that.

        Δ⁺ = Δ − m N(θ) ⟨N(θ), Δ⟩ − s(t) m ρ θ

    Then ⟨θ, Δ⟩ = 0 and ‖θ + Δ‖² = ‖θ‖² + ‖Δ‖². With `cosine` = δ this is AdamP's gate: the
    projection happens, and the decay is multiplied by ρ, only for leaves that look scale
    invariant, where max over groups |cos(g, θ)| < δ/√n (n numbers per group, g the raw gradient,
    passed to `update` as `grad=`). One decision holds for the whole leaf. Decay before
    this in the chain would be removed, for it is radial: pass it as `strength`.

    Args:
        strength: s in [0, 1], decoupled decay, the fraction taken off per step before ρ: a number,
            schedule or traced scalar. AdamP: `lr_scaled(λ, η)`; SGDP: that over 1 − momentum.
        cosine: δ >= 0, AdamP's is 0.1; None projects always.
        decay_ratio: ρ >= 0 where projected, 1 elsewhere; AdamP's is 0.1.
        axes: as in `norm_control`. AdamP's channels of a kernel (in, out) are axes=0.
        also_whole: True then also tries the whole leaf as one group, as AdamP does.
        rules: (selector, multiplier) pairs that give m in [0, 1]; first match wins.

    Returns:
        The transformation. It keeps only a step count; its update needs `params` and, with
        `cosine`, `grad`.

    Raises:
        ValueError: a number is out of range; a leaf has no such axes (at `init`); `params` or
            `grad` is missing (at `update`).

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold.

    Example:
        >>> params = {"kernel": jnp.array([[3.0, 0.0]])}
        >>> updates = {"kernel": jnp.array([[1.0, 2.0]])}
        >>> tx = project_radial()
        >>> tx.update(updates, tx.init(params), params)[0]["kernel"]
        Array([[0., 2.]], dtype=float32)

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-Invariant
        Weights*, 2021, arXiv:2006.08217, Algorithms 1 and 2.
    """
    views = [axes, None] if also_whole else [axes]
    if cosine is not None:
        checks.number("cosine", cosine, least=0)

    def hit(param: jax.Array, grad: Any, view: Axes) -> jax.Array:
        if cosine is None:
            return jnp.array(True)
        raw = needed_gradient("project_radial", grad)
        cosines = inner(unit(param, view), unit(raw, view), view)
        threshold = cosine * math.sqrt(cosines.size / max(param.size, 1))  # δ/√n
        return jnp.max(jnp.abs(cosines), initial=0) < threshold

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, s: Any, rho: Any) -> Any:
        radial, done = jnp.zeros_like(update), jnp.array(False)
        for view in views:
            now = ~done & hit(param, grad, view)
            radial = jnp.where(now, _radial_part(update, param, view), radial)
            done |= now
        return update - m * radial - s * m * jnp.where(done, rho, 1) * param, kept

    quantities = {"strength": strength, "decay_ratio": decay_ratio}
    sees = cosine is not None
    return _lift(
        "project_radial",
        step,
        quantities,
        axes=axes,
        rules=rules,
        fractions=("strength",),
        most=1,
        sees_grads=sees,
    )


def update_floor(
    ratio: Strength, *, axes: Axes = None, rules: Rules = STANDARD
) -> optax.GradientTransformationExtraArgs:
    """Lengthen steps that are short relative to their weights.

        Δ⁺ = Δ max(1, τ(t) m ‖θ‖ / ‖Δ‖)

    A step of exactly zero has no direction and stays zero.

    Args:
        ratio: τ >= 0, the least ‖Δ‖/‖θ‖: a number, schedule or traced scalar. Last in the chain
            Δ contains the learning rate, so a floor τ' on the bare direction is τ = η τ'.
        axes: as in `norm_control`.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. It keeps only a step count; its update needs `params`.

    Raises:
        ValueError: τ is negative; a leaf has no such axes (at `init`); `params` is missing (at
            `update`).

    Example:
        >>> tx = update_floor(0.5)
        >>> params = {"kernel": jnp.array([[0.0, 4.0]])}
        >>> updates = {"kernel": jnp.array([[1.0, 0.0]])}
        >>> tx.update(updates, tx.init(params), params)[0]["kernel"]
        Array([[2., 0.]], dtype=float32)

    References:
        The update-to-weight floor of the modded-nanogpt optimization track, 2026.
    """

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, tau: Any) -> Any:
        del grad
        least = tau * m * norm(param, axes)
        return jnp.where(norm(update, axes) < least, least * unit(update, axes), update), kept

    return _lift("update_floor", step, {"ratio": ratio}, axes=axes, rules=rules)


def relative_update(
    learning_rate: Strength, *, axes: Axes = None, rules: Rules = STANDARD
) -> optax.GradientTransformationExtraArgs:
    """Make each group's step a given fraction of the group's norm.

        Δ⁺ = η(t) m ‖θ‖ N(Δ)

    A group of zeros would never leave zero: it takes Δ as it comes.

    Args:
        learning_rate: η >= 0, ‖Δ⁺‖/‖θ‖: a number, schedule or traced scalar. The length of the
            incoming Δ, and so the learning rate before it, does not matter.
        axes: as in `norm_control`.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. It keeps only a step count; its update needs `params`.

    Raises:
        ValueError: η is negative; a leaf has no such axes (at `init`); `params` is missing (at
            `update`).

    Example:
        >>> tx = relative_update(0.5)
        >>> params = {"kernel": jnp.array([[0.0, 4.0]])}
        >>> updates = {"kernel": jnp.array([[9.0, 0.0]])}
        >>> tx.update(updates, tx.init(params), params)[0]["kernel"]
        Array([[2., 0.]], dtype=float32)

    References:
        You et al., *Large Batch Training of Convolutional Networks*, 2017, arXiv:1708.03888,
        equation 6 (LARS), here after the optimizer instead of inside it.
    """

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, eta: Any) -> Any:
        del grad
        length = norm(param, axes)
        return jnp.where(length > 0, eta * m * length * unit(update, axes), update), kept

    quantities = {"learning_rate": learning_rate}
    return _lift("relative_update", step, quantities, axes=axes, rules=rules)


def rotational(
    learning_rate: Strength,
    *,
    axes: Axes,
    decay: float = 0.9,
    centered: bool = True,
    eps: float = 1e-8,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Turn every neuron at the same average speed, at constant norm.

        Δ_⊥ = Δ minus its mean and its part along θ      ν⁺ = β ν + (1 − β) ‖Δ_⊥‖²
        θ⁺ = R N(θ + η(t) m R Δ_⊥ / (√ν̂ + ε))            ν̂ = ν⁺ / (1 − β^(t+1))

    With `centered`, θ too loses its mean (at the first step) and R is the norm of what remains.
    ν measures Δ as it comes, so keep the learning rate of the optimizer before this constant and
    give schedules here.

    Args:
        learning_rate: η, radians turned per step in the root mean square: a number, schedule or
            traced scalar. `adamw_rotation` and `dynamics.equilibrium_rotation` give an optimizer's
            own equilibrium speed.
        axes: as in `norm_control`; a neuron of a kernel (..., in, out) has all axes but the last.
        decay: β in [0, 1), memory of the mean square.
        centered: whether the mean is removed.
        eps: ε >= 0, in units of Δ.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. It keeps two numbers per group; its update needs `params`.

    Raises:
        ValueError: a number is out of range; a leaf has no such axes, or a group whose norm is
            zero (at `init`; under `jit` such a group takes Δ as it comes); `params` is missing
            (at `update`).
        TypeError: at `update`, updates are of a narrower dtype than their parameters.

    Example:
        >>> tx = rotational(0.75, axes=0, centered=False)
        >>> params = {"kernel": jnp.array([[4.0], [0.0]])}
        >>> updates = {"kernel": jnp.array([[5.0], [9.0]])}
        >>> new = optax.apply_updates(params, tx.update(updates, tx.init(params), params)[0])
        >>> [round(float(x), 6) for x in new["kernel"].ravel()]
        [3.2, 2.4]

    References:
        Kosson et al., *Rotational Equilibrium*, 2024, arXiv:2305.17212 (rotational variants).
    """
    checks.number("eps", eps, least=0)
    checks.number("decay", decay, least=0, below=1)

    center = _centered if centered else (lambda x, axes: x)

    def step(update: Any, param: Any, m: Any, kept: Any, grad: Any, eta: Any, debias: Any) -> Any:
        del grad
        r, speed = kept
        start, turn = center(param, axes), center(update, axes)
        turn = turn - _radial_part(turn, start, axes)
        # an update along θ leaves a rounding error, which is not a direction to turn to
        rounding = float(jnp.finfo(turn.dtype).eps)  # type: ignore[no-untyped-call]
        length = norm(turn, axes)
        turns = length > 8 * rounding * norm(update, axes)
        turn, length = jnp.where(turns, turn, 0), jnp.where(turns, length, 0)
        speed = (decay * speed + (1 - decay) * length**2).astype(speed.dtype)
        turn = r * turn / (jnp.sqrt(speed / debias) + jnp.maximum(eps, 1e-30))
        moved = _on_sphere(start + eta * m * turn, r, param, axes) - param
        return jnp.where(r > 0, moved, update), (r, speed)

    def start(params: Params, multipliers: Params) -> tuple[Params, ...]:
        (radii,) = _radii(None, axes, center=center)(params, multipliers)
        return radii, jax.tree.map(jnp.zeros_like, radii)

    def debias(count: Any) -> Any:
        return 1 - decay ** (count + 1).astype(jnp.result_type(float))

    quantities = {"learning_rate": learning_rate, "debias": debias}
    return _lift("rotational", step, quantities, axes=axes, rules=rules, start=start, exact=True)


# The lift of these methods, and the radii that they keep.


def _lift(
    name: str,
    step: Callable[..., Any],
    quantities: Mapping[str, Strength],
    *,
    fractions: Sequence[str] = (),
    most: float = math.inf,
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """Lift step(Δ, θ, m, kept, g, *quantities) -> (Δ⁺, kept⁺) of one leaf.

    `fractions` names the quantities that are at most 1, times the multiplier too; `most` is the
    largest multiplier allowed.
    """
    for key in fractions:
        schedules.check_scalar(key, quantities[key], most=1)

    def check(rows: tuple[Ruled, ...], samples: Samples) -> None:
        top = max([1.0, *(m for _, _, m in rows if isinstance(m, float))])
        if top > most:
            raise ValueError(f"`rules` must give `{name}` multipliers <= {most:g}; got {top:g}.")
        for key in fractions:
            values = samples[key]
            if values is not None:
                schedules.check_values(values, schedules.SAMPLED_COUNTS, key, 1 / top)

    return lift(name, by_leaf(step), quantities, check=check, **settings)


def _radii(
    radius: Any,
    axes: Axes,
    *,
    needed: bool = True,
    center: Callable[[jax.Array, Axes], jax.Array] = lambda x, axes: x,
) -> Callable[[Params, Params], tuple[Params]]:
    """Make the function that gives each group its R; `needed` refuses groups whose norm is 0."""
    checks.number("radius", radius, above=0, optional=True)

    def of_leaf(param: Any) -> jax.Array:
        if not jnp.issubdtype(param.dtype, jnp.inexact):
            return jnp.zeros((1,) * param.ndim, jnp.float32)
        within = along(axes, param.ndim)
        length = norm(center(widened(param), within), within)
        return length if radius is None else jnp.full_like(length, radius)

    def start(params: Params, multipliers: Params) -> tuple[Params]:
        radii = jax.tree.map(of_leaf, params)
        if needed:
            _check_directions(params, multipliers, radii)
        return (radii,)

    return start


def _renewed(kept: tuple[Any, ...], radius: Any) -> tuple[Any, ...]:
    """What `_radii` gave, with the radius that is given now: a schedule's, or retuned."""
    return kept if radius is None else (jnp.full_like(kept[0], radius),)


def _is_zero(value: Any) -> bool:
    """Whether a number or schedule is known to be 0."""
    known = value.value if isinstance(value, schedules.Constant) else value
    return not callable(known) and not isinstance(known, jax.core.Tracer) and bool(known == 0)


def _check_directions(params: Params, multipliers: Params, radii: Params) -> None:
    columns = map(jax.tree.leaves, (radii, multipliers))
    empty = [
        repr(leaf.path)
        for leaf, radius, m in zip(paths.leaves(params), *columns, strict=True)
        if not (_is_zero(m) or isinstance(radius, jax.core.Tracer) or 0 in leaf.shape)
        and not bool((radius > 0).all())
    ]
    if empty:
        raise ValueError(
            "`params` must not have a group of zeros, which has no norm to keep; got zeros in "
            f"{paths.listed(empty)}. Exclude these by `rules`, or give a `radius`."
        )


# Equilibrium rotation: radians per step (root mean square) of scale-invariant weights.


def adamw_rotation(learning_rate: Any, weight_decay: Any, b1: Any = 0.9) -> Any:
    """Equilibrium rotation per step of AdamW with s = η λ.

        η_r = √(2 η λ (1 − β₁)/(1 + β₁))

    Args:
        learning_rate: η >= 0, number or array.
        weight_decay: λ >= 0.
        b1: β₁ in [0, 1).

    Returns:
        η_r, in radians.

    Example:
        >>> round(adamw_rotation(1e-3, 0.1), 6)
        0.003244

    References:
        Kosson et al., *Rotational Equilibrium*, 2024, arXiv:2305.17212 (η_r).
    """
    return (2 * learning_rate * weight_decay * (1 - b1) / (1 + b1)) ** 0.5
