"""Adaptive methods: every row of the table through every property, then each method's own proof."""

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
from adaptive_cases import ADAPTIVE, hill

import wdjax
from wdjax import adaptive, anchors, bounds, spectra
from wdjax._trees import paths

RULES = (("a/kernel", 1.0), ("b/*/kernel", 0.5), ("bias", 0.0))
MULTIPLIERS = {"a/bias": 0.0, "a/kernel": 1.0, "b/0/kernel": 0.5}
STRENGTH = 0.125  # exact in binary
EVERYTHING = (("**", 1.0),)

rows = pytest.mark.parametrize("case", ADAPTIVE.values(), ids=ADAPTIVE.keys())


def tree(seed, dtype=jnp.float32, scale=1.0):
    rng = np.random.default_rng(seed)
    leaves = {
        "a": {"kernel": rng.normal(size=(3, 4)), "bias": rng.normal(size=3)},
        "b": [{"kernel": rng.normal(size=(2, 3))}],
    }
    return jax.tree.map(lambda x: jnp.asarray(scale * x, dtype), leaves)


def flat(tree):
    return {leaf.path: np.asarray(leaf_value, np.float64) for leaf, leaf_value in pairs(tree)}


def pairs(tree):
    return zip(paths.leaves(tree), jax.tree.leaves(tree), strict=True)


def build(case, strength=STRENGTH, rules=RULES):
    return case.build(strength, rules=rules)


def start(case, **arguments):
    params = tree(0)
    tx = build(case, **arguments)
    return tx, tx.init(params), params, tree(1, scale=0.1), tree(2)


def compare(case, dtype, rtol, atol):
    """Run the method against its reference for twelve steps of a falling schedule."""
    schedule = lambda count: STRENGTH / (1 + 0.1 * count)
    tx = build(case, schedule)
    params = tree(0, dtype)
    state, reference = tx.init(params), case.reference(flat(params))
    update = jax.jit(tx.update)
    acted = False
    for t in range(12):
        updates, grads = tree(10 + t, dtype, 0.1), tree(30 + t, dtype, 1 + 0.1 * t)
        want = reference(schedule(t), MULTIPLIERS, flat(params), flat(updates), flat(grads))
        got, state = update(updates, state, params, grad=grads)
        for path, value in flat(got).items():
            np.testing.assert_allclose(value, want[path], rtol, atol, err_msg=f"{path} at {t}")
        chex.assert_trees_all_equal_dtypes(got, updates)
        acted |= any(np.any(value != flat(updates)[path]) for path, value in flat(got).items())
        params = optax.apply_updates(params, got)
    assert int(state.count) == 12
    assert acted


@rows
def test_it_equals_the_reference_in_float32(case):
    compare(case, jnp.float32, 2e-4, 5e-6)


@rows
def test_it_equals_the_reference_in_float64_to_twelve_digits(case, x64):
    compare(case, jnp.float64, 1e-12, 1e-13)


@rows
def test_jit_equals_eager_and_is_traced_once(case):
    tx, state, params, updates, grads = start(case)
    _, state = tx.update(updates, state, params, grad=grads)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for _ in range(2):
        got = update(updates, state, params, grad=grads)
    want = tx.update(updates, state, params, grad=grads)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)


@rows
def test_it_runs_under_scan_and_keeps_its_state(case):
    tx, state, params, updates, grads = start(case)

    def body(carry, _):
        params, state = carry
        got, state = tx.update(updates, state, params, grad=grads)
        return (optax.apply_updates(params, got), state), None

    (params, after), _ = jax.lax.scan(body, (params, state), length=5)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_tree_all_finite(params)
    assert int(after.count) == 5


@rows
def test_a_traced_strength_runs_under_vmap_and_equals_single_runs(case):
    def run(strength):
        tx = build(case, strength)
        params, updates, grads = tree(0), tree(1, scale=0.1), tree(2)
        state = tx.init(params)
        for _ in range(2):
            got, state = tx.update(updates, state, params, grad=grads)
        return got

    strengths = jnp.array([0.0, 0.0625, 0.25])
    together = jax.vmap(run)(strengths)
    for i, strength in enumerate(strengths):
        row = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(row, run(float(strength)), rtol=2e-6, atol=1e-6)


