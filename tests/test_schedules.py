import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import schedule_cases
from cases import LAWS
from cases import SCHEDULES as CASES
from hypothesis import given, settings
from hypothesis import strategies as st

import wdjax
from wdjax import adaptive, radial, schedules

laws = pytest.mark.parametrize("case", LAWS.values(), ids=LAWS.keys())
SCHEDULES = CASES | schedule_cases.SCHEDULES
rows = pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES.keys())
budgets = pytest.mark.parametrize(
    "case", schedule_cases.SCHEDULES.values(), ids=schedule_cases.SCHEDULES.keys()
)
WEIGHT_DECAY, PEAK = 0.3, 0.02
COUNTS = np.array([0, 1, 2, 7, 50, 1_000])


def learning_rate(count):
    return PEAK / (1 + 0.1 * count)


@laws
def test_a_law_equals_its_formula_at_every_step(case, x64):
    schedule = case.law(WEIGHT_DECAY, learning_rate, PEAK)
    for t in COUNTS:
        want = case.reference(WEIGHT_DECAY, learning_rate(t), PEAK)
        assert np.isclose(schedule(t), want, rtol=1e-14)


@laws
def test_a_law_of_numbers_is_a_known_constant(case):
    schedule = case.law(WEIGHT_DECAY, 0.5 * PEAK, PEAK)
    assert isinstance(schedule, schedules.Constant)
    assert np.isclose(schedule(123), case.reference(WEIGHT_DECAY, 0.5 * PEAK, PEAK), rtol=1e-14)


@laws
def test_a_law_takes_a_schedule_for_the_weight_decay(case):
    cosine = optax.cosine_decay_schedule(0.3, 100)
    schedule = case.law(cosine, learning_rate, PEAK)
    for t in (0, 30, 100):
        want = case.reference(float(cosine(t)), learning_rate(t), PEAK)
        assert np.isclose(schedule(t), want, rtol=1e-6, atol=1e-12)


@laws
def test_a_law_runs_under_vmap_over_its_numbers(case):
    def run(weight_decay, rate, peak):
        return jnp.asarray(case.law(weight_decay, rate, peak)(jnp.int32(3)), jnp.float32)

    w, lr, peak = np.float32([[0.1, 0.2], [0.01, 0.3], [0.5, 1.5]])
    for i, got in enumerate(jax.jit(jax.vmap(run))(w, lr, peak)):
        assert np.isclose(got, case.reference(w[i], lr[i], peak[i]), rtol=1e-6)


def test_the_laws_coincide_where_theory_says(x64):
    w, lr = 0.1, 3e-3
    assert np.isclose(wdjax.corrected(w, lr, peak=lr)(0), wdjax.lr_scaled(w, lr)(0))
    assert np.isclose(wdjax.schedule_scaled(w, lr, peak=lr)(0), wdjax.fixed(w)(0))
    assert np.isclose(wdjax.schedule_scaled(w * lr, lr, peak=lr)(0), wdjax.lr_scaled(w, lr)(0))
    for law in (wdjax.lr_scaled, wdjax.lr_squared):
        assert law(w, 0.0)(0) == 0
    assert wdjax.fixed(w)(0) == w


@rows
def test_a_schedule_equals_its_formula(case, x64):
    schedule = case.build(*case.arguments)
    want = [case.reference(int(t), *case.arguments) for t in COUNTS]
    known = [schedule(int(t)) for t in COUNTS[:2]]
    traced = jax.jit(jax.vmap(lambda t: jnp.asarray(schedule(t))))(COUNTS.astype(np.int32))
    assert np.allclose(known, want[:2], rtol=1e-13)
    assert np.allclose(traced, want, rtol=1e-13)


@rows
def test_a_schedule_runs_under_jit_and_vmap_over_arguments_and_steps(case):
    pair = [np.array([x, x * 2]) for x in case.arguments]
    run = lambda count, *arguments: jnp.asarray(case.build(*arguments)(count), jnp.float32)
    counts = np.int32([0, 5, 9])
    over_counts = jax.vmap(run, (0,) + (None,) * len(pair))
    got = jax.jit(jax.vmap(over_counts, (None,) + (0,) * len(pair)))(counts, *pair)
    for k in range(2):
        for i, t in enumerate((0, 5, 9)):
            want = case.reference(t, *(x * (1 + k) for x in case.arguments))
            assert np.isclose(got[k, i], want, rtol=1e-5)


