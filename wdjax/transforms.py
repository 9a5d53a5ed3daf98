"""Where to decay: a penalty, a strength, rules, a gate and an anchor become a step.

With the optimizer's finished update Δ and the candidate c = θ + Δ:

    add_decayed_weights   g ← g + s m ∂R(θ)               in the gradient, before the optimizer
    decay_weights         θ⁺ = c − s m φ ∂R(θ − a)        explicit, after the optimizer
    decay_after_step      θ⁺ = c − s m ∂R(c − a)          the same at the candidate
    prox_weights          θ⁺ = a + prox_{s m R}(c − a)    implicit, after the optimizer
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wdjax import anchors, penalties
from wdjax._lift.leaves import Params
from wdjax._lift.method import Memory, Samples, Step, lift
from wdjax._lift.place import check_is_early
from wdjax._lift.rounding import warn_of_lost_fractions
from wdjax._trees import checks
from wdjax.gates import Gate
from wdjax.penalties import Penalty
from wdjax.rules import EVERYTHING, STANDARD, Ruled, Rules
from wdjax.schedules import Strength

Anchor: TypeAlias = anchors.Anchor | Params | str | None


def add_decayed_weights(
    strength: Strength,
    penalty: Penalty = penalties.l2,
    *,
    rules: Rules = EVERYTHING,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Add the penalty's gradient to the updates, usually first in the chain.

        g ← g + s(t) m ∂R(θ)

    First in the chain it is the classic, "coupled" L2: the gradient of loss + λ/2 ‖θ‖². A drop-in
    for `optax.add_decayed_weights`, with the same default of decaying every parameter.

    Args:
        strength: s >= 0, a number, schedule or traced scalar; first in the chain it is λ itself.
        penalty: R, with a gradient.
        rules: (selector, multiplier) pairs; by default all parameters, multiplier 1.
        mask: as in Optax: a pytree of booleans, a prefix of one, or a function of the parameters
            that returns either. It is applied on top of the rules.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError: the strength is negative or not finite; rules are wrong (at `init`);
            `params` is missing (at `update`).
        TypeError: the penalty is a constraint; mask leaves are not booleans.

    Example:
        >>> tx = add_decayed_weights(0.1)
        >>> params, grads = {"w": jnp.array([2.0])}, {"w": jnp.array([1.0])}
        >>> tx.update(grads, tx.init(params), params)[0]["w"]
        Array([1.2], dtype=float32)

    References:
        Krogh and Hertz, *A Simple Weight Decay Can Improve Generalization*, 1991, equation 3.
    """
    gradient = _needed("add_decayed_weights", penalty, "gradient")

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        (s,) = step.values
        return step.map(lambda update, param, m: update + s * m * gradient(param)), memory

    return lift(
        "add_decayed_weights",
        method,
        {"strength": strength},
        rules=rules,
        restrict=lambda multipliers, params: _masked(multipliers, mask, params),
        check_order=check_is_early,
    )


