import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import anchors

PARAMS = {"kernel": np.float32([[2, -1]]), "bias": np.float32([3])}
START = jax.tree.map(lambda p: p + 1.0, PARAMS)


def steps(anchor, count, strength=0.25, rate=0.5):
    """SGD on f = ½‖θ − 4‖² with decay towards the anchor; returns every θ."""
    optimizer = optax.chain(optax.sgd(rate), wdjax.decay_weights(strength, anchor=anchor))

    @jax.jit
    def step(params, state):
        grads = jax.tree.map(lambda p: p - 4.0, params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    params, state, seen = PARAMS, optimizer.init(PARAMS), []
    for _ in range(count):
        params, state = step(params, state)
        seen.append(params)
    return seen, state


def test_the_average_follows_its_recursion_in_float64(x64):
    seen, _ = steps(anchors.ema(0.8), 12)
    theta = np.asarray(PARAMS["kernel"], np.float64)
    average = theta.copy()
    for t in range(12):
        average = 0.8 * average + 0.2 * theta
        theta = theta - 0.5 * (theta - 4) - 0.25 * (theta - average)
        assert np.allclose(seen[t]["kernel"], theta, rtol=1e-6)


def test_decay_one_is_the_start_and_decay_zero_is_no_decay():
    last = lambda anchor, strength=0.25: steps(anchor, 5, strength)[0][-1]
    frozen, start = last(anchors.ema(1.0)), last("init")
    none, plain = last(anchors.ema(0.0)), last(None, 0.0)
    chex.assert_trees_all_close(frozen, start, rtol=1e-6)
    chex.assert_trees_all_close(none, plain, rtol=1e-6)


def test_an_anchor_kept_in_bfloat16_halves_the_state_and_nothing_else():
    _, state = steps(anchors.init(jnp.bfloat16), 1)
    kept = state[1].memory
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    exact, _ = steps("init", 3)
    narrow, _ = steps(anchors.init(jnp.bfloat16), 3)
    chex.assert_trees_all_close(exact[-1], narrow[-1])  # 2, −1 and 3 are exact in bfloat16


def test_the_average_of_bfloat16_parameters_is_kept_in_float32_by_default():
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    tx = wdjax.decay_weights(0.01, anchor=anchors.ema(0.999))
    state = tx.init(params)
    assert state.memory["kernel"].dtype == jnp.float32
    updates, after = tx.update(params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert updates["kernel"].dtype == jnp.bfloat16


def test_a_passed_anchor_stays_out_of_state_and_equals_a_given_one():
    passed = wdjax.decay_weights(0.3, anchor=anchors.passed())
    given = wdjax.decay_weights(0.3, anchor=START)
    state = passed.init(PARAMS)
    assert state.memory == ()
    zero = jax.tree.map(np.zeros_like, PARAMS)
    got, _ = jax.jit(passed.update)(zero, state, PARAMS, anchor=START)
    want, _ = given.update(zero, given.init(PARAMS), PARAMS)
    chex.assert_trees_all_close(got, want)
    with pytest.raises(ValueError, match=r"needs the anchor at every step. Call .*anchor=\.\.\."):
        passed.update(zero, state, PARAMS)
    with pytest.raises(ValueError, match=r"`anchor` must have the structure and shapes of the par"):
        passed.update(zero, state, PARAMS, anchor={"kernel": START["kernel"]})


def test_integer_leaves_keep_their_dtype():
    params = PARAMS | {"count": jnp.array(3)}
    for anchor in (anchors.init(jnp.bfloat16), anchors.ema(0.5)):
        kept = anchor.init(params)
        assert kept["count"].dtype == jnp.int32
        assert anchor.advance(kept, params)["count"].dtype == jnp.int32


def test_a_traced_decay_runs_under_vmap():
    def run(beta):
        return steps(anchors.ema(beta), 4)[0][-1]["kernel"]

    betas = np.float32([0.0, 0.5, 1.0])
    alone = jax.jit(run)
    for row, beta in zip(jax.jit(jax.vmap(run))(betas), betas, strict=True):
        assert np.allclose(row, alone(beta), rtol=1e-5)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_a_decay_outside_the_unit_interval_fails_when_built(bad):
    with pytest.raises(ValueError, match=r"`decay` must be in \[0, 1\]; got"):
        anchors.ema(bad)


@pytest.mark.parametrize("anchor", [anchors.init(), anchors.ema(0.9)])
def test_a_donated_step_runs_from_the_first(anchor):
    optimizer = optax.chain(optax.sgd(0.1), wdjax.decay_weights(0.1, anchor=anchor))
    params = jax.tree.map(jnp.asarray, PARAMS)
    state = optimizer.init(params)

    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return optax.apply_updates(params, updates), state

    step = jax.jit(step, donate_argnums=(0, 1))
    for _ in range(2):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("penalty", [wdjax.penalties.l1, wdjax.penalties.group_lasso(-1)])
def test_weights_that_stay_at_their_average_are_not_pulled_at_all(penalty):
    """A rounding error would be a direction, along which l1 has its whole length."""
    params = {"kernel": np.float32(np.random.default_rng(0).normal(size=(64, 64)))}
    zeros = jax.tree.map(np.zeros_like, params)
    tx = wdjax.decay_weights(0.01, penalty, anchor=anchors.ema(0.9))
    state, update = tx.init(params), jax.jit(tx.update)
    for _ in range(2):
        updates, state = update(zeros, state, params)
    chex.assert_trees_all_equal(updates, zeros)


PARTED = {
    "masked": lambda tx: optax.masked(tx, {"kernel": True, "bias": False}),
    "partition": lambda tx: optax.partition(
        {"here": tx, "there": optax.identity()}, {"kernel": "here", "bias": "there"}
    ),
}


@pytest.mark.parametrize("part", PARTED.values(), ids=PARTED)
def test_where_some_leaves_are_hidden_the_anchor_may_be_of_the_whole_model(part):
    params = {"kernel": np.full((2, 2), 3, np.float32), "bias": np.ones(2, np.float32)}
    anchor = {"kernel": np.ones((2, 2), np.float32), "bias": np.zeros(2, np.float32)}
    zeros = jax.tree.map(np.zeros_like, params)

    def moved(anchor, /, **extra):
        rules = (("**", 1.0),)
        tx = part(wdjax.decay_weights(0.25, anchor=anchor, rules=rules))
        return tx.update(zeros, tx.init(params), params, **extra)[0]

    want = {"kernel": np.full((2, 2), -0.5, np.float32), "bias": zeros["bias"]}
    chex.assert_trees_all_equal(moved(anchor), want)
    chex.assert_trees_all_equal(moved(anchors.passed(), anchor=anchor), want)
    for wrong, said in (
        ({"bias": anchor["bias"]}, r"got 'kernel' absent instead of \(2, 2\)"),
        ({**anchor, "kernel": jnp.ones(3)}, r"got 'kernel' \(3,\) instead of \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=rf"structure and shapes of the parameters; {said}"):
            moved(wrong)


def test_an_average_that_never_moves_is_the_start_bit_for_bit():
    """β = 1: θ + 1 (a − θ) would lose a beside a θ that has grown large."""
    tx = wdjax.decay_weights(1.0 - 2**-24, anchor=anchors.ema(1.0), rules=(("**", 1.0),))
    start = {"kernel": jnp.array([0.1])}
    _, state = tx.update(zeros_of(start), tx.init(start), {"kernel": jnp.array([1e9])})
    np.testing.assert_array_equal(state.memory["kernel"], start["kernel"])


def zeros_of(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def test_an_anchor_that_its_owner_changes_later_stays_as_it_was():
    own = {"kernel": np.ones((1, 1), np.float32)}
    tx = wdjax.decay_weights(0.5, anchor=own)
    own["kernel"][:] = 7.0
    params = {"kernel": jnp.ones((1, 1))}
    got, _ = tx.update(zeros_of(params), tx.init(params), params)
    np.testing.assert_array_equal(got["kernel"], 0.0)
