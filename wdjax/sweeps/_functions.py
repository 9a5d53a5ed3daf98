"""What a run of a sweep is: how it starts, steps and is scored, from the functions a user gives."""

import dataclasses
import enum
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from wdjax._trees import PyTree, checks
from wdjax._trees.checks import kind_of
from wdjax.sweeps._grids import row


class Batch(NamedTuple):
    """What your own step gets: the rows of a mini-batch and which of them count.

    Args:
        data: the pytree of the data, each leaf with B rows.
        weights: (B,) float32, 1 for an example and 0 for what fills up the last batch of an epoch.

    Example:
        >>> rows, weights = Batch({"x": jnp.ones((2, 3))}, jnp.array([1.0, 0.0]))
        >>> weights
        Array([1., 0.], dtype=float32)
    """

    data: PyTree
    weights: jax.Array


class Gaps(enum.Enum):
    """What the mini-batches lack: a program for full ones needs no weights.

    Example:
        >>> Gaps("short batches") is Gaps.SHORT
        True
    """

    NONE = "nothing"
    SHORT = "short batches"
    MISSING = "missing batches"


@dataclasses.dataclass(frozen=True)
class Job:
    """The functions that every run shares; hashable, so it names its compiled program.

    Args:
        start: `start(key, h)` -> carry.
        step: `step(carry, batch, h)` -> carry.
        metric: `metric(carry, batch)` -> scalar.
        keep: whether the last carry is returned.
        gaps: what the batches lack in some fold: nothing, examples at the end, whole batches.
        blamed: the arguments of a sweep that training and scores come from, to name in messages.
        recipe: makes the same job again, in another process.

    Example:
        >>> job = Job(lambda key, h: 0.0, lambda c, b, h: c + h, lambda c, b: c, False, Gaps.NONE)
        >>> job.step(1.0, None, 2.0)
        3.0
    """

    start: Callable[[Any, Any], Any]
    step: Callable[[Any, Batch, Any], Any]
    metric: Callable[[Any, Batch], Any]
    keep: bool
    gaps: Gaps
    blamed: tuple[str, str] = ("build", "metric")
    recipe: Callable[[], "Job"] | None = dataclasses.field(default=None, compare=False)


def make_job(
    build: Any,
    init: Any,
    loss: Any,
    metric: Any,
    hparams: PyTree,
    *,
    keep: bool,
    gaps: Gaps,
) -> Job:
    """Make the job of a sweep from what the user gave, after a look at it.

    Args:
        build: `build(h)` or `step(carry, batch, h)`.
        init: `init(key)` or `init(key, h)`.
        loss: needed by `build`.
        metric: needed by a step.
        hparams: whose extremes are tried on `build`.
        keep: see `Job`.
        gaps: see `Job`.

    Returns:
        The job.

    Raises:
        TypeError: a function is missing, takes the wrong arguments or returns the wrong kind.

    Example:
        >>> make_job(lambda h: None, lambda key: 0.0, max, None, np.ones(1), keep=0, gaps=0)
        Traceback (most recent call last):
        TypeError: `build` must return an Optax optimizer; got NoneType. A step of your own ...
    """
    checks.function("build", build)
    checks.function("init", init)
    count = needed(init)
    got = f"a function that needs {count} arguments"
    checks.must("init", count in (1, 2), "be init(key) or init(key, h)", got, error=TypeError)
    if not is_build(build):
        checks.function("metric", metric, advice="Write metric(carry, data, weights) -> scalar.")
        return stepped(build, init, metric, keep=keep, gaps=gaps)
    checks.function("loss", loss, advice="Write loss(params, data, weights) -> scalar.")
    _check_build(build, init, hparams)
    measure = loss if metric is None else metric
    return optimized(build, init, loss, measure, keep=keep, gaps=gaps)


def is_build(build: Callable[..., Any]) -> bool:
    """Tell `build(h)` from `step(carry, batch, h)` by how many arguments it needs.

    Args:
        build: either.

    Returns:
        Whether it is the former.

    Raises:
        TypeError: it is neither.

    Example:
        >>> is_build(lambda h: h), is_build(lambda carry, batch, h: carry)
        (True, False)
    """
    count = needed(build)
    rule = "be build(h) -> Optax transformation or step(carry, batch, h) -> carry"
    got = f"a function that needs {count} arguments"
    checks.must("build", count in (1, 3), rule, got, error=TypeError)
    return count == 1


def _check_build(build: Callable[..., Any], init: Callable[..., Any], hparams: PyTree) -> None:
    """Build and init with Python numbers: the checks of transformations do not see traced ones.

    The smallest and largest values of each hyperparameter are tried.
    """
    leaves = [np.asarray(x) for x in jax.tree.leaves(hparams)]
    extremes = [np.ravel([x.argmin(axis=0), x.argmax(axis=0)]) for x in leaves]
    for index in np.unique(np.concatenate([[0], *extremes])).tolist():
        h = row(hparams, index)
        try:
            optimizer = build(h)
            fits = hasattr(optimizer, "init") and hasattr(optimizer, "update")
            rule, advice = (
                "return an Optax optimizer",
                "A step of your own takes (carry, batch, h).",
            )
            checks.must("build", fits, rule, kind_of(optimizer), advice, TypeError)
            params = _shapes_of(init, h)
            if params is not None:
                jax.eval_shape(optimizer.init, params)
        except Exception as error:
            error.add_note(f"`build` was given row {index} of `hparams`: {h}")
            raise


