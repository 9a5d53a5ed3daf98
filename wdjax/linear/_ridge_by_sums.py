"""Ridge regression from `Statistics`: what `_ridge` does by X and y, by their inner products.

‖y − Xw‖² = yᵀy − 2 wᵀXᵀy + wᵀXᵀX w      X and y centered and weighted
"""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks
from wdjax._trees.paths import listed
from wdjax.linear import _data, _ridge
from wdjax.linear._statistics import Statistics, around, mean

CRITERIA = ("gcv", "evidence", "folds")


class Products(NamedTuple):
    """Inner products of a problem without weights and intercept.

    Attributes:
        gram: (p, p), XᵀX.
        cross: (p, t), Xᵀy.
        squares: (t,), yᵀy.
        mean_x: (p,), x̄; 0 without an intercept.
        mean_y: (t,), ȳ; 0 without an intercept.
        used: (), examples of weight above 0.
        free: (), used less 1 for an intercept.
    """

    gram: jax.Array
    cross: jax.Array
    squares: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    used: jax.Array
    free: jax.Array


def products(sums: Statistics, intercept: bool) -> Products:
    """Take out the intercept of statistics of one fold, without its axis."""
    w, t = sums.weight, sums.targets or 1
    c = sums.shift / w
    if intercept:
        rest = sums.first / w
        second = sums.second - w * jnp.outer(rest, rest)
        center = c + rest
        # a constant column becomes exactly 0: a small λ would blow noise up
        noise = 16 * np.finfo(second.dtype).eps * jnp.abs(center)
        varies = jnp.diagonal(second) > w * noise**2
        second = jnp.where(varies[:, None] & varies[None], second, 0)
    else:
        center = jnp.zeros_like(c)
        cross = jnp.outer(sums.first, c)
        second = sums.second + cross + cross.T + w * jnp.outer(c, c)
    x, y = slice(-t), slice(-t, None)
    squares = jnp.diagonal(second)[y]
    free = sums.count - intercept
    return Products(second[x, x], second[x, y], squares, center[x], center[y], sums.count, free)


