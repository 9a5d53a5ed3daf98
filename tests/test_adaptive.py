"""Adaptive methods: each one's own proof. What holds for all methods is in `test_properties`."""

import functools
import inspect
import math
import re
import warnings

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from adaptive_reference import hill

import wdjax
from wdjax import adaptive, anchors, bounds, spectra

EVERYTHING = (("**", 1.0),)


def tree(seed):
    rng = np.random.default_rng(seed)
    leaves = {
        "a": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=3)},
        "b": [{"kernel": rng.normal(size=(2, 3))}],
    }
    return jax.tree.map(np.float32, leaves)


METHODS = {
    "cpr": lambda **kw: adaptive.cpr(bounds.dependent(0.7), **kw),
    "cumulative_l1": lambda **kw: adaptive.cumulative_l1(0.1, **kw),
    "spd": lambda **kw: adaptive.spd(0.1, **kw),
    "swd": lambda **kw: adaptive.swd(0.1, **kw),
    "awd": lambda **kw: adaptive.awd(0.1, **kw),
    "ada_decay": lambda **kw: adaptive.ada_decay(0.1, **kw),
}


@pytest.mark.parametrize("name", METHODS)
def test_complex_parameters_are_refused_unless_they_are_excluded(name):
    params = {"kernel": np.ones((2, 2), np.complex64), "plain": np.ones((2, 2), np.float32)}
    with pytest.raises(TypeError, match=rf"`{name}` needs real parameters; got .* 'kernel'"):
        METHODS[name](rules=EVERYTHING).init(params)
    tx = METHODS[name](rules=(("kernel", 0.0), ("plain", 1.0)))
    got, _ = jax.jit(tx.update)(params, tx.init(params), params, grad=params)
    chex.assert_trees_all_equal(got["kernel"], params["kernel"])


@pytest.mark.parametrize("name", METHODS)
def test_a_scalar_is_a_group_of_one(name):
    params = {"scalar": np.ones((), np.float32)}
    tx = METHODS[name](rules=EVERYTHING)
    got, _ = jax.jit(tx.update)(params, tx.init(params), params, grad=params)
    chex.assert_trees_all_equal_shapes(got, params)
    chex.assert_tree_all_finite(got)


AXES = {
    "cpr": lambda **kw: adaptive.cpr(bounds.dependent(0.7), strength=0.1, **kw),
    "spd": lambda **kw: adaptive.spd(0.7, **kw),
    "ada_decay": lambda **kw: adaptive.ada_decay(0.1, **kw),
}
with_axes = pytest.mark.parametrize("make", AXES.values(), ids=AXES.keys())


@with_axes
def test_layers_stacked_by_scan_equal_separate_layers(make):
    def layers(*seeds):
        rng = np.random.default_rng(seeds)
        return np.float32(rng.normal(size=(3, 4, 5)))

    tx = make(axes=(-2, -1), rules=EVERYTHING)

    @jax.jit
    def run(params, *steps):
        state = tx.init({"kernel": params})
        for delta, grad in steps:
            got, state = tx.update(
                {"kernel": 0.3 * delta}, state, {"kernel": params}, grad={"kernel": grad}
            )
            params = params + got["kernel"]
        return params

    trees = layers(0), (layers(1), layers(2)), (layers(3), layers(4))
    for i, row in enumerate(run(*trees)):
        alone = run(*jax.tree.map(lambda x, i=i: x[i], trees))
        np.testing.assert_allclose(row, alone, rtol=1e-5, atol=1e-6)


