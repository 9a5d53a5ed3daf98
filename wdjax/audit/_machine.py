"""An optimizer as a machine that can be run on stand-ins: from any state, with any gradients.

`_compiled` traces `init` and `update` and keeps one leaf of each kind. Where an optimizer cannot be
traced, `Plain` calls it as it is.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax import stacking
from wdjax._trees import stacks
from wdjax._trees.checks import named_leaves

Arrays = list[Any]
shape_of: Any = jax.ShapeDtypeStruct  # which has no types

COUNTS = {  # how counters of real steps are called
    *("count", "step", "steps", "gradient_step", "step_count", "global_step", "iteration", "t"),
}
_MISSING = re.compile(r"missing \d+ required (?:keyword-only|positional) arguments?: (.*)")
_PROVIDED = re.compile(r"(\w+)`? must be provided")
_FROM_GRADIENTS = {"value", "grad", "value_fn"}  # what a loss ⟨g, θ⟩ tells


class Run(NamedTuple):
    """What n calls did.

    Attributes:
        theta: the weights, one array for each kind of leaf.
        total: the sum of the updates.
        last: the last update.
        state: the state.
    """

    theta: Arrays
    total: Arrays
    last: Arrays
    state: Any


class Machine(Protocol):
    """An optimizer that can be run.

    Attributes:
        kinds: for each leaf of the tree, of which kind it is.
        shapes: for each kind, shape and dtype.
        sites: how many places there are at which weights enter; each can be scaled alone.
        repeats: for each kind, how often a pull that is not linear is added to its update.
        names: the names of the state's classes, outermost first.
        needs: which extra arguments were made up of the gradients.
    """

    kinds: tuple[int, ...]
    shapes: tuple[jax.ShapeDtypeStruct, ...]
    sites: int
    repeats: tuple[int, ...]
    names: frozenset[str]
    needs: frozenset[str]

    def start(self, theta: Arrays) -> Any:
        """Return the state for these weights."""

    def at(self, state: Any, count: int) -> Any | None:
        """Return the state with its step counts set, or None if it names no counts."""

    def run(
        self,
        theta: Arrays,
        grads: Arrays,
        state: Any,
        *,
        calls: int = 1,
        scales: Any = 1.0,
        moving: bool = False,
        pinned: bool = False,
    ) -> Run:
        """Call `update` several times with the same gradients.

        Args:
            theta: weights.
            grads: gradients.
            state: where to start.
            calls: how often.
            scales: a factor of the weights as the optimizer sees them, one for all places or one
                for each.
            moving: apply the updates; else the weights are held.
            pinned: keep the step counts where they are.
        """


# What the optimizer is called with.


def caller(optimizer: Any, extra: dict[str, Any], needs: frozenset[str]) -> Callable[..., Any]:
    """Return `update` with its extra arguments.

    A line search asks for value, gradient and the loss itself: for held gradients g that is the
    loss ⟨g, θ⟩.
    """

    def update(grads: Any, state: Any, params: Any) -> Any:
        def loss(at: Any) -> Any:
            pairs = zip(*map(jax.tree.leaves, (grads, at)), strict=True)
            return sum(jnp.sum(g * x) for g, x in pairs)

        made: dict[str, Any] = {
            "grad": lambda: grads,
            "value_fn": lambda: loss,
            "value": lambda: loss(params),
        }
        supplied: dict[str, Any] = {name: made[name]() for name in sorted(needs)}
        updated: Any = optimizer.update(grads, state, params, **supplied, **extra)
        return updated

    return update


def missing_arguments(error: Exception) -> list[str]:
    """Return the names that a TypeError says are missing."""
    found = _MISSING.search(str(error)) if isinstance(error, TypeError) else None
    return re.findall(r"'(\w+)'", found[1]) if found else _PROVIDED.findall(str(error))


def needed_arguments(
    attempt: Callable[[frozenset[str]], Any], optimizer: Any
) -> tuple[Any, frozenset[str]]:
    """Try without extra arguments; supply those that the gradients tell; name the others."""
    try:
        return attempt(frozenset()), frozenset()
    except (TypeError, ValueError) as error:
        names = missing_arguments(error)
        if not names:
            raise
        unknown = sorted(set(names) - _FROM_GRADIENTS)
        if unknown:
            raise TypeError(
                f"`optimizer` needs the extra argument {unknown[0]!r} at each update. Pass "
                f"audit(params, optimizer, extra={{{unknown[0]!r}: ...}})."
            ) from error
    needs = frozenset(names)
    return attempt(needs), needs


# Weights held otherwise, seen as plain leaves.


def on_leaves(tree: Any, optimizers: list[Any]) -> tuple[Any, list[Any]]:
    """Take leaves out of stacks and of pairs, and give each optimizer leaves to look at."""
    if isinstance(tree, optax.LookaheadParams):
        return tree.slow, [slow_weights_of(each) for each in optimizers]
    if stacks.is_stacked(tree):
        return stacking.unstack(tree), [_of_stacks(each) for each in optimizers]
    return tree, optimizers


def _of_stacks(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Return an optimizer of leaves around one of stacks."""

    def init(params: Any) -> Any:
        return inner.init(stacking.stack(params))

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        grads, params = (stacking.stack(x) for x in (grads, params))
        updates, state = inner.update(grads, state, params, **extra)
        return stacking.unstack(updates), state

    return optax.GradientTransformationExtraArgs(init, update)


