"""Every transformation through every property: a row in `cases.TRANSFORMS` buys all of these."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import TRANSFORMS, TransformCase

import wdjax

RULES = (("a/kernel", 1.0), ("b/*/kernel", 0.5), ("bias", 0.0))
MULTIPLIERS = {"a": {"kernel": 1.0, "bias": 0.0}, "b": [{"kernel": 0.5}]}
STRENGTH = 0.125  # exact in binary
EDGES = np.array([[0.0, -0.0, 1e-30], [0.25, -0.25, 2.0], [-3.0, 1e-3, -1e-3]])

rows = pytest.mark.parametrize("case", TRANSFORMS.values(), ids=TRANSFORMS.keys())


def tree(seed, dtype=jnp.float32):
    """Three leaves; the kernels hold zeros, signed zeros, tiny and ordinary numbers."""
    rng = np.random.default_rng(seed)
    edges = rng.permuted(EDGES.ravel()).reshape(3, 3)
    other = rng.normal(size=(2, 3))
    leaves = {"a": {"kernel": edges, "bias": rng.normal(size=3)}, "b": [{"kernel": other}]}
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), leaves)


def anchor_of(case, params):
    if case.anchor is None or isinstance(case.anchor, str):
        return case.anchor
    return jax.tree.map(lambda p: jnp.full_like(p, case.anchor), params)


def build(case: TransformCase, strength=STRENGTH, rules=RULES, params=None):
    arguments = {"rules": rules}
    if case.anchor is not None:
        arguments["anchor"] = anchor_of(case, tree(0) if params is None else params)
    return case.build(strength, **arguments)


def expected(case, updates, params, strength, initial):
    """The row's float64 reference on every leaf."""

    def leaf(update, param, m, start):
        update, param, start = (np.asarray(x, np.float64) for x in (update, param, start))
        if m == 0:
            return update
        point = {"init": start, None: 0.0}.get(case.anchor, case.anchor)
        anchor = np.broadcast_to(np.asarray(point, np.float64), param.shape)
        return case.reference(update, param, strength * m, anchor)

    return jax.tree.map(leaf, updates, params, MULTIPLIERS, initial)


@rows
def test_it_equals_the_reference_for_several_steps_of_a_changing_schedule(case):
    schedule = lambda count: STRENGTH / (1 + count)
    tx = build(case, schedule)
    params = initial = tree(0)
    state = tx.init(params)
    for t in range(4):
        updates = jax.tree.map(lambda x: 0.1 * x, tree(10 + t))
        want = expected(case, updates, params, schedule(t), initial)
        got, state = tx.update(updates, state, params)
        chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
        params = optax.apply_updates(params, got)
        assert int(state.count) == t + 1


@rows
def test_zero_updates_and_zero_params_equal_the_reference(case):
    tx = build(case)
    for params in (tree(0), jax.tree.map(jnp.zeros_like, tree(0))):
        updates = jax.tree.map(jnp.zeros_like, params)
        got, _ = tx.update(updates, tx.init(params), params)
        want = expected(case, updates, params, STRENGTH, params)
        chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)


@rows
def test_float64_is_kept_to_twelve_digits(case, x64):
    tx = build(case, params=tree(0, jnp.float64))
    params, updates = tree(0, jnp.float64), tree(1, jnp.float64)
    got, _ = tx.update(updates, tx.init(params), params)
    want = expected(case, updates, params, STRENGTH, params)
    chex.assert_trees_all_close(got, want, rtol=1e-12, atol=1e-13)
    chex.assert_trees_all_equal_dtypes(got, updates)


@rows
def test_jit_equals_eager(case):
    tx = build(case, wdjax.lr_scaled(0.5, lambda count: 0.25 / (1 + count)))
    params, updates = tree(0), tree(1)
    state = tx.init(params)
    chex.assert_trees_all_close(
        jax.jit(tx.update)(updates, state, params),
        tx.update(updates, state, params),
        rtol=2e-6,
        atol=1e-7,
    )


@rows
def test_many_calls_are_traced_once(case):
    tx = build(case)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    params = tree(0)
    state = tx.init(params)
    for t in range(3):
        _, state = update(tree(t), state, params)


@rows
def test_it_runs_under_scan_and_keeps_its_state(case):
    tx = build(case)
    params = tree(0)
    state = tx.init(params)

    def body(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

    (_, after), _ = jax.lax.scan(body, (params, state), length=5)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert int(after.count) == 5
    if case.anchor == "init":
        chex.assert_trees_all_equal(after.anchor, params)


@rows
def test_a_traced_strength_runs_under_vmap_and_equals_single_runs(case):
    params, updates = tree(0), tree(1)

    def run(strength):
        tx = build(case, strength)
        return tx.update(updates, tx.init(params), params)[0]

    strengths = jnp.array([0.0, 0.0625, 0.5])
    together = jax.vmap(run)(strengths)
    for i, strength in enumerate(strengths):
        alone = run(float(strength))
        row = jax.tree.map(lambda x, i=i: x[i], together)
        chex.assert_trees_all_close(row, alone, rtol=2e-6, atol=1e-6)


@rows
def test_the_gradient_with_respect_to_the_strength_is_finite(case):
    params, updates = tree(0), tree(1)

    def total(strength):
        tx = build(case, strength)
        new, _ = tx.update(updates, tx.init(params), params)
        return sum(jnp.sum(x) for x in jax.tree.leaves(new))

    assert np.isfinite(jax.grad(total)(0.25))


@rows
@pytest.mark.parametrize(
    ("dtype", "strength"),
    [
        (jnp.float32, optax.linear_schedule(0.1, 0.01, 10)),
        (jnp.bfloat16, STRENGTH),
        (jnp.bfloat16, optax.cosine_decay_schedule(0.1, 10)),
        (jnp.float16, lambda count: np.float32(0.125)),
    ],
    ids=["float32 linear", "bfloat16 float", "bfloat16 cosine", "float16 numpy"],
)
def test_dtypes_are_kept_whatever_the_schedule(case, dtype, strength):
    tx = build(case, strength)
    params, updates = tree(0, dtype), tree(1, dtype)
    got, state = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, updates)
    chex.assert_tree_all_finite(got)
    assert state.count.dtype == jnp.int32


