"""Every method through every property: a row in `method_cases.METHODS` buys all of these.

What only the lift answers, such as bad arguments, is asked once per verb.
"""

import functools
import os

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
MULTIPLIERS = {"a/bias": 0.0, "a/kernel": 1.0, "b/0/kernel": 0.5, "c/kernel": 1.0}
NOTHING = (("**", 0.0),)
KERNELS = (("bias", 0.0), ("**", 1.0))
EDGES = np.array([0.0, -0.0, 1e-30, 0.25, -0.25, 2.0, -3.0, 1e-3, -1e-3, 0.7, -1.1, 0.45])
SCALES = (0.1, 0.01, 0.3, 0.1, 0.0, 0.3, 0.3, 0.1, 0.3, 0.1)  # of updates: one of them is zero


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


def multipliers_of(tree):
    return {leaf.path: MULTIPLIERS[leaf.path] for leaf in paths.leaves(tree)}


def build(case, x=None, rules=RULES, params=None):
    arguments = {"rules": rules}
    if case.anchor is not None:
        params = tree(0) if params is None else params
        is_tree = not isinstance(case.anchor, str)
        full = lambda: jax.tree.map(lambda p: jnp.full_like(p, case.anchor), params)
        arguments["anchor"] = full() if is_tree else case.anchor
    return case.build(case.x if x is None else x, **arguments)


def leaf_pairs(*trees):
    return zip(*map(jax.tree.leaves, trees), strict=True)


def falling(case):
    return lambda count: case.x / (1 + 0.1 * count)


# The formula.


def check(case, reference, params, updates, grads, t, got, tolerances):
    """Compare each leaf with the reference; `tolerances` are (rtol, atol) by dtype."""
    numbers = case.x / (1 + 0.1 * t), multipliers_of(params), *map(flat, (params, updates, grads))
    want = reference(*numbers)
    for leaf, value in zip(paths.leaves(got), jax.tree.leaves(got), strict=True):
        value, (rtol, atol) = np.asarray(value, np.float64), tolerances[str(leaf.dtype)]
        np.testing.assert_allclose(value, want[leaf.path], rtol, atol, err_msg=f"{leaf.path}, {t}")
    np.testing.assert_array_equal(got["a"]["bias"], updates["a"]["bias"])
    chex.assert_trees_all_equal_dtypes(got, updates)


@rows
def test_it_equals_the_reference_in_float64_to_twelve_digits(case, x64):
    params = tree(0, jnp.float64)
    tx, reference = build(case, falling(case)), case.reference(flat(params))
    state, update, acted = tx.init(params), jax.jit(tx.update), False
    for t, scale in enumerate(SCALES):
        updates, grads = tree(10 + t, jnp.float64, scale), tree(30 + t, jnp.float64, 1 + 0.1 * t)
        got, state = update(updates, state, params, grad=grads)
        check(case, reference, params, updates, grads, t, got, {"float64": (1e-12, 1e-13)})
        acted |= any(not np.array_equal(a, b) for a, b in leaf_pairs(got, updates))
        params = optax.apply_updates(params, got)
    assert int(state.count) == len(SCALES)
    assert acted


NARROW = {"float32": (2e-4, 5e-6), "bfloat16": (8e-3, 1e-4), "float16": (1e-3, 1e-5)}


