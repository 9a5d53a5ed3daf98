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
from method_cases import METHODS, VERBS, first_quick

import wdjax
from wdjax import adaptive
from wdjax._trees import paths

NEGATIVE = optax.linear_schedule(0.1, -0.1, 100)
RULES = (("a/kernel", 1.0), ("b/*/kernel", 0.5), ("bias", 0.0))
MULTIPLIERS = {"a/bias": 0.0, "a/kernel": 1.0, "b/0/kernel": 0.5, "c/kernel": 1.0}
MULTIPLIERS |= {"a/0/bias": 0.0, "a/0/kernel": 1.0, "one": 1.0}
NOTHING = (("**", 0.0),)
KERNELS = (("bias", 0.0), ("**", 1.0))
EDGES = np.array([0.0, -0.0, 1e-30, 0.25, -0.25, 2.0, -3.0, 1e-3, -1e-3, 0.7, -1.1, 0.45])
SCALES = (0.1, 0.01, 0.3, 0.1, 0.0, 0.3, 0.3, 0.1)  # of updates: one of them is zero


def each(table):
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())


def where(condition):
    return {name: case for name, case in METHODS.items() if condition(case)}


rows, verbs = each(METHODS), each(VERBS)
# the lift is one for all rows of a verb
first_rows = pytest.mark.parametrize("case", first_quick(METHODS))
remembering = each(VERBS | where(lambda case: any(case.memory)))


def tree(seed, dtype=np.float32, scale=1.0):
    """A kernel of zeros, signed zeros, tiny and ordinary numbers, a bias, two stacked layers."""
    rng = np.random.default_rng(seed)
    leaves = {
        "a": {"kernel": rng.permuted(EDGES).reshape(3, 4), "bias": rng.normal(size=4)},
        "b": [{"kernel": np.stack([rng.permuted(EDGES).reshape(3, 4), rng.normal(size=(3, 4))])}],
    }
    return jax.tree.map(lambda x: np.asarray(scale * x, dtype), leaves)


def zeros(like):
    return jax.tree.map(np.zeros_like, like)


def flat(tree):
    leaves = zip(paths.leaves(tree), jax.tree.leaves(tree), strict=True)
    return {leaf.path: np.float64(x) for leaf, x in leaves if leaf.path != "key"}


def build(case, x=None, rules=RULES, params=None):
    arguments = {"rules": rules}
    if case.anchor is not None:
        params = tree(0) if params is None else params
        is_tree = not isinstance(case.anchor, str)
        full = lambda: jax.tree.map(lambda p: jnp.full(p.shape, case.anchor, p.dtype), params)
        arguments["anchor"] = full() if is_tree else case.anchor
    return case.build(case.x if x is None else x, **arguments)


@functools.cache  # a schedule is compiled once, for every row that has its x
def falling(x):
    return lambda count: x / (1 + 0.1 * count)


@functools.cache
def ending(x):
    return optax.linear_schedule(x, x / 2, 10)


# The formula.


def known(case, tree):
    """What references take; of leaves of one entry those that see the whole tree at once."""
    seen = MULTIPLIERS if case.memory[1] else MULTIPLIERS.keys() - {"one"}
    return {path: value for path, value in flat(tree).items() if path in seen}


def check(case, got, reference, t, params, updates, grads, tolerances):
    """Compare each leaf with the reference; `tolerances` are (rtol, atol) by dtype."""
    numbers = [known(case, tree) for tree in (params, updates, grads)]
    want = reference(falling(case.x)(t), {path: MULTIPLIERS[path] for path in numbers[0]}, *numbers)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, updates)
    for leaf, value, update in zip(paths.leaves(got), *leaf_lists(got, updates), strict=True):
        if MULTIPLIERS.get(leaf.path) == 0:
            np.testing.assert_array_equal(value, update)
        if leaf.path in want:
            value, (rtol, atol) = np.asarray(value, np.float64), tolerances[str(leaf.dtype)]
            np.testing.assert_allclose(value, want[leaf.path], rtol, atol, err_msg=leaf.path)


