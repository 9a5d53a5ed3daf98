"""Whether a state is what a step needs: made by its optimizer, kept in form, not used up.

A restored state may come from anywhere; what does not fit is named by its paths.
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp

from wdjax._trees.checks import kind_of, named_leaves
from wdjax._trees.paths import listed, structure_difference

PyTree = Any


def check_made_by(optimizer: Any, params: PyTree, opt_state: PyTree) -> None:
    """Refuse the state of another optimizer, or of other parameters; for use while tracing.

    Some such states fit well enough to train on in silence: without the momentum, say.

    Args:
        optimizer: what is to take the next step. One whose `init` must see values is not checked.
        params: θ.
        opt_state: its state. Dtypes may be others, as after a cast of the parameters.

    Raises:
        ValueError: naming the paths where it differs from `optimizer.init(params)`.

    Example:
        >>> import optax
        >>> params = {"w": jnp.ones(2)}
        >>> check_made_by(optax.sgd(0.1), params, optax.sgd(0.1, momentum=0.9).init(params))
        Traceback (most recent call last):
        ValueError: `opt_state` must be of the optimizer of this step; only in ...: '0/trace/w'. ...
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # said when the state was made
            made = jax.eval_shape(optimizer.init, params)
    except Exception:
        return
    difference = structure_difference(made, opt_state) or _other_shapes(made, opt_state)
    difference = difference.replace("the first", "what its init makes")
    difference = difference.replace("the second", "the state")
    if difference:
        raise ValueError(
            f"`opt_state` must be of the optimizer of this step; {difference}. Begin with "
            "TrainState.create(params, optimizer) of the same optimizer and parameters, and "
            "restore into that."
        )


def _other_shapes(made: PyTree, opt_state: PyTree) -> str:
    pairs = zip(named_leaves(opt_state), jax.tree.leaves(made), strict=True)
    return listed(
        f"'{path}' must have shape {want.shape}, has {jnp.shape(x)}"
        for (path, x), want in pairs
        if jnp.shape(x) != want.shape
    )


def check_kept(name: str, before: PyTree, after: PyTree) -> None:
    """Refuse what changes in form: it would recompile every step, and cannot be donated or scanned.

    Args:
        name: what it is.
        before: a pytree of arrays that went into a step.
        after: what came out.

    Raises:
        ValueError: naming the paths whose shape or dtype changed, or the structures.

    Example:
        >>> check_kept("params", {"w": jnp.ones(2)}, {"w": jnp.ones(3)})
        Traceback (most recent call last):
        ValueError: `params` must keep structure, ...; 'w' was float32[2] and became float32[3].
    """
    old = {path: kind_of(leaf) for path, leaf in named_leaves(before)}
    new = {path: kind_of(leaf) for path, leaf in named_leaves(after)}
    changes = [
        f"'{path}' was {old.get(path, 'absent')} and became {new.get(path, 'absent')}"
        for path in old | new
        if old.get(path) != new.get(path)
    ]
    # the same paths can still sit in other containers: a tuple that became a list
    trees = [str(jax.tree.structure(tree)) for tree in (before, after)]
    if trees[0] != trees[1] and not changes:
        changes = [f"{trees[0]} became {trees[1]}"]
    if changes:
        raise ValueError(
            f"`{name}` must keep structure, shapes and dtypes in a step; {listed(changes)}."
        )


def check_not_used_up(state: PyTree) -> None:
    """Refuse a state whose memory a step has given to the next one.

    Args:
        state: a pytree of arrays.

    Raises:
        ValueError: an array is deleted.

    Example:
        >>> x = jnp.ones(2)
        >>> x.delete()
        >>> check_not_used_up({"w": x})
        Traceback (most recent call last):
        ValueError: `state` is used up: a step took its memory for the next state. Give the step ...
    """
    if any(isinstance(x, jax.Array) and x.is_deleted() for x in jax.tree.leaves(state)):
        raise ValueError(
            "`state` is used up: a step took its memory for the next state. Give the step "
            "state.copy(), or build it by make_train_step(..., donate=False)."
        )


def check_key(key: Any) -> None:
    """Refuse what is neither a random key, of either kind or as its data, nor None.

    Args:
        key: what should be one.

    Raises:
        TypeError: it is something else, such as a seed.

    Example:
        >>> check_key(3)
        Traceback (most recent call last):
        TypeError: `key` must be a random key, such as jax.random.key(0); got 3.
    """
    dtype: Any = getattr(key, "dtype", None)
    # uint32 is what jax.random.PRNGKey makes, and what is saved of a key
    if key is None or dtype == jnp.uint32 or jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return
    raise TypeError(f"`key` must be a random key, such as jax.random.key(0); got {key!r}.")
