"""What users of each library get wrong is named, with the fix."""

import jax
import jax.numpy as jnp
import optax
import pytest

import wdjax

OPTIMIZER = wdjax.decayed(optax.adam)(1e-3, weight_decay=0.1)


def test_an_unfiltered_equinox_model_is_refused_by_optimizer_and_state():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 1, 16, 2, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"'activation'.*filter the model first \(eqx.filter"):
        OPTIMIZER.init(model)
    with pytest.raises(TypeError, match=r"at 'activation'.*equinox: `eqx.partition`"):
        wdjax.TrainState.create(model, OPTIMIZER)
    OPTIMIZER.init(eqx.filter(model, eqx.is_inexact_array))


def test_an_nnx_state_beside_pure_arrays_is_refused_by_container():
    nnx = pytest.importorskip("flax.nnx")
    state = nnx.state(nnx.Linear(3, 4, rngs=nnx.Rngs(0)), nnx.Param)
    pure = nnx.to_pure_dict(state)
    match = "'bias' is in State/Param in updates, in dict in params"
    with pytest.raises(ValueError, match=match):
        OPTIMIZER.update(state, OPTIMIZER.init(pure), pure)
    for params in (state, pure):  # each by itself is fine
        OPTIMIZER.update(params, OPTIMIZER.init(params), params)


def test_the_optimizer_state_of_another_model_is_refused_by_path():
    """As after a checkpoint has been restored into the wrong program."""
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    other = {"dense": {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3)}}
    with pytest.raises(ValueError, match="only in updates: 'dense/bias'"):
        OPTIMIZER.update(params, OPTIMIZER.init(other), other)
    with pytest.raises(ValueError, match=r"dense|scale"):
        OPTIMIZER.update(params, OPTIMIZER.init(other), params)


def test_an_unknown_setting_of_another_library_is_named_with_the_nearest():
    with pytest.raises(TypeError, match=r"momentun.*momentum"):
        wdjax.convert.torch_sgd(lr=0.1, momentun=0.9)