def leaf_lists(*trees):
    return map(jax.tree.leaves, trees)


def check_steps(case, init, update, steps, params, tolerances):
    """Take steps (Δ, g), each compared with the reference -> state and θ, and whether it acted."""
    state, reference, acted = init(params), case.reference(known(case, params)), False
    for t, (updates, grads) in enumerate(steps):
        got, state = update(updates, state, params, grad=grads)
        check(case, got, reference, t, params, updates, grads, tolerances)
        acted |= any(map(np.any, map(np.not_equal, *leaf_lists(got, updates))))
        params = jax.tree.map(lambda p, u: p if u is None else p + np.asarray(u), params, got)
    return state, params, acted


@rows
def test_it_equals_the_reference_in_float64_to_twelve_digits(case, x64):
    def wide(seed, scale=1.0):
        leaves = tree(seed, np.float64, scale)
        return leaves | {"a": {"bias": leaves["a"]["bias"]}}

    steps = [(wide(10 + t, s), wide(30 + t, 1 + 0.1 * t)) for t, s in enumerate(SCALES)]
    tx = build(case, falling(case.x), RULES[1:], wide(0))
    tolerances = {"float64": (1e-12, 1e-13)}
    init = jax.jit(tx.init) if any(case.memory) else tx.init
    state, _, acted = check_steps(case, init, jax.jit(tx.update), steps, wide(0), tolerances)
    assert int(state.count) == len(SCALES)
    assert acted


NARROW = {"float32": (2e-4, 5e-6), "bfloat16": (8e-3, 1e-4), "float16": (1e-3, 1e-5)}


AWKWARD = {
    "empty": np.zeros((3, 0), np.float32),
    "rows": np.zeros((0, 3), np.float32),
    "steps": np.arange(6, dtype=np.int32).reshape(2, 3),
    "still": {"kernel": np.ones((3, 4), np.float32)},
}
WITHOUT_UPDATE = {"steps": None, "still": {"kernel": None}, "key": None}


def mixed(seed, scale=1.0, last=1.0):
    """Narrow dtypes, and leaves that are empty, of one entry, or no weights."""
    numbers = tree(seed, scale=scale)
    return AWKWARD | {
        "a": {"bias": numbers["a"]["bias"]},
        "b": tree(seed, jnp.bfloat16, scale)["b"],
        "c": {"kernel": tree(seed + 1, np.float16, scale * last)["a"]["kernel"]},
        "one": numbers["a"]["bias"][:1, None],
    }


def weights(seed):
    return mixed(seed) | {"key": jax.random.key(0)}


@functools.cache
def compiled(case):
    """What two properties share."""
    tx = build(case, falling(case.x), (*RULES[1:], ("**", 1.0)), weights(0))
    # compiled, it cannot refuse groups of zeros
    return jax.jit(tx.init) if any(case.memory) else tx.init, jax.jit(tx.update)


NARROW = {"float32": (2e-4, 5e-6), "bfloat16": (8e-3, 1e-4), "float16": (1e-3, 1e-5)}


@first_rows
def test_it_equals_the_reference_in_narrow_dtypes_beside_awkward_leaves(case):
    """The last step of the float16 leaf is so long that its squares overflow: it stays finite."""
    scales = SCALES[3:]
    steps = [(mixed(10 + t, s) | WITHOUT_UPDATE, weights(30 + t)) for t, s in enumerate(scales)]
    init, update = compiled(case)
    start = init(weights(0))
    state, params, _ = check_steps(case, init, update, steps[:-1], weights(0), NARROW)
    far = mixed(14, scales[-1], 2000.0) | WITHOUT_UPDATE
    got, state = update(far, state, params, grad=steps[-1][1])
    chex.assert_tree_all_finite(got)
    chex.assert_trees_all_equal_structs(start, state)
    states = zip(*map(jax.tree_util.tree_leaves_with_path, (start, state)), strict=True)
    for (path, old), (_, new) in states:
        if jax.tree_util.keystr(path).endswith("['still']['kernel']"):
            np.testing.assert_array_equal(old, new)


