"""A parameter keeps its dtype: every method and wrapper, in every library's own addition."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import two_devices
from method_cases import LEARNED, METHODS, VERBS, first_quick

import wdjax
from wdjax import adaptive, anchors, metrics, penalties, precision, stacking
from wdjax._lift.leaves import applied, widened

RULES = (("bias", 0.0), ("**", 1.0))
NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]


def params(*dtypes):
    """A mixed tree: a leaf of each dtype."""
    kernel = np.linspace(0.5, 2.0, 12).reshape(3, 4)
    leaves = {jnp.dtype(d).name: kernel.astype(d) for d in dtypes or [*NARROW, np.float32]}
    return leaves | {"bias": np.ones(4, dtypes[0] if dtypes else jnp.bfloat16)}


def dtypes(tree):
    return jax.tree.map(lambda x: str(x.dtype), tree)


# The libraries' additions.


def plain(params, updates):
    return jax.tree.map(lambda p, u: p + u, params, updates)


def equinox(params, updates):
    return pytest.importorskip("equinox").apply_updates(params, updates)


def nnx(params, updates):
    """What `nnx.Optimizer.update` does with an optimizer's updates."""
    nnx = pytest.importorskip("flax.nnx")
    model, step = (nnx.Dict(jax.tree.map(nnx.Param, tree)) for tree in (params, updates))
    given = optax.GradientTransformation(lambda _: (), lambda *_: (nnx.state(step), ()))
    nnx.Optimizer(model, given, wrt=nnx.Param).update(model, nnx.state(model))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


LIBRARIES = {"optax": optax.apply_updates, "equinox": equinox, "plain": plain, "nnx": nnx}
WRAPPERS = {
    "compensated": wdjax.compensated,
    "stochastically_rounded": lambda optimizer: wdjax.stochastically_rounded(optimizer, 0),
}


def of_stacks(optimizer):
    """An optimizer of leaves around one of stacks."""
    inner = stacking.stacked(optimizer)

    def update(grads, state, params, **extra):
        updates, state = inner.update(stacking.stack(grads), state, stacking.stack(params), **extra)
        return stacking.unstack(updates), state

    return optax.GradientTransformationExtraArgs(lambda p: inner.init(stacking.stack(p)), update)


DECAY = {"weight_decay": 0.1, "rules": RULES}
OPTIMIZERS = {
    **{name: wrap(wdjax.sgdw(1e-2, **DECAY)) for name, wrap in WRAPPERS.items()},
    "compensated adamw": wdjax.compensated(wdjax.adamw(1e-2, **DECAY)),
    "compensated L2 before momentum": wdjax.compensated(
        optax.chain(wdjax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))
    ),
    "compensated(measured)": wdjax.compensated(metrics.measured(wdjax.sgdw(1e-2, **DECAY))),
    "rounded adamw, implicit": wdjax.stochastically_rounded(
        wdjax.adamw(1e-2, **DECAY, implicit=True), 0
    ),
    "rounded lionw": wdjax.stochastically_rounded(wdjax.lionw(1e-2, **DECAY), 0),
    "measured": metrics.measured(wdjax.adamw(1e-2, **DECAY)),
    "stacked": of_stacks(wdjax.adamw(1e-2, **DECAY)),
    "compensated(stacked)": wdjax.compensated(of_stacks(wdjax.sgdw(1e-2, **DECAY))),
    "decayed": wdjax.decayed(optax.rmsprop)(1e-2, **DECAY),
    "metric": wdjax.adamw(
        1e-2, **DECAY, penalty=penalties.l1, implicit=True, metric="preconditioner"
    ),
    "anchors.ema": optax.chain(
        optax.sgd(1e-2), wdjax.decay_weights(0.1, anchor=anchors.ema(0.9), rules=RULES)
    ),
    "anchors.passed": optax.chain(
        optax.sgd(1e-2), wdjax.decay_weights(0.1, anchor=anchors.passed(), rules=RULES)
    ),
    "mask": optax.adamw(1e-2, weight_decay=0.1, mask=wdjax.mask(RULES)),
    "with_grad": adaptive.with_grad(optax.chain(optax.sgd(1e-2), adaptive.swd(0.1, rules=RULES))),
}
WIDE = [name for name in OPTIMIZERS if name.startswith(("compensated", "stoch", "rounded"))]