@with_axes
def test_axes_that_a_decayed_leaf_does_not_have_are_named(make):
    params = {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    message = r"`axes` must be axes of every decayed leaf; got \(0, 1\) for 'b' \(3,\)\. Restrict"
    with pytest.raises(ValueError, match=message):
        make(axes=(0, 1), rules=EVERYTHING).init(params)
    make(axes=(0, 1), rules=(("a", 1.0), ("b", 0.0))).init(params)
    for bad in ("0", (0, "1"), 0.5):
        with pytest.raises(TypeError, match=r"`axes` must be None, an axis or several axes"):
            make(axes=bad)


@with_axes
def test_memory_of_groups_does_not_depend_on_rules(make):
    params = {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    states = [
        make(axes=1, rules=(("a", 1.0), ("b", 0.0))).init(params),
        make(axes=1, rules=(("**", 0.0),)).init(params),
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


# CPR.


def leaf(*values, dtype=np.float32):
    return {"kernel": np.array([values], dtype)}


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_cpr_with_a_fixed_multiplier_is_decay_by_twice_the_multiplier(factor):
    tx = adaptive.cpr(bounds.dependent(factor), strength=0.0, multiplier=0.125)
    params = tree(0)
    zeros = jax.tree.map(np.zeros_like, params)
    got, _ = jax.jit(tx.update)(zeros, tx.init(params), params)
    decay = wdjax.decay_weights(0.25)
    want, _ = jax.jit(decay.update)(zeros, decay.init(params), params)
    chex.assert_trees_all_equal(got, want)


@pytest.mark.parametrize("measure", [bounds.sum_squares, bounds.deviation])
def test_cpr_below_its_bound_is_the_optimizers_own_step_bit_for_bit(measure):
    tx = adaptive.cpr(bounds.uniform(1e3), measure, rules=EVERYTHING)
    params = tree(0)
    state = jax.jit(tx.init)(params)
    for t in range(3):
        updates = tree(t + 1)
        got, state = jax.jit(tx.update)(updates, state, params)
        chex.assert_trees_all_equal(got, updates)
        params = optax.apply_updates(params, got)


@pytest.mark.parametrize(
    ("measure", "left"),
    [
        (bounds.sum_squares, [[0.1, -0.2]]),
        (bounds.deviation, [[-0.35, -0.65]]),
    ],
)
@pytest.mark.first_is_quick
def test_cpr_never_jumps_over_the_minimum_however_large_its_multiplier(measure, left):
    params = leaf(1.0, -2.0)
    for m in (0.25, 4.0, 1.0):
        rules = (("kernel", m), ("**", 0.0))
        tx = adaptive.cpr(bounds.uniform(0.1), measure, strength=1e6, rules=rules)
        got, state = jax.jit(tx.update)(leaf(0.0, 0.0), tx.init(params), params)
        np.testing.assert_allclose(params["kernel"] + got["kernel"], left, rtol=1e-5)
    for _ in range(5):  # and the capped multiplier does not hold on
        params = optax.apply_updates(params, got)
        got, state = jax.jit(tx.update)(leaf(0.0, 0.0), state, params)
        chex.assert_tree_all_finite(got)
    assert np.abs(params["kernel"]).max() <= 2


@jax.jit
def step_of_cpr(s, factor, state, params, updates):
    tx = adaptive.cpr(bounds.dependent(factor), strength=s)
    state = tx.init(params) if state is None else state
    return *tx.update(updates, state, params), state


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.01, 0.3), st.floats(0.3, 1.5))
def test_cprs_multiplier_is_never_negative_and_grows_while_the_bound_is_broken(seed, s, factor):
    rng = np.random.default_rng(seed)
    params, state = leaf(*rng.normal(size=4)), None
    for _ in range(6):
        updates = leaf(*rng.normal(size=4) * 0.3)
        size = np.sum((params["kernel"] + updates["kernel"]) ** 2)
        got, state, old = step_of_cpr(s, factor, state, params, updates)
        before, after = (float(x.memory[0]["kernel"][0, 0]) for x in (old, state))
        assert 0 <= after <= 0.4501
        if size > old.memory[1]["kernel"][0, 0] * 1.001:
            assert after >= before
        params = {"kernel": params["kernel"] + np.asarray(got["kernel"])}


def test_cpr_settles_on_the_constrained_minimum(x64):
    """Minimize ½‖θ − c‖² under ‖θ‖² <= κ: θ = c √κ / ‖c‖, and μ (R − κ) = 0."""
    target = np.array([[3.0, 4.0]])
    optimizer = optax.chain(optax.sgd(0.1), adaptive.cpr(bounds.uniform(4.0), strength=0.02))
    params = leaf(3.0, 4.0, dtype=np.float64)
    state = optimizer.init(params)

    def body(carry, _):
        params, state = carry
        grads = {"kernel": params["kernel"] - target}
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda *start: jax.lax.scan(body, start, length=4000)[0]
    params, state = jax.jit(run)(params, state)
    # the bound holds for the candidate, which the pull then takes a step further in
    candidate = params["kernel"] - 0.1 * (params["kernel"] - target)
    np.testing.assert_allclose(np.sum(np.square(candidate)), 4.0, rtol=1e-9)
    np.testing.assert_allclose(candidate, 2 * target / 5, rtol=1e-9)
    loose = optax.chain(optax.sgd(0.1), adaptive.cpr(bounds.uniform(26.0)))
    state = loose.init(params)
    for _ in range(3):
        _, state = jax.jit(loose.update)(params, state, params)
    assert state[1].memory[0]["kernel"][0, 0] == 0


def test_groups_that_start_at_zero_get_no_bound_from_their_start():
    tx = adaptive.cpr(bounds.dependent(0.5), axes=-1)
    params = {"kernel": np.float32([[0, 0], [1, 1]])}
    state = tx.init(params)
    np.testing.assert_array_equal(state.memory[1]["kernel"], [[np.inf], [1.0]])
    updates = {"kernel": np.ones((2, 2), np.float32)}
    got, _ = jax.jit(tx.update)(updates, state, params)
    np.testing.assert_array_equal(got["kernel"][0], [1.0, 1.0])
    assert (got["kernel"][1] < 1).all()


def test_wrong_parts_of_cpr_are_refused():
    with pytest.raises(TypeError, match=r"`bound` must be a Bound, such as wdjax.bounds.dependent"):
        adaptive.cpr(1.0)
    with pytest.raises(TypeError, match=r"`measure` must be a function; got .l2"):
        adaptive.cpr(bounds.uniform(1.0), "l2")
    with pytest.raises(ValueError, match=r"`multiplier` must be a finite number >= 0; got -1"):
        adaptive.cpr(bounds.uniform(1.0), multiplier=-1)
    for wrong, message in (
        (lambda: bounds.uniform(-1.0), r"`value` must be a finite number >= 0; got -1"),
        (lambda: bounds.dependent(math.inf), r"`factor` must be a finite number >= 0; got inf"),
        (lambda: bounds.uniform("2"), r"`value` must be a finite number >= 0; got '2'"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            wrong()


# Cumulative L1.


@jax.jit
def steps_of_cumulative_l1(s, params, draws):
    tx = adaptive.cumulative_l1(s)

    def body(carry, update):
        got, state = tx.update({"kernel": update}, carry[1], carry[0])
        return (optax.apply_updates(carry[0], got), state), state.memory

    return jax.lax.scan(body, (params, tx.init(params)), draws)[1]


@hypothesis.settings(max_examples=10)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.001, 1.0))
def test_no_weight_receives_more_l1_than_it_could_have_paid(seed, s):
    draws = np.float32(np.random.default_rng(seed).normal(size=(9, 1, 5)))
    memory = steps_of_cumulative_l1(s, {"kernel": draws[0]}, draws[1:])
    owed, received = (np.asarray(part["kernel"]) for part in memory)
    assert owed.shape == (8,)
    assert (np.abs(received) <= owed[:, None, None] * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cumulative_l1_without_a_change_of_sign_is_the_repeated_soft_threshold(sign):
    tx, prox = adaptive.cumulative_l1(0.125), wdjax.prox_weights(0.125, wdjax.penalties.l1)
    params = other = leaf(*(sign * np.array([4.0, 8.0, 2.0])))
    state, prox_state = tx.init(params), prox.init(other)
    for t in range(8):
        updates = leaf(*(sign * 0.25 * np.array([-1.0, 1.0, t % 2])))
        got, state = jax.jit(tx.update)(updates, state, params)
        want, prox_state = jax.jit(prox.update)(updates, prox_state, other)
        params, other = optax.apply_updates(params, got), optax.apply_updates(other, want)
        chex.assert_trees_all_close(params, other, rtol=1e-6)


def test_cumulative_l1_keeps_zeros_that_the_soft_threshold_loses_to_noise():
    """A stochastic lasso in one dimension whose solution is 0."""
    noise = np.random.default_rng(0).normal(size=(4000, 1)).astype(np.float32)

    def zeros(tail):
        optimizer = optax.chain(optax.sgd(0.05), tail)
        params = leaf(0.5)

        def body(carry, n):
            params, state = carry
            grads = {"kernel": params["kernel"] - 0.1 + n}
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params["kernel"][0, 0] == 0

        run = lambda noise: jax.lax.scan(body, (params, optimizer.init(params)), noise)[1]
        return np.mean(jax.jit(run)(noise[:, :, None])[2000:])

    assert zeros(adaptive.cumulative_l1(0.05 * 0.5)) > 0.99
    assert zeros(wdjax.prox_weights(0.05 * 0.5, wdjax.penalties.l1)) < 0.5


def test_cumulative_l1_refuses_updates_that_cannot_reach_zero():
    tx = adaptive.cumulative_l1(0.1)
    params = leaf(1.0)
    with pytest.raises(TypeError, match=r"`cumulative_l1` needs updates as wide as their param"):
        tx.update(leaf(0.1, dtype=jnp.bfloat16), tx.init(params), params)


# SPD.


@jax.jit
def step_of_spd(start, params, updates, grads):
    tx = adaptive.spd(1.0, anchor=anchors.passed())
    return tx.update(updates, tx.init(params), params, grad=grads, anchor=start)[0]


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 10_000))
def test_spd_at_strength_one_keeps_the_radius_wherever_its_gate_is_open(seed):
    rng = np.random.default_rng(seed)
    start, params, updates, grads = (leaf(*rng.normal(size=3)) for _ in range(4))
    got = step_of_spd(start, params, updates, grads)
    away = np.asarray(params["kernel"] - start["kernel"], np.float64)
    candidate = away + np.asarray(updates["kernel"])
    radius, reached = np.linalg.norm(away), np.linalg.norm(candidate)
    opened = np.sum(np.asarray(grads["kernel"]) * away) > 0
    want = min(radius, reached) if opened else reached
    after = np.linalg.norm(away + np.asarray(got["kernel"]))
    np.testing.assert_allclose(after, want, rtol=2e-5, atol=1e-5)
    if not opened or reached < radius:
        chex.assert_trees_all_equal(got, updates)