@rows
def test_a_traced_multiplier_equals_the_same_number(case):
    params, updates, grads = tree(0), tree(1, scale=0.1), tree(2)

    def run(m):
        tx = build(case, rules=(("bias", 0.0), ("**", m)))
        return tx.update(updates, tx.init(params), params, grad=grads)[0]

    chex.assert_trees_all_close(jax.jit(run)(0.5), run(0.5), rtol=2e-6, atol=1e-6)


@rows
def test_the_gradient_with_respect_to_the_strength_is_finite(case):
    params, updates, grads = tree(0), tree(1), tree(2)
    for point in (params, jax.tree.map(jnp.zeros_like, params)):

        def total(strength, point=point):
            tx = build(case, strength)
            new, _ = tx.update(updates, tx.init(point), point, grad=grads)
            return sum(jnp.sum(x) for x in jax.tree.leaves(new))

        assert np.isfinite(jax.grad(total)(0.25))


@rows
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtypes_are_kept_and_the_memory_is_float32(case, dtype):
    tx = build(case, optax.linear_schedule(0.1, 0.01, 10))
    params, updates, grads = tree(0, dtype), tree(1, dtype, 0.1), tree(2, dtype)
    state = tx.init(params)
    for _ in range(4):
        got, after = tx.update(updates, state, params, grad=grads)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, updates)
        chex.assert_tree_all_finite(got)
        state = after
    assert state.count.dtype == jnp.int32
    kept = dtype if case.verb == "spd" else jnp.float32  # the anchor is a copy
    assert {x.dtype for x in jax.tree.leaves(state.memory)} <= {jnp.dtype(kept)}


@rows
def test_it_remembers_as_many_trees_as_the_table_says(case):
    state = build(case).init(tree(0))
    trees = [part for part in state.memory if isinstance(part, dict)]
    assert len(trees) == case.trees
    for part in trees:
        chex.assert_trees_all_equal_structs(part, tree(0))


@rows
def test_multiplier_zero_leaves_a_leaf_alone_bit_for_bit(case):
    tx, state, params, updates, grads = start(case, rules=(("**", 0.0),))
    for _ in range(2):
        got, state = jax.jit(tx.update)(updates, state, params, grad=grads)
        chex.assert_trees_all_equal(got, updates)


@rows
def test_strength_zero_changes_nothing(case):
    tx, state, params, updates, grads = start(case, strength=0.0)
    for _ in range(4):
        got, state = tx.update(updates, state, params, grad=grads)
        chex.assert_trees_all_close(got, updates, rtol=1e-6, atol=1e-6)


@rows
def test_the_state_does_not_depend_on_rules_strength_or_schedule(case):
    params = tree(0)
    first, *others = (
        build(case).init(params),
        build(case, 0.5, (("**", 0.25),)).init(params),
        build(case, optax.linear_schedule(0.1, 0.01, 9), (("bias", 0), ("**", 1))).init(params),
        build(case, wdjax.fixed(0.01), (("**", 0.0),)).init(params),
    )
    for other in others:
        chex.assert_trees_all_equal_structs(first, other)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, other)


@rows
def test_zero_params_zero_updates_and_zero_grads_stay_zero(case):
    tx = build(case)
    zeros = jax.tree.map(jnp.zeros_like, tree(0))
    state = tx.init(zeros)
    for _ in range(9):
        got, state = tx.update(zeros, state, zeros, grad=zeros)
        chex.assert_trees_all_equal(got, zeros)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_empty_and_scalar_leaves_are_no_trouble(name):
    case = ADAPTIVE[name]
    shapes = {"empty": (0, 3), "one": (1,), "scalar": (1,) if "per row" in name else ()}
    params = {path: jnp.ones(shape) for path, shape in shapes.items()}
    tx = build(case, rules=EVERYTHING)
    got, _ = tx.update(params, tx.init(params), params, grad=params)
    chex.assert_trees_all_equal_shapes(got, params)
    chex.assert_tree_all_finite(got)


@rows
def test_a_tree_without_leaves_passes(case):
    tx = build(case, rules=wdjax.standard())
    got, _ = tx.update({}, tx.init({}), {}, grad={})
    assert got == {}