def kept(optimizer, tree, grads, **extra):
    """Check two steps on paper: dtypes after every addition, and that one program takes both."""
    for library in ("equinox", "flax.nnx"):  # an import while tracing is another trace
        pytest.importorskip(library)
    traces = []

    @jax.jit
    def step(tree, state, grads, extra):
        traces.append(1)
        updates, state = optimizer.update(grads, state, tree, **extra)
        return {name: add(tree, updates) for name, add in LIBRARIES.items()}, state

    state = jax.eval_shape(optimizer.init, tree)
    for _ in range(2):
        added, state = jax.eval_shape(step, tree, state, grads, extra)
        for name, after in added.items():
            assert dtypes(after) == dtypes(tree), name
    assert len(traces) == 1


def trees(name):
    """A mixed tree, and one of a single dtype: for each method another one."""
    yield params()
    yield params(NARROW[zlib.crc32(name.encode()) % len(NARROW)])


def made(case, tree, x):
    arguments = {"rules": RULES}
    if case.anchor is not None:
        full = lambda p: np.full_like(p, case.anchor)
        is_number = not isinstance(case.anchor, str)
        arguments["anchor"] = jax.tree.map(full, tree) if is_number else case.anchor
    return case.build(x, **arguments)


@pytest.mark.filterwarnings("ignore:.*swallow")
@pytest.mark.parametrize("case", first_quick(METHODS | LEARNED))
def test_no_method_changes_a_dtype(case, request):
    for tree in trees(request.node.name):
        kept(made(case, tree, case.x), tree, tree, grad=tree)


@pytest.mark.filterwarnings("ignore:.*swallow")
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.first_is_quick
def test_strengths_in_float64_change_no_dtype(verb, x64):
    case = VERBS[verb]
    strength = jnp.asarray(case.x, jnp.float64)
    kept(made(case, params(), strength), params(), params(), grad=params())


@pytest.mark.filterwarnings("ignore:.*swallow")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_wrapper_changes_a_dtype(name):
    for tree in trees(name):
        kept(optax.with_extra_args_support(OPTIMIZERS[name]), tree, tree, anchor=tree)


@pytest.mark.parametrize("name", WIDE)
def test_nor_do_gradients_in_float32(name):
    kept(OPTIMIZERS[name], params(), jax.eval_shape(lambda: jax.tree.map(widened, params())))


# Sums in the parameter's dtype.


def added(dtype, params, updates):
    """θ + Δ of the library, and where `compensated` believes that it lands."""
    of_jax = jax.jit(plain)(params, updates)
    believed = jax.jit(lambda p, u: precision._nearest(widened(p) + widened(u), dtype))
    return np.asarray(of_jax.astype(jnp.float32)), np.asarray(believed(params, updates))


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_every_sum_of_two_float8_numbers_lands_where_it_is_believed(dtype):
    numbers = np.arange(256, dtype=np.uint8).view(jnp.dtype(dtype))
    pairs = np.meshgrid(numbers.astype(np.float32), numbers.astype(np.float32))
    of_jax, believed = added(dtype, *(jnp.asarray(x.ravel(), dtype) for x in pairs))
    finite = np.abs(believed) <= float(jnp.finfo(dtype).max)  # what overflows is not a number
    assert finite.sum() > 60_000
    np.testing.assert_array_equal(of_jax[finite], believed[finite])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_16_bits_land_where_they_are_believed(dtype):
    """All sizes, and updates about as long as the weights, where most is rounded."""
    rng = np.random.default_rng(0)
    draw = lambda: rng.integers(0, 2**16, 200_000).astype(np.uint16).view(jnp.dtype(dtype))
    with np.errstate(all="ignore"):
        params, far = draw(), draw()
        near = (params.astype(np.float32) * rng.normal(size=params.size)).astype(params.dtype)
    for updates in (far, near):
        of_jax, believed = added(dtype, jnp.asarray(params), jnp.asarray(updates))
        # numbers of bfloat16 so small that float32 has no spacing for them are less precise
        seen = np.isfinite(of_jax) & ((np.abs(of_jax) > 2.0**-118) | (dtype == jnp.float16))
        assert seen.sum() > 150_000
        np.testing.assert_array_equal(of_jax[seen], believed[seen])
        small = np.isfinite(of_jax) & ~seen
        assert np.abs(of_jax[small] - believed[small]).max(initial=0.0) <= 2.0**-126