def slow_weights_of(inner: Any) -> optax.GradientTransformationExtraArgs:
    """Return lookahead as an optimizer of its slow weights; its state holds fast − slow."""

    def init(params: Any) -> Any:
        start = inner.init(optax.LookaheadParams.init_synced(params))
        return start, jax.tree.map(lambda x: x - x, params)

    def update(grads: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        before, apart = state
        fast = jax.tree.map(lambda x, d: x + d, params, apart)
        pair = optax.LookaheadParams(fast=fast, slow=params)
        updates, after = inner.update(grads, before, pair, **extra)
        apart = jax.tree.map(lambda d, a, b: d + a - b, apart, updates.fast, updates.slow)
        return updates.slow, (after, apart)

    return optax.GradientTransformationExtraArgs(init, update)


# What a state tells.


def is_count(path: str, leaf: Any) -> bool:
    """Tell a counter of real steps by its name."""
    is_named = path.split("/")[-1] in COUNTS
    return is_named and leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer)


def class_names(state: Any) -> frozenset[str]:
    """Return the names of all classes of nodes in a state."""
    found: set[str] = set()

    def look(node: Any) -> bool:
        found.add(type(node).__name__)
        return False

    jax.tree.flatten(state, is_leaf=look)
    return frozenset(found)


def applied(param: Any, update: Any) -> Any:
    """θ + u in the dtype of θ, as `optax.apply_updates` does it."""
    return jnp.asarray(param + update).astype(param.dtype)


# As it is.


class Plain:
    """A `Machine` that calls the optimizer itself, each leaf a kind of its own."""

    def __init__(self, optimizer: Any, tree: Any, extra: dict[str, Any]) -> None:
        """Remember the optimizer; nothing is traced."""
        self._optimizer, self._extra = optimizer, extra
        leaves, self._treedef = jax.tree.flatten(tree)
        self.kinds = tuple(range(len(leaves)))
        self.shapes = tuple(shape_of(x.shape, x.dtype) for x in leaves)
        self.sites, self.repeats = 1, (1,) * len(leaves)
        self.needs: frozenset[str] = frozenset()
        self.names: frozenset[str] = frozenset()

    def start(self, theta: Arrays) -> Any:
        """Return the state for these weights."""
        state = self._optimizer.init(self._tree(theta))
        self.names = class_names(state)
        zeros = self._tree([jnp.zeros_like(x) for x in theta])

        def attempt(needs: frozenset[str]) -> Any:
            return caller(self._optimizer, self._extra, needs)(zeros, state, self._tree(theta))

        _, self.needs = needed_arguments(attempt, self._optimizer)
        return state

    def at(self, state: Any, count: int) -> Any | None:
        """Return the state with its step counts set, or None if it names no counts."""
        named = named_leaves(state)
        hits = [is_count(path, jnp.asarray(x)) for path, x in named]
        if not any(hits):
            return None
        leaves = [
            jnp.asarray(count, jnp.asarray(x).dtype) if hit else x
            for hit, (_, x) in zip(hits, named, strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(state), leaves)

    def run(
        self,
        theta: Arrays,
        grads: Arrays,
        state: Any,
        *,
        calls: int = 1,
        scales: Any = 1.0,
        moving: bool = False,
        pinned: bool = False,
    ) -> Run:
        """Call `update` several times with the same gradients."""
        update = caller(self._optimizer, self._extra, self.needs)
        scale = float(np.ravel(scales)[0])
        total = last = [jnp.zeros_like(x) for x in theta]
        for _ in range(int(calls)):
            seen = self._tree([x * jnp.asarray(scale, x.dtype) for x in theta])
            updates, after = update(self._tree(grads), state, seen)
            last = jax.tree.leaves(updates)
            total = [a + b for a, b in zip(total, last, strict=True)]
            if moving:
                theta = [applied(p, u) for p, u in zip(theta, last, strict=True)]
            state = _with_counts_of(state, after) if pinned else after
        return Run(theta, total, last, state)

    def _tree(self, leaves: Arrays) -> Any:
        return jax.tree.unflatten(self._treedef, list(map(jnp.asarray, leaves)))


def _with_counts_of(before: Any, after: Any) -> Any:
    rows = zip(named_leaves(after), jax.tree.leaves(before), strict=True)
    leaves = [was if is_count(path, jnp.asarray(now)) else now for (path, now), was in rows]
    return jax.tree.unflatten(jax.tree.structure(after), leaves)