def test_spd_with_a_strength_above_one_stops_at_the_anchor():
    tx = adaptive.spd(100.0, anchor=leaf(1.0, 0.0))
    params, updates = leaf(2.0, 0.0), leaf(1.0, 0.0)
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params, grad=leaf(1.0, 0.0))
    np.testing.assert_array_equal(params["kernel"] + got["kernel"], [[1.0, 0.0]])


def test_spd_back_at_its_anchor_is_left_alone():
    tx = adaptive.spd(anchor=leaf(1.0))
    params = leaf(2.0)
    got, _ = jax.jit(tx.update)(leaf(-1.0), tx.init(params), params, grad=leaf(1.0))
    assert float(got["kernel"][0, 0]) == -1.0


def test_spd_takes_the_anchors_of_decay_weights():
    params, start = leaf(2.0, 1.0), leaf(0.5, -1.0)
    updates, grads = leaf(0.3, 0.2), leaf(1.0, 1.0)

    def got(anchor, /, steps=1, **extra):
        tx = adaptive.spd(0.7, anchor=anchor)
        state = tx.init(start if anchor == "init" else params)
        for _ in range(steps):
            moved, state = jax.jit(tx.update)(updates, state, params, grad=grads, **extra)
        return moved

    chex.assert_trees_all_equal(got(anchors.passed(), anchor=start), got(start))
    chex.assert_trees_all_equal(got("init"), got(start))
    chex.assert_trees_all_equal(got(None), got(leaf(0.0, 0.0)))
    # an average that starts at the parameters and follows them stays there: nothing to return to
    chex.assert_trees_all_equal(got(anchors.ema(0.5), steps=3), updates)
    with pytest.raises(ValueError, match="needs the anchor at every step"):
        got(anchors.passed())


