"""Decay that low-precision parameters do not swallow.

bfloat16 keeps 8 bits: a step that changes a number by less than about 0.2% rounds away, and so
does nearly all weight decay. Either what a step loses is carried over to the next one, or the
rounding is left to chance, so that it is right on average.

In both, the wrapped optimizer sees float32 and keeps float32 state. Moments of fewer bits, as from
`mu_dtype=jnp.bfloat16`, are its own business and round as before. A second moment in bfloat16
would hardly fall again: of its decay by 1 − β₂ = 0.001 per step nothing is left.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax._lift.leaves import Params, moved_params, widened
from wdjax._trees import checks


class CompensatedState(NamedTuple):
    """State of `compensated`.

    Attributes:
        inner: the wrapped optimizer's state, for parameters in float32.
        residual: per leaf, exact parameter minus stored parameter, float32 for leaves narrower
            than float32, else None.
    """

    inner: Any
    residual: Params


class RoundedState(NamedTuple):
    """State of `stochastically_rounded`.

    Attributes:
        inner: the wrapped optimizer's state, for parameters in float32.
        key: the random key of the next step as plain uint32 data, which every checkpoint can hold.
    """

    inner: Any
    key: jax.Array


def compensated(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Let low-precision parameters keep what each step adds (Kahan summation).

        θ̂ = θ + r      θ⁺ = round(θ̂ + Δ(θ̂))      r⁺ = (r + Δ) − (θ⁺ − θ)

    The optimizer sees the float32 value θ̂, so its own state is float32 as well. Float32 and wider
    parameters pass through untouched, bit for bit. Wrap the whole chain, decay included.

    Updates have the dtype of their parameter, so that it stays what it is in every library's own
    addition. A step longer than the dtype's largest number is taken in two: r keeps the rest.
    `optax.apply_if_finite` goes inside.

    Args:
        optimizer: any complete Optax optimizer.

    Returns:
        The optimizer for low-precision parameters. Costs a float32 residual per such leaf.

    Raises:
        TypeError: `optimizer` is not an optimizer, such as the factory.
        ValueError: at `update`, `params` is missing.

    Example:
        >>> optimizer = compensated(optax.sgd(1e-4))
        >>> params = {"w": jnp.ones((), jnp.bfloat16)}
        >>> state, update = optimizer.init(params), jax.jit(optimizer.update)
        >>> for _ in range(1_000):
        ...     updates, state = update(params, state, params)
        ...     params = optax.apply_updates(params, updates)
        >>> params["w"]  # e^(−0.1) = 0.905; plain bfloat16 would stay at 1
        Array(0.90625, dtype=bfloat16)

    References:
        Kahan, *Further Remarks on Reducing Truncation Errors*, 1965; Zamirai et al., *Revisiting
        BFloat16 Training*, 2020, arXiv:2010.06192, Algorithm 1.
    """
    checks.optimizer("optimizer", optimizer)
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> CompensatedState:
        # zeros_like, for it takes over the sharding of a leaf
        residual = jax.tree.map(
            lambda p: jnp.zeros_like(p, jnp.float32) if _is_narrow(p) else None, params
        )
        return CompensatedState(inner.init(jax.tree.map(_wide, params)), residual)

    def update(
        updates: Params, state: CompensatedState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, CompensatedState]:
        params = moved_params("compensated", updates, params)
        exact = jax.tree.map(
            lambda p, r: widened(p) + r if _is_narrow(p) else p, params, state.residual
        )
        wide = _on_narrow(lambda g, p: widened(g), updates, params)
        changes, inner_state = inner.update(wide, state.inner, exact, **extra_args)

        steps = _on_narrow(_rounded, changes, params, exact)
        kept = _on_narrow(
            _left_over, changes, params, steps, state.residual, otherwise=state.residual
        )
        return steps, CompensatedState(inner_state, kept)

    return optax.GradientTransformationExtraArgs(init, update)


# Formulas of one leaf, each traced once for each shape and dtype.


@jax.jit
def _rounded(change: Any, param: Any, value: Any) -> jax.Array:
    """The step from θ to round(θ̂ + Δ)."""
    return _step_to(_nearest(_float32(value + change), param.dtype), param)


@jax.jit
def _left_over(change: Any, param: Any, step: Any, residual: Any) -> jax.Array:
    """(r + Δ) − (θ⁺ − θ), for the θ⁺ that is reached."""
    landed = _nearest(widened(param) + widened(step), param.dtype)
    return _float32((residual + change) - (landed - widened(param)))