@functools.cache  # compiled once for all starts and goals
def run_to(name, dtype):
    def run(start, goal, steps):
        to_goal = optax.stateless(lambda updates, params: jax.tree.map(lambda p: goal - p, params))
        optimizer, theta = WRAPPERS[name](to_goal), jnp.full(64, start, dtype)

        def step(_, carry):
            updates, state = optimizer.update(carry[0], carry[1], carry[0])
            return carry[0] + updates, state

        return jax.lax.fori_loop(0, steps, step, (theta, optimizer.init(theta)))[0]

    return jax.jit(run)


def landed(name, dtype, start, goal, steps=1):
    """Where a weight is after an optimizer that asks for the way to `goal`."""
    return np.float32(run_to(name, dtype)(np.float32(start), np.float32(goal), steps))


@pytest.mark.parametrize("dtype", NARROW[1:])  # bfloat16 is as long as float32
@pytest.mark.first_is_quick
def test_a_step_longer_than_the_largest_number_is_finite(dtype):
    top = float(jnp.finfo(dtype).max)
    for name in ("compensated", "stochastically_rounded"):
        once, twice = (landed(name, dtype, -top, top, steps) for steps in (1, 2))
        assert (once == 0).all()
        assert (twice == top).all()


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2])
def test_a_sum_that_rounds_to_the_largest_number_is_that_one_at_random_too(dtype):
    top, eps = float(jnp.finfo(dtype).max), float(jnp.finfo(dtype).eps)
    above = top * (1 + eps / 5)  # less than half of the way to what would be the next number
    for name in ("compensated", "stochastically_rounded"):
        assert (landed(name, dtype, top / 2, above) == top).all()
        beyond = landed(name, dtype, top / 2, 2 * top)
        assert not np.isfinite(beyond).any()  # as without a wrapper: nothing is hidden


@pytest.mark.parametrize(
    ("library", "dtype"),
    [
        ("optax", jnp.float16),
        ("equinox", jnp.bfloat16),
        ("plain", jnp.float8_e4m3fn),
        ("nnx", jnp.bfloat16),
    ],
)
def test_a_thousand_decays_of_a_mixed_tree_are_those_of_float32(library, dtype):
    """(1 − s)^T to 1% with what is left over, and one compilation."""
    s, steps = 1e-4, 1_000
    decay = optax.chain(optax.set_to_zero(), wdjax.decay_weights(s, rules=RULES))
    optimizer, traces = wdjax.compensated(decay), []
    theta = {
        "kernel": np.linspace(1, 3, 16).astype(dtype),
        "wide": np.ones(4, np.float32),
        "bias": np.ones(2, np.float32),
    }
    start, state = theta, optimizer.init(theta)

    @jax.jit
    def step(theta, state):
        traces.append(1)
        updates, state = optimizer.update(jax.tree.map(jnp.zeros_like, theta), state, theta)
        return LIBRARIES[library](theta, updates), state

    for _ in range(steps):
        theta, state = step(theta, state)
    assert len(traces) == 1
    assert dtypes(theta) == dtypes(start)
    exact = np.float32(theta["kernel"]) + np.float32(state.residual["kernel"])
    want = np.float32(start["kernel"]) * (1 - s) ** steps
    np.testing.assert_allclose(exact, want, rtol=1e-4)
    np.testing.assert_array_equal(np.asarray(theta["kernel"]), exact.astype(dtype))


