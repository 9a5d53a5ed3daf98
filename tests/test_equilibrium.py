"""Norms and rotations that theory predicts for noise-dominated training, by simulation.

Gradients are pure noise, so that every run settles into its equilibrium; each run lasts several of
its timescales, and what is measured is averaged over the second half.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import dynamics, radial

SIZE = 2_000
STEPS = {SIZE: 5_000, 10_000: 2_000, 200: 6_000}  # at most, of runs of so many weights
ALL = (("**", 1.0),)


class Run(NamedTuple):
    """What the second half of a run showed, step by step."""

    norm: np.ndarray
    angle: np.ndarray  # turned in the step, radians
    cosine: np.ndarray  # between u and θ, with u the optimizer's direction without decay
    step: np.ndarray  # length of η u
    direction: np.ndarray


def simulate(optimizer, gradient, steps, start, *, strength=0.0, size=SIZE):
    """Run from a random direction of norm `start`; `strength` is the decay to take out of u."""
    theta = weights(optimizer, gradient, steps, start, size)[steps // 2 :]
    before, new = theta[:-1], theta[1:]
    u = (1 - np.float32(strength)) * before - new
    norm, step = norms(theta), norms(u)
    direction = theta / norm[:, None]
    # from the chord: the arc cosine has no digits left at small angles
    angle = 2 * np.arcsin(norms(np.diff(direction, axis=0)) / 2)
    cosine = np.einsum("ij,ij->i", u, before) / (step * norm[:-1])
    return Run(norm[1:], angle, cosine, step, direction[1:])


def path(optimizer, gradient, steps, start, *, size=SIZE):
    """Norms after each step of a run from a random direction of norm `start`."""
    return norms(weights(optimizer, gradient, steps, start, size)[1:])


def weights(optimizer, gradient, steps, start, size):
    """Return θ before the first step and after each."""

    @jax.jit
    def run(theta, draws):
        def step(carry, draw):
            theta, state = carry
            updates, state = optimizer.update(gradient(theta, draw), state, theta)
            theta = optax.apply_updates(theta, updates)
            return (theta, state), theta

        return jax.lax.scan(step, (theta, optimizer.init(theta)), draws)[1]

    draws = normal(size)
    theta = draws[-1] * np.float32(start / np.linalg.norm(draws[-1]))
    return np.concatenate([theta[None], run(theta, draws[:steps])])


@functools.cache
def normal(size):
    """Normal numbers for as many steps as any run has, and a start."""
    rng = np.random.Generator(np.random.SFC64(0))
    return rng.standard_normal((STEPS[size] + 1, size), np.float32)


def norms(rows):
    return np.sqrt(np.einsum("ij,ij->i", rows, rows)).astype(float)


def unit(x):
    return x / jnp.linalg.norm(x)


def noise(theta, draw):
    """A gradient that knows nothing of the weights."""
    return draw


def scale_invariant(theta, draw):
    """Noise of norm 1/‖θ‖, orthogonal to θ: the gradient of a loss that does not see ‖θ‖."""
    tangent = draw - unit(theta) * jnp.vdot(unit(theta), draw)
    return unit(tangent) / jnp.linalg.norm(theta)


def root_mean_square(x, power=2):
    return (x**power).mean() ** (1 / power)


def memory(run, lag):
    """Mean cosine between directions `lag` steps apart."""
    return (run.direction[lag:] * run.direction[:-lag]).sum(1).mean()


# Adam: the step has root mean square 1 per entry.


@pytest.mark.parametrize("start", [0.02, 0.3])
def test_adamw_without_momentum_settles_at_root_of_half_eta_over_lambda(start):
    lr, weight_decay = 2e-3, 1.0
    optimizer = wdjax.adamw(lr, b1=0.0, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, noise, 4_000, start * SIZE**0.5)
    got = root_mean_square(run.norm) / SIZE**0.5
    assert got == pytest.approx((lr / (2 * weight_decay)) ** 0.5, rel=0.03)
    assert got == pytest.approx(dynamics.equilibrium_rms(lr, lr * weight_decay), rel=0.03)


@pytest.mark.parametrize("weight_decay", [2.0, 20.0])
def test_adamw_with_momentum_settles_at_the_exact_norm_and_angle_to_its_step(weight_decay):
    """⟨û, θ̂⟩ = −β₁ √((1−a²)/((1+aβ₁)(1−aβ₁))), a = 1 − ηλ."""
    lr, b1 = 1e-3, 0.9
    a = 1 - lr * weight_decay
    predicted = dynamics.predict(dynamics.adam(b1), lr, weight_decay=weight_decay, steps=1)
    want = predicted.equilibrium_rms[0]
    optimizer = wdjax.adamw(lr, b1=b1, weight_decay=weight_decay, rules=ALL)
    start = 1.5 * want * SIZE**0.5
    run = simulate(optimizer, noise, 4_000, start, strength=lr * weight_decay)
    assert root_mean_square(run.norm) / SIZE**0.5 == pytest.approx(want, rel=0.03)
    cosine = -b1 * ((1 - a * a) / ((1 + a * b1) * (1 - a * b1))) ** 0.5
    assert run.cosine.mean() == pytest.approx(cosine, rel=0.03)
    assert root_mean_square(run.angle) == pytest.approx(predicted.rotation[0], rel=0.03)
    ratio = lr * weight_decay * root_mean_square(run.norm) / root_mean_square(run.step)
    assert ratio == pytest.approx(predicted.decay_to_update[0], rel=0.03)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adamw_turns_by_the_predicted_angle_per_step(b1):
    lr, weight_decay = 1e-3, 2.0
    optimizer = wdjax.adamw(lr, b1=b1, weight_decay=weight_decay, rules=ALL)
    angle = simulate(optimizer, noise, 4_000, 0.02 * SIZE**0.5).angle
    want = radial.adamw_rotation(lr, weight_decay, b1)
    assert root_mean_square(angle) == pytest.approx(want, rel=0.03)
    memory = dynamics.momentum_memory(lr * weight_decay, b1)
    want = dynamics.equilibrium_rotation(lr * weight_decay, memory)
    assert root_mean_square(angle) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("start", [0.0005, 0.1])
@pytest.mark.first_is_quick
def test_adamw_s_weights_go_to_equilibrium_on_the_predicted_path(start):
    """Also while the learning rate, and with it the equilibrium, changes."""
    size, steps = 10_000, 2_000
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, 500, steps)
    optimizer = wdjax.adamw(schedule, weight_decay=2.0, rules=ALL)
    norm = path(optimizer, noise, steps, start * size**0.5, size=size)
    predicted = dynamics.predict(dynamics.adam(), schedule, weight_decay=2.0, steps=steps)
    want = np.asarray(dynamics.expected_rms(predicted, start))
    # at first, Adam's averages are still filling
    assert np.allclose(norm[100:] / size**0.5, want[100:], rtol=0.03)
    assert predicted.equilibrium_rms[-1] < 0.01 * want[-1]  # the weights cannot follow it


@pytest.mark.parametrize(("start", "within"), [(0.0, 0.5), (0.0, 0.05), (3.0, 0.5)])
def test_adamw_s_weights_need_as_many_steps_as_predicted(start, within):
    lr, weight_decay = 1e-3, 2.0
    optimizer = wdjax.adamw(lr, b1=0.0, weight_decay=weight_decay, rules=ALL)
    rho = dynamics.equilibrium_rms(lr, lr * weight_decay)
    steps = int(dynamics.steps_to_equilibrium(lr * weight_decay, start, within=within))
    size = 10_000  # one norm is 1/√(2 size) away from its expectation
    norm = path(optimizer, noise, steps, max(start, 1e-3) * rho * size**0.5, size=size)
    want = 1 + within if start else 1 - within
    assert norm[-1] / size**0.5 / rho == pytest.approx(want, rel=0.03)


def test_adamw_s_direction_is_forgotten_at_the_rate_of_decay():
    """⟨ŵ(t), ŵ(t + K)⟩ = e^(−ηλK)."""
    lr, weight_decay, lag = 1e-3, 5.0, 150
    optimizer = wdjax.adamw(lr, b1=0.0, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, noise, 4_000, 0.01 * SIZE**0.5)
    assert memory(run, lag) == pytest.approx(np.exp(-lr * weight_decay * lag), abs=0.02)


@pytest.mark.slow
def test_hyperball_with_adamw_s_rotation_forgets_its_direction_as_fast_as_adamw():
    lr, weight_decay, lag = 1e-3, 5.0, 150
    eta = radial.adamw_rotation(lr, weight_decay)
    ball = optax.chain(optax.adam(1.0), radial.hyperball(eta, rules=ALL))
    decayed = wdjax.adamw(lr, weight_decay=weight_decay, rules=ALL)
    one, other = (
        memory(simulate(optimizer, noise, 4_000, 0.01 * SIZE**0.5), lag)
        for optimizer in (ball, decayed)
    )
    assert one == pytest.approx(other, abs=0.03)


def test_target_rms_keeps_the_root_mean_square_while_the_learning_rate_falls():
    schedule = optax.linear_schedule(2e-3, 1e-3, 4_000)
    decay = wdjax.decay_weights(wdjax.target_rms(schedule, 0.03), rules=ALL)
    optimizer = optax.chain(optax.adam(schedule, b1=0.0), decay)
    norm = simulate(optimizer, noise, 4_000, 0.03 * SIZE**0.5).norm
    assert np.allclose(norm / SIZE**0.5, 0.03, rtol=0.05)
    assert root_mean_square(norm) / SIZE**0.5 == pytest.approx(0.03, rel=0.03)


# Lion: every entry of the step is ±1.


@pytest.mark.parametrize(("weight_decay", "b2"), [(0.5, 0.95), (5.0, 0.99)])
def test_lion_settles_at_the_predicted_norm_and_rotation(weight_decay, b2):
    """The second has s = ηλ half as large as 1 − β₂: momentum forgets hardly faster than decay."""
    lr = 1e-3
    predicted = dynamics.predict(dynamics.lion(0.9, b2), lr, weight_decay=weight_decay, steps=1)
    rho, angle = predicted.equilibrium_rms[0], predicted.rotation[0]
    optimizer = wdjax.lionw(lr, b2=b2, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, noise, 5_000, 1.05 * rho * SIZE**0.5)
    assert root_mean_square(run.norm) / SIZE**0.5 == pytest.approx(rho, rel=0.03)
    assert root_mean_square(run.angle) == pytest.approx(angle, rel=0.03)


# SGD on scale-invariant weights, gradient norm 1 at ‖θ‖ = 1.


@pytest.mark.parametrize(
    ("lr", "weight_decay", "momentum", "coupled"),
    [(0.1, 0.02, 0.0, False), (0.02, 0.01, 0.9, True), (0.02, 0.1, 0.9, False)],
)
def test_scale_invariant_sgd_settles_at_the_predicted_norm_and_rotation(
    lr, weight_decay, momentum, coupled
):
    if coupled:
        decay = wdjax.add_decayed_weights(weight_decay)
        optimizer = optax.chain(decay, optax.sgd(lr, momentum=momentum))
    else:
        decayed = wdjax.sgdw if momentum else wdjax.decayed(optax.sgd)
        optimizer = decayed(lr, momentum=momentum or None, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, scale_invariant, 5_000, 1.5)
    gain = (1 - momentum) ** (1 if coupled else 2)
    want = (lr / (2 * weight_decay * gain)) ** 0.25
    assert root_mean_square(run.norm, 4) == pytest.approx(want, rel=0.03)
    direction = dynamics.sgd(1.0, momentum=momentum, coupled=coupled)
    predicted = dynamics.predict(direction, lr, weight_decay=weight_decay, steps=1)
    assert root_mean_square(run.norm, 4) == pytest.approx(predicted.equilibrium_rms[0], rel=0.03)
    assert root_mean_square(run.angle) == pytest.approx(predicted.rotation[0], rel=0.03)
    if coupled or not momentum:  # √(2ηλ/(1 + α)), Kosson et al. 2024
        want = (2 * lr * weight_decay / (1 + momentum)) ** 0.5
        assert root_mean_square(run.angle) == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("start", [0.3, 2.0])
def test_scale_invariant_weights_relax_with_the_fourth_power(start):
    lr, weight_decay = 0.02, 0.01
    predicted = dynamics.predict(
        dynamics.sgd(1.0), lr, weight_decay=weight_decay, steps=8_000, start_rms=start
    )
    settled = int(predicted.settled)
    optimizer = wdjax.sgdw(lr, weight_decay=weight_decay, rules=ALL)
    norm = path(optimizer, scale_invariant, settled, start, size=200)
    assert np.allclose(norm, dynamics.expected_rms(predicted, start)[:settled], rtol=0.03)
    want = 1.05 if start > 1 else 0.95
    assert norm[-1] / predicted.equilibrium_rms[0] == pytest.approx(want, rel=0.01)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_whose_gradients_do_not_shrink_settles_at_the_predicted_norm(momentum):
    lr, weight_decay = 0.02, 0.2
    optimizer = wdjax.sgdw(lr, momentum=momentum, weight_decay=weight_decay, rules=ALL)
    direction = dynamics.sgd(1.0, momentum=momentum, scale_invariant=False)
    predicted = dynamics.predict(direction, lr, weight_decay=weight_decay, steps=1)
    rho = predicted.equilibrium_rms[0]
    run = simulate(optimizer, noise, 3_000, rho * SIZE**0.5)
    assert root_mean_square(run.norm) / SIZE**0.5 == pytest.approx(rho, rel=0.03)
    assert root_mean_square(run.angle) == pytest.approx(predicted.rotation[0], rel=0.03)


# Norm balls: bounds that hold for every sequence of gradients.


def largest(optimizer, theta, gradients):
    """max |θ| over all steps, of each entry."""

    @jax.jit
    def run(theta, gradients):
        def step(carry, grads):
            theta, state, most = carry
            updates, state = optimizer.update(grads, state, theta)
            theta = theta + updates
            return (theta, state, jnp.maximum(most, jnp.abs(theta))), None

        start = theta, optimizer.init(theta), jnp.zeros_like(theta)
        return jax.lax.scan(step, start, gradients)[0][2]

    return np.asarray(run(np.float32(theta), np.float32(gradients)), np.float64)


def wild(seed, steps=1_000, size=200):
    """Gradients over twelve decades, with signs that persist for a while."""
    rng = np.random.default_rng(seed)
    signs = np.repeat(rng.choice([-1.0, 1.0], size=(steps // 50, size)), 50, axis=0)
    flips = rng.choice([1.0, 1.0, 1.0, -1.0], size=(steps, size))
    decades = 10.0 ** np.cumsum(rng.normal(scale=0.3, size=(steps, size)), axis=0).clip(-6, 6)
    return signs * flips * decades


def test_lion_stays_within_one_over_lambda_and_reaches_it_when_the_gradient_never_turns():
    weight_decay = 2.0
    optimizer = wdjax.lionw(0.02, weight_decay=weight_decay, rules=ALL)
    starts = np.repeat([0.1, 2.0, 0.0], 600)
    gradients = np.hstack([wild(seed) for seed in range(3)])
    gradients = np.hstack([gradients, gradients, np.ones((1_000, 600))])
    sizes = largest(optimizer, starts, gradients)
    assert (sizes <= np.maximum(starts, 1 / weight_decay) * (1 + 1e-6)).all()
    assert (sizes[:1200].reshape(6, 200).max(1) > 0.8 / weight_decay).all()
    assert sizes[1200:] == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize(
    ("b1", "b2", "bound"), [(0.9, 0.999, 7.270), (0.9, 0.95, 1.165), (0.9, 0.99, 2.345)]
)
def test_adamw_stays_within_its_bound_over_lambda_and_the_bound_is_sharp(b1, b2, bound):
    assert dynamics.adam_bound(b1, b2) == pytest.approx(bound, abs=5e-4)
    lr, weight_decay = 0.05, 1.0
    optimizer = wdjax.adamw(lr, b1=b1, b2=b2, eps=1e-20, weight_decay=weight_decay, rules=ALL)
    # the worst sequence grows by β₂/β₁ per step, after a long silence that removes the bias
    steps = min(int(70 / np.log(b2 / b1)), 400)
    growing = np.append(np.zeros(6_000), 1e-15 * (b2 / b1) ** np.arange(steps))
    others = np.pad(wild(0), ((0, growing.size - 1_000), (0, 0)))
    sizes = largest(optimizer, np.zeros(201), np.column_stack([others, growing]))
    assert sizes.max() <= bound / weight_decay * (1 + 1e-3)
    assert sizes[-1] >= 0.97 * bound / weight_decay


def test_muon_stays_within_its_bound_over_lambda_and_nearly_reaches_it():
    lr, weight_decay, bound = 0.05, 2.0, dynamics.muon_bound()
    optimizer = wdjax.muonw(lr, weight_decay=weight_decay, rules=ALL)
    step = jax.jit(optimizer.update)
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(8, 8)))[0] for _ in range(2))
    steady = left @ np.diag(np.geomspace(1, 1e-3, 8)) @ right
    for grads in (steady, *rng.normal(size=(3, 8, 8)) @ np.diag(np.geomspace(1, 1e-6, 8))):
        theta = np.zeros((8, 8), np.float32)
        state = optimizer.init(theta)
        for _ in range(100):
            updates, state = step(np.float32(grads), state, theta)
            theta = theta + np.asarray(updates)
            size = np.linalg.norm(theta, 2)
            assert size <= bound / weight_decay * (1 + 1e-3)
        assert size >= 0.9 / weight_decay
