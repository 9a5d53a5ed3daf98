"""Decay that adapts itself: methods with a memory of their own, as Optax transformations.

The peers of `decay_weights`. `cpr`, `cumulative_l1`, `spd` and `swd` come last in the chain, `awd`
and `ada_decay` first, where the updates still are the gradients. What they remember is float32 or
wider, and its structure does not depend on rules, strength or schedule.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax import anchors
from wdjax._lift.leaves import Params, is_off, lined_up, needed_gradient, widened
from wdjax._lift.method import Memory, Samples, Step, lift
from wdjax._lift.place import check_is_early
from wdjax._trees import checks, groups, paths
from wdjax._trees.groups import Axes
from wdjax.bounds import Bound, Measure, sum_squares
from wdjax.rules import STANDARD, Ruled, Rules
from wdjax.schedules import Strength
from wdjax.transforms import Anchor

# The pull of one step never takes off more than this part of the way to its minimum.
MOST_PER_STEP = 0.9


def with_grad(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """Hand the raw gradients down a chain, to the methods that need them after the optimizer.

    Args:
        optimizer: usually an `optax.chain`. Its state stays as it is.

    Returns:
        The same optimizer, whose update hands the updates that it is given on as `grad`, whatever
        `grad` its caller passed. Put it inside `optax.MultiSteps` and `optax.masked`, whose callers
        know the gradients of a micro-batch, or of a larger tree.

    Example:
        >>> optimizer = with_grad(optax.chain(optax.adam(0.1), swd(0.01)))
        >>> params = {"kernel": jnp.ones((1, 1))}
        >>> optimizer.update(params, optimizer.init(params), params)[0]["kernel"].round(2)
        Array([[-0.11]], dtype=float32)
    """
    checks.optimizer("optimizer", optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def update(
        updates: Params, state: Any, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, Any]:
        result: tuple[Params, Any] = inner.update(
            updates, state, params, **{**extra_args, "grad": updates}
        )
        return result

    return optax.GradientTransformationExtraArgs(inner.init, update)


def cpr(
    bound: Bound,
    measure: Measure = sum_squares,
    *,
    strength: Strength = 1.0,
    multiplier: float = 0.0,
    axes: Axes = None,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Constrained parameter regularization: decay that pulls only as hard as a bound needs.

        c = θ + Δ      μ ← max(0, μ + s(t) (R(c) − κ) / n)      θ⁺ = c − m μ ∂R(c)

    n is the number of entries of a group where R is a sum, else 1. While R < κ and μ = 0 the
    update is the optimizer's own, bit for bit. The bound is soft: R swings around κ. μ is capped
    where a step would take off nine tenths of the way to R's minimum (for squares, m μ <= 0.45).

    Args:
        bound: κ: `uniform` or `dependent` of `bounds`, or a `Bound` of your own.
        measure: R: `sum_squares` or `deviation` of `bounds`, or a function like these. Under
            `optax.inject_hyperparams`, name it in `static_args`.
        strength: s >= 0, how fast μ learns: a number, schedule or traced scalar. Unlike elsewhere
            it is not a fraction: 1 is the authors' choice.
        multiplier: the μ of the first step, >= 0.
        axes: along which one constrained group extends; None is the whole leaf. For layers
            stacked by scan, (-2, -1) constrains each matrix by itself.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation, for the end of a chain. Its update needs `params`.

    Raises:
        ValueError: the strength is negative or not finite; rules or axes do not fit the
            parameters (at `init`); `params` is missing (at `update`).
        TypeError: `bound` is not a bound, `measure` not a function.

    Example:
        >>> from wdjax import bounds
        >>> optimizer = optax.chain(optax.sgd(0.1), cpr(bounds.uniform(2.0)))
        >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[0.0]])}
        >>> state = optimizer.init(params)  # R = 4 exceeds κ = 2 by 2: μ would be 2, the cap .45
        >>> optax.apply_updates(params, optimizer.update(grads, state, params)[0])["kernel"]
        Array([[0.2...]], dtype=float32)

    References:
        Franke, Hefenbrock, Koehler and Hutter, *Improving Deep Learning Optimization through
        Constrained Parameter Regularization*, 2024, arXiv:2311.09058, Algorithm 1.
    """
    rule = "be a Bound, such as wdjax.bounds.dependent(1.0)"
    checks.must("bound", isinstance(bound, Bound), rule, checks.shown(bound), error=TypeError)
    advice = 'Under optax.inject_hyperparams pass static_args=("measure",).'
    checks.function("measure", measure, advice=advice)
    checks.number("multiplier", multiplier, least=0)

    def start(params: Params) -> tuple[Params, ...]:
        def leaf(param: Any) -> tuple[jax.Array, ...]:
            value = measure(_wide(param), axes).value
            return jnp.full_like(value, multiplier), *bound.start(value)

        width = len(leaf(jnp.zeros(1)))
        rows = [leaf(param) for param in jax.tree.leaves(params)]
        like: Any = jax.tree.structure(params)
        return tuple(like.unflatten([row[i] for row in rows]) for i in range(width))

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        def leaf(update: Any, param: Any, m: Any, z: Any) -> tuple[Any, Any]:
            mu, *kept = z
            candidate = param + update
            measured = measure(candidate, axes)
            active = jnp.isfinite(kept[0])
            excess = jnp.where(active, measured.value - kept[0], 0)
            mu = jnp.maximum(0, mu + s * excess / measured.per)
            mu = jnp.minimum(mu, MOST_PER_STEP * measured.farthest / m)
            pull = jnp.where(active, m * mu, 0) * measured.gradient
            return update - pull, (mu, *bound.follow(measured.value, step.count, tuple(kept)))

        (s,) = step.values
        return step.map_with(memory, leaf)

    # not steady: μ grows until it is felt
    return _lift("cpr", method, strength, start, rules=rules, axes=axes, is_steady=False)


