"""The rules of choice against cases worked by hand, and what they do with NaN, ties and edges."""

import numpy as np
import pytest

from wdjax import sweeps
from wdjax.sweeps import SweepResult

# means 1.1, 1.0, 1.05, 2.0; the standard error of the best is √(4 · 0.1² / 3) / √4 = 0.0577
SCORES = np.array(
    [[1.0, 1.2, 1.0, 1.2], [0.9, 1.1, 0.9, 1.1], [1.0, 1.1, 0.95, 1.15], [2.0, 2.0, 2.0, 2.0]]
)
STRENGTHS = np.array([0.0, 0.1, 1.0, 10.0])


def result(scores=SCORES, hparams=None, epochs=(10,), **others):
    """A sweep with these scores (C, K), or (C, K, S, R)."""
    scores = np.asarray(scores, np.float64)
    scores = scores if scores.ndim == 4 else scores[:, :, None, None]
    hparams = {"weight_decay": STRENGTHS[: len(scores)]} if hparams is None else hparams
    return SweepResult(hparams, scores, 0.5 * scores, np.array(epochs), **others)


def test_min_takes_the_lowest_mean():
    found = sweeps.select(result())
    assert (found.index, found.best, found.hparams) == (1, 1, {"weight_decay": 0.1})
    np.testing.assert_allclose(found.mean, [1.1, 1.0, 1.05, 2.0])
    np.testing.assert_allclose(found.se, [0.1 / 3**0.5, 0.1 / 3**0.5, 0.0456435465, 0.0], atol=1e-9)
    assert (found.epoch, found.edge, found.diverged) == (10, (), 0)


def test_one_standard_error_takes_the_most_regularized_within_reach():
    found = sweeps.select(result(), "1se")
    assert (found.index, found.best) == (2, 1)
    assert found.eligible.tolist() == [False, True, True, False]


def test_two_standard_errors_are_not_one():
    """Means 1.0 and 1.08, of which the best has the standard error 0.0577."""
    scores = np.array([[2.0] * 4, [0.9, 1.1, 0.9, 1.1], [1.08] * 4])
    found = sweeps.select(result(scores), "1se")
    assert (found.index, found.eligible.tolist()) == (1, [False, True, False])


def test_paired_standard_errors_look_at_the_differences_fold_by_fold():
    # the loss of row 2 is 0.1, 0, 0.05, 0.05: mean 0.05, standard error 0.0204
    assert sweeps.select(result(), "paired-1se").index == 1
    # 0.1, −0.08, 0.1, −0.08: mean 0.01, standard error 0.052
    noisy = SCORES.copy()
    noisy[2] = noisy[1] + [0.1, -0.08, 0.1, -0.08]
    assert sweeps.select(result(noisy), "paired-1se").index == 2
    # a loss that is equal in every fold is sure, however small it is
    sure = SCORES.copy()
    sure[2] = sure[1] + 0.01
    assert sweeps.select(result(sure), "paired-1se").index == 1
    assert sweeps.select(result(sure), "1se").index == 2


@pytest.mark.parametrize("rule", ["1se", "paired-1se"])
def test_a_standard_error_rule_never_regularizes_less_than_the_best(rule):
    # the smaller strength is within reach, the larger one is not
    scores = [[1.0, 1.2, 1.0, 1.21], [1.0, 1.2, 1.0, 1.2], [3.0, 3.0, 3.0, 3.0], [4.0] * 4]
    found = sweeps.select(result(scores), rule)
    assert found.index == 1
    assert found.eligible.tolist() == [False, True, False, False]


def test_rows_can_come_in_any_order():
    order = np.array([3, 1, 0, 2])
    shuffled = result(SCORES[order], {"weight_decay": STRENGTHS[order]})
    assert sweeps.select(shuffled).hparams == {"weight_decay": 0.1}
    assert sweeps.select(shuffled, "1se").hparams == {"weight_decay": 1.0}


def test_of_equal_means_the_most_regularized_wins():
    tied = SCORES.copy()
    tied[2] = tied[1][::-1]
    assert sweeps.select(result(tied)).index == 2
    # unless something else is preferred
    less = sweeps.select(result(tied), prefer=lambda hparams: -hparams["weight_decay"])
    assert less.index == 1


