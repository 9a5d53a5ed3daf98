"""A formula of one leaf, mapped over the trees of a step: updates, params, multipliers, state."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wdjax._lift.place import is_of_a_micro_batch
from wdjax._trees import paths, stacks
from wdjax.rules import Rules, is_guess, owners

Params: TypeAlias = Any  # a pytree of arrays


def map_leaves(
    name: str,
    step: Callable[..., Any],
    updates: Params,
    params: Params,
    multipliers: Params,
    *trees: Any,
) -> Params:
    """Map step(Δ, θ, m, *others) -> Δ⁺ over the leaves, in float32 or wider.

    A leaf whose update is None or whose multiplier is 0 stays as it is, bit for bit. The result
    has the dtypes of `updates`, or of params where these are wider: an update in bfloat16 cannot
    express what a step takes off a float32 weight. A tree that is None gives None to every step.
    """

    def leaf(update: Any, param: Any, m: Any, *others: Any) -> Any:
        if _is_left_alone(update, m):
            return update
        wide = (_wide(x) for x in others)
        new = step(widened(update), widened(param), m, *wide).astype(_dtype(update, param))
        return _unless_off(m, new, update)

    treedef, rows = lined_up(name, updates, params, multipliers, *trees)
    results = [leaf(*row) for row in rows]
    _check_kept(name, results, rows, params)
    return treedef.unflatten(results)


def map_stateful(
    name: str,
    step: Callable[..., Any],
    updates: Params,
    params: Params,
    multipliers: Params,
    state: Any,
    *trees: Any,
) -> tuple[Params, Any]:
    """Map step(Δ, θ, m, z, *others) -> (Δ⁺, z⁺), where `state` has a subtree z for each leaf.

    Otherwise as `map_leaves`; the z of a leaf that is left alone stays as it is.
    """

    def leaf(update: Any, param: Any, m: Any, z: Any, *others: Any) -> tuple[Any, Any]:
        if _is_left_alone(update, m):
            return update, z
        wide = (_wide(x) for x in others)
        new, kept = step(widened(update), widened(param), m, z, *wide)
        new = new.astype(_dtype(update, param))
        return _unless_off(m, new, update), _unless_off(m, kept, z)

    treedef, rows = lined_up(name, updates, params, multipliers, state, *trees)
    pairs = [leaf(*row) for row in rows]
    _check_kept(name, [p[0] for p in pairs], rows, params)
    return treedef.unflatten([p[0] for p in pairs]), treedef.unflatten([p[1] for p in pairs])


def applied(params: Params, updates: Params) -> Params:
    """θ + Δ as `optax.apply_updates`, which cannot add float32 to float8."""

    def leaf(param: Any, update: Any) -> Any:
        if paths.is_hidden(param):
            return param
        is_float8 = jnp.issubdtype(param.dtype, jnp.floating) and param.dtype.itemsize == 1
        if is_float8 and update is not None:
            return (widened(param) + widened(update)).astype(param.dtype)
        return optax.apply_updates(param, update)

    new: Params = jax.tree.map(leaf, params, updates, is_leaf=paths.is_hidden)
    return new


def widened(x: Any) -> jax.Array:
    """Return x in float32, or in its own dtype where that is wider."""
    array = jnp.asarray(x)
    if jnp.issubdtype(array.dtype, jnp.inexact) and array.dtype.itemsize >= 4:
        return array
    is_narrow = jnp.issubdtype(array.dtype, jnp.floating)
    # promote_types knows no float8
    dtype = jnp.float32 if is_narrow else jnp.promote_types(array.dtype, jnp.float32)
    wide: jax.Array = array.astype(dtype)
    return wide


def _dtype(update: Any, param: Any) -> Any:
    """The dtype in which an update can express a change of the parameter: the wider of the two."""
    return update.dtype if update.dtype.itemsize >= param.dtype.itemsize else param.dtype


def raw_gradients(
    name: str, updates: Params, params: Params, grads: Params | None
) -> Params | None:
    """Return the raw gradients of the leaves in `updates`, of which masks may hide some.

    Those of one micro-batch, which `optax.MultiSteps` hands through, are none.
    """
    if grads is None or is_of_a_micro_batch(grads):
        return None

    is_hidden = paths.is_hidden
    others: list[str] = []

    def own(update: Any, grad: Any) -> Any:
        if is_hidden(update):
            return update
        if jnp.shape(grad) != jnp.shape(update):
            others.append(f"{jnp.shape(grad)} for {jnp.shape(update)}")
        return grad

    try:
        found = jax.tree.map(own, updates, grads, is_leaf=is_hidden)
    except ValueError:
        lined_up(name, updates, params)  # where it is the updates that do not fit
        raise ValueError(
            f"`{name}` needs updates and `grad` of the same structure; "
            f"{paths.structure_difference(updates, grads)}. Pass grad=grads, the raw gradients."
        ) from None
    if others:
        raise ValueError(
            f"`{name}` needs `grad` shaped like the parameters; got {paths.listed(others)}. Pass "
            "the gradient of the whole batch: one for each example is not that, and where "
            "privacy is promised, only what comes out of the aggregation may be looked at."
        )
    return found


def require_params(name: str, params: Params | None) -> None:
    """Raise where an update was called without parameters."""
    if params is None:
        raise ValueError(
            f"`{name}` needs the current parameters; got `params=None`. "
            "Call `optimizer.update(grads, state, params)`."
        )


def check_gate(gate: Any) -> None:
    """Raise unless a gate can be called with (z, update, grad)."""
    if not callable(gate):
        raise TypeError(f"`gate` must be a function such as wdjax.gates.cautious; got {gate!r}.")
    try:
        signature = inspect.signature(gate)
    except (TypeError, ValueError):  # of some built-in functions
        return
    try:
        signature.bind(None, None, None)
    except TypeError as error:
        name = getattr(gate, "__name__", "gate")
        raise TypeError(
            f"`gate` must take (z, update, grad); {name}{signature} does not: {error}. Those of "
            "wdjax.gates that have settings are called first: gates.touched_rows()."
        ) from None


def check_widths(name: str, updates: Params, params: Params, multipliers: Params) -> None:
    """Raise where an update is narrower than its parameter: θ + Δ could not reach a given point."""
    for update, param, m in lined_up(name, updates, params, multipliers)[1]:
        if not _is_left_alone(update, m) and update.dtype != _dtype(update, param):
            raise TypeError(
                f"`{name}` needs updates as wide as their parameters; got {update.dtype} for "
                f"{param.dtype}, which cannot express the step to the proximal point. "
                "Cast the gradients to the parameters' dtype first."
            )


def warn_if_idle(name: str, rules: Rules, tree: Any) -> None:
    """Warn of a tree in which nothing decays because the preset cannot know the names of vectors.

    Args:
        name: of the caller, who has seen that all multipliers are 0.
        rules: as in `resolve`.
        tree: as in `resolve`; where a mask hides leaves, nothing is said.

    Example:
        >>> warn_if_idle("decay_weights", (("**", 0.0),), {"bias": jnp.ones(3)})
    """
    tree = stacks.described(tree) if stacks.is_stacked(tree) else tree
    rows = zip(paths.leaves(tree), owners(rules, tree), strict=True)
    unknown = [repr(leaf.path or ".") for leaf, i in rows if i >= 0 and is_guess(rules[i][0])]
    if unknown and not paths.has_holes(tree):
        warnings.warn(
            f"`{name}`: no parameter decays: {paths.listed(unknown)} may be biases or gains, as "
            "vectors of unknown name mostly are. If not, say so: rules=((name, 1.0), ...), or "
            "rules=(('**', 1.0),) for all.",
            stacklevel=3,
        )


def is_off(m: Any) -> bool:
    """Whether a multiplier is known to be 0; a traced one never is."""
    return isinstance(m, float) and m == 0


def _unless_off(m: Any, new: Any, old: Any) -> Any:
    """The same promise where a multiplier is known only when the program runs."""
    if isinstance(m, float):
        return new
    return jax.tree.map(lambda x, y: jnp.where(m == 0, y, x), new, old)


def _is_left_alone(update: Any, m: Any) -> bool:
    return update is None or is_off(m)


def _wide(x: Any) -> Any:
    return None if x is None else widened(x)


def lined_up(name: str, updates: Params, params: Params, *trees: Any) -> tuple[Any, list[Any]]:
    """Line the trees up with the leaves of `updates`, None among them."""
    treedef: Any
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    try:
        columns = [
            [None] * len(leaves) if tree is None else treedef.flatten_up_to(tree)
            for tree in (params, *trees)
        ]
    except ValueError:
        raise ValueError(
            f"`{name}` needs updates and params of the same structure; "
            f"{paths.structure_difference(updates, params)}. Pass the gradients of these params."
        ) from None
    _check_shapes(name, leaves, columns[0], params)
    return treedef, list(zip(leaves, *columns, strict=True))


def _check_kept(name: str, results: list[Any], rows: list[Any], params: Params) -> None:
    """Raise where a step has another shape than before: broadcasting would go on with it."""
    for i, (new, row) in enumerate(zip(results, rows, strict=True)):
        if new is not None and jnp.shape(new) != jnp.shape(row[0]):
            path = paths.leaves(params)[sum(other[1] is not None for other in rows[:i])].path
            raise ValueError(
                f"`{name}` must keep the shape of {path!r} {jnp.shape(row[0])}; got "
                f"{jnp.shape(new)}. What acts on a leaf, such as a penalty, a gate or a "
                "preconditioner, returns its shape; reduce with keepdims=True."
            )


def _check_shapes(name: str, updates: list[Any], column: list[Any], params: Params) -> None:
    for i, (update, param) in enumerate(zip(updates, column, strict=True)):
        if update is None or (param is not None and jnp.shape(update) == jnp.shape(param)):
            continue
        if param is None:
            raise ValueError(
                f"`{name}` got an update of shape {jnp.shape(update)} where the parameter is "
                "None. Pass the gradients of these params."
            )
        path = paths.leaves(params)[sum(p is not None for p in column[:i])].path
        raise ValueError(
            f"`{name}` needs updates shaped like their parameters; got {jnp.shape(update)} for "
            f"{path!r} {jnp.shape(param)}. Pass the gradients of these params."
        )
