"""Exact linear models: against scikit-learn, brute force in NumPy, and optimality conditions."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import (
    ElasticNet,
    Lasso,
    LinearRegression,
    Ridge,
    RidgeCV,
    enet_path,
    lasso_path,
)
from sklearn.model_selection import GridSearchCV, KFold, TimeSeriesSplit

from wdjax import linear
from wdjax.folds import Folds, kfold, time_folds
from wdjax.linear import _data, _lasso, _ridge

LAMS = np.logspace(-2, 4, 7)
SHAPES = {"tall": (40, 6), "square": (20, 18), "wide": (15, 40), "one feature": (12, 1)}
# Every shape with an intercept, the two forms of the solution also without.
models = pytest.mark.parametrize(
    ("shape", "intercept"),
    [(shape, True) for shape in SHAPES.values()]
    + [(SHAPES[name], False) for name in ("tall", "wide")],
    ids=[*SHAPES, "tall, no intercept", "wide, no intercept"],
)


def problem(n, p, targets=None, seed=0, shift=3.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p)) + shift
    size = (p,) if targets is None else (p, targets)
    signal = x @ rng.normal(size=size)
    return x, signal + rng.normal(size=signal.shape) * 2 + 5


def some_weights(n, seed=1):
    weights = np.random.default_rng(seed).uniform(0.2, 3.0, size=n)
    weights[[1, 4]] = 0.0
    return weights


def without_means(x, y, weights=None, intercept=True):
    """√s (X − x̄), √s (y − ȳ) and √s of the examples with s > 0, and both means."""
    weights = np.ones(len(x)) if weights is None else weights
    x, y, s = (a[weights > 0] for a in (x, y, weights))
    means = [intercept * (s @ a) / s.sum() for a in (x, y)]
    root = np.sqrt(s)
    return (x - means[0]) * root[:, None], ((y - means[1]).T * root).T, root, *means


def solved(x, y, lam, **options):
    """w and b by the normal equations, with one λ or one for every feature."""
    a, b, _, mean_x, mean_y = without_means(x, y, **options)
    w = np.linalg.solve(a.T @ a + np.diag(np.broadcast_to(lam, a.shape[1])), a.T @ b)
    return w, mean_y - mean_x @ w


def plain(function):
    return function


# Of the same function: float64 inside where values are at hand, and float32 where they are traced.
precisions = pytest.mark.parametrize("run", [plain, jax.jit], ids=["at hand", "traced"])

X, Y = problem(10, 3)


# Ridge along a path


@pytest.mark.usefixtures("x64")
@models
@pytest.mark.first_is_quick
def test_ridge_path_is_scikit_learns_ridge_and_its_degrees_of_freedom_a_trace(shape, intercept):
    x, y = problem(*shape, targets=2)
    for weights in (None, some_weights(len(x))):
        path = jax.device_get(linear.ridge_path(x, y, LAMS, intercept=intercept, weights=weights))
        a = without_means(x, y, weights, intercept)[0]
        for i, lam in enumerate(LAMS):
            theirs = Ridge(alpha=lam, fit_intercept=intercept).fit(x, y, weights)
            np.testing.assert_allclose(path.coef[i], theirs.coef_.T, rtol=1e-10, atol=1e-10)
            np.testing.assert_allclose(path.intercept[i], theirs.intercept_, rtol=1e-10, atol=1e-10)
            hat = np.linalg.solve(a.T @ a + lam * np.eye(shape[1]), a.T) @ a
            np.testing.assert_allclose(path.df[i], np.trace(hat), rtol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [SHAPES["tall"], SHAPES["wide"]])
def test_at_lambda_zero_ridge_is_least_squares_of_smallest_norm(shape):
    x, y = problem(shape[0], shape[1] - 1, targets=2)
    x = np.hstack([x, x[:, :1]])  # a column twice: not unique even where n > p
    path = jax.device_get(linear.ridge_path(x, y, 0 * LAMS))
    expected = np.linalg.pinv(x - x.mean(axis=0)) @ (y - y.mean(axis=0))
    np.testing.assert_allclose(path.coef[0], expected, rtol=1e-8, atol=1e-8)


def test_one_target_drops_its_axis_everywhere():
    one, many = (jax.eval_shape(linear.ridge_path, X, y, LAMS) for y in (Y, Y[:, None]))
    assert one.coef.shape == (7, 3)
    assert one.intercept.shape == one.df.shape == many.df.shape == (7,)
    assert many.coef.shape == (7, 3, 1)
    assert many.intercept.shape == (7, 1)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "intercept"), [((40, 6), True), ((15, 40), True), ((15, 40), False)]
)
def test_groups_solve_with_a_lambda_for_every_feature(shape, intercept):
    x, y = problem(*shape, targets=2)
    groups = np.arange(shape[1]) % 3
    lams = np.array([[0.1, 1.0, 10.0], [5.0, 5.0, 5.0]])
    path = jax.device_get(linear.ridge_path(x, y, lams, groups=groups, intercept=intercept))
    a = without_means(x, y, intercept=intercept)[0]
    for i, lam in enumerate(lams[:, groups]):
        coef, _ = solved(x, y, lam, intercept=intercept)
        np.testing.assert_allclose(path.coef[i], coef, rtol=1e-9, atol=1e-10)
        df = np.trace(np.linalg.solve(a.T @ a + np.diag(lam), a.T @ a))
        np.testing.assert_allclose(path.df[i], df, rtol=1e-9)


def path_of(x, y):
    return linear.ridge_path(x, y, [0.0, 1e-6, 1.0]).coef


def choice_of(x, y):
    return linear.ridge_cv(x, y, [1e-6, 1e-5], per_target=True).coef


@pytest.mark.parametrize("shape", [(50, 10), (8, 20)])
@precisions
@pytest.mark.first_is_quick
def test_a_constant_column_gets_exactly_nothing(shape, run):
    path_of_it, choice_of_it = run(path_of), run(choice_of)
    for seed in range(8):  # whether eigenvectors mix is a matter of luck
        x, y = problem(*shape, seed=seed)
        x[:, 2] = 1e4 / 3
        x, y = x.astype(np.float32), y.astype(np.float32)
        coef = np.asarray(path_of_it(x, y))
        assert np.all(coef[:, 2] == 0)
        assert np.isfinite(coef).all()
        assert np.all(np.asarray(choice_of_it(x, np.stack([y, -y], axis=1)))[2] == 0)


# The choice of λ


def brute_loo(x, y, weights, lam, intercept):
    """Fit once for each example left out."""
    errors = []
    for i in np.flatnonzero(weights):
        s = np.where(np.arange(len(x)) == i, 0, weights)
        w, b = solved(x, y, lam, weights=s, intercept=intercept)
        errors.append(weights[i] * (y[i] - x[i] @ w - b) ** 2)
    return np.sum(errors) / weights.sum()


def gcv(x, y, weights, lam, intercept):
    """The mean leverage in place of each."""
    a, b, *_ = without_means(x, y, weights, intercept)
    hat = a @ np.linalg.solve(a.T @ a + lam * np.eye(a.shape[1]), a.T)
    slack = len(a) - intercept - np.trace(hat)
    return np.mean((b - hat @ b) ** 2) / (slack / len(a)) ** 2


def evidence(x, y, weights, lam, intercept):
    """−log density of y under the prior, σ² at its maximum; constants are left out of ours."""
    x, y, root, *_ = without_means(x, y, weights, intercept=False)
    n = len(x)
    basis = np.linalg.svd(root[:, None])[0][:, 1:] if intercept else np.eye(n)  # contrasts
    target, a = basis.T @ y, basis.T @ x
    cov = np.eye(basis.shape[1]) + a @ a.T / lam
    variance = target @ np.linalg.solve(cov, target) / len(target)
    return -multivariate_normal(cov=variance * cov).logpdf(target)


CRITERIA = {"loo": brute_loo, "gcv": gcv, "evidence": evidence}


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("method", "form", "intercept"),
    [
        *[("loo", form, True) for form in SHAPES],
        ("loo", "wide", False),
        ("gcv", "tall", True),
        ("gcv", "wide", False),
        ("evidence", "tall", False),
        ("evidence", "wide", True),
    ],
)
def test_every_criterion_is_its_formula_and_a_weight_of_zero_an_absent_example(
    method, form, intercept
):
    x, y = problem(*SHAPES[form])
    for weights in (np.ones(len(x)), some_weights(len(x))):
        chosen = linear.ridge_cv(x, y, LAMS, method=method, intercept=intercept, weights=weights)
        want = np.array([CRITERIA[method](x, y, weights, lam, intercept) for lam in LAMS])
        score = np.asarray(chosen.score)
        if method == "evidence":
            score, want = score - score[0], want - want[0]
        np.testing.assert_allclose(score, want, rtol=1e-9 if method == "evidence" else 1e-10)
        assert chosen.lam == LAMS[np.argmin(want)]
        coef, _ = solved(x, y, float(chosen.lam), weights=weights, intercept=intercept)
        np.testing.assert_allclose(chosen.coef, coef, rtol=1e-9, atol=1e-10)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("per_target", [False, True])
@pytest.mark.parametrize("shape", [(60, 8), (25, 80)])
@pytest.mark.first_is_quick
def test_loo_is_scikit_learns_ridge_cv_for_all_targets_or_each(shape, per_target):
    x, y = problem(*shape, targets=3)
    y[:, 1] = np.random.default_rng(5).normal(size=len(y))
    theirs = RidgeCV(LAMS, alpha_per_target=per_target, store_cv_results=True).fit(x, y)
    ours = linear.ridge_cv(x, y, LAMS, per_target=per_target)
    score = theirs.cv_results_.mean(axis=0).T
    score = score if per_target else score.mean(axis=1)
    np.testing.assert_allclose(ours.score, score, rtol=1e-10)
    np.testing.assert_array_equal(ours.lam, theirs.alpha_)
    assert len({*np.atleast_1d(theirs.alpha_)}) == 1 + per_target
    np.testing.assert_allclose(ours.coef, theirs.coef_.T, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-10)


def textbook_loo(x, y, lams):
    """(y − ŷ) / (1 − h) with both differences formed, in the precision of x."""
    x, y = x - x.mean(axis=0), y - y.mean()
    d, u = np.linalg.eigh(x @ x.T)
    scores = []
    for lam in lams:
        hat = (u * (d / (d + lam))) @ u.T + np.float32(1 / len(x))
        scores.append(np.mean(((y - hat @ y) / (1 - np.diag(hat))) ** 2))
    return np.array(scores)


@precisions
@pytest.mark.first_is_quick
def test_in_float32_with_p_above_n_loo_is_right_where_the_textbook_is_not(run):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 600)) * np.linspace(3, 0.1, 600)
    y = x @ rng.normal(size=600) * 0.05 + rng.normal(size=60) * 3
    lams = np.logspace(-4, 5, 30)
    truth = RidgeCV(lams, store_cv_results=True).fit(x, y)
    expected = truth.cv_results_.mean(axis=0)
    x32, y32, lams32 = (a.astype(np.float32) for a in (x, y, lams))
    ours = run(linear.ridge_cv)(x32, y32, lams32)
    assert ours.score.dtype == jnp.float32
    np.testing.assert_allclose(ours.score, expected, rtol=1e-4)
    np.testing.assert_allclose(ours.lam, truth.alpha_, rtol=1e-6)
    textbook = textbook_loo(x32, y32, lams32)
    assert np.max(np.abs(textbook / expected - 1)) > 0.1
    assert not np.isclose(lams[np.nanargmin(textbook)], truth.alpha_)


@pytest.mark.parametrize("shape", [(80, 60), (61, 60)])  # of the two forms
@precisions
@pytest.mark.first_is_quick
def test_in_float32_loo_is_right_where_n_is_little_above_p(shape, run):
    x, y = problem(*shape, shift=0.0)
    lams = np.logspace(-1, 4, 12)
    truth = RidgeCV(lams, store_cv_results=True).fit(x, y).cv_results_.mean(axis=0)
    ours = run(linear.ridge_cv)(x.astype(np.float32), y.astype(np.float32), lams)
    np.testing.assert_allclose(ours.score, truth, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "splitter", "intercept"),
    [
        ((53, 5), KFold(5, shuffle=True, random_state=0), True),
        ((53, 5), TimeSeriesSplit(3), False),
        ((31, 60), TimeSeriesSplit(3), True),
        ((31, 60), KFold(5, shuffle=True, random_state=0), False),
    ],
)
def test_folds_are_scikit_learns_grid_search(shape, splitter, intercept):
    x, y = problem(*shape, targets=2)
    search = GridSearchCV(
        Ridge(fit_intercept=intercept),
        {"alpha": LAMS},
        cv=splitter,
        scoring="neg_mean_squared_error",
    ).fit(x, y)
    folds = Folds.from_sklearn(splitter, x)
    ours = linear.ridge_cv(x, y, LAMS, method=folds, intercept=intercept)
    np.testing.assert_allclose(ours.score, -search.cv_results_["mean_test_score"], rtol=1e-10)
    assert ours.lam == search.best_params_["alpha"]
    best = search.best_estimator_
    np.testing.assert_allclose(ours.coef, best.coef_.T, rtol=1e-9, atol=1e-10)


def rows_of(folds):
    for train, train_weights, val, val_weights in zip(*folds, strict=True):
        yield train[train_weights > 0], val[val_weights > 0]


def fold_scores(x, y, folds, lams, weights=None, solver="auto"):
    """Mean over folds of the mean squared error, by scikit-learn's ridge."""
    weights = np.ones(len(x)) if weights is None else weights

    def error(lam, a, b):
        model = Ridge(alpha=lam, solver=solver).fit(x[a], y[a], weights[a])
        return np.average((y[b] - model.predict(x[b])) ** 2, weights=weights[b])

    return [np.mean([error(lam, a, b) for a, b in rows_of(folds)]) for lam in lams]