@rows
def test_integer_leaves_and_random_keys_are_left_alone(case):
    params = {"kernel": jnp.ones((2, 2)), "step": jnp.arange(3), "key": jax.random.key(0)}
    updates = {"kernel": jnp.ones((2, 2)), "step": None, "key": None}
    tx = build(case, rules=EVERYTHING)
    got, state = tx.update(updates, tx.init(params), params, grad=updates)
    assert got["step"] is None
    got, _ = tx.update(updates, state, params, grad=updates)
    chex.assert_tree_all_finite(got["kernel"])


@rows
def test_updates_that_are_none_stay_none_and_keep_their_memory(case):
    tx, state, params, updates, grads = start(case)
    updates = updates | {"b": [{"kernel": None}]}
    grads = grads | {"b": [{"kernel": None}]}
    got, after = tx.update(updates, state, params, grad=grads)
    assert got["b"][0]["kernel"] is None
    chex.assert_trees_all_equal_structs(state, after)


@rows
def test_a_donated_step_runs_from_the_first(case):
    tx, state, params, updates, grads = start(case)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        got, state = tx.update(updates, state, params, grad=grads)
        return optax.apply_updates(params, got), state

    for _ in range(2):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)


@rows
def test_it_stands_in_a_chain_with_any_optimiser(case):
    parts = [build(case), optax.adam(0.01)]
    chain = optax.chain(*(parts if case.first else reversed(parts)))
    optimizer = adaptive.with_grad(chain) if case.needs_grad else chain
    params, grads = tree(0), tree(2)
    state = optimizer.init(params)
    got, state = jax.jit(optimizer.update)(grads, state, params)
    want, _ = chain.update(grads, chain.init(params), params, grad=grads)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
    plain, _ = optax.adam(0.01).update(grads, optax.adam(0.01).init(params), params)
    chex.assert_trees_all_close(got["a"]["bias"], plain["a"]["bias"], rtol=1e-6, atol=1e-6)


@rows
def test_update_without_params_says_what_to_call(case):
    tx, state, _, updates, grads = start(case)
    message = rf"`{case.verb}` needs the current parameters; got `params=None`. Call `optimizer\."
    with pytest.raises(ValueError, match=message):
        tx.update(updates, state, grad=grads)


@rows
def test_update_without_raw_gradients_says_what_to_do_where_they_are_needed(case):
    tx, state, params, updates, _ = start(case)
    if not case.needs_grad:
        tx.update(updates, state, params)
        return
    message = (
        rf"`{case.verb}` needs the raw gradient; got none. Use .*wrap the chain in "
        r"wdjax.adaptive.with_grad\(...\), or call `optimizer.update\(grads, state, params, grad=gr"
    )
    with pytest.raises(ValueError, match=message):
        tx.update(updates, state, params)


@rows
def test_updates_of_another_structure_name_the_difference(case):
    tx, state, params, _, grads = start(case)
    wrong = {"a": params["a"], "c": params["b"]}
    with pytest.raises(ValueError, match=rf"`{case.verb}` needs updates and params of the same"):
        tx.update(wrong, state, params, grad=grads)


@rows
def test_a_bad_strength_fails_as_early_as_it_is_known(case):
    for bad in (-1.0, float("nan"), jnp.asarray(jnp.inf)):
        with pytest.raises(ValueError, match=r"`strength` must be a finite number >= 0, or a sch"):
            build(case, bad)
    with pytest.raises(TypeError, match="`strength` must be a finite number >= 0, or a schedule"):
        build(case, "0.1")
    falling = build(case, optax.linear_schedule(0.1, -0.1, 100))
    with pytest.warns(UserWarning, match=r"is negative from step 5\d on and counts as 0 there"):
        falling.init(tree(0))


@rows
def test_wrong_rules_fail_at_init(case):
    tx = build(case, rules=(("a/kernl", 1.0), ("**", 0.0)))
    with pytest.raises(wdjax.RuleError, match=r"'a/kernl' matches no parameter; did you mean"):
        tx.init(tree(0))


