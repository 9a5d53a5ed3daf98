import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import wdjax

DTYPES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])


def decay_only(optimizer, params, steps):
    """Steps of zero gradient: decay alone acts."""
    zero = jax.tree.map(jnp.zeros_like, params)

    def body(carry, _):
        params, state = carry
        updates, state = optimizer.update(zero, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(body, (params, optimizer.init(params)), length=steps)[0][0]


def kernel(dtype):
    return {"kernel": jnp.linspace(0.5, 3.0, 64, dtype=dtype).reshape(8, 8)}


@DTYPES
def test_a_thousand_small_decays_end_within_one_percent_of_float32(dtype):
    optimizer = wdjax.sgdw(1e-3, weight_decay=0.1)
    want = decay_only(optimizer, kernel(jnp.float32), 1_000)["kernel"]
    got = decay_only(wdjax.compensated(optimizer), kernel(dtype), 1_000)["kernel"]
    assert got.dtype == dtype
    assert np.allclose(got.astype(jnp.float32), want, rtol=0.01)


def test_plain_bfloat16_ends_with_no_decay_at_all():
    """The problem itself, so that the test above cannot pass by accident."""
    params = kernel(jnp.bfloat16)
    with pytest.warns(UserWarning, match="swallow"):
        after = decay_only(wdjax.sgdw(1e-3, weight_decay=0.1), params, 1_000)
    assert np.array_equal(after["kernel"], params["kernel"])


def test_float32_leaves_are_untouched_bit_for_bit():
    params = {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3, jnp.bfloat16)}
    grads = jax.tree.map(lambda p: jnp.sin(p) * 0.1, params)
    optimizer = wdjax.adamw(0.01, weight_decay=0.1)
    got, _ = _step(wdjax.compensated(optimizer), grads, params)
    want, _ = _step(optimizer, {"kernel": grads["kernel"]}, {"kernel": params["kernel"]})
    assert np.array_equal(got["kernel"], want["kernel"])


def _step(optimizer, grads, params):
    return jax.jit(optimizer.update)(grads, optimizer.init(params), params)


@DTYPES
def test_parameter_plus_residual_is_the_exact_float32_trajectory(dtype):
    optimizer = wdjax.compensated(wdjax.sgdw(0.01, momentum=0.9, weight_decay=0.3))
    exact = wdjax.sgdw(0.01, momentum=0.9, weight_decay=0.3)
    params, wide = kernel(dtype), kernel(dtype)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), wide)
    state, wide_state = optimizer.init(params), exact.init(wide)
    update, wide_update = jax.jit(optimizer.update), jax.jit(exact.update)
    for t in range(50):
        grads = jax.tree.map(lambda p, t=t: jnp.sin(p * 7 + t).astype(dtype), kernel(dtype))
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        wide_grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        updates, wide_state = wide_update(wide_grads, wide_state, wide)
        wide = optax.apply_updates(wide, updates)
        sum_ = params["kernel"].astype(jnp.float32) + state.residual["kernel"]
        assert np.allclose(sum_, wide["kernel"], rtol=1e-5)
        assert np.array_equal(params["kernel"], wide["kernel"].astype(dtype)) or np.allclose(
            params["kernel"].astype(jnp.float32), wide["kernel"], rtol=float(jnp.finfo(dtype).eps)
        )


def test_it_keeps_structure_dtype_and_state_shapes_under_scan():
    params = {"a": kernel(jnp.bfloat16)["kernel"], "n": jnp.array(3), "none": None}
    optimizer = wdjax.compensated(optax.sgd(0.1))
    state = optimizer.init(params)
    grads = {"a": jnp.ones((8, 8), jnp.bfloat16), "n": jnp.array(0), "none": None}
    updates, after = optimizer.update(grads, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, after)
    assert optax.apply_updates(params, updates)["a"].dtype == jnp.bfloat16


def test_no_warning_once_the_decay_is_kept():
    wdjax.compensated(wdjax.sgdw(1e-3, weight_decay=0.1)).init(kernel(jnp.bfloat16))


def test_update_without_params_says_what_to_call():
    optimizer = wdjax.compensated(optax.sgd(0.1))
    params = kernel(jnp.bfloat16)
    with pytest.raises(ValueError, match=r"`compensated` needs the current parameters; got"):
        optimizer.update(params, optimizer.init(params))
