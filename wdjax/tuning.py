"""λ learned while training, per group, from gradients on validation data.

This is wdjax's answer to the "adaptive regularization" (ARNN) that introductions to weight decay
mention without a clear paper; the nearest is Larsen et al., 1998. Here λ follows the gradient
of a validation loss, and what was learned can be read, checked and reused.
"""

import functools
import math
import re
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.sparse.linalg import cg

from wdjax import schedules
from wdjax._lift.leaves import Params, is_off, lined_up, map_leaves, moved_params, widened
from wdjax._lift.method import check_last, check_no_search
from wdjax._lift.rounding import warn_of_lost_fractions
from wdjax._trees import PyTree, checks
from wdjax._trees.checks import check_data
from wdjax._trees.paths import distinct, has_holes, listed, nodes, stands_for_all
from wdjax.penalties import Penalty, l2
from wdjax.rules import STANDARD, Ruled, Rules, check_rules, label, owners, ruled, warn_of_guesses
from wdjax.schedules import Strength

ValLoss = Callable[[Params, PyTree], jax.Array]

_WHOLE = "be those of the whole model, which `val_loss` needs"
_OUTSIDE = (
    "Put `hyper_decay` outside optax.masked and optax.partition, and give the multiplier 0 in "
    "`rules` to what must not decay."
)
EXAMPLES_PER_DECAY = 50  # fewer validation examples than this for each λ are soon overfitted


