import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax
from wdjax import precision
from wdjax.precision import stochastically_rounded

DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])

NARROW = [jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2]
WRAPPERS = pytest.mark.parametrize(
    "wrap",
    [wdjax.compensated, lambda optimizer: stochastically_rounded(optimizer, seed=0)],
    ids=["compensated", "stochastically_rounded"],
)


def decay_only(optimizer, params, steps):
    """Steps of zero gradient: decay alone acts."""
    zero = jax.tree.map(jnp.zeros_like, params)

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), None

    run = lambda params: jax.lax.scan(body, (params, optimizer.init(params)), length=steps)[0][0]
    return jax.jit(run)(params)


def kernel(dtype, size=64):
    side = int(size**0.5)
    return {"kernel": np.linspace(0.5, 3.0, side * side).reshape(side, side).astype(dtype)}


@DTYPES
def test_a_thousand_small_decays_end_within_one_percent_of_the_formula(dtype):
    optimizer = wdjax.sgdw(1e-3, weight_decay=0.1)
    got = decay_only(wdjax.compensated(optimizer), kernel(dtype), 1_000)["kernel"]
    assert got.dtype == dtype
    want = np.float64(kernel(dtype)["kernel"]) * (1 - 1e-4) ** 1_000
    assert np.allclose(np.float64(got), want, rtol=0.01)


def test_plain_bfloat16_ends_with_no_decay_at_all():
    """The problem itself, so that the test above cannot pass by accident."""
    params = kernel(jnp.bfloat16)
    with pytest.warns(UserWarning, match="swallow"):
        after = decay_only(wdjax.sgdw(1e-3, weight_decay=0.1), params, 1_000)
    assert np.array_equal(after["kernel"], params["kernel"])


@WRAPPERS
def test_float32_leaves_are_untouched_bit_for_bit(wrap):
    wide = {"kernel": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)}
    params = wide | {"bias": np.ones(3, jnp.bfloat16)}
    optimizer = wdjax.sgdw(0.01, weight_decay=0.1)
    step = lambda tx, p: tx.update(p, tx.init(p), p)[0]["kernel"]
    # operation by operation: two programs may round differently
    assert np.array_equal(step(wrap(optimizer), params), step(optimizer, wide))


@DTYPES
def test_parameter_plus_residual_is_the_exact_float32_trajectory(dtype):
    optimizer = wdjax.compensated(wdjax.sgdw(0.01, momentum=0.9, weight_decay=0.3))
    exact = wdjax.sgdw(0.01, momentum=0.9, weight_decay=0.3)
    params, wide = kernel(dtype), {"kernel": np.float32(kernel(dtype)["kernel"])}
    state, wide_state = optimizer.init(params), exact.init(wide)
    update, wide_update = jax.jit(optimizer.update), jax.jit(exact.update)
    for t in range(50):
        grads = {"kernel": np.sin(np.float32(kernel(dtype)["kernel"]) * 7 + t).astype(dtype)}
        updates, state = update(grads, state, params)
        params = jax.device_get(optax.apply_updates(params, updates))
        wide_grads = {"kernel": np.float32(grads["kernel"])}
        updates, wide_state = wide_update(wide_grads, wide_state, wide)
        wide = jax.device_get(optax.apply_updates(wide, updates))
        narrow = np.float32(params["kernel"])
        assert np.allclose(narrow + state.residual["kernel"], wide["kernel"], rtol=1e-5)
        assert np.allclose(narrow, wide["kernel"], rtol=float(jnp.finfo(dtype).eps))


def around(dtype):
    """Positive and negative numbers all over the dtype's range, subnormal ones among them."""
    info = jnp.finfo(dtype)
    # of bfloat16, whose range is float32's own, all but the last seven binades
    least = max(float(info.tiny) * float(info.eps), 2.0**-119)
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(least), np.log(float(info.max) / 2), 20_000))
    return (size * rng.choice([-1, 1], size.shape)).astype(np.float32)


