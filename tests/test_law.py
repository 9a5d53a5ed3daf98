"""The law of λ: recovered where it is known, with intervals that cover, refused where unknown."""

import numpy as np
import pytest

from wdjax import plots, scaling
from wdjax.sweeps import SweepResult

LAMS = np.geomspace(1e-4, 10, 26)


def result(lams, score):
    score = np.asarray(score)[:, :, None, None]
    return SweepResult({"weight_decay": np.asarray(lams)}, score, score, [1])


def bowl(best, noise=(0.0, 0.0), lams=LAMS):
    """Scores whose minimum each run has where its noise puts it."""
    return result(lams, (np.log(lams)[:, None] - np.log(best) - np.asarray(noise)) ** 2)


def test_powers_of_two_factors_are_recovered():
    """From scores that are parabolas the law is exact."""
    sweeps = [
        ({"batch": b, "data": d}, bowl(1e-2 * b / d**0.5)) for b in (8, 16, 64) for d in (1, 3, 9)
    ]
    law = scaling.fit_law(sweeps)
    assert law.exponents == pytest.approx({"batch": 1.0, "data": -0.5}, abs=1e-9)
    assert law.constant == pytest.approx(np.log(1e-2), abs=1e-9)
    assert law.freedom == 6
    forecast = law.predict(batch=256, data=81)
    assert forecast.value == pytest.approx(1e-2 * 256 / 9, rel=1e-9)


def test_the_error_of_an_optimum_is_that_of_the_mean_of_its_runs():
    """Runs that are the same parabola moved have vertices of their own; λ* is their mean."""
    noise = np.array([-0.3, 0.1, 0.2, 0.4])
    sweeps = [({"batch": b}, bowl(1e-3 * b, noise)) for b in (8, 16, 32)]
    for optimum in scaling.fit_law(sweeps).optima:
        assert optimum.value == pytest.approx(1e-3 * optimum.factors["batch"] * np.exp(0.1))
        assert optimum.se == pytest.approx(noise.std(ddof=1) / 2)


def test_a_quantity_of_several_hyperparameters_has_its_own_law():
    """The timescale 1/(ηλ) is fitted where η is swept with λ: the other way round."""
    rates = np.array([1e-3, 1e-2])
    grid = {"rate": np.repeat(rates, len(LAMS)), "weight_decay": np.tile(LAMS, 2)}
    scores = lambda b: (np.log(grid["rate"] * grid["weight_decay"] / (1e-5 * b)) ** 2)[:, None]
    sweeps = [
        ({"batch": b}, result(LAMS, scores(b))._replace(hparams=grid)) for b in (8, 16, 32, 64)
    ]
    law = scaling.fit_law(sweeps, quantity=lambda h: 1 / (h["rate"] * h["weight_decay"]))
    assert law.exponents["batch"] == pytest.approx(-1.0, abs=0.02)


@pytest.mark.parametrize(("runs", "scatter"), [(1, 0.3), (3, 0.0), (3, 0.3)])
def test_most_intervals_cover_what_comes(runs, scatter):
    """100 laws, each asked for a batch four times its largest: 92 to 98 of 100 are covered."""
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        best = lambda b: 2e-3 * b * np.exp(scatter * rng.normal())
        sweeps = [
            ({"batch": b}, bowl(best(b), 0.3 * rng.normal(size=runs)))
            for b in (8, 16, 32, 64, 128, 256)
        ]
        forecast = scaling.fit_law(sweeps).predict(batch=1_024)
        hits += forecast.low <= best(1_024) <= forecast.high
    assert hits >= 85


def test_ridge_has_the_law_of_its_noise():
    """With w ~ N(0, 1) and noise of variance 4 the best λ of mean |y − Xw|²/2 is 4/n, whatever p.

    Bayes: the posterior mean is ridge with λ n = σ². Scores are the squared distances from w.
    """
    rng, lams = np.random.default_rng(1), np.geomspace(3e-3, 3.0, 16)

    def sweep_of(n, p, runs=200):
        scores = np.empty((len(lams), runs))
        for run in range(runs):
            w, x = rng.normal(size=p), rng.normal(size=(n, p))
            y = x @ w + 2 * rng.normal(size=n)
            values, vectors = np.linalg.eigh(x.T @ x / n)
            projected = vectors.T @ x.T @ y / n
            found = vectors @ (projected[:, None] / (values[:, None] + lams))
            scores[:, run] = ((found - w[:, None]) ** 2).sum(0)
        return result(lams, scores)

    sizes = [(n, p) for n in (30, 60, 120) for p in (10, 20)]
    law = scaling.fit_law([({"n": n, "p": p}, sweep_of(n, p)) for n, p in sizes])
    for name, wanted in (("n", -1.0), ("p", 0.0)):
        assert abs(law.exponents[name] - wanted) < 3 * law.errors[name] < 0.5
    forecast = law.predict(n=480, p=20)
    assert forecast.low < 4 / 480 < forecast.high < 2 * forecast.low + 4 / 480