@rows
def test_complex_parameters_are_refused_unless_they_are_excluded(case):
    params = {"kernel": jnp.ones((2, 2), jnp.complex64), "plain": jnp.ones((2, 2))}
    with pytest.raises(TypeError, match=rf"`{case.verb}` needs real parameters; got .* 'kernel'"):
        build(case, rules=EVERYTHING).init(params)
    tx = build(case, rules=(("kernel", 0.0), ("plain", 1.0)))
    got, _ = tx.update(params, tx.init(params), params, grad=params)
    chex.assert_trees_all_equal(got["kernel"], params["kernel"])


def test_every_method_has_a_row():
    methods = {
        name
        for name, function in vars(adaptive).items()
        if inspect.isfunction(function) and "strength" in inspect.signature(function).parameters
    } - {"lift"}
    assert methods == {case.verb for case in ADAPTIVE.values()}


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
        return jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32)

    tx = make(axes=(-2, -1), rules=EVERYTHING)

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
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    message = r"`axes` must be axes of every decayed leaf; got \(0, 1\) for 'b' \(3,\)\. Restrict"
    with pytest.raises(ValueError, match=message):
        make(axes=(0, 1), rules=EVERYTHING).init(params)
    make(axes=(0, 1), rules=(("a", 1.0), ("b", 0.0))).init(params)
    for bad in ("0", (0, "1"), 0.5):
        with pytest.raises(TypeError, match=r"`axes` must be None, an axis or a sequence of axes"):
            make(axes=bad)


@with_axes
def test_memory_of_groups_does_not_depend_on_rules(make):
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones(3)}
    states = [
        make(axes=1, rules=(("a", 1.0), ("b", 0.0))).init(params),
        make(axes=1, rules=(("**", 0.0),)).init(params),
    ]
    chex.assert_trees_all_equal_shapes_and_dtypes(*states)


# CPR.


def leaf(*values, dtype=jnp.float32):
    return {"kernel": jnp.array([values], dtype)}


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_cpr_with_a_fixed_multiplier_is_decay_by_twice_the_multiplier(factor):
    tx = adaptive.cpr(bounds.dependent(factor), strength=0.0, multiplier=0.125)
    params = tree(0)
    zeros = jax.tree.map(jnp.zeros_like, params)
    got, _ = tx.update(zeros, tx.init(params), params)
    decay = wdjax.decay_weights(0.25)
    want, _ = decay.update(zeros, decay.init(params), params)
    chex.assert_trees_all_equal(got, want)


@pytest.mark.parametrize(
    "measure", [bounds.sum_squares, bounds.sum_magnitudes, bounds.sum_huber, bounds.deviation]
)
def test_cpr_below_its_bound_is_the_optimisers_own_step_bit_for_bit(measure):
    tx = adaptive.cpr(bounds.uniform(1e3), measure, rules=EVERYTHING)
    params = tree(0)
    state = tx.init(params)
    for t in range(3):
        updates = tree(t + 1)
        got, state = tx.update(updates, state, params)
        chex.assert_trees_all_equal(got, updates)
        params = optax.apply_updates(params, got)


@pytest.mark.parametrize(
    ("measure", "left"),
    [
        (bounds.sum_squares, [[0.1, -0.2]]),
        (bounds.sum_magnitudes, [[-0.8, 0.2 - 0.4]]),
        (bounds.sum_huber, [[0.1, -1.1]]),
        (bounds.deviation, [[-0.35, -0.65]]),
    ],
)
def test_cpr_never_jumps_over_the_minimum_however_large_its_multiplier(measure, left):
    tx = adaptive.cpr(bounds.uniform(0.1), measure, strength=1e6)
    params = leaf(1.0, -2.0)
    got, state = tx.update(leaf(0.0, 0.0), tx.init(params), params)
    np.testing.assert_allclose(params["kernel"] + got["kernel"], left, rtol=1e-5)
    for _ in range(5):  # and the capped multiplier does not hold on
        params = optax.apply_updates(params, got)
        got, state = tx.update(leaf(0.0, 0.0), state, params)
        chex.assert_tree_all_finite(got)
    assert np.abs(params["kernel"]).max() <= 2


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.01, 0.3), st.floats(0.3, 1.5))
def test_cprs_multiplier_is_never_negative_and_grows_while_the_bound_is_broken(seed, s, factor):
    tx = adaptive.cpr(bounds.dependent(factor), strength=s)
    rng = np.random.default_rng(seed)
    params = leaf(*rng.normal(size=4))
    state = tx.init(params)
    bound = float(state.memory[1]["kernel"][0, 0])
    for _ in range(6):
        updates = leaf(*rng.normal(size=4) * 0.3)
        before = float(state.memory[0]["kernel"][0, 0])
        size = float(jnp.sum((params["kernel"] + updates["kernel"]) ** 2))
        got, state = tx.update(updates, state, params)
        after = float(state.memory[0]["kernel"][0, 0])
        assert 0 <= after <= 0.4501
        if size > bound * 1.001:
            assert after >= before
        params = optax.apply_updates(params, got)


