"""φ: when not to pull.

A gate is a function of one leaf, (z, Δ, g) -> φ with values in [0, 1] or booleans: z is the
parameter's displacement from the anchor (the parameter itself without one), Δ the optimizer's
finished update, g the raw gradient where `decayed` or `with_grad` supplies it, else None.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wdjax._lift.leaves import needed_gradient
from wdjax._trees import checks
from wdjax._trees.groups import Axes, check_axes, checked_axes, inner, norm, product, scaled

Gate = Callable[[jax.Array, jax.Array, Any], jax.Array]


def cautious(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
    """Decay only where the update does not move the parameter away from zero.

        φ = 1[Δ z <= 0]

    For complex entries the product is that of vectors in the plane, Re(Δ z̄). With Δ = −η u this
    is the paper's 1[u z >= 0]. Signs are compared, not the product, which would underflow; where
    Δ = 0 the parameter decays, as in the paper.

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
    return product(jnp.sign(z), jnp.sign(update)) <= 0


def strictly_cautious(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
    """As `cautious`, but without decay also where the update is exactly zero.

        φ = 1[Δ z < 0]

    The two differ for entries that nothing moves, such as unseen rows of an embedding table at
    an optimizer without momentum. See `touched_rows` for whole rows, whatever the optimizer.

    Args:
        z: θ, or θ − a with an anchor; any shape.
        update: Δ, same shape, the step about to be added to θ.
        grad: ignored.

    Returns:
        Booleans of the same shape.

    Example:
        >>> strictly_cautious(jnp.array([2.0, 2.0, 2.0]), jnp.array([-0.1, 0.1, 0.0]))
        Array([ True, False, False], dtype=bool)

    References:
        Chen et al., *Cautious Weight Decay*, 2025, arXiv:2510.12402, Algorithm 1 with a strict
        inequality.
    """
    del grad
    return product(jnp.sign(z), jnp.sign(update)) < 0


def descent(axes: Axes = None) -> Gate:
    """Decay only where a step against the raw gradient also leads towards the anchor.

        φ = 1[⟨g, θ − a⟩ > 0] of each group

    The condition of selective projection decay, for fine-tuning with anchor="init": where loss
    and penalty disagree, the loss wins.

    Args:
        axes: the axes along which one group extends, as in `penalties.group_lasso`; None: the
            whole leaf is one group, as in the paper.

    Returns:
        The gate. It needs the raw gradient: `wdjax.decayed` passes it, or `adaptive.with_grad`.

    Raises:
        ValueError: at trace, the raw gradient is missing, or the leaf has no such
            axis.
        TypeError: `axes` is not an axis or several.

    Example:
        >>> z, grad = jnp.array([[1.0, 2.0], [1.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, -1.0]])
        >>> descent(axes=1)(z, -grad, grad)
        Array([[ True],
               [False]], dtype=bool)

    References:
        Tian et al., *Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models*, 2024,
        arXiv:2411.01713, the selection condition c.
    """
    check_axes(axes)

    def gate(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
        del update
        return inner(scaled(needed_gradient("descent", grad), axes), scaled(z, axes), axes) > 0

    return gate


def cosine(delta: float = 0.1, axes: Axes = None, factor: float = 0.1) -> Gate:
    """Decay less where the raw gradient is orthogonal to the weights, as under normalization.

        φ = f where |cos(g, z)| < δ / √n, else 1, for each group of n entries

    A layer before a norm layer has gradients orthogonal to its weights. AdamP recognizes such
    layers by that and lowers their decay by f. It decides for a whole leaf by its largest cosine;
    here every group is decided on its own. A group of zeros counts as orthogonal.

    Args:
        delta: δ > 0; 0.1 in the paper.
        axes: the axes along which one group extends, as in `penalties.group_lasso`; for a kernel
            (in, out), axes=0 looks at each neuron.
        factor: f in [0, 1]: what is left of the decay; 0.1 in the paper.

    Returns:
        The gate. It needs the raw gradient: `wdjax.decayed` passes it, or `adaptive.with_grad`.

    Raises:
        ValueError: δ is not > 0, f is outside [0, 1]; at trace, the raw gradient is missing, or
            the leaf has no such axis.
        TypeError: `axes` is not an axis or several.

    Example:
        >>> z, grad = jnp.array([[1.0, 2.0], [1.0, 2.0]]), jnp.array([[2.0, -1.0], [1.0, 1.0]])
        >>> cosine(axes=1)(z, -grad, grad)
        Array([[0.1],
               [1. ]], dtype=float32)

    References:
        Heo et al., *AdamP: Slowing Down the Slowdown for Momentum Optimizers on Scale-Invariant
        Weights*, 2021, arXiv:2006.08217, Algorithm 2.
    """
    check_axes(axes)
    checks.number("delta", delta, above=0)
    checks.number("factor", factor, least=0, most=1)

    def gate(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
        del update
        a, b = scaled(needed_gradient("cosine", grad), axes), scaled(z, axes)
        lengths = norm(a, axes) * norm(b, axes)
        n = z.size / max(lengths.size, 1)
        orthogonal = jnp.abs(inner(a, b, axes)) * n**0.5 < delta * lengths
        return jnp.where(orthogonal | (lengths == 0), jnp.asarray(factor, lengths.dtype), 1)

    return gate


def touched_rows(axes: Axes = -1) -> Gate:
    """Decay only the rows that got a gradient, as in sparse embedding tables.

        φ = 1[some entry of the row's g is not 0]

    Plain decay takes the embeddings of rare tokens away while nothing restores them. Embeddings
    decay only where the rules say so, such as `standard(embeddings=1.0)`.

    Args:
        axes: the axes along which one row extends; −1 for a table (vocabulary, features).

    Returns:
        The gate. It needs the raw gradient: `wdjax.decayed` passes it, or `adaptive.with_grad`.

    Raises:
        ValueError: at trace, the raw gradient is missing, or the leaf has no such
            axis.
        TypeError: `axes` is not an axis or several.

    Example:
        >>> table, grad = jnp.ones((2, 2)), jnp.array([[0.0, 0.5], [0.0, 0.0]])
        >>> touched_rows()(table, -grad, grad)
        Array([[ True],
               [False]], dtype=bool)

    References:
        The dense form of lazy regularization: Carpenter, *Lazy Sparse Stochastic Gradient
        Descent for Regularized Multinomial Logistic Regression*, 2008.
    """
    check_axes(axes)

    def gate(z: jax.Array, update: jax.Array, grad: Any = None) -> jax.Array:
        del update
        touched = needed_gradient("touched_rows", grad) != 0
        return jnp.any(touched, axis=checked_axes(axes, z), keepdims=True)

    return gate