@first_rows
def test_zeros_stay_zero(case):
    """And what lies at its anchor stays there."""
    init, update = compiled(case)
    zero = zeros(mixed(0)) | {"key": jax.random.key(0)}
    point = case.anchor if isinstance(case.anchor, float) else 0.0
    at = jax.tree.map(lambda x: np.full_like(x, point), mixed(0)) | {"key": jax.random.key(0)}
    state, still = init(zero), zeros(mixed(0)) | WITHOUT_UPDATE
    for _ in range(5):
        got, state = update(still, state, at, grad=zero)
        jax.tree.map(np.testing.assert_array_equal, got, still)
    got, _ = update(mixed(1) | WITHOUT_UPDATE, state, zero, grad=weights(1))
    chex.assert_tree_all_finite(got)


@first_rows
def test_uncompiled_steps_equal_the_reference_and_a_state_may_have_other_containers(case):
    """A state made with lists works for params in tuples, as nnx changes them."""
    trees = [{"a": [tree(seed, scale=s)["a"]]} for seed, s in enumerate((1.0, 0.1, 1.0))]
    tx = build(case, falling(case.x), KERNELS, trees[0])
    state, reference = tx.init(trees[0]), case.reference(flat(trees[0]))
    for t, container in enumerate((list, tuple)):
        params, updates, grads = ({"a": container(tree["a"])} for tree in trees)
        got, state = tx.update(updates, state, params, grad=grads)
        check(case, got, reference, t, params, updates, grads, NARROW)


# The strength and the multipliers.


@first_rows
def test_traced_strengths_and_multipliers_run_under_vmap_and_equal_the_reference(case):
    """The derivative with respect to the strength is finite, also at zero weights."""
    numbers = [(case.x / 2, 0.5), (case.x, 0.0), (case.x if case.idle is None else case.idle, 1.0)]
    params, updates, grads = tree(0)["a"], tree(1, scale=0.1)["a"], tree(2)["a"]
    steps = 2 if any(case.memory) else 1

    def take(x, m, params):
        tx = build(case, x, (("bias", 0.0), ("kernel", m)), params)
        state = tx.init(params)
        for _ in range(steps):
            got, state = tx.update(updates, state, params, grad=grads)
        return jnp.sum(got["kernel"]), got

    # with jax 0.8 the quick compiler divides 0 by 0 where XLA as usual does not
    is_quick = "optimization_level=0" in os.environ.get("XLA_FLAGS", "")
    without = lambda *arguments: (take(*arguments), 0.0)
    with_slope = without if is_quick else jax.value_and_grad(take, has_aux=True)
    many = jax.jit(jax.vmap(with_slope, in_axes=(0, 0, None)))
    columns = np.float32(numbers).T
    (_, together), slopes = many(*columns, params)
    half, off, idle = together["kernel"]
    reference, known = case.reference(flat(params)), {"bias": 0.0, "kernel": 0.5}
    for _ in range(steps):
        want = reference(case.x / 2, known, *map(flat, (params, updates, grads)))
    np.testing.assert_allclose(half, want["kernel"], *NARROW["float32"])
    np.testing.assert_array_equal(off, updates["kernel"])
    if case.idle is not None:
        np.testing.assert_allclose(idle, updates["kernel"], rtol=1e-6, atol=1e-6)
    assert np.isfinite(slopes).all()
    assert np.isfinite(many(*columns, zeros(params))[1]).all()


