"""Figures: the data drawn is the data given, on the Axes given, and nothing global changes."""

import subprocess
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wdjax import plots

FUNCTIONS = {
    "loss_curve": (plots.loss_curve, {"none": [3.0, 2.0, 1.0], "L2": [4.0, 3.0, 2.0]}),
    "weight_norms": (plots.weight_norms, {"none": [3.0, 2.0, 1.0], "L2": [4.0, 3.0, 2.0]}),
    "rotations": (plots.rotations, {"none": [0.3, 0.2, 0.1], "L2": [0.4, 0.3, 0.2]}),
    "weight_histogram": (plots.weight_histogram, {"none": [3.0, -2.0], "L2": [0.1, 0.0]}),
    "coefficients": (plots.coefficients, {"L2": [3.0, -2.0], "L1": [1.0, 0.0]}),
}


@pytest.fixture(name="ax")
def _ax():
    return Figure().subplots()


@pytest.fixture(params=FUNCTIONS, name="row")
def _row(request):
    return FUNCTIONS[request.param]


def test_every_function_returns_the_axes_it_was_given(row, ax):
    function, data = row
    assert function(data, ax=ax) is ax


def test_every_function_makes_a_figure_of_its_own_without_pyplot(row, tmp_path):
    function, data = row
    ax = function(data)
    assert isinstance(ax, Axes)
    ax.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_every_figure_has_axis_labels_and_a_legend_in_the_order_of_the_data(row, ax):
    function, data = row
    function(data, ax=ax)
    assert ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert [label.split(" (")[0] for label in labels] == list(data)


def test_no_global_setting_changes(row, ax):
    function, data = row
    before = dict(mpl.rcParams)
    function(data, ax=ax)
    assert dict(mpl.rcParams) == before


def test_empty_data_says_what_to_pass(row):
    with pytest.raises(ValueError, match=r"must have at least one entry; got none\. Pass label"):
        row[0]({})


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, wdjax.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_missing_matplotlib_names_the_extra(row, monkeypatch):
    function, data = row
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"matplotlib .* not installed.*wdjax\[plot\]"):
        function(data)


CURVES = [plots.loss_curve, plots.weight_norms, plots.rotations]
PREDICTED = [plots.weight_norms, plots.rotations]


@pytest.mark.parametrize("function", CURVES)
def test_curves_draw_the_values_at_the_steps(function, ax):
    function({"none": [3.0, 2.0], "L2": np.array([4.0, 1.0])}, steps=[10, 20], ax=ax)
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_xydata(), [[10, 3.0], [20, 2.0]])
    np.testing.assert_array_equal(second.get_xydata(), [[10, 4.0], [20, 1.0]])
    assert first.get_color() != second.get_color()
    assert first.get_linestyle() != second.get_linestyle()


def test_without_steps_curves_count_from_one(ax):
    plots.loss_curve({"train": [3.0, 2.0, 1.0]}, ax=ax)
    np.testing.assert_array_equal(ax.get_lines()[0].get_xdata(), [1, 2, 3])


def test_a_second_call_on_the_same_axes_takes_the_next_color_and_stays_in_view(ax):
    plots.weight_norms({"short": [1.0]}, steps=[5], ax=ax)
    plots.weight_norms({"long": [9.0, 8.0]}, steps=[5, 6], ax=ax)
    first, second = ax.get_lines()
    assert first.get_color() != second.get_color()
    assert ax.get_ylim()[0] == 0.0
    assert ax.get_ylim()[1] > 9.0


@pytest.mark.parametrize(
    ("lowest", "scale"), [(0.2, "log"), (0.21, "linear"), (0.0, "linear"), (-1.0, "linear")]
)
@pytest.mark.parametrize("function", [plots.loss_curve, plots.rotations])
def test_losses_and_angles_are_logarithmic_only_when_positive_over_a_factor_of_ten(
    function, lowest, scale, ax
):
    function({"a": [2.0, 1.0], "b": [2.0, lowest]}, ax=ax)
    assert ax.get_yscale() == scale


