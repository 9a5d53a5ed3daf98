"""Update rules as other frameworks compute them, where Optax's own differ.

Each is a formula of one leaf, step(g, t, *memory) -> (u, *memory) with t = 1, 2, ...; `lifted`
makes an Optax transformation of it. The sign and the learning rate come later in the chain.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._trees import paths
from wdjax._trees.groups import ratio

Step = Callable[..., tuple[Any, ...]]
Start = Callable[[Any], Any]  # of a parameter


class ForeignState(NamedTuple):
    """State of a lifted formula.

    Attributes:
        count: int32 scalar, steps taken.
        memory: what the formula keeps for each leaf, one tree for each of its memories.
    """

    count: jax.Array  # type: ignore[assignment]  # shadows tuple.count, as in Optax
    memory: tuple[Params, ...]


def lifted(step: Step, *starts: Start) -> optax.GradientTransformation:
    """Lift step(g, t, *memory) -> (u, *memory) of one leaf to Optax; dtypes stay as they are."""
    width = 1 + len(starts)

    def init(params: Params) -> ForeignState:
        memory = tuple(jax.tree.map(start, params) for start in starts)
        return ForeignState(jnp.zeros((), jnp.int32), memory)

    def update(
        updates: Params, state: ForeignState, params: Params | None = None
    ) -> tuple[Params, ForeignState]:
        del params
        t = optax.safe_increment(state.count)

        def leaf(g: Any, *memory: Any) -> tuple[Any, ...]:
            new = step(g, t, *memory)
            return tuple(x.astype(old.dtype) for x, old in zip(new, (g, *memory), strict=True))

        treedef: Any
        leaves, treedef = jax.tree.flatten(updates)
        memories = (treedef.flatten_up_to(tree) for tree in state.memory)
        rows = [leaf(*row) for row in zip(leaves, *memories, strict=True)]
        result, *memory = (treedef.unflatten([row[i] for row in rows]) for i in range(width))
        return result, ForeignState(t, tuple(memory))

    return optax.GradientTransformation(init, update)


def adam(
    b1: float, b2: float, *, amsgrad: bool, denominator: Callable[[Any, Any], Any]
) -> optax.GradientTransformation:
    """Adam with its ε where `denominator` puts it, and AMSGrad as PyTorch and Keras compute it.

        m ← β₁ m + (1 − β₁) g,  v ← β₂ v + (1 − β₂) g²,  v̄ ← max(v̄, v) for AMSGrad, else v
        u = m / (1 − β₁^t) / denominator(√v̄, √(1 − β₂^t))

    Optax's AMSGrad takes the maximum of v / (1 − β₂^t) instead.
    """

    def step(g: Any, t: Any, m: Any, v: Any, *top: Any) -> tuple[Any, ...]:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        top = tuple(jnp.maximum(x, v) for x in top)
        root = jnp.sqrt(top[0] if top else v)
        u = m / (1 - b1**t) / denominator(root, jnp.sqrt(1 - b2**t))
        return u, m, v, *top

    return lifted(step, *(jnp.zeros_like,) * (3 if amsgrad else 2))


def nadam(b1: float, b2: float, eps: float, momentum_decay: float) -> optax.GradientTransformation:
    """Dozat's schedule of the momentum, as PyTorch and Keras (ψ = 1) have it and Optax has not.

    μ_t = β₁ (1 − ½ 0.96^(t ψ)),  π_t = μ_1 … μ_t
    u = ((1 − μ_t) g / (1 − π_t) + μ_{t+1} m / (1 − π_t μ_{t+1})) / (√(v / (1 − β₂^t)) + ε)
    """

    def mu(t: Any) -> Any:
        return b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))

    def step(g: Any, t: Any, m: Any, v: Any, product: Any) -> tuple[Any, ...]:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        product = product * mu(t)
        ahead = (1 - mu(t)) * g / (1 - product) + mu(t + 1) * m / (1 - product * mu(t + 1))
        return ahead / (jnp.sqrt(v / (1 - b2**t)) + eps), m, v, product

    return lifted(step, jnp.zeros_like, jnp.zeros_like, lambda p: jnp.ones((), p.dtype))


def adagrad(initial_accumulator_value: float, eps: float) -> optax.GradientTransformation:
    """Adagrad with ε outside of the root, as in PyTorch.

    a ← a + g²,  u = g / (√a + ε)
    """

    def step(g: Any, t: Any, a: Any) -> tuple[Any, ...]:
        del t
        a = a + g * g
        return g / (jnp.sqrt(a) + eps), a

    return lifted(step, lambda p: jnp.full_like(p, initial_accumulator_value))


def muon(
    momentum: float,
    *,
    nesterov: bool,
    orthogonalize: Callable[[Any], Any],
    scale: Callable[[tuple[int, ...]], float],
) -> optax.GradientTransformation:
    """Muon as in PyTorch, without Optax's bias correction.

    b ← μ b + (1 − μ) g,  u = scale · orthogonalize(μ b + (1 − μ) g)  with Nesterov, else of b
    """

    def step(g: Any, t: Any, b: Any) -> tuple[Any, ...]:
        del t
        b = momentum * b + (1 - momentum) * g
        ahead = momentum * b + (1 - momentum) * g if nesterov else b
        return scale(g.shape) * orthogonalize(ahead), b

    inner = lifted(step, jnp.zeros_like)

    def init(params: Params) -> Any:
        others = [f"{leaf.path!r} {leaf.shape}" for leaf in paths.leaves(params) if leaf.ndim != 2]
        if others:
            raise ValueError(
                f"Muon takes matrices only; got {paths.listed(others)}. Give the other parameters "
                "an optimizer of their own: optax.partition({'muon': ..., 'other': ...}, labels)."
            )
        return inner.init(params)

    return optax.GradientTransformation(init, inner.update)


def newton_schulz(
    x: Any, coefficients: tuple[float, float, float], steps: int, eps: float, dtype: Any
) -> Any:
    """PyTorch's approximation of the nearest orthogonal matrix, rounded to `dtype` where it rounds.

    X ← x / max(‖x‖, ε),  A = X Xᵀ,  X ← a X + (b A + c A²) X, some times
    """
    a, b, c = coefficients
    dtype = x.dtype if dtype is None else jnp.dtype(dtype)
    kept: Any = jnp.finfo(dtype)  # type: ignore[no-untyped-call]
    wide = jnp.promote_types(dtype, jnp.float32)
    times = functools.partial(jnp.matmul, preferred_element_type=wide)

    def rounded(y: Any) -> Any:
        # a compiler may skip a mere cast that is undone later
        return jax.lax.reduce_precision(y, kept.nexp, kept.nmant).astype(dtype)

    z = rounded(x.T if x.shape[0] > x.shape[1] else x)
    z = rounded(z / jnp.maximum(rounded(jnp.linalg.norm(z.astype(wide))), eps).astype(wide))
    for _ in range(steps):
        gram = rounded(times(z, z.T))
        inner = rounded(b * gram.astype(wide) + c * times(gram, gram))
        z = rounded(a * z.astype(wide) + times(inner, z))
    return (z.T if x.shape[0] > x.shape[1] else z).astype(x.dtype)


def clip_norms(most: float) -> optax.GradientTransformation:
    """Clip the norm of every leaf by itself, as Keras' `clipnorm`.

    u = g · min(1, most / ‖g‖)
    """

    def clipped(g: Any) -> Any:
        return g * jnp.minimum(1, ratio(most, jnp.linalg.norm(g.reshape(-1))))

    return optax.stateless(lambda updates, _: jax.tree.map(clipped, updates))
