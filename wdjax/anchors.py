"""a: towards which point the parameters are pulled.

An anchor says what it keeps in the optimizer's state, how that moves, and which point it gives. The
argument `anchor` of the transformations also takes None (zero), "init" and a pytree of arrays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._lift.leaves import Params, widened
from wdjax._trees import paths, stacks


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A point to decay towards, as pure functions.

    Attributes:
        name: how messages call it.
        init: params -> what is kept in the state.
        advance: (kept, params) -> kept, called at each step with the parameters before it.
        point: (kept, params, extra arguments of update) -> a, a pytree like `params`, or None.

    Example:
        >>> at_start = init()
        >>> kept = at_start.init({"w": jnp.array([2.0])})
        >>> at_start.point(kept, {"w": jnp.array([5.0])}, {})["w"]
        Array([2.], dtype=float32)
    """

    name: str
    init: Callable[[Params], Any] = lambda params: ()
    advance: Callable[[Any, Params], Any] = lambda kept, params: kept
    point: Callable[[Any, Params, Mapping[str, Any]], Params | None] = lambda kept, params, extra: (
        None
    )

    def __repr__(self) -> str:
        return f"<anchor {self.name}>"


def init(dtype: Any = None) -> Anchor:
    """Decay towards the parameters as they were at `init` ("init" for short).

        a = θ₀

    They are copied, so that parameters and state may be donated together.

    Args:
        dtype: of the copy, such as `jnp.bfloat16` to halve its memory; None keeps the leaves'.

    Returns:
        The anchor. It keeps one copy of the parameters in the state and in checkpoints.

    Example:
        >>> init(jnp.bfloat16).init({"w": jnp.array([2.0])})["w"].dtype
        dtype(bfloat16)

    References:
        Li, Grandvalet and Davoine, *Explicit Inductive Bias for Transfer Learning with
        Convolutional Networks*, 2018, arXiv:1802.01483, equation 2 (L2-SP); Kumar et al.,
        *Maintaining Plasticity via Regenerative Regularization*, 2023, arXiv:2308.11958.
    """
    return Anchor("init", init=lambda params: _copied(params, dtype), point=_kept_point)


def ema(decay: Any, dtype: Any = None) -> Anchor:
    """Decay towards an exponential moving average of the parameters.

        a ← β a + (1 − β) θ,  a = θ₀ at first

    β = 1 is the anchor `init`, β = 0 no decay at all.

    Args:
        decay: β in [0, 1], a number or traced scalar; the average runs over about 1/(1 − β) steps.
        dtype: in which the average is kept; None is float32, or the leaf's own where that is
            wider. In a narrow dtype a slow average may stand still.

    Returns:
        The anchor. It keeps one average per parameter in the state.

    Raises:
        ValueError: β is outside [0, 1].

    Example:
        >>> slow = ema(0.75)
        >>> kept = slow.init({"w": jnp.array([2.0])})
        >>> slow.advance(kept, {"w": jnp.array([6.0])})["w"]
        Array([3.], dtype=float32)

    References:
        Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, 1992, for
        the average; the pull towards it is Tarvainen and Valpola's mean teacher in weight space.
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 <= decay <= 1:
        raise ValueError(f"`decay` must be in [0, 1]; got {decay}.")

    def start(params: Params) -> Params:
        return jax.tree.map(lambda p: _cast(p, dtype or widened(p).dtype), params)

    def advance(kept: Params, params: Params) -> Params:
        averages = [
            _mixed(decay, widened(a), widened(p)).astype(a.dtype)
            if jnp.issubdtype(a.dtype, jnp.inexact)
            else a
            for a, p in zip(jax.tree.leaves(kept), jax.tree.leaves(params), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(kept), averages)

    return Anchor(f"ema({decay})", init=start, advance=advance, point=_kept_point)


def passed() -> Anchor:
    """Decay towards the pytree that each call of `update` passes as `anchor=`.

    Nothing is kept: neither the state nor a checkpoint nor the compiled program holds the anchor.

    Returns:
        The anchor.

    Raises:
        ValueError: at `update`, the argument is missing or does not fit the parameters.

    Example:
        >>> params = {"w": jnp.array([5.0])}
        >>> passed().point((), params, {"anchor": {"w": jnp.array([2.0])}})["w"]
        Array([2.], dtype=float32)

    References:
        As `init`; meant for pretrained weights that are in memory anyway.
    """

    def point(kept: Any, params: Params, extra: Mapping[str, Any]) -> Params:
        if extra.get("anchor") is None:
            raise ValueError(
                "`anchor=anchors.passed()` needs the anchor at every step. "
                "Call `optimizer.update(grads, state, params, anchor=...)`."
            )
        _check_fit(extra["anchor"], params)
        return _like(params, extra["anchor"])

    return Anchor("passed", point=point)


def as_anchor(anchor: Any) -> Anchor:
    """Turn None, "init" or a pytree of arrays into an `Anchor`."""
    if isinstance(anchor, Anchor):
        return anchor
    if anchor is None:
        return Anchor("zero")
    if isinstance(anchor, str):
        if anchor != "init":
            raise ValueError(
                f'`anchor` must be None, "init", a pytree of arrays or one of wdjax.anchors; '
                f"got {anchor!r}."
            )
        return init()

    own = jax.tree.map(_kept_safe, anchor)

    def start(params: Params) -> tuple[()]:
        _check_fit(own, params)
        return ()

    return Anchor("given", init=start, point=lambda kept, params, extra: _like(params, own))


def _kept_safe(leaf: Any) -> Any:
    """Copy an array of the caller's, who may donate or change it: it is often the first model."""
    if isinstance(leaf, np.ndarray):
        return leaf.copy()
    if not isinstance(leaf, jax.Array) or isinstance(leaf, jax.core.Tracer):
        return leaf
    if leaf.is_deleted():
        raise ValueError(
            "`anchor` must hold arrays that are still there; got one that was donated to a "
            'compiled step. Pass a copy, or use anchor="init".'
        )
    return jnp.array(leaf, copy=True)


