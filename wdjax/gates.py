"""φ: when not to pull.

A gate is a function of one leaf, (z, Δ, g) -> φ with values in [0, 1] or booleans: z is the
parameter's displacement from the anchor (the parameter itself without one), Δ the optimiser's
finished update, g the raw gradient where `decayed` supplies it, else None.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

Gate = Callable[[jax.Array, jax.Array, Any], jax.Array]


def cautious(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
    """Decay only where the update does not move the parameter away from zero.

        φ = 1[Δ z <= 0]

    With Δ = −η u this is the paper's 1[u z >= 0]. Signs are compared, not the product, which
    would underflow; where Δ = 0 the parameter decays, as in the paper.

    Args:
        z: θ, or θ − a with an anchor; any shape.
        update: Δ, same shape, the step about to be added to θ.
        grad: ignored.

    Returns:
        Booleans of the same shape.

    Example:
        >>> cautious(jnp.array([2.0, 2.0, 2.0]), jnp.array([-0.1, 0.1, 0.0]))
        Array([ True, False,  True], dtype=bool)

    References:
        Chen et al., *Cautious Weight Decay*, 2025, arXiv:2510.12402, Algorithm 1.
    """
    del grad
    return jnp.sign(z) * jnp.sign(update) <= 0
