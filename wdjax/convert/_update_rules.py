"""Update rules as other frameworks compute them, where Optax's own differ.

Each is a formula of one leaf, step(g, t, *memory) -> (u, *memory) with t = 1, 2, ...; `lifted`
makes an Optax transformation of it. The sign and the learning rate come later in the chain.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.leaves import Params
from wdjax._lift.method import counted
from wdjax._trees import paths
from wdjax._trees.groups import ratio

Step = Callable[..., tuple[Any, ...]]
Start = Callable[[Any], Any]  # of a parameter


def lifted(step: Step, *starts: Start) -> optax.GradientTransformationExtraArgs:
    """Lift step(g, t, *memory) -> (u, *memory) of one leaf to Optax; dtypes stay as they are."""

    def start(params: Params) -> tuple[Params, ...]:
        return tuple(jax.tree.map(start, params) for start in starts)

    def act(count: Any, updates: Params, memory: Any, *_: Any) -> tuple[Params, tuple[Params, ...]]:
        t = optax.safe_increment(count)

        def leaf(*old: Any) -> tuple[Any, ...]:
            new = step(old[0], t, *old[1:])
            return tuple(x.astype(y.dtype) for x, y in zip(new, old, strict=True))

        treedef: Any
        grads, treedef = jax.tree.flatten(updates)
        rows = [leaf(*row) for row in zip(grads, *map(treedef.flatten_up_to, memory), strict=True)]
        result, *kept = (
            treedef.unflatten([row[i] for row in rows]) for i in range(1 + len(starts))
        )
        return result, tuple(kept)

    return counted(start, act)


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


def nadamw(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam that looks ahead along β₁ m + (1 − β₁) g, both corrected as m, as in timm.

    u = (β₁ m + (1 − β₁) g) / (1 − β₁^t) / (√(v / (1 − β₂^t)) + ε)
    """

    def step(g: Any, t: Any, m: Any, v: Any) -> tuple[Any, ...]:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        ahead = b1 * m + (1 - b1) * g
        return ahead / (1 - b1**t) / (jnp.sqrt(v / (1 - b2**t)) + eps), m, v

    return lifted(step, jnp.zeros_like, jnp.zeros_like)


def radam(b1: float, b2: float, eps: float, early: float = 1.0) -> optax.GradientTransformation:
    """Rectified Adam with ε added before the bias is corrected, as in PyTorch.

    ρ = ρ∞ − 2 t β₂^t / (1 − β₂^t),  ρ∞ = 2 / (1 − β₂) − 1
    u = m̂ r √(1 − β₂^t) / (√v + ε)  where ρ > 5, else early · m̂
    """
    top = 2 / (1 - b2) - 1

    def step(g: Any, t: Any, m: Any, v: Any) -> tuple[Any, ...]:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        rest = 1 - b2**t
        rho = top - 2 * t * b2**t / rest
        known = rho > 5
        safe = jnp.where(known, rho, 6.0)
        r = jnp.sqrt((safe - 4) * (safe - 2) * top / ((top - 4) * (top - 2) * safe))
        scale = jnp.where(known, r * jnp.sqrt(rest) / (jnp.sqrt(v) + eps), early)
        return scale * m / (1 - b1**t), m, v

    return lifted(step, jnp.zeros_like, jnp.zeros_like)


