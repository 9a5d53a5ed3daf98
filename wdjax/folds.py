"""Which examples train and which validate: K-fold, hold-out, forward in time, or your own splits.

Folds are rectangular tables of row numbers, so that one compiled program serves them all. Folds of
unequal size are filled up with row 0 at weight 0; every computation on folds takes the weights.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np

from wdjax._trees.checks import check_seed, check_whole, is_real
from wdjax._trees.paths import listed

Array = np.ndarray[Any, Any]


class Folds(NamedTuple):
    """K splits of N examples into a training and a validation part.

    Args:
        train: (K, T) int32, rows to train on, in increasing order, filled up with 0.
        train_weights: (K, T) float32, 1 for a row and 0 for what was filled up.
        val: (K, V) int32, rows to validate on.
        val_weights: (K, V) float32, as for training.

    Example:
        >>> folds = time_folds(7, 2)
        >>> folds.train, folds.train_weights
        (array([[0, 1, 2, 0, 0],
               [0, 1, 2, 3, 4]], dtype=int32), array([[1., 1., 1., 0., 0.],
               [1., 1., 1., 1., 1.]], dtype=float32))
    """

    train: Array
    train_weights: Array
    val: Array
    val_weights: Array

    @classmethod
    def from_sklearn(cls, cv: Any, x: Any, y: Any = None, *, groups: Any = None) -> Self:
        """Take the splits of a scikit-learn splitter, or any pairs of row numbers.

        Args:
            cv: an object with `split(x, y, groups)`, or an iterable of (train, val) rows.
            x: the N examples; a splitter needs only their number.
            y: (N,) targets, for splitters that look at them.
            groups: (N,) labels, for splitters that keep groups together.

        Returns:
            The splits as `Folds`; rows keep the order in which they come.

        Raises:
            TypeError: `cv` is neither; a number is not enough, because 5 may mean several things.
            ValueError: there is no split; a part is empty; a row is not in [0, N) or is in both
                parts.

        Example:
            >>> Folds.from_sklearn([([0, 1], [2]), ([0, 2], [1])], np.zeros(3)).val
            array([[2],
                   [1]], dtype=int32)
        """
        if hasattr(cv, "split") and not isinstance(cv, str):
            pairs = cv.split(x, y, groups)
        elif isinstance(cv, Iterable) and not isinstance(cv, str):
            pairs = cv
        else:
            raise TypeError(
                "`cv` must be a splitter such as sklearn.model_selection.KFold(5), or pairs of "
                f"row numbers; got {cv!r}. For plain K-fold use kfold(n, k)."
            )
        rows = [(np.asarray(train), np.asarray(val)) for train, val in pairs]
        folds = cls(*_table("cv", [a for a, _ in rows]), *_table("cv", [b for _, b in rows]))
        check_folds(folds, len(x), "cv")
        return folds


def kfold(
    n: int,
    k: int = 5,
    *,
    seed: int = 0,
    groups: Any = None,
    stratify: Any = None,
    repeats: int = 1,
) -> Folds:
    """Split into k parts of nearly equal size; each validates once and trains otherwise.

    Args:
        n: N, number of examples.
        k: number of parts, at least 2 examples in each.
        seed: of the shuffles, an int >= 0.
        groups: (N,) labels; examples with one label stay in one part. Large groups are placed
            first, each into the smallest part so far.
        stratify: (N,) labels; every part gets its share of each label, to within one example.
        repeats: times the whole is done over with another shuffle: K = k · repeats folds. Folds of
            different repeats overlap, so more repeats do not shrink a standard error by as much as
            counting folds would say.

    Returns:
        `Folds` with K = k · repeats.

    Raises:
        TypeError: a number is not whole.
        ValueError: fewer than two parts, more parts than N / 2 or than groups; labels are not (N,);
            both groups and stratify are given; `seed` is negative.

    Example:
        >>> kfold(6, 3, seed=0).val.shape, sorted(kfold(6, 3).val.ravel().tolist())
        ((3, 2), [0, 1, 2, 3, 4, 5])
    """
    _check_parts(n, k)
    check_whole("repeats", repeats)
    check_seed("seed", seed)
    if groups is not None and stratify is not None:
        raise ValueError(
            "`groups` and `stratify` exclude each other; got both. For both at once use "
            "Folds.from_sklearn(sklearn.model_selection.StratifiedGroupKFold(k), x, y, groups=...)."
        )
    generator = np.random.default_rng(seed)
    parts = []
    for _ in range(repeats):
        if groups is not None:
            part = _by_groups(_labels("groups", groups, n), k, generator)
        elif stratify is not None:
            part = _by_strata(_labels("stratify", stratify, n), k, generator)
        else:
            part = _dealt(generator.permutation(n), k)
        parts += [part == index for index in range(k)]
    return _from_masks(parts)


def holdout(n: int, fraction: float = 0.2, *, seed: int = 0) -> Folds:
    """Keep one random part for validation: a single fold, which cannot give a standard error.

    Args:
        n: N, number of examples.
        fraction: of the examples that validate, in (0, 1); rounded to at least two and at most
            N − 2 examples.
        seed: of the shuffle, an int >= 0.

    Returns:
        `Folds` with K = 1.

    Raises:
        TypeError: `n` or `seed` is not whole.
        ValueError: `n` is less than 4, `fraction` is not in (0, 1), or `seed` is negative.

    Example:
        >>> holdout(10, 0.3).val.shape, holdout(10, 0.3).train.shape
        ((1, 3), (1, 7))
    """
    check_whole("n", n)
    check_seed("seed", seed)
    if n < 4:
        raise ValueError(f"`n` must be >= 4, two examples for each part; got {n}.")
    if not (is_real(fraction) and 0.0 < fraction < 1.0):
        raise ValueError(f"`fraction` must be a number in (0, 1); got {fraction!r}.")
    size = min(max(round(n * fraction), 2), n - 2)
    chosen = np.zeros(n, bool)
    chosen[np.random.default_rng(seed).permutation(n)[:size]] = True
    return _from_masks([chosen])


def time_folds(n: int, k: int = 5) -> Folds:
    """Validate on what comes after: fold i trains on all examples before its validation part.

        |train |val|           Rows are in order of time and never shuffled. The k validation parts
        |train     |val|       have ⌊N / (k + 1)⌋ examples each; the remainder goes to the first
        |train         |val|   training part.

    Args:
        n: N, number of examples, oldest first.
        k: number of folds, at least 2 examples in each validation part.

    Returns:
        `Folds` with K = k.

    Raises:
        TypeError: a number is not whole.
        ValueError: fewer than one fold, or fewer than two examples in a part.

    Example:
        >>> time_folds(6, 2).val
        array([[2, 3],
               [4, 5]], dtype=int32)
    """
    check_whole("n", n)
    check_whole("k", k)
    size = n // (k + 1)
    if size < 2:
        raise ValueError(
            f"`k` must leave two examples in each of its k + 1 parts, so be at most {n // 2 - 1} "
            f"for {n} examples; got {k}."
        )
    starts = n - size * np.arange(k, 0, -1)
    train = [np.arange(start) for start in starts]
    val = [np.arange(start, start + size) for start in starts]
    return Folds(*_table("k", train), *_table("k", val))


def check_folds(folds: Any, n: int, name: str = "folds") -> None:
    """Refuse folds that do not fit n examples.

    Args:
        folds: what should be `Folds`.
        n: N, number of examples.
        name: the argument to blame.

    Raises:
        TypeError: it is not `Folds`.
        ValueError: shapes differ, a row is not in [0, N), a part of a fold is empty, a row both
            trains and validates, or the folds are of fewer examples than n.

    Example:
        >>> check_folds(kfold(10, 2), 8)
        Traceback (most recent call last):
        ValueError: `folds` must hold rows of the 8 examples only; got row 9 in fold 0. ...
    """
    if not isinstance(folds, Folds):
        raise TypeError(f"`{name}` must be Folds, such as kfold(n, 5); got {folds!r}.")
    shapes = [np.shape(x) for x in folds]
    lengths = {shape[:1] for shape in shapes}
    if shapes[0] != shapes[1] or shapes[2] != shapes[3] or len(lengths) != 1 or () in lengths:
        raise ValueError(
            f"`{name}` must hold train (K, T), train_weights (K, T), val (K, V), val_weights "
            f"(K, V); got shapes {shapes}. Use kfold, holdout, time_folds or Folds.from_sklearn."
        )
    for index, (train, train_weights, val, val_weights) in enumerate(zip(*folds, strict=True)):
        parts = {"train": train[train_weights > 0], "val": val[val_weights > 0]}
        for part, rows in parts.items():
            if len(rows) == 0:
                raise ValueError(
                    f"`{name}` must have examples in every part; {part} of fold {index} has none."
                )
            outside = rows[(rows < 0) | (rows >= n)]
            if len(outside):
                raise ValueError(
                    f"`{name}` must hold rows of the {n} examples only; got row {outside.max()} in "
                    f"fold {index}. Build the folds with the number of examples in `data`."
                )
        both = np.intersect1d(*parts.values())
        if len(both):
            raise ValueError(
                f"`{name}` must keep training and validation apart; row {both[0]} is in both parts "
                f"of fold {index}."
            )
    _check_reach(name, folds, n)


def _check_reach(name: str, folds: Folds, n: int) -> None:
    """Some rows may be left out, as around a gap in time; but all up to a number are its folds."""
    seen = np.union1d(folds.train[folds.train_weights > 0], folds.val[folds.val_weights > 0])
    if len(seen) == seen[-1] + 1 < n:
        raise ValueError(
            f"`{name}` must be of all {n} examples; they are of the first {len(seen)}, and the "
            "others would neither train nor validate. Build the folds with the number of examples "
            "in `data`, or leave these rows out of `data`."
        )


def _check_parts(n: int, k: int) -> None:
    check_whole("n", n)
    check_whole("k", k)
    if k < 2:
        raise ValueError(f"`k` must be >= 2; got {k}. A single split is holdout(n).")
    if n < 2 * k:
        raise ValueError(
            f"`k` must leave at least two examples in every fold, so be at most {n // 2} for {n} "
            f"examples; got {k}. Leave-one-out: linear.ridge_cv for linear models, or "
            "Folds.from_sklearn(LeaveOneOut(), x)."
        )


def _labels(name: str, labels: Any, n: int) -> Array:
    """Labels as numbers 0, 1, ..."""
    labels = np.asarray(labels)
    if labels.shape != (n,):
        raise ValueError(
            f"`{name}` must have one label for each example, ({n},); got shape {labels.shape}."
        )
    try:
        return np.unique(labels, return_inverse=True)[1].reshape(-1)
    except TypeError:
        kinds = listed(sorted({type(label).__name__ for label in labels}))
        raise TypeError(
            f"`{name}` must hold labels of one kind, numbers or strings; got {kinds}. Give the "
            "examples without one a label of their own."
        ) from None


def _dealt(order: Array, k: int) -> Array:
    """The part of each row, rows dealt like cards in this order."""
    part = np.empty(len(order), np.int32)
    part[order] = np.arange(len(order)) % k
    return part


def _by_strata(labels: Array, k: int, generator: np.random.Generator) -> Array:
    order = generator.permutation(len(labels))
    # dealing on from label to label keeps the parts equal in size as well
    return _dealt(order[np.argsort(labels[order], kind="stable")], k)


def _by_groups(labels: Array, k: int, generator: np.random.Generator) -> Array:
    sizes = np.bincount(labels)
    if len(sizes) < k:
        raise ValueError(f"`k` must be at most the number of groups, {len(sizes)}; got {k}.")
    part_of_group = np.empty(len(sizes), np.int32)
    filled = np.zeros(k, np.int64)
    shuffled = generator.permutation(len(sizes))  # among groups of equal size
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part_of_group[group] = filled.argmin()
        filled[part_of_group[group]] += sizes[group]
    if filled.min() < 2:
        raise ValueError(
            f"`groups` must allow two examples in every fold; got {filled.min()} in "
            f"the smallest of {k}. Use a smaller k."
        )
    return part_of_group[labels]


def _from_masks(chosen: list[Array]) -> Folds:
    train = [np.flatnonzero(~mask) for mask in chosen]
    val = [np.flatnonzero(mask) for mask in chosen]
    return Folds(*_table("folds", train), *_table("folds", val))


def _table(name: str, rows: list[Array]) -> tuple[Array, Array]:
    """Rows of unequal length as one table with weights."""
    if not rows:
        raise ValueError(f"`{name}` must give at least one split; got none.")
    if any(
        row.ndim != 1 or not (np.issubdtype(row.dtype, np.integer) or not row.size) for row in rows
    ):
        raise ValueError(f"`{name}` must give row numbers, 1-D arrays of integers.")
    width = max(len(row) for row in rows)
    table = np.zeros((len(rows), width), np.int32)
    weights = np.zeros((len(rows), width), np.float32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
        weights[index, : len(row)] = 1.0
    return table, weights
