"""Every method through every property: a row in `method_cases.METHODS` buys all of these.

What only the lift answers, such as bad arguments, is asked once per verb.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from method_cases import METHODS, VERBS

import wdjax
from wdjax import adaptive
from wdjax._trees import paths

RULES = (("a/kernel", 1.0), ("b/*/kernel", 0.5), ("bias", 0.0))
MULTIPLIERS = {"a/bias": 0.0, "a/kernel": 1.0, "b/0/kernel": 0.5}
NOTHING = (("**", 0.0),)
KERNELS = (("bias", 0.0), ("**", 1.0))
EDGES = np.array([0.0, -0.0, 1e-30, 0.25, -0.25, 2.0, -3.0, 1e-3, -1e-3, 0.7, -1.1, 0.4])
SCALES = (0.1, 0.01, 0.3, 0.1, 0.0, 0.1, 0.2, 0.1)  # of updates: one of them is zero


def each(table):
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())


def where(condition):
    return {name: case for name, case in METHODS.items() if condition(case)}


rows, verbs = each(METHODS), each(VERBS)
remembering = each(VERBS | where(lambda case: any(case.memory)))


def tree(seed, dtype=jnp.float32, scale=1.0):
    """A kernel of zeros, signed zeros, tiny and ordinary numbers, a bias, two stacked layers."""
    rng = np.random.default_rng(seed)
    leaves = {
        "a": {"kernel": rng.permuted(EDGES).reshape(3, 4), "bias": rng.normal(size=4)},
        "b": [{"kernel": rng.normal(size=(2, 3, 4))}],
    }
    return jax.tree.map(lambda x: jnp.asarray(scale * x, dtype), leaves)


def zeros(like):
    return jax.tree.map(jnp.zeros_like, like)


def flat(tree):
    leaves = zip(paths.leaves(tree), jax.tree.leaves(tree), strict=True)
    return {leaf.path: np.asarray(value, np.float64) for leaf, value in leaves}


def build(case, x=None, rules=RULES, params=None):
    arguments = {"rules": rules}
    if case.anchor is not None:
        params = tree(0) if params is None else params
        is_tree = not isinstance(case.anchor, str)
        full = lambda: jax.tree.map(lambda p: jnp.full_like(p, case.anchor), params)
        arguments["anchor"] = full() if is_tree else case.anchor
    return case.build(case.x if x is None else x, **arguments)


def run(tx, params, steps=2):
    """Take the same step several times; return the updates and the state after it."""
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(tree(1, scale=0.1), state, params, grad=tree(2))
    return updates, state


def falling(case):
    return lambda count: case.x / (1 + 0.1 * count)


def follow(case, reference, params, updates, grads, t):
    return reference(case.x / (1 + 0.1 * t), MULTIPLIERS, *map(flat, (params, updates, grads)))


# The formula.


@rows
def test_it_equals_the_reference_in_float64_to_twelve_digits(case, x64):
    params = tree(0, jnp.float64)
    tx = build(case, falling(case))
    state, update, reference = tx.init(params), jax.jit(tx.update), case.reference(flat(params))
    acted = False
    for t, scale in enumerate(SCALES):
        updates, grads = tree(10 + t, jnp.float64, scale), tree(30 + t, jnp.float64, 1 + 0.1 * t)
        want = follow(case, reference, params, updates, grads, t)
        got, state = update(updates, state, params, grad=grads)
        for path, value in flat(got).items():
            np.testing.assert_allclose(value, want[path], 1e-12, 1e-13, err_msg=f"{path} at {t}")
        chex.assert_trees_all_equal_dtypes(got, updates)
        np.testing.assert_array_equal(got["a"]["bias"], updates["a"]["bias"])
        acted |= any(np.any(value != flat(updates)[path]) for path, value in flat(got).items())
        params = optax.apply_updates(params, got)
    assert int(state.count) == len(SCALES)
    assert acted


@rows
def test_it_equals_the_reference_in_float32_under_scan_and_keeps_its_state(case):
    steps = range(len(SCALES))
    updates = [tree(10 + t, scale=SCALES[t]) for t in steps]
    grads = [tree(30 + t, scale=1 + 0.1 * t) for t in steps]
    tx, params = build(case, falling(case)), tree(0)
    state = tx.init(params)

    def body(carry, step):
        params, state = carry
        got, state = tx.update(step[0], state, params, grad=step[1])
        return (optax.apply_updates(params, got), state), (params, got)

    stack = lambda trees: jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    (_, after), taken = jax.lax.scan(body, (params, state), (stack(updates), stack(grads)))
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert int(after.count) == len(SCALES)
    reference = case.reference(flat(params))
    for t in steps:
        params, got = jax.tree.map(lambda x, t=t: x[t], taken)
        want = follow(case, reference, params, updates[t], grads[t], t)
        for path, value in flat(got).items():
            np.testing.assert_allclose(value, want[path], 2e-4, 5e-6, err_msg=f"{path} at {t}")


@rows
def test_jit_equals_eager_and_is_traced_once(case):
    params, updates, grads = (tree(seed)["a"] for seed in range(3))
    tx = build(case, falling(case), KERNELS, params)
    state = tx.init(params)
    update = jax.jit(chex.assert_max_traces(tx.update, n=1))
    for _ in range(2):
        got = update(updates, state, params, grad=grads)
        want = tx.update(updates, state, params, grad=grads)
        chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
        state = got[1]


@rows
def test_zero_params_zero_updates_and_zero_grads_stay_zero(case):
    params = zeros(tree(0))
    tx = build(case)
    state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
    fixed = params if case.anchor in (None, "init") else jax.tree.map(
        lambda p: jnp.full_like(p, case.anchor), params
    )  # fmt: skip
    for _ in range(5):
        got, state = update(zeros(params), state, fixed, grad=zeros(params))
        chex.assert_trees_all_close(got, zeros(params), rtol=0, atol=0)
    got, _ = update(tree(1), state, params, grad=tree(2))
    chex.assert_tree_all_finite(got)


# The strength and the multipliers.


@rows
def test_traced_strengths_and_multipliers_run_under_vmap_and_equal_numbers(case):
    take = lambda x, m: run(build(case, x, (("bias", 0.0), ("**", m))), tree(0))[0]
    numbers = [(case.x, 1.0), (case.x / 2, 0.5), (case.x, 0.0)]
    together = jax.jit(jax.vmap(take))(*map(jnp.array, zip(*numbers, strict=True)))
    for i, (x, m) in enumerate(numbers):
        row = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        alone = jax.jit(functools.partial(take, x, m))()
        chex.assert_trees_all_close(row, alone, rtol=2e-6, atol=1e-6)
    chex.assert_trees_all_equal(row, tree(1, scale=0.1))


@rows
def test_the_gradient_with_respect_to_the_strength_is_finite(case):
    def total(x, params):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(run(build(case, x), params, 1)[0]))

    slope = jax.jit(jax.grad(total))
    for params in (tree(0), zeros(tree(0))):
        assert np.isfinite(slope(case.x, params))


@each(where(lambda case: case.idle is not None))
def test_where_the_strength_says_so_nothing_changes(case):
    got, _ = jax.jit(lambda params: run(build(case, case.idle), params, 4))(tree(0))
    chex.assert_trees_all_close(got, tree(1, scale=0.1), rtol=1e-6, atol=1e-6)


@rows
def test_multiplier_zero_leaves_a_leaf_alone_and_out_of_the_program(case):
    def program(rules):
        def step(updates, params):
            tx = build(case, rules=rules)
            return tx.update(updates, tx.init(params), params, grad=tree(2))[0]

        return jax.make_jaxpr(step)(tree(1), tree(0)).jaxpr

    none, some, all_of_them = map(program, (NOTHING, (("a/kernel", 1.0), *NOTHING), KERNELS))
    leaves = len(MULTIPLIERS)
    assert none.outvars == none.invars[:leaves]
    assert [a is b for a, b in zip(some.outvars, some.invars[:leaves], strict=True)] == [
        path != "a/kernel" for path in MULTIPLIERS
    ]
    assert len(none.eqns) < len(some.eqns) < len(all_of_them.eqns)


# The state.


@rows
def test_the_state_does_not_depend_on_rules_strength_or_schedule(case):
    schedule = optax.linear_schedule(case.x, case.x / 2, 10)
    variants = (
        {},
        {"x": case.x / 4, "rules": (("bias", 0.0), ("**", 0.25))},
        {"x": schedule, "rules": (("bias", 0.0), ("**", 1))},
        {"x": wdjax.fixed(case.x), "rules": NOTHING},
    )
    first, *others = (jax.eval_shape(build(case, **kw).init, tree(0)) for kw in variants)
    for other in others:
        chex.assert_trees_all_equal_structs(first, other)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, other)


@rows
def test_it_remembers_what_the_table_says_in_float32_or_wider(case, x64):
    params = tree(0, jnp.float64) | {"b": tree(0, jnp.bfloat16)["b"]}
    state = jax.eval_shape(build(case).init, params)
    count, *memory = jax.tree_util.tree_leaves_with_path(state)
    trees, scalars = case.memory
    assert count[1].dtype == jnp.int32
    assert len(memory) == trees * len(MULTIPLIERS) + scalars
    for path, leaf in memory:
        is_narrow = jax.tree_util.keystr(path).endswith("['b'][0]['kernel']")
        narrow = jnp.bfloat16 if case.copies else jnp.float32
        assert leaf.dtype == (narrow if is_narrow else jnp.float64)


@rows
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_are_kept_whatever_the_schedule(case, dtype):
    half = lambda count: np.float32(case.x)
    schedule = half if dtype == jnp.float16 else optax.cosine_decay_schedule(case.x, 10)
    tx, params = build(case, schedule), tree(0, dtype)
    updates, state = tree(1, dtype, 0.1), tx.init(params)
    update = jax.jit(tx.update)
    for step in (updates, jax.tree.map(lambda x: 200 * x, updates)):  # its squares overflow float16
        got, after = update(step, state, params, grad=step)
        chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
        chex.assert_trees_all_equal_shapes_and_dtypes(got, updates)
        chex.assert_tree_all_finite(got)
        state = after


@rows
def test_leaves_that_are_empty_no_weights_or_without_an_update_are_no_trouble(case):
    params = tree(0) | {
        "empty": jnp.zeros((3, 0)),
        "rows": jnp.zeros((0, 3)),
        "one": jnp.ones((1, 1)),
        "steps": jnp.arange(6).reshape(2, 3),
        "key": jax.random.key(0),
    }
    hidden = {"steps": None, "key": None, "b": [{"kernel": None}]}
    updates = params | tree(1) | hidden
    tx = build(case, rules=KERNELS, params=params)

    @jax.jit
    def step(params, updates):
        state = tx.init(params)
        return state, *tx.update(updates, state, params, grad=updates)

    before, got, after = step(params, updates)
    chex.assert_trees_all_equal_shapes(got, updates)
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_equal_structs(before, after)
    states = zip(*map(jax.tree_util.tree_leaves_with_path, (before, after)), strict=True)
    for (path, old), (_, new) in states:
        if jax.tree_util.keystr(path).endswith("['b'][0]['kernel']") and not case.copies:
            np.testing.assert_array_equal(old, new)


@remembering
def test_a_donated_step_runs_from_the_first(case):
    tx, params = build(case), tree(0)
    state = tx.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        got, state = tx.update(tree(1), state, params, grad=tree(2))
        return optax.apply_updates(params, got), state

    for _ in range(2):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)


@remembering
def test_a_state_of_other_containers_is_read_by_the_order_of_its_leaves(case):
    """A state made with lists works for params in tuples, as nnx changes them."""
    tx = build(case)
    other = lambda tree: tree | {"b": tuple(tree["b"])}
    step = jax.jit(lambda state, *trees: tx.update(trees[0], state, trees[1], grad=trees[2])[0])
    state, trees = tx.init(tree(0)), (tree(1), tree(0), tree(2))
    got = step(state, *map(other, trees))
    chex.assert_trees_all_close(got, other(step(state, *trees)), rtol=1e-6, atol=1e-7)


# What the lift answers, once per verb.


def start(case, **arguments):
    tx, params = build(case, **arguments), tree(0)
    return tx, tx.init(params), params, tree(1, scale=0.1), tree(2)


@verbs
def test_it_stands_in_a_chain_with_any_optimizer(case):
    parts = [build(case), optax.adam(0.01)]
    chain = optax.chain(*(parts if case.first else reversed(parts)))
    optimizer = adaptive.with_grad(chain) if case.needs_grad else chain
    params, grads = tree(0), tree(2)
    got, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    want, _ = jax.jit(chain.update)(grads, chain.init(params), params, grad=grads)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
    plain, _ = optax.adam(0.01).update(grads, optax.adam(0.01).init(params), params)
    chex.assert_trees_all_close(got["a"]["bias"], plain["a"]["bias"], rtol=1e-6, atol=1e-6)
    assert not np.allclose(got["a"]["kernel"], plain["a"]["kernel"], rtol=1e-3)


@verbs
def test_unknown_extra_arguments_are_ignored(case):
    tx, state, params, updates, grads = start(case)
    plain = jax.jit(lambda: tx.update(updates, state, params, grad=grads))()
    more = jax.jit(lambda: tx.update(updates, state, params, grad=grads, value=1.0, batch=None))()
    chex.assert_trees_all_equal(more, plain)


@verbs
def test_a_tree_without_leaves_passes(case):
    tx = build(case, rules=wdjax.standard(), params={})
    got, _ = tx.update({}, tx.init({}), {}, grad={})
    assert got == {}


@verbs
def test_update_without_params_says_what_to_call(case):
    tx, state, _, updates, grads = start(case)
    message = rf"`{case.verb}` needs the current parameters; got `params=None`. Call `optimizer\."
    with pytest.raises(ValueError, match=message):
        tx.update(updates, state, grad=grads)


@verbs
def test_update_without_raw_gradients_says_what_to_do_where_they_are_needed(case):
    tx, state, params, updates, _ = start(case)
    step = lambda: jax.eval_shape(tx.update, updates, state, params)
    if not case.needs_grad:
        step()
        return
    message = rf"`{case.verb}` needs the raw gradient; got none.* Use .*wdjax.adaptive.with_grad\("
    with pytest.raises(ValueError, match=message):
        step()


@verbs
def test_updates_of_another_structure_name_the_difference(case):
    tx, state, params, _, grads = start(case)
    wrong = {"a": params["a"], "c": params["b"]}
    with pytest.raises(ValueError, match=rf"`{case.verb}` needs updates and params of the same"):
        tx.update(wrong, state, params, grad=grads)


@verbs
def test_updates_of_another_shape_are_refused(case):
    tx, state, params, updates, _ = start(case)
    wrong = jax.tree.map(lambda x: x[None], updates)
    message = r"updates shaped like their parameters; got \(1, 4\) for 'a/bias' \(4,\)"
    with pytest.raises(ValueError, match=message):
        tx.update(wrong, state, params, grad=wrong)


@verbs
def test_a_bad_strength_fails_when_built(case):
    for bad in (-1.0, float("nan"), float("inf")):
        for kind in (float, jnp.asarray, np.float32):
            with pytest.raises(
                ValueError, match=rf"`{case.quantity}` must be .*or a schedule; got"
            ):
                build(case, kind(bad))


@verbs
def test_a_strength_of_the_wrong_kind_fails_when_built(case):
    for bad in ("0.1", True):
        message = rf"`{case.quantity}` must be a number >= 0 or a schedule; got"
        with pytest.raises(TypeError, match=message):
            build(case, bad)
    with pytest.raises(TypeError, match="must be a number >= 0 or a schedule; got None"):
        case.build(None, rules=RULES)
    with pytest.raises(ValueError, match=r"must be a scalar; got shape \(2,\).*into `rules`"):
        build(case, np.full(2, case.x))


@verbs
def test_a_schedule_that_turns_negative_fails_at_init(case):
    tx = build(case, optax.linear_schedule(0.1, -0.1, 100))
    message = rf"`{case.quantity}` must be .* at every step; got -0.0\d+ at step 5\d"
    with pytest.raises(ValueError, match=message):
        tx.init(tree(0))


@verbs
def test_wrong_rules_fail_at_init(case):
    tx = build(case, rules=(("a/kernl", 1.0), *NOTHING))
    with pytest.raises(wdjax.RuleError, match=r"'a/kernl' matches no parameter; did you mean"):
        tx.init(tree(0))
