"""The audit of an optimizer: what it costs on trees as large as they get."""

import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import wdjax
from benchmarks.timing import Figure, alone

MOST_SECONDS, MOST_GIGABYTES = 10.0, 1.0
SHAPES = {  # a decoder of 7 billion parameters: 33 blocks of nine leaves, and three more
    **{name: (4096, 4096) for name in ("q", "k", "v", "o")},
    **{name: (4096, 11_008) for name in ("up", "gate")},
    "down": (11_008, 4096),
    "attention_norm": (4096,),
    "mlp_norm": (4096,),
}

_ALONE = """
import json, resource, time
begin = time.perf_counter()
from benchmarks import audit
started = time.perf_counter()
found = audit.of_billions({blocks})
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([time.perf_counter() - started, peak / 2**20, found.total, found.decayed]))
"""


def decoder(blocks: int) -> Any:
    """Shapes alone, in bfloat16."""

    def leaf(shape: tuple[int, ...]) -> Any:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    block = {
        name: {"scale" if len(shape) == 1 else "kernel": leaf(shape)}
        for name, shape in SHAPES.items()
    }
    ends = {
        "embed": {"embedding": leaf((32_000, 4096))},
        "head": {"kernel": leaf((4096, 32_000))},
        "norm": {"scale": leaf((4096,))},
    }
    return {**{f"block_{i}": block for i in range(blocks)}, **ends}


def of_billions(blocks: int) -> wdjax.Audit:
    """Audit optax.adamw with a schedule on the decoder."""
    lr = optax.warmup_cosine_decay_schedule(0.0, 3e-4, 1_000, 100_000)
    optimizer = optax.adamw(lr, weight_decay=0.1, mask=wdjax.mask(wdjax.standard()))
    return wdjax.audit(decoder(blocks), optimizer, steps=100_000)


def many_leaves(count: int) -> Any:
    """`count` leaves, eight to a block."""
    sizes = {
        **{name: (64, 64) for name in ("q", "k", "v", "o")},
        **{"up": (64, 256), "down": (256, 64), "scale": (64,), "bias": (64,)},
    }
    block = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}
    return {f"block_{i}": block for i in range(count // len(sizes))}


def bench_audit(repeats: int, smoke: bool) -> list[Figure]:
    """7 billion parameters in at most 10 s and 1 GB; 1,600 leaves in 1.5 x tracing and lowering."""
    return [*_billions(2 if smoke else 33), _leaves(16 if smoke else 1_600, repeats, smoke)]


def _billions(blocks: int) -> list[Figure]:
    """In a process of its own, for its memory is measured."""
    seconds, gigabytes, total, decayed = alone(_ALONE.format(blocks=blocks))
    assert 0 < decayed < total
    name = f"audit, {total / 1e9:.1f} billion parameters in {9 * blocks + 3} leaves"
    return [
        _figure(f"{name}: time", 1e3 * seconds, 1e3 * MOST_SECONDS, "<= 10 s"),
        _figure(f"{name}: GB", gigabytes, MOST_GIGABYTES, "<= 1 GB"),
    ]


def _figure(name: str, ours: float, most: float, goal: str) -> Figure:
    ratio = ours / most
    return Figure(name, ours, most, (ratio, ratio, ratio), goal, ratio <= 1)


def _leaves(count: int, repeats: int, smoke: bool) -> Figure:
    params = many_leaves(count)
    optimizer = optax.adamw(
        1e-3, weight_decay=0.1, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )
    state = jax.eval_shape(optimizer.init, params)

    def lowered() -> None:
        jax.jit(lambda g, s, p: optimizer.update(g, s, p)).trace(params, state, params).lower()

    audited = functools.partial(wdjax.audit, params, optimizer)
    pairs = []
    for _ in range(max(1, repeats // 5)):
        seconds = []
        for program in (audited, lowered):
            jax.clear_caches()
            begin = time.perf_counter()
            program()
            seconds.append(1e3 * (time.perf_counter() - begin))
        pairs.append(seconds)
    ratios = [ours / theirs for ours, theirs in pairs]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    spread = (statistics.median(ratios), min(ratios), max(ratios))
    name = f"audit, {count:,} leaves, against tracing and lowering optax.adamw"
    met = None if smoke else spread[0] <= 1.5
    return Figure(name, ours, theirs, spread, "ours/theirs <= 1.5", met)
