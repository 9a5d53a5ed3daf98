"""A whole training run in one program against a loop in Python."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks.timing import Figure, paired

# The regression job: 80 rows, mini-batches of 32 (the last one of 16), many epochs.


def bench_loop(repeats: int, smoke: bool) -> list[Figure]:
    """`fit` against the same loop calling a jitted Optax step from Python."""
    epochs = 10 if smoke else 1_000
    train = wdjax.datasets.linear(seed=0).train
    optimizer = optax.chain(
        wdjax.add_decayed_weights(1e-3, rules=wdjax.standard()),
        optax.sgd(wdjax.inverse_sqrt(0.1, gamma=0.01)),
    )
    params = {"kernel": jnp.zeros(1), "bias": jnp.zeros(())}

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch["x"] @ params["kernel"] + params["bias"] - batch["y"]) ** 2)

    step = wdjax.make_train_step(loss_fn, optimizer)
    state = wdjax.TrainState.create(params, optimizer)

    def ours() -> Any:
        return wdjax.fit(step, state, train, epochs=epochs, batch_size=32, progress=False)[0].params

    @jax.jit
    def plain_step(params: Any, opt_state: Any, batch: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    def loop(data: Any, read_loss: bool) -> Any:
        rng = np.random.default_rng(0)
        current, opt_state, losses = params, optimizer.init(params), []
        for _ in range(epochs):
            order = rng.permutation(80)
            for rows in (order[:32], order[32:64], order[64:]):
                batch = {name: column[rows] for name, column in data.items()}
                current, opt_state, loss = plain_step(current, opt_state, batch)
                losses.append(float(loss) if read_loss else loss)
        return current

    on_device = jax.tree.map(jnp.asarray, train)
    loops = {
        "jax arrays, every loss read": (
            functools.partial(loop, on_device, True),
            1 if smoke else 100,
        ),
        "NumPy arrays, every loss read": (functools.partial(loop, train, True), None),
        "NumPy arrays, no loss read": (functools.partial(loop, train, False), None),
    }
    return [
        paired(f"fit, {epochs} epochs, against {name}", ours, theirs,
               repeats=max(2, repeats // 3), goal=goal, faster=True)
        for name, (theirs, goal) in loops.items()
    ]  # fmt: skip