def _copied(params: Params, dtype: Any) -> Params:
    return jax.tree.map(lambda p: _cast(p, dtype), params)


def _cast(param: Any, dtype: Any) -> jax.Array:
    """Copy; integer leaves keep their dtype."""
    if not jnp.issubdtype(param.dtype, jnp.inexact):
        dtype = None
    return jnp.array(param, dtype=dtype, copy=True)


def _kept_point(kept: Any, params: Params, extra: Mapping[str, Any]) -> Params:
    del extra
    return _like(params, kept)


def _mixed(decay: Any, a: jax.Array, p: jax.Array) -> jax.Array:
    """β a + (1 − β) p, exactly p where a = p or β = 0, and a where β = 1.

    A rounding error between a and p would be a direction, and a sign or a projection has its whole
    length along it.
    """
    return jnp.where(decay < 1, p + decay * (a - p), a)


def _like(params: Params, anchor: Params) -> Params:
    """Give the anchor the containers of `params`, which nnx changes between init and update.

    Inside `optax.masked` and `optax.partition` the parameters are a part of the model, and the
    anchor may be all of it.
    """
    structure: Any = jax.tree.structure(params)
    leaves = jax.tree.leaves(anchor)
    if len(leaves) != structure.num_leaves:
        named = dict(zip((leaf.path for leaf in paths.leaves(anchor)), leaves, strict=True))
        leaves = [named[leaf.path] for leaf in paths.leaves(params)]
    point: Params = structure.unflatten(leaves)
    return point


def _check_fit(anchor: Params, params: Params) -> None:
    if stacks.is_stacked(params):
        raise TypeError(
            "`anchor` must not be a pytree inside of `stacked`, which maps what it is given alone. "
            'Use anchor="init", or anchor=wdjax.anchors.passed() and pass `anchor=stack(anchor)` '
            "at every step."
        )
    given = [(leaf.path, leaf.shape) for leaf in paths.leaves(anchor)]
    wanted = [(leaf.path, leaf.shape) for leaf in paths.leaves(params)]
    is_part = paths.has_holes(params)
    if is_part:
        visible = dict(wanted)
        given = [(path, shape) for path, shape in given if path in visible]
    if given == wanted:
        return
    difference = "" if is_part else paths.structure_difference(anchor, params)
    found = dict(given)
    shapes = [
        f"{path!r} {found.get(path, 'absent')} instead of {shape}"
        for path, shape in wanted
        if found.get(path) != shape
    ]
    raise ValueError(
        "`anchor` must have the structure and shapes of the parameters; got "
        f"{difference or paths.listed(shapes)}. Pass parameters of the same model."
    )
