"""Decayed Adam on a billion parameters: of the bandwidth of a copy, against Optax, against PyTorch.

Wants a GPU or a TPU and sets no goals elsewhere. What the compiler makes of each step is printed
first: for the device in hand, and for those whose compilers are installed.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import wdjax
from benchmarks import programs
from benchmarks.steps import compiled_step
from benchmarks.timing import Figure, against, installed, paired

# PyTorch on the same card needs memory too: what counts if nothing ran on the device before
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

MOST = 1.08e9  # parameters: 20 blocks of 2,048, and 32,768 embeddings
MOST_ON_A_CPU = 2**24
ARRAYS = 12  # of the parameters' size and dtype that live at once, at most: ours, theirs, gradients


# What is compiled, and what is counted in it.


class Case(NamedTuple):
    """A row of the table: an optimizer, the same without decay, and the parameters' dtype."""

    optimizer: optax.GradientTransformation
    bare: optax.GradientTransformation
    dtype: Any = jnp.float32


def cases() -> dict[str, Case]:
    """Build every optimizer of the table, all of Adam and decay."""
    bare = optax.adam(0.1)
    decayed = functools.partial(wdjax.decayed(optax.adam), 0.1, weight_decay=0.1)
    rules = (("block_0/**/kernel", 0.5), *wdjax.standard())
    return {
        "optax.adam, no decay": Case(bare, bare),
        "optax.adamw": Case(optax.adamw(0.1, weight_decay=0.1), bare),
        "decayed adam": Case(decayed(), bare),
        "with gates.cautious": Case(decayed(gate=wdjax.gates.cautious), bare),
        "with rules by path": Case(decayed(rules=rules), bare),
        'with anchor="init"': Case(decayed(anchor="init"), bare),
        "with metrics.measured, every 10": Case(wdjax.metrics.measured(decayed(), every=10), bare),
        "decayed adam, bfloat16": Case(decayed(), bare, jnp.bfloat16),
        "compensated, bfloat16": Case(
            wdjax.compensated(decayed()), wdjax.compensated(bare), jnp.bfloat16
        ),
    }


def blocks(width: int, depth: int, vocabulary: int, dtype: Any) -> Any:
    """The shapes of a transformer's parameters: 12 width² numbers a block, and the embeddings."""

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, dtype)

    def block() -> Any:
        return {
            "attention": {
                "qkv": {"kernel": shape(width, 3 * width)},
                "out": {"kernel": shape(width, width)},
                "norm": {"scale": shape(width)},
            },
            "mlp": {
                "up": {"kernel": shape(width, 4 * width)},
                "down": {"kernel": shape(4 * width, width)},
                "norm": {"scale": shape(width)},
            },
        }

    tree = {f"block_{i}": block() for i in range(depth)}
    return {"embed": {"embedding": shape(vocabulary, width)}, **tree}


SIZES = (2_048, 2, 8_192)


def table(title: str, device: Any = None, sizes: tuple[int, int, int] = SIZES) -> str:
    """Compile every case for a device, and lay its costs out beside those without decay."""
    columns = "kernels  bytes (least)  of decay  in lax.cond  copies  converts"
    lines = [f"{title:<44} {columns}"]

    @functools.cache
    def cost(optimizer: optax.GradientTransformation, dtype: Any) -> programs.Costs:
        compiled = programs.compiled(optimizer, blocks(*sizes, dtype), device)
        return programs.costs(compiled.as_text())

    for name, case in cases().items():
        own, bare = cost(case.optimizer, case.dtype), cost(case.bare, case.dtype)
        lines.append(
            f"{name:<44} {own.kernels:>7}  {own.nbytes:>5.1f} ({own.least:>5.1f})  "
            f"{own.nbytes - bare.nbytes:>8.1f}  {own.in_branch:>11.1f}  {own.copies:>6}  "
            f"{own.converts:>8}" + "".join(f"  calls {target}" for target in own.calls)
        )
    return "\n".join(lines)


# The size of the model.


def on_accelerator() -> bool:
    """Whether there is a GPU or TPU."""
    return jax.default_backend() in ("gpu", "tpu")


