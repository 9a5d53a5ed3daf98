"""What training does to the weights, read inside the compiled step: norms, rotation, decay.

`measured(optimizer)` makes the same updates and keeps readings in its state;
`latest(opt_state)` shows the newest, `series(history)` those of a run.
"""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax import lax

from wdjax import stacking
from wdjax._lift.leaves import Params, lined_up, moved_params, widened
from wdjax._trees import checks, paths
from wdjax._trees.groups import product, ratio
from wdjax.optimizers import Decayed
from wdjax.rules import STANDARD, Rules, check_rules, label, owners, resolve

Readings: TypeAlias = dict[str, dict[str, Any]]

_OF_STEP = ("weight_norm", "weight_rms", "update_norm", "rotation", "effective_learning_rate")
_NAMES = (*_OF_STEP, "decay_to_update", "gated", "strength")

_LONGEST_ROW = 2**14  # numbers summed one by one; more would lose digits


class MeasuredState(NamedTuple):
    """State of `measured`; its structure does not depend on multipliers, strength or schedule.

    It does depend on the groups. A state saved with other groups can be resumed, except in compiled
    loops, which need a fixed structure: the readings of a new group are 0 until it is read.

    Attributes:
        count: int32 scalar, steps taken.
        inner_state: of the optimizer.
        readings: group -> (8,) float32, or (5,) without the readings of decay; `latest` names them.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    inner_state: Any
    readings: dict[str, jax.Array]


class Measured(optax.GradientTransformationExtraArgs):  # type: ignore[misc]  # Any to mypy
    """What `measured` builds: an optimizer that can tell how its readings are grouped.

    Attributes:
        optimizer: what it measures, which makes the same updates.
        per: "rule" or "leaf".
        rules: (selector, multiplier) pairs to group by.
    """

    optimizer: optax.GradientTransformation
    per: str
    rules: Rules


def measured(
    optimizer: optax.GradientTransformation,
    *,
    per: str = "rule",
    every: int = 10,
    rules: Rules | None = None,
) -> Measured:
    """Measure what each step does to the weights, without changing the step.

    The updates are the same bit for bit where they are compiled by themselves. In one program with
    the gradients a compiler may round the last bit differently, with `measured` and without it.

        weight_norm               ‖θ‖, before the step
        weight_rms                ‖θ‖ / √n
        update_norm               ‖Δ‖, decay included: θ⁺ = θ + Δ
        rotation                  the angle between θ and θ + Δ, in radians; right to about 1e-4 of
                                  the length of Δ₀ over that of θ
        effective_learning_rate   ‖Δ₀‖ / ‖θ‖, with Δ₀ the step before decay
        decay_to_update           ‖Δ − Δ₀‖ / ‖Δ₀‖
        gated                     share of entries that decay should move and did not
        strength                  s(t) m

    The leaves of a group count as one vector of n numbers. A ratio over 0 reads 0. `gated` counts
    entries θ ≠ 0 with s m > 0 that are the same with and without decay: the gate was closed, or
    the update's dtype swallowed the decay. The last three, and Δ₀, need an optimizer built by
    `wdjax.decayed`: wrap that directly, and place everything else around; any chain becomes one
    as `decayed(lambda learning_rate: optax.chain(...))(...)`. For other optimizers Δ₀ = Δ. Changes
    of the step that come after `measured` in a chain are not measured.

    Args:
        optimizer: any complete Optax optimizer.
        per: "rule" groups the leaves by the rule that claims them; "leaf" reads each by its path.
        every: n >= 1; read at steps 0, n, 2n, ... and hold the readings in between. A reading costs
            two to three steps of Adam; the steps in between cost almost nothing:
            `scripts/bench.py metrics` measures both.
        rules: (selector, multiplier) pairs to group by; None: the optimizer's own, where it was
            built by `decayed`, else `standard()`.

    Returns:
        The optimizer with a `MeasuredState`; its update needs `params`. Everything reads 0 before
        the first step. `make_train_step` and `fit` report the readings as metrics["measured"].

    Raises:
        TypeError: `optimizer` is not an Optax optimizer.
        ValueError: `per` or `every` is something else; rules are wrong (at `init`); `params` is
            missing (at `update`).

    Example:
        >>> from wdjax.optimizers import decayed
        >>> optimizer = measured(decayed(optax.sgd)(0.1, weight_decay=0.5))
        >>> params, grads = {"kernel": jnp.full((1, 4), 2.0)}, {"kernel": jnp.ones((1, 4))}
        >>> updates, state = optimizer.update(grads, optimizer.init(params), params)
        >>> now = latest(state)["weight"]
        >>> {name: round(float(now[name]), 3) for name in ("weight_norm", "decay_to_update")}
        {'weight_norm': 4.0, 'decay_to_update': 1.0}

    References:
        Kosson, Messmer and Jaggi, *Rotational Equilibrium*, 2024, arXiv:2305.17212 (rotation);
        Karras et al., *Analyzing and Improving the Training Dynamics of Diffusion Models*, 2024,
        arXiv:2312.02696 (effective learning rate: the relative size of updates).
    """
    checks.optimizer("optimizer", optimizer)
    is_outer = isinstance(optimizer, optax.MultiSteps)
    rule, got = "be the optimizer inside optax.MultiSteps", "a MultiSteps"
    checks.must("optimizer", not is_outer, rule, got, error=TypeError)
    checks.choice("per", per, ("rule", "leaf"))
    checks.whole("every", every)
    inner = optax.with_extra_args_support(optimizer)
    own = optimizer.rules if isinstance(optimizer, Decayed) else STANDARD
    rules = own if rules is None else rules
    groups = functools.partial(groups_of, per=per, rules=rules)
    size = len(_NAMES if isinstance(optimizer, Decayed) else _OF_STEP)

    def held(readings: dict[str, jax.Array], params: Params) -> dict[str, jax.Array]:
        """The readings of today's groups, for a state may have been saved under other rules."""
        known = {name: row for name, row in readings.items() if row.shape == (size,)}
        names = dict.fromkeys(groups(stacking.unstack(params)))
        new = {name: jnp.zeros(size, jnp.float32) for name in names if name is not None}
        return new | {name: row for name, row in known.items() if name in new}

    def init(params: Params) -> MeasuredState:
        # optax.tree_map_params gives a placeholder, without any names
        readings: Any = jnp.zeros(()) if paths.stands_for_all(params) else held({}, params)
        return MeasuredState(jnp.zeros((), jnp.int32), inner.init(params), readings)

    def update(
        updates: Params, state: MeasuredState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, MeasuredState]:
        params = moved_params("measured", updates, params)
        step = _step_of(inner, extra_args, jit=_is_traced(state.count))

        def read() -> dict[str, jax.Array]:
            before, after, _ = step(updates, state.inner_state, params)
            s, multipliers = _decay(inner, state.inner_state, params)
            parts = lax.stop_gradient((params, after, before, multipliers))
            theta, *others = stacking.unstack(parts)
            return _readings(groups(theta), lax.stop_gradient(s), theta, *others)

        due = True if every == 1 else state.count % every == 0
        readings = _when(due, read, lambda: held(state.readings, params))
        # The step is computed once more, not passed out of the branch: so the compiler may fuse
        # it with θ + Δ as ever, and steps without a reading pay next to nothing.
        _, updates, inner_state = step(_after(readings, updates), state.inner_state, params)
        count = optax.safe_increment(state.count)
        return updates, MeasuredState(count, inner_state, readings)

    built = Measured(init, update)
    built.optimizer, built.per, built.rules = optimizer, per, rules
    return built


