"""Paired timings: each ratio compares two programs run in turn in one process.

    python scripts/bench.py [step|loop|import|rules|metrics ...] [--repeats N] [--json FILE]

A figure is the median of the paired ratios, with the smallest and the largest. Machines are noisy:
quote ratios, not times.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax


class Figure(NamedTuple):
    """One row of the table: ours against theirs."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: tuple[float, float, float]  # median, min, max of the paired ratios ours / theirs
    goal: str
    met: bool | None  # None: reported, without a goal


def paired(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    repeats: int,
    goal: float | None,
    faster: bool = False,
) -> Figure:
    """Time two programs in turn. `faster` reads the goal as theirs / ours >= goal."""
    times: tuple[list[float], list[float]] = ([], [])
    for program in (ours, theirs):
        jax.block_until_ready(program())  # compile, warm up
    for i in range(repeats):
        order = ((0, ours), (1, theirs)) if i % 2 == 0 else ((1, theirs), (0, ours))
        for which, program in order:
            start = time.perf_counter()
            jax.block_until_ready(program())
            times[which].append(1e3 * (time.perf_counter() - start))
    ratios = [b / a if faster else a / b for a, b in zip(*times, strict=True)]
    middle = statistics.median(ratios)
    text = "theirs/ours" if faster else "ours/theirs"
    met = None
    if goal is not None:
        met = middle >= goal if faster else middle <= goal
        text += f" >= {goal:g}" if faster else f" <= {goal:g}"
    ours_ms, theirs_ms = (statistics.median(t) for t in times)
    return Figure(name, ours_ms, theirs_ms, (middle, min(ratios), max(ratios)), text, met)


# One optimiser step, donated, parameters updated.


def big_leaves(smoke: bool) -> dict[str, jax.Array]:
    """Three leaves of 16.8M numbers."""
    size = 64 if smoke else 4_096
    return {f"layer_{i}": {"kernel": jnp.full((size, size), 0.01 * (i + 1))} for i in range(3)}


def mixed_leaves(smoke: bool) -> dict[str, jax.Array]:
    """128 leaves, kernels and biases, 16.8M numbers in all."""
    width = 8 if smoke else 512
    return {
        f"layer_{i}": {"kernel": jnp.full((width, width), 0.01), "bias": jnp.full(width, 0.01)}
        for i in range(64)
    }


def stepper(optimizer: optax.GradientTransformation, params: Any) -> Callable[[], Any]:
    """Return a function that takes one donated step on its own copy of the parameters."""
    carry = [jax.tree.map(jnp.copy, params), optimizer.init(params)]
    grads = jax.tree.map(lambda p: 0.1 * p, params)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1))

    def run() -> Any:
        carry[:] = compiled(*carry, grads)
        return carry[0]

    return run


def bench_step(repeats: int, smoke: bool) -> list[Figure]:
    """decayed(optax.adam) against optax.adamw, decaying the same leaves."""
    rules = wdjax.standard()
    figures = []
    for name, make in (("3 x 16.8M", big_leaves), ("128 mixed leaves", mixed_leaves)):
        params = make(smoke)
        ours = wdjax.decayed(optax.adam)(1e-3, weight_decay=0.1, rules=rules)
        theirs = optax.adamw(1e-3, weight_decay=0.1, mask=wdjax.mask(rules))
        pair = stepper(ours, params), stepper(theirs, params)
        figures.append(
            paired(f"step, {name}, against optax.adamw", *pair, repeats=repeats, goal=1.03)
        )
    return figures


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


# Import time, in fresh processes.


def bench_import(repeats: int, smoke: bool) -> list[Figure]:
    """`import wdjax` over `import optax`: the goal is a difference, 50 ms."""
    del smoke
    clock = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"

    def seconds(module: str) -> float:
        command = [sys.executable, "-c", clock.format(module)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=env)
        return float(done.stdout)

    # an installed package has its byte code; let a working copy write it too
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    seconds("wdjax")
    pairs = [(1e3 * seconds("wdjax"), 1e3 * seconds("optax")) for _ in range(max(3, repeats // 3))]
    over = statistics.median(a - b for a, b in pairs)
    ratios = [a / b for a, b in pairs]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    spread = (statistics.median(ratios), min(ratios), max(ratios))
    name = f"import wdjax against import optax ({over:+.0f} ms)"
    return [Figure(name, ours, theirs, spread, "over <= 50 ms", over <= 50)]


# Rules: the second resolution of a large tree is a look-up.


def bench_rules(repeats: int, smoke: bool) -> list[Figure]:
    """resolve() on 1,600 leaves: first time at most 50 ms, then at most 0.2 ms."""
    blocks = 5 if smoke else 100
    names = ["kernel", "bias", "scale", "embedding"]
    tree = {
        f"block_{b}": {f"dense_{d}": {n: jnp.zeros((2, 2)) for n in names} for d in range(4)}
        for b in range(blocks)
    }
    rules = wdjax.standard()
    start = time.perf_counter()
    wdjax.resolve(rules, tree)
    first = 1e3 * (time.perf_counter() - start)
    times = []
    for _ in range(max(20, repeats)):
        start = time.perf_counter()
        wdjax.resolve(rules, tree)
        times.append(1e3 * (time.perf_counter() - start))
    again = statistics.median(times)
    spread = (again / first, min(times) / first, max(times) / first)
    name = f"resolve {16 * blocks:,} leaves: again, against the first time"
    met = first <= 50 and again <= 0.2
    return [Figure(name, again, first, spread, "<= 0.2 ms and <= 50 ms", met)]


# Metrics: the same training with and without readings, ten steps at a time.


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
            figures.append(paired(name, *pair, repeats=repeats, goal=1.03))
    return figures


def ten_times(program: Callable[[], Any]) -> Callable[[], Any]:
    """Return a program that runs another ten times."""
    return lambda: [jax.block_until_ready(program()) for _ in range(10)][-1]


BENCHES = {
    "step": bench_step,
    "loop": bench_loop,
    "import": bench_import,
    "rules": bench_rules,
    "metrics": bench_metrics,
}


def table(figures: list[Figure]) -> str:
    """Lay the figures out as text."""
    head = f"{'what':<62} {'ours ms':>10} {'theirs ms':>10} {'ratio [min, max]':>24}  goal"
    rows = [
        f"{f.name:<62} {f.ours_ms:>10.3f} {f.theirs_ms:>10.3f} "
        f"{f'{f.ratio[0]:.3g} [{f.ratio[1]:.3g}, {f.ratio[2]:.3g}]':>24}  "
        f"{f.goal} { {True: 'ok', False: 'MISSED', None: ''}[f.met] }"
        for f in figures
    ]
    return "\n".join([head, *rows])


def main() -> None:
    """Run the chosen benchmarks and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("which", nargs="*", choices=[*BENCHES, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", help="also write every figure to this file")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does it run?")
    options = parser.parse_args()
    repeats = 2 if options.smoke else options.repeats
    figures: list[Figure] = []
    for name in options.which or BENCHES:
        figures += BENCHES[name](repeats, options.smoke)
    print(table(figures))
    if options.json:
        with open(options.json, "w") as file:
            json.dump([figure._asdict() for figure in figures], file, indent=2)


if __name__ == "__main__":
    main()
