"""What users hand in: counts and seeds, data as arrays of finite numbers, readings of a model.

Each check says what is wrong, where, and what to do, before anything is compiled.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees.devices import at_hand
from wdjax._trees.paths import listed

PyTree = Any


def named_leaves(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> list[Any]:
    """(path, leaf) pairs; the path reads `layer/0/kernel`, and `.` for a tree that is one leaf."""
    pairs = jax.tree.leaves_with_path(tree, is_leaf=is_leaf)
    name = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return [(name(keys) or ".", leaf) for keys, leaf in pairs]


def kind_of(leaf: Any) -> str:
    """`float32[3,4]` for an array, the type's name for anything else."""
    if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def is_real(value: Any) -> bool:
    """Whether a value is one real number, no truth value."""
    if isinstance(value, np.ndarray | np.number | jax.Array):
        return value.ndim == 0 and jnp.issubdtype(value.dtype, jnp.number) and jnp.isrealobj(value)
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """Refuse what is neither a number > 0 nor None; what is traced passes."""
    if value is None or isinstance(value, jax.core.Tracer):
        return
    if not (is_real(value) and value > 0):
        raise ValueError(f"`{name}` must be a number > 0, or None; got {value!r}.")


def check_function(name: str, value: Any, *, optional: bool = False) -> None:
    """Refuse what cannot be called."""
    if not callable(value) and not (optional and value is None):
        or_none = " or None" if optional else ""
        raise TypeError(f"`{name}` must be a function{or_none}; got {value!r}.")


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Counts: whole numbers from one on."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        advice = f' Under optax.inject_hyperparams name it: static_args=("{name}",).'
        advice = advice if isinstance(value, jax.Array) else ""
        raise TypeError(f"`{name}` must be a whole number >= {least}; got {value!r}.{advice}")
    if value < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}; got {value}.")


def check_seed(name: str, value: Any) -> None:
    """Refuse what is not a whole number from zero on.

    Args:
        name: the argument to blame.
        value: what should be a seed.

    Raises:
        TypeError: it is not a whole number.
        ValueError: it is negative.

    Example:
        >>> check_seed("seed", -1)
        Traceback (most recent call last):
        ValueError: `seed` must be a whole number >= 0; got -1.
    """
    check_whole(name, value, least=0)


def common_axis(name: str, tree: PyTree) -> int:
    """The length of the leading axis, which all entries must share."""
    entries = named_leaves(tree)
    if not entries:
        raise ValueError(f"`{name}` must hold at least one array; got {tree!r}.")
    arrays = [x for _, x in entries]
    for path, x in entries:
        rule = f"{name} entry '{path}' must have a leading axis, not empty; got shape {x.shape}."
        chex.assert_axis_dimension_gt(x, 0, 0, custom_message=rule, exception_type=ValueError)
    sizes = listed([f"{path}: {len(x)}" for path, x in entries])
    rule = f"{name} entries must share the leading axis; got {sizes}."
    chex.assert_equal_shape_prefix(arrays, 1, custom_message=rule, exception_type=ValueError)
    return len(arrays[0])


def check_data(name: str, data: Any) -> int:
    """Refuse what is no data: arrays of finite values with one leading axis.

    Args:
        name: the argument to blame.
        data: what should be a pytree of arrays with N rows.

    Returns:
        N.

    Raises:
        TypeError: a leaf is not an array.
        ValueError: the lengths differ; a value is not finite, or a whole number too large for JAX.

    Example:
        >>> check_data("data", {"x": np.zeros((3, 2)), "y": np.zeros(3)})
        3
    """
    arrays = np.ndarray | jax.Array
    entries = named_leaves(data)
    wrong = [f"{kind_of(x)} at '{path}'" for path, x in entries if not isinstance(x, arrays)]
    if wrong:
        raise TypeError(f"`{name}` must hold arrays only; got {listed(wrong)}.")
    check_finite(name, data)
    check_widths(name, data)
    return common_axis(name, data)