def cumulative_l1(
    strength: Strength, *, rules: Rules = STANDARD
) -> optax.GradientTransformationExtraArgs:
    """L1 with exact zeros that noise does not wake up: each entry pays what it still owes.

        c = θ + Δ      u ← u + s(t) m      θ⁺ = max(0, c − (u + q)) where c > 0,
        q ← q + (θ⁺ − c)                        min(0, c + (u − q)) where c < 0

    u is the L1 penalty an entry could have paid so far, q what it has received (signed).

    Args:
        strength: s >= 0, the threshold of one step, usually `lr_scaled(λ, lr)`: a number,
            schedule or traced scalar.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation, for the end of a chain. Its update needs `params`.

    Raises:
        ValueError: the strength is negative or not finite; rules do not fit the parameters (at
            `init`); `params` is missing (at `update`).
        TypeError: at `update`, updates are of a narrower dtype than their parameters.

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold.

    Example:
        >>> optimizer = optax.chain(optax.sgd(0.1), cumulative_l1(0.5))
        >>> params, grads = {"kernel": jnp.array([[2.0, -0.3]])}, {"kernel": jnp.zeros((1, 2))}
        >>> updates, _ = optimizer.update(grads, optimizer.init(params), params)
        >>> optax.apply_updates(params, updates)["kernel"]
        Array([[1.5, 0. ]], dtype=float32)

    References:
        Tsuruoka, Tsujii and Ananiadou, *Stochastic Gradient Descent Training for L1-regularized
        Log-linear Models with Cumulative Penalty*, 2009, section 3.2.
    """

    def start(params: Params) -> tuple[Params, Params]:
        owed = jax.tree.map(lambda p: jnp.zeros((), _wide(p).dtype), params)
        return owed, jax.tree.map(lambda p: jnp.zeros_like(_wide(p)), params)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        def leaf(update: Any, param: Any, m: Any, z: Any) -> tuple[Any, Any]:
            owed, received = z
            owed = owed + s * m
            candidate = param + update
            above = jnp.maximum(0, candidate - (owed + received))
            below = jnp.minimum(0, candidate + (owed - received))
            new = jnp.where(candidate > 0, above, jnp.where(candidate < 0, below, candidate))
            return new - param, (owed, received + (new - candidate))

        (s,) = step.values
        return step.map_with(memory, leaf)

    return _lift("cumulative_l1", method, strength, start, rules=rules, exact=True)


