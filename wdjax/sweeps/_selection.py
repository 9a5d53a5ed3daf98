"""Choosing a configuration from a sweep, and looking at the evidence: curve and map.

A configuration is judged by the mean of its validation score over folds, seeds averaged first:

    m = mean over folds,   se = sd over folds / √K

A configuration with a run that is not finite never wins. Lower is better.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from wdjax._trees import PyTree, checks
from wdjax._trees.paths import listed
from wdjax.sweeps._grids import columns, row
from wdjax.sweeps._results import SweepResult, scores_of, standard_error, train_mean

Array = np.ndarray[Any, Any]
Rule = str | Callable[[Array], int]
Preference = str | Callable[[PyTree], Any]


class Selection(NamedTuple):
    """The chosen configuration and why.

    Args:
        index: row of the chosen configuration.
        hparams: its hyperparameters, Python numbers.
        epoch: the epochs after which it was judged.
        best: row with the lowest mean, which `rule="min"` chooses.
        mean: (C,) mean over folds; ∞ for a configuration that diverged.
        se: (C,) standard error of the mean over folds; NaN with a single fold.
        eligible: (C,) bool, those among which the rule chose.
        edge: names of the hyperparameters whose chosen or best value is the smallest or largest
            that was tried, so that a better one may lie outside.
        diverged: number of configurations with a score that is not finite.

    Example:
        >>> Selection._fields[:4]
        ('index', 'hparams', 'epoch', 'best')
    """

    index: int  # type: ignore[assignment]  # shadows tuple.index
    hparams: PyTree
    epoch: int
    best: int
    mean: Array
    se: Array
    eligible: Array
    edge: tuple[str, ...]
    diverged: int


class Curve(NamedTuple):
    """Scores along one hyperparameter; at each value the best setting of the others.

    Args:
        name: the hyperparameter.
        x: (L,) its values, increasing.
        mean: (L,) mean validation score; ∞ where everything diverged.
        se: (L,) its standard error.
        train: (L,) mean training score.
        index: (L,) the row of the sweep at each value.

    Example:
        >>> Curve._fields
        ('name', 'x', 'mean', 'se', 'train', 'index')
    """

    name: str
    x: Array
    mean: Array
    se: Array
    train: Array
    index: Array  # type: ignore[assignment]  # shadows tuple.index


class HeatMap(NamedTuple):
    """Scores over two hyperparameters; in each cell the best setting of the others.

    Args:
        names: of the two axes, x and y.
        x: (X,) values of the first, increasing.
        y: (Y,) values of the second, increasing.
        mean: (Y, X) mean validation score; NaN where nothing was tried or everything diverged.
        diverged: (Y, X) bool, cells in which everything that was tried diverged.

    Example:
        >>> HeatMap._fields
        ('names', 'x', 'y', 'mean', 'diverged')
    """

    names: tuple[str, str]
    x: Array
    y: Array
    mean: Array
    diverged: Array


def select(
    result: SweepResult,
    rule: Rule = "min",
    *,
    prefer: Preference = "weight_decay",
    at: str = "last",
) -> Selection:
    """Choose a configuration.

        min          the lowest mean; among equal ones the most regularized
        1se          the most regularized one with mean ≤ min + se(min)
        paired-1se   the most regularized one whose loss to the best, fold by fold, has a mean ≤ its
                     own standard error

    The lowest mean is the best guess for prediction: in ridge regression the one-standard-error
    rule cost three to six times its excess risk. Use 1-SE for simpler, sparser models. The folds
    share most of their training data, so standard errors are rough.

    Args:
        result: of a sweep.
        rule: "min", "1se", "paired-1se", or a function of the scores (C, K), seeds averaged, ∞
            where a configuration diverged, that returns a row.
        prefer: what more regularized means: a name, of which larger is more, or a function of the
            hyperparameters that gives (C,) numbers. The 1-SE rules need it, and never choose less
            than the best configuration has.
        at: "last" judges by the end of training, "best" each configuration by the epoch with its
            lowest mean over folds, which is early stopping without a look at single folds.

    Returns:
        The `Selection`.

    Raises:
        TypeError: `result` is not a SweepResult.
        ValueError: an unknown rule, name or `at`; every configuration diverged; a 1-SE rule with a
            single fold; a function returned no such row, or `prefer` not (C,) numbers.

    Warns:
        UserWarning: the chosen or best value of a hyperparameter is at the edge of what was tried.

    Example:
        >>> val = np.array([[1.0, 1.2], [0.9, 1.1], [1.0, 1.1], [2.0, 2.0]])[:, :, None, None]
        >>> hparams = {"weight_decay": np.array([0.0, 0.1, 1.0, 10.0])}
        >>> result = SweepResult(hparams, val, val, np.array([10]))
        >>> select(result).hparams, select(result, "1se").hparams
        ({'weight_decay': 0.1}, {'weight_decay': 1.0})

    References:
        Breiman, Friedman, Olshen and Stone, *Classification and Regression Trees*, 1984, section
        3.4.3 (1-SE); Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*,
        2009, section 7.10.
    """
    scores, epochs = scores_of(result, at)
    mean = scores.mean(axis=1)
    se = standard_error(scores, result.repeats)
    diverged = int(np.sum(~np.isfinite(mean)))
    converges = "have a configuration that did not diverge"
    got = f"{diverged} of {len(mean)} that did"
    checks.must("result", diverged < len(mean), converges, got, "Lower the learning rates.")
    more = _preference(result.hparams, prefer, len(mean), needed=rule in ("1se", "paired-1se"))
    best = _most(more, mean == mean.min(), mean)
    eligible = _eligible(rule, scores, mean, se, best, result.repeats)
    if callable(rule):
        index = int(np.flatnonzero(eligible)[0])
    else:
        eligible &= more >= more[best]
        index = _most(more, eligible, mean)
    edge = _edges(result.hparams, row(result.hparams, index), row(result.hparams, best))
    if edge:
        warnings.warn(
            f"the choice is at the edge of what was tried for {listed(edge)}: a better value may "
            "lie outside. Widen the grid there.",
            stacklevel=2,
        )
    chosen = row(result.hparams, index)
    epoch = int(epochs[index])
    return Selection(index, chosen, epoch, best, mean, se, eligible, edge, diverged)


def validation_curve(result: SweepResult, name: str, *, at: str = "last") -> Curve:
    """Follow the scores along one hyperparameter, the others at their best for each value.

    Args:
        result: of a sweep.
        name: of the hyperparameter; parts of a nested one are joined by "/".
        at: "last" or "best", as in `select`.

    Returns:
        The `Curve`.

    Raises:
        TypeError: `result` is not a SweepResult.
        ValueError: there is no such hyperparameter, or an unknown `at`.

    Example:
        >>> val = np.array([3.0, 1.0, 2.0])[:, None, None, None]
        >>> result = SweepResult({"weight_decay": np.array([1.0, 0.1, 0.0])}, val, val, [1])
        >>> validation_curve(result, "weight_decay").mean
        array([2., 1., 3.])
    """
    scores, epochs = scores_of(result, at)
    values = _axis(result.hparams, name, "name")
    mean = scores.mean(axis=1)
    x = np.unique(values)
    # the first of the lowest: argmin over the rows that have this value
    index = np.array([min(np.flatnonzero(values == v), key=mean.__getitem__) for v in x])
    se = standard_error(scores, result.repeats)
    train = train_mean(result, epochs)
    return Curve(name, x, mean[index], se[index], train[index], index)


def heatmap(result: SweepResult, x: str, y: str, *, at: str = "last") -> HeatMap:
    """Lay the scores out over two hyperparameters, the others at their best in each cell.

    Args:
        result: of a sweep.
        x: name of the hyperparameter from left to right.
        y: name of the one from bottom to top.
        at: "last" or "best", as in `select`.

    Returns:
        The `HeatMap`.

    Raises:
        TypeError: `result` is not a SweepResult.
        ValueError: there is no such hyperparameter, or an unknown `at`.

    Example:
        >>> hparams = {"a": np.array([0.0, 0.0, 1.0]), "b": np.array([0.0, 1.0, 1.0])}
        >>> val = np.array([1.0, 2.0, np.inf])[:, None, None, None]
        >>> found = heatmap(SweepResult(hparams, val, val, [1]), "a", "b")
        >>> found.mean, found.diverged.sum()
        (array([[ 1., nan],
               [ 2., nan]]), np.int64(1))
    """
    scores, _ = scores_of(result, at)
    across, up = _axis(result.hparams, x, "x"), _axis(result.hparams, y, "y")
    columns, column = np.unique(across, return_inverse=True)
    levels, level = np.unique(up, return_inverse=True)
    lowest = np.full((len(levels), len(columns)), np.inf)
    tried = np.zeros(lowest.shape, bool)
    np.minimum.at(lowest, (level, column), scores.mean(axis=1))
    tried[level, column] = True
    finite = np.isfinite(lowest)
    return HeatMap((x, y), columns, levels, np.where(finite, lowest, np.nan), tried & ~finite)


def _eligible(rule: Rule, scores: Array, mean: Array, se: Array, best: int, repeats: int) -> Array:
    """(C,) bool: the configurations that are as good as the best by this rule."""
    finite = np.isfinite(mean)
    if callable(rule):
        index = rule(scores)
        fits = checks.is_whole(index) and index in np.flatnonzero(finite)
        wanted = f"return a row in [0, {len(mean)}) that did not diverge"
        checks.must("rule", fits, wanted, repr(index))
        return np.asarray(np.arange(len(mean)) == index)
    checks.choice("rule", rule, ("min", "1se", "paired-1se"))
    if rule == "min":
        return np.asarray(mean == mean[best])
    has_error = scores.shape[1] > 1
    wanted = "be 'min' with a single fold, which has no standard error"
    checks.must("rule", has_error, wanted, repr(rule), "Use kfold.")
    if rule == "1se":
        return np.asarray(mean <= mean[best] + se[best])
    loss = np.where(finite[:, None], scores, np.inf) - scores[best]
    return np.asarray(finite & (loss.mean(axis=1) <= standard_error(loss, repeats)))


def _preference(hparams: PyTree, prefer: Preference, count: int, needed: bool) -> Array:
    """(C,) numbers, larger where more regularized; all equal if that is unknown."""
    if callable(prefer):
        more = np.asarray(prefer(hparams), np.float64)
        fits = more.shape == (count,) and not np.isnan(more).any()
        got = f"shape {more.shape}, {np.isnan(more).sum()} of them NaN"
        checks.must("prefer", fits, f"give a number for each of {count} configurations", got)
        return more
    if prefer == "weight_decay" and prefer not in columns(hparams) and not needed:
        return np.zeros(count)
    return np.asarray(_axis(hparams, prefer, "prefer"), np.float64)


def _most(more: Array, among: Array, mean: Array) -> int:
    """The most regularized one, then the lowest mean, then the first."""
    rows = np.flatnonzero(among)
    return int(min(rows, key=lambda i: (-more[i], mean[i], i)))


def _edges(tried: PyTree, *chosen: PyTree) -> tuple[str, ...]:
    names = []
    of_each = zip(*(jax.tree.leaves(one) for one in chosen), strict=True)
    for (name, values), own in zip(columns(tried).items(), of_each, strict=True):
        if values.ndim != 1 or values.dtype == bool or values.min() == values.max():
            continue
        # a smallest value of 0 is not an edge: nothing is below it
        ends = {float(values.min())} - {0.0} | {float(values.max())}
        if ends & {float(value) for value in own}:
            names.append(name)
    return tuple(names)


def _axis(hparams: PyTree, name: str, argument: str) -> Array:
    leaves = columns(hparams)
    names = [repr(path) for path, leaf in leaves.items() if leaf.ndim == 1]
    rule = f"be a hyperparameter with one number for each configuration, of {listed(names)}"
    checks.must(argument, repr(name) in names, rule, repr(name))
    return leaves[name]
