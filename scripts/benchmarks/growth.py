"""What grows with what: parameters, leaves, steps, rules, sweep members; slopes in log-log.

A slope is fitted over the last decade of sizes. At most 1 is linear; the tolerance of 0.1 is a
factor of 10^0.1 = 1.26 between the two ends of a decade, by which timings of a shared machine
scatter. Each time is the smallest of a few, for noise only adds.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import wdjax
from benchmarks import sweeping
from benchmarks.steps import compiled_step, ours, stepper
from benchmarks.timing import Figure, timed
from benchmarks.trainers import with_wdjax

Times = dict[str, list[float]]  # curve -> milliseconds, one for each size
LINEAR, CONSTANT, TOLERANCE = 1.0, 0.0, 0.1


def fastest(program: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of the fastest run."""
    return min(timed(program, repeats))


@functools.cache
def compiled() -> list[float]:
    """Seconds of every compilation from the first call on, a list that grows."""
    found: list[float] = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return found


def compiling(program: Callable[[], Any], repeats: int) -> float:
    """Milliseconds of a run of the program that go into compilation, at the fastest."""
    totals = []
    for _ in range(repeats):
        first = len(compiled())
        jax.block_until_ready(program())
        totals.append(1e3 * sum(compiled()[first:]))
    return min(totals)


# The panels: sizes -> times of each curve.