def latest(opt_state: Any) -> Readings:
    """Read the newest readings out of an optimizer's state.

    Args:
        opt_state: of an optimizer with `measured` in it, at any depth of chains and wrappers, or
            a pytree that holds one, such as a `TrainState`. Inside `jit` too.

    Returns:
        group -> name -> float32 scalar; the names are those of `measured`. A second group of the
        same name, from another `measured`, is called "name (2)".

    Raises:
        ValueError: there are no readings.

    Example:
        >>> optimizer = optax.chain(optax.clip(1.0), measured(optax.sgd(0.1), per="leaf"))
        >>> params = {"w": jnp.array([3.0, 4.0])}
        >>> _, state = optimizer.update(params, optimizer.init(params), params)
        >>> float(latest(state)["w"]["weight_norm"])
        5.0
    """
    states = paths.nodes(opt_state, lambda node: isinstance(node, MeasuredState))
    rule = "hold the readings of metrics.measured"
    advice = "Build it as wdjax.metrics.measured(optimizer)."
    checks.must("opt_state", states, rule, f"a {type(opt_state).__name__} without readings", advice)
    rows = [row for state in states for row in state.readings.items()]
    return {
        name: {_NAMES[i]: row[..., i] for i in range(row.shape[-1])}
        for name, (_, row) in zip(paths.distinct(name for name, _ in rows), rows, strict=True)
    }