nearest = jax.jit(precision._nearest, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def at_random(x, dtype, key):
    words = jax.random.bits(key, (2,), jnp.uint32)
    return precision._at_random(x, dtype, precision._uniform(words, np.uint32(0), x.shape))


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_to_nearest_is_the_cast(dtype):
    x = around(dtype)
    ties = x.astype(dtype).astype(np.float32) * np.float32(1 + jnp.finfo(dtype).eps / 2)
    for values in (x, ties, 0 * x):
        got = nearest(values, dtype)
        want = values.astype(jnp.dtype(dtype)).astype(np.float32)
        assert np.array_equal(got, want)


@pytest.mark.parametrize("dtype", NARROW)
def test_random_rounding_gives_one_of_the_two_neighbors(dtype):
    x = around(dtype)
    got = np.float64(at_random(x, dtype, jax.random.key(1)))
    assert np.array_equal(got, got.astype(jnp.dtype(dtype)).astype(np.float64)), "on the grid"
    nearest = x.astype(jnp.dtype(dtype)).astype(np.float64)
    power = np.maximum(2.0 ** np.floor(np.log2(np.abs(x))), float(jnp.finfo(dtype).tiny))
    assert np.all(np.abs(got - x) < power * float(jnp.finfo(dtype).eps) * (1 + 1e-6))
    exact = nearest.astype(np.float32)
    again = at_random(exact, dtype, jax.random.key(2))
    assert np.array_equal(again, exact), "numbers of the dtype stay"


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_random_rounding_is_right_on_average(dtype, share):
    """Five standard deviations of a mean of Bernoulli variables."""
    n, eps = 200_000, float(jnp.finfo(dtype).eps)
    x = -(1 + share * eps)  # between −1 and −1 − ε
    got = at_random(np.full(n, x, np.float32), dtype, jax.random.key(3))
    error = np.mean(np.float64(got)) - x
    assert abs(error) < 5 * eps * np.sqrt(share * (1 - share) / n)


def test_the_noise_is_uniform_and_no_entry_knows_another():
    """Mean, counts of the upper and of the lower 8 bits, spectrum: 20 steps of two leaves."""
    n = 2**16
    words = jax.random.bits(jax.random.key(0), (20, 2), jnp.uint32)
    draw = jax.vmap(precision._uniform, (None, 0, None))
    draws = jax.jit(jax.vmap(draw, (0, None, None)), static_argnums=2)(
        words, jnp.arange(2, dtype=jnp.uint32), (n,)
    ).reshape(40, n)
    units = np.int64(np.float64(draws) * 2**24)
    for byte in (units >> 16, units & 255):
        counts = np.stack([np.bincount(row, minlength=256) for row in byte])
        chi2 = np.sum((counts - n / 256) ** 2 / (n / 256), axis=1)  # 255 ± 23
        assert abs(chi2.mean() - 255) < 5 * 22.6 / np.sqrt(40)
        assert chi2.max() < 255 + 6 * 22.6
    centered = np.float64(draws) - 0.5
    assert abs(centered.mean()) < 5 / np.sqrt(12 * 40 * n)
    power = np.abs(np.fft.rfft(centered)[:, 1:]) ** 2 * 12 / n  # exponential, of mean 1
    assert power.max() < np.log(power.size) + 8
    between = centered @ centered.T * 12 / np.sqrt(n) - np.sqrt(n) * np.eye(40)
    assert np.abs(between - np.diag(np.diag(between))).max() < 5.5


def test_what_is_not_finite_stays_so():
    x = np.float32([np.inf, -np.inf, np.nan])
    for got in (nearest(x, jnp.bfloat16), at_random(x, jnp.bfloat16, jax.random.key(0))):
        assert np.array_equal(got, x, equal_nan=True)


@DTYPES
def test_a_thousand_small_random_decays_are_those_of_the_formula_on_average(dtype):
    params = kernel(dtype, 4_096)
    optimizer = stochastically_rounded(wdjax.sgdw(1e-3, weight_decay=0.1), seed=0)
    got = np.float64(decay_only(optimizer, params, 1_000)["kernel"])
    want = np.float64(params["kernel"]) * (1 - 1e-4) ** 1_000
    # each weight is a random walk of steps q: 3% at most here, where plain bfloat16 is off by 10%
    assert np.sqrt(np.mean((got / want - 1) ** 2)) < 0.03
    # four standard deviations of their mean
    assert np.isclose(np.mean(got), np.mean(want), rtol=4 * 0.03 / 64)


@pytest.mark.slow
def test_the_seed_alone_decides_the_noise():
    def run(seed):
        optimizer = stochastically_rounded(optax.sgd(1e-3), seed=seed)
        params = kernel(jnp.bfloat16)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
            params = optax.apply_updates(params, updates)
        return params["kernel"].astype(jnp.float32)

    assert np.array_equal(run(7), run(7))
    assert not np.array_equal(run(7), run(8))
    assert np.array_equal(run(7), run(jax.random.key(7)))
    assert np.array_equal(run(7), run(np.int32(7)))
    members = jax.jit(jax.vmap(run))(jnp.array([7, 8]))
    assert np.array_equal(members, [run(7), run(8)])
    jax.jit(run)(jax.random.key(7, impl="rbg"))


def test_no_two_leaves_and_no_two_steps_share_their_noise():
    params = {name: np.ones(1_000, jnp.bfloat16) for name in ("a", "b")}
    optimizer = stochastically_rounded(optax.sgd(1e-3), seed=0)
    update = jax.jit(optimizer.update)
    first, state = update(params, optimizer.init(params), params)
    second, _ = update(params, state, params)
    assert not np.array_equal(first["a"], first["b"])
    assert not np.array_equal(first["a"], second["a"])


@WRAPPERS
def test_it_keeps_structure_dtype_and_state_shapes(wrap):
    params = {"a": kernel(jnp.bfloat16)["kernel"], "n": np.int32(3), "none": None}
    params |= {"hole": optax.MaskedNode(), "still": np.ones(2, jnp.bfloat16)}
    optimizer = wrap(optax.sgd(0.1))
    state = optimizer.init(params)
    updates, after = jax.eval_shape(optimizer.update, params | {"still": None}, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert updates["still"] is None
    new = jax.eval_shape(optax.apply_updates, params["a"], updates["a"])
    assert new.dtype == jnp.bfloat16


@WRAPPERS
def test_a_float64_optimizer_leaves_the_state_in_float32(wrap, x64):
    params = kernel(jnp.bfloat16) | {"wide": np.ones(3)}
    optimizer = wrap(optax.sgd(np.float64(1e-3)))
    state = jax.eval_shape(optimizer.init, params)
    grads = jax.tree.map(lambda p: np.ones(p.shape), params)
    _, after = jax.eval_shape(optimizer.update, grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)


@WRAPPERS
def test_it_works_with_donated_buffers_and_inside_multi_steps(wrap):
    params = kernel(jnp.bfloat16) | {"bias": np.ones(3, np.float32)}
    optimizer = optax.MultiSteps(wrap(wdjax.sgdw(0.1, momentum=0.9, weight_decay=0.1)), 2)

    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.sin, params), state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    plain, donating = jax.jit(step), jax.jit(step, donate_argnums=(0, 1))
    want = plain(*plain(params, state))[0]
    got = donating(*donating(*jax.tree.map(jnp.copy, (params, state))))[0]
    chex.assert_trees_all_equal(got, want)


@WRAPPERS
def test_vmapped_members_are_runs_of_their_own(wrap):
    rates = np.float32([0.01, 0.3])

    @jax.jit
    def run(rate):
        return decay_only(wrap(wdjax.sgdw(rate, weight_decay=0.9)), kernel(jnp.bfloat16), 5)

    members = jax.jit(jax.vmap(run))(rates)["kernel"]
    for member, rate in zip(members, rates, strict=True):
        assert np.array_equal(member, run(rate)["kernel"])


@WRAPPERS
def test_a_derivative_passes_through_the_rounding(wrap):
    """d θ⁺ / d η = −g, as without rounding."""

    def after(rate):
        optimizer = wrap(optax.sgd(rate))
        params = {"w": np.ones(3, jnp.bfloat16)}
        grads = {"w": np.full(3, 2, np.float32)}
        return jnp.sum(optimizer.update(grads, optimizer.init(params), params)[0]["w"])

    assert np.isclose(jax.jit(jax.grad(after))(0.1), -6.0)


def test_the_residual_lies_where_its_parameter_lies():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = jax.device_put(kernel(jnp.bfloat16), sharding)
    state = wdjax.compensated(optax.sgd(0.1)).init(params)
    assert state.residual["kernel"].sharding == sharding


@WRAPPERS
def test_it_works_in_an_nnx_optimizer(wrap):
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 4, rngs=nnx.Rngs(0), param_dtype=jnp.bfloat16)
    optimizer = nnx.Optimizer(model, wrap(wdjax.adamw(1e-2, weight_decay=0.1)), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: m(jnp.ones((1, 4))).sum())(model))

    before = np.asarray(model.kernel[...], np.float32)
    for _ in range(3):
        step(model, optimizer)
    assert model.kernel[...].dtype == jnp.bfloat16
    assert np.all(np.asarray(model.kernel[...], np.float32) < before)