@pytest.mark.parametrize("shape", [(60, 5), (31, 200)])
@pytest.mark.first_is_quick
def test_traced_folds_agree_in_float32(shape):
    x, y = problem(*shape)
    folds = Folds.from_sklearn(KFold(4), x)
    chosen = jax.jit(lambda x, y: linear.ridge_cv(x, y, LAMS, method=folds))
    ours = chosen(x.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(ours.score, fold_scores(x, y, folds, LAMS), rtol=1e-4)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(30, 4), (16, 30)])
@pytest.mark.first_is_quick
def test_weighted_folds_fit_and_score_with_the_weights(shape):
    x, y = problem(*shape)
    weights = some_weights(shape[0])
    folds = kfold(shape[0], 3, seed=1)
    ours = linear.ridge_cv(x, y, LAMS, method=folds, weights=weights)
    np.testing.assert_allclose(ours.score, fold_scores(x, y, folds, LAMS, weights), rtol=1e-9)


@pytest.mark.parametrize("method", ["loo", "gcv", kfold(10, 5)], ids=["loo", "gcv", "folds"])
@pytest.mark.first_is_quick
def test_of_equal_scores_the_largest_lambda_wins_in_any_order(method):
    lams = [1e6, 1.0, 1e7, 3.0, 2.0, 10.0, 20.0]
    chosen = linear.ridge_cv(X, np.full(10, 0.1), lams, method=method)
    np.testing.assert_array_equal(chosen.score, 0)
    assert chosen.lam == 1e7


def test_a_score_that_is_not_finite_never_wins():
    best = linear.ridge_cv(X, Y, LAMS, method=kfold(10, 5))
    again = jax.jit(lambda lams: linear.ridge_cv(X, Y, lams, method=kfold(10, 5)))(
        np.array([np.nan, *LAMS], np.float32)
    )
    assert np.isnan(again.score[0])
    np.testing.assert_allclose(again.lam, best.lam)


def test_an_optimum_at_the_edge_of_the_grid_is_flagged():
    assert linear.ridge_cv(X, Y, np.logspace(3, 9, 7)).edge
    inside = linear.ridge_cv(X, Y, np.logspace(-6, 6, 7))
    assert 1e-6 < inside.lam < 1e6
    assert not inside.edge


# Float32 data, as JAX has by default: against float64 on the very numbers that are passed