def test_cpr_settles_on_the_constrained_minimum(x64):
    """Minimise ½‖θ − c‖² under ‖θ‖² <= κ: θ = c √κ / ‖c‖, and μ (R − κ) = 0."""
    target = np.array([[3.0, 4.0]])
    optimizer = optax.chain(optax.sgd(0.1), adaptive.cpr(bounds.uniform(4.0), strength=0.02))
    params = leaf(3.0, 4.0, dtype=jnp.float64)
    state = optimizer.init(params)

    def body(carry, _):
        params, state = carry
        grads = {"kernel": params["kernel"] - target}
        updates, state = optimizer.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(body, (params, state), length=4000)
    # the bound holds for the candidate, which the pull then takes a step further in
    candidate = params["kernel"] - 0.1 * (params["kernel"] - target)
    np.testing.assert_allclose(jnp.sum(candidate**2), 4.0, rtol=1e-9)
    np.testing.assert_allclose(candidate, 2 * target / 5, rtol=1e-9)
    loose = optax.chain(optax.sgd(0.1), adaptive.cpr(bounds.uniform(26.0)))
    state = loose.init(params)
    for _ in range(3):
        _, state = loose.update(params, state, params)
    assert state[1].memory[0]["kernel"][0, 0] == 0


def test_groups_that_start_at_zero_get_no_bound_from_their_start():
    tx = adaptive.cpr(bounds.dependent(0.5), axes=-1)
    params = {"kernel": jnp.array([[0.0, 0.0], [1.0, 1.0]])}
    state = tx.init(params)
    np.testing.assert_array_equal(state.memory[1]["kernel"], [[np.inf], [1.0]])
    updates = {"kernel": jnp.ones((2, 2))}
    got, _ = tx.update(updates, state, params)
    np.testing.assert_array_equal(got["kernel"][0], [1.0, 1.0])
    assert (got["kernel"][1] < 1).all()


def test_the_warm_starts_bound_is_in_force_from_the_step_after():
    tx = adaptive.cpr(bounds.warm_start(2))
    params, seen = leaf(1.0), []
    state = tx.init(params)
    for _ in range(4):
        got, state = tx.update(leaf(1.0), state, params)
        params = optax.apply_updates(params, got)
        seen.append((float(params["kernel"][0, 0]), float(state.memory[1]["kernel"][0, 0])))
    assert [kappa for _, kappa in seen] == [np.inf, 9.0, 9.0, 9.0]
    assert [x for x, _ in seen[:2]] == [2.0, 3.0]
    assert seen[2][0] == pytest.approx(4 * 0.1)  # R − κ = 7 drives μ to its cap


def test_the_inflection_points_bound_is_the_size_at_the_first_slower_growth():
    bound = bounds.inflection_point(1, decay=0.0)
    for sizes, at in (([1, 3, 5, 6, 6.5], 4), ([1, 3, 4, 6, 7, 9], 5), ([1, 2, 4, 7, 11], None)):
        z = bound.start(jnp.ones(1))
        for count, size in enumerate(sizes):
            z = bound.follow(jnp.array([float(size)]), jnp.asarray(count), z)
            found = at is not None and count + 1 >= at
            assert float(z[0][0]) == (sizes[at - 1] if found else math.inf)


