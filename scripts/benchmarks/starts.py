"""First results: from the start of a process to a trained model, imports and compilation in it."""

import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

import wdjax
from benchmarks.timing import Figure, from_pairs, installed
from benchmarks.trainers import available

SCRIPTS = pathlib.Path(__file__).parent / "trainers"
GOALS = {"torch": 1.0, "keras": 1.0, "optax": None}
MODELS = {"readme": 2, "flax": 12, "haiku": 50}  # layers


def milliseconds(script: str, *arguments: object) -> float:
    """What a user waits for, in a process without a cache of compiled programs."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    return 1e3 * (float(done.stdout.split()[-1]) - begin)


def in_turn(script: str, library: str, few: int, *rest: object) -> list[tuple[float, float]]:
    """Milliseconds with wdjax and with another library, so many times."""
    both = (script, "wdjax", *rest), (script, library, *rest)
    return [(milliseconds(*both[0]), milliseconds(*both[1])) for _ in range(few)]


def _environment() -> dict[str, str]:
    # an installed package has its byte code; let a working copy write it too
    left_out = ("PYTHONDONTWRITEBYTECODE", "JAX_COMPILATION_CACHE_DIR")
    return {name: value for name, value in os.environ.items() if name not in left_out}


def bench_start(repeats: int, smoke: bool) -> list[Figure]:
    """Both jobs in fresh processes, in turn with those of the peers."""
    jobs = {
        "line": (wdjax.datasets.linear(seed=0).train, 1_000),
        "digits": (wdjax.datasets.digits(seed=0).train, 20),
    }
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        for job, (data, most) in jobs.items():
            file, epochs = pathlib.Path(folder, f"{job}.npz"), 1 if smoke else most
            np.savez(file, **data)
            for library in filter(available, GOALS):
                few = 1 if smoke else max(3, repeats // 3)
                pairs = in_turn("first.py", library, few, job, file, epochs)
                name = f"first result, {job}, {epochs:,} epochs, against {library}"
                figures.append(from_pairs(name, pairs, None if smoke else GOALS[library]))
    return figures


def bench_step_one(repeats: int, smoke: bool) -> list[Figure]:
    """One step of a model, from the start of the process, with wdjax's AdamW and with Optax's."""
    figures = []
    for model, layers in MODELS.items():
        if model != "readme" and not installed(model):
            continue
        layers = 2 if smoke else layers
        few = 1 if smoke else max(5, repeats // 3)
        pairs = in_turn("first_step.py", "optax", few, model, layers)
        name = f"first step, {model}, {layers} layers"
        figures.append(from_pairs(name, pairs, None if smoke else round(1 / 1.05, 3)))
    return figures
