"""The one lift to Optax: a penalty, a strength, rules, a gate and an anchor become a step.

With the optimiser's finished update Δ and the candidate c = θ + Δ there are three places to act:

    add_decayed_weights   g ← g + s m ∂R(θ)               in the gradient, before the optimiser
    decay_weights         θ⁺ = c − s m φ ∂R(θ − a)        explicit, after the optimiser
    prox_weights          θ⁺ = a + prox_{s m R}(c − a)    implicit, after the optimiser
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax import anchors, penalties, schedules
from wdjax._lift.leaves import (
    Params,
    check_gate,
    check_widths,
    is_off,
    map_leaves,
    raw_gradients,
    require_params,
    warn_if_idle,
)
from wdjax._lift.place import check_is_early, check_is_last, check_place, is_scheduled
from wdjax._trees import paths
from wdjax.gates import Gate
from wdjax.penalties import Penalty
from wdjax.rules import Rules, check_rules, resolve, standard
from wdjax.schedules import Strength

Anchor: TypeAlias = anchors.Anchor | Params | str | None

EVERYTHING: Rules = (("**", 1.0),)
STANDARD: Rules = standard()


class DecayState(NamedTuple):
    """State of the three transformations; it does not depend on rules, strength or schedule.

    Attributes:
        count: int32 scalar, steps taken.
        anchor: what the anchor keeps, such as a copy of the initial parameters; () for none.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    anchor: Params