def test_a_timescale_and_a_half_life_do_what_their_names_say():
    steps = np.arange(1_000)
    timescale = np.prod([1 - wdjax.from_timescale(1_000)(t) for t in steps])
    assert np.isclose(timescale, np.exp(-1), rtol=1e-3)
    half = np.prod([1 - wdjax.from_half_life(1_000)(t) for t in steps])
    assert np.isclose(half, 0.5, rtol=1e-12)


def test_target_rms_holds_random_walks_at_that_rms():
    """A simulation: unit updates of random sign, decay from the law, ten timescales."""
    learning_rate, rms = 0.02, 0.2
    s = wdjax.target_rms(learning_rate, rms)(0)
    rng = np.random.default_rng(0)
    w = np.zeros(4_000)
    for _ in range(int(10 / s)):
        w = (1 - s) * w + learning_rate * rng.choice([-1.0, 1.0], size=w.size)
    assert np.isclose(np.sqrt(np.mean(w**2)), rms, rtol=0.03)


def test_inverse_sqrt_is_no_exponential_and_geometric_is_optax_s():
    slow = wdjax.inverse_sqrt(0.1, gamma=1.0)
    assert np.isclose(slow(10_000) / slow(2_500), 0.5, rtol=1e-3)  # t^(−1/2)
    ours, theirs = wdjax.geometric(0.1, 0.1), optax.exponential_decay(0.1, 1, 0.9)
    ours, theirs = (jax.jit(jax.vmap(f))(np.arange(20)) for f in (ours, theirs))
    assert np.allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("rate", [1e-6, 1e-7, 2e-8])
def test_a_small_rate_of_geometric_keeps_its_digits(rate):
    got = float(wdjax.geometric(0.1, rate)(10**7))
    assert got == pytest.approx(0.1 * math.exp(10**7 * math.log1p(-rate)), rel=2e-6)


def test_geometric_ends_at_once_at_the_rate_one_and_has_slopes_at_the_ends():
    assert [float(wdjax.geometric(0.1, 1.0)(t)) for t in (0, 1, 5)] == [np.float32(0.1), 0, 0]
    slope = jax.jit(jax.grad(lambda rate, t: wdjax.geometric(1.0, rate)(t)))
    assert [float(slope(0.5, t)) for t in (0, 1, 2)] == pytest.approx([0, -1, -1], rel=1e-6)


