"""R of matrices: penalties and constraints of their singular values.

The last two axes of a leaf are the matrix; axes before them, such as that of scan-stacked layers,
number matrices that are penalised one by one. A kernel of a convolution is no matrix: reshape it,
or leave it out by `rules`. One singular value decomposition per matrix and step, `orthogonal` none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from wdjax._trees.groups import abs2, absolute
from wdjax.penalties import Penalty, _check_positive, _constraint

Split = Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # σ -> what is taken off, what is kept


def _checked(name: str, z: jax.Array) -> jax.Array:
    if z.ndim < 2:
        raise ValueError(
            f"`{name}` needs matrices, or stacks of them over leading axes; got a leaf of shape "
            f"{z.shape}. Restrict the penalty by `rules`."
        )
    return _whole(z)


def _whole(z: jax.Array) -> jax.Array:
    """Each matrix in one piece; a mesh with explicit axes wants to be told, others see to it."""
    at: Any = jax.typeof(z).sharding
    cut = (*at.spec, *(None,) * (z.ndim - len(at.spec)))
    if cut[-2:] == (None, None):
        return z
    spec: Any = PartitionSpec(*cut[:-2], None, None)  # type: ignore[no-untyped-call]
    whole: jax.Array = jax.reshard(z, NamedSharding(at.mesh, spec))  # type: ignore[no-untyped-call]
    return whole


def _singular_values(name: str, z: jax.Array) -> jax.Array:
    return jnp.linalg.svd(_checked(name, z), compute_uv=False)


def _decomposed(name: str, z: jax.Array) -> Any:
    """U, σ, V* of every matrix, σ descending."""
    return jnp.linalg.svd(_checked(name, z), full_matrices=False)


def _lowered(name: str, z: jax.Array, split: Split) -> jax.Array:
    """Take the excess e off the singular values and keep k: Z − U e(σ) V*, or U k(σ) V*.

    The first where little is taken off, and Z itself, bit for bit, where nothing is; the second
    where most is, for the difference of large numbers has few digits.
    """
    left, sigma, right = _decomposed(name, z)
    off, kept = split(sigma)
    is_most = (_largest(off) > _largest(sigma) / 2)[..., None, None]

    def of_values(values: jax.Array) -> jax.Array:
        product: jax.Array = (left * values[..., None, :]) @ right
        return product

    return jnp.where(is_most, of_values(kept), z - of_values(off))


def _above(limit: Any) -> Split:
    """The excess over a limit, and what is kept."""
    return lambda sigma: (jnp.maximum(sigma - limit, 0), jnp.minimum(sigma, limit))


def _nuclear_gradient(z: jax.Array) -> jax.Array:
    left, sigma, right = _decomposed("nuclear", z)
    rounding = jnp.finfo(z.dtype).eps * max(z.shape[-2:])  # type: ignore[no-untyped-call]
    signs = sigma > rounding * jnp.max(sigma, axis=-1, keepdims=True, initial=0)
    gradient: jax.Array = (left * signs[..., None, :]) @ right
    return gradient


nuclear = Penalty(
    name="nuclear",
    value=lambda z: jnp.sum(absolute(_singular_values("nuclear", z))),
    gradient=_nuclear_gradient,
    prox=lambda z, s: _lowered("nuclear", z, lambda sigma: _above(s)(sigma)[::-1]),
)
"""Nuclear norm: the lasso of singular values. Its prox lowers the rank, for low-rank kernels.

    R(Z) = Σ σᵢ      ∂R(Z) = U V*, over the σᵢ > 0      prox(Z, s) = U max(σ − s, 0) V*

The gradient turns with the smallest singular vectors, however small they are: prefer the prox.

References:
    Fazel, *Matrix Rank Minimization with Applications*, 2002; Cai, Candès and Shen, *A Singular
    Value Thresholding Algorithm*, 2010, arXiv:0810.3286, theorem 2.1.
