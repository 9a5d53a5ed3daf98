"""The two jobs in Keras, on TensorFlow, or on PyTorch where that is not there.

`model.fit`, compiled or eager, or by hand a loop of `train_on_batch`.
"""

import importlib.util
import os
from collections.abc import Callable
from typing import Any

import numpy as np

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
os.environ.setdefault("KERAS_BACKEND", "tensorflow" if HAS_TENSORFLOW else "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402  # reads the environment

Train = Callable[[int], Callable[[Any], np.ndarray]]


class InverseSqrt(keras.optimizers.schedules.LearningRateSchedule):
    """0.1 / √(1 + (0.01 t)²)."""

    def __call__(self, step: Any) -> Any:
        """Return the rate of a step."""
        return 0.1 * keras.ops.rsqrt(1.0 + (0.01 * keras.ops.cast(step, "float32")) ** 2)

    def get_config(self) -> dict[str, Any]:
        """Keras asks for what it would take to make another."""
        return {}


def line(data: Any, *, eager: bool = False, by_hand: bool = False) -> Train:
    """A straight line; the regularizer is λ w², so λ is half of the others'."""
    dense = keras.layers.Dense(1, kernel_regularizer=keras.regularizers.L2(0.5e-3))
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile(keras.optimizers.SGD(InverseSqrt()), "mse", run_eagerly=eager)
    return _trainer(model, data, 32, by_hand)


def digits(data: Any, *, eager: bool = False, by_hand: bool = False) -> Train:
    """A network with one hidden layer."""
    hidden, last = keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)
    model = keras.Sequential([keras.Input((64,)), hidden, last])
    adamw = keras.optimizers.AdamW(1e-3, weight_decay=0.1)
    adamw.exclude_from_weight_decay(var_names=["bias"])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(adamw, loss, run_eagerly=eager)
    return _trainer(model, data, 64, by_hand)


def _trainer(model: Any, data: Any, size: int, by_hand: bool) -> Train:
    x, y, rng = data["x"], data["y"], np.random.default_rng(0)

    def loop(epochs: int) -> None:
        for _ in range(epochs):
            order = rng.permutation(len(x))
            for first in range(0, len(x), size):
                rows = order[first : first + size]
                model.train_on_batch(x[rows], y[rows])

    def train(epochs: int) -> Callable[[Any], np.ndarray]:
        if by_hand:
            loop(epochs)
        else:
            model.fit(x, y, batch_size=size, epochs=epochs, verbose=0)
        return lambda x: keras.ops.convert_to_numpy(model(x))

    return train
