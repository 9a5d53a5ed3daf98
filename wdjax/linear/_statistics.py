"""Sums over examples from which ridge regression is solved: they add, so data may be any size."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks
from wdjax.linear import _data


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """Sums over the examples of every fold, of z = [x y] around a point c near their mean.

    Two of them add, whatever their c: `a + b`, or `sum(parts)`. Where all were made with one
    `shift`, the arrays themselves add, so that `jax.lax.psum` and any other reducer can do it.

    Attributes:
        count: (K,), examples of weight above 0 in each of the K folds.
        weight: (K,), W = Σ s.
        shift: (K, p + t), W c.
        first: (K, p + t), Σ s (z − c).
        second: (K, p + t, p + t), Σ s (z − c)(z − c)ᵀ.
        targets: the number of targets t; None for a y of one axis, and t = 1.
    """

    count: Any
    weight: Any
    shift: Any
    first: Any
    second: Any
    targets: int | None = dataclasses.field(metadata={"static": True})

    def __add__(self, other: Any) -> "Statistics":
        """Put two parts of the data together, exactly and in float64 where nothing is traced."""
        if not isinstance(other, Statistics):
            return NotImplemented
        got = f"{_shape(self)} and {_shape(other)}"
        advice = "Both parts need the same columns of x and of y, in the same order."
        fits = _shape(self) == _shape(other)
        checks.must("statistics", fits, "have the same shapes to be added", got, advice)
        folds = max(len(self.weight), len(other.weight))
        a, b = _with_folds(_at_hand(self), folds), _with_folds(_at_hand(other), folds)
        both: Statistics = jax.tree.map(lambda x, y: x + y, *_around_one(a, b))
        return both

    def __radd__(self, other: Any) -> "Statistics":
        """Let `sum` begin with its 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented


def statistics(
    x: Any,
    y: Any,
    *,
    fold: Any = None,
    folds: int | None = None,
    weights: Any = None,
    shift: Any = None,
) -> Statistics:
    """Sum up a batch of examples, for ridge regression on data that do not fit in memory.

        W = Σ s      Σ s (z − c)      Σ s (z − c)(z − c)ᵀ      z = [x y], c near the mean of z

    Add the statistics of all batches, on any machine and in any order, and give the total to
    `ridge_path`, `ridge_cv` or `group_ridge`. Sums around the mean keep the digits of columns that
    are far from 0. Arrays that are not traced are summed in float64 on the host, traced ones on
    the device in their own dtype. It takes O(n (p + t)²) time and O(K (p + t)²) memory.

    In float32 every addition rounds. A traced loop of 10,000 batches keeps 1e-5, if all have one
    `shift` and are added by `+`. Add what several loops have found on the host, in float64.

    Args:
        x: X, (n, p), finite.
        y: (n,), or (n, T) for T targets.
        fold: the fold 0 ... K − 1 that each example belongs to, (n,) int, or an int for all; None:
            one fold.
        folds: K; None: one more than the largest in `fold`, and statistics of fewer folds add to
            those of more. A traced `fold` needs it.
        weights: s >= 0, (n,); a row with 0 counts as absent.
        shift: c, (p + T,), the same for all parts that a `psum` adds; None: the batch's own mean.

    Returns:
        `Statistics`.

    Raises:
        TypeError: an argument is not of numbers.
        ValueError: shapes differ; a value is not finite or out of its range.

    Example:
        >>> from wdjax.linear import ridge_path
        >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([1.0, 3.0, 5.0, 7.0])
        >>> total = statistics(x[:2], y[:2]) + statistics(x[2:], y[2:])
        >>> ridge_path(total, lams=[0.0, 5.0]).coef[:, 0]
        Array([2., 1.], dtype=float32)

    References:
        Chan, Golub, LeVeque, *Updating Formulae and a Pairwise Algorithm for Computing Sample
        Variances*, 1979, eq. 2.1, here for covariances.
    """
    x, y, s = _data.examples(x, y, weights, least=1)
    n = len(x)
    s = np.ones(n) if s is None else s
    fits = not _data.known(s) or np.asarray(s).min() >= 0
    checks.must("weights", fits, "be >= 0", "a negative one")
    labels, count = _labels(fold, folds, n)
    targets = None if y.ndim == 1 else y.shape[1]
    z = [x, y[:, None] if y.ndim == 1 else y]
    width = x.shape[1] + z[1].shape[1]
    fits = shift is None or np.shape(shift) == (width,)
    checks.must("shift", fits, f"have shape ({width},), of x and y", repr(np.shape(shift)))
    if _data.known(x, y, s, labels, shift):
        arrays = [np.asarray(a, np.float64) for a in (*z, s)]
        return _summed(np, np.hstack(arrays[:2]), arrays[2], labels, count, shift, targets)
    with jax.default_matmul_precision("highest"):
        return _summed(jnp, jnp.hstack(z), jnp.asarray(s, x.dtype), labels, count, shift, targets)


