"""One optimizer step on trees of three shapes, against Optax's and PyTorch's fused and foreach."""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks.timing import Figure, installed, paired

RATE, DECAY = 1e-2, 1.0  # 1% per step: bfloat16 would swallow much less
DTYPES = ("float32", "bfloat16")


def big_leaves(smoke: bool, dtype: str = "float32") -> dict[str, Any]:
    """Three leaves of 16.8M numbers."""
    size = 64 if smoke else 4_096
    return {
        f"layer_{i}": {"kernel": jnp.full((size, size), 0.01 * (i + 1), dtype)} for i in range(3)
    }


def mixed_leaves(smoke: bool, dtype: str = "float32") -> dict[str, Any]:
    """128 leaves, kernels and biases, 16.8M numbers in all."""
    layers, width = (4, 8) if smoke else (64, 512)
    return {
        f"layer_{i}": {
            "kernel": jnp.full((width, width), 0.01, dtype),
            "bias": jnp.full(width, 0.01, dtype),
        }
        for i in range(layers)
    }


def small_leaves(smoke: bool, dtype: str = "float32") -> dict[str, Any]:
    """2,000 leaves, kernels and biases, 1M numbers in all."""
    layers, rows, columns = (10, 4, 4) if smoke else (1_000, 31, 32)
    return {
        f"layer_{i}": {
            "kernel": jnp.full((rows, columns), 0.01, dtype),
            "bias": jnp.full(columns, 0.01, dtype),
        }
        for i in range(layers)
    }


SHAPES = {"3 x 16.8M": big_leaves, "128 mixed leaves": mixed_leaves, "2,000 leaves": small_leaves}


def ours() -> optax.GradientTransformation:
    """Adam with decoupled decay of the kernels."""
    return wdjax.decayed(optax.adam)(RATE, weight_decay=DECAY, rules=wdjax.standard())


def optax_adamw() -> optax.GradientTransformation:
    """The same by Optax."""
    return optax.adamw(RATE, weight_decay=DECAY, mask=wdjax.mask(wdjax.standard()))


def compiled_step(optimizer: optax.GradientTransformation) -> Any:
    """One step in one program, donated, parameters updated."""

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))


def stepper(optimizer: optax.GradientTransformation, params: Any) -> Callable[[], Any]:
    """Return a function that takes one step on its own copy of the parameters."""
    carry = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    grads = jax.tree.map(lambda p: 0.1 * p, params)
    compiled = compiled_step(optimizer)

    def run() -> Any:
        carry[:] = compiled(*carry, grads)
        return carry[0]

    return run


def torch_stepper(params: Any, **how: bool) -> Callable[[], Any]:
    """The same step by `torch.optim.AdamW`, on all cores, with the gradients in place."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    groups: dict[bool, list[Any]] = {True: [], False: []}
    keep = jax.tree.leaves(wdjax.mask(wdjax.standard())(params))
    for leaf, decays in zip(jax.tree.leaves(params), keep, strict=True):
        values = torch.tensor(np.asarray(leaf, np.float32)).to(getattr(torch, str(leaf.dtype)))
        values.requires_grad_().grad = 0.1 * values.detach()
        groups[decays].append(values)
    adamw = torch.optim.AdamW(
        [
            {"params": leaves, "weight_decay": DECAY if decays else 0.0}
            for decays, leaves in groups.items()
            if leaves
        ],
        lr=RATE,
        **how,
    )

    def run() -> None:
        adamw.step()

    return run


def bench_step(repeats: int, smoke: bool) -> list[Figure]:
    """decayed(optax.adam) against AdamW of Optax (also against itself) and of PyTorch."""
    figures = []
    for name, make in SHAPES.items():
        for dtype in DTYPES:
            params = make(smoke, dtype)
            mine, theirs, again = (
                stepper(make_optimizer(), params)
                for make_optimizer in (ours, optax_adamw, optax_adamw)
            )
            what, goal = f"step, {name}, {dtype}, against", None if smoke else 1.0
            figures += [
                paired(f"{what} optax.adamw", mine, theirs, repeats=repeats, goal=goal),
                paired(
                    f"{what.replace('step', 'optax.adamw')} itself, the noise",
                    again,  # in memory of its own: where buffers lie makes a difference, too
                    theirs,
                    repeats=repeats,
                    goal=None,
                ),
            ]
            del theirs, again
            for kind in ("fused", "foreach") if installed("torch") else ():
                peer = torch_stepper(params, **{kind: True})
                figures.append(
                    paired(f"{what} torch {kind}", mine, peer, repeats=repeats, goal=goal,
                           faster=True)
                )  # fmt: skip
    return figures