@pytest.mark.parametrize("function", PREDICTED)
def test_what_was_predicted_is_dotted_in_the_colour_of_its_curve(function, ax):
    predicted = {"L2": 0.5, "none": [0.1, np.inf, 0.3]}
    function(
        {"none": [1.0, 2.0, 3.0], "L2": [4.0, 5.0, 6.0]},
        steps=[0, 5, 9],
        ax=ax,
        predicted=predicted,
    )
    none, l2, flat, row, sample = ax.get_lines()
    np.testing.assert_array_equal(flat.get_xydata(), [[0, 0.5], [5, 0.5], [9, 0.5]])
    np.testing.assert_array_equal(row.get_xydata(), [[0, 0.1], [5, np.nan], [9, 0.3]])
    assert (flat.get_color(), row.get_color()) == (l2.get_color(), none.get_color())
    assert all(line.is_dashed() for line in (flat, row, sample))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["none", "L2", "predicted"]


@pytest.mark.parametrize("function", PREDICTED)
def test_without_predictions_nothing_is_said_of_them(function, ax):
    function({"L2": [1.0, 2.0]}, predicted={}, ax=ax)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["L2"]


@pytest.mark.parametrize("function", PREDICTED)
def test_predictions_that_fit_no_curve_are_refused(function):
    with pytest.raises(
        ValueError, match=r"got .* in 'L1', and curves of lengths \{'none': 1, 'L2'"
    ):
        function({"none": [1.0], "L2": [1.0]}, predicted={"L1": 1.0})
    with pytest.raises(
        ValueError, match=r"got shape \(2,\) in 'L2', and curves of lengths \{'L2': 1"
    ):
        function({"L2": [1.0]}, predicted={"L2": [1.0, 2.0]})


def test_half_lives_are_bars_in_order_and_infinite_ones_read_never(ax):
    assert plots.half_lives({"kernel": 6931.4, "bias": np.inf, "head": 0.7}, ax=ax, run=50) is ax
    first, never, last = ax.patches
    assert first.get_x() + first.get_width() == pytest.approx(6931.4)
    assert never.get_width() == 0
    assert last.get_x() + last.get_width() == pytest.approx(0.7)
    assert [text.get_text() for text in ax.texts] == ["6,931", "never", "0.7"]
    assert [text.get_text() for text in ax.get_yticklabels()] == ["kernel", "bias", "head"]
    assert ax.get_xscale() == "log"
    left, right = ax.get_xlim()
    assert left < 0.7 / 1.9
    assert right > 6931.4 * 1.9
    assert ax.get_ylim() == (2.5, -0.5)


def test_half_lives_mark_the_run(ax):
    plots.half_lives({"kernel": 100.0}, run=20_000, ax=ax)
    (line,) = ax.get_lines()
    assert list(line.get_xdata()) == [20_000, 20_000]
    assert ax.get_xlim()[1] > 20_000
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["run: 20,000 steps"]


def test_half_lives_of_groups_that_never_decay_still_draw(tmp_path):
    plots.half_lives({"bias": np.inf}).figure.savefig(tmp_path / "figure.png")


def test_half_lives_must_be_positive():
    with pytest.raises(ValueError, match=r"`steps` must have at least one entry; got none"):
        plots.half_lives({})


@pytest.mark.parametrize("function", [plots.weight_histogram, plots.coefficients])
def test_the_legend_stands_above_the_data(function):
    ax = function({label: np.array([-1.0, 0.0, 0.0, 4.0]) for label in "abcd"})
    ax.figure.draw_without_rendering()
    top = ax.dataLim.y1 if function is plots.coefficients else 2.0  # of the histogram: two zeros
    legend = ax.get_legend().get_window_extent()
    assert legend.y0 > ax.transData.transform((0.0, top))[1]


@pytest.mark.parametrize("function", CURVES)
def test_curves_of_unequal_length_name_the_curve(function):
    with pytest.raises(ValueError, match=r"one number for each step; got shape \(3,\) in 'L2'"):
        function({"none": [1.0, 2.0], "L2": [1.0, 2.0, 3.0]}, steps=[1, 2])
    with pytest.raises(ValueError, match=r"got shape \(1, 2\) in 'none' and no steps"):
        function({"none": [[1.0, 2.0]]})


