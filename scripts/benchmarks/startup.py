"""What a user waits for before anything trains: the import, the rules of a large tree."""

import os
import statistics
import subprocess
import sys
import time

import jax.numpy as jnp

import wdjax
from benchmarks.timing import Figure

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
