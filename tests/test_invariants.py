"""What must hold for every input: properties of the maps themselves, drawn by hypothesis."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
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


def stepped(tx, theta, update):
    """θ⁺ of a tail transformation for one leaf and one finished update."""
    params = {"kernel": jnp.asarray(theta)}
    updates, _ = tx.update({"kernel": jnp.asarray(update)}, tx.init(params), params)
    return np.asarray(optax.apply_updates(params, updates)["kernel"])


@convex
@given(x=LEAF, y=LEAF, s=STRENGTH)
def test_the_prox_of_a_convex_penalty_brings_points_no_further_apart(name, x, y, s):
    prox = CONVEX[name].prox
    assert norm(prox(jnp.asarray(x), s) - prox(jnp.asarray(y), s)) <= norm(x - y) + 1e-4


@convex
@given(x=LEAF, s=STRENGTH)
def test_the_prox_of_an_even_penalty_is_odd_and_never_lengthens(name, x, s):
    prox = CONVEX[name].prox
    out = prox(jnp.asarray(x), s)
    assert np.allclose(prox(jnp.asarray(-x), s), -out, atol=1e-4)
    assert norm(out) <= norm(x) + 1e-4


@given(x=LEAF, s=STRENGTH)
def test_moreau_the_rest_of_the_soft_threshold_is_the_projection_onto_the_box(x, s):
    rest = x - penalties.l1.prox(jnp.asarray(x), s)
    assert np.allclose(rest, np.clip(x, -s, s), atol=1e-5)


@given(theta=LEAF, update=STEP, s=st.sampled_from([0.0, 0.015625, 0.5, 0.96875]))
def test_cautious_decay_moves_each_entry_by_at_most_its_share(theta, update, s):
    tx = wdjax.decay_weights(s, gate=gates.cautious, rules=EVERYTHING)
    plain, gated = theta + update, stepped(tx, theta, update)
    assert (np.abs(gated - plain) <= s * np.abs(theta) + 1e-5).all()
    away = np.sign(theta) * np.sign(update) > 0
    assert np.array_equal(gated[away], plain[away])


@given(theta=LEAF, k=st.floats(0, 1, width=32), r=st.floats(0, 2, width=32))
def test_norm_control_alone_sets_the_norm_as_its_formula_says(theta, k, r):
    theta = theta + np.float32(5)  # no group of zeros
    tx = radial.norm_control(k, r, radius=2.0, axes=0, rules=EVERYTHING)
    after = stepped(tx, theta, np.zeros_like(theta))
    before = np.linalg.norm(theta.astype(np.float64), axis=0)
    assert np.allclose(np.linalg.norm(after, axis=0), (1 - k) * before + k * r * 2.0, rtol=1e-4)


@given(theta=LEAF, update=STEP, rate=st.floats(0, 1, width=32))
def test_hyperball_keeps_every_groups_norm(theta, update, rate):
    theta = theta + np.float32(5)
    after = stepped(radial.hyperball(rate, axes=0, rules=EVERYTHING), theta, update)
    norms = np.linalg.norm(theta, axis=0), np.linalg.norm(after, axis=0)
    assert np.allclose(*norms, rtol=1e-4)


@given(theta=LEAF, update=STEP)
def test_the_brake_never_lets_a_norm_grow_and_released_is_not_there(theta, update):
    theta = theta + np.float32(5)  # a group of zeros has no direction and takes its step
    closed = stepped(radial.radial_brake(0.0, 1.0, axes=0, rules=EVERYTHING), theta, update)
    before, after = np.linalg.norm(theta, axis=0), np.linalg.norm(closed, axis=0)
    assert (after <= before * (1 + 1e-5) + 1e-6).all()
    released = stepped(radial.radial_brake(1.0, 1.0, axes=0, rules=EVERYTHING), theta, update)
    assert np.allclose(released, theta + update, atol=1e-5)


@settings(max_examples=8)
@given(theta=LEAF, seed=st.integers(0, 2**16), weight_decay=st.floats(0.5, 5, width=32))
def test_lion_stays_in_the_box_that_its_decay_draws(theta, seed, weight_decay):
    """Each entry of Lion's step is at most η, so |θ| <= max(|θ₀|, 1/λ) whatever the gradients."""
    optimizer = wdjax.lionw(0.1, weight_decay=weight_decay, rules=EVERYTHING)
    params = {"kernel": jnp.asarray(theta)}
    grads = jax.random.normal(jax.random.key(seed), (30, 3, 4))

    def body(carry, grad):
        params, state = carry
        updates, state = optimizer.update({"kernel": grad}, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), jnp.max(jnp.abs(params["kernel"]))

    _, largest = jax.lax.scan(body, (params, optimizer.init(params)), grads)
    assert float(largest.max()) <= max(np.abs(theta).max(), 1 / weight_decay) * (1 + 1e-5)


@pytest.mark.parametrize("verb", [wdjax.decay_weights, wdjax.prox_weights])
@given(theta=LEAF, update=STEP)
def test_multiplier_zero_is_the_optimizer_alone_bit_for_bit(verb, theta, update):
    tx = verb(0.5, penalties.l1, rules=(("**", 0.0),))
    assert np.array_equal(stepped(tx, theta, update), jnp.asarray(theta) + jnp.asarray(update))