def test_histogram_counts_every_weight_once_in_common_bins(ax):
    trees = {"none": {"a": np.array([[-2.0, 1.0]]), "b": np.array([0.5])}, "L1": [0.0, 0.0, 0.1]}
    plots.weight_histogram(trees, ax=ax, bins=5)
    first, second = (patch.get_data() for patch in ax.patches)
    # edges -2, -1.2, -0.4, 0.4, 1.2, 2: counted by hand
    np.testing.assert_allclose(first.edges, [-2.0, -1.2, -0.4, 0.4, 1.2, 2.0], atol=1e-12)
    np.testing.assert_allclose(second.edges, first.edges)
    np.testing.assert_array_equal(first.values, [1, 0, 0, 2, 0])
    np.testing.assert_array_equal(second.values, [0, 0, 3, 0, 0])


def test_histogram_says_how_many_weights_are_exactly_zero(ax):
    plots.weight_histogram({"none": [1.0, 1e-30], "L1": [0.0, -0.0, 1.0]}, ax=ax)
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["none (0 of 2 exactly 0)", "L1 (2 of 3 exactly 0)"]


def test_histogram_of_zeros_only_still_draws(ax):
    plots.weight_histogram({"L1": np.zeros(4)}, ax=ax)
    assert ax.patches[0].get_data().values.sum() == 4


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_histogram_of_a_diverged_model_names_it(broken):
    with pytest.raises(ValueError, match=r"must be finite; got 1 of 2 NaN or infinite in 'none'"):
        plots.weight_histogram({"L2": [1.0], "none": [1.0, broken]})


def test_coefficients_draw_values_and_hollow_markers_for_exact_zeros(ax):
    plots.coefficients({"L2": [3.0, -2.0], "L1": [1.0, 0.0]}, names=["bmi", "age"], ax=ax)
    points = [line for line in ax.get_lines() if line.get_marker() != "None"]
    drawn = [list(line.get_ydata()) for line in points]
    assert drawn == [[3.0, -2.0], [], [1.0], [0.0]]
    assert points[3].get_markerfacecolor() == "white"
    assert points[2].get_markerfacecolor() != "white"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["bmi", "age"]
    np.testing.assert_allclose(np.round(points[0].get_xdata()), [0, 1])


def test_data_without_labels_says_what_to_pass(row):
    with pytest.raises(TypeError, match=r"must be a dict, label: data; got ndarray\. Pass \w+={'l"):
        row[0](np.ones(3))
    for function in (plots.half_lives, plots.loss_curve):
        with pytest.raises(TypeError, match="got float"):
            function(100.0)


@pytest.mark.parametrize("function", [plots.weight_norms, plots.rotations])
def test_predictions_without_labels_say_what_to_pass(function):
    with pytest.raises(TypeError, match=r"`predicted` must be a dict, label: data; got float"):
        function({"L2": [2.0]}, predicted=2.0)


def test_coefficients_of_several_targets_are_not_strung_together():
    with pytest.raises(
        ValueError, match=r"got shape \(3, 2\) in 'ridge'\. Give each target a label"
    ):
        plots.coefficients({"ridge": np.ones((3, 2))})
    kernel = plots.coefficients({"ridge": np.ones((3, 1))}, names=np.array(["a", "b", "c"]))
    assert len(kernel.get_xticklabels()) == 3


@pytest.mark.parametrize("names", [["bmi"], None])
def test_coefficients_of_unequal_length_say_the_lengths(names):
    values = {"L2": [1.0, 2.0], "L1": [1.0, 2.0] if names else [1.0]}
    with pytest.raises(ValueError, match=r"must have equal lengths; got \{'L2': 2"):
        plots.coefficients(values, names=names)


def test_colors_are_distinct_for_seven_models(ax):
    plots.loss_curve({str(number): [1.0] for number in range(7)}, ax=ax)
    assert len({line.get_color() for line in ax.get_lines()}) == 7
