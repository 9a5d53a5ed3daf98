"""The data of a linear regression: checked, centered, weighted, and its precision.

Traced arrays pass all checks of values.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import checks
from wdjax._trees.checks import check_finite, kind_of
from wdjax._trees.devices import at_hand
from wdjax._trees.paths import listed


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
    """[X y] (n, p + t) less their means, and these: one array halves what must be compiled.

    For data far from 0 rounding leaves a part of the mean, which the next centring takes out.
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


def near_zero(x: Any, y: Any, weights: Any, intercept: bool) -> tuple[Any, Any, Any, Any]:
    """X and y less their means, and these: in float64, where what follows is in float32.

    So a feature far from 0, such as a time stamp, keeps its digits. Without an intercept, and for
    traced values, nothing is taken off.
    """
    arrays = [at_hand(a) if known(a) else a for a in (x, y, weights)]
    is_here = all(isinstance(a, np.ndarray) for a in arrays)
    narrow = jax.dtypes.canonicalize_dtype(x.dtype)
    if not (intercept and is_here) or narrow == np.float64:
        return x, y, 0.0, 0.0
    share = arrays[2].astype(np.float64) / arrays[2].sum(dtype=np.float64)

    def less(a: Any) -> tuple[Any, Any]:
        wide = a.astype(np.float64)
        mean = share @ wide
        rest = wide - mean
        used = np.abs(rest[share > 0]).max(axis=0)
        # a constant column becomes exactly 0, not what rounding leaves of it
        rest = np.where(used > 16 * np.finfo(np.float64).eps * np.abs(mean), rest, 0)
        return rest.astype(narrow), mean.astype(narrow)

    (x, mean_x), (y, mean_y) = less(arrays[0]), less(arrays[1])
    return x, y, mean_x, mean_y


def offset(coef: Any, mean_x: Any, mean_y: Any) -> Any:
    """What an intercept lacks where data came from `near_zero`: ȳ − w x̄, for coef (L, p, ...)."""
    if not np.ndim(mean_x):
        return 0.0
    along = jnp.tensordot(coef, mean_x, axes=(1, 0), precision="highest")
    return jnp.broadcast_to(mean_y, along.shape) - along


def targets(y: jax.Array, *results: jax.Array) -> Any:
    """The results without their last axis, of targets, where y has none."""
    return tuple(result[..., 0] for result in results) if y.ndim == 1 else results


def intercept_of(problem: Any, coef: Any) -> Any:
    """(..., T) b = ȳ − x̄ᵀw, of a problem with both means."""
    mean_y = problem.mean_y.reshape((1,) * (coef.ndim - 2) + problem.mean_y.shape)
    return mean_y - jnp.einsum("p,...pt->...t", problem.mean_x, coef)


def known(*values: Any) -> bool:
    """Whether no value is traced."""
    return not any(isinstance(value, jax.core.Tracer) for value in values)