def add_decayed_weights(
    strength: Strength,
    penalty: Penalty = penalties.l2,
    *,
    rules: Rules = EVERYTHING,
    mask: Any = None,
) -> optax.GradientTransformationExtraArgs:
    """Add the penalty's gradient to the updates, wherever this stands in the chain.

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

    def step(update: Any, param: Any, s: Any, anchor: Any, grad: Any) -> Any:
        del anchor, grad
        return update + s * gradient(param)

    if isinstance(mask, bool | np.bool_) and is_scheduled("mask"):
        raise TypeError(
            "`mask` must be called with the parameters, and was called with a step count, as a "
            'schedule is. Name it for optax.inject_hyperparams: static_args=("mask",).'
        )
    gradient = _needed("add_decayed_weights", penalty, "gradient")
    return _lift(
        "add_decayed_weights", step, strength, rules=rules, mask=mask, check_order=check_is_early
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

    What takes steps at other times, such as `optax.MultiSteps`, goes around the whole chain. Decay
    behind it would act in every micro-step, and is refused.

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
        TypeError: the penalty is a constraint, or the gate is not a function; at `init`, it stands
            in a chain behind `optax.MultiSteps` or another wrapper that takes steps at other times,
            or behind `optax.transforms.freeze` of parameters that decay.

    Warns:
        UserWarning: at `init`, where the decay is too weak for the parameters' dtype to hold, or
            where nothing decays and vectors of unknown name are all that might.

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
    if gate is not None:
        check_gate(gate)

    def step(update: Any, param: Any, s: Any, anchor: Any, grad: Any) -> Any:
        z = param if anchor is None else param - anchor
        pull = s * gradient(z)
        if gate is not None:
            phi = jnp.asarray(gate(z, update, grad), pull.real.dtype)
            if phi.ndim not in (0, z.ndim):
                raise ValueError(
                    f"`gate` must return a number or as many axes as the weights {z.shape} have; "
                    f"got {phi.shape}, which could stand for another axis. Use keepdims=True."
                )
            pull = pull * phi
        return update - pull

    gradient = _needed("decay_weights", penalty, "gradient")
    check = functools.partial(_check_fractions, "decay_weights", penalty, explicit=True)
    return _lift(
        "decay_weights",
        step,
        strength,
        rules=rules,
        anchor=anchor,
        check=check,
        gated=gate is not None,
    )


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

    After an optimiser that multiplies its step by a diagonal D (Adam: 1/(√v̂ + ε)) the two solve
    different problems. The Euclidean prox settles where ∂loss = −(λ/D) ∂R, a penalty of λ/D_i for
    entry i: "decoupled" L1, as AdamW is to L2. The preconditioner's metric settles where
    ∂loss = −λ ∂R: the penalised loss as it is written down.

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
            where nothing decays and vectors of unknown name are all that might.

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
    _check_metric(metric, penalty)

    def step(update: Any, param: Any, s: Any, anchor: Any, grad: Any) -> Any:
        del grad
        candidate = param + update
        if anchor is None:
            return prox(candidate, s) - param
        return anchor + prox(candidate - anchor, s) - param

    prox = _needed("prox_weights", penalty, "prox")
    check = functools.partial(_check_fractions, "prox_weights", penalty, explicit=False)
    return _lift(
        "prox_weights",
        step,
        strength,
        rules=rules,
        anchor=anchor,
        check=check,
        exact=True,
        metric=metric,
    )


def _lift(
    name: str,
    step: Callable[[Any, Any, Any, Any, Any], Any],
    strength: Strength,
    *,
    rules: Rules,
    mask: Any = None,
    anchor: Anchor = None,
    check: Callable[[Params, Params, np.ndarray], None] = lambda params, resolved, strengths: None,
    exact: bool = False,
    metric: str | None = None,
    gated: bool = False,
    check_order: Callable[[str], None] = check_is_last,
) -> optax.GradientTransformationExtraArgs:
    """Lift a formula for one leaf, step(Δ, θ, s m, a, g) -> Δ⁺ in float32 or wider, to Optax.

    `exact` says that θ + Δ⁺ must be reached exactly, which a Δ narrower than θ cannot express;
    `gated` that the step looks at the raw gradient g, which may be missing; `check_order` raises
    where it stands on the wrong side of the learning rate.
    """
    schedule = schedules.as_schedule(strength)
    rules = check_rules(rules)
    target = anchors.as_anchor(anchor)

    def multipliers(params: Params) -> Params:
        resolved = resolve(rules, params)
        return resolved if mask is None else _masked(resolved, mask, params)

    def init(params: Params) -> DecayState:
        resolved = multipliers(params)
        check_place(params, rules, resolved)
        strengths = schedules.checked_samples(schedule)
        if strengths is not None:
            check(params, resolved, strengths)
            if strengths.max() > 0 and all(map(is_off, jax.tree.leaves(resolved))):
                warn_if_idle(name, rules, params)
        return DecayState(count=jnp.zeros((), jnp.int32), anchor=target.init(params))

    def update(
        updates: Params, state: DecayState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, DecayState]:
        require_params(name, params)
        check_order(name)
        s = schedules.at_step(schedule, state.count)

        def leaf(update: Any, param: Any, m: Any, a: Any, grad: Any, d: Any) -> Any:
            return step(update, param, s * m if d is None else s * m * d, a, grad)

        kept = target.advance(state.anchor, params)
        point = target.point(kept, params, extra_args)
        grads = raw_gradients(name, updates, params, extra_args.get("grad")) if gated else None
        resolved = multipliers(params)
        if exact:
            check_widths(name, updates, params, resolved)
        trees = resolved, point, grads, _diagonal(metric, extra_args)
        result = map_leaves(name, leaf, updates, params, *trees)
        return result, DecayState(optax.safe_increment(state.count), kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _diagonal(metric: str | None, extra_args: dict[str, Any]) -> Params | None:
    """Return the preconditioner where the metric is its own."""
    if metric is None:
        return None
    if extra_args.get("preconditioner") is None:
        raise ValueError(
            '`metric="preconditioner"` needs the diagonal D at every step. Use '
            "wdjax.decayed(factory)(..., implicit=True, metric=...), or pass `preconditioner=D` to "
            "`optimizer.update`."
        )
    return extra_args["preconditioner"]


def _masked(multipliers: Params, mask: Any, params: Params) -> Params:
    """Set multipliers to 0 where an Optax-style mask is False."""
    is_function = callable(mask) and jax.tree_util.all_leaves([mask])  # not a callable module
    keep = mask(params) if is_function else mask
    for flag in jax.tree.leaves(keep):
        if not isinstance(flag, bool | np.bool_):
            raise TypeError(
                f"`mask` must hold booleans; got {flag!r}. Multipliers belong into `rules`."
            )
    return jax.tree.map(
        lambda flag, part: jax.tree.map(lambda m: m if flag else 0.0, part), keep, multipliers
    )


# Checks, as early as the facts are known.


def _needed(name: str, penalty: Penalty, part: str) -> Callable[..., Any]:
    """Return the penalty's gradient or prox, or say why there is none."""
    if not isinstance(penalty, Penalty):
        raise TypeError(
            f"`penalty` must be a wdjax.penalties.Penalty, such as wdjax.penalties.l2; "
            f"got {penalty!r}."
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


def _check_metric(metric: str | None, penalty: Penalty) -> None:
    if metric not in (None, "preconditioner"):
        raise ValueError(f'`metric` must be None or "preconditioner"; got {metric!r}.')
    if metric is not None and isinstance(penalty, Penalty) and not penalty.separable:
        raise TypeError(
            f'`metric="preconditioner"` needs a penalty that is a sum over entries, such as l1; '
            f"got {penalty.name}. Use metric=None."
        )


def _check_fractions(
    name: str,
    penalty: Penalty,
    params: Params,
    multipliers: Params,
    strengths: np.ndarray,
    *,
    explicit: bool,
) -> None:
    """Refuse decay that flips signs; warn of decay that the dtype cannot hold."""
    top = float(strengths.max()) * penalty.curvature
    flipped: list[str] = []
    swallowed: dict[Any, list[str]] = {}
    for leaf, m in zip(paths.leaves(params), jax.tree.leaves(multipliers), strict=True):
        if isinstance(m, jax.core.Tracer) or not top * m > 0:
            continue
        if explicit and top * m >= 1:
            flipped.append(leaf.path)
        elif top * m < swallowed_below(leaf.dtype):
            swallowed.setdefault(leaf.dtype, []).append(leaf.path)
    if flipped:
        raise ValueError(
            "`strength` times multiplier must be < 1, the fraction taken off in a step; it reaches "
            f"{top:g} times the multiplier for {paths.listed(map(repr, flipped))} and would flip "
            "signs. Lower λ, check the law's units, or use wdjax.prox_weights."
        )
    for dtype, names in swallowed.items():
        warnings.warn(
            f"`{name}`: {dtype} parameters swallow this decay: it takes off at most {top:.2g} per "
            f"step, and a change below {swallowed_below(dtype):.2g} of a number rounds away, for "
            f"{paths.listed(map(repr, names))}. Wrap the optimizer in wdjax.compensated, or keep "
            "these parameters in float32.",
            stacklevel=2,
        )


def swallowed_below(dtype: Any) -> float:
    """Return the fraction below which a decay step leaves every number of that dtype as it was.

    Just below 1, numbers lie ε/2 apart: a change of less than half of that rounds away.

    Example:
        >>> swallowed_below(jnp.bfloat16)
        0.001953125
    """
    return float(jnp.finfo(dtype).eps) / 4  # type: ignore[no-untyped-call]