def stochastically_rounded(
    optimizer: optax.GradientTransformation, seed: int | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Round low-precision parameters up or down at random, so that on average nothing is lost.

        θ⁺ = q (⌊c/q⌋ + 1[u < c/q − ⌊c/q⌋])      c = θ + Δ(θ)      u uniform in [0, 1)

    q is the spacing of the parameter's dtype at c, or at Δ where that is wider, and E[θ⁺] = c. It
    needs no memory, where `compensated` keeps a residual, but it adds noise: of a decay far below q
    a single weight notices nothing for long, then a whole q at once. Float32 and wider parameters
    pass through untouched, bit for bit. A step longer than the dtype's largest number is cut to it.
    Wrap the whole chain, decay included.

    Args:
        optimizer: any complete Optax optimizer.
        seed: an integer or a `jax.random.key`; the same seed gives the same run. Members of a
            `vmap` share their noise unless each has a seed of its own.

    Returns:
        The optimizer for low-precision parameters. Its state adds a random key.

    Raises:
        TypeError: `optimizer` is not an optimizer, such as the factory; `seed` is neither an
            integer nor a random key.
        ValueError: at `update`, `params` is missing.

    Example:
        >>> optimizer = stochastically_rounded(optax.sgd(1e-4), seed=0)
        >>> params = {"w": jnp.ones(10_000, jnp.bfloat16)}
        >>> state = optimizer.init(params)
        >>> updates, state = jax.jit(optimizer.update)(params, state, params)
        >>> params = optax.apply_updates(params, updates)  # 1 − 1e-4, which bfloat16 has not
        >>> sorted({float(x) for x in params["w"].tolist()})
        [0.99609375, 1.0]

    References:
        Gupta et al., *Deep Learning with Limited Numerical Precision*, 2015, arXiv:1502.02551,
        section 3.1; Zamirai et al., *Revisiting BFloat16 Training*, 2020, arXiv:2010.06192.
    """
    checks.optimizer("optimizer", optimizer)
    inner = optax.with_extra_args_support(optimizer)
    first = _as_key(seed)
    kind = jax.random.key_impl(first)

    def init(params: Params) -> RoundedState:
        # a copy: whoever donates this state still has the seed, and may call init again
        key = jnp.array(jax.random.key_data(first), copy=True)
        return RoundedState(inner.init(jax.tree.map(_wide, params)), key)

    def update(
        updates: Params, state: RoundedState, params: Params | None = None, **extra_args: Any
    ) -> tuple[Params, RoundedState]:
        params = moved_params("stochastically_rounded", updates, params)
        wide = _on_narrow(lambda g, p: widened(g), updates, params)
        changes, inner_state = inner.update(
            wide, state.inner, jax.tree.map(_wide, params), **extra_args
        )
        later, now = jax.random.split(jax.random.wrap_key_data(state.key, impl=kind))

        treedef: Any = jax.tree.structure(changes, is_leaf=_is_none)
        words = jax.random.bits(now, (2,), jnp.uint32)
        # A fence: a kernel with its leaf's number in it would be another one for each leaf, and
        # take its own time to compile. So it is handed over.
        numbers = jax.lax.optimization_barrier([np.uint32(i) for i in range(treedef.num_leaves)])  # type: ignore[no-untyped-call]

        def rounded(change: Any, param: Any, number: Any) -> Any:
            return _rounded_at_random(change, param, words, number)

        steps = _on_narrow(rounded, changes, params, treedef.unflatten(numbers))
        return steps, RoundedState(inner_state, jax.random.key_data(later))

    return optax.GradientTransformationExtraArgs(init, update)


@jax.jit  # traced once for each shape and dtype
def _rounded_at_random(change: Any, param: Any, words: Any, number: Any) -> jax.Array:
    """The step from θ to one of the two numbers beside c."""
    value = widened(param)
    goal = _float32(value + change)
    # Δ has the parameter's dtype too: beside a small goal, a long step is the coarser one
    least = _spacing(goal - value, param.dtype)
    landing = _at_random(goal, param.dtype, _uniform(words, number, param.shape), least)
    return _step_to(_finite_with(goal, landing, param.dtype), param)


def _uniform(words: jax.Array, number: Any, shape: tuple[int, ...]) -> jax.Array:
    """Draw u in [0, 1), a hash of an entry's place, its leaf's number and two random words.

    It becomes a part of the rounding. Those of `jax.random` are kernels of their own, which take
    longer to compile, for each leaf, than all the rest.
    """
    place = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    bits = _mixed(_mixed(place + words[0]) ^ _mixed(number + words[1]))
    return (bits >> 8).astype(jnp.float32) * np.float32(2**-24)  # float32 tells no more apart


def _mixed(x: jax.Array) -> jax.Array:
    """Mix 32 bits one to one: fmix32 of MurmurHash3."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _on_narrow(
    formula: Callable[..., Any], updates: Params, params: Params, *trees: Any, otherwise: Any = None
) -> Params:
    """Map formula(Δ, θ, *others) over narrow leaves with an update, and keep all the others."""

    def leaf(kept: Any, update: Any, param: Any, *others: Any) -> Any:
        touched = update is not None and _is_narrow(param)
        return formula(update, param, *others) if touched else kept

    kept = updates if otherwise is None else otherwise
    return jax.tree.map(leaf, kept, updates, params, *trees, is_leaf=_is_none)


