"""Ridge regression by the singular values of X: slower than by inner products, and less is lost.

Inner products square the ratio of the largest singular value to the smallest. Where a feature is
10⁴ times another or more, or all are far from 0 and have no intercept, even float64 has
few digits left for the small ones, from 10⁸ on none. These functions are those of `_ridge`
with the same names.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax.linear import _ridge
from wdjax.linear._data import Centred


def are_needed(problem: Centred, lams: jax.Array, intercept: bool, tolerance: float) -> jax.Array:
    """Whether inner products may be off by more than the tolerance, at the smallest λ."""
    values, _ = _ridge.eigh(_ridge.gram_matrix(problem, intercept))
    least = jnp.min(values) + jnp.min(lams)
    lost: jax.Array = float(np.finfo(values.dtype).eps) * jnp.max(values) > tolerance * least
    return lost


class Decomposition(NamedTuple):
    """X = U diag(σ) Vᵀ.

    Attributes:
        left: U, (n, m).
        sigma: σ, (m,).
        right: V, (p, m).
    """

    left: jax.Array
    sigma: jax.Array
    right: jax.Array


def decomposed(problem: Centred, intercept: bool) -> Decomposition:
    """Decompose X; where the Gram matrix would be that of the examples, with all their directions.

    The columns go from large to small: so the small ones keep their digits.
    """
    x = problem.x
    n, p = x.shape
    wide = _ridge.is_wide(n, p)
    rows = _ridge.contrasts(problem, x, intercept) if wide else x
    order = jnp.argsort(-jnp.sum(x**2, axis=0))
    missing = max(0, rows.shape[0] - p) if wide else 0
    padded = jnp.pad(rows[:, order], ((0, 0), (0, missing)))
    left, sigma, right = jnp.linalg.svd(padded, full_matrices=False)
    left = _ridge.examples(problem, left, intercept) if wide else left
    return Decomposition(left, sigma, right.T[:p][jnp.argsort(order)])


def coefficients(
    problem: Centred, lams: jax.Array, intercept: bool, noise: float = 0.0
) -> jax.Array:
    """Coefficients (L, p, t) at every λ."""
    left, sigma, right = decomposed(problem, intercept)
    inner = (sigma[None] * _inverse(sigma, lams, noise))[:, :, None] * (left.T @ problem.y)[None]
    return _ridge.varying(problem.x) * jnp.einsum("pj,ljt->lpt", right, inner)


def degrees_of_freedom(
    problem: Centred, lams: jax.Array, intercept: bool, noise: float = 0.0
) -> jax.Array:
    """(L,) Σ σ² / (σ² + λ)."""
    sigma = decomposed(problem, intercept).sigma
    return jnp.sum(sigma[None] ** 2 * _inverse(sigma, lams, noise), axis=1)


def solve(problem: Centred, lams: jax.Array, intercept: bool) -> jax.Array:
    """Coefficients (p, t) with a λ for each target, lams (t,)."""
    left, sigma, right = decomposed(problem, intercept)
    inner = sigma[:, None] * _inverse(sigma, lams, 0.0).T * (left.T @ problem.y)
    return _ridge.varying(problem.x)[0] * (right @ inner)


def fits(problem: Centred, lams: jax.Array, intercept: bool) -> _ridge.Fit:
    """The fit at every λ of lams (L,)."""
    left, sigma, _ = decomposed(problem, intercept)
    if _ridge.is_wide(*problem.x.shape):
        return _ridge.fits_of_examples(problem, sigma**2, left, lams)
    return _ridge.fits_of_features(problem, sigma**2, left * sigma[None], lams)


def _inverse(sigma: jax.Array, lams: jax.Array, noise: float) -> jax.Array:
    """(L, m), 1 / (σ² + λ), and at λ = 0 its limit 0 where σ is 0 to rounding."""
    smallest: Any = sigma.size * max(noise, float(np.finfo(sigma.dtype).eps))
    return _ridge.inverse(sigma**2, lams, smallest**2)