def series(history: Any) -> Readings:
    """Take the readings of a run out of what `fit` returns.

    Args:
        history: a `History` of a run whose optimizer has `measured` in it.

    Returns:
        group -> name -> (T,) float32, one entry for each of `history.steps`; between readings, and
        in steps that were skipped, the last one is repeated.

    Raises:
        ValueError: the history has no readings.

    Example:
        >>> import numpy as np
        >>> from wdjax import History
        >>> found = {"weight": {"rotation": np.array([0.1, 0.2])}}
        >>> history = History(np.arange(2), {"measured": found}, np.arange(0), {})
        >>> series(history)["weight"]["rotation"]
        array([0.1, 0.2])
    """
    known: dict[str, Readings] = getattr(history, "metrics", {})
    advice = "Train with metrics.measured(optimizer), in make_train_step and TrainState.create."
    got = sorted(known) or checks.kind_of(history)
    checks.must("history", "measured" in known, "have metrics['measured']", got, advice)
    return known["measured"]


# Groups of leaves, by name.


def groups_of(params: Params, *, per: str = "rule", rules: Rules = STANDARD) -> list[str | None]:
    """Name the group that `measured` reads each leaf in.

    Args:
        params: a pytree of arrays or of ShapeDtypeStructs.
        per: "rule" or "leaf", as for `measured`.
        rules: (selector, multiplier) pairs to group by.

    Returns:
        A name for each leaf; None for leaves that are not floating, such as counters.

    Raises:
        RuleError: as in `resolve`.

    Example:
        >>> groups_of({"bias": jnp.ones(3), "kernel": jnp.ones((3, 3))}, per="leaf")
        ['bias', 'kernel']
    """
    rules = check_rules(rules)
    claims = owners(rules, params)
    if per == "leaf":
        names = paths.distinct(leaf.path or "." for leaf in paths.leaves(params))
        return [None if owner < 0 else name for owner, name in zip(claims, names, strict=True)]
    winners = sorted(set(claims) - {-1})
    titles = dict(zip(winners, paths.distinct(label(rules[i][0]) for i in winners), strict=True))
    return [titles.get(owner) for owner in claims]


# Readings.


def _decay(inner: optax.GradientTransformation, state: Any, params: Params) -> tuple[Any, Params]:
    """s(t) and the multipliers, where decay can be told from the rest."""
    if not isinstance(inner, Decayed):
        return None, None
    return inner.shrink(state), resolve(inner.rules, params)


def _readings(
    names: list[str | None],
    s: Any,
    params: Params,
    after: Params,
    before: Params | None,
    multipliers: Params | None,
) -> dict[str, jax.Array]:
    rows = lined_up("measured", after, params, before, multipliers)[1]
    groups: dict[str, list[_Leaf]] = {}
    rows = [row for row in rows if row[1] is not None]  # a hole in updates and params alike
    for name, (update, param, first, m) in zip(names, rows, strict=True):
        if name is not None:
            shrink = None if s is None else s * m
            sums = _sums(param, update, first, shrink)
            groups.setdefault(name, []).append(_Leaf(jnp.size(param), m, sums))
    return {name: _reading(s, leaves) for name, leaves in groups.items()}


class _Leaf(NamedTuple):
    size: int
    m: Any
    sums: jax.Array


@jax.jit
def _sums(param: Any, update: Any, before: Any, shrink: Any) -> jax.Array:
    """Sums over one leaf: |θ|², |Δ|², Re θ*ν, |ν|², where ν = Δ + s m θ.

    With decay also |Δ₀|², |Δ − Δ₀|², s m |θ|², entries held back. Traced once for each shape.
    """
    w = widened(param)
    u = jnp.zeros_like(w) if update is None else widened(update)
    # without the pull to zero, which is along θ and may be much the larger part of Δ
    v = u if shrink is None else u + shrink * w
    terms = [product(w, w), product(u, u), product(w, v), product(v, v)]
    if shrink is None:
        return _sums_in_one_pass(terms)
    b = u if before is None else widened(before)
    held = (
        (_rounded(update, u) == _rounded(before, b))
        & (w != 0)
        & (shrink > 0)
        & (update is not None)
    )
    of_decay = [product(b, b), product(u - b, u - b), shrink * terms[0]]
    return _sums_in_one_pass([*terms, *of_decay, held.astype(terms[0].dtype)])


