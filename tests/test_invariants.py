"""What must hold for every input: properties of the maps themselves, drawn by hypothesis."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import wdjax
from wdjax import gates, penalties, radial

ENTRIES = st.floats(-4, 4, width=32).filter(lambda x: x == 0 or abs(x) > 1e-3)
LEAF = arrays.arrays(np.float32, (3, 4), elements=ENTRIES)
# XLA takes subnormal numbers for zero
STEP = arrays.arrays(
    np.float32, (3, 4), elements=st.floats(-0.5, 0.5, width=32, allow_subnormal=False)
)
STRENGTH = st.floats(0, 3, width=32)
EVERYTHING = (("**", 1.0),)

CONVEX = {
    name: case.penalty
    for name, case in (cases.PENALTIES | cases.MATRICES).items()
    if case.convex and case.prox
}
convex = pytest.mark.parametrize("name", CONVEX)


def norm(x):
    return float(np.linalg.norm(np.asarray(x, np.float64)))


def stepping(build):
    """(θ, Δ, numbers of the method) -> θ⁺ of a tail transformation, compiled once."""

    @jax.jit
    def stepped(theta, update, *numbers):
        tx = build(*numbers)
        return optax.apply_updates(theta, tx.update(update, tx.init(theta), theta)[0])

    return lambda *arguments: np.asarray(stepped(*arguments))


@functools.cache
def prox_of(name):
    return jax.jit(CONVEX[name].prox)


@convex
@given(x=LEAF, y=LEAF, s=STRENGTH)
@pytest.mark.first_is_quick
def test_the_prox_of_a_convex_penalty_brings_points_no_further_apart(name, x, y, s):
    prox = prox_of(name)
    assert norm(prox(x, s) - prox(y, s)) <= norm(x - y) + 1e-4


@convex
@given(x=LEAF, s=STRENGTH)
def test_the_prox_of_an_even_penalty_is_odd_and_never_lengthens(name, x, s):
    prox = prox_of(name)
    out = np.asarray(prox(x, s))
    assert np.allclose(prox(-x, s), -out, atol=1e-4)
    assert norm(out) <= norm(x) + 1e-4


@given(x=LEAF, s=STRENGTH)
def test_moreau_the_rest_of_the_soft_threshold_is_the_projection_onto_the_box(x, s):
    rest = x - prox_of("l1")(x, s)
    assert np.allclose(rest, np.clip(x, -s, s), atol=1e-5)


cautious = stepping(lambda s: wdjax.decay_weights(s, gate=gates.cautious, rules=EVERYTHING))


@given(theta=LEAF, update=STEP, s=st.sampled_from([0.0, 0.015625, 0.5, 0.96875]))
def test_cautious_decay_moves_each_entry_by_at_most_its_share(theta, update, s):
    plain, gated = theta + update, cautious(theta, update, s)
    assert (np.abs(gated - plain) <= s * np.abs(theta) + 1e-5).all()
    away = np.sign(theta) * np.sign(update) > 0
    assert np.array_equal(gated[away], plain[away])


control = stepping(lambda k, r: radial.norm_control(k, r, radius=2.0, axes=0, rules=EVERYTHING))
hyperball = stepping(lambda rate: radial.hyperball(rate, axes=0, rules=EVERYTHING))
brake = stepping(lambda out: radial.radial_brake(out, 1.0, axes=0, rules=EVERYTHING))


@given(theta=LEAF, k=st.floats(0, 1, width=32), r=st.floats(0, 2, width=32))
def test_norm_control_alone_sets_the_norm_as_its_formula_says(theta, k, r):
    theta = theta + np.float32(5)  # no group of zeros
    after = control(theta, np.zeros_like(theta), k, r)
    before = np.linalg.norm(theta.astype(np.float64), axis=0)
    assert np.allclose(np.linalg.norm(after, axis=0), (1 - k) * before + k * r * 2.0, rtol=1e-4)


@given(theta=LEAF, update=STEP, rate=st.floats(0, 1, width=32))
def test_hyperball_keeps_every_groups_norm(theta, update, rate):
    theta = theta + np.float32(5)
    after = hyperball(theta, update, rate)
    norms = np.linalg.norm(theta, axis=0), np.linalg.norm(after, axis=0)
    assert np.allclose(*norms, rtol=1e-4)


@given(theta=LEAF, update=STEP)
def test_the_brake_never_lets_a_norm_grow_and_released_is_not_there(theta, update):
    theta = theta + np.float32(5)  # a group of zeros has no direction and takes its step
    closed = brake(theta, update, 0.0)
    before, after = np.linalg.norm(theta, axis=0), np.linalg.norm(closed, axis=0)
    assert (after <= before * (1 + 1e-5) + 1e-6).all()
    released = brake(theta, update, 1.0)
    assert np.allclose(released, theta + update, atol=1e-5)


@jax.jit
def largest_of_lion(theta, grads, weight_decay):
    optimizer = wdjax.lionw(0.1, weight_decay=weight_decay, rules=EVERYTHING)

    def body(carry, grad):
        params, state = carry
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.max(jnp.abs(params))

    return jax.lax.scan(body, (theta, optimizer.init(theta)), grads)[1].max()


@given(theta=LEAF, seed=st.integers(0, 2**16), weight_decay=st.floats(0.5, 5, width=32))
def test_lion_stays_in_the_box_that_its_decay_draws(theta, seed, weight_decay):
    """Each entry of Lion's step is at most η, so |θ| <= max(|θ₀|, 1/λ) whatever the gradients."""
    grads = np.float32(np.random.default_rng(seed).normal(size=(30, 3, 4)))
    largest = largest_of_lion(theta, grads, weight_decay)
    assert largest <= max(np.abs(theta).max(), 1 / weight_decay) * (1 + 1e-5)


OFF = {
    verb.__name__: stepping(lambda verb=verb: verb(0.5, penalties.l1, rules=(("**", 0.0),)))
    for verb in (wdjax.decay_weights, wdjax.prox_weights)
}


@pytest.mark.parametrize("verb", OFF)
@given(theta=LEAF, update=STEP)
def test_multiplier_zero_is_the_optimizer_alone_bit_for_bit(verb, theta, update):
    assert np.array_equal(OFF[verb](theta, update), theta + update)
