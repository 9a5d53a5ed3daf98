"""Stacks of equal leaves: the same tree, the same steps, the same rules as without them."""

import functools

import jax
import jax.numpy as jnp
import models
import numpy as np
import optax
import pytest
import two_devices
from jax.sharding import NamedSharding, PartitionSpec

import wdjax
from wdjax import dynamics, stacking
from wdjax.penalties import ball, group_lasso, l1
from wdjax.stacking import stack, stack_like, stacked, unstack

STEPS = 3


def ones(shape, dtype=np.float32):
    return np.ones(shape, dtype)


def network(seed=0):
    """Three equal blocks, a head, and two leaves that share nothing."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    blocks = {f"block_{i}": {"kernel": normal(4, 4), "bias": normal(4)} for i in range(3)}
    return {**blocks, "embedding": normal(4, 4), "head": {"kernel": normal(4, 2)}, "count": (None,)}


PARAMS, GRADS = network(0), network(1)
STACKS, STACKED_GRADS = stack(PARAMS), stack(GRADS)
MIXED = (("block_1/kernel", 0.5), ("block_2/kernel", 0.0), *wdjax.standard())


def equal(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def close(left, right, **tolerance):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), left, right)


def trained(optimizer, params, grads, **extra):
    """The parameters and the state after some steps, in one program."""

    @jax.jit
    def run(params, grads, extra):
        def step(carry, _):
            params, state = carry
            updates, state = optimizer.update(grads, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0]

    return jax.device_get(run(params, grads, extra))


# The isomorphism.


def trees():
    yield "dicts", PARAMS
    yield "a bare array", jnp.ones(3)
    yield "nothing", {}
    yield "arrays of JAX", {"a": jnp.ones(2), "b": jnp.zeros(2)}
    yield "dtypes", [ones(2), ones(2, jnp.bfloat16), ones(2, int)]
    yield "keys", [jax.random.key(0), jax.random.key(1), jnp.ones(())]
    yield "NumPy", {"a": np.arange(3.0), "b": np.ones(3)}
    yield "empty leaves", [np.zeros((0, 3)), np.zeros((0, 3))]


@pytest.mark.parametrize("tree", [pytest.param(t, id=name) for name, t in trees()])
def test_unstack_gives_the_same_tree_back(tree):
    before, after = map(jax.tree.leaves, (tree, unstack(stack(tree))))
    assert jax.tree.structure(unstack(stack(tree))) == jax.tree.structure(tree)
    for x, y in zip(before, after, strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert bool((x == y).all())


@pytest.mark.parametrize(
    "build",
    [models.linen_transformer, models.linen_boxed, models.nnx_model, models.haiku_model,
     models.equinox_model],
    ids=lambda build: build.__name__,
)  # fmt: skip
def test_trees_of_every_library_come_back(build):
    def numbered(x):
        if not jnp.issubdtype(x.dtype, jnp.number):  # a random key
            return np.zeros(x.shape)
        return np.arange(x.size).astype(x.dtype).reshape(x.shape)

    params = jax.tree.map(numbered, build())
    equal(unstack(stack(params)), params)


def test_equal_leaves_share_a_stack_and_large_ones_stay_alone():
    shapes = [x.shape for x in stack(PARAMS).stacks]
    assert sorted(shapes) == [(3, 4), (4, 2), (4, 4, 4)]
    alone = {"a": ones((2, 200, 100)), "b": ones(3)}
    equal(unstack(stack(alone)), alone)
    large = {"a": ones((128, 128)), "b": ones((128, 128)), "c": ones((129, 128))}
    assert len(stack(large).stacks) == 2  # 16,384 numbers are small enough
    assert len(stack(large, most=128 * 128 - 1).stacks) == 3


def test_shapes_stack_as_arrays_do():
    traced, given = jax.eval_shape(stack, PARAMS), stack(jax.eval_shape(lambda: PARAMS))
    for shapes in traced, given:
        kinds = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
        assert kinds == jax.tree.map(lambda x: (x.shape, x.dtype), STACKS)
        assert unstack(shapes)["head"]["kernel"].shape == (4, 2)


def test_stack_like_undoes_unstack():
    equal(stack_like(on_stacks("adam"), unstack(on_stacks("adam"))), on_stacks("adam"))


def test_gradients_of_the_views_are_those_of_the_tree():
    def loss(tree):
        return sum(jnp.sum(jnp.sin(x) * i) for i, x in enumerate(jax.tree.leaves(tree)))

    def of_stacks(params):
        return loss(unstack(params))

    slope, slope_of_stacks = jax.jit(jax.grad(loss)), jax.jit(jax.grad(of_stacks))
    wanted = jax.device_get([slope(PARAMS), slope(GRADS)])
    close(unstack(jax.device_get(slope_of_stacks(STACKS))), wanted[0], rtol=1e-6)
    # forward over reverse, and a batch of models
    _, theirs = jax.jvp(slope, (PARAMS,), (GRADS,))
    _, ours = jax.jvp(slope_of_stacks, (STACKS,), (STACKED_GRADS,))
    close(unstack(jax.device_get(ours)), theirs, rtol=1e-6)
    two = jax.tree.map(lambda x, y: np.stack([x, y]), STACKS, STACKED_GRADS)
    both = jax.device_get(jax.vmap(slope_of_stacks)(two))
    for i, want in enumerate(wanted):
        close(unstack(jax.tree.map(lambda x, i=i: x[i], both)), want, rtol=1e-6)


def test_equal_layers_share_their_kernels():
    """Views at known positions would be compiled one by one; a shared kernel is one computation."""

    params = stack([ones((8, 8))] * 6)
    program = jax.jit(lambda params: [jnp.sin(x) for x in unstack(params)])
    text = program.lower(params).compile().as_text()
    assert " slice(" not in text
    assert "dynamic-slice" in text


# Steps: any optimizer, the same numbers.

STEPPERS = {
    "adam": optax.adam(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "lamb": optax.lamb(0.1),
    "muon": optax.contrib.muon(0.1),
    "block RMS": optax.chain(optax.clip_by_block_rms(0.5), optax.sgd(0.1)),
    "micro-steps": optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation(),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "decayed lamb": wdjax.decayed(optax.lamb)(0.1, weight_decay=0.1),
    "mixed multipliers": wdjax.adamw(0.1, weight_decay=0.1, rules=MIXED),
    "coupled": optax.chain(wdjax.add_decayed_weights(0.1), optax.adam(0.1)),
    "masked": optax.adamw(0.1, weight_decay=0.1, mask=wdjax.mask((("head/*", 1), ("**", 0)))),
    "l1": optax.chain(optax.sgd(0.1), wdjax.prox_weights(0.1, l1, rules=MIXED)),
    "group lasso": optax.chain(optax.sgd(0.1), wdjax.prox_weights(0.3, group_lasso(-2))),
    "ball": optax.chain(optax.sgd(0.1), wdjax.prox_weights(1.0, ball(1.0, None), rules=MIXED)),
    "cautious": wdjax.adamw(0.1, weight_decay=0.1, gate=wdjax.gates.cautious),
    "anchored": wdjax.adamw(0.1, weight_decay=0.1, anchor="init"),
    "CPR": optax.chain(optax.sgd(0.1), wdjax.adaptive.cpr(wdjax.bounds.dependent(0.9))),
    "norm control": optax.chain(optax.sgd(0.1), wdjax.radial.norm_control(0.1, axes=-2)),
    "hyperball": wdjax.radial.hyperball(0.1, axes=None),
    "compensated": wdjax.compensated(wdjax.adamw(0.1, weight_decay=0.1)),
}


@functools.cache
def on_the_tree(name):
    return trained(STEPPERS[name], PARAMS, GRADS)


@functools.cache
def on_stacks(name):
    return trained(stacked(STEPPERS[name]), STACKS, STACKED_GRADS)


SLOW = {"adafactor", "muon", "decayed lamb", "CPR", "norm control", "hyperball", "compensated",
        "micro-steps", "injected"}  # fmt: skip  # some seconds each


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in STEPPERS]
)
@pytest.mark.first_is_quick
def test_a_step_on_stacks_is_the_step_on_the_tree(name):
    params, state = on_the_tree(name)
    ours, our_state = on_stacks(name)
    # Muon's iteration magnifies what two programs round differently
    tolerance = {"atol": 1e-4 if name == "muon" else 1e-7, "rtol": 1e-6}
    close(unstack(ours), params, **tolerance)
    close(unstack(our_state), state, **tolerance)


def test_norms_of_stacks_would_be_other_norms():
    """What `stacked` is for: without it, LAMB takes the norm of a whole stack."""
    params, _ = on_the_tree("lamb")
    wrong, _ = trained(optax.lamb(0.1), STACKS, STACKED_GRADS)
    assert not np.allclose(unstack(wrong)["block_0"]["kernel"], params["block_0"]["kernel"])


def test_one_multiplier_for_a_stack_gives_the_same_bits():
    optimizer = wdjax.adamw(0.1, weight_decay=0.1, rules=(("kernel", 1.0), ("**", 0.0)))
    params, grads = ({k: v for k, v in t.items() if k != "embedding"} for t in (PARAMS, GRADS))
    expected, _ = trained(optimizer, params, grads)
    ours, _ = trained(stacked(optimizer), stack(params), stack(grads))
    equal(unstack(ours), expected)


def test_multiplier_0_inside_a_mixed_stack_changes_no_bit():
    decay = wdjax.prox_weights(0.1, l1, rules=MIXED)  # θ + Δ − θ would round

    @jax.jit
    def update(grads, params):
        return stacked(decay).update(grads, stacked(decay).init(params), params)[0]

    after = unstack(jax.device_get(update(STACKED_GRADS, STACKS)))
    for path in ("block_2", "kernel"), ("block_0", "bias"):
        np.testing.assert_array_equal(after[path[0]][path[1]], GRADS[path[0]][path[1]])
    assert not np.array_equal(after["block_1"]["kernel"], GRADS["block_1"]["kernel"])


def test_other_trees_pass_through_untouched():
    equal(trained(stacked(optax.adam(0.1)), PARAMS, GRADS), on_the_tree("adam"))


def test_what_looks_at_all_leaves_works_outside():
    def clipped(inner):
        return optax.apply_if_finite(optax.chain(optax.clip_by_global_norm(0.1), inner), 3)

    inner = wdjax.adamw(0.1, weight_decay=0.1)
    expected, _ = trained(clipped(inner), PARAMS, GRADS)
    ours, _ = trained(clipped(stacked(inner)), STACKS, STACKED_GRADS)
    close(unstack(ours), expected, rtol=1e-6)


def test_extra_arguments_arrive():
    inner = optax.contrib.reduce_on_plateau(patience=1, factor=0.5)
    expected, _ = trained(optax.chain(optax.sgd(0.1), inner), PARAMS, GRADS, value=np.float32(1))
    ours, _ = trained(
        stacked(optax.chain(optax.sgd(0.1), inner)), STACKS, STACKED_GRADS, value=np.float32(1)
    )
    close(unstack(ours), expected, rtol=1e-6)
    gradient_in_use = wdjax.decay_weights(0.1, gate=lambda param, update, grad: grad > 0)
    expected, _ = trained(gradient_in_use, PARAMS, GRADS, grad=GRADS)
    ours, _ = trained(stacked(gradient_in_use), STACKS, STACKED_GRADS, grad=STACKED_GRADS)
    close(unstack(ours), expected, rtol=1e-6)


def test_the_state_is_as_small_as_without():
    states = (jax.eval_shape(o.init, STACKS) for o in (stacked(optax.adam(0.1)), optax.adam(0.1)))
    ours, theirs = ([x.shape for x in jax.tree.leaves(state)] for state in states)
    assert ours == theirs


def test_few_kernels_for_many_leaves():
    params = stack([ones(3)] * 50)
    optimizer = stacked(wdjax.adamw(0.1, weight_decay=0.1, rules=(("**", 1.0),)))
    state = jax.eval_shape(optimizer.init, params)
    program = jax.jit(optimizer.update).lower(params, state, params).compile()
    assert program.as_text().count(" fusion(") < 10


def test_leaves_that_stay_alone_cost_what_they_cost_without():
    def program(optimizer, params):
        state = jax.eval_shape(optimizer.init, params)
        compiled = jax.jit(optimizer.update).lower(params, state, params).compile()
        return compiled.cost_analysis()["bytes accessed"], compiled.as_text().count(" fusion(")

    params = {name: {"kernel": ones((16, 16))} for name in "abc"}
    optimizer = wdjax.adamw(0.1, weight_decay=0.1)
    expected = program(optimizer, params)
    assert program(stacked(optimizer), stack(params, most=1)) == expected
    assert program(stacked(optimizer), stack(params)) != expected


# In the rest of the house.


def test_audit_and_penalties_see_the_leaves():
    rows = wdjax.audit(STACKS, strength=0.1).rows
    assert rows == wdjax.audit(PARAMS, strength=0.1).rows
    shapes = jax.eval_shape(stack, PARAMS)
    assert wdjax.audit(shapes, strength=0.1).rows == rows
    value = jax.jit(lambda tree: wdjax.penalty_value(wdjax.penalties.l2, tree))
    np.testing.assert_allclose(value(STACKS), value(PARAMS), rtol=1e-6)


@pytest.mark.slow  # it is measured
def test_predictions_see_the_leaves():
    declared = {"weight_decay": 0.1, "steps": 100}
    ours = dynamics.predict_declared(stack(PARAMS), dynamics.adam(), 1e-3, **declared)
    theirs = dynamics.predict_declared(PARAMS, dynamics.adam(), 1e-3, **declared)
    assert str(ours) == str(theirs)
    optimizer = stacked(wdjax.adamw(1e-3, weight_decay=0.1))
    run = {"learning_rate": 1e-3, "steps": 100}
    measured = dynamics.predict_each(stack(PARAMS), optimizer, dynamics.adam(), **run)
    assert str(measured) == str(theirs)


@pytest.mark.slow  # two measured optimizers to compile
def test_readings_see_the_leaves():
    def measured(inner):
        return wdjax.metrics.measured(inner, per="leaf", every=1)

    _, state = trained(measured(optax.adam(0.1)), PARAMS, GRADS)
    _, ours = trained(measured(stacked(optax.adam(0.1))), STACKS, STACKED_GRADS)
    assert "block_1/kernel" in wdjax.metrics.latest(ours)
    close(wdjax.metrics.latest(ours), wdjax.metrics.latest(state), rtol=1e-5)


@pytest.mark.slow  # two whole trainings to compile
def test_fit_trains_stacks_as_it_trains_the_tree():
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(40, 4)).astype("float32")}
    params = {k: v for k, v in PARAMS.items() if k not in ("embedding", "count")}

    def loss_fn(tree, batch):
        x = batch["x"]
        for i in range(3):
            block = tree[f"block_{i}"]
            x = jnp.tanh(x @ block["kernel"] + block["bias"][None])
        return jnp.mean((x @ tree["head"]["kernel"] - 1) ** 2)

    def run(loss_fn, params, optimizer):
        step = wdjax.make_train_step(loss_fn, optimizer, max_grad_norm=1.0)
        state = wdjax.TrainState.create(params, optimizer)
        return wdjax.fit(step, state, data, epochs=5, batch_size=16, progress=False)

    optimizer = wdjax.adamw(0.01, weight_decay=0.1)
    state, history = run(loss_fn, params, optimizer)
    ours, our_history = run(
        lambda stacks, batch: loss_fn(unstack(stacks), batch), stack(params), stacked(optimizer)
    )
    close(unstack(ours.params), state.params, rtol=2e-5, atol=1e-6)
    close(unstack(ours.opt_state), state.opt_state, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(our_history.metrics["loss"], history.metrics["loss"], rtol=1e-5)


def test_sharded_leaves_stay_sharded():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split, whole = (NamedSharding(mesh, PartitionSpec(*spec)) for spec in (("x",), ()))
    params = [jax.device_put(ones((2, 3)), sharding) for sharding in (split, split, whole, whole)]
    stacks = stack(params).stacks
    assert [x.sharding.spec for x in stacks] == [
        PartitionSpec(None, "x"), PartitionSpec(None),
    ]  # fmt: skip
    assert [x.sharding.is_equivalent_to(y.sharding, 2) for x, y in zip(
        unstack(stack(params)), params, strict=True)] == [True] * 4  # fmt: skip


ON_TWO_DEVICES = """
import contextlib, jax, jax.numpy as jnp, numpy as np, optax, wdjax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from wdjax.stacking import stack, stacked, unstack
rng = np.random.default_rng(0)
host = [rng.normal(size=s).astype("float32") for s in [(8, 4)] * 4 + [(8,)] * 3]
rules = (("0", 0.5), ("1", 0.0), ("**", 1.0))
for factory, reduces in ((optax.adam, False), (optax.lamb, True)):
    optimizer = wdjax.decayed(factory)(0.1, weight_decay=0.1, rules=rules)
    expected, _ = jax.jit(optimizer.update)(host, optimizer.init(host), host)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("x",), axis_types=(kind,))
        with jax.set_mesh(mesh) if kind == AxisType.Explicit else contextlib.nullcontext():
            params = stack(jax.device_put(host, NamedSharding(mesh, P("x"))))
            tx = stacked(optimizer)
            state = tx.init(params)
            update = jax.jit(tx.update).lower(params, state, params).compile()
            updates, new = update(params, state, params)
            for before, after in zip(params.stacks, updates.stacks, strict=True):
                assert not before.is_fully_replicated
                assert after.sharding.is_equivalent_to(before.sharding, before.ndim)
            for before, after in zip(*map(jax.tree.leaves, (state, new)), strict=True):
                assert after.is_fully_replicated == (after.ndim == 0)
            text = update.as_text()
            assert ("all-reduce(" in text) == reduces and "all-gather(" not in text
            for ours, theirs in zip(unstack(updates), expected, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
print("ok")
"""


@pytest.mark.slow  # a fresh process
def test_stacks_on_two_devices_take_the_steps_of_one():
    assert two_devices.printed(ON_TWO_DEVICES).strip() == "ok"


# What cannot work.


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
        optax.apply_if_finite(optax.sgd(0.1), 3),
        optax.contrib.dadapt_adamw(0.1),
        wdjax.metrics.measured(wdjax.adamw(0.1, weight_decay=0.1, rules=(("**", 1.0),))),
    ],
    ids=["global norm", "all finite", "d-adaptation", "measured"],
)
@pytest.mark.parametrize("leaves", [2, 4])
def test_leaves_that_act_on_each_other_are_refused(optimizer, leaves):
    """Also where there is but one stack, whose leaves could pass for one."""
    params = stack([ones(3) for _ in range(min(leaves, 3))] + [ones(2)] * (leaves - 3))
    tx = stacked(optimizer)
    with pytest.raises(TypeError, match=r"one by one.*Put that part outside"):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)


def test_an_error_of_the_optimizer_itself_is_passed_on():
    calls = []

    def update(updates, state, params=None):
        calls.append(0)
        if len(calls) > 1:  # once to see what comes out, once to compute it
            raise ValueError("its own")
        return updates, state

    tx = stacked(optax.GradientTransformation(optax.sgd(0.1).init, update))
    with pytest.raises(ValueError, match="its own"):
        jax.eval_shape(tx.update, STACKS, jax.eval_shape(tx.init, STACKS), STACKS)


def test_random_numbers_are_refused():
    params = STACKS
    tx = stacked(optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(0)), optax.sgd(0.1)))
    with pytest.raises(TypeError, match="draws random numbers"):
        jax.eval_shape(tx.update, params, jax.eval_shape(tx.init, params), params)


def test_decay_outside_of_stacked_is_refused():
    with pytest.raises(TypeError, match=r"one by one. Wrap it.*stacking\.stacked"):
        wdjax.adamw(0.1, weight_decay=0.1).init(STACKS)


def test_a_mask_that_parts_a_stack_is_refused():
    tx = stacked(optax.adamw(0.1, mask=wdjax.mask(MIXED)))
    with pytest.raises(wdjax.RuleError, match="treat the leaves of one stack differently"):
        tx.init(STACKS)


def test_rules_that_match_nothing_are_refused():
    tx = stacked(wdjax.adamw(0.1, weight_decay=0.1, rules=(("kernal", 1.0), ("**", 0.0))))
    with pytest.raises(wdjax.RuleError, match="matches no parameter; did you mean"):
        tx.init(STACKS)


def test_bad_trees_are_refused():
    with pytest.raises(TypeError, match="must not be stacked"):
        stack({"a": STACKS})
    with pytest.raises(TypeError, match="leaf 'a' is a float"):
        stack({"a": 1.0})
    with pytest.raises(ValueError, match="only in the second: 'b'"):
        stack_like(stack({"a": ones(2)}), {"a": ones(2), "b": ones(2)})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            [ones((2, 5, 3)), ones((7, 2)), ones(4)],
            r"'0' must be float32\[2, 3\], is float32\[2, 5, 3\], '1' must be .* float32\[7, 2\]\.",
        ),
        (
            [ones((2, 3)), ones((2, 3), jnp.bfloat16), ones(4)],
            r"; '1' must be float32\[2, 3\], is bfloat16\[2, 3\]\.",
        ),
        ([ones((2, 3)), ones((2, 3)), ones(5)], r"'2' must be float32\[4\], is"),
        ([ones((2, 3)), ones((2, 3)), {"a": ones(4)}], r"only in the first: '2'"),
    ],
    ids=["shapes", "dtype", "a leaf alone", "structure"],
)
def test_trees_that_do_not_fit_are_named(tree, message):
    """Unequal leaves were joined, or their difference was named in an empty sentence."""
    template = stack([ones((2, 3)), ones((2, 3)), ones(4)])
    with pytest.raises(ValueError, match="`tree` must be like `template` unstacked.*" + message):
        stack_like(template, tree)


def test_a_state_of_other_shapes_is_named_by_its_path():
    """Also where the memory has not the shape of its parameter, as that of a group has not."""
    optimizer = stacked(wdjax.adaptive.cpr(wdjax.bounds.dependent(1.0)))
    state = jax.device_get(jax.jit(optimizer.init)(STACKS))
    saved = unstack(state)
    equal(stack_like(jax.eval_shape(optimizer.init, STACKS), saved), state)
    wrong = jax.tree.map(lambda x: x[None], saved)
    with pytest.raises(ValueError, match=r"block_0/kernel' must be float32\[.*, is float32\[1"):
        stack_like(state, wrong)


def test_different_stacks_in_one_step_are_refused():
    tx = stacked(optax.adam(0.1))
    params = STACKS
    with pytest.raises(ValueError, match="stacked alike"):
        tx.update(stack(GRADS, most=1), tx.init(params), params)


def test_layouts_compare_by_content():
    one, two = STACKS.layout, STACKED_GRADS.layout
    assert one == two
    assert hash(one) == hash(two)
    assert one != stack(PARAMS, most=1).layout
    assert one != stacking


def test_masks_inside_hide_whole_stacks():
    tree = {f"b{i}": {"kernel": ones((3, 3)) + i, "bias": ones(3)} for i in range(3)}
    inner = optax.masked(wdjax.sgdw(0.1, weight_decay=0.5), wdjax.mask(wdjax.standard()))
    want, _ = trained(inner, tree, tree)
    ours, _ = trained(stacked(inner), stack(tree), stack(tree))
    close(unstack(ours), want, rtol=1e-6)


def test_a_pytree_as_anchor_is_refused_with_what_to_do():
    tree = {f"b{i}": ones((3, 3)) for i in range(3)}
    optimizer = stacked(wdjax.decay_weights(0.1, anchor=tree))
    with pytest.raises(TypeError, match=r"`anchor` must not be a pytree inside `stacked`"):
        optimizer.init(stack(tree))
