"""A parameter keeps its dtype: every method and wrapper, in every library's own addition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from method_cases import METHODS

import wdjax
from wdjax import metrics, precision
from wdjax._lift.leaves import applied, widened

RULES = (("bias", 0.0), ("**", 1.0))
NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]


def params():
    """A mixed tree: a leaf of each dtype."""
    kernel = np.linspace(0.5, 2.0, 12).reshape(3, 4)
    leaves = {jnp.dtype(dtype).name: kernel.astype(dtype) for dtype in [*NARROW, np.float32]}
    return leaves | {"bias": np.ones(4, jnp.bfloat16)}


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
    "compensated(measured)": lambda optimizer: wdjax.compensated(metrics.measured(optimizer)),
}
OPTIMIZERS = {
    "sgdw": lambda: wdjax.sgdw(1e-2, weight_decay=0.1, rules=RULES),
    "adamw": lambda: wdjax.adamw(1e-2, weight_decay=0.1, rules=RULES),
    "adamw, implicit": lambda: wdjax.adamw(1e-2, weight_decay=0.1, rules=RULES, implicit=True),
    "lionw": lambda: wdjax.lionw(1e-2, weight_decay=0.1, rules=RULES),
    "L2 before momentum": lambda: optax.chain(
        wdjax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9)
    ),
}


def kept(optimizer, add, grads, **extra):
    """Check dtypes after a step, on paper: they need no numbers."""

    def run(params, grads):
        updates, _ = optimizer.update(grads, optimizer.init(params), params, **extra)
        return add(params, updates)

    assert dtypes(jax.eval_shape(run, params(), grads)) == dtypes(params())


@pytest.mark.filterwarnings("ignore:.*swallow")
@pytest.mark.parametrize("case", METHODS.values(), ids=METHODS)
def test_no_method_changes_a_dtype(case):
    arguments = {"rules": RULES}
    if case.anchor is not None:
        full = lambda p: np.full_like(p, case.anchor)
        is_number = not isinstance(case.anchor, str)
        arguments["anchor"] = jax.tree.map(full, params()) if is_number else case.anchor
    kept(case.build(case.x, **arguments), plain, params(), grad=params())


@pytest.mark.parametrize("add", LIBRARIES.values(), ids=LIBRARIES)
@pytest.mark.parametrize("wrap", ["compensated", "stochastically_rounded"])
def test_no_wrapper_changes_a_dtype_in_any_addition(wrap, add):
    """Nor do gradients in float32."""
    wide = jax.eval_shape(lambda: jax.tree.map(widened, params()))
    kept(WRAPPERS[wrap](OPTIMIZERS["sgdw"]()), add, wide)


@pytest.mark.parametrize(
    ("wrap", "make"),
    [
        ("compensated", "adamw"),
        ("compensated", "L2 before momentum"),
        ("compensated(measured)", "sgdw"),
        ("stochastically_rounded", "adamw, implicit"),
        ("stochastically_rounded", "lionw"),
    ],
)
def test_no_wrapper_changes_a_dtype_around_any_optimizer(wrap, make):
    kept(WRAPPERS[wrap](OPTIMIZERS[make]()), plain, params())


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
    ("add", "dtype"),
    [(optax.apply_updates, jnp.float16), (equinox, jnp.bfloat16), (plain, jnp.bfloat16)],
)
def test_a_thousand_decays_of_a_mixed_tree_are_those_of_float32(add, dtype):
    """(1 − s)^T to 1%, and one compilation."""
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
        return add(theta, updates), state

    for _ in range(steps):
        theta, state = step(theta, state)
    assert len(traces) == 1
    assert dtypes(theta) == dtypes(start)
    want = np.asarray(start["kernel"], np.float64) * (1 - s) ** steps
    np.testing.assert_allclose(np.asarray(theta["kernel"], np.float64), want, rtol=0.01)


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