KINDS = {
    "float64 of NumPy": np.asarray,
    "float32 of NumPy": np.float32,
    "float32 of JAX": jnp.float32,
}
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def assert_float32(results):
    for leaf in jax.tree.leaves(results):
        assert isinstance(leaf, jax.Array)
        assert leaf.dtype in (jnp.float32, jnp.bool_)


@kinds
@pytest.mark.first_is_quick
def test_features_of_unlike_scales_need_not_be_standardized(kind):
    x, y = load_breast_cancer(return_X_y=True)  # standard deviations from 0.003 to 569
    x, lams = kind(x), np.logspace(-3, 3, 7)
    exact = np.asarray(x, np.float64)
    ours = linear.ridge_cv(x, y, lams)
    theirs = RidgeCV(lams, store_cv_results=True).fit(exact, y)
    np.testing.assert_allclose(ours.score, theirs.cv_results_.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(ours.lam, theirs.alpha_, rtol=1e-6)
    np.testing.assert_allclose(ours.coef, theirs.coef_, rtol=1e-4)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-5)
    assert_float32(ours)


@kinds
@pytest.mark.first_is_quick
def test_folds_of_few_rows_are_scored_right_at_small_lambda(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 20))
    y = x[:, :5].sum(axis=1) + rng.normal(size=40)
    folds, lams = time_folds(40, 9), np.logspace(-6, 3, 10)  # the first trains on 4 rows
    x, y = kind(x), kind(y)
    ours = linear.ridge_cv(x, y, lams, method=folds)
    expected = fold_scores(
        np.asarray(x, np.float64), np.asarray(y, np.float64), folds, lams, solver="svd"
    )
    np.testing.assert_allclose(ours.score, expected, rtol=1e-5)
    assert_float32(ours)


@kinds
@pytest.mark.first_is_quick
def test_least_squares_keeps_a_feature_of_small_scale(kind):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) * np.array([1e4, 1.0])
    y = x @ np.array([1e-4, 3.0]) + 0.1 * rng.normal(size=200)
    x, y = kind(x), kind(y)
    path = linear.ridge_path(x, y, [0.0])
    model = LinearRegression().fit(np.asarray(x, np.float64), np.asarray(y, np.float64))
    np.testing.assert_allclose(path.coef[0], model.coef_, rtol=1e-5)
    np.testing.assert_allclose(path.intercept[0], model.intercept_, rtol=1e-4)
    np.testing.assert_allclose(path.df, 2, rtol=1e-6)
    assert_float32(path)


@kinds
@pytest.mark.parametrize("shape", [(50, 4), (6, 8)])
@pytest.mark.first_is_quick
def test_at_lambda_zero_a_column_that_is_a_sum_to_rounding_adds_nothing(kind, shape):
    x, y = problem(*shape)
    x[:, 3] = x[:, 1] + x[:, 2]
    expected = np.linalg.pinv(x - x.mean(axis=0)) @ (y - y.mean())
    path = jax.device_get(linear.ridge_path(kind(x), kind(y), [0.0]))
    np.testing.assert_allclose(path.coef[0], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(path.df, min(shape[0] - 1, shape[1] - 1), rtol=1e-6)


def test_in_float32_too_a_weight_of_zero_is_an_absent_example():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 40)).astype(np.float32)
    y = (x[:, :5].sum(axis=1) + rng.normal(size=80)).astype(np.float32)
    weights, lams = np.repeat([1.0, 0.0], [20, 60]), np.logspace(-6, 3, 10)
    few, target = x[:20].astype(np.float64), y[:20].astype(np.float64)
    ours = linear.ridge_cv(x, y, lams, weights=weights)
    want = [brute_loo(few, target, np.ones(20), lam, True) for lam in lams]
    np.testing.assert_allclose(ours.score, want, rtol=1e-5)
    theirs = Ridge(alpha=float(ours.lam), solver="svd").fit(few, target)
    np.testing.assert_allclose(ours.coef, theirs.coef_, rtol=1e-4, atol=1e-6)
    path = jax.device_get(linear.ridge_path(x, y, lams, weights=weights))
    for i, lam in enumerate(lams):
        theirs = Ridge(alpha=lam, solver="svd").fit(few, target)
        np.testing.assert_allclose(path.coef[i], theirs.coef_, rtol=1e-4, atol=1e-6)


def test_in_float32_loo_is_right_beside_an_example_of_high_leverage():
    rng = np.random.default_rng(0)
    x, lams = rng.normal(size=(60, 20)), np.logspace(-4, 4, 9)
    x[0] *= 1e4
    y = x[:, 1] + rng.normal(size=60)
    y[0] = 50
    x, y = x.astype(np.float32), y.astype(np.float32)
    exact = x.astype(np.float64), y.astype(np.float64), np.ones(60)
    expected = [brute_loo(*exact, lam, True) for lam in lams]
    np.testing.assert_allclose(linear.ridge_cv(x, y, lams).score, expected, rtol=1e-4)


def test_numpys_float64_and_large_ints_lose_no_digit_on_the_way_in():
    """Seconds since 1970: float32 has one number for every two minutes."""
    rng = np.random.default_rng(0)
    seconds = 1_700_000_000 + np.arange(100)
    y = 3.0 * np.arange(100) + rng.normal(size=100)
    slope = np.polyfit(np.arange(100), y, 1)[0]
    for x in (seconds, seconds.astype(np.float64)):
        path = jax.device_get(linear.ridge_path(x[:, None], y, [0.0]))
        np.testing.assert_allclose(path.coef[0, 0], slope, rtol=1e-6)


CALLS = {
    "ridge_cv": lambda x, y: linear.ridge_cv(x, y, LAMS, method=kfold(10, 2), per_target=True),
    "group_ridge": lambda x, y: linear.group_ridge(x, y, [0, 0, 1], steps=3),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.first_is_quick
def test_float64_inside_does_not_leak(name):
    call, x, y = CALLS[name], X.astype(np.float32), Y.astype(np.float32)
    assert_float32(call(x, y))
    assert_float32(call(jnp.asarray(x), y))
    assert_float32(call(X, y))
    assert_float32(call(np.arange(30).reshape(10, 3) ** 2, np.arange(10)))
    assert_float32(jax.jit(call)(x, y))
    # values at hand inside a traced function
    given = [(kind(X), kind(Y)) for kind in KINDS.values()]
    inside = jax.jit(lambda scale: [call(x, y)[1] * scale for x, y in given])
    for got, (x, y) in zip(inside(np.float32(2)), given, strict=True):
        np.testing.assert_allclose(got, 2 * np.asarray(call(x, y)[1]), rtol=1e-6)
    assert jnp.ones(1).dtype == jnp.float32


def test_with_x64_results_have_the_dtype_of_the_data(x64):
    assert_float32(linear.ridge_cv(X.astype(np.float32), Y.astype(np.float32), LAMS))
    assert linear.ridge_cv(X, Y, LAMS).coef.dtype == jnp.float64
    assert jnp.ones(1).dtype == jnp.float64


# Groups


@pytest.mark.parametrize(
    ("shape", "method", "kind"),
    [
        ((80, 6), "evidence", np.float32),
        ((20, 40), "loo", np.asarray),
    ],
)
@pytest.mark.first_is_quick
def test_group_ridge_follows_the_scale_of_each_group(shape, method, kind):
    """A group in other units: the same fit, λ times their square."""
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=shape), np.arange(shape[1]) % 2
    y = x @ rng.normal(size=shape[1]) + 0.5 * rng.normal(size=shape[0])
    units = np.array([1024.0, 1.0])  # powers of 2 round nothing
    same = linear.group_ridge(kind(x), kind(y), groups, method=method)
    ours = linear.group_ridge(kind(x * units[groups]), kind(y), groups, method=method)
    np.testing.assert_allclose(ours.lam, same.lam * units**2, rtol=1e-4)
    np.testing.assert_allclose(ours.coef * units[groups], same.coef, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(ours.score, same.score, rtol=1e-5)
    assert not ours.edge.any()
    # at its λ it is ridge, by scikit-learn with a λ for every feature of x over √λ
    root = np.sqrt(np.asarray(same.lam, np.float64))[groups]
    theirs = Ridge(alpha=1.0, solver="svd").fit(x / root, y)
    np.testing.assert_allclose(same.coef, theirs.coef_ / root, rtol=1e-3, atol=1e-4)


def test_group_ridge_flags_a_lambda_at_the_end_of_its_range():
    x, _ = problem(60, 4)
    exact = linear.group_ridge(x, x[:, 0] + x[:, 1], [0, 0, 1, 1], steps=300)
    np.testing.assert_array_equal(exact.edge, [True, True])  # no noise, and a group of no use
    spread = np.sum((x - x.mean(axis=0)) ** 2, axis=0)
    bounds = np.array([1e-4 * spread[:2].mean(), 1e6 * spread[2:].mean()])
    np.testing.assert_allclose(exact.lam, bounds, rtol=1e-5)


def test_a_group_of_constants_gets_nothing_and_harms_none():
    x, y = problem(60, 4)
    x[:, 2:] = 7.0
    found = jax.device_get(linear.group_ridge(x, y, [0, 0, 1, 1], steps=300))
    lam = found.lam.astype(float)
    assert np.isfinite(lam).all()
    assert (found.coef[2:] == 0).all()
    alone = x[:, :2], y, np.ones(60)
    coef, _ = solved(*alone[:2], lam[0])
    np.testing.assert_allclose(found.coef[:2], coef, rtol=1e-5)
    near = [evidence(*alone, lam[0] * factor, True) for factor in np.logspace(-1, 1, 21)]
    assert min(near) >= near[10] - 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("method", "shape"), [("evidence", (30, 60)), ("loo", (60, 9))])