def test_wrong_parts_of_cpr_are_refused():
    with pytest.raises(TypeError, match=r"`bound` must be a bound such as wdjax.bounds.dependent"):
        adaptive.cpr(1.0)
    with pytest.raises(TypeError, match=r"`measure` must be a function such as wdjax.bounds.sum_s"):
        adaptive.cpr(bounds.uniform(1.0), "l2")
    with pytest.raises(ValueError, match=r"`multiplier` must be finite and >= 0; got -1"):
        adaptive.cpr(bounds.uniform(1.0), multiplier=-1)
    for wrong, message in (
        (lambda: bounds.uniform(-1.0), r"`value` must be finite and >= 0; got -1"),
        (lambda: bounds.dependent(math.inf), r"`factor` must be finite and >= 0; got inf"),
        (lambda: bounds.warm_start(0), r"`steps` must be finite and >= 1; got 0"),
        (lambda: bounds.inflection_point(0), r"`every` must be finite and >= 1; got 0"),
        (lambda: bounds.inflection_point(decay=1.0), r"`decay` must be in \[0, 1\); got 1.0"),
        (lambda: bounds.uniform("2"), r"`value` must be finite and >= 0; got '2'"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()


# Cumulative L1.


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.001, 1.0))
def test_no_weight_receives_more_l1_than_it_could_have_paid(seed, s):
    tx = adaptive.cumulative_l1(s)
    rng = np.random.default_rng(seed)
    params = leaf(*rng.normal(size=5))
    state = tx.init(params)
    for _ in range(8):
        got, state = tx.update(leaf(*rng.normal(size=5)), state, params)
        params = optax.apply_updates(params, got)
        owed, received = (part["kernel"] for part in state.memory)
        assert (np.abs(received) <= owed * (1 + 1e-5) + 1e-6).all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_cumulative_l1_without_a_change_of_sign_is_the_repeated_soft_threshold(sign):
    tx, prox = adaptive.cumulative_l1(0.125), wdjax.prox_weights(0.125, wdjax.penalties.l1)
    params = other = leaf(*(sign * np.array([4.0, 8.0, 2.0])))
    state, prox_state = tx.init(params), prox.init(other)
    for t in range(8):
        updates = leaf(*(sign * 0.25 * np.array([-1.0, 1.0, t % 2])))
        got, state = tx.update(updates, state, params)
        want, prox_state = prox.update(updates, prox_state, other)
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

        _, is_zero = jax.lax.scan(body, (params, optimizer.init(params)), noise[:, :, None])
        return float(is_zero[2000:].mean())

    assert zeros(adaptive.cumulative_l1(0.05 * 0.5)) > 0.99
    assert zeros(wdjax.prox_weights(0.05 * 0.5, wdjax.penalties.l1)) < 0.5


def test_cumulative_l1_refuses_updates_that_cannot_reach_zero():
    tx = adaptive.cumulative_l1(0.1)
    params = leaf(1.0)
    with pytest.raises(TypeError, match=r"`cumulative_l1` needs updates as wide as their param"):
        tx.update(leaf(0.1, dtype=jnp.bfloat16), tx.init(params), params)


# SPD.


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10_000))
def test_spd_at_strength_one_keeps_the_radius_wherever_its_gate_is_open(seed):
    rng = np.random.default_rng(seed)
    draw = lambda: leaf(*rng.normal(size=3))
    start, params, updates, grads = draw(), draw(), draw(), draw()
    tx = adaptive.spd(1.0, anchor=start)
    got, _ = tx.update(updates, tx.init(params), params, grad=grads)
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
    got, _ = tx.update(updates, tx.init(params), params, grad=leaf(1.0, 0.0))
    np.testing.assert_array_equal(params["kernel"] + got["kernel"], [[1.0, 0.0]])


def test_spd_back_at_its_anchor_is_left_alone():
    tx = adaptive.spd(anchor=leaf(1.0))
    params = leaf(2.0)
    got, _ = tx.update(leaf(-1.0), tx.init(params), params, grad=leaf(1.0))
    assert float(got["kernel"][0, 0]) == -1.0


def test_spd_takes_the_anchors_of_decay_weights():
    params, start = leaf(2.0, 1.0), leaf(0.5, -1.0)
    updates, grads = leaf(0.3, 0.2), leaf(1.0, 1.0)

    def got(anchor, /, steps=1, **extra):
        tx = adaptive.spd(0.7, anchor=anchor)
        state = tx.init(start if anchor == "init" else params)
        for _ in range(steps):
            moved, state = tx.update(updates, state, params, grad=grads, **extra)
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
        grads = jax.tree.map(jnp.sign, tree(t + 1))
        updates, state = optimizer.update(grads, state, params)
        wanted, other_state = adamw.update(grads, other_state, other)
        params, other = optax.apply_updates(params, updates), optax.apply_updates(other, wanted)
        chex.assert_trees_all_close(params, other, rtol=1e-6)


