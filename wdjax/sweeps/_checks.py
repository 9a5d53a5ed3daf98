"""What the functions of a sweep make use of, seen before anything is compiled.

Three things go wrong silently. A loss that ignores its weights counts rows that are not in
the fold. A hyperparameter that nothing uses gets scores that are all alike. And the
compiled program, by which a folder knows its sweep, does not show what happens on the host.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr

from wdjax._trees import PyTree, checks
from wdjax._trees.paths import listed
from wdjax.sweeps import _chunks, _program
from wdjax.sweeps._functions import Batch, Gaps, Job
from wdjax.sweeps._grids import columns

_HOST_CALLS = ("pure_callback", "io_callback")  # debugging changes no result


def check_usage(job: Job, hparams: PyTree, shared: _program.Shared) -> None:
    """Refuse functions that ignore the weights, warn of hyperparameters that nothing uses.

    Weights matter in every score, and in training where batches are filled up.

    Args:
        job: the functions.
        hparams: a pytree of arrays with C rows.
        shared: data and tables.

    Raises:
        ValueError: training or scores depend on the data and not on the weights.

    Warns:
        UserWarning: a hyperparameter takes several values, and no run depends on it.

    Example:
        >>> from wdjax.sweeps._functions import Gaps
        >>> mean = lambda carry, batch: batch.data.mean()
        >>> job = Job(lambda key, h: h, lambda c, b, h: c, mean, False, Gaps.NONE)
        >>> rows, spans = np.zeros((1, 1, 1, 2), np.int32), (np.array([0]), np.array([1]))
        >>> shared = _program.Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 4)), np.ones(4))
        >>> check_usage(job, np.ones(1), shared)
        Traceback (most recent call last):
        ValueError: `metric` must use its weights; got a function that does not: rows of `data` ...
    """
    with _chunks.explained():
        given = _first.eval_shape(job.gaps, hparams, shared)  # type: ignore[no-untyped-call]
        h, trained, scored = used(_first_step(job), *given)
    training, score = job.blamed
    if job.gaps is not Gaps.NONE and _fills_up(shared):
        _check_weights(training, trained, "short batches are filled up with rows of weight 0")
    _check_weights(score, scored, "rows of `data` in other folds have weight 0")
    swept = [
        repr(name)
        for (name, values), is_used in zip(
            columns(hparams).items(), jax.tree.leaves(h), strict=True
        )
        if not is_used and (values != values[0]).any()
    ]
    if swept:
        warnings.warn(
            f"`hparams` has {listed(swept)}, which is not used by `build` or `init`, so some "
            "configurations are identical. Leave it out.",
            stacklevel=3,
        )


def program_text(job: Job, hparams: PyTree, shared: _program.Shared) -> str:
    """Write out the program for one configuration, to tell whether functions have changed.

    Args:
        job: the functions.
        hparams: a pytree of arrays with C rows.
        shared: data and tables.

    Returns:
        The lowered program.

    Raises:
        ValueError: it calls the host, and the text does not say what happens there.

    Example:
        >>> from wdjax.sweeps._functions import Gaps
        >>> job = Job(lambda key, h: h, lambda c, b, h: c, lambda c, b: c, False, Gaps.NONE)
        >>> rows, spans = np.zeros((1, 1, 1, 2), np.int32), (np.array([0]), np.array([1]))
        >>> shared = _program.Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 1)), ())
        >>> "stablehlo" in program_text(job, np.ones(3), shared)
        True
    """
    one = jax.tree.map(lambda x: jnp.asarray(x)[:1], hparams)
    with _chunks.explained():
        traced = _program.train.trace(job, None, one, shared)
    hosts = [name for name in _HOST_CALLS if f"{name}[" in str(traced.jaxpr)]
    advice = (
        "A folder knows its sweep by the compiled program, which does not show what the host does. "
        "Remove the callback, or pass folder=None."
    )
    rule = "be None for functions that call the host"
    checks.must("folder", not hosts, rule, listed(hosts), advice)
    text: str = traced.lower().as_text()
    return text


def used(function: Callable[..., Any], *args: PyTree) -> tuple[PyTree, ...]:
    """Tell which numbers a function uses: for every array, whether the result may depend on it.

    JAX drops from a program what its results do not need; a yes may be wrong, a no is certain.

    Args:
        function: anything that JAX can trace.
        args: its arguments, arrays or their shapes.

    Returns:
        The arguments with a bool in place of every array.

    Example:
        >>> used(lambda x, y: x["a"] * y.shape[0], {"a": 1.0, "b": 2.0}, np.ones(3))
        ({'a': True, 'b': False}, False)
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    leaves = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[1]
    arguments: tuple[PyTree, ...] = jax.tree.unflatten(jax.tree.structure(args), leaves)
    return arguments


@functools.partial(jax.jit, static_argnums=0)
def _first(gaps: Gaps, hparams: PyTree, shared: _program.Shared) -> tuple[PyTree, Batch, Batch]:
    """A configuration, a batch to train on, and all examples to score."""
    h = jax.tree.map(lambda x: jnp.asarray(x)[0], hparams)
    batch = _program.batch(gaps, shared.data, shared.rows[0, 0, 0])
    return h, batch, Batch(shared.data, shared.weights[0, 0])


@functools.lru_cache(maxsize=64)  # one function for one job, which JAX then traces once
def _first_step(job: Job) -> Callable[..., Any]:
    def run(h: PyTree, batch: Batch, every: Batch) -> Any:
        carry = job.start(jax.random.key(0), h)
        new = job.step(carry, batch, h)
        return carry, new, job.metric(new, every)

    return run


def _check_weights(name: str, batch: Batch, why: str) -> None:
    """What does not look at the data cannot count wrong rows."""
    ignores = any(jax.tree.leaves(batch.data)) and not batch.weights
    advice = "Weight each example: jnp.sum(weights * losses) / jnp.sum(weights)."
    checks.must(name, not ignores, "use its weights", f"a function that does not: {why}", advice)


def _fills_up(shared: _program.Shared) -> bool:
    """Whether a batch has examples and gaps, which are at its end; a batch of gaps is left out."""
    rows = np.asarray(shared.rows)
    return bool(((rows[..., 0] >= 0) & (rows[..., -1] < 0)).any())