def _shapes_of(init: Callable[..., Any], h: PyTree) -> PyTree:
    try:
        return jax.eval_shape(functools.partial(_called, init, h=h), jax.random.key(0))
    except Exception:  # `init` fails again where it is run, and there h is an array
        return None


class Optimized(NamedTuple):
    """The carry of a run with an Optax optimizer.

    Args:
        params: the parameters.
        opt_state: the state of the optimizer.

    Example:
        >>> Optimized._fields
        ('params', 'opt_state')
    """

    params: PyTree
    opt_state: PyTree


@functools.lru_cache(maxsize=64)
def optimized(
    build: Callable[[Any], Any],
    init: Callable[..., Any],
    loss: Callable[..., Any],
    metric: Callable[..., Any],
    *,
    keep: bool,
    gaps: Gaps,
) -> Job:
    """Make a job from an optimizer factory and a loss.

    Jobs are remembered: the same functions make the same job, which is compiled once.

    Args:
        build: `build(h)` -> Optax transformation.
        init: `init(key)` or `init(key, h)` -> params.
        loss: `loss(params, data, weights)` -> scalar.
        metric: like the loss.
        keep: see `Job`.
        gaps: see `Job`.

    Returns:
        The job; its carry is `Optimized`.

    Example:
        >>> loss = lambda w, x, weights: jnp.sum(weights * (w - x) ** 2) / jnp.sum(weights)
        >>> init = lambda key: jnp.array(0.0)
        >>> job = optimized(optax.sgd, init, loss, loss, keep=False, gaps=Gaps.NONE)
        >>> job.step(job.start(None, 0.25), Batch(jnp.ones(2), jnp.ones(2)), 0.25).params
        Array(0.5, dtype=float32)
    """

    def start(key: Any, h: PyTree) -> Optimized:
        params = _called(init, key, h)
        return Optimized(params, build(h).init(params))

    def step(carry: Optimized, batch: Batch, h: PyTree) -> Optimized:
        optimizer = optax.with_extra_args_support(build(h))
        value, grads = jax.value_and_grad(scalar)(carry.params, batch)
        updates, opt_state = optimizer.update(grads, carry.opt_state, carry.params, value=value)
        new = Optimized(optax.apply_updates(carry.params, updates), opt_state)
        kept: Optimized = jax.tree.map(_same_dtype, new, carry)
        return kept

    scored = "loss" if metric is loss else "metric"

    def scalar(params: PyTree, batch: Batch) -> jax.Array:
        return checked_scalar("loss", loss(params, batch.data, batch.weights))

    def measure(carry: Optimized, batch: Batch) -> jax.Array:
        return checked_scalar(scored, metric(carry.params, batch.data, batch.weights))

    again = functools.partial(optimized, build, init, loss, metric, keep=keep, gaps=gaps)
    return Job(start, step, measure, keep, gaps, ("loss", scored), again)


@functools.lru_cache(maxsize=64)
def stepped(
    step: Callable[..., Any],
    init: Callable[..., Any],
    metric: Callable[..., Any],
    *,
    keep: bool,
    gaps: Gaps,
) -> Job:
    """Make a job from your own step.

    Args:
        step: `step(carry, batch, h)` -> carry.
        init: `init(key)` or `init(key, h)` -> carry.
        metric: `metric(carry, data, weights)` -> scalar.
        keep: see `Job`.
        gaps: see `Job`.

    Returns:
        The job.

    Example:
        >>> step, metric = lambda carry, batch, h: carry + h, lambda carry, data, weights: carry
        >>> stepped(step, lambda key: 0.0, metric, keep=False, gaps=Gaps.NONE).start(None, 1.0)
        0.0
    """

    def start(key: Any, h: PyTree) -> PyTree:
        return _called(init, key, h)

    def measure(carry: PyTree, batch: Batch) -> jax.Array:
        return checked_scalar("metric", metric(carry, batch.data, batch.weights))

    again = functools.partial(stepped, step, init, metric, keep=keep, gaps=gaps)
    return Job(start, step, measure, keep, gaps, recipe=again)


def needed(function: Callable[..., Any]) -> int:
    """Count the positional arguments without a default.

    Args:
        function: any function with a signature.

    Returns:
        How many, taken by position.

    Example:
        >>> needed(lambda key, size=3: key)
        1
    """
    parameters = inspect.signature(function).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


def _called(init: Callable[..., Any], key: Any, h: PyTree) -> PyTree:
    return init(key, h) if needed(init) == 2 else init(key)


def _same_dtype(new: Any, old: Any) -> Any:
    """A traced λ is float32, where a Python float would take the dtype of a bfloat16 state."""
    kinds = jnp.result_type(new), jnp.result_type(old)
    floats = all(jnp.issubdtype(kind, jnp.floating) for kind in kinds)
    return jnp.asarray(new, kinds[1]) if floats and kinds[0] != kinds[1] else new


def checked_scalar(name: str, value: Any) -> jax.Array:
    """Return the value as an array, if it is one number.

    Args:
        name: the function that returned it.
        value: what it returned.

    Returns:
        A scalar array.

    Raises:
        TypeError: it is not a number, or more than one.

    Example:
        >>> checked_scalar("loss", jnp.ones(3))
        Traceback (most recent call last):
        TypeError: `loss` must return one number; got float32[3]. Take its weighted mean.
    """
    fits = isinstance(value, jax.Array | np.ndarray | np.generic | int | float)
    fits = fits and jnp.shape(value) == ()
    advice = "Take its weighted mean."
    checks.must(name, fits, "return one number", kind_of(value), advice, TypeError)
    return jnp.asarray(value)