def memory() -> int:
    """Bytes of memory that the device has for us."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def transformer(room: int, most: float, dtype: Any) -> Any:
    """The shapes of the widest transformer that leaves room for `ARRAYS` of its size."""
    depth, vocabulary = (20, 32_768) if most > 1e6 else (2, 64)
    allowed = min(most, 0.85 * room / (ARRAYS * jnp.dtype(dtype).itemsize))
    widths = range(2_048, 0, -64) if most > 1e6 else (32, 16)
    fits = (w for w in widths if 12 * depth * w * w + vocabulary * w <= allowed)
    return blocks(next(fits, widths[-1]), depth, vocabulary, dtype)


def count(tree: Any) -> int:
    """Numbers in all leaves."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Bytes of all leaves."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def random(shapes: Any, seed: int) -> Any:
    """Fill a tree of shapes with random numbers: constants would flatter the device."""
    normal = jax.jit(jax.random.normal, static_argnums=(1, 2))
    leaves, treedef = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(leaves))
    return treedef.unflatten(
        [normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)]
    )


def stepper(optimizer: Any, shapes: Any, grads: Any, steps: int) -> Callable[[], Any]:
    """Return a program that takes some donated steps on parameters of its own."""
    params = random(shapes, 0)
    carry = [params, jax.jit(optimizer.init)(params)]
    step = compiled_step(optimizer)

    def run() -> Any:
        for _ in range(steps):
            carry[:] = step(*carry, grads)
        return carry

    return run


# A copy: what the device's memory can do at best.


COPY = jax.jit(jnp.copy)
NEGATE = jax.jit(jnp.negative, donate_argnums=0)


def copiers(size: int) -> tuple[int, list[Callable[[], Any]]]:
    """Bytes read and written, and two ways to read and write them: into other memory, in place."""
    source, carry = jnp.ones(size, jnp.float32), [jnp.ones(size, jnp.float32)]

    def in_place() -> Any:
        carry[0] = NEGATE(carry[0])
        return carry[0]

    return 2 * source.nbytes, [functools.partial(COPY, source), in_place]


def bandwidth(copies: tuple[int, list[Callable[[], Any]]], tries: int = 3) -> float:
    """Bytes per second of the fastest copy, ten at a time, as a run of steps is timed."""
    moved, ways = copies
    times = []
    for way in ways:
        jax.block_until_ready(way())
        for _ in range(tries):
            begin = time.perf_counter()
            for _ in range(10):
                copied = way()
            jax.block_until_ready(copied)
            times.append((time.perf_counter() - begin) / 10)
    return moved / min(times)


def of_bandwidth(
    name: str, optimizer: Any, shapes: Any, *, repeats: int, steps: int, size: int
) -> Figure:
    """Time steps against a copy of what they must move: read all once, write what is new once."""
    grads, copies = random(shapes, 1), copiers(size)
    carry = shapes, jax.eval_shape(optimizer.init, shapes)
    needed = 2 * nbytes(carry) + nbytes(grads)
    run = stepper(optimizer, shapes, grads, steps)
    goal = 0.9 if on_accelerator() else None
    figure = against(
        f"{name}, of copy bandwidth",
        run,
        lambda: 1e3 * steps * needed / bandwidth(copies),
        repeats=repeats,
        goal=goal,
    )
    own, best = (1e3 * steps * needed / ms for ms in (figure.ours_ms, figure.theirs_ms))
    print(f"{name}: {own / 1e9:.4g} GB/s, a copy {best / 1e9:.4g} GB/s")
    readings = {"bytes": needed, "bytes per second": own, "bytes per second of copies": best}
    return figure._replace(readings=readings)


# Against Optax and PyTorch.


def against_optax(
    name: str, optimizer: Any, shapes: Any, *, repeats: int, steps: int
) -> list[Figure]:
    """Time ours and `optax.adamw`, and `optax.adamw` against itself: how equal is equal here?"""
    grads = random(shapes, 1)
    theirs = optax.adamw(0.1, weight_decay=0.1, mask=wdjax.mask(wdjax.standard()))
    program = functools.partial(stepper, shapes=shapes, grads=grads, steps=steps)
    floor = paired(
        f"{name}, optax.adamw against itself",
        *(program(theirs), program(theirs)),
        repeats=repeats,
        goal=None,
        faster=True,
    )
    goal = min(1.0, round(floor.ratio[1], 3)) if on_accelerator() else None
    pair = program(optimizer), program(theirs)
    name = f"{name}, against optax.adamw"
    return [floor, paired(name, *pair, repeats=repeats, goal=goal, faster=True)]


