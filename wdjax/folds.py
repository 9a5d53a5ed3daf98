"""Which examples train and which validate: K-fold, hold-out, forward in time, or your own splits.

Folds are rectangular tables of row numbers, so that one compiled program serves them all. Folds of
unequal size are filled up with row 0 at weight 0; every computation on folds takes the weights.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple, Self

import numpy as np

from wdjax._trees import checks
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
        has_splits = hasattr(cv, "split") and not isinstance(cv, str)
        pairs = cv.split(x, y, groups) if has_splits else cv
        rule = "be a splitter such as sklearn.model_selection.KFold(5), or pairs of row numbers"
        fits = isinstance(pairs, Iterable) and not isinstance(pairs, str)
        checks.must(
            "cv", fits, rule, checks.shown(cv), "For plain K-fold use kfold(n, k).", TypeError
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
    checks.whole("n", n, least=4, advice="Each fold needs two examples.")
    advice = (
        f"Each fold needs two of the {n} examples. For a single split use holdout(n); for "
        "leave-one-out linear.ridge_cv or Folds.from_sklearn(LeaveOneOut(), x)."
    )
    checks.whole("k", k, least=2, most=n // 2, advice=advice)
    checks.whole("repeats", repeats)
    checks.whole("seed", seed, least=0)
    advice = (
        "For both at once use Folds.from_sklearn(sklearn.model_selection.StratifiedGroupKFold(k), "
        "x, y, groups=...)."
    )
    is_both = groups is not None and stratify is not None
    checks.must("groups", not is_both, "come without `stratify`", "both", advice)
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
    checks.whole("n", n, least=4, advice="Each part needs two examples.")
    checks.whole("seed", seed, least=0)
    checks.number("fraction", fraction, above=0, below=1)
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
    checks.whole("n", n, least=4, advice="Each part needs two examples.")
    checks.whole("k", k, most=n // 2 - 1, advice="Each part needs two examples.")
    size = n // (k + 1)
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
        ValueError: `folds` must train on some of the 8 examples and validate on others; got row ...
    """
    advice = "Use kfold, holdout, time_folds or Folds.from_sklearn."
    is_folds = isinstance(folds, Folds)
    checks.must(
        name, is_folds, "be Folds, such as kfold(n, 5)", checks.shown(folds), error=TypeError
    )
    shapes = [np.shape(x) for x in folds]
    lengths = {shape[:1] for shape in shapes}
    fits = shapes[0] == shapes[1] and shapes[2] == shapes[3] and len(lengths) == 1
    rule = "hold train (K, T), train_weights (K, T), val (K, V), val_weights (K, V)"
    checks.must(name, fits and () not in lengths, rule, f"shapes {shapes}", advice)
    parts = [
        (index, train[train_weights > 0], val[val_weights > 0])
        for index, (train, train_weights, val, val_weights) in enumerate(zip(*folds, strict=True))
    ]
    faults = [(index, _fault(train, val, n)) for index, train, val in parts]
    wrong = [f"{fault} in fold {index}" for index, fault in faults if fault]
    advice = "Build the folds with the number of examples in `data`."
    rule = f"train on some of the {n} examples and validate on others"
    checks.must(name, not wrong, rule, listed(wrong), advice)
    seen = np.unique(np.concatenate([rows for _, *both in parts for rows in both]))
    # some rows may be left out, as around a gap in time; but all up to a number are its folds
    is_part = len(seen) == seen[-1] + 1 < n
    advice += " Or leave out of `data` the examples that no fold uses."
    got = f"folds of the first {len(seen)}"
    checks.must(name, not is_part, f"cover all {n} examples", got, advice)


def _fault(train: Array, val: Array, n: int) -> str:
    for name, rows in {"training": train, "validation": val}.items():
        if not len(rows):
            return f"no {name} example"
        outside = rows[(rows < 0) | (rows >= n)]
        if len(outside):
            return f"row {outside[0]}"
    both = np.intersect1d(train, val)
    return f"row {both[0]} twice" if len(both) else ""


def _labels(name: str, labels: Any, n: int) -> Array:
    """Labels as numbers 0, 1, ..."""
    labels = np.asarray(labels)
    rule = f"have one label for each example, ({n},)"
    checks.must(name, labels.shape == (n,), rule, f"shape {labels.shape}")
    try:
        return np.unique(labels, return_inverse=True)[1].reshape(-1)
    except TypeError as error:
        raise TypeError(
            f"`{name}` must hold labels of one kind, numbers or strings: {error}. Give "
            "unlabeled examples a label of their own."
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
    part_of_group = np.empty(len(sizes), np.int32)
    filled = np.zeros(k, np.int64)
    shuffled = generator.permutation(len(sizes))  # among groups of equal size
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        part_of_group[group] = filled.argmin()
        filled[part_of_group[group]] += sizes[group]
    got = f"{filled.min()} in the smallest of {k} folds, from {len(sizes)} groups"
    rule = "allow two examples in every fold"
    checks.must("groups", filled.min() >= 2, rule, got, "Use a smaller k.")
    return part_of_group[labels]


def _from_masks(chosen: list[Array]) -> Folds:
    train = [np.flatnonzero(~mask) for mask in chosen]
    val = [np.flatnonzero(mask) for mask in chosen]
    return Folds(*_table("folds", train), *_table("folds", val))


def _table(name: str, rows: list[Array]) -> tuple[Array, Array]:
    """Rows of unequal length as one table with weights."""
    is_rows = [row.ndim == 1 and (not row.size or row.dtype.kind in "iu") for row in rows]
    rule = "give one split or more, of 1-D arrays of row numbers"
    checks.must(name, rows and all(is_rows), rule, listed(map(checks.kind_of, rows)) or "none")
    width = max(len(row) for row in rows)
    table = np.zeros((len(rows), width), np.int32)
    weights = np.zeros((len(rows), width), np.float32)
    for index, row in enumerate(rows):
        table[index, : len(row)] = row
        weights[index, : len(row)] = 1.0
    return table, weights
