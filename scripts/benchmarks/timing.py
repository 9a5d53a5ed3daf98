"""How everything is timed: two programs in turn, and the ratio of each pair."""

import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax


class Figure(NamedTuple):
    """One row of the table: ours against theirs."""

    name: str
    ours_ms: float
    theirs_ms: float
    ratio: tuple[float, float, float]  # median, min, max of the paired ratios ours / theirs
    goal: str
    met: bool | None  # None: reported, without a goal
    readings: Mapping[str, Any] | None = None  # other numbers, for the JSON: a curve, bytes moved


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
            times[which].extend(timed(program, 1))
    ratios = [b / a if faster else a / b for a, b in zip(*times, strict=True)]
    middle = statistics.median(ratios)
    text = "theirs/ours" if faster else "ours/theirs"
    met = None
    if goal is not None:
        met = middle >= goal if faster else middle <= goal
        text += f" >= {goal:g}" if faster else f" <= {goal:g}"
    ours_ms, theirs_ms = (statistics.median(t) for t in times)
    return Figure(name, ours_ms, theirs_ms, (middle, min(ratios), max(ratios)), text, met)


def scaled(program: Callable[[], Any], factor: float) -> Callable[[], float]:
    """Time a part of the work and return the milliseconds that all of it would take."""

    def run() -> float:
        begin = time.perf_counter()
        program()
        return 1e3 * factor * (time.perf_counter() - begin)

    return run


def against(name: str, ours: Callable[[], Any], theirs_ms: Callable[[], float], *,
            repeats: int, goal: float | None) -> Figure:  # fmt: skip
    """Like `paired`, where the peer says itself how long it took."""
    jax.block_until_ready(ours())
    pairs = [(timed(ours, 1)[0], theirs_ms()) for _ in range(repeats)]
    return from_pairs(name, pairs, goal)


def from_pairs(name: str, pairs: list[tuple[float, float]], goal: float | None) -> Figure:
    """The figure of pairs of milliseconds, ours and theirs; the goal is theirs / ours >= goal."""
    ratios = [theirs / ours for ours, theirs in pairs]
    ours_ms, theirs_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
    spread = (statistics.median(ratios), min(ratios), max(ratios))
    text = "theirs/ours" if goal is None else f"theirs/ours >= {goal:g}"
    met = None if goal is None else spread[0] >= goal
    return Figure(name, ours_ms, theirs_ms, spread, text, met)


def limited(name: str, program: Callable[[], Any], *, repeats: int, most_ms: float) -> Figure:
    """One program against a time."""
    jax.block_until_ready(program())
    times = timed(program, repeats)
    middle = statistics.median(times)
    spread = (middle / most_ms, min(times) / most_ms, max(times) / most_ms)
    return Figure(name, middle, most_ms, spread, f"<= {most_ms:g} ms", middle <= most_ms)


def timed(program: Callable[[], Any], repeats: int) -> list[float]:
    """Milliseconds of each of some runs."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(program())
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def alone(program: str) -> Any:
    """Run Python code in a process of its own, and return the JSON that it prints."""
    folder = pathlib.Path(__file__).parents[1]  # of the scripts, and of the package beside them
    path = [str(folder), str(folder.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
    )
    return json.loads(done.stdout)


PEERS = {"wanted": True}  # --alone leaves them out


def installed(*names: str) -> bool:
    """Whether all these packages are here, and wanted."""
    return PEERS["wanted"] and all(importlib.util.find_spec(name) for name in names)


def table(figures: list[Figure], *, head: bool = True) -> str:
    """Lay the figures out as text."""
    first = f"{'what':<62} {'ours ms':>10} {'theirs ms':>10} {'ratio [min, max]':>24}  goal"
    rows = [
        f"{f.name:<62} {f.ours_ms:>10.3f} {f.theirs_ms:>10.3f} "
        f"{f'{f.ratio[0]:.3g} [{f.ratio[1]:.3g}, {f.ratio[2]:.3g}]':>24}  "
        f"{f.goal} { {True: 'ok', False: 'MISSED', None: ''}[f.met] }"
        for f in figures
    ]
    return "\n".join([first, *rows] if head else rows)