def test_the_state_holds_plain_arrays_that_a_checkpoint_can_keep():
    optimizer = stochastically_rounded(optax.sgd(0.1), seed=0)
    assert optimizer.init(kernel(jnp.bfloat16)).key.dtype == jnp.uint32


@WRAPPERS
def test_no_warning_once_the_decay_is_kept(wrap):
    wrap(wdjax.sgdw(1e-3, weight_decay=0.1)).init(kernel(jnp.bfloat16))


@WRAPPERS
def test_a_whole_model_with_its_functions_may_be_passed(wrap):
    """Equinox' own examples do: the gradient of a function is None."""
    params = {"kernel": np.ones((2, 2), jnp.bfloat16), "activation": None}
    optimizer = wrap(optax.sgd(0.1))
    state, model = optimizer.init(params), params | {"activation": jax.nn.relu}
    update = lambda tree: jax.jit(lambda: optimizer.update(params, state, tree))()
    chex.assert_trees_all_equal(update(model), update(params))


@WRAPPERS
def test_update_without_params_says_what_to_call(wrap):
    optimizer = wrap(optax.sgd(0.1))
    params = kernel(jnp.bfloat16)
    message = r"`(compensated|stochastically_rounded)` needs the current parameters; got"
    with pytest.raises(ValueError, match=message):
        optimizer.update(params, optimizer.init(params))


