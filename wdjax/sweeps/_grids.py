"""Hyperparameters of a sweep: any pytree of arrays with one leading axis, a row a configuration."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import check_widths, common_axis, is_real

Array = np.ndarray[Any, Any]
Space = tuple[float, float] | Sequence[Any] | Callable[[np.random.Generator, int], Any]

# leaves with these names cannot be negative, in any optimizer
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
    checks.must(
        "axes", axes, "name a hyperparameter or more", "none", "Write grid(weight_decay=...)."
    )
    values = {name: np.asarray(axis) for name, axis in axes.items()}
    for name, axis in values.items():
        fits = axis.ndim == 1 and axis.size > 0
        advice = "A single value is a list of length 1."
        checks.must(name, fits, "be a list of one value or more", f"shape {axis.shape}", advice)
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
    checks.whole("n", n, least=2)
    _check_range("low", low, high)
    values = np.geomspace(low, high, n)
    return np.asarray(values)


def random(n: int, seed: int = 0, /, **spaces: Space) -> dict[str, Array]:
    """Draw n configurations at random, each hyperparameter independently.

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
        ValueError: there is no space, one is empty, or `seed` is negative.

    Example:
        >>> draw = random(100, 7, weight_decay=(1e-4, 1.0), momentum=[0.0, 0.9])
        >>> bool((1e-4 <= draw["weight_decay"]).all()), sorted(set(draw["momentum"].tolist()))
        (True, [0.0, 0.9])

    References:
        Bergstra and Bengio, *Random Search for Hyper-Parameter Optimization*, JMLR 13, 2012.
    """
    checks.whole("n", n)
    checks.whole("seed", seed, least=0)
    advice = "Write random(100, weight_decay=(1e-6, 1.0))."
    checks.must("spaces", spaces, "name a hyperparameter or more", "none", advice)
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
        ValueError: there is no row; lengths differ; a value is not finite in JAX's dtype, or is
            negative where the name is `weight_decay` or `learning_rate`.

    Example:
        >>> check_hparams({"weight_decay": np.array([0.1, -0.1])})
        Traceback (most recent call last):
        ValueError: `hparams` must be finite and >= 0 in float32, ...; got -0.1 in row 1 of ...
    """
    checks.arrays("hparams", hparams)
    count = common_axis("hparams", hparams, "grid makes all combinations of some values.")
    check_widths("hparams", hparams)
    for path, values in columns(hparams).items():
        dtype = jax.dtypes.canonicalize_dtype(values.dtype)
        with np.errstate(all="ignore"):
            held = values.astype(dtype)
        least = 0.0 if path.split("/")[-1] in _NOT_NEGATIVE else -np.inf
        bad = np.argwhere(~np.isfinite(held) | (values < least) | ((held == 0) & (values != 0)))
        sign = " and >= 0" if least == 0 else ""
        rule = f"be finite{sign} in {dtype}, and not so small that this rounds it to 0"
        checks.must(
            "hparams",
            not len(bad),
            rule,
            "".join(f"{values[tuple(place)]} in row {place[0]} of '{path}'" for place in bad[:1]),
        )
    return count


def columns(hparams: PyTree) -> dict[str, Array]:
    """Name the hyperparameters by their own keys; those of a nested one are joined by "/".

    Example:
        >>> columns({"adam.b1": np.array([0.8, 0.9])})
        {'adam.b1': array([0.8, 0.9])}
    """
    named = jax.tree.leaves_with_path(hparams)
    keystr = functools.partial(jax.tree_util.keystr, simple=True, separator="/")
    return {keystr(keys) or ".": np.asarray(leaf) for keys, leaf in named}


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
        return np.asarray(space(generator, n))
    is_list = isinstance(space, list | np.ndarray) and len(space) > 0
    rule = "be a tuple (low, high), a list of choices or a function of a generator and n"
    checks.must(name, is_list, rule, repr(space), error=TypeError)
    return generator.choice(np.asarray(space), n)


def _check_range(name: str, low: float, high: float) -> None:
    fits = is_real(low) and is_real(high) and 0.0 < low < high < np.inf
    advice = "For 0 itself write [0.0, *log_grid(...)]."
    checks.must(name, fits, "have 0 < low < high < ∞", f"{low=}, {high=}", advice)