def test_spd_refuses_an_anchor_of_another_kind_or_model():
    message = r'`anchor` must be None, "init", a pytree of arrays or one of wdjax.anchors; got'
    with pytest.raises(ValueError, match=message):
        adaptive.spd(anchor="zero")
    message = r"`anchor` must have the structure and shapes of the parameters; got only in the fir"
    with pytest.raises(ValueError, match=message):
        adaptive.spd(anchor={"bias": jnp.ones(1)}).init(leaf(1.0))
    with pytest.raises(ValueError, match=r"structure and shapes .* 'kernel' \(1, 2\) instead of"):
        adaptive.spd(anchor=leaf(1.0, 2.0)).init(leaf(1.0))


# SWD, AWD, AdaDecay.


def test_swd_under_gradients_of_unit_size_is_adamw():
    optimizer = adaptive.with_grad(optax.chain(optax.adam(0.01), adaptive.swd(0.001)))
    adamw = wdjax.decayed(optax.adam)(0.01, weight_decay=0.1)
    params = other = tree(0)
    state, other_state = optimizer.init(params), adamw.init(other)
    for t in range(3):
        grads = jax.tree.map(np.sign, tree(t + 1))
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        wanted, other_state = jax.jit(adamw.update)(grads, other_state, other)
        params, other = optax.apply_updates(params, updates), optax.apply_updates(other, wanted)
        chex.assert_trees_all_close(params, other, rtol=1e-6)