@pytest.mark.parametrize("dtype", NARROW[:2])
def test_what_the_addition_rounds_away_is_in_the_residual(dtype):
    """θ is finer than θ + Δ here, so that the library rounds once more."""
    goal = 5.013
    to_goal = optax.stateless(lambda updates, params: jax.tree.map(lambda p: goal - p, params))
    optimizer = wdjax.compensated(to_goal)
    theta = np.linspace(0.3, 0.4, 64).astype(dtype)
    updates, state = jax.jit(optimizer.update)(theta, optimizer.init(theta), theta)
    after = np.float32(theta + np.asarray(updates))
    np.testing.assert_allclose(after + np.asarray(state.residual), goal, rtol=1e-6)


@pytest.mark.parametrize("dtype", NARROW[2:])
def test_float32_updates_reach_float8_parameters(dtype):
    """Where Optax cannot add them."""
    new = jax.jit(applied)(np.ones(2, dtype), np.full(2, 0.5, np.float32))
    assert new.dtype == dtype
    np.testing.assert_array_equal(np.float32(new), 1.5)


# Partitioned parameters of NNX: two devices, a half on each, in a fresh process.

ON_TWO_DEVICES = """
import jax, jax.numpy as jnp, numpy as np, wdjax
from flax import nnx
from jax.sharding import AxisType

ones = nnx.with_partitioning(nnx.initializers.ones_init(), ("fsdp", None))
traces = []


@nnx.jit
def step(model, holder):
    traces.append(1)
    loss = lambda m: jnp.sum(m.kernel[...].astype(jnp.float32) ** 2)
    holder.update(model, nnx.grad(loss)(model))


def trained(wrap, dtype, devices):
    axes = {"axis_types": (AxisType.Auto,), "devices": jax.devices()[:devices]}
    with jax.set_mesh(jax.make_mesh((devices,), ("fsdp",), **axes)):
        how = {"param_dtype": dtype, "kernel_init": ones, "use_bias": False}
        model = nnx.Linear(4, 4, rngs=nnx.Rngs(0), **how)
        optimizer = wrap(wdjax.sgdw(0.01, weight_decay=1.0, momentum=0.5))
        holder = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
        for _ in range(3):
            for x in jax.tree.leaves(nnx.state(holder)):  # residual and momentum
                assert x.ndim < 2 or x.sharding.shard_shape(x.shape) == (4 // devices, 4)
            step(model, holder)
    return model.kernel[...]


def plain(optimizer, devices):
    mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])
    at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    theta = jax.device_put(jnp.ones((4, 4), jnp.bfloat16), at)
    state = optimizer.init({"kernel": theta})
    for x in jax.tree.leaves(state):
        assert x.ndim < 2 or x.sharding.shard_shape(x.shape) == (4 // devices, 4)


plain(wdjax.compensated(wdjax.sgdw(0.01, weight_decay=1.0, momentum=0.5)), 2)
rounded = lambda optimizer: wdjax.stochastically_rounded(optimizer, 0)
for wrap, dtype in ((wdjax.compensated, jnp.bfloat16), (wdjax.compensated, jnp.float8_e4m3fn),
                    (rounded, jnp.float16)):
    one, two = (trained(wrap, dtype, devices) for devices in (1, 2))
    assert one.dtype == two.dtype == dtype
    assert [piece.data.shape for piece in two.addressable_shards] == [(2, 4)] * 2
    np.testing.assert_array_equal(*(np.asarray(x, np.float32) for x in (one, two)))
    assert (np.asarray(two, np.float32) < 1).any()
assert len(traces) == 3 * 2, traces
print("ok")
"""


@pytest.mark.slow  # a fresh process
def test_partitioned_parameters_keep_dtype_and_place_on_two_devices():
    pytest.importorskip("flax.nnx")
    assert two_devices.printed(ON_TWO_DEVICES).strip() == "ok"
