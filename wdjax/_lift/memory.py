"""The lift of a method with a memory: a step of whole trees becomes an Optax transformation.

The memory is float32 or wider, in trees like the parameters or in scalars, whatever the rules, the
strength and the schedule.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wdjax import schedules
from wdjax._lift.leaves import (
    Params,
    is_off,
    lined_up,
    map_stateful,
    raw_gradients,
    require_params,
    widened,
)
from wdjax._lift.place import check_is_last, check_place, needed_gradient
from wdjax._trees import groups, paths
from wdjax._trees.groups import Axes
from wdjax.rules import Rules, check_rules, resolve
from wdjax.schedules import Strength


class AdaptiveState(NamedTuple):
    """State of every method here; its structure does not depend on rules, strength or schedule.

    Attributes:
        count: int32 scalar, steps taken.
        memory: what the method remembers: a tuple of trees like the parameters, or of scalars.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    memory: tuple[Any, ...]


class Context(NamedTuple):
    """What a step sees besides its memory: s, t, Δ, θ, m, g as in the formulas, extra arguments."""

    strength: Any
    count: jax.Array  # type: ignore[assignment]
    updates: Params
    params: Params
    multipliers: Params
    grads: Params | None
    extra: Mapping[str, Any]


def lift(
    name: str,
    start: Callable[[Params], tuple[Any, ...]],
    step: Callable[[Context, tuple[Any, ...]], tuple[Params, tuple[Any, ...]]],
    strength: Strength,
    *,
    rules: Rules,
    axes: Axes = None,
    needs_grads: bool = False,
    check_order: Callable[[str], None] = check_is_last,
) -> optax.GradientTransformationExtraArgs:
    """Lift a step of whole trees, (context, memory) -> (Δ⁺, memory⁺), to Optax."""
    schedule = schedules.as_schedule(strength)
    rules = check_rules(rules)
    groups.check_axes(axes)

    def init(params: Params) -> AdaptiveState:
        multipliers = resolve(rules, params)
        check_place(params, rules, multipliers)
        _check_leaves(name, params, multipliers, axes)
        schedules.checked_samples(schedule)
        return AdaptiveState(jnp.zeros((), jnp.int32), start(params))

    def update(
        updates: Params, state: AdaptiveState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, AdaptiveState]:
        require_params(name, params)
        check_order(name)
        grads = raw_gradients(name, updates, params, extra_args.get("grad"))
        if needs_grads:
            needed_gradient(name, grads)
        s, multipliers = schedules.at_step(schedule, state.count), resolve(rules, params)
        context = Context(s, state.count, updates, params, multipliers, grads, extra_args)
        updates, memory = step(context, state.memory)
        memory = jax.tree.map(_as, memory, state.memory)
        return updates, AdaptiveState(optax.safe_increment(state.count), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def _as(new: Any, old: Any) -> Any:
    """Keep the dtype that the memory had, whatever the dtype of strengths and multipliers."""
    return new if new.dtype == old.dtype else new.astype(old.dtype)


def _check_leaves(name: str, params: Params, multipliers: Params, axes: Axes) -> None:
    wrong, complexes = [], []
    for leaf, m in zip(paths.leaves(params), jax.tree.leaves(multipliers), strict=True):
        if is_off(m):
            continue
        if axes is not None and groups.along(axes, len(leaf.shape)) is None:
            wrong.append(f"{leaf.path!r} {leaf.shape}")
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            complexes.append(repr(leaf.path))
    if wrong:
        raise ValueError(
            f"`axes` must be axes of every decayed leaf; got {axes!r} for {paths.listed(wrong)}. "
            "Restrict the method by `rules`, count axes from the end, or use axes=None."
        )
    if complexes:
        raise TypeError(
            f"`{name}` needs real parameters; got complex ones: {paths.listed(complexes)}. "
            "Exclude them by `rules`."
        )


def map_memory(
    name: str,
    step: Callable[..., Any],
    context: Context,
    memory: tuple[Params, ...],
    *trees: Params,
) -> tuple[Params, tuple[Params, ...]]:
    """Map step(Δ, θ, m, z, *others) -> (Δ⁺, z⁺), where z has one array from each memory tree."""
    like: Any = jax.tree.structure(context.params)
    rows = zip(*(jax.tree.leaves(tree) for tree in memory), strict=True)
    per_leaf = like.unflatten(list(rows))
    updates, per_leaf = map_stateful(
        name, step, context.updates, context.params, context.multipliers, per_leaf, *trees
    )
    rows = like.flatten_up_to(per_leaf)
    columns = [[row[i] for row in rows] for i in range(len(memory))]
    structures: list[Any] = [jax.tree.structure(tree) for tree in memory]
    return updates, tuple(s.unflatten(c) for s, c in zip(structures, columns, strict=True))


def wide(param: Any) -> jax.Array:
    """Return the leaf in float32 or wider; zeros for one that is not real and cannot decay."""
    if jnp.issubdtype(param.dtype, jnp.floating):
        return widened(param)
    return jnp.zeros(jnp.shape(param), jnp.float32)


def scalar(params: Params) -> jax.Array:
    """Return a zero of the widest dtype of all leaves, whatever the rules."""
    dtypes = (wide(param).dtype for param in jax.tree.leaves(params))
    return jnp.zeros((), jnp.result_type(jnp.float32, *dtypes))


def total(name: str, context: Context, term: Callable[[Any, Any], Any], tree: Params) -> Any:
    """Sum term(x, θ) over the decayed leaves of a tree like the parameters; m may be traced."""
    _, rows = lined_up(name, context.updates, context.params, context.multipliers, tree)
    chosen = [(x, param, m) for _, param, m, x in rows if x is not None and not is_off(m)]

    def counted(x: Any, param: Any, m: Any) -> Any:
        value = term(widened(x), widened(param))
        return jnp.where(m == 0, 0, value) if isinstance(m, jax.core.Tracer) else value

    return sum((counted(*row) for row in chosen), start=scalar(context.params))
