"""The one lift: a method becomes Optax's transformation, its memory and a count become its state.

A method is a function of whole trees, (step, memory) -> (Δ⁺, memory⁺); most of them map a formula
of one leaf with `Step.map`. Rules are resolved once for each call and handed on.
"""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax import schedules
from wdjax._lift import leaves
from wdjax._lift.leaves import Params
from wdjax._lift.place import PENALTY, check_is_last, comes_later, held, is_search, name_of
from wdjax._lift.rounding import warn_of_lost_steps
from wdjax._trees import checks, paths
from wdjax._trees.groups import Axes, along, check_axes
from wdjax.rules import Ruled, Rules, check_rules, ruled, warn_of_guesses
from wdjax.schedules import Strength

Memory: TypeAlias = Any  # a pytree of arrays
Samples: TypeAlias = Mapping[str, np.ndarray | None]  # of each quantity; None where it is traced


class MethodState(NamedTuple):
    """State of every method; its structure does not depend on rules, strength or schedule.

    Attributes:
        count: int32 scalar, steps taken.
        memory: what the method remembers, such as an anchor or an average; () for nothing.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    memory: Memory


@dataclasses.dataclass(frozen=True)
class Step:
    """What a method sees of one step: t, s(t), Δ, θ, m, g as in the formulas."""

    name: str
    count: Any
    values: tuple[Any, ...]  # of the quantities at this step
    updates: Params
    params: Params
    multipliers: Params
    grads: Params | None  # for methods that look at them
    extra: Mapping[str, Any]  # arguments of update

    def map(self, formula: Callable[..., Any], *trees: Any) -> Params:
        """Map formula(Δ, θ, m, *others) -> Δ⁺ over the leaves."""
        own = self.updates, self.params, self.multipliers
        return leaves.map_leaves(self.name, formula, *own, *trees)

    def map_with(
        self, memory: tuple[Params, ...], formula: Callable[..., Any], *trees: Any
    ) -> tuple[Params, tuple[Params, ...]]:
        """Map formula(Δ, θ, m, z, *others) -> (Δ⁺, z⁺); z has one array of each memory tree.

        Every memory keeps its containers and dtypes, whatever those of strengths and multipliers.
        """
        own = self.updates, self.params, self.multipliers
        treedef: Any = jax.tree.structure(self.params)
        columns = [jax.tree.leaves(tree) for tree in memory]
        rows = [tuple(column[i] for column in columns) for i in range(treedef.num_leaves)]
        updates, kept = leaves.map_stateful(
            self.name, formula, *own, treedef.unflatten(rows), *trees
        )
        rows = treedef.flatten_up_to(kept)
        return updates, tuple(
            jax.tree.unflatten(
                jax.tree.structure(tree),
                [row[i].astype(old.dtype) for row, old in zip(rows, columns[i], strict=True)],
            )
            for i, tree in enumerate(memory)
        )


def check_last(name: str) -> None:
    """Raise where the learning rate comes later; warn where what comes later may be it."""
    check_is_last(name)
    if comes_later(_is_traced_scale):
        warnings.warn(
            f"`{name}` comes before optax.scale, whose factor is not known yet. If it is −η, "
            f"weights grow: put {name} last. wdjax.audit(params, optimizer) shows it.",
            stacklevel=2,
        )


def check_no_search(name: str) -> None:
    """Raise where a line search comes later."""
    if comes_later(is_search):
        raise TypeError(
            f"`{name}` comes before a line search, which compares losses without it. {PENALTY}"
        )


def _is_traced_scale(update: Callable[..., Any]) -> bool:
    is_scale = name_of(update) == "scale.<locals>.update_fn"
    return is_scale and isinstance(held(update, "step_size"), jax.core.Tracer)


def lift(
    name: str,
    method: Callable[[Step, Memory], tuple[Params, Memory]],
    quantities: Mapping[str, Strength],
    *,
    rules: Rules,
    start: Callable[[Params, Params], Memory] = lambda params, multipliers: (),
    restrict: Callable[[Params, Params], Params] = lambda multipliers, params: multipliers,
    axes: Axes = None,
    check: Callable[[tuple[Ruled, ...], Samples], None] = lambda rows, samples: None,
    check_order: Callable[[str], None] = check_last,
    exact: bool = False,
    sees_grads: bool = False,
    is_steady: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Lift a method to Optax.

    Args:
        name: of the method, for messages.
        method: (step, memory) -> (Δ⁺, memory⁺).
        quantities: strengths and rates by name, each a number, schedule or traced scalar.
        rules: (selector, multiplier) pairs.
        start: (params, multipliers) -> memory.
        restrict: (multipliers, params) -> multipliers, as a mask does.
        axes: of one group; every leaf that decays must have them.
        check: called at `init` with what is known of leaves and quantities.
        check_order: raises where the method is on the wrong side of the learning rate.
        exact: θ + Δ⁺ must be reached exactly, which a Δ narrower than θ cannot express.
        sees_grads: the method looks at raw gradients, which may be missing.
        is_steady: what it takes from weights at rest, without gradients, tells what it takes later.
            Then a stand-in says at `init` whether narrow dtypes swallow it.

    Returns:
        The transformation. Its state is a `MethodState`.

    Example:
        >>> halve = lambda step, memory: (step.map(lambda update, param, m: update / 2), memory)
        >>> tx = lift("halve", halve, {}, rules=(("**", 1.0),))
        >>> tx.update(jnp.ones(2), tx.init(jnp.ones(2)), jnp.ones(2))[0]
        Array([0.5, 0.5], dtype=float32)
    """
    of_step = {key: schedules.as_schedule(value, key) for key, value in quantities.items()}
    rules = check_rules(rules)
    check_axes(axes)

    def begin(params: Params) -> Memory:
        rows, multipliers = ruled(rules, params)
        warn_of_guesses(name, rows)
        multipliers = restrict(multipliers, params)
        _check_has_axes(axes, rows)
        samples = {key: schedules.checked_samples(s, key) for key, s in of_step.items()}
        check(rows, samples)
        tops = tuple(float(values.max()) for values in samples.values() if values is not None)
        if len(tops) == len(samples):
            if min(tops, default=1) > 0 and all(map(leaves.is_off, jax.tree.leaves(multipliers))):
                leaves.warn_if_idle(name, rows, params)
            if is_steady and check_order is check_last and not sees_grads:
                warn_of_lost_steps(name, rows, functools.partial(at_rest, tops))
        return start(params, multipliers)

    def at_rest(values: tuple[float, ...], theta: jax.Array, m: float) -> Params:
        """What the method takes from weights that began at θ and lie at 2θ."""
        zero, count = jnp.zeros_like(theta), jnp.zeros((), jnp.int32)
        step = Step(name, count, values, zero, 2 * theta, m, None, {})
        return method(step, start(theta, m))[0]

    def act(
        count: Any, updates: Params, memory: Memory, params: Params | None, extra: dict[str, Any]
    ) -> tuple[Params, Memory]:
        params = leaves.moved_params(name, updates, params)
        check_order(name)
        check_no_search(name)
        multipliers = restrict(ruled(rules, params)[1], params)
        if exact:
            leaves.check_widths(name, updates, params, multipliers)
        grads = leaves.raw_gradients(name, updates, params, extra) if sees_grads else None
        values = tuple(schedules.at_step(schedule, count) for schedule in of_step.values())
        step = Step(name, count, values, updates, params, multipliers, grads, extra)
        return method(step, memory)

    return counted(begin, act)


