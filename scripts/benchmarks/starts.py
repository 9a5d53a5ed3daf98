"""First results: from the start of a process to a trained model, imports and compilation in it."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

import wdjax
from benchmarks.timing import Figure, from_pairs
from benchmarks.trainers import available

SCRIPT = pathlib.Path(__file__).parent / "trainers" / "first.py"
GOALS = {"torch": 1.0, "keras": 1.0, "optax": None}


def milliseconds(library: str, job: str, file: pathlib.Path, epochs: int) -> float:
    """What a user waits for, in a process without a cache of compiled programs."""
    command = [sys.executable, str(SCRIPT), library, job, str(file), str(epochs)]
    begin = time.time()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=_environment())
    return 1e3 * (float(done.stdout.split()[-1]) - begin)


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
                first = functools.partial(milliseconds, job=job, file=file, epochs=epochs)
                few = 1 if smoke else max(3, repeats // 3)
                pairs = [(first("wdjax"), first(library)) for _ in range(few)]
                name = f"first result, {job}, {epochs:,} epochs, against {library}"
                figures.append(from_pairs(name, pairs, None if smoke else GOALS[library]))
    return figures