def test_group_ridge_finds_a_stationary_point_that_beats_one_lambda(method, shape):
    rng = np.random.default_rng(3)
    x = rng.normal(size=shape)
    groups = np.arange(shape[1]) % 3
    w = rng.normal(size=shape[1]) * np.array([2.0, 0.3, 0.0])[groups]
    y = x @ w + rng.normal(size=shape[0])
    found = linear.group_ridge(x, y, groups, method=method, steps=150)
    single = [group_score(x, y, np.full(shape[1], lam), method) for lam in np.logspace(-3, 5, 50)]
    assert found.score < min(single)
    assert found.lam[0] < found.lam[1]
    # its coefficients are those at its λ
    coef, intercept = solved(x, y, np.asarray(found.lam)[groups])
    np.testing.assert_allclose(found.coef, coef, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.intercept, intercept, rtol=1e-9)
    # the score is flat there: compare with neighbors, by an independent formula
    reference = lambda lam: group_score(x, y, lam[groups], method)
    np.testing.assert_allclose(found.score, reference(np.asarray(found.lam)), rtol=1e-9)
    for factor in (0.7, 1.4):
        for g in range(3):
            lam = np.asarray(found.lam).copy()
            lam[g] *= factor
            assert reference(lam) > found.score - 1e-3 * abs(float(found.score))


def group_score(x, y, lam, method):
    n = len(x)
    x, y = x - x.mean(axis=0), y - y.mean()
    hat = x @ np.linalg.solve(x.T @ x + np.diag(lam), x.T)
    r = y - hat @ y
    if method == "loo":
        return np.mean((r / (1 - 1 / n - np.diag(hat))) ** 2)
    return ((n - 1) * np.log(y @ r / (n - 1)) - np.linalg.slogdet(np.eye(n) - hat)[1]) / 2


def test_group_ridge_shares_lambda_among_targets():
    x, y = problem(30, 6, targets=2)
    found = jax.eval_shape(lambda x, y: linear.group_ridge(x, y, [0, 0, 0, 1, 1, 1], steps=5), x, y)
    assert found.lam.shape == (2,)
    assert found.coef.shape == (6, 2)
    assert found.intercept.shape == (2,)


# L1


def kkt_violation(x, y, w, lam, l1_ratio=1.0):
    """How far 0 is from the subdifferential, relative to λ₁; x and y centered."""
    slopes = x.T @ (y - x @ w) - lam * (1 - l1_ratio) * w
    l1 = lam * l1_ratio
    off = np.maximum(np.abs(slopes) - l1, 0)
    return np.max(np.where(w != 0, np.abs(slopes - l1 * np.sign(w)), off)) / l1


def true_gap(x, y, w, lam, l1_ratio):
    """P(w) − D at the scaled residual, relative to ‖y‖²; x and y centered; the usual scaling."""
    l1, l2 = lam * l1_ratio, lam * (1 - l1_ratio)
    r = y - x @ w
    primal = r @ r / 2 + l1 * np.abs(w).sum() + l2 * (w @ w) / 2
    c = min(1.0, l1 / np.abs(x.T @ r - l2 * w).max())
    dual = c * (r @ y) - c**2 * (r @ r + l2 * w @ w) / 2
    return (primal - dual) / (y @ y)


L1_SHAPES = {"gram": (60, 12), "working set": (40, 400)}
l1_shapes = pytest.mark.parametrize("shape", L1_SHAPES.values(), ids=L1_SHAPES.keys())
l1_problems = pytest.mark.parametrize(
    ("shape", "l1_ratio"),
    [(L1_SHAPES["gram"], 1.0), (L1_SHAPES["working set"], 0.6)],
    ids=["gram, lasso", "working set, elastic net"],
)


TIGHT = {"tol": 1e-12, "max_sweeps": 20_000}


