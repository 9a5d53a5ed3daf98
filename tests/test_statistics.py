"""Ridge regression from sums that add, against the solvers that hold all data."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from wdjax import linear
from wdjax.folds import kfold
from wdjax.linear import Statistics, statistics, total_statistics

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
N, P_, T = 240, 7, 3
FAR = np.array([0, 1e3, -50, 0, 0, 1e4, 0])  # columns far from 0
X = RNG.normal(size=(N, P_)) @ RNG.normal(size=(P_, P_)) + FAR
Y = X @ RNG.normal(size=(P_, T)) + RNG.normal(size=(N, T)) + 30
WEIGHTS = np.where(np.arange(N) % 9 == 0, 0, RNG.uniform(0.5, 2, N))
FOLD = RNG.permutation(np.arange(N) % 4)
LAMS = np.logspace(-2, 3, 6)
GROUPS = np.array([0, 0, 0, 1, 1, 2, 2])


def batches(sizes=(100, 1, 39, 100), **columns):
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        yield {name: column[start:end] for name, column in columns.items()}


def total_of(weights=None, **columns):
    return total_statistics(batches(**columns, **({} if weights is None else {"weights": weights})))


def ridge(x, y, lam, weights=None, intercept=True):
    """The formulas in NumPy: w, b, degrees of freedom, and the criteria of each target."""
    weights = np.ones(len(x)) if weights is None else weights
    means = [intercept * (weights @ z) / weights.sum() for z in (x, y)]
    a, b = (np.sqrt(weights)[:, None] * (z - mean) for z, mean in zip((x, y), means, strict=True))
    lam = np.broadcast_to(lam, x.shape[1])
    gram = a.T @ a
    w = np.linalg.solve(gram + np.diag(lam), a.T @ b)
    df = np.trace(np.linalg.solve(gram + np.diag(lam), gram))
    n = np.sum(weights > 0)
    m = n - intercept
    squares = np.sum((b - a @ w) ** 2, axis=0)
    energy = squares + lam @ w**2
    log_det = np.linalg.slogdet(gram + np.diag(lam))[1] - np.sum(np.log(lam))
    scores = {
        "gcv": n * squares / (m - df) ** 2,
        "evidence": (m * np.log(energy / m) + log_det) / 2,
    }
    return w, means[1] - means[0] @ w, df, scores


def path(x, y, lams=LAMS, **options):
    """What `ridge_path` returns."""
    fits = [ridge(x, y, lam, **options) for lam in lams]
    return [np.array([fit[part] for fit in fits]) for part in range(3)]


def fold_errors(x, y, lam, weights, intercept):
    """Mean over folds of the mean squared error of each target."""
    weights, errors = np.ones(N) if weights is None else weights, []
    for k in range(4):
        out = k == FOLD
        w, b, *_ = ridge(x[~out], y[~out], lam, weights[~out], intercept)
        squares = (y[out] - x[out] @ w - b) ** 2
        errors.append(np.average(squares, axis=0, weights=weights[out]))
    return np.mean(errors, axis=0)


def close(got, wanted, rtol=1e-10):
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * abs(np.max(b)))


def assert_chosen(got, x, score, weights, intercept=True):
    """The choice for each target of Y by its score, (L, T)."""
    lam = LAMS[score.argmin(axis=0)]
    fits = [ridge(x, Y[:, [t]], lam[t], weights, intercept) for t in range(T)]
    close(got[:4], (score, lam, *(np.hstack([fit[part] for fit in fits]) for part in (0, 1))))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("one", [False, True], ids=["targets", "one"])
@pytest.mark.first_is_quick
def test_a_path_is_that_of_all_data(one, intercept):
    x = X if intercept else X - FAR  # beside a column far from 0 others lose digits in any sums
    for weights in (None, WEIGHTS):
        total = total_of(weights, x=x, y=Y[:, 0] if one else Y)
        coef, b, df = path(x, Y[:, :1] if one else Y, weights=weights, intercept=intercept)
        got = linear.ridge_path(total, lams=LAMS, intercept=intercept)
        close(got, (coef[..., 0], b[..., 0], df) if one else (coef, b, df))


def test_a_path_with_a_lam_for_each_group():
    lams = np.array([[1.0, 10.0, 100.0], [5.0, 5.0, 0.1]])
    got = linear.ridge_path(total_of(x=X, y=Y), lams=lams, groups=GROUPS)
    close(got, path(X, Y, lams[:, GROUPS]))


@pytest.mark.parametrize("per_target", [True, False])
@pytest.mark.parametrize("method", ["gcv", "evidence"])
@pytest.mark.first_is_quick
def test_lam_chosen_by_a_criterion(method, per_target):
    for weights in (None, WEIGHTS):
        score = np.array([ridge(X, Y, lam, weights)[3][method] for lam in LAMS])
        total = total_of(weights, x=X, y=Y)
        got = linear.ridge_cv(total, lams=LAMS, method=method, per_target=per_target)
        if per_target:
            assert_chosen(got, X, score, weights)
        else:
            joint = score.sum(axis=1) if method == "evidence" else score.mean(axis=1)
            lam = LAMS[joint.argmin()]
            close(got[:4], (joint, lam, *ridge(X, Y, lam, weights)[:2]))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.first_is_quick
def test_lam_chosen_by_folds(intercept):
    x = X if intercept else X - FAR
    for weights in (None, WEIGHTS):
        total = total_of(weights, x=x, y=Y, fold=FOLD)
        options = {"intercept": intercept, "per_target": True}
        got = linear.ridge_cv(total, lams=LAMS, method="folds", **options)
        score = np.array([fold_errors(x, Y, lam, weights, intercept) for lam in LAMS])
        assert_chosen(got, x, score, weights, intercept)


@pytest.mark.parametrize("method", ["gcv", "evidence"])
@pytest.mark.first_is_quick
def test_a_lam_for_every_group(method):
    score = lambda lam: ridge(X, Y, lam[GROUPS])[3][method].sum()
    found = linear.group_ridge(total_of(x=X, y=Y), groups=GROUPS, method=method)
    lam = np.asarray(found.lam)
    w, b, *_ = ridge(X, Y, lam[GROUPS])
    close((found.coef, found.intercept, found.score), (w, b, score(lam)), rtol=1e-9)
    near = [score(lam * factor) for step in 0.3 * np.eye(3) for factor in np.exp([step, -step])]
    assert min(near) > found.score - 1e-4 * abs(found.score)  # it is flat there


@pytest.mark.parametrize("method", ["gcv", "evidence"])
@pytest.mark.first_is_quick
def test_a_lam_for_every_group_is_that_of_all_data(method):
    options = {"groups": GROUPS, "method": method}
    got = jax.device_get(linear.group_ridge(total_of(x=X, y=Y), **options))
    wanted = jax.device_get(linear.group_ridge(X, Y, **options))
    close(got[:4], wanted[:4])
    np.testing.assert_array_equal(got.edge, wanted.edge)


def test_parts_add_in_any_order_and_whatever_they_were_summed_around():
    parts = [statistics(**batch) for batch in batches(x=X, y=Y, fold=FOLD)]
    (whole,) = batches((N,), x=X, y=Y, fold=FOLD)
    wanted = path(X, Y)
    close(linear.ridge_path(sum(parts), lams=LAMS), wanted)
    close(linear.ridge_path(sum(reversed(parts)), lams=LAMS), wanted)
    moved = statistics(**whole, shift=np.hstack([X, Y])[3])
    close(linear.ridge_path(moved, lams=LAMS), wanted)
    again = pickle.loads(pickle.dumps(parts[0]))
    close(linear.ridge_path(again + parts[1] + parts[2] + parts[3], lams=LAMS), wanted)


def test_devices_add_them_by_psum():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shift = np.hstack([X, Y])[:10].mean(axis=0)

    def part(x, y, fold):
        return jax.lax.psum(statistics(x, y, fold=fold, folds=4, shift=shift), "data")

    spec = P("data")
    summed = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec,) * 3, out_specs=P()))
    got = linear.ridge_cv(
        jax.device_get(summed(X, Y, FOLD)), lams=LAMS, method="folds", per_target=True
    )
    score = np.array([fold_errors(X, Y, lam, None, True) for lam in LAMS])
    assert_chosen(got, X, score, None)


def test_arrays_alone_add_where_all_were_summed_around_one_point():
    shift = np.hstack([X, Y])[0]
    parts = [statistics(**batch, shift=shift) for batch in batches(x=X, y=Y)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    close(linear.ridge_path(total, lams=LAMS), path(X, Y))


def test_float32_columns_far_from_zero_keep_their_digits():
    x, y = X.astype(np.float32), Y.astype(np.float32)
    got = linear.ridge_path(total_of(x=x, y=y), lams=LAMS)
    close(got, path(x.astype(np.float64), y.astype(np.float64)))


def test_traced_sums_in_float32():
    x, y = (X - FAR).astype(np.float32), (Y - 30).astype(np.float32)

    @jax.jit
    def both(x, y):
        return statistics(x[:100], y[:100]) + statistics(x[100:], y[100:])

    total = jax.device_get(both(x, y))
    assert total.second.dtype == jnp.float32
    wanted = path(x.astype(np.float64), y.astype(np.float64))
    close(linear.ridge_path(total, lams=LAMS), wanted, rtol=1e-5)


def test_a_traced_loop_of_ten_thousand_batches_in_float32():
    """Columns far from 0 and one shift, which must not walk away."""
    rng = np.random.default_rng(3)
    x = (100 + rng.normal(size=(10_000, 20, 4))).astype(np.float32)
    noise = rng.normal(size=(10_000, 20, 1))
    y = (x @ np.array([[1.0], [-1.0], [2.0], [0.5]]) + noise).astype(np.float32)
    shift = np.append(x[0].mean(axis=0), y[0].mean())

    @jax.jit
    def summed(x, y):
        def add(total, batch):
            return total + statistics(*batch, shift=shift), None

        first = statistics(x[0], y[0], shift=shift)
        return jax.lax.scan(add, first, (x[1:], y[1:]))[0]

    total = jax.device_get(summed(x, y))
    assert total.second.dtype == jnp.float32
    x, y = x.reshape(-1, 4).astype(np.float64), y.reshape(-1, 1).astype(np.float64)
    got, (coef, *_) = linear.ridge_path(total, lams=LAMS), path(x, y)
    np.testing.assert_allclose(got.coef, coef, rtol=1e-5)
    at_the_mean = got.intercept + x.mean(axis=0) @ np.asarray(got.coef)
    np.testing.assert_allclose(at_the_mean, np.full_like(at_the_mean, y.mean()), rtol=1e-6)


def test_a_path_can_be_differentiated_in_the_data():
    def value(x):
        return jnp.sum(linear.ridge_path(statistics(x, Y), lams=LAMS[2:3]).coef)

    direction = np.random.default_rng(1).normal(size=X.shape)
    ends = [ridge(X + h * direction, Y, LAMS[2])[0].sum() for h in (1e-5, -1e-5)]
    slope = np.vdot(jax.jit(jax.grad(value))(X), direction)
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


def test_a_constant_column_gets_nothing():
    x = np.hstack([X, np.full((N, 1), 1e5 / 3)])
    coef = np.asarray(linear.ridge_path(total_of(x=x, y=Y), lams=[1e-12]).coef)
    assert (coef[0, -1] == 0).all()
    close(coef[:, :-1], path(X, Y, [1e-12])[0], rtol=1e-6)


# What goes wrong.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.where(np.arange(14).reshape(2, 7) == 9, np.nan, 1.0)}, r"nan at \[1, 2\]"),
        ({"x": np.ones((2, 6))}, "`x` must have the columns of the first batch, 7; got .*2, 6"),
        ({"y": np.ones((2, 4))}, "`y` must have the columns of the first batch, 3"),
        ({"y": np.ones(2)}, "`y` must have the columns of the first batch, 3"),
        ({"x": np.ones((3, 7))}, r"`y` must have shape \(3,\)"),
        ({"weights": np.array([1.0, -1.0])}, "`weights` must be >= 0"),
        ({"fold": np.array([0, -1])}, "`fold` must be from 0 to `folds`"),
        ({"fold": np.array([0, 5]), "folds": 4}, "`fold` must be from 0 to `folds` − 1, 3"),
        ({"fold": np.array([0.5, 1])}, "`fold` must be an int"),
    ],
)
def test_a_wrong_batch_is_named_by_its_number(change, message):
    right = {"x": X[:2], "y": Y[:2]}
    with pytest.raises((ValueError, TypeError), match=rf"Batch 2 \(the first is 0\): .*{message}"):
        total_statistics([right, right, right | change])


def test_wrong_uses_are_refused():
    total = statistics(X, Y)
    for wrong, message in (
        (lambda: linear.ridge_cv(total, lams=LAMS), "one of 'gcv', 'evidence', 'folds'"),
        (lambda: linear.ridge_cv(total, lams=LAMS, method=kfold(N, 3)), "'folds'"),
        (lambda: linear.ridge_cv(total, lams=LAMS, method="folds"), "two folds"),
        (lambda: linear.ridge_path(total, Y, LAMS), "`y` must be left out"),
        (lambda: linear.ridge_path(total, lams=LAMS, weights=WEIGHTS), "`weights` must be left"),
        (lambda: linear.ridge_path(total), "lams"),
        (lambda: linear.ridge_path(statistics(X[:1], Y[:1]), lams=LAMS), "two examples"),
        (lambda: linear.group_ridge(total, groups=GROUPS, method="loo"), "'evidence', 'gcv'"),
        (lambda: total + statistics(X[:, 1:], Y), "same columns"),
        (lambda: total_statistics([]), "have a batch"),
        (lambda: jax.jit(lambda f: statistics(X, Y, fold=f))(FOLD), "`folds` must say"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            wrong()
    empty = statistics(X, Y, fold=FOLD * 2)
    with pytest.raises(ValueError, match="none in fold 1, fold 3, fold 5"):
        linear.ridge_cv(empty, lams=LAMS, method="folds")
    with pytest.raises(TypeError):
        total + 1


def test_lost_directions_are_warned_of():
    x = X * 10.0 ** np.arange(0, 14, 2)
    with pytest.warns(UserWarning, match="Scale the features"):
        linear.ridge_path(statistics(x, Y), lams=[1e-9])


def test_statistics_are_a_pytree():
    total = statistics(X, Y[:, 0])
    again = jax.tree.map(lambda leaf: leaf, total)
    assert isinstance(again, Statistics)
    assert again.targets is None