def test_swd_divides_and_awd_multiplies_by_the_scale_of_the_loss():
    params, grads = tree(0), tree(1)
    zeros = jax.tree.map(np.zeros_like, params)
    pulls, swd, awd = {}, adaptive.swd(0.01), adaptive.awd(0.01)
    for scale in np.float32([1, 4]):
        scaled = jax.tree.map(lambda g, c=scale: c * g, grads)
        stable, _ = jax.jit(swd.update)(zeros, swd.init(params), params, grad=scaled)
        added, _ = jax.jit(awd.update)(scaled, awd.init(params), params)
        added = jax.tree.map(lambda a, g: a - g, added, scaled)
        pulls[scale] = stable["a"]["kernel"], added["a"]["kernel"]
    np.testing.assert_allclose(pulls[4.0][0], pulls[1.0][0] / 4, rtol=1e-5)
    np.testing.assert_allclose(pulls[4.0][1], pulls[1.0][1] * 4, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda rules: adaptive.awd(0.5, decay=0.0, rules=rules),
        lambda rules: adaptive.swd(0.05, largest=0.9, rules=rules),
    ],
)
def test_a_leaf_of_a_traced_multiplier_of_zero_does_not_count(make):
    """As one of a multiplier that is known to be zero."""
    full = lambda a, b: {"a": np.full((2, 2), a, np.float32), "b": np.full((2, 2), b, np.float32)}
    params, grads = full(100, 1), full(10, 1)

    def step(m):
        tx = make((("a", m), ("b", 1.0)))
        return tx.update(grads, tx.init(params), params, grad=grads)[0]

    mapped = jax.jit(jax.vmap(step))(np.float32([0, 1]))
    traced = jax.jit(step)
    for i, m in enumerate([0.0, 1.0]):
        alone = jax.jit(functools.partial(step, m))()
        chex.assert_trees_all_close(traced(m), alone, rtol=1e-6)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], mapped), alone, rtol=1e-6)


def test_swd_takes_off_at_most_what_is_allowed_when_gradients_vanish():
    tx = adaptive.swd(0.01, largest=0.25)
    params, zeros = leaf(1.0, -2.0), leaf(0.0, 0.0)
    got, _ = jax.jit(tx.update)(zeros, tx.init(params), params, grad=leaf(1e-9, 0.0))
    np.testing.assert_array_equal(got["kernel"], [[-0.25, 0.5]])
    got, _ = jax.jit(tx.update)(zeros, tx.init(params), params, grad=zeros)
    chex.assert_trees_all_equal(got, zeros)


def test_awd_without_memory_keeps_the_ratio_of_the_two_gradients():
    tx = adaptive.awd(0.3, decay=0.0)
    params, grads = tree(0), tree(1)
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    kernels = lambda t: np.concatenate([x.ravel() for x in (t["a"]["kernel"], t["b"][0]["kernel"])])
    added = np.linalg.norm(kernels(got) - kernels(grads))
    np.testing.assert_allclose(added, 0.3 * np.linalg.norm(kernels(grads)), rtol=1e-5)


@jax.jit
def factor(grads):
    tx, ones = adaptive.ada_decay(1.0), {"kernel": jnp.ones((1, 6))}
    return tx.update(grads, tx.init(ones), ones)[0]["kernel"] - grads["kernel"]


