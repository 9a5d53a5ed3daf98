"""What an optimizer takes off each leaf in every step of a run: the strength, for predictions."""

from typing import Any, NamedTuple

import numpy as np

from wdjax.audit._measured import measure


class Taken(NamedTuple):
    """What is taken off one leaf.

    Attributes:
        path: of the leaf; empty for a bare array.
        acts: as in the rows of an `Audit`.
        why: what could not be measured, and why; empty if everything was.
        fractions: (T,) the part that each step takes off; NaN where it is not a fraction. Through
            momentum, what is taken off once it has settled.
    """

    path: str
    acts: str
    why: str
    fractions: np.ndarray


def strengths(params: Any, optimizer: Any, *, steps: int, extra: dict[str, Any]) -> list[Taken]:
    """Measure what an optimizer takes off each leaf in each step.

    Where decay depends on the size of large leaves and the run is long, it visits only some steps,
    4,096 at least, and draws a line between them.

    Args:
        params: a pytree of arrays or ShapeDtypeStructs.
        optimizer: any Optax optimizer.
        steps: T >= 1, in real steps.
        extra: as in `audit`.

    Returns:
        One for each leaf, in the order of `jax.tree.leaves`.

    Raises:
        TypeError, ValueError: as in `audit`.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> optimizer = optax.adamw(0.1, weight_decay=0.1)
        >>> (found,) = strengths({"w": jnp.ones(3)}, optimizer, steps=2, extra={})
        >>> found.acts, found.fractions.round(6).tolist()
        ('weights', [0.01, 0.01])
    """
    found = measure(params, optimizer, None, steps, extra, every=True)
    every = np.arange(steps)

    def taken(leaf: Any) -> Taken:
        acts, counts, curve = leaf.found.acts, leaf.found.counts, leaf.found.curve
        of_steps = np.interp(every, counts, curve) if counts and acts != "none" else 0.0 * every
        return Taken(leaf.path, acts, leaf.found.why, of_steps)

    return [taken(leaf) for leaf in found.leaves]
