"""Predictions against the field's closed forms, brute force in float64, and other modules.

Against simulated training they are tested in test_equilibrium.py.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import dynamics, radial
from wdjax.dynamics import _relaxation

LR, DECAY = 1e-4, 0.1
SMALL = LR * DECAY


def warm(count):
    return jnp.minimum(count / 10, 1.0) * LR


# Time.


@pytest.mark.parametrize("steps", [0.7, 2.0, 1e6])
def test_half_life_and_timescale_are_the_inverse_of_their_strengths(steps):
    assert dynamics.half_life(wdjax.from_half_life(steps)(0)) == pytest.approx(steps, rel=1e-12)
    if steps > 1:
        assert dynamics.timescale(wdjax.from_timescale(steps)(0)) == pytest.approx(steps)


def test_a_weight_halves_in_its_half_life_and_loses_a_factor_e_per_folding():
    assert 0.97 ** dynamics.half_life(0.03) == pytest.approx(0.5)
    assert math.exp(-dynamics.foldings(0.03)) == pytest.approx(0.97)


def test_without_decay_times_are_infinite_and_nothing_warns():
    for function in (dynamics.half_life, dynamics.timescale, dynamics.steps_to_equilibrium):
        assert function(0.0) == math.inf
    assert dynamics.equilibrium_rms(1e-3, 0.0) == math.inf
    assert dynamics.equilibrium_rotation(0.0) == 0


def test_epochs_count_the_last_short_batch():
    assert dynamics.epochs(12, batch_size=4, examples=10) == 4.0
    assert dynamics.epochs(12, batch_size=5, examples=10) == 6.0


# Memory.


def autocorrelation_sum(coefficients, shrink, formula):
    """1 + 2 Σ_k aᵏ f(ρ_k) of a moving average of white noise, by brute force."""
    c = np.asarray(coefficients, np.float64)
    rho = np.correlate(c, c, "full")[len(c) :] / (c @ c)
    return 1 + 2 * ((1 - shrink) ** np.arange(1, len(c)) * formula(rho)).sum()


@pytest.mark.parametrize("shrink", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_memory_of_momentum_is_the_sum_of_correlations(momentum, shrink):
    want = autocorrelation_sum(momentum ** np.arange(1_500), shrink, lambda rho: rho)
    assert dynamics.momentum_memory(shrink, momentum) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(("lr", "decay", "momentum"), [(0.05, 1e-2, 0.98), (0.1, 0.05, 0.9)])
def test_memory_of_coupled_momentum_gives_the_variance_of_the_autoregression(lr, decay, momentum):
    """θ⁺ − (1 + β − ηλ) θ + β θ⁻ = −η g, whose impulse response is summed up."""
    response, before = [lr], 0.0
    for _ in range(40_000):
        response.append((1 + momentum - lr * decay) * response[-1] - momentum * before)
        before = response[-2]
    want = float(np.sqrt(np.sum(np.square(response))))
    direction = dynamics.sgd(1.0, momentum=momentum, coupled=True, scale_invariant=False)
    found = dynamics.predict(direction, lr, weight_decay=decay, steps=1)
    assert found.equilibrium_rms[0] == pytest.approx(want, rel=1e-6)
    # the chord: E|θ⁺ − θ|² / E θ²
    chord = np.sum(np.square(np.diff(response, prepend=0.0))) ** 0.5 / want
    assert found.rotation[0] == pytest.approx(chord, rel=1e-6)


@pytest.mark.parametrize("shrink", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.99), (0.95, 0.98), (0.9, 0.9), (0.0, 0.9)])
def test_memory_of_lion_is_the_sum_of_correlations_of_signs(b1, b2, shrink):
    lags = np.arange(3_000)
    coefficients = np.append(1 - b1, b1 * (1 - b2) * b2**lags)
    want = autocorrelation_sum(coefficients, shrink, lambda rho: 2 / np.pi * np.arcsin(rho))
    assert dynamics.lion_memory(shrink, b1, b2) == pytest.approx(want, rel=1e-6)


# Equilibrium.


def test_adamw_settles_where_the_field_says():
    """√(η/2λ) for small ηλ; and the form exact in ηλ, with a = 1 − ηλ."""
    found = dynamics.predict(dynamics.adam(), LR, weight_decay=DECAY, steps=1)
    assert found.equilibrium_rms[0] == pytest.approx((LR / (2 * DECAY)) ** 0.5, rel=1e-4)
    lr, b1, s = 1e-3, 0.9, 0.02
    a = 1 - s
    want = lr * ((1 - b1) / (1 + b1) * (1 + a * b1) / ((1 - a * a) * (1 - a * b1))) ** 0.5
    found = dynamics.predict(dynamics.adam(b1), lr, weight_decay=20.0, steps=1)
    assert found.equilibrium_rms[0] == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("gradient", [0.3, 2.0])
def test_sgd_settles_where_the_field_says(momentum, gradient):
    for coupled, power in ((True, 1), (False, 2)):
        direction = dynamics.sgd(gradient, momentum=momentum, coupled=coupled)
        found = dynamics.predict(direction, LR, weight_decay=DECAY, steps=1)
        want = (LR * gradient**2 / (2 * DECAY * (1 - momentum) ** power)) ** 0.25
        assert found.equilibrium_rms[0] == pytest.approx(want, rel=1e-3)


def test_rotations_are_the_published_ones_where_decay_is_slow():
    """Coupled momentum turns by √(2ηλ/(1 + α)), which is the decoupled form with ηλ/(1 − α)."""
    predict = functools.partial(dynamics.predict, learning_rate=LR, weight_decay=DECAY, steps=1)
    pairs = (
        (dynamics.adam(0.8), radial.adamw_rotation(LR, DECAY, 0.8)),
        (dynamics.sgd(1.0), (2 * LR * DECAY) ** 0.5),
        (dynamics.sgd(1.0, momentum=0.9, coupled=True), (2 * LR * DECAY / 1.9) ** 0.5),
    )
    for direction, want in pairs:
        assert predict(direction).rotation[0] == pytest.approx(want, rel=2e-4)
    # the field's form for Lion, √(π η λ) times noise, takes the arcsine for its argument
    want = (math.pi * LR * DECAY * (0.1**2 + 0.9**2 * 0.01 / 1.99)) ** 0.5
    assert predict(dynamics.lion()).rotation[0] == pytest.approx(want, rel=0.01)


def test_the_rotation_is_the_angle_of_a_step_that_keeps_the_norm():
    """With u at the cosine −β √((1−a²)/((1+aβ)(1−aβ))) to θ, as the correlations say."""
    s, b = 0.05, 0.7
    a = 1 - s
    memory = dynamics.momentum_memory(s, b)
    length = (s * (2 - s) / memory) ** 0.5  # of η u, for ‖θ‖ = 1
    cosine = -b * ((1 - a * a) / ((1 + a * b) * (1 - a * b))) ** 0.5
    step = np.array([-s - length * cosine, -length * (1 - cosine**2) ** 0.5])
    after = np.array([1.0, 0.0]) + step
    assert np.hypot(*after) == pytest.approx(1, rel=1e-12)
    assert dynamics.equilibrium_rotation(s, memory) == pytest.approx(np.hypot(*step), rel=1e-12)


def test_decay_to_update_is_the_ratio_of_the_lengths():
    found = dynamics.predict(dynamics.lion(), 1e-3, weight_decay=3.0, steps=1)
    want = found.shrink * found.equilibrium_rms / found.step_rms
    np.testing.assert_allclose(found.decay_to_update, want, rtol=1e-12)


# On the way there.


def brute_path(prediction, start, x):
    """ρ² and c by a loop over Python floats."""
    square, past, path = start**2, 0.0, []
    for s, r in zip(prediction.shrink, prediction.step_rms, strict=True):
        pull = 1 / square if prediction.power == 4 else 1.0
        square = (1 - s) ** 2 * square + pull * (r * r + 2 * r * past)
        past = x(1 - s) * (past + r)
        path.append(square**0.5)
    return path


@pytest.mark.parametrize(
    ("direction", "x"),
    [
        (dynamics.adam(), lambda a: 0.9 * a),
        (dynamics.sgd(0.1, momentum=0.5), lambda a: 0.5 * a),
        # M = 2.25 (1 + a) / (0.5 (2.5 + 0.5 a)) of `coupled_memory`, in x = (M − 1)/(M + 1)
        (
            dynamics.sgd(0.1, momentum=0.5, coupled=True),
            lambda a: (2.25 * (1 + a) - 1.25 - 0.25 * a) / (2.25 * (1 + a) + 1.25 + 0.25 * a),
        ),
    ],
)
def test_the_expected_path_is_the_recursion_step_by_step(direction, x):
    found = dynamics.predict(direction, warm, weight_decay=50.0, steps=300)
    with jax.enable_x64(True):
        got = dynamics.expected_rms(found, 0.3)
    np.testing.assert_allclose(got, brute_path(found, 0.3, x), rtol=1e-9)


@pytest.mark.parametrize("direction", [dynamics.adam(), dynamics.lion(), dynamics.sgd(0.01)])
def test_weights_at_equilibrium_stay_there(direction):
    found = dynamics.predict(direction, 1e-3, weight_decay=50.0, steps=2_000)
    path = dynamics.expected_rms(found, found.equilibrium_rms[0])
    assert path[-1] == pytest.approx(found.equilibrium_rms[0], rel=1e-4)


@pytest.mark.parametrize("start", [0.0, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("power", [2, 4])
def test_steps_to_equilibrium_are_those_counted(start, power):
    """ρᵖ relaxes by (1 − s)ᵖ per step."""
    s, x, steps = 1e-3, start**power, 0
    while abs(x ** (1 / power) - 1) > 0.05:
        x, steps = 1 + (x - 1) * (1 - s) ** power, steps + 1
    got = dynamics.steps_to_equilibrium(s, start, power=power)
    assert math.ceil(got - 1e-9) == steps


def test_settled_counts_steps_of_a_schedule():
    """A decay that comes in bursts: the number of decayed steps has to be that of a steady one."""
    steady = dynamics.predict(dynamics.adam(0.0), LR, weight_decay=10.0, steps=2_000)
    bursts = dynamics.predict(
        dynamics.adam(0.0),
        LR,
        weight_decay=10.0,
        law=lambda decay, lr: lambda t: jnp.where(t % 2 == 1, decay * lr, 0.0),
        steps=4_000,
    )
    needed = math.ceil(dynamics.steps_to_equilibrium(1e-3))
    assert steady.settled == needed
    assert bursts.settled == pytest.approx(2 * needed, abs=2)
    short = dynamics.predict(dynamics.adam(0.0), LR, weight_decay=10.0, steps=needed - 1)
    assert short.settled == math.inf


@pytest.mark.parametrize("start", [0.0, 0.02, 1.0])
def test_a_goal_that_passes_by_is_no_equilibrium(start):
    """In a warm-up the equilibrium passes through the RMS at first, long before weights follow."""
    lr = optax.join_schedules(
        [optax.linear_schedule(0.0, 1e-2, 200), optax.constant_schedule(1e-2)], [200]
    )
    found = dynamics.predict(dynamics.adam(0.0), lr, weight_decay=0.5, steps=2_000, start_rms=start)
    square, near = start**2, []
    for t in range(2_000):
        eta = 1e-2 * min(t / 200, 1)
        s = 0.5 * eta
        square = (1 - s) ** 2 * square + eta**2
        goal = eta / math.sqrt(s * (2 - s)) if eta else math.inf
        near.append(abs(math.sqrt(square) / goal - 1) <= 0.05)
    assert near.index(True) < 50 or start != 0.02  # it passes
    last_away = max(t for t in range(2_000) if not near[t])
    assert abs(found.settled - (last_away + 2)) <= 1
    assert found.settled > 250


def test_weights_that_cannot_follow_a_falling_equilibrium_do_not_settle():
    cosine = optax.cosine_decay_schedule(1e-3, 1_000)
    short = dynamics.predict(dynamics.adam(), cosine, weight_decay=1.0, steps=1_000)
    assert short.settled == math.inf
    long = dynamics.predict(dynamics.adam(0.0), cosine, weight_decay=100.0, steps=1_000)
    path = np.asarray(dynamics.expected_rms(long, 0.0)) / long.equilibrium_rms
    assert long.settled == pytest.approx(np.flatnonzero(abs(path - 1) < 0.05)[0] + 1, abs=3)
    assert path[-1] > 2  # it does not stay for ever


@pytest.mark.parametrize("k", [2, 10])
def test_decay_in_every_kth_step_has_the_equilibrium_of_a_simulation(k):
    law = lambda decay, lr: wdjax.periodic(wdjax.lr_scaled(decay, lr), k)
    found = dynamics.predict(dynamics.adam(0.0), 1e-2, weight_decay=0.5, steps=4_000, law=law)
    w, squares = np.zeros(2_000), []
    steps = 1e-2 * (2 * np.random.default_rng(0).integers(2, size=(4_000, w.size)) - 1)
    for kept, step in zip(1 - np.asarray(found.shrink), steps, strict=True):
        w = kept * w + step
        squares.append(np.mean(w**2))
    assert (found.shrink > 0).sum() == 4_000 // k
    rms = math.sqrt(np.mean(squares[-1_000:]))
    assert np.allclose(found.equilibrium_rms, rms, rtol=0.02)
    steady = dynamics.predict(dynamics.adam(0.0), 1e-2, weight_decay=0.5, steps=4_000)
    assert np.allclose(found.equilibrium_rms, steady.equilibrium_rms, rtol=0.02)
    assert found.settled == pytest.approx(steady.settled, rel=0.02)


def test_decay_in_every_tenth_step_may_be_traced():
    def settled(decay):
        law = lambda decay, lr: wdjax.periodic(wdjax.lr_scaled(decay, lr), 10)
        return dynamics.predict(dynamics.adam(0.0), 1e-2, weight_decay=decay, steps=4_000, law=law)

    got, want = jax.jit(settled)(0.5), settled(0.5)
    assert np.allclose(got.equilibrium_rms, want.equilibrium_rms, rtol=1e-4)
    assert got.settled == pytest.approx(want.settled, abs=2)


def test_decay_is_spread_over_the_steps_between_and_no_further():
    spread = _relaxation.spread
    live = np.ones(9, bool)
    once = np.array([0, 0, 0.5, 0, 0, 0, 0, 0, 0])
    assert (spread(once, live) == once).all()  # no other decay, so no rhythm
    every_third = np.array([0, 0, 0.5, 0, 0, 0.5, 0, 0, 0.5])
    assert np.allclose(spread(every_third, live), 1 - 0.5 ** (1 / 3))
    assert np.allclose(spread(every_third[:-1], live[:-1]), 1 - 0.5 ** (1 / 3))
    late = np.array([0, 0, 0, 0, 0.1, 0.2, 0.3, 0, 0])
    assert (spread(late, live) == late).all()
    # steps in which nothing moves are not counted
    asleep = np.array([True, False, True] * 3)
    assert (spread(every_third, every_third > 0) == every_third).all()
    got = spread(every_third, asleep)
    assert np.allclose(got[asleep], 1 - 0.5**0.5)
    assert (got[~asleep] == 0).all()


def test_scale_invariant_weights_settle_sooner():
    found = dynamics.predict(dynamics.sgd(1.0), LR, weight_decay=10.0, steps=2_000)
    needed = math.ceil(dynamics.steps_to_equilibrium(1e-3, power=4))
    assert found.settled == needed < math.ceil(dynamics.steps_to_equilibrium(1e-3))


def test_weights_that_start_at_equilibrium_are_settled_at_once():
    found = dynamics.predict(dynamics.adam(), LR, weight_decay=10.0, steps=5)
    again = dynamics.predict(
        dynamics.adam(), LR, weight_decay=10.0, steps=5, start_rms=found.equilibrium_rms[0]
    )
    assert again.settled == 1


# Bounds.


@pytest.mark.parametrize(("b1", "b2"), [(0.9, 0.999), (0.9, 0.95), (0.0, 0.9), (0.5, 0.3)])
def test_the_bound_of_adam_is_the_supremum_over_all_steps(b1, b2):
    """At step t, by Cauchy and Schwarz, |û|² is at most Σ c² over the weights c of m̂/√v̂."""
    t, r = np.arange(1, 200_000), b1 * b1 / b2
    factor = (1 - b1) ** 2 / (1 - b1**t) ** 2 * (1 - b2**t) / (1 - b2) * (1 - r**t) / (1 - r)
    assert dynamics.adam_bound(b1, b2) == pytest.approx(factor.max() ** 0.5, rel=1e-9)


def test_adam_has_no_bound_where_the_first_moment_outlives_the_second():
    assert dynamics.adam_bound(0.95, 0.9) == math.inf


def test_newton_and_schulz_overshoot_and_an_exact_polar_factor_does_not():
    assert dynamics.muon_bound() == pytest.approx(1.2024, abs=1e-4)
    assert dynamics.muon_bound(0) == 1.0


def test_the_norm_bound_skips_steps_without_learning_rate_and_sees_those_without_decay():
    found = dynamics.predict(dynamics.lion(), warm, weight_decay=0.5, steps=100)
    assert found.bound == pytest.approx(2.0)
    half = lambda decay, lr: lambda t: jnp.where(t < 50, decay * warm(t), 0.0)
    found = dynamics.predict(dynamics.lion(), warm, weight_decay=0.5, law=half, steps=100)
    assert found.bound == math.inf


# Rounding.


def kept_in_simulation(dtype, shrink, step, size=1_000_000):
    """The mean shift along θ of one rounded step, over steps of both signs."""
    rng = np.random.default_rng(0)
    theta = np.asarray(jnp.asarray(rng.normal(size=size), dtype)).astype(np.float32)
    noise = np.float32(step) * rng.normal(size=size).astype(np.float32)
    moved = 0.0
    for sign in (1, -1):
        new = jnp.asarray(theta * np.float32(1 - shrink) + sign * noise, dtype)
        moved += (theta * (theta - np.asarray(new).astype(np.float64))).sum() / 2
    return moved / (shrink * (theta.astype(np.float64) ** 2).sum())


@pytest.mark.parametrize(
    ("dtype", "shrink", "step"),
    [
        ("bfloat16", 1e-3, 0.0),
        ("bfloat16", 1e-3, 1e-3),
        ("bfloat16", 1e-3, 2e-3),
        ("bfloat16", 2e-3, 1e-3),
        ("bfloat16", 1e-2, 1e-3),
        ("float16", 2e-4, 2e-4),
        ("float16", 1e-3, 1e-2),
    ],
)
def test_rounding_keeps_as_much_decay_as_it_does_in_a_simulation(dtype, shrink, step):
    want = kept_in_simulation(dtype, shrink, step)
    assert dynamics.decay_kept(dtype, shrink, step) == pytest.approx(want, abs=0.02)


def test_without_steps_rounding_keeps_nothing_below_the_audit_s_threshold():
    from wdjax._lift.rounding import swallowed_below

    least = swallowed_below("bfloat16")
    assert dynamics.decay_kept("bfloat16", 0.99 * least, 0.0) == 0
    assert dynamics.decay_kept("bfloat16", 1.01 * least, 0.0) > 0
    assert dynamics.decay_kept("float32", 1e-4, 1e-3) == pytest.approx(1, abs=1e-3)


# Whole predictions.


def test_a_prediction_knows_budget_times_and_what_is_left():
    strength = wdjax.lr_scaled(50.0, warm)
    found = dynamics.predict(
        dynamics.adam(), warm, weight_decay=50.0, steps=300, batch_size=4, examples=10
    )
    values = np.array([float(strength(t)) for t in range(300)])
    np.testing.assert_allclose(found.shrink, values, rtol=1e-6)
    np.testing.assert_allclose(found.learning_rate, values / 50, rtol=1e-6)
    assert found.budget == pytest.approx(wdjax.decay_budget(strength, 300), rel=1e-9)
    assert found.left == pytest.approx(np.prod(1 - values), rel=1e-5)
    assert found.timescale == pytest.approx(300 / found.budget)
    assert found.timescale_epochs == pytest.approx(found.timescale / 3)
    assert found.half_life_epochs == pytest.approx(found.half_life / 3)
    assert 2 ** (-1 / found.half_life) == pytest.approx(1 - found.budget / 300)


def test_times_in_epochs_are_unknown_without_the_size_of_the_data():
    found = dynamics.predict(dynamics.adam(), LR, weight_decay=DECAY, steps=10)
    assert math.isnan(found.half_life_epochs)
    assert math.isnan(found.timescale_epochs)


def test_the_law_and_the_multiplier_make_the_strength():
    law = functools.partial(wdjax.corrected, peak=LR)
    found = dynamics.predict(
        dynamics.adam(), warm, weight_decay=DECAY, law=law, multiplier=0.5, steps=20
    )
    want = [0.5 * DECAY * float(warm(t)) ** 2 / LR for t in range(20)]
    np.testing.assert_allclose(found.shrink, want, rtol=1e-5)


def test_corrected_decay_keeps_the_equilibrium_while_the_learning_rate_falls():
    schedule = optax.linear_schedule(1e-3, 1e-4, 50)
    law = functools.partial(wdjax.corrected, peak=1e-3)
    found = dynamics.predict(dynamics.adam(), schedule, weight_decay=DECAY, law=law, steps=50)
    np.testing.assert_allclose(found.equilibrium_rms, found.equilibrium_rms[0], rtol=1e-3)


def test_lion_settles_as_many_times_above_target_rms_as_its_docstring_says():
    memory = dynamics.lion_memory(0.0)
    assert round(math.sqrt(memory), 1) == 6.8
    for asked, want in ((0.1, 0.1 * math.sqrt(memory)), (0.1 / math.sqrt(memory), 0.1)):
        found = dynamics.predict(
            dynamics.lion(), 1e-4, weight_decay=0.0, steps=1,
            law=lambda _, lr, asked=asked: wdjax.target_rms(lr, asked),
        )  # fmt: skip
        assert found.equilibrium_rms[0] == pytest.approx(want, rel=0.01)


def test_muon_has_times_and_a_bound_but_no_norm():
    found = dynamics.predict(dynamics.muon(2.0), LR, weight_decay=DECAY, steps=10)
    assert found.bound == pytest.approx(2 * 1.2024 / DECAY, rel=1e-4)
    assert found.half_life == pytest.approx(math.log(2) / SMALL, rel=1e-4)
    assert np.isnan(found.equilibrium_rms).all()
    assert np.isnan(found.rotation).all()


def test_numbers_on_the_host_have_float64_s_precision():
    found = dynamics.predict(dynamics.adam(), 1e-9, weight_decay=1e-3, steps=10)
    assert found.left == pytest.approx(math.exp(-1e-11), abs=1e-15)
    assert found.budget == pytest.approx(1e-11, rel=1e-12)
    falling = wdjax.geometric(1e-3, rate=0.1)
    found = dynamics.predict(dynamics.adam(), falling, weight_decay=1.0, steps=10)
    assert found.budget == pytest.approx(1e-3 * (1 - 0.9**10) / 0.1, rel=1e-12)


def test_a_prediction_prints_a_summary_of_the_strongest_decay():
    found = dynamics.predict(
        dynamics.adam(), warm, weight_decay=50.0, steps=400, batch_size=4, examples=10
    )
    lines = dict(line.split("  ", 1) for line in str(found).splitlines())
    lines = {name: text.strip() for name, text in lines.items()}
    assert lines["run"] == "400 steps, 1.97 timescales"
    assert lines["shrink"] == "0.005 per step, at step 10"
    assert lines["half-life"] == "140 steps, 46.7 epochs"
    assert lines["weight RMS, settled"] == f"{found.equilibrium_rms[10]:.3g}"
    assert lines["settled after"] == f"{found.settled:,.0f} steps"
    never = str(dynamics.predict(dynamics.adam(), LR, weight_decay=0.0, steps=1))
    assert "inf steps\n" in never
    assert "not within this run" in never


FUNCTIONS = {
    "half_life": dynamics.half_life,
    "timescale": dynamics.timescale,
    "foldings": dynamics.foldings,
    "momentum_memory": lambda s: dynamics.momentum_memory(s, 0.9),
    "coupled_memory": lambda s: dynamics.coupled_memory(s, 0.9),
    "lion_memory": dynamics.lion_memory,
    "equilibrium_rms": lambda s: dynamics.equilibrium_rms(1e-3, s, memory=2.0),
    "equilibrium_rotation": lambda s: dynamics.equilibrium_rotation(s, 2.0),
    "decay_to_update": lambda s: dynamics.decay_to_update(s, 2.0),
    "foldings_to_equilibrium": dynamics.foldings_to_equilibrium,
    "steps_to_equilibrium": dynamics.steps_to_equilibrium,
    "adam_bound": lambda s: dynamics.adam_bound(s, 0.99),
    "norm_bound": lambda s: dynamics.norm_bound(1e-3, s, 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_formula_is_the_same_for_floats_arrays_and_under_vmap_and_jit(name):
    function, values = FUNCTIONS[name], np.array([0.01, 0.2, 0.5])
    want = [float(function(float(value))) for value in values]
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(values), want, rtol=1e-4)
    if name != "norm_bound":  # it reduces over what it is given
        np.testing.assert_allclose(function(values), want, rtol=1e-12)


def every(weight_decay, b1):
    return dynamics.predict(
        dynamics.lion(b1), warm, weight_decay=weight_decay, steps=50, multiplier=2.0
    )


def test_predictions_can_be_mapped_over_hyperparameters_and_printed():
    decays, momenta = np.float32([0.1, 10.0]), np.float32([0.9, 0.8])
    mapped = jax.jit(jax.vmap(every))(decays, momenta)
    assert str(mapped).startswith("Prediction(learning_rate=")
    jax.eval_shape(lambda decay: str(every(decay, 0.9)) and decay, 0.1)
    for i, (decay, b1) in enumerate(zip(decays, momenta, strict=True)):
        one = every(float(decay), float(b1))
        for name, got, want in zip(one._fields, mapped, one, strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-7, err_msg=name)


# Mistakes.


@pytest.mark.parametrize("steps", [0, -1, 2.5, True])
def test_a_run_has_a_whole_number_of_steps(steps):
    with pytest.raises((TypeError, ValueError), match=r"`steps` must be a whole number >= 1; got"):
        dynamics.predict(dynamics.adam(), LR, weight_decay=DECAY, steps=steps)


def test_batch_and_data_go_together_and_are_whole():
    predict = functools.partial(dynamics.predict, dynamics.adam(), LR, weight_decay=DECAY, steps=10)
    with pytest.raises(ValueError, match="`batch_size` and `examples` must be given together"):
        predict(batch_size=4)
    with pytest.raises(ValueError, match="`examples` must be a whole number >= 1; got 0"):
        predict(batch_size=4, examples=0)
    with pytest.raises(TypeError, match=r"`batch_size` must be a whole number >= 1; got 0\.5"):
        dynamics.epochs(10, batch_size=0.5, examples=10)


def test_decay_that_flips_signs_is_refused():
    message = r"`weight_decay` must be < 1, .* it reaches 1\.5 and would flip signs"
    with pytest.raises(ValueError, match=message):
        dynamics.predict(dynamics.adam(), 1.0, weight_decay=1.5, steps=3)


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_negative_rates_are_refused(name):
    arguments = {"learning_rate": LR, "weight_decay": DECAY} | {name: -1.0}
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number >= 0, .*; got -1.0"):
        dynamics.predict(dynamics.adam(), **arguments, steps=3)
    arguments |= {name: lambda count: 1.0 - count}
    with pytest.raises(ValueError, match="must be finite and >= 0 at every step; got -"):
        dynamics.predict(dynamics.adam(), **arguments, steps=3)
