"""Ridge regression from sums that add, against the solvers that hold all data."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from sklearn.model_selection import PredefinedSplit

from wdjax import linear
from wdjax.folds import Folds, kfold
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


def close(got, wanted, rtol=1e-10):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * abs(np.max(b))),
        tuple(got), tuple(wanted),
    )  # fmt: skip


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("y", [Y, Y[:, 0]], ids=["targets", "one"])
def test_a_path_is_that_of_all_data(y, weights, intercept):
    x = X if intercept else X - FAR  # beside a column far from 0 others lose digits in any sums
    columns = {"x": x, "y": y} | ({} if weights is None else {"weights": weights})
    total = total_statistics(batches(**columns))
    got = linear.ridge_path(total, lams=LAMS, intercept=intercept)
    close(got, linear.ridge_path(x, y, LAMS, intercept=intercept, weights=weights))


def test_a_path_with_a_lam_for_each_group():
    lams = np.array([[1.0, 10.0, 100.0], [5.0, 5.0, 0.1]])
    got = linear.ridge_path(total_statistics(batches(x=X, y=Y)), lams=lams, groups=GROUPS)
    close(got, linear.ridge_path(X, Y, lams, groups=GROUPS))


@pytest.mark.parametrize("per_target", [True, False])
@pytest.mark.parametrize("method", ["gcv", "evidence"])
@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
def test_lam_chosen_by_a_criterion(weights, method, per_target):
    columns = {"x": X, "y": Y} | ({} if weights is None else {"weights": weights})
    total = total_statistics(batches(**columns))
    got = linear.ridge_cv(total, lams=LAMS, method=method, per_target=per_target)
    close(got, linear.ridge_cv(X, Y, LAMS, method=method, per_target=per_target, weights=weights))


def folds_of(labels):
    """The same folds for the solver that holds all data."""
    return Folds.from_sklearn(PredefinedSplit(labels), X)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["plain", "weighted"])
@pytest.mark.parametrize("intercept", [True, False])
def test_lam_chosen_by_folds(intercept, weights):
    x = X if intercept else X - FAR
    columns = {"x": x, "y": Y, "fold": FOLD} | ({} if weights is None else {"weights": weights})
    total = total_statistics(batches(**columns))
    options = {"intercept": intercept, "per_target": True}
    got = linear.ridge_cv(total, lams=LAMS, method="folds", **options)
    close(got, linear.ridge_cv(x, Y, LAMS, method=folds_of(FOLD), weights=weights, **options))


@pytest.mark.parametrize("method", ["gcv", "evidence"])
def test_a_lam_for_every_group(method):
    got = linear.group_ridge(total_statistics(batches(x=X, y=Y)), groups=GROUPS, method=method)
    close(got, linear.group_ridge(X, Y, GROUPS, method=method), rtol=1e-7)  # thirty steps of Adam


def test_parts_add_in_any_order_and_whatever_they_were_summed_around():
    parts = [statistics(**batch) for batch in batches(x=X, y=Y, fold=FOLD)]
    (whole,) = batches((N,), x=X, y=Y, fold=FOLD)
    wanted = linear.ridge_path(statistics(**whole), lams=LAMS)
    close(linear.ridge_path(sum(parts), lams=LAMS), wanted)
    close(linear.ridge_path(sum(reversed(parts)), lams=LAMS), wanted)
    moved = statistics(**whole, shift=np.hstack([X, Y])[3])
    close(linear.ridge_path(moved, lams=LAMS), wanted)
    again = pickle.loads(pickle.dumps(parts[0]))
    close(linear.ridge_path(again + parts[1] + parts[2] + parts[3], lams=LAMS), wanted)


def test_devices_add_them_by_psum():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    shift = jnp.asarray(np.hstack([X, Y])[:10].mean(axis=0))

    def part(x, y, fold):
        return jax.lax.psum(statistics(x, y, fold=fold, folds=4, shift=shift), "data")

    spec = P("data")
    summed = jax.jit(jax.shard_map(part, mesh=mesh, in_specs=(spec,) * 3, out_specs=P()))
    got = linear.ridge_cv(summed(X, Y, FOLD), lams=LAMS, method="folds")
    close(got, linear.ridge_cv(X, Y, LAMS, method=folds_of(FOLD)))


def test_arrays_alone_add_where_all_were_summed_around_one_point():
    shift = np.hstack([X, Y])[0]
    parts = [statistics(**batch, shift=shift) for batch in batches(x=X, y=Y)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *parts)
    close(linear.ridge_path(total, lams=LAMS), linear.ridge_path(X, Y, LAMS))


def test_float32_columns_far_from_zero_keep_their_digits():
    x, y = X.astype(np.float32), Y.astype(np.float32)
    total = total_statistics(batches(x=x, y=y))
    wanted = linear.ridge_path(x.astype(np.float64), y.astype(np.float64), LAMS)
    close(linear.ridge_path(total, lams=LAMS), wanted)


def test_traced_sums_in_float32():
    x, y = (X - FAR).astype(np.float32), (Y - 30).astype(np.float32)

    @jax.jit
    def both(x, y):
        return statistics(x[:100], y[:100]) + statistics(x[100:], y[100:])

    total = both(x, y)
    assert total.second.dtype == jnp.float32
    close(linear.ridge_path(total, lams=LAMS), linear.ridge_path(x, y, LAMS), rtol=1e-5)


def test_a_path_can_be_differentiated_in_the_data():
    def slope(x):
        return jnp.sum(linear.ridge_path(statistics(x, Y), lams=LAMS).coef[2])

    def in_memory(x):
        return jnp.sum(linear.ridge_path(x, Y, LAMS).coef[2])

    np.testing.assert_allclose(jax.grad(slope)(X), jax.grad(in_memory)(X), rtol=1e-6, atol=1e-9)


def test_a_constant_column_gets_nothing():
    x = np.hstack([X, np.full((N, 1), 1e5 / 3)])
    coef = linear.ridge_path(total_statistics(batches(x=x, y=Y)), lams=[1e-12]).coef
    assert (coef[0, -1] == 0).all()
    close(coef[:, :-1], linear.ridge_path(X, Y, [1e-12]).coef, rtol=1e-6)


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