def torch_optimizer(shapes: Any) -> Any:
    """`torch.optim.AdamW(fused=True)` with parameters and gradients like these."""
    import torch

    place = "cuda" if jax.default_backend() == "gpu" else "cpu"
    decays = jax.tree.leaves(wdjax.resolve(wdjax.standard(), shapes))
    groups: dict[float, list[Any]] = {1.0: [], 0.0: []}
    for leaf, m in zip(jax.tree.leaves(shapes), decays, strict=True):
        kind = {"device": place, "dtype": getattr(torch, leaf.dtype.name)}
        param = torch.nn.Parameter(torch.randn(leaf.shape, **kind))
        param.grad = torch.randn(leaf.shape, **kind)
        groups[m].append(param)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": 0.1 * m} for m, group in groups.items()],
        lr=0.1,
        fused=True,
    )


def torch_stepper(optimizer: Any, steps: int) -> Callable[[], None]:
    """Return a program that takes some steps of a PyTorch optimizer."""
    import torch

    def run() -> None:
        for _ in range(steps):
            optimizer.step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run


def has_torch(shapes: Any) -> bool:
    """Whether PyTorch can be compared: on the same card with room for it, or both on a CPU."""
    if not installed("torch") or jax.default_backend() == "tpu":
        return False
    import torch

    if not torch.cuda.is_available():
        return not on_accelerator()
    if on_accelerator() and torch.cuda.mem_get_info()[0] < 4.2 * nbytes(shapes):
        print("PyTorch is left out: set XLA_PYTHON_CLIENT_PREALLOCATE=false to leave it memory")
        return False
    return True


def against_torch(
    name: str, optimizer: Any, shapes: Any, *, repeats: int, steps: int
) -> list[Figure]:
    """Time ours and PyTorch's fused AdamW, where it is there."""
    if not has_torch(shapes):
        return []
    theirs = torch_stepper(torch_optimizer(shapes), steps)
    ours = stepper(optimizer, shapes, random(shapes, 1), steps)
    goal = 1.0 if on_accelerator() else None
    name = f"{name}, against torch fused AdamW"
    return [paired(name, ours, theirs, repeats=repeats, goal=goal, faster=True)]


# All of it.


def show_programs(smoke: bool) -> None:
    """Print what the compilers make of each step."""
    print("a leaf's kernels; bytes of memory moved per parameter, and the least that would do")
    sizes = (64, 1, 128) if smoke else SIZES
    print(table(f"compiled for this {jax.devices()[0].device_kind}", sizes=sizes))
    for platform in ("cuda", "tpu") if not (smoke or on_accelerator()) else ():
        if device := programs.absent_device(platform):
            print(table(f"compiled for an absent {device.device_kind}", device))


def bench_accelerator(repeats: int, smoke: bool) -> list[Figure]:
    """Decayed Adam at the size that the device's memory allows, in float32 and in bfloat16."""
    show_programs(smoke)
    most = 1e5 if smoke else MOST if on_accelerator() else MOST_ON_A_CPU
    room, steps = memory(), 10 if on_accelerator() else 2
    copied = int(min(most / 4, room / 64))  # numbers: 1 GB in float32, where there is room
    ours = wdjax.decayed(optax.adam)(0.1, weight_decay=0.1)
    figures = []
    for dtype in (jnp.float32, jnp.bfloat16):
        shapes = transformer(room, most, dtype)
        size = described(shapes, room)
        name = f"accelerator, {size} {jnp.dtype(dtype).name}"
        run = functools.partial(of_bandwidth, repeats=repeats, steps=steps, size=copied)
        figures.append(run(name, ours, shapes))
        if dtype is jnp.bfloat16:
            figures.append(run(f"{name} compensated", wdjax.compensated(ours), shapes))
        figures += against_optax(name, ours, shapes, repeats=repeats, steps=steps)
        figures += against_torch(name, ours, shapes, repeats=repeats, steps=steps)
    return figures


def described(shapes: Any, room: int) -> str:
    """Say how large the model is, and why it is smaller than it should be."""
    n = count(shapes)
    size = f"{n / 1e9:.2f}B" if n >= 1e9 else f"{n / 1e6:.3g}M"
    why = f"{room / 1e9:.3g} GB of memory" if on_accelerator() else "no accelerator is here"
    note = "" if n >= 1e9 else f", fewer than 1B: {why}"
    print(f"{size} parameters in {len(jax.tree.leaves(shapes))} leaves{note}")
    return size
