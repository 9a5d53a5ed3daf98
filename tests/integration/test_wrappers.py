"""Inside Optax's wrappers decay happens once per real step, on the right leaves.

Without gradients: what is left of a weight after T steps is then (1 − s)^T, whatever the wrapper.
MultiSteps, apply_if_finite, masked, partition, schedule_free and inject_hyperparams are in
test_optimizers.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import jobs

PARAMS = {"kernel": jnp.full((2, 3), 2.0), "bias": jnp.full(3, 2.0)}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)
S = 0.1


def decayed():
    return wdjax.decayed(optax.sgd)(1.0, weight_decay=S)


def steps(optimizer, params, count, zeros=ZEROS):
    state = optimizer.init(params)
    for _ in range(count):
        updates, state = optimizer.update(zeros, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_lookahead_decays_the_fast_weights_once_a_step():
    optimizer = optax.lookahead(decayed(), sync_period=3, slow_step_size=0.5)
    params, _ = steps(optimizer, optax.LookaheadParams.init_synced(PARAMS), 3)
    want = 2 + 0.5 * (2 * (1 - S) ** 3 - 2)  # slow weights, half way after the fast ones
    np.testing.assert_allclose(params.slow["kernel"], want, rtol=1e-6)
    np.testing.assert_allclose(params.fast["kernel"], want, rtol=1e-6)
    np.testing.assert_array_equal(params.slow["bias"], 2.0)


def test_sam_decays_in_the_real_step_and_not_in_the_adversarial_one():
    adversary = optax.chain(optax.contrib.normalize(), optax.sgd(0.05))
    optimizer = optax.contrib.sam(decayed(), adversary, sync_period=2)
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    first, state = steps(optimizer, PARAMS, 1, ones)
    norm = np.sqrt(9)  # nine gradients of 1: the adversary ascends by 0.05 in all
    np.testing.assert_allclose(first["kernel"], 2 + 0.05 / norm, rtol=1e-6)
    updates, _ = optimizer.update(ones, state, first)
    second = optax.apply_updates(first, updates)
    # from where it was before the ascent, the step with decay of that point
    np.testing.assert_allclose(second["kernel"], 2 - 1 - S * 2, rtol=1e-6)
    np.testing.assert_allclose(second["bias"], 2 - 1, rtol=1e-6)


def test_frozen_leaves_do_not_decay_behind_freeze_or_selective_transform():
    mask = {"kernel": True, "bias": False}
    rules = (("**", 1.0),)
    inner = wdjax.decayed(optax.sgd)(1.0, weight_decay=S, rules=rules)
    outer = optax.chain(inner, optax.transforms.freeze(mask))
    for optimizer in (outer, optax.transforms.selective_transform(inner, freeze_mask=mask)):
        params, _ = steps(optimizer, PARAMS, 4)
        np.testing.assert_array_equal(params["kernel"], 2.0)
        np.testing.assert_allclose(params["bias"], 2 * (1 - S) ** 4, rtol=1e-6)


@pytest.mark.parametrize("every", [2, 5])
def test_multi_steps_of_a_chain_counts_and_decays_real_steps_only(every):
    chain = optax.chain(optax.sgd(1.0), wdjax.decay_weights(lambda t: S * jnp.minimum(t + 1, 5)))
    params, state = steps(optax.MultiSteps(chain, every), PARAMS, 3 * every)
    want = 2 * (1 - S) * (1 - 2 * S) * (1 - 3 * S)
    np.testing.assert_allclose(params["kernel"], want, rtol=1e-6)
    assert int(state.inner_opt_state[1].count) == 3


@pytest.mark.parametrize(
    ("factory", "name"),
    [
        (lambda learning_rate: optax.MultiSteps(optax.sgd(learning_rate), 4), "MultiSteps"),
        (lambda learning_rate: optax.chain(optax.lookahead(optax.sgd(learning_rate), 3, 0.5)),
         "lookahead"),
        (optax.contrib.schedule_free_adamw, "schedule_free"),
        (lambda learning_rate: optax.contrib.sam(optax.sgd(learning_rate), optax.sgd(0.05)), "sam"),
    ],
)  # fmt: skip
def test_decay_around_a_wrapper_that_takes_steps_elsewhere_is_refused(factory, name):
    optimizer = wdjax.decayed(factory)(0.1, weight_decay=S)
    params = optax.LookaheadParams.init_synced(PARAMS) if name == "lookahead" else PARAMS
    with pytest.raises(TypeError, match=rf"must stand inside of optax\.(contrib\.)?{name}"):
        optimizer.init(params)


def behind(decay):
    return optax.chain(optax.MultiSteps(optax.sgd(0.1), 4), decay)


@pytest.mark.parametrize(
    "decay",
    [
        wdjax.decay_weights(S),
        wdjax.prox_weights(S),
        optax.chain(optax.identity(), optax.masked(wdjax.add_decayed_weights(S), True)),
        wdjax.adaptive.cpr(wdjax.bounds.dependent(1.0)),
        wdjax.radial.norm_control(S),
        wdjax.tuning.hyper_decay(S, lambda params, batch: params["bias"].sum(), np.ones(99)),
    ],
    ids=["decay", "prox", "in a chain, masked", "cpr", "radial", "hyper"],
)
def test_decay_behind_a_wrapper_in_a_chain_is_refused_by_what_sees_the_chain(decay):
    message = r"decay must stand inside of optax\.MultiSteps.* Wrap the whole chain"
    with pytest.raises(TypeError, match=message):
        wdjax.TrainState.create(PARAMS, behind(decay))
    with pytest.raises(TypeError, match=message):
        wdjax.TrainState.create(PARAMS, optax.chain(optax.clip(1.0), behind(decay)))


def test_measured_and_sweeps_refuse_decay_behind_a_wrapper_too():
    with pytest.raises(TypeError, match="decay must stand inside"):
        wdjax.metrics.measured(behind(wdjax.decay_weights(S))).init(PARAMS)
    loss = lambda params, x, weights: jnp.sum(weights * (params["bias"].sum() - x) ** 2)
    build = lambda h: behind(wdjax.decay_weights(h))
    job = jobs.optimized(build, lambda key: PARAMS, loss, loss, keep=False, gaps=jobs.Gaps.NONE)
    with pytest.raises(TypeError, match="decay must stand inside"):
        job.start(None, S)


def test_decay_inside_of_a_wrapper_or_before_it_is_taken():
    decay = wdjax.decay_weights(S)
    for chain in (
        optax.chain(optax.MultiSteps(optax.chain(optax.sgd(0.1), decay), 4)),
        optax.chain(wdjax.add_decayed_weights(S), optax.MultiSteps(optax.sgd(0.1), 4)),
    ):
        wdjax.TrainState.create(PARAMS, chain)