@rows
def test_multiplier_zero_leaves_a_leaf_alone_bit_for_bit(case):
    params, updates = tree(0), tree(1)
    tx = build(case, rules=(("**", 0.0),))
    got, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    chex.assert_trees_all_equal(got, updates)


@rows
def test_strength_zero_changes_nothing(case):
    params, updates = tree(0), tree(1)
    tx = build(case, 0.0)
    got, _ = tx.update(updates, tx.init(params), params)
    chex.assert_trees_all_close(got, updates, rtol=1e-6, atol=1e-6)


@rows
def test_multiplier_zero_leaves_no_operation_in_the_program(case):
    params, updates = tree(0), tree(1)
    size = lambda rules: len(
        jax.make_jaxpr(lambda u, s, p: build(case, 0.125, rules).update(u, s, p))(
            updates, build(case, 0.125, rules).init(params), params
        ).eqns
    )
    assert size((("**", 0.0),)) < size((("a/kernel", 1.0), ("**", 0.0))) < size((("**", 1.0),))


@rows
def test_the_state_does_not_depend_on_rules_strength_or_schedule(case):
    params = tree(0)
    variants = [
        build(case).init(params),
        build(case, 0.5, (("**", 0.25),)).init(params),
        build(case, optax.linear_schedule(0.1, 0.01, 10), (("bias", 0.0), ("**", 1))).init(params),
        build(case, wdjax.fixed(0.01), (("**", 0.0),)).init(params),
    ]
    for other in variants[1:]:
        chex.assert_trees_all_equal_structs(variants[0], other)
        chex.assert_trees_all_equal_shapes_and_dtypes(variants[0], other)


@rows
def test_unknown_extra_arguments_are_ignored(case):
    params, updates = tree(0), tree(1)
    tx = build(case)
    state = tx.init(params)
    chex.assert_trees_all_equal(
        tx.update(updates, state, params, value=1.0, batch=None),
        tx.update(updates, state, params),
    )


@rows
def test_updates_that_are_none_stay_none(case):
    params = tree(0)
    updates = tree(1) | {"b": [{"kernel": None}]}
    tx = build(case)
    got, _ = tx.update(updates, tx.init(params), params)
    assert got["b"][0]["kernel"] is None
    assert got["a"]["kernel"].shape == (3, 3)


@rows
def test_a_donated_step_runs_from_the_first(case):
    tx = build(case)
    params = tree(0)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)


@rows
def test_update_without_params_says_what_to_call(case):
    tx = build(case)
    params = tree(0)
    message = rf"`{case.verb}` needs the current parameters; got `params=None`. Call `optimizer\."
    with pytest.raises(ValueError, match=message):
        tx.update(params, tx.init(params))


@rows
@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_bad_strength_fails_when_built(case, bad):
    for strength in (bad, jnp.asarray(bad), np.float32(bad)):
        with pytest.raises(ValueError, match=r"`strength` must be a finite number >= 0, or a sch"):
            build(case, strength)


@rows
def test_a_strength_of_the_wrong_kind_fails_when_built(case):
    for bad in ("0.1", None, True):
        with pytest.raises(
            TypeError, match="`strength` must be a finite number >= 0, or a schedule"
        ):
            build(case, bad)
    with pytest.raises(TypeError, match=r"or a schedule; got array\(\[1.*into `rules`"):
        build(case, np.ones(2))


@rows
def test_a_schedule_that_turns_negative_is_warned_of_at_init(case):
    tx = build(case, optax.linear_schedule(0.1, -0.1, 100))
    with pytest.warns(UserWarning, match=r"is negative from step 5\d on and counts as 0 there"):
        tx.init(tree(0))


@rows
def test_wrong_rules_fail_at_init(case):
    tx = build(case, rules=(("a/kernl", 1.0), ("**", 0.0)))
    with pytest.raises(wdjax.RuleError, match=r"'a/kernl' matches no parameter; did you mean"):
        tx.init(tree(0))


@rows
def test_updates_of_another_structure_name_the_difference(case):
    tx = build(case)
    params = tree(0)
    wrong = {"a": params["a"], "c": params["b"]}
    with pytest.raises(ValueError, match=rf"`{case.verb}` needs updates and params of the same"):
        tx.update(wrong, tx.init(params), params)


@rows
def test_updates_of_another_shape_are_refused(case):
    tx = build(case)
    params = tree(0)
    wrong = jax.tree.map(lambda x: x[None], params)
    with pytest.raises(
        ValueError, match=r"updates shaped like their parameters; got \(1, 3\) for 'a/bias' \(3,\)"
    ):
        tx.update(wrong, tx.init(params), params)
