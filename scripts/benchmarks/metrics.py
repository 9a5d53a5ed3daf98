"""Metrics: the same training with and without readings, ten steps at a time."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks.steps import big_leaves, stepper
from benchmarks.timing import Figure, paired


class Job(NamedTuple):
    """A loss, where it starts, and one batch."""

    loss_fn: Callable[[Any, Any], jax.Array]
    params: Any
    batch: Any


def digits_job(smoke: bool) -> Job:
    """An MLP of 64-256-256-10 on batches of 256, random numbers shaped like the digits data."""
    rows, width = (16, 8) if smoke else (256, 256)
    sizes = (64, width, width, 10)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(rows, 64)), rng.integers(10, size=rows)
    batch = {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.int32)}
    params = {
        f"dense_{i}": {
            "kernel": jnp.asarray(rng.normal(size=pair) / pair[0] ** 0.5, jnp.float32),
            "bias": jnp.zeros(pair[1]),
        }
        for i, pair in enumerate(itertools.pairwise(sizes))
    }

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for i, layer in enumerate(params.values()):
            x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(x, batch["y"]).mean()

    return Job(loss_fn, params, batch)


def blocks_job(smoke: bool) -> Job:
    """The MLPs of a transformer: 4 residual blocks of 256-1024-256, norms, 1,024 tokens."""
    width, tokens = (8, 16) if smoke else (256, 1_024)
    rng = np.random.default_rng(0)

    def kernel(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, columns)) / rows**0.5, jnp.float32)

    params = {
        f"block_{i}": {
            "scale": jnp.ones(width),
            "up": {"kernel": kernel(width, 4 * width)},
            "down": {"kernel": kernel(4 * width, width)},
        }
        for i in range(4)
    }
    x = jnp.asarray(rng.normal(size=(tokens, width)), jnp.float32)

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        x = batch["x"]
        for block in params.values():
            y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True)) * block["scale"][None]
            x = x + jax.nn.gelu(y @ block["up"]["kernel"]) @ block["down"]["kernel"]
        return jnp.mean((x - batch["y"]) ** 2)

    return Job(loss_fn, params, {"x": x, "y": jnp.roll(x, 1, axis=0)})


def trainer(job: Job, optimizer: optax.GradientTransformation) -> Callable[[], Any]:
    """Return a function that trains for ten steps, each a call from Python."""
    step = wdjax.make_train_step(job.loss_fn, optimizer)
    carry = [wdjax.TrainState.create(job.params, optimizer)]

    def run() -> Any:
        for _ in range(10):
            carry[0], metrics = step(carry[0], job.batch)
        return carry[0].params, metrics

    return run


def bench_metrics(repeats: int, smoke: bool) -> list[Figure]:
    """`metrics.measured` against the same optimizer without it."""
    plain = wdjax.decayed(optax.adam)(1e-3, weight_decay=0.1)
    figures = []
    jobs = {"digits MLP": digits_job(smoke), "transformer MLPs": blocks_job(smoke)}
    for every in (1, 10):
        optimizer = wdjax.metrics.measured(plain, every=every)
        when = "every step" if every == 1 else f"every {every} steps"
        params = big_leaves(smoke)
        pair = ten_times(stepper(optimizer, params)), ten_times(stepper(plain, params))
        name = f"metrics {when}, bare optimizer step, 3 x 16.8M"
        figures.append(paired(name, *pair, repeats=max(2, repeats // 3), goal=None))
        for title, job in jobs.items():
            pair = trainer(job, optimizer), trainer(job, plain)
            name = f"metrics {when}, training step, {title}"
            goal = 1.03 if every == 10 else None  # 10 is the default
            figures.append(paired(name, *pair, repeats=repeats, goal=goal))
    return figures


def ten_times(program: Callable[[], Any]) -> Callable[[], Any]:
    """Return a program that runs another ten times."""
    return lambda: [jax.block_until_ready(program()) for _ in range(10)][-1]