def in_float64(program: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """`program(*arrays, **options)`, computed in float64 if no value is traced.

    The floating-point results come back in the dtype that the first array has in JAX: without x64
    float32. Inner products square the ratio of the largest to the smallest singular value, and for
    that float32 has too few digits. A TPU has no float64 of use: there, and for traced values, the
    program runs in the dtype it is given. What is at hand inside a traced function is computed when
    that is traced: a program in float64 cannot be part of one without x64.

    Args:
        program: a function under `jax.jit`.
        arrays: of floats and ints, or pytrees of them.
        options: static, hashable.
    """
    leaves = jax.tree.leaves(arrays)
    dtype = jax.dtypes.canonicalize_dtype(leaves[0].dtype)
    is_traced = not known(*leaves)
    if is_traced or dtype == np.float64 or jax.default_backend() == "tpu":
        return program(*arrays, **options)
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return _in_float64(arrays, program, tuple(options.items()), dtype)


def on_any_scales(program: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    """`in_float64`, and once more, slower, where much was lost by inner products.

    Args:
        program: takes `exact` and a `tolerance`, too, and also returns whether inner products may
            be off by more than that.
        arrays: as for `in_float64`.
        options: as for `in_float64`.
    """
    dtype = jax.dtypes.canonicalize_dtype(arrays[0].dtype)
    options["tolerance"] = max(1e-9, float(np.finfo(dtype).eps) / 8)
    result, is_lost = in_float64(program, *arrays, exact=False, **options)
    if known(is_lost) and is_lost and jax.default_backend() != "tpu":
        result, _ = in_float64(program, *arrays, exact=True, **options)
    return result


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _in_float64(arrays: Any, program: Callable[..., Any], options: Any, dtype: Any) -> Any:
    return _floats_as(dtype, program(*_floats_as(np.float64, arrays), **dict(options)))


def _floats_as(dtype: Any, tree: Any) -> Any:
    def one(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(one, tree)


def array(name: str, value: Any) -> Any:
    """As a floating-point array, at least float32; arrays of the host stay there, which is faster.

    NumPy's float64 stays, for `in_float64`; elsewhere `jax.jit` makes of it what JAX allows.
    """
    is_kept = isinstance(value, jax.Array | np.ma.MaskedArray)
    numbers = value if is_kept else np.asarray(value)
    is_real = checks.is_plain(numbers) and jnp.isrealobj(numbers)
    got = "None" if value is None else kind_of(numbers)
    advice = "Fill in what is masked, or drop these rows." * isinstance(value, np.ma.MaskedArray)
    checks.must(name, is_real, "be an array of real numbers", got, advice, TypeError)
    whole = not jnp.issubdtype(numbers.dtype, jnp.floating)
    narrow = whole or numbers.dtype.itemsize < 4
    return _as(numbers, np.float64) if narrow or numbers.dtype.itemsize > 8 else numbers


def _as(numbers: Any, dtype: Any) -> Any:
    """In this dtype; JAX's own in the one that it allows."""
    if isinstance(numbers, jax.Array):
        dtype = jax.dtypes.canonicalize_dtype(dtype)
    return numbers.astype(dtype, copy=False)


def examples(x: Any, y: Any, weights: Any, *, least: int) -> tuple[Any, Any, Any]:
    """X (n, p), y (n,) or (n, T), and weights (n,) or None, of finite numbers and a row each."""
    x, y = array("x", x), array("y", y)
    fits = x.ndim == 2 and x.shape[0] >= least and x.shape[1] > 0
    rule = f"have shape (n, p), examples by features, n >= {least} and p >= 1"
    checks.must("x", fits, rule, x.shape, "For one feature pass x[:, None].")
    n = x.shape[0]
    fits = y.ndim in (1, 2) and y.shape[0] == n and y.size > 0
    checks.must("y", fits, f"have shape ({n},) or ({n}, T), one row for each of x", y.shape)
    check_finite("x", x)
    check_finite("y", y)
    if weights is None:
        return x, y, None
    s = array("weights", weights)
    checks.must("weights", s.shape == (n,), f"have shape ({n},), one for each row of x", s.shape)
    check_finite("weights", s)
    return x, y, s


def prepared(x: Any, y: Any, weights: Any, intercept: bool) -> tuple[Any, ...]:
    """X (n, p), y (n,) or (n, T), and weights (n,), checked and of one dtype."""
    checks.flag("intercept", intercept)
    x, y, s = examples(x, y, weights, least=2)
    dtype = np.result_type(*(array.dtype for array in (x, y, s) if array is not None))
    s = np.ones(len(x), dtype) if s is None else s
    values = np.asarray(s) if known(s) else np.ones(len(x))
    above = (values > 0).sum()
    got = f"{values.min()} as the smallest, and {above} above 0"
    fits = values.min() >= 0 and above >= 2
    checks.must("weights", fits, "be >= 0, and > 0 for at least two examples", got)
    is_flat = known(x) and (at_hand(x)[0] == at_hand(x)[1]).all() and bool((x == x[:1]).all())
    got = "constant features only, which the intercept replaces"
    checks.must("x", not (intercept and is_flat), "have a feature that varies", got)
    return tuple(_as(array, dtype) for array in (x, y, s))


def check_fold_weights(folds: Any, weights: Any) -> None:
    """Refuse a part of a fold whose weights are all 0."""
    if not known(weights):
        return
    s = np.asarray(weights)
    empty = [
        f"fold {index} with none in {part}"
        for index, (train, of_train, val, of_val) in enumerate(zip(*folds, strict=True))
        for part, total in {"train": s[train] @ of_train, "val": s[val] @ of_val}.items()
        if not total > 0
    ]
    rule = "be > 0 for an example in every part of `method`"
    advice = "Make the folds of the rows with weight > 0."
    checks.must("weights", not empty, rule, listed(empty), advice)


def lowest(score: jax.Array, lams: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The λ (t,) with the smallest score (L, t), of equal ones the largest; whether at an end."""
    usable = jnp.where(jnp.isfinite(score), score, jnp.inf)
    least = usable <= jnp.min(usable, axis=0, keepdims=True)
    lam = jnp.max(jnp.where(least, lams[:, None], 0), axis=0)
    return lam, (lam == jnp.min(lams)) | (lam == jnp.max(lams))


def check_score(score: jax.Array) -> None:
    """Refuse scores that are all infinite or NaN; −∞ is right for a y without variance."""
    fits = not known(score) or (np.asarray(score) < np.inf).any(axis=0).all()
    rule = f"have squares that {score.dtype} can hold"
    got = "no λ with a finite score"
    checks.must("x` and `y", fits, rule, got, "Divide them by their largest value.")


def grid(lams: Any, x: Any, *, width: int | None = None, zero: bool) -> Any:
    """The grid, (L,) or with groups (L, width), in the dtype of x."""
    rule = "be the grid of λ, such as np.geomspace(0.1, 1000, 41)"
    checks.must("lams", lams is not None, rule, "None", error=TypeError)
    values = _as(array("lams", lams), x.dtype)
    shape = "(L,)" if width is None else f"(L, {width})"
    inner = () if width is None else (width,)
    fits = values.ndim > 0 and values.shape[1:] == inner and values.shape[0] > 0
    checks.must("lams", fits, f"have shape {shape} with L >= 1", values.shape)
    check_finite("lams", values)
    smallest = np.asarray(values).min() if known(values) else 1
    fits = smallest > 0 or (zero and smallest == 0)
    checks.must("lams", fits, f"be {'>= 0' if zero else '> 0'}", str(smallest))
    return values


def numbered(groups: Any, p: int) -> tuple[Any, int]:
    """The group of every feature, and the number of groups."""
    if groups is None:
        return None, 0
    labels = np.asarray(groups)
    is_whole = labels.shape == (p,) and labels.dtype.kind in "iu"
    distinct = np.unique(labels)
    count = len(distinct)
    fits = is_whole and distinct.tolist() == list(range(count))
    rule = f"give each of the {p} features one of the groups 0, 1, ..., with none left out"
    got = f"shape {labels.shape} of {listed(map(str, distinct.tolist()))}"
    checks.must("groups", fits, rule, got)
    return labels, count