def test_per_epoch_changes_only_between_epochs():
    schedule = wdjax.per_epoch(lambda epoch: 10.0 - epoch, steps_per_epoch=4)
    assert [float(schedule(t)) for t in range(9)] == [10.0] * 4 + [9.0] * 4 + [8.0]


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: wdjax.lr_scaled(-0.1, 1.0), ValueError, r"`weight_decay` must be a finite number"),
        (
            lambda: wdjax.lr_scaled(0.1, -1.0),
            ValueError,
            r"`learning_rate` must be a finite number",
        ),
        (lambda: wdjax.fixed(float("nan")), ValueError, r"`weight_decay` .* got nan"),
        (lambda: wdjax.fixed("0.1"), TypeError, r"`weight_decay` must be a finite .* got '0.1'"),
        (lambda: wdjax.lr_scaled(None, 1.0), TypeError, r"`weight_decay` .* got None"),
        (lambda: wdjax.lr_scaled(0.1, None), TypeError, r"`learning_rate` .* got None"),
        (
            lambda: wdjax.corrected(0.1, 0.1, peak=0),
            ValueError,
            r"`peak` must be a finite number > 0",
        ),
        (
            lambda: wdjax.schedule_scaled(0.1, 0.1, peak=0.0),
            ValueError,
            r"`peak` must be a finite number > 0",
        ),
        (
            lambda: wdjax.from_timescale(1),
            ValueError,
            r"`steps` must be a finite number > 1, or a schedule; got 1",
        ),
        (
            lambda: wdjax.from_half_life(0),
            ValueError,
            r"`steps` must be a finite number > 0, or a schedule; got 0",
        ),
        (lambda: wdjax.target_rms(0.1, 0), ValueError, r"`rms` must be a finite number > 0"),
        (lambda: wdjax.geometric(0.1, 1.5), ValueError, r"`rate` must be in \[0, 1\].* got 1.5"),
        (lambda: wdjax.inverse_sqrt(0.1, -1), ValueError, r"`gamma` must be a finite number >= 0"),
        (lambda: wdjax.per_epoch(0.1, 3), TypeError, r"`schedule` must be a function.*epoch"),
        (
            lambda: wdjax.per_epoch(lambda e: e, 0),
            ValueError,
            r"`steps_per_epoch` must be a finite number >= 1",
        ),
        (lambda: schedules.linear_ramp(-1.0, 0.1, 5), ValueError, r"`init_value` must be a finite"),
        (lambda: schedules.linear_ramp(0.1, None, 5), TypeError, r"`end_value` .* got None"),
        (
            lambda: schedules.linear_ramp(0.1, 0.1, 0),
            ValueError,
            r"`steps` must be a finite number > 0, or a schedule; got 0",
        ),
        (
            lambda: schedules.cosine_ramp(0.1, 0.1, 0),
            ValueError,
            r"`steps` must be a finite number > 0, or a schedule; got 0",
        ),
        (lambda: schedules.cosine_ramp(0.1, 0.1, None), TypeError, r"`steps` .* got None"),
        (
            lambda: schedules.log_time(0.1, 0.0),
            ValueError,
            r"`timescale` must be a finite number > 0, or a schedule; got 0.0",
        ),
        (lambda: schedules.warmed_up(0.1, -1), ValueError, r"`steps` must be a finite number >= 0"),
        (
            lambda: schedules.periodic(1.5, 2),
            ValueError,
            r"`strength` must be in \[0, 1\].*got 1.5",
        ),
        (
            lambda: schedules.periodic(0.1, 0),
            ValueError,
            r"`every` must be a whole number .* got 0",
        ),
        (lambda: schedules.periodic(0.1, 1.5), TypeError, r"`every` must be a whole .* got 1.5"),
        (lambda: schedules.decay_budget(0.1, -1), ValueError, r"`steps` must be a whole .* got -1"),
        (lambda: schedules.decay_budget(0.1, 2.5), TypeError, r"`steps` must be a whole"),
        (lambda: schedules.decay_budget(-0.1, 2), ValueError, r"`strength` must be a finite"),
        (
            lambda: wdjax.fixed(np.ones(3)),
            TypeError,
            r"`weight_decay` must be .*or a schedule; got array.* Multipliers per parameter go",
        ),
    ],
)
def test_bad_arguments_fail_when_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


@budgets
def test_the_decay_budget_is_the_closed_form(case):
    schedule = case.build(*case.arguments)
    for steps in (37, 4_000):
        got = wdjax.schedules.decay_budget(schedule, steps)
        assert np.isclose(got, case.budget(steps, *case.arguments), rtol=1e-12)


def test_the_decay_budget_of_a_number_a_law_and_a_python_schedule():
    budget = wdjax.schedules.decay_budget
    assert budget(0.1, 0) == 0
    assert budget(0.25, 1_000) == 250
    assert np.isclose(budget(wdjax.lr_scaled(0.1, lambda t: 0.5 / (1 + t)), 3), 0.05 * 11 / 6)
    assert budget(lambda count: 0.5 if count < 3 else 0.0, 10) == 1.5


def test_the_decay_budget_sums_over_its_chunks(monkeypatch):
    ramp = schedules.linear_ramp(0.0, 1.0, steps=100)
    monkeypatch.setattr(schedules, "_CHUNK", 7)
    assert np.isclose(schedules.decay_budget(ramp, 100), 99 / 2, rtol=1e-14)


def test_the_decay_budget_needs_a_known_strength():
    def run(s):
        return schedules.decay_budget(wdjax.fixed(s), 10)

    with pytest.raises(TypeError, match=r"`strength` must be known, to be summed.*outside jit"):
        jax.jit(run)(0.1)