@rows
def test_it_equals_the_reference_in_narrow_dtypes_under_scan_and_keeps_its_state(case):
    """The last step of the float16 leaf is so long that its squares overflow: it stays finite."""
    mixed = lambda seed, scale=1.0, last=1.0: (
        tree(seed, scale=scale)
        | {
            "b": tree(seed, jnp.bfloat16, scale)["b"],
            "c": {"kernel": tree(seed + 1, jnp.float16, scale * last)["a"]["kernel"]},
        }
    )
    times = range(len(SCALES))
    updates = [mixed(10 + t, SCALES[t], 2000.0 if t == times[-1] else 1.0) for t in times]
    grads = [mixed(30 + t, 1 + 0.1 * t) for t in times]
    params = mixed(0)
    tx = build(case, falling(case), (("c/kernel", 1.0), *RULES), params)

    def body(carry, step):
        params, state = carry
        got, state = tx.update(step[0], state, params, grad=step[1])
        return (optax.apply_updates(params, got), state), (params, got)

    state, reference = tx.init(params), case.reference(flat(params))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *zip(updates, grads, strict=True))
    (_, after), taken = jax.lax.scan(body, (params, state), tuple(stacked))
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    # so that a jitted step is traced once
    assert not any(jax.typeof(leaf).weak_type for leaf in jax.tree.leaves(state))
    for t in times:
        params, got = jax.tree.map(lambda x, t=t: x[t], jax.device_get(taken))
        chex.assert_trees_all_equal_dtypes(got, updates[t])
        chex.assert_tree_all_finite(got)
        if t < times[-1]:
            check(case, reference, params, updates[t], grads[t], t, got, NARROW)


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
def test_awkward_leaves_are_no_trouble_and_zeros_stay_zero(case):
    """Leaves that are empty, of one entry, no weights, or without an update."""
    more = {
        "empty": jnp.zeros((3, 0)),
        "rows": jnp.zeros((0, 3)),
        "one": jnp.ones((1, 1)),
        "steps": jnp.arange(6).reshape(2, 3),
        "key": jax.random.key(0),
    }
    hidden = {"steps": None, "key": None, "b": [{"kernel": None}]}
    params, updates = tree(0) | more, tree(1) | more | hidden
    tx = build(case, rules=KERNELS, params=params)
    # compiled, it cannot refuse groups of zeros
    init, update = jax.jit(tx.init), jax.jit(tx.update)
    before = init(params)
    got, after = update(updates, before, params, grad=updates)
    chex.assert_trees_all_equal_shapes(got, updates)
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_equal_structs(before, after)
    states = zip(*map(jax.tree_util.tree_leaves_with_path, (before, after)), strict=True)
    for (path, old), (_, new) in states:
        if jax.tree_util.keystr(path).endswith("['b'][0]['kernel']") and not case.copies:
            np.testing.assert_array_equal(old, new)

    zero, still = zeros(tree(0)) | more | {"one": jnp.zeros((1, 1))}, zeros(updates)
    is_tree = case.anchor not in (None, "init")
    at = jax.tree.map(lambda p: jnp.full_like(p, case.anchor), zero["a"]) if is_tree else zero["a"]
    state, at = init(zero), zero | {"a": at}
    for _ in range(5):
        got, state = update(still, state, at, grad=still)
        chex.assert_trees_all_close(got["a"], still["a"], rtol=0, atol=0)
    got, _ = update(updates, state, zero, grad=updates)
    chex.assert_tree_all_finite(got)


# The strength and the multipliers.


@rows
def test_traced_strengths_and_multipliers_run_under_vmap_and_equal_numbers(case):
    """The derivative with respect to the strength is finite, also at zero weights."""
    numbers = [(case.x / 2, 0.5), (case.x, 0.0), (case.x if case.idle is None else case.idle, 1.0)]
    updates, grads = tree(1, scale=0.1)["a"], tree(2)["a"]

    def take(x, m, params):
        tx = build(case, x, (("bias", 0.0), ("kernel", m)), params)
        state = tx.init(params)
        for _ in range(2):
            got, state = tx.update(updates, state, params, grad=grads)
        return jnp.sum(got["kernel"]), got

    many = jax.jit(jax.vmap(jax.value_and_grad(take, has_aux=True), in_axes=(0, 0, None)))
    columns = tuple(map(jnp.array, zip(*numbers, strict=True)))
    (_, together), slopes = many(*columns, tree(0)["a"])
    half, off, idle = (jax.tree.map(lambda leaf, i=i: leaf[i], together) for i in range(3))
    alone = jax.jit(functools.partial(take, *numbers[0]))(tree(0)["a"])[1]
    chex.assert_trees_all_close(half, alone, rtol=2e-6, atol=1e-6)
    chex.assert_trees_all_equal(off, updates)
    if case.idle is not None:
        chex.assert_trees_all_close(idle, updates, rtol=1e-6, atol=1e-6)
    # with jax 0.8 the quick compiler divides 0 by 0 where XLA as usual does not
    if "optimization_level=0" not in os.environ.get("XLA_FLAGS", ""):
        assert np.isfinite(slopes).all()
        assert np.isfinite(many(*columns, zeros(tree(0)["a"]))[1]).all()