@hypothesis.settings(max_examples=25)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_ada_decays_factor_is_bounded_monotone_and_ignores_the_scale(seed, scale):
    grads = leaf(*np.random.default_rng(seed).normal(size=6))
    phi = np.asarray(factor(grads))[0]
    assert (phi > -1e-6).all()
    assert (phi < 2 + 1e-6).all()
    order = np.argsort(np.abs(grads["kernel"][0]))
    assert (np.diff(phi[order]) >= -1e-6).all()
    scaled = factor({"kernel": np.float32(scale) * grads["kernel"]})[0]
    np.testing.assert_allclose(phi, scaled, rtol=1e-4, atol=2e-5)


def test_ada_decay_of_equal_gradients_is_plain_l2():
    params, grads = leaf(1.0, -2.0), leaf(3.0, -3.0)
    tx, plain = adaptive.ada_decay(0.125), wdjax.add_decayed_weights(0.125)
    got, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    want, _ = jax.jit(plain.update)(grads, plain.init(params), params)
    chex.assert_trees_all_equal(got, want)


def test_numbers_out_of_range_are_refused_by_name():
    for make, message in (
        (lambda: adaptive.swd(0.1, decay=1.0), r"`decay` must be in \[0, 1\); got 1.0"),
        (lambda: adaptive.swd(0.1, largest=-0.1), r"`largest` must be in \[0, 1\); got -0.1"),
        (lambda: adaptive.awd(0.1, decay=-1), r"`decay` must be in \[0, 1\); got -1"),
        (
            lambda: adaptive.ada_decay(0.1, alpha=math.nan),
            r"`alpha` must be a finite number >= 0; got",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_hyperparameters_can_be_injected():
    params, grads = tree(0), tree(1)
    for method in (adaptive.swd, adaptive.awd, adaptive.ada_decay):
        tx = optax.inject_hyperparams(method)(strength=0.1)
        state = tx.init(params)
        got, _ = jax.jit(tx.update)(grads, state, params, grad=grads)
        alone = method(0.1)
        want, _ = jax.jit(alone.update)(grads, alone.init(params), params, grad=grads)
        chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_with_grad_passes_its_own_updates_whatever_the_caller_gives_and_keeps_the_state():
    chain = optax.chain(optax.sgd(0.1), adaptive.swd(0.01))
    optimizer = adaptive.with_grad(chain)
    params, grads, raw = tree(0), tree(1), tree(2)
    state = optimizer.init(params)
    chex.assert_trees_all_equal(state, chain.init(params))
    # as decayed does: what a train step passes is of one micro-batch, where MultiSteps is around
    got, _ = jax.jit(optimizer.update)(grads, state, params, grad=raw)
    want, _ = jax.jit(chain.update)(grads, state, params, grad=grads)
    chex.assert_trees_all_equal(got, want)


def test_nnx_parameters_which_change_containers_between_init_and_update():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    chain = optax.chain(optax.adam(0.01), adaptive.cpr(bounds.dependent(0.5)), adaptive.spd(0.5))
    optimizer = nnx.Optimizer(model, adaptive.with_grad(chain), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 3))) ** 2))
    before = np.linalg.norm(model.kernel[...])
    step = nnx.jit(lambda model, optimizer: optimizer.update(model, grads(model)))
    for _ in range(3):
        step(model, optimizer)
    assert np.linalg.norm(model.kernel[...]) < before


# AlphaDecay.


def test_the_hill_exponent_recovers_a_power_law():
    """Eigenvalues with density e^(−α): quantiles (1 − p)^(−1/(α − 1))."""
    for alpha in (2.0, 3.0, 5.0):
        eigenvalues = (1 - (np.arange(200) + 0.5) / 200) ** (-1 / (alpha - 1))
        exponent = spectra.hill_exponent(np.diag(np.sqrt(eigenvalues)))
        assert exponent == pytest.approx(alpha, rel=0.02)


@pytest.mark.parametrize("shape", [(6, 6), (5, 8), (9, 4)])
def test_the_hill_exponent_equals_the_reference_and_ignores_scale_rotation_and_order(shape):
    rng = np.random.default_rng(1)
    matrix = rng.normal(size=shape)
    alpha = spectra.hill_exponent(jnp.asarray(matrix, jnp.float32))
    assert alpha == pytest.approx(hill(matrix), rel=1e-5)
    rotation = np.linalg.qr(rng.normal(size=(shape[0], shape[0])))[0]
    for same in (7 * matrix, matrix.T, matrix[::-1], rotation @ matrix):
        assert spectra.hill_exponent(same) == pytest.approx(hill(matrix), rel=1e-9)


