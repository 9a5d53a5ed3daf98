"""Small data: shapes, splits, and standardization by the training part alone."""

import sys

import numpy as np
import pytest

from wdjax import datasets

LOADERS = {
    "linear": (datasets.linear, (80, 1), (20, 1), np.float32),
    "diabetes": (datasets.diabetes, (353, 10), (89, 10), np.float32),
    "digits": (datasets.digits, (1437, 64), (360, 64), np.int32),
}


@pytest.fixture(params=LOADERS, name="row")
def _row(request):
    return LOADERS[request.param]


def test_shapes_and_dtypes_are_as_documented(row):
    load, train_shape, test_shape, y_dtype = row
    for part, shape in zip(load(), (train_shape, test_shape), strict=True):
        assert set(part) == {"x", "y"}
        assert isinstance(part["x"], np.ndarray)
        assert isinstance(part["y"], np.ndarray)
        assert part["x"].shape == shape
        assert part["y"].shape == shape[:1]
        assert part["x"].dtype == np.float32
        assert part["y"].dtype == y_dtype


def test_the_same_seed_gives_the_same_data_and_another_seed_another_split(row):
    load = row[0]
    first, again, other = load(3), load(3), load(4)
    for part in ("train", "test"):
        for name in ("x", "y"):
            np.testing.assert_array_equal(getattr(first, part)[name], getattr(again, part)[name])
    assert not np.array_equal(first.train["y"], other.train["y"])


def test_a_seed_below_zero_or_not_whole_is_refused(row):
    with pytest.raises(ValueError, match=r"`seed` must be a whole number >= 0; got -1\."):
        row[0](-1)
    with pytest.raises(TypeError, match=r"`seed` must be a whole number >= 0; got 0\.5"):
        row[0](seed=0.5)


def test_linear_scatters_around_the_documented_line():
    train, test = datasets.linear(seed=0)
    x = np.concatenate([train["x"], test["x"]])[:, 0].astype(np.float64)
    noise = np.concatenate([train["y"], test["y"]]) - (3.0 * x + 5.0)
    assert x.min() >= -1.0
    assert x.max() <= 1.0
    # 100 draws of N(0, 0.5²): the mean is within 4 standard errors, the sd within 4 of its own
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(100)
    assert abs(noise.std() - 0.5) < 4 * 0.5 / np.sqrt(200)


@pytest.mark.parametrize("load", [datasets.diabetes, datasets.digits])
def test_the_split_keeps_every_example_exactly_once(load):
    from sklearn.datasets import load_diabetes, load_digits

    raw = load_diabetes if load is datasets.diabetes else load_digits
    y = raw(return_X_y=True)[1]
    train, test = load(seed=1)
    together = np.concatenate([train["y"], test["y"]])
    if load is datasets.diabetes:  # y itself is standardized: undo it by matching mean and sd
        together = (together - together.mean()) / together.std()
        y = (y - y.mean()) / y.std()
    np.testing.assert_allclose(np.sort(together), np.sort(y), atol=1e-5)


@pytest.mark.parametrize("name", ["x", "y"])
def test_diabetes_is_standardized_with_train_statistics_only(name):
    train, test = datasets.diabetes()
    np.testing.assert_allclose(train[name].mean(axis=0), 0.0, atol=1e-5)
    np.testing.assert_allclose(train[name].std(axis=0), 1.0, atol=1e-5)
    assert np.all(np.abs(test[name].mean(axis=0)) > 1e-4)  # its own mean would have been 0
    assert np.all(np.abs(test[name].std(axis=0) - 1.0) > 1e-4)


def test_standardization_by_hand_on_a_tiny_table(monkeypatch):
    # column 1 is constant where it trains: centered, and not divided by zero where it tests
    raw_x = np.array([[0.0, 7.0], [2.0, 7.0], [4.0, 7.0], [6.0, 7.0], [100.0, 7.0]])
    raw_y = np.array([0, 1, 2, 3, 4])
    held_out = np.random.default_rng(0).permutation(5)[-1]
    raw_x[held_out, 1] = 9.0

    class Loader:
        @staticmethod
        def load_digits(return_X_y):
            assert return_X_y
            return raw_x, raw_y

    monkeypatch.setattr(datasets, "_sklearn_datasets", lambda: Loader)
    train, test = datasets.digits(seed=0)
    kept = [raw_x[i, 0] for i in train["y"]]
    mean = sum(kept) / 4
    sd = (sum((value - mean) ** 2 for value in kept) / 4) ** 0.5
    expected_train = [[(value - mean) / sd, 0.0] for value in kept]
    expected_test = [[(raw_x[held_out, 0] - mean) / sd, 2.0]]
    np.testing.assert_allclose(train["x"], expected_train, rtol=1e-6)
    np.testing.assert_allclose(test["x"], expected_test, rtol=1e-6)


def test_constant_pixels_of_digits_become_zero_and_not_nan():
    train, test = datasets.digits()
    constant = train["x"].std(axis=0) == 0.0
    assert constant.sum() >= 1
    assert np.all(train["x"][:, constant] == 0.0)
    assert np.isfinite(train["x"]).all()
    assert np.isfinite(test["x"]).all()


@pytest.mark.parametrize("load", [datasets.diabetes, datasets.digits])
def test_missing_scikit_learn_names_the_extra(load, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)  # None makes the import statement fail
    with pytest.raises(ImportError, match=r"scikit-learn .* not installed.*pip install"):
        load()


def test_linear_needs_no_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    assert datasets.linear().train["x"].shape == (80, 1)