def check_finite(name: str, tree: Any) -> None:
    """Refuse NaN and infinity, and what would be infinite in JAX's dtype; what is traced passes.

    Args:
        name: the argument to blame.
        tree: a pytree of arrays.

    Raises:
        ValueError: a value is not finite.

    Example:
        >>> check_finite("data", {"x": np.array([[1.0, np.nan]])})
        Traceback (most recent call last):
        ValueError: `data` must be finite; got nan in 'x' at [0, 1], and 1 in all. Drop or fill ...
    """
    for path, x in named_leaves(tree):
        values = x if isinstance(x, jax.Array) else np.asarray(x)
        if isinstance(x, jax.core.Tracer) or not jnp.issubdtype(values.dtype, jnp.inexact):
            continue
        dtype = jax.dtypes.canonicalize_dtype(values.dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            values = at_hand(values).astype(dtype, copy=False)
            if np.isfinite(values.sum()):  # much faster, and nearly always so
                continue
        values = np.asarray(values)
        wrong = np.argwhere(~np.isfinite(values))
        if len(wrong):
            place = f"[{', '.join(map(str, wrong[0]))}]"
            place = f"at {place}" if path == "." else f"in '{path}' at {place}"
            raise ValueError(
                f"`{name}` must be finite; got {values[tuple(wrong[0])]} {place}, "
                f"and {len(wrong)} in all. Drop or fill in these examples."
            )


def check_widths(name: str, tree: Any) -> None:
    """Refuse whole numbers too large for JAX's dtype, which would become others without a word.

    Args:
        name: the argument to blame.
        tree: a pytree of arrays.

    Raises:
        ValueError: a number does not fit.

    Example:
        >>> check_widths("data", {"id": np.array([7, 2**32])})
        Traceback (most recent call last):
        ValueError: `data` must fit int32, in which JAX computes; got 4294967296 in 'id'. Encode ...
    """
    for path, x in named_leaves(tree):
        dtype = jax.dtypes.canonicalize_dtype(x.dtype)
        if x.dtype.kind not in "iu" or dtype.itemsize == x.dtype.itemsize or not x.size:
            continue
        limits = np.iinfo(dtype)
        for value in (int(x.min()), int(x.max())):
            if not limits.min <= value <= limits.max:
                raise ValueError(
                    f"`{name}` must fit {dtype}, in which JAX computes; got {value} in '{path}'. "
                    "Encode this column, drop it, or set jax.config.update('jax_enable_x64', True)."
                )


def as_arrays(name: str, tree: PyTree, convert: Callable[[Any], Any]) -> PyTree:
    """Anything that NumPy takes as an array (also torch, pandas); device arrays stay there."""
    wrong = [f"{kind_of(x)} at '{path}'" for path, x in named_leaves(tree)
             if not hasattr(x, "__array__")]  # fmt: skip
    if wrong:
        raise TypeError(f"`{name}` must hold arrays only; got {listed(wrong)}.")
    arrays = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else convert(x), tree)
    on_host = [(path, x) for path, x in named_leaves(arrays) if not isinstance(x, jax.Array)]
    wrong = [f"{x.dtype} at '{path}'" for path, x in on_host if x.dtype.kind in "OSUMm"]
    if wrong:
        raise TypeError(
            f"`{name}` must hold numbers; got {listed(wrong)}. Encode these columns, or drop them."
        )
    check_widths(name, dict(on_host))
    return arrays


def checked_readings(found: Any, first: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """What `evaluate` returned, with the names and shapes of the first time.

    Copied, because a function may fill the same buffer again and again.
    """
    if not isinstance(found, dict):
        raise TypeError(f"`evaluate` must return a dict of scalars; got {kind_of(found)}.")
    copies: dict[str, np.ndarray] = {name: np.array(x) for name, x in found.items()}
    wrong = [f"{x.dtype} in '{name}'" for name, x in copies.items() if x.dtype.kind in "OSUMm"]
    if wrong:
        raise TypeError(f"`evaluate` must return numbers; got {listed(wrong)}.")
    first = copies if first is None else first
    if copies.keys() != first.keys():
        raise ValueError(
            f"`evaluate` must return the same names every time; got {list(copies)}, "
            f"and {list(first)} the first time."
        )
    shapes = [{name: x.shape for name, x in each.items()} for each in (copies, first)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"`evaluate` must return the same shapes every time; got {shapes[0]}, and "
            f"{shapes[1]} the first time."
        )
    return copies
