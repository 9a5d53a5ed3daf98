"""What a sweep found: scores, and the table of its configurations."""

from typing import Any, NamedTuple

import numpy as np

from wdjax._trees import PyTree, checks, html
from wdjax.sweeps._grids import columns

Array = np.ndarray[Any, Any]

_TITLES = {"mean": "validation", "se": "± se", "train": "training", "diverged": "diverged runs"}


class SweepResult(NamedTuple):
    """Scores of C configurations, K folds, S seeds at R points of time; lower is better.

    Args:
        hparams: what was swept, a pytree of arrays with C rows.
        val: (C, K, S, R), the metric on the validation part.
        train: (C, K, S, R), the metric on the training part.
        epochs: (R,) integers, the epochs after which it was measured.
        params: (C, K, S, ...) the last parameters, or None if they were not kept.
        repeats: how often each example validates; folds of different repeats overlap.

    Example:
        >>> val = np.array([[0.5, 0.7], [np.nan, 0.6]])[:, :, None, None]
        >>> result = SweepResult({"weight_decay": np.array([0.0, 0.1])}, val, val, np.array([10]))
        >>> result.finite[..., 0]
        array([[ True,  True],
               [False,  True]])
    """

    hparams: PyTree
    val: Array
    train: Array
    epochs: Array
    params: PyTree = None
    repeats: int = 1

    def _repr_html_(self) -> str:
        """Return the table of the configurations for notebooks, the best first."""
        rows = table(self)
        names = list(rows[0])
        count, folds, seeds = self.val.shape[:3]
        return html.table(
            [_TITLES.get(name, name) for name in names],
            [[_cell(row[name]) for name in names] for row in rows],
            above=[
                f"configurations: {count}, folds: {folds}, seeds: {seeds}; the best first, "
                "lower is better"
            ],
            below=[("!", text) for text in _diverged(rows)],
        )

    @property
    def finite(self) -> Array:
        """(C, K, S) whether a run's scores are all finite: it has not diverged."""
        scores = np.isfinite(self.val) & np.isfinite(self.train)
        return np.asarray(scores.all(axis=-1))


def table(result: SweepResult, *, at: str = "last") -> list[dict[str, Any]]:
    """List all configurations, the best first.

    Args:
        result: of a sweep.
        at: "last" or "best", as in `select`.

    Returns:
        A dict for each configuration: its hyperparameters by name, `mean`, `se` and `train` (mean
        scores), `epoch`, and `diverged`, the number of its runs that are not finite.

    Raises:
        ValueError: an unknown `at`.

    Example:
        >>> val = np.array([2.0, 1.0])[:, None, None, None]
        >>> rows = table(SweepResult({"weight_decay": np.array([0.0, 0.1])}, val, val, [5]))
        >>> rows[0]["weight_decay"], rows[0]["mean"], rows[0]["epoch"]
        (0.1, 1.0, 5)
    """
    scores, epochs = scores_of(result, at)
    mean, se = scores.mean(axis=1), standard_error(scores, result.repeats)
    train = train_mean(result, epochs)
    diverged = (~result.finite).sum(axis=(1, 2))
    names = columns(result.hparams)
    return [
        {name: values[i].tolist() for name, values in names.items()}
        | {"mean": float(mean[i]), "se": float(se[i]), "train": float(train[i])}
        | {"epoch": int(epochs[i]), "diverged": int(diverged[i])}
        for i in np.argsort(mean, kind="stable")
    ]


def scores_of(result: Any, at: str) -> tuple[Array, Array]:
    """(C, K) validation scores, ∞ in every fold of what diverged, and (C,) epochs of judgement."""
    checks.record("result", result, SweepResult, "It comes from sweep.")
    checks.choice("at", at, ("last", "best"))
    val = np.asarray(result.val, np.float64).mean(axis=2)
    val = np.where(np.isfinite(val).all(axis=1, keepdims=True), val, np.inf)
    last = np.full(len(val), val.shape[2] - 1)
    when = last if at == "last" else val.mean(axis=1).argmin(axis=1)
    return np.take_along_axis(val, when[:, None, None], 2)[..., 0], np.asarray(result.epochs)[when]


def train_mean(result: SweepResult, epochs: Array) -> Array:
    when = np.searchsorted(np.asarray(result.epochs), epochs)
    train = np.asarray(result.train, np.float64).mean(axis=(1, 2))
    return np.take_along_axis(train, when[:, None], 1)[:, 0]


def standard_error(scores: Array, repeats: int) -> Array:
    """Error sd / √K over the last axis; repeats count as one, for they are not new data."""
    count = scores.shape[-1]
    if count < 2:
        return np.full(scores.shape[:-1], np.nan)
    finite: Array = np.asarray(np.isfinite(scores).all(axis=-1))
    sd = np.where(finite[..., None], scores, 0.0).std(axis=-1, ddof=1)
    return np.where(finite, sd / np.sqrt(count / repeats), np.nan)


# HTML.


def _cell(value: Any) -> html.Cell:
    if isinstance(value, bool | str | list):
        return str(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value), value


def _diverged(rows: list[dict[str, Any]]) -> list[str]:
    """Say that some never win."""
    count = sum(row["diverged"] > 0 for row in rows)
    return [f"{count} with runs that are not finite; these never win"] if count else []
