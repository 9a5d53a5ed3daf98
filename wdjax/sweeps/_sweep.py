"""Train many configurations at once, or the chosen one again; see `wdjax.sweeps`."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import check_data
from wdjax.folds import Folds, check_folds
from wdjax.sweeps import _checks, _chunks, _program, _workers
from wdjax.sweeps._functions import Gaps, Job, is_build, make_job
from wdjax.sweeps._grids import check_hparams
from wdjax.sweeps._results import SweepResult
from wdjax.sweeps._selection import Selection
from wdjax.sweeps._store import Store, fingerprints

Array = np.ndarray[Any, Any]


def sweep(
    build: Callable[..., Any],
    hparams: PyTree,
    data: PyTree,
    *,
    init: Callable[..., Any],
    loss: Callable[..., Any] | None = None,
    metric: Callable[..., Any] | None = None,
    folds: Folds,
    epochs: int,
    batch_size: int | None,
    seeds: int | Sequence[int] = 1,
    shuffle: bool = True,
    evals: int = 1,
    keep_params: bool = False,
    chunk: int | None = None,
    devices: Sequence[Any] | None = None,
    executor: Any = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> SweepResult:
    """Train every configuration on every fold with every seed, and score it.

    `build(h)` is called inside the compiled program with one configuration, whose numbers are then
    traced: any Optax chain with any law, rules, penalty or gate can depend on it, through anything
    but a Python `if`. Initial parameters depend on the seed alone and mini-batches on seed and
    fold, so configurations are compared on equal terms.

    Most of a short sweep is compilation. The same functions, as objects, and the same shapes are
    compiled once; `jax.config.update("jax_compilation_cache_dir", folder)` keeps programs for the
    next process.

    Args:
        build: `build(h)` -> Optax transformation, h one row of `hparams`. Or a step of your own,
            `step(carry, batch, h)` -> carry, with `batch.data` and `batch.weights`; told apart by
            how many arguments it needs, one or three.
        hparams: what to sweep, a pytree of arrays with C rows, from `grid` or `random`.
        data: a pytree of arrays with N rows, finite.
        init: `init(key)` or `init(key, h)` -> parameters; the carry, for a step of your own.
        loss: `loss(params, data, weights)` -> scalar, without the penalty. The weights (B,) are 1
            for an example and 0 for what fills up a batch or, in a score, is of other folds, so
            take weighted means, `jnp.sum(weights * losses) / jnp.sum(weights)`. Not used by a step
            of your own.
        metric: like the loss, lower is better; None is the loss. With a step of your own it gets
            the carry instead of the parameters.
        folds: which examples train and which validate, such as `kfold(n, 5)`.
        epochs: passes over the training part of a fold.
        batch_size: B; the last batch of an epoch may be smaller. None is full-batch training.
        seeds: how many, or which: of the initial parameters and the mini-batches.
        shuffle: a new order of the examples in every epoch; False keeps the order of the folds.
        evals: R, how often to score, evenly over the epochs: for early stopping and curves.
        keep_params: also return the last parameters (the carry, for a step of your own).
        chunk: most configurations at a time; None takes as many as fit into memory well.
        devices: over which configurations are spread; None takes all local ones. To use both cores
            of a CPU: `jax.config.update("jax_num_cpu_devices", 2)` before anything else. Several
            processes share a sweep by its rows: `row[jax.process_index() :: jax.process_count()]`
            of each array in `hparams`, and a folder each.
        executor: of `concurrent.futures` or an engine with its interface, such as dask's
            `client.get_executor()`: its workers train the chunks, an eighth of the configurations
            each unless `chunk` says otherwise, and send them back in any order. What a lost worker
            had is trained again by another. Functions and data travel with each task; closures need
            cloudpickle. Progress, the folder and the result are those of this process.
        folder: where to keep finished chunks. The same call with the same folder continues an
            interrupted one; with other data or functions it is refused, and so are functions
            that call the host (`jax.pure_callback`), where changes are not seen.
        progress: a tqdm bar; None shows one if tqdm is there, stderr is a terminal and the work
            takes more than a second.

    Returns:
        The `SweepResult`, as NumPy arrays; random keys in `params` stay keys. The result for a
        configuration is the same, up to rounding, whatever else is swept and however it is cut into
        chunks.

    Raises:
        TypeError: a function has the wrong arguments, returns the wrong kind, or branches on a
            hyperparameter or keeps it for later; or it cannot travel to an executor's workers.
        ValueError: hyperparameters, data and folds do not fit; the data are not finite; a number is
            out of range; the loss or metric ignores its weights where rows have weight 0; the
            executor is shut down, or forks its processes.
        RuntimeError: the workers of a chunk were lost three times.

    Warns:
        UserWarning: a hyperparameter takes several values, and neither `build` nor `init` uses it.

    Example:
        >>> import optax
        >>> from wdjax.sweeps import grid, kfold
        >>> data = {"x": np.ones(8, np.float32), "y": np.full(8, 3.0, np.float32)}
        >>> def loss(w, data, weights):
        ...     return jnp.sum(weights * (w * data["x"] - data["y"]) ** 2) / jnp.sum(weights)
        >>> result = sweep(
        ...     lambda h: optax.sgd(h["learning_rate"]),
        ...     grid(learning_rate=[0.0, 0.25, 0.5]),
        ...     data,
        ...     init=lambda key: jnp.array(0.0),
        ...     loss=loss,
        ...     folds=kfold(8, 2),
        ...     epochs=1,
        ...     batch_size=4,
        ... )
        >>> result.val[:, :, 0, 0]
        array([[9.  , 9.  ],
               [2.25, 2.25],
               [0.  , 0.  ]], dtype=float32)
    """
    count = check_hparams(hparams)
    check_folds(folds, check_data("data", data))
    gaps = _check_batches(folds, epochs, batch_size)
    job = make_job(build, init, loss, metric, hparams, keep=keep_params, gaps=gaps)
    checks.whole("evals", evals, most=epochs, advice="Scores come at most once an epoch.")
    checks.whole("chunk", chunk, optional=True)
    when = np.round(np.arange(1, evals + 1) * (epochs / evals)).astype(int)
    train, mesh = None, None
    if executor is None:
        mesh = _chunks.mesh_over(devices, count)
    else:
        checks.must("devices", devices is None, "be None beside `executor`", "devices")
        _workers.check_executor(executor)
        train = functools.partial(_workers.trained, executor)
        chunk = -(-count // _workers.PIECES) if chunk is None else chunk
    shared = _program.share(
        data,
        folds,
        epochs=when,
        batch_size=batch_size,
        seeds=_seeds(seeds),
        shuffle=shuffle,
        mesh=mesh,
    )
    _checks.check_usage(job, hparams, shared)
    store = _store(folder, job, hparams, shared)
    with _chunks.reporting(progress, count) as report:
        found = _chunks.run(
            job, hparams, shared,
            mesh=mesh, most=chunk, store=store, train=train, report=report,
        )  # fmt: skip
    carry = _program.unpacked(found.carry)
    params = carry.params if keep_params and is_build(build) else carry
    return SweepResult(hparams, found.val, found.train, when, params, _repeats(folds))


def refit(
    build: Callable[..., Any],
    selection: Selection,
    data: PyTree,
    *,
    init: Callable[..., Any],
    loss: Callable[..., Any] | None = None,
    batch_size: int | None,
    epochs: int | None = None,
    seed: int = 0,
    shuffle: bool = True,
) -> PyTree:
    """Train the chosen configuration on all examples.

    An epoch has more steps than it had in a fold; the number of epochs stays the same.

    Args:
        build: as in `sweep`.
        selection: from `select`; its `hparams` and `epoch` are used.
        data: all examples, a pytree of arrays with N rows.
        init: as in `sweep`.
        loss: as in `sweep`.
        batch_size: as in `sweep`.
        epochs: passes over the data; None takes those of the selection.
        seed: of the initial parameters and the mini-batches.
        shuffle: as in `sweep`.

    Returns:
        The parameters; the carry, for a step of your own.

    Raises:
        TypeError, ValueError: as in `sweep`.

    Example:
        >>> import optax
        >>> def loss(w, data, weights):
        ...     return jnp.sum(weights * (w - data) ** 2) / jnp.sum(weights)
        >>> chosen = Selection(0, 0.25, 2, 0, *([None] * 3), (), 0)
        >>> init = lambda key: jnp.array(0.0)
        >>> float(refit(optax.sgd, chosen, np.ones(4), init=init, loss=loss, batch_size=None))
        0.75
    """
    checks.record("selection", selection, Selection, "It comes from select.")
    hparams = jax.tree.map(lambda x: np.asarray(x)[None], selection.hparams)
    check_hparams(hparams)
    checks.whole("seed", seed, least=0)
    epochs = selection.epoch if epochs is None else epochs
    rows = np.arange(check_data("data", data), dtype=np.int32)[None]
    nothing = np.zeros((1, 1), np.int32)
    folds = Folds(rows, np.ones(rows.shape, np.float32), nothing, nothing.astype(np.float32))
    gaps = _check_batches(folds, epochs, batch_size)
    job = make_job(build, init, loss, _no_metric, hparams, keep=True, gaps=gaps)
    shared = _program.share(
        data,
        folds,
        epochs=np.array([epochs]),
        batch_size=batch_size,
        seeds=[seed],
        shuffle=shuffle,
        mesh=None,
    )
    _checks.check_usage(job, hparams, shared)
    with _chunks.explained():
        trained = _program.train(job, None, jax.tree.map(jnp.asarray, hparams), shared)
    carry = _program.unpacked(jax.tree.map(lambda x: x[0, 0, 0], trained.carry))
    return carry.params if is_build(build) else carry


def _store(folder: Any, job: Job, hparams: PyTree, shared: _program.Shared) -> Store | None:
    if folder is None:
        return None
    parts = {
        "hparams": jax.tree.map(np.asarray, hparams),
        "functions": _checks.program_text(job, hparams, shared),
        "data": shared.data,
        "folds": shared.weights,
        "epochs or evals": shared.spans,
        "batches": (shared.seeds, shared.rows),
    }
    return Store(folder, fingerprints(**parts))


# Checks.


def _check_batches(folds: Folds, epochs: Any, batch_size: Any) -> Gaps:
    """What the batches of some folds lack."""
    checks.whole("epochs", epochs)
    sizes = (np.asarray(folds.train_weights) > 0).sum(axis=1)
    # the table of rows may be wider than these folds, of which some were taken out
    widths = np.append(sizes, np.shape(folds.train)[1])
    if batch_size is None:
        return Gaps.NONE if len(set(widths.tolist())) == 1 else Gaps.SHORT
    advice = f"The largest training part has {sizes.max()} examples; None is full-batch training."
    checks.whole("batch_size", batch_size, most=int(sizes.max()), advice=advice)
    if len(set((-(-widths // batch_size)).tolist())) > 1:
        return Gaps.MISSING
    return Gaps.SHORT if (widths % batch_size).any() else Gaps.NONE


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int | np.integer):
        checks.whole("seeds", seeds)
        return list(range(int(seeds)))
    chosen = np.asarray(seeds)
    is_list = chosen.ndim == 1 and chosen.size > 0 and chosen.dtype.kind in "iu"
    distinct = set(chosen.tolist()) if is_list else set()
    fits = distinct and len(distinct) == chosen.size and 0 <= min(distinct) <= max(distinct) < 2**32
    rule = "be a number >= 1, or different whole numbers in [0, 2**32)"
    checks.must("seeds", fits, rule, checks.shown(seeds))
    return list(map(int, chosen))


def _repeats(folds: Folds) -> int:
    rows = folds.val[folds.val_weights > 0]
    return max(1, round(len(rows) / len(np.unique(rows))))


def _no_metric(carry: PyTree, data: PyTree, weights: Any) -> jax.Array:
    del carry, data, weights
    return jnp.zeros(())
