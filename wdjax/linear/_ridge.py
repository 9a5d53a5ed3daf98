"""Ridge regression for every λ at once: one eigendecomposition, then only 1 / (d + λ) changes.

With X (n, p): the Gram matrix of the features XᵀX where n > p, that of the examples XXᵀ elsewhere.
The names here are those of the formulas; users find the functions in `wdjax.linear`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax.linear._data import Centred, centred_near, joined


class Fit(NamedTuple):
    """What every selection rule needs of the fit at one λ; a leading axis where there are many.

    Attributes:
        residual: (n, t), √s (y − ŷ).
        slack: (n,), 1 − hᵢ, where hᵢ is the leverage of an example.
        energy: (t,), min_w Σ s r² + λ‖w‖² = yᵀ(I + K/λ)⁻¹y.
        log_det: (), log det(I + K/λ), K = XXᵀ.
    """

    residual: jax.Array
    slack: jax.Array
    energy: jax.Array
    log_det: jax.Array


Criterion = Callable[[Fit, Centred], jax.Array]


def is_wide(n: int, p: int) -> bool:
    """Whether the Gram matrix of the examples is used.

    Also where n is only a little larger than p: the leverages come near 1 there, and 1 − h is a sum
    of squares in this form and a difference in the other.
    """
    return 4 * n <= 5 * p


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def resolvent(a: jax.Array, b: jax.Array, lams: jax.Array, noise: float = 0.0) -> jax.Array:
    """(A + λ I)⁻¹ B for every λ, by one eigendecomposition; its limit at λ = 0 where A is singular.

    Args:
        a: (m, m), symmetric, no negative eigenvalue.
        b: (L, m, t), or (1, m, t) for the same right-hand side at every λ.
        lams: (L,).
        noise: at λ = 0 an eigenvalue counts as 0 up to (m · noise)² times the largest.

    Returns:
        (L, m, t). Derivatives are those of the inverse, so equal eigenvalues do no harm.
    """
    values, vectors = eigh(a)
    turned = jnp.einsum("ij,lit->ljt", vectors, b)
    shares = inverse(values, lams, rounding(values, noise))
    return jnp.einsum("ij,ljt->lit", vectors, shares[:, :, None] * turned)


@resolvent.defjvp
def _resolvent_jvp(noise: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    a, b, lams = primals
    da, db, dlams = tangents
    out = resolvent(a, b, lams, noise)
    change = db - jnp.einsum("ij,ljt->lit", da, out) - dlams[:, None, None] * out
    return out, resolvent(a, change, lams, noise)


def eigh(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvalues and eigenvectors; with the diagonal from large to small, small ones are right."""
    graded, order = _graded(a)
    values, vectors = jnp.linalg.eigh(graded, symmetrize_input=False)
    return jnp.maximum(values, 0), vectors[jnp.argsort(order)]