@rows
def test_multiplier_zero_leaves_a_leaf_alone_and_out_of_the_program(case):
    def program(rules):
        tx = build(case, rules=rules)
        state = jax.eval_shape(tx.init, tree(0))
        step = lambda updates, params, grads, state: tx.update(updates, state, params, grad=grads)
        return jax.make_jaxpr(step)(tree(1), tree(0), tree(2), state).jaxpr

    none, some = map(program, (NOTHING, (("a/kernel", 1.0), *NOTHING)))
    assert none.outvars[:3] == none.invars[:3]
    kept = [a is b for a, b in zip(some.outvars[:3], some.invars[:3], strict=True)]
    assert kept == [True, False, True]
    used = {id(x) for equation in some.eqns for x in equation.invars}
    looked_at = [id(x) in used for x in some.invars[:9]]
    assert not any(looked_at[i] for i in (0, 2, 3, 5, 6, 8))
    assert looked_at[1]


# The state.


@rows
def test_the_state_does_not_depend_on_rules_strength_or_schedule(case):
    variants = (
        {},
        {"x": case.x / 4, "rules": (("bias", 0.0), ("**", 0.25))},
        {"x": ending(case.x), "rules": (("bias", 0.0), ("**", 1))},
        {"x": wdjax.fixed(case.x), "rules": NOTHING},
    )
    first, *others = (jax.eval_shape(build(case, **kw).init, tree(0)) for kw in variants)
    for other in others:
        chex.assert_trees_all_equal_structs(first, other)
        chex.assert_trees_all_equal_shapes_and_dtypes(first, other)


@functools.cache
def widening(x):
    return lambda count: jnp.float64(x)


@first_rows
def test_it_remembers_what_the_table_says_in_float32_or_wider(case, x64):
    params = tree(0, np.float64) | {"b": tree(0, jnp.bfloat16)["b"]}
    tx = build(case, widening(case.x))  # must not widen what is remembered
    state = jax.eval_shape(tx.init, params)
    step = lambda params, state: tx.update(params, state, params, grad=params)[1]
    after = jax.eval_shape(step, params, state)
    chex.assert_trees_all_equal_structs(state, after)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    # so that a jitted step is traced once
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state, after)))
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
    params = jax.tree.map(jnp.asarray, tree(0)["a"])
    state = build(case, rules=KERNELS, params=params).init(params)
    leaves = jax.tree.leaves((params, state))
    assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


# What the lift answers, once per verb.


def start(case, **arguments):
    tx, params = build(case, **arguments), tree(0)
    return tx, tx.init(params), params, tree(1, scale=0.1), tree(2)


@verbs
def test_it_stands_in_a_chain_with_any_optimizer(case):
    start, grads, params = (tree(seed)["a"] for seed in (0, 2, 3))
    parts = [build(case, rules=KERNELS, params=start), optax.adam(0.01)]
    chain = optax.chain(*(parts if case.first else reversed(parts)))
    optimizer = adaptive.with_grad(chain) if case.needs_grad else chain
    got, _ = optimizer.update(grads, optimizer.init(start), params)
    want, _ = chain.update(grads, chain.init(start), params, grad=grads)
    chex.assert_trees_all_close(got, want, rtol=2e-6, atol=1e-6)
    plain, _ = optax.adam(0.01).update(grads, optax.adam(0.01).init(params), params)
    chex.assert_trees_all_close(got["bias"], plain["bias"], rtol=1e-6, atol=1e-6)


@verbs
def test_unknown_extra_arguments_are_ignored(case):
    params, updates, grads = (tree(seed, scale=0.1)["a"] for seed in range(3))
    tx = build(case, rules=KERNELS, params=params)
    state = tx.init(params)
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
    tx = build(case, NEGATIVE)
    message = rf"`{case.quantity}` is negative from step 5\d on and counts as 0 there"
    with pytest.warns(UserWarning, match=message):
        tx.init(tree(0))


@verbs
def test_wrong_rules_fail_at_init(case):
    tx = build(case, rules=(("a/kernl", 1.0), *NOTHING))
    with pytest.raises(wdjax.RuleError, match=r"'a/kernl' matches no parameter; did you mean"):
        tx.init(tree(0))