def test_swd_divides_and_awd_multiplies_by_the_scale_of_the_loss():
    params, grads = tree(0), tree(1)
    zeros = jax.tree.map(jnp.zeros_like, params)
    pulls = {}
    for scale in (1.0, 4.0):
        scaled = jax.tree.map(lambda g, c=scale: c * g, grads)
        swd, awd = adaptive.swd(0.01), adaptive.awd(0.01)
        stable, _ = swd.update(zeros, swd.init(params), params, grad=scaled)
        added, _ = awd.update(scaled, awd.init(params), params)
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
def test_a_leaf_with_a_traced_multiplier_of_zero_is_in_no_sum(make):
    params = {"a": jnp.full((2, 2), 100.0), "b": jnp.ones((2, 2))}
    grads = {"a": jnp.full((2, 2), 10.0), "b": jnp.ones((2, 2))}

    def step(m):
        tx = make((("a", m), ("b", 1.0)))
        return tx.update(grads, tx.init(params), params, grad=grads)[0]

    mapped = jax.vmap(step)(jnp.array([0.0, 1.0]))
    for i, m in enumerate([0.0, 1.0]):
        alone = step(m)
        chex.assert_trees_all_close(jax.jit(step)(m), alone, rtol=1e-6)
        chex.assert_trees_all_close(jax.tree.map(lambda x, i=i: x[i], mapped), alone, rtol=1e-6)


def test_swd_takes_off_at_most_what_is_allowed_when_gradients_vanish():
    tx = adaptive.swd(0.01, largest=0.25)
    params, zeros = leaf(1.0, -2.0), leaf(0.0, 0.0)
    got, _ = tx.update(zeros, tx.init(params), params, grad=leaf(1e-9, 0.0))
    np.testing.assert_array_equal(got["kernel"], [[-0.25, 0.5]])
    got, _ = tx.update(zeros, tx.init(params), params, grad=zeros)
    chex.assert_trees_all_equal(got, zeros)


def test_awd_without_memory_keeps_the_ratio_of_the_two_gradients():
    tx = adaptive.awd(0.3, decay=0.0)
    params, grads = tree(0), tree(1)
    got, _ = tx.update(grads, tx.init(params), params)
    kernels = lambda t: np.concatenate([x.ravel() for x in (t["a"]["kernel"], t["b"][0]["kernel"])])
    added = np.linalg.norm(kernels(got) - kernels(grads))
    np.testing.assert_allclose(added, 0.3 * np.linalg.norm(kernels(grads)), rtol=1e-5)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_ada_decays_factor_is_bounded_monotone_and_ignores_the_scale(seed, scale):
    rng = np.random.default_rng(seed)
    params, grads = leaf(*np.ones(6)), leaf(*rng.normal(size=6))
    tx = adaptive.ada_decay(1.0)
    factor = lambda g: tx.update(g, tx.init(params), params)[0]["kernel"] - g["kernel"]
    phi = np.asarray(factor(grads))[0]
    assert (phi > -1e-6).all()
    assert (phi < 2 + 1e-6).all()
    order = np.argsort(np.abs(grads["kernel"][0]))
    assert (np.diff(phi[order]) >= -1e-6).all()
    scaled = factor(jax.tree.map(lambda g: scale * g, grads))[0]
    np.testing.assert_allclose(phi, scaled, rtol=1e-4, atol=2e-5)


def test_ada_decay_of_equal_gradients_is_plain_l2():
    params, grads = leaf(1.0, -2.0), leaf(3.0, -3.0)
    tx, plain = adaptive.ada_decay(0.125), wdjax.add_decayed_weights(0.125)
    got, _ = tx.update(grads, tx.init(params), params)
    want, _ = plain.update(grads, plain.init(params), params)
    chex.assert_trees_all_equal(got, want)


