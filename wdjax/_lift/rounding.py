"""Decay that a narrow dtype swallows: known of a fraction, tried on a stand-in for the rest."""

import contextlib
import math
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


def warn_of_lost_fractions(name: str, taken: Iterable[tuple[Leaf, Any]], when: str = "") -> None:
    """Warn of fractions that the dtype of their leaf swallows."""
    lost: dict[Any, list[tuple[float, str]]] = {}
    for leaf, x in taken:
        if not isinstance(x, jax.core.Tracer) and 0 < x < swallowed_below(leaf.dtype):
            lost.setdefault(leaf.dtype, []).append((float(x), repr(leaf.path)))
    for dtype, rows in lost.items():
        most, least = f"{max(rows)[0]:.2g}", f"{swallowed_below(dtype):.2g}"
        why = f"it takes off at most {most} per step{when}, and a change below {least} of a number"
        _warn(name, dtype, [path for _, path in rows], f"{why} rounds away")


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
    kinds: dict[Any, list[str]] = {}
    for leaf, _, m in rows:
        is_narrow = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize <= 2
        if is_narrow and isinstance(m, float) and not is_off(m):
            shape = tuple(min(size, _MOST) for size in leaf.shape)
            inputs = math.prod(leaf.shape[:-1] if len(leaf.shape) > 1 else leaf.shape)
            power = round(math.log2(max(1, inputs)))  # few sizes: all are one program
            kinds.setdefault((leaf.dtype, shape, power, m), []).append(repr(leaf.path))

    @jax.jit
    def step(starts: list[jax.Array]) -> Any:
        taken = [take(start, m) for start, (*_, m) in zip(starts, kinds, strict=True)]
        return [(2 * x, u, applied(2 * x, u)) for x, u in zip(starts, taken, strict=True)]

    lost: dict[Any, list[str]] = {}
    # what cannot be tried on a stand-in, such as an anchor of other shapes, is the audit's to see
    with contextlib.suppress(Exception), jax.ensure_compile_time_eval():
        tried = step([_weights(*kind) for kind in kinds]) if kinds else []
        for ((dtype, *_), names), seen in zip(kinds.items(), tried, strict=True):
            if _is_lost(*map(np.asarray, seen)):
                lost.setdefault(dtype, []).extend(names)
    for dtype, names in lost.items():
        _warn(
            name, dtype, names, "nearly all of what it takes from weights of usual size rounds off"
        )


def _weights(dtype: Any, shape: tuple[int, ...], power: int, _: float) -> np.ndarray:
    """Random weights of the size that an initializer gives, 1/√fan-in."""
    theta: np.ndarray = np.random.default_rng(0).normal(size=shape) * 2.0 ** (-power / 2)
    return theta.astype(dtype)


def _is_lost(before: np.ndarray, update: np.ndarray, after: np.ndarray) -> bool:
    taken = update.astype(np.float32) != 0
    return bool(taken.any() and np.mean((before != after)[taken]) <= _FEW)


def _warn(name: str, dtype: Any, names: list[str], why: str) -> None:
    warnings.warn(
        f"`{name}`: {dtype} parameters swallow this decay: {why}, for {paths.listed(names)}. Wrap "
        "the optimizer in wdjax.compensated, or keep these parameters in float32.",
        stacklevel=3,
    )
