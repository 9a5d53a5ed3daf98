"""Figures of sweeps: what is drawn where, and what cannot be drawn."""

import numpy as np
import pytest

from wdjax import plots
from wdjax.sweeps import Curve, HeatMap

figure = pytest.importorskip("matplotlib.figure")


def curve(x=(0.0, 0.1, 1.0, 10.0), mean=(3.0, 1.0, 2.0, np.inf)):
    x, mean = np.array(x), np.array(mean)
    se = np.where(np.isfinite(mean), 0.1, np.nan)
    return Curve("weight_decay", x, mean, se, 0.5 * mean, np.arange(len(x)))


def heat_map(mean=((1.0, np.nan, 3.0), (2.0, 5.0, np.nan))):
    diverged = np.array([[False, True, False], [False, False, False]])
    return HeatMap(("a", "b"), np.array([0.1, 1.0, 10.0]), np.array([0.0, 2.0]), mean, diverged)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def line(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.validation_curve(curve(), ax=ax),
        lambda ax: plots.heat_map(heat_map(), ax=ax),
        lambda ax: plots.coefficient_path([0.1, 1.0], [[1.0], [0.5]], ax=ax),
    ],
)
def test_a_figure_is_drawn_on_the_given_axes_or_on_a_new_one(draw):
    given = figure.Figure().subplots()
    assert draw(given) is given
    new = draw(None)
    assert new is not given
    new.figure.canvas.draw()


def test_a_validation_curve_shows_means_errors_choices_and_what_diverged():
    ax = plots.validation_curve(curve(), chosen={"min": 0.1, "1-SE": 1.0})
    (bars,) = ax.containers
    np.testing.assert_array_equal(bars[0].get_xydata(), [[0.0, 3.0], [0.1, 1.0], [1.0, 2.0]])
    (ends,) = (collection.get_segments() for collection in bars[2])
    np.testing.assert_allclose([s[:, 1] for s in ends], [[2.9, 3.1], [0.9, 1.1], [1.9, 2.1]])
    np.testing.assert_allclose(line(ax, "training").get_ydata(), [1.5, 0.5, 1.0])
    assert list(line(ax, "min: 0.1").get_xdata()) == [0.1, 0.1]
    assert list(line(ax, "1-SE: 1").get_xdata()) == [1.0, 1.0]
    assert list(line(ax, "diverged").get_xdata()) == [10.0]
    assert ax.get_xlabel() == "weight_decay"


@pytest.mark.parametrize(
    ("x", "scale"),
    [
        ((0.1, 1.0, 10.0, 100.0), "log"),
        ((0.0, 0.1, 1.0, 10.0), "symlog"),
        ((1.0, 2.0, 3.0, 4.0), "linear"),
        ((-10.0, 0.1, 1.0, 10.0), "linear"),
        ((0.0, 0.0, 0.0, 0.0), "linear"),
    ],
)
def test_the_axis_is_logarithmic_when_the_values_are_and_keeps_zero(x, scale):
    ax = plots.validation_curve(curve(x))
    assert ax.get_xscale() == scale
    if scale == "symlog":
        places = ax.transData.transform([(v, 1.0) for v in x])[:, 0]
        left = ax.transAxes.transform((0.0, 0.0))[0]
        assert left < places[0] < places[1]
        np.testing.assert_allclose(places[3] - places[2], places[2] - places[1])  # equal decades


def test_a_curve_without_errors_has_none():
    bare = curve()._replace(se=np.full(4, np.nan))  # a single fold
    (bars,) = plots.validation_curve(bare).containers
    heights = [np.ptp(s[:, 1]) for s in bars[2][0].get_segments()]
    np.testing.assert_array_equal(heights, 0.0)


