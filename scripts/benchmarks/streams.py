"""Ridge regression on a stream of batches: its time against other packages, and its memory."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn import linear_model
from sklearn.model_selection import GridSearchCV, KFold

import wdjax.linear as linear
from benchmarks.linear_models import in_float64
from benchmarks.timing import Figure, against, alone, installed, scaled

MOST_GIGABYTES = 2.0
FOLDS, LAMS = 5, np.geomspace(1, 1e6, 60)

_ALONE = """
import json, resource, time
from benchmarks import streams
begin = time.perf_counter()
lam = streams.of_batches({rows}, {p}, {t})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([time.perf_counter() - begin, peak / 2**20, float(lam)]))
"""


def batches(rows: int, p: int, t: int, size: int = 10_000) -> Iterator[dict[str, Any]]:
    """Features of a network and the targets of a linear probe, in float32, never all at once."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(p, t)).astype(np.float32)
    for _ in range(0, rows, size):
        x = rng.normal(size=(min(size, rows), p)).astype(np.float32)
        y = x @ w + 100 * rng.normal(size=(len(x), t)).astype(np.float32)
        yield {"x": x, "y": y, "fold": rng.integers(FOLDS, size=len(x)), "folds": FOLDS}


def of_batches(rows: int, p: int, t: int) -> Any:
    """Choose λ by five folds, in one pass."""
    total = linear.total_statistics(batches(rows, p, t))
    return linear.ridge_cv(total, lams=LAMS, method="folds").lam


def held(rows: int, p: int, t: int) -> dict[str, Any]:
    """The same data in memory, once."""
    x, y = np.empty((rows, p), np.float32), np.empty((rows, t), np.float32)
    fold, start = np.empty(rows, np.int64), 0
    for part in batches(rows, p, t):
        here = slice(start, start + len(part["x"]))
        x[here], y[here], fold[here], start = part["x"], part["y"], part["fold"], here.stop
    return {"x": x, "y": y, "fold": fold}


def peers(x: Any, y: Any, every: int) -> dict[str, Callable[[], float]]:
    """The same search by packages that hold all rows, timed at every so many λ.

    himalaya is not among them: it makes a matrix of held-out by training rows for every λ.
    """
    ridge, grid = linear_model.Ridge(), {"alpha": LAMS[::every]}
    options = {"cv": KFold(FOLDS), "refit": False, "scoring": "neg_mean_squared_error"}
    found = {"sklearn": scaled(lambda: GridSearchCV(ridge, grid, **options).fit(x, y), every)}
    if installed("dask_ml"):
        from dask_ml.model_selection import GridSearchCV as Dask

        found["dask-ml"] = scaled(lambda: Dask(ridge, grid, **options).fit(x, y), every)
    return found


def in_memory(
    rows: int, p: int, t: int, *, every: int, repeats: int, goals: dict[str, float | None]
) -> list[Figure]:
    """The search by sums against that of the named peers, on rows that they can hold."""
    data = held(rows, p, t)

    def parts() -> Iterator[dict[str, Any]]:
        for start in range(0, rows, 10_000):
            part = {name: column[start : start + 10_000] for name, column in data.items()}
            yield {**part, "folds": FOLDS}

    def ours() -> Any:
        return linear.ridge_cv(linear.total_statistics(parts()), lams=LAMS, method="folds").lam

    name = f"stream, {rows:,}x{p}, {t} targets, 5 folds, 60 λ, against "
    return [
        against(name + peer, ours, theirs, repeats=repeats, goal=goals[peer])
        for peer, theirs in peers(data["x"], data["y"], every).items()
        if peer in goals
    ]


@in_float64
def bench_stream(repeats: int, smoke: bool) -> list[Figure]:
    """Five folds over 60 λ on data that fit for both, and two million rows that need not.

    scikit-learn copies the rows of each training set: two million take 13.3 GB in all.
    """
    p, t, few = (6, 3, 1) if smoke else (512, 100, max(1, repeats // 5))
    small, large = (200, 400) if smoke else (50_000, 2_000_000)
    goals: dict[str, float | None] = {"sklearn": None if smoke else 5.0}
    figures = in_memory(small, p, t, every=20, repeats=few, goals={**goals, "dask-ml": None})
    figures += in_memory(large, p, t, every=60, repeats=1, goals=goals)
    rows = 2_000 if smoke else 2_000_000
    seconds, gigabytes, _ = alone(_ALONE.format(rows=rows, p=p, t=t))
    name = f"stream, {rows:,}x{p}, {t} targets: GB at most"
    ratio = (gigabytes / MOST_GIGABYTES,) * 3
    goal, readings = f"<= {MOST_GIGABYTES:g} GB", {"gigabytes": gigabytes}
    met = gigabytes <= MOST_GIGABYTES
    return [*figures, Figure(name, 1e3 * seconds, float("nan"), ratio, goal, met, readings)]