def sparse_problem(n, p, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, p))
    x[:, 1:] += 0.7 * x[:, :-1]
    y = x[:, :5] @ np.array([3.0, -2.0, 1.5, 1.0, -1.0]) + rng.normal(size=n) + 4
    return x, y


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@l1_problems
def test_l1_paths_reach_optimality_and_scikit_learns_solution(shape, l1_ratio):
    x, y = sparse_problem(*shape)
    n = len(x)
    lams = np.asarray(linear.lam_max(x, y, l1_ratio)) * np.logspace(0, -2, 8)
    path = linear.enet_path(x, y, lams, l1_ratio=l1_ratio, **TIGHT)
    assert path.converged.all()
    a, b = x - x.mean(axis=0), y - y.mean()
    for lam, w in zip(path.lams, path.coef, strict=True):
        assert kkt_violation(a, b, np.asarray(w), float(lam), l1_ratio) < 1e-3
    _, theirs, _ = enet_path(
        a, b, alphas=np.asarray(path.lams) / n, l1_ratio=l1_ratio, tol=1e-12, max_iter=100_000
    )
    np.testing.assert_allclose(path.coef, theirs.T, atol=1e-5)
    constant = y.mean() - np.asarray(path.coef) @ x.mean(axis=0)
    np.testing.assert_allclose(path.intercept, constant, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@l1_problems
def test_the_gap_bounds_how_far_the_objective_is_from_the_lowest(shape, l1_ratio):
    x, y = sparse_problem(*shape)
    a, b = x - x.mean(axis=0), y - y.mean()
    lams = np.asarray(linear.lam_max(x, y, l1_ratio)) * np.logspace(-0.2, -2, 8)
    loose = jax.device_get(linear.enet_path(x, y, lams, l1_ratio=l1_ratio, tol=1e-3))
    tight = jax.device_get(linear.enet_path(x, y, lams, l1_ratio=l1_ratio, **TIGHT))

    def objective(w, lam):
        penalty = l1_ratio * np.abs(w).sum() + (1 - l1_ratio) * (w @ w) / 2
        return ((b - a @ w) ** 2).sum() / 2 + lam * penalty

    for i, lam in enumerate(lams):
        w = loose.coef[i]
        excess = objective(w, lam) - objective(tight.coef[i], lam)
        assert -1e-9 <= excess <= loose.gap[i] * (b @ b) + 1e-9
        assert loose.gap[i] <= true_gap(a, b, w, lam, l1_ratio) + 1e-12
    assert loose.converged.all()
    assert (loose.gap > tight.gap).all()


@pytest.mark.slow
def test_l1_paths_in_float32_match_float64():
    x, y = sparse_problem(*L1_SHAPES["working set"])
    lams = np.asarray(linear.lam_max(x, y)) * np.logspace(0, -2, 20)
    ours = linear.lasso_path(x.astype(np.float32), y.astype(np.float32), lams, tol=1e-5)
    assert ours.coef.dtype == jnp.float32
    assert ours.converged.all()
    a, b = x - x.mean(axis=0), y - y.mean()
    for lam, w, gap in zip(lams, ours.coef, ours.gap, strict=True):
        assert true_gap(a, b, np.asarray(w, np.float64), float(lam), 1.0) <= float(gap) * 4 + 1e-5


@pytest.mark.usefixtures("x64")
@l1_shapes
@pytest.mark.first_is_quick
def test_lasso_path_is_celers(shape):
    celer = pytest.importorskip("celer", reason="an oracle, without its dependencies on PyPI")
    x, y = sparse_problem(*shape)
    a, b = np.asfortranarray(x - x.mean(axis=0)), y - y.mean()
    lams = np.asarray(linear.lam_max(x, y)) * np.logspace(-0.1, -1.5, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, theirs, _ = celer.celer_path(a, b, "lasso", alphas=lams / len(x), tol=1e-12)
    ours = linear.lasso_path(x, y, lams, **TIGHT)
    # celer stops at gaps up to 2e-7, which leaves 1e-5 of its coefficients open; ours are at 1e-12
    np.testing.assert_allclose(ours.coef, theirs.T, atol=5e-5)
    for lam, w in zip(lams, ours.coef, strict=True):
        assert true_gap(a, b, np.asarray(w), lam, 1.0) <= 1e-12


@pytest.mark.usefixtures("x64")
def test_weights_and_targets_of_l1_paths():
    x, y = sparse_problem(30, 8)
    y = np.stack([y, -y[::-1]], axis=1)
    weights = some_weights(30)
    lams = np.array([2.0, 20.0, 8.0])  # any order
    ours = jax.device_get(linear.lasso_path(x, y, lams, weights=weights, **TIGHT))
    assert ours.coef.shape == (3, 8, 2)
    assert ours.gap.shape == ours.intercept.shape == ours.converged.shape == (3, 2)
    for i, lam in enumerate(lams):
        for t in range(2):
            theirs = Lasso(alpha=lam / weights.sum(), tol=1e-12, max_iter=100_000)
            theirs.fit(x, y[:, t], sample_weight=weights)
            np.testing.assert_allclose(ours.coef[i, :, t], theirs.coef_, atol=1e-6)
            np.testing.assert_allclose(ours.intercept[i, t], theirs.intercept_, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@l1_problems
def test_lam_max_is_where_the_first_coefficient_appears(shape, l1_ratio):
    x, y = sparse_problem(*shape)
    largest = np.asarray(linear.lam_max(x, y, l1_ratio))
    lams = largest * np.array([1.001, 0.99, *np.logspace(-0.1, -0.5, 6)])
    path = linear.enet_path(x, y, lams, l1_ratio=l1_ratio, **TIGHT)
    assert (path.coef[0] == 0).all()
    assert (path.coef[1] != 0).sum() >= 1


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_the_default_grid_is_scikit_learns():
    x, y = sparse_problem(60, 12)
    theirs, _, _ = lasso_path(x - x.mean(axis=0), y - y.mean())
    np.testing.assert_allclose(linear.lasso_path(x, y, tol=0.1).lams, theirs * len(x), rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_an_elastic_net_that_is_nearly_ridge_uses_more_features_than_there_are_examples_by_far():
    x, y = sparse_problem(8, 240)
    lams = linear.lam_max(x, y, 0.001) * np.logspace(-1, -3, 3)
    path = linear.enet_path(x, y, lams, l1_ratio=0.001)
    assert (path.coef != 0).sum(axis=1).max() > 4 * 8 + 128
    assert path.converged.all()


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
def test_a_working_set_that_is_full_lets_go_of_what_is_zero_and_one_too_small_is_reported():
    x, y = sparse_problem(40, 400)
    lams = np.asarray(linear.lam_max(x, y)) * np.logspace(-0.1, -0.8, 8)
    whole = jax.device_get(linear.lasso_path(x, y, lams, **TIGHT))
    most = int((whole.coef != 0).sum(axis=1).max())
    narrow = linear.lasso_path(x, y, lams, **TIGHT, max_active=most + 2)
    assert narrow.converged.all()
    np.testing.assert_allclose(narrow.coef, whole.coef, atol=1e-5)
    capped = jax.device_get(linear.lasso_path(x, y, lams, max_active=4))
    assert ((capped.coef != 0).sum(axis=1) <= 4).all()
    assert not capped.converged[-1]
    assert capped.gap[-1] > 1e-4


@l1_shapes
@pytest.mark.first_is_quick
def test_too_few_sweeps_are_reported(shape):
    x, y = sparse_problem(*shape)
    path = linear.lasso_path(x, y, np.asarray(linear.lam_max(x, y)) * [1e-3], max_sweeps=2)
    assert not path.converged[0]
    assert path.gap[0] > 1e-4


@pytest.mark.usefixtures("x64")
@l1_shapes
@pytest.mark.first_is_quick
def test_duplicated_columns_converge(shape):
    x, y = sparse_problem(shape[0], shape[1] // 2)
    x = np.hstack([x, x])
    lams = np.asarray(linear.lam_max(x, y)) * np.logspace(0, -1.5, 8)
    path = linear.lasso_path(x, y, lams, **TIGHT)
    assert path.converged.all()
    assert np.isfinite(path.coef).all()


def test_one_feature_and_a_constant_column():
    x, y = problem(12, 1)
    centered, target = x[:, 0] - x.mean(), y - y.mean()
    product = centered @ target
    lam = abs(product) / 3
    expected = np.sign(product) * (abs(product) - lam) / (centered @ centered)
    path = linear.lasso_path(x, y, [lam], tol=1e-6)
    np.testing.assert_allclose(path.coef[0, 0], expected, rtol=1e-4)
    both = linear.lasso_path(np.hstack([x, np.full((12, 1), 7.3)]), y, [lam, lam / 1e4], tol=1e-6)
    assert (both.coef[:, 1] == 0).all()


# Conventions


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("loss", ["mse", "half_mse", "sum", "half_sum"])
@pytest.mark.parametrize(("penalty", "norm"), [("decay", "l2"), ("loss", "l2"), ("decay", "l1")])
def test_to_sklearn_alpha_minimizes_the_same_objective(loss, penalty, norm):
    """Scikit-learn's solution is a stationary point of the objective as it is written."""
    x, y = problem(25, 3, shift=0.0)
    n, lam = 25, 0.3
    alpha = linear.to_sklearn_alpha(lam, n, loss, penalty=penalty, norm=norm)
    if norm == "l2":
        model = Ridge(alpha=alpha, fit_intercept=False, tol=1e-12)
        ours = linear.ridge_path(x, y, [alpha], intercept=False)
    else:
        model = Lasso(alpha=alpha, fit_intercept=False, tol=1e-14)
        ours = linear.lasso_path(x, y, [n * alpha], intercept=False, tol=1e-13)
    w = model.fit(x, y).coef_
    np.testing.assert_allclose(ours.coef[0], w, atol=1e-6)
    c = {"mse": 1 / n, "half_mse": 1 / (2 * n), "sum": 1, "half_sum": 1 / 2}[loss]
    pull = {
        ("decay", "l2"): lam * w,  # of λ/2 ‖w‖²
        ("loss", "l2"): 2 * lam * w,
        ("decay", "l1"): lam * np.sign(w),
    }[penalty, norm]
    assert (w != 0).all()
    slope = 2 * c * x.T @ (x @ w - y) + pull
    np.testing.assert_allclose(slope / np.abs(2 * c * x.T @ y).max(), 0, atol=1e-6)


@pytest.mark.usefixtures("x64")
def test_the_conventions_of_the_three_models_are_one():
    x, y = problem(25, 4)
    lam = 7.0
    ridge_like = Ridge(alpha=lam).fit(x, y).coef_
    np.testing.assert_allclose(linear.ridge_path(x, y, [lam]).coef[0], ridge_like, rtol=1e-9)
    net = ElasticNet(alpha=lam / 25, l1_ratio=0.4, tol=1e-14, max_iter=100_000).fit(x, y).coef_
    ours = linear.enet_path(x, y, [lam], l1_ratio=0.4, tol=1e-14, max_sweeps=10_000)
    np.testing.assert_allclose(ours.coef[0], net, atol=1e-6)


# Transformations


TALL, WIDE = problem(20, 4), problem(8, 20)
MAPPED = {
    "path": (lambda x, y: linear.ridge_path(x, y, LAMS), WIDE),
    "loo": (lambda x, y: linear.ridge_cv(x, y, LAMS), TALL),
    "folds": (lambda x, y: linear.ridge_cv(x, y, LAMS, method=kfold(len(x), 2)), WIDE),
    "groups": (lambda x, y: linear.group_ridge(x, y, np.arange(x.shape[1]) % 2, steps=3), TALL),
    "lasso": (lambda x, y: linear.lasso_path(x, y, LAMS[2:5]), WIDE),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPPED)
def test_jit_and_vmap_change_nothing(name):
    function, (x, y) = MAPPED[name]
    ys = np.stack([y, y[::-1]])
    mapped = jax.device_get(jax.jit(jax.vmap(lambda y: function(x, y)))(ys))
    for i in range(2):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=2e-3, atol=1e-4),
            function(x, ys[i]),
            mapped,
        )


def finite_difference(f, at, direction, h=1e-5):
    return (f(at + h * direction) - f(at - h * direction)) / (2 * h)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "methods"), [((20, 4), ["loo", "gcv"]), ((6, 12), ["evidence", kfold(6, 2)])]
)
def test_ridge_gradients_are_finite_differences_even_with_equal_eigenvalues(shape, methods):
    x, y = problem(*shape)
    x = np.hstack([x, x[:, :1], x[:, :1], x[:, :1]])  # eigenvalue 0 more than once
    direction = np.random.default_rng(1).normal(size=x.shape)

    @jax.jit
    def values(x, y, lams, weights):
        path = jax.device_get(linear.ridge_path(x, y, lams, weights=weights))
        chosen = [linear.ridge_cv(x, y, lams, weights=weights, method=m) for m in methods]
        scores = [jnp.sum(one.score) for one in chosen]
        return jnp.stack([jnp.sum(jnp.sin(path.coef)), jnp.sum(path.df), *scores])

    given = {"x": x, "y": y, "lams": np.array([0.5, 3.0]), "weights": np.linspace(0.5, 2, len(y))}
    slopes = jax.jit(jax.jacrev(lambda given: values(**given)))(given)
    moved = {
        "x": direction,
        "y": np.eye(len(y))[0],
        "lams": np.eye(2)[0],
        "weights": np.eye(len(y))[1],
    }
    for name, along in moved.items():
        ends = (values(**{**given, name: given[name] + h * along}) for h in (1e-5, -1e-5))
        theirs = np.subtract(*map(np.asarray, ends)) / 2e-5
        ours = np.tensordot(slopes[name], along, along.ndim)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.usefixtures("x64")
def test_second_derivatives_of_the_ridge_path_are_right():
    x, y = problem(12, 3)
    direction = np.random.default_rng(1).normal(size=x.shape)
    f = lambda x: jnp.sum(linear.ridge_path(x, y, [2.0]).coef ** 2)
    slope = lambda x: jax.jvp(f, (x,), (direction,))[1]
    _, curvature = jax.jit(lambda x: jax.jvp(slope, (x,), (direction,)))(x)
    want = finite_difference(jax.jit(slope), x, direction)
    np.testing.assert_allclose(curvature, want, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("shape", "intercept"), [((20, 4), True), ((10, 24), True), ((10, 24), False)]
)
def test_one_decomposition_for_all_lambda_agrees_with_a_factor_for_each(shape, intercept):
    @jax.jit
    def both(x, y, weights):
        centered = _data.centred(x, y, weights, intercept)
        one = lambda lam: _ridge.fit(centered, jnp.full(shape[1], lam), intercept)
        return _ridge.fits(centered, jnp.asarray(LAMS), intercept), jax.lax.map(one, LAMS)

    many, each = both(*problem(*shape, targets=2), some_weights(shape[0]))
    for a, b in zip(each, many, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("x64")
@l1_problems
def test_l1_gradients_are_finite_differences_on_the_support(shape, l1_ratio):
    x, y = sparse_problem(*shape)
    lams = np.asarray(linear.lam_max(x, y, l1_ratio)) * np.array([0.5, 0.2])

    def function(x, y, lams):
        path = linear.enet_path(x, y, lams, l1_ratio=l1_ratio, tol=1e-15, max_sweeps=5_000)
        return jnp.sum(jnp.sin(path.coef)) + jnp.sum(path.intercept)

    gx, gy, gl = jax.jit(jax.grad(function, argnums=(0, 1, 2)))(x, y, lams)
    value, direction = jax.jit(function), np.random.default_rng(1).normal(size=x.shape)
    pairs = [
        (np.vdot(gx, direction), lambda h: value(x + h * direction, y, lams)),
        (gy[0], lambda h: value(x, y + h * np.eye(len(y))[0], lams)),
        (gl[1], lambda h: value(x, y, lams + h * np.eye(2)[1])),
    ]
    for ours, moved in pairs:
        theirs = (moved(1e-4) - moved(-1e-4)) / 2e-4
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("ratio", [1e-3, 1e-5, 1e-8])
def test_an_elastic_net_with_hardly_any_l1_knows_that_it_has_converged(ratio):
    """λ₁ is then below the rounding of Xᵀr."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    y = x @ [1.0, 4.0, 2.0] + 0.1 * rng.normal(size=500)
    centered, target = x - x.mean(axis=0), y - y.mean()
    path = linear.enet_path(x, y, [500.0], l1_ratio=ratio)
    quadratic = centered.T @ centered + 500.0 * (1 - ratio) * np.eye(3)
    exact = np.linalg.solve(quadratic, centered.T @ target - 500.0 * ratio)
    np.testing.assert_allclose(path.coef[0], exact, rtol=1e-4)
    assert path.converged.all()


def test_a_path_that_reaches_its_tolerance_is_certified_to():
    """What is certified is computed afresh, and rounds otherwise than what the descent looks at."""
    rng = np.random.default_rng(0)
    for noise in (1, 10, 100, 1000, 3000):
        x, w = rng.normal(size=(200, 50)), np.zeros(50)
        w[:10] = rng.normal(size=10)
        y = x @ w
        y += rng.normal(size=200) * y.std() / noise
        assert linear.lasso_path(x, y, tol=1e-5, max_sweeps=3000).converged.all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("l2", [0.0, 0.3, 30.0])
def test_the_gap_is_never_less_than_what_is_left_to_gain(l2):
    """At any coefficients, by many steps of proximal gradients in float64."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 6)), rng.normal(size=20)

    def objective(w):
        return np.sum((y - x @ w) ** 2) / 2 + 2.0 * np.abs(w).sum() + l2 / 2 * (w @ w)

    best, rate = np.zeros(6), 1 / (np.linalg.norm(x, 2) ** 2 + l2)
    for _ in range(3000):
        z = best - rate * (x.T @ (x @ best - y) + l2 * best)
        best = np.sign(z) * np.maximum(np.abs(z) - 2.0 * rate, 0)
    gap_of = jax.jit(_lasso.duality_gap)
    for scale in (0.0, 1e-3, 0.1, 1.0):
        w = best + scale * rng.normal(size=6)
        r = y - x @ w
        g, lam = x.T @ r, _lasso.Strength(2.0, l2)
        gap = gap_of(w, g, g - l2 * w, r @ r, r @ y, lam)
        assert gap >= objective(w) - objective(best) - 1e-9
        assert scale or gap < 1e-9


# Bad input

BAD_NAN = X.copy()
BAD_NAN[2, 1] = np.nan
FUNCTIONS = {
    "ridge_path": lambda x=X, y=Y, lams=LAMS, **k: linear.ridge_path(x, y, lams, **k),
    "ridge_cv": lambda x=X, y=Y, lams=LAMS, **k: linear.ridge_cv(x, y, lams, **k),
    "enet_path": lambda x=X, y=Y, lams=LAMS, **k: linear.enet_path(x, y, lams, **k),
    "lasso_path": lambda x=X, y=Y, lams=LAMS, **k: linear.lasso_path(x, y, lams, **k),
}
DATA_FUNCTIONS = FUNCTIONS | {
    "group_ridge": lambda x=X, y=Y, **k: linear.group_ridge(x, y, [0, 0, 1], **k),
    "lam_max": lambda x=X, y=Y, **k: linear.lam_max(x, y, **k),
}


@pytest.mark.parametrize("function", DATA_FUNCTIONS.values(), ids=DATA_FUNCTIONS.keys())
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": X[:, 0]}, ValueError, r"`x` must have shape \(n, p\).*got \(10,\).*x\[:, None\]"),
        ({"x": X[:, :0]}, ValueError, r"`x` must have shape \(n, p\)"),
        ({"x": BAD_NAN}, ValueError, r"`x` must be finite; got nan at \[2, 1\], 1 in all"),
        ({"x": np.ones((10, 3))}, ValueError, "`x` must have a feature that varies"),
        ({"x": X[:1], "y": Y[:1]}, ValueError, r"`x` must .* n >= 2 and p >= 1; .*\(1, 3\)"),
        ({"x": X * 1j}, TypeError, "`x` must be an array of real numbers; got complex"),
        ({"x": "data"}, TypeError, "`x` must be an array of real numbers; got <U4"),
        ({"x": np.ma.masked_less(X, 0)}, TypeError, "`x` must .*; got masked float64.* masked"),
        ({"y": None}, TypeError, "`y` must be an array of real numbers; got None.$"),
        ({"y": np.ma.masked_less(Y, 0)}, TypeError, "`y` must .*; got masked float64"),
        ({"y": Y[:4]}, ValueError, r"`y` must have shape \(10,\).*got \(4,\)"),
        ({"y": np.where(Y > 0, np.inf, Y)}, ValueError, "`y` must be finite; got inf"),
        ({"weights": np.ones(4)}, ValueError, r"`weights` must have shape \(10,\).*got \(4,\)"),
        ({"weights": np.arange(10) - 1.0}, ValueError, "`weights` must be >= 0, .* got -1"),
        (
            {"weights": np.eye(10)[0]},
            ValueError,
            "`weights` must .* > 0 for at least two.*1 above 0",
        ),
    ],
)
def test_bad_data_is_an_error_that_names_the_argument(function, arguments, error, message):
    with pytest.raises(error, match=message):
        function(**arguments)