def total_statistics(batches: Iterable[Any]) -> Statistics:
    """Sum up an iterable of batches, one at a time.

    All batches are summed around the mean of the first.

    Args:
        batches: of (x, y), or of dicts with the arguments of `statistics`: x, y, and if wanted
            fold, folds and weights.

    Returns:
        `Statistics`.

    Raises:
        TypeError: as `statistics`, with the number of the batch.
        ValueError: as `statistics`, with the number of the batch; there is no batch.

    Example:
        >>> batches = ({"x": np.ones((2, 1)) * i, "y": np.arange(2.0), "fold": i} for i in range(3))
        >>> total_statistics(batches).weight
        array([2., 2., 2.])
    """
    total, shift = None, None
    for number, batch in enumerate(batches):
        try:
            named = dict(batch) if isinstance(batch, dict) else dict(zip("xy", batch, strict=True))
            if total is not None:
                _check_widths(named, total)
            part = statistics(**{"shift": shift, **named})
            shift = mean(part) if shift is None else shift
            total = part if total is None else total + part
        except (TypeError, ValueError) as error:
            raise type(error)(f"Batch {number} (the first is 0): {error}") from error
    checks.must("batches", total is not None, "have a batch", "none")
    assert total is not None
    return total


def mean(a: Statistics) -> Any:
    """(p + t,) the mean of z over all folds; 0 where no example counts."""
    weight = a.weight.sum()
    return (a.shift + a.first).sum(axis=0) / (weight + (weight == 0))


def around(a: Statistics, c: Any) -> Statistics:
    """The same sums around other points c, (K, p + t).

    Σ s (z − c')(z − c')ᵀ = S + f dᵀ + d fᵀ + W d dᵀ      f = Σ s (z − c), d = c − c'
    """
    w = a.weight[:, None]
    own = _divided(a.shift, a.weight)
    d = (own - c) * ((w > 0) & ~_near(own, c))
    moved = dataclasses.replace(a, shift=w * c)
    if _data.known(d) and not np.any(d):
        return moved
    outer = a.first[:, :, None] * d[:, None, :]
    second = a.second + outer + outer.swapaxes(1, 2) + (w * d)[:, :, None] * d[:, None, :]
    return dataclasses.replace(moved, first=a.first + w * d, second=second)


def _around_one(a: Statistics, b: Statistics) -> tuple[Statistics, Statistics]:
    """Both around one c: their own, where they have the same, else the mean of the two.

    If two differ by rounding, the c of less weight is kept, for it comes from fewer additions: in a
    long sum of float32 the other would drift.
    """
    own, other = _divided(a.shift, a.weight), _divided(b.shift, b.weight)
    same = other + (own - other) * (a.weight <= b.weight)[:, None]
    c = _divided(a.shift + b.shift, a.weight + b.weight)
    c = c + (same - c) * _near(own, other)
    return around(a, c), around(b, c)


