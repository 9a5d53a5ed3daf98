"""A formula of one leaf, mapped over the trees of a step: updates, params, multipliers, state."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax

from wdjax._trees import paths
from wdjax.rules import Ruled, is_guess

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

    def stateless(update: Any, param: Any, m: Any, z: None, *others: Any) -> tuple[Any, None]:
        return step(update, param, m, *others), z

    return map_stateful(name, stateless, updates, params, multipliers, None, *trees)[0]


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

    Otherwise as `map_leaves`; the z of a leaf that is left alone does not change.
    """

    def leaf(update: Any, param: Any, m: Any, z: Any, *others: Any) -> tuple[Any, Any]:
        if update is None or is_off(m):
            return update, z
        wide = (None if x is None else widened(x) for x in others)
        new, kept = step(widened(update), widened(param), m, z, *wide)
        new = new.astype(_dtype(update, param))
        return _unless_off(m, new, update), _unless_off(m, kept, z)

    treedef, rows = lined_up(name, updates, params, multipliers, state, *trees)
    pairs = [leaf(*row) for row in rows]
    for i, ((new, _), (update, *_)) in enumerate(zip(pairs, rows, strict=True)):
        if update is not None and new.shape != update.shape:  # broadcasting would go on with it
            raise ValueError(
                f"`{name}` must keep the shape of {_path(i, rows, params)!r} {update.shape}; got "
                f"{new.shape}. A penalty, gate or preconditioner must return the shape of its "
                "leaf: reduce with keepdims=True."
            )
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
    name: str, updates: Params, params: Params, extra: Mapping[str, Any]
) -> Params | None:
    """Return the argument `grad` for the leaves in `updates`, of which masks may hide some."""
    grads = extra.get("grad")
    if grads is None:
        return None
    pick = lambda update, grad: update if paths.is_hidden(update) else grad
    try:
        found = jax.tree.map(pick, updates, grads, is_leaf=paths.is_hidden)
    except ValueError:
        found = grads  # of another structure: the check below says so
    lined_up(name, updates, params)
    lined_up(name, found, params, of="`grad`")
    return found


def needed_gradient(name: str, grad: Any) -> Any:
    """Return the raw gradients, or raise where they are missing.

    Args:
        name: whose need it is, for messages.
        grad: the raw gradients, or None.

    Returns:
        The same.

    Raises:
        ValueError: there are none.

    Example:
        >>> needed_gradient("spd", None)
        Traceback (most recent call last):
        ValueError: `spd` needs the raw gradient; got none. Use wdjax.decayed, ...
    """
    if grad is None:
        raise ValueError(
            f"`{name}` needs the raw gradient; got none. Use wdjax.decayed, or wrap the chain, "
            "inside optax.MultiSteps if there is one: wdjax.adaptive.with_grad(optax.chain(...))."
        )
    return grad


def moved_params(name: str, updates: Params, params: Params | None) -> Params:
    """Return the parameters without what is not an array and has no update; raise for None.

    Equinox' own examples pass the whole model, with its functions: their gradient is None.
    """
    require_params(name, params)
    try:
        return jax.tree.map(
            lambda update, param: param if update is not None or hasattr(param, "dtype") else None,
            updates,
            params,
            is_leaf=lambda x: x is None,
        )
    except ValueError:  # of other structures: said later, by path
        return params


def require_params(name: str, params: Params | None) -> None:
    """Raise where an update was called without parameters."""
    if params is None:
        raise ValueError(
            f"`{name}` needs the current parameters; got `params=None`. "
            "Call `optimizer.update(grads, state, params)`."
        )


def check_widths(name: str, updates: Params, params: Params, multipliers: Params) -> None:
    """Raise where an update is narrower than its parameter: θ + Δ could not reach a given point."""
    for update, param, m in lined_up(name, updates, params, multipliers)[1]:
        if not (update is None or is_off(m)) and update.dtype != _dtype(update, param):
            raise TypeError(
                f"`{name}` needs updates as wide as their parameters; got {update.dtype} for "
                f"{param.dtype}. Cast the gradients first."
            )


def warn_if_idle(name: str, rows: Iterable[Ruled], tree: Params) -> None:
    """Warn of a tree in which nothing decays because the preset cannot know the names of vectors.

    Args:
        name: of the caller, who has seen that all multipliers are 0.
        rows: what rules gave each leaf, from `ruled`.
        tree: of the parameters; where a mask hides some of them, nothing is said.

    Example:
        >>> from wdjax.rules import ruled
        >>> params = {"bias": jnp.ones(3)}
        >>> warn_if_idle("decay_weights", ruled((("**", 0.0),), params)[0], params)
    """
    guessed = [repr(row.leaf.path or ".") for row in rows if is_guess(row.selector)]
    if guessed and not paths.has_holes(tree):
        warnings.warn(
            f"`{name}`: no parameter decays. Vectors with unfamiliar names are treated as biases: "
            f"{paths.listed(guessed)}. If they should decay, say so: rules=((name, 1.0), ...), or "
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


def lined_up(
    name: str, updates: Params, params: Params, *trees: Any, of: str = "updates"
) -> tuple[Any, list[Any]]:
    """Line the trees up with the leaves of `updates`, None among them."""
    treedef: Any
    leaves, treedef = jax.tree.flatten(updates, is_leaf=lambda x: x is None)
    wrong = f"`{name}` needs {of} and params of the same structure and shapes; "
    try:
        columns = [
            [None] * len(leaves) if tree is None else treedef.flatten_up_to(tree)
            for tree in (params, *trees)
        ]
        # an array lines up with a whole container, too
        fits = all(
            update is None or param is None or jax.tree_util.all_leaves([param])
            for update, param in zip(leaves, columns[0], strict=True)
        )
    except ValueError:
        fits = False
    if not fits:
        found = paths.structure_difference(updates, params, (of, "params"))
        raise ValueError(f"{wrong}{found}. Pass the gradients of these params.")
    rows = list(zip(leaves, *columns, strict=True))
    for i, (update, param, *_) in enumerate(rows):
        if update is None or (param is not None and jnp.shape(update) == jnp.shape(param)):
            continue
        at = "no parameter" if param is None else f"{_path(i, rows, params)!r} {jnp.shape(param)}"
        raise ValueError(
            f"{wrong}got {jnp.shape(update)} for {at}. Pass the gradients of these params."
        )
    return treedef, rows


def _path(i: int, rows: list[Any], params: Params) -> str:
    """The path of the parameter in row i; rows without one are not among the leaves."""
    return paths.leaves(params)[sum(row[1] is not None for row in rows[:i])].path
