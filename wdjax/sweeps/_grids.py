"""Hyperparameters of a sweep: any pytree of arrays with one leading axis, a row a configuration."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wdjax._trees.checks import (
    check_seed,
    check_whole,
    check_widths,
    is_real,
    kind_of,
    named_leaves,
)
from wdjax._trees.paths import listed

PyTree = Any
Array = np.ndarray[Any, Any]
Space = tuple[float, float] | Sequence[Any] | Callable[[np.random.Generator, int], Any]

# leaves with these names cannot be negative, whoever builds the optimizer from them
_NOT_NEGATIVE = ("weight_decay", "learning_rate")


def grid(**axes: Any) -> dict[str, Array]:
    """Make every combination of the given values; the last axis changes fastest.

    Args:
        axes: name -> values, 1-D and at least one: an axis of the grid.

    Returns:
        name -> (C,) array, C the product of the lengths: the hyperparameters of a sweep.

    Raises:
        ValueError: there is no axis, or one is empty or not 1-D.

    Example:
        >>> grid(weight_decay=[0.0, 0.1], learning_rate=[1, 2])
        {'weight_decay': array([0. , 0. , 0.1, 0.1]), 'learning_rate': array([1, 2, 1, 2])}
    """
    if not axes:
        raise ValueError(
            "`axes` must name at least one hyperparameter, as in grid(weight_decay=...)."
        )
    values = {name: np.asarray(axis) for name, axis in axes.items()}
    for name, axis in values.items():
        if axis.ndim != 1 or not axis.size:
            raise ValueError(
                f"`{name}` must be a list of at least one value; got shape {axis.shape}. "
                "A single value is a list of length 1."
            )
    mesh = np.meshgrid(*values.values(), indexing="ij")
    return {name: part.ravel() for name, part in zip(values, mesh, strict=True)}


def log_grid(low: float, high: float, n: int) -> Array:
    """Make n values from low to high, each the same multiple of the one before.

        xᵢ = low (high / low)^(i / (n − 1)),  i = 0 ... n − 1

    Args:
        low: first value, > 0.
        high: last value, > low.
        n: how many, >= 2.

    Returns:
        (n,) float64, increasing; the ends are exact.

    Raises:
        TypeError: `n` is not a whole number.
        ValueError: the ends are not 0 < low < high < ∞, or n < 2.

    Example:
        >>> log_grid(0.001, 10.0, 5)
        array([1.e-03, 1.e-02, 1.e-01, 1.e+00, 1.e+01])
    """
    check_whole("n", n)
    if n < 2:
        raise ValueError(f"`n` must be >= 2, both ends; got {n}.")
    _check_range("low", low, high)
    values = np.geomspace(low, high, n)
    return np.asarray(values)


def random(n: int, seed: int = 0, /, **spaces: Space) -> dict[str, Array]:
    """Draw n configurations at random, each hyperparameter by itself.

    Args:
        n: C, number of configurations.
        seed: an int >= 0.
        spaces: name -> where from: a tuple (low, high) is log-uniform, 0 < low < high; a list is
            choices; a function gets a NumPy generator and n, such as
            `lambda generator, n: generator.uniform(0, 1, n)`.

    Returns:
        name -> (C,) array.

    Raises:
        TypeError: a space is neither of the three, or `n` or `seed` is not whole.
        ValueError: there is no space, one is empty or of the wrong length, or `seed` is negative.

    Example:
        >>> draw = random(100, 7, weight_decay=(1e-4, 1.0), momentum=[0.0, 0.9])
        >>> bool((1e-4 <= draw["weight_decay"]).all()), sorted(set(draw["momentum"].tolist()))
        (True, [0.0, 0.9])

    References:
        Bergstra and Bengio, *Random Search for Hyper-Parameter Optimization*, JMLR 13, 2012.
    """
    check_whole("n", n)
    check_seed("seed", seed)
    if not spaces:
        raise ValueError(
            "`spaces` must name at least one hyperparameter, as in "
            "random(100, weight_decay=(1e-6, 1.0))."
        )
    # a generator for each name: adding a hyperparameter does not change the others' draws
    return {
        name: _draw(name, space, n, np.random.default_rng((seed, *name.encode())))
        for name, space in spaces.items()
    }


def check_hparams(hparams: PyTree) -> int:
    """Refuse hyperparameters that cannot be swept; return the number of configurations.

    Args:
        hparams: a pytree of numeric arrays with one leading axis.

    Returns:
        C.

    Raises:
        TypeError: a leaf is not an array of numbers.
        ValueError: there is no leaf or no row; lengths differ; a value is not finite, not so in
            JAX's dtype, or is negative where the name is `weight_decay` or `learning_rate`.

    Example:
        >>> check_hparams({"weight_decay": np.array([0.1, -0.1])})
        Traceback (most recent call last):
        ValueError: `hparams` entry 'weight_decay' must be >= 0; got -0.1 in row 1.
    """
    entries = named_leaves(hparams)
    wrong = [f"{kind_of(x)} at '{path}'" for path, x in entries if not _is_numeric(x)]
    if wrong:
        raise TypeError(
            f"`hparams` must hold arrays of numbers, one row for each configuration; "
            f"got {listed(wrong)}. Build them with grid or random."
        )
    sizes = {path: np.shape(x)[0] if np.ndim(x) else 0 for path, x in entries}
    if not entries or 0 in sizes.values():
        raise ValueError(
            f"`hparams` must have at least one row; got {sizes or hparams!r}. "
            "Build them with grid or random."
        )
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"`hparams` entries must have one length; got {sizes}. For all combinations use grid."
        )
    check_widths("hparams", hparams)
    for path, x in entries:
        values = np.asarray(x)
        dtype = jax.dtypes.canonicalize_dtype(values.dtype)
        with np.errstate(all="ignore"):
            held = values.astype(dtype)
        least = 0.0 if path.split("/")[-1] in _NOT_NEGATIVE else -np.inf
        bad = np.argwhere(~np.isfinite(held) | (values < least) | ((held == 0) & (values != 0)))
        if len(bad):
            value = values[tuple(bad[0])]
            rule = f"a number of {dtype}, in which JAX computes"
            if not (np.isfinite(value) and value >= least):
                rule = "finite" if least else ">= 0"
            raise ValueError(
                f"`hparams` entry '{path}' must be {rule}; got {value} in row {bad[0][0]}."
            )
    return next(iter(sizes.values()))


def row(hparams: PyTree, index: int) -> PyTree:
    """Take one configuration, as Python numbers where its leaves are scalars.

    Args:
        hparams: a pytree of arrays with a leading axis.
        index: which row.

    Returns:
        The same tree without the leading axis.

    Example:
        >>> row(grid(weight_decay=[0.1, 0.2]), 1)
        {'weight_decay': 0.2}
    """
    slices = jax.tree.map(lambda x: np.asarray(x)[index], hparams)
    return jax.tree.map(lambda x: x.item() if np.ndim(x) == 0 else x, slices)


def _draw(name: str, space: Space, n: int, generator: np.random.Generator) -> Array:
    if isinstance(space, tuple) and len(space) == 2:
        _check_range(name, *space)
        low, high = np.log(np.asarray(space, np.float64))
        return np.exp(generator.uniform(low, high, n))
    if callable(space):
        values = np.asarray(space(generator, n))
        if values.shape[:1] != (n,):
            raise ValueError(
                f"`{name}` must draw {n} values; its function gave shape {values.shape}."
            )
        return values
    if isinstance(space, list | np.ndarray) and len(space):
        return generator.choice(np.asarray(space), n)
    raise TypeError(
        f"`{name}` must be a tuple (low, high), a list of choices or a function of a generator and "
        f"n; got {space!r}."
    )


def _check_range(name: str, low: float, high: float) -> None:
    if not (is_real(low) and is_real(high) and 0.0 < low < high < np.inf):
        raise ValueError(
            f"`{name}` must be part of a range 0 < low < high < ∞; got low={low!r}, high={high!r}. "
            "To include 0, put it in front: [0.0, *log_grid(...)]."
        )


def _is_numeric(x: Any) -> bool:
    if not isinstance(x, np.ndarray | jax.Array):
        return False
    return bool(np.issubdtype(x.dtype, np.number) or x.dtype == bool)