def test_numbers_out_of_range_are_refused_by_name():
    for make, message in (
        (lambda: adaptive.swd(0.1, decay=1.0), r"`decay` must be in \[0, 1\); got 1.0"),
        (lambda: adaptive.swd(0.1, largest=-0.1), r"`largest` must be in \[0, 1\); got -0.1"),
        (lambda: adaptive.awd(0.1, decay=-1), r"`decay` must be in \[0, 1\); got -1"),
        (lambda: adaptive.ada_decay(0.1, alpha=math.nan), r"`alpha` must be finite and >= 0; got"),
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
        want, _ = alone.update(grads, alone.init(params), params, grad=grads)
        chex.assert_trees_all_close(got, want, rtol=1e-5)


def test_with_grad_passes_its_own_updates_whatever_the_caller_gives_and_keeps_the_state():
    chain = optax.chain(optax.sgd(0.1), adaptive.swd(0.01))
    optimizer = adaptive.with_grad(chain)
    params, grads, raw = tree(0), tree(1), tree(2)
    state = optimizer.init(params)
    chex.assert_trees_all_equal(state, chain.init(params))
    # as decayed does: what a train step passes is of one micro-batch, where MultiSteps is around
    got, _ = optimizer.update(grads, state, params, grad=raw)
    want, _ = chain.update(grads, state, params, grad=grads)
    chex.assert_trees_all_equal(got, want)


def test_nnx_parameters_which_change_containers_between_init_and_update():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    chain = optax.chain(optax.adam(0.01), adaptive.cpr(bounds.dependent(0.5)), adaptive.spd(0.5))
    optimizer = nnx.Optimizer(model, adaptive.with_grad(chain), wrt=nnx.Param)
    grads = nnx.grad(lambda m: jnp.sum(m(jnp.ones((4, 3))) ** 2))
    before = np.linalg.norm(model.kernel[...])
    for _ in range(3):
        optimizer.update(model, grads(model))
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
        ({"least": -1.0}, r"`least` must be finite and >= 0; got -1"),
        ({"least": 2.0, "most": 1.0}, r"`most` must be finite and >= 2; got 1"),
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
    "l1": bounds.sum_magnitudes,
    "huber": bounds.sum_huber,
    "std": bounds.deviation,
}
BOUNDS = {
    "uniform": (None, None),
    "dependent": (0.9, bounds.dependent(0.9)),
    "warm_start": (5, bounds.warm_start(5)),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", BOUNDS)
@pytest.mark.parametrize("function", MEASURES)
def test_cpr_equals_pytorch_cpr(function, method, x64, agrees):
    torch, cpr = imported("torch"), imported("pytorch_cpr")
    number, bound = BOUNDS[method]
    if method == "uniform":
        number = {"l2": 12.0, "l1": 12.0, "huber": 6.0, "std": 0.8}[function]
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


def test_cprs_inflection_point_equals_pytorch_cpr_once_its_sentinel_is_repaired(
    monkeypatch, x64, agrees
):
    """Version 0.3.1 marks "no bound yet" by 1e6 and looks for 1000."""
    torch, cpr = imported("torch"), imported("pytorch_cpr")
    monkeypatch.setattr(cpr.adamcpr, "HIGHKAPPA", 1000.0)

    def make(theirs):
        groups = [
            {"params": [theirs["kernel"]], "regularize": True},
            {"params": [theirs["bias"]], "regularize": False},
        ]
        return cpr.AdamCPR(
            groups, lr=0.05, kappa_update=0.05, reg_step_size=3, reg_ema_decay=0.5, foreach=False
        )

    bound = bounds.inflection_point(3, decay=0.5)
    optimizer = optax.chain(optax.adam(0.05), adaptive.cpr(bound, strength=0.05))
    worst, ours = trajectories(torch, make, optimizer, 60)
    free = without(torch, 60)
    agrees("adaptive.cpr", "pytorch-cpr", worst, 0.0, atol=1e-5)
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
    params = {"kernel": jnp.full((2, 2), 2.0)}
    grow = {"kernel": jnp.full((2, 2), 0.1)}
    old, new = make(1.0), make(50.0)
    _, state = new.update(grow, old.init(params), params)
    _, fresh = new.update(grow, new.init(params), params)
    np.testing.assert_array_equal(state.memory[1]["kernel"], fresh.memory[1]["kernel"])