def test_a_single_run_that_is_not_finite_puts_a_configuration_out():
    for bad in (np.nan, np.inf, -np.inf):
        broken = SCORES.copy()
        broken[1, 2] = bad
        for rule in ("min", "1se", "paired-1se"):
            found = sweeps.select(result(broken), rule)
            assert found.index == 2
            assert found.diverged == 1
            assert not found.eligible[1]
            assert np.isposinf(found.mean[1])


def test_one_seed_of_many_that_diverged_is_enough():
    scores = np.stack([SCORES, SCORES], axis=2)[..., None]
    scores[1, 0, 1] = np.nan
    found = sweeps.select(result(scores))
    assert (found.index, found.diverged) == (2, 1)
    assert result(scores).finite.sum() == 4 * 4 * 2 - 1


def test_if_everything_diverged_there_is_nothing_to_choose():
    with pytest.raises(ValueError, match=r"`result` must have .* did not diverge; got 4 of 4"):
        sweeps.select(result(np.full((4, 4), np.nan)))


def test_seeds_are_averaged_before_the_error_over_folds_is_taken():
    # two seeds that differ by ±1 in every fold: the mean over seeds has no more spread than before
    scores = np.stack([SCORES - 1, SCORES + 1], axis=2)[..., None]
    np.testing.assert_allclose(sweeps.select(result(scores)).se, sweeps.select(result()).se)


def test_repeats_of_a_split_do_not_shrink_the_standard_error_by_as_much_as_their_number():
    twice = np.concatenate([SCORES, SCORES], axis=1)
    once, both = sweeps.select(result()).se, sweeps.select(result(twice, repeats=2)).se
    # sd with 7 instead of 3 degrees of freedom, over the same √4
    np.testing.assert_allclose(both, once * np.sqrt(3 / 4 * 8 / 7))


def test_one_fold_has_no_standard_error():
    single = result(SCORES[:, :1])
    assert sweeps.select(single).index == 1
    assert np.isnan(sweeps.select(single).se).all()
    for rule in ("1se", "paired-1se"):
        with pytest.raises(
            ValueError, match=rf"`rule` must be 'min' with a single fold, .* got '{rule}'"
        ):
            sweeps.select(single, rule)


@pytest.mark.parametrize(
    ("scores", "edge"), [([3, 2, 1], True), ([1, 2, 3], True), ([2, 1, 3], False)]
)
def test_an_optimum_at_the_edge_of_the_grid_is_flagged(scores, edge):
    swept = result(np.array(scores)[:, None] + np.zeros(2), {"weight_decay": STRENGTHS[1:]})
    if edge:
        with pytest.warns(UserWarning, match=r"at the edge of what was tried for weight_decay"):
            assert sweeps.select(swept).edge == ("weight_decay",)
    else:
        assert sweeps.select(swept).edge == ()


def test_no_decay_at_all_is_no_edge_and_neither_is_a_single_value():
    hparams = {"weight_decay": np.array([0.0, 0.1]), "learning_rate": np.array([0.3, 0.3])}
    assert sweeps.select(result([[1.0], [2.0]], hparams)).edge == ()


def test_zero_as_the_largest_of_logarithms_is_an_edge():
    scores = np.array([3.0, 2.0, 1.0])[:, None] + np.zeros(2)
    with pytest.warns(UserWarning, match="at the edge of what was tried for log10_weight_decay"):
        found = sweeps.select(result(scores, {"log10_weight_decay": np.array([-2.0, -1.0, 0.0])}))
    assert found.edge == ("log10_weight_decay",)


def test_a_function_chooses_as_it_likes_among_what_converged():
    broken = SCORES.copy()
    broken[0, 0] = np.nan
    seen = []

    def worst(scores):
        seen.append(scores)
        return int(np.where(np.isfinite(scores).all(axis=1), scores.mean(axis=1), -1).argmax())

    with pytest.warns(UserWarning, match="edge"):
        assert sweeps.select(result(broken), worst).index == 3
    assert seen[0].shape == (4, 4)
    assert np.isposinf(seen[0][0]).all()
    with pytest.raises(ValueError, match=r"`rule` must return a row in \[0, 4\) .* got 0"):
        sweeps.select(result(broken), lambda scores: 0)
    with pytest.raises(ValueError, match=r"`rule` must return a row .* got 4"):
        sweeps.select(result(), lambda scores: 4)
    with pytest.raises(ValueError, match=r"`rule` must return a row .* got 1.0"):
        sweeps.select(result(), lambda scores: 1.0)