def by_parameters(sizes: list[int], repeats: int) -> Times:
    """One leaf, a step in one program; and what a copy of the leaf takes on this machine."""
    times: Times = {"step": [], "copy of the parameters": []}
    for size in sizes:
        run = stepper(ours(), {"kernel": jnp.full((10, size // 10), 0.01)})
        run()
        times["step"].append(fastest(run, repeats))
        source, target = np.ones(size, np.float32), np.zeros(size, np.float32)
        copy = lambda source=source, target=target: np.copyto(target, source)
        times["copy of the parameters"].append(fastest(copy, repeats))
    return times


def blocks(count: int, prefix: str, width: int = 8) -> dict[str, Any]:
    """So many blocks of a kernel and a bias."""
    return {
        f"{prefix}_{i}": {"kernel": np.ones((width, width), np.float32),
                          "bias": np.ones(width, np.float32)}
        for i in range(count)
    }  # fmt: skip


def by_leaves(sizes: list[int], repeats: int) -> Times:
    """Small leaves: the rules, the trace, the compilation, the step."""
    times: Times = {"resolve": [], "trace": [], "compile": [], "step": []}
    for size in sizes:
        # other names each time, for what was resolved is remembered
        trees = iter([blocks(size // 2, f"{size}_{i}") for i in range(repeats)])
        resolve = lambda trees=trees: wdjax.resolve(wdjax.standard(), next(trees))
        times["resolve"].append(fastest(resolve, repeats))
        for name, taken in step_of(ours(), blocks(size // 2, f"{size}_step"), repeats).items():
            times[name].append(taken)
    return times


def by_leaves_otherwise(sizes: list[int], repeats: int) -> Times:
    """The same leaves in stacks; and plain SGD, the least that a program for each leaf does."""
    ways = {
        "in stacks": (wdjax.stacking.stacked(ours()), wdjax.stacking.stack),
        "optax.sgd": (optax.sgd(0.1), lambda tree: tree),
    }
    times: Times = {f"{part}, {way}": [] for way in ways for part in ("compile", "step")}
    for size in sizes:
        for way, (optimizer, held) in ways.items():
            taken = step_of(optimizer, held(blocks(size // 2, f"{size}")), repeats)
            for part in ("compile", "step"):
                times[f"{part}, {way}"].append(taken[part])
    return times


def step_of(optimizer: Any, tree: Any, repeats: int) -> dict[str, float]:
    """Time the trace, the compilation, once each, and the run of one step."""
    params, grads = (jax.tree.map(jnp.asarray, tree) for _ in range(2))
    carry = [params, jax.block_until_ready(optimizer.init(params))]
    marks = [time.perf_counter()]
    lowered = compiled_step(optimizer).lower(*carry, grads)
    marks.append(time.perf_counter())
    program = lowered.compile()
    marks.append(time.perf_counter())

    def run() -> Any:
        carry[:] = program(*carry, grads)
        return carry

    run()
    trace, compilation = 1e3 * np.diff(marks)
    return {"trace": trace, "compile": compilation, "step": fastest(run, repeats)}


def by_steps(sizes: list[int], repeats: int) -> Times:
    """The documents' job by `fit`, three steps an epoch."""
    data = wdjax.datasets.linear(seed=0).train
    times: Times = {"run": [], "compile": []}
    warm = with_wdjax.line(data)
    warm(1)
    for size in sizes:
        run = lambda size=size: warm(size // 3)
        cold = lambda size=size: with_wdjax.line(data)(size // 3)
        times["run"].append(fastest(run, repeats))
        times["compile"].append(compiling(cold, min(3, repeats)))
    return times


def by_rules(sizes: list[int], repeats: int) -> Times:
    """200 leaves, decided by more and more rules."""
    times: Times = {"resolve": [], "trace": [], "step": []}
    for size in sizes:
        trees = iter([blocks(100, f"{size}_{i}") for i in range(repeats)])
        numbers = iter(range(repeats))
        resolve = lambda trees=trees, numbers=numbers, size=size: wdjax.resolve(
            _rules(size, f"{size}_{next(numbers)}"), next(trees)
        )
        times["resolve"].append(fastest(resolve, repeats))
        rules = _rules(size, f"{size}_step")
        optimizer = wdjax.decayed(optax.adam)(1e-3, weight_decay=0.1, rules=rules)
        new = step_of(optimizer, blocks(100, f"{size}_step"), repeats)
        for name in ("trace", "step"):
            times[name].append(new[name])
    return times


def _rules(count: int, prefix: str) -> Any:
    named = [(f"{prefix}_{i}/**", 1.0 / (i + 1)) for i in range(count - 1)]
    return (*named, ("**", 1.0))


def by_members(sizes: list[int], repeats: int) -> Times:
    """λ of the documents' job, 5 folds each, 100 epochs, in one program."""
    times: Times = {"run": [], "compile": []}
    for size in sizes:
        lams = np.geomspace(1e-5, 1.0, size)
        warm = lambda lams=lams: sweeping.swept(lams, 100, cold=False)
        cold = lambda lams=lams: sweeping.swept(lams, 100, cold=True)
        warm()
        times["run"].append(fastest(warm, repeats))
        times["compile"].append(compiling(cold, min(3, repeats)))
    return times


LEAVES = [10, 30, 100, 200, 500, 1_000, 2_000, 5_000]
PANELS: dict[str, tuple[Callable[[list[int], int], Times], list[int]]] = {
    "parameters": (by_parameters, [10**k for k in range(3, 9)]),
    "leaves": (by_leaves, LEAVES),
    "leaves, otherwise": (by_leaves_otherwise, LEAVES),
    "steps": (by_steps, [99, 300, 999, 3_000, 9_999, 30_000, 99_999]),
    "rules": (by_rules, [1, 2, 5, 10, 20, 50, 100]),
    "sweep members": (by_members, [4**k for k in range(7)]),
}
OTHERS = ("copy of the parameters", "compile, optax.sgd", "step, optax.sgd")  # without goals


def slope(sizes: list[int], times: list[float]) -> float:
    """The exponent p of time ∝ size^p, by least squares over the last decade."""
    x, y = np.asarray(sizes, float), np.asarray(times)
    last = x >= x[-1] / 10
    return float(np.polyfit(np.log(x[last]), np.log(y[last]), 1)[0])


def bench_growth(repeats: int, smoke: bool) -> list[Figure]:
    """Slopes of all curves; compilation must not depend on the number of steps."""
    figures = []
    for panel, (measure, sizes) in PANELS.items():
        sizes = sizes[:2] if smoke else sizes
        for curve, times in measure(sizes, max(2, repeats // 3)).items():
            most = CONSTANT if (panel, curve) == ("steps", "compile") else LINEAR
            goal = None if smoke or curve in OTHERS else most + TOLERANCE
            figures.append(_figure(panel, curve, sizes, times, goal))
    return figures


def _figure(
    panel: str, curve: str, sizes: list[int], times: list[float], goal: float | None
) -> Figure:
    """The last size is ours, a tenth of it theirs, and the slope between them the ratio."""
    p = slope(sizes, times)
    x, y = np.log(sizes), np.log(times)
    last = np.asarray(sizes) >= sizes[-1] / 10
    local = (np.diff(y) / np.diff(x))[last[:-1]]
    tenth = float(np.exp(np.interp(x[-1] - np.log(10), x, y)))
    return Figure(
        f"growth with {panel}, {curve}: {sizes[-1]:,} to a tenth, slope",
        times[-1],
        tenth,
        (p, float(local.min()), float(local.max())),
        "slope" if goal is None else f"slope <= {goal:g}",
        None if goal is None else p <= goal,
        {"panel": panel, "curve": curve, "sizes": sizes, "ms": times},
    )