def _near(c: Any, other: Any) -> Any:
    """Whether two points are the same but for rounding."""
    return abs(c - other) <= 4 * np.finfo(c.dtype).eps * abs(c)


def _summed(
    xp: Any, z: Any, s: Any, labels: Any, folds: int, shift: Any, targets: int | None
) -> Statistics:
    """The sums, with NumPy or JAX."""
    one_each = labels[None] == xp.arange(folds)[:, None]  # (K, n)
    shares = xp.where(one_each, s[None], 0)
    weight = shares.sum(axis=1)
    c = (
        (s @ z) / xp.maximum(s.sum(), xp.finfo(z.dtype).tiny)
        if shift is None
        else xp.asarray(shift)
    )
    z = z - c[None]

    def squares(k: int) -> Any:
        if xp is np:  # the rows of this fold alone
            rows = z if folds == 1 else z[labels == k]
            own = s if folds == 1 else s[labels == k]
            return (rows * own[:, None]).T @ rows
        return (z * shares[k][:, None]).T @ z

    second = xp.stack([squares(k) for k in range(folds)])
    count = (shares > 0).sum(axis=1).astype(z.dtype)
    return Statistics(count, weight, weight[:, None] * c[None], shares @ z, second, targets)


def _labels(fold: Any, folds: int | None, n: int) -> tuple[Any, int]:
    """The fold of every example, and the number of folds."""
    checks.whole("folds", folds, optional=True)
    labels = fold if isinstance(fold, jax.Array) else np.asarray(0 if fold is None else fold)
    rule = f"be an int, or ints of shape ({n},), one for each row of x"
    is_whole = jnp.issubdtype(labels.dtype, jnp.integer)
    checks.must("fold", is_whole, rule, f"dtype {labels.dtype}", error=TypeError)
    checks.must("fold", labels.shape in ((), (n,)), rule, f"shape {labels.shape}")
    if not _data.known(labels):
        checks.must(
            "folds", folds is not None, "say how many there are where `fold` is traced", "None"
        )
        return jnp.broadcast_to(labels, (n,)), folds or 1
    labels = np.broadcast_to(np.asarray(labels), (n,))
    count = int(labels.max()) + 1 if folds is None else folds
    fits = labels.min() >= 0 and labels.max() < count
    got = f"{labels.min()} to {labels.max()}"
    checks.must("fold", fits, f"be from 0 to `folds` − 1, {count - 1}", got)
    return labels, count


def _check_widths(batch: dict[str, Any], total: Statistics) -> None:
    """Name the argument whose columns changed, before sums of other shapes meet."""
    t = total.targets or 1
    wanted = {"x": total.second.shape[-1] - t, "y": total.targets}
    for name, width in wanted.items():
        shape = np.shape(batch.get(name))  # type: ignore[arg-type]
        rule = f"have the columns of the first batch, {'none' if width is None else width}"
        checks.must(name, (shape[1] if len(shape) > 1 else None) == width, rule, f"shape {shape}")


def _at_hand(a: Statistics) -> Statistics:
    """On the host in float64, where nothing is traced."""
    if not _data.known(*jax.tree.leaves(a)):
        return a
    host: Statistics = jax.tree.map(lambda x: np.asarray(x, np.float64), a)
    return host


def _with_folds(a: Statistics, folds: int) -> Statistics:
    """With empty folds at the end."""
    more = folds - len(a.weight)
    xp = np if _data.known(*jax.tree.leaves(a)) else jnp

    def filled(x: Any) -> Any:
        return xp.pad(x, ((0, more), *((0, 0),) * (x.ndim - 1)))

    longer: Statistics = jax.tree.map(filled, a) if more else a
    return longer


def _divided(total: Any, weight: Any) -> Any:
    """Means (K, p + t), 0 for empty folds."""
    return total / (weight + (weight == 0))[:, None]


def _shape(a: Statistics) -> tuple[int, int | None]:
    return a.second.shape[-1], a.targets
