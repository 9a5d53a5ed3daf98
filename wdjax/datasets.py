"""Small real data for examples, tests and benchmarks: nothing is downloaded.

Every loader shuffles by `seed` and splits 80/20. What is standardized uses statistics of the
training part only, so that the test part stays unseen. NumPy arrays: x float32 of shape (N, D), y
of shape (N,).
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from wdjax._trees import checks

Arrays = dict[str, np.ndarray[Any, Any]]

TRAIN_FRACTION = 0.8


class Dataset(NamedTuple):
    """A train and a test part, each a dictionary of arrays with the leading axis N.

    Attributes:
        train: {"x": (N, D) float32, "y": (N,) float32 or int32}.
        test: the same entries, other examples.
    """

    train: Arrays
    test: Arrays


def linear(seed: int = 0) -> Dataset:
    """A noisy straight line: 100 points, 80 to train and 20 to test.

        y = 3x + 5 + ε,  x ~ U(−1, 1),  ε ~ N(0, 0.5²)

    Nothing is standardized, so that the slope 3 and the intercept 5 can be read off a fit.

    Args:
        seed: of the generator that draws x, ε and the split; an int >= 0.

    Returns:
        Dataset: x float32 of shape (N, 1), y float32 of shape (N,); no units.

    Example:
        >>> train, test = linear()
        >>> train["x"].shape, train["y"].shape, test["x"].shape
        ((80, 1), (80,), (20, 1))
    """
    generator = _generator(seed)
    x = generator.uniform(-1.0, 1.0, size=(100, 1))
    y = 3.0 * x[:, 0] + 5.0 + generator.normal(scale=0.5, size=100)
    return _split(x.astype(np.float32), y.astype(np.float32), generator)


def diabetes(seed: int = 0) -> Dataset:
    """Diabetes progression of 442 patients from ten measurements: a regression.

        x ← (x − mean) / sd,  y ← (y − mean) / sd   over the training part

    Args:
        seed: of the generator that draws the split; an int >= 0.

    Returns:
        Dataset: x float32 of shape (353, 10) and (89, 10): age, sex, body mass index, blood
        pressure, six serum values; y float32: progression one year after. All in standard
        deviations of the training part.

    Raises:
        ImportError: scikit-learn, which holds the data, is missing.

    Example:
        >>> train, test = diabetes()
        >>> train["x"].shape, test["x"].shape, round(float(train["y"].std()), 3)
        ((353, 10), (89, 10), 1.0)

    References:
        Efron, Hastie, Johnstone, Tibshirani, *Least Angle Regression*, Annals of Statistics 32(2),
        2004, table 1; arXiv:math/0406456.
    """
    x, y = _sklearn_datasets().load_diabetes(return_X_y=True, scaled=False)
    train, test = _split(x, y, _generator(seed))
    return _standardised(Dataset(train, test), entries=("x", "y"))


def digits(seed: int = 0) -> Dataset:
    """Handwritten digits, 1797 images of 8 × 8 pixels: a classification with ten classes.

        x ← (x − mean) / sd   over the training part; a constant pixel is only centered

    Args:
        seed: of the generator that draws the split; an int >= 0.

    Returns:
        Dataset: x float32 of shape (1437, 64) and (360, 64), in standard deviations of the
        training part; y int32, the digit 0 ... 9.

    Raises:
        ImportError: scikit-learn, which holds the data, is missing.

    Example:
        >>> train, test = digits()
        >>> train["x"].shape, test["x"].shape, train["y"].dtype, int(train["y"].max())
        ((1437, 64), (360, 64), dtype('int32'), 9)

    References:
        Alpaydin, Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
        Repository, 1998, doi:10.24432/C50P49 (its test part).
    """
    x, y = _sklearn_datasets().load_digits(return_X_y=True)
    train, test = _split(x, y.astype(np.int32), _generator(seed))
    return _standardised(Dataset(train, test), entries=("x",))


def _generator(seed: int) -> np.random.Generator:
    checks.whole("seed", seed, least=0)
    return np.random.default_rng(seed)


def _split(x: Any, y: Any, generator: np.random.Generator) -> Dataset:
    order = generator.permutation(len(x))
    cut = int(TRAIN_FRACTION * len(x))
    train, test = order[:cut], order[cut:]
    return Dataset({"x": x[train], "y": y[train]}, {"x": x[test], "y": y[test]})


def _standardised(data: Dataset, entries: tuple[str, ...]) -> Dataset:
    """(v − mean) / sd in float64 with the mean and the (population) sd of the training part."""
    train, test = dict(data.train), dict(data.test)
    for name in entries:
        mean, sd = train[name].mean(axis=0), train[name].std(axis=0)
        sd = np.where(sd > 0, sd, 1.0)  # a constant column has nothing to be divided by
        train[name] = ((train[name] - mean) / sd).astype(np.float32)
        test[name] = ((test[name] - mean) / sd).astype(np.float32)
    return Dataset(train, test)


def _sklearn_datasets() -> ModuleType:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "scikit-learn holds this data and is not installed. Run: pip install scikit-learn"
        ) from error
    return datasets  # type: ignore[no-any-return]
