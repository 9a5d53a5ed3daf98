"""Exact linear models against scikit-learn, himalaya, celer and jaxopt.

Times in float64 unless said; "cold" includes tracing and compilation. Both sides do the same work:
same grid, same tolerance, same folds.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets, linear_model
from sklearn.model_selection import GridSearchCV, KFold

import wdjax.linear as linear
from benchmarks.timing import Figure, against, installed, paired, scaled
from wdjax.folds import Folds

Bench = Callable[[int, bool], list[Figure]]


def in_float64(bench: Bench) -> Bench:
    """Run a benchmark in float64; the peers warn about convergence in float32."""

    @functools.wraps(bench)
    def run(repeats: int, smoke: bool) -> list[Figure]:
        with jax.enable_x64(True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bench(repeats, smoke)

    return run


def correlated(n: int, p: int, rho: float, nonzero: int = 50) -> tuple[Any, Any]:
    """Features in an AR(1) chain, a sparse signal, a third of its deviation as noise; centered."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, p))
    for j in range(1, p):
        x[:, j] = rho * x[:, j - 1] + np.sqrt(1 - rho**2) * x[:, j]
    w = np.zeros(p)
    w[rng.choice(p, min(nonzero, p), replace=False)] = rng.normal(size=min(nonzero, p))
    y = x @ w
    y += rng.normal(size=n) * y.std() / 3
    return x - x.mean(axis=0), y - y.mean()


def ridge_problems(smoke: bool) -> dict[str, tuple[Any, Any]]:
    """Data of four shapes."""
    digits = datasets.load_digits()
    problems = {
        "diabetes 442x10": datasets.load_diabetes(return_X_y=True),
        "digits 1797x64, 10 targets": (digits.data / 16, np.eye(10)[digits.target]),
    }
    sizes = [(40, 10), (10, 40)] if smoke else [(2000, 500), (500, 5000)]
    return problems | {f"{n}x{p}": correlated(n, p, 0.5) for n, p in sizes}


def cold(program: Callable[[], Any]) -> Callable[[], Any]:
    """The same, traced and compiled again."""

    def run() -> Any:
        linear._models._ridge_cv.clear_cache()
        linear._models._enet_path.clear_cache()
        return program()

    return run


