"""Lasso and elastic net by coordinate descent, every solution with its duality gap.

    P(w) = ½‖y − Xw‖² + λ₁‖w‖₁ + ½λ₂‖w‖²

Coordinates are updated from inner products alone: given g = Xᵀ(y − Xw), one costs a row of
the Gram matrix. Where p is large, that is the Gram matrix of a working set of features, which takes
in those that violate optimality most. The names here are those of the formulas; users find the
functions in `wdjax.linear`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees.groups import soft_threshold

_CHECK_EVERY = 2  # sweeps between two looks at the gap
_BLOCK = 64  # features that enter the working set at once


class Options(NamedTuple):
    """tol on gap / ‖y‖², most sweeps at one λ, most features in a working set."""

    tol: float
    max_sweeps: int
    size: int


def sizes(shape: Any, lasso_only: bool, most: int | None) -> tuple[int, int]:
    """Sizes of the working set: the first, and another where many features are not 0."""
    n, p = shape
    if most is not None or lasso_only:
        size = min(p, n + 128, 4_096) if most is None else min(p, most)
        return size, size
    return min(p, 4 * n + 128, 4_096), min(p, 4_096)


def is_full(coef: jax.Array, converged: jax.Array, size: int) -> bool:
    """Whether it is known that a full working set kept a solution (L, p, ...) from being found."""
    if isinstance(coef, jax.core.Tracer):
        return False
    used = (coef != 0).sum(axis=1)
    return bool((~converged & (used >= size)).any())


class Solution(NamedTuple):
    """coef (L, p), and per λ the duality gap over ‖y‖² (L,)."""

    coef: jax.Array
    gap: jax.Array


class Strength(NamedTuple):
    """λ₁ and λ₂, both (), or (L,) along a path."""

    l1: jax.Array
    l2: jax.Array


def duality_gap(
    w: jax.Array, g: jax.Array, slopes: jax.Array, rr: jax.Array, ry: jax.Array, lam: Strength
) -> jax.Array:
    """P(w) less the larger of two bounds from below.

        D(c r) = c rᵀy − ½c²(‖r‖² + λ₂‖w‖²)      |c| ‖Xᵀr − λ₂w‖∞ <= λ₁, the best such c
        D(r)   = rᵀy − ½‖r‖² − Σ max(|xⱼᵀr| − λ₁, 0)² / 2λ₂

    The first is that of the lasso. Where λ₁ is below the rounding of Xᵀr it says nothing, and the
    second does.

    Args:
        w: (m,), the coefficients that may differ from 0.
        g: (m,) or (p,), Xᵀr.
        slopes: (m,) or (p,), Xᵀr − λ₂w.
        rr: (), ‖r‖².
        ry: (), rᵀy.
        lam: λ₁ and λ₂.

    Returns:
        (), >= 0 up to rounding.
    """
    largest = jnp.max(jnp.abs(slopes))
    bound = jnp.where(largest > 0, lam.l1 / jnp.where(largest > 0, largest, 1), jnp.inf)
    square = rr + lam.l2 * (w @ w)
    best = jnp.where(square > 0, ry / jnp.where(square > 0, square, 1), 0)
    c = jnp.clip(best, -bound, bound)
    excess = jnp.sum(jnp.maximum(jnp.abs(g) - lam.l1, 0) ** 2)
    conjugate = jnp.where(lam.l2 > 0, excess / jnp.where(lam.l2 > 0, 2 * lam.l2, 1), jnp.inf)
    lower = jnp.maximum(c * ry - c**2 * square / 2, ry - rr / 2 - conjugate)
    return square / 2 + lam.l1 * jnp.sum(jnp.abs(w)) - lower


class Gram(NamedTuple):
    """Inner products of m features: matrix XᵀX (m, m), target Xᵀy (m,), total yᵀy ()."""

    matrix: jax.Array
    target: jax.Array
    total: jax.Array


def sweep(gram: Gram, lam: Strength, used: Any, state: Any) -> Any:
    """Minimize over each of the first `used` coordinates in turn; state is (w, g = Xᵀr)."""

    def update(j: jax.Array, state: Any) -> Any:
        w, g = state
        row = gram.matrix[j]
        curvature = row[j]
        z = w[j] * curvature + g[j]
        scale = curvature + lam.l2
        new = jnp.where(scale > 0, soft_threshold(z, lam.l1) / jnp.where(scale > 0, scale, 1), 0)
        return w.at[j].set(new), g - row * (new - w[j])

    return jax.lax.fori_loop(0, used, update, state)


def descend(
    gram: Gram, lam: Strength, used: Any, w: jax.Array, g: jax.Array, goal: jax.Array, sweeps: Any
) -> tuple[jax.Array, jax.Array]:
    """Sweep until the duality gap among these features is at most the goal, or sweeps are spent.

    Returns:
        w (m,) and the number of sweeps.
    """

    def gap(w: jax.Array, g: jax.Array) -> jax.Array:
        ry = gram.total - w @ gram.target
        return duality_gap(w, g, g - lam.l2 * w, ry - w @ g, ry, lam)

    def again(carry: Any) -> Any:
        count, _, gap_now = carry
        return (gap_now > goal) & (count < sweeps)

    def step(carry: Any) -> Any:
        count, state, _ = carry
        state = jax.lax.fori_loop(0, _CHECK_EVERY, lambda _, s: sweep(gram, lam, used, s), state)
        return count + _CHECK_EVERY, state, gap(*state)

    count, (w, _), _ = jax.lax.while_loop(again, step, (0, (w, g), gap(w, g)))
    return w, jnp.asarray(count)


def gram_path(x: jax.Array, y: jax.Array, lams: Strength, options: Options) -> Solution:
    """The path with the Gram matrix of all features, λ from large to small."""
    gram = Gram(x.T @ x, x.T @ y, y @ y)

    def at(w: jax.Array, lam: Strength) -> Any:
        g = gram.target - gram.matrix @ w  # afresh: sums of many small updates drift
        goal = 0.9 * options.tol * gram.total  # what is certified differs by rounding
        w, _ = descend(gram, lam, x.shape[1], w, g, goal, options.max_sweeps)
        return w, w

    def certify(solution: Any) -> jax.Array:
        w, lam = solution
        r = y - x @ w
        g = r @ x
        return duality_gap(w, g, g - lam.l2 * w, r @ r, r @ y, lam)

    _, coef = jax.lax.scan(at, jnp.zeros_like(x[0]), lams)
    gap = jax.lax.map(certify, (coef, lams), batch_size=_BLOCK)
    return Solution(coef, _relative(gap, gram.total))


def _relative(gap: jax.Array, total: jax.Array) -> jax.Array:
    return jnp.maximum(gap, 0) / jnp.where(total > 0, total, 1)


class WorkingSet(NamedTuple):
    """Up to m features at a time, with their inner products.

    Attributes:
        members: (m,) int32, features; p in an empty place.
        columns: (m, n), their columns of X; 0 in an empty place.
        gram: their inner products.
        used: () int32, places taken, the first ones.
        w: (m,), coefficients.
    """

    members: jax.Array
    columns: jax.Array
    gram: Gram
    used: jax.Array
    w: jax.Array


def _enlarge(work: WorkingSet, rows: jax.Array, slopes: jax.Array, y: jax.Array) -> WorkingSet:
    """Take in the features that violate optimality most, in free places and in those at w = 0."""
    m = work.columns.shape[0]
    block = min(_BLOCK, m)
    strength = jnp.abs(slopes).at[work.members].set(-1, mode="drop")
    values, features = jax.lax.top_k(strength, block)
    inside = jnp.abs(slopes).at[work.members].get(mode="fill", fill_value=0)
    spare = jnp.where(work.w == 0, -inside, -jnp.inf)
    spare = jnp.where(jnp.arange(m) >= work.used, 1, spare)
    room, places = jax.lax.top_k(spare, block)
    # a member leaves only for a stronger one
    places = jnp.where((values > 0) & (values > -room), places, m)
    new = rows[features]
    columns = work.columns.at[places].set(new, mode="drop")
    products = new @ columns.T
    matrix = work.gram.matrix.at[places].set(products, mode="drop")
    matrix = matrix.at[:, places].set(products.T, mode="drop")
    return WorkingSet(
        work.members.at[places].set(features, mode="drop"),
        columns,
        Gram(matrix, work.gram.target.at[places].set(new @ y, mode="drop"), work.gram.total),
        jnp.maximum(work.used, jnp.max(jnp.where(places < m, places + 1, 0))),
        work.w,
    )


def working_path(x: jax.Array, y: jax.Array, lams: Strength, options: Options) -> Solution:
    """The path with a working set, λ from large to small.

    At each λ, by turns: take in violators, descend within the set, look at all features. A turn
    costs one product with X; most λ need one turn.
    """
    n, p = x.shape
    size = options.size
    # features in memory one after the other
    rows = jax.lax.optimization_barrier(x.T)  # type: ignore[no-untyped-call]
    total = y @ y
    goal = options.tol * total
    most_rounds = 2 * (size // _BLOCK) + 50
    nothing = WorkingSet(
        jnp.full(size, p, jnp.int32),
        jnp.zeros((size, n), x.dtype),
        Gram(jnp.zeros((size, size), x.dtype), jnp.zeros(size, x.dtype), total),
        jnp.zeros((), jnp.int32),
        jnp.zeros(size, x.dtype),
    )

    def at(state: Any, lam: Strength) -> Any:
        def look(work: WorkingSet, r: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
            slopes = g.at[work.members].add(-lam.l2 * work.w, mode="drop")
            return slopes, duality_gap(work.w, g, slopes, r @ r, r @ y, lam)

        def again(carry: Any) -> Any:
            _, gap, rounds, sweeps = carry
            return (gap > goal) & (rounds < most_rounds) & (sweeps < options.max_sweeps)

        def turn(carry: Any) -> Any:
            (work, r, g), _, rounds, sweeps = carry
            slopes, _ = look(work, r, g)
            outside = jnp.max(jnp.abs(slopes).at[work.members].set(-1, mode="drop"))
            # a loop of one turn or none: unlike a condition it works in place
            work = jax.lax.fori_loop(
                0, (outside > lam.l1).astype(int), lambda _, w: _enlarge(w, rows, slopes, y), work
            )
            inner = g.at[work.members].get(mode="fill", fill_value=0)
            left = options.max_sweeps - sweeps
            w, spent = descend(work.gram, lam, work.used, work.w, inner, goal / 2, left)
            work = work._replace(w=w)
            r = y - w @ work.columns
            g = rows @ r
            return (work, r, g), look(work, r, g)[1], rounds + 1, sweeps + spent

        start = (state, look(*state)[1], 0, 0)
        (work, r, g), gap, _, _ = jax.lax.while_loop(again, turn, start)
        coef = jnp.zeros(p, x.dtype).at[work.members].set(work.w, mode="drop")
        return (work, r, g), (coef, gap)

    _, (coef, gap) = jax.lax.scan(at, (nothing, y, rows @ y), lams)
    return Solution(coef, _relative(gap, total))


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def path(x: jax.Array, y: jax.Array, lams: Strength, options: Options) -> Solution:
    """Solutions for every target of y (n, t): coef (t, L, p), λ from large to small, gap (t, L)."""
    solver = gram_path if x.shape[1] <= options.size else working_path
    of_x = _power(x)
    x = x * of_x

    def one(target: jax.Array) -> Solution:
        of_y = _power(target)
        most = float(np.finfo(x.dtype).max) / 4
        l2 = jnp.minimum(lams.l2 * of_x * of_x, most)  # which leaves no coefficient
        coef, gap = solver(x, target * of_y, Strength(lams.l1 * of_x * of_y, l2), options)
        return Solution(jnp.where(coef == 0, 0, coef * of_x / of_y), gap)

    solution: Solution = jax.lax.map(one, y.T)
    return solution


def _power(x: jax.Array) -> jax.Array:
    """A power of 2 that takes the largest entry near 1, with which no bit of any changes.

    Otherwise squares of numbers below 1e-19 would be 0 in float32, and those of 1e20 infinite.
    """
    largest = jnp.max(jnp.abs(x))
    exponent = jnp.clip(jnp.frexp(largest)[1], -120, 120)
    return jnp.where(largest > 0, jnp.ldexp(jnp.ones((), x.dtype), -exponent), 1)


@path.defjvp
def _path_jvp(options: Options, primals: Any, tangents: Any) -> tuple[Solution, Solution]:
    """Differentiate X_Sᵀ(y − X_S w_S) = λ₁ sign(w_S) + λ₂ w_S on the support S, which stays."""
    x, y, lams = primals
    dx, dy, dlams = tangents
    solution = path(x, y, lams, options)

    def change(w: jax.Array, y: jax.Array, dy: jax.Array, lam: Strength, dlam: Strength) -> Any:
        on = (w != 0).astype(w.dtype)
        right = (y - x @ w) @ dx + (dy - dx @ w) @ x - dlam.l1 * jnp.sign(w) - dlam.l2 * w

        def matrix(v: jax.Array) -> Any:
            inside = on * v
            return on * ((x @ inside) @ x + lam.l2 * inside) + (v - inside)

        accuracy = float(np.finfo(w.dtype).eps) ** 0.75
        most = 4 * min(x.shape)

        def solve(matrix: Any, b: jax.Array) -> Any:
            cg: Any = jax.scipy.sparse.linalg.cg
            return cg(matrix, b, tol=accuracy, maxiter=most)[0]

        # around cg, whose own starting point is made of b and has no transpose
        return jax.lax.custom_linear_solve(matrix, on * right, solve, symmetric=True)

    along = jax.vmap(change, in_axes=(0, None, None, 0, 0))
    dcoef = jax.vmap(along, in_axes=(0, 1, 1, None, None))(solution.coef, y, dy, lams, dlams)
    return solution, Solution(dcoef, jnp.zeros_like(solution.gap))