def test_a_spectrum_without_a_tail_has_no_finite_exponent():
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))[0]
    for flat_matrix in (np.zeros((4, 4)), np.eye(4), rotation, np.ones((4, 4)), np.ones((1, 4))):
        assert spectra.hill_exponent(flat_matrix) == math.inf
    with pytest.raises(ValueError, match=r"`matrix` must have two axes; got shape \(3,\)"):
        spectra.hill_exponent(np.ones(3))


def test_alpha_decay_gives_each_parameter_its_multiplier_and_its_rules_are_valid():
    rng = np.random.default_rng(0)
    params = {
        "heavy": {"kernel": rng.standard_t(2, size=(8, 8)), "bias": np.ones(8)},
        "light": {"kernel": rng.uniform(-1, 1, size=(8, 8))},
        "middle": {"kernel": rng.normal(size=(8, 8))},
        "small [x]*": {"kernel": rng.normal(size=(2, 8))},
    }
    base = (("light/kernel", 0.5), *wdjax.standard())
    rules = spectra.alpha_decay(params, base, least=0.5, most=2.0, smallest=8)
    alphas = {name: hill(params[name]["kernel"]) for name in ("heavy", "light", "middle")}
    low, high = min(alphas.values()), max(alphas.values())
    want = {name: 0.5 + 1.5 * (a - low) / (high - low) for name, a in alphas.items()}
    got = wdjax.resolve(rules, params)
    assert got["heavy"] == {"kernel": pytest.approx(want["heavy"]), "bias": 0.0}
    assert got["light"]["kernel"] == pytest.approx(0.5 * want["light"])
    assert got["middle"]["kernel"] == pytest.approx(want["middle"])
    assert got["small [x]*"]["kernel"] == 1.0
    tx = wdjax.decay_weights(0.01, rules=rules)
    chex.assert_trees_all_equal_structs(tx.init(params), wdjax.decay_weights(0.01).init(params))


