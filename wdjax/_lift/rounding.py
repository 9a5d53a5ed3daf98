"""Decay that a narrow dtype swallows: known of a fraction, tried on a stand-in for the rest."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._lift.leaves import applied, is_off
from wdjax._trees import paths
from wdjax._trees.paths import Leaf
from wdjax.rules import Ruled

_MOST = 8  # numbers of a stand-in along an axis
_FEW = 0.1  # of the numbers of a stand-in may move, and the decay still counts as lost


def swallowed_below(dtype: Any) -> float:
    """Return the fraction below which a decay step leaves every number of that dtype as it was.

    Just below 1, numbers lie ε/2 apart: a change of less than half of that rounds away.

    Example:
        >>> swallowed_below(jnp.bfloat16)
        0.001953125
    """
    return float(jnp.finfo(dtype).eps) / 4  # type: ignore[no-untyped-call]


def warn_of_lost_fractions(name: str, taken: Iterable[tuple[Leaf, Any]], top: float) -> None:
    """Warn of fractions that the dtype of their leaf swallows, of which `top` is the largest."""
    lost: dict[Any, list[str]] = {}
    for leaf, x in taken:
        if not isinstance(x, jax.core.Tracer) and 0 < x < swallowed_below(leaf.dtype):
            lost.setdefault(leaf.dtype, []).append(repr(leaf.path))
    for dtype, names in lost.items():
        least = f"{swallowed_below(dtype):.2g}"
        _warn(
            name, dtype, names, f"it takes off at most {top:.2g} per step, and a change below "
            f"{least} of a number rounds away",
        )  # fmt: skip


def warn_of_lost_steps(
    name: str, rows: Iterable[Ruled], take: Callable[[jax.Array, Any], Any]
) -> None:
    """Warn where 16 bits or fewer round off what a method takes from nearly all weights at rest.

    Args:
        name: of the method.
        rows: what rules gave each leaf.
        take: (θ₀, m) -> Δ⁺ of weights that began at θ₀, lie at 2θ₀ now, and have no update.

    Example:
        >>> from wdjax.rules import ruled
        >>> rows = ruled((("**", 1.0),), {"w": jnp.ones(4, jnp.bfloat16)})[0]
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     warn_of_lost_steps("halve", rows, lambda start, m: -start)
        ...     warn_of_lost_steps("shrink", rows, lambda start, m: -1e-4 * start)
        >>> [str(one.message).partition(":")[0] for one in said]
        ['`shrink`']
    """
    kinds: dict[Any, list[Leaf]] = {}
    for row in rows:
        is_narrow = jnp.issubdtype(row.leaf.dtype, jnp.floating) and row.leaf.dtype.itemsize <= 2
        if is_narrow and isinstance(row.multiplier, float) and not is_off(row.multiplier):
            kind = row.leaf.dtype, len(row.leaf.shape), row.multiplier
            kinds.setdefault(kind, []).append(row.leaf)
    lost: dict[Any, list[str]] = {}
    for (dtype, _, m), alike in kinds.items():
        if _is_lost(_stand_in(alike[0]), m, take):
            lost.setdefault(dtype, []).extend(repr(leaf.path) for leaf in alike)
    for dtype, names in lost.items():
        _warn(
            name,
            dtype,
            names,
            "what it takes from nearly all weights of the usual size rounds away",
        )


def _warn(name: str, dtype: Any, names: list[str], why: str) -> None:
    warnings.warn(
        f"`{name}`: {dtype} parameters swallow this decay: {why}, for {paths.listed(names)}. Wrap "
        "the optimizer in wdjax.compensated, or keep these parameters in float32.",
        stacklevel=3,
    )


def _stand_in(leaf: Leaf) -> np.ndarray:
    """Random weights of the size that an initializer gives, 1/√fan-in, and of as many axes."""
    shape = tuple(min(size, _MOST) for size in leaf.shape)
    fan_in = max(1, int(np.prod(leaf.shape[:-1])))
    theta: np.ndarray = np.random.default_rng(0).normal(size=shape) / np.sqrt(fan_in)
    return theta.astype(leaf.dtype)


def _is_lost(theta: np.ndarray, m: Any, take: Callable[[jax.Array, Any], Any]) -> bool:
    def step(start: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        update = take(start, m)
        return 2 * start, update, applied(2 * start, update)

    # what cannot be tried on a stand-in, such as an anchor of other shapes, is the audit's to see
    with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
        before, update, after = map(np.asarray, jax.jit(step)(jnp.asarray(theta)))
        taken = update.astype(np.float32) != 0
        return bool(taken.any() and np.mean((before != after)[taken]) <= _FEW)
    return False