@jax.jit
def along_ramps(start, end, steps, counts):
    ramps = [build(start, end, steps) for build in (schedules.linear_ramp, schedules.cosine_ramp)]
    return jnp.stack([jax.vmap(ramp)(counts) for ramp in ramps])


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 10_000), st.integers(0, 20_000))
@settings(max_examples=50)
def test_a_ramp_stays_between_its_ends_and_meets_them_exactly(start, end, steps, t):
    low, high = np.float32(min(start, end)), np.float32(max(start, end))
    for at, first, *last in along_ramps(start, end, steps, np.int32([t, 0, steps, steps + t])):
        assert low * (1 - 1e-6) <= at <= high * (1 + 1e-6)
        assert first == np.float32(start)
        assert last == [np.float32(end)] * 2


def test_the_ramps_are_optax_s_schedules(x64):
    counts = np.arange(130)
    linear = optax.linear_schedule(0.04, 0.4, 100)
    cosine = optax.cosine_decay_schedule(0.4, 100, alpha=0.1)
    late = optax.warmup_cosine_decay_schedule(0.0, 0.4, 20, 120, end_value=0.04)
    pairs = [
        (schedules.linear_ramp(0.04, 0.4, 100), linear),
        (schedules.cosine_ramp(0.4, 0.04, 100), cosine),
        (schedules.warmed_up(schedules.cosine_ramp(0.4, 0.04, 100), 20), late),
    ]
    for pair in pairs:
        ours, theirs = (jax.jit(jax.vmap(schedule))(counts) for schedule in pair)
        assert np.allclose(ours, theirs, rtol=1e-6)


def test_megatron_s_three_styles_are_a_number_and_the_two_ramps(x64):
    """start + coeff (end − start), with the coefficient of each style."""
    start, end, steps = 0.04, 0.4, 50
    for t in range(60):
        ratio = min(t / steps, 1.0)
        coefficients = {
            schedules.linear_ramp: ratio,
            schedules.cosine_ramp: 0.5 * (np.cos(np.pi * (1 - ratio)) + 1),
        }
        for ramp, coefficient in coefficients.items():
            want = start + coefficient * (end - start)
            assert np.isclose(ramp(start, end, steps)(t), want, rtol=1e-13)


def test_log_time_is_adana_s_strength_under_the_schedule_law(x64):
    """ω/(T/10 + t) η(t)/η̄ with T_s = T/10 and λ₀ = ω / T_s."""
    omega, total = 4.0, 1_000
    law = wdjax.schedule_scaled(
        schedules.log_time(omega / (total / 10), total / 10), learning_rate, PEAK
    )
    for t in (0, 1, 99, 999):
        want = omega / (total / 10 + t) * learning_rate(t) / PEAK
        assert np.isclose(law(t), want, rtol=1e-13)


@given(st.floats(0, 0.5), st.integers(1, 9), st.integers(1, 5))
def test_periodic_decay_ends_every_period_where_plain_decay_does(s, k, periods):
    schedule = schedules.periodic(s, every=k)
    got = np.prod([1 - np.float64(schedule(t)) for t in range(k * periods)])
    assert np.isclose(got, (1 - s) ** (k * periods), rtol=1e-4)


@pytest.mark.parametrize("k", [7, 1_000, 16_384])
def test_what_acts_every_kth_step_only_is_seen_before_training(k):
    assert schedules.sampled(schedules.periodic(0.01, every=k)).max() > 0
    params = {"kernel": np.ones((2, 2), jnp.bfloat16)}
    most = schedules.periodic(0.01, every=k)(k - 1)  # 1 − 0.99^k
    rules = (("**", float(1 / most) + 0.01),)
    tx = wdjax.decay_weights(schedules.periodic(0.01, every=k), rules=rules)
    with pytest.raises(ValueError, match="would flip signs"):
        tx.init(params)
    with pytest.warns(UserWarning, match="swallow this decay"):
        wdjax.decay_weights(schedules.periodic(1e-3 / k, every=k)).init(params)


