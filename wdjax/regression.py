"""The data of a linear regression: checked, centred, weighted.

Values are checked where they are at hand: traced arrays pass.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Centred(NamedTuple):
    """A weighted least-squares problem without weights and intercept.

    Attributes:
        x: (n, p), √s (X − x̄).
        y: (n, t), √s (y − ȳ).
        root: (n,), √s.
        mean_x: (p,), x̄, weighted; 0 without an intercept.
        mean_y: (t,), ȳ.
        constant: (n,), √s / ‖√s‖, the direction that the intercept takes; 0 without one.
    """

    x: jax.Array
    y: jax.Array
    root: jax.Array
    mean_x: jax.Array
    mean_y: jax.Array
    constant: jax.Array


def centred(x: jax.Array, y: jax.Array, weights: jax.Array, intercept: bool) -> Centred:
    """Take out the intercept and the weights: Σ s (y − b − Xw)² = ‖y' − X'w‖² at the best b."""
    both, shift = joined(x, y, weights / jnp.sum(weights), intercept)
    p = x.shape[1]
    near = centred_near(both, shift, p, weights, intercept)
    return near._replace(mean_x=near.mean_x + shift[:p], mean_y=near.mean_y + shift[p:])


def joined(
    x: jax.Array, y: jax.Array, share: jax.Array, intercept: bool
) -> tuple[jax.Array, jax.Array]:
    """[X y] (n, p + t) less their means, and these: one array is half of what is to be compiled.

    What rounding leaves of a mean matters where data lie far from 0; it is taken out by whoever
    centres next.
    """
    both = jnp.concatenate([x, y[:, None] if y.ndim == 1 else y], axis=1)
    shift = share @ both if intercept else jnp.zeros_like(both[0])
    return both - shift[None], shift


def centred_near(
    both: jax.Array, shift: jax.Array, p: int, weights: jax.Array, intercept: bool
) -> Centred:
    """`centred` of data from `joined`, or of some of their rows; the first p columns are X."""
    root = jnp.sqrt(weights)
    mean, constant = jnp.zeros_like(both[0]), jnp.zeros_like(root)
    if intercept:
        share = weights / jnp.sum(weights)
        constant = jnp.sqrt(share)
        mean = share @ both
        both = both - mean[None]
        largest = jnp.max(jnp.where(share[:, None] > 0, jnp.abs(both), 0), axis=0)
        noise = 16 * np.finfo(both.dtype).eps * jnp.abs(shift + mean)
        # a constant column becomes exactly 0: a small λ would blow noise up
        both = jnp.where((largest > noise)[None], both, 0)
    both = both * root[:, None]
    return Centred(both[:, :p], both[:, p:], root, mean[:p], mean[p:], constant)


def known(*values: Any) -> bool:
    """Whether the values are at hand, not traced."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def array(name: str, value: Any) -> Any:
    """As a floating-point array, at least float32; on the host what is there: cheaper by far."""
    numbers = value if isinstance(value, jax.Array) else np.asarray(value)
    if numbers.dtype.kind in "OSUMm":
        raise TypeError(f"`{name}` must be an array of numbers; got {numbers.dtype}.")
    numbers = numbers.astype(jax.dtypes.canonicalize_dtype(numbers.dtype), copy=False)
    if jnp.issubdtype(numbers.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real; got {numbers.dtype}.")
    whole = not jnp.issubdtype(numbers.dtype, jnp.floating)
    narrow = whole or numbers.dtype.itemsize < 4
    if narrow:
        numbers = numbers.astype(jax.dtypes.canonicalize_dtype(float))
    return numbers


def _host(array: Any) -> Any:
    """The array as NumPy's, where that takes no copy."""
    if isinstance(array, jax.Array) and any(d.platform != "cpu" for d in array.devices()):
        return array
    return np.asarray(array)


def _check_finite(name: str, array: Any) -> None:
    if not known(array):
        return
    if np.isfinite(_host(array).sum()):
        return
    values = np.asarray(array)
    wrong = np.argwhere(~np.isfinite(values))
    if len(wrong):
        place = ", ".join(str(i) for i in wrong[0])
        raise ValueError(
            f"`{name}` must be finite; got {values[tuple(wrong[0])]} at [{place}], and "
            f"{len(wrong)} in all. Drop or fill in these examples."
        )


def prepared(x: Any, y: Any, weights: Any, intercept: bool) -> tuple[Any, ...]:
    """X (n, p), y (n,) or (n, T), and weights (n,), checked and of one dtype."""
    x, y = array("x", x), array("y", y)
    if x.ndim != 2 or x.shape[1] == 0:
        raise ValueError(
            f"`x` must have shape (n, p), examples by features; got {x.shape}. For one feature "
            "pass x[:, None]."
        )
    n = x.shape[0]
    if y.ndim not in (1, 2) or y.shape[0] != n or y.size == 0:
        raise ValueError(
            f"`y` must have shape ({n},) or ({n}, T), one row for each of x; got {y.shape}."
        )
    if n < 2:
        raise ValueError(f"`x` must have at least two examples; got {n}.")
    _check_finite("x", x)
    _check_finite("y", y)
    s = _weights(weights, n)
    if intercept and known(x) and (_host(x)[0] == _host(x)[1]).all() and (x == x[:1]).all():
        raise ValueError(
            "`x` must have a feature that varies; all are constant, which only an intercept fits."
        )
    dtype = jnp.result_type(x, y) if weights is None else jnp.result_type(x, y, s)
    return tuple(array.astype(dtype, copy=False) for array in (x, y, s))


def _weights(weights: Any, n: int) -> Any:
    if weights is None:
        return np.ones(n, np.float32)
    s = array("weights", weights)
    if s.shape != (n,):
        raise ValueError(f"`weights` must have shape ({n},), one for each row of x; got {s.shape}.")
    _check_finite("weights", s)
    if known(s):
        values = np.asarray(s)
        if (values < 0).any():
            raise ValueError(f"`weights` must be >= 0; got {values.min()}.")
        if (values > 0).sum() < 2:
            raise ValueError(
                f"`weights` must be > 0 for at least two examples; got {(values > 0).sum()}."
            )
    return s


def grid(lams: Any, x: Any, *, width: int | None = None, zero: bool) -> Any:
    """The grid, (L,) or with groups (L, width), in the dtype of x."""
    values = array("lams", lams).astype(x.dtype)
    shape = "(L,)" if width is None else f"(L, {width})"
    inner = () if width is None else (width,)
    if values.ndim == 0 or values.shape[1:] != inner or values.shape[0] == 0:
        raise ValueError(f"`lams` must have shape {shape} with L >= 1; got {values.shape}.")
    _check_finite("lams", values)
    if known(values):
        smallest = np.asarray(values).min()
        if smallest < 0 or (smallest == 0 and not zero):
            raise ValueError(f"`lams` must be {'>= 0' if zero else '> 0'}; got {smallest}.")
    return values


def numbered(groups: Any, p: int) -> tuple[Any, int]:
    """The group of every feature, and the number of groups."""
    if groups is None:
        return None, 0
    labels = np.asarray(groups)
    if labels.shape != (p,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"`groups` must hold an int for each of the {p} features; got shape {labels.shape}, "
            f"{labels.dtype}."
        )
    count = int(labels.max()) + 1
    missing = sorted(set(range(count)) - set(labels.tolist()))
    if labels.min() < 0 or missing:
        raise ValueError(
            f"`groups` must number the groups 0, 1, ... without a gap; got {labels.min()} as the "
            f"smallest, and none of {missing[:5]}."
        )
    return labels, count


def check_choice(name: str, value: Any, choices: tuple[str, ...], other: str = "") -> None:
    """Refuse what is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = ", ".join(choices) + (f", {other}" if other else "")
        raise ValueError(f"`{name}` must be one of {listed}; got {value!r}.")


def check_count(name: str, value: Any) -> None:
    """Refuse what is not an int >= 1."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"`{name}` must be an int >= 1; got {value!r}.")
