"""Many small leaves held as stacks, against one by one: the step, its compilation, a training."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import steps
from benchmarks.timing import Figure, installed, paired
from wdjax import stacking

ONCE = 1  # compilations of thousands of leaves take many seconds


def bench_stacks(repeats: int, smoke: bool) -> list[Figure]:
    """`stacking.stacked` against the same leaves one by one, without stacks."""
    small, big = steps.small_leaves(smoke), steps.big_leaves(smoke)
    mine, theirs = stacking.stacked(steps.ours()), steps.optax_adamw()
    stacked = steps.stepper(mine, stacking.stack(small))
    figures = [
        paired("stacks, 2,000 leaves, compilation, against optax.adamw",
               compiler(mine, stacking.stack(small)), compiler(theirs, small),
               repeats=ONCE, goal=3, faster=True),
        paired("stacks, 2,000 leaves, step, against optax.adamw",
               stacked, steps.stepper(theirs, small), repeats=repeats, goal=5, faster=True),
        paired("stacks, 3 x 16.8M, step, against optax.adamw",
               steps.stepper(mine, stacking.stack(big)), steps.stepper(theirs, big),
               repeats=repeats, goal=1.05),
    ]  # fmt: skip
    if installed("torch"):
        fused = steps.torch_stepper(small, fused=True)
        figures.append(
            paired("stacks, 2,000 leaves, step, against torch.optim.AdamW(fused=True)",
                   stacked, fused, repeats=repeats, goal=1, faster=True)
        )  # fmt: skip
    return figures + trainings(repeats, smoke)


def compiler(optimizer: optax.GradientTransformation, params: Any) -> Callable[[], Any]:
    """Return a function that traces and compiles a step anew."""
    state = jax.eval_shape(optimizer.init, params)

    def run() -> None:
        steps.compiled_step(optimizer).lower(params, state, params).compile()

    return run


def trainings(repeats: int, smoke: bool) -> list[Figure]:
    """A whole training step of a network of 400 leaves: views, gradients, update."""
    params, x = blocks(3 if smoke else 100), jnp.ones((64, 16))
    ours, theirs = (
        trained(stacking.stacked(steps.ours()), lambda p: loss(stacking.unstack(p), x)),
        trained(steps.optax_adamw(), lambda p: loss(p, x)),
    )
    first = stacking.stack(params)
    return [
        paired("stacks, training of 100 blocks, compilation", lambda: ours(first),
               lambda: theirs(params), repeats=ONCE, goal=None, faster=True),
        paired("stacks, training of 100 blocks, step", ours(first), theirs(params),
               repeats=repeats, goal=None, faster=True),
    ]  # fmt: skip


def blocks(count: int) -> dict[str, Any]:
    """Residual blocks of 16-32-16 with a gain and a bias: four leaves each."""
    rng = np.random.default_rng(0)

    def kernel(rows: int, columns: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=(rows, columns)) / (rows * count) ** 0.5, jnp.float32)

    return {
        f"block_{i}": {
            "scale": jnp.ones(16),
            "up": {"kernel": kernel(16, 32), "bias": jnp.zeros(32)},
            "down": {"kernel": kernel(32, 16)},
        }
        for i in range(count)
    }


def loss(params: Any, x: jax.Array) -> jax.Array:
    """The mean square of what the blocks make of x."""
    for block in params.values():
        y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True)) * block["scale"][None]
        hidden = jax.nn.relu(y @ block["up"]["kernel"] + block["up"]["bias"][None])
        x = x + hidden @ block["down"]["kernel"]
    return jnp.mean(x * x)


def trained(
    optimizer: optax.GradientTransformation, loss_fn: Callable[[Any], jax.Array]
) -> Callable[[Any], Callable[[], Any]]:
    """Return a function that compiles a training step and returns what takes one."""

    def step(params: Any, state: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss_fn)(params), state, params)
        return optax.apply_updates(params, updates), state

    def compiled(params: Any) -> Callable[[], Any]:
        carry = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
        program = jax.jit(lambda *carry: step(*carry), donate_argnums=(0, 1)).lower(*carry)
        take = program.compile()

        def run() -> Any:
            carry[:] = take(*carry)
            return carry[0]

        return run

    return compiled
