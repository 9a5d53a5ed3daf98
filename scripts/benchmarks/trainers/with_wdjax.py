"""The two jobs in wdjax: a whole run is one call of `fit`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax

Params = Any
Train = Callable[[int], Callable[[Any], np.ndarray]]


def line_model(params: Params, x: Any) -> jax.Array:
    """Slope and intercept."""
    return x @ params["kernel"] + params["bias"]


def line_loss(params: Params, batch: Any) -> jax.Array:
    """Mean of squared errors."""
    return jnp.mean((line_model(params, batch["x"]) - batch["y"]) ** 2)


def line_start() -> tuple[Params, optax.GradientTransformation]:
    """Parameters at zero and the documents' SGD."""
    optimizer = optax.chain(
        wdjax.add_decayed_weights(1e-3, rules=(("kernel", 1.0), ("bias", 0.0))),
        optax.sgd(wdjax.inverse_sqrt(0.1, gamma=0.01)),
    )
    return {"kernel": np.zeros(1, np.float32), "bias": np.zeros((), np.float32)}, optimizer


def digits_model(params: Params, x: Any) -> jax.Array:
    """One hidden layer of rectified units."""
    for name, layer in params.items():
        x = x if name == "dense_0" else jax.nn.relu(x)
        x = x @ layer["kernel"] + layer["bias"][None]
    return x


def digits_loss(params: Params, batch: Any) -> jax.Array:
    """Cross-entropy."""
    logits = digits_model(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["y"]).mean()


def digits_start() -> tuple[Params, optax.GradientTransformation]:
    """Kernels at random and AdamW on them."""
    rng = np.random.default_rng(0)
    params = {
        f"dense_{i}": {
            "kernel": (rng.normal(size=shape) / shape[0] ** 0.5).astype(np.float32),
            "bias": np.zeros(shape[1], np.float32),
        }
        for i, shape in enumerate([(64, 128), (128, 10)])
    }
    return params, wdjax.decayed(optax.adam)(1e-3, weight_decay=0.1)


def line(data: Any) -> Train:
    """A straight line."""
    return _trainer(lambda *args: line_loss(*args), line_model, *line_start(), data, 32)


def digits(data: Any) -> Train:
    """A network with one hidden layer."""
    return _trainer(lambda *args: digits_loss(*args), digits_model, *digits_start(), data, 64)


def _trainer(
    loss: Any, model: Any, params: Params, optimizer: Any, data: Any, batch_size: int
) -> Train:
    step = wdjax.make_train_step(loss, optimizer)
    state = wdjax.TrainState.create(params, optimizer)

    def train(epochs: int) -> Callable[[Any], np.ndarray]:
        end, _ = wdjax.fit(step, state, data, epochs=epochs, batch_size=batch_size, progress=False)
        return lambda x: np.asarray(model(jax.block_until_ready(end.params), x))

    return train
