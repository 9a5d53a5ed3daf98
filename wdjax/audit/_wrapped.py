"""Optimizers that hold weights otherwise, seen as optimizers of plain leaves."""

from typing import Any

import jax
import optax

from wdjax import stacking
from wdjax._trees import stacks


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