def counted(
    start: Callable[[Params], Memory],
    act: Callable[[Any, Params, Memory, Params | None, dict[str, Any]], tuple[Params, Memory]],
) -> optax.GradientTransformationExtraArgs:
    """Keep a memory and a count: act(t, Δ, memory, θ, extra arguments) -> (Δ⁺, memory⁺).

    Example:
        >>> tx = counted(lambda params: (), lambda t, updates, memory, *_: (t + updates, memory))
        >>> tx.update(1.0, tx.init(1.0))[1].count
        Array(1, dtype=int32)
    """

    def init(params: Params) -> MethodState:
        return MethodState(jnp.zeros((), jnp.int32), start(params))

    def update(
        updates: Params, state: MethodState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, MethodState]:
        updates, memory = act(state.count, updates, state.memory, params, extra)
        return updates, MethodState(optax.safe_increment(state.count), memory)

    return optax.GradientTransformationExtraArgs(init, update)


def by_leaf(formula: Callable[..., Any]) -> Callable[[Step, Memory], tuple[Params, Memory]]:
    """Make a method of formula(Δ, θ, m, z, g, *values) -> (Δ⁺, z⁺) of one leaf."""

    def method(step: Step, memory: Memory) -> tuple[Params, Memory]:
        def leaf(update: Any, param: Any, m: Any, z: Any, grad: Any) -> Any:
            return formula(update, param, m, z, grad, *step.values)

        return step.map_with(memory, leaf, step.grads)

    return method


def _check_has_axes(axes: Axes, rows: tuple[Ruled, ...]) -> None:
    if axes is None:
        return
    decayed = [row.leaf for row in rows if not leaves.is_off(row.multiplier)]
    wrong = [f"{leaf.path!r} {leaf.shape}" for leaf in decayed if along(axes, leaf.ndim) is None]
    checks.must(
        "axes",
        not wrong,
        "be axes of every decayed leaf",
        f"{axes!r} for {paths.listed(wrong)}",
        "Restrict the method by `rules`, count axes from the end, or use axes=None.",
    )
