"""A sweep of a minute on two worker processes, against the same in one process."""

import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Any
from unittest import mock

import numpy as np

from benchmarks.sweeping import BATCH, FOLDS, data, loss, optimizer, start
from benchmarks.timing import Figure, from_pairs, timed
from wdjax import sweeps


def build(h: Any) -> Any:
    """The optimizer of one configuration."""
    return optimizer(h["weight_decay"])


def swept(count: int, epochs: int, executor: Executor | None) -> Any:
    """Eight chunks, each of which is a task for a worker."""
    return sweeps.sweep(
        build, sweeps.grid(weight_decay=np.geomspace(1e-5, 1.0, count)), data(), init=start,
        loss=loss, folds=sweeps.kfold(80, FOLDS), epochs=epochs, batch_size=BATCH, seeds=3,
        chunk=count // 8, executor=executor, progress=False,
    ).val  # fmt: skip


def bench_workers(repeats: int, smoke: bool) -> list[Figure]:
    """The start of the workers, and what they compile, is part of their time."""
    count, epochs = (8, 2) if smoke else (1_024, 50_000)
    spawn = multiprocessing.get_context("spawn")

    def two() -> Any:
        one_thread = mock.patch.dict(os.environ, NPROC="1")  # each worker has a core
        with one_thread, ProcessPoolExecutor(2, mp_context=spawn) as executor:
            return swept(count, epochs, executor)

    swept(count, 1, None)  # imports, and the small programs around the sweep
    pairs = [
        (timed(two, 1)[0], timed(lambda: swept(count, epochs, None), 1)[0])
        for _ in range(max(1, repeats // 15))
    ]
    name = f"sweep of {count:,} λ on 2 worker processes, against 1 process"
    return [from_pairs(name, pairs, None if smoke else 1.7)]