@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_a_bad_grid_is_an_error(function):
    with pytest.raises(ValueError, match=r"`lams` must have shape \(L,\) with L >= 1; got \(0,\)"):
        function(lams=[])
    with pytest.raises(ValueError, match=r"`lams` must have shape \(L,\).*got \(\)"):
        function(lams=1.0)
    with pytest.raises(ValueError, match=r"`lams` must be >=? 0; got -1"):
        function(lams=[1.0, -1.0])
    with pytest.raises(ValueError, match="`lams` must be finite; got nan"):
        function(lams=[1.0, np.nan])


@pytest.mark.parametrize(
    "function", [linear.ridge_path, functools.partial(linear.ridge_cv, method="gcv")]
)
def test_a_grid_that_was_left_out_is_asked_for(function):
    for data in ((X, Y), (linear.statistics(X, Y),)):
        with pytest.raises(TypeError, match=r"`lams` must be the grid of λ, such as .*; got None"):
            function(*data)


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_part_of_a_fold_without_weight_is_an_error(part):
    folds = Folds.from_sklearn([([0, 1, 2], [3, 4, 5]), ([6, 7], [8, 9])], X)
    weights = np.ones(10)
    weights[getattr(folds, part)[0]] = 0
    weights[0] = part == "val"
    with pytest.raises(
        ValueError, match=f"`weights` must be > 0 .*; got fold 0 with none in {part}"
    ):
        linear.ridge_cv(X, Y, LAMS, method=folds, weights=weights)
    traced = jax.jit(lambda s: linear.ridge_cv(X, Y, LAMS, method=folds, weights=s))(weights)
    assert traced.lam.shape == ()


