"""Chunks of a sweep as tasks of an executor: other processes, or other machines, train them.

A task carries all that it needs: functions, data and configurations. So any engine with the
interface of `concurrent.futures` will do, and a worker that is lost costs its chunk only once more.
"""

import contextlib
import functools
import importlib
import pickle
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from wdjax._trees import PyTree, checks
from wdjax.sweeps import _program
from wdjax.sweeps._functions import Job

Array = np.ndarray[Any, Any]

PIECES = 8  # tasks, where the number of configurations in each is not told
_TRIES = 3  # of a chunk whose worker is lost each time


def check_executor(executor: Any) -> None:
    """Refuse anything but an executor, and pools of forked processes, in which JAX may hang.

    Args:
        executor: from `concurrent.futures`, or an engine's own.

    Raises:
        TypeError: it has no `submit`.
        ValueError: its processes would be forked.

    Example:
        >>> check_executor(4)
        Traceback (most recent call last):
        TypeError: `executor` must have `submit`, as executors of concurrent.futures do; got 4. ...
    """
    rule = "have `submit`, as executors of concurrent.futures do"
    advice = "For dask, pass client.get_executor()."
    checks.must("executor", hasattr(executor, "submit"), rule, repr(executor), advice, TypeError)
    context = getattr(executor, "_mp_context", None)
    is_forked = context is not None and context.get_start_method() == "fork"
    rule = "spawn its processes, because JAX may hang in forked ones"
    advice = 'Write ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")).'
    checks.must("executor", not is_forked, rule, "the method 'fork'", advice)


def trained(
    executor: Any, job: Job, shared: _program.Shared, batches: Sequence[tuple[Array, PyTree]]
) -> Iterator[tuple[Array, list[Array]]]:
    """Train chunks on an executor's workers, and give each as it comes back, in any order.

    Args:
        executor: see `check_executor`.
        job: the functions.
        shared: data and tables.
        batches: the rows of each chunk, and their configurations.

    Yields:
        Rows, and the arrays of `_program.Trained`.

    Raises:
        TypeError: a function cannot travel.
        ValueError: the executor takes no more work.
        RuntimeError: the workers of a chunk were lost, three times.
    """
    task = functools.partial(_work, _parcel(job, shared), bool(jax.config.jax_enable_x64))
    tries = [0] * len(batches)
    waiting: dict[Any, int] = {}

    def send(index: int) -> None:
        tries[index] += 1
        waiting[_submitted(executor, task, batches[index][1])] = index

    try:
        for index in range(len(batches)):
            send(index)
        while waiting:
            done, _ = futures.wait(waiting, return_when=futures.FIRST_COMPLETED)
            for future in done:
                index = waiting.pop(future)
                pieces = _received(future, batches[index][0], last=tries[index] == _TRIES)
                if pieces is None:
                    send(index)
                else:
                    yield batches[index][0], pieces
    finally:
        for future in waiting:
            future.cancel()


def _received(future: Any, rows: Array, last: bool) -> list[Array] | None:
    """What came back; None where the worker was lost and another may try."""
    try:
        pieces: list[Array] = future.result()
    except (Exception, futures.CancelledError) as error:
        if not _is_loss(error):
            error.add_note(f"It was raised in configurations {rows[0]} to {rows[-1]}, by a worker.")
            raise
        if last:
            raise RuntimeError(
                f"Configurations {rows[0]} to {rows[-1]} were given to {_TRIES} workers, and all "
                "of them were lost. Do they have enough memory? A smaller `chunk` needs less."
            ) from error
        return None
    return pieces


def _submitted(executor: Any, *call: Any) -> Any:
    try:
        return executor.submit(*call)
    except RuntimeError as error:  # shut down; or broken, for which there is a kind of its own
        raise ValueError(
            f"`executor` must accept work; got {type(executor).__name__}: {error}. Make a new one; "
            "with a `folder` the same call continues where this one stopped."
        ) from error


def _is_loss(error: BaseException) -> bool:
    """Whether the worker failed, and not the work."""
    kinds = (futures.BrokenExecutor, futures.CancelledError, ConnectionError, EOFError)
    return isinstance(error, kinds) or type(error).__module__.split(".")[0] == "distributed"


def _parcel(job: Job, shared: _program.Shared) -> bytes:
    """Functions and data as bytes; with cloudpickle also closures and those of a notebook."""
    content = job.recipe, jax.tree.map(np.asarray, _program.packed(shared))
    by: Any = pickle
    with contextlib.suppress(ImportError):
        by = importlib.import_module("cloudpickle")
    try:
        parcel: bytes = by.dumps(content)
    except Exception as error:
        more = by is pickle and " Or install cloudpickle, with which closures can."
        raise TypeError(
            "`build`, `init`, `loss` and `metric` must be able to travel to other processes; got "
            f"{type(error).__name__}: {error}. Define them in a module, without open files, locks "
            f"or generators.{more or ''}"
        ) from error
    return parcel


# What a worker does.


def _work(parcel: bytes, x64: bool, hparams: PyTree) -> list[Array]:
    with jax.enable_x64(x64):
        job, shared = _opened(parcel)
        result = _program.train(job, None, hparams, shared)
        return [np.asarray(x) for x in jax.tree.leaves(result)]


@functools.lru_cache(maxsize=2)  # the tasks of one sweep share one program
def _opened(parcel: bytes) -> tuple[Job, _program.Shared]:
    recipe, shared = pickle.loads(parcel)
    job: Job = recipe()
    placed: _program.Shared = jax.device_put(_program.unpacked(shared))
    return job, placed