def coefficients(of: Products, lams: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients (L, p, t) at every λ, and degrees of freedom (L,)."""
    values, vectors = _ridge.eigh(of.gram)
    inverse = _ridge.inverse(values, lams, _ridge.rounding(values))
    inner = inverse[:, :, None] * (vectors.T @ of.cross)[None]
    coef = jnp.einsum("pj,ljt->lpt", vectors, inner)
    varies = (jnp.diagonal(of.gram) > 0)[None, :, None]
    return jnp.where(varies, coef, 0), jnp.sum(values[None] * inverse, axis=1)


def ridge_path(
    total: Statistics, lams: Any, groups: Any, intercept: bool
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Coefficients, intercepts and degrees of freedom at every λ of a grid."""
    _check(total)
    p = _features(total)
    labels, count = _data.numbered(groups, p)
    lams = _data.grid(lams, total.second, width=None if groups is None else count, zero=True)
    found, is_lost = _data.in_float64(_path, total, lams, labels, intercept=intercept)
    _warn(is_lost)
    path: tuple[jax.Array, jax.Array, jax.Array] = found
    return path


@functools.partial(jax.jit, static_argnames="intercept")
def _path(total: Statistics, lams: Any, groups: Any, *, intercept: bool) -> Any:
    with jax.default_matmul_precision("highest"):
        of = products(_all(total), intercept)
        if groups is None:
            coef, df = coefficients(of, lams)
        else:
            coef, df = jax.lax.map(lambda lam: _with_groups(of, lam), lams[:, groups])
        return (*_without_axis(total, coef, _data.intercept_of(of, coef)), df), _is_lost(of, lams)


def ridge_cv(
    total: Statistics, lams: Any, method: Any, per_target: bool, intercept: bool
) -> tuple[jax.Array, ...]:
    """Score, λ, coefficients, intercept and edge."""
    _check(total)
    advice = "Sums do not show single examples, nor which of them were in other folds."
    checks.choice("method", method, CRITERIA, advice)
    lams = _data.grid(lams, total.second, zero=False)
    if method == "folds":
        _check_folds(total)
    chosen, is_lost = _data.in_float64(
        _cv, total, lams, method=method, per_target=per_target, intercept=intercept
    )
    _warn(is_lost)
    _data.check_score(chosen[0])
    found: tuple[jax.Array, ...] = chosen
    return found


@functools.partial(jax.jit, static_argnames=("method", "per_target", "intercept"))
def _cv(total: Statistics, lams: Any, *, method: str, per_target: bool, intercept: bool) -> Any:
    with jax.default_matmul_precision("highest"):
        of = products(_all(total), intercept)
        if method == "folds":
            score = jnp.mean(fold_errors(total, lams, intercept), axis=0)
        else:
            score = _scores(of, lams, method)
        if not per_target:
            joint = jnp.sum if method == "evidence" else jnp.mean
            score = joint(score, axis=1, keepdims=True)
        lam, edge = _data.lowest(score, lams)
        each = jnp.broadcast_to(lam, of.squares.shape)
        coef = jnp.einsum("tpt->pt", coefficients(of, each)[0])
        coef, b = _without_axis(total, coef, _data.intercept_of(of, coef))
        if not per_target:
            score, lam, edge = score[:, 0], lam[0], edge[0]
        return (score, lam, coef, b, edge), _is_lost(of, lams)


def fold_errors(total: Statistics, lams: jax.Array, intercept: bool) -> jax.Array:
    """(K, L, t) mean squared errors on every fold of the fit to all others."""
    folds = around(total, mean(total)[None])  # around one point sums of other folds simply add
    others = 1 - jnp.eye(len(folds.weight), dtype=folds.weight.dtype)
    train = jax.tree.map(lambda x: jnp.tensordot(others, x, 1), folds)

    def error(fold: tuple[Statistics, Statistics]) -> jax.Array:
        seen, left_out = fold
        of = products(seen, intercept)
        coef, _ = coefficients(of, lams)
        # the residuals' sum of squares is a square form of (−w, 1) in z around (x̄, ȳ)
        point = jnp.concatenate([of.mean_x, of.mean_y])[None]
        here = around(jax.tree.map(lambda x: x[None], left_out), point)
        second, p = here.second[0], len(of.mean_x)
        against = jnp.einsum("pq,lqt->lpt", second[:p, :p], coef) - 2 * second[:p, p:][None]
        squares = jnp.diagonal(second)[p:][None] + jnp.sum(coef * against, axis=1)
        errors: jax.Array = jnp.maximum(squares, 0) / left_out.weight
        return errors

    errors: jax.Array = jax.lax.map(error, (train, folds))
    return errors


def group_ridge(
    total: Statistics, groups: Any, method: str, steps: int, intercept: bool
) -> tuple[jax.Array, ...]:
    """λ of every group, coefficients, intercept, score and edge."""
    _check(total)
    labels, count = _data.numbered(groups, _features(total))
    checks.choice("method", method, ("evidence", "gcv"), "Sums do not show single examples.")
    found: tuple[jax.Array, ...] = _data.in_float64(
        _groups, total, labels, count=count, method=method, steps=steps, intercept=intercept
    )
    return found


@functools.partial(jax.jit, static_argnames=("count", "method", "steps", "intercept"))
def _groups(
    total: Statistics, groups: Any, *, count: int, method: str, steps: int, intercept: bool
) -> Any:
    with jax.default_matmul_precision("highest"):
        of = products(_all(total), intercept)
        scales = _ridge.group_scales(jnp.diagonal(of.gram), of.used, groups, count)
        root = jnp.sqrt(scales)[groups]
        near = of._replace(
            gram=of.gram / root[:, None] / root[None], cross=of.cross / root[:, None]
        )

        def score(lam: jax.Array) -> jax.Array:
            return jnp.sum(_score(near, lam[groups], method))

        def one_for_all(lams: jax.Array) -> jax.Array:
            return jnp.sum(_scores(near, lams, method), axis=1)

        lam, edge, value = _ridge.group_search(one_for_all, score, count, steps, root.dtype)
        lam = lam * scales
        coef, _ = _with_groups(of, lam[groups])
        coef, b = _without_axis(total, coef, _data.intercept_of(of, coef))
        return lam, coef, b, value, edge


def _with_groups(of: Products, lam: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Coefficients (p, t) and degrees of freedom with a λ for every feature, (p,)."""
    lower = jnp.linalg.cholesky(of.gram + jnp.diag(lam), symmetrize_input=False)
    both = jax.scipy.linalg.cho_solve((lower, True), jnp.hstack([of.cross, of.gram]))
    t = of.cross.shape[1]
    return both[:, :t], jnp.trace(both[:, t:])


def _score(of: Products, lam: jax.Array, method: str) -> jax.Array:
    """The criterion (t,) with a λ for every feature, (p,)."""
    lower = jnp.linalg.cholesky(of.gram + jnp.diag(lam), symmetrize_input=False)
    half = jax.scipy.linalg.solve_triangular(lower, of.cross, lower=True)
    energy = of.squares - jnp.sum(half**2, axis=0)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(lower))) - jnp.sum(jnp.log(lam))
    if method == "evidence":
        return _ridge.evidence_of(energy, log_det, of.free)
    coef, df = _with_groups(of, lam)
    squares = energy - lam @ coef**2
    return _ridge.generalised_of(squares, of.free - df, of.used)


def _scores(of: Products, lams: jax.Array, method: str) -> jax.Array:
    """The criterion (L, t) at every λ of a grid."""
    values, vectors = _ridge.eigh(of.gram)
    target = (vectors.T @ of.cross) ** 2  # (p, t)
    inverse = 1 / (values[None] + lams[:, None])
    energy = of.squares[None] - inverse @ target
    if method == "evidence":
        log_det = jnp.sum(jnp.log1p(values[None] / lams[:, None]), axis=1, keepdims=True)
        return _ridge.evidence_of(energy, log_det, of.free)
    slack = of.free - jnp.sum(values[None] * inverse, axis=1, keepdims=True)
    residual = energy - lams[:, None] * (inverse**2 @ target)
    return _ridge.generalised_of(residual, slack, of.used)


def _all(total: Statistics) -> Statistics:
    """The sums over all folds, without their axis."""
    moved = around(total, mean(total)[None])
    one: Statistics = jax.tree.map(lambda x: jnp.sum(x, axis=0), moved)
    return one


def _features(total: Statistics) -> int:
    return int(total.second.shape[-1]) - (total.targets or 1)


def _without_axis(total: Statistics, *results: jax.Array) -> tuple[jax.Array, ...]:
    """The results without their last axis, of targets, where y had none."""
    return tuple(x[..., 0] for x in results) if total.targets is None else results


def _is_lost(of: Products, lams: jax.Array) -> jax.Array:
    """Whether rounding hides a direction of X at the smallest λ; its limit at λ = 0 aside."""
    values, _ = _ridge.eigh(of.gram)  # compiled with `coefficients`, it is done once
    is_there = values > _ridge.rounding(values) * jnp.max(values)
    least = jnp.min(jnp.where(is_there, values, jnp.inf))
    noise = np.finfo(values.dtype).eps * jnp.max(values)
    return jnp.asarray(noise > 1e-6 * (least + jnp.min(lams)))


def _warn(is_lost: Any) -> None:
    if _data.known(is_lost) and is_lost:
        warnings.warn(
            "Some directions of `x` are lost in its inner products: its features have very "
            "different scales, or are nearly equal, and λ is small. Scale the features to similar "
            "variances, or use larger `lams`.",
            stacklevel=4,
        )


def _check(total: Statistics) -> None:
    """Refuse too few examples, where they are known."""
    if _data.known(*jax.tree.leaves(total)):
        count = np.sum(total.count)
        checks.must("x", count >= 2, "have at least two examples of weight above 0", f"{count:.0f}")
        checks.check_finite("x", total.second)


def _check_folds(total: Statistics) -> None:
    advice = "Give `statistics` the `fold` of every example."
    checks.must("x", len(total.weight) >= 2, "have two folds or more", "one", advice)
    if _data.known(total.weight):
        empty = [f"fold {k}" for k in np.flatnonzero(np.asarray(total.weight) == 0)]
        checks.must("x", not empty, "have examples in every fold", f"none in {listed(empty)}")
