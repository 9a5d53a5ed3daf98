"""The two jobs with Optax alone: a jitted step, called from Python for every mini-batch."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

if __package__:
    from benchmarks.trainers import with_wdjax as models
else:  # the script that runs it is in this folder
    import with_wdjax as models


def line(data: Any, *, read_loss: bool = False) -> models.Train:
    """A straight line."""
    return _trainer(models.line_loss, models.line_model, *models.line_start(), data, 32, read_loss)


def digits(data: Any, *, read_loss: bool = False) -> models.Train:
    """A network with one hidden layer."""
    return _trainer(
        models.digits_loss, models.digits_model, *models.digits_start(), data, 64, read_loss
    )


def _trainer(
    loss: Any, model: Any, params: Any, optimizer: Any, data: Any, batch_size: int, read_loss: bool
) -> models.Train:
    @jax.jit
    def step(params: Any, opt_state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    def train(epochs: int) -> Callable[[Any], np.ndarray]:
        rng, losses = np.random.default_rng(0), []
        current, opt_state = params, optimizer.init(params)
        for _ in range(epochs):
            order = rng.permutation(len(data["y"]))
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                batch = {name: column[rows] for name, column in data.items()}
                current, opt_state, value = step(current, opt_state, batch)
                losses.append(float(value) if read_loss else value)
        current = jax.block_until_ready(current)
        return lambda x: np.asarray(model(current, x))

    return train
