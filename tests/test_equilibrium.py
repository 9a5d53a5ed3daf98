"""Norms and rotations that theory predicts for noise-dominated training, by simulation.

Gradients are pure noise, so that every run settles into its equilibrium; each run lasts several of
its timescales, and what is measured is averaged over the second half.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import radial

SIZE = 2_000
ALL = (("**", 1.0),)


class Run(NamedTuple):
    """What the second half of a run showed, step by step."""

    norm: np.ndarray
    angle: np.ndarray  # turned in the step, radians
    cosine: np.ndarray  # between u and θ, with u the optimizer's direction without decay
    direction: np.ndarray


def simulate(optimizer, gradient, steps, start, *, strength=0.0, directions=False):
    """Run from a random direction of norm `start`; `strength` is the decay to take out of u."""

    @jax.jit
    def run(theta):
        def step(carry, key):
            theta, state = carry
            grads = gradient(theta, jax.random.normal(key, theta.shape))
            updates, state = optimizer.update(grads, state, theta)
            new = optax.apply_updates(theta, updates)
            u = -(updates + strength * theta)
            seen = Run(
                norm=jnp.linalg.norm(new),
                # from the chord: the arc cosine has no digits left at small angles
                angle=2 * jnp.arcsin(jnp.linalg.norm(unit(new) - unit(theta)) / 2),
                cosine=jnp.vdot(unit(u), unit(theta)),
                direction=unit(new) if directions else jnp.zeros(()),
            )
            return (new, state), seen

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (theta, optimizer.init(theta)), keys)[1]

    history = run(start * unit(jax.random.normal(jax.random.key(1), (SIZE,))))
    return Run(*(np.asarray(x, np.float64)[steps // 2 :] for x in history))


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


@pytest.mark.parametrize("weight_decay", [2.0, 20.0])
def test_adamw_with_momentum_settles_at_the_exact_norm_and_angle_to_its_step(weight_decay):
    """RMS = η √((1−β)/(1+β)) √((1+aβ)/((1−a²)(1−aβ))), a = 1 − ηλ; ⟨û, θ̂⟩ likewise."""
    lr, b1 = 1e-3, 0.9
    a = 1 - lr * weight_decay
    want = lr * ((1 - b1) / (1 + b1) * (1 + a * b1) / ((1 - a * a) * (1 - a * b1))) ** 0.5
    optimizer = wdjax.adamw(lr, b1=b1, weight_decay=weight_decay, rules=ALL)
    start = 1.5 * want * SIZE**0.5
    run = simulate(optimizer, noise, 4_000, start, strength=lr * weight_decay)
    assert root_mean_square(run.norm) / SIZE**0.5 == pytest.approx(want, rel=0.03)
    cosine = -b1 * ((1 - a * a) / ((1 + a * b1) * (1 - a * b1))) ** 0.5
    assert run.cosine.mean() == pytest.approx(cosine, rel=0.03)


@pytest.mark.parametrize("b1", [0.0, 0.9])
def test_adamw_turns_by_the_predicted_angle_per_step(b1):
    lr, weight_decay = 1e-3, 2.0
    optimizer = wdjax.adamw(lr, b1=b1, weight_decay=weight_decay, rules=ALL)
    angle = simulate(optimizer, noise, 4_000, 0.02 * SIZE**0.5).angle
    want = radial.adamw_rotation(lr, weight_decay, b1)
    assert root_mean_square(angle) == pytest.approx(want, rel=0.03)


def test_adamw_s_direction_is_forgotten_at_the_rate_of_decay():
    """⟨ŵ(t), ŵ(t + K)⟩ = e^(−ηλK)."""
    lr, weight_decay, lag = 1e-3, 5.0, 150
    optimizer = wdjax.adamw(lr, b1=0.0, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, noise, 4_000, 0.01 * SIZE**0.5, directions=True)
    assert memory(run, lag) == pytest.approx(np.exp(-lr * weight_decay * lag), abs=0.02)


@pytest.mark.slow
def test_hyperball_with_adamw_s_rotation_forgets_its_direction_as_fast_as_adamw():
    lr, weight_decay, lag = 1e-3, 5.0, 150
    eta = radial.adamw_rotation(lr, weight_decay)
    ball = optax.chain(optax.adam(1.0), radial.hyperball(eta, rules=ALL))
    decayed = wdjax.adamw(lr, weight_decay=weight_decay, rules=ALL)
    one, other = (
        memory(simulate(optimizer, noise, 4_000, 0.01 * SIZE**0.5, directions=True), lag)
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


def test_lion_turns_by_the_predicted_angle_per_step():
    """The formula holds for ηλ well below 1 − β₂: the momentum must forget faster than decay."""
    lr, weight_decay, b2 = 1e-3, 0.5, 0.95
    optimizer = wdjax.lionw(lr, b2=b2, weight_decay=weight_decay, rules=ALL)
    want = radial.lion_rotation(lr, weight_decay, b2=b2)
    angle = simulate(optimizer, noise, 5_000, 1.05 * lr * SIZE**0.5 / want).angle
    assert root_mean_square(angle) == pytest.approx(want, rel=0.03)


# SGD on scale-invariant weights, gradient norm 1 at ‖θ‖ = 1.


def test_scale_invariant_sgd_settles_at_the_predicted_norm_and_rotation():
    lr, weight_decay = 0.1, 0.02
    optimizer = wdjax.sgdw(lr, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, scale_invariant, 3_000, 1.0)
    assert root_mean_square(run.norm, 4) == pytest.approx(
        (lr / (2 * weight_decay)) ** 0.25, rel=0.03
    )
    want = radial.sgdm_rotation(lr, weight_decay)
    assert root_mean_square(run.angle) == pytest.approx(want, rel=0.03)


def test_coupled_momentum_settles_at_the_predicted_norm_and_rotation():
    lr, weight_decay, alpha = 0.02, 0.01, 0.9
    coupled = wdjax.add_decayed_weights(weight_decay)
    optimizer = optax.chain(coupled, optax.sgd(lr, momentum=alpha))
    run = simulate(optimizer, scale_invariant, 5_000, 2.0)
    want = (lr / (2 * weight_decay * (1 - alpha))) ** 0.25
    assert root_mean_square(run.norm, 4) == pytest.approx(want, rel=0.03)
    want = radial.sgdm_rotation(lr, weight_decay, alpha)
    assert root_mean_square(run.angle) == pytest.approx(want, rel=0.03)


def test_decoupled_momentum_settles_at_another_norm():
    lr, weight_decay, alpha = 0.02, 0.1, 0.9
    optimizer = wdjax.sgdw(lr, momentum=alpha, weight_decay=weight_decay, rules=ALL)
    run = simulate(optimizer, scale_invariant, 5_000, 2.0)
    want = (lr / (2 * weight_decay * (1 - alpha) ** 2)) ** 0.25
    assert root_mean_square(run.norm, 4) == pytest.approx(want, rel=0.03)


# Norm balls: bounds that hold for every sequence of gradients.


def largest(optimizer, theta, gradients):
    """max |θ| after every step, over a stack of gradients."""

    @jax.jit
    def run(theta):
        def step(carry, grads):
            theta, state = carry
            updates, state = optimizer.update(grads, state, theta)
            return (theta + updates, state), jnp.max(jnp.abs(theta + updates))

        return jax.lax.scan(step, (theta, optimizer.init(theta)), gradients)[1]

    return np.asarray(run(theta), np.float64)


def wild(seed, steps, size=200):
    """Gradients over twelve decades, with signs that persist for a while."""
    rng = np.random.default_rng(seed)
    signs = np.repeat(rng.choice([-1.0, 1.0], size=(steps // 50, size)), 50, axis=0)
    flips = rng.choice([1.0, 1.0, 1.0, -1.0], size=(steps, size))
    decades = 10.0 ** np.cumsum(rng.normal(scale=0.3, size=(steps, size)), axis=0).clip(-6, 6)
    return jnp.asarray(signs * flips * decades, jnp.float32)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("start", [0.1, 2.0])
def test_lion_stays_within_one_over_lambda(seed, start):
    weight_decay = 2.0
    optimizer = wdjax.lionw(0.02, weight_decay=weight_decay, rules=ALL)
    sizes = largest(optimizer, jnp.full(200, start), wild(seed, 1_000))
    assert sizes.max() <= max(start, 1 / weight_decay) * (1 + 1e-6)
    assert sizes.max() > 0.8 / weight_decay


def test_lion_reaches_one_over_lambda_when_the_gradient_never_turns():
    optimizer = wdjax.lionw(0.02, weight_decay=2.0, rules=ALL)
    sizes = largest(optimizer, jnp.zeros(3), jnp.ones((500, 3)))
    assert sizes[-1] == pytest.approx(0.5, rel=1e-5)


def adam_bound(b1, b2, steps=100_000):
    """sup_t |û_t| over all gradients, by the inequality of Cauchy and Schwarz."""
    t = np.arange(1, steps)
    r = b1 * b1 / b2
    factor = (1 - b1) ** 2 / (1 - b1**t) ** 2 * (1 - b2**t) / (1 - b2) * (1 - r**t) / (1 - r)
    return np.sqrt(factor.max())


@pytest.mark.parametrize(
    ("b1", "b2", "bound"), [(0.9, 0.999, 7.270), (0.9, 0.95, 1.165), (0.9, 0.99, 2.345)]
)
def test_adamw_stays_within_its_bound_over_lambda_and_the_bound_is_sharp(b1, b2, bound):
    assert adam_bound(b1, b2) == pytest.approx(bound, abs=5e-4)
    lr, weight_decay = 0.05, 1.0
    optimizer = wdjax.adamw(lr, b1=b1, b2=b2, eps=1e-20, weight_decay=weight_decay, rules=ALL)
    sizes = largest(optimizer, jnp.zeros(200), wild(0, 1_000))
    assert sizes.max() <= bound / weight_decay * (1 + 1e-3)
    # the worst sequence grows by β₂/β₁ per step, after a long silence that removes the bias
    steps = min(int(70 / np.log(b2 / b1)), 400)
    growing = np.append(np.zeros(6_000), 1e-15 * (b2 / b1) ** np.arange(steps))
    sizes = largest(optimizer, jnp.zeros(1), jnp.asarray(growing, jnp.float32)[:, None])
    assert sizes.max() <= bound / weight_decay * (1 + 1e-3)
    assert sizes.max() >= 0.97 * bound / weight_decay