@WRAPPERS
@pytest.mark.parametrize(
    ("wrong", "shown"), [(optax.adam, "the function adam. Call it: adam"), (None, "None")]
)
def test_a_factory_is_no_optimizer(wrap, wrong, shown):
    message = rf"`optimizer` must be an Optax optimizer.*; got {shown}"
    with pytest.raises(TypeError, match=message):
        wrap(wrong)


@pytest.mark.parametrize("seed", [None, 0.5, True, "0"])
def test_a_seed_that_is_none_says_what_to_pass(seed):
    message = r"`seed` must be an integer or a random key; got .* Pass 0 or jax.random.key\(0\)"
    with pytest.raises(TypeError, match=message):
        stochastically_rounded(optax.sgd(0.1), seed=seed)


def test_an_old_style_key_is_the_same_seed():
    found = []
    for seed in (jax.random.PRNGKey(3), jax.random.key(3), 3):
        optimizer = stochastically_rounded(wdjax.sgdw(0.01, weight_decay=0.1), seed)
        found.append(optimizer.init(kernel(jnp.bfloat16)).key)
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(
    "seed", [0, jax.random.key(3), jax.random.PRNGKey(3)], ids=["int", "key", "old"]
)
def test_the_seed_stays_valid_where_the_state_is_donated(seed):
    params = {"w": jnp.ones(4, jnp.bfloat16)}
    tx = wdjax.stochastically_rounded(optax.sgd(0.1), seed=seed)
    both = (tx.init(params), tx.init(params))  # one buffer cannot be donated twice
    jax.block_until_ready(jax.jit(lambda x: jax.tree.map(jnp.copy, x), donate_argnums=0)(both))
    jax.block_until_ready(tx.init(params).key + 1)
    if isinstance(seed, jax.Array):
        jax.block_until_ready(jax.random.uniform(seed))


