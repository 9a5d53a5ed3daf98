"""A job over many configurations, as many at a time as fit into memory, on all devices.

All chunks have one size, so one program serves them: the last is filled up with repetitions, which
are dropped afterwards. Every finished chunk is reported, and kept if there is a folder.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from wdjax._trees import PyTree, checks
from wdjax._trees.paths import listed
from wdjax.sweeps import _program
from wdjax.sweeps._functions import Job
from wdjax.sweeps._store import Store

Array = np.ndarray[Any, Any]

Trainer = Callable[[Job, _program.Shared, Sequence[tuple[Array, PyTree]]], Iterator[Any]]

_HOST_BUDGET = 2**28  # bytes at once on a CPU; if they are too few, a second program is compiled


def run(
    job: Job,
    hparams: PyTree,
    shared: _program.Shared,
    *,
    mesh: Mesh | None = None,
    most: int | None = None,
    store: Store | None = None,
    train: Trainer | None = None,
    report: Callable[[int], object] = lambda count: None,
) -> _program.Trained:
    """Train all configurations, chunk by chunk.

    Args:
        job: the functions.
        hparams: a pytree of arrays with C rows.
        shared: data, folds and tables.
        mesh: the devices, or None for the default one.
        most: configurations at a time; None asks the compiled program how much memory it needs.
        store: finished rows are read from it and written to it.
        train: trains chunks and yields them in any order; None is this process, on the mesh.
        report: gets the number of rows that were finished.

    Returns:
        `Trained` with NumPy arrays, configurations in front: (C, K, S, ...).

    Raises:
        TypeError: a function branches on a hyperparameter.

    Example:
        >>> from wdjax.sweeps._functions import Gaps
        >>> job = Job(lambda key, h: h, lambda c, b, h: c, lambda c, b: c, False, Gaps.NONE)
        >>> rows, spans = np.zeros((1, 1, 1, 2), np.int32), (np.array([0]), np.array([1]))
        >>> shared = _program.Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 2)), ())
        >>> run(job, np.array([1.0, 2.0, 3.0]), shared, most=2).val.ravel()
        array([1., 2., 3.], dtype=float32)
    """
    count = len(jax.tree.leaves(hparams)[0])
    store = Store(None, {}) if store is None else store

    def part(rows: Array, size: int) -> PyTree:
        rows = np.append(rows, np.repeat(rows[-1:], size - len(rows)))
        return jax.tree.map(lambda x: np.asarray(x)[rows], hparams)

    def lowered(size: int) -> Any:
        with explained():  # the program is remembered: with the same shapes it only runs
            return _program.train.lower(job, mesh, part(np.zeros(1, int), size), shared)

    size = _size(count, 1 if mesh is None else mesh.size, most, lowered, _budget(mesh))
    kinds, tree = jax.tree.flatten(lowered(size).out_info)
    # the program has the configurations third, after folds and seeds
    found = [np.empty((count, *x.shape[:2], *x.shape[3:]), x.dtype) for x in kinds]
    done = np.zeros(count, bool)
    for rows, raw in store.load():
        done[rows] = True
        for into, piece in zip(found, raw, strict=True):
            into[rows] = piece.view(into.dtype).reshape(len(rows), *into.shape[1:])
    report(int(done.sum()))
    waiting = np.flatnonzero(~done)
    starts = range(0, len(waiting), size)
    batches = [(rows, part(rows, size)) for rows in (waiting[i : i + size] for i in starts)]
    train = functools.partial(_here, mesh) if train is None else train
    for rows, trained in train(job, shared, batches):
        pieces = [np.moveaxis(np.asarray(x), 2, 0)[: len(rows)] for x in trained]
        for into, piece in zip(found, pieces, strict=True):
            into[rows] = piece
        store.save(rows, pieces)
        report(len(rows))
    result: _program.Trained = jax.tree.unflatten(tree, found)
    return result


def _here(
    mesh: Mesh | None, job: Job, shared: _program.Shared, batches: Any
) -> Iterator[tuple[Array, list[Any]]]:
    """Train the chunks in this process, one after another."""
    for rows, given in batches:
        yield rows, jax.tree.leaves(_program.train(job, mesh, given, shared))


def mesh_over(devices: Sequence[Any] | None, count: int) -> Mesh | None:
    """One axis of devices for `count` configurations; None if there is nothing to spread.

    Args:
        devices: the devices, or None for all local ones.
        count: C; no more devices than that are used.

    Returns:
        A mesh with the axis "sweep", or None for the default device.

    Raises:
        ValueError: `devices` is empty, or has one of another process.

    Example:
        >>> mesh_over(jax.devices()[:1], 8).axis_names
        ('sweep',)
    """
    given = jax.local_devices() if devices is None else list(devices)
    others = [str(device) for device in given if device.process_index != jax.process_index()]
    advice = (
        "Each process can use only its own devices: split `hparams`, and give each process its own "
        "folder."
    )
    fits = given and not others
    got = listed(others) or "none"
    checks.must("devices", fits, "belong to this process, at least one of them", got, advice)
    if devices is None and len(given) == 1:
        return None
    return Mesh(np.array(given[:count]), ("sweep",))


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """Explain JAX's errors about tracers in terms of hyperparameters.

    Yields:
        Nothing; programs are traced inside.

    Raises:
        TypeError: a function branches on a hyperparameter, or keeps one for later.

    Example:
        >>> with explained():
        ...     jax.jit(lambda h: 1.0 if h > 0.0 else 2.0)(1.0)
        Traceback (most recent call last):
        TypeError: `build` must not branch on a hyperparameter or turn it into a Python number: ...
    """
    try:
        yield
    except jax.errors.ConcretizationTypeError as error:
        raise TypeError(
            "`build` must not branch on a hyperparameter or turn it into a Python number: it is "
            "traced. Many of Optax's schedules do; use wdjax.inverse_sqrt, wdjax.geometric, "
            "wdjax.schedules.warmed_up, cosine_ramp or linear_ramp, or jnp.where."
        ) from error
    except jax.errors.UnexpectedTracerError as error:
        raise TypeError(
            "a traced hyperparameter must not be kept in a function that is called later, such as "
            "the optimizer in Flax's TrainState.create(tx=build(h)). Put arrays only into the "
            "carry, params and opt_state, and call build(h) in the step."
        ) from error


@contextlib.contextmanager
def reporting(progress: bool | None, count: int) -> Iterator[Callable[[int], object]]:
    """Give a function that moves a progress bar, or does nothing.

    Args:
        progress: True shows a tqdm bar, False none, None one on a terminal.
        count: its end.

    Yields:
        `report(rows)`.

    Raises:
        ImportError: `progress` is True and tqdm is missing.

    Example:
        >>> with reporting(False, 10) as report:
        ...     report(10)
    """
    tqdm = checks.tqdm_for(progress)
    if tqdm is None:
        yield lambda rows: None
        return
    with tqdm(total=count, unit="configuration", delay=0.0 if progress else 1.0) as bar:
        yield bar.update


def _size(
    count: int, width: int, most: int | None, lowered: Callable[[int], Any], budget: int
) -> int:
    """How many configurations at a time: a multiple of the devices, and chunks of about one size.

    Without a limit the program for all is compiled first; if it fits, as it usually does, that is
    the program that runs.
    """
    if most is None:
        whole = width * -(-count // width)
        needed = _memory(lowered(whole).compile())
        most = whole if needed <= budget else whole * budget // needed
    most = width * max(1, most // width)
    pieces = -(-count // most)
    return width * -(-count // (width * pieces))


def _memory(compiled: Any) -> int:
    """Bytes of temporaries and results on each device."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    return int(analysis.temp_size_in_bytes + analysis.output_size_in_bytes)


def _budget(mesh: Mesh | None) -> int:
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    limit = (device.memory_stats() or {}).get("bytes_limit", 0)
    return limit // 4 or _HOST_BUDGET
