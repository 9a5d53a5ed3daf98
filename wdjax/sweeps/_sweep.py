"""Train many configurations at once, in rungs, or the chosen one again; see `wdjax.sweeps`."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wdjax._trees.checks import check_data, check_seed, check_whole
from wdjax.folds import Folds, check_folds
from wdjax.sweeps import _checks, _chunks, _program
from wdjax.sweeps._functions import Gaps, Job, is_build, make_job
from wdjax.sweeps._grids import check_hparams
from wdjax.sweeps._results import Store, SweepResult, fingerprints
from wdjax.sweeps._selection import (
    Selection,
)

PyTree = Any
Array = np.ndarray[Any, Any]


class HalvingResult(NamedTuple):
    """What successive halving found: one sweep for each rung, of fewer and fewer configurations.

    Args:
        rungs: the results, each with the hyperparameters that were still in the race.
        rows: for each rung the (C_r,) rows of all hyperparameters that were still in the race.

    Example:
        >>> HalvingResult._fields
        ('rungs', 'rows')
    """

    rungs: tuple[SweepResult, ...]
    rows: tuple[Array, ...]

    @property
    def final(self) -> SweepResult:
        """The last rung, trained to the end: what `select` should look at."""
        return self.rungs[-1]


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
        metric: like the loss, lower is better; None is the loss. A step of your own gives it its
            carry instead of the parameters.
        folds: who trains and who validates, such as `kfold(n, 5)`.
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
        folder: where to keep finished chunks. The same call with the same folder goes on where an
            interrupted one was; with other data or functions it is refused, and so are functions
            that call the host (`jax.pure_callback`), where changes are not seen.
        progress: a tqdm bar; None shows one if tqdm is there, stderr is a terminal and the work
            takes more than a second.

    Returns:
        The `SweepResult`, as NumPy arrays; random keys in `params` stay keys. The result for a
        configuration is the same, up to rounding, whatever else is swept and however it is cut into
        chunks.

    Raises:
        TypeError: a function has the wrong arguments, returns the wrong kind, or branches on a
            hyperparameter or keeps it for later.
        ValueError: hyperparameters, data and folds do not fit; the data are not finite; a number is
            out of range; the loss or metric ignores its weights where rows have weight 0.

    Warns:
        UserWarning: a hyperparameter takes several values, and neither `build` nor `init` uses it.

    Example:
        >>> import optax
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
    check_whole("evals", evals)
    if evals > epochs:
        raise ValueError(f"`evals` must be at most `epochs`, {epochs}; got {evals}.")
    if chunk is not None:
        check_whole("chunk", chunk)
    when = np.round(np.arange(1, evals + 1) * (epochs / evals)).astype(int)
    mesh = _chunks.mesh_over(devices, count)
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
        found = _chunks.run(job, hparams, shared, mesh=mesh, most=chunk, store=store, report=report)
    carry = _program.unpacked(found.carry)
    params = carry.params if keep_params and is_build(build) else carry
    return SweepResult(hparams, found.val, found.train, when, params, _repeats(folds))


def successive_halving(
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
    eta: int = 4,
    rungs: int = 3,
    seeds: int | Sequence[int] = 1,
    shuffle: bool = True,
    devices: Sequence[Any] | None = None,
    progress: bool | None = None,
) -> HalvingResult:
    """Train all configurations a little, the best 1/η of them η times as long, and so on.

        rung r = 0 ... Q − 1:   C η^(−r) configurations, trained up to epochs · η^(r − Q + 1)

    A bet that what is ahead early stays ahead. It saves training time, at most a factor
    η^(Q−1) / Q, and one program serves all rungs, but where training takes less than compiling
    there is little to save, and only survivors have a score at the end: no validation curve, no
    1-SE rule over all of λ. Slow learning rates and strong decay look worse early than they are;
    on digits the choice was third or fourth of 64. Schedules see the same steps as in a full run.

    Args:
        build: as in `sweep`.
        hparams: as in `sweep`.
        data: as in `sweep`.
        init: as in `sweep`.
        loss: as in `sweep`.
        metric: as in `sweep`.
        folds: as in `sweep`.
        epochs: for the configurations that stay to the end.
        batch_size: as in `sweep`.
        eta: η >= 2, one in how many goes on.
        rungs: Q >= 2.
        seeds: as in `sweep`.
        shuffle: as in `sweep`.
        devices: as in `sweep`.
        progress: as in `sweep`.

    Returns:
        The `HalvingResult`; `select(result.final)` chooses among the survivors.

    Raises:
        TypeError, ValueError: as in `sweep`; fewer than η^(Q−1) configurations or epochs.

    Warns:
        UserWarning: as in `sweep`.

    Example:
        >>> import optax
        >>> def loss(w, data, weights):
        ...     return jnp.sum(weights * (w - data) ** 2) / jnp.sum(weights)
        >>> halving = successive_halving(
        ...     optax.sgd,
        ...     np.array([0.0, 0.01, 0.1, 0.2]),
        ...     np.ones(8, np.float32),
        ...     init=lambda key: jnp.array(0.0),
        ...     loss=loss,
        ...     folds=kfold(8, 2),
        ...     epochs=4,
        ...     batch_size=None,
        ...     eta=2,
        ... )
        >>> [rung.hparams.tolist() for rung in halving.rungs]
        [[0.0, 0.01, 0.1, 0.2], [0.1, 0.2], [0.2]]

    References:
        Jamieson and Talwalkar, *Non-stochastic Best Arm Identification and Hyperparameter
        Optimization*, 2016, arXiv:1502.07943, Figure 3.
    """
    count = check_hparams(hparams)
    _check_rungs(count, epochs, eta, rungs)
    check_folds(folds, check_data("data", data))
    gaps = _check_batches(folds, epochs, batch_size)
    job = make_job(build, init, loss, metric, hparams, keep=True, gaps=gaps)
    shrink = [eta ** (rungs - 1 - r) for r in range(rungs)]
    ends = np.array([max(1, round(epochs / s)) for s in shrink])
    survivors = -(-count // shrink[0])
    mesh = _chunks.mesh_over(devices, survivors)
    shared = _program.share(
        data,
        folds,
        epochs=ends,
        batch_size=batch_size,
        seeds=_seeds(seeds),
        shuffle=shuffle,
        mesh=mesh,
    )
    _checks.check_usage(job, hparams, shared)
    with _chunks.explained():
        carry = _program.begin(job, jax.tree.map(jnp.asarray, hparams), shared)
    carry = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 2, 0), carry)
    rows = np.arange(count)
    results, kept = [], []
    with _chunks.reporting(progress, count * rungs) as report:
        for r in range(rungs):
            left = _chunks.take(hparams, rows)
            part = shared._replace(spans=jax.tree.map(lambda x, r=r: x[r : r + 1], shared.spans))
            # every rung in chunks of the last one's size: one program serves all
            found = _chunks.run(
                job, left, part, carry=carry, mesh=mesh, most=survivors, report=report
            )
            rung = SweepResult(left, found.val, found.train, ends[r : r + 1])
            results.append(rung._replace(repeats=_repeats(folds), tried=hparams))
            kept.append(rows)
            if r + 1 < rungs:
                ahead = np.sort(_ranked(found.val)[: -(-count // eta ** (r + 1))])
                rows, carry = rows[ahead], _chunks.take(found.carry, ahead)
    return HalvingResult(tuple(results), tuple(kept))


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

    There are more steps in an epoch than there were in a fold; it is the epochs that stay equal.

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
    hparams = jax.tree.map(lambda x: np.asarray(x)[None], selection.hparams)
    check_hparams(hparams)
    check_seed("seed", seed)
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
        trained = _program.train(job, None, jax.tree.map(jnp.asarray, hparams), None, shared)
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


def _ranked(val: Array) -> Array:
    """Rows from the lowest mean to the highest; what diverged comes last."""
    mean = val[..., -1].mean(axis=(1, 2))
    return np.argsort(np.where(np.isfinite(mean), mean, np.inf), kind="stable")


# Checks.


def _check_batches(folds: Folds, epochs: Any, batch_size: Any) -> Gaps:
    """What the batches of some folds lack."""
    check_whole("epochs", epochs)
    sizes = (np.asarray(folds.train_weights) > 0).sum(axis=1)
    # the table of rows may be wider than these folds, of which some were taken out
    widths = np.append(sizes, np.shape(folds.train)[1])
    if batch_size is None:
        return Gaps.NONE if len(set(widths.tolist())) == 1 else Gaps.SHORT
    check_whole("batch_size", batch_size)
    if batch_size > sizes.max():
        raise ValueError(
            f"`batch_size` must be at most the largest training part, {sizes.max()}; got "
            f"{batch_size}. None is full-batch training."
        )
    if len(set((-(-widths // batch_size)).tolist())) > 1:
        return Gaps.MISSING
    return Gaps.SHORT if (widths % batch_size).any() else Gaps.NONE


def _check_rungs(count: int, epochs: Any, eta: Any, rungs: Any) -> None:
    check_whole("epochs", epochs)
    for name, value in {"eta": eta, "rungs": rungs}.items():
        check_whole(name, value)
        if value < 2:
            raise ValueError(f"`{name}` must be >= 2; got {value}.")
    least = eta ** (rungs - 1)
    for name, value in {"hparams": count, "epochs": epochs}.items():
        if value < least:
            raise ValueError(
                f"`{name}` must be at least eta^(rungs − 1) = {least} for successive halving; got "
                f"{value}. Use fewer rungs, or sweep."
            )


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int | np.integer):
        check_whole("seeds", seeds)
        return list(range(int(seeds)))
    chosen = np.asarray(seeds)
    if chosen.ndim != 1 or chosen.dtype.kind not in "iu" or chosen.size == 0 or chosen.min() < 0:
        raise ValueError(f"`seeds` must be a number >= 1 or a list of ints >= 0; got {seeds!r}.")
    if chosen.max() >= 2**32 or len(set(chosen.tolist())) < len(chosen):
        raise ValueError(f"`seeds` must be different numbers below 2**32; got {seeds!r}.")
    return list(map(int, chosen))


def _repeats(folds: Folds) -> int:
    rows = folds.val[folds.val_weights > 0]
    return max(1, round(len(rows) / len(np.unique(rows))))


def _no_metric(carry: PyTree, data: PyTree, weights: Any) -> jax.Array:
    del carry, data, weights
    return jnp.zeros(())