@in_float64
def bench_ridge(repeats: int, smoke: bool) -> list[Figure]:
    """LOO over 100 λ and the fit, against RidgeCV."""
    lams = np.logspace(-2, 5, 100)
    figures = []
    for name, (x, y) in ridge_problems(smoke).items():
        # rule B023: bound now
        ours = lambda x=x, y=y: linear.ridge_cv(x, y, lams)
        theirs = lambda x=x, y=y: linear_model.RidgeCV(lams).fit(x, y)
        figures.append(paired(f"LOO, {name}", ours, theirs, repeats=repeats, goal=1.2, faster=True))
        few = max(1, repeats // 5)
        figures.append(
            paired(f"LOO cold, {name}", cold(ours), theirs, repeats=few, goal=None, faster=True)
        )
    return figures


@in_float64
def bench_folds(repeats: int, smoke: bool) -> list[Figure]:
    """Five folds over 100 λ and the fit, against GridSearchCV(Ridge)."""
    lams = np.logspace(-2, 5, 4 if smoke else 100)
    figures = []
    for name, (x, y) in ridge_problems(smoke).items():
        splitter = KFold(5, shuffle=True, random_state=0)
        folds = Folds.from_sklearn(splitter, x)
        search = GridSearchCV(
            linear_model.Ridge(), {"alpha": lams}, cv=splitter, scoring="neg_mean_squared_error"
        )
        ours = lambda x=x, y=y, folds=folds: linear.ridge_cv(x, y, lams, method=folds)
        theirs = lambda x=x, y=y, search=search: search.fit(x, y)
        few = 1 if x.size > 200_000 else max(1, repeats // 5)
        figures += [
            paired(f"5 folds, {name}", ours, theirs, repeats=few, goal=60, faster=True),
            paired(f"5 folds cold, {name}", cold(ours), theirs, repeats=few, goal=2, faster=True),
        ]
        few = max(1, repeats // 5)
        theirs = lambda x=x, y=y, folds=folds: folds_by_hand(x, y, lams, folds)
        by_hand = f"5 folds cold, {name}, against a program by hand"
        figures.append(paired(by_hand, cold(ours), theirs, repeats=few, goal=1.15))
        if installed("himalaya"):
            theirs = lambda x=x, y=y, cv=splitter: himalaya_folds(x, y, lams, cv)
            name = f"5 folds, {name}, against himalaya"
            figures.append(paired(name, ours, theirs, repeats=few, goal=50, faster=True))
    return figures


def folds_by_hand(x: Any, y: Any, lams: np.ndarray, folds: Folds) -> Any:
    """Folds, λ and the last fit in one JAX program of its own, and nothing else: cold."""
    train, val = (
        np.stack([np.isin(np.arange(len(x)), rows) for rows in part]).astype(x.dtype)
        for part in (folds.train, folds.val)
    )
    y = y.reshape(len(x), -1)

    def fit(x: Any, y: Any, weights: Any) -> Any:
        """Slopes (L, p, t) and the means of the rows that are weighed."""
        means = tuple(weights @ z / jnp.sum(weights) for z in (x, y))
        x, y = ((z - m) * weights[:, None] for z, m in zip((x, y), means, strict=True))
        wide = x.shape[0] < x.shape[1]
        values, vectors = jnp.linalg.eigh(x @ x.T if wide else x.T @ x)
        shares = 1 / (jnp.maximum(values, 0) + lams[:, None])
        turned = vectors.T @ (y if wide else x.T @ y)
        slopes = jnp.einsum("ij,lj,jt->lit", vectors, shares, turned)
        return (jnp.einsum("ip,lit->lpt", x, slopes) if wide else slopes), *means

    @jax.jit
    def everything(x: Any, y: Any, train: Any, val: Any) -> Any:
        def score(parts: Any) -> Any:
            slopes, x_mean, y_mean = fit(x, y, parts[0])
            errors = y - y_mean - jnp.einsum("ip,lpt->lit", x - x_mean, slopes)
            return jnp.einsum("i,lit->l", parts[1], errors**2) / jnp.sum(parts[1]) / y.shape[1]

        scores = jax.lax.map(score, (train, val))
        slopes, *means = fit(x, y, jnp.ones(len(x), x.dtype))
        best = jnp.argmin(jnp.mean(scores, axis=0))
        return scores, best, slopes[best], means

    return jax.block_until_ready(everything(x, y, train, val))


def himalaya_folds(x: Any, y: Any, lams: Any, splitter: Any) -> Any:
    """Himalaya's ridge with cross-validation."""
    from himalaya.ridge import solve_ridge_cv_svd

    y = y if y.ndim == 2 else y[:, None]
    return solve_ridge_cv_svd(x, y, alphas=lams, cv=splitter, fit_intercept=True, warn=False)


@in_float64
def bench_groups(repeats: int, smoke: bool) -> list[Figure]:
    """A λ for each of four groups of features, against himalaya's random search of 40 draws."""
    if not installed("himalaya"):
        return []
    from himalaya.ridge import solve_group_ridge_random_search

    n, size = (40, 10) if smoke else (400, 200)
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(2 * n, 4 * size)), np.repeat(np.arange(4), size)
    w = rng.normal(size=4 * size) * np.array([1.0, 0.3, 0.05, 0.0])[groups]
    y = x @ w + rng.normal(size=2 * n) * np.sqrt(w @ w)
    blocks = [x[:n, groups == g] for g in range(4)]

    def ours() -> Any:
        return linear.group_ridge(x[:n], y[:n], groups).coef

    def theirs(draws: int = 4) -> Any:
        return solve_group_ridge_random_search(
            blocks, y[:n, None], n_iter=draws, alphas=np.logspace(-2, 5, 20), cv=5,
            return_weights=True, random_state=0, progress_bar=False, warn=False,
        )[1]  # fmt: skip

    def explained(coef: Any) -> float:
        return 1 - float(np.mean((y[n:] - x[n:] @ np.ravel(coef)) ** 2) / y[n:].var())

    quality = explained(ours()), explained(theirs(4 if smoke else 40))
    name = f"4 groups, {n}x{4 * size}, R² {quality[0]:.2f}; himalaya, 40 draws, {quality[1]:.2f}"
    few = max(1, repeats // 5)
    return [against(name, ours, scaled(theirs, 10), repeats=few, goal=None if smoke else 20)]


@in_float64
def bench_jaxopt(repeats: int, smoke: bool) -> list[Figure]:
    """The lasso at 10 λ, each from the last, against jaxopt's proximal gradient; both compiled."""
    if not installed("jaxopt"):
        return []
    import jaxopt

    n, p = (20, 40) if smoke else (1000, 5000)
    x, y = correlated(n, p, 0.5)
    lams = np.abs(x.T @ y).max() * np.logspace(-0.1, -1, 10)
    data = jax.numpy.asarray(x), jax.numpy.asarray(y)
    solver = jaxopt.ProximalGradient(
        lambda w, data: jax.numpy.sum((data[0] @ w - data[1]) ** 2) / 2,
        prox=jaxopt.prox.prox_lasso, tol=1e-3, maxiter=1000,
    )  # fmt: skip

    @jax.jit
    def theirs() -> Any:
        def step(w: Any, lam: Any) -> Any:
            w = solver.run(w, hyperparams_prox=lam, data=data).params
            return w, w

        return jax.lax.scan(step, jax.numpy.zeros(p), jax.numpy.asarray(lams))[1]

    ours = lambda: linear.lasso_path(*data, lams, intercept=False)
    few, goal = max(1, repeats // 5), None if smoke else 5
    name = f"lasso {n}x{p}, 10 λ, against jaxopt"
    return [paired(name, ours, theirs, repeats=few, goal=goal, faster=True)]


@in_float64
def bench_lasso(repeats: int, smoke: bool) -> list[Figure]:
    """The lasso path over 100 λ at tolerance 1e-4, against scikit-learn's and celer's."""
    try:
        import celer
    except ImportError:
        celer = None
    shapes = [(60, 10, 0.9, 1e-3), (20, 100, 0.5, 1e-2)]
    if not smoke:
        shapes = [(5000, 200, 0.9, 1e-3), (1000, 5000, 0.5, 1e-2), (500, 20_000, 0.5, 1e-2)]
    figures = []
    for n, p, rho, lowest in shapes:
        for dtype in ("float64", "float32"):
            x, y = (a.astype(dtype) for a in correlated(n, p, rho))
            lams = np.abs(x.T @ y).max() * np.logspace(0, np.log10(lowest), 100).astype(dtype)
            columns, device = np.asfortranarray(x), (jax.numpy.asarray(x), jax.numpy.asarray(y))
            ours = lambda device=device, lams=lams: linear.lasso_path(
                *device, lams, intercept=False
            )
            assert smoke or ours().converged.all()
            theirs = lambda x=columns, y=y, lams=lams, n=n: linear_model.lasso_path(
                x, y, alphas=lams / n, tol=1e-4
            )
            name = f"lasso {n}x{p} {dtype}, against"
            few = max(3, repeats // 3)
            goal = 5.0 if n > p else 0.9
            figures.append(paired(f"{name} scikit-learn", ours, theirs, repeats=few, goal=goal))
            if celer is not None:
                theirs = lambda x=columns, y=y, lams=lams, n=n: celer.celer_path(
                    x, y, "lasso", alphas=lams / n, tol=1e-4
                )
                goal = 1.5 if p >= 5 * n else None
                figures.append(paired(f"{name} celer", ours, theirs, repeats=few, goal=goal))
            figures.append(paired(f"{name} itself cold", ours, cold(ours), repeats=1, goal=None))
    return figures