def test_alpha_decay_of_equal_spectra_is_the_middle_and_of_zeros_unchanged():
    params = {"a": np.diag([1.0, 2.0, 3.0]), "b": np.diag([1.0, 2.0, 3.0]), "c": np.zeros((3, 3))}
    rules = spectra.alpha_decay(params, EVERYTHING, least=0.5, most=2.5, smallest=2)
    assert wdjax.resolve(rules, params) == {"a": 1.5, "b": 1.5, "c": 1.0}
    for arguments, message in (
        ({"least": -1.0}, r"`least` must be a finite number >= 0; got -1"),
        ({"least": 2.0, "most": 1.0}, r"`most` must be a finite number >= 2.0; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            spectra.alpha_decay(params, EVERYTHING, **arguments)


# Oracles: other people's code, float64 on both sides.


def imported(name):
    """Import a package that warns, or skip."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"{name} comes with the extra 'oracles'")


def trajectories(torch, make_oracle, optimizer, steps):
    """Run both on the same gradients from the same start; return the largest difference."""
    rng = np.random.default_rng(0)
    params = {"bias": rng.normal(size=4), "kernel": rng.normal(size=(5, 4))}
    theirs = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in params.items()}
    oracle = make_oracle(theirs)
    ours = jax.tree.map(jnp.asarray, params)
    state, update = optimizer.init(ours), jax.jit(optimizer.update)
    worst = 0.0
    for t in range(steps):
        # outwards in the first half, inwards in the second
        pull = -0.5 if t < steps // 2 else 0.3
        grads = {name: pull * x + 0.2 * rng.normal(size=x.shape) for name, x in params.items()}
        for name, x in theirs.items():
            x.grad = torch.tensor(grads[name])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            oracle.step()
        updates, state = update(jax.tree.map(jnp.asarray, grads), state, ours)
        ours = optax.apply_updates(ours, updates)
        for name, x in theirs.items():
            worst = max(worst, np.abs(np.asarray(ours[name]) - x.detach().numpy()).max())
    return worst, ours


@functools.cache
def without(torch, steps):
    """Return where Adam alone ends, after checking that the two Adams are one."""
    make = lambda theirs: torch.optim.Adam(theirs.values(), lr=0.05)
    worst, free = trajectories(torch, make, optax.adam(0.05), steps)
    assert worst < 1e-12
    return free


MEASURES = {
    "l2": bounds.sum_squares,
    "std": bounds.deviation,
}
BOUNDS = {
    "uniform": (None, None),
    "dependent": (0.9, bounds.dependent(0.9)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("function", MEASURES)
def test_cpr_equals_pytorch_cpr(function, method, x64, agrees):
    torch, cpr = imported("torch"), imported("pytorch_cpr")
    number, bound = BOUNDS[method]
    if method == "uniform":
        number = {"l2": 12.0, "std": 0.8}[function]
        bound = bounds.uniform(number)
    rate = 0.2 if function == "std" else 0.05  # low enough to stay clear of our cap

    def make(theirs):
        groups = [
            {"params": [theirs["kernel"]], "regularize": True},
            {"params": [theirs["bias"]], "regularize": False},
        ]
        return cpr.AdamCPR(
            groups,
            lr=0.05,
            kappa_init_method=method,
            kappa_init_param=number,
            reg_function=function,
            kappa_update=rate,
            foreach=False,
        )

    optimizer = optax.chain(
        optax.adam(0.05), adaptive.cpr(bound, MEASURES[function], strength=rate)
    )
    worst, ours = trajectories(torch, make, optimizer, 20)
    free = without(torch, 20)
    agrees("adaptive.cpr", "pytorch-cpr", worst, 0.0, atol=1e-5)  # its multiplier is float32
    assert np.abs(np.asarray(ours["kernel"] - free["kernel"])).max() > 0.01


def test_swd_equals_pytorch_optimizers_adams(x64, agrees):
    torch, other = imported("torch"), imported("pytorch_optimizer")

    def make(theirs):
        # it adds ε to the root of the mean too: small, so that this does not matter
        return other.AdamS(theirs.values(), lr=0.05, weight_decay=0.1, eps=1e-13, foreach=False)

    tail = adaptive.swd(wdjax.lr_scaled(0.1, 0.05), rules=EVERYTHING)
    optimizer = adaptive.with_grad(optax.chain(optax.adam(0.05, eps=1e-13), tail))
    worst, ours = trajectories(torch, make, optimizer, 20)
    assert np.abs(np.asarray(ours["kernel"] - without(torch, 20)["kernel"])).max() > 0.01
    agrees("adaptive.swd", "pytorch_optimizer", worst, 0.0, atol=1e-11)


def test_names_of_the_messages_are_names_of_the_package():
    """Every `wdjax.module.name` in a message or docstring exists."""
    for module in (adaptive, bounds, spectra):
        for module_name, name in re.findall(r"wdjax\.([a-z]+)\.([a-z_0-9]+)", _source(module)):
            assert hasattr(getattr(wdjax, module_name), name)


def _source(module):
    lines = inspect.getsource(module).splitlines()
    return "\n".join(line for line in lines if not line.startswith(("from", "import")))


@pytest.mark.parametrize("bound", ["uniform", "dependent"])
def test_a_bound_may_be_retuned_from_the_step_after(bound):
    make = lambda number: adaptive.cpr(getattr(bounds, bound)(number), rules=(("**", 1.0),))
    params, grow = ({"kernel": np.full((2, 2), x, np.float32)} for x in (2, 0.1))
    old, new = make(1.0), make(50.0)
    _, state = jax.jit(new.update)(grow, old.init(params), params)
    _, fresh = jax.jit(new.update)(grow, new.init(params), params)
    np.testing.assert_array_equal(state.memory[1]["kernel"], fresh.memory[1]["kernel"])


def test_cpr_without_a_bound_yet_is_the_optimizers_own_step_whatever_its_first_multiplier():
    none_yet = bounds.Bound(lambda r: (jnp.full_like(r, jnp.inf),), lambda r, count, z: z)
    tx = adaptive.cpr(none_yet, multiplier=0.25, rules=EVERYTHING)
    params, updates = tree(0), tree(1)
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    chex.assert_trees_all_equal(got, updates)