def _rounded(x: Any, wide: jax.Array) -> jax.Array:
    """What is in x, also where a compiler has it in more digits: it may skip a cast there and back.

    A complex number is as good as its parts.
    """
    if x is None:
        return wide
    kept: Any = jnp.finfo(x.dtype)  # type: ignore[no-untyped-call]
    part = functools.partial(
        lax.reduce_precision, exponent_bits=kept.nexp, mantissa_bits=kept.nmant
    )
    if jnp.iscomplexobj(wide):
        return lax.complex(part(wide.real), part(wide.imag))
    return part(wide)


def _sums_in_one_pass(terms: list[jax.Array]) -> jax.Array:
    """Sum each of the arrays; rows first, all at once, so that memory is read once."""
    ndim = terms[0].ndim
    if ndim > 1 and terms[0].shape[-1] <= _LONGEST_ROW:
        zeros = tuple(jnp.zeros((), term.dtype) for term in terms)
        add = lambda x, y: tuple(map(operator.add, x, y))
        terms = lax.reduce(tuple(terms), zeros, add, (ndim - 1,))
    if terms[0].size > _LONGEST_ROW:
        return jnp.stack([jnp.sum(term) for term in terms])
    # few numbers: one kernel for all sums, of which leaves of one shape share the code
    return jnp.sum(jnp.stack(terms), axis=range(1, terms[0].ndim + 1))


def _reading(s: Any, leaves: list[_Leaf]) -> jax.Array:
    """The readings of one group."""
    # a fence: what the compiler makes of the leaves must not become one kernel with all of them
    sums = lax.optimization_barrier(jnp.stack([leaf.sums for leaf in leaves]))  # type: ignore[no-untyped-call]
    ww, uu, wv, vv, *decay = sums.T
    n = max(sum(leaf.size for leaf in leaves), 1)
    weight, update = jnp.sqrt(jnp.sum(ww)), jnp.sqrt(jnp.sum(uu))
    # of each leaf: the part of ν along θ is slope · θ, that of Δ is tilt · θ
    slope = ratio(wv, ww)
    across, tilt = jnp.maximum(vv - slope * wv, 0), slope
    if decay:
        tilt = slope - ratio(decay[2], ww)
    mean = ratio(jnp.sum(ww * tilt), weight * weight)
    # the angle from the parts of Δ across θ and along it; its cosine would have no digits left
    across = jnp.sqrt(jnp.sum(across + ww * (tilt - mean) ** 2))
    angle = jnp.where(weight > 0, jnp.arctan2(across, weight * (1 + mean)), 0)
    values = [weight, weight / math.sqrt(n), update, angle, ratio(update, weight)]
    if decay:
        bb, part, _, held = (jnp.sum(x) for x in decay)
        before = jnp.sqrt(bb)
        values[-1] = ratio(before, weight)
        strength = s * sum(leaf.size / n * leaf.m for leaf in leaves)
        values += [ratio(jnp.sqrt(part), before), held / n, strength]
    return jnp.stack(values).astype(jnp.float32)


# When to read.


def _step_of(
    inner: optax.GradientTransformationExtraArgs, extra_args: dict[str, Any], *, jit: bool
) -> Callable[..., tuple[Params | None, Params, Any]]:
    """(Δ, state, θ) -> (step before decay, where it can be told apart, whole step, state)."""

    def step(updates: Params, state: Any, params: Params) -> tuple[Params | None, Params, Any]:
        if isinstance(inner, Decayed):
            return inner.parts(updates, state, params, **extra_args)
        return None, *inner.update(updates, state, params, **extra_args)

    return jax.jit(step) if jit else step  # traced once, though it is taken twice


def _when(due: Any, read: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
    """A branch; outside jit a Python one, which does not compile again at every call."""
    if _is_traced(due):
        return lax.cond(due, read, otherwise)
    return read() if due else otherwise()


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _after(readings: dict[str, jax.Array], updates: Params) -> Params:
    """The updates as they are, but not before the readings are taken.

    Without that order the compiler may let the step write over θ and the optimizer's state first,
    and copy all of it for the readings. A norm below 0 never happens, but it does not know that.
    """
    if not readings:
        return updates
    is_below = jnp.stack([row[..., 0] for row in readings.values()]) < 0
    # a fence: each leaf's kernel waits for this one number, and does not compute it again
    never = lax.optimization_barrier(jnp.any(is_below))  # type: ignore[no-untyped-call]
    return jax.tree.map(lambda x: jnp.where(never, jnp.zeros_like(x), x), updates)
