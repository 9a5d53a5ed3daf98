"""The lift of a method that keeps numbers per group of weights: one leaf's step becomes Optax's."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wdjax import schedules
from wdjax._lift.leaves import (
    Params,
    check_widths,
    map_stateful,
    raw_gradients,
    require_params,
    widened,
)
from wdjax._lift.place import check_is_last, check_place
from wdjax._trees import paths
from wdjax._trees.groups import Axes, along, check_axes, checked_axes, norm
from wdjax.rules import Rules, check_rules, resolve
from wdjax.schedules import Strength

Keep = Callable[[Params, Params], tuple[Params, ...]]


class RadialState(NamedTuple):
    """State of every transformation in `radial`; it does not depend on rules, rates or schedules.

    Attributes:
        count: int32 scalar, steps taken.
        groups: what the method keeps: trees like the parameters with one float32 number (float64
            for float64 leaves) per group, its axes kept with length 1. (R,) for `norm_control` and
            `hyperball`, (R, ν) for `rotational`, else ().
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    groups: tuple[Params, ...]


def lift(
    name: str,
    step: Callable[..., Any],
    quantities: Mapping[str, Strength],
    *,
    axes: Axes,
    rules: Rules,
    keep: Keep = lambda params, multipliers: (),
    fractions: Sequence[str] = (),
    switch: bool = False,
    exact: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Lift step(Δ, θ, m, kept, g, *quantities) -> (Δ⁺, kept⁺) of one leaf to Optax.

    `fractions` names the quantities that must stay <= 1, times the multiplier too, `switch` refuses
    multipliers above 1, and `exact` says that θ + Δ⁺ must be reached exactly, which a Δ narrower
    than θ cannot express.
    """
    check_axes(axes)
    for key in fractions:
        schedules.check_scalar(key, quantities[key], most=1)
    of_step = {key: schedules.as_schedule(value, key) for key, value in quantities.items()}
    rules = check_rules(rules)

    def init(params: Params) -> RadialState:
        multipliers = resolve(rules, params)
        check_place(params, rules, multipliers)
        top = _check_leaves(name, params, multipliers, axes, most=1 if switch else math.inf)
        for key, schedule in of_step.items():
            most = 1 / top if key in fractions else math.inf
            schedules.checked_samples(schedule, key, most)
        return RadialState(jnp.zeros((), jnp.int32), keep(params, multipliers))

    def update(
        updates: Params, state: RadialState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, RadialState]:
        require_params(name, params)
        check_is_last(name)
        multipliers = resolve(rules, params)
        if exact:
            check_widths(name, updates, params, multipliers)
        values = [schedules.at_step(schedule, state.count) for schedule in of_step.values()]

        def leaf(update: Any, param: Any, m: Any, kept: Any, grad: Any) -> Any:
            return step(update, param, m, kept, grad, *values)

        # the containers of params, which nnx changes between init and update
        treedef: Any = jax.tree.structure(params)
        columns = [jax.tree.leaves(tree) for tree in state.groups]
        rows = [tuple(column[i] for column in columns) for i in range(treedef.num_leaves)]
        grads = raw_gradients(name, updates, params, extra_args.get("grad"))
        result, kept = map_stateful(
            name, leaf, updates, params, multipliers, treedef.unflatten(rows), grads
        )
        groups = tuple(
            jax.tree.map(lambda _, row, i=i: row[i], params, kept) for i in range(len(columns))
        )
        return result, RadialState(optax.safe_increment(state.count), groups)

    return optax.GradientTransformationExtraArgs(init, update)


def radius_keeper(
    radius: Any,
    axes: Axes,
    *,
    needed: bool = True,
    center: Callable[[jax.Array, Axes], jax.Array] = lambda x, axes: x,
) -> Keep:
    """Make the function that gives each group its R; `needed` refuses groups whose norm is 0."""
    known = radius is not None and not isinstance(radius, jax.core.Tracer)
    if known and not 0 < radius < math.inf:
        raise ValueError(f"`radius` must be a finite number > 0; got {radius}.")

    def of_leaf(param: Any) -> jax.Array:
        if not jnp.issubdtype(param.dtype, jnp.inexact):
            return jnp.zeros((1,) * param.ndim, jnp.float32)
        within = along(axes, param.ndim)
        length = norm(center(widened(param), within), within)
        return length if radius is None else jnp.full_like(length, radius)

    def keep(params: Params, multipliers: Params) -> tuple[Params, ...]:
        radii = jax.tree.map(of_leaf, params)
        if needed:
            _require_directions(params, multipliers, radii)
        return (radii,)

    return keep


def renewed(kept: tuple[Any, ...], radius: Any) -> tuple[Any, ...]:
    """What `radius_keeper` kept, with the radius that is given now: a schedule's, or retuned."""
    return kept if radius is None else (jnp.full_like(kept[0], radius),)


def is_zero(value: Any) -> bool:
    """Whether a number or schedule is known to be 0."""
    known = value.value if isinstance(value, schedules.Constant) else value
    return not callable(known) and not isinstance(known, jax.core.Tracer) and bool(known == 0)


def _pairs(params: Params, multipliers: Params) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(params), jax.tree.leaves(multipliers), strict=True))


# Checks, as early as the facts are known.


def _check_leaves(
    name: str, params: Params, multipliers: Params, axes: Axes, *, most: float
) -> float:
    """Refuse leaves without the axes and multipliers above `most`; return the largest, or 1."""
    selected = [(leaf, m) for leaf, m in _pairs(params, multipliers) if not is_zero(m)]
    for leaf, _ in selected:
        checked_axes(axes, leaf)
    top = max([1.0, *(m for _, m in selected if isinstance(m, float))])
    if top > most:
        raise ValueError(f"`rules` must give `{name}` multipliers <= {most:g}; got {top:g}.")
    return top


def _require_directions(params: Params, multipliers: Params, radii: Params) -> None:
    rows = zip(paths.leaves(params), _pairs(radii, multipliers), strict=True)
    empty = [
        leaf.path
        for leaf, (radius, m) in rows
        if not isinstance(radius, jax.core.Tracer) and not is_zero(m) and 0 not in leaf.shape
        if not bool((radius > 0).all())
    ]
    if empty:
        raise ValueError(
            "`params` must have no group of zeros, which has no norm to keep; got zeros in "
            f"{paths.listed(map(repr, empty))}. Exclude these by `rules`, or give a `radius`."
        )