def adamax(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adamax with ε outside the maximum, as in Keras; Optax and PyTorch have it inside.

    w ← max(β₂ w, |g|),  u = m / (1 − β₁^t) / (w + ε)
    """

    def step(g: Any, t: Any, m: Any, w: Any) -> tuple[Any, ...]:
        m = b1 * m + (1 - b1) * g
        w = jnp.maximum(b2 * w, jnp.abs(g))
        return m / (1 - b1**t) / (w + eps), m, w

    return lifted(step, jnp.zeros_like, jnp.zeros_like)


def factored(
    decay: float, added: float, least: float | None, *, cap: float = 1.0, above: int = 0
) -> optax.GradientTransformation:
    """Adafactor's direction, factored over the last two axes where both are longer than `above`.

    v ← (1 − a) v + a (g² + added),  a = max(t^κ, 1 − cap),  u = g / √max(v, least²)
    where of g² the means over the last axis r and over the one before it c are kept,
    v = r c / max(mean r, least). PyTorch has `least`, by default the ε of the dtype, Keras `added`.
    """

    def is_factored(p: Any) -> bool:
        return len(p.shape) >= 2 and bool(min(p.shape[-2:]) > above)

    def step(g: Any, t: Any, r: Any, c: Any) -> tuple[Any, ...]:
        floor = float(jnp.finfo(g.dtype).eps) if least is None else least  # type: ignore[no-untyped-call]
        share = jnp.maximum(jnp.asarray(t, float) ** decay, 1 - cap)  # in bfloat16 257 is 256
        square = g * g + added
        if not is_factored(g):
            r = (1 - share) * r + share * square
            v = r
        else:
            r = (1 - share) * r + share * square.mean(-1)
            c = (1 - share) * c + share * square.mean(-2)
            mean = jnp.maximum(r.mean(-1, keepdims=True), floor)
            v = (r / mean)[..., None] * c[..., None, :]
        return g / jnp.sqrt(jnp.maximum(v, floor * floor)), r, c

    def rows(p: Any) -> Any:
        return jnp.zeros(p.shape[:-1] if is_factored(p) else p.shape, p.dtype)

    def columns(p: Any) -> Any:
        return jnp.zeros(p.shape[:-2] + p.shape[-1:] if is_factored(p) else (), p.dtype)

    return lifted(step, rows, columns)


def adan(b1: float, b2: float, b3: float, eps: float) -> optax.GradientTransformation:
    """Adan as its authors' code and timm compute it; Optax weighs the difference by 1 − β₂.

    d ← β₂ d + (1 − β₂) Δg,  n ← β₃ n + (1 − β₃) (g + β₂ Δg)²,  u = (m̂ + β₂ d̂) / (√n̂ + ε)
    where Δg is what the gradient has changed by, 0 in the first step
    """

    def step(g: Any, t: Any, m: Any, d: Any, n: Any, before: Any) -> tuple[Any, ...]:
        apart = jnp.where(t == 1, jnp.zeros_like(g), g - before)
        m = b1 * m + (1 - b1) * g
        d = b2 * d + (1 - b2) * apart
        n = b3 * n + (1 - b3) * (g + b2 * apart) ** 2
        top = m / (1 - b1**t) + b2 * d / (1 - b2**t)
        return top / (jnp.sqrt(n / (1 - b3**t)) + eps), m, d, n, g

    return lifted(step, *(jnp.zeros_like,) * 4)


def laprop(
    b1: float,
    b2: float,
    eps: float,
    weight: Callable[[Any], Any],
    denominator: Callable[[Any, Any], Any] | None = None,
) -> optax.GradientTransformation:
    """LaProp: the momentum of normalized gradients, each with a weight of its time.

    m ← β₁ m + (1 − β₁) w_t g / (√v̂ + ε),  a ← β₁ a + (1 − β₁) w_t,  u = m / a

    Args:
        b1: β₁.
        b2: β₂.
        eps: ε.
        weight: t -> w_t. For one value, as in the paper, a is 1 − β₁^t; in timm it is the rate.
        denominator: (√v, √(1 − β₂^t)) -> what divides, as in `adam`; by default √v̂ + ε.
    """
    below = denominator or (lambda root, c: root / c + eps)

    def step(g: Any, t: Any, m: Any, v: Any, a: Any) -> tuple[Any, ...]:
        v = b2 * v + (1 - b2) * g * g
        w = weight(t)
        m = b1 * m + (1 - b1) * w * g / below(jnp.sqrt(v), jnp.sqrt(1 - b2**t))
        a = b1 * a + (1 - b1) * w
        return ratio(m, a), m, v, a

    def scalar(p: Any) -> Any:
        return jnp.zeros((), jnp.promote_types(p.dtype, jnp.float32))

    return lifted(step, jnp.zeros_like, jnp.zeros_like, scalar)


def adopt(
    b1: float, b2: float, eps: float, most: Callable[[Any], Any]
) -> optax.GradientTransformation:
    """ADOPT, which divides by the v of the step before and takes no first step.

    m ← β₁ m + (1 − β₁) clip(g / max(√v, ε), ±most(t)),  u = m,  v ← β₂ v + (1 − β₂) g²
    """

    def step(g: Any, t: Any, m: Any, v: Any) -> tuple[Any, ...]:
        limit = most(jnp.asarray(t, float))
        new = b1 * m + (1 - b1) * jnp.clip(g / jnp.maximum(jnp.sqrt(v), eps), -limit, limit)
        m = jnp.where(t == 1, 0, new)
        return m, m, jnp.where(t == 1, g * g, b2 * v + (1 - b2) * g * g)

    return lifted(step, jnp.zeros_like, jnp.zeros_like)


def normalized(b2: float, eps: float) -> optax.GradientTransformation:
    """NovoGrad's gradient, by one running norm a leaf.

    v ← β₂ v + (1 − β₂) ‖g‖², at first ‖g‖²,  u = g / (√v + ε)
    """

    def step(g: Any, t: Any, v: Any) -> tuple[Any, ...]:
        square = jnp.sum(g * g)
        v = jnp.where(t == 1, square, b2 * v + (1 - b2) * square)
        return g / (jnp.sqrt(v) + eps), v

    return lifted(step, lambda p: jnp.zeros((), jnp.promote_types(p.dtype, jnp.float32)))


def uncorrected_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """Adam without any correction of the bias, MLX's default.

    u = m / (√v + ε)
    """

    def step(g: Any, t: Any, m: Any, v: Any) -> tuple[Any, ...]:
        del t
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g * g
        return m / (jnp.sqrt(v) + eps), m, v

    return lifted(step, jnp.zeros_like, jnp.zeros_like)


def tiger(beta: float) -> optax.GradientTransformation:
    """Lion with one β: the sign of the momentum.

    m ← β m + (1 − β) g,  u = sign(m)
    """

    def step(g: Any, t: Any, m: Any) -> tuple[Any, ...]:
        del t
        m = beta * m + (1 - beta) * g
        return jnp.sign(m), m

    return lifted(step, jnp.zeros_like)


def adagrad(initial_accumulator_value: float, eps: float) -> optax.GradientTransformation:
    """Adagrad with ε outside the root, as in PyTorch.

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