def decay_weights(
    strength: Strength,
    penalty: Penalty = penalties.l2,
    *,
    rules: Rules = STANDARD,
    gate: Gate | None = None,
    anchor: Anchor = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay, explicit form: subtract the penalty's gradient. Last in the chain.

        θ⁺ = θ + Δ − s(t) m φ(θ − a, Δ, g) ∂R(θ − a)

    Wrappers that change when a step is taken, such as `optax.MultiSteps`, must wrap the whole
    chain: decay that comes after them would act in every micro-step.

    Args:
        strength: s, the fraction taken off per step, in [0, 1): a number, schedule or traced
            scalar. The learning rate enters only through a law, such as `lr_scaled`.
        penalty: R, with a gradient.
        rules: (selector, multiplier) pairs that give m; first match wins.
        gate: φ, such as `gates.cautious`; None decays always.
        anchor: a, the point to decay towards: None is zero, "init" the parameters at `init`
            (copied into the state), a pytree like the parameters (not in the state), or one of
            `wdjax.anchors`, such as `ema(0.999)`.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError: the strength is negative, not finite, or so large that signs would flip (at
            `init` for schedules); rules or the anchor do not fit the parameters (at `init`);
            `params` is missing (at `update`).
        TypeError: the penalty is a constraint, or the gate is not a function; at `update`, in a
            plain `optax.chain`, the learning rate comes later, or a wrapper such as
            `optax.MultiSteps` earlier.

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold, or
            where nothing decays and only vectors with unfamiliar names might.

    Example:
        >>> tx = optax.chain(optax.sgd(0.1), decay_weights(0.01))
        >>> params, grads = {"kernel": jnp.ones((1, 1))}, {"kernel": jnp.zeros((1, 1))}
        >>> tx.update(grads, tx.init(params), params)[0]["kernel"]
        Array([[-0.01]], dtype=float32)

    References:
        Loshchilov and Hutter, *Decoupled Weight Decay Regularization*, 2019, arXiv:1711.05101,
        Algorithm 2; Li et al., *Explicit Inductive Bias for Transfer Learning*, 2018,
        arXiv:1802.01483 (anchor).
    """
    checks.function("gate", gate, optional=True, advice="For instance wdjax.gates.cautious.")
    gradient = _needed("decay_weights", penalty, "gradient")

    def pull(update: Any, z: Any, grad: Any) -> Any:
        if gate is None:
            return gradient(z)
        phi = jnp.asarray(gate(z, update, grad), z.real.dtype)
        if phi.ndim not in (0, z.ndim):
            raise ValueError(
                f"`gate` must return a number or as many axes as the weights {z.shape} have; "
                f"got {phi.shape}, which could stand for another axis. Use keepdims=True."
            )
        return phi * gradient(z)

    def leaf(s: Any, update: Any, param: Any, m: Any, a: Any, grad: Any) -> Any:
        return update - s * m * pull(update, param if a is None else param - a, grad)

    return _anchored(
        "decay_weights",
        leaf,
        strength,
        penalty,
        rules,
        anchor,
        further=lambda step: step.grads,
        sees_grads=gate is not None,
    )


def decay_after_step(
    strength: Strength,
    penalty: Penalty = penalties.l2,
    *,
    rules: Rules = STANDARD,
    anchor: Anchor = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay of the weights that the step has reached. Last in the chain.

        θ⁺ = c − s(t) m ∂R(c − a),  c = θ + Δ          with l2: (1 − s m)(θ + Δ)

    `decay_weights` takes the pull at θ: (1 − s m) θ + Δ. The two differ by s m Δ, second order in
    the learning rate. With l2, `prox_weights` divides instead: (θ + Δ) / (1 + s m).

    Args:
        strength: s, the fraction taken off per step, in [0, 1), as in `decay_weights`.
        penalty: R, with a gradient.
        rules: (selector, multiplier) pairs that give m; first match wins.
        anchor: a, as in `decay_weights`.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError, TypeError: as in `decay_weights`.

    Warns:
        UserWarning: as in `decay_weights`.

    Example:
        >>> tx = optax.chain(optax.sgd(0.5), decay_after_step(0.1))
        >>> params = grads = {"kernel": jnp.ones((1, 1))}
        >>> optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])["kernel"]
        Array([[0.45]], dtype=float32)

    References:
        Ziyin, Wang and Ueda, *LaProp: Separating Momentum and Adaptivity in Adam*, 2021,
        arXiv:2002.04839, whose code decays so; thinc's `L2_is_weight_decay` too.
    """
    gradient = _needed("decay_after_step", penalty, "gradient")

    def leaf(s: Any, update: Any, param: Any, m: Any, a: Any, _: Any) -> Any:
        reached = param + update
        return update - s * m * gradient(reached if a is None else reached - a)

    return _anchored("decay_after_step", leaf, strength, penalty, rules, anchor)


def prox_weights(
    strength: Strength,
    penalty: Penalty = penalties.l2,
    *,
    rules: Rules = STANDARD,
    anchor: Anchor = None,
    metric: str | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay, implicit form: the penalty's proximal map. Last in the chain.

        θ⁺ = a + prox_{s(t) m R}(θ + Δ − a)         metric=None, Euclidean
        θ⁺ = a + prox_{s(t) m D R}(θ + Δ − a)       metric="preconditioner"

    Stable for every strength, and with `l1` or `group_lasso` it gives exact zeros.

    After an optimizer that multiplies its step by a diagonal D (Adam: 1/(√v̂ + ε)) the two solve
    different problems. The Euclidean prox settles where ∂loss = −(λ/D) ∂R, a penalty of λ/D_i for
    entry i: "decoupled" L1, as AdamW is to L2. The preconditioner's metric settles where
    ∂loss = −λ ∂R: the penalized loss as written.

    Args:
        strength: s >= 0, a number, schedule or traced scalar. A constraint is projected onto
            wherever s > 0, whatever its size.
        penalty: R, or a constraint such as `penalties.ball`.
        rules: (selector, multiplier) pairs that give m; first match wins.
        anchor: a, as in `decay_weights`.
        metric: None, or "preconditioner": D comes as the extra argument `preconditioner` of
            update, a pytree like the parameters. `wdjax.decayed` passes it.

    Returns:
        The transformation. Its update needs `params`.

    Raises:
        ValueError: the strength is negative or not finite; rules or the anchor do not fit the
            parameters (at `init`); `params` or the preconditioner is missing (at `update`).
        TypeError: the penalty is not a sum over entries, which that metric needs; at `update`,
            updates are of a narrower dtype than their parameters, so that θ + Δ could not reach
            the prox's result.

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold, or
            where nothing decays and only vectors with unfamiliar names might.

    Example:
        >>> tx = optax.chain(optax.sgd(0.1), prox_weights(0.5, penalties.l1))
        >>> params, grads = {"kernel": jnp.array([[2.0, 0.3]])}, {"kernel": jnp.zeros((1, 2))}
        >>> optax.apply_updates(params, tx.update(grads, tx.init(params), params)[0])["kernel"]
        Array([[1.5, 0. ]], dtype=float32)

    References:
        Parikh and Boyd, *Proximal Algorithms*, 2014, section 4.2; Zhuang et al., *Understanding
        AdamW through Proximal Methods and Scale-Freeness*, 2022, arXiv:2202.00089 (l2); Yun,
        Lozano and Yang, *Adaptive Proximal Gradient Methods for Structured Neural Networks*,
        2021, Algorithm 1 (metric).
    """
    prox = _needed("prox_weights", penalty, "prox")
    checks.choice("metric", metric, (None, "preconditioner"))
    fits, rule = (
        metric is None or penalty.separable,
        "be a sum over entries, such as l1, with a metric",
    )
    checks.must("penalty", fits, rule, penalty.name, "Use metric=None.", TypeError)

    def leaf(s: Any, update: Any, param: Any, m: Any, a: Any, d: Any) -> Any:
        strength = s * m if d is None else s * m * d
        if a is None:
            return prox(param + update, strength) - param
        return a + prox(param + update - a, strength) - param

    return _anchored(
        "prox_weights",
        leaf,
        strength,
        penalty,
        rules,
        anchor,
        further=lambda step: _diagonal(metric, step.extra),
        exact=True,
    )


def _anchored(
    name: str,
    leaf: Callable[..., Any],
    strength: Strength,
    penalty: Penalty,
    rules: Rules,
    anchor: Anchor,
    *,
    further: Callable[[Step], Params | None] = lambda step: None,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Lift leaf(s, Δ, θ, m, a, further) -> Δ⁺ with an anchor a; options are those of `lift`."""
    target = anchors.Anchor.of(anchor)

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        (s,) = step.values
        kept = target.advance(memory, step.params)
        point = target.point(kept, step.params, step.extra)
        return step.map(functools.partial(leaf, s), point, further(step)), kept

    return lift(
        name,
        method,
        {"strength": strength},
        rules=rules,
        start=lambda params, _: target.init(params),
        check=functools.partial(_check_taken, name, penalty),
        is_steady=penalty is not penalties.l2,  # whose fraction is known
        **options,
    )


def _diagonal(metric: str | None, extra: Mapping[str, Any]) -> Params | None:
    """Return the preconditioner where the metric is its own."""
    if metric is None:
        return None
    if extra.get("preconditioner") is None:
        raise ValueError(
            '`metric="preconditioner"` needs the diagonal D at every step. Use '
            "wdjax.decayed(factory)(..., implicit=True, metric=...), or pass `preconditioner=D` to "
            "`optimizer.update`."
        )
    return extra["preconditioner"]


def _masked(multipliers: Params, mask: Any, params: Params) -> Params:
    """Set multipliers to 0 where an Optax-style mask is False."""
    if mask is None:
        return multipliers
    is_function = callable(mask) and jax.tree_util.all_leaves([mask])  # not a callable module
    keep = mask(params) if is_function else mask
    checks.flags("mask", keep, "Multipliers go into `rules`.")
    return jax.tree.map(
        lambda flag, part: jax.tree.map(lambda m: m if flag else 0.0, part), keep, multipliers
    )


def _needed(name: str, penalty: Penalty, part: str) -> Callable[..., Any]:
    """Return the penalty's gradient or prox, or say why there is none."""
    rule = "be a wdjax.penalties.Penalty, such as wdjax.penalties.l2"
    checks.must(
        "penalty", isinstance(penalty, Penalty), rule, checks.shown(penalty), error=TypeError
    )
    function: Callable[..., Any] | None = getattr(penalty, part)
    if function is None:
        other = "wdjax.prox_weights" if part == "gradient" else "wdjax.decay_weights"
        raise TypeError(
            f"`{name}` needs a penalty with a {part}; {penalty.name} has none. Use {other}."
        )

    def shaped(z: Any, *strength: Any) -> Any:
        result = function(z, *strength)
        if jnp.shape(result) != jnp.shape(z):
            raise ValueError(
                f"the {part} of the penalty {penalty.name} must have the shape {jnp.shape(z)}; got "
                f"{jnp.shape(result)}. The value is one number, the {part} one for each entry."
            )
        return result

    return shaped


def _check_taken(name: str, penalty: Penalty, rows: tuple[Ruled, ...], samples: Samples) -> None:
    """Refuse decay that flips signs, which a prox does not; warn of decay that the dtype loses."""
    strengths = samples["strength"]
    if strengths is None:
        return
    top = float(strengths.max()) * penalty.curvature
    taken = [(row.leaf, top * row.multiplier) for row in rows]
    if name != "prox_weights":
        checks.fractions("`strength` times multiplier", [(leaf.path, x) for leaf, x in taken])
    if penalty is penalties.l2:
        warn_of_lost_fractions(name, taken)
