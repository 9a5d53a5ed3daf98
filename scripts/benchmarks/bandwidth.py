"""Bytes that a step moves per second, against what the machine's memory gives to a plain copy."""

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.steps import DTYPES, big_leaves, compiled_step, mixed_leaves, ours
from benchmarks.timing import Figure, from_pairs, timed


def copies(smoke: bool) -> tuple[int, dict[str, Callable[[], Any]]]:
    """Bytes read and written, and programs that read and write them once, into memory in use."""
    count = 2**10 if smoke else 2**26
    source, target = np.ones(count, np.float32), np.zeros(count, np.float32)
    negate, carry = jax.jit(jnp.negative, donate_argnums=0), [jnp.ones(count)]

    def on_device() -> Any:
        carry[0] = negate(carry[0])
        return carry[0]

    return 2 * source.nbytes, {
        "jitted, in place": on_device,
        "numpy.copyto": lambda: np.copyto(target, source),
    }


def size(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def bench_bandwidth(repeats: int, smoke: bool) -> list[Figure]:
    """Time of a decayed Adam step against copying as many bytes: theirs / ours is the fraction."""
    moved, programs = copies(smoke)
    took = {name: statistics.median(warm(copy, repeats)) for name, copy in programs.items()}
    shapes = {"3 x 16.8M": big_leaves, "128 mixed leaves": mixed_leaves}
    figures = []
    for (name, make), dtype in itertools.product(shapes.items(), DTYPES):
        params, optimizer = make(smoke, dtype), ours()
        carry = [params, optimizer.init(params)]
        grads = jax.tree.map(lambda p: 0.1 * p, params)
        needed = 2 * size(carry) + size(grads)  # read θ, m, v and write them; read g
        program = compiled_step(optimizer).lower(*carry, grads).compile()

        def run(carry: Any = carry, program: Any = program, grads: Any = grads) -> Any:
            carry[:] = program(*carry, grads)
            return carry[0]

        times = warm(run, repeats)
        copied = min(took.values()) * needed / moved
        title = f"step, {name}, {dtype}, against a copy of its bytes"
        readings = {
            "bytes": needed,
            "bytes by XLA's count": program.cost_analysis()["bytes accessed"],
            "bytes per second": 1e3 * needed / statistics.median(times),
            "bytes per second of copies": {name: 1e3 * moved / ms for name, ms in took.items()},
        }
        figure = from_pairs(title, [(ms, copied) for ms in times], None)
        figures.append(figure._replace(goal="theirs/ours, of bandwidth", readings=readings))
    return figures


def warm(program: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of each run after the first."""
    return timed(program, repeats + 1)[1:]