def test_the_best_moment_is_chosen_by_the_mean_over_folds():
    # row 0 is best at the first of two moments, and worse later; row 1 the other way round
    curves = np.array([[[0.4, 2.0], [0.6, 2.0]], [[1.5, 0.9], [1.5, 0.9]]])[:, :, None]
    hparams = {"weight_decay": np.array([0.0, 0.1])}
    swept = result(curves, hparams, epochs=(5, 10))
    with pytest.warns(UserWarning, match="edge"):
        last = sweeps.select(swept)
    best = sweeps.select(swept, at="best")
    assert (last.index, last.epoch) == (1, 10)
    assert (best.index, best.epoch) == (0, 5)
    np.testing.assert_allclose(best.mean, [0.5, 0.9])
    rows = sweeps.table(swept, at="best")
    assert [row["epoch"] for row in rows] == [5, 10]
    np.testing.assert_allclose([row["train"] for row in rows], [0.25, 0.45])


def test_with_several_axes_the_order_comes_from_what_is_preferred():
    hparams = sweeps.grid(weight_decay=[0.0, 0.1, 1.0], learning_rate=[0.1, 0.2, 0.4])
    means = np.array([9, 5, 9, 9, 1.0, 9, 1.2, 1.1, 1.15])
    scores = means[:, None] + np.array([-0.3, 0.3])
    with pytest.warns(UserWarning, match="edge"):
        found = sweeps.select(result(scores, hparams), "1se")
    # the largest decay within reach, and its lowest mean
    assert found.hparams == {"weight_decay": 1.0, "learning_rate": 0.2}
    with pytest.warns(UserWarning, match="edge"):
        found = sweeps.select(result(scores, hparams), "1se", prefer="learning_rate")
    assert found.hparams == {"weight_decay": 1.0, "learning_rate": 0.4}


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        ValueError, match=r"`rule` must be one of 'min', '1se', 'paired-1se'; got '2se'"
    ):
        sweeps.select(result(), "2se")
    with pytest.raises(ValueError, match=r"`at` must be one of 'last', 'best'; got 'end'"):
        sweeps.select(result(), at="end")
    with pytest.raises(
        ValueError, match=r"`prefer` must be a hyperparameter .*, of .*'weight_decay'; got 'lam'"
    ):
        sweeps.select(result(), "1se", prefer="lam")
    with pytest.raises(
        ValueError, match=r"`prefer` must be a hyperparameter .*, of .*'a'; got 'weight_decay'"
    ):
        sweeps.select(result(hparams={"a": STRENGTHS}), "1se")
    with pytest.raises(
        ValueError, match=r"`prefer` must give a number for each of 4 .* got shape \(1,\)"
    ):
        sweeps.select(result(), prefer=lambda hparams: [1.0])
    with pytest.raises(ValueError, match=r"`prefer` must give .* got shape \(4,\), 1 of them NaN"):
        sweeps.select(result(), "1se", prefer=lambda hparams: [0.0, 1.0, np.nan, 3.0])
    with pytest.raises(
        ValueError, match=r"`name` must be a hyperparameter .*, of 'weight_decay'; got 'lam'"
    ):
        sweeps.validation_curve(result(), "lam")
    with pytest.raises(ValueError, match=r"`name` must be a hyperparameter with one number"):
        sweeps.validation_curve(result(hparams={"a": np.ones((4, 2))}), "a")
    with pytest.raises(ValueError, match=r"`x` must be .*, of .*'weight_decay'; got 'lr'"):
        sweeps.heatmap(result(), "lr", "weight_decay")
    with pytest.raises(ValueError, match=r"`y` must be .*, of .*'weight_decay'; got 'lr'"):
        sweeps.heatmap(result(), "weight_decay", "lr")
    assert sweeps.select(result(hparams={"a": STRENGTHS})).index == 1  # min needs no order