def test_a_heat_map_puts_rows_up_columns_right_and_crosses_out_what_diverged():
    ax = plots.heat_map(heat_map(), chosen={"min": (0.1, 2.0)})
    (mesh,) = ax.collections
    shown = mesh.get_array().reshape(2, 3)
    np.testing.assert_array_equal(np.ma.filled(shown, np.nan), heat_map().mean)
    np.testing.assert_array_equal(line(ax, "diverged").get_xydata(), [[1.5, 0.5]])
    np.testing.assert_array_equal(line(ax, "min").get_xydata(), [[0.5, 1.5]])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["0.1", "1", "10"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["0", "2"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("a", "b")
    assert labels(ax) == ["diverged", "min"]


def test_colours_are_logarithmic_when_the_scores_are():
    from matplotlib.colors import LogNorm

    (narrow,) = plots.heat_map(heat_map()).collections
    (wide,) = plots.heat_map(heat_map(((1.0, np.nan, 3.0), (2.0, 50.0, 9.0)))).collections
    assert not isinstance(narrow.norm, LogNorm)
    assert isinstance(wide.norm, LogNorm)


def test_a_map_of_nothing_but_divergence_can_be_drawn():
    nothing = heat_map(np.full((2, 3), np.nan))._replace(diverged=np.ones((2, 3), bool))
    ax = plots.heat_map(nothing)
    assert len(line(ax, "diverged").get_xdata()) == 6


def test_long_axes_have_few_labels():
    many = HeatMap(
        ("a", "b"), np.arange(50.0), np.zeros(1), np.ones((1, 50)), np.zeros((1, 50), bool)
    )
    assert len(plots.heat_map(many).get_xticklabels()) <= 6


def test_a_coefficient_path_is_sorted_by_strength_and_named_at_its_weak_end():
    ax = plots.coefficient_path(
        [1.0, 0.1], [[0.5, 0.0], [2.0, -1.0]], names=["bmi", "age"], chosen={"min": 0.3}
    )
    bmi = ax.get_lines()[1].get_xydata()
    np.testing.assert_array_equal(bmi, [[0.1, 2.0], [1.0, 0.5]])
    texts = {t.get_text().strip(): t.get_position() for t in ax.texts}
    assert texts == {"bmi": (0.1, 2.0), "age": (0.1, -1.0)}
    assert labels(ax) == ["min: 0.3"]


@pytest.mark.parametrize(
    ("strengths", "coefficients", "names"),
    [
        ([0.1, 1.0], [[1.0, 2.0]], None),
        ([0.1], [1.0], None),
        ([[0.1]], [[1.0]], None),
        ([0.1], [[1.0, 2.0]], ["a"]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(strengths, coefficients, names):
    with pytest.raises(ValueError, match=r"`coefficients` must have shape \(L, D\).* got \("):
        plots.coefficient_path(strengths, coefficients, names=names)


@pytest.mark.parametrize("names", [np.array(["bmi", "age"]), ("bmi", "age"), np.array([3, 4])])
def test_names_of_a_coefficient_path_may_be_any_sequence(names):
    ax = plots.coefficient_path([0.1, 1.0], [[2.0, -1.0], [0.5, 0.0]], names=names)
    assert [text.get_text().strip() for text in ax.texts] == [str(name) for name in names]
    with pytest.raises(ValueError, match=r"got \(1, 3\), strengths \(1,\) and 2 names"):
        plots.coefficient_path([0.1], [[1.0, 2.0, 3.0]], names=names)
    with pytest.raises(ValueError, match=r"and 0 names"):
        plots.coefficient_path([0.1], [[1.0, 2.0, 3.0]], names=[])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.validation_curve(curve(), chosen=0.1),
        lambda: plots.heat_map(heat_map(), chosen=(0.1, 2.0)),
        lambda: plots.coefficient_path([0.1, 1.0], [[1.0], [0.5]], chosen=0.1),
    ],
)
def test_a_choice_without_a_label_says_what_to_pass(draw):
    with pytest.raises(TypeError, match=r"`chosen` must be a dict, label: data; got (float|tuple)"):
        draw()


def test_the_numbers_of_non_zero_coefficients_stand_above_the_curve():
    found = curve()
    ax = plots.validation_curve(found, nonzeros=np.arange(len(found.x)) * 2)
    shown = {float(t.get_position()[0]): t.get_text() for t in ax.texts}
    assert shown == {float(x): str(2 * i) for i, x in enumerate(found.x)}
    with pytest.raises(ValueError, match="`nonzeros` must be a number for each value; got 1 for"):
        plots.validation_curve(found, nonzeros=[1])