def _is_none(x: Any) -> bool:
    return x is None


def _is_narrow(param: Any) -> bool:
    """Whether the leaf is floating point of fewer than 32 bits."""
    if param is None:
        return False
    dtype = jnp.asarray(param).dtype
    return bool(jnp.issubdtype(dtype, jnp.floating) and jnp.finfo(dtype).bits < 32)  # type: ignore[no-untyped-call]


def _wide(param: Any) -> Any:
    """Return a narrow leaf in float32, another as it is."""
    return widened(param) if _is_narrow(param) else param


def _float32(x: jax.Array) -> jax.Array:
    """Return x in float32, which an optimizer's float64 step may have left."""
    return x.astype(jnp.float32)


def _as_key(seed: Any) -> jax.Array:
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return seed
    if isinstance(seed, jax.Array) and seed.dtype == jnp.uint32 and seed.ndim == 1:
        key: jax.Array = jax.random.wrap_key_data(seed)  # from jax.random.PRNGKey
        return key
    is_integer = isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jnp.integer)
    fits, advice = is_integer or checks.is_whole(seed), "Pass 0 or jax.random.key(0)."
    rule = "be an integer or a random key"
    checks.must("seed", fits, rule, checks.shown(seed), advice, TypeError)
    return jax.random.key(seed)


# Rounding float32 values to the grid of a narrower dtype. A pair of casts would be optimized away;
# jax.lax.reduce_precision rounds to bfloat16, but knows neither the subnormal numbers of narrower
# ranges nor the wider one of float8_e4m3fn.


def _step_to(goal: jax.Array, param: Any) -> jax.Array:
    """The update in the dtype of θ, so that θ + Δ keeps it in every library's own addition."""
    step = _nearest(goal - widened(param), param.dtype)
    return _finite_with(goal, step, param.dtype).astype(param.dtype)


def _finite_with(goal: jax.Array, x: jax.Array, dtype: Any) -> jax.Array:
    """Cut x to the largest number of `dtype` where the goal rounds to a number of it.

    From −448 to 448 float8_e4m3fn has no step: 896 would be NaN.
    """
    top = float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
    return jnp.where(jnp.abs(_nearest(goal, dtype)) <= top, jnp.clip(x, -top, top), x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _nearest(x: jax.Array, dtype: Any) -> jax.Array:
    """Round to the nearest number of `dtype`, ties to even, with the derivative of x."""
    info: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    if info.nexp == 8:  # the range of float32: there are only digits to cut
        return jax.lax.reduce_precision(x, info.nexp, info.nmant)
    q = _spacing(x, dtype)
    return jnp.where(jnp.isfinite(x), jnp.round(x / q) * q, x)


@_nearest.defjvp
def _nearest_jvp(dtype: Any, x: tuple[Any], tangent: tuple[Any]) -> tuple[jax.Array, Any]:
    return _nearest(*x, dtype), tangent[0]


def _at_random(x: jax.Array, dtype: Any, u: jax.Array, least: Any = 0.0) -> jax.Array:
    """Round to one of the two neighbors in `dtype`, to the nearer one more often: E[·] = x.

    u is uniform in [0, 1), `least` the smallest distance between the two.
    """
    q = jnp.maximum(_spacing(x, dtype), least)
    below = jnp.floor(x / q)
    up = (u < x / q - below).astype(x.dtype)
    return _straight_through(x, (below + up) * q)


def _spacing(x: jax.Array, dtype: Any) -> jax.Array:
    """Return the distance of neighboring numbers of `dtype` around x, a power of two."""
    info: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    # x with its mantissa cleared is the power of two below it
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0x7F800000)
    power = jax.lax.bitcast_convert_type(bits, jnp.float32)
    # subnormal numbers are evenly spaced; the spacing must not itself be subnormal in float32
    eps, tiny = float(info.eps), float(info.tiny)
    least = max(tiny, float(np.finfo(np.float32).tiny) / eps)
    return jnp.maximum(power, least) * eps


def _straight_through(x: jax.Array, rounded: jax.Array) -> jax.Array:
    """Return `rounded` with the derivative of x, and x itself where it is not finite."""
    zero = x - jax.lax.stop_gradient(x)  # with the derivative of x
    return jnp.where(jnp.isfinite(x), jax.lax.stop_gradient(rounded) + zero, x)
