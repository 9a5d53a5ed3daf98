"""What many large equal layers cost before the first step, by shapes alone, against `optax.adamw`.

The layers of a transformer: four kernels of width x width, two of its feed-forward part, and six
vectors. A stack of small leaves copies, which large ones cannot afford; three ways do not:

    called     the formula of a leaf is a jitted function: traced and lowered once for each shape
    by layer   `optax.adamw` of one layer is a jitted function, called for each
    held       the model holds its layers in one array, as `flax.linen.scan` makes them

Nothing runs, so the widths need no memory. Counted is processor time, of all threads.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import wdjax
from benchmarks.leaves import DECAY, RATE, bare, started
from benchmarks.timing import Figure

LAYERS, WIDTHS = (12, 48, 96), (512, 4_096)

Program = tuple[Any, ...]  # a jitted function and its arguments


def layer(width: int, *stacked: int) -> dict[str, Any]:
    """Shapes of one layer, or of several in one array."""
    squares = dict.fromkeys(("query", "key", "value", "out"), (width, width))
    kernels = {**squares, "up": (width, 4 * width), "down": (4 * width, width)}
    leaves = [(name, "kernel", size) for name, size in kernels.items()]
    leaves += [(f"norm_{i}", "scale", (width,)) for i in range(6)]
    shape = lambda size: jax.ShapeDtypeStruct((*stacked, *size), jnp.float32)
    return {name: {kind: shape(size)} for name, kind, size in leaves}


def model(layers: int, width: int) -> dict[str, Any]:
    """Layer by layer."""
    return {f"layer_{i}": layer(width) for i in range(layers)}


def called(layers: int, width: int) -> Program:
    """AdamW by hand, each leaf by a call of one function."""
    b1, b2, eps = 0.9, 0.999, 1e-8

    @jax.jit
    def leaf(g: Any, p: Any, mu: Any, nu: Any, count: Any) -> tuple[Any, Any, Any]:
        mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g**2
        step = mu / (1 - b1**count) / (jnp.sqrt(nu / (1 - b2**count)) + eps)
        return -RATE * (step + DECAY * p), mu, nu

    def update(g: Any, p: Any, mu: Any, nu: Any, count: Any) -> Any:
        return jax.tree.map(lambda *x: leaf(*x, count), g, p, mu, nu), count + 1

    params = model(layers, width)
    return jax.jit(update), params, params, params, params, jax.ShapeDtypeStruct((), jnp.float32)


def by_layer(layers: int, width: int) -> Program:
    """`optax.adamw` of one layer, called for each."""
    optimizer = optax.adamw(RATE, weight_decay=DECAY)
    one = jax.jit(optimizer.update)
    params = model(layers, width)
    state = {name: jax.eval_shape(optimizer.init, part) for name, part in params.items()}

    def update(g: Any, state: Any, p: Any) -> Any:
        return {name: one(g[name], state[name], p[name]) for name in p}

    return jax.jit(update), params, state, params


def whole(optimizer: optax.GradientTransformation) -> Callable[[int, int], Program]:
    """All leaves of all layers, as ever."""
    return lambda layers, width: bare(optimizer, model(layers, width))


def held(layers: int, width: int) -> Program:
    """`wdjax.adamw` of a model that holds its layers in one array."""
    return bare(wdjax.adamw(RATE, weight_decay=DECAY), layer(width, layers))


PROGRAMS = {
    "optax.adamw itself": whole(optax.adamw(RATE, weight_decay=DECAY)),
    "wdjax.adamw": whole(wdjax.adamw(RATE, weight_decay=DECAY)),
    "by hand, called": called,
    "optax.adamw, by layer": by_layer,
    "wdjax.adamw, layers held in one array": held,
}


def bench_layers(repeats: int, smoke: bool) -> list[Figure]:
    """Start every program once for each number of layers and width."""
    del repeats
    figures = []
    plain = whole(optax.adamw(RATE, weight_decay=DECAY))
    for layers in (2,) if smoke else LAYERS:
        for width in (8,) if smoke else WIDTHS:
            theirs = started(*plain(layers, width))
            for name, program in PROGRAMS.items():
                ours = started(*program(layers, width))
                ratio = sum(ours) / sum(theirs)
                parts = {"trace": ours[0], "lower": ours[1], "compile": ours[2]}
                title = f"layers, {name}, {layers} of width {width:,}"
                times = 1e3 * sum(ours), 1e3 * sum(theirs)
                figures.append(Figure(title, *times, (ratio,) * 3, "ours/theirs", None, parts))
    return figures
