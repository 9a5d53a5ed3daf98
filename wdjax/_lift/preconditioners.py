"""D: the diagonal by which an adaptive optimiser multiplies its step, read from its state.

A proximal step in the optimiser's own metric needs it: Adam moves each entry by η D m̂ with
D = 1 / (√v̂ + ε), so the threshold of that entry is η λ D.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params, widened
from wdjax._trees import paths

Arguments = Mapping[str, Any]  # of the optimiser's factory, defaults filled in


def adam(state: optax.ScaleByAdamState, arguments: Arguments) -> Params:
    """Return Adam's diagonal.

        D = 1 / (√(v̂ + ε_root) + ε),  v̂ = v / (1 − β₂^t)

    Args:
        state: after its update, so that count is t.
        arguments: of the factory, with b2, eps and eps_root.

    Returns:
        A pytree like the parameters, float32 or wider.

    Example:
        >>> nu = {"w": jnp.array([1.0])}
        >>> state = optax.ScaleByAdamState(count=jnp.array(1), mu=nu, nu=nu)
        >>> adam(state, {"b2": 0.75, "eps": 0.0, "eps_root": 0.0})["w"]
        Array([0.5], dtype=float32)

    References:
        Kingma and Ba, *Adam*, 2015, arXiv:1412.6980, Algorithm 1; Yun, Lozano and Yang,
        *Adaptive Proximal Gradient Methods for Structured Neural Networks*, 2021, Algorithm 1.
    """
    correction = 1 - jnp.asarray(arguments["b2"]) ** state.count

    def diagonal(v: jax.Array) -> Any:
        return 1 / (jnp.sqrt(widened(v) / correction + arguments["eps_root"]) + arguments["eps"])

    return jax.tree.map(diagonal, state.nu)


def rmsprop(state: optax.ScaleByRmsState, arguments: Arguments) -> Params:
    """Return RMSprop's diagonal.

        D = 1 / √(v + ε), or 1 / (√v + ε) with eps_in_sqrt=False; divided by 1 − μ

    The momentum μ holds finished steps, and takes each of them 1/(1 − μ) times in all.

    Args:
        state: after its update.
        arguments: of the factory, with eps, eps_in_sqrt and momentum.

    Returns:
        A pytree like the parameters, float32 or wider.

    Example:
        >>> state = optax.ScaleByRmsState(nu={"w": jnp.array([4.0])})
        >>> rmsprop(state, {"eps": 0.0, "eps_in_sqrt": True, "momentum": None})["w"]
        Array([0.5], dtype=float32)

    References:
        Tieleman and Hinton, *Lecture 6.5: rmsprop*, 2012.
    """
    momentum, eps = arguments["momentum"], arguments["eps"]
    rest = 1 if momentum is None else 1 - momentum

    def diagonal(v: jax.Array) -> Any:
        if arguments["eps_in_sqrt"]:
            return jax.lax.rsqrt(widened(v) + eps) / rest
        return 1 / ((jnp.sqrt(widened(v)) + eps) * rest)

    return jax.tree.map(diagonal, state.nu)


def adagrad(state: optax.ScaleByRssState, arguments: Arguments) -> Params:
    """Return Adagrad's diagonal.

        D = 1 / √(Σ g² + ε), and 0 where Σ g² = 0

    Args:
        state: after its update.
        arguments: of the factory, with eps.

    Returns:
        A pytree like the parameters, float32 or wider.

    Example:
        >>> state = optax.ScaleByRssState(sum_of_squares={"w": jnp.array([4.0, 0.0])})
        >>> adagrad(state, {"eps": 0.0})["w"]
        Array([0.5, 0. ], dtype=float32)

    References:
        Duchi, Hazan and Singer, *Adaptive Subgradient Methods*, 2011, equation 1.
    """

    def diagonal(total: jax.Array) -> jax.Array:
        total = widened(total)
        return jnp.where(total > 0, jax.lax.rsqrt(total + arguments["eps"]), 0)

    return jax.tree.map(diagonal, state.sum_of_squares)


# By factory: others have these states too, and step along something else, such as LAMB and RAdam.
_KNOWN: dict[Any, tuple[type, Callable[[Any, Arguments], Params]]] = {
    optax.adam: (optax.ScaleByAdamState, adam),
    optax.adamw: (optax.ScaleByAdamState, adam),
    optax.rmsprop: (optax.ScaleByRmsState, rmsprop),
    optax.adagrad: (optax.ScaleByRssState, adagrad),
}


def diagonal_of(factory: Any, arguments: Arguments) -> Callable[[Any], Params] | None:
    """Return the optimiser's state -> D, or None where D is not known.

    Args:
        factory: of Optax, also in a functools.partial, such as `optax.nadam`.
        arguments: all that it is given, defaults filled in.
    """
    while isinstance(factory, functools.partial):
        factory = factory.func
    if factory not in _KNOWN or arguments.get("centered") or arguments.get("bias_correction"):
        return None
    kind, formula = _KNOWN[factory]

    def diagonal(opt_state: Any) -> Params:
        (state,) = paths.nodes(opt_state, lambda node: isinstance(node, kind))
        return formula(state, arguments)

    return diagonal