@pytest.mark.parametrize(
    ("dtype", "wrap"),
    [
        (jnp.float8_e4m3fn, wdjax.compensated),
        (jnp.float8_e5m2, lambda inner: stochastically_rounded(inner, 0)),
    ],
)
def test_the_train_step_adds_updates_to_float8(dtype, wrap):
    params = {"kernel": np.ones((64, 64), dtype), "scale": np.ones(3, np.float32)}
    optimizer = wrap(wdjax.decayed(optax.sgd)(1.0, weight_decay=0.01))
    held = lambda params: params["kernel"].astype(jnp.float32).sum() + jnp.sum(params["scale"])
    loss = lambda params, batch: 0.0 * held(params) * jnp.sum(batch)
    step = wdjax.make_train_step(loss, optimizer)
    state = wdjax.TrainState.create(params, optimizer)
    for _ in range(20):
        state, _ = step(state, np.ones(2, np.float32))
    mean = np.float32(state.params["kernel"]).mean()
    np.testing.assert_allclose(mean, 0.99**20, atol=0.0625)  # half a step of float8_e5m2
    assert state.params["kernel"].dtype == dtype


# Every library's own addition.


def _nnx_style(params, updates):
    return jax.tree.map(lambda p, u: p + u, params, updates)


def _equinox_style(params, updates):
    return pytest.importorskip("equinox").apply_updates(params, updates)


@pytest.mark.parametrize(
    ("apply", "dtype"),
    [
        (optax.apply_updates, jnp.bfloat16),
        (_equinox_style, jnp.float16),
        (_nnx_style, jnp.bfloat16),
        (_nnx_style, jnp.float16),
    ],
)
def test_compensation_keeps_the_dtype_and_the_sum_in_every_addition(apply, dtype):
    """(1 − s)^T, whatever adds the update."""
    optimizer = wdjax.compensated(optax.chain(optax.set_to_zero(), wdjax.decay_weights(1e-4)))
    params = {"kernel": np.full((4, 4), 3, dtype), "bias": np.ones(4, np.float32)}
    grads = jax.tree.map(np.zeros_like, params)

    @jax.jit
    def run(params):
        def body(carry, _):
            updates, state = optimizer.update(grads, carry[1], carry[0])
            return (apply(carry[0], updates), state), None

        return jax.lax.scan(body, (params, optimizer.init(params)), length=1_000)[0]

    ended, _ = run(params)
    assert {name: x.dtype for name, x in ended.items()} == {"kernel": dtype, "bias": jnp.float32}
    mean = np.float32(ended["kernel"]).mean()
    np.testing.assert_allclose(mean, 3 * (1 - 1e-4) ** 1_000, rtol=0.01)


@pytest.mark.parametrize("apply", [optax.apply_updates, _equinox_style, _nnx_style])
def test_random_rounding_keeps_the_dtype_and_the_mean_in_every_addition(apply):
    inner = optax.chain(optax.set_to_zero(), wdjax.decay_weights(1e-3))
    optimizer = stochastically_rounded(inner, 0)
    params = {"kernel": np.ones((64, 64), jnp.bfloat16)}
    state, grads = optimizer.init(params), params

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(grads, state, params)
        return apply(params, updates), state

    for _ in range(50):
        params, state = step(params, state)
    assert params["kernel"].dtype == jnp.bfloat16
    mean = np.float32(params["kernel"]).mean()
    np.testing.assert_allclose(mean, (1 - 1e-3) ** 50, rtol=2e-3)


@jax.jit
def landed_at(goal):
    inner = optax.stateless(lambda updates, params: {"w": jnp.full(40_000, goal) - params["w"]})
    params = {"w": jnp.ones(40_000, jnp.bfloat16)}
    optimizer = stochastically_rounded(inner, 0)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    return optax.apply_updates(params, updates)["w"]


@pytest.mark.parametrize("goal", [0.30017, 0.01234, -0.30017, 1.3 * 2.0**-12, 5.013])
def test_random_rounding_is_right_on_average_for_long_steps_too(goal):
    """From 1 to a goal that is far away: the update rounds as well as the parameter."""
    landed = np.float64(landed_at(goal))
    assert len(np.unique(landed)) == 2
    error = landed.std() / np.sqrt(landed.size)
    assert abs(landed.mean() - goal) < 5 * error