"""


def _largest(sigma: jax.Array) -> jax.Array:
    return jnp.max(sigma, axis=-1, initial=0)


def _spectral_prox(z: jax.Array, s: Any) -> jax.Array:
    def split(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
        # the level t that the largest come down to: Σ max(σ − t, 0) = s t
        k = jnp.arange(1, sigma.shape[-1] + 1).reshape((1,) * (sigma.ndim - 1) + (-1,))
        t = jnp.max(jnp.cumsum(sigma, axis=-1) / (k + s), axis=-1, keepdims=True, initial=0)
        return _above(t)(sigma)

    return _lowered("spectral", z, split)


def _spectral_gradient(z: jax.Array) -> jax.Array:
    left, sigma, right = _decomposed("spectral", z)
    gradient: jax.Array = (left[..., :, :1] * sigma[..., None, :1]) @ right[..., :1, :]
    return gradient


spectral = Penalty(
    name="spectral",
    value=lambda z: jnp.sum(_largest(_singular_values("spectral", z)) ** 2) / 2,
    gradient=_spectral_gradient,
    prox=_spectral_prox,
    curvature=1.0,
)
"""Spectral decay: `l2` of the largest singular value alone, the gain of the layer.

    R(Z) = ½ σ₁²      ∂R(Z) = σ₁ u₁ v₁*
    prox(Z, s) = U min(σ, t) V*      t = maxₖ (σ₁ + ... + σₖ) / (k + s)

References:
    Yoshida and Miyato, *Spectral Norm Regularization*, 2017, arXiv:1705.10941.
"""


def _beyond_identity(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The smaller Gram matrix less I, and the matrix with its shorter axis last."""
    z = _checked("orthogonal", z)
    tall = z if z.shape[-2] >= z.shape[-1] else z.mT
    gram = tall.mT.conj() @ tall
    return gram - jnp.broadcast_to(jnp.eye(tall.shape[-1], dtype=z.dtype), gram.shape), tall


def _orthogonal_gradient(z: jax.Array) -> jax.Array:
    beyond, tall = _beyond_identity(z)
    gradient = 4 * tall @ beyond
    return gradient if gradient.shape == z.shape else gradient.mT


orthogonal = Penalty(
    name="orthogonal",
    value=lambda z: jnp.sum(abs2(_beyond_identity(z)[0])),
    gradient=_orthogonal_gradient,
    prox=None,
    curvature=8.0,
)
"""Soft orthogonality: all singular values are pulled to 1, so 0 is not where it leads.

    R(W) = ‖W* W − I‖² = Σ (σᵢ² − 1)²      ∂R(W) = 4 W (W* W − I)

For a wide W it is W W*, which has the same gradient. No closed prox. `curvature` is the one at
the minimum; it grows as 12 σ², so explicit steps of strength s < 1/8 drive σ to 1 from below
1 + 1/(4s) in σ², and may diverge from beyond twice that. A singular value of 0 stays 0.

References:
    Bansal, Chen and Wang, *Can We Gain More from Orthogonality Regularizations in Training Deep
    CNNs?*, 2018, arXiv:1810.09102.
"""


def spectral_cap(limit: float) -> Penalty:
    """Bound on the singular values: the layer's gain is at most the limit.

        prox(Z, s) = U min(σ, c) V* for s > 0, else Z

    A matrix within the bound stays as it is, bit for bit. For bounds on the norms of neurons see
    `penalties.ball`.

    Args:
        limit: c > 0, the largest singular value allowed.

    Returns:
        The constraint.

    Raises:
        ValueError: c is not a finite number > 0, or at trace, a leaf is no matrix.

    Example:
        >>> spectral_cap(2.0).prox(jnp.diag(jnp.array([3.0, 1.0])), 1.0)
        Array([[2., 0.],
               [0., 1.]], dtype=float32)

    References:
        Newhouse et al., *Training Transformers with Enforced Lipschitz Constants*, 2025,
        arXiv:2507.13338 (hard cap).
    """
    _check_positive("limit", limit)
    name = f"spectral_cap({limit:g})"
    return _constraint(name, lambda z: _lowered(name, z, _above(limit)))
