"""What the functions of a sweep make use of, seen before anything is compiled.

Three things go wrong without a sign. A loss that ignores its weights counts rows that are not in
the fold. A hyperparameter that nothing uses gets scores that are all alike. And what happens on the
host is not in the compiled program, by which a folder knows its sweep.
"""

import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params, subjaxprs

from wdjax._trees.checks import named_leaves
from wdjax._trees.paths import listed
from wdjax.sweeps import _chunks, _program
from wdjax.sweeps._functions import Batch, Gaps, Job

PyTree = Any

_HOST_CALLS = {"pure_callback", "io_callback"}  # debugging changes no result


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
        >>> shared = runs.Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 4)), np.ones(4))
        >>> check_usage(job, np.ones(1), shared)
        Traceback (most recent call last):
        ValueError: `metric` must use its weights: of all rows of `data`, those of other folds ...
    """
    with _chunks.explained():
        given = _first.eval_shape(job.gaps, hparams, shared)  # type: ignore[no-untyped-call]
        h, trained, scored = used(_first_step(job), *given)
    training, score = job.blamed
    if job.gaps is not Gaps.NONE and _fills_up(shared):
        _check_weights(training, trained, "short batches are filled up with rows of weight 0")
    _check_weights(score, scored, "of all rows of `data`, those of other folds have weight 0")
    idle = [name for name, is_used in named_leaves(h) if not is_used]
    values = {name: np.asarray(leaf) for name, leaf in named_leaves(hparams)}
    swept = [repr(name) for name in idle if (values[name] != values[name][0]).any()]
    if swept:
        warnings.warn(
            f"`hparams` has {listed(swept)}, which neither `build` nor `init` uses: configurations "
            "that differ in nothing else are the same. Leave out what is not used.",
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
        >>> shared = runs.Shared(np.zeros(1, int), rows, spans, np.ones((1, 2, 1)), ())
        >>> "stablehlo" in program_text(job, np.ones(3), shared)
        True
    """
    one = jax.tree.map(lambda x: jnp.asarray(x)[:1], hparams)
    with _chunks.explained():
        traced = _program.train.trace(job, None, one, None, shared)
    hosts = sorted(_HOST_CALLS & {eqn.primitive.name for eqn in _equations(traced.jaxpr.jaxpr)})
    if hosts:
        raise ValueError(
            f"`folder` must be None for functions that call the host, here by {listed(hosts)}: "
            "what is computed there may change unseen, and results of before would be taken for "
            "new ones."
        )
    text: str = traced.lower().as_text()
    return text


def used(function: Callable[..., Any], *args: PyTree) -> tuple[PyTree, ...]:
    """Tell which numbers a function uses: for every array, whether the result may depend on it.

    A yes where a loop, a branch or a rule for derivatives would have to be looked into; a no is
    certain.

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
    leaves = _inputs_used(jaxpr, [True] * len(jaxpr.outvars))
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


def _inputs_used(jaxpr: Jaxpr, wanted: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs may depend on, from the last equation to the first."""
    needed = {v for v, want in zip(jaxpr.outvars, wanted, strict=True) if want and _is_var(v)}
    for eqn in reversed(jaxpr.eqns):
        outputs = [v in needed for v in eqn.outvars]
        if any(outputs) or eqn.effects:
            inputs = zip(eqn.invars, _taken(eqn, outputs), strict=True)
            needed |= {v for v, is_taken in inputs if is_taken and _is_var(v)}
    return [v in needed for v in jaxpr.invars]


def _taken(eqn: JaxprEqn, outputs: list[bool]) -> list[bool]:
    """A jitted function is looked into, as losses often are one; of all others everything is."""
    inner = list(jaxprs_in_params(eqn.params))
    if eqn.primitive.name == "jit" and len(inner) == 1:
        return _inputs_used(inner[0], outputs)
    return [True] * len(eqn.invars)


def _is_var(v: Any) -> bool:
    return not isinstance(v, Literal)


def _equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All of them, those inside others too."""
    yield from jaxpr.eqns
    for inner in subjaxprs(jaxpr):
        yield from _equations(inner)


def _check_weights(name: str, batch: Batch, why: str) -> None:
    """What does not look at the data cannot count wrong rows."""
    if any(jax.tree.leaves(batch.data)) and not batch.weights:
        raise ValueError(
            f"`{name}` must use its weights: {why}. Weight each example: "
            "jnp.sum(weights * losses) / jnp.sum(weights)."
        )


def _fills_up(shared: _program.Shared) -> bool:
    """Whether a batch has examples and gaps, which are at its end; a batch of gaps is left out."""
    rows = np.asarray(shared.rows)
    return bool(((rows[..., 0] >= 0) & (rows[..., -1] < 0)).any())