@rows
def test_multiplier_zero_leaves_a_leaf_alone_and_out_of_the_program(case):
    def program(rules):
        def step(updates, params):
            tx = build(case, rules=rules)
            return tx.update(updates, tx.init(params), params, grad=tree(2))[0]

        return jax.make_jaxpr(step)(tree(1), tree(0)).jaxpr

    none, some, all_of_them = map(program, (NOTHING, (("a/kernel", 1.0), *NOTHING), KERNELS))
    assert none.outvars == none.invars[:3]
    kept = [a is b for a, b in zip(some.outvars, some.invars[:3], strict=True)]
    assert kept == [True, False, True]
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
    tx = build(case, lambda count: jnp.float64(case.x))  # must not widen what is remembered
    state = jax.eval_shape(tx.init, params)
    step = lambda params, state: tx.update(params, state, params, grad=params)[1]
    after = jax.eval_shape(step, params, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    count, *memory = jax.tree_util.tree_leaves_with_path(state)
    trees, scalars = case.memory
    assert count[1].dtype == jnp.int32
    assert len(memory) == trees * len(jax.tree.leaves(params)) + scalars
    for path, leaf in memory:
        is_narrow = jax.tree_util.keystr(path).endswith("['b'][0]['kernel']")
        narrow = jnp.bfloat16 if case.copies else jnp.float32
        assert leaf.dtype == (narrow if is_narrow else jnp.float64)


@remembering
def test_params_and_state_share_no_memory_so_that_both_may_be_donated(case):
    params = tree(0)
    leaves = jax.tree.leaves((params, build(case).init(params)))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@remembering
def test_a_state_of_other_containers_is_read_by_the_order_of_its_leaves(case):
    """A state made with lists works for params in tuples, as nnx changes them."""
    tx = build(case)
    other = lambda tree: tree | {"b": tuple(tree["b"])}
    step = lambda state, *trees: tx.update(trees[0], state, trees[1], grad=trees[2])[0]
    state, trees = tx.init(tree(0)), (tree(1), tree(0), tree(2))
    chex.assert_trees_all_equal(step(state, *map(other, trees)), other(step(state, *trees)))


# What the lift answers, once per verb.


def start(case, **arguments):
    tx, params = build(case, **arguments), tree(0)
    return tx, tx.init(params), params, tree(1, scale=0.1), tree(2)


@verbs
def test_it_stands_in_a_chain_with_any_optimizer(case):
    parts = [build(case), optax.adam(0.01)]
    chain = optax.chain(*(parts if case.first else reversed(parts)))
    optimizer = adaptive.with_grad(chain) if case.needs_grad else chain
    params, grads = tree(3), tree(2)
    got, _ = optimizer.update(grads, optimizer.init(tree(0)), params)
    want, _ = chain.update(grads, chain.init(tree(0)), params, grad=grads)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
    plain, _ = optax.adam(0.01).update(grads, optax.adam(0.01).init(params), params)
    chex.assert_trees_all_close(got["a"]["bias"], plain["a"]["bias"], rtol=1e-6, atol=1e-6)


@verbs
def test_a_donated_step_runs_from_the_first(case):
    tx, state, params, updates, grads = start(case)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state):
        got, state = tx.update(updates, state, params, grad=grads)
        return optax.apply_updates(params, got), state

    for _ in range(2):
        params, state = step(params, state)
    chex.assert_tree_all_finite(params)


@verbs
def test_unknown_extra_arguments_are_ignored(case):
    tx, state, params, updates, grads = start(case)
    plain = tx.update(updates, state, params, grad=grads)
    more = tx.update(updates, state, params, grad=grads, value=1.0, batch=None)
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
    message = r"updates and params of the same structure and sh.*; got \(1, 4\) for 'a/bias' \(4,\)"
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
        message = rf"`{case.quantity}` must be .*or a schedule; got"
        with pytest.raises(TypeError, match=message):
            build(case, bad)
    with pytest.raises(TypeError, match="or a schedule; got None"):
        case.build(None, rules=RULES)
    with pytest.raises(TypeError, match=r"or a schedule; got array\(\[.*into `rules`"):
        build(case, np.full(2, case.x))


@verbs
def test_a_schedule_that_turns_negative_is_warned_of_at_init(case):
    tx = build(case, optax.linear_schedule(0.1, -0.1, 100))
    message = rf"`{case.quantity}` is negative from step 5\d on and counts as 0 there"
    with pytest.warns(UserWarning, match=message):
        tx.init(tree(0))


@verbs
def test_wrong_rules_fail_at_init(case):
    tx = build(case, rules=(("a/kernl", 1.0), *NOTHING))
    with pytest.raises(wdjax.RuleError, match=r"'a/kernl' matches no parameter; did you mean"):
        tx.init(tree(0))