def batches(*sweeps):
    return [({"batch": 2.0**i}, sweep) for i, sweep in enumerate(sweeps)]


FINE = [bowl(0.01 * 2**i) for i in range(3)]
UNKNOWN = {
    "lowest at the edge of the grid, 10": bowl(100.0),
    "lowest at the edge of the grid, 0.0001": bowl(1e-6),
    "every run diverged": result(LAMS, np.full((26, 2), np.nan)),
    "diverged beside the lowest, 0.00630957": result(
        LAMS, np.where(np.arange(26)[:, None] > 9, np.nan, bowl(1e-2).val[..., 0, 0])
    ),
    "flat within its errors": bowl(1e-2)._replace(
        val=np.array([1.0, -0.9])[:, None, None] * bowl(1e-2).val
    ),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_a_sweep_without_an_optimum_is_left_out_and_named(why):
    law = scaling.fit_law(batches(*FINE, UNKNOWN[why]))
    assert [optimum.why for optimum in law.optima] == ["", "", "", why]
    assert law.exponents["batch"] == pytest.approx(1.0)
    assert why in str(law)
    with pytest.raises(
        ValueError, match=rf"3 sweeps with an optimum .* 2 have one. batch 4: {why}"
    ):
        scaling.fit_law(batches(*FINE[:2], UNKNOWN[why]))


def test_a_grid_with_zero_has_an_edge_there():
    with_zero = np.array([0.0, *LAMS])
    score = np.concatenate([[[-1.0, -1.0]], bowl(1e-2).val[..., 0, 0]])
    law = scaling.fit_law(batches(*FINE, result(with_zero, score)))
    assert law.optima[-1].why == "lowest at the edge of the grid, 0"
    score[0] = 100.0  # and none where it is worse than the rest
    law = scaling.fit_law(batches(*FINE[:2], result(with_zero, score)))
    assert law.optima[-1].value == pytest.approx(1e-2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: scaling.fit_law(FINE), TypeError, r"`results` must be \(factors, result of a"),
        (lambda: scaling.fit_law([]), TypeError, r"`results` must be"),
        (lambda: scaling.fit_law([({}, FINE[0])] * 3), ValueError, r"a number for each of"),
        (
            lambda: scaling.fit_law([({"batch": 1}, FINE[0]), ({"width": 2}, FINE[1])]),
            ValueError,
            r"`results\[1\]\[0\]` must have a number for each of batch; got width",
        ),
        (
            lambda: scaling.fit_law([({"batch": -1}, FINE[0])]),
            ValueError,
            r"`results\[0\]\[0\]\['batch'\]` must be a finite number > 0; got -1",
        ),
        (
            lambda: scaling.fit_law([({"batch": 8}, sweep) for sweep in FINE]),
            ValueError,
            r"'batch' is the same, or follows from the other factors",
        ),
        (
            lambda: scaling.fit_law([({"b": 2**i, "c": 4**i}, bowl(0.01)) for i in range(5)]),
            ValueError,
            r"'b' is the same, or follows from the other factors",
        ),
        (
            lambda: scaling.fit_law(batches(*FINE)).predict(width=3),
            ValueError,
            r"`factors` must have a number for each of batch; got width",
        ),
        (
            lambda: scaling.fit_law(batches(*FINE)).predict(batch=3, level=95),
            ValueError,
            r"`level`",
        ),
        (
            lambda: scaling.fit_law(batches(*FINE), quantity="rate"),
            ValueError,
            r"must be a hyperparameter .* of 'weight_decay'; got 'rate'",
        ),
    ],
)
def test_what_is_no_law_is_an_error(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_figure_shows_optima_law_and_prediction():
    pytest.importorskip("matplotlib")
    law = scaling.fit_law(
        [({"batch": b, "data": d}, bowl(1e-2 * b / d)) for b in (8, 16, 32) for d in (1, 4)]
    )
    ax = plots.scaling_law(law, "batch", at=256)
    line = ax.get_lines()[0]
    np.testing.assert_allclose(line.get_ydata(), 1e-2 * line.get_xdata() / 2, rtol=1e-6)
    optima = next(c for c in ax.containers if c.get_label() == "optima")
    np.testing.assert_allclose(optima[0].get_ydata(), np.repeat([8, 16, 32], 2) * 5e-3)
    with pytest.raises(ValueError, match=r"`factor` must be one of .batch., .data."):
        plots.scaling_law(law, "width")
