import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import LAWS, SCHEDULES

import wdjax
from wdjax import schedules

laws = pytest.mark.parametrize("case", LAWS.values(), ids=LAWS.keys())
rows = pytest.mark.parametrize("case", SCHEDULES.values(), ids=SCHEDULES.keys())
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

    w, lr, peak = (jnp.array(x) for x in ([0.1, 0.2], [0.01, 0.3], [0.5, 1.5]))
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
    for t in COUNTS:
        want = case.reference(int(t), *case.arguments)
        assert np.isclose(schedule(jnp.int32(t)), want, rtol=1e-13)
        assert np.isclose(schedule(int(t)), want, rtol=1e-13)


@rows
def test_a_schedule_runs_under_jit_and_vmap_over_arguments_and_steps(case):
    pair = [jnp.array([x, x * 2]) for x in case.arguments]
    run = lambda count, *arguments: jnp.asarray(case.build(*arguments)(count), jnp.float32)
    counts = jnp.array([0, 5, 9], jnp.int32)
    got = jax.jit(jax.vmap(jax.vmap(run, (0, None, None)[: 1 + len(pair)]), (None, 0, 0)[: 1 + len(pair)]))(counts, *pair)  # noqa: E501  # fmt: skip
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
    assert np.allclose([ours(t) for t in range(20)], [theirs(t) for t in range(20)], rtol=1e-6)


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
        (lambda: wdjax.fixed("0.1"), TypeError, r"`weight_decay` must be a number .* got '0.1'"),
        (lambda: wdjax.lr_scaled(None, 1.0), TypeError, r"`weight_decay` .* got None"),
        (lambda: wdjax.lr_scaled(0.1, None), TypeError, r"`learning_rate` .* got None"),
        (lambda: wdjax.corrected(0.1, 0.1, peak=0), ValueError, r"`peak` must be > 0"),
        (lambda: wdjax.schedule_scaled(0.1, 0.1, peak=0.0), ValueError, r"`peak` must be > 0"),
        (lambda: wdjax.from_timescale(1), ValueError, r"`steps` must be > 1; got 1"),
        (lambda: wdjax.from_half_life(0), ValueError, r"`steps` must be > 0; got 0"),
        (lambda: wdjax.target_rms(0.1, 0), ValueError, r"`rms` must be > 0"),
        (lambda: wdjax.geometric(0.1, 1.5), ValueError, r"`rate` must be in \[0, 1\].* got 1.5"),
        (lambda: wdjax.inverse_sqrt(0.1, -1), ValueError, r"`gamma` must be a finite number >= 0"),
        (lambda: wdjax.per_epoch(0.1, 3), TypeError, r"`schedule` must be a function of the epoch"),
        (lambda: wdjax.per_epoch(lambda e: e, 0), ValueError, r"`steps_per_epoch` must be >= 1"),
        (
            lambda: wdjax.fixed(np.ones(3)),
            ValueError,
            r"`weight_decay` must be a scalar; got shape",
        ),
    ],
)
def test_bad_arguments_fail_when_built(build, error, message):
    with pytest.raises(error, match=message):
        build()


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