def test_scores_of_which_none_is_finite_are_an_error():
    with pytest.raises(ValueError, match="`x` and `y` must have squares that float32 can hold"):
        linear.ridge_cv(X, Y * 1e25, LAMS)
    with pytest.raises(ValueError, match="squares that float32 can hold"):
        linear.ridge_cv(X, np.stack([Y, Y * 1e25], axis=1), LAMS, per_target=True)
    with jax.enable_x64(True), pytest.raises(ValueError, match="squares that float64 can hold"):
        linear.ridge_cv(X * 1e200, Y, LAMS)
    large = linear.ridge_cv(X * 1e20, Y, LAMS * 1e30)  # squares that float64 can hold
    expected = Ridge(alpha=float(large.lam), solver="svd").fit(X * 1e20, Y).coef_
    np.testing.assert_allclose(large.coef, expected, rtol=1e-5)


def test_lambda_zero_is_an_error_where_it_makes_no_sense():
    for name in ("ridge_cv", "enet_path", "lasso_path"):
        with pytest.raises(ValueError, match="`lams` must be > 0; got 0"):
            FUNCTIONS[name](lams=[1.0, 0.0])
    assert np.isfinite(linear.ridge_path(X, Y, [0.0]).coef).all()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: linear.ridge_cv(X, Y, LAMS, method="aic"), ValueError,
         "`method` must be one of 'loo', 'gcv', 'evidence'; got 'aic'. Or give Folds"),
        (lambda: linear.ridge_cv(X, Y, LAMS, method=5), TypeError, "`method` must be Folds"),
        (lambda: linear.ridge_cv(X, Y, LAMS, method=kfold(12, 3)), ValueError,
         "`method` must train on some of the 10 examples"),
        (lambda: kfold(10, 6), ValueError, r"`k` must be .* in \[2, 5\]; got 6"),
        (lambda: linear.group_ridge(X, Y, None), ValueError, "`groups` must give the group"),
        (lambda: linear.group_ridge(X, Y, [0, 1]), ValueError,
         r"`groups` must give each of the 3 features .* shape \(2,\)"),
        (lambda: linear.group_ridge(X, Y, [0.0, 1.0, 1.0]), ValueError,
         r"`groups` must give each .* of 0.0, 1.0"),
        (lambda: linear.group_ridge(X, Y, [0, 2, 2]), ValueError,
         r"none left out; got shape \(3,\) of 0, 2"),
        (lambda: linear.group_ridge(X, Y, [0, 1, 1], steps=0), ValueError,
         "`steps` must be a whole number >= 1"),
        (lambda: linear.group_ridge(X, Y, [0, 1, 1], method="map"), ValueError,
         "`method` must be one of 'evidence', 'loo', 'gcv'; got 'map'"),
        (lambda: linear.ridge_path(X, Y, LAMS, groups=[0, 1, 1]), ValueError,
         r"`lams` must have shape \(L, 2\)"),
        (lambda: linear.ridge_path(X[:3], Y[:3], [[0.0, 1.0]], groups=[0, 1, 1]), ValueError,
         "`lams` must be > 0 with groups"),
        (lambda: linear.enet_path(X, Y, l1_ratio=0.0), ValueError,
         r"`l1_ratio` must be in \(0, 1\]; got 0.0. At 0 .*: call ridge_path"),
        (lambda: linear.lam_max(X, Y, 2.0), ValueError, r"`l1_ratio` must be in \(0, 1\]; got 2.0"),
        (lambda: linear.lasso_path(X, Y, tol=0.0), ValueError, "`tol` must be .* number > 0"),
        (lambda: linear.lasso_path(X, Y, tol=True), TypeError, "`tol` must be .* number > 0"),
        (lambda: linear.lasso_path(X, Y, tol="1e-4"), TypeError, "`tol` must be .* number > 0"),
        (lambda: jax.jit(lambda t: linear.lasso_path(X, Y, tol=t))(0.1), TypeError,
         "float"),
        (lambda: linear.enet_path(X, Y, l1_ratio="1"), TypeError, "`l1_ratio` must be in"),
        (lambda: linear.ridge_cv(X, Y, LAMS, per_target="no"), TypeError,
         "`per_target` must be True or False; got 'no'"),
        (lambda: linear.lasso_path(X, Y, max_sweeps=0), ValueError, "`max_sweeps` must be a whole"),
        (lambda: linear.lasso_path(X, Y, max_active=0), ValueError, "`max_active` must be a whole"),
        (lambda: linear.lasso_path(X, np.ones(10)), ValueError, "`lams` must be given where y is"),
        (lambda: linear.to_sklearn_alpha(1.0, 5, "l2"), ValueError, "`loss` must be one of 'mse'"),
        (lambda: linear.to_sklearn_alpha(1.0, 5, penalty="prox"), ValueError, "`penalty` must be"),
        (lambda: linear.to_sklearn_alpha(1.0, 5, norm="l3"), ValueError, "`norm` must be one of"),
        (lambda: linear.to_sklearn_alpha(-1.0, 5), ValueError, "`lam` must be .* >= 0; got -1.0"),
        (lambda: linear.to_sklearn_alpha(1.0, 0), ValueError, "`n` must be .* >= 1"),
    ],
)  # fmt: skip
def test_bad_arguments_are_errors_that_name_them(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("function", DATA_FUNCTIONS.values(), ids=DATA_FUNCTIONS.keys())
@pytest.mark.first_is_quick
def test_an_intercept_is_a_bool(function):
    for wrong in ("no", None, 0, jnp.array(True)):
        with pytest.raises(TypeError, match="`intercept` must be True or False; got"):
            function(intercept=wrong)
    for one, other in zip(
        jax.tree.leaves(function(intercept=False)),
        jax.tree.leaves(function(intercept=np.False_)),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("scalar", [np.float32, np.float64, np.array, jnp.float32])
@pytest.mark.parametrize("shape", [(10, 3), (15, 200)])
@pytest.mark.first_is_quick
def test_tolerances_and_counts_may_be_numpys(scalar, shape):
    x, y = problem(*shape)
    plain = linear.lasso_path(x, y, [5.0], tol=2**-12, max_sweeps=500, max_active=100)
    same = linear.lasso_path(
        x, y, [5.0], tol=scalar(2**-12), max_sweeps=np.int64(500), max_active=np.int32(100)
    )
    np.testing.assert_array_equal(same.coef, plain.coef)
    assert same.converged.all()


def test_steps_of_group_ridge_may_be_numpys():
    plain, same = (linear.group_ridge(X, Y, [0, 0, 1], steps=n) for n in (9, np.int64(9)))
    np.testing.assert_array_equal(same.lam, plain.lam)


def test_l1_paths_see_a_feature_that_lies_far_from_zero():
    """Without x64, float64 data keep the digits that float32 has none for: a time stamp."""
    sklearn_linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 2))
    x = np.stack([1e6 + 0.3 * z[:, 0], z[:, 1]], axis=1)
    y = 1e6 + 2 * z[:, 0] + z[:, 1] + 0.1 * rng.normal(size=200)
    for weights in (None, np.where(np.arange(200) < 150, 1.0, 0.0)):
        rows = slice(None) if weights is None else slice(150)
        found = linear.lasso_path(x, y, [1.0], tol=1e-7, weights=weights)
        want = sklearn_linear.Lasso(alpha=1 / len(y[rows]), tol=1e-10).fit(x[rows], y[rows])
        np.testing.assert_allclose(found.coef[0], want.coef_, rtol=1e-4)
        assert found.intercept[0] == pytest.approx(want.intercept_, rel=1e-6)
        largest = linear.lam_max(x, y, weights=weights)
        centered = x[rows] - x[rows].mean(0), y[rows] - y[rows].mean()
        assert largest == pytest.approx(np.abs(centered[0].T @ centered[1]).max(), rel=1e-5)
    stamp = 1.7e9 + rng.uniform(0, 3600, 200)
    both = linear.enet_path(np.stack([stamp, z[:, 0]], axis=1), np.stack([stamp, y], axis=1))
    assert both.converged.all()
    assert both.coef.shape[2] == 2
    assert both.coef[-1, 0, 0] != 0