def spd(
    strength: Strength = 1.0,
    *,
    anchor: Anchor = "init",
    axes: Axes = None,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Selective projection decay: stay near the start wherever descent does not lead away.

        c = θ + Δ      r = clip((‖c − a‖ − ‖θ − a‖) / ‖c − a‖, 0, 1)
        θ⁺ = c − s(t) m r (c − a)  where ⟨g, θ − a⟩ > 0, else c

    With s = 1 the distance to the anchor does not grow where the gate is open. A group at the
    anchor has no direction and is left alone; no step goes past the anchor.

    Args:
        strength: s >= 0, about 1: a number, schedule or traced scalar. No learning rate.
        anchor: a, as in `decay_weights`: "init", the parameters at `init` (copied into the state),
            a pytree of arrays, None for zero, or one of `wdjax.anchors`.
        axes: along which one group extends; None is the whole leaf.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation, for the end of a chain. Its update needs `params` and the raw
        gradients: wrap the chain in `with_grad`.

    Raises:
        ValueError: the strength is negative or not finite; rules, axes or the anchor do not fit
            the parameters (at `init`); `params` or `grad` is missing (at `update`).

    Example:
        >>> params, anchor = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.zeros((1, 1))}
        >>> tx = spd(anchor=anchor)
        >>> grads, step = {"kernel": jnp.array([[1.0]])}, {"kernel": jnp.array([[0.5]])}
        >>> tx.update(step, tx.init(params), params, grad=grads)[0]["kernel"]  # back to radius 2
        Array([[0.]], dtype=float32)

    References:
        Tian et al., *Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models*, 2024,
        arXiv:2411.01713, Algorithm 1.
    """
    target = anchors.Anchor.of(anchor)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        def leaf(update: Any, param: Any, m: Any, grad: Any, a: Any) -> Any:
            point = 0 if a is None else a
            before, after = param - point, param + update - point
            radius, reached = (groups.root(groups.total(z * z, axes)) for z in (before, after))
            growth = jnp.clip(groups.ratio(reached - radius, reached), 0, 1)
            returns = groups.total(grad * before, axes) > 0
            part = jnp.where(returns, jnp.minimum(s * m * growth, 1), 0)
            return update - part * after

        (s,) = step.values
        grads = needed_gradient("spd", step.grads)
        kept = target.advance(memory, step.params)
        return step.map(leaf, grads, target.point(kept, step.params, step.extra)), kept

    start = target.init
    return _lift("spd", method, strength, start, rules=rules, axes=axes, sees_grads=True)


def swd(
    strength: Strength,
    *,
    decay: float = 0.999,
    largest: float = 0.1,
    rules: Rules = STANDARD,
) -> optax.GradientTransformationExtraArgs:
    """Stable weight decay: weaker while the gradients of the whole model are large.

        v ← β v + (1 − β) mean g²      w ← β w + (1 − β)
        θ⁺ = θ + Δ − min(s(t) m / √(v / w), l) θ

    One scalar for all decayed leaves: v / w is the mean of Adam's debiased second moments. Loss
    times c divides the decay by c. Where all gradients have been zero nothing decays.

    Args:
        strength: s >= 0, usually `lr_scaled(λ, lr)` with a λ as for SGD, about 5e-4: a number,
            schedule or traced scalar.
        decay: β in [0, 1), Adam's b2.
        largest: l in [0, 1), the largest fraction taken off in a step, for gradients that vanish.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation, for the end of a chain. Its update needs `params` and the raw
        gradients: wrap the chain in `with_grad`.

    Raises:
        ValueError: an argument is outside its range; rules do not fit the parameters (at
            `init`); `params` or `grad` is missing (at `update`).

    Example:
        >>> optimizer = with_grad(optax.chain(optax.sgd(0.0), swd(0.01)))
        >>> params, grads = {"kernel": jnp.array([[1.0]])}, {"kernel": jnp.array([[0.5]])}
        >>> optimizer.update(grads, optimizer.init(params), params)[0]["kernel"]
        Array([[-0.02]], dtype=float32)

    References:
        Xie et al., *On the Overlooked Pitfalls of Weight Decay and How to Mitigate Them*, 2023,
        arXiv:2011.11152, Algorithm 3 (AdamS).
    """
    checks.number("decay", decay, least=0, below=1)
    checks.number("largest", largest, least=0, below=1)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        grads = needed_gradient("swd", step.grads)
        squares = _sum_over_decayed(step, grads, lambda g, p: jnp.sum(g * g))
        size = _sum_over_decayed(step, grads, lambda g, p: jnp.asarray(float(g.size)))
        moment, weight = memory
        moment = decay * moment + (1 - decay) * groups.ratio(squares, size)
        weight = decay * weight + (1 - decay)
        rms = groups.root(moment / weight)

        def leaf(update: Any, param: Any, m: Any) -> Any:
            part = jnp.minimum(groups.ratio(s * m, rms), largest)
            return update - part.astype(param.dtype) * param

        (s,) = step.values
        return step.map(leaf), (moment, weight)

    def start(params: Params) -> tuple[jax.Array, jax.Array]:
        return _zero(params), _zero(params)

    return _lift("swd", method, strength, start, rules=rules, sees_grads=True)


def awd(
    strength: Strength, *, decay: float = 0.1, rules: Rules = STANDARD
) -> optax.GradientTransformationExtraArgs:
    """Adaptive weight decay: the decay's gradient keeps its ratio to the loss's. First in a chain.

        λ ← β λ + (1 − β) s(t) ‖g‖ / ‖θ‖      g ← g + λ m θ

    The norms are over all decayed leaves together; λ starts at 0. With ‖θ‖ = 0 there is nothing
    to decay.

    Args:
        strength: s >= 0, ‖λθ‖ / ‖g‖, about 0.02: a number, schedule or traced scalar.
        decay: β in [0, 1), how much of the last λ is kept.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError: the strength is negative or not finite, β is outside [0, 1); rules do not fit
            the parameters (at `init`); `params` is missing (at `update`).

    Example:
        >>> tx = awd(0.5, decay=0.0)
        >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[1.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["kernel"]
        Array([[1.5]], dtype=float32)

    References:
        Ghiasi, Shafahi and Ardekani, *Improving Robustness with Adaptive Weight Decay*, 2023,
        arXiv:2210.00094, Algorithm 1.
    """
    checks.number("decay", decay, least=0, below=1)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        pull = groups.root(_sum_over_decayed(step, step.updates, lambda g, p: jnp.sum(g * g)))
        norm = groups.root(_sum_over_decayed(step, step.updates, lambda g, p: jnp.sum(p * p)))
        ((s,), (last,)) = step.values, memory
        weight_decay = decay * last + (1 - decay) * s * groups.ratio(pull, norm)

        def leaf(update: Any, param: Any, m: Any) -> Any:
            return update + (weight_decay * m).astype(param.dtype) * param

        return step.map(leaf), (weight_decay.astype(last.dtype),)

    return _lift(
        "awd",
        method,
        strength,
        lambda params: (_zero(params),),
        rules=rules,
        check_order=check_is_early,
    )


def ada_decay(
    strength: Strength, *, alpha: float = 4.0, axes: Axes = None, rules: Rules = STANDARD
) -> optax.GradientTransformationExtraArgs:
    """AdaDecay: entries with large gradients decay more. First in a chain.

        z = (|g| − mean |g|) / std |g|      φ = 2 / (1 + exp(−α z))      g ← g + s(t) m φ θ

    φ lies in (0, 2), is 1 for an average gradient, and does not depend on the gradients' scale.
    Where all |g| are equal, φ = 1.

    Args:
        strength: s >= 0, λ of the coupled L2: a number, schedule or traced scalar.
        alpha: α >= 0, how sharply φ distinguishes; 0 is plain L2.
        axes: along which |g| is standardized; None is the whole leaf.
        rules: (selector, multiplier) pairs that give m; first match wins.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError: an argument is outside its range; rules or axes do not fit the parameters (at
            `init`); `params` is missing (at `update`).

    Example:
        >>> tx = ada_decay(0.1)
        >>> params, grads = {"kernel": jnp.ones((1, 2))}, {"kernel": jnp.array([[1.0, 2.0]])}
        >>> tx.update(grads, tx.init(params), params)[0]["kernel"]
        Array([[1.003..., 2.196...]], dtype=float32)

    References:
        Nakamura and Hong, *Adaptive Weight Decay for Deep Neural Networks*, 2019,
        arXiv:1907.08931, equations 4 to 6.
    """
    checks.number("alpha", alpha, least=0)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        def leaf(update: Any, param: Any, m: Any) -> Any:
            size, n = jnp.abs(update), groups.size(update, axes)
            centered = size - groups.total(size, axes) / n
            spread = groups.root(groups.total(centered * centered, axes) / n)
            phi = 2 * jax.nn.sigmoid(alpha * groups.ratio(centered, spread))
            return update + s * m * phi * param

        (s,) = step.values
        return step.map(leaf), memory

    return _lift(
        "ada_decay",
        method,
        strength,
        lambda params: (),
        rules=rules,
        axes=axes,
        check_order=check_is_early,
    )


def _lift(
    name: str,
    method: Callable[[Step, Memory], tuple[Params, Memory]],
    strength: Strength,
    start: Callable[[Params], Memory],
    **settings: Any,
) -> optax.GradientTransformationExtraArgs:
    """Lift a method of real parameters with one strength."""

    def check(rows: tuple[Ruled, ...], samples: Samples) -> None:
        del samples
        decayed = [row.leaf for row in rows if not is_off(row.multiplier)]
        wrong = [x.path for x in decayed if jnp.issubdtype(x.dtype, jnp.complexfloating)]
        if wrong:
            raise TypeError(
                f"`{name}` needs real parameters; got complex ones: "
                f"{paths.listed(map(repr, wrong))}. Exclude them by `rules`."
            )

    quantities = {"strength": strength}
    begin = lambda params, multipliers: start(params)
    return lift(name, method, quantities, start=begin, check=check, **settings)


def _wide(param: Any) -> jax.Array:
    """Return the leaf in float32 or wider; zeros for one that is not real and cannot decay."""
    if jnp.issubdtype(param.dtype, jnp.floating):
        return widened(param)
    return jnp.zeros(jnp.shape(param), jnp.float32)


def _zero(params: Params) -> jax.Array:
    """Return a zero of the widest dtype of all leaves, whatever the rules."""
    dtypes = (_wide(param).dtype for param in jax.tree.leaves(params))
    return jnp.zeros((), jnp.result_type(jnp.float32, *dtypes))


def _sum_over_decayed(step: Step, tree: Params, term: Callable[[Any, Any], Any]) -> Any:
    """Sum term(x, θ) over the decayed leaves of a tree like the parameters; m may be traced."""
    _, rows = lined_up(step.name, step.updates, step.params, step.multipliers, tree)
    chosen = [(x, param, m) for _, param, m, x in rows if x is not None and not is_off(m)]

    def counted(x: Any, param: Any, m: Any) -> Any:
        value = term(widened(x), widened(param))
        return jnp.where(m == 0, 0, value) if isinstance(m, jax.core.Tracer) else value

    return sum((counted(*row) for row in chosen), start=_zero(step.params))
