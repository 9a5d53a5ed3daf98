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


def peers(x: Any, y: Any) -> dict[str, Callable[[], float]]:
    """The same search by packages that hold all rows, timed at every 20th λ.

    himalaya is not among them: it makes a matrix of held-out by training rows for every λ.
    """
    ridge, grid = linear_model.Ridge(), {"alpha": LAMS[::20]}
    options = {"cv": KFold(FOLDS), "refit": False, "scoring": "neg_mean_squared_error"}
    found = {"sklearn": scaled(lambda: GridSearchCV(ridge, grid, **options).fit(x, y), 20)}
    if installed("dask_ml"):
        from dask_ml.model_selection import GridSearchCV as Dask

        found["dask-ml"] = scaled(lambda: Dask(ridge, grid, **options).fit(x, y), 20)
    return found


@in_float64
def bench_stream(repeats: int, smoke: bool) -> list[Figure]:
    """Five folds over 60 λ on data that fit for both, and two million rows that need not."""
    rows, p, t = (200, 6, 3) if smoke else (50_000, 512, 100)
    parts = list(batches(rows, p, t, rows // 5))
    x, y = (np.concatenate([part[name] for part in parts]) for name in ("x", "y"))

    def ours() -> Any:
        total = linear.total_statistics(iter(parts))
        return linear.ridge_cv(total, lams=LAMS, method="folds")

    name = f"stream, {rows:,}x{p}, {t} targets, 5 folds, 60 λ, against "
    goals, few = {} if smoke else {"sklearn": 5.0}, max(1, repeats // 5)
    figures = [
        against(name + peer, ours, theirs, repeats=few, goal=goals.get(peer))
        for peer, theirs in peers(x, y).items()
    ]
    rows = 2_000 if smoke else 2_000_000
    seconds, gigabytes, _ = alone(_ALONE.format(rows=rows, p=p, t=t))
    name = f"stream, {rows:,}x{p}, {t} targets: GB at most"
    ratio = (gigabytes / MOST_GIGABYTES,) * 3
    goal, readings = f"<= {MOST_GIGABYTES:g} GB", {"gigabytes": gigabytes}
    met = gigabytes <= MOST_GIGABYTES
    return [*figures, Figure(name, 1e3 * seconds, float("nan"), ratio, goal, met, readings)]