class HyperDecayState(NamedTuple):
    """State of `hyper_decay`: one entry of each array for each rule, in the order at `init`.

    Rules may come in another order after a restart, for each finds its λ by its name. Their number
    and their selectors are part of the state: a λ learned for one group does not apply to another.

    Attributes:
        count: int32 scalar, steps taken.
        log_weight_decay: (R,) float32, log λ; exp of it is what a log should show.
        hypergradient: (R,) float32, the last ∂L_val/∂log λ; not finite where λ stayed because
            nothing could be learned.
        opt_state: the state of the optimizer of log λ.
        entry_of: the name of each rule's selector -> int32 scalar r, its entry.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    log_weight_decay: jax.Array
    hypergradient: jax.Array
    opt_state: Any
    entry_of: dict[str, jax.Array]


def hyper_decay(
    strength: Strength,
    val_loss: ValLoss,
    val_data: PyTree,
    *,
    penalty: Penalty = l2,
    rules: Rules = STANDARD,
    init: float | jax.Array = 1e-3,
    every: int = 5,
    batch_size: int | None = None,
    hyper_optimizer: optax.GradientTransformation | None = None,
    bounds: tuple[float, float] = (1e-6, 1.0),
) -> optax.GradientTransformationExtraArgs:
    """Decoupled decay with one learned λ per rule; last in the chain.

        θ⁺ = θ + Δ − s(t) λ_r m ∂R(θ)
        every k steps:   h_r = ∂L_val(θ⁺)/∂log λ_r = −s(t) λ_r Σ_{leaves of r} m ⟨∇L_val(θ⁺), ∂R(θ)⟩
                         log λ ← clip(log λ − hyper step of h)

    The hypergradient of one step is exact and needs no second derivatives: one gradient of the
    validation loss every k steps, 1 + 1/k times the cost of training if validation batches are as
    large as training batches. Rules that share nothing learn apart; each rule is one group.

    Known limits. It is short-sighted: it sees one step ahead, which is good enough for λ but not
    for learning rates, momentum or dropout. A λ far too large at the start collapses the network,
    and no gradient leads back: start low. Many λ overfit the validation data, and a validation loss
    that has been used to choose λ is too optimistic. Inside `jax.vmap` the
    validation gradient is computed at every step.

    Args:
        strength: s(t) >= 0 for λ = 1: `wdjax.lr_scaled(1.0, learning_rate)` for λ as PyTorch's
            AdamW means it. A number, schedule or traced scalar.
        val_loss: `val_loss(params, batch)` -> scalar, without penalty, dropout or augmentation.
        val_data: a pytree of arrays with a leading axis of N examples that training never sees,
            finite. They become constants of the compiled program.
        penalty: R, with a gradient.
        rules: (selector, multiplier) pairs that give the groups and, inside them, m; first match
            wins. A rule with multiplier 0 never decays; the default has one λ for all weights.
        init: λ of the first step, within `bounds`; a number or traced scalar.
        every: k >= 1, steps from one hypergradient to the next.
        batch_size: validation examples per hypergradient, taken in turn, so shuffle them before;
            None takes all.
        hyper_optimizer: of log λ; None is `optax.adam(0.2)`, with which T steps move λ by at most
            about a factor e^(0.2 T / k).
        bounds: the smallest and the largest λ, 0 < smallest < largest.

    Returns:
        The transformation; its update needs `params`. The λ are in its state, which
        `learnt_rules` reads.

    Raises:
        ValueError: a number is out of range; data or rules do not fit; `val_data` are not finite;
            the largest λ would flip signs (at `init`); the state is of other rules (at `update`).
        TypeError: `val_loss` is not a function, the penalty has no gradient, `init` is not one
            number, `bounds` are not two, or `hyper_optimizer` is not an Optax optimizer.

    Warns:
        UserWarning: at `init`, there are fewer than 50 validation examples for each λ, or the first
            λ is too weak for the parameters' dtype to hold what it takes off.

    Example:
        >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[0.0]])}
        >>> val_loss = lambda params, batch: jnp.mean((params["kernel"][0, 0] - batch) ** 2) / 2
        >>> tx = hyper_decay(0.1, val_loss, jnp.ones(100), init=0.5, every=1)
        >>> _, state = tx.update(grads, tx.init(params), params)  # θ⁺ = 1.9: too large still
        >>> float(state.hypergradient.min())  # −0.1 · 0.5 · 2 · (1.9 − 1): more decay is better
        -0.0900...
        >>> float(jnp.exp(state.log_weight_decay).max())  # 0.5 e^0.2
        0.6107...

    References:
        The hypergradient: Luketina, Berglund, Greff and Raiko, *Scalable Gradient-Based Tuning of
        Continuous Regularization Hyperparameters*, 2016, arXiv:1511.06727; its limits:
        Wu, Ren, Liao and Grosse, *Understanding Short-Horizon Bias in Stochastic
        Meta-Optimization*, 2018, arXiv:1803.02021.
    """
    schedule = schedules.as_schedule(strength)
    rules = check_rules(rules)
    low, high = _checked_bounds(bounds, init)
    checks.whole("every", every)
    val_data, examples = _checked_data(val_loss, val_data, batch_size)
    has_gradient = isinstance(penalty, Penalty) and penalty.gradient is not None
    checks.must(
        "penalty",
        has_gradient,
        "be a penalty with a gradient",
        checks.shown(penalty),
        error=TypeError,
    )
    pull: Any = penalty.gradient
    adapt = optax.adam(0.2) if hyper_optimizer is None else hyper_optimizer
    checks.optimizer("hyper_optimizer", adapt)
    slope_at: Callable[[Params, PyTree], Params] = jax.grad(val_loss, allow_int=True)

    def init_state(params: Params) -> HyperDecayState:
        rows, _ = ruled(rules, params)
        warn_of_guesses("hyper_decay", rows)
        is_part = has_holes(params) and not stands_for_all(params)
        checks.must("params", not is_part, _WHOLE, "a part of it", _OUTSIDE, TypeError)
        of = penalty.curvature
        _check_strengths(schedule, rows, high * of, init * of)
        _check_many(rules, params, examples)
        log_decay = jnp.full(len(rules), jnp.log(init), jnp.float32)
        zeros = jnp.zeros((), jnp.int32), jnp.zeros_like(log_decay)
        entry_of = {name: jnp.int32(r) for r, name in enumerate(_names(rules))}
        return HyperDecayState(zeros[0], log_decay, zeros[1], adapt.init(log_decay), entry_of)

    def update(
        updates: Params, state: HyperDecayState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, HyperDecayState]:
        del extra_args
        params = moved_params("hyper_decay", updates, params)
        check_last("hyper_decay")
        check_no_search("hyper_decay")
        s = schedules.at_step(schedule, state.count)
        entries = _entries(rules, state)
        decay = jnp.exp(state.log_weight_decay)[entries]
        scaled = [
            (selector, m if is_off(m) else m * decay[r]) for r, (selector, m) in enumerate(rules)
        ]
        multipliers = ruled(tuple(scaled), params)[1]
        step = lambda update, param, m: update - s * m * pull(param)
        updates = map_leaves("hyper_decay", step, updates, params, multipliers)

        def look(log_decay: jax.Array, opt_state: Any) -> tuple[Any, ...]:
            batch = _window(val_data, state.count // every, batch_size)
            ahead = jax.tree.map(_moved, params, updates)
            slopes = slope_at(ahead, batch)
            h = -s * _inner_products(rules, pull, updates, params, multipliers, slopes)
            h = jnp.zeros_like(log_decay).at[entries].set(h.astype(jnp.float32))
            known = jnp.isfinite(h).all()
            hyper, new_state = adapt.update(jnp.where(known, h, 0.0), opt_state, log_decay)
            moved = jnp.clip(log_decay + hyper, math.log(low), math.log(high))
            # a validation loss that is not finite changes nothing, and shows in h
            log_decay, opt_state = jax.tree.map(
                functools.partial(jnp.where, known), (moved, new_state), (log_decay, opt_state)
            )
            return log_decay, h, opt_state

        log_decay, h, opt_state = jax.lax.cond(
            (state.count + 1) % every == 0,
            look,
            lambda log_decay, opt_state: (log_decay, state.hypergradient, opt_state),
            state.log_weight_decay,
            state.opt_state,
        )
        count = optax.safe_increment(state.count)
        return updates, HyperDecayState(count, log_decay, h, opt_state, state.entry_of)

    return optax.GradientTransformationExtraArgs(init_state, update)


def learnt_rules(opt_state: Any, rules: Rules = STANDARD) -> Rules:
    """Read the λ that `hyper_decay` learned, as rules.

    `wdjax.decay_weights(strength, rules=learnt_rules(opt_state, rules))` is the same decay with
    these λ held fixed: train once more, on training and validation data together.

    Args:
        opt_state: any optimizer state with one `HyperDecayState` in it.
        rules: those given to `hyper_decay`, in any order.

    Returns:
        The same selectors with multipliers λ_r m.

    Raises:
        ValueError: no such state is there, or more than one; it is of other rules.

    Example:
        >>> rules = (("bias", 0.0), ("**", 1.0))
        >>> tx = hyper_decay(0.1, lambda params, batch: 0.0, jnp.ones(50), rules=rules, init=0.25)
        >>> learnt_rules(tx.init({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))}), rules)
        (('bias', 0.0), ('**', 0.25))
    """
    found = nodes(opt_state, lambda node: isinstance(node, HyperDecayState))
    advice = "Pass the state of the optimizer that hyper_decay is a part of."
    checks.must("opt_state", len(found) == 1, "hold one state of hyper_decay", len(found), advice)
    rules, state = check_rules(rules), found[0]
    decay = jnp.exp(state.log_weight_decay)[_entries(rules, state)]
    pairs = zip(rules, decay, strict=True)
    return tuple((selector, 0.0 if is_off(m) else float(m * lam)) for (selector, m), lam in pairs)


class _Hypergradient(NamedTuple):
    """What `_implicit_hypergrad` found, with what tells whether to believe it.

    Attributes:
        gradient: ∂L_val/∂λ, a pytree like λ.
        residual: ‖∇L_val − H v‖ / ‖∇L_val‖ of the linear system; 1 is no progress at all.
        train_slope: ‖∇_θ L_train‖ at θ, 0 at the minimum that the formula assumes.
    """

    gradient: PyTree
    residual: jax.Array
    train_slope: jax.Array


def _implicit_hypergrad(
    train_loss: Callable[[Params, PyTree], jax.Array],
    val_loss: Callable[[Params], jax.Array],
    params: Params,
    *,
    weight_decay: PyTree,
    iterations: int = 20,
    damping: float = 0.0,
) -> _Hypergradient:
    """The gradient of the validation loss at the trained optimum, with respect to λ.

        dL_val(θ*(λ))/dλ = −(∂/∂λ ∇_θ L_train(θ, λ))ᵀ v,    (H + δI) v = ∇L_val(θ)
        H = ∇²_θ L_train(θ, λ),    θ*(λ) = argmin_θ L_train(θ, λ)

    v comes from conjugate gradients, with one product H v per iteration and no stored Hessian.
    It sees the whole effect of λ, where `hyper_decay` sees one step, but it is only as good as θ is
    a minimum: look at `train_slope` and `residual`. Stopping early acts like a little more damping.

    Args:
        train_loss: `train_loss(params, weight_decay)` -> scalar, with the penalty in it, such as
            loss + weight_decay · `wdjax.penalty_value(penalties.l2, params)`.
        val_loss: `val_loss(params)` -> scalar, without a penalty.
        params: θ, trained with this λ; a pytree of arrays, computed on in float32 or wider.
        weight_decay: λ, a pytree of numbers or arrays, whatever `train_loss` takes.
        iterations: >= 1, at most, of conjugate gradients.
        damping: δ >= 0, added to H where it is not positive definite.

    Returns:
        The `_Hypergradient`.

    Raises:
        ValueError: `iterations` or `damping` is out of range.

    Example:
        >>> train_loss = lambda w, lam: (w - 3.0) ** 2 / 2 + lam * w**2 / 2   # w* = 3 / (1 + λ)
        >>> found = _implicit_hypergrad(train_loss, lambda w: w, jnp.array(2.0), weight_decay=0.5)
        >>> found.gradient, found.train_slope  # −3 / (1 + λ)²
        (Array(-1.33..., dtype=float32), Array(0., dtype=float32))

    References:
        Larsen, Svarer, Andersen and Hansen, *Adaptive Regularization in Neural Network Modeling*,
        1998, doi:10.1007/3-540-49430-8_6; Pedregosa, *Hyperparameter Optimization
        with Approximate Gradient*, 2016, arXiv:1602.02355, Algorithm 1.
    """
    checks.whole("iterations", iterations)
    schedules.check_scalar("damping", damping)
    params = jax.tree.map(widened, params)
    weight_decay = jax.tree.map(widened, weight_decay)
    slope_at = jax.grad(train_loss)
    slope, product = jax.linearize(lambda p: slope_at(p, weight_decay), params)

    def damped(v: Params) -> Params:
        return jax.tree.map(lambda hv, x: hv + damping * x, product(v), v)

    target = jax.grad(val_loss)(params)
    v, _ = cg(damped, target, tol=1e-7, maxiter=iterations)  # type: ignore[no-untyped-call]
    pulled = jax.vjp(lambda lam: slope_at(params, lam), weight_decay)[1](v)[0]
    left = jax.tree.map(jnp.subtract, target, damped(v))
    norm = optax.tree.norm
    size = jnp.maximum(norm(target), float(np.finfo(np.float32).tiny))
    return _Hypergradient(jax.tree.map(jnp.negative, pulled), norm(left) / size, norm(slope))


# The pieces of hyper_decay.


def _names(rules: Rules) -> list[str]:
    """Name each rule apart; an address in memory would differ after a restart."""
    return distinct(re.sub(" at 0x[0-9a-f]+", "", label(selector)) for selector, _ in rules)


def _entries(rules: Rules, state: HyperDecayState) -> jax.Array:
    """(R,) which entry of the state belongs to each rule."""
    names, known = _names(rules), state.entry_of
    rule = f"be those of the state of hyper_decay: {listed(map(repr, sorted(known)))}"
    advice = "A λ learned for one group does not apply to another. Start from a new state."
    checks.must("rules", {*names} == {*known}, rule, listed(map(repr, names)), advice)
    return jnp.stack([known[name] for name in names])


def _moved(param: Any, update: Any) -> Any:
    return param if update is None else (param + update).astype(param.dtype)


def _window(data: PyTree, turn: jax.Array, size: int | None) -> PyTree:
    """The next `size` validation examples; the last batch of a pass is filled up from the start."""
    if size is None:
        return data
    examples = len(jax.tree.leaves(data)[0])
    start = turn % -(-examples // size) * size
    rows = (start + jnp.arange(size)) % examples
    return jax.tree.map(lambda x: x[rows], data)


def _inner_products(
    rules: Rules,
    pull: Callable[[Any], Any],
    updates: Params,
    params: Params,
    multipliers: Params,
    slopes: Params,
) -> jax.Array:
    """(R,) Σ m ⟨∇L_val, ∂R(θ)⟩ over the leaves of each rule, in float32 or wider."""
    rows = lined_up("hyper_decay", updates, params, multipliers, slopes)[1]
    sums: list[Any] = [jnp.zeros(())] * len(rules)
    for owner, (update, param, m, slope) in zip(
        owners(rules, params), [row for row in rows if row[1] is not None], strict=True
    ):
        if update is not None and not is_off(m):
            sums[owner] += m * jnp.sum(widened(slope) * pull(widened(param)))
    return jnp.stack(sums)


# Checks.


def _checked_bounds(bounds: tuple[float, float], init: Any) -> tuple[float, float]:
    low, high = bounds
    checks.number("bounds[0]", low, above=0)
    checks.number("bounds[1]", high, above=float(low))
    one = "Strengths per parameter are multipliers: put them into `rules`."
    checks.number("init", init, least=float(low), most=float(high), advice=one)
    return float(low), float(high)


def _checked_data(val_loss: Any, val_data: PyTree, batch_size: int | None) -> tuple[PyTree, int]:
    checks.function("val_loss", val_loss)
    examples = check_data("val_data", val_data)
    checks.whole("batch_size", batch_size, most=examples, optional=True)
    return jax.tree.map(jnp.asarray, val_data), examples


def _check_strengths(
    schedule: schedules.Schedule, rows: tuple[Ruled, ...], most: float, first: Any
) -> None:
    """The largest λ must not flip signs, and a dtype should hold what the first one takes off."""
    strengths = schedules.checked_samples(schedule)
    if strengths is not None:
        top = float(strengths.max())
        known = [row for row in rows if not isinstance(row.multiplier, jax.core.Tracer)]
        checks.fractions(
            "`strength` times the largest λ of `bounds`",
            [("", top * most * row.multiplier) for row in known],
            "Lower `bounds[1]`, or check the units of `strength`, which belongs to λ = 1.",
        )
        taken = [(row.leaf, top * first * row.multiplier) for row in known]
        warn_of_lost_fractions("hyper_decay", taken, " at the first λ")


def _check_many(rules: Rules, params: Params, examples: int) -> None:
    used = {r for r in owners(rules, params) if r >= 0 and not is_off(rules[r][1])}
    if len(used) * EXAMPLES_PER_DECAY > examples:
        names = listed([repr(label(rules[r][0])) for r in sorted(used)])
        warnings.warn(
            f"`hyper_decay` learns {len(used)} λ ({names}) from {examples} validation examples: "
            f"fewer than {EXAMPLES_PER_DECAY} for each, so they will overfit. Take larger groups "
            "or more examples.",
            stacklevel=3,
        )