def _graded(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Rows and columns in the order of the diagonal, from large to small, and that order."""
    order = jnp.argsort(-jnp.diagonal(a))
    return a[order][:, order], order


def inverse(values: jax.Array, lams: jax.Array, smallest: float) -> jax.Array:
    """(L, m), 1 / (d + λ), and at λ = 0 its limit 0 where d is 0 to rounding, of the largest."""
    total = values[None] + lams[:, None]
    floor = smallest * jnp.max(values, initial=0)
    singular = (lams[:, None] == 0) & (values[None] <= floor)
    return jnp.where(singular, 0, 1 / jnp.where(singular, 1, total))


def rounding(values: jax.Array, noise: float = 0.0) -> float:
    """That of the decomposition or that of the data, of whose singular values d is the square."""
    m = values.size
    return float(max(m * np.finfo(values.dtype).eps, (m * noise) ** 2))


def _reflected(problem: Centred, a: jax.Array) -> jax.Array:
    """H a, with the Householder reflection H that takes the intercept's direction to axis 0."""
    u = problem.constant
    v = u.at[0].add(jnp.where(u[0] < 0, -1, 1).astype(u.dtype))
    return a - jnp.outer(v, (2 / (v @ v)) * (v @ a))


def contrasts(problem: Centred, a: jax.Array, intercept: bool) -> jax.Array:
    """Bᵀa: a (n, ...) in an orthonormal basis B (n, m) of all but the intercept's direction.

    So XXᵀ loses an eigenvalue that is 0 but for rounding, before it can do harm.
    """
    return _reflected(problem, a)[1:] if intercept else a


def examples(problem: Centred, a: jax.Array, intercept: bool) -> jax.Array:
    """B a: back from `contrasts`."""
    return _reflected(problem, jnp.pad(a, ((1, 0), (0, 0)))) if intercept else a


def gram_matrix(problem: Centred, intercept: bool) -> jax.Array:
    """XᵀX, or where X is wide the smaller BᵀXXᵀB, in the basis of `contrasts`."""
    x = problem.x
    if not is_wide(*x.shape):
        return x.T @ x
    turned = contrasts(problem, x, intercept)
    return turned @ turned.T


def coefficients(
    problem: Centred, lams: jax.Array, intercept: bool, noise: float = 0.0
) -> jax.Array:
    """Coefficients (L, p, t) at every λ."""
    x, y = problem.x, problem.y
    gram = gram_matrix(problem, intercept)
    if not is_wide(*x.shape):
        return varying(x) * resolvent(gram, (x.T @ y)[None], lams, noise)
    dual = resolvent(gram, contrasts(problem, y, intercept)[None], lams, noise)
    return jnp.einsum("ip,lit->lpt", contrasts(problem, x, intercept), dual)


def varying(x: jax.Array) -> jax.Array:
    """(1, p, 1), 0 for a column of zeros: eigenvectors hold it to rounding, which 1/λ blows up."""
    return jnp.any(x != 0, axis=0)[None, :, None].astype(x.dtype)


def degrees_of_freedom(
    problem: Centred, lams: jax.Array, intercept: bool, noise: float = 0.0
) -> jax.Array:
    """(L,) tr A (A + λ)⁻¹, through the eigenvalues alone: their derivative is always finite."""
    gram, _ = _graded(gram_matrix(problem, intercept))  # as for `eigh`, so that it is done once
    values = jnp.maximum(jnp.linalg.eigvalsh(gram, symmetrize_input=False), 0)
    return jnp.sum(values[None] * inverse(values, lams, rounding(values, noise)), axis=1)


def solve(problem: Centred, lams: jax.Array, intercept: bool) -> jax.Array:
    """Coefficients (p, t) with a λ for each target, lams (t,).

    The eigendecomposition is that of `fits`: compiled together, it is done once.
    """
    x, y = problem.x, problem.y
    gram = gram_matrix(problem, intercept)
    if not is_wide(*x.shape):
        return (varying(x) * resolvent(gram, (y.T @ x)[:, :, None], lams))[:, :, 0].T
    dual = resolvent(gram, contrasts(problem, y, intercept).T[:, :, None], lams)[:, :, 0]
    return (dual @ contrasts(problem, x, intercept)).T


def group_path(problem: Centred, lams: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients and degrees of freedom for a λ of every feature, lams (L, p): a factor each."""

    def one(lam: jax.Array) -> tuple[jax.Array, jax.Array]:
        x, y = problem.x, problem.y
        if is_wide(*x.shape):
            scaled = x / jnp.sqrt(lam)[None]
            gram, target, diagonal = scaled @ scaled.T, y, jnp.ones(x.shape[0], x.dtype)
        else:
            gram, target, diagonal = x.T @ x, x.T @ y, lam
        factor = _cholesky(_plus_diagonal(gram, diagonal))
        solved = jax.scipy.linalg.cho_solve(factor, jnp.hstack([target, gram]))
        coef, shares = solved[:, : y.shape[1]], solved[:, y.shape[1] :]
        if is_wide(*x.shape):
            coef = (scaled.T @ coef) / jnp.sqrt(lam)[:, None]
        return coef, jnp.trace(shares)

    paths: tuple[jax.Array, jax.Array] = jax.lax.map(one, lams)
    return paths


def _plus_diagonal(a: jax.Array, diagonal: jax.Array) -> jax.Array:
    return a + jnp.diag(diagonal)


def _cholesky(a: jax.Array) -> tuple[jax.Array, bool]:
    return jnp.linalg.cholesky(a, symmetrize_input=False), True


def fit(problem: Centred, lam: jax.Array, intercept: bool) -> Fit:
    """The fit with λ (p,), one for every feature, by one Cholesky factor.

    Where K is used, r = (I + K/λ)⁻¹y and 1 − h = diag (I + K/λ)⁻¹ are sums without cancellation,
    so that r / (1 − h) is right however small both are.
    """
    x, y = problem.x, problem.y
    if is_wide(*x.shape):
        scaled = x / jnp.sqrt(lam)[None]
        turned = contrasts(problem, scaled, intercept)
        basis = contrasts(problem, jnp.eye(x.shape[0], dtype=x.dtype), intercept)
        ones = jnp.ones(turned.shape[0], x.dtype)
        lower, _ = _cholesky(_plus_diagonal(turned @ turned.T, ones))
        inward = jax.scipy.linalg.solve_triangular(lower, basis, lower=True)  # L⁻¹Bᵀ
        half = inward @ y
        return Fit(
            inward.T @ half, jnp.sum(inward**2, axis=0), jnp.sum(half**2, axis=0), _log_det(lower)
        )
    lower, _ = _cholesky(_plus_diagonal(x.T @ x, lam))
    coef = jax.scipy.linalg.cho_solve((lower, True), x.T @ y)
    residual = y - x @ coef
    leverage = jnp.sum(jax.scipy.linalg.solve_triangular(lower, x.T, lower=True) ** 2, axis=0)
    energy = jnp.sum(residual**2, axis=0) + lam @ coef**2
    slack = 1 - problem.constant**2 - leverage
    return Fit(residual, slack, energy, _log_det(lower) - jnp.sum(jnp.log(lam)))


def _log_det(lower: jax.Array) -> jax.Array:
    return 2 * jnp.sum(jnp.log(jnp.diagonal(lower)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def fits(problem: Centred, lams: jax.Array, intercept: bool) -> Fit:
    """The same as `fit` for every λ of lams (L,), all by one eigendecomposition."""
    values, vectors = eigh(gram_matrix(problem, intercept))
    if is_wide(*problem.x.shape):
        vectors = examples(problem, vectors, intercept)
        return fits_of_examples(problem, values, vectors, lams)
    return fits_of_features(problem, values, problem.x @ vectors, lams)


def fits_of_examples(
    problem: Centred, values: jax.Array, vectors: jax.Array, lams: jax.Array
) -> Fit:
    """From K = U diag(d) Uᵀ, U (n, m) with all directions but the intercept's."""
    shrink = lams[:, None] / (values[None] + lams[:, None])  # (L, m), λ / (d + λ)
    target = vectors.T @ problem.y
    residual = jnp.einsum("ij,ljt->lit", vectors, shrink[:, :, None] * target[None])
    log_det = jnp.sum(jnp.log1p(values[None] / lams[:, None]), axis=1)
    return Fit(residual, shrink @ (vectors**2).T, shrink @ target**2, log_det)


def fits_of_features(
    problem: Centred, values: jax.Array, scores: jax.Array, lams: jax.Array
) -> Fit:
    """From XᵀX = V diag(d) Vᵀ, by the scores XV (n, p)."""
    y = problem.y
    inverse = 1 / (values[None] + lams[:, None])
    coef = inverse[:, :, None] * (scores.T @ y)[None]  # in the basis of the eigenvectors
    residual = y[None] - jnp.einsum("ij,ljt->lit", scores, coef)
    slack = 1 - problem.constant[None] ** 2 - inverse @ (scores**2).T
    energy = jnp.sum(residual**2, axis=1) + lams[:, None] * jnp.sum(coef**2, axis=1)
    log_det = jnp.sum(jnp.log1p(values[None] / lams[:, None]), axis=1)
    return Fit(residual, slack, energy, log_det)


@fits.defjvp
def _fits_jvp(intercept: bool, primals: Any, tangents: Any) -> tuple[Fit, Fit]:
    """Derivatives by Cholesky factors: those of eigenvectors do not exist at equal eigenvalues."""

    def each(problem: Centred, lams: jax.Array) -> Fit:
        p = problem.x.shape[1]
        one = jax.checkpoint(lambda lam: fit(problem, jnp.full(p, lam), intercept))
        each: Fit = jax.lax.map(one, lams)
        return each

    _, tangent = jax.jvp(each, primals, tangents)
    return fits(*primals, intercept), tangent


def leave_one_out(fit: Fit, problem: Centred) -> jax.Array:
    """Mean squared error of each example under the fit to all others: (1/Σs) Σ s (r / (1 − h))²."""
    return jnp.sum((fit.residual / fit.slack[:, None]) ** 2, axis=0) / jnp.sum(problem.root**2)


def generalised(fit: Fit, problem: Centred) -> jax.Array:
    """Generalized cross-validation."""
    used = problem.root > 0
    slack = jnp.sum(jnp.where(used, fit.slack, 0))
    return generalised_of(jnp.sum(fit.residual**2, axis=0), slack, jnp.sum(used))


def generalised_of(squares: jax.Array, slack: jax.Array, n: jax.Array) -> jax.Array:
    """(1/n) Σ s r² / (1 − tr H / n)², of Σ s r² and n − tr H; n counts weights above 0."""
    return n * squares / slack**2


def evidence(fit: Fit, problem: Centred) -> jax.Array:
    """−log p(y | λ) up to a constant, σ² profiled out."""
    used = jnp.sum(problem.root > 0)
    m = used - jnp.sum(problem.constant**2)  # the intercept takes one
    return evidence_of(fit.energy, fit.log_det, m)


def evidence_of(energy: jax.Array, log_det: jax.Array, m: jax.Array) -> jax.Array:
    """½ (m log(energy / m) + log det(I + K/λ))."""
    return (m * jnp.log(energy / m) + log_det) / 2


CRITERIA: dict[str, Criterion] = {
    "loo": leave_one_out,
    "gcv": generalised,
    "evidence": evidence,
}


def fold_errors(
    x: jax.Array, y: jax.Array, weights: jax.Array, folds: Any, lams: jax.Array, intercept: bool,
    solver: Callable[..., jax.Array] | None = None,
) -> jax.Array:  # fmt: skip
    """(K, L, t) mean squared errors on the validation part of every fold.

    By `solver`, which gives coefficients; None is what takes the least time.
    """
    n, p = x.shape
    # a shift of all data changes no error, and spares digits
    both, shift = joined(x, y, jnp.full(n, 1 / n, x.dtype), intercept)
    x, y = both[:, :p], both[:, p:]
    gram = x @ x.T if solver is None and is_wide(folds.train.shape[1], p) else None
    solver = coefficients if solver is None else solver

    def one(fold: Any) -> jax.Array:
        train, train_weights, val, val_weights = fold
        s = weights[train] * train_weights
        if gram is None:
            problem = centred_near(both[train], shift, p, s, intercept)
            coef = solver(problem, lams, intercept)
            left_out = both[val]
            predicted = jnp.einsum("vp,lpt->lvt", left_out[:, :p] - problem.mean_x[None], coef)
            error = (left_out[:, p:] - problem.mean_y[None])[None] - predicted
        else:
            predicted, mean_y = _from_gram(gram[train][:, train], gram[val][:, train], y[train], s)
            error = (y[val] - mean_y[None])[None] - predicted
        share = weights[val] * val_weights
        return jnp.einsum("v,lvt->lt", share / jnp.sum(share), error**2)

    def _from_gram(
        inner: jax.Array, cross: jax.Array, target: jax.Array, s: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Predictions (L, V, t) out of inner products alone."""
        mean_y = jnp.zeros_like(target[0])
        if intercept:
            share = s / jnp.sum(s)
            mean_y = share @ target
            to_mean = inner @ share
            norm = share @ to_mean
            cross = cross - (cross @ share)[:, None] - to_mean[None] + norm
            inner = inner - to_mean[:, None] - to_mean[None] + norm
        root = jnp.sqrt(s)
        inner = root[:, None] * inner * root[None]
        dual = resolvent(inner, ((target - mean_y[None]) * root[:, None])[None], lams)
        return jnp.einsum("vi,lit->lvt", cross * root[None], dual), mean_y

    errors: jax.Array = jax.lax.map(one, tuple(folds))
    return errors


def group_scales(squares: jax.Array, n: Any, groups: jax.Array, count: int) -> jax.Array:
    """(G,), the mean eigenvalue ‖X_g‖² / min(n, p_g) of each group's Gram matrix; 1 where all is 0.

    From ‖x‖² of every feature. Eigenvalues that are 0 for lack of examples or features do not
    count.
    """
    sums = jnp.zeros(count, squares.dtype).at[groups].add(squares)
    sizes = jnp.zeros(count, squares.dtype).at[groups].add(1)
    scales = sums / jnp.minimum(sizes, n)
    return jnp.where(scales > 0, scales, 1)


def group_lams(
    problem: Centred, groups: jax.Array, count: int, method: str, steps: int, intercept: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best λ (G,), whether each is at a bound, and the score.

    All happens in units of the groups' scales: there the start is one λ for all, the bounds too,
    and scores are as before: they see X and λ only as XΛ⁻¹Xᵀ.
    """
    scales = group_scales(jnp.sum(problem.x**2, axis=0), problem.x.shape[0], groups, count)
    problem = problem._replace(x=problem.x / jnp.sqrt(scales)[groups][None])
    criterion = CRITERIA[method]

    def one_for_all(lams: jax.Array) -> jax.Array:
        single = jax.vmap(criterion, (0, None))(fits(problem, lams, intercept), problem)
        return jnp.sum(single, axis=1)

    def score(lam: jax.Array) -> jax.Array:
        return jnp.sum(criterion(fit(problem, lam[groups], intercept), problem))

    lam, edge, value = group_search(one_for_all, score, count, steps, problem.x.dtype)
    return scales * lam, edge, value


def group_search(
    one_for_all: Callable[[jax.Array], jax.Array],
    score: Callable[[jax.Array], jax.Array],
    count: int,
    steps: int,
    dtype: Any,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The λ (G,) of lowest score that Adam finds on log λ, from the best single λ of a grid."""
    grid = jnp.logspace(-4, 4, 17, dtype=dtype)
    low, high = jnp.log(jnp.asarray([1e-4, 1e6], dtype))
    start = jnp.full(count, jnp.log(grid[jnp.nanargmin(one_for_all(grid))]))
    optimizer = optax.adam(optax.cosine_decay_schedule(1.0, steps, alpha=0.02), b1=0.7, b2=0.9)

    def of_log(log_lam: jax.Array) -> jax.Array:
        return score(jnp.exp(log_lam))

    def step(carry: Any, _: Any) -> tuple[Any, None]:
        log_lam, state, best, lowest = carry
        value, grads = jax.value_and_grad(of_log)(log_lam)
        better = value < lowest
        best, lowest = jnp.where(better, log_lam, best), jnp.where(better, value, lowest)
        grads = jnp.where(jnp.isfinite(grads), grads, 0)  # no factor in float32: stay, and move on
        updates, state = optimizer.update(grads, state)
        return (jnp.clip(log_lam + updates, low, high), state, best, lowest), None

    infinite = jnp.asarray(jnp.inf, dtype)
    carry = (start, optimizer.init(start), start, infinite)
    (last, _, best, lowest), _ = jax.lax.scan(step, carry, length=steps)
    value = of_log(last)
    found = jnp.where(value < lowest, last, best)
    edge = (found <= low) | (found >= high)
    return jnp.exp(found), edge, jnp.minimum(value, lowest)
