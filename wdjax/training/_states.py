"""Whether a state is what a step needs: made by its optimizer, and kept in form.

A restored state may come from anywhere; what does not fit is named by its paths.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import kind_of, named_leaves
from wdjax._trees.paths import listed, structure_difference


def check_made_by(optimizer: Any, params: PyTree, opt_state: PyTree) -> None:
    """Refuse the state of another optimizer, or of other parameters; for use while tracing.

    Some such states fit well enough to train on silently, without the momentum for instance.

    Args:
        optimizer: of the next step. One whose `init` must see values is not checked.
        params: θ.
        opt_state: its state. Dtypes may be others, as after a cast of the parameters.

    Raises:
        ValueError: naming the paths where it differs from `optimizer.init(params)`.

    Example:
        >>> import optax
        >>> params = {"w": jnp.ones(2)}
        >>> check_made_by(optax.sgd(0.1), params, optax.sgd(0.1, momentum=0.9).init(params))
        Traceback (most recent call last):
        ValueError: `opt_state` must be made by this step's optimizer; ...state: '0/trace/w'. ...
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # said when the state was made
            made = jax.eval_shape(optimizer.init, params)
    except jax.errors.JAXTypeError:
        return
    difference = _difference(made, opt_state, jnp.shape, "the optimizer", "the state")
    advice = (
        "Start from TrainState.create(params, optimizer) with this optimizer and these parameters, "
        "and restore into that."
    )
    got = f"that of another, {difference}"
    checks.must("opt_state", not difference, "be made by this step's optimizer", got, advice)


def check_kept(name: str, before: PyTree, after: PyTree) -> None:
    """Refuse a change of form: it would recompile every step, and cannot be donated or scanned.

    Args:
        name: what it is.
        before: a pytree of arrays that went into a step.
        after: what came out.

    Raises:
        ValueError: naming the paths whose shape or dtype changed, or the containers.

    Example:
        >>> check_kept("params", {"w": jnp.ones(2)}, {"w": jnp.ones(3)})
        Traceback (most recent call last):
        ValueError: `params` must keep structure, shapes and dtypes in a step; got 'w' is
        float32[2] in the old one, float32[3] in the new one.
    """
    difference = _difference(before, after, kind_of, "the old one", "the new one")
    checks.must(name, not difference, "keep structure, shapes and dtypes in a step", difference)


def _difference(
    first: PyTree, second: PyTree, form: Callable[[Any], Any], one: str, other: str
) -> str:
    pairs = zip(named_leaves(first), jax.tree.leaves(second), strict=False)
    found = structure_difference(first, second) or listed(
        f"'{path}' is {kind_of(x)} in the first, {kind_of(y)} in the second"
        for (path, x), y in pairs
        if form(x) != form(y)
    )
    return found.replace("the first", one).replace("the second", other)