def test_periodic_decay_of_every_step_is_plain_and_one_is_everything():
    assert np.isclose(schedules.periodic(1e-7, every=1)(3), 1e-7, rtol=1e-6)
    assert schedules.periodic(1.0, every=2)(1) == 1
    assert schedules.periodic(lambda count: 3.0, every=2)(1) == 1  # not NaN


def test_a_warm_up_of_no_steps_changes_nothing():
    ramp = schedules.linear_ramp(0.4, 0.1, 9)
    assert [schedules.warmed_up(ramp, 0)(t) for t in range(12)] == [ramp(t) for t in range(12)]


def test_a_ramp_of_no_steps_is_its_end_even_where_the_number_is_traced():
    run = lambda steps: schedules.cosine_ramp(0.4, 0.1, steps)(0)
    assert np.isclose(jax.jit(run)(0), 0.1, rtol=1e-6)


def test_sampling_sees_the_peak_of_a_schedule_and_gives_up_on_traced_values():
    peak = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 1_000, 100_000)
    values = schedules.sampled(wdjax.lr_scaled(1.0, peak))
    assert np.isclose(values.max(), 3e-4, rtol=0.01)
    seen = []

    def run(weight_decay):
        for law in (wdjax.fixed(weight_decay), wdjax.lr_scaled(weight_decay, learning_rate)):
            seen.append(schedules.sampled(law))
        return weight_decay

    jax.jit(jax.vmap(run))(jnp.ones(2))
    assert seen == [None, None]


def test_sampling_takes_schedules_that_branch_in_python():
    values = schedules.sampled(lambda count: 0.1 if count < 100 else 0.0, np.array([0, 99, 100]))
    assert values.tolist() == [0.1, 0.1, 0.0]


@pytest.mark.parametrize("steps", [7, 60, 1_000, 12_345])
def test_a_ramp_to_zero_may_end_a_rounding_error_below_it(steps):
    rate = optax.linear_schedule(1e-2, 0.0, steps)
    wdjax.adamw(rate, weight_decay=0.1).init({"kernel": np.ones((2, 2), np.float32)})


@pytest.mark.parametrize(
    "build",
    [wdjax.decay_weights, adaptive.cumulative_l1, partial(radial.norm_control, radius=1.0)],
)
def test_a_schedule_that_turns_negative_after_the_run_counts_as_0_there(build):
    """The linear schedule of much code for JAX RL: 0 at step 60, where the run ends."""
    linear = lambda count: 0.1 * (1 - (count // 4) / 15)
    params, zero = ({"kernel": np.full((2, 2), x, np.float32)} for x in (2, 0))
    tx = build(linear)
    with pytest.warns(UserWarning, match=r"` is negative from step 64 on.*maximum\(0"):
        state = tx.init(params)
    update = jax.jit(tx.update)
    assert update(zero, state, params)[0]["kernel"][0, 0] < 0
    late = state._replace(count=np.int32(100))
    assert not np.any(update(zero, late, params)[0]["kernel"])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda count: count - 1.0,
        lambda count: jnp.cos(count / 10),
        lambda count: jnp.where(count < 9, 0.1, jnp.nan),
        lambda count: -0.1,
    ],
)
def test_a_schedule_that_is_negative_before_its_end_is_refused(schedule):
    with pytest.raises(ValueError, match=r"finite and >= 0 at every step; got (-|nan)"):
        schedules.checked_samples(schedule)


def test_a_schedule_is_compiled_once_for_all_inits():
    calls = []
    tx = wdjax.decay_weights(lambda count: calls.append(1) or 0.1 / (1 + count))
    tx.init({"kernel": jnp.ones((2, 2))})
    first = len(calls)
    tx.init({"kernel": jnp.ones((2, 2))})
    assert len(calls) == first


def test_a_schedule_begins_after_its_warm_up():
    """(t / 4) s(0) up to step 4, then s(t − 4)."""
    warm = schedules.warmed_up(schedules.linear_ramp(1.0, 0.0, 10), 4)
    values = [float(warm(t)) for t in (0, 2, 4, 9, 14)]
    np.testing.assert_allclose(values, [0.0, 0.5, 1.0, 0.5, 0.0], atol=1e-6)
