"""The benchmark suite cannot rot: every part runs at tiny size, and peers do the same work."""

import importlib
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from script_files import FOLDER, load

import wdjax

SCRIPT = FOLDER / "bench.py"
bench = load("bench")


def part(name):
    return importlib.import_module(f"benchmarks.{name}")


# All of it, in processes of its own; peers are left out, for they take minutes.

PARTS = {  # names -> the first words of some of their figures
    "step bandwidth stacks metrics accelerator": {
        "step",
        "optax.adamw",
        "stacks",
        "metrics",
        "accelerator",
    },
    "loop digits start step_one import rules audit growth": {
        "audit",
        "fit",
        "cold",
        "first",
        "import",
        "resolve",
        "growth",
    },
    "one many cube devices workers groups jaxopt": {"20", "240", "sweep"},
    "ridge folds lasso stream": {"LOO", "5", "lasso", "stream"},
    "startup layers": {"startup", "layers"},
}


@pytest.mark.slow  # a minute or two: everything is compiled, and fresh processes are started
@pytest.mark.parametrize("names", PARTS)
def test_every_benchmark_runs_and_writes_its_figures(names, tmp_path):
    target, picture = tmp_path / "figures.json", tmp_path / "deeper" / "growth.png"
    options = ["--smoke", "--alone", "--json", str(target), "--figure", str(picture)]
    command = [sys.executable, str(SCRIPT), *names.split(), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "ratio [min, max]" in done.stdout
    figures = json.loads(target.read_text())
    assert PARTS[names] <= {figure["name"].split(",")[0].split()[0] for figure in figures}
    curves = [f["readings"] for f in figures if f["name"].startswith("growth")]
    assert all(len(curve["sizes"]) == len(curve["ms"]) for curve in curves)
    if "growth" in names:
        assert {curve["panel"] for curve in curves} == set(part("growth").PANELS)
        assert picture.read_bytes().startswith(b"\x89PNG")
    if "bandwidth" in names:
        moved = [f["readings"] for f in figures if "a copy of its bytes" in f["name"]]
        assert min(reading["bytes per second"] for reading in moved) > 0


def test_every_benchmark_is_tried():
    assert sorted(" ".join(PARTS).split()) == sorted(bench.BENCHES)


def test_an_unknown_benchmark_is_an_error():
    done = subprocess.run([sys.executable, str(SCRIPT), "bogus"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "unknown benchmarks ['bogus']" in done.stderr


@pytest.mark.parametrize("name", bench.BENCHES)
def test_every_name_has_its_function(name):
    assert callable(getattr(part(bench.BENCHES[name]), f"bench_{name}"))


# What the figures are made of.


def test_a_goal_is_met_by_the_median_of_the_paired_ratios():
    pairs = [(1.0, 30.0), (2.0, 4.0), (1.0, 1.0)]  # theirs / ours: 30, 2, 1
    figure = part("timing").from_pairs("loop", pairs, 2.0)
    assert figure.ratio == (2.0, 1.0, 30.0)
    assert figure.met is True
    assert part("timing").from_pairs("loop", pairs, 2.1).met is False


def test_two_programs_run_in_turn_after_one_to_warm_up():
    calls = []
    ours, theirs = lambda: calls.append("ours"), lambda: calls.append("theirs")
    figure = part("timing").paired("step", ours, theirs, repeats=2, goal=None)
    assert calls == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
    assert figure.ratio[1] <= figure.ratio[0] <= figure.ratio[2]


def test_the_slope_of_a_power_is_its_exponent_over_the_last_decade():
    sizes = [10, 100, 1_000, 3_000, 10_000]
    times = [50.0, 50.0, 50.0, 50.0 * 3**1.5, 50.0 * 10**1.5]  # flat, then a power of 3/2
    assert part("growth").slope(sizes, times) == pytest.approx(1.5)


def test_a_slope_beyond_the_tolerance_misses_its_goal():
    make = part("growth")._figure
    sizes = [10, 100, 1_000]
    assert make("leaves", "step", sizes, [1.0, 10.0, 100.0], 1.1).met is True
    square = make("leaves", "step", sizes, [1.0, 100.0, 10_000.0], 1.1)
    assert square.met is False
    assert (square.ours_ms, square.theirs_ms) == pytest.approx((10_000.0, 100.0))
    assert square.ratio == pytest.approx((2.0, 2.0, 2.0))


def test_compilation_is_counted_where_it_happens():
    compiling = part("growth").compiling
    fresh = lambda: jax.jit(lambda x: x + 1)(1.0)
    warm = jax.jit(lambda x: x - 1)
    warm(1.0)
    assert compiling(fresh, 1) > 0
    assert compiling(lambda: warm(1.0), 1) == 0


def test_a_step_of_adam_reads_and_writes_each_number_seven_times():
    steps, size = part("steps"), part("bandwidth").size
    params = steps.big_leaves(smoke=True)
    state = steps.ours().init(params)
    numbers = 3 * 64 * 64
    needed = 2 * size([params, state]) + size(params)
    assert needed == 7 * 4 * numbers + 2 * 2 * 4  # and two step counters of int32


@pytest.mark.slow  # PyTorch takes seconds to import
def test_the_steps_of_all_sides_are_the_same():
    pytest.importorskip("torch")
    steps = part("steps")
    params = steps.mixed_leaves(smoke=True)
    mine, theirs = steps.stepper(steps.ours(), params), steps.stepper(steps.optax_adamw(), params)
    adamw = steps.torch_stepper(params, fused=True)
    groups = adamw.__closure__[0].cell_contents.param_groups
    for _ in range(3):
        ours, optaxs, _ = mine(), theirs(), adamw()
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(optaxs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
    kernels, biases = (group["params"] for group in groups)
    for i, layer in enumerate(ours.values()):
        np.testing.assert_allclose(layer["kernel"], kernels[i].detach(), rtol=1e-4)
        np.testing.assert_allclose(layer["bias"], biases[i].detach(), rtol=1e-4)


# The loops of the peers train as well as ours, each in a process of its own: Keras asks the
# environment for its backend once.

TRAIN = """
import importlib, json, sys
import numpy as np
import wdjax

module = importlib.import_module("benchmarks.trainers.with_" + sys.argv[1])
line = module.line(wdjax.datasets.linear(seed=0).train)(100)
ends = [float(line(np.full((1, 1), x, np.float32)).squeeze()) for x in (-1, 1)]
train, test = wdjax.datasets.digits(seed=0)
digits = module.digits(train)(10)
right = digits(test["x"]).argmax(axis=1) == test["y"]
print(json.dumps([*ends, float(right.mean())]))
"""


@pytest.mark.slow  # imports of seconds, eager loops
@pytest.mark.parametrize("library", ["wdjax", "optax", "torch", "keras"])
def test_each_library_learns_both_jobs(library):
    if not part("trainers").available(library):
        pytest.skip(f"{library} is not installed")
    command = [sys.executable, "-c", TRAIN, library]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True)
    below, above, right = json.loads(done.stdout.splitlines()[-1])
    data = wdjax.datasets.linear(seed=0).train
    slope, intercept = np.polyfit(data["x"][:, 0], data["y"], 1)
    assert (above - below) / 2 == pytest.approx(slope, rel=0.03)
    assert (above + below) / 2 == pytest.approx(intercept, rel=0.03)
    assert right > 0.93
