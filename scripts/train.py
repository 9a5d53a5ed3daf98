"""Train small models with weight decay, print what it did, write figures and metrics.json.

    python scripts/train.py --out out                       the three demo jobs, under a minute
    python scripts/train.py --data diabetes --optimizer adam --penalty l1 --implicit
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from wdjax import datasets, plots

LAWS = {
    "lr_scaled": lambda peak: wdjax.lr_scaled,
    "schedule_scaled": lambda peak: functools.partial(wdjax.schedule_scaled, peak=peak),
    "fixed": lambda peak: wdjax.fixed,
    "corrected": lambda peak: functools.partial(wdjax.corrected, peak=peak),
    "lr_squared": lambda peak: wdjax.lr_squared,
}
PENALTIES = {
    "none": None,
    "l2": wdjax.penalties.l2,
    "l1": wdjax.penalties.l1,
    "elastic_net": wdjax.penalties.elastic_net(0.5),
}
# name -> factory, its own arguments, the learning rate used when none is given
OPTIMIZERS: dict[str, tuple[Callable[..., Any], dict[str, Any], float]] = {
    "sgd": (optax.sgd, {}, 0.1),
    "momentum": (optax.sgd, {"momentum": 0.9}, 0.02),
    "adagrad": (optax.adagrad, {}, 0.1),
    "adam": (optax.adam, {}, 3e-3),
    "adabelief": (optax.adabelief, {}, 3e-3),
    "rmsprop": (optax.rmsprop, {}, 1e-3),
    "lion": (optax.lion, {}, 1e-3),
    "lamb": (optax.lamb, {}, 1e-2),
    "muon": (optax.contrib.muon, {}, 1e-2),
}
RULES = wdjax.standard()  # kernels decay, biases do not
EPOCHS = {"linear": 1000, "diabetes": 200, "digits": 30}
DIABETES_NAMES = ("age", "sex", "bmi", "bp", "tc", "ldl", "hdl", "tch", "ltg", "glu")


# ---------------------------------------------------------------------------------------- models


class Task(NamedTuple):
    """A model with its data: loss(params, batch) -> (loss, metrics), measure(params, part)."""

    data: datasets.Dataset
    init: Callable[[jax.Array], Any]
    loss: Callable[[Any, Any], Any]
    measure: Callable[[Any, Any], dict[str, jax.Array]]


def dense(params: Any, x: jax.Array) -> jax.Array:
    """Return x w + b."""
    return jnp.dot(x, params["kernel"]) + params["bias"]


def weight_norm(params: Any) -> jax.Array:
    """Return ‖θ‖₂ over the weights that `standard()` decays, so biases are not in it."""
    return jnp.sqrt(2.0 * wdjax.penalty_value(wdjax.penalties.l2, params))


def weights(params: Any) -> np.ndarray:
    """Return the same weights, flat, for histograms and counts."""
    kept = jax.tree.map(lambda p, m: p[:0] if m == 0 else p, params, wdjax.resolve(RULES, params))
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(kept)])


def regression(data: datasets.Dataset) -> Task:
    """Linear regression from zero, loss 1/(2n) Σ (x w + b − y)²: what ridge and lasso minimise."""

    def init(key: jax.Array) -> Any:
        del key
        return {"kernel": jnp.zeros((data.train["x"].shape[1], 1)), "bias": jnp.zeros(1)}

    def loss(params: Any, batch: Any) -> Any:
        residual = dense(params, batch["x"])[:, 0] - batch["y"]
        return 0.5 * jnp.mean(residual**2), {"weight_norm": weight_norm(params)}

    def measure(params: Any, part: Any) -> dict[str, jax.Array]:
        value = loss(params, part)[0]
        return {"loss": value, "R2": 1.0 - 2.0 * value / jnp.var(part["y"])}

    return Task(data, init, loss, measure)


def classification(data: datasets.Dataset, hidden: int = 128, classes: int = 10) -> Task:
    """One hidden layer, ReLU, cross-entropy."""

    def init(key: jax.Array) -> Any:
        sizes = (data.train["x"].shape[1], hidden, classes)
        draw = jax.nn.initializers.he_normal()
        return {
            f"dense_{i}": {"kernel": draw(k, sizes[i : i + 2]), "bias": jnp.zeros(sizes[i + 1])}
            for i, k in enumerate(jax.random.split(key, 2))
        }

    def logits(params: Any, x: jax.Array) -> jax.Array:
        return dense(params["dense_1"], jax.nn.relu(dense(params["dense_0"], x)))

    def loss(params: Any, batch: Any) -> Any:
        losses = optax.softmax_cross_entropy_with_integer_labels(
            logits(params, batch["x"]), batch["y"]
        )
        return jnp.mean(losses), {"weight_norm": weight_norm(params)}

    def measure(params: Any, part: Any) -> dict[str, jax.Array]:
        right = jnp.argmax(logits(params, part["x"]), axis=1) == part["y"]
        return {"loss": loss(params, part)[0], "accuracy": jnp.mean(right)}

    return Task(data, init, loss, measure)


TASKS = {
    "linear": lambda seed: regression(datasets.linear(seed)),
    "diabetes": lambda seed: regression(datasets.diabetes(seed)),
    "digits": lambda seed: classification(datasets.digits(seed)),
}


# -------------------------------------------------------------------------------------- training


class Run(NamedTuple):
    """A finished run: parameters, curves (one entry per epoch or evaluation) and numbers."""

    params: Any
    steps: np.ndarray
    losses: np.ndarray
    norms: np.ndarray
    evals: dict[str, np.ndarray]
    numbers: dict[str, float]


def bare(name: str, learning_rate: Any) -> optax.GradientTransformation:
    """Return the optimizer without decay: optax.lion alone would decay by 0.001."""
    factory, arguments, _ = OPTIMIZERS[name]
    return wdjax.decayed(factory)(learning_rate, weight_decay=0.0, **arguments)


def train(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    progress: bool | None,
    watch: Callable[[Any], dict[str, jax.Array]] = lambda params: {},
) -> Run:
    """Fit, evaluating test loss and `watch` after about 100 evenly spaced numbers of epochs."""
    per_epoch = -(-len(task.data.train["y"]) // batch_size)
    measure = jax.jit(task.measure)

    def evaluate(state: Any) -> dict[str, Any]:
        test = measure(state.params, task.data.test)
        return {f"test_{name}": value for name, value in test.items()} | watch(state.params)

    state, history = wdjax.fit(
        wdjax.make_train_step(task.loss, optimizer),
        wdjax.TrainState.create(task.init(jax.random.key(seed)), optimizer),
        task.data.train,
        epochs=epochs,
        batch_size=batch_size,
        seed=seed,
        evaluate=evaluate,
        eval_every=per_epoch * max(1, epochs // 100),
        progress=progress,
    )
    losses, norms = (
        history.metrics[name].reshape(epochs, per_epoch).mean(axis=1)
        for name in ("loss", "weight_norm")
    )
    numbers = {
        f"{part} {name}": float(value)
        for part, arrays in task.data._asdict().items()
        for name, value in measure(state.params, arrays).items()
    }
    kernels = weights(state.params)
    numbers["weight norm"] = float(np.linalg.norm(kernels))
    numbers["exact zeros"] = int(np.sum(kernels == 0))
    steps = per_epoch * np.arange(1, epochs + 1)
    evals = {"steps": history.eval_steps, **history.evals}
    return Run(state.params, steps, losses, norms, evals, numbers)
