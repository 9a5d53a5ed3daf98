"""Decay that low-precision parameters do not swallow.

bfloat16 keeps 8 bits: a step that changes a number by less than about 0.2% rounds away, and so
does nearly all weight decay. What a step loses is carried over to the next one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wdjax.leafwise import Params, require_params, widened


class CompensatedState(NamedTuple):
    """State of `compensated`.

    Attributes:
        inner: the wrapped optimizer's state, for parameters in float32.
        residual: per leaf, exact parameter minus stored parameter, float32 for leaves narrower
            than float32, else an empty array.
    """

    inner: Any
    residual: Params


def compensated(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let low-precision parameters keep what each step adds (Kahan summation).

        θ̂ = θ + r      θ̂⁺ = θ̂ + Δ(θ̂)      θ⁺ = round(θ̂⁺)      r⁺ = θ̂⁺ − θ⁺

    The optimizer sees the float32 value θ̂, so its own state is float32 as well. Float32 and wider
    parameters pass through untouched, bit for bit. Wrap the whole chain, decay included.

    Args:
        optimizer: any complete Optax optimizer.

    Returns:
        The optimizer for low-precision parameters. Costs a float32 residual per such leaf.

    Raises:
        ValueError: at `update`, `params` is missing.

    Example:
        >>> optimizer = compensated(optax.sgd(1e-4))
        >>> params = {"w": jnp.ones((), jnp.bfloat16)}
        >>> state = optimizer.init(params)
        >>> for _ in range(1_000):
        ...     updates, state = optimizer.update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"]  # e^(−0.1) = 0.905; plain bfloat16 would stay at 1
        Array(0.90625, dtype=bfloat16)

    References:
        Kahan, *Further Remarks on Reducing Truncation Errors*, 1965; Zamirai et al., *Revisiting
        BFloat16 Training*, 2020, arXiv:2010.06192, Algorithm 1.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> CompensatedState:
        residual = jax.tree.map(
            lambda p: jnp.zeros(jnp.shape(p) if _is_narrow(p) else (0,), jnp.float32), params
        )
        return CompensatedState(inner.init(jax.tree.map(_full, params, residual)), residual)

    def update(
        updates: Params, state: CompensatedState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, CompensatedState]:
        require_params("compensated", params)
        full = jax.tree.map(_full, params, state.residual)
        wide = jax.tree.map(
            lambda g, p: g if g is None or not _is_narrow(p) else widened(g),
            updates,
            params,
            is_leaf=_is_none,
        )
        updates, inner_state = inner.update(wide, state.inner, full, **extra_args)

        # θ⁺ − θ is exact in float32, so apply_updates, which adds in float32, lands on θ⁺
        def rounded(update: Any, value: Any, param: Any) -> Any:
            if update is None or not _is_narrow(param):
                return update
            return _round(value + update, param.dtype) - widened(param)

        def left_over(update: Any, value: Any, param: Any, old: Any) -> Any:
            if update is None or not _is_narrow(param):
                return old
            return value + update - _round(value + update, param.dtype)

        steps = jax.tree.map(rounded, updates, full, params, is_leaf=_is_none)
        residual = jax.tree.map(left_over, updates, full, params, state.residual, is_leaf=_is_none)
        return steps, CompensatedState(inner_state, residual)

    return optax.GradientTransformationExtraArgs(init, update)


def _is_none(x: Any) -> bool:
    return x is None


def _is_narrow(param: Any) -> bool:
    """Whether the leaf is floating point of fewer than 32 bits."""
    if param is None:
        return False
    dtype = jnp.asarray(param).dtype
    return bool(jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32)  # type: ignore[no-untyped-call]


def _full(param: Any, residual: Any) -> Any:
    """θ̂ = θ + r in float32 for a narrow leaf, the leaf itself otherwise."""
    return widened(param) + residual if _is_narrow(param) else param


def _round(x: jax.Array, dtype: Any) -> jax.Array:
    """Round float32 values to a narrower dtype's grid; a pair of casts would be optimised away."""
    info = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    return jax.lax.reduce_precision(x, exponent_bits=info.nexp, mantissa_bits=info.nmant)