@pytest.mark.parametrize(
    "look",
    [
        sweeps.select,
        sweeps.table,
        lambda found: sweeps.validation_curve(found, "weight_decay"),
        lambda found: sweeps.heatmap(found, "weight_decay", "weight_decay"),
    ],
    ids=["select", "table", "validation_curve", "heatmap"],
)
def test_what_is_no_result_is_refused(look):
    with pytest.raises(TypeError, match=r"`result` must be a SweepResult; got dict\. It comes"):
        look({})
    with pytest.raises(TypeError, match=r"`selection` must be a Selection; got dict\. It comes"):
        sweeps.refit(None, {}, np.ones(4), init=None, loss=None, batch_size=None)


GRID = sweeps.grid(weight_decay=[1.0, 0.1], learning_rate=[0.5, 0.1, 0.2])
MEANS = np.array([3.0, 2.0, np.nan, 1.0, np.nan, np.nan])


def test_a_curve_takes_the_best_of_the_other_axes_in_increasing_order():
    swept = result(MEANS[:, None] + np.array([-0.1, 0.1]), GRID)
    curve = sweeps.validation_curve(swept, "weight_decay")
    np.testing.assert_array_equal(curve.x, [0.1, 1.0])
    np.testing.assert_allclose(curve.mean, [1.0, 2.0])
    np.testing.assert_allclose(curve.se, [0.1, 0.1])
    np.testing.assert_allclose(curve.train, [0.5, 1.0])
    np.testing.assert_array_equal(curve.index, [3, 1])
    other = sweeps.validation_curve(swept, "learning_rate")
    np.testing.assert_allclose(other.mean, [2.0, np.inf, 1.0])


def test_a_heat_map_has_the_first_name_from_left_to_right_and_marks_what_diverged():
    found = sweeps.heatmap(result(MEANS[:, None], GRID), "learning_rate", "weight_decay")
    np.testing.assert_array_equal(found.x, [0.1, 0.2, 0.5])
    np.testing.assert_array_equal(found.y, [0.1, 1.0])
    np.testing.assert_array_equal(found.mean, [[np.nan, np.nan, 1.0], [2.0, np.nan, 3.0]])
    np.testing.assert_array_equal(found.diverged, [[True, True, False], [False, True, False]])


def test_a_table_lists_the_best_first_and_what_diverged_last():
    rows = sweeps.table(result(MEANS[:, None] + np.array([-0.1, 0.1]), GRID))
    assert [row["mean"] for row in rows] == [1.0, 2.0, 3.0, np.inf, np.inf, np.inf]
    first = {"weight_decay": 0.1, "learning_rate": 0.5, "mean": 1.0, "train": 0.5, "epoch": 10}
    assert first.items() <= rows[0].items()
    np.testing.assert_allclose(rows[0]["se"], 0.1)
    assert [row["diverged"] for row in rows] == [0, 0, 0, 2, 2, 2]


def test_a_hyperparameter_keeps_a_name_with_dots():
    swept = result(hparams={"adam.b1": STRENGTHS})
    assert sweeps.validation_curve(swept, "adam.b1").x.tolist() == sorted(STRENGTHS)
    assert "adam.b1" in sweeps.table(swept)[0]


def test_nested_hyperparameters_are_named_by_their_path():
    hparams = {"weight_decay": {"kernel": STRENGTHS, "bias": STRENGTHS[::-1]}}
    swept = result(hparams=hparams)
    assert sweeps.validation_curve(swept, "weight_decay/bias").index.tolist() == [3, 2, 1, 0]
    assert sweeps.select(swept, "1se", prefer="weight_decay/kernel").index == 2
    assert sweeps.table(swept)[0]["weight_decay/kernel"] == 0.1


def test_the_html_is_the_table_with_the_best_first():
    val = np.array([[0.5, 0.7], [np.nan, 0.6], [0.1, 0.2]])
    text = result(val)._repr_html_()
    assert "configurations: 3, folds: 2, seeds: 1; the best first" in text
    rows = text.split("<tr>")[2:]
    assert [">0.15<" in row for row in rows] == [True, False, False]
    assert 'data-v="1e999">inf<' in rows[-1]
    assert "1 with runs that are not finite; these never win" in text
