"""Folds: every example where it should be, unequal sizes, and messages that say what is wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wdjax.folds import Folds, check_folds, holdout, kfold, time_folds
from wdjax.sweeps import log_grid


def parts(folds):
    """(train rows, val rows) of each fold, as sets."""
    rows = zip(*folds, strict=True)
    return [(set(a[wa > 0].tolist()), set(b[wb > 0].tolist())) for a, wa, b, wb in rows]


@settings(max_examples=50, deadline=None)
@given(n=st.integers(4, 60), k=st.integers(2, 7), seed=st.integers(0, 5), repeats=st.integers(1, 3))
def test_every_example_validates_once_in_each_repeat_and_trains_otherwise(n, k, seed, repeats):
    if n < 2 * k:
        with pytest.raises(ValueError, match=r"`k` must be .* Each fold needs two"):
            kfold(n, k, seed=seed)
        return
    folds = kfold(n, k, seed=seed, repeats=repeats)
    check_folds(folds, n)
    found = parts(folds)
    assert len(found) == k * repeats
    for first in range(0, k * repeats, k):
        rows = [i for _, val in found[first : first + k] for i in val]
        assert sorted(rows) == list(range(n))
    for train, val in found:
        assert train | val == set(range(n))
        assert len(val) in (n // k, -(-n // k))


def test_the_tables_have_the_dtypes_and_the_weights_that_programs_expect():
    folds = kfold(7, 3)
    assert [x.dtype for x in folds] == [np.int32, np.float32, np.int32, np.float32]
    assert folds.train.shape == folds.train_weights.shape == (3, 5)
    np.testing.assert_array_equal(folds.val_weights.sum(axis=1), [3, 2, 2])


def test_another_seed_is_another_split_and_the_same_seed_the_same():
    assert parts(kfold(40, 4, seed=1)) == parts(kfold(40, 4, seed=1))
    assert parts(kfold(40, 4, seed=1)) != parts(kfold(40, 4, seed=2))
    halves = parts(kfold(40, 4, repeats=2))
    assert halves[:4] != halves[4:]


@pytest.mark.parametrize("seed", range(5))
def test_a_group_is_never_split(seed):
    groups = np.repeat(["a", "b", "c", "d", "e", "f"], [9, 5, 5, 3, 2, 2])
    for train, val in parts(kfold(26, 3, groups=groups, seed=seed)):
        assert not {groups[i] for i in train} & {groups[i] for i in val}
        assert 8 <= len(val) <= 10


@pytest.mark.parametrize("seed", range(5))
def test_every_part_gets_its_share_of_every_label(seed):
    labels = np.repeat([0, 1, 2], [13, 8, 5])
    for _, val in parts(kfold(26, 4, stratify=labels, seed=seed)):
        counts = np.bincount(labels[sorted(val)], minlength=3)
        assert (np.abs(counts - np.array([13, 8, 5]) / 4) < 1).all()
        assert len(val) in (6, 7)


def test_a_holdout_is_one_fold_of_the_given_size():
    ((train, val),) = parts(holdout(50, 0.3, seed=3))
    assert len(val) == 15
    assert train | val == set(range(50))
    assert not train & val
    assert holdout(10, 0.01).val.shape == (1, 2)
    assert holdout(10, 0.99).train.shape == (1, 2)


def test_time_never_runs_backwards():
    folds = time_folds(23, 4)
    for train, val in parts(folds):
        assert max(train) + 1 == min(val)
        assert len(val) == 4
    assert parts(folds)[-1][1] == set(range(19, 23))


def test_time_folds_are_those_of_scikit_learn():
    model_selection = pytest.importorskip("sklearn.model_selection")
    theirs = Folds.from_sklearn(model_selection.TimeSeriesSplit(4), np.zeros(23))
    assert parts(time_folds(23, 4)) == parts(theirs)


def test_scikit_learns_splitters_keep_their_splits():
    model_selection = pytest.importorskip("sklearn.model_selection")
    x, y = np.zeros((20, 2)), np.repeat([0, 1], 10)
    groups = np.arange(20) // 4
    for cv, extra in (
        (model_selection.StratifiedKFold(4, shuffle=True, random_state=0), {}),
        (model_selection.GroupKFold(3), {"groups": groups}),
        (model_selection.LeaveOneOut(), {}),
    ):
        folds = Folds.from_sklearn(cv, x, y, **extra)
        expected = [(set(a.tolist()), set(b.tolist())) for a, b in cv.split(x, y, **extra)]
        assert parts(folds) == expected


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: kfold(10, 1),
            ValueError,
            r"`k` must be .* \[2, 5\]; got 1. .* For a single split use holdout",
        ),
        (lambda: kfold(3, 5), ValueError, r"`n` must be .* >= 4; got 3. Each fold needs two"),
        (
            lambda: kfold(10, 10),
            ValueError,
            r"\[2, 5\]; got 10. Each fold needs two of the 10.* leave-one-out",
        ),
        (lambda: kfold(10.0, 2), TypeError, r"`n` must be a whole number"),
        (lambda: kfold(10, 2.0), TypeError, r"`k` must be a whole number"),
        (lambda: kfold(10, 2, seed=-1), ValueError, r"`seed` must be a whole number >= 0; got -1"),
        (lambda: kfold(10, 2, seed=0.5), TypeError, r"`seed` must be a whole number >= 0; got 0.5"),
        (lambda: holdout(10, seed=-1), ValueError, r"`seed` must be a whole number >= 0; got -1"),
        (lambda: kfold(10, 2, repeats=0), ValueError, r"`repeats` must be a whole number >= 1"),
        (lambda: kfold(10, 2, groups=[1, 2]), ValueError, r"`groups` must have one label .*\(2,\)"),
        (lambda: kfold(10, 2, stratify=[[1]]), ValueError, r"`stratify` must have one label"),
        (
            lambda: kfold(8, 2, groups=[0] * 8),
            ValueError,
            r"`groups` must allow two .*; got 0 in the smallest of 2 folds, from 1 groups",
        ),
        (
            lambda: kfold(8, 2, groups=[0] * 7 + [1]),
            ValueError,
            r"`groups` must allow two examples in every fold; got 1",
        ),
        (
            lambda: kfold(4, 2, groups=[0] * 4, stratify=[0] * 4),
            ValueError,
            r"`groups` must come without `stratify`; got both",
        ),
        (lambda: holdout(3), ValueError, r"`n` must be .* >= 4; got 3"),
        (lambda: holdout(10, "0.2"), TypeError, r"`fraction` must be .* got '0.2'"),
        (
            lambda: kfold(4, 2, groups=["a", None, "a", "b"]),
            TypeError,
            r"`groups` must hold labels of one kind, .*'NoneType' and 'str'. Give",
        ),
        (lambda: holdout(10, 1.0), ValueError, r"`fraction` must be in \(0, 1\); got 1.0"),
        (lambda: holdout(10, float("nan")), ValueError, r"`fraction` must be .* got nan"),
        (
            lambda: time_folds(10, 5),
            ValueError,
            r"`k` must be .* \[1, 4\]; got 5. Each part needs two",
        ),
        (
            lambda: Folds.from_sklearn(5, np.zeros(9)),
            TypeError,
            r"`cv` must be a splitter .* got 5",
        ),
        (lambda: Folds.from_sklearn("loo", np.zeros(9)), TypeError, r"`cv` must be a splitter"),
        (
            lambda: Folds.from_sklearn([], np.zeros(9)),
            ValueError,
            r"`cv` must give one split or more",
        ),
        (
            lambda: Folds.from_sklearn([([0.5], [1])], np.zeros(9)),
            ValueError,
            r"`cv` must give one split or more, of 1-D arrays of row numbers",
        ),
        (
            lambda: Folds.from_sklearn([([True, False], [False, True])], np.zeros(2)),
            ValueError,
            r"`cv` must give .* of row numbers",
        ),
        (
            lambda: Folds.from_sklearn([([0, 1], [])], np.zeros(9)),
            ValueError,
            r"`cv` must train on some of the 9 .*; got no validation example in fold 0",
        ),
        (
            lambda: Folds.from_sklearn([([0], [1]), ([0], [-1])], np.zeros(9)),
            ValueError,
            r"`cv` must train on some of the 9 .*; got row -1 in fold 1",
        ),
        (
            lambda: Folds.from_sklearn([([0, 3], [3])], np.zeros(9)),
            ValueError,
            r"`cv` must train on some .* and validate on others; got row 3 twice in fold 0",
        ),
    ],
)
def test_bad_input_is_refused_with_the_name_of_the_argument(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_folds_of_other_data_and_of_other_shapes_are_refused():
    folds = kfold(12, 3)
    with pytest.raises(
        ValueError, match=r"`folds` must train on some of the 10 .*; got row \d\d in fold 0"
    ):
        check_folds(folds, 10)
    with pytest.raises(ValueError, match=r"`folds` must hold train \(K, T\).* got shapes"):
        check_folds(folds._replace(val=folds.val[:2]), 12)
    with pytest.raises(
        ValueError, match=r"`folds` must cover all 50 examples; got folds of the first 12\."
    ):
        check_folds(folds, 50)
    with pytest.raises(TypeError, match=r"`folds` must be Folds, such as kfold\(n, 5\); got 5"):
        check_folds(5, 12)


def test_numbers_may_be_scalars_of_jax():
    assert holdout(10, jnp.float32(0.2)).val.shape == (1, 2)
    values = log_grid(jnp.float32(0.01), jnp.float32(1.0), 3)
    np.testing.assert_allclose(values, [0.01, 0.1, 1.0], rtol=1e-6)


def test_rows_in_between_may_be_left_out():
    gap = Folds.from_sklearn([(range(4), range(6, 8)), (range(4), range(8, 10))], np.zeros(10))
    check_folds(gap, 10)
    check_folds(holdout(30), 30)
    check_folds(time_folds(31, 4), 31)