def augmented(x, y, lam, intercept):
    """Ridge without inner products: least squares of y on X over √λ I."""
    means = (x.mean(axis=0), y.mean()) if intercept else (0.0, 0.0)
    rows = np.vstack([x - means[0], np.sqrt(lam) * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.append(y - means[1], np.zeros(x.shape[1])), rcond=None)[0]


def stiff(name):
    """Data whose inner products lose what is small: columns of unlike scales, or far from 0."""
    rng = np.random.default_rng(3)
    n, p = (12, 20) if "wide" in name else (60, 6)
    x = rng.normal(size=(n, p))
    y = x @ rng.normal(size=p) + 0.1 * rng.normal(size=n)
    if "far" in name:
        return x + 1e7, y, False
    x[:, {"first": 0, "last": -1}.get(name.split()[0], 2)] *= 1e8
    return x, y, True


STIFF = ["first", "last", "middle", "middle wide", "far from 0", "far from 0, wide"]


@pytest.mark.parametrize("name", STIFF)
@pytest.mark.first_is_quick
def test_features_of_unlike_scales_are_solved_as_without_inner_products(name):
    x, y, intercept = stiff(name)
    lams = np.array([0.01, 1.0, 100.0])
    path = jax.device_get(linear.ridge_path(x, y, lams, intercept=intercept))
    for lam, coef in zip(lams, path.coef, strict=True):
        want = augmented(x, y, lam, intercept)
        np.testing.assert_allclose(coef, want, rtol=1e-5, atol=1e-6 * np.abs(want).min())


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("loo", "first"), ("loo", "last"), ("loo", "middle"), ("loo", "far from 0, wide"),
        ("folds", "first"), ("folds", "last"), ("folds", "middle wide"), ("folds", "far from 0"),
    ],
)  # fmt: skip
@pytest.mark.first_is_quick
def test_scores_of_unlike_scales_are_those_of_the_fits_left_out(method, name):
    x, y, intercept = stiff(name)
    lams = np.array([0.1, 1.0, 10.0])
    rows = np.arange(len(y))
    left_out = [[i] for i in rows] if method == "loo" else [rows[rows % 4 == k] for k in range(4)]
    folds = Folds.from_sklearn([(np.setdiff1d(rows, out), out) for out in left_out], x)
    given = folds if method == "folds" else method
    chosen = linear.ridge_cv(x, y, lams, method=given, intercept=intercept)
    for lam, score in zip(lams, np.asarray(chosen.score), strict=True):
        errors = []
        for out in left_out:
            kept = np.setdiff1d(rows, out)
            mean_x, mean_y = (x[kept].mean(axis=0), y[kept].mean()) if intercept else (0, 0)
            w = augmented(x[kept], y[kept], lam, intercept)
            errors.append(np.mean((y[out] - mean_y - (x[out] - mean_x) @ w) ** 2))
        np.testing.assert_allclose(score, np.mean(errors), rtol=1e-4)
    want = augmented(x, y, float(chosen.lam), intercept)
    np.testing.assert_allclose(chosen.coef, want, rtol=1e-5, atol=1e-6 * np.abs(want).min())


@pytest.mark.parametrize(
    ("shape", "of_x", "of_y"),
    [
        ((50, 3), 1, 1e-20),
        ((50, 3), 1, 1e20),
        ((50, 3), 1e20, 1e-10),
        ((50, 3), 1e-20, 1e5),
        ((20, 200), 2.0**66, 2.0**-33),  # powers of 2 round nothing: as many sweeps
    ],
)
@pytest.mark.first_is_quick
def test_the_lasso_does_not_depend_on_units(shape, of_x, of_y):
    """float32 cannot hold the squares of such numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape).astype(np.float32)
    y = (x[:, :3] @ np.array([1.0, -1.0, 0.5])).astype(np.float32)
    lams = np.asarray(linear.lam_max(x, y), np.float64) * np.array([0.5, 0.1])
    want = linear.lasso_path(x, y, lams, tol=1e-6)
    assert (want.coef != 0).any()
    scaled = x * np.float32(of_x), y * np.float32(of_y), lams * of_x * of_y
    path = linear.lasso_path(*scaled, tol=1e-6)
    assert path.converged.all()
    got = np.asarray(path.coef, np.float64) / of_y * of_x
    np.testing.assert_allclose(got, want.coef, rtol=1e-3, atol=1e-4)
